// Statistics of music side by side: real pieces, and what models write.
//
//     dev/tools/music_stats --train data real=data/test.safetensors model=songs/ other/song.mid
//
// Each WHAT, a dataset, a folder of .mid files or a .mid file, is cut into excerpts of --length tokens, one after
// another; what is left of a piece is left out. The table has the mean of each statistic over the excerpts, the
// standard deviation, and for all but the first WHAT how far its distribution overlaps with that of the first. No value
// is good in itself: songs are like music where they overlap with real pieces as much as other real pieces do.
//
// A bar is what a token BAR ends, or the notes behind the last one. A note or bar line whose offset is cut off by the
// beginning of an excerpt lies at that beginning.
#include "base/program.h" // first: it chooses the system's interfaces

#include "base/flags.h"
#include "sample/figures.h"

#include <dirent.h>
#include <fnmatch.h>

#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

// MusDr: Wu and Yang, The Jazz Transformer on the Front Line, 2020. mgeval: Yang and Lerch, On the Evaluation of
// Generative Models in Music, 2020. MusPy: Dong et al., MusPy, a Toolkit for Symbolic Music Generation, 2020.
enum { H1, H4, GROOVE, SCALE, NOTES, VOICES, RANGE, KEYS, AGAIN, AGAIN8, HEARD, COPIED, N_STATISTICS };
static const struct {
    const char *name, *meaning;
} statistics[N_STATISTICS] = {
    {"H1", "entropy of the pitch classes of a bar, in bits (MusDr)"},
    {"H4", "the same of 4 bars"},
    {"groove", "1 - the share of a bar's 16 places at which only one of two bars has an onset, all pairs (MusDr)"},
    {"scale", "share of the notes in the major or minor scale that has most of them (MusPy)"},
    {"notes", "notes a bar"},
    {"voices", "keys that sound together while any does (MusPy: polyphony)"},
    {"range", "semitones from the lowest to the highest key (mgeval)"},
    {"keys", "different keys (mgeval: pitch count)"},
    {"again", "notes that a bar shares with the earlier bar most like it, of those of both (Jaccard)"},
    {"again8", "the same with bars at least 8 bars back"},
    {"heard", "share of the figures of 8 notes, in any key, that the excerpt has had before"},
    {"copied", "share of these figures that --train has"}};

// ---- an excerpt

enum { PIANO = MIDI_DURATION - MIDI_PITCH, OFFSETS = MIDI_PITCH - MIDI_OFFSET, WORDS = PIANO * OFFSETS / 64 };

typedef struct {
    double notes, classes[12]; // how many, of each pitch class
    uint32_t onsets;           // bit offset: a note begins
    uint64_t places[WORDS];    // bit offset * PIANO + key: such a note does
} Bar;

// The bars of a song, for free(), and one more.
static Bar *bars_of(const midi_song *song, size_t *n_bars) {
    Bar *bars = must_have(calloc(song->n_bars + 1, sizeof *bars));
    size_t b = 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        while (b < song->n_bars && note->start >= song->bars[b]) b++;
        const int64_t offset = (note->start - (b ? song->bars[b - 1] : 0)) / MIDI_STEP;
        const size_t place = (size_t)offset * PIANO + note->key - MIDI_LOWEST_KEY;
        bars[b].notes++;
        bars[b].classes[note->key % 12]++;
        bars[b].onsets |= 1u << offset;
        bars[b].places[place / 64] |= (uint64_t)1 << place % 64;
    }
    *n_bars = song->n_bars + (bars[song->n_bars].notes > 0);
    return bars;
}

// The notes of bars from..to-1 by pitch class. Returns how many.
static double count_classes(const Bar *bars, size_t from, size_t to, double counts[12]) {
    double notes = 0;
    for (int c = 0; c < 12; c++) {
        counts[c] = 0;
        for (size_t b = from; b < to; b++) counts[c] += bars[b].classes[c];
        notes += counts[c];
    }
    return notes;
}

// The mean over all runs of k bars that have notes; NAN, here and below: over none.
static double entropy(const Bar *bars, size_t n, size_t k) {
    double counts[12], sum = 0, runs = 0;
    for (size_t b = 0; b + k <= n; b++) {
        const double notes = count_classes(bars, b, b + k, counts);
        for (int c = 0; c < 12; c++) sum -= counts[c] > 0 ? counts[c] / notes * log2(counts[c] / notes) : 0;
        runs += notes > 0;
    }
    return sum / runs;
}

// Where c of n bars have an onset, c (n - c) of their pairs differ.
static double groove(const Bar *bars, size_t n) {
    double differ = 0;
    for (int offset = 0; offset < OFFSETS; offset++) {
        size_t c = 0;
        for (size_t b = 0; b < n; b++) c += bars[b].onsets >> offset & 1;
        differ += (double)(c * (n - c));
    }
    return 1 - differ / 16 / ((double)n * ((double)n - 1) / 2);
}

static double scale(const Bar *bars, size_t n) {
    enum { MAJOR = 0xAB5 }; // bit c: the key c semitones above the tonic; a minor scale has the notes of a major one
    double counts[12], best = 0;
    const double notes = count_classes(bars, 0, n, counts);
    for (int tonic = 0; tonic < 12; tonic++) {
        double in = 0;
        for (int c = 0; c < 12; c++) in += MAJOR >> c & 1 ? counts[(tonic + c) % 12] : 0;
        best = fmax(best, in);
    }
    return best / notes;
}

static double again(const Bar *bars, size_t n, size_t back) {
    double sum = 0, counted = 0;
    for (size_t a = back; a < n; a++) {
        double best = NAN;
        for (size_t b = 0; b + back <= a; b++) {
            double both = 0, either = 0;
            if (bars[a].notes == 0 || bars[b].notes == 0) continue;
            for (int w = 0; w < WORDS; w++) {
                both += __builtin_popcountll(bars[a].places[w] & bars[b].places[w]);
                either += __builtin_popcountll(bars[a].places[w] | bars[b].places[w]);
            }
            best = fmax(best, both / either);
        }
        if (isnan(best)) continue;
        sum += best;
        counted++;
    }
    return sum / counted;
}

static void measure_keys(const midi_song *song, double *values) {
    int64_t ends[128] = {0}, sounding[2] = {0}; // until then a key has been counted, [0] any key; ticks of any, of each
    double lowest = NAN, highest = NAN;
    values[KEYS] = 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        values[KEYS] += !ends[note->key];
        lowest = fmin(lowest, note->key);
        highest = fmax(highest, note->key);
        for (int each = 0; each < 2; each++) {
            int64_t *end = &ends[each ? note->key : 0];
            if (note->end <= *end) continue;
            sounding[each] += note->end - (note->start > *end ? note->start : *end);
            *end = note->end;
        }
    }
    values[VOICES] = (double)sounding[1] / (double)sounding[0];
    values[RANGE] = highest - lowest;
}

// A figure that came before stands beside another like it, once all are sorted.
static void measure_figures(const uint8_t *tokens, size_t n, const Figures *training, double *values) {
    Figures own = {0};
    double heard = 0, copied = 0;
    figures_make(&own, tokens, (int64_t[]){0, (int64_t)n}, 1);
    for (size_t i = 0; i < own.n; i++) {
        const uint32_t *where;
        heard += i && common_steps(own.sorted[i - 1], own.sorted[i]) >= FIGURE;
        copied += figures_longest(training, own.sorted[i], &where) >= FIGURE;
    }
    values[HEARD] = heard / (double)own.n;
    values[COPIED] = training->n ? copied / (double)own.n : NAN;
    figures_free(&own);
}

// All statistics of n tokens.
static void measure(const uint8_t *tokens, size_t n, const Figures *training, double values[N_STATISTICS]) {
    midi_song song;
    size_t n_bars;
    must(midi_decode(tokens, n, &song, NULL));
    Bar *bars = bars_of(&song, &n_bars);
    values[H1] = entropy(bars, n_bars, 1);
    values[H4] = entropy(bars, n_bars, 4);
    values[GROOVE] = groove(bars, n_bars);
    values[SCALE] = scale(bars, n_bars);
    values[NOTES] = (double)song.n_notes / (double)n_bars;
    values[AGAIN] = again(bars, n_bars, 1);
    values[AGAIN8] = again(bars, n_bars, 8);
    measure_keys(&song, values);
    measure_figures(tokens, n, training, values);
    free(bars);
    midi_free(&song);
}

// ---- what is measured

typedef struct { // of a statistic: without NAN, sorted once all are there
    double *values;
    size_t n;
} Column;

typedef struct {
    char name[256];
    Column columns[N_STATISTICS];
    int n;                   // excerpts
    int64_t length;          // of each, in tokens
    const Figures *training; // of --train, or none
} Music;

static void add_piece(Music *music, const uint8_t *tokens, int64_t n) {
    uint8_t *excerpt = must_have(malloc((size_t)music->length + 1));
    double values[N_STATISTICS];
    excerpt[0] = MIDI_OFFSET; // in front, for what has lost its own
    for (int64_t at = 0; at + music->length <= n; at += music->length, music->n++) {
        memcpy(excerpt + 1, tokens + at, (size_t)music->length);
        measure(excerpt, (size_t)music->length + 1, music->training, values);
        for (int k = 0; k < N_STATISTICS; k++) {
            Column *c = &music->columns[k];
            if (isnan(values[k])) continue;
            c->values = must_have(realloc(c->values, (c->n + 1) * sizeof *c->values));
            c->values[c->n++] = values[k];
        }
    }
    free(excerpt);
}

static bool read_mid(Music *music, const char *path, char *error) {
    midi_song song;
    midi_report report;
    midi_error problem;
    uint8_t *tokens = NULL;
    size_t n;
    const bool ok = midi_read_file(&song, path, 32 << 20, &problem) &&
                    midi_encode(&song, &tokens, &n, &report, &problem) && midi_usable(&song, &report, &problem);
    if (ok) add_piece(music, tokens, (int64_t)n);
    MIDI_FREE(tokens);
    midi_free(&song);
    return ok || fail(error, "%s: %s", path, problem.text);
}

static bool read_dataset(Music *music, const char *path, char *error) {
    Dataset data;
    if (!dataset_open(&data, path, 1, error)) return false;
    for (int64_t p = 0; p < data.n_pieces; p++) {
        add_piece(music, data.tokens + data.pieces[p], data.pieces[p + 1] - data.pieces[p]);
    }
    dataset_close(&data);
    return true;
}

static int is_mid(const struct dirent *entry) { return !fnmatch("*.mid", entry->d_name, FNM_CASEFOLD); }

static bool read_music(Music *music, const char *path, char *error) {
    struct dirent **list = NULL;
    const int n = scandir(path, &list, is_mid, alphasort);
    if (n < 0) return (fnmatch("*.mid", path, FNM_CASEFOLD) ? read_dataset : read_mid)(music, path, error);
    bool ok = n || fail(error, "%s: this folder has no .mid files", path);
    for (int i = 0; i < n; i++) {
        ok = ok && read_mid(music, path_join(path, list[i]->d_name).text, error);
        free(list[i]);
    }
    free(list);
    return ok;
}

// ---- distributions

static double mean(const Column *c) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) sum += c->values[i];
    return sum / (double)c->n;
}

static double deviation(const Column *c) { // the standard one; NAN: there are no two values
    double squares = c->n > 1 ? 0 : NAN;
    const double middle = mean(c);
    for (size_t i = 0; i < c->n; i++) squares += (c->values[i] - middle) * (c->values[i] - middle);
    return sqrt(squares / ((double)c->n - 1));
}

// The density of a column at x, each value a normal distribution of this width.
static double density(const Column *c, double width, double x) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) sum += exp(-0.5 * pow((x - c->values[i]) / width, 2));
    return sum / ((double)c->n * width * sqrt(2 * M_PI));
}

// The area under the lower of two densities: 1 where they are the same, 0 where they never meet, NAN where there is
// none. As in mgeval kernels are normal and have Scott's width, deviation n^(-1/5) (Scott, Multivariate Density
// Estimation, 1992), here at least a 200th of the range; unlike there the area does not end at the outermost values, so
// that a column overlaps itself by 1.
static double overlap(const Column *a, const Column *b) {
    enum { POINTS = 2000 };
    if (!a->n || !b->n) return NAN;
    const double low = fmin(a->values[0], b->values[0]), high = fmax(a->values[a->n - 1], b->values[b->n - 1]);
    const double least = (high - low) / 200, width_a = fmax(least, deviation(a) * pow((double)a->n, -0.2)),
                 width_b = fmax(least, deviation(b) * pow((double)b->n, -0.2)), margin = 5 * fmax(width_a, width_b),
                 step = (high - low + 2 * margin) / POINTS;
    double area = 0;
    for (int i = 0; i < POINTS; i++) {
        const double x = low - margin + (i + 0.5) * step;
        area += fmin(density(a, width_a, x), density(b, width_b, x)) * step;
    }
    return low < high ? area : 1;
}

// ---- the table

static void print_row(const char *name, int n, const double *values) {
    printf("| %-34s | %8.*d |", name, n > 0, n);
    for (int k = 0; k < N_STATISTICS; k++) {
        if (isnan(values[k])) printf("      - |");
        if (!isnan(values[k])) printf(" %6.3f |", values[k]);
    }
    printf("\n");
}

static void print_table(Music *music, int n) {
    printf("| %-34s | excerpts |", "");
    for (int k = 0; k < N_STATISTICS; k++) printf(" %6s |", statistics[k].name);
    printf("\n|------------------------------------|---------:|");
    for (int k = 0; k < N_STATISTICS; k++) printf("-------:|");
    printf("\n");
    for (int i = 0; i < n; i++) {
        double rows[3][N_STATISTICS];
        for (int k = 0; k < N_STATISTICS; k++) {
            Column *c = &music[i].columns[k];
            if (c->n) qsort(c->values, c->n, sizeof *c->values, by_value);
            rows[0][k] = mean(c);
            rows[1][k] = deviation(c);
            rows[2][k] = overlap(&music[0].columns[k], c);
        }
        print_row(music[i].name, music[i].n, rows[0]);
        print_row("spread", 0, rows[1]);
        if (i) print_row("overlap", 0, rows[2]);
    }
}

// ---- the program

static const char before_flags[] =
    "music_stats - statistics of music side by side: of the excerpts of each WHAT the mean and the spread\n"
    "(standard deviation), and the area, 0 to 1, that its distribution has in common with the first one's\n\n";

static bool run(const Texts *words, int64_t length, const char *train, char *error) {
    Figures training = {0};
    Music music[MAX_TEXTS] = {0};
    bool ok = !train || figures_open(&training, train, error);
    for (int i = 0; ok && i < words->n; i++) {
        const char *word = words->list[i], *equals = strchr(word, '='), *path = equals ? equals + 1 : word;
        music[i] = (Music){.length = length, .training = &training};
        snprintf(music[i].name, sizeof music[i].name, "%.*s", (int)strcspn(word, "="), word);
        clean_text(music[i].name, strlen(music[i].name));
        ok = read_music(&music[i], path, error);
        if (train && !strcmp(train, path)) music[i].columns[COPIED].n = 0; // that would be all
    }
    if (ok) print_table(music, words->n);
    for (int i = 0; i < words->n; i++) {
        for (int k = 0; k < N_STATISTICS; k++) free(music[i].columns[k].values);
    }
    figures_free(&training);
    return ok;
}

int main(int argc, char **argv) {
    Flags flags = {0};
    Texts words;
    const char *train;
    int64_t length;
    char error[ERROR_SIZE] = "";
    program_start();
    flag_texts(&flags, "", "[NAME=]WHAT", &words, MAX_TEXTS, "a dataset, a folder of .mid files, or a .mid file");
    flag_text(&flags, "train", "WHERE", &train, NULL, "the training set or its folder, to see what is copied");
    flag_whole(&flags, "length", &length, 1024, 8, 16384, "tokens of an excerpt");
    int status = flags_parse(&flags, argc, argv, error) ? 0 : 2;
    if (!status && flags_answer(&flags, "music_stats", before_flags, "\n")) {
        for (int k = 0; flags.help && k < N_STATISTICS; k++) {
            printf("  %-8s %s\n", statistics[k].name, statistics[k].meaning);
        }
    } else if (!status && !words.n) {
        status = 2;
        fail(error, "give datasets, folders of .mid files or .mid files; --help says more");
    } else if (!status) {
        status = !run(&words, length, train, error);
    }
    return program_end("music_stats", status, error);
}
