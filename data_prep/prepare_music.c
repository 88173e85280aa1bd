/* prepare_music - folders of MIDI files -> train.safetensors and test.safetensors, the datasets of the trainers.

Promises: the same files give the same bytes, whatever order the folder lists them in; every file that is skipped or
changed gets a line that says why or how; nothing is written before everything is computed, and an old dataset is
replaced only once both new files are safely on the disk. Every file is treated as hostile (see midi.h), and so is its
name.

Leaves out: judging the music. Each file is a piece, long or short, good or bad, once or twice; sort the folder first.
*/
#include "base/data.h"
#include "base/flags.h"
#include "base/program.h"

#include <dirent.h>
#include <math.h>
#include <strings.h>

#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

// What midi.h writes is what the trainers read.
_Static_assert((int)DATA_TOKENS == (int)MIDI_TOKENS && (int)TOKEN_OFFSET == (int)MIDI_OFFSET &&
                   (int)TOKEN_PITCH == (int)MIDI_PITCH && (int)TOKEN_DURATION == (int)MIDI_DURATION,
               "the tokens of base/data.h are those of midi.h");

enum { WINDOW = 257, MOST_FILE_BYTES = 32 << 20 }; // files above 32 MiB are skipped

typedef struct {
    char *path;    // relative to the folder searched
    char *problem; // why it cannot be read, or NULL
} Entry;

typedef struct {
    char *name;
    uint8_t *tokens;
    size_t n_tokens;
    bool test;
} Piece;

typedef struct {
    Piece *pieces;
    size_t n;
} Corpus;

// An array for n items of a size, at least one byte, with what `old` held; NULL makes a new one.
static void *grow(void *old, size_t n, size_t size) {
    void *memory = n < SIZE_MAX / 2 / size ? realloc(old, n * size + 1) : NULL;
    if (!memory) {
        fprintf(stderr, "prepare_music: out of memory\n");
        exit(1);
    }
    return memory;
}

static char *copy_text(const char *text) { return strcpy(grow(NULL, strlen(text) + 1, 1), text); }

// Prints a name with what could disturb a terminal, control characters and what is not UTF-8, as %XX.
static void print_name(FILE *out, const char *name) {
    size_t left = strlen(name);
    while (left > 0) {
        int length = utf8_length(name, left);
        const bool harmless = shown_length(name, left);
        if (length == 0) length = 1;
        for (int i = 0; i < length; i++) fprintf(out, harmless ? "%c" : "%%%02X", (unsigned char)name[i]);
        name += length;
        left -= (size_t)length;
    }
}

static int complain(const char *path, const char *sentence) { // returns the exit status
    fflush(stdout);
    fprintf(stderr, "prepare_music: ");
    print_name(stderr, path);
    fprintf(stderr, "%s%s\n", *path ? ": " : "", sentence);
    return 1;
}

static void line(const char *what, const char *path, const char *why) {
    printf("%s ", what);
    print_name(stdout, path);
    printf(": %s\n", why);
}

// ---- finding the files

static bool is_midi_name(const char *name) {
    static const char *const suffixes[] = {".mid", ".midi", ".kar", ".rmi"};
    const char *dot = strrchr(name, '.');
    bool found = false;
    for (int i = 0; dot && i < 4; i++) found |= !strcasecmp(dot, suffixes[i]);
    return found;
}

static int by_path(const void *a, const void *b) { // strcmp compares unsigned bytes
    const Entry *x = a, *y = b;
    return strcmp(x->path, y->path);
}

typedef struct {
    Entry *entries; // MIDI files, and what cannot be searched
    size_t n;
    char **folders; // found and not yet searched
    size_t n_folders;
    size_t others; // files with other names
} Search;

static void add_entry(Search *search, char *path, const char *problem) {
    search->entries = grow(search->entries, search->n + 1, sizeof(Entry));
    search->entries[search->n].path = path;
    search->entries[search->n++].problem = problem ? copy_text(problem) : NULL;
}

static void search_folder(Search *search, const char *root, char *relative) {
    char *path = path_join(root, relative);
    DIR *folder = opendir(path);
    if (!folder) {
        char why[200];
        snprintf(why, sizeof why, "this folder cannot be searched: %s", strerror(errno));
        add_entry(search, copy_text(*relative ? relative : "."), why);
    }
    for (struct dirent *item; folder && (item = readdir(folder)) != NULL;) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, "..")) continue;
        char *name = path_join(relative, item->d_name), *full = path_join(root, name);
        struct stat status;
        bool midi = is_midi_name(name), link = !lstat(full, &status) && S_ISLNK(status.st_mode),
             known = !stat(full, &status);
        if (known && S_ISDIR(status.st_mode) && !link) {
            search->folders = grow(search->folders, search->n_folders + 1, sizeof(char *));
            search->folders[search->n_folders++] = name;
        } else if (known && S_ISDIR(status.st_mode)) {
            add_entry(search, name, "a link to a folder is not followed");
        } else if (midi && !known) {
            add_entry(search, name, strerror(errno));
        } else if (midi) {
            add_entry(search, name, S_ISREG(status.st_mode) ? NULL : "is not a regular file");
        } else {
            search->others++;
            free(name);
        }
        free(full);
    }
    if (folder) closedir(folder);
    free(path);
    free(relative);
}

// All MIDI files below the root, sorted; false (with a sentence on stderr) if there is none.
static bool find_files(const char *root, Search *search) {
    memset(search, 0, sizeof *search);
    struct stat status;
    if (stat(root, &status)) return !complain(root, strerror(errno));
    if (!S_ISDIR(status.st_mode)) return !complain(root, "is not a folder; give a folder of MIDI files");
    search_folder(search, root, copy_text(""));
    while (search->n_folders > 0) search_folder(search, root, search->folders[--search->n_folders]);
    if (search->n > 0) qsort(search->entries, search->n, sizeof(Entry), by_path);
    for (size_t i = 0; i < search->n; i++) {
        if (is_midi_name(search->entries[i].path)) return true;
    }
    for (size_t i = 0; i < search->n; i++) line("skipped", search->entries[i].path, search->entries[i].problem);
    return !complain(root, "holds no MIDI files (.mid .midi .kar .rmi)");
}

static void free_search(Search *search) {
    for (size_t i = 0; i < search->n; i++) {
        free(search->entries[i].path);
        free(search->entries[i].problem);
    }
    free(search->entries);
    free(search->folders);
}

// ---- reading them

enum { CHANGES_SIZE = 600 };

static void note_change(char changes[CHANGES_SIZE], const char *what, size_t count) {
    size_t length = strlen(changes);
    if (count > 0) snprintf(changes + length, CHANGES_SIZE - length, "%s%s: %zu", length ? "; " : "", what, count);
}

// Appends the piece in a file. changes becomes how it differs from the file, or "". On failure problem is why.
static bool add_piece(Corpus *corpus, const char *root, const char *name, bool test, char changes[CHANGES_SIZE],
                      midi_error *problem) {
    midi_song song;
    midi_report report;
    Piece piece = {NULL, NULL, 0, test};
    char *path = path_join(root, name);
    bool good = midi_read_file(&song, path, MOST_FILE_BYTES, problem) &&
                midi_encode(&song, &piece.tokens, &piece.n_tokens, &report, problem);
    free(path);
    changes[0] = 0;
    if (good) {
        if (report.assumed_meter) strcpy(changes, "no time signature, read as 4/4");
        note_change(changes, "notes outside the piano's keys dropped", report.out_of_range);
        note_change(changes, "notes too short for the grid dropped", report.vanished);
        note_change(changes, "notes never ended, ended with their track", song.open_notes);
        note_change(changes, "ends of notes that never began ignored", song.unmatched_offs);
        note_change(changes, "senseless time signatures ignored", song.ignored_meters);
        note_change(changes, "tracks announced and missing", song.missing_tracks);
        note_change(changes, "chunks that are no tracks ignored", song.skipped_chunks);
        note_change(changes, "bytes after the last track ignored", song.trailing_bytes);
    }
    if (good && piece.n_tokens == 0) {
        good = false;
        snprintf(problem->text, sizeof problem->text, "gives no tokens%s%.150s%s", *changes ? " (" : "", changes,
                 *changes ? ")" : "");
    } else if (good && report.notes == 0) {
        note_change(changes, "holds no notes, only bar lines", report.bars);
    }
    midi_free(&song);
    if (!good) {
        MIDI_FREE(piece.tokens);
        return false;
    }
    piece.name = copy_text(name);
    corpus->pieces = grow(corpus->pieces, corpus->n + 1, sizeof(Piece));
    corpus->pieces[corpus->n++] = piece;
    return true;
}

// Appends the pieces of a folder, as training or test pieces; false (with a sentence on stderr) if there are none.
static bool add_folder(Corpus *corpus, const char *root, bool test) {
    Search search;
    size_t before = corpus->n, changed = 0;
    bool found = find_files(root, &search);
    for (size_t i = 0; found && i < search.n; i++) {
        const Entry *entry = &search.entries[i];
        char changes[CHANGES_SIZE] = "";
        midi_error problem;
        bool kept = !entry->problem && add_piece(corpus, root, entry->path, test, changes, &problem);
        if (!kept) line("skipped", entry->path, entry->problem ? entry->problem : problem.text);
        if (kept && *changes) line("changed", entry->path, changes);
        changed += kept && *changes;
    }
    size_t kept = corpus->n - before;
    if (found) {
        print_name(stdout, root);
        printf(": %zu files, %zu kept (%zu of them changed), %zu skipped, %zu of other kinds\n",
               search.n + search.others, kept, changed, search.n - kept, search.others);
        if (kept == 0) complain(root, "none of its MIDI files can be used; the lines above say why");
    }
    free_search(&search);
    return found && kept > 0;
}

// ---- writing the datasets

// The first pieces of a permutation by the seed are for testing: test * n, rounded, but at least one on each side.
static void split(Corpus *corpus, double test, uint64_t seed) {
    double wanted = floor(test * (double)corpus->n + 0.5);
    size_t n_test = wanted < 1 ? 1 : wanted > (double)(corpus->n - 1) ? corpus->n - 1 : (size_t)wanted;
    for (size_t i = 0; i < corpus->n; i++) {
        corpus->pieces[i].test = philox_permute(philox_key(seed, PHILOX_SPLIT, 0), corpus->n, i) < n_test;
    }
}

// Writes PATH.new, which takes PATH's place once its sibling is written as well.
static bool save(const Corpus *corpus, bool test, const char *path, char *error) {
    size_t n_tokens = 0, n_pieces = 0, names_size = 0, too_short = 0;
    int64_t windows = 0, *starts = grow(NULL, corpus->n + 1, sizeof *starts);
    uint8_t *tokens = NULL;
    char *names = NULL;
    for (size_t i = 0; i < corpus->n; i++) {
        const Piece *piece = &corpus->pieces[i];
        if (piece->test != test) continue;
        tokens = grow(tokens, n_tokens + piece->n_tokens, 1);
        names = grow(names, names_size + 3 * strlen(piece->name) + 2, 1);
        if (n_pieces > 0) names[names_size++] = '\n';
        names_size += name_escape(piece->name, names + names_size);
        starts[n_pieces++] = (int64_t)n_tokens;
        memcpy(tokens + n_tokens, piece->tokens, piece->n_tokens);
        n_tokens += piece->n_tokens;
        windows += piece->n_tokens >= WINDOW ? (int64_t)piece->n_tokens - WINDOW + 1 : 0;
        too_short += piece->n_tokens < WINDOW;
    }
    starts[n_pieces] = (int64_t)n_tokens;
    printf("%s: %zu pieces, %zu tokens, %lld windows of %d tokens", test ? "test" : "train", n_pieces, n_tokens,
           (long long)windows, WINDOW);
    if (too_short > 0) printf(" (pieces too short for one: %zu)", too_short);
    printf("\n");
    bool saved = dataset_save(path, tokens, (int64_t)n_tokens, starts, (int64_t)n_pieces, names, error);
    free(tokens);
    free(starts);
    free(names);
    return saved;
}

static bool save_both(const Corpus *corpus, const char *out, char *error) {
    static const char *const names[2] = {"train.safetensors", "test.safetensors"};
    static const char *const fresh_names[2] = {"train.safetensors.new", "test.safetensors.new"};
    char *path[2], *fresh[2];
    struct stat status;
    size_t existing = existing_folders(out);
    bool saved = make_folders(out, error);
    for (int i = 0; i < 2; i++) {
        path[i] = path_join(out, names[i]);
        fresh[i] = path_join(out, fresh_names[i]);
        if (saved && !stat(path[i], &status) && !S_ISREG(status.st_mode)) {
            saved = fail(error, "%s: is in the way; a dataset would replace it, but it is not a regular file", path[i]);
        }
    }
    const bool ready = saved;
    for (int i = 0; i < 2 && saved; i++) {
        size_t length = strlen(fresh[i]);
        saved = save(corpus, i == 1, fresh[i], error);
        bool of_fresh = !saved && !strncmp(error, fresh[i], length);
        if (of_fresh) fail(error, "%s%s", path[i], error + length); // say it of the file that was asked for
    }
    for (int i = 0; i < 2 && saved; i++) {
        if (rename(fresh[i], path[i])) saved = fail(error, "%s: cannot be replaced: %s", path[i], strerror(errno));
    }
    for (int i = 0; i < 2 && ready && !saved; i++) remove(fresh[i]);
    if (saved) printf("wrote %s and %s\n", path[0], path[1]);
    if (!saved) remove_empty_folders(out, existing);
    for (int i = 0; i < 2; i++) {
        free(path[i]);
        free(fresh[i]);
    }
    return saved;
}

// ---- the command line

static int print_tokens(const char *path) {
    midi_song song;
    midi_error error;
    uint8_t *tokens;
    size_t n;
    if (!midi_read_file(&song, path, MOST_FILE_BYTES, &error)) return complain(path, error.text);
    bool good = midi_encode(&song, &tokens, &n, NULL, &error);
    midi_free(&song);
    if (!good) return complain(path, error.text);
    for (size_t i = 0; i < n; i++) printf("%d\n", tokens[i]);
    MIDI_FREE(tokens);
    return 0;
}

static void print_help(const Flags *flags) {
    printf("prepare_music - make the datasets train.safetensors and test.safetensors from folders of MIDI files\n\n"
           "  prepare_music [--out data] TRAIN_DIR TEST_DIR\n"
           "  prepare_music [--out data] [--test 0.1] [--seed 1] DIR    split one folder, piece by piece\n"
           "  prepare_music --tokens FILE.mid                           print the token ids of a file, one a line\n\n");
    flags_print(flags);
    printf(
        "\nFolders are searched to any depth for .mid .midi .kar .rmi (in any letter case). Links to files are\n"
        "followed, links to folders are not. A line is printed for each file that is skipped or changed. Files that\n"
        "give no tokens are skipped; pieces too short for a window of 257 tokens are kept, but give nothing to train\n"
        "on. Exit status: 0 done, 1 it failed and nothing was written, 2 wrong usage.\n");
}

int main(int argc, char **argv) {
    Flags flags = {0};
    Texts folders;
    const char *out, *tokens;
    double test;
    uint64_t seed;
    char error[ERROR_SIZE] = "";
    int status = 0;
    program_start();
    flag_texts(&flags, "", "DIR", &folders, 2, "folder of MIDI files");
    Flag *out_flag = flag_text(&flags, "out", "DIR", &out, "data", "where the datasets go");
    flag_text(&flags, "tokens", "FILE", &tokens, NULL, "print the token ids of FILE; goes with nothing else");
    Flag *test_flag = flag_number(&flags, "test", &test, 0.1, "(0, 1)", "part of the pieces of DIR for testing");
    Flag *seed_flag = flag_seed(&flags, &seed, "which pieces these are");
    bool good = flags_parse(&flags, argc, argv, error), splits = test_flag->given || seed_flag->given;
    if (good && (flags.help || flags.version)) {
        if (flags.help) print_help(&flags);
        if (flags.version) printf("prepare_music %s\n", MUSIC_VERSION);
        return program_end("prepare_music", 0, error);
    }
    if (good && tokens) {
        good = (!folders.n && !splits && !out_flag->given) ||
               fail(error, "--tokens %.60s: it goes with nothing else", tokens);
        return program_end("prepare_music", good ? print_tokens(tokens) : 2, error);
    }
    if (good && folders.n == 0) {
        good = fail(error, "give a folder of MIDI files, or two, for training and for testing; --help says more");
    }
    if (good && folders.n == 2 && splits) {
        good = fail(error, "--test and --seed: only one folder can be split; leave them out, or give one folder");
    }
    if (!good) return program_end("prepare_music", 2, error);

    Corpus corpus = {NULL, 0};
    for (int i = 0; i < folders.n && status == 0; i++) status = !add_folder(&corpus, folders.list[i], i == 1);
    if (status == 0 && folders.n == 1 && corpus.n < 2) {
        status = complain(folders.list[0], "holds only one piece; two are needed, one to train on and one to test on");
    }
    if (status == 0 && folders.n == 1) split(&corpus, test, seed);
    if (status == 0 && !save_both(&corpus, out, error)) status = 1;
    for (size_t i = 0; i < corpus.n; i++) {
        free(corpus.pieces[i].name);
        MIDI_FREE(corpus.pieces[i].tokens);
    }
    free(corpus.pieces);
    return program_end("prepare_music", status, error);
}
