// Tests of midi.h: every rule by example (token_cases.tsv), round trips, the grammar, what cannot be written, hostile
// bytes, claims of absurd sizes, and every allocation failing once. Also compiles as C++.
// Usage: test_midi [token_cases.tsv]
#include "check.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// Memory is counted, and can be made to fail: memory_left is how many allocations still succeed, -1 = all.
static size_t memory_now, memory_peak;
static long memory_left = -1;

static void *test_realloc(void *old, size_t size) {
    if (memory_left == 0) return NULL;
    if (memory_left > 0) memory_left--;
    size_t *block = (size_t *)old, before = block ? block[-2] : 0;
    block = (size_t *)realloc(block ? block - 2 : NULL, size + 2 * sizeof(size_t));
    if (!block) return NULL;
    block[0] = size;
    memory_now += size - before;
    if (memory_now > memory_peak) memory_peak = memory_now;
    return block + 2;
}

static void *test_malloc(size_t size) { return test_realloc(NULL, size); }

static void test_free(void *memory) {
    size_t *block = (size_t *)memory;
    if (!block) return;
    memory_now -= block[-2];
    free(block - 2);
}

#define MIDI_MALLOC test_malloc
#define MIDI_REALLOC test_realloc
#define MIDI_FREE test_free
#define MIDI_IMPLEMENTATION
#include "midi.h"

enum { MOST_BYTES = 4096, MOST_TOKENS = 4096, MOST_CASES = 400 };

typedef struct {
    char name[64];
    bool error;
    uint8_t *bytes;
    size_t size;
    uint8_t tokens[MOST_TOKENS];
    size_t n;
} Case;

static Case *cases;
static int n_cases;

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n) { // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ull >> 33) % n);
}

// Fields: name, tokens or "error" or "-", bytes in hexadecimal or "-", rule.
static bool parse_case(char *line, Case *one) {
    char *field[4] = {line, NULL, NULL, NULL};
    for (int i = 1; i < 4; i++) {
        char *tab = strchr(field[i - 1], '\t');
        if (!tab) return false;
        *tab = 0;
        field[i] = tab + 1;
    }
    snprintf(one->name, sizeof one->name, "%.63s", field[0]);
    one->error = !strcmp(field[1], "error");
    one->n = one->size = 0;
    if (!one->error && strcmp(field[1], "-")) {
        for (char *at = field[1]; *at && one->n < MOST_TOKENS;) one->tokens[one->n++] = (uint8_t)strtol(at, &at, 10);
    }
    size_t size = strcmp(field[2], "-") ? strlen(field[2]) / 2 : 0;
    one->bytes = (uint8_t *)malloc(size + 1);
    for (; one->size < size; one->size++) {
        char digits[3] = {field[2][2 * one->size], field[2][2 * one->size + 1], 0};
        one->bytes[one->size] = (uint8_t)strtol(digits, NULL, 16);
    }
    return true;
}

static void read_cases(const char *path) {
    static char line[64 << 10];
    cases = (Case *)malloc(MOST_CASES * sizeof *cases);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL, "%s can be opened", path);
    while (file && n_cases < MOST_CASES && fgets(line, sizeof line, file)) {
        if (line[0] != '#' && parse_case(line, &cases[n_cases])) n_cases++;
    }
    if (file) fclose(file);
    CHECK(n_cases >= 150, "only %d cases in %s", n_cases, path);
    if (!n_cases) exit(check_report("midi"));
}

static void show_tokens(const char *what, const uint8_t *tokens, size_t n) {
    printf("  %s:", what);
    for (size_t i = 0; i < n && i < 60; i++) printf(" %d", tokens[i]);
    printf("%s\n", n > 60 ? " ..." : "");
}

static void test_cases(void) {
    for (int i = 0; i < n_cases; i++) {
        const Case *one = &cases[i];
        midi_song song;
        midi_error error;
        uint8_t *tokens = NULL;
        size_t n = 0;
        error.text[0] = 0;
        bool good = midi_read(&song, one->bytes, one->size, &error) && midi_encode(&song, &tokens, &n, NULL, &error);
        bool same = good != one->error && n == one->n && (n == 0 || !memcmp(tokens, one->tokens, n));
        CHECK(same, "%s gives other tokens (%s)", one->name, error.text);
        CHECK(good || (strlen(error.text) > 10 && strlen(error.text) < 190), "%s: error '%s'", one->name, error.text);
        if (!same) show_tokens("got", tokens, n), show_tokens("expected", one->tokens, one->n);
        midi_free(&song);
        MIDI_FREE(tokens);
    }
}

// Rule Q against the formula, where ties are likely.
static void test_steps(void) {
    int wrong = 0;
    for (int i = 0; i < 200000; i++) {
        int division = i % 2 ? 1 + (int)random_below(32767) : 120 * (1 + (int)random_below(100));
        int64_t tick = random_below(2) ? random_below(1 << 20) : (int64_t)division * random_below(1 << 12) / 8;
        volatile double quotient = 4.0 / (double)division;
        wrong += midi_steps(tick, division) != (int64_t)rint((double)tick * quotient);
    }
    CHECK(wrong == 0, "%d of 200000 steps differ from rint(tick * (4 / division))", wrong);
    CHECK(midi_steps(2175, 600) == 15, "14.5 in exact arithmetic, above it in double");
    CHECK(midi_steps(60, 480) == 0 && midi_steps(180, 480) == 2 && midi_steps(300, 480) == 2, "ties go to even");
    CHECK(midi_steps(INT64_MAX, 1) == 1 << 25, "clamped");
}

static int by_all(const void *left, const void *right) {
    const midi_note *a = (const midi_note *)left, *b = (const midi_note *)right;
    const int64_t keys[6][2] = {{a->track, b->track}, {a->start, b->start},     {a->end, b->end},
                                {a->key, b->key},     {a->channel, b->channel}, {a->velocity, b->velocity}};
    for (int i = 0; i < 6; i++) {
        if (keys[i][0] != keys[i][1]) return keys[i][0] < keys[i][1] ? -1 : 1;
    }
    return 0;
}

static bool same_songs(midi_song *a, midi_song *b) { // sorts the notes of both
    if (a->format != b->format || a->division != b->division || a->n_notes != b->n_notes || a->n_texts != b->n_texts ||
        a->n_tempos != b->n_tempos || a->n_meters != b->n_meters) {
        return false;
    }
    if (a->n_notes) {
        qsort(a->notes, a->n_notes, sizeof(midi_note), by_all);
        qsort(b->notes, b->n_notes, sizeof(midi_note), by_all);
    }
    for (size_t i = 0; i < a->n_notes; i++) {
        if (by_all(&a->notes[i], &b->notes[i])) return false;
    }
    for (size_t i = 0; i < a->n_tempos; i++) {
        const midi_tempo *x = &a->tempos[i], *y = &b->tempos[i];
        if (x->tick != y->tick || x->us_per_quarter != y->us_per_quarter || x->track != y->track) return false;
    }
    for (size_t i = 0; i < a->n_meters; i++) {
        const midi_meter *x = &a->meters[i], *y = &b->meters[i];
        if (x->tick != y->tick || x->numerator != y->numerator || x->exponent != y->exponent || x->track != y->track) {
            return false;
        }
    }
    for (size_t i = 0; i < a->n_texts; i++) {
        const midi_text *x = &a->texts[i], *y = &b->texts[i];
        if (x->tick != y->tick || x->type != y->type || x->track != y->track || x->length != y->length ||
            memcmp(x->text, y->text, x->length)) {
            return false;
        }
    }
    return true;
}

// What must hold for any bytes; returns the first thing that does not, or NULL.
static const char *properties(const uint8_t *bytes, size_t size) {
    const char *problem = NULL;
    midi_song song, again, back;
    midi_error error;
    midi_report report;
    uint8_t *tokens = NULL, *retokens = NULL, *written = NULL;
    size_t n = 0, n_again = 0, written_size = 0;
    memset(&again, 0, sizeof again);
    memset(&back, 0, sizeof back);
    error.text[0] = 0;
    bool encoded = false;
    if (!midi_read(&song, bytes, size, &error)) {
        if (!error.text[0]) problem = "no sentence";
        if (song.notes || song.n_notes || song.texts) problem = "not empty after an error";
    } else {
        encoded = midi_encode(&song, &tokens, &n, &report, &error);
        for (size_t i = 0; i < song.n_notes; i++) {
            if (song.notes[i].end < song.notes[i].start) problem = "a note ends before it starts";
        }
        if (!midi_write(&song, &written, &written_size, &error)) {
            if (!strstr(error.text, "gap")) problem = "cannot be written";
        } else if (!midi_read(&again, written, written_size, &error)) {
            problem = "what was written cannot be read";
        } else if (!same_songs(&song, &again)) {
            problem = "what was written reads otherwise";
        } else if (encoded) {
            again.last_mark = song.last_mark;
            if (!midi_encode(&again, &retokens, &n_again, NULL, &error) || n != n_again ||
                memcmp(tokens, retokens, n)) {
                problem = "what was written gives other tokens";
            }
        }
    }
    if (encoded && !problem) {
        for (size_t i = 0; i < n; i++) {
            if (!midi_may_follow(i ? tokens[i - 1] : -1, tokens[i])) problem = "tokens against the grammar";
        }
        size_t pieces = 0;
        for (size_t i = 0; i < song.n_notes; i++) {
            const midi_note *note = &song.notes[i];
            int64_t steps = midi_steps(note->end, song.division) - midi_steps(note->start, song.division);
            if (note->key >= MIDI_LOWEST_KEY && note->key <= MIDI_HIGHEST_KEY) pieces += (size_t)(steps + 31) / 32;
        }
        if (!midi_decode(tokens, n, &back, &error)) problem = "tokens do not decode";
        if (back.dropped_tokens || back.n_bars != report.bars || back.n_notes != pieces) problem = "decoded otherwise";
        if (report.notes + report.vanished + report.out_of_range != song.n_notes)
            problem = "a report that does not add up";
    }
    midi_free(&song);
    midi_free(&again);
    midi_free(&back);
    MIDI_FREE(tokens);
    MIDI_FREE(retokens);
    MIDI_FREE(written);
    if (memory_now) problem = "memory is lost";
    return problem;
}

static void test_hostile(void) {
    const char *problem = NULL;
    int n = 0;
    for (int i = 0; i < n_cases && !problem; i++) { // every truncation
        for (size_t size = 0; size <= cases[i].size && !problem; size++, n++) {
            uint8_t *bytes =
                (uint8_t *)malloc(size + (size == 0)); // exactly as long, so that sanitizers see a byte too far
            memcpy(bytes, cases[i].bytes, size);
            problem = properties(bytes, size);
            if (problem) printf("  %s cut to %u bytes\n", cases[i].name, (unsigned)size);
            free(bytes);
        }
    }
    CHECK(!problem, "after %d truncations: %s", n, problem);
    problem = NULL;
    for (n = 0; n < 5000 && !problem; n++) {
        const Case *one = &cases[random_below((uint32_t)n_cases)], *other = &cases[random_below((uint32_t)n_cases)];
        size_t keep = one->size ? random_below((uint32_t)one->size + 1) : 0;
        size_t from = other->size ? random_below((uint32_t)other->size) : 0;
        bool splice = random_below(4) == 0;
        size_t size = splice ? keep + other->size - from : one->size;
        uint8_t *bytes = (uint8_t *)malloc(size + (size == 0));
        memcpy(bytes, one->bytes, splice ? keep : size);
        if (splice) memcpy(bytes + keep, other->bytes + from, other->size - from);
        for (uint32_t k = random_below(4); size > 0 && k < 4; k++) {
            static const uint8_t favourites[8] = {0, 1, 0x7F, 0x80, 0xFF, 0x90, 0xF0, 0x2F};
            bytes[random_below((uint32_t)size)] =
                random_below(2) ? favourites[random_below(8)] : (uint8_t)random_below(256);
        }
        problem = properties(bytes, size);
        free(bytes);
    }
    CHECK(!problem, "mutation %d: %s", n, problem);
}

// ---- songs made by hand

static void empty_song(midi_song *song, int format) {
    memset(song, 0, sizeof *song);
    song->format = format;
    song->division = 480;
}

static void test_writing(void) {
    static const uint8_t example[] = {0x4D, 0x54, 0x68, 0x64, 0,    0,    0, 6,    0,    0,  0, 1,
                                      0x01, 0xE0, 0x4D, 0x54, 0x72, 0x6B, 0, 0,    0,    12, 0, 0x90,
                                      0x3C, 0x50, 0x83, 0x60, 0x3C, 0,    0, 0xFF, 0x2F, 0};
    midi_song song, again;
    midi_error error;
    uint8_t *bytes;
    size_t size;
    empty_song(&song, 0);
    midi_add_note(&song, 0, 480, 60, 80, 0, 0);
    CHECK(midi_write(&song, &bytes, &size, &error), "%s", error.text);
    CHECK(size == sizeof example && !memcmp(bytes, example, size), "the file in the head of midi.h, got %u bytes",
          (unsigned)size);
    MIDI_FREE(bytes);

    // Everything at once: events out of order, two tracks, texts with a zero in them, long numbers.
    song.format = 1;
    midi_add_note(&song, 960, 960, 60, 1, 15, 2);
    midi_add_note(&song, 480, 960, 60, 127, 15, 2);
    midi_add_note(&song, 960, 300000000, 60, 64, 15, 2);
    midi_add_note(&song, 240, 480, 60, 90, 0, 0);
    midi_add_tempo(&song, 480, 16777215, 0);
    midi_add_tempo(&song, 0, 0, 1);
    midi_add_meter(&song, 0, 255, 7, 0);
    midi_add_meter(&song, 0, 3, 2, 1);
    midi_add_text(&song, 0, 1,
                  "a text of more than 127 bytes ................................................................"
                  "...................................................",
                  0);
    midi_add_text(&song, 100, 6, "marker", 2);
    song.texts[1].text[2] = 0;
    CHECK(!midi_write(&song, &bytes, &size, &error) && strstr(error.text, "gap"), "a gap above 2^28: %s", error.text);
    song.notes[3].end = 960 + (1 << 28) - 1;
    CHECK(midi_write(&song, &bytes, &size, &error), "%s", error.text);
    CHECK(midi_read(&again, bytes, size, &error), "%s", error.text);
    // The reader has the tempos of track 0 before those of track 1, as they stand here.
    CHECK(same_songs(&song, &again), "the song reads otherwise");
    CHECK(again.n_tracks == 3 && again.open_notes == 0 && again.unmatched_offs == 0, "%d tracks", again.n_tracks);
    midi_free(&again);
    MIDI_FREE(bytes);

    song.format = 0;
    CHECK(midi_write(&song, &bytes, &size, &error) && midi_read(&again, bytes, size, &error), "%s", error.text);
    CHECK(again.n_tracks == 1 && again.format == 0 && again.n_notes == 5, "all in one track");
    midi_free(&again);
    MIDI_FREE(bytes);
    midi_free(&song);

    // A meta event between two notes ends running status.
    empty_song(&song, 0);
    midi_add_note(&song, 0, 10, 60, 80, 0, 0);
    midi_add_tempo(&song, 5, 500000, 0);
    CHECK(midi_write(&song, &bytes, &size, &error) && size == 41 && bytes[34] == 0x90, "%u bytes", (unsigned)size);
    MIDI_FREE(bytes);
    midi_free(&song);

    // The pedal is lifted before what ends and begins at its tick, and pressed again if another one begins there.
    static const uint8_t pedals[] = {0,    0xB3, 64, 127, 10,   0xB3, 64, 0, 0,    0xB3, 64, 127, 0,
                                     0x90, 60,   80, 10,  0xB3, 64,   0,  0, 0x90, 60,   0,  0};
    empty_song(&song, 0);
    midi_add_note(&song, 10, 20, 60, 80, 0, 0);
    midi_add_pedal(&song, 10, 20, 3, 0), midi_add_pedal(&song, 0, 10, 3, 0);
    CHECK(midi_write(&song, &bytes, &size, &error), "%s", error.text);
    CHECK(size > 22 + sizeof pedals && !memcmp(bytes + 22, pedals, sizeof pedals), "the pedals are written otherwise");
    CHECK(midi_read(&again, bytes, size, &error) && again.pedal_presses == 2 && !again.n_pedals, "%s", error.text);
    MIDI_FREE(bytes);
    midi_free(&song), midi_free(&again);

    // Notes of one key that begin together keep their velocities, and the last of three that end together too.
    empty_song(&song, 0);
    midi_add_note(&song, 0, 500, 60, 10, 0, 0);
    midi_add_note(&song, 0, 300, 60, 20, 0, 0);
    midi_add_note(&song, 100, 500, 60, 30, 0, 0);
    midi_add_note(&song, 500, 500, 60, 40, 0, 0);
    CHECK(midi_write(&song, &bytes, &size, &error) && midi_read(&again, bytes, size, &error), "%s", error.text);
    CHECK(same_songs(&song, &again), "notes of one key read otherwise");
    midi_free(&again);
    MIDI_FREE(bytes);
    midi_free(&song);

    // Notes of one key that overlap: the first to begin ends first.
    empty_song(&song, 0);
    midi_add_note(&song, 0, 900, 60, 10, 0, 0);
    midi_add_note(&song, 100, 500, 60, 20, 0, 0);
    CHECK(midi_write(&song, &bytes, &size, &error) && midi_read(&again, bytes, size, &error), "%s", error.text);
    CHECK(again.n_notes == 2 && again.notes[0].end == 500 && again.notes[0].velocity == 10 && again.notes[1].end == 900,
          "first in, first out");
    midi_free(&again);
    MIDI_FREE(bytes);
    midi_free(&song);
}

// Songs with one field out of its range must be refused, by midi_write and by midi_encode.
static void test_refused(void) {
    for (int i = 0; i < 25; i++) {
        midi_song song;
        midi_error error;
        uint8_t *bytes;
        size_t size;
        empty_song(&song, 1);
        midi_add_note(&song, 0, 480, 60, 80, 0, 0);
        midi_add_tempo(&song, 0, 500000, 0);
        midi_add_meter(&song, 0, 4, 2, 0);
        midi_add_text(&song, 0, 1, "x", 0);
        midi_add_pedal(&song, 0, 480, 0, 0);
        midi_note *note = song.notes;
        switch (i) {
        case 0: note->start = -1; break;
        case 1: note->start = 481; break;
        case 2: note->key = 128; break;
        case 3: note->velocity = 0; break;
        case 4: note->velocity = 128; break;
        case 5: note->channel = 16; break;
        case 6: note->track = -1; break;
        case 7: note->track = 65535; break;
        case 8: song.division = 0; break;
        case 9: song.division = 32768; break;
        case 10: song.format = 2; break;
        case 11: song.n_tracks = 65536; break;
        case 12: song.tempos->tick = -1; break;
        case 13: song.tempos->us_per_quarter = -1; break;
        case 14: song.tempos->us_per_quarter = 1 << 24; break;
        case 15: song.meters->numerator = 0; break;
        case 16: song.meters->exponent = 8; break;
        case 17: song.meters->tick = -1; break;
        case 18: song.texts->type = 0; break;
        case 19: song.texts->type = 16; break;
        case 20: song.texts->tick = -1; break;
        case 21: song.pedals->end = 0; break;
        case 22: song.pedals->start = -1; break;
        case 23: song.pedals->channel = 16; break;
        default: break; // nothing wrong
        }
        int good = midi_write(&song, &bytes, &size, &error);
        CHECK(good == (i == 24) && (good || bytes == NULL), "midi_write, song %d", i);
        MIDI_FREE(bytes);
        good = midi_encode(&song, &bytes, &size, NULL, &error);
        CHECK(good == (i == 24) && (good || bytes == NULL), "midi_encode, song %d", i);
        MIDI_FREE(bytes);
        midi_free(&song);
    }
}

static void test_decoding(void) {
    midi_song song;
    midi_error error;
    // bar at 16; two notes there, the higher first; a duration, a pitch and a bar out of order; a note after offset 31
    static const uint8_t tokens[] = {121, 17, 0, 1, 120, 152, 1, 33, 121, 33, 125, 0, 5, 32, 72, 73, 122, 7};
    CHECK(midi_decode(tokens, sizeof tokens, &song, &error), "%s", error.text);
    CHECK(song.division == 480 && song.n_notes == 3 && song.n_bars == 1 && song.bars[0] == 16 * MIDI_STEP,
          "%u notes, %u bars", (unsigned)song.n_notes, (unsigned)song.n_bars);
    CHECK(song.dropped_tokens == sizeof tokens - 3 * 3 - 2, "%u tokens dropped", (unsigned)song.dropped_tokens);
    if (song.n_notes == 3) {
        const midi_note *a = &song.notes[0], *b = &song.notes[1], *c = &song.notes[2];
        CHECK(a->start == 16 * 120 && a->key == 21 && a->end == 17 * 120 && a->velocity == 80, "first note");
        CHECK(b->start == 16 * 120 && b->key == 108 && b->end == 48 * 120, "second note");
        CHECK(c->start == 47 * 120 && c->key == 61 && c->end == 49 * 120, "third note: the later pitch counts");
    }
    midi_free(&song);
    static const uint8_t late[] = {1, 72, 2, 121};
    CHECK(midi_decode(late, 4, &song, &error) && song.n_notes == 0, "an offset forgets the pitch before it");
    midi_free(&song);
    uint8_t wrong[3] = {1, 153, 0};
    CHECK(!midi_decode(wrong, 3, &song, &error) && error.offset == 1, "token 153: %s", error.text);
    CHECK(midi_decode(NULL, 0, &song, &error) && song.n_notes == 0, "an empty stream");
    midi_free(&song);
    for (int i = 0; i < 2000; i++) { // any tokens, in any order: within bounds, sorted
        uint8_t any[64];
        size_t n = random_below(64);
        for (size_t k = 0; k < n; k++) any[k] = (uint8_t)random_below(153);
        bool good = midi_decode(any, n, &song, &error);
        for (size_t k = 1; good && k < song.n_notes; k++) {
            const midi_note *a = &song.notes[k - 1], *b = &song.notes[k];
            good = a->start < b->start ||
                   (a->start == b->start && (a->key < b->key || (a->key == b->key && a->end <= b->end)));
        }
        if (!good) CHECK(good, "random tokens %d", i);
        midi_free(&song);
    }
}

static void test_report(void) {
    midi_song song;
    midi_error error;
    midi_report report;
    uint8_t *tokens;
    size_t n;
    empty_song(&song, 0);
    midi_add_note(&song, 0, 32 * 120, 60, 80, 0, 0);
    midi_add_note(&song, 0, 33 * 120, 61, 80, 0, 0);
    midi_add_note(&song, 0, 59, 62, 80, 0, 0);
    midi_add_note(&song, 0, 120, 20, 80, 0, 0);
    midi_add_note(&song, 0, 120, 109, 80, 0, 0);
    CHECK(midi_encode(&song, &tokens, &n, &report, &error), "%s", error.text);
    CHECK(report.notes == 2 && report.split == 1 && report.vanished == 1 && report.out_of_range == 2,
          "the notes counted");
    CHECK(report.steps == 33 && report.bars == 2 && report.assumed_meter == 1 && n == 3 * 3 + 2 * 2,
          "%u tokens, %u bars", (unsigned)n, (unsigned)report.bars);
    MIDI_FREE(tokens);
    midi_free(&song);
}

// The notes of a song that may be changed before it is encoded, and what is counted of them.
static void test_choices(void) {
    midi_song song;
    midi_error error;
    midi_report report;
    uint8_t *tokens;
    size_t n;
    const uint8_t wanted[] = {1, 72, 121, 1, 74, 124, 3, 73, 121, 4, 0, 1, 74, 121};
    empty_song(&song, 0);
    midi_add_meter(&song, 0, 3, 4, 0);         // bars of three steps
    midi_add_note(&song, 0, 59, 60, 80, 0, 0); // too short
    midi_add_note(&song, 61, 480, 62, 80, 0, 0);
    midi_add_note(&song, 300, 300, 61, 80, 0, 0); // to step 2, which is even
    midi_add_note(&song, 360, 360, 62, 80, 0, 0); // behind what else there is, on a bar line
    midi_add_note(&song, 480, 4800, 40, 80, MIDI_DRUMS, 0);
    midi_add_note(&song, 0, 1, 20, 80, 0, 0); // on no piano
    midi_count(&song, 3, &report);
    CHECK(report.notes == 1 && report.vanished == 2 && report.out_of_range == 1 && report.drums == 0,
          "the notes before step 3");
    CHECK(report.moved == 1, "%u notes moved", (unsigned)report.moved);
    midi_count(&song, INT64_MAX, &report);
    CHECK(report.notes == 2 && report.vanished == 3 && report.drums == 1 && report.pieces == 3, "all notes");
    CHECK(midi_drop_drums(&song) == 1 && song.dropped_drums == 1 && song.n_notes == 5, "one drum");
    CHECK(midi_drop_drums(&song) == 0 && song.dropped_drums == 1, "no other drum");
    song.notes[1].start = 0;
    CHECK(midi_keep_short(&song) == 3 && midi_keep_short(&song) == 0, "three short notes");
    CHECK(midi_encode(&song, &tokens, &n, &report, &error), "%s", error.text);
    CHECK(n == sizeof wanted && !memcmp(tokens, wanted, n), "%u tokens", (unsigned)n);
    CHECK(report.notes == 4 && report.vanished == 0 && report.out_of_range == 1 && report.moved == 1, "what was done");
    MIDI_FREE(tokens);
    midi_free(&song);

    int wrong = 0; // a note of no length at every tick of a quarter, in every kind of division
    for (int division = 1; division < 2000; division += division < 50 ? 1 : 97) {
        empty_song(&song, 0);
        song.division = division;
        for (int tick = 0; tick <= division; tick++) midi_add_note(&song, tick, tick, 60, 80, 0, 0);
        midi_keep_short(&song);
        for (int tick = 0; tick <= division; tick++) {
            const midi_note *note = &song.notes[tick];
            int64_t steps = midi_steps(note->end, division) - midi_steps(note->start, division);
            wrong += division < 4 ? note->end != tick + 1 : steps != 1;
        }
        midi_free(&song);
    }
    CHECK(wrong == 0, "%d short notes have another length than a step", wrong);
}

static void reads_as(const char *bytes, size_t size, size_t pedals, size_t unread, const char *words) {
    midi_song song;
    midi_error error;
    midi_report report;
    uint8_t *tokens = NULL;
    size_t n;
    CHECK(midi_read(&song, bytes, size, &error) && midi_encode(&song, &tokens, &n, &report, &error), "%s", error.text);
    CHECK(song.pedal_presses == pedals, "the pedal goes down %u times", (unsigned)song.pedal_presses);
    CHECK(song.unread_tracks == unread, "%u tracks are not read", (unsigned)song.unread_tracks);
    error.text[0] = 0;
    bool good = midi_usable(&song, &report, &error);
    CHECK(good == !words && !strcmp(error.text, words ? words : ""), "'%s', not '%s'", error.text, words);
    MIDI_FREE(tokens);
    midi_free(&song);
}

// Why a song is no music, and what else is counted.
static void test_usable(void) {
#define HEAD(tracks) "MThd\0\0\0\6\0\1\0" tracks "\1\340"
#define TRACK(size, events) "MTrk\0\0\0" size events "\0\377\57\0"
#define NOTE "\0\220\74\120\203\140\74\0" // 8 bytes
#define READS_AS(bytes, pedals, unread, words) reads_as(bytes, sizeof(bytes) - 1, pedals, unread, words)
    READS_AS(HEAD("\1") TRACK("\14", NOTE), 0, 0, NULL);
    READS_AS(HEAD("\1") TRACK("\4", ""), 0, 0, "holds no notes");
    READS_AS(HEAD("\1") TRACK("\4", "") TRACK("\14", NOTE) "XFIH\0\0\0\1!" TRACK("\14", NOTE) "junk", 0, 2,
             "holds no notes: 2 of its tracks not read, because the header announces fewer");
    READS_AS(HEAD("\3") TRACK("\4", ""), 0, 0, "holds no notes: 2 of the tracks that the header announces missing");
    READS_AS(HEAD("\1") TRACK("\13", "\0\220\74\120\1\74\0"), 0, 0,
             "none of its notes can be used: 1 too short for the grid of 16ths");
    READS_AS(HEAD("\1") TRACK("\14", "\0\220\24\120\203\140\24\0"), 0, 0,
             "none of its notes can be used: 1 outside the piano's keys");
    // Bars of a 16th for 2^22 ticks, which are 2^22 / 120 of them, and for 2^27.
    READS_AS(HEAD("\1") TRACK("\35", NOTE "\0\377\130\4\1\4\30\10\202\200\200\0\377\131\2\0\0"), 0, 0, NULL);
    READS_AS(HEAD("\1") TRACK("\35", NOTE "\0\377\130\4\1\4\30\10\300\200\200\0\377\131\2\0\0"), 0, 0,
             "its 1118481 bar lines alone take more than 1000000 tokens");
    // Down, further down, half up, up, on another channel down; in another track the pedal is up again.
    READS_AS(HEAD("\2") TRACK("\35", NOTE "\0\260\100\100\0\100\177\0\100\100\0\100\77\0\261\100\177")
                 TRACK("\10", "\0\261\100\100"),
             3, 0, NULL);
}

static void test_grammar(void) {
    const midi_kind kinds[4] = {MIDI_KIND_BAR, MIDI_KIND_OFFSET, MIDI_KIND_PITCH, MIDI_KIND_DURATION};
    const int first[5] = {0, 1, 33, 121, 153};
    int wrong = 0, allowed = 0;
    for (int token = 0; token < MIDI_TOKENS; token++) {
        int kind = 0;
        while (token >= first[kind + 1]) kind++;
        wrong += midi_token_kind(token) != kinds[kind];
        for (int previous = -1; previous < MIDI_TOKENS; previous++) allowed += midi_may_follow(previous, token);
    }
    CHECK(wrong == 0, "%d tokens of another kind", wrong);
    // After 32 durations, the bar and the start come 32 offsets; after 32 offsets the bar and 88 pitches; after 88
    // pitches 32 durations.
    CHECK(allowed == 32 * 34 + 89 * 32 + 32 * 88, "%d pairs allowed", allowed);
    CHECK(midi_may_follow(-1, 1) && !midi_may_follow(-1, 0) && midi_may_follow(1, 0) && !midi_may_follow(0, 0), "bars");
}

// ---- claims of absurd sizes

typedef struct {
    uint8_t *bytes;
    size_t size, room;
} Bytes;

static void append(Bytes *file, const char *bytes, size_t size, int times) {
    size_t needed = file->size + size * (size_t)times;
    if (needed > file->room) {
        file->room = 2 * needed;
        file->bytes = (uint8_t *)realloc(file->bytes, file->room);
    }
    for (int i = 0; i < times; i++, file->size += size) memcpy(file->bytes + file->size, bytes, size);
}

static void begin(Bytes *file, int division, int tracks) {
    char header[14] = "MThd\0\0\0\6\0\1\0\0";
    header[10] = (char)(tracks >> 8), header[11] = (char)tracks;
    header[12] = (char)(division >> 8), header[13] = (char)division;
    file->bytes = NULL;
    file->size = file->room = 0;
    append(file, header, 14, 1);
}

static void begin_track(Bytes *file) { append(file, "MTrk\0\0\0\0", 8, 1); }

static void end_track(Bytes *file, size_t start) { // start: where the track's chunk begins
    append(file, "\0\xFF\x2F\0", 4, 1);
    size_t size = file->size - start - 8;
    for (int i = 0; i < 4; i++) file->bytes[start + 4 + i] = (uint8_t)(size >> (24 - 8 * i));
}

// Reads, encodes and frees within a second or so and the promised memory. Where QEMU stands for the processor,
// TEST_SLOWER in the environment says how many times slower that may be.
static void try_bomb(const char *name, Bytes *file, bool accepted) {
    midi_song song;
    midi_error error;
    uint8_t *tokens = NULL;
    size_t n = 0;
    memory_peak = 0;
    error.text[0] = 0;
    clock_t start = clock();
    bool good = midi_read(&song, file->bytes, file->size, &error) && midi_encode(&song, &tokens, &n, NULL, &error);
    midi_free(&song);
    MIDI_FREE(tokens);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(good == accepted, "%s: %s", name, good ? "accepted" : error.text);
    const char *slower = getenv("TEST_SLOWER");
    seconds /= slower ? atof(slower) : 1;
    CHECK(seconds < 10, "%s: %.1f s", name, seconds); // sanitizers are slow; quadratic work would take hours
    CHECK(memory_peak < 150e6 + 30.0 * (double)file->size, "%s: %.0f MB", name, (double)memory_peak / 1e6);
    free(file->bytes);
}

static void test_bombs(void) {
    Bytes file;
    begin(&file, 1, 1), begin_track(&file);
    append(&file, "\0\x90\x3C\x40", 4, 1), append(&file, "\xFF\xFF\xFF\x7F\xFF\1\0", 7, 6);
    end_track(&file, 14);
    try_bomb("70 bytes that claim 10^9 steps", &file, false);

    begin(&file, 4, 1), begin_track(&file), append(&file, "\x88\x80\x80\0\xB0\1\1", 7, 1), end_track(&file, 14);
    try_bomb("2^24 steps", &file, true);

    begin(&file, 4, 1), begin_track(&file), append(&file, "\x88\x80\x80\1\xB0\1\1", 7, 1), end_track(&file, 14);
    try_bomb("2^24 + 1 steps", &file, false);

    begin(&file, 480, 1), begin_track(&file);
    append(&file, "\0\x90\x3C\x40", 4, 1), append(&file, "\0\x3C\x40", 3, 200000), append(&file, "\0\x3C\0", 3, 100000);
    append(&file, "\x83\x60\xB0\1\1", 5, 1), end_track(&file, 14);
    try_bomb("200,000 open notes on one key", &file, true);

    begin(&file, 1, 1), begin_track(&file);
    append(&file, "\0\x90\x3C\x40", 4, 1), append(&file, "\0\x3C\x40", 3, 100000);
    append(&file, "\x82\x80\x80\0\xC0\1", 6, 1), end_track(&file, 14);
    try_bomb("100,000 notes of 2^24 steps", &file, false);

    begin(&file, 1, 1), begin_track(&file), append(&file, "\0\x90\x3C\x40", 4, 1), append(&file, "\0\x3C\x40", 3, 6);
    append(&file, "\x82\x80\x80\0\xC0\1", 6, 1), end_track(&file, 14);
    try_bomb("seven notes of 2^24 steps", &file, true);

    begin(&file, 480, 65535);
    for (int i = 0; i < 65535; i++) begin_track(&file), end_track(&file, file.size - 8);
    try_bomb("65,535 tracks", &file, true);

    begin(&file, 1, 1), begin_track(&file);
    append(&file, "\0\xFF\x58\4\1\4\x18\x08\x82\x80\x80\0\xB0\1\1", 15, 1), end_track(&file, 14);
    try_bomb("2^24 bars", &file, true);

    begin(&file, 1, 1), begin_track(&file);
    append(&file, "\0\xFF\x58\4\1\7\x18\x08\x82\x80\x80\0\xB0\1\1", 15, 1), end_track(&file, 14);
    try_bomb("2^27 bar lines of one signature", &file, false);

    begin(&file, 1, 1000);
    for (int i = 0; i < 1000; i++) {
        begin_track(&file);
        append(&file, "\0\xFF\x58\4\1\4\x18\x08\x82\x80\x80\0\xFF\x58\4\1\4\x18\x08", 19, 1);
        end_track(&file, file.size - 8 - 19);
    }
    try_bomb("1,000 signatures of 2^24 bar lines", &file, false);

    begin(&file, 480, 1), begin_track(&file), append(&file, "\0\xFF\x58\4\1\7\x18\x08", 8, 100000),
        end_track(&file, 14);
    try_bomb("100,000 signatures at once", &file, true);

    begin(&file, 480, 1), begin_track(&file), append(&file, "\0\xFF\1\0", 4, 500000), end_track(&file, 14);
    try_bomb("500,000 empty texts", &file, true);

    begin(&file, 480, 1), append(&file, "MTrk\xFF\xFF\xFF\xFF\0\xFF\1\xFF\xFF\xFF\x7F", 15, 1);
    try_bomb("a length of 4 GiB", &file, false);

    file.bytes = NULL, file.size = file.room = 0;
    append(&file, "RIFF\0\0\0\0RMID", 12, 1), append(&file, "MTh", 3, 1000000);
    try_bomb("RMID without MThd", &file, false);
}

// Each allocation in turn fails: an error and nothing lost.
static void test_no_memory(void) {
    const Case *one = NULL;
    for (int i = 0; i < n_cases; i++) {
        if (!strcmp(cases[i].name, "ts_two_tracks_differ")) one = &cases[i];
    }
    CHECK(one != NULL, "the case ts_two_tracks_differ is there");
    bool done = one == NULL;
    long allocations = 0;
    for (; !done && allocations < 100; allocations++) {
        midi_song song, back;
        midi_error error;
        uint8_t *tokens = NULL, *bytes = NULL;
        size_t n = 0, size = 0;
        memset(&back, 0, sizeof back);
        error.text[0] = 0;
        memory_left = allocations;
        done = midi_read(&song, one->bytes, one->size, &error) && midi_add_text(&song, 0, 1, "text", 0) &&
               midi_encode(&song, &tokens, &n, NULL, &error) && midi_decode(tokens, n, &back, &error) &&
               midi_write(&song, &bytes, &size, &error);
        memory_left = -1;
        midi_free(&song);
        midi_free(&back);
        MIDI_FREE(tokens);
        MIDI_FREE(bytes);
        if (!done && error.text[0]) CHECK(error.code == ENOMEM, "%s", error.text);
        if (memory_now)
            CHECK(memory_now == 0, "allocation %ld failed, %u bytes lost", allocations, (unsigned)memory_now);
    }
    CHECK(done && allocations > 8, "%ld allocations", allocations);
}

static void test_files(void) {
    midi_song song;
    midi_error error;
    CHECK(!midi_read_file(&song, "no such file", 1000, &error) && song.notes == NULL, "a missing file");
    CHECK(error.code == ENOENT, "the system's error is %d", error.code);
    CHECK(!midi_read_file(&song, ".", 1000, &error) && strstr(error.text, "regular"), "a folder: %s", error.text);
    CHECK(error.code == 0, "the system's error is %d", error.code);
    CHECK(!midi_read_file(&song, "/dev/null", 1000, &error) && strstr(error.text, "regular"), "a device: %s",
          error.text);
}

int main(int argc, char **argv) {
    read_cases(argc > 1 ? argv[1] : "test/token_cases.tsv");
    test_cases();
    test_steps();
    test_writing();
    test_refused();
    test_decoding();
    test_report();
    test_choices();
    test_usable();
    test_grammar();
    test_hostile();
    test_bombs();
    test_no_memory();
    test_files();
    CHECK(memory_now == 0, "%u bytes lost", (unsigned)memory_now);
    for (int i = 0; i < n_cases; i++) free(cases[i].bytes);
    free(cases);
    return check_report("midi");
}
