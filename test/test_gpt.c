// The float Transformer against a second writing of it: DESIGN's formulas as plain loops in double, nothing shared but
// the parameters and Philox; and all else that a model is checked by (model.h).
#define TESTING
#include "dev/train_gpt_music.c"

#include "model.h"

// ---- the plain model

static const double *tensor(const ModelTest *m, const double *params, const char *format, int l) {
    char name[64];
    snprintf(name, sizeof name, format, l);
    return params + model_tensor(&m->layout, name)->offset;
}

static void plain_linear(double *y, const double *x, const double *w, const double *b, int R, int C, int OC) {
    for (int r = 0; r < R; r++) {
        for (int o = 0; o < OC; o++) {
            double sum = b[o];
            for (int c = 0; c < C; c++) sum += x[r * C + c] * w[o * C + c];
            y[r * OC + o] = sum;
        }
    }
}

static void plain_residual_layernorm(const ModelTest *m, int64_t step, double *x, const double *branch, const double *w,
                                     const double *b, int site, int R, int T, int C) {
    const ModelConfig *config = &m->config;
    PhiloxKey key = philox_key(config->seed, PHILOX_DROPOUT, (uint32_t)site);
    for (int r = 0; r < R; r++) {
        double mean = 0, variance = 0;
        for (int c = 0; c < C; c++) {
            uint32_t word = philox(key, (uint32_t)c / 4, (uint32_t)(r % T), (uint32_t)(r / T), (uint32_t)step).x[c % 4];
            bool kept = word >= config->dropout * 4294967296.0;
            double scale = 1 / (1 - config->dropout);
            x[r * C + c] += kept ? branch[r * C + c] * scale : 0;
            mean += x[r * C + c] / C;
        }
        for (int c = 0; c < C; c++) variance += (x[r * C + c] - mean) * (x[r * C + c] - mean) / C;
        for (int c = 0; c < C; c++) x[r * C + c] = (x[r * C + c] - mean) / sqrt(variance + 1e-5) * w[c] + b[c];
    }
}

static double plain_loss(const ModelTest *m, const double *params, int64_t step, double *logits) {
    const int *sizes = m->config.sizes, B = m->config.B, T = m->config.T, R = B * T;
    const int L = sizes[GPT_LAYERS], C = sizes[GPT_WIDTH], H = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN],
              D = sizes[GPT_REL];
    const int S = C / H;
    double *x = calloc((size_t)R * C, 8), *qkv = calloc((size_t)R * 3 * C, 8), *attn = calloc((size_t)R * C, 8);
    double *branch = calloc((size_t)R * C, 8), *fc1 = calloc((size_t)R * F, 8), *a = calloc((size_t)T, 8);
    double *scores = calloc((size_t)B * H * T * T, 8); // of the layer below
    const double *emb = tensor(m, params, "emb.weight", 0);
    for (int i = 0; i < R * C; i++) x[i] = emb[m->tokens[i / C] * C + i % C];
    for (int l = 0; l < L; l++) {
        plain_linear(qkv, x, tensor(m, params, "layers.%d.attn.qkv.weight", l),
                     tensor(m, params, "layers.%d.attn.qkv.bias", l), R, C, 3 * C);
        const double *rel = tensor(m, params, "layers.%d.attn.rel", l);
        for (int b = 0; b < B; b++) {
            for (int h = 0; h < H; h++) {
                for (int t = 0; t < T; t++) {
                    const double *q = qkv + (b * T + t) * 3 * C + h * S;
                    double *score = scores + ((size_t)(b * H + h) * T + t) * T, max = -INFINITY, sum = 0;
                    for (int j = 0; j <= t; j++) {
                        const double *k = qkv + (b * T + j) * 3 * C + C + h * S;
                        const double *r = rel + (t - j < D ? D - 1 - (t - j) : 0) * S;
                        double dot = 0;
                        for (int d = 0; d < S; d++) dot += q[d] * k[d] + q[d] * r[d];
                        score[j] += dot / sqrt(S);
                        max = fmax(max, score[j]);
                    }
                    for (int j = 0; j <= t; j++) sum += a[j] = exp(score[j] - max);
                    for (int d = 0; d < S; d++) {
                        double out = 0;
                        for (int j = 0; j <= t; j++) out += a[j] / sum * qkv[(b * T + j) * 3 * C + 2 * C + h * S + d];
                        attn[(b * T + t) * C + h * S + d] = out;
                    }
                }
            }
        }
        plain_linear(branch, attn, tensor(m, params, "layers.%d.attn.out.weight", l),
                     tensor(m, params, "layers.%d.attn.out.bias", l), R, C, C);
        plain_residual_layernorm(m, step, x, branch, tensor(m, params, "layers.%d.ln1.weight", l),
                                 tensor(m, params, "layers.%d.ln1.bias", l), 2 * l, R, T, C);
        plain_linear(fc1, x, tensor(m, params, "layers.%d.fc1.weight", l), tensor(m, params, "layers.%d.fc1.bias", l),
                     R, C, F);
        for (int i = 0; i < R * F; i++) fc1[i] = fmax(fc1[i], 0);
        plain_linear(branch, fc1, tensor(m, params, "layers.%d.fc2.weight", l),
                     tensor(m, params, "layers.%d.fc2.bias", l), R, F, C);
        plain_residual_layernorm(m, step, x, branch, tensor(m, params, "layers.%d.ln2.weight", l),
                                 tensor(m, params, "layers.%d.ln2.bias", l), 2 * l + 1, R, T, C);
    }
    plain_linear(logits, x, tensor(m, params, "head.weight", 0), tensor(m, params, "head.bias", 0), R, C, V);
    double loss = 0;
    for (int r = 0; r < R; r++) {
        double sum = 0;
        for (int v = 0; v < V; v++) sum += exp(logits[r * V + v]);
        loss += (log(sum) - logits[r * V + m->targets[r]]) / R;
    }
    free(x), free(qkv), free(attn), free(branch), free(fc1), free(a), free(scores);
    return loss;
}

int main(void) {
    ParamLayout layout = {0};
    const int paper[] = {8, 256, 16, 512, 240};
    gpt_layout(paper, &layout);
    CHECK(layout.count == 4326041, "%lld parameters instead of 4,326,041", (long long)layout.count);
    layout_free(&layout);
    ModelConfig config = {{8, 256, 16, 512, 240}, 8, 256, 0.5, 1, "fp32", 1};
    CHECK(fabs(gpt_step_flops(&config) / 1e9 - 61.7) < 0.05, "%.2f GFLOP a step", gpt_step_flops(&config) / 1e9);
    const ModelConfig cases[] = {{{2, 256, 16, 512, 240}, 1, 20, 0.5, 1, "fp32", 1},  // the paper's widths
                                 {{2, 24, 2, 20, 30}, 1, 50, 0.5, 2, "fp32", 1},      //
                                 {{3, 15, 5, 11, 4}, 3, 35, 0.3, 3, "fp32", 1},       // odd everything
                                 {{1, 64, 2, 40, 1}, 2, 17, 0, 4, "fp32", 1},         // one distance, wide heads
                                 {{2, 256, 16, 512, 240}, 1, 20, 0.5, 1, "bf16", 1},  //
                                 {{3, 15, 5, 11, 4}, 3, 35, 0.3, 3, "bf16", 1},       //
                                 {{1, 18, 3, 10, 1050}, 1, 1100, 0.5, 5, "fp32", 1}}; // a long window
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_plain(&gpt_spec, cases[i], plain_loss);
    check_adamax(&gpt_spec, cases[2]);
    const char *precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        check_learning(&gpt_spec, (ModelConfig){{2, 32, 4, 48, 16}, 4, 40, 0.1, 5, precisions[i], 1}, 160, 3e-3,
                       "layers.0.ln2.bias", "act.layers.1");
    }
    return check_report("gpt");
}
