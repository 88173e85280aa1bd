// What music shares with a training set, whatever its key and place: figures of 8 notes, and the longest passage.
//
// A note behind another makes a step: how many 16ths later it begins, how many semitones higher it is, how long it
// lasts. The same tune in another key, bar or piece has the same steps. A figure is 7 steps, so 8 notes, of which the
// first may have any length. All passages are sorted (a suffix array: Manber and Myers, 1993): those that begin alike
// stand together, and beside the place of a passage from elsewhere stands the one that has most of its steps.
//
// It promises exact answers: steps are compared, no hashes. Left out: voices (notes are taken in the order in which
// they begin, the lowest first), and tunes that differ in a single note. C11, gcc and clang.
#pragma once

#include "base/data.h"

#include "midi.h"

enum { FIGURE = 7, LONGEST = 1000 }; // steps of a figure, and the most that are compared: no longer match is found

typedef struct {
    Dataset data;            // of a training set; empty for other music
    uint32_t *steps;         // of all pieces, a 0 before each and one at the end; owned
    const uint32_t **sorted; // [n] where the figures begin, by the steps from there to the end of the piece; owned
    size_t n;
} Figures;

static inline void figures_free(Figures *figures) {
    dataset_close(&figures->data);
    free(figures->steps);
    free(figures->sorted);
    memset(figures, 0, sizeof *figures);
}

static inline int common_steps(const uint32_t *a, const uint32_t *b) { // up to the end of a piece
    int n = 0;
    while (n < LONGEST && a[n] && a[n] == b[n]) n++;
    return n;
}

static inline int by_steps(const void *left, const void *right) {
    const uint32_t *a = *(const uint32_t *const *)left, *b = *(const uint32_t *const *)right;
    const int n = common_steps(a, b);
    if (n == LONGEST || a[n] == b[n]) return (a > b) - (a < b);
    return a[n] < b[n] ? -1 : 1;
}

// Never 0; a rest counts as 2^16-1 at most.
static inline uint32_t step_between(const midi_note *a, const midi_note *b) {
    const int64_t later = (b->start - a->start) / MIDI_STEP, length = (b->end - b->start) / MIDI_STEP;
    const int higher = b->key - a->key + 128;
    return (uint32_t)(later < 0xFFFF ? later : 0xFFFF) << 16 | (uint32_t)higher << 8 | (uint32_t)length;
}

// Adds the figures of pieces that begin at these of the tokens, and end at pieces[n_pieces]. But for its data, figures
// was empty before.
static inline void figures_make(Figures *figures, const uint8_t *tokens, const int64_t *pieces, int64_t n_pieces) {
    const size_t most = (size_t)pieces[n_pieces] / 3 + (size_t)n_pieces + 2; // a note has three tokens
    uint32_t *step = figures->steps = must_have(calloc(most, sizeof *figures->steps));
    figures->sorted = must_have(calloc(most, sizeof *figures->sorted));
    for (int64_t p = 0; p < n_pieces; p++) {
        midi_song song;
        must(midi_decode(tokens + pieces[p], (size_t)(pieces[p + 1] - pieces[p]), &song, NULL));
        step++;
        for (size_t i = 1; i < song.n_notes; i++) {
            if (i + FIGURE <= song.n_notes) figures->sorted[figures->n++] = step;
            *step++ = step_between(&song.notes[i - 1], &song.notes[i]);
        }
        midi_free(&song);
    }
    qsort(figures->sorted, figures->n, sizeof *figures->sorted, by_steps);
}

// Opens a training set, a dataset or the train.safetensors of a folder. After a failure there is nothing to free.
static inline bool figures_open(Figures *figures, const char *path, char *error) {
    struct stat about;
    const bool folder = !stat(path, &about) && S_ISDIR(about.st_mode);
    const Path file = path_join(folder ? path : "", folder ? "train.safetensors" : path);
    const Dataset *data = &figures->data;
    memset(figures, 0, sizeof *figures);
    if (!dataset_open(&figures->data, file.text, 1, error)) return false;
    figures_make(figures, data->tokens, data->pieces, data->n_pieces);
    if (figures->n) return true;
    fail(error, "%s: none of its %lld pieces has 8 notes", file.text, (long long)data->n_pieces);
    figures_free(figures);
    return false;
}

// How many steps of a passage lie one after the other in the music of these figures, and where. Less than FIGURE:
// nobody knows where.
static inline int figures_longest(const Figures *figures, const uint32_t *passage, const uint32_t **where) {
    size_t low = 0, high = figures->n; // the passage's place
    int longest = 0;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (by_steps(&figures->sorted[middle], &passage) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low ? low - 1 : 0; i <= low && i < figures->n; i++) {
        const int n = common_steps(figures->sorted[i], passage);
        if (n <= longest) continue;
        longest = n;
        *where = figures->sorted[i];
    }
    return longest;
}

// "  copied 12 notes (waltz.mid)": the longest passage of these tokens that is in a training set, in any key, and a
// piece that has it, by its escaped name. Fewer than 8 notes count as none.
static inline void figures_report(const Figures *training, const uint8_t *tokens, size_t n, TextBuffer *out) {
    Figures own = {0};
    const uint32_t *found = NULL, *where = NULL, *step = training->steps;
    int longest = FIGURE - 1;
    int64_t piece = -1;
    figures_make(&own, tokens, (int64_t[]){0, (int64_t)n}, 1);
    for (size_t i = 0; i < own.n; i++) {
        const int steps = figures_longest(training, own.sorted[i], &found);
        if (steps <= longest) continue;
        longest = steps;
        where = found;
    }
    figures_free(&own);
    text_print(out, "  copied %d notes", where ? longest + 1 : 0);
    if (!where) return;
    for (; step < where; step++) piece += !*step;
    const char *name = dataset_name(&training->data, piece);
    if (*name) text_print(out, " (%.*s)", (int)strcspn(name, "\n"), name);
    if (!*name) text_print(out, " (piece %lld)", (long long)piece + 1);
}
