// The sampler's models (sample/decoder.h): any bytes are a Transformer or an LSTM, with float32, bf16 or int8 weights,
// or a sentence. A model that was loaded takes tokens, past its context too, in memory that fits it; the logits of a
// song are the same bytes alone and beside another song.
#include "tensors.h" // first

#include "sample/decoder.h"

#define MIDI_IMPLEMENTATION
#include "midi.h"

enum { TOKENS = 7 };

// The logits of TOKENS tokens, in the first of n slots, while the others take other tokens.
UNTRACED static void logits_of(const Model *model, int n, int context, float logits[TOKENS][V]) {
    char error[ERROR_SIZE];
    const int slots[] = {0, 1};
    Batch batch;
    PROMISE(batch_new(&batch, model, n, context, error), "%s", error);
    for (int s = 0; s < n; s++) batch_begin(&batch, s);
    for (int t = 0; t < TOKENS; t++) {
        const int tokens[] = {(t * 37 + context) % V, (t * 59 + 1) % V};
        batch_step(&batch, slots, n, tokens);
        memcpy(logits[t], row(batch.logits, 0), sizeof logits[t]);
    }
    planted(batch.memory, (size_t)batch_size(model, n, context) + 64);
    batch_free(&batch);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    const uint32_t hash = hash_of(input, size);
    const int context = 1 + (int)(hash % 5);
    static float alone[TOKENS][V], beside[TOKENS][V];
    char error[ERROR_SIZE] = "";
    Model model;
    if (!model_load(&model, file_of(input, size), (Precision)(hash / 5 % 3), error)) {
        promise_sentence(error);
        PROMISE(!model.memory && !model.gpt.layers && !model.lstm.layers, "something is left of a model that is none");
        return 0;
    }
    PROMISE(model.bytes > 0 && *model.about, "nothing is told about it");
    logits_of(&model, 1, context, alone);
    logits_of(&model, 2, context, beside);
    for (int t = 0; t < TOKENS; t++) {
        const bool finite = row_finite(alone[t], V);
        PROMISE(finite == row_finite(beside[t], V), "token %d is finite once", t);
        PROMISE(!finite || !memcmp(alone[t], beside[t], sizeof alone[t]), "token %d differs beside another song", t);
    }
    model_free(&model);
    return 0;
}
