// The LSTM on the CPU: forward, backward and Adamax, whole, in the order of train_gpt_music.c. A trainer in its own
// right, and the reference for any faster one.
//
// It promises the published model exactly (4,426,457 parameters in its default sizes), every gradient checked against
// finite differences when built with -DREAL=double, the same bytes for any number of threads, and no allocation in a
// step. It leaves out more than one machine. The recipe around a step (data, epochs, files, command
// line) is train.h, what it needs to know of a model on the host host_model.h; matrix products are matmul.h.
//
// The model: token embedding, then L LSTM layers (Hochreiter and Schmidhuber, 1997; Gers et al., 2000), in each time
// step
//     i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), each with its rows of W and b
//     g = tanh(likewise)
//     c_t = f c_(t-1) + i g
//     h_t = o tanh(c_t)
//
// where h and c are zero before the first token, and dropout follows each layer; a head of two linear layers, 2H and H
// wide, each with LayerNorm, ReLU and dropout; a linear layer to the logits. The rows of W and b are in the order i, f,
// g, o. The optimizer is Adamax (Kingma and Ba, 2015, section 7.1).
//
// How it is fast: all that does not depend on the step before is done for all time steps at once, as large products.
// What remains, W_hh h_(t-1) forward and dgates_(t+1) W_hh backward, is a small product in each time step, on weights
// packed once beforehand, with the cell's update fused to it while the sums are in the nearest cache. Each thread owns
// some units, with all four gates of them, so that the threads meet once in a time step.
//
// Shapes: B batch, T positions, R = B*T rows, E embedding width, H units of a layer, L layers, V = 153 tokens. Row r is
// position t = r / B of window b = r % B: the windows' rows of one time step lie side by side, unlike in the files,
// where all of a window lies together. All matrices are row-major; a linear layer's weight is [out, in].
// In a backward, gradients of parameters are added to (+=), but that of the second bias, which is the first's;
// gradients of activations are set (=), save where it is said.
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
    LayerTensors *layers;
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

// Units are worked on in blocks of TILE_N, one panel for each gate: how many units there are with the last block whole.
static int block_units(int H) { return round_up(H, TILE_N); }

// panels [H / TILE_N][4][H][TILE_N]: of each block of units, gate after gate, W_hh transposed: what a step forward
// reads, in its order. In bf16 each panel takes half of its room.
static void pack_recurrent_forward(real *panels, const real *w_hh, int H, bool bf16) {
#pragma omp parallel for schedule(static)
    for (int q = 0; q < block_units(H) / TILE_N * 4; q++) {
        int u0 = q / 4 * TILE_N, width = min_int(TILE_N, H - u0);
        const real *from = w_hh + ((size_t)(q % 4) * H + u0) * H;
        real *panel = panels + (size_t)q * H * TILE_N;
        if (bf16) {
            pack_panel_bf16((uint32_t *)panel, from, 1, H, H, width);
        } else {
            pack_panel(panel, from, 1, H, H, width);
        }
    }
}

// panels [H / TILE_N][4H][TILE_N]: of each block of units, the columns of W_hh.
static void pack_recurrent_backward(real *panels, const real *w_hh, int H, bool bf16) {
#pragma omp parallel for schedule(static)
    for (int u0 = 0; u0 < H; u0 += TILE_N) {
        real *panel = panels + (size_t)u0 * 4 * H;
        if (bf16) {
            pack_panel_bf16((uint32_t *)panel, w_hh + u0, H, 1, 4 * H, min_int(TILE_N, H - u0));
        } else {
            pack_panel(panel, w_hh + u0, H, 1, 4 * H, min_int(TILE_N, H - u0));
        }
    }
}

// The left operand of a step's product: rows of x [B,K] as they are, or in bf16 in a thread's own scratch.
typedef struct {
    const real *x;
    const uint32_t *pairs; // or NULL
    int row;               // elements from row to row
} StepRows;

static size_t step_scratch_size(int B, int H) { return (size_t)round_up(B, TILE_M) * (2 * (size_t)H + 16); }

static StepRows step_rows(const real *x, int B, int K, bool bf16, real *scratch) {
    if (!bf16) return (StepRows){x, NULL, K};
    uint32_t *pairs = (uint32_t *)scratch;
    const int row = (K + 1) / 2 + 16; // lines of a whole power of two apart would compete for a place in the cache
    for (int b = 0; b < B; b++) bf16_pack(pairs + (size_t)b * row, x + (size_t)b * K, K);
    return (StepRows){NULL, pairs, row};
}

// out [B][width] += rows [B,K] panel [K][TILE_N]
static void step_product(real *out, int out_row, int B, int width, int K, StepRows rows, const real *panel) {
    if (rows.pairs) {
        matmul_panel_add_bf16(out, out_row, B, width, K, rows.pairs, rows.row, (const uint32_t *)panel);
    } else {
        matmul_panel_add(out, out_row, B, width, K, rows.x, rows.row, panel);
    }
}

// One row of a block of units: gates come as sums and leave as i, f, g, o, each H apart. c_before is NULL at the start.
ALWAYS_INLINE void cell_forward(real *gates, real *c, real *h, const real *c_before, int H, int width) {
    for (int u = 0; u < width; u += LANES) {
        const int n = width - u;
        vector i = sigmoid_vector(load_part(gates + u, n)), f = sigmoid_vector(load_part(gates + H + u, n));
        vector g = tanh_vector(load_part(gates + 2 * H + u, n)), o = sigmoid_vector(load_part(gates + 3 * H + u, n));
        vector c_u = i * g;
        if (c_before) c_u += f * load_part(c_before + u, n);
        store_part(gates + u, i, n);
        store_part(gates + H + u, f, n);
        store_part(gates + 2 * H + u, g, n);
        store_part(gates + 3 * H + u, o, n);
        store_part(c + u, c_u, n);
        store_part(h + u, o * tanh_vector(c_u), n);
    }
}

// A layer over all time steps. gates [R,4H] comes as W_ih x + b_ih + b_hh and leaves as i, f, g, o; c, h [R,H].
// scratch: step_scratch_size for each thread.
static void recurrence_forward(real *gates, real *c, real *h, const real *panels, int B, int T, int H, bool bf16,
                               real *scratch) {
    const size_t row = (size_t)H, step = (size_t)B * H;
#pragma omp parallel
    for (int t = 0; t < T; t++) {
        real *gates_t = gates + 4 * step * t, *c_t = c + step * t, *h_t = h + step * t;
        StepRows rows = {0};
        if (t > 0) rows = step_rows(h_t - step, B, H, bf16, scratch + thread_number() * step_scratch_size(B, H));
#pragma omp for schedule(static) // and the threads wait for each other at its end
        for (int u0 = 0; u0 < H; u0 += TILE_N) {
            const int width = min_int(TILE_N, H - u0);
            for (int gate = 0; gate < 4 && t > 0; gate++) {
                step_product(gates_t + gate * row + u0, 4 * H, B, width, H, rows,
                             panels + (4 * (size_t)u0 + (size_t)gate * TILE_N) * H);
            }
            for (int b = 0; b < B; b++) {
                size_t at = b * row + u0;
                cell_forward(gates_t + 4 * b * row + u0, c_t + at, h_t + at, t > 0 ? c_t - step + at : NULL, H, width);
            }
        }
    }
}

// One row of a block of units: gates come as i, f, g, o and leave as the gradients of their sums; dh is complete;
// dc comes as the gradient of c_t from the step after and leaves as that of c_(t-1).
ALWAYS_INLINE void cell_backward(real *gates, real *dc, const real *dh, const real *c, const real *c_before, int H,
                                 int width) {
    for (int u = 0; u < width; u += LANES) {
        const int n = width - u;
        vector i = load_part(gates + u, n), f = load_part(gates + H + u, n), g = load_part(gates + 2 * H + u, n),
               o = load_part(gates + 3 * H + u, n);
        vector tanh_c = tanh_vector(load_part(c + u, n)), dh_u = load_part(dh + u, n);
        vector dc_u = load_part(dc + u, n) + dh_u * o * (1 - tanh_c * tanh_c);
        vector before = c_before ? load_part(c_before + u, n) : zero;
        store_part(gates + u, dc_u * g * i * (1 - i), n);
        store_part(gates + H + u, dc_u * before * f * (1 - f), n);
        store_part(gates + 2 * H + u, dc_u * i * (1 - g * g), n);
        store_part(gates + 3 * H + u, dh_u * tanh_c * o * (1 - o), n);
        store_part(dc + u, dc_u * f, n);
    }
}

// gates [R,4H] comes as i, f, g, o and leaves as the gradients of the gates' sums. dh [R,H] comes as the gradient of h
// from above; what comes from the step after is added to it: dgates_(t+1) W_hh. dc [B,H]: scratch.
static void recurrence_backward(real *gates, real *dh, real *dc, const real *c, const real *panels, int B, int T, int H,
                                bool bf16, real *scratch) {
    const size_t row = (size_t)H, step = (size_t)B * H;
    memset(dc, 0, step * sizeof(real));
#pragma omp parallel
    for (int t = T - 1; t >= 0; t--) {
        real *gates_t = gates + 4 * step * t, *dh_t = dh + step * t;
        const real *c_t = c + step * t;
        StepRows rows = {0};
        if (t < T - 1) {
            rows = step_rows(gates_t + 4 * step, B, 4 * H, bf16, scratch + thread_number() * step_scratch_size(B, H));
        }
#pragma omp for schedule(static)
        for (int u0 = 0; u0 < H; u0 += TILE_N) {
            const int width = min_int(TILE_N, H - u0);
            if (t < T - 1) step_product(dh_t + u0, H, B, width, 4 * H, rows, panels + (size_t)u0 * 4 * H);
            for (int b = 0; b < B; b++) {
                size_t at = b * row + u0;
                cell_backward(gates_t + 4 * b * row + u0, dc + at, dh_t + at, c_t + at, t > 0 ? c_t - step + at : NULL,
                              H, width);
            }
        }
    }
}

// ---- dropout, LayerNorm and ReLU

// y = dropout(x), x, y [R,C], y may be x; and its backward, as dx = dropout(dy).
static void dropout_forward(real *y, const real *x, Dropout dropout, int R, int B, int C, real *scratch) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *kept = scratch + thread_number() * dropout_scratch_size(C);
        dropout_row(kept, dropout, r % B, r / B, C);
        for (int c = 0; c < C; c++) y[(size_t)r * C + c] = x[(size_t)r * C + c] * kept[c];
    }
}

// y = dropout(relu(normalized * w + b)), normalized = (x - mean) * rstd, eps = 1e-5 (Ba et al., 2016). normalized [R,C]
// comes as x; y [R,C], rstd [R].
static void layernorm_relu_dropout_forward(real *y, real *normalized, real *rstd, const real *w, const real *b,
                                           Dropout dropout, int R, int B, int C, real *scratch) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *kept = scratch + thread_number() * dropout_scratch_size(C);
        real *y_r = y + (size_t)r * C, *normalized_r = normalized + (size_t)r * C;
        dropout_row(kept, dropout, r % B, r / B, C);
        vector sum = zero, squares = zero;
        for (int c = 0; c < C; c += LANES) sum += load_part(normalized_r + c, C - c);
        const real mean = sum_lanes(sum) / (real)C;
        for (int c = 0; c < C; c++) normalized_r[c] -= mean;
        for (int c = 0; c < C; c += LANES) {
            vector v = load_part(normalized_r + c, C - c);
            squares += v * v;
        }
        const real scale = 1 / (real)sqrt((double)(sum_lanes(squares) / (real)C + (real)1e-5));
        for (int c = 0; c < C; c += LANES) {
            vector n = load_part(normalized_r + c, C - c) * scale;
            vector v = n * load_part(w + c, C - c) + load_part(b + c, C - c);
            store_part(normalized_r + c, n, C - c);
            store_part(y_r + c, keep_where(~(v < 0), v) * load_part(kept + c, C - c), C - c);
        }
        rstd[r] = scale;
    }
}

// Rows whose gradients of w and b are summed together: a fixed number, so that threads change nothing.
enum { LAYERNORM_ROWS = 64 };

// d [R,C] comes as dy and becomes dx; dw, db +=. partial: [R / LAYERNORM_ROWS rounded up, 2, C].
// With dv = dy * mask where v = normalized * w + b > 0, and g = dv * w:
// dx = rstd * (g - mean(g) - normalized * mean(g * normalized)).
static void layernorm_relu_dropout_backward(real *d, real *dw, real *db, const real *normalized, const real *rstd,
                                            const real *w, const real *b, Dropout dropout, int R, int B, int C,
                                            real *partial, real *scratch) {
    const int chunks = divide_up(R, LAYERNORM_ROWS);
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *kept = scratch + thread_number() * dropout_scratch_size(C);
        real *dw_chunk = partial + (size_t)chunk * 2 * C, *db_chunk = dw_chunk + C;
        memset(dw_chunk, 0, 2 * (size_t)C * sizeof(real));
        for (int r = chunk * LAYERNORM_ROWS; r < min_int((chunk + 1) * LAYERNORM_ROWS, R); r++) {
            real *d_r = d + (size_t)r * C;
            const real *normalized_r = normalized + (size_t)r * C;
            dropout_row(kept, dropout, r % B, r / B, C);
            vector sum = zero, product = zero;
            for (int c = 0; c < C; c += LANES) {
                const int left = C - c;
                vector n = load_part(normalized_r + c, left), w_c = load_part(w + c, left);
                vector dv = load_part(d_r + c, left) * load_part(kept + c, left);
                dv = keep_where(n * w_c + load_part(b + c, left) > 0, dv);
                store_part(dw_chunk + c, load_part(dw_chunk + c, left) + dv * n, left);
                store_part(db_chunk + c, load_part(db_chunk + c, left) + dv, left);
                vector g = dv * w_c;
                store_part(d_r + c, g, left);
                sum += g;
                product += g * n;
            }
            const real mean = sum_lanes(sum) / (real)C, mean_product = sum_lanes(product) / (real)C;
            for (int c = 0; c < C; c++) d_r[c] = rstd[r] * (d_r[c] - mean - normalized_r[c] * mean_product);
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

// losses[r] = -log softmax(logits[r])[targets[r]]; dlogits[r] = (softmax - one at the target) / R, unless dlogits is
// NULL.
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
// params -= lr / (1 - 0.9^t) * exp_avg / exp_inf, t = 1 in the first step.
static void adamax(real *params, const real *grads, real *exp_avg, real *exp_inf, int64_t n, double lr, int64_t t) {
    const real rate = (real)(lr / (1 - pow(0.9, (double)t)));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real g = grads[i], size = (g < 0 ? -g : g) + (real)1e-8, decayed = (real)0.999 * exp_inf[i];
        exp_avg[i] = (real)0.9 * exp_avg[i] + (real)0.1 * g;
        exp_inf[i] = decayed > size ? decayed : size;
        params[i] -= rate * (exp_avg[i] / exp_inf[i]);
    }
}

// ---- the model: memory

typedef struct {         // what the backward needs of a layer's forward
    real *gates, *c, *h; // [R,4H], [R,H], [R,H]
    real *x;             // [R,H] the layer above's input: dropout(h)
} LayerActivations;

typedef struct {
    HostModel host;
    LstmTensors params, grads;
    LayerActivations *acts;
    real *table, *bias;              // [V,4H] layer 0's gates of each token; [4H] sum of a layer's two biases
    real *normalized1, *rstd1, *x1;  // [R,2H], [R], [R,2H] of the head's first layer; x1 after dropout
    real *normalized2, *rstd2, *x2;  // [R,H], [R], [R,H] of its second
    real *logits, *dlogits, *losses; // [R,V], [R,V], [R]
    real *d, *d_wide, *dc;           // [R,H], [R,2H], [B,H]: gradients on their way down
    real *panels;                    // the recurrent weights of the layer at work, packed
    real *ln_partial, *scratch;
    MatmulSpace mm;
} Lstm;

static int lstm_layers(const Lstm *m) { return m->host.config.sizes[LSTM_LAYERS]; }

// Points into the block of memory at base and returns its elements; with base NULL it only counts.
static double lstm_carve(Lstm *m, real *base) {
    const double R = (double)m->host.config.B * m->host.config.T, E = m->host.config.sizes[LSTM_EMBED],
                 H = m->host.config.sizes[LSTM_WIDTH];
    const double inputs = (double)matmul_scratch_size((size_t)R, (size_t)fmax(E, 2 * H));
    const double w = fmax(4 * H, V), n = fmax(fmax(2 * H, E), V); // the larger and the smaller size of a weight
    const double weights =
        (double)fmax(matmul_scratch_size((size_t)w, (size_t)n), matmul_scratch_size((size_t)n, (size_t)w));
    Arena arena = {base, 0};
    for (int i = 0; i < 4; i++) m->host.state[i] = arena_take(&arena, (double)m->host.layout.size);
    for (int l = 0; l < lstm_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->gates = arena_take(&arena, R * 4 * H);
        a->c = arena_take(&arena, R * H);
        a->h = arena_take(&arena, R * H);
        a->x = arena_take(&arena, R * H);
    }
    m->table = arena_take(&arena, V * 4 * H);
    m->bias = arena_take(&arena, 4 * H);
    m->normalized1 = arena_take(&arena, R * 2 * H);
    m->rstd1 = arena_take(&arena, R);
    m->x1 = arena_take(&arena, R * 2 * H);
    m->normalized2 = arena_take(&arena, R * H);
    m->rstd2 = arena_take(&arena, R);
    m->x2 = arena_take(&arena, R * H);
    m->logits = arena_take(&arena, R * V);
    m->dlogits = arena_take(&arena, R * V);
    m->losses = arena_take(&arena, R);
    m->d = arena_take(&arena, R * H);
    m->d_wide = arena_take(&arena, R * 2 * H);
    m->dc = arena_take(&arena, m->host.config.B * H);
    m->panels = arena_take(&arena, 4 * H * block_units((int)H));
    m->ln_partial = arena_take(&arena, ceil(R / LAYERNORM_ROWS) * 4 * H);
    const double rows = (double)step_scratch_size(m->host.config.B, (int)H);
    m->scratch = arena_take(&arena, (double)thread_count() * fmax(rows, (double)dropout_scratch_size((int)(2 * H))));
    m->mm.scratch = arena_take(&arena, fmax(inputs, weights));
    return arena.used;
}

static void lstm_destroy(void *model) {
    Lstm *m = (Lstm *)model;
    if (!m) return;
    host_destroy(&m->host);
    free(m->params.layers);
    free(m->grads.layers);
    free(m->acts);
    free(m);
}

static void *lstm_create(const ModelConfig *config, char *error) {
    Lstm *m = (Lstm *)allocate("the model", 1, sizeof *m, error);
    if (!m) return NULL;
    const int L = config->sizes[LSTM_LAYERS];
    bool ok = host_create(&m->host, config, lstm_layout, error);
    m->acts = (LayerActivations *)allocate("the model", L, sizeof(LayerActivations), error);
    m->params.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    m->grads.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    if (ok && m->acts && m->params.layers && m->grads.layers) {
        m->host.memory = allocate("the model and its activations", lstm_carve(m, NULL), sizeof(real), error);
    }
    if (!m->host.memory) {
        lstm_destroy(m);
        return NULL;
    }
    lstm_carve(m, (real *)m->host.memory);
    m->mm.bf16 = !strcmp(config->precision, "bf16");
    lstm_point(&m->params, &m->host.layout, L, m->host.state[STATE_PARAMS]);
    lstm_point(&m->grads, &m->host.layout, L, m->host.state[STATE_GRADS]);
    return m;
}

// ---- the model: forward, backward, update

// Copies the rows of x to `at`, in the order of the files; relu(x * w + b) of them where there is a w. Returns the end.
static real *keep_rows(real *at, const real *x, const real *w, const real *b, int B, int T, int C) {
    for (int r = 0; r < B * T; r++) {
        real *out = at + ((size_t)(r % B) * T + r / B) * C;
        const real *x_r = x + (size_t)r * C;
        for (int c = 0; c < C; c++) {
            real v = w ? x_r[c] * w[c] + b[c] : x_r[c];
            out[c] = w && v < 0 ? 0 : v;
        }
    }
    return at + (size_t)B * T * C;
}

static void lstm_keep(Lstm *m, int B) {
    const int T = m->host.config.T, H = m->host.config.sizes[LSTM_WIDTH];
    real *at = m->host.kept;
    for (int l = 0; l < lstm_layers(m); l++) {
        at = keep_rows(at, m->acts[l].h, NULL, NULL, B, T, H);
        at = keep_rows(at, m->acts[l].c, NULL, NULL, B, T, H);
    }
    at = keep_rows(at, m->normalized1, m->params.ln1_w, m->params.ln1_b, B, T, 2 * H);
    at = keep_rows(at, m->normalized2, m->params.ln2_w, m->params.ln2_b, B, T, H);
    keep_rows(at, m->logits, NULL, NULL, B, T, V);
}

// Logits of m->host.tokens, B windows, with the dropout of a step, or without for step < 0.
static void lstm_forward(Lstm *m, int B, int64_t step) {
    const int T = m->host.config.T, R = B * T, E = m->host.config.sizes[LSTM_EMBED],
              H = m->host.config.sizes[LSTM_WIDTH];
    const int L = lstm_layers(m);
    const LstmTensors *p = &m->params;
    for (int l = 0; l < L; l++) {
        const LayerTensors *layer = &p->layers[l];
        LayerActivations *a = &m->acts[l];
        for (int j = 0; j < 4 * H; j++) m->bias[j] = layer->b_ih[j] + layer->b_hh[j];
        if (l == 0) { // a token's input product is the same wherever it stands
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
    layernorm_relu_dropout_forward(m->x1, m->normalized1, m->rstd1, p->ln1_w, p->ln1_b, host_dropout(&m->host, step, L),
                                   R, B, 2 * H, m->scratch);
    matmul_forward(m->normalized2, m->x1, p->fc2_w, p->fc2_b, false, R, 2 * H, H, m->mm);
    layernorm_relu_dropout_forward(m->x2, m->normalized2, m->rstd2, p->ln2_w, p->ln2_b,
                                   host_dropout(&m->host, step, L + 1), R, B, H, m->scratch);
    matmul_forward(m->logits, m->x2, p->fc3_w, p->fc3_b, false, R, H, V, m->mm);
    if (m->host.kept) lstm_keep(m, B);
}

// The mean loss of the batch; with dlogits ready for the backward if asked.
static double lstm_loss(Lstm *m, int R, bool backward) {
    softmax_cross_entropy(m->losses, backward ? m->dlogits : NULL, m->logits, m->host.targets, R);
    double sum = 0;
    for (int r = 0; r < R; r++) sum += (double)m->losses[r];
    return sum / R;
}

// Gradients of all parameters, from zero, after lstm_forward and lstm_loss of the same step.
static void lstm_backward(Lstm *m, int B, int64_t step) {
    const int T = m->host.config.T, R = B * T, E = m->host.config.sizes[LSTM_EMBED],
              H = m->host.config.sizes[LSTM_WIDTH];
    const int L = lstm_layers(m);
    const LstmTensors *p = &m->params, *g = &m->grads;
    const MatmulSpace mm = m->mm;
    memset(m->host.state[STATE_GRADS], 0, (size_t)m->host.layout.size * sizeof(real));
    // logits = fc3(dropout(relu(LN2(fc2(dropout(relu(LN1(fc1(x)))))))))
    matmul_backward_weight(g->fc3_w, g->fc3_b, m->dlogits, m->x2, R, H, V, mm);
    matmul_backward_input(m->d, m->dlogits, p->fc3_w, NULL, false, R, H, V, mm);
    layernorm_relu_dropout_backward(m->d, g->ln2_w, g->ln2_b, m->normalized2, m->rstd2, p->ln2_w, p->ln2_b,
                                    host_dropout(&m->host, step, L + 1), R, B, H, m->ln_partial, m->scratch);
    matmul_backward_weight(g->fc2_w, g->fc2_b, m->d, m->x1, R, 2 * H, H, mm);
    matmul_backward_input(m->d_wide, m->d, p->fc2_w, NULL, false, R, 2 * H, H, mm);
    layernorm_relu_dropout_backward(m->d_wide, g->ln1_w, g->ln1_b, m->normalized1, m->rstd1, p->ln1_w, p->ln1_b,
                                    host_dropout(&m->host, step, L), R, B, 2 * H, m->ln_partial, m->scratch);
    matmul_backward_weight(g->fc1_w, g->fc1_b, m->d_wide, m->acts[L - 1].x, R, H, 2 * H, mm);
    matmul_backward_input(m->d, m->d_wide, p->fc1_w, NULL, false, R, H, 2 * H, mm);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *layer = &p->layers[l], *dlayer = &g->layers[l];
        LayerActivations *a = &m->acts[l];
        real *dgates = a->gates; // they take the gates' place
        dropout_forward(m->d, m->d, host_dropout(&m->host, step, l), R, B, H, m->scratch);
        pack_recurrent_backward(m->panels, layer->w_hh, H, m->mm.bf16);
        recurrence_backward(dgates, m->d, m->dc, a->c, m->panels, B, T, H, m->mm.bf16, m->scratch);
        // Gates of step t met h of step t - 1, and zeros at t = 0.
        matmul(dlayer->w_hh, 4 * H, H, R - B, dgates + (size_t)B * 4 * H, 1, 4 * H, a->h, H, 1, (Epilogue){.add = true},
               mm);
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

// ---- what the recipe asks of a model (train.h, ModelSpec)

static void lstm_load_windows(Lstm *m, const Dataset *data, const int64_t *starts, int n) {
    for (int r = 0; r < n * m->host.config.T; r++) {
        const uint8_t *token = data->tokens + starts[r % n] + r / n;
        m->host.tokens[r] = token[0];
        m->host.targets[r] = token[1];
    }
}

// Forward and loss of a planned step, and the backward if the loss is finite.
static double lstm_gradients(void *model, const StepPlan *plan) {
    Lstm *m = (Lstm *)model;
    const int B = m->host.config.B;
    epoch_batch(m->host.data, m->host.config.seed, plan->epoch, plan->index, B, m->host.starts);
    lstm_load_windows(m, m->host.data, m->host.starts, B);
    lstm_forward(m, B, plan->step);
    double loss = lstm_loss(m, B * m->host.config.T, true);
    if (isfinite(loss)) lstm_backward(m, B, plan->step);
    return loss;
}

static void lstm_train_step(void *model, const StepPlan *plan) {
    Lstm *m = (Lstm *)model;
    if (m->host.bad_step >= 0) return;
    double loss = lstm_gradients(m, plan);
    if (!isfinite(loss) || !all_finite(m->host.state[STATE_GRADS], m->host.layout.size)) {
        m->host.bad_step = plan->step;
        return;
    }
    adamax(m->host.state[STATE_PARAMS], m->host.state[STATE_GRADS], m->host.state[STATE_EXP_AVG],
           m->host.state[STATE_EXP_INF], m->host.layout.size, plan->lr, plan->step + 1);
    m->host.loss_sum += loss;
}

static void lstm_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Lstm *m = (Lstm *)model;
    lstm_load_windows(m, test, starts, n);
    lstm_forward(m, n, -1);
    lstm_loss(m, n * m->host.config.T, false);
    eval_add(add, m->losses, m->host.targets, n * m->host.config.T);
}

// The activations of the last step. Called with list NULL before a step, it makes that step keep them.
static int lstm_activations(void *model, Activation *list) {
    Lstm *m = (Lstm *)model;
    const int L = lstm_layers(m), count = 2 * L + 3;
    const int64_t B = m->host.config.B, T = m->host.config.T, H = m->host.config.sizes[LSTM_WIDTH];
    if (!list && !m->host.kept) m->host.kept = (real *)calloc((size_t)(B * T * ((2 * L + 3) * H + V)), sizeof(real));
    if (!m->host.kept) return -1;
    const real *at = m->host.kept;
    for (int i = 0; i < count && list; i++) {
        const int64_t C = i == 2 * L ? 2 * H : i < count - 1 ? H : V;
        list[i] = (Activation){"", 3, {B, T, C}, at};
        if (i < 2 * L) snprintf(list[i].name, sizeof list[i].name, "act.%c_l%d", "hc"[i % 2], i / 2);
        at += B * T * C;
    }
    for (int i = 2 * L; i < count && list; i++) {
        strcpy(list[i].name, i == 2 * L ? "act.head.3" : i < count - 1 ? "act.head.7" : "logits");
    }
    return count;
}

static const ModelSpec lstm_spec = {
    .name = "lstm",
    .device = "cpu",
    .precisions = HOST_PRECISIONS,
    .size_flags = lstm_size_flags,
    .n_sizes = LSTM_SIZES,
    .lr = 5e-4,
    .lr_decay = 0.8,
    .lr_min = 5e-5,
    .check_sizes = lstm_check_sizes,
    .layout = lstm_layout,
    .sizes_of_file = lstm_sizes_of_file,
    .step_flops = lstm_step_flops,
    .create = lstm_create,
    .destroy = lstm_destroy,
    .state = host_state,
    .state_changed = host_state_changed,
    .set_data = host_set_data,
    .train_step = lstm_train_step,
    .get_loss = host_get_loss,
    .set_loss = host_set_loss,
    .eval_batch = lstm_eval_batch,
    .gradients = lstm_gradients,
    .activations = lstm_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) { return train_main(argc, argv, &lstm_spec); }
#endif
