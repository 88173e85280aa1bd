// The Transformer on the CPU: forward, backward and Adamax, whole. A trainer in its own right, and the reference for
// any faster one.
//
// It promises the published model exactly (4,326,041 parameters in its default sizes), every gradient checked against
// finite differences when built with -DREAL=double, the same bytes for any number of threads, and no allocation in a
// step. It leaves out more than one machine. The recipe around a step (data, epochs, files, command
// line) is train.h, what it needs to know of a model on the host host_model.h; matrix products are matmul.h.
//
// The model: token embedding, then L layers, each
//     x = LN1(x + dropout(attention(x) Wo^T + bo))
//     x = LN2(x + dropout(relu(x W1^T + b1) W2^T + b2))
// and a linear head. Attention follows Vaswani et al., Attention Is All You Need, 2017, post-norm, with a learned
// vector per clipped relative distance (Shaw et al., 2018; Huang et al., Music Transformer, 2018) and with each layer's
// raw scores added to the next layer's (He et al., RealFormer, 2021). The optimizer is Adamax (Kingma and Ba, 2015,
// section 7.1).
//
// Shapes: B batch, T positions, R = B*T rows, C width, H heads, S = C/H head size, F hidden width, L layers, V = 153
// tokens, D distances in the relative table. All matrices are row-major; a linear layer's weight is [out, in].
// In a backward, gradients of parameters are added to (+=); gradients of activations are set (=), save where a residual
// branch adds to them, which is said.
#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cpu/host_model.h"
#include "cpu/matmul.h"
#include "models/gpt.h"

enum { V = DATA_TOKENS };

// ---- parameters

// Every parameter tensor of a layer, once: member, name in the file, initial values, rank and shape.
#define GPT_LAYER_TENSORS(X)                                                                                           \
    X(qkv_w, "attn.qkv.weight", INIT_NORMAL, 1 / sqrt(C), 2, 3 * C, C) /* Xavier of three C x C matrices */            \
    X(qkv_b, "attn.qkv.bias", INIT_FILL, 0, 1, 3 * C, 1)                                                               \
    X(rel, "attn.rel", INIT_NORMAL, 1, 2, D, C / H)                                                                    \
    X(out_w, "attn.out.weight", INIT_NORMAL, 1 / sqrt(C), 2, C, C)                                                     \
    X(out_b, "attn.out.bias", INIT_FILL, 0, 1, C, 1)                                                                   \
    X(ln1_w, "ln1.weight", INIT_FILL, 1, 1, C, 1)                                                                      \
    X(ln1_b, "ln1.bias", INIT_FILL, 0, 1, C, 1)                                                                        \
    X(fc1_w, "fc1.weight", INIT_UNIFORM, 1 / sqrt(C), 2, F, C)                                                         \
    X(fc1_b, "fc1.bias", INIT_UNIFORM, 1 / sqrt(C), 1, F, 1)                                                           \
    X(fc2_w, "fc2.weight", INIT_UNIFORM, 1 / sqrt(F), 2, C, F)                                                         \
    X(fc2_b, "fc2.bias", INIT_UNIFORM, 1 / sqrt(F), 1, C, 1)                                                           \
    X(ln2_w, "ln2.weight", INIT_FILL, 1, 1, C, 1)                                                                      \
    X(ln2_b, "ln2.bias", INIT_FILL, 0, 1, C, 1)

#define LAYER_MEMBER(member, ...) real *member;
typedef struct {
    GPT_LAYER_TENSORS(LAYER_MEMBER)
} LayerTensors;

typedef struct { // pointers into a flat array: the parameters, their gradients, ...
    real *emb;   // [V,C]
    LayerTensors *layers;
    real *head_w, *head_b; // [V,C], [V]
} GptTensors;

static void gpt_layout(const int *sizes, ParamLayout *out) {
    int C = sizes[GPT_WIDTH], H = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN], D = sizes[GPT_REL];
    param_add(out, INIT_NORMAL, 1, 2, V, C, "emb.weight");
    for (int l = 0; l < sizes[GPT_LAYERS]; l++) {
#define ADD_TENSOR(member, name, init, scale, rank, rows, columns)                                                     \
    param_add(out, init, scale, rank, rows, columns, "layers.%d." name, l);
        GPT_LAYER_TENSORS(ADD_TENSOR)
    }
    param_add(out, INIT_UNIFORM, 1 / sqrt(C), 2, V, C, "head.weight");
    param_add(out, INIT_UNIFORM, 1 / sqrt(C), 1, V, 1, "head.bias");
}

// Points the members into a flat array that is laid out as gpt_layout says.
static void gpt_point(GptTensors *tensors, const ParamLayout *layout, int L, real *flat) {
    const ParamTensor *next = layout->list;
    tensors->emb = flat + next++->offset;
    for (int l = 0; l < L; l++) {
#define POINT_TENSOR(member, ...) tensors->layers[l].member = flat + next++->offset;
        GPT_LAYER_TENSORS(POINT_TENSOR)
    }
    tensors->head_w = flat + next++->offset;
    tensors->head_b = flat + next++->offset;
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

// ---- attention

// Both directions walk a head's causal triangle in tiles of Q_ROWS queries against the keys up to the last of them, and
// every product is tile() of matmul.h on operands where they lie. A relative score belongs to a distance n = t - j, so
// a product over distances is skewed against one over keys: its element (t, n) lies at s[t][t - n], which is a row
// stride one longer and a column stride of -1. tile() takes any strides, so nothing is shifted by hand but the
// forward's sum of the two.
enum { Q_ROWS = 2 * TILE_M };

typedef struct {
    int T, C, H, S, D;
    int keys;     // T rounded up to whole tiles and panels
    int head_row; // S rounded up to whole vectors
    int row;      // elements of a scratch row: Q_ROWS zeros, the keys, room for a skewed read
} AttentionShape;

static AttentionShape attention_shape(int T, int C, int H, int D) {
    int keys = round_up(round_up(T, Q_ROWS), TILE_N);
    return (AttentionShape){T, C, H, C / H, D, keys, round_up(C / H, LANES), Q_ROWS + keys + Q_ROWS};
}

// Raw scores are kept for every layer, of each head the rows of a tile of queries up to the tile's last key: where tile
// number q begins, and for q = the number of tiles how many elements there are.
static size_t score_tile(int q) { return (size_t)Q_ROWS * Q_ROWS * q * (q + 1) / 2; }

static size_t scores_per_head(AttentionShape s) { return score_tile(divide_up(s.T, Q_ROWS)); }

// Scratch of one thread: [S][keys] transposed keys or values, two tiles of rows, [TILE_M][head_row] of out or dq,
// [keys][head_row] gradients of k and v.
static size_t attention_scratch_size(AttentionShape s) {
    return (size_t)s.keys * s.S + 2 * (size_t)Q_ROWS * s.row + (size_t)(TILE_M + 2 * s.keys) * s.head_row;
}

// The vectors of distance n = 0..keys-1: as rows, rel_rows[n][.], and as columns in the order of keys, that is
// rel_columns[.][keys - 1 - n]. Row D-1-n of the table is distance n, its row 0 all that is farther.
static void relative_vectors(real *rel_rows, real *rel_columns, const real *rel, AttentionShape s) {
    for (int n = 0; n < s.keys; n++) {
        const real *vector_n = rel + (size_t)(s.D - 1 - min_int(n, s.D - 1)) * s.S;
        for (int d = 0; d < s.S; d++) {
            rel_rows[(size_t)n * s.head_row + d] = vector_n[d];
            rel_columns[(size_t)d * s.keys + s.keys - 1 - n] = vector_n[d];
        }
    }
}

// columns[d][j] = rows[j][d], rows of stride 3C, zeros for keys that do not exist
static void transpose_head(real *columns, const real *rows, AttentionShape s) {
    for (int d = 0; d < s.S; d++) {
        for (int j = 0; j < s.keys; j++) columns[(size_t)d * s.keys + j] = j < s.T ? rows[(size_t)j * 3 * s.C + d] : 0;
    }
}

// out[Q_ROWS][width] = a b: a has Q_ROWS rows of S at stride a_row, b [S][keys] begins at its first column.
static void tile_rows(real *out, int out_row, int width, const real *a, int a_row, const real *b, AttentionShape s) {
    for (int j = 0; j < width; j += TILE_N) {
        for (int i = 0; i < Q_ROWS; i += TILE_M) {
            vector sums[TILE_M][TILE_VECTORS];
            tile_zero(sums);
            tile(sums, TILE_VECTORS, s.S, a + (size_t)i * a_row, a_row, 1, b + j, s.keys);
            tile_store(sums, out + (size_t)i * out_row + j, out_row, (Epilogue){0});
        }
    }
}

// c[i][0..head_row) += sum_k A(i,k) b[k][.], i < TILE_M: A as in tile(), b at stride b_row, c at stride head_row.
// Not inlined, because gcc then keeps the rows' addresses in registers (about 1 % of a step).
__attribute__((noinline)) static void tile_add(real *c, int K, const real *a, ptrdiff_t a_row, ptrdiff_t a_col,
                                               const real *b, ptrdiff_t b_row, AttentionShape s) {
    for (int d = 0; d < s.S; d += LANES) {
        vector sums[TILE_M][TILE_VECTORS];
        UNROLL for (int i = 0; i < TILE_M; i++) sums[i][0] = load(c + (size_t)i * s.head_row + d);
        tile(sums, 1, K, a, a_row, a_col, b + d, b_row);
        UNROLL for (int i = 0; i < TILE_M; i++) store(c + (size_t)i * s.head_row + d, sums[i][0]);
    }
}

// For every head, with q, k, v [T,S] its columns of qkv [R,3C]:
//     scores[t][j] = (q_t . k_j + q_t . rel[t - j]) / sqrt(S) + scores_below[t][j], -inf for j > t
//     out_t = sum_j softmax_j(scores[t]) v_j
// out [R,C], heads side by side; log_sums [B,H,T], the logarithms of the softmaxes' denominators. scores_below: those
// of the layer below, or NULL; the mask need only be put into the first layer's scores, as -inf stays -inf. scratch:
// per thread.
static void attention_forward(real *out, real *scores, real *log_sums, const real *scores_below, const real *qkv,
                              const real *rel_columns, int B, AttentionShape s, real *scratch) {
    const real scale = 1 / (real)sqrt(s.S);
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < B * s.H; bh++) {
        const real *q = qkv + (size_t)(bh / s.H) * s.T * 3 * s.C + bh % s.H * s.S, *k = q + s.C, *v = k + s.C;
        real *out_bh = out + (size_t)(bh / s.H) * s.T * s.C + bh % s.H * s.S;
        real *k_columns = scratch + thread_number() * attention_scratch_size(s);
        real *e = k_columns + (size_t)s.keys * s.S, *r = e + Q_ROWS * s.row, *o = r + Q_ROWS * s.row;
        transpose_head(k_columns, k, s);
        for (int t0 = 0; t0 < s.T; t0 += Q_ROWS) {
            int columns = t0 + Q_ROWS, width = round_up(columns, TILE_N);
            size_t at = bh * scores_per_head(s) + score_tile(t0 / Q_ROWS);
            tile_rows(e, s.row, width, q + (size_t)t0 * 3 * s.C, 3 * s.C, k_columns, s);
            tile_rows(r, s.row, width, q + (size_t)t0 * 3 * s.C, 3 * s.C, rel_columns + s.keys - width, s);
            real sums[Q_ROWS];
            for (int i = 0; i < min_int(Q_ROWS, s.T - t0); i++) {
                int t = t0 + i;
                real *score = scores + at + (size_t)i * columns, *e_t = e + (size_t)i * s.row;
                real *r_t = r + (size_t)i * s.row + width - 1 - t; // r_t[j] = q_t . rel[t - j]
                const real *below = scores_below ? scores_below + at + (size_t)i * columns : NULL;
                for (int j = t + 1; j < columns; j++) r_t[j] = -INFINITY;
                vector max = zero - INFINITY, sum = zero;
                for (int j = 0; j < columns; j += LANES) {
                    vector x = (load(e_t + j) + load(r_t + j)) * scale;
                    if (below) x += load(below + j);
                    store(score + j, x);
                    max = select_vector(max > x, max, x);
                }
                real top = max[0];
                for (int lane = 1; lane < LANES; lane++) top = top > max[lane] ? top : max[lane];
                for (int j = 0; j < columns; j += LANES) {
                    vector x = exp_vector(load(score + j) - top);
                    store(e_t + j, x);
                    sum += x;
                }
                sums[i] = sum_lanes(sum);
                log_sums[(size_t)bh * s.T + t] = top + (real)log((double)sums[i]);
            }
            for (int i0 = 0; i0 < Q_ROWS; i0 += TILE_M) {
                int keys = min_int(t0 + i0 + TILE_M, s.T), rows = min_int(TILE_M, s.T - t0 - i0);
                memset(o, 0, (size_t)TILE_M * s.head_row * sizeof(real));
                tile_add(o, keys, e + (size_t)i0 * s.row, s.row, 1, v, 3 * s.C, s);
                for (int i = 0; i < rows; i++) {
                    real *out_t = out_bh + (size_t)(t0 + i0 + i) * s.C;
                    for (int d = 0; d < s.S; d++) out_t[d] = o[(size_t)i * s.head_row + d] / sums[i0 + i];
                }
            }
        }
    }
}

// The gradients of qkv and of the relative table from that of out. With a = softmax(scores), recomputed as
// exp(scores - log_sums), and scale = 1 / sqrt(S):
//     da[t][j] = dout_t . v_j                      dv_j = sum_t a[t][j] dout_t
//     dscores[t][j] = a[t][j] (da[t][j] - dout_t . out_t) + dscores_above[t][j]
//     dq_t = scale (sum_j dscores[t][j] k_j + sum_n dscores[t][t-n] rel[n])
//     dk_j = scale sum_t dscores[t][j] q_t         drel[n] = scale sum_t dscores[t][t-n] q_t
// dscores takes the place of scores, for the layer below. drel [B*H, keys, head_row]: each head's own, by distance,
// from zero.
static void attention_backward(real *dqkv, real *drel, real *scores, const real *dscores_above, const real *dout,
                               const real *out, const real *log_sums, const real *qkv, const real *rel_rows, int B,
                               AttentionShape s, real *scratch) {
    const real scale = 1 / (real)sqrt(s.S);
    const int C3 = 3 * s.C;
    const size_t head_size = (size_t)s.keys * s.head_row;
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < B * s.H; bh++) {
        size_t first = (size_t)(bh / s.H) * s.T, column = (size_t)(bh % s.H) * s.S;
        const real *q = qkv + first * C3 + column, *k = q + s.C, *v = k + s.C;
        const real *dout_bh = dout + first * s.C + column, *out_bh = out + first * s.C + column;
        real *dq = dqkv + first * C3 + column;
        real *v_columns = scratch + thread_number() * attention_scratch_size(s);
        real *a = v_columns + (size_t)s.keys * s.S, *ds = a + Q_ROWS * s.row + Q_ROWS; // each row after Q_ROWS zeros
        real *dq_t = v_columns + (size_t)s.keys * s.S + 2 * Q_ROWS * s.row;
        real *dk = dq_t + TILE_M * s.head_row, *dv = dk + head_size;
        real *drel_bh = drel + bh * head_size;
        transpose_head(v_columns, v, s);
        memset(dk, 0, 2 * head_size * sizeof(real));
        memset(drel_bh, 0, head_size * sizeof(real));
        for (int i = 0; i < Q_ROWS; i++) memset(ds + (ptrdiff_t)i * s.row - Q_ROWS, 0, Q_ROWS * sizeof(real));
        for (int t0 = 0; t0 < s.T; t0 += Q_ROWS) {
            int columns = t0 + Q_ROWS, rows = min_int(Q_ROWS, s.T - t0);
            size_t at = bh * scores_per_head(s) + score_tile(t0 / Q_ROWS);
            const real *q_t0 = q + (size_t)t0 * C3, *dout_t0 = dout_bh + (size_t)t0 * s.C;
            tile_rows(a, s.row, round_up(columns, TILE_N), dout_t0, s.C, v_columns, s);
            for (int i = 0; i < rows; i++) {
                int t = t0 + i;
                real *score = scores + at + (size_t)i * columns, *a_t = a + (size_t)i * s.row,
                     *ds_t = ds + (size_t)i * s.row;
                const real *above = dscores_above ? dscores_above + at + (size_t)i * columns : NULL;
                real dot = 0, log_sum = log_sums[(size_t)bh * s.T + t];
                for (int d = 0; d < s.S; d++) dot += dout_bh[(size_t)t * s.C + d] * out_bh[(size_t)t * s.C + d];
                for (int j = 0; j < columns; j += LANES) {
                    vector a_tj = exp_vector(load(score + j) - log_sum);
                    vector ds_tj = a_tj * (load(a_t + j) - dot);
                    if (above) ds_tj += load(above + j);
                    store(a_t + j, a_tj);
                    store(score + j, ds_tj);
                    store(ds_t + j, ds_tj * scale);
                }
            }
            for (int i0 = 0; i0 < rows; i0 += TILE_M) {
                int t = t0 + i0, keys = min_int(t + TILE_M, s.T);
                const real *ds_i = ds + (size_t)i0 * s.row;
                memset(dq_t, 0, (size_t)TILE_M * s.head_row * sizeof(real));
                tile_add(dq_t, keys, ds_i, s.row, 1, k, C3, s);
                tile_add(dq_t, keys, ds_i + t, s.row + 1, -1, rel_rows, s.head_row, s);
                for (int i = 0; i < min_int(TILE_M, s.T - t); i++) {
                    for (int d = 0; d < s.S; d++) dq[(size_t)(t + i) * C3 + d] = dq_t[(size_t)i * s.head_row + d];
                }
            }
            for (int j = 0; j < columns; j += TILE_M) { // j: a key, or a distance
                tile_add(dv + (size_t)j * s.head_row, rows, a + j, 1, s.row, dout_t0, s.C, s);
                tile_add(dk + (size_t)j * s.head_row, rows, ds + j, 1, s.row, q_t0, C3, s);
                tile_add(drel_bh + (size_t)j * s.head_row, rows, ds + t0 - j, -1, s.row + 1, q_t0, C3, s);
            }
        }
        for (int t = 0; t < s.T; t++) {
            for (int d = 0; d < s.S; d++) {
                dq[(size_t)t * C3 + s.C + d] = dk[(size_t)t * s.head_row + d];
                dq[(size_t)t * C3 + 2 * s.C + d] = dv[(size_t)t * s.head_row + d];
            }
        }
    }
}

// drel_table[D-1-n] += sum over heads of drel[.][n], all distances from D-1 on to row 0
static void relative_vectors_backward(real *drel_table, const real *drel, int heads, AttentionShape s) {
#pragma omp parallel for schedule(static)
    for (int row = 0; row < s.D; row++) {
        int first = s.D - 1 - row, last = row == 0 ? s.T - 1 : first;
        for (int n = first; n <= last && n < s.T; n++) {
            for (int bh = 0; bh < heads; bh++) {
                const real *drel_n = drel + ((size_t)bh * s.keys + n) * s.head_row;
                for (int d = 0; d < s.S; d++) drel_table[(size_t)row * s.S + d] += drel_n[d];
            }
        }
    }
}

// ---- residual, dropout, LayerNorm

// y = LN(x + dropout(branch)) = normalized * w + b, normalized = (. - mean) * rstd, eps = 1e-5 (Ba et al., 2016).
// x, branch, y, normalized [R,C]; rstd [R]; y may be x. R = B*T rows.
static void residual_dropout_layernorm_forward(real *y, real *normalized, real *rstd, const real *x, const real *branch,
                                               const real *w, const real *b, Dropout dropout, int R, int T, int C,
                                               real *scratch) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *kept = scratch + thread_number() * dropout_scratch_size(C);
        const real *x_r = x + (size_t)r * C, *branch_r = branch + (size_t)r * C;
        real *y_r = y + (size_t)r * C, *normalized_r = normalized + (size_t)r * C;
        dropout_row(kept, dropout, r / T, r % T, C);
        vector sum = zero, squares = zero;
        for (int c = 0; c < C; c += LANES) {
            vector v = load_part(x_r + c, C - c) + load_part(branch_r + c, C - c) * load_part(kept + c, C - c);
            store_part(normalized_r + c, v, C - c);
            sum += v;
        }
        const real mean = sum_lanes(sum) / (real)C;
        for (int c = 0; c < C; c++) {
            real v = normalized_r[c] - mean;
            normalized_r[c] = v;
        }
        for (int c = 0; c < C; c += LANES) {
            vector v = load_part(normalized_r + c, C - c);
            squares += v * v;
        }
        const real scale = 1 / (real)sqrt((double)(sum_lanes(squares) / (real)C + (real)1e-5));
        for (int c = 0; c < C; c++) {
            real v = normalized_r[c] * scale;
            normalized_r[c] = v;
            y_r[c] = v * w[c] + b[c];
        }
        rstd[r] = scale;
    }
}

// y = normalized * w + b: LayerNorm's output again, so that only one of the two need be kept.
static void layernorm_again(real *y, const real *normalized, const real *w, const real *b, int R, int C) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) y[(size_t)r * C + c] = normalized[(size_t)r * C + c] * w[c] + b[c];
    }
}

// Rows whose gradients of w and b are summed together: a fixed number, so that threads change nothing.
enum { LAYERNORM_ROWS = 64 };

// d comes as dy and becomes dx; dbranch = dx * mask; dw, db +=. partial: [R / LAYERNORM_ROWS rounded up, 2, C].
// With g = dy * w: dx = rstd * (g - mean(g) - normalized * mean(g * normalized)).
static void residual_dropout_layernorm_backward(real *d, real *dbranch, real *dw, real *db, const real *normalized,
                                                const real *rstd, const real *w, Dropout dropout, int R, int T, int C,
                                                real *partial, real *scratch) {
    const int chunks = divide_up(R, LAYERNORM_ROWS);
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *kept = scratch + thread_number() * dropout_scratch_size(C);
        real *dw_chunk = partial + (size_t)chunk * 2 * C, *db_chunk = dw_chunk + C;
        memset(dw_chunk, 0, 2 * (size_t)C * sizeof(real));
        for (int r = chunk * LAYERNORM_ROWS; r < min_int((chunk + 1) * LAYERNORM_ROWS, R); r++) {
            real *d_r = d + (size_t)r * C, *dbranch_r = dbranch + (size_t)r * C;
            const real *normalized_r = normalized + (size_t)r * C;
            vector sum = zero, product = zero;
            for (int c = 0; c < C; c += LANES) {
                vector g = load_part(d_r + c, C - c) * load_part(w + c, C - c);
                sum += g;
                product += g * load_part(normalized_r + c, C - c);
            }
            const real mean = sum_lanes(sum) / (real)C, mean_product = sum_lanes(product) / (real)C, scale = rstd[r];
            dropout_row(kept, dropout, r / T, r % T, C);
            for (int c = 0; c < C; c++) {
                real dy = d_r[c], n = normalized_r[c];
                dw_chunk[c] += dy * n;
                db_chunk[c] += dy;
                real dx = scale * (dy * w[c] - mean - n * mean_product);
                d_r[c] = dx;
                dbranch_r[c] = dx * kept[c];
            }
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

typedef struct {               // what the backward needs of a layer's forward
    real *qkv;                 // [R,3C]
    real *scores, *log_sums;   // [B,H,scores_per_head], [B,H,T]
    real *attn;                // [R,C] heads side by side, before Wo
    real *normalized1, *rstd1; // [R,C], [R]
    real *fc1;                 // [R,F] after ReLU
    real *normalized2, *rstd2; // [R,C], [R]
} LayerActivations;

typedef struct {
    HostModel host;
    AttentionShape shape;
    GptTensors params, grads;
    LayerActivations *acts;
    real *x;                             // [R,C] what flows from layer to layer, then a layer's input again
    real *logits, *dlogits, *losses;     // [R,V], [R,V], [R]
    real *dx, *branch, *wide;            // [R,C], [R,C], [R, max(3C, F)]: gradients on their way down
    real *rel_rows, *rel_columns, *drel; // attention's, of the layer at work
    real *ln_partial, *scratch;
    MatmulSpace mm;
} Gpt;

static int gpt_layers(const Gpt *m) { return m->host.config.sizes[GPT_LAYERS]; }

// Points into the block of memory at base and returns its elements; with base NULL it only counts. The Q_ROWS rows more
// of qkv and x are what tiles at the end of the batch read, and throw away.
static double gpt_carve(Gpt *m, real *base) {
    const AttentionShape s = m->shape;
    const double B = m->host.config.B, R = B * s.T, C = s.C, F = m->host.config.sizes[GPT_HIDDEN], H = s.H,
                 rows = R + Q_ROWS;
    const double wide = fmax(3 * C, F), widest = fmax(wide, V), threads = (double)thread_count();
    const double inputs = (double)matmul_scratch_size((size_t)R, (size_t)fmax(C, F));
    const double weights = (double)matmul_scratch_size((size_t)widest, (size_t)widest);
    Arena arena = {base, 0};
    for (int i = 0; i < 4; i++) m->host.state[i] = arena_take(&arena, (double)m->host.layout.size);
    for (int l = 0; l < gpt_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->qkv = arena_take(&arena, rows * 3 * C);
        a->scores = arena_take(&arena, B * H * (double)scores_per_head(s));
        a->log_sums = arena_take(&arena, R * H);
        a->attn = arena_take(&arena, R * C);
        a->normalized1 = arena_take(&arena, R * C);
        a->rstd1 = arena_take(&arena, R);
        a->fc1 = arena_take(&arena, R * F);
        a->normalized2 = arena_take(&arena, R * C);
        a->rstd2 = arena_take(&arena, R);
    }
    m->x = arena_take(&arena, rows * C);
    m->logits = arena_take(&arena, R * V);
    m->dlogits = arena_take(&arena, R * V);
    m->losses = arena_take(&arena, R);
    m->dx = arena_take(&arena, R * C);
    m->branch = arena_take(&arena, R * C);
    m->wide = arena_take(&arena, R * wide);
    m->rel_rows = arena_take(&arena, (double)s.keys * s.head_row);
    m->rel_columns = arena_take(&arena, (double)s.keys * s.S);
    m->drel = arena_take(&arena, B * H * s.keys * s.head_row);
    m->ln_partial = arena_take(&arena, ceil(R / LAYERNORM_ROWS) * 2 * C);
    m->scratch =
        arena_take(&arena, threads * fmax((double)attention_scratch_size(s), (double)dropout_scratch_size(s.C)));
    m->mm.scratch = arena_take(&arena, fmax(inputs, weights));
    return arena.used;
}

static void gpt_destroy(void *model) {
    Gpt *m = (Gpt *)model;
    if (!m) return;
    host_destroy(&m->host);
    free(m->params.layers);
    free(m->grads.layers);
    free(m->acts);
    free(m);
}

static void *gpt_create(const ModelConfig *config, char *error) {
    Gpt *m = (Gpt *)allocate("the model", 1, sizeof *m, error);
    if (!m) return NULL;
    const int *sizes = config->sizes;
    m->shape = attention_shape(config->T, sizes[GPT_WIDTH], sizes[GPT_HEADS], sizes[GPT_REL]);
    bool ok = host_create(&m->host, config, gpt_layout, error);
    m->acts = (LayerActivations *)allocate("the model", sizes[GPT_LAYERS], sizeof(LayerActivations), error);
    m->params.layers = (LayerTensors *)allocate("the model", sizes[GPT_LAYERS], sizeof(LayerTensors), error);
    m->grads.layers = (LayerTensors *)allocate("the model", sizes[GPT_LAYERS], sizeof(LayerTensors), error);
    if (ok && m->acts && m->params.layers && m->grads.layers) {
        m->host.memory = allocate("the model and its activations", gpt_carve(m, NULL), sizeof(real), error);
    }
    if (!m->host.memory) {
        gpt_destroy(m);
        return NULL;
    }
    gpt_carve(m, (real *)m->host.memory);
    m->mm.bf16 = !strcmp(config->precision, "bf16");
    gpt_point(&m->params, &m->host.layout, sizes[GPT_LAYERS], m->host.state[STATE_PARAMS]);
    gpt_point(&m->grads, &m->host.layout, sizes[GPT_LAYERS], m->host.state[STATE_GRADS]);
    return m;
}

// ---- the model: forward, backward, update

static void gpt_keep(Gpt *m, int which) {
    size_t size = (size_t)m->host.config.B * m->shape.T * m->shape.C;
    if (m->host.kept) memcpy(m->host.kept + which * size, m->x, size * sizeof(real));
}

// Logits of m->host.tokens, B rows of T, with the dropout of a step, or without for step < 0.
static void gpt_forward(Gpt *m, int B, int64_t step) {
    const AttentionShape s = m->shape;
    const int T = s.T, C = s.C, R = B * T, F = m->host.config.sizes[GPT_HIDDEN];
    embedding_forward(m->x, m->host.tokens, m->params.emb, R, C);
    gpt_keep(m, 0);
    for (int l = 0; l < gpt_layers(m); l++) {
        const LayerTensors *p = &m->params.layers[l];
        LayerActivations *a = &m->acts[l];
        matmul_forward(a->qkv, m->x, p->qkv_w, p->qkv_b, false, R, C, 3 * C, m->mm);
        relative_vectors(m->rel_rows, m->rel_columns, p->rel, s);
        attention_forward(a->attn, a->scores, a->log_sums, l > 0 ? m->acts[l - 1].scores : NULL, a->qkv, m->rel_columns,
                          B, s, m->scratch);
        matmul_forward(m->branch, a->attn, p->out_w, p->out_b, false, R, C, C, m->mm);
        residual_dropout_layernorm_forward(m->x, a->normalized1, a->rstd1, m->x, m->branch, p->ln1_w, p->ln1_b,
                                           host_dropout(&m->host, step, 2 * l), R, T, C, m->scratch);
        gpt_keep(m, 1 + 2 * l);
        matmul_forward(a->fc1, m->x, p->fc1_w, p->fc1_b, true, R, C, F, m->mm);
        matmul_forward(m->branch, a->fc1, p->fc2_w, p->fc2_b, false, R, F, C, m->mm);
        residual_dropout_layernorm_forward(m->x, a->normalized2, a->rstd2, m->x, m->branch, p->ln2_w, p->ln2_b,
                                           host_dropout(&m->host, step, 2 * l + 1), R, T, C, m->scratch);
        gpt_keep(m, 2 + 2 * l);
    }
    matmul_forward(m->logits, m->x, m->params.head_w, m->params.head_b, false, R, C, V, m->mm);
}

// The mean loss of the batch; with dlogits ready for the backward if asked.
static double gpt_loss(Gpt *m, int R, bool backward) {
    softmax_cross_entropy(m->losses, backward ? m->dlogits : NULL, m->logits, m->host.targets, R);
    double sum = 0;
    for (int r = 0; r < R; r++) sum += (double)m->losses[r];
    return sum / R;
}

// Gradients of all parameters, from zero, after gpt_forward and gpt_loss of the same step.
static void gpt_backward(Gpt *m, int B, int64_t step) {
    const AttentionShape s = m->shape;
    const int T = s.T, C = s.C, R = B * T, F = m->host.config.sizes[GPT_HIDDEN], L = gpt_layers(m);
    const MatmulSpace mm = m->mm;
    memset(m->host.state[STATE_GRADS], 0, (size_t)m->host.layout.size * sizeof(real));
    matmul_backward_weight(m->grads.head_w, m->grads.head_b, m->dlogits, m->x, R, C, V, mm);
    matmul_backward_input(m->dx, m->dlogits, m->params.head_w, NULL, false, R, C, V, mm);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *p = &m->params.layers[l], *g = &m->grads.layers[l];
        LayerActivations *a = &m->acts[l];
        // x = LN2(x + dropout(fc2(relu(fc1(x)))))
        residual_dropout_layernorm_backward(m->dx, m->branch, g->ln2_w, g->ln2_b, a->normalized2, a->rstd2, p->ln2_w,
                                            host_dropout(&m->host, step, 2 * l + 1), R, T, C, m->ln_partial,
                                            m->scratch);
        matmul_backward_weight(g->fc2_w, g->fc2_b, m->branch, a->fc1, R, F, C, mm);
        matmul_backward_input(m->wide, m->branch, p->fc2_w, a->fc1, false, R, F, C, mm);
        layernorm_again(m->x, a->normalized1, p->ln1_w, p->ln1_b, R, C);
        matmul_backward_weight(g->fc1_w, g->fc1_b, m->wide, m->x, R, C, F, mm);
        matmul_backward_input(m->dx, m->wide, p->fc1_w, NULL, true, R, C, F, mm);
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        residual_dropout_layernorm_backward(m->dx, m->branch, g->ln1_w, g->ln1_b, a->normalized1, a->rstd1, p->ln1_w,
                                            host_dropout(&m->host, step, 2 * l), R, T, C, m->ln_partial, m->scratch);
        matmul_backward_weight(g->out_w, g->out_b, m->branch, a->attn, R, C, C, mm);
        real *dattn = m->x; // x is free here
        matmul_backward_input(dattn, m->branch, p->out_w, NULL, false, R, C, C, mm);
        relative_vectors(m->rel_rows, m->rel_columns, p->rel, s);
        attention_backward(m->wide, m->drel, a->scores, l < L - 1 ? m->acts[l + 1].scores : NULL, dattn, a->attn,
                           a->log_sums, a->qkv, m->rel_rows, B, s, m->scratch);
        relative_vectors_backward(g->rel, m->drel, B * s.H, s);
        if (l > 0) {
            const LayerTensors *below = &m->params.layers[l - 1];
            layernorm_again(m->x, m->acts[l - 1].normalized2, below->ln2_w, below->ln2_b, R, C);
        } else {
            embedding_forward(m->x, m->host.tokens, m->params.emb, R, C);
        }
        matmul_backward_weight(g->qkv_w, g->qkv_b, m->wide, m->x, R, C, 3 * C, mm);
        matmul_backward_input(m->dx, m->wide, p->qkv_w, NULL, true, R, C, 3 * C, mm);
    }
    embedding_backward(m->grads.emb, m->dx, m->host.tokens, R, C);
}

// ---- what the recipe asks of a model (train.h, ModelSpec)

static void gpt_load_windows(Gpt *m, const Dataset *data, const int64_t *starts, int n) {
    const int T = m->shape.T;
    for (int b = 0; b < n; b++) {
        memcpy(m->host.tokens + (size_t)b * T, data->tokens + starts[b], (size_t)T);
        memcpy(m->host.targets + (size_t)b * T, data->tokens + starts[b] + 1, (size_t)T);
    }
}

// Forward and loss of a planned step, and the backward if the loss is finite.
static double gpt_gradients(void *model, const StepPlan *plan) {
    Gpt *m = (Gpt *)model;
    const int B = m->host.config.B;
    epoch_batch(m->host.data, m->host.config.seed, plan->epoch, plan->index, B, m->host.starts);
    gpt_load_windows(m, m->host.data, m->host.starts, B);
    gpt_forward(m, B, plan->step);
    double loss = gpt_loss(m, B * m->shape.T, true);
    if (isfinite(loss)) gpt_backward(m, B, plan->step);
    return loss;
}

static void gpt_train_step(void *model, const StepPlan *plan) {
    Gpt *m = (Gpt *)model;
    if (m->host.bad_step >= 0) return;
    double loss = gpt_gradients(m, plan);
    if (!isfinite(loss) || !all_finite(m->host.state[STATE_GRADS], m->host.layout.size)) {
        m->host.bad_step = plan->step;
        return;
    }
    adamax(m->host.state[STATE_PARAMS], m->host.state[STATE_GRADS], m->host.state[STATE_EXP_AVG],
           m->host.state[STATE_EXP_INF], m->host.layout.size, plan->lr, plan->step + 1);
    m->host.loss_sum += loss;
}

static void gpt_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Gpt *m = (Gpt *)model;
    gpt_load_windows(m, test, starts, n);
    gpt_forward(m, n, -1);
    gpt_loss(m, n * m->shape.T, false);
    eval_add(add, m->losses, m->host.targets, n * m->shape.T);
}

// The activations of the last step. Called with list NULL before a step, it makes that step keep them all.
static int gpt_activations(void *model, Activation *list) {
    Gpt *m = (Gpt *)model;
    const int64_t B = m->host.config.B, T = m->shape.T, C = m->shape.C, F = m->host.config.sizes[GPT_HIDDEN];
    const int L = gpt_layers(m), count = 2 + 5 * L;
    if (!list) {
        if (!m->host.kept) m->host.kept = (real *)calloc((size_t)(B * T * C * (1 + 2 * L)), sizeof(real));
        return m->host.kept ? count : -1;
    }
    const size_t kept = (size_t)(B * T * C);
    Activation *next = list;
    *next++ = (Activation){"act.emb", 3, {B, T, C}, m->host.kept};
    for (int l = 0; l < L; l++) {
        const LayerActivations *a = &m->acts[l];
        const char *names[] = {"qkv", "attn", "ln1", "fc1", "ln2"};
        const int64_t widths[] = {3 * C, C, C, F, C};
        const real *data[] = {a->qkv, a->attn, m->host.kept + (1 + 2 * l) * kept, a->fc1,
                              m->host.kept + (2 + 2 * l) * kept};
        for (int i = 0; i < 5; i++) {
            *next = (Activation){"", 3, {B, T, widths[i]}, data[i]};
            snprintf(next++->name, sizeof next->name, "act.layers.%d.%s", l, names[i]);
        }
    }
    *next = (Activation){"logits", 3, {B, T, V}, m->logits};
    return count;
}

static const ModelSpec gpt_spec = {
    .name = "gpt",
    .device = "cpu",
    .precisions = HOST_PRECISIONS,
    .size_flags = gpt_size_flags,
    .n_sizes = GPT_SIZES,
    .lr = 1e-3,
    .lr_decay = 1,
    .lr_min = 0,
    .check_sizes = gpt_check_sizes,
    .layout = gpt_layout,
    .sizes_of_file = gpt_sizes_of_file,
    .step_flops = gpt_step_flops,
    .create = gpt_create,
    .destroy = gpt_destroy,
    .state = host_state,
    .state_changed = host_state_changed,
    .set_data = host_set_data,
    .train_step = gpt_train_step,
    .get_loss = host_get_loss,
    .set_loss = host_set_loss,
    .eval_batch = gpt_eval_batch,
    .gradients = gpt_gradients,
    .activations = gpt_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) { return train_main(argc, argv, &gpt_spec); }
#endif
