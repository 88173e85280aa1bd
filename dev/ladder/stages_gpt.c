// Stages of dev/plain/plain_gpt.c on arrays (stages.h).
#define main plain_gpt_main // which is called by nobody
#include "plain/plain_gpt.c"

#include "ladder/stages.h"

// A tensor around an array.
static Tensor tensor(const double *value, int rows, int columns) {
    return (Tensor){.rows = rows, .columns = columns, .value = (double *)value};
}

void stage_linear(double *y, const double *x, const double *w, const double *b, int R, int C, int OC) {
    Tensor out = tensor(y, R, OC), inp = tensor(x, R, C), weight = tensor(w, OC, C), bias = tensor(b, OC, 1);
    linear_forward(&out, &inp, &weight, &bias);
}
