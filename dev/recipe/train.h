// The recipe that every trainer shares: command line, data, epochs, evaluation, and train_main, a trainer's whole main.
// recipe/model.h is the interface to the model, the other files of this folder are parts of the recipe.
//
// Promises:
// - Nothing depends on time: saving more or less often changes no result.
// - Files are written whole or not at all, in the order model, last, log.csv, loss.svg.
// - An error is one sentence on stderr that names the file or flag. Exit status 0: done; 1: it failed, or it was
//   stopped and saved before its end; 2: wrong usage.
// Left out: more than one process or device.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/checkpoint.h" // first: it chooses the system's interfaces

#include "recipe/measure.h"
#include "recipe/progress.h"
#include "recipe/report.h"
#include "recipe/starter.h"

// ---- signals and saving in time

#ifndef SAVE_SECONDS
#define SAVE_SECONDS 300 // between saves within an epoch: what a killed run loses at most
#endif

static volatile sig_atomic_t train_signal; // the first SIGINT, SIGTERM or SIGHUP

static inline void train_on_signal(int number) {
    if (train_signal && number != SIGHUP) { // the second: now; but of SIGHUP a terminal that is closed may send two
        signal(number, SIG_DFL);
        raise(number);
    }
    train_signal = number;
}

// Sends off what was printed. A reader that has gone away costs no work: nothing more is printed then.
static inline void print_flush(void) {
    if (fflush(stdout) && errno == EPIPE) (void)!freopen("/dev/null", "w", stdout);
}

typedef enum { GO_ON, STOPPED, FAILED } Outcome;

// Saves the state of a new run for the first time: from here on it can be resumed, and the folder is its own. The best
// model of an earlier run gets a second name, first a temporary one, and the final one when the state is saved. Killed
// before that, the folder holds the earlier run; killed after it, the resumed run does the rest.
static inline bool run_begin(TrainRun *run) {
    if (run->begun) return true;
    if (!hard_link(run->model_path.text, run->previous_path.text, run->error)) return false;
    if (!last_save(run, true)) {
        previous_return(run);
        return false;
    }
    run->begun = true;
    return previous_keep(run) && reports_write(run, 0);
}

// After a step or an evaluation batch: save if it is time, or if a signal asks for the end.
static inline Outcome save_if_due(TrainRun *run, double now) {
    if (!train_signal && now - run->saved_at < SAVE_SECONDS) return GO_ON;
    if (!(run->begun ? last_save(run, true) : run_begin(run))) return FAILED;
    return train_signal ? STOPPED : GO_ON;
}

// run->step is the first step that went wrong; the model has skipped every update since. Saves the state before it,
// unless the run is so young that there is nothing to save.
static inline Outcome training_broke(TrainRun *run) {
    char why[ERROR_SIZE] = "";
    StepPlan plan = plan_of(run, run->step);
    if (run->begun && !last_save(run, true)) return FAILED;
    if (!diagnose(run->spec, run->model, &run->layout, &plan, why))
        snprintf(why, sizeof why, "no tensor of it could be named");
    fail(run->error, "step %lld: the loss or a gradient is no longer finite (%.300s); %s%.400s%s%s", run->step, why,
         run->begun ? "" : "nothing was saved, and ", run->begun ? run->last_path.text : run->o.out,
         run->begun ? " holds the state before it" : " is as it was",
         run->begun  ? "; try a smaller --lr in another --out"
         : run->step ? "; try a smaller --lr"
                     : "");
    return FAILED;
}

// ---- an epoch: steps, evaluation, what is kept

// Steps until `end`.
static inline Outcome train_until(TrainRun *run, int64_t end) {
    const ModelSpec *spec = run->spec;
    Progress progress = progress_start(run->step, end, run->loss_sum);
    Outcome outcome = GO_ON;
    while (run->step < end && outcome == GO_ON) {
        StepPlan plan = plan_of(run, run->step);
        spec->train_step(run->model, &plan);
        run->step++;
        run->unsaved = true;
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
        outcome = run->step < 2 || run_begin(run) ? save_if_due(run, now) : FAILED;
    }
    progress_clear(&progress);
    return outcome;
}

// Every stride-th test window.
static inline Outcome evaluate(TrainRun *run, bool save) {
    int64_t done = 0;
    Progress progress = progress_start(done, run->eval_windows, 0);
    int64_t *starts = (int64_t *)malloc((size_t)run->config.B * sizeof *starts);
    Outcome outcome = starts ? GO_ON : FAILED;
    if (!starts) fail(run->error, "out of memory for the evaluation");
    const bool average = run->config.average > 0;
    if (average) run->spec->use_average(run->model, true);
    memset(&run->eval, 0, sizeof run->eval);
    while (done < run->eval_windows && outcome == GO_ON) {
        int n = 0;
        for (; n < run->config.B && done + n < run->eval_windows; n++) {
            starts[n] = dataset_window(&run->test, (done + n) * run->o.eval_stride);
        }
        run->spec->eval_batch(run->model, &run->test, starts, n, &run->eval);
        done += n;
        double now = seconds_now();
        if (progress_due(&progress, now)) progress_eval(&progress, done, now);
        if (save) outcome = save_if_due(run, now);
    }
    if (average) run->spec->use_average(run->model, false);
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

// An evaluation is complete: keeps the model if it is the best, then writes last, log.csv and loss.svg, in this order:
// killed in between, the run repeats the step that led here and writes the same bytes again. `whole` says that the
// epoch is over. Where --steps ended it early, its row is shown and written to log.csv, and its model is kept if it is
// the best, but neither is part of the state: resuming goes on as if it had never stopped. For that the best model of
// whole epochs keeps a second name, under which the next evaluation finds it.
static inline bool epoch_done(TrainRun *run, bool whole) {
    int64_t tokens, epoch = run->n_rows, start = epoch * run->epoch_steps;
    const StepPlan last = plan_of(run, run->step - 1);
    const double lr = warmed_lr(last.lr, run->config.warmup, last.step);
    LogRow row = {epoch + 1, run->step, run->step - start, 0, 0, lr, 0};
    row.train = run->loss_sum / (double)row.steps;
    row.test = eval_mean(&run->eval, &tokens);
    if (!isfinite(row.test)) {
        if (run->begun && !last_save(run, true)) return false;
        return fail(run->error, "step %lld: the test loss is no longer finite; try a smaller --lr", run->step);
    }
    if (!run_begin(run)) return false;
    if (!run->best.step) {
        unlink(run->whole_path.text); // of an earlier run
    } else if (!access(run->whole_path.text, F_OK) && rename(run->whole_path.text, run->model_path.text)) {
        return fail(run->error, "%s: cannot be made %s: %s", run->whole_path.text, run->model_path.text,
                    strerror(errno));
    }
    bool better = !run->best.step || row.test < run->best.test;
    if (better && !whole && run->best.step && !hard_link(run->model_path.text, run->whole_path.text, run->error))
        return false;
    if (better && !model_save(run, row.epoch, row.train, row.test)) return false;
    double now = seconds_now();
    row.seconds = run->seconds_before + now - run->resumed_at;
    if (!rows_add(run, row)) return false; // up to here all is as it was after the evaluation
    if (better && whole) run->best = row;
    run->seconds_before = 0;
    run->resumed_at = now;
    if (whole) {
        run->loss_sum = 0;
        run->spec->set_loss(run->model, 0);
    } else {
        run->n_rows--;
    }
    if (!last_save(run, false) || !reports_write(run, (int)epoch + 1)) return false;
    if (better) run->best = row; // of a part of an epoch: for the last line only, nothing is saved any more
    printf("epoch %lld  train %.4f  test %.4f  lr %g  steps %lld  %.1f s\n", row.epoch, row.train, row.test, row.lr,
           row.steps, row.seconds);
    print_flush();
    return true;
}

static inline Outcome train(TrainRun *run) {
    const Options *o = &run->o;
    bool idle = true;
    for (;;) {
        int64_t start = (int64_t)run->n_rows * run->epoch_steps, end = start + run->epoch_steps;
        if (o->steps && o->steps < end) end = o->steps;
        if (run_over(run) || end <= start || run->step > end) break;
        idle = false;
        Outcome outcome = train_until(run, end);
        if (outcome == GO_ON) outcome = evaluate(run, true);
        if (outcome != GO_ON) return outcome;
        bool whole = end == start + run->epoch_steps;
        if (!epoch_done(run, whole)) return FAILED;
        if (!whole) break;
    }
    if (idle) {
        printf("nothing was left to do; to go on further, raise --epochs, --patience or --steps\n");
        if (!last_save(run, false)) return FAILED; // perhaps it was interrupted later than these end it
    }
    if (run->best.step) {
        print_line(stdout, "best test loss %.4f, epoch %lld: %s", run->best.test, run->best.epoch,
                   run->model_path.text);
    }
    return GO_ON;
}

// ---- hints and other modes

// The command that goes on with this run: this one with --resume and without --init, quoted for a shell.
static inline void resume_hint(const TrainRun *run) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./,:+@%";
    for (int i = 0; i < run->argc; i++) {
        const char *argument = run->argv[i];
        const bool init = !strcmp(argument, "--init");
        if (init) i++; // over its value
        if (init || !strcmp(argument, "--resume") || !strncmp(argument, "--init=", 7)) continue;
        if (i) fputc(' ', stderr);
        bool plain = *argument && !argument[strspn(argument, safe)];
        if (!plain) fputc('\'', stderr);
        for (int length; *argument; argument += length ? length : 1) {
            length = shown_length(argument, 4);
            if (*argument == '\'') fputs("'\\'", stderr);
            fprintf(stderr, "%.*s", length ? length : 1, length ? argument : "?");
        }
        if (!plain) fputc('\'', stderr);
    }
    fprintf(stderr, " --resume\n");
}

static inline bool run_eval(TrainRun *run) {
    int64_t tokens;
    if (evaluate(run, false) == FAILED) return false;
    double mean = eval_mean(&run->eval, &tokens);
    if (!isfinite(mean)) return fail(run->error, "%s: its loss on the test set is not finite", run->weights_path);
    for (int i = 0; i < 4; i++) {
        if (!run->eval.count[i]) continue;
        printf("%-9s loss %.4f over %lld tokens\n", train_kinds[i], run->eval.sum[i] / (double)run->eval.count[i],
               (long long)run->eval.count[i]);
    }
    printf("eval loss=%#.7g windows=%lld tokens=%lld stride=%lld\n", mean, run->eval_windows, (long long)tokens,
           (long long)run->o.eval_stride);
    return true;
}

// ---- main, piece by piece

// Reads the file that the weights come from, if any, and sets the sizes and, for --resume, all saved flags.
static inline bool weights_open(TrainRun *run) {
    Options *o = &run->o;
    run->weights_path = o->resume ? run->last_path.text : o->init ? o->init : o->eval ? run->model_path.text : NULL;
    if (!run->weights_path) return true;
    if (o->resume && access(run->last_path.text, F_OK)) {
        return fail(run->error, "%s: there is no run to go on with; leave out --resume to start one",
                    run->last_path.text);
    }
    if (!model_read(&run->weights, run->weights_path, run->error)) return false;
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
        if (flag_set(flag_find(&run->flags, "precision"), precision, NULL)) texts_keep(run);
    }
    if (!window || o->resume || flag->given || flag_set(flag, window, run->error)) return true;
    return fail(run->error, "%s: its window is '%.40s', and %s", run->weights_path, window, run->error);
}

static inline bool data_open_one(TrainRun *run, const char *name, Dataset *data, char *identity) {
    const Path path = path_join(run->o.data, name);
    char pieces[32], windows[32];
    if (access(path.text, F_OK)) {
        return fail(run->error, "%s: is missing; make it with data_prep/prepare_music --out %s MIDI_FOLDER", path.text,
                    run->o.data);
    }
    if (!dataset_open(data, path.text, run->config.T, run->error)) return false;
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
    bool starter = !flag_find(&run->flags, "data")->given && !o->resume && starter_wanted();
    if (starter && !starter_compose(run)) return false;
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
    const real *params = spec->state(run->model, STATE_PARAMS);
    for (int k = STATE_PARAMS; k <= last_state(&run->config); k++) {
        real *state = spec->state(run->model, k);
        if (k == STATE_PARAMS && !run->weights_path) {
            params_init(&run->layout, run->config.seed, state);
        } else if (k == STATE_AVERAGE && !run->o.resume) {
            memcpy(state, params, (size_t)run->layout.size * sizeof *state);
        } else if (k > STATE_PARAMS && !run->o.resume) {
            memset(state, 0, (size_t)run->layout.size * sizeof *state);
        } else if (!params_load(run, k, state)) {
            return false;
        }
    }
    if (run->o.resume && !resume_state(run)) return false;
    st_free(&run->weights);
    spec->state_changed(run->model);
    spec->set_loss(run->model, run->loss_sum);
    if (!run->o.eval) spec->set_data(run->model, &run->train);
    return true;
}

static inline void announce(const TrainRun *run) {
    char text[32];
    const ModelSpec *spec = run->spec;
    const ModelConfig *config = &run->config;
    printf("%s, %s parameters:", spec->name, thousands(text, run->layout.count));
    for (int i = 0; i < spec->n_sizes; i++) printf(" %s %d", spec->size_flags[i].flag, config->sizes[i]);
    printf("; %s on %s, %d thread%s\n", config->precision, spec->device, config->threads,
           config->threads > 1 ? "s" : "");
    if (run->weights_path) print_line(stdout, "weights from %s", run->weights_path);
    if (run->train.n_windows) {
        printf("training: %s windows of %d tokens", thousands(text, run->train.n_windows), config->T + 1);
        printf(", an epoch is %s steps of %d windows\n", thousands(text, run->epoch_steps), config->B);
    }
    if (run->test.n_windows) {
        printf("test: %s windows", thousands(text, run->test.n_windows));
        printf(", %s of them evaluated (stride %lld)\n", thousands(text, run->eval_windows),
               (long long)run->o.eval_stride);
    }
    print_flush();
    bool cpu = !strcmp(spec->device, "cpu"), asked = flag_find((Flags *)&run->flags, "precision")->given;
#ifdef __AVX512BF16__
    if (cpu && !asked && !strcmp(config->precision, "fp32") && run->test.n_windows && !run->o.resume && !run->o.eval) {
        fprintf(stderr, "%s: this processor multiplies bf16 too: --precision bf16 trains about half as fast again\n",
                run->program);
    }
#else
    if (cpu && asked && !strcmp(config->precision, "bf16")) {
        fprintf(stderr, "%s: --precision bf16 gains only with AVX512-BF16; fp32 is faster here\n", run->program);
    }
#endif
#ifndef _OPENMP
    if (cpu) fprintf(stderr, "%s: built without OpenMP: ONE THREAD, however many CPUs there are\n", run->program);
#endif
}

static inline bool run_training(TrainRun *run) {
    const char *const written[] = {run->model_path.text, run->last_path.text, run->log_path.text, run->svg_path.text};
    for (int i = 0; i < 4; i++) temporary_clean(written[i]);
    run->resumed_at = run->saved_at = seconds_now();
    run->begun = run->o.resume;
    if (run->begun) {
        if (!log_recall_seconds(run)) return false;
        printf("going on from step %lld, after %d epochs\n", run->step, run->n_rows);
        if (run->ended) previous_return(run); // a new run was killed before it began
        if (!previous_keep(run) || !reports_write(run, run->n_rows)) return false;
    }
    signal(SIGINT, train_on_signal);
    signal(SIGTERM, train_on_signal);
    if (signal(SIGHUP, train_on_signal) == SIG_IGN) signal(SIGHUP, SIG_IGN); // nohup
    Outcome outcome = train(run);
    char why[ERROR_SIZE];
    memcpy(why, run->error, sizeof why);
    // Whatever has failed, what was done since the last save is not lost if it can be saved.
    const bool rescued =
        outcome == FAILED && run->begun && run->unsaved && last_save(run, run->step > run->n_rows * run->epoch_steps);
    if (rescued) memcpy(run->error, why, sizeof why);
    print_flush();
    if (outcome == STOPPED || rescued) {
        print_line(stderr, "%s: stopped at step %lld and saved in %s; to go on:", run->program, run->step,
                   run->last_path.text);
        fprintf(stderr, "    ");
        resume_hint(run);
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
    recipe_apply(run);
    run->model_path = path_join(o->out, "model.safetensors");
    run->last_path = path_join(o->out, "last.safetensors");
    run->log_path = path_join(o->out, "log.csv");
    run->svg_path = path_join(o->out, "loss.svg");
    run->previous_path = path_join(o->out, "model.prev.safetensors.tmp");
    run->whole_path = path_join(o->out, "model.whole.safetensors");
    run->best.test = HUGE_VAL;
    const bool training = !o->bench && !o->eval && !o->dump;
    if (training) signal(SIGPIPE, SIG_IGN); // see print_flush
    if (training && !out_take(run)) return false;
    if (!weights_open(run)) return false;
    ModelConfig *config = &run->config;
    for (int i = 0; i < spec->n_sizes; i++) config->sizes[i] = (int)o->sizes[i];
    config->B = (int)o->batch;
    config->T = (int)o->window;
    config->warmup = (double)o->warmup;
    if (o->eval) config->average = 0;
    omp_set_num_threads((int)o->threads);
    config->threads = omp_get_max_threads(); // 1 without OpenMP
    if (!spec->check_sizes(config, run->error)) {
        if (run->weights_path) return fail(run->error, "%s: %s", run->weights_path, run->error);
        run->status = 2;
        return false;
    }
    spec->layout(config->sizes, &run->layout);
    if (!params_there(run) || !data_open(run)) return false;
    if (!model_make(run)) return false;
    if (training && run->lock < 0 && (!make_folders(o->out, run->error) || !out_take(run))) return false;
    announce(run);
    if (o->bench) return run_bench(run);
    if (o->eval) return run_eval(run);
    if (o->dump) return run_dump(run);
    return run_training(run);
}

// A trainer's whole main. Returns the exit status.
static inline int train_main(int argc, char **argv, const ModelSpec *spec) {
    TrainRun *run = (TrainRun *)must_have(calloc(1, sizeof *run));
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    run->spec = spec;
    run->program = slash ? slash + 1 : argc > 0 ? argv[0] : "train";
    run->argc = argc;
    run->argv = argv;
    run->lock = -1;
    program_start();
    flags_define(run);
    if (!train_run(run) && !run->status) run->status = 1;
    int status = program_end(run->program, run->status, run->error);
    if (run->model) spec->destroy(run->model);
    layout_free(&run->layout);
    st_free(&run->weights);
    dataset_close(&run->train);
    dataset_close(&run->test);
    if (run->lock >= 0) close(run->lock);
    free(run->rows);
    free(run);
    return status;
}
