// What every model file is checked by, through its ModelSpec alone (dev/recipe/train.h), so that one writing serves all
// models and devices. Include it after the model file.
//   check_gradients   every gradient against central differences; for -DREAL=double
//   check_adamax      three updates against the formula
//   check_learning    a melody is learnt, to the same bytes on other threads; a number that is not finite is found
#ifndef MODEL_TEST_H
#define MODEL_TEST_H

#include "recipe/train.h"

#include "check.h"

#define SIZES(...) ((int[MAX_SIZES]){__VA_ARGS__})

// Of a run without weight decay, average and transposition, on one thread.
static inline ModelConfig model_config(int B, int T, double dropout, uint64_t seed, const char *precision,
                                       const int *sizes) {
    ModelConfig config = {.B = B, .T = T, .dropout = dropout, .seed = seed, .precision = precision, .threads = 1};
    memcpy(config.sizes, sizes, sizeof config.sizes);
    return config;
}

typedef struct {
    const ModelSpec *spec;
    ModelConfig config;
    ParamLayout layout;
    Dataset data; // random tokens
    StepPlan plan;
    void *model;
    real *params;              // the model's
    uint8_t *tokens, *targets; // [B,T] of the plan's batch
} ModelTest;

static inline void model_test(ModelTest *m, const ModelSpec *spec, ModelConfig config, double noise) {
    char error[ERROR_SIZE] = "";
    memset(m, 0, sizeof *m);
    m->spec = spec;
    m->config = config;
    spec->layout(config.sizes, &m->layout);
    bool ok = spec->check_sizes(&config, error) && dataset_random(&m->data, config.T + 65, config.T, 1, error);
    m->model = ok ? spec->create(&config, error) : NULL;
    CHECK(m->model != NULL, "%s", error);
    if (!m->model) exit(check_report(spec->name));
    m->params = spec->state(m->model, STATE_PARAMS);
    params_init(&m->layout, config.seed, m->params);
    PhiloxKey key = philox_key(config.seed, PHILOX_BENCH, 0); // so that biases are not 0, nor LayerNorm's weights 1
    for (int64_t i = 0; i < m->layout.size; i++) m->params[i] += (real)(noise * philox_normal(key, (uint64_t)i));
    spec->state_changed(m->model);
    spec->set_data(m->model, &m->data);
    spec->set_loss(m->model, 0);
    m->plan.step = 3;
    m->plan.lr = 1e-3;
    int64_t *starts = (int64_t *)malloc((size_t)config.B * sizeof *starts);
    m->tokens = (uint8_t *)malloc((size_t)config.B * (size_t)config.T);
    m->targets = (uint8_t *)malloc((size_t)config.B * (size_t)config.T);
    epoch_batch(&m->data, config.seed, m->plan.epoch, m->plan.index, config.B, starts);
    for (int b = 0; b < config.B; b++) {
        memcpy(m->tokens + (size_t)b * config.T, m->data.tokens + starts[b], (size_t)config.T);
        memcpy(m->targets + (size_t)b * config.T, m->data.tokens + starts[b] + 1, (size_t)config.T);
    }
    free(starts);
}

static inline void model_test_free(ModelTest *m) {
    m->spec->destroy(m->model);
    layout_free(&m->layout);
    dataset_close(&m->data);
    free(m->tokens);
    free(m->targets);
}

static inline void model_print(const ModelTest *m) {
    for (int i = 0; i < m->spec->n_sizes; i++) printf("%s %d ", m->spec->size_flags[i].flag, m->config.sizes[i]);
    printf("batch %d window %d dropout %g %s", m->config.B, m->config.T, m->config.dropout, m->config.precision);
}

static inline const ParamTensor *model_tensor(const ParamLayout *layout, const char *name) {
    for (int k = 0; k < layout->n; k++) {
        if (!strcmp(layout->list[k].name, name)) return &layout->list[k];
    }
    printf("FAIL there is no tensor %s\n", name);
    abort();
}

static inline double model_norm(const real *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

// The error of a tensor is ||a - b|| / max(||b||, 1e-3 of the largest tensor's norm): some gradients, say that of the
// keys' bias, are exactly zero. Where a ReLU's sum is within 1e-5 of its kink, no difference tells the gradient: then
// another seed does.
static inline void check_gradients(const ModelSpec *spec, ModelConfig config) {
    ModelTest m;
    model_test(&m, spec, config, 0.2);
    size_t bytes = (size_t)m.layout.size * sizeof(real);
    real *gradient = (real *)malloc(bytes), *difference = (real *)calloc(1, bytes);
    spec->gradients(m.model, &m.plan);
    memcpy(gradient, spec->state(m.model, STATE_GRADS), bytes);
    double largest = 0;
    for (int k = 0; k < m.layout.n; k++) {
        const ParamTensor *tensor = &m.layout.list[k];
        for (int64_t i = tensor->offset; i < tensor->offset + tensor->count; i++) {
            const real h = (real)1e-5, old = m.params[i];
            double loss[2];
            for (int side = 0; side < 2; side++) {
                m.params[i] = side ? old + h : old - h;
                spec->state_changed(m.model);
                loss[side] = spec->gradients(m.model, &m.plan);
            }
            m.params[i] = old;
            difference[i] = (real)((loss[1] - loss[0]) / (2 * (double)h));
        }
        raise_to(&largest, model_norm(difference + tensor->offset, tensor->count));
    }
    model_print(&m);
    printf(": %lld parameters\n  %-28s %12s %12s\n", (long long)m.layout.count, "tensor", "norm", "error");
    for (int k = 0; k < m.layout.n; k++) {
        const ParamTensor *tensor = &m.layout.list[k];
        const real *a = gradient + tensor->offset, *b = difference + tensor->offset;
        double size = model_norm(b, tensor->count), sum = 0;
        for (int64_t i = 0; i < tensor->count; i++) sum += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
        double relative = sqrt(sum) / fmax(size, 1e-3 * largest);
        printf("  %-28s %12.3e %12.3e\n", tensor->name, size, relative);
        CHECK(relative < 1e-6, "gradient of %s is off by %g", tensor->name, relative);
    }
    free(gradient);
    free(difference);
    model_test_free(&m);
}

// Three steps of the model against Adamax's formulas on its own gradients.
static inline void check_adamax(const ModelSpec *spec, ModelConfig config) {
    ModelTest m;
    model_test(&m, spec, config, 0);
    const size_t n = (size_t)m.layout.size;
    double *p = (double *)calloc(3 * n, sizeof *p), *avg = p + n, *inf = avg + n, worst = 0;
    for (size_t i = 0; i < n; i++) p[i] = (double)m.params[i];
    for (int t = 1; t <= 3; t++) {
        StepPlan plan = {t - 1, 0, t - 1, 0.01};
        spec->train_step(m.model, &plan);
        CHECK(spec->get_loss(m.model).bad_step < 0, "step %d went wrong", t);
        const real *grads = spec->state(m.model, STATE_GRADS), *now = spec->state(m.model, STATE_PARAMS);
        for (size_t i = 0; i < n; i++) {
            double g = (double)grads[i];
            avg[i] = 0.9 * avg[i] + 0.1 * g;
            inf[i] = fmax(0.999 * inf[i], fabs(g) + 1e-8);
            p[i] -= 0.01 / (1 - pow(0.9, t)) * avg[i] / inf[i];
            raise_to(&worst, fabs((double)now[i] - p[i]));
        }
    }
    CHECK(worst < 2e-6, "Adamax is off by %g", worst); // steps of about 0.01, weights of up to 8
    free(p);
    model_test_free(&m);
}

// Trains on a melody that repeats: the loss must fall from about ln 153 to almost nothing, to the same bytes with other
// threads. With AddressSanitizer it takes an eighth of the steps, after which the loss has fallen somewhat. At last
// `tensor` gets a number so large that `activation` is not finite, which must be found.
static inline void check_learning(const ModelSpec *spec, ModelConfig config, int64_t steps, double lr,
                                  const char *tensor, const char *activation) {
    enum { N = 400 };
    const double learnt = check_brief() ? 4 : 0.1;
    if (check_brief()) steps /= 8;
    static uint8_t tokens[N];
    const uint8_t phrase[] = {1, 60, 124, 5, 64, 124, 9, 67, 128, 17, 0, 1, 55, 136, 9, 72, 122};
    for (int i = 0; i < N; i++) tokens[i] = phrase[i % (int)sizeof phrase];
    char folder[256], path[300], error[ERROR_SIZE];
    check_folder(folder);
    snprintf(path, sizeof path, "%s/train.safetensors", folder);
    const int64_t pieces[2] = {0, N};
    Dataset data;
    CHECK(dataset_save(path, tokens, N, pieces, 1, "melody.mid", error) && dataset_open(&data, path, config.T, error),
          "%s", error);
    unlink(path);
    rmdir(folder);
    const int threads[] = {1, 3};
    real *weights[2];
    double last[2];
    for (int run = 0; run < 2; run++) {
#ifdef _OPENMP
        omp_set_num_threads(threads[run]);
#endif
        config.threads = threads[run];
        ModelTest m;
        model_test(&m, spec, config, 0);
        spec->set_data(m.model, &data);
        double before = 0;
        for (int64_t step = 0; step < steps; step++) {
            StepPlan plan = {step, step / 50, step % 50, lr};
            spec->train_step(m.model, &plan);
            if (step == 0) before = spec->get_loss(m.model).sum;
            if (step == steps - 11) spec->set_loss(m.model, 0);
        }
        last[run] = spec->get_loss(m.model).sum / 10;
        EvalLoss eval = {{0}, {0}};
        int64_t starts[4] = {0, 1, 50, 99};
        spec->eval_batch(m.model, &data, starts, min_int(config.B, 4), &eval);
        spec->eval_batch(m.model, &data, starts, 1, &eval);
        int64_t count;
        double mean = eval_mean(&eval, &count);
        if (run == 0) {
            printf("learning: loss %.3f before, %.4f after %d steps, %.4f in evaluation\n", before, last[0], (int)steps,
                   mean);
        }
        CHECK(before > 4.5 && before < 7, "loss %g before training", before);
        CHECK(last[run] < learnt, "loss %g after training", last[run]);
        CHECK(count == (min_int(config.B, 4) + 1) * config.T && mean < learnt / 2, "evaluation: loss %g of %d tokens",
              mean, (int)count);
        size_t bytes = (size_t)m.layout.size * sizeof(real);
        weights[run] = (real *)malloc(bytes);
        memcpy(weights[run], spec->state(m.model, STATE_PARAMS), bytes);
        if (run == 1) {
            CHECK(!memcmp(weights[0], weights[1], bytes), "1 and %d threads give other weights", threads[1]);
            CHECK(!memcmp(&last[0], &last[1], sizeof *last), "1 and %d threads give other losses", threads[1]);

            // a number that is not finite: no update from there on, and the culprit is named
            StepPlan plan = {steps, 3, 10, lr};
            char wanted[128];
            CHECK(!diagnose(spec, m.model, &m.layout, &plan, error), "found something wrong with a good model: %s",
                  error);
            real *spot = m.params + model_tensor(&m.layout, tensor)->offset + 3, old = *spot;
            *spot = (real)3e38; // finite, but what comes of it is not
            spec->state_changed(m.model);
            spec->train_step(m.model, &plan);
            CHECK(spec->get_loss(m.model).bad_step == steps, "a loss that is not finite went unnoticed");
            CHECK(diagnose(spec, m.model, &m.layout, &plan, error) && strstr(error, activation), "diagnosis: %s",
                  error);
            CHECK(*spot == (real)3e38 && spec->state(m.model, STATE_PARAMS)[0] == weights[1][0],
                  "a bad step changed the weights");
            *spot = (real)NAN;
            spec->state_changed(m.model);
            snprintf(wanted, sizeof wanted, "param.%s", tensor);
            CHECK(diagnose(spec, m.model, &m.layout, &plan, error) && strstr(error, wanted), "diagnosis: %s", error);
            *spot = old;
            spec->state_changed(m.model);
            spec->set_loss(m.model, 0);
            spec->train_step(m.model, &plan);
            CHECK(spec->get_loss(m.model).bad_step < 0, "a good step is called bad");
        }
        model_test_free(&m);
    }
    free(weights[0]);
    free(weights[1]);
    dataset_close(&data);
}

#endif
