// What all CPU models share: their flat arrays, the batch, the running loss, dropout masks, and the part of the
// recipe's interface (recipe/model.h, ModelSpec) that follows from these. What makes a model, its parameters, stages,
// forward, backward and update, is in its own file.
#pragma once

#include "base/params.h"
#include "cpu/team.h"

// What --precision may be. bf16 rounds the operands of the large products (cpu/matmul.h). It is faster where the
// processor multiplies pairs of bf16, and slower elsewhere.
#define HOST_PRECISIONS (sizeof(real) == sizeof(double) ? "fp64" : "fp32|bf16")

typedef struct { // the first member of a model
    ModelConfig config;
    ParamLayout layout;
    Team team;
    real *state[STATES];       // by STATE_*: parameters, their averages, their gradients
    int64_t *starts;           // [B] where the windows of the batch begin
    int *shifts;               // [B] by how many semitones they are transposed
    uint8_t *tokens, *targets; // [B*T], in the model's own order
    uint8_t *decays;           // see params_decays
    void *memory;              // one block for all these arrays, the activations and all scratch
    real *kept;                // activations that are not kept otherwise, for a dump, or NULL
    const Dataset *data;
    double loss_sum;
    int64_t bad_step;
} HostModel;

static inline void host_destroy(void *model) {
    HostModel *m = (HostModel *)model;
    if (!m) return;
    layout_free(&m->layout);
    free(m->memory);
    free(m->kept);
    free(m);
}

// Points the model's members into the block of memory at base, its own ones by carve, and returns the block's elements;
// with base NULL it only counts.
static inline double host_carve(HostModel *m, void (*carve)(void *model, Arena *arena), real *base) {
    const double n = (double)m->layout.size, B = m->config.B, R = B * m->config.T, each = sizeof(real);
    Arena arena = {base, 0};
    for (int i = 0; i < STATES; i++) {
        if (i != STATE_AVERAGE || m->config.average > 0) m->state[i] = arena_take(&arena, n);
    }
    m->starts = (int64_t *)arena_take(&arena, B * sizeof *m->starts / each);
    m->shifts = (int *)arena_take(&arena, B * sizeof *m->shifts / each);
    m->tokens = (uint8_t *)arena_take(&arena, R / each);
    m->targets = (uint8_t *)arena_take(&arena, R / each);
    m->decays = (uint8_t *)arena_take(&arena, n / 16 / each);
    carve(m, &arena);
    return arena.used;
}

// A new model of `size` bytes, whose first member is a HostModel. carve() points its own members into an arena. The
// rest is zero. Release it with host_destroy(). NULL, and a sentence, if there cannot be one.
static inline void *host_create(size_t size, const ModelConfig *config, void (*layout)(const int *, ParamLayout *),
                                void (*carve)(void *model, Arena *arena), char *error) {
    HostModel *m = (HostModel *)allocate("the model", 1, size, error);
    if (!m) return NULL;
    m->config = *config;
    m->team = team_of(config->threads);
    m->bad_step = -1;
    layout(config->sizes, &m->layout);
    m->memory = allocate("the model and its activations", host_carve(m, carve, NULL), sizeof(real), error);
    if (!m->memory) {
        host_destroy(m);
        return NULL;
    }
    host_carve(m, carve, (real *)m->memory);
    params_decays(&m->layout, m->decays);
    return m;
}

// The tokens and targets of n windows, transposed unless shifts is NULL. Time-major, the rows of position 0 come first,
// then those of position 1; else the rows of window 0 come first.
static inline void host_load_windows(HostModel *m, const Dataset *data, const int64_t *starts, const int *shifts, int n,
                                     bool time_major) {
    const int T = m->config.T;
    for (int r = 0; r < n * T; r++) {
        const int b = time_major ? r % n : r / T, t = time_major ? r / n : r % T;
        const uint8_t *token = data->tokens + starts[b] + t;
        m->tokens[r] = (uint8_t)transposed(token[0], shifts ? shifts[b] : 0);
        m->targets[r] = (uint8_t)transposed(token[1], shifts ? shifts[b] : 0);
    }
}

// Those of a planned step.
static inline void host_load_batch(HostModel *m, const StepPlan *plan, bool time_major) {
    const ModelConfig *config = &m->config;
    epoch_batch(m->data, config->seed, plan->epoch, plan->index, config->B, m->starts);
    epoch_shifts(m->data, config->seed, plan->epoch, plan->index, config->B, m->starts, config->transpose, m->shifts);
    host_load_windows(m, m->data, m->starts, m->shifts, config->B, time_major);
}

// Adds the loss of a step and returns true, if the loss and the gradients are finite; else the step is the bad one.
static inline bool host_count_step(HostModel *m, int64_t step, double loss) {
    if (!isfinite(loss) || !all_finite(m->state[STATE_GRADS], m->layout.size)) {
        m->bad_step = step;
        return false;
    }
    m->loss_sum += loss;
    return true;
}

static inline double mean_loss(const real *losses, int R) {
    double sum = 0;
    for (int r = 0; r < R; r++) sum += (double)losses[r];
    return sum / R;
}

static inline real *host_state(void *model, int which) { return ((HostModel *)model)->state[which]; }

static inline void host_state_changed(void *model) { (void)model; } // they are the model's own arrays

static inline void host_set_data(void *model, const Dataset *train) { ((HostModel *)model)->data = train; }

static inline TrainLoss host_get_loss(void *model) {
    const HostModel *m = (const HostModel *)model;
    return (TrainLoss){m->loss_sum, m->bad_step};
}

static inline void host_set_loss(void *model, double sum) {
    HostModel *m = (HostModel *)model;
    m->loss_sum = sum;
    m->bad_step = -1;
}

// What all CPU models' ModelSpecs have in common.
#define HOST_MODEL_SPEC                                                                                                \
    .device = "cpu", .precisions = HOST_PRECISIONS, .destroy = host_destroy, .state = host_state,                      \
    .state_changed = host_state_changed, .set_data = host_set_data, .get_loss = host_get_loss,                         \
    .set_loss = host_set_loss

// ---- dropout

typedef struct { // at one place of the model in one step; p = 0: none
    PhiloxKey key;
    uint32_t step;
    double p;
} Dropout;

// Of the model's place number `site`; step < 0: none.
static inline Dropout host_dropout(const HostModel *m, int64_t step, int site) {
    Dropout dropout = {philox_key(m->config.seed, PHILOX_DROPOUT, (uint32_t)site), (uint32_t)step, m->config.dropout};
    if (step < 0) dropout.p = 0;
    return dropout;
}

// Elements of a thread's scratch for dropout_row.
static inline size_t dropout_scratch_size(int C) { return 2 * (((size_t)C + 15) / 16 * 16); }

// mask[c] = 1/(1-p) or 0 for channel c of position (b, t), by Philox: every device makes the same mask. mask is the
// beginning of a thread's scratch (dropout_scratch_size), whose second half holds Philox's words.
static inline void dropout_row(real *mask, Dropout dropout, int b, int t, int C) {
    const uint32_t threshold = (uint32_t)(dropout.p * 4294967296.0);
    const real scale = (real)(1 / (1 - dropout.p));
    uint32_t *words = (uint32_t *)(mask + (C + 15) / 16 * 16);
    if (dropout.p > 0) philox_row(dropout.key, (C + 3) / 4, (uint32_t)t, (uint32_t)b, dropout.step, words);
    for (int c = 0; c < C; c++) mask[c] = dropout.p == 0 || words[c] >= threshold ? scale : 0;
}
