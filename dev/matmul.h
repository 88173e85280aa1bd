// Matrix products for the CPU reference: one register tile, one parallel loop, three products.
//
// It promises about 90 % of the machine's multiply-add rate on the trainers' shapes, the same bytes for any number of
// threads, and `real` in float or double. It leaves out everything that such shapes do not need: alpha and beta,
// packing of the left operand, blocking over the reduction beyond a cache's worth.
//
// How it is fast (after Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008): a tile of
// TILE_M x TILE_N sums stays in registers while the reduction runs over k; each step loads TILE_N numbers of the right
// operand and multiplies them by TILE_M broadcast numbers of the left. The right operand is packed first into panels
// [k][TILE_N], so that a step reads whole cache lines in order. The left operand is read where it lies: it is only
// broadcast from, so that its strides may be anything, a transposed or even a skewed matrix included.
//
// Vectors are the compiler's own (gcc and clang): 64 bytes with AVX-512, 32 with AVX, 16 with NEON or SSE; the same
// source compiles to each, chosen by -march. Each sum is one chain of multiply-adds in ascending k, whichever tile or
// thread computes it: that is why thread counts, sizes and tails do not change a bit.
#ifndef MATMUL_H
#define MATMUL_H

#include <stdbool.h>
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
enum { LANES = VECTOR_BYTES / (int)sizeof(real) };
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias)); // at any address

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

ALWAYS_INLINE vector load(const real *p) { return *(const vector *)p; }
ALWAYS_INLINE void store(real *p, vector v) { *(vector *)p = v; }

// 8 x 2 vectors of sums: 16 of the 32 registers of AVX-512 and NEON, enough to hide a multiply-add's latency of 4
// cycles with one or two units; measured 113 to 117 of 118 GFLOP/s on one Zen 4 core, where 14 x 2 gave 99 to 108.
#define TILE_M 8
#if defined(__AVX__) && !defined(__AVX512F__)
#define TILE_VECTORS 1 // 16 registers
#else
#define TILE_VECTORS 2
#endif
enum { TILE_N = TILE_VECTORS * LANES };

ALWAYS_INLINE void tile_zero(vector sums[TILE_M][TILE_VECTORS]) {
    UNROLL for (int i = 0; i < TILE_M; i++) { UNROLL for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] = (vector){0}; }
}

// sums[i][v] += sum_k A(i,k) B(k, v): A(i,k) = a[i*a_row + k*a_col], i < TILE_M; B(k, .) is at b + k*b_row, `vectors`
// wide. `vectors` is a constant at every call, so that all loops but that over k disappear.
ALWAYS_INLINE void tile(vector sums[TILE_M][TILE_VECTORS], int vectors, int K, const real *a, ptrdiff_t a_row,
                        ptrdiff_t a_col, const real *b, ptrdiff_t b_row) {
    for (int k = 0; k < K; k++) {
        vector b_k[TILE_VECTORS];
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            if (v < vectors) b_k[v] = load(b + v * LANES);
        }
        UNROLL for (int i = 0; i < TILE_M; i++) {
            UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
                if (v < vectors) sums[i][v] += a[i * a_row] * b_k[v];
            }
        }
        a += a_col;
        b += b_row;
    }
}

// What becomes of a sum before it is stored; all that is unset does nothing.
typedef struct {
    const real *bias; // [N] added to every row
    bool relu;        // max(0, .), a NaN stays
    const real *gate; // [M][N]: 0 where gate <= 0, the backward of the ReLU that gave gate
    bool add;         // out += instead of out =
} Epilogue;

typedef __typeof__((vector){0} < (vector){0}) vector_mask; // integers of the same width, all ones where true

ALWAYS_INLINE vector keep_where(vector_mask where, vector v) { return (vector)((vector_mask)v & where); }

ALWAYS_INLINE vector select_vector(vector_mask where, vector yes, vector no) {
    return (vector)(((vector_mask)yes & where) | ((vector_mask)no & ~where));
}

// Stores the sums of a tile at out (row stride N), vector by vector; gate has out's position and stride.
ALWAYS_INLINE void tile_store(vector sums[TILE_M][TILE_VECTORS], real *out, ptrdiff_t out_row, bool add, bool last,
                              const real *bias, bool relu, const real *gate) {
    const vector zero = {0};
    UNROLL for (int i = 0; i < TILE_M; i++) {
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            ptrdiff_t at = i * out_row + v * LANES;
            vector sum = sums[i][v];
            if (add) sum += load(out + at);
            if (last && bias) sum += load(bias + v * LANES);
            if (last && relu) sum = keep_where(~(sum < zero), sum);
            if (last && gate) sum = keep_where(load(gate + at) > zero, sum);
            store(out + at, sum);
        }
    }
}

static inline int min_int(int a, int b) { return a < b ? a : b; }

static inline int divide_up(int a, int b) { return (a + b - 1) / b; }

static inline int round_up(int n, int multiple) { return divide_up(n, multiple) * multiple; }

static inline size_t thread_count(void) { // pieces of scratch that thread_number needs
#ifdef _OPENMP
    return (size_t)omp_get_max_threads();
#else
    return 1;
#endif
}

static inline size_t thread_number(void) { // of the caller, for its own piece of scratch
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

// The reduction is cut into blocks of this many k, so that a panel and the left rows that meet it stay in the first two
// caches. The order of the additions is fixed by it.
enum { MATMUL_K = 256, MATMUL_TILES = 8 /* tiles of the left operand that a thread takes at a time */ };

// Elements of scratch that matmul needs for a right operand of K x N.
static inline size_t matmul_scratch_size(size_t K, size_t N) {
    return (K < MATMUL_K ? K : MATMUL_K) * ((N + TILE_N - 1) / TILE_N * TILE_N);
}

// out[i][n] = epilogue(sum_k A(i,k) B(k,n)), i < M, n < N, out with rows of N.
// A(i,k) = a[i*a_row + k*a_col], B(k,n) = b[k*b_row + n*b_col]. scratch: shared, matmul_scratch_size(K, N) elements.
// A tile that hangs over an edge works in a small copy, with zeros where A ends.
static inline void matmul(real *out, int M, int N, int K, const real *a, ptrdiff_t a_row, ptrdiff_t a_col,
                          const real *b, ptrdiff_t b_row, ptrdiff_t b_col, Epilogue epilogue, real *scratch) {
    int panels = divide_up(N, TILE_N), tiles = divide_up(M, TILE_M);
#pragma omp parallel
    for (int k0 = 0; k0 < K; k0 += MATMUL_K) {
        int block = min_int(K - k0, MATMUL_K);
        bool add = epilogue.add || k0 > 0, last = k0 + block == K;
#pragma omp for schedule(static)
        for (int p = 0; p < panels; p++) {
            int width = min_int(N - p * TILE_N, TILE_N);
            real *panel = scratch + (size_t)p * block * TILE_N;
            const real *b_p = b + k0 * b_row + (ptrdiff_t)p * TILE_N * b_col;
            for (int n = 0; n < TILE_N && b_col != 1; n++) {
                for (int k = 0; k < block; k++) panel[k * TILE_N + n] = n < width ? b_p[k * b_row + n * b_col] : 0;
            }
            for (int k = 0; k < block && b_col == 1; k++) {
                for (int n = 0; n < TILE_N; n++) panel[k * TILE_N + n] = n < width ? b_p[k * b_row + n] : 0;
            }
        }
#pragma omp for schedule(dynamic)
        for (int first = 0; first < tiles; first += MATMUL_TILES) {
            for (int p = 0; p < panels; p++) {
                const real *panel = scratch + (size_t)p * block * TILE_N;
                int width = min_int(N - p * TILE_N, TILE_N);
                for (int t = first; t < min_int(first + MATMUL_TILES, tiles); t++) {
                    int rows = min_int(M - t * TILE_M, TILE_M);
                    const real *a_t = a + t * TILE_M * a_row + k0 * a_col;
                    ptrdiff_t at = (ptrdiff_t)t * TILE_M * N + p * TILE_N;
                    const real *bias = epilogue.bias ? epilogue.bias + p * TILE_N : NULL;
                    const real *gate = epilogue.gate ? epilogue.gate + at : NULL;
                    vector sums[TILE_M][TILE_VECTORS];
                    tile_zero(sums);
                    if (rows == TILE_M) {
                        tile(sums, TILE_VECTORS, block, a_t, a_row, a_col, panel, TILE_N);
                    } else {
                        real a_edge[MATMUL_K * TILE_M];
                        for (int k = 0; k < block; k++) {
                            for (int i = 0; i < TILE_M; i++) {
                                a_edge[k * TILE_M + i] = i < rows ? a_t[i * a_row + k * a_col] : 0;
                            }
                        }
                        tile(sums, TILE_VECTORS, block, a_edge, 1, TILE_M, panel, TILE_N);
                    }
                    if (rows == TILE_M && width == TILE_N) {
                        tile_store(sums, out + at, N, add, last, bias, epilogue.relu, gate);
                    } else {
                        real out_edge[TILE_M * TILE_N] = {0}, gate_edge[TILE_M * TILE_N] = {0}, bias_edge[TILE_N] = {0};
                        for (int n = 0; n < width; n++) {
                            if (bias) bias_edge[n] = bias[n];
                            for (int i = 0; i < rows; i++) {
                                if (add) out_edge[i * TILE_N + n] = out[at + (ptrdiff_t)i * N + n];
                                if (gate) gate_edge[i * TILE_N + n] = gate[(ptrdiff_t)i * N + n];
                            }
                        }
                        tile_store(sums, out_edge, TILE_N, add, last, bias ? bias_edge : NULL, epilogue.relu,
                                   gate ? gate_edge : NULL);
                        for (int i = 0; i < rows; i++) {
                            for (int n = 0; n < width; n++) out[at + (ptrdiff_t)i * N + n] = out_edge[i * TILE_N + n];
                        }
                    }
                }
            }
        }
    }
}

// The three products of a linear layer, y = x w^T + bias, with the shapes of PyTorch's nn.Linear:
// x [R,C], w [OC,C], bias [OC], y [R,OC]. All scratch: matmul_scratch_size of the largest right operand.

// y = x w^T + bias, then ReLU if asked.
static inline void matmul_forward(real *y, const real *x, const real *w, const real *bias, bool relu, int R, int C,
                                  int OC, real *scratch) {
    matmul(y, R, OC, C, x, C, 1, w, 1, C, (Epilogue){.bias = bias, .relu = relu}, scratch);
}

// dx = dy w, or dx += dy w; 0 where gate [R,C] <= 0, if there is a gate.
static inline void matmul_backward_input(real *dx, const real *dy, const real *w, const real *gate, bool add, int R,
                                         int C, int OC, real *scratch) {
    matmul(dx, R, C, OC, dy, OC, 1, w, C, 1, (Epilogue){.gate = gate, .add = add}, scratch);
}

// dw += dy^T x and dbias += the column sums of dy.
static inline void matmul_backward_weight(real *dw, real *dbias, const real *dy, const real *x, int R, int C, int OC,
                                          real *scratch) {
    matmul(dw, OC, C, R, dy, 1, OC, x, C, 1, (Epilogue){.add = true}, scratch);
#pragma omp parallel for schedule(static)
    for (int o0 = 0; o0 < OC; o0 += 64) {
        real sums[64] = {0};
        int n = min_int(OC - o0, 64);
        for (int r = 0; r < R; r++) {
            for (int o = 0; o < n; o++) sums[o] += dy[(size_t)r * OC + o0 + o];
        }
        for (int o = 0; o < n; o++) dbias[o0 + o] += sums[o];
    }
}

#endif
