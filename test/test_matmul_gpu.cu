// matmul.cuh against sums in double: the three products of a linear layer, in fp32 and bf16, on random shapes with
// edges of every kind, aligned or not, every epilogue, tiles of both sizes, weight gradients in groups, cut into parts
// or not; that the same call gives the same bytes, whatever the tile; the sums of parts; and a fused kernel. It runs on
// a GPU as well as in the emulator.
#include "cuda/matmul.cuh"
#include "test/check.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>
#include <vector>
typedef __nv_bfloat16 bf16;
typedef std::vector<double> Numbers;
#ifndef ALL_SHAPES // every kernel and both precisions, but few shapes and only the tiles in use
#define ALL_SHAPES false
#endif
constexpr bool ALL = ALL_SHAPES;

// y = LayerNorm(x w + bias + residual), fused: x [R,K], w [K,C], or [C,K] with B_T, residual and y [R,C], C <= 256. A
// block makes BM rows of x w, puts them into shared memory, and then a warp normalises a row after the other: its lanes
// have the columns lane, lane + 32, ...
template <typename Operand, bool B_T, int BM>
__global__ void __launch_bounds__(Tile<Operand, false, B_T, BM, 256>::THREADS)
    linear_residual_layernorm(Operand *y, const Operand *x, const Operand *w, const float *bias, const float *residual,
                              int R, int K, int C) {
    typedef Tile<Operand, false, B_T, BM, 256> Shape;
    extern __shared__ __align__(16) unsigned char shared[];
    const int m0 = blockIdx.x * Shape::BM, lane = threadIdx.x % 32;
    Sums<Shape> sums = {};
    tile_multiply<Shape>(sums, {x, K, w, B_T ? K : C, R, C, K}, m0, 0, 0, K, shared);
    const float *rows = tile_to_shared<Shape>(sums, shared);
    for (int row = threadIdx.x / 32; row < min(Shape::BM, R - m0); row += Shape::THREADS / 32) {
        float value[8], sum = 0, squares = 0;
        for (int i = 0; i < 8; i++) {
            const int c = lane + 32 * i;
            value[i] = c < C ? rows[row * Shape::ROW + c] + bias[c] + residual[(size_t)(m0 + row) * C + c] : 0;
            sum += value[i];
        }
        for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
        for (int i = 0; i < 8; i++) {
            value[i] = lane + 32 * i < C ? value[i] - sum / C : 0;
            squares += value[i] * value[i];
        }
        for (int o = 16; o > 0; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
        const float scale = 1 / sqrtf(squares / C + 1e-5f);
        for (int i = 0; i < 8; i++) {
            const int c = lane + 32 * i;
            if (c < C) y[(size_t)(m0 + row) * C + c] = from_float<Operand>(value[i] * scale);
        }
    }
}

// ---- host and device

static int shared_limit; // bytes that a block can have: those of sm_75 are too few for the widest tiles
static unsigned state = 1;
static int below(int n) { // 0..n-1
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (unsigned)n);
}
static void CUDA(cudaError_t error) { CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error)); }

static float number(float x) { return x; }
static float number(bf16 x) { return __bfloat162float(x); }
static void set(float *to, double x) { *to = (float)x; }
static void set(bf16 *to, double x) { *to = __float2bfloat16((float)x); }

// A matrix of random numbers on the device, `shift` elements after a place that is well aligned, and its values there.
template <typename Number>
struct Matrix {
    Number *memory, *at;
    Numbers values;
};
template <typename Number>
static Matrix<Number> random_matrix(int rows, int columns, int row, int shift) {
    Matrix<Number> matrix = {nullptr, nullptr, Numbers((size_t)rows * columns)};
    std::vector<Number> all((size_t)shift + rows * row);
    for (Number &x : all) set(&x, NAN); // the padding
    for (int i = 0; i < rows * columns; i++) {
        Number *x = &all[(size_t)shift + i / columns * row + i % columns];
        set(x, (below(4) ? below(2001) - 1000 : 0) / 1000.0); // many zeros, for gates
        matrix.values[i] = number(*x);
    }
    CUDA(cudaMalloc(&matrix.memory, all.size() * sizeof(Number) + 1));
    CUDA(cudaMemcpy(matrix.memory, all.data(), all.size() * sizeof(Number), cudaMemcpyHostToDevice));
    matrix.at = matrix.memory + shift;
    return matrix;
}
template <typename Number>
static std::vector<Number> fetch(const Number *from, size_t n) {
    std::vector<Number> v(n);
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(v.data(), from, n * sizeof(Number), cudaMemcpyDeviceToHost));
    return v;
}
template <typename Number>
static void store(Number *to, const std::vector<Number> &v) {
    CUDA(cudaMemcpy(to, v.data(), v.size() * sizeof(Number), cudaMemcpyHostToDevice));
}

static uint64_t bytes_so_far = 1469598103934665603u; // FNV-1a of all results
template <typename Number>
static void remember(const std::vector<Number> &v) {
    const unsigned char *bytes = (const unsigned char *)v.data();
    for (size_t i = 0; i < v.size() * sizeof(Number); i++) bytes_so_far = (bytes_so_far ^ bytes[i]) * 1099511628211u;
}
template <typename Number>
static bool same(const std::vector<Number> &a, const std::vector<Number> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(Number));
}

// got [rows][row] against wanted [rows][columns], sums of K products of numbers up to 1: as in test_matmul.c, and where
// they are stored in bf16, half a unit of its last place. What lies between the rows must be NaN still.
template <typename Number>
static void compare(const char *what, const std::vector<Number> &got, const Numbers &wanted, int columns, int row,
                    int K) {
    const double allowed = 1.2e-7 * (K + 2) * sqrt(K + 2.0);
    double worst = 0;
    int overwritten = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const int column = (int)(i % row);
        if (column >= columns) {
            overwritten += !isnan(number(got[i]));
            continue;
        }
        const double want = wanted[i / row * columns + column];
        double off = fabs((double)number(got[i]) - want);
        if (sizeof(Number) == 2) off -= (fabs(want) + allowed) / 256;
        if (!(off <= worst)) worst = off;
    }
    CHECK(worst <= allowed, "%s, %zu x %d, K = %d: off by %g, allowed %g", what, got.size() / row, columns, K, worst,
          allowed);
    CHECK(overwritten == 0, "%s, %zu x %d: wrote past the end of its rows", what, got.size() / row, columns);
}

// ---- the checks

// y and dx for one shape. plain: aligned, no epilogue but a bias; so are rows of y_row, if that is given. The padding
// of dy is zero up to whole 16 bytes, and then NaN.
template <typename Operand, typename Output>
static void check_linear(int R, int C, int OC, bool plain = false, int y_row = 0) {
    const int shift = plain || y_row ? 0 : below(2) * below(9);
    if (y_row == 0) y_row = OC + (plain ? 0 : below(2) * below(10));
    const bool relu = !plain && below(2), add = !plain && below(2), gated = !plain && below(2),
               biased = plain || below(2);
    Matrix<Operand> x = random_matrix<Operand>(R, C, C, shift), w = random_matrix<Operand>(OC, C, C, shift);
    Matrix<Operand> dy = random_matrix<Operand>(R, OC, y_row, shift), gate = random_matrix<Operand>(R, C, C, shift);
    std::vector<Operand> dy_rows = fetch(dy.at, (size_t)R * y_row);
    for (int r = 0; r < R; r++)
        for (int o = OC; o < std::min((int)round_up(OC, 16 / (int)sizeof(Operand)), y_row); o++)
            set(&dy_rows[r * y_row + o], 0);
    store(dy.at, dy_rows);
    Matrix<float> bias = random_matrix<float>(1, OC, OC, shift);
    Matrix<Output> y = random_matrix<Output>(R, OC, y_row, shift), dx = random_matrix<Output>(R, C, C, shift);
    const float *bias_at = biased ? bias.at : nullptr;
    const Operand *gate_at = gated ? gate.at : nullptr;

    Numbers wanted((size_t)R * OC);
    for (int r = 0; r < R; r++)
        for (int o = 0; o < OC; o++) {
            double sum = biased ? bias.values[o] : 0;
            for (int c = 0; c < C; c++) sum += x.values[r * C + c] * w.values[o * C + c];
            wanted[r * OC + o] = relu && sum < 0 ? 0 : sum;
        }
    matmul_forward(y.at, x.at, w.at, bias_at, relu, R, C, OC, nullptr, y_row);
    std::vector<Output> out = fetch(y.at, (size_t)R * y_row);
    compare("y", out, wanted, OC, y_row, C);
    remember(out);
    matmul_launch<Operand, Output, false, true, 128, 128>(y.at, y_row, {x.at, C, w.at, C, R, OC, C},
                                                          {.bias = bias_at, .relu = relu}, nullptr);
    CHECK(same(out, fetch(y.at, out.size())), "y, %d x %d x %d: the tile's size changes bytes", R, C, OC);

    wanted = add ? dx.values : Numbers((size_t)R * C);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            for (int o = 0; o < OC; o++) wanted[r * C + c] += dy.values[r * OC + o] * w.values[o * C + c];
            if (gated && !(gate.values[r * C + c] > 0)) wanted[r * C + c] = 0;
        }
    std::vector<Output> before = fetch(dx.at, (size_t)R * C);
    matmul_backward_input(dx.at, dy.at, w.at, gate_at, add, R, C, OC, nullptr, y_row);
    out = fetch(dx.at, before.size());
    compare("dx", out, wanted, C, C, OC);
    remember(out);
    store(dx.at, before);
    matmul_launch<Operand, Output, false, false, 128, 128>(dx.at, C, {dy.at, y_row, w.at, C, R, C, OC},
                                                           {.gate = gate_at, .add = add}, nullptr);
    CHECK(same(out, fetch(dx.at, out.size())), "dx, %d x %d x %d: the tile's size changes bytes", R, C, OC);

    for (Operand *p : {x.memory, w.memory, dy.memory, gate.memory}) CUDA(cudaFree(p));
    for (Output *p : {y.memory, dx.memory}) CUDA(cudaFree(p));
    CUDA(cudaFree(bias.memory));
}

// A group of n weight gradients of random shapes, unless C and OC say them. First cut along R as the sizes have it,
// then in three parts, or as many as there are; each with tiles of both sizes.
template <typename Operand>
static void check_weights(int R, int n, int C = 0, int OC = 0) {
    WeightGradient<Operand> list[WEIGHT_GROUP];
    Matrix<Operand> x[WEIGHT_GROUP], dy[WEIGHT_GROUP];
    Matrix<float> dw[WEIGHT_GROUP], dbias[WEIGHT_GROUP];
    Numbers wanted[WEIGHT_GROUP], wanted_bias[WEIGHT_GROUP];
    int n_sums = n;
    for (int i = 0; i < n; i++) {
        WeightGradient<Operand> &g = list[i];
        g.C = C ? C : 1 + below(i % 2 ? 40 : 90);
        g.OC = OC ? OC : 1 + below(i % 2 ? 150 : 40);
        g.y_row = below(2) * (g.OC + below(10));
        const int y_row = g.y_row ? g.y_row : g.OC, shift = below(2) * below(9);
        x[i] = random_matrix<Operand>(R, g.C, g.C, shift), dy[i] = random_matrix<Operand>(R, g.OC, y_row, shift);
        dw[i] = random_matrix<float>(g.OC, g.C, g.C, shift), dbias[i] = random_matrix<float>(1, g.OC, g.OC, shift);
        g.x = x[i].at, g.dy = dy[i].at, g.dw = dw[i].at, g.dbias = below(3) ? dbias[i].at : nullptr;
        n_sums += g.dbias != nullptr;
        wanted[i] = Numbers((size_t)g.OC * g.C), wanted_bias[i] = Numbers(g.OC);
        for (int r = 0; r < R; r++)
            for (int o = 0; o < g.OC; o++) {
                const double dy_o = dy[i].values[r * g.OC + o];
                for (int c = 0; c < g.C; c++) wanted[i][o * g.C + c] += dy_o * x[i].values[r * g.C + c];
                wanted_bias[i][o] += dy_o;
            }
    }
    WeightParts parts = matmul_weight_parts(list, n, R);
    CHECK((parts.n > 1 ? parts.n * parts.size : 0) == matmul_weights_scratch(list, n, R), "%d parts", parts.n);
    std::vector<float> dw_before[WEIGHT_GROUP], dbias_before[WEIGHT_GROUP];
    for (int trial = 0; trial < 4; trial++) {
        if (trial == 2) parts.rows = round_up(divide_up(R, 3), 32), parts.n = divide_up(R, parts.rows);
        SumList sums = {};
        float *scratch = nullptr;
        if (parts.n > 1) CUDA(cudaMalloc(&scratch, parts.n * parts.size * sizeof(float)));
        for (int i = 0; i < n; i++) {
            CUDA(cudaMemset(dw[i].at, 0xff, (size_t)list[i].OC * list[i].C * sizeof(float)));
            CUDA(cudaMemset(dbias[i].at, 0xff, list[i].OC * sizeof(float)));
        }
        if (trial == 0) matmul_backward_weights(list, n, R, scratch, &sums, nullptr);
        if (trial == 2) matmul_weights_launch<Operand, 64, 64>(list, n, R, parts, scratch, &sums, nullptr);
        if (trial % 2) matmul_weights_launch<Operand, 128, 128>(list, n, R, parts, scratch, &sums, nullptr);
        CHECK(sums.n == (parts.n > 1 ? n_sums : 0), "%d sums of %d", sums.n, n_sums);
        sum_parts(&sums, nullptr);
        for (int i = 0; i < n; i++) {
            const WeightGradient<Operand> &g = list[i];
            const std::vector<float> dw_now = fetch(dw[i].at, (size_t)g.OC * g.C), dbias_now = fetch(dbias[i].at, g.OC);
            CHECK(trial % 2 == 0 || (same(dw_before[i], dw_now) && same(dbias_before[i], dbias_now)),
                  "dw, %d x %d x %d, %d parts: the tile's size changes bytes", R, g.C, g.OC, parts.n);
            dw_before[i] = dw_now, dbias_before[i] = dbias_now;
            compare("dw", dw_now, wanted[i], g.C, g.C, R);
            if (g.dbias) compare("dbias", dbias_now, wanted_bias[i], g.OC, g.OC, R);
            if (!g.dbias) CHECK(isnan(dbias_now[0]) && isnan(dbias_now[g.OC - 1]), "dbias, but nobody wants it");
            remember(dw_now);
            remember(dbias_now);
        }
        CUDA(cudaFree(scratch));
    }
    for (int i = 0; i < n; i++) {
        for (Operand *p : {x[i].memory, dy[i].memory}) CUDA(cudaFree(p));
        for (float *p : {dw[i].memory, dbias[i].memory}) CUDA(cudaFree(p));
    }
}

// Sums of parts, a whole list: each to the last bit, and what lies beside it stays.
static void check_sums() {
    SumList list = {};
    sum_parts(&list, nullptr); // no launch
    Matrix<float> parts[SUM_LIST], out[SUM_LIST];
    for (int i = 0; i < SUM_LIST; i++) {
        const int n = 1 + below(i % 3 ? 30 : 1500), n_parts = 1 + below(20), stride = i % 2 ? round_up(n, 4) : n + 1;
        parts[i] = random_matrix<float>(n_parts, n, stride, i % 5 ? 0 : below(4));
        out[i] = random_matrix<float>(1, 0, n + 8, 0); // NaN
        sums_add(&list, out[i].at + i % 4, parts[i].at, n_parts, stride, n);
    }
    sum_parts(&list, nullptr);
    for (int i = 0; i < SUM_LIST; i++) {
        const SumOfParts s = list.at[i];
        std::vector<float> wanted(s.n + 8, NAN), got = fetch(out[i].at, s.n + 8);
        const int each = (s.n_parts + SUM_SLICES - 1) / SUM_SLICES;
        for (size_t e = 0; e < s.n; e++) {
            float sum = 0;
            for (int first = 0; first < s.n_parts; first += each) {
                float slice = 0;
                for (int part = first; part < std::min(first + each, s.n_parts); part++)
                    slice += (float)parts[i].values[part * s.n + e];
                sum += slice;
            }
            wanted[i % 4 + e] = sum;
        }
        int wrong = 0;
        for (size_t e = 0; e < got.size(); e++) wrong += !(got[e] == wanted[e] || (isnan(got[e]) && isnan(wanted[e])));
        CHECK(wrong == 0, "sum of %d parts of %zu: %d elements are wrong", s.n_parts, s.n, wrong);
        CUDA(cudaFree(parts[i].memory));
        CUDA(cudaFree(out[i].memory));
    }
}

// Tiles that the three products do not use, against those that they do
template <typename Operand, bool B_T>
static void check_tiles() {
    const int M = 70, N = 300, K = 77;
    Matrix<Operand> a = random_matrix<Operand>(M, 80, 80, 0), b = random_matrix<Operand>(K, N, N, 0);
    Matrix<float> out = random_matrix<float>(M, N, N, 0);
    const Product<Operand> product = {a.at, 80, b.at, B_T ? K : N, M, N, K};
    std::vector<float> first;
    for (int tile = 0; tile < 4; tile++) {
        if (tile == 3 && Tile<Operand, false, B_T, 32, 256>::BYTES > shared_limit) break;
        CUDA(cudaMemset(out.at, 0xff, (size_t)M * N * sizeof(float)));
        if (tile == 0) matmul<Operand, float, false, B_T>(out.at, N, product, {}, nullptr);
        if (tile == 1) matmul_launch<Operand, float, false, B_T, 32, 64>(out.at, N, product, {}, nullptr);
        if (tile == 2) matmul_launch<Operand, float, false, B_T, 128, 64>(out.at, N, product, {}, nullptr);
        if (tile == 3) matmul_launch<Operand, float, false, B_T, 32, 256>(out.at, N, product, {}, nullptr);
        std::vector<float> now = fetch(out.at, (size_t)M * N);
        CHECK(tile == 0 || same(first, now), "tile %d changes bytes", tile);
        first = now;
    }
    CHECK(!isnan(first[0]) && !isnan(first[M * N - 1]), "nothing written");
    remember(first);
    for (Operand *p : {a.memory, b.memory}) CUDA(cudaFree(p));
    CUDA(cudaFree(out.memory));
}

// NaN must come through a ReLU, so that a run that went wrong is noticed; no rows give no gradient; a long K is cut.
template <typename Operand>
static void check_special() {
    Matrix<Operand> x = random_matrix<Operand>(1, 1, 1, 0), padded = random_matrix<Operand>(1, 0, 1, 0);
    Matrix<float> y = random_matrix<float>(1, 1, 1, 0), bias = random_matrix<float>(1, 1, 1, 0);
    SumList sums = {};
    matmul_forward(y.at, padded.at, x.at, nullptr, true, 1, 1, 1, nullptr);
    CHECK(isnan(fetch(y.at, 1)[0]), "a ReLU turned NaN into %g", (double)fetch(y.at, 1)[0]);
    matmul_forward(y.at, x.at, x.at, nullptr, true, 0, 1, 1, nullptr);
    CHECK(isnan(fetch(y.at, 1)[0]), "no rows, but something was written");
    const WeightGradient<Operand> gradient = {y.at, bias.at, x.at, x.at, 1, 1};
    matmul_backward_weights(&gradient, 1, 0, nullptr, &sums, nullptr);
    CHECK(fetch(y.at, 1)[0] == 0 && fetch(bias.at, 1)[0] == 0 && sums.n == 0, "no rows, but a gradient");
    matmul_backward_weights(&gradient, 0, 300, nullptr, &sums, nullptr);
    CHECK(sums.n == 0 && cudaGetLastError() == cudaSuccess, "an empty group");
    CUDA(cudaFree(x.memory));
    CUDA(cudaFree(padded.memory));
    CUDA(cudaFree(y.memory));
    CUDA(cudaFree(bias.memory));
}

static void check_parts() {
    for (int trial = 0; trial < 2000; trial++) {
        const int R = 1 + below(trial % 2 ? 200000 : 3000), n = 1 + below(WEIGHT_GROUP);
        WeightGradient<float> list[WEIGHT_GROUP] = {};
        for (int i = 0; i < n; i++) list[i].C = 1 + below(800), list[i].OC = 1 + below(800);
        const WeightParts parts = matmul_weight_parts(list, n, R);
        const bool covered = (int64_t)parts.n * parts.rows >= R && (int64_t)(parts.n - 1) * parts.rows < R;
        CHECK(covered && parts.n < 65536, "%d rows in %d parts of %d", R, parts.n, parts.rows);
        CHECK(parts.n == 1 || parts.rows % 32 == 0, "parts of %d rows", parts.rows);
    }
    WeightGradient<float> layer[4] = {}; // of the paper's Transformer
    const int sizes[4][2] = {{256, 768}, {256, 256}, {256, 512}, {512, 256}};
    for (int i = 0; i < 4; i++) layer[i].C = sizes[i][0], layer[i].OC = sizes[i][1];
    const WeightParts qkv = matmul_weight_parts(layer, 1, 2048), many = matmul_weight_parts(layer, 1, 131072);
    const WeightParts all = matmul_weight_parts(layer, 4, 2048);
    CHECK(!qkv.large && qkv.n == 3 && many.large && many.n > 16, "%d parts, %d parts", qkv.n, many.n);
    CHECK(!all.large && all.n == 1 && matmul_weights_scratch(layer, 4, 2048) == 0, "a layer in %d parts", all.n);
}

// A graph of a forward and a backward, launched twice
static void check_graph() {
    const int R = 300, C = 24, OC = 40;
    Matrix<float> x = random_matrix<float>(R, C, C, 0), w = random_matrix<float>(OC, C, C, 0);
    Matrix<float> y = random_matrix<float>(R, OC, OC, 0), dw = random_matrix<float>(OC, C, C, 0);
    const WeightGradient<float> gradient = {dw.at, nullptr, y.at, x.at, C, OC};
    const int scratch_size = (int)matmul_weights_scratch(&gradient, 1, R);
    Matrix<float> scratch = random_matrix<float>(1, scratch_size, scratch_size, 0);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const Product<float> product = {x.at, C, w.at, C, R, OC, C};
    matmul_launch<float, float, false, true, 128, 128>(y.at, OC, product, {.relu = true}, stream);
    SumList sums = {};
    matmul_backward_weights(&gradient, 1, R, scratch.at, &sums, stream);
    sum_parts(&sums, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    size_t nodes = 0;
    CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    CHECK(nodes == 3, "%zu nodes", nodes);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> first;
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMemset(dw.at, 0xff, (size_t)OC * C * sizeof(float)));
        CUDA(cudaGraphLaunch(executable, stream));
        CUDA(cudaStreamSynchronize(stream));
        std::vector<float> now = fetch(dw.at, (size_t)OC * C);
        CHECK(i == 0 || same(first, now), "the graph's second launch differs");
        first = now;
    }
    CHECK(!isnan(first[0]) && !isnan(first[OC * C - 1]), "the graph did not write");
    remember(first);
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
    for (float *p : {x.memory, w.memory, y.memory, dw.memory, scratch.memory}) CUDA(cudaFree(p));
}

template <typename Operand, bool B_T, int BM>
static void check_fused(int R, int K, int C) {
    typedef Tile<Operand, false, B_T, BM, 256> Shape;
    if (Shape::BYTES_WITH_ROWS > shared_limit) return;
    const int w_rows = B_T ? C : K, w_row = B_T ? K : C;
    Matrix<Operand> x = random_matrix<Operand>(R, K, K, 0), w = random_matrix<Operand>(w_rows, w_row, w_row, 0);
    Matrix<Operand> y = random_matrix<Operand>(R, C, C, 0);
    Matrix<float> bias = random_matrix<float>(1, C, C, 0), residual = random_matrix<float>(R, C, C, 0);
    Numbers wanted((size_t)R * C);
    for (int r = 0; r < R; r++) {
        double *row = &wanted[(size_t)r * C], mean = 0, variance = 0;
        for (int c = 0; c < C; c++) {
            row[c] = bias.values[c] + residual.values[r * C + c];
            for (int k = 0; k < K; k++) row[c] += x.values[r * K + k] * w.values[B_T ? c * K + k : k * C + c];
            mean += row[c] / C;
        }
        for (int c = 0; c < C; c++) variance += (row[c] - mean) * (row[c] - mean) / C;
        for (int c = 0; c < C; c++) row[c] = (row[c] - mean) / sqrt(variance + 1e-5);
    }
    matmul_prepare(linear_residual_layernorm<Operand, B_T, BM>, Shape::BYTES_WITH_ROWS);
    const int blocks = divide_up(R, Shape::BM), bytes = Shape::BYTES_WITH_ROWS;
    const float *b = bias.at, *r = residual.at;
    linear_residual_layernorm<Operand, B_T, BM><<<blocks, Shape::THREADS, bytes>>>(y.at, x.at, w.at, b, r, R, K, C);
    LAUNCHED(linear_residual_layernorm<Operand, B_T, BM>);
    std::vector<Operand> out = fetch(y.at, (size_t)R * C);
    compare("LayerNorm", out, wanted, C, C, K + C);
    remember(out);
    for (Operand *p : {x.memory, w.memory, y.memory}) CUDA(cudaFree(p));
    for (float *p : {bias.memory, residual.memory}) CUDA(cudaFree(p));
}

// Everything in one precision
template <typename Operand, typename Output>
static void check_products() {
    check_linear<Operand, Output>(1, 1, 1);
    check_linear<Operand, Output>(70, 40, 72, true);
    for (int trial = 0; trial < (ALL ? 3 : 1); trial++) check_linear<Operand, Output>(3, 96, 153);
    check_linear<Operand, Output>(66, 72, 153, false, 168);
    check_linear<Operand, Output>(1 + below(60), 1 + below(80), 1 + below(40));
    if (!ALL) return;
    check_linear<Operand, Output>(130, 15, 3);
    check_linear<Operand, Output>(128, 64, 136);
    for (int trial = 0; trial < 7; trial++)
        check_linear<Operand, Output>(1 + below(trial % 3 ? 60 : 200), 1 + below(80), 1 + below(trial % 4 ? 40 : 150));
}
template <typename Operand>
static void check_precision() {
    check_products<Operand, Operand>();
    check_special<Operand>();
    check_weights<Operand>(1, 1);
    check_weights<Operand>(1 + below(100), 2);
    check_weights<Operand>(130, 2);
    check_fused<Operand, true, 16>(17, 15, 15);
    check_fused<Operand, false, 64>(65, 24, 136);
    if constexpr (ALL) {
        if (sizeof(Operand) == 2) {
            check_products<Operand, float>();
            check_linear<Operand, Operand>(128, 256, 768, true);
        }
        for (int n = 1; n <= WEIGHT_GROUP; n++) check_weights<Operand>(1 + below(n % 3 ? 60 : 400), n);
        check_weights<Operand>(300, 1, 64, 136);
        check_tiles<Operand, true>();
        check_tiles<Operand, false>();
        check_fused<Operand, true, 16>(35, 64, 256);
        check_fused<Operand, true, 64>(67, 15, 136);
        check_fused<Operand, true, 64>(130, 64, 256);
        check_fused<Operand, false, 16>(18, 24, 153);
        check_fused<Operand, false, 16>(35, 64, 136);
        check_fused<Operand, false, 64>(130, 64, 256);
    }
}

int main(void) {
    cudaDeviceProp device = {};
    CUDA(cudaGetDeviceProperties(&device, 0));
    shared_limit = (int)device.sharedMemPerBlockOptin;
    check_precision<float>();
    if (device.major >= 8) check_precision<bf16>(); // bf16 wants sm_80
    check_sums();
    check_parts();
    check_graph();
    printf("bytes of all results: %016llx\n", (unsigned long long)bytes_so_far);
    return check_report("matmul_gpu");
}
