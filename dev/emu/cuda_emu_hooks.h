// What the race check and the counts share: memory whose accesses they can tell from others, names of places in the
// code, and the calls that -fsanitize=thread puts before every load and store of the kernels. Each of the two is a
// program's only source file that includes this, is compiled without that flag, and is linked in place of
// ThreadSanitizer's library. It defines accessed(), which hears of every load and store.
#pragma once
#define EMU_HOOKS
#include "emu/cuda_emu_threads.h"
extern "C" char __executable_start;

namespace {
using namespace emu;

// A load or store of `size` bytes at p by `me`, or by the host. where: the code's offset in the program just behind the
// instruction, or SITE + its number in `sites`.
void accessed(const void *p, size_t size, AccessKind kind, uint32_t where);

// ---- Memory: address space only, until it is used. Blocks' shared memory lies in front of the device's.

const size_t MEMORY = (size_t)2 << 30, SHARED_MEMORY = (size_t)128 << 20;
void *reserve(size_t size) {
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) return p;
    perror("cuda_emu: address space");
    exit(1);
}
char *const memory = (char *)reserve(MEMORY);
struct Arena {
    char *top, *end;
    std::map<size_t, std::vector<void *>> unused; // by size
};
Arena arenas[2] = {{memory, memory + SHARED_MEMORY, {}}, {memory + SHARED_MEMORY, memory + MEMORY, {}}};
std::map<void *, size_t> sizes;

bool in_memory(const void *p) { return (const char *)p >= memory && (const char *)p < memory + MEMORY; }
size_t offset_of(const void *p) { return (size_t)((const char *)p - memory); } // of p in memory
bool is_shared(size_t offset) { return offset < SHARED_MEMORY; }

// ---- Places

const uint32_t SITE = 1u << 31;
std::vector<Site> sites;
uint32_t number_of(Site site) {
    uint32_t i = 0;
    while (i < sites.size() && (sites[i].line != site.line || sites[i].file != site.file)) i++;
    if (i == sites.size()) sites.push_back(site);
    return SITE + i;
}
uint32_t code(const void *pc) { return (uint32_t)((const char *)pc - &__executable_start); }

// What addr2line says of a place in the code, a line each: functions, if asked for, and lines.
std::vector<std::string> look_up(const char *options, uint32_t where) {
    char text[4096];
    snprintf(text, sizeof text, "addr2line -%s /proc/%d/exe %#x", options, (int)getpid(), where);
    std::vector<std::string> found;
    FILE *pipe = popen(text, "r");
    while (pipe && fgets(text, sizeof text, pipe)) found.emplace_back(text, strcspn(text, "\n"));
    if (pipe) pclose(pipe);
    return found;
}
// FILE:LINE. Where functions of the emulator were inlined, this is the innermost line of the .cu.
std::string place(uint32_t where) {
    if (where & SITE) return sites[where - SITE].file + (":" + std::to_string(sites[where - SITE].line));
    std::string found = "an unknown place";
    for (const std::string &line : look_up("ise", where - 1)) {
        found = line.substr(0, line.find(' '));
        if (found.compare(0, 8, "cuda_emu")) break;
    }
    return found;
}
} // namespace

void *emu::allocate(size_t size) {
    Arena &arena = arenas[!me]; // a kernel only asks for shared memory, and the host never does
    std::vector<void *> &same = arena.unused[size];
    if (same.empty()) {
        if (size + 512 > (size_t)(arena.end - arena.top)) return nullptr;
        same.push_back(arena.top);
        arena.top += (size + 511) / 256 * 256; // a gap of 256 bytes or more
    } else {
        forget_accesses(same.back(), size);
    }
    void *p = same.back();
    same.pop_back();
    sizes[p] = size;
    return p;
}
void emu::deallocate(void *p) {
    if (p) arenas[!is_shared(offset_of(p))].unused[sizes[p]].push_back(p);
}

// ---- What the compiler calls

#define HOOK extern "C" __attribute__((used))
#define HERE code(__builtin_return_address(0))
#define ACCESSES(N)                                                                                                    \
    HOOK void __tsan_read##N(void *p) { accessed(p, N, READ, HERE); }                                                  \
    HOOK void __tsan_write##N(void *p) { accessed(p, N, WRITE, HERE); }                                                \
    HOOK void __tsan_unaligned_read##N(void *p) { accessed(p, N, READ, HERE); }                                        \
    HOOK void __tsan_unaligned_write##N(void *p) { accessed(p, N, WRITE, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK void __tsan_read_range(void *p, size_t n) { accessed(p, n, READ, HERE); }
HOOK void __tsan_write_range(void *p, size_t n) { accessed(p, n, WRITE, HERE); }
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void *) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void **, void *) {}
HOOK void __tsan_vptr_read(void **) {}
HOOK void *__tsan_memmove(void *to, const void *from, size_t n) {
    accessed(from, n, READ, HERE);
    accessed(to, n, WRITE, HERE);
    return memmove(to, from, n);
}
HOOK void *__tsan_memcpy(void *to, const void *from, size_t n) __attribute__((alias("__tsan_memmove")));
HOOK void *__tsan_memset(void *to, int value, size_t n) {
    accessed(to, n, WRITE, HERE);
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
