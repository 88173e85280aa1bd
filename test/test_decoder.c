// The decoder: token after token against a plain full forward in double, of the Transformer and of the LSTM, and of
// rings that are full; products with weights in fewer bits against double arithmetic; a song that leaves the others of
// its batch alone. Models have random weights, made here.
#include "sample/decoder.h" // first: it chooses the system's interfaces

#include "models.h"

// Sanitizers make the plain forward ten times slower: they see fewer positions, still beyond the largest distance.
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(SANITIZED)
enum { POSITIONS = 300 };
#else
enum { POSITIONS = 1024 };
#endif

// ---- the full forward, as the definition has it, in double

static double *tensor_copy(const StFile *file, const char *format, int layer) {
    char name[64];
    snprintf(name, sizeof name, format, layer);
    const StTensor *tensor = st_find(file, name);
    double *copy = malloc((size_t)tensor->count * sizeof *copy);
    for (int64_t i = 0; i < tensor->count; i++) copy[i] = st_get(tensor, i);
    return copy;
}

typedef struct {
    int n_in, n_out;
    double *across, *b; // [n_in][n_out]: compilers like it better than [n_out][n_in]; [n_out]
} ExactLinear;

static ExactLinear linear_read(const StFile *file, const char *weight, const char *bias, int layer, int n_in,
                               int n_out) {
    ExactLinear l = {n_in, n_out, malloc((size_t)n_in * n_out * sizeof(double)), tensor_copy(file, bias, layer)};
    double *W = tensor_copy(file, weight, layer);
    for (int o = 0; o < n_out; o++) {
        for (int i = 0; i < n_in; i++) l.across[(size_t)i * n_out + o] = W[(size_t)o * n_in + i];
    }
    free(W);
    return l;
}

static void linear_free(ExactLinear *l) { free(l->across), free(l->b); }

static void linear_apply(const ExactLinear *l, double *y, const double *x) { // y[n_out] = x[n_in] W^T + b
    memcpy(y, l->b, (size_t)l->n_out * sizeof *y);
    for (int i = 0; i < l->n_in; i++) {
        const double factor = x[i], *row = l->across + (size_t)i * l->n_out;
        for (int o = 0; o < l->n_out; o++) y[o] += factor * row[o];
    }
}

// y[T][n_out] = x[T][n_in] W^T + b; named tensors, W is [n_out][n_in]
static double *exact_linear(const StFile *file, const char *weight, const char *bias, int layer, const double *x, int T,
                            int n_in, int n_out) {
    ExactLinear l = linear_read(file, weight, bias, layer, n_in, n_out);
    double *y = malloc((size_t)T * n_out * sizeof *y);
    for (int t = 0; t < T; t++) linear_apply(&l, y + (size_t)t * n_out, x + (size_t)t * n_in);
    linear_free(&l);
    return y;
}

static void residual_layernorm(const StFile *file, const char *weight, const char *bias, int layer, double *x,
                               double *update, int T, int C) { // x = LN(x + update); frees update, which may be NULL
    double *w = tensor_copy(file, weight, layer), *b = tensor_copy(file, bias, layer);
    for (int t = 0; t < T; t++) {
        double *row = x + (size_t)t * C, mean = 0, variance = 0;
        for (int c = 0; c < C; c++) mean += (row[c] += update ? update[(size_t)t * C + c] : 0) / C;
        for (int c = 0; c < C; c++) variance += (row[c] - mean) * (row[c] - mean) / C;
        for (int c = 0; c < C; c++) row[c] = (row[c] - mean) / sqrt(variance + 1e-5) * w[c] + b[c];
    }
    free(w), free(b), free(update);
}

// logits[T][153]; position t attends to the last `window` positions
static double *full_forward(const StFile *file, Sizes size, const uint8_t *tokens, int T, int window) {
    const int C = size.C, HS = size.HS, NH = C / HS;
    double *emb = tensor_copy(file, "emb.weight", 0), *x = malloc((size_t)T * C * sizeof *x);
    double *S = calloc((size_t)NH * T * T, sizeof *S), *a = malloc((size_t)T * sizeof *a);
    for (int t = 0; t < T; t++) memcpy(x + (size_t)t * C, emb + tokens[t] * C, (size_t)C * sizeof *x);
    for (int l = 0; l < size.L; l++) {
        double *qkv = exact_linear(file, "layers.%d.attn.qkv.weight", "layers.%d.attn.qkv.bias", l, x, T, C, 3 * C);
        double *R = tensor_copy(file, "layers.%d.attn.rel", l);
        double *out = calloc((size_t)T * C, sizeof *out);
        for (int h = 0; h < NH; h++) {
            for (int t = 0; t < T; t++) {
                const double *q = qkv + (size_t)t * 3 * C + h * HS;
                double most = -INFINITY, sum = 0, *row = S + ((size_t)h * T + t) * T;
                int first = t - window + 1 > 0 ? t - window + 1 : 0;
                for (int j = first; j <= t; j++) {
                    const double *k = qkv + (size_t)j * 3 * C + C + h * HS;
                    const double *r = R + (t - j < size.D ? size.D - 1 - (t - j) : 0) * HS;
                    double product = 0;
                    for (int d = 0; d < HS; d++) product += q[d] * (k[d] + r[d]);
                    row[j] += product / sqrt(HS); // on top of the layer below
                    if (row[j] > most) most = row[j];
                }
                for (int j = first; j <= t; j++) sum += a[j] = exp(row[j] - most);
                for (int j = first; j <= t; j++) {
                    const double *v = qkv + (size_t)j * 3 * C + 2 * C + h * HS;
                    for (int d = 0; d < HS; d++) out[(size_t)t * C + h * HS + d] += a[j] / sum * v[d];
                }
            }
        }
        double *update = exact_linear(file, "layers.%d.attn.out.weight", "layers.%d.attn.out.bias", l, out, T, C, C);
        residual_layernorm(file, "layers.%d.ln1.weight", "layers.%d.ln1.bias", l, x, update, T, C);
        double *hidden = exact_linear(file, "layers.%d.fc1.weight", "layers.%d.fc1.bias", l, x, T, C, size.F);
        for (size_t i = 0; i < (size_t)T * size.F; i++) hidden[i] = hidden[i] > 0 ? hidden[i] : 0;
        update = exact_linear(file, "layers.%d.fc2.weight", "layers.%d.fc2.bias", l, hidden, T, size.F, C);
        residual_layernorm(file, "layers.%d.ln2.weight", "layers.%d.ln2.bias", l, x, update, T, C);
        free(qkv), free(R), free(out), free(hidden);
    }
    double *logits = exact_linear(file, "head.weight", "head.bias", 0, x, T, C, V);
    free(emb), free(x), free(S), free(a);
    return logits;
}

static double logistic(double x) { return 1 / (1 + exp(-x)); }

// logits[T][153]
static double *lstm_forward(const StFile *file, LstmSizes size, const uint8_t *tokens, int T) {
    const int H = size.H, E = size.E;
    double *emb = tensor_copy(file, "emb.weight", 0), *x = malloc((size_t)T * E * sizeof *x);
    for (int t = 0; t < T; t++) memcpy(x + (size_t)t * E, emb + tokens[t] * E, (size_t)E * sizeof *x);
    for (int l = 0; l < size.L; l++) {
        double *input = exact_linear(file, "lstm.weight_ih_l%d", "lstm.bias_ih_l%d", l, x, T, l ? H : E, 4 * H);
        ExactLinear recurrent = linear_read(file, "lstm.weight_hh_l%d", "lstm.bias_hh_l%d", l, H, 4 * H);
        double *h = calloc((size_t)(T + 1) * H, sizeof *h); // h[0] is the state before the first token
        double *c = calloc((size_t)H, sizeof *c), *gates = malloc((size_t)4 * H * sizeof *gates);
        for (int t = 0; t < T; t++) {
            linear_apply(&recurrent, gates, h + (size_t)t * H);
            for (int k = 0; k < 4 * H; k++) gates[k] += input[(size_t)t * 4 * H + k];
            for (int u = 0; u < H; u++) {
                c[u] = logistic(gates[H + u]) * c[u] + logistic(gates[u]) * tanh(gates[2 * H + u]);
                h[(size_t)(t + 1) * H + u] = logistic(gates[3 * H + u]) * tanh(c[u]);
            }
        }
        linear_free(&recurrent);
        free(x), free(input), free(c), free(gates);
        x = malloc((size_t)T * H * sizeof *x);
        memcpy(x, h + H, (size_t)T * H * sizeof *x);
        free(h);
    }
    const int widths[] = {H, size.H1, size.H2, V}, names[] = {1, 5, 9};
    for (int k = 0; k < 3; k++) {
        double *y = exact_linear(file, "head.%d.weight", "head.%d.bias", names[k], x, T, widths[k], widths[k + 1]);
        free(x), x = y;
        if (k == 2) break;
        residual_layernorm(file, "head.%d.weight", "head.%d.bias", names[k] + 1, x, NULL, T, widths[k + 1]);
        for (size_t i = 0; i < (size_t)T * widths[k + 1]; i++) x[i] = x[i] > 0 ? x[i] : 0;
    }
    free(emb);
    return x;
}

// The largest difference between the stream's logits and those wanted over T positions.
static void compare_logits(const char *name, const char *path, const uint8_t *tokens, const double *want, int T,
                           int context) {
    Model model;
    Batch batch;
    const int slot = 0;
    bool ok = model_load(&model, path, FLOAT32, error) && batch_new(&batch, &model, 1, context, error);
    CHECK(ok, "%s: %s", name, error);
    if (!ok) return;
    double worst = 0;
    int where = -1;
    for (int t = 0; t < T; t++) {
        const int token = tokens[t];
        batch_step(&batch, &slot, 1, &token);
        const float *logits = row(batch.logits, 0);
        for (int v = 0; v < V; v++) {
            double difference = fabs(logits[v] - want[(size_t)t * V + v]);
            if (!(difference <= worst)) worst = difference, where = t;
        }
    }
    printf("logits, %s: largest difference %.1e, at position %d of %d\n", name, worst, where, T);
    CHECK(worst < 1e-4, "%s: logits differ from the full forward's by %g at position %d", name, worst, where);
    batch_free(&batch);
    model_free(&model);
}

static void check_logits(const char *name, Sizes size, int T, int context) {
    const char *path = in_folder("logits.safetensors");
    StFile file;
    bool ok = make_model(path, size) && st_read(&file, path, error);
    CHECK(ok, "%s: %s", name, error);
    if (!ok) return;
    uint8_t *tokens = random_tokens(T);
    double *want = full_forward(&file, size, tokens, T, context);
    compare_logits(name, path, tokens, want, T, context);
    st_free(&file);
    free(want), free(tokens);
}

static void check_lstm_logits(const char *name, LstmSizes size, double gain, int T) {
    const char *path = in_folder("logits.safetensors");
    StFile file;
    bool ok = make_lstm(path, size, gain) && st_read(&file, path, error);
    CHECK(ok, "%s: %s", name, error);
    if (!ok) return;
    uint8_t *tokens = random_tokens(T);
    double *want = lstm_forward(&file, size, tokens, T);
    compare_logits(name, path, tokens, want, T, 1);
    st_free(&file);
    free(want), free(tokens);
}

// ---- weights in fewer bits

// A product's results against double arithmetic on the very weights that the precision keeps; in a batch the same bytes
// as alone, whoever else is in it.
static void check_product(Precision precision, int n_in, int n_out) {
    enum { SONGS = 14 };
    const int64_t high = round_up(n_out, PANEL), wide = round_up(n_in, PANEL);
    PhiloxKey key = philox_key(5, (uint32_t)n_in, (uint32_t)n_out);
    Arena arena = {
        vector_alloc("the test", panels_words(precision, n_in, n_out) + (2 * high + wide) * (SONGS + 4), "", NULL), 0};
    float *W = calloc((size_t)n_out * (size_t)n_in, sizeof *W);
    Weights w = {precision, n_in, n_out, take(&arena, panels_words(precision, n_in, n_out)), take(&arena, n_out), NULL};
    w.starts = (int32_t *)(void *)take(&arena, n_out);
    float *bias = take(&arena, n_out);
    Rows x = take_rows(&arena, SONGS, n_in), together = take_rows(&arena, SONGS, n_out);
    Rows alone = take_rows(&arena, 1, n_out);
    char *packed = malloc(SONGS * packed_size(precision, n_in) + 1);
    int songs[SONGS], differ = 0;
    double worst = 0;
    for (int64_t i = 0; i < (int64_t)n_out * n_in; i++) W[i] = (float)(0.1 * philox_normal(key, (uint64_t)i));
    for (int o = 0; o < n_out; o++) bias[o] = (float)o / 100, weights_set_row(&w, o, W + (int64_t)o * n_in);
    for (int s = 0; s < SONGS; s++) {
        songs[s] = SONGS - 1 - s;
        for (int i = 0; i < n_in; i++)
            row(x, s)[i] = (float)(s * philox_normal(key, (uint64_t)(1 << 24 | s << 16 | i)));
    }
    for (int n = 1; n <= SONGS; n++) {
        memset(together.at, 0, (size_t)(SONGS * together.stride) * sizeof(float));
        product(&w, together, shared(bias), x, songs, n, packed);
        for (int s = 0; s < n; s++) {
            const int song = songs[s];
            const Rows mine = {row(x, song), 0};
            const int first = 0;
            memcpy(alone.at, bias, (size_t)n_out * sizeof(float)); // the bias may be y
            product(&w, alone, alone, mine, &first, 1, packed);
            differ += memcmp(alone.at, row(together, song), (size_t)n_out * sizeof(float)) != 0;
        }
    }
    for (int s = 0; s < SONGS; s++) {
        double largest = 0;
        for (int i = 0; i < n_in; i++) raise_to(&largest, fabs(row(x, s)[i]));
        for (int o = 0; o < n_out; o++) {
            double sum = bias[o], size = 1e-30, most = 0;
            for (int i = 0; i < n_in; i++) raise_to(&most, fabs(W[(int64_t)o * n_in + i]));
            for (int i = 0; i < n_in; i++) {
                double weight = W[(int64_t)o * n_in + i], number = row(x, s)[i];
                if (precision == BF16) {
                    weight = nearest_bf16(weight);
                    number = nearest_bf16(number);
                }
                if (precision == INT8) {
                    weight = rint(weight * (double)(127 / (float)most)) * most / 127;
                    number = largest > 0 ? rint(number * 127 / largest) * largest / 127 : 0;
                }
                sum += weight * number;
                size += fabs(weight * number);
            }
            // Of int8 one number in a thousand may round to the other side in float.
            double allowed = precision == INT8 ? size * 1e-3 + 2 * most * largest / 127 : size * 1e-5;
            raise_to(&worst, fabs(row(together, s)[o] - sum) / (allowed + 1e-6));
        }
    }
    CHECK(differ == 0, "%s, %d x %d: %d products differ in a batch", precision_names[precision], n_out, n_in, differ);
    CHECK(worst < 1, "%s, %d x %d: wrong by %g times what is allowed", precision_names[precision], n_out, n_in, worst);

    row(x, 3)[n_in - 1] = NAN;
    product(&w, together, shared(bias), x, songs, SONGS, packed);
    CHECK(isnan(row(together, 3)[n_out - 1]) && isfinite(row(together, 4)[n_out - 1]), "a NaN is lost");
    row(x, 3)[n_in - 1] = -INFINITY;
    product(&w, together, shared(bias), x, songs, SONGS, packed);
    CHECK(!isfinite(row(together, 3)[n_out - 1]), "an infinity is lost");
    free(arena.base), free(W), free(packed);
}

// A row of numbers so small that their scale has no inverse in float is a row of zeros, not of garbage.
static void check_tiny_row(void) {
    float numbers[LANES] = {1e-37f, -5e-38f, 1e-45f}, scales[PANEL];
    int32_t starts[PANEL];
    char panels[4 * PANEL * LANES] = {0};
    Weights w = {INT8, LANES, PANEL, panels, scales, starts};
    int others = 0;
    weights_set_row(&w, 0, numbers);
    for (size_t i = 0; i < sizeof panels; i++) others += panels[i] != 0;
    CHECK(others == 0 && starts[0] == 0, "a row of tiny numbers became %d others", others);
}

// A song whose numbers are no longer finite leaves the other songs of its batch alone.
static void check_nan_neighbour(const char *path) {
    const int slots[2] = {0, 1};
    for (int p = FLOAT32; p <= INT8; p++) {
        Model model;
        Batch batch;
        int lost = 0, bad = 0;
        bool ok = model_load(&model, path, (Precision)p, error) && batch_new(&batch, &model, 2, 30, error);
        CHECK(ok, "%s", error);
        if (!ok) return;
        model.gpt.emb[5 * round_up(model.gpt.C, LANES)] = NAN; // of token 5
        for (int t = 0; t < 100; t++) {
            const int tokens[2] = {t == 40 ? 5 : 40 + t % 7, 33 + t % 80};
            batch_step(&batch, slots, t < 13 ? 1 : 2, tokens); // not in step: their entries of the ring differ
            lost += t >= 40 && t < 70 && row_finite(row(batch.logits, 0), V);
            bad += !row_finite(row(batch.logits, 1), V);
        }
        CHECK(lost == 0 && bad == 0, "%s: a NaN was lost in %d tokens, and spoilt %d of another song",
              precision_names[p], lost, bad);
        batch_free(&batch), model_free(&model);
    }
}

// A model in fewer bits says nearly the same: the root mean square of the difference of its logits.
static void check_precisions(const char *name, const char *path, int T) {
    uint8_t *tokens = random_tokens(T);
    double squares[3] = {0}, sum = 0;
    float *exact = malloc((size_t)T * V * sizeof *exact);
    for (int p = FLOAT32; p <= INT8; p++) {
        Model model;
        Batch batch;
        const int slot = 0;
        bool ok = model_load(&model, path, (Precision)p, error) && batch_new(&batch, &model, 1, 50, error);
        CHECK(ok, "%s: %s", name, error);
        if (!ok) return;
        for (int t = 0; t < T; t++) {
            const int token = tokens[t];
            batch_step(&batch, &slot, 1, &token);
            for (int v = 0; v < V; v++) {
                float logit = row(batch.logits, 0)[v], *right = &exact[t * V + v];
                if (p == FLOAT32) *right = logit, sum += logit * logit;
                squares[p] += (logit - *right) * (logit - *right);
            }
        }
        batch_free(&batch), model_free(&model);
    }
    double bf16 = sqrt(squares[BF16] / sum), int8 = sqrt(squares[INT8] / sum);
    printf("logits, %s: bf16 differs by %.1e of their size, int8 by %.1e\n", name, bf16, int8);
    CHECK(bf16 > 1e-6 && bf16 < 0.02 && int8 > 1e-6 && int8 < 0.06, "%s: fewer bits differ by %g, %g", name, bf16,
          int8);
    free(exact), free(tokens);
}

int main(void) {
    check_folder(folder);
    const Sizes small = {32, 2, 16, 48, 24}, paper = {256, 8, 16, 512, 240};
    const LstmSizes small_lstm = {24, 20, 2, 12, 9};
    char gpt[512], lstm[512];
    snprintf(gpt, sizeof gpt, "%s", in_folder("small.safetensors"));
    snprintf(lstm, sizeof lstm, "%s", in_folder("lstm.safetensors"));
    CHECK(make_model(gpt, small) && make_lstm(lstm, small_lstm, 1), "%s", error);

    check_logits("small", small, 100, 100);
    check_logits("heads of 5, odd sizes", (Sizes){35, 3, 5, 29, 7}, 90, 90);
    check_logits("heads of 20", (Sizes){60, 2, 20, 70, 33}, 90, 90);
    check_logits("one head of 1", (Sizes){1, 1, 1, 1, 1}, 40, 40);
    check_logits("a ring of 40", small, 200, 40);
    check_logits("a ring shorter than the distances", (Sizes){32, 2, 16, 48, 100}, 200, 37);
    check_logits("a ring of 1", small, 30, 1);
    check_logits("the paper's size", paper, POSITIONS, 1024);
    check_lstm_logits("LSTM, small", small_lstm, 1, 200);
    check_lstm_logits("LSTM, one layer of 1", (LstmSizes){1, 1, 1, 1, 1}, 3, 200);
    check_lstm_logits("LSTM, three layers of 7", (LstmSizes){5, 7, 3, 19, 3}, 3, 200);
    check_lstm_logits("LSTM, one layer of 33", (LstmSizes){70, 33, 1, 65, 17}, 4, 200);
    check_lstm_logits("LSTM, gates that open and close", (LstmSizes){16, 40, 2, 80, 40}, 4, 200);
    check_lstm_logits("LSTM, the paper's size", (LstmSizes){64, 512, 2, 1024, 512}, 1, POSITIONS);
    for (int p = FLOAT32; p <= INT8; p++) {
        check_product((Precision)p, 256, 768);
        check_product((Precision)p, 1, 1);
        check_product((Precision)p, 37, 130);
        check_product((Precision)p, 514, PANEL);
    }
    check_tiny_row();
    check_nan_neighbour(gpt);
    check_precisions("small", gpt, 200);
    check_precisions("LSTM, small", lstm, 200);
    remove_folder();
    return check_report("decoder");
}
