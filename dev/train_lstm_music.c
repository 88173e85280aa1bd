// The LSTM on the CPU: a trainer in its own right, and the reference for train_lstm_music.cu.
//
// It promises the published model exactly (4,426,457 parameters in its default sizes), every gradient checked against
// finite differences when built with -DREAL=double (test/test_lstm_gradients.c), the same bytes for any number of
// threads, and no allocation in a step. It runs in one process on one machine. The recipe around a step (data, epochs,
// files, command line) is recipe/train.h, what CPU models share cpu/host_model.h; matrix products are cpu/matmul.h.
//
// The model: token embedding, then L LSTM layers (Hochreiter and Schmidhuber, 1997; Gers et al., 2000). A layer takes
// x_t to h_t in each time step, with h and c zero before the first:
//     i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), each with its rows of W and b
//     g = tanh(likewise)
//     c_t = f c_(t-1) + i g
//     h_t = o tanh(c_t)
//
// The rows of W and b are in the order i, f, g, o. Dropout follows each layer. The head is two linear layers, 2H and H
// wide, each with LayerNorm, ReLU and dropout, and a linear layer to the logits. The optimizer is Adamax (Kingma and
// Ba, 2015, section 7.1), as PyTorch has it.
//
// Shapes: B batch, T positions, R = B*T rows, E embedding, H units of a layer, L layers, V = 153 tokens; C is the width
// of the rows of a stage that takes any. All matrices are row-major; a linear layer's weight is [out, in]. The rows of
// one time step lie side by side, unlike in files, where the rows of a window do:
//
//     row        0    1   ...  B-1 |  B   B+1  ... 2B-1 | 2B  ...         row r is position t = r / B
//     window b   0    1   ...  B-1 |  0    1   ...  B-1 |  0  ...         of window b = r % B
//     position t 0    0   ...   0  |  1    1   ...   1  |  2  ...
//
// In a backward, gradients of parameters are added to (+=), except that of the second bias, which is a copy of the
// first's. Gradients of activations are set (=), except where a comment says otherwise.
//
// train_lstm_music.cu has the same sections in the same order, and the same names for what does the same; its head says
// where the GPU goes another way. The section on parameters is the same text there. embedding_forward(),
// embedding_backward(), softmax_cross_entropy() and adamax() are also in train_gpt_music.c, so that each model can be
// read by itself. test/test_copies.sh compares the copies.
#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cpu/host_model.h"
#include "cpu/matmul.h"
#include "models/lstm.h"

enum { V = DATA_TOKENS };

// ---- parameters

// Every parameter tensor of an LSTM layer and of the head, once: member, name in the file, initial values, rank and
// shape. I is the width of the layer's input. The number of the layer ends the name.
#define LSTM_LAYER_TENSORS(X)                                                                                          \
    X(w_ih, "lstm.weight_ih_l%d", INIT_UNIFORM, 1 / sqrt(H), 2, 4 * H, I)                                              \
    X(w_hh, "lstm.weight_hh_l%d", INIT_UNIFORM, 1 / sqrt(H), 2, 4 * H, H)                                              \
    X(b_ih, "lstm.bias_ih_l%d", INIT_UNIFORM, 1 / sqrt(H), 1, 4 * H, 1)                                                \
    X(b_hh, "lstm.bias_hh_l%d", INIT_UNIFORM, 1 / sqrt(H), 1, 4 * H, 1)
#define LSTM_HEAD_TENSORS(X)                                                                                           \
    X(fc1_w, "head.1.weight", INIT_UNIFORM, 1 / sqrt(H), 2, 2 * H, H)                                                  \
    X(fc1_b, "head.1.bias", INIT_UNIFORM, 1 / sqrt(H), 1, 2 * H, 1)                                                    \
    X(ln1_w, "head.2.weight", INIT_FILL, 1, 1, 2 * H, 1)                                                               \
    X(ln1_b, "head.2.bias", INIT_FILL, 0, 1, 2 * H, 1)                                                                 \
    X(fc2_w, "head.5.weight", INIT_UNIFORM, 1 / sqrt(2 * H), 2, H, 2 * H)                                              \
    X(fc2_b, "head.5.bias", INIT_UNIFORM, 1 / sqrt(2 * H), 1, H, 1)                                                    \
    X(ln2_w, "head.6.weight", INIT_FILL, 1, 1, H, 1)                                                                   \
    X(ln2_b, "head.6.bias", INIT_FILL, 0, 1, H, 1)                                                                     \
    X(fc3_w, "head.9.weight", INIT_UNIFORM, 1 / sqrt(H), 2, V, H)                                                      \
    X(fc3_b, "head.9.bias", INIT_UNIFORM, 1 / sqrt(H), 1, V, 1)

#define MEMBER(member, ...) real *member;
typedef struct {
    LSTM_LAYER_TENSORS(MEMBER)
} LayerTensors;

typedef struct { // pointers into a flat array: the parameters, their gradients, ...
    real *emb;   // [V,E]
    LayerTensors layers[LSTM_MAX_LAYERS];
    LSTM_HEAD_TENSORS(MEMBER)
} LstmTensors;

static void lstm_layout(const int *sizes, ParamLayout *out) {
    int E = sizes[LSTM_EMBED], H = sizes[LSTM_WIDTH];
    param_add(out, INIT_NORMAL, 1, 2, V, E, "emb.weight");
    for (int l = 0; l < sizes[LSTM_LAYERS]; l++) {
        int I = l == 0 ? E : H;
#define ADD_LAYER_TENSOR(member, name, init, scale, rank, rows, columns)                                               \
    param_add(out, init, scale, rank, rows, columns, name, l);
        LSTM_LAYER_TENSORS(ADD_LAYER_TENSOR)
    }
#define ADD_HEAD_TENSOR(member, name, init, scale, rank, rows, columns)                                                \
    param_add(out, init, scale, rank, rows, columns, name);
    LSTM_HEAD_TENSORS(ADD_HEAD_TENSOR)
}

// Points the members into a flat array that is laid out as lstm_layout says.
static void lstm_point(LstmTensors *tensors, const ParamLayout *layout, int L, real *flat) {
    const ParamTensor *next = layout->list;
    tensors->emb = flat + next++->offset;
    for (int l = 0; l < L; l++) {
#define POINT_LAYER_TENSOR(member, ...) tensors->layers[l].member = flat + next++->offset;
        LSTM_LAYER_TENSORS(POINT_LAYER_TENSOR)
    }
#define POINT_HEAD_TENSOR(member, ...) tensors->member = flat + next++->offset;
    LSTM_HEAD_TENSORS(POINT_HEAD_TENSOR)
}

// ---- embedding

// x[r] = emb[tokens[r]]
static void embedding_forward(real *x, const uint8_t *tokens, const real *emb, int R, int C) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) memcpy(x + (size_t)r * C, emb + (size_t)tokens[r] * C, (size_t)C * sizeof(real));
}

// demb[tokens[r]] += dx[r], in ascending r whatever the threads: each owns some columns.
static void embedding_backward(real *demb, const real *dx, const uint8_t *tokens, int R, int C) {
#pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += 64) {
        for (int r = 0; r < R; r++) {
            for (int c = c0; c < min_int(c0 + 64, C); c++) demb[(size_t)tokens[r] * C + c] += dx[(size_t)r * C + c];
        }
    }
}

// ---- the recurrence
//
// All that does not depend on the time step before is done for all time steps at once, as large products. What remains
// is a small product in each time step, W_hh h_(t-1) forward and dgates_(t+1) W_hh backward, followed by the cell's
// update while the sums are still in the nearest cache. A thread owns blocks of TILE_N units, with all four gates of
// them, so that the threads wait for each other once in a time step. The weights of a block are packed beforehand, in
// the order in which a time step reads them, into panels (matmul.h):
//
//     forward: gates_t += W_hh h_(t-1)            backward: dh_t += dgates_(t+1) W_hh
//
//     row      column 0               H           row      column 0   u0        H
//     0     i         +---------------+           0     i         +---+-----+---+
//     u0              |### panel 0 ###|                           |   |#####|   |
//     H     f         |               |           H     f         |   |#####|   |
//     H+u0            |### panel 1 ###|                           |   | one |   |
//     2H    g         |               |           2H    g         |   |panel|   |
//     2H+u0           |### panel 2 ###|                           |   |#####|   |
//     3H    o         |               |           3H    o         |   |#####|   |
//     3H+u0           |### panel 3 ###|                           |   |#####|   |
//     4H              +---------------+           4H              +---+-----+---+
//
// The backward, with dgates the gradients of the sums that the gates are functions of:
//     dh_t = gradient from above + dgates_(t+1) W_hh
//     dc_t = dc_(t+1) f_(t+1) + dh_t o (1 - tanh(c_t)^2)

static int padded_units(int H) { return round_up(H, TILE_N); } // whole blocks

// panels [H / TILE_N][4][H][TILE_N]: of each block the rows of each gate, transposed. H / TILE_N is rounded up.
static void pack_recurrent_forward(real *panels, const real *w_hh, int H, bool bf16) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < padded_units(H) / TILE_N * 4; i++) {
        const int u0 = i / 4 * TILE_N, gate = i % 4, width = min_int(TILE_N, H - u0);
        const real *rows = w_hh + ((size_t)gate * H + u0) * H;
        pack_panel(panels + (size_t)i * H * TILE_N, rows, 1, H, H, width, bf16);
    }
}

// panels [H / TILE_N][4H][TILE_N]: of each block the columns.
static void pack_recurrent_backward(real *panels, const real *w_hh, int H, bool bf16) {
#pragma omp parallel for schedule(static)
    for (int u0 = 0; u0 < H; u0 += TILE_N) {
        pack_panel(panels + (size_t)u0 * 4 * H, w_hh + u0, H, 1, 4 * H, min_int(TILE_N, H - u0), bf16);
    }
}

static size_t step_scratch_size(int B, int H) { return (size_t)round_up(B, TILE_M) * (2 * (size_t)H + 16); }

// The left operand of a time step's product: rows of x [B,K] where they lie, or in bf16 in a thread's own scratch.
static MatmulRows step_rows(const real *x, int B, int K, bool bf16, real *scratch) {
    if (!bf16) return (MatmulRows){x, NULL, K};
    word *pairs = (word *)scratch;
    const int stride = (K + 1) / 2 + 16; // rows a power of two apart would compete for the same places in the cache
    for (int b = 0; b < B; b++) bf16_pack(pairs + (size_t)b * stride, x + (size_t)b * K, K);
    return (MatmulRows){NULL, pairs, stride};
}

// One row of a block of units. gates comes as sums and leaves as i, f, g, o, each H apart. c_before is NULL at t = 0.
ALWAYS_INLINE void cell_forward(real *gates, real *c, real *h, const real *c_before, int H, int width) {
    for (int u = 0; u < width; u += LANES) {
        const int left = width - u;
        vector i = sigmoid_vector(load_part(gates + u, left)), f = sigmoid_vector(load_part(gates + H + u, left));
        vector g = tanh_vector(load_part(gates + 2 * H + u, left));
        vector o = sigmoid_vector(load_part(gates + 3 * H + u, left));
        vector c_u = i * g;
        if (c_before) c_u += f * load_part(c_before + u, left);
        store_part(gates + u, i, left);
        store_part(gates + H + u, f, left);
        store_part(gates + 2 * H + u, g, left);
        store_part(gates + 3 * H + u, o, left);
        store_part(c + u, c_u, left);
        store_part(h + u, o * tanh_vector(c_u), left);
    }
}

// A layer over all time steps. gates [R,4H] comes as W_ih x + b_ih + b_hh and leaves as i, f, g, o; c, h [R,H].
// scratch: step_scratch_size for each thread.
static void recurrence_forward(real *gates, real *c, real *h, const real *panels, int B, int T, int H, bool bf16,
                               real *scratch) {
    const size_t BH = (size_t)B * H;
#pragma omp parallel
    for (int t = 0; t < T; t++) {
        real *gates_t = gates + 4 * BH * t, *c_t = c + BH * t, *h_t = h + BH * t;
        MatmulRows rows = {0};
        if (t > 0) rows = step_rows(h_t - BH, B, H, bf16, scratch + thread_number() * step_scratch_size(B, H));
#pragma omp for schedule(static) // the threads wait for each other at its end
        for (int u0 = 0; u0 < H; u0 += TILE_N) {
            const int width = min_int(TILE_N, H - u0);
            for (int gate = 0; gate < 4 && t > 0; gate++) {
                matmul_panel_add(gates_t + (size_t)gate * H + u0, 4 * H, B, width, H, rows,
                                 panels + (4 * (size_t)u0 + (size_t)gate * TILE_N) * H);
            }
            for (int b = 0; b < B; b++) {
                size_t at = (size_t)b * H + u0;
                cell_forward(gates_t + 4 * (size_t)b * H + u0, c_t + at, h_t + at, t > 0 ? c_t - BH + at : NULL, H,
                             width);
            }
        }
    }
}

// One row of a block of units. gates comes as i, f, g, o and leaves as the gradients of their sums; dc comes as the
// gradient of c_t from the time step after and leaves as that of c_(t-1). dh is complete.
ALWAYS_INLINE void cell_backward(real *gates, real *dc, const real *dh, const real *c, const real *c_before, int H,
                                 int width) {
    for (int u = 0; u < width; u += LANES) {
        const int left = width - u;
        vector i = load_part(gates + u, left), f = load_part(gates + H + u, left);
        vector g = load_part(gates + 2 * H + u, left), o = load_part(gates + 3 * H + u, left);
        vector tanh_c = tanh_vector(load_part(c + u, left)), dh_u = load_part(dh + u, left);
        vector dc_u = load_part(dc + u, left) + dh_u * o * (1 - tanh_c * tanh_c);
        vector c_before_u = c_before ? load_part(c_before + u, left) : zero;
        store_part(gates + u, dc_u * g * i * (1 - i), left);
        store_part(gates + H + u, dc_u * c_before_u * f * (1 - f), left);
        store_part(gates + 2 * H + u, dc_u * i * (1 - g * g), left);
        store_part(gates + 3 * H + u, dh_u * tanh_c * o * (1 - o), left);
        store_part(dc + u, dc_u * f, left);
    }
}

// gates [R,4H] comes as i, f, g, o and leaves as dgates. dh [R,H] comes as the gradient of h from above; the part from
// the time step after is added to it. dc [B,H]: scratch.
static void recurrence_backward(real *gates, real *dh, real *dc, const real *c, const real *panels, int B, int T, int H,
                                bool bf16, real *scratch) {
    const size_t BH = (size_t)B * H;
    memset(dc, 0, BH * sizeof(real));
#pragma omp parallel
    for (int t = T - 1; t >= 0; t--) {
        real *gates_t = gates + 4 * BH * t, *dh_t = dh + BH * t;
        const real *c_t = c + BH * t;
        MatmulRows rows = {0};
        if (t < T - 1) {
            rows = step_rows(gates_t + 4 * BH, B, 4 * H, bf16, scratch + thread_number() * step_scratch_size(B, H));
        }
#pragma omp for schedule(static)
        for (int u0 = 0; u0 < H; u0 += TILE_N) {
            const int width = min_int(TILE_N, H - u0);
            if (t < T - 1) matmul_panel_add(dh_t + u0, H, B, width, 4 * H, rows, panels + (size_t)u0 * 4 * H);
            for (int b = 0; b < B; b++) {
                size_t at = (size_t)b * H + u0;
                cell_backward(gates_t + 4 * (size_t)b * H + u0, dc + at, dh_t + at, c_t + at,
                              t > 0 ? c_t - BH + at : NULL, H, width);
            }
        }
    }
}

// ---- LayerNorm, ReLU, dropout
//
// y = dropout(relu(normalized * w + b)), normalized = (x - mean) * rstd (Ba et al., 2016), x a product with its bias.

// y = dropout(x), x, y [R,C], y may be x. It is its own backward, dx = dropout(dy).
static void dropout_forward(real *y, const real *x, Dropout dropout, int R, int B, int C, real *scratch) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *mask = scratch + thread_number() * dropout_scratch_size(C);
        dropout_row(mask, dropout, r % B, r / B, C);
        for (int c = 0; c < C; c++) y[(size_t)r * C + c] = x[(size_t)r * C + c] * mask[c];
    }
}

typedef struct {       // at one place of the model
    real *y;           // [R,C]
    real *normalized;  // [R,C], comes as x
    real *rstd;        // [R]
    const real *w, *b; // [C]
    Dropout dropout;
} LayerNorm;

// y, normalized and rstd of all rows; eps is 1e-5. scratch: dropout_scratch_size for each thread.
static void layernorm_relu_dropout_forward(LayerNorm norm, int R, int B, int C, real *scratch) {
    const real *w = norm.w, *b = norm.b;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *mask = scratch + thread_number() * dropout_scratch_size(C);
        real *y_r = norm.y + (size_t)r * C, *normalized_r = norm.normalized + (size_t)r * C;
        dropout_row(mask, norm.dropout, r % B, r / B, C);
        vector sum = zero, squares = zero;
        for (int c = 0; c < C; c += LANES) sum += load_part(normalized_r + c, C - c);
        const real mean = sum_lanes(sum) / (real)C;
        for (int c = 0; c < C; c++) normalized_r[c] -= mean;
        for (int c = 0; c < C; c += LANES) {
            vector x = load_part(normalized_r + c, C - c);
            squares += x * x;
        }
        const real scale = 1 / (real)sqrt((double)(sum_lanes(squares) / (real)C + (real)1e-5));
        for (int c = 0; c < C; c += LANES) {
            vector n = load_part(normalized_r + c, C - c) * scale;
            vector v = n * load_part(w + c, C - c) + load_part(b + c, C - c);
            store_part(normalized_r + c, n, C - c);
            store_part(y_r + c, keep_where(~(v < 0), v) * load_part(mask + c, C - c), C - c);
        }
        norm.rstd[r] = scale;
    }
}

// Rows whose gradients of w and b are summed together: a fixed number, so that threads change nothing.
enum { LAYERNORM_ROWS = 64 };

// d [R,C] comes as dy and becomes dx; dw, db [C] +=. partial: [R / LAYERNORM_ROWS rounded up, 2, C].
// With dv = dy * mask where v = normalized * w + b > 0, and g = dv * w:
//     dx = rstd * (g - mean(g) - normalized * mean(g * normalized))
static void layernorm_relu_dropout_backward(real *d, real *dw, real *db, LayerNorm norm, int R, int B, int C,
                                            real *partial, real *scratch) {
    const int chunks = divide_up(R, LAYERNORM_ROWS);
    const real *w = norm.w, *b = norm.b;
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *mask = scratch + thread_number() * dropout_scratch_size(C);
        real *dw_chunk = partial + (size_t)chunk * 2 * C, *db_chunk = dw_chunk + C;
        memset(dw_chunk, 0, 2 * (size_t)C * sizeof(real));
        for (int r = chunk * LAYERNORM_ROWS; r < min_int((chunk + 1) * LAYERNORM_ROWS, R); r++) {
            real *d_r = d + (size_t)r * C;
            const real *normalized_r = norm.normalized + (size_t)r * C;
            dropout_row(mask, norm.dropout, r % B, r / B, C);
            vector sum = zero, product = zero;
            for (int c = 0; c < C; c += LANES) {
                const int left = C - c;
                vector n = load_part(normalized_r + c, left), w_c = load_part(w + c, left);
                vector dv = load_part(d_r + c, left) * load_part(mask + c, left);
                dv = keep_where(n * w_c + load_part(b + c, left) > 0, dv);
                store_part(dw_chunk + c, load_part(dw_chunk + c, left) + dv * n, left);
                store_part(db_chunk + c, load_part(db_chunk + c, left) + dv, left);
                vector g = dv * w_c;
                store_part(d_r + c, g, left);
                sum += g;
                product += g * n;
            }
            const real mean = sum_lanes(sum) / (real)C, mean_product = sum_lanes(product) / (real)C;
            const real scale = norm.rstd[r];
            for (int c = 0; c < C; c++) d_r[c] = scale * (d_r[c] - mean - normalized_r[c] * mean_product);
        }
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        for (int c = 0; c < C; c++) {
            dw[c] += partial[(size_t)chunk * 2 * C + c];
            db[c] += partial[(size_t)chunk * 2 * C + C + c];
        }
    }
}

// ---- softmax, cross-entropy, Adamax

// losses[r] = -log softmax(logits[r])[targets[r]]
// dlogits[r] = (softmax(logits[r]) - one at the target) / R, unless dlogits is NULL
static void softmax_cross_entropy(real *losses, real *dlogits, const real *logits, const uint8_t *targets, int R) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        enum { ROW = (V + LANES - 1) / LANES * LANES };
        real e[ROW];
        const real *x = logits + (size_t)r * V;
        real max = x[0];
        for (int v = 1; v < V; v++) max = x[v] > max ? x[v] : max;
        for (int v = 0; v < ROW; v++) e[v] = v < V ? x[v] - max : -INFINITY;
        vector sums = zero;
        for (int v = 0; v < ROW; v += LANES) {
            vector e_v = exp_vector(load(e + v));
            store(e + v, e_v);
            sums += e_v;
        }
        const real sum = sum_lanes(sums);
        losses[r] = (real)log((double)sum) + max - x[targets[r]];
        if (dlogits) {
            const real scale = 1 / (sum * (real)R);
            for (int v = 0; v < V; v++) dlogits[(size_t)r * V + v] = e[v] * scale;
            dlogits[(size_t)r * V + targets[r]] -= 1 / (real)R;
        }
    }
}

// Adamax, as PyTorch has it: exp_avg = 0.9 exp_avg + 0.1 g; exp_inf = max(0.999 exp_inf, |g| + 1e-8);
// params -= lr / (1 - 0.9^t) * exp_avg / exp_inf, t = 1 in the first step. Before that, weights lose `decay` of
// themselves. Where there is an average of the weights, the new ones become `part` of it.
static void adamax(HostModel *m, const StepPlan *plan) {
    real *params = m->state[STATE_PARAMS], *exp_avg = m->state[STATE_EXP_AVG], *exp_inf = m->state[STATE_EXP_INF];
    real *average = m->state[STATE_AVERAGE];
    const double lr = warmed_lr(plan->lr, m->config.warmup, plan->step);
    const real rate = (real)(lr / (1 - pow(0.9, (double)plan->step + 1)));
    const real decay = (real)(lr * m->config.weight_decay);
    const real part = (real)average_part(m->config.average, plan->step);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m->layout.size; i += LANES) {
        vector p = load(params + i), g = load(m->state[STATE_GRADS] + i);
        vector avg = (real)0.9 * load(exp_avg + i) + (real)0.1 * g;
        vector inf = larger((real)0.999 * load(exp_inf + i), abs_vector(g) + (real)1e-8);
        p -= (m->decays[i / 16] ? decay : 0) * p;
        p -= rate * (avg / inf);
        store(params + i, p);
        store(exp_avg + i, avg);
        store(exp_inf + i, inf);
        if (average) store(average + i, load(average + i) + part * (p - load(average + i)));
    }
}

// ---- the model: memory

typedef struct {         // what the backward needs of a layer's forward
    real *gates, *c, *h; // [R,4H], [R,H], [R,H]
    real *x;             // [R,H] the layer above's input: dropout(h)
} LayerActivations;

typedef struct {
    HostModel host; // first
    LstmTensors params, grads;
    LayerActivations acts[LSTM_MAX_LAYERS];
    real *table, *bias;              // [V,4H] layer 0's input product of each token; [4H] sum of a layer's two biases
    real *normalized1, *rstd1, *x1;  // [R,2H], [R], [R,2H] of the head's first LayerNorm; x1 after dropout
    real *normalized2, *rstd2, *x2;  // [R,H], [R], [R,H] of its second
    real *logits, *dlogits, *losses; // [R,V], [R,V], [R]
    real *d, *d_wide, *dc;           // [R,H], [R,2H], [B,H]: gradients on their way down
    real *panels;                    // the recurrent weights of the layer at work, packed
    real *norm_partial, *scratch;    // LayerNorm's sums of w and b; the threads' own
    MatmulSpace mm;
} Lstm;

static int lstm_layers(const Lstm *m) { return m->host.config.sizes[LSTM_LAYERS]; }

// Takes the model's memory.
static void lstm_carve(void *model, Arena *arena) {
    Lstm *m = model;
    const ModelConfig *config = &m->host.config;
    const double B = config->B, R = B * config->T, E = config->sizes[LSTM_EMBED], H = config->sizes[LSTM_WIDTH];
    const double larger = fmax(4 * H, V), smaller = fmax(fmax(2 * H, E), V); // sizes that no weight exceeds
    const double weights = fmax((double)matmul_scratch_size((size_t)larger, (size_t)smaller),
                                (double)matmul_scratch_size((size_t)smaller, (size_t)larger));
    const double inputs = (double)matmul_scratch_size((size_t)fmin(R, MATMUL_ROWS), (size_t)fmax(E, 2 * H));
    for (int l = 0; l < lstm_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->gates = arena_take(arena, R * 4 * H);
        a->c = arena_take(arena, R * H);
        a->h = arena_take(arena, R * H);
        a->x = arena_take(arena, R * H);
    }
    m->table = arena_take(arena, V * 4 * H);
    m->bias = arena_take(arena, 4 * H);
    m->normalized1 = arena_take(arena, R * 2 * H);
    m->rstd1 = arena_take(arena, R);
    m->x1 = arena_take(arena, R * 2 * H);
    m->normalized2 = arena_take(arena, R * H);
    m->rstd2 = arena_take(arena, R);
    m->x2 = arena_take(arena, R * H);
    m->logits = arena_take(arena, R * V);
    m->dlogits = arena_take(arena, R * V);
    m->losses = arena_take(arena, R);
    m->d = arena_take(arena, R * H);
    m->d_wide = arena_take(arena, R * 2 * H);
    m->dc = arena_take(arena, B * H);
    m->panels = arena_take(arena, 4 * H * padded_units((int)H));
    m->norm_partial = arena_take(arena, ceil(R / LAYERNORM_ROWS) * 4 * H);
    const double of_thread =
        fmax((double)step_scratch_size(config->B, (int)H), (double)dropout_scratch_size((int)(2 * H)));
    m->scratch = arena_take(arena, (double)thread_count() * of_thread);
    m->mm.scratch = arena_take(arena, fmax(inputs, weights));
}

// ---- the model: forward, backward, update

static LayerNorm lstm_norm1(const Lstm *m, int64_t step) {
    const Dropout dropout = host_dropout(&m->host, step, lstm_layers(m));
    return (LayerNorm){m->x1, m->normalized1, m->rstd1, m->params.ln1_w, m->params.ln1_b, dropout};
}

static LayerNorm lstm_norm2(const Lstm *m, int64_t step) {
    const Dropout dropout = host_dropout(&m->host, step, lstm_layers(m) + 1);
    return (LayerNorm){m->x2, m->normalized2, m->rstd2, m->params.ln2_w, m->params.ln2_b, dropout};
}

// Logits of m->host.tokens, B windows, with the dropout of a training step, or without for step < 0.
static void lstm_forward(Lstm *m, int B, int64_t step) {
    const int *sizes = m->host.config.sizes, L = lstm_layers(m);
    const int T = m->host.config.T, R = B * T, E = sizes[LSTM_EMBED], H = sizes[LSTM_WIDTH];
    const LstmTensors *p = &m->params;
    for (int l = 0; l < L; l++) {
        const LayerTensors *layer = &p->layers[l];
        LayerActivations *a = &m->acts[l];
        for (int j = 0; j < 4 * H; j++) m->bias[j] = layer->b_ih[j] + layer->b_hh[j];
        if (l == 0) { // a token's input product is the same wherever the token stands
            matmul_forward(m->table, p->emb, layer->w_ih, m->bias, false, V, E, 4 * H, m->mm);
            embedding_forward(a->gates, m->host.tokens, m->table, R, 4 * H);
        } else {
            matmul_forward(a->gates, m->acts[l - 1].x, layer->w_ih, m->bias, false, R, H, 4 * H, m->mm);
        }
        pack_recurrent_forward(m->panels, layer->w_hh, H, m->mm.bf16);
        recurrence_forward(a->gates, a->c, a->h, m->panels, B, T, H, m->mm.bf16, m->scratch);
        dropout_forward(a->x, a->h, host_dropout(&m->host, step, l), R, B, H, m->scratch);
    }
    matmul_forward(m->normalized1, m->acts[L - 1].x, p->fc1_w, p->fc1_b, false, R, H, 2 * H, m->mm);
    layernorm_relu_dropout_forward(lstm_norm1(m, step), R, B, 2 * H, m->scratch);
    matmul_forward(m->normalized2, m->x1, p->fc2_w, p->fc2_b, false, R, 2 * H, H, m->mm);
    layernorm_relu_dropout_forward(lstm_norm2(m, step), R, B, H, m->scratch);
    matmul_forward(m->logits, m->x2, p->fc3_w, p->fc3_b, false, R, H, V, m->mm);
}

// Gradients of all parameters, from zero, after lstm_forward and softmax_cross_entropy of the same step.
static void lstm_backward(Lstm *m, int B, int64_t step) {
    const int *sizes = m->host.config.sizes, L = lstm_layers(m);
    const int T = m->host.config.T, R = B * T, E = sizes[LSTM_EMBED], H = sizes[LSTM_WIDTH];
    const LstmTensors *p = &m->params, *g = &m->grads;
    const MatmulSpace mm = m->mm;
    memset(m->host.state[STATE_GRADS], 0, (size_t)m->host.layout.size * sizeof(real));
    // logits = fc3(dropout(relu(LN2(fc2(dropout(relu(LN1(fc1(x)))))))))
    matmul_backward_weight(g->fc3_w, g->fc3_b, m->dlogits, m->x2, R, H, V, mm);
    matmul_backward_input(m->d, m->dlogits, p->fc3_w, NULL, false, R, H, V, mm);
    layernorm_relu_dropout_backward(m->d, g->ln2_w, g->ln2_b, lstm_norm2(m, step), R, B, H, m->norm_partial,
                                    m->scratch);
    matmul_backward_weight(g->fc2_w, g->fc2_b, m->d, m->x1, R, 2 * H, H, mm);
    matmul_backward_input(m->d_wide, m->d, p->fc2_w, NULL, false, R, 2 * H, H, mm);
    layernorm_relu_dropout_backward(m->d_wide, g->ln1_w, g->ln1_b, lstm_norm1(m, step), R, B, 2 * H, m->norm_partial,
                                    m->scratch);
    matmul_backward_weight(g->fc1_w, g->fc1_b, m->d_wide, m->acts[L - 1].x, R, H, 2 * H, mm);
    matmul_backward_input(m->d, m->d_wide, p->fc1_w, NULL, false, R, H, 2 * H, mm);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *layer = &p->layers[l], *dlayer = &g->layers[l];
        LayerActivations *a = &m->acts[l];
        real *dgates = a->gates; // they take the gates' place
        dropout_forward(m->d, m->d, host_dropout(&m->host, step, l), R, B, H, m->scratch);
        pack_recurrent_backward(m->panels, layer->w_hh, H, m->mm.bf16);
        recurrence_backward(dgates, m->d, m->dc, a->c, m->panels, B, T, H, m->mm.bf16, m->scratch);
        // W_hh multiplied h of the time step before, and zeros at t = 0.
        matmul_backward_weight(dlayer->w_hh, NULL, dgates + (size_t)B * 4 * H, a->h, R - B, H, 4 * H, mm);
        if (l == 0) {
            real *dtable = m->table;
            memset(dtable, 0, (size_t)V * 4 * H * sizeof(real));
            embedding_backward(dtable, dgates, m->host.tokens, R, 4 * H);
            matmul_backward_weight(dlayer->w_ih, dlayer->b_ih, dtable, p->emb, V, E, 4 * H, mm);
            matmul_backward_input(g->emb, dtable, layer->w_ih, NULL, true, V, E, 4 * H, mm);
        } else {
            matmul_backward_weight(dlayer->w_ih, dlayer->b_ih, dgates, m->acts[l - 1].x, R, H, 4 * H, mm);
            matmul_backward_input(m->d, dgates, layer->w_ih, NULL, false, R, H, 4 * H, mm);
        }
        memcpy(dlayer->b_hh, dlayer->b_ih, 4 * (size_t)H * sizeof(real)); // both biases have one gradient
    }
}

// ---- what the recipe asks of a model (recipe/model.h, ModelSpec)

// Copies the activations that a dump holds, before the update changes the parameters that some are made from.
static void lstm_keep(Lstm *m) {
    const LstmTensors *p = &m->params;
    const ModelConfig *config = &m->host.config;
    const int H = config->sizes[LSTM_WIDTH];
    real *out = m->host.kept;
    for (int l = 0; l < lstm_layers(m); l++) {
        out = lstm_keep_rows(config, out, m->acts[l].h, NULL, NULL, H);
        out = lstm_keep_rows(config, out, m->acts[l].c, NULL, NULL, H);
    }
    out = lstm_keep_rows(config, out, m->normalized1, p->ln1_w, p->ln1_b, 2 * H);
    out = lstm_keep_rows(config, out, m->normalized2, p->ln2_w, p->ln2_b, H);
    lstm_keep_rows(config, out, m->logits, NULL, NULL, V);
}

// Forward and loss of a planned step, and the backward if the loss is finite.
static double lstm_gradients(void *model, const StepPlan *plan) {
    Lstm *m = model;
    const int B = m->host.config.B;
    host_load_batch(&m->host, plan, true);
    lstm_forward(m, B, plan->step);
    if (m->host.kept) lstm_keep(m);
    softmax_cross_entropy(m->losses, m->dlogits, m->logits, m->host.targets, B * m->host.config.T);
    const double loss = mean_loss(m->losses, B * m->host.config.T);
    if (isfinite(loss)) lstm_backward(m, B, plan->step);
    return loss;
}

static void lstm_train_step(void *model, const StepPlan *plan) {
    Lstm *m = model;
    team_step(&m->host.team); // decides how many threads take part
    if (m->host.bad_step >= 0 || !host_count_step(&m->host, plan->step, lstm_gradients(m, plan))) return;
    adamax(&m->host, plan);
}

static void lstm_use_average(void *model, bool use) {
    Lstm *m = model;
    lstm_point(&m->params, &m->host.layout, lstm_layers(m), m->host.state[use ? STATE_AVERAGE : STATE_PARAMS]);
}

static void lstm_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Lstm *m = model;
    const int R = n * m->host.config.T;
    host_load_windows(&m->host, test, starts, NULL, n, true);
    lstm_forward(m, n, -1);
    softmax_cross_entropy(m->losses, NULL, m->logits, m->host.targets, R);
    eval_add(add, m->losses, m->host.targets, R);
}

static void *lstm_create(const ModelConfig *config, char *error) {
    Lstm *m = host_create(sizeof *m, config, lstm_layout, lstm_carve, error);
    if (!m) return NULL;
    m->mm.bf16 = !strcmp(config->precision, "bf16");
    lstm_point(&m->params, &m->host.layout, lstm_layers(m), m->host.state[STATE_PARAMS]);
    lstm_point(&m->grads, &m->host.layout, lstm_layers(m), m->host.state[STATE_GRADS]);
    return m;
}

// The activations of the last step. Called with list NULL before a step, it makes that step keep them.
static int lstm_activations(void *model, Activation *list) {
    Lstm *m = model;
    const int L = lstm_layers(m), count = 2 * L + 3;
    const int64_t R = (int64_t)m->host.config.B * m->host.config.T, H = m->host.config.sizes[LSTM_WIDTH];
    if (!list && !m->host.kept) m->host.kept = calloc((size_t)(R * ((2 * L + 3) * H + V)), sizeof(real));
    if (!m->host.kept) return -1;
    const real *data = m->host.kept;
    for (int i = 0; i < count && list; i++) data += R * lstm_describe(&list[i], data, &m->host.config, i);
    return count;
}

static const ModelSpec lstm_spec = {
    LSTM_MODEL_SPEC,
    HOST_MODEL_SPEC,
    .layout = lstm_layout,
    .create = lstm_create,
    .train_step = lstm_train_step,
    .eval_batch = lstm_eval_batch,
    .use_average = lstm_use_average,
    .gradients = lstm_gradients,
    .activations = lstm_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) {
    threads_wait_briefly(argv);
    return train_main(argc, argv, &lstm_spec);
}
#endif
