// Errors and files: how every program here says what is wrong, reads a file whole, and writes one whole or not at all.
//
// Promises: an error is one sentence, without control characters. A file that is written is the old one or the new one,
// never half of one, whether the program is killed, the disk is full or the folder forbidden.
// Left out: files larger than memory, systems without POSIX.
// C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE // fileno, fsync and program_invocation_short_name
#endif

#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h> // flock
#include <sys/stat.h>
#include <unistd.h>

#define PRINTF_LIKE(format_at, first_at) __attribute__((format(printf, format_at, first_at))) // parameters, from 1

enum { ERROR_SIZE = 1024 }; // of every `char *error` below; it receives one sentence, without a newline

// Formats a sentence into error[ERROR_SIZE] (which may be NULL, and may be among the arguments) and returns false.
// It is cleaned (see clean_text), because names out of hostile files end up here and then on a terminal.
PRINTF_LIKE(2, 3) static inline bool fail(char *error, const char *format, ...) {
    char text[ERROR_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    clean_text(text, strlen(text));
    if (error) memcpy(error, text, sizeof text);
    return false;
}

// The memory that was asked for. Without it the program ends with a sentence: for where nothing is lost by that.
static inline void *must_have(void *memory) {
    if (memory) return memory;
#ifdef __linux__
    fprintf(stderr, "%s: out of memory\n", program_invocation_short_name);
#else
    fprintf(stderr, "%s: out of memory\n", getprogname());
#endif
    exit(1);
}

static inline void must(bool enough) { // the same where a call says whether there is memory
    if (!enough) must_have(NULL);
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

// A path by value. What is cut is longer than any that the system takes.
typedef struct {
    char text[2 * PATH_MAX];
} Path;

PRINTF_LIKE(1, 2) static inline Path path_print(const char *format, ...) {
    Path path;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path.text, sizeof path.text, format, arguments);
    va_end(arguments);
    return path;
}

static inline Path path_join(const char *folder, const char *name) { // folder/name
    const size_t length = strlen(folder);
    return path_print("%s%s%s", folder, length && folder[length - 1] != '/' ? "/" : "", name);
}

// The path of a file that lies beside this program; argv0 as main got it, for where /proc is not.
static inline Path path_beside_program(const char *argv0, const char *name) {
    Path self = path_join("", argv0);
    ssize_t length = readlink("/proc/self/exe", self.text, sizeof self.text - 1);
    if (length >= 0) self.text[length] = 0;
    char *slash = strrchr(self.text, '/');
    strcpy(slash ? slash : self.text, slash ? "" : ".");
    return path_join(self.text, name);
}

// As mkdir -p; an existing folder is fine.
static inline bool make_folders(const char *path, char *error) {
    Path whole = path_join(path, "");
    char *part = whole.text;
    for (char *slash = part + strspn(part, "/"); (slash = strchr(slash, '/')); *slash++ = '/') {
        struct stat about;
        *slash = 0;
        if (!mkdir(part, 0777)) continue;
        const int problem = errno;
        if (stat(part, &about)) {
            return fail(error, "%s: the folder cannot be made: %s; choose another", part, strerror(problem));
        }
        if (!S_ISDIR(about.st_mode)) return fail(error, "%s is a file, not a folder; choose another", part);
    }
    return true;
}

// A file in the making: atomic_open, any number of atomic_write, then atomic_close. It grows under a name of its own,
// PATH.1.tmp or another number, and becomes PATH, with the mode of an earlier PATH, when all of it is on the disk. On
// any failure the temporary file is removed and PATH stays as it was. Of a program that is killed the temporary file is
// left over, until somebody writes PATH again: a living program has it locked.
typedef struct {
    FILE *file;
    Path temporary;
    const char *path; // the caller's; it must live until atomic_close
    int mode;         // of an earlier file, or -1
    int problem;      // errno of the first failure, or 0
} AtomicFile;

static inline bool atomic_fail(const char *path, int problem, char *error) {
    const char *advice = "";
    if (problem == ENOSPC || problem == EDQUOT || problem == EFBIG) advice = "; make room, or write elsewhere";
    if (problem == EACCES || problem == EPERM || problem == EROFS) advice = "; choose a folder that you may write to";
    if (problem == ENOENT || problem == ENOTDIR) advice = "; its folder must exist";
    return fail(error, "%s: cannot be written: %s%s", path, strerror(problem), advice);
}

static inline bool is_named(int file, const char *name) { // whether this is the name of the open file, not of another
    struct stat opened, named;
    return !fstat(file, &opened) && !lstat(name, &named) && opened.st_ino == named.st_ino &&
           opened.st_dev == named.st_dev;
}

// Removes what dead programs have left of PATH in the making. What is locked, or is no regular file, stays, and so does
// everything on a file system without locks.
static inline void temporary_clean(const char *path) {
    for (int number = 1; number < 10; number++) { // with more writers of one file at a time some may stay
        struct stat about;
        const Path name = path_print("%s.%d.tmp", path, number);
        int file = open(name.text, O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
        bool left = file >= 0 && !fstat(file, &about) && S_ISREG(about.st_mode) && !flock(file, LOCK_EX | LOCK_NB);
        // Its writer may just have ended, and another one have the name.
        if (left && is_named(file, name.text)) unlink(name.text);
        if (file >= 0) close(file);
    }
}

// Opens the first temporary file whose name is free, and locks it. -1 and errno: there is none.
static inline int temporary_open(const char *path, int mode, Path *name) {
    for (int number = 1; number < 1000; number++) {
        *name = path_print("%s.%d.tmp", path, number);
        int file = open(name->text, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        // Before the lock somebody may have taken it for left over. Where there are no locks, nobody does.
        bool mine =
            file >= 0 && (!flock(file, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK) && is_named(file, name->text);
        if (mine || (file < 0 && errno != EEXIST)) return file;
        if (file >= 0) close(file);
    }
    return -1;
}

static inline bool atomic_open(AtomicFile *out, const char *path, char *error) {
    memset(out, 0, sizeof *out);
    // Renaming onto a device would replace it, onto a folder would fail only after all the work.
    struct stat about;
    if (!*path) return fail(error, "a file to write has no name; give one");
    bool exists = !stat(path, &about);
    if (exists && !S_ISREG(about.st_mode)) {
        return fail(error, "%s: cannot be written: it is %s", path,
                    S_ISDIR(about.st_mode) ? "a folder; give a file name" : "not a regular file");
    }
    out->path = path;
    out->mode = exists ? (int)about.st_mode & 0777 : -1;
    temporary_clean(path);
    int file = temporary_open(path, exists ? 0600 : 0666, &out->temporary);
    out->file = file < 0 ? NULL : fdopen(file, "wb");
    if (out->file) return true;
    int problem = errno;
    if (file >= 0) {
        remove(out->temporary.text);
        close(file);
    }
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
    if (out->mode >= 0) fchmod(fileno(out->file), (mode_t)out->mode); // some file systems have one mode for all
    int lock = dup(fileno(out->file));                                // until the file has its name
    if (fclose(out->file) && !out->problem) out->problem = errno;
    if (!out->problem && rename(out->temporary.text, out->path)) out->problem = errno;
    if (out->problem) remove(out->temporary.text);
    if (lock >= 0) close(lock);
    return out->problem ? atomic_fail(out->path, out->problem, error) : true;
}

// Writes a whole file in one go, by the same rules.
static inline bool write_file_atomically(const char *path, const void *bytes, size_t size, char *error) {
    AtomicFile out;
    if (!atomic_open(&out, path, error)) return false;
    atomic_write(&out, bytes, size);
    return atomic_close(&out, error);
}
