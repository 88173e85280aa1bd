// The float Transformer against a second writing of it: DESIGN's formulas as plain loops in double, nothing shared but
// the parameters and Philox. Logits, loss, every parameter's gradient along its own direction, three Adamax steps,
// threads, evaluation, and what happens when a number stops being finite.
#define TESTING
#include "../dev/train_gpt_music.c"

#include "check.h"

// ---- the plain model

typedef struct {
    const Gpt *m;
    const double *params; // in the layout's order
    double *logits;       // [B*T, V]
    int64_t step;         // dropout's, < 0: none
} Plain;

static const double *plain_tensor(const Plain *plain, const char *format, int l) {
    char name[64];
    snprintf(name, sizeof name, format, l);
    for (int k = 0; k < plain->m->layout.n; k++) {
        if (!strcmp(plain->m->layout.list[k].name, name)) return plain->params + plain->m->layout.list[k].offset;
    }
    abort();
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

static void plain_residual_layernorm(const Plain *plain, double *x, const double *branch, const double *w,
                                     const double *b, int site, int R, int T, int C) {
    const ModelConfig *config = &plain->m->config;
    PhiloxKey key = philox_key(config->seed, PHILOX_DROPOUT, (uint32_t)site);
    for (int r = 0; r < R; r++) {
        double mean = 0, variance = 0;
        for (int c = 0; c < C; c++) {
            uint32_t word =
                philox(key, (uint32_t)c / 4, (uint32_t)(r % T), (uint32_t)(r / T), (uint32_t)plain->step).x[c % 4];
            bool kept = plain->step < 0 || word >= config->dropout * 4294967296.0;
            double scale = plain->step < 0 ? 1 : 1 / (1 - config->dropout);
            x[r * C + c] += kept ? branch[r * C + c] * scale : 0;
            mean += x[r * C + c] / C;
        }
        for (int c = 0; c < C; c++) variance += (x[r * C + c] - mean) * (x[r * C + c] - mean) / C;
        for (int c = 0; c < C; c++) x[r * C + c] = (x[r * C + c] - mean) / sqrt(variance + 1e-5) * w[c] + b[c];
    }
}

// Fills plain->logits and returns the mean loss.
static double plain_loss(const Plain *plain) {
    const Gpt *m = plain->m;
    const int *sizes = m->config.sizes, B = m->config.B, T = m->config.T, R = B * T;
    const int L = sizes[GPT_LAYERS], C = sizes[GPT_WIDTH], H = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN],
              D = sizes[GPT_REL];
    const int S = C / H;
    double *x = calloc((size_t)R * C, 8), *qkv = calloc((size_t)R * 3 * C, 8), *attn = calloc((size_t)R * C, 8);
    double *branch = calloc((size_t)R * C, 8), *fc1 = calloc((size_t)R * F, 8), *a = calloc((size_t)T, 8);
    double *scores = calloc((size_t)B * H * T * T, 8); // of the layer below
    const double *emb = plain_tensor(plain, "emb.weight", 0);
    for (int i = 0; i < R * C; i++) x[i] = emb[m->tokens[i / C] * C + i % C];
    for (int l = 0; l < L; l++) {
        plain_linear(qkv, x, plain_tensor(plain, "layers.%d.attn.qkv.weight", l),
                     plain_tensor(plain, "layers.%d.attn.qkv.bias", l), R, C, 3 * C);
        const double *rel = plain_tensor(plain, "layers.%d.attn.rel", l);
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
        plain_linear(branch, attn, plain_tensor(plain, "layers.%d.attn.out.weight", l),
                     plain_tensor(plain, "layers.%d.attn.out.bias", l), R, C, C);
        plain_residual_layernorm(plain, x, branch, plain_tensor(plain, "layers.%d.ln1.weight", l),
                                 plain_tensor(plain, "layers.%d.ln1.bias", l), 2 * l, R, T, C);
        plain_linear(fc1, x, plain_tensor(plain, "layers.%d.fc1.weight", l),
                     plain_tensor(plain, "layers.%d.fc1.bias", l), R, C, F);
        for (int i = 0; i < R * F; i++) fc1[i] = fmax(fc1[i], 0);
        plain_linear(branch, fc1, plain_tensor(plain, "layers.%d.fc2.weight", l),
                     plain_tensor(plain, "layers.%d.fc2.bias", l), R, F, C);
        plain_residual_layernorm(plain, x, branch, plain_tensor(plain, "layers.%d.ln2.weight", l),
                                 plain_tensor(plain, "layers.%d.ln2.bias", l), 2 * l + 1, R, T, C);
    }
    plain_linear(plain->logits, x, plain_tensor(plain, "head.weight", 0), plain_tensor(plain, "head.bias", 0), R, C, V);
    double loss = 0;
    for (int r = 0; r < R; r++) {
        double sum = 0;
        for (int v = 0; v < V; v++) sum += exp(plain->logits[r * V + v]);
        loss += (log(sum) - plain->logits[r * V + m->targets[r]]) / R;
    }
    free(x), free(qkv), free(attn), free(branch), free(fc1), free(a), free(scores);
    return loss;
}

// ---- the comparison

static Gpt *new_model(ModelConfig config) {
    char error[ERROR_SIZE];
    Gpt *m = (Gpt *)gpt_create(&config, error);
    CHECK(m != NULL, "%s", error);
    if (!m) exit(check_report("gpt"));
    params_init(&m->layout, config.seed, m->state[STATE_PARAMS]);
    PhiloxKey key = philox_key(config.seed, PHILOX_BENCH, 0);
    for (int64_t i = 0; i < m->layout.size; i++)
        m->state[STATE_PARAMS][i] += (real)(0.1 * philox_normal(key, (uint64_t)i));
    for (int r = 0; r < config.B * config.T; r++) {
        m->tokens[r] = (uint8_t)(philox(key, (uint32_t)r, 1, 0, 0).x[0] % V);
        m->targets[r] = (uint8_t)(philox(key, (uint32_t)r, 2, 0, 0).x[0] % V);
    }
    return m;
}

static void check_against_plain(ModelConfig config) {
    Gpt *m = new_model(config);
    const int R = config.B * config.T, *s = config.sizes;
    double *params = calloc((size_t)m->layout.size, 8), *logits = calloc((size_t)R * V, 8);
    for (int64_t i = 0; i < m->layout.size; i++) params[i] = (double)m->state[STATE_PARAMS][i];
    Plain plain = {m, params, logits, 3};
    gpt_forward(m, config.B, plain.step);
    double loss = gpt_loss(m, R, true), expected = plain_loss(&plain), worst = 0;
    for (int i = 0; i < R * V; i++) worst = fmax(worst, fabs((double)m->logits[i] - logits[i]));
    gpt_backward(m, config.B, plain.step);
    printf("layers %d width %d heads %d hidden %d rel %d, batch %d window %d: logits within %.1e, loss within %.1e\n",
           s[GPT_LAYERS], s[GPT_WIDTH], s[GPT_HEADS], s[GPT_HIDDEN], s[GPT_REL], config.B, config.T, worst,
           fabs(loss - expected));
    CHECK(worst < 1e-4, "logits differ by %g", worst);
    CHECK(fabs(loss - expected) < 2e-6 * expected, "loss %.9g instead of %.9g", loss, expected);
    double largest = 0; // along its own direction, a gradient's derivative is its norm
    for (int pass = 0; pass < 2; pass++) {
        for (int k = 0; k < m->layout.n; k++) {
            const ParamTensor *tensor = &m->layout.list[k];
            const real *g = m->state[STATE_GRADS] + tensor->offset;
            double size = 0;
            for (int64_t i = 0; i < tensor->count; i++) size += (double)g[i] * (double)g[i];
            size = sqrt(size);
            if (pass == 0) {
                largest = fmax(largest, size);
                continue;
            }
            if (size < 1e-3 * largest) continue; // the key bias's
            double slope[2], h = 1e-5;
            for (int side = 0; side < 2; side++) {
                for (int64_t i = 0; i < tensor->count; i++) {
                    params[tensor->offset + i] =
                        (double)m->state[STATE_PARAMS][tensor->offset + i] + (side ? h : -h) * (double)g[i] / size;
                }
                slope[side] = plain_loss(&plain);
            }
            for (int64_t i = 0; i < tensor->count; i++) {
                params[tensor->offset + i] = (double)m->state[STATE_PARAMS][tensor->offset + i];
            }
            double derivative = (slope[1] - slope[0]) / (2 * h);
            CHECK(fabs(derivative / size - 1) < 1e-4, "gradient of %s: norm %.6g, but the loss changes by %.6g",
                  tensor->name, size, derivative);
        }
    }
    free(params), free(logits);
    gpt_destroy(m);
}

static void check_adamax(void) {
    real p[3] = {1, -2, 0.5f}, m[3] = {0}, u[3] = {0};
    double q[3] = {1, -2, 0.5}, m_plain[3] = {0}, u_plain[3] = {0};
    const real gradients[3][3] = {{0.1f, -3, 0}, {-0.2f, 1, 0}, {1e-3f, 0.5f, 1e-9f}};
    for (int t = 1; t <= 3; t++) {
        adamax(p, gradients[t - 1], m, u, 3, 0.01, t);
        for (int i = 0; i < 3; i++) {
            double g = (double)gradients[t - 1][i];
            m_plain[i] = 0.9 * m_plain[i] + 0.1 * g;
            u_plain[i] = fmax(0.999 * u_plain[i], fabs(g) + 1e-8);
            q[i] -= 0.01 / (1 - pow(0.9, t)) * m_plain[i] / u_plain[i];
            CHECK(fabs((double)p[i] - q[i]) < 1e-6, "Adamax step %d: %.8g instead of %.8g", t, (double)p[i], q[i]);
        }
    }
}

static void check_exp(void) {
    double worst = 0;
    for (double x = 0; x > -87; x -= 0.00137) {
        vector e = exp_vector(zero + (real)x);
        worst = fmax(worst, fabs((double)e[LANES - 1] / exp((double)(real)x) - 1));
    }
    CHECK(worst < 3e-7, "exp is off by %g", worst);
    CHECK(exp_vector(zero - INFINITY)[0] == 0, "e^-inf is not 0");
    CHECK(isnan((double)exp_vector(zero + (real)NAN)[0]), "e^NaN is not NaN");
    CHECK(isnan((double)exp_vector(zero + (real)nanf("5"))[0]), "e^NaN is not NaN, whatever its bits");
    CHECK(exp_vector(zero)[0] == 1, "e^0 is not 1");
}

// Trains on a melody that repeats: the loss must fall from ln 153 to almost nothing, to the same bytes with other
// threads.
static void check_learning(void) {
    enum { N = 400 };
    static uint8_t tokens[N];
    const uint8_t phrase[] = {1, 60, 124, 5, 64, 124, 9, 67, 128, 17, 0, 1, 55, 136, 9, 72, 122};
    for (int i = 0; i < N; i++) tokens[i] = phrase[i % (int)sizeof phrase];
    const char *base = getenv("TMPDIR");
    char folder[256], path[300], error[ERROR_SIZE];
    snprintf(folder, sizeof folder, "%.200s/test_gpt.XXXXXX", base && *base ? base : "/tmp");
    CHECK(mkdtemp(folder) != NULL, "no scratch folder");
    snprintf(path, sizeof path, "%s/train.safetensors", folder);
    const int64_t pieces[2] = {0, N};
    Dataset data;
    CHECK(dataset_save(path, tokens, N, pieces, 1, "melody.mid", error) && dataset_open(&data, path, 40, error), "%s",
          error);
    real *weights[2];
    double last[2];
    for (int run = 0; run < 2; run++) {
        int threads = run == 0 ? 1 : 3;
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        Gpt *m = new_model((ModelConfig){{2, 32, 4, 48, 16}, 4, 40, 0.1, 5, "fp32", threads});
        params_init(&m->layout, 5, m->state[STATE_PARAMS]);
        gpt_set_data(m, &data);
        double before = 0;
        for (int64_t step = 0; step < 160; step++) {
            StepPlan plan = {step, step / 50, step % 50, 3e-3};
            gpt_train_step(m, &plan);
            if (step == 0) before = gpt_get_loss(m).sum;
            if (step == 149) gpt_set_loss(m, 0);
        }
        last[run] = gpt_get_loss(m).sum / 10;
        EvalLoss eval = {{0}, {0}};
        int64_t starts[4] = {0, 1, 50, 99};
        gpt_eval_batch(m, &data, starts, 4, &eval);
        gpt_eval_batch(m, &data, starts, 1, &eval);
        double sum = eval.sum[0] + eval.sum[1] + eval.sum[2] + eval.sum[3];
        int64_t count = eval.count[0] + eval.count[1] + eval.count[2] + eval.count[3];
        if (run == 0)
            printf("learning: loss %.3f before, %.4f after 160 steps, %.4f in evaluation\n", before, last[0],
                   sum / count);
        CHECK(before > 4.5 && before < 7, "loss %g before training", before);
        CHECK(last[run] < 0.1, "loss %g after training", last[run]);
        CHECK(count == 200 && sum / count < 0.05, "evaluation: loss %g of %d tokens", sum / count, (int)count);
        size_t bytes = (size_t)m->layout.size * sizeof(real);
        weights[run] = malloc(bytes);
        memcpy(weights[run], m->state[STATE_PARAMS], bytes);
        if (run == 1) {
            CHECK(!memcmp(weights[0], weights[1], bytes), "1 and %d threads give other weights", threads);
            CHECK(!memcmp(&last[0], &last[1], sizeof *last), "1 and %d threads give other losses", threads);

            // a number that is not finite: no update from there on, and the culprit is named
            StepPlan plan = {160, 3, 10, 3e-3};
            CHECK(!diagnose(&gpt_spec, m, &m->layout, &plan, error), "found something wrong with a good model: %s",
                  error);
            real *spot = m->params.layers[0].ln2_b + 3, old = *spot;
            *spot = (real)3e38; // finite, but what comes of it is not
            gpt_train_step(m, &plan);
            CHECK(gpt_get_loss(m).bad_step == 160, "a loss that is not finite went unnoticed");
            CHECK(diagnose(&gpt_spec, m, &m->layout, &plan, error) && strstr(error, "act.layers.1.attn"),
                  "diagnosis: %s", error);
            CHECK(*spot == (real)3e38 && m->state[STATE_PARAMS][0] == weights[1][0], "a bad step changed the weights");
            *spot = (real)NAN;
            CHECK(diagnose(&gpt_spec, m, &m->layout, &plan, error) && strstr(error, "param.layers.0.ln2.bias"),
                  "diagnosis: %s", error);
            *spot = old;
            gpt_set_loss(m, 0);
            gpt_train_step(m, &plan);
            CHECK(gpt_get_loss(m).bad_step < 0, "a good step is called bad");
        }
        gpt_destroy(m);
    }
    free(weights[0]), free(weights[1]);
    dataset_close(&data);
    unlink(path);
    rmdir(folder);
}

int main(void) {
    ParamLayout layout = {0};
    const int paper[] = {8, 256, 16, 512, 240};
    gpt_layout(paper, &layout);
    CHECK(layout.count == 4326041, "%lld parameters instead of 4,326,041", (long long)layout.count);
    layout_free(&layout);
    ModelConfig config = {{8, 256, 16, 512, 240}, 8, 256, 0.5, 1, "fp32", 1};
    CHECK(fabs(gpt_step_flops(&config) / 1e9 - 61.7) < 0.05, "%.2f GFLOP a step", gpt_step_flops(&config) / 1e9);
    check_exp();
    check_adamax();
    check_against_plain((ModelConfig){{2, 256, 16, 512, 240}, 1, 20, 0.5, 1, "fp32", 1}); // the paper's widths
    check_against_plain((ModelConfig){{2, 24, 2, 20, 30}, 1, 50, 0.5, 2, "fp32", 1});
    check_against_plain((ModelConfig){{3, 15, 5, 11, 4}, 3, 35, 0.3, 3, "fp32", 1});      // odd everything
    check_against_plain((ModelConfig){{1, 64, 2, 40, 1}, 2, 17, 0, 4, "fp32", 1});        // one distance, wide heads
    check_against_plain((ModelConfig){{1, 18, 3, 10, 1050}, 1, 1100, 0.5, 5, "fp32", 1}); // a long window
    check_learning();
    return check_report("gpt");
}
