// What of the machine a program may use, how many processors and how much memory, and how its threads wait.
//
// A parallel loop ends when its slowest thread ends, and the others wait. Libraries of OpenMP wait by spinning, for
// some milliseconds or for ever, which is quick on an idle machine. Where another program wants a processor too, the
// spinning thread holds the very processor that the slowest thread needs. So here a thread spins for as short as pays,
// and then sleeps. Somebody who sets OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME has chosen, and is heard.
//
// C11 and C++17. Include it before any system header.
#pragma once

#include "base/files.h"

#include <math.h>
#include <sys/resource.h>
#ifdef _OPENMP
#include <omp.h>
#else // one thread
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
static inline void omp_set_num_threads(int threads) { (void)threads; }
#endif

// ---- what control groups grant

// The first number of a group's file, divided by the second if there is one; infinite where the group has no limit.
static inline double granted_by_group(const char *path) {
    double numbers[2] = {0, 1}; // "max" is none
    FILE *file = fopen(path, "r");
    for (int n = 0; file && n < 2 && fscanf(file, "%lf", &numbers[n]) == 1;) n++;
    if (file) fclose(file);
    return numbers[0] > 0 && numbers[1] > 0 ? numbers[0] / numbers[1] : HUGE_VAL;
}

// What all control groups of this process, of version 2, grant by this file, or `most` where that is less. A group is
// bound by those above it, up to the root. `root` is the folder of proc and sys: "", or a test's own.
static inline double granted_by_groups(const char *root, const char *file, double most) {
    char line[PATH_MAX];
    FILE *list = fopen(path_print("%s/proc/self/cgroup", root).text, "r");
    while (list && fgets(line, sizeof line, list)) {
        char *group = line + strlen("0::");
        if (strncmp(line, "0::", strlen("0::"))) continue; // of version 1
        line[strcspn(line, "\n")] = 0;
        for (char *end = line + strlen(line); end; end = strrchr(group, '/')) {
            *end = 0;
            most = fmin(most, granted_by_group(path_print("%s/sys/fs/cgroup%s/%s", root, group, file).text));
            if (end == group) break;
        }
    }
    if (list) fclose(list);
    return most;
}

// The bytes that this process may have in all. *who becomes what bounds them, and a verb.
static inline double memory_granted(const char *root, const char **who) {
    static const char *const clauses[] = {"this machine has", "its control group grants", "ulimit -v grants",
                                          "ulimit -d grants", "addresses reach"};
    double bytes[] = {(double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE),
                      granted_by_groups(root, "memory.max", HUGE_VAL), HUGE_VAL, HUGE_VAL, (double)(SIZE_MAX / 2)};
    struct rlimit limit;
    if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY) bytes[2] = (double)limit.rlim_cur;
    if (!getrlimit(RLIMIT_DATA, &limit) && limit.rlim_cur != RLIM_INFINITY) bytes[3] = (double)limit.rlim_cur;
    int least = 0;
    for (int i = 1; i < 5; i++) {
        if (bytes[i] < bytes[least]) least = i;
    }
    *who = clauses[least];
    return bytes[least];
}

// ---- threads

// OpenMP's library reads its variables before main begins, so that setting them here needs a second start of the same
// program, in place of this one. Call it first in main. It returns where nothing has to be changed, or cannot be.
static inline void threads_wait_briefly(char **argv) {
#ifdef _OPENMP
    static const char *const chosen[] = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"};
    char self[PATH_MAX + 1];
    for (int i = 0; i < 3; i++) {
        if (getenv(chosen[i])) return;
    }
    ssize_t length = readlink("/proc/self/exe", self, PATH_MAX);
    if (length <= 0) return;
    self[length] = 0;
    setenv("GOMP_SPINCOUNT", "1000", 1); // gcc's library: iterations, some 30 us
    setenv("KMP_BLOCKTIME", "1", 1);     // clang's: milliseconds; with 0 a small model's step takes twice as long
    execv(self, argv);
#else
    (void)argv;
#endif
}

// The whole processors that this process may keep busy by its control groups, rounded up, or `most` if that is less.
static inline int processors_granted(const char *root, int most) {
    return (int)fmax(1, ceil(granted_by_groups(root, "cpu.max", most)));
}

// The threads that a program takes unless it is told how many: OMP_NUM_THREADS, or a thread for each processor that the
// process may run on and that its control groups grant.
static inline int threads_default(void) {
    const int most = omp_get_max_threads();
    return getenv("OMP_NUM_THREADS") ? most : processors_granted("", most);
}
