// A program as a whole: its version, how it starts and ends, the time and the memory that it takes.
//
// C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#include "base/files.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>

// ---- a program's start and end

static inline void program_start(void) {
    signal(SIGXFSZ, SIG_IGN); // a file-size limit is then an error of the write, with a sentence
}

// Flushes stdout, a failure too, because a full disk may show only here. Returns the exit status, and of a failure
// prints the sentence in error, if there is one.
static inline int program_end(const char *program, int status, char *error) {
    const bool flushed = !fflush(stdout);
    if ((!flushed || ferror(stdout)) && !status) { // of an earlier error the reason is no longer known
        fail(error, "the standard output cannot be written%s%s", flushed ? "" : ": ", flushed ? "" : strerror(errno));
        status = 1;
    }
    if (status && *error) fprintf(stderr, "%s: %s\n", program, error);
    return status;
}

// ---- time

static inline double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double median(double *values, size_t n) { // of at least one value; sorts them
    qsort(values, n, sizeof *values, by_value);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static inline double peak_megabytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss / 1e6;
#else
    return (double)usage.ru_maxrss * 1024 / 1e6;
#endif
}
