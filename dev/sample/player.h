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

#include "midi.h"
#include "sample/tempo.h"

typedef struct {
    const char *title, *settings; // plain text; settings may have several lines
    const uint8_t *mid;           // the bytes of a MIDI file, to be downloaded
    size_t mid_size;
    const midi_note *notes; // in any order
    const bool *from_prime; // [n_notes] given, not sampled
    size_t n_notes;
    const int64_t *bars; // ticks at which bars begin, ascending; a beat is 60 / bpm seconds
    size_t n_bars;
    const TempoMap *tempo;              // seconds by ticks
    double prime_seconds, seconds, bpm; // where the prime ends, 0 if there is none; where the song ends
    const midi_pedal *pedals;           // one behind the other
    size_t n_pedals;
} PlayerSong;

// A string of JSON that an HTML parser reads over, too: no < > & in it.
static inline void player_string(TextBuffer *out, const char *text) {
    text_add(out, "\"", 1);
    for (int length; *text; text += length ? length : 1) {
        length = utf8_length(text, 4);
        if (!length) {
            text_add(out, "\\ufffd", 6);
        } else if (length == 1 && (*text < 32 || *text == 127 || strchr("\"\\<>&", *text))) {
            text_print(out, "\\u%04x", (unsigned)*text);
        } else {
            text_add(out, text, (size_t)length);
        }
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

static inline const char *player_example(void) { // where the page has its example
    static const char opening[] = "<script id=\"songs\" type=\"application/json\">\n";
    return strstr(player_page, opening) + strlen(opening);
}

// Appends a song, behind a comma unless it is the first.
static inline bool player_song(TextBuffer *out, const PlayerSong *song, bool first, char *error) {
    if (!player_is_time(song->seconds) || !player_is_time(song->prime_seconds) ||
        !(song->bpm >= 1 && song->bpm <= 1e4)) {
        return fail(error, "song '%.80s': %g s with a prime of %g s at %g bpm cannot be shown", song->title,
                    song->seconds, song->prime_seconds, song->bpm);
    }
    text_print(out, "%s{\"title\":", first ? "[" : ",\n");
    player_string(out, song->title);
    text_print(out, ",\"settings\":");
    player_string(out, song->settings);
    text_print(out, ",\"bpm\":%.9g,\"prime\":%.9g,\"seconds\":%.9g,\n\"bars\":[", song->bpm, song->prime_seconds,
               song->seconds);
    for (size_t i = 0; i < song->n_bars; i++) {
        const double start = tempo_seconds(song->tempo, 0, (double)song->bars[i]);
        if (!player_is_time(start) || (i && song->bars[i] < song->bars[i - 1])) {
            return fail(error, "song '%.80s': bar %zu begins at %g s, which is no time or before the bar before",
                        song->title, i + 1, start);
        }
        text_print(out, "%s%.9g", i ? "," : "", start);
    }
    text_print(out, "],\n\"notes\":[\n");
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        const double start = tempo_seconds(song->tempo, 0, (double)note->start);
        const double seconds = tempo_seconds(song->tempo, (double)note->start, (double)note->end);
        if (!player_is_time(start) || !player_is_time(seconds) || note->key > 127 || note->velocity > 127) {
            return fail(error, "song '%.80s': note %zu (key %d, velocity %d, at %g s for %g s) cannot be shown",
                        song->title, i + 1, note->key, note->velocity, start, seconds);
        }
        text_print(out, "[%.9g,%.9g,%d,%d%s]%s\n", start, seconds, note->key, note->velocity,
                   song->from_prime[i] ? ",1" : "", i + 1 < song->n_notes ? "," : "");
    }
    text_print(out, "],\n\"pedals\":[");
    for (size_t i = 0; i < song->n_pedals; i++) {
        const double down = tempo_seconds(song->tempo, 0, (double)song->pedals[i].start);
        const double up = tempo_seconds(song->tempo, 0, (double)song->pedals[i].end);
        text_print(out, "%s[%.9g,%.9g]", i ? "," : "", down, up);
    }
    text_print(out, "],\n\"mid\":\"");
    player_base64(out, song->mid, song->mid_size);
    text_print(out, "\"}");
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
