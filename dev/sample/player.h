// player: songs as one .html file to look at and to hear: piano rolls that play in the browser.
//
// The page is dev/sample/player.html, which the Makefile turns into a string of C, build/player_page.h; here its
// example song is replaced by the given ones, as JSON. Promises: the file needs nothing else, no network either; the
// same songs give the same bytes; any title and settings, of whatever bytes, are shown as text and never become part of
// the page (what is not UTF-8 is shown as U+FFFD); each note is a line of the file, `[start,length,key,velocity]`, with
// `,1` if it is from the prime. C11, gcc and clang.
#ifndef PLAYER_H
#define PLAYER_H

#include "build/player_page.h" // static const char player_page[]
#include "sample/song.h"

// A string of JSON that an HTML parser reads over, too.
static inline void player_string(TextBuffer *out, const char *text) { text_json(out, text, "<>&\x7f"); }

static inline void player_base64(TextBuffer *out, const uint8_t *bytes, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        size_t n = size - i < 3 ? size - i : 3;
        uint32_t three =
            (uint32_t)bytes[i] << 16 | (n > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) | (n > 2 ? bytes[i + 2] : 0);
        char four[4];
        for (size_t k = 0; k < 4; k++) four[k] = k <= n ? digits[three >> (18 - 6 * k) & 63] : '=';
        text_add(out, four, 4);
    }
}

static inline const char *player_example(void) { // where the page has its example
    static const char opening[] = "<script id=\"songs\" type=\"application/json\">\n";
    return strstr(player_page, opening) + strlen(opening);
}

// Appends a song, behind a comma unless it is the first. title, settings: plain text; settings may have several lines.
static inline bool player_song(TextBuffer *out, const Song *song, const char *title, const char *settings, bool first,
                               char *error) {
    const midi_song *midi = &song->midi;
    uint8_t *mid;
    size_t size;
    midi_error problem;
    if (!(song_seconds(song) < 1e7)) { // 115 days
        return fail(error, "song '%.80s': its %g seconds cannot be shown", title, song_seconds(song));
    }
    if (!midi_write(midi, &mid, &size, &problem)) return fail(error, "%s", problem.text);
    text_print(out, "%s{\"title\":", first ? "[" : ",\n");
    player_string(out, title);
    text_print(out, ",\"settings\":");
    player_string(out, settings);
    text_print(out, ",\"bpm\":%.9g,\"prime\":%.9g,\"seconds\":%.9g,\n\"bars\":[",
               60 / (song->tempo.spans[song->tempo.n - 1].unit * QUARTER), song_time(song, song->prime_end),
               song_seconds(song));
    for (int i = 0; i < song->n_lines; i++) text_print(out, "%s%.9g", i ? "," : "", song_time(song, song->lines[i]));
    text_print(out, "],\n\"notes\":[\n");
    for (size_t i = 0; i < midi->n_notes; i++) {
        const midi_note *note = &midi->notes[i];
        const double seconds = tempo_seconds(&song->tempo, (double)note->start, (double)note->end);
        text_print(out, "[%.9g,%.9g,%d,%d%s]%s\n", song_time(song, note->start), seconds, note->key, note->velocity,
                   song->from_prime[i] ? ",1" : "", i + 1 < midi->n_notes ? "," : "");
    }
    text_print(out, "],\n\"pedals\":[");
    for (size_t i = 0; i < midi->n_pedals; i++) {
        const midi_pedal *pedal = &midi->pedals[i];
        text_print(out, "%s[%.9g,%.9g]", i ? "," : "", song_time(song, pedal->start), song_time(song, pedal->end));
    }
    text_print(out, "],\n\"mid\":\"");
    player_base64(out, mid, size);
    text_print(out, "\"}");
    MIDI_FREE(mid);
    return true;
}

// The page up to its songs, and what follows them.
static inline void player_open(TextBuffer *out) {
    text_add(out, player_page, (size_t)(player_example() - player_page));
}

static inline void player_close(TextBuffer *out) {
    const char *after = strstr(player_example(), "</script>");
    text_print(out, "]\n");
    text_add(out, after, strlen(after));
}

#endif
