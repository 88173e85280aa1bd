// The float LSTM against a second writing of it: DESIGN's formulas as plain loops in double, nothing shared but the
// parameters and Philox; and all else that a model is checked by (model.h).
#define TESTING
#include "dev/train_lstm_music.c"

#include "model.h"

// ---- the plain model

static const double *tensor(const ModelTest *m, const double *params, const char *format, int l) {
    char name[64];
    snprintf(name, sizeof name, format, l);
    return params + model_tensor(&m->layout, name)->offset;
}

static double plain_dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double plain_sigmoid(double x) { return 1 / (1 + exp(-x)); }

// x [C] of position (b, t) through the dropout of a site
static void plain_dropout(const ModelTest *m, double *x, int C, int site, int b, int t, int64_t step) {
    PhiloxKey key = philox_key(m->config.seed, PHILOX_DROPOUT, (uint32_t)site);
    for (int c = 0; c < C; c++) {
        uint32_t word = philox(key, (uint32_t)c / 4, (uint32_t)t, (uint32_t)b, (uint32_t)step).x[c % 4];
        x[c] = word >= m->config.dropout * 4294967296.0 ? x[c] / (1 - m->config.dropout) : 0;
    }
}

// y = relu(LN(w x + b)), x [C], y [OC]; the names are those of the head's modules
static void plain_head(const ModelTest *m, const double *params, int module, double *y, const double *x, int C,
                       int OC) {
    const double *w = tensor(m, params, "head.%d.weight", module), *b = tensor(m, params, "head.%d.bias", module);
    const double *ln_w = tensor(m, params, "head.%d.weight", module + 1);
    const double *ln_b = tensor(m, params, "head.%d.bias", module + 1);
    double mean = 0, variance = 0;
    for (int o = 0; o < OC; o++) y[o] = b[o] + plain_dot(w + (size_t)o * C, x, C);
    for (int o = 0; o < OC; o++) mean += y[o] / OC;
    for (int o = 0; o < OC; o++) variance += (y[o] - mean) * (y[o] - mean) / OC;
    for (int o = 0; o < OC; o++) y[o] = fmax(0, (y[o] - mean) / sqrt(variance + 1e-5) * ln_w[o] + ln_b[o]);
}

static double plain_loss(const ModelTest *m, const double *params, int64_t step, double *logits) {
    const int B = m->config.B, T = m->config.T, E = m->config.sizes[LSTM_EMBED], H = m->config.sizes[LSTM_WIDTH],
              L = m->config.sizes[LSTM_LAYERS], widest = E > 2 * H ? E : 2 * H;
    double *x = calloc((size_t)widest, 8), *y = calloc((size_t)widest, 8), *gates = calloc((size_t)4 * H, 8);
    double *h = calloc((size_t)L * H, 8), *c = calloc((size_t)L * H, 8), loss = 0;
    for (int b = 0; b < B; b++) {
        memset(h, 0, (size_t)L * H * 8);
        memset(c, 0, (size_t)L * H * 8);
        for (int t = 0; t < T; t++) {
            memcpy(x, tensor(m, params, "emb.weight", 0) + m->tokens[b * T + t] * E, (size_t)E * 8);
            for (int l = 0; l < L; l++) {
                const int I = l ? H : E;
                const double *w_ih = tensor(m, params, "lstm.weight_ih_l%d", l);
                const double *w_hh = tensor(m, params, "lstm.weight_hh_l%d", l);
                const double *b_ih = tensor(m, params, "lstm.bias_ih_l%d", l);
                const double *b_hh = tensor(m, params, "lstm.bias_hh_l%d", l);
                double *h_l = h + l * H, *c_l = c + l * H;
                for (int j = 0; j < 4 * H; j++) {
                    gates[j] = b_ih[j] + b_hh[j] + plain_dot(w_ih + (size_t)j * I, x, I) +
                               plain_dot(w_hh + (size_t)j * H, h_l, H);
                }
                for (int u = 0; u < H; u++) {
                    c_l[u] = plain_sigmoid(gates[H + u]) * c_l[u] + plain_sigmoid(gates[u]) * tanh(gates[2 * H + u]);
                    x[u] = h_l[u] = plain_sigmoid(gates[3 * H + u]) * tanh(c_l[u]);
                }
                plain_dropout(m, x, H, l, b, t, step);
            }
            plain_head(m, params, 1, y, x, H, 2 * H);
            plain_dropout(m, y, 2 * H, L, b, t, step);
            plain_head(m, params, 5, x, y, 2 * H, H);
            plain_dropout(m, x, H, L + 1, b, t, step);
            double *out = logits + (size_t)(b * T + t) * V, sum = 0;
            const double *w = tensor(m, params, "head.9.weight", 0), *bias = tensor(m, params, "head.9.bias", 0);
            for (int v = 0; v < V; v++) out[v] = bias[v] + plain_dot(w + (size_t)v * H, x, H);
            for (int v = 0; v < V; v++) sum += exp(out[v]);
            loss += (log(sum) - out[m->targets[b * T + t]]) / (B * T);
        }
    }
    free(x), free(y), free(gates), free(h), free(c);
    return loss;
}

int main(void) {
    ParamLayout layout = {0};
    const int paper[] = {64, 512, 2};
    lstm_layout(paper, &layout);
    CHECK(layout.count == 4426457, "%lld parameters instead of 4,426,457", (long long)layout.count);
    layout_free(&layout);
    ModelConfig config = {{64, 512, 2}, 8, 256, 0.5, 1, "fp32", 1};
    CHECK(fabs(lstm_step_flops(&config) / 1e9 - 54.1) < 0.05, "%.2f GFLOP a step", lstm_step_flops(&config) / 1e9);
    const ModelConfig cases[] = {
        {{64, 512, 2}, 1, 3, 0.5, 1, "fp32", 1}, // the paper's widths
        {{20, 48, 2}, 8, 20, 0.5, 2, "fp32", 1}, // whole tiles
        {{7, 33, 3}, 9, 11, 0.3, 3, "fp32", 1},  // odd everything
        {{12, 5, 1}, 2, 17, 0, 4, "fp32", 1},    {{64, 512, 2}, 1, 3, 0.5, 1, "bf16", 1},
        {{7, 33, 3}, 9, 11, 0.3, 3, "bf16", 1},  {{1, 1, 1}, 1, 1, 0.5, 6, "fp32", 1},     // the smallest
        {{5, 257, 1}, 3, 9, 0.5, 7, "fp32", 1},                                            // a block of k and one more
        {{5, 257, 1}, 3, 9, 0.5, 7, "bf16", 1},  {{3, 6, 2}, 1, 1100, 0.5, 5, "fp32", 1}}; // a long window
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_plain(&lstm_spec, cases[i], plain_loss);
    check_adamax(&lstm_spec, cases[2]);
    const char *precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        check_learning(&lstm_spec, (ModelConfig){{16, 32, 2}, 4, 40, 0.1, 5, precisions[i], 1}, 400, 5e-3,
                       "head.6.weight", "act.head.7");
    }
    return check_report("lstm");
}
