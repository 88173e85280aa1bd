// The memory of a song against a plain writing of its formula, over random, repetitive and musical tokens, and the
// mixture of its chances with a network's.
#include "sample/measure.h"

#include "check.h"

// The tokens before `place` that are the same as before n, of all there are.
static int64_t same_before(const uint8_t *tokens, int64_t place, int64_t n) {
    int64_t same = 0;
    while (same < place && tokens[place - 1 - same] == tokens[n - 1 - same]) same++;
    return same;
}

// The place that the memory means for tokens[n], by comparing all; -1: there is none. *same: up to 16.
static int64_t place_of(const uint8_t *tokens, int64_t n, int64_t *same) {
    int64_t best = -1;
    *same = 0;
    for (int64_t place = 0; place <= n - 32; place++) {
        int64_t here = same_before(tokens, place, n);
        if (here > 16) here = 16;
        if (here < 5 || here < *same || n - place > 16384) continue;
        best = place;
        *same = here;
    }
    return best;
}

static void check_formula(const char *name, const uint8_t *tokens, int64_t n, double strength, bool speaks) {
    Memory memory = {.strength = strength};
    int64_t wrong = 0, chances = 0, repeated = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t same, place = place_of(tokens, i, &same);
        const double owed = strength * (double)i - (double)repeated;
        // Owing nothing is so near at times that rounding decides, which is no error here.
        const bool close = fabs(owed) < 1e-9 || fabs(owed / 8 - rint(owed / 8)) < 1e-9;
        const bool due = place >= 0 && strength > 0 && owed >= 0 && (double)same >= 16 - owed / 8;
        const double want = due ? 1 - pow(0.8, (double)same) : 0;
        const double got = memory_chance(&memory, tokens, i);
        chances += got > 0;
        wrong += !(got >= 0 && got < 1) || (!close && fabs(got - want) > 1e-12) ||
                 (got > 0 && (place < 0 || memory.again != tokens[place]));
        repeated += strength > 0 && place >= 0 && same == 16 && tokens[place] == tokens[i];
        memory_see(&memory, tokens[i]);
        wrong += fabs(memory.owed - (strength * (double)(i + 1) - (double)repeated)) > 1e-6;
    }
    CHECK(wrong == 0, "%s, strength %g: %lld of %lld tokens differ from the formula", name, strength, (long long)wrong,
          (long long)n);
    CHECK((chances > 0) == speaks, "%s, strength %g: the memory speaks at %lld tokens", name, strength,
          (long long)chances);
}

// Notes and bar lines with a theme of 40 tokens that comes back.
static void musical(uint8_t *tokens, int64_t n, PhiloxKey key) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t word = philox(key, (uint32_t)i, 7, 0, 0).x[0];
        const int firsts[] = {TOKEN_OFFSET, TOKEN_PITCH + 30, TOKEN_DURATION}, kind = (int)(i % 3);
        tokens[i] = (uint8_t)(firsts[kind] + (int)(word % 8));
        if (i % 150 >= 110 && i > 150) tokens[i] = tokens[i % 150];
    }
}

static void check_formulas(void) {
    enum { N = 1200 };
    static uint8_t tokens[N];
    static const double strengths[] = {0, 0.1, 0.25, 0.5, 1};
    const PhiloxKey key = philox_key(5, 0, 0);
    for (int s = 0; s < 5; s++) {
        const double strength = strengths[s];
        for (int symbols = 1; symbols <= 153; symbols = symbols < 4 ? symbols + 1 : symbols * 6) {
            for (int64_t i = 0; i < N; i++) {
                tokens[i] = (uint8_t)(philox(key, (uint32_t)i, 0, 0, 0).x[0] % (uint32_t)symbols);
            }
            check_formula(symbols == 1 ? "all tokens equal" : "random", tokens, N, strength,
                          strength > 0 && symbols <= 4);
        }
        for (int period = 1; period <= 100; period += 33) {
            for (int64_t i = 0; i < N; i++) tokens[i] = (uint8_t)(i % period);
            check_formula("periodic", tokens, N, strength, strength > 0);
        }
        musical(tokens, N, key);
        check_formula("a theme", tokens, N, strength, strength > 0);
        for (int64_t n = 1; n <= 33; n++) check_formula("short", tokens, n, strength, false);
    }
}

// No place is farther than the reach, so that a token's work is bounded.
static void check_reach(void) {
    enum { N = 20000, SAME = 20 };
    static uint8_t tokens[N];
    for (int far = 0; far < 2; far++) {
        const int64_t at = N - 16384 - SAME - far; // SAME tokens, whose last place is at the reach or beyond
        for (int64_t i = 0; i < N; i++) tokens[i] = (uint8_t)(i / 3 % 2 ? 1 + i % 90 : 1 + i % 83);
        for (int i = 0; i < SAME; i++) tokens[at + i] = tokens[N - SAME + i] = (uint8_t)(100 + i);
        tokens[at + SAME] = 152;
        Memory memory = {.strength = 1, .owed = 1e6};
        const double c = memory_chance(&memory, tokens, N);
        CHECK((c > 0) == !far, "%s the reach: chance %g", far ? "beyond" : "within", c);
        CHECK(far || memory.again == 152, "within the reach: token %d", memory.again);
    }
}

// What mix makes of logits, against (1 - c) p + c in double.
static void check_mixtures(void) {
    const PhiloxKey key = philox_key(6, 0, 0);
    double worst = 0, off = 0;
    for (int trial = 0; trial < 200; trial++) {
        float logits[V];
        double p[V], all = 0, sum = 0, mixed_all = 0;
        const int token = trial * 7 % V;
        const double c = trial % 5 ? 1 - pow(0.8, trial % 17) : 0;
        for (int v = 0; v < V; v++) {
            logits[v] = (float)((trial % 3 ? 3 : 40) * philox_normal(key, (uint64_t)(trial * V + v)));
            all += p[v] = exp(logits[v]);
        }
        for (int v = 0; v < V; v++) sum += p[v] = (1 - c) * p[v] / all + (v == token ? c : 0);
        raise_to(&off, fabs(sum - 1));
        mix(logits, token, c);
        for (int v = 0; v < V; v++) mixed_all += exp(logits[v]);
        for (int v = 0; v < V; v++) raise_to(&worst, fabs(exp(logits[v]) / mixed_all - p[v]));
    }
    CHECK(off < 1e-12, "chances add up to 1 but for %g", off);
    CHECK(worst < 2e-5, "a chance of a mixture is off by %g", worst);
    float logits[V] = {0};
    logits[3] = -1e4f; // a token that the network excludes
    mix(logits, 3, 0.5);
    CHECK(fabs(logits[3] - log(152)) < 1e-3, "the logit of what was excluded is %g, not %g", logits[3], log(152));
}

int main(void) {
    check_formulas();
    check_reach();
    check_mixtures();
    return check_report("memory");
}
