// sample_music.c: new piano music from trained models: .mid to play, .wav to hear, .html to do both, .svg to look at.
//
//     ./sample_music -o song.mid -o song.svg --seed 7
//     ./sample_music out/lstm/model.safetensors --prime mine.mid --top-p 0.95 -n 4 --weights int8 -o song.mid
//
// Promises. The same model, flags and seed give the same bytes, whatever the number of threads; song i of `-n N` is the
// song that `--seed s+i-1` gives, unless it is interrupted, which its file says. Every token obeys the grammar of
// midi.h, so that none is wasted. An output file appears whole or not at all.
//
// The models themselves are in dev/sample/decoder.h, which says how they are fast; here is what becomes of their logits:
// tokens by chance, within the grammar and the filters asked for; songs; files; many songs at once; measuring.

#define _DEFAULT_SOURCE // madvise, clock_gettime
#include "base/flags.h"  // before the system's headers
#include "base/program.h"

#include "base/data.h"
#include "sample/decoder.h"
#include "sample/player.h"
#include "sample/roll.h"
#include "sample/synth.h"
#define MIDI_IMPLEMENTATION
#include "midi.h"
#include <strings.h> // strcasecmp
#if defined(_OPENMP)
#include <omp.h>
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#endif

enum { MAX_MODELS = 16, INTERRUPTED = 130 }; // the exit status that shells give to what Ctrl-C ended

// ---- keys by name

static const char *const letters[] = {"C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"};

static const char *key_name(int key, char text[16]) { // 60 is C4
    snprintf(text, 16, "%s%d", letters[key % 12], key / 12 - 1);
    return text;
}

// "C", "f#", "Bb": its pitch class, and where the text goes on; -1: it is none.
static int read_letter(const char **text) {
    static const int classes[] = {9, 11, 0, 2, 4, 5, 7}; // a to g
    const int letter = (unsigned char)**text | 32;
    if (letter < 'a' || letter > 'g') return -1;
    int class = classes[letter - 'a'] + 12;
    ++*text;
    for (; **text == '#' || **text == 'b'; ++*text) class += **text == '#' ? 1 : -1;
    return class % 12;
}

// "C4", "f#3", "60": a key of the piano; -1: it is none.
static int read_key(const char *text) {
    char *end;
    long key = strtol(text, &end, 10), octave;
    if (end == text) {
        const char *at = text;
        int class = read_letter(&at);
        if (class < 0 || !isdigit((unsigned char)*at)) return -1;
        octave = strtol(at, &end, 10);
        // Cb4 lies below C4, B#4 above B4: the letter alone tells the octave.
        const char *natural = text;
        char plain[2] = {*text, 0};
        natural = plain;
        int shift = 0;
        for (const char *c = text + 1; *c == '#' || *c == 'b'; c++) shift += *c == '#' ? 1 : -1;
        key = octave > 9 ? -1 : 12 * (octave + 1) + read_letter(&natural) + shift;
    }
    return *end || key < MIDI_LOWEST_KEY || key > MIDI_HIGHEST_KEY ? -1 : (int)key;
}

typedef struct {
    const char *name;
    int steps[12], n; // of its keys above the tonic, in semitones
} Scale;

static const Scale scales[] = {
    {"major", {0, 2, 4, 5, 7, 9, 11}, 7},          {"minor", {0, 2, 3, 5, 7, 8, 10}, 7},
    {"harmonic-minor", {0, 2, 3, 5, 7, 8, 11}, 7}, {"melodic-minor", {0, 2, 3, 5, 7, 9, 11}, 7},
    {"dorian", {0, 2, 3, 5, 7, 9, 10}, 7},         {"phrygian", {0, 1, 3, 5, 7, 8, 10}, 7},
    {"lydian", {0, 2, 4, 6, 7, 9, 11}, 7},         {"mixolydian", {0, 2, 4, 5, 7, 9, 10}, 7},
    {"locrian", {0, 1, 3, 5, 6, 8, 10}, 7},        {"pentatonic", {0, 2, 4, 7, 9}, 5},
    {"minor-pentatonic", {0, 3, 5, 7, 10}, 5},     {"blues", {0, 3, 5, 6, 7, 10}, 6},
    {"whole-tone", {0, 2, 4, 6, 8, 10}, 6},
};
enum { N_SCALES = sizeof scales / sizeof *scales };

// "C-major", "f#-minor": bit p is set if pitch class p belongs to it; 0: it is none.
static int read_scale(const char *text) {
    int tonic = read_letter(&text), classes = 0;
    for (int i = 0; tonic >= 0 && *text == '-' && i < N_SCALES; i++) {
        if (strcmp(text + 1, scales[i].name)) continue;
        for (int k = 0; k < scales[i].n; k++) classes |= 1 << (tonic + scales[i].steps[k]) % 12;
    }
    return classes;
}

// ---- choosing a token

typedef struct {
    double temperature; // 0: always the likeliest
    int64_t top_k;      // 0: off
    double top_p;       // 1: off
    double min_p;       // 0: off
    bool barred[V];     // pitches that are never chosen; not all of them
} Filter;

typedef struct {
    int token;
    double p;
} Candidate;

// Likeliest first, of equal ones the lower token. (By insertion: of so few it takes a third to a half of
// qsort's time.)
static void sort_by_chance(Candidate *list, int n) { // which comes in the order of tokens
    for (int i = 1; i < n; i++) {
        const Candidate next = list[i];
        int at = i;
        for (; at && list[at - 1].p < next.p; at--) list[at] = list[at - 1];
        list[at] = next;
    }
}

// The tokens that may be drawn after `previous`, likeliest first, with chances that add up to 1: those that the grammar
// allows and the filter does not bar, at the temperature; of these the top_k likeliest; of these the fewest that
// together have top_p of the chance (Holtzman et al., 2020); of these the ones at least min_p times as likely as the
// likeliest (Nguyen et al., 2024). Returns how many, at least 1: after an offset a bar line may always follow, and
// nothing else is ever barred.
static int candidates(const float *logits, int previous, const Filter *filter, Candidate list[MIDI_TOKENS]) {
    int n = 0;
    double most = -INFINITY, sum = 0, together = 0;
    for (int token = 0; token < MIDI_TOKENS; token++) {
        if (filter->barred[token] || !midi_may_follow(previous, token)) continue;
        list[n].token = token;
        list[n++].p = logits[token];
        if (logits[token] > most) most = logits[token];
    }
    for (int i = 0; i < n; i++) {
        bool top = list[i].p == most;
        list[i].p = filter->temperature > 0 ? exp((list[i].p - most) / filter->temperature) : top;
    }
    sort_by_chance(list, n);
    if (filter->temperature == 0) n = 1;
    if (filter->top_k && n > filter->top_k) n = (int)filter->top_k;
    for (int i = 0; i < n; i++) sum += list[i].p;
    for (int i = 0; i < n; i++) {
        if (i && (together >= filter->top_p * sum || list[i].p < filter->min_p * list[0].p)) n = i;
        if (i < n) together += list[i].p;
    }
    for (int i = 0; i < n; i++) list[i].p /= together;
    return n;
}

// Draws by u in [0, 1): the first candidate at which the chances, added up from the likeliest down, pass u.
static int draw(const float *logits, int previous, const Filter *filter, double u) {
    Candidate list[MIDI_TOKENS];
    int n = candidates(logits, previous, filter, list), i = 0;
    double sum = list[0].p;
    while (i < n - 1 && sum <= u) sum += list[++i].p;
    return list[i].token;
}

static vector some_logits(const float *logits, int first) { // LANES of them; beyond the last one -infinity
    if (first + LANES <= V) return load(logits + first);
    vector some = all_lanes(-INFINITY);
    for (int i = 0; first + i < V; i++) some[i] = logits[first + i];
    return some;
}

// -log of the chance that the model itself, without grammar, filters or temperature, gives a token.
static double surprise(const float *logits, int token) {
    vector tops = all_lanes(-INFINITY), sums = {0};
    for (int v = 0; v < V; v += LANES) tops = larger(some_logits(logits, v), tops);
    const float most = largest_lane(tops);
    for (int v = 0; v < V; v += LANES) sums += exp_vector(some_logits(logits, v) - most);
    return most + log(sum_lanes(sums)) - logits[token];
}

static bool all_finite(const float *logits) {
    for (int v = 0; v < V; v++) {
        if (!isfinite(logits[v])) return false;
    }
    return true;
}

static bool not_finite(const Model *model, char *error) {
    return fail(error, "%s: computes numbers that are not finite; it should be trained anew", model->path);
}

// ---- a song

typedef struct { // what all songs of one call share
    Filter filter;
    int64_t tokens, bars; // the most of new material, and
    double seconds;       // so much of it at least; 0: no limit, but not all three
    int64_t context, prime_tokens, songs, threads;
    double bpm;
    uint64_t seed;
    const char *prime_path, *scale, *lowest, *highest;
    bool no_prime, live;
    uint8_t *prime; // the first of the prime's tokens, n_prime of them
    size_t n_prime;
} Settings;

typedef struct {
    uint64_t seed;
    uint8_t *tokens; // prime and new material
    size_t n, n_prime;
    size_t written;   // number of the first token that is: behind a prime that is left out
    bool interrupted; // before all its tokens were chosen; n is n_prime if there was no new note
    bool cut;       // it ended before the bars or seconds that were asked for, because it has as many tokens as it may
    double took;    // seconds, alone or beside others
    double nll;     // mean surprise of the model at a new token
    midi_song midi; // notes, bar lines, tempo, meters and texts of what is written
    bool *from_prime; // [midi.n_notes]
    int64_t *lines;   // [n_lines] ticks of the bar lines that count, 0 the first
    int n_lines;
    int64_t prime_end; // tick at which the last of the prime's notes ends
    int64_t end;       // tick
    char model_name[100], model[260], how[700];
} Song;

enum { QUARTER = 4 * MIDI_STEP, LONGEST_BAR = 31 }; // ticks; steps: a longer bar has a token at each 31 of them

static void song_free(Song *song) {
    free(song->tokens);
    midi_free(&song->midi);
    free(song->from_prime);
    free(song->lines);
    memset(song, 0, sizeof *song);
}

static volatile sig_atomic_t interrupted; // by Ctrl-C or SIGTERM, which ends songs first and then the program

static const char *plural(size_t n) { return n == 1 ? "" : "s"; }

static double step_seconds(const Settings *settings) { return 60 / settings->bpm / 4; }

// ---- following a song while it is made (--live)
//
// Lines of text, each at its time; times and lengths are seconds of music:
//
//        0.500  note  F#4   66  0.250         and "prime" behind it, if it was given
//        2.000  bar   2
//        7.750  end                            of the last note, unless the song was interrupted

typedef struct {
    FILE *out;
    bool quiet;          // time stands still: what comes is left out
    double step;         // seconds
    double started;      // by the clock; 0: nothing was written yet
    int64_t line, first; // steps: the last bar line, and where the music that is written begins
    int64_t end;         // steps: of the note that sounds longest
    int bar;
    int offset, pitch;
} Live;

static void live_wait(Live *live, double time) { // until so much of the music has gone by, or someone interrupts
    if (!live->started) live->started = seconds_now() - time;
    for (double left; !interrupted && (left = live->started + time - seconds_now()) > 0;) {
        struct timespec nap = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        if (left > 0.25) nap = (struct timespec){0, 250000000};
        nanosleep(&nap, NULL);
    }
}

static void live_flush(Live *live) { // a reader that goes away, or stands still until Ctrl-C, ends the song: no error
    if (!fflush(live->out)) return;
    if (errno == EPIPE || errno == EINTR) clearerr(live->out);
    interrupted = 1;
}

static void live_token(Live *live, int token, const char *remark) {
    const midi_kind kind = midi_token_kind(token);
    const double time = (double)(live->line + live->offset - live->first) * live->step;
    char name[16];
    if (kind == MIDI_KIND_OFFSET) live->offset = token - MIDI_OFFSET;
    if (kind == MIDI_KIND_PITCH) live->pitch = token - MIDI_PITCH + MIDI_LOWEST_KEY;
    if (kind == MIDI_KIND_BAR) live->line += live->offset;
    if (kind == MIDI_KIND_BAR && live->quiet) live->first = live->line;
    if (live->quiet || kind == MIDI_KIND_OFFSET || kind == MIDI_KIND_PITCH) return;
    const bool counts = live->offset && live->offset != LONGEST_BAR;
    if (kind == MIDI_KIND_BAR && !counts) return;
    live_wait(live, time);
    if (interrupted) return;
    if (kind == MIDI_KIND_BAR) fprintf(live->out, "%9.3f  bar   %d\n", time, ++live->bar + 1);
    if (kind == MIDI_KIND_DURATION) {
        const int steps = token - MIDI_DURATION + 1;
        if (live->end < live->line + live->offset + steps) live->end = live->line + live->offset + steps;
        fprintf(live->out, "%9.3f  note  %-4s %3d  %.3f%s\n", time, key_name(live->pitch, name), live->pitch,
                steps * live->step, remark);
    }
    live_flush(live);
}

static void live_end(Live *live) { // once the last note has ended
    const int64_t end = live->end > live->line ? live->end : live->line;
    const double time = (double)(end - live->first) * live->step;
    live_wait(live, time);
    if (interrupted) return;
    fprintf(live->out, "%9.3f  end\n", time);
    live_flush(live);
}

// ---- making a song, token by token

typedef struct {
    Song *song;
    const Settings *settings;
    PhiloxKey key;
    size_t most;         // new tokens at most
    size_t fed;          // tokens that the model has seen, a first BAR included if there is no prime
    int64_t bars;        // whole new ones; -1: in the bar in which a prime breaks off
    int64_t line, first; // steps: the last bar line, and where the new material begins
    int offset;          // the last one
    size_t notes;        // new ones
    size_t whole;        // tokens up to the last new bar line behind a note; 0: there is none
    double whole_nll;    // the song's up to there
    double surprises, started;
    Live live;
} Maker;

// With --bars or --seconds alone a model that forgets to end its bars must end too.
static size_t most_tokens(const Settings *settings) {
    enum { TOKENS_IN_BAR = 2048 };
    double bars = settings->bars ? (double)settings->bars : settings->seconds / step_seconds(settings) / 16 + 1;
    return settings->tokens ? (size_t)settings->tokens : (size_t)((bars < 1e5 ? bars : 1e5) * TOKENS_IN_BAR);
}

static int64_t context_needed(const Settings *settings) {
    int64_t longest = (int64_t)(settings->n_prime + most_tokens(settings) + 1);
    return longest < settings->context ? longest : settings->context;
}

static void maker_see(Maker *maker, int token) { // where bar lines are
    if (midi_token_kind(token) == MIDI_KIND_OFFSET) maker->offset = token - MIDI_OFFSET;
    if (token != MIDI_BAR) return;
    maker->line += maker->offset;
    maker->bars += maker->offset && maker->offset != LONGEST_BAR;
    maker->offset = 0;
}

static bool maker_begin(Maker *maker, Song *song, const Settings *settings, uint64_t seed, char *error) {
    const size_t n = settings->n_prime;
    memset(maker, 0, sizeof *maker);
    memset(song, 0, sizeof *song);
    maker->song = song;
    maker->settings = settings;
    maker->key = philox_key(seed, PHILOX_SAMPLE, 0);
    maker->most = most_tokens(settings);
    maker->started = seconds_now();
    maker->live =
        (Live){.out = settings->live ? stdout : NULL, .quiet = settings->no_prime, .step = step_seconds(settings)};
    song->seed = seed;
    song->tokens = (uint8_t *)malloc(n + maker->most);
    if (!song->tokens) return fail(error, "no memory for a song of %zu tokens", n + maker->most);
    for (size_t i = 0; i < n; i++) maker_see(maker, song->tokens[i] = settings->prime[i]);
    maker->first = maker->line + maker->offset;
    maker->bars = n && settings->prime[n - 1] != MIDI_BAR ? -1 : 0;
    song->n = song->n_prime = n;
    return true;
}

// The token to feed next. There always is one.
static int maker_next(const Maker *maker) {
    const Song *song = maker->song;
    if (song->n_prime) return song->tokens[maker->fed];
    return maker->fed ? song->tokens[maker->fed - 1] : MIDI_BAR;
}

// Whether a song that has more to come goes on: unless it is interrupted. Then it ends at its last bar line, or within
// its first bar where it is; without a new note nothing new is left of it. One that was followed keeps what was heard,
// and the note that was to come next.
static bool maker_goes_on(Maker *maker) {
    Song *song = maker->song;
    if (!interrupted) return true;
    song->interrupted = true;
    if (!maker->notes) song->n = song->n_prime;
    if (!maker->live.out && maker->whole) song->n = maker->whole, song->nll = maker->whole_nll;
    return false;
}

// The model has seen maker_next and says this. If that was the last token there is, chooses one more: number i with
// the random number of counter i, so that it does not matter who else draws. Returns whether the song goes on: it ends
// after so many new tokens, at the bar line at which there are enough bars or seconds, or when it is interrupted. (The
// rest of the bar in which a prime breaks off is no whole bar, and lines count as song_find_lines counts them.)
static bool maker_take(Maker *maker, const float *logits) {
    Song *song = maker->song;
    const Settings *settings = maker->settings;
    const bool lead = !song->n_prime;
    if (maker->live.out && maker->fed >= lead && maker->fed < song->n_prime + lead) {
        live_token(&maker->live, song->tokens[maker->fed - lead], "  prime");
    }
    if (++maker->fed < song->n + lead) return maker_goes_on(maker);
    const size_t i = song->n - song->n_prime;
    const int previous = song->n ? song->tokens[song->n - 1] : MIDI_BAR;
    Philox4 words = philox(maker->key, (uint32_t)i, 0, 0, 0);
    int token = draw(logits, previous, &settings->filter, philox_uniform(words.x[0], words.x[1]));
    song->tokens[song->n++] = (uint8_t)token;
    maker->surprises += surprise(logits, token);
    const int64_t bars = maker->bars;
    maker_see(maker, token);
    maker->live.quiet = false;
    if (maker->live.out) live_token(&maker->live, token, "");
    const bool line = token == MIDI_BAR && maker->bars > bars;
    const double seconds = (double)(maker->line - maker->first) * step_seconds(settings);
    const bool enough = line && ((settings->bars && maker->bars >= settings->bars) ||
                                 (settings->seconds > 0 && seconds >= settings->seconds - 1e-9));
    song->cut = !enough && (settings->bars || settings->seconds > 0);
    song->nll = maker->surprises / (double)(i + 1);
    song->took = seconds_now() - maker->started;
    maker->notes += midi_token_kind(token) == MIDI_KIND_DURATION;
    if (line && maker->notes) maker->whole = song->n, maker->whole_nll = song->nll;
    if (!enough && i + 1 < maker->most) return maker_goes_on(maker);
    if (maker->live.out) live_end(&maker->live);
    return false;
}

// ---- from tokens to notes

// Marks the notes of the prime: as both lists are in one order, each is the next that is equal. With no_prime they are
// taken out instead, and the song begins at the bar line before the first new token.
static bool song_mark_prime(Song *song, bool no_prime, char *error) {
    midi_song prime;
    midi_error problem;
    if (!midi_decode(song->tokens, song->n_prime, &prime, &problem)) return fail(error, "%s", problem.text);
    midi_song *all = &song->midi;
    int64_t shift = no_prime && prime.n_bars ? prime.bars[prime.n_bars - 1] : 0;
    size_t matched = 0, kept = 0;
    for (size_t i = 0; i < all->n_notes; i++) {
        midi_note note = all->notes[i];
        const midi_note *next = matched < prime.n_notes ? &prime.notes[matched] : NULL;
        bool old = next && next->start == note.start && next->key == note.key && next->end == note.end;
        matched += old;
        if (old && no_prime) continue;
        if (old && note.end > song->prime_end) song->prime_end = note.end;
        note.start -= shift;
        note.end -= shift;
        song->from_prime[kept] = old;
        all->notes[kept++] = note;
    }
    all->n_notes = kept;
    size_t skipped = no_prime ? prime.n_bars : 0;
    for (size_t i = skipped; i < all->n_bars; i++) all->bars[i - skipped] = all->bars[i] - shift;
    all->n_bars -= skipped;
    midi_free(&prime);
    return true;
}

// A piano has one string for a key: a note ends where its key is struck again, and of notes of one key that begin
// together the longest is left. So each note-on has its note-off before the next of its key, and no player lets one
// ring on for ever.
static void song_part_notes(Song *song) {
    int64_t last[128]; // the note of each key that came last, -1: none
    size_t kept = 0;
    midi_note *notes = song->midi.notes; // sorted by start, key, length
    for (int k = 0; k < 128; k++) last[k] = -1;
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const midi_note note = notes[i];
        const int64_t before = last[note.key];
        if (before >= 0 && notes[before].start == note.start) {
            notes[before].end = note.end;
            continue;
        }
        if (before >= 0 && notes[before].end > note.start) notes[before].end = note.start;
        last[note.key] = (int64_t)kept;
        song->from_prime[kept] = song->from_prime[i];
        notes[kept++] = note;
    }
    song->midi.n_notes = kept;
}

// The bar lines that count: neither bars without length nor the lines that only cut a long bar at 31 steps.
static void song_find_lines(Song *song) {
    int64_t previous = 0;
    song->n_lines = 1;
    song->lines[0] = 0;
    for (size_t i = 0; i < song->midi.n_bars; i++) {
        int64_t tick = song->midi.bars[i];
        if (tick > previous && tick - previous != LONGEST_BAR * MIDI_STEP) song->lines[song->n_lines++] = tick;
        previous = tick;
    }
}

// A bar of so many steps as n / 2^exponent: quarters if it is whole quarters, else eighths, else sixteenths.
static void bar_meter(int64_t steps, int64_t *numerator, int *exponent) {
    *exponent = steps % 4 == 0 ? 2 : steps % 2 == 0 ? 3 : 4;
    *numerator = steps >> (4 - *exponent);
}

// Tempo, settings as text, and a time signature wherever the length of the bars changes. The last bar, if it was never
// closed, is taken to be as long as the one before.
static bool song_add_events(Song *song, double bpm) {
    midi_song *midi = &song->midi;
    bool ok = midi_add_tempo(midi, 0, (int)lrint(60e6 / bpm), 0) && midi_add_text(midi, 0, 3, "Piano", 0) &&
              midi_add_text(midi, 0, 1, song->model, 0) && midi_add_text(midi, 0, 1, song->how, 0);
    int64_t steps = 0;
    for (int i = 0; ok && i + 1 < song->n_lines; i++) {
        int64_t now = (song->lines[i + 1] - song->lines[i]) / MIDI_STEP, numerator;
        int exponent;
        bar_meter(now, &numerator, &exponent);
        if (now != steps && numerator < 256) ok = midi_add_meter(midi, song->lines[i], (int)numerator, exponent, 0);
        steps = now;
    }
    if (ok && !midi->n_meters) ok = midi_add_meter(midi, 0, 4, 2, 0);
    return ok;
}

// What made the song, apart from the model: all that it takes to make it again.
static void song_describe(Song *song, const Model *model, const Settings *settings) {
    const Filter *filter = &settings->filter;
    snprintf(song->model_name, sizeof song->model_name, "%s", model->name);
    snprintf(song->model, sizeof song->model, "sample_music %s, model %s", MUSIC_VERSION, model->about);
    char *how = song->how;
    size_t size = sizeof song->how, n = 0;
#define ADD(...) n += (size_t)snprintf(how + n, n < size ? size - n : 0, __VA_ARGS__), n = n < size ? n : size - 1
    ADD("seed %llu", (unsigned long long)song->seed);
    if (settings->tokens) ADD(", tokens %lld", (long long)settings->tokens);
    if (settings->bars) ADD(", bars %lld", (long long)settings->bars);
    if (settings->seconds > 0) ADD(", seconds %g", settings->seconds);
    ADD(", temperature %g", filter->temperature);
    if (filter->top_k) ADD(", top-k %lld", (long long)filter->top_k);
    if (filter->top_p < 1) ADD(", top-p %g", filter->top_p);
    if (filter->min_p > 0) ADD(", min-p %g", filter->min_p);
    if (settings->scale) ADD(", scale %.24s", settings->scale);
    if (settings->lowest) ADD(", lowest %.8s", settings->lowest);
    if (settings->highest) ADD(", highest %.8s", settings->highest);
    if (model->kind == GPT) ADD(", context %lld", (long long)settings->context);
    ADD(", bpm %g", settings->bpm);
    if (settings->prime_path) {
        const char *slash = strrchr(settings->prime_path, '/');
        ADD(", prime %.120s (%zu tokens%s)", slash ? slash + 1 : settings->prime_path, settings->n_prime,
            settings->no_prime ? ", left out" : "");
    }
    if (song->interrupted) { // else the same flags would seem to give the same song
        const size_t new = song->n - song->n_prime;
        ADD(", interrupted after %zu new token%s", new, plural(new));
    }
#undef ADD
}

// Makes of the tokens what is written.
static bool song_finish(Song *song, const Model *model, const Settings *settings, char *error) {
    midi_error problem;
    if (!midi_decode(song->tokens, song->n, &song->midi, &problem)) return fail(error, "%s", problem.text);
    song->from_prime = (bool *)calloc(song->midi.n_notes + 1, sizeof(bool));
    song->lines = (int64_t *)malloc((song->midi.n_bars + 1) * sizeof(int64_t));
    bool ok = song->from_prime && song->lines;
    song->written = settings->no_prime ? song->n_prime : 0;
    if (ok && song->n_prime && !song_mark_prime(song, settings->no_prime, error)) return false;
    if (ok) {
        song_part_notes(song);
        song_find_lines(song);
        song_describe(song, model, settings);
        for (size_t i = 0; i < song->midi.n_notes; i++) {
            if (song->midi.notes[i].end > song->end) song->end = song->midi.notes[i].end;
        }
        if (song->lines[song->n_lines - 1] > song->end) song->end = song->lines[song->n_lines - 1];
        ok = song_add_events(song, settings->bpm);
    }
    return ok || fail(error, "no memory for a song of %zu tokens", song->n);
}

// The bars that end with a line, and the one that was begun after them, if there is a note in it. Behind a line that is
// the last token nothing was begun: what sounds there rings on, or belongs to the bar before.
static int song_bars(const Song *song) {
    const midi_song *midi = &song->midi; // whose notes are sorted by their start
    int64_t line = song->lines[song->n_lines - 1];
    bool begun = song->tokens[song->n - 1] != MIDI_BAR && midi->n_notes && midi->notes[midi->n_notes - 1].start >= line;
    return song->n_lines - 1 + begun;
}

static double tick_seconds(const Song *song) { return 1e-6 * song->midi.tempos[0].us_per_quarter / QUARTER; }

static double song_seconds(const Song *song) { return (double)song->end * tick_seconds(song); }

// ---- what a song is like

typedef struct {
    uint64_t hash;
    size_t end; // the first token behind it; 0: an empty place of a table
} Passage;

// Whether some passage of `length` tokens comes twice without overlapping, and where first. table: of a power of two
// of places, at least 2n. By the rolling hash of Karp and Rabin, 1987; what has the same hash is compared.
static bool repeats(const uint8_t *tokens, size_t n, size_t length, Passage *table, size_t places, size_t *where) {
    const uint64_t base = 0x9E3779B97F4A7C15u;
    uint64_t hash = 0, power = 1;
    memset(table, 0, places * sizeof *table);
    for (size_t i = 0; i < length; i++) {
        hash = hash * base + tokens[i] + 1;
        if (i) power *= base;
    }
    for (size_t i = 0; i + length <= n; i++) {
        size_t k = (hash ^ hash >> 32) & (places - 1);
        while (table[k].end && table[k].hash != hash) k = (k + 1) & (places - 1);
        if (!table[k].end) table[k] = (Passage){hash, i + length};
        *where = table[k].end - length;
        if (i >= table[k].end && !memcmp(tokens + *where, tokens + i, length)) return true;
        if (i + length < n) hash = (hash - power * (tokens[i] + 1u)) * base + tokens[i + length] + 1;
    }
    return false;
}

// The notes of the longest passage of tokens that comes twice in what is written. Of notes of one key that begin
// together one is (see song_part_notes). No memory: 0.
static int longest_repetition(const Song *song) {
    enum { BEFORE = 64 }; // steps: a bar line lies at most 31 after the one before, and so does a note
    const uint8_t *tokens = song->tokens + song->written;
    const size_t n = song->n - song->written;
    size_t low = 0, high = n / 2 + 1, where, at = 0, places = 2; // low repeats, high does not
    while (places < 2 * n) places *= 2;
    Passage *table = (Passage *)malloc(places * sizeof *table);
    while (table && high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (repeats(tokens, n, middle, table, places, &where)) {
            low = middle;
            at = where;
        } else {
            high = middle;
        }
    }
    free(table);
    int notes = 0, pitch = 0;
    int64_t line = 0, offset = 0, struck[MIDI_DURATION - MIDI_PITCH][BEFORE] = {{0}}; // 1 + the step at which it was
    for (size_t i = 0; table && i < at + low; i++) {
        const midi_kind kind = midi_token_kind(tokens[i]);
        if (kind == MIDI_KIND_OFFSET) offset = tokens[i] - MIDI_OFFSET;
        if (kind == MIDI_KIND_PITCH) pitch = tokens[i] - MIDI_PITCH;
        if (kind == MIDI_KIND_BAR) line += offset;
        if (kind != MIDI_KIND_DURATION) continue;
        int64_t *last = &struck[pitch][(line + offset) % BEFORE];
        notes += i >= at && *last != line + offset + 1;
        *last = line + offset + 1;
    }
    return notes;
}

// "324 notes  25 bars  25.0 s  E2-C6  repeats 12 notes  nll 1.234  seed 7"
static void song_report(const Song *song, const Settings *settings, TextBuffer *out) {
    const midi_song *midi = &song->midi;
    int lowest = 127, highest = 0;
    char low[16], high[16];
    for (size_t i = 0; i < midi->n_notes; i++) {
        lowest = midi->notes[i].key < lowest ? midi->notes[i].key : lowest;
        highest = midi->notes[i].key > highest ? midi->notes[i].key : highest;
    }
    const int bars = song_bars(song), again = longest_repetition(song);
    const size_t new = song->n - song->n_prime;
    text_print(out, "  %zu note%s  %d bar%s  %.1f s", midi->n_notes, plural(midi->n_notes), bars, plural((size_t)bars),
             song_seconds(song));
    if (midi->n_notes) text_print(out, "  %s-%s", key_name(lowest, low), key_name(highest, high));
    text_print(out, "  repeats %d note%s  nll %.3f  seed %llu", again, plural((size_t)again), song->nll,
             (unsigned long long)song->seed);
    if (settings->songs == 1 && !settings->live && song->took > 0)
        text_print(out, "  %.0f tokens/s", (double)song->n / song->took);
    if (song->interrupted) {
        text_print(out, "  interrupted after %zu new token%s", new, plural(new));
    } else if (song->cut) {
        text_print(out, "  ended after %zu new token%s, before --", new, plural(new));
        if (settings->bars) text_print(out, "bars %lld", (long long)settings->bars);
        if (!settings->bars) text_print(out, "seconds %g", settings->seconds);
    }
}

// ---- writing a song

static bool make_mid(TextBuffer *out, const Song *song, char *error) {
    uint8_t *bytes;
    size_t size;
    midi_error problem;
    if (!midi_write(&song->midi, &bytes, &size, &problem)) return fail(error, "%s", problem.text);
    text_add(out, (const char *)bytes, size);
    MIDI_FREE(bytes);
    return true;
}

static bool make_svg(TextBuffer *out, const Song *song, char *error) {
    const size_t n = song->midi.n_notes;
    const int bars = song_bars(song);
    char notes[40] = "no notes", title[100], name[300];
    if (n) snprintf(notes, sizeof notes, "%zu note%s", n, plural(n));
    snprintf(title, sizeof title, "%s, %d bar%s, %.0f s", notes, bars, plural((size_t)bars), song_seconds(song));
    snprintf(name, sizeof name, "%s, seed %llu: piano roll of %s", song->model_name, (unsigned long long)song->seed,
             title);
    const Roll roll = {.name = name,
                       .title = title,
                       .how = song->how,
                       .model = song->model,
                       .notes = song->midi.notes,
                       .from_prime = song->from_prime,
                       .n_notes = n,
                       .lines = song->lines,
                       .n_lines = song->n_lines,
                       .end = song->end,
                       .tick_seconds = tick_seconds(song)};
    (void)error;
    roll_svg(out, &roll);
    return true;
}

static bool make_wav(TextBuffer *out, const Song *song, char *error) {
    const size_t n = song->midi.n_notes;
    const double tick = tick_seconds(song);
    SynthNote *notes = (SynthNote *)calloc(n + 1, sizeof *notes);
    if (!notes) return fail(error, "no memory for %zu notes", n);
    for (size_t i = 0; i < n; i++) {
        const midi_note *note = &song->midi.notes[i];
        notes[i] = (SynthNote){(double)note->start * tick, (double)(note->end - note->start) * tick, note->key,
                               note->velocity / 127.0, false};
    }
    bool ok = synth_wav(out, notes, n, song_seconds(song) + synth_tail, error);
    free(notes);
    return ok;
}

// Pages of several songs.
static bool make_html(TextBuffer *out, const Song *songs, int n_songs, char *error) {
    PlayerSong *list = (PlayerSong *)calloc((size_t)n_songs, sizeof *list);
    char(*texts)[2][1000] = (char(*)[2][1000])calloc((size_t)n_songs, sizeof *texts);
    bool ok = list && texts;
    if (!ok) fail(error, "no memory for %d songs", n_songs);
    for (int k = 0; ok && k < n_songs; k++) {
        const Song *song = &songs[k];
        const midi_song *midi = &song->midi;
        const double tick = tick_seconds(song);
        TextBuffer mid = {NULL, 0, 0, false};
        PlayerNote *notes = (PlayerNote *)calloc(midi->n_notes + 1, sizeof *notes);
        double *bars = (double *)calloc((size_t)song->n_lines, sizeof *bars);
        PlayerSong *to = &list[k];
        *to = (PlayerSong){.notes = notes, .n_notes = midi->n_notes, .bars = bars, .n_bars = (size_t)song->n_lines};
        ok = notes && bars ? make_mid(&mid, song, error) : fail(error, "no memory for %zu notes", midi->n_notes);
        for (size_t i = 0; ok && i < midi->n_notes; i++) {
            const midi_note *note = &midi->notes[i];
            notes[i] = (PlayerNote){(double)note->start * tick, (double)(note->end - note->start) * tick, note->key,
                                    note->velocity, song->from_prime[i]};
        }
        for (int i = 0; ok && i < song->n_lines; i++) bars[i] = (double)song->lines[i] * tick;
        snprintf(texts[k][0], sizeof texts[k][0], "%s, seed %llu", song->model_name, (unsigned long long)song->seed);
        snprintf(texts[k][1], sizeof texts[k][1], "%s\n%s", strchr(song->how, ',') + 2, song->model); // behind the seed
        to->title = texts[k][0];
        to->settings = texts[k][1];
        to->mid = (uint8_t *)mid.bytes;
        to->mid_size = mid.size;
        to->prime_seconds = (double)song->prime_end * tick;
        to->seconds = song_seconds(song);
        to->bpm = 60 / (tick * QUARTER);
    }
    ok = ok && player_html(out, list, n_songs, error);
    for (int k = 0; list && k < n_songs; k++) {
        free((void *)list[k].notes);
        free((void *)list[k].bars);
        free((void *)list[k].mid);
    }
    free(list);
    free(texts);
    return ok;
}

typedef struct {
    const char *suffix;
    bool (*make)(TextBuffer *out, const Song *song, char *error); // NULL: one file for all songs, see make_html
} Format;

static const Format formats[] = {{".mid", make_mid}, {".svg", make_svg}, {".wav", make_wav}, {".html", NULL}};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static const Format *format_of(const char *path) { // by its suffix, small or capital, or NULL; "-" is a .mid
    size_t length = strlen(path);
    if (!strcmp(path, "-")) return &formats[0];
    for (int i = 0; i < N_FORMATS; i++) {
        size_t suffix = strlen(formats[i].suffix);
        if (length > suffix && !strcasecmp(path + length - suffix, formats[i].suffix)) return &formats[i];
    }
    return NULL;
}

// Writes these songs, one unless it is an .html, to a file or to the standard output.
static bool songs_write(const Song *songs, int n_songs, const char *path, char *error) {
    const Format *format = format_of(path);
    char problem[ERROR_SIZE] = "out of memory";
    TextBuffer out = {NULL, 0, 0, false};
    bool ok = format->make ? format->make(&out, songs, problem) : make_html(&out, songs, n_songs, problem);
    if (!ok || out.failed) {
        ok = fail(error, "%s: cannot be written: %.300s", path, problem);
    } else if (strcmp(path, "-")) {
        ok = write_file_atomically(path, out.bytes, out.size, error);
    } else { // a failure shows when the program ends, too
        ok = fwrite(out.bytes, 1, out.size, stdout) == out.size && !fflush(stdout);
        if (!ok) fail(error, "-o -: the standard output cannot be written: %s", strerror(errno));
    }
    free(out.bytes);
    return ok;
}

// ---- the command line's values

typedef struct {
    Settings settings;
    Texts models, outputs;
    const Flag *context, *bpm;
    const char *weights, *dataset;
    int64_t stride;
    bool bench;
    bool page;      // an .html is asked for
    FILE *report;   // stdout, unless that is for music
    bool shortened; // by Ctrl-C: a song was interrupted, or never begun
} Call;

// ---- many songs
//
// A token is too small a thing to share between cores, a song is not: each thread makes a batch of songs. What a batch
// gains lies in reading each weight once for all its songs, and a song that ends makes room for the next.

typedef struct {
    const Call *call;
    const Model *model;
    int64_t first;     // number of this model's first song
    int64_t next;      // of these, the first that nobody has begun
    int64_t all;       // songs of all models
    bool good;         // none has failed yet
    TextBuffer *reports; // [all] what to say about each song, once it is written
    Song *kept;        // [all], where a page is to show them
    int64_t begun, made, reported;
    bool shortened; // a song was interrupted
    int64_t tokens;
    char *error;
} Job;

// out/song.mid -> out/song-3.mid, where there are several songs. The caller frees it; NULL: no memory.
static char *output_name(const char *path, int64_t song, int64_t songs) {
    size_t size = strlen(path) + 32, stem = strlen(path) - strlen(format_of(path)->suffix);
    char *name = (char *)malloc(size);
    if (name && songs == 1) snprintf(name, size, "%s", path);
    if (name && songs > 1) snprintf(name, size, "%.*s-%lld%s", (int)stem, path, (long long)song + 1, path + stem);
    return name;
}

// Song i of all is made: writes it, but for pages, and says so in its turn.
static void job_finish(Job *job, Song *song, int64_t i) {
    const Texts *outputs = &job->call->outputs;
    const Settings *settings = &job->call->settings;
    char problem[ERROR_SIZE];
    TextBuffer report = {NULL, 0, 0, false};
    const bool none = song->interrupted && song->n == song->n_prime;
    bool ok = none || song_finish(song, job->model, settings, problem);
    for (int k = 0; ok && !none && k < outputs->n; k++) {
        if (!format_of(outputs->list[k])->make) continue;
        char *name = output_name(outputs->list[k], i, job->all);
        ok = name ? songs_write(song, 1, name, problem) : fail(problem, "%s: no memory", outputs->list[k]);
        if (ok) text_print(&report, "%s ", name);
        free(name);
    }
    if (ok && !report.size) text_print(&report, "song %lld ", (long long)i + 1);
    if (ok && none) text_print(&report, " not written: it was interrupted before its first new note");
    if (ok && !none) song_report(song, settings, &report);
    if (ok && job->call->models.n > 1) text_print(&report, "  %s", job->model->path);
#pragma omp critical(job)
    {
        if (!ok && job->good) memcpy(job->error, problem, ERROR_SIZE);
        job->good = job->good && ok;
        job->shortened = job->shortened || song->interrupted;
        if (ok && !none) job->tokens += (int64_t)song->n;
        if (ok && !none && job->kept) job->kept[i] = *song, *song = (Song){0};
        job->made += ok && !none;
        job->reports[i] = report;
        for (; job->good && job->reported < job->all && job->reports[job->reported].size; job->reported++) {
            const TextBuffer *line = &job->reports[job->reported];
            fprintf(job->call->report, "%.*s\n", (int)line->size, line->bytes);
            fflush(job->call->report);
        }
    }
    song_free(song);
}

static void job_fail(Job *job, const char *problem) {
#pragma omp critical(job)
    {
        if (job->good) memcpy(job->error, problem, ERROR_SIZE);
        job->good = false;
    }
}

static int64_t job_take(Job *job) { // the next song's number, -1: none
    int64_t i = -1;
#pragma omp critical(job)
    if (job->good && !interrupted && job->next < job->call->settings.songs) i = job->first + job->next++, job->begun++;
    return i;
}

// Makes songs in so many rooms until there are no more to make.
static void job_work(Job *job, int rooms) {
    const Settings *settings = &job->call->settings;
    char problem[ERROR_SIZE];
    Batch batch;
    Maker makers[MAX_ROOMS];
    Song songs[MAX_ROOMS];
    int64_t number[MAX_ROOMS]; // of the song in the room, -1: none
    int busy[MAX_ROOMS], tokens[MAX_ROOMS], n = 0;
    if (!batch_new(&batch, job->model, rooms, (int)context_needed(settings), problem)) {
        job_fail(job, problem);
        return;
    }
    for (int r = 0; r < rooms; r++) number[r] = -1;
    for (bool more = true;;) {
        for (int r = 0; more && r < rooms; r++) {
            if (number[r] >= 0) continue;
            const int64_t i = job_take(job);
            if (i < 0) {
                more = false;
            } else if (maker_begin(&makers[r], &songs[r], settings, settings->seed + (uint64_t)(i - job->first),
                                   problem)) {
                number[r] = i;
                batch_begin(&batch, r);
            } else {
                job_fail(job, problem);
            }
        }
        n = 0;
        for (int r = 0; r < rooms; r++) {
            if (number[r] < 0) continue;
            tokens[n] = maker_next(&makers[r]);
            busy[n++] = r;
        }
        if (!n) break;
        batch_step(&batch, busy, n, tokens);
        for (int k = 0; k < n; k++) {
            const int r = busy[k];
            const float *logits = row(batch.logits, r);
            const bool finite = all_finite(logits);
            if (!finite && !not_finite(job->model, problem)) job_fail(job, problem);
            if (finite && maker_take(&makers[r], logits)) continue;
            if (finite) job_finish(job, &songs[r], number[r]);
            song_free(&songs[r]);
            number[r] = -1;
        }
    }
    batch_free(&batch);
}

// How many songs a thread makes at a time: as many as it has to make, but no more than together carry about half as
// much state as the weights take, and one (a Transformer's caches are read for each token, too, and drive each other
// and the weights out of the processor's cache: at context 256 four songs are best); and all threads 1 GB. What is too
// much for once is made in turns of the same size.
static int rooms_of(const Model *model, const Settings *settings, int64_t threads) {
    const int64_t each = batch_size(model, 1, (int)context_needed(settings)),
                  songs = ceil_div(settings->songs, threads);
    int64_t most = 1 + ceil_div(model->bytes, 2 * each);
    if (most > ((int64_t)1 << 30) / threads / each) most = ((int64_t)1 << 30) / threads / each;
    if (most > MAX_ROOMS) most = MAX_ROOMS;
    if (most < 1) most = 1;
    return (int)ceil_div(songs, ceil_div(songs, most));
}

static int threads_of(const Settings *settings, int64_t pieces) {
    int64_t threads = 1;
#if defined(_OPENMP)
    threads = settings->threads ? settings->threads : omp_get_max_threads();
#endif
    (void)settings;
    return (int)(threads < pieces ? threads : pieces);
}

// Whether the folders of the outputs can be written to, before any song is made that could not be kept.
static bool outputs_have_folders(const Texts *outputs, char *error) {
    for (int k = 0; k < outputs->n; k++) {
        const char *path = outputs->list[k], *slash = strrchr(path, '/');
        const int length = slash > path ? (int)(slash - path) : 1;
        char *folder = (char *)malloc((size_t)length + 1);
        if (!folder) return fail(error, "%s: no memory", path);
        snprintf(folder, (size_t)length + 1, "%s", slash ? path : ".");
        const bool ok = !strcmp(path, "-") || !access(folder, W_OK | X_OK) || atomic_fail(path, errno, error);
        free(folder);
        if (!ok) return false;
    }
    return true;
}

// All songs of all models, each model with the same seeds.
static bool make_all(Call *call, const Model *models, int n_models, char *error) {
    const Settings *settings = &call->settings;
    const int threads = threads_of(settings, settings->songs); // 1 without OpenMP
    const double start = seconds_now();
    Job job = {.call = call, .all = n_models * settings->songs, .good = true, .error = error};
    job.reports = (TextBuffer *)calloc((size_t)job.all, sizeof *job.reports);
    if (call->page) job.kept = (Song *)calloc((size_t)job.all, sizeof *job.kept);
    if (!job.reports || (call->page && !job.kept))
        job.good = fail(error, "no memory for %lld songs", (long long)job.all);
    for (int k = 0; k < n_models && job.good && !interrupted; k++) {
        job.model = &models[k];
        job.first = k * settings->songs;
        job.next = 0;
        const int rooms = rooms_of(job.model, settings, threads);
#pragma omp parallel num_threads(threads)
        job_work(&job, rooms);
    }
    const double took = seconds_now() - start;
    call->shortened = job.shortened || job.begun < job.all;
    for (int64_t i = 0, k = 0; job.kept && i < job.all; i++) { // none between them that was not written
        if (!job.kept[i].n) continue;
        const Song song = job.kept[i];
        job.kept[i] = (Song){0};
        job.kept[k++] = song;
    }
    for (int k = 0; job.good && job.made && k < call->outputs.n; k++) {
        const char *path = call->outputs.list[k];
        if (format_of(path)->make) continue;
        job.good = songs_write(job.kept, (int)job.made, path, error);
        if (job.good) fprintf(call->report, "%s  %lld song%s\n", path, (long long)job.made, plural((size_t)job.made));
    }
    if (job.good && settings->songs > 1) {
        fprintf(call->report, "%lld song%s  %lld tokens  %.1f s  %.0f tokens/s", (long long)job.made,
                plural((size_t)job.made), (long long)job.tokens, took, (double)job.tokens / took);
        fprintf(call->report, call->shortened ? "  interrupted\n" : "\n");
    }
    if (job.good && job.begun < job.all) {
        fprintf(call->report, "interrupted before %lld of %lld song%s began\n", (long long)(job.all - job.begun),
                (long long)job.all, plural((size_t)job.all));
    }
    for (int64_t i = 0; i < job.all; i++) {
        if (job.reports) free(job.reports[i].bytes);
        if (job.kept) song_free(&job.kept[i]);
    }
    free(job.reports);
    free(job.kept);
    return job.good;
}

// ---- the loss on a dataset

enum { WINDOW = 256 }; // tokens, as the models are trained

// The sum of the model's surprises at the tokens of each of n windows, in one batch.
static bool window_losses(Batch *batch, const Dataset *data, const int64_t *starts, int n, double *losses) {
    int rooms[MAX_ROOMS], tokens[MAX_ROOMS];
    for (int i = 0; i < n; i++) rooms[i] = i, losses[i] = 0, batch_begin(batch, i);
    for (int t = 0; t < WINDOW; t++) {
        for (int i = 0; i < n; i++) tokens[i] = data->tokens[starts[i] + t];
        batch_step(batch, rooms, n, tokens);
        for (int i = 0; i < n; i++) {
            if (!all_finite(row(batch->logits, i))) return false;
            losses[i] += surprise(row(batch->logits, i), data->tokens[starts[i] + t + 1]);
        }
    }
    return true;
}

// What the trainers' --eval does, on every stride-th window of a dataset, by the arithmetic that makes songs.
static bool evaluate(const Call *call, const Model *model, char *error) {
    Dataset data;
    if (!dataset_open(&data, call->dataset, WINDOW, error)) return false;
    const int64_t n = (data.n_windows + call->stride - 1) / call->stride, batches = (n + MAX_ROOMS - 1) / MAX_ROOMS;
    double *losses = (double *)calloc((size_t)n + 1, sizeof *losses), sum = 0;
    bool good = losses || fail(error, "%s: no memory for its windows", call->dataset);
    if (!n) good = fail(error, "%s: no piece in it is longer than %d tokens", call->dataset, WINDOW);
    const int threads = threads_of(&call->settings, batches ? batches : 1);
    (void)threads; // where there is no OpenMP
#pragma omp parallel num_threads(threads)
    {
        Batch batch;
        char problem[ERROR_SIZE];
        bool ok = batch_new(&batch, model, MAX_ROOMS, WINDOW, problem);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < batches; b++) {
            int64_t starts[MAX_ROOMS], first = b * MAX_ROOMS;
            const int in_batch = (int)(n - first < MAX_ROOMS ? n - first : MAX_ROOMS);
            for (int i = 0; i < in_batch; i++) starts[i] = dataset_window(&data, (first + i) * call->stride);
            if (ok) ok = window_losses(&batch, &data, starts, in_batch, losses + first) || not_finite(model, problem);
        }
#pragma omp critical(job)
        {
            if (!ok && good) memcpy(error, problem, ERROR_SIZE);
            good = good && ok;
        }
        if (batch.memory) batch_free(&batch);
    }
    for (int64_t i = 0; good && i < n; i++) sum += losses[i];
    if (good) {
        printf("eval loss=%.6f windows=%lld tokens=%lld stride=%lld weights=%s model=%s\n", sum / (double)(n * WINDOW),
               (long long)n, (long long)n * WINDOW, (long long)call->stride, precision_names[model->precision],
               model->path);
    }
    free(losses);
    dataset_close(&data);
    return good;
}

// ---- speed

// Reads n floats (a multiple of 128) as fast as one core can: as two streams (dev/sample/weights.h), each half of them.
static float read_all(const float *memory, int64_t n) {
    vector sums[8] = {{0}};
    for (int64_t i = 0; i < n / 2; i += 4 * LANES) {
        UNROLL for (int k = 0; k < 4; k++) sums[k] += load(memory + i + k * LANES);
        UNROLL for (int k = 0; k < 4; k++) sums[4 + k] += load(memory + n / 2 + i + k * LANES);
    }
    return sum_lanes(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

// Times a token of each of n_songs songs, with a full context where the model has one, on one core, in turn with
// reading as many bytes as that needs. Prints a line; false: no memory.
static bool bench(const Model *m, int context, int n_songs, char *error) {
    enum { ROUNDS = 40, EACH = 8 };
    Batch batch;
    if (!batch_new(&batch, m, n_songs, context, error)) return false;
    int64_t needed = m->bytes;
    if (m->kind == GPT) { // keys and values, and, if they are bytes, a scale of each
        const Precision kept = batch.gpt.kept;
        needed += 8LL * n_songs * m->gpt.L * context * (m->gpt.C / columns_a_word(kept) + (kept == INT8));
    }
    const int64_t floats = round_up(needed / 4, 128);
    float *buffer = vector_alloc(floats);
    double reads[ROUNDS * EACH], steps[ROUNDS * EACH];
    int rooms[MAX_ROOMS], tokens[MAX_ROOMS];
    volatile float kept = 0; // so that the reading is not optimised away
    for (int i = 0; i < n_songs; i++) rooms[i] = i;
    for (int t = -context; buffer && t < ROUNDS; t++) {
        for (int k = -1; k < EACH && t >= 0; k++) { // the first of each fills the caches
            double start = seconds_now();
            kept = kept + read_all(buffer, floats);
            if (k >= 0) reads[t * EACH + k] = seconds_now() - start;
        }
        for (int k = -1; k < (t < 0 ? 0 : EACH); k++) {
            for (int i = 0; i < n_songs; i++) tokens[i] = (context + t + k + 7 * i + 1) % V;
            double start = seconds_now();
            batch_step(&batch, rooms, n_songs, tokens);
            if (k >= 0) steps[t * EACH + k] = seconds_now() - start;
        }
    }
    batch_free(&batch);
    if (!buffer) return fail(error, "--bench: no memory for a buffer of %lld MB", (long long)(needed >> 20));
    free(buffer);
    double step = median(steps, ROUNDS * EACH), read = median(reads, ROUNDS * EACH);
    printf("bench model=%s weights=%s songs=%d", kind_names[m->kind], precision_names[m->precision], n_songs);
    if (m->kind == GPT) printf(" context=%d", context);
    printf(" tokens_per_s=%.0f read_gb_per_s=%.1f mb_per_step=%.1f limit_tokens_per_s=%.0f fraction=%.3f\n",
           n_songs / step, (double)needed * 1e-9 / read, (double)needed * 1e-6, n_songs / read, read / step);
    return true;
}

// ---- the command line

static uint64_t fresh_seed(void) { // 32 bits: enough to differ, and short to type
    uint32_t seed = (uint32_t)time(NULL) * 2654435761u + (uint32_t)clock();
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(&seed, sizeof seed, 1, random) != 1) seed ^= 1;
        fclose(random);
    }
    return seed;
}

// Bars the pitches outside --scale, --lowest and --highest.
static bool parse_pitches(Settings *s, char *error) {
    int classes = s->scale ? read_scale(s->scale) : 0xFFF;
    int lowest = s->lowest ? read_key(s->lowest) : MIDI_LOWEST_KEY, left = 0;
    int highest = s->highest ? read_key(s->highest) : MIDI_HIGHEST_KEY;
    const char *key_help = "it must be a key of the piano: A0 to C8, as C#4, Bb2 or 60";
    if (!classes) {
        TextBuffer names = {NULL, 0, 0, false};
        for (int i = 0; i < N_SCALES; i++) text_print(&names, "%s%s", i ? ", " : "", scales[i].name);
        fail(error, "--scale %.40s: it must be a note and a scale, as C-major or F#-minor; scales are %.*s", s->scale,
             (int)names.size, names.bytes ? names.bytes : "");
        free(names.bytes);
        return false;
    }
    if (lowest < 0) return fail(error, "--lowest %.40s: %s", s->lowest, key_help);
    if (highest < 0) return fail(error, "--highest %.40s: %s", s->highest, key_help);
    for (int key = MIDI_LOWEST_KEY; key <= MIDI_HIGHEST_KEY; key++) {
        const bool in = key >= lowest && key <= highest && classes >> key % 12 & 1;
        s->filter.barred[MIDI_PITCH + key - MIDI_LOWEST_KEY] = !in;
        left += in;
    }
    char low[16], high[16];
    return left || fail(error, "%s: no key of %s lies from %s to %s%s", s->lowest ? "--lowest" : "--highest",
                        s->scale ? s->scale : "the piano", key_name(lowest, low), key_name(highest, high),
                        lowest > highest ? ", because it is above --highest; swap the two" : "; widen the range");
}

static bool parse_outputs(Call *call, char *error) {
    const bool several = call->settings.songs > 1 || call->models.n > 1;
    bool to_stdout = false;
    for (int i = 0; i < call->outputs.n; i++) {
        const char *path = call->outputs.list[i];
        const Format *format = format_of(path);
        if (!format) return fail(error, "-o %s: the name should end in .mid, .wav, .html or .svg, or be -", path);
        if (!format->make) call->page = true;
        if (strcmp(path, "-")) continue;
        if (to_stdout) return fail(error, "-o -: it was given twice; once is enough");
        if (several) return fail(error, "-o -: the standard output takes one song; name a file for more");
        to_stdout = true;
    }
    if (call->settings.live && several) return fail(error, "--live: it follows one song of one model");
    if (call->settings.live && to_stdout) return fail(error, "--live: it writes to the standard output, as -o - does");
    if (call->page && call->settings.songs * (call->models.n ? call->models.n : 1) > 256) {
        return fail(error, "-n %lld: an .html shows 256 songs at most", (long long)call->settings.songs);
    }
    call->report = to_stdout || call->settings.live ? stderr : stdout;
    if (!call->outputs.n) call->outputs.list[call->outputs.n++] = "song.mid";
    return true;
}

// False, and a sentence, where an argument is wrong.
static bool parse_call(Call *call, Flags *f, int argc, char **argv, char *error) {
    Settings *s = &call->settings;
    const double many = 1e6;
    flag_texts(f, "", "MODEL", &call->models, MAX_MODELS,
               "what a trainer saved; several to compare [out/gpt/model.safetensors, else out/lstm/model.safetensors]");
    flag_texts(
        f, "o", "FILE", &call->outputs, MAX_TEXTS,
        "write FILE: .mid is music, .wav sound, .html a page that shows and plays all songs, .svg a piano roll, - "
        "the .mid to the standard output; may be given several times [song.mid]");
    flag_whole(f, "n", &s->songs, 1, 1, 10000,
               "N songs of each model, each with the next seed, as FILE-1.mid, FILE-2.mid, ...");
    Flag *seed = flag_seed(f, &s->seed, "for the same song again [a fresh one, which is printed]");
    flag_whole(f, "tokens", &s->tokens, 0, 1, many,
               "at most N new tokens, about a third as many notes [1024, or no limit with --bars or --seconds]");
    flag_whole(f, "bars", &s->bars, 0, 1, 1e5, "stop at the bar line after N whole new bars");
    flag_number(f, "seconds", &s->seconds, 0, "(0, 100000]",
                "stop at the first bar line after F seconds of new music [no limit]");
    flag_number(f, "temperature", &s->filter.temperature, 1, "[0, 100]",
                "below 1 safer, above 1 wilder, 0 always the likeliest token");
    flag_whole(f, "top-k", &s->filter.top_k, 0, 0, MIDI_TOKENS, "only the N likeliest tokens [0: all]");
    flag_number(f, "top-p", &s->filter.top_p, 1, "(0, 1]",
                "only the likeliest tokens that together have F of the chance [1: all]");
    flag_number(f, "min-p", &s->filter.min_p, 0, "[0, 1]",
                "only tokens at least F times as likely as the likeliest [0: all]");
    flag_text(f, "scale", "NAME", &s->scale, NULL, "new notes only from a scale: C-major, F#-minor, Bb-blues, ...");
    flag_text(f, "lowest", "KEY", &s->lowest, NULL, "no new note below: C3, F#2, 48");
    flag_text(f, "highest", "KEY", &s->highest, NULL, "no new note above");
    flag_text(f, "prime", "FILE", &s->prime_path, NULL, "go on from the beginning of this MIDI file");
    flag_whole(f, "prime-tokens", &s->prime_tokens, 256, 1, many, "its first N tokens");
    flag_switch(f, "no-prime", &s->no_prime, "leave the prime out of what is written");
    flag_switch(f, "live", &s->live,
                "write each note and bar line as text when its time comes, until the end or Ctrl-C; files after that");
    flag_text(f, "weights", "TYPE", &call->weights, "float32", "how weights are held; smaller is faster")->choices =
        "float32|bf16|int8";
    call->context = flag_whole(f, "context", &s->context, 1024, 1, 65536,
                               "a Transformer's token looks back on the last N; an LSTM's state carries all");
    call->bpm = flag_number(f, "bpm", &s->bpm, 120, "[4, 1000]", "quarters per minute [the prime's, else 120]");
    flag_whole(f, "threads", &s->threads, 0, 1, 1024, "that share the songs of -n; changes no byte [all cores]");
    flag_text(f, "eval", "DATASET", &call->dataset, NULL,
              "no song: the model's mean loss on this test.safetensors, as the trainers' --eval");
    flag_whole(f, "eval-stride", &call->stride, 64, 1, 1e15, "of every Nth window of 256; 1: all");
    flag_switch(f, "bench", &call->bench,
                "no song: time a token of -n songs (a Transformer's at contexts 256 and 1,024) against reading memory, "
                "one core");
    if (!flags_parse(f, argc, argv, error)) return false;
    if (!parse_outputs(call, error) || !parse_pitches(s, error)) return false;
    if (s->no_prime && !s->prime_path) return fail(error, "--no-prime: it goes with --prime FILE");
    if (call->bench && call->dataset) return fail(error, "--bench and --eval exclude each other; give one of them");
    if (call->bench && s->songs > MAX_ROOMS) {
        return fail(error, "-n %lld: --bench takes at most %d songs", (long long)s->songs, MAX_ROOMS);
    }
    if (!s->tokens && !s->bars && !(s->seconds > 0)) s->tokens = 1024;
    if (!seed->given) s->seed = fresh_seed();
    return true;
}

static void print_help(const Flags *flags) {
    printf("usage: sample_music [MODEL ...] [-o FILE ...] [flags]\n\n"
           "Writes new piano music with trained models, or goes on with yours.\n\n");
    flags_print(flags);
    printf("\nGood starting points: --temperature 0.9, --top-p 0.95 or --min-p 0.05.\n"
           "Ctrl-C ends each song in the making at its last bar line, begins no other, and writes what was made;\n"
           "a second one ends the program at once.\n"
           "Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted (0 with --live, which that ends).\n");
}

// ---- the prime

static bool on_grid(int64_t tick, int division) { return tick * 4 % division == 0; }

// Says how many notes, and so on, if any.
static void tell(FILE *out, size_t count, const char *one, const char *several) {
    if (count) fprintf(out, "; %zu %s", count, count == 1 ? one : several);
}

// What of the file is in the tokens and what is not.
static void tell_prime(const Settings *settings, const midi_song *song, const midi_report *report, size_t all,
                       FILE *out) {
    size_t moved = 0, drums = 0;
    bool loudness = false;
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        moved += !on_grid(note->start, song->division) || !on_grid(note->end, song->division);
        drums += note->channel == 9;
        loudness = loudness || note->velocity != song->notes[0].velocity;
    }
    fprintf(out, "prime %s: the first %zu of %zu tokens, at %g quarters a minute", settings->prime_path,
            settings->n_prime, all, settings->bpm);
    tell(out, report->out_of_range, "note outside the piano's range dropped",
         "notes outside the piano's range dropped");
    tell(out, report->vanished, "note too short for 16ths dropped", "notes too short for 16ths dropped");
    tell(out, moved, "note moved to the grid of 16ths", "notes moved to the grid of 16ths");
    tell(out, report->split, "note longer than two bars struck again", "notes longer than two bars struck again");
    tell(out, drums, "drum note played as a key", "drum notes played as keys");
    tell(out, song->open_notes, "note that was never ended, ended with its track",
         "notes that were never ended, ended with their track");
    if (song->n_tempos > 1) fprintf(out, "; %zu tempos become one", song->n_tempos);
    if (loudness) fprintf(out, "; all notes become equally loud");
    if (report->assumed_meter) fprintf(out, "; no time signature, read as 4/4");
    fprintf(out, "\n");
}

// The first tokens of the prime, and its tempo if the caller gave none.
static bool read_prime(Settings *settings, bool own_bpm, FILE *out, char *error) {
    midi_song song;
    midi_error problem;
    midi_report report;
    const char *path = settings->prime_path;
    if (!midi_read_file(&song, path, (size_t)64 << 20, &problem)) {
        return fail(error, "--prime %s: %s", path, problem.text);
    }
    int ok = midi_encode(&song, &settings->prime, &settings->n_prime, &report, &problem);
    if (!ok) fail(error, "--prime %s: %s", path, problem.text);
    if (ok && !report.notes) {
        ok = fail(error, "--prime %s: has no notes of a piano; give a MIDI file that has some", path);
    }
    const size_t all = settings->n_prime;
    if (ok && all > (size_t)settings->prime_tokens) settings->n_prime = (size_t)settings->prime_tokens;
    const midi_tempo *first = NULL; // in time
    for (size_t i = 0; i < song.n_tempos; i++) {
        if (!first || song.tempos[i].tick < first->tick) first = &song.tempos[i];
    }
    const double bpm = first && first->us_per_quarter ? 60e6 / first->us_per_quarter : 0;
    if (!own_bpm && bpm >= 4 && bpm <= 1000) settings->bpm = bpm;
    if (ok) tell_prime(settings, &song, &report, all, out);
    midi_free(&song);
    return ok;
}

// ---- the program

static bool find_model(Call *call, char *error) {
    static const char *const usual[] = {"out/gpt/model.safetensors", "out/lstm/model.safetensors"};
    for (int i = 0; i < 2 && !call->models.n; i++) {
        if (!access(usual[i], F_OK)) call->models.list[call->models.n++] = usual[i];
    }
    return call->models.n ||
           fail(error, "%s: there is no such model yet; train one with ./train_gpt_music, or name a model's file",
                usual[0]);
}

static bool load_models(const Call *call, Model *models, char *error) {
    Precision precision = FLOAT32;
    for (int k = 0; k < 3; k++) {
        if (!strcmp(call->weights, precision_names[k])) precision = (Precision)k;
    }
    for (int k = 0; k < call->models.n; k++) {
        if (!model_load(&models[k], call->models.list[k], precision, error)) return false;
    }
    return true;
}

static void interrupt(int number) { // a first signal ends the songs, a second one the program
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupted = 1;
}

// As the trainers do, also where a shell had a job in the background ignore Ctrl-C.
static void catch_signals(bool live) {
    struct sigaction action = {0};
    action.sa_handler = interrupt;
    action.sa_flags = live ? 0 : SA_RESTART; // writing goes on, but not to a reader that stands still
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (live) signal(SIGPIPE, SIG_IGN); // a reader that goes away ends the song, too
}

// What is asked for, once the models are there.
static bool run_call(Call *call, Model *models, char *error) {
    Settings *settings = &call->settings;
    bool ok = true;
    for (int k = 0; k < call->models.n && (call->bench || call->dataset); k++) {
        const Model *m = &models[k];
        if (call->dataset) {
            ok = ok && evaluate(call, m, error);
        } else {
            ok = ok && bench(m, 256, (int)settings->songs, error) &&
                 (m->kind == LSTM || bench(m, 1024, (int)settings->songs, error));
        }
    }
    if (call->bench || call->dataset) return ok;
    if (settings->prime_path && !read_prime(settings, call->bpm->given, call->report, error)) return false;
    if (!outputs_have_folders(&call->outputs, error)) return false;
    catch_signals(settings->live);
    return make_all(call, models, call->models.n, error);
}

static int sample_main(int argc, char **argv) {
    Call call = {0};
    Flags flags = {0};
    static Model models[MAX_MODELS];
    char error[ERROR_SIZE] = "";
    int status = 0;
    bool any_context = false;
    interrupted = 0;
    program_start();
    if (!parse_call(&call, &flags, argc, argv, error)) {
        status = 2;
    } else if (flags.help) {
        print_help(&flags);
    } else if (flags.version) {
        printf("sample_music %s\n", MUSIC_VERSION);
    } else if (!find_model(&call, error) || !load_models(&call, models, error)) {
        status = 1;
    } else {
        for (int k = 0; k < call.models.n; k++) any_context = any_context || models[k].kind == GPT;
        if (call.context->given && !any_context) {
            status = 2;
            fail(error, "--context %lld: %s is an LSTM, whose state carries all that came before; leave the flag out",
                 (long long)call.settings.context, models[0].path);
        } else {
            status = !run_call(&call, models, error);
            if (!status && call.shortened && !call.settings.live) status = INTERRUPTED;
        }
    }
    for (int k = 0; k < MAX_MODELS; k++) model_free(&models[k]);
    MIDI_FREE(call.settings.prime);
    return program_end("sample_music", status, error);
}

#ifndef TESTING
int main(int argc, char **argv) { return sample_main(argc, argv); }
#endif
