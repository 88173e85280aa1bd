// The sampler's command line (parse_call of sample_music.c): any arguments are understood or answered with a sentence.
// A value that was understood is one that the table of flags allows, and is shown as a text that gives the same value.
// There is a limit to the song, a key that may be played, and each file to write has a format and a name of its own.
#define TESTING
#include "sample_music.c" // first: it chooses the system's interfaces

#include "flags.h"

UNTRACED static void promise_call(const Call *call) {
    const Settings *s = &call->settings;
    int keys = 0;
    for (int token = MIDI_PITCH; token < MIDI_DURATION; token++) keys += !s->filter.barred[token];
    PROMISE(keys, "no key is left");
    PROMISE(s->tokens > 0 || s->bars > 0 || s->seconds > 0, "the song has no end");
    PROMISE(call->outputs.n > 0, "nothing to write");
    for (int i = 0; i < call->outputs.n; i++) {
        const char *path = call->outputs.list[i];
        PROMISE(format_of(path), "%s has no format", path);
        const Path name = output_name(path, 1, s->songs); // cut where no system takes it
        PROMISE(strlen(path) > PATH_MAX || format_of(name.text) == format_of(path), "%s becomes %s", path, name.text);
    }
    const int lowest = s->lowest ? read_key(s->lowest) : MIDI_LOWEST_KEY;
    char text[16];
    PROMISE(read_key(key_name(lowest, text)) == lowest, "%s is key %d, and that is %s", s->lowest, lowest, text);
}

static bool parse(int argc, char **argv, Flags **flags, char *error) {
    static Call call;
    static Flags table;
    memset(&call, 0, sizeof call);
    memset(&table, 0, sizeof table);
    *flags = &table;
    if (!parse_call(&call, &table, argc, argv, error)) return false;
    promise_call(&call);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    promise_flags(parse, (const char *)input, size);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t most, unsigned seed) {
    return mutate_flags(parse, input, size, most, seed);
}
