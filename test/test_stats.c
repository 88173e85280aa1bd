// Statistics of music: bars whose values are counted by hand, the overlap of known distributions, and the longest
// copied passage against brute force.
#define main stats_main
#include "dev/tools/music_stats.c" // first: it chooses the system's interfaces
#undef main

#include "base/philox.h"
#include "check.h"

static uint8_t tokens[4096];
static size_t n_tokens;

static void note(int offset, int key, int duration) {
    tokens[n_tokens++] = (uint8_t)(MIDI_OFFSET + offset);
    tokens[n_tokens++] = (uint8_t)(MIDI_PITCH + key - MIDI_LOWEST_KEY);
    tokens[n_tokens++] = (uint8_t)(MIDI_DURATION + duration - 1);
}

static void bar(void) { // ends one of 16 steps
    tokens[n_tokens++] = MIDI_OFFSET + 16;
    tokens[n_tokens++] = MIDI_BAR;
}

static void is(const double *values, int statistic, double wanted) {
    const double value = values[statistic];
    CHECK(isnan(wanted) ? isnan(value) : fabs(value - wanted) < 1e-12, "%s is %.15g instead of %.15g",
          statistics[statistic].name, value, wanted);
}

static void check_three_bars(void) {
    static const Figures none = {0};
    double values[N_STATISTICS];
    n_tokens = 0;
    for (int i = 0; i < 2; i++) { // C, then G
        note(0, 60, 4);
        note(4, 67, 4);
        bar();
    }
    note(2, 65, 4); // F and F#
    note(2, 66, 8);
    measure(tokens, n_tokens, &none, values);
    is(values, H1, 1);
    is(values, H4, NAN);
    is(values, GROOVE, 1 - (0 + 3 + 3) / 16.0 / 3);
    is(values, SCALE, 5 / 6.0); // C major or G major
    is(values, NOTES, 2);
    is(values, VOICES, (8 + 8 + 12) / 24.0);
    is(values, RANGE, 7);
    is(values, KEYS, 4);
    is(values, AGAIN, (1 + 0) / 2.0);
    is(values, AGAIN8, NAN);
    is(values, HEARD, NAN);
    is(values, COPIED, NAN);

    note(2, 66, 4); // the same key at once, and once more while it sounds
    note(3, 66, 1);
    measure(tokens, n_tokens, &none, values);
    is(values, NOTES, 8 / 3.0);
    is(values, H1, (2 - log2(1 / 4.0) / 4 - 3 * log2(3 / 4.0) / 4) / 3);
    is(values, VOICES, 28 / 24.0);
    is(values, KEYS, 4);
    is(values, AGAIN, 0.5);

    n_tokens = 0; // no note
    bar();
    measure(tokens, n_tokens, &none, values);
    for (int k = 0; k < N_STATISTICS; k++) is(values, k, k == NOTES || k == KEYS ? 0 : NAN);
}

// A tune of a bar, ten times, each a semitone higher than the last, but for the ninth, half of which is the first bar.
static void check_ten_bars(void) {
    static const int64_t eight[] = {0, 8 * 14};
    Figures training = {0};
    double values[N_STATISTICS];
    n_tokens = 0;
    for (int b = 0; b < 10; b++) {
        for (int i = 0; i < 4; i++) note(4 * i, b == 8 && i > 1 ? 90 + i : 60 + b % 8 + b / 9 * 8 + 5 * i, 2);
        bar();
    }
    figures_make(&training, tokens, eight, 1);
    measure(tokens, n_tokens, &training, values);
    is(values, H1, 2);
    // Four bars in a row have 16 notes: 5 classes twice and 6 once. With the ninth bar 1 class three times, 4 twice and
    // 5 once, then 2, 2 and 6.
    const double three = -3 / 16.0 * log2(3 / 16.0);
    is(values, H4, (5 * (15 + 12) / 8.0 + (three + 12 / 8.0 + 10 / 8.0) + (2 * three + 6 / 8.0 + 12 / 8.0)) / 7);
    is(values, GROOVE, 1);
    is(values, AGAIN8, (2 / 6.0 + 0) / 2);
    is(values, HEARD, (25 - 4) / 33.0); // 4 of the 25 figures before the ninth bar are new
    is(values, COPIED, 25 / 33.0);
    figures_free(&training);
}

static void check_overlap(void) {
    enum { N = 4000 };
    static double normal[N], shifted[N], far[N], few[] = {1, 1, 1};
    for (int i = 0; i < N; i++) { // quantiles, by Newton's method
        double x = 0;
        for (int k = 0; k < 60; k++) {
            x -= (0.5 * erfc(-x / sqrt(2)) - (i + 0.5) / N) / fmax(1e-3, exp(-x * x / 2) / sqrt(2 * M_PI));
        }
        normal[i] = x;
        shifted[i] = x + 1;
        far[i] = x + 100;
    }
    const Column a = {normal, N}, b = {shifted, N}, c = {far, N}, constant = {few, 3}, none = {0};
    // Two normals d apart have 2 Phi(-d / 2 sigma) in common, and kernels widen sigma.
    const double sigma = sqrt(1 + pow(N, -0.4)), wanted = erfc(0.5 / sigma / sqrt(2));
    CHECK(fabs(mean(&b) - 1) < 1e-9 && fabs(deviation(&b) - 1) < 2e-3, "%g +- %g", mean(&b), deviation(&b));
    CHECK(fabs(overlap(&a, &a) - 1) < 1e-5, "with itself %.7f", overlap(&a, &a));
    CHECK(fabs(overlap(&a, &b) - wanted) < 2e-3, "with its neighbour %.5f instead of %.5f", overlap(&a, &b), wanted);
    CHECK(overlap(&a, &b) == overlap(&b, &a), "the order matters");
    CHECK(overlap(&a, &c) < 1e-6, "with a far one %g", overlap(&a, &c));
    CHECK(overlap(&constant, &constant) == 1, "of equal values %g", overlap(&constant, &constant));
    CHECK(isnan(overlap(&a, &none)) && isnan(mean(&none)) && isnan(deviation(&none)), "of nothing there is no number");
}

// Notes at random, of few kinds, four a bar.
static void random_notes(uint32_t seed, int n) {
    const PhiloxKey key = philox_key(seed, PHILOX_SAMPLE, 0);
    n_tokens = 0;
    for (int i = 0; i < n; i++) {
        const Philox4 word = philox(key, (uint32_t)i, 0, 0, 0);
        note((int)(i % 4 * 4), 60 + (int)(word.x[0] % 2), 1 + (int)(word.x[1] % 8 == 0));
        if (i % 4 == 3) bar();
    }
}

static void check_longest(void) {
    static uint8_t training_tokens[4096];
    Figures training = {0}, own = {0};
    random_notes(5, 400);
    const int64_t ends[] = {0, 14 * 30, 14 * 30, 14 * 100}, all[] = {0, 14 * 100};
    memcpy(training_tokens, tokens, n_tokens);
    figures_make(&training, training_tokens, ends, 3);
    CHECK(training.n == 120 - 7 + 280 - 7, "%zu figures", training.n);
    random_notes(6, 400);
    figures_make(&own, tokens, all, 1);
    CHECK(own.n == 393, "%zu figures", own.n);
    size_t found = 0, wrong = 0;
    for (size_t i = 0; i < own.n; i++) {
        const uint32_t *passage = own.sorted[i], *where = NULL;
        const int longest = figures_longest(&training, passage, &where);
        int wanted = 0;
        for (size_t k = 0; k < training.n; k++) {
            const int n = common_steps(passage, training.sorted[k]);
            wanted = n > wanted ? n : wanted;
        }
        wrong += longest != wanted || (longest >= FIGURE && common_steps(where, passage) != longest);
        found += longest >= FIGURE;
    }
    CHECK(wrong == 0 && found > 20, "%zu of %zu passages are not the longest", wrong, found);
    figures_free(&own);
    figures_free(&training);
}

// What the report says of a tune of 20 notes that a training set of two pieces has, in another key and bar.
static void check_copies(void) {
    char names[] = "a.mid\nb%25.mid";
    Figures training = {.data = {.names = names}};
    TextBuffer out = {0};
    random_notes(7, 40);
    size_t half = n_tokens;
    for (int i = 0; i < 20; i++) note(i + 3, 50 + i * i % 11, 1 + i % 3);
    const int64_t ends[] = {0, (int64_t)half, (int64_t)n_tokens};
    figures_make(&training, tokens, ends, 2);
    static uint8_t song[400];
    size_t n = 0;
    for (int i = 0; i < 20; i++) {
        n_tokens = 0;
        note(i + 9, 57 + i * i % 11, 1 + i % 3);
        memcpy(song + n, tokens, 3);
        n += 3;
    }
    figures_report(&training, song, n, &out);
    figures_report(&training, song, 3 * 8, &out);
    figures_report(&training, song, 3 * 7, &out);
    training.data.names = "";
    figures_report(&training, song, n, &out);
    song[3 * 7 + 1]++; // the pitch of note 8
    figures_report(&training, song, 3 * 12, &out);
    const char *wanted = "  copied 20 notes (b%25.mid)  copied 8 notes (b%25.mid)  copied 0 notes  copied 20 notes "
                         "(piece 2)  copied 0 notes";
    CHECK(out.size == strlen(wanted) && !memcmp(out.bytes, wanted, out.size), "%.*s", (int)out.size, out.bytes);
    free(out.bytes);
    figures_free(&training);
}

// A dataset, and a folder with the same pieces as .mid files: the same excerpts. --train is then no news of itself.
static void check_folder_of_songs(void) {
    char folder[200], error[ERROR_SIZE];
    int64_t pieces[4] = {0};
    static uint8_t all[9000];
    check_folder(folder);
    Path data_path = path_join(folder, "data"), songs_path = path_join(folder, "songs");
    char *data = data_path.text, *songs = songs_path.text;
    CHECK(make_folders(songs, error), "%s", error);
    for (int p = 0; p < 3; p++) {
        char name[16];
        midi_song song;
        uint8_t *bytes = NULL;
        size_t size = 0;
        random_notes((uint32_t)p, 240 + 40 * p);
        memcpy(all + pieces[p], tokens, n_tokens);
        pieces[p + 1] = pieces[p] + (int64_t)n_tokens;
        CHECK(midi_decode(tokens, n_tokens, &song, NULL) && midi_write(&song, &bytes, &size, NULL), "no song");
        snprintf(name, sizeof name, "%d.MID", p);
        CHECK(write_file_atomically(path_join(songs, name).text, bytes, size, error), "%s", error);
        free(bytes);
        midi_free(&song);
    }
    CHECK(dataset_save(data, all, pieces[3], pieces, 3, "", error), "%s", error);
    Figures training;
    CHECK(figures_open(&training, data, error), "%s", error);
    Music a = {.length = 300, .training = &training}, b = a;
    CHECK(read_music(&a, data, error) && read_music(&b, songs, error), "%s", error);
    CHECK(a.n == 2 + 3 + 3 && b.n == a.n, "%d and %d excerpts", a.n, b.n);
    for (int k = 0; k < N_STATISTICS; k++) {
        const Column *x = &a.columns[k], *y = &b.columns[k];
        CHECK(x->n == y->n && x->n && !memcmp(x->values, y->values, x->n * sizeof *x->values), "%s differs",
              statistics[k].name);
        free(x->values);
        free(y->values);
    }
    CHECK(stats_main(4, (char *[]){"music_stats", "--train", data, songs}) == 0, "the program fails");
    figures_free(&training);
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    CHECK(system(command) == 0, "%s stays", folder);
}

int main(void) {
    check_three_bars();
    check_ten_bars();
    check_overlap();
    check_longest();
    check_copies();
    check_folder_of_songs();
    return check_report("stats");
}
