// A model as every program sees it: its sizes and parameters, the memory that it takes, and what goes into and comes
// out of a training step.
//
// C11 and C++17. Include it before any system header.
#pragma once

#include "base/limits.h" // first: it chooses the system's interfaces

#include "base/data.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifndef REAL
#define REAL float
#endif
typedef REAL real; // double for the finite-difference checks; its files hold F64
#define REAL_TYPE (sizeof(real) == sizeof(double) ? ST_F64 : ST_F32)

// ---- sizes and parameters

typedef enum { INIT_NORMAL, INIT_UNIFORM, INIT_FILL } InitKind;

typedef struct {           // one parameter tensor
    char name[64];         // as in the model file
    int rank;              // 1 or 2
    int64_t shape[2];      // [1] is 1 where rank is 1
    int64_t count, offset; // elements; position in the flat array, a multiple of 16 elements
    InitKind init;         // INIT_NORMAL: N(0, scale^2), INIT_UNIFORM: +-scale, INIT_FILL: scale itself
    double scale;
} ParamTensor;

typedef struct {
    ParamTensor *list; // owned; release with layout_free
    int n;
    int64_t size;  // elements of the flat array, padding included, a multiple of 16
    int64_t count; // parameters
} ParamLayout;

enum { MAX_SIZES = 8 };

typedef struct { // a size of the model that is a flag, --layers say, and a key of the file's metadata
    const char *flag, *help;
    int initial, min, max;
} SizeFlag;

typedef struct {
    int sizes[MAX_SIZES]; // in the order of the spec's size_flags
    int B, T;
    double dropout;
    uint64_t seed;
    int transpose[2];    // the least and the most semitones by which windows of the training set are transposed
    double average;      // what the average of the weights keeps of itself in a step; 0: there is none
    double warmup;       // steps in which the learning rate rises
    double weight_decay; // times the learning rate: what a weight loses of itself in a step
    const char *precision;
    int threads;
} ModelConfig;

// Numbers of tokens fit an int: a batch has at most 2^30, or false and a sentence.
static inline bool batch_check(const ModelConfig *config, char *error) {
    if ((double)config->B * config->T <= 1 << 30) return true;
    return fail(error, "--batch %d windows of --window %d tokens are more than 2^30 tokens a step", config->B,
                config->T);
}

typedef struct {
    int64_t step, epoch, index; // step since step 0; epoch and step within the epoch, from 0
    double lr;                  // that of the epoch, to which it rises in the first steps
} StepPlan;

// The learning rate of a step, which rises linearly in the first `warmup` ones.
PHILOX_FN double warmed_lr(double lr, double warmup, int64_t step) {
    return (double)(step + 1) < warmup ? lr * (double)(step + 1) / warmup : lr;
}

// The part of the new weights in their average, after a step. The average is one of the last 1/(1 - keep) steps, but at
// first of fewer, so that it soon forgets the first weights.
PHILOX_FN double average_part(double keep, int64_t step) { return fmax(1 - keep, 10.0 / (double)(step + 11)); }

typedef struct {
    double sum;       // of the steps' mean losses since set_loss, up to and without the first bad step
    int64_t bad_step; // the first step whose loss or gradient was not finite, or -1
} TrainLoss;

typedef struct { // negative log-likelihoods by the target's kind: bar, offset, pitch, duration
    double sum[4];
    int64_t count[4];
} EvalLoss;

typedef struct {   // what a stage of the forward gave
    char name[64]; // "act.emb", "logits", ... as in the dump
    int rank;
    int64_t shape[4];
    const real *data;
} Activation;

static const char *const train_kinds[] = {"bar", "offset", "pitch", "duration"};

// The flat arrays of a model. The average is there only where it is asked for.
enum { STATE_PARAMS, STATE_EXP_AVG, STATE_EXP_INF, STATE_AVERAGE, STATE_GRADS, STATES };

// Those that a run is resumed from: all up to this one.
static inline int last_state(const ModelConfig *config) { return config->average > 0 ? STATE_AVERAGE : STATE_EXP_INF; }

// ---- parameters

// Appends a tensor; d1 is 1 where rank is 1. A name longer than 63 bytes is the programmer's mistake.
PRINTF_LIKE(7, 8)
static inline void param_add(ParamLayout *layout, InitKind init, double scale, int rank, int64_t d0, int64_t d1,
                             const char *name_format, ...) {
    layout->list = (ParamTensor *)must_have(realloc(layout->list, (size_t)(layout->n + 1) * sizeof *layout->list));
    const int64_t columns = rank > 1 ? d1 : 1, count = d0 * columns;
    const ParamTensor tensor = {"", rank, {d0, columns}, count, layout->size, init, scale};
    layout->list[layout->n] = tensor;
    va_list arguments;
    va_start(arguments, name_format);
    vsnprintf(layout->list[layout->n++].name, sizeof tensor.name, name_format, arguments);
    va_end(arguments);
    layout->count += count;
    layout->size += (count + 15) / 16 * 16;
}

static inline void layout_free(ParamLayout *layout) {
    free(layout->list);
    memset(layout, 0, sizeof *layout);
}

// Initial weights, the same on every machine: tensor k has its own stream, and element i follows from its position.
// Computed in double, then rounded. The padding becomes zero.
static inline void params_init(const ParamLayout *layout, uint64_t seed, real *params) {
    memset(params, 0, (size_t)layout->size * sizeof *params);
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *tensor = &layout->list[k];
        PhiloxKey key = philox_key(seed, PHILOX_INIT, (uint32_t)k);
        real *out = params + tensor->offset;
        for (int64_t i = 0; i < tensor->count; i++) {
            double value = 1;
            if (tensor->init == INIT_NORMAL) value = philox_normal(key, (uint64_t)i);
            if (tensor->init == INIT_UNIFORM) {
                Philox4 words = philox(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0);
                value = 2 * philox_uniform(words.x[0], words.x[1]) - 1; // exact, so that fusing it changes nothing
            }
            out[i] = (real)(tensor->scale * value);
        }
    }
}

// Where weight decay acts (Loshchilov and Hutter, 2019): on matrices, not on biases and LayerNorm. One byte, 1 or 0,
// for each 16 elements of the flat array.
static inline void params_decays(const ParamLayout *layout, uint8_t *decays) {
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *tensor = &layout->list[k];
        memset(decays + tensor->offset / 16, tensor->rank == 2, (size_t)(tensor->count + 15) / 16);
    }
}

static inline bool row_finite(const real *row, int64_t n) {
    real sum = 0; // of x * 0: NaN where x is infinite or NaN
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += row[i] * 0;
    return sum == 0;
}

// The same of many numbers, shared by the threads. To call them takes longer, a microsecond, than to look at a row.
static inline bool all_finite(const real *values, int64_t n) {
    bool finite = true;
#pragma omp parallel for schedule(static) reduction(&& : finite)
    for (int64_t i = 0; i < n; i += 4096) finite = finite && row_finite(values + i, n - i < 4096 ? n - i : 4096);
    return finite;
}

// Reads a model's file. What PyTorch puts before all names where a model is wrapped, "module." in DataParallel and
// "_orig_mod." in torch.compile, is taken off.
static inline bool model_read(StFile *file, const char *path, char *error) {
    static const char *const wrappers[] = {"module.", "_orig_mod."};
    if (!st_read(file, path, error)) return false;
    for (int i = 0; i < file->n_tensors; i++) {
        for (int k = 0; k < 2; k++) {
            const size_t length = strlen(wrappers[k]);
            if (strncmp(file->tensors[i].name, wrappers[k], length)) continue;
            file->tensors[i].name += length;
            k = -1; // they may be wrapped twice
        }
    }
    if (st_sort(file, path, error)) return true;
    st_free(file);
    return false;
}

// The tensor of floating point that has this name and shape, where a size of -N may be any from 1 to N. NULL, and a
// sentence: it is missing or is another.
static inline const StTensor *file_tensor(const StFile *file, const char *name, int rank, const int64_t *shape,
                                          char *error) {
    const StTensor *tensor = st_find(file, name);
    char has[200], needs[200];
    bool same = tensor && tensor->rank == rank;
    for (int d = 0; same && d < rank; d++) {
        const int64_t size = tensor->shape[d];
        same = shape[d] < 0 ? size >= 1 && size <= -shape[d] : size == shape[d];
    }
    st_shape_text(needs, rank, shape);
    if (!tensor) {
        fail(error, "tensor '%s' %s is missing", name, needs);
    } else if (!same) {
        fail(error, "tensor '%s' has the shape %s instead of %s", name, st_shape_text(has, tensor->rank, tensor->shape),
             needs);
    } else if (!st_is_float(tensor)) {
        fail(error, "tensor '%s' is %s instead of floating point", name, st_type_name(tensor->type));
    } else {
        return tensor;
    }
    return NULL;
}

// The layers of a model in a file: 1 + the largest number behind `mark` in the names of tensors that begin with `kind`,
// or 0. A layer counts if it has any of its tensors, so that the others, if they are missing, are missed.
static inline int count_layers(const StFile *file, const char *kind, const char *mark) {
    int layers = 0, layer;
    for (int i = 0; i < file->n_tensors; i++) {
        const char *name = file->tensors[i].name;
        const char *at = strncmp(name, kind, strlen(kind)) ? NULL : strstr(name, mark);
        bool has = at && sscanf(at + strlen(mark), "%5d", &layer) == 1;
        if (has && layer >= layers) layers = layer + 1;
    }
    return layers;
}

static inline bool layers_check(int layers, const SizeFlag *flag, char *error) {
    if (layers <= flag->max) return true;
    return fail(error, "its tensors name %d layers; a model has at most %d", layers, flag->max);
}

// ---- memory

// `count` zeroed elements of `size` bytes at a 64-byte boundary, for free(). NULL, and a sentence that says what they
// were for and ends in advice, where there is not so much memory. count is a double: no product of sizes overflows.
static inline void *allocate_or_advise(const char *what, double count, size_t size, const char *advice, char *error) {
    const char *who;
    double bytes = count * (double)size;
    size_t unit = bytes < (4 << 20) ? 64 : 2 << 20;
    void *out = NULL;
    if ((unit > 64 && bytes > memory_granted("", &who)) || posix_memalign(&out, unit, (size_t)bytes + 64)) {
        double memory = memory_granted("", &who);
        fail(error, "%s would take %.3g GB, and %s %.3g GB in all; %s", what, bytes / 1e9, who, memory / 1e9, advice);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    // Pages of 2 MB for large blocks: with the usual 4 KB the processor spends much of its time looking addresses up.
    // It is advice; nothing is lost where the system does not take it.
    if (unit > 64) madvise(out, (size_t)bytes, MADV_HUGEPAGE);
#endif
    memset(out, 0, (size_t)bytes + 64);
    return out;
}

static inline void *allocate(const char *what, double count, size_t size, char *error) { // for a trainer
    return allocate_or_advise(what, count, size, "take a smaller --batch, --window or model", error);
}

// Pieces of one block of memory, each at a 64-byte boundary of it. With base NULL it only counts.
typedef struct {
    real *base;
    double used; // elements so far; a double because a product of flags may be anything
} Arena;

static inline real *arena_take(Arena *arena, double count) {
    real *piece = arena->base ? arena->base + (size_t)arena->used : NULL;
    arena->used += ceil(count / 16) * 16;
    return piece;
}

// Adds the losses of n targets by their kinds.
static inline void eval_add(EvalLoss *eval, const real *losses, const uint8_t *targets, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int kind = token_kind(targets[i]);
        eval->sum[kind] += (double)losses[i];
        eval->count[kind]++;
    }
}
