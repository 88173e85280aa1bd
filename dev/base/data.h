// Datasets: pieces of music as tokens in one safetensors file, the training windows in them, and the order of an epoch.
//
//     pieces   I64 [P+1]   where each piece starts in tokens; the last entry is N
//     tokens   U8  [N]     0 to 152
//     metadata             format=music-tokens/1; names: the pieces' relative paths, one per line (see name_escape)
//
// Promises: dataset_open accepts nothing that training could trip over, so nobody checks tokens again; the order of an
// epoch is a function of the seed, the epoch and the number of windows, on every machine.
// Left out: what the tokens mean (midi.h), and datasets larger than memory. C11 and C++17.
#pragma once

#include "base/safetensors.h"

#include "base/philox.h"

// The vocabulary, as midi.h has it: token 0 is a bar, then come offsets, pitches and durations from these tokens on.
enum { TOKEN_OFFSET = 1, TOKEN_PITCH = 33, TOKEN_DURATION = 121, DATA_TOKENS = 153 };

#define DATA_FORMAT "music-tokens/1"

// What a token is: 0 bar, 1 offset, 2 pitch, 3 duration.
PHILOX_FN int token_kind(int token) {
    return (token >= TOKEN_OFFSET) + (token >= TOKEN_PITCH) + (token >= TOKEN_DURATION);
}

typedef struct {
    const uint8_t *tokens; // [n_tokens], each below DATA_TOKENS
    int64_t n_tokens;
    const int64_t *pieces; // [n_pieces + 1], never descending, 0 first and n_tokens last; a piece may be empty
    int64_t n_pieces;
    int T;                       // a window is T inputs and the target of the last, T + 1 tokens
    const int64_t *first_window; // [n_pieces + 1], the windows before each piece; piece p has max(0, length - T)
    int64_t n_windows;
    const char *names; // one escaped name per line, or ""
    StFile file;       // owns tokens and names
    int64_t *owned;    // owns pieces and first_window
} Dataset;

static inline void dataset_close(Dataset *data) {
    st_free(&data->file);
    free(data->owned);
    memset(data, 0, sizeof *data);
}

// Copies pieces (at any alignment), checks them, and counts the windows. n_tokens must be set.
static inline bool dataset_set_pieces(Dataset *data, const void *pieces, int64_t n_pieces, int T, const char *path,
                                      char *error) {
    data->T = T;
    data->n_pieces = n_pieces;
    data->owned = (int64_t *)malloc(2 * (size_t)(n_pieces + 1) * sizeof(int64_t));
    if (!data->owned) return fail(error, "%s: its %lld pieces do not fit into memory", path, (long long)n_pieces);
    int64_t *starts = data->owned, *first_window = data->owned + n_pieces + 1;
    memcpy(starts, pieces, (size_t)(n_pieces + 1) * sizeof(int64_t));
    data->pieces = starts;
    data->first_window = first_window;
    if (starts[0] != 0 || starts[n_pieces] != data->n_tokens) {
        return fail(error, "%s: its pieces go from token %lld to %lld; they must go from 0 to its end at %lld", path,
                    (long long)starts[0], (long long)starts[n_pieces], (long long)data->n_tokens);
    }
    first_window[0] = 0;
    for (int64_t p = 0; p < n_pieces; p++) {
        // This start was checked as the end before, so the length below cannot overflow.
        if (starts[p + 1] < starts[p] || starts[p + 1] > data->n_tokens) {
            return fail(error, "%s: piece %lld goes from token %lld to %lld; pieces must ascend to %lld", path,
                        (long long)p, (long long)starts[p], (long long)starts[p + 1], (long long)data->n_tokens);
        }
        int64_t length = starts[p + 1] - starts[p];
        first_window[p + 1] = first_window[p] + (length > T ? length - T : 0);
    }
    data->n_windows = first_window[n_pieces];
    return true;
}

static inline bool dataset_take(Dataset *data, const char *path, int T, char *error) {
    const char *format = st_meta(&data->file, "format"), *names = st_meta(&data->file, "names");
    const StTensor *tokens = st_find(&data->file, "tokens"), *pieces = st_find(&data->file, "pieces");
    if (!format || strcmp(format, DATA_FORMAT)) {
        return fail(error,
                    "%s: not a dataset: its format is %s%.40s%s instead of '" DATA_FORMAT
                    "'; make it with prepare_music",
                    path, format ? "'" : "", format ? format : "missing", format ? "'" : "");
    }
    if (!tokens || tokens->type != ST_U8 || tokens->rank != 1) {
        return fail(error, "%s: not a dataset: it needs a tensor 'tokens' of type U8 and one dimension", path);
    }
    if (!pieces || pieces->type != ST_I64 || pieces->rank != 1 || pieces->count < 1) {
        return fail(error, "%s: not a dataset: it needs a tensor 'pieces' of type I64 and one dimension, at least [0]",
                    path);
    }
    data->tokens = (const uint8_t *)tokens->data;
    data->n_tokens = tokens->count;
    data->names = names ? names : "";
    if (!dataset_set_pieces(data, pieces->data, pieces->count - 1, T, path, error)) return false;
    int64_t n_names = 0;
    for (const char *c = data->names; *c; c++) n_names += *c == '\n' || !c[1]; // the last may lack its newline
    if (n_names && n_names != data->n_pieces) {
        return fail(error, "%s: it names %lld pieces and has %lld", path, (long long)n_names,
                    (long long)data->n_pieces);
    }
    for (int64_t i = 0; i < data->n_tokens; i++) {
        if (data->tokens[i] < DATA_TOKENS) continue;
        return fail(error, "%s: the token at position %lld is %d; tokens are 0 to %d", path, (long long)i,
                    data->tokens[i], DATA_TOKENS - 1);
    }
    return true;
}

// Opens a dataset for windows of T + 1 tokens, T >= 1. A dataset without windows is not an error here. After a failure
// data is empty.
static inline bool dataset_open(Dataset *data, const char *path, int T, char *error) {
    memset(data, 0, sizeof *data);
    if (st_read(&data->file, path, error) && dataset_take(data, path, T, error)) return true;
    dataset_close(data);
    return false;
}

// A dataset of n random tokens in one piece, a function of the seed: what --bench trains on. dataset_close frees it.
static inline bool dataset_random(Dataset *data, int64_t n, int T, uint64_t seed, char *error) {
    memset(data, 0, sizeof *data);
    uint8_t *tokens = (uint8_t *)malloc((size_t)n + 1);
    if (!tokens) return fail(error, "%lld random tokens do not fit into memory", (long long)n);
    PhiloxKey key = philox_key(seed, PHILOX_BENCH, 0);
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = philox(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).x[0];
        tokens[i] = (uint8_t)((uint64_t)word * DATA_TOKENS >> 32);
    }
    int64_t pieces[2] = {0, n};
    data->file.bytes = tokens;
    data->tokens = tokens;
    data->n_tokens = n;
    data->names = "";
    if (dataset_set_pieces(data, pieces, 1, T, "random tokens", error)) return true;
    dataset_close(data);
    return false;
}

// Writes a dataset, atomically. names: one escaped name per line (see name_escape), or "".
static inline bool dataset_save(const char *path, const uint8_t *tokens, int64_t n, const int64_t *pieces,
                                int64_t n_pieces, const char *names, char *error) {
    const int64_t n_starts = n_pieces + 1;
    StTensor tensors[] = {st_tensor("pieces", ST_I64, 1, &n_starts, pieces), st_tensor("tokens", ST_U8, 1, &n, tokens)};
    StMeta meta[] = {{"format", DATA_FORMAT}, {"names", names}};
    return st_write(path, tensors, 2, meta, 2, error);
}

// The position of window w's first token, 0 <= w < n_windows: window w + 1 starts one token later, or in a later piece.
static inline int64_t dataset_window(const Dataset *data, int64_t w) {
    int64_t low = 0, high = data->n_pieces; // first_window[low] <= w < first_window[high]
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (data->first_window[middle] <= w) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return data->pieces[low] + (w - data->first_window[low]);
}

// Steps of an epoch over a fraction F > 0 of n_windows, batches of B: max(1, min(floor(F ceil(W / B)), floor(W / B))).
// 0 if there are fewer windows than a batch needs, which the caller reports.
static inline int64_t epoch_steps(double F, int64_t n_windows, int B) {
    int64_t most = n_windows / B;
    double wanted = floor(F * (double)(most + (n_windows % B != 0)));
    if (wanted >= (double)most) return most;
    return wanted >= 1 ? (int64_t)wanted : most > 0;
}

// starts[B]: where the windows of a step's batch begin. No window comes twice within an epoch, as long as
// step_in_epoch < floor(n_windows / B).
static inline void epoch_batch(const Dataset *data, uint64_t seed, int64_t epoch, int64_t step_in_epoch, int B,
                               int64_t *starts) {
    PhiloxKey key = philox_key(seed, PHILOX_WINDOWS, (uint32_t)epoch);
    for (int b = 0; b < B; b++) {
        uint64_t i = (uint64_t)(step_in_epoch * B + b);
        starts[b] = dataset_window(data, (int64_t)philox_permute(key, (uint64_t)data->n_windows, i));
    }
}

// ---- transposed windows

// By how many semitones window i of an epoch is transposed, whose pitches are the tokens from lowest to highest (or
// none, if lowest is above highest): any number of low..high, low <= 0 <= high, that keeps them on the piano, each as
// likely as the others.
PHILOX_FN int transposition(PhiloxKey key, uint64_t i, int low, int high, int lowest, int highest) {
    if (lowest <= highest && low < TOKEN_PITCH - lowest) low = TOKEN_PITCH - lowest;
    if (lowest <= highest && high > TOKEN_DURATION - 1 - highest) high = TOKEN_DURATION - 1 - highest;
    const uint32_t word = philox(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).x[0];
    return low + (int)((uint64_t)word * (uint64_t)(high - low + 1) >> 32);
}

PHILOX_FN int transposed(int token, int semitones) { return token_kind(token) == 2 ? token + semitones : token; }

// shifts[B]: by how many semitones the windows of a step's batch are transposed, which begin at starts[B].
static inline void epoch_shifts(const Dataset *data, uint64_t seed, int64_t epoch, int64_t step_in_epoch, int B,
                                const int64_t *starts, const int *range, int *shifts) {
    const PhiloxKey key = philox_key(seed, PHILOX_TRANSPOSE, (uint32_t)epoch);
    for (int b = 0; b < B; b++) {
        int lowest = DATA_TOKENS, highest = 0;
        for (const uint8_t *token = data->tokens + starts[b]; token <= data->tokens + starts[b] + data->T; token++) {
            if (token_kind(*token) != 2) continue;
            if (*token < lowest) lowest = *token;
            if (*token > highest) highest = *token;
        }
        shifts[b] = transposition(key, (uint64_t)(step_in_epoch * B + b), range[0], range[1], lowest, highest);
    }
}

// The escaped name of piece p, 0 <= p < n_pieces, up to its newline or NUL; "" where the dataset has no names.
static inline const char *dataset_name(const Dataset *data, int64_t p) {
    const char *line = data->names;
    for (; p > 0 && *line; p--) line += strcspn(line, "\n") + 1;
    return line;
}
