// The sampler: token after token against a plain full forward in double, of the Transformer and of the LSTM; the
// grammar, the filters against brute force, the same bytes for the same seed, primes, bars, the ring, .mid and .svg
// read back, and every error's exit status. Models have random weights, made here.
#define TESTING
#include "../sample_music.c"
#include "check.h"
#include <fcntl.h>

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

static char folder[256], error[ERROR_SIZE];

static const char *in_folder(const char *name) { // valid until 8 more calls
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

// ---- random models

typedef struct {
    int C, L, HS, H, rel;
} Sizes;

typedef struct {
    int E, H, L, H1, H2;
} LstmSizes;

typedef struct {
    StTensor tensors[160];
    char names[160][64];
    int n;
} Tensors;

// Numbers around the mean: normal ones of this deviation, or, if it is below 0, uniform ones at most so far away.
static void add_tensor(Tensors *list, double mean, double deviation, int rows, int cols, const char *format, ...) {
    va_list arguments;
    int k = list->n++;
    va_start(arguments, format);
    vsnprintf(list->names[k], sizeof list->names[k], format, arguments);
    va_end(arguments);
    int64_t count = (int64_t)(rows ? rows : 1) * cols;
    float *data = (float *)malloc((size_t)count * sizeof *data);
    PhiloxKey key = philox_key(1, PHILOX_INIT, (uint32_t)k);
    for (int64_t i = 0; i < count; i++) {
        Philox4 words = philox(key, (uint32_t)i, 0, 0, 0);
        double uniform = 1 - 2 * philox_uniform(words.x[0], words.x[1]);
        data[i] = (float)(mean + deviation * (deviation < 0 ? uniform : philox_normal(key, (uint64_t)i)));
    }
    StTensor *tensor = &list->tensors[k];
    memset(tensor, 0, sizeof *tensor);
    tensor->name = list->names[k];
    tensor->type = ST_F32;
    tensor->rank = rows ? 2 : 1;
    tensor->shape[0] = rows ? rows : cols;
    tensor->shape[1] = rows ? cols : 0;
    tensor->count = count;
    tensor->data = data;
}

static void make_tensors(Tensors *list, Sizes size) {
    int C = size.C, H = size.H;
    double by_width = 1 / sqrt(C), by_hidden = 1 / sqrt(H);
    list->n = 0;
    add_tensor(list, 0, 1, MIDI_TOKENS, C, "emb.weight");
    for (int i = 0; i < size.L; i++) {
        add_tensor(list, 0, by_width, 3 * C, C, "layers.%d.attn.qkv.weight", i);
        add_tensor(list, 0, 0.1, 0, 3 * C, "layers.%d.attn.qkv.bias", i);
        add_tensor(list, 0, 1, size.rel, size.HS, "layers.%d.attn.rel", i);
        add_tensor(list, 0, by_width, C, C, "layers.%d.attn.out.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.attn.out.bias", i);
        add_tensor(list, 1, 0.1, 0, C, "layers.%d.ln1.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.ln1.bias", i);
        add_tensor(list, 0, by_width, H, C, "layers.%d.fc1.weight", i);
        add_tensor(list, 0, 0.1, 0, H, "layers.%d.fc1.bias", i);
        add_tensor(list, 0, by_hidden, C, H, "layers.%d.fc2.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.fc2.bias", i);
        add_tensor(list, 1, 0.1, 0, C, "layers.%d.ln2.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.ln2.bias", i);
    }
    add_tensor(list, 0, by_width, MIDI_TOKENS, C, "head.weight");
    add_tensor(list, 0, 0.1, 0, MIDI_TOKENS, "head.bias");
}

// As a new model's, times gain in the recurrence: with 1 the gates stay half open, with 4 they open and close.
static void make_lstm_tensors(Tensors *list, LstmSizes size, double gain) {
    const double by_units = -gain / sqrt(size.H), by_H1 = -1 / sqrt(size.H1), by_H2 = -1 / sqrt(size.H2);
    list->n = 0;
    add_tensor(list, 0, 1, MIDI_TOKENS, size.E, "emb.weight");
    for (int i = 0; i < size.L; i++) {
        add_tensor(list, 0, by_units, 4 * size.H, i ? size.H : size.E, "lstm.weight_ih_l%d", i);
        add_tensor(list, 0, by_units, 4 * size.H, size.H, "lstm.weight_hh_l%d", i);
        add_tensor(list, 0, by_units, 0, 4 * size.H, "lstm.bias_ih_l%d", i);
        add_tensor(list, 0, by_units, 0, 4 * size.H, "lstm.bias_hh_l%d", i);
    }
    add_tensor(list, 0, -1 / sqrt(size.H), size.H1, size.H, "head.1.weight");
    add_tensor(list, 0, -1 / sqrt(size.H), 0, size.H1, "head.1.bias");
    add_tensor(list, 1, 0.1, 0, size.H1, "head.2.weight");
    add_tensor(list, 0, 0.1, 0, size.H1, "head.2.bias");
    add_tensor(list, 0, by_H1, size.H2, size.H1, "head.5.weight");
    add_tensor(list, 0, by_H1, 0, size.H2, "head.5.bias");
    add_tensor(list, 1, 0.1, 0, size.H2, "head.6.weight");
    add_tensor(list, 0, 0.1, 0, size.H2, "head.6.bias");
    add_tensor(list, 0, by_H2, MIDI_TOKENS, size.H2, "head.9.weight");
    add_tensor(list, 0, by_H2, 0, MIDI_TOKENS, "head.9.bias");
}

static void free_tensors(Tensors *list) {
    for (int i = 0; i < list->n; i++) free((void *)list->tensors[i].data);
}

static bool write_tensors(const char *path, Tensors *list) { // and frees them
    bool ok = st_write(path, list->tensors, list->n, NULL, 0, error);
    free_tensors(list);
    return ok;
}

static bool make_model(const char *path, Sizes size) {
    static Tensors list;
    make_tensors(&list, size);
    return write_tensors(path, &list);
}

static bool make_lstm(const char *path, LstmSizes size, double gain) {
    static Tensors list;
    make_lstm_tensors(&list, size, gain);
    return write_tensors(path, &list);
}

// ---- the full forward, as the definition has it, in double

static double *tensor_copy(const StFile *file, const char *format, int layer) {
    char name[64];
    snprintf(name, sizeof name, format, layer);
    const StTensor *tensor = st_find(file, name);
    double *copy = (double *)malloc((size_t)tensor->count * sizeof *copy);
    st_to_double(tensor, copy);
    return copy;
}

typedef struct {
    int n_in, n_out;
    double *across, *b; // [n_in][n_out]: compilers like it better than [n_out][n_in]; [n_out]
} Linear;

static Linear linear_read(const StFile *file, const char *weight, const char *bias, int layer, int n_in, int n_out) {
    Linear l = {n_in, n_out, (double *)malloc((size_t)n_in * n_out * sizeof(double)), tensor_copy(file, bias, layer)};
    double *W = tensor_copy(file, weight, layer);
    for (int o = 0; o < n_out; o++) {
        for (int i = 0; i < n_in; i++) l.across[(size_t)i * n_out + o] = W[(size_t)o * n_in + i];
    }
    free(W);
    return l;
}

static void linear_free(Linear *l) { free(l->across), free(l->b); }

static void linear_apply(const Linear *l, double *y, const double *x) { // y[n_out] = x[n_in] W^T + b
    memcpy(y, l->b, (size_t)l->n_out * sizeof *y);
    for (int i = 0; i < l->n_in; i++) {
        const double factor = x[i], *row = l->across + (size_t)i * l->n_out;
        for (int o = 0; o < l->n_out; o++) y[o] += factor * row[o];
    }
}

// y[T][n_out] = x[T][n_in] W^T + b; named tensors, W is [n_out][n_in]
static double *linear(const StFile *file, const char *weight, const char *bias, int layer, const double *x, int T,
                      int n_in, int n_out) {
    Linear l = linear_read(file, weight, bias, layer, n_in, n_out);
    double *y = (double *)malloc((size_t)T * n_out * sizeof *y);
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
    double *emb = tensor_copy(file, "emb.weight", 0), *x = (double *)malloc((size_t)T * C * sizeof *x);
    double *S = (double *)calloc((size_t)NH * T * T, sizeof *S), *a = (double *)malloc((size_t)T * sizeof *a);
    for (int t = 0; t < T; t++) memcpy(x + (size_t)t * C, emb + tokens[t] * C, (size_t)C * sizeof *x);
    for (int l = 0; l < size.L; l++) {
        double *qkv = linear(file, "layers.%d.attn.qkv.weight", "layers.%d.attn.qkv.bias", l, x, T, C, 3 * C);
        double *R = tensor_copy(file, "layers.%d.attn.rel", l);
        double *out = (double *)calloc((size_t)T * C, sizeof *out);
        for (int h = 0; h < NH; h++) {
            for (int t = 0; t < T; t++) {
                const double *q = qkv + (size_t)t * 3 * C + h * HS;
                double most = -INFINITY, sum = 0, *row = S + ((size_t)h * T + t) * T;
                int first = t - window + 1 > 0 ? t - window + 1 : 0;
                for (int j = first; j <= t; j++) {
                    const double *k = qkv + (size_t)j * 3 * C + C + h * HS;
                    const double *r = R + (t - j < size.rel ? size.rel - 1 - (t - j) : 0) * HS;
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
        double *update = linear(file, "layers.%d.attn.out.weight", "layers.%d.attn.out.bias", l, out, T, C, C);
        residual_layernorm(file, "layers.%d.ln1.weight", "layers.%d.ln1.bias", l, x, update, T, C);
        double *hidden = linear(file, "layers.%d.fc1.weight", "layers.%d.fc1.bias", l, x, T, C, size.H);
        for (size_t i = 0; i < (size_t)T * size.H; i++) hidden[i] = hidden[i] > 0 ? hidden[i] : 0;
        update = linear(file, "layers.%d.fc2.weight", "layers.%d.fc2.bias", l, hidden, T, size.H, C);
        residual_layernorm(file, "layers.%d.ln2.weight", "layers.%d.ln2.bias", l, x, update, T, C);
        free(qkv), free(R), free(out), free(hidden);
    }
    double *logits = linear(file, "head.weight", "head.bias", 0, x, T, C, MIDI_TOKENS);
    free(emb), free(x), free(S), free(a);
    return logits;
}

static double logistic(double x) { return 1 / (1 + exp(-x)); }

// logits[T][153]
static double *lstm_forward(const StFile *file, LstmSizes size, const uint8_t *tokens, int T) {
    const int H = size.H, E = size.E;
    double *emb = tensor_copy(file, "emb.weight", 0), *x = (double *)malloc((size_t)T * E * sizeof *x);
    for (int t = 0; t < T; t++) memcpy(x + (size_t)t * E, emb + tokens[t] * E, (size_t)E * sizeof *x);
    for (int l = 0; l < size.L; l++) {
        double *input = linear(file, "lstm.weight_ih_l%d", "lstm.bias_ih_l%d", l, x, T, l ? H : E, 4 * H);
        Linear recurrent = linear_read(file, "lstm.weight_hh_l%d", "lstm.bias_hh_l%d", l, H, 4 * H);
        double *h = (double *)calloc((size_t)(T + 1) * H, sizeof *h); // h[0] is the state before the first token
        double *c = (double *)calloc((size_t)H, sizeof *c), *gates = (double *)malloc((size_t)4 * H * sizeof *gates);
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
        x = (double *)malloc((size_t)T * H * sizeof *x);
        memcpy(x, h + H, (size_t)T * H * sizeof *x);
        free(h);
    }
    const int widths[] = {H, size.H1, size.H2, MIDI_TOKENS}, names[] = {1, 5, 9};
    for (int k = 0; k < 3; k++) {
        double *y = linear(file, "head.%d.weight", "head.%d.bias", names[k], x, T, widths[k], widths[k + 1]);
        free(x), x = y;
        if (k == 2) break;
        residual_layernorm(file, "head.%d.weight", "head.%d.bias", names[k] + 1, x, NULL, T, widths[k + 1]);
        for (size_t i = 0; i < (size_t)T * widths[k + 1]; i++) x[i] = x[i] > 0 ? x[i] : 0;
    }
    free(emb);
    return x;
}

static uint8_t *random_tokens(int T) {
    uint8_t *tokens = (uint8_t *)malloc((size_t)T);
    for (int t = 0; t < T; t++) {
        tokens[t] = (uint8_t)(philox(philox_key(7, 0, 0), (uint32_t)t, 0, 0, 0).x[0] % MIDI_TOKENS);
    }
    return tokens;
}

// The largest difference between the stream's logits and those wanted over T positions.
static void compare_logits(const char *name, const char *path, const uint8_t *tokens, const double *want, int T,
                           int context) {
    Model model;
    Stream stream;
    bool ok = model_load(&model, path, error) && stream_new(&stream, &model, context, error);
    CHECK(ok, "%s: %s", name, error);
    if (!ok) return;
    double worst = 0;
    int where = -1;
    for (int t = 0; t < T; t++) {
        const float *logits = stream_step(&stream, tokens[t]);
        for (int v = 0; v < MIDI_TOKENS; v++) {
            double difference = fabs(logits[v] - want[(size_t)t * MIDI_TOKENS + v]);
            if (!(difference <= worst)) worst = difference, where = t;
        }
    }
    printf("logits, %s: largest difference %.1e, at position %d of %d\n", name, worst, where, T);
    CHECK(worst < 1e-4, "%s: logits differ from the full forward's by %g at position %d", name, worst, where);
    stream_free(&stream);
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

// ---- choosing tokens

// What is left after the filters, by their definitions: p[token], 0 where it must not be drawn. O(n^2) and plain.
static void brute_force(const float *logits, int previous, Filter filter, double p[MIDI_TOKENS]) {
    double sum = 0;
    bool in[MIDI_TOKENS];
    for (int i = 0; i < MIDI_TOKENS; i++) {
        midi_kind kind = midi_token_kind(i), last = previous < 0 ? MIDI_KIND_BAR : midi_token_kind(previous);
        in[i] = last == MIDI_KIND_OFFSET  ? kind == MIDI_KIND_BAR || kind == MIDI_KIND_PITCH
                : last == MIDI_KIND_PITCH ? kind == MIDI_KIND_DURATION
                                          : kind == MIDI_KIND_OFFSET;
        p[i] = in[i] ? exp(logits[i] / filter.temperature) : 0;
    }
    for (int pass = 0; pass < 3; pass++) { // top-k, top-p, min-p
        double all = 0, most = 0;
        bool keep[MIDI_TOKENS];
        for (int i = 0; i < MIDI_TOKENS; i++) all += p[i], most = p[i] > most ? p[i] : most;
        for (int i = 0; i < MIDI_TOKENS; i++) {
            int better = 0;
            double before = 0; // the chance of those that come first
            for (int j = 0; j < MIDI_TOKENS; j++) {
                if (in[j] && (p[j] > p[i] || (p[j] == p[i] && j < i))) better++, before += p[j] / all;
            }
            keep[i] = in[i] && (pass == 0   ? !filter.top_k || better < filter.top_k
                                : pass == 1 ? !better || before < filter.top_p
                                            : p[i] >= filter.min_p * most);
        }
        for (int i = 0; i < MIDI_TOKENS; i++) {
            in[i] = keep[i];
            if (!in[i]) p[i] = 0;
        }
    }
    for (int i = 0; i < MIDI_TOKENS; i++) sum += p[i];
    for (int i = 0; i < MIDI_TOKENS; i++) p[i] /= sum;
}

static void check_filters(void) {
    static const Filter filters[] = {{1, 0, 1, 0},       {0.7, 0, 1, 0},      {1.3, 5, 1, 0},   {1, 1, 1, 0},
                                     {1, 0, 0.9, 0},     {1, 0, 0.3, 0},      {1, 0, 1, 0.05},  {1, 0, 1, 1},
                                     {0.9, 40, 0.95, 0}, {1.5, 20, 0.8, 0.1}, {1, 153, 1e-9, 0}};
    static const int previous[] = {-1, 0, 1, 32, 33, 120, 121, 152};
    PhiloxKey key = philox_key(3, 0, 0);
    int wrong = 0, cases = 0;
    for (int trial = 0; trial < 40; trial++) {
        float logits[MIDI_TOKENS];
        for (int i = 0; i < MIDI_TOKENS; i++) {
            logits[i] = (float)(3 * philox_normal(key, (uint64_t)(trial * MIDI_TOKENS + i)));
            if (trial % 4 == 3) logits[i] = rintf(logits[i]); // many that are equally likely
        }
        for (size_t f = 0; f < sizeof filters / sizeof *filters; f++, cases++) {
            double want[MIDI_TOKENS], left = 1;
            Candidate list[MIDI_TOKENS];
            int before = previous[cases % 8], n = candidates(logits, before, &filters[f], list);
            brute_force(logits, before, filters[f], want);
            bool good = n >= 1;
            for (int i = 0; i < n; i++) {
                good = good && fabs(list[i].p - want[list[i].token]) < 1e-12 && (i == 0 || list[i].p <= list[i - 1].p);
                want[list[i].token] = 0;
                left -= list[i].p;
            }
            for (int i = 0; i < MIDI_TOKENS; i++) good = good && want[i] == 0;
            wrong += !(good && fabs(left) < 1e-12);
        }
    }
    CHECK(wrong == 0, "%d of %d filtered distributions differ from brute force", wrong, cases);

    // Draws follow the chances: 200,000 of them, the largest deviation within 5 standard errors.
    float logits[MIDI_TOKENS];
    double want[MIDI_TOKENS], worst = 0;
    static int count[MIDI_TOKENS];
    const Filter filter = {0.8, 12, 0.97, 0};
    for (int i = 0; i < MIDI_TOKENS; i++) logits[i] = (float)(2 * philox_normal(key, (uint64_t)(1000000 + i)));
    brute_force(logits, MIDI_BAR, filter, want);
    for (uint32_t i = 0; i < 200000; i++) {
        Philox4 words = philox(key, i, 1, 0, 0);
        count[draw(logits, MIDI_BAR, &filter, philox_uniform(words.x[0], words.x[1]))]++;
    }
    for (int i = 0; i < MIDI_TOKENS; i++) {
        double deviation = fabs(count[i] - 200000 * want[i]) / sqrt(200000 * want[i] * (1 - want[i]) + 1e-9);
        if (deviation > worst) worst = deviation;
    }
    CHECK(worst < 5, "draws deviate from their chances by %g standard errors", worst);

    const Filter greedy = {0, 0, 1, 0};
    int best = MIDI_OFFSET;
    for (int i = MIDI_OFFSET; i < MIDI_PITCH; i++) best = logits[i] > logits[best] ? i : best;
    CHECK(draw(logits, MIDI_BAR, &greedy, 0.999) == best, "temperature 0 does not take the likeliest");
    CHECK(draw(logits, MIDI_BAR, &filter, 0) >= MIDI_OFFSET && draw(logits, MIDI_BAR, &filter, 1 - 1e-16) < MIDI_PITCH,
          "the ends of [0, 1) are drawn wrong");
}

// ---- the program, called as from a shell

static char said[4096];       // what the last call wrote to stdout and stderr
static char small_model[512]; // that MODEL stands for

static int call(const char *arguments, ...) { // split at spaces; @ stands for the scratch folder, MODEL for the model
    static char text[4096], line[4096];
    char *argv[64], *at = text;
    int argc = 1;
    va_list list;
    va_start(list, arguments);
    vsnprintf(line, sizeof line, arguments, list);
    va_end(list);
    for (const char *c = line; *c; c++) {
        if (*c == '@') at += sprintf(at, "%s", folder);
        if (!strncmp(c, "MODEL", 5))
            at += sprintf(at, "%s", small_model), c += 4;
        else if (*c != '@')
            *at++ = *c;
    }
    *at = 0;
    argv[0] = (char *)"sample_music";
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;

    fflush(stdout), fflush(stderr);
    int out = dup(1), err = dup(2), file = open(in_folder("said"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(file, 1), dup2(file, 2);
    int status = sample_main(argc, argv);
    fflush(stdout), fflush(stderr);
    dup2(out, 1), dup2(err, 2);
    ssize_t n = pread(file, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = 0;
    close(out), close(err), close(file);
    return status;
}

static bool same_file(const char *a, const char *b) {
    void *x, *y;
    size_t n, k;
    bool read = read_file(in_folder(a), &x, &n, error), both = read && read_file(in_folder(b), &y, &k, error);
    bool same = both && n == k && !memcmp(x, y, n);
    if (read) free(x);
    if (both) free(y);
    return same;
}

static bool exists(const char *name) { return !access(in_folder(name), F_OK); }

static void contains(const char *name, const char *text) { // a file of the scratch folder
    void *bytes;
    size_t size;
    bool read = read_file(in_folder(name), &bytes, &size, error);
    CHECK(read && strstr((char *)bytes, text), "%s: does not contain '%s'", name, text);
    if (read) free(bytes);
}

static void check_grammar(void) {
    static const Filter filters[] = {{1, 0, 1, 0}, {2, 0, 1, 0}, {0.5, 10, 0.9, 0.01}, {0, 0, 1, 0}};
    Model model;
    CHECK(model_load(&model, small_model, error), "%s", error);
    for (int f = 0; f < 4; f++) {
        Settings settings = {.filter = filters[f], .tokens = 10000, .context = 64, .bpm = 120};
        Song song = {0};
        song.seed = (uint64_t)f;
        CHECK(song_sample(&song, &model, &settings, error), "%s", error);
        int wrong = 0, previous = MIDI_BAR, kinds[4] = {0};
        for (size_t i = 0; i < song.n; previous = song.tokens[i++]) {
            wrong += song.tokens[i] >= MIDI_TOKENS || !midi_may_follow(previous, song.tokens[i]);
            if (song.tokens[i] < MIDI_TOKENS) kinds[midi_token_kind(song.tokens[i])]++;
        }
        CHECK(song.n == 10000 && wrong == 0, "%d of %zu tokens break the grammar", wrong, song.n);
        CHECK(f == 3 || (kinds[0] && kinds[1] && kinds[2] && kinds[3]), "a kind of token never came");
        song_free(&song);
    }
    model_free(&model);
}

static void check_seeds(void) {
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/a.mid -o @/a.svg") == 0, "%s", said);
    CHECK(strstr(said, "a.mid") && strstr(said, "a.svg") && strstr(said, "seed 9"), "the report lacks something: %s",
          said);
    call("MODEL --seed 9 --tokens 300 -o @/b.mid -o @/b.svg --threads 2");
    CHECK(same_file("a.mid", "b.mid") && same_file("a.svg", "b.svg"), "the same seed gave other bytes");
    call("MODEL --seed 10 --tokens 300 -o @/c.mid");
    CHECK(!same_file("a.mid", "c.mid"), "another seed gave the same bytes");
    for (int threads = 1; threads <= 2; threads++) {
        CHECK(call("MODEL --seed 8 -n 4 --tokens 300 -o @/n.mid -o @/n.svg --threads %d", threads) == 0, "%s", said);
        CHECK(same_file("n-2.mid", "a.mid") && same_file("n-2.svg", "a.svg"), "song 2 of seed 8 is not that of seed 9");
        CHECK(same_file("n-3.mid", "c.mid"), "song 3 of seed 8 is not that of seed 10");
        CHECK(exists("n-1.mid") && exists("n-4.svg") && !exists("n.mid"), "the songs' names are wrong");
        const char *first = strstr(said, "seed 8"), *last = strstr(said, "seed 11");
        CHECK(first && last && first < last, "the songs are reported out of order: %s", said);
        remove(in_folder("n-2.mid")), remove(in_folder("n-2.svg")), remove(in_folder("n-3.mid"));
    }
    CHECK(call("MODEL --tokens 5 -o @/d.mid") == 0 && strstr(said, "seed "), "a fresh seed is not printed: %s", said);
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/b.mid --temperature 0.5") == 0 && !same_file("a.mid", "b.mid"),
          "the temperature changes nothing");
}

// All notes of a file's .svg and .mid are the song's, at their times.
static void check_files(void) {
    Model model;
    Song song;
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 900, .context = 64, .bpm = 96};
    CHECK(model_load(&model, small_model, error) && song_make(&song, &model, &settings, 21, error), "%s", error);
    CHECK(song.midi.n_notes > 100, "only %zu notes", song.midi.n_notes);
    const char *mid = in_folder("f.mid"), *svg = in_folder("f.svg");
    CHECK(write_mid(&song, mid, error) && write_svg(&song, svg, error), "%s", error);

    midi_song back;
    midi_error problem;
    int ok = midi_read_file(&back, mid, 1 << 24, &problem);
    CHECK(ok && back.division == 480 && back.n_notes == song.midi.n_notes && back.open_notes == 0, "%s", problem.text);
    CHECK(back.n_tempos == 1 && back.tempos[0].us_per_quarter == 625000, "96 quarters a minute are not 625000 us");
    CHECK(back.n_meters >= 1 && back.meters[0].tick == 0, "no meter at the start");
    bool text = false;
    for (size_t i = 0; i < back.n_texts; i++) text = text || strstr(back.texts[i].text, "seed 21, tokens 900");
    CHECK(text, "the .mid does not say its seed and settings");
    // Where notes of one key overlap, a reader pairs them first in, first out: starts and ends are each the same set.
    int64_t sums[2][2] = {{0}};
    for (size_t i = 0; ok && i < back.n_notes; i++) {
        const midi_note *notes[2] = {&back.notes[i], &song.midi.notes[i]};
        for (int k = 0; k < 2; k++) {
            sums[k][0] += notes[k]->start * notes[k]->start % 1000003 * notes[k]->key;
            sums[k][1] += notes[k]->end * notes[k]->end % 1000003 * notes[k]->key;
        }
    }
    CHECK(sums[0][0] == sums[1][0] && sums[0][1] == sums[1][1], "the .mid's notes are not the song's");
    midi_free(&back);

    void *bytes;
    size_t size, found = 0, wrong = 0;
    CHECK(read_file(svg, &bytes, &size, error), "%s", error);
    size_t *seen = (size_t *)calloc(song.midi.n_notes, sizeof *seen);
    for (const char *at = strstr((char *)bytes, "data-note=\""); at; at = strstr(at + 1, "data-note=\""), found++) {
        int key;
        long long start, end;
        size_t i = 0;
        sscanf(at, "data-note=\"%d %lld %lld\"", &key, &start, &end);
        for (; i < song.midi.n_notes; i++) {
            const midi_note *note = &song.midi.notes[i];
            if (!seen[i] && note->key == key && note->start == start && note->end == end) break;
        }
        if (i < song.midi.n_notes)
            seen[i] = 1;
        else
            wrong++;
    }
    CHECK(found == song.midi.n_notes && wrong == 0, "%zu notes in the .svg, %zu of them wrong", found, wrong);
    CHECK(!memcmp(bytes, "<svg ", 5) && !strcmp((char *)bytes + size - 7, "</svg>\n") &&
              strstr((char *)bytes, "seed 21"),
          "the .svg is not whole");
    free(seen), free(bytes);
    song_free(&song);
    model_free(&model);
}

// A prime of 40 quarters in 3/4: ten bars and more.
static void write_prime(const char *path, int notes) {
    midi_song song;
    midi_error problem;
    uint8_t *bytes;
    size_t size;
    memset(&song, 0, sizeof song);
    song.format = 0;
    song.division = 96;
    midi_add_meter(&song, 0, 3, 2, 0);
    for (int i = 0; i < notes; i++) midi_add_note(&song, i * 96, i * 96 + 96, 60 + i % 12, 90, 0, 0);
    if (midi_write(&song, &bytes, &size, &problem) && write_file_atomically(path, bytes, size, error)) MIDI_FREE(bytes);
    midi_free(&song);
}

static void check_prime(void) {
    Model model;
    Song song;
    write_prime(in_folder("prime.mid"), 40);
    CHECK(model_load(&model, small_model, error), "%s", error);
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 120, .context = 64, .bpm = 120};
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("prime.mid"));
    settings.prime_path = path;
    settings.prime_tokens = 47; // in the middle of bar 5: 11 tokens a bar of three notes and its line
    settings.songs = 1;
    int out = dup(1), file = open(in_folder("said"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    fflush(stdout), dup2(file, 1);
    bool ok = read_prime(&settings, error);
    fflush(stdout), dup2(out, 1), close(out), close(file);
    CHECK(ok && settings.n_prime == 47, "%s", error);
    CHECK(song_make(&song, &model, &settings, 4, error), "%s", error);
    CHECK(song.n == 167 && !memcmp(song.tokens, settings.prime, 47), "the song does not begin with the prime");
    size_t grey = 0, wrong = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        grey += song.from_prime[i];
        wrong += song.from_prime[i] && (song.midi.notes[i].start % 480 || song.midi.notes[i].end > 14 * 480);
    }
    CHECK(grey == 13 && wrong == 0, "%zu notes are marked as the prime's, %zu wrongly; 13 are", grey, wrong);
    CHECK(song.midi.n_meters && song.midi.meters[0].numerator == 3 && song.midi.meters[0].exponent == 2,
          "a prime in 3/4 does not begin in 3/4");
    CHECK(song.lines[1] == 3 * 480 && song.lines[4] == 12 * 480, "the prime's bar lines moved");

    // Without the prime: the new notes alone, from the bar line before them.
    Song bare;
    settings.no_prime = true;
    CHECK(song_make(&bare, &model, &settings, 4, error), "%s", error);
    CHECK(bare.midi.n_notes == song.midi.n_notes - 13, "%zu notes without the prime", bare.midi.n_notes);
    size_t k = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        if (song.from_prime[i]) continue;
        wrong += k >= bare.midi.n_notes || bare.midi.notes[k].start != song.midi.notes[i].start - 12 * 480 ||
                 bare.midi.notes[k].key != song.midi.notes[i].key;
        k++;
    }
    CHECK(wrong == 0, "%zu notes moved wrongly without the prime", wrong);
    song_free(&song), song_free(&bare);
    MIDI_FREE(settings.prime);
    model_free(&model);

    CHECK(call("MODEL --prime @/prime.mid --tokens 40 --seed 1 -o @/p.svg") == 0, "%s", said);
    CHECK(strstr(said, "the first 146 of 146 tokens"), "the prime's length is not said: %s", said);
    void *bytes;
    size_t size;
    CHECK(read_file(in_folder("p.svg"), &bytes, &size, error), "%s", error);
    CHECK(strstr((char *)bytes, "class=\"prime\"") && strstr((char *)bytes, "class=\"new\""), "no two colours");
    free(bytes);
    write_prime(in_folder("empty.mid"), 0);
    CHECK(call("MODEL --prime @/empty.mid -o @/x.mid") == 1 && strstr(said, "no notes"), "%s", said);
    CHECK(call("MODEL --prime @/none.mid -o @/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --prime MODEL -o @/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --prime @ -o @/x.mid") == 1 && !exists("x.mid"), "%s", said);
}

static void check_bars(void) {
    Model model;
    Song song;
    CHECK(model_load(&model, small_model, error), "%s", error);
    for (int bars = 1; bars <= 16; bars *= 4) {
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .bars = bars, .context = 64, .bpm = 120};
        CHECK(song_make(&song, &model, &settings, 2, error), "%s", error);
        int lines = 0;
        for (size_t i = 0; i < song.n; i++) {
            int length = i ? song.tokens[i - 1] - MIDI_OFFSET : 0;
            lines += song.tokens[i] == MIDI_BAR && length != 0 && length != 31;
        }
        CHECK(song_bars(&song) == bars && !song.cut, "--bars %d: %d bars are reported", bars, song_bars(&song));
        CHECK(lines == bars && song.tokens[song.n - 1] == MIDI_BAR, "--bars %d gave %d bar lines", bars, lines);
        song_free(&song);
    }
    int ringing = 0;
    for (int seed = 0; seed < 40; seed++) { // whatever rings on past the last line is no bar
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .bars = 4, .context = 64, .bpm = 120};
        CHECK(song_make(&song, &model, &settings, (uint64_t)seed, error), "%s", error);
        ringing += song.end > song.lines[song.n_lines - 1];
        CHECK(song_bars(&song) == 4, "--bars 4 --seed %d: %d bars are reported", seed, song_bars(&song));
        song_free(&song);
    }
    CHECK(ringing > 0, "no song rang on");
    CHECK(call("MODEL --bars 3 --tokens 7 --seed 1 -o @/e.mid") == 0, "%s", said); // whichever comes first
    CHECK(strstr(said, "ended after 7 new tokens, before --bars 3"), "what ended the song is not said: %s", said);
    CHECK(call("MODEL --bars 1 --seed 1 -o @/e.mid") == 0 && !strstr(said, "ended"), "%s", said);
    CHECK(call("MODEL --tokens 7 --seed 1 -o @/e.mid") == 0 && !strstr(said, "ended"), "%s", said);
    model_free(&model);

    // Lines that only cut a long bar do not count, nor do bars without length: 4/4, 31 + 1 steps = 4/2, 4/4, nothing.
    static const uint8_t tokens[] = {1, 33 + 40, 124, 1 + 16,  0,   1 + 31, 0, 1 + 1, 0,       1 + 16, 0,
                                     1, 0,       1,   33 + 40, 122, 1 + 6,  0, 1,     33 + 40, 121};
    static const int64_t lines[] = {0, 16, 48, 64, 70};
    midi_error problem;
    memset(&song, 0, sizeof song);
    CHECK(midi_decode(tokens, sizeof tokens, &song.midi, &problem) && song.midi.n_bars == 6, "%s", problem.text);
    song.lines = (int64_t *)malloc(16 * sizeof(int64_t));
    song_find_lines(&song);
    bool right = song.n_lines == 5;
    for (int i = 0; i < song.n_lines && right; i++) right = song.lines[i] == lines[i] * MIDI_STEP;
    CHECK(right, "bar lines are found wrong");
    CHECK(song_add_events(&song, 120), "no memory");
    const midi_meter *m = song.midi.meters;
    CHECK(song.midi.n_meters == 4 && m[0].numerator == 4 && m[0].exponent == 2 && m[1].numerator == 8 &&
              m[1].tick == 16 * MIDI_STEP && m[2].numerator == 4 && m[3].numerator == 3 && m[3].exponent == 3,
          "the meters are wrong");
    song_free(&song);
}

// ---- errors

static void check_usage(void) {
    static const char *const wrong[] = {"MODEL --tokens 0",
                                        "MODEL --tokens -5",
                                        "MODEL --tokens 1e3",
                                        "MODEL --tokens 12x",
                                        "MODEL --tokens",
                                        "MODEL --temperature nan",
                                        "MODEL --temperature -1",
                                        "MODEL --top-k 154",
                                        "MODEL --top-p 0",
                                        "MODEL --top-p 1.5",
                                        "MODEL --min-p inf",
                                        "MODEL --seed -1",
                                        "MODEL --seed x",
                                        "MODEL --bars 0",
                                        "MODEL --context 0",
                                        "MODEL --bpm 0",
                                        "MODEL --threads 0",
                                        "MODEL -n 0",
                                        "MODEL --frobnicate",
                                        "MODEL -o @/x.mp3",
                                        "MODEL -o .mid",
                                        "MODEL MODEL",
                                        "MODEL --no-prime",
                                        "MODEL --seed 18446744073709551616",
                                        "MODEL --prime-tokens 0",
                                        "MODEL -o",
                                        "MODEL --tokens 99999999999",
                                        "MODEL -x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = call("%s -o @/x.mid", wrong[i]);
        if (!strcmp(wrong[i], "MODEL -o") || !strcmp(wrong[i], "MODEL --tokens")) status = call("%s", wrong[i]);
        const char *end = strchr(said, '\n');
        CHECK(status == 2 && !strncmp(said, "sample_music: ", 14) && end && !end[1], "%s: exit %d, %s", wrong[i],
              status, said);
    }
    CHECK(!exists("x.mid"), "a wrong call wrote a file");
    CHECK(call("--help") == 0 && strstr(said, "--top-p"), "%s", said);
    CHECK(call("--version") == 0 && strstr(said, MUSIC_VERSION), "%s", said);
    CHECK(call("MODEL --seed 18446744073709551615 -n 2 --tokens 9 -o @/w.mid") == 0 && strstr(said, "seed 0"),
          "the seed after the largest is not 0: %s", said);
}

// One model with one thing wrong: the sentence must name `name`.
static void check_bad(const Tensors *good, const char *name, int change, const char *must_say) {
    static Tensors list;
    list = *good;
    float *bad = NULL;
    for (int i = 0; i < list.n; i++) {
        list.tensors[i].name = list.names[i];
        if (strcmp(list.names[i], name)) continue;
        StTensor *tensor = &list.tensors[i];
        bad = (float *)malloc((size_t)tensor->count * sizeof *bad);
        memcpy(bad, tensor->data, (size_t)tensor->count * sizeof *bad);
        bad[tensor->count - 1] = change == 2 ? NAN : 1;
        tensor->data = bad;
        if (change == 0) list.tensors[i] = list.tensors[--list.n]; // missing
        if (change == 1) tensor->shape[0]--;
        if (change == 3) tensor->type = ST_I32;
        if (change == 4) memset(bad, 0x7F, (size_t)tensor->count * sizeof *bad); // 3.4e38, finite
        break;
    }
    CHECK(bad && st_write(in_folder("bad.safetensors"), list.tensors, list.n, NULL, 0, error), "%s: %s", name, error);
    int status = call("@/bad.safetensors --tokens 3 -o @/x.mid");
    CHECK(status == 1 && (change == 4 || strstr(said, name)) && strstr(said, must_say), "%s: exit %d, %s", name, status,
          said);
    free(bad);
}

// A resume state has more tensors than its model, and gives the same songs. Frees the list.
static void check_resume_state(Tensors *list) {
    const char *slash = strrchr(small_model, '/') + 1; // the model's name is in the song
    char again[100];
    snprintf(again, sizeof again, "again/%.80s", slash);
    add_tensor(list, 0, 1, MIDI_TOKENS, 7, "adamax.exp_avg.emb.weight");
    add_tensor(list, 0, 1, 32, 7, "adamax.exp_inf.lstm.weight_ih_l9");
    add_tensor(list, 0, 1, 32, 7, "adamax.exp_inf.layers.9.fc1.weight");
    CHECK(write_tensors(in_folder(again), list), "%s", error);
    CHECK(call("@/%s --seed 9 --tokens 300 -o @/l.mid", again) == 0, "%s", said);
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/m.mid") == 0, "%s", said);
    CHECK(same_file("l.mid", "m.mid"), "a resume state gives another song than its model");
}

static void check_gpt_files(Sizes size) {
    static Tensors list;
    make_tensors(&list, size);
    check_bad(&list, "emb.weight", 0, "bad.safetensors: tensor 'emb.weight' [153, any] is missing\n");
    check_bad(&list, "head.bias", 0, "bad.safetensors: tensor 'head.bias' [153] is missing\n");
    check_bad(&list, "layers.0.attn.qkv.weight", 0, "missing");
    check_bad(&list, "layers.1.ln2.bias", 0, "missing");
    check_bad(&list, "emb.weight", 1, "tensor 'emb.weight' has the shape [152, ");
    check_bad(&list, "emb.weight", 1, "] instead of [153, any]\n");
    check_bad(&list, "layers.1.attn.rel", 1, "tensor 'layers.1.attn.rel' has the shape [");
    check_bad(&list, "layers.0.fc2.weight", 1, "] instead of [");
    check_bad(&list, "layers.1.fc1.bias", 2, "not finite");
    check_bad(&list, "layers.1.fc1.bias", 3, "tensor 'layers.1.fc1.bias' is I32 instead of floating point\n");
    check_bad(&list, "head.weight", 4, "not finite");
    check_resume_state(&list);
}

static void check_lstm_files(LstmSizes size) {
    static Tensors list;
    make_lstm_tensors(&list, size, 1);
    check_bad(&list, "emb.weight", 0, "bad.safetensors: tensor 'emb.weight' [153, any] is missing\n");
    check_bad(&list, "lstm.weight_hh_l0", 0, "bad.safetensors: tensor 'lstm.weight_hh_l0' [any, any] is missing\n");
    check_bad(&list, "lstm.weight_ih_l1", 0, "tensor 'lstm.weight_ih_l1' [80, 20] is missing\n");
    check_bad(&list, "lstm.weight_hh_l1", 0, "missing");
    check_bad(&list, "lstm.bias_hh_l1", 0, "tensor 'lstm.bias_hh_l1' [80] is missing\n");
    check_bad(&list, "head.5.weight", 0, "tensor 'head.5.weight' [any, 12] is missing\n");
    check_bad(&list, "head.9.bias", 0, "missing");
    check_bad(&list, "lstm.weight_ih_l0", 1, "has the shape [79, 24] instead of [80, 24]\n");
    check_bad(&list, "lstm.weight_hh_l0", 1, "has the shape [79, 20] instead of [80, 20]\n");
    check_bad(&list, "lstm.bias_ih_l1", 1, "has the shape [79] instead of [80]\n");
    check_bad(&list, "head.2.weight", 1, "has the shape [11] instead of [12]\n");
    check_bad(&list, "head.9.weight", 1, "has the shape [152, 9] instead of [153, 9]\n");
    check_bad(&list, "lstm.bias_hh_l0", 2, "tensor 'lstm.bias_hh_l0' has a number that is not finite\n");
    check_bad(&list, "head.6.bias", 3, "is I32 instead of floating point\n");
    check_bad(&list, "head.5.weight", 4, "computes numbers that are not finite"); // and ReLU must not hide them
    check_bad(&list, "head.9.weight", 4, "computes numbers that are not finite");
    check_resume_state(&list);
}

// What only one kind has, and what each does with no model named.
static void check_kinds(const char *gpt, const char *lstm) {
    snprintf(small_model, sizeof small_model, "%s", lstm);
    CHECK(call("MODEL --context 64 -o @/x.mid") == 2 && !exists("x.mid"), "%s", said);
    CHECK(strstr(said, "--context 64: ") && strstr(said, "is an LSTM") && strstr(said, "leave the flag out"), "%s",
          said);
    CHECK(call("MODEL --bench") == 0 && !strncmp(said, "bench model=lstm tokens_per_s=", 30), "%s", said);
    CHECK(strstr(said, " mb_per_token=") && strstr(said, " fraction="), "%s", said);
    CHECK(call("MODEL --tokens 9 --seed 1 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(lstm, 2 layers of width 20)");
    contains("k.svg", "temperature 1, bpm 120");
    snprintf(small_model, sizeof small_model, "%s", gpt);
    CHECK(call("MODEL --bench") == 0 && !strncmp(said, "bench model=gpt context=256 tokens_per_s=", 41), "%s", said);
    CHECK(strstr(said, "bench model=gpt context=1024 tokens_per_s="), "%s", said);
    CHECK(call("MODEL --tokens 9 --seed 1 --context 64 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(gpt, 2 layers of width 32)");
    contains("k.svg", "context 64, bpm 120");
    CHECK(call("--help") == 0 && strstr(said, "an LSTM's state carries all"), "%s", said);

    int here = open(".", O_RDONLY);
    CHECK(here >= 0 && !chdir(folder), "%s: cannot be entered", folder);
    CHECK(call("-o @/x.mid") == 1 && strstr(said, "out/gpt/model.safetensors: there is no such model yet"), "%s", said);
    CHECK(make_folders(in_folder("out/gpt"), error) && make_folders(in_folder("out/lstm"), error), "%s", error);
    CHECK(!link(lstm, in_folder("out/lstm/model.safetensors")), "no link");
    CHECK(call("--tokens 9 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(lstm, ");
    CHECK(!link(gpt, in_folder("out/gpt/model.safetensors")), "no link");
    CHECK(call("--tokens 9 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(gpt, ");
    CHECK(here >= 0 && !fchdir(here), "cannot go back");
    close(here);
}

static void check_bad_files(void) {
    static Tensors list;
    add_tensor(&list, 0, 1, MIDI_TOKENS, 8, "emb.weight");
    CHECK(write_tensors(in_folder("neither"), &list), "%s", error);
    CHECK(call("@/neither -o @/x.mid") == 1 && strstr(said, "neither a Transformer nor an LSTM"), "%s", said);
    write_file_atomically(in_folder("nothing"), "", 0, error);
    write_file_atomically(in_folder("text"), "not a model at all\n", 19, error);
    CHECK(call("@/nothing -o @/x.mid") == 1, "%s", said);
    CHECK(call("@/text -o @/x.mid") == 1, "%s", said);
    CHECK(call("@ -o @/x.mid") == 1, "%s", said);
    CHECK(call("@/absent -o @/x.mid") == 1, "%s", said);
    CHECK(!exists("x.mid"), "a failed call wrote a file");
    CHECK(call("MODEL --tokens 5 -o @/absent/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --tokens 5 -n 3 --threads 2 -o @/absent/x.mid") == 1, "%s", said);
    const char *end = strchr(said, '\n');
    CHECK(end && !end[1], "more than one sentence: %s", said);

    // A full disk leaves the song of before, and nothing else.
    if (!access("/dev/full", W_OK)) {
        CHECK(call("MODEL --tokens 90 --seed 1 -o @/keep.mid") == 0, "%s", said);
        CHECK(call("MODEL --tokens 90 --seed 1 -o @/same.mid") == 0, "%s", said);
        CHECK(symlink("/dev/full", in_folder("keep.mid.tmp")) == 0, "no link");
        CHECK(call("MODEL --tokens 90 --seed 3 -o @/keep.mid") == 1 && strstr(said, "keep.mid"), "%s", said);
        CHECK(same_file("keep.mid", "same.mid"), "a full disk changed the old song");
    }
}

int main(void) {
    check_folder(folder);
    const Sizes small = {32, 2, 16, 48, 24}, paper = {256, 8, 16, 512, 240};
    const LstmSizes small_lstm = {24, 20, 2, 12, 9};
    char gpt[512], lstm[512];
    snprintf(gpt, sizeof gpt, "%s", in_folder("small.safetensors"));
    snprintf(lstm, sizeof lstm, "%s", in_folder("lstm.safetensors"));
    CHECK(make_model(gpt, small) && make_lstm(lstm, small_lstm, 1), "%s", error);
    CHECK(!mkdir(in_folder("again"), 0700), "no folder");

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
    check_filters();
    for (int kind = 0; kind < 2; kind++) {
        snprintf(small_model, sizeof small_model, "%s", kind ? lstm : gpt);
        check_grammar();
        check_seeds();
        check_prime();
        if (kind) check_lstm_files(small_lstm);
        if (!kind) check_gpt_files(small);
    }
    check_kinds(gpt, lstm); // leaves MODEL the Transformer
    check_files();
    check_bars();
    check_usage();
    check_bad_files();

    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0, "%s could not be removed", folder);
    return check_report("sample");
}
