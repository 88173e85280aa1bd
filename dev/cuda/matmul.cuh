// Matrix products for the GPU: the tile of sums that a block computes, the three products of a linear layer, and sums
// of parts. A model's own fused kernels are built on the tile. cpu/matmul.h is the same for the CPU.
//
// It promises bf16 products on the tensor cores with sums in fp32 (sm_80 and up), fp32 products in plain multiply-adds
// (sm_75 and up, never TF32), any sizes and alignments, the same bytes on every run, launches that a CUDA graph can
// capture, and no allocation. It is fast where rows begin at multiples of 16 bytes; else both operands are copied
// number by number. It leaves out batches of products, and Hopper's own instructions (wgmma).
//
// How it is fast. A block owns BM x BN sums of the output. It walks along K in steps of 64 bytes (32 bf16, 16 floats).
// For each step it copies the piece of A, BM x BK, and the piece of B, BK x BN, from global to shared memory, and
// multiplies from there. So a number that was copied once is used BN or BM times. Copies are asynchronous (cp.async)
// and run STAGES - 1 steps ahead of the arithmetic, each step into a buffer of its own, which hides their latency. One
// barrier a step is enough: after it all copies of the step are there, and the oldest buffer is free. In the block a
// warp owns WM x WN sums, which stay in registers, WM / 8 x WN / 4 of them in each thread. For these WM WN products the
// warp reads WM + WN numbers for each k.
//
// Nothing is transposed in memory. An operand lies in shared memory as in global memory: [row][k], or [k][row] where it
// is a transposed matrix. For the tensor cores, ldmatrix gives each lane its part of either form; in fp32 a thread
// reads 16 bytes along k, or along the rows. In shared memory 16 bytes of padding follow each row, which makes its
// length an odd number of 16 bytes. So 8 rows at the same column lie in 8 different groups of banks, and no access
// waits for another. A row of 64 bytes and its padding, 16 bytes a cell, by the 8 groups of 4 banks:
//
//     row 0   0 1 2 3 -      row 2   2 3 4 5 -      row 4   4 5 6 7 -      row 6   6 7 0 1 -
//     row 1   5 6 7 0 -      row 3   7 0 1 2 -      row 5   1 2 3 4 -      row 7   3 4 5 6 -
//
// Each sum has one order, ascending k, so that the tile's size does not change a bit. Only weight gradients, whose K is
// the long side, are cut into parts along K. The sizes alone say how many parts there are. They are added in order.
#ifndef MATMUL_CUH
#define MATMUL_CUH

#include "base/round.h"
#include "cuda/check.cuh"
#include "cuda/overlap.cuh"
#include "cuda/tensor_core.cuh"
#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

// ---- the two precisions: Operand, the type of a product's operands in memory, is float or __nv_bfloat16

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Operand>
__device__ inline Operand from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

template <typename Number>
struct __align__(4 * sizeof(Number)) Four { // numbers in adjacent columns, for one load or store
    Number at[4];
};

// The first `width` of four, and zeros. WHOLE: all of them, in one access, for which they are aligned.
template <bool WHOLE, typename Number>
__device__ inline Four<Number> load_first(const Number *from, int width) {
    if (WHOLE) return *(const Four<Number> *)from;
    Four<Number> four = {};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (e < width) four.at[e] = from[e];
    }
    return four;
}
template <bool WHOLE, typename Number>
__device__ inline void store_first(Number *to, Four<Number> four, int width) {
    if (WHOLE) *(Four<Number> *)to = four;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (!WHOLE && e < width) to[e] = four.at[e];
    }
}

// ---- a tile: the sums of a block

// What a step needs of an operand: SIDE rows of A or columns of B, by BK of k. It lies in shared memory as in global
// memory: with K_DOWN each row has one k, else all BK. Lengths are in elements. In each step a thread copies the same
// chunks of 16 bytes, one of every STEP-th row. Rows and columns past the edge are copies of the last one, as their
// sums are stored nowhere; k past the end is zero.
template <typename Operand, int THREADS, int SIDE, bool K_DOWN>
struct Piece {
    static constexpr int CHUNK = 16 / (int)sizeof(Operand), BK = 4 * CHUNK;
    static constexpr int ROWS = K_DOWN ? BK : SIDE, COLUMNS = K_DOWN ? SIDE : BK;
    static constexpr int ROW = COLUMNS + CHUNK, SIZE = ROWS * ROW; // from row to row, with the padding
    static constexpr int ACROSS = COLUMNS / CHUNK, STEP = THREADS / ACROSS, N = (ROWS + STEP - 1) / STEP;
    static_assert(THREADS % ACROSS == 0, "whole rows of threads");
    const Operand *from; // where the next step's begins in global memory, and
    size_t step;         // how far on the one after it
    int at[N];           // where the thread's chunks begin, from there
    int row, width;      // the first one's row, and how many of a chunk's columns exist
    int left;            // how many k are left, from the chunks' first on
    Operand *to;         // where the first one goes in the first stage

    // The matrix has rows that are from_row apart, `sides` rows or columns, and k up to k1. The piece begins at side0
    // and k0. Eight threads write 128 bytes at once: two short rows, so 4 rows apart, in different banks.
    __device__ Piece(Operand *stages, const Operand *matrix, int from_row, int side0, int sides, int k0, int k1) {
        const int line = (int)threadIdx.x / ACROSS, all = sides - side0;
        int column = (int)threadIdx.x % ACROSS * CHUNK;
        row = ACROSS == 4 ? (line & ~5) | (line & 1) << 2 | (line >> 2 & 1) : line;
        to = stages + row * ROW + column;
        left = k1 - k0 - (K_DOWN ? row : column);
        if (K_DOWN) column = min(column, (all - 1) / CHUNK * CHUNK);
        width = K_DOWN ? min(all - column, CHUNK) : CHUNK;
        for (int i = 0; i < N; i++)
            at[i] = (K_DOWN ? row + i * STEP : min(row + i * STEP, all - 1)) * from_row + column;
        from = matrix + (K_DOWN ? (size_t)k0 * from_row + side0 : (size_t)side0 * from_row + k0);
        step = K_DOWN ? (size_t)BK * from_row : BK;
    }
    // Starts the copies of the next step. ALIGNED: all rows begin at multiples of 16 bytes; else number by number.
    template <bool ALIGNED>
    __device__ void copy(int stage) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (ROWS % STEP && row + i * STEP >= ROWS) break;
            Operand *chunk = to + stage * SIZE + i * STEP * ROW;
            if (ALIGNED) cp_async(chunk, from + at[i], (K_DOWN ? i * STEP : 0) < left);
#pragma unroll 1
            for (int e = 0; e < CHUNK && !ALIGNED; e++) {
                chunk[e] = (K_DOWN ? i * STEP : e) < left ? from[at[i] + min(e, width - 1)] : from_float<Operand>(0);
            }
        }
        from += step;
        left -= BK;
    }
};

// The shape of a tile. With A_T A lies in memory as [K][M], else as [M][K]; with B_T B lies as [N][K], else as [K][N].
// BM is 16, 32 or a multiple of 64, and BN a multiple of 32. With BN at least a matrix's width a block owns whole rows.
template <typename OperandType, bool A_TRANSPOSED, bool B_TRANSPOSED, int BLOCK_M, int BLOCK_N,
          int WARP_N = sizeof(OperandType) == 2 && BLOCK_M >= 128 && BLOCK_N >= 128 ? 64 : 32>
struct Tile {
    typedef OperandType Operand;
    static constexpr bool A_T = A_TRANSPOSED, B_T = B_TRANSPOSED;
    static constexpr int BM = BLOCK_M, BN = BLOCK_N, BK = 64 / (int)sizeof(Operand); // BK of k in a step
    static constexpr int WM = BM < 32 ? BM : BM < 128 ? 32 : 64, WN = WARP_N;        // rows and columns of a warp
    static constexpr int THREADS = BM / WM * (BN / WN) * 32;
    // Blocks that the registers of a multiprocessor are to be enough for.
    static constexpr int BLOCKS = sizeof(Operand) == 4 ? 1 : BM < 128 ? 5 : 2;
    typedef Piece<Operand, THREADS, BM, A_T> A;
    typedef Piece<Operand, THREADS, BN, !B_T> B;
    static constexpr int STAGES = BM + BN <= 128 ? 4 : 3; // 3 keep large tiles within the 64 KiB that sm_75 has
    static constexpr int BYTES =
        STAGES * (A::SIZE + B::SIZE) * (int)sizeof(Operand); // dynamic shared memory of a block
    static constexpr int ROW = BN + 16; // floats from row to row in tile_to_shared(); adjacent rows differ in banks
    static constexpr int ROW_BYTES = BM * ROW * (int)sizeof(float);
    static constexpr int BYTES_WITH_ROWS = BYTES > ROW_BYTES ? BYTES : ROW_BYTES; // where it uses tile_to_shared()
    static_assert(BM % WM == 0 && WM % 16 == 0 && BN % WN == 0, "whole warps");
    static_assert(sizeof(Operand) == 2 || !A_T || WM % 32 == 0, "16 bytes along m for a thread");

    // The lane's g and q. On tensor cores they are those of tensor_core.cuh. In fp32 lanes i and i^1 have the same g
    // and lanes i and i^2 the same q, that is the same address in one of their two loads. So a half warp reads its
    // 16-byte pieces at once.
    __device__ static int g() {
        const int lane = threadIdx.x % 32;
        return sizeof(Operand) == 2 ? lane / 4 : (lane >> 1 & 1) | (lane >> 2 & 6);
    }
    __device__ static int q() {
        const int lane = threadIdx.x % 32;
        return sizeof(Operand) == 2 ? lane % 4 : (lane & 1) | (lane >> 1 & 2);
    }
    // The first row and the first column of the thread's warp in the block's tile.
    __device__ static int m() { return threadIdx.x / 32 / (BN / WN) * WM; }
    __device__ static int n() { return threadIdx.x / 32 % (BN / WN) * WN; }
    // The row of Sums::at[i / 2][.][i % 2 * 2 + .] in the block's tile.
    __device__ static int row(int i) {
        const bool permuted = sizeof(Operand) == 4 && A_T;
        return m() + (permuted ? i / 4 * 32 + 4 * g() + i % 4 : 8 * i + g());
    }
    // The first of the 4 adjacent columns that four_of_tile() gives the lane, in the block's tile.
    __device__ static int column(int j) { return n() + 8 * (j + q() % 2) + q() / 2 * 4; }
};

// A thread's share of the sums of a tile. at[i][j][2 h + e] is in row 16 i + 8 h + g and column 8 j + 2 q + e of its
// warp's sums. g in 0..7 and q in 0..3 tell the lanes apart, and at[i][j] is D of mma_bf16. In fp32 with A_T the rows
// are permuted so that a thread has 4 adjacent rows: see Tile::row().
template <typename Shape>
struct Sums {
    float at[Shape::WM / 16][Shape::WN / 8][4];
    float a_rows[Shape::WM / 16][4]; // the sum of A's row over k, in [i][2 h]; kept only if asked for
};

// A product [M,K] x [K,N] and where its operands lie:
//   A(m,k) = a[m a_row + k], or a[k a_row + m] with A_T;   B(k,n) = b[k b_row + n], or b[n b_row + k] with B_T
// Where all rows begin at multiples of 16 bytes, the last 16 bytes of a row are read whole: padding there, if it lies
// along k, holds zeros.
template <typename Operand>
struct Product {
    const Operand *a;
    int a_row;
    const Operand *b;
    int b_row;
    int M, N, K;
};

// sums += A B for one step of BK along k, from shared memory; here in bf16. For 16 of k, a warp loads WM/16 pieces of A
// and WN/8 pieces of B and multiplies each by each. The sums of A's rows are one more column: A times ones.
template <typename Shape>
__device__ inline void multiply_step(Sums<Shape> &sums, const __nv_bfloat16 *a, const __nv_bfloat16 *b, bool a_rows) {
    const int lane = threadIdx.x % 32;
    const uint32_t ones[2] = {0x3F803F80, 0x3F803F80};
    a += Shape::m() * (Shape::A_T ? 1 : Shape::A::ROW);
    b += Shape::n() * (Shape::B_T ? Shape::B::ROW : 1);
    // The row whose address this lane gives to ldmatrix. (down, right): matrices 0 and 1 lie one below the other, and
    // 2 and 3 to their right. (down_last, right_first): 0 and 1 lie side by side, and 2 and 3 below them.
    const int down = lane % 16, right = lane / 16 * 8, down_last = lane / 16 * 8 + lane % 8, right_first = lane & 8;
    uint32_t a_k[2][Shape::WM / 16][4], b_k[2][Shape::WN / 8][2]; // for 16 of k, and for the next 16
    auto load = [&](int k) {
#pragma unroll
        for (int i = 0; i < Shape::WM / 16; i++) {
            ldmatrix<Shape::A_T>(a_k[k / 16 % 2][i], Shape::A_T
                                                         ? &a[(k + down_last) * Shape::A::ROW + 16 * i + right_first]
                                                         : &a[(16 * i + down) * Shape::A::ROW + k + right]);
        }
#pragma unroll
        for (int j = 0; j < Shape::WN / 8; j += 2) { // one ldmatrix loads two pieces of B
            ldmatrix<!Shape::B_T>(b_k[k / 16 % 2][j], Shape::B_T
                                                          ? &b[(8 * j + down_last) * Shape::B::ROW + k + right_first]
                                                          : &b[(k + down) * Shape::B::ROW + 8 * j + right]);
        }
    };
    load(0);
#pragma unroll
    for (int k = 0; k < Shape::BK; k += 16) {
        if (k + 16 < Shape::BK) load(k + 16);
#pragma unroll
        for (int i = 0; i < Shape::WM / 16; i++) {
#pragma unroll
            for (int j = 0; j < Shape::WN / 8; j++) mma_bf16(sums.at[i][j], a_k[k / 16 % 2][i], b_k[k / 16 % 2][j]);
        }
        if (!a_rows) continue;
#pragma unroll
        for (int i = 0; i < Shape::WM / 16; i++) mma_bf16(sums.a_rows[i], a_k[k / 16 % 2][i], ones);
    }
}

__device__ inline void load_four(float *to, const float *from) {
    const float4 v = *(const float4 *)from;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// The same in fp32: for 4 of k, a thread loads WM/8 rows of A and, two by two, WN/4 columns of B.
template <typename Shape>
__device__ inline void multiply_step(Sums<Shape> &sums, const float *a, const float *b, bool a_rows) {
    a += Shape::A_T ? Shape::m() + 4 * Shape::g() : (Shape::m() + Shape::g()) * Shape::A::ROW;
    b += Shape::B_T ? (Shape::n() + 2 * Shape::q()) * Shape::B::ROW : Shape::n() + 2 * Shape::q();
#pragma unroll 1
    for (int k = 0; k < Shape::BK; k += 4) {
        float a_k[Shape::WM / 8][4];
        if constexpr (Shape::A_T) {
#pragma unroll
            for (int kk = 0; kk < 4; kk++) {
#pragma unroll
                for (int i = 0; i < Shape::WM / 8; i += 4) {
                    const float4 v = *(const float4 *)&a[(k + kk) * Shape::A::ROW + 8 * i];
                    a_k[i][kk] = v.x, a_k[i + 1][kk] = v.y, a_k[i + 2][kk] = v.z, a_k[i + 3][kk] = v.w;
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < Shape::WM / 8; i++) load_four(a_k[i], &a[8 * i * Shape::A::ROW + k]);
        }
#pragma unroll
        for (int j = 0; j < Shape::WN / 8; j++) {
            float b_k[2][4];
            if constexpr (Shape::B_T) {
                load_four(b_k[0], &b[8 * j * Shape::B::ROW + k]);
                load_four(b_k[1], &b[(8 * j + 1) * Shape::B::ROW + k]);
            } else {
#pragma unroll
                for (int kk = 0; kk < 4; kk++) {
                    const float2 v = *(const float2 *)&b[(k + kk) * Shape::B::ROW + 8 * j];
                    b_k[0][kk] = v.x, b_k[1][kk] = v.y;
                }
            }
#pragma unroll
            for (int kk = 0; kk < 4; kk++) {
#pragma unroll
                for (int i = 0; i < Shape::WM / 8; i++) {
                    float *sum = &sums.at[i / 2][j][i % 2 * 2];
                    sum[0] = fmaf(a_k[i][kk], b_k[0][kk], sum[0]);
                    sum[1] = fmaf(a_k[i][kk], b_k[1][kk], sum[1]);
                }
            }
        }
        if (a_rows) {
#pragma unroll
            for (int i = 0; i < Shape::WM / 8; i++) {
                for (int kk = 0; kk < 4; kk++) sums.a_rows[i / 2][i % 2 * 2] += a_k[i][kk];
            }
        }
    }
}

// tile_multiply() of rows that all begin at multiples of 16 bytes, or of any.
template <typename Shape, bool ALIGNED>
__device__ inline void tile_multiply_as(Sums<Shape> &sums, Product<typename Shape::Operand> p, int m0, int n0, int k0,
                                        int k1, unsigned char *shared, bool a_rows = false) {
    typedef typename Shape::Operand Operand;
    Operand *a_stages = (Operand *)shared, *b_stages = a_stages + Shape::STAGES * Shape::A::SIZE;
    typename Shape::A a(a_stages, p.a, p.a_row, m0, p.M, k0, k1);
    typename Shape::B b(b_stages, p.b, p.b_row, n0, p.N, k0, k1);
    const int steps = (k1 - k0 + Shape::BK - 1) / Shape::BK;
    auto fetch = [&](int step, int stage) {
        if (step < steps) {
            a.template copy<ALIGNED>(stage);
            b.template copy<ALIGNED>(stage);
        }
        cp_async_commit(); // one group for each step, also an empty one, so that the wait below counts steps
    };
    for (int step = 0; step < Shape::STAGES - 1; step++) fetch(step, step);
    int stage = 0, free = Shape::STAGES - 1;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Shape::STAGES - 2>(); // this thread's copies of the step have come
        __syncthreads();                    // all threads' have, and no thread reads the last step's buffer any more
        fetch(step + Shape::STAGES - 1, free);
        multiply_step<Shape>(sums, a_stages + stage * Shape::A::SIZE, b_stages + stage * Shape::B::SIZE, a_rows);
        free = stage;
        stage = stage + 1 < Shape::STAGES ? stage + 1 : 0;
    }
    cp_async_wait<0>();
    __syncthreads();
}

// sums += A B for the block's tile, whose first row is m0 and first column n0, over k in [k0, k1); k0 is a multiple of
// BK. All THREADS threads of the block call it. shared has Shape::BYTES bytes, is aligned to 16, and is free again on
// return. Sums past the edges of the product mean nothing. a_rows asks for the sums of A's rows too; it is the same in
// all threads of a warp.
//
// Aligned rows have a loop of their own, in which a step takes 82 instructions with tiles of 64 x 64 and 150 with tiles
// of 128 x 128, of which 16 and 64 are products (make count, sm_90).
template <typename Shape>
__device__ inline void tile_multiply(Sums<Shape> &sums, Product<typename Shape::Operand> p, int m0, int n0, int k0,
                                     int k1, unsigned char *shared, bool a_rows = false) {
    const size_t size = sizeof(typename Shape::Operand);
    const bool aligned = ((uintptr_t)p.a | (uintptr_t)p.b | p.a_row * size | p.b_row * size) % 16 == 0;
    if (aligned) {
        tile_multiply_as<Shape, true>(sums, p, m0, n0, k0, k1, shared, a_rows);
    } else {
        tile_multiply_as<Shape, false>(sums, p, m0, n0, k0, k1, shared, a_rows);
    }
}

// The sums of a row i, see Tile::row(), in the 4 adjacent columns from Tile::column(j) on; j is even. A lane has only
// pairs of columns, so lanes 2i and 2i+1 swap a pair of theirs, and the whole warp must call this. A warp's stores are
// then rows of 16 columns, 32 bytes or more.
template <typename Shape>
__device__ inline float4 four_of_tile(const Sums<Shape> &sums, int i, int j) {
    const bool odd = Shape::q() & 1;
    const float *low = &sums.at[i / 2][j][i % 2 * 2], *high = &sums.at[i / 2][j + 1][i % 2 * 2];
    const float other0 = __shfl_xor_sync(~0u, odd ? low[0] : high[0], 1);
    const float other1 = __shfl_xor_sync(~0u, odd ? low[1] : high[1], 1);
    return odd ? make_float4(other0, other1, high[0], high[1]) : make_float4(low[0], low[1], other0, other1);
}

// Puts the sums into shared memory as a matrix of BM rows that are Shape::ROW floats apart, for kernels that go on with
// whole rows. shared has Shape::BYTES_WITH_ROWS bytes. It ends with a barrier.
//
// So a fused kernel, say a LayerNorm of x w^T + bias, makes a tile as wide as the matrix: zero sums, tile_multiply(),
// tile_to_shared(), and then a warp takes a row after the other. linear_residual_layernorm in test/test_matmul_gpu.cu
// is one. With BM = 16 (256 threads) there are the most blocks. With BM = 64 (512 threads) w is read a quarter as
// often, in 75 KiB of shared memory, more than sm_75 has.
template <typename Shape>
__device__ inline float *tile_to_shared(Sums<Shape> &sums, unsigned char *shared) {
    float *rows = (float *)shared;
#pragma unroll
    for (int i = 0; i < Shape::WM / 8; i++) {
#pragma unroll
        for (int j = 0; j < Shape::WN / 8; j += 2) {
            *(float4 *)&rows[Shape::row(i) * Shape::ROW + Shape::column(j)] = four_of_tile<Shape>(sums, i, j);
        }
    }
    __syncthreads();
    return rows;
}

// ---- sums of parts
//
// Where several blocks contribute to a sum, each stores its part in a place of its own. A later launch adds the parts
// of many sums at once, in a fixed order. Weight gradients (below) and a model's own sums over rows are made so.

// out[i] = the sum of parts[part * stride + i] over part < n_parts, for i < n. The order is always the same: up to
// SUM_SLICES parts are added one after the other; more are cut into SUM_SLICES slices, each of which is added up first.
// It is fast where parts begin at multiples of 16 bytes; out may lie anywhere.
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

// A block makes SUM_BLOCK elements of one of the sums. A thread adds 4 adjacent elements of one slice of the parts; if
// it added all parts, it would wait for memory again and again.
static __global__ void __launch_bounds__(32 * SUM_SLICES) sum_parts_kernel(SumList list) {
    await_previous_kernel();
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

// What is done to a sum before it is stored, by default nothing.
template <typename Operand>
struct Epilogue {
    const float *bias = nullptr;   // [N] added to every row
    bool relu = false;             // max(0, .), a NaN stays
    const Operand *gate = nullptr; // [M][N], rows as far apart as out's: 0 where gate <= 0, as in a ReLU's backward
    bool add = false;              // out += instead of out =
};

template <typename Shape, bool WHOLE, typename Output>
__device__ inline void tile_store_as(Sums<Shape> &sums, Output *out, int out_row, int m0, int n0, int M, int N,
                                     Epilogue<typename Shape::Operand> epilogue) {
    constexpr int ROWS = WHOLE ? 4 : 1; // at once: their loads go out together
#pragma unroll
    for (int j = 0; j < Shape::WN / 8; j += 2) {
        const int n = n0 + Shape::column(j);
        const Four<float> bias = epilogue.bias ? load_first<WHOLE>(epilogue.bias + n, N - n) : Four<float>{};
#pragma unroll
        for (int i0 = 0; i0 < Shape::WM / 8; i0 += ROWS) {
            Four<typename Shape::Operand> open[ROWS];
            Four<Output> now[ROWS];
            size_t at[ROWS];
            int width[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int m = m0 + Shape::row(i0 + i);
                at[i] = (size_t)m * out_row + n;
                width[i] = m < M ? N - n : 0;
                if (epilogue.gate) open[i] = load_first<WHOLE>(epilogue.gate + at[i], width[i]);
                if (epilogue.add) now[i] = load_first<WHOLE>(out + at[i], width[i]);
            }
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const float4 four = four_of_tile<Shape>(sums, i0 + i, j);
                float sum[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    if (epilogue.add) sum[e] += to_float(now[i].at[e]);
                    if (epilogue.bias) sum[e] += bias.at[e];
                    if (epilogue.relu && sum[e] < 0) sum[e] = 0;
                    if (epilogue.gate && !(to_float(open[i].at[e]) > 0)) sum[e] = 0;
                    now[i].at[e] = from_float<Output>(sum[e]);
                }
                store_first<WHOLE>(out + at[i], now[i], width[i]);
            }
        }
    }
}

// Stores the block's sums in out [M,N], rows out_row apart.
template <typename Shape, typename Output>
__device__ inline void tile_store(Sums<Shape> &sums, Output *out, int out_row, int m0, int n0, int M, int N,
                                  Epilogue<typename Shape::Operand> epilogue) {
    const bool whole = m0 + Shape::BM <= M && n0 + Shape::BN <= N && out_row % 4 == 0 &&
                       (uintptr_t)out % sizeof(Four<Output>) == 0 && (uintptr_t)epilogue.bias % 16 == 0 &&
                       (uintptr_t)epilogue.gate % sizeof(Four<typename Shape::Operand>) == 0;
    if (whole) {
        tile_store_as<Shape, true>(sums, out, out_row, m0, n0, M, N, epilogue);
    } else {
        tile_store_as<Shape, false>(sums, out, out_row, m0, n0, M, N, epilogue);
    }
}

// out [M,N] = epilogue(A B). Blocks go along a row of tiles first. So B, which every row of tiles reads again, stays in
// the L2 cache, and so do the rows of A that the running blocks share. From L2, A is read N/BN times and B M/BM times.
template <typename Operand, typename Output, bool A_T, bool B_T, int BM, int BN>
__global__ void __launch_bounds__(Tile<Operand, A_T, B_T, BM, BN>::THREADS, Tile<Operand, A_T, B_T, BM, BN>::BLOCKS)
    matmul_kernel(Output *out, int out_row, Product<Operand> p, Epilogue<Operand> epilogue) {
    await_previous_kernel();
    typedef Tile<Operand, A_T, B_T, BM, BN> Shape;
    extern __shared__ __align__(16) unsigned char shared[];
    const int columns = (p.N + BN - 1) / BN;
    const int m0 = blockIdx.x / columns * BM, n0 = blockIdx.x % columns * BN;
    Sums<Shape> sums = {};
    tile_multiply<Shape>(sums, p, m0, n0, 0, p.K, shared);
    tile_store<Shape>(sums, out, out_row, m0, n0, p.M, p.N, epilogue);
}

// A weight gradient, that of y = x w^T + bias: dw [OC,C] = dy^T x, and dbias [OC] = the column sums of dy. dbias may be
// null. dy [R,OC], x [R,C]; y_row: elements from row to row of dy, 0: OC.
template <typename Operand>
struct WeightGradient {
    float *dw, *dbias;
    const Operand *dy, *x;
    int C, OC, y_row = 0;
};

// The weight gradients of a launch. They have R in common, which is cut into parts of `rows`. A block makes one tile of
// one gradient: blockIdx.x counts tiles, those of the first gradient first, and blockIdx.y counts parts. The results of
// a part lie part_size floats after those of the part before.
enum { WEIGHT_GROUP = 6 };
template <typename Operand>
struct WeightGroup {
    WeightGradient<Operand> at[WEIGHT_GROUP]; // with dw and dbias of the first part
    int first[WEIGHT_GROUP];                  // the first blockIdx.x of each
    int n, R, rows;
    size_t part_size;
};

// In fp32 one block a multiprocessor will do: left to itself, as it is in bf16 (0 asks for nothing), ptxas aims at two
// there, and spills for them on sm_100 and sm_120.
template <typename Operand, int BM, int BN>
__global__ void __launch_bounds__(Tile<Operand, true, false, BM, BN>::THREADS, sizeof(Operand) == 4)
    matmul_weights_kernel(WeightGroup<Operand> group) {
    await_previous_kernel();
    typedef Tile<Operand, true, false, BM, BN> Shape;
    extern __shared__ __align__(16) unsigned char shared[];
    const int block = blockIdx.x;
    int i = 0;
    while (i + 1 < group.n && block >= group.first[i + 1]) i++;
    const WeightGradient<Operand> g = group.at[i];
    const int tile = block - group.first[i], columns = (g.C + BN - 1) / BN;
    const int m0 = tile / columns * BM, n0 = tile % columns * BN;
    const int k0 = blockIdx.y * group.rows, k1 = min(group.R, k0 + group.rows);
    const size_t part = blockIdx.y * group.part_size;
    const bool a_rows = g.dbias && n0 == 0 && Shape::n() == 0;
    Sums<Shape> sums = {};
    const Product<Operand> product = {
        .a = g.dy, .a_row = g.y_row, .b = g.x, .b_row = g.C, .M = g.OC, .N = g.C, .K = group.R};
    tile_multiply<Shape>(sums, product, m0, n0, k0, k1, shared, a_rows);
    tile_store<Shape>(sums, g.dw + part, g.C, m0, n0, g.OC, g.C, {});
    if (!a_rows || Shape::q() != 0) return;
#pragma unroll
    for (int r = 0; r < Shape::WM / 8; r++) {
        const int m = m0 + Shape::row(r);
        if (m < g.OC) g.dbias[part + m] = sums.a_rows[r / 2][r % 2 * 2];
    }
}

// ---- host: how many blocks of what size, and the launches

// Allows a kernel `bytes` of shared memory; up to 48 KiB need no permission. This is no operation of a stream, so it
// may be called while a graph is captured.
template <typename Kernel>
static inline void matmul_prepare(Kernel *kernel, int bytes) {
    if (bytes <= 48 << 10) return;
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <typename Operand, typename Output, bool A_T, bool B_T, int BM, int BN>
static inline void matmul_launch(Output *out, int out_row, Product<Operand> p, Epilogue<Operand> epilogue,
                                 cudaStream_t stream) {
    typedef Tile<Operand, A_T, B_T, BM, BN> Shape;
    const int blocks = divide_up(p.M, BM) * divide_up(p.N, BN), threads = Shape::THREADS, bytes = Shape::BYTES;
    matmul_prepare(matmul_kernel<Operand, Output, A_T, B_T, BM, BN>, bytes);
    matmul_kernel<Operand, Output, A_T, B_T, BM, BN><<<blocks, threads, bytes, stream>>>(out, out_row, p, epilogue);
    LAUNCHED(matmul_kernel<Operand, Output, A_T, B_T, BM, BN>);
}

// Large tiles read operands half as often, but leave multiprocessors idle in small products. A product takes them from
// MATMUL_MANY_BLOCKS blocks on, two for each of some 128 multiprocessors. A small product whose K is cut into parts
// gets about MATMUL_FEW_BLOCKS blocks.
enum { MATMUL_MANY_BLOCKS = 256, MATMUL_FEW_BLOCKS = 128 };

// out [M,N], rows out_row apart, = epilogue(A B). A_T and B_T are those of Tile.
template <typename Operand, typename Output, bool A_T, bool B_T>
static inline void matmul(Output *out, int out_row, Product<Operand> p, Epilogue<Operand> epilogue,
                          cudaStream_t stream) {
    if (p.M <= 0 || p.N <= 0) return;
    if ((int64_t)divide_up(p.M, 128) * divide_up(p.N, 128) >= MATMUL_MANY_BLOCKS) {
        matmul_launch<Operand, Output, A_T, B_T, 128, 128>(out, out_row, p, epilogue, stream);
    } else {
        matmul_launch<Operand, Output, A_T, B_T, 64, 64>(out, out_row, p, epilogue, stream);
    }
}

// The three products of a linear layer, y = x w^T + bias, with the shapes of PyTorch's nn.Linear: x [R,C], w [OC,C],
// bias [OC], y [R,OC]. Output is Operand or float; gradients of parameters are float. y_row: elements from row to row
// of y and dy, 0: OC. An odd OC is faster with rows padded to 16 bytes, by zeros in dy.

// y = x w^T + bias, with `relu` max(0, x w^T + bias). bias may be null.
template <typename Operand, typename Output>
static inline void matmul_forward(Output *y, const Operand *x, const Operand *w, const float *bias, bool relu, int R,
                                  int C, int OC, cudaStream_t stream, int y_row = 0) {
    const Product<Operand> product = {.a = x, .a_row = C, .b = w, .b_row = C, .M = R, .N = OC, .K = C};
    const Epilogue<Operand> epilogue = {.bias = bias, .relu = relu};
    matmul<Operand, Output, false, true>(y, y_row ? y_row : OC, product, epilogue, stream);
}

// dx = dy w, with `add` dx += dy w. Where gate [R,C], which may be null, is <= 0, dx becomes 0.
template <typename Operand, typename Output>
static inline void matmul_backward_input(Output *dx, const Operand *dy, const Operand *w, const Operand *gate, bool add,
                                         int R, int C, int OC, cudaStream_t stream, int y_row = 0) {
    const Product<Operand> product = {
        .a = dy, .a_row = y_row ? y_row : OC, .b = w, .b_row = C, .M = R, .N = C, .K = OC};
    const Epilogue<Operand> epilogue = {.gate = gate, .add = add};
    matmul<Operand, Output, false, false>(dx, C, product, epilogue, stream);
}

// How a group of weight gradients is computed.
typedef struct {
    bool large;  // whether tiles are large
    int n, rows; // the number of parts along R, and the rows of a part
    size_t size; // floats of a part's results: all dw and dbias, each rounded up to a multiple of 4
} WeightParts;

// Large tiles are taken where parts of 512 rows make MATMUL_MANY_BLOCKS blocks of them. The number of parts is the one
// that makes about MATMUL_FEW_BLOCKS blocks of small tiles, or MATMUL_MANY_BLOCKS of large ones, but at most one for
// every 128 rows, or 512.
template <typename Operand>
static inline WeightParts matmul_weight_parts(const WeightGradient<Operand> *list, int n, int R) {
    WeightParts parts = {.large = false, .n = 1, .rows = R, .size = 0};
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

// The floats of scratch that matmul_backward_weights needs, or 0. They are aligned to 16 bytes, as cudaMalloc's memory
// is. The number depends on the sizes alone.
template <typename Operand>
static inline size_t matmul_weights_scratch(const WeightGradient<Operand> *list, int n, int R) {
    const WeightParts parts = matmul_weight_parts(list, n, R);
    return parts.n > 1 ? parts.n * parts.size : 0;
}

// matmul_backward_weights with given parts, and with tiles of BM x BN.
template <typename Operand, int BM, int BN>
static inline void matmul_weights_launch(const WeightGradient<Operand> *list, int n, int R, WeightParts parts,
                                         float *scratch, SumList *sums, cudaStream_t stream) {
    typedef Tile<Operand, true, false, BM, BN> Shape;
    assert(n <= WEIGHT_GROUP);
    WeightGroup<Operand> group = {};
    group.n = n;
    group.R = R;
    group.rows = parts.rows;
    group.part_size = parts.size;
    int tiles = 0;
    for (int i = 0; i < n; i++) {
        WeightGradient<Operand> g = list[i];
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
    matmul_prepare(matmul_weights_kernel<Operand, BM, BN>, Shape::BYTES);
    matmul_weights_kernel<Operand, BM, BN><<<blocks, Shape::THREADS, Shape::BYTES, stream>>>(group);
    LAUNCHED(matmul_weights_kernel<Operand, BM, BN>);
}

// Makes n weight gradients, at most WEIGHT_GROUP, in one launch, so that together they fill the GPU. R = 0 gives zeros.
// Where R is cut into parts, these go to scratch, and the sums that make dw and dbias of them are appended to `sums`:
// the gradients are there after sum_parts(sums). Each group needs scratch of its own until then.
template <typename Operand>
static inline void matmul_backward_weights(const WeightGradient<Operand> *list, int n, int R, float *scratch,
                                           SumList *sums, cudaStream_t stream) {
    const WeightParts parts = matmul_weight_parts(list, n, R);
    if (parts.large) {
        matmul_weights_launch<Operand, 128, 128>(list, n, R, parts, scratch, sums, stream);
    } else {
        matmul_weights_launch<Operand, 64, 64>(list, n, R, parts, scratch, sums, stream);
    }
}

#endif
