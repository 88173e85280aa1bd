// Progress on stderr: one line over itself on a terminal, a line now and then elsewhere.
//
// C11 and C++17, POSIX. Include it before any system header.
#ifndef PROGRESS_H
#define PROGRESS_H

#include "recipe/run.h"

#ifndef PROGRESS_SECONDS
#define PROGRESS_SECONDS 10 // between lines where stderr is no terminal
#endif

typedef struct {
    bool terminal;
    double interval, started, shown; // seconds
    int64_t first, last, shown_at;   // steps
    double shown_sum, loss;          // of the losses; smoothed
} Progress;

static inline Progress progress_start(int64_t first, int64_t last, double loss_sum) {
    const bool terminal = isatty(2);
    const double now = seconds_now();
    const Progress p = {terminal, terminal ? 0.2 : PROGRESS_SECONDS, now, now, first, last, first, loss_sum, -1};
    return p;
}

static inline bool progress_due(const Progress *p, double now) { return now - p->shown >= p->interval; }

// One line over itself on a terminal, one line each time otherwise. `from` is where the bar begins.
static inline void progress_line(const Progress *p, const char *what, int64_t from, int64_t at, const char *rest) {
    double part = p->last > from ? (double)(at - from) / (double)(p->last - from) : 1;
    if (p->terminal) {
        char bar[25];
        for (int i = 0; i < 24; i++) bar[i] = i < (int)(part * 24) ? '#' : '.';
        bar[24] = 0;
        fprintf(stderr, "\r%s %s %3.0f%%  %s\033[K", what, bar, 100 * part, rest);
    } else {
        fprintf(stderr, "%s  %lld of %lld  %s\n", what, (long long)(at - from), (long long)(p->last - from), rest);
    }
    fflush(stderr);
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
    snprintf(rest, sizeof rest, "loss %.4f  %.*f ms/step  %s tokens/s  %s left", p->loss, each < 0.1 ? 2 : 0,
             1e3 * each, thousands(rate, (int64_t)((double)run->config.B * run->config.T / each)),
             duration_text(left, each * (double)(p->last - run->step)));
    progress_line(p, what, epoch_start, run->step, rest);
    p->shown = now;
    p->shown_at = run->step;
    p->shown_sum = run->loss_sum;
}

static inline void progress_eval(Progress *p, const TrainRun *run, double now) {
    char left[32], rest[64];
    double each = (now - p->started) / (double)(run->eval_done - p->first);
    snprintf(rest, sizeof rest, "%s left", duration_text(left, each * (double)(p->last - run->eval_done)));
    progress_line(p, "evaluation", 0, run->eval_done, rest);
    p->shown = now;
}

#endif
