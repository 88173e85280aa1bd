// What a trainer reads with --init, and goes on from with --resume (recipe/checkpoint.h): any bytes are weights, a
// run's state, or a sentence. A state that was taken is saved, and what is saved is taken as the same run and saved
// again as the same bytes; its log gives a loss.svg that is well-formed.
//
// The file of a model defines SPEC, the members of its ModelSpec that say what it is, and includes this.
#ifndef FUZZ_STATE_H
#define FUZZ_STATE_H

#include "recipe/train.h"

#include "tensors.h"

static TrainRun run, fresh; // fresh: with the table of flags, whose values lie in run, before a command line

// ---- a model that is nothing but its flat arrays

static real *states[STATES]; // by STATE_*

static void *create(const ModelConfig *config, char *error) {
    (void)error;
    PROMISE((size_t)run.layout.count <= run.weights.size, "memory for %lld numbers of a file of %zu bytes",
            (long long)run.layout.count, run.weights.size);
    for (int i = STATE_PARAMS; i <= last_state(config); i++) {
        states[i] = malloc((size_t)run.layout.size * sizeof(real));
        if (!states[i]) abort();
    }
    return states;
}
static real *state_of(void *model, int which) { return ((real **)model)[which]; }
static void state_changed(void *model) { (void)model; }
static void set_data(void *model, const Dataset *train) { (void)model, (void)train; }
static void set_loss(void *model, double sum) { (void)model, (void)sum; }

static const ModelSpec spec = {SPEC,
                               .device = "cpu",
                               .precisions = "fp32|bf16",
                               .create = create,
                               .state = state_of,
                               .state_changed = state_changed,
                               .set_data = set_data,
                               .set_loss = set_loss};

// ---- runs

// As if the data were there that the state names, with epochs as long as its log says.
UNTRACED static void pretend_data(void) {
    const char *log = st_meta(&run.weights, "log"), *train = st_meta(&run.weights, "train_data"),
               *test = st_meta(&run.weights, "test_data");
    long long steps;
    run.epoch_steps = log && sscanf(log, "%*d,%lld", &steps) == 1 && steps > 0 && steps < 1000000 ? steps : 1000;
    run.eval_windows = 100;
    snprintf(run.train_identity, sizeof run.train_identity, "%s", train ? train : "");
    snprintf(run.test_identity, sizeof run.test_identity, "%s", test ? test : "");
}

// Opens the file for --resume or --init, as train_run does. given: beside flags that must agree.
UNTRACED static bool take(const char *path, bool resume, bool given) {
    ModelConfig *config = &run.config;
    char *argv[] = {(char *)"trainer", (char *)"--lr=0.001", (char *)"--layers=1"};
    const Path last_path = path_join("", path);
    run = fresh;
    if (given && !flags_parse(&run.flags, 3, argv, run.error)) return false;
    run.o.resume = resume;
    run.last_path = last_path;
    run.o.init = run.last_path.text;
    if (!weights_open(&run)) return false;
    for (int i = 0; i < spec.n_sizes; i++) config->sizes[i] = (int)run.o.sizes[i];
    config->B = (int)run.o.batch;
    config->T = (int)run.o.window;
    config->warmup = (double)run.o.warmup;
    if (!spec.check_sizes(config, run.error)) return false;
    spec.layout(config->sizes, &run.layout);
    pretend_data();
    return params_there(&run) && model_make(&run);
}

UNTRACED static void leave(void) {
    for (int i = STATE_PARAMS; i <= STATE_AVERAGE; i++) {
        free(states[i]);
        states[i] = NULL;
    }
    free(run.rows);
    layout_free(&run.layout);
    st_free(&run.weights);
}

// The bytes of the run's state as it is saved.
UNTRACED static void *saved(size_t *size) {
    void *bytes;
    run.last_path = path_join("", scratch_path("last.safetensors"));
    PROMISE(last_save(&run, false), "%s", run.error);
    PROMISE(read_file(run.last_path.text, &bytes, size, run.error), "%s", run.error);
    return bytes;
}

UNTRACED static void promise_curve(void) { // of its log, as loss.svg
    void *svg;
    size_t size;
    run.svg_path = path_join("", scratch_path("loss.svg"));
    run.log_path = path_join("", scratch_path("log.csv"));
    PROMISE(reports_write(&run, run.n_rows), "%s", run.error);
    PROMISE(!run.n_rows || read_file(run.svg_path.text, &svg, &size, run.error), "%s", run.error);
    if (run.n_rows) promise_xml(svg, size, "");
    if (run.n_rows) free(svg);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    run.spec = &spec;
    run.program = "trainer";
    flags_define(&run);
    fresh = run;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    size_t n_first, n_second;
    const bool resume = memmem(input, size, "loss_sum", 8) != NULL, given = size % 4 == 3;
    if (!take(file_of(input, size), resume, given)) {
        promise_sentence(run.error);
        leave();
        return 0;
    }
    planted(states[STATE_PARAMS], (size_t)run.layout.size * sizeof(real));
    if (resume) {
        void *first = saved(&n_first);
        const TrainRun was = run;
        promise_curve();
        leave();
        PROMISE(take(run.last_path.text, true, given), "a state that was saved is not taken: %s", run.error);
        PROMISE(run.step == was.step && run.n_rows == was.n_rows && run.loss_sum == was.loss_sum, "another run");
        void *second = saved(&n_second);
        PROMISE(n_first == n_second && !memcmp(first, second, n_first), "saved with other bytes");
        free(first);
        free(second);
    }
    leave();
    return 0;
}

#endif
