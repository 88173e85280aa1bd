// The LSTM on a GPU: every kernel, forward, backward, Adamax, and a training step as one CUDA graph, in the order of
// train_gpt_music.cu. The CPU reference, dev/train_lstm_music.c, has the same functions in the same order.
//
// It promises the published model exactly (4,426,457 parameters in its default sizes), the same random numbers as the
// CPU, the same bytes from the same seed, and sizes as the flags allow. With --precision bf16 the operands of products
// are rounded to bf16 and multiplied by tensor cores; sums, the cell state, gates, LayerNorm, the loss, weights and
// optimizer stay in float. It leaves out more than one GPU. The recipe around a step (data, epochs, files, command
// line) is dev/recipe/train.h, what both CUDA trainers share dev/cuda/device_model.cuh; matrix products are
// dev/cuda/matmul.cuh.
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
// Shapes: B batch, T positions, R = B*T rows, E embedding width, H units of a layer, L layers, V = 153 tokens. Row r is
// position t = r / B of window b = r % B: the windows' rows of one time step lie side by side, unlike in the files.
// All matrices are row-major; a linear layer's weight is [out, in]. Gradients are set (=) in every step.
// A template parameter Half is the type of the operands of products: float, or __nv_bfloat16.
// A launch stays on the line of its kernel, for dev/emu/cuda2cpp.sed, where clang-format would break it.

#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cuda/device_model.cuh"
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
//
// Layer 0's input product is a table [V,4H], a row for every token, whatever the batch: the recurrence looks it up. Its
// gradient is a table too: the sums of the gates' gradients over each token's rows.

// out[j] = a[j] + b[j], the sum of a layer's two biases; a thread owns an element.
static __global__ void add_biases_kernel(float *out, const float *a, const float *b, int n) {
    const int j = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (j < n) out[j] = a[j] + b[j];
}

enum { EMBEDDING_ROWS = 2048 }; // rows whose gradients are summed together, in ascending order

// partial[chunk][v][c] = sum of d[r][c] over the chunk's rows r whose token is v. Block (chunk, v, 256 columns) first
// lists those rows, in order: a warp looks at 256 tokens, in eight runs of 32. Then each thread owns a column.
template <typename Half>
static __global__ void __launch_bounds__(256)
    embedding_backward_kernel(float *partial, const Half *d, const uint8_t *inputs, int R, int C) {
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
    for (int i = 0; i < total; i++) sum += to_float(d[(int64_t)list[i] * C + c]);
    partial[((int64_t)blockIdx.x * V + v) * C + c] = sum;
}

static size_t embedding_partial_size(int R, int C) { return (size_t)blocks_for(R, EMBEDDING_ROWS) * V * C; }

// dtable [V,C] = the sums of d's rows, of C, by token
template <typename Half>
static void embedding_backward(float *dtable, float *partial, const Half *d, const uint8_t *inputs, int R, int C,
                               cudaStream_t stream) {
    const int chunks = blocks_for(R, EMBEDDING_ROWS);
    const dim3 blocks(chunks, V, blocks_for(C, 256));
    SumList sums = {};
    embedding_backward_kernel<Half><<<blocks, 256, 0, stream>>>(partial, d, inputs, R, C);
    sums_add(&sums, dtable, partial, chunks, (size_t)V * C, (size_t)V * C);
    sum_parts(&sums, stream);
}

// ---- the recurrence
//
// In each layer, for t = 0, 1, ..., with h and c zero before, and the rows of W and bias in the order i, f, g, o:
//     i, f, o = sigmoid(W_ih x_t + bias + W_hh h_(t-1)), g = tanh(likewise)
//     c_t = f c_(t-1) + i g,  h_t = o tanh(c_t),  the layer above reads dropout(h_t)
// and back, t = T-1, T-2, ..., with dgates the gradients of the sums:
//     dh_t = dropout(dx_t) + dgates_(t+1) W_hh,  dx_t from above: of the layer above dgates_t W_ih
//     dc_t = dc_(t+1) f_(t+1) + dh_t o (1 - tanh(c_t)^2)
// Layer 0's input product is a table [V,4H] with a row for every token.
//
// Two sets of kernels. The plain one takes any size, in both precisions: a launch for each time step of each layer, the
// input products of a layer beforehand, all time steps at once. At batch 8 a step's product takes less time than its
// launch, so bf16 models that fit in the GPU have a fast one, a single launch in which all weights stay in registers.

// All begin at multiples of 16 bytes.
template <typename Half>
struct LayerRecurrence {
    const Half *w_ih, *w_hh; // [4H,H], [4H,H]; w_ih and bias are in the table for layer 0
    const float *bias;       // [4H] the sum of the two
    Dropout dropout;
    float *gates; // [R,4H] i, f, g, o, for the backward: the plain kernels' [gate][unit], the fast ones' [unit][gate]
    float *c;     // [R,H]
    Half *h, *x;  // [R,H], x = dropout(h)
    Half *dgates; // [R,4H] gradients of the gates' sums, [gate][unit]
    float *dc;    // [B,H] scratch
};

typedef struct {
    int B, T, H, L;
} RecurrenceShape;

static __device__ float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }
static __device__ float tangent(float x) { return 2 * sigmoid(2 * x) - 1; } // tanh, to about 1e-7

typedef struct {
    float i, f, g, o;
} Gates;

// What comes from dh_t and dc_t; *dc becomes the gradient of c_(t-1).
static __device__ Gates cell_backward(Gates gate, float *dc, float dh, float c, float c_before) {
    const float tanh_c = tangent(c), dc_t = *dc + dh * gate.o * (1 - tanh_c * tanh_c);
    *dc = dc_t * gate.f;
    return {dc_t * gate.g * gate.i * (1 - gate.i), dc_t * c_before * gate.f * (1 - gate.f),
            dc_t * gate.i * (1 - gate.g * gate.g), dh * tanh_c * gate.o * (1 - gate.o)};
}

// The factor, 0 or 1/(1-p), of unit u
static __device__ float dropout_one(Dropout dropout, const DeviceState *state, int b, int t, int u) {
    const Four<float> kept = dropout_four(dropout, state->step, b, t, u / 4);
    return u % 4 == 0 ? kept.at[0] : u % 4 == 1 ? kept.at[1] : u % 4 == 2 ? kept.at[2] : kept.at[3];
}

// ---- the recurrence, plain: any size

enum { STEP_UNITS = 8, STEP_WINDOWS = 8 }; // of a block

// Step t of a layer. A warp owns a unit, in 8 windows: its lanes share k, each has sums for 4 gates x 8 windows. They
// exchange halves of their sums, then quarters, ..., until lane 4 w + gate has the whole sum of one. Input products:
// rows of `in`, of the token if there are tokens; `in` may be gates.
template <typename Half>
static __global__ void __launch_bounds__(256)
    recurrence_step_forward(LayerRecurrence<Half> a, const float *in, const uint8_t *tokens, const DeviceState *state,
                            int B, int H, int t) {
    const int lane = (int)threadIdx.x % WARP, u = (int)blockIdx.x * STEP_UNITS + (int)threadIdx.x / WARP;
    const int b0 = (int)blockIdx.y * STEP_WINDOWS;
    if (u >= H) return;
    float sum[4 * STEP_WINDOWS];
#pragma unroll
    for (int i = 0; i < 4 * STEP_WINDOWS; i++) sum[i] = 0;
    const Half *h_before = a.h + (int64_t)(t - 1) * B * H;
    for (int k = lane; k < H && t > 0; k += WARP) {
        float w[4];
#pragma unroll
        for (int gate = 0; gate < 4; gate++) w[gate] = to_float(a.w_hh[((int64_t)gate * H + u) * H + k]);
#pragma unroll
        for (int i = 0; i < STEP_WINDOWS; i++) { // those past the last window work on it in vain
            const float h = to_float(h_before[(int64_t)min(b0 + i, B - 1) * H + k]);
#pragma unroll
            for (int gate = 0; gate < 4; gate++) sum[4 * i + gate] = fmaf(w[gate], h, sum[4 * i + gate]);
        }
    }
#pragma unroll
    for (int level = 1; level <= 5; level++) {
        const int half = WARP >> level;
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < WARP / 2; i++) {
            if (i >= half) continue;
            const float mine = upper ? sum[i + half] : sum[i], yours = upper ? sum[i] : sum[i + half];
            sum[i] = mine + __shfl_xor_sync(~0u, yours, half);
        }
    }
    const int gate = lane % 4, b = b0 + lane / 4;
    const int64_t r = (int64_t)t * B + b, at = r * H + u;
    const float z = b < B ? sum[0] + in[((tokens ? tokens[r] : r) * 4 + gate) * H + u] : 0;
    const float value = gate == 2 ? tangent(z) : sigmoid(z);
    const float i = __shfl_sync(~0u, value, 0, 4), f = __shfl_sync(~0u, value, 1, 4), g = __shfl_sync(~0u, value, 2, 4),
                o = __shfl_sync(~0u, value, 3, 4);
    if (b >= B) return;
    a.gates[(r * 4 + gate) * H + u] = value;
    if (gate > 0) return;
    const float c = t > 0 ? f * a.c[at - (int64_t)B * H] + i * g : i * g;
    const Half h = from_float<Half>(o * tangent(c));
    a.c[at] = c;
    a.h[at] = h;
    a.x[at] = from_float<Half>(to_float(h) * dropout_one(a.dropout, state, b, t, u));
}

// Step t of a layer, back; dx [R,H] from above. A block owns 8 units, in 8 windows. A thread sums every 32nd k of a
// unit's column, so that 8 adjacent lanes read adjacent weights; 4 lanes and 8 warps hold parts of one sum.
template <typename Half>
static __global__ void __launch_bounds__(256)
    recurrence_step_backward(LayerRecurrence<Half> a, const float *dx, const DeviceState *state, int B, int T, int H,
                             int t) {
    __shared__ float parts[8][STEP_WINDOWS][STEP_UNITS];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int u0 = (int)blockIdx.x * STEP_UNITS, b0 = (int)blockIdx.y * STEP_WINDOWS;
    float sum[STEP_WINDOWS];
#pragma unroll
    for (int i = 0; i < STEP_WINDOWS; i++) sum[i] = 0;
    const Half *w = a.w_hh + min(u0 + lane % 8, H - 1), *dgates_after = a.dgates + (int64_t)(t + 1) * B * 4 * H;
    for (int k = warp * 4 + lane / 8; k < 4 * H && t < T - 1; k += 32) {
        const float w_k = to_float(w[(int64_t)k * H]);
#pragma unroll
        for (int i = 0; i < STEP_WINDOWS; i++) {
            sum[i] = fmaf(w_k, to_float(dgates_after[(int64_t)min(b0 + i, B - 1) * 4 * H + k]), sum[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < STEP_WINDOWS; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 8);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 16);
        if (lane < 8) parts[warp][i][lane] = sum[i];
    }
    __syncthreads();
    const int u = u0 + (int)threadIdx.x % 8, b = b0 + (int)threadIdx.x / 8;
    if (threadIdx.x >= STEP_UNITS * STEP_WINDOWS || u >= H || b >= B) return;
    const int64_t r = (int64_t)t * B + b, at = r * H + u;
    float dh = dx[at] * dropout_one(a.dropout, state, b, t, u);
    for (int part = 0; part < 8; part++) dh += parts[part][b - b0][u - u0];
    const float *gate = a.gates + r * 4 * H + u;
    float dc = t < T - 1 ? a.dc[(int64_t)b * H + u] : 0;
    const Gates d = cell_backward({gate[0], gate[H], gate[2 * H], gate[3 * H]}, &dc, dh, a.c[at],
                                  t > 0 ? a.c[at - (int64_t)B * H] : 0);
    a.dc[(int64_t)b * H + u] = dc;
    Half *to = a.dgates + r * 4 * H + u;
    to[0] = from_float<Half>(d.i);
    to[H] = from_float<Half>(d.f);
    to[2 * H] = from_float<Half>(d.g);
    to[3 * H] = from_float<Half>(d.o);
}

template <typename Half>
static void recurrence_forward_plain(const LayerRecurrence<Half> *layers, RecurrenceShape s, const float *table,
                                     const uint8_t *tokens, const DeviceState *state, cudaStream_t stream) {
    const dim3 blocks((unsigned)divide_up(s.H, STEP_UNITS), (unsigned)divide_up(s.B, STEP_WINDOWS));
    for (int l = 0; l < s.L; l++) {
        const LayerRecurrence<Half> *a = &layers[l];
        if (l > 0) matmul_forward(a->gates, a[-1].x, a->w_ih, a->bias, false, s.B * s.T, s.H, 4 * s.H, stream);
        for (int t = 0; t < s.T; t++) {
            recurrence_step_forward<Half><<<blocks, 256, 0, stream>>>(*a, l > 0 ? a->gates : table,
                                                                      l > 0 ? nullptr : tokens, state, s.B, s.H, t);
        }
    }
}

// d [R,H] comes as dx of the last layer; it is scratch.
template <typename Half>
static void recurrence_backward_plain(const LayerRecurrence<Half> *layers, RecurrenceShape s, float *d,
                                      const DeviceState *state, cudaStream_t stream) {
    const dim3 blocks((unsigned)divide_up(s.H, STEP_UNITS), (unsigned)divide_up(s.B, STEP_WINDOWS));
    for (int l = s.L - 1; l >= 0; l--) {
        const LayerRecurrence<Half> *a = &layers[l];
        for (int t = s.T - 1; t >= 0; t--) {
            recurrence_step_backward<Half><<<blocks, 256, 0, stream>>>(*a, d, state, s.B, s.T, s.H, t);
        }
        if (l == 0) break;
        matmul_backward_input(d, (const Half *)a->dgates, a->w_ih, (const Half *)nullptr, false, s.B * s.T, s.H,
                              4 * s.H, stream);
    }
}

// ---- the recurrence, fast: bf16, one launch for all layers and time steps
//
// A block owns 8 units of every layer, and holds in registers all weights that lead to them: forward their 32 gates'
// rows of W_hh, and of W_ih of the layers above the first, backward their 8 columns. In a round of the loop layer l
// does step t - l, so that all layers work at the same time, each on what the last round gave. Windows go by tiles of
// 8, the width of mma_bf16: weights are its A, h or dgates its B. Warps share k: each multiplies its part for all of
// the block's rows, the sums of the parts go through shared memory, and a thread for each layer, unit and window adds
// them, always in the same order, and does the rest of the cell. Blocks in several sets take windows of their own.
//
// What a round hands to other blocks (h, x; dgates) they take right from the tensor that the launch has to write
// anyway, and it is its own signal: it is filled with ABSENT before the launch (dgates by the forward, on its way), and
// who finds that reads again.
// There is no barrier, so a round's cost is: a store's way to the L2 cache, a load's way from there, products, sums,
// gates. All blocks run at the same time, or they would wait for ever: the launch is cooperative, which the GPU refuses
// otherwise, and recurrence_is_fast() asks beforehand.
//
// Traffic from L2, per block, tile of windows and round: forward 16 H bytes for each product (3 for two layers),
// backward 64 H for each layer. This is what limits large batches, and why blocks have not fewer units.

enum { TILE_WINDOWS = 8, BLOCK_UNITS = 8, PARTS = 8, BLOCK_THREADS = PARTS * WARP, FAST_LAYERS = 2, FAST_WIDTH = 512 };

// Two bf16 that rounding never gives: it makes every NaN 0x7FFF.
#define ABSENT 0xFFFFFFFFu

__device__ inline bool absent(uint4 v) { return v.x == ABSENT || v.z == ABSENT; } // 8 bytes come as a whole

template <int L>
struct FastRecurrence {
    LayerRecurrence<__nv_bfloat16> layers[L];
    RecurrenceShape s;
    int windows;           // of a set of blocks, a multiple of 8
    const float *table;    // forward: [V,4H]
    const uint8_t *tokens; // and [R]
    const float *dx;       // backward: [R,H]
};

// Between one look at what another block must give and the next. Should it never come, better an error than a hang.
__device__ inline void look_again(int *looks) {
    __nanosleep(20);
    if (++*looks > 1 << 26) __trap();
}

// Fragments of B: b[i][j] = 8 of k, from rows[i] + 256 j on, for j < n; zeros where there is no row. Of a window's row
// lane q of a group of 4 has k = 8 q .. 8 q + 7 of each 32, and warp w every 8th 32 from 32 w on. Waits for them: if
// `early`, when they will hardly be there, for one first, as reading all again and again would delay the stores.
template <int N, int KB>
__device__ inline void fetch(uint4 (&b)[N][KB], const __nv_bfloat16 *const (&rows)[N], int n, bool early) {
    bool missing = early && rows[0] && n > 0;
    int looks = 0;
    for (;;) {
        missing = absent(exchange_load(rows[0], missing));
        if (!__any_sync(~0u, missing)) break;
        look_again(&looks);
    }
    for (;;) {
        missing = false;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < KB; j++) {
                const uintptr_t from = (uintptr_t)rows[i] + PARTS * 64 * j; // of a row that may not be there
                b[i][j] = exchange_load((const void *)from, rows[i] && j < n);
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < KB; j++) missing |= absent(b[i][j]);
        }
        if (!__any_sync(~0u, missing)) break;
        look_again(&looks);
    }
}

// sum [16][8] += A B, 32 of k. The order of k within a sum is free, so lane q takes 8 q .. 8 q + 7 as its columns of
// two products: a[0..3] of row g, a[4..7] of row g + 8.
__device__ inline void multiply_32(float *sum, const uint32_t *a, uint4 b) {
    const uint32_t a_low[4] = {a[0], a[4], a[1], a[5]}, b_low[2] = {b.x, b.y};
    const uint32_t a_high[4] = {a[2], a[6], a[3], a[7]}, b_high[2] = {b.z, b.w};
    mma_bf16(sum, a_low, b_low);
    mma_bf16(sum, a_high, b_high);
}

// The same where A has 8 rows only: sum = B^T A^T, [8 columns of B][8 rows of A], and half of the zeros to keep.
__device__ inline void multiply_32_transposed(float *sum, const uint32_t *a, uint4 b) {
    const uint32_t a_low[4] = {b.x, 0, b.y, 0}, a_high[4] = {b.z, 0, b.w, 0};
    mma_bf16(sum, a_low, a);
    mma_bf16(sum, a_high, a + 2);
}

// A warp's sums [16][8], row by row
__device__ inline void store_part(float *part, const float *sum, int lane) {
    *(float2 *)&part[2 * lane] = make_float2(sum[0], sum[1]);
    *(float2 *)&part[64 + 2 * lane] = make_float2(sum[2], sum[3]);
}

// The values of lanes lane % 8 + 0, 8, 16, 24, four units of a window, in bf16
__device__ inline uint2 pack_units(float value, int lane) {
    const uint32_t mine = __bfloat16_as_ushort(from_float<__nv_bfloat16>(value));
    const uint32_t other = __shfl_xor_sync(~0u, mine, 8);
    const uint32_t pair = lane & 8 ? other | mine << 16 : mine | other << 16;
    const uint32_t pair_of_others = __shfl_xor_sync(~0u, pair, 16);
    return lane & 16 ? make_uint2(pair_of_others, pair) : make_uint2(pair, pair_of_others);
}

// Sums of 32 rows of each layer as two tiles of 16, rows [gate][4 units]. KB: 32s of k of a warp.
template <int L, int KB>
__global__ void __launch_bounds__(BLOCK_THREADS, 1)
    recurrence_forward_fast(FastRecurrence<L> p, const DeviceState *state) {
    __shared__ __align__(16) float parts[2][PARTS][L][2][128];
    const int B = p.s.B, T = p.s.T, H = p.s.H, lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int u0 = (int)blockIdx.x % (H / BLOCK_UNITS) * BLOCK_UNITS,
              first = (int)blockIdx.x / (H / BLOCK_UNITS) * p.windows;
    const int end = min(first + p.windows, B), g = lane / 4, k0 = warp * 32 + lane % 4 * 8;
    const int n = (H / 32 - warp + PARTS - 1) / PARTS;

    // Product 2 l: h_(t-1) of layer l, product 2 l - 1: x_t of the layer below
    uint32_t w[2 * L - 1][2][KB][8];
#pragma unroll
    for (int i = 0; i < 2 * L - 1; i++) {
#pragma unroll
        for (int m = 0; m < 4; m++) { // halves of tiles: rows g and g + 8
            const LayerRecurrence<__nv_bfloat16> &a = p.layers[(i + 1) / 2];
            const int row = (m % 2 * 2 + g / 4) * H + u0 + m / 2 * 4 + g % 4;
#pragma unroll
            for (int j = 0; j < KB; j++) {
                const __nv_bfloat16 *from = (i % 2 ? a.w_ih : a.w_hh) + (int64_t)row * H + k0 + PARTS * 32 * j;
                const uint4 four = j < n ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
                uint32_t *to = &w[i][m / 2][j][m % 2 * 4];
                to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
            }
        }
    }

    const int cell_layer = warp / 2, u = u0 + (int)threadIdx.x % 64 / 8; // of the thread, where warp < 2 L
    int buffer = 0;
    for (int round = 0; round < T + L - 1; round++) {
        for (int b0 = first; b0 < end; b0 += TILE_WINDOWS, buffer ^= 1) {
            // What the cell needs besides the products
            const int t_cell = round - cell_layer, b_cell = b0 + lane % 8;
            const bool works = warp < 2 * L && t_cell >= 0 && t_cell < T, exists = works && b_cell < end;
            const LayerRecurrence<__nv_bfloat16> &a = p.layers[min(cell_layer, L - 1)];
            const int64_t r = (int64_t)t_cell * B + b_cell, at = r * H + u;
            float z[4] = {0, 0, 0, 0}, c = 0, kept = 0;
            if (exists) {
                const float *in = cell_layer > 0 ? a.bias : p.table + (int64_t)p.tokens[r] * 4 * H;
                for (int gate = 0; gate < 4; gate++) z[gate] = in[gate * H + u];
                c = t_cell > 0 ? a.c[at - (int64_t)B * H] : 0;
                kept = dropout_one(a.dropout, state, b_cell, t_cell, u);
            }

            const __nv_bfloat16 *rows[2 * L - 1];
#pragma unroll
            for (int i = 0; i < 2 * L - 1; i++) {
                const int layer = (i + 1) / 2, t = round - layer, b = b0 + g; // of x_t, or h_(t-1)
                const bool there = b < end && t < T && t >= (i % 2 ? 0 : 1);
                const __nv_bfloat16 *from = i % 2 ? p.layers[layer - 1].x : p.layers[layer].h;
                rows[i] = there ? from + ((int64_t)(i % 2 ? t : t - 1) * B + b) * H + k0 : nullptr;
            }
            uint4 b[2 * L - 1][KB];
            fetch(b, rows, n, b0 == first);
            float sum[L][2][4] = {};
#pragma unroll
            for (int j = 0; j < KB; j++) {
#pragma unroll
                for (int i = 0; i < 2 * L - 1; i++) {
                    multiply_32(sum[(i + 1) / 2][0], w[i][0][j], b[i][j]);
                    multiply_32(sum[(i + 1) / 2][1], w[i][1][j], b[i][j]);
                }
            }
#pragma unroll
            for (int l = 0; l < L; l++) {
                store_part(parts[buffer][warp][l][0], sum[l][0], lane);
                store_part(parts[buffer][warp][l][1], sum[l][1], lane);
            }
            __syncthreads(); // one is enough: who writes to a buffer again has passed the barrier of the other

            if (!works) continue;
            for (int part = 0; part < PARTS; part++) {
                const float *mine = &parts[buffer][part][cell_layer][warp % 2][lane];
                for (int gate = 0; gate < 4; gate++) z[gate] += mine[32 * gate];
            }
            const float i = sigmoid(z[0]), f = sigmoid(z[1]), g_ = tangent(z[2]), o = sigmoid(z[3]);
            c = f * c + i * g_;
            const float h = to_float(from_float<__nv_bfloat16>(o * tangent(c)));
            const uint2 h_units = pack_units(h, lane), x_units = pack_units(h * kept, lane);
            if (!exists) continue;
            if (lane / 8 == 0) exchange_store(&a.h[at], h_units);
            if (lane / 8 == 1) exchange_store(&a.x[at - 1], x_units);
            a.c[at] = c;
            *(float4 *)&a.gates[4 * at] = make_float4(i, f, g_, o);
            *(uint2 *)&a.dgates[(4 * r + lane / 8) * H + u - lane / 8] = make_uint2(ABSENT, ABSENT); // for the backward
        }
    }
}

// Sums of 16 rows of each layer: dgates_(t+1) times the columns of W_hh, then of W_ih for dx_(t+1) of the layer below.
// KB: 128s of k of a warp.
template <int L, int KB>
__global__ void __launch_bounds__(BLOCK_THREADS, 1)
    recurrence_backward_fast(FastRecurrence<L> p, const DeviceState *state) {
    __shared__ __align__(16) float parts[2][PARTS][L][128];
    const int B = p.s.B, T = p.s.T, H = p.s.H, lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int u0 = (int)blockIdx.x % (H / BLOCK_UNITS) * BLOCK_UNITS,
              first = (int)blockIdx.x / (H / BLOCK_UNITS) * p.windows;
    const int end = min(first + p.windows, B), g = lane / 4, k0 = warp * 32 + lane % 4 * 8;
    const int n = (H / 8 - warp + PARTS - 1) / PARTS;

    // Pairs of k of a column: 8 columns of 32 rows go through shared memory, in the order in which ldmatrix takes rows
    uint32_t w[L][4 * KB][8];
    uint4 *staged = (uint4 *)parts[0][warp];
    const int k = warp * 32 + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
#pragma unroll
    for (int l = 0; l < L; l++) {
#pragma unroll
        for (int m = 0; m < (l > 0 ? 2 : 1); m++) {
            const __nv_bfloat16 *from = (m == 0 ? p.layers[l].w_hh : p.layers[l].w_ih) + u0;
            uint4 row[4 * KB];
#pragma unroll
            for (int j = 0; j < 4 * KB; j++) {
                row[j] = j < n ? *(const uint4 *)(from + (k + PARTS * 32 * j) * H) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int j = 0; j < 4 * KB; j++) {
                staged[lane] = row[j];
                __syncwarp();
                ldmatrix<4, true>(w[l][j] + 4 * m, &staged[lane]);
                __syncwarp();
            }
        }
    }

    const int cell_layer = warp / 2, u = u0 + (int)threadIdx.x % 64 / 8;
    int buffer = 0;
    for (int round = 0; round < T + L - 1; round++) {
        for (int b0 = first; b0 < end; b0 += TILE_WINDOWS, buffer ^= 1) {
            const int t_cell = T - 1 - round + (L - 1 - cell_layer), b_cell = b0 + lane % 8;
            const bool works = warp < 2 * L && t_cell >= 0 && t_cell < T, exists = works && b_cell < end;
            const LayerRecurrence<__nv_bfloat16> &a = p.layers[min(cell_layer, L - 1)];
            const int64_t r = (int64_t)t_cell * B + b_cell, at = r * H + u;
            float dx = 0, dc = 0, c = 0, c_before = 0, kept = 0;
            float4 gate = make_float4(0, 0, 0, 0);
            if (exists) {
                if (cell_layer == L - 1) dx = p.dx[at];
                if (t_cell < T - 1) dc = a.dc[(int64_t)b_cell * H + u];
                if (t_cell > 0) c_before = a.c[at - (int64_t)B * H];
                c = a.c[at];
                gate = *(const float4 *)&a.gates[4 * at];
                kept = dropout_one(a.dropout, state, b_cell, t_cell, u);
            }

            const __nv_bfloat16 *rows[L];
#pragma unroll
            for (int l = 0; l < L; l++) {
                const int t_after = T - round + (L - 1 - l), b = b0 + g;
                const bool there = b < end && t_after >= 0 && t_after < T;
                rows[l] = there ? p.layers[l].dgates + ((int64_t)t_after * B + b) * 4 * H + k0 : nullptr;
            }
            uint4 b[L][4 * KB];
            fetch(b, rows, n, b0 == first);
            float sum[L][2][4] = {}; // of even and of odd j: two chains of products are done sooner than one
#pragma unroll
            for (int j = 0; j < 4 * KB; j++) {
#pragma unroll
                for (int l = 1; l < L; l++) multiply_32(sum[l][j % 2], w[l][j], b[l][j]);
                multiply_32_transposed(sum[0][j % 2], w[0][j], b[0][j]);
            }
#pragma unroll
            for (int l = 0; l < L; l++) {
                for (int e = 0; e < 4; e++) sum[l][0][e] += sum[l][1][e];
                if (l > 0) store_part(parts[buffer][warp][l], sum[l][0], lane);
            }
            for (int e = 0; e < 2; e++) parts[buffer][warp][0][(2 * (lane % 4) + e) * 8 + g] = sum[0][0][e];
            __syncthreads();

            if (!works) continue;
            float dh = 0;
            for (int part = 0; part < PARTS; part++) {
                dh += parts[buffer][part][cell_layer][threadIdx.x % 64];
                if (cell_layer < L - 1) dx += parts[buffer][part][cell_layer + 1][64 + threadIdx.x % 64];
            }
            const Gates d = cell_backward({gate.x, gate.y, gate.z, gate.w}, &dc, dh + dx * kept, c, c_before);
            const float values[4] = {d.i, d.f, d.g, d.o};
#pragma unroll
            for (int i = 0; i < 4; i++) { // the threads of four units store a gate each
                const uint2 units = pack_units(values[i], lane);
                if (exists && lane / 8 == i) exchange_store(&a.dgates[(4 * r + i) * H + u - i], units);
            }
            if (exists) a.dc[(int64_t)b_cell * H + u] = dc;
        }
    }
}

// ---- the recurrence: which of the two, and the launches

// Up to three tensors of n x 16 bytes := ABSENT; blockIdx.y tells which.
static __global__ void __launch_bounds__(256) absent_kernel(uint4 *first, uint4 *second, uint4 *third, int64_t n) {
    uint4 *tensor = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
        tensor[i] = make_uint4(ABSENT, ABSENT, ABSENT, ABSENT);
    }
}

// How many sets of H / 8 blocks of this kernel run at the same time: 0 if not even one does.
template <typename Kernel>
static int recurrence_sets(Kernel *kernel, int H) {
    int device = 0, multiprocessors = 0, cooperative = 0, major = 0, blocks = 0;
    if (cudaGetDevice(&device) || cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) ||
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, BLOCK_THREADS, 0)) {
        cudaGetLastError(); // it is dealt with
        return 0;
    }
    return cooperative && major >= 8 ? multiprocessors * blocks / (H / BLOCK_UNITS) : 0;
}

template <int L, int KB>
static bool recurrence_fits(int H) {
    return recurrence_sets(recurrence_forward_fast<L, KB>, H) && recurrence_sets(recurrence_backward_fast<L, KB>, H);
}

// Are the fast kernels for this model on this GPU? For any batch: their time grows with it, but no faster than the
// plain ones'.
template <typename Half>
static bool recurrence_is_fast(RecurrenceShape s) {
    if (sizeof(Half) != sizeof(__nv_bfloat16) || s.L > FAST_LAYERS || s.H % 32 || s.H > FAST_WIDTH) return false;
    if (s.H <= 256) return s.L == 1 ? recurrence_fits<1, 1>(s.H) : recurrence_fits<2, 1>(s.H);
    return s.L == 1 ? recurrence_fits<1, 2>(s.H) : recurrence_fits<2, 2>(s.H);
}

// Windows of a set: tiles are dealt out evenly to as many sets as run.
template <int L>
static dim3 recurrence_deal(FastRecurrence<L> *p, int sets) {
    const int tiles = divide_up(p->s.B, TILE_WINDOWS);
    const int tiles_of_set = divide_up(tiles, sets < tiles ? sets : tiles);
    p->windows = tiles_of_set * TILE_WINDOWS;
    return dim3((unsigned)(divide_up(tiles, tiles_of_set) * (p->s.H / BLOCK_UNITS)));
}

template <int L>
static FastRecurrence<L> recurrence_arguments(const LayerRecurrence<__nv_bfloat16> *layers, RecurrenceShape s) {
    FastRecurrence<L> p = {};
    for (int l = 0; l < L; l++) p.layers[l] = layers[l];
    p.s = s;
    return p;
}

template <int L, int KB>
static void recurrence_forward_launch(const LayerRecurrence<__nv_bfloat16> *layers, RecurrenceShape s,
                                      const float *table, const uint8_t *tokens, const DeviceState *state,
                                      cudaStream_t stream) {
    FastRecurrence<L> p = recurrence_arguments<L>(layers, s);
    p.table = table;
    p.tokens = tokens;
    absent_kernel<<<dim3(256, 2 * L - 1), 256, 0, stream>>>((uint4 *)layers[0].h, (uint4 *)layers[0].x,
                                                            (uint4 *)layers[L - 1].h, (int64_t)s.B * s.T * s.H / 8);
    const dim3 blocks = recurrence_deal(&p, recurrence_sets(recurrence_forward_fast<L, KB>, s.H));
    void *arguments[] = {&p, &state};
    cudaLaunchCooperativeKernel(recurrence_forward_fast<L, KB>, blocks, dim3(BLOCK_THREADS), arguments, 0, stream);
}

template <int L, int KB>
static void recurrence_backward_launch(const LayerRecurrence<__nv_bfloat16> *layers, RecurrenceShape s, const float *dx,
                                       const DeviceState *state, cudaStream_t stream) {
    FastRecurrence<L> p = recurrence_arguments<L>(layers, s);
    p.dx = dx;
    const dim3 blocks = recurrence_deal(&p, recurrence_sets(recurrence_backward_fast<L, KB>, s.H));
    void *arguments[] = {&p, &state};
    cudaLaunchCooperativeKernel(recurrence_backward_fast<L, KB>, blocks, dim3(BLOCK_THREADS), arguments, 0, stream);
}

// gates, c, h, x of all layers, and what dgates must be for the backward, for tokens [R], time-major, and layer 0's
// input products table [V,4H]. fast: as recurrence_is_fast() says, or false; the backward must be told the same.
template <typename Half>
static void recurrence_forward(const LayerRecurrence<Half> *layers, RecurrenceShape s, bool fast, const float *table,
                               const uint8_t *tokens, const DeviceState *state, cudaStream_t stream) {
    if constexpr (sizeof(Half) == sizeof(__nv_bfloat16)) {
        auto launch = s.L == 1     ? s.H <= 256 ? recurrence_forward_launch<1, 1> : recurrence_forward_launch<1, 2>
                          : s.H <= 256 ? recurrence_forward_launch<2, 1>
                                   : recurrence_forward_launch<2, 2>;
        if (fast) return launch(layers, s, table, tokens, state, stream);
    }
    recurrence_forward_plain(layers, s, table, tokens, state, stream);
}

// dgates of all layers, once after each forward. d [R,H]: the gradient of the last layer's x; it is scratch from then
// on.
template <typename Half>
static void recurrence_backward(const LayerRecurrence<Half> *layers, RecurrenceShape s, bool fast, float *d,
                                const DeviceState *state, cudaStream_t stream) {
    if constexpr (sizeof(Half) == sizeof(__nv_bfloat16)) {
        auto launch = s.L == 1     ? s.H <= 256 ? recurrence_backward_launch<1, 1> : recurrence_backward_launch<1, 2>
                          : s.H <= 256 ? recurrence_backward_launch<2, 1>
                                   : recurrence_backward_launch<2, 2>;
        if (fast) return launch(layers, s, d, state, stream);
    }
    recurrence_backward_plain(layers, s, d, state, stream);
}

// ---- LayerNorm, ReLU, dropout
//
// y = dropout(relu(normalized * w + b)), normalized = (a - mean) * rstd, a = a product with its bias (Ba et al., 2016).
// A row, up to 2H, is wider than a block's tile, so these are kernels of their own, a warp a row.

template <typename Half>
struct LayerNorm {      // at one place of the model
    Half *y;            // [R,C]
    float *normalized;  // [R,C], comes as the product
    float *rstd;        // [R]
    const float *w, *b; // [C]
    Dropout dropout;
};

enum { NORM_THREADS = 256, NORM_ROWS = 16 }; // rows of a block, back: they share their sums of dw and db

template <typename Half>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_relu_dropout_forward_kernel(LayerNorm<Half> norm, const float *bias, const DeviceState *state, int R,
                                          int B, int C) {
    const int r = (int)(blockIdx.x * (NORM_THREADS / WARP) + threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    if (r >= R) return;
    float *row = norm.normalized + (int64_t)r * C, sum = 0, squares = 0;
    for (int g = lane; 4 * g < C; g += WARP) {
        const Four<float> add = get_four(bias, g, C);
        Four<float> a = get_four(row, g, C);
        for (int e = 0; e < 4; e++) {
            a.at[e] += add.at[e];
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
        const Four<float> kept = dropout_four(norm.dropout, state->step, r % B, r / B, g);
        Four<float> a = get_four(row, g, C), y;
        for (int e = 0; e < 4; e++) {
            a.at[e] = (a.at[e] - mean) * scale;
            const float v = a.at[e] * w.at[e] + b.at[e];
            y.at[e] = (v < 0 ? 0 : v) * kept.at[e]; // a NaN stays
        }
        put_four(row, g, C, a);
        put_four(norm.y + (int64_t)r * C, g, C, y);
    }
    if (lane == 0) norm.rstd[r] = scale;
}

// With dv = dy * mask where v = normalized * w + b > 0, and g = dv * w: dx = rstd * (g - mean(g) - normalized *
// mean(g * normalized)). dy [R,C] is used up; dx [R,C] is the operand of the products that follow. The block's rows'
// share of dw and db goes to sums [blocks][2][C], in which each thread owns columns.
template <typename Half>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_relu_dropout_backward_kernel(Half *dx, float *sums, float *dy, LayerNorm<Half> norm,
                                           const DeviceState *state, int R, int B, int C) {
    const int first = (int)blockIdx.x * NORM_ROWS, end = min(first + NORM_ROWS, R), lane = (int)threadIdx.x % WARP;
    for (int r = first + (int)threadIdx.x / WARP; r < end; r += NORM_THREADS / WARP) {
        const int64_t at = (int64_t)r * C;
        float sum = 0, product = 0;
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> n = get_four(norm.normalized + at, g, C), w = get_four(norm.w, g, C);
            const Four<float> b = get_four(norm.b, g, C);
            const Four<float> kept = dropout_four(norm.dropout, state->step, r % B, r / B, g);
            Four<float> dv = get_four(dy + at, g, C);
            for (int e = 0; e < 4; e++) {
                dv.at[e] = n.at[e] * w.at[e] + b.at[e] > 0 ? dv.at[e] * kept.at[e] : 0;
                sum += dv.at[e] * w.at[e];
                product += dv.at[e] * w.at[e] * n.at[e];
            }
            put_four(dy + at, g, C, dv);
        }
        const float mean = warp_sum(sum) / (float)C, mean_product = warp_sum(product) / (float)C, scale = norm.rstd[r];
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> n = get_four(norm.normalized + at, g, C), w = get_four(norm.w, g, C);
            Four<float> d = get_four(dy + at, g, C);
            for (int e = 0; e < 4; e++) d.at[e] = scale * (d.at[e] * w.at[e] - mean - n.at[e] * mean_product);
            put_four(dx + at, g, C, d);
        }
    }
    __syncthreads();
    sums += (int64_t)blockIdx.x * 2 * C;
    for (int c = (int)threadIdx.x; c < C; c += NORM_THREADS) {
        float dw = 0, db = 0;
        for (int r = first; r < end; r++) {
            dw += dy[(int64_t)r * C + c] * norm.normalized[(int64_t)r * C + c];
            db += dy[(int64_t)r * C + c];
        }
        sums[c] = dw;
        sums[C + c] = db;
    }
}

// norm.y = dropout(relu(LN(x weight^T + bias))), x [R,K], weight [C,K]
template <typename Half>
static void linear_layernorm_relu_dropout_forward(LayerNorm<Half> norm, const Half *x, const Half *weight,
                                                  const float *bias, const DeviceState *state, int R, int B, int K,
                                                  int C, cudaStream_t stream) {
    const int blocks = blocks_for(R, NORM_THREADS / WARP);
    matmul_forward(norm.normalized, x, weight, (const float *)nullptr, false, R, K, C, stream);
    // clang-format off
    layernorm_relu_dropout_forward_kernel<Half><<<blocks, NORM_THREADS, 0, stream>>>(norm, bias, state, R, B, C);
    // clang-format on
}

// dx [R,C], and sums [R / NORM_ROWS rounded up][2][C], from dy = dout weight, dout [R,K], its rows dout_row apart
// (0: K), weight [K,C]. dy [R,C]: scratch.
template <typename Half>
static void linear_layernorm_relu_dropout_backward(Half *dx, float *sums, LayerNorm<Half> norm, const Half *dout,
                                                   const Half *weight, float *dy, const DeviceState *state, int R,
                                                   int B, int K, int C, cudaStream_t stream, int dout_row = 0) {
    const int blocks = blocks_for(R, NORM_ROWS);
    matmul_backward_input(dy, dout, weight, (const Half *)nullptr, false, R, C, K, stream, dout_row);
    // clang-format off
    layernorm_relu_dropout_backward_kernel<Half><<<blocks, NORM_THREADS, 0, stream>>>(dx, sums, dy, norm, state, R, B, C);
    // clang-format on
}

static size_t layernorm_sums_size(int R, int C) { return (size_t)blocks_for(R, NORM_ROWS) * 2 * C; }

static void layernorm_sums(SumList *sums, float *dw, float *db, const float *norm_sums, int R, int C) {
    sums_add(sums, dw, norm_sums, blocks_for(R, NORM_ROWS), (size_t)2 * C, C);
    sums_add(sums, db, norm_sums + C, blocks_for(R, NORM_ROWS), (size_t)2 * C, C);
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

typedef struct {      // what the backward needs of a layer's forward; h: as operands of products
    float *gates, *c; // [R,4H], [R,H]
    void *h0, *h, *x; // h [R+B,H], B rows of zeros before h; h [R,H]; h [R,H] dropout(h)
    void *dgates;     // h [R,4H]
    float *dc, *bias; // [B,H]; [4H]
} LayerActivations;

typedef struct {
    DeviceModel device; // first
    bool fast;          // the recurrence in one launch, see recurrence_is_fast()
    LstmTensors params, grads;
    LayerActivations *acts;
    float *table;                                  // [V,4H]
    float *normalized1, *rstd1;                    // [R,2H], [R] of the head's first layer
    float *normalized2, *rstd2;                    // [R,H], [R] of its second
    void *x1, *x2;                                 // h [R,2H], h [R,H] their outputs
    float *logits;                                 // [R,V]
    void *dlogits, *dfc1, *dfc2;                   // h [R,DLOGITS_ROW], h [R,2H], h [R,H]
    float *d;                                      // [R,2H] scratch; then the gradient of the last layer's x
    float *dtable, *partial;                       // [V,4H]; partial sums of it
    void *dtable_half;                             // h [V,4H]
    float *sums1, *sums2;                          // layernorm_sums_size
    float *head_parts, *layer_parts, *table_parts; // scratch for the weights' gradients
    void *layers;                                  // LayerRecurrence of each layer, as the forward had them
} Lstm;

static int lstm_layers(const Lstm *m) { return m->device.config.sizes[LSTM_LAYERS]; }

enum { HEAD_WEIGHTS = 3 };

// The products that give the gradients of the head's weights,
template <typename Half>
static void lstm_head_weights(const Lstm *m, WeightGradient<Half> *list) {
    const int H = m->device.config.sizes[LSTM_WIDTH];
    const LstmTensors *g = &m->grads;
    const Half *x = (const Half *)m->acts[lstm_layers(m) - 1].x;
    list[0] =
        WeightGradient<Half>{g->fc3_w, g->fc3_b, (const Half *)m->dlogits, (const Half *)m->x2, H, V, DLOGITS_ROW};
    list[1] = WeightGradient<Half>{g->fc2_w, g->fc2_b, (const Half *)m->dfc2, (const Half *)m->x1, 2 * H, H, 0};
    list[2] = WeightGradient<Half>{g->fc1_w, g->fc1_b, (const Half *)m->dfc1, x, H, 2 * H, 0};
}

enum { GROUP_LAYERS = WEIGHT_GROUP / 2 }; // layers whose weights' gradients are one launch

// of those of layers l0 .. l0 + GROUP_LAYERS - 1, as far as they exist (returns how many products),
template <typename Half>
static int lstm_layer_weights(const Lstm *m, int l0, WeightGradient<Half> *list) {
    const int H = m->device.config.sizes[LSTM_WIDTH], end = min(l0 + GROUP_LAYERS, lstm_layers(m));
    int n = 0;
    for (int l = l0; l < end; l++) {
        const LayerTensors *d = &m->grads.layers[l];
        const LayerActivations *a = &m->acts[l];
        const Half *dgates = (const Half *)a->dgates, *h_before = (const Half *)a->h0;
        list[n++] = WeightGradient<Half>{d->w_hh, nullptr, dgates, h_before, H, 4 * H, 0};
        if (l > 0) list[n++] = WeightGradient<Half>{d->w_ih, d->b_ih, dgates, (const Half *)a[-1].x, H, 4 * H, 0};
    }
    return n;
}

// and of layer 0's W_ih, from the gradient of its table.
template <typename Half>
static WeightGradient<Half> lstm_table_weights(const Lstm *m) {
    const int *sizes = m->device.config.sizes;
    const LayerTensors *d = &m->grads.layers[0];
    const Half *emb = weight<Half>(&m->device, m->params.emb);
    return WeightGradient<Half>{
        d->w_ih, d->b_ih, (const Half *)m->dtable_half, emb, sizes[LSTM_EMBED], 4 * sizes[LSTM_WIDTH], 0};
}

template <typename Half>
static void lstm_carve_parts(Lstm *m, DeviceArena *arena, int R) {
    WeightGradient<Half> head[HEAD_WEIGHTS], layers[WEIGHT_GROUP], table = lstm_table_weights<Half>(m);
    double most = 0;
    lstm_head_weights(m, head);
    for (int l = 0; l < lstm_layers(m); l += GROUP_LAYERS) {
        const int n = lstm_layer_weights(m, l, layers);
        most = fmax(most, (double)matmul_weights_scratch(layers, n, R));
    }
    m->head_parts = device_floats(arena, (double)matmul_weights_scratch(head, HEAD_WEIGHTS, R));
    m->layer_parts = device_floats(arena, most);
    m->table_parts = device_floats(arena, (double)matmul_weights_scratch(&table, 1, V));
}

static void lstm_carve(void *model, DeviceArena *arena) {
    Lstm *m = (Lstm *)model;
    const ModelConfig *config = &m->device.config;
    const int B = config->B, H = config->sizes[LSTM_WIDTH];
    const double R = (double)B * config->T;
    const size_t half = m->device.bf16 ? 2 : 4;
    for (int l = 0; l < lstm_layers(m); l++) {
        LayerActivations *a = &m->acts[l];
        a->gates = device_floats(arena, R * 4 * H);
        a->c = device_floats(arena, R * H);
        a->h0 = device_take(arena, (R + B) * H, half);
        a->h = arena->base ? (char *)a->h0 + (size_t)B * H * half : nullptr;
        a->x = device_take(arena, R * H, half);
        a->dgates = device_take(arena, R * 4 * H, half);
        a->dc = device_floats(arena, (double)B * H);
        a->bias = device_floats(arena, 4 * H);
    }
    m->table = device_floats(arena, (double)V * 4 * H);
    m->normalized1 = device_floats(arena, R * 2 * H);
    m->rstd1 = device_floats(arena, R);
    m->normalized2 = device_floats(arena, R * H);
    m->rstd2 = device_floats(arena, R);
    m->x1 = device_take(arena, R * 2 * H, half);
    m->x2 = device_take(arena, R * H, half);
    m->logits = device_floats(arena, R * V);
    m->dlogits = device_take(arena, R * DLOGITS_ROW, half);
    m->dfc1 = device_take(arena, R * 2 * H, half);
    m->dfc2 = device_take(arena, R * H, half);
    m->d = device_floats(arena, R * 2 * H);
    m->dtable = device_floats(arena, (double)V * 4 * H);
    m->dtable_half = m->device.bf16 ? device_take(arena, (double)V * 4 * H, half) : m->dtable;
    m->partial = device_floats(arena, (double)embedding_partial_size((int)R, 4 * H));
    m->sums1 = device_floats(arena, (double)layernorm_sums_size((int)R, 2 * H));
    m->sums2 = device_floats(arena, (double)layernorm_sums_size((int)R, H));
    if (m->device.bf16) {
        lstm_carve_parts<__nv_bfloat16>(m, arena, (int)R);
    } else {
        lstm_carve_parts<float>(m, arena, (int)R);
    }
}

// ---- the model: forward, backward, update

template <typename Half>
static LayerRecurrence<Half> lstm_recurrence(const Lstm *m, int l, bool training) {
    const LayerTensors *p = &m->params.layers[l];
    const LayerActivations *a = &m->acts[l];
    return LayerRecurrence<Half>{weight<Half>(&m->device, p->w_ih),
                                 weight<Half>(&m->device, p->w_hh),
                                 a->bias,
                                 device_dropout(&m->device, training, l),
                                 a->gates,
                                 a->c,
                                 (Half *)a->h,
                                 (Half *)a->x,
                                 (Half *)a->dgates,
                                 a->dc};
}

template <typename Half>
static LayerNorm<Half> lstm_norm1(const Lstm *m, bool training) {
    const Dropout dropout = device_dropout(&m->device, training, lstm_layers(m));
    return LayerNorm<Half>{(Half *)m->x1, m->normalized1, m->rstd1, m->params.ln1_w, m->params.ln1_b, dropout};
}

template <typename Half>
static LayerNorm<Half> lstm_norm2(const Lstm *m, bool training) {
    const Dropout dropout = device_dropout(&m->device, training, lstm_layers(m) + 1);
    return LayerNorm<Half>{(Half *)m->x2, m->normalized2, m->rstd2, m->params.ln2_w, m->params.ln2_b, dropout};
}

// Logits of the first B windows of inputs, with the dropout of the step if training.
template <typename Half>
static void lstm_forward(Lstm *m, int B, bool training) {
    const DeviceModel *device = &m->device;
    const int T = device->config.T, R = B * T, E = device->config.sizes[LSTM_EMBED];
    const int H = device->config.sizes[LSTM_WIDTH], L = lstm_layers(m);
    const LstmTensors *p = &m->params;
    const cudaStream_t stream = device->stream;
    const RecurrenceShape shape = {B, T, H, L};
    LayerRecurrence<Half> *layers = (LayerRecurrence<Half> *)m->layers;
    for (int l = 0; l < L; l++) {
        const LayerTensors *q = &p->layers[l];
        add_biases_kernel<<<blocks_for(4 * H, 256), 256, 0, stream>>>(m->acts[l].bias, q->b_ih, q->b_hh, 4 * H);
        layers[l] = lstm_recurrence<Half>(m, l, training);
    }
    matmul_forward(m->table, weight<Half>(device, p->emb), weight<Half>(device, p->layers[0].w_ih), m->acts[0].bias,
                   false, V, E, 4 * H, stream);
    recurrence_forward(layers, shape, m->fast, m->table, device->inputs, device->state, stream);
    linear_layernorm_relu_dropout_forward(lstm_norm1<Half>(m, training), (const Half *)m->acts[L - 1].x,
                                          weight<Half>(device, p->fc1_w), p->fc1_b, device->state, R, B, H, 2 * H,
                                          stream);
    linear_layernorm_relu_dropout_forward(lstm_norm2<Half>(m, training), (const Half *)m->x1,
                                          weight<Half>(device, p->fc2_w), p->fc2_b, device->state, R, B, 2 * H, H,
                                          stream);
    matmul_forward(m->logits, (const Half *)m->x2, weight<Half>(device, p->fc3_w), p->fc3_b, false, R, H, V, stream);
}

// The losses of the first R rows; with dlogits ready for the backward if asked.
template <typename Half>
static void lstm_loss(Lstm *m, int R, bool backward) {
    Half *dlogits = backward ? (Half *)m->dlogits : nullptr;
    softmax_cross_entropy_kernel<Half><<<blocks_for(R, ROW_WARPS), ROW_WARPS * WARP, 0, m->device.stream>>>(
        m->device.losses, dlogits, m->logits, m->device.targets, R);
}

// Gradients of all parameters, after lstm_forward and lstm_loss of the same step. What only the update waits for runs
// on the side stream: the gradients of the head's parameters and the mean loss, beside the recurrence; those of the
// layers', beside the table's.
template <typename Half>
static void lstm_backward(Lstm *m) {
    DeviceModel *device = &m->device;
    const int B = device->config.B, T = device->config.T, R = B * T, E = device->config.sizes[LSTM_EMBED];
    const int H = device->config.sizes[LSTM_WIDTH], L = lstm_layers(m);
    const LstmTensors *p = &m->params, *g = &m->grads;
    const cudaStream_t stream = device->stream, side = device->side;
    Half *dfc1 = (Half *)m->dfc1, *dfc2 = (Half *)m->dfc2;
    // logits = fc3(dropout(relu(LN2(fc2(dropout(relu(LN1(fc1(x)))))))))
    linear_layernorm_relu_dropout_backward(dfc2, m->sums2, lstm_norm2<Half>(m, true), (const Half *)m->dlogits,
                                           weight<Half>(device, p->fc3_w), m->d, device->state, R, B, V, H, stream,
                                           DLOGITS_ROW);
    linear_layernorm_relu_dropout_backward(dfc1, m->sums1, lstm_norm1<Half>(m, true), (const Half *)dfc2,
                                           weight<Half>(device, p->fc2_w), m->d, device->state, R, B, H, 2 * H, stream);
    matmul_backward_input(m->d, (const Half *)dfc1, weight<Half>(device, p->fc1_w), (const Half *)nullptr, false, R, H,
                          2 * H, stream);
    device_fork(device);
    WeightGradient<Half> head[HEAD_WEIGHTS];
    SumList head_sums = {};
    lstm_head_weights(m, head);
    matmul_backward_weights(head, HEAD_WEIGHTS, R, m->head_parts, &head_sums, side);
    layernorm_sums(&head_sums, g->ln2_w, g->ln2_b, m->sums2, R, H);
    layernorm_sums(&head_sums, g->ln1_w, g->ln1_b, m->sums1, R, 2 * H);
    sum_parts(&head_sums, side);
    loss_kernel<<<1, 256, 0, side>>>(device->state, device->losses, R);
    const RecurrenceShape shape = {B, T, H, L};
    recurrence_backward((const LayerRecurrence<Half> *)m->layers, shape, m->fast, m->d, device->state, stream);
    device_fork(device);
    for (int l = 0; l < L; l += GROUP_LAYERS) {
        WeightGradient<Half> weights[WEIGHT_GROUP];
        SumList sums = {};
        const int n = lstm_layer_weights(m, l, weights);
        matmul_backward_weights(weights, n, R, m->layer_parts, &sums, side);
        sum_parts(&sums, side);
    }
    device_mark(device, 0);
    Half *dtable = (Half *)m->dtable_half;
    const int n_table = V * 4 * H;
    embedding_backward(m->dtable, m->partial, (const Half *)m->acts[0].dgates, device->inputs, R, 4 * H, stream);
    if (device->bf16) {
        to_operands_kernel<Half><<<blocks_for(n_table, 256), 256, 0, stream>>>(dtable, m->dtable, n_table);
    }
    const WeightGradient<Half> table = lstm_table_weights<Half>(m);
    SumList table_sums = {};
    matmul_backward_weights(&table, 1, V, m->table_parts, &table_sums, stream);
    sum_parts(&table_sums, stream);
    matmul_backward_input(g->emb, (const Half *)dtable, weight<Half>(device, p->layers[0].w_ih), (const Half *)nullptr,
                          false, V, E, 4 * H, stream);
    device_wait(device, 0);
    for (int l = 0; l < L; l++) { // both biases have one gradient
        cuda_check(cudaMemcpyAsync(g->layers[l].b_hh, g->layers[l].b_ih, 4 * (size_t)H * sizeof(float),
                                   cudaMemcpyDeviceToDevice, stream));
    }
}

// ---- what the recipe asks of a model (train.h, ModelSpec)

static void lstm_enqueue_gradients(void *model) {
    Lstm *m = (Lstm *)model;
    const int B = m->device.config.B, R = B * m->device.config.T;
    if (m->device.bf16) {
        lstm_forward<__nv_bfloat16>(m, B, true);
        lstm_loss<__nv_bfloat16>(m, R, true);
        lstm_backward<__nv_bfloat16>(m);
    } else {
        lstm_forward<float>(m, B, true);
        lstm_loss<float>(m, R, true);
        lstm_backward<float>(m);
    }
}

static void lstm_enqueue_losses(void *model, int n) {
    Lstm *m = (Lstm *)model;
    const int R = n * m->device.config.T;
    if (m->device.bf16) {
        lstm_forward<__nv_bfloat16>(m, n, false);
        lstm_loss<__nv_bfloat16>(m, R, false);
    } else {
        lstm_forward<float>(m, n, false);
        lstm_loss<float>(m, R, false);
    }
}

static void lstm_enqueue_update(void *model) {
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

static const DeviceHooks lstm_hooks = {
    "train_lstm_music", true, lstm_layout, lstm_carve, lstm_enqueue_gradients, lstm_enqueue_update,
    lstm_enqueue_losses};

static void lstm_destroy(void *model) {
    Lstm *m = (Lstm *)model;
    if (!m) return;
    device_destroy(&m->device);
    free(m->params.layers);
    free(m->grads.layers);
    free(m->acts);
    free(m->layers);
    free(m);
}

static void *lstm_create(const ModelConfig *config, char *error) {
    static_assert(sizeof(LayerRecurrence<float>) == sizeof(LayerRecurrence<__nv_bfloat16>), "either fits");
    Lstm *m = (Lstm *)allocate("the model", 1, sizeof *m, error);
    if (!m) return nullptr;
    const int L = config->sizes[LSTM_LAYERS], H = config->sizes[LSTM_WIDTH];
    m->acts = (LayerActivations *)allocate("the model", L, sizeof(LayerActivations), error);
    m->layers = allocate("the model", L, sizeof(LayerRecurrence<float>), error);
    m->params.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    m->grads.layers = (LayerTensors *)allocate("the model", L, sizeof(LayerTensors), error);
    if (!m->acts || !m->layers || !m->params.layers || !m->grads.layers ||
        !device_create(&m->device, config, &lstm_hooks, error)) {
        lstm_destroy(m);
        return nullptr;
    }
    lstm_point(&m->params, &m->device.layout, L, m->device.flat[STATE_PARAMS]);
    lstm_point(&m->grads, &m->device.layout, L, m->device.flat[STATE_GRADS]);
    const RecurrenceShape shape = {config->B, config->T, H, L};
    m->fast = m->device.bf16 && recurrence_is_fast<__nv_bfloat16>(shape);
    fprintf(stderr, "the recurrence is %s\n",
            m->fast ? "one launch, its weights in registers" : "a launch for every time step");
    for (int l = 0; l < L; l++) {
        const size_t zeros = (size_t)config->B * H * (m->device.bf16 ? 2 : 4);
        cuda_check(cudaMemsetAsync(m->acts[l].h0, 0, zeros, m->device.stream));
    }
    return m;
}

// Rows of C numbers, float or bf16, from the device to `at`, in the order of the files; relu(x * w + b) of them where
// there are w and b. Returns the end.
static float *lstm_fetch_rows(const Lstm *m, float *at, const void *from, bool bf16, const float *w, const float *b,
                              int C) {
    const int B = m->device.config.B, T = m->device.config.T, R = B * T;
    float *rows = (float *)malloc((size_t)R * C * sizeof(float));
    if (!rows) abort();
    device_fetch(rows, from, (int64_t)R * C, bf16);
    for (int r = 0; r < R; r++) {
        float *out = at + ((size_t)(r % B) * T + r / B) * C;
        for (int c = 0; c < C; c++) {
            const float x = rows[(size_t)r * C + c], v = w ? x * w[c] + b[c] : x;
            out[c] = w && v < 0 ? 0 : v;
        }
    }
    free(rows);
    return at + (size_t)R * C;
}

// The activations of the last step. Called with list NULL before it, it makes room for them, and keeps the LayerNorms'
// weights and biases, from which their outputs are made again: w1, b1 [2H], w2, b2 [H].
static int lstm_activations(void *model, Activation *list) {
    Lstm *m = (Lstm *)model;
    DeviceModel *device = &m->device;
    const int L = lstm_layers(m), count = 2 * L + 3, H = device->config.sizes[LSTM_WIDTH];
    const int64_t B = device->config.B, T = device->config.T, size = B * T * ((2 * L + 3) * H + V);
    if (!device->kept) device->kept = (float *)calloc((size_t)(size + 6 * H), sizeof(float));
    if (!device->kept) return -1;
    float *at = device->kept, *norms = at + size;
    cuda_check(cudaStreamSynchronize(device->stream));
    if (!list) {
        device_fetch(norms, m->params.ln1_w, 2 * H, false);
        device_fetch(norms + 2 * H, m->params.ln1_b, 2 * H, false);
        device_fetch(norms + 4 * H, m->params.ln2_w, H, false);
        device_fetch(norms + 5 * H, m->params.ln2_b, H, false);
        return count;
    }
    for (int i = 0; i < count; i++) {
        const LayerActivations *a = &m->acts[i / 2 < L ? i / 2 : 0];
        const int C = i == 2 * L ? 2 * H : i < count - 1 ? H : (int)V;
        memset(&list[i], 0, sizeof list[i]);
        list[i].rank = 3;
        list[i].shape[0] = B;
        list[i].shape[1] = T;
        list[i].shape[2] = C;
        list[i].data = at;
        if (i < 2 * L) {
            snprintf(list[i].name, sizeof list[i].name, "act.%c_l%d", "hc"[i % 2], i / 2);
            const bool h = i % 2 == 0;
            at = lstm_fetch_rows(m, at, h ? a->h : a->c, h && device->bf16, nullptr, nullptr, C);
        } else if (i == 2 * L) {
            strcpy(list[i].name, "act.head.3");
            at = lstm_fetch_rows(m, at, m->normalized1, false, norms, norms + 2 * H, C);
        } else if (i == 2 * L + 1) {
            strcpy(list[i].name, "act.head.7");
            at = lstm_fetch_rows(m, at, m->normalized2, false, norms + 4 * H, norms + 5 * H, C);
        } else {
            strcpy(list[i].name, "logits");
            at = lstm_fetch_rows(m, at, m->logits, false, nullptr, nullptr, C);
        }
    }
    return count;
}

static ModelSpec lstm_spec_make(void) {
    ModelSpec s;
    memset(&s, 0, sizeof s);
    s.name = "lstm";
    s.device = DEVICE_NAME;
    s.precisions = DEVICE_PRECISIONS;
    s.size_flags = lstm_size_flags;
    s.n_sizes = LSTM_SIZES;
    s.lr = 5e-4;
    s.lr_decay = 0.8;
    s.lr_min = 5e-5;
    s.check_sizes = lstm_check_sizes;
    s.layout = lstm_layout;
    s.sizes_of_file = lstm_sizes_of_file;
    s.step_flops = lstm_step_flops;
    s.create = lstm_create;
    s.destroy = lstm_destroy;
    s.state = device_state;
    s.state_changed = device_state_changed;
    s.set_data = device_set_data;
    s.train_step = device_train_step;
    s.get_loss = device_get_loss;
    s.set_loss = device_set_loss;
    s.eval_batch = device_eval_batch;
    s.gradients = device_gradients;
    s.activations = lstm_activations;
    return s;
}

static const ModelSpec lstm_spec = lstm_spec_make();

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) { return train_main(argc, argv, &lstm_spec); }
#endif
