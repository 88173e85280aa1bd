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

void stage_layernorm(const StageNorm *s) {
    const Config config = {.T = s->T, .dropout = 0.5, .seed = STAGE_SEED};
    const int R = s->R, C = s->C;
    TensorList all = {0};
    Tensor sum, y = tensor(s->y, R, C), x = tensor(s->x, R, C), branch = tensor(s->branch, R, C);
    Tensor w = tensor(s->w, C, 1), b = tensor(s->b, C, 1);
    tensor_add(&all, &sum, R, C, "", 0);
    y.grad = (double *)s->dy;
    x.grad = s->dx;
    branch.grad = s->dbranch;
    w.grad = s->dw;
    b.grad = s->db;
    residual_dropout_forward(&sum, &x, &branch, &config, STAGE_STEP, STAGE_SITE);
    layernorm_forward(&y, &sum, &w, &b);
    layernorm_backward(&y, &sum, &w, &b); // gradients are added to, and come as zeros
    residual_dropout_backward(&sum, &x, &branch, &config, STAGE_STEP, STAGE_SITE);
    tensors_free(&all);
}

void stage_attention(double *out, double *scores, const double *below, const double *qkv, const double *rel, int T,
                     int C, int NH, int D) {
    TensorList all = {0};
    Tensor att, out_t = tensor(out, T, C), scores_t = tensor(scores, NH * T, T), below_t = tensor(below, NH * T, T);
    Tensor qkv_t = tensor(qkv, T, 3 * C), rel_t = tensor(rel, D, C / NH);
    tensor_add(&all, &att, NH * T, T, "", 0);
    attention_forward(&out_t, &att, &scores_t, &below_t, &qkv_t, &rel_t);
    tensors_free(&all);
}
