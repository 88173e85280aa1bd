// The sampler as a program, with random models of both kinds: the filters against brute force, the grammar, the same
// bytes for the same seed alone and in a batch, guards, primes, bars, --eval, --memory, and all errors' sentences.
#define TESTING
#include "sample_music.c"

#include "sampler.h"

// ---- choosing tokens

// Datasets and midi.h mean the same by a token.
static void check_kinds_of_tokens(void) {
    int differ = 0;
    for (int token = 0; token < MIDI_TOKENS; token++) differ += token_kind(token) != (int)midi_token_kind(token);
    CHECK(differ == 0, "%d tokens are of another kind in base/data.h than in midi.h", differ);
}

// What is left after the filters, by their definitions: p[token], 0 where it must not be drawn. O(n^2) and plain.
static void brute_force(const float *logits, int previous, Filter filter, double p[MIDI_TOKENS]) {
    double sum = 0;
    bool in[MIDI_TOKENS];
    for (int i = 0; i < MIDI_TOKENS; i++) {
        midi_kind kind = midi_token_kind(i), last = previous < 0 ? MIDI_KIND_BAR : midi_token_kind(previous);
        in[i] = last == MIDI_KIND_OFFSET  ? kind == MIDI_KIND_BAR || kind == MIDI_KIND_PITCH
                : last == MIDI_KIND_PITCH ? kind == MIDI_KIND_DURATION
                                          : kind == MIDI_KIND_OFFSET;
        p[i] = in[i] ? exp(logits[i] / filter.temperature) : 0;
    }
    for (int pass = 0; pass < 3; pass++) { // top-k, top-p, min-p
        double all = 0, most = 0;
        bool keep[MIDI_TOKENS];
        for (int i = 0; i < MIDI_TOKENS; i++) all += p[i], most = p[i] > most ? p[i] : most;
        for (int i = 0; i < MIDI_TOKENS; i++) {
            int better = 0;
            double before = 0; // the chance of those that come first
            for (int j = 0; j < MIDI_TOKENS; j++) {
                if (in[j] && (p[j] > p[i] || (p[j] == p[i] && j < i))) better++, before += p[j] / all;
            }
            keep[i] = in[i] && (pass == 0   ? !filter.top_k || better < filter.top_k
                                : pass == 1 ? !better || before < filter.top_p
                                            : p[i] >= filter.min_p * most);
        }
        for (int i = 0; i < MIDI_TOKENS; i++) {
            in[i] = keep[i];
            if (!in[i]) p[i] = 0;
        }
    }
    for (int i = 0; i < MIDI_TOKENS; i++) sum += p[i];
    for (int i = 0; i < MIDI_TOKENS; i++) p[i] /= sum;
}

static void check_filters(void) {
#define F(temperature, k, p, min)                                                                                      \
    {                                                                                                                  \
        temperature, k, p, min, { 0 }                                                                                  \
    }
    static const Filter filters[] = {F(1, 0, 1, 0),       F(0.7, 0, 1, 0),      F(1.3, 5, 1, 0),   F(1, 1, 1, 0),
                                     F(1, 0, 0.9, 0),     F(1, 0, 0.3, 0),      F(1, 0, 1, 0.05),  F(1, 0, 1, 1),
                                     F(0.9, 40, 0.95, 0), F(1.5, 20, 0.8, 0.1), F(1, 153, 1e-9, 0)};
    static const int previous[] = {-1, 0, 1, 32, 33, 120, 121, 152};
    PhiloxKey key = philox_key(3, 0, 0);
    int wrong = 0, cases = 0;
    for (int trial = 0; trial < 40; trial++) {
        float logits[MIDI_TOKENS];
        for (int i = 0; i < MIDI_TOKENS; i++) {
            logits[i] = (float)(3 * philox_normal(key, (uint64_t)(trial * MIDI_TOKENS + i)));
            if (trial % 4 == 3) logits[i] = rintf(logits[i]); // many that are equally likely
        }
        for (size_t f = 0; f < sizeof filters / sizeof *filters; f++, cases++) {
            double want[MIDI_TOKENS], left = 1;
            Candidate list[MIDI_TOKENS];
            int before = previous[cases % 8], n = candidates(logits, before, &filters[f], list);
            brute_force(logits, before, filters[f], want);
            bool good = n >= 1;
            for (int i = 0; i < n; i++) {
                good = good && fabs(list[i].p - want[list[i].token]) < 1e-12 && (i == 0 || list[i].p <= list[i - 1].p);
                want[list[i].token] = 0;
                left -= list[i].p;
            }
            for (int i = 0; i < MIDI_TOKENS; i++) good = good && want[i] == 0;
            wrong += !(good && fabs(left) < 1e-12);
        }
    }
    CHECK(wrong == 0, "%d of %d filtered distributions differ from brute force", wrong, cases);

    // Draws follow the chances: 200,000 of them, the largest deviation within 5 standard errors.
    float logits[MIDI_TOKENS];
    double want[MIDI_TOKENS], worst = 0;
    static int count[MIDI_TOKENS];
    const Filter filter = F(0.8, 12, 0.97, 0);
    for (int i = 0; i < MIDI_TOKENS; i++) logits[i] = (float)(2 * philox_normal(key, (uint64_t)(1000000 + i)));
    brute_force(logits, MIDI_BAR, filter, want);
    for (uint32_t i = 0; i < 200000; i++) {
        Philox4 words = philox(key, i, 1, 0, 0);
        count[draw(logits, MIDI_BAR, &filter, philox_uniform(words.x[0], words.x[1]))]++;
    }
    for (int i = 0; i < MIDI_TOKENS; i++) {
        double deviation = fabs(count[i] - 200000 * want[i]) / sqrt(200000 * want[i] * (1 - want[i]) + 1e-9);
        if (deviation > worst) worst = deviation;
    }
    CHECK(worst < 5, "draws deviate from their chances by %g standard errors", worst);

    const Filter greedy = F(0, 0, 1, 0);
    int best = MIDI_OFFSET;
    for (int i = MIDI_OFFSET; i < MIDI_PITCH; i++) best = logits[i] > logits[best] ? i : best;
    CHECK(draw(logits, MIDI_BAR, &greedy, 0.999) == best, "temperature 0 does not take the likeliest");
    CHECK(draw(logits, MIDI_BAR, &filter, 0) >= MIDI_OFFSET && draw(logits, MIDI_BAR, &filter, 1 - 1e-16) < MIDI_PITCH,
          "the ends of [0, 1) are drawn wrong");
}

static bool same_file(const char *a, const char *b) {
    void *x, *y;
    size_t n, k;
    bool read = read_file(in_folder(a), &x, &n, error), both = read && read_file(in_folder(b), &y, &k, error);
    bool same = both && n == k && !memcmp(x, y, n);
    if (read) free(x);
    if (both) free(y);
    return same;
}

// A whole song of this seed, alone. The caller frees it, after a failure too.
static bool song_make(Song *song, const Model *model, const Settings *settings, uint64_t seed, char *problem) {
    Settings timed = *settings;
    Batch batch;
    Maker maker;
    const int slot = 0;
    settings_time(&timed);
    if (!maker_begin(&maker, &timed, seed, problem)) return false;
    if (!batch_new(&batch, model, 1, (int)context_needed(&timed), problem)) return false;
    for (bool more = true; more;) {
        const int token = maker_next(&maker);
        batch_step(&batch, &slot, 1, &token);
        more = maker_take(&maker, row(batch.logits, 0));
    }
    batch_free(&batch);
    *song = maker.song;
    song_describe(song, model, &timed);
    song_finish(song, timed.prime.left_out, &timed.prime.marks);
    free(timed.tempo.spans);
    if (!settings->prime.path) prime_free(&timed.prime);
    return true;
}

static void contains(const char *name, const char *text) { // a file of the scratch folder
    void *bytes;
    size_t size;
    bool read = read_file(in_folder(name), &bytes, &size, error);
    CHECK(read && strstr((char *)bytes, text), "%s: does not contain '%s'", name, text);
    if (read) free(bytes);
}

static void check_grammar(void) {
    static const Filter filters[] = {F(1, 0, 1, 0), F(2, 0, 1, 0), F(0.5, 10, 0.9, 0.01), F(0, 0, 1, 0)};
    Model model;
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    for (int f = 0; f < 4; f++) {
        Settings settings = {.filter = filters[f], .tokens = 10000, .context = 64, .bpm = 120};
        Song song;
        CHECK(song_make(&song, &model, &settings, (uint64_t)f, error), "%s", error);
        int wrong = 0, previous = MIDI_BAR, kinds[4] = {0};
        for (size_t i = 0; i < song.n; previous = song.tokens[i++]) {
            wrong += song.tokens[i] >= MIDI_TOKENS || !midi_may_follow(previous, song.tokens[i]);
            if (song.tokens[i] < MIDI_TOKENS) kinds[midi_token_kind(song.tokens[i])]++;
        }
        CHECK(song.n == 10000 && wrong == 0, "%d of %zu tokens break the grammar", wrong, song.n);
        CHECK(f == 3 || (kinds[0] && kinds[1] && kinds[2] && kinds[3]), "a kind of token never came");
        song_free(&song);
    }
    model_free(&model);
}

static void check_seeds(void) {
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/a.mid -o @/a.svg") == 0, "%s", said);
    CHECK(strstr(said, "a.mid") && strstr(said, "a.svg") && strstr(said, "seed 9"), "the report lacks something: %s",
          said);
    call("MODEL --seed 9 --tokens 300 -o @/b.mid -o @/b.svg --threads 2");
    CHECK(same_file("a.mid", "b.mid") && same_file("a.svg", "b.svg"), "the same seed gave other bytes");
    call("MODEL --seed 10 --tokens 300 -o @/c.mid");
    CHECK(!same_file("a.mid", "c.mid"), "another seed gave the same bytes");
    for (int threads = 1; threads <= 2; threads++) {
        CHECK(call("MODEL --seed 8 -n 4 --tokens 300 -o @/n.mid -o @/n.svg --threads %d", threads) == 0, "%s", said);
        CHECK(same_file("n-2.mid", "a.mid") && same_file("n-2.svg", "a.svg"), "song 2 of seed 8 is not that of seed 9");
        CHECK(same_file("n-3.mid", "c.mid"), "song 3 of seed 8 is not that of seed 10");
        CHECK(exists("n-1.mid") && exists("n-4.svg") && !exists("n.mid"), "the songs' names are wrong");
        const char *first = strstr(said, "seed 8"), *last = strstr(said, "seed 11");
        CHECK(first && last && first < last, "the songs are reported out of order: %s", said);
        remove(in_folder("n-2.mid")), remove(in_folder("n-2.svg")), remove(in_folder("n-3.mid"));
    }
    CHECK(call("MODEL --tokens 5 -o @/d.mid") == 0 && strstr(said, "seed "), "a fresh seed is not printed: %s", said);
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/b.mid --temperature 0.5") == 0 && !same_file("a.mid", "b.mid"),
          "the temperature changes nothing");
}

// Songs together in a batch, some of which end early, are the songs alone.
static void check_batches(void) {
    for (int p = FLOAT32; p <= INT8; p++) {
        const char *flags = "--tokens 400 --bars 9 --top-p 0.97 --weights";
        CHECK(call("MODEL --seed 20 -n 19 %s %s --threads 1 -o @/t.mid", flags, precision_names[p]) == 0, "%s", said);
        CHECK(strstr(said, "19 songs  ") && strstr(said, " tokens/s\n"), "no total: %s", said);
        for (int i = 1; i <= 19; i++) {
            char name[32];
            snprintf(name, sizeof name, "t-%d.mid", i);
            call("MODEL --seed %d %s %s -o @/alone.mid", 19 + i, flags, precision_names[p]);
            CHECK(same_file(name, "alone.mid"), "%s: song %d of 19 differs from the same alone", precision_names[p], i);
        }
    }
    CHECK(call("MODEL --seed 20 --tokens 50 --weights int8 -o @/t.svg") == 0, "%s", said);
    contains("t.svg", "weights int8)");
}

// ---- guards and reports

static bool plays(const char *name, const char *scale, int lowest, int highest) { // only such keys, and some
    midi_song song;
    midi_error problem;
    if (!midi_read_file(&song, in_folder(name), 1 << 24, &problem)) return false;
    bool in = song.n_notes > 0;
    for (size_t i = 0; i < song.n_notes; i++) {
        int key = song.notes[i].key;
        in = in && key >= lowest && key <= highest && read_scale(scale) >> key % 12 & 1;
    }
    midi_free(&song);
    return in;
}

static void check_guards(void) {
    CHECK(call("MODEL --seed 3 --tokens 900 --scale Eb-major -o @/g.mid") == 0, "%s", said);
    CHECK(plays("g.mid", "Eb-major", 21, 108), "notes outside --scale Eb-major");
    CHECK(call("MODEL --seed 3 --tokens 900 --scale C-blues --lowest C3 --highest 71 -o @/g.mid -o @/g.svg") == 0, "%s",
          said);
    CHECK(plays("g.mid", "C-blues", 48, 71), "notes outside C3 to 71");
    contains("g.svg", "scale C-blues, lowest C3, highest 71");
    // One key only, and the strictest filters: there is always a token to choose.
    CHECK(call("MODEL --seed 3 --tokens 900 --lowest C4 --highest C4 --top-k 1 -o @/g.mid") == 0, "%s", said);
    CHECK(call("MODEL --seed 3 --tokens 900 --lowest C4 --highest C4 --temperature 2 -o @/g.mid") == 0, "%s", said);
    CHECK(plays("g.mid", "C-major", 60, 60) && strstr(said, "  C4-C4  "), "notes beside the only one: %s", said);
    CHECK(call("MODEL --lowest C4 --highest B3 -o @/x.mid") == 2 &&
              strstr(said, "--lowest: no key of the piano lies from C4 to B3"),
          "%s", said);
    CHECK(call("MODEL --scale C-major --lowest C#4 --highest C#4 -o @/x.mid") == 2 && strstr(said, "no key of C-major"),
          "%s", said);
    CHECK(call("MODEL --scale X-major -o @/x.mid") == 2 && strstr(said, "--scale X-major: ") && strstr(said, "blues"),
          "%s", said);
    CHECK(call("MODEL --lowest Z -o @/x.mid") == 2 && strstr(said, "--lowest Z: it must be a key"), "%s", said);
    CHECK(call("MODEL --highest C9 -o @/x.mid") == 2 && strstr(said, "--highest C9: "), "%s", said);

    // --seconds: the first bar line at which there are enough, so that one bar less was too short.
    Model model;
    Song song;
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    for (int seed = 0; seed < 10; seed++) {
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .seconds = 7, .context = 64, .bpm = 90};
        CHECK(song_make(&song, &model, &settings, (uint64_t)seed, error), "%s", error);
        CHECK(song.n_lines > 1 && song.tokens[song.n - 1] == MIDI_BAR && !song.cut, "--seconds 7: not at a bar line");
        CHECK(song_time(&song, song.lines[song.n_lines - 1]) >= 7 - 1e-6, "--seconds 7 ended before");
        CHECK(song.n_lines < 2 || song_time(&song, song.lines[song.n_lines - 2]) < 7, "--seconds 7 ended too late");
        song_free(&song);
    }
    CHECK(call("MODEL --seconds 60 --tokens 5 --seed 1 -o @/g.mid") == 0 && strstr(said, "before --seconds 60"), "%s",
          said);

    // The mean surprise, by a plain forward.
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 900, .context = 64, .bpm = 120};
    CHECK(song_make(&song, &model, &settings, 8, error), "%s", error);
    Batch batch;
    const int slot = 0;
    double sum = 0;
    CHECK(batch_new(&batch, &model, 1, 64, error), "%s", error);
    for (size_t i = 0; i < song.n; i++) {
        const int token = i ? song.tokens[i - 1] : MIDI_BAR;
        double all = 0;
        batch_step(&batch, &slot, 1, &token);
        const float *logits = row(batch.logits, 0);
        for (int v = 0; v < V; v++) all += exp(logits[v]);
        sum -= log(exp(logits[song.tokens[i]]) / all);
    }
    CHECK(fabs(sum / (double)song.n - song.nll) < 1e-6, "the mean NLL is %g, not %g", sum / (double)song.n, song.nll);
    batch_free(&batch);
    song_free(&song);
    model_free(&model);
}

// --eval: the mean over whole windows, against the sums made one by one.
static void check_eval(void) {
    enum { N = 900 };
    uint8_t *tokens = random_tokens(N);
    const int64_t pieces[] = {0, 300, 310, N};
    CHECK(dataset_save(in_folder("eval.safetensors"), tokens, N, pieces, 3, "", error), "%s", error);
    Model model;
    Batch batch;
    const int slot = 0;
    double sum = 0;
    int windows = 0;
    CHECK(model_load(&model, small_model, FLOAT32, error) && batch_new(&batch, &model, 1, 256, error), "%s", error);
    for (int w = 0; w < 44 + 334; w += 13, windows++) { // pieces of 300 and 590 tokens
        const uint8_t *at = tokens + (w < 44 ? w : 310 + w - 44);
        batch_begin(&batch, 0);
        for (int t = 0; t < 256; t++) {
            const int token = at[t];
            batch_step(&batch, &slot, 1, &token);
            sum += surprise(row(batch.logits, 0), at[t + 1]);
        }
    }
    batch_free(&batch), model_free(&model);
    double loss = 0;
    int n = 0;
    CHECK(call("MODEL --eval @/eval.safetensors --eval-stride 13") == 0, "%s", said);
    CHECK(sscanf(said, "eval loss=%lf windows=%d ", &loss, &n) == 2 && n == windows, "%s", said);
    CHECK(fabs(loss - sum / (256.0 * windows)) < 2e-6, "--eval says %g, not %g", loss, sum / (256.0 * windows));
    CHECK(call("MODEL --eval @/eval.safetensors --eval-stride 13 --weights int8 --threads 1") == 0, "%s", said);
    double cost = -loss;
    CHECK(sscanf(said, "eval loss=%lf", &loss) == 1 && fabs(cost += loss) < 0.02, "int8 costs %g: %s", cost, said);
    CHECK(call("MODEL --eval @/nothing") == 1 && call("MODEL --eval MODEL") == 1, "%s", said);
    CHECK(call("MODEL --eval @/eval.safetensors --bench") == 2, "%s", said);
    free(tokens);
}

// --eval --stream, and --memory in songs: against plain computations.
static void check_memory(void) {
    enum { N = 900 };
    uint8_t *tokens = random_tokens(N);
    for (int i = 0; i < 100; i++) tokens[500 + i] = tokens[400 + i]; // that come back
    const int64_t pieces[] = {0, 1, 1, 290, N};
    CHECK(dataset_save(in_folder("eval.safetensors"), tokens, N, pieces, 4, "", error), "%s", error);
    Model model;
    Batch batch;
    const int slot = 0;
    double alone = 0, together = 0, says[2];
    int n[2];
    CHECK(model_load(&model, small_model, FLOAT32, error) && batch_new(&batch, &model, 1, 64, error), "%s", error);
    const bool lstm = model.kind == LSTM;
    const char *context = lstm ? "" : " --context 64";
    for (int p = 0; p < 4; p++) {
        Memory memory = {.strength = 0.75};
        batch_begin(&batch, 0);
        for (int64_t i = 0; i < pieces[p + 1] - pieces[p]; i++) {
            const uint8_t *piece = tokens + pieces[p];
            const int token = i ? piece[i - 1] : MIDI_BAR;
            double all = 0, chance;
            batch_step(&batch, &slot, 1, &token);
            for (int v = 0; v < V; v++) all += exp(row(batch.logits, 0)[v]);
            chance = exp(row(batch.logits, 0)[piece[i]]) / all;
            alone -= log(chance);
            const double c = memory_chance(&memory, piece, i);
            together -= log((1 - c) * chance + (c > 0 && memory.again == piece[i] ? c : 0));
            memory_see(&memory, piece[i]);
        }
    }
    batch_free(&batch);
    char first[sizeof said];
    CHECK(call("MODEL --eval @/eval.safetensors --stream --memory 0.75 --threads 1%s", context) == 0, "%s", said);
    const char *line = strstr(said, "stream alone=");
    CHECK(line && sscanf(line, "stream alone=%lf loss=%lf pieces=%d tokens=%d ", says, says + 1, n, n + 1) == 4 &&
              n[0] == 4 && n[1] == N,
          "%s", said);
    CHECK(fabs(says[0] - alone / N) < 2e-6 && fabs(says[1] - together / N) < 2e-6, "%g and %g, not %g and %g", says[0],
          says[1], alone / N, together / N);
    CHECK(says[1] < says[0] - 0.1, "the memory does not help where tokens come back: %s", said);
    memcpy(first, said, sizeof said);
    CHECK(call("MODEL --eval @/eval.safetensors --stream --memory 0.75 --threads 3%s", context) == 0 &&
              !strcmp(first, said),
          "other threads say: %s", said);
    CHECK(call("MODEL --eval @/eval.safetensors --stream --memory 0%s", context) == 0 &&
              (line = strstr(said, "stream alone=")) &&
              sscanf(line, "stream alone=%lf loss=%lf", says, says + 1) == 2 && says[0] == says[1],
          "without a memory there are two losses: %s", said);
    CHECK(call("MODEL --stream -o @/x.mid") == 2 && strstr(said, "--stream: it goes with --eval DATASET"), "%s", said);
    CHECK(call("MODEL --eval x --stream --eval-stride 9") == 2 && strstr(said, "--stream takes whole pieces"), "%s",
          said);
    CHECK(call("MODEL --eval @/nothing --stream") == 1, "%s", said);
    free(tokens);

    // Each token is drawn from the mixture, and without a memory from the model's chances alone.
    for (int with = 0; with < 2; with++) {
        Settings settings = {.filter = {.temperature = 0.2, .top_p = 1}, .tokens = 700, .context = 64, .bpm = 120};
        settings.memory = with;
        Song song;
        Memory memory = {.strength = with};
        int wrong = 0, spoke = 0;
        CHECK(song_make(&song, &model, &settings, 3, error) && batch_new(&batch, &model, 1, 64, error), "%s", error);
        for (size_t i = 0; i < song.n; i++) {
            const int token = i ? song.tokens[i - 1] : MIDI_BAR;
            float logs[V];
            batch_step(&batch, &slot, 1, &token);
            const double c = memory_chance(&memory, song.tokens, (int64_t)i);
            memcpy(logs, row(batch.logits, 0), sizeof logs);
            if (c > 0) {
                double all = 0;
                for (int v = 0; v < V; v++) all += exp(row(batch.logits, 0)[v]);
                for (int v = 0; v < V; v++) {
                    const double p = (1 - c) * exp(row(batch.logits, 0)[v]) / all + (v == memory.again ? c : 0);
                    logs[v] = (float)log(p);
                }
            }
            Philox4 words = philox(philox_key(3, PHILOX_SAMPLE, 0), (uint32_t)i, 0, 0, 0);
            wrong += draw(logs, token, &settings.filter, philox_uniform(words.x[0], words.x[1])) != song.tokens[i];
            spoke += c > 0;
            memory_see(&memory, song.tokens[i]);
        }
        CHECK(wrong == 0 && (spoke > 0) == with, "memory %d: %d tokens are not from the mixture, %d by memory", with,
              wrong, spoke);
        batch_free(&batch);
        song_free(&song);
    }
    model_free(&model);

    for (int threads = 1; threads <= 2; threads++) {
        CHECK(call("MODEL --seed 2 -n 3 --memory 1 --temperature 0.4 --tokens 700 -o @/m.mid --threads %d", threads) ==
                  0,
              "%s", said);
        CHECK(call("MODEL --seed 3 --memory 1 --temperature 0.4 --tokens 700 -o @/m.mid -o @/m.svg") == 0, "%s", said);
        CHECK(same_file("m-2.mid", "m.mid"), "a song with memory differs from the same in a batch");
        contains("m.svg", "memory 1");
        CHECK(call("MODEL --seed 3 --memory 0 --temperature 0.4 --tokens 700 -o @/m0.mid") == 0, "%s", said);
        CHECK(!same_file("m0.mid", "m.mid"), "--memory changes nothing");
    }
    CHECK(call("MODEL --memory 1.5 -o @/x.mid") == 2 && strstr(said, "--memory 1.5"), "%s", said);
}

// One page for all songs, files of other kinds for each.
static void check_pages(void) {
    CHECK(call("MODEL --seed 5 -n 3 --tokens 60 -o @/page.html -o @/page.svg") == 0, "%s", said);
    CHECK(exists("page.html") && exists("page-3.svg") && !exists("page-1.html"), "the names are wrong");
    contains("page.html", "seed 7");
    CHECK(call("MODEL MODEL --seed 5 --tokens 60 -o @/two.html -o @/two.mid") == 0, "%s", said);
    CHECK(same_file("two-1.mid", "two-2.mid") && strstr(said, "two.html  2 songs"), "a model beside itself: %s", said);
    CHECK(call("MODEL --seed 5 --tokens 60 -o @/only.html") == 0 && strstr(said, "song 1  "), "%s", said);
}

// A prime of 40 quarters in 3/4: ten bars and more.
static void write_prime(const char *path, int notes) {
    midi_song song;
    midi_error problem;
    uint8_t *bytes;
    size_t size;
    memset(&song, 0, sizeof song);
    song.format = 0;
    song.division = 96;
    midi_add_meter(&song, 0, 3, 2, 0);
    for (int i = 0; i < notes; i++) midi_add_note(&song, i * 96, i * 96 + 96, 60 + i % 12, 90, 0, 0);
    if (midi_write(&song, &bytes, &size, &problem) && write_file_atomically(path, bytes, size, error)) MIDI_FREE(bytes);
    midi_free(&song);
}

static void check_prime(void) {
    Model model;
    Song song;
    write_prime(in_folder("prime.mid"), 40);
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .tokens = 120, .context = 64, .bpm = 120};
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("prime.mid"));
    settings.prime.path = path;
    settings.prime.most = 47; // in the middle of bar 5: 11 tokens a bar of three notes and its line
    settings.songs = 1;
    int out = dup(1), file = open(in_folder("said"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    fflush(stdout), dup2(file, 1);
    bool ok = read_prime(&settings, false, stdout, error);
    fflush(stdout), dup2(out, 1), close(out), close(file);
    CHECK(ok && settings.prime.n == 47, "%s", error);
    CHECK(song_make(&song, &model, &settings, 4, error), "%s", error);
    CHECK(song.n == 167 && !memcmp(song.tokens, settings.prime.tokens, 47), "the song does not begin with the prime");
    size_t grey = 0, wrong = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        grey += song.from_prime[i];
        wrong += song.from_prime[i] && (song.midi.notes[i].start % 480 || song.midi.notes[i].end > 14 * 480);
    }
    CHECK(grey == 13 && wrong == 0, "%zu notes are marked as the prime's, %zu wrongly; 13 are", grey, wrong);
    CHECK(song.midi.n_meters && song.midi.meters[0].numerator == 3 && song.midi.meters[0].exponent == 2,
          "a prime in 3/4 does not begin in 3/4");
    CHECK(song.lines[1] == 3 * 480 && song.lines[4] == 12 * 480, "the prime's bar lines moved");

    // Without the prime: the new notes alone, from the bar line before them.
    Song bare;
    settings.prime.left_out = true;
    CHECK(song_make(&bare, &model, &settings, 4, error), "%s", error);
    CHECK(bare.midi.n_notes == song.midi.n_notes - 13, "%zu notes without the prime", bare.midi.n_notes);
    size_t k = 0;
    for (size_t i = 0; i < song.midi.n_notes; i++) {
        if (song.from_prime[i]) continue;
        wrong += k >= bare.midi.n_notes || bare.midi.notes[k].start != song.midi.notes[i].start - 12 * 480 ||
                 bare.midi.notes[k].key != song.midi.notes[i].key;
        k++;
    }
    CHECK(wrong == 0, "%zu notes moved wrongly without the prime", wrong);
    song_free(&song), song_free(&bare);
    prime_free(&settings.prime);
    model_free(&model);

    CHECK(call("MODEL --prime @/prime.mid --tokens 40 --seed 1 -o @/p.svg") == 0, "%s", said);
    CHECK(strstr(said, "the first 146 of 146 tokens"), "the prime's length is not said: %s", said);
    void *bytes;
    size_t size;
    CHECK(read_file(in_folder("p.svg"), &bytes, &size, error), "%s", error);
    CHECK(strstr((char *)bytes, "class=\"prime\"") && strstr((char *)bytes, "class=\"new\""), "no two colours");
    free(bytes);
    write_prime(in_folder("empty.mid"), 0);
    CHECK(call("MODEL --prime @/empty.mid -o @/x.mid") == 1 && strstr(said, "no notes"), "%s", said);
    CHECK(call("MODEL --prime @/none.mid -o @/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --prime MODEL -o @/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --prime @ -o @/x.mid") == 1 && !exists("x.mid"), "%s", said);
}

static void check_bars(void) {
    Model model;
    Song song;
    CHECK(model_load(&model, small_model, FLOAT32, error), "%s", error);
    for (int bars = 1; bars <= 16; bars *= 4) {
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .bars = bars, .context = 64, .bpm = 120};
        CHECK(song_make(&song, &model, &settings, 2, error), "%s", error);
        int lines = 0;
        for (size_t i = 0; i < song.n; i++) {
            int length = i ? song.tokens[i - 1] - MIDI_OFFSET : 0;
            lines += song.tokens[i] == MIDI_BAR && length != 0 && length != 31;
        }
        CHECK(song_bars(&song) == bars && !song.cut, "--bars %d: %d bars are reported", bars, song_bars(&song));
        CHECK(lines == bars && song.tokens[song.n - 1] == MIDI_BAR, "--bars %d gave %d bar lines", bars, lines);
        song_free(&song);
    }
    int ringing = 0;
    for (int seed = 0; seed < 40; seed++) { // whatever rings on past the last line is no bar
        Settings settings = {.filter = {.temperature = 1, .top_p = 1}, .bars = 4, .context = 64, .bpm = 120};
        CHECK(song_make(&song, &model, &settings, (uint64_t)seed, error), "%s", error);
        ringing += song.end > song.lines[song.n_lines - 1];
        CHECK(song_bars(&song) == 4, "--bars 4 --seed %d: %d bars are reported", seed, song_bars(&song));
        song_free(&song);
    }
    CHECK(ringing > 0, "no song rang on");
    CHECK(call("MODEL --bars 3 --tokens 7 --seed 1 -o @/e.mid") == 0, "%s", said); // whichever comes first
    CHECK(strstr(said, "ended after 7 new tokens, before --bars 3"), "what ended the song is not said: %s", said);
    CHECK(call("MODEL --bars 1 --seed 1 -o @/e.mid") == 0 && !strstr(said, "ended"), "%s", said);
    CHECK(call("MODEL --tokens 7 --seed 1 -o @/e.mid") == 0 && !strstr(said, "ended"), "%s", said);
    model_free(&model);
}

// ---- errors

static void check_usage(void) {
    static const char *const wrong[] = {"MODEL --tokens 0",
                                        "MODEL --tokens -5",
                                        "MODEL --tokens 1e3",
                                        "MODEL --tokens 12x",
                                        "MODEL --tokens",
                                        "MODEL --temperature nan",
                                        "MODEL --temperature -1",
                                        "MODEL --top-k 154",
                                        "MODEL --top-p 0",
                                        "MODEL --top-p 1.5",
                                        "MODEL --min-p inf",
                                        "MODEL --seed -1",
                                        "MODEL --seed x",
                                        "MODEL --bars 0",
                                        "MODEL --context 0",
                                        "MODEL --bpm 0",
                                        "MODEL --threads 0",
                                        "MODEL -n 0",
                                        "MODEL --frobnicate",
                                        "MODEL -o @/x.mp3",
                                        "MODEL -o .mid",
                                        "MODEL --no-prime",
                                        "MODEL --seed 18446744073709551616",
                                        "MODEL --prime-tokens 0",
                                        "MODEL -o",
                                        "MODEL --tokens 99999999999",
                                        "MODEL -x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = call("%s -o @/x.mid", wrong[i]);
        if (!strcmp(wrong[i], "MODEL -o") || !strcmp(wrong[i], "MODEL --tokens")) status = call("%s", wrong[i]);
        const char *end = strchr(said, '\n');
        CHECK(status == 2 && !strncmp(said, "sample_music: ", 14) && end && !end[1], "%s: exit %d, %s", wrong[i],
              status, said);
    }
    CHECK(!exists("x.mid"), "a wrong call wrote a file");
    CHECK(call("--help") == 0 && strstr(said, "--top-p"), "%s", said);
    CHECK(call("--version") == 0 && strstr(said, MUSIC_VERSION), "%s", said);
    CHECK(call("MODEL --seed 18446744073709551615 -n 2 --tokens 9 -o @/w.mid") == 0 && strstr(said, "seed 0"),
          "the seed after the largest is not 0: %s", said);
}

// One model with one thing wrong: the sentence must name `name`.
static void check_bad(const Tensors *good, const char *name, int change, const char *must_say) {
    static Tensors list;
    list = *good;
    float *bad = NULL;
    for (int i = 0; i < list.n; i++) {
        list.tensors[i].name = list.names[i];
        if (strcmp(list.names[i], name)) continue;
        StTensor *tensor = &list.tensors[i];
        bad = malloc((size_t)tensor->count * sizeof *bad);
        memcpy(bad, tensor->data, (size_t)tensor->count * sizeof *bad);
        bad[tensor->count - 1] = change == 2 ? NAN : 1;
        tensor->data = bad;
        if (change == 0) list.tensors[i] = list.tensors[--list.n]; // missing
        if (change == 1) tensor->shape[0]--;
        if (change == 3) tensor->type = ST_I32;
        if (change == 4) memset(bad, 0x7F, (size_t)tensor->count * sizeof *bad); // 3.4e38, finite
        break;
    }
    CHECK(bad && st_write(in_folder("bad.safetensors"), list.tensors, list.n, NULL, 0, error), "%s: %s", name, error);
    int status = call("@/bad.safetensors --tokens 3 -o @/x.mid");
    CHECK(status == 1 && (change == 4 || strstr(said, name)) && strstr(said, must_say), "%s: exit %d, %s", name, status,
          said);
    free(bad);
}

// A resume state has more tensors than its model, and gives the same songs. Frees the list.
static void check_resume_state(Tensors *list) {
    const char *slash = strrchr(small_model, '/') + 1; // the model's name is in the song
    char again[100];
    snprintf(again, sizeof again, "again/%.80s", slash);
    add_tensor(list, 0, 1, MIDI_TOKENS, 7, "adamax.exp_avg.emb.weight");
    add_tensor(list, 0, 1, 32, 7, "adamax.exp_inf.lstm.weight_ih_l9");
    add_tensor(list, 0, 1, 32, 7, "adamax.exp_inf.layers.9.fc1.weight");
    CHECK(write_tensors(in_folder(again), list), "%s", error);
    CHECK(call("@/%s --seed 9 --tokens 300 -o @/l.mid", again) == 0, "%s", said);
    CHECK(call("MODEL --seed 9 --tokens 300 -o @/m.mid") == 0, "%s", said);
    CHECK(same_file("l.mid", "m.mid"), "a resume state gives another song than its model");
}

static void check_gpt_files(Sizes size) {
    static Tensors list;
    make_tensors(&list, size);
    check_bad(&list, "emb.weight", 0, "bad.safetensors: tensor 'emb.weight' [any, any] is missing\n");
    check_bad(&list, "layers.0.attn.rel", 0, "tensor 'layers.0.attn.rel' [any, any] is missing\n");
    check_bad(&list, "layers.0.fc1.weight", 0, "tensor 'layers.0.fc1.weight' [any, any] is missing\n");
    check_bad(&list, "head.bias", 0, "bad.safetensors: tensor 'head.bias' [153] is missing\n");
    check_bad(&list, "layers.0.attn.qkv.weight", 0, "missing");
    check_bad(&list, "layers.1.attn.qkv.weight", 0, "missing");
    check_bad(&list, "layers.1.ln2.bias", 0, "missing");
    check_bad(&list, "emb.weight", 1, "tensor 'emb.weight' has the shape [152, ");
    check_bad(&list, "emb.weight", 1, "] instead of [153, 32]\n");
    check_bad(&list, "layers.1.attn.rel", 1, "tensor 'layers.1.attn.rel' has the shape [");
    check_bad(&list, "layers.0.fc2.weight", 1, "] instead of [");
    check_bad(&list, "layers.1.fc1.bias", 2, "not finite");
    check_bad(&list, "layers.1.fc1.bias", 3, "tensor 'layers.1.fc1.bias' is I32 instead of floating point\n");
    check_bad(&list, "head.weight", 4, "not finite");
    add_tensor(&list, 0, 1, 0, 1, "layers.99999.x");
    check_bad(&list, "layers.99999.x", 4, "its tensors name 100000 layers; a model has at most 1000\n");
    list.n--;
    free((void *)list.tensors[list.n].data);
    check_resume_state(&list);
}

static void check_lstm_files(LstmSizes size) {
    static Tensors list;
    make_lstm_tensors(&list, size, 1);
    check_bad(&list, "emb.weight", 0, "bad.safetensors: tensor 'emb.weight' [any, any] is missing\n");
    check_bad(&list, "lstm.weight_hh_l0", 0, "bad.safetensors: tensor 'lstm.weight_hh_l0' [any, any] is missing\n");
    check_bad(&list, "lstm.weight_ih_l1", 0, "tensor 'lstm.weight_ih_l1' [80, 20] is missing\n");
    check_bad(&list, "lstm.weight_hh_l1", 0, "missing");
    check_bad(&list, "lstm.bias_hh_l1", 0, "tensor 'lstm.bias_hh_l1' [80] is missing\n");
    check_bad(&list, "head.5.weight", 0, "tensor 'head.5.weight' [any, 12] is missing\n");
    check_bad(&list, "head.9.bias", 0, "missing");
    check_bad(&list, "lstm.weight_ih_l0", 1, "has the shape [79, 24] instead of [80, 24]\n");
    check_bad(&list, "lstm.weight_hh_l0", 1, "has the shape [79, 20] instead of [80, 20]\n");
    check_bad(&list, "lstm.bias_ih_l1", 1, "has the shape [79] instead of [80]\n");
    check_bad(&list, "head.2.weight", 1, "has the shape [11] instead of [12]\n");
    check_bad(&list, "head.9.weight", 1, "has the shape [152, 9] instead of [153, 9]\n");
    check_bad(&list, "lstm.bias_hh_l0", 2, "tensor 'lstm.bias_hh_l0' has a number that is not finite\n");
    check_bad(&list, "head.6.bias", 3, "is I32 instead of floating point\n");
    check_bad(&list, "head.5.weight", 4, "computes numbers that are not finite"); // and ReLU must not hide them
    check_bad(&list, "head.9.weight", 4, "computes numbers that are not finite");
    check_resume_state(&list);
}

// What only one kind has, and what each does with no model named.
static void check_kinds(const char *gpt, const char *lstm) {
    snprintf(small_model, sizeof small_model, "%s", lstm);
    CHECK(call("MODEL --context 64 -o @/x.mid") == 2 && !exists("x.mid"), "%s", said);
    CHECK(strstr(said, "--context 64: ") && strstr(said, "is an LSTM") && strstr(said, "leave the flag out"), "%s",
          said);
    CHECK(call("MODEL --bench") == 0 && !strncmp(said, "bench model=lstm weights=float32 songs=1 tokens_per_s=", 54),
          "%s", said);
    CHECK(strstr(said, " mb_per_step=") && strstr(said, " fraction="), "%s", said);
    CHECK(call("MODEL --tokens 9 --seed 1 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(lstm, 2 layers of width 20)");
    contains("k.svg", "temperature 1, memory 0.25, bpm 120");
    snprintf(small_model, sizeof small_model, "%s", gpt);
    CHECK(call("MODEL --bench") == 0 &&
              !strncmp(said, "bench model=gpt weights=float32 songs=1 context=256 tokens_per_s=", 65),
          "%s", said);
    CHECK(strstr(said, "bench model=gpt weights=float32 songs=1 context=1024 tokens_per_s="), "%s", said);
    CHECK(call("MODEL --tokens 9 --seed 1 --context 64 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(gpt, 2 layers of width 32)");
    contains("k.svg", "context 64, bpm 120");
    CHECK(call("--help") == 0 && strstr(said, "an LSTM's state carries all"), "%s", said);

    int here = open(".", O_RDONLY);
    CHECK(here >= 0 && !chdir(folder), "%s: cannot be entered", folder);
    CHECK(call("-o @/x.mid") == 1 && strstr(said, "out/gpt/model.safetensors: there is no such model yet"), "%s", said);
    CHECK(make_folders(in_folder("out/gpt"), error) && make_folders(in_folder("out/lstm"), error), "%s", error);
    CHECK(call("-o @/x.mid") == 1 && strstr(said, "there is no such model yet"), "%s", said);
    CHECK(call("out/gpt -o @/x.mid") == 1 && strstr(said, "out/gpt: is a folder without model.safetensors"), "%s",
          said);

    // What a run has saved that has no best model yet, only where no run has one.
    const char *used = "out/gpt/last.safetensors: used, because out/gpt has no model.safetensors yet\n";
    CHECK(!link(gpt, in_folder("out/gpt/last.safetensors")), "no link");
    CHECK(call("--tokens 9 -o @/k.svg") == 0 && strstr(said, used), "%s", said);
    contains("k.svg", "(gpt, ");
    CHECK(call("out/gpt/ --tokens 9 -o @/k.svg") == 0 && strstr(said, "out/gpt/last.safetensors: used"), "%s", said);
    CHECK(call("out/gpt --tokens 9 -o -") == 0 && strstr(said, used), "%s", said);
    CHECK(!link(lstm, in_folder("out/lstm/model.safetensors")), "no link");
    CHECK(call("--tokens 9 -o @/k.svg") == 0 && !strstr(said, "used"), "%s", said);
    contains("k.svg", "(lstm, ");
    CHECK(call("out/lstm out/gpt --tokens 9 -o @/k.svg") == 0 && strstr(said, used), "%s", said);
    contains("k-1.svg", "(lstm, ");
    contains("k-2.svg", "(gpt, ");
    CHECK(!link(gpt, in_folder("out/gpt/model.safetensors")), "no link");
    CHECK(call("--tokens 9 -o @/k.svg") == 0, "%s", said);
    contains("k.svg", "(gpt, ");
    CHECK(here >= 0 && !fchdir(here), "cannot go back");
    close(here);
}

// No name takes a command to a terminal, whether it is in an error or a report; nor does music.
static void check_terminal(void) {
    static const char *const calls[] = {"@/%s",
                                        "MODEL --prime @/%s",
                                        "MODEL --tokens 3 -o @/%s.mid -o @/%s.html",
                                        "@/%s.model @/%s.model --tokens 3",
                                        "MODEL --tokens 3 --prime @/%s.prime",
                                        "@/%s.model --eval @/eval.safetensors --eval-stride 999"};
    const char *name = "a\033[31m\xC2\x9B"
                       "1m\x9B";
    char model[40];
    snprintf(model, sizeof model, "%s.model", name);
    CHECK(!link(small_model, in_folder(model)), "no link");
    snprintf(model, sizeof model, "%s.prime", name);
    CHECK(!link(in_folder("prime.mid"), in_folder(model)), "no link");
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const char *at = calls[i];
        char line[600] = "";
        for (; strstr(at, "%s"); at = strstr(at, "%s") + 2) {
            snprintf(line + strlen(line), sizeof line - strlen(line), "%.*s%s", (int)(strstr(at, "%s") - at), at, name);
        }
        const int status = call("%s%s%s", line, at, i < 2 || i == 5 ? "" : " -o @/t.html");
        bool clean = utf8_valid(said);
        for (const char *c = said; *c; c++) clean = clean && (*c == '\n' || shown_length(c, 4) || (*c & 0xC0) == 0x80);
        CHECK(clean && status == (i < 2) && strstr(said, "a?[31m??1m?"), "%s: exit %d, %s", calls[i], status, said);
    }

    int master = posix_openpt(O_RDWR | O_NOCTTY);
    const char *slave = master >= 0 && !grantpt(master) && !unlockpt(master) ? ptsname(master) : NULL;
    terminal = slave ? open(slave, O_RDWR | O_NOCTTY) : -1;
    if (terminal < 0) printf("skipped: bytes on a terminal, there is none\n");
    if (terminal >= 0) {
        CHECK(call("MODEL --tokens 3 -o -") == 2 && strstr(said, "-o -: "), "bytes on a terminal: %s", said);
        CHECK(call("MODEL --tokens 3 -o @/t.mid") == 0, "%s", said);
        close(terminal);
    }
    terminal = -1;
    if (master >= 0) close(master);
}

static void check_bad_files(void) {
    static Tensors list;
    add_tensor(&list, 0, 1, MIDI_TOKENS, 8, "emb.weight");
    CHECK(write_tensors(in_folder("neither"), &list), "%s", error);
    CHECK(call("@/neither -o @/x.mid") == 1 && strstr(said, "neither a Transformer nor an LSTM"), "%s", said);
    write_file_atomically(in_folder("nothing"), "", 0, error);
    write_file_atomically(in_folder("text"), "not a model at all\n", 19, error);
    CHECK(call("@/nothing -o @/x.mid") == 1, "%s", said);
    CHECK(call("@/text -o @/x.mid") == 1 && strstr(said, "text: not a safetensors file, but a text\n"), "%s", said);
    static const struct {
        const char *bytes;
        size_t size;
        const char *words;
    } others[] = {
        {"MThd\0\0\0\6\0\0\0\1\0\140MTrk", 18, "a MIDI file, with which sample_music goes on as --prime FILE"},
        {"PK\3\4\0\0\10\10\0\0\0\0", 12, "one that torch.save made; safetensors.torch.save_file("},
        {"\x80\2\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8", 12, "one that torch.save made"},
        {"short\n", 6, "a text"},
        {"\xC3\xA4 and \xC3\xB6\n", 10, "a text"},
        {"\1\2\3\4\5\6\7\10\11", 9, "cut short"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        CHECK(write_file_atomically(in_folder("other"), others[i].bytes, others[i].size, error), "%s", error);
        CHECK(call("@/other -o @/x.mid") == 1 && strstr(said, "other: not a safetensors file, ") &&
                  strstr(said, others[i].words),
              "kind %zu: %s", i, said);
    }
    CHECK(call("@ -o @/x.mid") == 1, "%s", said);
    CHECK(call("@/absent -o @/x.mid") == 1, "%s", said);
    CHECK(!exists("x.mid"), "a failed call wrote a file");
    CHECK(call("MODEL --tokens 5 -o @/absent/x.mid") == 1, "%s", said);
    CHECK(call("MODEL --tokens 5 -n 3 --threads 2 -o @/absent/x.mid") == 1, "%s", said);
    const char *end = strchr(said, '\n');
    CHECK(end && !end[1], "more than one sentence: %s", said);

    // A full disk leaves the song of before, and nothing else.
    CHECK(call("MODEL --tokens 90 --seed 1 -o @/keep.mid") == 0, "%s", said);
    CHECK(call("MODEL --tokens 90 --seed 1 -o @/same.mid") == 0, "%s", said);
    struct rlimit any, full;
    getrlimit(RLIMIT_FSIZE, &any);
    full = any;
    full.rlim_cur = 1000;
    setrlimit(RLIMIT_FSIZE, &full);
    const int status = call("MODEL --tokens 900 --seed 3 -o @/keep.mid");
    setrlimit(RLIMIT_FSIZE, &any);
    CHECK(status == 1 && strstr(said, "keep.mid"), "%s", said);
    CHECK(same_file("keep.mid", "same.mid"), "a full disk changed the old song");
}

int main(void) {
    check_folder(folder);
    const Sizes small = {32, 2, 16, 48, 24};
    const LstmSizes small_lstm = {24, 20, 2, 12, 9};
    char gpt[512], lstm[512];
    snprintf(gpt, sizeof gpt, "%s", in_folder("small.safetensors"));
    snprintf(lstm, sizeof lstm, "%s", in_folder("lstm.safetensors"));
    CHECK(make_model(gpt, small) && make_lstm(lstm, small_lstm, 1), "%s", error);
    CHECK(!mkdir(in_folder("again"), 0700), "no folder");

    check_kinds_of_tokens();
    check_filters();
    for (int kind = 0; kind < 2; kind++) {
        snprintf(small_model, sizeof small_model, "%s", kind ? lstm : gpt);
        check_grammar();
        check_seeds();
        check_batches();
        check_guards();
        check_eval();
        check_memory();
        check_prime();
        if (kind) check_lstm_files(small_lstm);
        if (!kind) check_gpt_files(small);
    }
    check_kinds(gpt, lstm); // leaves MODEL the Transformer
    check_pages();
    check_bars();
    check_usage();
    check_terminal();
    check_bad_files();
    remove_folder();
    return check_report("sample");
}
