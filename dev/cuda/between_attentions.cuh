// The Transformer's kernels of all that lies between two attentions, on clusters (cuda/cluster.cuh): only with
// `make CLUSTERS=1`, and not run on hardware. train_gpt_music.cu includes this file, and its own kernels, which come
// first to read, do the same in four launches a layer, whose products are bound by what they read from the L2 cache.
//
// A cluster of 4 blocks owns 64 rows, and each block a quarter of the columns of every product. So the four together
// read all weights once for 64 rows, where blocks of the 16-row kernels read all of them. A block keeps whole rows of a
// product's input in its shared memory, and hands its quarter of the output to the other three for the next product.
// All results go to global memory, too, as the other kernels store them: the backward of either works with the forward
// of the other. Products add in ascending k, as there; sums over a row add the quarters in the blocks' order.
//
// They take bf16 in the published widths, rows in 64s, and fewer than FUSED_MANY of them, as many rows fill the GPU
// anyway. At batch 8 a launch has 32 clusters, a block for each of 128 multiprocessors. By count (make count, sm_90) it
// takes 13 us forward and 16 us back instead of 30 and 33, and the step 0.53 ms instead of 0.85.
#ifndef BETWEEN_ATTENTIONS_CUH
#define BETWEEN_ATTENTIONS_CUH

#include "cuda/cluster.cuh"
#include "cuda/device_model.cuh"

// What a model without these kernels takes: none.
template <typename Operand>
static bool between_attentions_possible(const Gpt<Operand> *) {
    return false;
}
template <typename Operand>
static void between_attentions_forward(const Gpt<Operand> *, int, int, bool) {}
template <typename Operand>
static void between_attentions_backward(const Gpt<Operand> *, int, Product<Operand>, bool) {}

#if CLUSTERS

constexpr int CLUSTER = 4, BETWEEN_ROWS = 64, BETWEEN_THREADS = 256;
constexpr int BETWEEN_C = FUSED_WIDTH, BETWEEN_F = 2 * BETWEEN_C; // C and F, known when this is compiled
constexpr int NARROW = BETWEEN_C + 8, WIDE = BETWEEN_F + 8;       // from row to row in shared memory, padded
constexpr int LANES = BETWEEN_C / CLUSTER / 4;                    // that have a row's quarter, 4 channels each
constexpr int TURNS = BETWEEN_ROWS * LANES / BETWEEN_THREADS;     // rows of a thread
typedef __nv_bfloat16 bf16;
typedef Four<float> RowShare[TURNS]; // a thread's channels of its rows

// The shape of a quarter of a product, BN columns of K deep sums. A is in the block's rows, B comes in STAGES.
template <bool B_TRANSPOSED, int BN, int DEPTH>
struct Quarter : Tile<bf16, false, B_TRANSPOSED, BETWEEN_ROWS, BN, BN / 4> {
    static constexpr int K = DEPTH, STAGES = 4;
    struct A {
        static constexpr int ROW = DEPTH + 8;
    };
    static constexpr int STAGES_SIZE = STAGES * Quarter::B::SIZE;
    static_assert(Quarter::THREADS == BETWEEN_THREADS, "all of a block's warps");
};

// A product's weights on their way through shared memory, from global memory. The first steps are fetched at once,
// unless there are none, so that they arrive while the block still makes the rows.
template <typename Shape>
struct Weights {
    bf16 *stages;
    typename Shape::B b;
    int steps;

    __device__ Weights(bf16 *stages, const bf16 *w, int w_row, bool any = true)
        : stages(stages), b(stages, w, w_row, cluster_rank() * Shape::BN, CLUSTER * Shape::BN, 0, Shape::K),
          steps(any ? Shape::K / Shape::BK : 0) {
        for (int step = 0; step < Shape::STAGES - 1; step++) fetch(step);
    }
    __device__ void fetch(int step) {
        if (step < steps) b.template copy<true>(step % Shape::STAGES);
        cp_async_commit();
    }
    // sums += rows times the weights, as tile_multiply()
    __device__ void multiply(Sums<Shape> &sums, const bf16 (*rows)[Shape::A::ROW]) {
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            cp_async_wait<Shape::STAGES - 2>();
            __syncthreads();
            fetch(step + Shape::STAGES - 1);
            multiply_step<Shape>(sums, &rows[0][step * Shape::BK], stages + step % Shape::STAGES * Shape::B::SIZE,
                                 false);
        }
        __syncthreads();
    }
};

// A block's shared memory. v: a quarter of a row as tile_to_shared() leaves it, on its way to LayerNorm.
constexpr int V_ROW = Tile<bf16, false, true, BETWEEN_ROWS, BETWEEN_C / CLUSTER>::ROW;
struct BetweenRoom {
    bf16 narrow[BETWEEN_ROWS][NARROW]; // rows of C
    union {
        bf16 wide[BETWEEN_ROWS][WIDE]; // rows of F
        float v[BETWEEN_ROWS][V_ROW];
    };
    float2 parts[CLUSTER][BETWEEN_ROWS];
    bf16 stages[Quarter<true, 3 * BETWEEN_C / CLUSTER, BETWEEN_C>::STAGES_SIZE]; // of qkv_w, which has most
};

// Hands the block's quarter of its rows of N to the other blocks, and to out [R,N], from row r0 on. Where gate [R,N],
// which may be null, is <= 0, it becomes 0. After it all columns of the cluster's rows are there.
template <int ROW>
__device__ inline void publish(bf16 (*rows)[ROW], bf16 *out, int r0, const bf16 *gate = nullptr) {
    constexpr int N = ROW - 8, CHUNKS = N / CLUSTER / 8;
    __syncthreads();
#pragma unroll
    for (int first = 0; first < BETWEEN_ROWS * CHUNKS; first += BETWEEN_THREADS) {
        const int i = first + threadIdx.x, m = i / CHUNKS, n = (cluster_rank() * CHUNKS + i % CHUNKS) * 8;
        const size_t at = (size_t)(r0 + m) * N + n;
        uint4 *own = (uint4 *)&rows[m][n], eight = *own;
        if (gate) {
            const uint4 gates = __ldg((const uint4 *)(gate + at));
            bf16 x[8], open[8];
            memcpy(x, &eight, sizeof x);
            memcpy(open, &gates, sizeof open);
            for (int e = 0; e < 8; e++) x[e] = to_float(open[e]) > 0 ? x[e] : from_float<bf16>(0);
            memcpy(&eight, x, sizeof x);
            *own = eight;
        }
        for (int other = 1; other < CLUSTER; other++) *cluster_shared(own, cluster_rank() ^ other) = eight;
        *(uint4 *)(out + at) = eight;
    }
    cluster_sync();
}

// A thread's row of turn i among the cluster's, and its group of 4 channels, in the model and in the block's quarter.
__device__ inline int row_of_turn(int i) { return threadIdx.x / LANES + i * (BETWEEN_THREADS / LANES); }
__device__ inline int group_of_quarter() { return threadIdx.x % LANES; }
__device__ inline int group_of_row() { return cluster_rank() * LANES + group_of_quarter(); }

// The sum over the lanes that have a row's quarter.
__device__ inline float quarter_sum(float x) {
    for (int offset = LANES / 2; offset; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// Two sums of row m over the block's quarter go to all blocks of the cluster, as parts[rank][m].
__device__ inline void exchange_parts(BetweenRoom *room, int m, float2 part) {
    if (group_of_quarter() < CLUSTER) *cluster_shared(&room->parts[cluster_rank()][m], group_of_quarter()) = part;
}

// layernorm_forward_rows() of a quarter. v is the branch. x is what it branched off from, and becomes y, which also
// goes to `narrow`, and with all columns to norm.y. The variance is that of the quarters, and that of their means.
__device__ inline void layernorm_forward_quarter(RowShare &x, BetweenRoom *room, LayerNorm<bf16> norm,
                                                 const float *bias, int64_t step, int r0, int T) {
    constexpr int C = BETWEEN_C;
    const int g = group_of_row();
    const Four<float> add = read_four(bias, g, C), w = read_four(norm.w, g, C), b = read_four(norm.b, g, C);
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int m = row_of_turn(i), r = r0 + m;
        const unsigned bits = dropout_bits(norm.dropout, step, r / T, r % T, g);
        const Four<float> mask = dropout_factors(norm.dropout, bits), branch = get_four(room->v[m], g % LANES, C);
        float sum = 0, squares = 0;
        for (int e = 0; e < 4; e++) {
            x[i].at[e] += (branch.at[e] + add.at[e]) * mask.at[e];
            sum += x[i].at[e];
        }
        const float mean = quarter_sum(sum) / (C / CLUSTER);
        for (int e = 0; e < 4; e++) squares += (x[i].at[e] - mean) * (x[i].at[e] - mean);
        exchange_parts(room, m, make_float2(mean, quarter_sum(squares)));
        norm.kept[(size_t)r * (C / 4) + g] = (uint8_t)bits;
    }
    cluster_sync();
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int m = row_of_turn(i), r = r0 + m;
        float mean = 0, squares = 0;
        for (int k = 0; k < CLUSTER; k++) mean += room->parts[k][m].x / CLUSTER;
        for (int k = 0; k < CLUSTER; k++) {
            const float apart = room->parts[k][m].x - mean;
            squares += room->parts[k][m].y + C / CLUSTER * apart * apart;
        }
        const float scale = 1 / sqrtf(squares / C + 1e-5f);
        Four<float> normalized;
        for (int e = 0; e < 4; e++) {
            normalized.at[e] = (x[i].at[e] - mean) * scale;
            x[i].at[e] = normalized.at[e] * w.at[e] + b.at[e];
        }
        put_four(norm.normalized + (size_t)r * C, g, C, normalized);
        put_four(room->narrow[m], g, C, x[i]);
        if (g == 0) norm.rstd[r] = scale;
    }
    publish(room->narrow, norm.y, r0);
}

// What both kernels need of a layer.
struct Between {
    LayerTensors p;
    const bf16 *out_w, *fc1_w, *fc2_w;
    LayerNorm<bf16> norm1, norm2; // norm1 of x and attn Wo, norm2 of that and the second branch
    bf16 *fc1;
};

// From attn, the product with Wo, to the next layer's qkv. That is nullptr in the last layer.
static __global__ void __launch_bounds__(BETWEEN_THREADS)
    between_attentions_forward_kernel(Between b, Product<bf16> attn, Residual residual, const bf16 *qkv_w,
                                      const float *qkv_b, bf16 *next_qkv, const DeviceState *state, int T) {
    await_previous_kernel();
    typedef Tile<bf16, false, true, BETWEEN_ROWS, BETWEEN_C / CLUSTER, BETWEEN_C / CLUSTER / 4> Out;
    typedef Quarter<true, BETWEEN_F / CLUSTER, BETWEEN_C> Fc1;
    typedef Quarter<true, BETWEEN_C / CLUSTER, BETWEEN_F> Fc2;
    typedef Quarter<true, 3 * BETWEEN_C / CLUSTER, BETWEEN_C> Qkv;
    extern __shared__ __align__(16) unsigned char shared[];
    BetweenRoom *room = (BetweenRoom *)shared;
    const int rank = cluster_rank(), r0 = blockIdx.x / CLUSTER * BETWEEN_ROWS;
    cluster_sync(); // all blocks have begun
    RowShare x;
    for (int i = 0; i < TURNS; i++) x[i] = residual_four(residual, r0 + row_of_turn(i), group_of_row(), BETWEEN_C);

    Sums<Out> out = {};
    tile_multiply_as<Out, true>(out, attn, r0, rank * Out::BN, 0, BETWEEN_C, (unsigned char *)room->stages);
    Weights<Fc1> fc1(room->stages, b.fc1_w, BETWEEN_C);
    tile_to_shared<Out>(out, (unsigned char *)room->v);
    layernorm_forward_quarter(x, room, b.norm1, b.p.out_b, state->step, r0, T);

    Sums<Fc1> hidden = {};
    fc1.multiply(hidden, room->narrow);
    Weights<Fc2> fc2(room->stages, b.fc2_w, BETWEEN_F);
    tile_store_as<Fc1, true>(hidden, room->wide[0], WIDE, 0, rank * Fc1::BN, BETWEEN_ROWS, BETWEEN_F,
                             {.bias = b.p.fc1_b, .relu = true});
    publish(room->wide, b.fc1, r0);

    Sums<Fc2> sums = {};
    fc2.multiply(sums, room->wide);
    Weights<Qkv> next(room->stages, qkv_w, BETWEEN_C, next_qkv);
    tile_to_shared<Fc2>(sums, (unsigned char *)room->v);
    layernorm_forward_quarter(x, room, b.norm2, b.p.fc2_b, state->step, r0, T);
    if (!next_qkv) return;

    Sums<Qkv> qkv = {};
    next.multiply(qkv, room->narrow);
    tile_store_as<Qkv, true>(qkv, next_qkv, 3 * BETWEEN_C, r0, rank * Qkv::BN, attn.M, 3 * BETWEEN_C, {.bias = qkv_b});
}

// layernorm_backward_rows() of a quarter. v and d, which came down past it, make dy; d becomes dx. dbranch goes to
// `narrow`, and with all columns to memory. norm_sums gets a share of dw and db for each 16 rows, as from the 16-row
// kernels, so that the same sums follow.
__device__ inline void layernorm_backward_quarter(RowShare &d, BetweenRoom *room, bf16 *dbranch, float *norm_sums,
                                                  LayerNorm<bf16> norm, int r0) {
    constexpr int C = BETWEEN_C, COLUMNS = C / CLUSTER;
    const int g = group_of_row();
    const Four<float> w = read_four(norm.w, g, C);
    RowShare n;
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int m = row_of_turn(i);
        Four<float> dy = get_four(room->v[m], g % LANES, C);
        float sum = 0, product = 0;
        n[i] = read_four(norm.normalized + (size_t)(r0 + m) * C, g, C);
        for (int e = 0; e < 4; e++) {
            dy.at[e] += d[i].at[e];
            d[i].at[e] = dy.at[e] * w.at[e];
            sum += d[i].at[e];
            product += d[i].at[e] * n[i].at[e];
        }
        put_four(room->v[m], g % LANES, C, dy);
        exchange_parts(room, m, make_float2(quarter_sum(sum), quarter_sum(product)));
    }
    cluster_sync();
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int m = row_of_turn(i), r = r0 + m;
        const float scale = norm.rstd[r];
        const Four<float> mask = dropout_factors(norm.dropout, __ldg(&norm.kept[(size_t)r * (C / 4) + g]));
        float mean = 0, mean_product = 0;
        for (int k = 0; k < CLUSTER; k++) mean += room->parts[k][m].x / C, mean_product += room->parts[k][m].y / C;
        Four<float> out;
        for (int e = 0; e < 4; e++) {
            d[i].at[e] = scale * (d[i].at[e] - mean - n[i].at[e] * mean_product);
            out.at[e] = d[i].at[e] * mask.at[e];
        }
        put_four(room->narrow[m], g, C, out);
    }
    const int column = threadIdx.x % COLUMNS, c = cluster_rank() * COLUMNS + column, m0 = threadIdx.x / COLUMNS * 16;
    float dw = 0, db = 0;
#pragma unroll
    for (int m = m0; m < m0 + 16; m++) {
        const float dy = room->v[m][column];
        dw += dy * __ldg(&norm.normalized[(size_t)(r0 + m) * C + c]);
        db += dy;
    }
    norm_sums[(size_t)(r0 + m0) / 16 * 2 * C + c] = dw;
    norm_sums[(size_t)(r0 + m0) / 16 * 2 * C + C + c] = db;
    publish(room->narrow, dbranch, r0);
}

// From dy, the product that gives LN2's dy, to dattn. dx is what came down past that product, unless it is the first,
// and becomes what goes on.
static __global__ void __launch_bounds__(BETWEEN_THREADS)
    between_attentions_backward_kernel(Between b, Product<bf16> dy, bool first, float *dx, LayerBackward<bf16> to,
                                       bf16 *dattn) {
    await_previous_kernel();
    typedef Tile<bf16, false, false, BETWEEN_ROWS, BETWEEN_C / CLUSTER, BETWEEN_C / CLUSTER / 4> Above;
    typedef Quarter<false, BETWEEN_F / CLUSTER, BETWEEN_C> Fc2;
    typedef Quarter<false, BETWEEN_C / CLUSTER, BETWEEN_F> Fc1;
    typedef Quarter<false, BETWEEN_C / CLUSTER, BETWEEN_C> Out;
    extern __shared__ __align__(16) unsigned char shared[];
    BetweenRoom *room = (BetweenRoom *)shared;
    const int rank = cluster_rank(), r0 = blockIdx.x / CLUSTER * BETWEEN_ROWS;
    cluster_sync(); // all blocks have begun
    RowShare d = {};
    dx += (size_t)(r0 + row_of_turn(0)) * BETWEEN_C;
    constexpr int TURN = BETWEEN_THREADS / LANES * BETWEEN_C;
    for (int i = 0; i < TURNS && !first; i++) d[i] = get_four(dx + i * TURN, group_of_row(), BETWEEN_C);

    Sums<Above> above = {};
    tile_multiply_as<Above, true>(above, dy, r0, rank * Above::BN, 0, dy.K, (unsigned char *)room->stages);
    Weights<Fc2> fc2(room->stages, b.fc2_w, BETWEEN_F);
    tile_to_shared<Above>(above, (unsigned char *)room->v);
    layernorm_backward_quarter(d, room, to.dfc2, to.norm_sums2, b.norm2, r0);

    Sums<Fc2> hidden = {};
    fc2.multiply(hidden, room->narrow);
    Weights<Fc1> fc1(room->stages, b.fc1_w, BETWEEN_C);
    tile_store_as<Fc2, true>(hidden, room->wide[0], WIDE, 0, rank * Fc2::BN, BETWEEN_ROWS, BETWEEN_F, {});
    publish(room->wide, to.dfc1, r0, b.fc1);

    Sums<Fc1> sums = {};
    fc1.multiply(sums, room->wide);
    Weights<Out> out(room->stages, b.out_w, BETWEEN_C);
    tile_to_shared<Fc1>(sums, (unsigned char *)room->v);
    layernorm_backward_quarter(d, room, to.dout, to.norm_sums1, b.norm1, r0);
    for (int i = 0; i < TURNS; i++) put_four(dx + i * TURN, group_of_row(), BETWEEN_C, d[i]);

    Sums<Out> last = {};
    out.multiply(last, room->narrow);
    tile_store_as<Out, true>(last, dattn, BETWEEN_C, r0, rank * Out::BN, dy.M, BETWEEN_C, {});
}

// A launch over R rows.
static cudaLaunchConfig_t between_config(cudaLaunchAttribute (&attributes)[2], int R, cudaStream_t stream) {
    return cluster_config(attributes, CLUSTER, R / BETWEEN_ROWS * CLUSTER, BETWEEN_THREADS, sizeof(BetweenRoom), false,
                          stream);
}

// Whether a cluster of a kernel has room on the GPU.
template <typename Kernel>
static bool between_fits(const DeviceModel *device, Kernel *kernel) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = between_config(attributes, BETWEEN_ROWS, device->stream);
    if (device->shared_limit < (int)sizeof(BetweenRoom)) return false;
    matmul_prepare(kernel, sizeof(BetweenRoom));
    return clusters_at_once(kernel, &config) > 0;
}

// Whether the model can take these kernels, asked when it is made.
static bool between_attentions_possible(const Gpt<bf16> *m) {
    return m->shape.C == BETWEEN_C && m->device.config.sizes[GPT_HIDDEN] == BETWEEN_F && m->block_rows == 16 &&
           between_fits(&m->device, between_attentions_forward_kernel) &&
           between_fits(&m->device, between_attentions_backward_kernel);
}

static Between between_of_layer(const Gpt<bf16> *m, int l, bool training) {
    const DeviceModel *device = &m->device;
    const LayerTensors *p = &m->params.layers[l];
    const bf16 *out_w = weight<bf16>(device, p->out_w), *fc1_w = weight<bf16>(device, p->fc1_w);
    const bf16 *fc2_w = weight<bf16>(device, p->fc2_w);
    return {*p, out_w, fc1_w, fc2_w, gpt_norm1(m, l, training), gpt_norm2(m, l, training), m->acts[l].fc1};
}

// From attn of layer l to the next layer's qkv, or to ln2 of the last.
static void between_attentions_forward(const Gpt<bf16> *m, int l, int R, bool training) {
    const int next = min(l + 1, gpt_layers(m) - 1); // the last layer has none
    const Between between = between_of_layer(m, l, training);
    const Product<bf16> attn = linear_forward(m->acts[l].attention.attn, between.out_w, R, BETWEEN_C, BETWEEN_C);
    const LayerTensors *above = &m->params.layers[next];
    bf16 *qkv = next > l ? m->acts[next].attention.qkv : nullptr;
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = between_config(attributes, R, m->device.stream);
    cuda_check(cudaLaunchKernelEx(&config, between_attentions_forward_kernel, between, attn, gpt_residual1(m, l),
                                  weight<bf16>(&m->device, above->qkv_w), above->qkv_b, qkv, m->device.state,
                                  m->shape.T));
    LAUNCHED(between_attentions_forward_kernel);
}

// From dy, the product that gives dy of layer l's LN2, to dattn. With `first` nothing has come down past it.
static void between_attentions_backward(const Gpt<bf16> *m, int l, Product<bf16> dy, bool first) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = between_config(attributes, dy.M, m->device.stream);
    cuda_check(cudaLaunchKernelEx(&config, between_attentions_backward_kernel, between_of_layer(m, l, true), dy, first,
                                  m->dx, m->back[l % 2], m->dattn));
    LAUNCHED(between_attentions_backward_kernel);
}

#endif

#endif
