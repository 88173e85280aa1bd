// Primes of the sampler: what of a MIDI file goes on in a song, its tempos, its time signatures, its music without the
// silence around it, and what is said of the rest. Each file is made here, and the song is read back.
#define TESTING
#include "sample_music.c"

#include "sampler.h"

static midi_song score, out; // what a file is made of; what the last song has
static midi_error problem;

enum { Q = 480 }; // ticks of a quarter

static void begin(void) {
    midi_free(&score);
    score.format = 1;
    score.division = Q;
}

static void note(int64_t start, int64_t end, int key) { midi_add_note(&score, start, end, key, 80, 0, 0); }

static void quarters(int64_t start, int n) { // C D E F ..., one after the other
    for (int i = 0; i < n; i++) note(start + i * Q, start + (i + 1) * Q, 60 + i % 12);
}

static void save(const char *name) {
    uint8_t *bytes;
    size_t size;
    CHECK(midi_write(&score, &bytes, &size, &problem), "%s", problem.text);
    CHECK(write_file_atomically(in_folder(name), bytes, size, error), "%s", error);
    MIDI_FREE(bytes);
}

// A song that goes on from the score, with these flags; the status.
static int sing(const char *flags) {
    midi_free(&out);
    save("prime.mid");
    const int status = call("MODEL --seed 1 --tokens 30 --prime @/prime.mid -o @/out.mid %s", flags);
    if (status) return status;
    CHECK(midi_read_file(&out, in_folder("out.mid"), 1 << 20, &problem), "%s", problem.text);
    return 0;
}

static void says(const char *words) { CHECK(strstr(said, words), "'%s' is not said: %s", words, said); }

static void says_not(const char *words) { CHECK(!strstr(said, words), "'%s' is said: %s", words, said); }

typedef struct {
    int64_t tick;
    int us;
} Tempo;

static void has_tempos(int line, int n, const Tempo *tempos) {
    bool right = out.n_tempos == (size_t)n;
    for (int i = 0; right && i < n; i++) {
        right = out.tempos[i].tick == tempos[i].tick && out.tempos[i].us_per_quarter == tempos[i].us;
    }
    CHECK(right, "line %d: %zu tempos, the first %d at %lld; they should be %d", line, out.n_tempos,
          out.n_tempos ? out.tempos[0].us_per_quarter : 0, (long long)(out.n_tempos ? out.tempos[0].tick : 0), n);
}

#define TEMPOS(...) has_tempos(__LINE__, sizeof((Tempo[]){__VA_ARGS__}) / sizeof(Tempo), (const Tempo[]){__VA_ARGS__})

static void check_tempos(void) {
    // The last of several at one tick, on two tracks too.
    begin();
    quarters(0, 8);
    midi_add_tempo(&score, 0, 1000000, 0), midi_add_tempo(&score, 0, 333333, 0);
    CHECK(sing("") == 0, "%s", said);
    TEMPOS({0, 333333});
    says("at 180 quarters a minute; no time");
    midi_add_tempo(&score, 0, 600000, 1);
    CHECK(sing("") == 0, "%s", said);
    TEMPOS({0, 600000});

    // That in force at the first note; each change after it, and the last goes on.
    begin();
    quarters(Q, 8);
    midi_add_tempo(&score, 6 * Q, 400000, 0), midi_add_tempo(&score, 0, 1000000, 0);
    midi_add_tempo(&score, Q / 2, 750000, 0), midi_add_tempo(&score, 3 * Q + 7, 500000, 0);
    midi_add_tempo(&score, 8 * Q + 240, 300000, 0), midi_add_tempo(&score, 40 * Q, 1000000, 0);
    CHECK(sing("") == 0, "%s", said);
    TEMPOS({0, 750000}, {3 * Q + 7, 500000}, {6 * Q, 400000}, {8 * Q + 240, 300000});
    says("at 80 quarters a minute; 3 changes of tempo, the last to 200;");
    CHECK(sing("--bpm 90") == 0, "%s", said);
    TEMPOS({0, 666667});
    says("at 90 quarters a minute; its 4 tempos become one;");
    CHECK(sing("--prime-tokens 12") == 0, "%s", said); // three quarters, a bar line and the fourth at 4 Q
    TEMPOS({0, 750000}, {3 * Q + 7, 500000});
    CHECK(sing("--no-prime") == 0, "%s", said);
    TEMPOS({0, 300000});

    // Another division, and no tempo: 120.
    begin();
    score.division = 96;
    note(0, 96, 60), note(96, 192, 62), note(192, 288, 64);
    midi_add_tempo(&score, 96, 700000, 0);
    CHECK(sing("") == 0, "%s", said);
    TEMPOS({0, 500000}, {Q, 700000});

    // Beyond what --bpm takes: the nearest.
    begin();
    quarters(0, 4);
    midi_add_tempo(&score, 0, 50000, 0), midi_add_tempo(&score, Q, 0, 0), midi_add_tempo(&score, 2 * Q, 16000000, 0);
    CHECK(sing("") == 0, "%s", said);
    TEMPOS({0, 60000}, {Q, 60000}, {2 * Q, 15000000});
    says("at 1000 quarters a minute; 2 changes of tempo, the last to 4; 3 tempos outside 4 to 1000");

    // As people write it.
    static const struct {
        int us;
        const char *words;
    } written[] = {{952380, "at 63 quarters"},
                   {333333, "at 180 quarters"},
                   {882353, "at 68 quarters"},
                   {700000, "at 85.714 quarters"},
                   {480000, "at 125 quarters"}};
    for (size_t i = 0; i < sizeof written / sizeof *written; i++) {
        begin();
        quarters(0, 4);
        midi_add_tempo(&score, 0, written[i].us, 0);
        CHECK(sing("") == 0, "%s", said);
        says(written[i].words);
        TEMPOS({0, written[i].us});
    }
}

// Seconds are those of the tempos: in what is said, in --live, and where --seconds ends.
static void check_times(void) {
    begin();
    quarters(0, 4);
    for (int i = 0; i < 4; i++) midi_add_tempo(&score, i * Q, 60000 + 20000 * i, 0);
    CHECK(sing("--live") == 0, "%s", said);
    says("    0.000  note  C4    60  0.060  prime\n");
    says("    0.060  note  C#4   61  0.080  prime\n");
    says("    0.140  note  D4    62  0.100  prime\n");
    says("    0.240  note  D#4   63  0.120  prime\n");
    begin();
    quarters(0, 4);
    midi_add_tempo(&score, 0, 15000000, 0), midi_add_tempo(&score, 2 * Q, 60000, 0);
    CHECK(sing("--tokens 3000 --seconds 3 -o @/out.svg -o @/out.wav -o @/out.html") == 0, "%s", said);
    double seconds = 0, end = 0;
    sscanf(strstr(said, " bar") ? strstr(said, " bar") + 4 : "", "%*[s ]%lf s", &seconds);
    for (size_t i = 0; i < out.n_notes; i++) end = fmax(end, (double)out.notes[i].end);
    CHECK(seconds > 33 && seconds < 36 && fabs(seconds - 30 - (end / Q - 2) * 0.06) < 1.5, "%g s: %s", seconds, said);
}

static void check_meters(void) {
    begin();
    quarters(0, 9); // three bars
    midi_add_meter(&score, 0, 6, 3, 0);
    CHECK(sing("") == 0, "%s", said);
    CHECK(out.n_meters && out.meters[0].numerator == 6 && out.meters[0].exponent == 3, "6/8 does not stay 6/8");
    CHECK(out.n_meters < 2 || out.meters[1].tick >= 6 * Q, "6/8 does not stay in the prime");

    begin(); // 2/2, a bar that 3/8 cuts short, and 3/8
    quarters(0, 9);
    midi_add_meter(&score, 0, 2, 1, 0), midi_add_meter(&score, 6 * Q, 3, 3, 0);
    CHECK(sing("") == 0, "%s", said);
    CHECK(out.n_meters >= 2 && out.meters[0].numerator == 2 && out.meters[0].exponent == 1 &&
              out.meters[1].tick == 6 * Q && out.meters[1].numerator == 3 && out.meters[1].exponent == 3,
          "2/2 and 3/8 do not stay");
}

// The same notes, with or without silence around them.
static void check_silence(void) {
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("prime.mid"));
    for (int meter = 0; meter < 2; meter++) { // 4/4; 4/2, of which each bar takes two bar lines of tokens
        const int bar = (meter ? 8 : 4) * Q;
        Prime primes[3];
        for (int k = 0; k < 3; k++) {
            begin();
            if (meter) midi_add_meter(&score, 0, 4, 1, 0);
            quarters(k ? 7 * bar + Q : Q, 12);
            if (k == 2) midi_add_tempo(&score, 1000 * bar, 500000, 0); // which stretches the piece
            save("prime.mid");
            primes[k] = (Prime){.path = path, .most = 1000};
            CHECK(prime_read(&primes[k], error), "%s", error);
            CHECK(primes[k].n == primes[0].n && !memcmp(primes[k].tokens, primes[0].tokens, primes[0].n),
                  "%d: %zu tokens with silence, %zu without", k, primes[k].n, primes[0].n);
        }
        for (int k = 0; k < 3; k++) prime_free(&primes[k]);
    }

    begin();
    quarters(7 * 4 * Q, 12);
    midi_add_tempo(&score, 0, 600000, 0), midi_add_tempo(&score, 20 * 4 * Q, 600000, 0);
    CHECK(sing("") == 0, "%s", said);
    says("the first 40 of 40 tokens, at 100 quarters a minute; 16 silent bars around it left out;");
    CHECK(out.n_notes && out.notes[0].start == 0, "the first note is not in the first bar");

    // A prime that is cut in a silence has one bar line of it.
    begin();
    quarters(0, 4);
    note(100 * 4 * Q, 101 * 4 * Q, 60);
    CHECK(sing("--prime-tokens 60") == 0, "%s", said);
    says("the first 14 of 215 tokens");
    CHECK(sing("--prime-tokens 14") == 0 && strstr(said, "the first 14 of 215 tokens"), "%s", said);
    CHECK(sing("--prime-tokens 12") == 0 && strstr(said, "the first 12 of 215 tokens"), "%s", said);

    CHECK(sing("--prime-tokens 2") == 1, "%s", said);
    says("prime.mid: its first 2 tokens hold no note; give more --prime-tokens\n");
}

// What is said counts the notes that are used, of all of them.
static void check_counts(void) {
    begin();
    for (int i = 0; i < 16; i++) {
        const int64_t at = i * Q;
        note(at, at + Q - 1, 60);                                       // ends a tick early
        if (i % 2) note(at, at + 30, 64);                               // too short
        if (i % 4 == 0) note(at + 50, at + Q, 67);                      // moved
        if (i % 8 == 0) note(at, at + Q, 20);                           // no key of a piano
        if (i % 8 == 0) note(at, at + 20 * Q, 70);                      // longer than two bars
        if (i % 8 < 3) midi_add_note(&score, at, at + Q, 40, 90, 9, 0); // a drum
    }
    CHECK(sing("") == 0, "%s", said);
    says("; 2 of 38 notes outside the piano's range dropped");
    says("; 8 of 38 notes too short for 16ths dropped (--keep-short keeps them)");
    says("; 4 of 38 notes moved to the grid of 16ths");
    says("; 2 of 38 notes longer than two bars struck again");
    says("; 6 of 38 notes of drums played as keys (--no-drums drops them)");
    // Up to the first note of the eighth beat, at step 28.
    midi_report first;
    midi_count(&score, 28, &first);
    const size_t used = first.notes + first.vanished + first.out_of_range + 1;
    char words[100] = "none";
    for (int n = 3; n < 100 && !strstr(said, words); n++) {
        snprintf(words, sizeof words, "--prime-tokens %d", n);
        CHECK(sing(words) == 0, "%s", said);
        snprintf(words, sizeof words, "; %zu of %zu notes too short", first.vanished, used);
    }
    says(words);
    snprintf(words, sizeof words, "; %zu of %zu notes of drums", first.drums, used);
    says(words);

    CHECK(sing("--keep-short --no-drums") == 0, "%s", said);
    says("; 6 of the file's 38 notes of drums dropped");
    says("; 8 of the file's 38 notes too short for 16ths made as long as one");
    says_not("played as keys");
    CHECK(call("MODEL --keep-short -o @/x.mid") == 2 && call("MODEL --no-drums -o @/x.mid") == 2, "%s", said);

    begin(); // ends that are moved are not said, starts are
    for (int i = 0; i < 8; i++) note(i * Q, i * Q + Q - 1, 60);
    CHECK(sing("") == 0, "%s", said);
    says_not("moved");
    says_not(" of 8 notes");

    begin(); // two tracks in unison
    quarters(0, 8);
    for (int i = 0; i < 8; i++) midi_add_note(&score, i * Q, i * Q + Q / 2, 60 + i, 80, 0, 1);
    CHECK(sing("") == 0, "%s", said);
    says("; 8 of 16 notes the same as another, heard once");

    begin(); // long notes that overlap are not the same
    note(0, 32 * Q, 60), note(8 * Q, 16 * Q, 60), note(0, 16 * Q, 61), note(0, 1, 61);
    CHECK(sing("") == 0, "%s", said);
    says_not("the same");
}

static void check_reasons(void) {
    begin();
    for (int i = 0; i < 8; i++) note(i * Q, i * Q + 30, 60);
    CHECK(sing("") == 1, "%s", said);
    says("none of its notes can be used: 8 too short for the grid of 16ths; --keep-short keeps short notes\n");
    CHECK(sing("--keep-short") == 0, "%s", said);
    CHECK(out.n_notes >= 8 && out.notes[0].end == MIDI_STEP, "short notes are not a 16th long");
    begin();
    for (int i = 0; i < 8; i++) midi_add_note(&score, i * Q, i * Q + Q, 40, 80, 9, 0);
    CHECK(sing("--no-drums") == 1, "%s", said);
    says("none of its notes can be used: 8 dropped with the drums");
    begin();
    midi_add_tempo(&score, 0, 500000, 0);
    CHECK(sing("") == 1, "%s", said);
    says("prime.mid: holds no notes\n");

    // The header announces one track of three.
    begin();
    score.format = 1;
    midi_add_tempo(&score, 0, 500000, 0);
    for (int i = 0; i < 4; i++) midi_add_note(&score, i * Q, i * Q + Q, 60, 80, 0, 1 + i % 2);
    save("three.mid");
    void *bytes;
    size_t size;
    CHECK(read_file(in_folder("three.mid"), &bytes, &size, error), "%s", error);
    ((uint8_t *)bytes)[11] = 1;
    CHECK(write_file_atomically(in_folder("one.mid"), bytes, size, error), "%s", error);
    free(bytes);
    CHECK(call("MODEL --prime @/one.mid -o @/x.mid") == 1, "%s", said);
    says("one.mid: holds no notes: 2 of its tracks not read, because the header announces fewer\n");

    static const uint8_t pedal[] =
        "MThd\0\0\0\6\0\0\0\1\1\340MTrk\0\0\0\30\0\260\100\177\0\220\074\120\203\140\200\074\100"
        "\0\260\100\0\0\377\57";
    uint8_t file[sizeof pedal];
    memcpy(file, pedal, sizeof pedal);
    file[21] = sizeof pedal - 22;
    CHECK(write_file_atomically(in_folder("pedal.mid"), file, sizeof file, error), "%s", error);
    CHECK(call("MODEL --seed 1 --tokens 9 --prime @/pedal.mid -o @/x.mid") == 0, "%s", said);
    says("; the sustain pedal is left out");
    remove(in_folder("x.mid"));

    // A million tokens of bar lines.
    begin();
    note(0, Q, 60), note(500001ll * Q / 4, 500002ll * Q / 4, 60);
    midi_add_meter(&score, 0, 1, 4, 0);
    CHECK(sing("") == 1, "%s", said);
    says(" bar lines alone take more than 1000000 tokens");
    CHECK(!exists("x.mid"), "a prime of no use gives a song");
}

int main(void) {
    check_folder(folder);
    const LstmSizes small = {24, 20, 2, 12, 9};
    snprintf(small_model, sizeof small_model, "%s", in_folder("lstm.safetensors"));
    CHECK(make_lstm(small_model, small, 1), "%s", error);
    check_tempos();
    check_times();
    check_meters();
    check_silence();
    check_counts();
    check_reasons();
    midi_free(&score), midi_free(&out);
    remove_folder();
    return check_report("prime");
}
