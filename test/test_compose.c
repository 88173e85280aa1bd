// The composer of the starter corpus: its pieces as music (range, length, harmony, return), as tokens (nothing lost),
// as files (deterministic, whole, nothing foreign touched), and its command line.
#define main compose_main
#include "data_prep/compose_music.c"
#undef main

#include "check.h"
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

enum { PIECES = 238 };

static double seconds_of(const Composition *piece, const midi_song *song) { // by the tempo events that were written
    double seconds = 0;
    for (size_t i = 0; i < song->n_tempos; i++) {
        int64_t end = i + 1 < song->n_tempos ? song->tempos[i + 1].tick : (int64_t)MIDI_STEP * piece->end;
        seconds += (double)(end - song->tempos[i].tick) / song->division * song->tempos[i].us_per_quarter * 1e-6;
    }
    return seconds;
}

static int by_time(const void *a, const void *b) {
    const Note *x = (const Note *)a, *y = (const Note *)b;
    if (x->start != y->start) return x->start - y->start;
    return x->key != y->key ? x->key - y->key : x->length - y->length;
}

// Checks one piece; returns its tokens, and folds its notes into a hash (FNV-1a).
static size_t check_piece(Composition *piece, int number, uint64_t *hash) {
    char error[ERROR_SIZE] = "";
    uint8_t *bytes = NULL, *tokens = NULL;
    size_t size = 0, n_tokens = 0;
    int bad = 0;
    for (int i = 0; i < piece->n_notes; i++) {
        const Note *note = &piece->notes[i], *before = &piece->notes[i > 0 ? i - 1 : 0];
        bad += note->key < 21 || note->key > 108 || note->length < 1 || note->length > 32 || note->start < 0 ||
               note->start + note->length > piece->end || note->velocity < 1 || note->velocity > 127;
        bad += i > 0 && note->key == before->key && note->start < before->start + before->length;
        int values[5] = {note->start, note->length, note->key, note->velocity, note->hand};
        for (int j = 0; j < 5; j++) *hash = (*hash ^ (uint64_t)values[j]) * 0x100000001b3u;
    }
    CHECK(bad == 0, "piece %d: %d notes out of range or overlapping on one key", number, bad);
    CHECK(piece->n_notes > 400 && piece->n_notes < 2000, "piece %d: %d notes", number, piece->n_notes);

    // The last chord stands on the tonic, and the tonic is its top.
    int low = 127, high = 0;
    for (int i = 0; i < piece->n_notes; i++) {
        if (piece->notes[i].start + piece->notes[i].length < piece->end) continue;
        low = least(low, piece->notes[i].key);
        high = most(high, piece->notes[i].key);
    }
    CHECK(low < 60 && (low - piece->tonic) % 12 == 0, "piece %d ends over key %d", number, low);
    CHECK(high > 60, "piece %d ends under key %d", number, high);

    bool ok = to_midi(piece, number, 1, &bytes, &size, error);
    CHECK(ok, "piece %d: %s", number, error);
    if (!ok) return 0;
    midi_song song, back;
    midi_error problem;
    int read = midi_read(&song, bytes, size, &problem);
    CHECK(read, "piece %d cannot be read: %s", number, problem.text);
    if (!read) return 0;
    double seconds = seconds_of(piece, &song);
    CHECK(seconds >= 60 && seconds <= 125, "piece %d takes %.1f s", number, seconds);
    CHECK(song.format == 1 && song.n_tracks == 3 && song.division == 480, "piece %d: header", number);
    CHECK(song.n_meters == 1 && song.n_tempos >= 2 && song.n_texts >= 3, "piece %d: meter, tempo or names", number);
    CHECK(size > 28 && bytes[23] == 0xFF && bytes[24] == 0x59 && bytes[25] == 2, "piece %d: no key signature", number);

    // Into tokens and back: the same notes.
    int there =
        midi_encode(&song, &tokens, &n_tokens, NULL, &problem) && midi_decode(tokens, n_tokens, &back, &problem);
    CHECK(there, "piece %d: %s", number, problem.text);
    if (there) {
        int same = back.n_notes == (size_t)piece->n_notes;
        qsort(piece->notes, (size_t)piece->n_notes, sizeof(Note), by_time);
        for (int i = 0; same && i < piece->n_notes; i++) {
            const Note *note = &piece->notes[i];
            same = back.notes[i].start == MIDI_STEP * note->start && back.notes[i].key == note->key &&
                   back.notes[i].end == MIDI_STEP * (note->start + note->length);
        }
        CHECK(same, "piece %d: tokens hold other notes than the piece", number);
        midi_free(&back);
    }
    MIDI_FREE(tokens);
    MIDI_FREE(bytes);
    midi_free(&song);
    return n_tokens;
}

// What the ear would notice between the hands: of the beats that both strike, how many have a semitone (or its octaves)
// against the highest note; and how many bars of the right hand are an earlier one again, transposed or not.
static void listen(const Composition *piece, int *beats, int *clashes, int *bars, int *returns) {
    static uint64_t shapes[MAX_STEPS];
    int n = 0;
    for (int bar = 0; bar + piece->meter->bar <= piece->end; bar += piece->meter->bar) {
        uint64_t shape = 0;
        int first = 0;
        for (int t = bar; t < bar + piece->meter->bar; t++) {
            int top = 0, clash = 0, struck = 0;
            for (int i = 0; i < piece->n_notes; i++) {
                const Note *note = &piece->notes[i];
                if (note->start == t && note->hand == 0) top = most(top, note->key);
            }
            if (!top) continue;
            if (!first) first = top;
            shape = (shape ^ (uint64_t)((t - bar) * 128 + 64 + top - first)) * 0x100000001b3u;
            if (t % piece->meter->beat) continue;
            for (int i = 0; i < piece->n_notes; i++) {
                const Note *note = &piece->notes[i];
                if (note->start != t || note->hand == 0) continue;
                struck = 1;
                clash |= modulo(top - note->key, 12) == 1;
            }
            *beats += struck;
            *clashes += clash;
        }
        if (!shape) continue;
        int again = 0;
        for (int i = 0; i < n; i++) again |= shapes[i] == shape;
        *returns += again;
        *bars += 1;
        shapes[n++] = shape;
    }
}

static void test_corpus(void) {
    static Composition piece, twin;
    static uint64_t hashes[PIECES];
    int seen_meters = 0, seen_modes = 0, beats = 0, clashes = 0, bars = 0, returns = 0,
        styles_seen[COUNT(styles)] = {0};
    uint64_t all = 0xcbf29ce484222325u;
    size_t train = 0, test = 0;
    for (int number = 1; number <= PIECES; number++) {
        compose(&piece, 1, number);
        seen_meters |= 1 << piece.style->meter;
        seen_modes |= 1 << piece.mode;
        styles_seen[piece.style - styles]++;
        listen(&piece, &beats, &clashes, &bars, &returns);
        uint64_t hash = 0xcbf29ce484222325u;
        size_t tokens = check_piece(&piece, number, &hash);
        if (number % 10 == 2)
            test += tokens;
        else
            train += tokens;
        hashes[number - 1] = hash;
        all = (all ^ hash) * 0x100000001b3u;
    }
    for (int i = 0; i < PIECES; i++) {
        for (int j = 0; j < i; j++) CHECK(hashes[i] != hashes[j], "pieces %d and %d are the same", j + 1, i + 1);
    }
    CHECK(seen_meters == 15 && seen_modes == 31, "meters %x modes %x", seen_meters, seen_modes);
    for (int i = 0; i < COUNT(styles); i++) CHECK(styles_seen[i] > 0, "no %s", styles[i].name);
    printf("compose: %zu + %zu tokens; semitones on %d of %d beats; %d of %d bars return\n", train, test, clashes,
           beats, returns, bars);
    CHECK(train > 640000 && train < 750000, "%zu training tokens, not about 694,000", train);
    CHECK(test > 60000 && test < 90000, "%zu test tokens", test);
    CHECK(clashes * 200 < beats, "%d of %d beats clash", clashes, beats);
    CHECK(returns * 10 > bars * 3 && returns * 10 < bars * 8, "%d of %d bars return", returns, bars);
    // All of it is integer arithmetic, so this number holds for every compiler and machine. It changes with the music.
    CHECK(all == 0x2b3ae6b0db2df9c4u, "the corpus has the hash 0x%llx", (unsigned long long)all);

    compose(&piece, 1, 7);
    compose(&twin, 1, 7);
    CHECK(piece.n_notes == twin.n_notes && !memcmp(piece.notes, twin.notes, sizeof piece.notes),
          "piece 7 differs from itself");
    compose(&twin, 2, 7);
    CHECK(memcmp(piece.notes, twin.notes, sizeof piece.notes), "seed 2 composes the same as seed 1");
}

// The rules of melody, on fresh themes in every style.
static void test_melody(void) {
    Dice dice = {philox_key(7, PHILOX_COMPOSE, 0), 0};
    int strong = 0, consonant = 0, dissonant = 0, stepwise = 0, leaps = 0, turned = 0, notes = 0, small = 0;
    for (int k = 0; k < 220; k++) {
        const Style *style = &styles[k % COUNT(styles)];
        Motif motifs[4];
        for (int i = 0; i < 4; i++) motifs[i] = make_motif(style, &dice);
        Theme theme = make_theme(style, 54 + k % 12, k % MODES, k % 3 ? 8 : 16, motifs, k % 2, &dice);
        Chord chords[MAX_CHORDS];
        for (int i = 0; i < theme.n_chords; i++) chords[i] = realise(theme.chords[i], theme.tonic, theme.mode);
        int last = theme.n_melody - 1;
        CHECK(theme.melody[last].goal && modulo(theme.melody[last].step, 7) == 0, "theme %d does not end on the tonic",
              k);
        for (int i = 0; i <= last; i++) {
            const MelodyNote *note = &theme.melody[i];
            const Chord *chord = chord_at(chords, theme.n_chords, note->start);
            bool harmonic = is_tone(chord, key_of(chord, note->step));
            notes++;
            strong += note->weight >= 2;
            consonant += note->weight >= 2 && harmonic;
            CHECK(!note->goal || harmonic, "theme %d: a phrase ends off the chord", k);
            CHECK(note->step >= theme.floor && note->step < theme.floor + RANGE, "theme %d leaves its range", k);
            if (i == 0 || i == last) continue;
            int in = note->step - note[-1].step, out = note[1].step - note->step;
            small += abs(in) <= 2;
            dissonant += !harmonic;
            stepwise += !harmonic && abs(in) <= 1 && abs(out) == 1;
            leaps += abs(in) >= 3;
            turned += abs(in) >= 3 && (in > 0 ? out <= 0 : out >= 0);
        }
    }
    printf("compose: chord tones on %d of %d strong beats; %d of %d dissonances by step; %d of %d leaps turn back\n",
           consonant, strong, stepwise, dissonant, turned, leaps);
    CHECK(consonant * 100 >= strong * 95, "%d of %d", consonant, strong);
    CHECK(stepwise * 100 >= dissonant * 95, "%d of %d", stepwise, dissonant);
    CHECK(turned * 100 >= leaps * 80, "%d of %d", turned, leaps);
    CHECK(small * 100 >= notes * 75, "%d of %d", small, notes);
    CHECK(leaps * 50 >= notes && dissonant * 20 >= notes, "%d leaps, %d dissonances in %d notes", leaps, dissonant,
          notes);
}

// Runs the program's command line with its output in files; returns the exit status and the first line of stderr.
static int run(const char *arguments, const char *folder, char *line) {
    char copy[2048], path[1024], *argv[16] = {"compose_music"};
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", arguments);
    for (char *word = strtok(copy, " "); word && argc < 15; word = strtok(NULL, " "))
        argv[argc++] = !strcmp(word, "''") ? "" : word;
    argv[argc] = NULL;
    snprintf(path, sizeof path, "%s/stderr", folder);
    fflush(stdout);
    fflush(stderr);
    int out = dup(1), err = dup(2);
    if (!freopen("/dev/null", "w", stdout) || !freopen(path, "w", stderr)) return -1;
    int status = compose_main(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    FILE *file = fopen(path, "r");
    int lines = 0;
    line[0] = 0;
    for (int c; file && (c = fgetc(file)) != EOF;) lines += c == '\n';
    if (file) rewind(file);
    if (file && !fgets(line, ERROR_SIZE, file)) line[0] = 0;
    if (file) fclose(file);
    remove(path);
    return lines > 1 ? -1 : status;
}

static int count_files(const char *folder, const char *suffix) {
    DIR *directory = opendir(folder);
    int count = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        size_t length = strlen(entry->d_name), wanted = strlen(suffix);
        count += length > wanted && !strcmp(entry->d_name + length - wanted, suffix);
    }
    if (directory) closedir(directory);
    return count;
}

static void test_files(void) {
    char folder[512], path[1024], arguments[1600], line[ERROR_SIZE], error[ERROR_SIZE];
    check_folder(folder);

    // Twelve pieces, then five more: the first twelve stay as they are.
    snprintf(arguments, sizeof arguments, "--out %s/a/b --pieces 12", folder);
    CHECK(run(arguments, folder, line) == 0, "%s: %s", arguments, line);
    snprintf(path, sizeof path, "%s/a/b/train", folder);
    CHECK(count_files(path, ".mid") == 10, "%d in train", count_files(path, ".mid"));
    snprintf(path, sizeof path, "%s/a/b/test", folder);
    CHECK(count_files(path, ".mid") == 2, "%d in test", count_files(path, ".mid"));
    snprintf(arguments, sizeof arguments, "--pieces 17 --seed 1 --out %s/c", folder);
    CHECK(run(arguments, folder, line) == 0, "%s: %s", arguments, line);
    snprintf(arguments, sizeof arguments, "cd %s && for f in a/b/*/*.mid; do cmp $f c/${f#a/b/} || exit 1; done",
             folder);
    CHECK(system(arguments) == 0, "a piece depends on how many there are");

    // Another seed leaves what is there.
    snprintf(path, sizeof path, "%s/c/train/001_mine_in_C_major.mid", folder);
    FILE *file = fopen(path, "w");
    CHECK(file && !fclose(file), "%s: not made", path);
    snprintf(arguments, sizeof arguments, "--pieces 3 --seed 18446744073709551615 --out %s/c", folder);
    CHECK(run(arguments, folder, line) == 0, "%s: %s", arguments, line);
    CHECK(!access(path, F_OK), "a foreign file was removed");
    snprintf(path, sizeof path, "%s/c/train", folder);
    CHECK(count_files(path, ".tmp") == 0, "temporary files were left");

    // No room: nothing half-written, what was there stays.
    struct rlimit limit, none;
    getrlimit(RLIMIT_FSIZE, &limit);
    none = limit;
    none.rlim_cur = 2000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    snprintf(path, sizeof path, "%s/full", folder);
    bool ok = compose_corpus(path, 1, 3, error);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    CHECK(!ok && strstr(error, ".mid: "), "no room: %s", ok ? "no error" : error);
    snprintf(path, sizeof path, "%s/full/train", folder);
    CHECK(count_files(path, ".mid") + count_files(path, ".tmp") == 0, "%s: something was left", path);

    static const struct {
        const char *arguments;
        int status;
        const char *says;
    } cases[] = {{"--help", 0, ""},
                 {"--version", 0, ""},
                 {"--pieces", 2, "--pieces: its value is missing"},
                 {"--pieces 0", 2, "--pieces 0: it must be a whole number from 1"},
                 {"--pieces -3", 2, "--pieces -3: it must be"},
                 {"--pieces 3.5", 2, "--pieces 3.5: it must be"},
                 {"--pieces 100001", 2, "it must be a whole number from 1 to 100000"},
                 {"--pieces nan", 2, "--pieces nan: it must be"},
                 {"--seed x", 2, "--seed x: it must be a whole number"},
                 {"--seed 18446744073709551616", 2, "--seed 18446744073709551616: it must be"},
                 {"--seed ''", 2, "--seed : it must be"},
                 {"--out ''", 2, "--out: "},
                 {"--loud 3", 2, "--loud: there is no such flag"},
                 {"folder", 2, "'folder': flags start with --"},
                 {"--out /dev/null --pieces 1", 1, "/dev/null"},
                 {"--out /dev/null/x --pieces 1", 1, "/dev/null"}};
    for (int i = 0; i < COUNT(cases); i++) {
        int status = run(cases[i].arguments, folder, line);
        CHECK(status == cases[i].status, "%s: status %d, %s", cases[i].arguments, status, line);
        CHECK(strstr(line, cases[i].says) && (status == 0) == !*line, "%s says: %s", cases[i].arguments, line);
    }
    snprintf(arguments, sizeof arguments, "rm -rf '%s'", folder);
    CHECK(system(arguments) == 0, "%s: not removed", folder);
}

// A section whose melody begins only where a change of key cuts it off has no melody.
static void test_late_melody(void) {
    static Composition piece = {.style = &styles[0], .meter = &meters[IN_44], .tempo = 90, .tonic = 60};
    static Theme theme = {.bars = 1, .chords = {{.length = 16}}, .n_chords = 1, .n_melody = 1};
    theme.melody[0] = (MelodyNote){.start = 8, .length = 8};
    const Section section = {.theme = &theme, .tonic = 60, .pattern = &accompaniments[0], .texture = 'p'};
    Section next = section;
    next.tonic = 67;
    play_section(&piece, &section, &next, false);
    int right = 0;
    for (int i = 0; i < piece.n_notes; i++) right += piece.notes[i].hand == 0;
    CHECK(piece.end == 16 && piece.n_notes > 0 && right == 0, "%d notes, %d of the right hand", piece.n_notes, right);
}

int main(void) {
    test_corpus();
    test_melody();
    test_late_melody();
    test_files();
    return check_report("compose");
}
