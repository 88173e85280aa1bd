// Finds missing barriers in kernels that run under cuda_emu.h, missing events between the kernels of a graph, and host
// code that touches device memory.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before every load and store. This file is linked
// in place of ThreadSanitizer's library, which knows nothing of CUDA's threads, and answers those calls. It is compiled
// without that flag itself.
//
// How it decides. A logical clock counts the events that order accesses. Every two bytes of device and shared memory
// remember which thread wrote and which read them last, and the clock at that time. Two accesses by different threads,
// at least one of them a write, are in order only if one of these events lies between them:
//
//                            start of a launch   grid.sync()   __syncthreads()   __syncwarp()   fence and atomic
//   two lanes of a warp            yes               yes             yes              yes
//   two warps of a block           yes               yes             yes
//   two blocks                     yes               yes                                              yes
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
#define EMU_RACE
#include "emu/cuda_emu_threads.h"
using namespace emu;
extern "C" char __executable_start;

namespace {
const size_t MEMORY = (size_t)2 << 30; // address space only, until it is used
enum Level : uint32_t { ONE, LANES, WARPS, BLOCKS };
struct Access {
    uint32_t who : 30;   // the thread's number in the grid
    uint32_t others : 2; // a Level: how far away the other threads are that this one stands for
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
const uint32_t SITE = 1u << 31, IN_FLIGHT = ~0u;
char *memory, *memory_end, *memory_top;
Cell *cells;
std::map<size_t, std::vector<void *>> unused; // by size
std::map<void *, size_t> sizes;
std::vector<Site> sites;
using Known = std::map<uint32_t, uint32_t>; // by the number of a block: up to when its accesses are known
std::map<uint32_t, Known> known_to;         // what a block knows of the others, and which of its own it has fenced
std::map<const void *, Known> known_by;     // what the next atomic on this variable learns
uint32_t known_since;                       // the gang->synced for which these two hold
const std::vector<bool> *past;              // Node::past of the node that runs; null: no graph runs
std::vector<Kernel> ran;                    // the kernels of the graph's launch so far
std::vector<Kernel> beside;                 // those of them that are not in order with the one that runs

std::string place(uint32_t where) {
    char text[256];
    if (where & SITE) {
        snprintf(text, sizeof text, "%s:%d", sites[where - SITE].file, sites[where - SITE].line);
        return text;
    }
    // Where functions of the emulator were inlined, this is the innermost line of the .cu.
    snprintf(text, sizeof text, "addr2line -ise /proc/%d/exe %#x", (int)getpid(), where - 1);
    std::string found = "an unknown place";
    FILE *pipe = popen(text, "r");
    while (pipe && fgets(text, sizeof text, pipe)) {
        text[strcspn(text, " \n")] = 0;
        found = text;
        if (strncmp(text, "cuda_emu", 8)) break;
    }
    if (pipe) pclose(pipe);
    return found;
}

uint32_t threads_of_block() { return blockDim.x * blockDim.y * blockDim.z; }
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
    if (known_since != gang->synced) return 0;
    uint32_t self = block_number(), others = gridDim.x * gridDim.y * gridDim.z - 1, when = ~0u;
    for (auto &[block, until] : known_to[self])
        if (block != self) others--, when = std::min(when, until);
    return others ? 0 : when;
}

bool conflict(const Access &earlier, const Access &now) {
    if (earlier.when == IN_FLIGHT) return true;
    if (earlier.when < gang->synced) return by_kernel_beside(earlier);
    if (earlier.who == now.who && !earlier.others) return false;
    uint32_t n = threads_of_block(), other = earlier.who, self = now.who;
    if (earlier.others == BLOCKS) return earlier.when >= std::min(known_of_all(), me->block->synced);
    if (other / n != self / n) return known_since != gang->synced || earlier.when >= known_to[self / n][other / n];
    if (earlier.when < me->block->synced) return false;
    if (earlier.others == WARPS || other % n / 32 != self % n / 32) return true;
    return earlier.when >= me->warp->synced;
}

// Of readers that are in no order one is remembered, and how far apart they are.
void add_reader(Access &readers, const Access &now) {
    if (readers.when < gang->synced || !conflict(readers, now)) return void(readers = now);
    uint32_t n = threads_of_block(), other = readers.who, self = now.who;
    uint32_t apart = other / n != self / n ? BLOCKS : other % n / 32 != self % n / 32 ? WARPS : LANES;
    readers.others = std::max<uint32_t>(readers.others, apart);
    readers.when = now.when;
}

// A load of a variable that atomics have changed: this block learns what their blocks knew.
void learn(const void *p) {
    if (!me || known_since != gang->synced) return; // no block has called a fence
    auto there = known_by.find(p);
    if (there == known_by.end()) return;
    Known &mine = known_to[block_number()];
    for (auto &[block, when] : there->second) mine[block] = std::max(mine[block], when);
}

void check(const void *address, size_t size, AccessKind kind, uint32_t where) {
    const char *p = (const char *)address;
    if (p < memory || p >= memory_end) return;
    if (!me) {
        fprintf(stderr, "cuda_emu: %s: host code %s device memory; use cudaMemcpy\n", place(where).c_str(),
                kind == READ ? "reads" : "writes");
        abort();
    }
    if (kind == READ) learn(p);
    Access now = {(block_number() * threads_of_block() + (uint32_t)me->number) & ~(3u << 30), ONE, sync_clock, where};
    Cell *first = cells + (p - memory) / 2;
    for (Cell *cell = first; cell < first + size / 2; cell++) {
        const char *what = kind == READ ? "read" : "write";
        if (kind != ARRIVAL && conflict(cell->write, now)) report(what, now, "write", cell->write);
        if (kind == WRITE || kind == REQUEST)
            for (const Access &read : {cell->read, cell->read_beside})
                if (conflict(read, now)) report(what, now, "read", read);
        if (kind == REQUEST) now.when = IN_FLIGHT;
        if (kind != READ)
            *cell = {now, {}, {}};
        else
            add_reader(by_kernel_beside(cell->read) ? cell->read_beside : cell->read, now);
    }
}
uint32_t code(const void *pc) { return (uint32_t)((const char *)pc - &__executable_start); }
void *reserve(size_t size) {
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) return p;
    perror("cuda_emu: address space for the race check");
    exit(1);
}
} // namespace

void *emu::allocate(size_t size) {
    if (!memory) {
        memory = memory_top = (char *)reserve(MEMORY);
        memory_end = memory + MEMORY;
        cells = (Cell *)reserve(MEMORY / 2 * sizeof(Cell));
    }
    std::vector<void *> &same = unused[size];
    if (same.empty()) {
        if (size + 512 > (size_t)(memory_end - memory_top)) return nullptr;
        same.push_back(memory_top);
        memory_top += (size + 511) / 256 * 256; // a gap of 256 bytes or more
    } else {
        forget_accesses(same.back(), size);
    }
    void *p = same.back();
    same.pop_back();
    sizes[p] = size;
    return p;
}
void emu::deallocate(void *p) {
    if (p) unused[sizes[p]].push_back(p);
}
void emu::forget_accesses(const void *p, size_t size) {
    memset(cells + ((const char *)p - memory) / 2, 0, (size + 1) / 2 * sizeof(Cell));
}
void emu::note_access(const void *p, size_t size, AccessKind kind, Site site) {
    uint32_t i = 0;
    while (i < sites.size() && (sites[i].line != site.line || sites[i].file != site.file)) i++;
    if (i == sites.size()) sites.push_back(site);
    check(p, size, kind, SITE + i);
}

void emu::note_fence() {
    if (known_since != gang->synced) known_to.clear(), known_by.clear(), known_since = gang->synced;
    known_to[block_number()][block_number()] = ++sync_clock;
}
void emu::note_atomic(const void *p) {
    learn(p);
    if (me && known_since == gang->synced) known_by[p] = known_to[block_number()];
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

// ---- What the compiler calls

#define HOOK extern "C" __attribute__((used))
#define HERE code(__builtin_return_address(0))
#define ACCESSES(N)                                                                                                    \
    HOOK void __tsan_read##N(void *p) { check(p, N, READ, HERE); }                                                     \
    HOOK void __tsan_write##N(void *p) { check(p, N, WRITE, HERE); }                                                   \
    HOOK void __tsan_unaligned_read##N(void *p) { check(p, N, READ, HERE); }                                           \
    HOOK void __tsan_unaligned_write##N(void *p) { check(p, N, WRITE, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK void __tsan_read_range(void *p, size_t n) { check(p, n, READ, HERE); }
HOOK void __tsan_write_range(void *p, size_t n) { check(p, n, WRITE, HERE); }
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void *) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void **, void *) {}
HOOK void __tsan_vptr_read(void **) {}
HOOK void *__tsan_memcpy(void *to, const void *from, size_t n) {
    check(from, n, READ, HERE);
    check(to, n, WRITE, HERE);
    return memcpy(to, from, n);
}
HOOK void *__tsan_memmove(void *to, const void *from, size_t n) {
    check(from, n, READ, HERE);
    check(to, n, WRITE, HERE);
    return memmove(to, from, n);
}
HOOK void *__tsan_memset(void *to, int value, size_t n) {
    check(to, n, WRITE, HERE);
    return memset(to, value, n);
}

#define ATOMICS(N, T)                                                                                                  \
    HOOK T __tsan_atomic##N##_load(const T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }                   \
    HOOK void __tsan_atomic##N##_store(T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }                   \
    HOOK T __tsan_atomic##N##_exchange(T *p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }         \
    HOOK T __tsan_atomic##N##_fetch_add(T *p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }         \
    HOOK T __tsan_atomic##N##_fetch_sub(T *p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }         \
    HOOK int __tsan_atomic##N##_compare_exchange_strong(T *p, T *expected, T v, int, int) {                            \
        return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
    }                                                                                                                  \
    HOOK T __tsan_atomic##N##_compare_exchange_val(T *p, T expected, T v, int, int) {                                  \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                       \
        return expected;                                                                                               \
    }
ATOMICS(8, uint8_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
HOOK void __tsan_atomic_thread_fence(int) {}
HOOK void __tsan_atomic_signal_fence(int) {}
