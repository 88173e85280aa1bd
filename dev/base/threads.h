// Threads: how many processors a program may use, and how its threads wait for each other.
//
// A parallel loop ends when its slowest thread ends, and the others wait. Libraries of OpenMP wait by spinning, for
// some milliseconds or for ever, which is quick on an idle machine. Where another program wants a processor too, the
// spinning thread holds the very processor that the slowest thread needs. So here a thread spins for some microseconds
// and then sleeps. Somebody who sets OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME has chosen otherwise, and is
// heard.
//
// C11 and C++17. Include it before any system header.
#ifndef THREADS_H
#define THREADS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

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
    setenv("KMP_BLOCKTIME", "0", 1);     // clang's: milliseconds
    execv(self, argv);
#else
    (void)argv;
#endif
}

// The processors' worth of time that a control group grants, from the files in its folder: cpu.max holds "QUOTA PERIOD"
// in microseconds (version 2), or there is a file for each (version 1). A huge number where it grants all.
static inline double quota_of_group(const char *folder) {
    static const char *const files[] = {"cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"};
    double numbers[2] = {0, 0};
    for (int i = 0, n = 0; i < 3 && n < 2; i++) {
        char path[PATH_MAX + 32];
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        while (n < 2 && fscanf(file, "%lf", &numbers[n]) == 1) n++; // "max" is no number, and -1 no quota
        fclose(file);
    }
    return numbers[0] > 0 && numbers[1] > 0 ? numbers[0] / numbers[1] : 1e9;
}

// The whole processors that this process may keep busy by the quotas of its control groups, rounded up, or `most` where
// they grant more. A group is bound by those above it, up to the root. `root` is the folder of proc and sys: "", or a
// test's own.
static inline int processors_by_quota(const char *root, int most) {
    static const char *const mounts[] = {"", "/cpu", "/cpu,cpuacct"};
    char line[PATH_MAX], path[PATH_MAX];
    double least = most;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *list = fopen(path, "r"); // a line for each hierarchy: number:controllers:/group
    while (list && fgets(line, sizeof line, list)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        bool all = !controllers[1], ours = false; // version 2 names none
        for (char *name = strtok(controllers + 1, ","); name && !ours; name = strtok(NULL, ","))
            ours = !strcmp(name, "cpu");
        if (!all && !ours) continue;
        for (char *end = group + strlen(group); end; end = strrchr(group, '/')) {
            *end = 0;
            for (int i = 0; i < 3; i++) {
                int length = snprintf(path, sizeof path, "%s/sys/fs/cgroup%s%s", root, mounts[i], group);
                double quota = length < (int)sizeof path ? quota_of_group(path) : least;
                if (quota < least) least = quota;
            }
            if (end == group) break;
        }
    }
    if (list) fclose(list);
    int whole = (int)least + (least > (int)least);
    return whole > 1 ? whole : 1;
}

// The threads that a program takes unless it is told how many: OMP_NUM_THREADS, or a thread for each processor that the
// process may run on and that its control groups grant.
static inline int threads_default(void) {
#ifdef _OPENMP
    int most = omp_get_max_threads();
    return getenv("OMP_NUM_THREADS") ? most : processors_by_quota("", most);
#else
    return 1;
#endif
}

#endif
