// The files of a run that hold tensors: model.safetensors is the best model so far, last.safetensors everything that
// --resume goes on from.
//
// Promises: a run that is killed at any moment and resumed ends with the same bytes as one that was never killed. Hence
// the state of a run is the weights, the optimizer's averages, the number of steps taken, the epochs logged so far, and
// the running sum of the epoch. An evaluation begins anew. Weights that are not finite are neither read nor saved. A
// new run refuses a folder with a run that has not ended, and leaves the files of one that has alone until its own
// first steps have gone well. Two runs never share a folder.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/run.h"

// ---- the tensors
// The first tensor with a NaN or an infinity, or NULL.
static inline const ParamTensor *params_not_finite(const ParamLayout *layout, const real *params) {
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *tensor = &layout->list[k];
        if (!all_finite(params + tensor->offset, tensor->count)) return tensor;
    }
    return NULL;
}

static const char *const state_prefixes[] = {"", "adamax.exp_avg.", "adamax.exp_inf.", "average."};

// The tensor in the weights' file that belongs to one of the layout, in state number k. With --resume its elements must
// have this build's type, because rounding them would not continue the same run. NULL, and a sentence, where it is
// missing or has another shape or type.
static inline const StTensor *params_find(TrainRun *run, int k, const ParamTensor *want) {
    char name[96];
    snprintf(name, sizeof name, "%s%s", state_prefixes[k], want->name);
    const StTensor *found = file_tensor(&run->weights, name, want->rank, want->shape, run->error);
    if (found && (!run->o.resume || found->type == REAL_TYPE)) return found;
    if (found) {
        fail(run->error, "tensor '%s' is %s, and this build can only go on with %s", name, st_type_name(found->type),
             st_type_name(REAL_TYPE));
    }
    fail(run->error, "%s: %s", run->weights_path, run->error);
    return NULL;
}

// Whether the weights' file, if there is one, has all tensors: asked before any memory is taken for them.
static inline bool params_there(TrainRun *run) {
    const int last = run->o.resume ? last_state(&run->config) : STATE_PARAMS;
    for (int k = STATE_PARAMS; run->weights_path && k <= last; k++) {
        for (int i = 0; i < run->layout.n; i++) {
            if (!params_find(run, k, &run->layout.list[i])) return false;
        }
    }
    return true;
}

// Reads every tensor of the layout, in state number k, into the flat array. False, and a sentence, where one is not
// there (see params_find) or not finite.
static inline bool params_load(TrainRun *run, int k, real *params) {
    const ParamLayout *layout = &run->layout;
    memset(params, 0, (size_t)layout->size * sizeof *params);
    for (int i = 0; i < layout->n; i++) {
        const StTensor *found = params_find(run, k, &layout->list[i]);
        real *out = params + layout->list[i].offset;
        if (!found) return false;
        for (int64_t e = 0; e < found->count; e++) out[e] = (real)st_get(found, e);
    }
    const ParamTensor *bad = params_not_finite(layout, params);
    if (!bad) return true;
    return fail(run->error, "%s: tensor '%s%s' has a number that is not finite", run->weights_path, state_prefixes[k],
                bad->name);
}

// ---- files in the making

// The tensors and the metadata of a file to write. Names, keys and values are its own. failed: out of memory
typedef struct {
    StTensor *tensors;
    StMeta meta[64];
    char keys[64][32];
    int n_tensors, n_meta;
    bool failed;
} Draft;

// --eval-stride is saved as eval_stride.
static inline const char *meta_key(const char *flag, char key[32]) {
    snprintf(key, 32, "%s", flag);
    for (char *dash = key; (dash = strchr(dash, '-')) != NULL;) *dash = '_';
    return key;
}

PRINTF_LIKE(3, 4) static inline void meta_add(Draft *draft, const char *key, const char *format, ...) {
    char *value;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&value, format, arguments) < 0) value = NULL;
    va_end(arguments);
    draft->failed = draft->failed || !value;
    draft->meta[draft->n_meta].key = meta_key(key, draft->keys[draft->n_meta]);
    draft->meta[draft->n_meta++].value = value;
}

static inline void draft_tensor(Draft *draft, const char *prefix, const char *name, StType type, int rank,
                                const int64_t *shape, const void *data) {
    char *whole;
    StTensor *grown = (StTensor *)realloc(draft->tensors, (size_t)(draft->n_tensors + 1) * sizeof *grown);
    if (grown) draft->tensors = grown;
    draft->failed = draft->failed || !grown || asprintf(&whole, "%s%s", prefix, name) < 0;
    if (!draft->failed) draft->tensors[draft->n_tensors++] = st_tensor(whole, type, rank, shape, data);
}

// The tensors of a flat array. The names of Adamax's averages have prefixes.
static inline void draft_params(Draft *draft, const ParamLayout *layout, const char *prefix, const real *flat) {
    for (int k = 0; k < layout->n; k++) {
        const ParamTensor *tensor = &layout->list[k];
        draft_tensor(draft, prefix, tensor->name, REAL_TYPE, tensor->rank, tensor->shape, flat + tensor->offset);
    }
}

// Writes the file, and frees all that is the draft's.
static inline bool draft_write(Draft *draft, const char *path, char *error) {
    bool ok = draft->failed ? atomic_fail(path, ENOMEM, error)
                            : st_write(path, draft->tensors, draft->n_tensors, draft->meta, draft->n_meta, error);
    for (int i = 0; i < draft->n_tensors; i++) free((void *)draft->tensors[i].name);
    for (int i = 0; i < draft->n_meta; i++) free((void *)draft->meta[i].value);
    free(draft->tensors);
    return ok;
}

// Begins a draft.
static inline void meta_common(const TrainRun *run, Draft *draft) {
    memset(draft, 0, sizeof *draft);
    meta_add(draft, "model", "%s", run->spec->name);
    meta_add(draft, "vocabulary", "%d", DATA_TOKENS);
    meta_add(draft, "version", "%s", MUSIC_VERSION);
    meta_add(draft, "step", "%lld", run->step);
}

// What a model has and a resume state keeps among its flags.
static inline void meta_model(const TrainRun *run, Draft *draft) {
    const ModelSpec *spec = run->spec;
    meta_common(run, draft);
    for (int i = 0; i < spec->n_sizes; i++) meta_add(draft, spec->size_flags[i].flag, "%d", run->config.sizes[i]);
    meta_add(draft, "seed", "%llu", (unsigned long long)run->config.seed);
}

static inline bool model_save(TrainRun *run, int64_t epoch, double train_loss, double test_loss) {
    Draft draft;
    meta_model(run, &draft);
    meta_add(&draft, "window", "%d", run->config.T);
    meta_add(&draft, "precision", "%s", run->config.precision);
    meta_add(&draft, "epoch", "%lld", (long long)epoch);
    meta_add(&draft, "train_loss", "%.17g", train_loss);
    meta_add(&draft, "test_loss", "%.17g", test_loss);
    const int weights = run->config.average > 0 ? STATE_AVERAGE : STATE_PARAMS;
    draft_params(&draft, &run->layout, "", run->spec->state(run->model, weights));
    return draft_write(&draft, run->model_path.text, run->error);
}

// Writes last.safetensors, everything that a bit-exact continuation needs. The time spent so far on an unfinished epoch
// is kept where the run is only interrupted, not where it ends: two runs that end alike have the same bytes. Then
// `ended` is the flag by which it did. A state that is not finite is no use to anybody: then the file stays as it is.
static inline bool last_save(TrainRun *run, bool interrupted) {
    const int last = last_state(&run->config);
    for (int k = STATE_PARAMS; k <= last; k++) {
        const ParamTensor *bad = params_not_finite(&run->layout, run->spec->state(run->model, k));
        if (!bad) continue;
        return fail(run->error, "%s: not saved: after step %lld tensor '%s' is not finite; try a smaller --lr",
                    run->last_path.text, run->step - 1, bad->name);
    }
    TextBuffer log = {NULL, 0, 0, false};
    for (int i = 0; i < run->n_rows; i++) {
        const LogRow *row = &run->rows[i];
        text_print(&log, "%lld,%lld,%.17g,%.17g,%.17g,%lld\n", row->epoch, row->step, row->train, row->test, row->lr,
                   row->steps);
    }
    Draft draft;
    meta_common(run, &draft);
    for (int k = STATE_PARAMS; k <= last; k++) {
        draft_params(&draft, &run->layout, state_prefixes[k], run->spec->state(run->model, k));
    }
    for (int i = 0; i < run->flags.n; i++) {
        const Flag *flag = &run->flags.list[i];
        char text[64];
        if (!flag->fixed && !flag->kept) continue;
        if (flag->kind == FLAG_NUMBER) {
            meta_add(&draft, flag->name, "%.17g", *(double *)flag->value);
        } else {
            meta_add(&draft, flag->name, "%s", flag_show(flag, text));
        }
    }
    char data[3 * PATH_MAX]; // which was opened, so that it is shorter
    name_escape(run->o.data, data);
    meta_add(&draft, "data", "%s", data);
    meta_add(&draft, "train_data", "%s", run->train_identity);
    meta_add(&draft, "test_data", "%s", run->test_identity);
    meta_add(&draft, "epoch", "%d", run->n_rows);
    meta_add(&draft, "loss_sum", "%.17g", run->loss_sum);
    meta_add(&draft, "log", "%.*s", (int)log.size, log.size ? log.bytes : "");
    draft.failed = draft.failed || log.failed;
    free(log.bytes);
    if (run->n_rows) {
        meta_add(&draft, "train_loss", "%.17g", run->rows[run->n_rows - 1].train);
        meta_add(&draft, "test_loss", "%.17g", run->rows[run->n_rows - 1].test);
    }
    if (run->best.step) {
        meta_add(&draft, "best_loss", "%.17g", run->best.test);
        meta_add(&draft, "best_epoch", "%lld", run->best.epoch);
        meta_add(&draft, "best_step", "%lld", run->best.step);
    }
    double now = seconds_now();
    const char *over = run_over(run);
    if (!over && run->o.steps && run->step >= run->o.steps) over = "steps";
    if (interrupted) meta_add(&draft, "seconds", "%.3f", run->seconds_before + now - run->resumed_at);
    if (!interrupted && over) meta_add(&draft, "ended", "%s", over);
    run->saved_at = now;
    run->unsaved = !draft_write(&draft, run->last_path.text, run->error);
    return !run->unsaved;
}

// A number out of the metadata, from 0 to max. Missing: false and a sentence.
static inline bool meta_read(TrainRun *run, const char *key, double max, long long *whole, double *number) {
    const char *text = st_meta(&run->weights, key);
    char *end = NULL;
    if (!text) return fail(run->error, "%s: it is no resume state: its metadata lack '%s'", run->weights_path, key);
    double value = strtod(text, &end);
    if (whole) *whole = strtoll(text, &end, 10);
    if (number) *number = value;
    if (isfinite(value) && value >= 0 && value <= max && end != text && !*end) return true;
    return fail(run->error, "%s: its metadata are damaged: '%s' is '%.40s'", run->weights_path, key, text);
}

static inline void texts_keep(TrainRun *run) { // the file's strings do not live as long
    if (run->config.precision != run->precision)
        snprintf(run->precision, sizeof run->precision, "%s", run->config.precision);
    if (run->o.recipe != run->recipe) snprintf(run->recipe, sizeof run->recipe, "%s", run->o.recipe);
    run->config.precision = run->precision;
    run->o.recipe = run->recipe;
}

// Flags that were added later, and what is true of states that lack them.
static const char *const added_flags[][2] = {
    {"recipe", "published"}, {"transpose", "0,0"}, {"warmup", "0"}, {"weight-decay", "0"}, {"average", "0"}};

// The saved text of a flag, or NULL.
static inline const char *flag_saved(const TrainRun *run, const Flag *flag) {
    char key[32];
    const char *text = st_meta(&run->weights, meta_key(flag->name, key));
    for (size_t i = 0; !text && i < sizeof added_flags / sizeof *added_flags; i++) {
        if (!strcmp(flag->name, added_flags[i][0])) text = added_flags[i][1];
    }
    return text;
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
        if (!flag->fixed && (!flag->kept || flag->given)) continue;
        char given[64], saved[64];
        const char *text = flag_saved(run, flag);
        if (!text && flag->kept) continue;
        if (!text) return fail(run->error, "%s: it is no resume state: its metadata lack --%s", path, flag->name);
        flag_show(flag, given);
        if (!flag_set(flag, text, run->error)) {
            return fail(run->error, "%s: its metadata are damaged, or of another build: --%s is '%.40s', and %s", path,
                        flag->name, text, run->error);
        }
        if (flag->given && strcmp(given, flag_show(flag, saved))) {
            const bool size = flag->value >= (void *)run->o.sizes && flag->value < (void *)(run->o.sizes + MAX_SIZES);
            run->status = 2;
            return fail(run->error,
                        "--%s %s: the run in %s has %s; leave the flag out to go on, or start anew %s%s%sin another "
                        "--out",
                        flag->name, given, run->o.out, saved, size ? "" : "from its weights, by --init ",
                        size ? "" : run->last_path.text, size ? "" : ", ");
        }
    }
    texts_keep(run);
    const char *data = st_meta(&run->weights, "data");
    if (!flag_find(&run->flags, "data")->given && data) {
        run->saved_data = path_join("", data);
        name_unescape(run->saved_data.text, run->saved_data.text);
        run->o.data = run->saved_data.text;
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

static inline bool rows_add(TrainRun *run, LogRow row) {
    // There is always room for one more, the row of an epoch that --steps ends early.
    LogRow *grown = (LogRow *)realloc(run->rows, ((size_t)run->n_rows + 2) * sizeof *grown);
    if (!grown) return fail(run->error, "out of memory for %d epochs", run->n_rows + 1);
    run->rows = grown;
    run->rows[run->n_rows++] = row;
    return true;
}

// After the model is made: counters, log and sums.
static inline bool resume_state(TrainRun *run) {
    const char *path = run->weights_path, *log = st_meta(&run->weights, "log");
    long long epochs = 0;
    if (!resume_data(run, "train_data", "train.safetensors", run->train_identity)) return false;
    if (!resume_data(run, "test_data", "test.safetensors", run->test_identity)) return false;
    if (!meta_read(run, "step", 1e15, &run->step, NULL) || !meta_read(run, "epoch", 1e9, &epochs, NULL)) return false;
    if (!meta_read(run, "loss_sum", HUGE_VAL, NULL, &run->loss_sum)) return false;
    for (const char *at = log; at && *at;) {
        LogRow row;
        int used = 0, fields = sscanf(at, "%lld,%lld,%lf,%lf,%lf,%lld%n", &row.epoch, &row.step, &row.train, &row.test,
                                      &row.lr, &row.steps, &used);
        if (fields != 6 || at[used] != '\n' || !isfinite(row.train + row.test + row.lr) ||
            row.epoch != run->n_rows + 1 || row.step != row.epoch * run->epoch_steps || row.steps != run->epoch_steps) {
            return fail(run->error, "%s: its metadata are damaged: row %d of 'log'", path, run->n_rows + 1);
        }
        row.seconds = -1;
        if (!rows_add(run, row)) return false;
        at += used + 1;
    }
    if (epochs != run->n_rows || run->step < epochs * run->epoch_steps || run->step > (epochs + 1) * run->epoch_steps) {
        return fail(run->error, "%s: its metadata are damaged: step %lld, epoch %lld and a log of %d rows do not agree",
                    path, run->step, epochs, run->n_rows);
    }
    if (st_meta(&run->weights, "best_step")) {
        if (!meta_read(run, "best_loss", HUGE_VAL, NULL, &run->best.test)) return false;
        if (!meta_read(run, "best_epoch", 1e9, &run->best.epoch, NULL)) return false;
        if (!meta_read(run, "best_step", 1e15, &run->best.step, NULL)) return false;
    }
    run->ended = st_meta(&run->weights, "ended") != NULL;
    if (st_meta(&run->weights, "seconds") && !meta_read(run, "seconds", 1e12, NULL, &run->seconds_before)) return false;
    return true;
}

// ---- an earlier run in the folder

// Makes `name` a hard link to the file `path`, in place of any file of that name, or does nothing where there is none.
static inline bool hard_link(const char *path, const char *name, char *error) {
    if (access(path, F_OK)) return true;
    unlink(name);
    if (!link(path, name) || !rename(path, name)) return true; // rename: there may be no links
    return fail(error, "%s: cannot be kept as %s: %s", path, name, strerror(errno));
}

// Undoes hard_link(run->model_path.text, run->previous_path.text): the new run has not begun.
static inline void previous_return(const TrainRun *run) {
    if (access(run->model_path.text, F_OK)) {
        rename(run->previous_path.text, run->model_path.text);
    } else {
        unlink(run->previous_path.text);
    }
}

// Gives the best model of an earlier run the first free one of its final names.
static inline bool previous_keep(TrainRun *run) {
    if (access(run->previous_path.text, F_OK)) return true;
    struct stat about;
    char name[64];
    Path path = path_join(run->o.out, "model.prev.safetensors");
    for (int n = 2; !lstat(path.text, &about); n++) {
        snprintf(name, sizeof name, "model.prev-%d.safetensors", n);
        path = path_join(run->o.out, name);
    }
    if (rename(run->previous_path.text, path.text)) {
        return fail(run->error, "%s: cannot be kept as %s: %s", run->previous_path.text, path.text, strerror(errno));
    }
    print_line(stderr, "%s: %s holds an earlier run; its best model is kept as %s", run->program, run->o.out,
               path.text);
    return true;
}

// Locks the --out folder, where there is one, until the program ends in whatever way. False, and a sentence, where
// another trainer has the lock.
static inline bool out_lock(TrainRun *run) {
    if (run->lock < 0) run->lock = open(run->o.out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (run->lock < 0 || !flock(run->lock, LOCK_EX | LOCK_NB)) return true;
    if (errno == EWOULDBLOCK) {
        return fail(run->error, "--out %s: another trainer is at work there; wait for its end, or give another --out",
                    run->o.out);
    }
    print_line(stderr, "%s: --out %s cannot be locked (%s); start no second trainer there", run->program, run->o.out,
               strerror(errno));
    return true;
}

// Takes the --out folder for this run. False, and a sentence, where another trainer is at work or, unless this run goes
// on with it, one has been stopped or killed.
static inline bool out_take(TrainRun *run) {
    StFile last;
    if (!out_lock(run)) return false;
    if (run->o.resume || access(run->last_path.text, F_OK)) return true;
    if (!st_read(&last, run->last_path.text, run->error)) {
        return fail(run->error, "%s; remove it, or give another --out", run->error);
    }
    const bool ended = st_meta(&last, "ended") != NULL; // states of older builds never say so
    st_free(&last);
    return ended || fail(run->error, "%s: its run has not ended; go on with --resume, or give another --out",
                         run->last_path.text);
}
