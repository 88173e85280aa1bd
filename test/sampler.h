// The sampler as a program within a test, called as from a shell, behind `#define TESTING` and sample_music.c.
#ifndef SAMPLER_H
#define SAMPLER_H

#include "models.h"
#include <fcntl.h>

static char said[4096];       // what the last call wrote to stdout and stderr
static char small_model[512]; // that MODEL stands for

static int terminal = -1; // to be the standard output instead

static inline int call(const char *arguments,
                       ...) { // split at spaces; @ stands for the scratch folder, MODEL for the model
    static char text[4096], line[4096];
    char *argv[64], *at = text;
    int argc = 1;
    va_list list;
    va_start(list, arguments);
    vsnprintf(line, sizeof line, arguments, list);
    va_end(list);
    for (const char *c = line; *c; c++) {
        if (*c == '@') at += sprintf(at, "%s", folder);
        if (!strncmp(c, "MODEL", 5))
            at += sprintf(at, "%s", small_model), c += 4;
        else if (*c != '@')
            *at++ = *c;
    }
    *at = 0;
    argv[0] = (char *)"sample_music";
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;

    fflush(stdout), fflush(stderr);
    int out = dup(1), err = dup(2), file = open(in_folder("said"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(terminal < 0 ? file : terminal, 1), dup2(file, 2);
    int status = sample_main(argc, argv);
    fflush(stdout), fflush(stderr);
    dup2(out, 1), dup2(err, 2);
    ssize_t n = pread(file, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = 0;
    close(out), close(err), close(file);
    return status;
}

static inline bool exists(const char *name) { return !access(in_folder(name), F_OK); }

#endif
