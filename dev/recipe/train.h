// The recipe that every trainer shares: command line, data, epochs, evaluation, checkpoints, resume, log and progress.
//
// A model file (train_gpt_music.c, train_lstm_music.cu, ...) fills in one ModelSpec, a table of functions that create
// the model, take one training step and evaluate one batch, and ends in
//
//     #ifndef TESTING
//     int main(int argc, char **argv) { return train_main(argc, argv, &gpt_spec); }
//     #endif
//
// What it promises:
// - A run that is killed at any moment and resumed ends with the same bytes in model.safetensors, last.safetensors and
//   log.csv (its seconds column aside) as a run that was never killed. Hence the state of a run is the weights, the two
//   Adamax averages, the number of steps taken, the epochs logged so far, and the running sums of the epoch and of the
//   evaluation in progress. Nothing depends on time: saving more or less often changes no result.
// - Files are written whole or not at all, in the order model, last, log.csv, loss.svg. Weights that are not finite are
//   neither read nor saved.
// - A new run leaves the files of an earlier one in its folder alone until its own first steps have gone well.
// - An error is one sentence on stderr that names the file or flag. Exit status 0: done; 1: it failed, or it was
//   stopped and saved before its end; 2: wrong usage.
// What it leaves out: anything that knows what the model is, and more than one process or device.
//
// C11 and C++17, POSIX. Include it before any system header.
#ifndef TRAIN_H
#define TRAIN_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "recipe/curves.h"
#include "base/data.h"
#include "base/flags.h"
#include "base/philox.h"
#include "base/safetensors.h"

#ifndef REAL
#define REAL float
#endif
typedef REAL real; // double for the finite-difference checks; its files hold F64
#define REAL_TYPE (sizeof(real) == sizeof(double) ? ST_F64 : ST_F32)

// ---- what a model tells the recipe

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
    const char *precision;
    int threads;
} ModelConfig;

typedef struct {
    int64_t step, epoch, index; // step since step 0; epoch and step within the epoch, from 0
    double lr;
} StepPlan;

typedef struct {
    double sum;       // of the steps' mean losses since set_loss, up to and without the first bad step
    int64_t bad_step; // the first step whose loss or gradient was not finite, or -1
} TrainLoss;

typedef struct { // negative log-likelihoods by the target's kind: bar, offset, pitch, duration
    double sum[4];
    int64_t count[4];
} EvalLoss;

typedef struct {
    char name[64]; // "act.emb", "logits", ... as in the dump
    int rank;
    int64_t shape[4];
    const real *data;
} Activation;

static const char *const train_kinds[] = {"bar", "offset", "pitch", "duration"};

enum { STATE_PARAMS, STATE_EXP_AVG, STATE_EXP_INF, STATE_GRADS };

typedef struct {
    const char *name;       // "gpt": the default --out out/gpt, the metadata model=gpt, the bench line
    const char *device;     // "cpu", "cuda", "emu"
    const char *precisions; // what --precision may be, the default first: "fp32" or "bf16|fp32"
    const SizeFlag *size_flags;
    int n_sizes;
    double lr, lr_decay, lr_min;
    // The configuration can be built (say, width is a multiple of heads), or false and a sentence that names the flag.
    bool (*check_sizes)(const ModelConfig *, char *error);
    void (*layout)(const int *sizes, ParamLayout *out); // calls param_add for every tensor; out comes zeroed
    // The sizes of the model in the file, from its tensors' names and shapes alone.
    bool (*sizes_of_file)(const StFile *, int *sizes, char *error);
    double (*step_flops)(const ModelConfig *);         // model FLOPs of one training step
    void *(*create)(const ModelConfig *, char *error); // everything the model will ever allocate; NULL: a sentence
    void (*destroy)(void *model);
    real *(*state)(void *model, int which);              // host copy as of now, in layout order; the model's own
    void (*state_changed)(void *model);                  // the recipe wrote into those arrays: take them over
    void (*set_data)(void *model, const Dataset *train); // called once before the first step
    // Batch by epoch_batch(seed, plan->epoch, plan->index), forward with dropout, backward, Adamax with t = step + 1.
    // From the first loss or gradient that is not finite on, updates are skipped. May return before the device is done.
    // The gradients stay readable until the next step.
    void (*train_step)(void *model, const StepPlan *plan);
    TrainLoss (*get_loss)(void *model);        // waits for the device
    void (*set_loss)(void *model, double sum); // and forgets bad_step
    // Adds the losses of n windows (1 <= n <= B, at token positions starts[]) of the test set, without dropout.
    void (*eval_batch)(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add);
    // The forward of a step and, where the loss is finite, the backward, without the update. Returns the loss.
    double (*gradients)(void *model, const StepPlan *plan);
    // act.* in the order of the forward, then logits, of the last step; returns how many. It is called with NULL before
    // that step, to make room for what training alone would not keep; -1: there is no room.
    int (*activations)(void *model, Activation *list);
} ModelSpec;

// ---- parameters

// Appends a tensor; d1 is 1 where rank is 1. A name longer than 63 bytes is the programmer's mistake.
PRINTF_LIKE(7, 8)
static inline void param_add(ParamLayout *layout, InitKind init, double scale, int rank, int64_t d0, int64_t d1,
                             const char *name_format, ...) {
    layout->list = (ParamTensor *)realloc(layout->list, (size_t)(layout->n + 1) * sizeof *layout->list);
    if (!layout->list) abort();
    ParamTensor *tensor = &layout->list[layout->n++];
    va_list arguments;
    va_start(arguments, name_format);
    vsnprintf(tensor->name, sizeof tensor->name, name_format, arguments);
    va_end(arguments);
    tensor->rank = rank;
    tensor->shape[0] = d0;
    tensor->shape[1] = rank > 1 ? d1 : 1;
    tensor->count = d0 * tensor->shape[1];
    tensor->offset = layout->size;
    tensor->init = init;
    tensor->scale = scale;
    layout->count += tensor->count;
    layout->size += (tensor->count + 15) / 16 * 16;
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

static inline bool all_finite(const real *values, int64_t n) {
    int bad = 0;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < n; first += 4096) {
        real sum = 0; // of x * 0: NaN where x is infinite or NaN
        for (int64_t i = first; i < (first + 4096 < n ? first + 4096 : n); i++) sum += values[i] * 0;
        if (!(sum == 0)) {
#pragma omp atomic write
            bad = 1;
        }
    }
    return !bad;
}

// The first tensor with a NaN or an infinity, or NULL.
static inline const ParamTensor *params_not_finite(const ParamLayout *layout, const real *params) {
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *tensor = &layout->list[k];
        if (!all_finite(params + tensor->offset, tensor->count)) return tensor;
    }
    return NULL;
}

// Reads every tensor of the layout from an open file into the flat array; each is looked up behind prefix ("" for the
// weights). exact: its elements must have this build's type, because rounding them would not continue the same run.
// False, and a sentence, where a tensor is missing, has another shape or type, or a number that is not finite.
static inline bool params_load(const ParamLayout *layout, const StFile *file, const char *prefix, bool exact,
                               const char *path, real *params, char *error) {
    memset(params, 0, (size_t)layout->size * sizeof *params);
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *want = &layout->list[k];
        char name[96], has[200], needs[200];
        snprintf(name, sizeof name, "%s%s", prefix, want->name);
        const StTensor *found = st_find(file, name);
        st_shape_text(needs, want->rank, want->shape);
        if (!found) return fail(error, "%s: tensor '%s' %s is missing", path, name, needs);
        bool same = found->rank == want->rank;
        for (int i = 0; same && i < want->rank; i++) same = found->shape[i] == want->shape[i];
        if (!same) {
            return fail(error, "%s: tensor '%s' has the shape %s instead of %s", path, name,
                        st_shape_text(has, found->rank, found->shape), needs);
        }
        if (exact && found->type != REAL_TYPE) {
            return fail(error, "%s: tensor '%s' is %s, and this build can only go on with %s", path, name,
                        st_type_name(found->type), st_type_name(REAL_TYPE));
        }
        real *out = params + want->offset;
        bool taken = sizeof *out == sizeof(double) ? st_to_double(found, (double *)(void *)out)
                                                   : st_to_float(found, (float *)(void *)out);
        if (!taken) {
            return fail(error, "%s: tensor '%s' is %s instead of floating point", path, name,
                        st_type_name(found->type));
        }
    }
    const ParamTensor *bad = params_not_finite(layout, params);
    if (!bad) return true;
    return fail(error, "%s: tensor '%s%s' has a number that is not finite", path, prefix, bad->name);
}

// ---- small helpers

// `count` zeroed elements of `size` bytes at a 64-byte boundary, for free(). NULL, and a sentence that says what they
// were for, where that is more than the machine's memory. count is a double so that no product of sizes overflows.
static inline void *allocate(const char *what, double count, size_t size, char *error) {
    double bytes = count * (double)size, memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    size_t unit = bytes < (4 << 20) ? 64 : 2 << 20;
    void *out = NULL;
    if (bytes > memory || posix_memalign(&out, unit, (size_t)bytes + 64)) {
        fail(error, "%s would take %.3g GB, and this machine has %.3g GB; take a smaller --batch, --window or model",
             what, bytes / 1e9, memory / 1e9);
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

static inline double peak_megabytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss / 1e6;
#else
    return (double)usage.ru_maxrss * 1024 / 1e6;
#endif
}

static inline const char *thousands(char text[32], int64_t n) { // "4,326,041"
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n), out = 0;
    for (int i = 0; i < length && out < 30; i++) {
        if (i && (length - i) % 3 == 0 && digits[i - 1] != '-') text[out++] = ',';
        text[out++] = digits[i];
    }
    text[out] = 0;
    return text;
}

static inline const char *duration_text(char text[32], double seconds) { // "0:07", "1:02:03"
    long long s = seconds < 0 ? 0 : seconds > 3.6e8 ? 360000000 : (long long)(seconds + 0.5);
    if (s >= 3600) {
        snprintf(text, 32, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    } else {
        snprintf(text, 32, "%lld:%02lld", s / 60, s % 60);
    }
    return text;
}

// ---- the run and its flags

typedef struct {
    const char *data, *out, *init, *dump, *precision;
    int64_t batch, window, epochs, patience, steps, eval_stride, bench, threads, sizes[MAX_SIZES];
    uint64_t seed;
    double epoch_size, lr, lr_decay, lr_min, dropout;
    bool resume, eval;
} Options;

typedef struct {                     // an epoch in log.csv
    int64_t epoch, step, steps;      // counted from 1; steps since step 0; steps of the epoch
    double train, test, lr, seconds; // mean losses; seconds < 0: unknown
} LogRow;

typedef struct {
    const ModelSpec *spec;
    const char *program;
    int argc;
    char **argv;
    Options o;
    Flags flags; // those marked fixed are part of the run's identity: saved, and the same on --resume
    char default_out[64], precision[16], error[ERROR_SIZE];
    int status; // exit status, if it is not to follow from success
    char *model_path, *last_path, *log_path, *svg_path, *saved_data;
    char *previous_path, *whole_path; // see run_begin, epoch_done

    ModelConfig config;
    ParamLayout layout;
    void *model;
    StFile weights; // open between finding the sizes and loading the tensors
    const char *weights_path;
    Dataset train, test;
    char train_identity[96], test_identity[96];
    int64_t epoch_steps, eval_windows;

    // The state of the run, beside the model's own.
    bool begun; // the files in --out are this run's
    int64_t step;
    double loss_sum; // of this epoch's steps so far
    LogRow *rows;    // one for each epoch done, and room for one more
    int n_rows;
    EvalLoss eval; // the evaluation in progress: its first eval_done windows
    int64_t eval_done;
    double best; // lowest test loss of the epochs done, infinite before the first; after how many epochs and steps
    int64_t best_epoch, best_step;
    double seconds_before, resumed_at, saved_at; // time spent on this epoch before resumed_at
} TrainRun;

static inline void flags_define(TrainRun *run) {
    Options *o = &run->o;
    const ModelSpec *spec = run->spec;
    Flags *f = &run->flags;
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    snprintf(run->default_out, sizeof run->default_out, "out/%s", spec->name);
    snprintf(run->precision, sizeof run->precision, "%.*s", (int)strcspn(spec->precisions, "|"), spec->precisions);
    flag_text(f, "data", "DIR", &o->data, "data", "folder with train.safetensors and test.safetensors");
    flag_text(f, "out", "DIR", &o->out, run->default_out, "where the model, the log and the curves go");
    flag_whole(f, "batch", &o->batch, 8, 1, 65536, "windows in a training step")->fixed = true;
    flag_whole(f, "window", &o->window, 256, 1, 65536, "tokens in a window")->fixed = true;
    flag_number(f, "epoch-size", &o->epoch_size, 0.02, "(0, 1]", "part of the windows in an epoch")->fixed = true;
    flag_whole(f, "epochs", &o->epochs, 50, 1, 1e9, "stop after so many epochs");
    flag_whole(f, "patience", &o->patience, 3, 1, 1e9, "stop after so many epochs without a better test loss");
    flag_whole(f, "steps", &o->steps, 0, 1, 1e15, "stop after N steps in all since step 0, evaluate and save");
    flag_number(f, "lr", &o->lr, spec->lr, "(0, inf)", "learning rate of Adamax")->fixed = true;
    flag_number(f, "lr-decay", &o->lr_decay, spec->lr_decay, "(0, 1]", "its factor after each epoch")->fixed = true;
    flag_number(f, "lr-min", &o->lr_min, spec->lr_min, "[0, inf)", "where its decay ends")->fixed = true;
    flag_number(f, "dropout", &o->dropout, 0.5, "[0, 1)", "part of the activations dropped in training")->fixed = true;
    flag_seed(f, &o->seed, "random seed: same seed, same model")->fixed = true;
    for (int i = 0; i < spec->n_sizes; i++) {
        const SizeFlag *size = &spec->size_flags[i];
        flag_whole(f, size->flag, &o->sizes[i], size->initial, size->min, size->max, size->help)->fixed = true;
    }
    flag_whole(f, "eval-stride", &o->eval_stride, 64, 1, 1e15, "evaluate every Nth test window; 1: all")->fixed = true;
    flag_text(f, "init", "FILE", &o->init, NULL, "start from the weights in FILE");
    flag_switch(f, "resume", &o->resume, "go on from last.safetensors in the --out folder");
    flag_switch(f, "eval", &o->eval, "only evaluate --init, or the model in --out, on the test set");
    flag_text(f, "dump", "FILE", &o->dump, NULL, "run one training step, write all its tensors to FILE, exit");
    flag_whole(f, "bench", &o->bench, 0, 1, 1e6, "time N training steps on random tokens, exit");
    Flag *precision = flag_text(f, "precision", "P", &o->precision, run->precision, "number format");
    precision->choices = spec->precisions;
    precision->fixed = true;
    flag_whole(f, "threads", &o->threads, threads, 1, 1024, "CPU threads; they change no result");
}

static inline bool flags_agree(const Options *o, char *error) {
    int modes = o->resume + o->eval + (o->bench > 0);
    if (modes > 1) return fail(error, "--resume, --eval and --bench exclude each other; give one of them");
    if (o->dump && (o->eval || o->bench)) return fail(error, "--dump excludes --eval and --bench; give one of them");
    if (!o->resume || !o->init) return true;
    return fail(error, "--init and --resume exclude each other: a resumed run has its weights");
}

static inline void help_print(const TrainRun *run) {
    const char *p = run->program, *name = run->spec->name;
    printf("%s trains a model (%s) that writes piano music.\n\n"
           "    ./%-46s train on the music in ./data; if there is none\n"
           "    %-48s yet, on a starter corpus that it composes\n"
           "    data_prep/prepare_music --out data MY_FOLDER     make ./data of your own MIDI files\n"
           "    ./sample_music out/%s/model.safetensors%*s write a song with the best model so far\n\n"
           "Each epoch ends in a line with two losses, in nats per token: lower is better. The test loss is\n"
           "measured on music that the model is not trained on; the model with the lowest is kept as\n"
           "model.safetensors. Ctrl-C saves and says how to go on.\n\nFlags, with [their defaults]:\n",
           p, name, p, "", name, 11 - (int)strlen(name), "");
    flags_print(&run->flags);
    printf("\nIn the --out folder: model.safetensors, the best model; last.safetensors, the state that --resume\n"
           "goes on from, with all other flags as they were (only --epochs, --patience, --steps and --threads\n"
           "may change); log.csv, a row per epoch: epoch, step (since step 0), train_loss, test_loss, lr, steps\n"
           "(in the epoch), seconds; loss.svg, the curves. A new run keeps an earlier best model as\n"
           "model.prev.safetensors. Where --steps ends a run within an epoch with a better model, the best of\n"
           "the epochs before it is model.whole.safetensors.\n\n"
           "--eval ends with a line `eval loss=... windows=... tokens=... stride=...`, --bench with a line\n"
           "`bench model=%s device=... precision=... batch=... ms_per_step=... tokens_per_s=...\n"
           "gflop_per_s=...`, the median.\n"
           "Exit status: 0 done; 1 it failed, or it was stopped and saved before its end; 2 wrong usage.\n",
           name);
}

// ---- the state of a run

static inline StepPlan plan_of(const TrainRun *run, int64_t step) {
    StepPlan plan;
    plan.step = step;
    plan.epoch = step / run->epoch_steps;
    plan.index = step % run->epoch_steps;
    // By products, because pow differs in the last bit between libraries. The floor never raises a smaller --lr.
    double least = run->o.lr_min < run->o.lr ? run->o.lr_min : run->o.lr;
    plan.lr = run->o.lr;
    for (int64_t e = 0; e < plan.epoch && plan.lr > least && run->o.lr_decay < 1; e++) plan.lr *= run->o.lr_decay;
    if (plan.lr < least) plan.lr = least;
    return plan;
}

// Keys and values for a file's metadata; the strings are the list's.
typedef struct {
    StMeta list[64];
    int n;
} MetaList;

// --eval-stride is saved as eval_stride.
static inline char *meta_key(const char *flag) {
    char *key = path_join("", flag);
    for (char *c = key; *c; c++) {
        if (*c == '-') *c = '_';
    }
    return key;
}

PRINTF_LIKE(3, 4) static inline void meta_add(MetaList *meta, const char *key, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *value = (char *)malloc((size_t)n + 1);
    if (!value) abort();
    va_start(arguments, format);
    vsnprintf(value, (size_t)n + 1, format, arguments);
    va_end(arguments);
    meta->list[meta->n].key = meta_key(key);
    meta->list[meta->n++].value = value;
}

static inline void meta_free(MetaList *meta) {
    for (int i = 0; i < meta->n; i++) {
        free((void *)meta->list[i].key);
        free((void *)meta->list[i].value);
    }
}

static inline StTensor tensor_of(const char *name, StType type, int rank, const int64_t *shape, const void *data) {
    StTensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.name = name;
    tensor.type = type;
    tensor.rank = rank;
    tensor.count = 1;
    for (int i = 0; i < rank; i++) {
        tensor.shape[i] = shape[i];
        tensor.count *= shape[i];
    }
    tensor.data = data;
    return tensor;
}

typedef char TensorName[96];

// The tensors of a flat array, as list[layout.n], their names with a prefix in names[layout.n].
static inline void tensors_add(const TrainRun *run, const char *prefix, const real *flat, StTensor *list,
                               TensorName *names) {
    for (int k = 0; k < run->layout.n; k++) {
        const ParamTensor *tensor = &run->layout.list[k];
        snprintf(names[k], sizeof names[k], "%s%s", prefix, tensor->name);
        list[k] = tensor_of(names[k], REAL_TYPE, tensor->rank, tensor->shape, flat + tensor->offset);
    }
}

// Writes the weights, and the Adamax averages too where state is set.
static inline bool tensors_write(TrainRun *run, const char *path, bool state, const MetaList *meta) {
    static const char *const prefixes[] = {"", "adamax.exp_avg.", "adamax.exp_inf."};
    int n = run->layout.n * (state ? 3 : 1);
    StTensor *list = (StTensor *)malloc((size_t)n * sizeof *list);
    TensorName *names = (TensorName *)malloc((size_t)n * sizeof *names);
    if (!list || !names) abort();
    for (int k = 0; k * run->layout.n < n; k++) {
        const real *flat = run->spec->state(run->model, STATE_PARAMS + k);
        tensors_add(run, prefixes[k], flat, list + k * run->layout.n, names + k * run->layout.n);
    }
    bool ok = st_write(path, list, n, meta->list, meta->n, run->error);
    free(list);
    free(names);
    return ok;
}

static inline void meta_common(const TrainRun *run, MetaList *meta) {
    meta_add(meta, "model", "%s", run->spec->name);
    meta_add(meta, "vocabulary", "%d", DATA_TOKENS);
    meta_add(meta, "version", "%s", MUSIC_VERSION);
    meta_add(meta, "step", "%lld", (long long)run->step);
}

static inline bool model_save(TrainRun *run, int64_t epoch, double train_loss, double test_loss) {
    MetaList meta;
    meta.n = 0;
    meta_common(run, &meta);
    for (int i = 0; i < run->spec->n_sizes; i++) {
        meta_add(&meta, run->spec->size_flags[i].flag, "%d", run->config.sizes[i]);
    }
    meta_add(&meta, "window", "%d", run->config.T);
    meta_add(&meta, "precision", "%s", run->config.precision);
    meta_add(&meta, "seed", "%llu", (unsigned long long)run->o.seed);
    meta_add(&meta, "epoch", "%lld", (long long)epoch);
    meta_add(&meta, "train_loss", "%.17g", train_loss);
    meta_add(&meta, "test_loss", "%.17g", test_loss);
    bool ok = tensors_write(run, run->model_path, false, &meta);
    meta_free(&meta);
    return ok;
}

// Writes last.safetensors, everything that a bit-exact continuation needs. The time spent so far on an unfinished epoch
// is kept where the run is only interrupted, not where it ends: two runs that end alike have the same bytes. A state
// that is not finite is no use to anybody: then the file stays as it is.
static inline bool last_save(TrainRun *run, bool interrupted) {
    for (int k = STATE_PARAMS; k <= STATE_EXP_INF; k++) {
        const ParamTensor *bad = params_not_finite(&run->layout, run->spec->state(run->model, k));
        if (!bad) continue;
        return fail(run->error, "%s: not saved: after step %lld tensor '%s' is not finite; try a smaller --lr",
                    run->last_path, (long long)run->step - 1, bad->name);
    }
    MetaList meta;
    StBuffer log = {NULL, 0, 0, false};
    meta.n = 0;
    meta_common(run, &meta);
    for (int i = 0; i < run->flags.n; i++) {
        const Flag *flag = &run->flags.list[i];
        char text[64];
        if (!flag->fixed) continue;
        if (flag->kind == FLAG_NUMBER) {
            meta_add(&meta, flag->name, "%.17g", *(double *)flag->value);
        } else {
            meta_add(&meta, flag->name, "%s", flag_show(flag, text));
        }
    }
    char *data = (char *)malloc(3 * strlen(run->o.data) + 1);
    if (!data) abort();
    name_escape(run->o.data, data);
    meta_add(&meta, "data", "%s", data);
    free(data);
    meta_add(&meta, "train_data", "%s", run->train_identity);
    meta_add(&meta, "test_data", "%s", run->test_identity);
    meta_add(&meta, "epoch", "%d", run->n_rows);
    meta_add(&meta, "loss_sum", "%.17g", run->loss_sum);
    for (int i = 0; i < run->n_rows; i++) {
        const LogRow *row = &run->rows[i];
        st_print(&log, "%lld,%lld,%.17g,%.17g,%.17g,%lld\n", (long long)row->epoch, (long long)row->step, row->train,
                 row->test, row->lr, (long long)row->steps);
    }
    meta_add(&meta, "log", "%.*s", (int)log.size, log.size ? log.bytes : "");
    free(log.bytes);
    if (run->n_rows) {
        meta_add(&meta, "train_loss", "%.17g", run->rows[run->n_rows - 1].train);
        meta_add(&meta, "test_loss", "%.17g", run->rows[run->n_rows - 1].test);
    }
    if (run->best_step) {
        meta_add(&meta, "best_loss", "%.17g", run->best);
        meta_add(&meta, "best_epoch", "%lld", (long long)run->best_epoch);
        meta_add(&meta, "best_step", "%lld", (long long)run->best_step);
    }
    if (run->eval_done) meta_add(&meta, "eval_done", "%lld", (long long)run->eval_done);
    for (int i = 0; i < 4 && run->eval_done; i++) {
        char key[32];
        snprintf(key, sizeof key, "eval_%s", train_kinds[i]);
        meta_add(&meta, key, "%lld,%.17g", (long long)run->eval.count[i], run->eval.sum[i]);
    }
    double now = seconds_now();
    if (interrupted) meta_add(&meta, "seconds", "%.3f", run->seconds_before + now - run->resumed_at);
    run->saved_at = now;
    bool ok = tensors_write(run, run->last_path, true, &meta);
    meta_free(&meta);
    return ok;
}

// A number out of the metadata, from 0 to max. Missing: false and a sentence.
static inline bool meta_read(TrainRun *run, const char *key, double max, int64_t *whole, double *number) {
    const char *text = st_meta(&run->weights, key);
    char *end = NULL;
    if (!text) return fail(run->error, "%s: it is no resume state: its metadata lack '%s'", run->weights_path, key);
    double value = strtod(text, &end);
    if (whole) *whole = strtoll(text, &end, 10);
    if (number) *number = value;
    if (isfinite(value) && value >= 0 && value <= max && end != text && !*end) return true;
    return fail(run->error, "%s: its metadata are damaged: '%s' is '%.40s'", run->weights_path, key, text);
}

static inline void precision_keep(TrainRun *run, const char *text) { // the file's strings do not live as long
    snprintf(run->precision, sizeof run->precision, "%s", text);
    run->o.precision = run->precision;
}

// Before the data are opened: takes over the saved flags; one that was given must agree.
static inline bool resume_flags(TrainRun *run) {
    const char *path = run->weights_path, *model = st_meta(&run->weights, "model");
    if (!model || !st_meta(&run->weights, "loss_sum")) {
        return fail(run->error, "%s: it is no resume state; give a model to --init instead", path);
    }
    if (strcmp(model, run->spec->name)) {
        return fail(run->error, "%s: it is the state of a model '%.40s', and this trains '%s'", path, model,
                    run->spec->name);
    }
    for (int i = 0; i < run->flags.n; i++) {
        Flag *flag = &run->flags.list[i];
        if (!flag->fixed) continue;
        char given[64], saved[64], *key = meta_key(flag->name);
        const char *text = st_meta(&run->weights, key);
        free(key);
        if (!text) return fail(run->error, "%s: it is no resume state: its metadata lack --%s", path, flag->name);
        flag_show(flag, given);
        if (!flag_set(flag, text, run->error)) {
            return fail(run->error, "%s: its metadata are damaged, or of another build: --%s is '%.40s', and %s", path,
                        flag->name, text, run->error);
        }
        if (flag->kind == FLAG_TEXT) precision_keep(run, text);
        if (flag->given && strcmp(given, flag_show(flag, saved))) {
            run->status = 2;
            return fail(run->error,
                        "--%s %s: the run in %s has %s; leave the flag out to go on, or start anew in another --out",
                        flag->name, given, run->o.out, saved);
        }
    }
    const char *data = st_meta(&run->weights, "data");
    if (!flag_find(&run->flags, "data")->given && data) {
        run->saved_data = (char *)malloc(strlen(data) + 1);
        if (!run->saved_data) abort();
        name_unescape(data, run->saved_data);
        run->o.data = run->saved_data;
    }
    return true;
}

static inline bool resume_data(TrainRun *run, const char *key, const char *file, const char *identity) {
    const char *saved = st_meta(&run->weights, key);
    if (saved && !strcmp(saved, identity)) return true;
    return fail(run->error,
                "%s/%s: it is not what the run in %s was trained on (%s; saved: %.90s); give its folder to --data",
                run->o.data, file, run->o.out, identity, saved ? saved : "nothing");
}

static inline void rows_add(TrainRun *run, LogRow row) {
    // There is always room for one more, the row of an epoch that --steps ends early.
    run->rows = (LogRow *)realloc(run->rows, ((size_t)run->n_rows + 2) * sizeof *run->rows);
    if (!run->rows) abort();
    run->rows[run->n_rows++] = row;
}

// After the model is made: counters, log and sums.
static inline bool resume_state(TrainRun *run) {
    const char *path = run->weights_path, *log = st_meta(&run->weights, "log");
    int64_t epochs = 0;
    if (!resume_data(run, "train_data", "train.safetensors", run->train_identity)) return false;
    if (!resume_data(run, "test_data", "test.safetensors", run->test_identity)) return false;
    if (!meta_read(run, "step", 1e15, &run->step, NULL) || !meta_read(run, "epoch", 1e9, &epochs, NULL)) return false;
    if (!meta_read(run, "loss_sum", HUGE_VAL, NULL, &run->loss_sum)) return false;
    for (const char *at = log; at && *at;) {
        LogRow row;
        long long epoch, step, steps;
        int used = 0;
        int fields =
            sscanf(at, "%lld,%lld,%lf,%lf,%lf,%lld%n", &epoch, &step, &row.train, &row.test, &row.lr, &steps, &used);
        if (fields != 6 || at[used] != '\n' || !isfinite(row.train + row.test + row.lr) || epoch != run->n_rows + 1 ||
            step != epoch * run->epoch_steps || steps != run->epoch_steps) {
            return fail(run->error, "%s: its metadata are damaged: row %d of 'log'", path, run->n_rows + 1);
        }
        row.epoch = epoch;
        row.step = step;
        row.steps = steps;
        row.seconds = -1;
        rows_add(run, row);
        at += used + 1;
    }
    if (epochs != run->n_rows || run->step < epochs * run->epoch_steps || run->step > (epochs + 1) * run->epoch_steps) {
        return fail(run->error, "%s: its metadata are damaged: step %lld, epoch %lld and a log of %d rows do not agree",
                    path, (long long)run->step, (long long)epochs, run->n_rows);
    }
    if (st_meta(&run->weights, "best_step")) {
        if (!meta_read(run, "best_loss", HUGE_VAL, NULL, &run->best)) return false;
        if (!meta_read(run, "best_epoch", 1e9, &run->best_epoch, NULL)) return false;
        if (!meta_read(run, "best_step", 1e15, &run->best_step, NULL)) return false;
    }
    if (st_meta(&run->weights, "eval_done")) {
        if (!meta_read(run, "eval_done", (double)run->eval_windows, &run->eval_done, NULL)) return false;
        for (int i = 0; i < 4; i++) {
            char key[32];
            snprintf(key, sizeof key, "eval_%s", train_kinds[i]);
            const char *text = st_meta(&run->weights, key);
            long long count;
            if (!text || sscanf(text, "%lld,%lf", &count, &run->eval.sum[i]) != 2) {
                return fail(run->error, "%s: its metadata are damaged: '%s'", path, key);
            }
            run->eval.count[i] = count;
        }
    }
    if (st_meta(&run->weights, "seconds") && !meta_read(run, "seconds", 1e12, NULL, &run->seconds_before)) return false;
    return true;
}

// ---- log.csv and loss.svg

static inline int row_text(char text[192], const LogRow *row) { // all but the seconds
    return snprintf(text, 192, "%lld,%lld,%.9g,%.9g,%.9g,%lld,", (long long)row->epoch, (long long)row->step,
                    row->train, row->test, row->lr, (long long)row->steps);
}

// Takes the seconds, which are in no other file, out of an existing log.csv, from rows that are otherwise the same.
static inline void log_recall_seconds(TrainRun *run) {
    char *bytes = NULL, ignored[ERROR_SIZE];
    size_t size;
    if (!read_file(run->log_path, (void **)&bytes, &size, ignored)) return;
    for (int i = 0; i < run->n_rows; i++) {
        char text[193] = "\n";
        row_text(text + 1, &run->rows[i]);
        const char *found = strstr(bytes, text);
        char *end;
        if (!found) continue;
        double seconds = strtod(found + strlen(text), &end);
        if (end > found + strlen(text) && *end == '\n' && seconds >= 0) run->rows[i].seconds = seconds;
    }
    free(bytes);
}

static inline bool curve_write(TrainRun *run, int n) {
    LossPoint *points = (LossPoint *)malloc((size_t)n * sizeof *points);
    if (!points) abort();
    for (int i = 0; i < n; i++) {
        points[i].epoch = (double)run->rows[i].step / (double)run->epoch_steps;
        points[i].train = run->rows[i].train;
        points[i].test = run->rows[i].test;
    }
    const LossCurve curve = {run->spec->name, points, n, 0, 0};
    char title[128], epochs[64], count[32];
    snprintf(title, sizeof title, "%s, %s parameters: loss by epoch", run->spec->name,
             thousands(count, run->layout.count));
    snprintf(epochs, sizeof epochs, "epoch (%s steps each)", thousands(count, run->epoch_steps));
    StBuffer out = {NULL, 0, 0, false};
    curves_draw(&out, title, epochs, &curve, 1);
    bool ok = !out.failed && write_file_atomically(run->svg_path, out.bytes, out.size, run->error);
    free(out.bytes);
    free(points);
    return ok;
}

// Writes log.csv and loss.svg of the first n rows; without rows, a header and no curve.
static inline bool reports_write(TrainRun *run, int n) {
    StBuffer out = {NULL, 0, 0, false};
    st_print(&out, "epoch,step,train_loss,test_loss,lr,steps,seconds\n");
    for (int i = 0; i < n; i++) {
        char text[192];
        row_text(text, &run->rows[i]);
        st_print(&out, "%s", text);
        if (run->rows[i].seconds >= 0) st_print(&out, "%.1f", run->rows[i].seconds);
        st_print(&out, "\n");
    }
    bool ok = !out.failed && write_file_atomically(run->log_path, out.bytes, out.size, run->error);
    free(out.bytes);
    if (ok && n) return curve_write(run, n);
    if (ok) unlink(run->svg_path);
    return ok;
}

// ---- progress on stderr

#ifndef PROGRESS_SECONDS
#define PROGRESS_SECONDS 10 // between lines where stderr is no terminal
#endif

typedef struct {
    bool terminal;
    double interval, started, shown; // seconds
    int64_t first, last, shown_at;   // steps
    double shown_sum, loss;          // of the losses; smoothed
} Progress;

static inline Progress progress_start(int64_t first, int64_t last, double loss_sum) {
    Progress p;
    p.terminal = isatty(2);
    p.interval = p.terminal ? 0.2 : PROGRESS_SECONDS;
    p.started = p.shown = seconds_now();
    p.first = p.shown_at = first;
    p.last = last;
    p.shown_sum = loss_sum;
    p.loss = -1;
    return p;
}

static inline bool progress_due(const Progress *p, double now) { return now - p->shown >= p->interval; }

// One line over itself on a terminal, one line each time otherwise. `from` is where the bar begins.
static inline void progress_line(const Progress *p, const char *what, int64_t from, int64_t at, const char *rest) {
    double part = p->last > from ? (double)(at - from) / (double)(p->last - from) : 1;
    if (p->terminal) {
        char bar[25];
        for (int i = 0; i < 24; i++) bar[i] = i < (int)(part * 24) ? '#' : '.';
        bar[24] = 0;
        fprintf(stderr, "\r%s %s %3.0f%%  %s\033[K", what, bar, 100 * part, rest);
    } else {
        fprintf(stderr, "%s  %lld of %lld  %s\n", what, (long long)(at - from), (long long)(p->last - from), rest);
    }
    fflush(stderr);
}

static inline void progress_clear(const Progress *p) {
    if (p->terminal) fprintf(stderr, "\r\033[K");
}

static inline void progress_train(Progress *p, const TrainRun *run, double now) {
    int64_t epoch_start = (int64_t)run->n_rows * run->epoch_steps, done = run->step - p->first;
    double recent = (run->loss_sum - p->shown_sum) / (double)(run->step - p->shown_at);
    double weight = fmin(1, (double)(run->step - p->shown_at) / 20);
    p->loss = p->loss < 0 ? recent : p->loss + weight * (recent - p->loss);
    double each = (now - p->started) / (double)done;
    char what[48], rest[160], rate[32], left[32];
    snprintf(what, sizeof what, "epoch %d", run->n_rows + 1);
    snprintf(rest, sizeof rest, "loss %.4f  %.*f ms/step  %s tokens/s  %s left", p->loss, each < 0.1 ? 2 : 0,
             1e3 * each, thousands(rate, (int64_t)((double)run->config.B * run->config.T / each)),
             duration_text(left, each * (double)(p->last - run->step)));
    progress_line(p, what, epoch_start, run->step, rest);
    p->shown = now;
    p->shown_at = run->step;
    p->shown_sum = run->loss_sum;
}

static inline void progress_eval(Progress *p, const TrainRun *run, double now) {
    char left[32], rest[64];
    double each = (now - p->started) / (double)(run->eval_done - p->first);
    snprintf(rest, sizeof rest, "%s left", duration_text(left, each * (double)(p->last - run->eval_done)));
    progress_line(p, "evaluation", 0, run->eval_done, rest);
    p->shown = now;
}

// ---- training

#ifndef SAVE_SECONDS
#define SAVE_SECONDS 300 // between saves within an epoch: what a killed run loses at most
#endif

static volatile sig_atomic_t train_signal; // the first SIGINT or SIGTERM

static inline void train_on_signal(int number) {
    if (train_signal) { // the second: now
        signal(number, SIG_DFL);
        raise(number);
    }
    train_signal = number;
}

static inline void train_catch_signals(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = train_on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

typedef enum { GO_ON, STOPPED, FAILED } Outcome;

// A second name, whatever had it before; true too where there is no such file.
static inline bool second_name(const char *path, const char *name, char *error) {
    unlink(name);
    if (access(path, F_OK) || !link(path, name) || !rename(path, name)) return true; // rename: there may be no links
    return fail(error, "%s: cannot be kept as %s: %s", path, name, strerror(errno));
}

static inline void previous_keep(const TrainRun *run) {
    char *path = path_join(run->o.out, "model.prev.safetensors");
    if (!access(run->previous_path, F_OK) && !rename(run->previous_path, path)) {
        fprintf(stderr, "%s: %s holds an earlier run; its best model is kept as %s\n", run->program, run->o.out, path);
        unlink(run->previous_path); // where both were one file already, rename has left it
    }
    free(path);
}

// Saves the state of a new run for the first time: from here on it can be resumed, and the folder is its own. The best
// model of an earlier run gets a second name, first a temporary one, and the final one when the state is saved. Killed
// before that, the folder holds the earlier run; killed after it, the resumed run does the rest.
static inline bool run_begin(TrainRun *run) {
    if (run->begun) return true;
    if (!second_name(run->model_path, run->previous_path, run->error)) return false;
    if (!last_save(run, true)) {
        if (!rename(run->previous_path, run->model_path)) unlink(run->previous_path); // where both are one file
        return false;
    }
    run->begun = true;
    previous_keep(run);
    return reports_write(run, 0);
}

// After a step or an evaluation batch: save if it is time, or if a signal asks for the end.
static inline Outcome save_if_due(TrainRun *run, double now) {
    if (!train_signal && now - run->saved_at < SAVE_SECONDS) return GO_ON;
    if (!(run->begun ? last_save(run, true) : run_begin(run))) return FAILED;
    return train_signal ? STOPPED : GO_ON;
}

// Runs a bad step again and writes which tensor is the first one that is not finite, as a clause: parameters, then
// activations in the order of the forward, then gradients in that of the backward. False: nothing was found.
static inline bool diagnose(const ModelSpec *spec, void *model, const ParamLayout *layout, const StepPlan *plan,
                            char *error) {
    const char *clause = "%s%s is the first tensor that is not finite";
    const ParamTensor *bad = params_not_finite(layout, spec->state(model, STATE_PARAMS));
    if (bad) return !fail(error, clause, "param.", bad->name);
    int count = spec->activations(model, NULL);
    Activation *list = count > 0 ? (Activation *)calloc((size_t)count, sizeof *list) : NULL;
    if (!list) return false;
    double loss = spec->gradients(model, plan);
    spec->activations(model, list);
    bool found = false;
    for (int i = 0; i < count && !found; i++) {
        int64_t n = 1;
        for (int d = 0; d < list[i].rank; d++) n *= list[i].shape[d];
        if (!all_finite(list[i].data, n)) found = !fail(error, clause, list[i].name, "");
    }
    free(list);
    if (!found && !isfinite(loss)) found = !fail(error, clause, "loss", "");
    const real *grads = spec->state(model, STATE_GRADS);
    for (int k = layout->n - 1; k >= 0 && !found; k--) {
        const ParamTensor *tensor = &layout->list[k];
        if (!all_finite(grads + tensor->offset, tensor->count)) found = !fail(error, clause, "grad.", tensor->name);
    }
    return found;
}

// run->step is the first step that went wrong; the model has skipped every update since. Saves the state before it,
// unless the run is so young that there is nothing to save.
static inline Outcome training_broke(TrainRun *run) {
    char why[ERROR_SIZE] = "";
    StepPlan plan = plan_of(run, run->step);
    if (run->begun && !last_save(run, true)) return FAILED;
    if (!diagnose(run->spec, run->model, &run->layout, &plan, why))
        snprintf(why, sizeof why, "no tensor of it could be named");
    fail(run->error, "step %lld: the loss or a gradient is no longer finite (%.300s); %s%.400s%s%s",
         (long long)run->step, why, run->begun ? "" : "nothing was saved, and ",
         run->begun ? run->last_path : run->o.out, run->begun ? " holds the state before it" : " is as it was",
         run->step ? "; try a smaller --lr" : "");
    return FAILED;
}

// Steps until `end`.
static inline Outcome train_until(TrainRun *run, int64_t end) {
    const ModelSpec *spec = run->spec;
    Progress progress = progress_start(run->step, end, run->loss_sum);
    if (run->step < end) {
        run->eval_done = 0; // an interrupted evaluation of weights that now change
        memset(&run->eval, 0, sizeof run->eval);
    }
    while (run->step < end) {
        StepPlan plan = plan_of(run, run->step);
        spec->train_step(run->model, &plan);
        run->step++;
        // Looking at the loss waits for the device, so it is done now and then only.
        double now = seconds_now();
        bool show = progress_due(&progress, now);
        if (run->begun && !show && !train_signal && run->step < end) continue;
        TrainLoss loss = spec->get_loss(run->model);
        run->loss_sum = loss.sum;
        if (loss.bad_step >= 0) {
            progress_clear(&progress);
            run->step = loss.bad_step;
            return training_broke(run);
        }
        now = seconds_now();
        if (show) progress_train(&progress, run, now);
        // A learning rate far too large shows in the second step, the first with other weights.
        Outcome outcome = run->step < 2 || run_begin(run) ? save_if_due(run, now) : FAILED;
        if (outcome != GO_ON) {
            progress_clear(&progress);
            return outcome;
        }
    }
    progress_clear(&progress);
    return GO_ON;
}

// Every stride-th test window, from where an interrupted evaluation was.
static inline Outcome evaluate(TrainRun *run, bool save) {
    Progress progress = progress_start(run->eval_done, run->eval_windows, 0);
    int64_t *starts = (int64_t *)malloc((size_t)run->config.B * sizeof *starts);
    Outcome outcome = GO_ON;
    if (!starts) abort();
    while (run->eval_done < run->eval_windows && outcome == GO_ON) {
        int n = 0;
        for (; n < run->config.B && run->eval_done + n < run->eval_windows; n++) {
            starts[n] = dataset_window(&run->test, (run->eval_done + n) * run->o.eval_stride);
        }
        run->spec->eval_batch(run->model, &run->test, starts, n, &run->eval);
        run->eval_done += n;
        double now = seconds_now();
        if (progress_due(&progress, now)) progress_eval(&progress, run, now);
        if (save) outcome = save_if_due(run, now);
    }
    progress_clear(&progress);
    free(starts);
    return outcome;
}

static inline double eval_mean(const EvalLoss *eval, int64_t *tokens) {
    double sum = 0;
    *tokens = 0;
    for (int i = 0; i < 4; i++) {
        sum += eval->sum[i];
        *tokens += eval->count[i];
    }
    return sum / (double)*tokens;
}

static inline void best_set(TrainRun *run, const LogRow *row) {
    run->best = row->test;
    run->best_epoch = row->epoch;
    run->best_step = row->step;
}

// An evaluation is complete: keeps the model if it is the best, then writes last, log.csv and loss.svg, in this order:
// killed in between, the run repeats the step that led here and writes the same bytes again. `whole` says that the
// epoch is over. Where --steps ended it early, its row is shown and written to log.csv, and its model is kept if it is
// the best, but neither is part of the state: resuming goes on as if it had never stopped. For that the best model of
// whole epochs keeps a second name, under which the next evaluation finds it.
static inline bool epoch_done(TrainRun *run, bool whole) {
    int64_t tokens, epoch = run->n_rows, start = epoch * run->epoch_steps;
    LogRow row;
    row.epoch = epoch + 1;
    row.step = run->step;
    row.steps = run->step - start;
    row.train = run->loss_sum / (double)row.steps;
    row.test = eval_mean(&run->eval, &tokens);
    row.lr = plan_of(run, run->step - 1).lr;
    if (!isfinite(row.test)) {
        if (run->begun && !last_save(run, true)) return false;
        return fail(run->error, "step %lld: the test loss is no longer finite; try a smaller --lr",
                    (long long)run->step);
    }
    if (!run_begin(run)) return false;
    if (!run->best_step) {
        unlink(run->whole_path); // of an earlier run
    } else if (!access(run->whole_path, F_OK) && rename(run->whole_path, run->model_path)) {
        return fail(run->error, "%s: cannot be made %s: %s", run->whole_path, run->model_path, strerror(errno));
    }
    bool better = !run->best_step || row.test < run->best;
    if (better && !whole && run->best_step && !second_name(run->model_path, run->whole_path, run->error)) return false;
    if (better && !model_save(run, row.epoch, row.train, row.test)) return false;
    if (better && whole) best_set(run, &row);
    double now = seconds_now();
    row.seconds = run->seconds_before + now - run->resumed_at;
    run->seconds_before = 0;
    run->resumed_at = now;
    run->eval_done = 0;
    memset(&run->eval, 0, sizeof run->eval);
    rows_add(run, row);
    if (whole) {
        run->loss_sum = 0;
        run->spec->set_loss(run->model, 0);
    } else {
        run->n_rows--;
    }
    if (!last_save(run, false) || !reports_write(run, (int)epoch + 1)) return false;
    if (better) best_set(run, &row); // of a part of an epoch: for the last line only, nothing is saved any more
    printf("epoch %lld  train %.4f  test %.4f  lr %g  steps %lld  %.1f s\n", (long long)row.epoch, row.train, row.test,
           row.lr, (long long)row.steps, row.seconds);
    fflush(stdout);
    return true;
}

static inline Outcome train(TrainRun *run) {
    const Options *o = &run->o;
    int64_t from = run->step;
    for (;;) {
        int64_t start = (int64_t)run->n_rows * run->epoch_steps, end = start + run->epoch_steps;
        if (o->steps && o->steps < end) end = o->steps;
        bool patient = !run->best_step || run->n_rows - run->best_epoch < o->patience;
        if (run->n_rows >= o->epochs || !patient || end <= start || run->step > end) break;
        Outcome outcome = train_until(run, end);
        if (outcome == GO_ON) outcome = evaluate(run, true);
        if (outcome != GO_ON) return outcome;
        bool whole = end == start + run->epoch_steps;
        if (!epoch_done(run, whole)) return FAILED;
        if (!whole) break;
    }
    if (run->o.resume && run->step == from) {
        printf("nothing was left to do; to go on further, raise --epochs, --patience or --steps\n");
    }
    if (run->best_step) {
        printf("best test loss %.4f, epoch %lld: %s\n", run->best, (long long)run->best_epoch, run->model_path);
    }
    return GO_ON;
}

// The command that goes on with this run: this one with --resume and without --init, quoted for a shell.
static inline void resume_hint(const TrainRun *run, FILE *out) {
    for (int i = 0; i < run->argc; i++) {
        const char *argument = run->argv[i];
        if (!strcmp(argument, "--resume") || !strncmp(argument, "--init=", 7)) continue;
        if (!strcmp(argument, "--init")) {
            i++;
            continue;
        }
        if (i) fputc(' ', out);
        bool plain =
            *argument && argument[strspn(argument, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                                   "-_=./,:+@%")] == 0;
        if (!plain) fputc('\'', out);
        for (const char *c = argument; *c; c++) {
            if (*c == '\'') fputs("'\\'", out);
            fputc(*c, out);
        }
        if (!plain) fputc('\'', out);
    }
    fprintf(out, " --resume\n");
}

// ---- the other modes

static inline bool run_eval(TrainRun *run) {
    int64_t tokens;
    evaluate(run, false);
    double mean = eval_mean(&run->eval, &tokens);
    if (!isfinite(mean)) return fail(run->error, "%s: its loss on the test set is not finite", run->weights_path);
    for (int i = 0; i < 4; i++) {
        if (!run->eval.count[i]) continue;
        printf("%-9s loss %.4f over %lld tokens\n", train_kinds[i], run->eval.sum[i] / (double)run->eval.count[i],
               (long long)run->eval.count[i]);
    }
    printf("eval loss=%#.7g windows=%lld tokens=%lld stride=%lld\n", mean, (long long)run->eval_windows,
           (long long)tokens, (long long)run->o.eval_stride);
    return true;
}

// One training step, the next of this run, with all its tensors: what two implementations are compared by.
static inline bool run_dump(TrainRun *run) {
    const ModelSpec *spec = run->spec;
    int64_t B = run->config.B, T = run->config.T;
    int n_activations = spec->activations(run->model, NULL);
    if (n_activations < 0) return fail(run->error, "--dump: there is not enough memory to keep the activations");
    // What the step begins with: the weights and, after step 0, Adamax's averages, which are zero before.
    static const char *const begins[] = {"param.", "adamax.exp_avg.", "adamax.exp_inf."};
    const int states = run->step > 0 ? 3 : 1, n_params = run->layout.n;
    const size_t size = (size_t)run->layout.size;
    int n = (states + 2) * n_params, total = n + n_activations + 3;
    StTensor *list = (StTensor *)calloc((size_t)total, sizeof *list);
    TensorName *names = (TensorName *)malloc((size_t)n * sizeof *names);
    Activation *activations = (Activation *)calloc((size_t)n_activations + 1, sizeof *activations);
    real *before = (real *)malloc((size_t)states * size * sizeof *before);
    int64_t *starts = (int64_t *)malloc((size_t)B * sizeof *starts);
    int64_t *input = (int64_t *)malloc((size_t)(2 * B * T) * sizeof *input);
    if (!list || !names || !activations || !before || !starts || !input) abort();
    for (int k = 0; k < states; k++) {
        memcpy(before + (size_t)k * size, spec->state(run->model, STATE_PARAMS + k), size * sizeof *before);
        tensors_add(run, begins[k], before + (size_t)k * size, list + k * n_params, names + k * n_params);
    }
    StepPlan plan = plan_of(run, run->step);
    spec->set_loss(run->model, 0);
    spec->train_step(run->model, &plan);
    TrainLoss result = spec->get_loss(run->model);
    real loss = (real)result.sum;
    epoch_batch(&run->train, run->o.seed, plan.epoch, plan.index, run->config.B, starts);
    for (int64_t i = 0; i < B * T; i++) {
        input[i] = run->train.tokens[starts[i / T] + i % T];
        input[B * T + i] = run->train.tokens[starts[i / T] + i % T + 1];
    }
    tensors_add(run, "new.", spec->state(run->model, STATE_PARAMS), list + states * n_params, names + states * n_params);
    tensors_add(run, "grad.", spec->state(run->model, STATE_GRADS), list + (states + 1) * n_params,
                names + (states + 1) * n_params);
    spec->activations(run->model, activations);
    for (int i = 0; i < n_activations; i++) {
        const Activation *a = &activations[i];
        list[n++] = tensor_of(a->name, REAL_TYPE, a->rank, a->shape, a->data);
    }
    const int64_t batch_shape[] = {B, T}, one[] = {1};
    list[n++] = tensor_of("input", ST_I64, 2, batch_shape, input);
    list[n++] = tensor_of("target", ST_I64, 2, batch_shape, input + B * T);
    list[n++] = tensor_of("loss", REAL_TYPE, 1, one, &loss);
    MetaList meta;
    meta.n = 0;
    meta_common(run, &meta);
    for (int i = 0; i < spec->n_sizes; i++) meta_add(&meta, spec->size_flags[i].flag, "%d", run->config.sizes[i]);
    meta_add(&meta, "seed", "%llu", (unsigned long long)run->o.seed);
    meta_add(&meta, "dropout", "%.17g", run->o.dropout);
    meta_add(&meta, "lr", "%.17g", plan.lr);
    bool ok = st_write(run->o.dump, list, n, meta.list, meta.n, run->error);
    meta_free(&meta);
    free(list);
    free(names);
    free(activations);
    free(before);
    free(starts);
    free(input);
    if (ok && result.bad_step >= 0) {
        char why[ERROR_SIZE] = "";
        diagnose(spec, run->model, &run->layout, &plan, why);
        return fail(run->error, "step %lld: the loss or a gradient is not finite (%.300s)", (long long)plan.step, why);
    }
    if (ok) printf("step %lld, loss %#.7g: %s\n", (long long)plan.step, (double)loss, run->o.dump);
    return ok;
}

// Times n steps, in runs of some 10 ms: a device works on one step while the host launches the next, as in training.
static inline bool run_bench(TrainRun *run) {
    enum { WARM_UP = 3 };
    const ModelSpec *spec = run->spec;
    const int64_t n = run->o.bench;
    double *ms = (double *)malloc((size_t)n * sizeof *ms);
    if (!ms) return fail(run->error, "--bench %lld: not enough memory for so many times", (long long)n);
    int64_t step = 0, done = 0, times = 0, run_length = 1;
    for (int64_t i = -WARM_UP; done < n; i++) {
        const int64_t steps = i < 0 ? 1 : run_length < n - done ? run_length : n - done;
        const double start = seconds_now();
        for (int64_t k = 0; k < steps; k++) {
            const StepPlan plan = plan_of(run, step++);
            spec->train_step(run->model, &plan);
        }
        spec->get_loss(run->model);
        const double took = 1e3 * (seconds_now() - start) / (double)steps;
        if (i == -1) run_length = 1 + (int64_t)(10 / fmax(took, 1e-3));
        if (i < 0) continue;
        ms[times++] = took;
        done += steps;
    }
    double middle = median(ms, (size_t)times), tokens = (double)run->config.B * run->config.T;
    printf("%lld steps: fastest %.4g ms, slowest %.4g ms; peak memory %.0f MB\n", (long long)n, ms[0], ms[times - 1],
           peak_megabytes());
    printf("bench model=%s device=%s precision=%s batch=%d ms_per_step=%.4g tokens_per_s=%.0f gflop_per_s=%.4g\n",
           spec->name, spec->device, run->config.precision, run->config.B, middle, tokens / middle * 1e3,
           spec->step_flops(&run->config) / middle / 1e6);
    free(ms);
    return true;
}

// ---- the starter corpus

extern char **environ;

// Runs a program and waits. Its stdout goes to stderr, for stdout belongs to the epochs' lines.
static inline bool run_program(const char *path, const char *const *arguments, char *error) {
    posix_spawn_file_actions_t actions;
    pid_t child;
    int status = 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, 2, 1);
    int problem = posix_spawn(&child, path, &actions, NULL, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (problem) return fail(error, "%s: cannot be run: %s", path, strerror(problem));
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return fail(error, "%s: cannot be waited for: %s", path, strerror(errno));
    }
    if (WIFSIGNALED(status)) return fail(error, "%s: it was ended by signal %d; run me again", path, WTERMSIG(status));
    if (WEXITSTATUS(status))
        return fail(error, "%s: it failed, as said above (exit status %d)", path, WEXITSTATUS(status));
    return true;
}

// Whether the starter corpus belongs into the folder: it does not exist, or holds nothing but what an interrupted
// composing leaves behind. Somebody's own folder is left alone.
static inline bool starter_wanted(const char *folder) {
    DIR *list = opendir(folder);
    bool train = false, test = false, starter = false, other = false;
    if (!list) return errno == ENOENT;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        const char *name = entry->d_name, *dot = strrchr(name, '.');
        if (!strcmp(name, ".") || !strcmp(name, "..") || (dot && !strcmp(dot, ".tmp"))) continue;
        train |= !strcmp(name, "train.safetensors");
        test |= !strcmp(name, "test.safetensors");
        starter |= !strcmp(name, "starter");
        other |= strcmp(name, "train.safetensors") && strcmp(name, "test.safetensors") && strcmp(name, "starter");
    }
    closedir(list);
    return !other && !(train && test) && (starter || (!train && !test));
}

// Composes the starter corpus into the folder, by the two programs beside this one, and makes its datasets.
static inline bool starter_compose(TrainRun *run, const char *folder) {
    char self[PATH_MAX + 1];
    ssize_t length = readlink("/proc/self/exe", self, PATH_MAX);
    if (length < 0) length = snprintf(self, sizeof self, "%s", run->argv[0]);
    if (length > PATH_MAX) length = PATH_MAX;
    self[length] = 0;
    char *slash = strrchr(self, '/');
    strcpy(slash ? slash : self, slash ? "" : ".");
    char *compose = path_join(self, "data_prep/compose_music"), *prepare = path_join(self, "data_prep/prepare_music");
    char *starter = path_join(folder, "starter"), *train = path_join(starter, "train"),
         *test = path_join(starter, "test");
    const char *first[] = {compose, "--out", starter, NULL}, *second[] = {prepare, "--out", folder, train, test, NULL};
    const char *missing = access(compose, X_OK) ? compose : access(prepare, X_OK) ? prepare : NULL;
    bool ok = !missing;
    if (missing) {
        fail(
            run->error,
            "%s: there is no music here yet, and %s, which would make some, cannot be run (%s); build it with make, or "
            "give --data a folder made by prepare_music",
            folder, missing, strerror(errno));
    }
    if (ok) fprintf(stderr, "%s: no music here yet: composing the starter corpus into it\n", folder);
    ok = ok && run_program(compose, first, run->error) && run_program(prepare, second, run->error);
    free(compose);
    free(prepare);
    free(starter);
    free(train);
    free(test);
    return ok;
}

// ---- main, piece by piece

// Reads the file that the weights come from, if any, and sets the sizes and, for --resume, all saved flags.
static inline bool weights_open(TrainRun *run) {
    Options *o = &run->o;
    run->weights_path = o->resume ? run->last_path : o->init ? o->init : o->eval ? run->model_path : NULL;
    if (!run->weights_path) return true;
    if (o->resume && access(run->last_path, F_OK)) {
        return fail(run->error, "%s: there is no run to go on with; leave out --resume to start one", run->last_path);
    }
    if (!st_read(&run->weights, run->weights_path, run->error)) return false;
    int sizes[MAX_SIZES];
    if (o->resume && !resume_flags(run)) return false;
    if (!run->spec->sizes_of_file(&run->weights, sizes, run->error)) {
        return fail(run->error, "%s: %s", run->weights_path, run->error);
    }
    for (int i = 0; i < run->spec->n_sizes; i++) {
        const char *flag = run->spec->size_flags[i].flag;
        if (flag_find(&run->flags, flag)->given && o->sizes[i] != sizes[i]) {
            run->status = 2;
            return fail(run->error, "--%s %lld: %s has %d; leave the flag out", flag, (long long)o->sizes[i],
                        run->weights_path, sizes[i]);
        }
        o->sizes[i] = sizes[i];
    }
    const char *window = st_meta(&run->weights, "window");
    Flag *flag = flag_find(&run->flags, "window");
    // A model's window is its own default, and so is, to evaluate it, its precision, where this build has it.
    const char *precision = st_meta(&run->weights, "precision");
    if (o->eval && precision && !flag_find(&run->flags, "precision")->given) {
        char kept[sizeof run->precision];
        snprintf(kept, sizeof kept, "%s", precision);
        if (flag_set(flag_find(&run->flags, "precision"), kept, run->error)) precision_keep(run, kept);
    }
    if (!window || o->resume || flag->given || flag_set(flag, window, run->error)) return true;
    return fail(run->error, "%s: its window is '%.40s', and %s", run->weights_path, window, run->error);
}

static inline bool data_open_one(TrainRun *run, const char *name, Dataset *data, char *identity) {
    char *path = path_join(run->o.data, name), pieces[32], windows[32];
    bool ok = !access(path, F_OK)
                  ? dataset_open(data, path, run->config.T, run->error)
                  : fail(run->error, "%s: is missing; make it with data_prep/prepare_music --out %s MIDI_FOLDER", path,
                         run->o.data);
    free(path);
    if (!ok) return false;
    uint64_t hash = 14695981039346656037u; // FNV-1a, against mistakes, not against malice
    for (int64_t i = 0; i < data->n_tokens; i++) hash = (hash ^ data->tokens[i]) * 1099511628211u;
    for (int64_t i = 0; i <= data->n_pieces; i++) hash = (hash ^ (uint64_t)data->pieces[i]) * 1099511628211u;
    snprintf(identity, 96, "%lld tokens in %lld pieces, hash %016llx", (long long)data->n_tokens,
             (long long)data->n_pieces, (unsigned long long)hash);
    if (data->n_windows) return true;
    return fail(run->error, "%s/%s: none of its %s pieces has the %s tokens of a window; take a smaller --window",
                run->o.data, name, thousands(pieces, data->n_pieces), thousands(windows, run->config.T + 1));
}

static inline bool data_open(TrainRun *run) {
    const Options *o = &run->o;
    const ModelConfig *config = &run->config;
    if (o->bench) {
        // About as many windows as the published training set has.
        if (!dataset_random(&run->train, 640000 + config->T, config->T, 1, run->error)) return false;
        run->epoch_steps = run->train.n_windows / config->B;
        return true;
    }
    if (!flag_find(&run->flags, "data")->given && !o->resume && starter_wanted(o->data) &&
        !starter_compose(run, o->data))
        return false;
    struct stat about;
    if (stat(o->data, &about) || !S_ISDIR(about.st_mode)) {
        return fail(run->error,
                    "--data %s: there is no such folder; make it with data_prep/prepare_music --out %s MIDI_FOLDER",
                    o->data, o->data);
    }
    if (!o->eval && !data_open_one(run, "train.safetensors", &run->train, run->train_identity)) return false;
    if ((!o->dump || o->resume) && !data_open_one(run, "test.safetensors", &run->test, run->test_identity))
        return false;
    run->eval_windows = (run->test.n_windows + o->eval_stride - 1) / o->eval_stride;
    if (o->eval) return true;
    run->epoch_steps = epoch_steps(o->epoch_size, run->train.n_windows, config->B);
    if (run->epoch_steps > 0) return true;
    char windows[32];
    return fail(run->error,
                "--batch %d: %s/train.safetensors has only %s windows of %d tokens; take a smaller --batch or --window",
                config->B, o->data, thousands(windows, run->train.n_windows), config->T + 1);
}

static inline bool model_make(TrainRun *run) {
    const ModelSpec *spec = run->spec;
    run->model = spec->create(&run->config, run->error);
    if (!run->model) return false;
    real *params = spec->state(run->model, STATE_PARAMS);
    bool resume = run->o.resume;
    const char *path = run->weights_path;
    if (!path) {
        params_init(&run->layout, run->config.seed, params);
    } else if (!params_load(&run->layout, &run->weights, "", resume, path, params, run->error)) {
        return false;
    }
    real *exp_avg = spec->state(run->model, STATE_EXP_AVG), *exp_inf = spec->state(run->model, STATE_EXP_INF);
    if (resume) {
        if (!params_load(&run->layout, &run->weights, "adamax.exp_avg.", true, path, exp_avg, run->error)) return false;
        if (!params_load(&run->layout, &run->weights, "adamax.exp_inf.", true, path, exp_inf, run->error)) return false;
        if (!resume_state(run)) return false;
    } else {
        memset(exp_avg, 0, (size_t)run->layout.size * sizeof *exp_avg);
        memset(exp_inf, 0, (size_t)run->layout.size * sizeof *exp_inf);
    }
    st_free(&run->weights);
    spec->state_changed(run->model);
    spec->set_loss(run->model, run->loss_sum);
    if (!run->o.eval) spec->set_data(run->model, &run->train);
    return true;
}

static inline void announce(const TrainRun *run) {
    char text[32];
    const ModelConfig *config = &run->config;
    printf("%s, %s parameters:", run->spec->name, thousands(text, run->layout.count));
    for (int i = 0; i < run->spec->n_sizes; i++) {
        printf(" %s %d", run->spec->size_flags[i].flag, config->sizes[i]);
    }
    printf("; %s on %s, %d thread%s\n", config->precision, run->spec->device, config->threads,
           config->threads > 1 ? "s" : "");
    if (run->weights_path) printf("weights from %s\n", run->weights_path);
    if (run->train.n_windows) {
        printf("training: %s windows of %d tokens", thousands(text, run->train.n_windows), config->T + 1);
        printf(", an epoch is %s steps of %d windows\n", thousands(text, run->epoch_steps), config->B);
    }
    if (run->test.n_windows) {
        printf("test: %s windows", thousands(text, run->test.n_windows));
        printf(", %s of them evaluated (stride %lld)\n", thousands(text, run->eval_windows),
               (long long)run->o.eval_stride);
    }
    fflush(stdout);
    bool cpu = !strcmp(run->spec->device, "cpu"), asked = flag_find((Flags *)&run->flags, "precision")->given;
#ifdef __AVX512BF16__
    if (cpu && !asked && !strcmp(config->precision, "fp32") && run->test.n_windows && !run->o.resume && !run->o.eval) {
        fprintf(stderr, "%s: this processor multiplies bf16 too: --precision bf16 trains about half as fast again\n",
                run->program);
    }
#else
    if (cpu && asked && !strcmp(config->precision, "bf16")) {
        fprintf(stderr, "%s: --precision bf16: this processor has no multiplication for it; fp32 is faster here\n",
                run->program);
    }
#endif
#ifndef _OPENMP
    if (cpu) fprintf(stderr, "%s: built without OpenMP: ONE THREAD, however many CPUs there are\n", run->program);
#endif
}

// Makes the --out folder, and those that it is in.
static inline bool out_make(TrainRun *run) {
    char *part = path_join(run->o.out, "");
    struct stat about;
    bool ok = true;
    for (char *end = part + 1; ok && *part; end++) { // the file in the way, if there is one
        char kept = *end;
        if (kept && kept != '/') continue;
        *end = 0;
        if (!stat(part, &about) && !S_ISDIR(about.st_mode)) {
            ok = fail(run->error, "--out %.400s: %.400s is a file, not a folder", run->o.out, part);
        }
        *end = kept;
        if (!kept) break;
    }
    free(part);
    return ok && make_folders(run->o.out, run->error);
}

static inline bool run_training(TrainRun *run) {
    static const char *const unfinished[] = {"model.safetensors.tmp", "last.safetensors.tmp", "log.csv.tmp",
                                             "loss.svg.tmp"};
    for (int i = 0; i < 4; i++) { // what a run that was killed while writing has left
        char *path = path_join(run->o.out, unfinished[i]);
        unlink(path);
        free(path);
    }
    run->resumed_at = run->saved_at = seconds_now();
    run->begun = run->o.resume;
    if (run->begun) {
        log_recall_seconds(run);
        printf("going on from step %lld, after %d epochs\n", (long long)run->step, run->n_rows);
        previous_keep(run);
        if (!reports_write(run, run->n_rows)) return false;
    }
    train_catch_signals();
    Outcome outcome = train(run);
    if (outcome == STOPPED) {
        fprintf(stderr, "%s: stopped at step %lld and saved in %s; to go on:\n    ", run->program, (long long)run->step,
                run->last_path);
        resume_hint(run, stderr);
        run->status = 1;
    }
    return outcome != FAILED;
}

static inline bool train_run(TrainRun *run) {
    const Options *o = &run->o;
    const ModelSpec *spec = run->spec;
    bool understood = flags_parse(&run->flags, run->argc, run->argv, run->error);
    if (understood && run->flags.help) help_print(run);
    if (understood && run->flags.version) printf("%s %s\n", run->program, MUSIC_VERSION);
    if (understood && (run->flags.help || run->flags.version)) return true;
    if (!understood || !flags_agree(o, run->error)) {
        run->status = 2;
        return false;
    }
    run->model_path = path_join(o->out, "model.safetensors");
    run->last_path = path_join(o->out, "last.safetensors");
    run->log_path = path_join(o->out, "log.csv");
    run->svg_path = path_join(o->out, "loss.svg");
    run->previous_path = path_join(o->out, "model.prev.safetensors.tmp");
    run->whole_path = path_join(o->out, "model.whole.safetensors");
    run->best = HUGE_VAL;
    if (!weights_open(run)) return false;
    ModelConfig *config = &run->config;
    for (int i = 0; i < spec->n_sizes; i++) config->sizes[i] = (int)o->sizes[i];
    config->B = (int)o->batch;
    config->T = (int)o->window;
    config->dropout = o->dropout;
    config->seed = o->seed;
    config->precision = o->precision;
    config->threads = 1;
#ifdef _OPENMP
    config->threads = (int)o->threads;
    omp_set_num_threads(config->threads);
#endif
    if (!spec->check_sizes(config, run->error)) {
        if (run->weights_path) return fail(run->error, "%s: %s", run->weights_path, run->error);
        run->status = 2;
        return false;
    }
    spec->layout(config->sizes, &run->layout);
    if (!data_open(run)) return false;
    if (!model_make(run)) return false;
    if (!o->bench && !o->eval && !o->dump && !out_make(run)) return false;
    announce(run);
    if (o->bench) return run_bench(run);
    if (o->eval) return run_eval(run);
    if (o->dump) return run_dump(run);
    return run_training(run);
}

// A trainer's whole main. Returns the exit status.
static inline int train_main(int argc, char **argv, const ModelSpec *spec) {
    TrainRun *run = (TrainRun *)calloc(1, sizeof *run);
    if (!run) abort();
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    run->spec = spec;
    run->program = slash ? slash + 1 : argc > 0 ? argv[0] : "train";
    run->argc = argc;
    run->argv = argv;
    program_start();
    flags_define(run);
    if (!train_run(run) && !run->status) run->status = 1;
    int status = program_end(run->program, run->status, run->error);
    if (run->model) spec->destroy(run->model);
    layout_free(&run->layout);
    st_free(&run->weights);
    dataset_close(&run->train);
    dataset_close(&run->test);
    free(run->rows);
    free(run->model_path);
    free(run->last_path);
    free(run->log_path);
    free(run->svg_path);
    free(run->previous_path);
    free(run->whole_path);
    free(run->saved_data);
    free(run);
    return status;
}

#endif
