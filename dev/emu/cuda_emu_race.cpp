// Finds missing barriers in kernels that run under cuda_emu.h, missing events between the kernels of a graph, host code
// that touches device memory, and kernels behind a programmatic edge that do so before they wait for the one ahead.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before every load and store. This file is linked
// in place of ThreadSanitizer's library, which knows nothing of CUDA's threads, and answers those calls. It is compiled
// without that flag itself.
//
// How it decides. A logical clock counts the events that order accesses. Every two bytes of device and shared memory
// remember which thread wrote and which read them last, and the clock at that time. Two accesses by different threads,
// at least one of them a write, are in order only if one of these events lies between them:
//
//                            start of a launch,   cluster_sync()   __syncthreads()   __syncwarp()   fence, atomic
//                            grid.sync()
//   two lanes of a warp            yes                 yes               yes              yes
//   two warps of a block           yes                 yes               yes
//   two blocks of a cluster        yes                 yes                                               yes
//   two others                     yes                                                                   yes
//
// The end of a block of a cluster counts as a write to all of its shared memory.
//
// Fence and atomic: a block calls __threadfence() and then changes a variable by an atomic. What it did before the
// fence is in order with what a block does after its own atomic on that variable, or after a load of it (which should
// be volatile), if that comes later. Two kernels are in order unless the same launch of a graph ran them and the
// captured streams and events put neither of their nodes behind the other. Everything else is a race, whatever the
// values came out as: both places are printed and the program ends.
//
// What it leaves out: accesses of a single byte, atomics themselves (they never race), local variables that other
// threads are given pointers to, copies and memsets in a graph, readers in more than two branches of a graph. A
// volatile access counts as any other: set flags by atomics. It needs addr2line to name places.
#include "emu/cuda_emu_hooks.h"

namespace {
enum Level : uint32_t { ONE, LANES, WARPS, BLOCKS, CLUSTERS };
struct Access {
    uint32_t who : 29;   // the thread's number in the grid
    uint32_t others : 3; // a Level: how far away the other threads are that this one stands for
    uint32_t when;       // by the clock; 0: never; IN_FLIGHT: a cp.async that was not waited for
    uint32_t where;      // the code's offset in the program, or SITE + its number in `sites`
};
struct Cell { // what is known of two bytes
    Access write, read;
    Access read_beside; // by a kernel that is not in order with that of `read`
};
struct Kernel { // a kernel of the graph's launch that is under way
    const char *name;
    size_t node;
    uint32_t threads;         // of a block
    uint32_t launched, ended; // by the clock
};
const uint32_t IN_FLIGHT = ~0u;
Cell *const cells = (Cell *)reserve(MEMORY / 2 * sizeof(Cell));
using Known = std::map<uint32_t, uint32_t>; // by the number of a block: up to when its accesses are known
std::map<uint32_t, Known> known_to;         // what a block knows of the others, and which of its own it has fenced
std::map<const void *, Known> known_by;     // what the next atomic on this variable learns
uint32_t known_since;                       // the gang->grid.synced for which these two hold
const std::vector<bool> *past;              // Node::past of the node that runs; null: no graph runs
std::vector<Kernel> ran;                    // the kernels of the graph's launch so far
std::vector<Kernel> beside;                 // those of them that are not in order with the one that runs

uint32_t threads_of_block() { return blockDim.x * blockDim.y * blockDim.z; }
uint32_t cluster_of(uint32_t who) { return who / threads_of_block() / (uint32_t)gang->launch->cluster; }
uint32_t block_number() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }

// The kernel that did this, if it is one of `beside`.
const Kernel *by_kernel_beside(const Access &a) {
    for (const Kernel &k : beside)
        if (k.launched <= a.when && a.when < k.ended) return &k;
    return nullptr;
}

std::string thread_name(const Access &a, uint32_t n = threads_of_block()) {
    return "thread " + std::to_string(a.who % n) + " of block " + std::to_string(a.who / n) +
           (a.others ? " and others" : "");
}

[[noreturn]] void report(const char *what, const Access &now, const char *earlier_what, const Access &earlier) {
    const Kernel *other = by_kernel_beside(earlier);
    std::string kernels = gang->launch->name, earlier_name = thread_name(earlier);
    if (other) {
        kernels = std::string(other->name) + " and kernel " + kernels + " of a graph";
        earlier_name = thread_name(earlier, other->threads);
    }
    fflush(stdout);
    fprintf(stderr, "cuda_emu: race in kernel %s, no %s lies between\n  %s: %s by %s, and\n  %s: %s by %s\n",
            kernels.c_str(), other ? "event" : "barrier", place(earlier.where).c_str(),
            earlier.when == IN_FLIGHT ? "asynchronous copy, not waited for," : earlier_what, earlier_name.c_str(),
            place(now.where).c_str(), what, thread_name(now).c_str());
    abort();
}

// The time up to which this block knows the accesses of every other block.
uint32_t known_of_all() {
    if (known_since != gang->grid.synced) return 0;
    uint32_t self = block_number(), others = gridDim.x * gridDim.y * gridDim.z - 1, when = ~0u;
    for (auto &[block, until] : known_to[self])
        if (block != self) others--, when = std::min(when, until);
    return others ? 0 : when;
}

bool conflict(const Access &earlier, const Access &now) {
    if (earlier.when == IN_FLIGHT) return true;
    if (earlier.when < gang->grid.synced) return by_kernel_beside(earlier);
    if (earlier.who == now.who && !earlier.others) return false;
    uint32_t n = threads_of_block(), other = earlier.who, self = now.who;
    if (earlier.others < CLUSTERS && cluster_of(other) == cluster_of(self) && earlier.when < me->block->cluster->synced)
        return false;
    if (earlier.others >= BLOCKS) return earlier.when >= std::min(known_of_all(), me->block->synced);
    if (other / n != self / n) return known_since != gang->grid.synced || earlier.when >= known_to[self / n][other / n];
    if (earlier.when < me->block->synced) return false;
    if (earlier.others == WARPS || other % n / 32 != self % n / 32) return true;
    return earlier.when >= me->warp->synced;
}

// Of readers that are in no order one is remembered, and how far apart they are.
void add_reader(Access &readers, const Access &now) {
    if (readers.when < gang->grid.synced || !conflict(readers, now)) return void(readers = now);
    uint32_t n = threads_of_block(), other = readers.who, self = now.who;
    uint32_t apart = cluster_of(other) != cluster_of(self) ? CLUSTERS
                     : other / n != self / n               ? BLOCKS
                     : other % n / 32 != self % n / 32     ? WARPS
                                                           : LANES;
    readers.others = std::max<uint32_t>(readers.others, apart);
    readers.when = now.when;
}

// A load of a variable that atomics have changed: this block learns what their blocks knew.
void learn(const void *p) {
    if (!me || known_since != gang->grid.synced) return; // no block has called a fence
    auto there = known_by.find(p);
    if (there == known_by.end()) return;
    Known &mine = known_to[block_number()];
    for (auto &[block, when] : there->second) mine[block] = std::max(mine[block], when);
}

void accessed(const void *p, size_t size, AccessKind kind, uint32_t where) {
    if (!in_memory(p)) return;
    if (!me || (gang->launch->early && !me->awaited && !is_shared(offset_of(p)))) {
        fprintf(stderr, "cuda_emu: %s: %s %s device memory; %s\n", place(where).c_str(),
                me ? gang->launch->name : "host code", kind == READ ? "reads" : "writes",
                me ? "it must call cudaGridDependencySynchronize() first" : "use cudaMemcpy");
        abort();
    }
    if (kind == READ) learn(p);
    Access now = {(block_number() * threads_of_block() + (uint32_t)me->number) & ~(7u << 29), ONE, sync_clock, where};
    Cell *first = cells + offset_of(p) / 2;
    for (Cell *cell = first; cell < first + size / 2; cell++) {
        const char *what = kind == READ ? "read" : "write";
        if (kind != ARRIVED_WRITE && conflict(cell->write, now)) report(what, now, "write", cell->write);
        if (kind == WRITE || kind == COPY_WRITE)
            for (const Access &read : {cell->read, cell->read_beside})
                if (conflict(read, now)) report(what, now, "read", read);
        if (kind == COPY_WRITE) now.when = IN_FLIGHT;
        if (kind != READ)
            *cell = {now, {}, {}};
        else
            add_reader(by_kernel_beside(cell->read) ? cell->read_beside : cell->read, now);
    }
}
} // namespace

void emu::forget_accesses(const void *p, size_t size) {
    memset(cells + offset_of(p) / 2, 0, (size + 1) / 2 * sizeof(Cell));
}
void emu::note_access(const void *p, size_t size, AccessKind kind, Site site) {
    if (kind == COPY_READ || kind == EXCHANGE_READ || kind == EXCHANGE_WRITE) return;
    accessed(p, size, kind == ARRIVED_READ ? READ : kind, number_of(site));
}

void emu::note_end(const void *p, size_t size) { accessed(p, size, WRITE, number_of({"the end of its block", 0})); }
void emu::note_fence() {
    if (known_since != gang->grid.synced) known_to.clear(), known_by.clear(), known_since = gang->grid.synced;
    known_to[block_number()][block_number()] = ++sync_clock;
}
void emu::note_atomic(const void *p) {
    learn(p);
    if (me && known_since == gang->grid.synced) known_by[p] = known_to[block_number()];
}
void emu::note_launch(const Launch &launch, uint32_t launched) {
    if (!ran.empty()) ran.back().ended = launched;
    beside.clear();
    if (!past) return;
    for (const Kernel &k : ran)
        if (k.node >= past->size() || !(*past)[k.node]) beside.push_back(k);
    uint32_t threads = launch.block.x * launch.block.y * launch.block.z;
    ran.push_back({launch.name, past->size(), threads, launched, launched});
}
void emu::note_node(const std::vector<bool> *past_of_node) {
    past = past_of_node;
    if (!past) ran.clear();
}
void emu::note_together(const Warp &) {}
void emu::note_work(Work) {}
