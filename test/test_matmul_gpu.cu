// matmul.cuh against sums in double: the three products of a linear layer, in fp32 and bf16, on random shapes with
// edges of every kind, aligned or not, every epilogue, tiles of both sizes; that the same call gives the same bytes,
// whatever the tile; and the fused kernel that the header describes. It runs on a GPU as well as in the emulator.
#include "../dev/matmul.cuh"
#include "check.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>
#include <vector>
typedef __nv_bfloat16 bf16;
typedef std::vector<double> Numbers;

// y = LayerNorm(x w^T + bias + residual), as the header says how: x [R,K], w [C,K], residual and y [R,C], C <= 256.
template <typename T>
__global__ void __launch_bounds__(256) linear_residual_layernorm(T *y, const T *x, const T *w, const float *bias,
                                                                 const float *residual, int R, int K, int C) {
    typedef Tile<T, false, true, 16, 256> S;
    static_assert(S::THREADS == 256, "as the launch bounds say");
    extern __shared__ __align__(16) unsigned char shared[];
    const int m0 = blockIdx.x * S::BM, lane = threadIdx.x % 32;
    Sums<S> sums;
    tile_zero<S>(sums);
    tile_multiply<S>(sums, {x, K, w, K, R, C, K}, m0, 0, 0, K, shared);
    const float *rows = tile_to_shared<S>(sums, shared);
    for (int row = threadIdx.x / 32; row < min(S::BM, R - m0); row += S::THREADS / 32) {
        float value[8], sum = 0, squares = 0;
        for (int i = 0; i < 8; i++) {
            const int c = lane + 32 * i;
            value[i] = c < C ? rows[row * S::ROW + c] + bias[c] + residual[(size_t)(m0 + row) * C + c] : 0;
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
            if (c < C) y[(size_t)(m0 + row) * C + c] = from_float<T>(value[i] * scale);
        }
    }
}

// ---- host and device

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
template <typename T>
struct Matrix {
    T *memory, *at;
    Numbers values;
};
template <typename T>
static Matrix<T> random_matrix(int rows, int columns, int row, int shift) {
    Matrix<T> matrix = {nullptr, nullptr, Numbers((size_t)rows * columns)};
    std::vector<T> all((size_t)shift + rows * row);
    for (T &x : all) set(&x, NAN); // the padding
    for (int i = 0; i < rows * columns; i++) {
        T *x = &all[(size_t)shift + i / columns * row + i % columns];
        set(x, (below(4) ? below(2001) - 1000 : 0) / 1000.0); // many zeros, for gates
        matrix.values[i] = number(*x);
    }
    CUDA(cudaMalloc(&matrix.memory, all.size() * sizeof(T) + 1));
    CUDA(cudaMemcpy(matrix.memory, all.data(), all.size() * sizeof(T), cudaMemcpyHostToDevice));
    matrix.at = matrix.memory + shift;
    return matrix;
}
template <typename T>
static std::vector<T> fetch(const T *from, size_t n) {
    std::vector<T> v(n);
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(v.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}
template <typename T>
static void store(T *to, const std::vector<T> &v) {
    CUDA(cudaMemcpy(to, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
}

static uint64_t bytes_so_far = 1469598103934665603u; // FNV-1a of all results
template <typename T>
static void remember(const std::vector<T> &v) {
    const unsigned char *bytes = (const unsigned char *)v.data();
    for (size_t i = 0; i < v.size() * sizeof(T); i++) bytes_so_far = (bytes_so_far ^ bytes[i]) * 1099511628211u;
}
template <typename T>
static bool same(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

// got [rows][row] against wanted [rows][columns], sums of K products of numbers up to 1: as in test_matmul.c, and where
// they are stored in bf16, half a unit of its last place. What lies between the rows must be NaN still.
template <typename T>
static void compare(const char *what, const std::vector<T> &got, const Numbers &wanted, int columns, int row, int K) {
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
        if (sizeof(T) == 2) off -= (fabs(want) + allowed) / 256;
        if (!(off <= worst)) worst = off;
    }
    CHECK(worst <= allowed, "%s, %zu x %d, K = %d: off by %g, allowed %g", what, got.size() / row, columns, K, worst,
          allowed);
    CHECK(overwritten == 0, "%s, %zu x %d: wrote past the end of its rows", what, got.size() / row, columns);
}

// ---- the checks

// All three products for one shape. plain: aligned, no epilogue but a bias.
template <typename T, typename OUT>
static void check_linear(int R, int C, int OC, bool plain) {
    const int shift = plain ? 0 : below(2) * below(9), y_row = OC + (plain ? 0 : below(2) * below(10));
    const bool relu = !plain && below(2), add = !plain && below(2), gated = !plain && below(2),
               biased = plain || below(2);
    Matrix<T> x = random_matrix<T>(R, C, C, shift), w = random_matrix<T>(OC, C, C, shift);
    Matrix<T> dy = random_matrix<T>(R, OC, y_row, shift), gate = random_matrix<T>(R, C, C, shift);
    Matrix<float> bias = random_matrix<float>(1, OC, OC, shift);
    Matrix<OUT> y = random_matrix<OUT>(R, OC, y_row, shift), dx = random_matrix<OUT>(R, C, C, shift);
    Matrix<float> dw = random_matrix<float>(OC, C, C, shift), dbias = random_matrix<float>(1, OC, OC, shift);
    const float *bias_at = biased ? bias.at : nullptr;
    const T *gate_at = gated ? gate.at : nullptr;
    float *dbias_at = biased ? dbias.at : nullptr;

    Numbers wanted((size_t)R * OC);
    for (int r = 0; r < R; r++)
        for (int o = 0; o < OC; o++) {
            double sum = biased ? bias.values[o] : 0;
            for (int c = 0; c < C; c++) sum += x.values[r * C + c] * w.values[o * C + c];
            wanted[r * OC + o] = relu && sum < 0 ? 0 : sum;
        }
    matmul_forward(y.at, x.at, w.at, bias_at, relu, R, C, OC, nullptr, y_row);
    std::vector<OUT> out = fetch(y.at, (size_t)R * y_row);
    compare("y", out, wanted, OC, y_row, C);
    remember(out);
    matmul_launch<T, OUT, false, true, 128, 128>(y.at, y_row, {x.at, C, w.at, C, R, OC, C},
                                                 {bias_at, relu, nullptr, false}, nullptr);
    CHECK(same(out, fetch(y.at, out.size())), "y, %d x %d x %d: the tile's size changes bytes", R, C, OC);

    wanted = add ? dx.values : Numbers((size_t)R * C);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            for (int o = 0; o < OC; o++) wanted[r * C + c] += dy.values[r * OC + o] * w.values[o * C + c];
            if (gated && !(gate.values[r * C + c] > 0)) wanted[r * C + c] = 0;
        }
    std::vector<OUT> before = fetch(dx.at, (size_t)R * C);
    matmul_backward_input(dx.at, dy.at, w.at, gate_at, add, R, C, OC, nullptr, y_row);
    out = fetch(dx.at, before.size());
    compare("dx", out, wanted, C, C, OC);
    remember(out);
    store(dx.at, before);
    matmul_launch<T, OUT, false, false, 128, 128>(dx.at, C, {dy.at, y_row, w.at, C, R, C, OC},
                                                  {nullptr, false, gate_at, add}, nullptr);
    CHECK(same(out, fetch(dx.at, out.size())), "dx, %d x %d x %d: the tile's size changes bytes", R, C, OC);

    wanted = add ? dw.values : Numbers((size_t)OC * C);
    Numbers wanted_bias = add ? dbias.values : Numbers(OC);
    for (int r = 0; r < R; r++)
        for (int o = 0; o < OC; o++) {
            for (int c = 0; c < C; c++) wanted[o * C + c] += dy.values[r * OC + o] * x.values[r * C + c];
            wanted_bias[o] += dy.values[r * OC + o];
        }
    std::vector<float> dw_before = fetch(dw.at, (size_t)OC * C), dbias_before = fetch(dbias.at, OC), dw_out, dbias_out;
    // As the sizes have it, twice; and in three parts, or as many as there are, with tiles of both sizes
    WeightParts parts = matmul_weight_parts(R, C, OC);
    for (int trial = 0; trial < 4; trial++) {
        if (trial == 2) parts.rows = round_up(divide_up(R, 3), 32), parts.n = divide_up(R, parts.rows);
        const size_t scratch_size = parts.n > 1 ? parts.n * parts.size : 0;
        CHECK(trial > 1 || scratch_size == matmul_scratch_size(R, C, OC), "%zu floats", scratch_size);
        float *scratch = nullptr;
        if (scratch_size) CUDA(cudaMalloc(&scratch, scratch_size * sizeof(float)));
        store(dw.at, dw_before);
        store(dbias.at, dbias_before);
        const Product<T> product = {dy.at, y_row, x.at, C, OC, C, R};
        if (trial < 2) matmul_backward_weight(dw.at, dbias_at, dy.at, x.at, add, R, C, OC, scratch, nullptr, y_row);
        if (trial == 2) matmul_weight_launch<T, 64, 64>(dw.at, dbias_at, product, add, parts, scratch, nullptr);
        if (trial == 3) matmul_weight_launch<T, 128, 128>(dw.at, dbias_at, product, add, parts, scratch, nullptr);
        std::vector<float> dw_now = fetch(dw.at, dw_before.size()), dbias_now = fetch(dbias.at, OC);
        CHECK(trial % 2 == 0 || (same(dw_out, dw_now) && same(dbias_out, dbias_now)),
              "dw, %d x %d x %d, %d parts: %s changes bytes", R, C, OC, parts.n, trial == 1 ? "chance" : "the tile");
        dw_out = dw_now;
        dbias_out = dbias_now;
        compare("dw", dw_out, wanted, C, C, R);
        compare("dbias", dbias_out, biased ? wanted_bias : dbias.values, OC, OC, R);
        remember(dw_out);
        CUDA(cudaFree(scratch));
    }
    for (T *p : {x.memory, w.memory, dy.memory, gate.memory}) CUDA(cudaFree(p));
    for (OUT *p : {y.memory, dx.memory}) CUDA(cudaFree(p));
    for (float *p : {bias.memory, dw.memory, dbias.memory}) CUDA(cudaFree(p));
}

static void check_linear(int precision, int R, int C, int OC, bool plain = false) {
    if (precision == 0) check_linear<float, float>(R, C, OC, plain);
    if (precision == 1) check_linear<bf16, float>(R, C, OC, plain);
    if (precision == 2) check_linear<bf16, bf16>(R, C, OC, plain);
}

// Tiles that the three products do not use, against those that they do
template <typename T, bool B_T>
static void check_tiles() {
    const int M = 70, N = 300, K = 77;
    Matrix<T> a = random_matrix<T>(M, K, 80, 0), b = random_matrix<T>(K, N, N, 0);
    Matrix<float> out = random_matrix<float>(M, N, N, 0);
    const Product<T> product = {a.at, 80, b.at, B_T ? K : N, M, N, K};
    std::vector<float> first;
    for (int tile = 0; tile < 5; tile++) {
        CUDA(cudaMemset(out.at, 0xff, (size_t)M * N * sizeof(float)));
        if (tile == 0) matmul<T, float, false, B_T>(out.at, N, product, {}, nullptr);
        if (tile == 1) matmul_launch<T, float, false, B_T, 16, 256>(out.at, N, product, {}, nullptr);
        if (tile == 2) matmul_launch<T, float, false, B_T, 32, 64>(out.at, N, product, {}, nullptr);
        if (tile == 3) matmul_launch<T, float, false, B_T, 32, 512>(out.at, N, product, {}, nullptr);
        if (tile == 4) matmul_launch<T, float, false, B_T, 128, 64>(out.at, N, product, {}, nullptr);
        std::vector<float> now = fetch(out.at, (size_t)M * N);
        CHECK(tile == 0 || same(first, now), "tile %d changes bytes", tile);
        first = now;
    }
    CHECK(!isnan(first[0]) && !isnan(first[M * N - 1]), "nothing written");
    remember(first);
    for (T *p : {a.memory, b.memory}) CUDA(cudaFree(p));
    CUDA(cudaFree(out.memory));
}

// NaN must come through a ReLU, so that a run that went wrong is noticed; no rows give no gradient; a long K is cut.
template <typename T>
static void check_special() {
    Matrix<T> x = random_matrix<T>(1, 1, 1, 0), padded = random_matrix<T>(1, 0, 1, 0);
    Matrix<float> y = random_matrix<float>(1, 1, 1, 0), bias = random_matrix<float>(1, 1, 1, 0);
    matmul_forward(y.at, padded.at, x.at, nullptr, true, 1, 1, 1, nullptr);
    CHECK(isnan(fetch(y.at, 1)[0]), "a ReLU turned NaN into %g", (double)fetch(y.at, 1)[0]);
    matmul_forward(y.at, x.at, x.at, nullptr, true, 0, 1, 1, nullptr);
    CHECK(isnan(fetch(y.at, 1)[0]), "no rows, but something was written");
    matmul_backward_weight(y.at, bias.at, x.at, x.at, true, 0, 1, 1, nullptr, nullptr);
    CHECK(isnan(fetch(y.at, 1)[0]), "no rows, += changed the gradient");
    matmul_backward_weight(y.at, bias.at, x.at, x.at, false, 0, 1, 1, nullptr, nullptr);
    CHECK(fetch(y.at, 1)[0] == 0 && fetch(bias.at, 1)[0] == 0, "no rows, but a gradient");
    CUDA(cudaFree(x.memory));
    CUDA(cudaFree(padded.memory));
    CUDA(cudaFree(y.memory));
    CUDA(cudaFree(bias.memory));
}

static void check_parts() {
    for (int trial = 0; trial < 2000; trial++) {
        const int R = 1 + below(trial % 2 ? 200000 : 3000), C = 1 + below(800), OC = 1 + below(800);
        const WeightParts parts = matmul_weight_parts(R, C, OC);
        const bool covered = (int64_t)parts.n * parts.rows >= R && (int64_t)(parts.n - 1) * parts.rows < R;
        CHECK(covered && parts.n < 65536, "%d rows in %d parts of %d", R, parts.n, parts.rows);
        CHECK(parts.n == 1 || parts.rows % 32 == 0, "parts of %d rows", parts.rows);
    }
    const WeightParts qkv = matmul_weight_parts(2048, 256, 768), many = matmul_weight_parts(131072, 256, 768);
    CHECK(!qkv.large && qkv.n == 3 && many.large && many.n > 16, "%d parts, %d parts", qkv.n, many.n);
}

// A graph of a forward and a backward, launched twice
static void check_graph() {
    const int R = 300, C = 24, OC = 40;
    Matrix<float> x = random_matrix<float>(R, C, C, 0), w = random_matrix<float>(OC, C, C, 0);
    Matrix<float> y = random_matrix<float>(R, OC, OC, 0), dw = random_matrix<float>(OC, C, C, 0);
    const int scratch_size = (int)matmul_scratch_size(R, C, OC);
    Matrix<float> scratch = random_matrix<float>(1, scratch_size, scratch_size, 0);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const Product<float> product = {x.at, C, w.at, C, R, OC, C};
    matmul_launch<float, float, false, true, 128, 128>(y.at, OC, product, {nullptr, true, nullptr, false}, stream);
    matmul_backward_weight<float>(dw.at, nullptr, y.at, x.at, false, R, C, OC, scratch.at, stream);
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

template <typename T>
static void check_fused(int R, int K, int C) {
    typedef Tile<T, false, true, 16, 256> S;
    Matrix<T> x = random_matrix<T>(R, K, K, 0), w = random_matrix<T>(C, K, K, 0), y = random_matrix<T>(R, C, C, 0);
    Matrix<float> bias = random_matrix<float>(1, C, C, 0), residual = random_matrix<float>(R, C, C, 0);
    Numbers wanted((size_t)R * C);
    for (int r = 0; r < R; r++) {
        double *row = &wanted[(size_t)r * C], mean = 0, variance = 0;
        for (int c = 0; c < C; c++) {
            row[c] = bias.values[c] + residual.values[r * C + c];
            for (int k = 0; k < K; k++) row[c] += x.values[r * K + k] * w.values[c * K + k];
            mean += row[c] / C;
        }
        for (int c = 0; c < C; c++) variance += (row[c] - mean) * (row[c] - mean) / C;
        for (int c = 0; c < C; c++) row[c] = (row[c] - mean) / sqrt(variance + 1e-5);
    }
    matmul_prepare(linear_residual_layernorm<T>, S::BYTES_WITH_ROWS);
    const int blocks = divide_up(R, S::BM), bytes = S::BYTES_WITH_ROWS;
    const float *b = bias.at, *r = residual.at;
    linear_residual_layernorm<T><<<blocks, S::THREADS, bytes>>>(y.at, x.at, w.at, b, r, R, K, C);
    std::vector<T> out = fetch(y.at, (size_t)R * C);
    compare("LayerNorm", out, wanted, C, C, K + C);
    remember(out);
    for (T *p : {x.memory, w.memory, y.memory}) CUDA(cudaFree(p));
    for (float *p : {bias.memory, residual.memory}) CUDA(cudaFree(p));
}

int main(void) {
    cudaDeviceProp device = {};
    CUDA(cudaGetDeviceProperties(&device, 0));
    const int precisions = device.major >= 8 ? 3 : 1; // bf16 wants sm_80
    for (int precision = 0; precision < precisions; precision++) {
        check_linear(precision, 1, 1, 1);
        check_linear(precision, 130, 15, 3);
        for (int i = 0; i < 3; i++) check_linear(precision, 3, 96, 153);
        check_linear(precision, 128, 64, 136);
        for (int trial = 0; trial < 7; trial++)
            check_linear(precision, 1 + below(trial % 3 ? 60 : 200), 1 + below(80), 1 + below(trial % 4 ? 40 : 150));
    }
    check_linear(precisions - 1, 128, 256, 768, true);
    check_tiles<float, true>();
    check_tiles<float, false>();
    check_special<float>();
    check_fused<float>(17, 15, 15);
    check_fused<float>(35, 40, 256);
    if (precisions == 3) {
        check_tiles<bf16, true>();
        check_tiles<bf16, false>();
        check_special<bf16>();
        check_fused<bf16>(17, 15, 153);
        check_fused<bf16>(35, 64, 256);
    }
    check_parts();
    check_graph();
    printf("bytes of all results: %016llx\n", (unsigned long long)bytes_so_far);
    return check_report("matmul_gpu");
}
