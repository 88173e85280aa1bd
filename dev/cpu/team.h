// How many threads a step takes. On an idle machine all are best. But the threads of a parallel loop wait for the
// slowest one, so where another program wants a core too, fewer threads can be faster: a small model's two threads,
// beside a program that never sleeps, wait at each of some hundred barriers a step until the scheduler comes round to
// the one that shares its core; a single thread has a core to itself. Who else is at work cannot be asked. So now and
// then some steps are tried with fewer threads, or with more again, and what is faster stays. No result depends on the
// number of threads (cpu/matmul.h).
#pragma once

#include "base/limits.h"
#include "base/program.h"

// Steps are timed in rounds, which are long beside the milliseconds for which a scheduler gives a core away. After a
// trial the next one is due in FEW_ROUNDS if it was of use, else in twice as many as the last time, up to MANY_ROUNDS:
// of the time of an idle machine with two cores trials take 0.7 %.
#define ROUND_SECONDS 0.05
enum { FEW_ROUNDS = 2, MANY_ROUNDS = 128, TRIALS = 4 };

typedef struct {
    int most, threads, tried; // threads allowed, those of a step, and those of a trial or 0
    int wait, pause;          // rounds until the next trial, and from the last one to it
    int trial;                // which of the TRIALS was the last
    double last[2];           // seconds a step in the last two rounds that were no trials
    double usual;             // the same when the last trial ended
    double begun;             // the round
    int steps;                // of the round
} Team;

static inline Team team_of(int most) {
    return (Team){most, most, 0, FEW_ROUNDS, FEW_ROUNDS, TRIALS - 1, {HUGE_VAL, HUGE_VAL}, HUGE_VAL, 0, 0};
}

// The threads that a trial would have, or those of a step: half of them, one more, one less, all.
static inline int team_trial(const Team *t) {
    const int trials[TRIALS] = {(t->threads + 1) / 2, (int)fmin(t->threads + 1, t->most), (int)fmax(t->threads - 1, 1),
                                t->most};
    return trials[t->trial];
}

// Takes the seconds a step of a round that is over. Returns the threads of the next round.
static inline int team_next(Team *t, double seconds) {
    const double usual = fmin(t->last[0], t->last[1]);
    if (t->tried) {
        const bool better = seconds < 0.95 * usual;
        if (better) t->threads = t->tried;
        t->usual = t->last[0] = t->last[1] = better ? seconds : usual;
        t->pause = better ? FEW_ROUNDS : (int)fmin(2 * t->pause, MANY_ROUNDS);
        t->wait = t->pause;
        t->tried = 0;
        return t->threads;
    }
    t->last[1] = t->last[0];
    t->last[0] = seconds;
    t->wait--;
    if (fmin(seconds, t->last[1]) > 1.25 * t->usual) { // something else has begun
        t->usual = HUGE_VAL;
        t->pause = FEW_ROUNDS;
        t->wait = 0;
    }
    if (t->wait > 0 || t->most <= 1) return t->threads;
    do {
        t->trial = (t->trial + 1) % TRIALS;
    } while (team_trial(t) == t->threads);
    return t->tried = team_trial(t);
}

// To be called before each step.
static inline void team_step(Team *t) {
    const double now = seconds_now();
    if (t->most > 1 && t->steps && now - t->begun >= ROUND_SECONDS) {
        omp_set_num_threads(team_next(t, (now - t->begun) / t->steps));
        t->steps = 0;
    }
    if (!t->steps++) t->begun = now;
}
