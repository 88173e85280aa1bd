// What the rungs share: sizes from the command line, random numbers on the device, the plain models' results, the
// comparison with these, and, where there is a GPU, the time.
//
//   RUNG [SIZE...]     a rung's main() says which sizes; a missing one is that of the emulator, or of the published
//                      model on a GPU. Exit status 0: the results are right; 1: they are not, and one of them is shown
//
// A rung is one kernel, or the few that take turns with it, and a function run() that launches them. ladder_linear()
// and its like make the inputs, call run() once, compare, and print a line for ladder.sh.
#ifndef LADDER_CUH
#define LADDER_CUH

#include "base/philox.h"
#include "cuda/check.cuh"
#include "ladder/stages.h"
#include <algorithm>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <vector>

// ---- arrays

static inline double ladder_number(float x) { return x; }
static inline double ladder_number(__nv_bfloat16 x) { return __bfloat162float(x); }
static inline double ladder_number(__half x) { return __half2float(x); }
static inline void ladder_set(float *to, double x) { *to = (float)x; }
static inline void ladder_set(__nv_bfloat16 *to, double x) { *to = __float2bfloat16((float)x); }
static inline void ladder_set(__half *to, double x) { *to = __float2half_rn((float)x); }
static inline void ladder_set(uint8_t *to, double x) { *to = (uint8_t)x; }

// An array on the device. An input holds random numbers from low to high, and `values` are those that the device has,
// after rounding to Number. An output is all NaN.
template <typename Number>
struct Array {
    Number *device;
    std::vector<double> values;
    explicit Array(size_t n) : values(n) {
        cuda_check(cudaMalloc(&device, bytes()));
        cuda_check(cudaMemset(device, 0xff, bytes()));
    }
    Array(size_t n, double low, double high) : Array(n) {
        static uint64_t state = 1;
        for (double &x : values) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            x = low + (high - low) * (double)(state >> 11) / 9007199254740992.0;
        }
        upload();
    }
    Array(const Array &) = delete;
    ~Array() { cudaFree(device); }
    size_t bytes() const { return values.size() * sizeof(Number); }
    void upload() { // values, each rounded
        std::vector<Number> rounded(values.size());
        for (size_t i = 0; i < values.size(); i++) {
            ladder_set(&rounded[i], values[i]);
            values[i] = ladder_number(rounded[i]);
        }
        cuda_check(cudaMemcpy(device, rounded.data(), bytes(), cudaMemcpyHostToDevice));
    }
    void fetch() {
        std::vector<Number> fetched(values.size());
        cuda_check(cudaMemcpy((void *)fetched.data(), device, bytes(), cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < values.size(); i++) values[i] = ladder_number(fetched[i]);
    }
};

// ---- sizes, comparison, time

// The size number i of the command line, a multiple of `of`.
static inline int ladder_size(int argc, char **argv, int i, int emulated, int published, int of) {
#ifdef CUDA_EMU
    const int size = argc > i ? atoi(argv[i]) : emulated;
    (void)published;
#else
    const int size = argc > i ? atoi(argv[i]) : published;
    (void)emulated;
#endif
    if (size > 0 && size % of == 0) return size;
    fprintf(stderr, "%s: size %d must be a multiple of %d\n", argv[0], i, of);
    exit(2);
}

static double ladder_used; // the largest part of a tolerance that an error takes

// How far `got` may be from `want`: `allowed`, and half a unit of the last place of the type that it is stored in.
template <typename Number>
static void ladder_compare(const char *what, Array<Number> &got, const std::vector<double> &want, double allowed) {
    const double half_unit = sizeof(Number) == 4 ? 0 : 1.0 / 256; // of bf16
    size_t worst = 0;
    double used = 0;
    got.fetch();
    for (size_t i = 0; i < want.size(); i++) {
        const double error = fabs(got.values[i] - want[i]) / (allowed + half_unit * (fabs(want[i]) + allowed));
        if (error <= used) continue; // NaN goes on
        used = error;
        worst = i;
        if (!(used <= 1)) break;
    }
    if (!(used <= 1)) {
        printf("FAIL %s[%zu] is %g, should be %g, give or take %g\n", what, worst, got.values[worst], want[worst],
               allowed + half_unit * (fabs(want[worst]) + allowed));
        exit(1);
    }
    ladder_used = fmax(ladder_used, used);
}

// The microseconds of a run, one of a hundred; 0 in the emulator, which knows no time.
template <typename Run>
static double ladder_time(Run run, cudaStream_t stream) {
#ifdef CUDA_EMU
    (void)run, (void)stream;
    return 0;
#else
    enum { RUNS = 100 };
    float milliseconds = 0;
    cudaEvent_t begin, end;
    cuda_check(cudaEventCreate(&begin));
    cuda_check(cudaEventCreate(&end));
    for (int i = 0; i < 5; i++) run(stream);
    cuda_check(cudaEventRecord(begin, stream));
    for (int i = 0; i < RUNS; i++) run(stream);
    cuda_check(cudaEventRecord(end, stream));
    cuda_check(cudaEventSynchronize(end));
    cuda_check(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds * 1000 / RUNS;
#endif
}

// Runs, lets compare() compare, and reports: the part of the tolerance that was used, the bytes of all inputs and of
// all outputs, each once, which are the least that can be loaded and stored, and the time.
template <typename Run, typename Compare>
static int ladder_run(Run run, Compare compare, size_t inputs, size_t outputs) {
    cudaStream_t stream;
    cuda_check(cudaStreamCreate(&stream));
    run(stream);
    cuda_check(cudaStreamSynchronize(stream));
    compare();
    printf("right: %.3f of the tolerance, inputs %zu bytes, outputs %zu bytes, %.1f us\n", ladder_used, inputs, outputs,
           ladder_time(run, stream));
    return 0;
}

// ---- the ladders

// y = x w^T + b. run(y, x, w, b, R, C, OC, stream); x [R,C], w [OC,C], y [R,OC] are Operands, b [OC] floats. A sum of
// K products in float is off by some sqrt(K) times the rounding of a sum, which is 6e-8 sqrt(K) at most; test_matmul.c
// allows the same: 1.2e-7 (K + 2) sqrt(K + 2).
template <typename Operand, typename Run>
static int ladder_linear(int argc, char **argv, Run run) {
    const int R = ladder_size(argc, argv, 1, 64, 2048, 64), C = ladder_size(argc, argv, 2, 256, 256, 32);
    const int OC = ladder_size(argc, argv, 3, 768, 768, 64);
    Array<Operand> x((size_t)R * C, -1, 1), w((size_t)OC * C, -1, 1), y((size_t)R * OC);
    Array<float> b((size_t)OC, -1, 1);
    return ladder_run([&](cudaStream_t stream) { run(y.device, x.device, w.device, b.device, R, C, OC, stream); },
                      [&] {
                          std::vector<double> want((size_t)R * OC);
                          stage_linear(want.data(), x.values.data(), w.values.data(), b.values.data(), R, C, OC);
                          ladder_compare("y", y, want, 1.2e-7 * (C + 2) * sqrt(C + 2.0));
                      },
                      x.bytes() + w.bytes() + b.bytes(), y.bytes());
}

// The recurrence of an LSTM layer over T positions of 8 windows. run(a, T, H, stream), a Recurrence. Rounding h to bf16
// makes it off by 2^-9 of itself at most. W_hh, whose weights are up to 1 / sqrt(H), and the gates pass an error on
// with less than half its size. So along T all of them add up to twice the first at most, 2^-8.
constexpr int WINDOWS = 8, TOKENS = 153;

struct Recurrence {            // on the device; a row is t * WINDOWS + b
    __nv_bfloat16 *h;          // [T*8,H]
    float *c, *gates;          // [T*8,H], [T*8,H,4] i, f, g, o: kept for the backward
    const float *table;        // [153,4H] what the input says to the gates
    const uint8_t *token;      // [T*8]
    const __nv_bfloat16 *w_hh; // [4H,H]
};

template <typename Run>
static int ladder_recurrence(int argc, char **argv, Run run) {
    const int T = ladder_size(argc, argv, 1, 16, 256, 1), H = ladder_size(argc, argv, 2, 512, 512, 32);
    const size_t R = (size_t)T * WINDOWS;
    Array<__nv_bfloat16> h(R * H), w_hh((size_t)4 * H * H, -1 / sqrt(H), 1 / sqrt(H));
    Array<float> c(R * H), gates(R * 4 * H), table((size_t)TOKENS * 4 * H, -1, 1);
    Array<uint8_t> token(R, 0, TOKENS);
    const Recurrence arrays = {h.device, c.device, gates.device, table.device, token.device, w_hh.device};
    size_t known = 0; // tokens that occur, whose rows of the table are read
    for (int v = 0; v < TOKENS; v++) known += std::count(token.values.begin(), token.values.end(), v) > 0;
    return ladder_run([&](cudaStream_t stream) { run(arrays, T, H, stream); },
                      [&] {
                          std::vector<double> want_h(R * H), want_c(R * H);
                          stage_recurrence(want_h.data(), want_c.data(), table.values.data(), token.values.data(),
                                           w_hh.values.data(), WINDOWS, T, H);
                          ladder_compare("h", h, want_h, 1.0 / 256);
                          ladder_compare("c", c, want_c, 1.0 / 256);
                      },
                      w_hh.bytes() + token.bytes() + known * 4 * H * sizeof(float),
                      h.bytes() + c.bytes() + gates.bytes());
}

// y = LN(x + dropout(branch)) w + b and its backward, over R rows of WIDTH, windows of 32 rows. run(a, R, stream), a
// Norm. In the models a product makes the branch, and another one dy. Rungs with PRODUCTS make them themselves, of
// operands in bf16; the others find them in memory. A row's sums are off by some 6e-8 sqrt(WIDTH) of their size, and a
// handful of roundings follow on numbers up to 4: 1e-6 sqrt(WIDTH) is allowed, and for sums over rows sqrt(R) of these.
constexpr int WIDTH = 256, WINDOW = 32;

struct Norm {                                // on the device; [R,WIDTH] but where it says otherwise
    __nv_bfloat16 *y, *dbranch;              // operands of the next products
    float *normalized, *rstd, *dx, *dw, *db; // rstd [R], dw, db [WIDTH]; the first two are kept for the backward
    const float *x, *branch, *dy, *w, *b;    // w, b [WIDTH]
    const __nv_bfloat16 *inp, *inp_w;        // branch = inp inp_w^T, inp_w [WIDTH,WIDTH]
    const __nv_bfloat16 *dout, *dout_w;      // dy = dout dout_w, dout_w [WIDTH,WIDTH]
    PhiloxKey key;                           // of dropout
};

// The factors, 0 or 2, of channels 4g to 4g+3 of row r, which is position r % WINDOW of a window: a call of Philox.
__device__ inline float4 mask_four(PhiloxKey key, int r, int g) {
    const Philox4 words = philox(key, (uint32_t)g, (uint32_t)(r % WINDOW), (uint32_t)(r / WINDOW), STAGE_STEP);
    const uint32_t half = 0x80000000u;
    return make_float4(words.x[0] < half ? 0 : 2, words.x[1] < half ? 0 : 2, words.x[2] < half ? 0 : 2,
                       words.x[3] < half ? 0 : 2);
}

template <bool PRODUCTS, typename Run>
static int ladder_layernorm(int argc, char **argv, Run run) {
    typedef __nv_bfloat16 bf16;
    const int R = ladder_size(argc, argv, 1, 64, 2048, WINDOW), C = WIDTH;
    const size_t n = (size_t)R * C;
    Array<bf16> y(n), dbranch(n), inp(n, -1, 1), inp_w((size_t)C * C, -.1, .1), dout(n, -1, 1),
        dout_w((size_t)C * C, -.1, .1);
    Array<float> normalized(n), rstd((size_t)R), dx(n), dw((size_t)C), db((size_t)C), x(n, -1, 1), branch(n), dy(n);
    Array<float> w((size_t)C, -1, 1), b((size_t)C, -1, 1);
    std::vector<double> zeros((size_t)C), transposed((size_t)C * C);
    for (int i = 0; i < C * C; i++) transposed[i % C * C + i / C] = dout_w.values[i];
    stage_linear(branch.values.data(), inp.values.data(), inp_w.values.data(), zeros.data(), R, C, C);
    stage_linear(dy.values.data(), dout.values.data(), transposed.data(), zeros.data(), R, C, C);
    branch.upload();
    dy.upload();
    const Norm arrays = {y.device,
                         dbranch.device,
                         normalized.device,
                         rstd.device,
                         dx.device,
                         dw.device,
                         db.device,
                         x.device,
                         branch.device,
                         dy.device,
                         w.device,
                         b.device,
                         inp.device,
                         inp_w.device,
                         dout.device,
                         dout_w.device,
                         philox_key(STAGE_SEED, PHILOX_DROPOUT, STAGE_SITE)};
    auto compare = [&] {
        std::vector<double> want[5] = {zeros, zeros, std::vector<double>(n), std::vector<double>(n),
                                       std::vector<double>(n)};
        const StageNorm stage = {want[2].data(),
                                 want[3].data(),
                                 want[4].data(),
                                 want[0].data(),
                                 want[1].data(),
                                 x.values.data(),
                                 branch.values.data(),
                                 w.values.data(),
                                 b.values.data(),
                                 dy.values.data(),
                                 R,
                                 C,
                                 WINDOW};
        const double allowed = 1e-6 * sqrt(C);
        stage_layernorm(&stage);
        ladder_compare("y", y, want[2], allowed);
        ladder_compare("dx", dx, want[3], allowed);
        ladder_compare("dbranch", dbranch, want[4], allowed);
        ladder_compare("dw", dw, want[0], allowed * sqrt(R));
        ladder_compare("db", db, want[1], allowed * sqrt(R));
    };
    return ladder_run(
        [&](cudaStream_t stream) { run(arrays, R, stream); }, compare,
        x.bytes() + w.bytes() + b.bytes() +
            (PRODUCTS ? inp.bytes() + inp_w.bytes() + dout.bytes() + dout_w.bytes() : branch.bytes() + dy.bytes()),
        y.bytes() + dbranch.bytes() + normalized.bytes() + rstd.bytes() + dx.bytes() + dw.bytes() + db.bytes());
}

// Attention over a window of T positions with NH heads of HS channels, DISTANCES relative vectors and the scores of the
// layer below. On a GPU there are 128 heads, as many as 16 of 8 windows. run(a, T, NH, stream), a Heads. Score (h, t,
// j), j <= t, lies at place(h, t, j), of `room` places in all. Rungs in float are allowed 1e-5: some ten roundings of
// scores up to 4, and of sums over T. In bf16 the relative vectors are rounded, by 2^-9 of numbers up to 1, then scores
// to fp16, by up to 2^-10, which moves each weight of a softmax by as much of itself; weights are rounded to bf16, by
// 2^-9 of themselves. 2^-8 is allowed, of values up to 1.
constexpr int HS = 16, DISTANCES = 240;

template <typename Operand, typename Score>
struct Heads {     // on the device
    Operand *out;  // [T,C], C = NH * HS, heads side by side
    Score *scores; // before softmax: kept for the layer above and for the backward
    const Score *below;
    const Operand *qkv; // [T,3C]
    const float *rel;   // [DISTANCES,HS]; row DISTANCES - 1 is distance 0
};

template <typename Operand, typename Score, typename Place, typename Run>
static int ladder_attention(int argc, char **argv, Place place, size_t (*room)(int T, int NH), Run run) {
    const int T = ladder_size(argc, argv, 1, 128, 256, 32), NH = ladder_size(argc, argv, 2, 16, 128, 1), C = NH * HS;
    Array<Operand> qkv((size_t)T * 3 * C, -1, 1), out((size_t)T * C);
    Array<Score> below(room(T, NH), -1, 1), scores(room(T, NH));
    Array<float> rel((size_t)DISTANCES * HS, -1, 1);
    const Heads<Operand, Score> arrays = {out.device, scores.device, below.device, qkv.device, rel.device};
    auto compare = [&] {
        std::vector<double> want((size_t)T * C), want_scores((size_t)NH * T * T), below_tj((size_t)NH * T * T);
        Array<float> got((size_t)NH * T * T); // the scores in the order of the plain model
        auto each = [&](auto f) {
            for (int h = 0; h < NH; h++) {
                for (int t = 0; t < T; t++) {
                    for (int j = 0; j <= t; j++) f(((size_t)h * T + t) * T + j, place(h, t, j, T));
                }
            }
        };
        each([&](size_t tj, size_t at) { below_tj[tj] = below.values[at]; });
        stage_attention(want.data(), want_scores.data(), below_tj.data(), qkv.values.data(), rel.values.data(), T, C,
                        NH, DISTANCES);
        scores.fetch();
        std::fill(got.values.begin(), got.values.end(), 0);
        each([&](size_t tj, size_t at) { got.values[tj] = scores.values[at]; });
        got.upload();
        const double allowed = sizeof(Operand) == 4 ? 1e-5 : 1.0 / 256;
        ladder_compare("scores", got, want_scores, allowed);
        ladder_compare("out", out, want, allowed);
    };
    const size_t triangle = (size_t)NH * T * (T + 1) / 2 * sizeof(Score);
    return ladder_run([&](cudaStream_t stream) { run(arrays, T, NH, stream); }, compare,
                      qkv.bytes() + rel.bytes() / DISTANCES * (size_t)(T < DISTANCES ? T : DISTANCES) + triangle,
                      out.bytes() + triangle);
}

// The scores of whole rows, [NH,T,T].
static inline size_t square_place(int h, int t, int j, int T) { return ((size_t)h * T + t) * T + j; }
static inline size_t square_room(int T, int NH) { return (size_t)NH * T * T; }

#endif
