// How many threads a team settles on, on machines that are made up: for each round it is told the time that so many
// threads would take there.
#include "cpu/team.h"

#include "check.h"

typedef struct {
    int cores, busy; // of them, those that a program which never sleeps shares
    double barriers; // seconds a step that threads wait for one that is not at work
    double noise;    // what times vary by, at most
} Machine;

static Team team;
static int threads;

// A step is a second of one core. A thread that shares its core takes twice as long for its part.
static double step_seconds(Machine m) {
    static uint32_t random = 1;
    const bool shares = threads > m.cores - m.busy;
    random = random * 1664525u + 1013904223u;
    return ((shares ? 2.0 : 1.0) / threads + (shares && threads > 1 ? m.barriers : 0)) *
           (1 + m.noise * (random >> 8) / 16777216.0);
}

// After `first` rounds to get used to the machine, at most `most` of `rounds` have other than `wanted` threads.
static void expect(const char *what, Machine machine, int first, int rounds, int wanted, int most) {
    int others = 0, beyond = 0;
    for (int i = -first; i < rounds; i++) {
        if (i >= 0 && threads != wanted) others++;
        threads = team_next(&team, step_seconds(machine));
        beyond += threads < 1 || threads > team.most;
    }
    CHECK(!beyond, "%s: %d rounds had no thread, or more than %d", what, beyond, team.most);
    CHECK(others <= most, "%s: %d of %d rounds had other than %d threads, not only %d", what, others, rounds, wanted,
          most);
}

static void begin(int most) {
    team = team_of(most);
    threads = most;
}

int main(void) {
    begin(2);
    expect("two idle cores, at first", (Machine){2, 0, 0, 0.05}, 0, 100, 2, 7);
    expect("two idle cores", (Machine){2, 0, 0, 0.05}, 500, 12800, 2, 110);
    expect("a small model beside another program", (Machine){2, 1, 0.8, 0.2}, 8, 1000, 1, 15);
    expect("and without it again", (Machine){2, 0, 0.8, 0.05}, MANY_ROUNDS + 2, 1000, 2, 15);
    expect("a large model beside another program", (Machine){2, 1, 0, 0}, 8, 1000, 2, 15);
    begin(2);
    expect("a small model that begins beside another program", (Machine){2, 1, 0.8, 0.1}, 3, 1000, 1, 15);
    begin(16);
    expect("one of sixteen cores is busy", (Machine){16, 1, 0, 0.02}, 24, 1000, 15, 30);
    expect("and half of them", (Machine){16, 8, 0.1, 0.02}, 48, 1000, 8, 60);
    expect("and none", (Machine){16, 0, 0.1, 0.02}, 4 * MANY_ROUNDS, 2000, 16, 30);
    begin(1);
    expect("one core", (Machine){1, 1, 0, 0.1}, 0, 100, 1, 0);
    return check_report("team");
}
