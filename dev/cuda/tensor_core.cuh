// The instructions that CUDA C++ has no function for: products on the tensor cores (mma.sync), loads of their operands
// (ldmatrix), copies into shared memory that run beside the arithmetic (cp.async), memory by which running blocks talk
// (ld.relaxed, st.relaxed). Each is one function: PTX for the GPU, and, for cuda_emu.h, what the instruction does, in
// C. Source: PTX ISA, "Matrix multiply-accumulate", "ldmatrix", "cp.async", "Memory consistency model". For what an
// architecture lacks: on sm_75 mma_bf16 traps, and a copy is over when cp_async returns.
#ifndef TENSOR_CORE_CUH
#define TENSOR_CORE_CUH
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef CUDA_EMU
#define WHERE , EMU_SITE
#else
#define WHERE
#endif

// D += A B for a warp; A is 16 x 16, B 16 x 8 (k x n) in bf16, D 16 x 8 in fp32. Each lane holds a part; with
// g = lane / 4, q = lane % 4, and two bf16 in a register, the lower column (of A) or row (of B) in the lower half:
//   a[0] = A[g][2q, 2q+1]      a[1] = A[g+8][2q, 2q+1]      a[2] = A[g][2q+8, 2q+9]      a[3] = A[g+8][2q+8, 2q+9]
//   b[0] = B[2q, 2q+1][g]      b[1] = B[2q+8, 2q+9][g]
//   d[0], d[1] = D[g][2q, 2q+1]                              d[2], d[3] = D[g+8][2q, 2q+1]
__device__ inline void mma_bf16(float *d, const uint32_t *a, const uint32_t *b WHERE) {
#ifdef CUDA_EMU
    struct Registers {
        float *d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    auto multiply = [](emu::Warp &warp, unsigned lanes) {
        if (lanes != ~0u) emu::die(warp.lanes[__builtin_ctz(lanes)].site, "mma.sync needs all 32 lanes of the warp");
        float A[16][16], B[16][8], D[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Registers &r = emu::offer_of<Registers>(warp, lane);
            int g = lane / 4, q = lane % 4;
            for (int i = 0; i < 4; i++)
                for (int half = 0; half < 2; half++)
                    A[g + i % 2 * 8][2 * q + i / 2 * 8 + half] = __uint_as_float(r.a[i] >> 16 * half << 16);
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++)
                    B[2 * q + i * 8 + half][g] = __uint_as_float(r.b[i] >> 16 * half << 16);
            for (int i = 0; i < 4; i++) D[g + i / 2 * 8][2 * q + i % 2] = r.d[i];
        }
        for (int m = 0; m < 16; m++)
            for (int k = 0; k < 16; k++)
                for (int n = 0; n < 8; n++) D[m][n] += A[m][k] * B[k][n];
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                emu::offer_of<Registers>(warp, lane).d[i] = D[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
    };
    emu::warp_operation(~0u, &mine, multiply, site);
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap(); // the host does not offer bf16 there
#endif
}

// r[i] of every lane := its two elements of 8 x 8 matrix i of bf16 in shared memory, i < N (1, 2 or 4): elements
// [g][2q, 2q+1] with g = lane / 4, q = lane % 4; TRANSPOSED: [2q, 2q+1][g]. Lane 8 i + j gives the address of row j of
// matrix i, 16 bytes, aligned; lanes from 8 N on are not asked. So for mma_bf16
//   A, row by row in memory, a whole 16 x 16: N = 4, lane's address &A[lane % 16][lane / 16 * 8]
//   B, k by k in memory ([16][8]):            N = 2, TRANSPOSED, &B[lane % 16][0]
//   B, n by n in memory ([8][16]):            N = 2, &Bt[lane % 8][lane / 8 % 2 * 8]
template <int N, bool TRANSPOSED = false>
__device__ inline void ldmatrix(uint32_t *r, const void *row WHERE) {
    static_assert(N == 1 || N == 2 || N == 4, "1, 2 or 4 matrices");
#ifdef CUDA_EMU
    struct Rows {
        uint16_t row[8];
        uint32_t *r;
    } mine = {{}, r};
    if (emu::me->lane < 8 * N) {
        if ((uintptr_t)row % 16) emu::die(site, "ldmatrix: a row's address is no multiple of 16");
        emu::note_access(row, 16, emu::READ, site);
        emu::copy_bytes(mine.row, row, 16);
    }
    auto distribute = [](emu::Warp &warp, unsigned lanes) {
        if (lanes != ~0u) emu::die(warp.lanes[__builtin_ctz(lanes)].site, "ldmatrix needs all 32 lanes of the warp");
        auto element = [&](int i, int j, int k) { return (uint32_t)emu::offer_of<Rows>(warp, 8 * i + j).row[k]; };
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0, g = lane / 4, q = lane % 4; i < N; i++)
                emu::offer_of<Rows>(warp, lane).r[i] = TRANSPOSED
                                                           ? element(i, 2 * q, g) | element(i, 2 * q + 1, g) << 16
                                                           : element(i, g, 2 * q) | element(i, g, 2 * q + 1) << 16;
    };
    emu::warp_operation(~0u, &mine, distribute, site);
#else
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
#define LDMATRIX(FORM, REGISTERS, ...)                                                                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8." FORM ".shared.b16 " REGISTERS ";"                                       \
                 : __VA_ARGS__                                                                                         \
                 : "r"(address)                                                                                        \
                 : "memory")
    if constexpr (N == 1 && !TRANSPOSED) LDMATRIX("x1", "{%0}, [%1]", "=r"(r[0]));
    if constexpr (N == 1 && TRANSPOSED) LDMATRIX("x1.trans", "{%0}, [%1]", "=r"(r[0]));
    if constexpr (N == 2 && !TRANSPOSED) LDMATRIX("x2", "{%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]));
    if constexpr (N == 2 && TRANSPOSED) LDMATRIX("x2.trans", "{%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]));
    if constexpr (N == 4 && !TRANSPOSED)
        LDMATRIX("x4", "{%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
    if constexpr (N == 4 && TRANSPOSED)
        LDMATRIX("x4.trans", "{%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
#undef LDMATRIX
#endif
}

// Starts a copy of BYTES (4, 8, 16; both addresses a multiple of it) from global to shared memory. Only the first
// `given` (a multiple of 4 for sm_75) are read, the rest become zero: 0 for what lies past the edge of a matrix, whose
// address must be aligned all the same. The copy belongs to the group that this thread's next cp_async_commit() closes.
template <int BYTES>
__device__ inline void cp_async(void *shared, const void *global, int given = BYTES WHERE) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
#ifdef CUDA_EMU
    emu::async_copy(shared, global, BYTES, given, site);
#elif __CUDA_ARCH__ >= 800
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    if constexpr (BYTES == 16) // .cg: past the L1 cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(given)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(BYTES), "r"(given)
                     : "memory");
#else
    for (int i = 0; i < BYTES / 4; i++) ((uint32_t *)shared)[i] = 4 * i < given ? ((const uint32_t *)global)[i] : 0;
#endif
}
__device__ inline void cp_async_commit() {
#ifdef CUDA_EMU
    emu::async_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last LEFT groups of this thread are under way. The other threads' copies need a barrier too.
#ifdef CUDA_EMU
template <int LEFT>
inline void cp_async_wait(EMU_SITE) {
    emu::async_wait(LEFT, site);
}
#else
template <int LEFT>
__device__ inline void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
#endif

// Memory by which blocks of a running launch hand numbers to each other, past the L1 caches, which do not know of each
// other's stores. 8 bytes, aligned, come and go as a whole, and in no order with others ("relaxed" in PTX's memory
// model): a reader must see from each 8 bytes themselves whether they are there. 16 bytes, or zeros unless `there`.
__device__ inline uint4 exchange_load(const void *from, bool there) {
#ifdef CUDA_EMU
    uint4 value = {0, 0, 0, 0};
    if (there) emu::copy_bytes(&value, from, sizeof value); // unseen by the race build: whenever it comes is right
    return value;
#else
    uint64_t low, high;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; mov.b64 %0, 0; mov.b64 %1, 0; "
                 "@p ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2]; }"
                 : "=&l"(low), "=&l"(high)
                 : "l"(from), "r"((int)there)
                 : "memory");
    return make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32));
#endif
}
__device__ inline void exchange_store(void *to, uint2 value) {
#ifdef CUDA_EMU
    emu::copy_bytes(to, &value, sizeof value);
#else
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"((uint64_t)value.y << 32 | value.x) : "memory");
#endif
}

#undef WHERE
#endif
