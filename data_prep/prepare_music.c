/* prepare_music - folders of MIDI files -> train.safetensors and test.safetensors, the datasets of the trainers.

Promises: the same files give the same bytes, whatever order the folder lists them in; every file that is skipped or
changed gets a line that says why or how; a file that the system fails to give (a bad disk, no memory) ends the run.
Nothing is written before everything is computed, and an old dataset is replaced only once both new files are safely
on the disk, both or neither. Every file is treated as hostile (see midi.h), and so is its name.

Leaves out: judging the music. Each file that has notes is a piece, long or short, good or bad; sort the folder first.
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
    char *problem; // why it is not tried, or NULL
} Entry;

typedef struct {
    char *name;
    uint8_t *tokens;
    size_t n_tokens;
    size_t lengthened; // notes that were too short
    uint64_t tune;     // see tune_of
    size_t next;       // number + 1 of the piece before it in its chain, or 0
    bool test;
} Piece;

enum { CHAINS = 1 << 16 };

typedef struct {
    Piece *pieces;
    size_t n;
    size_t chains[CHAINS]; // number + 1 of the last piece of each tune modulo CHAINS, or 0
} Corpus;

typedef struct {
    bool keep_short, no_drums, keep_copies;
} Choices;

// Of a file, or of all files of a folder that can be read.
typedef struct {
    size_t notes, too_short, out_of_range, drums; // notes in all, and some of them
    size_t pedals;                                // files in which the sustain pedal is pressed
    size_t changed, copies, transposed;           // pieces; transposed: another one in a different key
} Tally;

// ---- finding the files

static bool is_midi_name(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && (!strcasecmp(dot, ".mid") || !strcasecmp(dot, ".midi") || !strcasecmp(dot, ".kar") ||
                   !strcasecmp(dot, ".rmi"));
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

static void print_skipped(const Entry *entry) { print_line(stdout, "skipped %s: %s", entry->path, entry->problem); }

static void add_entry(Search *search, const char *path, const char *problem) {
    const Entry entry = {must_have(strdup(path)), problem ? must_have(strdup(problem)) : NULL};
    search->entries = must_have(realloc(search->entries, (search->n + 1) * sizeof(Entry)));
    search->entries[search->n++] = entry;
}

// Whether a failure of the system concerns one file or folder alone. All others end the run: what could not be read
// this time must not be missing from a dataset.
static bool of_one_file(int code) {
    return code == ENOENT || code == EACCES || code == EPERM || code == ELOOP || code == ENOTDIR ||
           code == ENAMETOOLONG || code == EOVERFLOW; // too large for 32 bits
}

// Frees relative. False, and a sentence, if the run must end.
static bool search_folder(Search *search, const char *root, char *relative, char *error) {
    const Path path = path_join(root, relative);
    DIR *folder = opendir(path.text);
    struct dirent *item;
    int problem = folder ? 0 : errno;
    while (folder && !problem && (errno = 0, item = readdir(folder)) != NULL) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, "..")) continue;
        const Path name = path_join(relative, item->d_name), full = path_join(root, name.text);
        struct stat status;
        bool known = !lstat(full.text, &status), link = known && S_ISLNK(status.st_mode);
        if (link) known = !stat(full.text, &status);
        if (!known && !of_one_file(errno)) problem = errno;
        if (known && S_ISDIR(status.st_mode) && !link) {
            search->folders = must_have(realloc(search->folders, (search->n_folders + 1) * sizeof(char *)));
            search->folders[search->n_folders++] = must_have(strdup(name.text));
        } else if (known && S_ISDIR(status.st_mode)) {
            add_entry(search, name.text, "a link to a folder is not followed");
        } else if (is_midi_name(name.text)) {
            add_entry(search, name.text, NULL); // whether it can be read is seen when it is
        } else {
            search->others++;
        }
    }
    if (folder && !problem) problem = errno;
    char why[200];
    snprintf(why, sizeof why, "this folder cannot be searched: %s", strerror(problem));
    bool good = !problem || of_one_file(problem) || fail(error, "%s: %s", path.text, why);
    if (good && problem) add_entry(search, *relative ? relative : ".", why);
    if (folder) closedir(folder);
    free(relative);
    return good;
}

// All MIDI files below the root, sorted, into a search that comes zeroed; false, and a sentence, if there is none, or
// the run must end.
static bool find_files(const char *root, Search *search, char *error) {
    struct stat status;
    if (stat(root, &status)) return fail(error, "%s: %s", root, strerror(errno));
    if (!S_ISDIR(status.st_mode)) return fail(error, "%s: is not a folder; give a folder of MIDI files", root);
    bool good = search_folder(search, root, must_have(strdup("")), error);
    while (good && search->n_folders > 0) {
        good = search_folder(search, root, search->folders[--search->n_folders], error);
    }
    if (!good) return false;
    if (search->n > 0) qsort(search->entries, search->n, sizeof(Entry), by_path);
    for (size_t i = 0; i < search->n; i++) {
        if (is_midi_name(search->entries[i].path)) return true;
    }
    for (size_t i = 0; i < search->n; i++) print_skipped(&search->entries[i]);
    return fail(error, "%s: holds no MIDI files (.mid .midi .kar .rmi)", root);
}

static void free_search(Search *search) {
    for (size_t i = 0; i < search->n; i++) {
        free(search->entries[i].path);
        free(search->entries[i].problem);
    }
    while (search->n_folders > 0) free(search->folders[--search->n_folders]);
    free(search->entries);
    free(search->folders);
}

// ---- reading them

enum { CHANGES_SIZE = 800 };

// total: of how many, or 0.
static void note_change(char changes[CHANGES_SIZE], const char *what, size_t count, size_t total) {
    size_t length = strlen(changes);
    char of[32] = "";
    if (total > 0) snprintf(of, sizeof of, " of %zu", total);
    if (count == 0) return;
    snprintf(changes + length, CHANGES_SIZE - length, "%s%s: %zu%s", length ? "; " : "", what, count, of);
}

// What becomes of notes, of a file or in the summary of all, which tells the flag that keeps them.
static void note_notes(char changes[CHANGES_SIZE], const Tally *tally, const Choices *choices, bool summary) {
    const char *too_short = choices->keep_short ? "notes too short for the grid made a 16th long"
                            : summary           ? "notes too short for the grid dropped (--keep-short keeps them)"
                                                : "notes too short for the grid dropped";
    const char *drums = choices->no_drums ? "drum notes dropped"
                        : summary         ? "drum notes played as keys (--no-drums drops them)"
                                          : "drum notes played as keys";
    note_change(changes, "notes outside the piano's keys dropped", tally->out_of_range, tally->notes);
    note_change(changes, too_short, tally->too_short, tally->notes);
    note_change(changes, drums, tally->drums, tally->notes);
}

// A hash of tokens that is the same in every key, because pitches count from the first one.
static uint64_t tune_of(const uint8_t *tokens, size_t n) {
    uint64_t hash = 14695981039346656037u; // FNV-1a (Fowler, Noll, Vo)
    int first = 0;
    for (size_t i = 0; i < n; i++) {
        bool pitch = tokens[i] >= MIDI_PITCH && tokens[i] < MIDI_DURATION;
        if (pitch && !first) first = tokens[i];
        hash = (hash ^ (uint64_t)(pitch ? 256 + tokens[i] - first : tokens[i])) * 1099511628211u;
    }
    return hash;
}

// A piece with the same tokens, or NULL; *transposed becomes true where one is the same in another key.
static const Piece *find_copy(const Corpus *corpus, const Piece *piece, bool *transposed) {
    for (size_t i = corpus->chains[piece->tune % CHAINS]; i > 0; i = corpus->pieces[i - 1].next) {
        const Piece *other = &corpus->pieces[i - 1];
        if (other->tune != piece->tune || other->n_tokens != piece->n_tokens) continue;
        if (!memcmp(other->tokens, piece->tokens, piece->n_tokens)) return other;
        *transposed = true;
    }
    return NULL;
}

// Reads a file and makes its tokens. On failure there is nothing to free.
static bool encode(const char *path, const Choices *choices, midi_song *song, Piece *piece, midi_report *report,
                   midi_error *problem) {
    if (!midi_read_file(song, path, MOST_FILE_BYTES, problem)) return false;
    if (choices->no_drums) midi_drop_drums(song);
    piece->lengthened = choices->keep_short ? midi_keep_short(song) : 0;
    bool good = midi_encode(song, &piece->tokens, &piece->n_tokens, report, problem);
    if (!good) midi_free(song);
    return good;
}

// A piece, its counts, and how it differs from its file. On failure there is nothing to free.
static bool read_piece(const char *path, const Choices *choices, Piece *piece, Tally *all, char changes[CHANGES_SIZE],
                       midi_error *problem) {
    midi_song song;
    midi_report report;
    if (!encode(path, choices, &song, piece, &report, problem)) return false;
    const Tally tally = {.notes = song.n_notes + song.dropped_drums,
                         .too_short = report.vanished + piece->lengthened,
                         .out_of_range = report.out_of_range,
                         .drums = report.drums + song.dropped_drums};
    all->notes += tally.notes;
    all->too_short += tally.too_short;
    all->out_of_range += tally.out_of_range;
    all->drums += tally.drums;
    all->pedals += song.pedal_presses > 0;
    bool good = midi_usable(&song, &report, problem);
    if (!good) MIDI_FREE(piece->tokens);
    if (report.assumed_meter) strcpy(changes, "no time signature, read as 4/4");
    note_notes(changes, &tally, choices, false);
    note_change(changes, "notes never ended, ended with their track", song.open_notes, 0);
    note_change(changes, "ends of notes that never began ignored", song.unmatched_offs, 0);
    note_change(changes, "senseless time signatures ignored", song.ignored_meters, 0);
    note_change(changes, "tracks announced and missing", song.missing_tracks, 0);
    note_change(changes, "tracks not announced and not read", song.unread_tracks, 0);
    note_change(changes, "chunks that are no tracks ignored", song.skipped_chunks, 0);
    note_change(changes, "bytes after the last track ignored", song.trailing_bytes, 0);
    midi_free(&song);
    return good;
}

// Appends the piece in a file and prints how it is changed, or why it is skipped. False if the run must end, with a
// sentence in error.
static bool add_piece(Corpus *corpus, const char *root, const char *name, bool test, const Choices *choices, Tally *all,
                      char *error) {
    Piece piece = {.test = test};
    char changes[CHANGES_SIZE] = "";
    const Path path = path_join(root, name);
    midi_error problem;
    bool good = read_piece(path.text, choices, &piece, all, changes, &problem), transposed = false;
    if (!good && problem.code && !of_one_file(problem.code)) return fail(error, "%s: %s", path.text, problem.text);
    if (!good) {
        print_line(stdout, "skipped %s: %s", name, problem.text);
        return true;
    }
    piece.tune = tune_of(piece.tokens, piece.n_tokens);
    const Piece *copy = find_copy(corpus, &piece, &transposed);
    all->copies += copy != NULL;
    if (copy && !choices->keep_copies) {
        print_line(stdout, "skipped %s: a copy of %s%s", name, copy->test == test ? "" : "the training folder's ",
                   copy->name);
        MIDI_FREE(piece.tokens);
        return true;
    }
    if (*changes) print_line(stdout, "changed %s: %s", name, changes);
    all->changed += *changes != 0;
    all->transposed += transposed && !copy;
    piece.name = must_have(strdup(name));
    piece.next = corpus->chains[piece.tune % CHAINS];
    corpus->pieces = must_have(realloc(corpus->pieces, (corpus->n + 1) * sizeof(Piece)));
    corpus->pieces[corpus->n++] = piece;
    corpus->chains[piece.tune % CHAINS] = corpus->n;
    return true;
}

// What became of a folder: a line about its files, and one about their notes.
static void print_summary(const char *root, const Search *search, size_t kept, const Tally *all,
                          const Choices *choices) {
    char changes[CHANGES_SIZE] = "";
    print_line(stdout, "%s: %zu files, %zu kept (%zu of them changed), %zu skipped, %zu of other kinds", root,
               search->n + search->others, kept, all->changed, search->n - kept, search->others);
    note_notes(changes, all, choices, true);
    note_change(changes, "files whose sustain pedal is ignored", all->pedals, 0);
    note_change(changes, choices->keep_copies ? "copies kept" : "copies left out", all->copies, 0);
    note_change(changes, "pieces that are others in a different key", all->transposed, kept);
    print_line(stdout, "%s: %zu notes%s%s", root, all->notes, *changes ? "; " : "", changes);
}

// Appends the pieces of a folder, as training or test pieces; false, and a sentence, if there are none.
static bool add_folder(Corpus *corpus, const char *root, bool test, const Choices *choices, char *error) {
    Search search = {0};
    Tally all = {0};
    size_t before = corpus->n;
    bool good = find_files(root, &search, error);
    for (size_t i = 0; good && i < search.n; i++) {
        const Entry *entry = &search.entries[i];
        if (entry->problem) print_skipped(entry);
        if (!entry->problem) good = add_piece(corpus, root, entry->path, test, choices, &all, error);
    }
    if (good) {
        print_summary(root, &search, corpus->n - before, &all, choices);
        good =
            corpus->n > before || fail(error, "%s: none of its MIDI files can be used; the lines above say why", root);
    }
    free_search(&search);
    return good;
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

typedef struct {
    uint8_t *tokens;
    int64_t *starts; // [n_pieces + 1]
    char *names;
    size_t n_tokens, n_pieces;
} Set;

// The training or the test set, and a line about it.
static Set gather(const Corpus *corpus, bool test) {
    Set set = {.starts = must_have(calloc(corpus->n + 1, sizeof(int64_t))), .names = must_have(calloc(1, 1))};
    size_t names_size = 0, too_short = 0;
    int64_t windows = 0;
    for (size_t i = 0; i < corpus->n; i++) {
        const Piece *piece = &corpus->pieces[i];
        if (piece->test != test) continue;
        set.tokens = must_have(realloc(set.tokens, set.n_tokens + piece->n_tokens));
        set.names = must_have(realloc(set.names, names_size + 3 * strlen(piece->name) + 2));
        if (set.n_pieces > 0) set.names[names_size++] = '\n';
        names_size += name_escape(piece->name, set.names + names_size);
        set.starts[set.n_pieces++] = (int64_t)set.n_tokens;
        memcpy(set.tokens + set.n_tokens, piece->tokens, piece->n_tokens);
        set.n_tokens += piece->n_tokens;
        windows += piece->n_tokens >= WINDOW ? (int64_t)piece->n_tokens - WINDOW + 1 : 0;
        too_short += piece->n_tokens < WINDOW;
    }
    set.starts[set.n_pieces] = (int64_t)set.n_tokens;
    printf("%s: %zu pieces, %zu tokens, %lld windows of %d tokens", test ? "test" : "train", set.n_pieces, set.n_tokens,
           (long long)windows, WINDOW);
    if (too_short > 0) printf(" (pieces too short for one: %zu)", too_short);
    printf("\n");
    return set;
}

enum { PLACE, FRESH, OLD, NAMES }; // where a set belongs, grows, and steps aside

// Puts the fresh sets into their places, both or neither. The old ones first step aside: a program that is killed in
// between leaves no set at one of the places, which a trainer notices, and never an old one beside a new one. Where an
// old one cannot get its place back, the sentence names the file that it is in.
static bool replace_both(Path paths[NAMES][2], char *error) {
    bool aside[2] = {false, false}, placed[2] = {false, false}, good = true;
    for (int step = 0; step < 4 && good; step++) {
        const int i = step % 2;
        if (step < 2) aside[i] = good = !rename(paths[PLACE][i].text, paths[OLD][i].text);
        if (step >= 2) placed[i] = good = !rename(paths[FRESH][i].text, paths[PLACE][i].text);
        if (step < 2 && errno == ENOENT) good = true;
        if (!good) fail(error, "%s: cannot be replaced: %s", paths[PLACE][i].text, strerror(errno));
    }
    for (int i = 0; i < 2; i++) {
        if (placed[i] && !good) remove(paths[PLACE][i].text);
        if (aside[i] && !good && rename(paths[OLD][i].text, paths[PLACE][i].text)) {
            const size_t used = strlen(error);
            snprintf(error + used, ERROR_SIZE - used, "; what it held is in %s", paths[OLD][i].text);
        }
        if (good) remove(paths[OLD][i].text);
    }
    return good;
}

static bool save_both(const Corpus *corpus, const char *out, char *error) {
    static const char *const names[NAMES][2] = {{"train.safetensors", "test.safetensors"},
                                                {"train.safetensors.new.tmp", "test.safetensors.new.tmp"},
                                                {"train.safetensors.old", "test.safetensors.old"}};
    Set sets[2] = {gather(corpus, false), gather(corpus, true)};
    Path paths[NAMES][2];
    struct stat status;
    for (int i = 0; i < 2 * NAMES; i++) paths[i / 2][i % 2] = path_join(out, names[i / 2][i % 2]);
    bool saved = make_folders(out, error);
    for (int i = 0; i < 2 && saved; i++) {
        const char *path = paths[PLACE][i].text;
        if (!stat(path, &status) && !S_ISREG(status.st_mode)) {
            saved = fail(error, "%s: is in the way; a dataset would replace it, but it is not a regular file", path);
        }
    }
    const bool ready = saved;
    for (int i = 0; i < 2 && saved; i++) {
        const Set *set = &sets[i];
        size_t length = strlen(paths[FRESH][i].text);
        saved = dataset_save(paths[FRESH][i].text, set->tokens, (int64_t)set->n_tokens, set->starts,
                             (int64_t)set->n_pieces, set->names, error);
        if (!saved && !strncmp(error, paths[FRESH][i].text, length)) { // say it of the file that was asked for
            fail(error, "%s%s", paths[PLACE][i].text, error + length);
        }
    }
    saved = saved && replace_both(paths, error);
    for (int i = 0; i < 2 && ready && !saved; i++) remove(paths[FRESH][i].text);
    if (saved) printf("wrote %s and %s\n", paths[PLACE][0].text, paths[PLACE][1].text);
    for (int i = 0; i < 2; i++) {
        free(sets[i].tokens);
        free(sets[i].starts);
        free(sets[i].names);
    }
    return saved;
}

// ---- the command line

static bool print_tokens(const char *path, const Choices *choices, char *error) {
    midi_song song;
    midi_error problem;
    midi_report report;
    Piece piece;
    if (!encode(path, choices, &song, &piece, &report, &problem)) return fail(error, "%s: %s", path, problem.text);
    if (piece.n_tokens == 0 && !midi_usable(&song, &report, &problem)) {
        print_line(stderr, "prepare_music: %s: %s", path, problem.text);
    }
    for (size_t i = 0; i < piece.n_tokens; i++) printf("%d\n", piece.tokens[i]);
    MIDI_FREE(piece.tokens);
    midi_free(&song);
    return true;
}

static const char before_flags[] =
    "prepare_music - make the datasets train.safetensors and test.safetensors from folders of MIDI files\n\n"
    "  prepare_music [--out data] TRAIN_DIR TEST_DIR\n"
    "  prepare_music [--out data] [--test 0.1] [--seed 1] DIR    split one folder, piece by piece\n"
    "  prepare_music --tokens FILE.mid                           print the token ids of a file, one a line\n\n";
static const char behind_flags[] =
    "\nFolders are searched to any depth for .mid .midi .kar .rmi (in any letter case). Links to files are\n"
    "followed, links to folders are not. A line is printed for each file that is skipped or changed. Files without\n"
    "notes are skipped, and copies of other pieces; pieces too short for a window of 257 tokens are kept, but give\n"
    "nothing to train on. --tokens goes with --keep-short and --no-drums. The sustain pedal is ignored: a note is as\n"
    "long as its key is down. Exit status: 0 done, 1 it failed and nothing was written, 2 wrong usage.\n";

int main(int argc, char **argv) {
    Flags flags = {0};
    Texts folders;
    Choices choices;
    const char *out, *tokens;
    double test;
    uint64_t seed;
    char error[ERROR_SIZE] = "";
    program_start();
    flag_texts(&flags, "", "DIR", &folders, 2, "folder of MIDI files");
    Flag *out_flag = flag_text(&flags, "out", "DIR", &out, "data", "where the datasets go");
    flag_text(&flags, "tokens", "FILE", &tokens, NULL, "print the token ids of FILE");
    flag_switch(&flags, "keep-short", &choices.keep_short, "keep notes too short for the grid, a 16th long");
    flag_switch(&flags, "no-drums", &choices.no_drums, "drop the notes of channel 10, the drums");
    Flag *copies_flag = flag_switch(&flags, "keep-copies", &choices.keep_copies, "keep pieces with the same tokens");
    Flag *test_flag = flag_number(&flags, "test", &test, 0.1, "(0, 1)", "part of the pieces of DIR for testing");
    Flag *seed_flag = flag_seed(&flags, &seed, "which pieces these are");
    bool good = flags_parse(&flags, argc, argv, error), splits = test_flag->given || seed_flag->given;
    if (good && flags_answer(&flags, "prepare_music", before_flags, behind_flags)) {
        return program_end("prepare_music", 0, error);
    }
    if (good && tokens) {
        good = (!folders.n && !splits && !out_flag->given && !copies_flag->given) ||
               fail(error, "--tokens %.60s: it goes with nothing else but --keep-short and --no-drums", tokens);
        return program_end("prepare_music", good ? !print_tokens(tokens, &choices, error) : 2, error);
    }
    if (good && folders.n == 0) {
        good = fail(error, "give a folder of MIDI files, or two, for training and for testing; --help says more");
    }
    if (good && folders.n == 2 && splits) {
        good = fail(error, "--test and --seed: only one folder can be split; leave them out, or give one folder");
    }
    if (!good) return program_end("prepare_music", 2, error);

    static Corpus corpus;
    for (int i = 0; i < folders.n && good; i++) good = add_folder(&corpus, folders.list[i], i == 1, &choices, error);
    if (good && folders.n == 1 && corpus.n < 2) {
        good = fail(error, "%s: holds only one piece; two are needed, one to train on and one to test on",
                    folders.list[0]);
    }
    if (good && folders.n == 1) split(&corpus, test, seed);
    good = good && save_both(&corpus, out, error);
    for (size_t i = 0; i < corpus.n; i++) {
        free(corpus.pieces[i].name);
        MIDI_FREE(corpus.pieces[i].tokens);
    }
    free(corpus.pieces);
    return program_end("prepare_music", !good, error);
}
