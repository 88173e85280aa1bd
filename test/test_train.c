// dev/recipe/train.h, independently of the real models: a stand-in, a bigram model of low rank with dropout and Adamax,
// runs through the whole recipe. Above all: a run that is killed anywhere, between any two file operations, in any step
// and in any evaluation batch, and then resumed, ends with the same files as one that was never killed.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define fsync(file) 0 // hundreds of runs would wait for the disk; what a killed process has written is safe without it

// Stands for rename in everything below, to die just before or just after a file takes its place, or to fail.
static int killing_rename(const char *from, const char *to);
#define rename killing_rename

// A file system may have neither hard links nor locks.
static bool no_links, no_locks;
static int link_if_any(const char *from, const char *to) { return no_links ? errno = EPERM, -1 : link(from, to); }
static int flock_if_any(int file, int how) { return no_locks ? errno = ENOLCK, -1 : flock(file, how); }
#define link link_if_any
#define flock flock_if_any

// There may be no memory for a text, told by how it begins.
#include "base/text.h"
static const char *no_text;
PRINTF_LIKE(2, 3) static void text_if_any(TextBuffer *buffer, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    text_print(buffer, "%s", text);
    if (no_text && !strncmp(text, no_text, strlen(no_text))) buffer->failed = true;
}
#define text_print text_if_any

static double save_seconds = 300, progress_seconds = 10;
#define SAVE_SECONDS save_seconds
#define PROGRESS_SECONDS progress_seconds
#include "recipe/train.h"
#undef rename
#undef link
#undef flock
#undef text_print

#include "check.h"

// ---- the moments at which a run is made to die; 0 or -1: never

static int kill_before_rename, kill_after_rename, fail_rename, renames;
static int64_t kill_in_step = -1, stop_in_step = -1, poison_step = -1;
static int stop_signal = SIGTERM, stop_signals = 1; // which, and how often
static int kill_in_batch, stop_in_batch, batches;   // of the evaluation, counted from 1
static bool poison_test;

static int killing_rename(const char *from, const char *to) {
    if (++renames == kill_before_rename) raise(SIGKILL);
    if (renames == fail_rename) return errno = EACCES, -1;
    int result = rename(from, to);
    if (renames == kill_after_rename) raise(SIGKILL);
    return result;
}

// ---- the stand-in: logits[t] = out.weight dropout(emb.weight[x_t]) + out.bias

enum { V = DATA_TOKENS, MAX_RANK = 32 };

typedef struct {
    ModelConfig config;
    ParamLayout layout;
    real *state[STATES]; // STATE_PARAMS, ...
    const Dataset *data;
    double loss_sum;
    int64_t bad_step;
    real *logits, *hidden; // (B,T,V), (B,T,R)
} Bigram;

static const SizeFlag bigram_sizes[] = {{"rank", "width of the embedding", 4, 1, MAX_RANK}};

static bool bigram_check(const ModelConfig *config, char *error) {
    return config->sizes[0] != 13 ? true : fail(error, "--rank 13: an unlucky number; take another");
}

static void bigram_layout(const int *sizes, ParamLayout *out) {
    param_add(out, INIT_NORMAL, 1, 2, V, sizes[0], "emb.weight");
    param_add(out, INIT_UNIFORM, 1 / sqrt(sizes[0]), 2, V, sizes[0], "out.weight");
    param_add(out, INIT_FILL, 0.25, 1, V, 1, "out.%s", "bias");
}

static bool bigram_sizes_of_file(const StFile *file, int *sizes, char *error) {
    const StTensor *emb = st_find(file, "emb.weight");
    if (!emb || emb->rank != 2 || emb->shape[1] < 1 || emb->shape[1] > MAX_RANK) {
        return fail(error, "tensor 'emb.weight' of a bigram model is missing or misshaped");
    }
    sizes[0] = (int)emb->shape[1];
    return true;
}

static double bigram_flops(const ModelConfig *config) { return 6.0 * config->B * config->T * V * config->sizes[0]; }

static void *bigram_create(const ModelConfig *config, char *error) {
    Bigram *m = (Bigram *)calloc(1, sizeof *m);
    if (!m) abort();
    m->config = *config;
    m->bad_step = -1;
    bigram_layout(config->sizes, &m->layout);
    double positions = (double)config->B * config->T;
    for (int i = 0; i < STATES; i++) {
        m->state[i] = (real *)allocate("the model", (double)m->layout.size, sizeof(real), error);
        if (!m->state[i]) return NULL;
    }
    m->logits = (real *)allocate("the logits", positions * V, sizeof(real), error);
    m->hidden = (real *)allocate("the hidden vectors", positions * config->sizes[0], sizeof(real), error);
    return m->logits && m->hidden ? m : NULL;
}

static void bigram_destroy(void *model) {
    Bigram *m = (Bigram *)model;
    for (int i = 0; i < STATES; i++) free(m->state[i]);
    free(m->logits);
    free(m->hidden);
    layout_free(&m->layout);
    free(m);
}

static real *bigram_state(void *model, int which) { return ((Bigram *)model)->state[which]; }
static void bigram_state_changed(void *model) { (void)model; }
static void bigram_set_data(void *model, const Dataset *train) { ((Bigram *)model)->data = train; }

static TrainLoss bigram_get_loss(void *model) {
    TrainLoss loss;
    loss.sum = ((Bigram *)model)->loss_sum;
    loss.bad_step = ((Bigram *)model)->bad_step;
    return loss;
}

static void bigram_set_loss(void *model, double sum) {
    ((Bigram *)model)->loss_sum = sum;
    ((Bigram *)model)->bad_step = -1;
}

// The loss at row `at`, input x and target y; with dropout where keep is set. Leaves probabilities in logits' place
// only for the gradient.
static double bigram_row(Bigram *m, int64_t at, int x, int y, const bool *keep, real *grads) {
    const int R = m->config.sizes[0];
    const real *emb = m->state[STATE_PARAMS] + m->layout.list[0].offset + x * R;
    const real *out = m->state[STATE_PARAMS] + m->layout.list[1].offset;
    const real *bias = m->state[STATE_PARAMS] + m->layout.list[2].offset;
    real *h = m->hidden + at * R, *logits = m->logits + at * V, scale = (real)(1 / (1 - m->config.dropout));
    double high = -1e300, sum = 0;
    for (int r = 0; r < R; r++) h[r] = !keep ? emb[r] : keep[r] ? emb[r] * scale : 0;
    for (int v = 0; v < V; v++) {
        real logit = bias[v];
        for (int r = 0; r < R; r++) logit += out[v * R + r] * h[r];
        logits[v] = logit;
        if ((double)logit > high) high = (double)logit;
    }
    for (int v = 0; v < V; v++) sum += exp((double)logits[v] - high);
    double loss = high + log(sum) - (double)logits[y];
    for (int v = 0; v < V && grads; v++) {
        real d = (real)((exp((double)logits[v] - high) / sum - (v == y)) / m->config.B / m->config.T);
        grads[m->layout.list[2].offset + v] += d;
        for (int r = 0; r < R; r++) {
            grads[m->layout.list[1].offset + v * R + r] += d * h[r];
            if (!keep || keep[r])
                grads[m->layout.list[0].offset + x * R + r] += d * out[v * R + r] * (keep ? scale : 1);
        }
    }
    return loss;
}

static double bigram_gradients(void *model, const StepPlan *plan) {
    Bigram *m = (Bigram *)model;
    const int B = m->config.B, T = m->config.T, R = m->config.sizes[0];
    int64_t starts[64];
    double loss = 0;
    PhiloxKey key = philox_key(m->config.seed, PHILOX_DROPOUT, 0);
    memset(m->state[STATE_GRADS], 0, (size_t)m->layout.size * sizeof(real));
    epoch_batch(m->data, m->config.seed, plan->epoch, plan->index, B, starts);
    for (int b = 0; b < B; b++) {
        for (int t = 0; t < T; t++) {
            bool keep[MAX_RANK];
            for (int r = 0; r < R; r++) {
                uint32_t word = philox(key, (uint32_t)r / 4, (uint32_t)t, (uint32_t)b, (uint32_t)plan->step).x[r % 4];
                keep[r] = word >= (uint32_t)(m->config.dropout * 4294967296.0);
            }
            const uint8_t *x = m->data->tokens + starts[b] + t;
            loss += bigram_row(m, b * T + t, x[0], x[1], keep, m->state[STATE_GRADS]);
        }
    }
    loss /= B * T;
    if (plan->step != poison_step) return loss;
    m->hidden[1] = NAN;
    return NAN;
}

static void bigram_train_step(void *model, const StepPlan *plan) {
    Bigram *m = (Bigram *)model;
    if (plan->step == kill_in_step) raise(SIGKILL);
    for (int i = 0; plan->step == stop_in_step && i < stop_signals; i++) raise(stop_signal);
    if (m->bad_step >= 0) return;
    double loss = bigram_gradients(m, plan);
    if (!isfinite(loss)) {
        m->bad_step = plan->step;
        return;
    }
    double rate = plan->lr / (1 - pow(0.9, (double)plan->step + 1));
    for (int64_t i = 0; i < m->layout.size; i++) {
        real g = m->state[STATE_GRADS][i], *avg = &m->state[STATE_EXP_AVG][i], *inf = &m->state[STATE_EXP_INF][i];
        *avg += (real)0.1 * (g - *avg);
        *inf = (real)fmax(0.999 * (double)*inf, fabs((double)g) + 1e-8);
        m->state[STATE_PARAMS][i] -= (real)(rate * (double)*avg / (double)*inf);
    }
    m->loss_sum += loss;
}

static void bigram_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Bigram *m = (Bigram *)model;
    if (++batches == kill_in_batch) raise(SIGKILL);
    if (batches == stop_in_batch) raise(SIGINT);
    for (int b = 0; b < n; b++) {
        for (int t = 0; t < m->config.T; t++) {
            const uint8_t *x = test->tokens + starts[b] + t;
            int kind = x[1] == 0 ? 0 : x[1] < 33 ? 1 : x[1] < 121 ? 2 : 3;
            add->sum[kind] += poison_test ? HUGE_VAL : bigram_row(m, 0, x[0], x[1], NULL, NULL);
            add->count[kind]++;
        }
    }
}

static int bigram_activations(void *model, Activation *list) {
    Bigram *m = (Bigram *)model;
    for (int i = 0; i < 2 && list; i++) {
        snprintf(list[i].name, sizeof list[i].name, "%s", i ? "logits" : "act.hidden");
        list[i].rank = 3;
        list[i].shape[0] = m->config.B;
        list[i].shape[1] = m->config.T;
        list[i].shape[2] = i ? V : m->config.sizes[0];
        list[i].data = i ? m->logits : m->hidden;
    }
    return 2;
}

static const char *const bigram_tuned[][2] = {{"lr", "0.03"}, {"dropout", "0.2"}, {"epochs", "3"}, {NULL, NULL}};

static ModelSpec bigram_spec(void) {
    ModelSpec s;
    memset(&s, 0, sizeof s);
    s.name = "bigram";
    s.device = "cpu";
    s.precisions = "fp32|bf16";
    s.size_flags = bigram_sizes;
    s.n_sizes = 1;
    s.lr = 0.02;
    s.lr_decay = 1;
    s.tuned = bigram_tuned;
    s.check_sizes = bigram_check;
    s.layout = bigram_layout;
    s.sizes_of_file = bigram_sizes_of_file;
    s.step_flops = bigram_flops;
    s.create = bigram_create;
    s.destroy = bigram_destroy;
    s.state = bigram_state;
    s.state_changed = bigram_state_changed;
    s.set_data = bigram_set_data;
    s.train_step = bigram_train_step;
    s.get_loss = bigram_get_loss;
    s.set_loss = bigram_set_loss;
    s.eval_batch = bigram_eval_batch;
    s.gradients = bigram_gradients;
    s.activations = bigram_activations;
    return s;
}

// ---- tools of the tests

static char scratch[200], error[ERROR_SIZE];
static long file_limit; // bytes a file of the trainer may have; 0: any
static bool no_readers; // of its stdout and stderr

static void never_kill(void) {
    kill_before_rename = kill_after_rename = fail_rename = kill_in_batch = stop_in_batch = 0;
    kill_in_step = stop_in_step = poison_step = -1;
    stop_signal = SIGTERM;
    stop_signals = 1;
    poison_test = no_links = no_locks = no_readers = false;
    no_text = NULL;
}

static char *read_text(const char *format, const char *name) { // malloc; "" if there is none
    char path[512], ignored[ERROR_SIZE];
    void *bytes;
    size_t size;
    snprintf(path, sizeof path, format, scratch, name);
    if (!read_file(path, &bytes, &size, ignored)) bytes = calloc(1, 1);
    return (char *)bytes;
}

// Starts the trainer in a process of its own with these flags, separated by blanks; @ stands for the scratch folder.
// What it writes goes to scratch/stdout and scratch/stderr.
static pid_t trainer_start(const char *flags) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        static char text[2048], path[256], name[] = "./train_bigram";
        char *arguments[64] = {name};
        int n = 1, used = 0;
        for (const char *c = flags; *c; c++) {
            if (*c == '@') {
                used += snprintf(text + used, sizeof text - (size_t)used, "%s", scratch);
            } else {
                text[used++] = *c;
            }
        }
        for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) arguments[n++] = word;
        snprintf(path, sizeof path, "%s/stdout", scratch);
        if (!freopen(path, "w", stdout)) _exit(99);
        snprintf(path, sizeof path, "%s/stderr", scratch);
        if (!freopen(path, "w", stderr)) _exit(99);
        int ends[2];
        if (no_readers && (pipe(ends) || close(ends[0]) || dup2(ends[1], 1) < 0 || dup2(ends[1], 2) < 0)) _exit(99);
        struct rlimit limit;
        limit.rlim_cur = limit.rlim_max = (rlim_t)file_limit;
        if (file_limit) setrlimit(RLIMIT_FSIZE, &limit);
        ModelSpec spec = bigram_spec();
        renames = batches = 0;
        int status = train_main(n, arguments, &spec);
        fflush(NULL);
        _exit(status);
    }
    return child;
}

// Runs it, with seconds > 0 until it is killed after that time. Returns its exit status, or 128 + what signal ended it.
static int trainer_for(double seconds, const char *flags) {
    const pid_t child = trainer_start(flags);
    if (seconds > 0) {
        usleep((useconds_t)(1e6 * seconds));
        kill(child, SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int trainer(const char *flags) { return trainer_for(0, flags); }

static bool said(const char *where, const char *what) { // in "stdout" or "stderr"
    char *text = read_text("%s/%s", where);
    bool found = strstr(text, what) != NULL;
    if (!found) printf("%s is:\n%s\n", where, text);
    free(text);
    return found;
}

static void shell(const char *format, ...) {
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    if (system(command)) printf("failed: %s\n", command);
}

static int exit_status(const char *command) {
    const int status = system(command); // the macros may want its address
    return WEXITSTATUS(status);
}

// Both folders hold the same files with the same bytes, but for the last column of log.csv.
static bool same_results(const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && for f in %s %s; do (cd $f && ls && cut -d, -f1-6 log.csv && cat model.safetensors "
             "last.safetensors loss.svg) > $f.sum || exit 1; done; cmp %s.sum %s.sum",
             scratch, a, b, a, b);
    return system(command) == 0;
}

static int64_t last_step(const char *folder) { // in its log.csv
    char name[64];
    snprintf(name, sizeof name, "%s/log.csv", folder);
    char *text = read_text("%s/%s", name), *row = text;
    long long step = 0;
    for (char *next = row; *next; next = strchr(row, '\n') + 1) row = next;
    sscanf(row, "%*d,%lld", &step);
    free(text);
    return step;
}

static void make_data(const char *folder, int tokens, unsigned random) {
    char path[512];
    uint8_t list[4000];
    int64_t pieces[] = {0, tokens / 3, tokens / 3 + 5, tokens};
    for (int i = 0; i < tokens; i++) { // most tokens follow from the one before
        random = random * 1664525 + 1013904223;
        list[i] = (uint8_t)(i && random >> 28 ? (list[i - 1] * 7 + 3 + (random >> 24 & 1)) % V : (random >> 16) % V);
    }
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/train.safetensors", folder);
    CHECK(dataset_save(path, list, tokens, pieces, 3, "a\nb\nc\n", error), "%s", error);
    pieces[1] = 40, pieces[2] = 45, pieces[3] = 90;
    snprintf(path, sizeof path, "%s/test.safetensors", folder);
    CHECK(dataset_save(path, list, 90, pieces, 3, "d\ne\nf\n", error), "%s", error);
}

// ---- the tests

static void test_parameters(void) {
    ParamLayout layout;
    memset(&layout, 0, sizeof layout);
    int sizes[] = {5};
    bigram_layout(sizes, &layout);
    CHECK(layout.n == 3 && layout.count == V * 5 + V * 5 + V, "%lld parameters", (long long)layout.count);
    CHECK(!strcmp(layout.list[2].name, "out.bias"), "%s", layout.list[2].name);
    real *a = (real *)calloc((size_t)layout.size, sizeof *a), *b = (real *)calloc((size_t)layout.size, sizeof *b);
    params_init(&layout, 1, a);
    params_init(&layout, 2, b);
    double sum = 0, squares = 0, widest = 0;
    for (int k = 0; k < 3; k++) {
        CHECK(layout.list[k].offset % 16 == 0, "tensor %d starts at %lld", k, (long long)layout.list[k].offset);
    }
    for (int i = 0; i < V * 5; i++) {
        sum += (double)a[i] / (V * 5);
        squares += (double)a[i] * (double)a[i] / (V * 5);
        raise_to(&widest, fabs((double)a[layout.list[1].offset + i]));
    }
    CHECK(fabs(sum) < 0.15 && fabs(squares - 1) < 0.2, "N(0,1) has mean %g and variance %g", sum, squares);
    CHECK(widest <= 1 / sqrt(5) && widest > 0.43, "the uniform's bound is %g", widest);
    CHECK(a[layout.list[2].offset + V - 1] == (real)0.25, "the filled tensor");
    CHECK(a[layout.list[2].offset + V] == 0, "padding is zero");
    CHECK(memcmp(a, b, 64) != 0, "another seed, other weights");
    // The first element by hand: the stream of tensor 1, its element 7.
    Philox4 words = philox(philox_key(1, PHILOX_INIT, 1), 7, 0, 0, 0);
    double expected = (2 * philox_uniform(words.x[0], words.x[1]) - 1) / sqrt(5);
    CHECK(a[layout.list[1].offset + 7] == (real)expected, "element 7 of tensor 1");
    free(a);
    free(b);
    layout_free(&layout);
    CHECK(!allocate("the moon", 1e18, 4, error) && strstr(error, "the moon would take 4e+09 GB"), "%s", error);
    void *memory = allocate("a little", 10, 4, error);
    CHECK(memory && (uintptr_t)memory % 64 == 0 && !*(char *)memory, "allocate");
    free(memory);
}

static void test_texts(void) {
    char text[32];
    CHECK(!strcmp(thousands(text, 4326041), "4,326,041"), "%s", text);
    CHECK(!strcmp(four_digits(text, 10230.4), "10230") && !strcmp(four_digits(text, 9999.7), "10000"), "%s", text);
    CHECK(!strcmp(four_digits(text, 9999.4), "9999") && !strcmp(four_digits(text, 28.3456), "28.35"), "%s", text);
    CHECK(!strcmp(thousands(text, 100), "100"), "%s", text);
    CHECK(!strcmp(thousands(text, -1234567), "-1,234,567"), "%s", text);
    CHECK(!strcmp(thousands(text, -123), "-123"), "%s", text);
    CHECK(!strcmp(duration_text(text, 59.6), "1:00"), "%s", text);
    CHECK(!strcmp(duration_text(text, 3723), "1:02:03"), "%s", text);
    CHECK(nice_step(10, 10) == 1 && nice_step(9, 5) == 2 && fabs(nice_step(0.05, 6) - 0.01) < 1e-12, "nice_step");
}

static void test_usage(void) {
    static const char *const wrong[][2] = {
        {"--batch 0", "--batch 0: it must be a whole number from 1"},
        {"--batch -3", "--batch -3:"},
        {"--batch 1e2", "--batch 1e2:"},
        {"--batch", "--batch: its value is missing; write --batch N"},
        {"--batch=", "--batch :"},
        {"--steps 1x", "--steps 1x: it must be a whole number"},
        {"--steps 99999999999999999999", "--steps 99999999999999999999:"},
        {"--lr nan", "--lr nan: it must be a finite number above 0"},
        {"--lr inf", "--lr inf: it must be a finite number above 0"},
        {"--lr 0", "--lr 0:"},
        {"--lr 0x1", "--lr 0x1:"},
        {"--lr 1e999", "--lr 1e999:"},
        {"--lr-decay 1.5", "at most 1"},
        {"--dropout 1", "--dropout 1: it must be a number of at least 0 and below 1"},
        {"--epoch-size 0", "--epoch-size 0:"},
        {"--seed -1", "--seed -1:"},
        {"--rank 33", "--rank 33: it must be a whole number from 1 to 32"},
        {"--rank 13", "an unlucky number"},
        {"--precision fp", "--precision fp: this build knows fp32|bf16"},
        {"--nothinglikeit", "--nothinglikeit: there is no such flag; --help lists them all"},
        {"--eval=1", "--eval: it takes no value"},
        {"song.mid", "'song.mid': flags start with --"},
        {"--", "'--': flags start with --"},
        {"--resume --init x", "--init and --resume exclude each other"},
        {"--eval --bench 3", "exclude each other"},
        {"--dump x --eval", "--dump excludes"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char flags[128];
        snprintf(flags, sizeof flags, "--data @/data --out @/never %s", wrong[i][0]);
        int status = trainer(flags);
        CHECK(status == 2 && said("stderr", wrong[i][1]) && said("stderr", "train_bigram: "), "%s: exit status %d",
              wrong[i][0], status);
    }
    CHECK(trainer("--help") == 0 && said("stdout", "--eval-stride N") && said("stdout", "[0.02]"), "--help");
    CHECK(trainer("--version") == 0 && said("stdout", "train_bigram " MUSIC_VERSION "\n"), "--version");
    char *never = read_text("%s/%s", "never/last.safetensors");
    CHECK(!*never, "wrong usage has written something");
    free(never);
}

#define PATIENT "--data @/data --batch 4 --window 8 --epoch-size 0.5 --lr 0.3 --patience 2 "
#define RUN "--data @/data --batch 4 --window 8 --epoch-size 0.1 --epochs 4 --eval-stride 2 "

static void test_run(void) {
    CHECK(trainer(RUN "--out @/whole --lr-decay 0.8 --lr-min 0.0105") == 0, "a whole run");
    CHECK(said("stdout", "bigram, 1,377 parameters: rank 4; fp32 on cpu"), "the first line");
    char *table = read_text("%s/%s", "whole/log.csv"), *out = read_text("%s/%s", "stdout"),
         *line = strstr(out, "epoch 1  ");
    double train1 = 0, test1 = 0, lr = 0, seconds = -1;
    int steps = 0, used = 0;
    CHECK(line &&
              sscanf(line, "epoch 1  train %lf  test %lf  lr %lf  steps %d  %lf s%n", &train1, &test1, &lr, &steps,
                     &seconds, &used) == 5 &&
              line[used] == '\n',
          "the line of epoch 1 in\n%s", out);
    CHECK(fabs(train1 - log((double)V)) < 1.5 && lr == 0.02 && steps > 5 && seconds >= 0, "its values: %s", line);
    long long epoch, step, count;
    double train, test, rate, best = 1e9, last = 0;
    char *row = strchr(table, '\n');
    static const double rates[] = {0.02, 0.016, 0.0128, 0.0105};
    CHECK(!strncmp(table, "epoch,step,train_loss,test_loss,lr,steps,seconds\n", 49), "the head of log.csv:\n%s", table);
    for (int i = 0; i < 4 && row; i++, row = strchr(row + 1, '\n')) {
        int fields =
            sscanf(row, "\n%lld,%lld,%lf,%lf,%lf,%lld,%lf", &epoch, &step, &train, &test, &rate, &count, &seconds);
        CHECK(fields == 7 && epoch == i + 1 && step == epoch * steps && count == steps, "row %d of\n%s", i + 1, table);
        CHECK(fabs(rate - rates[i]) < 1e-9, "the learning rate of epoch %d is %g", i + 1, rate);
        best = fmin(best, test);
        last = test;
    }
    CHECK(row && !row[1], "log.csv has four rows:\n%s", table);
    CHECK(last < test1 - 0.1, "the test loss falls: %g, %g", test1, last);
    StFile model;
    char path[512];
    snprintf(path, sizeof path, "%s/whole/model.safetensors", scratch);
    CHECK(st_read(&model, path, error), "%s", error);
    CHECK(model.n_tensors == 3 && !strcmp(st_meta(&model, "model"), "bigram") &&
              !strcmp(st_meta(&model, "rank"), "4") && !strcmp(st_meta(&model, "window"), "8") &&
              !strcmp(st_meta(&model, "vocabulary"), "153") && !strcmp(st_meta(&model, "epoch"), "4") &&
              !strcmp(st_meta(&model, "seed"), "1"),
          "the metadata of model.safetensors");
    CHECK(fabs(strtod(st_meta(&model, "test_loss"), NULL) - best) < 1e-8, "its test loss is the best");
    const StTensor *bias = st_find(&model, "out.bias");
    CHECK(bias && bias->rank == 1 && bias->type == REAL_TYPE && bias->shape[0] == V, "out.bias");
    st_free(&model);
    snprintf(path, sizeof path, "%s/whole/last.safetensors", scratch);
    CHECK(st_read(&model, path, error), "%s", error);
    CHECK(model.n_tensors == 9 && st_find(&model, "adamax.exp_avg.out.bias") &&
              st_find(&model, "adamax.exp_inf.emb.weight"),
          "the tensors of last.safetensors");
    st_free(&model);
    char *svg = read_text("%s/%s", "whole/loss.svg");
    CHECK(!strncmp(svg, "<svg", 4) && strstr(svg, "</svg>") && strstr(svg, "best test loss") &&
              strstr(svg, "loss (nats per token)") && strstr(svg, ">epoch ("),
          "loss.svg:\n%s", svg);
    free(svg);
    free(table);
    free(out);
    // Evaluating the best model again gives its test loss, to the last of seven digits.
    char expected[64];
    CHECK(trainer("--data @/data --out @/whole --batch 4 --eval --eval-stride 2") == 0, "--eval");
    snprintf(expected, sizeof expected, "eval loss=%#.7g windows=", best);
    CHECK(said("stdout", expected) && said("stdout", "pitch "), "--eval says %s", expected);
    // Patience: learning too fast, the test loss soon rises.
    CHECK(trainer(PATIENT "--out @/patient") == 0, "its status or its words");
    table = read_text("%s/%s", "patient/log.csv");
    int rows = -1, best_row = 0;
    best = 1e9;
    for (row = table; *row; row = strchr(row, '\n') + 1, rows++) {
        if (sscanf(row, "%*d,%*d,%*f,%lf", &test) == 1 && test < best) best = test, best_row = rows + 1;
    }
    CHECK(rows < 50 && rows == best_row + 2, "%d epochs, the best was %d", rows, best_row);
    free(table);
}

static bool same_file(const char *a, const char *b) {
    char command[512];
    snprintf(command, sizeof command, "cd %s && cmp -s %s %s", scratch, a, b);
    return system(command) == 0;
}

static bool same_folders(const char *a, const char *b) { // every byte of every file
    char command[512];
    snprintf(command, sizeof command, "cd %s && diff -r %s %s", scratch, a, b);
    return system(command) == 0;
}

// A new run in a used folder keeps the best model of the earlier ones.
static void test_used_folder(void) {
    static const char again[] = RUN "--out @/used --seed 2";
    static const char kept[] = "used/model.prev.safetensors", earlier[] = "whole/model.safetensors";
    shell("cd %s && cp -r whole used", scratch);
    CHECK(trainer(again) == 0 && said("stderr", "model.prev.safetensors"), "its status or its words");
    CHECK(same_file(kept, earlier), "the earlier best is not model.prev.safetensors");
    CHECK(!same_file("used/model.safetensors", earlier), "another seed gave the same model");
    // Whatever has the next name already is nobody's to replace.
    shell("cd %s/used && cp model.safetensors ../second && ln -s nothing model.prev-2.safetensors", scratch);
    CHECK(trainer(RUN "--out @/used --seed 3") == 0 && said("stderr", "model.prev-3.safetensors"), "the third run");
    shell("cd %s/used && cp model.safetensors ../third", scratch);
    CHECK(trainer(RUN "--out @/used --seed 4") == 0 && said("stderr", "model.prev-4.safetensors"), "the fourth run");
    CHECK(same_file(kept, earlier) && same_file("used/model.prev-3.safetensors", "second") &&
              same_file("used/model.prev-4.safetensors", "third") && !same_file("used/model.safetensors", "third"),
          "a kept model was replaced");
    // Killed when its first state is saved, before the second name is final.
    shell("cd %s && rm -r used && cp -r whole used", scratch);
    kill_after_rename = 1;
    CHECK(trainer(again) == 137, "the kill");
    never_kill();
    CHECK(trainer(RUN "--out @/used --seed 2 --resume") == 0, "going on");
    CHECK(same_file(kept, earlier), "the earlier best is lost when the new run is killed early");
    // The final name cannot be given: nothing is lost.
    shell("cd %s && rm -r used && cp -r whole used", scratch);
    fail_rename = 2;
    CHECK(trainer(again) == 1 && said("stderr", "model.prev.safetensors: Permission denied"), "a failed rename");
    never_kill();
    CHECK(trainer(RUN "--out @/used --seed 2 --resume") == 0 && same_file(kept, earlier), "after a failed rename");
    // Killed before its first state is saved, with and without hard links: the earlier run can go on, and a new one
    // keeps its best model.
    for (int linked = 0; linked < 2; linked++) {
        for (int resumed = 0; resumed < 2; resumed++) {
            shell("cd %s && rm -r used && cp -r whole used", scratch);
            no_links = !linked;
            kill_before_rename = linked ? 1 : 2;
            CHECK(trainer(again) == 137, "the kill");
            kill_before_rename = 0;
            if (resumed) {
                CHECK(trainer("--out @/used --resume --epochs 4") == 0 && same_results("used", "whole"), "going on");
            } else {
                CHECK(trainer(again) == 0 && same_file(kept, earlier), "starting again");
            }
            never_kill();
        }
    }
}

// --recipe tuned is a name for its flags; one that is given wins. A state keeps it, and when the run ends.
static void test_recipe(void) {
#define TUNED "--data @/data --batch 4 --window 8 --epoch-size 0.1 --eval-stride 2 --dropout 0.1 "
    CHECK(trainer(TUNED "--out @/recipe --recipe tuned") == 0 &&
              trainer(TUNED "--out @/flags --lr 0.03 --epochs 3") == 0,
          "tuned, and by its flags");
    CHECK(same_file("recipe/model.safetensors", "flags/model.safetensors"), "another model than by its flags");
    CHECK(trainer("--out @/recipe --resume") == 0 && said("stdout", "nothing was left to do"), "3 epochs are enough");
    CHECK(trainer("--out @/recipe --resume --recipe published") == 2 &&
              said("stderr", "--recipe published: the run in"),
          "another recipe");
    CHECK(trainer("--out @/recipe --resume --recipe tuned --epochs 4") == 0 && said("stdout", "epoch 4"), "one more");
    CHECK(trainer(TUNED "--out @/recipe --recipe best") == 2 && said("stderr", "this build knows published|tuned"),
          "a recipe that is none");
}

static void resume_and_compare(const char *flags, const char *what, int n) {
    char command[512];
    never_kill();
    snprintf(command, sizeof command, RUN "--out @/killed %s", flags);
    char path[256];
    snprintf(path, sizeof path, "%s/killed/last.safetensors", scratch);
    bool begun = access(path, F_OK) == 0;
    if (begun) strcat(command, " --resume");
    int status = trainer(command);
    CHECK(status == 0, "%s %d: resuming ends with %d", what, n, status);
    if (status) said("stderr", "(nothing)");
    CHECK(same_results("unbroken", "killed"), "%s %d: the resumed run has other bytes", what, n);
}

// Killed at every single place where the state of the disk or of the run can differ; with AddressSanitizer at some.
static void test_kills(void) {
    const int stride = check_brief() ? 4 : 1;
    CHECK(trainer(RUN "--out @/unbroken") == 0, "its status or its words");
    char *log = read_text("%s/%s", "unbroken/log.csv");
    int steps = 0;
    sscanf(strchr(log, '\n'), "\n%*d,%d", &steps);
    free(log);
    int died = 137;
    for (int where = 0; where < 2; where++) {
        for (int n = 1;; n += stride) {
            shell("rm -rf %s/killed", scratch);
            never_kill();
            *(where ? &kill_after_rename : &kill_before_rename) = n;
            died = trainer(RUN "--out @/killed");
            if (died != 137) {
                CHECK(n > 12, "only %d files were renamed", n - 1);
                break;
            }
            resume_and_compare("", where ? "killed after file" : "killed before file", n);
        }
    }
    for (int64_t step = 0; step < 4 * steps; step += 3 * stride) {
        shell("rm -rf %s/killed", scratch);
        never_kill();
        kill_in_step = step;
        save_seconds = progress_seconds = step % 2 ? 0 : 300; // saved after every step, or only after epochs
        CHECK(trainer(RUN "--out @/killed") == 137, "step %lld", (long long)step);
        resume_and_compare("", "killed in step", (int)step);
        shell("rm -rf %s/killed", scratch);
        stop_in_step = step;
        CHECK(trainer(RUN "--out @/killed") == 1 && said("stderr", "to go on:\n    ./train_bigram --data ") &&
                  said("stderr", " --resume\n"),
              "step %lld", (long long)step);
        char at[64];
        snprintf(at, sizeof at, "stopped at step %lld and saved", (long long)step + 1);
        CHECK(said("stderr", at), "SIGTERM in step %lld saves within that step", (long long)step);
        resume_and_compare("", "stopped in step", (int)step);
    }
    save_seconds = 300, progress_seconds = 10;
    for (int batch = 1; batch < 40; batch += 5) {
        shell("rm -rf %s/killed", scratch);
        never_kill();
        kill_in_batch = batch;
        save_seconds = batch % 2 ? 0 : 300;
        if (trainer(RUN "--out @/killed") != 137) break;
        resume_and_compare("", "killed in evaluation batch", batch);
        shell("rm -rf %s/killed", scratch);
        stop_in_batch = batch;
        CHECK(trainer(RUN "--out @/killed") == 1 && said("stderr", "to go on:"), "batch %d", batch);
        resume_and_compare("", "stopped in evaluation batch", batch);
    }
    save_seconds = 300;
    never_kill();
    // Ten times in one run, at moments that nobody chose; the run is long enough for most of them on any machine.
#define LONG RUN "--epochs 30 --patience 30 "
    save_seconds = progress_seconds = 0;
    double start = seconds_now();
    CHECK(trainer(LONG "--out @/unbroken30") == 0, "30 epochs");
    double whole = seconds_now() - start;
    int kills = 0;
    shell("rm -rf %s/killed", scratch);
    for (int i = 0; i < 10; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/killed/last.safetensors", scratch);
        const char *flags = access(path, F_OK) ? LONG "--out @/killed" : LONG "--out @/killed --resume";
        kills += trainer_for(whole * (0.01 + 0.01 * ((i * 7) % 10)), flags) == 137;
    }
    CHECK(kills > 0, "none of ten kills came in time");
    CHECK(trainer(LONG "--out @/killed --resume") == 0 && same_results("unbroken30", "killed"), "killed %d times",
          kills);
    save_seconds = 300, progress_seconds = 10;
    // Killed when the best model is two epochs old: it stays.
    shell("rm -rf %s/killed", scratch);
    kill_in_step = last_step("patient") - 1;
    CHECK(trainer(PATIENT "--out @/killed") == 137, "step %lld", (long long)kill_in_step);
    never_kill();
    CHECK(trainer(PATIENT "--out @/killed --resume") == 0 && same_results("patient", "killed"),
          "the best model is lost");
}

// A run that was stopped, killed or broken is not begun anew, one that has ended is.
static void test_unfinished(void) {
    static const struct {
        int64_t *when;
        int status;
    } ways[] = {{&stop_in_step, 1}, {&kill_in_step, 137}, {&poison_step, 1}};
    for (int i = 0; i < 3; i++) {
        shell("cd %s && rm -rf used earlier", scratch);
        *ways[i].when = 12;
        save_seconds = progress_seconds = 0;
        CHECK(trainer(RUN "--out @/used") == ways[i].status, "way %d", i);
        save_seconds = 300, progress_seconds = 10;
        never_kill();
        shell("cd %s && cp -r used earlier", scratch);
        CHECK(trainer(RUN "--out @/used") == 1 && said("stderr", "used/last.safetensors: its run has not ended") &&
                  said("stderr", "--resume") && said("stderr", "another --out"),
              "its status or its words");
        CHECK(trainer(RUN "--out @/used --init @/whole/model.safetensors --lr 0.001") == 1, "--init");
        CHECK(same_folders("used", "earlier"), "a refused run has changed files");
        CHECK(trainer(RUN "--out @/used --resume") == 0 && same_results("used", "unbroken"), "--resume");
        CHECK(trainer(RUN "--out @/used --seed 2 --epochs 1") == 0 &&
                  same_file("used/model.prev.safetensors", "unbroken/model.safetensors"),
              "a new run after its end");
    }
    static const char *const ends[][2] = {{"unbroken", "epochs"}, {"patient", "patience"}, {"ended", "steps"}};
    CHECK(trainer(RUN "--out @/ended --steps 30") == 0, "its status or its words");
    for (int i = 0; i < 3; i++) {
        char path[256];
        StFile state;
        snprintf(path, sizeof path, "%s/%s/last.safetensors", scratch, ends[i][0]);
        CHECK(st_read(&state, path, error), "%s", error);
        const char *ended = st_meta(&state, "ended");
        CHECK(ended && !strcmp(ended, ends[i][1]), "%s ended by %s", ends[i][0], ended ? ended : "nothing");
        st_free(&state);
        shell("cd %s && rm -r used && cp -r %s used", scratch, ends[i][0]);
        CHECK(trainer(RUN "--out @/used --epochs 1") == 0, "a new run over %s", ends[i][0]);
    }
    // Of a state of an older build, which does not say how it ended, --resume finds out.
    shell(
        "cd %s && rm -r used && cp -r unbroken used && LC_ALL=C sed -i 's/^\"ended\"/\"ender\"/' used/last.safetensors",
        scratch);
    CHECK(trainer(RUN "--out @/used") == 1 && said("stderr", "its run has not ended"), "an older build's state");
    CHECK(trainer(RUN "--out @/used --resume") == 0 && said("stdout", "nothing was left to do") &&
              same_results("used", "unbroken") && trainer(RUN "--out @/used") == 0,
          "after --resume");
    // A run that was stopped is ended by fewer epochs, and can still go on.
    shell("cd %s && rm -r used", scratch);
    stop_in_step = last_step("unbroken") * 5 / 8;
    CHECK(trainer(RUN "--out @/used") == 1, "stopped");
    never_kill();
    // A state of a build that did not have --transpose and the like yet goes on as it was.
    shell("cd %s && rm -rf old && cp -r used old && LC_ALL=C sed -i "
          "'s/\"\\(recip\\|transpos\\|warmu\\|weight_deca\\|averag\\)[epy]\":/\"\\1_\":/' old/last.safetensors && "
          "grep -a -q averag_ old/last.safetensors",
          scratch);
    CHECK(trainer(RUN "--out @/old --resume") == 0 && same_results("old", "unbroken"), "a state without newer flags");
    CHECK(trainer(RUN "--out @/old --resume --transpose -1,1") == 2 && said("stderr", "--transpose -1,1: the run in"),
          "another transposition");
    CHECK(trainer(RUN "--out @/used --resume --epochs 2") == 0 && said("stdout", "nothing was left to do"), "ended");
    shell("cd %s && rm -rf part && cp -r used part", scratch);
    CHECK(trainer(RUN "--out @/used") == 0 && trainer(RUN "--out @/part --resume") == 0 &&
              same_results("part", "unbroken"),
          "after its end");
    // A state that cannot be read may be worth something yet.
    shell(
        "cd %s && rm -r used && cp -r unbroken used && head -c 999 unbroken/last.safetensors >used/last.safetensors && "
        "rm -r earlier && cp -r used earlier",
        scratch);
    CHECK(trainer(RUN "--out @/used") == 1 && said("stderr", "remove it, or give another --out") &&
              same_folders("used", "earlier"),
          "a damaged state");
}

// Two trainers in one folder: the second one refuses, from the first one's first step on until it ends.
static void test_lock(void) {
    static const char *const flags[] = {RUN "--out @/killed", RUN "--out @/killed --resume"};
    for (int step = 0; step < 13; step += 12) {
        int status = 0;
        shell("cd %s && rm -rf killed", scratch);
        save_seconds = 0;
        stop_in_step = step;
        stop_signal = SIGSTOP;
        const pid_t first = trainer_start(flags[0]);
        CHECK(waitpid(first, &status, WUNTRACED) == first && WIFSTOPPED(status), "it has not stopped");
        save_seconds = 300;
        never_kill();
        for (int i = 0; i < 2; i++) {
            CHECK(trainer(flags[i]) == 1 && said("stderr", "killed: another trainer is at work there") &&
                      said("stderr", "another --out"),
                  "its status or its words");
        }
        CHECK(!step || trainer("--data @/data --eval --init @/killed/last.safetensors --out @/killed") == 0, "--eval");
        kill(first, SIGKILL);
        waitpid(first, &status, 0);
        resume_and_compare("", "killed beside another one in step", step);
    }
    no_locks = true;
    shell("cd %s && rm -rf killed", scratch);
    CHECK(trainer(RUN "--out @/killed") == 0 && said("stderr", "killed cannot be locked (No locks available)") &&
              same_results("killed", "unbroken"),
          "a file system without locks");
    never_kill();
}

// SIGHUP saves, unless it was ignored, also when it comes twice; a second signal of another kind stops at once. Who
// reads what the trainer says may go away.
static void test_signals(void) {
    static const struct {
        int number, times, status;
        bool ignored;
    } cases[] = {{SIGHUP, 1, 1, false},
                 {SIGHUP, 2, 1, false},
                 {SIGHUP, 1, 0, true},
                 {SIGINT, 1, 1, true},
                 {SIGTERM, 2, 143, false}};
    for (int i = 0; i < 5; i++) {
        shell("cd %s && rm -rf killed", scratch);
        stop_in_step = 7;
        stop_signal = cases[i].number;
        stop_signals = cases[i].times;
        signal(SIGHUP, cases[i].ignored ? SIG_IGN : SIG_DFL);
        const int status = trainer(RUN "--out @/killed");
        signal(SIGHUP, SIG_DFL);
        CHECK(status == cases[i].status, "signal %d, %d times: exit status %d", stop_signal, stop_signals, status);
        CHECK(status != 1 || said("stderr", "stopped at step 8 and saved"), "signal %d", stop_signal);
        resume_and_compare("", "stopped by signal", stop_signal);
    }
    for (int stopped = 0; stopped < 2; stopped++) {
        shell("cd %s && rm -rf killed", scratch);
        no_readers = true;
        progress_seconds = 0;
        if (stopped) stop_in_step = 7;
        const int status = trainer(RUN "--out @/killed");
        progress_seconds = 10;
        never_kill();
        CHECK(status == stopped && (stopped || same_results("killed", "unbroken")), "nobody reads: %d", status);
        resume_and_compare("", "nobody reads", stopped);
    }
}

// Where a part of a state, of the log or of the curves is lost for want of memory, so is the whole.
static void test_texts_lost(void) {
    static const char *const texts[][2] = {
        {"1,", "last.safetensors"}, {"epoch,step", "log.csv"}, {"<svg ", "loss.svg"}};
    for (int i = 0; i < 3; i++) {
        shell("cd %s && rm -rf killed", scratch);
        no_text = texts[i][0];
        CHECK(trainer(RUN "--out @/killed") == 1 && said("stderr", texts[i][1]) &&
                  said("stderr", ": cannot be written: Cannot allocate memory"),
              "%s", texts[i][1]);
        resume_and_compare("", "without memory", i);
    }
}

// What a terminal of so many columns gets, of a training step and of an evaluation; ends at a NUL.
static void progress_on_terminal(const char *kind, int columns, char text[1024]) {
    struct termios raw;
    struct winsize window = {24, (unsigned short)columns, 0, 0};
    int kept = dup(2), master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) exit(1);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    tcgetattr(slave, &raw);
    raw.c_oflag &= ~(tcflag_t)OPOST;
    tcsetattr(slave, TCSANOW, &raw);
    ioctl(slave, TIOCSWINSZ, &window);
    dup2(slave, 2);
    if (kind) setenv("TERM", kind, 1);
    if (!kind) unsetenv("TERM");
    TrainRun *run = (TrainRun *)calloc(1, sizeof *run);
    run->config.B = 8;
    run->config.T = 256;
    run->n_rows = 11;
    run->epoch_steps = 1431;
    run->step = 11 * 1431;
    run->loss_sum = 1;
    Progress p = progress_start(run->step, 12 * 1431, 0);
    run->step += 700;
    p.started -= 500;
    progress_train(&p, run, seconds_now());
    p.last = 1098;
    progress_eval(&p, 550, seconds_now());
    progress_clear(&p);
    dup2(kept, 2);
    close(kept);
    close(slave); // the last one: read ends where the text does
    for (ssize_t n, left = 1023; (n = read(master, text, (size_t)left)) > 0; left -= n) text += n;
    *text = 0;
    close(master);
    free(run);
}

static void test_progress(void) {
    static const int widths[] = {200, 80, 60, 40, 20, 0};
    char text[1024], lines[1024];
    for (int i = 0; i < 6; i++) {
        progress_on_terminal("xterm", widths[i], text);
        memcpy(lines, text, sizeof lines);
        CHECK(!strchr(text, '\n') && text[0] == '\r', "%d columns: a line of its own", widths[i]);
        for (char *line = strtok(lines, "\r"); line; line = strtok(NULL, "\r")) {
            const char *end = strstr(line, "\033[K");
            const int most = (widths[i] ? widths[i] : 80) - 1;
            CHECK(end && !end[3] && end - line <= most, "%d columns: %s", widths[i], line);
        }
        CHECK(strstr(text, "epoch 12 ") && strstr(text, " 49%") && strstr(text, "evaluation "), "%s", text);
        CHECK(widths[i] == 20 || (strstr(text, "loss 0.0014") && strstr(text, "8:42 left")), "%s", text);
        CHECK(!strstr(text, "epoch 12 #") == (widths[i] && widths[i] < 60), "%d columns: %s", widths[i], text);
    }
    for (int i = 0; i < 3; i++) {
        static const char *const kinds[] = {"dumb", "", NULL};
        progress_on_terminal(kinds[i], 80, text);
        CHECK(!strchr(text, '\r') && !strchr(text, '\033') && strstr(text, "epoch 12  700 of 1431  loss 0.0014  "),
              "no terminal: %s", text);
    }
}

static void test_resume(void) {
    // Stopped by --steps within an epoch, then on: as if never stopped. No model is lost that was better in between.
    CHECK(trainer(RUN "--out @/straight --steps 30") == 0, "its status or its words");
    CHECK(trainer(RUN "--out @/bent --steps 10") == 0 && said("stdout", "epoch 1  train "), "its status or its words");
    shell("cp -r %s/bent %s/again", scratch, scratch);
    CHECK(trainer(RUN "--out @/again --resume --steps 10") == 0 && same_results("bent", "again"),
          "resumed where it ended");
    CHECK(trainer(RUN "--out @/bent --steps 30 --resume") == 0 && same_results("straight", "bent"),
          "--steps 10, then 30");
    CHECK(trainer("--out @/bent --resume --epochs 4") == 0, "flags may be left out, --data too");
    CHECK(same_results("unbroken", "bent"), "--steps 30, then 4 epochs");
    // Interrupted in the evaluation at --steps 10, then on to other weights: that evaluation counts for nothing.
    stop_in_batch = 2;
    CHECK(trainer(RUN "--out @/halfway --steps 10") == 1, "stopped in the evaluation");
    never_kill();
    CHECK(trainer(RUN "--out @/halfway --steps 30 --resume") == 0 && same_results("straight", "halfway"), "to step 30");
    CHECK(trainer("--out @/bent --resume --epochs 4") == 0 && said("stdout", "nothing was left to do"),
          "its status or its words");
    CHECK(same_results("unbroken", "bent"), "resuming a run that is over changes nothing");
    // log.csv: rows too many, rows missing, none at all.
    static const char *const damages[] = {"echo 5,500,1,1,1,1,1.0 >> log.csv", "rm log.csv loss.svg",
                                          "echo x > log.csv", "sed -i 3d log.csv"};
    for (int i = 0; i < 4; i++) {
        shell("cd %s/bent && %s", scratch, damages[i]);
        CHECK(trainer("--out @/bent --resume --epochs 4") == 0 && same_results("unbroken", "bent"), "after %s",
              damages[i]);
    }
    // The seconds of rows that stayed are kept.
    shell("cd %s && cp unbroken/log.csv bent/log.csv", scratch);
    CHECK(trainer("--out @/bent --resume --epochs 4") == 0, "its status or its words");
    char *kept = read_text("%s/%s", "bent/log.csv"), *was = read_text("%s/%s", "unbroken/log.csv");
    CHECK(!strcmp(kept, was), "the seconds are lost:\n%s", kept);
    free(kept);
    free(was);
    // Other flags, other data, another model, no run: a sentence, and nothing changes.
    shell("cp -r %s/unbroken %s/before && cp -r %s/data %s/other", scratch, scratch, scratch, scratch);
    static const struct {
        const char *flags, *says;
        int status;
    } wrong[] = {
        {"--batch 5", "--batch 5: the run in", 2},
        {"--batch 5", "has 4; leave the flag out", 2},
        {"--lr 0.03", "--lr 0.03: the run in", 2},
        {"--lr 0.03", "start anew from its weights, by --init", 2},
        {"--seed 3", "--seed 3:", 2},
        {"--rank 5", "start anew in another --out", 2},
        {"--precision bf16", "--precision bf16:", 2},
        {"--eval-stride 1", "has 2", 2},
        {"--data @/other", "other/train.safetensors: it is not what the run in", 1},
        {"--out @/nowhere", "nowhere/last.safetensors: there is no run to go on with", 1},
        {"--out @/swapped", "swapped/last.safetensors: it is no resume state", 1},
        {"--out @/cut", "cut/last.safetensors: ", 1},
    };
    char other[256];
    snprintf(other, sizeof other, "%s/other", scratch);
    make_data(other, 850, 99);
    shell("cd %s && mkdir swapped cut && cp unbroken/model.safetensors swapped/last.safetensors && head -c 9999 "
          "unbroken/last.safetensors > cut/last.safetensors",
          scratch);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char flags[256];
        snprintf(flags, sizeof flags, "--out @/unbroken --resume %s", wrong[i].flags);
        int status = trainer(flags);
        CHECK(status == wrong[i].status && said("stderr", wrong[i].says), "%s: exit status %d", wrong[i].flags, status);
    }
    CHECK(trainer("--out @/unbroken --resume --batch=4 --lr 2e-2 --epochs 4 --threads 3") == 0, "the same flags");
    CHECK(same_results("unbroken", "before"), "a refused resume has changed files");
}

// A part of an epoch, ended by --steps, may have the best model so far, but is forgotten when the run goes on.
static void test_parts(void) {
    const int64_t last = last_step("patient");
    int better = 0, kept = 0, chosen = 0;
    char flags[256], path[256];
    snprintf(path, sizeof path, "%s/part/model.whole.safetensors", scratch);
    const int stride = check_brief() ? 3 : 1;
    for (int64_t step = last - 1; step > 0; step -= stride * (last / 16 + 1)) {
        shell("rm -rf %s/part %s/part2", scratch, scratch);
        snprintf(flags, sizeof flags, PATIENT "--out @/part --steps %lld", (long long)step);
        CHECK(trainer(flags) == 0, "%s", flags);
        bool part_is_best = access(path, F_OK) == 0;
        better += part_is_best;
        if (part_is_best) {
            shell("cp -r %s/part %s/part2", scratch, scratch);
            StFile part, log;
            char part_path[256], epoch[32] = "", best[64];
            snprintf(part_path, sizeof part_path, "%s/part/model.safetensors", scratch);
            CHECK(st_read(&part, part_path, error), "%s", error);
            int number = atoi(st_meta(&part, "epoch"));
            snprintf(epoch, sizeof epoch, "epoch %d  train ", number);
            snprintf(best, sizeof best, "best test loss %.4f, epoch %d: ", strtod(st_meta(&part, "test_loss"), NULL),
                     number);
            CHECK(atoll(st_meta(&part, "step")) == step && said("stdout", epoch) && said("stdout", best),
                  "the model of %s", flags);
            snprintf(part_path, sizeof part_path, "%s/part/last.safetensors", scratch);
            CHECK(st_read(&log, part_path, error), "%s", error);
            CHECK(atoll(st_meta(&log, "best_step")) < step, "the state of %s", flags);
            st_free(&part);
            st_free(&log);
            CHECK(trainer(strcat(flags, " --resume")) == 0 && same_results("part", "part2"), "%s", flags);
        }
        CHECK(trainer(PATIENT "--out @/part --resume") == 0 && same_results("patient", "part"), "after %s", flags);
        if (!part_is_best) continue;
        StFile model;
        snprintf(flags, sizeof flags, "%s/part/model.safetensors", scratch);
        CHECK(st_read(&model, flags, error), "%s", error);
        if (atoll(st_meta(&model, "step")) < step) kept++, chosen = (int)step;
        st_free(&model);
    }
    CHECK(better > 0 && kept > 0, "%d parts were better, and %d of them than all later epochs", better, kept);
    // Killed while such a part is saved, and while the run goes on from it.
    for (int resumed = 0; resumed < 2; resumed++) {
        for (int n = 1, died = 137; died == 137; n += stride) {
            shell("rm -rf %s/part", scratch);
            snprintf(flags, sizeof flags, PATIENT "--out @/part --steps %d", resumed ? chosen : chosen - 1);
            CHECK(trainer(flags) == 0, "%s", flags);
            snprintf(flags, sizeof flags, PATIENT "--out @/part --resume --steps %d", chosen);
            kill_after_rename = n;
            died = trainer(resumed ? PATIENT "--out @/part --resume" : flags);
            never_kill();
            CHECK(trainer(PATIENT "--out @/part --resume") == 0 && same_results("patient", "part"),
                  "killed after file %d, %d", n, resumed);
        }
    }
}

// A new run that fails before it has got anywhere leaves the earlier run in its folder alone.
static void test_young(void) {
    shell("cd %s && rm -rf used earlier && cp -r whole used && cp -r whole earlier", scratch);
    for (int step = 0; step < 2; step++) {
        poison_step = step;
        CHECK(trainer(RUN "--out @/used") == 1 && said("stderr", "nothing was saved, and ") &&
                  same_folders("used", "earlier"),
              "step %d goes wrong", step);
        CHECK(trainer(RUN "--out @/empty") == 1 && access(strcat(strcpy(error, scratch), "/empty/log.csv"), F_OK),
              "step %d goes wrong in an empty folder", step);
    }
    never_kill();
    kill_in_step = 1;
    CHECK(trainer(RUN "--out @/used") == 137 && same_folders("used", "earlier"), "killed in step 1");
    never_kill();
    CHECK(trainer(RUN "--out @/used --lr 1e39") == 1 && said("stderr", "finite") && same_folders("used", "earlier"),
          "--lr 1e39");
    CHECK(trainer(RUN "--out @/used --lr 1e39 --steps 1") == 1 && said("stderr", "finite") &&
              same_folders("used", "earlier"),
          "--lr 1e39 --steps 1");
    poison_test = true;
    CHECK(trainer(RUN "--out @/used --steps 1") == 1 && same_folders("used", "earlier"), "a test loss, --steps 1");
    CHECK(trainer("--data @/data --out @/used --eval") == 1 && said("stderr", "is not finite"), "--eval");
    never_kill();
    char *out = read_text("%s/%s", "stdout");
    CHECK(!strstr(out, "nan") && !strstr(out, "inf"), "--eval prints\n%s", out);
    free(out);
    // Weights and averages that are not finite.
    static const char *const names[] = {"out.bias", "adamax.exp_avg.emb.weight", "adamax.exp_inf.out.weight"};
    for (int i = 0; i < 3; i++) {
        StFile state;
        char path[256], says[128];
        real bad = (real)(i == 1 ? -HUGE_VAL : (double)NAN);
        snprintf(path, sizeof path, "%s/whole/last.safetensors", scratch);
        CHECK(st_read(&state, path, error), "%s", error);
        for (int k = 0; k < state.n_tensors; k++) {
            const StTensor *tensor = &state.tensors[k];
            char *end = (char *)state.bytes + ((const char *)tensor->data - (char *)state.bytes) +
                        (size_t)tensor->count * sizeof bad;
            if (!strcmp(tensor->name, names[i])) memcpy(end - sizeof bad, &bad, sizeof bad);
        }
        snprintf(path, sizeof path, "%s/used/last.safetensors", scratch);
        CHECK(st_write(path, state.tensors, state.n_tensors, state.meta, state.n_meta, error), "%s", error);
        st_free(&state);
        shell("cd %s && cp used/last.safetensors earlier", scratch);
        snprintf(says, sizeof says, "used/last.safetensors: tensor '%s' has a number that is not finite", names[i]);
        CHECK(trainer("--out @/used --resume --epochs 9") == 1 && said("stderr", says), "--resume %s", names[i]);
        if (i) continue;
        CHECK(trainer(RUN "--out @/used --init @/used/last.safetensors") == 1 && said("stderr", says), "--init");
        CHECK(trainer("--data @/data --eval --init @/used/last.safetensors") == 1 && said("stderr", says), "--eval");
    }
    CHECK(same_folders("used", "earlier"), "a file has changed");
}

static void test_bad_state(void) { // hostile metadata in last.safetensors
    static const char *const edits[] = {
        "s/\"step\":\"/\"step\":\"9/",         "s/\"epoch\":\"4\"/\"epoch\":\"3\"/",
        "s/\"loss_sum\":\"/\"loss_sum\":\"n/", "s/\"log\":\"1,/\"log\":\"2,/",
        "s/\"batch\":\"4\"/\"batch\":\"0\"/",  "s/\"model\":\"bigram\"/\"model\":\"bigrom\"/"};
    for (int i = 0; i < 6; i++) {
        // The header's length may change by a digit; the padding before the data takes it up.
        shell("rm -rf %s/bad && cp -r %s/unbroken %s/bad && cd %s/bad && LC_ALL=C sed -i -e '%s' last.safetensors",
              scratch, scratch, scratch, scratch, edits[i]);
        if (i == 0 || i == 2) shell("cd %s/bad && LC_ALL=C sed -i -e '1s/}} /}}/' last.safetensors", scratch);
        int status = trainer("--out @/bad --resume");
        CHECK((status == 1 || status == 2) && said("stderr", "last.safetensors: "), "%s: exit status %d", edits[i],
              status);
    }
}

static void test_init(void) {
    CHECK(trainer(RUN "--out @/tuned --init @/unbroken/model.safetensors --lr 0.001 --epochs 1") == 0, "--init");
    CHECK(trainer(RUN "--out @/tuned2 --init @/unbroken/last.safetensors --lr 0.001 --epochs 1") == 0,
          "--init of a state");
    CHECK(same_results("tuned", "tuned2"), "a resume state is as good as its model");
    CHECK(trainer(RUN "--out @/x --init @/unbroken/model.safetensors --rank 5") == 2 && said("stderr", "has 4"),
          "its status or its words");
    CHECK(trainer(RUN "--out @/x --init @/data/train.safetensors") == 1 && said("stderr", "emb.weight"),
          "a dataset as model");
    CHECK(trainer(RUN "--out @/x --init @/nothing.safetensors") == 1 && said("stderr", "nothing.safetensors: "),
          "its status or its words");
    // A missing and a misshaped tensor.
    real zeros[V * 4] = {0};
    StTensor tensors[3];
    memset(tensors, 0, sizeof tensors);
    for (int i = 0; i < 3; i++) {
        tensors[i].type = REAL_TYPE;
        tensors[i].rank = 2;
        tensors[i].shape[0] = V;
        tensors[i].shape[1] = 4;
        tensors[i].data = zeros;
    }
    tensors[0].name = "emb.weight";
    tensors[1].name = "out.weight";
    tensors[2].name = "out.bias";
    char path[256];
    snprintf(path, sizeof path, "%s/made.safetensors", scratch);
    for (int i = 0; i < 3; i++) tensors[i].count = V * 4;
    CHECK(st_write(path, tensors, 2, NULL, 0, error), "%s", error);
    CHECK(trainer(RUN "--out @/x --init @/made.safetensors") == 1 &&
              said("stderr", "made.safetensors: tensor 'out.bias' [153] is missing"),
          "its status or its words");
    CHECK(st_write(path, tensors, 3, NULL, 0, error), "%s", error);
    CHECK(trainer(RUN "--out @/x --init @/made.safetensors") == 1 &&
              said("stderr", "made.safetensors: tensor 'out.bias' has the shape [153, 4] instead of [153]"),
          "its status or its words");
    StTensor *bias = &tensors[1]; // the second one by name
    bias->rank = 1;
    bias->count = V;
    bias->type = ST_I32;
    CHECK(st_write(path, tensors, 3, NULL, 0, error), "%s", error);
    CHECK(trainer(RUN "--out @/x --init @/made.safetensors") == 1 &&
              said("stderr", "'out.bias' is I32 instead of floating"),
          "its status or its words");
    CHECK(access(strcat(strcpy(path, scratch), "/x"), F_OK) != 0, "a failed --init has made the folder");
}

static void test_dump_and_bench(void) {
    CHECK(trainer(RUN "--out @/x --dump @/dump.safetensors --seed 5") == 0, "--dump");
    StFile dump;
    char path[256];
    snprintf(path, sizeof path, "%s/dump.safetensors", scratch);
    CHECK(st_read(&dump, path, error), "%s", error);
    CHECK(dump.n_tensors == 3 * 3 + 5, "%d tensors", dump.n_tensors);
    const StTensor *logits = st_find(&dump, "logits"), *target = st_find(&dump, "target"),
                   *loss = st_find(&dump, "loss");
    const StTensor *before = st_find(&dump, "param.out.bias"), *after = st_find(&dump, "new.out.bias");
    const StTensor *grad = st_find(&dump, "grad.out.bias"), *input = st_find(&dump, "input");
    CHECK(logits && target && loss && before && after && grad && input && st_find(&dump, "act.hidden"), "names");
    if (logits && target && loss && before && after && grad && input) {
        CHECK(logits->shape[0] == 4 && logits->shape[1] == 8 && logits->shape[2] == V && loss->shape[0] == 1, "shapes");
        double sum = 0;
        int64_t word, next;
        for (int i = 0; i < 32; i++) {
            double total = 0;
            memcpy(&word, (const char *)target->data + 8 * i, 8);
            for (int v = 0; v < V; v++) total += exp(st_get(logits, i * V + v));
            sum += log(total) - st_get(logits, i * V + word);
            if (i % 8 == 7) continue;
            memcpy(&next, (const char *)input->data + 8 * (i + 1), 8);
            CHECK(next == word, "the target is the next input");
        }
        CHECK(fabs(sum / 32 - st_get(loss, 0)) < 1e-4, "loss %g, from the logits %g", st_get(loss, 0), sum / 32);
        for (int v = 0; v < V; v += 10) { // Adamax's first step is lr in the direction of the gradient's sign
            double g = st_get(grad, v), step = st_get(after, v) - st_get(before, v);
            CHECK(fabs(step + 0.02 * g / (fabs(g) + 1e-8)) < 1e-5, "gradient %g, step %g", g, step);
        }
    }
    st_free(&dump);
    CHECK(trainer("--out @/unbroken --resume --dump @/dump2.safetensors") == 0 && said("stdout", "step "),
          "--dump --resume");
    snprintf(path, sizeof path, "%s/dump2.safetensors", scratch);
    CHECK(st_read(&dump, path, error), "%s", error);
    CHECK(dump.n_tensors == 5 * 3 + 5 && st_find(&dump, "adamax.exp_inf.out.bias"), "%d tensors", dump.n_tensors);
    CHECK(st_meta(&dump, "lr") && st_meta(&dump, "dropout") && st_meta(&dump, "seed"), "the dump's metadata");
    st_free(&dump);
    CHECK(same_results("unbroken", "before"), "--dump has changed the run");
    CHECK(trainer("--bench 5 --batch 2 --window 16") == 0, "--bench");
    CHECK(said("stdout", "\nbench model=bigram device=cpu precision=fp32 batch=2 ms_per_step="), "its last line");
    CHECK(said("stdout", "peak memory "), "its peak memory");
    CHECK(trainer("--bench 2 --batch 65536 --window 65536") == 1 && said("stderr", "would take"), "too large");
}

static void test_failures(void) {
    shell("rm -rf %s/killed", scratch);
    poison_step = 15;
    CHECK(trainer(RUN "--out @/killed") == 1, "its status or its words");
    CHECK(said("stderr",
               "step 15: the loss or a gradient is no longer finite (act.hidden is the first tensor that is not"),
          "its status or its words");
    resume_and_compare("", "cured of a loss that was not finite", 15);
    shell("rm -rf %s/killed", scratch);
    poison_test = true;
    CHECK(trainer(RUN "--out @/killed") == 1 && said("stderr", "the test loss is no longer finite"),
          "its status or its words");
    CHECK(access(strcat(strcpy(error, scratch), "/killed/model.safetensors"), F_OK), "such a model has been saved");
    never_kill();
    // A disk that is full from the start, or once model.safetensors is written. Existing files stay.
    shell("rm -rf %s/killed %s/full && cp -r %s/unbroken %s/full", scratch, scratch, scratch, scratch);
    file_limit = 4096;
    CHECK(trainer(RUN "--out @/full") == 1 && said("stderr", "last.safetensors: cannot be written"), "a full disk");
    file_limit = 0;
    shell("rm -f %s/full/model.prev.safetensors", scratch);
    CHECK(same_results("unbroken", "full"), "a full disk has cost files");
    // Places that cannot be written.
    shell("echo > %s/file", scratch);
    CHECK(trainer(RUN "--out @/file") == 1 && said("stderr", "file is a file, not a folder"), "--out is a file");
    CHECK(trainer(RUN "--out @/file/deeper") == 1 && said("stderr", "file is a file, not a folder"), "below a file");
    CHECK(trainer(RUN "--out @/x --dump @/no/such/dump") == 1 && said("stderr", "no/such/dump: cannot be written"),
          "--dump");
    // Data.
    CHECK(trainer("--data @/nix --out @/x") == 1 && said("stderr", "nix: there is no such folder"), "no data");
    CHECK(trainer("--data @/data --out @/x --window 900") == 1 &&
              said("stderr", "train.safetensors: none of its 3 pieces"),
          "its status or its words");
    CHECK(trainer("--data @/data --out @/x --window 60") == 1 &&
              said("stderr", "test.safetensors: none of its 3 pieces"),
          "its status or its words");
    CHECK(trainer("--data @/data --out @/x --window 8 --batch 5000") == 1 && said("stderr", "--batch 5000: "),
          "its status or its words");
    CHECK(trainer("--data @/data --out @/x --window 60000 --batch 60000") == 1, "its status or its words");
}

// The default folder without music: the two programs beside this one are run. Here they are scripts.
static void test_starter(const char *self) {
    shell("mkdir -p %s/bin/data_prep %s/work && cp '%s' %s/bin/train_bigram", scratch, scratch, self, scratch);
    char flags[] = "../bin/train_bigram --batch 4 --window 8 --epochs 1";
    char command[1024];
#define IN_WORK "cd %s/work && %s > ../stdout 2> ../stderr", scratch, flags
    snprintf(command, sizeof command, IN_WORK);
    CHECK(exit_status(command) == 1 && said("stderr", "data: there is no music here yet, and "), "no composer");
    shell(
        "cd %s/bin/data_prep && printf '#!/bin/sh\\nmkdir -p $2/train $2/test; echo composing; test ! -e ../fail\\n' > "
        "compose_music && printf '#!/bin/sh\\ntest -d $3 -a -d $4 && cp ../data/*.safetensors $2/\\n' > prepare_music "
        "&& "
        "chmod +x compose_music prepare_music; touch ../../fail",
        scratch);
    CHECK(exit_status(command) == 1 && said("stderr", "compose_music: it failed"), "the composer fails");
    shell("cd %s && rm fail && touch work/data/test.safetensors.tmp && cp data/train.safetensors work/data", scratch);
    CHECK(exit_status(command) == 0 && said("stderr", "composing the starter corpus into it"), "run again");
    CHECK(said("stdout", "epoch 1  train "), "then it trains");
    char *out = read_text("%s/%s", "stdout");
    CHECK(!strstr(out, "composing"), "the composer's words are on stdout");
    free(out);
    CHECK(exit_status(command) == 0 && !strstr(out = read_text("%s/%s", "stderr"), "composing"), "once is enough");
    free(out);
    shell("cd %s/work && rm -rf data && mkdir data && touch data/mine.mid", scratch);
    CHECK(exit_status(command) == 1 && said("stderr", "data/train.safetensors: "), "somebody's own folder");
}

int main(int argc, char **argv) {
    const char *slash = strrchr(argv[0], '/');
    if (!strcmp(slash ? slash + 1 : argv[0], "train_bigram")) {
        ModelSpec spec = bigram_spec();
        return train_main(argc, argv, &spec);
    }
    check_folder(scratch);
    char data[256];
    snprintf(data, sizeof data, "%s/data", scratch);
    make_data(data, 900, 1);
    test_parameters();
    test_texts();
    test_usage();
    test_run();
    test_recipe();
    test_used_folder();
    test_kills();
    test_unfinished();
    test_lock();
    test_signals();
    test_texts_lost();
    test_progress();
    test_resume();
    test_parts();
    test_young();
    test_bad_state();
    test_init();
    test_dump_and_bench();
    test_failures();
    test_starter(argv[0]);
    shell("rm -rf %s", scratch);
    return check_report("train");
}
