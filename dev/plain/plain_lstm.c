// The LSTM in its plainest form: what to read first, and what every faster form of it is checked by.
//
//     make plain
//     dev/plain/plain_lstm       trains a small model on data/train.safetensors and prints its falling loss
//
// It promises the model of train_lstm_music.cu exactly: the same first weights, windows of music, dropout, loss,
// gradients and updates, in double. Each stage is a function of plain loops. Its backward stands right below it, takes
// the same tensors, and quotes the lines of the forward that it differentiates. All that makes a program fast is left
// out, and so are evaluation, saving and flags. What plain_gpt.c needs as well is in plain.h: tensors, first weights,
// the stages that both models have, Adamax and batches of music.
//
// The model: token embedding, then L LSTM layers (Hochreiter and Schmidhuber, 1997; Gers et al., 2000), each followed
// by dropout, then a head of two parts
//
//     x = dropout(relu(LN(x W1^T + b1)))
//     x = dropout(relu(LN(x W2^T + b2)))
//
// and a linear layer to the logits. An LSTM layer has H units. It keeps two states, h and c, a number a unit each, and
// renews them with every token.
//
// How a backward works. The gradient of a number x says how fast the loss grows with x; the code calls it dx. Every
// tensor has room for the gradients of its numbers. lstm_backward goes through the stages of lstm_forward from the last
// one to the first. Each stage finds the gradient of its output complete and applies the chain rule to it:
//
//     forward     y = w * x
//     backward    dx += w * dy,  dw += x * dy
//
// It is += because a number that is used in several places gets a share from each of them.
//
// Shapes: B windows, T positions, R = B*T rows, E embedding width, H units of a layer, L layers, V = 153 tokens; I is
// the width of a layer's input, O that of its output. Tensors are stored row by row: in [B,T,H], number (b, t, u) comes
// after (b * T + t) * H + u others. A pointer's name ends in the indices that are already chosen, as in inp_r, row r.
#include "plain/plain.h"

typedef struct {
    int E, H, L;    // width of the embedding, units of a layer, layers
    int B, T;       // windows in a batch, tokens in a window
    double dropout; // the probability of a zero
    uint64_t seed;  // of all random numbers
} Config;

// ---- the recurrence of an LSTM layer
//
// A row of gates has four numbers for each unit: how much of the candidate g to let in (i), how much of the state c to
// keep (f), the candidate itself (g), and how much of the state to show (o).
//
//     | i of every unit | f of every unit | g of every unit | o of every unit |
//     0                 H                 2H                3H                4H
//
// What the input says to the gates, from_x = x W_ih^T + b_ih, is a linear layer over all positions at once. The rest
// goes from position to position. It begins with a start state of zeros:
//
//                 from_x 0          from_x 1          from_x 2
//                    |                 |                 |
//     start -----> cell 0 --- h,c --> cell 1 --- h,c --> cell 2          The backward goes from the right to the left.
//                    |                 |                 |
//                   h 0               h 1               h 2

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

//     sums_t  = from_x_t + h_(t-1) W_hh^T + b_hh
//     i, f, o = sigmoid(sums_t), g = tanh(sums_t), each of its own quarter
//     c_t     = f c_(t-1) + i g
//     h_t     = o tanh(c_t)
static void recurrence_forward(Tensor *h, Tensor *c, Tensor *gates, Tensor *from_x, Tensor *w_hh, Tensor *b_hh,
                               Tensor *start, int T) {
    const int B = h->rows / T, H = h->columns;
    // h, c [B,T,H], gates, from_x [B,T,4H], w_hh [4H,H], b_hh [4H], start [H]
    for (int b = 0; b < B; b++) {
        for (int t = 0; t < T; t++) {
            const int r = b * T + t;
            const double *h_before = t > 0 ? h->value + (r - 1) * H : start->value;
            const double *c_before = t > 0 ? c->value + (r - 1) * H : start->value;
            double *h_bt = h->value + r * H, *c_bt = c->value + r * H, *gates_bt = gates->value + r * 4 * H;
            // pass 1: the gates
            for (int j = 0; j < 4 * H; j++) {
                const double *w_j = w_hh->value + j * H;
                double sum = from_x->value[r * 4 * H + j] + b_hh->value[j];
                for (int k = 0; k < H; k++) sum += h_before[k] * w_j[k];
                gates_bt[j] = j / H == 2 ? tanh(sum) : sigmoid(sum); // the quarters are i, f, g, o
            }
            // pass 2: the states
            for (int u = 0; u < H; u++) {
                const double i = gates_bt[u], f = gates_bt[H + u], g = gates_bt[2 * H + u], o = gates_bt[3 * H + u];
                c_bt[u] = f * c_before[u] + i * g;
                h_bt[u] = o * tanh(c_bt[u]);
            }
        }
    }
}

// From the last position to the first: the states of a position act on the next one, so that their gradients are
// complete when all later positions are done. The derivative of s = sigmoid(x) is s (1 - s), that of g = tanh(x) is
// 1 - g^2. The gradient of the start state is of no use to anybody.
static void recurrence_backward(Tensor *h, Tensor *c, Tensor *gates, Tensor *from_x, Tensor *w_hh, Tensor *b_hh,
                                Tensor *start, int T) {
    const int B = h->rows / T, H = h->columns;
    // h, c [B,T,H], gates, from_x [B,T,4H], w_hh [4H,H], b_hh [4H], start [H]
    for (int b = 0; b < B; b++) {
        for (int t = T - 1; t >= 0; t--) {
            const int r = b * T + t;
            const double *h_before = t > 0 ? h->value + (r - 1) * H : start->value;
            const double *c_before = t > 0 ? c->value + (r - 1) * H : start->value;
            double *dh_before = t > 0 ? h->grad + (r - 1) * H : start->grad;
            double *dc_before = t > 0 ? c->grad + (r - 1) * H : start->grad;
            const double *c_bt = c->value + r * H, *dh_bt = h->grad + r * H, *gates_bt = gates->value + r * 4 * H;
            double *dc_bt = c->grad + r * H, *dgates_bt = gates->grad + r * 4 * H;
            // pass 2: the states
            for (int u = 0; u < H; u++) {
                const double i = gates_bt[u], f = gates_bt[H + u], g = gates_bt[2 * H + u], o = gates_bt[3 * H + u];
                const double tanh_c = tanh(c_bt[u]);
                dgates_bt[3 * H + u] += tanh_c * dh_bt[u]; // h_bt[u] = o * tanh(c_bt[u])
                dc_bt[u] += o * (1 - tanh_c * tanh_c) * dh_bt[u];
                dgates_bt[u] += g * dc_bt[u]; // c_bt[u] = f * c_before[u] + i * g
                dgates_bt[H + u] += c_before[u] * dc_bt[u];
                dgates_bt[2 * H + u] += i * dc_bt[u];
                dc_before[u] += f * dc_bt[u];
            }
            // pass 1: the gates
            for (int j = 0; j < 4 * H; j++) {
                const double gate = gates_bt[j], *w_j = w_hh->value + j * H;
                double *dw_j = w_hh->grad + j * H;
                // gates_bt[j] = j / H == 2 ? tanh(sum) : sigmoid(sum)
                const double dsum = dgates_bt[j] * (j / H == 2 ? 1 - gate * gate : gate * (1 - gate));
                for (int k = 0; k < H; k++) { // sum += h_before[k] * w_j[k]
                    dh_before[k] += w_j[k] * dsum;
                    dw_j[k] += h_before[k] * dsum;
                }
                from_x->grad[r * 4 * H + j] += dsum; // sum = from_x[r * 4 * H + j] + b_hh[j]
                b_hh->grad[j] += dsum;
            }
        }
    }
}

// ---- dropout (Srivastava et al., 2014): a number becomes zero with probability p, else it grows to keep the mean

// The factor of channel c in row r. It follows from the numbers (seed, site, step, b, t, c) alone: every program draws
// the same in any order, and the backward draws again what the forward drew. Philox makes four words of 32 random bits
// at once, here for four channels. Of the 2^32 possible words p * 2^32 mean zero.
static double dropout_factor(const Config *config, int64_t step, int site, int r, int c) {
    const PhiloxKey key = philox_key(config->seed, PHILOX_DROPOUT, (uint32_t)site);
    const uint32_t b = (uint32_t)(r / config->T), t = (uint32_t)(r % config->T);
    const uint32_t word = philox(key, (uint32_t)c / 4, t, b, (uint32_t)step).x[c % 4];
    return word < (uint32_t)(config->dropout * 4294967296.0) ? 0 : 1 / (1 - config->dropout);
}

static void dropout_forward(Tensor *out, Tensor *inp, const Config *config, int64_t step, int site) {
    const int n = out->rows * out->columns, C = out->columns; // out, inp [R,C]
    for (int i = 0; i < n; i++) out->value[i] = inp->value[i] * dropout_factor(config, step, site, i / C, i % C);
}

static void dropout_backward(Tensor *out, Tensor *inp, const Config *config, int64_t step, int site) {
    const int n = out->rows * out->columns, C = out->columns; // out, inp [R,C]
    for (int i = 0; i < n; i++) {                             // out[i] = inp[i] * factor
        inp->grad[i] += out->grad[i] * dropout_factor(config, step, site, i / C, i % C);
    }
}

// ---- the model

typedef struct {
    Tensor w_ih, w_hh, b_ih, b_hh; // [4H,I], [4H,H], [4H], [4H]
    // What the layer computes, in this order:
    Tensor from_x, gates, c, h, drop; // [B,T,4H], [B,T,4H], then [B,T,H]
} Layer;

typedef struct { // a part of the head: the first one makes O = 2H numbers of I = H, the second one O = H of I = 2H
    Tensor fc_w, fc_b, ln_w, ln_b; // [O,I], [O], [O], [O]
    Tensor fc, ln, relu, drop;     // [B,T,O] each
} Head;

typedef struct {
    Config config;
    TensorList all;
    Layer *layers;
    Head heads[2];
    Tensor emb, fc3_w, fc3_b; // [V,E], [V,H], [V]
    Tensor x0, start;         // [B,T,E] the input of layer 0; [H] zeros
    Tensor logits, probs;     // [B,T,V]
} Lstm;

static void lstm_create(Lstm *m, Config config) {
    const int L = config.L, E = config.E, H = config.H, R = config.B * config.T;
    const double scale_H = 1 / sqrt(H);
    TensorList *all = &m->all;
    *m = (Lstm){.config = config, .all.seed = config.seed, .layers = must_have(calloc((size_t)L, sizeof(Layer)))};
    param_add(all, &m->emb, V, E, "emb.weight", 0, NORMAL, 1);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        param_add(all, &a->w_ih, 4 * H, l > 0 ? H : E, "lstm.weight_ih_l%d", l, UNIFORM, scale_H);
        param_add(all, &a->w_hh, 4 * H, H, "lstm.weight_hh_l%d", l, UNIFORM, scale_H);
        param_add(all, &a->b_ih, 4 * H, 1, "lstm.bias_ih_l%d", l, UNIFORM, scale_H);
        param_add(all, &a->b_hh, 4 * H, 1, "lstm.bias_hh_l%d", l, UNIFORM, scale_H);
    }
    for (int i = 0; i < 2; i++) {
        Head *a = &m->heads[i];
        const int I = i == 0 ? H : 2 * H, O = 3 * H - I, module = 1 + 4 * i; // the files count the modules
        param_add(all, &a->fc_w, O, I, "head.%d.weight", module, UNIFORM, 1 / sqrt(I));
        param_add(all, &a->fc_b, O, 1, "head.%d.bias", module, UNIFORM, 1 / sqrt(I));
        param_add(all, &a->ln_w, O, 1, "head.%d.weight", module + 1, CONSTANT, 1);
        param_add(all, &a->ln_b, O, 1, "head.%d.bias", module + 1, CONSTANT, 0);
    }
    param_add(all, &m->fc3_w, V, H, "head.9.weight", 0, UNIFORM, scale_H);
    param_add(all, &m->fc3_b, V, 1, "head.9.bias", 0, UNIFORM, scale_H);
    tensor_add(all, &m->x0, R, E, "act.emb", 0);
    tensor_add(all, &m->start, H, 1, "start", 0);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        tensor_add(all, &a->from_x, R, 4 * H, "act.from_x_l%d", l);
        tensor_add(all, &a->gates, R, 4 * H, "act.gates_l%d", l);
        tensor_add(all, &a->h, R, H, "act.h_l%d", l);
        tensor_add(all, &a->c, R, H, "act.c_l%d", l);
        tensor_add(all, &a->drop, R, H, "act.drop_l%d", l);
    }
    for (int i = 0; i < 2; i++) {
        Head *a = &m->heads[i];
        const int O = i == 0 ? 2 * H : H, module = 1 + 4 * i;
        tensor_add(all, &a->fc, R, O, "act.head.%d", module);
        tensor_add(all, &a->ln, R, O, "act.head.%d", module + 1);
        tensor_add(all, &a->relu, R, O, "act.head.%d", module + 2);
        tensor_add(all, &a->drop, R, O, "act.head.%d", module + 3);
    }
    tensor_add(all, &m->logits, R, V, "logits", 0);
    tensor_add(all, &m->probs, R, V, "probs", 0);
}

static void lstm_free(Lstm *m) {
    tensors_free(&m->all);
    free(m->layers);
}

// The mean loss of a batch. inputs, targets [B,T]; step chooses the random numbers of dropout.
static double lstm_forward(Lstm *m, const int *inputs, const int *targets, int64_t step) {
    const int L = m->config.L, T = m->config.T;
    embedding_forward(&m->x0, &m->emb, inputs);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        Tensor *x = l > 0 ? &a[-1].drop : &m->x0;
        linear_forward(&a->from_x, x, &a->w_ih, &a->b_ih);
        recurrence_forward(&a->h, &a->c, &a->gates, &a->from_x, &a->w_hh, &a->b_hh, &m->start, T);
        dropout_forward(&a->drop, &a->h, &m->config, step, l);
    }
    for (int i = 0; i < 2; i++) {
        Head *a = &m->heads[i];
        Tensor *x = i > 0 ? &a[-1].drop : &m->layers[L - 1].drop;
        linear_forward(&a->fc, x, &a->fc_w, &a->fc_b);
        layernorm_forward(&a->ln, &a->fc, &a->ln_w, &a->ln_b);
        relu_forward(&a->relu, &a->ln);
        dropout_forward(&a->drop, &a->relu, &m->config, step, L + i);
    }
    linear_forward(&m->logits, &m->heads[1].drop, &m->fc3_w, &m->fc3_b);
    return cross_entropy_forward(&m->probs, &m->logits, targets);
}

// The gradients of everything, after lstm_forward of the same batch and step: its stages in reverse order.
static void lstm_backward(Lstm *m, const int *inputs, const int *targets, int64_t step) {
    const int L = m->config.L, T = m->config.T;
    tensors_zero_grads(&m->all);
    cross_entropy_backward(&m->probs, &m->logits, targets);
    linear_backward(&m->logits, &m->heads[1].drop, &m->fc3_w, &m->fc3_b);
    for (int i = 1; i >= 0; i--) {
        Head *a = &m->heads[i];
        Tensor *x = i > 0 ? &a[-1].drop : &m->layers[L - 1].drop;
        dropout_backward(&a->drop, &a->relu, &m->config, step, L + i);
        relu_backward(&a->relu, &a->ln);
        layernorm_backward(&a->ln, &a->fc, &a->ln_w, &a->ln_b);
        linear_backward(&a->fc, x, &a->fc_w, &a->fc_b);
    }
    for (int l = L - 1; l >= 0; l--) {
        Layer *a = &m->layers[l];
        Tensor *x = l > 0 ? &a[-1].drop : &m->x0;
        dropout_backward(&a->drop, &a->h, &m->config, step, l);
        recurrence_backward(&a->h, &a->c, &a->gates, &a->from_x, &a->w_hh, &a->b_hh, &m->start, T);
        linear_backward(&a->from_x, x, &a->w_ih, &a->b_ih);
    }
    embedding_backward(&m->x0, &m->emb, inputs);
}

// ---- training

#ifndef TESTING
int main(void) {
    enum { B = 8, T = 128, STEPS = 601 };
    const Config config = {.E = 16, .H = 32, .L = 2, .B = B, .T = T, .dropout = 0.1, .seed = 1};
    Dataset data;
    if (!music_open(&data, "data/train.safetensors", "plain_lstm", B, T)) return 1;
    Lstm model;
    lstm_create(&model, config);
    double sum = 0; // of the losses since the last line
    for (int64_t step = 0; step < STEPS; step++) {
        int inputs[B * T], targets[B * T];
        music_batch(&data, config.seed, step, B, inputs, targets);
        sum += lstm_forward(&model, inputs, targets, step);
        lstm_backward(&model, inputs, targets, step);
        adamax(&model.all, 3e-3, step + 1);
        if (step % 20) continue;
        printf("step %3d  loss %.4f\n", (int)step, step ? sum / 20 : sum);
        fflush(stdout);
        sum = 0;
    }
    lstm_free(&model);
    dataset_close(&data);
    return 0;
}
#endif
