// The starter corpus: where the default data folder holds no music, data_prep/compose_music composes some into it.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/run.h"

#include <dirent.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

// Runs a program and waits. Its stdout is thrown away: ours belongs to the epochs' lines, and of stderr the reader may
// have gone away.
static inline bool run_program(const char *path, const char *const *arguments, char *error) {
    posix_spawn_file_actions_t actions;
    pid_t child;
    int status = 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    int problem = posix_spawn(&child, path, &actions, NULL, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (problem) return fail(error, "%s: cannot be run: %s", path, strerror(problem));
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return fail(error, "%s: cannot be waited for: %s", path, strerror(errno));
    }
    if (WIFSIGNALED(status)) return fail(error, "%s: it was ended by signal %d; run me again", path, WTERMSIG(status));
    if (WEXITSTATUS(status))
        return fail(error, "%s: it failed, as said above (exit status %d)", path, WEXITSTATUS(status));
    return true;
}

// Whether the starter corpus belongs into the default data folder: it does not exist, or holds nothing but what an
// interrupted composing leaves behind. Somebody's own folder is left alone.
static inline bool starter_wanted(void) {
    DIR *list = opendir(DEFAULT_DATA);
    bool train = false, test = false, starter = false, other = false;
    if (!list) return errno == ENOENT;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        const char *name = entry->d_name, *dot = strrchr(name, '.');
        if (!strcmp(name, ".") || !strcmp(name, "..") || (dot && !strcmp(dot, ".tmp"))) continue;
        train |= !strcmp(name, "train.safetensors");
        test |= !strcmp(name, "test.safetensors");
        starter |= !strcmp(name, "starter");
        other |= strcmp(name, "train.safetensors") && strcmp(name, "test.safetensors") && strcmp(name, "starter");
    }
    closedir(list);
    return !other && !(train && test) && (starter || (!train && !test));
}

// Composes the starter corpus into the folder, by the two programs beside this one, and makes its datasets.
static inline bool starter_compose(TrainRun *run) {
    const Path compose = path_beside_program(run->argv[0], "data_prep/compose_music");
    const Path prepare = path_beside_program(run->argv[0], "data_prep/prepare_music");
    const char *first[] = {compose.text, "--out", DEFAULT_DATA "/starter", NULL};
    const char *second[] = {
        prepare.text, "--out", DEFAULT_DATA, DEFAULT_DATA "/starter/train", DEFAULT_DATA "/starter/test", NULL};
    const char *missing = access(compose.text, X_OK) ? compose.text : access(prepare.text, X_OK) ? prepare.text : NULL;
    if (missing) {
        return fail(run->error,
                    "%s: there is no music here yet, and %s, which would make some, cannot be run (%s); build it with "
                    "make, or give --data a folder made by prepare_music",
                    DEFAULT_DATA, missing, strerror(errno));
    }
    fprintf(stderr, "%s: no music here yet: composing the starter corpus into it\n", DEFAULT_DATA);
    return run_program(compose.text, first, run->error) && run_program(prepare.text, second, run->error);
}
