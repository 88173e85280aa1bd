// The keys of a piano and scales, by name: "C4", "Bb2", "F#-minor". C11, gcc and clang.
#pragma once

#include "midi.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline const char *key_name(int key, char text[16]) { // 60 is C4
    static const char *const names[] = {"C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"};
    snprintf(text, 16, "%s%d", names[key % 12], key / 12 - 1);
    return text;
}

// A note's letter with its sharps and flats, "c", "F#", "Bb", in semitones above C, -1 for Cb; *text goes on behind it.
// False: there is none.
static inline bool read_note(const char **text, int *semitones) {
    static const int naturals[] = {9, 11, 0, 2, 4, 5, 7}; // a to g
    const int letter = tolower((unsigned char)**text);
    if (letter < 'a' || letter > 'g') return false;
    *semitones = naturals[letter - 'a'];
    for (++*text; **text == '#' || **text == 'b'; ++*text) *semitones += **text == '#' ? 1 : -1;
    return true;
}

// "C4", "f#3", "60": a key of the piano; -1: it is none. The octave is that of the letter alone, so that Cb4 lies below
// C4, and B#4 above B4.
static inline int read_key(const char *text) {
    int semitones = 0;
    const bool named = read_note(&text, &semitones);
    if (named && !isdigit((unsigned char)*text)) return -1;
    char *end;
    const long number = strtol(text, &end, 10);
    if (end == text || *end || number < 0 || number > 127) return -1;
    const long key = named ? 12 * (number + 1) + semitones : number;
    return key < MIDI_LOWEST_KEY || key > MIDI_HIGHEST_KEY ? -1 : (int)key;
}

static const struct {
    const char *name, *steps; // in semitones from key to key, but for the one back to the tonic
} scales[] = {
    {"major", "221222"},     {"minor", "212212"},    {"harmonic-minor", "212213"}, {"melodic-minor", "212222"},
    {"dorian", "212221"},    {"phrygian", "122212"}, {"lydian", "222122"},         {"mixolydian", "221221"},
    {"locrian", "122122"},   {"pentatonic", "2232"}, {"minor-pentatonic", "3223"}, {"blues", "32113"},
    {"whole-tone", "22222"},
};
enum { N_SCALES = sizeof scales / sizeof *scales };

// "C-major", "f#-minor": bit p is set if pitch class p belongs to it; 0: it is none.
static inline int read_scale(const char *text) {
    int tonic = 0, classes = 0;
    if (!read_note(&text, &tonic) || *text != '-') return 0;
    tonic = (tonic % 12 + 12) % 12;
    for (int i = 0; i < N_SCALES; i++) {
        if (strcmp(text + 1, scales[i].name)) continue;
        classes = 1 << tonic;
        for (const char *step = scales[i].steps; *step; step++) {
            tonic += *step - '0';
            classes |= 1 << tonic % 12;
        }
    }
    return classes;
}
