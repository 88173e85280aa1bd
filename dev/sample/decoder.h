// Models at work: a trained Transformer or LSTM out of its file, and a batch of songs that go on token by token.
//
//     model_load(&model, "model.safetensors", INT8, error);
//     batch_new(&batch, &model, n_slots, context, error);
//     batch_begin(&batch, slot);                       a new song begins in this slot of the batch
//     batch_step(&batch, slots, n, tokens);            feeds a token to the song of each of n slots
//     row(batch.logits, slot)                          the logits of the token after it
//
// Promises. A token costs one pass over the weights, however much came before: the LSTM carries its state; the
// Transformer carries the keys and values of its context, and passes over them too. With float32 weights the logits are
// the full forward's to rounding; with fewer bits keys, values and relative vectors are bytes. The logits of a song are
// the same bytes whoever else is in the batch. Beyond a context of N tokens each position of the Transformer attends to
// the last N, itself included. The names of a file's tensors tell the kind of its model, their shapes its sizes; what
// is wrong with a file is said in a sentence. Leaves out: other models.
//
// How it is fast. One token is a row of matrix-vector products, and each weight is used once: the memory's read rate is
// the limit. So weights lie in memory in the order in which they are read, if you like in 8 bits (weights.h); keys and
// values lie in blocks as the products want them; several songs advance together, so that a weight that was read serves
// all of them; and all loops use the compiler's vectors. Nothing is prefetched by hand, as the processor foresees such
// orderly reading by itself.
//
// The models are those of dev/train_gpt_music.c and dev/train_lstm_music.c. Letters: V vocabulary, L layers, t time;
// Transformer: C width, NH heads of size HS, F hidden width of a layer, D relative distances, N context, the length of
// a ring of entries that each hold a token's keys and values; LSTM: H units, E width of the embedding. A place in a
// batch of songs is a slot. C11, gcc and clang.
#pragma once

#include "models/gpt.h" // first: it chooses the system's interfaces
#include "models/lstm.h"

#include "sample/load.h"

enum { V = DATA_TOKENS, MAX_SLOTS = 16 };

// ---- vectors; the arrays hold zeros from n to the next multiple of LANES

static inline void add(float *x, const float *y, int n) { // x += y
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) + load(y + i));
}

static inline void relu(float *x, int n) { // keeps a NaN, so that it shows
    for (int i = 0; i < n; i += LANES) store(x + i, keep_where(~(load(x + i) < 0), load(x + i)));
}

// x = LayerNorm(x) * weight + bias
static inline void layernorm(float *x, const Norm *norm, int n) {
    vector sum = {0}, squares = {0};
    for (int i = 0; i < n; i += LANES) sum += load(x + i);
    float mean = sum_lanes(sum) / (float)n;
    for (int i = 0; i < n; i++) x[i] -= mean;
    for (int i = 0; i < n; i += LANES) squares += load(x + i) * load(x + i);
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)n + 1e-5f);
    const float *weight = norm->weight, *bias = norm->bias;
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) * scale * load(weight + i) + load(bias + i));
}

static inline void add_layernorm(float *x, const float *update, const Norm *norm, int n) { // of x + update
    add(x, update, n);
    layernorm(x, norm, n);
}

static inline void layernorm_relu(float *x, const Norm *norm, int n) {
    layernorm(x, norm, n);
    relu(x, n);
}

// y = bias + W x for n songs; packed: as Batch has it.
static inline void linear(const Linear *l, Rows y, Rows x, const int *slots, int n, char *packed) {
    product(&l->weights, y, shared(l->bias), x, slots, n, packed);
}

// ---- the Transformer
//
// The scores of a layer add to those of the layer below (He et al., RealFormer, 2021), relative positions are clipped
// (Huang et al., Music Transformer, 2019).

enum { HEADS = 8 }; // that attention computes together

typedef struct {
    Linear qkv, out, fc1, fc2; // [3C][C], [C][C], [F][C], [C][F]
    Weights rel;               // [D][HS]; row D-1-n belongs to distance n, row 0 to D-1 and all beyond
    Norm ln1, ln2;             // [C]
} GptLayer;

typedef struct {
    int C, L, NH, HS, F, D;
    float *emb;       // [V][C], rows padded to a multiple of LANES
    GptLayer *layers; // [L]
    Linear head;      // [V][C]
} GptDecoder;

// What songs in the making carry from token to token, the keys and values of the last N tokens of each, and the vectors
// of the token at work. Rows without another number have a row for each slot.
typedef struct {
    int N, entries;                 // length of a ring, and that rounded up to PANEL
    int64_t *t;                     // [slots] tokens seen; the next one goes to entry t % N
    Precision kv_precision;         // FLOAT32; or INT8, as rel, if the weights are in fewer bits than float32
    int64_t key_words, value_words; // of a head, in 4 bytes
    int64_t layer_words;            // of both of all heads, and of their scales
    // Of each layer, one after the other: keys [NH] in panels as weights are, with entries for rows and HS columns;
    // values [NH][HS / LANES, rounded up][entries][LANES] floats, or bytes [..][entries / 4][LANES][4]; INT8 only:
    // scales of the keys and of the values, [entries] each.
    Rows cache;
    Rows x;                // [C] the residual stream
    Rows qkv;              // [3C]
    Rows heads;            // [C] the heads' outputs side by side
    Rows hidden;           // [F]
    Rows update;           // [C] what a layer adds to x
    Rows scores;           // [NH][entries] of this token, summed over the layers so far
    Rows relative;         // HEADS rows: [D] q . R
    Rows rings;            // HEADS rows: [N + entries] the same in the order of entries, see gpt_ring
    float *zeros;          // [D]
    Rows weights;          // HEADS rows: [entries] softmax, not yet divided by its sum; or [2][entries] bytes
    float *ratios;         // [entries] see byte_ratios
    char *bytes, *queries; // byte vectors: one of C numbers; NH of HS numbers
} GptState;

// The sizes and the weights, in the order in which a token uses them.
static inline void gpt_load(GptDecoder *m, Loader *from) {
    int sizes[GPT_SIZES] = {0};
    if (!load_sizes(from, gpt_sizes_of_file, sizes)) return;
    const int C = m->C = sizes[GPT_WIDTH], F = m->F = sizes[GPT_HIDDEN];
    m->L = sizes[GPT_LAYERS];
    m->NH = sizes[GPT_HEADS];
    m->HS = C / m->NH;
    m->D = sizes[GPT_REL];
    if (!m->layers) m->layers = calloc((size_t)m->L, sizeof *m->layers);
    if (!m->layers) from->ok = load_no_memory(from);
    const Precision kv_precision = from->precision == FLOAT32 ? FLOAT32 : INT8;
    m->emb = load_floats(from, ROWS, V, C, "emb", 0, ".weight");
    for (int i = 0; from->ok && i < m->L; i++) {
        GptLayer *l = &m->layers[i];
        l->qkv = load_linear(from, 3 * C, C, "layers.%d.attn.qkv", i);
        l->rel = load_matrix(from, kv_precision, PANELS, m->D, m->HS, "layers.%d.attn.rel", i, "");
        l->out = load_linear(from, C, C, "layers.%d.attn.out", i);
        l->ln1 = load_norm(from, C, "layers.%d.ln1", i);
        l->fc1 = load_linear(from, F, C, "layers.%d.fc1", i);
        l->fc2 = load_linear(from, C, F, "layers.%d.fc2", i);
        l->ln2 = load_norm(from, C, "layers.%d.ln2", i);
    }
    m->head = load_linear(from, V, C, "head", 0);
}

static inline void gpt_state(GptState *s, const GptDecoder *m, int slots, int N, Arena *arena) {
    s->N = N;
    s->entries = (int)round_up(N, PANEL);
    s->kv_precision = m->layers[0].rel.precision;
    s->key_words = panels_words(s->kv_precision, m->HS, s->entries);
    s->value_words = round_up(m->HS, LANES) * s->entries / columns_a_word(s->kv_precision);
    s->layer_words = m->NH * (s->key_words + s->value_words) + (s->kv_precision == INT8 ? 2 * s->entries : 0);
    s->t = (int64_t *)(void *)take(arena, 2 * slots);
    s->cache = take_rows(arena, slots, m->L * s->layer_words);
    s->x = take_rows(arena, slots, m->C);
    s->qkv = take_rows(arena, slots, 3 * m->C);
    s->heads = take_rows(arena, slots, m->C);
    s->hidden = take_rows(arena, slots, m->F);
    s->update = take_rows(arena, slots, m->C);
    s->scores = take_rows(arena, slots, (int64_t)m->NH * s->entries);
    s->relative = take_rows(arena, HEADS, m->D);
    s->rings = take_rows(arena, HEADS, N + s->entries);
    s->zeros = take(arena, m->D);
    s->weights = take_rows(arena, HEADS, s->entries);
    s->ratios = take(arena, s->entries);
    s->bytes = (char *)take(arena, (int64_t)byte_vector_size(m->C) / 4);
    s->queries = (char *)take(arena, m->NH * (int64_t)byte_vector_size(m->HS) / 4);
}

static inline void gpt_begin(GptState *s, int slot) {
    s->t[slot] = 0;
    memset(row(s->cache, slot), 0, (size_t)s->cache.stride * sizeof(float));
}

// The keys and values of one layer for the song in a slot.
typedef struct {
    float *keys, *values;
    float *key_scales, *value_scales; // [entries], INT8 only
} LayerCache;

static inline LayerCache gpt_cache(const GptState *s, const GptDecoder *m, int slot, int layer) {
    float *keys = row(s->cache, slot) + layer * s->layer_words, *values = keys + m->NH * s->key_words;
    float *scales = values + m->NH * s->value_words;
    return (LayerCache){keys, values, scales, scales + s->entries};
}

static inline int gpt_entry(const GptState *s, int slot) { return (int)(s->t[slot] % s->N); } // of the newest token

// Entries with a token, the newest included.
static inline int gpt_filled(const GptState *s, int slot) { return s->t[slot] < s->N ? (int)s->t[slot] + 1 : s->N; }

// Byte k, 0 to 3, of each of LANES words becomes the next of these bytes.
static inline void put_bytes(words *to, const char *bytes, int k) {
    const words numbers = (words) __builtin_convertvector(*(const bytes_of_ints *)bytes, ints) & 255;
    *to = (*to & ~(255u << 8 * k)) | numbers << 8 * k;
}

// A token's key and value [C] of a layer go into an entry.
static inline void gpt_cache_put(const GptState *s, const GptDecoder *m, LayerCache to, const float *key,
                                 const float *value, int entry) {
    const int HS = m->HS, across = columns_a_word(s->kv_precision), size = 4 / across; // of a number, in bytes
    const int64_t panel_words = panels_words(s->kv_precision, HS, PANEL);
    const char *from = (const char *)key;
    if (s->kv_precision == INT8) {
        to.key_scales[entry] = byte_vector(s->bytes, key, m->C, BYTE_ZERO);
        from = s->bytes + BYTES_HEAD;
    }
    for (int h = 0; h < m->NH; h++) {
        float *word = to.keys + h * s->key_words + entry / PANEL * panel_words + entry % PANEL;
        for (int d = 0; d < HS; d += across, word += PANEL) {
            const char *numbers = from + (h * HS + d) * size;
            if (HS - d >= across) memcpy(word, numbers, 4);
            if (HS - d < across) memcpy(word, numbers, (size_t)((HS - d) * size));
        }
    }
    if (s->kv_precision == INT8) to.value_scales[entry] = byte_vector(s->bytes, value, m->C, 0);
    for (int h = 0; h < m->NH; h++, value += HS, from += HS) {
        float *word = to.values + h * s->value_words + (int64_t)(entry / across) * LANES;
        for (int d = 0; d < HS; d += LANES, word += s->entries / across * LANES) {
            if (s->kv_precision == FLOAT32) store_part(word, load_part(value + d, HS - d), HS - d);
            if (s->kv_precision == INT8) put_bytes((words *)word, from + d, entry % 4);
        }
    }
}

// Before the first layer: the scores are 0, and those of entries that hold no token yet -infinity for good.
static inline void gpt_clear_scores(const GptState *s, const GptDecoder *m, int slot) {
    const int filled = gpt_filled(s, slot), n_entries = (int)round_up(filled, PANEL);
    for (int h = 0; h < m->NH; h++) {
        float *scores = row(s->scores, slot) + h * s->entries;
        for (int i = 0; i < n_entries; i++) scores[i] = i < filled ? 0 : -INFINITY;
    }
}

// Brings products q . R, which come in the order of R's rows, that of falling distance, into the order of the ring's
// entries. The score of an entry gets the product of its distance from the newest token; all distances of D - 1 and
// more share products[0]. Softmax does not see what is added to all scores, neither here nor in the layers above, so
// each score gets only what its product is more than products[0], and the far entries get 0.
//
// The array `ring` holds the distances N - 1 to 0 twice, one after the other, so that the entries from 0 on, wherever
// the newest token is, are a window of it: that of entry 0 begins at ring + N - 1 - entry. With six entries, N = 6, the
// newest token in entry 2, and D = 4 products p[0] to p[3]:
//
//     ring       0     1     2     3     4     5     6     7     8     9    10
//     distance   5     4     3     2     1     0     5     4     3     2     1
//     entry                        0     1     2     3     4     5
//     value      0     0     0   p1-p0 p2-p0 p3-p0   0     0     0     -     -
//
// Each further token moves the window to the left by one. The zeros of the far distances stay as they are from the
// beginning; of the others only those that the window shows are written.
static inline void gpt_ring(float *ring, const float *products, int D, int N, int entries, int entry) {
    const int n = D < N ? D : N;      // distances with a product of their own, or all there are
    const int beyond = n - 1 - entry; // of these, how many are shown from the second copy
    const vector far = all_lanes(products[0]);
    products += D - n;
    for (int i = beyond > 0 ? beyond / LANES * LANES : 0; i < n; i += LANES) {
        store_part(ring + N - n + i, load_part(products + i, n - i) - far, n - i);
    }
    // The padding behind entry N - 1 is read too, and another song's NaN may be there.
    for (int i = N; i < entries; i++) ring[N - 1 - entry + i] = 0;
    for (int i = 0; i < beyond; i += LANES) {
        store_part(ring + 2 * N - n + i, load_part(products + i, n - i) - far, n - i);
    }
}

// scores[n_entries] += relative + q . k; n_entries is a multiple of PANEL. Returns the largest.
static inline float float_scores(float *scores, const float *relative, const float *keys, const float *query, int HS,
                                 int n_entries) {
    const vector *key = (const vector *)keys;
    vector top = all_lanes(-INFINITY);
    for (int j = 0; j < n_entries; j += PANEL) {
        vector sums[4];
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            sums[k] = load(scores + j + k * LANES) + load(relative + j + k * LANES);
        }
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

// The same of bytes; each entry's key has a scale.
static inline float byte_scores(float *scores, const float *relative, const float *keys, const float *scales,
                                const char *query, int HS, int n_entries) {
    const ints *key = (const ints *)keys;
    vector top = all_lanes(-INFINITY);
    float scale;
    int32_t start = 0;
    memcpy(&scale, query, sizeof scale);
    query += BYTES_HEAD;
    for (int d = 0; d < round_up(HS, 4); d++) start -= BYTE_ZERO * ((uint8_t)query[d] - BYTE_ZERO);
    for (int j = 0; j < n_entries; j += PANEL) {
        ints sums[4];
        UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] = (ints){0} + start;
        KEEP_LOOP for (int d = 0; d < HS; d += 4, key += 4) {
            // The query loses its BYTE_ZERO, because here it is the keys that have it.
            const ints four = all_words(query + d) ^ (int32_t)(BYTE_ZERO * 0x01010101u);
            UNROLL_FULLY for (int k = 0; k < 4; k++) sums[k] = dot_bytes(sums[k], four, key[k]);
        }
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            const int i = j + k * LANES;
            vector score = load(scores + i) + load(relative + i);
            score += __builtin_convertvector(sums[k], vector) * (load(scales + i) * scale);
            store(scores + i, score);
            top = larger(top, score);
        }
    }
    return largest_lane(top);
}

// weights[n_entries] = exp(scores - top). Returns their sum.
static inline float float_weights(float *weights, const float *scores, float top, int n_entries) {
    vector sum = {0};
    for (int i = 0; i < n_entries; i += LANES) {
        vector weight = exp_vector(load(scores + i) - top);
        store(weights + i, weight);
        sum += weight;
    }
    return sum_lanes(sum);
}

enum { WEIGHT_MAX = (1 << 14) - 1 };

// ratios[n_entries] = WEIGHT_MAX * scales / the largest of them. Returns the largest / WEIGHT_MAX; infinite if one is.
static inline float byte_ratios(float *ratios, const float *scales, int n_entries) {
    vector top = {0};
    for (int i = 0; i < n_entries; i += LANES) top = larger(load(scales + i), top);
    const float most = largest_lane(top);
    for (int i = 0; i < n_entries; i += LANES) {
        store(ratios + i, load(scales + i) / (most > 0 ? most : 1) * WEIGHT_MAX);
    }
    return most / WEIGHT_MAX;
}

// As float_weights, for values in bytes: a weight is multiplied with its value's ratio, rounded to 14 bits, and kept in
// two bytes of 7 bits, which every processor's product of bytes can take. Of the n_entries weights the upper bytes come
// first; the lower ones lie `entries` bytes further.
static inline float byte_weights(char *weights, const float *scores, float top, const float *ratios, int n_entries,
                                 int64_t entries) {
    vector sum = {0};
    for (int i = 0; i < n_entries; i += LANES) {
        vector weight = exp_vector(load(scores + i) - top);
        ints whole = low_bits_round(weight * load(ratios + i));
        *(bytes_of_ints *)(weights + i) = __builtin_convertvector(whole >> 7 & 127, bytes_of_ints);
        *(bytes_of_ints *)(weights + entries + i) = __builtin_convertvector(whole & 127, bytes_of_ints);
        sum += weight;
    }
    return sum_lanes(sum);
}

// out[d] = scale * sum_j weights[j] values[j][d], d < HS, j < n_entries; values of one head as the cache has them.
static inline void weigh_floats(float *out, float scale, const float *weights, const float *values, int n_entries,
                                int64_t entries, int HS) {
    for (int first = 0; first < HS; first += LANES, values += entries * LANES) {
        const vector *value = (const vector *)values;
        vector sums[8] = {{0}};
        KEEP_LOOP for (int j = 0; j < n_entries; j += 8) {
            UNROLL_FULLY for (int k = 0; k < 8; k++) sums[k] += value[j + k] * weights[j + k];
        }
        vector sum =
            (((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))) * scale;
        store_part(out + first, sum, HS - first);
    }
}

// The same of bytes, with weights as byte_weights leaves them.
static inline void weigh_bytes(float *out, float scale, const char *weights, const float *values, int n_entries,
                               int64_t entries, int HS) {
    for (int first = 0; first < HS; first += LANES, values += entries / 4 * LANES) {
        const ints *value = (const ints *)values;
        ints upper[4] = {{0}}, lower[4] = {{0}};
        KEEP_LOOP for (int j = 0; j < n_entries; j += 16, value += 4) {
            UNROLL_FULLY for (int k = 0; k < 4; k++) {
                upper[k] = dot_bytes(upper[k], value[k], all_words(weights + j + 4 * k));
                lower[k] = dot_bytes(lower[k], value[k], all_words(weights + entries + j + 4 * k));
            }
        }
        vector sum = __builtin_convertvector((upper[0] + upper[1]) + (upper[2] + upper[3]), vector) * 128 +
                     __builtin_convertvector((lower[0] + lower[1]) + (lower[2] + lower[3]), vector);
        store_part(out + first, sum * scale, HS - first);
    }
}

// The attention of one layer in one slot: the outputs of its heads, from the queries in qkv, already scaled by
// 1 / sqrt(HS), and from the layer's keys and values, the newest token's included. The scores come with the sum of the
// layers below and leave with this layer's added. Each stage runs over HEADS heads before the next stage: one head
// alone would wait for the end of each of its sums, and all heads together do not fit the fastest cache.
static inline void gpt_attention(const GptState *s, const GptDecoder *m, int slot, int layer) {
    static const int head_numbers[HEADS] = {0, 1, 2, 3, 4, 5, 6, 7}; // products take heads for the songs of a batch
    const int NH = m->NH, HS = m->HS, entry = gpt_entry(s, slot);
    const bool bytes = s->kv_precision == INT8;
    const int n_entries = (int)round_up(gpt_filled(s, slot), PANEL);
    const int64_t entries = s->entries;
    const size_t each = byte_vector_size(HS);
    const LayerCache cache = gpt_cache(s, m, slot, layer);
    float *queries = row(s->qkv, slot), value_scale = 1;
    if (bytes) {
        for (int h = 0; h < NH; h++) byte_vector(s->queries + h * each, queries + h * HS, HS, BYTE_ZERO);
        value_scale = byte_ratios(s->ratios, cache.value_scales, n_entries);
    }
    for (int first = 0; first < NH; first += HEADS) {
        const int n = NH - first < HEADS ? NH - first : HEADS;
        float top[HEADS], sum[HEADS];
        product_of(&m->layers[layer].rel, s->relative, shared(s->zeros), (Rows){queries + first * HS, HS}, head_numbers,
                   n, s->queries + first * each);
        for (int i = 0; i < n; i++) gpt_ring(row(s->rings, i), row(s->relative, i), m->D, s->N, s->entries, entry);
        for (int i = 0, h = first; i < n; i++, h++) {
            float *scores = row(s->scores, slot) + h * entries, *relative = row(s->rings, i) + s->N - 1 - entry;
            const float *keys = cache.keys + h * s->key_words, *query = queries + h * HS, *scales = cache.key_scales;
            top[i] = bytes ? byte_scores(scores, relative, keys, scales, s->queries + h * each, HS, n_entries)
                           : float_scores(scores, relative, keys, query, HS, n_entries);
        }
        for (int i = 0, h = first; i < n; i++, h++) {
            float *scores = row(s->scores, slot) + h * entries, *weights = row(s->weights, i);
            sum[i] = bytes ? byte_weights((char *)weights, scores, top[i], s->ratios, n_entries, entries)
                           : float_weights(weights, scores, top[i], n_entries);
        }
        for (int i = 0, h = first; i < n; i++, h++) {
            const float *values = cache.values + h * s->value_words;
            float *out = row(s->heads, slot) + h * HS, *weights = row(s->weights, i);
            if (bytes) weigh_bytes(out, value_scale / sum[i], (char *)weights, values, n_entries, entries, HS);
            if (!bytes) weigh_floats(out, 1 / sum[i], weights, values, n_entries, entries, HS);
        }
    }
}

// A token of each of the n slots listed, before the first layer.
static inline void gpt_enter(const GptState *s, const GptDecoder *m, const int *slots, int n, const int *tokens) {
    for (int i = 0; i < n; i++) {
        memcpy(row(s->x, slots[i]), m->emb + tokens[i] * round_up(m->C, LANES), (size_t)m->C * sizeof(float));
        gpt_clear_scores(s, m, slots[i]);
    }
}

// Layer k. The softmax of the scores that it leaves is its attention. packed: as Batch has it.
static inline void gpt_layer(const GptState *s, const GptDecoder *m, int k, const int *slots, int n, char *packed) {
    const int C = m->C;
    const float scale = 1.0f / sqrtf((float)m->HS);
    const GptLayer *l = &m->layers[k];
    linear(&l->qkv, s->qkv, s->x, slots, n, packed);
    for (int i = 0; i < n; i++) {
        const int slot = slots[i];
        float *qkv = row(s->qkv, slot);
        for (int c = 0; c < C; c++) qkv[c] *= scale;
        gpt_cache_put(s, m, gpt_cache(s, m, slot, k), qkv + C, qkv + 2 * C, gpt_entry(s, slot));
        gpt_attention(s, m, slot, k);
    }
    linear(&l->out, s->update, s->heads, slots, n, packed);
    for (int i = 0; i < n; i++) add_layernorm(row(s->x, slots[i]), row(s->update, slots[i]), &l->ln1, C);
    linear(&l->fc1, s->hidden, s->x, slots, n, packed);
    for (int i = 0; i < n; i++) relu(row(s->hidden, slots[i]), m->F);
    linear(&l->fc2, s->update, s->hidden, slots, n, packed);
    for (int i = 0; i < n; i++) add_layernorm(row(s->x, slots[i]), row(s->update, slots[i]), &l->ln2, C);
}

// Behind the last layer: the logits [V] of the tokens after these.
static inline void gpt_leave(const GptState *s, const GptDecoder *m, const int *slots, int n, Rows logits,
                             char *packed) {
    linear(&m->head, logits, s->x, slots, n, packed);
    for (int i = 0; i < n; i++) s->t[slots[i]]++;
}

// ---- the LSTM
//
// Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, as PyTorch writes it: gates in the order
// i, f, g, o, each with two biases; a head of three linear layers, LayerNorm and ReLU between them. All that came
// before is in h and c, so that there is no context to pass over.
//
// A panel of gates holds LANES units: i of all of them, then f, g and o of all of them, 4 LANES = PANEL rows.

typedef struct {
    Weights ih, hh;        // [4H][E or H], in layer 0 float32; [4H][H]; in GATES
    float *bias, *bias_hh; // [4H], in GATES; bias is the sum of both after lstm_prepare
} LstmLayer;

typedef struct {
    int E, H, L, H1, H2;  // H1, H2: the widths of the head
    float *emb;           // [V][E], rows padded to a multiple of LANES
    LstmLayer *layers;    // [L]
    float *table;         // [V][4H], in GATES: each token's input product in layer 0, and the biases
    Linear fc1, fc2, fc3; // [H1][H], [H2][H1], [V][H2]
    Norm ln1, ln2;        // [H1], [H2]
} LstmDecoder;

typedef struct {   // rows, one for each slot
    int units;     // H rounded up to LANES; the last ones stay 0
    int64_t layer; // floats from a layer's h or c to the next layer's
    Rows h, c;     // [L][layer] what is carried from token to token
    Rows gates;    // [4 units]
    Rows fc1, fc2; // [H1], [H2]
} LstmState;

// As gpt_load; emb and the input weights of layer 0 become the table.
static inline void lstm_load(LstmDecoder *m, Loader *from) {
    int sizes[LSTM_SIZES] = {0};
    if (!load_sizes(from, lstm_sizes_of_file, sizes)) return;
    const int H = m->H = sizes[LSTM_WIDTH];
    m->E = sizes[LSTM_EMBED];
    m->L = sizes[LSTM_LAYERS];
    const StTensor *fc1 = load_tensor(from, 2, 0, H, "head.1", 0, ".weight");
    const StTensor *fc2 = load_tensor(from, 2, 0, fc1 ? fc1->shape[0] : 0, "head.5", 0, ".weight");
    if (!from->ok) return;
    m->H1 = (int)fc1->shape[0];
    m->H2 = (int)fc2->shape[0];
    if (!m->layers) m->layers = calloc((size_t)m->L, sizeof *m->layers);
    if (!m->layers) from->ok = load_no_memory(from);
    m->emb = load_floats(from, ROWS, V, m->E, "emb", 0, ".weight");
    m->table = take(&from->arena, V * 4 * round_up(H, LANES));
    for (int i = 0; from->ok && i < m->L; i++) {
        LstmLayer *l = &m->layers[i];
        const Precision precision = i ? from->precision : FLOAT32;
        l->ih = load_matrix(from, precision, GATES, 4 * H, i ? H : m->E, "lstm.weight_ih_l%d", i, "");
        l->bias = load_floats(from, GATES, 4 * H, 0, "lstm.bias_ih_l%d", i, "");
        l->bias_hh = load_floats(from, GATES, 4 * H, 0, "lstm.bias_hh_l%d", i, "");
        from->bytes -= (int64_t)4 * H * 4;            // a token reads the sum of the biases,
        if (i == 0) from->bytes = (int64_t)4 * H * 4; // and in layer 0 a row of the table instead of all these
        l->hh = load_matrix(from, from->precision, GATES, 4 * H, H, "lstm.weight_hh_l%d", i, "");
    }
    m->fc1 = load_linear(from, m->H1, H, "head.1", 0);
    m->ln1 = load_norm(from, m->H1, "head.2", 0);
    m->fc2 = load_linear(from, m->H2, m->H1, "head.5", 0);
    m->ln2 = load_norm(from, m->H2, "head.6", 0);
    m->fc3 = load_linear(from, V, m->H2, "head.9", 0);
}

// Once the weights are there: computes what is the same for every token.
static inline void lstm_prepare(LstmDecoder *m) {
    const int gates = 4 * (int)round_up(m->H, LANES);
    for (int i = 0; i < m->L; i++) add(m->layers[i].bias, m->layers[i].bias_hh, gates);
    int all[V];
    for (int v = 0; v < V; v++) all[v] = v;
    product(&m->layers[0].ih, (Rows){m->table, gates}, shared(m->layers[0].bias), (Rows){m->emb, round_up(m->E, LANES)},
            all, V, NULL);
}

static inline void lstm_state(LstmState *s, const LstmDecoder *m, int slots, Arena *arena) {
    s->units = (int)round_up(m->H, LANES);
    s->layer = round_up(m->H, PANEL);
    s->h = take_rows(arena, slots, m->L * s->layer);
    s->c = take_rows(arena, slots, m->L * s->layer);
    s->gates = take_rows(arena, slots, 4 * s->units);
    s->fc1 = take_rows(arena, slots, m->H1);
    s->fc2 = take_rows(arena, slots, m->H2);
}

static inline void lstm_begin(LstmState *s, int slot) {
    memset(row(s->h, slot), 0, (size_t)s->h.stride * sizeof(float));
    memset(row(s->c, slot), 0, (size_t)s->c.stride * sizeof(float));
}

// c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c)
static inline void lstm_cell(float *h, float *c, const float *gates, int units) {
    for (int u = 0; u < units; u += LANES, gates += PANEL) {
        vector i = sigmoid_vector(load(gates)), f = sigmoid_vector(load(gates + LANES));
        vector g = tanh_vector(load(gates + 2 * LANES)), o = sigmoid_vector(load(gates + 3 * LANES));
        vector cell = f * load(c + u) + i * g;
        store(c + u, cell);
        store(h + u, o * tanh_vector(cell));
    }
}

// As gpt_enter.
static inline void lstm_enter(const LstmState *s, const LstmDecoder *m, const int *slots, int n, const int *tokens) {
    const int gates = 4 * s->units;
    for (int i = 0; i < n; i++) {
        memcpy(row(s->gates, slots[i]), m->table + (int64_t)tokens[i] * gates, (size_t)gates * sizeof(float));
    }
}

static inline Rows lstm_h(const LstmState *s, int k) { return (Rows){s->h.at + k * s->layer, s->h.stride}; }

// Layer k. It leaves its gates before sigmoid and tanh. packed: as Batch has it.
static inline void lstm_layer(const LstmState *s, const LstmDecoder *m, int k, const int *slots, int n, char *packed) {
    const LstmLayer *l = &m->layers[k];
    const Rows h = lstm_h(s, k);
    if (k) product(&l->ih, s->gates, shared(l->bias), lstm_h(s, k - 1), slots, n, packed);
    product(&l->hh, s->gates, s->gates, h, slots, n, packed);
    for (int i = 0; i < n; i++) {
        lstm_cell(row(h, slots[i]), row(s->c, slots[i]) + k * s->layer, row(s->gates, slots[i]), s->units);
    }
}

// As gpt_leave.
static inline void lstm_leave(const LstmState *s, const LstmDecoder *m, const int *slots, int n, Rows logits,
                              char *packed) {
    linear(&m->fc1, s->fc1, lstm_h(s, m->L - 1), slots, n, packed);
    for (int i = 0; i < n; i++) layernorm_relu(row(s->fc1, slots[i]), &m->ln1, m->H1);
    linear(&m->fc2, s->fc2, s->fc1, slots, n, packed);
    for (int i = 0; i < n; i++) layernorm_relu(row(s->fc2, slots[i]), &m->ln2, m->H2);
    linear(&m->fc3, logits, s->fc2, slots, n, packed);
}

// ---- a model of either kind, and a batch of songs in the making

typedef enum { GPT, LSTM } Kind;

static const char *const kind_names[] = {"gpt", "lstm"};

typedef struct {
    const char *path;
    Kind kind;
    Precision precision;
    GptDecoder gpt; // this or lstm is used
    LstmDecoder lstm;
    int64_t bytes;   // of weights that a token reads
    float *memory;   // owns all weights
    char name[100];  // for people: of the file, or of its folder if the file has the usual name
    char about[220]; // for people: name, kind, sizes, and the precision if it is not float32
} Model;

static inline void model_free(Model *m) {
    free(m->gpt.layers);
    free(m->lstm.layers);
    free(m->memory);
    memset(m, 0, sizeof *m);
}

// Checks and counts, or copies, what from->arena says.
static inline void model_take(Model *m, Loader *from) {
    from->bytes = 0;
    if (count_layers(from->file, "lstm.", "_l")) {
        m->kind = LSTM;
        lstm_load(&m->lstm, from);
    } else if (count_layers(from->file, "layers.", ".")) {
        m->kind = GPT;
        gpt_load(&m->gpt, from);
    } else {
        from->ok = fail(from->error, "%s: has the tensors of neither a Transformer nor an LSTM; give a trained model",
                        from->path);
    }
}

static inline void model_describe(Model *m, const StFile *file) {
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
static inline bool model_load(Model *m, const char *path, Precision precision, char *error) {
    StFile file;
    Loader from = {&file, path, precision, error, true, 0, {NULL, 0}};
    memset(m, 0, sizeof *m);
    m->path = path;
    m->precision = precision;
    if (!model_read(&file, path, error)) return false;
    model_take(m, &from);
    if (from.ok) {
        m->memory = vector_alloc(path, (int64_t)from.arena.used, "--weights int8 takes the least", error);
        from.arena = (Arena){m->memory, 0};
        from.ok = m->memory;
    }
    if (from.ok) model_take(m, &from);
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
    GptState gpt; // this or lstm is used
    LstmState lstm;
    Rows logits;   // [V] of each slot, of the token after the last one fed
    char *packed;  // vectors of each slot as products take them
    float *memory; // owns all of it
} Batch;

static inline void batch_free(Batch *b) {
    free(b->memory);
    memset(b, 0, sizeof *b);
}

static inline void batch_lay_out(Batch *b, int n_slots, int context, Arena *arena) {
    const Model *m = b->model;
    const int widths[] = {m->gpt.C, m->gpt.F, m->lstm.H, m->lstm.H1, m->lstm.H2}; // of what products pack
    int widest = 0;
    for (int k = 0; k < 5; k++) widest = widths[k] > widest ? widths[k] : widest;
    if (m->kind == GPT) gpt_state(&b->gpt, &m->gpt, n_slots, context, arena);
    if (m->kind == LSTM) lstm_state(&b->lstm, &m->lstm, n_slots, arena);
    b->logits = take_rows(arena, n_slots, V);
    b->packed = (char *)take(arena, n_slots * (int64_t)packed_size(m->precision, widest) / 4);
}

// The memory of a batch, in bytes.
static inline int64_t batch_size(const Model *m, int n_slots, int context) {
    Batch b = {.model = m};
    Arena arena = {NULL, 0};
    batch_lay_out(&b, n_slots, context, &arena);
    return (int64_t)arena.used * (int64_t)sizeof(float);
}

// An empty batch; only a Transformer has a context. After a failure there is nothing to free.
static inline bool batch_new(Batch *b, const Model *m, int n_slots, int context, char *error) {
    const int64_t size = batch_size(m, n_slots, context);
    memset(b, 0, sizeof *b);
    b->model = m;
    b->memory = vector_alloc("the state of the songs", size / (int64_t)sizeof(float),
                             m->kind == GPT ? "take a smaller --context" : "make fewer songs at a time", error);
    if (!b->memory) return false;
    Arena arena = {b->memory, 0};
    batch_lay_out(b, n_slots, context, &arena);
    return true;
}

// A new song begins in a slot.
static inline void batch_begin(Batch *b, int slot) {
    if (b->model->kind == GPT) gpt_begin(&b->gpt, slot);
    if (b->model->kind == LSTM) lstm_begin(&b->lstm, slot);
}

// Feeds a token to each of the n slots listed, whose logits are then those of the token after it. seen, if it is not
// NULL, is called behind each layer, for those who want to look inside.
static inline void batch_watch(Batch *b, const int *slots, int n, const int *tokens,
                               void (*seen)(const Batch *b, int layer, void *whose), void *whose) {
    const Model *m = b->model;
    const bool gpt = m->kind == GPT;
    if (gpt) gpt_enter(&b->gpt, &m->gpt, slots, n, tokens);
    if (!gpt) lstm_enter(&b->lstm, &m->lstm, slots, n, tokens);
    for (int k = 0; k < (gpt ? m->gpt.L : m->lstm.L); k++) {
        if (gpt) gpt_layer(&b->gpt, &m->gpt, k, slots, n, b->packed);
        if (!gpt) lstm_layer(&b->lstm, &m->lstm, k, slots, n, b->packed);
        if (seen) seen(b, k, whose);
    }
    if (gpt) gpt_leave(&b->gpt, &m->gpt, slots, n, b->logits, b->packed);
    if (!gpt) lstm_leave(&b->lstm, &m->lstm, slots, n, b->logits, b->packed);
}

// The same, unseen.
static inline void batch_step(Batch *b, const int *slots, int n, const int *tokens) {
    batch_watch(b, slots, n, tokens, NULL, NULL);
}
