// CUDA's threads on a CPU, for cuda_emu.h, whose head tells how they run. In this order:
//   Fiber                               a stack, and how the processor leaves one for another
//   Thread, Warp, Block, Group, Gang    who is ready, who waits where
//   next_ready()                        the scheduler
//   block_barrier(), warp_operation()   the two ways to wait
//   shared_memory()                     blocks' own copies of __shared__ variables
//   run_kernel()                        a launch
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <map>
#include <math.h>
#include <memory>
#include <numeric>
#include <set>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <utility>
#include <vector>
#include <wchar.h>

#ifndef __has_feature // clang has it
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define EMU_ASAN
#include <sanitizer/asan_interface.h>
#elif defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define EMU_HOOKS
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline __thread dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

[[noreturn]] inline void out_of_memory() {
    fprintf(stderr, "cuda_emu: out of memory\n");
    exit(1);
}
inline const std::new_handler earlier_handler = std::set_new_handler(out_of_memory); // for the emulator's own lists

// ---- Fibers

struct Fiber {
    void *stack_pointer = nullptr; // while the fiber does not run; its registers lie there
    char *low = nullptr;           // the lowest address of its stack
    size_t size = 0;               // bytes of the stack
    void *fake_stack = nullptr;    // AddressSanitizer's
};

// emu_switch(save, load) pushes the registers that a function must keep, stores the stack pointer in *save, makes
// `load` the stack pointer and pops the registers that were pushed there. It returns to whoever called it with that
// stack. It pushes EMU_FRAME words, the return address among them; word EMU_RETURN is the return address.
#if defined(__x86_64__)
#define EMU_FRAME 8 // with one for the return address of the fiber's first function, which never returns
#define EMU_RETURN 6
asm(R"(
.text
emu_switch:
    .irp register, rbp, rbx, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    .irp register, r15, r14, r13, r12, rbx, rbp
    popq %\register
    .endr
    ret
)");
#elif defined(__aarch64__)
#define EMU_FRAME 20
#define EMU_RETURN 11
asm(R"(
.macro emu_all_pairs instruction
    \instruction x19, x20, [sp, #0]
    \instruction x21, x22, [sp, #16]
    \instruction x23, x24, [sp, #32]
    \instruction x25, x26, [sp, #48]
    \instruction x27, x28, [sp, #64]
    \instruction x29, x30, [sp, #80]
    \instruction d8, d9, [sp, #96]
    \instruction d10, d11, [sp, #112]
    \instruction d12, d13, [sp, #128]
    \instruction d14, d15, [sp, #144]
.endm
.text
.balign 4
emu_switch:
    sub sp, sp, #160
    emu_all_pairs stp
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    emu_all_pairs ldp
    add sp, sp, #160
    ret
)");
#else
#error "cuda_emu.h switches stacks on x86-64 and on 64-bit ARM only"
#endif
extern "C" void emu_switch(void **save, void *load) __asm__("emu_switch");
[[noreturn]] inline void fiber_main(); // below

inline void switch_fiber(Fiber *from, Fiber *to, [[maybe_unused]] bool finished = false) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(finished ? nullptr : &from->fake_stack, to->low, to->size);
#endif
    emu_switch(&from->stack_pointer, to->stack_pointer);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// A new stack. The page below it is forbidden, so that an overflow stops the program there.
inline Fiber *new_fiber() {
#ifdef EMU_ASAN
    const size_t size = 256 << 10, page = 64 << 10;
#else
    const size_t size = 64 << 10, page = 64 << 10; // the largest page there is
#endif
    static std::atomic<unsigned> count;
    void *p = mmap(nullptr, page + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE)) {
        perror("cuda_emu: a fiber's stack");
        exit(1);
    }
    // The size differs so that not all tops lie in the same lines of the cache.
    return new Fiber{nullptr, (char *)p + page, size - count++ % 32 * 192};
}

// The next switch to this fiber enters fiber_main() on an empty stack.
inline void rewind_fiber(Fiber *fiber) {
#ifdef EMU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber->low, fiber->size);
#endif
    void **top = (void **)((uintptr_t)(fiber->low + fiber->size) & ~(uintptr_t)63), **frame = top - EMU_FRAME;
    memset(frame, 0, EMU_FRAME * sizeof *frame);
    frame[EMU_RETURN] = (void *)fiber_main;
    fiber->stack_pointer = frame;
    fiber->fake_stack = nullptr;
}

// ---- Who waits where

struct Site { // a place in the .cu
    const char *file;
    int line;
};
// A function with this last parameter knows where it was called.
#define EMU_SITE emu::Site site = {__builtin_FILE(), __builtin_LINE()}

struct AsyncCopy { // a cp.async of 16 bytes that was requested
    void *to;
    const void *from;
    int given, group;
    bool done;
};
struct Warp;
struct Block;
using WarpOperation = void (*)(Warp &, unsigned lanes);

struct Thread {
    dim3 index;
    int number, lane; // its place in the block and in the warp
    Warp *warp;
    Block *block;
    Fiber *fiber = nullptr; // null: not started
    Site site = {};         // where it waits
    bool awaited = false;   // it has called cudaGridDependencySynchronize()
    // In a warp operation:
    WarpOperation operation = nullptr;
    unsigned mask = 0;     // the lanes that it waits for
    void *offer = nullptr; // what it gives and takes
    // Of cp.async:
    std::vector<AsyncCopy> copies = {}; // those under way
    int copy_group = 0;                 // the number of the open group
};
struct Warp {
    Thread *lanes;
    unsigned ready, in_operation, at_barrier, exited; // one bit for each lane
    uint32_t synced;                                  // when its last __syncwarp was
    unsigned held = 0;                                // lanes that wait for the kernel before, as Gang::hold says
};
struct SharedMemory {
    char *bytes;
    size_t size;
    uint32_t owner; // the block that it was made fresh for, by the block's `started`
};
struct Group {         // of blocks: a cluster, or the grid
    int live, arrived; // threads that have not exited, and threads that wait at its barrier
    uint32_t synced;   // when its last barrier was; before it, when a grid was launched, or 0
};
struct Block {
    dim3 index;
    Group *cluster;
    int number; // its place in the gang
    Warp *warps;
    int n_warps;
    int live, arrived;                // threads that have not exited, and threads that wait at the barrier
    Site site;                        // of that barrier
    uint32_t started, synced;         // when it began, when its last __syncthreads was
    std::vector<SharedMemory> shared; // [0] dynamic, then each __shared__ variable of the program by its number
};
struct Launch {
    const void *entry; // the kernel
    const char *name;  // as the launch writes it
    std::function<void()> body;
    dim3 grid, block;
    size_t shared; // bytes of dynamic shared memory
    bool cooperative;
    int cluster = 1;    // blocks of a cluster
    bool early = false; // a programmatic edge of a graph leads to it
};

// The blocks that live at once on one of the system's threads: a cluster's, mostly one; all of a cooperative launch.
struct Gang {
    const Launch *launch;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Group> clusters;
    Group grid; // the blocks of this launch
    std::vector<Warp> warps;
    std::vector<Thread> threads;
    int n_blocks, n_warps; // of this launch
    bool hold;             // the kernel before has yet to run
    uint32_t awake;        // sync_clock when a thread last did more than call __nanosleep()
    long sleeps;           // calls of __nanosleep() since then
    time_t asleep;         // when the first of them was
    int cursor;            // the warp that ran last
    uint64_t random;       // the state of CUDA_EMU_ORDER=rand
    Fiber main;            // the stack of the launch's caller
    Fiber *running;
    std::vector<Fiber *> idle;
    // What loads may still find where exchange_store() has stored, in order rand
    std::map<const void *, uint64_t> unseen;
};
inline __thread Gang *gang;
inline __thread Thread *me;                 // the CUDA thread that runs; null: host code
inline std::atomic<uint32_t> sync_clock{0}; // logical time: it counts barriers opened, blocks and launches begun

enum Order { FORWARD, REVERSE, RANDOM };
struct Config {
    Order order = FORWARD;
    uint64_t seed = 1;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    int major = 9, minor = 0, multiprocessors = 4, cluster = 1; // the largest cluster
    Config() {
        if (const char *text = getenv("CUDA_EMU_ORDER")) {
            bool random = !strcmp(text, "rand") || !strncmp(text, "rand:", 5);
            order = random ? RANDOM : !strcmp(text, "rev") ? REVERSE : FORWARD;
            if (random && text[4]) seed = strtoull(text + 5, nullptr, 10);
            if (order == FORWARD && strcmp(text, "fwd")) {
                fprintf(stderr, "cuda_emu: CUDA_EMU_ORDER=%s: it can be fwd, rev, rand or rand:SEED\n", text);
                exit(2);
            }
        }
        if (const char *text = getenv("CUDA_EMU_MEMORY")) memory = strtoull(text, nullptr, 10) << 20;
        if (const char *text = getenv("CUDA_EMU_CAPABILITY")) sscanf(text, "%d.%d", &major, &minor);
        if (const char *text = getenv("CUDA_EMU_CLUSTERS")) cluster = major < 9 || !atoi(text) ? 1 : 8;
        if (const char *text = getenv("CUDA_EMU_MULTIPROCESSORS")) multiprocessors = std::max(1, atoi(text));
    }
};
inline const Config config;

// The file that this environment variable names, or `otherwise`; null, with a sentence, where it cannot be opened.
inline FILE *open_named(const char *variable, const char *mode, FILE *otherwise) {
    const char *path = getenv(variable);
    FILE *file = path ? fopen(path, mode) : otherwise;
    if (path && !file) perror(path);
    return file;
}

inline void log_kernel(const char *name) {
    static FILE *const file = open_named("CUDA_EMU_KERNELS", "a", nullptr);
    static std::set<std::string> logged;
    if (file && logged.insert(name).second) fprintf(file, "%s\n", name);
}

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void die(Site site, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "cuda_emu: %s:%d: ", site.file, site.line);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (me)
        fprintf(stderr, "\n  in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", gang->launch->name, blockIdx.x,
                blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    fprintf(stderr, "\n");
    abort();
}

// No thread is ready, though some have not exited: says who waits where, and ends the program.
[[noreturn]] inline void deadlock() {
    fflush(stdout);
    fprintf(stderr, "cuda_emu: deadlock in kernel %s: no thread can go on\n", gang->launch->name);
    int shown = 0;
    for (int i = 0; i < gang->n_warps; i++)
        for (Warp &w = gang->warps[i]; unsigned waiting = w.in_operation | w.at_barrier | w.ready;) {
            const Thread &first = w.lanes[__builtin_ctz(waiting)];
            unsigned same = 0;
            for (unsigned m = waiting; m; m &= m - 1)
                if (w.lanes[__builtin_ctz(m)].site.line == first.site.line) same |= m & -m;
            if (shown++ < 20)
                fprintf(stderr, "  %s:%d: block (%u,%u,%u), warp %d, lanes %08x wait %s\n", first.site.file,
                        first.site.line, first.block->index.x, first.block->index.y, first.block->index.z,
                        first.number / 32, same,
                        w.in_operation & same ? "in a warp operation"
                        : w.at_barrier & same ? "at a barrier"
                                              : "in __nanosleep()");
            w.in_operation &= ~same;
            w.at_barrier &= ~same;
            w.ready &= ~same;
        }
    if (gang->sleeps && !gang->launch->cooperative)
        fprintf(stderr, "  only the blocks of a cooperative launch can wait for each other\n");
    abort();
}

// ---- The scheduler

inline uint64_t next_random(uint64_t &state) { // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

// Takes a thread that is ready, or returns null. The warp that ran last comes first, then the warps after it; or, if
// `anybody`, chance decides.
inline Thread *next_ready(bool anybody = config.order == RANDOM) {
    Gang &g = *gang;
    if (anybody) g.cursor = (int)(next_random(g.random) % (uint64_t)g.n_warps);
    for (int i = 0; i < g.n_warps; i++) {
        if (unsigned ready = g.warps[g.cursor].ready) {
            int lane = config.order == REVERSE ? 31 - __builtin_clz(ready) : __builtin_ctz(ready);
            if (anybody) {
                for (uint64_t k = next_random(g.random) % (uint64_t)__builtin_popcount(ready); k; k--)
                    ready &= ready - 1;
                lane = __builtin_ctz(ready);
            }
            g.warps[g.cursor].ready &= ~(1u << lane);
            return &g.warps[g.cursor].lanes[lane];
        }
        g.cursor = config.order == REVERSE ? (g.cursor + g.n_warps - 1) % g.n_warps : (g.cursor + 1) % g.n_warps;
    }
    return nullptr;
}

inline void become(Thread *thread) {
    me = thread;
    threadIdx = thread->index;
    blockIdx = thread->block->index;
    if (!thread->fiber) thread->fiber = gang->running;
    gang->running = thread->fiber;
}

// Leaves this fiber for that of `next`. Returns when another thread hands the processor back.
inline void hand_over(Thread *next) {
    if (!next) deadlock();
    Fiber *from = gang->running;
    if (!next->fiber) {
        if (gang->idle.empty()) gang->idle.push_back(new_fiber());
        next->fiber = gang->idle.back();
        gang->idle.pop_back();
        rewind_fiber(next->fiber);
    }
    become(next);
    if (next->fiber != from) switch_fiber(from, next->fiber);
}
inline void wait(Site site) {
    me->site = site;
    Thread *next = next_ready();
    if (next || !gang->hold) return hand_over(next);
    switch_fiber(std::exchange(gang->running, &gang->main), &gang->main); // which is in begin_early()
}
inline void await_kernel_before(Site site) { // cudaGridDependencySynchronize()
    me->awaited = true;
    if (!gang->hold) return;
    me->warp->held |= 1u << me->lane;
    wait(site);
}

// For __nanosleep(): any thread may be next. If no thread has done anything else for a second or two, none ever will.
inline void sleep(Site site) {
    Gang &g = *gang;
    me->site = site;
    me->warp->ready |= 1u << me->lane;
    if (g.awake != sync_clock) g.awake = sync_clock, g.sleeps = 0;
    if (g.sleeps++ == 0) g.asleep = time(nullptr);
    if (g.sleeps % (1 << 20) == 0 && time(nullptr) > g.asleep + 1) deadlock();
    hand_over(next_ready(true));
}

// ---- What a program that looks on is told: the race check (cuda_emu_race.cpp), the counts (cuda_emu_count.cpp)

// An access that the compiler reports, and those of instructions that it does not know. A cp.async accesses memory when
// it is requested, as far as counts go, and until it was waited for, as far as races go.
enum AccessKind { READ, WRITE, COPY_READ, COPY_WRITE, ARRIVED_READ, ARRIVED_WRITE, EXCHANGE_READ, EXCHANGE_WRITE };
enum Work { PRODUCT, BLOCK_BARRIER, WARP_BARRIER, GRID_BARRIER, WORKS }; // of a warp, block, warp, cluster or grid
#ifdef EMU_HOOKS
void *allocate(size_t size);
void deallocate(void *memory);
void forget_accesses(const void *memory, size_t size);
void note_access(const void *memory, size_t size, AccessKind kind, Site site);
void note_end(const void *memory, size_t size); // of a block's shared memory, which its cluster could reach
void note_fence();
void note_atomic(const void *memory);
void note_launch(const Launch &launch, uint32_t launched);
void note_node(const std::vector<bool> *past);
void note_together(const Warp &warp); // all lanes of the warp that have not exited are at the same place
void note_work(Work work);
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#else
// The size is exact, for AddressSanitizer.
inline void *allocate(size_t size) {
    void *memory = nullptr;
    return posix_memalign(&memory, 256, size) ? nullptr : memory;
}
inline void deallocate(void *memory) { free(memory); }
inline void forget_accesses(const void *, size_t) {}
inline void note_access(const void *, size_t, AccessKind, Site) {}
inline void note_end(const void *, size_t) {}
inline void note_fence() {}
inline void note_atomic(const void *) {}
inline void note_launch(const Launch &, uint32_t) {}
inline void note_node(const std::vector<bool> *) {}
inline void note_together(const Warp &) {}
inline void note_work(Work) {}
#define EMU_UNCHECKED
#endif

// ---- Barriers: the last thread to arrive opens the barrier, and goes on itself

inline void open_block(Block &block) {
    block.arrived = 0;
    block.synced = ++sync_clock;
    for (int w = 0; w < block.n_warps; w++) {
        note_together(block.warps[w]);
        block.warps[w].ready |= block.warps[w].at_barrier;
        block.warps[w].at_barrier = 0;
    }
}
inline void open_group(Group &group) {
    group.arrived = 0;
    group.synced = ++sync_clock;
    for (int b = 0; b < gang->n_blocks; b++)
        if (&group == &gang->grid || &group == gang->blocks[b]->cluster) open_block(*gang->blocks[b]);
}
inline void block_barrier(Site site) {
    Block &block = *me->block;
    if (block.arrived == 0) block.site = site;
    if (block.site.line != site.line || strcmp(block.site.file, site.file))
        die(site, "a thread is at this barrier, others of its block are at the one at %s:%d", block.site.file,
            block.site.line);
    if (++block.arrived == block.live) return note_work(BLOCK_BARRIER), open_block(block);
    me->warp->at_barrier |= 1u << me->lane;
    wait(site);
}
inline void group_barrier(Group &group, Site site) {
    if (++group.arrived == group.live) return note_work(GRID_BARRIER), open_group(group);
    me->warp->at_barrier |= 1u << me->lane;
    wait(site);
}
inline void grid_barrier(Site site) {
    if (!gang->launch->cooperative)
        die(site, "grid.sync() in a kernel that cudaLaunchCooperativeKernel did not launch");
    group_barrier(gang->grid, site);
}

// ---- Warp operations: every lane brings an offer, and the last lane to arrive does the operation for all

// Does every operation of this warp for which all lanes have come.
inline void complete_operations(Warp &warp) {
    for (unsigned left = warp.in_operation; left;) {
        Thread &first = warp.lanes[__builtin_ctz(left)];
        unsigned lanes = first.mask & ~warp.exited; // a lane that has exited is not waited for
        left &= ~lanes;
        if (lanes & ~warp.in_operation) continue;
        for (unsigned m = lanes; m; m &= m - 1) {
            Thread &t = warp.lanes[__builtin_ctz(m)];
            if (t.mask != first.mask || t.operation != first.operation || t.site.line != first.site.line)
                die(t.site,
                    "lane %d is in this warp operation with mask %08x, lane %d in the one at %s:%d with mask %08x",
                    t.lane, t.mask, first.lane, first.site.file, first.site.line, first.mask);
        }
        first.operation(warp, lanes);
        if (lanes == ~warp.exited) note_together(warp);
        warp.in_operation &= ~lanes;
        warp.ready |= lanes;
    }
}
inline void warp_operation(unsigned mask, void *offer, WarpOperation operation, Site site) {
    Warp &warp = *me->warp;
    unsigned bit = 1u << me->lane;
    if (!(mask & bit)) die(site, "lane %d is not in the mask of its warp operation, %08x", me->lane, mask);
    me->mask = mask;
    me->offer = offer;
    me->operation = operation;
    me->site = site;
    warp.in_operation |= bit;
    if (!(mask & ~warp.exited & ~warp.in_operation)) complete_operations(warp);
    if (warp.ready & bit)
        warp.ready &= ~bit;
    else
        wait(site);
}
template <class Offer>
inline Offer &offer_of(Warp &warp, int lane) {
    return *(Offer *)warp.lanes[lane].offer;
}

// ---- Memory

// A GPU's memory is not cleared. Here it is NaN, as floats and as bf16, so that what is read before it is written
// shows. It is not all ones, by which kernels may mean "nothing yet": a forgotten reset would pass.
EMU_UNCHECKED inline void set_undefined(void *memory, size_t size) {
    wmemset((wchar_t *)memory, (wchar_t)0xfffefffe, size / sizeof(wchar_t));
    memset((char *)memory + size / sizeof(wchar_t) * sizeof(wchar_t), 0xfe, size % sizeof(wchar_t));
}

// A block's copy of shared memory number `which`. It is undefined when it is first asked for.
inline void *shared_memory(Block &block, size_t which, size_t size) {
    if (which >= block.shared.size()) block.shared.resize(which + 1, {nullptr, 0, 0});
    SharedMemory &memory = block.shared[which];
    if (memory.size != size) {
        deallocate(memory.bytes);
        memory = {(char *)allocate(size), size, 0};
        if (size && !memory.bytes) out_of_memory();
    }
    if (size && memory.owner != block.started) set_undefined(memory.bytes, size), forget_accesses(memory.bytes, size);
    memory.owner = block.started;
    return memory.bytes;
}
inline void *dynamic_shared_memory() { return shared_memory(*me->block, 0, gang->launch->shared); }

// A __shared__ declaration.
struct SharedVariable {
    static inline std::atomic<size_t> count;
    const size_t size, number = ++count;
    void *of_this_block() const { return shared_memory(*me->block, number, size); }
};

// Where block `rank` of this cluster has what lies at `own` in this block's shared memory.
inline void *cluster_shared(void *own, int rank, Site site) {
    const int blocks = gang->launch->cluster, first = me->block->number / blocks * blocks;
    if (rank < 0 || rank >= blocks) die(site, "cluster_shared() of block %d in a cluster of %d", rank, blocks);
    if (!me->block->cluster->synced)
        die(site, "cluster_shared() before a cluster_sync(): not all blocks of the cluster may have begun");
    Block &block = *gang->blocks[first + rank];
    if (!block.live) die(site, "cluster_shared() of a block that has ended");
    const std::vector<SharedMemory> &mine = me->block->shared;
    for (size_t i = 0; i < mine.size(); i++)
        if (mine[i].owner == me->block->started && own >= mine[i].bytes && own < mine[i].bytes + mine[i].size)
            return (char *)shared_memory(block, i, mine[i].size) + ((char *)own - mine[i].bytes);
    die(site, "cluster_shared() of what is not in shared memory");
}

// ---- Launches

// A block has ended. Shared memory that the other blocks of its cluster could reach is theirs no more.
inline void end_shared_memory(Block &block) {
    block.synced = ++sync_clock; // what its own threads did lies behind
    for (SharedMemory &memory : block.shared) {
        if (!memory.size || memory.owner != block.started) continue;
        note_end(memory.bytes, memory.size);
        set_undefined(memory.bytes, memory.size);
    }
}

inline void exit_thread() {
    Block &block = *me->block;
    Group &cluster = *block.cluster, &grid = gang->grid;
    if (gang->launch->early && !me->awaited)
        die({gang->launch->name, 0}, "a thread has not called cudaGridDependencySynchronize()");
    me->warp->exited |= 1u << me->lane;
    complete_operations(*me->warp); // nobody waits for a thread that has exited
    if (me->warp->exited == ~0u) note_together(*me->warp);
    gang->sleeps = 0;
    grid.live--;
    block.live--;
    cluster.live--;
    if (!block.live && gang->launch->cluster > 1) end_shared_memory(block);
    if (block.live && block.arrived == block.live) open_block(block);
    if (cluster.live && cluster.arrived == cluster.live) open_group(cluster);
    if (grid.live && grid.arrived == grid.live) open_group(grid);
}

// The life of a fiber: it runs a thread, and then the next ones as long as they have no fiber yet.
inline void fiber_main() {
#ifdef EMU_ASAN
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &low, &size);
    if (!gang->main.low) gang->main.low = (char *)low, gang->main.size = size; // where the first switch came from
#endif
    for (;;) {
        gang->launch->body();
        exit_thread();
        Thread *next = next_ready();
        if (!next && gang->grid.live) deadlock();
        if (next && !next->fiber) { // a thread that has not started goes on with this stack
            become(next);
            continue;
        }
        Fiber *self = gang->running;
        gang->idle.push_back(self);
        if (next) become(next);
        switch_fiber(self, next ? next->fiber : &gang->main, true);
    }
}

inline void start_block(int b, dim3 index) {
    Gang &g = *gang;
    Block &block = *g.blocks[b];
    const uint32_t now = ++sync_clock;
    dim3 size = g.launch->block;
    int n_threads = (int)(size.x * size.y * size.z), n_warps = (n_threads + 31) / 32;
    Group &cluster = g.clusters[(size_t)(b / g.launch->cluster)];
    cluster.live += n_threads;
    block = {index, &cluster, b,   &g.warps[(size_t)b * n_warps], n_warps, n_threads, 0,
             {},    now,      now, std::move(block.shared)};
    for (int w = 0; w < n_warps; w++) {
        int lanes = std::min(32, n_threads - 32 * w);
        unsigned ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
        block.warps[w] = {&g.threads[((size_t)b * n_warps + w) * 32], ready, 0, 0, ~ready, now};
    }
    for (int t = 0; t < n_threads; t++) {
        const unsigned row = (unsigned)t / size.x;
        const dim3 place = {(unsigned)t % size.x, row % size.y, row / size.y};
        Warp &warp = block.warps[t / 32];
        warp.lanes[t % 32] = {place, t, t % 32, &warp, &block};
    }
}

// Runs the blocks first, first + 1, ... first + n - 1 of a launch together.
inline void run_blocks(const Launch &launch, long first, int n, uint32_t launched, bool hold = false) {
    if (!gang) gang = new Gang(); // each thread of the operating system keeps one to its end
    Gang &g = *gang;
    size_t n_threads = (size_t)launch.block.x * launch.block.y * launch.block.z, n_warps = (n_threads + 31) / 32 * n;
    while ((int)g.blocks.size() < n) g.blocks.push_back(std::make_unique<Block>());
    if (g.warps.size() < n_warps) g.warps.resize(n_warps), g.threads.resize(n_warps * 32);
    blockDim = launch.block;
    gridDim = launch.grid;
    g.launch = &launch;
    g.n_blocks = n;
    g.n_warps = (int)n_warps;
    g.clusters.assign((size_t)(n / launch.cluster), {});
    g.grid = {n * (int)n_threads, 0, launched};
    g.hold = hold;
    g.cursor = config.order == REVERSE ? g.n_warps - 1 : 0;
    g.random = (config.seed + (uint64_t)first * 2) * 0x9E3779B97F4A7C15u + 1;
    g.running = &g.main;
    g.unseen.clear();
    for (int b = 0; b < n; b++) {
        unsigned i = (unsigned)(first + b), row = i / gridDim.x;
        start_block(b, {i % gridDim.x, row % gridDim.y, row / gridDim.y});
    }
    hand_over(next_ready());
    me = nullptr;
}

// The first cluster of a kernel begins before the kernel ahead: begin_early() runs its threads until all of them wait,
// finish_early() what is left of them.
inline std::map<const Launch *, Gang *> early;       // the blocks that have begun
inline auto &spare_gangs = *new std::vector<Gang *>; // never destroyed

inline void begin_early(const Launch &launch) {
    Gang *own = std::exchange(gang, nullptr);
    if (!spare_gangs.empty()) gang = spare_gangs.back(), spare_gangs.pop_back();
    run_blocks(launch, 0, launch.cluster, ++sync_clock, true);
    early[&launch] = std::exchange(gang, own);
}
inline void finish_early(const Launch &launch, uint32_t launched) {
    Gang *own = std::exchange(gang, early[&launch]);
    blockDim = launch.block;
    gridDim = launch.grid;
    gang->hold = false;
    gang->grid.synced = launched;
    for (Warp &w : gang->warps) w.ready |= std::exchange(w.held, 0);
    hand_over(next_ready());
    me = nullptr;
    early.erase(&launch);
    spare_gangs.push_back(std::exchange(gang, own));
}

inline void run_kernel(const Launch &launch) {
    const long blocks = (long)launch.grid.x * launch.grid.y * launch.grid.z, n = blocks / launch.cluster;
    uint32_t launched = ++sync_clock;
    log_kernel(launch.name);
    note_launch(launch, launched);
    const bool begun = early.count(&launch);
    if (begun) finish_early(launch, launched);
    if (launch.cooperative) return run_blocks(launch, 0, (int)blocks, launched);
    // In random order position j is cluster (factor j + first) mod n; factor and n have no divisor in common.
    uint64_t random = config.seed * 0x9E3779B97F4A7C15u + launched;
    long first = 0, factor = 1;
    if (config.order == RANDOM) {
        first = (long)(next_random(random) % (uint64_t)n);
        factor = (long)(next_random(random) % 1000000);
        while (std::gcd(factor, n) != 1) factor++;
    }
#if defined(_OPENMP) && !defined(EMU_HOOKS)
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
#endif
    for (long j = 0; j < n; j++) {
        const long cluster = config.order == REVERSE ? n - 1 - j : (j * factor + first) % n;
        if (cluster || !begun) run_blocks(launch, cluster * launch.cluster, launch.cluster, launched);
    }
}
} // namespace emu
