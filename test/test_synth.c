// The built-in piano: the file it writes, pitch, dynamics, timing, level, the absence of clicks, and what it refuses.
// `test_synth bench` prints how many times faster than the music it is, and checks nothing.
#include "base/safetensors.h"
#include "check.h"
#include "sample/synth.h"

#include <time.h>

enum { RATE = SYNTH_RATE };

typedef struct {
    TextBuffer file;
    const int16_t *at; // [frames][2]
    int frames;
} Sound;

static Sound play(const SynthNote *notes, size_t n, double seconds) {
    Sound sound = {{NULL, 0, 0, false}, NULL, 0};
    char error[ERROR_SIZE] = "";
    if (!synth_wav(&sound.file, notes, n, seconds, error)) {
        CHECK(false, "%s", error);
        exit(check_report("synth"));
    }
    sound.frames = (int)((sound.file.size - 44) / 4);
    sound.at = (const int16_t *)(sound.file.bytes + 44);
    return sound;
}

static double sample(const Sound *sound, int i) { // the mean of both channels, full scale 1; 0 outside
    return i < 0 || i >= sound->frames ? 0 : (sound->at[2 * i] + sound->at[2 * i + 1]) / 65536.0;
}

static double bend(const Sound *sound, int i) { // the second difference
    return sample(sound, i - 1) - 2 * sample(sound, i) + sample(sound, i + 1);
}

static double rms(const Sound *sound, double from, double to) {
    double sum = 0;
    for (int i = (int)(from * RATE); i < (int)(to * RATE); i++) sum += sample(sound, i) * sample(sound, i);
    return sqrt(sum / ((to - from) * RATE));
}

static double largest(const Sound *sound, int from, int to, double (*value)(const Sound *, int)) {
    double most = 0;
    for (int i = from; i < to; i++) raise_to(&most, fabs(value(sound, i)));
    return most;
}

static double decibels(double ratio) { return 20 * log10(fmax(ratio, 1e-9)); }

static uint32_t number(const char *at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint32_t)(uint8_t)at[i] << 8 * i;
    return value;
}

static void check_file(void) {
    const SynthNote note = {0.25, 0.5, 60, 0.6};
    Sound sound = play(&note, 1, 1.5);
    const char *at = sound.file.bytes;
    CHECK(sound.file.size == 44 + 66150 * 4, "1.5 s in %zu bytes", sound.file.size);
    CHECK(!memcmp(at, "RIFF", 4) && number(at + 4, 4) == sound.file.size - 8, "RIFF and its size");
    CHECK(!memcmp(at + 8, "WAVEfmt ", 8) && number(at + 16, 4) == 16 && number(at + 20, 2) == 1, "PCM");
    CHECK(number(at + 22, 2) == 2 && number(at + 24, 4) == 44100 && number(at + 28, 4) == 176400, "stereo, 44.1 kHz");
    CHECK(number(at + 32, 2) == 4 && number(at + 34, 2) == 16, "16 bit");
    CHECK(!memcmp(at + 36, "data", 4) && number(at + 40, 4) == sound.file.size - 44, "data and its size");
    Sound again = play(&note, 1, 1.5), whole = play(&note, 1, 0), none = play(NULL, 0, 0), rest = play(NULL, 0, 0.5);
    CHECK(again.file.size == sound.file.size && !memcmp(again.file.bytes, at, sound.file.size), "the same bytes again");
    CHECK(whole.frames == (int)(2.75 * RATE), "2 s behind the last note: %d frames", whole.frames);
    CHECK(none.file.size == 44 && rest.frames == RATE / 2, "no notes: %zu bytes, %d frames", none.file.size,
          rest.frames);
    CHECK(largest(&rest, 0, rest.frames, sample) == 0, "no notes make no sound");
    CHECK(largest(&sound, 0, RATE / 4 - 64, sample) == 0, "nothing is heard before the note");
    CHECK(rms(&sound, 0.25, 0.5) > 0.01, "the note is heard");
    CHECK(largest(&sound, sound.frames - 8, sound.frames, sample) < 4e-3, "the end is faded out");
    char error[ERROR_SIZE];
    CHECK(synth_wav(&again.file, &note, 1, 1.5, error) && again.file.size == 2 * sound.file.size &&
              !memcmp(again.file.bytes, at, sound.file.size) &&
              !memcmp(again.file.bytes + sound.file.size, at, sound.file.size),
          "a file is appended to what is there");
    const SynthNote late[] = {note, {1.5, 1, 62, 1}, {1e300, 1e308, 62, 1}, {0.3, 1, 64, 0}};
    Sound same = play(late, 4, 1.5);
    CHECK(!memcmp(same.file.bytes, at, sound.file.size), "late notes and those of velocity 0 make no difference");
    Sound far = play(&note, 1, 12);
    CHECK(largest(&far, 11 * RATE, far.frames, sample) == 0, "long after a note there are zeros");
    free(sound.file.bytes), free(again.file.bytes), free(whole.file.bytes), free(none.file.bytes);
    free(rest.file.bytes), free(same.file.bytes), free(far.file.bytes);
}

// Amplitude of a frequency in half a second of sound from a tenth of a second on, seen through a Hann window.
static double tone(const Sound *sound, double frequency) {
    const double pi = 3.14159265358979324;
    const int n = RATE / 2, from = RATE / 10;
    double re = 0, im = 0;
    for (int i = 0; i < n; i++) {
        const double x = sample(sound, from + i) * (1 - cos(2 * pi * i / n));
        re += x * cos(2 * pi * frequency * i / RATE);
        im += x * sin(2 * pi * frequency * i / RATE);
    }
    return sqrt(re * re + im * im);
}

static void check_pitch(void) {
    static const int keys[] = {36, 45, 57, 60, 69, 81, 93, 105};
    for (int k = 0; k < 8; k++) {
        const SynthNote note = {0, 1, keys[k], 0.6};
        const double exact = 440 * pow(2, (keys[k] - 69) / 12.0);
        Sound sound = play(&note, 1, 0.8);
        double best = 0, cents = 0;
        for (double c = -12; c <= 12; c += 0.5) {
            const double size = tone(&sound, exact * pow(2, c / 1200));
            if (size > best) best = size, cents = c;
        }
        CHECK(fabs(cents) <= 3, "key %d is %.1f cents off", keys[k], cents);
        free(sound.file.bytes);
    }
}

static void check_dynamics(void) {
    static const int keys[] = {30, 48, 60, 72, 84, 96};
    for (int k = 0; k < 6; k++) {
        double loud[3], bright[3];
        for (int v = 0; v < 3; v++) {
            const SynthNote note = {0, 0.5, keys[k], 0.25 * (v + 1)};
            Sound sound = play(&note, 1, 0.6);
            double sum = 0;
            for (int i = 1; i < RATE / 4; i++) sum += pow(sample(&sound, i) - sample(&sound, i - 1), 2);
            loud[v] = rms(&sound, 0, 0.25);
            bright[v] = sqrt(sum / RATE * 4) / loud[v];
            free(sound.file.bytes);
        }
        CHECK(loud[1] > 1.8 * loud[0] && loud[2] > 1.3 * loud[1], "key %d: RMS %g %g %g", keys[k], loud[0], loud[1],
              loud[2]);
        CHECK(bright[1] > bright[0] && bright[2] > bright[1], "key %d: brightness %g %g %g", keys[k], bright[0],
              bright[1], bright[2]);
    }
    for (int k = 0; k < 128; k += k < 126 ? 6 : 1) { // every key from nearly nothing to its loudest
        double before = 0;
        for (int v = 0; v < 4; v++) {
            const SynthNote note = {0, 0.1, k, 0.02 + 0.98 * v / 3};
            Sound sound = play(&note, 1, 0.2);
            const double loud = rms(&sound, 0, 0.1);
            CHECK(loud > (v ? 1.2 * before : 0) && loud < 0.5, "key %d, velocity %.2f: RMS %g after %g", k,
                  note.velocity, loud, before);
            before = loud;
            free(sound.file.bytes);
        }
    }
    const SynthNote damped = {0, 0.5, 60, 0.8}, free_string = {0, 0.1, 92, 0.8};
    Sound sound = play(&damped, 1, 1.5);
    const double held = decibels(rms(&sound, 0.4, 0.5) / rms(&sound, 0, 0.1));
    const double ended = decibels(rms(&sound, 0.8, 0.9) / rms(&sound, 0.4, 0.5));
    CHECK(held > -12 && ended < -22, "key 60: %.1f dB after 0.4 s, then %.1f dB by the damper", held, ended);
    Sound rings = play(&free_string, 1, 1.5);
    const double undamped = decibels(rms(&rings, 0.4, 0.5) / rms(&rings, 0, 0.1));
    CHECK(undamped > -28, "key 92 rings on without a damper: %.1f dB after 0.4 s", undamped);
    free(sound.file.bytes), free(rings.file.bytes);
}

static void check_level(void) {
    SynthNote notes[400];
    for (int i = 0; i < 40; i++) notes[i] = (SynthNote){0.5, 1, 40 + i, 1};
    Sound sound = play(notes, 40, 2);
    int most = 0;
    for (int i = 0; i < 2 * sound.frames; i++) most = abs(sound.at[i]) > most ? abs(sound.at[i]) : most;
    CHECK(most > 20000 && most <= (int)(synth_ceiling * 32767) + 2, "40 keys at once: the largest sample is %d", most);
    free(sound.file.bytes);

    for (int i = 0; i < 400; i++) { // 20 s of single notes, then 20 s of chords of eight
        const bool thin = i < 40;
        const int chord = thin ? i : 40 + (i - 40) / 8;
        notes[i] = (SynthNote){chord * 0.5, 0.45, 48 + (chord * 5 + (thin ? 0 : (i - 40) % 8 * 4)) % 36, 0.6};
    }
    sound = play(notes, 320 + 40, 0);
    const double more = decibels(rms(&sound, 24, 38) / rms(&sound, 2, 16));
    CHECK(more > 1 && more < 7, "eight notes are %.1f dB louder than one", more); // 9 dB without the density's gain
    free(sound.file.bytes);

    for (int i = 0; i < 200; i++) notes[i] = (SynthNote){0.1 * i, 0.1, 50, 0.6};
    sound = play(notes, 200, 0);
    const double built = decibels(rms(&sound, 18, 20) / rms(&sound, 2, 4));
    CHECK(fabs(built) < 1.5, "a key that is struck ten times a second stays as it is: %.1f dB", built);
    free(sound.file.bytes);
}

// How much more the sound bends within 3 ms of a moment than in the 40 ms behind (at a start) or before it.
static double click(const Sound *sound, double seconds, bool start) {
    const int at = (int)(seconds * RATE);
    const double here = largest(sound, at - 130, at + 176, bend);
    return here / (start ? largest(sound, at + 200, at + 1800, bend) : largest(sound, at - 1800, at - 200, bend));
}

static void check_clicks(void) {
    static const double beats[] = {0.05, 0.1, 0.125, 0.25};
    SynthNote notes[64];
    double at = 0.1, worst = 0;
    for (int i = 0; i < 40; i++) { // repeats without a gap
        const double length = beats[(i * 7 + i / 5) & 3];
        notes[i] = (SynthNote){at, length, 41 + i / 20 * 24, (20 + i * 37 % 108) / 127.0};
        at += length;
    }
    for (int i = 40; i < 64; i++) notes[i] = (SynthNote){at += 0.5, 0.3, 22 + 4 * (i - 40), 0.8};
    Sound sound = play(notes, 64, 0);
    for (int i = 0; i < 64; i++) {
        raise_to(&worst, click(&sound, notes[i].start, true));
        if (i >= 40) raise_to(&worst, click(&sound, notes[i].start + notes[i].seconds, false));
    }
    CHECK(worst < 2, "a bend %.2f times that of the sound around it", worst);
    int16_t *cut = (int16_t *)(sound.file.bytes + 44); // this is what a click would look like
    memset(cut + 2 * (int)((notes[42].start + 0.2) * RATE), 0, 4000);
    CHECK(click(&sound, notes[42].start + 0.2, false) > 2, "a click is found: %.2f",
          click(&sound, notes[42].start + 0.2, false));
    free(sound.file.bytes);
}

static void check_times(void) {
    static const int steps[] = {0, 2, 4, 5, 7, 9, 11, 12};
    SynthNote notes[24], shuffled[24];
    for (int i = 0; i < 24; i++) {
        notes[i] = (SynthNote){0.2 + 0.3137 * i, 0.12, 48 + 12 * (i / 8) + steps[i % 8], 0.5 + 0.05 * (i % 3)};
        shuffled[i * 7 % 24] = notes[i];
    }
    Sound sound = play(notes, 24, 0), other = play(shuffled, 24, 0);
    CHECK(other.file.size == sound.file.size && !memcmp(other.file.bytes, sound.file.bytes, sound.file.size),
          "the order of the notes makes no difference");
    double worst = 0;
    for (int i = 0; i < 24; i++) {
        const int from = (int)((notes[i].start - 0.04) * RATE), to = from + RATE / 10;
        const double threshold = 0.25 * largest(&sound, from, to, bend);
        int onset = from;
        while (fabs(bend(&sound, onset)) < threshold) onset++;
        raise_to(&worst, fabs((double)onset / RATE - notes[i].start));
    }
    CHECK(worst < 0.005, "an onset is %.1f ms off", 1000 * worst);
    free(sound.file.bytes), free(other.file.bytes);
}

static void check_refusals(void) {
    const double nan = NAN, inf = HUGE_VAL;
    const struct {
        SynthNote note;
        double seconds;
        const char *says;
    } cases[] = {{{nan, 1, 60, 1}, 0, "begins at nan"}, {{-0.1, 1, 60, 1}, 0, "begins at -0.1"},
                 {{inf, 1, 60, 1}, 0, "begins at inf"}, {{0, nan, 60, 1}, 0, "lasts nan"},
                 {{0, -1, 60, 1}, 0, "lasts -1"},       {{0, inf, 60, 1}, 0, "lasts inf"},
                 {{0, 1, -1, 1}, 0, "key -1"},          {{0, 1, 128, 1}, 0, "key 128"},
                 {{0, 1, 60, nan}, 0, "velocity nan"},  {{0, 1, 60, 1.01}, 0, "velocity 1.01"},
                 {{0, 1, 60, -1}, 0, "velocity -1"},    {{0, 1, 60, 1}, nan, "nan seconds"},
                 {{0, 1, 60, 1}, -1, "-1 seconds"},     {{0, 1, 60, 1}, 25000, "4 GiB"},
                 {{1e5, 1, 60, 1}, 0, "4 GiB"},         {{1e308, 1e308, 60, 1}, 0, "4 GiB"},
                 {{0, 1, 60, 1}, inf, "4 GiB"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const SynthNote notes[2] = {{0, 1, 60, 0.5}, cases[i].note};
        TextBuffer out = {NULL, 0, 0, false};
        char error[ERROR_SIZE] = "";
        text_add(&out, "kept", 4);
        const bool made = synth_wav(&out, notes, 2, cases[i].seconds, error);
        CHECK(!made && strstr(error, cases[i].says), "case %zu says '%s'", i, error);
        CHECK(out.size == 4 && !memcmp(out.bytes, "kept", 4), "case %zu leaves the buffer alone", i);
        free(out.bytes);
    }
}

// Any notes: all keys, no length at all or overlong, thousands at one time.
static void check_crowd(size_t n) {
    SynthNote *notes = (SynthNote *)malloc(n * sizeof *notes);
    for (size_t i = 0; i < n; i++) {
        const Philox4 words = philox(philox_key(1, PHILOX_BENCH, 0), (uint32_t)i, 0, 0, 0);
        notes[i] = (SynthNote){(words.x[0] >> 22) * 1e-3, words.x[1] & 1 ? 0 : (words.x[1] >> 20) * 1e-2,
                               (int)(words.x[2] & 127), words.x[3] / 4294967296.0};
    }
    Sound sound = play(notes, n, 1.5);
    int most = 0;
    for (int i = 0; i < 2 * sound.frames; i++) most = abs(sound.at[i]) > most ? abs(sound.at[i]) : most;
    CHECK(most > 10000 && most <= (int)(synth_ceiling * 32767) + 2, "%zu notes: the largest sample is %d", n, most);
    free(sound.file.bytes);
    free(notes);
}

static int bench(void) {
    enum { BARS = 60, VOICES = 6 };
    SynthNote notes[BARS * 8 * VOICES];
    for (int i = 0; i < BARS * 8 * VOICES; i++) { // six voices of quavers at 120 quarters a minute
        const uint32_t draw = philox(philox_key(1, PHILOX_BENCH, 0), (uint32_t)i, 0, 0, 0).x[0];
        notes[i] = (SynthNote){i / VOICES * 0.25, 0.25, 36 + i % VOICES * 8 + (int)(draw % 8), 0.63};
    }
    double best = HUGE_VAL, seconds = 0;
    for (int run = 0; run < 5; run++) {
        const clock_t began = clock();
        Sound sound = play(notes, sizeof notes / sizeof *notes, 0);
        best = fmin(best, (double)(clock() - began) / CLOCKS_PER_SEC);
        seconds = sound.frames / (double)RATE;
        free(sound.file.bytes);
    }
    printf("%.0f s of %d voices in %.3f s: %.0f times real time\n", seconds, VOICES, best, seconds / best);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "bench")) return bench();
    check_file();
    check_pitch();
    check_dynamics();
    check_level();
    check_clicks();
    check_times();
    check_refusals();
    check_crowd(10000);
    return check_report("synth");
}
