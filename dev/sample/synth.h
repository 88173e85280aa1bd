// A small piano: notes in, a WAVE file out (44.1 kHz, 16 bit, stereo), so that music can be heard without a player.
//
// A struck string is a sum of decaying sine waves, its partials, and so is this piano: each key owns a set of modes, a
// strike adds to their state, a step rotates and shrinks it. A repeated key therefore goes on from the state it is in.
// - Partial n lies at n f1 sqrt((1 + B n^2) / (1 + B)), the stiffness B by two exponentials of the key (F. Rigaud, B.
//   David, L. Daudet, A parametric model and estimation techniques for the inharmonicity and tuning of the piano, JASA
//   133, 2013). The first partial is in equal temperament, a' = 440 Hz.
// - Two modes a partial, a few tenths of a hertz apart, decay early and late: strings that are struck together give
//   their energy away fast, and what they do not share rings on (G. Weinreich, Coupled piano strings, JASA 62, 1977).
// - Loudness and brightness follow the velocity; the knock of the hammer is a handful of broad modes of the body.
// - A note's end lets the damper down, which takes all modes away in about a third of a second (the highest keys have
//   no damper). A key that is struck again rises first: its damper touches the string for 43 ms before the strike.
// Partials alternate between two places of the soundboard, which lie left and right by key. A feedback delay network
// adds a room (J.-M. Jot, A. Chaigne, Digital delay networks for designing artificial reverberators, AES 90, 1991).
//
// Level. No note changes another's level from moment to moment: all gains are fixed, but for two. One evens out
// density: the power that the notes will have is known beforehand, smoothed over 1.5 s to both sides, and half of its
// deviation (in decibels) from that of about four voices is taken back, at most 6 dB; velocities have no part in it, so
// that loud stays loud. The other is a limiter that looks 12 ms ahead and keeps every peak 1 dB below full scale. TPDF
// dither, from Philox; where nothing sounds, the file is all zeros.
//
// It promises the same bytes for the same notes on one machine and build; any notes give a file or a sentence; memory
// is the file, 24 bytes a note and 100 kB a key. It leaves out the pedal, sympathetic strings and files above 4 GiB
// (RIFF). Times are rounded to ticks of 64 samples, 1.5 ms. One core makes piano music 200 to 450 times as fast as it
// is played with AVX-512, a quarter of that with SSE (`build/test_synth bench`). C11, gcc and clang; with -std=c11
// include it before the system's headers.
#pragma once

#include "base/text.h"

#include "base/philox.h"
#include "cpu/vector.h"

typedef struct {
    double start, seconds; // when and how long the key is down, from 0; the shortest sound is 40 ms
    int key;               // MIDI: 0..127, 60 is middle C
    double velocity;       // 0..1; 0 is no sound, MIDI's 80 is 80 / 127.0
} SynthNote;

enum {
    SYNTH_RATE = 44100,
    SYNTH_TICK = 64,      // samples; everything happens at multiples of it
    SYNTH_ATTACK = 3,     // ticks in which a strike is faded in
    SYNTH_APART = 4,      // ticks; closer strikes of a key are one
    SYNTH_RISE = 30,      // ticks that a key needs to come up before it can be struck again
    SYNTH_SHORTEST = 28,  // ticks that a key stays down
    SYNTH_UNDAMPED = 90,  // the first key without a damper
    SYNTH_PARTIALS = 200, // at most
    SYNTH_KNOCK = 32,     // modes of the hammer's knock
    SYNTH_CENTRED = 6,    // the first partials, which are heard alike from both sides
    SYNTH_LATE = 32,      // partials of which something rings on
    SYNTH_RISING = 16,    // partials that take time to come up
    SYNTH_MODES = SYNTH_PARTIALS + SYNTH_LATE + SYNTH_RISING + 3 * SYNTH_CENTRED + SYNTH_KNOCK,
    SYNTH_PLACES = 2 * SYNTH_MODES, // with holes where one bus has more of them
    SYNTH_FRAME = 32,               // ticks between two values of the density's gain
    SYNTH_AHEAD = 8,                // ticks that the limiter looks ahead
    SYNTH_LINES = 8,                // of the room
    SYNTH_LINE = 4096               // samples of each, a power of two
};

static const double synth_tail = 2;         // seconds after the last note of a file without a given length
static const double synth_loudest = 0.18;   // RMS of the beginning of a note of velocity 1, key 60; full scale is 1
static const float synth_inaudible = 1e-5f; // amplitude at which a mode is dropped: a third of a 16 bit step
static const float synth_ceiling = 0.891f;  // of the limiter: -1 dB
static const int synth_lengths[SYNTH_LINES] = {613, 811, 1013, 1229, 1481, 1759, 2039, 2411}; // samples
static const double synth_two_pi = 6.283185307179586;

typedef struct {                               // one mode of a key while its table is made
    double frequency, decay, amplitude, phase; // Hz, 1/s, relative, turns
    int partial;                               // its number; 0: of the knock
    int bus;                                   // 0 or 1
    double life;                               // seconds until it is inaudible
} SynthMode;

typedef struct {                          // how a strike excites a mode
    float amplitude, log_partial, higher; // higher: kHz^2 above that of the first partial
    bool tone;                            // not of the knock, nor what takes the tone away at first
} SynthTimbre;

typedef struct {     // a key that is used; even modes are on one bus and odd ones on the other, the longest-lived first
    int n, sounding; // modes in all; the first ones that are still heard
    int number;      // MIDI
    bool down;       // no damper on the string
    int64_t ready;   // the tick from which its sound is still to be made
    int64_t end;     // the tick at which the damper falls
    float damping;   // of the damper, for a step of LANES samples
    float side[2][2];    // gain of each bus, left and right: two places of the soundboard
    double level;        // RMS at velocity 1
    float *turn;         // [n][2] e^((2 pi i f - decay) LANES / rate)
    SynthTimbre *timbre; // [n]
    vector *start;       // [n][2] real and imaginary part of LANES samples of a mode of amplitude 1 from its strike on
    vector *state;       // [n][2] the same of what sounds now
    real *memory;        // of all these
} SynthKey;

typedef struct {
    int64_t start, end; // ticks
    int key;
    float velocity;
} SynthStrike;

typedef struct { // a room: lines fed by the sum of the sound and by each other
    float gain[SYNTH_LINES];
    float line[SYNTH_LINES][SYNTH_LINE + SYNTH_TICK]; // the first tick again behind the end, so that reads are whole
    float last[SYNTH_LINES];                          // the sample before those that the filter sees
    int silent;                                       // ticks since something was heard
} SynthRoom;

typedef struct { // the limiter: a ring of ticks that wait for what comes
    float sound[SYNTH_AHEAD + 1][2][SYNTH_TICK];
    float need[SYNTH_AHEAD + 1]; // the gain at which each is at the ceiling, at most 1
    bool silent[SYNTH_AHEAD + 1];
    float gain; // at the beginning of the oldest tick
} SynthLimiter;

typedef struct { // all of it
    SynthKey keys[128];
    SynthStrike *strikes; // [n_strikes], those of a time in the order of keys
    size_t n_strikes;
    float *gains; // see synth_density
    SynthRoom room;
    SynthLimiter limiter;
    vector scratch[2 * SYNTH_PLACES];
    float dry[2][(1 + SYNTH_ATTACK) * SYNTH_TICK]; // left and right, from the current tick on
} Synth;

static inline float synth_more(float a, float b) { return a > b ? a : b; } // fmaxf is a call, for the sake of NaN

// ---- the keys

static inline double synth_pitch(int key) { return 440 * exp2((key - 69) / 12.0); } // Hz

// Decibels a second that the first partial loses at the beginning, and later.
static inline double synth_early(int key) { return 5 * exp2((key - 33) / 18.0); }
static inline double synth_late(int key) { return 3 * exp2((key - 33) / 24.0); }

// RMS of the beginning of a note of velocity 1. High keys are softer, as the ear hears them better and they are many.
static inline double synth_level(int key) {
    return synth_loudest * exp2(key > 60 ? -(key - 60) / 60.0 : (60 - key) / 140.0);
}

static inline int synth_longest_first(const void *a, const void *b) {
    const SynthMode *x = a, *y = b;
    if (x->life != y->life) return x->life < y->life ? 1 : -1;
    if (x->frequency != y->frequency) return x->frequency < y->frequency ? -1 : 1;
    return x->bus - y->bus;
}

// The modes of a key, in modes[SYNTH_MODES]. Returns how many.
static inline int synth_modes(int key, SynthMode *modes) {
    const PhiloxKey stream = {{(uint32_t)key, 0x70696e6f}}; // each key has its own irregularities
    const double f1 = synth_pitch(key), decibel = log(10) / 20;
    const double stiffness = exp(0.0926 * key - 13.64) + exp(-0.0847 * key - 5.82);
    const double struck = 0.08;
    int n = 0;
    for (int k = 1; k <= SYNTH_PARTIALS; k++) {
        const double f = k * f1 * sqrt((1 + stiffness * k * k) / (1 + stiffness)), higher = (f - f1) / 1000;
        if (f > 15000) break;
        const Philox4 words = philox(stream, (uint32_t)k, 1, 0, 0);
        // Where the hammer strikes, at 8 % of the length, there is a node of every 12th partial; the soundboard does
        // not radiate the lowest tones, and has resonances of its own; the wound strings of the bass are duller.
        const double comb = k * struck > 0.5 ? sin(synth_two_pi / 2 * k * struck) : 1;
        const double board = 1 / sqrt(1 + pow(62 / f, 8));
        const double rough = k > 1 ? 3 * philox_normal(stream, 3 * (uint64_t)k) : 0; // dB
        const double wound = pow(k, -fmax(60 - key, 0) / 100);
        const bool both = k <= SYNTH_CENTRED; // on both buses, a quarter of a turn apart
        const double early =
            (1 + 2.0 / (k * k)) * sqrt(comb * comb + 0.15) * board * wound * exp(decibel * rough) * (both ? 0.7 : 1);
        const double late = early * exp(decibel * (-9 + 2.5 * philox_normal(stream, 3 * (uint64_t)k + 1)));
        const double cents =
            (0.35 + 0.35 * fabs(philox_normal(stream, 3 * (uint64_t)k + 2))) * (words.x[0] & 1 ? 1 : -1);
        const double fast = f * exp2(-0.2 * cents / 1200), slow = f * exp2(0.8 * cents / 1200);
        const double fast_decay = decibel * synth_early(key) * (1 + higher / (3 + f1 / 500));
        const double slow_decay = decibel * synth_late(key) * (1 + higher / 3);
        for (int copy = 0; copy <= both; copy++) {
            const int bus = both ? copy : (int)(words.x[3] & 1);
            const double turns = words.x[1] / 4294967296.0 + copy * 0.25;
            modes[n++] = (SynthMode){fast, fast_decay, early, turns, k, bus, 0};
            if (k <= SYNTH_LATE) modes[n++] = (SynthMode){slow, slow_decay, late, turns, k, both ? bus : !bus, 0};
            if (k <= SYNTH_RISING) modes[n++] = (SynthMode){fast, 80 + 0.1 * f, -0.7 * early, turns, k, bus, 0};
        }
    }
    for (int k = 0; k < SYNTH_KNOCK; k++) {
        const Philox4 words = philox(stream, (uint32_t)k, 2, 0, 0);
        const double f = 70 * exp2((k + words.x[0] / 4294967296.0) / SYNTH_KNOCK * 6);
        const double strength = 0.18 * sqrt(200 / (200 + f));
        const double decay = 18 * sqrt(f / 200) / (0.7 + 0.6 * (words.x[1] / 4294967296.0));
        modes[n++] = (SynthMode){f, decay, strength, words.x[2] / 4294967296.0, 0, k & 1, 0};
    }
    return n;
}

static inline SynthTimbre synth_timbre(const SynthMode *mode, int key) {
    SynthTimbre timbre = {(float)mode->amplitude, 0, 0, false};
    if (mode->partial == 0) return timbre;
    timbre.tone = mode->amplitude > 0;
    timbre.log_partial = (float)log(mode->partial);
    timbre.higher = (float)((pow(mode->frequency, 2) - pow(synth_pitch(key), 2)) * 1e-6);
    return timbre;
}

// Fills excited[n], the amplitudes that a strike gives to the modes: a slow hammer stays longer on the string, which
// takes the high partials away. Returns what to multiply them with, so that `level` is the RMS of the tone at once.
static inline float synth_excite(const SynthTimbre *timbre, int n, float velocity, double level, float *excited) {
    const float hard = 2.4f + 6.4f * velocity, slope = 0.8f - 0.7f * velocity; // hard: kHz
    float power = 0;
    for (int i = 0; i < n; i++) {
        excited[i] = timbre[i].amplitude * expf(-slope * timbre[i].log_partial - timbre[i].higher / (hard * hard));
        if (timbre[i].tone) power += excited[i] * excited[i] / 2;
    }
    return (float)level * powf(velocity, 1.6f) / sqrtf(power);
}

// Makes the table of a key. Returns false when there is no memory.
static inline bool synth_make_key(SynthKey *key, int number) {
    SynthMode modes[SYNTH_MODES], placed[SYNTH_PLACES];
    SynthTimbre timbre[SYNTH_MODES];
    float excited[SYNTH_MODES];
    int count = synth_modes(number, modes), used[2] = {0};
    for (int i = 0; i < count; i++) timbre[i] = synth_timbre(&modes[i], number);
    key->level = synth_level(number);
    const float loudest = synth_excite(timbre, count, 1, key->level, excited);
    for (int i = 0; i < count; i++) modes[i].life = log(fabsf(excited[i] * loudest) / synth_inaudible) / modes[i].decay;
    qsort(modes, (size_t)count, sizeof *modes, synth_longest_first);
    memset(placed, 0, sizeof placed);
    for (int i = 0; i < count && modes[i].life > 0; i++) placed[2 * used[modes[i].bus]++ + modes[i].bus] = modes[i];
    const int n = 2 * (used[0] > used[1] ? used[0] : used[1]);
    const size_t floats = (size_t)n * (6 + 4 * LANES);
    key->memory = malloc((floats + 1) * sizeof(real));
    if (!key->memory) return false;
    key->start = (vector *)key->memory;
    key->state = key->start + 2 * n;
    key->turn = (float *)(key->state + 2 * n);
    key->timbre = (SynthTimbre *)(key->turn + 2 * n);
    key->n = n;
    key->number = number;
    key->damping = (float)exp(-LANES * log(10) / 20 * (110 + number) / SYNTH_RATE);
    const double angle = synth_two_pi / 8 * (1 + 0.4 * (number - 64) / 44.0), wide = 0.5; // left for low keys
    for (int bus = 0; bus < 2; bus++) {
        key->side[bus][0] = (float)cos(fmin(fmax(angle + (bus ? wide : -wide), 0), synth_two_pi / 4));
        key->side[bus][1] = (float)sin(fmin(fmax(angle + (bus ? wide : -wide), 0), synth_two_pi / 4));
    }
    for (int i = 0; i < n; i++) {
        const SynthMode *mode = &placed[i];
        const double angle_step = synth_two_pi * mode->frequency / SYNTH_RATE, shrink = mode->decay / SYNTH_RATE;
        key->turn[2 * i] = (float)(cos(angle_step * LANES) * exp(-shrink * LANES));
        key->turn[2 * i + 1] = (float)(sin(angle_step * LANES) * exp(-shrink * LANES));
        key->timbre[i] = synth_timbre(mode, number);
        const double c = cos(angle_step) * exp(-shrink), s = sin(angle_step) * exp(-shrink);
        double x = cos(synth_two_pi * mode->phase), y = sin(synth_two_pi * mode->phase);
        for (int lane = 0; lane < LANES; lane++) {
            key->start[2 * i][lane] = (real)x;
            key->start[2 * i + 1][lane] = (real)y;
            const double turned = x * c - y * s;
            y = x * s + y * c;
            x = turned;
        }
    }
    return true;
}

// out[SYNTH_TICK] = the sum of modes first, first + 2, .. below n, which move on by a tick. LANES samples of a mode
// stand side by side in a vector, so that a step is one complex product; the modes are added in their order.
static inline void synth_ring(vector *state, const float *turn, int first, int n, float damping, real *out) {
    vector sum[SYNTH_TICK / LANES] = {zero};
    for (int i = first; i < n; i += 2) {
        vector x = state[2 * i], y = state[2 * i + 1];
        const vector c = all_lanes(turn[2 * i] * damping), s = all_lanes(turn[2 * i + 1] * damping);
        UNROLL for (int k = 0; k < SYNTH_TICK / LANES; k++) {
            sum[k] += x;
            const vector turned = x * c - y * s;
            y = x * s + y * c;
            x = turned;
        }
        state[2 * i] = x;
        state[2 * i + 1] = y;
    }
    UNROLL for (int k = 0; k < SYNTH_TICK / LANES; k++) store(out + k * LANES, sum[k]);
}

// Adds a tick of the first n modes of a key to the two channels, times fade[SYNTH_TICK] if there is one.
static inline void synth_play(const SynthKey *key, vector *state, int n, const float *fade, float *left, float *right) {
    for (int bus = 0; bus < 2; bus++) {
        real sound[SYNTH_TICK];
        const float l = key->side[bus][0], r = key->side[bus][1];
        synth_ring(state, key->turn, bus, n, key->down ? 1 : key->damping, sound);
        for (int i = 0; fade && i < SYNTH_TICK; i++) sound[i] *= fade[i];
        for (int i = 0; i < SYNTH_TICK; i++) left[i] += (float)sound[i] * l, right[i] += (float)sound[i] * r;
    }
}

// The key's modes that have become inaudible are the last ones, or nearly so.
static inline void synth_forget(SynthKey *key) {
    for (int n = key->sounding; n > 0; key->sounding = --n) {
        const real x = key->state[2 * n - 2][0], y = key->state[2 * n - 1][0];
        if (x * x + y * y > synth_inaudible * synth_inaudible) break;
    }
}

// Strikes a key: SYNTH_ATTACK ticks of sound at once, in which the new modes are faded in beside what still sounds;
// then they are one. scratch[2 * SYNTH_PLACES].
static inline void synth_strike(SynthKey *key, const SynthStrike *strike, vector *scratch, float *left, float *right) {
    float excited[SYNTH_PLACES], velocity = strike->velocity;
    const float gain = synth_excite(key->timbre, key->n, velocity, key->level, excited);
    int n = 0;
    for (int i = 0; i < key->n; i++) {
        if (fabsf(excited[i]) * gain > synth_inaudible) n = i + 1;
        const vector scale = all_lanes(excited[i] * gain);
        scratch[2 * i] = key->start[2 * i] * scale;
        scratch[2 * i + 1] = key->start[2 * i + 1] * scale;
    }
    const float samples = (float)SYNTH_RATE * (0.0036f - 0.000026f * (float)key->number) * (1.2f - 0.4f * velocity);
    key->down = true;
    for (int t = 0; t < SYNTH_ATTACK; t++) {
        float fade[SYNTH_TICK];
        for (int i = 0; i < SYNTH_TICK; i++) {
            const float part = fminf((float)(t * SYNTH_TICK + i) / samples, 1);
            fade[i] = part * part * (3 - 2 * part);
        }
        synth_play(key, key->state, key->sounding, NULL, left + t * SYNTH_TICK, right + t * SYNTH_TICK);
        synth_play(key, scratch, n, fade, left + t * SYNTH_TICK, right + t * SYNTH_TICK);
    }
    for (int i = 0; i < 2 * n; i++) key->state[i] = (i < 2 * key->sounding ? key->state[i] : zero) + scratch[i];
    if (n > key->sounding) key->sounding = n;
    key->ready = strike->start + SYNTH_ATTACK;
    key->end = strike->end;
}

// ---- what the keys do when

static inline int synth_by_time(const void *a, const void *b) {
    const SynthStrike *x = a, *y = b;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    return x->key - y->key;
}

// The strikes of n checked notes that begin within so many ticks, in order of time. Those of a key follow each other:
// the damper falls and the key rises between them. Returns how many.
static inline size_t synth_strikes(const SynthNote *notes, size_t n, int64_t ticks, SynthStrike *strikes) {
    const double per_second = (double)SYNTH_RATE / SYNTH_TICK;
    SynthStrike *latest[128] = {NULL}; // of each key
    size_t count = 0, kept = 0;
    for (size_t i = 0; i < n; i++) {
        const SynthNote *note = &notes[i];
        const double start = rint(note->start * per_second), end = rint((note->start + note->seconds) * per_second);
        const float velocity = (float)note->velocity;
        if (!(velocity > 1e-3f) || start >= (double)ticks) continue;
        strikes[count++] =
            (SynthStrike){(int64_t)start, end < (double)ticks ? (int64_t)end : ticks, note->key, velocity};
    }
    qsort(strikes, count, sizeof *strikes, synth_by_time);
    for (size_t i = 0; i < count; i++) {
        SynthStrike strike = strikes[i], *last = latest[strike.key];
        if (strike.end < strike.start + SYNTH_SHORTEST) strike.end = strike.start + SYNTH_SHORTEST;
        if (last && strike.start - last->start < SYNTH_APART) {
            if (strike.end > last->end) last->end = strike.end;
            if (strike.velocity > last->velocity) last->velocity = strike.velocity;
            continue;
        }
        if (last && last->end > strike.start - SYNTH_RISE) last->end = strike.start - SYNTH_RISE;
        if (last && last->end < last->start + SYNTH_ATTACK) last->end = last->start + SYNTH_ATTACK;
        latest[strike.key] = &strikes[kept];
        strikes[kept++] = strike;
    }
    return kept;
}

// The gain that evens out density, for frames of SYNTH_FRAME ticks: gain[frames]. What a note's power is, and how it
// falls, follows from its key alone.
static inline void synth_density(const SynthStrike *strikes, size_t n, size_t frames, float *gain) {
    for (size_t i = 0; i < frames; i++) gain[i] = 0;
    for (int key = 0; key < 128; key++) { // key by key, because sums of floats depend on their order
        const double level = synth_level(key) / synth_loudest;
        const double fall = pow(10, -0.06 * synth_early(key) * SYNTH_FRAME * SYNTH_TICK / SYNTH_RATE);
        for (size_t i = 0; i < n; i++) {
            double power = strikes[i].key == key ? level * level : 0;
            for (size_t k = (size_t)strikes[i].start / SYNTH_FRAME; k < frames && power > 1e-4; k++, power *= fall) {
                if ((int64_t)k * SYNTH_FRAME >= strikes[i].end) break;
                gain[k] += (float)power;
            }
        }
    }
    const float keep = (float)exp(-(double)SYNTH_FRAME * SYNTH_TICK / SYNTH_RATE / 1.5);
    for (int pass = 0; pass < 2; pass++) { // forwards, then backwards
        float smooth = 0, weight = 0;
        for (size_t i = 0; i < frames; i++) {
            const size_t k = pass ? frames - 1 - i : i;
            smooth = keep * smooth + (1 - keep) * gain[k];
            weight = keep * weight + (1 - keep);
            gain[k] = smooth / weight;
        }
    }
    for (size_t k = 0; k < frames; k++) gain[k] = fminf(fmaxf(powf(2 / fmaxf(gain[k], 1e-3f), 0.25f), 0.5f), 1.4f);
}

// ---- the room, the limiter, the file

static inline void synth_open_room(SynthRoom *room) {
    memset(room, 0, sizeof *room);
    room->silent = SYNTH_LINE / SYNTH_TICK;
    for (int i = 0; i < SYNTH_LINES; i++) {
        room->gain[i] = (float)pow(10, -3.0 * synth_lengths[i] / SYNTH_RATE / 0.9); // -60 dB after 0.9 s
    }
}

// Adds the room's answer to a tick of sound. A line is read, filtered by a mean of neighbours (air and curtains), mixed
// with the others by a reflection (I - 2/8, which keeps energy), and written again. Returns whether it still answers.
static inline bool synth_room(SynthRoom *room, int64_t tick, bool no_sound, float *left, float *right) {
    if (no_sound && room->silent >= SYNTH_LINE / SYNTH_TICK) return false;
    float read[SYNTH_LINES][SYNTH_TICK + 1], sum[SYNTH_TICK] = {0}, in[SYNTH_TICK], peak = 0;
    const int at = (int)(tick * SYNTH_TICK & (SYNTH_LINE - 1));
    for (int i = 0; i < SYNTH_TICK; i++) in[i] = 0.35f * (left[i] + right[i]);
    for (int j = 0; j < SYNTH_LINES; j++) {
        memcpy(read[j] + 1, room->line[j] + ((at - synth_lengths[j]) & (SYNTH_LINE - 1)), SYNTH_TICK * sizeof(float));
        read[j][0] = room->last[j];
        room->last[j] = read[j][SYNTH_TICK];
        for (int i = 0; i < SYNTH_TICK; i++) sum[i] += room->gain[j] * (0.7f * read[j][i + 1] + 0.3f * read[j][i]);
    }
    for (int j = 0; j < SYNTH_LINES; j++) {
        float *line = room->line[j] + at, *side = j & 1 ? right : left;
        const float sign = j & 2 ? -0.2f : 0.2f;
        for (int i = 0; i < SYNTH_TICK; i++) {
            const float filtered = room->gain[j] * (0.7f * read[j][i + 1] + 0.3f * read[j][i]);
            side[i] += sign * filtered;
            line[i] = in[i] + filtered - 0.25f * sum[i];
        }
        if (!at) memcpy(room->line[j] + SYNTH_LINE, line, SYNTH_TICK * sizeof(float));
    }
    for (int i = 0; i < SYNTH_TICK; i++) peak = synth_more(peak, synth_more(fabsf(sum[i]), fabsf(in[i])));
    room->silent = peak > synth_inaudible / 8 ? 0 : room->silent + 1;
    if (room->silent >= SYNTH_LINE / SYNTH_TICK) synth_open_room(room);
    return true;
}

// Takes a tick in, and gives out the one of SYNTH_AHEAD ticks ago, at[2 SYNTH_TICK] with left and right in turn. Its
// gain goes in a straight line from one tick's edge to the next, and at an edge it is at most what the ticks at both
// sides need, and what a straight way over SYNTH_AHEAD ticks down to the need of a later one leaves. Returns whether
// that tick was silent.
static inline bool synth_limit(SynthLimiter *limiter, int64_t tick, bool silent, const float *left, const float *right,
                               float *at) {
    enum { RING = SYNTH_AHEAD + 1 };
    const int newest = (int)(tick % RING), oldest = (int)((tick + 1) % RING);
    float peak = 0;
    for (int i = 0; i < SYNTH_TICK; i++) peak = synth_more(peak, synth_more(fabsf(left[i]), fabsf(right[i])));
    memcpy(limiter->sound[newest][0], left, SYNTH_TICK * sizeof(float));
    memcpy(limiter->sound[newest][1], right, SYNTH_TICK * sizeof(float));
    limiter->need[newest] = peak > synth_ceiling ? synth_ceiling / peak : 1;
    limiter->silent[newest] = silent;
    float gain = limiter->gain + 0.012f * (1 - limiter->gain); // back up in about 120 ms
    for (int j = 0; j <= SYNTH_AHEAD; j++) {                   // the edge behind the oldest; j = 0 is the oldest itself
        const float need = limiter->need[(oldest + j) % RING], part = j ? (float)(j - 1) / SYNTH_AHEAD : 0;
        gain = fminf(gain, need + (1 - need) * part);
    }
    const float step = (gain - limiter->gain) / SYNTH_TICK;
    for (int i = 0; i < SYNTH_TICK; i++) {
        const float g = limiter->gain + step * (float)i;
        at[2 * i] = limiter->sound[oldest][0][i] * g;
        at[2 * i + 1] = limiter->sound[oldest][1][i] * g;
    }
    limiter->gain = gain;
    return limiter->silent[oldest];
}

// Rounds a tick to 16 bits, with triangular dither of two steps' width: the sum of a word's halves.
static inline void synth_round(const float *sound, int64_t tick, int16_t *out) {
    static const PhiloxKey stream = {{0x64697468, 0x6572}};
    uint32_t words[2 * SYNTH_TICK];
    philox_row(stream, SYNTH_TICK / 2, (uint32_t)tick, 0, 0, words);
    for (int i = 0; i < 2 * SYNTH_TICK; i++) {
        const float dither = (float)(int)((words[i] >> 16) + (words[i] & 0xFFFF)) * (1 / 65536.0f) - 1;
        out[i] = (int16_t)((int)(sound[i] * 32767 + dither + 32768.5f) - 32768);
    }
}

static inline void synth_header(char *at, uint32_t data) {
    const uint16_t format[8] = {1, 2, SYNTH_RATE, 0, (uint16_t)(4 * SYNTH_RATE), 4 * SYNTH_RATE >> 16, 4, 16};
    const uint32_t riff = data + 36, sixteen = 16;
    memcpy(at, "RIFF", 4), memcpy(at + 4, &riff, 4), memcpy(at + 8, "WAVEfmt ", 8);
    memcpy(at + 16, &sixteen, 4), memcpy(at + 20, format, 16); // PCM, channels, rate, bytes a second and a frame, bits
    memcpy(at + 36, "data", 4), memcpy(at + 40, &data, 4);
}

// Makes the sound of a checked list of notes: out[frames] with left and right.
static inline void synth_render(Synth *s, int64_t frames, char *out) {
    const int64_t ticks = (frames + SYNTH_TICK - 1) / SYNTH_TICK, fade = SYNTH_RATE / 20;
    float *left = s->dry[0], *right = s->dry[1];
    size_t next = 0;
    for (int64_t tick = 0; tick < ticks + SYNTH_AHEAD; tick++) {
        bool silent = true;
        for (; next < s->n_strikes && s->strikes[next].start == tick; next++) {
            synth_strike(&s->keys[s->strikes[next].key], &s->strikes[next], s->scratch, left, right);
        }
        for (int k = 0; k < 128; k++) {
            SynthKey *key = &s->keys[k];
            if (key->end == tick && k < SYNTH_UNDAMPED) key->down = false;
            if (!key->sounding) continue;
            silent = false;
            if (key->ready > tick) continue;
            synth_play(key, key->state, key->sounding, NULL, left, right);
            synth_forget(key);
        }
        silent = !synth_room(&s->room, tick, silent, left, right) && silent;
        const float *gains = s->gains + tick / SYNTH_FRAME;
        const float step = (gains[1] - gains[0]) / (SYNTH_FRAME * SYNTH_TICK);
        const float gain = gains[0] + step * (float)(tick % SYNTH_FRAME * SYNTH_TICK);
        for (int i = 0; i < SYNTH_TICK; i++) left[i] *= gain + step * (float)i, right[i] *= gain + step * (float)i;
        float sound[2 * SYNTH_TICK];
        int16_t rounded[2 * SYNTH_TICK] = {0};
        silent = synth_limit(&s->limiter, tick, silent, left, right, sound);
        for (int channel = 0; channel < 2; channel++) {
            float *dry = s->dry[channel];
            memmove(dry, dry + SYNTH_TICK, SYNTH_ATTACK * SYNTH_TICK * sizeof *dry);
            memset(dry + SYNTH_ATTACK * SYNTH_TICK, 0, SYNTH_TICK * sizeof *dry);
        }
        const int64_t at = (tick - SYNTH_AHEAD) * SYNTH_TICK, left_over = frames - at;
        if (at < 0) continue;
        for (int i = 0; i < SYNTH_TICK && left_over < fade + SYNTH_TICK; i++) {
            const float part = fminf(fmaxf((float)(left_over - 1 - i) / (float)fade, 0), 1);
            sound[2 * i] *= part, sound[2 * i + 1] *= part;
        }
        if (!silent) synth_round(sound, tick, rounded);
        memcpy(out + 4 * at, rounded, (size_t)(left_over < SYNTH_TICK ? left_over : SYNTH_TICK) * 4);
    }
}

// Appends a whole WAVE file of n notes (in any order) to `out`. It lasts `seconds`, the last 50 ms of them faded out,
// without the notes that begin later; 0: until 2 s after the last note's end. On failure `out` is as it was.
static inline bool synth_wav(TextBuffer *out, const SynthNote *notes, size_t n, double seconds, char *error) {
    const double longest = (4294967295.0 - 36) / 4 / SYNTH_RATE; // RIFF counts what follows its first 8 bytes
    double end = 0;
    if (!(seconds >= 0)) return fail(error, "the sound is to last %g seconds; it has to be 0 or more", seconds);
    for (size_t i = 0; i < n; i++) {
        const SynthNote *note = &notes[i];
        if (!(note->start >= 0 && isfinite(note->start) && note->seconds >= 0 && isfinite(note->seconds))) {
            return fail(error, "note %zu begins at %g s and lasts %g s; both have to be 0 or more", i + 1, note->start,
                        note->seconds);
        }
        if (note->key < 0 || note->key > 127) {
            return fail(error, "note %zu has key %d; MIDI keys are 0 to 127", i + 1, note->key);
        }
        if (!(note->velocity >= 0 && note->velocity <= 1)) {
            return fail(error, "note %zu has velocity %g; it has to be 0 to 1", i + 1, note->velocity);
        }
        end = fmax(end, note->start + note->seconds);
    }
    if (seconds == 0 && n) seconds = end + synth_tail;
    if (seconds > longest) {
        return fail(error, "%.6g seconds do not fit into a WAVE file, which ends at 4 GiB or %.0f seconds; write less",
                    seconds, floor(longest));
    }
    const int64_t frames = (int64_t)rint(seconds * SYNTH_RATE), ticks = (frames + SYNTH_TICK - 1) / SYNTH_TICK;
    const size_t size = 44 + 4 * (size_t)frames, n_gains = (size_t)(ticks + SYNTH_AHEAD) / SYNTH_FRAME + 2;
    if (!out->failed && size > out->capacity - out->size) {
        char *grown = realloc(out->bytes, out->size + size);
        if (grown) out->bytes = grown, out->capacity = out->size + size;
    }
    Synth *s = calloc(1, sizeof *s);
    bool ok = s && !out->failed && size <= out->capacity - out->size;
    ok = ok && (s->strikes = malloc((n + 1) * sizeof *s->strikes));
    ok = ok && (s->gains = malloc(n_gains * sizeof *s->gains));
    if (ok) s->n_strikes = synth_strikes(notes, n, ticks, s->strikes);
    for (size_t i = 0; ok && i < s->n_strikes; i++) {
        const int key = s->strikes[i].key;
        ok = s->keys[key].n || synth_make_key(&s->keys[key], key);
    }
    if (ok) {
        synth_density(s->strikes, s->n_strikes, n_gains, s->gains);
        synth_open_room(&s->room);
        s->limiter.gain = 1;
        for (int i = 0; i <= SYNTH_AHEAD; i++) s->limiter.need[i] = 1;
        synth_header(out->bytes + out->size, (uint32_t)(size - 44));
        synth_render(s, frames, out->bytes + out->size + 44);
        out->size += size;
    }
    for (int k = 0; s && k < 128; k++) free(s->keys[k].memory);
    if (s) free(s->strikes), free(s->gains);
    free(s);
    return ok || fail(error, "there is no memory for %.6g seconds of sound, %zu bytes; write less", seconds, size);
}
