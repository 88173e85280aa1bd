// How good and how fast a model is, as the sampler runs it: how surprising it finds a token, its loss on a dataset
// (--eval), in windows or over whole pieces, and its speed beside that of reading memory (--bench). C11, gcc and clang.
#pragma once

#include "sample/decoder.h" // first: it chooses the system's interfaces

#include "base/program.h"
#include "sample/memory.h"

// ---- what logits say

static inline vector some_logits(const float *logits, int first) { // LANES of them; beyond the last one -infinity
    if (first + LANES <= V) return load(logits + first);
    vector some = all_lanes(-INFINITY);
    for (int i = 0; first + i < V; i++) some[i] = logits[first + i];
    return some;
}

// -log of the chance that the model itself, without grammar, filters or temperature, gives a token.
static inline double surprise(const float *logits, int token) {
    vector tops = all_lanes(-INFINITY), sums = {0};
    for (int v = 0; v < V; v += LANES) tops = larger(some_logits(logits, v), tops);
    const float most = largest_lane(tops);
    for (int v = 0; v < V; v += LANES) sums += exp_vector(some_logits(logits, v) - most);
    return most + log(sum_lanes(sums)) - logits[token];
}

// Gives a token c more of the chance, and all tokens 1 - c of what they had, 0 <= c < 1. Only the logit of the token
// changes, as the others keep their ratios.
static inline void mix(float *logits, int token, double c) {
    if (c == 0) return;
    const double alone = surprise(logits, token); // -log p, and p + c / (1 - c) takes the place of p
    logits[token] = (float)(logits[token] + alone + log(exp(-alone) + c / (1 - c)));
}

static inline bool not_finite(const Model *model, char *error) {
    return fail(error, "%s: computes numbers that are not finite; it should be trained anew", model->path);
}

// ---- the loss on a dataset

enum { WINDOW = 256 }; // tokens, as the models are trained

// Measures item i of a job in a batch that is its thread's own. False: numbers that are not finite.
typedef bool MeasureItem(void *job, Batch *batch, int64_t i);

// Measures n items, on at most so many threads, in batches of so many slots.
static inline bool measure_items(const Model *model, int n_slots, int context, MeasureItem *item, void *job, int64_t n,
                                 int threads, char *error) {
    bool good = true;
    if (threads > n) threads = (int)n;
#pragma omp parallel num_threads(threads)
    {
        Batch batch = {0};
        char problem[ERROR_SIZE];
        bool ok = batch_new(&batch, model, n_slots, context, problem);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) ok = ok && (item(job, &batch, i) || not_finite(model, problem));
#pragma omp critical(measure)
        {
            if (!ok && good) memcpy(error, problem, ERROR_SIZE);
            good = good && ok;
        }
        batch_free(&batch);
    }
    return good;
}

typedef struct { // every stride-th window of a dataset
    Dataset data;
    int64_t stride, n;
    double *losses; // [n] sums of the model's surprises at the tokens of each
} WindowLosses;

static inline bool window_losses(void *job, Batch *batch, int64_t i) { // of a batch of windows
    const WindowLosses *w = job;
    const int64_t first = i * MAX_SLOTS;
    const int n = (int)(w->n - first < MAX_SLOTS ? w->n - first : MAX_SLOTS);
    int64_t starts[MAX_SLOTS];
    int slots[MAX_SLOTS], tokens[MAX_SLOTS] = {0};
    for (int k = 0; k < n; k++) {
        starts[k] = dataset_window(&w->data, (first + k) * w->stride);
        slots[k] = k;
        batch_begin(batch, k);
    }
    for (int t = 0; t < WINDOW; t++) {
        for (int k = 0; k < n; k++) tokens[k] = w->data.tokens[starts[k] + t];
        batch_step(batch, slots, n, tokens);
        for (int k = 0; k < n; k++) {
            if (!row_finite(row(batch->logits, k), V)) return false;
            w->losses[first + k] += surprise(row(batch->logits, k), w->data.tokens[starts[k] + t + 1]);
        }
    }
    return true;
}

// What the trainers' --eval does, on every stride-th window of a dataset, by the arithmetic that makes songs, on at
// most so many threads. Prints a line.
static inline bool measure_loss(const Model *model, const char *dataset, int64_t stride, int threads, char *error) {
    WindowLosses w = {.stride = stride};
    double sum = 0;
    if (!dataset_open(&w.data, dataset, WINDOW, error)) return false;
    w.n = divide_up(w.data.n_windows, stride);
    w.losses = must_have(calloc((size_t)w.n + 1, sizeof *w.losses));
    bool good = w.n || fail(error, "%s: no piece in it is longer than %d tokens", dataset, WINDOW);
    good =
        good && measure_items(model, MAX_SLOTS, WINDOW, window_losses, &w, divide_up(w.n, MAX_SLOTS), threads, error);
    for (int64_t i = 0; i < w.n; i++) sum += w.losses[i];
    if (good) {
        print_line(stdout, "eval loss=%.6f windows=%lld tokens=%lld stride=%lld weights=%s model=%s",
                   sum / (double)(w.n * WINDOW), (long long)w.n, (long long)w.n * WINDOW, (long long)stride,
                   precision_names[model->precision], model->path);
    }
    free(w.losses);
    dataset_close(&w.data);
    return good;
}

// ---- the loss over whole pieces, with a memory and without

typedef struct { // of a piece or of all, by kind of token
    int64_t n[4];
    double alone[4], together[4]; // the network's surprises, and those of network and memory
} StreamLoss;

typedef struct {
    Dataset data;
    double strength;    // of the memory
    StreamLoss *pieces; // [data.n_pieces]
} StreamLosses;

static inline bool stream_losses(void *job, Batch *batch,
                                 int64_t p) { // a piece is fed as a song is made, behind a bar line
    const StreamLosses *s = job;
    const uint8_t *tokens = s->data.tokens + s->data.pieces[p];
    const int slot = 0;
    StreamLoss *loss = &s->pieces[p];
    Memory memory = {.strength = s->strength};
    batch_begin(batch, slot);
    for (int64_t i = 0; i < s->data.pieces[p + 1] - s->data.pieces[p]; i++) {
        const int previous = i ? tokens[i - 1] : 0, kind = token_kind(tokens[i]);
        batch_step(batch, &slot, 1, &previous);
        if (!row_finite(row(batch->logits, slot), V)) return false;
        const double alone = surprise(row(batch->logits, slot), tokens[i]);
        const double c = memory_chance(&memory, tokens, i);
        loss->n[kind]++;
        loss->alone[kind] += alone;
        loss->together[kind] +=
            c > 0 && memory.again == tokens[i] ? -log((1 - c) * exp(-alone) + c) : alone - log(1 - c);
        memory_see(&memory, tokens[i]);
    }
    return true;
}

// A line for each kind of token that comes, and one for all.
static inline void stream_print(const StreamLoss *pieces, int64_t n_pieces, const char *about) {
    double tokens = 0, alone = 0, together = 0;
    for (int k = 0; k < 4; k++) {
        double n = 0, kind_alone = 0, kind_together = 0;
        for (int64_t p = 0; p < n_pieces; p++) {
            n += (double)pieces[p].n[k];
            kind_alone += pieces[p].alone[k];
            kind_together += pieces[p].together[k];
        }
        tokens += n;
        alone += kind_alone;
        together += kind_together;
        if (n == 0) continue;
        printf("%-9s alone %.4f  with memory %.4f  over %.0f tokens\n", train_kinds[k], kind_alone / n,
               kind_together / n, n);
    }
    print_line(stdout, "stream alone=%.6f loss=%.6f pieces=%lld tokens=%.0f %s", alone / tokens, together / tokens,
               (long long)n_pieces, tokens, about);
}

// The loss over the whole pieces of a dataset, on at most so many threads. Prints lines.
static inline bool measure_stream(const Model *model, const char *dataset, int context, double strength, int threads,
                                  char *error) {
    StreamLosses s = {.strength = strength};
    char about[ERROR_SIZE], back[16] = "all"; // tokens that the model looks back on
    if (!dataset_open(&s.data, dataset, WINDOW, error)) return false;
    if (model->kind == GPT) snprintf(back, sizeof back, "%d", context);
    s.pieces = must_have(calloc((size_t)s.data.n_pieces + 1, sizeof *s.pieces));
    bool good = s.data.n_tokens || fail(error, "%s: there is no token in it", dataset);
    good = good && measure_items(model, 1, context, stream_losses, &s, s.data.n_pieces, threads, error);
    snprintf(about, sizeof about, "memory=%g context=%s weights=%s model=%s", strength, back,
             precision_names[model->precision], model->path);
    if (good) stream_print(s.pieces, s.data.n_pieces, about);
    free(s.pieces);
    dataset_close(&s.data);
    return good;
}

// ---- speed

// Reads n floats (a multiple of 128) as fast as one core can: as two streams, each half of them, as weights.h does.
static inline float read_all(const float *memory, int64_t n) {
    vector sums[8] = {{0}};
    for (int64_t i = 0; i < n / 2; i += 4 * LANES) {
        UNROLL for (int k = 0; k < 4; k++) sums[k] += load(memory + i + k * LANES);
        UNROLL for (int k = 0; k < 4; k++) sums[4 + k] += load(memory + n / 2 + i + k * LANES);
    }
    return sum_lanes(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

// Times a token of each of n_songs songs, with a full context where the model has one, on one core, in turn with
// reading as many bytes as that needs. Prints a line; false: no memory.
static inline bool measure_speed(const Model *m, int context, int n_songs, char *error) {
    enum { ROUNDS = 40, EACH = 8 };
    Batch batch;
    if (!batch_new(&batch, m, n_songs, context, error)) return false;
    int64_t needed = m->bytes;
    if (m->kind == GPT) { // keys and values, and, if they are bytes, a scale of each
        const Precision precision = batch.gpt.kv_precision;
        needed += 8LL * n_songs * m->gpt.L * context * (m->gpt.C / columns_a_word(precision) + (precision == INT8));
    }
    const int64_t floats = round_up(needed / 4, 128);
    float *buffer = vector_alloc("what --bench reads", floats, "take a smaller model", error);
    double reads[ROUNDS * EACH], steps[ROUNDS * EACH];
    int slots[MAX_SLOTS], tokens[MAX_SLOTS];
    volatile float sum = 0; // so that the reading is not optimised away
    for (int i = 0; i < n_songs; i++) slots[i] = i;
    for (int t = -context; buffer && t < ROUNDS; t++) {
        for (int k = -1; k < EACH && t >= 0; k++) { // the first of each fills the caches
            double start = seconds_now();
            sum = sum + read_all(buffer, floats);
            if (k >= 0) reads[t * EACH + k] = seconds_now() - start;
        }
        for (int k = -1; k < (t < 0 ? 0 : EACH); k++) {
            for (int i = 0; i < n_songs; i++) tokens[i] = (context + t + k + 7 * i + 1) % V;
            double start = seconds_now();
            batch_step(&batch, slots, n_songs, tokens);
            if (k >= 0) steps[t * EACH + k] = seconds_now() - start;
        }
    }
    batch_free(&batch);
    if (!buffer) return false;
    free(buffer);
    double step = median(steps, ROUNDS * EACH), read = median(reads, ROUNDS * EACH);
    printf("bench model=%s weights=%s songs=%d", kind_names[m->kind], precision_names[m->precision], n_songs);
    if (m->kind == GPT) printf(" context=%d", context);
    printf(" tokens_per_s=%.0f read_gb_per_s=%.1f mb_per_step=%.1f limit_tokens_per_s=%.0f fraction=%.3f\n",
           n_songs / step, (double)needed * 1e-9 / read, (double)needed * 1e-6, n_songs / read, read / step);
    return true;
}
