// What fuzz targets share. A target is a file fuzz_NAME.c whose head states what it promises about any input. The
// fuzzer (https://llvm.org/docs/LibFuzzer.html) calls its LLVMFuzzerTestOneInput with inputs that it makes of the seeds
// and of what it learnt before. test/fuzz/run.sh runs a target, and says how.
#ifndef FUZZ_H
#define FUZZ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "base/text.h"

#include <fcntl.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t most, unsigned seed);
const char *__asan_default_options(void);

// Freed memory is kept from reuse, but not so much of it that it leaves the processor's cache.
const char *__asan_default_options(void) { return "quarantine_size_mb=1:malloc_context_size=4"; }

// Of a function that is not the product's: the fuzzer looks for new ways through the product alone.
#define UNTRACED __attribute__((no_sanitize("coverage")))

// PROMISE(condition, "what was found instead, printf style", ...) ends the program, and the fuzzer keeps the input.
#define PROMISE(condition, ...)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            dprintf(2, "%s:%d: broken promise: %s: ", __FILE__, __LINE__, #condition);                                 \
            dprintf(2, __VA_ARGS__);                                                                                   \
            dprintf(2, "\n");                                                                                          \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

// Each target calls this where an input got as far as it can, with memory of what became of it. With FUZZ_PLANTED=N in
// the environment the Nth call reads the byte behind that memory: a fault that the target's test must find.
UNTRACED static inline void planted(const void *memory, size_t size) {
    static long calls = -1;
    const char *text = calls < 0 ? getenv("FUZZ_PLANTED") : NULL;
    if (calls < 0) calls = text ? atol(text) : 0;
    if (calls && !--calls) calls = 1 + ((const volatile char *)memory)[size];
}

// The same number for the same input, as arbitrary as a hash: it decides what is too slow to do for each input.
UNTRACED static inline uint32_t hash_of(const uint8_t *input, size_t size) {
    uint32_t hash = 2166136261u; // FNV-1a
    for (size_t i = 0; i < size; i++) hash = (hash ^ input[i]) * 16777619u;
    return hash ^ hash >> 15;
}

// The path of a file that a target writes, in FUZZ_FOLDER, which run.sh puts into memory and removes. It is valid until
// the next call.
static inline const char *scratch_path(const char *name) {
    static char path[256];
    const char *folder = getenv("FUZZ_FOLDER");
    snprintf(path, sizeof path, "%s/fuzz-%d-%s", folder ? folder : "/tmp", (int)getpid(), name);
    return path;
}

// The path of a file that holds these bytes until the next call.
static inline const char *file_of(const void *bytes, size_t size) {
    static int file = -1;
    static char path[256];
    if (file < 0) {
        snprintf(path, sizeof path, "%s", scratch_path("input"));
        file = open(path, O_RDWR | O_CREAT, 0600);
    }
    if (pwrite(file, bytes, size, 0) != (ssize_t)size || ftruncate(file, (off_t)size)) abort();
    return path;
}

// Without control characters, also those from U+0080 to U+009F, which a terminal takes as commands, too.
UNTRACED static inline void promise_line(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        const unsigned char *u = (const unsigned char *)text + i;
        PROMISE(u[0] >= 32 && u[0] != 127, "byte %02X in %.*s", u[0], (int)i, text);
        PROMISE(u[0] != 0xC2 || i + 1 == size || (u[1] & 0xE0) != 0x80, "U+00%02X in %.*s", u[1], (int)i, text);
    }
}

// An error is a sentence that can stand in a terminal.
UNTRACED static inline void promise_sentence(const char *error) {
    const size_t length = strnlen(error, ERROR_SIZE);
    PROMISE(length > 0 && length < ERROR_SIZE, "an error of %zu bytes", length);
    promise_line(error, length);
}

// A page is UTF-8 without control characters but the newline.
UNTRACED static inline void promise_page(const char *text, size_t size) {
    for (size_t at = 0, length; at < size; at += length) {
        const unsigned char c = (unsigned char)text[at];
        length = (size_t)utf8_length(text + at, size - at);
        PROMISE(length && (c >= 32 || c == '\n') && c != 127, "byte %02X at %zu of a page", c, at);
    }
}

// ---- XML

UNTRACED static inline size_t xml_name(const char *text) {
    return strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEF0123456789-:");
}

UNTRACED static inline void promise_entity(const char *text) {
    static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"};
    bool found = false;
    for (int i = 0; i < 5; i++) found = found || !strncmp(text, known[i], strlen(known[i]));
    PROMISE(found, "XML with %.10s", text);
}

// The text, which ends with a NUL, is a well-formed document: one element, whose tags nest, with quoted attributes.
// Returns how many attributes have this name.
UNTRACED static inline size_t promise_xml(const char *text, size_t size, const char *attribute) {
    enum { DEEPEST = 16 };
    struct {
        const char *name;
        size_t length;
    } open[DEEPEST];
    int depth = 0, elements = 0;
    size_t found = 0;
    promise_page(text, size);
    for (const char *at = text; *at;) {
        if (*at == '&') promise_entity(at);
        PROMISE(strncmp(at, "\xEF\xBF\xBE", 3) && strncmp(at, "\xEF\xBF\xBF", 3), "XML with what is no character");
        if (*at != '<') {
            PROMISE(depth || *at == '\n', "XML outside its element: %.20s", at);
            at++;
            continue;
        }
        const bool closing = *++at == '/';
        at += closing;
        const size_t length = xml_name(at);
        PROMISE(length, "XML with <%.10s", at);
        if (closing) {
            PROMISE(depth && open[depth - 1].length == length && !memcmp(open[depth - 1].name, at, length),
                    "XML closes %.20s", at);
            depth--;
        } else {
            PROMISE(depth || !elements++, "XML with a second element, %.20s", at);
            PROMISE(depth < DEEPEST, "XML %d deep", depth);
            open[depth].name = at;
            open[depth++].length = length;
        }
        for (at += length; *at == ' ';) {
            at += strspn(at, " ");
            const size_t name = xml_name(at);
            if (!name) break;
            found += name == strlen(attribute) && !memcmp(at, attribute, name);
            PROMISE(!closing && at[name] == '=' && at[name + 1] == '"', "XML with attribute %.20s", at);
            for (at += name + 2; *at != '"'; at++) {
                PROMISE(*at && *at != '<', "XML with an attribute that does not end");
                if (*at == '&') promise_entity(at);
            }
            at++;
        }
        if (*at == '/') {
            depth--;
            at++;
        }
        PROMISE(*at == '>', "XML with a tag that ends in %.10s", at);
        at++;
    }
    PROMISE(elements == 1 && !depth, "XML with %d open elements", depth);
    return found;
}

#endif
