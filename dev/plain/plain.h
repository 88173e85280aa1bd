// What both plain models need besides their stages: tensors with gradients, first weights, Adamax, batches of music.
//
// C11.
#ifndef PLAIN_H
#define PLAIN_H

#include "base/data.h"
#include "base/philox.h"

enum { V = DATA_TOKENS };

// ---- tensors

typedef struct {
    char name[64];             // as in the files that the trainers write
    int rows, columns;         // a vector has one column
    double *value, *grad;      // [rows, columns] the numbers and their gradients
    double *exp_avg, *exp_inf; // [rows, columns] what Adamax remembers of a parameter's gradients
} Tensor;

typedef struct { // all tensors of a model, the parameters first
    Tensor **list;
    int n, n_params;
    uint64_t seed; // of the parameters' first values
} TensorList;

// Makes t a tensor of zeros and puts it at the end of the list. A %d in the name becomes l, the number of the layer.
static inline void tensor_add(TensorList *all, Tensor *t, int rows, int columns, const char *name, int l) {
    const size_t n = (size_t)rows * (size_t)columns;
    *t = (Tensor){.rows = rows, .columns = columns, .value = must_have(calloc(4 * n, sizeof(double)))};
    t->grad = t->value + n;
    t->exp_avg = t->grad + n;
    t->exp_inf = t->exp_avg + n;
    snprintf(t->name, sizeof t->name, name, l);
    all->list = must_have(realloc(all->list, (size_t)(all->n + 1) * sizeof *all->list));
    all->list[all->n++] = t;
}

static inline void tensors_zero_grads(TensorList *all) {
    for (int k = 0; k < all->n; k++) {
        Tensor *t = all->list[k];
        for (int i = 0; i < t->rows * t->columns; i++) t->grad[i] = 0;
    }
}

static inline void tensors_free(TensorList *all) {
    for (int k = 0; k < all->n; k++) free(all->list[k]->value);
    free(all->list);
}

// ---- first values

typedef enum { NORMAL, UNIFORM, CONSTANT } Init;

// Makes t the next parameter and draws its first values: from N(0, scale^2), or between -scale and scale, or all of
// them are scale. Parameter number k draws from stream k of the seed's random numbers. The trainers keep floats, so the
// values are rounded to float.
static inline void param_add(TensorList *all, Tensor *t, int rows, int columns, const char *name, int l, Init init,
                             double scale) {
    const PhiloxKey key = philox_key(all->seed, PHILOX_INIT, (uint32_t)all->n_params++);
    tensor_add(all, t, rows, columns, name, l);
    for (int i = 0; i < rows * columns; i++) {
        const Philox4 words = philox(key, (uint32_t)i, 0, 0, 0);
        double draw = 1;
        if (init == NORMAL) draw = philox_normal(key, (uint64_t)i);
        if (init == UNIFORM) draw = 2 * philox_uniform(words.x[0], words.x[1]) - 1;
        t->value[i] = (float)(scale * draw);
    }
}

// ---- Adamax (Kingma and Ba, 2015, section 7.1, as PyTorch has it): the gradients move the parameters

// exp_avg is a running mean of the gradient. exp_inf is the largest size that the gradient has had, fading by 0.1 % a
// step. Their quotient is about 1 at most, so that a step moves a number by about lr at most. exp_avg starts at zero
// and is too small at first, by the factor 1 - 0.9^t in step t = 1, 2, ..., which is divided out.
static inline void adamax(TensorList *all, double lr, int64_t t) {
    for (int k = 0; k < all->n_params; k++) {
        Tensor *p = all->list[k];
        for (int i = 0; i < p->rows * p->columns; i++) {
            const double g = p->grad[i];
            p->exp_avg[i] = 0.9 * p->exp_avg[i] + 0.1 * g;
            p->exp_inf[i] = fmax(0.999 * p->exp_inf[i], fabs(g) + 1e-8);
            p->value[i] -= lr / (1 - pow(0.9, (double)t)) * p->exp_avg[i] / p->exp_inf[i];
        }
    }
}

// ---- music

// Opens a dataset for batches of B windows of T tokens. False: there is too little, and a sentence on stderr says how
// to make some.
static inline bool music_open(Dataset *data, const char *path, const char *program, int B, int T) {
    char error[ERROR_SIZE] = "too little music for a batch";
    if (dataset_open(data, path, T, error) && epoch_steps(0.02, data->n_windows, B) > 0) return true;
    fprintf(stderr, "%s: %s; make some with %s\n", program, error,
            "data_prep/compose_music && data_prep/prepare_music data/starter/train data/starter/test");
    return false;
}

// The batch of a step. inputs, targets [B,T]: the target of a token is the token that follows it.
static inline void music_batch(const Dataset *data, uint64_t seed, int64_t step, int B, int *inputs, int *targets) {
    const int64_t epoch = epoch_steps(0.02, data->n_windows, B); // steps, in which no window comes twice
    int64_t starts[B];
    epoch_batch(data, seed, step / epoch, step % epoch, B, starts);
    for (int r = 0; r < B * data->T; r++) {
        const uint8_t *token = data->tokens + starts[r / data->T] + r % data->T;
        inputs[r] = token[0];
        targets[r] = token[1];
    }
}

#endif
