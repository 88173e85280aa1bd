// The Transformer on a GPU: every kernel, forward, backward, Adamax, and a training step as one CUDA graph. The CPU
// reference, dev/train_gpt_music.c, has the same functions in the same order, to be laid beside it.
//
// It promises the published model exactly (4,326,041 parameters in its default sizes), the same random numbers as the
// CPU, the same bytes from the same seed (no sum depends on which block comes first), and sizes as the flags allow.
// With
// --precision bf16 the operands of products are rounded to bf16 (8 bits) and multiplied by tensor cores; sums, softmax,
// LayerNorm, the loss, weights and optimizer stay in float. It leaves out more than one GPU. The recipe around a step
// (data, epochs, files, command line) is dev/train.h; matrix products are dev/matmul.cuh.
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
// A launch stays on the line of its kernel, for dev/cuda2cpp.sed, where clang-format would break it.

#include "dev/train.h" // first: it chooses the system's interfaces

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "dev/matmul.cuh"

enum { V = DATA_TOKENS, WARP = 32 };

// ---- sizes and parameters

enum { GPT_LAYERS, GPT_WIDTH, GPT_HEADS, GPT_HIDDEN, GPT_REL, N_SIZES };

static const SizeFlag gpt_size_flags[N_SIZES] = {
    {"layers", "number of layers", 8, 1, 1000},
    {"width", "width of the model, a multiple of the heads", 256, 1, 1 << 16},
    {"heads", "attention heads", 16, 1, 1 << 12},
    {"hidden", "width between the two products of a layer", 512, 1, 1 << 18},
    {"rel", "relative distances with a vector of their own", 240, 1, 1 << 20},
};

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

static bool gpt_check_sizes(const ModelConfig *config, char *error) {
    int C = config->sizes[GPT_WIDTH], H = config->sizes[GPT_HEADS];
    if (C % H) return fail(error, "--width %d is not a multiple of --heads %d", C, H);
    if ((double)config->B * config->T > 1 << 30) {
        return fail(error, "--batch %d windows of --window %d tokens are more than 2^30 tokens a step", config->B,
                    config->T);
    }
    return true;
}

// The sizes of a model file, from its tensors' shapes; heads = width / the last dimension of rel.
static bool gpt_sizes_of_file(const StFile *file, int *sizes, char *error) {
    const StTensor *emb = st_find(file, "emb.weight"), *rel = st_find(file, "layers.0.attn.rel"),
                   *fc1 = st_find(file, "layers.0.fc1.weight");
    const StTensor *needed[] = {emb, rel, fc1};
    const char *names[] = {"emb.weight", "layers.0.attn.rel", "layers.0.fc1.weight"};
    for (int i = 0; i < 3; i++) {
        if (!needed[i] && st_find(file, "lstm.weight_ih_l0")) {
            return fail(error, "it holds an LSTM; that is for train_lstm_music");
        }
        if (!needed[i]) return fail(error, "tensor '%s' of a Transformer is missing", names[i]);
        if (needed[i]->rank != 2)
            return fail(error, "tensor '%s' has %d dimensions instead of 2", names[i], needed[i]->rank);
        for (int d = 0; d < 2; d++) {
            if (needed[i]->shape[d] < 1 || needed[i]->shape[d] > 1 << 20) {
                return fail(error, "tensor '%s' has a dimension of %lld", names[i], (long long)needed[i]->shape[d]);
            }
        }
    }
    if (emb->shape[1] % rel->shape[1]) {
        return fail(error,
                    "the width %d is not a multiple of the head size %d, the last dimension of 'layers.0.attn.rel'",
                    (int)emb->shape[1], (int)rel->shape[1]);
    }
    char name[64];
    sizes[GPT_LAYERS] = 0;
    do {
        snprintf(name, sizeof name, "layers.%d.attn.qkv.weight", ++sizes[GPT_LAYERS]);
    } while (st_find(file, name) && sizes[GPT_LAYERS] < gpt_size_flags[GPT_LAYERS].max);
    sizes[GPT_WIDTH] = (int)emb->shape[1];
    sizes[GPT_HEADS] = (int)(emb->shape[1] / rel->shape[1]);
    sizes[GPT_HIDDEN] = (int)fc1->shape[0];
    sizes[GPT_REL] = (int)rel->shape[0];
    return true;
}

// ---- the state of training on the device

// What changes from step to step lies on the device, so that a step is always the same graph.
typedef struct {
    int64_t step, epoch, index; // as in StepPlan: of the next step
    float rate;                 // lr / (1 - 0.9^t), of the step at work
    double lr, loss, loss_sum;  // loss: of the step at work, the mean
    int64_t bad_step;           // the first step whose loss or gradient was not finite, or -1
    int bad;                    // this step is one
} DeviceState;

#define cuda_check(call) cuda_check_call(call, #call, __FILE__, __LINE__)

// What fails here is the machine or this program, not the user: say where, and end.
static void cuda_check_call(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, cudaGetErrorString(status));
    exit(1);
}

static int blocks_for(int64_t n, int each) { return (int)((n + each - 1) / each); }

static __device__ float warp_sum(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

static __device__ float warp_max(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    return x;
}

// ---- batches

// The training set on the device; see data.h.
typedef struct {
    const uint8_t *tokens;
    const int64_t *pieces, *first_window;
    int64_t n_pieces, n_windows;
} DeviceData;

// Thread b finds where row b of the batch begins: window philox_permute(step_in_epoch * B + b), as epoch_batch of
// data.h.
static __global__ void batch_starts_kernel(int64_t *starts, const DeviceState *state, DeviceData data, uint64_t seed,
                                           int B) {
    const int b = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (b >= B) return;
    const PhiloxKey key = philox_key(seed, PHILOX_WINDOWS, (uint32_t)state->epoch);
    const int64_t w = (int64_t)philox_permute(key, (uint64_t)data.n_windows, (uint64_t)(state->index * B + b));
    int64_t low = 0, high = data.n_pieces; // first_window[low] <= w < first_window[high]
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (data.first_window[middle] <= w) {
            low = middle;
        } else {
            high = middle;
        }
    }
    starts[b] = data.pieces[low] + (w - data.first_window[low]);
}

// inputs[b][t] and targets[b][t], a thread each, from the windows that begin at starts[b].
static __global__ void load_windows_kernel(uint8_t *inputs, uint8_t *targets, const uint8_t *tokens,
                                           const int64_t *starts, int R, int T) {
    const int r = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (r >= R) return;
    const uint8_t *token = tokens + starts[r / T] + r % T;
    inputs[r] = token[0];
    targets[r] = token[1];
}

// ---- embedding

// x[r] = emb[inputs[r]], in float and as an operand of products; a thread owns an element, a warp a run of a row.
template <typename Half>
static __global__ void embedding_forward_kernel(float *x, Half *x_half, const uint8_t *inputs, const float *emb,
                                                int64_t n, int C) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float value = emb[inputs[i / C] * C + i % C];
    x[i] = value;
    x_half[i] = from_float<Half>(value);
}

enum { EMBEDDING_ROWS = 2048 }; // rows whose gradients are summed together, in ascending order

// partial[chunk][v][c] = sum of dx[r][c] over the chunk's rows r whose token is v. Block (v, chunk) reads the chunk's
// tokens; each of its threads owns columns.
static __global__ void embedding_backward_kernel(float *partial, const float *dx, const uint8_t *inputs, int R, int C) {
    const int v = (int)blockIdx.x, first = (int)blockIdx.y * EMBEDDING_ROWS;
    const int end = min(first + EMBEDDING_ROWS, R);
    for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x) {
        float sum = 0;
        for (int r = first; r < end; r++) {
            if (inputs[r] == v) sum += dx[(int64_t)r * C + c];
        }
        partial[((int64_t)blockIdx.y * V + v) * C + c] = sum;
    }
}

// out[i] = the sum of partial[0..parts-1][i], in this order: the end of every sum that several blocks share.
static __global__ void sum_parts_kernel(float *out, const float *partial, int parts, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += partial[part * n + i];
    out[i] = sum;
}

static void embedding_backward(float *demb, float *partial, const float *dx, const uint8_t *inputs, int R, int C,
                               cudaStream_t stream) {
    const int chunks = blocks_for(R, EMBEDDING_ROWS);
    embedding_backward_kernel<<<dim3(V, chunks), 128, 0, stream>>>(partial, dx, inputs, R, C);
    sum_parts_kernel<<<blocks_for((int64_t)V * C, 256), 256, 0, stream>>>(demb, partial, chunks, (int64_t)V * C);
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

typedef struct { // dropout at one place of the model, with the CPU's very threshold; 0: none
    PhiloxKey key;
    uint32_t threshold; // words below it drop their channel
    float scale;        // of the others, 1/(1-p)
} Dropout;

// The factors, 0 or 1/(1-p), of channels 4g..4g+3 of position (b, t) in a step: one call of Philox gives all four.
static __device__ float4 dropout_four(Dropout dropout, int64_t step, int b, int t, int g) {
    const uint32_t threshold = dropout.threshold;
    const float scale = dropout.scale;
    if (threshold == 0) return make_float4(scale, scale, scale, scale);
    const Philox4 words = philox(dropout.key, (uint32_t)g, (uint32_t)t, (uint32_t)b, (uint32_t)step);
    return make_float4(words.x[0] >= threshold ? scale : 0, words.x[1] >= threshold ? scale : 0,
                       words.x[2] >= threshold ? scale : 0, words.x[3] >= threshold ? scale : 0);
}

static __device__ float element(float4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

enum { ROW_WARPS = 4 }; // rows, each of a warp, in a block

// y = LN(x + dropout(branch)) = normalized * w + b, normalized = (. - mean) * rstd, eps = 1e-5 (Ba et al., 2016).
// A warp owns a row, a lane groups of four channels of it. y may be x; y_half: y as an operand of products.
template <typename Half>
static __global__ void residual_dropout_layernorm_forward_kernel(float *y, Half *y_half, float *normalized, float *rstd,
                                                                 const float *x, const float *branch, const float *w,
                                                                 const float *b, Dropout dropout,
                                                                 const DeviceState *state, int R, int T, int C) {
    const int r = (int)(blockIdx.x * ROW_WARPS + threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    if (r >= R) return;
    const int64_t row = (int64_t)r * C;
    float sum = 0, squares = 0;
    for (int g = lane; 4 * g < C; g += WARP) {
        const float4 kept = dropout_four(dropout, state->step, r / T, r % T, g);
        for (int i = 0; i < 4 && 4 * g + i < C; i++) {
            const int64_t at = row + 4 * g + i;
            const float v = x[at] + branch[at] * element(kept, i);
            normalized[at] = v;
            sum += v;
        }
    }
    const float mean = warp_sum(sum) / (float)C;
    for (int g = lane; 4 * g < C; g += WARP) { // each lane what it has written itself
        for (int i = 0; i < 4 && 4 * g + i < C; i++) {
            const float v = normalized[row + 4 * g + i] - mean;
            squares += v * v;
        }
    }
    const float scale = 1 / sqrtf(warp_sum(squares) / (float)C + 1e-5f);
    for (int g = lane; 4 * g < C; g += WARP) {
        for (int i = 0; i < 4 && 4 * g + i < C; i++) {
            const int64_t at = row + 4 * g + i;
            const float v = (normalized[at] - mean) * scale, out = v * w[4 * g + i] + b[4 * g + i];
            normalized[at] = v;
            y[at] = out;
            y_half[at] = from_float<Half>(out);
        }
    }
    if (lane == 0) rstd[r] = scale;
}

template <typename Half>
static void residual_dropout_layernorm_forward(float *y, Half *y_half, float *normalized, float *rstd, const float *x,
                                               const float *branch, const float *w, const float *b, Dropout dropout,
                                               const DeviceState *state, int R, int T, int C, cudaStream_t stream) {
    residual_dropout_layernorm_forward_kernel<Half><<<blocks_for(R, ROW_WARPS), ROW_WARPS * WARP, 0, stream>>>(
        y, y_half, normalized, rstd, x, branch, w, b, dropout, state, R, T, C);
}

// Rows whose gradients of w and b are summed together: a fixed number, so that the order of sums is fixed.
enum { LAYERNORM_ROWS = 32 };

// d comes as dy and becomes dx; dbranch = dx * mask. With g = dy * w: dx = rstd * (g - mean(g) - normalized *
// mean(g * normalized)). A warp owns every ROW_WARPS-th of the block's rows. Before a row's dy is lost, its share of dw
// and db is added in the block's partial sums [2][C], where each thread owns columns, after all of its warps.
template <typename Half>
static __global__ void residual_dropout_layernorm_backward_kernel(float *d, Half *dbranch, float *partial,
                                                                  const float *normalized, const float *rstd,
                                                                  const float *w, Dropout dropout,
                                                                  const DeviceState *state, int R, int T, int C) {
    const int first = (int)blockIdx.x * LAYERNORM_ROWS, end = min(first + LAYERNORM_ROWS, R);
    for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x) {
        float dw = 0, db = 0;
        for (int r = first; r < end; r++) {
            const int64_t at = (int64_t)r * C + c;
            dw += d[at] * normalized[at];
            db += d[at];
        }
        partial[(int64_t)blockIdx.x * 2 * C + c] = dw;
        partial[(int64_t)blockIdx.x * 2 * C + C + c] = db;
    }
    __syncthreads();
    const int lane = (int)threadIdx.x % WARP;
    for (int r = first + (int)threadIdx.x / WARP; r < end; r += ROW_WARPS) {
        const int64_t row = (int64_t)r * C;
        float sum = 0, product = 0;
        for (int c = lane; c < C; c += WARP) {
            const float g = d[row + c] * w[c];
            sum += g;
            product += g * normalized[row + c];
        }
        const float mean = warp_sum(sum) / (float)C, mean_product = warp_sum(product) / (float)C, scale = rstd[r];
        __syncwarp(); // lanes have read what others now write
        for (int g = lane; 4 * g < C; g += WARP) {
            const float4 kept = dropout_four(dropout, state->step, r / T, r % T, g);
            for (int i = 0; i < 4 && 4 * g + i < C; i++) {
                const int64_t at = row + 4 * g + i;
                const float dx = scale * (d[at] * w[4 * g + i] - mean - normalized[at] * mean_product);
                d[at] = dx;
                dbranch[at] = from_float<Half>(dx * element(kept, i));
            }
        }
    }
}

// dw[c], db[c] = the sums of partial[chunk][0][c] and [1][c] over the chunks, in this order; a thread owns one of the
// two.
static __global__ void layernorm_partial_kernel(float *dw, float *db, const float *partial, int chunks, int C) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= 2 * C) return;
    float sum = 0;
    for (int chunk = 0; chunk < chunks; chunk++) sum += partial[(int64_t)chunk * 2 * C + i];
    if (i < C) {
        dw[i] = sum;
    } else {
        db[i - C] = sum;
    }
}

// partial: [R / LAYERNORM_ROWS rounded up, 2, C].
template <typename Half>
static void residual_dropout_layernorm_backward(float *d, Half *dbranch, float *dw, float *db, const float *normalized,
                                                const float *rstd, const float *w, Dropout dropout,
                                                const DeviceState *state, int R, int T, int C, float *partial,
                                                cudaStream_t stream) {
    const int chunks = blocks_for(R, LAYERNORM_ROWS);
    // clang-format off
    residual_dropout_layernorm_backward_kernel<Half><<<chunks, ROW_WARPS * WARP, 0, stream>>>(d, dbranch, partial, normalized, rstd, w, dropout, state, R, T, C);
    // clang-format on
    layernorm_partial_kernel<<<blocks_for(2 * C, 128), 128, 0, stream>>>(dw, db, partial, chunks, C);
}

// ---- softmax, cross-entropy, Adamax

// Elements from row to row of dlogits: more than V, so that every row begins at 16 bytes, as copies want it.
enum { DLOGITS_ROW = (V + 7) / 8 * 8 };

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

// One block: the mean of the losses in a fixed order, and whether it is finite; it also sets this step's rate.
static __global__ void loss_kernel(DeviceState *state, const float *losses, int R) {
    __shared__ double sums[256];
    double sum = 0;
    for (int r = (int)threadIdx.x; r < R; r += 256) sum += (double)losses[r];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        state->loss = sums[0] / R;
        state->bad = !isfinite(state->loss);
        state->rate = (float)(state->lr / (1 - pow(0.9, (double)(state->step + 1))));
    }
}

// Marks the step as bad where a gradient is not finite. A thread looks at every n-th gradient of the flat array.
static __global__ void check_finite_kernel(DeviceState *state, const float *grads, int64_t n) {
    bool bad = false;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        bad = bad || !isfinite(grads[i]);
    }
    if (bad) atomicOr(&state->bad, 1);
}

// Adamax, as PyTorch has it: exp_avg = 0.9 exp_avg + 0.1 g; exp_inf = max(0.999 exp_inf, |g| + 1e-8);
// params -= lr / (1 - 0.9^t) * exp_avg / exp_inf, t = 1 in the first step. A thread owns an element of the flat arrays;
// params_half is the copy that products read. Nothing changes in a bad step, nor after one.
template <typename Half>
static __global__ void adamax_kernel(float *params, Half *params_half, const float *grads, float *exp_avg,
                                     float *exp_inf, const DeviceState *state, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || state->bad || state->bad_step >= 0) return;
    const float g = grads[i], avg = 0.9f * exp_avg[i] + 0.1f * g, inf = fmaxf(0.999f * exp_inf[i], fabsf(g) + 1e-8f);
    const float p = params[i] - state->rate * (avg / inf);
    exp_avg[i] = avg;
    exp_inf[i] = inf;
    params[i] = p;
    params_half[i] = from_float<Half>(p);
}

// The end of a step, one thread: counts it, or remembers that it was the first bad one.
static __global__ void end_step_kernel(DeviceState *state) {
    if (state->bad_step < 0 && state->bad) state->bad_step = state->step;
    if (state->bad_step < 0) state->loss_sum += state->loss;
    state->step++;
    state->index++;
}

// out = in as operands of products
template <typename Half>
static __global__ void to_half_kernel(Half *out, const float *in, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<Half>(in[i]);
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

typedef struct {
    ModelConfig config;
    AttentionShape shape;
    ParamLayout layout;
    bool bf16;
    GptTensors params, grads; // on the device
    LayerActivations *acts;
    char *memory;                 // on the device, one block for all that follows
    float *flat[4];               // by STATE_*
    void *weights;                // h, the parameters as operands of products; the parameters themselves in float
    float *x;                     // [R,C] what flows from layer to layer
    void *emb;                    // h [R,C] the first layer's input
    float *logits, *losses;       // [R,V], [R]
    void *dlogits;                // h [R,DLOGITS_ROW]
    float *dx;                    // [R,C] the gradient on its way down
    float *branch;                // [R,C] what is added to x
    void *dbranch, *dattn, *wide; // h [R,C], h [R,C], h [R, max(3C, F)]
    void *dscores;                // h, of the layer at work, in place of those of the one above
    float *partial;               // partial sums, of whatever is at work
    DeviceState *state;
    DeviceData train;
    int64_t *starts;           // [B]
    uint8_t *inputs, *targets; // [R]
    uint8_t *test_tokens;      // the test set's, when it was first seen
    const Dataset *test;
    double bytes;
    cudaStream_t stream;
    cudaGraphExec_t step_graph; // a training step, once it was captured
    DeviceState expected;       // the host's idea of the next step
    float *host[4];             // copies for the recipe
    float *kept;                // activations for a dump, or NULL
    int64_t *host_starts;
    float *host_losses;
} Gpt;

static int gpt_layers(const Gpt *m) { return m->config.sizes[GPT_LAYERS]; }

// Pieces of the device's memory, each at a 256-byte boundary; without a base it only counts.
typedef struct {
    char *base;
    double used;
} DeviceArena;

static void *device_take(DeviceArena *arena, double count, size_t size) {
    void *piece = arena->base ? arena->base + (size_t)arena->used : nullptr;
    arena->used += ceil(count * (double)size / 256) * 256;
    return piece;
}

static float *device_floats(DeviceArena *arena, double count) {
    return (float *)device_take(arena, count, sizeof(float));
}

static double gpt_carve(Gpt *m, char *base) {
    const int *sizes = m->config.sizes;
    const int B = m->config.B, T = m->config.T, C = sizes[GPT_WIDTH], H = sizes[GPT_HEADS], F = sizes[GPT_HIDDEN];
    const double R = (double)B * T, wide = fmax(3 * C, F), n = (double)m->layout.size;
    const size_t half = m->bf16 ? 2 : 4;
    DeviceArena arena = {base, 0};
    for (int i = 0; i < 4; i++) m->flat[i] = device_floats(&arena, n);
    m->weights = m->bf16 ? device_take(&arena, n, 2) : m->flat[STATE_PARAMS];
    for (int l = 0; l < gpt_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->qkv = device_take(&arena, R * 3 * C, half);
        a->attn = device_take(&arena, R * C, half);
        a->ln1 = device_take(&arena, R * C, half);
        a->fc1 = device_take(&arena, R * F, half);
        a->ln2 = device_take(&arena, R * C, half);
        a->scores = device_take(&arena, (double)attention_scores_size(B, m->shape), half); // two bytes too, or four
        a->log_sums = device_floats(&arena, R * H);
        a->normalized1 = device_floats(&arena, R * C);
        a->rstd1 = device_floats(&arena, R);
        a->normalized2 = device_floats(&arena, R * C);
        a->rstd2 = device_floats(&arena, R);
    }
    m->x = device_floats(&arena, R * C);
    m->emb = device_take(&arena, R * C, half);
    m->logits = device_floats(&arena, R * V);
    m->losses = device_floats(&arena, R);
    m->dlogits = device_take(&arena, R * DLOGITS_ROW, half);
    m->dx = device_floats(&arena, R * C);
    m->branch = device_floats(&arena, R * C);
    m->dbranch = device_take(&arena, R * C, half);
    m->dattn = device_take(&arena, R * C, half);
    m->wide = device_take(&arena, R * wide, half);
    m->dscores = device_take(&arena, (double)attention_scores_size(B, m->shape), half);
    double partial = fmax(ceil(R / EMBEDDING_ROWS) * V * C, ceil(R / LAYERNORM_ROWS) * 2 * C);
    partial = fmax(partial, (double)(m->bf16 ? relative_partial_size<__nv_bfloat16>(B, m->shape)
                                             : relative_partial_size<float>(B, m->shape)));
    const int products[][2] = {{C, 3 * C}, {C, C}, {C, F}, {F, C}, {C, V}}; // of weight gradients
    for (const int *p : products) partial = fmax(partial, (double)matmul_scratch_size(B * T, p[0], p[1]));
    m->partial = device_floats(&arena, partial);
    m->state = (DeviceState *)device_take(&arena, 1, sizeof(DeviceState));
    m->starts = (int64_t *)device_take(&arena, B, sizeof(int64_t));
    m->inputs = (uint8_t *)device_take(&arena, R, 1);
    m->targets = (uint8_t *)device_take(&arena, R, 1);
    return arena.used;
}

static void gpt_destroy(void *model) {
    Gpt *m = (Gpt *)model;
    if (!m) return;
    if (m->step_graph) cuda_check(cudaGraphExecDestroy(m->step_graph));
    if (m->memory) cuda_check(cudaFree(m->memory));
    if (m->train.tokens) cuda_check(cudaFree((void *)m->train.tokens));
    if (m->train.pieces) cuda_check(cudaFree((void *)m->train.pieces));
    if (m->train.first_window) cuda_check(cudaFree((void *)m->train.first_window));
    if (m->test_tokens) cuda_check(cudaFree(m->test_tokens));
    if (m->stream) cuda_check(cudaStreamDestroy(m->stream));
    layout_free(&m->layout);
    for (int i = 0; i < 4; i++) free(m->host[i]);
    free(m->params.layers);
    free(m->grads.layers);
    free(m->acts);
    free(m->kept);
    free(m->host_starts);
    free(m->host_losses);
    free(m);
}

// The device that is there and what it can do, or a sentence.
static bool device_open(Gpt *m, char *error) {
    int count = 0;
    cudaDeviceProp about;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {
        return fail(error,
                    "the NVIDIA driver is missing or too old for this CUDA; install a newer one, or build for the "
                    "CPU: make DEVICE=cpu train_gpt_music");
    }
    if (status != cudaSuccess || count < 1) {
        return fail(error, "there is no GPU that CUDA can use (%s); build for the CPU: make DEVICE=cpu train_gpt_music",
                    status == cudaSuccess ? "none found" : cudaGetErrorString(status));
    }
    cuda_check(cudaGetDeviceProperties(&about, 0));
    if (m->bf16 && about.major < 8) {
        return fail(error,
                    "--precision bf16: %s has compute capability %d.%d, and bf16 needs 8.0; take --precision fp32",
                    about.name, about.major, about.minor);
    }
    size_t available = 0, total = 0;
    cuda_check(cudaMemGetInfo(&available, &total));
    m->bytes = gpt_carve(m, nullptr);
    fprintf(stderr, "%s: the model and its activations take %.2f GB of %.2f GB\n", about.name, m->bytes / 1e9,
            (double)available / 1e9);
    if (m->bytes <= (double)available) return true;
    Gpt smaller = *m; // what does not depend on the batch, and what a window takes
    smaller.config.B = 1;
    const double one = gpt_carve(&smaller, nullptr);
    smaller.config.B = 2;
    const double each = gpt_carve(&smaller, nullptr) - one, most = floor(((double)available - one) / each) + 1;
    if (most < 1)
        return fail(error, "the model does not fit into the GPU's memory even with --batch 1; make it smaller");
    return fail(error, "--batch %d: takes %.1f GB of the GPU's %.1f GB; --batch %.0f would fit", m->config.B,
                m->bytes / 1e9, (double)available / 1e9, most);
}

static void *gpt_create(const ModelConfig *config, char *error) {
    Gpt *m = (Gpt *)allocate("the model", 1, sizeof *m, error);
    if (!m) return nullptr;
    const int L = config->sizes[GPT_LAYERS];
    const double R = (double)config->B * config->T;
    m->config = *config;
    m->bf16 = !strcmp(config->precision, "bf16");
    gpt_layout(config->sizes, &m->layout);
    m->shape = attention_shape(config->T, config->sizes[GPT_WIDTH], config->sizes[GPT_HEADS], config->sizes[GPT_REL]);
    m->acts = (LayerActivations *)allocate("the model", L, sizeof(LayerActivations), error);
    m->params.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    m->grads.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    bool ok = m->acts && m->params.layers && m->grads.layers;
    for (int i = 0; i < 4; i++) {
        m->host[i] = (float *)allocate("the model", (double)m->layout.size, sizeof(float), error);
        ok = ok && m->host[i];
    }
    m->host_starts = (int64_t *)allocate("the batch", config->B, sizeof(int64_t), error);
    m->host_losses = (float *)allocate("the batch", R, sizeof(float), error);
    ok = ok && m->host_starts && m->host_losses;
    if (!ok || !device_open(m, error)) {
        gpt_destroy(m);
        return nullptr;
    }
    cuda_check(cudaMalloc((void **)&m->memory, (size_t)m->bytes));
    gpt_carve(m, m->memory);
    cuda_check(cudaStreamCreate(&m->stream));
    for (int i = 0; i < 4; i++) {
        cuda_check(cudaMemsetAsync(m->flat[i], 0, (size_t)m->layout.size * sizeof(float), m->stream));
    }
    gpt_point(&m->params, &m->layout, L, m->flat[STATE_PARAMS]);
    gpt_point(&m->grads, &m->layout, L, m->flat[STATE_GRADS]);
    m->expected.bad_step = -1;
    m->expected.step = -1; // none yet
    return m;
}

// ---- the model: forward, backward, update

static Dropout gpt_dropout(const Gpt *m, bool training, int site) {
    const double p = training ? m->config.dropout : 0;
    const Dropout dropout = {philox_key(m->config.seed, PHILOX_DROPOUT, (uint32_t)site), (uint32_t)(p * 4294967296.0),
                             (float)(1 / (1 - p))};
    return dropout;
}

// The operand of products that a parameter is.
template <typename Half>
static const Half *weight(const Gpt *m, const float *parameter) {
    return (const Half *)m->weights + (parameter - m->flat[STATE_PARAMS]);
}

// Logits of m->inputs, B rows of T, with the dropout of the step if training.
template <typename Half>
static void gpt_forward(Gpt *m, int B, bool training) {
    const int *sizes = m->config.sizes;
    const int T = m->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN], R = B * T;
    typedef typename AttentionTypes<Half>::Score Score;
    const GptTensors *p = &m->params;
    const cudaStream_t stream = m->stream;
    embedding_forward_kernel<Half><<<blocks_for((int64_t)R * C, 256), 256, 0, stream>>>(m->x, (Half *)m->emb, m->inputs,
                                                                                        p->emb, (int64_t)R * C, C);
    const Half *x = (const Half *)m->emb;
    for (int l = 0; l < gpt_layers(m); l++) {
        const LayerTensors *q = &p->layers[l];
        const LayerActivations *a = &m->acts[l];
        matmul_forward((Half *)a->qkv, x, weight<Half>(m, q->qkv_w), q->qkv_b, false, R, C, 3 * C, stream);
        attention_forward<Half>((Half *)a->attn, (Score *)a->scores, a->log_sums,
                                l > 0 ? (const Score *)m->acts[l - 1].scores : nullptr, (const Half *)a->qkv, q->rel, B,
                                m->shape, stream);
        matmul_forward(m->branch, (const Half *)a->attn, weight<Half>(m, q->out_w), q->out_b, false, R, C, C, stream);
        residual_dropout_layernorm_forward(m->x, (Half *)a->ln1, a->normalized1, a->rstd1, m->x, m->branch, q->ln1_w,
                                           q->ln1_b, gpt_dropout(m, training, 2 * l), m->state, R, T, C, stream);
        matmul_forward((Half *)a->fc1, (const Half *)a->ln1, weight<Half>(m, q->fc1_w), q->fc1_b, true, R, C, F,
                       stream);
        matmul_forward(m->branch, (const Half *)a->fc1, weight<Half>(m, q->fc2_w), q->fc2_b, false, R, F, C, stream);
        residual_dropout_layernorm_forward(m->x, (Half *)a->ln2, a->normalized2, a->rstd2, m->x, m->branch, q->ln2_w,
                                           q->ln2_b, gpt_dropout(m, training, 2 * l + 1), m->state, R, T, C, stream);
        x = (const Half *)a->ln2;
    }
    matmul_forward(m->logits, x, weight<Half>(m, p->head_w), p->head_b, false, R, C, V, stream);
}

// The losses of the batch and their mean; with dlogits ready for the backward if asked.
template <typename Half>
static void gpt_loss(Gpt *m, int R, bool backward) {
    softmax_cross_entropy_kernel<Half><<<blocks_for(R, ROW_WARPS), ROW_WARPS * WARP, 0, m->stream>>>(
        m->losses, backward ? (Half *)m->dlogits : nullptr, m->logits, m->targets, R);
    if (backward) loss_kernel<<<1, 256, 0, m->stream>>>(m->state, m->losses, R);
}

// Gradients of all parameters, after gpt_forward and gpt_loss of the same step.
template <typename Half>
static void gpt_backward(Gpt *m, int B) {
    const int *sizes = m->config.sizes;
    const int T = m->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN], R = B * T, L = gpt_layers(m);
    typedef typename AttentionTypes<Half>::Score Score;
    const GptTensors *p = &m->params, *g = &m->grads;
    const cudaStream_t stream = m->stream;
    Half *dbranch = (Half *)m->dbranch, *dattn = (Half *)m->dattn, *wide = (Half *)m->wide;
    const Half *dlogits = (const Half *)m->dlogits;
    matmul_backward_weight(g->head_w, g->head_b, dlogits, (const Half *)m->acts[L - 1].ln2, false, R, C, V, m->partial,
                           stream, DLOGITS_ROW);
    matmul_backward_input(m->dx, dlogits, weight<Half>(m, p->head_w), (const Half *)nullptr, false, R, C, V, stream,
                          DLOGITS_ROW);
    for (int l = L - 1; l >= 0; l--) {
        const LayerTensors *q = &p->layers[l], *d = &g->layers[l];
        const LayerActivations *a = &m->acts[l];
        const Half *x = (const Half *)(l > 0 ? m->acts[l - 1].ln2 : m->emb);
        // x = LN2(x + dropout(fc2(relu(fc1(x)))))
        residual_dropout_layernorm_backward(m->dx, dbranch, d->ln2_w, d->ln2_b, a->normalized2, a->rstd2, q->ln2_w,
                                            gpt_dropout(m, true, 2 * l + 1), m->state, R, T, C, m->partial, stream);
        matmul_backward_weight(d->fc2_w, d->fc2_b, dbranch, (const Half *)a->fc1, false, R, F, C, m->partial, stream);
        matmul_backward_input(wide, dbranch, weight<Half>(m, q->fc2_w), (const Half *)a->fc1, false, R, F, C, stream);
        matmul_backward_weight(d->fc1_w, d->fc1_b, wide, (const Half *)a->ln1, false, R, C, F, m->partial, stream);
        matmul_backward_input(m->dx, wide, weight<Half>(m, q->fc1_w), (const Half *)nullptr, true, R, C, F, stream);
        // x = LN1(x + dropout(out(attention(qkv(x)))))
        residual_dropout_layernorm_backward(m->dx, dbranch, d->ln1_w, d->ln1_b, a->normalized1, a->rstd1, q->ln1_w,
                                            gpt_dropout(m, true, 2 * l), m->state, R, T, C, m->partial, stream);
        matmul_backward_weight(d->out_w, d->out_b, dbranch, (const Half *)a->attn, false, R, C, C, m->partial, stream);
        matmul_backward_input(dattn, dbranch, weight<Half>(m, q->out_w), (const Half *)nullptr, false, R, C, C, stream);
        attention_backward<Half>(wide, m->partial, (Half *)m->dscores, (const Score *)a->scores,
                                 l < L - 1 ? (const Half *)m->dscores : nullptr, dattn, (const Half *)a->attn,
                                 a->log_sums, (const Half *)a->qkv, q->rel, B, m->shape, stream);
        relative_vectors_backward<Half>(d->rel, m->partial, B, m->shape, stream);
        matmul_backward_weight(d->qkv_w, d->qkv_b, wide, x, false, R, C, 3 * C, m->partial, stream);
        matmul_backward_input(m->dx, wide, weight<Half>(m, q->qkv_w), (const Half *)nullptr, true, R, C, 3 * C, stream);
    }
    embedding_backward(g->emb, m->partial, m->dx, m->inputs, R, C, stream);
    check_finite_kernel<<<256, 256, 0, stream>>>(m->state, m->flat[STATE_GRADS], m->layout.size);
}

// The next batch, forward, loss and backward of the step in m->state.
template <typename Half>
static void gpt_enqueue_gradients(Gpt *m) {
    const int B = m->config.B, T = m->config.T, R = B * T;
    batch_starts_kernel<<<blocks_for(B, 64), 64, 0, m->stream>>>(m->starts, m->state, m->train, m->config.seed, B);
    load_windows_kernel<<<blocks_for(R, 256), 256, 0, m->stream>>>(m->inputs, m->targets, m->train.tokens, m->starts, R,
                                                                   T);
    gpt_forward<Half>(m, B, true);
    gpt_loss<Half>(m, R, true);
    gpt_backward<Half>(m, B);
}

template <typename Half>
static void gpt_enqueue_step(Gpt *m) {
    const int64_t n = m->layout.size;
    gpt_enqueue_gradients<Half>(m);
    adamax_kernel<Half><<<blocks_for(n, 256), 256, 0, m->stream>>>(m->flat[STATE_PARAMS], (Half *)m->weights,
                                                                   m->flat[STATE_GRADS], m->flat[STATE_EXP_AVG],
                                                                   m->flat[STATE_EXP_INF], m->state, n);
    end_step_kernel<<<1, 1, 0, m->stream>>>(m->state);
}

// ---- what the recipe asks of a model (train.h, ModelSpec)

static DeviceState gpt_read_state(Gpt *m) { // waits for the device
    DeviceState state;
    cuda_check(cudaMemcpyAsync(&state, m->state, sizeof state, cudaMemcpyDeviceToHost, m->stream));
    cuda_check(cudaStreamSynchronize(m->stream));
    return state;
}

static void gpt_write_state(Gpt *m, DeviceState state) {
    cuda_check(cudaMemcpyAsync(m->state, &state, sizeof state, cudaMemcpyHostToDevice, m->stream));
    cuda_check(cudaStreamSynchronize(m->stream));
    m->expected = state;
}

// The device counts steps by itself; only where the plan is another, at an epoch's beginning or after a resume, is it
// told.
static void gpt_expect(Gpt *m, const StepPlan *plan) {
    DeviceState *e = &m->expected;
    if (e->step != plan->step || e->epoch != plan->epoch || e->index != plan->index || e->lr != plan->lr) {
        DeviceState state = gpt_read_state(m);
        state.step = plan->step;
        state.epoch = plan->epoch;
        state.index = plan->index;
        state.lr = plan->lr;
        gpt_write_state(m, state);
    }
}

static void gpt_train_step(void *model, const StepPlan *plan) {
    Gpt *m = (Gpt *)model;
    gpt_expect(m, plan);
    if (!m->step_graph) {
        cudaGraph_t graph;
        cuda_check(cudaStreamBeginCapture(m->stream, cudaStreamCaptureModeThreadLocal));
        if (m->bf16) {
            gpt_enqueue_step<__nv_bfloat16>(m);
        } else {
            gpt_enqueue_step<float>(m);
        }
        cuda_check(cudaStreamEndCapture(m->stream, &graph));
        cuda_check(cudaGraphInstantiate(&m->step_graph, graph, 0));
        cuda_check(cudaGraphDestroy(graph));
    }
    cuda_check(cudaGraphLaunch(m->step_graph, m->stream));
    m->expected.step++;
    m->expected.index++;
}

// Without the update, for a look at a step that went wrong.
static double gpt_gradients(void *model, const StepPlan *plan) {
    Gpt *m = (Gpt *)model;
    gpt_expect(m, plan);
    if (m->bf16) {
        gpt_enqueue_gradients<__nv_bfloat16>(m);
    } else {
        gpt_enqueue_gradients<float>(m);
    }
    return gpt_read_state(m).loss;
}

static TrainLoss gpt_get_loss(void *model) {
    const DeviceState state = gpt_read_state((Gpt *)model);
    const TrainLoss loss = {state.loss_sum, state.bad_step};
    return loss;
}

static void gpt_set_loss(void *model, double sum) {
    Gpt *m = (Gpt *)model;
    DeviceState state = m->expected.step < 0 ? m->expected : gpt_read_state(m);
    state.loss_sum = sum;
    state.bad_step = -1;
    gpt_write_state(m, state);
}

static void *device_copy(const void *bytes, size_t size) {
    void *copy = nullptr;
    cuda_check(cudaMalloc(&copy, size ? size : 1));
    cuda_check(cudaMemcpy(copy, bytes, size, cudaMemcpyHostToDevice));
    return copy;
}

static void gpt_set_data(void *model, const Dataset *train) {
    Gpt *m = (Gpt *)model;
    const size_t pieces = (size_t)(train->n_pieces + 1) * sizeof(int64_t);
    m->train.tokens = (const uint8_t *)device_copy(train->tokens, (size_t)train->n_tokens);
    m->train.pieces = (const int64_t *)device_copy(train->pieces, pieces);
    m->train.first_window = (const int64_t *)device_copy(train->first_window, pieces);
    m->train.n_pieces = train->n_pieces;
    m->train.n_windows = train->n_windows;
}

static void gpt_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    Gpt *m = (Gpt *)model;
    const int T = m->config.T, R = n * T;
    if (m->test != test) {
        if (m->test_tokens) cuda_check(cudaFree(m->test_tokens));
        m->test_tokens = (uint8_t *)device_copy(test->tokens, (size_t)test->n_tokens);
        m->test = test;
    }
    cuda_check(cudaMemcpyAsync(m->starts, starts, (size_t)n * sizeof *starts, cudaMemcpyHostToDevice, m->stream));
    load_windows_kernel<<<blocks_for(R, 256), 256, 0, m->stream>>>(m->inputs, m->targets, m->test_tokens, m->starts, R,
                                                                   T);
    if (m->bf16) {
        gpt_forward<__nv_bfloat16>(m, n, false);
        gpt_loss<__nv_bfloat16>(m, R, false);
    } else {
        gpt_forward<float>(m, n, false);
        gpt_loss<float>(m, R, false);
    }
    cuda_check(
        cudaMemcpyAsync(m->host_losses, m->losses, (size_t)R * sizeof(float), cudaMemcpyDeviceToHost, m->stream));
    cuda_check(cudaStreamSynchronize(m->stream));
    for (int b = 0; b < n; b++) eval_add(add, m->host_losses + (size_t)b * T, test->tokens + starts[b] + 1, T);
}

static float *gpt_state(void *model, int which) {
    Gpt *m = (Gpt *)model;
    cuda_check(cudaMemcpyAsync(m->host[which], m->flat[which], (size_t)m->layout.size * sizeof(float),
                               cudaMemcpyDeviceToHost, m->stream));
    cuda_check(cudaStreamSynchronize(m->stream));
    return m->host[which];
}

static void gpt_state_changed(void *model) {
    Gpt *m = (Gpt *)model;
    const int64_t n = m->layout.size;
    for (int i = STATE_PARAMS; i <= STATE_EXP_INF; i++) {
        cuda_check(
            cudaMemcpyAsync(m->flat[i], m->host[i], (size_t)n * sizeof(float), cudaMemcpyHostToDevice, m->stream));
    }
    if (m->bf16) {
        // clang-format off
        to_half_kernel<__nv_bfloat16><<<blocks_for(n, 256), 256, 0, m->stream>>>((__nv_bfloat16 *)m->weights, m->flat[STATE_PARAMS], n);
        // clang-format on
    }
    cuda_check(cudaStreamSynchronize(m->stream));
}

// count numbers at `from` on the device, float or bf16, as floats at `to`
static void gpt_fetch(Gpt *m, float *to, const void *from, int64_t count, bool bf16) {
    cuda_check(cudaMemcpy(to, from, (size_t)count * (bf16 ? 2 : 4), cudaMemcpyDeviceToHost));
    (void)m;
    for (int64_t i = count - 1; bf16 && i >= 0; i--) { // widened in place, from the end
        uint16_t half;
        memcpy(&half, (const char *)to + 2 * i, 2);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(to + i, &bits, 4);
    }
}

// The activations of the last step. Called with list NULL before it, it makes room for them.
static int gpt_activations(void *model, Activation *list) {
    Gpt *m = (Gpt *)model;
    const int *sizes = m->config.sizes;
    const int64_t B = m->config.B, T = m->config.T, C = sizes[GPT_WIDTH], F = sizes[GPT_HIDDEN], R = B * T;
    const int L = gpt_layers(m), count = 2 + 5 * L;
    if (!m->kept) m->kept = (float *)calloc((size_t)(R * (C + L * (6 * C + F) + V)), sizeof(float));
    if (!m->kept) return -1;
    if (!list) return count;
    float *to = m->kept;
    cuda_check(cudaStreamSynchronize(m->stream));
    for (int i = 0; i < count; i++) {
        const int l = (i - 1) / 5, which = (i - 1) % 5;
        const char *names[] = {"qkv", "attn", "ln1", "fc1", "ln2"};
        const LayerActivations *a = &m->acts[l < L ? l : 0];
        const void *data[] = {a->qkv, a->attn, a->ln1, a->fc1, a->ln2};
        const int64_t widths[] = {3 * C, C, C, F, C};
        const bool inner = i > 0 && i < count - 1;
        const int64_t width = inner ? widths[which] : i == 0 ? C : (int64_t)V;
        gpt_fetch(m, to, inner ? data[which] : i == 0 ? m->emb : m->logits, R * width, m->bf16 && i < count - 1);
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

// Three times the forward's products; attention's three (q.k, q.rel, a.v) below the diagonal only.
static double gpt_step_flops(const ModelConfig *config) {
    const double B = config->B, T = config->T, L = config->sizes[GPT_LAYERS], C = config->sizes[GPT_WIDTH],
                 F = config->sizes[GPT_HIDDEN];
    return 3 * (2 * B * T * (L * (4 * C * C + 2 * C * F) + C * V) + L * 3 * 2 * B * (T * (T + 1) / 2) * C);
}

#ifdef CUDA_EMU
#define DEVICE_NAME "emu"
#else
#define DEVICE_NAME "cuda"
#endif

static ModelSpec gpt_spec_make(void) {
    ModelSpec s;
    memset(&s, 0, sizeof s);
    s.name = "gpt";
    s.device = DEVICE_NAME;
    s.precisions = "bf16|fp32";
    s.size_flags = gpt_size_flags;
    s.n_sizes = N_SIZES;
    s.lr = 1e-3;
    s.lr_decay = 1;
    s.lr_min = 0;
    s.check_sizes = gpt_check_sizes;
    s.layout = gpt_layout;
    s.sizes_of_file = gpt_sizes_of_file;
    s.step_flops = gpt_step_flops;
    s.create = gpt_create;
    s.destroy = gpt_destroy;
    s.state = gpt_state;
    s.state_changed = gpt_state_changed;
    s.set_data = gpt_set_data;
    s.train_step = gpt_train_step;
    s.get_loss = gpt_get_loss;
    s.set_loss = gpt_set_loss;
    s.eval_batch = gpt_eval_batch;
    s.gradients = gpt_gradients;
    s.activations = gpt_activations;
    return s;
}

static const ModelSpec gpt_spec = gpt_spec_make();

#ifndef TESTING
int main(int argc, char **argv) { return train_main(argc, argv, &gpt_spec); }
#endif
