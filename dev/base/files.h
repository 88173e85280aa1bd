// Errors and files: how every program here says what is wrong, reads a file whole, and writes one whole or not at all.
//
// Promises: an error is one sentence, without control characters. A file that is written is the old one or the new one,
// never half of one, whether the program is killed, the disk is full or the folder forbidden.
// Left out: files larger than memory, systems without POSIX.
// C11 and C++17; with -std=c11 include it before the system's headers.
#ifndef FILES_H
#define FILES_H

#if defined(__STRICT_ANSI__) && !defined(__cplusplus) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L // fileno and fsync
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PRINTF_LIKE(format_at, first_at) __attribute__((format(printf, format_at, first_at))) // parameters, from 1

enum { ERROR_SIZE = 1024 }; // of every `char *error` below; it receives one sentence, without a newline

// Formats a sentence into error[ERROR_SIZE] (which may be NULL, and may be among the arguments) and returns false.
// Control characters become '?', because names out of hostile files end up here and then on a terminal.
PRINTF_LIKE(2, 3) static inline bool fail(char *error, const char *format, ...) {
    char text[ERROR_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    }
    if (error) memcpy(error, text, sizeof text);
    return false;
}

// Reads a regular file into *bytes (malloc, the caller frees; a NUL follows the last byte, not counted in *size).
static inline bool read_file(const char *path, void **bytes, size_t *size, char *error) {
    *bytes = NULL;
    *size = 0;
    struct stat about;
    if (stat(path, &about)) return fail(error, "%s: cannot be opened: %s", path, strerror(errno));
    if (S_ISDIR(about.st_mode)) return fail(error, "%s: is a folder; give a file", path);
    if (!S_ISREG(about.st_mode)) return fail(error, "%s: is not a regular file", path);
    FILE *file = fopen(path, "rb");
    if (!file) return fail(error, "%s: cannot be opened: %s", path, strerror(errno));
    const size_t expected = (size_t)about.st_size;
    char *buffer = (char *)malloc(expected + 1);
    errno = 0;
    const size_t got = buffer ? fread(buffer, 1, expected, file) : 0;
    const char *why = errno ? strerror(errno) : "it was cut while being read";
    fclose(file);
    if (!buffer) return fail(error, "%s: its %zu bytes do not fit into memory", path, expected);
    if (got != expected) {
        free(buffer);
        return fail(error, "%s: only %zu of its %zu bytes could be read: %s", path, got, expected, why);
    }
    buffer[expected] = 0;
    *bytes = buffer;
    *size = expected;
    return true;
}

// folder/name, for free(). Without memory the program ends.
static inline char *path_join(const char *folder, const char *name) {
    size_t length = strlen(folder);
    char *path = (char *)malloc(length + strlen(name) + 2);
    if (!path) abort();
    sprintf(path, "%s%s%s", folder, length && folder[length - 1] != '/' ? "/" : "", name);
    return path;
}

static inline bool make_folders(const char *path, char *error) { // as mkdir -p; an existing folder is fine
    char *part = path_join(path, "");
    bool made = true;
    for (char *slash = part + strspn(part, "/"); made && (slash = strchr(slash, '/')); *slash++ = '/') {
        struct stat about;
        *slash = 0;
        if (mkdir(part, 0777) && (stat(part, &about) || !S_ISDIR(about.st_mode))) {
            made = fail(error, "%s: the folder cannot be made: %s; choose another", part, strerror(errno));
        }
    }
    free(part);
    return made;
}

// How many bytes of a path name folders that exist: ask before make_folders, and give it to remove_empty_folders.
static inline size_t existing_folders(const char *path) {
    char part[4096];
    size_t length = strlen(path), existing = 0;
    for (size_t i = 1; i <= length && i < sizeof part; i++) {
        if (path[i] && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (access(part, F_OK)) break;
        existing = i;
    }
    return existing;
}

// Removes the empty folders of a path, from its end back to its first `existing` bytes: what a failure need not leave.
static inline void remove_empty_folders(const char *path, size_t existing) {
    char part[4096];
    for (size_t i = strlen(path); i > existing; i--) {
        if ((path[i] && path[i] != '/') || i >= sizeof part) continue;
        memcpy(part, path, i);
        part[i] = 0;
        rmdir(part); // fails, as it should, where something is in it
    }
}

// A file in the making: atomic_open, any number of atomic_write, then atomic_close. It grows as PATH.tmp in the same
// folder and becomes PATH when all of it is on the disk; on any failure PATH.tmp is removed and PATH stays as it was.
typedef struct {
    FILE *file;
    char *temporary;
    const char *path; // the caller's; it must live until atomic_close
    int problem;      // errno of the first failure, or 0
} AtomicFile;

static inline bool atomic_fail(const char *path, int problem, char *error) {
    const char *advice = "";
    if (problem == ENOSPC || problem == EDQUOT || problem == EFBIG) advice = "; make room, or write elsewhere";
    if (problem == EACCES || problem == EPERM || problem == EROFS) advice = "; choose a folder that you may write to";
    if (problem == ENOENT || problem == ENOTDIR) advice = "; its folder must exist";
    return fail(error, "%s: cannot be written: %s%s", path, strerror(problem), advice);
}

static inline bool atomic_open(AtomicFile *out, const char *path, char *error) {
    memset(out, 0, sizeof *out);
    // Renaming onto a device would replace it, onto a folder would fail only after all the work.
    struct stat about;
    if (!*path) return fail(error, "a file to write has no name; give one");
    if (!stat(path, &about) && !S_ISREG(about.st_mode)) {
        return fail(error, "%s: cannot be written: it is %s", path,
                    S_ISDIR(about.st_mode) ? "a folder; give a file name" : "not a regular file");
    }
    out->path = path;
    out->temporary = (char *)malloc(strlen(path) + 5);
    if (!out->temporary) return atomic_fail(path, ENOMEM, error);
    strcpy(out->temporary, path);
    strcat(out->temporary, ".tmp");
    out->file = fopen(out->temporary, "wb");
    if (out->file) return true;
    int problem = errno;
    free(out->temporary);
    return atomic_fail(path, problem, error);
}

// A failure is kept until atomic_close reports it.
static inline void atomic_write(AtomicFile *out, const void *bytes, size_t size) {
    if (out->problem || !size) return;
    errno = EIO;
    if (fwrite(bytes, 1, size, out->file) != size) out->problem = errno;
}

static inline bool atomic_close(AtomicFile *out, char *error) {
    errno = EIO;
    if (!out->problem && fflush(out->file)) out->problem = errno;
    // EINVAL: a file system that has nothing to synchronise.
    if (!out->problem && fsync(fileno(out->file)) && errno != EINVAL) out->problem = errno;
    if (fclose(out->file) && !out->problem) out->problem = errno;
    if (!out->problem && rename(out->temporary, out->path)) out->problem = errno;
    if (out->problem) remove(out->temporary);
    free(out->temporary);
    return out->problem ? atomic_fail(out->path, out->problem, error) : true;
}

// Writes a whole file in one go, by the same rules.
static inline bool write_file_atomically(const char *path, const void *bytes, size_t size, char *error) {
    AtomicFile out;
    if (!atomic_open(&out, path, error)) return false;
    atomic_write(&out, bytes, size);
    return atomic_close(&out, error);
}

#endif
