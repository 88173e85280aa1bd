// The Transformer on a GPU: every kernel, forward, backward, Adamax, and a training step as one CUDA graph. The CPU
// reference, dev/train_gpt_music.c, has the same functions in the same order, to be laid beside it.
//
// It promises the published model exactly (4,326,041 parameters in its default sizes), the same random numbers as the
// CPU, the same bytes from the same seed (no sum depends on which block comes first), and sizes as the flags allow.
// With
// --precision bf16 the operands of products are rounded to bf16 (8 bits) and multiplied by tensor cores; sums, softmax,
// LayerNorm, the loss, weights and optimizer stay in float. It leaves out more than one GPU. The recipe around a step
// (data, epochs, files, command line) is dev/recipe/train.h; matrix products are dev/cuda/matmul.cuh.
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
// Gradients are set (=) in every step, save where a residual branch adds to them (+=), which is said.
// A template parameter Half is the type of the operands of products: float, or __nv_bfloat16.
// A launch stays on the line of its kernel, for dev/emu/cuda2cpp.sed, where clang-format would break it.

#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cuda/device_model.cuh"
#include "models/gpt.h"

#include <cuda_fp16.h>

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

// x[r] = emb[inputs[r]] as an operand of products; a thread owns an element, a warp a run of a row.
template <typename Half>
static __global__ void embedding_forward_kernel(Half *x, const uint8_t *inputs, const float *emb, int64_t n, int C) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = from_float<Half>(emb[inputs[i / C] * C + i % C]);
}

enum { EMBEDDING_ROWS = 2048 }; // rows whose gradients are summed together, in ascending order

// partial[chunk][v][c] = sum of dx[r][c] over the chunk's rows r whose token is v. Block (chunk, v, 256 columns) first
// lists those rows, in order: a warp looks at 256 tokens, in eight runs of 32. Then each thread owns a column.
static __global__ void __launch_bounds__(256)
    embedding_backward_kernel(float *partial, const float *dx, const uint8_t *inputs, int R, int C) {
    __shared__ int list[EMBEDDING_ROWS];
    __shared__ int counts[EMBEDDING_ROWS / 256];
    const int v = (int)blockIdx.y, first = (int)blockIdx.x * EMBEDDING_ROWS, c = (int)(blockIdx.z * 256 + threadIdx.x);
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, run0 = first + warp * 256;
    unsigned found[8];
    int count = 0, before = 0, total = 0;
#pragma unroll
    for (int run = 0; run < 8; run++) {
        const int r = run0 + run * WARP + lane;
        found[run] = __ballot_sync(0xFFFFFFFFu, r < R && inputs[r] == v);
        count += __popc(found[run]);
    }
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    for (int w = 0; w < EMBEDDING_ROWS / 256; w++) {
        if (w < warp) before += counts[w];
        total += counts[w];
    }
#pragma unroll
    for (int run = 0; run < 8; run++) {
        const unsigned below = found[run] & ((1u << lane) - 1);
        if (found[run] >> lane & 1) list[before + __popc(below)] = run0 + run * WARP + lane;
        before += __popc(found[run]);
    }
    __syncthreads();
    if (c >= C) return;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < total; i++) sum += dx[(int64_t)list[i] * C + c];
    partial[((int64_t)blockIdx.x * V + v) * C + c] = sum;
}

static size_t embedding_partial_size(int R, int C) { return (size_t)blocks_for(R, EMBEDDING_ROWS) * V * C; }

static void embedding_backward(float *demb, float *partial, const float *dx, const uint8_t *inputs, int R, int C,
                               cudaStream_t stream) {
    const int chunks = blocks_for(R, EMBEDDING_ROWS);
    const dim3 blocks(chunks, V, blocks_for(C, 256));
    SumList sums = {};
    embedding_backward_kernel<<<blocks, 256, 0, stream>>>(partial, dx, inputs, R, C);
    sums_add(&sums, demb, partial, chunks, (size_t)V * C, (size_t)V * C);
    sum_parts(&sums, stream);
}

// ---- attention
//
// For every head, with q, k, v [T,S] its columns of qkv [R,3C], scale = 1 / sqrt(S):
//     scores[t][j] = scale (q_t . k_j + q_t . rel[t - j]) + scores_below[t][j], j <= t
//     out_t = sum_j a[t][j] v_j,  a = softmax_j(scores[t])
// and back, with a = exp(scores - log_sums) and dot_t = dout_t . out_t:
//     dv_j = sum_t a[t][j] dout_t
//     dscores[t][j] = a[t][j] (dout_t . v_j - dot_t) + dscores_above[t][j]
//     dq_t = scale sum_j dscores[t][j] (k_j + rel[t - j])
//     dk_j = scale sum_t dscores[t][j] q_t      drel[n] = scale sum_t dscores[t][t-n] q_t
// rel[n] is row D-1-n of the table, row 0 for all distances from D-1 on.
//
// Everything goes by blocks of 16 queries x 16 keys, 256 elements side by side, row by row; of a head those on and
// below the diagonal, strip of queries by strip: a little over half of T x T. A layer's scores are written once and
// read twice (by the layer above, by the backward), and this traffic, not arithmetic, is what attention costs. So they
// are 16 bits wide for bf16: but fp16, whose 11 bits leave the logits' error where the operands' rounding has it.
// Scores reach 58 in a trained model, and bf16's 8 bits there, eight layers in sequence, make that error four times as
// large. A score beyond 65504 becomes infinite, then the loss NaN, which the step notices. dscores spread over many
// orders of magnitude but need no digits: they have T's type, and one buffer for all layers, each in place of the layer
// above's.
//
// Two sets of kernels. bf16 heads of 16, the published model's, go to the tensor cores, a warp a strip of 16 queries or
// keys: a head is one step of mma_bf16 deep. All else, fp32 first, takes plain kernels for any S. No sum depends on the
// order in which blocks or warps run.

enum { STRIP = 16, BLOCK = STRIP * STRIP };

struct AttentionShape {
    int T, C, H, S, D;
    int strips; // of 16 queries, or keys, or distances, in T
};

template <typename T>
struct AttentionTypes {
    typedef float Score;
};
template <>
struct AttentionTypes<__nv_bfloat16> {
    typedef __half Score;
};
#define SCORE typename AttentionTypes<T>::Score

__device__ inline float to_float(__half x) { return __half2float(x); }
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

static AttentionShape attention_shape(int T, int C, int H, int D) {
    AttentionShape s = {T, C, H, C / H, D, (T + STRIP - 1) / STRIP};
    return s;
}

template <typename T>
static bool attention_on_tensor_cores(AttentionShape s) {
    return sizeof(T) == 2 && s.S == 16;
}

// Elements of a layer's scores, and of dscores, for B windows.
static size_t attention_scores_size(int B, AttentionShape s) {
    return (size_t)B * s.H * s.strips * (s.strips + 1) / 2 * BLOCK;
}

// The sums over distances come in parts, [parts][16 strips][S] floats: from 8 heads or a multiple of 8, so many that at
// most 32 groups are left to add up; on tensor cores two parts a group.
static int heads_together(int B, AttentionShape s) { return (B * s.H + 8 * 32 - 1) / (8 * 32) * 8; }

static int head_groups(int B, AttentionShape s) { return (B * s.H - 1) / heads_together(B, s) + 1; }

template <typename T>
static int relative_parts(int B, AttentionShape s) {
    return head_groups(B, s) * (attention_on_tensor_cores<T>(s) ? 2 : 1);
}
template <typename T>
static size_t relative_partial_size(int B, AttentionShape s) {
    return (size_t)relative_parts<T>(B, s) * s.strips * STRIP * s.S;
}

// Where the block of query strip I, key strip J <= I begins.
__device__ inline size_t score_block(int bh, int I, int J, AttentionShape s) {
    return ((size_t)bh * (s.strips * (s.strips + 1) / 2) + (size_t)I * (I + 1) / 2 + J) * BLOCK;
}
// Where score (t, j) lies.
__device__ inline size_t score_at(int bh, int t, int j, AttentionShape s) {
    return score_block(bh, t / STRIP, j / STRIP, s) + t % STRIP * STRIP + j % STRIP;
}
// A head's first element in rows of `stride`: 3C for q in qkv (k is C further on, v 2C), C for out.
__device__ inline size_t head_at(int bh, int stride, AttentionShape s) {
    return (size_t)(bh / s.H) * s.T * stride + bh % s.H * s.S;
}
__device__ inline const float *relative_vector(const float *rel, int n, AttentionShape s) {
    return rel + (size_t)(s.D - 1 - min(max(n, 0), s.D - 1)) * s.S;
}

// ---- attention: plain kernels
//
// 256 threads a block. A tile of scores is 16 queries by 32 keys, a warp has two of the queries, a lane one of the
// keys; heads are walked through in pieces of 32 channels. Where a product's result is a row of S channels, a thread
// has one (row, channel) of 16 S; more of them in turn if S > 16.

enum { KEYS = 32, DEPTH = 32 };

// to[row][c] = from[row0 + row][c0 + c] for rows 0..count-1; zeros outside of `rows` rows of `columns`
template <typename T>
__device__ inline void stage(float (*to)[DEPTH + 1], int count, const T *from, size_t stride, int row0, int rows,
                             int c0, int columns) {
    for (int i = threadIdx.x; i < count * DEPTH; i += blockDim.x) {
        int row = i / DEPTH, c = i % DEPTH;
        bool exists = row0 + row >= 0 && row0 + row < rows && c0 + c < columns;
        to[row][c] = exists ? to_float(from[(row0 + row) * (ptrdiff_t)stride + c0 + c]) : 0;
    }
}

// A block has a strip of queries of a head. First the scores, tile by tile, keeping each row's maximum; then it reads
// them back (from the L1 cache, mostly) for softmax and the product with v.
template <typename T>
__global__ void __launch_bounds__(256, 4)
    attention_forward_kernel(T *out, SCORE *scores, float *log_sums, const SCORE *scores_below, const T *qkv,
                             const float *rel, int heads, AttentionShape s) {
    __shared__ float q_tile[STRIP][DEPTH + 1];
    __shared__ float k_tile[KEYS][DEPTH + 1];
    __shared__ float rel_tile[STRIP + KEYS][DEPTH + 1];
    __shared__ float a_tile[STRIP][KEYS + 1];
    __shared__ float tops[STRIP];
    const int bh = blockIdx.x % heads, t0 = (s.strips - 1 - blockIdx.x / heads) * STRIP; // the longest first
    const int keys = min(t0 + STRIP, s.T), lane = threadIdx.x % 32, warp = threadIdx.x / 32, C3 = 3 * s.C;
    const T *q = qkv + head_at(bh, C3, s), *k = q + s.C, *v = k + s.C;
    const float scale = 1 / sqrtf(s.S);
    float top[2] = {-INFINITY, -INFINITY};
    for (int j0 = 0; j0 < keys; j0 += KEYS) {
        float sums[2] = {0, 0};
        for (int d0 = 0; d0 < s.S; d0 += DEPTH) {
            __syncthreads();
            stage(q_tile, STRIP, q, C3, t0, s.T, d0, s.S);
            stage(k_tile, KEYS, k, C3, j0, s.T, d0, s.S);
            for (int i = threadIdx.x; i < (STRIP + KEYS) * DEPTH; i += blockDim.x) { // row x: distance t0 - j0 - 31 + x
                int x = i / DEPTH, c = i % DEPTH;
                rel_tile[x][c] = d0 + c < s.S ? relative_vector(rel, t0 - j0 - (KEYS - 1) + x, s)[d0 + c] : 0;
            }
            __syncthreads();
            for (int c = 0; c < min(DEPTH, s.S - d0); c++) {
                for (int i = 0; i < 2; i++) {
                    int row = 2 * warp + i;
                    sums[i] += q_tile[row][c] * (k_tile[lane][c] + rel_tile[row - lane + KEYS - 1][c]);
                }
            }
        }
        for (int i = 0; i < 2; i++) {
            int t = t0 + 2 * warp + i, j = j0 + lane;
            if (j > t || t >= s.T) continue;
            size_t at = score_at(bh, t, j, s);
            SCORE x = from_float<SCORE>(sums[i] * scale + (scores_below ? to_float(scores_below[at]) : 0));
            scores[at] = x;
            top[i] = fmaxf(top[i], to_float(x));
        }
    }
    for (int i = 0; i < 2; i++) {
        for (int lanes = 16; lanes; lanes /= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], lanes));
        if (lane == 0) tops[2 * warp + i] = top[i];
    }
    for (int first = 0; first < STRIP * s.S; first += blockDim.x) {
        const int own = first + threadIdx.x, row = own / s.S, d = own % s.S, t = t0 + row;
        const bool exists = row < STRIP && t < s.T;
        float sum = 0, o = 0;
        for (int j0 = 0; j0 < keys; j0 += KEYS) {
            __syncthreads();
            for (int i = threadIdx.x; i < STRIP * KEYS; i += blockDim.x) {
                int t_i = t0 + i / KEYS, j = j0 + i % KEYS;
                bool past = j <= t_i && t_i < s.T;
                a_tile[i / KEYS][i % KEYS] =
                    past ? expf(to_float(scores[score_at(bh, t_i, j, s)]) - tops[i / KEYS]) : 0;
            }
            __syncthreads();
            for (int j = j0; exists && j < min(j0 + KEYS, t + 1); j++) {
                sum += a_tile[row][j - j0];
                o += a_tile[row][j - j0] * to_float(v[(size_t)j * C3 + d]);
            }
        }
        if (!exists) continue; // at the last `first` only
        out[head_at(bh, s.C, s) + (size_t)t * s.C + d] = from_float<T>(o / sum);
        if (d == 0) log_sums[(size_t)bh * s.T + t] = tops[row] + logf(sum);
    }
}

// A block has a strip of queries: dscores of its rows, then dq.
template <typename T>
__global__ void __launch_bounds__(256, 4)
    attention_backward_queries_kernel(T *dqkv, T *dscores, const SCORE *scores, const T *dscores_above, const T *dout,
                                      const T *out, const float *log_sums, const T *qkv, const float *rel, int heads,
                                      AttentionShape s) {
    __shared__ float dout_tile[STRIP][DEPTH + 1];
    __shared__ float v_tile[KEYS][DEPTH + 1];
    __shared__ float ds_tile[STRIP][KEYS + 1];
    const int bh = blockIdx.x % heads, t0 = (s.strips - 1 - blockIdx.x / heads) * STRIP;
    const int keys = min(t0 + STRIP, s.T), lane = threadIdx.x % 32, warp = threadIdx.x / 32, C3 = 3 * s.C;
    const T *k = qkv + head_at(bh, C3, s) + s.C, *v = k + s.C;
    const T *dout_bh = dout + head_at(bh, s.C, s), *out_bh = out + head_at(bh, s.C, s);
    float dot[2] = {0, 0}, log_sum[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        int t = t0 + 2 * warp + i;
        if (t >= s.T) continue; // the whole warp
        for (int d = lane; d < s.S; d += 32)
            dot[i] += to_float(dout_bh[(size_t)t * s.C + d]) * to_float(out_bh[(size_t)t * s.C + d]);
        dot[i] = warp_sum(dot[i]);
        log_sum[i] = log_sums[(size_t)bh * s.T + t];
    }
    for (int j0 = 0; j0 < keys; j0 += KEYS) {
        float da[2] = {0, 0};
        for (int d0 = 0; d0 < s.S; d0 += DEPTH) {
            __syncthreads();
            stage(dout_tile, STRIP, dout_bh, s.C, t0, s.T, d0, s.S);
            stage(v_tile, KEYS, v, C3, j0, s.T, d0, s.S);
            __syncthreads();
            for (int c = 0; c < min(DEPTH, s.S - d0); c++)
                for (int i = 0; i < 2; i++) da[i] += dout_tile[2 * warp + i][c] * v_tile[lane][c];
        }
        for (int i = 0; i < 2; i++) {
            int t = t0 + 2 * warp + i, j = j0 + lane;
            if (j > t || t >= s.T) continue;
            size_t at = score_at(bh, t, j, s);
            float ds = expf(to_float(scores[at]) - log_sum[i]) * (da[i] - dot[i]);
            dscores[at] = from_float<T>(ds + (dscores_above ? to_float(dscores_above[at]) : 0));
        }
    }
    for (int first = 0; first < STRIP * s.S; first += blockDim.x) {
        const int own = first + threadIdx.x, row = own / s.S, d = own % s.S, t = t0 + row;
        const bool exists = row < STRIP && t < s.T;
        float dq = 0;
        for (int j0 = 0; j0 < keys; j0 += KEYS) {
            __syncthreads();
            for (int i = threadIdx.x; i < STRIP * KEYS; i += blockDim.x) {
                int t_i = t0 + i / KEYS, j = j0 + i % KEYS;
                bool past = j <= t_i && t_i < s.T;
                ds_tile[i / KEYS][i % KEYS] = past ? to_float(dscores[score_at(bh, t_i, j, s)]) : 0;
            }
            __syncthreads();
            for (int j = j0; exists && j < min(j0 + KEYS, t + 1); j++)
                dq += ds_tile[row][j - j0] * (to_float(k[(size_t)j * C3 + d]) + relative_vector(rel, t - j, s)[d]);
        }
        if (exists) dqkv[head_at(bh, C3, s) + (size_t)t * C3 + d] = from_float<T>(dq / sqrtf(s.S));
    }
}

// Sums over queries. The first strips x heads blocks have a strip of keys of a head each: dk and dv. The others have a
// strip of distances of a group of heads: their part of drel.
template <typename T>
__global__ void __launch_bounds__(256, 4)
    attention_backward_keys_kernel(T *dqkv, float *rel_partial, const T *dscores, const SCORE *scores, const T *dout,
                                   const float *log_sums, const T *qkv, int heads, int together, AttentionShape s) {
    __shared__ float a_tile[STRIP][STRIP + 1];
    __shared__ float ds_tile[STRIP][STRIP + 1];
    const int C3 = 3 * s.C, i = threadIdx.x / STRIP, x = threadIdx.x % STRIP; // of the tile that it fills
    const float scale = 1 / sqrtf(s.S);
    const int key_blocks = s.strips * heads, block = (int)blockIdx.x - key_blocks;
    if (block < 0) {
        const int bh = blockIdx.x % heads, J = blockIdx.x / heads;
        const T *q = qkv + head_at(bh, C3, s), *dout_bh = dout + head_at(bh, s.C, s);
        for (int first = 0; first < STRIP * s.S; first += blockDim.x) {
            const int own = first + threadIdx.x, row = own / s.S, d = own % s.S, j = J * STRIP + row;
            const bool exists = row < STRIP && j < s.T;
            float dk = 0, dv = 0;
            for (int t0 = J * STRIP; t0 < s.T; t0 += STRIP) {
                int t_i = t0 + i, j_x = J * STRIP + x;
                bool past = j_x <= t_i && t_i < s.T;
                size_t at = score_block(bh, t0 / STRIP, J, s) + threadIdx.x;
                __syncthreads();
                a_tile[i][x] = past ? expf(to_float(scores[at]) - log_sums[(size_t)bh * s.T + t_i]) : 0;
                ds_tile[i][x] = past ? to_float(dscores[at]) : 0;
                __syncthreads();
                for (int t = t0; exists && t < min(t0 + STRIP, s.T); t++) {
                    dk += ds_tile[t - t0][row] * to_float(q[(size_t)t * C3 + d]);
                    dv += a_tile[t - t0][row] * to_float(dout_bh[(size_t)t * s.C + d]);
                }
            }
            if (!exists) continue;
            T *dkv = dqkv + head_at(bh, C3, s) + (size_t)j * C3 + d;
            dkv[s.C] = from_float<T>(dk * scale);
            dkv[2 * s.C] = from_float<T>(dv);
        }
    } else {
        const int part = block / s.strips, n0 = block % s.strips * STRIP;
        for (int first = 0; first < STRIP * s.S; first += blockDim.x) {
            const int own = first + threadIdx.x, row = own / s.S, d = own % s.S;
            float sum = 0;
            for (int bh = part * together; bh < min((part + 1) * together, heads); bh++) {
                const T *q = qkv + head_at(bh, C3, s);
                for (int t0 = n0; t0 < s.T; t0 += STRIP) {
                    int t_i = t0 + i, j = t_i - n0 - x;
                    __syncthreads();
                    ds_tile[i][x] = j >= 0 && t_i < s.T ? to_float(dscores[score_at(bh, t_i, j, s)]) : 0;
                    __syncthreads();
                    for (int t = t0; row < STRIP && t < min(t0 + STRIP, s.T); t++)
                        sum += ds_tile[t - t0][row] * to_float(q[(size_t)t * C3 + d]);
                }
            }
            if (row < STRIP) rel_partial[((size_t)part * s.strips * STRIP + n0 + row) * s.S + d] = sum * scale;
        }
    }
}

// drel[D-1-n] = the sum of all parts of distance n. A block has a row of the table, row 0 with all that is farther. 512
// threads: a row's channels side by side, the terms dealt out to as many such rows of threads as there are.
__global__ void __launch_bounds__(512)
    relative_vectors_backward_kernel(float *drel, const float *rel_partial, int parts, AttentionShape s) {
    __shared__ float sums[512];
    const int row = blockIdx.x, first = s.D - 1 - row, end = min(row == 0 ? s.T : first + 1, s.T);
    const int terms = max(end - first, 0) * parts, columns = min(s.S, 512), slices = 512 / columns;
    const int slice = threadIdx.x / columns;
    for (int d0 = 0; d0 < s.S; d0 += columns) {
        const int d = d0 + threadIdx.x % columns;
        float sum = 0;
        for (int i = slice; slice < slices && d < s.S && i < terms; i += slices)
            sum += rel_partial[((size_t)(i % parts) * s.strips * STRIP + first + i / parts) * s.S + d];
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (slice == 0 && d < s.S) {
            for (int i = 1; i < slices; i++) sum += sums[i * columns + threadIdx.x];
            drel[(size_t)row * s.S + d] = sum;
        }
        __syncthreads();
    }
}

// ---- attention: bf16 heads of 16 on tensor cores
//
// 8 warps a block. Rows of a head lie in shared memory as 16 bf16, 32 bytes, up to 256 rows at once; T beyond that is
// walked through in steps. From then on a warp works alone: it has a strip of 16 queries or keys in registers, and
// passes by the blocks of its row or column.
//
// A block of scores in registers. Lane (g, c) = (lane / 4, lane % 4) holds of queries g and g + 8 the keys 4c..4c+3, so
// that a warp moves a block as two times 256 bytes in a row. mma_bf16 deals out the columns of a product as 2c, 2c+1 of
// each of its two halves; key_of() says which key that column must be for this. x[e], e < 8:
//     query g + 8 (e / 2 % 2), key 4c + 2 (e / 4) + e % 2
// Packed in pairs it is the A operand of a product over keys, if the other operand's rows come in that order.

enum { WARPS = 8, ROWS = 256, REL_ROWS = ROWS + STRIP * WARPS };

__device__ inline int key_of(int half, int column) { return column / 2 * 4 + 2 * half + column % 2; }

// Where half (8 elements) of a row begins. Halves of rows 4..7 of 8 are swapped: then the 8 rows that ldmatrix reads at
// once lie in different banks.
__device__ inline __nv_bfloat16 *cell(__nv_bfloat16 *rows, int row, int half) {
    return rows + row * 16 + (half ^ (row >> 2 & 1)) * 8;
}

// The operands of mma_bf16 from 16 rows in shared memory.
__device__ inline void load_rows_a(uint32_t *a, __nv_bfloat16 *rows, int lane) { // A = rows
    ldmatrix<4>(a, cell(rows, lane % 16, lane / 16));
}
__device__ inline void load_columns_a(uint32_t *a, __nv_bfloat16 *rows, int lane) { // A = rows transposed
    ldmatrix<4, true>(a, cell(rows, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
__device__ inline void load_rows_b(uint32_t *b, __nv_bfloat16 *rows, int lane) { // B = rows, two halves of 8 columns
    ldmatrix<4, true>(b, cell(rows, lane % 16, lane / 16));
}
__device__ inline void load_key_rows_b(uint32_t *b, __nv_bfloat16 *rows, int lane) { // the same, rows as key_of()
    ldmatrix<4, true>(b, cell(rows, key_of(lane / 8 % 2, lane % 8), lane / 16));
}
__device__ inline void load_keys_b(uint32_t *b, __nv_bfloat16 *rows, int lane) { // B = rows transposed, in that order
    ldmatrix<4>(b, cell(rows, key_of(lane / 16, lane % 8), lane / 8 % 2));
}
__device__ inline void load_distances_b(uint32_t *b, __nv_bfloat16 *rows, int lane) { // and in their own order
    ldmatrix<4>(b, cell(rows, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
// d[8] += A B for a B of 16 columns
__device__ inline void multiply(float *d, const uint32_t *a, const uint32_t *b) {
    mma_bf16(d, a, b);
    mma_bf16(d + 4, a, b + 2);
}

__device__ inline uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return (uint32_t)__bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}
__device__ inline void pack_a(uint32_t *a, const float *x) {
    for (int i = 0; i < 4; i++) a[i] = pack(x[2 * i], x[2 * i + 1]);
}
__device__ inline void unpack_bf16(float *x, uint32_t pair) {
    x[0] = __uint_as_float(pair << 16);
    x[1] = __uint_as_float(pair & 0xffff0000u);
}
__device__ inline uint32_t pack_half(float low, float high) {
    return (uint32_t)__half_as_ushort(__float2half_rn(low)) | (uint32_t)__half_as_ushort(__float2half_rn(high)) << 16;
}
__device__ inline void unpack_half(float *x, uint32_t pair) {
    x[0] = __half2float(__ushort_as_half((unsigned short)pair));
    x[1] = __half2float(__ushort_as_half((unsigned short)(pair >> 16)));
}

// A block of scores or dscores in memory, as pairs r[i] of x[2i], x[2i+1].
__device__ inline void load_block(uint32_t *r, const void *block, int lane) {
    uint2 upper = ((const uint2 *)block)[lane], lower = ((const uint2 *)block)[lane + 32];
    r[0] = upper.x;
    r[1] = lower.x;
    r[2] = upper.y;
    r[3] = lower.y;
}
__device__ inline void store_block(void *block, const uint32_t *r, int lane) {
    ((uint2 *)block)[lane] = make_uint2(r[0], r[2]);
    ((uint2 *)block)[lane + 32] = make_uint2(r[1], r[3]);
}
// The same into 16 rows of shared memory.
__device__ inline void store_tile(__nv_bfloat16 *rows, const uint32_t *r, int lane) {
    int g = lane / 4, c = lane % 4;
    *(uint2 *)(cell(rows, g, c / 2) + c % 2 * 4) = make_uint2(r[0], r[2]);
    *(uint2 *)(cell(rows, g + 8, c / 2) + c % 2 * 4) = make_uint2(r[1], r[3]);
}

// Copies rows first..first+count-1 of a head by threads thread, thread + threads, ...; zeros for rows from T on.
__device__ inline void stage_rows(__nv_bfloat16 *to, const __nv_bfloat16 *head, int stride, int first, int count, int T,
                                  int thread, int threads) {
    for (int i = thread; i < 2 * count; i += threads) {
        int row = i / 2, half = i % 2;
        bool exists = first + row < T;
        cp_async<16>(cell(to, row, half), exists ? head + (size_t)(first + row) * stride + half * 8 : head,
                     exists ? 16 : 0);
    }
}
// The vectors of distances first..first+count-1, those of the future as zeros.
__device__ inline void stage_distances(__nv_bfloat16 *to, const float *rel, int first, int count, AttentionShape s) {
    for (int i = threadIdx.x; i < 8 * count; i += blockDim.x) {
        int row = i / 8, pair = i % 8;
        const float *vector = relative_vector(rel, first + row, s) + 2 * pair;
        bool exists = first + row >= 0;
        *(uint32_t *)(cell(to, row, pair / 4) + pair % 4 * 2) = exists ? pack(vector[0], vector[1]) : 0;
    }
}
__device__ inline void copies_arrived() {
    cp_async_commit();
    cp_async_wait<0>();
}

// Rows of d[8] = [16][16] of a product, times scale, to rows first.. of a head.
__device__ inline void store_rows(__nv_bfloat16 *head, int stride, int first, const float *d, float scale, int T,
                                  int lane) {
    for (int e = 0; e < 8; e += 2) {
        int row = first + lane / 4 + e / 2 % 2 * 8;
        if (row < T)
            *(uint32_t *)(head + (size_t)row * stride + e / 4 * 8 + lane % 4 * 2) =
                pack(d[e] * scale, d[e + 1] * scale);
    }
}

// A warp has a strip of queries and passes by its keys, four blocks at a time, keeping maximum, sum and out of the
// softmax so far (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
//
// q_t . rel[n] is a product over distances. That of block (I, J) are 16 (I - J) - 15 .. 16 (I - J) + 15: two strips of
// distances, of which the block before had the farther. So a block costs one more strip, [16 queries][16 distances],
// which the warp writes to its band, where distance n has column n % 32, to read it back skewed, element (t, t - j) for
// key j.
__global__ void __launch_bounds__(256)
    attention_forward_16(__nv_bfloat16 *out, __half *scores, float *log_sums, const __half *scores_below,
                         const __nv_bfloat16 *qkv, const float *rel, int heads, AttentionShape s) {
    __shared__ __align__(16) __nv_bfloat16 k_rows[ROWS * 16];
    __shared__ __align__(16) __nv_bfloat16 v_rows[ROWS * 16];
    __shared__ __align__(16) __nv_bfloat16 rel_rows[REL_ROWS * 16];
    __shared__ __align__(16) float bands[WARPS][STRIP][40]; // a row 8 banks after the other: no conflicts in writing
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, C3 = 3 * s.C;
    const int tiles = (s.strips + WARPS - 1) / WARPS, bh = blockIdx.x % heads;
    const int I0 = (tiles - 1 - blockIdx.x / heads) * WARPS, I = I0 + warp; // the longest first
    const int end = min(I0 + WARPS, s.strips);
    const __nv_bfloat16 *q = qkv + head_at(bh, C3, s), *k = q + s.C, *v = k + s.C;
    uint32_t q_a[4];
    for (int i = 0; i < 4; i++) {
        int t = I * STRIP + g + i % 2 * 8;
        q_a[i] = t < s.T ? *(const uint32_t *)(q + (size_t)t * C3 + i / 2 * 8 + c * 2) : 0;
    }
    float o[8] = {0}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    for (int J0 = 0; J0 < end; J0 += ROWS / STRIP) {
        const int J_end = min(J0 + ROWS / STRIP, end), rel0 = I0 - J_end; // first strips of keys and of distances after
        if (J0 > 0) __syncthreads();
        stage_rows(k_rows, k, C3, J0 * STRIP, (J_end - J0) * STRIP, s.T, threadIdx.x, blockDim.x);
        stage_rows(v_rows, v, C3, J0 * STRIP, (J_end - J0) * STRIP, s.T, threadIdx.x, blockDim.x);
        stage_distances(rel_rows, rel, rel0 * STRIP, (end - J0 - rel0) * STRIP, s);
        copies_arrived();
        __syncthreads();
        if (I >= s.strips) continue;
        if (J0 == 0) { // the farthest strip of distances
            float far[8] = {0};
            uint32_t b[4];
            load_distances_b(b, rel_rows + (I - rel0) * BLOCK, lane);
            multiply(far, q_a, b);
            for (int e = 0; e < 8; e += 2) {
                float2 *to = (float2 *)&bands[warp][g + e / 2 % 2 * 8][I % 2 * 16 + e / 4 * 8 + c * 2];
                *to = make_float2(far[e], far[e + 1]);
            }
        }
        for (int J = J0; J < min(J_end, I + 1); J += 4) {
            const int n = min(4, min(J_end, I + 1) - J);
            uint32_t below[4][4];
            float x[4][8], high[2] = {top[0], top[1]};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                for (int p = 0; p < 4; p++) below[i][p] = 0;
                if (scores_below && i < n) load_block(below[i], scores_below + score_block(bh, I, J + i, s), lane);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                for (int e = 0; e < 8; e++) x[i][e] = 0;
                if (i < n) {
                    const int away = I - J - i; // the strip of distances on the block's diagonal
                    float near[8] = {0};
                    uint32_t b[4];
                    load_distances_b(b, rel_rows + (away - 1 - rel0) * BLOCK, lane);
                    multiply(near, q_a, b);
                    for (int e = 0; e < 8; e += 2) {
                        float2 *to = (float2 *)&bands[warp][g + e / 2 % 2 * 8][(away + 1) % 2 * 16 + e / 4 * 8 + c * 2];
                        *to = make_float2(near[e], near[e + 1]);
                    }
                    load_keys_b(b, k_rows + (J + i - J0) * BLOCK, lane);
                    multiply(x[i], q_a, b);
                    __syncwarp();
                    for (int e = 0; e < 8; e += 2) {
                        int row = g + e / 2 % 2 * 8, key = 4 * c + e / 4 * 2;
                        const float *band = bands[warp][row];
                        float under[2];
                        unpack_half(under, below[i][e / 2]);
                        for (int p = 0; p < 2; p++) {
                            float relative = band[(away * 16 + row - key - p) & 31];
                            bool future = away == 0 && key + p > row;
                            x[i][e + p] = future ? -INFINITY : (x[i][e + p] + relative) * 0.25f + under[p];
                        }
                        below[i][e / 2] = pack_half(x[i][e], x[i][e + 1]); // the softmax is of what is stored
                        unpack_half(&x[i][e], below[i][e / 2]);
                        high[e / 2 % 2] = fmaxf(high[e / 2 % 2], fmaxf(x[i][e], x[i][e + 1]));
                    }
                    store_block(scores + score_block(bh, I, J + i, s), below[i], lane);
                    __syncwarp();
                }
            }
            for (int r = 0; r < 2; r++) {
                high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
                high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
                float shrink = __expf(top[r] - high[r]);
                top[r] = high[r];
                sum[r] *= shrink;
                for (int e = 2 * r; e < 8; e += 4) {
                    o[e] *= shrink;
                    o[e + 1] *= shrink;
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (i < n) {
                    uint32_t a[4], b[4];
                    for (int e = 0; e < 8; e++) {
                        x[i][e] = __expf(x[i][e] - top[e / 2 % 2]);
                        sum[e / 2 % 2] += x[i][e];
                    }
                    pack_a(a, x[i]);
                    load_key_rows_b(b, v_rows + (J + i - J0) * BLOCK, lane);
                    multiply(o, a, b);
                }
            }
        }
    }
    if (I >= s.strips) return;
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        int t = I * STRIP + g + 8 * r;
        if (c == 0 && t < s.T) log_sums[(size_t)bh * s.T + t] = top[r] + __logf(sum[r]);
        for (int e = 2 * r; e < 8; e += 4) {
            o[e] /= sum[r];
            o[e + 1] /= sum[r];
        }
    }
    store_rows(out + head_at(bh, s.C, s), s.C, I * STRIP, o, 1, s.T, lane);
}

// dk, dv and dscores. A warp has a strip of keys and passes by the queries that see them: it reads scores and
// dscores_above once, and writes dscores (dscores may be dscores_above). Products over queries want a and dscores
// transposed: they go through a tile of shared memory, 16 x 16, of the warp's own.
__global__ void __launch_bounds__(256)
    attention_backward_keys_16(__nv_bfloat16 *dqkv, __nv_bfloat16 *dscores, const __half *scores,
                               const __nv_bfloat16 *dscores_above, const __nv_bfloat16 *dout, const __nv_bfloat16 *out,
                               const float *log_sums, const __nv_bfloat16 *qkv, int heads, AttentionShape s) {
    __shared__ __align__(16) __nv_bfloat16 q_rows[ROWS * 16];
    __shared__ __align__(16) __nv_bfloat16 dout_rows[ROWS * 16];
    __shared__ float log_sum[ROWS];
    __shared__ float dot[ROWS];
    __shared__ __align__(16) __nv_bfloat16 tiles[WARPS][2 * BLOCK];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, C3 = 3 * s.C;
    const int bh = blockIdx.x % heads, first = blockIdx.x / heads * WARPS, J = first + warp; // the longest first
    const __nv_bfloat16 *q = qkv + head_at(bh, C3, s), *v = q + 2 * s.C;
    const __nv_bfloat16 *dout_bh = dout + head_at(bh, s.C, s), *out_bh = out + head_at(bh, s.C, s);
    __nv_bfloat16 *a_tile = tiles[warp], *ds_tile = a_tile + BLOCK;
    stage_rows(a_tile, v, C3, J * STRIP, STRIP, s.T, lane, 32);
    copies_arrived();
    __syncwarp();
    uint32_t v_b[4];
    load_keys_b(v_b, a_tile, lane);
    float dk[8] = {0}, dv[8] = {0};
    for (int I0 = first; I0 < s.strips; I0 += ROWS / STRIP) {
        const int I_end = min(I0 + ROWS / STRIP, s.strips), rows = (I_end - I0) * STRIP;
        __syncthreads();
        stage_rows(q_rows, q, C3, I0 * STRIP, rows, s.T, threadIdx.x, blockDim.x);
        stage_rows(dout_rows, dout_bh, s.C, I0 * STRIP, rows, s.T, threadIdx.x, blockDim.x);
        for (int i = threadIdx.x; i < rows; i += blockDim.x) {
            const int t = I0 * STRIP + i;
            float product = 0;
            for (int d = 0; t < s.T && d < 16; d += 8) {
                uint4 a = *(const uint4 *)(dout_bh + (size_t)t * s.C + d),
                      b = *(const uint4 *)(out_bh + (size_t)t * s.C + d);
                const uint32_t pairs[2][4] = {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
                for (int p = 0; p < 4; p++) {
                    float x[2], y[2];
                    unpack_bf16(x, pairs[0][p]);
                    unpack_bf16(y, pairs[1][p]);
                    product += x[0] * y[0] + x[1] * y[1];
                }
            }
            dot[i] = product;
            log_sum[i] = t < s.T ? log_sums[(size_t)bh * s.T + t] : INFINITY; // then a = 0
        }
        copies_arrived();
        __syncthreads();
        uint32_t score_next[4], above_next[4] = {0, 0, 0, 0};
        for (int I = max(I0, J); I < I_end; I++) {
            const size_t at = score_block(bh, I, J, s);
            uint32_t score[4], above[4], a[4], b[4];
            if (I == max(I0, J)) {
                load_block(score_next, scores + at, lane);
                if (dscores_above) load_block(above_next, dscores_above + at, lane);
            }
            for (int p = 0; p < 4; p++) {
                score[p] = score_next[p];
                above[p] = above_next[p];
            }
            if (I + 1 < I_end) { // the next block is on its way during this one
                const size_t next = score_block(bh, I + 1, J, s);
                load_block(score_next, scores + next, lane);
                if (dscores_above) load_block(above_next, dscores_above + next, lane);
            }
            __nv_bfloat16 *q_I = q_rows + (I - I0) * BLOCK, *dout_I = dout_rows + (I - I0) * BLOCK;
            float x[8] = {0}, ds[8];
            load_rows_a(a, dout_I, lane);
            multiply(x, a, v_b);
            for (int e = 0; e < 8; e += 2) {
                const int row = (I - I0) * STRIP + g + e / 2 % 2 * 8;
                const float log_sum_t = log_sum[row], dot_t = dot[row];
                float raw[2], over[2];
                unpack_half(raw, score[e / 2]);
                unpack_bf16(over, above[e / 2]);
                for (int p = 0; p < 2; p++) {
                    float a_tj = __expf(raw[p] - log_sum_t);
                    ds[e + p] = a_tj * (x[e + p] - dot_t) + over[p];
                    x[e + p] = a_tj;
                }
            }
            pack_a(a, ds);
            store_block(dscores + at, a, lane);
            store_tile(ds_tile, a, lane);
            pack_a(a, x);
            store_tile(a_tile, a, lane);
            __syncwarp();
            load_columns_a(a, a_tile, lane);
            load_rows_b(b, dout_I, lane);
            multiply(dv, a, b);
            load_columns_a(a, ds_tile, lane);
            load_rows_b(b, q_I, lane);
            multiply(dk, a, b);
            __syncwarp();
        }
    }
    __nv_bfloat16 *dk_bh = dqkv + head_at(bh, C3, s) + s.C;
    store_rows(dk_bh, C3, J * STRIP, dk, 0.25f, s.T, lane);
    store_rows(dk_bh + s.C, C3, J * STRIP, dv, 1, s.T, lane);
}

// A block of dscores against distances, [16 queries][32 distances from 16 away - 16 on] in two tiles: element (t, j) at
// column 16 + t - j. The other columns stay the zeros that they are.
__device__ inline void store_skewed(__nv_bfloat16 *band, const uint32_t *ds, int lane) {
    for (int e = 0; e < 8; e++) {
        int row = lane / 4 + e / 2 % 2 * 8, column = 16 + row - (lane % 4 * 4 + e / 4 * 2 + e % 2);
        __nv_bfloat16 *half = cell(band + column / 16 * BLOCK, row, column / 8 % 2);
        half[column % 8] = __ushort_as_bfloat16((unsigned short)(ds[e / 2] >> 16 * (e % 2)));
    }
}

// dq and the parts of drel, from dscores. Of the blocks for a group of heads, the first have 8 strips of queries of a
// head each: a warp has a strip and passes by its keys, dq = dscores k + skewed dscores rel. The others have a diagonal
// of blocks each, a warp that of every eighth head: drel = skewed dscores^T q, the group's sum for the 32 distances
// that meet there. They are one launch, and near each other, so that dscores come from memory once, then from the L2
// cache.
__global__ void __launch_bounds__(256)
    attention_backward_queries_16(__nv_bfloat16 *dqkv, float *rel_partial, const __nv_bfloat16 *dscores,
                                  const __nv_bfloat16 *qkv, const float *rel, int heads, int together,
                                  AttentionShape s) {
    __shared__ __align__(16) __nv_bfloat16 rows[(ROWS + REL_ROWS) * 16];
    __shared__ __align__(16) __nv_bfloat16 bands[WARPS][2 * BLOCK];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, C3 = 3 * s.C;
    const int tiles = (s.strips + WARPS - 1) / WARPS, query_blocks = together * tiles;
    const int part = blockIdx.x / (query_blocks + s.strips), role = blockIdx.x % (query_blocks + s.strips);
    __nv_bfloat16 *band = bands[warp];
    for (int i = lane; i < BLOCK; i += 32) ((uint32_t *)band)[i] = 0;
    __syncwarp();
    uint32_t ds[4], ds_next[4] = {0, 0, 0, 0}, a[4], b[4];
    if (role < query_blocks) {
        const int bh = part * together + role % together;
        const int I0 = (tiles - 1 - role / together) * WARPS, I = I0 + warp, end = min(I0 + WARPS, s.strips);
        if (bh >= heads) return; // the whole block
        const __nv_bfloat16 *k = qkv + head_at(bh, C3, s) + s.C;
        __nv_bfloat16 *k_rows = rows, *rel_rows = rows + ROWS * 16;
        float dq[8] = {0};
        for (int J0 = 0; J0 < end; J0 += ROWS / STRIP) {
            const int J_end = min(J0 + ROWS / STRIP, end), rel0 = I0 - J_end;
            if (J0 > 0) __syncthreads();
            stage_rows(k_rows, k, C3, J0 * STRIP, (J_end - J0) * STRIP, s.T, threadIdx.x, blockDim.x);
            stage_distances(rel_rows, rel, rel0 * STRIP, (end - J0 - rel0) * STRIP, s);
            copies_arrived();
            __syncthreads();
            if (I >= s.strips) continue;
            for (int J = J0; J < min(J_end, I + 1); J++) {
                if (J == J0) load_block(ds_next, dscores + score_block(bh, I, J, s), lane);
                for (int p = 0; p < 4; p++) ds[p] = ds_next[p];
                if (J + 1 < min(J_end, I + 1)) load_block(ds_next, dscores + score_block(bh, I, J + 1, s), lane);
                store_skewed(band, ds, lane);
                load_key_rows_b(b, k_rows + (J - J0) * BLOCK, lane);
                multiply(dq, ds, b);
                __syncwarp();
                for (int near = 1; near >= 0; near--) {
                    load_rows_a(a, band + (1 - near) * BLOCK, lane);
                    load_rows_b(b, rel_rows + (I - J - near - rel0) * BLOCK, lane);
                    multiply(dq, a, b);
                }
                __syncwarp();
            }
        }
        if (I < s.strips) store_rows(dqkv + head_at(bh, C3, s), C3, I * STRIP, dq, 0.25f, s.T, lane);
    } else {
        const int away = role - query_blocks;
        __nv_bfloat16 *q_rows = rows + warp * 2 * BLOCK; // two strips, in turn
        float near[8] = {0}, far[8] = {0};
        for (int bh = part * together + warp; bh < min((part + 1) * together, heads); bh += WARPS) {
            const __nv_bfloat16 *q = qkv + head_at(bh, C3, s);
            stage_rows(q_rows + away % 2 * BLOCK, q, C3, away * STRIP, STRIP, s.T, lane, 32);
            cp_async_commit();
            load_block(ds_next, dscores + score_block(bh, away, 0, s), lane);
            for (int I = away; I < s.strips; I++) {
                for (int p = 0; p < 4; p++) ds[p] = ds_next[p];
                if (I + 1 < s.strips) {
                    stage_rows(q_rows + (I + 1) % 2 * BLOCK, q, C3, (I + 1) * STRIP, STRIP, s.T, lane, 32);
                    load_block(ds_next, dscores + score_block(bh, I + 1, I + 1 - away, s), lane);
                }
                cp_async_commit();
                store_skewed(band, ds, lane);
                cp_async_wait<1>();
                __syncwarp();
                load_rows_b(b, q_rows + I % 2 * BLOCK, lane);
                load_columns_a(a, band, lane);
                multiply(near, a, b);
                load_columns_a(a, band + BLOCK, lane);
                multiply(far, a, b);
                __syncwarp();
            }
        }
        __syncthreads();
        float *sums = (float *)rows; // [8 warps][near, far][16][16]
        for (int e = 0; e < 8; e++) {
            int at = (lane / 4 + e / 2 % 2 * 8) * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
            sums[warp * 2 * BLOCK + at] = near[e];
            sums[(warp * 2 + 1) * BLOCK + at] = far[e];
        }
        __syncthreads();
        // Far goes to strip `away` of part 2 part, near to strip away - 1 of part 2 part + 1. On the diagonal near is
        // the future: zeros, for the last strip, which has no other.
        const int near_strip = (away + s.strips - 1) % s.strips;
        for (int i = threadIdx.x; i < 2 * BLOCK; i += blockDim.x) {
            float sum = 0;
            for (int w = 0; w < WARPS; w++) sum += sums[w * 2 * BLOCK + i];
            size_t strip =
                i < BLOCK ? (size_t)(2 * part + 1) * s.strips + near_strip : (size_t)2 * part * s.strips + away;
            rel_partial[strip * BLOCK + i % BLOCK] = sum * 0.25f;
        }
    }
}

// ---- attention: launches

// out [R,C], heads side by side; scores (attention_scores_size), log_sums [B,H,T], the logarithms of the softmaxes'
// denominators, both for the backward. scores_below: those of the layer below, or nullptr. qkv [R,3C], rel [D,S]. For
// bf16 qkv, out and dout must begin at a multiple of 16 bytes, scores and dscores at one of 8.
template <typename T>
static void attention_forward(T *out, SCORE *scores, float *log_sums, const SCORE *scores_below, const T *qkv,
                              const float *rel, int B, AttentionShape s, cudaStream_t stream) {
    const int heads = B * s.H, blocks = s.strips * heads, tiles = (s.strips + WARPS - 1) / WARPS;
    if constexpr (sizeof(T) == 2) {
        if (attention_on_tensor_cores<T>(s)) {
            attention_forward_16<<<tiles * heads, 32 * WARPS, 0, stream>>>(out, scores, log_sums, scores_below, qkv,
                                                                           rel, heads, s);
            return;
        }
    }
    attention_forward_kernel<T><<<blocks, 256, 0, stream>>>(out, scores, log_sums, scores_below, qkv, rel, heads, s);
}

// dqkv [R,3C], and the parts of drel (relative_partial_size), from dout [R,C]. dscores takes those of this layer, for
// the layer below; dscores_above: those of the layer above, or nullptr; it may be the same buffer.
template <typename T>
static void attention_backward(T *dqkv, float *rel_partial, T *dscores, const SCORE *scores, const T *dscores_above,
                               const T *dout, const T *out, const float *log_sums, const T *qkv, const float *rel,
                               int B, AttentionShape s, cudaStream_t stream) {
    const int heads = B * s.H, tiles = (s.strips + WARPS - 1) / WARPS;
    const int together = heads_together(B, s), groups = head_groups(B, s);
    const int query_blocks = s.strips * heads, key_and_distance_blocks = s.strips * (heads + groups);
    if constexpr (sizeof(T) == 2) {
        if (attention_on_tensor_cores<T>(s)) {
            attention_backward_keys_16<<<tiles * heads, 32 * WARPS, 0, stream>>>(dqkv, dscores, scores, dscores_above,
                                                                                 dout, out, log_sums, qkv, heads, s);
            const int blocks = groups * (together * tiles + s.strips);
            attention_backward_queries_16<<<blocks, 32 * WARPS, 0, stream>>>(dqkv, rel_partial, dscores, qkv, rel,
                                                                             heads, together, s);
            return;
        }
    }
    attention_backward_queries_kernel<T><<<query_blocks, 256, 0, stream>>>(dqkv, dscores, scores, dscores_above, dout,
                                                                           out, log_sums, qkv, rel, heads, s);
    attention_backward_keys_kernel<T><<<key_and_distance_blocks, 256, 0, stream>>>(
        dqkv, rel_partial, dscores, scores, dout, log_sums, qkv, heads, together, s);
}

// drel [D,S] = the sum of what attention_backward<T> left in rel_partial
template <typename T>
static void relative_vectors_backward(float *drel, const float *rel_partial, int B, AttentionShape s,
                                      cudaStream_t stream) {
    relative_vectors_backward_kernel<<<s.D, 512, 0, stream>>>(drel, rel_partial, relative_parts<T>(B, s), s);
}
#undef SCORE

// ---- residual, dropout, LayerNorm
//
// A branch of the model, a product with its bias, is dropped out, added to what it branched off from, and normalized:
//     y = LN(x + dropout(branch + bias)) = normalized * w + b,  normalized = (. - mean) * rstd     (Ba et al., 2016)
// Where a block can own whole rows of the product, this is the end of the product's own kernel, and the sums never
// leave the multiprocessor; else the product goes through memory. Back, LayerNorm's gradient is likewise the end of the
// product that hands it its dy. Either way rows pass through the same functions, to the same bytes.
//
// x itself is not kept: it is the LayerNorm below over again, or the embedding.

typedef struct { // what a branch branched off from
    const float *normalized, *w, *b;
    const float *emb; // or nullptr: then it is the embedding's rows
    const uint8_t *inputs;
} Residual;

template <typename Half>
struct LayerNorm {      // at one place of the model
    Half *y;            // [R,C]
    float *normalized;  // [R,C]
    float *rstd;        // [R]
    const float *w, *b; // [C]
    Dropout dropout;
    int block_rows; // how many rows share a block, norm_block_rows()
};

// Rows r0 .. r0+rows-1 by the block. v: the branch, its rows v_row apart, used up. A warp has a row, a lane groups of
// four channels of it.
template <typename Half>
__device__ inline void layernorm_forward_rows(float *v, int v_row, LayerNorm<Half> norm, Residual x, const float *bias,
                                              int64_t step, int r0, int rows, int T, int C) {
    const int lane = (int)threadIdx.x % WARP;
    for (int i = (int)threadIdx.x / WARP; i < rows; i += (int)blockDim.x / WARP) {
        const int r = r0 + i;
        const int64_t at = (int64_t)r * C;
        float *row = v + (int64_t)i * v_row, sum = 0, squares = 0;
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> kept = dropout_four(norm.dropout, step, r / T, r % T, g), add = get_four(bias, g, C);
            Four<float> a = get_four(row, g, C), from;
            if (x.emb) {
                from = get_four(x.emb + (int64_t)x.inputs[r] * C, g, C);
            } else {
                const Four<float> w = get_four(x.w, g, C), b = get_four(x.b, g, C);
                from = get_four(x.normalized + at, g, C);
                for (int e = 0; e < 4; e++) from.at[e] = from.at[e] * w.at[e] + b.at[e];
            }
            for (int e = 0; e < 4; e++) {
                a.at[e] = from.at[e] + (a.at[e] + add.at[e]) * kept.at[e];
                sum += a.at[e];
            }
            put_four(row, g, C, a);
        }
        const float mean = warp_sum(sum) / (float)C;
        for (int g = lane; 4 * g < C; g += WARP) { // each lane what it has written itself
            const Four<float> a = get_four(row, g, C);
            for (int e = 0; e < 4; e++) {
                const float past = 4 * g + e < C ? a.at[e] - mean : 0;
                squares += past * past;
            }
        }
        const float scale = 1 / sqrtf(warp_sum(squares) / (float)C + 1e-5f);
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> w = get_four(norm.w, g, C), b = get_four(norm.b, g, C);
            Four<float> a = get_four(row, g, C), y;
            for (int e = 0; e < 4; e++) {
                a.at[e] = (a.at[e] - mean) * scale;
                y.at[e] = a.at[e] * w.at[e] + b.at[e];
            }
            put_four(norm.normalized + at, g, C, a);
            put_four(norm.y + at, g, C, y);
        }
        if (lane == 0) norm.rstd[r] = scale;
    }
}

// Back, for the same rows. v comes as the product's part of dy, to which d adds what came down past it, unless `first`.
// With g = dy * w: dx = rstd * (g - mean(g) - normalized * mean(g * normalized)). d becomes dx, dbranch = dx * mask,
// and sums [2][C] the rows' share of dw and db, in which each thread owns columns.
template <typename Half>
__device__ inline void layernorm_backward_rows(float *v, int v_row, float *d, bool first, Half *dbranch, float *sums,
                                               LayerNorm<Half> norm, int64_t step, int r0, int rows, int T, int C) {
    const int lane = (int)threadIdx.x % WARP;
    for (int i = (int)threadIdx.x / WARP; i < rows; i += (int)blockDim.x / WARP) {
        const int r = r0 + i;
        const int64_t at = (int64_t)r * C;
        float *row = v + (int64_t)i * v_row, sum = 0, product = 0;
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> n = get_four(norm.normalized + at, g, C), w = get_four(norm.w, g, C);
            Four<float> dy = get_four(row, g, C), down = {};
            if (!first) down = get_four(d + at, g, C);
            for (int e = 0; e < 4; e++) {
                dy.at[e] += down.at[e];
                sum += dy.at[e] * w.at[e];
                product += dy.at[e] * w.at[e] * n.at[e];
            }
            put_four(row, g, C, dy);
        }
        const float mean = warp_sum(sum) / (float)C, mean_product = warp_sum(product) / (float)C, scale = norm.rstd[r];
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> kept = dropout_four(norm.dropout, step, r / T, r % T, g);
            const Four<float> n = get_four(norm.normalized + at, g, C), w = get_four(norm.w, g, C);
            Four<float> dx = get_four(row, g, C);
            for (int e = 0; e < 4; e++) dx.at[e] = scale * (dx.at[e] * w.at[e] - mean - n.at[e] * mean_product);
            put_four(d + at, g, C, dx);
            for (int e = 0; e < 4; e++) dx.at[e] *= kept.at[e];
            put_four(dbranch + at, g, C, dx);
        }
    }
    __syncthreads();
    for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x) {
        float dw = 0, db = 0;
        for (int i = 0; i < rows; i++) {
            dw += v[(int64_t)i * v_row + c] * norm.normalized[(int64_t)(r0 + i) * C + c];
            db += v[(int64_t)i * v_row + c];
        }
        sums[c] = dw;
        sums[C + c] = db;
    }
}

// Whole rows of a product are a block's for C up to 256. Few rows are dealt out to as many blocks as can be, 16 to
// each; many, 64 to each, which reads the weights a quarter as often, if that much shared memory is there. A block's
// rows share their sums of dw and db.
enum { FUSED_WIDTH = 256, FUSED_MANY = 8192, NORM_THREADS = 256 };

static bool fused(int C) { return C <= FUSED_WIDTH && C > FUSED_WIDTH / 2 && C % 8 == 0; }

static int norm_block_rows(const DeviceModel *m, int R) {
    const int bytes = Tile<float, false, true, 64, FUSED_WIDTH>::BYTES_WITH_ROWS; // not less than of the others
    return R >= FUSED_MANY && m->shared_limit >= bytes ? 64 : 16;
}

static size_t layernorm_sums_size(int R, int C, int block_rows) { return (size_t)blocks_for(R, block_rows) * 2 * C; }

// y = LN(x + dropout(a b + bias)), p = a b [R,C]
template <typename Half, int ROWS>
static __global__ void __launch_bounds__(Tile<Half, false, true, ROWS, FUSED_WIDTH>::THREADS,
                                         ROWS == 16 || sizeof(Half) == 2 ? 2 : 1)
    product_layernorm_forward_kernel(Product<Half> p, const float *bias, LayerNorm<Half> norm, Residual x,
                                     const DeviceState *state, int T) {
    typedef Tile<Half, false, true, ROWS, FUSED_WIDTH> S;
    extern __shared__ __align__(16) unsigned char shared[];
    const int r0 = (int)blockIdx.x * ROWS;
    Sums<S> sums;
    tile_zero<S>(sums);
    tile_multiply<S>(sums, p, r0, 0, 0, p.K, shared);
    float *rows = tile_to_shared<S>(sums, shared);
    layernorm_forward_rows<Half>(rows, S::ROW, norm, x, bias, state->step, r0, min(ROWS, p.M - r0), T, p.N);
}

template <typename Half, int ROWS>
static void product_layernorm_forward(Product<Half> p, const float *bias, LayerNorm<Half> norm, Residual x,
                                      const DeviceState *state, int T, cudaStream_t stream) {
    typedef Tile<Half, false, true, ROWS, FUSED_WIDTH> S;
    const int blocks = blocks_for(p.M, ROWS), bytes = S::BYTES_WITH_ROWS;
    matmul_prepare(product_layernorm_forward_kernel<Half, ROWS>, bytes);
    product_layernorm_forward_kernel<Half, ROWS><<<blocks, S::THREADS, bytes, stream>>>(p, bias, norm, x, state, T);
}

// The same from a branch in memory.
template <typename Half>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_forward_kernel(float *branch, const float *bias, LayerNorm<Half> norm, Residual x,
                             const DeviceState *state, int R, int T, int C) {
    const int r0 = (int)blockIdx.x * (NORM_THREADS / WARP);
    layernorm_forward_rows<Half>(branch + (int64_t)r0 * C, C, norm, x, bias, state->step, r0,
                                 min(NORM_THREADS / WARP, R - r0), T, C);
}

// norm.y = LN(residual + dropout(x weight^T + bias)), x [R,K], weight [C,K]. branch [R,C]: scratch where not fused.
template <typename Half>
static void linear_residual_dropout_layernorm_forward(LayerNorm<Half> norm, Residual residual, const Half *x,
                                                      const Half *weight, const float *bias, float *branch,
                                                      const DeviceState *state, int R, int T, int K, int C,
                                                      cudaStream_t stream) {
    const Product<Half> p = {x, K, weight, K, R, C, K};
    if (!fused(C)) {
        matmul_forward(branch, x, weight, (const float *)nullptr, false, R, K, C, stream);
        layernorm_forward_kernel<Half><<<blocks_for(R, NORM_THREADS / WARP), NORM_THREADS, 0, stream>>>(
            branch, bias, norm, residual, state, R, T, C);
    } else if (norm.block_rows == 16) {
        product_layernorm_forward<Half, 16>(p, bias, norm, residual, state, T, stream);
    } else {
        product_layernorm_forward<Half, 64>(p, bias, norm, residual, state, T, stream);
    }
}

// The gradient of LN where its dy = a b [R,C] + d
template <typename Half, int ROWS>
static __global__ void __launch_bounds__(Tile<Half, false, false, ROWS, FUSED_WIDTH>::THREADS, ROWS == 64 ? 1 : 2)
    product_layernorm_backward_kernel(float *d, bool first, Half *dbranch, float *norm_sums, Product<Half> p,
                                      LayerNorm<Half> norm, const DeviceState *state, int T) {
    typedef Tile<Half, false, false, ROWS, FUSED_WIDTH> S;
    extern __shared__ __align__(16) unsigned char shared[];
    const int r0 = (int)blockIdx.x * ROWS;
    Sums<S> sums;
    tile_zero<S>(sums);
    tile_multiply<S>(sums, p, r0, 0, 0, p.K, shared);
    float *rows = tile_to_shared<S>(sums, shared);
    layernorm_backward_rows<Half>(rows, S::ROW, d, first, dbranch, norm_sums + (int64_t)blockIdx.x * 2 * p.N, norm,
                                  state->step, r0, min(ROWS, p.M - r0), T, p.N);
}

template <typename Half, int ROWS>
static void product_layernorm_backward(float *d, bool first, Half *dbranch, float *norm_sums, Product<Half> p,
                                       LayerNorm<Half> norm, const DeviceState *state, int T, cudaStream_t stream) {
    typedef Tile<Half, false, false, ROWS, FUSED_WIDTH> S;
    matmul_prepare(product_layernorm_backward_kernel<Half, ROWS>, S::BYTES_WITH_ROWS);
    product_layernorm_backward_kernel<Half, ROWS><<<blocks_for(p.M, ROWS), S::THREADS, S::BYTES_WITH_ROWS, stream>>>(
        d, first, dbranch, norm_sums, p, norm, state, T);
}

template <typename Half>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_backward_kernel(float *branch, float *d, bool first, Half *dbranch, float *norm_sums,
                              LayerNorm<Half> norm, const DeviceState *state, int R, int T, int C) {
    const int r0 = (int)blockIdx.x * norm.block_rows;
    layernorm_backward_rows<Half>(branch + (int64_t)r0 * C, C, d, first, dbranch,
                                  norm_sums + (int64_t)blockIdx.x * 2 * C, norm, state->step, r0,
                                  min(norm.block_rows, R - r0), T, C);
}

// From dy = dout weight (+ d, unless first), dout [R,K], its rows dout_row apart (0: K), weight [K,C]: d, dbranch
// [R,C], and norm_sums (layernorm_sums_size), from which layernorm_sums() makes dw and db.
template <typename Half>
static void linear_residual_dropout_layernorm_backward(float *d, bool first, Half *dbranch, float *norm_sums,
                                                       LayerNorm<Half> norm, const Half *dout, const Half *weight,
                                                       float *branch, const DeviceState *state, int R, int T, int K,
                                                       int C, cudaStream_t stream, int dout_row = 0) {
    const Product<Half> p = {dout, dout_row ? dout_row : K, weight, C, R, C, K};
    if (!fused(C)) {
        matmul_backward_input(branch, dout, weight, (const Half *)nullptr, false, R, C, K, stream, dout_row);
        layernorm_backward_kernel<Half><<<blocks_for(R, norm.block_rows), NORM_THREADS, 0, stream>>>(
            branch, d, first, dbranch, norm_sums, norm, state, R, T, C);
    } else if (norm.block_rows == 16) {
        product_layernorm_backward<Half, 16>(d, first, dbranch, norm_sums, p, norm, state, T, stream);
    } else {
        product_layernorm_backward<Half, 64>(d, first, dbranch, norm_sums, p, norm, state, T, stream);
    }
}

static void layernorm_sums(SumList *sums, float *dw, float *db, const float *norm_sums, int R, int C, int block_rows) {
    const int blocks = blocks_for(R, block_rows);
    sums_add(sums, dw, norm_sums, blocks, (size_t)2 * C, C);
    sums_add(sums, db, norm_sums + C, blocks, (size_t)2 * C, C);
}

// ---- softmax, cross-entropy, Adamax

// Elements from row to row of dlogits: more than V, so that every row begins at 16 bytes, as copies want it.
enum { DLOGITS_ROW = (V + 7) / 8 * 8 };

enum { ROW_WARPS = 4 }; // rows, each of a warp, in a block

// losses[r] = -log softmax(logits[r])[targets[r]]; dlogits[r] = (softmax - one at the target) / R, unless dlogits is
// nullptr. A warp owns a row.
template <typename Half>
static __global__ void softmax_cross_entropy_kernel(float *losses, Half *dlogits, const float *logits,
                                                    const uint8_t *targets, int R) {
    const int r = (int)(blockIdx.x * ROW_WARPS + threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    if (r >= R) return;
    const float *x = logits + (int64_t)r * V;
    float max = -INFINITY, sum = 0;
    for (int v = lane; v < V; v += WARP) max = fmaxf(max, x[v]);
    max = warp_max(max);
    for (int v = lane; v < V; v += WARP) sum += expf(x[v] - max);
    sum = warp_sum(sum);
    if (lane == 0) losses[r] = logf(sum) + max - x[targets[r]];
    const float scale = 1 / (sum * (float)R), one = 1 / (float)R;
    for (int v = lane; dlogits && v < V; v += WARP) {
        dlogits[(int64_t)r * DLOGITS_ROW + v] =
            from_float<Half>(expf(x[v] - max) * scale - (v == targets[r] ? one : 0));
    }
}

// Adamax, as PyTorch has it: exp_avg = 0.9 exp_avg + 0.1 g; exp_inf = max(0.999 exp_inf, |g| + 1e-8);
// params -= lr / (1 - 0.9^t) * exp_avg / exp_inf, t = 1 in the first step. A thread owns an element of the flat arrays;
// params_half is the copy that products read. Nothing changes in a bad step, nor after one.
template <typename Half>
static __global__ void adamax_kernel(float *params, Half *params_half, const float *grads, float *exp_avg,
                                     float *exp_inf, const DeviceState *state, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bool skip = state->bad | (state->bad_step >= 0); // all loads go out at once
    const float g = grads[i], avg = 0.9f * exp_avg[i] + 0.1f * g, inf = fmaxf(0.999f * exp_inf[i], fabsf(g) + 1e-8f);
    const float p = params[i] - state->rate * (avg / inf);
    if (skip) return;
    exp_avg[i] = avg;
    exp_inf[i] = inf;
    params[i] = p;
    params_half[i] = from_float<Half>(p);
}

// ---- the model: memory

typedef struct {                // what the backward needs of a layer's forward; h: as operands of products
    void *qkv, *attn;           // h [R,3C]; h [R,C] heads side by side, before Wo
    void *ln1, *fc1, *ln2;      // h [R,C]; h [R,F] after ReLU; h [R,C]
    void *scores;               // see attention: of a type of their own
    float *log_sums;            // [B,H,T]
    float *normalized1, *rstd1; // [R,C], [R]
    float *normalized2, *rstd2; // [R,C], [R]
} LayerActivations;

typedef struct {          // what the gradients of a layer's parameters are made of
    void *dqkv, *dout;    // h [R,3C]; h [R,C], of Wo's product
    void *dfc1, *dfc2;    // h [R,F]; h [R,C]
    float *sums1, *sums2; // layernorm_sums_size
    float *rel_partial;   // relative_partial_size
} LayerGradients;

typedef struct {
    DeviceModel device; // first
    AttentionShape shape;
    int block_rows; // of LayerNorm
    GptTensors params, grads;
    LayerActivations *acts;
    LayerGradients back[2]; // of the layer at work, and of the one above, whose weights are still at work
    void *emb;              // h [R,C] the first layer's input
    float *logits;          // [R,V]
    void *dlogits;          // h [R,DLOGITS_ROW]
    float *dx;              // [R,C] the gradient on its way down, past the branches
    float *branch;          // [R,C] scratch, where products and LayerNorm are not fused
    void *dattn;            // h [R,C]
    void *dscores;          // h, of the layer at work, in place of those of the one above
    float *partial;         // partial sums of the embedding's gradient
    float *partial_weights; // and of the weights'
} Gpt;

static int gpt_layers(const Gpt *m) { return m->device.config.sizes[GPT_LAYERS]; }

enum { LAYER_WEIGHTS = 4 };

// The products that give the gradients of layer l's weights.
template <typename Half>
static void gpt_layer_weights(const Gpt *m, int l, WeightGradient<Half> *list) {
    const int *sizes = m->device.config.sizes;
    const int C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN];
    const LayerTensors *d = &m->grads.layers[l];
    const LayerActivations *a = &m->acts[l];
    const LayerGradients *b = &m->back[l % 2];
    const void *x = l > 0 ? m->acts[l - 1].ln2 : m->emb;
    list[0] = WeightGradient<Half>{d->qkv_w, d->qkv_b, (const Half *)b->dqkv, (const Half *)x, C, 3 * C, 0};
    list[1] = WeightGradient<Half>{d->out_w, d->out_b, (const Half *)b->dout, (const Half *)a->attn, C, C, 0};
    list[2] = WeightGradient<Half>{d->fc1_w, d->fc1_b, (const Half *)b->dfc1, (const Half *)a->ln1, C, F, 0};
    list[3] = WeightGradient<Half>{d->fc2_w, d->fc2_b, (const Half *)b->dfc2, (const Half *)a->fc1, F, C, 0};
}

template <typename Half>
static WeightGradient<Half> gpt_head_weights(const Gpt *m) {
    const void *x = m->acts[gpt_layers(m) - 1].ln2;
    return {m->grads.head_w,
            m->grads.head_b,
            (const Half *)m->dlogits,
            (const Half *)x,
            m->device.config.sizes[GPT_WIDTH],
            V,
            DLOGITS_ROW};
}

template <typename Half>
static double gpt_weights_scratch(const Gpt *m, int R) {
    WeightGradient<Half> layer[LAYER_WEIGHTS], head = gpt_head_weights<Half>(m);
    gpt_layer_weights(m, 0, layer);
    return fmax((double)matmul_weights_scratch(layer, LAYER_WEIGHTS, R), (double)matmul_weights_scratch(&head, 1, R));
}

static void gpt_carve(void *model, DeviceArena *arena) {
    Gpt *m = (Gpt *)model;
    const ModelConfig *config = &m->device.config;
    const int *sizes = config->sizes;
    const int B = config->B, T = config->T, C = sizes[GPT_WIDTH], H = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN];
    const double R = (double)B * T;
    const bool bf16 = m->device.bf16;
    const size_t half = bf16 ? 2 : 4;
    m->block_rows = norm_block_rows(&m->device, B * T);
    for (int l = 0; l < gpt_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->qkv = device_take(arena, R * 3 * C, half);
        a->attn = device_take(arena, R * C, half);
        a->ln1 = device_take(arena, R * C, half);
        a->fc1 = device_take(arena, R * F, half);
        a->ln2 = device_take(arena, R * C, half);
        a->scores = device_take(arena, (double)attention_scores_size(B, m->shape), half); // two bytes too, or four
        a->log_sums = device_floats(arena, R * H);
        a->normalized1 = device_floats(arena, R * C);
        a->rstd1 = device_floats(arena, R);
        a->normalized2 = device_floats(arena, R * C);
        a->rstd2 = device_floats(arena, R);
    }
    for (int i = 0; i < 2; i++) {
        LayerGradients *b = &m->back[i];
        b->dqkv = device_take(arena, R * 3 * C, half);
        b->dout = device_take(arena, R * C, half);
        b->dfc1 = device_take(arena, R * F, half);
        b->dfc2 = device_take(arena, R * C, half);
        b->sums1 = device_floats(arena, (double)layernorm_sums_size(B * T, C, m->block_rows));
        b->sums2 = device_floats(arena, (double)layernorm_sums_size(B * T, C, m->block_rows));
        b->rel_partial = device_floats(arena, (double)(bf16 ? relative_partial_size<__nv_bfloat16>(B, m->shape)
                                                            : relative_partial_size<float>(B, m->shape)));
    }
    m->emb = device_take(arena, R * C, half);
    m->logits = device_floats(arena, R * V);
    m->dlogits = device_take(arena, R * DLOGITS_ROW, half);
    m->dx = device_floats(arena, R * C);
    m->branch = device_floats(arena, fused(C) ? 0 : R * C);
    m->dattn = device_take(arena, R * C, half);
    m->dscores = device_take(arena, (double)attention_scores_size(B, m->shape), half);
    m->partial = device_floats(arena, (double)embedding_partial_size(B * T, C));
    m->partial_weights = device_floats(arena, bf16 ? gpt_weights_scratch<__nv_bfloat16>(m, B * T)
                                                   : gpt_weights_scratch<float>(m, B * T));
}

// ---- the model: forward, backward, update

// What the branches of layer l branch off from: its input, and its first LayerNorm.
static Residual gpt_residual(const Gpt *m, int l, int place) {
    const LayerActivations *a = &m->acts[l];
    if (place == 1) return {a->normalized1, m->params.layers[l].ln1_w, m->params.layers[l].ln1_b, nullptr, nullptr};
    if (l == 0) return {nullptr, nullptr, nullptr, m->params.emb, m->device.inputs};
    return {a[-1].normalized2, m->params.layers[l - 1].ln2_w, m->params.layers[l - 1].ln2_b, nullptr, nullptr};
}

template <typename Half>
static LayerNorm<Half> gpt_norm1(const Gpt *m, int l, bool training) {
    const LayerActivations *a = &m->acts[l];
    const LayerTensors *q = &m->params.layers[l];
    const Dropout dropout = device_dropout(&m->device, training, 2 * l);
    return {(Half *)a->ln1, a->normalized1, a->rstd1, q->ln1_w, q->ln1_b, dropout, m->block_rows};
}

template <typename Half>
static LayerNorm<Half> gpt_norm2(const Gpt *m, int l, bool training) {
    const LayerActivations *a = &m->acts[l];
    const LayerTensors *q = &m->params.layers[l];
    const Dropout dropout = device_dropout(&m->device, training, 2 * l + 1);
    return {(Half *)a->ln2, a->normalized2, a->rstd2, q->ln2_w, q->ln2_b, dropout, m->block_rows};
}

// Logits of the first B rows of inputs, with the dropout of the step if training.
template <typename Half>
static void gpt_forward(Gpt *m, int B, bool training) {
    const DeviceModel *device = &m->device;
    const int *sizes = device->config.sizes;
    const int T = device->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN], R = B * T;
    const int64_t n = (int64_t)R * C;
    typedef typename AttentionTypes<Half>::Score Score;
    const GptTensors *p = &m->params;
    const cudaStream_t stream = device->stream;
    const Half *x = (const Half *)m->emb;
    // clang-format off
    embedding_forward_kernel<Half><<<blocks_for(n, 256), 256, 0, stream>>>((Half *)m->emb, device->inputs, p->emb, n, C);
    // clang-format on
    for (int l = 0; l < gpt_layers(m); l++) {
        const LayerTensors *q = &p->layers[l];
        const LayerActivations *a = &m->acts[l];
        const Half *qkv_w = weight<Half>(device, q->qkv_w), *out_w = weight<Half>(device, q->out_w);
        const Half *fc1_w = weight<Half>(device, q->fc1_w), *fc2_w = weight<Half>(device, q->fc2_w);
        Half *qkv = (Half *)a->qkv, *attn = (Half *)a->attn, *ln1 = (Half *)a->ln1, *fc1 = (Half *)a->fc1;
        const Score *below = l > 0 ? (const Score *)m->acts[l - 1].scores : nullptr;
        matmul_forward(qkv, x, qkv_w, q->qkv_b, false, R, C, 3 * C, stream);
        attention_forward<Half>(attn, (Score *)a->scores, a->log_sums, below, qkv, q->rel, B, m->shape, stream);
        linear_residual_dropout_layernorm_forward(gpt_norm1<Half>(m, l, training), gpt_residual(m, l, 0),
                                                  (const Half *)attn, out_w, q->out_b, m->branch, device->state, R, T,
                                                  C, C, stream);
        matmul_forward(fc1, (const Half *)ln1, fc1_w, q->fc1_b, true, R, C, F, stream);
        linear_residual_dropout_layernorm_forward(gpt_norm2<Half>(m, l, training), gpt_residual(m, l, 1),
                                                  (const Half *)fc1, fc2_w, q->fc2_b, m->branch, device->state, R, T, F,
                                                  C, stream);
        x = (const Half *)a->ln2;
    }
    matmul_forward(m->logits, x, weight<Half>(device, p->head_w), p->head_b, false, R, C, V, stream);
}

// The losses of the first R rows; with dlogits ready for the backward if asked.
template <typename Half>
static void gpt_loss(Gpt *m, int R, bool backward) {
    Half *dlogits = backward ? (Half *)m->dlogits : nullptr;
    softmax_cross_entropy_kernel<Half><<<blocks_for(R, ROW_WARPS), ROW_WARPS * WARP, 0, m->device.stream>>>(
        m->device.losses, dlogits, m->logits, m->device.targets, R);
}

// Gradients of all parameters, after gpt_forward and gpt_loss of the same step. The main stream carries the gradient
// from the logits down to the embedding. What only the update waits for runs beside it on the side stream: the mean
// loss, and, a layer behind, the gradients of each layer's parameters.
template <typename Half>
static void gpt_backward(Gpt *m) {
    DeviceModel *device = &m->device;
    const int *sizes = device->config.sizes;
    const int B = device->config.B, T = device->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN];
    const int R = B * T, L = gpt_layers(m);
    typedef typename AttentionTypes<Half>::Score Score;
    const GptTensors *p = &m->params, *g = &m->grads;
    const cudaStream_t stream = device->stream, side = device->side;
    const Half *dlogits = (const Half *)m->dlogits;
    device_fork(device);
    const WeightGradient<Half> head = gpt_head_weights<Half>(m);
    SumList head_sums = {};
    matmul_backward_weights(&head, 1, R, m->partial_weights, &head_sums, side);
    sum_parts(&head_sums, side);
    loss_kernel<<<1, 256, 0, side>>>(device->state, device->losses, R);
    linear_residual_dropout_layernorm_backward(
        m->dx, true, (Half *)m->back[(L - 1) % 2].dfc2, m->back[(L - 1) % 2].sums2, gpt_norm2<Half>(m, L - 1, true),
        dlogits, weight<Half>(device, p->head_w), m->branch, device->state, R, T, V, C, stream, DLOGITS_ROW);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *q = &p->layers[l], *d = &g->layers[l];
        const LayerActivations *a = &m->acts[l];
        LayerGradients *b = &m->back[l % 2], *below = &m->back[(l + 1) % 2];
        const Half *qkv_w = weight<Half>(device, q->qkv_w), *out_w = weight<Half>(device, q->out_w);
        const Half *fc1_w = weight<Half>(device, q->fc1_w), *fc2_w = weight<Half>(device, q->fc2_w);
        Half *dqkv = (Half *)b->dqkv, *dout = (Half *)b->dout, *dfc1 = (Half *)b->dfc1, *dfc2 = (Half *)b->dfc2;
        Half *dattn = (Half *)m->dattn, *dscores = (Half *)m->dscores, *above = l < L - 1 ? dscores : nullptr;
        // x = LN2(x + dropout(fc2(relu(fc1(x))))); the product above has made dfc2
        matmul_backward_input(dfc1, (const Half *)dfc2, fc2_w, (const Half *)a->fc1, false, R, F, C, stream);
        linear_residual_dropout_layernorm_backward(m->dx, false, dout, b->sums1, gpt_norm1<Half>(m, l, true),
                                                   (const Half *)dfc1, fc1_w, m->branch, device->state, R, T, F, C,
                                                   stream);
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        matmul_backward_input(dattn, (const Half *)dout, out_w, (const Half *)nullptr, false, R, C, C, stream);
        attention_backward<Half>(dqkv, b->rel_partial, dscores, (const Score *)a->scores, above, dattn,
                                 (const Half *)a->attn, a->log_sums, (const Half *)a->qkv, q->rel, B, m->shape, stream);
        device_fork(device);
        WeightGradient<Half> weights[LAYER_WEIGHTS];
        SumList sums = {};
        gpt_layer_weights(m, l, weights);
        matmul_backward_weights(weights, LAYER_WEIGHTS, R, m->partial_weights, &sums, side);
        layernorm_sums(&sums, d->ln1_w, d->ln1_b, b->sums1, R, C, m->block_rows);
        layernorm_sums(&sums, d->ln2_w, d->ln2_b, b->sums2, R, C, m->block_rows);
        sum_parts(&sums, side);
        relative_vectors_backward<Half>(d->rel, b->rel_partial, B, m->shape, side);
        if (l < L - 1) device_wait(device, (l + 1) % 2); // the layer above no longer needs what `below` holds
        device_mark(device, l % 2);
        if (l > 0) {
            linear_residual_dropout_layernorm_backward(m->dx, false, (Half *)below->dfc2, below->sums2,
                                                       gpt_norm2<Half>(m, l - 1, true), (const Half *)dqkv, qkv_w,
                                                       m->branch, device->state, R, T, 3 * C, C, stream);
        } else {
            matmul_backward_input(m->dx, (const Half *)dqkv, qkv_w, (const Half *)nullptr, true, R, C, 3 * C, stream);
        }
    }
    embedding_backward(g->emb, m->partial, m->dx, device->inputs, R, C, stream);
    device_wait(device, 0); // layer 0's, which comes last
}

// ---- what the recipe asks of a model (train.h, ModelSpec)

static void gpt_enqueue_gradients(void *model) {
    Gpt *m = (Gpt *)model;
    const int B = m->device.config.B, R = B * m->device.config.T;
    if (m->device.bf16) {
        gpt_forward<__nv_bfloat16>(m, B, true);
        gpt_loss<__nv_bfloat16>(m, R, true);
        gpt_backward<__nv_bfloat16>(m);
    } else {
        gpt_forward<float>(m, B, true);
        gpt_loss<float>(m, R, true);
        gpt_backward<float>(m);
    }
}

static void gpt_enqueue_losses(void *model, int n) {
    Gpt *m = (Gpt *)model;
    const int R = n * m->device.config.T;
    if (m->device.bf16) {
        gpt_forward<__nv_bfloat16>(m, n, false);
        gpt_loss<__nv_bfloat16>(m, R, false);
    } else {
        gpt_forward<float>(m, n, false);
        gpt_loss<float>(m, R, false);
    }
}

static void gpt_enqueue_update(void *model) {
    const DeviceModel *m = (const DeviceModel *)model;
    const int64_t n = m->layout.size;
    const int blocks = blocks_for(n, 256);
    float *params = m->flat[STATE_PARAMS], *avg = m->flat[STATE_EXP_AVG], *inf = m->flat[STATE_EXP_INF];
    const float *grads = m->flat[STATE_GRADS];
    if (m->bf16) {
        __nv_bfloat16 *weights = (__nv_bfloat16 *)m->weights;
        adamax_kernel<__nv_bfloat16><<<blocks, 256, 0, m->stream>>>(params, weights, grads, avg, inf, m->state, n);
    } else {
        adamax_kernel<float><<<blocks, 256, 0, m->stream>>>(params, params, grads, avg, inf, m->state, n);
    }
}

static const DeviceHooks gpt_hooks = {
    "train_gpt_music", false, gpt_layout, gpt_carve, gpt_enqueue_gradients, gpt_enqueue_update, gpt_enqueue_losses};

static void gpt_destroy(void *model) {
    Gpt *m = (Gpt *)model;
    if (!m) return;
    device_destroy(&m->device);
    free(m->params.layers);
    free(m->grads.layers);
    free(m->acts);
    free(m);
}

static void *gpt_create(const ModelConfig *config, char *error) {
    Gpt *m = (Gpt *)allocate("the model", 1, sizeof *m, error);
    if (!m) return nullptr;
    const int L = config->sizes[GPT_LAYERS];
    m->shape = attention_shape(config->T, config->sizes[GPT_WIDTH], config->sizes[GPT_HEADS], config->sizes[GPT_REL]);
    m->acts = (LayerActivations *)allocate("the model", L, sizeof(LayerActivations), error);
    m->params.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    m->grads.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    if (!m->acts || !m->params.layers || !m->grads.layers || !device_create(&m->device, config, &gpt_hooks, error)) {
        gpt_destroy(m);
        return nullptr;
    }
    gpt_point(&m->params, &m->device.layout, L, m->device.flat[STATE_PARAMS]);
    gpt_point(&m->grads, &m->device.layout, L, m->device.flat[STATE_GRADS]);
    return m;
}

// The activations of the last step. Called with list NULL before it, it makes room for them.
static int gpt_activations(void *model, Activation *list) {
    Gpt *m = (Gpt *)model;
    DeviceModel *device = &m->device;
    const int *sizes = device->config.sizes;
    const int64_t B = device->config.B, T = device->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN], R = B * T;
    const int L = gpt_layers(m), count = 2 + 5 * L;
    if (!device->kept) device->kept = (float *)calloc((size_t)(R * (C + L * (6 * C + F) + V)), sizeof(float));
    if (!device->kept) return -1;
    if (!list) return count;
    float *to = device->kept;
    cuda_check(cudaStreamSynchronize(device->stream));
    for (int i = 0; i < count; i++) {
        const int l = (i - 1) / 5, which = (i - 1) % 5;
        const char *names[] = {"qkv", "attn", "ln1", "fc1", "ln2"};
        const LayerActivations *a = &m->acts[l < L ? l : 0];
        const void *data[] = {a->qkv, a->attn, a->ln1, a->fc1, a->ln2};
        const int64_t widths[] = {3 * C, C, C, F, C};
        const bool inner = i > 0 && i < count - 1;
        const int64_t width = inner ? widths[which] : i == 0 ? C : (int64_t)V;
        device_fetch(to, inner ? data[which] : i == 0 ? m->emb : m->logits, R * width, device->bf16 && i < count - 1);
        memset(&list[i], 0, sizeof list[i]);
        if (inner) {
            snprintf(list[i].name, sizeof list[i].name, "act.layers.%d.%s", l, names[which]);
        } else {
            snprintf(list[i].name, sizeof list[i].name, "%s", i == 0 ? "act.emb" : "logits");
        }
        list[i].rank = 3;
        list[i].shape[0] = B;
        list[i].shape[1] = T;
        list[i].shape[2] = width;
        list[i].data = to;
        to += R * width;
    }
    return count;
}

static ModelSpec gpt_spec_make(void) {
    ModelSpec s;
    memset(&s, 0, sizeof s);
    s.name = "gpt";
    s.device = DEVICE_NAME;
    s.precisions = DEVICE_PRECISIONS;
    s.size_flags = gpt_size_flags;
    s.n_sizes = GPT_SIZES;
    s.lr = 1e-3;
    s.lr_decay = 1;
    s.lr_min = 0;
    s.check_sizes = gpt_check_sizes;
    s.layout = gpt_layout;
    s.sizes_of_file = gpt_sizes_of_file;
    s.step_flops = gpt_step_flops;
    s.create = gpt_create;
    s.destroy = gpt_destroy;
    s.state = device_state;
    s.state_changed = device_state_changed;
    s.set_data = device_set_data;
    s.train_step = device_train_step;
    s.get_loss = device_get_loss;
    s.set_loss = device_set_loss;
    s.eval_batch = device_eval_batch;
    s.gradients = device_gradients;
    s.activations = gpt_activations;
    return s;
}

static const ModelSpec gpt_spec = gpt_spec_make();

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) { return train_main(argc, argv, &gpt_spec); }
#endif
