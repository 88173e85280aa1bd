// What `make paper` needs a program for (see paper.sh, which calls this): the pieces that the samples go on from, and
// the figure of both models' losses.
//
//     paper --primes N --data DIR --out OUT  N pieces of DIR/test.safetensors, or all: OUT/prime-1.mid and so on
//     paper --data DIR --out OUT --recipes R OUT/losses.svg; prints which pieces the two primes are
//     paper --alone PROGRAM ARGUMENTS        becomes that program, in a process group of its own
//
// The second reads log.csv in OUT/gpt and OUT/lstm, or of the recipe tuned in OUT/gpt-tuned and OUT/lstm-tuned. A
// missing or damaged file is one sentence, and nothing is written.
#include "recipe/train.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

enum { PRIME_TOKENS = 256, N_PRIMES = 2 };

// ---- the primes

static int64_t count_fit(const Dataset *test) { // pieces that are long enough for a prime
    int64_t fit = 0;
    for (int64_t p = 0; p < test->n_pieces; p++) fit += test->pieces[p + 1] - test->pieces[p] >= PRIME_TOKENS;
    return fit;
}

// The piece of prime k of n, which are spread over those that are long enough. There must be one.
static int64_t prime_piece(const Dataset *test, int64_t k, int64_t n) {
    int64_t wanted = count_fit(test) * (k + 1) / (n + 1), p = -1;
    while (wanted >= 0) {
        p++;
        wanted -= test->pieces[p + 1] - test->pieces[p] >= PRIME_TOKENS;
    }
    return p;
}

// Writes a piece's tokens as a MIDI file that gives the same tokens again, but for overlapping notes of one key and for
// what comes after the last bar line. A time signature stands wherever the distance of the bar lines changes.
static bool piece_write(const uint8_t *tokens, size_t n, const char *path, char *error) {
    midi_song song;
    midi_error problem;
    uint8_t *bytes = NULL;
    size_t size;
    if (!midi_decode(tokens, n, &song, &problem)) return fail(error, "%s: %s", path, problem.text);
    int64_t line = 0, steps = 0;
    bool ok = midi_add_tempo(&song, 0, 500000, 0);
    for (size_t i = 0; ok && i < song.n_bars; i++) {
        int64_t next = (song.bars[i] - line) / MIDI_STEP, numerator = next;
        int exponent = 4; // 16 / 2^4 is written 4 / 2^2
        for (; numerator % 2 == 0 && exponent > 2 && next; exponent--) numerator /= 2;
        if (next && next != steps) ok = midi_add_meter(&song, line, (int)numerator, exponent, 0);
        if (next) steps = next;
        line = song.bars[i];
    }
    ok = ok && midi_write(&song, &bytes, &size, &problem) ? write_file_atomically(path, bytes, size, error)
                                                          : fail(error, "%s: %s", path, problem.text);
    MIDI_FREE(bytes);
    midi_free(&song);
    return ok;
}

static bool primes_write(const Dataset *test, int64_t n, const char *out, char *error) {
    const int64_t fit = count_fit(test);
    bool ok = make_folders(out, error);
    if (n > N_PRIMES && n > fit) n = fit;
    for (int64_t k = 0; ok && k < n; k++) {
        char name[32];
        const int64_t p = prime_piece(test, k, n);
        snprintf(name, sizeof name, "prime-%lld.mid", (long long)k + 1);
        ok = piece_write(test->tokens + test->pieces[p], (size_t)(test->pieces[p + 1] - test->pieces[p]),
                         path_join(out, name).text, error);
    }
    return ok;
}

// ---- the figure

// The points of a log.csv, for free() also after a failure, and how many steps its first epoch has.
static bool read_log(LossCurve *curve, long long *epoch_steps, const char *path, char *error) {
    char *text;
    size_t size;
    LossPoint *points = NULL;
    if (!read_file(path, (void **)&text, &size, error)) return false;
    bool ok = true;
    const char *line = strchr(text, '\n'); // behind the head
    for (line = line ? line + 1 : ""; ok && *line; line = strchr(line, '\n') + 1) {
        long long epoch, step, steps;
        LossPoint point;
        double lr;
        int used = 0;
        ok = sscanf(line, "%lld,%lld,%lf,%lf,%lf,%lld,%n", &epoch, &step, &point.train, &point.test, &lr, &steps,
                    &used) == 6 &&
             used && strchr(line, '\n') && epoch == curve->n + 1 && steps > 0 && isfinite(point.train + point.test);
        if (!ok) break;
        if (!curve->n) *epoch_steps = steps;
        point.epoch = (double)step / (double)*epoch_steps;
        curve->points = points = (LossPoint *)must_have(realloc(points, (size_t)epoch * sizeof point));
        points[curve->n++] = point;
    }
    free(text);
    if (!ok) return fail(error, "%s: row %d is not what a trainer writes", path, curve->n + 1);
    return curve->n || fail(error, "%s: no epoch is complete yet", path);
}

// For each recipe both models; what is published of these stands there once.
static bool draw_losses(const char *out, const char *recipes, char *error) {
    static const char *const folders[MAX_CURVES] = {"gpt", "lstm", "gpt-tuned", "lstm-tuned"};
    static const LossCurve runs[MAX_CURVES] = {
        {"Transformer", NULL, 0, 1.237, 6},
        {"LSTM", NULL, 0, 1.425, 9},
        {"Transformer, tuned", NULL, 0, 1.237, 6},
        {"LSTM, tuned", NULL, 0, 1.425, 9},
    };
    LossCurve curves[MAX_CURVES];
    long long steps[MAX_CURVES] = {0};
    char epochs[64] = "epoch", count[32];
    TextBuffer text = {0};
    int n = 0;
    bool ok = true, alike = true;
    for (int k = 0; ok && k < MAX_CURVES; k++) {
        if (!strstr(recipes, k < 2 ? "published" : "tuned")) continue;
        const Path folder = path_join(out, folders[k]);
        curves[n] = runs[k];
        if (n > 1) curves[n].published = 0;
        ok = read_log(&curves[n], &steps[n], path_join(folder.text, "log.csv").text, error);
        alike &= steps[n++] == steps[0];
    }
    if (alike) snprintf(epochs, sizeof epochs, "epoch (%s steps each)", thousands(count, steps[0]));
    if (ok) curves_draw(&text, "Loss by epoch: Transformer and LSTM", epochs, curves, n);
    ok = ok && text_write(&text, path_join(out, "losses.svg").text, error);
    for (int k = 0; k < n; k++) free((void *)curves[k].points);
    return ok;
}

static void print_primes(const Dataset *test) {
    for (int k = 0; k < N_PRIMES; k++) {
        const int64_t p = prime_piece(test, k, N_PRIMES);
        const char *name = dataset_name(test, p);
        printf("- prime-%d.mid: test piece %lld, %.*s\n", k + 1, (long long)p + 1, (int)strcspn(name, "\n"), name);
    }
}

// For paper.sh: signals for its process group, from a terminal say, do not reach the program, but its own death does.
static int run_alone(char **command) {
    char error[ERROR_SIZE];
    setpgid(0, 0);
    signal(SIGINT, SIG_DFL); // ignored in what a shell runs in the background
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
    execvp(command[0], command);
    fail(error, "%s: cannot be run: %s", command[0], strerror(errno));
    return program_end("paper", 1, error);
}

int main(int argc, char **argv) {
    Flags flags = {0};
    const char *data, *out, *recipes;
    int64_t primes;
    char error[ERROR_SIZE] = "";
    int status = 0;
    if (argc > 2 && !strcmp(argv[1], "--alone")) return run_alone(argv + 2);
    program_start();
    flag_text(&flags, "data", "DIR", &data, "data", "folder with test.safetensors");
    flag_text(&flags, "out", "DIR", &out, "out/paper", "folder of the runs, and of what is written");
    flag_text(&flags, "recipes", "R", &recipes, "published", "how they were trained")->choices =
        "published|tuned|published tuned|tuned published";
    flag_whole(&flags, "primes", &primes, 0, 0, 1e6, "write N beginnings of continuations, nothing else [0]");
    if (!flags_parse(&flags, argc, argv, error)) {
        status = 2;
    } else if (!flags_answer(&flags, "paper", "paper - the pieces and the figure of `make paper`, which calls it\n\n",
                             "")) {
        Dataset test;
        const Path path = path_join(data, "test.safetensors");
        bool ok = dataset_open(&test, path.text, PRIME_TOKENS, error);
        if (ok && !count_fit(&test)) {
            ok = fail(error, "%s: none of its pieces has the %d tokens of a prime", path.text, PRIME_TOKENS);
        }
        ok = ok && (primes ? primes_write(&test, primes, out, error) : draw_losses(out, recipes, error));
        if (ok && !primes) print_primes(&test);
        status = !ok;
        dataset_close(&test);
    }
    return program_end("paper", status, error);
}
