// Text: names on a terminal, a text that grows, names of files on one line, and numbers as people read them.
//
// C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#include "base/files.h" // PRINTF_LIKE

#include <math.h>

// ---- showing names

// Prints a line of formatted text, so cleaned, and what ends it. What is longer than 8191 bytes is cut.
PRINTF_LIKE(2, 3) static inline void print_line(FILE *out, const char *format, ...) {
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    clean_text(text, strlen(text));
    fprintf(out, "%s\n", text);
}

// ---- a text that grows

typedef struct { // a growing text; failed: out of memory
    char *bytes;
    size_t size, capacity;
    bool failed;
} TextBuffer;

static inline void text_add(TextBuffer *buffer, const char *bytes, size_t size) {
    if (!size) return;
    if (size > buffer->capacity - buffer->size) {
        size_t capacity = 2 * (buffer->size + size);
        char *grown = buffer->failed ? NULL : (char *)realloc(buffer->bytes, capacity);
        buffer->failed = !grown;
        if (!grown) return;
        buffer->bytes = grown;
        buffer->capacity = capacity;
    }
    memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
}

// Appends formatted text; what is longer than 1023 bytes is cut.
PRINTF_LIKE(2, 3) static inline void text_print(TextBuffer *buffer, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    text_add(buffer, text, n < (int)sizeof text ? (size_t)n : sizeof text - 1);
}

// Appends a string of JSON, quoted. What is not UTF-8 becomes U+FFFD; control characters and those of `special` are
// escaped by number.
static inline void text_json(TextBuffer *out, const char *text, const char *special) {
    text_add(out, "\"", 1);
    for (int length; *text; text += length ? length : 1) {
        length = utf8_length(text, 4);
        if (!length || *text == '\n') {
            text_print(out, length ? "\\n" : "\\ufffd");
        } else if (length == 1 && (*text < 32 || strchr(special, *text))) {
            text_print(out, "\\u%04x", (unsigned)*text);
        } else {
            if (*text == '"' || *text == '\\') text_add(out, "\\", 1);
            text_add(out, text, (size_t)length);
        }
    }
    text_add(out, "\"", 1);
}

// Writes the text to a file, atomically, and frees it. A text that has failed is not written.
static inline bool text_write(TextBuffer *buffer, const char *path, char *error) {
    bool ok = buffer->failed ? atomic_fail(path, ENOMEM, error)
                             : write_file_atomically(path, buffer->bytes, buffer->size, error);
    free(buffer->bytes);
    return ok;
}

// ---- names of files on one line

// Escapes a path for a line of `names`: newline, % and bytes that are not UTF-8 become %0A, %25 and %XX. out needs
// 3 strlen(name) + 1 bytes; returns the length.
static inline size_t name_escape(const char *name, char *out) {
    size_t size = 0;
    for (int length; *name; name += length) {
        length = utf8_length(name, 4);
        if (length == 0 || *name == '\n' || *name == '%') {
            size += (size_t)snprintf(out + size, 4, "%%%02X", (unsigned char)*name);
            length = 1;
        } else {
            memcpy(out + size, name, (size_t)length);
            size += (size_t)length;
        }
    }
    out[size] = 0;
    return size;
}

// The path again, from a line that ends at a newline or NUL. out: as long as the line, and 1 more, or the line itself;
// returns the length.
// A % that no two hexadecimal digits follow, or that would give a NUL, stays as it is.
static inline size_t name_unescape(const char *line, char *out) {
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";
    size_t size = 0;
    while (*line && *line != '\n') {
        const char *high = *line == '%' && line[1] ? strchr(digits, line[1]) : NULL;
        const char *low = high && line[2] ? strchr(digits, line[2]) : NULL;
        int byte = low ? (int)((high - digits) % 16 * 16 + (low - digits) % 16) : 0;
        out[size++] = byte ? (char)byte : *line;
        line += byte ? 3 : 1;
    }
    out[size] = 0;
    return size;
}

// ---- numbers as people read them

static inline const char *four_digits(char text[32], double x) { // or as many as a larger whole number has
    snprintf(text, 32, fabs(x) < 9999.5 ? "%.4g" : "%.0f", x);
    return text;
}

static inline const char *thousands(char text[32], int64_t n) { // "4,326,041"
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n), out = 0;
    for (int i = 0; i < length && out < 30; i++) {
        if (i && (length - i) % 3 == 0 && digits[i - 1] != '-') text[out++] = ',';
        text[out++] = digits[i];
    }
    text[out] = 0;
    return text;
}

static inline const char *duration_text(char text[32], double seconds) { // "0:07", "1:02:03"
    long long s = seconds < 0 ? 0 : seconds > 3.6e8 ? 360000000 : (long long)(seconds + 0.5);
    if (s >= 3600) {
        snprintf(text, 32, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    } else {
        snprintf(text, 32, "%lld:%02lld", s / 60, s % 60);
    }
    return text;
}

// A round number (1, 2 or 5 times a power of ten) that divides range into about `wanted` parts.
static inline double nice_step(double range, int wanted) {
    double step = 1;
    while (step * wanted < range) step *= 10;
    while (step * wanted >= range * 10 && step > 1e-9) step /= 10;
    if (step / 5 * wanted >= range) return step / 5;
    return step / 2 * wanted >= range ? step / 2 : step;
}
