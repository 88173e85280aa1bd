// What both plain models have: tensors with gradients, first weights, stages, Adamax, batches of music. The head of
// each model's file says how a backward works and what the letters mean.
//
// C11.
#ifndef PLAIN_H
#define PLAIN_H

#include "base/data.h"
#include "base/philox.h"

enum { V = DATA_TOKENS };

// ---- tensors

typedef struct {
    char name[64];             // as in the files that the trainers write
    int rows, columns;         // a vector has one column
    double *value, *grad;      // [rows, columns] the numbers and their gradients
    double *exp_avg, *exp_inf; // [rows, columns] what Adamax remembers of a parameter's gradients
} Tensor;

typedef struct { // all tensors of a model, the parameters first
    Tensor **list;
    int n, n_params;
    uint64_t seed; // of the parameters' first values
} TensorList;

// Makes t a tensor of zeros and puts it at the end of the list. A %d in the name becomes l, the number of the layer.
static inline void tensor_add(TensorList *all, Tensor *t, int rows, int columns, const char *name, int l) {
    const size_t n = (size_t)rows * (size_t)columns;
    *t = (Tensor){.rows = rows, .columns = columns, .value = must_have(calloc(4 * n, sizeof(double)))};
    t->grad = t->value + n;
    t->exp_avg = t->grad + n;
    t->exp_inf = t->exp_avg + n;
    snprintf(t->name, sizeof t->name, name, l);
    all->list = must_have(realloc(all->list, (size_t)(all->n + 1) * sizeof *all->list));
    all->list[all->n++] = t;
}

static inline void tensors_zero_grads(TensorList *all) {
    for (int k = 0; k < all->n; k++) {
        Tensor *t = all->list[k];
        for (int i = 0; i < t->rows * t->columns; i++) t->grad[i] = 0;
    }
}

static inline void tensors_free(TensorList *all) {
    for (int k = 0; k < all->n; k++) free(all->list[k]->value);
    free(all->list);
}

// ---- first values

typedef enum { NORMAL, UNIFORM, CONSTANT } Init;

// Makes t the next parameter and draws its first values: from N(0, scale^2), or between -scale and scale, or all of
// them are scale. Parameter number k draws from stream k of the seed's random numbers. The trainers keep floats, so the
// values are rounded to float.
static inline void param_add(TensorList *all, Tensor *t, int rows, int columns, const char *name, int l, Init init,
                             double scale) {
    const PhiloxKey key = philox_key(all->seed, PHILOX_INIT, (uint32_t)all->n_params++);
    tensor_add(all, t, rows, columns, name, l);
    for (int i = 0; i < rows * columns; i++) {
        const Philox4 words = philox(key, (uint32_t)i, 0, 0, 0);
        double draw = 1;
        if (init == NORMAL) draw = philox_normal(key, (uint64_t)i);
        if (init == UNIFORM) draw = 2 * philox_uniform(words.x[0], words.x[1]) - 1;
        t->value[i] = (float)(scale * draw);
    }
}

// ---- embedding: a token becomes its row of the table

static inline void embedding_forward(Tensor *out, Tensor *emb, const int *tokens) {
    const int R = out->rows, C = out->columns; // out [R,C], emb [V,C], tokens [R]
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) out->value[r * C + c] = emb->value[tokens[r] * C + c];
    }
}

static inline void embedding_backward(Tensor *out, Tensor *emb, const int *tokens) {
    const int R = out->rows, C = out->columns; // out [R,C], emb [V,C], tokens [R]
    for (int r = 0; r < R; r++) {              // out[r][c] = emb[tokens[r]][c]
        for (int c = 0; c < C; c++) emb->grad[tokens[r] * C + c] += out->grad[r * C + c];
    }
}

// ---- linear layer: out = inp w^T + b

static inline void linear_forward(Tensor *out, Tensor *inp, Tensor *w, Tensor *b) {
    const int R = out->rows, C = inp->columns, OC = out->columns; // inp [R,C], w [OC,C], b [OC], out [R,OC]
    for (int r = 0; r < R; r++) {
        const double *inp_r = inp->value + r * C;
        double *out_r = out->value + r * OC;
        for (int o = 0; o < OC; o++) {
            const double *w_o = w->value + o * C;
            double sum = b->value[o];
            for (int c = 0; c < C; c++) sum += inp_r[c] * w_o[c];
            out_r[o] = sum;
        }
    }
}

static inline void linear_backward(Tensor *out, Tensor *inp, Tensor *w, Tensor *b) {
    const int R = out->rows, C = inp->columns, OC = out->columns; // inp [R,C], w [OC,C], b [OC], out [R,OC]
    for (int r = 0; r < R; r++) {
        const double *inp_r = inp->value + r * C, *dout_r = out->grad + r * OC;
        double *dinp_r = inp->grad + r * C;
        for (int o = 0; o < OC; o++) {
            const double *w_o = w->value + o * C, dsum = dout_r[o]; // out_r[o] = sum
            double *dw_o = w->grad + o * C;
            for (int c = 0; c < C; c++) { // sum += inp_r[c] * w_o[c]
                dinp_r[c] += w_o[c] * dsum;
                dw_o[c] += inp_r[c] * dsum;
            }
            b->grad[o] += dsum; // sum = b[o]
        }
    }
}

// ---- ReLU: what is negative becomes zero

static inline void relu_forward(Tensor *out, Tensor *inp) {
    const int n = out->rows * out->columns; // out and inp have one shape
    for (int i = 0; i < n; i++) out->value[i] = inp->value[i] > 0 ? inp->value[i] : 0;
}

static inline void relu_backward(Tensor *out, Tensor *inp) {
    const int n = out->rows * out->columns; // out and inp have one shape
    // out[i] = inp[i] > 0 ? inp[i] : 0
    for (int i = 0; i < n; i++) inp->grad[i] += inp->value[i] > 0 ? out->grad[i] : 0;
}

// ---- LayerNorm (Ba et al., 2016): each row gets mean 0 and variance 1, then a learned weight w and bias b

// The mean of a row of C numbers and one over their standard deviation. 1e-5 keeps a row of equal numbers from a
// division by zero.
static inline void row_moments(const double *inp_r, int C, double *mean, double *rstd) {
    double sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += inp_r[c];
    *mean = sum / C;
    for (int c = 0; c < C; c++) squares += (inp_r[c] - *mean) * (inp_r[c] - *mean);
    *rstd = 1 / sqrt(squares / C + 1e-5);
}

static inline void layernorm_forward(Tensor *out, Tensor *inp, Tensor *w, Tensor *b) {
    const int R = out->rows, C = out->columns; // out, inp [R,C], w, b [C]
    for (int r = 0; r < R; r++) {
        const double *inp_r = inp->value + r * C;
        double *out_r = out->value + r * C, mean, rstd;
        row_moments(inp_r, C, &mean, &rstd);
        for (int c = 0; c < C; c++) out_r[c] = (inp_r[c] - mean) * rstd * w->value[c] + b->value[c];
    }
}

// With norm[c] = (inp[c] - mean) * rstd: a change of inp[c] changes norm[c] by rstd; it changes the mean by 1/C, which
// all numbers of the row feel; and it changes rstd by -rstd^2 norm[c] / C, which all of them feel too. Summed up:
//     dinp[c] = rstd (dnorm[c] - mean of dnorm - norm[c] * mean of (dnorm * norm))
static inline void layernorm_backward(Tensor *out, Tensor *inp, Tensor *w, Tensor *b) {
    const int R = out->rows, C = out->columns; // out, inp [R,C], w, b [C]
    for (int r = 0; r < R; r++) {
        const double *inp_r = inp->value + r * C, *dout_r = out->grad + r * C;
        double *dinp_r = inp->grad + r * C, mean, rstd, dnorm_mean = 0, dnorm_norm_mean = 0;
        row_moments(inp_r, C, &mean, &rstd);
        // pass 1: the parameters, and the two means
        for (int c = 0; c < C; c++) {
            const double norm = (inp_r[c] - mean) * rstd, dnorm = dout_r[c] * w->value[c];
            w->grad[c] += dout_r[c] * norm; // out_r[c] = norm * w[c] + b[c]
            b->grad[c] += dout_r[c];
            dnorm_mean += dnorm / C;
            dnorm_norm_mean += dnorm * norm / C;
        }
        // pass 2: the input
        for (int c = 0; c < C; c++) {
            const double norm = (inp_r[c] - mean) * rstd, dnorm = dout_r[c] * w->value[c];
            dinp_r[c] += rstd * (dnorm - dnorm_mean - norm * dnorm_norm_mean); // norm = (inp_r[c] - mean) * rstd
        }
    }
}

// ---- softmax and cross-entropy: the loss is -log of the probability that a target gets, the mean over all rows

// probs[v] = exp(logits[v]) / sum of exp(logits), and -log probs[target] = log(sum) - logits[target].
static inline double cross_entropy_forward(Tensor *probs, Tensor *logits, const int *targets) {
    const int R = logits->rows; // probs, logits [R,V], targets [R]
    double loss = 0;
    for (int r = 0; r < R; r++) {
        const double *logits_r = logits->value + r * V;
        double *probs_r = probs->value + r * V, max = logits_r[0], sum = 0;
        for (int v = 1; v < V; v++) max = fmax(max, logits_r[v]); // keeps exp from overflowing, and cancels out
        for (int v = 0; v < V; v++) sum += probs_r[v] = exp(logits_r[v] - max);
        for (int v = 0; v < V; v++) probs_r[v] /= sum;
        loss += (log(sum) + max - logits_r[targets[r]]) / R;
    }
    return loss;
}

// The derivative of log(sum) is probs, that of -logits[target] is -1 at the target.
static inline void cross_entropy_backward(Tensor *probs, Tensor *logits, const int *targets) {
    const int R = logits->rows; // probs, logits [R,V], targets [R]
    for (int r = 0; r < R; r++) {
        const double *probs_r = probs->value + r * V;
        double *dlogits_r = logits->grad + r * V;
        // loss += (log(sum) + max - logits_r[targets[r]]) / R
        for (int v = 0; v < V; v++) dlogits_r[v] += (probs_r[v] - (v == targets[r])) / R;
    }
}

// ---- Adamax (Kingma and Ba, 2015, section 7.1, as PyTorch has it): the gradients move the parameters

// exp_avg is a running mean of the gradient. exp_inf is the largest size that the gradient has had, fading by 0.1 % a
// step. Their quotient is about 1 at most, so that a step moves a number by about lr at most. exp_avg starts at zero
// and is too small at first, by the factor 1 - 0.9^t in step t = 1, 2, ..., which is divided out.
static inline void adamax(TensorList *all, double lr, int64_t t) {
    for (int k = 0; k < all->n_params; k++) {
        Tensor *p = all->list[k];
        for (int i = 0; i < p->rows * p->columns; i++) {
            const double g = p->grad[i];
            p->exp_avg[i] = 0.9 * p->exp_avg[i] + 0.1 * g;
            p->exp_inf[i] = fmax(0.999 * p->exp_inf[i], fabs(g) + 1e-8);
            p->value[i] -= lr / (1 - pow(0.9, (double)t)) * p->exp_avg[i] / p->exp_inf[i];
        }
    }
}

// ---- music

// Opens a dataset for batches of B windows of T tokens. False: there is too little, and a sentence on stderr says how
// to make some.
static inline bool music_open(Dataset *data, const char *path, const char *program, int B, int T) {
    char error[ERROR_SIZE] = "too little music for a batch";
    if (dataset_open(data, path, T, error) && epoch_steps(0.02, data->n_windows, B) > 0) return true;
    fprintf(stderr, "%s: %s; make some with %s\n", program, error,
            "data_prep/compose_music && data_prep/prepare_music data/starter/train data/starter/test");
    return false;
}

// The batch of a step. inputs, targets [B,T]: the target of a token is the token that follows it.
static inline void music_batch(const Dataset *data, uint64_t seed, int64_t step, int B, int *inputs, int *targets) {
    const int64_t epoch = epoch_steps(0.02, data->n_windows, B); // steps, in which no window comes twice
    int64_t starts[B];
    epoch_batch(data, seed, step / epoch, step % epoch, B, starts);
    for (int r = 0; r < B * data->T; r++) {
        const uint8_t *token = data->tokens + starts[r / data->T] + r % data->T;
        inputs[r] = token[0];
        targets[r] = token[1];
    }
}

#endif
