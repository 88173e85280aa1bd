// The LSTM on a GPU: forward, backward and update, and a training step as one CUDA graph.
//
// It promises the published model exactly (4,426,457 parameters in its default sizes), the same random numbers as the
// CPU, the same bytes from the same seed, and any sizes that the flags allow. With --precision bf16 the operands of
// products are rounded to bf16 and multiplied by tensor cores; sums, the cell state, gates, LayerNorm, the loss,
// weights and optimizer stay in float. It runs in one process on one GPU. The recipe around a step (data, epochs,
// files, command line) is dev/recipe/train.h.
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
// of the rows of a stage that takes any. Row r is position t = r / B of window b = r % B, so that the rows of one time
// step lie side by side, unlike in a dump. All matrices are row-major; a linear layer's weight is [out, in]. Gradients
// are set (=) in every step. A template parameter Operand is the type of products' operands, float or __nv_bfloat16.
//
// dev/train_lstm_music.c, the reference, has the same sections in the same order, and the same names for what does the
// same. The GPU goes another way where that saves launches or memory traffic:
// - The recurrence of all layers and time steps is one launch where the GPU can hold the weights in registers, and a
//   launch for each time step elsewhere. It includes the dropout after a layer. It also looks layer 0's input products
//   up in their table, so only the backward needs embedding_forward().
// - dgates have a buffer of their own, because the gradients of weights are made from them later.
// - The kernel of LayerNorm adds the bias of the product that it follows.
// - The gradients of weights wait for nothing but the update: those of the head are one launch, those of up to three
//   layers another, on a second stream.
// - Batches, the mean loss, the search for what is not finite and the count of steps are kernels too; the step around
//   forward, backward and update is device_train_step().
// Both CUDA trainers share these last kernels (dev/cuda/device_model.cuh), with the memory and the dropout masks, and
// the kernels of matrix products (dev/cuda/matmul.cuh). All other kernels of the model are here.
//
// The section on parameters is the same text in dev/train_lstm_music.c, the section on softmax, cross-entropy and
// Adamax the same in train_gpt_music.cu, and embedding_backward() nearly so, so that each model can be read by itself.
// test/test_copies.sh compares the copies.

#include "recipe/model.h" // first: it chooses the system's interfaces

#include "cuda/cluster.cuh"
#include "cuda/device_model.cuh"
#include "models/lstm.h"

constexpr int V = DATA_TOKENS;

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
//
// A token's input product in layer 0 is the same wherever the token stands, so it is made once for every token, in a
// table [V,4H], and the recurrence looks it up. Only the backward needs the embedding of every row.

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
    if (chunks == 1) partial = demb;
    embedding_backward_kernel<<<blocks, 256, 0, stream>>>(partial, dx, tokens, R, C);
    LAUNCHED(embedding_backward_kernel);
    if (chunks == 1) return;
    sums_add(&sums, demb, partial, chunks, (size_t)V * C, (size_t)V * C);
    sum_parts(&sums, stream);
}

// ---- the recurrence
//
// The backward, with dgates the gradients of the sums that the gates are functions of:
//     dh_t = dropout(dx_t) + dgates_(t+1) W_hh, dx_t from above: dgates_t W_ih of the layer above
//     dc_t = dc_(t+1) f_(t+1) + dh_t o (1 - tanh(c_t)^2)
//
// There are two sets of kernels. The plain ones take any size, in both precisions. They need a launch for each time
// step of each layer; a layer's input products are made beforehand, for all time steps at once. At batch 8 a time
// step's product takes less time than its launch. So bf16 models that fit in the GPU have fast kernels: one launch for
// all layers and time steps, with all weights in registers.

// A layer: its weights, and what its forward keeps for the backward. In layer 0 w_ih is part of the table.
// The plain kernels have gates as [gate][unit], the fast ones as [unit][gate]. All begin at multiples of 16 bytes.
template <typename Operand>
struct LayerRecurrence {
    const Operand *w_ih, *w_hh; // [4H,H]
    const float *b_ih, *b_hh;   // [4H]
    Dropout dropout;
    float *gates;    // [R,4H] i, f, g, o
    float *c;        // [R,H]
    Operand *h, *x;  // [R,H], x = dropout(h)
    Operand *dgates; // [R,4H] as [gate][unit]
    float *dc;       // [B,H] scratch
};

typedef struct {
    int B, T, H, L;
    int forward_sets, backward_sets; // that the fast kernels run in, see there; 0: the plain kernels
    bool clusters;                   // whether the fast backward's blocks make clusters
} RecurrenceShape;

static __device__ float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }
static __device__ float tanh_by_sigmoid(float x) { return 2 * sigmoid(2 * x) - 1; } // to about 1e-7

typedef struct {
    float i, f, g, o;
} Gates;

// *c comes as c_(t-1) and leaves as c_t. Returns h_t.
static __device__ float cell_forward(Gates gate, float *c) {
    *c = gate.f * *c + gate.i * gate.g;
    return gate.o * tanh_by_sigmoid(*c);
}

// Returns dgates_t. *dc comes as the gradient of c_t from the time step after and leaves as that of c_(t-1).
static __device__ Gates cell_backward(Gates gate, float *dc, float dh, float c, float c_before) {
    const float tanh_c = tanh_by_sigmoid(c), dc_t = *dc + dh * gate.o * (1 - tanh_c * tanh_c);
    *dc = dc_t * gate.f;
    return {dc_t * gate.g * gate.i * (1 - gate.i), dc_t * c_before * gate.f * (1 - gate.f),
            dc_t * gate.i * (1 - gate.g * gate.g), dh * tanh_c * gate.o * (1 - gate.o)};
}

// The factor, 0 or 1/(1-p), of unit u.
static __device__ float dropout_one(Dropout dropout, const DeviceState *state, int b, int t, int u) {
    const Four<float> mask = dropout_four(dropout, state->step, b, t, u / 4);
    return u % 4 == 0 ? mask.at[0] : u % 4 == 1 ? mask.at[1] : u % 4 == 2 ? mask.at[2] : mask.at[3];
}

// ---- the recurrence: plain kernels, a launch for each time step

constexpr int PLAIN_UNITS = 8, PLAIN_WINDOWS = 8; // of a block

// Time step t of a layer. A warp owns a unit in 8 windows b0 .. b0 + 7. Its lanes share k: each has a part of all 32
// sums, sum 4 w + gate for window b0 + w. To add the parts up, pairs of lanes exchange halves of what they have, and
// lane 4 w + gate ends with sum 4 w + gate:
//
//     lane           0 .. 7       8 .. 15      16 .. 23     24 .. 31
//     it has sums    0 .. 31      0 .. 31      0 .. 31      0 .. 31     of its own k
//     with lane^16   0 .. 15      0 .. 15      16 .. 31     16 .. 31    of the pair's k
//     with lane^8    0 .. 7       8 .. 15      16 .. 23     24 .. 31
//     ...
//
// The input products are rows of `in`: row tokens[r] if there are tokens, else row r. `in` may be a.gates.
template <typename Operand>
static __global__ void __launch_bounds__(256)
    recurrence_forward_plain_kernel(LayerRecurrence<Operand> a, const float *in, const uint8_t *tokens,
                                    const DeviceState *state, int B, int H, int t) {
    await_previous_kernel();
    const int lane = threadIdx.x % WARP, u = blockIdx.x * PLAIN_UNITS + threadIdx.x / WARP;
    const int b0 = blockIdx.y * PLAIN_WINDOWS;
    if (u >= H) return;
    float sum[4 * PLAIN_WINDOWS];
#pragma unroll
    for (int i = 0; i < 4 * PLAIN_WINDOWS; i++) sum[i] = 0;
    const Operand *h_before = a.h + (int64_t)(t - 1) * B * H;
    for (int k = lane; k < H && t > 0; k += WARP) {
        float w[4];
#pragma unroll
        for (int gate = 0; gate < 4; gate++) w[gate] = to_float(a.w_hh[((int64_t)gate * H + u) * H + k]);
#pragma unroll
        for (int i = 0; i < PLAIN_WINDOWS; i++) { // past the last window the last one again, thrown away below
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
    const float bias = a.b_ih[gate * H + u] + a.b_hh[gate * H + u];
    const float z = b < B ? sum[0] + (in[((tokens ? tokens[r] : r) * 4 + gate) * H + u] + bias) : 0;
    const float value = gate == 2 ? tanh_by_sigmoid(z) : sigmoid(z);
    const Gates gates = {__shfl_sync(~0u, value, 0, 4), __shfl_sync(~0u, value, 1, 4), __shfl_sync(~0u, value, 2, 4),
                         __shfl_sync(~0u, value, 3, 4)};
    if (b >= B) return;
    a.gates[(r * 4 + gate) * H + u] = value;
    if (gate > 0) return;
    float c = t > 0 ? a.c[at - (int64_t)B * H] : 0;
    const Operand h = from_float<Operand>(cell_forward(gates, &c));
    a.c[at] = c;
    a.h[at] = h;
    a.x[at] = from_float<Operand>(to_float(h) * dropout_one(a.dropout, state, b, t, u));
}

// Time step t of a layer, back. dx [R,H] comes from above. A block owns 8 units in 8 windows. A thread sums every 32nd
// k of a unit's column, so that 8 adjacent lanes read adjacent weights. Then 4 lanes in each of the 8 warps have parts
// of the same sums.
template <typename Operand>
static __global__ void __launch_bounds__(256)
    recurrence_backward_plain_kernel(LayerRecurrence<Operand> a, const float *dx, const DeviceState *state, int B,
                                     int T, int H, int t) {
    await_previous_kernel();
    __shared__ float parts[8][PLAIN_WINDOWS][PLAIN_UNITS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int u0 = blockIdx.x * PLAIN_UNITS, b0 = blockIdx.y * PLAIN_WINDOWS;
    float sum[PLAIN_WINDOWS];
#pragma unroll
    for (int i = 0; i < PLAIN_WINDOWS; i++) sum[i] = 0;
    const Operand *w = a.w_hh + min(u0 + lane % 8, H - 1), *dgates_after = a.dgates + (int64_t)(t + 1) * B * 4 * H;
    for (int k = warp * 4 + lane / 8; k < 4 * H && t < T - 1; k += 32) {
        const float w_k = to_float(w[(int64_t)k * H]);
#pragma unroll
        for (int i = 0; i < PLAIN_WINDOWS; i++) {
            sum[i] = fmaf(w_k, to_float(dgates_after[(int64_t)min(b0 + i, B - 1) * 4 * H + k]), sum[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < PLAIN_WINDOWS; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 8);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 16);
        if (lane < 8) parts[warp][i][lane] = sum[i];
    }
    __syncthreads();
    const int u = u0 + threadIdx.x % 8, b = b0 + threadIdx.x / 8;
    if (threadIdx.x >= PLAIN_UNITS * PLAIN_WINDOWS || u >= H || b >= B) return;
    const int64_t r = (int64_t)t * B + b, at = r * H + u;
    float dh = dx[at] * dropout_one(a.dropout, state, b, t, u);
    for (int part = 0; part < 8; part++) dh += parts[part][b - b0][u - u0];
    const float *gate = a.gates + r * 4 * H + u;
    float dc = t < T - 1 ? a.dc[(int64_t)b * H + u] : 0;
    const Gates d = cell_backward({gate[0], gate[H], gate[2 * H], gate[3 * H]}, &dc, dh, a.c[at],
                                  t > 0 ? a.c[at - (int64_t)B * H] : 0);
    a.dc[(int64_t)b * H + u] = dc;
    Operand *out = a.dgates + r * 4 * H + u;
    out[0] = from_float<Operand>(d.i);
    out[H] = from_float<Operand>(d.f);
    out[2 * H] = from_float<Operand>(d.g);
    out[3 * H] = from_float<Operand>(d.o);
}

template <typename Operand>
static void recurrence_forward_plain(const LayerRecurrence<Operand> *layers, RecurrenceShape s, const float *table,
                                     const uint8_t *tokens, const DeviceState *state, cudaStream_t stream) {
    const dim3 blocks(divide_up(s.H, PLAIN_UNITS), divide_up(s.B, PLAIN_WINDOWS));
    const float *in = table;
    for (int l = 0; l < s.L; l++) {
        const LayerRecurrence<Operand> *a = &layers[l];
        if (l > 0) {
            matmul_forward(a->gates, a[-1].x, a->w_ih, nullptr, false, s.B * s.T, s.H, 4 * s.H, stream);
            in = a->gates;
            tokens = nullptr;
        }
        for (int t = 0; t < s.T; t++) {
            recurrence_forward_plain_kernel<Operand><<<blocks, 256, 0, stream>>>(*a, in, tokens, state, s.B, s.H, t);
            LAUNCHED(recurrence_forward_plain_kernel<Operand>);
        }
    }
}

template <typename Operand>
static void recurrence_backward_plain(const LayerRecurrence<Operand> *layers, RecurrenceShape s, float *dx,
                                      const DeviceState *state, cudaStream_t stream) {
    const dim3 blocks(divide_up(s.H, PLAIN_UNITS), divide_up(s.B, PLAIN_WINDOWS));
    for (int l = s.L - 1; l >= 0; l--) {
        const LayerRecurrence<Operand> *a = &layers[l];
        for (int t = s.T - 1; t >= 0; t--) {
            recurrence_backward_plain_kernel<Operand><<<blocks, 256, 0, stream>>>(*a, dx, state, s.B, s.T, s.H, t);
            LAUNCHED(recurrence_backward_plain_kernel<Operand>);
        }
        if (l == 0) break;
        matmul_backward_input<Operand>(dx, a->dgates, a->w_ih, nullptr, false, s.B * s.T, s.H, 4 * s.H, stream);
    }
}

// ---- the recurrence: fast kernels in bf16, one launch for all layers and time steps
//
// H / 8 blocks make a set. Where several sets fit in the GPU, each takes windows of its own. A block owns units
// u0 .. u0 + 7 of every layer, and holds in registers all weights that lead to them: in the forward the rows of their
// gates, of W_hh and, above layer 0, of W_ih; in the backward their columns. Windows go in tiles of 8, the width of
// mma_bf16, whose A are weights and whose B are h, x or dgates. The 8 warps of a block share k in chunks of 32:
//
//     rows of A:  forward             backward            k = 0    32    64        224   256
//                 i of u0 .. u0+3     W_hh, column u0       +-----+-----+--   --+-----+-----+--
//                 f of u0 .. u0+3      ... and u0+7         |warp |warp |       |warp |warp |
//                 g of u0 .. u0+3     W_ih, column u0       |  0  |  1  |  ...  |  7  |  0  |  ...
//                 o of u0 .. u0+3      ... and u0+7         +-----+-----+--   --+-----+-----+--
//                 and a second tile   (W_ih above
//                 of u0+4 .. u0+7     layer 0)
//
// The warps' parts of the sums go through shared memory. Two warps for each layer, 2 l and 2 l + 1, have a thread for
// each unit and window of the tile. It adds the parts, always in the same order, and does the rest of the cell.
//
// In a round of the loop every layer does one time step, each on what the round before handed on. So layer 1 is one
// time step behind layer 0 in the forward, and layer 0 behind layer 1 in the backward:
//
//     forward  round    0       1       2    ...        backward  round     0         1         2    ...
//              layer 0 t=0 --> t=1 --> t=2   ...                  layer 1 t=T-1 --> t=T-2 --> t=T-3  ...
//                         \       \       \  ...                               \         \         \ ...
//              layer 1     '-> t=0 --> t=1   ...                  layer 0       '-> t=T-1 --> t=T-2  ...
//
//     -->  h_t, for W_hh of the layer                             -->  dgates_t, for W_hh of the layer
//     '->  x_t, for W_ih of the layer above                       '->  dgates_t, for W_ih, as dx of the layer below
//
// Every block of the set reads all units of what is handed on. It is read from the tensor that the launch has to write
// anyway, and the tensor is its own signal: it is filled with ABSENT before the launch (dgates by the forward kernel),
// and a reader that finds ABSENT reads again. There is no barrier between blocks, so a round costs a store's way to the
// L2 cache, a load's way from there, products, sums and gates. All blocks must run at the same time, or they would wait
// for each other for ever. So the launch is cooperative, which CUDA refuses where they cannot, and recurrence_shape()
// asks beforehand how many can.
//
// Traffic from L2 for each block, tile of windows and round: forward 16 H bytes for each product (3 for two layers),
// backward 64 H for each layer, in clusters 16 H. It limits large batches, and is why blocks do not have fewer units.

constexpr int FAST_UNITS = 8, FAST_WINDOWS = 8;       // of a block, of a tile
constexpr int PARTS = 8, FAST_THREADS = PARTS * WARP; // of a block: warps, each a part of k
constexpr int FAST_LAYERS = 2, FAST_WIDTH = 512;      // the most that the fast kernels take

// Two bf16 0xFFFF, a NaN that rounding never gives, because it makes every NaN 0x7FFF.
#define ABSENT 0xFFFFFFFFu

// Whether one of the two 8 bytes has not come yet. 8 bytes come as a whole.
static __device__ bool absent(uint4 v) { return v.x == ABSENT || v.z == ABSENT; }

template <int L>
struct FastRecurrence {
    LayerRecurrence<__nv_bfloat16> layers[L];
    int B, T, H;
    int windows;           // of a set of blocks, a multiple of 8
    const float *table;    // forward: [V,4H]
    const uint8_t *tokens; // and [R]
    const float *dx;       // backward: [R,H]
};

// Waits a little before the next look at what another block must hand on. After 2^26 looks it ends the kernel with an
// error: a block that never gets there is a mistake in this file, and an endless wait would hide it.
static __device__ void look_again(int *looks) {
    __nanosleep(20);
    if (++*looks > 1 << 26) __trap();
}

// Waits for the B of N products and fetches the lane's share: found[i][j] is 8 k of the lane's window, of chunk j of
// the warp, j < chunks. rows[i] points to those of chunk 0; it is nullptr where there is no such window or time step,
// and found is zeros then. What others look for delays their stores. So a lane reads again only what was absent, and in
// a round's first tile, where the blocks are early, a warp looks for one piece alone until it is there.
template <int SHARERS = PARTS, int N, int CHUNKS>
static __device__ void fetch(uint4 (&found)[N][CHUNKS], const __nv_bfloat16 *const (&rows)[N], int chunks, bool early) {
    auto piece = [&](int i, int j) { return (const void *)((uintptr_t)rows[i] + SHARERS * 64 * j); }; // if it is there
    bool missing = early && rows[0] && chunks > 0;
    int looks = 0;
    for (;;) {
        missing = absent(exchange_load(rows[0], missing));
        if (!__any_sync(~0u, missing)) break;
        look_again(&looks);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) found[i][j] = exchange_load(piece(i, j), rows[i] && j < chunks);
    }
    for (;;) {
        missing = false;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) missing |= absent(found[i][j]);
        }
        if (!__any_sync(~0u, missing)) break;
        look_again(&looks);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) {
                if (absent(found[i][j])) found[i][j] = exchange_load(piece(i, j), true);
            }
        }
    }
}

// sum [16][8] += A B over a chunk of 32 k. The order of k within a sum is free, so lane 4 g + q takes the adjacent k
// 8 q .. 8 q + 7 as its columns of two products: a[0..3] of row g, a[4..7] of row g + 8, b of window g.
static __device__ void multiply_32(float *sum, const uint32_t *a, uint4 b) {
    const uint32_t a_low[4] = {a[0], a[4], a[1], a[5]}, b_low[2] = {b.x, b.y};
    const uint32_t a_high[4] = {a[2], a[6], a[3], a[7]}, b_high[2] = {b.z, b.w};
    mma_bf16(sum, a_low, b_low);
    mma_bf16(sum, a_high, b_high);
}

// The same where A has 8 rows only: sum = B^T A^T, [8 windows][8 rows of A]. It saves the registers of 8 rows of zeros.
static __device__ void multiply_32_transposed(float *sum, const uint32_t *a, uint4 b) {
    const uint32_t a_low[4] = {b.x, 0, b.y, 0}, a_high[4] = {b.z, 0, b.w, 0};
    mma_bf16(sum, a_low, a);
    mma_bf16(sum, a_high, a + 2);
}

// part [16][8] = a warp's sums
static __device__ void store_sums(float *part, const float *sum, int lane) {
    *(float2 *)&part[2 * lane] = make_float2(sum[0], sum[1]);
    *(float2 *)&part[64 + 2 * lane] = make_float2(sum[2], sum[3]);
}

// The values of lanes lane % 8 + 0, 8, 16, 24, four units of a window, in bf16.
static __device__ uint2 pack_units(float value, int lane) {
    const uint32_t mine = __bfloat16_as_ushort(from_float<__nv_bfloat16>(value));
    const uint32_t other = __shfl_xor_sync(~0u, mine, 8);
    const uint32_t pair = lane & 8 ? other | mine << 16 : mine | other << 16;
    const uint32_t pair_of_others = __shfl_xor_sync(~0u, pair, 16);
    return lane & 16 ? make_uint2(pair_of_others, pair) : make_uint2(pair, pair_of_others);
}

// The lane's share of the block's rows of W_hh or W_ih, [4H,H]: w[tile][j] is its 8 k of chunk j, from k0 + 256 j on,
// in rows lane / 4 and lane / 4 + 8 of the tile.
template <int CHUNKS>
static __device__ void load_rows(uint32_t (&w)[2][CHUNKS][8], const __nv_bfloat16 *weights, int H, int u0, int k0,
                                 int chunks) {
    const int group = threadIdx.x % WARP / 4;
#pragma unroll
    for (int half = 0; half < 4; half++) { // of tile half / 2: gates i and f, or g and o
        const int row = (half % 2 * 2 + group / 4) * H + u0 + half / 2 * 4 + group % 4;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            const __nv_bfloat16 *from = weights + (int64_t)row * H + k0 + PARTS * 32 * j;
            const uint4 four = j < chunks ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
            uint32_t *to = &w[half / 2][j][half % 2 * 4];
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        }
    }
}

// All layers and time steps. A warp has at most CHUNKS chunks of 32 k.
template <int L, int CHUNKS>
static __global__ void __launch_bounds__(FAST_THREADS, 1)
    recurrence_forward_fast_kernel(FastRecurrence<L> args, const DeviceState *state) {
    __shared__ __align__(16) float parts[2][PARTS][L][2][128];
    const int B = args.B, T = args.T, H = args.H, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int u0 = blockIdx.x % (H / FAST_UNITS) * FAST_UNITS;
    const int first = blockIdx.x / (H / FAST_UNITS) * args.windows, end = min(first + args.windows, B);
    const int k0 = warp * 32 + lane % 4 * 8, chunks = (H / 32 - warp + PARTS - 1) / PARTS;
    uint32_t w[2 * L - 1][2][CHUNKS][8]; // product 2 l has W_hh of layer l, product 2 l - 1 its W_ih
#pragma unroll
    for (int i = 0; i < 2 * L - 1; i++) {
        const LayerRecurrence<__nv_bfloat16> &a = args.layers[(i + 1) / 2];
        load_rows<CHUNKS>(w[i], i % 2 ? a.w_ih : a.w_hh, H, u0, k0, chunks);
    }

    const int cell_layer = warp / 2 % L, u = u0 + threadIdx.x % 64 / 8; // of the thread, where warp < 2 L
    float bias[4];
    for (int gate = 0; gate < 4; gate++) {
        bias[gate] = args.layers[cell_layer].b_ih[gate * H + u] + args.layers[cell_layer].b_hh[gate * H + u];
    }
    int buffer = 0;
    for (int round = 0; round < T + L - 1; round++) {
        for (int b0 = first; b0 < end; b0 += FAST_WINDOWS, buffer ^= 1) {
            // What the cell needs besides the products
            const int t_cell = round - cell_layer, b_cell = b0 + lane % 8;
            const bool works = warp < 2 * L && t_cell >= 0 && t_cell < T, exists = works && b_cell < end;
            const LayerRecurrence<__nv_bfloat16> &a = args.layers[cell_layer];
            const int64_t r = (int64_t)t_cell * B + b_cell, at = r * H + u;
            float z[4] = {bias[0], bias[1], bias[2], bias[3]}, c = 0, mask = 0;
            if (exists) {
                const float *in = args.table + (int64_t)args.tokens[r] * 4 * H;
                for (int gate = 0; gate < 4 && cell_layer == 0; gate++) z[gate] += in[gate * H + u];
                c = t_cell > 0 ? a.c[at - (int64_t)B * H] : 0;
                mask = dropout_one(a.dropout, state, b_cell, t_cell, u);
            }

            // The warp's part of the products
            const __nv_bfloat16 *rows[2 * L - 1];
#pragma unroll
            for (int i = 0; i < 2 * L - 1; i++) {
                const int layer = (i + 1) / 2, t = round - layer, b = b0 + lane / 4; // of x_t, or of h_(t-1)
                const bool there = b < end && t < T && t >= (i % 2 ? 0 : 1);
                const __nv_bfloat16 *from = i % 2 ? args.layers[layer - 1].x : args.layers[layer].h;
                rows[i] = there ? from + ((int64_t)(i % 2 ? t : t - 1) * B + b) * H + k0 : nullptr;
            }
            uint4 found[2 * L - 1][CHUNKS];
            fetch(found, rows, chunks, b0 == first);
            float sum[L][2][4] = {};
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
                for (int i = 0; i < 2 * L - 1; i++) {
                    multiply_32(sum[(i + 1) / 2][0], w[i][0][j], found[i][j]);
                    multiply_32(sum[(i + 1) / 2][1], w[i][1][j], found[i][j]);
                }
            }
#pragma unroll
            for (int l = 0; l < L; l++) {
                store_sums(parts[buffer][warp][l][0], sum[l][0], lane);
                store_sums(parts[buffer][warp][l][1], sum[l][1], lane);
            }
            __syncthreads(); // one is enough: the next writes go to the other buffer, and those after that barrier

            // The cell
            if (!works) continue;
            for (int part = 0; part < PARTS; part++) {
                const float *mine = &parts[buffer][part][cell_layer][warp % 2][lane];
                for (int gate = 0; gate < 4; gate++) z[gate] += mine[32 * gate];
            }
            const Gates gate = {sigmoid(z[0]), sigmoid(z[1]), tanh_by_sigmoid(z[2]), sigmoid(z[3])};
            const float h = to_float(from_float<__nv_bfloat16>(cell_forward(gate, &c)));
            const uint2 h_units = pack_units(h, lane), x_units = pack_units(h * mask, lane);
            if (!exists) continue;
            if (lane / 8 == 0) exchange_store(&a.h[at], h_units);
            if (lane / 8 == 1) exchange_store(&a.x[at - 1], x_units);
            a.c[at] = c;
            *(float4 *)&a.gates[4 * at] = make_float4(gate.i, gate.f, gate.g, gate.o);
            *(uint2 *)&a.dgates[(4 * r + lane / 8) * H + u - lane / 8] = make_uint2(ABSENT, ABSENT); // for the backward
        }
    }
}

// The lane's share of the block's columns of W_hh or W_ih, [4H,H], as 8 rows of A: w[j][first .. first + 3] is its 8 k
// of chunk j, of column u0 + lane / 4. Pairs of k of a column do not lie side by side, so a chunk of 8 columns goes
// through `staged` [32], the warp's own shared memory, in the order in which ldmatrix takes rows.
template <int SHARERS, int CHUNKS>
static __device__ void load_columns(uint32_t (&w)[CHUNKS][8], int first, const __nv_bfloat16 *weights, int H, int u0,
                                    int k0, int chunks, uint4 *staged) {
    const int lane = threadIdx.x % WARP;
    const int k = k0 + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
    const __nv_bfloat16 *from = weights + u0;
    uint4 row[CHUNKS];
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        row[j] = j < chunks ? *(const uint4 *)(from + (k + SHARERS * 32 * j) * H) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        staged[lane] = row[j];
        __syncwarp();
        ldmatrix<true>(w[j] + first, &staged[lane]);
        __syncwarp();
    }
}

#if CLUSTERS
constexpr int CLUSTER = 4; // blocks

// The backward's products where N = 4 blocks make a cluster (cuda/cluster.cuh). Each block has the columns of all their
// 32 units for a quarter of k, in as many registers as those of 8 units for all k, reads that quarter of dgates only,
// and sends its parts of the sums to the units' blocks. So a round has a quarter of the traffic from L2, and a barrier
// of the cluster more: by count a step at batch 8 takes some 8 % less time. Compiled with `make CLUSTERS=1` only, and
// not yet run on a GPU.
//
// A warp has one layer, and two tiles of 16 units for each of its matrices, so that 8 / L warps share k. Every thread
// then adds their parts of the sums of a unit and window, and sends them to where `parts` is in the unit's block:
//
//     own[sharer][layer][0: W_hh, 1: W_ih][32 units x 8 windows]   --- 64 threads for each block --->
//     parts[rank of the block that sends][layer][64 of W_hh, 64 of W_ih, each 8 units x 8 windows]
template <int L, int N, int CHUNKS>
static __device__ void multiply_in_cluster(float (&parts)[PARTS][L][128], const uint32_t (&w)[N][CHUNKS][8],
                                           const uint4 (&found)[CHUNKS], int layer, int sharer) {
    static_assert(N * FAST_UNITS * FAST_WINDOWS == FAST_THREADS);
    __shared__ __align__(16) float own[PARTS / L][L][2][FAST_THREADS];
    float sum[N][4] = {};
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
            if (tile < N / 2 || layer > 0) multiply_32(sum[tile], w[tile][j], found[j]);
        }
    }
#pragma unroll
    for (int tile = 0; tile < N; tile++) {
        store_sums(&own[sharer][layer][tile / (N / 2)][tile % (N / 2) * 128], sum[tile], threadIdx.x % WARP);
    }
    __syncthreads();
    float total[2 * L - 1] = {}; // 2 l: of W_hh of layer l, 2 l - 1: of its W_ih
    for (int i = 0; i < 2 * L - 1; i++) {
        for (int from = 0; from < PARTS / L; from++) total[i] += own[from][(i + 1) / 2][i % 2][threadIdx.x];
    }
    for (int i = 0; i < 2 * L - 1; i++) {
        float *mine = &parts[cluster_rank()][(i + 1) / 2][i % 2 * 64 + threadIdx.x % 64];
        *cluster_shared(mine, threadIdx.x / 64) = total[i];
    }
    cluster_sync(); // one is enough here, too
}
#endif

// All layers and time steps, back. A layer has one tile of 16 sums: dgates_(t+1) times the columns of W_hh, and times
// those of W_ih, which gives dx_(t+1) of the layer below. N blocks make a cluster; 1: there are none. A warp has at
// most CHUNKS chunks of 32 k.
template <int L, int CHUNKS, int N>
static __global__ void __launch_bounds__(FAST_THREADS, 1)
    recurrence_backward_fast_kernel(FastRecurrence<L> args, const DeviceState *state) {
    constexpr int SHARERS = N > 1 ? PARTS / L : PARTS, LAYERS = N > 1 ? 1 : L; // warps that share k, a warp's layers
    __shared__ __align__(16) float parts[2][PARTS][L][128];
    const int B = args.B, T = args.T, H = args.H, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int u0 = blockIdx.x % (H / FAST_UNITS) * FAST_UNITS;
    const int first = blockIdx.x / (H / FAST_UNITS) * args.windows, end = min(first + args.windows, B);
    const int rank = blockIdx.x % N, layer0 = N > 1 ? warp / SHARERS % L : 0, sharer = warp - layer0 * SHARERS;
    const int k0 = rank * (4 * H / N) + sharer * 32, chunks = (H / 8 / N - sharer + SHARERS - 1) / SHARERS;
    uint32_t w[LAYERS][N][CHUNKS][8]; // N tiles of 16 columns: of W_hh, then of W_ih
    uint4 *staged = (uint4 *)parts[0][warp];
#pragma unroll
    for (int l = 0; l < LAYERS; l++) {
        const LayerRecurrence<__nv_bfloat16> &a = args.layers[layer0 + l];
        for (int half = 0; half < (layer0 + l > 0 ? 2 * N : N); half++) {
            load_columns<SHARERS>(w[l][half / 2], half % 2 * 4, half < N ? a.w_hh : a.w_ih, H,
                                  u0 + (half % N - rank) * FAST_UNITS, k0, chunks, staged);
        }
    }
#if CLUSTERS
    if (N > 1) cluster_sync(); // all blocks of the cluster have begun
#endif

    const int cell_layer = warp / 2 % L, u = u0 + threadIdx.x % 64 / 8; // of the thread, where warp < 2 L
    const int mine = (threadIdx.x % 64) ^ (cell_layer || N > 1 ? 0 : threadIdx.x >> 2 & 8); // the place of its sum
    int buffer = 0;
    for (int round = 0; round < T + L - 1; round++) {
        for (int b0 = first; b0 < end; b0 += FAST_WINDOWS, buffer ^= 1) {
            // What the cell needs besides the products
            const int t_cell = T - 1 - round + (L - 1 - cell_layer), b_cell = b0 + lane % 8;
            const bool works = warp < 2 * L && t_cell >= 0 && t_cell < T, exists = works && b_cell < end;
            const LayerRecurrence<__nv_bfloat16> &a = args.layers[cell_layer];
            const int64_t r = (int64_t)t_cell * B + b_cell, at = r * H + u;
            float dx = 0, dc = 0, c = 0, c_before = 0, mask = 0;
            float4 gate = make_float4(0, 0, 0, 0);
            if (exists) {
                if (cell_layer == L - 1) dx = args.dx[at];
                if (t_cell < T - 1) dc = a.dc[(int64_t)b_cell * H + u];
                if (t_cell > 0) c_before = a.c[at - (int64_t)B * H];
                c = a.c[at];
                gate = *(const float4 *)&a.gates[4 * at];
                mask = dropout_one(a.dropout, state, b_cell, t_cell, u);
            }

            // The warp's part of the products
            const __nv_bfloat16 *rows[LAYERS];
#pragma unroll
            for (int l = 0; l < LAYERS; l++) {
                const int t_after = T - round + (L - 1 - layer0 - l), b = b0 + lane / 4;
                const bool there = b < end && t_after >= 0 && t_after < T;
                const __nv_bfloat16 *from = args.layers[layer0 + l].dgates + k0 + lane % 4 * 8;
                rows[l] = there ? from + ((int64_t)t_after * B + b) * 4 * H : nullptr;
            }
            uint4 found[LAYERS][CHUNKS];
            fetch<SHARERS>(found, rows, chunks, b0 == first);
            if constexpr (N > 1) {
                multiply_in_cluster(parts[buffer], w[0], found[0], layer0, sharer);
            } else {
                float sum[L][2][4] = {}; // of even and of odd chunks: two chains of products are done sooner than one
#pragma unroll
                for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
                    for (int l = 1; l < L; l++) multiply_32(sum[l][j % 2], w[l][0][j], found[l][j]);
                    multiply_32_transposed(sum[0][j % 2], w[0][0][j], found[0][j]);
                }
#pragma unroll
                for (int l = 0; l < L; l++) {
                    for (int e = 0; e < 4; e++) sum[l][0][e] += sum[l][1][e];
                    if (l > 0) store_sums(parts[buffer][warp][l], sum[l][0], lane);
                }
                for (int e = 0; e < 2; e++) { // rows 4 .. 7 change places in pairs: no two lanes store to a bank
                    parts[buffer][warp][0][(2 * (lane % 4) + (e ^ (lane >> 1 & 1))) * 8 + lane / 4] = sum[0][0][e];
                }
                __syncthreads();
            }

            // The cell
            if (!works) continue;
            float dh = 0;
            for (int part = 0; part < (N > 1 ? N : PARTS); part++) {
                dh += parts[buffer][part][cell_layer][mine];
                if (cell_layer < L - 1) dx += parts[buffer][part][cell_layer + 1][64 + threadIdx.x % 64];
            }
            const Gates d = cell_backward({gate.x, gate.y, gate.z, gate.w}, &dc, dh + dx * mask, c, c_before);
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

// ---- the recurrence: launches

// Up to three tensors of n x 16 bytes become ABSENT; blockIdx.y tells which.
static __global__ void __launch_bounds__(256) absent_kernel(uint4 *first, uint4 *second, uint4 *third, int64_t n) {
    await_previous_kernel();
    uint4 *tensor = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
        tensor[i] = make_uint4(ABSENT, ABSENT, ABSENT, ABSENT);
    }
}

// How many sets of H / 8 blocks of this kernel run at the same time: 0 if not even one does.
template <typename Kernel>
static int fast_sets(Kernel *kernel, int H) {
    int blocks = 0;
    cudaDeviceProp device;
    cuda_check(cudaGetDeviceProperties(&device, 0));
    cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, FAST_THREADS, 0));
    return device.cooperativeLaunch ? device.multiProcessorCount * blocks / (H / FAST_UNITS) : 0;
}

template <int L, int CHUNKS>
static void fast_shape(RecurrenceShape *s) {
    s->forward_sets = fast_sets(recurrence_forward_fast_kernel<L, CHUNKS>, s->H);
    s->backward_sets = fast_sets(recurrence_backward_fast_kernel<L, 4 * CHUNKS, 1>, s->H);
    if (!s->forward_sets || !s->backward_sets) s->forward_sets = s->backward_sets = 0;
#if CLUSTERS
    // Clusters, where as many sets of them run as the backward would have without.
    const auto kernel = recurrence_backward_fast_kernel<L, L * CHUNKS, CLUSTER>;
    const int blocks = s->H / FAST_UNITS;
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = cluster_config(attributes, CLUSTER, blocks, FAST_THREADS, 0, true, nullptr);
    const int sets = min(s->backward_sets, (int)divide_up(s->B, FAST_WINDOWS));
    s->clusters = sets > 0 && clusters_at_once(kernel, &config) * CLUSTER >= sets * blocks;
#endif
}

// The sizes, and which kernels serve them on this GPU. The fast kernels serve any batch: their time grows with it, but
// no faster than the plain ones'. They are compiled for each number of layers, and for H up to 256 and up to 512, which
// is CHUNKS times 256.
template <typename Operand>
static RecurrenceShape recurrence_shape(int B, int T, int H, int L) {
    RecurrenceShape s = {B, T, H, L, 0, 0, false};
    if (!BF16<Operand> || L > FAST_LAYERS || H % 32 || H > FAST_WIDTH) return s;
    decltype(fast_shape<1, 1>) *const shapes[FAST_LAYERS][2] = {{fast_shape<1, 1>, fast_shape<1, 2>},
                                                                {fast_shape<2, 1>, fast_shape<2, 2>}};
    shapes[L - 1][H > 256](&s);
    return s;
}

// The forward from table and tokens, or, where there is dx, the backward. Tiles of windows are dealt out evenly to as
// many sets of blocks as run.
template <int L, int CHUNKS>
static void fast_launch(const LayerRecurrence<__nv_bfloat16> *layers, RecurrenceShape s, const float *table,
                        const uint8_t *tokens, const float *dx, const DeviceState *state, cudaStream_t stream) {
    const int tiles = divide_up(s.B, FAST_WINDOWS), sets = min(dx ? s.backward_sets : s.forward_sets, tiles);
    const int windows = (int)divide_up(tiles, sets) * FAST_WINDOWS;
    FastRecurrence<L> args = {{}, s.B, s.T, s.H, windows, table, tokens, dx};
    for (int l = 0; l < L; l++) args.layers[l] = layers[l];
    const dim3 blocks(divide_up(s.B, windows) * (s.H / FAST_UNITS)), threads(FAST_THREADS);
    void *pointers[] = {&args, &state};
    if (dx && s.clusters) {
#if CLUSTERS
        cudaLaunchAttribute attributes[2];
        const cudaLaunchConfig_t config = cluster_config(attributes, CLUSTER, blocks, FAST_THREADS, 0, true, stream);
        cudaLaunchKernelEx(&config, recurrence_backward_fast_kernel<L, L * CHUNKS, CLUSTER>, args, state);
        LAUNCHED(recurrence_backward_fast_kernel<L, L * CHUNKS, CLUSTER>);
#endif
    } else if (dx) {
        cudaLaunchCooperativeKernel(recurrence_backward_fast_kernel<L, 4 * CHUNKS, 1>, blocks, threads, pointers, 0,
                                    stream);
        LAUNCHED(recurrence_backward_fast_kernel<L, 4 * CHUNKS, 1>);
    } else {
        cudaLaunchCooperativeKernel(recurrence_forward_fast_kernel<L, CHUNKS>, blocks, threads, pointers, 0, stream);
        LAUNCHED(recurrence_forward_fast_kernel<L, CHUNKS>);
    }
}

static void recurrence_fast(const LayerRecurrence<__nv_bfloat16> *layers, RecurrenceShape s, const float *table,
                            const uint8_t *tokens, const float *dx, const DeviceState *state, cudaStream_t stream) {
    decltype(fast_launch<1, 1>) *const launches[FAST_LAYERS][2] = {{fast_launch<1, 1>, fast_launch<1, 2>},
                                                                   {fast_launch<2, 1>, fast_launch<2, 2>}};
    launches[s.L - 1][s.H > 256](layers, s, table, tokens, dx, state, stream);
}

// What recurrence_forward() needs before it: h and x are ABSENT where the fast kernels look for them.
template <typename Operand>
static void recurrence_prepare(const LayerRecurrence<Operand> *layers, RecurrenceShape s, cudaStream_t stream) {
    if (!s.forward_sets) return;
    absent_kernel<<<dim3(256, 2 * s.L - 1), 256, 0, stream>>>((uint4 *)layers[0].h, (uint4 *)layers[0].x,
                                                              (uint4 *)layers[s.L - 1].h, (int64_t)s.B * s.T * s.H / 8);
    LAUNCHED(absent_kernel);
}

// gates, c, h, x of all layers, and what dgates must be for the backward, from tokens [R] and from table [V,4H], layer
// 0's input product of each token.
template <typename Operand>
static void recurrence_forward(const LayerRecurrence<Operand> *layers, RecurrenceShape s, const float *table,
                               const uint8_t *tokens, const DeviceState *state, cudaStream_t stream) {
    if constexpr (BF16<Operand>) {
        if (s.forward_sets) return recurrence_fast(layers, s, table, tokens, nullptr, state, stream);
    }
    recurrence_forward_plain(layers, s, table, tokens, state, stream);
}

// dgates of all layers, once after each forward with the same s, from dx [R,H], the gradient of the last layer's x. dx
// is used up.
template <typename Operand>
static void recurrence_backward(const LayerRecurrence<Operand> *layers, RecurrenceShape s, float *dx,
                                const DeviceState *state, cudaStream_t stream) {
    if constexpr (BF16<Operand>) {
        if (s.backward_sets) return recurrence_fast(layers, s, nullptr, nullptr, dx, state, stream);
    }
    recurrence_backward_plain(layers, s, dx, state, stream);
}

// ---- LayerNorm, ReLU, dropout
//
// y = dropout(relu(normalized * w + b)), normalized = (x - mean) * rstd (Ba et al., 2016), x a product with its bias.
// A row has up to 2H numbers, more than a tile of a product is wide, so LayerNorm has kernels of its own. A warp owns a
// row, and a lane the channels 4 g .. 4 g + 3 with g = lane, lane + 32, ...

template <typename Operand>
struct LayerNorm {      // at one place of the model
    Operand *y;         // [R,C]
    float *normalized;  // [R,C], comes as x without the bias
    float *rstd;        // [R]
    float *sums;        // layernorm_sums_size, of the backward
    const float *w, *b; // [C]
    Dropout dropout;
};

constexpr int NORM_THREADS = 256; // of a block
constexpr int NORM_ROWS = 16;     // of a block in the backward; they have one sum of dw and db

template <typename Operand>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_relu_dropout_forward_kernel(LayerNorm<Operand> norm, const float *bias, const DeviceState *state, int R,
                                          int B, int C) {
    await_previous_kernel();
    const int r = blockIdx.x * (NORM_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (r >= R) return;
    float *row = norm.normalized + (size_t)r * C, sum = 0, squares = 0;
    for (int g = lane; 4 * g < C; g += WARP) {
        const Four<float> add = get_four(bias, g, C);
        Four<float> x = get_four(row, g, C);
        for (int e = 0; e < 4; e++) {
            x.at[e] += add.at[e];
            sum += x.at[e];
        }
        put_four(row, g, C, x);
    }
    const float mean = warp_sum(sum) / (float)C;
    for (int g = lane; 4 * g < C; g += WARP) { // each lane reads what it has written itself
        const Four<float> x = get_four(row, g, C);
        for (int e = 0; e < 4; e++) {
            const float distance = 4 * g + e < C ? x.at[e] - mean : 0;
            squares += distance * distance;
        }
    }
    const float scale = 1 / sqrtf(warp_sum(squares) / (float)C + 1e-5f);
    for (int g = lane; 4 * g < C; g += WARP) {
        const Four<float> w = get_four(norm.w, g, C), b = get_four(norm.b, g, C);
        const Four<float> mask = dropout_four(norm.dropout, state->step, r % B, r / B, g);
        Four<float> x = get_four(row, g, C), y;
        for (int e = 0; e < 4; e++) {
            x.at[e] = (x.at[e] - mean) * scale;
            const float v = x.at[e] * w.at[e] + b.at[e];
            y.at[e] = (v < 0 ? 0 : v) * mask.at[e]; // a NaN stays
        }
        put_four(row, g, C, x);
        put_four(norm.y + (size_t)r * C, g, C, y);
    }
    if (lane == 0) norm.rstd[r] = scale;
}

// With dv = dy * mask where v = normalized * w + b > 0, and g = dv * w:
//     dx = rstd * (g - mean(g) - normalized * mean(g * normalized))
// dy [R,C] becomes dv; dx [R,C] is the operand of the products that follow. A block's share of dw and db goes to
// norm.sums [blocks][2][C]. For that, each thread owns columns.
template <typename Operand>
static __global__ void __launch_bounds__(NORM_THREADS)
    layernorm_relu_dropout_backward_kernel(Operand *dx, float *dy, LayerNorm<Operand> norm, const DeviceState *state,
                                           int R, int B, int C) {
    await_previous_kernel();
    const int first = blockIdx.x * NORM_ROWS, end = min(first + NORM_ROWS, R), lane = threadIdx.x % WARP;
    for (int r = first + threadIdx.x / WARP; r < end; r += NORM_THREADS / WARP) {
        const size_t at = (size_t)r * C;
        float sum = 0, product = 0;
        for (int g = lane; 4 * g < C; g += WARP) {
            const Four<float> n = get_four(norm.normalized + at, g, C), w = get_four(norm.w, g, C);
            const Four<float> b = get_four(norm.b, g, C);
            const Four<float> mask = dropout_four(norm.dropout, state->step, r % B, r / B, g);
            Four<float> dv = get_four(dy + at, g, C);
            for (int e = 0; e < 4; e++) {
                dv.at[e] = n.at[e] * w.at[e] + b.at[e] > 0 ? dv.at[e] * mask.at[e] : 0;
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
    float *sums = norm.sums + (size_t)blockIdx.x * 2 * C;
    for (int c = threadIdx.x; c < C; c += NORM_THREADS) {
        float dw = 0, db = 0;
        for (int r = first; r < end; r++) {
            dw += dy[(size_t)r * C + c] * norm.normalized[(size_t)r * C + c];
            db += dy[(size_t)r * C + c];
        }
        sums[c] = dw;
        sums[C + c] = db;
    }
}

// norm.y, normalized and rstd of all rows; bias [C] is the product's. eps is 1e-5.
template <typename Operand>
static void layernorm_relu_dropout_forward(LayerNorm<Operand> norm, const float *bias, const DeviceState *state, int R,
                                           int B, int C, cudaStream_t stream) {
    const int grid = blocks_for(R, NORM_THREADS / WARP), threads = NORM_THREADS;
    layernorm_relu_dropout_forward_kernel<Operand><<<grid, threads, 0, stream>>>(norm, bias, state, R, B, C);
    LAUNCHED(layernorm_relu_dropout_forward_kernel<Operand>);
}

// dx [R,C] from dy [R,C], which is used up; and norm.sums.
template <typename Operand>
static void layernorm_relu_dropout_backward(Operand *dx, float *dy, LayerNorm<Operand> norm, const DeviceState *state,
                                            int R, int B, int C, cudaStream_t stream) {
    const int grid = blocks_for(R, NORM_ROWS), threads = NORM_THREADS;
    layernorm_relu_dropout_backward_kernel<Operand><<<grid, threads, 0, stream>>>(dx, dy, norm, state, R, B, C);
    LAUNCHED(layernorm_relu_dropout_backward_kernel<Operand>);
}

static size_t layernorm_sums_size(int R, int C) { return (size_t)blocks_for(R, NORM_ROWS) * 2 * C; }

// Appends to the list that dw and db [C] are the sums of the blocks' shares.
static void layernorm_sums(SumList *list, float *dw, float *db, const float *sums, int R, int C) {
    sums_add(list, dw, sums, blocks_for(R, NORM_ROWS), (size_t)2 * C, C);
    sums_add(list, db, sums + C, blocks_for(R, NORM_ROWS), (size_t)2 * C, C);
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
struct Lstm {
    DeviceModel device; // first
    RecurrenceShape shape;
    LstmTensors params, grads;
    LayerRecurrence<Operand> acts[LSTM_MAX_LAYERS]; // what the backward needs of a layer's forward, and its weights
    float *table;                                   // [V,4H] layer 0's input product of each token
    LayerNorm<Operand> norm1, norm2;                // of the head, 2H and H wide
    float *logits;                                  // [R,V]
    Operand *dlogits, *dfc1, *dfc2;                 // [R,DLOGITS_ROW], [R,2H], [R,H]
    float *d;                                       // [R,2H or E] the gradient on its way down
    Operand *emb;                                   // [R,E]
    float *partial;                                 // embedding_partial_size
    float *layer_parts;                             // scratch for the weights' gradients
};

template <typename Operand>
static int lstm_layers(const Lstm<Operand> *m) {
    return m->device.config.sizes[LSTM_LAYERS];
}

// What W_hh of layer l multiplied, [R,H]: B rows of zeros, which lie before h, then h of all time steps but the last.
template <typename Operand>
static Operand *lstm_h_before(const Lstm<Operand> *m, int l) {
    Operand *h = m->acts[l].h;
    return h ? h - (size_t)m->device.config.B * m->device.config.sizes[LSTM_WIDTH] : nullptr;
}

constexpr int GROUP_LAYERS = WEIGHT_GROUP / 2; // layers whose weights' gradients are one launch

// The products that give the gradients of the weights of layers l0 .. l0 + GROUP_LAYERS - 1, as far as these exist.
// Returns how many there are.
template <typename Operand>
static int lstm_layer_weights(const Lstm<Operand> *m, int l0, WeightGradient<Operand> *list) {
    const int *sizes = m->device.config.sizes;
    const int H = sizes[LSTM_WIDTH], end = min(l0 + GROUP_LAYERS, lstm_layers(m));
    int n = 0;
    for (int l = l0; l < end; l++) {
        const LayerTensors *dlayer = &m->grads.layers[l];
        const LayerRecurrence<Operand> *a = &m->acts[l];
        list[n++] = {dlayer->w_hh, dlayer->b_hh, a->dgates, lstm_h_before(m, l), H, 4 * H};
        const Operand *x = l ? a[-1].x : m->emb;
        list[n++] = {dlayer->w_ih, dlayer->b_ih, a->dgates, x, l ? H : sizes[LSTM_EMBED], 4 * H};
    }
    return n;
}

template <typename Operand>
static void lstm_carve(void *model, DeviceArena *arena) {
    Lstm<Operand> *m = (Lstm<Operand> *)model;
    const ModelConfig *config = &m->device.config;
    const int B = config->B, E = config->sizes[LSTM_EMBED], H = config->sizes[LSTM_WIDTH], rows = B * config->T;
    const double R = rows;
    for (int l = 0; l < lstm_layers(m); l++) {
        LayerRecurrence<Operand> *a = &m->acts[l];
        device_take(arena, R * 4 * H, &a->gates, &a->dgates);
        device_take(arena, R * H, &a->c, &a->x);
        device_take(arena, (R + B) * H, &a->h);
        if (a->h) a->h += (size_t)B * H; // after the zeros of lstm_h_before()
        device_take(arena, (double)B * H, &a->dc);
    }
    device_take(arena, (double)V * 4 * H, &m->table);
    device_take(arena, R, &m->norm1.rstd, &m->norm2.rstd);
    device_take(arena, R * 2 * H, &m->norm1.normalized, &m->norm1.y, &m->dfc1);
    device_take(arena, R * H, &m->norm2.normalized, &m->norm2.y, &m->dfc2);
    device_take(arena, R * V, &m->logits);
    device_take(arena, R * DLOGITS_ROW, &m->dlogits);
    device_take(arena, R * max(2 * H, E), &m->d);
    device_take(arena, R * E, &m->emb);
    device_take(arena, (double)embedding_partial_size(rows, E), &m->partial);
    device_take(arena, (double)layernorm_sums_size(rows, 2 * H), &m->norm1.sums);
    device_take(arena, (double)layernorm_sums_size(rows, H), &m->norm2.sums);
    WeightGradient<Operand> layers[WEIGHT_GROUP];
    size_t most = 0;
    for (int l = 0; l < lstm_layers(m); l += GROUP_LAYERS) {
        const int n = lstm_layer_weights(m, l, layers);
        most = max(most, matmul_weights_scratch(layers, n, rows));
    }
    device_take(arena, (double)most, &m->layer_parts);
}

// ---- the model: forward, backward, update

// Logits of the first B windows of inputs, with the dropout of the training step, or without. What the recurrence needs
// besides inputs is made on the side stream, while these are loaded.
template <typename Operand>
static void lstm_forward(Lstm<Operand> *m, int B, bool training) {
    DeviceModel *device = &m->device;
    const int *sizes = device->config.sizes, L = lstm_layers(m);
    const int T = device->config.T, R = B * T, E = sizes[LSTM_EMBED], H = sizes[LSTM_WIDTH];
    const LstmTensors *p = &m->params;
    const cudaStream_t stream = device->stream;
    RecurrenceShape shape = m->shape;
    shape.B = B;
    for (int l = 0; l < L; l++) m->acts[l].dropout = device_dropout(device, training, l);
    m->norm1.dropout = device_dropout(device, training, L);
    m->norm2.dropout = device_dropout(device, training, L + 1);
    recurrence_prepare(m->acts, shape, device->side);
    matmul_forward(m->table, weight<Operand>(device, p->emb), m->acts[0].w_ih, nullptr, false, V, E, 4 * H,
                   device->side);
    device_follow(device, stream, device->side);
    recurrence_forward(m->acts, shape, m->table, device->inputs, device->state, stream);
    matmul_forward(m->norm1.normalized, m->acts[L - 1].x, weight<Operand>(device, p->fc1_w), nullptr, false, R, H,
                   2 * H, stream);
    layernorm_relu_dropout_forward(m->norm1, p->fc1_b, device->state, R, B, 2 * H, stream);
    matmul_forward(m->norm2.normalized, m->norm1.y, weight<Operand>(device, p->fc2_w), nullptr, false, R, 2 * H, H,
                   stream);
    layernorm_relu_dropout_forward(m->norm2, p->fc2_b, device->state, R, B, H, stream);
    matmul_forward(m->logits, m->norm2.y, weight<Operand>(device, p->fc3_w), p->fc3_b, false, R, H, V, stream);
}

// Gradients of all parameters, after lstm_forward and softmax_cross_entropy of the same step. What only the update
// waits for runs on the side stream: the mean loss, the gradients of the head's weights beside the recurrence, then
// those of the layers' weights beside the embedding's. While the recurrence runs there is time for the head's few tiles
// of all R rows each. Parts of R would want one launch more.
template <typename Operand>
static void lstm_backward(Lstm<Operand> *m) {
    DeviceModel *device = &m->device;
    const int *sizes = device->config.sizes, L = lstm_layers(m);
    const int B = device->config.B, R = B * device->config.T, E = sizes[LSTM_EMBED], H = sizes[LSTM_WIDTH];
    const LstmTensors *p = &m->params, *g = &m->grads;
    const cudaStream_t stream = device->stream, side = device->side;
    device_fork(device);
    loss_kernel<<<1, 256, 0, side>>>(device->state, device->losses, R, device->config);
    LAUNCHED(loss_kernel);
    embedding_forward(m->emb, device->inputs, p->emb, R, E, side);
    // logits = fc3(dropout(relu(LN2(fc2(dropout(relu(LN1(fc1(x)))))))))
    matmul_backward_input<Operand>(m->d, m->dlogits, weight<Operand>(device, p->fc3_w), nullptr, false, R, H, V, stream,
                                   DLOGITS_ROW);
    layernorm_relu_dropout_backward(m->dfc2, m->d, m->norm2, device->state, R, B, H, stream);
    matmul_backward_input<Operand>(m->d, m->dfc2, weight<Operand>(device, p->fc2_w), nullptr, false, R, 2 * H, H,
                                   stream);
    layernorm_relu_dropout_backward(m->dfc1, m->d, m->norm1, device->state, R, B, 2 * H, stream);
    matmul_backward_input<Operand>(m->d, m->dfc1, weight<Operand>(device, p->fc1_w), nullptr, false, R, H, 2 * H,
                                   stream);
    device_fork(device);
    const WeightGradient<Operand> head[] = {{g->fc3_w, g->fc3_b, m->dlogits, m->norm2.y, H, V, DLOGITS_ROW},
                                            {g->fc2_w, g->fc2_b, m->dfc2, m->norm1.y, 2 * H, H},
                                            {g->fc1_w, g->fc1_b, m->dfc1, m->acts[L - 1].x, H, 2 * H}};
    matmul_weights_launch<Operand, 128, 128>(head, 3, R, {true, 1, R, 0}, nullptr, nullptr, side);
    recurrence_backward(m->acts, m->shape, m->d, device->state, stream);
    device_fork(device);
    SumList sums = {};
    layernorm_sums(&sums, g->ln2_w, g->ln2_b, m->norm2.sums, R, H);
    layernorm_sums(&sums, g->ln1_w, g->ln1_b, m->norm1.sums, R, 2 * H);
    for (int l = 0; l < L; l += GROUP_LAYERS, sums.n = 0) {
        WeightGradient<Operand> weights[WEIGHT_GROUP];
        const int n = lstm_layer_weights(m, l, weights);
        matmul_backward_weights(weights, n, R, m->layer_parts, &sums, side);
        sum_parts(&sums, side);
    }
    matmul_backward_input<Operand>(m->d, m->acts[0].dgates, m->acts[0].w_ih, nullptr, false, R, E, 4 * H, stream);
    embedding_backward(g->emb, m->partial, m->d, device->inputs, R, E, stream);
    device_follow(device, stream, side);
}

// ---- what the recipe asks of a model (dev/recipe/model.h, ModelSpec; dev/cuda/device_model.cuh, DeviceHooks)

// Forward and losses of B windows of inputs and targets; when training, with dropout and the backward.
template <typename Operand>
static void lstm_enqueue(void *model, int B, bool training) {
    Lstm<Operand> *m = (Lstm<Operand> *)model;
    lstm_forward(m, B, training);
    softmax_cross_entropy(&m->device, training ? m->dlogits : nullptr, m->logits, B * m->device.config.T);
    if (training) lstm_backward(m);
}

template <typename Operand>
static const DeviceHooks lstm_hooks = {
    .program = "train_lstm_music",
    .time_major = true,
    .layout = lstm_layout,
    .carve = lstm_carve<Operand>,
    .enqueue = lstm_enqueue<Operand>,
    .enqueue_update = adamax<Operand>,
};

template <typename Operand>
static void *lstm_create_as(const ModelConfig *config, char *error) {
    Lstm<Operand> *m = (Lstm<Operand> *)device_create(sizeof *m, config, &lstm_hooks<Operand>, error);
    if (!m) return nullptr;
    const int L = lstm_layers(m), H = config->sizes[LSTM_WIDTH];
    lstm_point(&m->params, &m->device.layout, L, m->device.flat[STATE_PARAMS]);
    lstm_point(&m->grads, &m->device.layout, L, m->device.flat[STATE_GRADS]);
    for (int l = 0; l < L; l++) {
        m->acts[l].w_ih = weight<Operand>(&m->device, m->params.layers[l].w_ih);
        m->acts[l].w_hh = weight<Operand>(&m->device, m->params.layers[l].w_hh);
        m->acts[l].b_ih = m->params.layers[l].b_ih;
        m->acts[l].b_hh = m->params.layers[l].b_hh;
        const size_t zeros = (size_t)config->B * H * sizeof(Operand);
        cuda_check(cudaMemsetAsync(lstm_h_before(m, l), 0, zeros, m->device.stream));
    }
    m->norm1.w = m->params.ln1_w, m->norm1.b = m->params.ln1_b;
    m->norm2.w = m->params.ln2_w, m->norm2.b = m->params.ln2_b;
    m->shape = recurrence_shape<Operand>(config->B, config->T, H, L);
    fprintf(stderr, "the recurrence is %s%s\n",
            m->shape.forward_sets ? "one launch, its weights in registers" : "a launch for every time step",
            m->shape.clusters ? ", back in clusters" : "");
    return m;
}

// Before the step, this also keeps the parameters, because the update changes the LayerNorms' weights and biases.
template <typename Operand>
static int lstm_activations_as(Lstm<Operand> *m, Activation *list) {
    DeviceModel *device = &m->device;
    const ModelConfig *config = &device->config;
    const int L = lstm_layers(m), count = 2 * L + 3, H = config->sizes[LSTM_WIDTH];
    const int64_t R = (int64_t)config->B * config->T, size = R * ((2 * L + 3) * H + V), n = device->layout.size;
    if (!device->kept) device->kept = (float *)calloc((size_t)(size + n + R * max(2 * H, V)), sizeof(float));
    if (!device->kept) return -1;
    float *out = device->kept, *params = out + size, *rows = params + n;
    if (!list) {
        device_fetch(params, device->flat[STATE_PARAMS], n, false);
        return count;
    }
    LstmTensors before;
    lstm_point(&before, &device->layout, L, params);
    const float *data = out;
    for (int i = 0; i < count; i++) data += R * lstm_describe(&list[i], data, config, i);
    auto keep = [&](const auto *x, const float *w, const float *b, int C) {
        device_fetch(rows, x, R * C, sizeof *x == sizeof(__nv_bfloat16));
        out = lstm_keep_rows(config, out, rows, w, b, C);
    };
    for (int l = 0; l < L; l++) {
        keep(m->acts[l].h, nullptr, nullptr, H);
        keep(m->acts[l].c, nullptr, nullptr, H);
    }
    keep(m->norm1.normalized, before.ln1_w, before.ln1_b, 2 * H);
    keep(m->norm2.normalized, before.ln2_w, before.ln2_b, H);
    keep(m->logits, nullptr, nullptr, V);
    return count;
}

static void *lstm_create(const ModelConfig *config, char *error) {
    return strcmp(config->precision, "bf16") ? lstm_create_as<float>(config, error)
                                             : lstm_create_as<__nv_bfloat16>(config, error);
}

// The activations of the last step. Called with list NULL before that step, it makes room for them.
static int lstm_activations(void *model, Activation *list) {
    return ((DeviceModel *)model)->bf16 ? lstm_activations_as((Lstm<__nv_bfloat16> *)model, list)
                                        : lstm_activations_as((Lstm<float> *)model, list);
}

static const ModelSpec lstm_spec = {
    LSTM_MODEL_SPEC, DEVICE_MODEL_SPEC, .layout = lstm_layout, .create = lstm_create, .activations = lstm_activations,
};

#ifndef TESTING
#include "recipe/train.h"

int main(int argc, char **argv) {
    threads_wait_briefly(argv);
    return train_main(argc, argv, &lstm_spec);
}
#endif
