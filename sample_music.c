// sample_music.c: new piano music from a trained model, as a .mid to play and an .svg to look at.
//
//     ./sample_music -o song.mid -o song.svg --seed 7
//     ./sample_music out/lstm/model.safetensors --prime mine.mid --top-p 0.95 -n 4 -o song.mid
//
// Promises. The same model, flags and seed give the same bytes, whatever the number of threads; song i of `-n N` is the
// song that `--seed s+i` gives. Every token obeys the grammar of midi.h, so that none is wasted. The logits are the
// full forward's to rounding, but a token costs one pass over the weights, however much was generated before: the LSTM
// carries its state, the Transformer the keys and values of its context, over which it passes too. Beyond --context
// tokens each position of the Transformer attends to the last --context ones, itself included. The kind of the model is
// told by its tensors' names, its sizes by their shapes. An output file appears whole or not at all.
//
// Leaves out: other models, and sizes of numbers other than float32.
//
// How it is fast. One token is a row of matrix-vector products, each weight used once: the memory's read rate is the
// limit (`--bench` measures both). So the weights lie in memory exactly in the order in which they are read, the keys
// and values of the context lie in blocks as the products want them, and all loops over them use the compiler's
// vectors. Asking for data ahead by hand was measured and does not pay: the hardware foresees such orderly reading.
//
// The models are those of dev/train_gpt_music.c and dev/train_lstm_music.c.
// Letters: V vocabulary, C width, L layers, NH heads of size HS, N context (slots of the ring), t time; H hidden units
// of a Transformer's layer or of an LSTM's, E width of the LSTM's embedding.

#define _DEFAULT_SOURCE // madvise, clock_gettime
#include "dev/flags.h"
#include "dev/philox.h"
#include "dev/safetensors.h"
#include "dev/vector.h"
#define MIDI_IMPLEMENTATION
#include "midi.h"
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#endif

enum { V = MIDI_TOKENS, PANEL = 4 * LANES }; // a panel of weights is four vectors wide

// ---- vectors and matrices

#define KEEP_LOOP _Pragma("GCC unroll 1") // memory read in larger bites, out of order, is read slower

static int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// y[n_out, rounded up to PANEL] = bias + W x; bias may be y. W is in panels, [n_out / PANEL][n_in][PANEL]: each input
// number meets four whole vectors of weights that follow each other in memory.
static void matvec(float *y, const float *bias, const float *panels, const float *x, int n_in, int n_out) {
    const vector *w = (const vector *)panels;
    for (int o = 0; o < n_out; o += PANEL) {
        vector *out = (vector *)(y + o);
        const vector *start = (const vector *)(bias + o);
        vector even[4] = {start[0], start[1], start[2], start[3]}, odd[4] = {{0}}; // two, to wait less for each sum
        int i = 0;
        KEEP_LOOP for (; i + 2 <= n_in; i += 2, w += 8) {
            UNROLL for (int k = 0; k < 4; k++) even[k] += w[k] * x[i];
            UNROLL for (int k = 0; k < 4; k++) odd[k] += w[4 + k] * x[i + 1];
        }
        for (; i < n_in; i++, w += 4) {
            UNROLL for (int k = 0; k < 4; k++) even[k] += w[k] * x[i];
        }
        UNROLL for (int k = 0; k < 4; k++) out[k] = even[k] + odd[k];
    }
}

// The arrays of the next three hold zeros from n to the next multiple of LANES.

static void add(float *x, const float *y, int n) { // x += y
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) + load(y + i));
}

static void relu(float *x, int n) { // keeps a NaN, so that it shows
    for (int i = 0; i < n; i += LANES) store(x + i, keep_where(~(load(x + i) < 0), load(x + i)));
}

// x = LayerNorm(x) * weight + bias
static void layernorm(float *x, const float *weight, const float *bias, int n) {
    vector sum = {0}, squares = {0};
    for (int i = 0; i < n; i += LANES) sum += load(x + i);
    float mean = sum_lanes(sum) / (float)n;
    for (int i = 0; i < n; i++) x[i] -= mean;
    for (int i = 0; i < n; i += LANES) squares += load(x + i) * load(x + i);
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)n + 1e-5f);
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) * scale * load(weight + i) + load(bias + i));
}

// ---- memory, and weights out of a file

// Zeroed memory, aligned for vectors, in the system's large pages where it offers them: with the usual pages of 4 KB
// the processor spends a third of its time looking addresses up. NULL: no memory. The caller frees it.
static float *vector_alloc(int64_t floats) {
    const size_t large = (size_t)2 << 20;
    size_t size = (size_t)floats * sizeof(float), unit = size < large ? 64 : large;
    size = (size + unit - 1) / unit * unit;
    float *memory = (float *)aligned_alloc(unit, size ? size : unit);
#if defined(MADV_HUGEPAGE)
    if (memory && unit == large) madvise(memory, size, MADV_HUGEPAGE); // advice: nothing is lost if it is not taken
#endif
    if (memory) memset(memory, 0, size);
    return memory;
}

// One piece of memory for many arrays. What lays them out runs twice: first without memory, to learn how much it takes.
typedef struct {
    float *memory;  // or NULL
    int64_t floats; // taken so far
} Arena;

static float *take(Arena *arena, int64_t floats) {
    float *place = arena->memory ? arena->memory + arena->floats : NULL;
    arena->floats += round_up(floats, PANEL);
    return place;
}

// A model's file on its way into memory.
typedef struct {
    const StFile *file;
    const char *path;
    char *error;
    bool ok;            // false once a sentence is in error
    int64_t parameters; // copied so far
    Arena arena;
} Loader;

// How a matrix lies in memory, zeros where it is padded. A vector is a matrix of one column.
typedef enum {
    ROWS,   // [rows][cols rounded up to LANES]
    PANELS, // [rows / PANEL][cols][PANEL], the rows rounded up
    GATES   // panels of LANES units with their four gates, [units / LANES][cols][4][LANES], the units rounded up
} Arrangement;

// The tensor `name`, if it has this rank (1 or 2) and, where they are not 0, these sizes; else NULL and a sentence.
static const StTensor *tensor_need(Loader *from, const char *name, int rank, int64_t rows, int64_t cols) {
    const StTensor *tensor = st_find(from->file, name);
    const int64_t want[2] = {rows ? rows : -1, cols ? cols : -1};
    char has[200], needs[200];
    if (!from->ok) return NULL;
    if (!tensor) {
        from->ok =
            fail(from->error, "%s: tensor '%s' %s is missing", from->path, name, st_shape_text(needs, rank, want));
        return NULL;
    }
    bool right = tensor->rank == rank;
    for (int d = 0; right && d < rank; d++) {
        int64_t size = tensor->shape[d];
        right = size >= 1 && size <= 1 << 20 && (want[d] < 0 || size == want[d]);
    }
    if (!right) {
        from->ok = fail(from->error, "%s: tensor '%s' has the shape %s instead of %s", from->path, name,
                        st_shape_text(has, tensor->rank, tensor->shape), st_shape_text(needs, rank, want));
    } else if (!st_is_float(tensor)) {
        from->ok = fail(from->error, "%s: tensor '%s' is %s instead of floating point", from->path, name,
                        st_type_name(tensor->type));
    }
    return from->ok ? tensor : NULL;
}

// Takes room for a tensor, [rows][cols] or with cols = 0 [rows]. Without memory it is checked, with memory copied;
// every number must be finite.
PRINTF_LIKE(5, 6)
static float *matrix(Loader *from, Arrangement arrangement, int rows, int cols, const char *format, ...) {
    char name[64];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const StTensor *tensor = tensor_need(from, name, cols ? 2 : 1, rows, cols);
    if (!tensor) return NULL;
    const int64_t n = cols ? cols : 1, wide = round_up(n, LANES), units = rows / 4;
    const int64_t high = round_up(arrangement == GATES ? 4 * round_up(units, LANES) : rows, PANEL);
    float *place = take(&from->arena, arrangement == ROWS ? rows * wide : high * n);
    for (int64_t i = 0; place && i < tensor->count; i++) {
        int64_t row = i / n, col = i % n;
        float value = (float)st_get(tensor, i);
        if (!isfinite(value)) {
            from->ok = fail(from->error, "%s: tensor '%s' has a number that is not finite", from->path, name);
            return NULL;
        }
        if (arrangement == GATES) {
            int64_t gate = row / units, unit = row % units;
            row = unit / LANES * PANEL + gate * LANES + unit % LANES;
        }
        place[arrangement == ROWS ? row * wide + col : (row / PANEL * n + col) * PANEL + row % PANEL] = value;
        from->parameters++;
    }
    return place;
}

static bool no_memory(const Loader *from) { return fail(from->error, "%s: does not fit into memory", from->path); }

// 1 + the largest number behind `mark` in a tensor's name that begins with `kind`; 0: there is none.
static int count_layers(const StFile *file, const char *kind, const char *mark) {
    int layers = 0, layer;
    for (int i = 0; i < file->n_tensors; i++) {
        const char *name = file->tensors[i].name;
        const char *at = strncmp(name, kind, strlen(kind)) ? NULL : strstr(name, mark);
        bool has = at && sscanf(at + strlen(mark), "%5d", &layer) == 1;
        if (has && layer >= layers) layers = layer + 1;
    }
    return layers;
}

// ---- the Transformer
//
// The scores of a layer add to those of the layer below (He et al., RealFormer, 2021), relative positions are clipped
// (Huang et al., Music Transformer, 2019).

typedef struct {           // one layer's weights, in the order of use
    float *qkv, *qkv_bias; // panels of [3C][C], [3C]
    float *rel;            // panels of [rel][HS]; row rel-1-n belongs to distance n, row 0 to all beyond
    float *out, *out_bias; // panels of [C][C], [C]
    float *ln1, *ln1_bias; // [C]
    float *fc1, *fc1_bias; // panels of [H][C], [H]
    float *fc2, *fc2_bias; // panels of [C][H], [C]
    float *ln2, *ln2_bias; // [C]
} GptLayer;

typedef struct {
    int C, L, NH, HS, H, rel;
    float *emb;              // [V][C], rows padded to a multiple of LANES
    GptLayer *layers;        // [L]
    float *head, *head_bias; // panels of [V][C], [V]
} Gpt;

// What a song in the making carries from token to token: keys and values of the last N tokens.
typedef struct {
    int N, slots; // length of the ring, and that rounded up to PANEL
    int64_t t;    // tokens seen; the next one goes to slot t % N
    // The cache: [L] of keys, each head in panels as weights are, [NH][slots / PANEL][HS][PANEL], then values,
    // [NH][HS / LANES, rounded up][slots][LANES].
    float *cache;
    int64_t layer_floats; // of one layer's keys and values
    float *x;             // [C] the residual stream
    float *qkv;           // [3C]
    float *heads;         // [C] the heads' outputs side by side
    float *hidden;        // [H]
    float *update;        // [C] what a layer adds to x
    float *scores;        // [NH][slots] of this token, summed over the layers so far
    float *near;          // [NH][rel] q . R
    float *zeros;         // [rel]
    float *weights;       // [slots] one head's softmax, not yet divided by its sum
    float *logits;        // [V]
} GptState;

static void gpt_sizes(Gpt *m, Loader *from) {
    const StTensor *emb = tensor_need(from, "emb.weight", 2, V, 0);
    const StTensor *rel = tensor_need(from, "layers.0.attn.rel", 2, 0, 0);
    const StTensor *fc1 = tensor_need(from, "layers.0.fc1.weight", 2, 0, emb ? emb->shape[1] : 0);
    if (!from->ok) return;
    m->C = (int)emb->shape[1];
    m->L = count_layers(from->file, "layers.", ".");
    m->rel = (int)rel->shape[0];
    m->HS = (int)rel->shape[1];
    m->H = (int)fc1->shape[0];
    m->NH = m->C / m->HS;
    m->layers = (GptLayer *)calloc((size_t)m->L, sizeof *m->layers);
    if (!m->layers) from->ok = no_memory(from);
    if (m->C % m->HS) {
        from->ok = fail(from->error, "%s: tensor 'layers.0.attn.rel' has rows of %d, which should divide the width %d",
                        from->path, m->HS, m->C);
    }
}

static void gpt_weights(Gpt *m, Loader *from) { // in the order in which a token uses them
    const int C = m->C, H = m->H;
    m->emb = matrix(from, ROWS, V, C, "emb.weight");
    for (int i = 0; i < m->L; i++) {
        GptLayer *l = &m->layers[i];
        l->qkv = matrix(from, PANELS, 3 * C, C, "layers.%d.attn.qkv.weight", i);
        l->qkv_bias = matrix(from, PANELS, 3 * C, 0, "layers.%d.attn.qkv.bias", i);
        l->rel = matrix(from, PANELS, m->rel, m->HS, "layers.%d.attn.rel", i);
        l->out = matrix(from, PANELS, C, C, "layers.%d.attn.out.weight", i);
        l->out_bias = matrix(from, PANELS, C, 0, "layers.%d.attn.out.bias", i);
        l->ln1 = matrix(from, PANELS, C, 0, "layers.%d.ln1.weight", i);
        l->ln1_bias = matrix(from, PANELS, C, 0, "layers.%d.ln1.bias", i);
        l->fc1 = matrix(from, PANELS, H, C, "layers.%d.fc1.weight", i);
        l->fc1_bias = matrix(from, PANELS, H, 0, "layers.%d.fc1.bias", i);
        l->fc2 = matrix(from, PANELS, C, H, "layers.%d.fc2.weight", i);
        l->fc2_bias = matrix(from, PANELS, C, 0, "layers.%d.fc2.bias", i);
        l->ln2 = matrix(from, PANELS, C, 0, "layers.%d.ln2.weight", i);
        l->ln2_bias = matrix(from, PANELS, C, 0, "layers.%d.ln2.bias", i);
    }
    m->head = matrix(from, PANELS, V, C, "head.weight");
    m->head_bias = matrix(from, PANELS, V, 0, "head.bias");
}

static void gpt_state(GptState *s, const Gpt *m, int N, Arena *arena) {
    s->N = N;
    s->slots = (int)round_up(N, PANEL);
    s->layer_floats = (m->C + m->NH * round_up(m->HS, LANES)) * s->slots;
    s->cache = take(arena, m->L * s->layer_floats);
    s->x = take(arena, m->C);
    s->qkv = take(arena, 3 * m->C);
    s->heads = take(arena, m->C);
    s->hidden = take(arena, m->H);
    s->update = take(arena, m->C);
    s->scores = take(arena, (int64_t)m->NH * s->slots);
    s->near = take(arena, m->NH * round_up(m->rel, PANEL));
    s->zeros = take(arena, m->rel);
    s->weights = take(arena, s->slots);
    s->logits = take(arena, V);
}

// scores[n_slots] -> weights[n_slots] = exp(scores - the largest), n_slots a multiple of PANEL. Returns 1 / their sum.
static float softmax(float *weights, const float *scores, int n_slots) {
    vector top = load(scores), sum = {0};
    for (int i = LANES; i < n_slots; i += LANES) top = select_vector(load(scores + i) > top, load(scores + i), top);
    float most = top[0];
    for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
    for (int i = 0; i < n_slots; i += LANES) {
        vector weight = exp_vector(load(scores + i) - most);
        store(weights + i, weight);
        sum += weight;
    }
    return 1.0f / sum_lanes(sum);
}

// out[d] = scale * sum_j weights[j] values[d / LANES][j][d % LANES], d < HS, j < n_slots; the values are
// [HS / LANES, rounded up][slots][LANES].
static void weigh(float *out, float scale, const float *weights, const float *values, int n_slots, int64_t slots,
                  int HS) {
    for (int first = 0; first < HS; first += LANES, values += slots * LANES) {
        const vector *value = (const vector *)values;
        vector sums[8] = {{0}};
        KEEP_LOOP for (int j = 0; j < n_slots; j += 8) {
            UNROLL for (int k = 0; k < 8; k++) sums[k] += value[j + k] * weights[j + k];
        }
        vector sum =
            (((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))) * scale;
        memcpy(out + first, &sum, (size_t)(HS - first < LANES ? HS - first : LANES) * sizeof *out);
    }
}

// scores[i] += near[i] - far
static void add_near(float *restrict scores, const float *restrict near, float far, int n) {
    for (int i = 0; i < n; i++) scores[i] += near[i] - far;
}

// The attention of one layer: s->heads from the queries in s->qkv, scaled by 1 / sqrt(HS) already, and the layer's keys
// and values. s->scores comes with the sum of the layers below and leaves with this layer's added. `slot` is this
// token's, `filled` slots are in use. Each stage runs over all heads before the next: one head alone would spend its
// time waiting for the end of each sum.
static void gpt_attention(GptState *s, const Gpt *m, const float *keys, const float *values, const float *rel, int slot,
                          int filled) {
    const int NH = m->NH, HS = m->HS, n_rel = m->rel, near_floats = (int)round_up(n_rel, PANEL);
    const int n_slots = (int)round_up(filled, PANEL);
    const int64_t slots = s->slots, value_floats = round_up(HS, LANES) * slots;

    // q . R is one number for all distances of n_rel - 1 and more. Softmax does not see what is added to all scores,
    // neither here nor in the layers above, so only what the nearer ones differ by is added: from this slot downwards,
    // then from the ring's end.
    const int n_near = filled < n_rel ? filled : n_rel, before = n_near < slot + 1 ? n_near : slot + 1;
    for (int h = 0; h < NH; h++) matvec(s->near + h * near_floats, s->zeros, rel, s->qkv + h * HS, HS, n_rel);
    for (int h = 0; h < NH; h++) {
        float *scores = s->scores + h * slots, *near = s->near + h * near_floats;
        add_near(scores + slot + 1 - before, near + n_rel - before, near[0], before);
        add_near(scores + s->N - (n_near - before), near + n_rel - n_near, near[0], n_near - before);
        for (int i = filled; i < n_slots; i++) scores[i] = -INFINITY;
    }
    for (int h = 0; h < NH; h++) {
        float *scores = s->scores + h * slots;
        matvec(scores, scores, keys + h * HS * slots, s->qkv + h * HS, HS, n_slots);
    }
    for (int h = 0; h < NH; h++) {
        float scale = softmax(s->weights, s->scores + h * slots, n_slots);
        weigh(s->heads + h * HS, scale, s->weights, values + h * value_floats, n_slots, slots, HS);
    }
}

// Feeds one token; returns the logits [V] of the one after it, which stay valid until the next call.
static const float *gpt_step(GptState *s, const Gpt *m, int token) {
    const int C = m->C, HS = m->HS, slot = (int)(s->t % s->N), filled = s->t < s->N ? (int)s->t + 1 : s->N;
    const int64_t slots = s->slots;
    const float scale = 1.0f / sqrtf((float)HS);

    memcpy(s->x, m->emb + token * round_up(C, LANES), (size_t)C * sizeof(float));
    memset(s->scores, 0, (size_t)m->NH * (size_t)s->slots * sizeof(float));
    for (int i = 0; i < m->L; i++) {
        const GptLayer *l = &m->layers[i];
        matvec(s->qkv, l->qkv_bias, l->qkv, s->x, C, 3 * C);
        for (int c = 0; c < C; c++) s->qkv[c] *= scale;
        float *keys = s->cache + i * s->layer_floats, *values = keys + C * slots;
        for (int h = 0; h < m->NH; h++) {
            float *key = keys + h * HS * slots + slot / PANEL * PANEL * HS + slot % PANEL;
            float *value = values + h * round_up(HS, LANES) * slots + slot * LANES;
            for (int d = 0; d < HS; d++) {
                key[d * PANEL] = s->qkv[C + h * HS + d];
                value[d / LANES * LANES * slots + d % LANES] = s->qkv[2 * C + h * HS + d];
            }
        }
        gpt_attention(s, m, keys, values, l->rel, slot, filled);
        matvec(s->update, l->out_bias, l->out, s->heads, C, C);
        add(s->x, s->update, C);
        layernorm(s->x, l->ln1, l->ln1_bias, C);
        matvec(s->hidden, l->fc1_bias, l->fc1, s->x, C, m->H);
        relu(s->hidden, m->H);
        matvec(s->update, l->fc2_bias, l->fc2, s->hidden, m->H, C);
        add(s->x, s->update, C);
        layernorm(s->x, l->ln2, l->ln2_bias, C);
    }
    matvec(s->logits, m->head_bias, m->head, s->x, C, V);
    s->t++;
    return s->logits;
}

// The floats that a token needs: the weights but the embedding, and the context's keys and values.
static int64_t gpt_floats(const Gpt *m, int64_t parameters, int context) {
    return parameters - (int64_t)V * m->C + 2LL * m->L * m->C * context;
}

// ---- the LSTM
//
// Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, as PyTorch writes it: gates in the order
// i, f, g, o, each with two biases; a head of three linear layers, LayerNorm and ReLU between them. What comes before
// is all in h and c, so that there is no context to pass over.
//
// A panel of gates is PANEL = 4 LANES numbers wide: of LANES units all of i, then all of f, g and o.

typedef struct {
    float *ih, *hh;        // panels of [4H][E or H], [4H][H], in gates
    float *bias, *bias_hh; // [4H], in gates; bias is the sum of both in the end
} LstmLayer;

typedef struct {
    int E, H, L, H1, H2;                    // H1, H2: the widths of the head
    float *emb;                             // [V][E], rows padded to a multiple of LANES
    LstmLayer *layers;                      // [L]
    float *first;                           // [V][4H], in gates: each token's input product in layer 0, biases included
    float *fc1, *fc1_bias, *ln1, *ln1_bias; // panels of [H1][H], [H1], [H1], [H1]
    float *fc2, *fc2_bias, *ln2, *ln2_bias; // panels of [H2][H1], [H2], [H2], [H2]
    float *fc3, *fc3_bias;                  // panels of [V][H2], [V]
} Lstm;

typedef struct {
    int units;        // H rounded up to LANES; the last ones stay 0
    float *h, *c;     // [L][units]: what is carried from token to token
    float *gates;     // [4 units]
    float *fc1, *fc2; // [H1], [H2]
    float *logits;    // [V]
} LstmState;

static void lstm_sizes(Lstm *m, Loader *from) {
    const StTensor *emb = tensor_need(from, "emb.weight", 2, V, 0);
    const StTensor *hh = tensor_need(from, "lstm.weight_hh_l0", 2, 0, 0);
    const StTensor *fc1 = tensor_need(from, "head.1.weight", 2, 0, hh ? hh->shape[1] : 0);
    const StTensor *fc2 = tensor_need(from, "head.5.weight", 2, 0, fc1 ? fc1->shape[0] : 0);
    if (!from->ok) return;
    m->E = (int)emb->shape[1];
    m->H = (int)hh->shape[1];
    m->L = count_layers(from->file, "lstm.", "_l");
    m->H1 = (int)fc1->shape[0];
    m->H2 = (int)fc2->shape[0];
    m->layers = (LstmLayer *)calloc((size_t)m->L, sizeof *m->layers);
    if (!m->layers) from->ok = no_memory(from);
}

static void lstm_weights(Lstm *m, Loader *from) { // in the order in which a token uses them, but for those of `first`
    const int H = m->H;
    m->emb = matrix(from, ROWS, V, m->E, "emb.weight");
    m->first = take(&from->arena, V * 4 * round_up(H, LANES));
    for (int i = 0; i < m->L; i++) {
        LstmLayer *l = &m->layers[i];
        l->ih = matrix(from, GATES, 4 * H, i ? H : m->E, "lstm.weight_ih_l%d", i);
        l->bias = matrix(from, GATES, 4 * H, 0, "lstm.bias_ih_l%d", i);
        l->bias_hh = matrix(from, GATES, 4 * H, 0, "lstm.bias_hh_l%d", i);
        l->hh = matrix(from, GATES, 4 * H, H, "lstm.weight_hh_l%d", i);
    }
    m->fc1 = matrix(from, PANELS, m->H1, H, "head.1.weight");
    m->fc1_bias = matrix(from, PANELS, m->H1, 0, "head.1.bias");
    m->ln1 = matrix(from, PANELS, m->H1, 0, "head.2.weight");
    m->ln1_bias = matrix(from, PANELS, m->H1, 0, "head.2.bias");
    m->fc2 = matrix(from, PANELS, m->H2, m->H1, "head.5.weight");
    m->fc2_bias = matrix(from, PANELS, m->H2, 0, "head.5.bias");
    m->ln2 = matrix(from, PANELS, m->H2, 0, "head.6.weight");
    m->ln2_bias = matrix(from, PANELS, m->H2, 0, "head.6.bias");
    m->fc3 = matrix(from, PANELS, V, m->H2, "head.9.weight");
    m->fc3_bias = matrix(from, PANELS, V, 0, "head.9.bias");
}

static void lstm_prepare(Lstm *m) { // once its weights are there: what needs no computing anew for each token
    const int gates = 4 * (int)round_up(m->H, LANES);
    for (int i = 0; i < m->L; i++) add(m->layers[i].bias, m->layers[i].bias_hh, gates);
    for (int v = 0; v < V; v++) {
        matvec(m->first + v * gates, m->layers[0].bias, m->layers[0].ih, m->emb + v * round_up(m->E, LANES), m->E,
               gates);
    }
}

static void lstm_state(LstmState *s, const Lstm *m, Arena *arena) {
    s->units = (int)round_up(m->H, LANES);
    s->h = take(arena, m->L * s->units);
    s->c = take(arena, m->L * s->units);
    s->gates = take(arena, 4 * s->units);
    s->fc1 = take(arena, m->H1);
    s->fc2 = take(arena, m->H2);
    s->logits = take(arena, V);
}

// c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c)
static void lstm_cell(float *h, float *c, const float *gates, int units) {
    for (int u = 0; u < units; u += LANES, gates += PANEL) {
        vector i = sigmoid_vector(load(gates)), f = sigmoid_vector(load(gates + LANES));
        vector g = tanh_vector(load(gates + 2 * LANES)), o = sigmoid_vector(load(gates + 3 * LANES));
        vector cell = f * load(c + u) + i * g;
        store(c + u, cell);
        store(h + u, o * tanh_vector(cell));
    }
}

static const float *lstm_step(LstmState *s, const Lstm *m, int token) { // as gpt_step
    const int H = m->H, gates = 4 * s->units;
    const float *below = NULL, *input = m->first + token * gates;
    for (int i = 0; i < m->L; i++) {
        const LstmLayer *l = &m->layers[i];
        float *h = s->h + i * s->units, *c = s->c + i * s->units;
        if (i) {
            matvec(s->gates, l->bias, l->ih, below, H, gates);
            input = s->gates;
        }
        matvec(s->gates, input, l->hh, h, H, gates);
        lstm_cell(h, c, s->gates, s->units);
        below = h;
    }
    matvec(s->fc1, m->fc1_bias, m->fc1, below, H, m->H1);
    layernorm(s->fc1, m->ln1, m->ln1_bias, m->H1);
    relu(s->fc1, m->H1);
    matvec(s->fc2, m->fc2_bias, m->fc2, s->fc1, m->H1, m->H2);
    layernorm(s->fc2, m->ln2, m->ln2_bias, m->H2);
    relu(s->fc2, m->H2);
    matvec(s->logits, m->fc3_bias, m->fc3, s->fc2, m->H2, V);
    return s->logits;
}

// The floats that a token needs: the weights but the embedding, one of each layer's two biases, and layer 0's input
// weights, instead of which (and of its other bias) a row of `first` is read.
static int64_t lstm_floats(const Lstm *m, int64_t parameters) {
    return parameters - (int64_t)V * m->E - (int64_t)4 * m->H * (m->L + m->E);
}

// ---- a model of either kind

typedef enum { GPT, LSTM } Kind;

static const char *const kind_names[] = {"gpt", "lstm"};

typedef struct {
    Kind kind;
    Gpt gpt; // one of the two
    Lstm lstm;
    int64_t parameters;
    float *memory;   // owns all weights
    char about[200]; // for people: kind and sizes
} Model;

static void model_free(Model *m) {
    free(m->gpt.layers);
    free(m->lstm.layers);
    free(m->memory);
    memset(m, 0, sizeof *m);
}

static void model_sizes(Model *m, Loader *from) {
    if (count_layers(from->file, "lstm.", "_l")) {
        m->kind = LSTM;
        lstm_sizes(&m->lstm, from);
    } else if (count_layers(from->file, "layers.", ".")) {
        m->kind = GPT;
        gpt_sizes(&m->gpt, from);
    } else {
        from->ok = fail(from->error, "%s: has the tensors of neither a Transformer nor an LSTM; give a trained model",
                        from->path);
    }
}

static void model_weights(Model *m, Loader *from) {
    if (m->kind == GPT) gpt_weights(&m->gpt, from);
    if (m->kind == LSTM) lstm_weights(&m->lstm, from);
}

static void model_describe(Model *m, const StFile *file, const char *path) {
    const char *slash = strrchr(path, '/'), *epoch = st_meta(file, "epoch");
    int layers = m->kind == GPT ? m->gpt.L : m->lstm.L, width = m->kind == GPT ? m->gpt.C : m->lstm.H;
    snprintf(m->about, sizeof m->about, "%.80s (%s, %d layers of width %d%s%.20s)", slash ? slash + 1 : path,
             kind_names[m->kind], layers, width, epoch ? ", epoch " : "", epoch ? epoch : "");
}

// Reads a model or a resume state (whose further tensors are left alone). After a failure there is nothing to free.
static bool model_load(Model *m, const char *path, char *error) {
    StFile file;
    Loader from = {&file, path, error, true, 0, {NULL, 0}};
    memset(m, 0, sizeof *m);
    if (!st_read(&file, path, error)) return false;
    model_sizes(m, &from);
    model_weights(m, &from);
    if (from.ok) {
        m->memory = vector_alloc(from.arena.floats);
        from.arena = (Arena){m->memory, 0};
        if (!m->memory) from.ok = no_memory(&from);
    }
    model_weights(m, &from);
    if (from.ok && m->kind == LSTM) lstm_prepare(&m->lstm);
    m->parameters = from.parameters;
    model_describe(m, &file, path);
    st_free(&file);
    if (!from.ok) model_free(m);
    return from.ok;
}

// What a song in the making carries from token to token.
typedef struct {
    const Model *model;
    GptState gpt; // one of the two
    LstmState lstm;
    float *memory; // owns all of it
} Stream;

static void stream_free(Stream *s) {
    free(s->memory);
    memset(s, 0, sizeof *s);
}

static void stream_lay_out(Stream *s, int context, Arena *arena) {
    if (s->model->kind == GPT) gpt_state(&s->gpt, &s->model->gpt, context, arena);
    if (s->model->kind == LSTM) lstm_state(&s->lstm, &s->model->lstm, arena);
}

// A stream that has seen nothing; context: of a Transformer. After a failure there is nothing to free.
static bool stream_new(Stream *s, const Model *m, int context, char *error) {
    Arena arena = {NULL, 0};
    memset(s, 0, sizeof *s);
    s->model = m;
    stream_lay_out(s, context, &arena);
    s->memory = arena.memory = vector_alloc(arena.floats);
    if (!s->memory) {
        return fail(error, "a song's state of %lld MB does not fit into memory%s", (long long)(arena.floats * 4 >> 20),
                    m->kind == GPT ? "; a smaller --context takes less" : "");
    }
    arena.floats = 0;
    stream_lay_out(s, context, &arena);
    return true;
}

static const float *stream_step(Stream *s, int token) {
    return s->model->kind == GPT ? gpt_step(&s->gpt, &s->model->gpt, token)
                                 : lstm_step(&s->lstm, &s->model->lstm, token);
}

// ---- choosing a token

typedef struct {
    double temperature; // 0: always the likeliest
    int64_t top_k;      // 0: off
    double top_p;       // 1: off
    double min_p;       // 0: off
} Filter;

typedef struct {
    int token;
    double p;
} Candidate;

static int by_chance(const void *a, const void *b) { // likeliest first; of equal ones the lower token
    const Candidate *x = (const Candidate *)a, *y = (const Candidate *)b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

// The tokens that may be drawn after `previous`, likeliest first, with chances that add up to 1: those that the grammar
// allows, at the temperature; of these the top_k likeliest; of these the fewest that together have top_p of the chance
// (Holtzman et al., 2020); of these the ones at least min_p times as likely as the likeliest (Nguyen et al., 2024).
// Returns how many, at least 1.
static int candidates(const float *logits, int previous, const Filter *filter, Candidate list[MIDI_TOKENS]) {
    int n = 0;
    double most = -INFINITY, sum = 0, together = 0;
    for (int token = 0; token < MIDI_TOKENS; token++) {
        if (!midi_may_follow(previous, token)) continue;
        list[n].token = token;
        list[n++].p = logits[token];
        if (logits[token] > most) most = logits[token];
    }
    for (int i = 0; i < n; i++) {
        bool top = list[i].p == most;
        list[i].p = filter->temperature > 0 ? exp((list[i].p - most) / filter->temperature) : top;
    }
    qsort(list, (size_t)n, sizeof *list, by_chance);
    if (filter->temperature == 0) n = 1;
    if (filter->top_k && n > filter->top_k) n = (int)filter->top_k;
    for (int i = 0; i < n; i++) sum += list[i].p;
    for (int i = 0; i < n; i++) {
        if (i && (together >= filter->top_p * sum || list[i].p < filter->min_p * list[0].p)) n = i;
        if (i < n) together += list[i].p;
    }
    for (int i = 0; i < n; i++) list[i].p /= together;
    return n;
}

// Draws by u in [0, 1): the first candidate at which the chances, added up from the likeliest down, pass u.
static int draw(const float *logits, int previous, const Filter *filter, double u) {
    Candidate list[MIDI_TOKENS];
    int n = candidates(logits, previous, filter, list), i = 0;
    double sum = list[0].p;
    while (i < n - 1 && sum <= u) sum += list[++i].p;
    return list[i].token;
}

// ---- a song

typedef struct { // what all songs of one call share
    const char *model_path;
    Filter filter;
    int64_t tokens, bars; // the most of new material; 0: no limit, but not both
    int64_t context, prime_tokens, songs, threads;
    double bpm;
    uint64_t seed;
    const char *prime_path;
    bool no_prime;
    uint8_t *prime; // the first of the prime's tokens, n_prime of them
    size_t n_prime;
} Settings;

typedef struct {
    uint64_t seed;
    uint8_t *tokens; // prime and new material
    size_t n, n_prime;
    bool cut;         // it has fewer bars than asked for, because it has as many tokens as it may
    double seconds;   // it took
    midi_song midi;   // notes, bar lines, tempo, meters and texts of what is written
    bool *from_prime; // [midi.n_notes]
    int64_t *lines;   // [n_lines] ticks of the bar lines that count, 0 the first
    int n_lines;
    int64_t end; // tick
    char model[240], how[600];
} Song;

enum { QUARTER = 4 * MIDI_STEP, LONGEST_BAR = 31 }; // ticks; steps: a longer bar has a token at each 31 of them

static void song_free(Song *song) {
    free(song->tokens);
    midi_free(&song->midi);
    free(song->from_prime);
    free(song->lines);
    memset(song, 0, sizeof *song);
}

// Samples song->tokens. Stops after settings->tokens new ones, or at the bar line behind `bars` whole bars; the rest of
// the bar in which a prime breaks off is not one of them, and lines count as song_find_lines counts them. Token i takes
// the random number of counter i, so that it does not matter who else draws.
static bool song_sample(Song *song, const Model *model, const Settings *settings, char *error) {
    enum { TOKENS_IN_BAR = 2048 }; // with --bars alone: a model that forgets to end its bars must end too
    size_t most = (size_t)(settings->tokens ? settings->tokens : settings->bars * TOKENS_IN_BAR), n = settings->n_prime;
    size_t capacity = n + most + 1, context = capacity;
    Stream stream;
    if (context > (size_t)settings->context) context = (size_t)settings->context;
    song->tokens = (uint8_t *)malloc(capacity);
    if (!song->tokens) return fail(error, "--tokens %zu: no memory for them", most);
    if (!stream_new(&stream, model, (int)context, error)) return false;
    double start = seconds_now();
    const float *logits = NULL;
    int previous = MIDI_BAR;
    if (!n) logits = stream_step(&stream, MIDI_BAR);
    for (size_t i = 0; i < n; i++) logits = stream_step(&stream, previous = song->tokens[i] = settings->prime[i]);
    int64_t bars = previous == MIDI_BAR ? 0 : -1;
    PhiloxKey key = philox_key(song->seed, PHILOX_SAMPLE, 0);
    bool finite = true;
    for (size_t i = 0; i < most; i++) {
        for (int v = 0; v < MIDI_TOKENS; v++) finite = finite && isfinite(logits[v]);
        if (!finite) break;
        Philox4 words = philox(key, (uint32_t)i, 0, 0, 0);
        int token = draw(logits, previous, &settings->filter, philox_uniform(words.x[0], words.x[1]));
        song->tokens[n++] = (uint8_t)token;
        bars += token == MIDI_BAR && previous != MIDI_OFFSET && previous != MIDI_OFFSET + LONGEST_BAR;
        if (settings->bars && bars == settings->bars) break;
        if (i + 1 < most) logits = stream_step(&stream, token);
        previous = token;
    }
    song->seconds = seconds_now() - start;
    song->n = n;
    song->n_prime = settings->n_prime;
    song->cut = settings->bars && bars < settings->bars;
    stream_free(&stream);
    return finite ||
           fail(error, "%s: computes numbers that are not finite; it should be trained anew", settings->model_path);
}

// Marks the notes of the prime: as both lists are in one order, each is the next that is equal. With no_prime they are
// taken out instead, and the song begins at the bar line before the first new token.
static bool song_mark_prime(Song *song, bool no_prime, char *error) {
    midi_song prime;
    midi_error problem;
    if (!midi_decode(song->tokens, song->n_prime, &prime, &problem)) return fail(error, "%s", problem.text);
    midi_song *all = &song->midi;
    int64_t shift = no_prime && prime.n_bars ? prime.bars[prime.n_bars - 1] : 0;
    size_t matched = 0, kept = 0;
    for (size_t i = 0; i < all->n_notes; i++) {
        midi_note note = all->notes[i];
        const midi_note *next = matched < prime.n_notes ? &prime.notes[matched] : NULL;
        bool old = next && next->start == note.start && next->key == note.key && next->end == note.end;
        matched += old;
        if (old && no_prime) continue;
        note.start -= shift;
        note.end -= shift;
        song->from_prime[kept] = old;
        all->notes[kept++] = note;
    }
    all->n_notes = kept;
    size_t skipped = no_prime ? prime.n_bars : 0;
    for (size_t i = skipped; i < all->n_bars; i++) all->bars[i - skipped] = all->bars[i] - shift;
    all->n_bars -= skipped;
    midi_free(&prime);
    return true;
}

// The bar lines that count: neither bars without length nor the lines that only cut a long bar at 31 steps.
static void song_find_lines(Song *song) {
    int64_t previous = 0;
    song->n_lines = 1;
    song->lines[0] = 0;
    for (size_t i = 0; i < song->midi.n_bars; i++) {
        int64_t tick = song->midi.bars[i];
        if (tick > previous && tick - previous != LONGEST_BAR * MIDI_STEP) song->lines[song->n_lines++] = tick;
        previous = tick;
    }
}

// A bar of so many steps as n / 2^exponent: quarters if it is whole quarters, else eighths, else sixteenths.
static void bar_meter(int64_t steps, int64_t *numerator, int *exponent) {
    *exponent = steps % 4 == 0 ? 2 : steps % 2 == 0 ? 3 : 4;
    *numerator = steps >> (4 - *exponent);
}

// Tempo, settings as text, and a time signature wherever the length of the bars changes. The last bar, if it was never
// closed, is taken to be as long as the one before.
static bool song_add_events(Song *song, double bpm) {
    midi_song *midi = &song->midi;
    bool ok = midi_add_tempo(midi, 0, (int)lrint(60e6 / bpm), 0) && midi_add_text(midi, 0, 3, "Piano", 0) &&
              midi_add_text(midi, 0, 1, song->model, 0) && midi_add_text(midi, 0, 1, song->how, 0);
    int64_t steps = 0;
    for (int i = 0; ok && i + 1 < song->n_lines; i++) {
        int64_t now = (song->lines[i + 1] - song->lines[i]) / MIDI_STEP, numerator;
        int exponent;
        bar_meter(now, &numerator, &exponent);
        if (now != steps && numerator < 256) ok = midi_add_meter(midi, song->lines[i], (int)numerator, exponent, 0);
        steps = now;
    }
    if (ok && !midi->n_meters) ok = midi_add_meter(midi, 0, 4, 2, 0);
    return ok;
}

// What made the song, apart from the model: all that it takes to make it again.
static void song_describe(Song *song, const Model *model, const Settings *settings) {
    const Filter *filter = &settings->filter;
    snprintf(song->model, sizeof song->model, "sample_music %s, model %s", MUSIC_VERSION, model->about);
    char *how = song->how;
    size_t size = sizeof song->how, n = 0;
#define ADD(...) n += (size_t)snprintf(how + n, n < size ? size - n : 0, __VA_ARGS__), n = n < size ? n : size - 1
    ADD("seed %llu", (unsigned long long)song->seed);
    if (settings->tokens) ADD(", tokens %lld", (long long)settings->tokens);
    if (settings->bars) ADD(", bars %lld", (long long)settings->bars);
    ADD(", temperature %g", filter->temperature);
    if (filter->top_k) ADD(", top-k %lld", (long long)filter->top_k);
    if (filter->top_p < 1) ADD(", top-p %g", filter->top_p);
    if (filter->min_p > 0) ADD(", min-p %g", filter->min_p);
    if (model->kind == GPT) ADD(", context %lld", (long long)settings->context);
    ADD(", bpm %g", settings->bpm);
    if (settings->prime_path) {
        const char *slash = strrchr(settings->prime_path, '/');
        ADD(", prime %.120s (%zu tokens%s)", slash ? slash + 1 : settings->prime_path, settings->n_prime,
            settings->no_prime ? ", left out" : "");
    }
#undef ADD
}

// A whole song of this seed. The caller frees it, after a failure too.
static bool song_make(Song *song, const Model *model, const Settings *settings, uint64_t seed, char *error) {
    midi_error problem;
    memset(song, 0, sizeof *song);
    song->seed = seed;
    if (!song_sample(song, model, settings, error)) return false;
    if (!midi_decode(song->tokens, song->n, &song->midi, &problem)) return fail(error, "%s", problem.text);
    song->from_prime = (bool *)calloc(song->midi.n_notes + 1, sizeof(bool));
    song->lines = (int64_t *)malloc((song->midi.n_bars + 1) * sizeof(int64_t));
    bool ok = song->from_prime && song->lines;
    if (ok && song->n_prime && !song_mark_prime(song, settings->no_prime, error)) return false;
    if (ok) {
        song_find_lines(song);
        song_describe(song, model, settings);
        for (size_t i = 0; i < song->midi.n_notes; i++) {
            if (song->midi.notes[i].end > song->end) song->end = song->midi.notes[i].end;
        }
        if (song->lines[song->n_lines - 1] > song->end) song->end = song->lines[song->n_lines - 1];
        ok = song_add_events(song, settings->bpm);
    }
    return ok || fail(error, "no memory for a song of %zu tokens", song->n);
}

// The bars that end with a line, and the one that was begun after them, if there is a note in it. Behind a line that is
// the last token nothing was begun: what sounds there rings on, or belongs to the bar before.
static int song_bars(const Song *song) {
    const midi_song *midi = &song->midi; // whose notes are sorted by their start
    int64_t line = song->lines[song->n_lines - 1];
    bool begun = song->tokens[song->n - 1] != MIDI_BAR && midi->n_notes && midi->notes[midi->n_notes - 1].start >= line;
    return song->n_lines - 1 + begun;
}

static double song_seconds(const Song *song) {
    return (double)song->end / QUARTER * 1e-6 * song->midi.tempos[0].us_per_quarter;
}

// ---- writing a song

static bool write_mid(const Song *song, const char *path, char *error) {
    uint8_t *bytes;
    size_t size;
    midi_error problem;
    if (!midi_write(&song->midi, &bytes, &size, &problem)) return fail(error, "%s: %s", path, problem.text);
    bool ok = write_file_atomically(path, bytes, size, error);
    MIDI_FREE(bytes);
    return ok;
}

static void print_escaped(StBuffer *out, const char *text) { // as XML; what is not UTF-8 or is a control becomes '?'
    size_t left = strlen(text);
    while (left) {
        int length = utf8_length(text, left);
        const char *name = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : NULL;
        if (name) {
            st_append(out, name, strlen(name));
        } else if (!length || (unsigned char)*text < 32 || *text == 127) {
            st_append(out, "?", 1);
        } else {
            st_append(out, text, (size_t)length);
        }
        text += length ? length : 1;
        left -= (size_t)(length ? length : 1);
    }
}

// The piano roll: time to the right in bars, broken into rows as a score is, pitch upwards in semitones. Numbers are in
// pixels of a page 1,000 wide.
typedef struct {
    int rows;
    double tick_width, key_height;
    int lowest, highest; // keys
} Roll;

enum { ROLL_LEFT = 44, ROLL_WIDTH = 940, ROLL_TOP = 92, ROLL_GAP = 34, ROLL_STEPS = 128 };

// Where the row that begins at `start` ends: at the last bar line that still fits, else in the middle of a bar.
static int64_t roll_row_end(const Song *song, int64_t start) {
    const int64_t most = start + ROLL_STEPS * MIDI_STEP;
    int64_t end = start;
    for (int i = 0; i < song->n_lines; i++) {
        if (song->lines[i] <= most) end = song->lines[i];
    }
    return song->end <= most ? song->end : end > start ? end : most;
}

static Roll roll_measure(const Song *song) {
    Roll roll = {0, 0, 3.6, 127, 0};
    int64_t longest = 16 * MIDI_STEP, start = 0;
    do { // the longest row fills the page
        int64_t end = roll_row_end(song, start);
        longest = end - start > longest ? end - start : longest;
        start = end;
        roll.rows++;
    } while (start < song->end);
    roll.tick_width = (double)ROLL_WIDTH / (double)longest;
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        int key = song->midi.notes[i].key;
        roll.lowest = key < roll.lowest ? key : roll.lowest;
        roll.highest = key > roll.highest ? key : roll.highest;
    }
    if (roll.lowest > roll.highest) roll.lowest = roll.highest = 60;
    roll.lowest -= 2;
    roll.highest += 2;
    while (roll.highest - roll.lowest < 24) roll.lowest -= roll.lowest > 22, roll.highest += roll.highest < 107;
    return roll;
}

static void svg_row(StBuffer *out, const Song *song, const Roll *roll, int64_t start, int64_t end, double top) {
    double height = (roll->highest - roll->lowest + 1) * roll->key_height, labelled = -100;
    st_print(out, "<g transform=\"translate(%d,%.1f)\"><use href=\"#keys\"/>\n", ROLL_LEFT, top);
    for (int i = 0; i < song->n_lines; i++) {
        int64_t line = song->lines[i], next = i + 1 < song->n_lines ? song->lines[i + 1] : song->end;
        if (line > end || next < start || (line == end && line < song->end)) continue;
        double x = (double)(line - start) * roll->tick_width;
        for (int64_t beat = line + QUARTER; beat < next && beat < end; beat += QUARTER) {
            double at = (double)(beat - start) * roll->tick_width;
            if (beat > start) st_print(out, "<path class=\"beat\" d=\"M%.1f 0V%.1f\"/>\n", at, height);
        }
        if (line < start) continue;
        st_print(out, "<path class=\"bar\" d=\"M%.1f 0V%.1f\"/>\n", x, height);
        if (x - labelled < 24 || line >= song->end) continue; // room for three digits
        st_print(out, "<text class=\"small\" x=\"%.1f\" y=\"-5\">%d</text>\n", x, i + 1);
        labelled = x;
    }
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const midi_note *note = &song->midi.notes[i];
        int64_t from = note->start > start ? note->start : start, to = note->end < end ? note->end : end;
        if (from >= to) continue;
        double width = (double)(to - from) * roll->tick_width - 0.8;
        st_print(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"1\"",
                 song->from_prime[i] ? "prime" : "new", (double)(from - start) * roll->tick_width + 0.4,
                 (roll->highest - note->key) * roll->key_height, width > 0.8 ? width : 0.8, roll->key_height);
        if (from == note->start) { // once per note, for programs: key, start and end in ticks
            st_print(out, " data-note=\"%d %lld %lld\"", note->key, (long long)note->start, (long long)note->end);
        }
        st_print(out, "/>\n");
    }
    st_print(out, "</g>\n");
}

static void svg_head(StBuffer *out, const Song *song, const Roll *roll, double page_height) {
    static const bool black[12] = {0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0};
    int width = ROLL_LEFT + ROLL_WIDTH + 16;
    st_print(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\">\n",
             width, page_height, width, page_height);
    st_print(out,
             "<style>text{font-family:'Helvetica Neue',Arial,sans-serif;fill:#222}.small{font-size:10px;fill:#666}"
             ".end{text-anchor:end}.new{fill:#1f6fb4}.prime{fill:#8c8c8c}.new,.prime{fill-opacity:.85}.black{fill:#"
             "f3f4f6}.c{stroke:#d3d6dc}"
             ".bar{stroke:#b4b9c2}.beat{stroke:#e7e9ed}.frame{fill:none;stroke:#b4b9c2}"
             "path,.frame{stroke-width:.8}</style>\n");
    st_print(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<defs><g id=\"keys\">\n");
    double height = (roll->highest - roll->lowest + 1) * roll->key_height;
    for (int key = roll->lowest; key <= roll->highest; key++) {
        double y = (roll->highest - key) * roll->key_height;
        if (black[key % 12]) {
            st_print(out, "<rect class=\"black\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", y, ROLL_WIDTH,
                     roll->key_height);
        }
        if (key % 12) continue;
        st_print(out, "<path class=\"c\" d=\"M0 %.1fH%d\"/>\n", y + roll->key_height, ROLL_WIDTH);
        st_print(out, "<text class=\"small end\" x=\"-6\" y=\"%.1f\">C%d</text>\n", y + roll->key_height + 1,
                 key / 12 - 1);
    }
    st_print(out, "<rect class=\"frame\" width=\"%d\" height=\"%.1f\"/>\n", ROLL_WIDTH, height);
    st_print(out, "<text class=\"small end\" x=\"-6\" y=\"-5\">bar</text>\n</g></defs>\n");
    st_print(out, "<text x=\"%d\" y=\"26\" font-size=\"16\" font-weight=\"bold\">%zu notes, %d bars, %.0f s</text>\n",
             ROLL_LEFT, song->midi.n_notes, song_bars(song), song_seconds(song));
    if (song->n_prime && song->from_prime[0]) {
        st_print(out, "<rect class=\"prime\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 126);
        st_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">prime</text>", width - 107);
        st_print(out, "<rect class=\"new\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 64);
        st_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">new</text>\n", width - 45);
    }
    st_print(out, "<text class=\"small\" x=\"%d\" y=\"43\">", ROLL_LEFT);
    print_escaped(out, song->how);
    st_print(out, "</text>\n<text class=\"small\" x=\"%d\" y=\"57\">", ROLL_LEFT);
    print_escaped(out, song->model);
    st_print(out, "</text>\n");
}

static bool write_svg(const Song *song, const char *path, char *error) {
    Roll roll = roll_measure(song);
    StBuffer out = {NULL, 0, 0, false};
    double row_height = (roll.highest - roll.lowest + 1) * roll.key_height + ROLL_GAP;
    svg_head(&out, song, &roll, ROLL_TOP + roll.rows * row_height - ROLL_GAP + 16);
    for (int64_t row = 0, start = 0, end; row < roll.rows; row++, start = end) {
        end = roll_row_end(song, start);
        svg_row(&out, song, &roll, start, end, ROLL_TOP + (double)row * row_height);
    }
    st_print(&out, "</svg>\n");
    bool ok = !out.failed || fail(error, "%s: cannot be written: out of memory", path);
    if (ok) ok = write_file_atomically(path, out.bytes, out.size, error);
    free(out.bytes);
    return ok;
}

typedef struct {
    const char *suffix;
    bool (*write)(const Song *song, const char *path, char *error);
} Format;

static const Format formats[] = {{".mid", write_mid}, {".svg", write_svg}};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static const Format *format_of(const char *path) { // by its suffix, or NULL
    size_t length = strlen(path);
    for (int i = 0; i < N_FORMATS; i++) {
        size_t suffix = strlen(formats[i].suffix);
        if (length > suffix && !strcmp(path + length - suffix, formats[i].suffix)) return &formats[i];
    }
    return NULL;
}

// ---- speed

// Reads n floats (a multiple of 128) as fast as one core can.
static float read_all(const float *memory, int64_t n) {
    vector sums[8] = {{0}};
    for (int64_t i = 0; i < n; i += 8 * LANES) {
        UNROLL for (int k = 0; k < 8; k++) sums[k] += load(memory + i + k * LANES);
    }
    return sum_lanes(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

// Times a token, with a full context where the model has one, in turn with reading as many bytes as it needs. Prints a
// line; false: no memory.
static bool bench(const Model *m, int context, char *error) {
    enum { ROUNDS = 40, EACH = 8 };
    Stream stream;
    if (!stream_new(&stream, m, context, error)) return false;
    int64_t needed =
        m->kind == GPT ? gpt_floats(&m->gpt, m->parameters, context) : lstm_floats(&m->lstm, m->parameters);
    int64_t floats = round_up(needed, 128);
    float *buffer = vector_alloc(floats);
    double reads[ROUNDS * EACH], tokens[ROUNDS * EACH];
    volatile float kept = 0; // so that the reading is not optimised away
    for (int i = 0; i < context; i++) stream_step(&stream, i % V);
    for (int i = 0; buffer && i < ROUNDS; i++) {
        for (int k = -1; k < EACH; k++) { // the first of each fills the caches
            double start = seconds_now();
            kept = kept + read_all(buffer, floats);
            if (k >= 0) reads[i * EACH + k] = seconds_now() - start;
        }
        for (int k = -1; k < EACH; k++) {
            double start = seconds_now();
            stream_step(&stream, (i + k + 1) % V);
            if (k >= 0) tokens[i * EACH + k] = seconds_now() - start;
        }
    }
    stream_free(&stream);
    if (!buffer) return fail(error, "--bench: no memory for a buffer of %lld MB", (long long)(floats * 4 >> 20));
    free(buffer);
    double token = median(tokens, ROUNDS * EACH), read = median(reads, ROUNDS * EACH);
    printf("bench model=%s", kind_names[m->kind]);
    if (m->kind == GPT) printf(" context=%d", context);
    printf(" tokens_per_s=%.0f read_gb_per_s=%.1f mb_per_token=%.1f limit_tokens_per_s=%.0f fraction=%.3f\n", 1 / token,
           (double)floats * 4e-9 / read, (double)needed * 4e-6, 1 / read, read / token);
    return true;
}

// ---- the command line

typedef struct {
    Settings settings;
    Texts outputs;
    const Flag *context;
    bool bench;
} Call;

static uint64_t fresh_seed(void) { // 32 bits: enough to differ, and short to type
    uint32_t seed = (uint32_t)time(NULL) * 2654435761u + (uint32_t)clock();
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(&seed, sizeof seed, 1, random) != 1) seed ^= 1;
        fclose(random);
    }
    return seed;
}

// False, and a sentence, where an argument is wrong.
static bool parse_call(Call *call, Flags *f, int argc, char **argv, char *error) {
    Settings *s = &call->settings;
    const double many = 1e6;
    Texts models;
    flag_texts(f, "", "MODEL", &models, 1,
               "what a trainer saved [out/gpt/model.safetensors, else out/lstm/model.safetensors]");
    flag_texts(f, "o", "FILE", &call->outputs, MAX_TEXTS,
               "write FILE; .mid is music, .svg a piano roll; may be given several times [song.mid]");
    flag_whole(f, "n", &s->songs, 1, 1, 10000, "N songs, each with the next seed; song i is written to FILE-i.mid");
    Flag *seed = flag_seed(f, &s->seed, "for the same song again [a fresh one, which is printed]");
    flag_whole(f, "tokens", &s->tokens, 0, 1, many,
               "at most N new tokens, about a third as many notes [1024, or no limit with --bars]");
    flag_whole(f, "bars", &s->bars, 0, 1, 1e5, "stop at the bar line after N whole new bars");
    flag_number(f, "temperature", &s->filter.temperature, 1, "[0, 100]",
                "below 1 safer, above 1 wilder, 0 always the likeliest token");
    flag_whole(f, "top-k", &s->filter.top_k, 0, 0, MIDI_TOKENS, "only the N likeliest tokens [0: all]");
    flag_number(f, "top-p", &s->filter.top_p, 1, "(0, 1]",
                "only the likeliest tokens that together have F of the chance [1: all]");
    flag_number(f, "min-p", &s->filter.min_p, 0, "[0, 1]",
                "only tokens at least F times as likely as the likeliest [0: all]");
    flag_text(f, "prime", "FILE", &s->prime_path, NULL, "go on from the beginning of this MIDI file");
    flag_whole(f, "prime-tokens", &s->prime_tokens, 256, 1, many, "its first N tokens");
    flag_switch(f, "no-prime", &s->no_prime, "leave the prime out of what is written");
    call->context = flag_whole(f, "context", &s->context, 1024, 1, 65536,
                               "each token of a Transformer looks back on the last N; an LSTM's state carries all");
    flag_number(f, "bpm", &s->bpm, 120, "[4, 1000]", "quarters per minute, written into the .mid");
    flag_whole(f, "threads", &s->threads, 0, 1, 1024, "songs made at a time, with -n; changes no byte [all cores]");
    flag_switch(f, "bench", &call->bench,
                "time a token (a Transformer's at contexts 256 and 1,024) against reading memory, one core; no song");
    if (!flags_parse(f, argc, argv, error)) return false;
    for (int i = 0; i < call->outputs.n; i++) {
        const char *path = call->outputs.list[i];
        if (!format_of(path)) return fail(error, "-o %s: the name should end in .mid or .svg", path);
    }
    if (s->no_prime && !s->prime_path) return fail(error, "--no-prime: it goes with --prime FILE");
    if (!s->tokens && !s->bars) s->tokens = 1024;
    if (!call->outputs.n) call->outputs.list[call->outputs.n++] = "song.mid";
    if (!seed->given) s->seed = fresh_seed();
    if (models.n) s->model_path = models.list[0];
    return true;
}

static void print_help(const Flags *flags) {
    printf("usage: sample_music [MODEL] [-o FILE ...] [flags]\n\n"
           "Writes new piano music with a trained model, or goes on with yours.\n\n");
    flags_print(flags);
    printf("\nGood starting points: --temperature 0.9, --top-p 0.95 or --min-p 0.05. Exit status: 0 done, 1 it failed, "
           "2 wrong usage.\n");
}

// The first tokens of the prime.
static bool read_prime(Settings *settings, char *error) {
    midi_song song;
    midi_error problem;
    midi_report report;
    const char *path = settings->prime_path;
    if (!midi_read_file(&song, path, (size_t)64 << 20, &problem)) {
        return fail(error, "--prime %s: %s", path, problem.text);
    }
    int ok = midi_encode(&song, &settings->prime, &settings->n_prime, &report, &problem);
    midi_free(&song);
    if (!ok) return fail(error, "--prime %s: %s", path, problem.text);
    size_t all = settings->n_prime;
    if (!report.notes) return fail(error, "--prime %s: has no notes of a piano; give a MIDI file that has some", path);
    if (all > (size_t)settings->prime_tokens) settings->n_prime = (size_t)settings->prime_tokens;
    printf("prime %s: the first %zu of %zu tokens", path, settings->n_prime, all);
    if (report.out_of_range) printf("; %zu notes outside the piano's range dropped", report.out_of_range);
    if (report.vanished) printf("; %zu notes too short for 16ths dropped", report.vanished);
    printf("\n");
    return true;
}

// out/song.mid -> out/song-3.mid, where there are several songs. The caller frees it; NULL: no memory.
static char *output_name(const char *path, int64_t song, int64_t songs) {
    size_t size = strlen(path) + 32, stem = strlen(path) - strlen(format_of(path)->suffix);
    char *name = (char *)malloc(size);
    if (name && songs == 1) snprintf(name, size, "%s", path);
    if (name && songs > 1) snprintf(name, size, "%.*s-%lld%s", (int)stem, path, (long long)song + 1, path + stem);
    return name;
}

// Makes song i and writes it to all outputs; report: what to say about it.
static bool make_and_write(const Call *call, const Model *model, int64_t i, StBuffer *report, char *error) {
    const Settings *settings = &call->settings;
    Song song;
    bool ok = song_make(&song, model, settings, settings->seed + (uint64_t)i, error);
    for (int k = 0; ok && k < call->outputs.n; k++) {
        char *name = output_name(call->outputs.list[k], i, settings->songs);
        ok = name ? format_of(name)->write(&song, name, error) : fail(error, "%s: no memory", call->outputs.list[k]);
        if (ok) st_print(report, k ? " %s" : "%s", name);
        free(name);
    }
    if (ok) {
        st_print(report, "  %zu notes  %d bars  %.1f s  seed %llu  %.0f tokens/s", song.midi.n_notes, song_bars(&song),
                 song_seconds(&song), (unsigned long long)song.seed, (double)song.n / song.seconds);
        if (song.cut) {
            st_print(report, "  ended after %zu new tokens, before --bars %lld", song.n - song.n_prime,
                     (long long)settings->bars);
        }
    }
    song_free(&song);
    return ok;
}

// All songs, several at a time: a single token is too small a thing to share between cores, a song is not.
static bool make_all(const Call *call, const Model *model, char *error) {
    bool good = true; // no song has failed yet
    int threads = 1;
#if defined(_OPENMP)
    threads = call->settings.threads ? (int)call->settings.threads : omp_get_max_threads();
#endif
#pragma omp parallel for ordered schedule(static, 1) num_threads(threads)
    for (int64_t i = 0; i < call->settings.songs; i++) {
        char problem[ERROR_SIZE];
        StBuffer report = {NULL, 0, 0, false};
        bool ok;
#pragma omp atomic read
        ok = good;
        if (ok) ok = make_and_write(call, model, i, &report, problem);
#pragma omp ordered
        {
            if (ok && good) {
                printf("%.*s\n", (int)report.size, report.bytes ? report.bytes : "");
                fflush(stdout);
            } else if (good) {
#pragma omp atomic write
                good = false;
                memcpy(error, problem, ERROR_SIZE);
            }
        }
        free(report.bytes);
    }
    (void)threads;
    return good;
}

static bool find_model(Settings *settings, char *error) {
    static const char *const usual[] = {"out/gpt/model.safetensors", "out/lstm/model.safetensors"};
    for (int i = 0; i < 2 && !settings->model_path; i++) {
        if (!access(usual[i], F_OK)) settings->model_path = usual[i];
    }
    return settings->model_path ||
           fail(error, "%s: there is no such model yet; train one with ./train_gpt_music, or name a model's file",
                usual[0]);
}

static int sample_main(int argc, char **argv) {
    Call call = {0};
    Settings *settings = &call.settings;
    Flags flags = {0};
    Model model = {0};
    char error[ERROR_SIZE] = "";
    int status = 0;
    program_start();
    if (!parse_call(&call, &flags, argc, argv, error)) {
        status = 2;
    } else if (flags.help) {
        print_help(&flags);
    } else if (flags.version) {
        printf("sample_music %s\n", MUSIC_VERSION);
    } else if (!find_model(settings, error) || !model_load(&model, settings->model_path, error)) {
        status = 1;
    } else if (call.context->given && model.kind == LSTM) {
        status = 2;
        fail(error, "--context %lld: %s is an LSTM, whose state carries all that came before; leave the flag out",
             (long long)settings->context, settings->model_path);
    } else if (call.bench) {
        status = !(bench(&model, 256, error) && (model.kind == LSTM || bench(&model, 1024, error)));
    } else {
        status = !((!settings->prime_path || read_prime(settings, error)) && make_all(&call, &model, error));
    }
    model_free(&model);
    MIDI_FREE(settings->prime);
    return program_end("sample_music", status, error);
}

#ifndef TESTING
int main(int argc, char **argv) { return sample_main(argc, argv); }
#endif
