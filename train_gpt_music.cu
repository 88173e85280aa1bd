// The Transformer on a GPU: forward, backward and update, and a training step as one CUDA graph.
//
// It promises the published model exactly (4,326,041 parameters in its default sizes), the same random numbers as the
// CPU, the same bytes from the same seed (no sum depends on which block comes first), and any sizes that the flags
// allow. With --precision bf16 the operands of products are rounded to bf16 (8 bits) and multiplied by tensor cores;
// sums, softmax, LayerNorm, the loss, weights and optimizer stay in float. It runs in one process on one GPU. The
// recipe around a step (data, epochs, files, command line) is dev/recipe/train.h.
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
// [out, in]. Gradients are set (=) in every step, except where a residual branch adds to them (+=), which a comment
// says. A template parameter Operand is the type of products' operands, float or __nv_bfloat16.
//
// dev/train_gpt_music.c has the same sections in the same order, and the same names for what does the same. The GPU
// goes another way where that saves launches or memory traffic:
// - Attention has plain kernels for any sizes and kernels on tensor cores for the published ones. dscores have a buffer
//   of their own.
// - The product that feeds a LayerNorm is part of LayerNorm's kernel, and so is, in the backward, the product that
//   gives LayerNorm's dy. The input of the next product is kept, not made again.
// - The gradients of weights wait for nothing but the update: the four of a layer are one launch, on a second stream.
// - Batches, the mean loss, the search for what is not finite and the count of steps are kernels too; the step around
//   forward, backward and update is device_train_step().
// Both CUDA trainers share these last kernels (dev/cuda/device_model.cuh), with the memory and the dropout masks, and
// the kernels of matrix products (dev/cuda/matmul.cuh). All other kernels of the model are here.
//
// The section on parameters is the same text in dev/train_gpt_music.c, the section on softmax, cross-entropy and Adamax
// the same in train_lstm_music.cu, and embedding_backward() nearly so, so that each model can be read by itself.
// test/test_copies.sh compares the copies.

#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cuda/device_model.cuh"
#include "models/gpt.h"

#include <cuda_fp16.h>

constexpr int V = DATA_TOKENS;

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

// x[r] = emb[tokens[r]] as an operand of products. A thread owns one of the n = R C elements.
template <typename Operand>
static __global__ void embedding_forward_kernel(Operand *x, const uint8_t *tokens, const float *emb, int64_t n, int C) {
    await_previous_kernel();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = from_float<Operand>(emb[tokens[i / C] * C + i % C]);
}

template <typename Operand>
static void embedding_forward(Operand *x, const uint8_t *tokens, const float *emb, int R, int C, cudaStream_t stream) {
    const int64_t n = (int64_t)R * C;
    embedding_forward_kernel<Operand><<<blocks_for(n, 256), 256, 0, stream>>>(x, tokens, emb, n, C);
    LAUNCHED(embedding_forward_kernel<Operand>);
}

constexpr int EMBEDDING_ROWS = 2048; // rows whose gradients are summed together, in ascending order

// partial[chunk][v][c] = sum of dx[r][c] over the chunk's rows r whose token is v. Block (chunk, v, 256 columns) first
// lists those rows, in order: a warp looks at 256 tokens, in eight runs of 32. Then each thread owns a column.
static __global__ void __launch_bounds__(256)
    embedding_backward_kernel(float *partial, const float *dx, const uint8_t *tokens, int R, int C) {
    await_previous_kernel();
    __shared__ int list[EMBEDDING_ROWS];
    __shared__ int counts[EMBEDDING_ROWS / 256];
    const int v = blockIdx.y, first = blockIdx.x * EMBEDDING_ROWS, c = blockIdx.z * 256 + threadIdx.x;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, run0 = first + warp * 256;
    unsigned found[8];
    int count = 0, before = 0, total = 0;
#pragma unroll
    for (int run = 0; run < 8; run++) {
        const int r = run0 + run * WARP + lane;
        found[run] = __ballot_sync(~0u, r < R && tokens[r] == v);
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
        const unsigned lower = found[run] & ((1u << lane) - 1);
        if (found[run] >> lane & 1) list[before + __popc(lower)] = run0 + run * WARP + lane;
        before += __popc(found[run]);
    }
    __syncthreads();
    if (c >= C) return;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < total; i++) sum += dx[(size_t)list[i] * C + c];
    partial[((size_t)blockIdx.x * V + v) * C + c] = sum;
}

static size_t embedding_partial_size(int R, int C) { return (size_t)blocks_for(R, EMBEDDING_ROWS) * V * C; }

// demb[tokens[r]] = the sum of dx[r]
static void embedding_backward(float *demb, float *partial, const float *dx, const uint8_t *tokens, int R, int C,
                               cudaStream_t stream) {
    const int chunks = blocks_for(R, EMBEDDING_ROWS);
    const dim3 blocks(chunks, V, blocks_for(C, 256));
    SumList sums = {};
    embedding_backward_kernel<<<blocks, 256, 0, stream>>>(partial, dx, tokens, R, C);
    LAUNCHED(embedding_backward_kernel);
    sums_add(&sums, demb, partial, chunks, (size_t)V * C, (size_t)V * C);
    sum_parts(&sums, stream);
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
// Queries, keys and distances are worked on in strips of 16. Scores lie in memory as patches of 16 queries x 16 keys,
// 256 elements side by side, row by row (on tensor cores in an order of their own). Only the patches on and below the
// diagonal are there, strip of queries by strip, which is little more than half of T x T:
//
//              key strips J
//              0  1  2  3        query strip I, key strip J:
//     I = 0    0                 patch I (I + 1) / 2 + J of the head
//     I = 1    1  2
//     I = 2    3  4  5           distances on diagonal I - J of patches:
//     I = 3    6  7  8  9        from 16 (I - J) - 15 to 16 (I - J) + 15
//
// A layer's scores are written once and read twice, by the layer above and by the backward. This traffic, not
// arithmetic, is what attention costs, so for bf16 they take 16 bits. They are fp16, whose 11 bits of precision leave
// the logits' error where the rounding of operands has it: scores reach 58 in a trained model, and with bf16's 8 bits,
// eight layers in sequence, that error is four times as large. A score beyond 65504 becomes infinite, and then the loss
// is NaN, which the step notices. dscores spread over many orders of magnitude but need few digits: they have the type
// Operand. One buffer serves all layers, as each layer writes its dscores in place of those of the layer above.
//
// There are two sets of kernels. bf16 heads of 16 in windows of at most 256, the published model's, go to the tensor
// cores, where a head is one step of mma_bf16 deep and a warp has a strip of queries or keys. All else, fp32 first,
// takes plain kernels for any HS and T. No sum depends on the order in which blocks or warps run.

constexpr int STRIP = 16, PATCH = STRIP * STRIP;

struct AttentionShape {
    int T, C, NH, HS, D;
    int strips;       // in T
    int shared_limit; // bytes of shared memory that a block can have
};

template <typename Operand>
struct AttentionTypes {
    typedef float Score;
};
template <>
struct AttentionTypes<__nv_bfloat16> {
    typedef __half Score;
};
template <typename Operand>
using Score = typename AttentionTypes<Operand>::Score;

// What attention computes in a layer, and its backward reads. For bf16 qkv and attn must begin at multiples of 16
// bytes, and scores at one of 8.
template <typename Operand>
struct Attention {
    Operand *qkv;           // [R,3C]
    Score<Operand> *scores; // attention_scores_size, before softmax
    float *log_sums;        // [B,NH,T] logarithms of the softmaxes' denominators
    Operand *attn;          // [R,C] heads side by side, before Wo
};

__device__ inline float to_float(__half x) { return __half2float(x); }
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

static AttentionShape attention_shape(int T, int C, int NH, int D, int shared_limit) {
    return {T, C, NH, C / NH, D, (T + STRIP - 1) / STRIP, shared_limit};
}

// Whether attention runs on tensor cores, whose backward has a head of at most 16 strips in shared memory.
constexpr int WHOLE_STRIPS = 16, WHOLE_PATCHES = WHOLE_STRIPS * (WHOLE_STRIPS + 1) / 2;
constexpr int WHOLE_BYTES = (WHOLE_PATCHES + 3 * WHOLE_STRIPS) * PATCH * 2 + WHOLE_STRIPS * 8 * 16;
template <typename Operand>
static bool attention_on_tensor_cores(AttentionShape s) {
    return BF16<Operand> && s.HS == 16 && s.strips <= WHOLE_STRIPS && s.shared_limit >= WHOLE_BYTES;
}

// Elements of a layer's scores, and of dscores, for B windows.
static size_t attention_scores_size(int B, AttentionShape s) {
    return (size_t)B * s.NH * s.strips * (s.strips + 1) / 2 * PATCH;
}

// The sums over distances come in parts, [parts][16 strips][HS] floats, which relative_vectors_backward() adds up. A
// group of heads makes one part. On tensor cores there are at most 1024 groups; else a group is 8 heads, or the
// smallest multiple of 8 with which there are at most 128 groups.
template <typename Operand>
static int heads_of_group(int B, AttentionShape s) {
    const int least = divide_up(B * s.NH, 1024);
    return attention_on_tensor_cores<Operand>(s) ? least : 8 * least;
}
template <typename Operand>
static int head_groups(int B, AttentionShape s) {
    return divide_up(B * s.NH, heads_of_group<Operand>(B, s));
}
template <typename Operand>
static size_t relative_partial_size(int B, AttentionShape s) {
    return (size_t)head_groups<Operand>(B, s) * s.strips * STRIP * s.HS;
}

// Where the patch of query strip I and key strip J <= I begins.
__device__ inline size_t patch_at(int bh, int I, int J, AttentionShape s) {
    return ((size_t)bh * (s.strips * (s.strips + 1) / 2) + (size_t)I * (I + 1) / 2 + J) * PATCH;
}
// Where score (t, j) lies.
__device__ inline size_t score_at(int bh, int t, int j, AttentionShape s) {
    return patch_at(bh, t / STRIP, j / STRIP, s) + t % STRIP * STRIP + j % STRIP;
}
// A head's first element in rows of `stride`: 3C for q in qkv (k is C further on, v 2C), C for attn.
__device__ inline size_t head_at(int bh, int stride, AttentionShape s) {
    return (size_t)(bh / s.NH) * s.T * stride + bh % s.NH * s.HS;
}
// rel[n], for n < 0 that of distance 0
template <typename Operand>
__device__ inline const Operand *relative_vector(const Operand *rel, int n, AttentionShape s) {
    return rel + (size_t)(s.D - 1 - min(max(n, 0), s.D - 1)) * s.HS;
}

// ---- attention: plain kernels
//
// Blocks have 256 threads. A tile of scores is 16 queries by 32 keys: a warp has two of the queries, a lane one of the
// keys. The channels of a head come in pieces of 32. Where the result is 16 rows of HS channels, a thread has one
// (row, channel), and further ones in turn if HS > 16.

constexpr int KEYS = 32, DEPTH = 32;

// to[row][c] = from[row0 + row][c0 + c] for rows 0..count-1; zeros outside of `rows` rows of `columns`.
template <typename Operand>
__device__ inline void stage_tile(float (*to)[DEPTH + 1], int count, const Operand *from, size_t stride, int row0,
                                  int rows, int c0, int columns) {
    for (int i = threadIdx.x; i < count * DEPTH; i += blockDim.x) {
        int row = i / DEPTH, c = i % DEPTH;
        bool exists = row0 + row >= 0 && row0 + row < rows && c0 + c < columns;
        to[row][c] = exists ? to_float(from[(row0 + row) * (ptrdiff_t)stride + c0 + c]) : 0;
    }
}

// A block has a strip of queries of a head. It first makes the scores, tile by tile, and keeps each row's maximum. Then
// it reads them back, mostly from the L1 cache, for softmax and the product with v.
template <typename Operand>
static __global__ void __launch_bounds__(256, 4)
    attention_forward_kernel(Operand *attn, Score<Operand> *scores, float *log_sums, const Score<Operand> *scores_below,
                             const Operand *qkv, const Operand *rel, int heads, AttentionShape s) {
    await_previous_kernel();
    __shared__ float q_tile[STRIP][DEPTH + 1];
    __shared__ float k_tile[KEYS][DEPTH + 1];
    __shared__ float rel_tile[STRIP + KEYS][DEPTH + 1];
    __shared__ float a_tile[STRIP][KEYS + 1];
    __shared__ float tops[STRIP];
    const int bh = blockIdx.x % heads, t0 = (s.strips - 1 - blockIdx.x / heads) * STRIP; // the longest first
    const int keys = min(t0 + STRIP, s.T), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C3 = 3 * s.C;
    const Operand *q = qkv + head_at(bh, C3, s), *k = q + s.C, *v = k + s.C;
    const float scale = 1 / sqrtf(s.HS);
    float top[2] = {-INFINITY, -INFINITY};
    for (int j0 = 0; j0 < keys; j0 += KEYS) {
        float sums[2] = {0, 0};
        for (int d0 = 0; d0 < s.HS; d0 += DEPTH) {
            __syncthreads();
            stage_tile(q_tile, STRIP, q, C3, t0, s.T, d0, s.HS);
            stage_tile(k_tile, KEYS, k, C3, j0, s.T, d0, s.HS);
            for (int i = threadIdx.x; i < (STRIP + KEYS) * DEPTH; i += blockDim.x) { // row x: distance t0 - j0 - 31 + x
                int x = i / DEPTH, c = i % DEPTH;
                rel_tile[x][c] =
                    d0 + c < s.HS ? to_float(relative_vector(rel, t0 - j0 - (KEYS - 1) + x, s)[d0 + c]) : 0;
            }
            __syncthreads();
            for (int c = 0; c < min(DEPTH, s.HS - d0); c++) {
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
            Score<Operand> x =
                from_float<Score<Operand>>(sums[i] * scale + (scores_below ? to_float(scores_below[at]) : 0));
            scores[at] = x;
            top[i] = fmaxf(top[i], to_float(x));
        }
    }
    for (int i = 0; i < 2; i++) {
        top[i] = warp_max(top[i]);
        if (lane == 0) tops[2 * warp + i] = top[i];
    }
    for (int first = 0; first < STRIP * s.HS; first += blockDim.x) {
        const int own = first + threadIdx.x, row = own / s.HS, d = own % s.HS, t = t0 + row;
        const bool exists = row < STRIP && t < s.T;
        float sum = 0, attn_d = 0;
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
                attn_d += a_tile[row][j - j0] * to_float(v[(size_t)j * C3 + d]);
            }
        }
        if (!exists) continue; // a thread without a channel, in the last round
        attn[head_at(bh, s.C, s) + (size_t)t * s.C + d] = from_float<Operand>(attn_d / sum);
        if (d == 0) log_sums[(size_t)bh * s.T + t] = tops[row] + logf(sum);
    }
}

// A block has a strip of queries of a head. It makes dscores of its rows, then dq.
template <typename Operand>
static __global__ void __launch_bounds__(256, 4)
    attention_backward_queries_kernel(Operand *dqkv, Operand *dscores, const Score<Operand> *scores,
                                      const Operand *dscores_above, const Operand *dattn, const Operand *attn,
                                      const float *log_sums, const Operand *qkv, const Operand *rel, int heads,
                                      AttentionShape s) {
    await_previous_kernel();
    __shared__ float dattn_tile[STRIP][DEPTH + 1];
    __shared__ float v_tile[KEYS][DEPTH + 1];
    __shared__ float ds_tile[STRIP][KEYS + 1];
    const int bh = blockIdx.x % heads, t0 = (s.strips - 1 - blockIdx.x / heads) * STRIP;
    const int keys = min(t0 + STRIP, s.T), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, C3 = 3 * s.C;
    const Operand *k = qkv + head_at(bh, C3, s) + s.C, *v = k + s.C;
    const Operand *dattn_bh = dattn + head_at(bh, s.C, s), *attn_bh = attn + head_at(bh, s.C, s);
    float dot[2] = {0, 0}, log_sum[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        int t = t0 + 2 * warp + i;
        if (t >= s.T) continue; // the whole warp
        for (int d = lane; d < s.HS; d += WARP) {
            dot[i] += to_float(dattn_bh[(size_t)t * s.C + d]) * to_float(attn_bh[(size_t)t * s.C + d]);
        }
        dot[i] = warp_sum(dot[i]);
        log_sum[i] = log_sums[(size_t)bh * s.T + t];
    }
    for (int j0 = 0; j0 < keys; j0 += KEYS) {
        float da[2] = {0, 0};
        for (int d0 = 0; d0 < s.HS; d0 += DEPTH) {
            __syncthreads();
            stage_tile(dattn_tile, STRIP, dattn_bh, s.C, t0, s.T, d0, s.HS);
            stage_tile(v_tile, KEYS, v, C3, j0, s.T, d0, s.HS);
            __syncthreads();
            for (int c = 0; c < min(DEPTH, s.HS - d0); c++) {
                for (int i = 0; i < 2; i++) da[i] += dattn_tile[2 * warp + i][c] * v_tile[lane][c];
            }
        }
        for (int i = 0; i < 2; i++) {
            int t = t0 + 2 * warp + i, j = j0 + lane;
            if (j > t || t >= s.T) continue;
            size_t at = score_at(bh, t, j, s);
            float ds = expf(to_float(scores[at]) - log_sum[i]) * (da[i] - dot[i]);
            dscores[at] = from_float<Operand>(ds + (dscores_above ? to_float(dscores_above[at]) : 0));
        }
    }
    for (int first = 0; first < STRIP * s.HS; first += blockDim.x) {
        const int own = first + threadIdx.x, row = own / s.HS, d = own % s.HS, t = t0 + row;
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
            for (int j = j0; exists && j < min(j0 + KEYS, t + 1); j++) {
                dq += ds_tile[row][j - j0] *
                      (to_float(k[(size_t)j * C3 + d]) + to_float(relative_vector(rel, t - j, s)[d]));
            }
        }
        if (exists) dqkv[head_at(bh, C3, s) + (size_t)t * C3 + d] = from_float<Operand>(dq / sqrtf(s.HS));
    }
}

// Sums over queries. A block for each strip of keys of each head makes dk and dv. After these, a block for each strip
// of distances of each group of heads makes the group's part of drel.
template <typename Operand>
static __global__ void __launch_bounds__(256, 4)
    attention_backward_keys_kernel(Operand *dqkv, float *rel_partial, const Operand *dscores,
                                   const Score<Operand> *scores, const Operand *dattn, const float *log_sums,
                                   const Operand *qkv, int heads, int group_heads, AttentionShape s) {
    await_previous_kernel();
    __shared__ float a_tile[STRIP][STRIP + 1];
    __shared__ float ds_tile[STRIP][STRIP + 1];
    const int C3 = 3 * s.C, i = threadIdx.x / STRIP, x = threadIdx.x % STRIP; // the thread's element of a_tile, ds_tile
    const float scale = 1 / sqrtf(s.HS);
    const int key_blocks = s.strips * heads, block = blockIdx.x - key_blocks;
    if (block < 0) {
        const int bh = blockIdx.x % heads, J = blockIdx.x / heads;
        const Operand *q = qkv + head_at(bh, C3, s), *dattn_bh = dattn + head_at(bh, s.C, s);
        for (int first = 0; first < STRIP * s.HS; first += blockDim.x) {
            const int own = first + threadIdx.x, row = own / s.HS, d = own % s.HS, j = J * STRIP + row;
            const bool exists = row < STRIP && j < s.T;
            float dk = 0, dv = 0;
            for (int t0 = J * STRIP; t0 < s.T; t0 += STRIP) {
                int t_i = t0 + i, j_x = J * STRIP + x;
                bool past = j_x <= t_i && t_i < s.T;
                size_t at = patch_at(bh, t0 / STRIP, J, s) + threadIdx.x;
                __syncthreads();
                a_tile[i][x] = past ? expf(to_float(scores[at]) - log_sums[(size_t)bh * s.T + t_i]) : 0;
                ds_tile[i][x] = past ? to_float(dscores[at]) : 0;
                __syncthreads();
                for (int t = t0; exists && t < min(t0 + STRIP, s.T); t++) {
                    dk += ds_tile[t - t0][row] * to_float(q[(size_t)t * C3 + d]);
                    dv += a_tile[t - t0][row] * to_float(dattn_bh[(size_t)t * s.C + d]);
                }
            }
            if (!exists) continue;
            Operand *dkv = dqkv + head_at(bh, C3, s) + (size_t)j * C3 + d;
            dkv[s.C] = from_float<Operand>(dk * scale);
            dkv[2 * s.C] = from_float<Operand>(dv);
        }
    } else {
        const int group = block / s.strips, n0 = block % s.strips * STRIP;
        for (int first = 0; first < STRIP * s.HS; first += blockDim.x) {
            const int own = first + threadIdx.x, row = own / s.HS, d = own % s.HS;
            float sum = 0;
            for (int bh = group * group_heads; bh < min((group + 1) * group_heads, heads); bh++) {
                const Operand *q = qkv + head_at(bh, C3, s);
                for (int t0 = n0; t0 < s.T; t0 += STRIP) {
                    int t_i = t0 + i, j = t_i - n0 - x;
                    __syncthreads();
                    ds_tile[i][x] = j >= 0 && t_i < s.T ? to_float(dscores[score_at(bh, t_i, j, s)]) : 0;
                    __syncthreads();
                    for (int t = t0; row < STRIP && t < min(t0 + STRIP, s.T); t++) {
                        sum += ds_tile[t - t0][row] * to_float(q[(size_t)t * C3 + d]);
                    }
                }
            }
            if (row < STRIP) rel_partial[((size_t)group * s.strips * STRIP + n0 + row) * s.HS + d] = sum * scale;
        }
    }
}

// drel[D-1-n] = the sum of all parts of distance n, in row 0 of all distances from D-1 on. A block has a row of the
// table. Its 512 threads are rows of HS, a thread a channel, and the rows of threads share the terms of the sum.
static __global__ void __launch_bounds__(512)
    relative_vectors_backward_kernel(float *drel, const float *rel_partial, int parts, AttentionShape s) {
    await_previous_kernel();
    __shared__ float sums[512];
    const int row = blockIdx.x, first = s.D - 1 - row, end = min(row == 0 ? s.T : first + 1, s.T);
    const int terms = max(end - first, 0) * parts, columns = min(s.HS, 512), slices = 512 / columns;
    const int slice = threadIdx.x / columns;
    for (int d0 = 0; d0 < s.HS; d0 += columns) {
        const int d = d0 + threadIdx.x % columns;
        float sum = 0;
        for (int i = slice; slice < slices && d < s.HS && i < terms; i += slices) {
            sum += rel_partial[((size_t)(i % parts) * s.strips * STRIP + first + i / parts) * s.HS + d];
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (slice == 0 && d < s.HS) {
            for (int i = 1; i < slices; i++) sum += sums[i * columns + threadIdx.x];
            drel[(size_t)row * s.HS + d] = sum;
        }
        __syncthreads();
    }
}

// ---- attention: bf16 heads of 16 on tensor cores
//
// Blocks have 8 warps. The rows of a head lie in shared memory as 16 bf16, 32 bytes. A warp has a strip of 16 queries
// or keys in registers. Once rows are staged, it works alone, patch after patch of the strip's row or column.
//
// In registers a lane holds 8 elements of a patch, x[0] to x[7], as mma_bf16 gives them. With (g, c) = (lane / 4,
// lane % 4) x[0] and x[1] are keys 2c and 2c + 1 of query g, x[2] and x[3] of query g + 8; x[4] to x[7] are the same
// queries' keys 8 further on. The backward also needs patches transposed, with keys in place of queries.
//
// So in memory the elements of queries q and q + 8 and keys k and k + 8 lie side by side, 8 bytes, and those of the
// next k after them:
//
//     byte 64 q + 8 k:   (q, k)   (q, k + 8)   (q + 8, k)   (q + 8, k + 8)        q, k < 8
//
// A lane's elements are then 16 bytes in a row, and transposed twice 8 bytes, of which a warp's fill whole sectors of
// 32. The 16 bytes are an A operand as they come, of a product over keys in the order 0 8 2 10 4 12 6 14, 1 9 3 11 ...

constexpr int WARPS = 8, STAGED_ROWS = 256, STAGED_DISTANCES = STAGED_ROWS + STRIP * WARPS;
static_assert(WHOLE_STRIPS == 2 * WARPS && WHOLE_STRIPS * STRIP == STAGED_ROWS, "see attention_backward_16_kernel()");

constexpr float LOG2_E = 1.44269504f;

// Where half (8 elements) of a row begins. Of 16 rows, 0 2 4 6 come first, then 1 3 5 7 and so on, with the halves of
// rows 1 3 5 7 and 8 10 12 14 swapped. So 8 rows that ldmatrix reads at once lie in different banks, be they adjacent
// or every second one, and so do the places that store_by_distance() writes at once.
__device__ inline int row_half(int row, int half) {
    const int place = (row & ~7) | (row & 1) << 2 | (row >> 1 & 3);
    return place * 16 + (half ^ ((row ^ row >> 3) & 1)) * 8;
}
// The same backwards: the row, or its half, of the i-th half in memory.
__device__ inline int row_of(int i) { return (i >> 1 & ~7) | (i & 6) | (i >> 3 & 1); }
__device__ inline int half_of(int i) { return (i ^ row_of(i) ^ row_of(i) >> 3) & 1; }

// A lane of a warp, with what does not change from patch to patch and would be worked out anew in each, if keep() did
// not hold it in registers.
struct Lane {
    int id, g, c;          // id = 4 g + c
    int straight, crossed; // where this lane's row begins, of 16 that ldmatrix loads
    int paired;            // straight, for rows in the order of a patch's keys in memory
};
__device__ inline Lane this_lane() {
    const int id = threadIdx.x % WARP;
    return {id,
            id / 4,
            id % 4,
            keep(row_half(id % 16, id / 16)),
            keep(row_half(id / 16 * 8 + id % 8, id / 8 % 2)),
            keep(row_half((id & 6) | (id >> 3 & 1) | (id & 1) << 3, id / 16))};
}

// Operands of mma_bf16 from 16 rows in shared memory. A operands: the rows, or the rows transposed.
__device__ inline void load_rows_a(uint32_t *a, const __nv_bfloat16 *rows, Lane lane) {
    ldmatrix(a, rows + lane.straight);
}
__device__ inline void load_columns_a(uint32_t *a, const __nv_bfloat16 *rows, Lane lane) {
    ldmatrix<true>(a, rows + lane.crossed);
}
// B operands, two halves of 8 columns each: the rows, the rows in the order of a patch's keys in memory, and, with rows
// and columns exchanged, the rows.
__device__ inline void load_rows_b(uint32_t *b, const __nv_bfloat16 *rows, Lane lane) {
    ldmatrix<true>(b, rows + lane.straight);
}
__device__ inline void load_patch_rows_b(uint32_t *b, const __nv_bfloat16 *rows, Lane lane) {
    ldmatrix<true>(b, rows + lane.paired);
}
__device__ inline void load_columns_b(uint32_t *b, const __nv_bfloat16 *rows, Lane lane) {
    ldmatrix(b, rows + lane.crossed);
}
// d[8] += A B for a B of 16 columns.
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

__device__ inline uint32_t max_half(uint32_t a, uint32_t b) { // of each half
    __half2 x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = __hmax2(x, y);
    memcpy(&a, &x, sizeof a);
    return a;
}
__device__ inline void load_patch_a(uint32_t *a, uint4 packed) {
    a[0] = packed.x;
    a[1] = packed.y;
    a[2] = packed.z;
    a[3] = packed.w;
}

// x[8] of a patch of scores as it lies in memory.
__device__ inline void unpack_scores(float *x, uint4 packed) {
    const uint32_t pairs[4] = {packed.x, packed.z, packed.y, packed.w};
    for (int i = 0; i < 4; i++) {
        float score[2];
        unpack_half(score, pairs[i]);
        x[i] = score[0];
        x[i + 4] = score[1];
    }
}

// Copies the first rows of a head, zeros for rows from T on.
__device__ inline void stage_rows(__nv_bfloat16 *to, const __nv_bfloat16 *head, int stride, int rows, int T) {
    for (int i = threadIdx.x; i < 2 * rows; i += blockDim.x) {
        const int row = row_of(i);
        cp_async(to + i * 8, row < T ? head + (size_t)row * stride + half_of(i) * 8 : head, row < T);
    }
}
// The 16 rows from `first` on of a head as an A operand, from global memory.
__device__ inline void load_strip_a(uint32_t *a, const __nv_bfloat16 *head, int stride, int first, int T, Lane lane) {
    for (int i = 0; i < 4; i++) {
        const int row = first + lane.g + i % 2 * 8;
        a[i] = row < T ? *(const uint32_t *)(head + (size_t)row * stride + i / 2 * 8 + lane.c * 2) : 0;
    }
}
// The vectors of distances first..first+count-1, zeros for distances below 0, which are of the future.
__device__ inline void stage_distances(__nv_bfloat16 *to, const __nv_bfloat16 *rel, int first, int count,
                                       AttentionShape s) {
    for (int i = threadIdx.x; i < 2 * count; i += blockDim.x) {
        const int n = first + row_of(i);
        cp_async(to + i * 8, relative_vector(rel, n, s) + half_of(i) * 8, n >= 0);
    }
}
__device__ inline void copies_arrived() {
    cp_async_commit();
    cp_async_wait<0>();
}

// Rows of d[8] = [16][16] of a product, times scale, to rows first.. of a head.
__device__ inline void store_rows(__nv_bfloat16 *head, int stride, int first, const float *d, float scale, int T,
                                  Lane lane) {
    for (int e = 0; e < 8; e += 2) {
        int row = first + lane.g + e / 2 % 2 * 8;
        if (row >= T) continue;
        uint32_t *to = (uint32_t *)(head + (size_t)row * stride + e / 4 * 8 + lane.c * 2);
        *to = pack(d[e] * scale, d[e + 1] * scale);
    }
}

// Scores by distance. q_t . rel[n] is a product of the warp's queries with strips of 16 distances. Patch (I, J) needs
// strips I - J and I - J - 1. The warp keeps two strips of products in a ring of 32 columns, strip I - J in columns 0
// to 15 if J is even (turn 0), 16 to 31 if odd (turn 1), and goes from J to J + 1 by one more strip, in place of the
// farther one. So for query strip I = 3:
//
//               strips     columns 0..15   columns 16..31
//     J = 0     3 and 2    strip 3         strip 2
//     J = 1     2 and 1    strip 1         strip 2
//     J = 2     1 and 0    strip 1         strip 0
//     J = 3     0 and -1   strip -1        strip 0        -1: the future
//
// Distance n is in column (n - 16 I) % 32, and key j of query t reads that of t - j in its row. Rows are turned by 8 of
// the one before, so that adjacent rows lie in different banks.
constexpr int RING_ROW = 32;

// A lane's places in the rings in turn 0, in bytes: to[] for the two halves of a product, and from[] for elements 0 to
// 3 of a patch. They suffice: rows 8 further on are turned the same. For query and key both 8 further on the column is
// the same, and for the key alone it is that of the query 8 further on in the other turn.
struct RingPlaces {
    int to[2], from[4];
};
__device__ inline RingPlaces ring_places(Lane lane) {
    const int ring = (int)threadIdx.x / WARP * STRIP * RING_ROW;
    RingPlaces places;
    for (int half = 0; half < 2; half++) {
        places.to[half] = keep(4 * (ring + lane.g * RING_ROW + ((half * 8 + lane.c * 2 + 8 * lane.g) & 31)));
    }
    for (int e = 0; e < 4; e++) {
        const int row = lane.g + e / 2 * 8, key = lane.c * 2 + e % 2;
        places.from[e] = keep(4 * (ring + row * RING_ROW + ((row - key + 8 * row) & 31)));
    }
    return places;
}
__device__ inline float *ring_at(float *rings, int place, int turn) { // 16 columns on, of 32, is the other turn
    return (float *)((char *)rings + (place ^ turn * 64));
}

// The warp's queries times a strip of distances, into the ring.
__device__ inline void ring_strip(float *rings, const RingPlaces &places, int turn, const uint32_t *q_a,
                                  const __nv_bfloat16 *rel_strip, Lane lane) {
    float products[8] = {0};
    uint32_t b[4];
    load_columns_b(b, rel_strip, lane);
    multiply(products, q_a, b);
    for (int e = 0; e < 8; e += 2) {
        *(float2 *)(ring_at(rings, places.to[e / 4], turn) + e / 2 % 2 * 8 * RING_ROW) =
            make_float2(products[e], products[e + 1]);
    }
}

// The scores of a patch (I, J) with diagonal = I - J, as they lie in memory. x is what does not depend on the distance,
// and is used up. high[r] has the largest scores of query g + 8 r that this lane has met, among lower and upper keys.
__device__ inline uint4 scores_of_patch(float *x, uint32_t *high, float *rings, const RingPlaces &places, int turn,
                                        int diagonal, Lane lane) {
    for (int e = 0; e < 2; e++) {
        x[e] += ring_at(rings, places.from[e], turn)[0];
        x[e + 2] += ring_at(rings, places.from[e + 2], turn)[0];
        x[e + 4] += ring_at(rings, places.from[e + 2], 1 - turn)[-8 * RING_ROW];
        x[e + 6] += ring_at(rings, places.from[e], turn)[8 * RING_ROW];
    }
    for (int e = 0; e < 8 && diagonal == 0; e++) {
        const int row = lane.g + e / 2 % 2 * 8, key = lane.c * 2 + e % 2 + e / 4 * 8;
        if (key > row) x[e] = -INFINITY;
    }
    uint4 packed = {pack_half(x[0], x[4]), pack_half(x[2], x[6]), pack_half(x[1], x[5]), pack_half(x[3], x[7])};
    high[0] = max_half(high[0], max_half(packed.x, packed.z));
    high[1] = max_half(high[1], max_half(packed.y, packed.w));
    return packed;
}

// The softmax of a strip of queries over the keys so far (Milakov and Gimelshein, Online normalizer calculation for
// softmax, 2018): sum and attn are those of exp(scores - top). A lane holds those of queries g and g + 8.
struct RunningSoftmax {
    float attn[8];        // [16][16] as a product gives it, not yet divided by the sum
    float top[2], sum[2]; // the largest score times log2(e); the lane's share of the sum
};

// Takes the largest of the lanes' high[] as top.
__device__ inline void running_softmax_raise(RunningSoftmax *softmax, const uint32_t *high) {
    for (int r = 0; r < 2; r++) {
        float score[2];
        unpack_half(score, high[r]);
        float top = fmaxf(score[0], score[1]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * LOG2_E;
        const float shrink = exp2_approx(softmax->top[r] - top);
        softmax->top[r] = top;
        softmax->sum[r] *= shrink;
        for (int e = 2 * r; e < 8; e += 4) {
            softmax->attn[e] *= shrink;
            softmax->attn[e + 1] *= shrink;
        }
    }
}

// Adds a patch: its scores, as they were stored, and the strip of values of its keys.
__device__ inline void running_softmax_add(RunningSoftmax *softmax, uint4 scores, const __nv_bfloat16 *v_strip,
                                           Lane lane) {
    uint32_t a[4], b[4];
    float x[8];
    unpack_scores(x, scores);
    for (int e = 0; e < 8; e++) {
        x[e] = exp2_approx(x[e] * LOG2_E - softmax->top[e / 2 % 2]);
        softmax->sum[e / 2 % 2] += x[e];
    }
    pack_a(a, x);
    load_rows_b(b, v_strip, lane);
    multiply(softmax->attn, a, b);
}

// A block has 8 strips of queries of a head, a warp one of them. It goes through the strip's patches, four at a time.
static __global__ void __launch_bounds__(256, 3)
    attention_forward_16_kernel(__nv_bfloat16 *attn, __half *scores, float *log_sums, const __half *scores_below,
                                const __nv_bfloat16 *qkv, const __nv_bfloat16 *rel, int heads, AttentionShape s) {
    await_previous_kernel();
    __shared__ __align__(16) __nv_bfloat16 k_rows[STAGED_ROWS * 16];
    __shared__ __align__(16) __nv_bfloat16 v_rows[STAGED_ROWS * 16];
    __shared__ __align__(16) __nv_bfloat16 rel_rows[STAGED_DISTANCES * 16];
    __shared__ __align__(16) float rings[WARPS * STRIP * RING_ROW];
    const Lane lane = this_lane();
    const int warp = threadIdx.x / WARP, C3 = 3 * s.C;
    const int head_blocks = (s.strips + WARPS - 1) / WARPS, bh = blockIdx.x % heads;
    const int I0 = (head_blocks - 1 - blockIdx.x / heads) * WARPS, I = I0 + warp; // the longest first
    const int end = min(I0 + WARPS, s.strips);
    const __nv_bfloat16 *q = qkv + head_at(bh, C3, s), *k = q + s.C, *v = k + s.C;
    uint32_t q_a[4];
    load_strip_a(q_a, q, C3, I * STRIP, s.T, lane);
    for (uint32_t &pair : q_a) {
        float x[2];
        unpack_bf16(x, pair);
        pair = pack(x[0] * 0.25f, x[1] * 0.25f); // scale, exact
    }
    const uint4 *below = scores_below ? (const uint4 *)(scores_below + patch_at(bh, 0, 0, s)) : nullptr;
    uint4 *scores_bh = (uint4 *)(scores + patch_at(bh, 0, 0, s));
    RunningSoftmax softmax = {{0}, {-INFINITY, -INFINITY}, {0, 0}};
    uint32_t high[2] = {0xfc00fc00, 0xfc00fc00}; // minus infinity
    const int first_distance = I0 - end;         // staged are the strips of distances from there to end - 1
    stage_rows(k_rows, k, C3, end * STRIP, s.T);
    stage_rows(v_rows, v, C3, end * STRIP, s.T);
    stage_distances(rel_rows, rel, first_distance * STRIP, (end - first_distance) * STRIP, s);
    copies_arrived();
    __syncthreads();
    if (I >= s.strips) return;
    const RingPlaces places = ring_places(lane);
    ring_strip(rings, places, 0, q_a, rel_rows + (I - first_distance) * PATCH, lane);
    const unsigned at = I * (I + 1) / 2 * WARP + lane.id;
    for (int j = 0; j <= I; j += 4) { // strips j + i of keys, for which it is turn i % 2
        uint4 packed[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            packed[i] = make_uint4(0, 0, 0, 0);
            if (below && j + i <= I) packed[i] = below[at + (j + i) * WARP];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (j + i <= I) {
                const int diagonal = I - j - i;
                uint32_t b[4];
                ring_strip(rings, places, 1 - i % 2, q_a, rel_rows + (diagonal - 1 - first_distance) * PATCH, lane);
                float x[8];
                unpack_scores(x, packed[i]);
                load_columns_b(b, k_rows + (j + i) * PATCH, lane);
                multiply(x, q_a, b);
                __syncwarp();
                packed[i] = scores_of_patch(x, high, rings, places, i % 2, diagonal, lane);
                scores_bh[at + (j + i) * WARP] = packed[i];
                __syncwarp();
            }
        }
        running_softmax_raise(&softmax, high);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (j + i <= I) running_softmax_add(&softmax, packed[i], v_rows + (j + i) * PATCH, lane);
        }
    }
    const int t0 = keep(I) * STRIP; // and so not kept through the loop, where registers are short
    for (int r = 0; r < 2; r++) {
        softmax.sum[r] += __shfl_xor_sync(~0u, softmax.sum[r], 1);
        softmax.sum[r] += __shfl_xor_sync(~0u, softmax.sum[r], 2);
        const int t = t0 + lane.g + 8 * r;
        if (lane.c == 0 && t < s.T)
            log_sums[(size_t)bh * s.T + t] = softmax.top[r] * (1 / LOG2_E) + __logf(softmax.sum[r]);
        for (int e = 2 * r; e < 8; e += 4) {
            softmax.attn[e] /= softmax.sum[r];
            softmax.attn[e + 1] /= softmax.sum[r];
        }
    }
    store_rows(attn + head_at(bh, s.C, s), s.C, t0, softmax.attn, 1, s.T, lane);
}

// Stages the queries of a head with dattn. sums[i]: of queries q and q + 8, the i-th such pair, first both
// minus dattn . attn, then both minus log_sums to base 2.
__device__ inline void stage_queries(__nv_bfloat16 *q_rows, __nv_bfloat16 *dattn_rows, float4 *sums,
                                     const __nv_bfloat16 *dattn, Attention<__nv_bfloat16> act, int bh,
                                     AttentionShape s) {
    const int rows = s.strips * STRIP;
    const __nv_bfloat16 *dattn_bh = dattn + head_at(bh, s.C, s), *attn_bh = act.attn + head_at(bh, s.C, s);
    stage_rows(q_rows, act.qkv + head_at(bh, 3 * s.C, s), 3 * s.C, rows, s.T);
    stage_rows(dattn_rows, dattn_bh, s.C, rows, s.T);
    for (int t = threadIdx.x; t < rows; t += blockDim.x) {
        float dot = 0;
        for (int d = 0; t < s.T && d < 16; d += 8) {
            uint4 x4 = *(const uint4 *)(dattn_bh + (size_t)t * s.C + d);
            uint4 y4 = *(const uint4 *)(attn_bh + (size_t)t * s.C + d);
            const uint32_t pairs[2][4] = {{x4.x, x4.y, x4.z, x4.w}, {y4.x, y4.y, y4.z, y4.w}};
            for (int p = 0; p < 4; p++) {
                float x[2], y[2];
                unpack_bf16(x, pairs[0][p]);
                unpack_bf16(y, pairs[1][p]);
                dot += x[0] * y[0] + x[1] * y[1];
            }
        }
        float *to = (float *)&sums[t / 16 * 8 + t % 8] + t / 8 % 2;
        to[0] = -dot;
        to[2] = t < s.T ? -LOG2_E * act.log_sums[(size_t)bh * s.T + t] : -INFINITY; // then a = 0
    }
}

// Tiles of dscores by distance: dscore (t, j) of query strip I is in row t % 16, column (t - j) % 16 of tile
// I (I + 1) / 2 + (t - j) / 16. at[i]: where element i of a transposed patch goes, as its pairs of keys lie in memory,
// in bytes from the tile of the patch's diagonal.
struct DistancePlaces {
    int at[8];
};
__device__ inline DistancePlaces distance_places(Lane lane) {
    DistancePlaces places;
    for (int i = 0; i < 8; i++) {
        const int row = lane.c * 2 + i / 4 + i / 2 % 2 * 8, distance = row - (lane.g + i % 2 * 8);
        const int at = row_half(row, distance >> 3 & 1) + (distance & 7) + (distance < 0 ? -PATCH : 0);
        places.at[i] = keep(2 * at);
    }
    return places;
}
// On the diagonal there is no tile for the future.
__device__ inline void store_by_distance(__nv_bfloat16 *tile, const uint32_t *pairs, DistancePlaces places,
                                         bool diagonal) {
    for (int i = 0; i < 8; i++) {
        if (diagonal && places.at[i] < 0) continue;
        *(unsigned short *)((char *)tile + places.at[i]) = (unsigned short)(pairs[i / 2] >> 16 * (i % 2));
    }
}

struct KeyStrip {
    float dk[8], dv[8]; // [16 keys][16]
    uint32_t v[4];      // A operand
};

// Takes a warp's strip J of keys through the patches of its column, from the diagonal down to strip `strips`. It works
// on patches transposed: dv += a^T dattn, dk += dscores^T q. scores, dscores_above and dscores are a head's; the scores
// and dscores_above are read once, dscores may be dscores_above. dscores go to tiles, too.
__device__ inline void key_strip_backward(KeyStrip *strip, __nv_bfloat16 *dscores, __nv_bfloat16 *tiles,
                                          const __half *scores, const __nv_bfloat16 *dscores_above,
                                          __nv_bfloat16 *q_rows, __nv_bfloat16 *dattn_rows, const float4 *sums, int J,
                                          int strips, Lane lane) {
    const DistancePlaces places = distance_places(lane);
    uint2 next_score[2], next_above[2] = {{0, 0}, {0, 0}};
    auto fetch = [&](unsigned at) {
        for (int i = 0; i < 2; i++) {
            next_score[i] = ((const uint2 *)scores + at)[8 * i];
            if (dscores_above) next_above[i] = ((const uint2 *)dscores_above + at)[8 * i];
        }
    };
    unsigned at = (J * (J + 1) / 2 + J) * (PATCH / 4) + 16 * lane.c + lane.g;
    fetch(at);
#pragma unroll 2
    for (int I = J; I < strips; I++) {
        const uint2 score[2] = {next_score[0], next_score[1]}, above[2] = {next_above[0], next_above[1]};
        const unsigned next = at + (I + 1) * (PATCH / 4);
        if (I + 1 < strips) fetch(next); // on its way during this one
        __nv_bfloat16 *q_I = q_rows + I * PATCH, *dattn_I = dattn_rows + I * PATCH;
        float4 sum[2];
        float x[8], ds[8];
        for (int i = 0; i < 2; i++) {
            sum[i] = sums[I * 8 + 2 * lane.c + i];
            x[i] = x[i + 2] = sum[i].x;
            x[i + 4] = x[i + 6] = sum[i].y;
        }
        uint32_t a[4], b[4], pairs[4];
        load_columns_b(b, dattn_I, lane);
        multiply(x, strip->v, b);     // dattn . v - dot
        for (int i = 0; i < 4; i++) { // query 2c + i / 2 + 8 (i % 2), keys g and g + 8
            const int e = i % 2 * 4 + i / 2;
            const float log_sum = i % 2 ? sum[i / 2].w : sum[i / 2].z;
            float s[2], more[2];
            unpack_half(s, i % 2 ? score[i / 2].y : score[i / 2].x);
            unpack_bf16(more, i % 2 ? above[i / 2].y : above[i / 2].x);
            for (int k = 0; k < 2; k++) {
                const float weight = exp2_approx(s[k] * LOG2_E + log_sum);
                ds[e + 2 * k] = weight * x[e + 2 * k] + more[k];
                x[e + 2 * k] = weight;
            }
            pairs[i] = pack(ds[e], ds[e + 2]);
        }
        uint2 *to = (uint2 *)dscores + at;
        to[0] = make_uint2(pairs[0], pairs[1]);
        to[8] = make_uint2(pairs[2], pairs[3]);
        store_by_distance(tiles + (I * (I + 1) / 2 + I - J) * PATCH, pairs, places, I == J);
        pack_a(a, x);
        load_rows_b(b, dattn_I, lane);
        multiply(strip->dv, a, b);
        pack_a(a, ds);
        load_rows_b(b, q_I, lane);
        multiply(strip->dk, a, b);
        at = next;
    }
}

// A block has a group of heads, one after another, and a warp two strips w and 15 - w, together as long as any other's:
// first of keys, for dk, dv and dscores as above; then of distances, for drel, which it sums over the heads; last of
// queries, for dq. All of a head's dscores by distance lie in shared memory. Two kernels, of keys and of queries, would
// read dscores once more and sort them twice.
static __global__ void __launch_bounds__(256, 2)
    attention_backward_16_kernel(__nv_bfloat16 *dqkv, float *rel_partial, __nv_bfloat16 *dscores,
                                 const __nv_bfloat16 *dscores_above, const __nv_bfloat16 *dattn,
                                 Attention<__nv_bfloat16> act, const __nv_bfloat16 *rel, int heads, int group_heads,
                                 AttentionShape s) {
    await_previous_kernel();
    extern __shared__ __align__(16) unsigned char shared[];
    __nv_bfloat16 *tiles = (__nv_bfloat16 *)shared, *q_rows = tiles + WHOLE_PATCHES * PATCH;
    __nv_bfloat16 *k_rows = q_rows + WHOLE_STRIPS * PATCH, *dattn_rows = k_rows + WHOLE_STRIPS * PATCH;
    __nv_bfloat16 *rel_rows = dattn_rows; // later
    float4 *sums = (float4 *)(dattn_rows + WHOLE_STRIPS * PATCH);
    const Lane lane = this_lane();
    const int warp = threadIdx.x / WARP, C3 = 3 * s.C, rows = s.strips * STRIP;
    const int first_bh = blockIdx.x * group_heads, end_bh = min(first_bh + group_heads, heads);
    auto strip_of = [=](int i) { return i == 0 ? warp : WHOLE_STRIPS - 1 - warp; };
    uint32_t a[4], b[4];
    float drel[2][8] = {{0}, {0}};
    for (int i = threadIdx.x; i < WHOLE_PATCHES * WARP; i += blockDim.x) ((uint4 *)tiles)[i] = make_uint4(0, 0, 0, 0);
    for (int bh = first_bh; bh < end_bh; bh++) {
        const __nv_bfloat16 *q = act.qkv + head_at(bh, C3, s), *k = q + s.C, *v = k + s.C;
        __nv_bfloat16 *dq = dqkv + head_at(bh, C3, s), *dk = dq + s.C;
        const size_t at = patch_at(bh, 0, 0, s);
        __syncthreads();
        stage_queries(q_rows, dattn_rows, sums, dattn, act, bh, s);
        stage_rows(k_rows, k, C3, rows, s.T);
        copies_arrived();
        __syncthreads();
        for (int i = 0; i < 2; i++) {
            const int J = strip_of(i);
            if (J >= s.strips) break;
            KeyStrip strip = {{0}, {0}, {0}};
            load_strip_a(strip.v, v, C3, J * STRIP, s.T, lane);
            key_strip_backward(&strip, dscores + at, tiles, act.scores + at,
                               dscores_above ? dscores_above + at : nullptr, q_rows, dattn_rows, sums, J, s.strips,
                               lane);
            store_rows(dk, C3, J * STRIP, strip.dk, 0.25f, s.T, lane);
            store_rows(dk + s.C, C3, J * STRIP, strip.dv, 1, s.T, lane);
        }
        __syncthreads();
        stage_distances(rel_rows, rel, 0, rows, s);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            for (int I = strip_of(i); I < s.strips; I++) {
                load_columns_a(a, tiles + (I * (I + 1) / 2 + strip_of(i)) * PATCH, lane);
                load_rows_b(b, q_rows + I * PATCH, lane);
                multiply(drel[i], a, b);
            }
        }
        copies_arrived();
        __syncthreads();
        for (int i = 0; i < 2; i++) {
            const int I = strip_of(i);
            if (I >= s.strips) break;
            const uint4 *patches = (const uint4 *)(dscores + at + I * (I + 1) / 2 * PATCH) + lane.id;
            float sum[8] = {0};
            uint4 next_ds = patches[0];
            for (int J = 0; J <= I; J++) {
                load_patch_a(a, next_ds);
                if (J < I) next_ds = patches[(J + 1) * WARP];
                load_patch_rows_b(b, k_rows + J * PATCH, lane);
                multiply(sum, a, b);
                load_rows_a(a, tiles + (I * (I + 1) / 2 + J) * PATCH, lane); // J as a strip of distances
                load_rows_b(b, rel_rows + J * PATCH, lane);
                multiply(sum, a, b);
            }
            store_rows(dq, C3, I * STRIP, sum, 0.25f, s.T, lane);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (strip_of(i) >= s.strips) break;
        float *part = rel_partial + ((size_t)blockIdx.x * s.strips + strip_of(i)) * PATCH;
        for (int e = 0; e < 8; e++) {
            part[(lane.g + e / 2 % 2 * 8) * 16 + e / 4 * 8 + lane.c * 2 + e % 2] = drel[i][e] * 0.25f;
        }
    }
}

// ---- attention: launches

// scores_below: those of the layer below, or nullptr. rel [D,HS].
template <typename Operand>
static void attention_forward(Attention<Operand> act, const Score<Operand> *scores_below, const Operand *rel, int B,
                              AttentionShape s, cudaStream_t stream) {
    const int heads = B * s.NH, head_blocks = (s.strips + WARPS - 1) / WARPS;
    if constexpr (BF16<Operand>) {
        if (attention_on_tensor_cores<Operand>(s)) {
            attention_forward_16_kernel<<<head_blocks * heads, 32 * WARPS, 0, stream>>>(
                act.attn, act.scores, act.log_sums, scores_below, act.qkv, rel, heads, s);
            LAUNCHED(attention_forward_16_kernel);
            return;
        }
    }
    attention_forward_kernel<Operand><<<s.strips * heads, 256, 0, stream>>>(act.attn, act.scores, act.log_sums,
                                                                            scores_below, act.qkv, rel, heads, s);
    LAUNCHED(attention_forward_kernel<Operand>);
}

// dqkv [R,3C], and the parts of drel (relative_partial_size), from dattn [R,C]. dscores (attention_scores_size) becomes
// this layer's, for the layer below; dscores_above: those of the layer above, or nullptr; it may be the same buffer.
// For bf16 dattn must begin at a multiple of 16 bytes, and dscores at one of 8.
template <typename Operand>
static void attention_backward(Operand *dqkv, float *rel_partial, Operand *dscores, const Operand *dscores_above,
                               const Operand *dattn, Attention<Operand> act, const Operand *rel, int B,
                               AttentionShape s, cudaStream_t stream) {
    const int heads = B * s.NH;
    const int group_heads = heads_of_group<Operand>(B, s), groups = head_groups<Operand>(B, s);
    if constexpr (BF16<Operand>) {
        if (attention_on_tensor_cores<Operand>(s)) {
            matmul_prepare(attention_backward_16_kernel, WHOLE_BYTES);
            attention_backward_16_kernel<<<groups, 32 * WARPS, WHOLE_BYTES, stream>>>(
                dqkv, rel_partial, dscores, dscores_above, dattn, act, rel, heads, group_heads, s);
            LAUNCHED(attention_backward_16_kernel);
            return;
        }
    }
    attention_backward_queries_kernel<Operand><<<s.strips * heads, 256, 0, stream>>>(
        dqkv, dscores, act.scores, dscores_above, dattn, act.attn, act.log_sums, act.qkv, rel, heads, s);
    LAUNCHED(attention_backward_queries_kernel<Operand>);
    const int blocks = s.strips * (heads + groups); // those of keys, then those of distances
    attention_backward_keys_kernel<Operand><<<blocks, 256, 0, stream>>>(dqkv, rel_partial, dscores, act.scores, dattn,
                                                                        act.log_sums, act.qkv, heads, group_heads, s);
    LAUNCHED(attention_backward_keys_kernel<Operand>);
}

// drel [D,HS] = the sum of what attention_backward<Operand> left in rel_partial.
template <typename Operand>
static void relative_vectors_backward(float *drel, const float *rel_partial, int B, AttentionShape s,
                                      cudaStream_t stream) {
    relative_vectors_backward_kernel<<<s.D, 512, 0, stream>>>(drel, rel_partial, head_groups<Operand>(B, s), s);
    LAUNCHED(relative_vectors_backward_kernel);
}

// ---- residual, dropout, LayerNorm
//
// A branch of the model, a product with its bias, is dropped out, added to what it branched off from, and normalized:
//     y = LN(x + dropout(branch + bias)) = normalized * w + b,  normalized = (. - mean) * rstd     (Ba et al., 2016)
// Where a block can own whole rows of the product, this is the end of the product's own kernel, and the sums never
// leave the multiprocessor; else the product goes through memory. In the backward, LayerNorm's gradient is likewise the
// end of the product that gives its dy. Either way rows pass through the same functions, to the same bytes.
//
// x itself is not kept. It is the output of the LayerNorm below again, or the embedding.

typedef struct { // x, what a branch branched off from: normalized * w + b, or emb[tokens] unless emb is nullptr
    const float *normalized, *w, *b;
    const float *emb;
    const uint8_t *tokens;
} Residual;

// Channels 4g to 4g+3 of row r of it.
__device__ inline Four<float> residual_four(Residual x, int r, int g, int C) {
    if (x.emb) return read_four(x.emb + (size_t)x.tokens[r] * C, g, C);
    const Four<float> w = read_four(x.w, g, C), b = read_four(x.b, g, C);
    Four<float> from = read_four(x.normalized + (size_t)r * C, g, C);
    for (int e = 0; e < 4; e++) from.at[e] = from.at[e] * w.at[e] + b.at[e];
    return from;
}

template <typename Operand>
struct LayerNorm {      // at one place of the model
    Operand *y;         // [R,C]
    float *normalized;  // [R,C]
    float *rstd;        // [R]
    uint8_t *kept;      // [R,(C+3)/4] dropout_bits() of the forward
    const float *w, *b; // [C]
    Dropout dropout;
    int block_rows; // rows of a block, layernorm_block_rows()
};

// Rows r0..r0+rows-1, by a block. v is the branch, its rows v_row apart, and is used up. A warp has a row, and a lane
// groups of four channels of it. WIDTH: C, where it is known when this is compiled, or 0. A row of known C takes some
// 400 instructions instead of 610, in the backward 160 instead of 590 (make count, sm_90).
template <typename Operand, int WIDTH>
__device__ inline void layernorm_forward_rows(float *v, int v_row, LayerNorm<Operand> norm, Residual x,
                                              const float *bias, int64_t step, int r0, int rows, int T, int columns) {
    const int C = WIDTH ? WIDTH : columns, groups = (C + 3) / 4;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int i = warp; i < rows; i += warps) {
        const int r = r0 + i;
        const size_t at = (size_t)r * C;
        float *row = v + (size_t)i * v_row, sum = 0, squares = 0;
        for (int g = lane; g < groups; g += WARP) {
            const unsigned bits = dropout_bits(norm.dropout, step, r / T, r % T, g);
            const Four<float> mask = dropout_factors(norm.dropout, bits), add = read_four(bias, g, C);
            const Four<float> from = residual_four(x, r, g, C);
            Four<float> a = get_four(row, g, C);
            for (int e = 0; e < 4; e++) {
                a.at[e] = from.at[e] + (a.at[e] + add.at[e]) * mask.at[e];
                sum += a.at[e];
            }
            put_four(row, g, C, a);
            norm.kept[(size_t)r * groups + g] = (uint8_t)bits;
        }
        const float mean = warp_sum(sum) / (float)C;
        for (int g = lane; g < groups; g += WARP) { // each lane what it has written itself
            const Four<float> a = get_four(row, g, C);
            for (int e = 0; e < 4; e++) {
                const float past = 4 * g + e < C ? a.at[e] - mean : 0;
                squares += past * past;
            }
        }
        const float scale = 1 / sqrtf(warp_sum(squares) / (float)C + 1e-5f);
        for (int g = lane; g < groups; g += WARP) {
            const Four<float> w = read_four(norm.w, g, C), b = read_four(norm.b, g, C);
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

// The backward of the same rows. dy is v, which comes from a product, plus d, the gradient that came down past it. With
// `first` nothing came down. With g = dy * w:
//     dx = rstd * (g - mean(g) - normalized * mean(g * normalized))
// d becomes dx, dbranch = dx * mask, and sums [2][C] the rows' share of dw and db, in which a thread owns columns.
template <typename Operand, int WIDTH>
__device__ inline void layernorm_backward_rows(float *v, int v_row, float *d, bool first, Operand *dbranch, float *sums,
                                               LayerNorm<Operand> norm, int r0, int rows, int columns) {
    const int C = WIDTH ? WIDTH : columns, groups = (C + 3) / 4;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int i = warp; i < rows; i += warps) {
        const int r = r0 + i;
        const size_t at = (size_t)r * C;
        float *row = v + (size_t)i * v_row, sum = 0, product = 0;
        for (int g = lane; g < groups; g += WARP) {
            const Four<float> n = read_four(norm.normalized + at, g, C), w = read_four(norm.w, g, C);
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
        for (int g = lane; g < groups; g += WARP) {
            const Four<float> mask = dropout_factors(norm.dropout, __ldg(&norm.kept[(size_t)r * groups + g]));
            const Four<float> n = read_four(norm.normalized + at, g, C), w = read_four(norm.w, g, C);
            Four<float> dx = get_four(row, g, C);
            for (int e = 0; e < 4; e++) dx.at[e] = scale * (dx.at[e] * w.at[e] - mean - n.at[e] * mean_product);
            put_four(d + at, g, C, dx);
            for (int e = 0; e < 4; e++) dx.at[e] *= mask.at[e];
            put_four(dbranch + at, g, C, dx);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < C; c += WARP * warps) {
        float dw = 0, db = 0;
        for (int i = 0; i < rows; i++) {
            dw += v[(size_t)i * v_row + c] * __ldg(&norm.normalized[(size_t)(r0 + i) * C + c]);
            db += v[(size_t)i * v_row + c];
        }
        sums[c] = dw;
        sums[C + c] = db;
    }
}

// A block owns whole rows of a product if C is 256 and rows of operands begin at multiples of 16 bytes. Few rows go to
// as many blocks as can be, 16 to each. Many rows go 64 to a block, which reads the weights a quarter as often, where
// the GPU has that much shared memory. The rows of a block have one sum of dw and db.
constexpr int FUSED_WIDTH = 256, FUSED_MANY = 8192, NORM_THREADS = 256;

static bool fused(int C, int operand_row) { return C == FUSED_WIDTH && operand_row % 8 == 0; }

static int layernorm_block_rows(const DeviceModel *m, int R) {
    const int bytes = Tile<float, false, true, 64, FUSED_WIDTH>::BYTES_WITH_ROWS; // not less than of the others
    return R >= FUSED_MANY && m->shared_limit >= bytes ? 64 : 16;
}

static size_t layernorm_sums_size(int R, int C, int block_rows) { return (size_t)blocks_for(R, block_rows) * 2 * C; }

// y = x w^T and dx = dy w of a linear layer, as products yet to be made. x, dx [R,C], w [OC,C], y, dy [R,OC].
template <typename Operand>
static Product<Operand> linear_forward(const Operand *x, const Operand *w, int R, int C, int OC) {
    return {x, C, w, C, R, OC, C};
}
template <typename Operand>
static Product<Operand> linear_backward(const Operand *dy, int dy_row, const Operand *w, int R, int C, int OC) {
    return {dy, dy_row, w, C, R, C, OC};
}

template <typename Operand, int ROWS>
static __global__ void __launch_bounds__(Tile<Operand, false, true, ROWS, FUSED_WIDTH>::THREADS,
                                         ROWS == 16 || BF16<Operand> ? 2 : 1)
    product_layernorm_forward_kernel(LayerNorm<Operand> norm, Residual x, Product<Operand> p, const float *bias,
                                     const DeviceState *state, int T) {
    await_previous_kernel();
    typedef Tile<Operand, false, true, ROWS, FUSED_WIDTH> RowTile;
    extern __shared__ __align__(16) unsigned char shared[];
    const int r0 = blockIdx.x * ROWS;
    Sums<RowTile> sums = {};
    tile_multiply_as<RowTile, true>(sums, p, r0, 0, 0, p.K, shared);
    float *v = tile_to_shared<RowTile>(sums, shared);
    layernorm_forward_rows<Operand, FUSED_WIDTH>(v, RowTile::ROW, norm, x, bias, state->step, r0, min(ROWS, p.M - r0),
                                                 T, p.N);
}

template <typename Operand, int ROWS>
static void product_layernorm_forward(LayerNorm<Operand> norm, Residual x, Product<Operand> p, const float *bias,
                                      const DeviceState *state, int T, cudaStream_t stream) {
    typedef Tile<Operand, false, true, ROWS, FUSED_WIDTH> RowTile;
    const int blocks = blocks_for(p.M, ROWS), threads = RowTile::THREADS, bytes = RowTile::BYTES_WITH_ROWS;
    matmul_prepare(product_layernorm_forward_kernel<Operand, ROWS>, bytes);
    product_layernorm_forward_kernel<Operand, ROWS><<<blocks, threads, bytes, stream>>>(norm, x, p, bias, state, T);
    LAUNCHED(product_layernorm_forward_kernel<Operand, ROWS>);
}

// The same from a branch in memory.
template <typename Operand>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_forward_kernel(LayerNorm<Operand> norm, Residual x, float *branch, const float *bias,
                             const DeviceState *state, int R, int T, int C) {
    await_previous_kernel();
    const int r0 = blockIdx.x * (NORM_THREADS / WARP);
    layernorm_forward_rows<Operand, 0>(branch + (size_t)r0 * C, C, norm, x, bias, state->step, r0,
                                       min(NORM_THREADS / WARP, R - r0), T, C);
}

// norm.y = LN(x + dropout(p + bias)), p [R,C] a product. branch [R,C]: scratch where not fused.
template <typename Operand>
static void residual_dropout_layernorm_forward(LayerNorm<Operand> norm, Residual x, Product<Operand> p,
                                               const float *bias, float *branch, const DeviceState *state, int T,
                                               cudaStream_t stream) {
    const int R = p.M, C = p.N;
    if (!fused(C, p.a_row)) {
        matmul_forward(branch, p.a, p.b, (const float *)nullptr, false, R, p.K, C, stream);
        const int blocks = blocks_for(R, NORM_THREADS / WARP);
        layernorm_forward_kernel<Operand><<<blocks, NORM_THREADS, 0, stream>>>(norm, x, branch, bias, state, R, T, C);
        LAUNCHED(layernorm_forward_kernel<Operand>);
    } else if (norm.block_rows == 16) {
        product_layernorm_forward<Operand, 16>(norm, x, p, bias, state, T, stream);
    } else {
        product_layernorm_forward<Operand, 64>(norm, x, p, bias, state, T, stream);
    }
}

template <typename Operand, int ROWS>
static __global__ void __launch_bounds__(Tile<Operand, false, false, ROWS, FUSED_WIDTH>::THREADS,
                                         ROWS == 16 || BF16<Operand> ? 2 : 1)
    product_layernorm_backward_kernel(float *d, bool first, Operand *dbranch, float *norm_sums, LayerNorm<Operand> norm,
                                      Product<Operand> p) {
    await_previous_kernel();
    typedef Tile<Operand, false, false, ROWS, FUSED_WIDTH> RowTile;
    extern __shared__ __align__(16) unsigned char shared[];
    const int r0 = blockIdx.x * ROWS;
    Sums<RowTile> sums = {};
    tile_multiply_as<RowTile, true>(sums, p, r0, 0, 0, p.K, shared);
    float *v = tile_to_shared<RowTile>(sums, shared);
    layernorm_backward_rows<Operand, FUSED_WIDTH>(v, RowTile::ROW, d, first, dbranch,
                                                  norm_sums + (size_t)blockIdx.x * 2 * p.N, norm, r0,
                                                  min(ROWS, p.M - r0), p.N);
}

template <typename Operand, int ROWS>
static void product_layernorm_backward(float *d, bool first, Operand *dbranch, float *norm_sums,
                                       LayerNorm<Operand> norm, Product<Operand> p, cudaStream_t stream) {
    typedef Tile<Operand, false, false, ROWS, FUSED_WIDTH> RowTile;
    const int blocks = blocks_for(p.M, ROWS), threads = RowTile::THREADS, bytes = RowTile::BYTES_WITH_ROWS;
    matmul_prepare(product_layernorm_backward_kernel<Operand, ROWS>, bytes);
    // The launch must stay on the line of its kernel, for dev/emu/cuda2cpp.sed.
    // clang-format off
    product_layernorm_backward_kernel<Operand, ROWS><<<blocks, threads, bytes, stream>>>(
        d, first, dbranch, norm_sums, norm, p);
    // clang-format on
    LAUNCHED(product_layernorm_backward_kernel<Operand, ROWS>);
}

// The same from a product in memory.
template <typename Operand>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_backward_kernel(float *d, bool first, Operand *dbranch, float *norm_sums, LayerNorm<Operand> norm,
                              float *branch, int R, int C) {
    await_previous_kernel();
    const int r0 = blockIdx.x * norm.block_rows;
    layernorm_backward_rows<Operand, 0>(branch + (size_t)r0 * C, C, d, first, dbranch,
                                        norm_sums + (size_t)blockIdx.x * 2 * C, norm, r0, min(norm.block_rows, R - r0),
                                        C);
}

// d comes as what came down past the branch above, unless `first`, and with p, the branch's own product [R,C], is dy.
// It becomes dx; dbranch = dx * mask [R,C]. layernorm_sums() makes dw and db of norm_sums (layernorm_sums_size).
// branch [R,C]: scratch where not fused.
template <typename Operand>
static void residual_dropout_layernorm_backward(float *d, bool first, Operand *dbranch, float *norm_sums,
                                                LayerNorm<Operand> norm, Product<Operand> p, float *branch,
                                                cudaStream_t stream) {
    const int R = p.M, C = p.N;
    if (!fused(C, p.a_row)) {
        matmul_backward_input(branch, p.a, p.b, (const Operand *)nullptr, false, R, C, p.K, stream, p.a_row);
        layernorm_backward_kernel<Operand><<<blocks_for(R, norm.block_rows), NORM_THREADS, 0, stream>>>(
            d, first, dbranch, norm_sums, norm, branch, R, C);
        LAUNCHED(layernorm_backward_kernel<Operand>);
    } else if (norm.block_rows == 16) {
        product_layernorm_backward<Operand, 16>(d, first, dbranch, norm_sums, norm, p, stream);
    } else {
        product_layernorm_backward<Operand, 64>(d, first, dbranch, norm_sums, norm, p, stream);
    }
}

static void layernorm_sums(SumList *sums, float *dw, float *db, const float *norm_sums, int R, int C, int block_rows) {
    const int blocks = blocks_for(R, block_rows);
    sums_add(sums, dw, norm_sums, blocks, (size_t)2 * C, C);
    sums_add(sums, db, norm_sums + C, blocks, (size_t)2 * C, C);
}

// ---- softmax, cross-entropy, Adamax

// Elements from row to row of dlogits, whole 32 of them: V and zeros, so that rows begin at multiples of 16 bytes and
// end with them, as copies want.
constexpr int DLOGITS_ROW = (V + WARP - 1) / WARP * WARP;

constexpr int ROW_WARPS = 4; // rows, each of a warp, in a block

// losses[r] = -log softmax(logits[r])[targets[r]]
// dlogits[r] = (softmax(logits[r]) - one at the target) / R, unless dlogits is nullptr. A warp owns a row.
template <typename Operand>
static __global__ void softmax_cross_entropy_kernel(float *losses, Operand *dlogits, const float *logits,
                                                    const uint8_t *targets, int R) {
    await_previous_kernel();
    const int r = blockIdx.x * ROW_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (r >= R) return;
    float x[DLOGITS_ROW / WARP], max = -INFINITY, sum = 0; // the lane's share of the row
#pragma unroll
    for (int i = 0; i < DLOGITS_ROW / WARP; i++) {
        const int v = lane + i * WARP;
        x[i] = v < V ? logits[(size_t)r * V + v] : -INFINITY;
        max = fmaxf(max, x[i]);
    }
    max = warp_max(max);
    for (float &e : x) sum += e = expf(e - max);
    sum = warp_sum(sum);
    if (lane == 0) losses[r] = logf(sum) + max - logits[(size_t)r * V + targets[r]];
    const float scale = 1 / (sum * (float)R), one = 1 / (float)R;
#pragma unroll
    for (int i = 0; dlogits && i < DLOGITS_ROW / WARP; i++) {
        const int v = lane + i * WARP;
        dlogits[(size_t)r * DLOGITS_ROW + v] = from_float<Operand>(x[i] * scale - (v == targets[r] ? one : 0));
    }
}

// m->losses of the first R rows, with dlogits ready for the backward unless it is nullptr.
template <typename Operand>
static void softmax_cross_entropy(const DeviceModel *m, Operand *dlogits, const float *logits, int R) {
    const int blocks = blocks_for(R, ROW_WARPS), threads = ROW_WARPS * WARP;
    softmax_cross_entropy_kernel<Operand><<<blocks, threads, 0, m->stream>>>(m->losses, dlogits, logits, m->targets, R);
    LAUNCHED(softmax_cross_entropy_kernel<Operand>);
}

// Adamax, as PyTorch has it: exp_avg = 0.9 exp_avg + 0.1 g; exp_inf = max(0.999 exp_inf, |g| + 1e-8);
// params -= lr / (1 - 0.9^t) * exp_avg / exp_inf, t = 1 in the first step. Before that, where decays[] is 1, a weight
// loses `decay` of itself. A thread owns four elements of the flat arrays, whose length n is a multiple of 16; weights
// is the copy of params that products read, average that of the weights over the steps, or null. Nothing changes in a
// bad step, nor after one.
template <typename Operand>
static __global__ void adamax_kernel(float *params, Operand *weights, const float *grads, float *exp_avg,
                                     float *exp_inf, float *average, const uint8_t *decays, const DeviceState *state,
                                     int64_t n) {
    await_previous_kernel();
    const int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const bool skip = state->bad | (state->bad_step >= 0); // all loads go out at once
    const Four<float> g = get_four(grads + i, 0, 4);
    Four<float> avg = get_four(exp_avg + i, 0, 4), inf = get_four(exp_inf + i, 0, 4), p = get_four(params + i, 0, 4);
    Four<float> mean = average ? get_four(average + i, 0, 4) : p;
    const float decay = decays[i / 16] ? state->decay : 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        avg.at[e] = 0.9f * avg.at[e] + 0.1f * g.at[e];
        inf.at[e] = fmaxf(0.999f * inf.at[e], fabsf(g.at[e]) + 1e-8f);
        p.at[e] = p.at[e] - decay * p.at[e] - state->rate * (avg.at[e] / inf.at[e]);
        mean.at[e] += state->part * (p.at[e] - mean.at[e]);
    }
    if (skip) return;
    put_four(exp_avg + i, 0, 4, avg);
    put_four(exp_inf + i, 0, 4, inf);
    put_four(params + i, 0, 4, p);
    put_four(weights + i, 0, 4, p);
    if (average) put_four(average + i, 0, 4, mean);
}

template <typename Operand>
static void adamax(void *model) {
    const DeviceModel *m = (const DeviceModel *)model;
    float *const *flat = m->flat, *grads = flat[STATE_GRADS], *exp_avg = flat[STATE_EXP_AVG];
    adamax_kernel<Operand><<<blocks_for(m->layout.size, 4 * 256), 256, 0, m->stream>>>(
        flat[STATE_PARAMS], (Operand *)m->weights, grads, exp_avg, flat[STATE_EXP_INF], flat[STATE_AVERAGE], m->decays,
        m->state, m->layout.size);
    LAUNCHED(adamax_kernel<Operand>);
}

// ---- the model: memory

template <typename Operand>
struct LayerActivations { // what the backward needs of a layer's forward
    Attention<Operand> attention;
    float *normalized1, *rstd1; // [R,C], [R]
    float *normalized2, *rstd2; // [R,C], [R]
    uint8_t *kept1, *kept2;     // see LayerNorm
    Operand *ln1, *fc1, *ln2;   // [R,C]; [R,F] after ReLU; [R,C]
};

template <typename Operand>
struct LayerBackward {              // gradients that those of a layer's parameters are made of
    Operand *dqkv, *dout;           // [R,3C], [R,C] of the products with Wqkv and Wo
    Operand *dfc1, *dfc2;           // [R,F], [R,C]
    float *norm_sums1, *norm_sums2; // layernorm_sums_size
    float *rel_partial;             // relative_partial_size
};

template <typename Operand>
struct Gpt {
    DeviceModel device; // first
    AttentionShape shape;
    int block_rows; // of LayerNorm
    bool clusters;  // whether one kernel can do what lies between two attentions
    GptTensors params, grads;
    LayerActivations<Operand> acts[GPT_MAX_LAYERS];
    LayerBackward<Operand> back[2]; // of layer l in [l % 2], as the gradients of the layer above are still being made
    Operand *emb;                   // [R,C] the first layer's input
    float *logits;                  // [R,V]
    Operand *dlogits;               // [R,DLOGITS_ROW]
    float *dx;                      // [R,C] the gradient on its way down, past the branches
    float *branch;                  // [R,C] scratch, where products and LayerNorm are not fused
    Operand *dattn;                 // [R,C]
    Operand *dscores;               // attention_scores_size, of the layer at work, in place of those of the one above
    float *partial;                 // partial sums of the embedding's gradient
    float *partial_weights;         // and of the weights'
};

template <typename Operand>
static int gpt_layers(const Gpt<Operand> *m) {
    return m->device.config.sizes[GPT_LAYERS];
}

constexpr int LAYER_WEIGHTS = 4;

// The products that give the gradients of layer l's weights.
template <typename Operand>
static void gpt_layer_weights(const Gpt<Operand> *m, int l, WeightGradient<Operand> *list) {
    const int C = m->shape.C, F = m->device.config.sizes[GPT_HIDDEN];
    const LayerTensors *g = &m->grads.layers[l];
    const LayerActivations<Operand> *a = &m->acts[l];
    const LayerBackward<Operand> *back = &m->back[l % 2];
    const Operand *x = l > 0 ? m->acts[l - 1].ln2 : m->emb;
    list[0] = {g->qkv_w, g->qkv_b, back->dqkv, x, C, 3 * C};
    list[1] = {g->out_w, g->out_b, back->dout, a->attention.attn, C, C};
    list[2] = {g->fc1_w, g->fc1_b, back->dfc1, a->ln1, C, F};
    list[3] = {g->fc2_w, g->fc2_b, back->dfc2, a->fc1, F, C};
}

template <typename Operand>
static WeightGradient<Operand> gpt_head_weights(const Gpt<Operand> *m) {
    const Operand *x = m->acts[gpt_layers(m) - 1].ln2;
    return {m->grads.head_w, m->grads.head_b, m->dlogits, x, m->shape.C, V, DLOGITS_ROW};
}

template <typename Operand>
static double gpt_weights_scratch(const Gpt<Operand> *m, int R) {
    WeightGradient<Operand> layer[LAYER_WEIGHTS], head = gpt_head_weights(m);
    gpt_layer_weights(m, 0, layer);
    return fmax((double)matmul_weights_scratch(layer, LAYER_WEIGHTS, R), (double)matmul_weights_scratch(&head, 1, R));
}

template <typename Operand>
static void gpt_carve(void *model, DeviceArena *arena) {
    Gpt<Operand> *m = (Gpt<Operand> *)model;
    const ModelConfig *config = &m->device.config;
    const int *sizes = config->sizes, B = config->B, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN];
    const AttentionShape s = attention_shape(config->T, C, sizes[GPT_HEADS], sizes[GPT_REL], m->device.shared_limit);
    const double R = (double)B * s.T, scores = (double)attention_scores_size(B, s);
    m->shape = s;
    m->block_rows = layernorm_block_rows(&m->device, B * s.T);
    const double norm_sums = (double)layernorm_sums_size(B * s.T, C, m->block_rows);
    for (int l = 0; l < gpt_layers(m); l++) {
        LayerActivations<Operand> *a = &m->acts[l];
        device_take(arena, R * 3 * C, &a->attention.qkv);
        device_take(arena, scores, &a->attention.scores);
        device_take(arena, R * s.NH, &a->attention.log_sums);
        device_take(arena, R * C, &a->attention.attn, &a->ln1, &a->ln2, &a->normalized1, &a->normalized2);
        device_take(arena, R * F, &a->fc1);
        device_take(arena, R, &a->rstd1, &a->rstd2);
        device_take(arena, R * ((C + 3) / 4), &a->kept1, &a->kept2);
    }
    for (LayerBackward<Operand> &back : m->back) {
        device_take(arena, R * 3 * C, &back.dqkv);
        device_take(arena, R * C, &back.dout, &back.dfc2);
        device_take(arena, R * F, &back.dfc1);
        device_take(arena, norm_sums, &back.norm_sums1, &back.norm_sums2);
        device_take(arena, (double)relative_partial_size<Operand>(B, s), &back.rel_partial);
    }
    device_take(arena, R * C, &m->emb, &m->dx, &m->dattn);
    device_take(arena, R * V, &m->logits);
    device_take(arena, R * DLOGITS_ROW, &m->dlogits);
    device_take(arena, fused(C, F) ? 0 : R * C, &m->branch);
    device_take(arena, scores, &m->dscores);
    device_take(arena, (double)embedding_partial_size(B * s.T, C), &m->partial);
    device_take(arena, gpt_weights_scratch(m, B * s.T), &m->partial_weights);
}

// ---- the model: forward, backward, update

template <typename Operand>
static LayerNorm<Operand> gpt_norm1(const Gpt<Operand> *m, int l, bool training) {
    const LayerActivations<Operand> *a = &m->acts[l];
    const LayerTensors *p = &m->params.layers[l];
    const Dropout dropout = device_dropout(&m->device, training, 2 * l);
    return {a->ln1, a->normalized1, a->rstd1, a->kept1, p->ln1_w, p->ln1_b, dropout, m->block_rows};
}

template <typename Operand>
static LayerNorm<Operand> gpt_norm2(const Gpt<Operand> *m, int l, bool training) {
    const LayerActivations<Operand> *a = &m->acts[l];
    const LayerTensors *p = &m->params.layers[l];
    const Dropout dropout = device_dropout(&m->device, training, 2 * l + 1);
    return {a->ln2, a->normalized2, a->rstd2, a->kept2, p->ln2_w, p->ln2_b, dropout, m->block_rows};
}

// What the first branch of layer l branches off from: the output of the layer below, or the embedding.
template <typename Operand>
static Residual gpt_residual1(const Gpt<Operand> *m, int l) {
    if (l == 0) return {nullptr, nullptr, nullptr, m->params.emb, m->device.inputs};
    const LayerTensors *below = &m->params.layers[l - 1];
    return {m->acts[l - 1].normalized2, below->ln2_w, below->ln2_b, nullptr, nullptr};
}

// And the second: the output of LN1.
template <typename Operand>
static Residual gpt_residual2(const Gpt<Operand> *m, int l) {
    return {m->acts[l].normalized1, m->params.layers[l].ln1_w, m->params.layers[l].ln1_b, nullptr, nullptr};
}

#include "cuda/between_attentions.cuh"

// Whether these kernels are taken for R rows.
template <typename Operand>
static bool gpt_clusters(const Gpt<Operand> *m, int R) {
    return m->clusters && R % 64 == 0;
}

// Logits of m->device.inputs, B rows of T, with the dropout of the step if training.
template <typename Operand>
static void gpt_forward(Gpt<Operand> *m, int B, bool training) {
    const DeviceModel *device = &m->device;
    const AttentionShape s = m->shape;
    const int T = s.T, C = s.C, R = B * T, F = device->config.sizes[GPT_HIDDEN];
    const cudaStream_t stream = device->stream;
    const bool clusters = gpt_clusters(m, R);
    embedding_forward(m->emb, device->inputs, m->params.emb, R, C, stream);
    const Operand *x = m->emb;
    for (int l = 0; l < gpt_layers(m); l++) {
        const LayerTensors *p = &m->params.layers[l];
        const LayerActivations<Operand> *a = &m->acts[l];
        const Operand *qkv_w = weight<Operand>(device, p->qkv_w), *out_w = weight<Operand>(device, p->out_w);
        const Operand *fc1_w = weight<Operand>(device, p->fc1_w), *fc2_w = weight<Operand>(device, p->fc2_w);
        const Score<Operand> *scores_below = l > 0 ? m->acts[l - 1].attention.scores : nullptr;
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        if (l == 0 || !clusters) matmul_forward(a->attention.qkv, x, qkv_w, p->qkv_b, false, R, C, 3 * C, stream);
        attention_forward(a->attention, scores_below, weight<Operand>(device, p->rel), B, s, stream);
        x = a->ln2;
        if (clusters) {
            between_attentions_forward(m, l, R, training); // all that follows, and the next layer's qkv
            continue;
        }
        residual_dropout_layernorm_forward(gpt_norm1(m, l, training), gpt_residual1(m, l),
                                           linear_forward<Operand>(a->attention.attn, out_w, R, C, C), p->out_b,
                                           m->branch, device->state, T, stream);
        // x = LN2(x + dropout(fc2(relu(fc1(x)))))
        matmul_forward(a->fc1, (const Operand *)a->ln1, fc1_w, p->fc1_b, true, R, C, F, stream);
        residual_dropout_layernorm_forward(gpt_norm2(m, l, training), gpt_residual2(m, l),
                                           linear_forward<Operand>(a->fc1, fc2_w, R, F, C), p->fc2_b, m->branch,
                                           device->state, T, stream);
    }
    matmul_forward(m->logits, x, weight<Operand>(device, m->params.head_w), m->params.head_b, false, R, C, V, stream);
}

// Gradients of all parameters, after gpt_forward and softmax_cross_entropy of the same step. The main stream carries
// the gradient from the logits down to the embedding. What only the update waits for runs beside it on the side stream:
// the mean loss, and, a layer behind, the gradients of each layer's parameters. Those of the relative vectors have a
// stream of their own, or the side stream would be the longest path where clusters shorten the main stream.
template <typename Operand>
static void gpt_backward(Gpt<Operand> *m) {
    DeviceModel *device = &m->device;
    const AttentionShape s = m->shape;
    const int B = device->config.B, T = s.T, C = s.C, R = B * T, F = device->config.sizes[GPT_HIDDEN];
    const int L = gpt_layers(m);
    const cudaStream_t stream = device->stream, side = device->side;
    device_fork(device);
    const WeightGradient<Operand> head = gpt_head_weights(m);
    SumList head_sums = {};
    matmul_backward_weights(&head, 1, R, m->partial_weights, &head_sums, side);
    sum_parts(&head_sums, side);
    loss_kernel<<<1, 256, 0, side>>>(device->state, device->losses, R, device->config);
    LAUNCHED(loss_kernel);
    const bool clusters = gpt_clusters(m, R);
    Product<Operand> dy = // the one that gives the next LN2's dy
        linear_backward<Operand>(m->dlogits, DLOGITS_ROW, weight<Operand>(device, m->params.head_w), R, C, V);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *p = &m->params.layers[l], *g = &m->grads.layers[l];
        const LayerActivations<Operand> *a = &m->acts[l];
        const LayerBackward<Operand> *back = &m->back[l % 2];
        const Operand *qkv_w = weight<Operand>(device, p->qkv_w), *out_w = weight<Operand>(device, p->out_w);
        const Operand *fc1_w = weight<Operand>(device, p->fc1_w), *fc2_w = weight<Operand>(device, p->fc2_w);
        const Operand *dscores_above = l < L - 1 ? m->dscores : nullptr;
        if (clusters) {
            between_attentions_backward(m, l, dy, l == L - 1); // all down to dattn
        } else {
            // x = LN2(x + dropout(fc2(relu(fc1(x)))))
            residual_dropout_layernorm_backward(m->dx, l == L - 1, back->dfc2, back->norm_sums2, gpt_norm2(m, l, true),
                                                dy, m->branch, stream);
            matmul_backward_input<Operand>(back->dfc1, back->dfc2, fc2_w, a->fc1, false, R, F, C, stream);
            // x = LN1(x + dropout(out(attention(qkv(x)))))
            residual_dropout_layernorm_backward(m->dx, false, back->dout, back->norm_sums1, gpt_norm1(m, l, true),
                                                linear_backward<Operand>(back->dfc1, F, fc1_w, R, C, F), m->branch,
                                                stream);
            matmul_backward_input<Operand>(m->dattn, back->dout, out_w, nullptr, false, R, C, C, stream);
        }
        attention_backward<Operand>(back->dqkv, back->rel_partial, m->dscores, dscores_above, m->dattn, a->attention,
                                    weight<Operand>(device, p->rel), B, s, stream);
        dy = linear_backward<Operand>(back->dqkv, 3 * C, qkv_w, R, C, 3 * C);
        device_fork(device);
        device_follow(device, device->beside, stream);
        relative_vectors_backward<Operand>(g->rel, back->rel_partial, B, s, device->beside);
        WeightGradient<Operand> weights[LAYER_WEIGHTS];
        SumList sums = {};
        gpt_layer_weights(m, l, weights);
        matmul_backward_weights(weights, LAYER_WEIGHTS, R, m->partial_weights, &sums, side);
        layernorm_sums(&sums, g->ln1_w, g->ln1_b, back->norm_sums1, R, C, m->block_rows);
        layernorm_sums(&sums, g->ln2_w, g->ln2_b, back->norm_sums2, R, C, m->block_rows);
        sum_parts(&sums, side);
        device_follow(device, side, device->beside);
        if (l < L - 1) device_wait(device, (l + 1) % 2); // what the layer above had in m->back is free for that below
        device_mark(device, l % 2);
    }
    matmul_backward_input<Operand>(m->dx, dy.a, dy.b, nullptr, true, R, C, 3 * C, stream);
    embedding_backward(m->grads.emb, m->partial, m->dx, device->inputs, R, C, stream);
    device_wait(device, 0); // layer 0's, which comes last
}

// ---- what the recipe asks of a model (dev/recipe/model.h, ModelSpec; dev/cuda/device_model.cuh, DeviceHooks)

// Forward and losses of B windows of inputs and targets; when training, with dropout and the backward.
template <typename Operand>
static void gpt_enqueue(void *model, int B, bool training) {
    Gpt<Operand> *m = (Gpt<Operand> *)model;
    gpt_forward(m, B, training);
    softmax_cross_entropy(&m->device, training ? m->dlogits : nullptr, m->logits, B * m->shape.T);
    if (training) gpt_backward(m);
}

template <typename Operand>
static const DeviceHooks gpt_hooks = {
    .program = "train_gpt_music",
    .time_major = false,
    .layout = gpt_layout,
    .carve = gpt_carve<Operand>,
    .enqueue = gpt_enqueue<Operand>,
    .enqueue_update = adamax<Operand>,
};

template <typename Operand>
static void *gpt_create_as(const ModelConfig *config, char *error) {
    Gpt<Operand> *m = (Gpt<Operand> *)device_create(sizeof *m, config, &gpt_hooks<Operand>, error);
    if (!m) return nullptr;
    gpt_point(&m->params, &m->device.layout, gpt_layers(m), m->device.flat[STATE_PARAMS]);
    gpt_point(&m->grads, &m->device.layout, gpt_layers(m), m->device.flat[STATE_GRADS]);
    m->clusters = between_attentions_possible(m);
    return m;
}

template <typename Operand>
static int gpt_activations_as(Gpt<Operand> *m, Activation *list) {
    DeviceModel *device = &m->device;
    const int64_t B = device->config.B, T = m->shape.T, C = m->shape.C, F = device->config.sizes[GPT_HIDDEN], R = B * T;
    const int L = gpt_layers(m), count = 2 + 5 * L;
    if (!device->kept) device->kept = (float *)calloc((size_t)(R * (C + L * (6 * C + F) + V)), sizeof(float));
    if (!list) return device->kept ? count : -1;
    float *to = device->kept;
    auto keep = [&](const auto *x, int64_t width, const char *name, int l) {
        device_fetch(to, x, R * width, sizeof *x == sizeof(__nv_bfloat16));
        *list = {"", 3, {B, T, width}, to};
        snprintf(list++->name, sizeof list->name, name, l);
        to += R * width;
    };
    keep(m->emb, C, "act.emb", 0);
    for (int l = 0; l < L; l++) {
        const LayerActivations<Operand> *a = &m->acts[l];
        keep(a->attention.qkv, 3 * C, "act.layers.%d.qkv", l);
        keep(a->attention.attn, C, "act.layers.%d.attn", l);
        keep(a->ln1, C, "act.layers.%d.ln1", l);
        keep(a->fc1, F, "act.layers.%d.fc1", l);
        keep(a->ln2, C, "act.layers.%d.ln2", l);
    }
    keep(m->logits, V, "logits", 0);
    return count;
}

static void *gpt_create(const ModelConfig *config, char *error) {
    return strcmp(config->precision, "bf16") ? gpt_create_as<float>(config, error)
                                             : gpt_create_as<__nv_bfloat16>(config, error);
}

// The activations of the last step. Called with list NULL before it, it makes room for them.
static int gpt_activations(void *model, Activation *list) {
    return ((DeviceModel *)model)->bf16 ? gpt_activations_as((Gpt<__nv_bfloat16> *)model, list)
                                        : gpt_activations_as((Gpt<float> *)model, list);
}

static const ModelSpec gpt_spec = {
    GPT_MODEL_SPEC, DEVICE_MODEL_SPEC, .layout = gpt_layout, .create = gpt_create, .activations = gpt_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) {
    threads_wait_briefly(argv);
    return train_main(argc, argv, &gpt_spec);
}
#endif
