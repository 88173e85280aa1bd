// Matrix products for the GPU: one tile of sums a block, three products of a linear layer, sums of parts, and what a
// model's own fused kernels build on. matmul.h is the same for the CPU.
//
// It promises bf16 products on the tensor cores with sums in fp32 (sm_80 and up), fp32 products in plain multiply-adds
// (sm_75 and up, never TF32), any sizes and alignments, the same bytes on every run, launches that a CUDA graph can
// capture, and no allocation. It is fast where rows begin at multiples of 16 bytes; other rows are copied number by
// number. It leaves out batches of products, and Hopper's own instructions (wgmma).
//
// How it is fast. A block owns BM x BN sums of the output. It walks along K in steps of 64 bytes (32 bf16, 16 floats):
// of both operands it copies what meets in such a step from global to shared memory, and multiplies from there, so that
// a number which came once is used BN or BM times. Copies are asynchronous (cp.async) and run STAGES - 1 steps ahead of
// the arithmetic, each step into a buffer of its own, so that their latency is hidden; one barrier a step says both
// that everybody's copies are here and that the oldest buffer is free. In the block a warp owns WM x WN sums, which
// stay in registers, a thread WM / 8 x WN / 4 of them: per step it reads WM + WN rows for WM * WN products.
//
// Nothing is transposed in memory. An operand lies in shared memory as in global memory: [row][k], or [k][row] where it
// is a transposed matrix. For the tensor cores, ldmatrix gives each lane its part of either form; in fp32 a thread
// reads 16 bytes along k, or along the rows. A row of shared memory is 16 bytes longer than its data: an odd number of
// 16 bytes, so that 8 rows at the same column lie in 8 different groups of banks, and no access waits for another.
//
// Each sum is made in one order: ascending k, so the tile's size does not change a bit. Only weight gradients, whose K
// is the long side, are cut into parts along K; how many follows from the sizes alone, and they are added in order.
#ifndef MATMUL_CUH
#define MATMUL_CUH

#include "base/round.h"
#include "cuda/check.cuh"
#include "cuda/tensor_core.cuh"
#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

// ---- the two precisions: T, the type in which operands of products lie in memory, is float or __nv_bfloat16

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

template <typename T>
struct __align__(4 * sizeof(T)) Four { // adjacent columns, one load or store
    T at[4];
};

// ---- a tile: the sums of a block

// Its sizes. A_T: A is transposed, it lies in memory as [K][M]; B_T: B is, as [N][K]. BM: 16, 32 or a multiple of 64;
// BN: a multiple of 32. BM = 16 with BN at least the width of a matrix gives blocks that own whole rows.
template <typename Type, bool A_TRANSPOSED, bool B_TRANSPOSED, int BLOCK_M, int BLOCK_N>
struct Tile {
    typedef Type T;
    static constexpr bool A_T = A_TRANSPOSED, B_T = B_TRANSPOSED;
    static constexpr int BM = BLOCK_M, BN = BLOCK_N, BK = 64 / (int)sizeof(T);
    static constexpr int WM = BM < 32 ? BM : BM < 128 ? 32 : 64; // of a warp
    static constexpr int WN = sizeof(T) == 2 && BM >= 128 && BN >= 128 ? 64 : 32;
    static constexpr int THREADS = BM / WM * (BN / WN) * 32;
    static constexpr int PAD = 16 / (int)sizeof(T);
    static constexpr int A_ROW = (A_T ? BM : BK) + PAD, A_SIZE = (A_T ? BK : BM) * A_ROW; // elements, of a step
    static constexpr int B_ROW = (B_T ? BK : BN) + PAD, B_SIZE = (B_T ? BN : BK) * B_ROW;
    static constexpr int STAGES = BM + BN <= 128 ? 4 : 3; // large tiles: within the 64 KiB that sm_75 has
    static constexpr int STAGE_BYTES = STAGES * (A_SIZE + B_SIZE) * (int)sizeof(T);
    static constexpr int ROW = BN + 16; // floats from row to row in tile_to_shared(): two rows in different banks
    static constexpr int ROW_BYTES = BM * ROW * (int)sizeof(float);
    // The dynamic shared memory of a block, and that of one that uses tile_to_shared().
    static constexpr int BYTES = STAGE_BYTES, BYTES_WITH_ROWS = STAGE_BYTES > ROW_BYTES ? STAGE_BYTES : ROW_BYTES;
    static_assert(BM % WM == 0 && WM % 16 == 0 && BN % WN == 0, "whole warps");
    static_assert(sizeof(T) == 2 || !A_T || WM % 32 == 0, "16 bytes along m for a thread");
};

// A thread's share of the sums of tile S. Those of its warp are laid out as mma_bf16 wants them: at[i][j][2 h + e] is
//   row 16 i + 8 h + g, column 8 j + 2 q + e        with g in 0..7, q in 0..3 that tell the lanes apart
// (float with A_T: the rows are permuted so that a thread has 4 adjacent ones, tile_row()).
template <typename S>
struct Sums {
    float at[S::WM / 16][S::WN / 8][4];
    float a_rows[S::WM / 16][4]; // the sums of A's rows over k, [2 h] of each; kept only if asked for
};

// The lane's g and q. Tensor cores: as in tensor_core.cuh. fp32: in such an order that of lanes i and i^1 one load, of
// i and i^2 the other has the same address, which lets a half warp read its 16-byte pieces at once.
template <typename S>
__device__ inline int tile_g() {
    const int lane = threadIdx.x % 32;
    return sizeof(typename S::T) == 2 ? lane / 4 : (lane >> 1 & 1) | (lane >> 2 & 6);
}
template <typename S>
__device__ inline int tile_q() {
    const int lane = threadIdx.x % 32;
    return sizeof(typename S::T) == 2 ? lane % 4 : (lane & 1) | (lane >> 1 & 2);
}
// The first row and column of the thread's warp, in the block's tile
template <typename S>
__device__ inline int tile_m() {
    return threadIdx.x / 32 / (S::BN / S::WN) * S::WM;
}
template <typename S>
__device__ inline int tile_n() {
    return threadIdx.x / 32 % (S::BN / S::WN) * S::WN;
}
// The row, in the block's tile, of sums.at[i / 2][.][i % 2 * 2 + .]
template <typename S>
__device__ inline int tile_row(int i) {
    const bool permuted = sizeof(typename S::T) == 4 && S::A_T;
    return tile_m<S>() + (permuted ? i / 4 * 32 + 4 * tile_g<S>() + i % 4 : 8 * i + tile_g<S>());
}

template <typename S>
__device__ inline void tile_zero(Sums<S> &sums) {
    for (int i = 0; i < S::WM / 16; i++) {
        for (int e = 0; e < 4; e++) {
            sums.a_rows[i][e] = 0;
            for (int j = 0; j < S::WN / 8; j++) sums.at[i][j][e] = 0;
        }
    }
}

// A product [M,K] x [K,N] and where its operands lie: A(m,k) = a[m a_row + k], or a[k a_row + m] with A_T;
// B(k,n) = b[k b_row + n], or b[n b_row + k] with B_T.
template <typename T>
struct Product {
    const T *a;
    int a_row;
    const T *b;
    int b_row;
    int M, N, K;
};

// Starts to copy a matrix at `from`, whose rows are from_row apart, into tile[ROWS][ROW], COLUMNS of each row. Only
// rows x columns of it exist, what lies beyond becomes zero. A thread copies 16 bytes of every few rows.
template <int THREADS, int ROWS, int COLUMNS, int ROW, typename T>
__device__ inline void copy_tile(T *tile, const T *from, int from_row, int rows, int columns, bool aligned) {
    constexpr int CHUNK = 16 / (int)sizeof(T), THREADS_A_ROW = COLUMNS / CHUNK, STEP = THREADS / THREADS_A_ROW;
    static_assert(COLUMNS % CHUNK == 0 && THREADS % THREADS_A_ROW == 0, "whole rows of threads");
    const int row = (int)threadIdx.x / THREADS_A_ROW, column = (int)threadIdx.x % THREADS_A_ROW * CHUNK;
    const int given = min(max(columns - column, 0), CHUNK);
    T *to = tile + row * ROW + column;
    from += (size_t)row * from_row + column;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
            if (ROWS % STEP && row + i >= ROWS) break;
            cp_async<16>(to + i * ROW, from + (size_t)i * from_row, row + i < rows ? given * (int)sizeof(T) : 0);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS && row + i < ROWS; i += STEP) {
#pragma unroll 1
            for (int e = 0; e < CHUNK; e++) {
                bool there = row + i < rows && e < given;
                to[i * ROW + e] = there ? from[(size_t)i * from_row + e] : from_float<T>(0);
            }
        }
    }
}

// sums += A B of one step, BK long, from shared memory. In bf16: per 16 of k, a warp loads WM/16 pieces of A and WN/8
// of B and multiplies each by each. The sums of A's rows are one more column: A times ones.
template <typename S>
__device__ inline void multiply_step(Sums<S> &sums, const __nv_bfloat16 *a, const __nv_bfloat16 *b, bool a_rows) {
    const int lane = threadIdx.x % 32;
    const uint32_t ones[2] = {0x3F803F80, 0x3F803F80};
    a += tile_m<S>() * (S::A_T ? 1 : S::A_ROW);
    b += tile_n<S>() * (S::B_T ? S::B_ROW : 1);
    // where ldmatrix wants this lane's row: matrices 0..3 one below the other then side by side, or the other way round
    const int down = lane % 16, right = lane / 16 * 8, down_last = lane / 16 * 8 + lane % 8, right_first = lane & 8;
    uint32_t a_k[2][S::WM / 16][4], b_k[2][S::WN / 8][2]; // of these 16 of k, and of the next
    auto load = [&](int k) {
#pragma unroll
        for (int i = 0; i < S::WM / 16; i++) {
            ldmatrix<4, S::A_T>(a_k[k / 16 % 2][i], S::A_T ? &a[(k + down_last) * S::A_ROW + 16 * i + right_first]
                                                           : &a[(16 * i + down) * S::A_ROW + k + right]);
        }
#pragma unroll
        for (int j = 0; j < S::WN / 8; j += 2) { // two at once
            ldmatrix<4, !S::B_T>(b_k[k / 16 % 2][j], S::B_T ? &b[(8 * j + down_last) * S::B_ROW + k + right_first]
                                                            : &b[(k + down) * S::B_ROW + 8 * j + right]);
        }
    };
    load(0);
#pragma unroll
    for (int k = 0; k < S::BK; k += 16) {
        if (k + 16 < S::BK) load(k + 16);
#pragma unroll
        for (int i = 0; i < S::WM / 16; i++) {
#pragma unroll
            for (int j = 0; j < S::WN / 8; j++) mma_bf16(sums.at[i][j], a_k[k / 16 % 2][i], b_k[k / 16 % 2][j]);
            if (a_rows) mma_bf16(sums.a_rows[i], a_k[k / 16 % 2][i], ones);
        }
    }
}

__device__ inline void load_four(float *to, const float *from) {
    const float4 v = *(const float4 *)from;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// The same in fp32: per 4 of k, a thread loads WM/8 rows of A and, two by two, WN/4 columns of B.
template <typename S>
__device__ inline void multiply_step(Sums<S> &sums, const float *a, const float *b, bool a_rows) {
    a += S::A_T ? tile_m<S>() + 4 * tile_g<S>() : (tile_m<S>() + tile_g<S>()) * S::A_ROW;
    b += S::B_T ? (tile_n<S>() + 2 * tile_q<S>()) * S::B_ROW : tile_n<S>() + 2 * tile_q<S>();
#pragma unroll 1
    for (int k = 0; k < S::BK; k += 4) {
        float a_k[S::WM / 8][4];
        if constexpr (S::A_T) {
#pragma unroll
            for (int kk = 0; kk < 4; kk++) {
#pragma unroll
                for (int i = 0; i < S::WM / 8; i += 4) {
                    const float4 v = *(const float4 *)&a[(k + kk) * S::A_ROW + 8 * i];
                    a_k[i][kk] = v.x, a_k[i + 1][kk] = v.y, a_k[i + 2][kk] = v.z, a_k[i + 3][kk] = v.w;
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < S::WM / 8; i++) load_four(a_k[i], &a[8 * i * S::A_ROW + k]);
        }
#pragma unroll
        for (int j = 0; j < S::WN / 8; j++) {
            float b_k[2][4];
            if constexpr (S::B_T) {
                load_four(b_k[0], &b[8 * j * S::B_ROW + k]);
                load_four(b_k[1], &b[(8 * j + 1) * S::B_ROW + k]);
            } else {
#pragma unroll
                for (int kk = 0; kk < 4; kk++) {
                    const float2 v = *(const float2 *)&b[(k + kk) * S::B_ROW + 8 * j];
                    b_k[0][kk] = v.x, b_k[1][kk] = v.y;
                }
            }
#pragma unroll
            for (int kk = 0; kk < 4; kk++) {
#pragma unroll
                for (int i = 0; i < S::WM / 8; i++) {
                    float *sum = &sums.at[i / 2][j][i % 2 * 2];
                    sum[0] = fmaf(a_k[i][kk], b_k[0][kk], sum[0]);
                    sum[1] = fmaf(a_k[i][kk], b_k[1][kk], sum[1]);
                }
            }
        }
        if (a_rows) {
#pragma unroll
            for (int i = 0; i < S::WM / 8; i++) {
                for (int kk = 0; kk < 4; kk++) sums.a_rows[i / 2][i % 2 * 2] += a_k[i][kk];
            }
        }
    }
}

// sums += A B for the block's tile, whose first row and column are m0 and n0, over k in [k0, k1); k0 is a multiple of
// BK. All THREADS threads of the block come; shared: S::BYTES, aligned to 16, free again on return. What lies past the
// edges of the product counts as zero. a_rows: also the sums of A's rows over k (the same for every thread of a warp).
template <typename S>
__device__ inline void tile_multiply(Sums<S> &sums, Product<typename S::T> p, int m0, int n0, int k0, int k1,
                                     unsigned char *shared, bool a_rows = false) {
    typedef typename S::T T;
    T *a_stages = (T *)shared, *b_stages = a_stages + S::STAGES * S::A_SIZE;
    const bool a_aligned = ((uintptr_t)p.a | (size_t)p.a_row * sizeof(T)) % 16 == 0;
    const bool b_aligned = ((uintptr_t)p.b | (size_t)p.b_row * sizeof(T)) % 16 == 0;
    const int steps = (k1 - k0 + S::BK - 1) / S::BK;
    auto fetch = [&](int step) {
        if (step < steps) {
            const int k = k0 + step * S::BK, stage = step % S::STAGES;
            const T *a = S::A_T ? p.a + (size_t)k * p.a_row + m0 : p.a + (size_t)m0 * p.a_row + k;
            const T *b = S::B_T ? p.b + (size_t)n0 * p.b_row + k : p.b + (size_t)k * p.b_row + n0;
            copy_tile<S::THREADS, S::A_T ? S::BK : S::BM, S::A_T ? S::BM : S::BK, S::A_ROW>(
                a_stages + stage * S::A_SIZE, a, p.a_row, S::A_T ? k1 - k : p.M - m0, S::A_T ? p.M - m0 : k1 - k,
                a_aligned);
            copy_tile<S::THREADS, S::B_T ? S::BN : S::BK, S::B_T ? S::BK : S::BN, S::B_ROW>(
                b_stages + stage * S::B_SIZE, b, p.b_row, S::B_T ? p.N - n0 : k1 - k, S::B_T ? k1 - k : p.N - n0,
                b_aligned);
        }
        cp_async_commit(); // a group a step, an empty one too, so that the wait below counts steps
    };
    for (int step = 0; step < S::STAGES - 1; step++) fetch(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<S::STAGES - 2>(); // my copies of this step are here,
        __syncthreads();                // everybody's are, and nobody reads the buffer of the last step any more
        fetch(step + S::STAGES - 1);
        const int stage = step % S::STAGES;
        multiply_step<S>(sums, a_stages + stage * S::A_SIZE, b_stages + stage * S::B_SIZE, a_rows);
    }
    cp_async_wait<0>();
    __syncthreads();
}

// f(row, column, four) for all sums of the block's tile: those of 4 adjacent columns from `column`, a multiple of 4, in
// a row of the tile. The whole warp comes: neighbours swap halves, as a lane has pairs only. So a warp's stores are
// rows of 16 columns, 32 bytes and more.
template <typename S, typename F>
__device__ inline void tile_each(Sums<S> &sums, F f) {
    const int q = tile_q<S>();
    const bool odd = q & 1;
#pragma unroll
    for (int j = 0; j < S::WN / 8; j += 2) {
#pragma unroll
        for (int i = 0; i < S::WM / 8; i++) {
            const float *low = &sums.at[i / 2][j][i % 2 * 2], *high = &sums.at[i / 2][j + 1][i % 2 * 2];
            const float other0 = __shfl_xor_sync(~0u, odd ? low[0] : high[0], 1);
            const float other1 = __shfl_xor_sync(~0u, odd ? low[1] : high[1], 1);
            const float4 four =
                odd ? make_float4(other0, other1, high[0], high[1]) : make_float4(low[0], low[1], other0, other1);
            f(tile_row<S>(i), tile_n<S>() + 8 * (j + odd) + 2 * (q - odd), four);
        }
    }
}

// The sums as a matrix in shared memory, [BM] rows S::ROW floats apart, for an epilogue that needs whole rows. shared:
// BYTES_WITH_ROWS. Ends with a barrier.
template <typename S>
__device__ inline float *tile_to_shared(Sums<S> &sums, unsigned char *shared) {
    float *rows = (float *)shared;
    tile_each<S>(sums, [=](int row, int column, float4 four) { *(float4 *)&rows[row * S::ROW + column] = four; });
    __syncthreads();
    return rows;
}

// How to write a fused kernel: y = LayerNorm(x w^T + bias + residual), C columns, C <= 256, in whichever precision. BM
// rows a block: 16 (256 threads) make the most blocks of few rows, 64 (512 threads) read w a quarter as often, but take
// 75 KiB of shared memory, more than sm_75 has. dx = dy w goes the same way, with B_T = false for a w that lies [K][C].
//
//   template <typename T, int BM>
//   __global__ void __launch_bounds__(Tile<T, false, true, BM, 256>::THREADS)
//       linear_residual_layernorm(T *y, const T *x, const T *w, ..., int R, int K, int C) {
//       typedef Tile<T, false, true, BM, 256> S;           // w lies as [C][K]: B_T
//       extern __shared__ __align__(16) unsigned char shared[];
//       const int m0 = blockIdx.x * BM;
//       Sums<S> sums;
//       tile_zero<S>(sums);
//       tile_multiply<S>(sums, {x, K, w, K, R, C, K}, m0, 0, 0, K, shared);
//       const float *rows = tile_to_shared<S>(sums, shared);
//       for (int row = threadIdx.x / 32; row < min(BM, R - m0); row += S::THREADS / 32) {
//           // a warp has row m0 + row: its lane takes rows[row * S::ROW + c] for c = lane, lane + 32, ... < C
//       }
//   }
//   typedef Tile<T, false, true, BM, 256> S;
//   matmul_prepare(linear_residual_layernorm<T, BM>, S::BYTES_WITH_ROWS);
//   linear_residual_layernorm<T, BM><<<divide_up(R, BM), S::THREADS, S::BYTES_WITH_ROWS, stream>>>(...);

// ---- sums of parts
//
// What several blocks have a share of, each leaves in a place of its own in memory; a later launch adds these parts, in
// a fixed order and many sums at once: of weight gradients below, of a model's own column sums and gradients.

// out[i] = the sum of parts[part * stride + i] over part < n_parts, for i < n, always in the same order: that of the
// parts if there are up to SUM_SLICES, else of as many slices of them. It is fast where parts begin at multiples of 16
// bytes; out may lie anywhere.
struct SumOfParts {
    float *out;
    const float *parts;
    int n_parts;
    size_t stride, n;
};
enum { SUM_LIST = 20, SUM_SLICES = 8, SUM_BLOCK = 4 * 32 };
struct SumList { // the sums of one launch; {} is an empty list
    SumOfParts at[SUM_LIST];
    int n;
};

__host__ __device__ inline unsigned sum_blocks(const SumOfParts &s) {
    return (unsigned)((s.n + SUM_BLOCK - 1) / SUM_BLOCK);
}

// A block adds SUM_BLOCK elements of one of the sums, a thread 4 adjacent ones, of a slice of the parts: a thread for
// all parts would wait for memory again and again.
static __global__ void __launch_bounds__(32 * SUM_SLICES) sum_parts_kernel(SumList list) {
    __shared__ float4 slices[SUM_SLICES][32];
    unsigned block = blockIdx.x;
    int i = 0;
    for (; block >= sum_blocks(list.at[i]); i++) block -= sum_blocks(list.at[i]);
    const SumOfParts s = list.at[i];
    const int lane = threadIdx.x % 32, slice = threadIdx.x / 32, each = (s.n_parts + SUM_SLICES - 1) / SUM_SLICES;
    const int first = min(slice * each, s.n_parts), end = min(first + each, s.n_parts);
    const size_t at = (size_t)block * SUM_BLOCK + 4 * lane;
    const bool whole = at + 4 <= s.n;
    const float *from = s.parts + first * s.stride + at;
    float4 sum = make_float4(0, 0, 0, 0);
    if (whole && (uintptr_t)(s.parts + at) % sizeof(float4) == 0 && s.stride % 4 == 0) {
#pragma unroll 8
        for (int part = first; part < end; part++, from += s.stride) {
            const float4 v = *(const float4 *)from;
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
    } else {
#pragma unroll 1
        for (int part = first; part < end; part++, from += s.stride) {
            if (at < s.n) sum.x += from[0];
            if (at + 1 < s.n) sum.y += from[1];
            if (at + 2 < s.n) sum.z += from[2];
            if (at + 3 < s.n) sum.w += from[3];
        }
    }
    slices[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || at >= s.n) return;
    for (int other = 1; other < SUM_SLICES; other++) {
        const float4 v = slices[other][lane];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    float *out = s.out + at;
    if (whole && (uintptr_t)out % sizeof(float4) == 0) {
        *(float4 *)out = sum;
    } else {
        out[0] = sum.x;
        if (at + 1 < s.n) out[1] = sum.y;
        if (at + 2 < s.n) out[2] = sum.z;
        if (at + 3 < s.n) out[3] = sum.w;
    }
}

// Appends a sum to the list, at most SUM_LIST of them.
static inline void sums_add(SumList *list, float *out, const float *parts, int n_parts, size_t stride, size_t n) {
    assert(list->n < SUM_LIST);
    list->at[list->n++] = {out, parts, n_parts, stride, n};
}

// Adds up all sums of the list in one launch, none if it is empty.
static inline void sum_parts(const SumList *list, cudaStream_t stream) {
    unsigned blocks = 0;
    for (int i = 0; i < list->n; i++) blocks += sum_blocks(list->at[i]);
    if (!blocks) return;
    sum_parts_kernel<<<blocks, 32 * SUM_SLICES, 0, stream>>>(*list);
    LAUNCHED(sum_parts_kernel);
}

// ---- products of whole matrices

// What becomes of a sum before it is stored; all that is unset does nothing.
template <typename T>
struct Epilogue {
    const float *bias; // [N] added to every row
    bool relu;         // max(0, .), a NaN stays
    const T *gate;     // [M][N], rows as far apart as out's: 0 where gate <= 0, the backward of the ReLU that gave gate
    bool add;          // out += instead of out =
};

// Stores the block's sums in out [M,N], rows out_row apart.
template <typename S, typename OUT>
__device__ inline void tile_store(Sums<S> &sums, OUT *out, int out_row, int m0, int n0, int M, int N,
                                  Epilogue<typename S::T> epilogue) {
    typedef typename S::T T;
    const T *gate = epilogue.gate;
    const bool aligned =
        out_row % 4 == 0 && (uintptr_t)out % sizeof(Four<OUT>) == 0 && (uintptr_t)gate % sizeof(Four<T>) == 0;
    tile_each<S>(sums, [=](int row, int column, float4 four) {
        const int m = m0 + row, n = n0 + column;
        if (m >= M || n >= N) return;
        const size_t at = (size_t)m * out_row + n;
        const int width = min(N - n, 4);
        const bool whole = aligned && width == 4;
        float sum[4] = {four.x, four.y, four.z, four.w};
        Four<OUT> old;
        Four<T> open;
        if (epilogue.add) {
            if (whole) old = *(const Four<OUT> *)&out[at];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (e < width) sum[e] += to_float(whole ? old.at[e] : out[at + e]);
            }
        }
        if (gate && whole) open = *(const Four<T> *)&gate[at];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (e >= width) continue;
            if (epilogue.bias) sum[e] += __ldg(&epilogue.bias[n + e]);
            if (epilogue.relu && sum[e] < 0) sum[e] = 0;
            if (gate && !(to_float(whole ? open.at[e] : gate[at + e]) > 0)) sum[e] = 0;
            old.at[e] = from_float<OUT>(sum[e]);
            if (!whole) out[at + e] = old.at[e];
        }
        if (whole) *(Four<OUT> *)&out[at] = old;
    });
}

// out [M,N] = epilogue(A B). Blocks run along a row of tiles first, so that the operand which is read again and again,
// B, stays in the L2 cache, as do the rows of A that the blocks at work share. Traffic from L2: A N/BN times, B M/BM
// times.
template <typename T, typename OUT, bool A_T, bool B_T, int BM, int BN>
__global__ void __launch_bounds__(Tile<T, A_T, B_T, BM, BN>::THREADS)
    matmul_kernel(OUT *out, int out_row, Product<T> p, Epilogue<T> epilogue) {
    typedef Tile<T, A_T, B_T, BM, BN> S;
    extern __shared__ __align__(16) unsigned char shared[];
    const int columns = (p.N + BN - 1) / BN;
    const int m0 = blockIdx.x / columns * BM, n0 = blockIdx.x % columns * BN;
    Sums<S> sums;
    tile_zero<S>(sums);
    tile_multiply<S>(sums, p, m0, n0, 0, p.K, shared);
    tile_store<S>(sums, out, out_row, m0, n0, p.M, p.N, epilogue);
}

// One of the weight gradients of a launch, of y = x w^T + bias: dw [OC,C] = dy^T x, and dbias [OC], unless null, the
// column sums of dy. dy [R,OC], x [R,C]; y_row: elements from row to row of dy, 0: OC.
template <typename T>
struct WeightGradient {
    float *dw, *dbias;
    const T *dy, *x;
    int C, OC, y_row = 0;
};

// The weight gradients of a launch, one after the other, a block a tile; R is common to all of them. blockIdx.y is the
// part of R, `rows` long, whose dw and dbias lie part_size floats after the part's before.
enum { WEIGHT_GROUP = 6 };
template <typename T>
struct WeightGroup {
    WeightGradient<T> at[WEIGHT_GROUP]; // dw, dbias: of the first part
    int first[WEIGHT_GROUP];            // first block of each
    int n, R, rows;
    size_t part_size;
};

template <typename T, int BM, int BN>
__global__ void __launch_bounds__(Tile<T, true, false, BM, BN>::THREADS) matmul_weights_kernel(WeightGroup<T> group) {
    typedef Tile<T, true, false, BM, BN> S;
    extern __shared__ __align__(16) unsigned char shared[];
    const int block = blockIdx.x;
    int i = 0;
    while (i + 1 < group.n && block >= group.first[i + 1]) i++;
    const WeightGradient<T> g = group.at[i];
    const int tile = block - group.first[i], columns = (g.C + BN - 1) / BN;
    const int m0 = tile / columns * BM, n0 = tile % columns * BN;
    const int k0 = blockIdx.y * group.rows, k1 = min(group.R, k0 + group.rows);
    const size_t part = blockIdx.y * group.part_size;
    const bool a_rows = g.dbias && n0 == 0 && tile_n<S>() == 0;
    Sums<S> sums;
    tile_zero<S>(sums);
    tile_multiply<S>(sums, {g.dy, g.y_row, g.x, g.C, g.OC, g.C, group.R}, m0, n0, k0, k1, shared, a_rows);
    tile_store<S>(sums, g.dw + part, g.C, m0, n0, g.OC, g.C, {nullptr, false, nullptr, false});
    if (!a_rows || tile_q<S>() != 0) return;
#pragma unroll
    for (int r = 0; r < S::WM / 8; r++) {
        const int m = m0 + tile_row<S>(r);
        if (m < g.OC) g.dbias[part + m] = sums.a_rows[r / 2][r % 2 * 2];
    }
}

// ---- host: how many blocks of what size, and the launches

// Allows a kernel more than the 48 KiB of shared memory that need no permission. Not a stream operation: it may be
// called while a graph is captured.
template <typename Kernel>
static inline void matmul_prepare(Kernel *kernel, int bytes) {
    if (bytes <= 48 << 10) return;
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <typename T, typename OUT, bool A_T, bool B_T, int BM, int BN>
static inline void matmul_launch(OUT *out, int out_row, Product<T> p, Epilogue<T> epilogue, cudaStream_t stream) {
    typedef Tile<T, A_T, B_T, BM, BN> S;
    const int blocks = divide_up(p.M, BM) * divide_up(p.N, BN);
    matmul_prepare(matmul_kernel<T, OUT, A_T, B_T, BM, BN>, S::BYTES);
    matmul_kernel<T, OUT, A_T, B_T, BM, BN><<<blocks, S::THREADS, S::BYTES, stream>>>(out, out_row, p, epilogue);
    LAUNCHED(matmul_kernel<T, OUT, A_T, B_T, BM, BN>);
}

// From how many blocks on a product takes large tiles, which read operands half as often but leave multiprocessors idle
// in small products: two for each of some 128 multiprocessors. And how many blocks parts shall make of a small one.
enum { MATMUL_MANY_BLOCKS = 256, MATMUL_FEW_BLOCKS = 128 };

// out [M,N], rows out_row apart, = epilogue(A B). A_T, B_T: see Tile.
template <typename T, typename OUT, bool A_T, bool B_T>
static inline void matmul(OUT *out, int out_row, Product<T> p, Epilogue<T> epilogue, cudaStream_t stream) {
    if (p.M <= 0 || p.N <= 0) return;
    if ((int64_t)divide_up(p.M, 128) * divide_up(p.N, 128) >= MATMUL_MANY_BLOCKS) {
        matmul_launch<T, OUT, A_T, B_T, 128, 128>(out, out_row, p, epilogue, stream);
    } else {
        matmul_launch<T, OUT, A_T, B_T, 64, 64>(out, out_row, p, epilogue, stream);
    }
}

// The three products of a linear layer, y = x w^T + bias, with the shapes of PyTorch's nn.Linear: x [R,C], w [OC,C],
// bias [OC], y [R,OC]. Operands are T, outputs OUT, T or float; parameters' gradients are float. y_row: elements from
// row to row of y and dy; 0: OC. An odd OC is faster with rows padded to 16 bytes, whatever the padding holds.

// y = x w^T + bias, then ReLU if asked. bias may be null.
template <typename T, typename OUT>
static inline void matmul_forward(OUT *y, const T *x, const T *w, const float *bias, bool relu, int R, int C, int OC,
                                  cudaStream_t stream, int y_row = 0) {
    const Product<T> product = {x, C, w, C, R, OC, C};
    const Epilogue<T> epilogue = {bias, relu, nullptr, false};
    matmul<T, OUT, false, true>(y, y_row ? y_row : OC, product, epilogue, stream);
}

// dx = dy w, or dx += dy w; 0 where gate [R,C] <= 0, if there is a gate.
template <typename T, typename OUT>
static inline void matmul_backward_input(OUT *dx, const T *dy, const T *w, const T *gate, bool add, int R, int C,
                                         int OC, cudaStream_t stream, int y_row = 0) {
    const Product<T> product = {dy, y_row ? y_row : OC, w, C, R, C, OC};
    const Epilogue<T> epilogue = {nullptr, false, gate, add};
    matmul<T, OUT, false, false>(dx, C, product, epilogue, stream);
}

// How a group of weight gradients is computed.
typedef struct {
    bool large;  // tiles
    int n, rows; // number of parts along R, rows of a part
    size_t size; // floats of a part's results: every dw, dbias, each rounded up to 4
} WeightParts;

// A part has 128 rows or more in small tiles, 512 in large ones, as many as make about one block for each
// multiprocessor, or two; one part if the group's tiles are as many.
template <typename T>
static inline WeightParts matmul_weight_parts(const WeightGradient<T> *list, int n, int R) {
    WeightParts parts = {false, 1, R, 0};
    int64_t small_tiles = 0, large_tiles = 0;
    for (int i = 0; i < n; i++) {
        const int C = list[i].C, OC = list[i].OC;
        small_tiles += (int64_t)divide_up(OC, 64) * divide_up(C, 64);
        large_tiles += (int64_t)divide_up(OC, 128) * divide_up(C, 128);
        parts.size += ((size_t)OC * C + 3) / 4 * 4 + (size_t)round_up(OC, 4);
    }
    parts.large = large_tiles * divide_up(R, 512) >= MATMUL_MANY_BLOCKS;
    const int64_t tiles = parts.large ? large_tiles : small_tiles;
    const int64_t blocks = parts.large ? MATMUL_MANY_BLOCKS : MATMUL_FEW_BLOCKS;
    const int most = divide_up(R, parts.large ? 512 : 128);
    if (tiles > 0 && tiles < blocks && most > 1) {
        const int wanted = (int)min((blocks + tiles - 1) / tiles, (int64_t)most);
        parts.rows = round_up(divide_up(R, wanted), 32);
        parts.n = divide_up(R, parts.rows);
    }
    return parts;
}

// Floats of scratch for matmul_backward_weights, aligned to 16 bytes as cudaMalloc's memory is; 0 where it needs none.
// It depends on the sizes alone.
template <typename T>
static inline size_t matmul_weights_scratch(const WeightGradient<T> *list, int n, int R) {
    const WeightParts parts = matmul_weight_parts(list, n, R);
    return parts.n > 1 ? parts.n * parts.size : 0;
}

// The group in given parts, with tiles of BM x BN; see matmul_backward_weights.
template <typename T, int BM, int BN>
static inline void matmul_weights_launch(const WeightGradient<T> *list, int n, int R, WeightParts parts, float *scratch,
                                         SumList *sums, cudaStream_t stream) {
    typedef Tile<T, true, false, BM, BN> S;
    assert(n <= WEIGHT_GROUP);
    WeightGroup<T> group = {};
    group.n = n, group.R = R, group.rows = parts.rows, group.part_size = parts.size;
    int tiles = 0;
    for (int i = 0; i < n; i++) {
        WeightGradient<T> g = list[i];
        group.first[i] = tiles;
        tiles += divide_up(g.OC, BM) * divide_up(g.C, BN);
        if (g.y_row == 0) g.y_row = g.OC;
        if (parts.n > 1) {
            const size_t n_dw = (size_t)g.OC * g.C;
            sums_add(sums, g.dw, scratch, parts.n, parts.size, n_dw);
            g.dw = scratch;
            scratch += (n_dw + 3) / 4 * 4;
            if (g.dbias) {
                sums_add(sums, g.dbias, scratch, parts.n, parts.size, g.OC);
                g.dbias = scratch;
            }
            scratch += round_up(g.OC, 4);
        }
        group.at[i] = g;
    }
    if (tiles == 0) return;
    const dim3 blocks((unsigned)tiles, (unsigned)parts.n);
    matmul_prepare(matmul_weights_kernel<T, BM, BN>, S::BYTES);
    matmul_weights_kernel<T, BM, BN><<<blocks, S::THREADS, S::BYTES, stream>>>(group);
    LAUNCHED(matmul_weights_kernel<T, BM, BN>);
}

// n weight gradients, at most WEIGHT_GROUP, in one launch, so that together they fill the GPU; R = 0 gives zeros. Where
// R is cut into parts, these go to scratch, and dw and dbias are there only after sum_parts(sums), to which their sums
// are appended. Groups whose parts wait at the same time need scratch of their own.
template <typename T>
static inline void matmul_backward_weights(const WeightGradient<T> *list, int n, int R, float *scratch, SumList *sums,
                                           cudaStream_t stream) {
    const WeightParts parts = matmul_weight_parts(list, n, R);
    if (parts.large) {
        matmul_weights_launch<T, 128, 128>(list, n, R, parts, scratch, sums, stream);
    } else {
        matmul_weights_launch<T, 64, 64>(list, n, R, parts, scratch, sums, stream);
    }
}

#endif
