// What is known about an LSTM's file, in one place: its sizes as flags, which of them go together, the sizes that the
// tensors of a file have, the arithmetic of a training step, and the activations in a dump of one. The trainers list
// the tensors themselves.
//
// C11 and C++17. Include it before any system header.
#pragma once

#include "base/params.h"

enum { LSTM_EMBED, LSTM_WIDTH, LSTM_LAYERS, LSTM_SIZES };
enum { LSTM_MAX_LAYERS = 1000 };

static const SizeFlag lstm_size_flags[LSTM_SIZES] = {
    {"embed", "width of the token embedding", 64, 1, 1 << 16},
    {"width", "units of an LSTM layer; the head's layers have twice and once as many", 512, 1, 1 << 16},
    {"layers", "LSTM layers", 2, 1, LSTM_MAX_LAYERS},
};

// The flags that --recipe tuned sets where they are not given. Its last epoch gains less than 0.01.
static const char *const lstm_tuned[][2] = {
    {"transpose", "-5,6"},   {"dropout", "0.2"},    {"lr", "0.004"}, {"lr-decay", "1"}, {"lr-min", "0"},
    {"weight-decay", "0.2"}, {"average", "0.9995"}, {"epochs", "6"}, {NULL, NULL},
};

// The sizes of a model file, from its tensors' names and shapes.
static inline bool lstm_sizes_of_file(const StFile *file, int *sizes, char *error) {
    static const int64_t any[] = {-(1 << 18), -(1 << 16)};
    if (st_find(file, "layers.0.attn.rel")) return fail(error, "it holds a Transformer; that is for train_gpt_music");
    const StTensor *emb = file_tensor(file, "emb.weight", 2, any, error);
    const StTensor *hh = emb ? file_tensor(file, "lstm.weight_hh_l0", 2, any, error) : NULL;
    if (!hh) return false;
    sizes[LSTM_EMBED] = (int)emb->shape[1];
    sizes[LSTM_WIDTH] = (int)hh->shape[1];
    sizes[LSTM_LAYERS] = count_layers(file, "lstm.", "_l");
    return layers_check(sizes[LSTM_LAYERS], &lstm_size_flags[LSTM_LAYERS], error);
}

// Three times the forward's products. Layer 0's input product counts for every row, though the trainers make it once
// for every token.
static inline double lstm_step_flops(const ModelConfig *config) {
    const double B = config->B, T = config->T, L = config->sizes[LSTM_LAYERS], E = config->sizes[LSTM_EMBED],
                 H = config->sizes[LSTM_WIDTH], V = DATA_TOKENS;
    return 3 * 2 * B * T * (4 * H * (E + H) + (L - 1) * 4 * H * 2 * H + 2 * H * H + 2 * H * H + H * V);
}

// Activation i of 2 L + 3 in a dump: its name, its shape and where it lies. Returns its width.
static inline int lstm_describe(Activation *out, const real *data, const ModelConfig *config, int i) {
    const int H = config->sizes[LSTM_WIDTH], head = i - 2 * config->sizes[LSTM_LAYERS];
    const char *const names[] = {"act.head.3", "act.head.7", "logits"};
    const int widths[] = {2 * H, H, DATA_TOKENS}, C = head < 0 ? H : widths[head];
    const Activation activation = {"", 3, {config->B, config->T, C}, data};
    *out = activation;
    if (head < 0) {
        snprintf(out->name, sizeof out->name, "act.%c_l%d", "hc"[i % 2], i / 2);
    } else {
        strcpy(out->name, names[head]);
    }
    return C;
}

// Copies the rows of x, those of one position side by side, to out, where those of a window are, as in a dump; if there
// is a w, relu(x * w + b) of them. Returns the end.
static inline real *lstm_keep_rows(const ModelConfig *config, real *out, const real *x, const real *w, const real *b,
                                   int C) {
    const int B = config->B, T = config->T;
    for (int r = 0; r < B * T; r++) {
        real *out_r = out + ((size_t)(r % B) * T + r / B) * C;
        const real *x_r = x + (size_t)r * C;
        for (int c = 0; c < C; c++) {
            const real v = w ? x_r[c] * w[c] + b[c] : x_r[c];
            out_r[c] = w && v < 0 ? 0 : v;
        }
    }
    return out + (size_t)B * T * C;
}

// What the ModelSpecs of its trainers have in common (recipe/model.h). Any sizes go together.
#define LSTM_MODEL_SPEC                                                                                                \
    .name = "lstm", .size_flags = lstm_size_flags, .n_sizes = LSTM_SIZES, .lr = 5e-4, .lr_decay = 0.8, .lr_min = 5e-5, \
    .tuned = lstm_tuned, .check_sizes = batch_check, .sizes_of_file = lstm_sizes_of_file,                              \
    .step_flops = lstm_step_flops
