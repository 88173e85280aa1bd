// What `make paper` writes beside the runs themselves (see paper.sh, which calls this): the pieces that the samples go
// on from, and in the end the tables and the figure of both models' losses.
//
//     paper --primes N --data DIR --out OUT  N pieces of DIR/test.safetensors, or all: OUT/prime-1.mid and so on
//     paper --data DIR --out OUT --recipes R OUT/paper.md, OUT/table.csv, OUT/losses.svg
//     paper --alone PROGRAM ARGUMENTS        becomes that program, in a process group of its own
//
// The second reads, in OUT/gpt and OUT/lstm, or of the recipe tuned OUT/gpt-tuned and OUT/lstm-tuned, log.csv,
// model.safetensors and eval.txt, which is what the trainer printed for --eval, and OUT/statistics.md, what music_stats
// printed. It computes no loss itself. A missing or damaged file is one sentence, and nothing is written.
#include "recipe/train.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

enum { PRIME_TOKENS = 256, MAX_RESULTS = 4, N_PRIMES = 2 };

typedef struct {
    const char *name, *folder;
    double published; // test loss, and the epochs trained for it
    int published_epochs;
    int64_t parameters, window, best_epoch;
    double best_loss; // as the training saw it, when it chose the model
    LossPoint *points;
    int n;                     // epochs
    double seconds;            // they took together
    bool timed;                // each is known
    int64_t epoch_steps;       // of the first epoch
    double loss, kind_loss[4]; // of eval.txt; the kinds in the order of train_kinds
    int64_t windows, tokens[4];
} Result;

typedef struct {
    Result list[MAX_RESULTS]; // for each recipe both models
    int n;
} Results;

// ---- reading

static bool read_model(Result *result, const char *path, char *error) {
    StFile file;
    if (!st_read(&file, path, error)) return false;
    const char *epoch = st_meta(&file, "epoch"), *window = st_meta(&file, "window");
    const char *loss = st_meta(&file, "test_loss");
    for (int i = 0; i < file.n_tensors; i++) result->parameters += file.tensors[i].count;
    if (epoch) result->best_epoch = atoll(epoch);
    if (loss) result->best_loss = strtod(loss, NULL);
    if (window) result->window = atoll(window);
    bool ok = result->best_epoch > 0 && result->window > 0 && isfinite(result->best_loss);
    st_free(&file);
    return ok || fail(error,
                      "%s: its metadata lack the epoch, the test loss or the window; it should be what a trainer saved",
                      path);
}

static bool read_log(Result *result, const char *path, char *error) {
    char *text;
    size_t size;
    if (!read_file(path, (void **)&text, &size, error)) return false;
    result->timed = true;
    bool ok = true;
    const char *line = strchr(text, '\n'); // behind the head
    for (line = line ? line + 1 : ""; ok && *line; line = strchr(line, '\n') + 1) {
        long long epoch, step, steps;
        LossPoint point;
        double lr;
        int used = 0;
        ok = sscanf(line, "%lld,%lld,%lf,%lf,%lf,%lld,%n", &epoch, &step, &point.train, &point.test, &lr, &steps,
                    &used) == 6 &&
             used && strchr(line, '\n') && epoch == result->n + 1 && steps > 0 && isfinite(point.train + point.test);
        if (!ok) break;
        if (!result->n) result->epoch_steps = steps;
        point.epoch = (double)step / (double)result->epoch_steps;
        result->points = (LossPoint *)must_have(realloc(result->points, (size_t)epoch * sizeof point));
        result->points[result->n++] = point;
        result->seconds += strtod(line + used, NULL);
        result->timed &= line[used] != '\n';
    }
    free(text);
    if (!ok) return fail(error, "%s: row %d is not what a trainer writes", path, result->n + 1);
    return result->n || fail(error, "%s: no epoch is complete yet", path);
}

// "pitch     loss 1.9137 over 23117 tokens", and in the end "eval loss=1.237004 windows=70224 tokens=... stride=1"
static bool read_eval(Result *result, const char *path, char *error) {
    char *text, kind[16];
    size_t size;
    long long windows = 0, stride = 0, tokens;
    if (!read_file(path, (void **)&text, &size, error)) return false;
    for (const char *line = text; line; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        double loss;
        if (sscanf(line, "%15s loss %lf over %lld tokens", kind, &loss, &tokens) == 3) {
            for (int i = 0; i < 4; i++) {
                if (strcmp(kind, train_kinds[i])) continue;
                result->kind_loss[i] = loss;
                result->tokens[i] = tokens;
            }
        }
        sscanf(line, "eval loss=%lf windows=%lld tokens=%lld stride=%lld", &result->loss, &windows, &tokens, &stride);
    }
    free(text);
    result->windows = windows;
    bool complete = stride == 1 && windows > 0 && isfinite(result->loss);
    for (int i = 0; i < 4; i++) complete &= result->tokens[i] > 0 && isfinite(result->kind_loss[i]);
    return complete || fail(error, "%s: is not what a trainer prints for --eval --eval-stride 1", path);
}

static bool read_result(Result *result, const char *out, char *error) {
    static const struct {
        const char *name;
        bool (*read)(Result *, const char *path, char *error);
    } files[] = {{"log.csv", read_log}, {"model.safetensors", read_model}, {"eval.txt", read_eval}};
    const Path folder = path_join(out, result->folder);
    bool ok = true;
    for (int i = 0; ok && i < 3; i++) ok = files[i].read(result, path_join(folder.text, files[i].name).text, error);
    return ok;
}

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

// ---- the tables and the figure

static void print_losses(TextBuffer *out, const Results *results) {
    text_print(
        out,
        "# Two models of piano music\n\n"
        "The loss is the mean negative log-likelihood per token (nats): lower is better. The test loss is that of\n"
        "the run's best model over every window of the test pieces; in training only some of them were looked at\n"
        "after each epoch, and the best was chosen by these.\n\n"
        "| model              | parameters |  test windows | test loss | in training | best epoch | training time |"
        "  published test loss |\n"
        "|--------------------|-----------:|--------------:|----------:|------------:|-----------:|--------------:|"
        "---------------------:|\n");
    for (int k = 0; k < results->n; k++) {
        const Result *r = &results->list[k];
        char parameters[32], windows[64], best[64], time[64], text[32];
        snprintf(windows, sizeof windows, "%s x %lld", thousands(text, r->windows), (long long)r->window);
        snprintf(best, sizeof best, "%lld of %d", (long long)r->best_epoch, r->n);
        snprintf(time, sizeof time, "%s%s", r->timed ? "" : "over ", duration_text(text, r->seconds));
        text_print(out, "| %-18s | %10s | %13s | %9.4f | %11.4f | %10s | %13s | %.3f after %d epochs |\n", r->name,
                   thousands(parameters, r->parameters), windows, r->loss, r->best_loss, best, time, r->published,
                   r->published_epochs);
    }
    text_print(
        out,
        "\nThe published models were trained on 214 pieces and tested on 24 others, each on a random 35 %% of their\n"
        "windows of 256. Only losses on the same pieces can be compared.\n\n![Loss by epoch](losses.svg)\n\n");
}

static void print_kinds(TextBuffer *out, const Results *results) {
    double all = 0;
    text_print(
        out, "## Test loss by kind of token\n\n| model              |    bar | offset |  pitch | duration |    all |\n"
             "|--------------------|-------:|-------:|-------:|---------:|-------:|\n");
    for (int k = 0; k < results->n; k++) {
        const Result *r = &results->list[k];
        text_print(out, "| %-18s |", r->name);
        for (int i = 0; i < 4; i++) text_print(out, " %*.4f |", i == 3 ? 8 : 6, r->kind_loss[i]);
        text_print(out, " %6.4f |\n", r->loss);
    }
    const int64_t *tokens = results->list[0].tokens;
    for (int i = 0; i < 4; i++) all += (double)tokens[i];
    text_print(out, "| share of tokens    |");
    for (int i = 0; i < 4; i++) text_print(out, " %*.1f%% |", i == 3 ? 7 : 5, 100 * (double)tokens[i] / all);
    text_print(out, "   100%% |\n\n");
}

static void print_samples(TextBuffer *out, const Results *results, const Dataset *test) {
    text_print(out,
               "## Samples\n\nBy each model, at temperature 1, two pieces of 1,024 tokens, and two continuations of "
               "768 tokens\n"
               "after the first 256 (grey) of two test pieces. Each picture is also a .mid file of that name.\n");
    for (int k = 0; k < N_PRIMES; k++) {
        int64_t p = prime_piece(test, k, N_PRIMES);
        const char *name = dataset_name(test, p);
        text_print(out, "- prime-%d.mid: test piece %lld, %.*s\n", k + 1, (long long)p + 1, (int)strcspn(name, "\n"),
                   name);
    }
    for (int k = 0; k < results->n; k++) {
        const Result *r = &results->list[k];
        text_print(out, "\n### %s\n\n", r->name);
        for (int i = 0; i < 4; i++) {
            const char *what = i < 2 ? "sample" : "continued";
            text_print(out, "![%s %d](%s-%s-%d.svg)\n", what, i % 2 + 1, r->folder, what, i % 2 + 1);
        }
    }
}

// The lines of a file that paper.sh has written, each behind an indent.
static bool print_file(TextBuffer *out, const char *folder, const char *name, const char *indent, char *error) {
    char *text;
    size_t size;
    bool ok = read_file(path_join(folder, name).text, (void **)&text, &size, error);
    for (const char *line = text, *end; ok && *line; line = end + (*end == '\n')) {
        end = line + strcspn(line, "\n");
        text_print(out, "%s%.*s\n", indent, (int)(end - line), line);
    }
    free(text);
    return ok;
}

static bool print_statistics(TextBuffer *out, const char *folder, char *error) {
    text_print(out,
               "\n## Statistics\n\n"
               "Of excerpts of 1,024 tokens: of the pieces, and of songs that each model has written at temperature "
               "1, free\nor going on from 256 tokens of the test pieces (which do not count). `music_stats --help` "
               "tells what each\ncolumn is. Songs are like music where they overlap with the test pieces as much as "
               "training pieces do.\n\n");
    return print_file(out, folder, "statistics.md", "", error);
}

static bool print_settings(TextBuffer *out, const char *folder, char *error) {
    text_print(out, "\n## Settings\n\n"
                    "The published recipe is the trainers' own; flags beside it make another experiment.\n\n");
    return print_file(out, folder, "settings.txt", "    ", error);
}

static void print_csv(TextBuffer *out, const Results *results) {
    text_print(out,
               "model,parameters,test_loss,seen_test_loss,best_epoch,epochs,seconds,published_loss,published_epochs,"
               "windows,window");
    for (int i = 0; i < 4; i++) text_print(out, ",%s_loss,%s_tokens", train_kinds[i], train_kinds[i]);
    text_print(out, "\n");
    for (int k = 0; k < results->n; k++) {
        const Result *r = &results->list[k];
        text_print(out, "%s,%lld,%#.7g,%.9g,%lld,%d,%.1f,%g,%d,%lld,%lld", r->folder, (long long)r->parameters, r->loss,
                   r->best_loss, (long long)r->best_epoch, r->n, r->seconds, r->published, r->published_epochs,
                   (long long)r->windows, (long long)r->window);
        for (int i = 0; i < 4; i++) text_print(out, ",%.4f,%lld", r->kind_loss[i], (long long)r->tokens[i]);
        text_print(out, "\n");
    }
}

static void print_curves(TextBuffer *out, const Results *results) {
    LossCurve curves[MAX_RESULTS];
    char epochs[64] = "epoch", count[32];
    bool alike = true;
    for (int k = 0; k < results->n; k++) {
        const Result *r = &results->list[k];
        curves[k] = (LossCurve){r->name, r->points, r->n, k < 2 ? r->published : 0, r->published_epochs}; // once
        alike &= r->epoch_steps == results->list[0].epoch_steps;
    }
    if (alike) snprintf(epochs, sizeof epochs, "epoch (%s steps each)", thousands(count, results->list[0].epoch_steps));
    curves_draw(out, "Loss by epoch: Transformer and LSTM", epochs, curves, results->n);
}

static bool write_text(TextBuffer *text, const char *out, const char *name, char *error) {
    bool ok = text_write(text, path_join(out, name).text, error);
    memset(text, 0, sizeof *text);
    return ok;
}

static bool report_write(const Dataset *test, const char *out, const char *recipes, char *error) {
    static const Result runs[MAX_RESULTS] = {
        {.name = "Transformer", .folder = "gpt", .published = 1.237, .published_epochs = 6},
        {.name = "LSTM", .folder = "lstm", .published = 1.425, .published_epochs = 9},
        {.name = "Transformer, tuned", .folder = "gpt-tuned", .published = 1.237, .published_epochs = 6},
        {.name = "LSTM, tuned", .folder = "lstm-tuned", .published = 1.425, .published_epochs = 9}};
    Results results = {0};
    TextBuffer text = {0};
    bool ok = true;
    for (int k = 0; k < MAX_RESULTS; k++) {
        if (strstr(recipes, k < 2 ? "published" : "tuned")) results.list[results.n++] = runs[k];
    }
    for (int k = 0; ok && k < results.n; k++) ok = read_result(&results.list[k], out, error);
    if (ok) print_curves(&text, &results);
    ok = ok && write_text(&text, out, "losses.svg", error);
    if (ok) print_csv(&text, &results);
    ok = ok && write_text(&text, out, "table.csv", error);
    if (ok) {
        print_losses(&text, &results);
        print_kinds(&text, &results);
        print_samples(&text, &results, test);
        ok = print_statistics(&text, out, error) && print_settings(&text, out, error) &&
             write_text(&text, out, "paper.md", error);
    }
    free(text.bytes);
    for (int k = 0; k < results.n; k++) free(results.list[k].points);
    return ok;
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
    } else if (flags.help) {
        printf("paper - the tables and figures of `make paper`, which calls it\n\n");
        flags_print(&flags);
    } else if (flags.version) {
        printf("paper %s\n", MUSIC_VERSION);
    } else {
        Dataset test;
        const Path path = path_join(data, "test.safetensors");
        bool ok = dataset_open(&test, path.text, PRIME_TOKENS, error);
        if (ok && !count_fit(&test)) {
            ok = fail(error, "%s: none of its pieces has the %d tokens of a prime", path.text, PRIME_TOKENS);
        }
        ok = ok && (primes ? primes_write(&test, primes, out, error) : report_write(&test, out, recipes, error));
        status = !ok;
        dataset_close(&test);
    }
    return program_end("paper", status, error);
}
