// Models with random weights, made for a test in its scratch folder, and what tests of the sampler share besides.
#ifndef MODELS_H
#define MODELS_H

#include "base/data.h"
#include "base/philox.h"
#include "base/safetensors.h"

#include "check.h"

static char folder[256], error[ERROR_SIZE];

static inline const char *in_folder(const char *name) { // valid until 8 more calls
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline void remove_folder(void) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0, "%s could not be removed", folder);
}

typedef struct {
    int C, L, HS, F, D;
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
static inline void add_tensor(Tensors *list, double mean, double deviation, int rows, int cols, const char *format,
                              ...) {
    va_list arguments;
    int k = list->n++;
    va_start(arguments, format);
    vsnprintf(list->names[k], sizeof list->names[k], format, arguments);
    va_end(arguments);
    int64_t count = (int64_t)(rows ? rows : 1) * cols;
    float *data = malloc((size_t)count * sizeof *data);
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

static inline void make_tensors(Tensors *list, Sizes size) {
    int C = size.C, F = size.F;
    double by_width = 1 / sqrt(C), by_hidden = 1 / sqrt(F);
    list->n = 0;
    add_tensor(list, 0, 1, DATA_TOKENS, C, "emb.weight");
    for (int i = 0; i < size.L; i++) {
        add_tensor(list, 0, by_width, 3 * C, C, "layers.%d.attn.qkv.weight", i);
        add_tensor(list, 0, 0.1, 0, 3 * C, "layers.%d.attn.qkv.bias", i);
        add_tensor(list, 0, 1, size.D, size.HS, "layers.%d.attn.rel", i);
        add_tensor(list, 0, by_width, C, C, "layers.%d.attn.out.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.attn.out.bias", i);
        add_tensor(list, 1, 0.1, 0, C, "layers.%d.ln1.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.ln1.bias", i);
        add_tensor(list, 0, by_width, F, C, "layers.%d.fc1.weight", i);
        add_tensor(list, 0, 0.1, 0, F, "layers.%d.fc1.bias", i);
        add_tensor(list, 0, by_hidden, C, F, "layers.%d.fc2.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.fc2.bias", i);
        add_tensor(list, 1, 0.1, 0, C, "layers.%d.ln2.weight", i);
        add_tensor(list, 0, 0.1, 0, C, "layers.%d.ln2.bias", i);
    }
    add_tensor(list, 0, by_width, DATA_TOKENS, C, "head.weight");
    add_tensor(list, 0, 0.1, 0, DATA_TOKENS, "head.bias");
}

// As a new model's, times gain in the recurrence: with 1 the gates stay half open, with 4 they open and close.
static inline void make_lstm_tensors(Tensors *list, LstmSizes size, double gain) {
    const double by_units = -gain / sqrt(size.H), by_H1 = -1 / sqrt(size.H1), by_H2 = -1 / sqrt(size.H2);
    list->n = 0;
    add_tensor(list, 0, 1, DATA_TOKENS, size.E, "emb.weight");
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
    add_tensor(list, 0, by_H2, DATA_TOKENS, size.H2, "head.9.weight");
    add_tensor(list, 0, by_H2, 0, DATA_TOKENS, "head.9.bias");
}

static inline void free_tensors(Tensors *list) {
    for (int i = 0; i < list->n; i++) free((void *)list->tensors[i].data);
}

static inline bool write_tensors(const char *path, Tensors *list) { // and frees them
    bool ok = st_write(path, list->tensors, list->n, NULL, 0, error);
    free_tensors(list);
    return ok;
}

static inline bool make_model(const char *path, Sizes size) {
    static Tensors list;
    make_tensors(&list, size);
    return write_tensors(path, &list);
}

static inline bool make_lstm(const char *path, LstmSizes size, double gain) {
    static Tensors list;
    make_lstm_tensors(&list, size, gain);
    return write_tensors(path, &list);
}

static inline uint8_t *random_tokens(int T) {
    uint8_t *tokens = malloc((size_t)T);
    for (int t = 0; t < T; t++) {
        tokens[t] = (uint8_t)(philox(philox_key(7, 0, 0), (uint32_t)t, 0, 0, 0).x[0] % DATA_TOKENS);
    }
    return tokens;
}

#endif
