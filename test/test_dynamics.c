// How loud notes are: each rule on a song made by hand, what dynamics leave as it is, what a prime keeps, and that
// .mid, .html and .wav have the same velocities.
#define TESTING
#include "sample_music.c"

#include "sampler.h"

typedef struct {
    int step, key, steps;
} Note;

static midi_error problem;

// A song of n notes by step and key, in bars of 16 steps; for song_free().
static Song song_of(const Note *notes, int n) {
    Song song = {.model_name = "hand", .model = "", .tokens = malloc((size_t)(7 * n) + 2000)};
    int line = 0;
    for (int i = 0; i < n; i++) {
        for (; line + 16 <= notes[i].step; line += 16) {
            song.tokens[song.n++] = MIDI_OFFSET + 16;
            song.tokens[song.n++] = MIDI_BAR;
        }
        song.tokens[song.n++] = (uint8_t)(MIDI_OFFSET + notes[i].step - line);
        song.tokens[song.n++] = (uint8_t)(MIDI_PITCH + notes[i].key - MIDI_LOWEST_KEY);
        song.tokens[song.n++] = (uint8_t)(MIDI_DURATION + notes[i].steps - 1);
    }
    Mark tempo = {.value = 500000};
    song_finish(&song, false, &(Marks){.tempos = &tempo, .n_tempos = 1});
    return song;
}

// The velocity of the note of this key at this step; 0: there is none.
static int velocity(const Song *song, int step, int key) {
    for (size_t i = 0; i < song->midi.n_notes; i++) {
        const midi_note *note = &song->midi.notes[i];
        if (note->start == step * MIDI_STEP && note->key == key) return note->velocity;
    }
    return 0;
}

static int lowest(const midi_song *song) {
    int least = 128;
    for (size_t i = 0; i < song->n_notes; i++)
        least = song->notes[i].velocity < least ? song->notes[i].velocity : least;
    return least;
}

static int highest(const midi_song *song) {
    int most = -1;
    for (size_t i = 0; i < song->n_notes; i++) most = song->notes[i].velocity > most ? song->notes[i].velocity : most;
    return most;
}

// Sixteen bars: a melody in halves; below it a bass in wholes and three inner voices in eighths that never change.
enum { BARS = 16, MELODY = 72, BASS = 45 };
static int hymn(Note *notes) {
    int n = 0;
    for (int step = 0; step < 16 * BARS; step += 2) {
        if (step % 16 == 0) notes[n++] = (Note){step, BASS, 16};
        for (int k = 0; k < 3; k++) notes[n++] = (Note){step, 57 + 4 * k, 2};
        if (step % 8 == 0) notes[n++] = (Note){step, MELODY, 8};
    }
    return n;
}

static void check_rules(void) {
    Note notes[800];
    const Prime none = {0};
    Song song = song_of(notes, hymn(notes));
    CHECK(lowest(&song.midi) == 80 && highest(&song.midi) == 80, "notes are not equally loud before");
    song_add_dynamics(&song, 1, &none);
    const int at = 16 * BARS / 2, inner = velocity(&song, at, 65);
    CHECK(velocity(&song, at, MELODY) >= inner + 7, "melody %d, inner voice %d", velocity(&song, at, MELODY), inner);
    CHECK(velocity(&song, at, BASS) > velocity(&song, at, 57), "the bass is softer than the voice above it");
    CHECK(velocity(&song, at, 57) > velocity(&song, at + 8, 57) &&
              velocity(&song, at, 57) > velocity(&song, at + 2, 57),
          "a chord on a bar line is not louder");
    CHECK(velocity(&song, at + 2, 65) > velocity(&song, at + 2, 57), "a higher inner voice is not louder");
    CHECK(velocity(&song, at, MELODY) == velocity(&song, at + 16, MELODY), "an even song rises or falls in its middle");
    int before = velocity(&song, 16 * (BARS - 4), MELODY);
    for (int bar = BARS - 3; bar < BARS; bar++) {
        const int now = velocity(&song, 16 * bar, MELODY);
        CHECK(now < before, "bar %d of the ending: %d after %d", bar, now, before);
        before = now;
    }
    double sum = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) sum += song.midi.notes[i].velocity;
    CHECK(fabs(sum / (double)song.midi.n_notes - 80) < 5, "the mean is %g", sum / (double)song.midi.n_notes);
    CHECK(lowest(&song.midi) >= 45 && highest(&song.midi) <= 105, "%d to %d", lowest(&song.midi), highest(&song.midi));
    song_free(&song);

    // The same key, once a bar, then each 16th, then once a bar: loud where it is full, by degrees.
    int n = 0;
    for (int step = 0; step < 16 * 24; step++) {
        if (step % 16 == 0 || (step >= 128 && step < 256)) notes[n++] = (Note){step, 60, 1};
    }
    song = song_of(notes, n);
    song_add_dynamics(&song, 1, &none);
    for (int step = 193; step < 208; step++) {
        CHECK(velocity(&song, 192, 60) == velocity(&song, step, 60) + 4, "a bar line gives no accent over %d", step);
    }
    CHECK(velocity(&song, 192, 60) > velocity(&song, 64, 60) + 20, "a full passage is not louder");
    CHECK(velocity(&song, 112, 60) > velocity(&song, 96, 60) && velocity(&song, 128, 60) > velocity(&song, 112, 60),
          "it does not rise to it");
    song_free(&song);
}

// Any song has velocities of 1 to 127 and the same notes, and amounts are on the way from one to the other.
static void check_extremes(void) {
    static Note notes[88 * 40];
    for (int kind = 0; kind < 4; kind++) { // a cluster each step; one note; one and a cluster much later; pp and ff
        int n = 0;
        if (kind) notes[n++] = (Note){0, 108, 1};
        for (int i = 0; i < 88 * 40 - 1 && kind != 1; i++) {
            notes[n++] = (Note){i / 88 + (kind ? 16 * 200 : 0), 21 + i % 88, 1 + i % 32};
        }
        Song flat = song_of(notes, n);
        Song half = song_of(notes, n), full = song_of(notes, n), none = song_of(notes, n);
        midi_note loud = {.key = 60, .velocity = kind == 3 ? 127 : 1};
        const Prime prime = {.song = {.notes = &loud, .n_notes = kind > 1}};
        song_add_dynamics(&none, 0, &prime);
        song_add_dynamics(&half, 0.5, &prime);
        song_add_dynamics(&full, 1, &prime);
        CHECK(lowest(&full.midi) >= 1 && highest(&full.midi) <= 127, "%d: %d to %d", kind, lowest(&full.midi),
              highest(&full.midi));
        TextBuffer today = {NULL, 0, 0, false}, same = {NULL, 0, 0, false};
        CHECK(make_mid(&today, &flat, error) && make_mid(&same, &none, error), "%s", error);
        CHECK(today.size == same.size && !memcmp(today.bytes, same.bytes, same.size), "%d: amount 0 changes it", kind);
        size_t wrong = 0;
        for (size_t i = 0; i < flat.midi.n_notes; i++) {
            const midi_note *a = &flat.midi.notes[i], *b = &half.midi.notes[i], *c = &full.midi.notes[i];
            wrong += a->start != c->start || a->end != c->end || a->key != c->key || a->channel != c->channel;
            wrong += c->velocity > 1 && c->velocity < 127 && abs(2 * b->velocity - 80 - c->velocity) > 1;
        }
        CHECK(full.midi.n_notes == flat.midi.n_notes && !wrong, "%d: %zu notes are wrong", kind, wrong);
        free(today.bytes), free(same.bytes);
        song_free(&flat), song_free(&half), song_free(&full), song_free(&none);
    }
}

// The files say the same: a page's notes are those of the .mid, and the .wav is the sound of those.
static void check_formats(void) {
    Note notes[800];
    const int n = hymn(notes);
    for (int i = 0; i < n; i++) {
        if (notes[i].key == BASS) notes[i].steps = 4; // which the pedal makes a bar of sound
    }
    Song song = song_of(notes, n);
    song_add_dynamics(&song, 1, &(Prime){0});
    const char *mid = in_folder("a.mid"), *html = in_folder("a.html"), *wav = in_folder("a.wav");
    CHECK(songs_write(&song, 1, mid, error) && songs_write(&song, 1, html, error) && songs_write(&song, 1, wav, error),
          "%s", error);
    midi_song back;
    CHECK(midi_read_file(&back, mid, 1 << 20, &problem) && back.n_notes == song.midi.n_notes, "%s", problem.text);
    qsort(back.notes, back.n_notes, sizeof *back.notes, midi__note_before);
    void *page, *sound;
    size_t size, found = 0;
    CHECK(read_file(html, &page, &size, error) && read_file(wav, &sound, &size, error), "%s", error);
    // The pedal, from half a step behind each bar line on, is in all three, too.
    CHECK(back.pedal_presses == BARS && strstr((char *)page, "\"pedals\":[[0.0625,2],[2.0625,4],"), "no pedal");
    SynthNote *played = calloc(back.n_notes, sizeof *played);
    for (size_t i = 0; i < back.n_notes; i++) {
        const midi_note *note = &back.notes[i];
        const double second = 1.0 / 960;
        char line[100];
        snprintf(line, sizeof line, "\n[%.9g,%.9g,%d,%d]", (double)note->start * second,
                 (double)(note->end - note->start) * second, note->key, note->velocity);
        found += strstr((char *)page, line) != NULL;
        const double start = (double)note->start * second, up = 2 * ceil((double)note->end * second / 2);
        played[i] = (SynthNote){start, up - start, note->key, note->velocity / 127.0};
    }
    CHECK(found == back.n_notes && found > 400, "%zu of %zu notes are in the page", found, back.n_notes);
    TextBuffer out = {NULL, 0, 0, false};
    CHECK(synth_wav(&out, played, back.n_notes, 2.0 * BARS + synth_tail, error), "%s", error);
    CHECK(out.size == size && !memcmp(out.bytes, sound, size), "the .wav is not the sound of the .mid");
    free(page), free(sound), free(played), free(out.bytes);
    midi_free(&back), song_free(&song);
}

// A note whose end has the pedal down sounds until it is lifted; a long bar has none, nor has a song without dynamics.
static void check_pedal(void) {
    const Note notes[] = {{0, 60, 2}, {15, 62, 1}, {15, 64, 3}, {16, 60, 1}, {200, 60, 16}};
    static const int ends[] = {16, 16, 32, 32, 216};
    Song song = song_of(notes, 5);
    for (int i = 0; i < 5; i++) {
        CHECK(song_sounds_until(&song, song.midi.notes[i].end) == song.midi.notes[i].end, "a pedal too early");
    }
    song_add_dynamics(&song, 0, &(Prime){0});
    CHECK(!song.midi.n_pedals, "pedal without dynamics");
    song_add_dynamics(&song, 0.1, &(Prime){0});
    CHECK(song.midi.n_pedals == 13, "%zu", song.midi.n_pedals);
    for (int i = 0; i < 5; i++) {
        const int64_t until = song_sounds_until(&song, song.midi.notes[i].end) / MIDI_STEP;
        CHECK(until == ends[i], "note %d sounds until %lld", i, (long long)until);
    }
    song.midi.n_pedals = 0, song.lines[1] = 33 * MIDI_STEP, song.n_lines = 2, song.end = 34 * MIDI_STEP;
    dynamics_pedal(&song);
    CHECK(song.midi.n_pedals == 1, "a bar of 33 steps has pedal");
    song.midi.n_pedals = 0, song.end = song.lines[1];
    dynamics_pedal(&song);
    CHECK(song.midi.n_pedals == 0, "an empty bar has pedal");
    song_free(&song);
}

static midi_song read_song(const char *name) {
    midi_song song;
    CHECK(midi_read_file(&song, in_folder(name), 1 << 20, &problem), "%s", problem.text);
    if (song.n_notes) qsort(song.notes, song.n_notes, sizeof *song.notes, midi__note_before);
    return song;
}

// From the command line: notes and times are the same whatever the dynamics.
static void check_flag(void) {
    CHECK(call("MODEL --seed 3 --tokens 400 -o @/1.mid -o @/1.svg") == 0, "%s", said);
    CHECK(call("MODEL --seed 3 --tokens 400 --dynamics 1 -o @/again.mid") == 0, "%s", said);
    CHECK(call("MODEL --seed 3 --tokens 400 --dynamics 0 -o @/0.mid -o @/0.svg") == 0, "%s", said);
    midi_song one = read_song("1.mid"), again = read_song("again.mid"), none = read_song("0.mid");
    size_t wrong = 0;
    for (size_t i = 0; i < one.n_notes; i++) {
        const midi_note *a = &one.notes[i], *b = &none.notes[i];
        wrong += a->start != b->start || a->end != b->end || a->key != b->key || b->velocity != 80;
        wrong += a->velocity != again.notes[i].velocity;
    }
    CHECK(one.n_notes == none.n_notes && one.n_notes > 50 && !wrong, "%zu notes are others", wrong);
    CHECK(highest(&one) > lowest(&one) + 10, "all notes are from %d to %d", lowest(&one), highest(&one));
    CHECK(strstr(none.texts[2].text, ", dynamics 0") && !strstr(one.texts[2].text, "dynamics"), "the settings are %s",
          none.texts[2].text);
    midi_free(&one), midi_free(&again), midi_free(&none);
    CHECK(call("MODEL --dynamics 1.1 -o @/x.mid") == 2 && call("MODEL --dynamics -1 -o @/x.mid") == 2, "%s", said);
    CHECK(!exists("x.mid"), "wrong dynamics make a song");
}

// A prime keeps its velocities, on and off the grid, and the new notes go on at its level.
static void check_prime(void) {
    enum { QUARTERS = 24 };
    double means[2];
    for (int loud = 0; loud < 2; loud++) {
        midi_song score = {.format = 1, .division = 96};
        for (int i = 0; i < QUARTERS; i++) { // silence, and a tick late or early; a key is struck twice, and held long
            const int64_t at = 96 * (i + 9) + i % 3 - 1;
            midi_add_note(&score, at, at + 90, 60 + i % 7, (loud ? 90 : 30) + i, 0, 0);
            if (i == 5) midi_add_note(&score, at, at + 90, 60 + i % 7, (loud ? 89 : 29) + i, 0, 0);
            if (i == 6) midi_add_note(&score, at, at + 96 * 10, 40, 77, 0, 0);
        }
        uint8_t *bytes;
        size_t size;
        CHECK(midi_write(&score, &bytes, &size, &problem), "%s", problem.text);
        CHECK(write_file_atomically(in_folder("prime.mid"), bytes, size, error), "%s", error);
        MIDI_FREE(bytes);
        midi_free(&score);
        CHECK(call("MODEL --seed 1 --tokens 300 --prime @/prime.mid -o @/p.mid -o @/p.html") == 0, "%s", said);
        CHECK(!strstr(said, "loud"), "%s", said);
        midi_song song = read_song("p.mid");
        int kept = 0, held = 0, n = 0;
        double sum = 0;
        for (size_t i = 0; i < song.n_notes; i++) {
            const midi_note *note = &song.notes[i];
            const int64_t quarter = note->start / 480 - 1; // the prime begins with the bar of its first note
            if (note->start <= QUARTERS * 480) {
                kept += note->key == 60 + quarter % 7 && note->velocity == (loud ? 90 : 30) + quarter;
                held += note->key == 40 && note->velocity == 77;
            } else {
                sum += note->velocity, n++;
            }
        }
        means[loud] = sum / n;
        CHECK(kept == QUARTERS && held == 2, "%d notes of the prime and %d pieces of a long one keep theirs", kept,
              held);
        midi_free(&song);
        CHECK(call("MODEL --seed 1 --tokens 300 --prime @/prime.mid --dynamics 0 -o @/p.mid") == 0, "%s", said);
        song = read_song("p.mid");
        CHECK(lowest(&song) == 80 && highest(&song) == 80, "without dynamics %d to %d", lowest(&song), highest(&song));
        midi_free(&song);
        CHECK(call("MODEL --seed 1 --tokens 300 --prime @/prime.mid --no-prime -o @/p.mid") == 0, "%s", said);
        song = read_song("p.mid");
        sum = 0;
        for (size_t i = 0; i < song.n_notes; i++) sum += song.notes[i].velocity;
        CHECK(fabs(sum / (double)song.n_notes - means[loud]) < 8, "without the prime %g, with it %g",
              sum / (double)song.n_notes, means[loud]);
        midi_free(&song);
    }
    CHECK(fabs(means[0] - 43) < 9 && fabs(means[1] - 102) < 9, "new notes have %g after soft and %g after loud ones",
          means[0], means[1]);
}

int main(void) {
    check_folder(folder);
    const LstmSizes small = {24, 20, 2, 12, 9};
    snprintf(small_model, sizeof small_model, "%s", in_folder("lstm.safetensors"));
    CHECK(make_lstm(small_model, small, 1), "%s", error);
    check_rules();
    check_extremes();
    check_formats();
    check_pedal();
    check_flag();
    check_prime();
    remove_folder();
    return check_report("dynamics");
}
