// A song as music: what a model's tokens become before a file is written, notes, bar lines and time signatures, and
// what the song is like, its bars, its range and its longest repetition.
//
// It promises that each note-on has its note-off before the next of its key. Leaves out: how tokens are chosen
// (sample_music.c), and files (formats.h). C11, gcc and clang.
#pragma once

#include "base/text.h"

#include "midi.h"
#include "sample/figures.h"
#include "sample/keys.h"
#include "sample/tempo.h"

enum { QUARTER = 4 * MIDI_STEP, LONGEST_BAR = 31 }; // ticks; steps: a longer bar has a token at each 31 of them

enum { HOW_SIZE = 700 };

typedef struct {       // where a stream of tokens is, in steps
    int64_t line;      // the last bar line
    int offset, pitch; // behind that line, and of the note that is begun
} Place;

// Goes on by a token. Returns whether that is a bar line that counts, as song_find_lines counts them.
static inline bool place_see(Place *place, int token) {
    const midi_kind kind = midi_token_kind(token);
    const int length = place->offset;
    if (kind == MIDI_KIND_OFFSET) place->offset = token - MIDI_OFFSET;
    if (kind == MIDI_KIND_PITCH) place->pitch = token - MIDI_PITCH;
    if (kind != MIDI_KIND_BAR) return false;
    place->line += length;
    place->offset = 0;
    return length && length != LONGEST_BAR;
}

static inline int64_t place_step(const Place *place) { return place->line + place->offset; }

typedef struct {   // a tempo or a time signature
    int64_t tick;  // from which on it is in force
    int64_t order; // among several that a file has at one tick
    int value;     // microseconds a quarter; or numerator << 8 | exponent
} Mark;

typedef struct {
    Mark *tempos, *meters;     // by tick: the tempos of what is written, from 0 on, and the prime's time signatures
    size_t n_tempos, n_meters; // at least 1; 0 or more
} Marks;

typedef struct {
    uint64_t seed;
    uint8_t *tokens; // [n] the prime's and the new ones, owned
    size_t n, n_prime;
    bool interrupted; // before all its tokens were chosen; n is n_prime if there was no new note
    bool cut;    // it ended before the bars or seconds that were asked for, because it has as many tokens as it may
    double took; // seconds, alone or beside others
    double nll;  // mean surprise of the model at a new token
    char model_name[100], model[260]; // the model for a title, and in full
    char how[HOW_SIZE];               // the settings, but for the seed: "tokens 1024, temperature 1, ..."
    // What song_finish makes of the tokens:
    midi_song midi;   // notes, bar lines, tempo, meters and texts of what is written
    bool *from_prime; // [midi.n_notes]
    int64_t *lines;   // [n_lines] ticks of the bar lines that count, 0 the first
    int n_lines;
    int64_t begin;     // tick of the prime at which what is written begins
    int64_t prime_end; // tick at which the last of the prime's notes ends
    int64_t end;       // tick
    TempoMap tempo;    // seconds by ticks
} Song;

static inline void song_free(Song *song) {
    free(song->tokens);
    midi_free(&song->midi);
    free(song->from_prime);
    free(song->lines);
    free(song->tempo.spans);
    memset(song, 0, sizeof *song);
}

static inline const char *plural(size_t n) { return n == 1 ? "" : "s"; }

// Appends a setting to song->how.
PRINTF_LIKE(2, 3) static inline void song_add_setting(Song *song, const char *format, ...) {
    char setting[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(setting, sizeof setting, format, arguments);
    va_end(arguments);
    const size_t n = strlen(song->how);
    snprintf(song->how + n, HOW_SIZE - n, "%s%s", n ? ", " : "", setting);
}

// All that it takes to make the song again with its model: "seed 7, tokens 1024, temperature 1, ..."
static inline const char *song_settings(const Song *song, char text[HOW_SIZE + 32]) {
    snprintf(text, HOW_SIZE + 32, "seed %llu, %s", (unsigned long long)song->seed, song->how);
    return text;
}

// ---- from tokens to notes

// Marks the notes of the prime: as both lists are in one order, each is the next that is equal. With no_prime they are
// taken out instead, and the song begins at the bar line before the first new token.
static inline void song_mark_prime(Song *song, bool no_prime) {
    midi_song prime;
    must(midi_decode(song->tokens, song->n_prime, &prime, NULL));
    midi_song *all = &song->midi;
    const int64_t shift = song->begin = no_prime && prime.n_bars ? prime.bars[prime.n_bars - 1] : 0;
    size_t matched = 0, kept = 0;
    for (size_t i = 0; i < all->n_notes; i++) {
        midi_note note = all->notes[i];
        const midi_note *next = matched < prime.n_notes ? &prime.notes[matched] : NULL;
        bool old = next && next->start == note.start && next->key == note.key && next->end == note.end;
        matched += old;
        if (old && no_prime) continue;
        if (old && note.end > song->prime_end) song->prime_end = note.end;
        note.start -= shift;
        note.end -= shift;
        song->from_prime[kept] = old;
        all->notes[kept++] = note;
    }
    all->n_notes = kept;
    size_t skipped = no_prime ? prime.n_bars : 0;
    for (size_t i = skipped; i < all->n_bars; i++) all->bars[i - skipped] = all->bars[i] - shift;
    all->n_bars -= skipped;
    midi_free(&prime);
}

// A piano has one string for a key: a note ends where its key is struck again, and of notes of one key that begin
// together the longest is left. So each note-on has its note-off before the next of its key, and no player lets a note
// sound for ever.
static inline void song_part_notes(Song *song) {
    midi_note *notes = song->midi.notes; // sorted by start, key, length
    midi_note *last[128] = {NULL};       // of each key
    size_t kept = 0;
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const midi_note note = notes[i];
        midi_note *before = last[note.key];
        if (before && before->start == note.start) {
            before->end = note.end;
            continue;
        }
        if (before && before->end > note.start) before->end = note.start;
        last[note.key] = &notes[kept];
        song->from_prime[kept] = song->from_prime[i];
        notes[kept++] = note;
    }
    song->midi.n_notes = kept;
}

// Finds the bar lines that count: neither bars without length nor the lines that only cut a long bar at 31 steps.
static inline void song_find_lines(Song *song) {
    int64_t previous = 0;
    song->n_lines = 1;
    song->lines[0] = 0;
    for (size_t i = 0; i < song->midi.n_bars; i++) {
        int64_t tick = song->midi.bars[i];
        if (tick > previous && tick - previous != LONGEST_BAR * MIDI_STEP) song->lines[song->n_lines++] = tick;
        previous = tick;
    }
}

// The time signature of a bar of so many steps, as numerator << 8 | exponent: of whole quarters, else eighths, else
// sixteenths; 0: there is none.
static inline int meter_of(int64_t steps) {
    const int exponent = steps % 4 == 0 ? 2 : steps % 2 == 0 ? 3 : 4;
    const int64_t numerator = steps >> (4 - exponent);
    return numerator < 256 ? (int)numerator << 8 | exponent : 0;
}

// Adds a time signature wherever it changes. Bars have that of the prime while they are as long as it says, or end
// early where it changes; else one by their length. The last bar, if it was never closed, has the one before it.
static inline void song_add_meters(Song *song, const Marks *marks) {
    midi_song *midi = &song->midi;
    const Mark *meter = marks->meters; // in force, with those behind it
    size_t left = marks->n_meters;
    for (int i = 0, last = 0, value; i < song->n_lines; i++, last = value) {
        const bool closed = i + 1 < song->n_lines;
        const int64_t line = song->lines[i], next = closed ? song->lines[i + 1] : line, now = (next - line) / MIDI_STEP;
        for (; left > 1 && meter[1].tick - song->begin <= line; left--) meter++;
        value = closed ? meter_of(now) : last;
        if (left && meter->tick - song->begin <= line) {
            const double length = 16.0 * (meter->value >> 8) / (1 << (meter->value & 255));
            const bool cut = left > 1 && meter[1].tick - song->begin == next && (double)now < length;
            const bool begun = !closed && (i == 0 || meter->tick - song->begin == line);
            if (begun || cut || (closed && fabs(length - (double)now) < 1)) value = meter->value;
        }
        if (value && value != last) must(midi_add_meter(midi, line, value >> 8, value & 255, 0));
    }
    must(midi->n_meters || midi_add_meter(midi, 0, 4, 2, 0));
}

// Adds the tempos, the settings as text, and time signatures.
static inline void song_add_events(Song *song, const Marks *marks) {
    midi_song *midi = &song->midi;
    char settings[HOW_SIZE + 32];
    must(midi_add_text(midi, 0, 3, "Piano", 0) && midi_add_text(midi, 0, 1, song->model, 0) &&
         midi_add_text(midi, 0, 1, song_settings(song, settings), 0));
    for (size_t i = 0; i < marks->n_tempos; i++) {
        const Mark *mark = &marks->tempos[i];
        must(midi_add_tempo(midi, mark->tick, mark->value, 0));
        tempo_add(&song->tempo, (double)mark->tick, 1e-6 * mark->value / QUARTER);
    }
    song_add_meters(song, marks);
}

// Makes of the tokens what is written, with or without the prime, at these tempos. The model and the settings must be
// named by now.
static inline void song_finish(Song *song, bool no_prime, const Marks *marks) {
    must(midi_decode(song->tokens, song->n, &song->midi, NULL));
    song->from_prime = must_have(calloc(song->midi.n_notes + 1, sizeof *song->from_prime));
    song->lines = must_have(malloc((song->midi.n_bars + 1) * sizeof *song->lines));
    if (song->n_prime) song_mark_prime(song, no_prime);
    song_part_notes(song);
    song_find_lines(song);
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        if (song->midi.notes[i].end > song->end) song->end = song->midi.notes[i].end;
    }
    if (song->lines[song->n_lines - 1] > song->end) song->end = song->lines[song->n_lines - 1];
    song_add_events(song, marks);
}

// ---- what a song is like

// The bars that end with a line, and the one that was begun after them, if there is a note in it. Behind a line that is
// the last token nothing was begun: what sounds there rings on, or belongs to the bar before.
static inline int song_bars(const Song *song) {
    const midi_song *midi = &song->midi; // whose notes are sorted by their start
    int64_t line = song->lines[song->n_lines - 1];
    bool begun = song->tokens[song->n - 1] != MIDI_BAR && midi->n_notes && midi->notes[midi->n_notes - 1].start >= line;
    return song->n_lines - 1 + begun;
}

// Seconds up to a tick.
static inline double song_time(const Song *song, int64_t tick) { return tempo_seconds(&song->tempo, 0, (double)tick); }

// The tick until which a note sounds: its end, or where the pedal is lifted that is down then.
static inline int64_t song_sounds_until(const Song *song, int64_t end) {
    const midi_pedal *pedals = song->midi.pedals; // one behind the other
    size_t low = 0, high = song->midi.n_pedals;
    while (low < high) { // the first that is lifted at this end or later
        const size_t middle = low + (high - low) / 2;
        if (pedals[middle].end < end)
            low = middle + 1;
        else
            high = middle;
    }
    return low < song->midi.n_pedals && pedals[low].start < end ? pedals[low].end : end;
}

static inline double song_seconds(const Song *song) { return song_time(song, song->end); }

// The lowest and the highest key that is played; false, 127 and 0 if there is no note.
static inline bool song_range(const Song *song, int *lowest, int *highest) {
    *lowest = 127;
    *highest = 0;
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const int key = song->midi.notes[i].key;
        *lowest = key < *lowest ? key : *lowest;
        *highest = key > *highest ? key : *highest;
    }
    return song->midi.n_notes > 0;
}

// The notes of the longest passage that comes again, without overlapping and at most FARTHEST notes later, in what is
// written, in any key and at any place of a bar (see figures.h).
static inline int longest_repetition(const Song *song) {
    enum { FARTHEST = 10000 }; // some half an hour; a song of a million tokens takes seconds
    const midi_note *notes = song->midi.notes;
    const size_t n = song->midi.n_notes;
    uint32_t *steps = must_have(calloc(n + 1, sizeof *steps));
    size_t most = 0; // steps
    for (size_t i = 1; i < n; i++) steps[i] = step_between(&notes[i - 1], &notes[i]);
    for (size_t back = 2; back < n && back <= FARTHEST; back++) {
        size_t run = 0;
        for (size_t i = back + 1; i < n; i++) {
            run = steps[i] == steps[i - back] && run + 1 < back ? run + 1 : 0;
            if (run > most) most = run;
        }
    }
    free(steps);
    return most ? (int)most + 1 : 0;
}

// "  324 notes  25 bars  25.0 s  E2-C6  repeats 12 notes  nll 1.234  seed 7"
static inline void song_report(const Song *song, TextBuffer *out) {
    const size_t n = song->midi.n_notes;
    char low[16], high[16];
    int lowest, highest;
    const int bars = song_bars(song), again = longest_repetition(song);
    text_print(out, "  %zu note%s  %d bar%s  %.1f s", n, plural(n), bars, plural((size_t)bars), song_seconds(song));
    if (song_range(song, &lowest, &highest)) text_print(out, "  %s-%s", key_name(lowest, low), key_name(highest, high));
    text_print(out, "  repeats %d note%s  nll %.3f  seed %llu", again, plural((size_t)again), song->nll,
               (unsigned long long)song->seed);
}
