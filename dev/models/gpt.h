// What is known about a Transformer's file, in one place: its sizes as flags, which of them go together, the sizes that
// the tensors of a file have, and the arithmetic of a training step. The trainers list the tensors themselves.
//
// C11 and C++17. Include it before any system header.
#pragma once

#include "base/params.h"

enum { GPT_LAYERS, GPT_WIDTH, GPT_HEADS, GPT_HIDDEN, GPT_REL, GPT_SIZES };
enum { GPT_MAX_LAYERS = 1000 };

static const SizeFlag gpt_size_flags[GPT_SIZES] = {
    {"layers", "number of layers", 8, 1, GPT_MAX_LAYERS},
    {"width", "width of the model, a multiple of the heads", 256, 1, 1 << 16},
    {"heads", "attention heads", 16, 1, 1 << 12},
    {"hidden", "width between the two products of a layer", 512, 1, 1 << 18},
    {"rel", "relative distances with a vector of their own", 240, 1, 1 << 20},
};

// The flags that --recipe tuned sets where they are not given. Its last epoch gains less than 0.01.
static const char *const gpt_tuned[][2] = {
    {"transpose", "-5,6"},   {"dropout", "0.2"},    {"lr", "0.005"}, {"warmup", "1000"},
    {"weight-decay", "0.2"}, {"average", "0.9995"}, {"epochs", "6"}, {NULL, NULL},
};

// The sizes go together, or false and a sentence that names the flags.
static inline bool gpt_check_sizes(const ModelConfig *config, char *error) {
    int C = config->sizes[GPT_WIDTH], NH = config->sizes[GPT_HEADS];
    if (C % NH) return fail(error, "--width %d is not a multiple of --heads %d", C, NH);
    return batch_check(config, error);
}

// The sizes of a model file, from its tensors' shapes; heads = width / the last dimension of rel.
static inline bool gpt_sizes_of_file(const StFile *file, int *sizes, char *error) {
    static const int64_t any[] = {-(1 << 20), -(1 << 20)};
    if (st_find(file, "lstm.weight_ih_l0")) return fail(error, "it holds an LSTM; that is for train_lstm_music");
    const StTensor *emb = file_tensor(file, "emb.weight", 2, any, error);
    const StTensor *rel = emb ? file_tensor(file, "layers.0.attn.rel", 2, any, error) : NULL;
    const StTensor *fc1 = rel ? file_tensor(file, "layers.0.fc1.weight", 2, any, error) : NULL;
    if (!fc1) return false;
    if (emb->shape[1] % rel->shape[1]) {
        return fail(error,
                    "the width %d is not a multiple of the head size %d, the last dimension of 'layers.0.attn.rel'",
                    (int)emb->shape[1], (int)rel->shape[1]);
    }
    sizes[GPT_LAYERS] = count_layers(file, "layers.", ".");
    sizes[GPT_WIDTH] = (int)emb->shape[1];
    sizes[GPT_HEADS] = (int)(emb->shape[1] / rel->shape[1]);
    sizes[GPT_HIDDEN] = (int)fc1->shape[0];
    sizes[GPT_REL] = (int)rel->shape[0];
    return layers_check(sizes[GPT_LAYERS], &gpt_size_flags[GPT_LAYERS], error);
}

// Three times the forward's products. Attention's three, q.k, q.rel and a.v, count up to the diagonal only.
static inline double gpt_step_flops(const ModelConfig *config) {
    const double B = config->B, T = config->T, L = config->sizes[GPT_LAYERS], C = config->sizes[GPT_WIDTH],
                 F = config->sizes[GPT_HIDDEN], V = DATA_TOKENS;
    return 3 * (2 * B * T * (L * (4 * C * C + 2 * C * F) + C * V) + L * 3 * 2 * B * (T * (T + 1) / 2) * C);
}

// What the ModelSpecs of its trainers have in common (recipe/model.h).
#define GPT_MODEL_SPEC                                                                                                 \
    .name = "gpt", .size_flags = gpt_size_flags, .n_sizes = GPT_SIZES, .lr = 1e-3, .lr_decay = 1, .lr_min = 0,         \
    .tuned = gpt_tuned, .check_sizes = gpt_check_sizes, .sizes_of_file = gpt_sizes_of_file,                            \
    .step_flops = gpt_step_flops
