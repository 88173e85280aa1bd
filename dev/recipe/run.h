// A training run: its flags, and all that it knows while it goes on.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/model.h" // first: it chooses the system's interfaces

#include "base/flags.h"
#include "base/program.h"

#define DEFAULT_DATA "data"

typedef struct {
    const char *data, *out, *init, *dump, *recipe;
    int64_t batch, window, epochs, patience, steps, warmup, eval_stride, bench, threads, sizes[MAX_SIZES];
    double epoch_size, lr, lr_decay, lr_min;
    bool resume, eval;
} Options;

typedef struct {                     // an epoch in log.csv
    long long epoch, step, steps;    // counted from 1; steps since step 0; steps of the epoch
    double train, test, lr, seconds; // mean losses; seconds < 0: unknown
} LogRow;

typedef struct {
    const ModelSpec *spec;
    const char *program;
    int argc;
    char **argv;
    Options o;   // of flags; what a model needs to know of them is in config
    Flags flags; // those marked fixed or kept are saved; with --resume the fixed ones must be the same
    char default_out[64], precision[16], recipe[16], error[ERROR_SIZE];
    int status; // exit status, if it is not to follow from success
    Path model_path, last_path, log_path, svg_path, saved_data;
    Path previous_path, whole_path; // see run_begin, epoch_done
    int lock;                       // the open folder, or -1; see out_lock

    ModelConfig config;
    ParamLayout layout;
    void *model;
    StFile weights; // open between finding the sizes and loading the tensors
    const char *weights_path;
    Dataset train, test;
    char train_identity[96], test_identity[96];
    long long epoch_steps, eval_windows;

    // The state of the run, beside the model's own.
    bool begun;   // the files in --out are this run's
    bool unsaved; // last.safetensors is not up to date
    bool ended;   // it was over when it was resumed
    long long step;
    double loss_sum; // of this epoch's steps so far
    LogRow *rows;    // one for each epoch done, and room for one more
    int n_rows;
    EvalLoss eval; // of the last evaluation
    LogRow best;   // the lowest test loss of the epochs done, infinite and after step 0 before the first
    double seconds_before, resumed_at, saved_at; // time spent on this epoch before resumed_at
} TrainRun;

static inline void flags_define(TrainRun *run) {
    Options *o = &run->o;
    ModelConfig *config = &run->config;
    const ModelSpec *spec = run->spec;
    Flags *f = &run->flags;
    snprintf(run->default_out, sizeof run->default_out, "out/%s", spec->name);
    snprintf(run->precision, sizeof run->precision, "%.*s", (int)strcspn(spec->precisions, "|"), spec->precisions);
    flag_text(f, "data", "DIR", &o->data, DEFAULT_DATA, "folder with train.safetensors and test.safetensors");
    flag_text(f, "out", "DIR", &o->out, run->default_out, "where the model, the log and the curves go");
    Flag *recipe = flag_text(f, "recipe", "R", &o->recipe, "published", "what flags are that are not given");
    recipe->choices = "published|tuned";
    recipe->fixed = true;
    flag_whole(f, "batch", &o->batch, 8, 1, 65536, "windows in a training step")->fixed = true;
    flag_whole(f, "window", &o->window, 256, 1, 65536, "tokens in a window")->fixed = true;
    flag_number(f, "epoch-size", &o->epoch_size, 0.02, "(0, 1]", "part of the windows in an epoch")->fixed = true;
    flag_whole(f, "epochs", &o->epochs, 50, 1, 1e9, "stop after so many epochs")->kept = true;
    flag_whole(f, "patience", &o->patience, 3, 1, 1e9, "stop after so many epochs without a better test loss")->kept =
        true;
    flag_whole(f, "steps", &o->steps, 0, 1, 1e15, "stop after N steps in all since step 0, evaluate and save");
    flag_number(f, "lr", &o->lr, spec->lr, "(0, inf)", "learning rate of Adamax")->fixed = true;
    flag_number(f, "lr-decay", &o->lr_decay, spec->lr_decay, "(0, 1]", "its factor after each epoch")->fixed = true;
    flag_number(f, "lr-min", &o->lr_min, spec->lr_min, "[0, inf)", "where its decay ends")->fixed = true;
    flag_whole(f, "warmup", &o->warmup, 0, 0, 1e9, "steps in which the learning rate rises to --lr")->fixed = true;
    flag_number(f, "weight-decay", &config->weight_decay, 0, "[0, inf)",
                "times the learning rate: what a weight loses of itself in a step")
        ->fixed = true;
    flag_number(f, "average", &config->average, 0, "[0, 1)",
                "keep an average of the weights, which forgets 1-F of itself a step, and evaluate and save that")
        ->fixed = true;
    flag_number(f, "dropout", &config->dropout, 0.5, "[0, 1)", "part of the activations dropped in training")->fixed =
        true;
    flag_range(f, "transpose", config->transpose, -87, 87, "semitones by which windows are transposed at random")
        ->fixed = true;
    flag_seed(f, &config->seed, "random seed: same seed, same model")->fixed = true;
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
    Flag *precision = flag_text(f, "precision", "P", &config->precision, run->precision, "number format");
    precision->choices = spec->precisions;
    precision->fixed = true;
    flag_whole(f, "threads", &o->threads, threads_default(), 1, 1024, "CPU threads, at most; they change no result");
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
           "(in the epoch), seconds; loss.svg, the curves. A new run does not begin over one that was stopped or\n"
           "killed; of one that has ended it keeps the best model, as model.prev.safetensors, then\n"
           "model.prev-2.safetensors and so on. Where --steps ends a run within an epoch with a better model, the\n"
           "best of the epochs before it is model.whole.safetensors.\n\n"
           "--eval ends with a line `eval loss=... windows=... tokens=... stride=...`, --bench with a line\n"
           "`bench model=%s device=... precision=... batch=... ms_per_step=... tokens_per_s=...\n"
           "gflop_per_s=...`, the median.\n"
           "Exit status: 0 done; 1 it failed, or it was stopped and saved before its end; 2 wrong usage.\n",
           name);
}

// Sets the flags of --recipe tuned that were not given.
static inline void recipe_apply(TrainRun *run) {
    if (strcmp(run->o.recipe, "tuned")) return;
    for (const char *const(*pair)[2] = run->spec->tuned; (*pair)[0]; pair++) {
        Flag *flag = flag_find(&run->flags, (*pair)[0]);
        if (!flag || (!flag->given && !flag_set(flag, (*pair)[1], run->error))) abort();
    }
}

// The flag by which the run is over after the epochs done, or NULL.
static inline const char *run_over(const TrainRun *run) {
    if (run->n_rows >= run->o.epochs) return "epochs";
    return run->best.step && run->n_rows - run->best.epoch >= run->o.patience ? "patience" : NULL;
}

static inline StepPlan plan_of(const TrainRun *run, int64_t step) {
    StepPlan plan = {step, step / run->epoch_steps, step % run->epoch_steps, run->o.lr};
    // By products, because pow differs in the last bit between libraries. The floor never raises a smaller --lr.
    double least = run->o.lr_min < run->o.lr ? run->o.lr_min : run->o.lr;
    for (int64_t e = 0; e < plan.epoch && plan.lr > least && run->o.lr_decay < 1; e++) plan.lr *= run->o.lr_decay;
    if (plan.lr < least) plan.lr = least;
    return plan;
}
