// What a trainer does but training: --dump writes one whole step, --bench times some, and where a number is not finite
// the tensor that it came from is looked for.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/checkpoint.h"

static inline bool blame(char *error, const char *kind, const char *tensor) {
    fail(error, "%s%s is the first tensor that is not finite", kind, tensor);
    return true;
}

// Runs a bad step again and writes which tensor is the first one that is not finite, as a clause: parameters, then
// activations in the order of the forward, then gradients in that of the backward. False: nothing was found.
static inline bool diagnose(const ModelSpec *spec, void *model, const ParamLayout *layout, const StepPlan *plan,
                            char *error) {
    const ParamTensor *bad = params_not_finite(layout, spec->state(model, STATE_PARAMS));
    if (bad) return blame(error, "param.", bad->name);
    int count = spec->activations(model, NULL);
    Activation *list = count > 0 ? (Activation *)calloc((size_t)count, sizeof *list) : NULL;
    if (!list) return false;
    double loss = spec->gradients(model, plan);
    spec->activations(model, list);
    bool found = false;
    for (int i = 0; i < count && !found; i++) {
        int64_t n = 1;
        for (int d = 0; d < list[i].rank; d++) n *= list[i].shape[d];
        if (!all_finite(list[i].data, n)) found = blame(error, "", list[i].name);
    }
    free(list);
    if (!found && !isfinite(loss)) found = blame(error, "", "loss");
    const real *grads = spec->state(model, STATE_GRADS);
    for (int k = layout->n - 1; k >= 0 && !found; k--) {
        const ParamTensor *tensor = &layout->list[k];
        if (!all_finite(grads + tensor->offset, tensor->count)) found = blame(error, "grad.", tensor->name);
    }
    return found;
}

// One training step, the next of this run, with all its tensors: what two implementations are compared by.
static inline bool run_dump(TrainRun *run) {
    const ModelSpec *spec = run->spec;
    const ModelConfig *config = &run->config;
    int64_t B = config->B, T = config->T;
    int n_activations = spec->activations(run->model, NULL);
    if (n_activations < 0) return fail(run->error, "--dump: there is not enough memory to keep the activations");
    // What the step begins with: the weights and, after step 0, Adamax's averages, which are zero before.
    const int states = run->step > 0 ? last_state(config) + 1 : 1;
    const size_t size = (size_t)run->layout.size;
    Activation *activations = (Activation *)must_have(calloc((size_t)n_activations + 1, sizeof *activations));
    real *before = (real *)must_have(malloc((size_t)states * size * sizeof *before));
    int64_t *starts = (int64_t *)must_have(malloc((size_t)B * sizeof *starts));
    int *shifts = (int *)must_have(malloc((size_t)B * sizeof *shifts));
    int64_t *input = (int64_t *)must_have(malloc((size_t)(2 * B * T) * sizeof *input));
    Draft draft;
    meta_model(run, &draft);
    for (int k = 0; k < states; k++) {
        real *flat = before + (size_t)k * size;
        memcpy(flat, spec->state(run->model, STATE_PARAMS + k), size * sizeof *flat);
        draft_params(&draft, &run->layout, k ? state_prefixes[k] : "param.", flat);
    }
    StepPlan plan = plan_of(run, run->step);
    spec->set_loss(run->model, 0);
    spec->train_step(run->model, &plan);
    TrainLoss result = spec->get_loss(run->model);
    real loss = (real)result.sum;
    epoch_batch(&run->train, config->seed, plan.epoch, plan.index, config->B, starts);
    epoch_shifts(&run->train, config->seed, plan.epoch, plan.index, config->B, starts, config->transpose, shifts);
    for (int64_t i = 0; i < B * T; i++) {
        const uint8_t *token = run->train.tokens + starts[i / T] + i % T;
        input[i] = transposed(token[0], shifts[i / T]);
        input[B * T + i] = transposed(token[1], shifts[i / T]);
    }
    draft_params(&draft, &run->layout, "new.", spec->state(run->model, STATE_PARAMS));
    if (config->average > 0) {
        draft_params(&draft, &run->layout, "new.average.", spec->state(run->model, STATE_AVERAGE));
    }
    draft_params(&draft, &run->layout, "grad.", spec->state(run->model, STATE_GRADS));
    spec->activations(run->model, activations);
    for (int i = 0; i < n_activations; i++) {
        const Activation *a = &activations[i];
        draft_tensor(&draft, "", a->name, REAL_TYPE, a->rank, a->shape, a->data);
    }
    const int64_t batch_shape[] = {B, T}, one[] = {1};
    draft_tensor(&draft, "", "input", ST_I64, 2, batch_shape, input);
    draft_tensor(&draft, "", "target", ST_I64, 2, batch_shape, input + B * T);
    draft_tensor(&draft, "", "loss", REAL_TYPE, 1, one, &loss);
    meta_add(&draft, "dropout", "%.17g", config->dropout);
    meta_add(&draft, "lr", "%.17g", warmed_lr(plan.lr, config->warmup, plan.step));
    meta_add(&draft, "weight_decay", "%.17g", config->weight_decay);
    meta_add(&draft, "average", "%.17g", config->average);
    meta_add(&draft, "transpose", "%d,%d", config->transpose[0], config->transpose[1]);
    bool ok = draft_write(&draft, run->o.dump, run->error);
    free(activations);
    free(before);
    free(starts);
    free(shifts);
    free(input);
    if (ok && result.bad_step >= 0) {
        char why[ERROR_SIZE] = "";
        diagnose(spec, run->model, &run->layout, &plan, why);
        return fail(run->error, "step %lld: the loss or a gradient is not finite (%.300s)", (long long)plan.step, why);
    }
    if (ok) print_line(stdout, "step %lld, loss %#.7g: %s", (long long)plan.step, (double)loss, run->o.dump);
    return ok;
}

// Times n steps, in runs of some 10 ms: a device works on one step while the host launches the next, as in training.
static inline bool run_bench(TrainRun *run) {
    enum { WARM_UP = 3 };
    const ModelSpec *spec = run->spec;
    const int64_t n = run->o.bench;
    double *ms = (double *)malloc((size_t)n * sizeof *ms);
    if (!ms) return fail(run->error, "--bench %lld: not enough memory for so many times", (long long)n);
    int64_t step = 0, done = 0, times = 0, run_length = 1;
    for (int64_t i = -WARM_UP; done < n; i++) {
        const int64_t steps = i < 0 ? 1 : run_length < n - done ? run_length : n - done;
        const double start = seconds_now();
        for (int64_t k = 0; k < steps; k++) {
            const StepPlan plan = plan_of(run, step++);
            spec->train_step(run->model, &plan);
        }
        spec->get_loss(run->model);
        const double took = 1e3 * (seconds_now() - start) / (double)steps;
        if (i == -1) run_length = 1 + (int64_t)(10 / fmax(took, 1e-3));
        if (i < 0) continue;
        ms[times++] = took;
        done += steps;
    }
    double middle = median(ms, (size_t)times), tokens = (double)run->config.B * run->config.T;
    char text[2][32];
    printf("%lld steps: fastest %s ms, slowest %s ms; peak memory %.0f MB\n", (long long)n, four_digits(text[0], ms[0]),
           four_digits(text[1], ms[times - 1]), peak_megabytes());
    printf("bench model=%s device=%s precision=%s batch=%d ms_per_step=%s tokens_per_s=%.0f gflop_per_s=%s\n",
           spec->name, spec->device, run->config.precision, run->config.B, four_digits(text[0], middle),
           tokens / middle * 1e3, four_digits(text[1], spec->step_flops(&run->config) / middle / 1e6));
    free(ms);
    return true;
}
