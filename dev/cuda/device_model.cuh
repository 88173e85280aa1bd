// What both CUDA trainers share, whatever their models are: the device and its memory, the training set and the running
// state of training on it, a training step as one CUDA graph, dropout masks, and the part of the recipe's interface
// (recipe/model.h, ModelSpec) that follows from these. cpu/host_model.h is the same for the CPU.
//
// A training step needs nothing from the host but the launch of its graph: what changes between steps is on the device.
//
// The trainers also share the matrix products (matmul.cuh, tensor_core.cuh), the checks of launches (check.cuh), how
// kernels overlap (overlap.cuh), and what has nothing to do with a GPU: parameters, batches and random numbers (base/),
// the sizes and tensors of a model's file (models/), and the recipe (recipe/). Every other kernel is in the model's own
// file, which repeats what is short: the embedding, softmax with cross-entropy, and Adamax.
#ifndef DEVICE_MODEL_CUH
#define DEVICE_MODEL_CUH

#include "base/params.h" // comes first: it chooses the system's interfaces

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/check.cuh"
#include "cuda/matmul.cuh"
#include "cuda/overlap.cuh"

#define DEVICE_PRECISIONS "bf16|fp32"
#ifdef CUDA_EMU
#define DEVICE_NAME "emu"
#else
#define DEVICE_NAME "cuda"
#endif

constexpr int WARP = 32;

// Whether operands are bf16, for tensor cores.
template <typename Operand>
constexpr bool BF16 = sizeof(Operand) == sizeof(__nv_bfloat16);

typedef struct {                // the running state of training
    int64_t step, epoch, index; // of the next step, as in StepPlan
    float rate;                 // lr / (1 - 0.9^t) of the step under way
    float decay;                // what weights lose of themselves in it
    float part;                 // of the new weights in their average, after it
    double lr;
    double loss;      // the mean loss of the step under way
    double loss_sum;  // the sum of the steps' mean losses, as in TrainLoss
    int64_t bad_step; // the first step whose loss or gradient was not finite, or -1
    int bad;          // whether the step under way has such a loss or gradient
} DeviceState;

typedef struct { // the training set; see data.h
    const uint8_t *tokens;
    const int64_t *pieces, *first_window;
    int64_t n_pieces, n_windows;
} DeviceData;

// The device's memory, given out in pieces that each begin at a 256-byte boundary. Without a base it only counts.
typedef struct {
    char *base;
    double used;
} DeviceArena;

// What a model's own file gives. `model` points to the model, whose first member is the DeviceModel. carve() may be
// called with any B before the model is made.
typedef struct {
    const char *program; // the program's name, for advice
    bool time_major;     // which row of a batch is which, see load_window()
    void (*layout)(const int *sizes, ParamLayout *out);
    void (*carve)(void *model, DeviceArena *arena); // takes its memory, for B and T of the config
    // Forward and losses of the first n windows of inputs and targets; when training, with dropout and the backward.
    // The side stream is where the main stream was before these were loaded.
    void (*enqueue)(void *model, int n, bool training);
    void (*enqueue_update)(void *model);
} DeviceHooks;

typedef struct { // the first member of a model
    ModelConfig config;
    ParamLayout layout;
    const DeviceHooks *hooks;
    bool bf16;
    int shared_limit; // bytes of shared memory that a block can have

    // On the device. Its memory is one block, for everything down to `targets`:
    char *memory;
    double bytes;        // of the block
    float *flat[STATES]; // the flat arrays, by STATE_*
    void *weights;       // the parameters as operands of products: in bf16, or the parameters themselves
    float *losses;       // [B*T]
    DeviceState *state;
    int64_t *starts;           // [B] where the windows of an evaluation begin
    uint8_t *decays;           // see params_decays
    uint8_t *inputs, *targets; // [B*T]
    DeviceData train;
    uint8_t *test_tokens;       // those of `test`
    cudaStream_t stream, side;  // a step's main stream, and the one for work that the main stream need not wait for
    cudaStream_t beside;        // for what not even the side stream need wait for
    cudaEvent_t reached;        // how far a stream is that another one follows
    cudaEvent_t done[2];        // marks on the side stream
    cudaEvent_t launched[4];    // the ends of the last four steps
    cudaGraphExec_t step_graph; // a training step, once it was captured

    // On the host:
    DeviceState expected; // what the host takes *state to be
    const Dataset *test;  // the test set that was seen last
    float *host[STATES];  // copies of the flat arrays, for the recipe
    bool swapped;         // the average and the weights have changed places, for an evaluation
    float *host_losses;
    uint8_t *host_targets;
    float *kept; // activations for a dump, or null
} DeviceModel;

static inline int blocks_for(int64_t n, int each) { return (int)((n + each - 1) / each); }

// ---- what kernels share

__device__ inline float warp_sum(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    return x;
}

typedef struct { // dropout at one place of the model
    PhiloxKey key;
    uint32_t threshold; // a random word below it drops its channel, as on the CPU; 0: no dropout
    float scale;        // 1/(1-p), for the other channels
} Dropout;

// Dropout at the model's place number `site`; none unless training.
static inline Dropout device_dropout(const DeviceModel *m, bool training, int site) {
    const double p = training ? m->config.dropout : 0;
    return {philox_key(m->config.seed, PHILOX_DROPOUT, (uint32_t)site), (uint32_t)(p * 4294967296.0),
            (float)(1 / (1 - p))};
}

// Which of channels 4g to 4g+3 of position (b, t) a step keeps: bit i for channel 4g + i. One call of Philox says it.
__device__ inline unsigned dropout_bits(Dropout dropout, int64_t step, int b, int t, int g) {
    Philox4 words = {{0, 0, 0, 0}};
    if (dropout.threshold > 0) words = philox(dropout.key, (uint32_t)g, (uint32_t)t, (uint32_t)b, (uint32_t)step);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) bits |= (unsigned)(words.x[i] >= dropout.threshold) << i;
    return bits;
}

// Their factors, 0 or 1/(1-p).
__device__ inline Four<float> dropout_factors(Dropout dropout, unsigned bits) {
    Four<float> kept;
#pragma unroll
    for (int i = 0; i < 4; i++) kept.at[i] = bits >> i & 1 ? dropout.scale : 0;
    return kept;
}
__device__ inline Four<float> dropout_four(Dropout dropout, int64_t step, int b, int t, int g) {
    return dropout_factors(dropout, dropout_bits(dropout, step, b, t, g));
}

// Channels 4g to 4g+3 of a row of C channels, with zeros from channel C on. Where C is a multiple of 4, the row begins
// at a multiple of 16 bytes. put_four() stores them, as float or bf16.
__device__ inline Four<float> get_four(const float *row, int g, int C) {
    return C % 4 ? load_first<false>(row + 4 * g, C - 4 * g) : load_first<true>(row + 4 * g, 4);
}

// The same of what the kernel does not write: such loads need not wait for its stores.
__device__ inline Four<float> read_four(const float *row, int g, int C) {
    if (C % 4) return get_four(row, g, C);
    const float4 v = __ldg((const float4 *)row + g);
    return {v.x, v.y, v.z, v.w};
}

template <typename Number>
__device__ inline void put_four(Number *row, int g, int C, Four<float> four) {
    Four<Number> out;
#pragma unroll
    for (int i = 0; i < 4; i++) out.at[i] = from_float<Number>(four.at[i]);
    C % 4 ? store_first<false>(row + 4 * g, out, C - 4 * g) : store_first<true>(row + 4 * g, out, 4);
}

// ---- batches

// The inputs and targets of window b of B, which begins at *tokens, transposed by `shift`; a block's work. Time-major,
// the rows of position 0 come first, then those of position 1; else the rows of window 0 come first.
__device__ inline void load_window(uint8_t *inputs, uint8_t *targets, const uint8_t *tokens, int shift, int b, int B,
                                   int T, bool time_major) {
    for (int t = (int)threadIdx.x; t < T; t += (int)blockDim.x) {
        const int r = time_major ? t * B + b : b * T + t;
        inputs[r] = (uint8_t)transposed(tokens[t], shift);
        targets[r] = (uint8_t)transposed(tokens[t + 1], shift);
    }
}

// A training batch, a block for each window: the windows number philox_permute(index * B + b), as epoch_batch() of
// data.h says, transposed as epoch_shifts() says.
static __global__ void __launch_bounds__(256)
    draw_windows_kernel(uint8_t *inputs, uint8_t *targets, const DeviceState *state, DeviceData data, uint64_t seed,
                        int B, int T, int shift_low, int shift_high, bool time_major) {
    await_previous_kernel();
    __shared__ int shift;
    const int b = (int)blockIdx.x, lane = (int)threadIdx.x;
    const uint64_t i = (uint64_t)(state->index * B + b);
    const PhiloxKey key = philox_key(seed, PHILOX_WINDOWS, (uint32_t)state->epoch);
    const int64_t w = (int64_t)philox_permute(key, (uint64_t)data.n_windows, i);
    int64_t low = 0, high = data.n_pieces; // first_window[low] <= w < first_window[high]
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (data.first_window[middle] <= w) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const uint8_t *tokens = data.tokens + data.pieces[low] + (w - data.first_window[low]);
    if (lane < WARP) { // the first warp looks for the shift
        int lowest = DATA_TOKENS, highest = 0;
        for (int t = lane; t <= T && shift_low < shift_high; t += WARP) {
            if (token_kind(tokens[t]) != 2) continue;
            lowest = min(lowest, (int)tokens[t]);
            highest = max(highest, (int)tokens[t]);
        }
        lowest = -(int)warp_max((float)-lowest);
        highest = (int)warp_max((float)highest);
        const PhiloxKey shift_key = philox_key(seed, PHILOX_TRANSPOSE, (uint32_t)state->epoch);
        if (lane == 0) shift = transposition(shift_key, i, shift_low, shift_high, lowest, highest);
    }
    __syncthreads();
    load_window(inputs, targets, tokens, shift, b, B, T, time_major);
}

// The windows of an evaluation, which begin at starts[b]; a block for each.
static __global__ void __launch_bounds__(256)
    load_windows_kernel(uint8_t *inputs, uint8_t *targets, const uint8_t *tokens, const int64_t *starts, int B, int T,
                        bool time_major) {
    await_previous_kernel();
    load_window(inputs, targets, tokens + starts[blockIdx.x], 0, (int)blockIdx.x, B, T, time_major);
}

// ---- the end of a step

// Sets the step's loss, which is the mean of the losses, whether it is finite, and the step's rate, decay and part. One
// block adds up the losses in a fixed order.
static __global__ void loss_kernel(DeviceState *state, const float *losses, int R, ModelConfig config) {
    await_previous_kernel();
    __shared__ double sums[256];
    double sum = 0;
#pragma unroll 4
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
        const double lr = warmed_lr(state->lr, config.warmup, state->step);
        state->rate = (float)(lr / (1 - pow(0.9, (double)(state->step + 1))));
        state->decay = (float)(lr * config.weight_decay);
        state->part = (float)average_part(config.average, state->step);
    }
}

// Marks the step as bad if a gradient is not finite. The threads of the grid share the flat array, four elements at
// once; n is a multiple of 16.
static __global__ void check_finite_kernel(DeviceState *state, const float *grads, int64_t n) {
    await_previous_kernel();
    bool bad = false;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += (int64_t)gridDim.x * blockDim.x) {
        const Four<float> g = get_four(grads + 4 * i, 0, 4);
        for (float x : g.at) bad |= !isfinite(x); // not ||, which would make each load wait for the one before
    }
    if (bad) atomicOr(&state->bad, 1);
}

// Counts the step, and remembers it if it is the first bad one. One thread.
static __global__ void end_step_kernel(DeviceState *state) {
    await_previous_kernel();
    if (state->bad_step < 0 && state->bad) state->bad_step = state->step;
    if (state->bad_step < 0) state->loss_sum += state->loss;
    state->step++;
    state->index++;
}

// out = in as operands of products in bf16
static __global__ void to_operands_kernel(__nv_bfloat16 *out, const float *in, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<__nv_bfloat16>(in[i]);
}

static __global__ void swap_kernel(float *a, float *b, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = a[i];
    a[i] = b[i];
    b[i] = x;
}

// A parameter as an operand of products; null as long as there is no memory.
template <typename Operand>
static inline const Operand *weight(const DeviceModel *m, const float *parameter) {
    return parameter ? (const Operand *)m->weights + (parameter - m->flat[STATE_PARAMS]) : nullptr;
}

// ---- memory, and the device

// Points *piece, and each of the others, to `count` elements of the arena. In the emulator with AddressSanitizer,
// nobody may touch what lies between the pieces.
template <typename Element, typename... Others>
static inline void device_take(DeviceArena *arena, double count, Element **piece, Others **...others) {
    const double end = arena->used + count * sizeof(Element);
    *piece = arena->base ? (Element *)(arena->base + (size_t)arena->used) : nullptr;
    arena->used = ceil(end / 256) * 256;
#ifdef EMU_ASAN
    arena->used += 256;
    if (arena->base) ASAN_POISON_MEMORY_REGION(arena->base + (size_t)end, (size_t)(arena->used - end));
#endif
    if constexpr (sizeof...(others) > 0) device_take(arena, count, others...);
}

// Lays the model out in memory from base on, or only counts if base is null. Returns the bytes.
static inline double device_carve(DeviceModel *m, char *base) {
    const double n = (double)m->layout.size, R = (double)m->config.B * m->config.T;
    DeviceArena arena = {base, 0};
    __nv_bfloat16 *rounded = nullptr;
    for (int i = 0; i < STATES; i++) {
        if (i != STATE_AVERAGE || m->config.average > 0) device_take(&arena, n, &m->flat[i]);
    }
    if (m->bf16) device_take(&arena, n, &rounded);
    m->weights = m->bf16 ? (void *)rounded : m->flat[STATE_PARAMS];
    device_take(&arena, R, &m->losses, &m->inputs, &m->targets);
    device_take(&arena, 1, &m->state);
    device_take(&arena, m->config.B, &m->starts);
    device_take(&arena, n / 16, &m->decays);
    m->hooks->carve(m, &arena);
    return arena.used;
}

static inline double device_bytes(DeviceModel *m, int B) { // that the model takes with this batch
    const int own = m->config.B;
    m->config.B = B;
    const double bytes = device_carve(m, nullptr);
    m->config.B = own;
    return bytes;
}

// Finds out what the device can do and how many bytes the model takes. False, and a sentence, if there is no device, if
// the program does not run on it, or if the model does not fit.
static inline bool device_open(DeviceModel *m, char *error) {
    int count = 0;
    cudaDeviceProp about;
    const char *program = m->hooks->program;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {
        return fail(error,
                    "the NVIDIA driver is missing or too old for this CUDA; install a newer one, or build for "
                    "the CPU: make DEVICE=cpu %s",
                    program);
    }
    if (status != cudaSuccess || count < 1) {
        return fail(error, "there is no GPU that CUDA can use (%s); build for the CPU: make DEVICE=cpu %s",
                    status == cudaSuccess ? "none found" : cudaGetErrorString(status), program);
    }
    cuda_check(cudaGetDeviceProperties(&about, 0));
    if (m->bf16 && about.major < 8) {
        return fail(error,
                    "--precision bf16: %s has compute capability %d.%d, and bf16 needs 8.0; take --precision fp32",
                    about.name, about.major, about.minor);
    }
    cudaFuncAttributes kernel;
    const cudaError_t built = cudaFuncGetAttributes(&kernel, end_step_kernel);
    if (built == cudaErrorNoKernelImageForDevice || built == cudaErrorInvalidDeviceFunction) {
        return fail(error,
                    "this program was not built for %s, compute capability %d.%d; build it on this machine: make -B "
                    "DEVICE=cuda %s (7.5 and up), or for the CPU: make -B DEVICE=cpu %s",
                    about.name, about.major, about.minor, program, program);
    }
    cuda_check(built);
    m->shared_limit = (int)about.sharedMemPerBlockOptin;
    size_t available = 0, total = 0;
    cuda_check(cudaMemGetInfo(&available, &total));
    available -= min(available, min((size_t)256 << 20, total / 16)); // for the data, the graph, the kernels themselves
    m->bytes = device_bytes(m, m->config.B);
    fprintf(stderr, "%s: the model and its activations take %.2f GB of %.2f GB\n", about.name, m->bytes / 1e9,
            (double)available / 1e9);
    if (m->bytes <= (double)available) return true;
    int fits = 0, next = m->config.B; // the largest batch that fits is in [fits, next)
    while (next - fits > 1) {
        const int middle = fits + (next - fits) / 2;
        if (device_bytes(m, middle) <= (double)available) {
            fits = middle;
        } else {
            next = middle;
        }
    }
    if (fits < 1)
        return fail(error,
                    "the model needs %.2f GB of the GPU's memory even with --batch 1, and %.2f GB are free; make it "
                    "smaller, or --window shorter",
                    device_bytes(m, 1) / 1e9, (double)available / 1e9);
    return fail(error, "--batch %d takes %.2f GB of the GPU's memory, and %.2f GB are free; --batch %d would fit",
                m->config.B, m->bytes / 1e9, (double)available / 1e9, fits);
}

static inline void device_destroy(void *model) {
    DeviceModel *m = (DeviceModel *)model;
    if (!m) return;
    if (m->stream) { // then all the others are there
        const void *pieces[] = {m->memory, m->train.tokens, m->train.pieces, m->train.first_window, m->test_tokens};
        if (m->step_graph) cuda_check(cudaGraphExecDestroy(m->step_graph));
        for (const void *piece : pieces) cuda_check(cudaFree((void *)piece)); // or nullptr
        for (cudaEvent_t event : m->done) cuda_check(cudaEventDestroy(event));
        for (cudaEvent_t event : m->launched) cuda_check(cudaEventDestroy(event));
        cuda_check(cudaEventDestroy(m->reached));
        cuda_check(cudaStreamDestroy(m->beside));
        cuda_check(cudaStreamDestroy(m->side));
        cuda_check(cudaStreamDestroy(m->stream));
    }
    layout_free(&m->layout);
    for (float *flat : m->host) free(flat);
    free(m->host_losses);
    free(m->host_targets);
    free(m->kept);
    free(m);
}

// Fills in a DeviceModel that is all zeros. False, and a sentence, if that fails.
static inline bool device_fill(DeviceModel *m, const ModelConfig *config, const DeviceHooks *hooks, char *error) {
    m->config = *config;
    m->hooks = hooks;
    m->bf16 = !strcmp(config->precision, "bf16");
    hooks->layout(config->sizes, &m->layout);
    for (float *&flat : m->host) {
        flat = (float *)allocate("the model", (double)m->layout.size, sizeof(float), error);
        if (!flat) return false;
    }
    m->host_losses = (float *)allocate("the batch", (double)config->B * config->T, sizeof(float), error);
    m->host_targets = (uint8_t *)allocate("the batch", (double)config->B * config->T, 1, error);
    if (!m->host_losses || !m->host_targets || !device_open(m, error)) return false;
    const cudaError_t status = cudaMalloc((void **)&m->memory, (size_t)m->bytes);
    if (status != cudaSuccess) {
        return fail(error, "the GPU's memory: %.2f GB: %s", m->bytes / 1e9, cudaGetErrorString(status));
    }
    device_carve(m, m->memory);
    // Not cudaStreamNonBlocking, so that cudaMemcpy waits for its work. What waits on both streams for a place on the
    // GPU gets it on the main stream first.
    cuda_check(cudaStreamCreateWithPriority(&m->stream, cudaStreamDefault, -1));
    cuda_check(cudaStreamCreate(&m->side));
    cuda_check(cudaStreamCreate(&m->beside));
    cuda_check(cudaEventCreateWithFlags(&m->reached, cudaEventDisableTiming));
    for (cudaEvent_t &event : m->done) cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    for (cudaEvent_t &event : m->launched) cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    for (float *flat : m->flat) {
        if (flat) cuda_check(cudaMemsetAsync(flat, 0, (size_t)m->layout.size * sizeof(float), m->stream));
    }
    uint8_t *decays = (uint8_t *)allocate("the model", (double)m->layout.size / 16, 1, error);
    if (!decays) return false;
    params_decays(&m->layout, decays);
    cuda_check(cudaMemcpy(m->decays, decays, (size_t)m->layout.size / 16, cudaMemcpyHostToDevice));
    free(decays);
    m->expected.bad_step = -1;
    m->expected.step = -1; // the device has no state yet
    return true;
}

// A new model of `size` bytes, whose first member is a DeviceModel. The rest is zero, but for what hooks->carve() sets.
// Release it with device_destroy(). nullptr, and a sentence, if there cannot be one.
static inline void *device_create(size_t size, const ModelConfig *config, const DeviceHooks *hooks, char *error) {
    DeviceModel *m = (DeviceModel *)allocate("the model", 1, size, error);
    if (!m || device_fill(m, config, hooks, error)) return m;
    device_destroy(m);
    return nullptr;
}

// ---- a step

// What is launched on `stream` from now on waits for what was launched on `other`.
static inline void device_follow(DeviceModel *m, cudaStream_t stream, cudaStream_t other) {
    cuda_check(cudaEventRecord(m->reached, other));
    cuda_check(cudaStreamWaitEvent(stream, m->reached, 0));
}

// The side stream goes on from where the main stream is.
static inline void device_fork(DeviceModel *m) { device_follow(m, m->side, m->stream); }

// Marks the point that the side stream has reached. There are two marks, 0 and 1.
static inline void device_mark(DeviceModel *m, int mark) { cuda_check(cudaEventRecord(m->done[mark], m->side)); }

// The main stream waits until the side stream has passed this mark, where it was set last.
static inline void device_wait(DeviceModel *m, int mark) {
    cuda_check(cudaStreamWaitEvent(m->stream, m->done[mark], 0));
}

static inline DeviceState device_read_state(DeviceModel *m) { // waits for the device
    DeviceState state;
    cuda_check(cudaMemcpy(&state, m->state, sizeof state, cudaMemcpyDeviceToHost));
    return state;
}

static inline void device_write_state(DeviceModel *m, DeviceState state) {
    cuda_check(cudaMemcpy(m->state, &state, sizeof state, cudaMemcpyHostToDevice));
    m->expected = state;
}

// The device counts steps by itself. It is told only where the plan is another: when an epoch begins, or on a resume.
static inline void device_expect(DeviceModel *m, const StepPlan *plan) {
    const DeviceState *e = &m->expected;
    if (e->step == plan->step && e->epoch == plan->epoch && e->index == plan->index && e->lr == plan->lr) return;
    DeviceState state = device_read_state(m);
    state.step = plan->step;
    state.epoch = plan->epoch;
    state.index = plan->index;
    state.lr = plan->lr;
    device_write_state(m, state);
}

static inline void device_enqueue_gradients(DeviceModel *m) {
    const ModelConfig *config = &m->config;
    const int B = config->B, T = config->T, low = config->transpose[0], high = config->transpose[1];
    device_fork(m);
    draw_windows_kernel<<<B, 256, 0, m->stream>>>(m->inputs, m->targets, m->state, m->train, config->seed, B, T, low,
                                                  high, m->hooks->time_major);
    LAUNCHED(draw_windows_kernel);
    m->hooks->enqueue(m, B, true);
    check_finite_kernel<<<256, 256, 0, m->stream>>>(m->state, m->flat[STATE_GRADS], m->layout.size);
    LAUNCHED(check_finite_kernel);
}

// A training step, with the update.
static inline void device_enqueue_step(DeviceModel *m) {
    device_enqueue_gradients(m);
    m->hooks->enqueue_update(m);
    end_step_kernel<<<1, 1, 0, m->stream>>>(m->state);
    LAUNCHED(end_step_kernel);
}

static inline void device_capture_step(DeviceModel *m) {
    cudaGraph_t graph;
    size_t nodes = 0;
    cuda_check(cudaStreamBeginCapture(m->stream, cudaStreamCaptureModeThreadLocal));
    device_enqueue_step(m);
    cuda_check(cudaGetLastError()); // the cause, which the end of the capture would hide
    cuda_check(cudaStreamEndCapture(m->stream, &graph));
    cuda_check(cudaGraphGetNodes(graph, nullptr, &nodes));
    const int early = overlap_kernels(graph, end_step_kernel);
    cuda_check(cudaGraphInstantiate(&m->step_graph, graph, 0));
    cuda_check(cudaGraphDestroy(graph));
    fprintf(stderr, "a training step is one graph of %d nodes; %d begin before the one ahead has ended\n", (int)nodes,
            early);
}

static inline void device_train_step(void *model, const StepPlan *plan) {
    DeviceModel *m = (DeviceModel *)model;
    device_expect(m, plan);
    if (!m->step_graph && !LAUNCH_CHECKS) device_capture_step(m);
    // The host stays at most four steps ahead of the device, because Ctrl-C waits for all steps that were launched.
    cudaEvent_t event = m->launched[plan->step % 4];
    cuda_check(cudaEventSynchronize(event));
    if (LAUNCH_CHECKS) {
        device_enqueue_step(m);
    } else {
        cuda_check(cudaGraphLaunch(m->step_graph, m->stream));
    }
    cuda_check(cudaEventRecord(event, m->stream));
    m->expected.step++;
    m->expected.index++;
}

// A training step without the update, for a look at one that went wrong. Returns its loss.
static inline double device_gradients(void *model, const StepPlan *plan) {
    DeviceModel *m = (DeviceModel *)model;
    device_expect(m, plan);
    device_enqueue_gradients(m);
    return device_read_state(m).loss;
}

// ---- the rest of what the recipe asks

static inline TrainLoss device_get_loss(void *model) {
    const DeviceState state = device_read_state((DeviceModel *)model);
    return {state.loss_sum, state.bad_step};
}

static inline void device_set_loss(void *model, double sum) {
    DeviceModel *m = (DeviceModel *)model;
    DeviceState state = m->expected.step < 0 ? m->expected : device_read_state(m);
    state.loss_sum = sum;
    state.bad_step = -1;
    device_write_state(m, state);
}

static inline void *device_copy(const void *bytes, size_t size) {
    void *copy = nullptr;
    cuda_check(cudaMalloc(&copy, size ? size : 1));
    cuda_check(cudaMemcpy(copy, bytes, size, cudaMemcpyHostToDevice));
    return copy;
}

static inline void device_set_data(void *model, const Dataset *train) {
    DeviceModel *m = (DeviceModel *)model;
    const size_t pieces = (size_t)(train->n_pieces + 1) * sizeof(int64_t);
    m->train.tokens = (const uint8_t *)device_copy(train->tokens, (size_t)train->n_tokens);
    m->train.pieces = (const int64_t *)device_copy(train->pieces, pieces);
    m->train.first_window = (const int64_t *)device_copy(train->first_window, pieces);
    m->train.n_pieces = train->n_pieces;
    m->train.n_windows = train->n_windows;
}

static inline void device_eval_batch(void *model, const Dataset *test, const int64_t *starts, int n, EvalLoss *add) {
    DeviceModel *m = (DeviceModel *)model;
    const int R = n * m->config.T;
    if (m->test != test) {
        if (m->test_tokens) cuda_check(cudaFree(m->test_tokens));
        m->test_tokens = (uint8_t *)device_copy(test->tokens, (size_t)test->n_tokens);
        m->test = test;
    }
    cuda_check(cudaMemcpy(m->starts, starts, (size_t)n * sizeof *starts, cudaMemcpyHostToDevice));
    device_fork(m);
    load_windows_kernel<<<n, 256, 0, m->stream>>>(m->inputs, m->targets, m->test_tokens, m->starts, n, m->config.T,
                                                  m->hooks->time_major);
    LAUNCHED(load_windows_kernel);
    m->hooks->enqueue(m, n, false);
    cuda_check(cudaMemcpy(m->host_losses, m->losses, (size_t)R * sizeof(float), cudaMemcpyDeviceToHost));
    cuda_check(cudaMemcpy(m->host_targets, m->targets, R, cudaMemcpyDeviceToHost));
    eval_add(add, m->host_losses, m->host_targets, R);
}

static inline float *device_state(void *model, int which) {
    DeviceModel *m = (DeviceModel *)model;
    const size_t bytes = (size_t)m->layout.size * sizeof(float);
    const int other = which == STATE_PARAMS ? STATE_AVERAGE : which == STATE_AVERAGE ? STATE_PARAMS : which;
    const float *flat = m->flat[m->swapped ? other : which];
    cuda_check(cudaMemcpy(m->host[which], flat, bytes, cudaMemcpyDeviceToHost));
    return m->host[which];
}

static inline void device_round_weights(DeviceModel *m) { // where products read another copy
    if (!m->bf16) return;
    const int64_t n = m->layout.size;
    __nv_bfloat16 *weights = (__nv_bfloat16 *)m->weights;
    to_operands_kernel<<<blocks_for(n, 256), 256, 0, m->stream>>>(weights, m->flat[STATE_PARAMS], n);
    LAUNCHED(to_operands_kernel);
}

static inline void device_state_changed(void *model) {
    DeviceModel *m = (DeviceModel *)model;
    const int64_t n = m->layout.size;
    for (int i = STATE_PARAMS; i <= last_state(&m->config); i++) {
        cuda_check(cudaMemcpy(m->flat[i], m->host[i], (size_t)n * sizeof(float), cudaMemcpyHostToDevice));
    }
    device_round_weights(m);
}

static inline void device_use_average(void *model, bool use) {
    DeviceModel *m = (DeviceModel *)model;
    if (use == m->swapped) return;
    const int64_t n = m->layout.size;
    swap_kernel<<<blocks_for(n, 256), 256, 0, m->stream>>>(m->flat[STATE_PARAMS], m->flat[STATE_AVERAGE], n);
    LAUNCHED(swap_kernel);
    device_round_weights(m);
    m->swapped = use;
}

// What all CUDA models' ModelSpecs have in common.
#define DEVICE_MODEL_SPEC                                                                                              \
    .device = DEVICE_NAME, .precisions = DEVICE_PRECISIONS, .destroy = device_destroy, .state = device_state,          \
    .state_changed = device_state_changed, .set_data = device_set_data, .train_step = device_train_step,               \
    .get_loss = device_get_loss, .set_loss = device_set_loss, .eval_batch = device_eval_batch,                         \
    .use_average = device_use_average, .gradients = device_gradients

// Copies count numbers at `from` on the device, floats or bf16, as floats to `to`.
static inline void device_fetch(float *to, const void *from, int64_t count, bool bf16) {
    cuda_check(cudaMemcpy(to, from, (size_t)count * (bf16 ? 2 : 4), cudaMemcpyDeviceToHost));
    for (int64_t i = count - 1; bf16 && i >= 0; i--) { // from the end on, so that each can be widened in place
        uint16_t half;
        memcpy(&half, (const char *)to + 2 * i, 2);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(to + i, &bits, 4);
    }
}

#endif
