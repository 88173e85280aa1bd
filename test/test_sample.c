// The sampler: token after token against a plain full forward in double, of the Transformer and of the LSTM; the
// grammar, the filters against brute force, the same bytes for the same seed, primes, bars, the ring, .mid and .svg
// read back, and every error's exit status. Models have random weights, made here.
#define TESTING
#include "sample_music.c"
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
    Batch batch;
    const int room = 0;
    bool ok = model_load(&model, path, FLOAT32, error) && batch_new(&batch, &model, 1, context, error);
    CHECK(ok, "%s: %s", name, error);
    if (!ok) return;
    double worst = 0;
    int where = -1;
    for (int t = 0; t < T; t++) {
        const int token = tokens[t];
        batch_step(&batch, &room, 1, &token);
        const float *logits = row(batch.logits, 0);
        for (int v = 0; v < MIDI_TOKENS; v++) {
            double difference = fabs(logits[v] - want[(size_t)t * MIDI_TOKENS + v]);
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
    Arena arena = {vector_alloc(panels_words(precision, n_in, n_out) + (2 * high + wide) * (SONGS + 4)), 0};
    float *W = (float *)calloc((size_t)n_out * (size_t)n_in, sizeof *W);
    Weights w = {precision, n_in, n_out, take(&arena, panels_words(precision, n_in, n_out)), take(&arena, n_out), NULL};
    w.starts = (int32_t *)(void *)take(&arena, n_out);
    float *bias = take(&arena, n_out);
    Rows x = take_rows(&arena, SONGS, n_in), together = take_rows(&arena, SONGS, n_out);
    Rows alone = take_rows(&arena, 1, n_out);
    char *packed = (char *)malloc(SONGS * packed_size(precision, n_in) + 1);
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
        for (int i = 0; i < n_in; i++) largest = fmax(largest, fabs(row(x, s)[i]));
        for (int o = 0; o < n_out; o++) {
            double sum = bias[o], size = 1e-30, most = 0;
            for (int i = 0; i < n_in; i++) most = fmax(most, fabs(W[(int64_t)o * n_in + i]));
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
            worst = fmax(worst, fabs(row(together, s)[o] - sum) / (allowed + 1e-6));
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
    free(arena.memory), free(W), free(packed);
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
    const int rooms[2] = {0, 1};
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
            batch_step(&batch, rooms, t < 13 ? 1 : 2, tokens); // not in step: their slots differ
            lost += t >= 40 && t < 70 && all_finite(row(batch.logits, 0));
            bad += !all_finite(row(batch.logits, 1));
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
    float *exact = (float *)malloc((size_t)T * V * sizeof *exact);
    for (int p = FLOAT32; p <= INT8; p++) {
        Model model;
        Batch batch;
        const int room = 0;
        bool ok = model_load(&model, path, (Precision)p, error) && batch_new(&batch, &model, 1, 50, error);
        CHECK(ok, "%s: %s", name, error);
        if (!ok) return;
        for (int t = 0; t < T; t++) {
            const int token = tokens[t];
            batch_step(&batch, &room, 1, &token);
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
#define F(temperature, k, p, min)                                                                                      \
    {                                                                                                                  \
        temperature, k, p, min, { 0 }                                                                                  \
    }
    static const Filter filters[] = {F(1, 0, 1, 0),       F(0.7, 0, 1, 0),      F(1.3, 5, 1, 0),   F(1, 1, 1, 0),
                                     F(1, 0, 0.9, 0),     F(1, 0, 0.3, 0),      F(1, 0, 1, 0.05),  F(1, 0, 1, 1),
                                     F(0.9, 40, 0.95, 0), F(1.5, 20, 0.8, 0.1), F(1, 153, 1e-9, 0)};
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
    const Filter filter = F(0.8, 12, 0.97, 0);
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

    const Filter greedy = F(0, 0, 1, 0);
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

// A whole song of this seed, alone. The caller frees it, after a failure too.
static bool song_make(Song *song, const Model *model, const Settings *settings, uint64_t seed, char *problem) {
    Batch batch;
    Maker maker;
    const int room = 0;
    if (!maker_begin(&maker, song, settings, seed, problem)) return false;
    if (!batch_new(&batch, model, 1, (int)context_needed(settings), problem)) return false;
    for (bool more = true; more;) {
        const int token = maker_next(&maker);
        batch_step(&batch, &room, 1, &token);
        more = maker_take(&maker, row(batch.logits, 0));
    }
    batch_free(&batch);
    return song_finish(song, model, settings, problem);
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
    static const Filter filters[] = {F(1, 0, 1, 0), F(2, 0, 1, 0), F(0.5, 10, 0.9, 0.01), F(0, 0, 1, 0)};
    Model model;
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    for (int f = 0; f < 4; f++) {
        Settings settings = {.filter = filters[f], .tokens = 10000, .context = 64, .bpm = 120};
        Song song;
        CHECK(song_make(&song, &model, &settings, (uint64_t)f, error), "%s", error);
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

// Songs together in a batch, some of which end early, are the songs alone.
static void check_batches(void) {
    for (int p = FLOAT32; p <= INT8; p++) {
        const char *flags = "--tokens 400 --bars 9 --top-p 0.97 --weights";
        CHECK(call("MODEL --seed 20 -n 19 %s %s --threads 1 -o @/t.mid", flags, precision_names[p]) == 0, "%s", said);
        CHECK(strstr(said, "19 songs  ") && strstr(said, " tokens/s\n"), "no total: %s", said);
        for (int i = 1; i <= 19; i++) {
            char name[32];
            snprintf(name, sizeof name, "t-%d.mid", i);
            call("MODEL --seed %d %s %s -o @/alone.mid", 19 + i, flags, precision_names[p]);
            CHECK(same_file(name, "alone.mid"), "%s: song %d of 19 differs from the same alone", precision_names[p], i);
        }
    }
    CHECK(call("MODEL --seed 20 --tokens 50 --weights int8 -o @/t.svg") == 0, "%s", said);
    contains("t.svg", "weights int8)");
}

// ---- guards and reports

static void check_names(void) {
    static const struct {
        const char *text;
        int key;
    } keys[] = {{"C4", 60},          {"c4", 60},  {"A0", 21},   {"C8", 108},  {"Bb2", 46},  {"F#3", 54}, {"60", 60},
                {"Cb4", 59},         {"B#3", 60}, {"C##4", 62}, {"G#-1", -1}, {"C9", -1},   {"H2", -1},  {"20", -1},
                {"109", -1},         {"", -1},    {"C", -1},    {"C4x", -1},  {"60.5", -1}, {"#4", -1},  {"-60", -1},
                {"C99999999999", -1}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        CHECK(read_key(keys[i].text) == keys[i].key, "'%s' is read as key %d", keys[i].text, read_key(keys[i].text));
    }
    for (int key = 21; key <= 108; key++) {
        char name[16];
        CHECK(read_key(key_name(key, name)) == key, "key %d is not read back from %s", key, name);
    }
    CHECK(read_scale("C-major") == 0xAB5 && read_scale("a-minor") == 0xAB5 && read_scale("Db-pentatonic") == 0x52A,
          "scales are read wrong");
    CHECK(!read_scale("C") && !read_scale("C-") && !read_scale("major") && !read_scale("C-majors") && !read_scale(""),
          "what is no scale is read as one");
}

static bool plays(const char *name, const char *scale, int lowest, int highest) { // only such keys, and some
    midi_song song;
    midi_error problem;
    if (!midi_read_file(&song, in_folder(name), 1 << 24, &problem)) return false;
    bool in = song.n_notes > 0;
    for (size_t i = 0; i < song.n_notes; i++) {
        int key = song.notes[i].key;
        in = in && key >= lowest && key <= highest && read_scale(scale) >> key % 12 & 1;
    }
    midi_free(&song);
    return in;
}

static void check_guards(void) {
    CHECK(call("MODEL --seed 3 --tokens 900 --scale Eb-major -o @/g.mid") == 0, "%s", said);
    CHECK(plays("g.mid", "Eb-major", 21, 108), "notes outside --scale Eb-major");
    CHECK(call("MODEL --seed 3 --tokens 900 --scale C-blues --lowest C3 --highest 71 -o @/g.mid -o @/g.svg") == 0, "%s",
          said);
    CHECK(plays("g.mid", "C-blues", 48, 71), "notes outside C3 to 71");
    contains("g.svg", "scale C-blues, lowest C3, highest 71");
    // One key only, and the strictest filters: there is always a token to choose.
    CHECK(call("MODEL --seed 3 --tokens 900 --lowest C4 --highest C4 --top-k 1 -o @/g.mid") == 0, "%s", said);
    CHECK(call("MODEL --seed 3 --tokens 900 --lowest C4 --highest C4 --temperature 2 -o @/g.mid") == 0, "%s", said);
    CHECK(plays("g.mid", "C-major", 60, 60) && strstr(said, "  C4-C4  "), "notes beside the only one: %s", said);
    CHECK(call("MODEL --lowest C4 --highest B3 -o @/x.mid") == 2 &&
              strstr(said, "--lowest: no key of the piano lies from C4 to B3"),
          "%s", said);
    CHECK(call("MODEL --scale C-major --lowest C#4 --highest C#4 -o @/x.mid") == 2 && strstr(said, "no key of C-major"),
          "%s", said);
    CHECK(call("MODEL --scale X-major -o @/x.mid") == 2 && strstr(said, "--scale X-major: ") && strstr(said, "blues"),
          "%s", said);
    CHECK(call("MODEL --lowest Z -o @/x.mid") == 2 && strstr(said, "--lowest Z: it must be a key"), "%s", said);
    CHECK(call("MODEL --highest C9 -o @/x.mid") == 2 && strstr(said, "--highest C9: "), "%s", said);

    // --seconds: the first bar line at which there are enough, so that one bar less was too short.
    Model model;
    Song song;
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    for (int seed = 0; seed < 10; seed++) {
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .seconds = 7, .context = 64, .bpm = 90};
        CHECK(song_make(&song, &model, &settings, (uint64_t)seed, error), "%s", error);
        const double tick = tick_seconds(&song);
        CHECK(song.n_lines > 1 && song.tokens[song.n - 1] == MIDI_BAR && !song.cut, "--seconds 7: not at a bar line");
        CHECK((double)song.lines[song.n_lines - 1] * tick >= 7 - 1e-6, "--seconds 7 ended before");
        CHECK(song.n_lines < 2 || (double)song.lines[song.n_lines - 2] * tick < 7, "--seconds 7 ended too late");
        song_free(&song);
    }
    CHECK(call("MODEL --seconds 60 --tokens 5 --seed 1 -o @/g.mid") == 0 && strstr(said, "before --seconds 60"), "%s",
          said);

    // Every note-on has its note-off before the next of its key.
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 3000, .context = 64, .bpm = 120};
    for (int key = 0; key < V; key++) settings.filter.barred[key] = midi_token_kind(key) == MIDI_KIND_PITCH && key > 40;
    CHECK(song_make(&song, &model, &settings, 8, error), "%s", error);
    int64_t ends[128] = {0};
    size_t wrong = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        const midi_note *note = &song.midi.notes[i];
        wrong += note->start < ends[note->key] || note->end <= note->start || note->end - note->start > 32 * MIDI_STEP;
        ends[note->key] = note->end;
    }
    CHECK(song.midi.n_notes > 300 && wrong == 0, "%zu of %zu notes overlap on their key", wrong, song.midi.n_notes);

    // The report: the longest repetition by brute force, and the mean surprise by a plain forward.
    size_t longest = 0;
    int notes = 0, found = longest_repetition(&song);
    for (size_t a = 0; a < song.n; a++) {
        for (size_t b = a + 1; b < song.n; b++) {
            size_t n = 0;
            while (a + n < b && b + n < song.n && song.tokens[a + n] == song.tokens[b + n]) n++;
            if (n <= longest) continue;
            longest = n, notes = 0;
            for (size_t i = a; i < a + n; i++) notes += midi_token_kind(song.tokens[i]) == MIDI_KIND_DURATION;
        }
    }
    CHECK(longest > 3 && abs(found - notes) <= 1, "the longest repetition has %d notes, not %d", notes, found);
    Batch batch;
    const int room = 0;
    double sum = 0;
    CHECK(batch_new(&batch, &model, 1, 64, error), "%s", error);
    for (size_t i = 0; i < song.n; i++) {
        const int token = i ? song.tokens[i - 1] : MIDI_BAR;
        double all = 0;
        batch_step(&batch, &room, 1, &token);
        const float *logits = row(batch.logits, 0);
        for (int v = 0; v < V; v++) all += exp(logits[v]);
        sum -= log(exp(logits[song.tokens[i]]) / all);
    }
    CHECK(fabs(sum / (double)song.n - song.nll) < 1e-6, "the mean NLL is %g, not %g", sum / (double)song.n, song.nll);
    batch_free(&batch);
    song_free(&song);
    model_free(&model);
}

// --eval: the mean over whole windows, against the sums made one by one.
static void check_eval(void) {
    enum { N = 900 };
    uint8_t *tokens = random_tokens(N);
    const int64_t pieces[] = {0, 300, 310, N};
    CHECK(dataset_save(in_folder("eval.safetensors"), tokens, N, pieces, 3, "", error), "%s", error);
    Model model;
    Batch batch;
    const int room = 0;
    double sum = 0;
    int windows = 0;
    CHECK(model_load(&model, small_model, FLOAT32, error) && batch_new(&batch, &model, 1, 256, error), "%s", error);
    for (int w = 0; w < 44 + 334; w += 13, windows++) { // pieces of 300 and 590 tokens
        const uint8_t *at = tokens + (w < 44 ? w : 310 + w - 44);
        batch_begin(&batch, 0);
        for (int t = 0; t < 256; t++) {
            const int token = at[t];
            batch_step(&batch, &room, 1, &token);
            sum += surprise(row(batch.logits, 0), at[t + 1]);
        }
    }
    batch_free(&batch), model_free(&model);
    double loss = 0;
    int n = 0;
    CHECK(call("MODEL --eval @/eval.safetensors --eval-stride 13") == 0, "%s", said);
    CHECK(sscanf(said, "eval loss=%lf windows=%d ", &loss, &n) == 2 && n == windows, "%s", said);
    CHECK(fabs(loss - sum / (256.0 * windows)) < 2e-6, "--eval says %g, not %g", loss, sum / (256.0 * windows));
    CHECK(call("MODEL --eval @/eval.safetensors --eval-stride 13 --weights int8 --threads 1") == 0, "%s", said);
    double cost = -loss;
    CHECK(sscanf(said, "eval loss=%lf", &loss) == 1 && fabs(cost += loss) < 0.02, "int8 costs %g: %s", cost, said);
    CHECK(call("MODEL --eval @/nothing") == 1 && call("MODEL --eval MODEL") == 1, "%s", said);
    CHECK(call("MODEL --eval @/eval.safetensors --bench") == 2, "%s", said);
    free(tokens);
}

// All notes of a file's .svg and .mid are the song's, at their times.
static void check_files(void) {
    Model model;
    Song song;
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 900, .context = 64, .bpm = 96};
    CHECK(model_load(&model, small_model, FLOAT32, error) && song_make(&song, &model, &settings, 21, error), "%s",
          error);
    CHECK(song.midi.n_notes > 100, "only %zu notes", song.midi.n_notes);
    const char *mid = in_folder("f.mid"), *svg = in_folder("f.svg");
    CHECK(songs_write(&song, 1, mid, error) && songs_write(&song, 1, svg, error), "%s", error);

    midi_song back;
    midi_error problem;
    int ok = midi_read_file(&back, mid, 1 << 24, &problem);
    CHECK(ok && back.division == 480 && back.n_notes == song.midi.n_notes && back.open_notes == 0, "%s", problem.text);
    CHECK(back.n_tempos == 1 && back.tempos[0].us_per_quarter == 625000, "96 quarters a minute are not 625000 us");
    CHECK(back.n_meters >= 1 && back.meters[0].tick == 0, "no meter at the start");
    bool text = false;
    for (size_t i = 0; i < back.n_texts; i++) text = text || strstr(back.texts[i].text, "seed 21, tokens 900");
    CHECK(text, "the .mid does not say its seed and settings");
    size_t apart = 0; // a file's notes that begin together may come in any order
    for (size_t i = 0; ok && i < back.n_notes; i++) {
        size_t k = 0;
        const midi_note *note = &back.notes[i], *want = song.midi.notes;
        while (k < song.midi.n_notes &&
               (want[k].start != note->start || want[k].end != note->end || want[k].key != note->key)) {
            k++;
        }
        apart += k == song.midi.n_notes;
    }
    CHECK(apart == 0, "%zu of the .mid's notes are not the song's", apart);
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

// How strong a frequency is among the samples (Goertzel).
static double strength(const int16_t *left, size_t n, double frequency) {
    const double turn = 2 * cos(6.283185307179586 * frequency / SYNTH_RATE);
    double one = 0, two = 0;
    for (size_t i = 0; i < n; i++) {
        double window = 0.5 - 0.5 * cos(6.283185307179586 * (double)i / (double)n),
               next = window * left[2 * i] + turn * one - two;
        two = one, one = next;
    }
    return one * one + two * two - turn * one * two;
}

// The same notes at the same times in .mid, .svg, .html and .wav, read back from each: one note at a time, so that
// the sound of the last is told from the others.
static void check_formats(void) {
    enum { NOTES = 24, BPM = 100 };
    Model model;
    Song song = {0};
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 1, .context = 64, .bpm = BPM};
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    song.tokens = (uint8_t *)malloc(5 * NOTES);
    for (int i = 0; i < NOTES; i++) { // a note of 3 steps every 4, and a bar line after every fourth
        const int key = 40 + i * 11 % 48;
        if (i && i % 4 == 0) song.tokens[song.n++] = MIDI_OFFSET + 16, song.tokens[song.n++] = MIDI_BAR;
        song.tokens[song.n++] = (uint8_t)(MIDI_OFFSET + 4 * (i % 4));
        song.tokens[song.n++] = (uint8_t)(MIDI_PITCH + key - MIDI_LOWEST_KEY);
        song.tokens[song.n++] = MIDI_DURATION + 2;
    }
    CHECK(song_finish(&song, &model, &settings, error) && song.midi.n_notes == NOTES, "%s", error);
    static const char *const names[] = {"all.mid", "all.svg", "all.html", "all.wav"};
    for (int k = 0; k < 4; k++) CHECK(songs_write(&song, 1, in_folder(names[k]), error), "%s", error);

    midi_song mid;
    midi_error problem;
    void *svg = NULL, *html = NULL, *wav = NULL;
    size_t size;
    CHECK(midi_read_file(&mid, in_folder("all.mid"), 1 << 20, &problem) && mid.n_notes == NOTES, "%s", problem.text);
    CHECK(read_file(in_folder("all.svg"), &svg, &size, error) &&
              read_file(in_folder("all.html"), &html, &size, error) &&
              read_file(in_folder("all.wav"), &wav, &size, error),
          "%s", error);
    const int16_t *left = (const int16_t *)(void *)((char *)wav + 44);
    const size_t samples = (size - 44) / 4;
    const double step = 60.0 / BPM / 4;
    int in_svg = 0, in_html = 0, in_wav = 0;
    for (int i = 0; i < NOTES; i++) {
        const midi_note *note = &mid.notes[i];
        const double start = (double)note->start / MIDI_STEP * step, length = 3 * step;
        char text[100];
        CHECK(note->start == 4 * i * MIDI_STEP && note->end == note->start + 3 * MIDI_STEP &&
                  note->key == 40 + i * 11 % 48,
              ".mid: note %d is wrong", i);
        snprintf(text, sizeof text, "data-note=\"%d %lld %lld\"", note->key, (long long)note->start,
                 (long long)note->end);
        in_svg += strstr((char *)svg, text) != NULL;
        for (const char *line = strstr((char *)html, "\n["); line; line = strstr(line + 1, "\n[")) {
            double at, seconds;
            int key, velocity;
            if (sscanf(line, "\n[%lf,%lf,%d,%d]", &at, &seconds, &key, &velocity) != 4) continue;
            in_html += fabs(at - start) < 1e-3 && fabs(seconds - length) < 1e-3 && key == note->key && velocity == 80;
        }
        const size_t from = (size_t)((start + 0.02) * SYNTH_RATE), n = (size_t)(0.3 * SYNTH_RATE);
        double best = 0, heard = 0, before = 0;
        for (int key = 38; key < 90 && from + n < samples; key++) {
            double frequency = 440 * pow(2, (key - 69) / 12.0), now = strength(left + 2 * from, n, frequency);
            if (now > best) best = now, heard = key;
            if (key == note->key && i) before = strength(left + 2 * (from - n - n / 4), n, frequency) / (now + 1);
        }
        in_wav += heard == note->key && before < 0.1;
    }
    CHECK(in_svg == NOTES && in_html == NOTES && in_wav == NOTES, "of %d notes %d in .svg, %d in .html, %d in .wav",
          NOTES, in_svg, in_html, in_wav);
    const double ends = (NOTES * 4 - 1) * step, sound = (double)samples / SYNTH_RATE;
    CHECK(sound > ends && sound < ends + 4, "the .wav lasts %g s, the music %g s", sound, ends);
    free(svg), free(html), free(wav);
    midi_free(&mid);
    song_free(&song);
    model_free(&model);

    // One page for all songs, files of other kinds for each.
    CHECK(call("MODEL --seed 5 -n 3 --tokens 60 -o @/page.html -o @/page.svg") == 0, "%s", said);
    CHECK(exists("page.html") && exists("page-3.svg") && !exists("page-1.html"), "the names are wrong");
    contains("page.html", "seed 7");
    CHECK(call("MODEL MODEL --seed 5 --tokens 60 -o @/two.html -o @/two.mid") == 0, "%s", said);
    CHECK(same_file("two-1.mid", "two-2.mid") && strstr(said, "two.html  2 songs"), "a model beside itself: %s", said);
    CHECK(call("MODEL --seed 5 --tokens 60 -o @/only.html") == 0 && strstr(said, "song 1  "), "%s", said);
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
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 120, .context = 64, .bpm = 120};
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("prime.mid"));
    settings.prime_path = path;
    settings.prime_tokens = 47; // in the middle of bar 5: 11 tokens a bar of three notes and its line
    settings.songs = 1;
    int out = dup(1), file = open(in_folder("said"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    fflush(stdout), dup2(file, 1);
    bool ok = read_prime(&settings, false, stdout, error);
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
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
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
    CHECK(call("MODEL --bench") == 0 && !strncmp(said, "bench model=lstm weights=float32 songs=1 tokens_per_s=", 54),
          "%s", said);
    CHECK(strstr(said, " mb_per_step=") && strstr(said, " fraction="), "%s", said);
    CHECK(call("MODEL --tokens 9 --seed 1 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(lstm, 2 layers of width 20)");
    contains("k.svg", "temperature 1, bpm 120");
    snprintf(small_model, sizeof small_model, "%s", gpt);
    CHECK(call("MODEL --bench") == 0 &&
              !strncmp(said, "bench model=gpt weights=float32 songs=1 context=256 tokens_per_s=", 65),
          "%s", said);
    CHECK(strstr(said, "bench model=gpt weights=float32 songs=1 context=1024 tokens_per_s="), "%s", said);
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
    check_names();
    check_filters();
    for (int kind = 0; kind < 2; kind++) {
        snprintf(small_model, sizeof small_model, "%s", kind ? lstm : gpt);
        check_grammar();
        check_seeds();
        check_batches();
        check_guards();
        check_eval();
        check_prime();
        if (kind) check_lstm_files(small_lstm);
        if (!kind) check_gpt_files(small);
    }
    check_kinds(gpt, lstm); // leaves MODEL the Transformer
    check_files();
    check_formats();
    check_bars();
    check_usage();
    check_bad_files();

    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0, "%s could not be removed", folder);
    return check_report("sample");
}
