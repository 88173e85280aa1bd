// Songs in files: .mid to play, .svg to look at, .wav to hear, .html to do all three; and the names of these files.
//
// It promises that a file appears whole or not at all. C11, gcc and clang.
#pragma once

#include "sample/player.h"
#include "sample/roll.h"
#include "sample/synth.h"

#include <strings.h> // strcasecmp

// ---- one song

static inline bool make_mid(TextBuffer *out, const Song *song, char *error) {
    uint8_t *bytes;
    size_t size;
    midi_error problem;
    if (!midi_write(&song->midi, &bytes, &size, &problem)) return fail(error, "%s", problem.text);
    text_add(out, (const char *)bytes, size);
    MIDI_FREE(bytes);
    return !out->failed || fail(error, "no memory for a file of %zu bytes", size);
}

static inline bool make_wav(TextBuffer *out, const Song *song, char *error) {
    const size_t n = song->midi.n_notes;
    SynthNote *notes = must_have(calloc(n + 1, sizeof *notes));
    for (size_t i = 0; i < n; i++) {
        const midi_note *note = &song->midi.notes[i];
        const double until = (double)song_sounds_until(song, note->end);
        const double seconds = tempo_seconds(&song->tempo, (double)note->start, until);
        notes[i] = (SynthNote){song_time(song, note->start), seconds, note->key, note->velocity / 127.0};
    }
    bool ok = synth_wav(out, notes, n, song_seconds(song) + synth_tail, error);
    free(notes);
    return ok;
}

// ---- a page of several songs

// Songs without a token, which were interrupted before their first note, are left out.
static inline bool make_html(TextBuffer *out, const Song *songs, int n_songs, char *error) {
    bool first = true;
    player_open(out);
    for (int k = 0; k < n_songs; k++) {
        const Song *song = &songs[k];
        char title[200], settings[HOW_SIZE + 300];
        if (!song->n) continue;
        snprintf(title, sizeof title, "%s, seed %llu", song->model_name, (unsigned long long)song->seed);
        snprintf(settings, sizeof settings, "%s\n%s", song->how, song->model);
        if (!player_song(out, song, title, settings, first, error)) return false;
        first = false;
    }
    player_close(out);
    return !out->failed || fail(error, "no memory for a page of %d songs", n_songs);
}

// ---- files

typedef struct {
    const char *suffix;
    bool (*make)(TextBuffer *out, const Song *song, char *error); // NULL: one file for all songs, see make_html
} Format;

static const Format formats[] = {{".mid", make_mid}, {".svg", roll_svg}, {".wav", make_wav}, {".html", NULL}};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static inline const Format *format_of(const char *path) { // by its suffix, small or capital, or NULL; "-" is a .mid
    size_t length = strlen(path);
    if (!strcmp(path, "-")) return &formats[0];
    for (int i = 0; i < N_FORMATS; i++) {
        size_t suffix = strlen(formats[i].suffix);
        if (length > suffix && !strcasecmp(path + length - suffix, formats[i].suffix)) return &formats[i];
    }
    return NULL;
}

// out/song.mid -> out/song-3.mid for song number 2 of several.
static inline Path output_name(const char *path, int64_t song, int64_t songs) {
    const int stem = (int)(strlen(path) - strlen(format_of(path)->suffix));
    if (songs == 1) return path_join("", path);
    return path_print("%.*s-%lld%s", stem, path, (long long)song + 1, path + stem);
}

// Whether the folder of a file can be written to, and the name is short enough: asked before a song is made that could
// not be kept.
static inline bool folder_is_writable(const char *path, char *error) {
    Path folder = path_join("", path);
    char *slash = strrchr(folder.text, '/');
    if (slash) slash[slash == folder.text] = 0; // of /song.mid it is /
    const char *asked = slash ? folder.text : ".";
    errno = ENAMETOOLONG; // a Path would cut the name
    return !strcmp(path, "-") || (strlen(path) < PATH_MAX && !access(asked, W_OK | X_OK)) ||
           atomic_fail(path, errno, error);
}

// Writes these songs, one unless it is an .html, to a file or, for "-", to the standard output.
static inline bool songs_write(const Song *songs, int n_songs, const char *path, char *error) {
    const Format *format = format_of(path);
    char problem[ERROR_SIZE] = "out of memory";
    TextBuffer out = {NULL, 0, 0, false};
    bool ok = format->make ? format->make(&out, songs, problem) : make_html(&out, songs, n_songs, problem);
    if (!ok || out.failed) {
        ok = fail(error, "%s: cannot be written: %.300s", path, problem);
    } else if (strcmp(path, "-")) {
        ok = write_file_atomically(path, out.bytes, out.size, error);
    } else { // what stays in the buffer may fail when the program ends, which program_end tells
        ok = fwrite(out.bytes, 1, out.size, stdout) == out.size && !fflush(stdout);
        if (!ok) fail(error, "-o -: the standard output cannot be written: %s", strerror(errno));
    }
    free(out.bytes);
    return ok;
}
