// What both plain models are checked by. Include it after a plain model's file, with its type as Model and its
// functions as MODEL(create), MODEL(forward) and so on.
#ifndef PLAIN_TEST_H
#define PLAIN_TEST_H

#include "check.h"

static double norm(const double *a, const double *b, int n) { // of a - b; b may be NULL
    double sum = 0;
    for (int i = 0; i < n; i++) sum += pow(a[i] - (b ? b[i] : 0), 2);
    return sqrt(sum);
}

// Every gradient against differences of the loss. The parameters get noise, so that biases are not 0 and LayerNorm's
// weights not 1. (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h is off by about h^4, and by the rounding of f divided by
// h. The error of a tensor is ||a - b|| / max(||b||, 1e-3 of the largest tensor's norm): some gradients, say that of
// the keys' bias, are exactly zero. Where the input of a ReLU is within 2h of its kink no difference tells the
// gradient: then another seed does.
static void check_plain(Config config) {
    const double h = 2e-4;
    const int R = config.B * config.T;
    const int64_t step = 3;
    int *inputs = malloc(2 * (size_t)R * sizeof *inputs), *targets = inputs + R;
    const PhiloxKey key = philox_key(config.seed, PHILOX_BENCH, 0);
    for (int r = 0; r < 2 * R; r++) inputs[r] = (int)(philox(key, (uint32_t)r, 0, 0, 1).x[0] % V);
    Model m;
    MODEL(create)(&m, config);
    for (int k = 0; k < m.all.n_params; k++) {
        const Tensor *t = m.all.list[k];
        for (int i = 0; i < t->rows * t->columns; i++) {
            t->value[i] += 0.2 * philox_normal(key, (uint64_t)(1000000 * k + i));
        }
    }
    double largest = 0, worst = 0;
    for (int k = 0; k < m.all.n_params; k++) {
        const Tensor *t = m.all.list[k];
        double *difference = t->exp_avg; // which stands idle here
        for (int i = 0; i < t->rows * t->columns; i++) {
            const double old = t->value[i];
            double loss[5];
            for (int side = -2; side <= 2; side++) {
                t->value[i] = old + side * h;
                if (side) loss[2 + side] = MODEL(forward)(&m, inputs, targets, step);
            }
            t->value[i] = old;
            difference[i] = (8 * (loss[3] - loss[1]) - (loss[4] - loss[0])) / (12 * h);
        }
        raise_to(&largest, norm(difference, NULL, t->rows * t->columns));
    }
    MODEL(forward)(&m, inputs, targets, step);
    MODEL(backward)(&m, inputs, targets, step);
    MODEL(backward)(&m, inputs, targets, step); // which must begin anew
    const char *worst_name = "";
    for (int k = 0; k < m.all.n_params; k++) {
        const Tensor *t = m.all.list[k];
        const int n = t->rows * t->columns;
        const double error = norm(t->grad, t->exp_avg, n) / fmax(norm(t->exp_avg, NULL, n), 1e-3 * largest);
        CHECK(error < 1e-7, "gradient of %s is off by %g", t->name, error);
        if (error > worst) {
            worst = error;
            worst_name = t->name;
        }
    }
    printf("batch %d window %d dropout %g, %d tensors: off by at most %.1e, %s\n", config.B, config.T, config.dropout,
           m.all.n_params, worst, worst_name);
    MODEL(free)(&m);
    free(inputs);
}

// Two updates by hand: of the gradient 2, then of 0.
static void check_plain_update(Config config) {
    const double moved[] = {0, 0.1, 0.1 + 0.1 / 0.19 * 0.18 / 1.998};
    double worst = 0;
    Model m, before;
    MODEL(create)(&m, config);
    MODEL(create)(&before, config);
    for (int t = 1; t <= 2; t++) {
        for (int k = 0; k < m.all.n_params; k++) {
            const Tensor *p = m.all.list[k];
            for (int i = 0; i < p->rows * p->columns; i++) p->grad[i] = t == 1 ? 2 : 0;
        }
        adamax(&m.all, 0.1, t);
        for (int k = 0; k < m.all.n_params; k++) {
            const Tensor *p = m.all.list[k], *old = before.all.list[k];
            for (int i = 0; i < p->rows * p->columns; i++) {
                raise_to(&worst, fabs(old->value[i] - p->value[i] - moved[t]));
            }
        }
    }
    CHECK(worst < 1e-9, "Adamax is off by %g", worst);
    MODEL(free)(&m);
    MODEL(free)(&before);
}

#endif
