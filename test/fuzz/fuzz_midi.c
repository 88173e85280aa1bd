// midi.h: any bytes are a song or a sentence. A song that was read
// - is written, and comes back the same: the notes (those that begin together in any order), tempos, meters and texts;
//   what is written again is the same bytes;
// - becomes tokens that obey the grammar, and that hold every note of the report in pieces of 32 steps;
// - is decoded from them without a token dropped, and that song keeps its notes through tokens.
// Any bytes below 153, taken as tokens, are a song of which the same holds.
#include "fuzz.h"

#define MIDI_IMPLEMENTATION
#include "midi.h"

UNTRACED static int by_all(const void *left, const void *right) {
    const midi_note *a = left, *b = right;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    if (a->track != b->track) return a->track < b->track ? -1 : 1;
    const int rest[] = {a->channel << 14 | a->key << 7 | a->velocity, b->channel << 14 | b->key << 7 | b->velocity};
    return rest[0] < rest[1] ? -1 : rest[0] > rest[1];
}

UNTRACED static bool same_notes(const midi_song *a, const midi_song *b) {
    for (size_t i = 0; i < a->n_notes; i++) {
        if (by_all(&a->notes[i], &b->notes[i])) return false;
    }
    return true;
}

UNTRACED static void promise_notes(midi_song *a, midi_song *b) { // the same, in any order
    PROMISE(a->n_notes == b->n_notes, "%zu notes became %zu", a->n_notes, b->n_notes);
    if (same_notes(a, b)) return;
    qsort(a->notes, a->n_notes, sizeof *a->notes, by_all);
    qsort(b->notes, b->n_notes, sizeof *b->notes, by_all);
    PROMISE(same_notes(a, b), "the notes changed");
}

// Writes the song and reads it back; a song with gaps too long for a file is no fault. paired: where notes of one key
// overlap, the first to begin is the first to end, as the reader pairs them.
UNTRACED static void through_file(midi_song *song, bool paired) {
    uint8_t *bytes, *again;
    size_t size, size_again;
    midi_song back;
    midi_error error;
    if (!midi_write(song, &bytes, &size, &error)) {
        PROMISE(strstr(error.text, "gap"), "%s", error.text);
        return;
    }
    PROMISE(midi_read(&back, bytes, size, &error), "%s", error.text);
    PROMISE(!back.open_notes && !back.unmatched_offs && !back.ignored_meters, "an odd file was written");
    PROMISE(song->division == back.division && song->n_notes == back.n_notes && song->n_tempos == back.n_tempos &&
                song->n_meters == back.n_meters && song->n_texts == back.n_texts,
            "an event was lost");
    if (paired) {
        PROMISE(midi_write(&back, &again, &size_again, &error), "%s", error.text);
        PROMISE(size == size_again && !memcmp(bytes, again, size), "it was written otherwise the second time");
        promise_notes(song, &back);
        MIDI_FREE(again);
    } else {
        through_file(&back, true);
    }
    MIDI_FREE(bytes);
    midi_free(&back);
}

// Makes a song of tokens, and sends it through tokens and through a file. Returns its notes.
UNTRACED static size_t through_tokens(const uint8_t *tokens, size_t n, bool dropped) {
    midi_song song, back;
    midi_error error;
    uint8_t *again;
    size_t n_again;
    PROMISE(midi_decode(tokens, n, &song, &error), "%s", error.text);
    PROMISE(dropped || !song.dropped_tokens, "%zu tokens were dropped", song.dropped_tokens);
    PROMISE(midi_encode(&song, &again, &n_again, NULL, &error), "%s", error.text);
    PROMISE(midi_decode(again, n_again, &back, &error), "%s", error.text);
    promise_notes(&song, &back);
    through_file(&song, false);
    const size_t notes = song.n_notes;
    MIDI_FREE(again);
    midi_free(&song);
    midi_free(&back);
    return notes;
}

UNTRACED static void through_encoding(midi_song *song) {
    uint8_t *tokens;
    size_t n, bars = 0, pieces = 0;
    midi_report report;
    midi_error error;
    if (!midi_encode(song, &tokens, &n, &report, &error)) {
        promise_sentence(error.text);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        PROMISE(midi_may_follow(i ? tokens[i - 1] : -1, tokens[i]), "token %zu is %d", i, tokens[i]);
        bars += tokens[i] == MIDI_BAR;
    }
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        const int64_t steps = midi_steps(note->end, song->division) - midi_steps(note->start, song->division);
        if (note->key >= MIDI_LOWEST_KEY && note->key <= MIDI_HIGHEST_KEY) pieces += (size_t)(steps + 31) / 32;
    }
    PROMISE(report.notes + report.out_of_range + report.vanished == song->n_notes && bars == report.bars, "the report");
    PROMISE(through_tokens(tokens, n, false) == pieces, "not %zu pieces of notes", pieces);
    if (pieces) planted(tokens, n + 1);
    MIDI_FREE(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    midi_song song;
    midi_error error;
    bool tokens = size > 0;
    for (size_t i = 0; i < size; i++) tokens = tokens && input[i] < MIDI_TOKENS;
    if (tokens) through_tokens(input, size, true);
    if (!midi_read(&song, input, size, &error)) {
        promise_sentence(error.text);
        PROMISE(error.offset <= size && !song.notes && !song.n_notes, "%s", error.text);
        return 0;
    }
    through_file(&song, true);
    int64_t end = song.last_mark; // a few bytes can claim a piece of millions of steps, which one in 64 inputs may do
    for (size_t i = 0; i < song.n_notes; i++) end = song.notes[i].end > end ? song.notes[i].end : end;
    for (size_t i = 0; i < song.n_meters; i++) end = song.meters[i].tick > end ? song.meters[i].tick : end;
    if (end / song.division < 1 << 10 || hash_of(input, size) % 64 == 0) through_encoding(&song);
    midi_free(&song);
    return 0;
}
