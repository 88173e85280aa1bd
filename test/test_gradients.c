// Every gradient of the Transformer against central differences, in double, with dropout on: small odd shapes with
// several layers, more positions than relative distances, sizes that are no multiple of a vector, a tile or each other.
// Compile with -DREAL=double.
#define TESTING
#include "../dev/train_gpt_music.c"

#include "check.h"

// The mean loss of the batch in m->tokens with step 0's dropout.
static double loss_of(Gpt *m) {
    gpt_forward(m, m->config.B, 0);
    return gpt_loss(m, m->config.B * m->shape.T, false);
}

static double norm(const real *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

// The error of a tensor is ||a - b|| / max(||b||, 1e-3 of the largest tensor's norm): the key bias's gradient is
// exactly zero.
static void check_gradients(ModelConfig config) {
    const int *s = config.sizes;
    char error[ERROR_SIZE];
    Gpt *m = (Gpt *)gpt_create(&config, error);
    CHECK(m != NULL, "%s", error);
    if (!m) return;
    real *params = m->state[STATE_PARAMS];
    params_init(&m->layout, config.seed, params);
    const PhiloxKey key = philox_key(config.seed, PHILOX_BENCH, 0);
    for (int64_t i = 0; i < m->layout.size; i++) params[i] += (real)(0.2 * philox_normal(key, (uint64_t)i)); // no zeros
    const int R = config.B * config.T;
    for (int r = 0; r < R; r++) {
        m->tokens[r] = (uint8_t)(philox(key, (uint32_t)r, 1, 0, 0).x[0] % V);
        m->targets[r] = (uint8_t)(philox(key, (uint32_t)r, 2, 0, 0).x[0] % V);
    }
    gpt_forward(m, config.B, 0);
    gpt_loss(m, R, true);
    gpt_backward(m, config.B, 0);

    size_t bytes = (size_t)m->layout.size * sizeof(real);
    real *gradient = (real *)malloc(bytes), *difference = (real *)malloc(bytes);
    memcpy(gradient, m->state[STATE_GRADS], bytes);
    memset(difference, 0, bytes);
    double largest = 0;
    for (int k = 0; k < m->layout.n; k++) {
        const ParamTensor *tensor = &m->layout.list[k];
        for (int64_t i = tensor->offset; i < tensor->offset + tensor->count; i++) {
            // fourth order: the error of the second-order formula with h is removed by that with 2h
            const real h = (real)3e-5, old = params[i];
            double slope[2];
            for (int wide = 0; wide < 2; wide++) {
                params[i] = old + (real)(1 + wide) * h;
                double above = loss_of(m);
                params[i] = old - (real)(1 + wide) * h;
                slope[wide] = (above - loss_of(m)) / (2 * (1 + wide) * (double)h);
            }
            params[i] = old;
            difference[i] = (real)((4 * slope[0] - slope[1]) / 3);
        }
        double size = norm(difference + tensor->offset, tensor->count);
        largest = size > largest ? size : largest;
    }
    printf("layers %d width %d heads %d hidden %d rel %d, batch %d window %d dropout %g: %lld parameters\n",
           s[GPT_LAYERS], s[GPT_WIDTH], s[GPT_HEADS], s[GPT_HIDDEN], s[GPT_REL], config.B, config.T, config.dropout,
           (long long)m->layout.count);
    printf("  %-28s %12s %12s\n", "tensor", "norm", "error");
    for (int k = 0; k < m->layout.n; k++) {
        const ParamTensor *tensor = &m->layout.list[k];
        const real *a = gradient + tensor->offset, *b = difference + tensor->offset;
        double size = norm(b, tensor->count), sum = 0;
        for (int64_t i = 0; i < tensor->count; i++) sum += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
        double relative = sqrt(sum) / fmax(size, 1e-3 * largest);
        printf("  %-28s %12.3e %12.3e\n", tensor->name, size, relative);
        CHECK(relative < 1e-6, "gradient of %s is off by %g", tensor->name, relative);
    }
    free(gradient);
    free(difference);
    gpt_destroy(m);
}

int main(void) {
#ifdef _OPENMP
    omp_set_num_threads(1); // so small that threads would spend their time waiting
#endif
    // T above the relative distances, one tile of queries; head size 3
    check_gradients((ModelConfig){{3, 12, 4, 10, 5}, 2, 11, 0.5, 1, "fp32", 1});
    // several tiles of queries and panels of keys, the last ones partial; head size 5
    check_gradients((ModelConfig){{2, 10, 2, 7, 9}, 1, 37, 0.25, 2, "fp32", 1});
    // a head wider than a vector, more distances than positions, one layer, no dropout
    check_gradients((ModelConfig){{1, 20, 1, 9, 24}, 1, 18, 0, 3, "fp32", 1});
    // a single position
    check_gradients((ModelConfig){{2, 8, 2, 8, 3}, 3, 1, 0.5, 4, "fp32", 1});
    return check_report("gradients");
}
