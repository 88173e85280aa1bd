// How many processors a program takes: quotas of control groups, from files of a folder that stands for the root.
#include "base/files.h"
#include "base/threads.h"

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
    int got = processors_by_quota(folder, most);
    CHECK(got == wanted, "%s: %d of %d, expected %d", what, got, most, wanted);
}

int main(void) {
    check_folder(folder);
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

    put("proc/self/cgroup", "5:memory:/jobs/a\n4:cpuset:/jobs/b\n3:cpu,cpuacct:/jobs/c\n1:name=systemd:/jobs/a\n");
    put("sys/fs/cgroup/cpu.max", "max 100000\n");
    put("sys/fs/cgroup/cpu/jobs/c/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/jobs/c/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/cpu/jobs/b/cpu.cfs_quota_us", "100000\n");
    put("sys/fs/cgroup/cpu/jobs/b/cpu.cfs_period_us", "100000\n");
    expect("version 1, no quota; the group of another controller has one", 8, 8);
    put("sys/fs/cgroup/cpu/jobs/c/cpu.cfs_quota_us", "250000\n");
    expect("version 1", 8, 3);
    put("sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us", "100000\n");
    put("sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us", "50000\n");
    expect("version 1, a tighter group above", 8, 2);
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "20000\n");
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n");
    expect("version 1, mounted by both names, less than one", 8, 1);

    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(!system(command), "%s", command);
    return check_report("threads");
}
