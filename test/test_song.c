// Songs without a model: notes out of tokens, bar lines and time signatures, the longest repetition by brute force,
// keys and scales by name, and the same notes read back from every kind of file.
#include "sample/formats.h"
#include "sample/keys.h"
#include "sample/song.h"
#define MIDI_IMPLEMENTATION
#include "midi.h"

#include "base/philox.h"
#include "models.h"
#include <time.h>

static void check_names(void) {
    static const struct {
        const char *text;
        int key;
    } keys[] = {{"C4", 60},          {"c4", 60},  {"A0", 21},   {"C8", 108},  {"Bb2", 46},  {"F#3", 54}, {"60", 60},
                {"Cb4", 59},         {"B#3", 60}, {"C##4", 62}, {"G#-1", -1}, {"C9", -1},   {"H2", -1},  {"20", -1},
                {"109", -1},         {"", -1},    {"C", -1},    {"C4x", -1},  {"60.5", -1}, {"#4", -1},  {"-60", -1},
                {"C99999999999", -1}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        CHECK(read_key(keys[i].text) == keys[i].key, "'%s' is read as key %d", keys[i].text, read_key(keys[i].text));
    }
    for (int key = 21; key <= 108; key++) {
        char name[16];
        CHECK(read_key(key_name(key, name)) == key, "key %d is not read back from %s", key, name);
    }
    CHECK(read_scale("C-major") == 0xAB5 && read_scale("a-minor") == 0xAB5 && read_scale("Db-pentatonic") == 0x52A,
          "scales are read wrong");
    CHECK(!read_scale("C") && !read_scale("C-") && !read_scale("major") && !read_scale("C-majors") && !read_scale(""),
          "what is no scale is read as one");
}

static Marks at_bpm(Mark *tempo, int bpm) { // no prime
    *tempo = (Mark){.value = 60000000 / bpm};
    return (Marks){.tempos = tempo, .n_tempos = 1};
}

static void finish(Song *song, int bpm) {
    Mark tempo;
    const Marks marks = at_bpm(&tempo, bpm);
    song_finish(song, false, &marks);
}

// n tokens that obey the grammar, at random; with `few` only the first so many offsets, pitches and durations. The
// caller finishes and frees the song.
static Song random_song(size_t n, int few) {
    Song song = {.seed = 21, .n = n, .model_name = "random", .model = "a random model"};
    PhiloxKey key = philox_key(song.seed, PHILOX_SAMPLE, 0);
    song.tokens = malloc(n);
    song_add_setting(&song, "tokens %zu", n);
    int previous = MIDI_BAR;
    uint32_t rolled = 0;
    for (size_t i = 0; i < n;) {
        static const int first[] = {MIDI_BAR, MIDI_OFFSET, MIDI_PITCH, MIDI_DURATION};
        const int token = (int)(philox(key, rolled++, 0, 0, 0).x[0] % MIDI_TOKENS);
        if (!midi_may_follow(previous, token) || token - first[midi_token_kind(token)] >= few) continue;
        song.tokens[i++] = (uint8_t)token;
        previous = token;
    }
    return song;
}

// Every note-on has its note-off before the next of its key; the longest repetition is that of brute force.
static void check_notes(void) {
    Song song = random_song(3000, 8);
    finish(&song, 120);
    int64_t ends[128] = {0};
    size_t wrong = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        const midi_note *note = &song.midi.notes[i];
        wrong += note->start < ends[note->key] || note->end <= note->start || note->end - note->start > 32 * MIDI_STEP;
        ends[note->key] = note->end;
    }
    CHECK(song.midi.n_notes > 300 && wrong == 0, "%zu of %zu notes overlap on their key", wrong, song.midi.n_notes);

    const midi_note *all = song.midi.notes;
    int longest = 0, found = longest_repetition(&song);
    for (size_t a = 0; a < song.midi.n_notes; a++) {
        for (size_t b = a + 2; b < song.midi.n_notes; b++) {
            size_t n = 1; // notes from a on that come again from b on
            while (a + n < b && b + n < song.midi.n_notes &&
                   all[a + n].start - all[a].start == all[b + n].start - all[b].start &&
                   all[a + n].key - all[a].key == all[b + n].key - all[b].key &&
                   all[a + n].end - all[a + n].start == all[b + n].end - all[b + n].start) {
                n++;
            }
            if (n > 1 && (int)n > longest) longest = (int)n;
        }
    }
    CHECK(longest > 3 && found == longest, "the longest repetition has %d notes, not %d", longest, found);
    song_free(&song);

    song = random_song(39, 1); // of which all becomes one note, over and over
    for (int i = 0; i < 13; i++)
        memcpy(song.tokens + 3 * i, (uint8_t[]){MIDI_OFFSET + i, MIDI_PITCH, MIDI_DURATION}, 3);
    finish(&song, 120);
    CHECK(longest_repetition(&song) == 6, "of 13 equal notes %d", longest_repetition(&song));
    song_free(&song);
}

// Lines that only cut a long bar do not count, nor do bars without length: 4/4, 31 + 1 steps = 4/2, 4/4, nothing.
static void check_lines(void) {
    static const uint8_t tokens[] = {1, 33 + 40, 124, 1 + 16,  0,   1 + 31, 0, 1 + 1, 0,       1 + 16, 0,
                                     1, 0,       1,   33 + 40, 122, 1 + 6,  0, 1,     33 + 40, 121};
    static const int64_t lines[] = {0, 16, 48, 64, 70};
    midi_error problem;
    Song song = {0};
    CHECK(midi_decode(tokens, sizeof tokens, &song.midi, &problem) && song.midi.n_bars == 6, "%s", problem.text);
    song.lines = malloc(16 * sizeof(int64_t));
    song_find_lines(&song);
    bool right = song.n_lines == 5;
    for (int i = 0; i < song.n_lines && right; i++) right = song.lines[i] == lines[i] * MIDI_STEP;
    CHECK(right, "bar lines are found wrong");
    Mark tempo;
    const Marks marks = at_bpm(&tempo, 120);
    song_add_events(&song, &marks);
    const midi_meter *m = song.midi.meters;
    CHECK(song.midi.n_meters == 4 && m[0].numerator == 4 && m[0].exponent == 2 && m[1].numerator == 8 &&
              m[1].tick == 16 * MIDI_STEP && m[2].numerator == 4 && m[3].numerator == 3 && m[3].exponent == 3,
          "the meters are wrong");
    song_free(&song);
}

// All notes of a file's .svg and .mid are the song's, at their times.
static void check_files(void) {
    Song song = random_song(900, 88);
    finish(&song, 96);
    CHECK(song.midi.n_notes > 100, "only %zu notes", song.midi.n_notes);
    const char *mid = in_folder("f.mid"), *svg = in_folder("f.svg");
    CHECK(songs_write(&song, 1, mid, error) && songs_write(&song, 1, svg, error), "%s", error);

    midi_song back;
    midi_error problem;
    int ok = midi_read_file(&back, mid, 1 << 24, &problem);
    CHECK(ok && back.division == 480 && back.n_notes == song.midi.n_notes && back.open_notes == 0, "%s", problem.text);
    CHECK(back.n_tempos == 1 && back.tempos[0].us_per_quarter == 625000, "96 quarters a minute are not 625000 us");
    CHECK(back.n_meters >= 1 && back.meters[0].tick == 0, "no meter at the start");
    bool text = false;
    for (size_t i = 0; i < back.n_texts; i++) text = text || strstr(back.texts[i].text, "seed 21, tokens 900");
    CHECK(text, "the .mid does not say its seed and settings");
    size_t apart = 0; // a file's notes that begin together may come in any order
    for (size_t i = 0; ok && i < back.n_notes; i++) {
        size_t k = 0;
        const midi_note *note = &back.notes[i], *want = song.midi.notes;
        while (k < song.midi.n_notes &&
               (want[k].start != note->start || want[k].end != note->end || want[k].key != note->key)) {
            k++;
        }
        apart += k == song.midi.n_notes;
    }
    CHECK(apart == 0, "%zu of the .mid's notes are not the song's", apart);
    midi_free(&back);

    void *bytes;
    size_t size, found = 0, wrong = 0;
    CHECK(read_file(svg, &bytes, &size, error), "%s", error);
    size_t *seen = calloc(song.midi.n_notes, sizeof *seen);
    for (const char *at = strstr((char *)bytes, "data-note=\""); at; at = strstr(at + 1, "data-note=\""), found++) {
        int key;
        long long start, end;
        size_t i = 0;
        sscanf(at, "data-note=\"%d %lld %lld\"", &key, &start, &end);
        for (; i < song.midi.n_notes; i++) {
            const midi_note *note = &song.midi.notes[i];
            if (!seen[i] && note->key == key && note->start == start && note->end == end) break;
        }
        if (i < song.midi.n_notes)
            seen[i] = 1;
        else
            wrong++;
    }
    CHECK(found == song.midi.n_notes && wrong == 0, "%zu notes in the .svg, %zu of them wrong", found, wrong);
    CHECK(!memcmp(bytes, "<svg ", 5) && !strcmp((char *)bytes + size - 7, "</svg>\n") &&
              strstr((char *)bytes, "seed 21"),
          "the .svg is not whole");
    free(seen), free(bytes);
    song_free(&song);
}

// How strong a frequency is among the samples (Goertzel).
static double strength(const int16_t *left, size_t n, double frequency) {
    const double turn = 2 * cos(6.283185307179586 * frequency / SYNTH_RATE);
    double one = 0, two = 0;
    for (size_t i = 0; i < n; i++) {
        double window = 0.5 - 0.5 * cos(6.283185307179586 * (double)i / (double)n),
               next = window * left[2 * i] + turn * one - two;
        two = one, one = next;
    }
    return one * one + two * two - turn * one * two;
}

// Seconds up to a tick, span by span.
static double seconds_to(const Marks *marks, int64_t tick) {
    double seconds = 0;
    for (size_t i = 0; i < marks->n_tempos && marks->tempos[i].tick < tick; i++) {
        int64_t end = i + 1 < marks->n_tempos ? marks->tempos[i + 1].tick : tick;
        if (end > tick) end = tick;
        seconds += (double)(end - marks->tempos[i].tick) / 480 * 1e-6 * marks->tempos[i].value;
    }
    return seconds;
}

// The seconds below a roll of one row stand where they are in the music.
static void check_seconds(const char *svg, const Marks *marks, double end) {
    int n = 0, wrong = 0;
    for (const char *at = svg; (at = strstr(at, "class=\"time\""));) {
        double x, y, second;
        if (sscanf(at++, "class=\"time\" x=\"%lf\" y=\"%lf\">%lf s<", &x, &y, &second) != 3) continue;
        wrong += fabs(seconds_to(marks, (int64_t)(x / 940 * end)) - second) > 0.02;
        n++;
    }
    CHECK(n > 4 && wrong == 0, "%d of %d seconds are drawn elsewhere", wrong, n);
}

// The same notes at the same times in .mid, .svg, .html and .wav, read back from each: one note at a time, so that
// the sound of the last is told from the others.
static void check_formats(const Marks *marks) {
    enum { NOTES = 24 };
    Song song = {0};
    song.tokens = malloc(5 * NOTES);
    for (int i = 0; i < NOTES; i++) { // a note of 3 steps every 4, and a bar line after every fourth
        const int key = 40 + i * 11 % 48;
        if (i && i % 4 == 0) song.tokens[song.n++] = MIDI_OFFSET + 16, song.tokens[song.n++] = MIDI_BAR;
        song.tokens[song.n++] = (uint8_t)(MIDI_OFFSET + 4 * (i % 4));
        song.tokens[song.n++] = (uint8_t)(MIDI_PITCH + key - MIDI_LOWEST_KEY);
        song.tokens[song.n++] = MIDI_DURATION + 2;
    }
    song_finish(&song, false, marks);
    CHECK(song.midi.n_notes == NOTES, "%s", error);
    static const char *const names[] = {"all.mid", "all.svg", "all.html", "all.wav"};
    for (int k = 0; k < 4; k++) CHECK(songs_write(&song, 1, in_folder(names[k]), error), "%s", error);

    midi_song mid;
    midi_error problem;
    void *svg = NULL, *html = NULL, *wav = NULL;
    size_t size;
    CHECK(midi_read_file(&mid, in_folder("all.mid"), 1 << 20, &problem) && mid.n_notes == NOTES, "%s", problem.text);
    CHECK(read_file(in_folder("all.svg"), &svg, &size, error) &&
              read_file(in_folder("all.html"), &html, &size, error) &&
              read_file(in_folder("all.wav"), &wav, &size, error),
          "%s", error);
    const int16_t *left = (const int16_t *)(void *)((char *)wav + 44);
    const size_t samples = (size - 44) / 4;
    int in_svg = 0, in_html = 0, in_wav = 0;
    for (int i = 0; i < NOTES; i++) {
        const midi_note *note = &mid.notes[i];
        const double start = seconds_to(marks, note->start), length = seconds_to(marks, note->end) - start;
        char text[100];
        CHECK(note->start == 4 * i * MIDI_STEP && note->end == note->start + 3 * MIDI_STEP &&
                  note->key == 40 + i * 11 % 48,
              ".mid: note %d is wrong", i);
        snprintf(text, sizeof text, "data-note=\"%d %lld %lld\"", note->key, (long long)note->start,
                 (long long)note->end);
        in_svg += strstr((char *)svg, text) != NULL;
        for (const char *line = strstr((char *)html, "\n["); line; line = strstr(line + 1, "\n[")) {
            double at, seconds;
            int key, velocity;
            if (sscanf(line, "\n[%lf,%lf,%d,%d]", &at, &seconds, &key, &velocity) != 4) continue;
            in_html += fabs(at - start) < 1e-3 && fabs(seconds - length) < 1e-3 && key == note->key && velocity == 80;
        }
        const size_t from = (size_t)((start + 0.02) * SYNTH_RATE), n = (size_t)(0.3 * SYNTH_RATE);
        double best = 0, heard = 0, before = 0;
        for (int key = 38; key < 90 && from + n < samples; key++) {
            double frequency = 440 * pow(2, (key - 69) / 12.0), now = strength(left + 2 * from, n, frequency);
            if (now > best) best = now, heard = key;
            if (key == note->key && i) before = strength(left + 2 * (from - n - n / 4), n, frequency) / (now + 1);
        }
        in_wav += heard == note->key && before < 0.1;
    }
    CHECK(in_svg == NOTES && in_html == NOTES && in_wav == NOTES, "of %d notes %d in .svg, %d in .html, %d in .wav",
          NOTES, in_svg, in_html, in_wav);
    const double ends = seconds_to(marks, (NOTES * 4 - 1) * MIDI_STEP), sound = (double)samples / SYNTH_RATE;
    CHECK(sound > ends && sound < ends + 4, "the .wav lasts %g s, the music %g s", sound, ends);
    CHECK(mid.n_tempos == marks->n_tempos, "%zu tempos in the .mid instead of %zu", mid.n_tempos, marks->n_tempos);
    for (size_t i = 0; i < mid.n_tempos; i++) {
        CHECK(mid.tempos[i].tick == marks->tempos[i].tick && mid.tempos[i].us_per_quarter == marks->tempos[i].value,
              "tempo %zu is another in the .mid", i);
    }
    check_seconds((char *)svg, marks, (double)song.end);
    free(svg), free(html), free(wav);
    midi_free(&mid);
    song_free(&song);
}

// Bars of the prime keep its time signatures, those after it while they are as long; 5/64 is 1.25 steps.
static void check_meters(void) {
    enum { SIX_EIGHT = 6 << 8 | 3, TWO_TWO = 2 << 8 | 1, FOUR_TWO = 4 << 8 | 1, FIVE_64 = 5 << 8 | 6 };
    static const struct {
        int bars[8], n_marks;
        Mark marks[3];
        int n;
        struct {
            int step, numerator, exponent;
        } meters[4];
    } cases[] = {{{12, 12, 12, 16, 12}, 1, {{0, 0, SIX_EIGHT}}, 3, {{0, 6, 3}, {36, 4, 2}, {52, 6, 3}}},
                 {{16, 16}, 1, {{0, 0, TWO_TWO}}, 1, {{0, 2, 1}}},
                 {{32, 32, 8}, 1, {{0, 0, FOUR_TWO}}, 2, {{0, 4, 1}, {64, 2, 2}}},
                 {{16, 12, 12}, 2, {{0, 0, TWO_TWO}, {1920, 0, SIX_EIGHT}}, 2, {{0, 2, 1}, {16, 6, 3}}},
                 {{12, 4, 16}, 2, {{0, 0, SIX_EIGHT}, {1920, 0, TWO_TWO}}, 2, {{0, 6, 3}, {16, 2, 1}}},
                 {{4, 16}, 2, {{0, 0, 1 << 8 | 2}, {480, 0, 4 << 8 | 2}}, 2, {{0, 1, 2}, {4, 4, 2}}},
                 {{0}, 1, {{0, 0, SIX_EIGHT}}, 1, {{0, 6, 3}}},
                 {{16}, 2, {{0, 0, TWO_TWO}, {1920, 0, SIX_EIGHT}}, 2, {{0, 2, 1}, {16, 6, 3}}},
                 {{16, 12}, 1, {{1920, 0, SIX_EIGHT}}, 2, {{0, 4, 2}, {16, 6, 3}}},
                 {{1, 1, 2, 1}, 1, {{0, 0, FIVE_64}}, 1, {{0, 5, 6}}},
                 {{12, 12}, 0, {{0}}, 1, {{0, 3, 2}}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t lines[9] = {0};
        Song song = {.lines = lines, .n_lines = 1};
        for (int k = 0; cases[i].bars[k]; k++, song.n_lines++) lines[k + 1] = lines[k] + cases[i].bars[k] * MIDI_STEP;
        const Marks marks = {.meters = (Mark *)cases[i].marks, .n_meters = (size_t)cases[i].n_marks};
        song_add_meters(&song, &marks);
        bool right = song.midi.n_meters == (size_t)cases[i].n;
        for (int k = 0; right && k < cases[i].n; k++) {
            const midi_meter *meter = &song.midi.meters[k];
            right = meter->tick == cases[i].meters[k].step * MIDI_STEP &&
                    meter->numerator == cases[i].meters[k].numerator && meter->exponent == cases[i].meters[k].exponent;
        }
        CHECK(right, "case %zu: %zu meters, the last %d/%d", i, song.midi.n_meters,
              song.midi.meters[song.midi.n_meters - 1].numerator,
              1 << song.midi.meters[song.midi.n_meters - 1].exponent);
        midi_free(&song.midi);
    }
}

// A song of so many bars of 4/4 with a note in each `every`th one. The caller frees it.
static Song bars_with_notes(size_t bars, size_t every) {
    Song song = {.model_name = "bars", .model = "", .tokens = malloc(5 * bars + 3)};
    for (size_t i = 0; i <= bars; i++) {
        static const uint8_t note[] = {MIDI_OFFSET, MIDI_PITCH + 40, MIDI_DURATION + 15},
                             line[] = {MIDI_OFFSET + 16, 0};
        if (i % every == 0) memcpy(song.tokens + song.n, note, 3), song.n += 3;
        if (i < bars) memcpy(song.tokens + song.n, line, 2), song.n += 2;
    }
    finish(&song, 120);
    return song;
}

static size_t roll_size(size_t bars, size_t every, double *seconds) {
    Song song = bars_with_notes(bars, every);
    TextBuffer out = {NULL, 0, 0, false};
    const clock_t start = clock();
    CHECK(roll_svg(&out, &song, error), "%s", error);
    *seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    free(out.bytes), song_free(&song);
    return out.size;
}

// A roll is linear in notes and bars, silence takes no room, any key can be drawn, and no name spoils it.
static void check_roll(void) {
    double seconds, more;
    const size_t size = roll_size(20000, 64, &seconds), four = roll_size(80000, 64, &more);
    CHECK(four < 4.1 * (double)size && more < 8 * seconds + 0.05,
          "4 times the bars: %.1f times the size, %.1f the time", (double)four / (double)size, more / seconds);
    CHECK(roll_size(250000, 250000, &seconds) < 30000, "silence takes room");

    midi_note notes[] = {{0, 480, 0, 80, 0, 0}, {480, 960, 127, 80, 0, 0}};
    bool from_prime[2] = {false, false};
    int64_t lines[] = {0, 1920};
    uint8_t tokens[] = {MIDI_BAR};
    TempoSpan span = {0, 1e-3, 0};
    for (int k = 0; k < 2; k++) {
        Song song = {
            .tokens = tokens, .n = 1, .midi = {.notes = notes + k, .n_notes = 1}, .lines = lines, .n_lines = 2};
        TextBuffer out = {NULL, 0, 0, false};
        song.from_prime = from_prime, song.end = 1920, song.tempo = (TempoMap){&span, 1};
        strcpy(song.model_name, "a\033[1m \xC2\x9B \xEF\xBF\xBE \xEF\xBF\xBF <&>");
        CHECK(roll_svg(&out, &song, error), "%s", error);
        text_add(&out, "", 1);
        CHECK(strstr(out.bytes, "<title>a?[1m ?? ??? ??? &lt;&amp;&gt;, seed"), "the name is not as it should be");
        free(out.bytes);
    }

    Song song = bars_with_notes(2, 1);
    TextBuffer failed = {NULL, 0, 0, true};
    CHECK(!make_mid(&failed, &song, error) && strstr(error, "no memory"), "a .mid without memory is made");
    song_free(&song);
}

int main(void) {
    check_folder(folder);
    check_names();
    check_notes();
    check_lines();
    check_files();
    Mark tempos[] = {{0, 0, 600000}, {480 * 5, 0, 750000}, {480 * 5 + 100, 0, 480000}, {480 * 9, 0, 600000}};
    check_formats(&(Marks){.tempos = tempos, .n_tempos = 1});
    check_formats(&(Marks){.tempos = tempos, .n_tempos = 4});
    check_meters();
    check_roll();
    remove_folder();
    return check_report("song");
}
