// player: songs as one .html file to look at and to hear: piano rolls that play in the browser.
//
// The page is dev/sample/player.html, which the Makefile turns into a string of C, build/player_page.h; here its
// example song is replaced by the given ones, as JSON. Promises: the file needs nothing else, no network either; the
// same songs give the same bytes; any title and settings, of whatever bytes, are shown as text and never become part of
// the page (what is not UTF-8 is shown as U+FFFD); each note is a line of the file, `[start,length,key,velocity]`, with
// `,1` if it is from the prime. C11 and C++17; with -std=c11 include it before the system's headers.
#ifndef PLAYER_H
#define PLAYER_H

#include "base/text.h"
#include "build/player_page.h" // static const char player_page[]

#include <math.h>

typedef struct {
    double start, seconds; // from the start of the song, at its own tempo; the length
    int key, velocity;     // 0..127, as in MIDI
    bool prime;            // given, not sampled
} PlayerNote;

typedef struct {
    const char *title, *settings; // plain text; settings may have several lines
    const uint8_t *mid;           // the bytes of a MIDI file, to be downloaded
    size_t mid_size;
    const PlayerNote *notes; // in any order
    size_t n_notes;
    const double *bars; // seconds at which bars begin, ascending; a beat is 60 / bpm seconds
    size_t n_bars;
    double prime_seconds, seconds, bpm; // where the prime ends, 0 if there is none; where the song ends
} PlayerSong;

// A string of JSON that an HTML parser reads over, too: no < > & in it.
static inline void player_string(TextBuffer *out, const char *text) {
    size_t left = strlen(text);
    text_add(out, "\"", 1);
    while (left) {
        int length = utf8_length(text, left);
        if (!length) {
            text_add(out, "\\ufffd", 6);
        } else if (length == 1 && (*text < 32 || *text == 127 || strchr("\"\\<>&", *text))) {
            text_print(out, "\\u%04x", (unsigned)*text);
        } else {
            text_add(out, text, (size_t)length);
        }
        text += length ? length : 1;
        left -= (size_t)(length ? length : 1);
    }
    text_add(out, "\"", 1);
}

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

static inline bool player_is_time(double seconds) { return seconds >= 0 && seconds < 1e7; } // 115 days; not NaN

static inline bool player_song(TextBuffer *out, const PlayerSong *song, char *error) {
    const char *title = song->title ? song->title : "";
    if (!player_is_time(song->seconds) || !player_is_time(song->prime_seconds) ||
        !(song->bpm >= 1 && song->bpm <= 1e4)) {
        return fail(error, "song '%.80s': %g s with a prime of %g s at %g bpm cannot be shown", title, song->seconds,
                    song->prime_seconds, song->bpm);
    }
    text_print(out, "{\"title\":");
    player_string(out, title);
    text_print(out, ",\"settings\":");
    player_string(out, song->settings ? song->settings : "");
    text_print(out, ",\"bpm\":%.9g,\"prime\":%.9g,\"seconds\":%.9g,\n\"bars\":[", song->bpm, song->prime_seconds,
               song->seconds);
    for (size_t i = 0; i < song->n_bars; i++) {
        if (!player_is_time(song->bars[i]) || (i && song->bars[i] < song->bars[i - 1])) {
            return fail(error, "song '%.80s': bar %zu begins at %g s, which is no time or before the bar before", title,
                        i + 1, song->bars[i]);
        }
        text_print(out, "%s%.9g", i ? "," : "", song->bars[i]);
    }
    text_print(out, "],\n\"notes\":[\n");
    for (size_t i = 0; i < song->n_notes; i++) {
        const PlayerNote *note = &song->notes[i];
        if (!player_is_time(note->start) || !player_is_time(note->seconds) || note->key < 0 || note->key > 127 ||
            note->velocity < 0 || note->velocity > 127) {
            return fail(error, "song '%.80s': note %zu (key %d, velocity %d, at %g s for %g s) cannot be shown", title,
                        i + 1, note->key, note->velocity, note->start, note->seconds);
        }
        text_print(out, "[%.9g,%.9g,%d,%d%s]%s\n", note->start, note->seconds, note->key, note->velocity,
                   note->prime ? ",1" : "", i + 1 < song->n_notes ? "," : "");
    }
    text_print(out, "],\n\"mid\":\"");
    player_base64(out, song->mid, song->mid_size);
    text_print(out, "\"}");
    return true;
}

// Appends the page of these songs, at least one, to out. On failure out holds a part of it.
static inline bool player_html(TextBuffer *out, const PlayerSong *songs, int n_songs, char *error) {
    static const char opening[] = "<script id=\"songs\" type=\"application/json\">\n";
    const char *example = strstr(player_page, opening) + strlen(opening), *after = strstr(example, "</script>");
    if (n_songs < 1) return fail(error, "a page needs a song");
    text_add(out, player_page, (size_t)(example - player_page));
    for (int i = 0; i < n_songs; i++) {
        text_print(out, i ? ",\n" : "[");
        if (!player_song(out, &songs[i], error)) return false;
    }
    text_print(out, "]\n");
    text_add(out, after, strlen(after));
    return !out->failed || fail(error, "no memory for a page of %d songs", n_songs);
}

#endif
