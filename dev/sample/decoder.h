// Models at work: a trained Transformer or LSTM out of its file, and a batch of songs that it carries on token by
// token.
//
//     model_load(&model, "model.safetensors", INT8, error);
//     batch_new(&batch, &model, rooms, context, error);
//     batch_begin(&batch, room);                       a new song moves into a room
//     batch_step(&batch, rooms, n, tokens);            each of these rooms hears a token; its logits are of the next
//
// Promises. A token costs one pass over the weights, however much came before: the LSTM carries its state, the
// Transformer the keys and values of its context, over which it passes too. With float32 weights the logits are the
// full forward's to rounding; with fewer bits keys, values and relative vectors are bytes. A room's logits are the same
// bytes whoever else is in the batch. Beyond a context of N tokens each position of the Transformer attends to the last
// N, itself included. The kind of a model is told by its tensors' names, its sizes by their shapes; what is wrong with
// a file is said in a sentence. Leaves out: other models.
//
// How it is fast. One token is a row of matrix-vector products, each weight used once: the memory's read rate is the
// limit. So weights lie in memory in the order in which they are read, if you like in 8 bits (weights.h); keys
// and values lie in blocks as the products want them; several songs advance together, so that a weight that was read
// serves all of them; and all loops use the compiler's vectors. Asking for data ahead by hand was measured, in the
// products, in softmax and before keys are written, and does not pay: the hardware foresees such orderly reading.
//
// The models are those of dev/train_gpt_music.c and dev/train_lstm_music.c.
// Letters: V vocabulary, C width, L layers, NH heads of size HS, N context (slots of the ring), t time; H hidden units
// of a Transformer's layer or of an LSTM's, E width of the LSTM's embedding. A batch has a room for each song in it.
#ifndef DECODER_H
#define DECODER_H

#include "base/data.h"
#include "sample/weights.h"

#include <stdarg.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { V = DATA_TOKENS, MAX_ROOMS = 16 };

// ---- vectors; the arrays hold zeros from n to the next multiple of LANES

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

static Rows take_rows(Arena *arena, int rooms, int64_t floats) { // a vector for each room
    const int64_t stride = round_up(floats, PANEL);
    return (Rows){take(arena, rooms * stride), stride};
}

static float *row(Rows rows, int room) { return rows.at + room * rows.stride; }

static Rows shared(float *vector) { return (Rows){vector, 0}; }

// A model's file on its way into memory.
typedef struct {
    const StFile *file;
    const char *path;
    Precision precision; // of the large matrices
    char *error;
    bool ok;       // false once a sentence is in error
    int64_t bytes; // of the arrays that a token reads
    Arena arena;
} Loader;

// How rows lie in memory.
typedef enum {
    ROWS,   // plainly, [rows][cols rounded up to LANES]
    PANELS, // as dev/sample/weights.h has them
    GATES   // the same, but a panel is LANES units with their four gates, [units / LANES][cols][4][LANES]
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

static bool no_memory(const Loader *from) { return fail(from->error, "%s: does not fit into memory", from->path); }

// Where row `row` of a tensor of so many rows goes.
static int row_place(Arrangement arrangement, int row, int rows) {
    if (arrangement != GATES) return row;
    const int units = rows / 4, gate = row / units, unit = row % units;
    return unit / LANES * PANEL + gate * LANES + unit % LANES;
}

// The tensor's numbers as floats, all finite, [rows][cols]; NULL and a sentence, or NULL while there is no memory yet.
static float *numbers(Loader *from, const StTensor *tensor) {
    if (!tensor || !from->arena.memory) return NULL;
    float *copy = (float *)malloc((size_t)tensor->count * sizeof *copy);
    from->ok = copy ? st_to_float(tensor, copy) : no_memory(from);
    for (int64_t i = 0; from->ok && i < tensor->count; i++) {
        if (isfinite(copy[i])) continue;
        from->ok = fail(from->error, "%s: tensor '%s' has a number that is not finite", from->path, tensor->name);
    }
    if (from->ok) return copy;
    free(copy);
    return NULL;
}

#define TENSOR_NAME                                                                                                    \
    char name[64];                                                                                                     \
    va_list arguments;                                                                                                 \
    va_start(arguments, format);                                                                                       \
    vsnprintf(name, sizeof name, format, arguments);                                                                   \
    va_end(arguments)

// Takes room for a matrix of weights. Without memory it is checked, with memory copied.
PRINTF_LIKE(6, 7)
static Weights matrix(Loader *from, Precision precision, Arrangement arrangement, int rows, int cols,
                      const char *format, ...) {
    TENSOR_NAME;
    const int high = arrangement == GATES ? 4 * (int)round_up(rows / 4, LANES) : rows;
    Weights w = {precision, cols, high, NULL, NULL, NULL};
    const StTensor *tensor = tensor_need(from, name, 2, rows, cols);
    if (tensor && precision == INT8 && cols > 65536) {
        from->ok = fail(from->error, "%s: tensor '%s' has rows of %d, too long for int8; take --weights float32",
                        from->path, name, cols);
    }
    if (!from->ok) return w;
    w.panels = take(&from->arena, panels_words(precision, cols, high));
    if (precision == INT8) {
        w.scales = take(&from->arena, high);
        w.starts = (int32_t *)(void *)take(&from->arena, high);
    }
    from->bytes += ((int64_t)cols * 4 / columns_a_word(precision) + (precision == INT8 ? 8 : 0)) * rows;
    float *copy = numbers(from, tensor);
    for (int i = 0; copy && i < rows; i++) {
        weights_set_row(&w, row_place(arrangement, i, rows), copy + (int64_t)i * cols);
    }
    free(copy);
    return w;
}

// The same for floats that are no large matrix: cols = 0 is a vector [rows], else the matrix lies in ROWS.
PRINTF_LIKE(5, 6)
static float *floats(Loader *from, Arrangement arrangement, int rows, int cols, const char *format, ...) {
    TENSOR_NAME;
    const StTensor *tensor = tensor_need(from, name, cols ? 2 : 1, rows, cols);
    if (!tensor) return NULL;
    const int64_t high = arrangement == GATES ? 4 * round_up(rows / 4, LANES) : rows, wide = round_up(cols, LANES);
    float *place = take(&from->arena, cols ? rows * wide : high), *copy = numbers(from, tensor);
    if (!cols) from->bytes += (int64_t)rows * 4;
    for (int i = 0; copy && i < rows; i++) {
        if (cols) memcpy(place + i * wide, copy + (int64_t)i * cols, (size_t)cols * sizeof *copy);
        if (!cols) place[row_place(arrangement, i, rows)] = copy[i];
    }
    free(copy);
    return place;
}

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

enum { HEADS = 8 }; // at once, in attention

typedef struct {                            // one layer's weights, in the order of use
    Weights qkv, rel, out, fc1, fc2;        // [3C][C]; [rel][HS]; [C][C]; [H][C]; [C][H]
    float *qkv_bias, *out_bias, *fc1_bias;  // [3C], [C], [H]
    float *fc2_bias;                        // [C]
    float *ln1, *ln1_bias, *ln2, *ln2_bias; // [C]
} GptLayer;                                 // of rel row rel-1-n belongs to distance n, row 0 to all beyond

typedef struct {
    int C, L, NH, HS, H, rel;
    float *emb;       // [V][C], rows padded to a multiple of LANES
    GptLayer *layers; // [L]
    Weights head;     // [V][C]
    float *head_bias; // [V]
} Gpt;

// What songs in the making carry from token to token: keys and values of the last N tokens of each.
typedef struct {
    int N, slots;                   // length of a ring, and that rounded up to PANEL
    int64_t *t;                     // [rooms] tokens seen; the next one goes to slot t % N
    Precision kept;                 // FLOAT32; or INT8, as rel, if the weights are in fewer bits than float32
    int64_t key_words, value_words; // of a head, in 4 bytes
    int64_t layer_words;            // of both of all heads, and of their scales
    // Of each layer, one after the other: keys [NH] in panels as weights are, of slots for rows and HS columns; values
    // [NH][HS / LANES, rounded up][slots][LANES] floats, or bytes [..][slots / 4][LANES][4]; INT8: scales of each,
    // [slots].
    Rows cache;
    Rows x;                // [C] the residual stream
    Rows qkv;              // [3C]
    Rows heads;            // [C] the heads' outputs side by side
    Rows hidden;           // [H]
    Rows update;           // [C] what a layer adds to x
    Rows scores;           // [NH][slots] of this token, summed over the layers so far
    int *all;              // [HEADS] 0, 1, ...: the heads, to multiply them with rel like the songs of a batch
    Rows near, rings;      // [HEADS]: [rel] q . R; [N + slots] the same by slots, see gpt_ring
    float *zeros;          // [rel]
    Rows weights;          // [HEADS]: [slots] softmax, not yet divided by its sum; or [2][slots] bytes
    float *ratios;         // [slots] see byte_ratios
    char *bytes, *queries; // byte vectors: of C; [NH] of HS
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
    const Precision small = from->precision, kept = small == FLOAT32 ? FLOAT32 : INT8; // kept: as keys are
    m->emb = floats(from, ROWS, V, C, "emb.weight");
    for (int i = 0; i < m->L; i++) {
        GptLayer *l = &m->layers[i];
        l->qkv = matrix(from, small, PANELS, 3 * C, C, "layers.%d.attn.qkv.weight", i);
        l->qkv_bias = floats(from, PANELS, 3 * C, 0, "layers.%d.attn.qkv.bias", i);
        l->rel = matrix(from, kept, PANELS, m->rel, m->HS, "layers.%d.attn.rel", i);
        l->out = matrix(from, small, PANELS, C, C, "layers.%d.attn.out.weight", i);
        l->out_bias = floats(from, PANELS, C, 0, "layers.%d.attn.out.bias", i);
        l->ln1 = floats(from, PANELS, C, 0, "layers.%d.ln1.weight", i);
        l->ln1_bias = floats(from, PANELS, C, 0, "layers.%d.ln1.bias", i);
        l->fc1 = matrix(from, small, PANELS, H, C, "layers.%d.fc1.weight", i);
        l->fc1_bias = floats(from, PANELS, H, 0, "layers.%d.fc1.bias", i);
        l->fc2 = matrix(from, small, PANELS, C, H, "layers.%d.fc2.weight", i);
        l->fc2_bias = floats(from, PANELS, C, 0, "layers.%d.fc2.bias", i);
        l->ln2 = floats(from, PANELS, C, 0, "layers.%d.ln2.weight", i);
        l->ln2_bias = floats(from, PANELS, C, 0, "layers.%d.ln2.bias", i);
    }
    m->head = matrix(from, small, PANELS, V, C, "head.weight");
    m->head_bias = floats(from, PANELS, V, 0, "head.bias");
}

static void gpt_state(GptState *s, const Gpt *m, int rooms, int N, Arena *arena) {
    s->N = N;
    s->slots = (int)round_up(N, PANEL);
    s->kept = m->layers[0].rel.precision;
    s->key_words = panels_words(s->kept, m->HS, s->slots);
    s->value_words = round_up(m->HS, LANES) * s->slots / columns_a_word(s->kept);
    s->layer_words = m->NH * (s->key_words + s->value_words) + (s->kept == INT8 ? 2 * s->slots : 0);
    s->t = (int64_t *)(void *)take(arena, 2 * rooms);
    s->cache = take_rows(arena, rooms, m->L * s->layer_words);
    s->x = take_rows(arena, rooms, m->C);
    s->qkv = take_rows(arena, rooms, 3 * m->C);
    s->heads = take_rows(arena, rooms, m->C);
    s->hidden = take_rows(arena, rooms, m->H);
    s->update = take_rows(arena, rooms, m->C);
    s->scores = take_rows(arena, rooms, (int64_t)m->NH * s->slots);
    s->near = take_rows(arena, HEADS, m->rel);
    s->rings = take_rows(arena, HEADS, N + s->slots);
    s->zeros = take(arena, m->rel);
    s->all = (int *)(void *)take(arena, HEADS);
    for (int h = 0; arena->memory && h < HEADS; h++) s->all[h] = h;
    s->weights = take_rows(arena, HEADS, s->slots);
    s->ratios = take(arena, s->slots);
    s->bytes = (char *)take(arena, (int64_t)byte_vector_size(m->C) / 4);
    s->queries = (char *)take(arena, m->NH * (int64_t)byte_vector_size(m->HS) / 4);
}

static void gpt_begin(GptState *s, int room) {
    s->t[room] = 0;
    memset(row(s->cache, room), 0, (size_t)s->cache.stride * sizeof(float));
}

// What is kept of a layer in a room.
typedef struct {
    float *keys, *values;
    float *key_scales, *value_scales; // [slots], INT8 only
} Kept;

static Kept gpt_kept(const GptState *s, const Gpt *m, int room, int layer) {
    float *keys = row(s->cache, room) + layer * s->layer_words, *values = keys + m->NH * s->key_words;
    return (Kept){keys, values, values + m->NH * s->value_words, values + m->NH * s->value_words + s->slots};
}

static int gpt_slot(const GptState *s, int room) { return (int)(s->t[room] % s->N); }

static int gpt_filled(const GptState *s, int room) { // slots, the newest token's included
    return s->t[room] < s->N ? (int)s->t[room] + 1 : s->N;
}

// Byte `place` of each of LANES words becomes the next of these.
static void keep_bytes(words *to, const char *bytes, int place) {
    const words numbers = (words) __builtin_convertvector(*(const bytes_of_ints *)bytes, ints) & 255;
    *to = (*to & ~(255u << 8 * place)) | numbers << 8 * place;
}

// A token's keys and values [C] go into its slot.
static void gpt_keep(const GptState *s, const Gpt *m, Kept to, const float *key, const float *value, int slot) {
    const int HS = m->HS, across = columns_a_word(s->kept), size = 4 / across; // of a number, in bytes
    const int64_t panel_words = panels_words(s->kept, HS, PANEL);
    const char *from = (const char *)key;
    if (s->kept == INT8) {
        to.key_scales[slot] = byte_vector(s->bytes, key, m->C, BYTE_ZERO);
        from = s->bytes + BYTES_HEAD;
    }
    for (int h = 0; h < m->NH; h++) {
        float *word = to.keys + h * s->key_words + slot / PANEL * panel_words + slot % PANEL;
        for (int d = 0; d < HS; d += across, word += PANEL) {
            const char *numbers = from + (h * HS + d) * size;
            if (HS - d >= across) memcpy(word, numbers, 4);
            if (HS - d < across) memcpy(word, numbers, (size_t)((HS - d) * size));
        }
    }
    if (s->kept == INT8) to.value_scales[slot] = byte_vector(s->bytes, value, m->C, 0);
    for (int h = 0; h < m->NH; h++, value += HS, from += HS) {
        float *word = to.values + h * s->value_words + (int64_t)(slot / across) * LANES;
        for (int d = 0; d < HS; d += LANES, word += s->slots / across * LANES) {
            if (s->kept == FLOAT32) store_part(word, load_part(value + d, HS - d), HS - d);
            if (s->kept == INT8) keep_bytes((words *)word, from + d, slot % 4);
        }
    }
}

// Before the first layer: no scores yet, and none ever of slots that hold no token.
static void gpt_clear_scores(const GptState *s, const Gpt *m, int room) {
    const int filled = gpt_filled(s, room), n_slots = (int)round_up(filled, PANEL);
    for (int h = 0; h < m->NH; h++) {
        float *scores = row(s->scores, room) + h * s->slots;
        for (int i = 0; i < n_slots; i++) scores[i] = i < filled ? 0 : -INFINITY;
    }
}

// A slot's score gets q . R of its distance from the newest token, one number for all distances of n_rel - 1 and more.
// Softmax does not see what is added to all scores, neither here nor in the layers above, so what the nearer slots have
// more than the far ones is enough. From products, q . R in the order of R, which is that of falling distance, ring
// becomes what each of the last N tokens gets: ring + N - 1 - slot is that of slot 0 and, as the ring goes on from its
// end, of all slots after it. The far ones have been 0 from the beginning.
static void gpt_ring(float *ring, const float *products, int n_rel, int N, int slots, int slot) {
    const int n = n_rel < N ? n_rel : N, beyond = n - 1 - slot; // slots of the ring's end come before slot 0
    const vector far = all_lanes(products[0]);
    products += n_rel - n;
    for (int i = beyond > 0 ? beyond / LANES * LANES : 0; i < n; i += LANES) {
        store_part(ring + N - n + i, load_part(products + i, n - i) - far, n - i);
    }
    for (int i = N; i < slots; i++) ring[N - 1 - slot + i] = 0; // no slots, but read: another song's NaN may be there
    for (int i = 0; i < beyond; i += LANES) {
        store_part(ring + 2 * N - n + i, load_part(products + i, n - i) - far, n - i);
    }
}

// scores[n_slots] += near + q . k; n_slots is a multiple of PANEL. Returns the largest.
static float float_scores(float *scores, const float *near, const float *keys, const float *query, int HS,
                          int n_slots) {
    const vector *key = (const vector *)keys;
    vector top = all_lanes(-INFINITY);
    for (int j = 0; j < n_slots; j += PANEL) {
        vector sums[4];
        UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] = load(scores + j + k * LANES) + load(near + j + k * LANES);
        KEEP_LOOP for (int d = 0; d < HS; d++, key += 4) {
            UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] += key[k] * query[d];
        }
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            store(scores + j + k * LANES, sums[k]);
            top = larger(top, sums[k]);
        }
    }
    return largest_lane(top);
}

// The same of bytes, each slot's key with a scale.
static float byte_scores(float *scores, const float *near, const float *keys, const float *scales, const char *query,
                         int HS, int n_slots) {
    const ints *key = (const ints *)keys;
    vector top = all_lanes(-INFINITY);
    float scale;
    int32_t start = 0;
    memcpy(&scale, query, sizeof scale);
    query += BYTES_HEAD;
    for (int d = 0; d < round_up(HS, 4); d++) start -= BYTE_ZERO * ((uint8_t)query[d] - BYTE_ZERO);
    for (int j = 0; j < n_slots; j += PANEL) {
        ints sums[4];
        UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] = (ints){0} + start;
        KEEP_LOOP for (int d = 0; d < HS; d += 4, key += 4) {
            // without BYTE_ZERO, for it is the keys that have it here
            const ints four = all_words(query + d) ^ (int32_t)(BYTE_ZERO * 0x01010101u);
            UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] = dot_bytes(sums[k], four, key[k]);
        }
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            const int i = j + k * LANES;
            vector score = load(scores + i) + load(near + i);
            score += __builtin_convertvector(sums[k], vector) * (load(scales + i) * scale);
            store(scores + i, score);
            top = larger(top, score);
        }
    }
    return largest_lane(top);
}

// weights[n_slots] = exp(scores - top). Returns their sum.
static float float_weights(float *weights, const float *scores, float top, int n_slots) {
    vector sum = {0};
    for (int i = 0; i < n_slots; i += LANES) {
        vector weight = exp_vector(load(scores + i) - top);
        store(weights + i, weight);
        sum += weight;
    }
    return sum_lanes(sum);
}

enum { WEIGHT_MAX = (1 << 14) - 1 };

// ratios[n_slots] = WEIGHT_MAX * scales / the largest of them. Returns the largest / WEIGHT_MAX; infinite if one is.
static float byte_ratios(float *ratios, const float *scales, int n_slots) {
    vector top = {0};
    for (int i = 0; i < n_slots; i += LANES) top = larger(load(scales + i), top);
    const float most = largest_lane(top);
    for (int i = 0; i < n_slots; i += LANES) store(ratios + i, load(scales + i) / (most > 0 ? most : 1) * WEIGHT_MAX);
    return most / WEIGHT_MAX;
}

// float_weights of bytes: a weight is multiplied with its value's ratio, rounded to 14 bits, and kept in two bytes of
// 7, which every processor's product of bytes can take: of n_slots the upper ones, then, `slots` further, the lower
// ones.
static float byte_weights(char *weights, const float *scores, float top, const float *ratios, int n_slots,
                          int64_t slots) {
    vector sum = {0};
    for (int i = 0; i < n_slots; i += LANES) {
        vector weight = exp_vector(load(scores + i) - top);
        ints whole = low_bits_round(weight * load(ratios + i));
        *(bytes_of_ints *)(weights + i) = __builtin_convertvector(whole >> 7 & 127, bytes_of_ints);
        *(bytes_of_ints *)(weights + slots + i) = __builtin_convertvector(whole & 127, bytes_of_ints);
        sum += weight;
    }
    return sum_lanes(sum);
}

// out[d] = scale * sum_j weights[j] values[j][d], d < HS, j < n_slots; values of one head as the cache has them.
static void weigh_floats(float *out, float scale, const float *weights, const float *values, int n_slots, int64_t slots,
                         int HS) {
    for (int first = 0; first < HS; first += LANES, values += slots * LANES) {
        const vector *value = (const vector *)values;
        vector sums[8] = {{0}};
        KEEP_LOOP for (int j = 0; j < n_slots; j += 8) {
            UNROLL_FULLY for (int k = 0; k < 8; k++) sums[k] += value[j + k] * weights[j + k];
        }
        vector sum =
            (((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))) * scale;
        store_part(out + first, sum, HS - first);
    }
}

static void weigh_bytes(float *out, float scale, const char *weights, const float *values, int n_slots, int64_t slots,
                        int HS) {
    for (int first = 0; first < HS; first += LANES, values += slots / 4 * LANES) {
        const ints *value = (const ints *)values;
        ints upper[4] = {{0}}, lower[4] = {{0}};
        KEEP_LOOP for (int j = 0; j < n_slots; j += 16, value += 4) {
            UNROLL_FULLY for (int k = 0; k < 4; k++) {
                upper[k] = dot_bytes(upper[k], value[k], all_words(weights + j + 4 * k));
                lower[k] = dot_bytes(lower[k], value[k], all_words(weights + slots + j + 4 * k));
            }
        }
        vector sum = __builtin_convertvector((upper[0] + upper[1]) + (upper[2] + upper[3]), vector) * 128 +
                     __builtin_convertvector((lower[0] + lower[1]) + (lower[2] + lower[3]), vector);
        store_part(out + first, sum * scale, HS - first);
    }
}

// The attention of one layer in one room: its heads from the queries in its qkv, scaled by 1 / sqrt(HS) already, and
// the layer's keys and values, the newest token's included. Its scores come with the sum of the layers below and leave
// with this layer's added. Each stage runs over HEADS heads before the next: one head alone would spend its time
// waiting for the end of each sum, all together leave the fastest cache.
static void gpt_attention(const GptState *s, const Gpt *m, int room, int layer) {
    const int NH = m->NH, HS = m->HS, slot = gpt_slot(s, room);
    const int n_slots = (int)round_up(gpt_filled(s, room), PANEL);
    const int64_t slots = s->slots;
    const size_t each = byte_vector_size(HS);
    const Kept kept = gpt_kept(s, m, room, layer);
    float *queries = row(s->qkv, room), value_scale = 1;
    if (s->kept == INT8) {
        for (int h = 0; h < NH; h++) byte_vector(s->queries + h * each, queries + h * HS, HS, BYTE_ZERO);
        value_scale = byte_ratios(s->ratios, kept.value_scales, n_slots);
    }
    for (int first = 0; first < NH; first += HEADS) {
        const int n = NH - first < HEADS ? NH - first : HEADS;
        float top[HEADS], sum[HEADS];
        product_of(&m->layers[layer].rel, s->near, shared(s->zeros), (Rows){queries + first * HS, HS}, s->all, n,
                   s->queries + first * each);
        for (int i = 0; i < n; i++) gpt_ring(row(s->rings, i), row(s->near, i), m->rel, s->N, s->slots, slot);
        for (int i = 0, h = first; i < n; i++, h++) {
            float *scores = row(s->scores, room) + h * slots, *near = row(s->rings, i) + s->N - 1 - slot;
            const float *keys = kept.keys + h * s->key_words;
            if (s->kept == FLOAT32) {
                top[i] = float_scores(scores, near, keys, queries + h * HS, HS, n_slots);
            } else {
                top[i] = byte_scores(scores, near, keys, kept.key_scales, s->queries + h * each, HS, n_slots);
            }
        }
        for (int i = 0, h = first; i < n; i++, h++) {
            const float *scores = row(s->scores, room) + h * slots;
            float *weights = row(s->weights, i);
            if (s->kept == FLOAT32) {
                sum[i] = float_weights(weights, scores, top[i], n_slots);
            } else {
                sum[i] = byte_weights((char *)weights, scores, top[i], s->ratios, n_slots, slots);
            }
        }
        for (int i = 0, h = first; i < n; i++, h++) {
            const float *values = kept.values + h * s->value_words, *weights = row(s->weights, i);
            float *out = row(s->heads, room) + h * HS;
            if (s->kept == FLOAT32) weigh_floats(out, 1 / sum[i], weights, values, n_slots, slots, HS);
            if (s->kept == INT8) {
                weigh_bytes(out, value_scale / sum[i], (const char *)weights, values, n_slots, slots, HS);
            }
        }
    }
}

// Feeds each of the n rooms listed its token; logits [V] of the ones after.
static void gpt_step(GptState *s, const Gpt *m, const int *rooms, int n, const int *tokens, Rows logits, char *packed) {
    const int C = m->C;
    const float scale = 1.0f / sqrtf((float)m->HS);
    for (int i = 0; i < n; i++) {
        memcpy(row(s->x, rooms[i]), m->emb + tokens[i] * round_up(C, LANES), (size_t)C * sizeof(float));
        gpt_clear_scores(s, m, rooms[i]);
    }
    for (int k = 0; k < m->L; k++) {
        const GptLayer *l = &m->layers[k];
        product(&l->qkv, s->qkv, shared(l->qkv_bias), s->x, rooms, n, packed);
        for (int i = 0; i < n; i++) {
            const int r = rooms[i];
            float *qkv = row(s->qkv, r);
            for (int c = 0; c < C; c++) qkv[c] *= scale;
            gpt_keep(s, m, gpt_kept(s, m, r, k), qkv + C, qkv + 2 * C, gpt_slot(s, r));
            gpt_attention(s, m, r, k);
        }
        product(&l->out, s->update, shared(l->out_bias), s->heads, rooms, n, packed);
        for (int i = 0; i < n; i++) {
            add(row(s->x, rooms[i]), row(s->update, rooms[i]), C);
            layernorm(row(s->x, rooms[i]), l->ln1, l->ln1_bias, C);
        }
        product(&l->fc1, s->hidden, shared(l->fc1_bias), s->x, rooms, n, packed);
        for (int i = 0; i < n; i++) relu(row(s->hidden, rooms[i]), m->H);
        product(&l->fc2, s->update, shared(l->fc2_bias), s->hidden, rooms, n, packed);
        for (int i = 0; i < n; i++) {
            add(row(s->x, rooms[i]), row(s->update, rooms[i]), C);
            layernorm(row(s->x, rooms[i]), l->ln2, l->ln2_bias, C);
        }
    }
    product(&m->head, logits, shared(m->head_bias), s->x, rooms, n, packed);
    for (int i = 0; i < n; i++) s->t[rooms[i]]++;
}

// ---- the LSTM
//
// Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, as PyTorch writes it: gates in the order
// i, f, g, o, each with two biases; a head of three linear layers, LayerNorm and ReLU between them. What comes before
// is all in h and c, so that there is no context to pass over.
//
// A panel of gates is PANEL = 4 LANES numbers wide: of LANES units all of i, then all of f, g and o.

typedef struct {
    Weights ih, hh;        // [4H][E or H], in layer 0 float32; [4H][H]; in gates
    float *bias, *bias_hh; // [4H], in gates; bias is the sum of both in the end
} LstmLayer;

typedef struct {
    int E, H, L, H1, H2;              // H1, H2: the widths of the head
    float *emb;                       // [V][E], rows padded to a multiple of LANES
    LstmLayer *layers;                // [L]
    float *first;                     // [V][4H], in gates: each token's input product in layer 0 and the biases
    Weights fc1, fc2, fc3;            // [H1][H], [H2][H1], [V][H2]
    float *fc1_bias, *ln1, *ln1_bias; // [H1]
    float *fc2_bias, *ln2, *ln2_bias; // [H2]
    float *fc3_bias;                  // [V]
} Lstm;

typedef struct {
    int units;     // H rounded up to LANES; the last ones stay 0
    int64_t layer; // floats of a layer's h or c
    Rows h, c;     // [L][units]: what is carried from token to token
    Rows gates;    // [4 units]
    Rows fc1, fc2; // [H1], [H2]
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
    const Precision small = from->precision;
    m->emb = floats(from, ROWS, V, m->E, "emb.weight");
    m->first = take(&from->arena, V * 4 * round_up(H, LANES));
    for (int i = 0; i < m->L; i++) {
        LstmLayer *l = &m->layers[i];
        l->ih = matrix(from, i ? small : FLOAT32, GATES, 4 * H, i ? H : m->E, "lstm.weight_ih_l%d", i);
        if (i == 0) from->bytes = (int64_t)4 * H * 4; // a row of `first` is read instead of it and of a bias
        l->bias = floats(from, GATES, 4 * H, 0, "lstm.bias_ih_l%d", i);
        l->bias_hh = floats(from, GATES, 4 * H, 0, "lstm.bias_hh_l%d", i);
        from->bytes -= (i ? 1 : 2) * (int64_t)4 * H * 4;
        l->hh = matrix(from, small, GATES, 4 * H, H, "lstm.weight_hh_l%d", i);
    }
    m->fc1 = matrix(from, small, PANELS, m->H1, H, "head.1.weight");
    m->fc1_bias = floats(from, PANELS, m->H1, 0, "head.1.bias");
    m->ln1 = floats(from, PANELS, m->H1, 0, "head.2.weight");
    m->ln1_bias = floats(from, PANELS, m->H1, 0, "head.2.bias");
    m->fc2 = matrix(from, small, PANELS, m->H2, m->H1, "head.5.weight");
    m->fc2_bias = floats(from, PANELS, m->H2, 0, "head.5.bias");
    m->ln2 = floats(from, PANELS, m->H2, 0, "head.6.weight");
    m->ln2_bias = floats(from, PANELS, m->H2, 0, "head.6.bias");
    m->fc3 = matrix(from, small, PANELS, V, m->H2, "head.9.weight");
    m->fc3_bias = floats(from, PANELS, V, 0, "head.9.bias");
}

static void lstm_prepare(Lstm *m) { // once its weights are there: what needs no computing anew for each token
    const int gates = 4 * (int)round_up(m->H, LANES);
    for (int i = 0; i < m->L; i++) add(m->layers[i].bias, m->layers[i].bias_hh, gates);
    int all[V];
    for (int v = 0; v < V; v++) all[v] = v;
    product(&m->layers[0].ih, (Rows){m->first, gates}, shared(m->layers[0].bias), (Rows){m->emb, round_up(m->E, LANES)},
            all, V, NULL);
}

static void lstm_state(LstmState *s, const Lstm *m, int rooms, Arena *arena) {
    s->units = (int)round_up(m->H, LANES);
    s->layer = round_up(m->H, PANEL);
    s->h = take_rows(arena, rooms, m->L * s->layer);
    s->c = take_rows(arena, rooms, m->L * s->layer);
    s->gates = take_rows(arena, rooms, 4 * s->units);
    s->fc1 = take_rows(arena, rooms, m->H1);
    s->fc2 = take_rows(arena, rooms, m->H2);
}

static void lstm_begin(LstmState *s, int room) {
    memset(row(s->h, room), 0, (size_t)s->h.stride * sizeof(float));
    memset(row(s->c, room), 0, (size_t)s->c.stride * sizeof(float));
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

static void lstm_step(LstmState *s, const Lstm *m, const int *rooms, int n, const int *tokens, Rows logits,
                      char *packed) { // as gpt_step
    const int gates = 4 * s->units;
    Rows h = s->h, below = h;
    for (int i = 0; i < n; i++) {
        memcpy(row(s->gates, rooms[i]), m->first + (int64_t)tokens[i] * gates, (size_t)gates * sizeof(float));
    }
    for (int k = 0; k < m->L; k++, below = h, h.at += s->layer) {
        const LstmLayer *l = &m->layers[k];
        if (k) product(&l->ih, s->gates, shared(l->bias), below, rooms, n, packed);
        product(&l->hh, s->gates, s->gates, h, rooms, n, packed);
        for (int i = 0; i < n; i++) {
            lstm_cell(row(h, rooms[i]), row(s->c, rooms[i]) + k * s->layer, row(s->gates, rooms[i]), s->units);
        }
    }
    product(&m->fc1, s->fc1, shared(m->fc1_bias), below, rooms, n, packed);
    for (int i = 0; i < n; i++) {
        layernorm(row(s->fc1, rooms[i]), m->ln1, m->ln1_bias, m->H1);
        relu(row(s->fc1, rooms[i]), m->H1);
    }
    product(&m->fc2, s->fc2, shared(m->fc2_bias), s->fc1, rooms, n, packed);
    for (int i = 0; i < n; i++) {
        layernorm(row(s->fc2, rooms[i]), m->ln2, m->ln2_bias, m->H2);
        relu(row(s->fc2, rooms[i]), m->H2);
    }
    product(&m->fc3, logits, shared(m->fc3_bias), s->fc2, rooms, n, packed);
}

// ---- a model of either kind, and a batch of songs in the making

typedef enum { GPT, LSTM } Kind;

static const char *const kind_names[] = {"gpt", "lstm"};

typedef struct {
    const char *path;
    Kind kind;
    Precision precision;
    Gpt gpt; // one of the two
    Lstm lstm;
    int64_t bytes;   // of weights that a token reads
    float *memory;   // owns all weights
    char name[100];  // for people: of the file, or of its folder if the file has the usual name
    char about[220]; // the same: kind, sizes, precision if it is not float32
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
    from->bytes = 0;
    if (m->kind == GPT) gpt_weights(&m->gpt, from);
    if (m->kind == LSTM) lstm_weights(&m->lstm, from);
}

static void model_describe(Model *m, const StFile *file) {
    const char *slash = strrchr(m->path, '/'), *epoch = st_meta(file, "epoch");
    const char *end = slash && !strcmp(slash, "/model.safetensors") ? slash : m->path + strlen(m->path), *start = end;
    while (start > m->path && start[-1] != '/') start--;
    snprintf(m->name, sizeof m->name, "%.*s", (int)(end - start), start);
    int layers = m->kind == GPT ? m->gpt.L : m->lstm.L, width = m->kind == GPT ? m->gpt.C : m->lstm.H;
    snprintf(m->about, sizeof m->about, "%.80s (%s, %d layers of width %d%s%.20s%s%s)", m->name, kind_names[m->kind],
             layers, width, epoch ? ", epoch " : "", epoch ? epoch : "", m->precision ? ", weights " : "",
             m->precision ? precision_names[m->precision] : "");
}

// Reads a model or a resume state (whose further tensors are left alone). After a failure there is nothing to free.
static bool model_load(Model *m, const char *path, Precision precision, char *error) {
    StFile file;
    Loader from = {&file, path, precision, error, true, 0, {NULL, 0}};
    memset(m, 0, sizeof *m);
    m->path = path;
    m->precision = precision;
    if (!st_read(&file, path, error)) return false;
    model_sizes(m, &from);
    model_weights(m, &from);
    if (from.ok) {
        m->memory = vector_alloc(from.arena.floats);
        from.arena = (Arena){m->memory, 0};
        if (!m->memory) from.ok = no_memory(&from);
    }
    if (from.ok) model_weights(m, &from);
    if (from.ok && m->kind == LSTM) lstm_prepare(&m->lstm);
    m->bytes = from.bytes;
    model_describe(m, &file);
    st_free(&file);
    if (!from.ok) model_free(m);
    return from.ok;
}

// What songs in the making carry from token to token, and where a token is computed.
typedef struct {
    const Model *model;
    GptState gpt; // one of the two
    LstmState lstm;
    Rows logits;   // [V] of each room, of the token after the last one fed
    char *packed;  // vectors as products take them
    float *memory; // owns all of it
} Batch;

static void batch_free(Batch *b) {
    free(b->memory);
    memset(b, 0, sizeof *b);
}

static void batch_lay_out(Batch *b, int rooms, int context, Arena *arena) {
    const Model *m = b->model;
    int64_t widest = m->gpt.C > m->gpt.H ? m->gpt.C : m->gpt.H; // of what products pack
    if (m->lstm.H > widest) widest = m->lstm.H;
    if (m->lstm.H1 > widest) widest = m->lstm.H1;
    if (m->lstm.H2 > widest) widest = m->lstm.H2;
    if (m->kind == GPT) gpt_state(&b->gpt, &m->gpt, rooms, context, arena);
    if (m->kind == LSTM) lstm_state(&b->lstm, &m->lstm, rooms, arena);
    b->logits = take_rows(arena, rooms, V);
    b->packed = (char *)take(arena, rooms * (int64_t)packed_size(m->precision, (int)widest) / 4);
}

// The memory of a batch, in bytes.
static int64_t batch_size(const Model *m, int rooms, int context) {
    Batch b = {.model = m};
    Arena arena = {NULL, 0};
    batch_lay_out(&b, rooms, context, &arena);
    return arena.floats * 4;
}

// An empty batch; context: of a Transformer. After a failure there is nothing to free.
static bool batch_new(Batch *b, const Model *m, int rooms, int context, char *error) {
    const int64_t size = batch_size(m, rooms, context);
    memset(b, 0, sizeof *b);
    b->model = m;
    b->memory = vector_alloc(size / 4);
    if (!b->memory) {
        return fail(error, "the state of %d songs, %lld MB, does not fit into memory%s", rooms, (long long)(size >> 20),
                    m->kind == GPT ? "; a smaller --context takes less" : "");
    }
    Arena arena = {b->memory, 0};
    batch_lay_out(b, rooms, context, &arena);
    return true;
}

static void batch_begin(Batch *b, int room) { // a new song moves in
    if (b->model->kind == GPT) gpt_begin(&b->gpt, room);
    if (b->model->kind == LSTM) lstm_begin(&b->lstm, room);
}

// Feeds the n rooms listed a token each; each room's logits are then those of the token after it.
static void batch_step(Batch *b, const int *rooms, int n, const int *tokens) {
    const Model *m = b->model;
    if (m->kind == GPT) gpt_step(&b->gpt, &m->gpt, rooms, n, tokens, b->logits, b->packed);
    if (m->kind == LSTM) lstm_step(&b->lstm, &m->lstm, rooms, n, tokens, b->logits, b->packed);
}

#endif
