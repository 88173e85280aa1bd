// A library that lets one call of a program fail, to be loaded before all others:
//
//     FAULT=17 LD_PRELOAD=build/faults.so ./train_gpt_music ...
//
// Call number FAULT since main began fails, with the number FAULT_ERRNO or the usual one of its kind; with FAULT=17+
// all calls from that one on. Without FAULT nothing fails, and FAULT_LOG names a file that gets a line for each call,
// its name. Calls are counted that ask for memory, that open, read, write or rename, and fsync; those that only write
// to stderr are not. fsync does nothing else here, because no test pulls the plug, and it is slow.
//
// What the C library does inside a call is not seen, so a stream fails as a whole: its error flag is set, and nothing
// is read or written. glibc only.
#define _GNU_SOURCE
#include <stdlib.h>
#ifdef __GLIBC__

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool counting, onward;
static long fault, problem;
static int list = -1;
static atomic_long calls;

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("FAULT"), *why = getenv("FAULT_ERRNO"), *name = getenv("FAULT_LOG");
    fault = number ? atol(number) : 0;
    onward = number && strchr(number, '+');
    problem = why ? atol(why) : 0;
    if (name && !fault) list = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    counting = true;
}

// Counts a call. Whether it is to fail, with errno set.
static bool fails(const char *name, int usual) {
    if (!counting) return false;
    const long number = atomic_fetch_add(&calls, 1) + 1;
    char line[32];
    strcpy(line, name);
    strcat(line, "\n");
    if (list >= 0) syscall(SYS_write, list, line, strlen(line));
    const bool failed = number == fault || (onward && number > fault);
    if (failed) errno = problem ? (int)problem : usual;
    return failed;
}

static bool stream_fails(FILE *file, const char *name, int usual) {
    if (file == stderr || !fails(name, usual)) return false;
    if (file) file->_flags |= _IO_ERR_SEEN;
    return true;
}

#define NEXT(name)                                                                                                     \
    static typeof(&name) next;                                                                                         \
    if (!next) next = (typeof(&name))dlsym(RTLD_NEXT, #name)

// ---- memory. The C library's own names, because dlsym may ask for memory.

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) { return fails("malloc", ENOMEM) ? NULL : __libc_malloc(size); }

void *calloc(size_t n, size_t size) { return fails("calloc", ENOMEM) ? NULL : __libc_calloc(n, size); }

void *realloc(void *memory, size_t size) { return fails("realloc", ENOMEM) ? NULL : __libc_realloc(memory, size); }

void *aligned_alloc(size_t unit, size_t size) {
    return fails("aligned_alloc", ENOMEM) ? NULL : __libc_memalign(unit, size);
}

int posix_memalign(void **memory, size_t unit, size_t size) {
    if (fails("posix_memalign", ENOMEM)) return errno;
    void *got = __libc_memalign(unit, size);
    if (!got) return ENOMEM;
    *memory = got;
    return 0;
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    NEXT(mmap);
    return fails("mmap", ENOMEM) ? MAP_FAILED : next(at, size, protection, flags, file, offset);
}

// ---- files

#define MODE(flags)                                                                                                    \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                                          \
    va_end(rest)

int open(const char *path, int flags, ...) {
    NEXT(open);
    MODE(flags);
    return fails("open", EMFILE) ? -1 : next(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    NEXT(openat);
    MODE(flags);
    return fails("openat", EMFILE) ? -1 : next(folder, path, flags, mode);
}

FILE *fopen(const char *path, const char *how) {
    NEXT(fopen);
    return fails("fopen", EMFILE) ? NULL : next(path, how);
}

DIR *opendir(const char *path) {
    NEXT(opendir);
    return fails("opendir", EMFILE) ? NULL : next(path);
}

ssize_t read(int file, void *to, size_t size) {
    NEXT(read);
    return fails("read", EIO) ? -1 : next(file, to, size);
}

size_t fread(void *to, size_t size, size_t n, FILE *file) {
    NEXT(fread);
    return stream_fails(file, "fread", EIO) ? 0 : next(to, size, n, file);
}

struct dirent *readdir(DIR *folder) {
    NEXT(readdir);
    return fails("readdir", EIO) ? NULL : next(folder);
}

ssize_t write(int file, const void *from, size_t size) {
    NEXT(write);
    return file != 2 && fails("write", ENOSPC) ? -1 : next(file, from, size);
}

size_t fwrite(const void *from, size_t size, size_t n, FILE *file) {
    NEXT(fwrite);
    return stream_fails(file, "fwrite", ENOSPC) ? 0 : next(from, size, n, file);
}

int fflush(FILE *file) {
    NEXT(fflush);
    return stream_fails(file, "fflush", ENOSPC) ? EOF : next(file);
}

int fclose(FILE *file) {
    NEXT(fclose);
    const bool failed = fails("fclose", EIO);
    const int why = errno, status = next(file);
    if (failed) errno = why;
    return failed ? EOF : status;
}

int fsync(int file) {
    (void)file;
    return fails("fsync", EIO) ? -1 : 0;
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return fails("rename", EACCES) ? -1 : next(from, to);
}

int link(const char *from, const char *to) {
    NEXT(link);
    return fails("link", EPERM) ? -1 : next(from, to);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return fails("mkdir", ENOSPC) ? -1 : next(path, mode);
}

#endif
