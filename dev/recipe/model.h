// What a model file (train_gpt_music.c, train_lstm_music.cu, ...) includes: the interface between a model and the
// recipe that trains it. The file fills in one ModelSpec and ends in
//
//     #ifndef TESTING
//     #include "recipe/train.h"
//     int main(int argc, char **argv) { return train_main(argc, argv, &gpt_spec); }
//     #endif
//
// C11 and C++17. Include it before any system header.
#pragma once

#include "base/params.h"

typedef struct {
    const char *name; // "gpt": the default --out out/gpt, the metadata model=gpt, the bench line
    const SizeFlag *size_flags;
    int n_sizes;
    double lr, lr_decay, lr_min;
    const char *const (*tuned)[2]; // the flags of --recipe tuned with their values; {NULL, NULL} ends the list
    // The configuration can be built (say, width is a multiple of heads), or false and a sentence that names the flag.
    bool (*check_sizes)(const ModelConfig *, char *error);
    // The sizes of the model in the file, from its tensors' names and shapes alone.
    bool (*sizes_of_file)(const StFile *, int *sizes, char *error);
    double (*step_flops)(const ModelConfig *); // model FLOPs of one training step

    const char *device;     // "cpu", "cuda", "emu"
    const char *precisions; // what --precision may be, the default first: "fp32" or "bf16|fp32"
    void (*destroy)(void *model);
    real *(*state)(void *model, int which);              // host copy as of now, in layout order; the model's own
    void (*state_changed)(void *model);                  // the recipe wrote into those arrays: take them over
    void (*set_data)(void *model, const Dataset *train); // called once before the first step
    // Batch by epoch_batch(seed, plan->epoch, plan->index), forward with dropout, backward, Adamax with t = step + 1.
    // From the first loss or gradient that is not finite on, updates are skipped. May return before the device is done.
    // The gradients stay readable until the next step.
    void (*train_step)(void *model, const StepPlan *plan);
    TrainLoss (*get_loss)(void *model);        // waits for the device
    void (*set_loss)(void *model, double sum); // and forgets bad_step
    // Adds the losses of n windows (1 <= n <= B, at token positions starts[]) of the test set, without dropout.
    void (*eval_batch)(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add);
    // Evaluate with the average of the weights from now on, or with the weights. For models with an average.
    void (*use_average)(void *model, bool use);
    // The forward of a step and, where the loss is finite, the backward, without the update. Returns the loss.
    double (*gradients)(void *model, const StepPlan *plan);

    void (*layout)(const int *sizes, ParamLayout *out); // calls param_add for every tensor; out comes zeroed
    void *(*create)(const ModelConfig *, char *error);  // everything the model will ever allocate; NULL: a sentence
    // act.* in the order of the forward, then logits, of the last step; returns how many. It is called with NULL before
    // that step, to make room for what training alone would not keep; -1: there is no room.
    int (*activations)(void *model, Activation *list);
} ModelSpec;
