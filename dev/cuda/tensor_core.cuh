// The instructions that CUDA C++ has no function for, each as one function: products on the tensor cores (mma.sync),
// loads of their operands (ldmatrix), copies into shared memory that run beside the arithmetic (cp.async), and memory
// by which running blocks talk to each other (ld.relaxed, st.relaxed). Source: PTX ISA, "Matrix multiply-accumulate",
// "ldmatrix", "cp.async", "Memory consistency model".
//
// An architecture may lack an instruction: on sm_75 mma_bf16() traps, and a copy is over when cp_async() returns.
#ifndef TENSOR_CORE_CUH
#define TENSOR_CORE_CUH
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef CUDA_EMU
#include "emu/cuda_emu_tensor_core.h" // the same functions in C++
#else

// D += A B for a warp. A is 16 x 16 and B 16 x 8 in bf16, D 16 x 8 in fp32. Each lane holds two elements of each
// quarter of A, of each half of B and of each half of D. With g = lane / 4 and q = lane % 4:
//
//           A  2q, 2q+1   2q+8, 2q+9         B   column g            D  2q, 2q+1
//            +-----------+-----------+             +------+           +-----------+
//      row g |   a[0]    |   a[2]    |  2q, 2q+1   | b[0] |     row g | d[0] d[1] |
//            +-----------+-----------+             +------+           +-----------+
//    row g+8 |   a[1]    |   a[3]    |  2q+8, 2q+9 | b[1] |   row g+8 | d[2] d[3] |
//            +-----------+-----------+             +------+           +-----------+
//
// So the lanes lie row by row in a quarter of A and in a half of D:
//     0  0  1  1  2  2  3  3
//     4  4  5  5  6  6  7  7
//     ...
//    28 28 29 29 30 30 31 31
// An a[i] or b[i] is two bf16; the element of A's lower column, or of B's upper row, is in the lower half.
__device__ inline void mma_bf16(float *d, const uint32_t *a, const uint32_t *b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap(); // the host does not offer bf16 there
#endif
}

// Loads 4 matrices of 8 x 8 bf16 from shared memory. Lane 8 i + j gives the address of row j of matrix i: 16 bytes,
// aligned. Each lane gets, as r[i], the elements [g][2q, 2q+1] of matrix i with g = lane / 4 and q = lane % 4;
// TRANSPOSED: the elements [2q, 2q+1][g]. So one call loads an A of mma_bf16, or two B that lie side by side, the first
// as r[0] and r[1]:
//
//   lanes whose rows make up A, 16 x 16      lanes whose rows make up two B, each 16 x 8
//     +---------+---------+                    +---------+---------+
//     |  0 - 7  | 16 - 23 |                    |  0 - 7  | 16 - 23 |
//     +---------+---------+                    +---------+---------+
//     |  8 - 15 | 24 - 31 |                    |  8 - 15 | 24 - 31 |
//     +---------+---------+                    +---------+---------+
//
//   A in memory as A[16][16]:                     row = &A[lane % 16][lane / 16 * 8]
//   A in memory as At[16][16], A^T: TRANSPOSED,   row = &At[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]
//   B in memory as B[16][16]:       TRANSPOSED,   row = &B[lane % 16][lane / 16 * 8]
//   B in memory as Bt[16][16], B^T:               row = &Bt[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]
template <bool TRANSPOSED = false>
__device__ inline void ldmatrix(uint32_t *r, const void *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
}

// Starts a copy of 16 bytes from global to shared memory, past the L1 cache. Both addresses are multiples of 16. Unless
// `there`, nothing is read and zeros are written: for what lies past the edge of a matrix. The copy belongs to the
// group that this thread's next cp_async_commit() closes.
__device__ inline void cp_async(void *shared, const void *global, bool there = true) {
#if __CUDA_ARCH__ >= 800
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("{ .reg .pred absent; setp.eq.s32 absent, %2, 0; "
                 "cp.async.cg.shared.global [%0], [%1], 16, absent; }" ::"r"(address),
                 "l"(global), "r"((int)there)
                 : "memory");
#else
    for (int i = 0; i < 4; i++) ((uint32_t *)shared)[i] = there ? ((const uint32_t *)global)[i] : 0;
#endif
}
__device__ inline void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last LEFT groups of this thread are under way. Other threads' copies need a barrier too.
template <int LEFT>
__device__ inline void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Blocks of a running launch hand numbers to each other through these two. Both go past the L1 caches, which do not
// know of each other's stores. 8 aligned bytes come and go as a whole, but in no order with others ("relaxed" in PTX's
// memory model), so a reader must see from each 8 bytes themselves whether they have come.
//
// exchange_load() returns 16 bytes, or zeros unless `there`.
__device__ inline uint4 exchange_load(const void *from, bool there) {
    uint64_t low, high;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; mov.b64 %0, 0; mov.b64 %1, 0; "
                 "@p ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2]; }"
                 : "=&l"(low), "=&l"(high)
                 : "l"(from), "r"((int)there)
                 : "memory");
    return make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32));
}
__device__ inline void exchange_store(void *to, uint2 value) {
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"((uint64_t)value.y << 32 | value.x) : "memory");
}

// x, but kept in a register: the compiler can not tell that it could work it out again.
__device__ inline int keep(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// 2^x with a relative error of 2^-22, and 0 where that is below 2^-126 (ex2.approx.ftz).
__device__ inline float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#endif // CUDA_EMU
#endif
