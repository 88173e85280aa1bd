// A song that goes on from a MIDI file, from the command line to the files (sample_music.c): any bytes given to --prime
// end in exit status 0 or 1. With 0 there is a .mid that is read back without anything odd, with a tempo, a time
// signature and notes that end before their key is struck again, and an .svg that is well-formed; with 1 there is none
// of them. The model is one of the seeds.
#define TESTING
#include "sample_music.c" // first: it chooses the system's interfaces

#include "fuzz.h"

static char mid[256], svg[256];

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    snprintf(mid, sizeof mid, "%s", scratch_path("song.mid"));
    snprintf(svg, sizeof svg, "%s", scratch_path("song.svg"));
    if (!freopen("/dev/null", "w", stdout)) abort();
    stderr = stdout; // the program's; a broken promise and a sanitizer write to 2 itself
    return 0;
}

UNTRACED static void promise_files(void) {
    midi_song song;
    midi_error problem;
    int64_t struck[128] = {0};
    void *bytes;
    size_t size;
    char error[ERROR_SIZE];
    PROMISE(midi_read_file(&song, mid, 1 << 24, &problem), "%s", problem.text);
    PROMISE(!song.open_notes && !song.unmatched_offs && !song.ignored_meters, "an odd file");
    PROMISE(song.n_tempos && !song.tempos[0].tick && song.n_meters, "no tempo, or no meter");
    for (size_t i = 0; i < song.n_notes; i++) {
        const midi_note *note = &song.notes[i];
        PROMISE(note->start >= struck[note->key] && note->end > note->start, "note %zu", i);
        struck[note->key] = note->end;
    }
    PROMISE(read_file(svg, &bytes, &size, error), "%s", error);
    promise_xml(bytes, size, "data-note");
    planted(bytes, size + 1);
    free(bytes);
    midi_free(&song);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    const uint32_t hash = hash_of(input, size);
    char tokens[32];
    snprintf(tokens, sizeof tokens, "%u", 1 + hash % 64);
    char *argv[] = {(char *)"sample_music",
                    (char *)"build/fuzz/seeds/model/gpt",
                    (char *)"--prime",
                    (char *)file_of(input, size),
                    (char *)"--prime-tokens",
                    tokens,
                    (char *)"--tokens",
                    (char *)"9",
                    (char *)"--seed",
                    (char *)"1",
                    (char *)"-o",
                    mid,
                    (char *)"-o",
                    svg,
                    (char *)"--no-prime"};
    unlink(mid);
    unlink(svg);
    const int status = sample_main(hash % 3 ? 14 : 15, argv);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (interrupted) exit(1);
    PROMISE(status == 0 || status == 1, "exit status %d", status);
    if (status == 0) promise_files();
    if (status == 1) PROMISE(access(mid, F_OK) && access(svg, F_OK), "a file of a song that failed");
    return 0;
}
