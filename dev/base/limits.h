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
#endif

// ---- what control groups grant

typedef struct {
    const char *name;     // the controller's
    const char *files[4]; // in the folder of a group, of versions 2 and 1, up to a NULL
    int numbers;          // that these files hold together: an amount, or an amount and what it is divided by
} GroupLimit;

static const GroupLimit group_processors = {"cpu", {"cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", NULL}, 2};
static const GroupLimit group_memory = {"memory", {"memory.max", "memory.limit_in_bytes", NULL, NULL}, 1};

// Infinite where the group has no limit: then there is "max" instead of a number, or -1.
static inline double granted_by_group(const char *folder, const GroupLimit *limit) {
    double numbers[2] = {0, limit->numbers == 1 ? 1.0 : 0.0};
    for (int i = 0, n = 0; limit->files[i] && n < limit->numbers; i++) {
        char path[4 * PATH_MAX + 64];
        snprintf(path, sizeof path, "%s/%s", folder, limit->files[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        while (n < limit->numbers && fscanf(file, "%lf", &numbers[n]) == 1) n++;
        fclose(file);
    }
    return numbers[0] > 0 && numbers[1] > 0 ? numbers[0] / numbers[1] : HUGE_VAL;
}

// What all control groups of this process grant, or `most` where that is less. A group is bound by those above it, up
// to the root. `root` is the folder of proc and sys: "", or a test's own.
static inline double granted_by_groups(const char *root, const GroupLimit *limit, double most) {
    char line[PATH_MAX], name[64], all[PATH_MAX + 2], path[4 * PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    snprintf(name, sizeof name, ",%s,", limit->name);
    FILE *list = fopen(path, "r"); // a line for each hierarchy, number:controllers:/group; version 2 names none
    while (list && fgets(line, sizeof line, list)) {
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *names++ = *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        snprintf(all, sizeof all, ",%s,", names);
        if (*names && !strstr(all, name)) continue;
        const char *const mounts[] = {"", limit->name, names};
        for (char *end = group + strlen(group); end; end = strrchr(group, '/')) {
            *end = 0;
            for (int i = 0; i < 3; i++) {
                snprintf(path, sizeof path, "%s/sys/fs/cgroup/%s%s", root, mounts[i], group);
                most = fmin(most, granted_by_group(path, limit));
            }
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
                      granted_by_groups(root, &group_memory, HUGE_VAL), HUGE_VAL, HUGE_VAL, (double)(SIZE_MAX / 2)};
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
    return (int)fmax(1, ceil(granted_by_groups(root, &group_processors, most)));
}

// The threads that a program takes unless it is told how many: OMP_NUM_THREADS, or a thread for each processor that the
// process may run on and that its control groups grant.
static inline int threads_default(void) {
#ifdef _OPENMP
    int most = omp_get_max_threads();
    return getenv("OMP_NUM_THREADS") ? most : processors_granted("", most);
#else
    return 1;
#endif
}
