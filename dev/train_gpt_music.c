// The Transformer on the CPU: a trainer in its own right, and the reference for train_gpt_music.cu.
//
// It promises the published model exactly (4,326,041 parameters in its default sizes), every gradient checked against
// finite differences when built with -DREAL=double (test/test_gradients.c), the same bytes for any number of threads,
// and no allocation in a step. It runs in one process on one machine. The recipe around a step (data, epochs, files,
// command line) is recipe/train.h, what CPU models share cpu/host_model.h; matrix products are cpu/matmul.h.
//
// The model: token embedding, then L layers, each
//     x = LN1(x + dropout(attention(x) Wo^T + bo))
//     x = LN2(x + dropout(relu(x W1^T + b1) W2^T + b2))
// and a linear head. Attention follows Vaswani et al., Attention Is All You Need, 2017, post-norm, with a learned
// vector per clipped relative distance (Shaw et al., 2018; Huang et al., Music Transformer, 2018). Each layer's raw
// scores are added to the next layer's (He et al., RealFormer, 2021). The optimizer is Adamax (Kingma and Ba, 2015,
// section 7.1), as PyTorch has it.
//
// Shapes: B batch, T positions, R = B*T rows, C width, NH heads, HS = C/NH head size, F hidden width of a layer, L
// layers, V = 153 tokens, D distances in the relative table. All matrices are row-major; a linear layer's weight is
// [out, in]. In a backward, gradients of parameters are added to (+=). Gradients of activations are set (=), except
// where a residual branch adds to them, which a comment says.
//
// train_gpt_music.cu has the same sections in the same order, and the same names for what does the same; its head says
// where the GPU goes another way. The section on parameters is the same text there. embedding_forward(),
// embedding_backward(), softmax_cross_entropy() and adamax() are also in train_lstm_music.c, so that each model can be
// read by itself. test/test_copies.sh compares the copies.
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
    X(rel, "attn.rel", INIT_NORMAL, 1, 2, D, C / NH)                                                                   \
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
    LayerTensors layers[GPT_MAX_LAYERS];
    real *head_w, *head_b; // [V,C], [V]
} GptTensors;

static void gpt_layout(const int *sizes, ParamLayout *out) {
    int C = sizes[GPT_WIDTH], NH = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN], D = sizes[GPT_REL];
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
//
// For every head, with q, k, v [T,HS] its columns of qkv [R,3C], scale = 1 / sqrt(HS):
//     scores[t][j] = scale (q_t . k_j + q_t . rel[t - j]) + scores_below[t][j], j <= t
//     attn_t = sum_j a[t][j] v_j,  a = softmax_j(scores[t])
// and back, with a = exp(scores - log_sums) and dot_t = dattn_t . attn_t:
//     dv_j = sum_t a[t][j] dattn_t
//     dscores[t][j] = a[t][j] (dattn_t . v_j - dot_t) + dscores_above[t][j]
//     dq_t = scale sum_j dscores[t][j] (k_j + rel[t - j])
//     dk_j = scale sum_t dscores[t][j] q_t      drel[n] = scale sum_t dscores[t][t-n] q_t
// rel[n] is row D-1-n of the table, row 0 for all distances from D-1 on.
//
// Both directions go through a head's causal triangle in strips of STRIP queries, each against the keys up to the
// strip's last. Every product is tile() of matmul.h on operands where they lie. k_j and v_j belong to a key j, rel[n]
// to a distance n = t - j, so products with rel want the scores of a row by distance:
//
//            by key j                        by distance n
//     t = 0  s00                             s00
//     t = 1  s10 s11                         s11 s10
//     t = 2  s20 s21 s22                     s22 s21 s20
//     t = 3  s30 s31 s32 s33                 s33 s32 s31 s30
//
// Nothing is moved for that: element (t, n) is s[t][t - n]. Where the rows of s are score_row apart, one step down is
// score_row + 1 elements further and one step to the right 1 element back, and tile() takes any strides: these for dq,
// the same two exchanged for drel. The zeros that belong above the diagonal lie before each row of s.

enum { STRIP = TILE_M == 6 ? 24 : 16 }; // queries that are worked on together: whole tiles and, by key, whole vectors
static_assert(STRIP % TILE_M == 0 && STRIP % LANES == 0, "a strip's tiles and rows end where it ends");

typedef struct {
    int T, C, NH, HS, D;
    int padded_T;  // T rounded up to whole strips and panels
    int head_row;  // HS rounded up to whole vectors
    int score_row; // elements from row to row of scores in scratch: STRIP zeros, the keys, STRIP for reads beyond them
} AttentionShape;

typedef struct {    // what attention computes in a layer, and its backward reads
    real *qkv;      // [R,3C]
    real *scores;   // [B,NH,scores_per_head] before softmax, dscores after the backward
    real *log_sums; // [B,NH,T] logarithms of the softmaxes' denominators
    real *attn;     // [R,C] heads side by side, before Wo
} Attention;

static AttentionShape attention_shape(int T, int C, int NH, int D) {
    int padded_T = round_up(round_up(T, STRIP), TILE_N);
    return (AttentionShape){T, C, NH, C / NH, D, padded_T, round_up(C / NH, LANES), STRIP + padded_T + STRIP};
}

// A head's scores are kept strip after strip, and the STRIP rows of strip i as far as its last key: STRIP (i + 1)
// columns. This is where strip i begins.
static size_t strip_start(int i) { return (size_t)STRIP * STRIP * i * (i + 1) / 2; }

static size_t scores_per_head(AttentionShape s) { return strip_start(divide_up(s.T, STRIP)); }

// Scratch of one thread: [HS][padded_T] transposed keys or values, two strips of score rows, [TILE_M][head_row] of attn
// or dq, [padded_T][head_row] gradients of k and of v.
static size_t attention_scratch_size(AttentionShape s) {
    return (size_t)s.padded_T * s.HS + 2 * (size_t)STRIP * s.score_row + (size_t)(TILE_M + 2 * s.padded_T) * s.head_row;
}

// rel[n] for n = 0..padded_T-1, as rows, rel_rows[n][.], and as columns in the order of keys, that is
// rel_columns[.][padded_T - 1 - n].
static void relative_vectors(real *rel_rows, real *rel_columns, const real *rel, AttentionShape s) {
    for (int n = 0; n < s.padded_T; n++) {
        const real *rel_n = rel + (size_t)(s.D - 1 - min_int(n, s.D - 1)) * s.HS;
        for (int d = 0; d < s.HS; d++) {
            rel_rows[(size_t)n * s.head_row + d] = rel_n[d];
            rel_columns[(size_t)d * s.padded_T + s.padded_T - 1 - n] = rel_n[d];
        }
    }
}

// columns[d][j] = rows[j][d], rows of stride 3C, zeros for keys that do not exist.
static void transpose_head(real *columns, const real *rows, AttentionShape s) {
    for (int d = 0; d < s.HS; d++) {
        real *column = columns + (size_t)d * s.padded_T;
        for (int j = 0; j < s.padded_T; j++) column[j] = j < s.T ? rows[(size_t)j * 3 * s.C + d] : 0;
    }
}

// out[STRIP][width] = a b, rows of out score_row apart. a has STRIP rows of HS at stride a_row; b [HS][padded_T] begins
// at its first column.
static void strip_product(real *out, int width, const real *a, int a_row, const real *b, AttentionShape s) {
    for (int j = 0; j < width; j += TILE_N) {
        for (int i = 0; i < STRIP; i += TILE_M) {
            vector sums[TILE_M][TILE_VECTORS];
            tile_zero(sums);
            tile(sums, TILE_M, TILE_VECTORS, s.HS, a + (size_t)i * a_row, a_row, 1, b + j, s.padded_T);
            tile_store(sums, out + (size_t)i * s.score_row + j, s.score_row, (Epilogue){0});
        }
    }
}

// tile_add() of a constant number of vectors of each row.
ALWAYS_INLINE void tile_add_vectors(int vectors, real *c, int K, const real *a, ptrdiff_t a_row, ptrdiff_t a_col,
                                    const real *b, ptrdiff_t b_row, int head_row) {
    vector sums[TILE_M][TILE_VECTORS];
    UNROLL for (int i = 0; i < TILE_M; i++) {
        UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = load(c + (size_t)i * head_row + v * LANES);
    }
    tile(sums, TILE_M, vectors, K, a, a_row, a_col, b, b_row);
    UNROLL for (int i = 0; i < TILE_M; i++) {
        UNROLL for (int v = 0; v < vectors; v++) store(c + (size_t)i * head_row + v * LANES, sums[i][v]);
    }
}

// c[i][0..head_row) += sum_k A(i,k) b[k][.], i < TILE_M: A as in tile(), b at stride b_row, c at stride head_row.
// It is not inlined because gcc then keeps the rows' addresses in registers.
__attribute__((noinline)) static void tile_add(real *c, int K, const real *a, ptrdiff_t a_row, ptrdiff_t a_col,
                                               const real *b, ptrdiff_t b_row, AttentionShape s) {
    int d = 0;
    for (; d + TILE_N <= s.head_row; d += TILE_N) {
        tile_add_vectors(TILE_VECTORS, c + d, K, a, a_row, a_col, b + d, b_row, s.head_row);
    }
    if (d < s.head_row) tile_add_vectors(1, c + d, K, a, a_row, a_col, b + d, b_row, s.head_row);
}

// scores_below: those of the layer below, or NULL. The mask need only be put into the first layer's scores, as -inf
// stays -inf. scratch: attention_scratch_size for each thread.
static void attention_forward(Attention act, const real *scores_below, const real *rel_columns, int B, AttentionShape s,
                              real *scratch) {
    const real scale = 1 / (real)sqrt(s.HS);
    const int C3 = 3 * s.C;
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < B * s.NH; bh++) {
        const size_t first_row = (size_t)(bh / s.NH) * s.T, column = (size_t)(bh % s.NH) * s.HS;
        const real *q = act.qkv + first_row * C3 + column, *k = q + s.C, *v = k + s.C;
        real *attn = act.attn + first_row * s.C + column;
        real *k_columns = scratch + thread_number() * attention_scratch_size(s);
        real *e = k_columns + (size_t)s.padded_T * s.HS; // q_t . k_j, then exponentials
        real *relative = e + STRIP * s.score_row, *attn_rows = relative + STRIP * s.score_row;
        transpose_head(k_columns, k, s);
        for (int t0 = 0; t0 < s.T; t0 += STRIP) {
            const int columns = t0 + STRIP, width = round_up(columns, TILE_N);
            const size_t at = bh * scores_per_head(s) + strip_start(t0 / STRIP);
            real sums[STRIP];

            // Products with keys and with distances.
            strip_product(e, width, q + (size_t)t0 * C3, C3, k_columns, s);
            strip_product(relative, width, q + (size_t)t0 * C3, C3, rel_columns + s.padded_T - width, s);

            // Scores, row by row, and their exponentials.
            for (int i = 0; i < min_int(STRIP, s.T - t0); i++) {
                const int t = t0 + i;
                real *score = act.scores + at + (size_t)i * columns, *e_t = e + (size_t)i * s.score_row;
                real *relative_t = relative + (size_t)i * s.score_row + width - 1 - t; // of key j: q_t . rel[t - j]
                const real *below = scores_below ? scores_below + at + (size_t)i * columns : NULL;
                for (int j = t + 1; j < columns; j++) relative_t[j] = -INFINITY;
                vector max = all_lanes(-INFINITY), sum = zero;
                for (int j = 0; j < columns; j += LANES) {
                    vector x = (load(e_t + j) + load(relative_t + j)) * scale;
                    if (below) x += load(below + j);
                    store(score + j, x);
                    max = larger(max, x);
                }
                const real top = largest_lane(max);
                for (int j = 0; j < columns; j += LANES) {
                    vector x = exp_vector(load(score + j) - top);
                    store(e_t + j, x);
                    sum += x;
                }
                sums[i] = sum_lanes(sum);
                act.log_sums[(size_t)bh * s.T + t] = top + (real)log((double)sums[i]);
            }

            // The mean of the values, weighted by the exponentials.
            for (int i0 = 0; i0 < STRIP; i0 += TILE_M) {
                const int keys = min_int(t0 + i0 + TILE_M, s.T), rows = min_int(TILE_M, s.T - t0 - i0);
                memset(attn_rows, 0, (size_t)TILE_M * s.head_row * sizeof(real));
                tile_add(attn_rows, keys, e + (size_t)i0 * s.score_row, s.score_row, 1, v, C3, s);
                for (int i = 0; i < rows; i++) {
                    real *attn_t = attn + (size_t)(t0 + i0 + i) * s.C;
                    for (int d = 0; d < s.HS; d++) attn_t[d] = attn_rows[(size_t)i * s.head_row + d] / sums[i0 + i];
                }
            }
        }
    }
}

// The gradients of qkv and of the relative table from that of attn. scores becomes dscores, for the layer below;
// dscores_above is what became of the scores of the layer above, or NULL. drel [B*NH, padded_T, head_row]: each head's
// own, by distance, from zero.
static void attention_backward(real *dqkv, real *drel, const real *dscores_above, const real *dattn, Attention act,
                               const real *rel_rows, int B, AttentionShape s, real *scratch) {
    const real scale = 1 / (real)sqrt(s.HS);
    const int C3 = 3 * s.C;
    const size_t head_size = (size_t)s.padded_T * s.head_row;
#pragma omp parallel for schedule(dynamic)
    for (int bh = 0; bh < B * s.NH; bh++) {
        const size_t first_row = (size_t)(bh / s.NH) * s.T, column = (size_t)(bh % s.NH) * s.HS;
        const real *q = act.qkv + first_row * C3 + column, *k = q + s.C, *v = k + s.C;
        const real *dattn_bh = dattn + first_row * s.C + column, *attn = act.attn + first_row * s.C + column;
        real *dq = dqkv + first_row * C3 + column;
        real *v_columns = scratch + thread_number() * attention_scratch_size(s);
        real *e = v_columns + (size_t)s.padded_T * s.HS; // dattn_t . v_j, then a[t][j]
        real *ds = e + STRIP * s.score_row + STRIP;      // scale dscores, each row after its STRIP zeros
        real *dq_rows = v_columns + (size_t)s.padded_T * s.HS + 2 * STRIP * s.score_row;
        real *dk = dq_rows + TILE_M * s.head_row, *dv = dk + head_size;
        real *drel_bh = drel + bh * head_size;
        transpose_head(v_columns, v, s);
        memset(dk, 0, 2 * head_size * sizeof(real));
        memset(drel_bh, 0, head_size * sizeof(real));
        for (int i = 0; i < STRIP; i++) memset(ds + (ptrdiff_t)i * s.score_row - STRIP, 0, STRIP * sizeof(real));
        for (int t0 = 0; t0 < s.T; t0 += STRIP) {
            const int columns = t0 + STRIP, rows = min_int(STRIP, s.T - t0);
            const size_t at = bh * scores_per_head(s) + strip_start(t0 / STRIP);
            const real *q_t0 = q + (size_t)t0 * C3, *dattn_t0 = dattn_bh + (size_t)t0 * s.C;

            // Gradients of the scores, row by row.
            strip_product(e, round_up(columns, TILE_N), dattn_t0, s.C, v_columns, s);
            for (int i = 0; i < rows; i++) {
                const int t = t0 + i;
                real *score = act.scores + at + (size_t)i * columns;
                real *e_t = e + (size_t)i * s.score_row, *ds_t = ds + (size_t)i * s.score_row;
                const real *above = dscores_above ? dscores_above + at + (size_t)i * columns : NULL;
                real dot = 0, log_sum = act.log_sums[(size_t)bh * s.T + t];
                for (int d = 0; d < s.HS; d++) dot += dattn_bh[(size_t)t * s.C + d] * attn[(size_t)t * s.C + d];
                for (int j = 0; j < columns; j += LANES) {
                    vector a_tj = exp_vector(load(score + j) - log_sum);
                    vector ds_tj = a_tj * (load(e_t + j) - dot);
                    if (above) ds_tj += load(above + j);
                    store(e_t + j, a_tj);
                    store(score + j, ds_tj);
                    store(ds_t + j, ds_tj * scale);
                }
            }

            // Sums over keys: dq.
            for (int i0 = 0; i0 < rows; i0 += TILE_M) {
                const int t = t0 + i0, keys = min_int(t + TILE_M, s.T);
                const real *ds_i = ds + (size_t)i0 * s.score_row;
                memset(dq_rows, 0, (size_t)TILE_M * s.head_row * sizeof(real));
                tile_add(dq_rows, keys, ds_i, s.score_row, 1, k, C3, s);
                tile_add(dq_rows, keys, ds_i + t, s.score_row + 1, -1, rel_rows, s.head_row, s);
                for (int i = 0; i < min_int(TILE_M, s.T - t); i++) {
                    for (int d = 0; d < s.HS; d++) dq[(size_t)(t + i) * C3 + d] = dq_rows[(size_t)i * s.head_row + d];
                }
            }

            // Sums over queries: dv and dk of key j on, drel of distance j on.
            for (int j = 0; j < columns; j += TILE_M) {
                const size_t row = (size_t)j * s.head_row;
                tile_add(dv + row, rows, e + j, 1, s.score_row, dattn_t0, s.C, s);
                tile_add(dk + row, rows, ds + j, 1, s.score_row, q_t0, C3, s);
                tile_add(drel_bh + row, rows, ds + t0 - j, -1, s.score_row + 1, q_t0, C3, s);
            }
        }
        for (int t = 0; t < s.T; t++) {
            for (int d = 0; d < s.HS; d++) {
                dq[(size_t)t * C3 + s.C + d] = dk[(size_t)t * s.head_row + d];
                dq[(size_t)t * C3 + 2 * s.C + d] = dv[(size_t)t * s.head_row + d];
            }
        }
    }
}

// drel_table[D-1-n] += the sum of drel[.][n] over heads; all distances from D-1 on go to row 0.
static void relative_vectors_backward(real *drel_table, const real *drel, int heads, AttentionShape s) {
#pragma omp parallel for schedule(static)
    for (int row = 0; row < s.D; row++) {
        const int first = s.D - 1 - row, last = row == 0 ? s.T - 1 : first;
        for (int n = first; n <= last && n < s.T; n++) {
            for (int bh = 0; bh < heads; bh++) {
                const real *drel_n = drel + ((size_t)bh * s.padded_T + n) * s.head_row;
                for (int d = 0; d < s.HS; d++) drel_table[(size_t)row * s.HS + d] += drel_n[d];
            }
        }
    }
}

// ---- residual, dropout, LayerNorm
//
// A branch of the model, a product with its bias, is dropped out, added to what it branched off from, and normalized:
//     y = LN(x + dropout(branch)) = normalized * w + b,  normalized = (. - mean) * rstd     (Ba et al., 2016)
// x is not kept. The backward makes it again from what LayerNorm keeps.

typedef struct {       // at one place of the model
    real *y;           // [R,C]
    real *normalized;  // [R,C]
    real *rstd;        // [R]
    const real *w, *b; // [C]
    Dropout dropout;
} LayerNorm;

// x, branch [R,C]; x may be norm.y. R = B*T rows.
static void residual_dropout_layernorm_forward(LayerNorm norm, const real *x, const real *branch, int R, int T, int C,
                                               real *scratch) {
    const real *w = norm.w, *b = norm.b;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        real *mask = scratch + thread_number() * dropout_scratch_size(C);
        const real *x_r = x + (size_t)r * C, *branch_r = branch + (size_t)r * C;
        real *y_r = norm.y + (size_t)r * C, *normalized_r = norm.normalized + (size_t)r * C;
        dropout_row(mask, norm.dropout, r / T, r % T, C);
        vector sum = zero, squares = zero;
        for (int c = 0; c < C; c += LANES) {
            vector v = load_part(x_r + c, C - c) + load_part(branch_r + c, C - c) * load_part(mask + c, C - c);
            store_part(normalized_r + c, v, C - c);
            sum += v;
        }
        const real mean = sum_lanes(sum) / (real)C;
        for (int c = 0; c < C; c++) normalized_r[c] -= mean;
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
        norm.rstd[r] = scale;
    }
}

// y = LayerNorm's output again.
static void layernorm_again(LayerNorm norm, int R, int C) {
    const real *w = norm.w, *b = norm.b;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < R; r++) {
        const real *normalized_r = norm.normalized + (size_t)r * C;
        real *y_r = norm.y + (size_t)r * C;
        for (int c = 0; c < C; c++) y_r[c] = normalized_r[c] * w[c] + b[c];
    }
}

// Rows whose gradients of w and b are summed together: a fixed number, so that threads change nothing.
enum { LAYERNORM_ROWS = 64 };

// d comes as dy and becomes dx; dbranch = dx * mask; dw, db +=. With g = dy * w:
//     dx = rstd * (g - mean(g) - normalized * mean(g * normalized))
// partial: [R / LAYERNORM_ROWS rounded up, 2, C].
static void residual_dropout_layernorm_backward(real *d, real *dbranch, real *dw, real *db, LayerNorm norm, int R,
                                                int T, int C, real *partial, real *scratch) {
    const int chunks = divide_up(R, LAYERNORM_ROWS);
    const real *w = norm.w;
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *mask = scratch + thread_number() * dropout_scratch_size(C);
        real *dw_chunk = partial + (size_t)chunk * 2 * C, *db_chunk = dw_chunk + C;
        memset(dw_chunk, 0, 2 * (size_t)C * sizeof(real));
        for (int r = chunk * LAYERNORM_ROWS; r < min_int((chunk + 1) * LAYERNORM_ROWS, R); r++) {
            real *d_r = d + (size_t)r * C, *dbranch_r = dbranch + (size_t)r * C;
            const real *normalized_r = norm.normalized + (size_t)r * C;
            vector sum = zero, product = zero;
            for (int c = 0; c < C; c += LANES) {
                vector g = load_part(d_r + c, C - c) * load_part(w + c, C - c);
                sum += g;
                product += g * load_part(normalized_r + c, C - c);
            }
            const real mean = sum_lanes(sum) / (real)C, mean_product = sum_lanes(product) / (real)C;
            const real scale = norm.rstd[r];
            dropout_row(mask, norm.dropout, r / T, r % T, C);
            for (int c = 0; c < C; c++) {
                real dy = d_r[c], n = normalized_r[c];
                dw_chunk[c] += dy * n;
                db_chunk[c] += dy;
                real dx = scale * (dy * w[c] - mean - n * mean_product);
                d_r[c] = dx;
                dbranch_r[c] = dx * mask[c];
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

typedef struct { // what the backward needs of a layer's forward
    Attention attention;
    real *normalized1, *rstd1; // [R,C], [R]
    real *fc1;                 // [R,F] after ReLU
    real *normalized2, *rstd2; // [R,C], [R]
} LayerActivations;

typedef struct {
    HostModel host; // first
    AttentionShape shape;
    GptTensors params, grads;
    LayerActivations acts[GPT_MAX_LAYERS];
    real *x;                             // [R,C] what flows from layer to layer; in the backward, a layer's input again
    real *logits, *dlogits, *losses;     // [R,V], [R,V], [R]
    real *dx, *branch, *wide;            // [R,C], [R,C], [R, max(3C, F)]: gradients on their way down
    real *rel_rows, *rel_columns, *drel; // attention's, of the layer at work
    real *norm_partial, *scratch;        // LayerNorm's sums of w and b; the threads' own
    MatmulSpace mm;
} Gpt;

static int gpt_layers(const Gpt *m) { return m->host.config.sizes[GPT_LAYERS]; }

// Takes the model's memory. The last strip and the last tile of a batch read up to STRIP rows of qkv and x too many,
// and throw them away; there is memory for them.
static void gpt_carve(void *model, Arena *arena) {
    Gpt *m = model;
    const ModelConfig *config = &m->host.config;
    const int *sizes = config->sizes;
    const AttentionShape s = attention_shape(config->T, sizes[GPT_WIDTH], sizes[GPT_HEADS], sizes[GPT_REL]);
    const double B = config->B, R = B * s.T, C = s.C, F = sizes[GPT_HIDDEN], NH = s.NH;
    const double wide = fmax(3 * C, F), widest = fmax(wide, V), threads = (double)thread_count();
    const double inputs = (double)matmul_scratch_size((size_t)fmin(R, MATMUL_ROWS), (size_t)fmax(C, F));
    const double weights = (double)matmul_scratch_size((size_t)widest, (size_t)widest);
    m->shape = s;
    for (int l = 0; l < gpt_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->attention.qkv = arena_take(arena, (R + STRIP) * 3 * C);
        a->attention.scores = arena_take(arena, B * NH * (double)scores_per_head(s));
        a->attention.log_sums = arena_take(arena, R * NH);
        a->attention.attn = arena_take(arena, R * C);
        a->normalized1 = arena_take(arena, R * C);
        a->rstd1 = arena_take(arena, R);
        a->fc1 = arena_take(arena, R * F);
        a->normalized2 = arena_take(arena, R * C);
        a->rstd2 = arena_take(arena, R);
    }
    m->x = arena_take(arena, (R + STRIP) * C);
    m->logits = arena_take(arena, R * V);
    m->dlogits = arena_take(arena, R * V);
    m->losses = arena_take(arena, R);
    m->dx = arena_take(arena, R * C);
    m->branch = arena_take(arena, R * C);
    m->wide = arena_take(arena, R * wide);
    m->rel_rows = arena_take(arena, (double)s.padded_T * s.head_row);
    m->rel_columns = arena_take(arena, (double)s.padded_T * s.HS);
    m->drel = arena_take(arena, B * NH * s.padded_T * s.head_row);
    m->norm_partial = arena_take(arena, ceil(R / LAYERNORM_ROWS) * 2 * C);
    m->scratch =
        arena_take(arena, threads * fmax((double)attention_scratch_size(s), (double)dropout_scratch_size(s.C)));
    m->mm.scratch = arena_take(arena, fmax(inputs, weights));
}

// ---- the model: forward, backward, update

static LayerNorm gpt_norm1(const Gpt *m, int l, int64_t step) {
    const LayerActivations *a = &m->acts[l];
    const LayerTensors *p = &m->params.layers[l];
    return (LayerNorm){m->x, a->normalized1, a->rstd1, p->ln1_w, p->ln1_b, host_dropout(&m->host, step, 2 * l)};
}

static LayerNorm gpt_norm2(const Gpt *m, int l, int64_t step) {
    const LayerActivations *a = &m->acts[l];
    const LayerTensors *p = &m->params.layers[l];
    return (LayerNorm){m->x, a->normalized2, a->rstd2, p->ln2_w, p->ln2_b, host_dropout(&m->host, step, 2 * l + 1)};
}

// Copies x for a dump, as activation number `which` of those that are not kept otherwise.
static void gpt_keep_x(Gpt *m, int which) {
    const size_t size = (size_t)m->host.config.B * m->shape.T * m->shape.C;
    if (m->host.kept) memcpy(m->host.kept + which * size, m->x, size * sizeof(real));
}

// Logits of m->host.tokens, B rows of T, with the dropout of a step, or without for step < 0.
static void gpt_forward(Gpt *m, int B, int64_t step) {
    const AttentionShape s = m->shape;
    const int T = s.T, C = s.C, R = B * T, F = m->host.config.sizes[GPT_HIDDEN];
    embedding_forward(m->x, m->host.tokens, m->params.emb, R, C);
    gpt_keep_x(m, 0);
    for (int l = 0; l < gpt_layers(m); l++) {
        const LayerTensors *p = &m->params.layers[l];
        const LayerActivations *a = &m->acts[l];
        const real *scores_below = l > 0 ? m->acts[l - 1].attention.scores : NULL;
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        matmul_forward(a->attention.qkv, m->x, p->qkv_w, p->qkv_b, false, R, C, 3 * C, m->mm);
        relative_vectors(m->rel_rows, m->rel_columns, p->rel, s);
        attention_forward(a->attention, scores_below, m->rel_columns, B, s, m->scratch);
        matmul_forward(m->branch, a->attention.attn, p->out_w, p->out_b, false, R, C, C, m->mm);
        residual_dropout_layernorm_forward(gpt_norm1(m, l, step), m->x, m->branch, R, T, C, m->scratch);
        gpt_keep_x(m, 1 + 2 * l);
        // x = LN2(x + dropout(fc2(relu(fc1(x)))))
        matmul_forward(a->fc1, m->x, p->fc1_w, p->fc1_b, true, R, C, F, m->mm);
        matmul_forward(m->branch, a->fc1, p->fc2_w, p->fc2_b, false, R, F, C, m->mm);
        residual_dropout_layernorm_forward(gpt_norm2(m, l, step), m->x, m->branch, R, T, C, m->scratch);
        gpt_keep_x(m, 2 + 2 * l);
    }
    matmul_forward(m->logits, m->x, m->params.head_w, m->params.head_b, false, R, C, V, m->mm);
}

// Gradients of all parameters, from zero, after gpt_forward and softmax_cross_entropy of the same step.
static void gpt_backward(Gpt *m, int B, int64_t step) {
    const AttentionShape s = m->shape;
    const int T = s.T, C = s.C, R = B * T, F = m->host.config.sizes[GPT_HIDDEN], L = gpt_layers(m);
    const MatmulSpace mm = m->mm;
    memset(m->host.state[STATE_GRADS], 0, (size_t)m->host.layout.size * sizeof(real));
    matmul_backward_weight(m->grads.head_w, m->grads.head_b, m->dlogits, m->x, R, C, V, mm);
    matmul_backward_input(m->dx, m->dlogits, m->params.head_w, NULL, false, R, C, V, mm);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *p = &m->params.layers[l], *g = &m->grads.layers[l];
        const LayerActivations *a = &m->acts[l];
        const real *dscores_above = l < L - 1 ? m->acts[l + 1].attention.scores : NULL;
        // x = LN2(x + dropout(fc2(relu(fc1(x)))))
        residual_dropout_layernorm_backward(m->dx, m->branch, g->ln2_w, g->ln2_b, gpt_norm2(m, l, step), R, T, C,
                                            m->norm_partial, m->scratch);
        matmul_backward_weight(g->fc2_w, g->fc2_b, m->branch, a->fc1, R, F, C, mm);
        matmul_backward_input(m->wide, m->branch, p->fc2_w, a->fc1, false, R, F, C, mm);
        layernorm_again(gpt_norm1(m, l, step), R, C);
        matmul_backward_weight(g->fc1_w, g->fc1_b, m->wide, m->x, R, C, F, mm);
        matmul_backward_input(m->dx, m->wide, p->fc1_w, NULL, true, R, C, F, mm);
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        residual_dropout_layernorm_backward(m->dx, m->branch, g->ln1_w, g->ln1_b, gpt_norm1(m, l, step), R, T, C,
                                            m->norm_partial, m->scratch);
        matmul_backward_weight(g->out_w, g->out_b, m->branch, a->attention.attn, R, C, C, mm);
        real *dattn = m->x; // x is free here
        matmul_backward_input(dattn, m->branch, p->out_w, NULL, false, R, C, C, mm);
        relative_vectors(m->rel_rows, m->rel_columns, p->rel, s);
        attention_backward(m->wide, m->drel, dscores_above, dattn, a->attention, m->rel_rows, B, s, m->scratch);
        relative_vectors_backward(g->rel, m->drel, B * s.NH, s);
        if (l > 0) {
            layernorm_again(gpt_norm2(m, l - 1, step), R, C);
        } else {
            embedding_forward(m->x, m->host.tokens, m->params.emb, R, C);
        }
        matmul_backward_weight(g->qkv_w, g->qkv_b, m->wide, m->x, R, C, 3 * C, mm);
        matmul_backward_input(m->dx, m->wide, p->qkv_w, NULL, true, R, C, 3 * C, mm);
    }
    embedding_backward(m->grads.emb, m->dx, m->host.tokens, R, C);
}

// ---- what the recipe asks of a model (recipe/model.h, ModelSpec)

// Forward and loss of a planned step, and the backward if the loss is finite.
static double gpt_gradients(void *model, const StepPlan *plan) {
    Gpt *m = model;
    const int B = m->host.config.B;
    host_load_batch(&m->host, plan, false);
    gpt_forward(m, B, plan->step);
    softmax_cross_entropy(m->losses, m->dlogits, m->logits, m->host.targets, B * m->shape.T);
    const double loss = mean_loss(m->losses, B * m->shape.T);
    if (isfinite(loss)) gpt_backward(m, B, plan->step);
    return loss;
}

static void gpt_train_step(void *model, const StepPlan *plan) {
    Gpt *m = model;
    team_step(&m->host.team); // decides how many threads take part
    if (m->host.bad_step >= 0 || !host_count_step(&m->host, plan->step, gpt_gradients(m, plan))) return;
    adamax(&m->host, plan);
}

static void gpt_use_average(void *model, bool use) {
    Gpt *m = model;
    gpt_point(&m->params, &m->host.layout, gpt_layers(m), m->host.state[use ? STATE_AVERAGE : STATE_PARAMS]);
}

static void gpt_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Gpt *m = model;
    const int R = n * m->shape.T;
    host_load_windows(&m->host, test, starts, NULL, n, false);
    gpt_forward(m, n, -1);
    softmax_cross_entropy(m->losses, NULL, m->logits, m->host.targets, R);
    eval_add(add, m->losses, m->host.targets, R);
}

static void *gpt_create(const ModelConfig *config, char *error) {
    Gpt *m = host_create(sizeof *m, config, gpt_layout, gpt_carve, error);
    if (!m) return NULL;
    m->mm.bf16 = !strcmp(config->precision, "bf16");
    gpt_point(&m->params, &m->host.layout, gpt_layers(m), m->host.state[STATE_PARAMS]);
    gpt_point(&m->grads, &m->host.layout, gpt_layers(m), m->host.state[STATE_GRADS]);
    return m;
}

// The activations of the last step. Called with list NULL before a step, it makes that step keep them all.
static int gpt_activations(void *model, Activation *list) {
    Gpt *m = model;
    const int64_t B = m->host.config.B, T = m->shape.T, C = m->shape.C, F = m->host.config.sizes[GPT_HIDDEN];
    const int L = gpt_layers(m), count = 2 + 5 * L;
    if (!list) {
        if (!m->host.kept) m->host.kept = calloc((size_t)(B * T * C * (1 + 2 * L)), sizeof(real));
        return m->host.kept ? count : -1;
    }
    const size_t kept = (size_t)(B * T * C);
    Activation *next = list;
    *next++ = (Activation){"act.emb", 3, {B, T, C}, m->host.kept};
    for (int l = 0; l < L; l++) {
        const LayerActivations *a = &m->acts[l];
        const char *names[] = {"qkv", "attn", "ln1", "fc1", "ln2"};
        const int64_t widths[] = {3 * C, C, C, F, C};
        const real *data[] = {a->attention.qkv, a->attention.attn, m->host.kept + (1 + 2 * l) * kept, a->fc1,
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
    GPT_MODEL_SPEC,
    HOST_MODEL_SPEC,
    .layout = gpt_layout,
    .create = gpt_create,
    .train_step = gpt_train_step,
    .eval_batch = gpt_eval_batch,
    .use_average = gpt_use_average,
    .gradients = gpt_gradients,
    .activations = gpt_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) {
    threads_wait_briefly(argv);
    return train_main(argc, argv, &gpt_spec);
}
#endif
