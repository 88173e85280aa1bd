// Progress on stderr: one line over itself on a terminal, as wide as that is; a line now and then elsewhere.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/run.h"

#include <sys/ioctl.h>

#ifndef PROGRESS_SECONDS
#define PROGRESS_SECONDS 10 // between lines where stderr is no terminal
#endif

typedef struct {
    bool terminal;                   // one that can clear its line
    double interval, started, shown; // seconds
    int64_t first, last, shown_at;   // steps
    double shown_sum, loss;          // of the losses; smoothed
} Progress;

static inline Progress progress_start(int64_t first, int64_t last, double loss_sum) {
    const char *kind = getenv("TERM");
    const bool terminal = isatty(2) && kind && *kind && strcmp(kind, "dumb");
    const double now = seconds_now();
    const Progress p = {terminal, terminal ? 0.2 : PROGRESS_SECONDS, now, now, first, last, first, loss_sum, -1};
    return p;
}

static inline bool progress_due(const Progress *p, double now) { return now - p->shown >= p->interval; }

// One line over itself on a terminal, one line each time otherwise. `from` is where the bar begins. What a terminal is
// too narrow for is left out: first the bar, then the last parts of `rest`, which two blanks separate.
static inline void progress_line(const Progress *p, const char *what, int64_t from, int64_t at, const char *rest) {
    double part = p->last > from ? (double)(at - from) / (double)(p->last - from) : 1;
    if (!p->terminal) {
        fprintf(stderr, "%s  %lld of %lld  %s\n", what, (long long)(at - from), (long long)(p->last - from), rest);
        return;
    }
    struct winsize window;
    const int width = ioctl(2, TIOCGWINSZ, &window) || !window.ws_col ? 80 : window.ws_col;
    const int most = width - 8 - (int)strlen(what); // of rest; the others are blanks, 100% and the cursor
    char bar[26] = "";
    int length = (int)strlen(rest);
    while (length > most && length > 0) {
        for (length--; length > 0 && strncmp(rest + length, "  ", 2);) length--;
    }
    const int marks =
        most - length > 24 ? 24 : (most - length - 1) / 8 * 8; // in eights, for they come and go with rest
    for (int i = 0; i < marks; i++) strcpy(bar + i, i < (int)(part * marks) ? "# " : ". ");
    fprintf(stderr, "\r%s %s%3.0f%%  %.*s\033[K", what, bar, 100 * part, length, rest);
}

static inline void progress_clear(const Progress *p) {
    if (p->terminal) fprintf(stderr, "\r\033[K");
}

static inline void progress_train(Progress *p, const TrainRun *run, double now) {
    int64_t epoch_start = (int64_t)run->n_rows * run->epoch_steps, done = run->step - p->first;
    double recent = (run->loss_sum - p->shown_sum) / (double)(run->step - p->shown_at);
    double weight = fmin(1, (double)(run->step - p->shown_at) / 20);
    p->loss = p->loss < 0 ? recent : p->loss + weight * (recent - p->loss);
    double each = (now - p->started) / (double)done;
    char what[48], rest[160], rate[32], left[32];
    snprintf(what, sizeof what, "epoch %d", run->n_rows + 1);
    snprintf(rest, sizeof rest, "loss %.4f  %s left  %.*f ms/step  %s tokens/s", p->loss,
             duration_text(left, each * (double)(p->last - run->step)), each < 0.1 ? 2 : 0, 1e3 * each,
             thousands(rate, (int64_t)((double)run->config.B * run->config.T / each)));
    progress_line(p, what, epoch_start, run->step, rest);
    p->shown = now;
    p->shown_at = run->step;
    p->shown_sum = run->loss_sum;
}

static inline void progress_eval(Progress *p, int64_t done, double now) { // windows
    char left[32], rest[64];
    double each = (now - p->started) / (double)done;
    snprintf(rest, sizeof rest, "%s left", duration_text(left, each * (double)(p->last - done)));
    progress_line(p, "evaluation", 0, done, rest);
    p->shown = now;
}
