// Songs in files (sample/song.h, formats.h): any tokens, tempo and names are a song of which
// - no key is struck while it sounds, velocities are 1 to 127, and the notes of the prime are marked or left out;
// - the .mid is read back as the same notes without anything odd;
// - the .svg is well-formed XML with each note in it once, and as large as notes and bars make it;
// - the .html is the page with the songs in it as JSON that no HTML parser looks into, a line for each note;
// - the .wav lasts as long as the song and its tail; notes with any times and velocities are sound or a sentence;
// - the report is a line for a terminal.
//
// An input is eight bytes of settings, two names that end with a NUL, and tokens.
#define TESTING
#include "sample_music.c" // first: it chooses the system's interfaces

#include "fuzz.h"

enum { SETTINGS = 8 };

UNTRACED static void promise_notes(const Song *song) {
    int64_t free_at[128] = {0};
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const midi_note *note = &song->midi.notes[i];
        PROMISE(note->velocity >= 1 && note->velocity <= 127, "note %zu has velocity %d", i, note->velocity);
        PROMISE(note->start >= free_at[note->key] && note->end > note->start, "note %zu overlaps", i);
        PROMISE(note->end <= song->end, "note %zu ends after the song", i);
        PROMISE(!song->from_prime[i] || note->start < song->prime_end, "note %zu is marked", i);
        free_at[note->key] = note->end;
    }
    for (int i = 1; i < song->n_lines; i++) PROMISE(song->lines[i] > song->lines[i - 1], "bar line %d", i);
}

UNTRACED static void through_mid(const Song *song) {
    char problem[ERROR_SIZE];
    midi_song back;
    midi_error error;
    TextBuffer out = {NULL, 0, 0, false};
    PROMISE(make_mid(&out, song, problem), "%s", problem);
    PROMISE(midi_read(&back, out.bytes, out.size, &error), "%s", error.text);
    PROMISE(!back.open_notes && !back.unmatched_offs && !back.ignored_meters && back.n_meters, "an odd file");
    PROMISE(back.pedal_presses == song->midi.n_pedals, "%zu pedals became %zu", song->midi.n_pedals,
            back.pedal_presses);
    PROMISE(back.n_notes == song->midi.n_notes, "%zu notes became %zu", song->midi.n_notes, back.n_notes);
    if (back.n_notes) qsort(back.notes, back.n_notes, sizeof *back.notes, midi__note_before);
    for (size_t i = 0; i < back.n_notes; i++) {
        const midi_note *a = &song->midi.notes[i], *b = &back.notes[i];
        PROMISE(a->start == b->start && a->end == b->end && a->key == b->key && a->velocity == b->velocity,
                "note %zu differs", i);
    }
    if (back.n_notes) planted(out.bytes, out.capacity);
    midi_free(&back);
    free(out.bytes);
}

UNTRACED static void through_svg(const Song *song) {
    char problem[ERROR_SIZE];
    TextBuffer out = {NULL, 0, 0, false};
    PROMISE(format_of("a.svg")->make(&out, song, problem), "%s", problem);
    text_add(&out, "", 1);
    const size_t notes = promise_xml(out.bytes, out.size - 1, "data-note");
    PROMISE(notes == song->midi.n_notes, "%zu of %zu notes", notes, song->midi.n_notes);
    PROMISE(out.size < 20000 + 400 * song->midi.n_notes + 3000 * (size_t)(1 + song->end / MIDI_STEP / 16), "%zu bytes",
            out.size);
    free(out.bytes);
}

UNTRACED static void through_html(const Song *song) {
    static const char opening[] = "<script id=\"songs\" type=\"application/json\">\n";
    char problem[ERROR_SIZE];
    TextBuffer out = {NULL, 0, 0, false};
    const size_t before = (size_t)(strstr(player_page, opening) - player_page) + strlen(opening);
    PROMISE(make_html(&out, song, 1, problem), "%s", problem);
    text_add(&out, "", 1);
    const char *songs = out.bytes + before, *after = strstr(player_page + before, "</script>");
    const size_t size = out.size - 1 - before - strlen(after);
    PROMISE(!memcmp(out.bytes, player_page, before) && !strcmp(songs + size, after), "the page was changed");
    promise_page(songs, size);
    out.bytes[before + size] = 0;
    PROMISE(strcspn(songs, "<>&") == size, "HTML in JSON: %.20s", strpbrk(songs, "<>&"));
    int depth = 0, lines = 0;
    for (const char *at = songs; *at; at++) {
        if (*at == '"') { // a string
            for (at++; *at && *at != '"'; at++) at += *at == '\\';
        }
        depth += *at == '[' || *at == '{' ? 1 : *at == ']' || *at == '}' ? -1 : 0;
        lines += *at == '\n' && at[1] == '[';
    }
    PROMISE(depth == 0, "brackets %d deep", depth);
    PROMISE(lines == (int)song->midi.n_notes, "%d lines of notes", lines);
    free(out.bytes);
}

// Of notes made of the input's bytes, some with any numbers for times, in a file of a tenth of a second.
UNTRACED static void through_synth(const uint8_t *input, size_t size) {
    enum { NOTES = 3, BYTES = 26 };
    SynthNote notes[NOTES];
    char problem[ERROR_SIZE];
    TextBuffer out = {NULL, 0, 0, false};
    const size_t n = size / BYTES < NOTES ? size / BYTES : NOTES;
    for (size_t i = 0; i < n; i++, input += BYTES) {
        double numbers[3] = {input[2] / 2560.0, input[3] / 2560.0, input[4] / 255.0};
        if (input[0] > 127) memcpy(numbers, input + 2, sizeof numbers);
        notes[i] =
            (SynthNote){.start = numbers[0], .seconds = numbers[1], .key = input[0] & 127, .velocity = numbers[2]};
    }
    if (synth_wav(&out, notes, n, 0.1, problem)) {
        PROMISE(out.size == 44 + 4 * 4410, "%zu bytes", out.size);
    } else {
        promise_sentence(problem);
    }
    free(out.bytes);
}

UNTRACED static void through_wav(const Song *song) {
    char problem[ERROR_SIZE];
    TextBuffer out = {NULL, 0, 0, false};
    PROMISE(make_wav(&out, song, problem), "%s", problem);
    PROMISE(out.size == 44 + 4 * (size_t)rint((song_seconds(song) + synth_tail) * SYNTH_RATE), "%zu bytes", out.size);
    free(out.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size < SETTINGS + 3) return 0;
    Song song = {.seed = input[0], .nll = input[1]};
    const char *name = (const char *)input + SETTINGS;
    const size_t left = size - SETTINGS, n_name = strnlen(name, left - 1);
    const size_t n_how = n_name + 1 < left ? strnlen(name + n_name + 1, left - n_name - 1) : 0;
    if (n_name + n_how + 2 >= left) return 0;
    song.n = left - n_name - n_how - 2;
    song.tokens = malloc(song.n);
    if (!song.tokens) abort();
    for (size_t i = 0; i < song.n; i++) song.tokens[i] = input[size - song.n + i] % MIDI_TOKENS;
    song.n_prime = input[2] * song.n / 256;
    const int us = 60000 + (input[4] << 8 | input[5]) * 220; // a quarter, at most 14.5 s
    Mark tempos[] = {{0, 0, us}, {(int64_t)input[5] * MIDI_STEP, 1, 1 + us / 2}};
    Mark meters[] = {{0, 0, (1 + input[4] % 16) << 8 | (input[4] >> 4) % 5},
                     {(int64_t)input[4] * 16 * MIDI_STEP, 1, 3 << 8 | 2}};
    const Marks marks = {tempos, meters, 1 + (input[3] >> 1 & 1), (input[3] >> 2) % 3};
    snprintf(song.model_name, sizeof song.model_name, "%.*s", (int)n_name, name);
    snprintf(song.model, sizeof song.model, "%.*s", (int)n_name, name);
    song_add_setting(&song, "%.*s", (int)n_how, name + n_name + 1);
    song_finish(&song, input[3] & 1, &marks);
    song_add_dynamics(&song, input[6] / 255.0, &(Prime){0});
    promise_notes(&song);
    through_mid(&song);
    through_svg(&song);
    through_html(&song);
    const uint32_t hash = hash_of(input, size); // sound is slow
    if (hash % 32 == 0) through_synth(input, size);
    if (hash % 256 == 1 && song_seconds(&song) < 0.5 && song.midi.n_notes < 8) through_wav(&song);
    TextBuffer report = {NULL, 0, 0, false};
    song_report(&song, &report);
    promise_line(report.bytes, report.size);
    free(report.bytes);
    song_free(&song);
    return 0;
}
