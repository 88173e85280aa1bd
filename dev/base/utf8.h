// UTF-8, and what of it may be shown. C11 and C++17.
#pragma once

#include <stdbool.h>
#include <string.h>

// Length (1 to 4) of the UTF-8 character at text, or 0 where there is none: a stray or missing continuation byte, an
// overlong form, a surrogate, or a value above U+10FFFF (The Unicode Standard, table 3-7).
static inline int utf8_length(const char *text, size_t available) {
    const unsigned char *u = (const unsigned char *)text;
    if (!available) return 0;
    if (u[0] < 0x80) return 1;
    int length = u[0] >= 0xC2 && u[0] <= 0xDF ? 2 : (u[0] & 0xF0) == 0xE0 ? 3 : u[0] >= 0xF0 && u[0] <= 0xF4 ? 4 : 0;
    if (!length || available < (size_t)length) return 0;
    for (int i = 1; i < length; i++) {
        if ((u[i] & 0xC0) != 0x80) return 0;
    }
    if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F)) return 0;
    if ((u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F)) return 0;
    return length;
}

static inline bool utf8_valid(const char *text) {
    for (int length; *text && (length = utf8_length(text, 4)) > 0;) text += length;
    return !*text;
}

// A name that comes out of a file, or that a file has, may hold commands to a terminal, and what XML forbids.

// As utf8_length, but 0 also for controls (U+0000 to U+001F, U+007F to U+009F) and for U+FFFE and U+FFFF.
static inline int shown_length(const char *text, size_t available) {
    const unsigned char *u = (const unsigned char *)text;
    const int length = utf8_length(text, available);
    if (length == 1 && (u[0] < 32 || u[0] == 127)) return 0;
    if (length == 2 && u[0] == 0xC2 && u[1] < 0xA0) return 0;
    return length == 3 && u[0] == 0xEF && u[1] == 0xBF && u[2] >= 0xBE ? 0 : length;
}

// Each byte of what is not to be shown becomes '?'.
static inline void clean_text(char *text, size_t size) {
    for (size_t i = 0, length; i < size; i += length) {
        length = (size_t)shown_length(text + i, size - i);
        if (!length) text[i] = '?', length = 1;
    }
}
