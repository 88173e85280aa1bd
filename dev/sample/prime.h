// The prime of a song: of a MIDI file the tokens from which the song goes on, its tempos and time signatures, and what
// is said of all that is dropped or changed. Tokens are those of midi.h, without the silence around the music.
//
// Leaves out: the pedal. C11, gcc and clang.
#pragma once

#include "sample/song.h"

typedef struct {
    const char *path; // NULL: no prime
    int64_t most;     // tokens that are used
    bool left_out;    // of what is written
    bool keep_short, no_drums;
    uint8_t *tokens; // [n] what is used
    size_t n;
    Marks marks; // the tempos of the song, without a prime too, and the prime's time signatures
    // Of the file:
    midi_song song;                    // with those notes only that are used and heard
    size_t notes, dropped, lengthened; // in all; of these by no_drums, keep_short
    size_t all, silent;                // tokens without the silence; the bars of that
    int64_t base, first, end;          // step at which the prime begins; from there that of its first note and its end
    midi_report report;                // of the notes that are used
    size_t doubled;                    // of these, notes that begin together with another one of their key
    size_t bounded;                    // tempos that no --bpm could give
} Prime;

static inline void prime_free(Prime *p) {
    midi_free(&p->song);
    MIDI_FREE(p->tokens);
    free(p->marks.tempos);
    free(p->marks.meters);
}

// The tempo of microseconds a quarter as people write it: 63, not 63.0001.
static inline double bpm_of(int us) { return rint(60e9 / us) / 1000; }

static inline uint64_t note_order(int64_t step, int key, int64_t steps) { // as tokens have them
    return (uint64_t)step << 13 | (uint64_t)key << 6 | (uint64_t)(steps < 32 ? steps : 32);
}

// Cuts from the tokens the bars before that of the first note and those after the last note, then all but the first
// `most`. If these end in silence, they keep no more of it than the next bar line.
static inline void prime_cut(Prime *p) {
    uint8_t *tokens = p->tokens;
    size_t n = p->n, first = 0, end, lines = 0;
    Place before = {0}, behind = {0};
    for (size_t i = 0; midi_token_kind(tokens[i]) != MIDI_KIND_PITCH; i++) {
        if (!place_see(&before, tokens[i])) continue;
        first = i + 1;
        p->base = before.line;
        p->silent++;
    }
    for (end = n; midi_token_kind(tokens[end - 1]) != MIDI_KIND_DURATION;) end--;
    for (size_t i = end; i < n; i++) lines += place_see(&behind, tokens[i]);
    p->silent += lines ? lines - 1 : 0; // the first ends the bar of the last note
    n = p->all = end - first;
    memmove(tokens, tokens + first, n);
    if (n > (size_t)p->most) n = (size_t)p->most;
    for (end = n; end && midi_token_kind(tokens[end - 1]) <= MIDI_KIND_OFFSET;) end--;
    for (bool line = false; end < n && !line; end++) line = place_see(&behind, tokens[end]);
    p->n = n - end > 1 ? end : n;
}

static inline int by_place(const void *a, const void *b) {
    const midi_note *x = a, *y = b;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    return x->key != y->key ? x->key - y->key : x->velocity - y->velocity;
}

// How many notes that are heard begin together with another one of their key. Leaves only those, begun on the grid.
static inline size_t count_doubled(midi_song *song) {
    size_t heard = 0, doubled = 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        midi_note note = song->notes[i];
        note.start = midi_steps(note.start, song->division);
        const bool key = note.key >= MIDI_LOWEST_KEY && note.key <= MIDI_HIGHEST_KEY;
        if (key && midi_steps(note.end, song->division) > note.start) song->notes[heard++] = note;
    }
    qsort(song->notes, song->n_notes = heard, sizeof *song->notes, by_place);
    for (size_t i = 1; i < heard; i++) {
        doubled += song->notes[i - 1].start == song->notes[i].start && song->notes[i - 1].key == song->notes[i].key;
    }
    return doubled;
}

// Finds the first and the last note of the tokens, and keeps of the song only those from the one to the other.
static inline bool prime_find_notes(Prime *p, char *error) {
    Place place = {0};
    uint64_t last = 0;
    p->first = -1;
    for (size_t i = 0; i < p->n; i++) {
        place_see(&place, p->tokens[i]);
        if (midi_token_kind(p->tokens[i]) != MIDI_KIND_DURATION) continue;
        const int64_t step = place_step(&place), steps = p->tokens[i] - MIDI_DURATION + 1;
        last = note_order(step, place.pitch + MIDI_LOWEST_KEY, steps);
        if (p->first < 0) p->first = step;
        if (p->end < step + steps) p->end = step + steps;
    }
    if (p->first < 0) {
        return fail(error, "--prime %s: its first %zu tokens hold no note; give more --prime-tokens", p->path, p->n);
    }
    const bool cut = p->n < p->all;
    if (cut) p->end = place_step(&place);
    midi_song *song = &p->song;
    size_t kept = 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        const int64_t step = midi_steps(note->start, song->division), end = midi_steps(note->end, song->division);
        const int64_t since = step > p->base ? step - p->base : 0;
        if (!cut || note_order(since, note->key, end - step) <= last) song->notes[kept++] = *note;
    }
    song->n_notes = kept;
    midi_count(song, INT64_MAX, &p->report);
    p->doubled = count_doubled(song);
    return true;
}

static inline int by_tick(const void *a, const void *b) {
    const Mark *x = a, *y = b;
    if (x->tick != y->tick) return x->tick < y->tick ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

// Sorts n marks and keeps those that are in force from `first` to `end`, that of `first` as if it stood at 0, and of
// several at one tick the last. Returns how many.
static inline size_t marks_keep(Mark *list, size_t n, int64_t first, int64_t end) {
    size_t kept = 0;
    qsort(list, n, sizeof *list, by_tick);
    for (size_t i = 0; i < n && list[i].tick <= end; i++) {
        if (list[i].tick <= first) list[i].tick = 0;
        kept -= kept && list[kept - 1].tick == list[i].tick;
        list[kept++] = list[i];
    }
    return kept;
}

// The tempos and time signatures that are in force in the prime, by ticks of the prime. Tempos that no --bpm could give
// become the nearest, and are counted.
static inline void prime_find_marks(Prime *p) {
    const midi_song *song = &p->song;
    const int64_t base = p->base * MIDI_STEP, end = p->end * MIDI_STEP;
    Mark *tempos = p->marks.tempos = must_have(malloc((song->n_tempos + 1) * sizeof *tempos));
    Mark *meters = p->marks.meters = must_have(malloc((song->n_meters + 1) * sizeof *meters));
    tempos[0] = (Mark){INT64_MIN, 0, 500000};
    for (size_t i = 0; i < song->n_tempos; i++) {
        const midi_tempo *tempo = &song->tempos[i];
        const int64_t tick = (tempo->tick * QUARTER + song->division / 2) / song->division - base;
        tempos[i + 1] = (Mark){tick, (int64_t)i, tempo->us_per_quarter};
    }
    for (size_t i = 0; i < song->n_meters; i++) {
        const midi_meter *meter = &song->meters[i];
        const int64_t tick = midi_steps(meter->tick, song->division) * MIDI_STEP - base;
        meters[i] = (Mark){tick, (int64_t)i, meter->numerator << 8 | meter->exponent};
    }
    p->marks.n_tempos = marks_keep(tempos, song->n_tempos + 1, p->first * MIDI_STEP, end);
    p->marks.n_meters = marks_keep(meters, song->n_meters, 0, end);
    for (size_t i = 0; i < p->marks.n_tempos; i++) {
        const int us = tempos[i].value, nearest = us < 60000 ? 60000 : us > 15000000 ? 15000000 : us;
        p->bounded += nearest != us;
        tempos[i].value = nearest;
    }
}

// Says of how many notes something is true, if of any.
static inline void tell(TextBuffer *out, size_t count, const char *whose, size_t all, const char *what) {
    if (count) text_print(out, "; %zu of %s%zu notes %s", count, whose, all, what);
}

// Says what of the file is in the tokens and what is not, and the tempo that songs begin with, the caller's or its own.
static inline void prime_tell(const Prime *p, double bpm, bool own_bpm, FILE *to) {
    const midi_song *song = &p->song;
    const midi_report *r = &p->report;
    const size_t used = r->notes + r->vanished + r->out_of_range, tempos = p->marks.n_tempos;
    const char *const file = "the file's ";
    TextBuffer out = {NULL, 0, 0, false};
    text_print(&out, "the first %zu of %zu tokens, at %g quarters a minute", p->n, p->all, bpm);
    if (tempos > 1 && !own_bpm) {
        text_print(&out, "; %zu change%s of tempo, the last to %g", tempos - 1, plural(tempos - 1),
                   bpm_of(p->marks.tempos[tempos - 1].value));
    }
    if (tempos > 1 && own_bpm) text_print(&out, "; its %zu tempos become one", tempos);
    if (p->bounded && !own_bpm) {
        text_print(&out, "; %zu tempo%s outside 4 to 1000 quarters a minute set to the nearest", p->bounded,
                   plural(p->bounded));
    }
    if (p->silent) text_print(&out, "; %zu silent bar%s around it left out", p->silent, plural(p->silent));
    tell(&out, p->dropped, file, p->notes, "of drums dropped");
    tell(&out, p->lengthened, file, p->notes, "too short for 16ths made as long as one");
    tell(&out, r->out_of_range, "", used, "outside the piano's range dropped");
    tell(&out, r->vanished, "", used, "too short for 16ths dropped (--keep-short keeps them)");
    tell(&out, r->moved, "", used, "moved to the grid of 16ths");
    tell(&out, r->split, "", used, "longer than two bars struck again");
    tell(&out, r->drums, "", used, "of drums played as keys (--no-drums drops them)");
    tell(&out, p->doubled, "", used, "the same as another, heard once");
    tell(&out, song->open_notes, file, p->notes, "never ended, ended with their track");
    if (song->unread_tracks) text_print(&out, "; %zu tracks that its header does not announce", song->unread_tracks);
    if (song->pedal_presses) text_print(&out, "; the sustain pedal is left out");
    if (r->assumed_meter) text_print(&out, "; no time signature, read as 4/4");
    must(!out.failed);
    print_line(to, "prime %s: %.*s", p->path, (int)out.size, out.bytes);
    free(out.bytes);
}

// The tokens without the silence around them, tempos and time signatures.
static inline bool prime_read(Prime *p, char *error) {
    midi_song *song = &p->song;
    midi_error problem;
    bool ok = midi_read_file(song, p->path, (size_t)64 << 20, &problem);
    p->notes = song->n_notes;
    if (p->no_drums) p->dropped = midi_drop_drums(song);
    if (p->keep_short) p->lengthened = midi_keep_short(song);
    ok = ok && midi_encode(song, &p->tokens, &p->n, &p->report, &problem);
    if (!ok || !midi_usable(song, &p->report, &problem)) {
        const bool keep = ok && p->report.vanished && !p->keep_short;
        return fail(error, "--prime %s: %s%s", p->path, problem.text, keep ? "; --keep-short keeps short notes" : "");
    }
    prime_cut(p);
    if (!prime_find_notes(p, error)) return false;
    prime_find_marks(p);
    return true;
}
