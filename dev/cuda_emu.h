// CUDA on a CPU: runs ordinary .cu source with g++ or clang++, without nvcc and without a GPU. For reading kernels step
// by step in a debugger, and for tests.
//
// How a block runs. Every CUDA thread is a fiber: a function call with a stack of its own. All fibers of a block share
// one thread of the operating system, so only one of them runs at a time. It runs until it has to wait for others, at
// __syncthreads(), at a warp operation such as __shfl_sync(), at grid.sync(), and there it hands the processor to the
// next fiber that is ready. The last one to come does what all have waited for: it exchanges the values, opens the
// barrier. A hand-over saves six registers and the stack pointer, about 20 ns, so a barrier of 256 threads costs some 5
// us. Threads that never wait cost no hand-over: one fiber runs them one after the other. Blocks run in parallel, as
// many as OpenMP has threads. The blocks of a cooperative launch are different: they wait for each other, so the fibers
// of all of them live at once on one operating system thread, side by side.
//
// Where to look. Fiber: the stack switch. Thread, Warp, Block, Gang: who waits where. next_ready(): the scheduler.
// block_barrier(), warp_operation(): the two ways to wait. run_kernel(): a launch. The rest is CUDA's vocabulary.
//
// How to build. cuda2cpp.sed turns launches and __shared__ declarations into C++, line for line; its head says which
// forms it knows. Include <cuda_runtime.h> and the like as always, the script makes them this file.
//   { echo '#line 1 "x.cu"'; sed -f dev/cuda2cpp.sed x.cu; } >x.cpp
//   g++ -std=c++17 -O2 -g -fopenmp -I. x.cpp              clang++ as well; x86-64 or 64-bit ARM, unverified on the
//   latter
//   ... -O1 -fsanitize=address,undefined -I. x.cpp        finds what is read or written out of bounds, in shared memory
//   too
//   ... -O1 -fsanitize=thread -I. -c x.cpp -o x.o && g++ -I. x.o dev/cuda_emu_race.cpp     finds missing barriers
//   ... -O0 -g -I. x.cpp && gdb a.out                     break x.cu:37 if threadIdx.x == 5 && blockIdx.x == 2
//
// What it finds in every build: barriers that only some threads reach, deadlocks, shuffles from lanes that are absent,
// copies past an allocation. It names the place in the .cu and aborts. Shared and device memory start as NaN.
// What it cannot tell: speed, bank conflicts, registers, the last bits of a tensor core's sums, whether a kernel reads
// host memory (it may here), or what streams would do at the same time (here they do one thing after the other).
//
// Environment:
//   CUDA_EMU_ORDER=fwd|rev|rand[:seed]  who runs first where CUDA leaves it open: threads, warps, blocks, cp.async
//   [fwd] CUDA_EMU_KERNELS=FILE               the names of the kernels that ran are appended to FILE at the end, one a
//   line CUDA_EMU_MEMORY=MIB                 size of the device's memory                              [the machine's]
//   CUDA_EMU_CAPABILITY=7.5             compute capability that the device reports; 0: there is no device        [8.0]
#ifndef CUDA_EMU_H
#define CUDA_EMU_H
#define CUDA_EMU 1

#include <algorithm>
#include <atomic>
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
#include <tuple>
#include <type_traits>
#include <unistd.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN
#elif defined(__SANITIZE_THREAD__)
#define EMU_RACE
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN
#elif __has_feature(thread_sanitizer)
#define EMU_RACE
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- The language: keywords, vectors, the four indices

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define EMU_VECTORS(T, name)                                                                                           \
    struct alignas(2 * sizeof(T)) name##2 {                                                                            \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    struct name##3 {                                                                                                   \
        T x, y, z;                                                                                                     \
    };                                                                                                                 \
    struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 {                                                       \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(unsigned short, ushort)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline __thread uint3 threadIdx, blockIdx;
inline __thread dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

// ---- Fibers

struct Fiber {
    void *stack_pointer = nullptr; // while it does not run; its registers lie there
    char *low = nullptr;           // its stack
    size_t size = 0;
    void *fake_stack = nullptr; // AddressSanitizer's
};

// emu_switch(save, load): pushes the registers that a function must keep, stores the stack pointer in *save, takes
// `load` for it and pops the registers that were pushed there. It returns to whoever called it with that stack.
// EMU_FRAME: how many words it pushes, with the return address; EMU_RETURN: which of them is the return address.
#if defined(__x86_64__)
#define EMU_FRAME 8 // one is the return address of the fiber's first function, which never returns
#define EMU_RETURN 6
asm(R"(
.text
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#elif defined(__aarch64__)
#define EMU_FRAME 20
#define EMU_RETURN 11
asm(R"(
.text
.balign 4
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "cuda_emu.h switches stacks on x86-64 and on 64-bit ARM only"
#endif
extern "C" void emu_switch(void **save, void *load) __asm__("emu_switch");
[[noreturn]] void fiber_main();

inline void switch_fiber(Fiber *from, Fiber *to, bool finished = false) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(finished ? nullptr : &from->fake_stack, to->low, to->size);
#endif
    (void)finished;
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
        abort();
    }
    Fiber *fiber = new Fiber;
    fiber->low = (char *)p + page;
    fiber->size = size - count++ % 32 * 192; // not all tops in the same lines of the cache
    return fiber;
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
// As a function's last parameter: where it was called.
#define EMU_SITE emu::Site site = {__builtin_FILE(), __builtin_LINE()}

struct AsyncCopy {
    void *to;
    const void *from;
    int bytes, given, group;
    bool done;
};
struct Warp;
struct Block;
using WarpOperation = void (*)(Warp &, unsigned lanes);

struct Thread {
    uint3 index;
    int number, lane; // in its block, in its warp
    Warp *warp;
    Block *block;
    Fiber *fiber;            // null: not started
    Site site;               // where it waits
    WarpOperation operation; // what it waits for there, with which lanes,
    unsigned mask;           // ...
    void *offer;             // and what it gives and takes
    std::vector<AsyncCopy> copies;
    int copy_group; // the one that is open
};
struct Warp {
    Thread *lanes;
    unsigned ready, in_operation, at_barrier, exited; // a bit a lane
    uint32_t synced;                                  // when its last __syncwarp was
};
struct SharedMemory {
    char *bytes;
    size_t size;
    uint32_t owner; // `started` of the block that it was made fresh for
};
struct Block {
    uint3 index;
    Warp *warps;
    int n_warps, live, arrived;       // threads that have not exited, that wait at the barrier
    Site site;                        // of that barrier
    uint32_t started, synced;         // when it began, when its last __syncthreads was
    std::vector<SharedMemory> shared; // [0] dynamic, then each __shared__ variable of the program by its number
};
struct Launch {
    const char *name;
    std::function<void()> body;
    dim3 grid, block;
    size_t shared; // bytes of dynamic shared memory
    bool cooperative;
};

// The blocks that live at once on one thread of the operating system: one of an ordinary launch, all of a cooperative
// one.
struct Gang {
    const Launch *launch;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Warp> warps;
    std::vector<Thread> threads;
    int n_blocks, n_warps; // of this launch
    int live, arrived;     // threads that have not exited, that wait in grid.sync()
    uint32_t synced;       // when the launch or the last grid.sync() was
    int cursor;            // the warp that ran last
    uint64_t random;       // state of CUDA_EMU_ORDER=rand
    Fiber main;            // the launch itself
    Fiber *running;
    std::vector<Fiber *> idle;
};
inline __thread Gang *gang;
inline __thread Thread *me;                 // the CUDA thread that runs now; null: host code
inline std::atomic<uint32_t> sync_clock{0}; // logical time: the number of barriers opened, blocks and launches begun

enum Order { FORWARD, REVERSE, RANDOM };
struct Config {
    Order order = FORWARD;
    uint64_t seed = 1;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    int major = 8, minor = 0;
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
    }
};
inline const Config config;

// CUDA_EMU_KERNELS
struct KernelLog {
    std::set<std::string> names;
    ~KernelLog() {
        const char *path = getenv("CUDA_EMU_KERNELS");
        FILE *file = path ? fopen(path, "a") : nullptr;
        if (path && !file) perror(path);
        if (!file) return;
        for (const std::string &name : names) fprintf(file, "%s\n", name.c_str());
        fclose(file);
    }
};
inline KernelLog kernel_log;

[[noreturn]] inline void die(Site site, const char *format, ...) __attribute__((format(printf, 2, 3)));
inline void die(Site site, const char *format, ...) {
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

// Nobody is ready, but not all have exited: says who waits where.
[[noreturn]] inline void deadlock() {
    fflush(stdout);
    fprintf(stderr, "cuda_emu: deadlock in kernel %s: no thread can go on\n", gang->launch->name);
    int shown = 0;
    for (int i = 0; i < gang->n_warps; i++)
        for (Warp &w = gang->warps[i]; unsigned waiting = w.in_operation | w.at_barrier;) {
            const Thread &first = w.lanes[__builtin_ctz(waiting)];
            unsigned same = 0;
            for (unsigned m = waiting; m; m &= m - 1)
                if (w.lanes[__builtin_ctz(m)].site.line == first.site.line) same |= m & -m;
            if (shown++ < 20)
                fprintf(stderr, "  %s:%d: block (%u,%u,%u), warp %d, lanes %08x wait %s\n", first.site.file,
                        first.site.line, first.block->index.x, first.block->index.y, first.block->index.z,
                        first.number / 32, same, w.in_operation & same ? "in a warp operation" : "at a barrier");
            w.in_operation &= ~same;
            w.at_barrier &= ~same;
        }
    abort();
}

// ---- The scheduler

inline uint64_t next_random(uint64_t &state) { // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

// Takes a thread that is ready: from the warp that ran last if it has one, else from the next warp in order. null:
// nobody.
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

// Leaves this fiber for `next`'s; returns when somebody does the same for this one.
inline void hand_over(Thread *next) {
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
    if (!next) deadlock();
    hand_over(next);
}

// ---- Barriers: the last thread to come opens it, and goes on itself

inline void open_block(Block &block) {
    block.arrived = 0;
    block.synced = ++sync_clock;
    for (int w = 0; w < block.n_warps; w++) {
        block.warps[w].ready |= block.warps[w].at_barrier;
        block.warps[w].at_barrier = 0;
    }
}
inline void open_grid() {
    gang->arrived = 0;
    gang->synced = ++sync_clock;
    for (int b = 0; b < gang->n_blocks; b++) open_block(*gang->blocks[b]);
}
inline void block_barrier(Site site) {
    Block &block = *me->block;
    if (block.arrived == 0) block.site = site;
    if (block.site.line != site.line || strcmp(block.site.file, site.file))
        die(site, "a thread is at this barrier, others of its block are at the one at %s:%d", block.site.file,
            block.site.line);
    if (++block.arrived == block.live) return open_block(block);
    me->warp->at_barrier |= 1u << me->lane;
    wait(site);
}
inline void grid_barrier(Site site) {
    if (!gang->launch->cooperative)
        die(site, "grid.sync() in a kernel that cudaLaunchCooperativeKernel did not launch");
    if (++gang->arrived == gang->live) return open_grid();
    me->warp->at_barrier |= 1u << me->lane;
    wait(site);
}

// ---- Warp operations: every lane brings an offer; the last to come does the operation for all

// Does what all the lanes have come for.
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

// A GPU's memory is not cleared. Here it is all ones, NaN as a float, so that what is read before it is written shows.
// The race build keeps an account of every access to such memory (cuda_emu_race.cpp).
enum AccessKind { READ, WRITE, REQUEST, ARRIVAL }; // the last two: of an asynchronous copy
#ifdef EMU_RACE
void *allocate(size_t size);
void deallocate(void *memory);
void forget_accesses(const void *memory, size_t size);
void note_access(const void *memory, size_t size, AccessKind kind, Site site);
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#else
inline void *allocate(size_t size) {               // exactly sized, for AddressSanitizer
    void *memory = nullptr;
    return posix_memalign(&memory, 256, size) ? nullptr : memory;
}
inline void deallocate(void *memory) { free(memory); }
inline void forget_accesses(const void *, size_t) {}
inline void note_access(const void *, size_t, AccessKind, Site) {}
#define EMU_UNCHECKED
#endif
EMU_UNCHECKED inline void make_undefined(void *memory, size_t size) {
    memset(memory, 0xff, size);
    forget_accesses(memory, size);
}

// The block's copy of shared memory number `which`, undefined when the block first comes by.
inline void *shared_memory(size_t which, size_t size) {
    Block &block = *me->block;
    if (which >= block.shared.size()) block.shared.resize(which + 1, {nullptr, 0, 0});
    SharedMemory &memory = block.shared[which];
    if (memory.size != size) {
        deallocate(memory.bytes);
        memory = {(char *)allocate(size), size, 0};
    }
    if (size && memory.owner != block.started) make_undefined(memory.bytes, size);
    memory.owner = block.started;
    return memory.bytes;
}
inline void *dynamic_shared_memory() { return shared_memory(0, gang->launch->shared); }

// A __shared__ declaration.
struct SharedVariable {
    size_t number, size;
    explicit SharedVariable(size_t bytes) : size(bytes) {
        static std::atomic<size_t> count;
        number = ++count;
    }
    void *of_this_block() const { return shared_memory(number, size); }
};

// ---- Launches

inline void exit_thread() {
    Block &block = *me->block;
    me->warp->exited |= 1u << me->lane;
    complete_operations(*me->warp); // nobody waits for a thread that has exited
    gang->live--;
    block.live--;
    if (block.live && block.arrived == block.live) open_block(block);
    if (gang->live && gang->arrived == gang->live) open_grid();
}

// The life of a fiber: runs a thread, and after it the next ones as long as they are fresh.
inline void fiber_main() {
#ifdef EMU_ASAN
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &low, &size);
    if (!gang->main.low) gang->main.low = (char *)low, gang->main.size = size; // it started the first fiber
#endif
    for (;;) {
        gang->launch->body();
        exit_thread();
        Thread *next = next_ready();
        if (!next && gang->live) deadlock();
        if (!next || next->fiber) {
            Fiber *self = gang->running;
            gang->idle.push_back(self);
            if (next) become(next);
            switch_fiber(self, next ? next->fiber : &gang->main, true);
        }
        become(next);
    }
}

inline void start_block(int b, uint3 index) {
    Gang &g = *gang;
    Block &block = *g.blocks[b];
    dim3 size = g.launch->block;
    int n_threads = (int)(size.x * size.y * size.z), n_warps = (n_threads + 31) / 32;
    block.index = index;
    block.warps = &g.warps[(size_t)b * n_warps];
    block.n_warps = n_warps;
    block.live = n_threads;
    block.arrived = 0;
    block.started = block.synced = ++sync_clock;
    for (int w = 0; w < n_warps; w++) {
        int lanes = std::min(32, n_threads - 32 * w);
        unsigned ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
        block.warps[w] = {&g.threads[((size_t)b * n_warps + w) * 32], ready, 0, 0, ~ready, block.started};
    }
    unsigned t = 0;
    for (unsigned z = 0; z < size.z; z++)
        for (unsigned y = 0; y < size.y; y++)
            for (unsigned x = 0; x < size.x; x++, t++) {
                Thread &thread = block.warps[t / 32].lanes[t % 32];
                thread.index = {x, y, z};
                thread.number = (int)t;
                thread.lane = (int)t % 32;
                thread.warp = &block.warps[t / 32];
                thread.block = &block;
                thread.fiber = nullptr;
                thread.copies.clear();
                thread.copy_group = 0;
            }
}

// Runs the blocks first, first + 1, ... first + n - 1 of a launch together.
inline void run_blocks(const Launch &launch, long first, int n, uint32_t launched) {
    if (!gang) gang = new Gang(); // one for each thread of the operating system, for good
    Gang &g = *gang;
    size_t n_threads = (size_t)launch.block.x * launch.block.y * launch.block.z, n_warps = (n_threads + 31) / 32 * n;
    while ((int)g.blocks.size() < n) g.blocks.push_back(std::make_unique<Block>());
    if (g.warps.size() < n_warps) g.warps.resize(n_warps), g.threads.resize(n_warps * 32);
    blockDim = launch.block;
    gridDim = launch.grid;
    g.launch = &launch;
    g.n_blocks = n;
    g.n_warps = (int)n_warps;
    g.live = n * (int)n_threads;
    g.arrived = 0;
    g.synced = launched;
    g.cursor = config.order == REVERSE ? g.n_warps - 1 : 0;
    g.random = (config.seed + (uint64_t)first * 2) * 0x9E3779B97F4A7C15u + 1;
    g.running = &g.main;
    for (int b = 0; b < n; b++) {
        unsigned i = (unsigned)(first + b), row = i / gridDim.x;
        start_block(b, {i % gridDim.x, row % gridDim.y, row / gridDim.y});
    }
    hand_over(next_ready());
    me = nullptr;
}

inline void run_kernel(const Launch &launch) {
    const long n = (long)launch.grid.x * launch.grid.y * launch.grid.z;
    uint32_t launched = ++sync_clock;
    kernel_log.names.insert(launch.name);
    if (launch.cooperative) return run_blocks(launch, 0, (int)n, launched);
    // Random order: position j is block (factor j + first) mod n, with a factor that has no divisor in common with n.
    uint64_t random = config.seed * 0x9E3779B97F4A7C15u + launched;
    long first = 0, factor = 1;
    if (config.order == RANDOM) {
        first = (long)(next_random(random) % (uint64_t)n);
        factor = (long)(next_random(random) % 1000000);
        while (std::gcd(factor, n) != 1) factor++;
    }
#if defined(_OPENMP) && !defined(EMU_RACE)
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
#endif
    for (long j = 0; j < n; j++)
        run_blocks(launch, config.order == REVERSE ? n - 1 - j : (j * factor + first) % n, 1, launched);
}
} // namespace emu

#define EMU_ERRORS(ERROR)                                                                                              \
    ERROR(cudaSuccess, 0, "no error")                                                                                  \
    ERROR(cudaErrorInvalidValue, 1, "invalid argument")                                                                \
    ERROR(cudaErrorMemoryAllocation, 2, "out of memory")                                                               \
    ERROR(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                          \
    ERROR(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")             \
    ERROR(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                                \
    ERROR(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")            \
    ERROR(cudaErrorNotReady, 600, "device not ready")                                                                  \
    ERROR(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")                            \
    ERROR(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                  \
    ERROR(cudaErrorStreamCaptureImplicit, 906,                                                                         \
          "operation would make the legacy stream depend on a capturing blocking stream")
#define EMU_ENUMERATOR(name, number, text) name = number,
#define EMU_NAME_CASE(name, number, text)                                                                              \
    case name: return #name;                                                                                           \
        #define EMU_TEXT_CASE(name, number, text)                                                                      \
    case name: return text;
enum cudaError_t { EMU_ERRORS(EMU_ENUMERATOR) };
inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) { EMU_ERRORS(EMU_NAME_CASE) }
    return "unrecognized error code";
}
inline const char *cudaGetErrorString(cudaError_t error) {
    switch (error) { EMU_ERRORS(EMU_TEXT_CASE) }
    return "unrecognized error code";
}

// A stream does everything at once, unless it is being captured: then it notes it down in the graph.
namespace emu {
struct Stream;
struct Graph {
    std::vector<std::function<void()>> nodes;
    std::vector<Stream *> streams; // that are captured into it
};
struct Stream {
    Graph *capture = nullptr;
};
struct Event {
    double milliseconds = 0;
    Graph *capture = nullptr;
};
inline int captures; // that are open
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void *, int> dynamic_limit; // by kernel, from cudaFuncSetAttribute

inline cudaError_t result(cudaError_t error) {
    if (error) last_error = error;
    return error;
}
inline cudaError_t enqueue(Stream *stream, std::function<void()> work) {
    if (!stream && captures) return result(cudaErrorStreamCaptureImplicit);
    if (stream && stream->capture)
        stream->capture->nodes.push_back(std::move(work));
    else
        work();
    return cudaSuccess;
}

// The emulated GPU: 4 multiprocessors like those of an A100.
constexpr int MULTIPROCESSORS = 4, SHARED_DEFAULT = 48 << 10, SHARED_LIMIT = 163 << 10, SHARED_SIZE = 164 << 10;
inline int blocks_at_once(int threads, size_t shared) { // on one multiprocessor
    return std::min(2048 / ((threads + 31) / 32 * 32), std::min(32, SHARED_SIZE / ((int)shared + 1024)));
}

inline cudaError_t launch_checked(const void *kernel, Launch launch, Stream *stream) {
    dim3 grid = launch.grid, block = launch.block;
    size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    bool grid_fits = blocks && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16;
    if (config.major == 0) return result(cudaErrorNoDevice);
    if (!grid_fits || !threads || threads > 1024 || block.z > 64) return result(cudaErrorInvalidConfiguration);
    size_t limit = dynamic_limit.count(kernel) ? dynamic_limit[kernel] : SHARED_DEFAULT;
    if (launch.shared > limit) return result(cudaErrorInvalidValue);
    if (launch.cooperative && blocks > (size_t)(MULTIPROCESSORS * blocks_at_once((int)threads, launch.shared)))
        return result(cudaErrorCooperativeLaunchTooLarge);
    return enqueue(stream, [launch] { run_kernel(launch); });
}

// What cuda2cpp.sed makes of kernel<<<grid, block, shared, stream>>>: a function that takes the kernel's arguments.
template <class... P>
inline auto launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared = 0,
                   Stream *stream = nullptr) {
    return [=](P... arguments) {
        auto body = [=] { kernel(arguments...); };
        launch_checked((const void *)kernel, {name, body, grid, block, shared, false}, stream);
    };
}
template <class... P, size_t... I>
inline std::function<void()> bind(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
    (void)arguments;
    auto values = std::make_tuple(*(std::decay_t<P> *)arguments[I]...);
    return [=] { std::apply(kernel, values); };
}
// And of cudaLaunchCooperativeKernel(kernel, ...).
template <class... P>
inline cudaError_t launch_cooperative(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, void **arguments,
                                      size_t shared = 0, Stream *stream = nullptr) {
    auto body = bind(kernel, arguments, std::index_sequence_for<P...>());
    return launch_checked((const void *)kernel, {name, body, grid, block, shared, true}, stream);
}
} // namespace emu

// ---- Device functions: synchronisation and warps

inline void __syncthreads(EMU_SITE) { emu::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
    emu::warp_operation(
        mask, nullptr, [](emu::Warp &warp, unsigned) { warp.synced = ++emu::sync_clock; }, site);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(EMU_SITE) { emu::die(site, "__trap()"); }
// Lets somebody else run: a loop that waits for another thread's store needs it.
inline void __nanosleep(unsigned, EMU_SITE) {
    emu::me->site = site;
    emu::me->warp->ready |= 1u << emu::me->lane;
    emu::hand_over(emu::next_ready(true));
}
namespace cooperative_groups {
struct grid_group {
    void sync(EMU_SITE) const { emu::grid_barrier(site); }
};
inline grid_group this_grid() { return {}; }
} // namespace cooperative_groups

namespace emu {
template <class T>
struct Shuffled {
    T value, result;
    int source;
};
template <class T>
inline T shuffle(unsigned mask, T value, int source, Site site) {
    Shuffled<T> offer = {value, value, source};
    auto exchange = [](Warp &warp, unsigned lanes) {
        for (unsigned m = lanes; m; m &= m - 1) {
            int lane = __builtin_ctz(m);
            auto &taker = offer_of<Shuffled<T>>(warp, lane);
            if (!(lanes >> taker.source & 1))
                die(warp.lanes[lane].site, "lane %d reads from lane %d, which does not take part in the shuffle", lane,
                    taker.source);
            taker.result = offer_of<Shuffled<T>>(warp, taker.source).value;
        }
    };
    warp_operation(mask, &offer, exchange, site);
    return offer.result;
}
} // namespace emu
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
    return emu::shuffle(mask, value, (emu::me->lane & -width) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_SITE) {
    int lane = emu::me->lane, source = lane ^ bits;
    return emu::shuffle(mask, value, source >= (lane & -width) + width ? lane : source, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_SITE) {
    int lane = emu::me->lane;
    return emu::shuffle(mask, value, (lane & (width - 1)) + (int)by >= width ? lane : lane + (int)by, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_SITE) {
    int lane = emu::me->lane;
    return emu::shuffle(mask, value, (lane & (width - 1)) < (int)by ? lane : lane - (int)by, site);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMU_SITE) {
    emu::Shuffled<unsigned> offer = {vote != 0, 0, 0};
    auto count = [](emu::Warp &warp, unsigned lanes) {
        unsigned votes = 0;
        for (unsigned m = lanes; m; m &= m - 1)
            if (emu::offer_of<emu::Shuffled<unsigned>>(warp, __builtin_ctz(m)).value) votes |= m & -m;
        for (unsigned m = lanes; m; m &= m - 1)
            emu::offer_of<emu::Shuffled<unsigned>>(warp, __builtin_ctz(m)).result = votes;
    };
    emu::warp_operation(mask, &offer, count, site);
    return offer.result;
}
inline int __any_sync(unsigned mask, int vote, EMU_SITE) { return __ballot_sync(mask, vote, site) != 0; }
inline int __all_sync(unsigned mask, int vote, EMU_SITE) { return __ballot_sync(mask, !vote, site) == 0; }

// ---- Device functions: atomics, loads, arithmetic

namespace emu {
template <class T, class F>
EMU_UNCHECKED inline T atomically(T *p, F f) {
    T old, next;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do next = f(old);
    while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}
template <class T>
using Same = std::common_type_t<T>; // a parameter from which T is not deduced
} // namespace emu
template <class T>
inline T atomicAdd(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return T(old + v); });
}
template <class T>
inline T atomicMax(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return old < v ? v : old; });
}
template <class T>
inline T atomicMin(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return v < old ? v : old; });
}
template <class T>
inline T atomicOr(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return T(old | v); });
}
template <class T>
inline T atomicExch(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T) { return v; });
}
template <class T>
inline T atomicCAS(T *p, emu::Same<T> expected, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return old == expected ? v : old; });
}

template <class T>
inline T __ldg(const T *p) {
    return *p;
}
template <class T>
inline T __ldcg(const T *p) {
    return *p;
}
template <class T>
inline T __ldcs(const T *p) {
    return *p;
}
template <class T>
inline void __stcg(T *p, emu::Same<T> v) {
    *p = v;
}
template <class T>
inline void __stcs(T *p, emu::Same<T> v) {
    *p = v;
}

// Macros where the C library has (or may come to have) a function of that name.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define rsqrtf(x) (1.0f / sqrtf(x))
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; } // NaN becomes 0
namespace emu {
template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emu
inline int __float_as_int(float f) { return emu::bits_as<int>(f); }
inline unsigned __float_as_uint(float f) { return emu::bits_as<unsigned>(f); }
inline float __int_as_float(int i) { return emu::bits_as<float>(i); }
inline float __uint_as_float(unsigned i) { return emu::bits_as<float>(i); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return y < x ? y : x;
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return x < y ? y : x;
}

// ---- bfloat16: the upper half of a float, rounded to nearest, ties to even

struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        unsigned u = __float_as_uint(f);
        bits = (unsigned short)(f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return emu::bits_as<__nv_bfloat16>(u); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) + float(b); }
inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) - float(b); }
inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) * float(b); }
inline __nv_bfloat162 operator+(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 operator*(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) { return fmaf(a, b, c); }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

// ---- Asynchronous copies, for tensor_core.cuh
// A GPU copies at some time between the request and the wait. A missing wait shows when that is late, as in order fwd;
// a buffer that is reused too soon shows when it is early, as in order rev; rand takes one or the other.

namespace emu {
EMU_UNCHECKED inline void copy_now(AsyncCopy &copy) {
    if (copy.done) return;
    memcpy(copy.to, copy.from, (size_t)copy.given);
    memset((char *)copy.to + copy.given, 0, (size_t)(copy.bytes - copy.given));
    copy.done = true;
}
inline void async_copy(void *to, const void *from, int bytes, int given, Site site) {
    if (((uintptr_t)to | (uintptr_t)from) % (uintptr_t)bytes)
        die(site, "cp.async: an address is no multiple of %d", bytes);
    if (given < 0 || given > bytes) die(site, "cp.async: %d bytes of %d", given, bytes);
    note_access(to, (size_t)bytes, REQUEST, site);
    me->copies.push_back({to, from, bytes, given, me->copy_group, false});
    bool early = config.order == RANDOM ? next_random(gang->random) >> 40 & 1 : config.order == REVERSE;
    if (early) copy_now(me->copies.back());
}
inline void async_commit() { me->copy_group++; }
inline void async_wait(int groups_left, Site site) {
    auto copy = me->copies.begin();
    for (; copy < me->copies.end() && copy->group < me->copy_group - groups_left; copy++) {
        copy_now(*copy);
        note_access(copy->from, (size_t)copy->given, READ, site);
        note_access(copy->to, (size_t)copy->bytes, ARRIVAL, site);
    }
    me->copies.erase(me->copies.begin(), copy);
}
} // namespace emu

// ---- The runtime API

using cudaStream_t = emu::Stream *;
using cudaEvent_t = emu::Event *;
using cudaGraph_t = emu::Graph *;
using cudaGraphExec_t = emu::Graph *;

// Memory. The emulator's device memory is the host's, but copies are checked as if it were not.
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
namespace emu {
inline auto &allocations = *new std::map<const char *, size_t>; // of device memory; still there at the very end
inline size_t allocated() {
    size_t sum = 0;
    for (auto &a : allocations) sum += a.second;
    return sum;
}
// Do p[0..size-1] lie in one allocation?
inline bool on_device(const void *p, size_t size) {
    auto next = allocations.upper_bound((const char *)p);
    if (next == allocations.begin()) return false;
    auto &[start, length] = *--next;
    return (const char *)p + size <= start + length;
}
EMU_UNCHECKED inline void copy_bytes(void *to, const void *from, size_t size) { memmove(to, from, size); }
EMU_UNCHECKED inline void set_bytes(void *to, int value, size_t size) { memset(to, value, size); }
} // namespace emu
template <class T>
inline cudaError_t cudaMalloc(T **pointer, size_t size) {
    if (emu::config.major == 0) return emu::result(cudaErrorNoDevice);
    if (size > emu::config.memory - emu::allocated()) return emu::result(cudaErrorMemoryAllocation);
    void *memory = size ? emu::allocate(size) : nullptr;
    *pointer = (T *)memory;
    if (!memory) return size ? emu::result(cudaErrorMemoryAllocation) : cudaSuccess;
    emu::make_undefined(memory, size);
    emu::allocations[(const char *)memory] = size;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *pointer) {
    if (pointer && !emu::allocations.erase((const char *)pointer)) return emu::result(cudaErrorInvalidValue);
    emu::deallocate(pointer);
    return cudaSuccess;
}
template <class T>
inline cudaError_t cudaMallocHost(T **pointer, size_t size) {
    *pointer = (T *)malloc(size);
    return *pointer ? cudaSuccess : emu::result(cudaErrorMemoryAllocation);
}
inline cudaError_t cudaFreeHost(void *pointer) {
    free(pointer);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (size && (emu::on_device(to, size) != to_device || emu::on_device(from, size) != from_device))
        return emu::result(cudaErrorInvalidValue);
    return emu::enqueue(stream, [=] { emu::copy_bytes(to, from, size); });
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind);
}
inline cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream = nullptr) {
    if (size && !emu::on_device(to, size)) return emu::result(cudaErrorInvalidValue);
    return emu::enqueue(stream, [=] { emu::set_bytes(to, value, size); });
}
inline cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size); }
template <class T>
inline cudaError_t cudaMemcpyToSymbol(T &symbol, const void *from, size_t size) {
    return emu::enqueue(nullptr, [&symbol, from, size] { emu::copy_bytes(&symbol, from, size); });
}
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = emu::config.memory;
    *available = *total - emu::allocated();
    return cudaSuccess;
}

// The device
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerMultiProcessor, maxThreadsPerBlock, warpSize, cooperativeLaunch;
    int l2CacheSize, regsPerBlock;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = emu::config.major != 0;
    return *count ? cudaSuccess : emu::result(cudaErrorNoDevice);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    if (emu::config.major == 0) return emu::result(cudaErrorNoDevice);
    *p = {"CUDA on the CPU",
          emu::config.major,
          emu::config.minor,
          emu::MULTIPROCESSORS,
          2048,
          1024,
          32,
          1,
          1 << 20,
          1 << 16,
          emu::config.memory,
          emu::SHARED_DEFAULT,
          emu::SHARED_LIMIT,
          emu::SHARED_SIZE};
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrCooperativeLaunch: *value = p.cooperativeLaunch; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    default: return emu::result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 12000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 12000, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emu::last_error; }
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
template <class F>
inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > emu::SHARED_LIMIT) return emu::result(cudaErrorInvalidValue);
    emu::dynamic_limit[(const void *)kernel] = value;
    return cudaSuccess;
}
template <class F>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int threads, size_t shared) {
    return *blocks = emu::blocks_at_once(threads, shared), cudaSuccess;
}

// Streams and events
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return *stream = new emu::Stream, cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() {
    return emu::captures ? emu::result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream && stream->capture ? emu::result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return *event = new emu::Event, cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
    event->capture = stream ? stream->capture : nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return *milliseconds = (float)(end->milliseconds - start->milliseconds), cudaSuccess;
}
// A stream that waits for an event of a captured stream is captured with it.
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (event->capture && !stream->capture) {
        stream->capture = event->capture;
        stream->capture->streams.push_back(stream);
    }
    return cudaSuccess;
}

// Graphs: the nodes in the order in which they were captured, one after the other.
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream->capture) return emu::result(cudaErrorStreamCaptureUnsupported);
    emu::captures++;
    stream->capture = new emu::Graph{{}, {stream}};
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->capture) return emu::result(cudaErrorInvalidValue);
    emu::captures--;
    *graph = stream->capture;
    for (cudaStream_t captured : (*graph)->streams) captured->capture = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void *, size_t *count) {
    return *count = graph->nodes.size(), cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long = 0) {
    return *executable = new emu::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    return emu::enqueue(stream, [=] {
        for (auto &node : executable->nodes) node();
    });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }

#endif
