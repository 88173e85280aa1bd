// The trainers' command lines (recipe/run.h): any arguments are understood or answered with a sentence. A value that
// was understood is one that the table of flags allows; it is shown as a text that gives the same value, as a resumed
// run needs it.
//
// The program's name (see flags.h) says which trainer it is: lstm... is the LSTM's.
#include "recipe/train.h" // first: it chooses the system's interfaces

#include "flags.h"
#include "models/gpt.h"
#include "models/lstm.h"

static const ModelSpec specs[] = {
    {.name = "gpt", .precisions = "fp32|bf16", .size_flags = gpt_size_flags, .n_sizes = GPT_SIZES, .lr = 1e-3},
    {.name = "lstm", .precisions = "bf16|fp32", .size_flags = lstm_size_flags, .n_sizes = LSTM_SIZES, .lr = 5e-4}};

static TrainRun runs[2], fresh[2]; // fresh: with their tables, before a command line

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    for (int i = 0; i < 2; i++) {
        runs[i].spec = &specs[i];
        flags_define(&runs[i]);
        fresh[i] = runs[i];
    }
    return 0;
}

static bool parse(int argc, char **argv, Flags **flags, char *error) {
    const int i = argv[0][0] == 'l';
    runs[i] = fresh[i];
    *flags = &runs[i].flags;
    return flags_parse(*flags, argc, argv, error) && flags_agree(&runs[i].o, error);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    promise_flags(parse, (const char *)input, size);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t most, unsigned seed) {
    return mutate_flags(parse, input, size, most, seed);
}
