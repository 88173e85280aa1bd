// compose_music: the starter corpus, piano pieces composed by rule, for everybody who has no MIDI folder at hand.
//
// Promises. Piece k of a seed has the same bytes on every machine, however many pieces are asked for: all arithmetic is
// in integers, and its dice are Philox words keyed by seed and k. Every note lies on the grid of 16ths, so that tokens
// lose nothing but loudness and tempo. Of every ten pieces the second goes to OUT/test, the others to OUT/train. Files
// are written whole or not at all. Nothing is removed: another corpus wants another folder.
//
// How a piece comes about, in the order of this file:
//   a style     waltz, ragtime, nocturne ... fixes meter, tempo, moods and what the right hand may do;
//   harmony     a phrase of four bars is an opening and a cadence; phrases pair as question (half cadence) and answer;
//   rhythm      a theme lives on two to four one-bar motifs: a rhythm and a contour of steps and leaps;
//   melody      the cheapest path of scale steps, by dynamic programming, under the rules that a teacher would give:
//               keep the motif's contour, chord tones on strong beats, step into and out of dissonance, turn back after
//               a leap, climb to one climax, close on the cadence's note;
//   the hands   the same theme returns doubled, ornamented, syncopated, in the tenor, over another accompaniment; the
//               left hand has a bass line of its own and chords that move as little as they can;
//   form        ABA, AABA, rondo, variations; the middle in a related key; introduction, coda, ritardando, last chord.
//
// Left out: counterpoint of equal voices, swing, triplets, pedal marks, grace notes.
// Rules of melody and voice leading: any harmony primer; the cadences and the 4-bar phrase as in A. Schoenberg,
// Fundamentals of Musical Composition, chapters 3 to 8.
#include "base/flags.h"
#include "base/philox.h"
#include "base/program.h"
#include "base/text.h"
#define MIDI_IMPLEMENTATION
#define MIDI_STATIC
#include "midi.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

enum {
    MAX_CHORDS = 36,  // of a theme
    MAX_MELODY = 400, // notes of a theme, after variation
    MAX_NOTES = 8192, // of a piece
    MAX_STEPS = 4096, // of a piece
    RANGE = 15,       // scale steps that a melody may use: two octaves
    FREE = 99         // no wish for the next interval
};

typedef struct {
    PhiloxKey key;
    uint32_t rolled;
} Dice;

static int roll(Dice *dice, int n) { // 0 .. n-1
    return (int)(((uint64_t)philox(dice->key, dice->rolled++, 0, 0, 0).x[0] * (uint64_t)n) >> 32);
}
static int between(Dice *dice, int low, int high) { return low + roll(dice, high - low + 1); }
static bool chance(Dice *dice, int percent) { return roll(dice, 100) < percent; }
static int least(int a, int b) { return a < b ? a : b; }
static int most(int a, int b) { return a > b ? a : b; }
static int clamp(int x, int low, int high) { return most(low, least(x, high)); }
static int modulo(int a, int n) { return ((a % n) + n) % n; }

// ---- keys and chords
//
// A scale step is an integer: 0 is the tonic near middle C, 7 the tonic above it. Themes are kept in scale steps and
// chord degrees, so that they return in another key, or in minor, without being composed again.

enum { MAJOR, MINOR, DORIAN, MIXOLYDIAN, LYDIAN, MODES };
static const char mode_letters[] = "Mmdxl";
static const char *const mode_names[MODES] = {"major", "minor", "dorian", "mixolydian", "lydian"};
static const int scales[MODES][7] = {{0, 2, 4, 5, 7, 9, 11},
                                     {0, 2, 3, 5, 7, 8, 10},
                                     {0, 2, 3, 5, 7, 9, 10},
                                     {0, 2, 4, 5, 7, 9, 10},
                                     {0, 2, 4, 6, 7, 9, 11}};

typedef struct {       // a chord as a theme keeps it
    int start, length; // steps from the start of the theme
    int degree;        // 0..6, of the root
    bool dominant;     // a major chord, whatever the scale says: the dominant of the degree a fifth below
    bool seventh;      // with the seventh
    bool six_four;     // over the fifth, the suspense before a cadence
} Symbol;

typedef struct {           // a chord in a key
    int start, length;     // steps from the start of the section
    int tonic;             // MIDI key of scale step 0
    int scale[7];          // semitones above the tonic of the seven steps while the chord sounds
    int tones[4], n_tones; // MIDI keys modulo 12: root, third, fifth, seventh
    bool six_four;
    int bass, voices[3]; // MIDI keys of the left hand
} Chord;

static Chord realise(Symbol symbol, int tonic, int mode) {
    Chord chord = {.start = symbol.start, .length = symbol.length, .tonic = tonic, .six_four = symbol.six_four};
    memcpy(chord.scale, scales[mode], sizeof chord.scale);
    int root = symbol.degree;
    if (symbol.dominant || (mode == MINOR && root == 4)) {
        // Bend the chord's steps into a dominant seventh: in minor this makes the leading tone.
        static const int intervals[4] = {7, 11, 2, 5};
        int target = scales[mode][(root + 3) % 7];
        for (int i = 0; i < 4; i++) {
            int *step = &chord.scale[(root + 2 * i) % 7];
            *step += modulo(target + intervals[i] - *step + 6, 12) - 6;
        }
    }
    chord.n_tones = symbol.seventh ? 4 : 3;
    for (int i = 0; i < chord.n_tones; i++) chord.tones[i] = modulo(tonic + chord.scale[(root + 2 * i) % 7], 12);
    return chord;
}

static int key_of(const Chord *chord, int step) {
    int degree = modulo(step, 7);
    return chord->tonic + (step - degree) / 7 * 12 + chord->scale[degree];
}

static bool is_tone(const Chord *chord, int key) {
    for (int i = 0; i < chord->n_tones; i++) {
        if (chord->tones[i] == modulo(key, 12)) return true;
    }
    return false;
}

static int step_at(const Chord *chord, int key) { // the highest scale step that is not above a key
    int step = 7 * 6;
    while (key_of(chord, step) > key) step--;
    return step;
}

// The n-th chord tone below a key (n = 1: the next one), leaving at least `gap` semitones to the first.
static int tone_below(const Chord *chord, int key, int n, int gap) {
    key -= gap;
    while (!is_tone(chord, key) || --n > 0) key--;
    return key;
}

// ---- harmony
//
// Bars are separated by blanks, the two chords of a bar by a dot. 1..7: the chord on that degree; /n: the dominant of
// degree n; c: the tonic over its fifth. A 5 in minor is a dominant; in the other modes it is what the scale gives.

typedef struct {
    const char *openings[14]; // two bars that leave home or stay there
    const char *half[7];      // two bars that end open, on the dominant or its like
    const char *full[6];      // two bars that come home
    const char *rare[2][3];   // evaded: two bars that promise home and go elsewhere; plagal: home by the subdominant
    const char *sequences[6]; // six bars, before a full close: the old favourites
} Harmony;

static const Harmony harmonies[MODES] = {
    {{"1 1", "1 4", "1 5", "1 6", "1.5 1", "1 2", "1.4 1", "1 3", "1.6 2.5", "6 4", "1 /4", "4 1", "1 /6", "1.5 6.3"},
     {"4 5", "2 5", "6.4 5", "/5 5", "1 5", "4.2 5", "6./5 5"},
     {"5 1", "2.5 1", "4.5 1", "c.5 1", "6.5 1", "2.5 1"},
     {{"5 6", "4.5 6", "/6 6"}, {"4 1", "2.4 1", "6.4 1"}},
     {"1 5 6 3 4 1", "1 6 4 5 1 6", "1 4 5 3 6 4", "1 3 4 5 1 4", "1 /6 6 /5 5 1", "1 6 2 5 1 /4"}},
    {{"1 1", "1 4", "1 5", "1 6", "1.7 6", "1 2.5", "1 7", "1.5 1", "1 3", "1.4 1", "6 3", "1 /4", "4 1", "1.6 4.5"},
     {"4 5", "6 5", "2 5", "4.6 5", "7.6 5", "1 5", "/5 5"},
     {"5 1", "4.5 1", "2.5 1", "c.5 1", "6.5 1", "4.5 1"},
     {{"5 6", "4.5 6", "7 3"}, {"4 1", "6.4 1", "2.4 1"}},
     {"1 7 6 5 1 7", "1 4 7 3 6 2", "1 6 3 7 1 6", "1 5 1 7 3 7", "1 7 3 4 6 1", "1 4 1 5 6 3"}},
    {{"1 4", "1 7", "1 3", "1.7 1", "1 2", "3 4", "1.4 1", "1 1", "3 7", "1.3 4", "1 5", "4 1", "7 1", "1 7.4"},
     {"4 5", "7 5", "3 4", "1 7", "4 7", "3.7 5", "1 5"},
     {"7 1", "4 1", "3.7 1", "5 1", "4.7 1", "4.5 1"},
     {{"7 3", "5 3", "7 4"}, {"4 1", "2.4 1", "3.4 1"}},
     {"1 7 4 1 3 7", "1 3 7 4 1 5", "1 4 1 7 1 4", "1 5 3 7 4 1", "3 7 1 4 3 7", "1 7 3 4 1 7"}},
    {{"1 7", "1 4", "1.7 4", "1 2", "1 5", "1.4 1", "7 4", "1 1", "1.7 1", "4 1", "6 4", "1 6", "1 7.4", "2 7"},
     {"4 5", "7 4", "1 7", "2 7", "4.7 5", "2 5", "6 5"},
     {"7 1", "4.7 1", "7.4 1", "5 1", "2.7 1", "4.5 1"},
     {{"7 6", "5 6", "7 2"}, {"4 1", "7.4 1", "2.4 1"}},
     {"1 7 4 1 6 7", "1 5 7 4 1 2", "1 4 1 7 1 4", "1 2 4 1 7 4", "6 7 1 4 6 7", "1 7 1 5 4 2"}},
    {{"1 2", "1 1", "1.2 1", "3 2", "6 2", "1 5", "1 3", "1 6", "1 2.5", "5 1", "1.5 2", "6 3", "1 7.5", "3 6"},
     {"2 5", "6 2", "3 2", "1 2", "6 5", "1 5", "3 5"},
     {"5 1", "2.5 1", "2 1", "7.5 1", "3.5 1", "6.5 1"},
     {{"5 6", "2 6", "5 3"}, {"2 1", "2.5 1", "6.2 1"}},
     {"1 2 1 2 5 6", "1 5 2 6 3 2", "1 3 2 6 1 5", "1 2 3 6 2 5", "6 3 1 2 6 3", "1 5 6 2 1 2"}},
};

enum { IN_44, IN_34, IN_24, IN_68, METERS }; // 4/4 to 6/8
typedef struct {
    const char *name;
    int numerator, exponent; // 6/8 is 6 and 3
    int bar, half, beat;     // steps; `half` is where the second chord of a bar begins
} Meter;
static const Meter meters[METERS] = {
    {"4/4", 4, 2, 16, 8, 4}, {"3/4", 3, 2, 12, 8, 4}, {"2/4", 2, 2, 8, 4, 4}, {"6/8", 6, 3, 12, 6, 6}};

typedef struct {
    int start, length; // steps from the start of the theme
    int step;          // scale step
    int move;          // the motif's interval from the note before, in scale steps, or FREE
    int weight;        // 3 the downbeat, 2 the middle of an even bar, 1 other beats, 0 off the beat
    int echo;          // the note of an earlier phrase that this one repeats, or -1
    bool goal;         // the last note of a phrase
} MelodyNote;

typedef struct {
    int bars, phrases; // 4 bars a phrase
    int tonic, mode;   // where it was composed
    Symbol chords[MAX_CHORDS];
    int n_chords;
    MelodyNote melody[MAX_MELODY];
    int n_melody;
    int floor; // lowest scale step allowed
} Theme;

// Appends the chords of a string of bars, beginning at a bar of the theme; returns the bar after the last.
static int add_harmony(Theme *theme, const char *text, int bar, const Meter *meter, int sevenths, Dice *dice) {
    for (bool second = false; *text; text += *text != 0) {
        Symbol chord = {.start = bar * meter->bar, .length = meter->bar};
        chord.six_four = *text == 'c';
        chord.dominant = *text == '/';
        text += chord.dominant;
        chord.degree = chord.six_four ? 0 : (*text - '1' + 4 * chord.dominant) % 7;
        text++;
        bool leads = chord.dominant || (theme->mode <= MINOR && chord.degree == 4);
        int percent = leads ? 45 + sevenths / 2 : chord.degree ? sevenths : sevenths / 3;
        chord.seventh = !chord.six_four && chance(dice, percent);
        if (second) {
            theme->chords[theme->n_chords - 1].length = meter->half;
            chord.start += meter->half;
            chord.length -= meter->half;
        }
        theme->chords[theme->n_chords++] = chord;
        second = *text == '.';
        bar += !second;
    }
    return bar;
}

// ---- styles
//
// Moods tie rhythms and accompaniments to styles: g gentle, b brisk, d dancing, h hymn-like, j ragtime, t tango,
// f flowing, w with a walking bass. What the right hand may do with a melody: p plays it plain, o in octaves, T in
// thirds and sixths, c with chords, a with afterbeats under long notes, r with ripples of broken chords under it, G
// grand, in octaves filled with a chord note, l down in the tenor, under the accompaniment.

typedef struct {
    const char *name;
    int meter, slow, fast; // quarters a minute
    const char *moods, *right_hand;
    const char *modes; // M major, m minor, d dorian, x mixolydian, l lydian; more often = more likely
    int activity;      // notes of the melody per bar of 16 steps, about
    int sevenths;      // percent of the chords that are no dominants
} Style;

static const Style styles[] = {
    {"waltz", IN_34, 126, 150, "d", "poTcaa", "MMMmmm", 5, 8},
    {"minuet", IN_34, 108, 126, "gb", "pTTca", "MMMMm", 7, 4},
    {"sarabande", IN_34, 70, 84, "gh", "ccTrG", "Mmmmd", 5, 6},
    {"mazurka", IN_34, 120, 144, "d", "poTcG", "mmmMMl", 7, 6},
    {"romance", IN_34, 84, 104, "gf", "parrTl", "Mmmm", 6, 14},
    {"lullaby", IN_68, 88, 104, "gf", "pTarl", "MMMl", 5, 12},
    {"barcarolle", IN_68, 96, 120, "gf", "poTTl", "Mmmd", 6, 10},
    {"jig", IN_68, 132, 150, "db", "poTc", "MMdxx", 11, 0},
    {"siciliana", IN_68, 84, 100, "g", "pTTcr", "mmmMd", 7, 6},
    {"march", IN_44, 104, 124, "d", "ocGTc", "MMMmx", 7, 2},
    {"ballad", IN_44, 72, 92, "gf", "pacrrlT", "MMMmmmdx", 7, 20},
    {"nocturne", IN_44, 70, 88, "f", "paorTl", "MMmmm", 7, 14},
    {"sonatina", IN_44, 116, 140, "b", "ppoTa", "MMMMm", 9, 4},
    {"hymn", IN_44, 76, 96, "h", "ccGT", "MMMMxmd", 5, 4},
    {"rag", IN_24, 80, 98, "j", "oGcTp", "MMMMm", 15, 6},
    {"polka", IN_24, 100, 124, "d", "poTcG", "MMMm", 13, 2},
    {"tango", IN_24, 80, 104, "t", "poTcG", "mmmmMd", 12, 8},
    {"gallop", IN_24, 116, 140, "db", "pocT", "MMm", 13, 0},
    {"stroll", IN_44, 96, 126, "w", "pcaTG", "MMmxd", 8, 40},
    {"prelude", IN_44, 72, 96, "f", "prpro", "MMmmmdl", 4, 20},
    {"air", IN_44, 88, 112, "ghf", "pTarl", "ddxxMml", 8, 4},
    {"etude", IN_44, 96, 126, "bf", "poTrr", "MMmmm", 6, 10},
};

// ---- rhythm
//
// A bar, or half of one in 4/4 and 6/8: the meter, lengths in steps, as digits and c for 12, and the moods, of which
// none stands for all.
// clang-format off
static const char *const rhythms[] = {
    "4/4 8", "4/4 44", "4/4 62", "4/4 422", "4/4 224", "4/4 2222", "4/4 4211 bfg", "4/4 314 dh", "4/4 3131 d",
    "4/4 242 wgfb", "4/4 332 w", "4/4 111122 b", "4/4 41111 bf", "4/4 22211 bd", "4/4 611 gf", "4/4 2114 bd",
    "4/4 1124 b", "4/4 11112211 b", "3/4 84", "3/4 c dgf", "3/4 444", "3/4 624", "3/4 4422", "3/4 42222",
    "3/4 222222 bdg", "3/4 48 hg", "3/4 3144 d", "3/4 4224", "3/4 822 dgf", "3/4 66 d", "3/4 4431 dh", "3/4 411112 b",
    "3/4 22422 gb", "3/4 21144 db", "3/4 462 hgf", "3/4 2244 bdg", "2/4 44", "2/4 422", "2/4 224", "2/4 2222",
    "2/4 21122 dj", "2/4 112112 db", "2/4 12122 jt", "2/4 1214 jt", "2/4 242 jt", "2/4 332 tj", "2/4 3122 t",
    "2/4 121121 j", "2/4 41111 db", "2/4 11112112 db", "2/4 121211 j", "2/4 314 dt", "2/4 611 t", "2/4 11114 db",
    "2/4 112211 djb", "6/8 6", "6/8 42", "6/8 222", "6/8 312 g", "6/8 24 g", "6/8 2211 gfb", "6/8 21111 b",
    "6/8 2112 bf", "6/8 411 gf",
};
// clang-format on

// Ends of phrases; what the bar has left over is a breath or an upbeat to the next phrase.
static const char *const closes[METERS][5] = {{"c", "48", "8", "228", "44"},
                                              {"8", "8", "44", "224", "c"},
                                              {"4", "4", "224", "22", "8"},
                                              {"6", "c", "42", "226", "6"}};

typedef struct { // one bar of melody
    int n, length[16], move[16];
} Motif;

static int add_lengths(Motif *motif, const char *lengths) { // up to a blank; returns their sum
    int sum = 0;
    for (const char *c = lengths; *c > ' '; c++) {
        int length = *c == 'c' ? 12 : *c - '0';
        motif->length[motif->n++] = length;
        sum += length;
    }
    return sum;
}

static int weight_at(int place, const Meter *meter) {
    place %= meter->bar;
    if (place == 0) return 3;
    if (2 * place == meter->bar) return 2;
    return place % meter->beat == 0;
}

// Rolls a motif: of a few rhythms the one nearest the style's activity, and one of six kinds of contour, because notes
// with independent intervals do not sound like a melody.
static Motif make_motif(const Style *style, Dice *dice) {
    Motif motif = {0}, rolled;
    const Meter *meter = &meters[style->meter];
    int wanted = most(2, style->activity * meter->bar / 16 + between(dice, -1, 1));
    for (int try = 0; try < 6; try++) {
        rolled.n = 0;
        for (int filled = 0; filled < meter->bar;) {
            const char *rhythm = rhythms[roll(dice, COUNT(rhythms))], *lengths = rhythm + 4;
            const char *moods = strchr(lengths, ' ');
            if (strncmp(rhythm, meter->name, 3) || (moods && !strpbrk(moods, style->moods))) continue;
            filled += add_lengths(&rolled, lengths);
        }
        if (try == 0 || abs(rolled.n - wanted) < abs(motif.n - wanted)) motif = rolled;
    }
    int kind = roll(dice, 6), sign = chance(dice, 55) ? 1 : -1, leap = between(dice, 3, 5);
    motif.move[0] = FREE;
    for (int i = 1; i < motif.n; i++) {
        int move = 0;
        switch (kind) {
        case 0: move = sign; break;                                   // a scale
        case 1: move = i % 2 ? sign : -sign; break;                   // around a note
        case 2: move = 2 * sign * (i <= motif.n / 2 ? 1 : -1); break; // a broken chord, there and back
        case 3: move = i == 1 ? leap * sign : -sign; break;           // a leap, filled
        case 4: move = i % 3 ? -sign : 2 * sign; break;               // steps and a third
        default: move = i <= 2 ? 0 : sign; break;                     // a repeated note, then away
        }
        motif.move[i] = chance(dice, 20) ? between(dice, -3, 3) : move;
    }
    return motif;
}

// ---- melody

static const Chord *chord_at(const Chord *chords, int n, int time) {
    int i = 0;
    while (i + 1 < n && chords[i + 1].start <= time) i++;
    return &chords[i];
}

// The height that the line should have: it rises to the phrase's climax after three fifths of it, then falls.
static int arch(int time, int length, int height) {
    int peak = length * 3 / 5;
    return time < peak ? height * time / peak : height - (height - 1) * (time - peak) / (length - peak);
}

// What a phrase is to be like.
typedef struct {
    int begin, length;  // steps
    int base, height;   // scale steps above the theme's floor: where the arch stands, and how high it is
    char cadence;       // how it ends: h, f, e, p as in make_theme, F for the last of a theme
    const int *avoided; // two degrees that a pentatonic melody leaves out, or NULL
} Phrase;

// The cost of a scale step for a note, whatever its neighbours.
static int note_cost(const Theme *theme, const Phrase *phrase, const MelodyNote *note, int q, const Chord *chord,
                     const Chord *after) {
    static const int off_chord[4] = {5, 14, 34, 52};
    int step = theme->floor + q, key = key_of(chord, step), degree = modulo(step, 7), cost = 0;
    bool harmonic = is_tone(chord, key);
    if (!harmonic) {
        cost += off_chord[note->weight] + 4 * note->length + (note->length >= 6 ? 50 : 0);
        if (is_tone(chord, key - 1)) cost += 5 * note->weight; // a semitone above a chord tone is the harshest
    }
    if (after != chord && !is_tone(after, key)) cost += 40; // held into a chord that it is no part of
    int away = q - phrase->base - arch(note->start - phrase->begin, phrase->length, phrase->height);
    cost += away * away + (q > phrase->base + phrase->height ? 10 : 0);
    if (phrase->avoided && (degree == phrase->avoided[0] || degree == phrase->avoided[1])) cost += 16;
    if (note->echo >= 0) cost += 22 * abs(step - theme->melody[note->echo].step);
    if (!note->goal) return cost;
    if (!harmonic) cost += 300;
    if (phrase->cadence == 'F' && degree != 0) cost += degree == 2 ? 90 : 200;
    if (phrase->cadence == 'f' && degree != 0) cost += degree == 2 ? 12 : 60;
    return cost + 4 * abs(q - phrase->base - 1);
}

// The cost of an interval: steps are free; chromatic and augmented ones and the tritone cost extra.
static int interval_cost(int move, int semitones, int wish) {
    static const int sizes[8] = {9, 0, 2, 6, 8, 13, 30, 16};
    int cost = abs(move) > 7 ? 90 : sizes[abs(move)];
    if (abs(semitones) == 6 || (abs(move) == 1 && abs(semitones) == 3) || (move == 0 && semitones != 0)) cost += 28;
    if (wish != FREE) cost += 8 * abs(move - wish) - (wish == 0 && move == 0 ? 4 : 0);
    return cost;
}

// The cost of two intervals in a row, by whether the note between them is dissonant.
static int turn_cost(bool dissonant, int in, int out) {
    int cost = 0;
    if (dissonant) { // a passing or neighbour note, or a suspension that falls by step
        if (abs(in) > 1) cost += 45;
        if (abs(out) != 1) cost += 80;
        if (in == 0 && out == 1) cost += 8;
    } else if (abs(in) >= 3) { // after a leap turn back, or at least go on along the chord
        if (in > 0 ? out > 0 : out < 0) cost += abs(out) == 2 ? 8 : 20;
        if (abs(in) >= 5 && abs(out) > 2) cost += 12;
    }
    if (in == 0 && out == 0) cost += 9;
    if (in != 0 && in == -out) cost += 2;
    return cost;
}

// Gives a theme's notes from..to-1, one phrase, their scale steps: the cheapest path, by Viterbi's algorithm over pairs
// of successive notes. A little chance in every cost keeps similar phrases from being the same.
static void choose_steps(Theme *theme, const Chord *chords, int from, int to, const Phrase *phrase, Dice *dice) {
    enum { FAR = 1 << 28, MAX_PHRASE = 128 };
    static uint8_t back[MAX_PHRASE][RANGE][RANGE];
    MelodyNote *notes = theme->melody;
    int best[RANGE][RANGE], next[RANGE][RANGE]; // cheapest path that ends in notes [p], [q] above the floor
    to = least(to, from + MAX_PHRASE);
    for (int i = 0; i < RANGE * RANGE; i++) {
        best[i / RANGE][i % RANGE] = from == 0 || i % RANGE == notes[from - 1].step - theme->floor ? 0 : FAR;
    }
    for (int i = from; i < to; i++) {
        const MelodyNote *note = &notes[i];
        const Chord *chord = chord_at(chords, theme->n_chords, note->start);
        const Chord *before = chord_at(chords, theme->n_chords, i > 0 ? notes[i - 1].start : 0);
        const Chord *after = chord_at(chords, theme->n_chords, note->start + note->length - 2);
        for (int q = 0; q < RANGE; q++) {
            int cost = note_cost(theme, phrase, note, q, chord, after) + roll(dice, 7);
            for (int p = 0; p < RANGE; p++) {
                int key_before = key_of(before, theme->floor + p), key = key_of(chord, theme->floor + q);
                bool dissonant = i > 0 && !is_tone(before, key_before);
                next[p][q] = FAR;
                back[i - from][p][q] = 0;
                for (int o = 0; o < RANGE; o++) {
                    int sum = best[o][p] + turn_cost(dissonant, p - o, q - p);
                    if (sum < next[p][q]) {
                        next[p][q] = sum;
                        back[i - from][p][q] = (uint8_t)o;
                    }
                }
                next[p][q] += cost + (i > 0 ? interval_cost(q - p, key - key_before, note->move) : 0);
            }
        }
        memcpy(best, next, sizeof best);
    }
    int p = 0, q = 0;
    for (int i = 0; i < RANGE * RANGE; i++) {
        if (best[i / RANGE][i % RANGE] < best[p][q]) p = i / RANGE, q = i % RANGE;
    }
    for (int i = to - 1; i >= from; i--) {
        notes[i].step = theme->floor + q;
        int o = back[i - from][p][q];
        q = p;
        p = o;
    }
}

// Puts a bar's notes down, still without pitch.
static void add_motif(Theme *theme, const Motif *motif, int start, bool inverted, const Meter *meter) {
    for (int i = 0; i < motif->n; i++) {
        int move = motif->move[i];
        if (inverted && move != FREE) move = -move;
        theme->melody[theme->n_melody++] = (MelodyNote){
            .start = start, .length = motif->length[i], .move = move, .weight = weight_at(start, meter), .echo = -1};
        start += motif->length[i];
    }
}

// Composes a theme of bars / 4 phrases. Plans name the phrases by letter: the same letter has the same opening and
// melody; h ends with a half cadence, f with a full one, e with an evaded one, p with a plagal one. In `shapes` a
// capital is a motif upside down, z the close of the phrase.
static Theme make_theme(const Style *style, int tonic, int mode, int bars, const Motif *motifs, bool pentatonic,
                        Dice *dice) {
    static const char *const plans_two[] = {"ahaf", "ahbf", "ahaf", "ahaf", "aeaf"};
    static const char *const plans_four[] = {"ahafbhaf", "ahbhahbf", "ahafbhbf", "ahahbeaf", "ahbeahbf", "aeafbhaf"};
    static const char *const shapes[] = {"xyxz", "xxyz", "xyyz", "xXyz", "xxxz", "xyXz"};
    static const char *const shapes_b[] = {"uvuz", "uuvz", "uxuz", "vuxz", "uUvz", "uuuz"};
    static const char motif_names[] = "xyuv";
    const Harmony *harmony = &harmonies[mode];
    const Meter *meter = &meters[style->meter];
    Theme theme = {.bars = bars, .phrases = bars / 4, .tonic = tonic, .mode = mode};
    const char *plan = theme.phrases == 1   ? (chance(dice, 50) ? "af" : "ap")
                       : theme.phrases == 2 ? plans_two[roll(dice, COUNT(plans_two))]
                                            : plans_four[roll(dice, COUNT(plans_four))];

    // Harmony: an old sequence over the whole of eight bars now and then, else openings and cadences.
    const char *opening[2] = {harmony->openings[roll(dice, 14)], harmony->openings[roll(dice, 14)]};
    const char *half = harmony->half[roll(dice, 7)], *full = harmony->full[roll(dice, 6)];
    if (theme.phrases == 2 && chance(dice, 35)) {
        int bar = add_harmony(&theme, harmony->sequences[roll(dice, 6)], 0, meter, style->sevenths, dice);
        add_harmony(&theme, full, bar, meter, style->sevenths, dice);
    } else {
        for (int phrase = 0; phrase < theme.phrases; phrase++) {
            char cadence = plan[2 * phrase + 1];
            const char *close = cadence == 'f' ? full : half;
            if (cadence == 'e' || cadence == 'p') close = harmony->rare[cadence == 'p'][roll(dice, 3)];
            add_harmony(&theme, opening[plan[2 * phrase] - 'a'], 4 * phrase, meter, style->sevenths, dice);
            add_harmony(&theme, close, 4 * phrase + 2, meter, style->sevenths, dice);
        }
    }
    Chord chords[MAX_CHORDS];
    for (int i = 0; i < theme.n_chords; i++) chords[i] = realise(theme.chords[i], tonic, mode);

    theme.floor = step_at(&chords[0], 65);
    const char *shape[2] = {shapes[roll(dice, COUNT(shapes))], shapes_b[roll(dice, COUNT(shapes_b))]};
    const char *close = closes[style->meter][roll(dice, 5)];
    bool upbeat = chance(dice, 50);
    int first[4], base = between(dice, 1, 3);
    for (int phrase = 0; phrase < theme.phrases; phrase++) {
        char letter = plan[2 * phrase], cadence = plan[2 * phrase + 1];
        bool last = phrase == theme.phrases - 1;
        first[phrase] = theme.n_melody;
        for (int bar = 0; bar < 4; bar++) {
            int start = (4 * phrase + bar) * meter->bar;
            char name = shape[letter - 'a'][bar];
            if (name != 'z') {
                add_motif(&theme, &motifs[strchr(motif_names, name | 32) - motif_names], start, name < 'a', meter);
                continue;
            }
            Motif end = {.move = {FREE, -1, -1}}; // a close has three notes at most
            int rest = meter->bar - add_lengths(&end, close);
            add_motif(&theme, &end, start, false, meter);
            theme.melody[theme.n_melody - 1].goal = true;
            if (upbeat && !last && rest >= 4) { // two quavers, or in 6/8 one, that lead into the next phrase
                Motif lead = {.n = meter->beat == 6 ? 1 : 2, .length = {2, 2}, .move = {FREE, 1}};
                add_motif(&theme, &lead, start + meter->bar - 2 * lead.n, false, meter);
            }
        }
        // A phrase with an earlier letter echoes that phrase as far as its harmony lets it, up to its close.
        int earlier = 0, close_start = (4 * phrase + 3) * meter->bar;
        while (plan[2 * earlier] != letter) earlier++;
        for (int i = first[phrase]; earlier < phrase && theme.melody[i].start < close_start; i++) {
            theme.melody[i].echo = first[earlier] + i - first[phrase];
        }
        // The highest climax belongs to the third phrase of four, else to the first of two.
        static const int gaps[2][2] = {{3, 6}, {1, 5}};
        int begin = theme.melody[first[phrase]].start;
        Phrase wish = {.begin = begin, .length = 4 * (phrase + 1) * meter->bar - begin, .base = base};
        wish.height = between(dice, 4, 6) + (phrase == (theme.phrases - 1) * 2 / 3 ? 2 : 0);
        wish.cadence = last ? 'F' : cadence;
        wish.avoided = pentatonic ? gaps[mode == DORIAN] : NULL;
        choose_steps(&theme, chords, first[phrase], theme.n_melody, &wish, dice);
    }
    return theme;
}

// ---- variation
//
// Each strong beat keeps its note, so that the theme is still heard; what lies between is filled.

enum { PLAIN, ORNAMENT, SYNCOPATE };

static int vary(const MelodyNote *theme, int n, MelodyNote *out, int kind, const Meter *meter, Dice *dice) {
    // Steps away from the note, upwards if the next note is higher, by the size of the interval to it.
    static const struct {
        int parts, steps[4];
    } figures[5][3] = {{{2, {0, 1}}, {2, {0, -1}}, {4, {0, 1, 0, -1}}},
                       {{2, {0, -1}}, {4, {0, 1, 0, -1}}, {2, {0, 2}}},
                       {{2, {0, 1}}, {2, {0, 1}}, {4, {0, -1, 0, 1}}},
                       {{2, {0, 1}}, {4, {0, 0, 1, 2}}, {2, {0, 2}}},
                       {{4, {0, 1, 2, 3}}, {2, {0, 2}}, {4, {0, -1, 0, 2}}}};
    int n_out = 0;
    for (int i = 0; i < n; i++) {
        MelodyNote note = theme[i], *last = &out[most(n_out - 1, 0)];
        bool tied = i > 0 && last->start + last->length == note.start;
        bool joins = i + 1 < n && note.start + note.length == theme[i + 1].start;
        if (kind == SYNCOPATE && tied && last->length >= 4 && !note.goal && note.weight % 3 && chance(dice, 60)) {
            last->length -= 2; // the note comes an eighth early
            note.start -= 2;
            note.length += 2;
        }
        if (kind != ORNAMENT || note.goal || note.length < 4 || !joins || !chance(dice, 75)) {
            out[n_out++] = note;
            continue;
        }
        int leap = theme[i + 1].step - note.step, size = least(abs(leap), 4), choice = roll(dice, 3);
        int parts = figures[size][choice].parts, held = note.length - 4;
        for (int part = 0; part < parts; part++) {
            MelodyNote piece = note;
            piece.start += part ? held + part * 4 / parts : 0;
            piece.length = 4 / parts + (part ? 0 : held);
            piece.step += figures[size][choice].steps[part] * (leap < 0 ? -1 : 1);
            piece.weight = weight_at(piece.start, meter);
            out[n_out++] = piece;
        }
    }
    return n_out;
}

// ---- the piece

typedef struct {
    int start, length, key, velocity, hand; // steps; hand 0 right, 1 left
} Note;

typedef struct {
    Dice dice;
    const Style *style;
    const Meter *meter;
    int tempo, tonic, mode; // quarters a minute; MIDI key of the tonic near middle C
    bool pentatonic;
    Note notes[MAX_NOTES];
    int n_notes;
    int end;                         // steps composed so far
    uint8_t lowest_right[MAX_STEPS]; // lowest key of the right hand at each step, 0 = silent
    uint8_t highest_right[MAX_STEPS];
    char title[80];
} Composition;

static void put(Composition *piece, int hand, int start, int length, int key, int velocity) {
    if (length <= 0 || start < 0 || start + length > MAX_STEPS || piece->n_notes == MAX_NOTES) return;
    while (key < 24) key += 12;
    while (key > 103) key -= 12;
    piece->notes[piece->n_notes++] =
        (Note){start, length, key, clamp(velocity + roll(&piece->dice, 5) - 2, 20, 112), hand};
    for (int t = start; t < start + length && hand == 0; t++) {
        if (!piece->lowest_right[t] || key < piece->lowest_right[t]) piece->lowest_right[t] = (uint8_t)key;
        if (key > piece->highest_right[t]) piece->highest_right[t] = (uint8_t)key;
    }
}

// ---- the left hand
//
// A pattern is one or two layers of signs, each sign worth `unit` steps; it begins anew with each chord. B bass, O bass
// in octaves, V bass an octave lower, F the fifth below the bass, C the chord, P its upper two voices, l m h its
// voices, 0..9 the chord's tones from the bass up, w a walking bass, - holds on, . rests.

typedef struct {
    int meter, unit;
    const char *signs, *moods;
} Accompaniment;

typedef struct { // a theme as it is played
    const Theme *theme;
    int tonic, mode;
    const Accompaniment *pattern;
    char texture; // of the right hand
    int variation, octave, loudness;
    bool above; // the accompaniment lies above the melody
} Section;

// clang-format off
static const Accompaniment accompaniments[] = {
    {IN_44, 2, "lhmhlhmh", "bg"}, {IN_44, 1, "lhmhlhmhlhmhlhmh", "b"}, {IN_44, 2, "B---B--- .mhm.mhm", "gb"},
    {IN_44, 2, "B------- .lmhmlml", "gf"}, {IN_44, 2, "B------- .2345432", "gf"},
    {IN_44, 1, "B-------B------- .2345432.2345432", "f"}, {IN_44, 1, "B--------------- .234565432345432", "f"},
    {IN_44, 1, "O--------------- .lmhlmhlmhlmhlmh", "f"}, {IN_44, 4, "B-B- CCCC", "gh"}, {IN_44, 4, "O--- .CCC", "h"},
    {IN_44, 8, "OO CC", "h"}, {IN_44, 4, "BwBw C-C-", "h"}, {IN_44, 2, "O------- .CCCCCCC", "gb"},
    {IN_44, 2, "O--OO--- .PPP.PPP", "b"}, {IN_44, 4, "OCFC", "dj"}, {IN_44, 2, "O.C.F.CC", "d"},
    {IN_44, 2, "O.CCO.CC", "d"}, {IN_44, 2, "w-w-w-w- .P.P.P.P", "w"}, {IN_44, 2, "w-w-w-w- C-.C--.P", "w"},
    {IN_44, 4, "wwww .C.C", "w"}, {IN_44, 2, "O--BO--B ..lm..lm", "g"}, {IN_44, 2, "VBVBVBVB", "bd"},
    {IN_34, 4, "BCC", "d"}, {IN_34, 4, "OCC", "d"}, {IN_34, 2, "O-C-CC", "d"}, {IN_34, 4, "OPC", "d"},
    {IN_34, 2, "lhmhmh", "bg"}, {IN_34, 2, "B----- .mhmhm", "gb"}, {IN_34, 2, "B----- .23432", "gf"},
    {IN_34, 2, "023454", "gf"}, {IN_34, 1, "B----------- .23454323432", "f"},
    {IN_34, 1, "B----------- .lmhmlmhmlmh", "fb"}, {IN_34, 2, "O----- .PPPPP", "gb"}, {IN_34, 4, "BC-", "h"},
    {IN_34, 4, "www P--", "b"}, {IN_34, 4, "O-w CCC", "h"}, {IN_34, 2, "w-w-w- .P.P.P", "b"},
    {IN_24, 2, "BCFC", "dj"}, {IN_24, 2, "OCFC", "dj"}, {IN_24, 2, "OCOC", "j"}, {IN_24, 1, "O.CCO.C.", "d"},
    {IN_24, 1, "lhmhlhmh", "b"}, {IN_24, 2, "lhmh", "bd"}, {IN_24, 1, "O--P--P-", "t"}, {IN_24, 1, "O--CF-C-", "t"},
    {IN_24, 1, "B--2h-m-", "t"}, {IN_24, 1, "B------- .2345432", "t"}, {IN_24, 1, "V-B-V-B-", "db"},
    {IN_24, 2, "ww.w .C.C", "j"},
    {IN_68, 2, "B----- .23432", "gf"}, {IN_68, 2, "B--B-- .mh.mh", "gb"}, {IN_68, 2, "O--O-- .CC.CC", "gd"},
    {IN_68, 2, "lmhmhm", "gb"}, {IN_68, 2, "024542", "gf"}, {IN_68, 1, "B----------- .23454323432", "f"},
    {IN_68, 1, "B-----B----- .lmhml.lmhml", "f"}, {IN_68, 2, "O-CO-C", "d"}, {IN_68, 2, "O.CF.C", "d"},
    {IN_68, 1, "B---C-B---C-", "g"}, {IN_68, 2, "w-wwCw", "b"},
};
// clang-format on

static int pattern_notes(const Accompaniment *pattern) { // notes a bar
    int notes = 0;
    for (const char *c = pattern->signs; *c; c++) {
        notes += *c == 'C' ? 3 : *c == 'P' || *c == 'O' ? 2 : *c != '-' && *c != '.' && *c != ' ';
    }
    return notes;
}

// The bass line: roots mostly, thirds where that is smoother; no octaves or fifths in parallel with the melody.
static void lead_bass(Chord *chords, int n, const int *melody, bool inversions) {
    int before = 41;
    for (int i = 0; i < n; i++) {
        int best = 1 << 20;
        for (int key = 33; key <= 50; key++) {
            int role = 0;
            while (role < chords[i].n_tones && chords[i].tones[role] != key % 12) role++;
            if (role >= 3 || (role == 2) != chords[i].six_four) continue;
            if (role == 1 && (!inversions || i == 0 || i + 1 >= n)) continue;
            int move = key - before, cost = 2 * abs(move) + (role == 1 ? 9 : 0) + abs(key - 41);
            if (abs(move) > 7) cost += 12;
            if (move == 0) cost += 2;
            if (role == 1 && melody[i] && (melody[i] - key) % 12 == 0) cost += 20; // a doubled third is thin
            if (i > 0 && melody[i] && melody[i - 1] && move && melody[i] != melody[i - 1]) {
                int interval = modulo(melody[i] - key, 12), earlier = modulo(melody[i - 1] - before, 12);
                if (interval == earlier && (interval == 0 || interval == 7)) cost += 25;
            }
            if (cost < best) {
                best = cost;
                chords[i].bass = key;
            }
        }
        before = chords[i].bass;
    }
}

// Three voices in close position under the ceiling, each as near as can be to where it was.
static void lead_voices(Chord *chord, const int *before, int floor, int ceiling) {
    int best = 1 << 20;
    for (int key = floor; key <= ceiling; key++) {
        // With a seventh the chord keeps root, third and seventh: the fifth is missed least.
        int voices[3], n = 0;
        for (int k = key; n < 3 && k <= ceiling; k++) {
            if (is_tone(chord, k) && !(chord->n_tones == 4 && k % 12 == chord->tones[2])) voices[n++] = k;
        }
        if (n < 3 || voices[0] != key) continue;
        int cost = most(0, 50 - key) * 2 + abs(voices[1] - (floor + ceiling) / 2) / 2;
        for (int i = 0; i < 3; i++) cost += before[0] ? abs(voices[i] - before[i]) : 0;
        if (voices[1] - voices[0] == 1 || voices[2] - voices[1] == 1) cost += 30;
        if (cost < best) {
            best = cost;
            memcpy(chord->voices, voices, sizeof voices);
        }
    }
}

static int ladder(const Chord *chord, int rung) {
    int key = chord->bass;
    for (int i = 0; i < rung; i++) {
        do key++;
        while (!is_tone(chord, key));
    }
    return key;
}

// A note of the accompaniment gives way to the right hand: it goes an octave down rather than cross it, strike its key
// or grind a semitone against it.
static void accompany(Composition *piece, bool above, int start, int length, int key, int velocity) {
    if (start >= MAX_STEPS) return;
    int low = piece->lowest_right[start], high = piece->highest_right[start];
    if (low && !above) {
        if (key >= low - 1) key -= 12;
        if (key >= low - 1 || key < 30) return;
        if (start % piece->meter->beat == 0 && ((low - key) % 12 == 1 || (high - key) % 12 == 1)) return;
    }
    if (low && above && key <= high + 1 && key >= low - 1) return;
    put(piece, 1, start, length, key, velocity);
}

static void play_pattern(Composition *piece, const Section *section, const Accompaniment *pattern, const Chord *chord,
                         int next_bass) {
    bool above = section->above;
    int n_signs = (int)strcspn(pattern->signs, " ");
    for (int layer = 0; layer < (pattern->signs[n_signs] ? 2 : 1); layer++) {
        const char *signs = pattern->signs + layer * (n_signs + 1);
        int walked = chord->bass;
        for (int at = 0; at * pattern->unit < chord->length; at++) {
            char sign = signs[at % n_signs];
            if (sign == '-' || sign == '.' || sign == ' ') continue;
            int held = 1;
            while (at % n_signs + held < n_signs && signs[at % n_signs + held] == '-') held++;
            int start = at * pattern->unit, length = least(held * pattern->unit, chord->length - start);
            int time = piece->end + chord->start + start, accent = start == 0 ? 5 : 0;
            int soft = section->loudness - 16 + accent, bass = section->loudness - 9 + accent;
            int fifth = chord->bass - modulo(chord->bass - chord->tones[2], 12);
            const int *v = chord->voices;
            switch (sign) {
            case 'B': accompany(piece, above, time, length, chord->bass, bass); break;
            case 'O': accompany(piece, above, time, length, chord->bass, bass - 4); // fall through
            case 'V': accompany(piece, above, time, length, chord->bass - 12, bass); break;
            case 'F': accompany(piece, above, time, length, fifth < 28 ? fifth + 12 : fifth, bass); break;
            case 'C': accompany(piece, above, time, length, v[0], soft); // fall through
            case 'P': accompany(piece, above, time, length, v[1], soft); // fall through
            case 'h': accompany(piece, above, time, length, v[2], soft); break;
            case 'm': accompany(piece, above, time, length, v[1], soft); break;
            case 'l': accompany(piece, above, time, length, v[0], soft); break;
            case 'w': // from root over third and fifth, or by scale, to a neighbour of the next bass
                if (start > 0) {
                    int left = (chord->length - start - 1) / (held * pattern->unit), aim = next_bass - walked;
                    int key = left == 0 ? next_bass + (aim > 0 ? -1 : 2) : walked + aim / (left + 1) + (aim > 0);
                    if (left > 0 && abs(aim) <= 2) key = ladder(chord, at % 3);
                    key = key_of(chord, step_at(chord, key));
                    walked = clamp(key == walked ? tone_below(chord, key, 1, 1) : key, 31, 55);
                }
                accompany(piece, above, time, length, walked, bass);
                break;
            default: {
                int rung = sign - '0', key = above ? v[rung % 3] + 12 * (rung / 3 % 2) : ladder(chord, rung);
                accompany(piece, above, time, length, key, soft);
            }
            }
        }
    }
}

// ---- the right hand

static void play_melody(Composition *piece, const Section *section, const MelodyNote *notes, int n, const Chord *chords,
                        int n_chords) {
    static const int offers[4] = {2, 5, 3, 4};
    for (int i = 0; i < n; i++) {
        const MelodyNote *note = &notes[i];
        const Chord *chord = chord_at(chords, n_chords, note->start);
        int octave = section->octave, key = key_of(chord, note->step) + octave;
        int time = piece->end + note->start, length = note->length;
        int phrase = 4 * piece->meter->bar; // each swells to its climax
        int velocity = section->loudness + arch(note->start % phrase, phrase, 9) + note->weight * 3 / 2;
        put(piece, 0, time, length, key, velocity);
        bool heard = note->weight > 0 || length >= 4; // strong or long: a note that stands out
        int unit = piece->tempo > 112 ? 2 : 1, filler = tone_below(chord, key, 1, 3), below = 2;
        switch (section->texture) {
        case 'o': put(piece, 0, time, length, key + 12, velocity - 4); break;
        case 'G':
            put(piece, 0, time, length, key + 12, velocity);
            if (heard) put(piece, 0, time, length, tone_below(chord, key + 12, 1, 3), velocity - 8);
            break;
        case 'T': // a third below, or a sixth, or a fourth: whichever the chord has
            for (int j = 3; j >= 0; j--) {
                if (is_tone(chord, key_of(chord, note->step - offers[j]))) below = offers[j];
            }
            put(piece, 0, time, length, key_of(chord, note->step - (length > 1 ? below : 2)) + octave, velocity - 7);
            break;
        case 'c':
            if (heard) put(piece, 0, time, length, filler, velocity - 10);
            if (length >= 4) put(piece, 0, time, length, tone_below(chord, key, 2, 3), velocity - 10);
            break;
        case 'a':
            for (int late = 2; late < length && length >= 4; late += 4) {
                put(piece, 0, time + late, least(2, length - late), filler, velocity - 15);
                put(piece, 0, time + late, least(2, length - late), tone_below(chord, key, 2, 3), velocity - 15);
            }
            break;
        case 'r':
            for (int late = unit, rung = 0; late < length; late += unit, rung = (rung + 1) % 4) {
                chord = chord_at(chords, n_chords, note->start + late);
                put(piece, 0, time + late, unit, tone_below(chord, key, rung == 3 ? 2 : rung + 1, 3), velocity - 16);
            }
            break;
        }
    }
}

// ---- form

enum { THEME_A, THEME_B, THEME_C, THEME_INTRO, THEME_CODA, THEMES };

// Plays a section. Where the next one is in another key, the last half bar is already its dominant; `run` fills that
// half bar with a scale up or down to the next melody.
static void play_section(Composition *piece, const Section *section, const Section *next, bool run) {
    const Theme *theme = section->theme;
    const Meter *meter = piece->meter;
    Chord chords[MAX_CHORDS + 1];
    MelodyNote melody[MAX_MELODY];
    int n_chords = theme->n_chords, offset = piece->end, length = theme->bars * meter->bar;
    for (int i = 0; i < n_chords; i++) chords[i] = realise(theme->chords[i], section->tonic, section->mode);
    int n = vary(theme->melody, theme->n_melody, melody, section->variation, meter, &piece->dice);

    bool modulates = next && (modulo(next->tonic - section->tonic, 12) || next->mode != section->mode);
    Chord *last = &chords[n_chords - 1];
    int cut = length - meter->bar + meter->half; // where the last half bar begins
    if (modulates) {
        Symbol dominant = {.start = cut, .length = length - cut, .degree = 4, .dominant = true, .seventh = true};
        last->length = cut - last->start;
        chords[n_chords++] = realise(dominant, next->tonic, next->mode);
    }
    if ((modulates || run) && n > 0) {
        while (n > 0 && melody[n - 1].start >= cut) n--;
        if (n > 0) melody[n - 1].length = least(melody[n - 1].length, cut - melody[n - 1].start);
    }
    play_melody(piece, section, melody, n, chords, n_chords);
    if (run && next && next->theme->n_melody && theme->n_melody) {
        Chord home = realise(next->theme->chords[0], next->tonic, next->mode);
        const Chord *scale = modulates ? &chords[n_chords - 1] : &home;
        int target = key_of(&home, next->theme->melody[0].step) + next->octave;
        int unit = piece->tempo > 100 || length - cut > 6 ? 2 : 1, from = chance(&piece->dice, 65) ? -1 : 1;
        int step = step_at(scale, from < 0 ? target - 1 : target + 2);
        for (int time = length - unit; time >= cut; time -= unit, step += from) {
            put(piece, 0, offset + time, unit, key_of(scale, step), section->loudness - 4);
        }
    }

    int at_chord[MAX_CHORDS + 1] = {0}, before[3] = {0};
    for (int i = 0; i < n_chords; i++) at_chord[i] = piece->highest_right[offset + chords[i].start];
    lead_bass(chords, n_chords, at_chord, section->pattern->moods[0] != 'd');
    for (int i = 0; i < n_chords; i++) {
        int low = 127, high = 0, start = offset + chords[i].start;
        for (int t = start; t < start + chords[i].length; t++) {
            if (piece->lowest_right[t]) low = least(low, piece->lowest_right[t]);
            high = most(high, piece->highest_right[t]);
        }
        int floor = section->above ? clamp(high + 2, 62, 72) : clamp(low - 2, 57, 68) - 19;
        lead_voices(&chords[i], before, floor, floor + 18);
        memcpy(before, chords[i].voices, sizeof before);
    }
    // Where another theme follows, the accompaniment may take a breath too.
    Accompaniment breath = {piece->style->meter, meter->bar, "O C", ""};
    bool breathes = next && next->theme != theme && theme->n_melody && !run && chance(&piece->dice, 60);
    for (int i = 0; i < n_chords; i++) {
        bool closing = breathes && chords[i].start >= length - meter->bar;
        int next_bass = chords[i + 1 < n_chords ? i + 1 : 0].bass;
        play_pattern(piece, section, closing ? &breath : section->pattern, &chords[i], next_bass);
    }
    piece->end += length;
}

static int climb(const Theme *theme) { // scale steps from the floor to the highest note
    int top = 0;
    for (int i = 0; i < theme->n_melody; i++) top = most(top, theme->melody[i].step - theme->floor);
    return top;
}

// Of eight throws of the dice the texture whose notes per second come nearest to what is wanted, but not the last one.
static void dress(Composition *piece, Section *section, const Section *before, int wanted_tenths) {
    int best = 1 << 20, bar_ms = piece->meter->bar * 15000 / piece->tempo;
    for (int tries = 0; tries < 8;) {
        const Accompaniment *pattern = &accompaniments[roll(&piece->dice, COUNT(accompaniments))];
        if (pattern->meter != piece->style->meter || !strpbrk(pattern->moods, piece->style->moods)) continue;
        tries++;
        char texture = piece->style->right_hand[roll(&piece->dice, (int)strlen(piece->style->right_hand))];
        int line = section->theme->n_melody * 10 / section->theme->bars, notes = pattern_notes(pattern) * 10 + line;
        if (strchr("oTca", texture)) notes += line;
        if (texture == 'G') notes += line * 16 / 10;
        if (texture == 'r') notes += 10 * piece->meter->bar / (piece->tempo > 112 ? 2 : 1) - line;
        int cost = abs(notes * 1000 / bar_ms - wanted_tenths);
        if (texture == 'r' && pattern->unit == 1) cost += 30; // running notes in both hands blur
        if (before && before->pattern == pattern) cost += 15;
        if (before && before->texture == texture) cost += 10;
        if (cost < best) {
            best = cost;
            section->pattern = pattern;
            section->texture = texture;
        }
    }
    section->above = section->texture == 'l';
    // Octaves are added above; where the melody climbs high itself, it moves down and they take its place.
    bool doubled = strchr("oG", section->texture), high = climb(section->theme) > 8;
    section->octave = section->above || (doubled && high) ? -12 : 0;
}

// The end, after the melody has closed on the tonic: a last chord, with a broken chord or two short ones before it.
static void play_ending(Composition *piece) {
    Chord home = realise((Symbol){.length = 2 * piece->meter->bar}, piece->tonic, piece->mode);
    int nothing[3] = {0}, silent = 0, bar = piece->meter->bar, start = piece->end;
    lead_bass(&home, 1, &silent, false);
    lead_voices(&home, nothing, 47, 66);
    int top = home.voices[2] + 12, kind = roll(&piece->dice, 3);
    if (kind == 1) { // a broken chord through the octaves
        for (int i = 0; 2 * i < bar; i++) put(piece, i > 3 ? 0 : 1, start + 2 * i, 2, ladder(&home, i), 62 + i);
        start += bar;
    } else if (kind == 2) { // two raps
        for (int i = 0; i < 2; i++) {
            for (int v = 0; v < 3; v++) put(piece, 1, start + i * piece->meter->half, 2, home.voices[v], 76 + 4 * i);
            put(piece, 0, start + i * piece->meter->half, 2, top, 82 + 4 * i);
        }
        start += bar;
    }
    put(piece, 1, start, bar, home.bass - 12, 70);
    put(piece, 1, start, bar, home.bass, 66);
    for (int v = 0; v < 3; v++) put(piece, v ? 0 : 1, start, bar, home.voices[v], 66);
    put(piece, 0, start, bar, top, 74);
    piece->end = start + bar;
}

// One string of a piano cannot sound twice: where two notes of one key overlap, the earlier is cut short.
static int by_key_and_time(const void *a, const void *b) {
    const Note *x = a, *y = b;
    if (x->key != y->key) return x->key - y->key;
    if (x->start != y->start) return x->start - y->start;
    if (x->length != y->length) return y->length - x->length;
    if (x->hand != y->hand) return x->hand - y->hand;
    return y->velocity - x->velocity; // no two notes compare equal, so that every qsort gives the same order
}
static void separate(Composition *piece) {
    Note *notes = piece->notes;
    int kept = 0;
    qsort(notes, (size_t)piece->n_notes, sizeof *notes, by_key_and_time);
    for (int i = 0; i < piece->n_notes; i++) {
        if (kept && notes[kept - 1].key == notes[i].key) {
            if (notes[kept - 1].start == notes[i].start) continue;
            notes[kept - 1].length = least(notes[kept - 1].length, notes[i].start - notes[kept - 1].start);
        }
        notes[kept++] = notes[i];
    }
    piece->n_notes = kept;
}

// Sharps (negative: flats) of a key's signature: that of the major scale with the same notes.
static int sharps_of(int tonic, int mode) {
    static const int up_to_major[MODES] = {0, 3, 10, 5, 7};
    return (7 * modulo(tonic + up_to_major[mode], 12) + 5) % 12 - 5;
}

// The keys of theme B (which = 0) and C (1): near ones.
static void related_key(const Composition *piece, int which, int *tonic, int *mode, Dice *dice) {
    static const struct {
        int shift, mode;
    } neighbours[3][4] = {{{7, MAJOR}, {5, MAJOR}, {9, MINOR}, {0, MINOR}},
                          {{3, MAJOR}, {8, MAJOR}, {7, MINOR}, {0, MAJOR}},
                          {{5, -1}, {7, -1}, {10, -1}, {5, -1}}}; // -1: the same mode
    int row = least(piece->mode, DORIAN), i = (roll(dice, 3) + which) % 4, shift = neighbours[row][i].shift;
    *mode = neighbours[row][i].mode < 0 ? piece->mode : neighbours[row][i].mode;
    *tonic = piece->tonic + (shift > 6 ? shift - 12 : shift);
}

// Lays out the form, a letter for a theme: most returns of a theme are dressed anew, and the piece grows denser to its
// end, around `density` notes in ten seconds. Returns the number of sections, introduction and coda included.
static int make_sections(Composition *piece, const Theme *themes, const char *form, int density, Section *sections) {
    Dice *dice = &piece->dice;
    int n = 0, units = (int)strlen(form);
    bool has_intro = chance(dice, 45), variations = !strchr(form, 'B');
    for (const char *letter = form; *letter; letter++) {
        int t = *letter - 'A', place = (int)(letter - form);
        Section section = {.theme = &themes[t], .tonic = themes[t].tonic, .mode = themes[t].mode};
        const Section *before = n ? &sections[n - 1] : NULL, *same = NULL;
        for (int i = 0; i < n; i++) {
            if (sections[i].theme == section.theme) same = &sections[i];
        }
        dress(piece, &section, before, density * (85 + 30 * place / units) / 100);
        if (same && !variations && chance(dice, 25)) { // the theme returns unchanged
            section = *same;
        } else if (same) {
            section.variation = roll(dice, 3);
            if (climb(section.theme) < 10 && !strchr("oGl", section.texture) && chance(dice, 35)) section.octave = 12;
        }
        if (variations && place == 2 && piece->mode <= MINOR) {
            section.mode = MAJOR + MINOR - piece->mode; // the minore of a set of variations, or its maggiore
        }
        section.loudness = clamp(between(dice, 68, 84) + (t ? between(dice, -8, 8) : 0) + 8 * place / units, 60, 94);
        if (!n && has_intro) {
            sections[n] = section;
            sections[n].theme = &themes[THEME_INTRO];
            sections[n].above = false;
            sections[n++].loudness -= 4;
        }
        sections[n++] = section;
    }
    sections[n] = sections[has_intro]; // the coda begins as the piece did
    sections[n].theme = &themes[THEME_CODA];
    sections[n++].loudness -= 6;
    return n;
}

static void compose(Composition *piece, uint64_t seed, int number) {
    static const char *const forms[][5] = {{"ABA", "AAB", "ABA", "ABB", "ABA"},
                                           {"AABA", "AABA", "ABAB", "AAAA", "ABCA"},
                                           {"ABACA", "AABBA", "AABAA", "AAAAA", "ABBAA"},
                                           {"AABABA", "AABBAA", "ABACBA", "AAAAAA", "ABCABA"},
                                           {"ABACABA", "AABACAA", "AABBACA", "ABACAAA", "AABBCAA"},
                                           {"AABBCCAA", "AABACABA", "ABACABAA", "AABBAACA", "ABABCAAA"}};
    static const int common_tonics[12] = {0, 2, 4, 5, 7, 9, 10, 0, 2, 5, 7, 9}; // C and on; the most common twice
    static Theme themes[THEMES];
    memset(piece, 0, sizeof *piece);
    Dice *dice = &piece->dice;
    dice->key = philox_key(seed, PHILOX_COMPOSE, (uint32_t)number);
    const Style *style = piece->style = &styles[roll(dice, COUNT(styles))];
    const Meter *meter = piece->meter = &meters[style->meter];
    piece->tempo = between(dice, style->slow, style->fast);
    int tonic = chance(dice, 60) ? common_tonics[roll(dice, 12)] : roll(dice, 12);
    piece->tonic = 60 + (tonic > 5 ? tonic - 12 : tonic);
    char mode = style->modes[roll(dice, (int)strlen(style->modes))];
    piece->mode = (int)(strchr(mode_letters, mode) - mode_letters);
    piece->pentatonic = piece->mode != MINOR && chance(dice, 20);

    // How long: bars of a theme so that it takes some 12 to 28 seconds, and as many themes as fit.
    int bar_ms = meter->bar * 15000 / piece->tempo, bars = bar_ms < 1500 ? 16 : 8;
    int wanted_ms = between(dice, 97000, 121000) - 6 * bar_ms;
    int units = clamp(wanted_ms / (bars * bar_ms), 3, 8);
    const char *form = forms[units - 3][roll(dice, 5)];

    // Themes: B and C often share a motif with A, which ties the piece together.
    Motif motifs[3][4];
    for (int i = 0; i < 12; i++) motifs[i / 4][i % 4] = make_motif(style, dice);
    if (chance(dice, 50)) motifs[THEME_B][1] = motifs[THEME_A][0];
    if (chance(dice, 50)) motifs[THEME_C][2] = motifs[THEME_A][1];
    for (int t = 0; t < 3; t++) {
        int theme_tonic = piece->tonic, theme_mode = piece->mode;
        if (t) related_key(piece, t - 1, &theme_tonic, &theme_mode, dice);
        themes[t] = make_theme(style, theme_tonic, theme_mode, bars, motifs[t], piece->pentatonic, dice);
    }
    themes[THEME_CODA] = make_theme(style, piece->tonic, piece->mode, 4, motifs[THEME_A], piece->pentatonic, dice);
    Theme *intro = &themes[THEME_INTRO];
    *intro = (Theme){.bars = 2, .mode = piece->mode};
    add_harmony(intro, piece->mode <= MINOR ? (chance(dice, 50) ? "1 5" : "1 4.5") : "1 1", 0, meter, 0, dice);

    Section sections[16];
    int n = make_sections(piece, themes, form, between(dice, 98, 142), sections);
    for (int i = 0; i < n; i++) {
        const Section *next = i + 1 < n ? &sections[i + 1] : NULL;
        play_section(piece, &sections[i], next, next && chance(dice, 45));
    }
    play_ending(piece);
    separate(piece);
    while (piece->end * 15 / piece->tempo > 117) piece->tempo++; // no piece lasts two minutes

    static const char *const names[2][12] = {
        {"C", "C_sharp", "D", "D_sharp", "E", "F", "F_sharp", "G", "G_sharp", "A", "A_sharp", "B"},
        {"C", "D_flat", "D", "E_flat", "E", "F", "G_flat", "G", "A_flat", "A", "B_flat", "B"}};
    const char *tonic_name = names[sharps_of(tonic, piece->mode) < 0][tonic];
    snprintf(piece->title, sizeof piece->title, "%s_in_%s_%s", style->name, tonic_name, mode_names[piece->mode]);
}

// ---- files

// The piece as a Standard MIDI File: a track with names, meter and tempo, and one a hand. The last bars slow down.
static bool to_midi(const Composition *piece, int number, uint64_t seed, uint8_t **bytes, size_t *size, char *error) {
    midi_song song = {.format = 1, .division = 4 * MIDI_STEP};
    midi_error problem = {.text = "no memory"};
    char text[128];
    snprintf(text, sizeof text, "%s", piece->title);
    for (char *c; (c = strchr(text, '_'));) *c = ' ';
    text[0] = (char)toupper((unsigned char)text[0]);
    int us = 60000000 / piece->tempo;
    // midi.h writes no key signatures: a text of two bytes holds the place of one, as the first event of the file.
    bool ok = midi_add_text(&song, 0, 1, "??", 0) && midi_add_text(&song, 0, 3, text, 0);
    snprintf(text, sizeof text, "composed by rule: compose_music %s, seed %llu, piece %d", MUSIC_VERSION,
             (unsigned long long)seed, number);
    ok = ok && midi_add_text(&song, 0, 1, text, 0) && midi_add_text(&song, 0, 3, "right hand", 1) &&
         midi_add_text(&song, 0, 3, "left hand", 2) && midi_add_tempo(&song, 0, us, 0) &&
         midi_add_meter(&song, 0, piece->meter->numerator, piece->meter->exponent, 0);
    for (int bar = 0; bar < 3 && ok; bar++) {
        static const int percent[3] = {106, 116, 130};
        int step = piece->end - (3 - bar) * piece->meter->bar;
        ok = midi_add_tempo(&song, MIDI_STEP * step, us / 100 * percent[bar], 0);
    }
    for (int i = 0; i < piece->n_notes && ok; i++) {
        const Note *note = &piece->notes[i];
        int start = MIDI_STEP * note->start, end = start + MIDI_STEP * note->length;
        ok = midi_add_note(&song, start, end, note->key, note->velocity, note->hand, 1 + note->hand);
    }
    ok = ok && midi_write(&song, bytes, size, &problem);
    midi_free(&song);
    if (!ok) return fail(error, "piece %d: %s", number, problem.text);
    bool minor = piece->mode == MINOR || piece->mode == DORIAN;
    const uint8_t signature[6] = {0, 0xFF, 0x59, 2, (uint8_t)sharps_of(piece->tonic, piece->mode), minor};
    memcpy(*bytes + 14 + 8, signature, 6); // behind the heads of the file and of its first track
    return true;
}

static bool compose_corpus(const char *out, uint64_t seed, int pieces, char *error) {
    static Composition piece;
    const Path folders[2] = {path_join(out, "train"), path_join(out, "test")};
    int written[2] = {0, 0};
    double notes = 0, seconds = 0;
    bool ok = true;
    for (int part = 0; part < 2 && ok; part++) ok = make_folders(folders[part].text, error);
    for (int number = 1; number <= pieces && ok; number++) {
        int part = number % 10 == 2;
        uint8_t *bytes = NULL;
        size_t size = 0;
        compose(&piece, seed, number);
        const Path path = path_print("%s/%03d_%s.mid", folders[part].text, number, piece.title);
        ok =
            to_midi(&piece, number, seed, &bytes, &size, error) && write_file_atomically(path.text, bytes, size, error);
        MIDI_FREE(bytes);
        written[part]++;
        notes += piece.n_notes;
        seconds += piece.end * 15.0 / piece.tempo;
    }
    if (!ok) return false;
    print_line(stdout, "composed %d pieces into %s and %d into %s: %.0f notes, %.1f hours", written[0], folders[0].text,
               written[1], folders[1].text, notes, seconds / 3600);
    return true;
}

int main(int argc, char **argv) {
    Flags flags = {0};
    const char *out;
    uint64_t seed;
    int64_t pieces;
    char error[ERROR_SIZE] = "";
    int status = 0;
    program_start();
    flag_text(&flags, "out", "DIR", &out, "data/starter",
              "every tenth piece goes to DIR/test, the others to DIR/train");
    flag_seed(&flags, &seed, "another number, another corpus, which wants another DIR");
    flag_whole(&flags, "pieces", &pieces, 238, 1, 100000,
               "how many; piece k of a seed is the same however many there are");
    if (!flags_parse(&flags, argc, argv, error)) {
        status = 2;
    } else if (!flags_answer(&flags, "compose_music",
                             "compose_music - compose piano pieces by rule, as MIDI files: the starter corpus\n\n",
                             "\nExit status: 0 done, 1 it failed, 2 wrong usage.\n")) {
        status = !compose_corpus(out, seed, (int)pieces, error);
    }
    return program_end("compose_music", status, error);
}
