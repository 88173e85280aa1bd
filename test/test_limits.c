// How many processors and how much memory a program may have: by control groups, from files of a folder that stands for
// the root, and by the limits of ulimit.
#include "base/files.h"
#include "base/limits.h"

#include "check.h"

static char folder[200], error[ERROR_SIZE];

static void put(const char *name, const char *text) { // with the folders on the way
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *last = strrchr(path, '/');
    *last = 0;
    CHECK(make_folders(path, error), "%s", error);
    *last = '/';
    CHECK(write_file_atomically(path, text, strlen(text), error), "%s", error);
}

static void expect(const char *what, int most, int wanted) {
    int got = processors_granted(folder, most);
    CHECK(got == wanted, "%s: %d of %d, expected %d", what, got, most, wanted);
}

static void expect_memory(const char *what, double bytes, const char *by) {
    const char *who;
    double got = memory_granted(folder, &who);
    CHECK(got == bytes && strstr(who, by), "%s: %.0f bytes that %s, expected %.0f", what, got, who, bytes);
}

int main(void) {
    const double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_AS, &none);
    setrlimit(RLIMIT_DATA, &none);
    check_folder(folder);
    expect_memory("no control groups", machine, "this machine");
    expect("no control groups", 8, 8);
    put("proc/self/cgroup", "0::/user/job\n");
    expect("a group without files", 8, 8);
    put("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
    expect("version 2, no quota", 8, 8);
    put("sys/fs/cgroup/user/job/cpu.max", "200000 100000\n");
    expect("version 2", 8, 2);
    expect("version 2, fewer processors than the quota", 1, 1);
    put("sys/fs/cgroup/user/job/cpu.max", "150000 100000\n");
    expect("version 2, one and a half", 8, 2);
    put("sys/fs/cgroup/user/cpu.max", "50000 100000\n");
    expect("version 2, a tighter group above", 8, 1);
    put("sys/fs/cgroup/user/cpu.max", "garbage\n");
    put("sys/fs/cgroup/user/job/cpu.max", "");
    expect("files that say nothing", 8, 8);
    put("sys/fs/cgroup/cpu.max", "300000 100000\n");
    put("proc/self/cgroup", "0::/\n");
    expect("version 2, the root as a container sees it", 8, 3);

    put("proc/self/cgroup", "5:memory:/jobs/a\n3:cpu,cpuacct:/jobs/c\n1:name=systemd:/jobs/a\n");
    expect("version 1", 8, 8);
    put("proc/self/cgroup", "5:memory:/jobs/a\n0::/user/job\n");
    put("sys/fs/cgroup/user/job/cpu.max", "100000 50000\n");
    expect("version 2 beside version 1", 8, 2);
    put("proc/self/cgroup", "0::/user/job\n");
    expect_memory("version 2, a group without a limit", machine, "this machine");
    put("sys/fs/cgroup/user/job/memory.max", "max\n");
    expect_memory("version 2, no limit", machine, "this machine");
    put("sys/fs/cgroup/user/job/memory.max", "1000000\n");
    expect_memory("version 2", 1000000, "control group");
    put("sys/fs/cgroup/user/memory.max", "500000\n");
    expect_memory("version 2, a tighter group above", 500000, "control group");
    const struct rlimit tight = {400000, RLIM_INFINITY};
    if (!CHECK_SANITIZED && !setrlimit(RLIMIT_DATA, &tight)) expect_memory("ulimit", 400000, "ulimit -d");

    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(!system(command), "%s", command);
    return check_report("limits");
}
