// The command line of every program here: flags in a table, read strictly, listed by --help.
//
//     Flags flags = {0};
//     flag_text(&flags, "out", "DIR", &out, "data", "where the files go");
//     flag_whole(&flags, "pieces", &pieces, 238, 1, 100000, "how many pieces");
//     if (!flags_parse(&flags, argc, argv, error)) ...  // wrong usage: a sentence in error; exit with status 2
//     if (flags_answer(&flags, "program", "What it does.\n\n", "")) ...             // --help or --version: that is all
//
// Promises: a value is the whole text, in its range and finite, or a sentence says what it must be. `--flag value`
// and `--flag=value` are the same; -h is --help. A flag given twice counts last. Left out: short names that stand
// together (-abc), numbers that are not decimal, and --, after which nothing is a flag (a file named -x is ./-x).
//
// C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#include "base/files.h"

#include <ctype.h>
#include <math.h>

#define MUSIC_VERSION "0.1.0" // of all programs

typedef enum { FLAG_SWITCH, FLAG_TEXT, FLAG_TEXTS, FLAG_WHOLE, FLAG_RANGE, FLAG_SEED, FLAG_NUMBER } FlagKind;

enum { MAX_FLAGS = 40, MAX_TEXTS = 64 };

typedef struct {
    const char *list[MAX_TEXTS];
    int n;
} Texts;

typedef struct {
    FlagKind kind;
    const char *name;       // "batch" is written --batch, "o" is written -o; "" takes the arguments that are no flags
    const char *value_name; // DIR, say
    const char *help;       // a line; the initial value is added in brackets, unless it ends in brackets itself
    void *value;            // the caller's bool, const char *, Texts, int64_t, int[2], uint64_t or double, by kind
    const char *choices;    // of a text: "fp32|bf16", or NULL where it is free
    double min, max;        // of numbers, max may be infinite; of texts, max is how many at most
    bool above, below;      // min, max themselves are not allowed
    bool given;             // by the user
    bool fixed, kept;       // for the caller's use: trainers mark what --resume must find unchanged, and may change
} Flag;

typedef struct {
    Flag list[MAX_FLAGS];
    int n;
    bool help, version; // the two flags that every program has
} Flags;

// ---- the table. Names, help and initial texts must outlive it. *value becomes the initial value.

static inline Flag *flag_add(Flags *flags, FlagKind kind, const char *name, const char *value_name, void *value,
                             double min, double max, const char *help) {
    const Flag flag = {kind, name, value_name, help, value, NULL, min, max, false, false, false, false, false};
    if (flags->n == MAX_FLAGS) abort();
    flags->list[flags->n] = flag;
    return &flags->list[flags->n++];
}

static inline Flag *flag_switch(Flags *flags, const char *name, bool *value, const char *help) {
    *value = false;
    return flag_add(flags, FLAG_SWITCH, name, "", value, 0, 0, help);
}

static inline Flag *flag_text(Flags *flags, const char *name, const char *value_name, const char **value,
                              const char *initial, const char *help) {
    *value = initial;
    return flag_add(flags, FLAG_TEXT, name, value_name, value, 0, 0, help);
}

// A flag that may be given max times (at most MAX_TEXTS), or with the name "" the arguments that are no flags.
static inline Flag *flag_texts(Flags *flags, const char *name, const char *value_name, Texts *value, int max,
                               const char *help) {
    value->n = 0;
    return flag_add(flags, FLAG_TEXTS, name, value_name, value, 0, max, help);
}

// An initial value below min means that there is none.
static inline Flag *flag_whole(Flags *flags, const char *name, int64_t *value, int64_t initial, double min, double max,
                               const char *help) {
    *value = initial;
    return flag_add(flags, FLAG_WHOLE, name, "N", value, min, max, help);
}

// LOW,HIGH around 0, from min to max; initially 0,0.
static inline Flag *flag_range(Flags *flags, const char *name, int *value, double min, double max, const char *help) {
    value[0] = value[1] = 0;
    return flag_add(flags, FLAG_RANGE, name, "LOW,HIGH", value, min, max, help);
}

// range: "[0, 1)" from 0 to below 1, "(0, inf)" any number above 0.
static inline Flag *flag_number(Flags *flags, const char *name, double *value, double initial, const char *range,
                                const char *help) {
    char open, close;
    double min, max;
    if (sscanf(range, "%c%lf, %lf%c", &open, &min, &max, &close) != 4) abort();
    *value = initial;
    Flag *flag = flag_add(flags, FLAG_NUMBER, name, "F", value, min, max, help);
    flag->above = open == '(';
    flag->below = close == ')';
    return flag;
}

static inline Flag *flag_seed(Flags *flags, uint64_t *value, const char *help) { // --seed N, any 64 bits; initially 1
    *value = 1;
    return flag_add(flags, FLAG_SEED, "seed", "N", value, 0, HUGE_VAL, help);
}

static inline Flag *flag_find(Flags *flags, const char *name) {
    for (int i = 0; i < flags->n; i++) {
        if (!strcmp(flags->list[i].name, name)) return &flags->list[i];
    }
    return NULL;
}

// ---- values

static inline const char *flag_dashes(const Flag *flag) { return strlen(flag->name) > 1 ? "--" : "-"; }

// The value as text, as short as it reads back the same; "" where there is none.
static inline const char *flag_show(const Flag *flag, char text[64]) {
    text[0] = 0;
    if (flag->kind == FLAG_SEED) snprintf(text, 64, "%llu", (unsigned long long)*(uint64_t *)flag->value);
    if (flag->kind == FLAG_TEXT && *(const char **)flag->value) snprintf(text, 64, "%s", *(const char **)flag->value);
    if (flag->kind == FLAG_WHOLE && (double)*(int64_t *)flag->value >= flag->min) {
        snprintf(text, 64, "%lld", (long long)*(int64_t *)flag->value);
    }
    if (flag->kind == FLAG_RANGE) snprintf(text, 64, "%d,%d", ((int *)flag->value)[0], ((int *)flag->value)[1]);
    for (int digits = 6; flag->kind == FLAG_NUMBER && digits <= 17; digits++) {
        snprintf(text, 64, "%.*g", digits, *(double *)flag->value);
        if (strtod(text, NULL) == *(double *)flag->value) break;
    }
    return text;
}

// Reads text, which stays the caller's and is kept by texts, as the value. On failure the error says what would be
// right, as a clause, and the value stays as it was.
static inline bool flag_set(Flag *flag, const char *text, char *error) {
    if (flag->kind == FLAG_TEXT) {
        char choices[64], choice[64]; // "|fp32|bf16|" and "|bf16|"
        snprintf(choices, sizeof choices, "|%s|", flag->choices ? flag->choices : "");
        snprintf(choice, sizeof choice, "|%s|", text);
        bool known = !flag->choices || (!strchr(text, '|') && strstr(choices, choice));
        if (!known) return fail(error, "this build knows %s", flag->choices);
        *(const char **)flag->value = text;
        return true;
    }
    if (flag->kind == FLAG_TEXTS) {
        Texts *texts = (Texts *)flag->value;
        if (texts->n >= flag->max) return fail(error, "it is one %s too many, after %d", flag->value_name, texts->n);
        texts->list[texts->n++] = text;
        return true;
    }
    if (flag->kind == FLAG_RANGE) {
        int low, high, used = 0;
        const bool two = strlen(text) < 16 && strspn(text, "+-0123456789,") == strlen(text) &&
                         sscanf(text, "%d,%d%n", &low, &high, &used) == 2 && !text[used];
        if (!two || low < flag->min || low > 0 || high < 0 || high > flag->max)
            return fail(error, "it must be two whole numbers, from %.0f to 0 and from 0 to %.0f", flag->min, flag->max);
        ((int *)flag->value)[0] = low;
        ((int *)flag->value)[1] = high;
        return true;
    }
    char *end = NULL;
    uint64_t seed = 0;
    int64_t whole = 0;
    double number = 0;
    errno = 0;
    if (flag->kind == FLAG_SEED) seed = strtoull(text, &end, 10);
    if (flag->kind == FLAG_WHOLE) number = (double)(whole = strtoll(text, &end, 10));
    if (flag->kind == FLAG_NUMBER) number = strtod(text, &end);
    bool plain = isdigit((unsigned char)*text) || (*text && flag->kind != FLAG_SEED && strchr("+-.", *text));
    bool exact = plain && end > text && !*end && !strpbrk(text, "xX") && (!errno || flag->kind == FLAG_NUMBER);
    if (exact && isfinite(number) && (flag->above ? number > flag->min : number >= flag->min) &&
        (flag->below ? number < flag->max : number <= flag->max)) {
        if (flag->kind == FLAG_SEED) *(uint64_t *)flag->value = seed;
        if (flag->kind == FLAG_WHOLE) *(int64_t *)flag->value = whole;
        if (flag->kind == FLAG_NUMBER) *(double *)flag->value = number;
        return true;
    }
    if (flag->kind == FLAG_SEED) return fail(error, "it must be a whole number from 0 to 18446744073709551615");
    if (flag->kind == FLAG_WHOLE) {
        return fail(error, "it must be a whole number from %.0f to %.0f", flag->min, flag->max);
    }
    char most[64] = "";
    if (isfinite(flag->max)) snprintf(most, sizeof most, " and %s %g", flag->below ? "below" : "at most", flag->max);
    return fail(error, "it must be a %snumber %s %g%s", *most ? "" : "finite ", flag->above ? "above" : "of at least",
                flag->min, most);
}

// ---- the command line

// Reads all arguments behind argv[0]. False, and a sentence, where one is wrong. Adds the flags --help and --version.
static inline bool flags_parse(Flags *flags, int argc, char **argv, char *error) {
    char name[61];
    flag_switch(flags, "help", &flags->help, "this text");
    flag_switch(flags, "version", &flags->version, "print the version");
    for (int i = 1; i < argc; i++) {
        const char *argument = strcmp(argv[i], "-h") ? argv[i] : "--help", *start = argument;
        for (int dash = 0; dash < 2 && *start == '-'; dash++) start++;
        if (start == argument || !*start) {                                         // no flag
            Flag *rest = start == argument && *start ? flag_find(flags, "") : NULL; // -- and "" are wrong everywhere
            if (!rest) return fail(error, "'%.60s': flags start with --; --help lists them", argument);
            if (!flag_set(rest, argument, error)) return fail(error, "%.60s: %s", argument, error);
            rest->given = true;
            continue;
        }
        const char *equals = strchr(start, '='), *dashes = start - argument > 1 ? "--" : "-";
        snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - start) : 60, start);
        Flag *flag = *name ? flag_find(flags, name) : NULL;
        if (!flag || strcmp(flag_dashes(flag), dashes)) {
            return fail(error, "%s%s: there is no such flag; --help lists them all", dashes, name);
        }
        flag->given = true;
        if (flag->kind == FLAG_SWITCH) {
            if (equals) return fail(error, "%s%s: it takes no value", dashes, name);
            *(bool *)flag->value = true;
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value || (!*value && flag->kind <= FLAG_TEXTS)) {
            return fail(error, "%s: its value is missing; write %s%s %s", argument, dashes, name, flag->value_name);
        }
        if (!flag_set(flag, value, error)) return fail(error, "%s%s %.60s: %s", dashes, name, value, error);
    }
    return true;
}

static inline void flags_print(const Flags *flags) { // each with its value, in lines of at most 100 columns
    enum { LEFT = 20, RIGHT = 100 };
    for (int i = 0; i < flags->n; i++) {
        const Flag *flag = &flags->list[i];
        char left[64], value[64], text[512];
        bool told = !*flag_show(flag, value) || flag->help[strlen(flag->help) - 1] == ']';
        snprintf(left, sizeof left, "%s%.20s %.30s", flag_dashes(flag), flag->name, flag->value_name);
        snprintf(text, sizeof text, "%s%s%s%s%s%s", flag->help, flag->choices ? ", " : "",
                 flag->choices ? flag->choices : "", told ? "" : " [", told ? "" : value, told ? "" : "]");
        int column = printf("  %-*s", LEFT - 2, *flag->name ? left : flag->value_name), length;
        for (const char *word = text; *word; word += length) {
            word += *word == ' ';
            length = (int)strcspn(word, " ");
            if (column + 1 + length > RIGHT) column = printf("\n%*s", LEFT, "") - 1;
            column += printf(" %.*s", length, word);
        }
        printf("\n");
    }
}

// Prints what was asked for by --help, the flags between two texts, or by --version. False: by neither.
static inline bool flags_answer(const Flags *flags, const char *program, const char *before, const char *behind) {
    if (flags->help) {
        printf("%s", before);
        flags_print(flags);
        printf("%s", behind);
    } else if (flags->version) {
        printf("%s %s\n", program, MUSIC_VERSION);
    }
    return flags->help || flags->version;
}
