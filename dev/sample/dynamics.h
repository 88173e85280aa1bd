// Dynamics: how loud each note of a song is, as rules of pianists say; the notes and their times stay as they are.
//
// The rules, in MIDI velocity around the level of the song, 80 or the mean of the prime:
// - the melody, the highest note that sounds, comes out; the bass stays above inner voices, so that chords are voiced
// - a higher note is louder, and so is a chord of many notes (A. Friberg, R. Bresin, J. Sundberg, Overview of the KTH
//   rule system for musical performance, Advances in Cognitive Psychology 2, 2006: High loud)
// - phrases rise and fall: with how full the music is around a note, two bars to both sides, and the last bars die away
//   (G. Widmer, W. Goebl, Computational models of expressive music performance, Journal of New Music Research 33, 2004)
// - the first beat of a bar has an accent
// Notes of the prime keep their velocities.
//
// The sustain pedal is down, and changes just behind each bar line, as notes of a bar mostly belong to one harmony.
//
// It promises velocities of 1 to 127 and the same ones for the same song; time is linear in notes and bars. Leaves out:
// tempo, repeats played softer, and the pedal of the prime's file. C11, gcc and clang.
#pragma once

#include "sample/prime.h"

static const double dynamics_level = 80;   // what midi_decode gives to all notes
static const double dynamics_melody = 4;   // above the level; inner voices are as far below
static const double dynamics_octave = 3;   // for each octave above C5
static const double dynamics_chord = 3;    // for each doubling of the notes that begin together
static const double dynamics_full = 8;     // for each doubling of the notes around, against the song's mean
static const double dynamics_downbeat = 4; // at a bar line
static const double dynamics_ending = 20;  // what the last note loses, the notes before it less and less

enum { // ticks
    DYNAMICS_AROUND = 32 * MIDI_STEP,
    DYNAMICS_LAST = 64 * MIDI_STEP,
    PEDAL_CHANGE = MIDI_STEP / 2,  // from a bar line until the pedal is down again
    PEDAL_LONGEST = 32 * MIDI_STEP // of a bar that has pedal
};

// amount of the way from the level to this loudness.
static inline uint8_t dynamics_velocity(double loudness, double amount) {
    return (uint8_t)lrint(fmin(fmax(dynamics_level + amount * (loudness - dynamics_level), 1), 127));
}

// Gives the notes of the prime the velocities of its file, the loudest where several notes are one. A piece of a long
// note has that of the note.
static inline void dynamics_keep(Song *song, double amount, const Prime *prime) {
    const midi_note *given = prime->song.notes; // by step, key and velocity
    uint8_t latest[128] = {0};                  // of each key
    size_t k = 0;
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        midi_note *note = &song->midi.notes[i];
        for (; k < prime->song.n_notes && (given[k].start - prime->base) * MIDI_STEP <= note->start; k++) {
            latest[given[k].key] = given[k].velocity;
        }
        if (song->from_prime[i] && latest[note->key]) note->velocity = dynamics_velocity(latest[note->key], amount);
    }
}

static inline void dynamics_pedal(Song *song) {
    for (int i = 0; i < song->n_lines; i++) {
        const int64_t start = song->lines[i] + PEDAL_CHANGE;
        const int64_t end = i + 1 < song->n_lines ? song->lines[i + 1] : song->end;
        if (end > start && end <= song->lines[i] + PEDAL_LONGEST) must(midi_add_pedal(&song->midi, start, end, 0, 0));
    }
}

// Sets the velocities of a finished song, and adds the pedal. amount: 0, all notes are equally loud and there is no
// pedal, to 1, as the rules say. prime: of no note if there is none.
static inline void song_add_dynamics(Song *song, double amount, const Prime *prime) {
    midi_note *notes = song->midi.notes;
    const size_t n = song->midi.n_notes;
    const double around = 2 * DYNAMICS_AROUND, mean = (double)n * fmin(1, around / (double)(song->end + 1));
    int64_t ends[128] = {0}; // of each key
    double level = prime->song.n_notes ? 0 : dynamics_level;
    for (size_t i = 0; i < prime->song.n_notes; i++) {
        level += prime->song.notes[i].velocity / (double)prime->song.n_notes;
    }
    int line = 0;
    for (size_t i = 0, first = 0, last = 0, next; i < n; i = next) {
        const int64_t start = notes[i].start;
        for (next = i; next < n && notes[next].start == start; next++) ends[notes[next].key] = notes[next].end;
        while (notes[first].start < start - DYNAMICS_AROUND) first++;
        while (last < n && notes[last].start < start + DYNAMICS_AROUND) last++;
        while (line + 1 < song->n_lines && song->lines[line + 1] <= start) line++;
        int top = 127, bass = 0;
        while (ends[top] <= start) top--;
        while (ends[bass] <= start) bass++;
        const double moment = level + dynamics_chord * log2((double)(next - i)) +
                              dynamics_full * log2((double)(last - first) / mean) +
                              dynamics_downbeat * (start == song->lines[line]) -
                              dynamics_ending * fmax(0, 1 - (double)(song->end - start) / DYNAMICS_LAST);
        for (size_t k = i; k < next; k++) {
            const int key = notes[k].key, voice = key == top ? 1 : key == bass ? 0 : -1;
            const double loudness = moment + dynamics_octave * (key - 72) / 12 + dynamics_melody * voice;
            notes[k].velocity = dynamics_velocity(loudness, amount);
        }
    }
    dynamics_keep(song, amount, prime);
    if (amount > 0) dynamics_pedal(song);
}
