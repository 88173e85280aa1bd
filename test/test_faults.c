// What the programs do when a call fails. Each runs again and again, and every time another one of its calls for memory
// or to the file system fails, at times all from there on (test/faults/preload.c). Then it ends with a sentence on
// stderr and exit status 1, or does without that call and makes the very same files. What an earlier run has left is
// whole, nothing else is left over, a trainer has lost no step to a single failure, and going on gives the bytes of a
// run in which nothing failed.
//
//     test_faults [CASE...]    only these; FAULT_SEED=N chooses the same calls again
//
// With TEST_LONG in the environment every call fails once, else some of them.
#include "base/program.h"

#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/wait.h>

#ifdef __GLIBC__

enum { MAX_WORDS = 64, MAX_CALLS = 20000, MAX_FILES = 32 };

typedef struct {
    const char *name, *before; // the folder `work` is a copy of `before`, or is not there
    const char *command;       // a program of the checkout and its flags
    const char *kind;          // "trainer", "often": it saves after each step, "prints": what it makes, on stdout
} Case;

static char root[PATH_MAX], library[PATH_MAX + 64], folder[200], error[ERROR_SIZE];
static uint64_t seed;

static bool is(const Case *c, const char *kind) { return strstr(c->kind, kind); }

// ---- folders that hold files only

typedef struct {
    char *list[MAX_FILES]; // sorted
    int n;
} Names;

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static Names names_in(const char *path) {
    Names names = {.n = 0};
    DIR *list = opendir(path);
    for (struct dirent *entry; list && (entry = readdir(list)) && names.n < MAX_FILES;) {
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) names.list[names.n++] = strdup(entry->d_name);
    }
    if (list) closedir(list);
    qsort(names.list, (size_t)names.n, sizeof *names.list, by_text);
    return names;
}

static void names_free(Names *names) {
    while (names->n) free(names->list[--names->n]);
}

typedef struct {
    char *bytes;
    size_t size;
} Bytes;

static Bytes bytes_of(const char *in, const char *name) { // empty if there is no such file
    void *bytes = NULL;
    Bytes file = {NULL, 0};
    if (read_file(path_join(in, name).text, &bytes, &file.size, error)) file.bytes = bytes;
    return file;
}

// What seconds a row of a log.csv took becomes x, or nothing where they need not be there.
static bool need_seconds = true;

static Bytes without_seconds(Bytes log) {
    char *to = log.bytes;
    for (char *line = to, *end; line && *line; line = *end ? end + 1 : end) {
        end = line + strcspn(line, "\n");
        char *comma = end;
        while (comma > line && *comma != ',') comma--;
        memmove(to, line, (size_t)(comma - line));
        to += comma - line;
        if (end - comma > 1 && need_seconds) *to++ = 'x';
    }
    log.size = (size_t)(to - log.bytes);
    return log;
}

static bool same(const char *in_one, const char *one, const char *in_two, const char *two) {
    Bytes a = bytes_of(in_one, one), b = bytes_of(in_two, two);
    if (!strcmp(one, "log.csv")) a = without_seconds(a), b = without_seconds(b);
    const bool same = a.bytes && b.bytes && a.size == b.size && !memcmp(a.bytes, b.bytes, a.size);
    free(a.bytes);
    free(b.bytes);
    return same;
}

static bool same_folder(const char *one, const char *two) {
    Names a = names_in(one), b = names_in(two);
    bool alike = a.n == b.n;
    for (int i = 0; alike && i < a.n; i++) {
        alike = !strcmp(a.list[i], b.list[i]) && same(one, a.list[i], two, b.list[i]);
    }
    names_free(&a);
    names_free(&b);
    return alike;
}

static void remove_folder(const char *path) {
    Names names = names_in(path);
    for (int i = 0; i < names.n; i++) remove(path_join(path, names.list[i]).text);
    names_free(&names);
    rmdir(path);
}

static void copy_folder(const char *from, const char *to) {
    Names names = names_in(from);
    mkdir(to, 0777);
    for (int i = 0; i < names.n; i++) {
        Bytes file = bytes_of(from, names.list[i]);
        const Path path = path_join(to, names.list[i]);
        FILE *out = fopen(path.text, "wb");
        if (out) fwrite(file.bytes, 1, file.size, out);
        if (!out || fclose(out)) printf("%s: cannot be copied\n", path.text);
        free(file.bytes);
    }
    names_free(&names);
}

// ---- programs

// Runs words, which spaces separate, with these variables. stdout and stderr go to the files of that name. Returns the
// exit status, or 128 and the number of a signal.
static int run(const char *command, const char *more, char *const *variables) {
    char line[1024], program[PATH_MAX + 1024], *words[MAX_WORDS];
    int n = 0, status;
    snprintf(line, sizeof line, "%s%s", command, more);
    for (char *word = strtok(line, " "); word && n < MAX_WORDS - 1; word = strtok(NULL, " ")) words[n++] = word;
    words[n] = NULL;
    snprintf(program, sizeof program, "%s/%s", root, words[0]);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        static const char *const files[] = {"/dev/null", "stdout", "stderr"};
        for (int i = 0; i < 3; i++) dup2(open(files[i], i ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0600), i);
        execve(program, words, variables);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0) return -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// The same with what this test sets for every program: threads wait asleep, for then no program starts itself again.
// fault: a variable of the library, which is not there if it is NULL.
static int run_case(const Case *c, const char *more, char *fault) {
    char *variables[8] = {"OMP_WAIT_POLICY=passive"};
    int n = 1;
    if (is(c, "often")) variables[n++] = "OFTEN=1";
    if (fault) variables[n++] = library;
    if (fault) variables[n++] = fault;
    return run(c->command, more, variables);
}

// The last line that the program said is a sentence behind a name.
static bool sentence_said(Bytes said) {
    if (!said.size || said.bytes[said.size - 1] != '\n') return false;
    const char *line = said.bytes + said.size - 1;
    while (line > said.bytes && line[-1] != '\n') line--;
    const size_t name = strspn(line, "abcdefghijklmnopqrstuvwxyz_");
    return name && !strncmp(line + name, ": ", 2) && strlen(line + name) > 10;
}

// ---- a case

static void begin(const Case *c) {
    remove_folder("work");
    if (c->before) copy_folder(c->before, "work");
}

// The steps that a trainer has taken by its lines of progress.
static long steps_shown(Bytes said) {
    long steps = 0, epoch, done, all;
    for (const char *line = said.bytes; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (sscanf(line, "epoch %ld  %ld of %ld", &epoch, &done, &all) == 3) steps = (epoch - 1) * all + done;
    }
    return steps;
}

// A trainer that has failed is run again, with --resume where it has saved its state. steps: what that must have. NULL,
// or what is wrong.
static const char *go_on(const Case *c, long steps) {
    const bool resumes = strstr(c->command, "--resume");
    const bool saved = !access("work/last.safetensors", F_OK) &&
                       !(c->before && same(c->before, "last.safetensors", "work", "last.safetensors"));
    if (c->before && !resumes && !same(c->before, "model.safetensors", "work", "model.safetensors") &&
        !same(c->before, "model.safetensors", "work", "model.prev.safetensors")) {
        return "the earlier model is gone";
    }
    if (run_case(c, saved && !resumes ? " --resume" : "", NULL)) return "it cannot go on";
    Bytes printed = bytes_of("", "stdout");
    const char *from = printed.bytes ? strstr(printed.bytes, "going on from step ") : NULL;
    const long step = from ? strtol(from + 19, NULL, 10) : 0;
    free(printed.bytes);
    if ((saved || resumes) && step < steps) return "steps are lost";
    need_seconds = false; // they may have been lost with the log.csv that could not be written
    const bool alike = same_folder("whole", "work");
    need_seconds = true;
    return alike ? NULL : "going on gives other files";
}

// Whether the earlier file could not get its place back, and the program says that what it held is in `aside`.
static bool is_aside(const Case *c, const char *name, const char *aside, Bytes said) {
    const size_t stem = strlen(name);
    return !strncmp(name, aside, stem) && !strcmp(aside + stem, ".old") && said.bytes && strstr(said.bytes, aside) &&
           same(c->before, name, "work", aside);
}

// What is wrong with the files that a failed program leaves, by what it said, or NULL.
static const char *left_over(const Case *c, Bytes said) {
    const char *wrong = NULL;
    Names now = names_in("work"), before = names_in(c->before ? c->before : "nothing");
    for (int i = 0; i < now.n; i++) {
        const char *name = now.list[i];
        bool known = !access(path_join("whole", name).text, F_OK);
        bool aside = false;
        for (int k = 0; k < before.n; k++) {
            known = known || !strcmp(before.list[k], name);
            aside = aside || is_aside(c, before.list[k], name, said);
        }
        if (aside) continue;
        // Where the earlier model could not get its final name, it is kept until the run goes on.
        known = known || (c->before && same(c->before, "model.safetensors", "work", name));
        const bool as_before = c->before && same(c->before, name, "work", name);
        if (!is(c, "trainer") && !as_before && !same("whole", name, "work", name)) wrong = "it damages a file";
        if (!known) wrong = "it leaves a file of another name";
    }
    for (int i = 0; i < before.n; i++) {
        bool there = !access(path_join("work", before.list[i]).text, F_OK);
        for (int k = 0; k < now.n; k++) there = there || is_aside(c, before.list[i], now.list[k], said);
        if (!there && !is(c, "trainer")) wrong = "it removes a file";
    }
    names_free(&now);
    names_free(&before);
    return wrong;
}

static void try_call(const Case *c, long number, bool onward, const char *call) {
    char fault[32];
    snprintf(fault, sizeof fault, "FAULT=%ld%s", number, onward ? "+" : "");
    begin(c);
    const int status = run_case(c, "", fault);
    const char *wrong = NULL;
    Bytes said = bytes_of("", "stderr");
    if (status == 0) {
        if (!same_folder("whole", "work")) wrong = "it says nothing, and makes other files";
        if (is(c, "prints") && !same("", "stdout", "", "printed")) wrong = "it says nothing, and prints something else";
    } else if (status != 1) {
        wrong = status > 128 ? "a signal ends it" : "its exit status is neither 0 nor 1";
    } else {
        wrong = sentence_said(said) ? left_over(c, said) : "it ends without a sentence";
        if (!wrong && is(c, "trainer")) wrong = go_on(c, onward ? 0 : steps_shown(said));
    }
    CHECK(!wrong, "%s, %s, %s: %s\n%s", c->name, fault, call, wrong, said.bytes ? said.bytes : "");
    free(said.bytes);
}

// Lets the calls of a case fail in turn, all of them or the first and last of each name and about `some` others.
static void try_case(const Case *c, bool all, int some) {
    static char *calls[MAX_CALLS + 1]; // from 1 on
    const double start = seconds_now();
    long n = 0, tried = 0;
    begin(c);
    const int status = run_case(c, "", "FAULT_LOG=calls");
    Bytes said = bytes_of("", "stderr"), log = bytes_of("", "calls");
    CHECK(!status, "%s: exit status %d\n%s", c->name, status, said.bytes);
    free(said.bytes);
    remove_folder("whole");
    mkdir("work", 0777);
    CHECK(!rename("work", "whole") && !rename("stdout", "printed"), "%s", strerror(errno));
    for (char *name = log.bytes ? strtok(log.bytes, "\n") : NULL; name && n < MAX_CALLS; name = strtok(NULL, "\n")) {
        calls[++n] = name;
    }
    CHECK(n > 5 && n < MAX_CALLS, "%s: %ld calls", c->name, n);
    for (long i = 1; i <= n; i++) {
        bool first = true, last = true;
        for (long k = 1; k < i; k++) first = first && strcmp(calls[k], calls[i]);
        for (long k = i + 1; k <= n; k++) last = last && strcmp(calls[k], calls[i]);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (!all && !first && !last && (long)((seed >> 33) % (uint64_t)n) >= some) continue;
        try_call(c, i, false, calls[i]);
        if (i % 8 == 0) try_call(c, i, true, calls[i]);
        tried++;
    }
    free(log.bytes);
    printf("%s: %ld of %ld calls failed in turn, %.1f s\n", c->name, tried, n, seconds_now() - start);
}

#define GPT "build/faults_gpt --layers 1 --width 8 --heads 2 --hidden 8 --rel 4"
#define LSTM "build/faults_lstm --layers 1 --width 8 --embed 4"
#define FEW " --threads 1 --window 24 --batch 2 --epoch-size 0.0007 --eval-stride 1500"
#define SONGS "sample_music --threads 1 --tokens 12 --top-p 0.9 "
#define FORMATS " -n 2 -o work/a.mid -o work/a.svg -o work/a.html"

static const char *const needed[] = {
    "data_prep/compose_music --pieces 4 --out midi",
    "data_prep/prepare_music --out data midi/train midi/test",
    "data_prep/prepare_music --out reverse midi/test midi/train",
    GPT FEW " --epochs 1 --seed 2 --out gpt",
    LSTM FEW " --epochs 1 --seed 2 --out lstm",
    GPT FEW " --epochs 2 --steps 4 --out gpt_part",
    LSTM FEW " --epochs 2 --steps 4 --out lstm_part",
    SONGS "gpt/model.safetensors --seed 5" FORMATS,
};

static const Case cases[] = {
    {"prepare", NULL, "data_prep/prepare_music --out work midi/train midi/test", "prints"},
    {"prepare_again", "reverse", "data_prep/prepare_music --out work midi/train midi/test", "prints"},
    {"tokens", NULL, "data_prep/prepare_music --tokens midi/test/002_etude_in_B_flat_major.mid", "prints"},
    {"gpt", NULL, GPT FEW " --epochs 2 --out work", "trainer"},
    {"lstm", NULL, LSTM FEW " --epochs 2 --out work", "trainer"},
    {"gpt_again", "gpt", GPT FEW " --epochs 2 --out work", "trainer"},
    {"gpt_resume", "gpt_part", GPT FEW " --epochs 2 --resume --out work", "trainer often"},
    {"lstm_resume", "lstm_part", LSTM FEW " --epochs 2 --resume --out work", "trainer often"},
    {"gpt_dump", "gpt", GPT FEW " --init gpt/last.safetensors --dump work/dump", ""},
    {"lstm_eval", NULL, LSTM FEW " --init lstm/model.safetensors --eval", "prints"},
    {"bench", NULL, LSTM " --window 24 --threads 1 --bench 1", ""},
    {"songs", "songs", SONGS "gpt/model.safetensors --seed 1 --prime midi/test/002_etude_in_B_flat_major.mid" FORMATS,
     ""},
    {"sound", "songs", SONGS "gpt/model.safetensors --seed 1 -o work/b.wav", ""},
    {"copies", "songs", SONGS "lstm/model.safetensors --seed 1 -o work/c.mid --data data", ""},
    {"song", NULL, SONGS "lstm/last.safetensors --seed 1 --weights int8 -o -", "prints"},
    {"loss", NULL, "sample_music lstm/model.safetensors --threads 1 --eval data/test.safetensors --eval-stride 2000",
     "prints"},
    {"stream", NULL,
     "sample_music gpt/model.safetensors --threads 1 --context 24 --eval data/test.safetensors --stream", "prints"},
    {"compare", NULL, "dev/tools/compare_tensors compare gpt/model.safetensors gpt/last.safetensors", "prints"},
    {"statistics", NULL,
     "dev/tools/music_stats --length 3000 --train data data/test.safetensors midi/test/002_etude_in_B_flat_major.mid "
     "midi/test",
     "prints"},
    {"show", NULL, "dev/tools/compare_tensors show lstm/last.safetensors", "prints"},
    {"window", "songs",
     "dev/tools/show_window gpt/model.safetensors lstm/model.safetensors midi/test/002_etude_in_B_flat_major.mid "
     "-o work/show.html",
     ""},
};

int main(int argc, char **argv) {
    const char *given = getenv("FAULT_SEED");
    const bool all = getenv("TEST_LONG");
    bool ready = true;
    seed = given ? strtoull(given, NULL, 10) : 1;
    printf("FAULT_SEED=%llu\n", (unsigned long long)seed);
    if (!getcwd(root, sizeof root)) return 1;
    snprintf(library, sizeof library, "LD_PRELOAD=%s/build/faults.so", root);
    check_folder(folder);
    if (chdir(folder)) return 1;
    for (size_t i = 0; ready && i < sizeof needed / sizeof *needed; i++) {
        const Case plain = {"", NULL, needed[i], ""};
        if (strstr(needed[i], "work/")) mkdir("work", 0777);
        ready = !run_case(&plain, "", NULL);
        Bytes said = bytes_of("", "stderr");
        CHECK(ready, "%s\n%s", needed[i], said.bytes);
        free(said.bytes);
    }
    CHECK(!rename("work", "songs"), "%s", strerror(errno));
    for (size_t i = 0; ready && i < sizeof cases / sizeof *cases; i++) {
        bool wanted = argc == 1;
        for (int k = 1; k < argc; k++) wanted = wanted || !strcmp(argv[k], cases[i].name);
        if (wanted) try_case(&cases[i], all, 8);
    }
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(!chdir("/") && !system(command), "%s", command);
    return check_report("faults");
}

#else

int main(void) {
    printf("skipped: calls that fail, which needs glibc\n");
    CHECK(true, "nothing was tried");
    return check_report("faults");
}

#endif
