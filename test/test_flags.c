// Tests of dev/base/flags.h: what a command line may say, the sentence for what it may not, the lines of --help.
#define _GNU_SOURCE
#include "base/flags.h"
#include "check.h"

typedef struct {
    const char *out, *precision;
    int64_t steps, batch;
    uint64_t seed;
    double rate, part;
    bool quiet;
    Texts files, rest;
    Flags flags;
    char error[ERROR_SIZE];
    int shift[2];
} Line;

// Parses arguments, separated by blanks ('' is an empty one), into a table with a flag of every kind.
static bool parse(Line *line, bool takes_rest, const char *arguments) {
    static char copy[4096];
    char *argv[100] = {"program"};
    int argc = 1;
    memset(line, 0, sizeof *line);
    flag_text(&line->flags, "out", "DIR", &line->out, "out/here", "where it goes");
    flag_text(&line->flags, "precision", "P", &line->precision, "fp32", "number format")->choices = "fp32|bf16";
    flag_whole(&line->flags, "steps", &line->steps, 0, 1, 1e15, "how many, if not all");
    flag_whole(&line->flags, "batch", &line->batch, 8, -2, 64, "windows [8, or so]");
    flag_number(&line->flags, "rate", &line->rate, 0.0005, "(0, inf)", "of learning");
    flag_number(&line->flags, "part", &line->part, 0.1, "[0, 1)", "of the whole");
    flag_range(&line->flags, "shift", line->shift, -5, 6, "by how much");
    flag_seed(&line->flags, &line->seed, "of chance");
    flag_switch(&line->flags, "quiet", &line->quiet, "say nothing");
    flag_texts(&line->flags, "o", "FILE", &line->files, 3, "write it");
    if (takes_rest) flag_texts(&line->flags, "", "SONG", &line->rest, 2, "the songs");
    snprintf(copy, sizeof copy, "%s", arguments);
    for (char *word = strtok(copy, " "); word && argc < 99; word = strtok(NULL, " ")) {
        argv[argc++] = strcmp(word, "''") ? word : "";
    }
    return flags_parse(&line->flags, argc, argv, line->error);
}

static void test_values(void) {
    static Line line;
    CHECK(parse(&line, false, ""), "%s", line.error);
    CHECK(!strcmp(line.out, "out/here") && line.steps == 0 && line.batch == 8 && line.rate == 0.0005 && line.seed == 1,
          "the initial values");
    CHECK(!line.quiet && !line.flags.help && !line.flags.version && line.files.n == 0, "the initial values");
    CHECK(!flag_find(&line.flags, "out")->given, "out was not given");
    CHECK(parse(&line, false,
                "--out a=b --steps=1000000000000000 --batch -2 --rate .5 --part 0 --seed 18446744073709551615 --quiet "
                "-o x --precision=bf16 -o=y"),
          "%s", line.error);
    CHECK(!strcmp(line.out, "a=b") && !strcmp(line.precision, "bf16") && line.steps == 1000000000000000, "values");
    CHECK(line.batch == -2 && line.rate == 0.5 && line.part == 0 && line.seed == UINT64_MAX && line.quiet, "values");
    CHECK(line.files.n == 2 && !strcmp(line.files.list[0], "x") && !strcmp(line.files.list[1], "y"), "-o twice");
    CHECK(flag_find(&line.flags, "out")->given && flag_find(&line.flags, "o")->given, "given");
    CHECK(parse(&line, false, "--batch 1 --batch 2 --out=a --out --quiet") && line.batch == 2, "the last one counts");
    CHECK(!strcmp(line.out, "--quiet") && !line.quiet, "a value may look like a flag");
    CHECK(parse(&line, false, "--shift -5,+6") && line.shift[0] == -5 && line.shift[1] == 6, "a range");
    CHECK(parse(&line, false, "--shift 0,3 --shift=-4,0") && line.shift[0] == -4 && line.shift[1] == 0, "a range");
    CHECK(parse(&line, false, "-h") && line.flags.help && parse(&line, false, "--version") && line.flags.version,
          "--help and --version");
    CHECK(parse(&line, true, "a --quiet b -o c") && line.rest.n == 2 && !strcmp(line.rest.list[1], "b"), "the rest");
}

static void test_wrong(void) {
    static const struct {
        bool takes_rest;
        const char *arguments, *sentence;
    } wrong[] = {
        {false, "--steps 0", "--steps 0: it must be a whole number from 1 to 1000000000000000"},
        {false, "--batch 65", "--batch 65: it must be a whole number from -2 to 64"},
        {false, "--batch=", "--batch : it must be a whole number from -2 to 64"},
        {false, "--batch 1.0", "--batch 1.0: it must be a whole number from -2 to 64"},
        {false, "--batch 99999999999999999999",
         "--batch 99999999999999999999: it must be a whole number from -2 to 64"},
        {false, "--rate 0", "--rate 0: it must be a finite number above 0"},
        {false, "--rate nan", "--rate nan: it must be a finite number above 0"},
        {false, "--rate -inf", "--rate -inf: it must be a finite number above 0"},
        {false, "--rate 1e999", "--rate 1e999: it must be a finite number above 0"},
        {false, "--rate 0x1p3", "--rate 0x1p3: it must be a finite number above 0"},
        {false, "--rate 1,5", "--rate 1,5: it must be a finite number above 0"},
        {false, "--part 1", "--part 1: it must be a number of at least 0 and below 1"},
        {false, "--shift 5", "--shift 5: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift -6,0", "--shift -6,0: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift 0,7", "--shift 0,7: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift 1,2", "--shift 1,2: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift -2,-1", "--shift -2,-1: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift -1,2,3", "--shift -1,2,3: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift -1,", "--shift -1,: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--shift -1.5,2", "--shift -1.5,2: it must be two whole numbers, from -5 to 0 and from 0 to 6"},
        {false, "--seed -1", "--seed -1: it must be a whole number from 0 to 18446744073709551615"},
        {false, "--seed 18446744073709551616",
         "--seed 18446744073709551616: it must be a whole number from 0 to 18446744073709551615"},
        {false, "--precision fp", "--precision fp: this build knows fp32|bf16"},
        {false, "--precision fp32|bf16", "--precision fp32|bf16: this build knows fp32|bf16"},
        {false, "--out", "--out: its value is missing; write --out DIR"},
        {false, "--out ''", "--out: its value is missing; write --out DIR"},
        {false, "-o", "-o: its value is missing; write -o FILE"},
        {false, "-o 1 -o 2 -o 3 -o 4", "-o 4: it is one FILE too many, after 3"},
        {false, "--quiet=yes", "--quiet: it takes no value"},
        {false, "--bach 3", "--bach: there is no such flag; --help lists them all"},
        {false, "-steps 3", "-steps: there is no such flag; --help lists them all"},
        {false, "--o x", "--o: there is no such flag; --help lists them all"},
        {false, "-x", "-x: there is no such flag; --help lists them all"},
        {false, "--=3", "--: there is no such flag; --help lists them all"},
        {false, "--nothing-like-it=3", "--nothing-like-it: there is no such flag; --help lists them all"},
        {false, "song", "'song': flags start with --; --help lists them"},
        {true, "--", "'--': flags start with --; --help lists them"},
        {true, "-", "'-': flags start with --; --help lists them"},
        {true, "''", "'': flags start with --; --help lists them"},
        {true, "a b c", "c: it is one SONG too many, after 2"},
    };
    static Line line;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(!parse(&line, wrong[i].takes_rest, wrong[i].arguments), "%s is taken", wrong[i].arguments);
        CHECK(!strcmp(line.error, wrong[i].sentence), "%s: %s", wrong[i].arguments, line.error);
    }
    char flag[3000] = "--";
    memset(flag + 2, 'x', sizeof flag - 3);
    flag[sizeof flag - 1] = 0;
    CHECK(!parse(&line, false, flag) && strlen(line.error) < 130, "%s", line.error);
    memcpy(flag, "--out=", 6);
    CHECK(parse(&line, false, flag), "%s", line.error);
    memcpy(flag, "--rate=", 7);
    CHECK(!parse(&line, false, flag) && strlen(line.error) < 130, "%s", line.error);
}

static void test_help(void) {
    static Line line;
    char text[4096] = "", shown[64];
    CHECK(parse(&line, true, "--batch 3"), "%s", line.error);
    fflush(stdout);
    int kept = dup(1);
    FILE *file = tmpfile();
    if (!file || kept < 0) abort();
    dup2(fileno(file), 1);
    flags_print(&line.flags);
    fflush(stdout);
    dup2(kept, 1);
    close(kept);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    CHECK(!strcmp(text, "  --out DIR          where it goes [out/here]\n"
                        "  --precision P      number format, fp32|bf16 [fp32]\n"
                        "  --steps N          how many, if not all\n"
                        "  --batch N          windows [8, or so]\n"
                        "  --rate F           of learning [0.0005]\n"
                        "  --part F           of the whole [0.1]\n"
                        "  --shift LOW,HIGH   by how much [0,0]\n"
                        "  --seed N           of chance [1]\n"
                        "  --quiet            say nothing\n"
                        "  -o FILE            write it\n"
                        "  SONG               the songs\n"
                        "  --help             this text\n"
                        "  --version          print the version\n"),
          "--help:\n%s", text);
    line.part = 0.1 + 0.2;
    const Flag *part = flag_find(&line.flags, "part");
    CHECK(strtod(flag_show(part, shown), NULL) == line.part, "%s", shown);
    line.part = 120;
    CHECK(!strcmp(flag_show(part, shown), "120"), "%s", shown);
}

int main(void) {
    test_values();
    test_wrong();
    test_help();
    return check_report("flags");
}
