// The n-gram: probabilities by hand, and with memory against counting by comparing all strings; their sum; the loss of
// the windows that the trainers evaluate; a song obeys the format.
#define TESTING
#include "dev/plain/ngram.c"

#include "check.h"

// Whether tokens a[i - n .. i] and b[j - n .. j] are the same.
static bool same(const uint8_t *a, int i, const uint8_t *b, int j, int n) {
    return i >= n && j >= n && !memcmp(a + i - n, b + j - n, (size_t)n + 1);
}

// What probability() promises, of a table that has learnt all of learnt[first .. end), by looking at each place of it.
// A token counts after a context of c tokens if it was nowhere before after the longer one, or there is no longer one.
static double by_comparing(const uint8_t *learnt, int first, int end, int shortest, const uint8_t *tokens, int n,
                           int token, double p) {
    uint8_t string[1024];
    memcpy(string, tokens, (size_t)n);
    string[n] = (uint8_t)token;
    for (int c = shortest; c <= CONTEXT && c <= n; c++) {
        int seen = 0, total = 0, kinds = 0, of_kind[V] = {0};
        for (int place = first > c ? first : c; place < end; place++) {
            if (memcmp(learnt + place - c, string + n - c, (size_t)c)) continue;
            bool known = false;
            for (int k = first; k < place && c < CONTEXT; k++) known = known || same(learnt, k, learnt, place, c + 1);
            if (known) continue;
            total++;
            seen += learnt[place] == token;
            kinds += of_kind[learnt[place]]++ == 0;
        }
        if (total) p = (fmax(seen - DISCOUNT, 0) + DISCOUNT * kinds * p) / total;
    }
    return p;
}

static void learn_all(Ngram *m, const uint8_t *tokens, int n) {
    for (int i = 0; i < n; i++) learn(m, tokens, i);
}

// After 0 1 0 the empty context has the tokens 0 and 1, two and one times; 1 came after 0 once; 1 0 is new.
static void check_by_hand(void) {
    const uint8_t tokens[] = {0, 1, 0};
    Ngram m = ngram_new(0, 3), none = ngram_new(0, 3);
    learn_all(&m, tokens, 3);
    const double of_none = (0.1 + 0.9 * 2 / 153) / 3, p = 0.1 + 0.9 * of_none;
    CHECK(fabs(probability(&m, tokens, 0, 1, 1.0 / V) - of_none) < 1e-15, "without context 1 is not as by hand");
    CHECK(fabs(probability(&m, tokens, 3, 1, 1.0 / V) - p) < 1e-15, "after 0 1 0 the token 1 is not as by hand");
    CHECK(fabs(probability(&m, tokens, 3, 7, 0.5) - 0.9 * 0.9 * 2 * 0.5 / 3) < 1e-15, "what never came is wrong");
    CHECK(probability(&none, tokens, 3, 1, 0.25) == 0.25, "a table that is empty knows better");
    CHECK(m.n == 4 + 5, "%d entries instead of those of 4 contexts and 5 tokens", (int)m.n);
    free(m.entries);
    free(none.entries);
}

// A stream of few tokens repeats contexts of all lengths.
static void check_tables(void) {
    enum { N = 300 };
    uint8_t tokens[N];
    const PhiloxKey key = philox_key(3, PHILOX_BENCH, 0);
    for (int i = 0; i < N; i++) {
        const uint32_t word = philox(key, (uint32_t)i, 0, 0, 0).x[0];
        tokens[i] = (uint8_t)(i >= 40 && word % 8 ? tokens[i - 40] : word % 5 * 30);
    }
    Ngram m = ngram_new(0, N), memory = ngram_new(MEMORY_CONTEXT, N);
    learn_all(&m, tokens, N / 2);
    double worst = 0, off = 0;
    for (int n = N / 2; n < N; n++) {
        double sum = 0;
        for (int v = 0; v < V; v++) {
            const double p = probability(&m, tokens, n, v, 1.0 / V), both = probability(&memory, tokens, n, v, p);
            sum += both;
            if (v % 30) continue;
            const double expected = by_comparing(tokens, 0, N / 2, 0, tokens, n, v, 1.0 / V);
            raise_to(&worst, fabs(p / expected - 1));
            raise_to(&worst, fabs(both / by_comparing(tokens, N / 2, n, MEMORY_CONTEXT, tokens, n, v, expected) - 1));
        }
        raise_to(&off, fabs(sum - 1));
        learn(&memory, tokens, n);
    }
    CHECK(worst < 1e-12, "a probability is off by a part of %g", worst);
    CHECK(off < 1e-12, "the probabilities of all tokens sum to 1 but for %g", off);
    free(m.entries);
    free(memory.entries);
}

// A piece of 3 * 64 + 1 windows and one of none. Those that begin at 0, 64, 128 and 192 are evaluated.
static void check_loss(void) {
    enum { N = T + 3 * STRIDE + 1 };
    Dataset data;
    char error[ERROR_SIZE];
    if (!dataset_random(&data, N + 9, T, 5, error)) exit(1);
    const int64_t pieces[] = {0, N, N + 9};
    free(data.owned);
    CHECK(dataset_set_pieces(&data, pieces, 2, T, "pieces", error), "%s", error);
    uint8_t *tokens = (uint8_t *)data.file.bytes;
    for (int i = 0; i < N + 9; i++) tokens[i] %= 7;
    Ngram m = ngram_new(0, 100);
    learn_all(&m, tokens + N - 100, 100);
    double loss[2] = {0}, expected[2] = {0};
    evaluate(&m, &data, loss);
    for (int w = 0; w < 4; w++) {
        const uint8_t *window = tokens + 64 * w;
        for (int n = 1; n <= T; n++) {
            const double p = probability(&m, window, n, window[n], 1.0 / V);
            expected[0] -= log(p) / (4 * T);
            // The window's first token was no guess, but is a context. The memory begins with the second.
            expected[1] -= log(by_comparing(window, 1, n, MEMORY_CONTEXT, window, n, window[n], p)) / (4 * T);
        }
    }
    CHECK(fabs(loss[0] - expected[0]) < 1e-9, "the loss is %g instead of %g", loss[0], expected[0]);
    CHECK(fabs(loss[1] - expected[1]) < 1e-9, "the loss with memory is %g instead of %g", loss[1], expected[1]);
    free(m.entries);
    dataset_close(&data);
}

// Of tokens in any order a song obeys the format: but for some bar lines its 1,024 tokens are notes of three.
static void check_song(void) {
    char folder[200], path[220], error[ERROR_SIZE] = "";
    check_folder(folder);
    snprintf(path, sizeof path, "%s/song.mid", folder);
    Dataset data;
    if (!dataset_random(&data, 3000, T, 6, error)) exit(1);
    Ngram m = ngram_new(0, 3000);
    learn_all(&m, data.tokens, 3000);
    CHECK(compose(&m, path, error), "%s", error);
    midi_song song;
    midi_error problem = {0};
    CHECK(midi_read_file(&song, path, 1 << 20, &problem), "%s", problem.text);
    CHECK(song.n_notes >= 300 && song.n_notes <= SONG / 3, "%d notes", (int)song.n_notes);
    midi_free(&song);
    unlink(path);
    snprintf(path, sizeof path, "%s/none/song.mid", folder);
    CHECK(!compose(&m, path, error) && strstr(error, path), "a song in no folder: '%s'", error);
    rmdir(folder);
    free(m.entries);
    dataset_close(&data);
}

int main(void) {
    check_by_hand();
    check_tables();
    check_loss();
    check_song();
    return check_report("ngram");
}
