// base/data.h: any bytes are a dataset or a sentence. In a dataset every token is one, the pieces tile the tokens, each
// window lies in a piece, an epoch has no window twice, and each piece has a name. It is saved, and opened again as the
// same; a name is the same again after it was unescaped and escaped.
#include "tensors.h"

#include "base/data.h"

UNTRACED static void promise_windows(const Dataset *data) {
    enum { BATCH = 3 };
    int64_t windows = 0, starts[BATCH];
    PROMISE(data->pieces[0] == 0 && data->pieces[data->n_pieces] == data->n_tokens,
            "the pieces do not tile the tokens");
    for (int64_t p = 0; p < data->n_pieces; p++) {
        const int64_t length = data->pieces[p + 1] - data->pieces[p], first = windows;
        PROMISE(length >= 0, "piece %lld", (long long)p);
        if (length > data->T) windows += length - data->T;
        if (windows == first) continue;
        PROMISE(dataset_window(data, first) == data->pieces[p], "first window of piece %lld", (long long)p);
        PROMISE(dataset_window(data, windows - 1) + data->T + 1 == data->pieces[p + 1], "last one of %lld",
                (long long)p);
    }
    PROMISE(windows == data->n_windows, "%lld windows", (long long)windows);
    for (int64_t i = 0; i < data->n_tokens; i++) PROMISE(data->tokens[i] < DATA_TOKENS, "token %lld", (long long)i);
    const int64_t steps = epoch_steps(1, windows, BATCH);
    PROMISE(steps == windows / BATCH, "%lld steps of %lld windows", (long long)steps, (long long)windows);
    if (!steps || data->n_tokens > 1000) return;
    char seen[1000] = {0};
    for (int64_t step = 0; step < steps; step++) {
        epoch_batch(data, 1, 0, step, BATCH, starts);
        for (int b = 0; b < BATCH; b++) PROMISE(!seen[starts[b]]++, "window %lld comes twice", (long long)starts[b]);
    }
}

UNTRACED static void promise_names(const Dataset *data) {
    for (int64_t p = 0; p < data->n_pieces && p < 4; p++) {
        const char *name = dataset_name(data, p);
        const size_t length = strcspn(name, "\n");
        char *path = malloc(length + 1), *once = malloc(3 * length + 1), *twice = malloc(3 * length + 1);
        if (!path || !once || !twice) abort();
        name_escape((name_unescape(name, path), path), once);
        name_escape((name_unescape(once, path), path), twice);
        PROMISE(!strcmp(once, twice) && utf8_valid(once) && !strchr(once, '\n'), "%s becomes %s", once, twice);
        free(path);
        free(once);
        free(twice);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    char error[ERROR_SIZE] = "";
    const int T = 1 + (int)(size % 8 ? size % 8 : hash_of(input, size) % 400);
    Dataset data, again;
    if (!dataset_open(&data, file_of(input, size), T, error)) {
        promise_sentence(error);
        PROMISE(!data.owned && !data.file.bytes, "something is left of a dataset that is none");
        return 0;
    }
    promise_windows(&data);
    promise_names(&data);
    if (data.n_tokens > 8) planted(data.pieces, 2 * sizeof(int64_t) * (size_t)(data.n_pieces + 1));
    const char *path = scratch_path("d.safetensors");
    PROMISE(dataset_save(path, data.tokens, data.n_tokens, data.pieces, data.n_pieces, data.names, error), "%s", error);
    PROMISE(dataset_open(&again, path, T, error), "%s", error);
    PROMISE(data.n_tokens == again.n_tokens && data.n_pieces == again.n_pieces && data.n_windows == again.n_windows &&
                !memcmp(data.tokens, again.tokens, (size_t)data.n_tokens) && !strcmp(data.names, again.names) &&
                !memcmp(data.pieces, again.pieces, (size_t)(data.n_pieces + 1) * sizeof *data.pieces),
            "it was saved as another one");
    dataset_close(&data);
    dataset_close(&again);
    return 0;
}
