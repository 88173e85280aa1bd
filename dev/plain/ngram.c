// An n-gram with memory: a language model that only counts, by which the losses of the networks can be judged.
//
//     make plain
//     dev/plain/ngram        learns data/train.safetensors, prints the loss on data/test.safetensors, makes ngram.mid
//
// After each context of 0 to 11 tokens the table knows how often which token came. Contexts are smoothed from the short
// to the long: absolute discounting takes a part of each count and gives what it took to the tokens that the shorter
// context expects (Ney, Essen and Kneser, 1994). A shorter context counts a token once for each longer one in which it
// was new (Kneser and Ney, 1995). The memory is a second table. It learns what the window or song has said so far, and
// stands on the first one as a context stands on the shorter one.
//
// The loss is that of the trainers, over the same windows: each token is predicted from those before it in its window.
// Left out: flags, and contexts that are no row of tokens, say the notes of the last beat.
#include "plain/plain.h"
#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

// The longest context, the shortest one of the memory; tokens in a window, windows from one to the next that is
// evaluated, tokens of the song; the key of the empty context.
enum { CONTEXT = 11, MEMORY_CONTEXT = 2, T = 256, STRIDE = 64, SONG = 1024, EMPTY = 1 };
static const double DISCOUNT = 0.9;

// A context has an entry, whose count is that of the tokens that came there, of so many kinds, and so has each token
// that came there, whose count is how often. A key is a hash of 64 bits, 0 in a free entry: that two strings of tokens
// share one is not to be expected before there are billions.
typedef struct {
    uint64_t key;
    int count, kinds;
} Entry;

typedef struct {
    Entry *entries;
    uint64_t room, n; // entries there are, a power of two, and those in use
    int shortest;     // context
} Ngram;

static Ngram ngram_new(int shortest, int64_t tokens) { // with room for so many
    uint64_t room = 1;
    while (room <= 2 * (CONTEXT + 1) * (uint64_t)tokens) room *= 2;
    return (Ngram){.entries = must_have(calloc(room, sizeof(Entry))), .room = room, .shortest = shortest};
}

// The key of a string that is one token longer. A context begins with EMPTY and grows to the left; a token that comes
// after it is told from one before it by V more.
static uint64_t longer(uint64_t key, int token) { return (key + (uint64_t)token + 1) * 0x9E3779B97F4A7C15; }

static Entry *find(const Ngram *m, uint64_t key) { // the entry with this key, else the free one where it belongs
    uint64_t i = key >> 20;                        // a product's higher bits are the better mixed
    while (m->entries[i & (m->room - 1)].key && m->entries[i & (m->room - 1)].key != key) i++;
    return &m->entries[i & (m->room - 1)];
}

static Entry *count(Ngram *m, uint64_t key) {
    Entry *entry = find(m, key);
    m->n += !entry->key;
    entry->key = key;
    entry->count++;
    return entry;
}

// Learns that tokens[n] came after the n tokens before it.
static void learn(Ngram *m, const uint8_t *tokens, int64_t n) {
    const int longest = n < CONTEXT ? (int)n : CONTEXT;
    uint64_t context[CONTEXT + 1] = {EMPTY};
    for (int c = 0; c < longest; c++) context[c + 1] = longer(context[c], tokens[n - 1 - c]);
    for (int c = longest; c >= m->shortest; c--) {
        Entry *context_entry = count(m, context[c]);
        if (count(m, longer(context[c], V + tokens[n]))->count > 1) break; // the shorter ones have heard of it
        context_entry->kinds++;
    }
}

// The probability of a token after the n tokens at tokens; p is what it is without this table.
static double probability(const Ngram *m, const uint8_t *tokens, int64_t n, int token, double p) {
    uint64_t context = EMPTY;
    for (int c = 0; c <= CONTEXT && c <= n; c++) {
        if (c > 0) context = longer(context, tokens[n - c]);
        if (c < m->shortest) continue;
        const Entry *entry = find(m, context);
        if (entry->count == 0) break; // nor was a longer one ever there
        const int seen = find(m, longer(context, V + token))->count;
        p = (fmax(seen - DISCOUNT, 0) + DISCOUNT * entry->kinds * p) / entry->count;
    }
    return p;
}

// The mean losses over every STRIDE-th window, without the memory and with it.
static void evaluate(const Ngram *trained, const Dataset *test, double loss[2]) {
    const int64_t windows = (test->n_windows + STRIDE - 1) / STRIDE;
    for (int64_t w = 0; w < windows; w++) {
        const uint8_t *tokens = test->tokens + dataset_window(test, w * STRIDE);
        Ngram memory = ngram_new(MEMORY_CONTEXT, T);
        for (int n = 1; n <= T; n++) {
            const double p = probability(trained, tokens, n, tokens[n], 1.0 / V);
            loss[0] -= log(p) / (double)(windows * T);
            loss[1] -= log(probability(&memory, tokens, n, tokens[n], p)) / (double)(windows * T);
            learn(&memory, tokens, n);
        }
        free(memory.entries);
    }
}

// Draws a song, of tokens that the format allows, and writes it. Its first token, a bar line, is not written.
static bool compose(const Ngram *trained, const char *path, char *error) {
    const PhiloxKey key = philox_key(1, PHILOX_SAMPLE, 0);
    Ngram memory = ngram_new(MEMORY_CONTEXT, SONG);
    uint8_t tokens[1 + SONG] = {MIDI_BAR}, *bytes = NULL;
    for (int n = 1; n <= SONG; n++) {
        double sum = 0;
        for (int v = 0; v < V; v++) { // each takes the place of the one drawn before with its share of the sum so far
            if (!midi_may_follow(tokens[n - 1], v)) continue;
            const double p = probability(&memory, tokens, n, v, probability(trained, tokens, n, v, 1.0 / V));
            const Philox4 words = philox(key, (uint32_t)v, (uint32_t)n, 0, 0);
            sum += p;
            if (philox_uniform(words.x[0], words.x[1]) * sum < p) tokens[n] = (uint8_t)v;
        }
        learn(&memory, tokens, n);
    }
    free(memory.entries);
    midi_song song;
    size_t size = 0;
    // Of tokens that the format allows these make a file, but for want of memory.
    must_have(midi_decode(tokens + 1, SONG, &song, NULL) && midi_write(&song, &bytes, &size, NULL) ? bytes : NULL);
    const bool written = write_file_atomically(path, bytes, size, error);
    free(bytes);
    midi_free(&song);
    return written;
}

#ifndef TESTING
int main(void) {
    Dataset train, test;
    if (!music_open(&train, "data/train.safetensors", "ngram", 1, T)) return 1;
    if (!music_open(&test, "data/test.safetensors", "ngram", 1, T)) return 1;
    Ngram trained = ngram_new(0, train.n_tokens);
    for (int64_t p = 0; p < train.n_pieces; p++) {
        const uint8_t *piece = train.tokens + train.pieces[p];
        for (int64_t n = 0; n < train.pieces[p + 1] - train.pieces[p]; n++) learn(&trained, piece, n);
    }
    double loss[2] = {0};
    evaluate(&trained, &test, loss);
    printf("%llu entries  loss %.4f  with memory %.4f\n", (unsigned long long)trained.n, loss[0], loss[1]);
    char error[ERROR_SIZE];
    const bool composed = compose(&trained, "ngram.mid", error);
    if (!composed) fprintf(stderr, "ngram: %s\n", error);
    free(trained.entries);
    dataset_close(&train);
    dataset_close(&test);
    return !composed;
}
#endif
