// Matrix products of the CPU trainers: a linear layer forward, its gradients by the input and by the weight, and the
// products with one packed panel that the LSTM's recurrence is made of.
//
// It promises the same bytes for any number of threads, and `real` in float or double; or float operands rounded to
// bf16 as they are packed, with products and sums in float, where the processor multiplies pairs of bf16 (AVX512-BF16)
// at up to twice the rate. `dev/tools/bench_cpu.sh` measures both beside OpenBLAS and PyTorch. It leaves out what the
// trainers' shapes do not need: alpha and beta, and cutting the right operand into what each cache holds.
//
// How it is fast (after Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008): a tile of
// TILE_M x TILE_N sums stays in registers while the reduction runs over k; each step loads TILE_N numbers of the right
// operand and multiplies them by TILE_M broadcast numbers of the left. The right operand is packed first into panels
// [k][TILE_N], so that a step reads whole cache lines in order. The left operand is only broadcast from, so that its
// strides may be anything, a skewed matrix included; it is read where it lies, or packed if it is transposed. (In bf16
// it is always packed, and one of its strides must be 1.)
//
// Each sum is made in one order, whichever tile or thread computes it: chains of MATMUL_K multiply-adds in ascending k,
// added up one after the other. So threads and tails do not change a bit.
#pragma once

#include "base/limits.h"
#include "base/round.h"
#include "cpu/vector.h"
#include <assert.h>

// 8 x 2 vectors of sums take 16 of the 32 registers of AVX-512 and NEON, 6 x 2 take 12 of AVX's 16. They are enough to
// hide a multiply-add's latency of 4 cycles with two units, and leave registers to read the left operand unpacked.
#if defined(__AVX__) && !defined(__AVX512F__)
#define TILE_M 6
#else
#define TILE_M 8
#endif
#define TILE_VECTORS 2
enum { TILE_N = TILE_VECTORS * LANES };

ALWAYS_INLINE void tile_zero(vector sums[TILE_M][TILE_VECTORS]) {
    UNROLL for (int i = 0; i < TILE_M; i++) { UNROLL for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] = (vector){0}; }
}

// sums[i][v] += sum_k A(i,k) B(k, v): A(i,k) = a[i*a_row + k*a_col], i < rows; B(k, .) is at b + k*b_row, `vectors`
// wide. `rows` and `vectors` are constants at every call, so that all loops but that over k disappear.
ALWAYS_INLINE void tile(vector sums[TILE_M][TILE_VECTORS], int rows, int vectors, int K, const real *a, ptrdiff_t a_row,
                        ptrdiff_t a_col, const real *b, ptrdiff_t b_row) {
    for (int k = 0; k < K; k++) {
        vector b_k[TILE_VECTORS];
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            if (v < vectors) b_k[v] = load(b + v * LANES);
        }
        UNROLL for (int i = 0; i < TILE_M; i++) {
            UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
                if (i < rows && v < vectors) sums[i][v] += a[i * a_row] * b_k[v];
            }
        }
        a += a_col;
        b += b_row;
    }
}

// ---- the same in bf16
//
// Two numbers of adjacent k lie in one word, the one of the lower k in its lower half.

// out[j] = the pair of even[j] and odd[j], j < n, and 0 up to whole vectors; odd may be NULL, for zeros
static inline void bf16_zip(word *out, const real *even, const real *odd, int n) {
    for (int j = 0; j < n; j += LANES) {
        words pair = bf16_round(load_part(even + j, n - j));
        if (odd) pair |= bf16_round(load_part(odd + j, n - j)) << 16;
        *(words *)(out + j) = pair;
    }
}

// As tile(), with K2 pairs in place of K numbers; b is a panel, [K2][TILE_N].
ALWAYS_INLINE void tile_bf16(vector sums[TILE_M][TILE_VECTORS], int K2, const word *a, ptrdiff_t a_row, ptrdiff_t a_col,
                             const word *b) {
    for (int k = 0; k < K2; k++) {
        words b_k[TILE_VECTORS];
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) b_k[v] = *(const words *)(b + v * LANES);
        UNROLL for (int i = 0; i < TILE_M; i++) {
            UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
                sums[i][v] = bf16_dot(sums[i][v], (words){0} + a[i * a_row], b_k[v]);
            }
        }
        a += a_col;
        b += TILE_N;
    }
}

// What becomes of a sum before it is stored; all that is unset does nothing.
typedef struct {
    const real *bias; // [N] added to every row
    bool relu;        // max(0, .), a NaN stays
    const real *gate; // [M][N]: 0 where gate <= 0, the backward of the ReLU that gave gate
    bool add;         // out += instead of out =
} Epilogue;

// Stores the sums of a tile at out, rows of stride out_row; bias and gate belong to the tile, gate has out's stride.
ALWAYS_INLINE void tile_store(vector sums[TILE_M][TILE_VECTORS], real *out, ptrdiff_t out_row, Epilogue epilogue) {
    UNROLL for (int i = 0; i < TILE_M; i++) {
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            ptrdiff_t at = i * out_row + v * LANES;
            vector sum = sums[i][v];
            if (epilogue.add) sum += load(out + at);
            if (epilogue.bias) sum += load(epilogue.bias + v * LANES);
            if (epilogue.relu) sum = keep_where(~(sum < zero), sum);
            if (epilogue.gate) sum = keep_where(load(epilogue.gate + at) > zero, sum);
            store(out + at, sum);
        }
    }
}

static inline int min_int(int a, int b) { return a < b ? a : b; }

// The pieces of scratch that the threads need, and the number of the caller's own piece.
static inline size_t thread_count(void) { return (size_t)omp_get_max_threads(); }
static inline size_t thread_number(void) { return (size_t)omp_get_thread_num(); }

// The reduction is cut into blocks of this many k, so that a panel and the left rows that meet it stay in the first two
// caches. The order of the additions is fixed by it.
enum { MATMUL_K = 256, MATMUL_TILES = 8 }; // and tiles that a thread takes at a time

typedef struct {   // what a product needs beside its operands
    real *scratch; // shared by all threads, matmul_scratch_size elements
    bool bf16;     // round the operands to bf16
} MatmulSpace;

// Elements of scratch for a right operand of K x N.
static inline size_t matmul_scratch_size(size_t K, size_t N) { return K * ((N + TILE_N - 1) / TILE_N * TILE_N); }

enum { ROWS_BF16 = MATMUL_TILES * TILE_M, PAIRS_BF16 = MATMUL_K / 2 + LANES, ROW_BF16 = MATMUL_K / 2 + 16 };

// pack_panel() in bf16: panel[k/2][n], a last odd k with 0. b_row or b_col is 1.
static inline void pack_panel_bf16(word *panel, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, int block, int width) {
    for (int n = width; n < TILE_N; n++) {
        for (int k = 0; k < block; k += 2) panel[k / 2 * TILE_N + n] = 0;
    }
    if (b_col == 1) {
        for (int k = 0; k < block; k += 2) {
            bf16_zip(panel + k / 2 * TILE_N, b + k * b_row, k + 1 < block ? b + (k + 1) * b_row : NULL, width);
        }
    } else { // b_row == 1
        word column[PAIRS_BF16];
        for (int n = 0; n < width; n++) {
            for (int k0 = 0; k0 < block; k0 += MATMUL_K) {
                bf16_pack(column, b + n * b_col + k0, min_int(block - k0, MATMUL_K));
                word *out = panel + k0 / 2 * TILE_N + n;
                for (int k = 0; k < divide_up(min_int(block - k0, MATMUL_K), 2); k++) out[k * TILE_N] = column[k];
            }
        }
    }
}

// panel[k][n] = B(k,n) = b[k*b_row + n*b_col], k < block, n < TILE_N, and 0 from n = width on. In bf16 the panel takes
// only half of its memory.
static inline void pack_panel(real *panel, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, int block, int width,
                              bool bf16) {
    if (bf16) {
        pack_panel_bf16((word *)panel, b, b_row, b_col, block, width);
    } else if (b_col == 1) { // row by row
        for (int k = 0; k < block; k++) {
            for (int n = 0; n < TILE_N; n++) panel[k * TILE_N + n] = n < width ? b[k * b_row + n] : 0;
        }
    } else { // column by column: a transposed B is contiguous along k
        for (int n = 0; n < TILE_N; n++) {
            for (int k = 0; k < block; k++) panel[k * TILE_N + n] = n < width ? b[k * b_row + n * b_col] : 0;
        }
    }
}

// Rows of the left operand in bf16: M <= ROWS_BF16 of them, a block of k. Where A is not transposed (a_col == 1) they
// lie as [M][ROW_BF16], where it is (a_row == 1) as [k/2][ROWS_BF16], so that both are read and written in order; a row
// is longer than it needs to be, because lines whole powers of two apart compete for the same places in the cache.
static inline void pack_rows_bf16(word *rows, const real *a, ptrdiff_t a_row, ptrdiff_t a_col, int block, int M) {
    if (a_col == 1) {
        for (int i = 0; i < M; i++) bf16_pack(rows + i * ROW_BF16, a + i * a_row, block);
        return;
    }
    enum { AHEAD = 12 };
    for (int k = 0; k < block; k += 2) {
        // ahead by hand: the hardware does not foresee steps of a whole row
        for (int i = 0; i < M && k + AHEAD < block; i += 16) {
            __builtin_prefetch(a + (k + AHEAD) * a_col + i);
            __builtin_prefetch(a + (k + AHEAD + 1) * a_col + i);
        }
        bf16_zip(rows + k / 2 * ROWS_BF16, a + k * a_col, k + 1 < block ? a + (k + 1) * a_col : NULL, M);
    }
}

// Rows of a transposed left operand (a_row == 1), M <= MATMUL_TILES * TILE_M of them, a block of k: tiles [k][TILE_M],
// one after the other. Read in place, each k of a tile would be on a page of its own, at two thirds of the rate.
static inline void pack_rows(real *rows, const real *a, ptrdiff_t a_col, int block, int M) {
    for (int k = 0; k < block; k++) {
        for (int i = 0; i < M; i += TILE_M) {
            real *out = rows + i * block + k * TILE_M;
            const real *in = a + k * a_col + i;
            if (M - i >= TILE_M) { // a number of bytes that is known takes two moves in place of a call
                memcpy(out, in, TILE_M * sizeof(real));
            } else {
                memcpy(out, in, (size_t)(M - i) * sizeof(real));
            }
        }
    }
}

// Stores rows x width of the sums. Where the tile hangs over an edge, it works on copies that are a whole tile.
static inline void tile_store_part(vector sums[TILE_M][TILE_VECTORS], real *out, ptrdiff_t out_row, int rows, int width,
                                   Epilogue epilogue) {
    if (rows == TILE_M && width == TILE_N) {
        tile_store(sums, out, out_row, epilogue);
        return;
    }
    real out_copy[TILE_M * TILE_N] = {0}, gate_copy[TILE_M * TILE_N] = {0}, bias_copy[TILE_N] = {0};
    for (int i = 0; i < rows; i++) {
        for (int n = 0; n < width; n++) {
            if (epilogue.add) out_copy[i * TILE_N + n] = out[i * out_row + n];
            if (epilogue.gate) gate_copy[i * TILE_N + n] = epilogue.gate[i * out_row + n];
            if (epilogue.bias) bias_copy[n] = epilogue.bias[n];
        }
    }
    if (epilogue.gate) epilogue.gate = gate_copy;
    if (epilogue.bias) epilogue.bias = bias_copy;
    tile_store(sums, out_copy, TILE_N, epilogue);
    for (int i = 0; i < rows; i++) {
        for (int n = 0; n < width; n++) out[i * out_row + n] = out_copy[i * TILE_N + n];
    }
}

// rows x width of out, at most a tile.
static inline void matmul_tile(real *out, ptrdiff_t out_row, int rows, int width, int block, const real *a,
                               ptrdiff_t a_row, ptrdiff_t a_col, const real *panel, Epilogue epilogue) {
    vector sums[TILE_M][TILE_VECTORS];
    tile_zero(sums);
    switch (rows) { // tile() takes it as a constant
#define ROWS(n)                                                                                                        \
    case n: tile(sums, n, TILE_VECTORS, block, a, a_row, a_col, panel, TILE_N); break
        ROWS(1);
        ROWS(2);
        ROWS(3);
        ROWS(4);
        ROWS(5);
        ROWS(6);
#if TILE_M == 8
        ROWS(7);
        ROWS(8);
#endif
#undef ROWS
    }
    tile_store_part(sums, out, out_row, rows, width, epilogue);
}

// The same of operands in bf16. Rows beyond those of out may hold anything.
static inline void matmul_tile_bf16(real *out, ptrdiff_t out_row, int rows, int width, int block, const word *a,
                                    ptrdiff_t a_row, ptrdiff_t a_col, const word *panel, Epilogue epilogue) {
    vector sums[TILE_M][TILE_VECTORS];
    tile_zero(sums);
    tile_bf16(sums, (block + 1) / 2, a, a_row, a_col, panel);
    tile_store_part(sums, out, out_row, rows, width, epilogue);
}

// Rows of a left operand: those of a matrix where they lie, or in bf16 pairs[rows rounded up to whole tiles][stride].
typedef struct {
    const real *x;
    const word *pairs; // or NULL
    int stride;        // elements from row to row
} MatmulRows;

// out[i][n] += sum_k a[i][k] panel[k][n], i < M, n < width <= TILE_N: the product with one packed panel.
static inline void matmul_panel_add(real *out, ptrdiff_t out_row, int M, int width, int K, MatmulRows a,
                                    const real *panel) {
    const Epilogue add = {.add = true};
    for (int k0 = 0; k0 < K; k0 += MATMUL_K) {
        for (int i0 = 0; i0 < M; i0 += TILE_M) {
            const int rows = min_int(M - i0, TILE_M), block = min_int(K - k0, MATMUL_K);
            const ptrdiff_t at = (ptrdiff_t)i0 * a.stride;
            real *out_i = out + i0 * out_row;
            if (a.pairs) {
                matmul_tile_bf16(out_i, out_row, rows, width, block, a.pairs + at + k0 / 2, a.stride, 1,
                                 (const word *)panel + (ptrdiff_t)k0 / 2 * TILE_N, add);
            } else {
                matmul_tile(out_i, out_row, rows, width, block, a.x + at + k0, a.stride, 1,
                            panel + (ptrdiff_t)k0 * TILE_N, add);
            }
        }
    }
}

// out[i][n] = epilogue(sum_k A(i,k) B(k,n)), i < M, n < N, out with rows of N.
// A(i,k) = a[i*a_row + k*a_col], B(k,n) = b[k*b_row + n*b_col].
static inline void matmul(real *out, int M, int N, int K, const real *a, ptrdiff_t a_row, ptrdiff_t a_col,
                          const real *b, ptrdiff_t b_row, ptrdiff_t b_col, Epilogue epilogue, MatmulSpace space) {
    const int panels = divide_up(N, TILE_N), tiles = divide_up(M, TILE_M), blocks = divide_up(K, MATMUL_K);
    const int share =
        tiles / (4 * (int)thread_count()); // tiles that a thread takes at a time: few, but panels are reused
    const int step = share < 1 ? 1 : min_int(share, MATMUL_TILES);
    assert(!space.bf16 || ((a_row == 1 || a_col == 1) && (b_row == 1 || b_col == 1)));
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int q = 0; q < blocks * panels; q++) {
            int k0 = q / panels * MATMUL_K, p = q % panels, block = min_int(K - k0, MATMUL_K);
            real *panel = space.scratch + ((size_t)k0 * panels + (size_t)p * block) * TILE_N;
            const real *b_kp = b + k0 * b_row + (ptrdiff_t)p * TILE_N * b_col;
            pack_panel(panel, b_kp, b_row, b_col, block, min_int(N - p * TILE_N, TILE_N), space.bf16);
        }
#pragma omp for schedule(dynamic)
        for (int first = 0; first < tiles; first += step) {
            word rows_bf16[ROWS_BF16 * ROW_BF16];
            real rows_packed[MATMUL_TILES * TILE_M * MATMUL_K];
            for (int q = 0; q < blocks * panels; q++) {
                int k0 = q / panels * MATMUL_K, p = q % panels, block = min_int(K - k0, MATMUL_K);
                const real *panel = space.scratch + ((size_t)k0 * panels + (size_t)p * block) * TILE_N;
                if (p == 0) {
                    const real *a_first = a + first * TILE_M * a_row + k0 * a_col;
                    const int rows = min_int(step * TILE_M, M - first * TILE_M);
                    if (space.bf16) {
                        pack_rows_bf16(rows_bf16, a_first, a_row, a_col, block, rows);
                    } else if (a_row == 1) {
                        pack_rows(rows_packed, a_first, a_col, block, rows);
                    }
                }
                for (int t = first; t < min_int(first + step, tiles); t++) {
                    ptrdiff_t at = (ptrdiff_t)t * TILE_M * N + p * TILE_N;
                    int rows = min_int(M - t * TILE_M, TILE_M), width = min_int(N - p * TILE_N, TILE_N);
                    Epilogue e = {NULL, false, NULL, epilogue.add || k0 > 0};
                    if (k0 + block == K) {
                        e.relu = epilogue.relu;
                        if (epilogue.bias) e.bias = epilogue.bias + p * TILE_N;
                        if (epilogue.gate) e.gate = epilogue.gate + at;
                    }
                    if (space.bf16) {
                        int row = a_col == 1 ? ROW_BF16 : 1, column = a_col == 1 ? 1 : ROWS_BF16;
                        matmul_tile_bf16(out + at, N, rows, width, block, rows_bf16 + (t - first) * TILE_M * row, row,
                                         column, (const word *)panel, e);
                    } else if (a_row == 1) {
                        matmul_tile(out + at, N, rows, width, block, rows_packed + (t - first) * TILE_M * block, 1,
                                    TILE_M, panel, e);
                    } else {
                        matmul_tile(out + at, N, rows, width, block, a + t * TILE_M * a_row + k0 * a_col, a_row, a_col,
                                    panel, e);
                    }
                }
            }
        }
    }
}

// The gradient by the weight takes so many rows at a time: each part of dw meets all of x, which would leave the
// caches. A multiple of MATMUL_K, so that the order of a sum stays as it is.
enum { MATMUL_ROWS = 2048 };

// The three products of a linear layer, y = x w^T + bias, with the shapes of PyTorch's nn.Linear:
// x [R,C], w [OC,C], bias [OC], y [R,OC].

// y = x w^T + bias, then ReLU if asked.
static inline void matmul_forward(real *y, const real *x, const real *w, const real *bias, bool relu, int R, int C,
                                  int OC, MatmulSpace space) {
    matmul(y, R, OC, C, x, C, 1, w, 1, C, (Epilogue){.bias = bias, .relu = relu}, space);
}

// dx = dy w, or dx += dy w; 0 where gate [R,C] <= 0, if there is a gate.
static inline void matmul_backward_input(real *dx, const real *dy, const real *w, const real *gate, bool add, int R,
                                         int C, int OC, MatmulSpace space) {
    matmul(dx, R, C, OC, dy, OC, 1, w, C, 1, (Epilogue){.gate = gate, .add = add}, space);
}

// dw += dy^T x and dbias += the column sums of dy; dbias may be NULL.
static inline void matmul_backward_weight(real *dw, real *dbias, const real *dy, const real *x, int R, int C, int OC,
                                          MatmulSpace space) {
    for (int r = 0; r < R; r += MATMUL_ROWS) {
        const real *dy_r = dy + (size_t)r * OC, *x_r = x + (size_t)r * C;
        matmul(dw, OC, C, min_int(R - r, MATMUL_ROWS), dy_r, 1, OC, x_r, C, 1, (Epilogue){.add = true}, space);
    }
    if (!dbias) return;
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
