// What the two targets of command lines share (base/flags.h). An input is an argument a line; the first one names the
// program, as it would in argv.
#ifndef FUZZ_FLAGS_H
#define FUZZ_FLAGS_H

#include "fuzz.h"

#include "base/flags.h"

enum { MOST_ARGUMENTS = 64 };

typedef bool Parse(int argc, char **argv, Flags **flags, char *error); // a program's own

typedef struct {
    char *text; // each argument ends with a NUL, and the last one with the memory
    size_t size;
    char *list[MOST_ARGUMENTS];
    int n;
} Arguments;

UNTRACED static Arguments arguments_of(const char *lines, size_t size) {
    Arguments arguments = {.text = malloc(size + 1), .size = size + 1};
    if (!arguments.text) abort();
    memcpy(arguments.text, lines, size);
    arguments.text[size] = 0;
    for (char *at = arguments.text; at && arguments.n < MOST_ARGUMENTS;) {
        arguments.list[arguments.n++] = at;
        if (arguments.n == 1) arguments.list[arguments.n++] = (char *)"--seed=1"; // else the sampler draws one
        at = memchr(at, '\n', (size_t)(arguments.text + size - at));
        if (at) *at++ = 0;
    }
    return arguments;
}

// The value of a flag that was given is one that the table allows.
UNTRACED static void promise_value(const Flag *flag) {
    const double value = flag->kind == FLAG_WHOLE    ? (double)*(int64_t *)flag->value
                         : flag->kind == FLAG_NUMBER ? *(double *)flag->value
                                                     : flag->min;
    PROMISE(flag->above ? value > flag->min : value >= flag->min, "--%s %g", flag->name, value);
    PROMISE(flag->below ? value < flag->max : flag->kind < FLAG_WHOLE || value <= flag->max, "--%s %g", flag->name,
            value);
    PROMISE(isfinite(value), "--%s %g", flag->name, value);
    if (flag->kind == FLAG_TEXT && flag->choices) {
        const char *text = *(const char **)flag->value, *found = strstr(flag->choices, text);
        PROMISE(found && *text && (!found[strlen(text)] || found[strlen(text)] == '|'), "--%s %s", flag->name, text);
    }
    if (flag->kind == FLAG_RANGE) {
        const int *range = (const int *)flag->value;
        PROMISE(range[0] >= flag->min && range[0] <= 0 && range[1] >= 0 && range[1] <= flag->max, "--%s %d,%d",
                flag->name, range[0], range[1]);
    }
    if (flag->kind == FLAG_TEXTS) PROMISE(((Texts *)flag->value)->n <= flag->max, "--%s too often", flag->name);
}

// The program and all that was given, a line each, numbers as flag_show has them.
UNTRACED static TextBuffer shown(const Flags *flags, const char *program) {
    TextBuffer lines = {NULL, 0, 0, false};
    text_print(&lines, "%s\n", program);
    for (int i = 0; i < flags->n; i++) {
        const Flag *flag = &flags->list[i];
        if (!flag->given) continue;
        promise_value(flag);
        const int times = flag->kind == FLAG_TEXTS ? ((Texts *)flag->value)->n : 1;
        for (int k = 0; k < times; k++) {
            char number[64];
            const char *value = flag->kind == FLAG_SWITCH  ? ""
                                : flag->kind == FLAG_TEXT  ? *(const char **)flag->value
                                : flag->kind == FLAG_TEXTS ? ((Texts *)flag->value)->list[k]
                                                           : flag_show(flag, number);
            text_print(&lines, "%s%s%s", *flag->name ? flag_dashes(flag) : "", flag->name,
                       *flag->name && flag->kind != FLAG_SWITCH ? "=" : "");
            text_add(&lines, value, strlen(value));
            text_add(&lines, "\n", 1);
        }
    }
    lines.size--; // a newline stands between arguments
    return lines;
}

UNTRACED static void promise_flags(Parse *parse, const char *lines, size_t size) {
    Flags *flags;
    char error[ERROR_SIZE] = "";
    Arguments arguments = arguments_of(lines, size);
    if (parse(arguments.n, arguments.list, &flags, error)) {
        TextBuffer first = shown(flags, arguments.list[0]);
        Arguments again = arguments_of(first.bytes, first.size);
        PROMISE(parse(again.n, again.list, &flags, error), "shown as it is not understood: %s", error);
        TextBuffer second = shown(flags, arguments.list[0]);
        PROMISE(first.size == second.size && !memcmp(first.bytes, second.bytes, first.size), "shown in two ways: %.*s",
                (int)second.size, second.bytes);
        if (again.n > 3) planted(again.text, again.size);
        free(first.bytes);
        free(second.bytes);
        free(again.text);
    } else {
        promise_sentence(error);
    }
    free(arguments.text);
}

// Adds an argument with a flag of the table, half the time; else changes bytes as they come.
static inline size_t mutate_flags(Parse *parse, uint8_t *lines, size_t size, size_t most, unsigned seed) {
    static const char *const values[] = {"",    "0",     "1",    "2",     "1.5",  "-1",   "+3",   "1e3", "1e999",
                                         "nan", "1e-99", "0x10", "a.mid", "bf16", "fp32", "int8", "B8",  "F#-blues"};
    static Flags *flags;
    char error[ERROR_SIZE], argument[128], *none[] = {(char *)"program", (char *)"--seed=1"};
    if (seed % 2) return LLVMFuzzerMutate(lines, size, most);
    if (!flags) parse(2, none, &flags, error);
    const Flag *flag = &flags->list[seed / 2 % (unsigned)flags->n];
    const char *value = values[seed / 256 % (sizeof values / sizeof *values)];
    int n = snprintf(argument, sizeof argument, "\n%s%s", *flag->name ? flag_dashes(flag) : "", flag->name);
    if (flag->kind != FLAG_SWITCH) {
        const char *equals = *flag->name ? seed & 1 << 20 ? "=" : "\n" : "";
        if (seed >> 21 & 1 && flag->kind >= FLAG_WHOLE) {
            const double edge = seed >> 22 & 1 ? flag->min : flag->max;
            n += snprintf(argument + n, sizeof argument - (size_t)n, "%s%.17g", equals,
                          edge + (int)(seed >> 23 & 3) - 1);
        } else {
            n += snprintf(argument + n, sizeof argument - (size_t)n, "%s%s", equals, value);
        }
    }
    if (size + (size_t)n > most) return LLVMFuzzerMutate(lines, size, most);
    memcpy(lines + size, argument, (size_t)n);
    return size + (size_t)n;
}

#endif
