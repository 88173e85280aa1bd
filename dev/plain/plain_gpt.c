// The Transformer in its plainest form: what to read first, and what every faster form of it is checked by.
//
//     make plain
//     dev/plain/plain_gpt        trains a small model on data/train.safetensors and prints its falling loss
//
// It promises the model of train_gpt_music.cu exactly: the same first weights, windows of music, dropout, loss,
// gradients and updates, in double. Each stage is a function of plain loops. Its backward stands right below it, takes
// the same tensors, and quotes the lines of the forward that it differentiates. All that makes a program fast is left
// out, and so are evaluation, saving and flags. What plain_lstm.c needs as well is in plain.h: tensors, first weights,
// the stages that both models have, Adamax and batches of music.
//
// The model: token embedding, then L layers, each
//
//     x = LN1(x + dropout(attention(x) Wo^T + bo))
//     x = LN2(x + dropout(relu(x W1^T + b1) W2^T + b2))
//
// and a linear layer to the logits. Attention follows Vaswani et al., Attention Is All You Need, 2017, with a learned
// vector for each relative distance (Shaw et al., 2018; Huang et al., Music Transformer, 2018) and with each layer's
// raw scores added to those of the next layer (He et al., RealFormer, 2021).
//
// How a backward works. The gradient of a number x says how fast the loss grows with x; the code calls it dx. Every
// tensor has room for the gradients of its numbers. gpt_backward goes through the stages of gpt_forward from the last
// one to the first. Each stage finds the gradient of its output complete and applies the chain rule to it:
//
//     forward     y = w * x
//     backward    dx += w * dy,  dw += x * dy
//
// It is += because a number that is used in several places gets a share from each of them.
//
// Shapes: B windows, T positions, R = B*T rows, C width, NH heads, HS = C/NH head size, F hidden width of a layer,
// L layers, V = 153 tokens, D relative distances. Tensors are stored row by row: in [B,T,C], number (b, t, c) comes
// after (b * T + t) * C + c others. A pointer's name ends in the indices that are already chosen, as in inp_r, row r.
#include "plain/plain.h"

typedef struct {
    int L, C, NH, F, D; // layers, width, heads, hidden width of a layer, relative distances
    int B, T;           // windows in a batch, tokens in a window
    double dropout;     // the probability of a zero
    uint64_t seed;      // of all random numbers
} Config;

// ---- attention
//
// Row (b, t) of qkv holds a query, a key and a value, of HS numbers each, for every head:
//
//     | q of head 0 | q of head 1 | ... | k of head 0 | k of head 1 | ... | v of head 0 | v of head 1 | ... |
//     0             HS                  C             C+HS                2C            2C+HS               3C
//
// Position t attends to the positions j <= t, each head on its own. The distance t - j says which row of the table rel
// belongs to them: row D-1, the last one, to distance 0, and row 0 to D-1 and all larger distances.
//
//              j=0  1  2  3  4  5
//       t=0      3
//         1      2  3                      The row of (t, j) for D = 4:
//         2      1  2  3                   along a diagonal the distance t - j is the same.
//         3      0  1  2  3
//         4      0  0  1  2  3
//         5      0  0  0  1  2  3
static int relative_row(int t, int j, int D) { return t - j < D ? D - 1 - (t - j) : 0; }

//     scores[t][j] = (q_t . k_j + q_t . rel[t, j]) / sqrt(HS) + below[t][j]
//     att[t][j]    = exp(scores[t][j]) / sum of exp(scores[t][k]) over k <= t
//     out_t        = sum of att[t][j] v_j over j <= t
//
// below: the scores of the layer below; NULL in the first layer. out: the heads side by side.
static void attention_forward(Tensor *out, Tensor *att, Tensor *scores, Tensor *below, Tensor *qkv, Tensor *rel) {
    const int T = att->columns, R = out->rows, C = out->columns, NH = att->rows / R, HS = C / NH, B = R / T;
    // out [B,T,C], att, scores, below [B,NH,T,T], qkv [B,T,3C], rel [D,HS]
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            for (int t = 0; t < T; t++) {
                const int row = ((b * NH + h) * T + t) * T; // where row t of this head begins in att and scores
                const double *q_t = qkv->value + (b * T + t) * 3 * C + h * HS;
                double *scores_t = scores->value + row, *att_t = att->value + row;
                double *out_t = out->value + (b * T + t) * C + h * HS;
                // pass 1: scores
                for (int j = 0; j <= t; j++) {
                    const double *k_j = qkv->value + (b * T + j) * 3 * C + C + h * HS;
                    const double *rel_tj = rel->value + relative_row(t, j, rel->rows) * HS;
                    double dot = 0;
                    for (int i = 0; i < HS; i++) dot += q_t[i] * (k_j[i] + rel_tj[i]);
                    scores_t[j] = dot / sqrt(HS) + (below ? below->value[row + j] : 0);
                }
                // pass 2: softmax; subtracting the largest score changes no quotient and keeps exp from overflowing
                double max = scores_t[0], sum = 0;
                for (int j = 0; j <= t; j++) max = fmax(max, scores_t[j]);
                for (int j = 0; j <= t; j++) sum += att_t[j] = exp(scores_t[j] - max);
                for (int j = 0; j <= t; j++) att_t[j] /= sum;
                // pass 3: the weighted sum of values
                for (int i = 0; i < HS; i++) out_t[i] = 0;
                for (int j = 0; j <= t; j++) {
                    const double *v_j = qkv->value + (b * T + j) * 3 * C + 2 * C + h * HS;
                    for (int i = 0; i < HS; i++) out_t[i] += att_t[j] * v_j[i];
                }
            }
        }
    }
}

// The passes of the forward in reverse order. Pass 2: att_j is e_j / sum with e_j = exp(scores_j). A score is in the
// numerator of its own att and in the denominator of all of them, so that d att_k / d scores_j is att_k (1 - att_j) for
// k = j, else -att_k att_j. Times datt_k and summed over all k: att_j (datt_j - sum of att_k datt_k).
//
// The scores of a layer serve its own softmax and the layer above, and get a share of gradient from both:
//
//                      softmax               softmax
//                         |                     |
//     forward     scores, layer 0  --->  scores, layer 1  ---> ...
//     backward   dscores, layer 0  <--- dscores, layer 1  <--- ...
static void attention_backward(Tensor *out, Tensor *att, Tensor *scores, Tensor *below, Tensor *qkv, Tensor *rel) {
    const int T = att->columns, R = out->rows, C = out->columns, NH = att->rows / R, HS = C / NH, B = R / T;
    // out [B,T,C], att, scores, below [B,NH,T,T], qkv [B,T,3C], rel [D,HS]
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            for (int t = 0; t < T; t++) {
                const int row = ((b * NH + h) * T + t) * T, q_at = (b * T + t) * 3 * C + h * HS;
                const double *q_t = qkv->value + q_at, *att_t = att->value + row;
                const double *dout_t = out->grad + (b * T + t) * C + h * HS;
                double *dq_t = qkv->grad + q_at, *datt_t = att->grad + row, *dscores_t = scores->grad + row;
                // pass 3: values
                for (int j = 0; j <= t; j++) {
                    const int v_at = (b * T + j) * 3 * C + 2 * C + h * HS;
                    const double *v_j = qkv->value + v_at;
                    double *dv_j = qkv->grad + v_at;
                    for (int i = 0; i < HS; i++) { // out_t[i] += att_t[j] * v_j[i]
                        datt_t[j] += v_j[i] * dout_t[i];
                        dv_j[i] += att_t[j] * dout_t[i];
                    }
                }
                // pass 2: att_t[j] = exp(scores_t[j] - max) / sum
                double mean = 0;
                for (int j = 0; j <= t; j++) mean += att_t[j] * datt_t[j];
                for (int j = 0; j <= t; j++) dscores_t[j] += att_t[j] * (datt_t[j] - mean);
                // pass 1: scores
                for (int j = 0; j <= t; j++) {
                    const int k_at = (b * T + j) * 3 * C + C + h * HS, rel_at = relative_row(t, j, rel->rows) * HS;
                    const double *k_j = qkv->value + k_at, *rel_tj = rel->value + rel_at;
                    double *dk_j = qkv->grad + k_at, *drel_tj = rel->grad + rel_at;
                    const double ddot = dscores_t[j] / sqrt(HS); // scores_t[j] = dot / sqrt(HS) + below[row + j]
                    if (below) below->grad[row + j] += dscores_t[j];
                    for (int i = 0; i < HS; i++) { // dot += q_t[i] * (k_j[i] + rel_tj[i])
                        dq_t[i] += (k_j[i] + rel_tj[i]) * ddot;
                        dk_j[i] += q_t[i] * ddot;
                        drel_tj[i] += q_t[i] * ddot;
                    }
                }
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

// ---- residual: out = x + dropout(branch)

static void residual_dropout_forward(Tensor *out, Tensor *x, Tensor *branch, const Config *config, int64_t step,
                                     int site) {
    const int n = out->rows * out->columns, C = out->columns; // out, x, branch [R,C]
    for (int i = 0; i < n; i++) {
        out->value[i] = x->value[i] + branch->value[i] * dropout_factor(config, step, site, i / C, i % C);
    }
}

static void residual_dropout_backward(Tensor *out, Tensor *x, Tensor *branch, const Config *config, int64_t step,
                                      int site) {
    const int n = out->rows * out->columns, C = out->columns; // out, x, branch [R,C]
    for (int i = 0; i < n; i++) {                             // out[i] = x[i] + branch[i] * factor
        x->grad[i] += out->grad[i];
        branch->grad[i] += out->grad[i] * dropout_factor(config, step, site, i / C, i % C);
    }
}

// ---- the model

typedef struct {
    Tensor qkv_w, qkv_b, rel, out_w, out_b; // attention: [3C,C], [3C], [D,HS], [C,C], [C]
    Tensor fc1_w, fc1_b, fc2_w, fc2_b;      // two linear layers: [F,C], [F], [C,F], [C]
    Tensor ln1_w, ln1_b, ln2_w, ln2_b;      // two LayerNorms: [C] each
    // What the layer computes, in this order. att is the softmax of scores, attn is what attention makes.
    Tensor qkv, scores, att, attn, out, sum1, ln1; // [B,T,3C], [B,NH,T,T], [B,NH,T,T], then [B,T,C]
    Tensor fc1, relu, fc2, sum2, ln2;              // [B,T,F], [B,T,F], then [B,T,C]
} Layer;

typedef struct {
    Config config;
    TensorList all;
    Layer *layers;
    Tensor emb, head_w, head_b; // [V,C], [V,C], [V]
    Tensor x0;                  // [B,T,C] the input of layer 0
    Tensor logits, probs;       // [B,T,V]
} Gpt;

static void gpt_create(Gpt *m, Config config) {
    const int L = config.L, C = config.C, NH = config.NH, F = config.F, R = config.B * config.T;
    const double scale_C = 1 / sqrt(C), scale_F = 1 / sqrt(F);
    TensorList *all = &m->all;
    *m = (Gpt){.config = config, .all.seed = config.seed, .layers = must_have(calloc((size_t)L, sizeof(Layer)))};
    param_add(all, &m->emb, V, C, "emb.weight", 0, NORMAL, 1);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        param_add(all, &a->qkv_w, 3 * C, C, "layers.%d.attn.qkv.weight", l, NORMAL, scale_C);
        param_add(all, &a->qkv_b, 3 * C, 1, "layers.%d.attn.qkv.bias", l, CONSTANT, 0);
        param_add(all, &a->rel, config.D, C / NH, "layers.%d.attn.rel", l, NORMAL, 1);
        param_add(all, &a->out_w, C, C, "layers.%d.attn.out.weight", l, NORMAL, scale_C);
        param_add(all, &a->out_b, C, 1, "layers.%d.attn.out.bias", l, CONSTANT, 0);
        param_add(all, &a->ln1_w, C, 1, "layers.%d.ln1.weight", l, CONSTANT, 1);
        param_add(all, &a->ln1_b, C, 1, "layers.%d.ln1.bias", l, CONSTANT, 0);
        param_add(all, &a->fc1_w, F, C, "layers.%d.fc1.weight", l, UNIFORM, scale_C);
        param_add(all, &a->fc1_b, F, 1, "layers.%d.fc1.bias", l, UNIFORM, scale_C);
        param_add(all, &a->fc2_w, C, F, "layers.%d.fc2.weight", l, UNIFORM, scale_F);
        param_add(all, &a->fc2_b, C, 1, "layers.%d.fc2.bias", l, UNIFORM, scale_F);
        param_add(all, &a->ln2_w, C, 1, "layers.%d.ln2.weight", l, CONSTANT, 1);
        param_add(all, &a->ln2_b, C, 1, "layers.%d.ln2.bias", l, CONSTANT, 0);
    }
    param_add(all, &m->head_w, V, C, "head.weight", 0, UNIFORM, scale_C);
    param_add(all, &m->head_b, V, 1, "head.bias", 0, UNIFORM, scale_C);
    tensor_add(all, &m->x0, R, C, "act.emb", 0);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        tensor_add(all, &a->qkv, R, 3 * C, "act.layers.%d.qkv", l);
        tensor_add(all, &a->scores, R * NH, config.T, "act.layers.%d.scores", l);
        tensor_add(all, &a->att, R * NH, config.T, "act.layers.%d.att", l);
        tensor_add(all, &a->attn, R, C, "act.layers.%d.attn", l);
        tensor_add(all, &a->out, R, C, "act.layers.%d.out", l);
        tensor_add(all, &a->sum1, R, C, "act.layers.%d.sum1", l);
        tensor_add(all, &a->ln1, R, C, "act.layers.%d.ln1", l);
        tensor_add(all, &a->fc1, R, F, "act.layers.%d.before_relu", l);
        tensor_add(all, &a->relu, R, F, "act.layers.%d.fc1", l);
        tensor_add(all, &a->fc2, R, C, "act.layers.%d.fc2", l);
        tensor_add(all, &a->sum2, R, C, "act.layers.%d.sum2", l);
        tensor_add(all, &a->ln2, R, C, "act.layers.%d.ln2", l);
    }
    tensor_add(all, &m->logits, R, V, "logits", 0);
    tensor_add(all, &m->probs, R, V, "probs", 0);
}

static void gpt_free(Gpt *m) {
    tensors_free(&m->all);
    free(m->layers);
}

// The mean loss of a batch. inputs, targets [B,T]; step chooses the random numbers of dropout.
static double gpt_forward(Gpt *m, const int *inputs, const int *targets, int64_t step) {
    const int L = m->config.L;
    embedding_forward(&m->x0, &m->emb, inputs);
    for (int l = 0; l < L; l++) {
        Layer *a = &m->layers[l];
        Tensor *x = l > 0 ? &a[-1].ln2 : &m->x0, *below = l > 0 ? &a[-1].scores : NULL;
        // x = LN1(x + dropout(attention(x) Wo^T + bo))
        linear_forward(&a->qkv, x, &a->qkv_w, &a->qkv_b);
        attention_forward(&a->attn, &a->att, &a->scores, below, &a->qkv, &a->rel);
        linear_forward(&a->out, &a->attn, &a->out_w, &a->out_b);
        residual_dropout_forward(&a->sum1, x, &a->out, &m->config, step, 2 * l);
        layernorm_forward(&a->ln1, &a->sum1, &a->ln1_w, &a->ln1_b);
        // x = LN2(x + dropout(relu(x W1^T + b1) W2^T + b2))
        linear_forward(&a->fc1, &a->ln1, &a->fc1_w, &a->fc1_b);
        relu_forward(&a->relu, &a->fc1);
        linear_forward(&a->fc2, &a->relu, &a->fc2_w, &a->fc2_b);
        residual_dropout_forward(&a->sum2, &a->ln1, &a->fc2, &m->config, step, 2 * l + 1);
        layernorm_forward(&a->ln2, &a->sum2, &a->ln2_w, &a->ln2_b);
    }
    linear_forward(&m->logits, &m->layers[L - 1].ln2, &m->head_w, &m->head_b);
    return cross_entropy_forward(&m->probs, &m->logits, targets);
}

// The gradients of everything, after gpt_forward of the same batch and step: its stages in reverse order.
static void gpt_backward(Gpt *m, const int *inputs, const int *targets, int64_t step) {
    const int L = m->config.L;
    tensors_zero_grads(&m->all);
    cross_entropy_backward(&m->probs, &m->logits, targets);
    linear_backward(&m->logits, &m->layers[L - 1].ln2, &m->head_w, &m->head_b);
    for (int l = L - 1; l >= 0; l--) {
        Layer *a = &m->layers[l];
        Tensor *x = l > 0 ? &a[-1].ln2 : &m->x0, *below = l > 0 ? &a[-1].scores : NULL;
        // x = LN2(x + dropout(relu(x W1^T + b1) W2^T + b2))
        layernorm_backward(&a->ln2, &a->sum2, &a->ln2_w, &a->ln2_b);
        residual_dropout_backward(&a->sum2, &a->ln1, &a->fc2, &m->config, step, 2 * l + 1);
        linear_backward(&a->fc2, &a->relu, &a->fc2_w, &a->fc2_b);
        relu_backward(&a->relu, &a->fc1);
        linear_backward(&a->fc1, &a->ln1, &a->fc1_w, &a->fc1_b);
        // x = LN1(x + dropout(attention(x) Wo^T + bo))
        layernorm_backward(&a->ln1, &a->sum1, &a->ln1_w, &a->ln1_b);
        residual_dropout_backward(&a->sum1, x, &a->out, &m->config, step, 2 * l);
        linear_backward(&a->out, &a->attn, &a->out_w, &a->out_b);
        attention_backward(&a->attn, &a->att, &a->scores, below, &a->qkv, &a->rel);
        linear_backward(&a->qkv, x, &a->qkv_w, &a->qkv_b);
    }
    embedding_backward(&m->x0, &m->emb, inputs);
}

// ---- training

#ifndef TESTING
int main(void) {
    enum { B = 8, T = 128, STEPS = 601 };
    const Config config = {.L = 2, .C = 32, .NH = 4, .F = 64, .D = 96, .B = B, .T = T, .dropout = 0.1, .seed = 1};
    Dataset data;
    if (!music_open(&data, "data/train.safetensors", "plain_gpt", B, T)) return 1;
    Gpt model;
    gpt_create(&model, config);
    double sum = 0; // of the losses since the last line
    for (int64_t step = 0; step < STEPS; step++) {
        int inputs[B * T], targets[B * T];
        music_batch(&data, config.seed, step, B, inputs, targets);
        sum += gpt_forward(&model, inputs, targets, step);
        gpt_backward(&model, inputs, targets, step);
        adamax(&model.all, 3e-3, step + 1);
        if (step % 20) continue;
        printf("step %3d  loss %.4f\n", (int)step, step ? sum / 20 : sum);
        fflush(stdout);
        sum = 0;
    }
    gpt_free(&model);
    dataset_close(&data);
    return 0;
}
#endif
