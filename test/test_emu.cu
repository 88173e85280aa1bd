// Small kernels for everything that dev/emu/cuda_emu.h emulates, checked against plain loops; they run on a GPU as well
// (sm_80 and up).
//   test_emu           all of them
//   test_emu PLANTED   one kernel with a mistake in it, to see that it is found; the names are in main()
// A line that test_emu.sh expects in a message ends in a comment `// here: PLANTED`.
#include "base/philox.h"
#include "cuda/check.cuh"
#include "cuda/cluster.cuh"
#include "cuda/overlap.cuh"
#include "cuda/tensor_core.cuh"
#include "test/check.h"
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>
#include <vector>
typedef __nv_bfloat16 bf16;
typedef std::vector<float> Floats;

// ---- Kernels

__device__ float warp_sum(float v) {
    for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
__device__ float warp_max(float v) {
    for (int o = 16; o > 0; o /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

// out[block] = the sum of in[block][0..n-1], by a tree in dynamic shared memory; n is a power of two, a thread each.
// MISTAKE 1 and 2 leave out a barrier, 3 writes past the end.
template <int MISTAKE>
__global__ void block_sum(float *out, const float *in, int n) {
    extern __shared__ float sums[];
    int t = threadIdx.x;
    sums[t] = in[blockIdx.x * n + t];
    if (MISTAKE == 3) sums[t + 1] = 0; // here: dynamic
    if (MISTAKE != 1) __syncthreads();
    for (int o = n / 2; o > 0; o /= 2) {
        if (t < o) sums[t] += sums[t + o]; // here: barrier1 barrier2
        if (MISTAKE != 2) __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = sums[0];
}

// Softmax of the rows of in[N][C], a warp a row.
__global__ void softmax(float *out, const float *in, int N, int C) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= N) return;
    const float *x = in + (size_t)row * C;
    float top = -INFINITY, sum = 0;
    for (int i = lane; i < C; i += 32) top = fmaxf(top, __ldg(&x[i]));
    top = warp_max(top);
    for (int i = lane; i < C; i += 32) sum += __expf(x[i] - top);
    float scale = 1 / warp_sum(sum);
    for (int i = lane; i < C; i += 32) out[(size_t)row * C + i] = __expf(x[i] - top) * scale;
}

// C[M][N] = A[M][K] B[K][N]: a tile of TILE x TILE a block, an element a thread.
template <int TILE>
__global__ void __launch_bounds__(TILE *TILE)
    product(float *C, const float *__restrict__ A, const float *__restrict__ B, int M, int N, int K) {
    __shared__ float As[TILE][TILE];
    __shared__ float Bs[TILE][TILE + 1];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float sum = 0;
    for (int k = 0; k < K; k += TILE) {
        As[y][x] = row < M && k + x < K ? A[row * K + k + x] : 0;
        Bs[y][x] = column < N && k + y < K ? B[(k + y) * N + column] : 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TILE; i++) sum = fmaf(As[y][i], Bs[i][x], sum);
        __syncthreads();
    }
    if (row < M && column < N) C[row * N + column] = sum;
}

// The same on tensor cores, for K and N that are multiples of 8: a tile of 32 x 32 a block of 4 warps, 16 x 16 a warp.
// The next 16 columns of A and rows of B are copied while these are multiplied. MISTAKE 1 forgets to wait for the
// copies, 2 forgets the barrier before a buffer is filled again.
template <int MISTAKE>
__global__ void product_bf16(float *C, const bf16 *A, const bf16 *B, int M, int N, int K) {
    __shared__ __align__(16) bf16 As[2][32][24]; // rows of 48 bytes: 8 of them lie in different banks
    __shared__ __align__(16) bf16 Bs[2][16][40];
    int t = threadIdx.x, lane = t % 32, m = t / 64 * 16, n = t / 32 % 2 * 16, m0 = blockIdx.y * 32,
        n0 = blockIdx.x * 32;
    float sums[2][4] = {};
    int steps = (K + 15) / 16;
    for (int s = 0; s <= steps; s++) {
        if (s < steps && t < 64) { // 8 elements of A
            int row = m0 + t / 2, k = s * 16 + t % 2 * 8;
            bool inside = row < M && k < K;
            cp_async(&As[s % 2][t / 2][t % 2 * 8], inside ? &A[row * K + k] : A, inside);
        } else if (s < steps) { // 8 elements of B
            int k = s * 16 + (t - 64) / 4, column = n0 + t % 4 * 8;
            bool inside = k < K && column < N;
            cp_async(&Bs[s % 2][(t - 64) / 4][t % 4 * 8], inside ? &B[k * N + column] : B, inside);
        }
        cp_async_commit();
        if (s == 0) continue;
        if (MISTAKE != 1) cp_async_wait<1>();
        __syncthreads();
        uint32_t a[4], b[4];
        ldmatrix(a, &As[(s - 1) % 2][m + lane % 16][lane / 16 * 8]);       // here: nowait reuse
        ldmatrix<true>(b, &Bs[(s - 1) % 2][lane % 16][n + lane / 16 * 8]); // here: nowait reuse
        mma_bf16(sums[0], a, b);
        mma_bf16(sums[1], a, b + 2);
        if (MISTAKE != 2) __syncthreads();
    }
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) {
            int row = m0 + m + lane / 4 + i / 2 * 8, column = n0 + n + j * 8 + lane % 4 * 2 + i % 2;
            if (row < M && column < N) C[row * N + column] = sums[j][i];
        }
}

// out[lane][0..7]: what ldmatrix, plain and transposed, gives for four matrices. Matrix i has the elements
// 64 i + 8 row + column.
__global__ void load_matrices(uint32_t *out) {
    __shared__ __align__(16) uint16_t elements[256];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) elements[i] = (uint16_t)i;
    __syncwarp();
    ldmatrix(out + lane * 8, &elements[lane * 8]);
    ldmatrix<true>(out + lane * 8 + 4, &elements[lane * 8]);
}

// The 16 bytes of every other thread are taken; those of the others become zero.
__global__ void copy_async(unsigned *out, const unsigned *in) {
    __shared__ uint4 all[32];
    unsigned *mine = (unsigned *)&all[threadIdx.x];
    const unsigned *from = in + threadIdx.x * 4;
    cp_async(mine, from, threadIdx.x % 2);
    cp_async_commit();
    cp_async_wait<0>();
    uint4 v = all[threadIdx.x];
    *(uint4 *)(out + threadIdx.x * 4) = make_uint4(v.x, v.y, v.z, v.w);
}

// x[step][block] = x[step-1][block-1] + x[step-1][block]: every step needs the neighbour's last. A cooperative launch.
__global__ void pascal(float *x, int steps) {
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    __shared__ float sum;
    int n = gridDim.x, b = blockIdx.x;
    for (int s = 1; s < steps; s++) {
        if (threadIdx.x == 40) sum = x[(s - 1) * n + b] + (b ? x[(s - 1) * n + b - 1] : 0);
        __syncthreads();
        if (threadIdx.x == 0) x[s * n + b] = sum;
        grid.sync();
    }
}

// Two threads of two blocks in turn, by a flag in memory.
__global__ void ping_pong(int *turn, int rounds) {
    for (int i = 0; i < rounds; i++) {
        while (atomicAdd(turn, 0) % 2 != (int)blockIdx.x) __nanosleep(20);
        atomicAdd(turn, 1);
    }
}

// row[block] += row[block - 1], `steps` times: a cooperative launch whose blocks wait for each other by a counter.
// MISTAKE 1 leaves out the fences.
template <int MISTAKE>
__device__ void wait_for_all(unsigned *arrived, unsigned all) {
    __syncthreads();
    if (threadIdx.x == 0) {
        if (MISTAKE != 1) __threadfence();
        atomicAdd(arrived, 1u);
        while (*(volatile unsigned *)arrived < all) __nanosleep(20); // here: resident
        if (MISTAKE != 1) __threadfence();
    }
    __syncthreads(); // here: resident
}
template <int MISTAKE>
__global__ void pascal_in_place(float *row, unsigned *arrived, int steps) {
    __shared__ float left;
    int b = blockIdx.x;
    for (int s = 1; s <= steps; s++) {
        if (threadIdx.x == 40) left = b ? row[b - 1] : 0; // here: fence
        wait_for_all<MISTAKE>(arrived, (2 * s - 1) * gridDim.x);
        if (threadIdx.x == 0) row[b] += left; // here: fence
        wait_for_all<MISTAKE>(arrived, 2 * s * gridDim.x);
    }
}

// out[0] = the sum of in[0..n-1]: every block leaves its part in parts[block] and takes a ticket; the last adds them
// up. MISTAKE 1 forgets the fence.
template <int MISTAKE>
__global__ void sum_by_last_block(float *out, float *parts, unsigned *tickets, const float *in, int n) {
    __shared__ bool last;
    float sum = 0;
    for (int i = blockIdx.x * 32 + threadIdx.x; i < n; i += gridDim.x * 32) sum += in[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        if (MISTAKE != 1) __threadfence();
        last = atomicAdd(tickets, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    sum = warp_sum(threadIdx.x < gridDim.x ? parts[threadIdx.x] : 0); // here: ticket
    if (threadIdx.x == 0) out[0] = sum;
}

// Block b takes the 16 bytes that block b + 1 left in the step before, adds 1, and leaves them in two halves, as soon
// as they have come: x[step][block][half] begins as all ones, which is no number here. MISTAKE 1 takes them as soon as
// the first half has come.
template <int MISTAKE>
__global__ void relay(uint2 *x, int steps) {
    const int n = gridDim.x, b = blockIdx.x;
    for (int s = 1; s < steps; s++) {
        const uint2 *from = x + ((s - 1) * n + (b + 1) % n) * 2;
        uint4 v = exchange_load(from, true);
        while (v.x == ~0u || (MISTAKE != 1 && v.z == ~0u)) {
            __nanosleep(20);
            v = exchange_load(from, true);
        }
        exchange_store(x + (s * n + b) * 2, make_uint2(v.x + 1, v.y + 1));
        exchange_store(x + (s * n + b) * 2 + 1, make_uint2(v.z + 1, v.w + 1));
    }
}

__global__ void histogram(int *counts, float *total, const int *values, int n) {
    __shared__ int mine[8];
    if (threadIdx.x < 8) mine[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        atomicAdd(&mine[values[i] % 8], 1);
        atomicAdd(total, (float)values[i]);
    }
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
}

// out = 2 in by vectors: float4, float2, uint2 as four bf16, and the pairs in halves
__global__ void vectors(float4 *out, const float4 *in, uint2 *out_bf16, const uint2 *in_bf16) {
    int t = threadIdx.x;
    float4 v = __ldg(&in[t]);
    float2 low = make_float2(2 * v.x, 2 * v.y);
    ((float2 *)out)[2 * t] = low;
    ((float2 *)out)[2 * t + 1] = make_float2(2 * v.z, 2 * v.w);
    uint2 four = in_bf16[t];
    __nv_bfloat162 pairs[2];
    memcpy(pairs, &four, sizeof four);
    for (__nv_bfloat162 &pair : pairs)
        pair = __floats2bfloat162_rn(2 * __bfloat162float(pair.x), 2 * __bfloat162float(pair.y));
    memcpy(&four, pairs, sizeof four);
    out_bf16[t] = four;
}

__global__ void lanes(unsigned *out) {
    unsigned lane = threadIdx.x % 32, *o = out + 4 * threadIdx.x;
    o[0] = __shfl_sync(~0u, lane, 5, 16);
    o[1] = __shfl_xor_sync(~0u, lane, 17);
    o[2] = __ballot_sync(~0u, lane % 3 == 0);
    unsigned half = lane < 16 ? 0xffffu : 0xffff0000u; // the halves of a warp on their own
    o[3] = lane < 16 ? __shfl_sync(half, lane, 15) : (unsigned)__any_sync(half, lane == 3);
}

__global__ void round_bf16(unsigned short *out, const float *in) {
    out[threadIdx.x] = __bfloat16_as_ushort(__float2bfloat16(in[threadIdx.x]));
}
__global__ void random_words(uint32_t *out, uint32_t seed) {
    out[threadIdx.x] = philox(philox_key(seed, PHILOX_DROPOUT, 3), threadIdx.x, 1, 2, 3).x[0];
}
__global__ void scale(float *x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= a; // here: event early
}
__global__ void add(float *x, const float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += y[i]; // here: event early
}
template <int MISTAKE> // 1: it reads before it waits; 2: it does not wait
__global__ void doubled(float *y, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float ahead = MISTAKE == 1 && i < n ? x[i] : 0; // here: ahead
    if (MISTAKE != 2) await_previous_kernel();
    if (i < n) y[i] = 2 * (MISTAKE == 1 ? ahead : x[i]);
}
__global__ void indices(unsigned *out) {
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    atomicAdd(&out[block * (blockDim.x * blockDim.y * blockDim.z) + thread], 1u);
}

#if CLUSTERS
// x[s][i] = x[s-1][i] + x[s-1][i-1], but 0 for what lies before a cluster's first i; 32 threads a block, an i each.
// MISTAKE 1 never waits for the cluster, 2 only once, 3 not before the end; 4 takes another block's local variable, 5
// reads past the end of its shared memory.
template <int MISTAKE>
__global__ void pascal_of_cluster(float *x, int steps) {
    await_previous_kernel();
    __shared__ float line[2][32];
    extern __shared__ float last[]; // by step: the last thread's
    const int t = threadIdx.x, n = gridDim.x * 32, i = blockIdx.x * 32 + t, before = cluster_rank() - 1;
    float own = x[i];
    for (int s = 1; s < steps; s++) {
        line[s % 2][t] = own;
        if (t == 31) last[s] = own; // here: step
        if (MISTAKE == 1 || (MISTAKE == 2 && s > 1))
            __syncthreads();
        else
            cluster_sync();
        const float *left = t > 0 ? &line[s % 2][t - 1] : nullptr;
        if (t == 0 && before >= 0) {
            const float *theirs = cluster_shared(MISTAKE == 4 ? &own : last, before); // here: unborn local end
            left = theirs + (MISTAKE == 5 ? steps : s);
        }
        if (left) own += *left; // here: step end beyond
        x[s * n + i] = own;
    }
    if (MISTAKE != 3) cluster_sync();
}
#endif

// ---- Kernels with a mistake

__global__ void past_global(float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = 1; // here: global
}
__global__ void past_static(float *x) {
    __shared__ float s[64];
    s[threadIdx.x + 1] = 1; // here: static
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];
}
__global__ void reads_then_writes(float *x) { // a barrier is missing between them; in forward order nothing goes wrong
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = (float)t;
    __syncthreads();
    float left = t > 0 ? s[t - 1] : 0; // here: neighbour
    s[t] = left + 1;
    __syncthreads();
    x[t] = s[t];
}
__global__ void stores_what_returns(float *x) { // a barrier is missing
    __shared__ __align__(8) float s[256];
    const int t = threadIdx.x;
    *(float2 *)&s[2 * t] = make_float2(1, 2); // here: returned
    x[t] = s[t];
}
__global__ void lockstep(float *x) { // as it was written when the lanes of a warp ran in step: no __syncwarp
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = s[t + 32] = 1;
    __syncwarp();
    for (int o = 32; o > 0; o /= 2) s[t] += s[t + o]; // here: lockstep
    x[t] = s[t];
}
__global__ void blocks_collide(float *x) {
    x[threadIdx.x] = (float)blockIdx.x; // here: blocks
}
__global__ void two_barriers(float *x) {
    if (threadIdx.x < 16) {
        __syncthreads(); // here: divergent
    } else {
        x[0] = 1;
        __syncthreads(); // here: divergent
    }
}
__global__ void stuck(unsigned *x) {
    if (threadIdx.x < 16)
        __syncthreads(); // here: deadlock
    else
        x[0] = __ballot_sync(~0u, 1); // here: deadlock
}
__global__ void half_a_warp(float *x) {
    if (threadIdx.x >= 16) return;
    x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 16); // here: absent
}

// ---- The checks

#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        CHECK(error_ == cudaSuccess, "%s", cudaGetErrorString(error_));                                                \
    } while (0)

static float noise() { // [-1, 1)
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}
static Floats noises(int n) {
    Floats v(n);
    for (float &x : v) x = noise();
    return v;
}
template <class T>
static T *device(int n) {
    T *p = nullptr;
    CUDA(cudaMalloc(&p, n * sizeof(T)));
    CUDA(cudaMemset(p, 0, n * sizeof(T)));
    return p;
}
template <class T>
static T *device(const std::vector<T> &v) {
    T *p = device<T>((int)v.size());
    CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <class T>
static std::vector<T> host(const T *p, int n) {
    std::vector<T> v(n);
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}
static void compare(const char *what, const Floats &got, const Floats &wanted, double tolerance) {
    double worst = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        double error = fabs((double)got[i] - (double)wanted[i]) / (1 + fabs((double)wanted[i]));
        if (!(error <= worst)) worst = error;
    }
    CHECK(got.size() == wanted.size() && worst <= tolerance, "%s: off by %g", what, worst);
}
template <class T>
static void equal(const char *what, const std::vector<T> &got, const std::vector<T> &wanted) {
    size_t i = 0;
    while (i < wanted.size() && got[i] == wanted[i]) i++;
    CHECK(i == wanted.size(), "%s: element %zu is %g, not %g", what, i, (double)got[i], (double)wanted[i]);
}
static Floats plain_product(const Floats &A, const Floats &B, int M, int N, int K) {
    Floats C((size_t)M * N);
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++) C[m * N + n] += A[m * K + k] * B[k * N + n];
    return C;
}
static std::vector<bf16> rounded(Floats &v) { // v too
    std::vector<bf16> r(v.size());
    for (size_t i = 0; i < v.size(); i++) v[i] = __bfloat162float(r[i] = __float2bfloat16(v[i]));
    return r;
}

static void check_reductions() {
    const int n = 256, rows = 5;
    Floats x = noises(n * rows), sums(rows);
    for (int i = 0; i < n * rows; i++) sums[i / n] += x[i];
    float *d_x = device(x), *d_sums = device<float>(rows);
    block_sum<0><<<rows, n, n * sizeof(float)>>>(d_sums, d_x, n);
    compare("block_sum", host(d_sums, rows), sums, 1e-5);

    unsigned *d_tickets = device<unsigned>(1);
    float *d_parts = device<float>(20);
    sum_by_last_block<0><<<20, 32>>>(d_sums, d_parts, d_tickets, d_x, n);
    compare("sum_by_last_block", host(d_sums, 1), {sums[0]}, 1e-5);
    CUDA(cudaFree(d_tickets));
    CUDA(cudaFree(d_parts));

    const int N = 7, C = 77;
    Floats wanted(N * C);
    for (int i = 0; i < N; i++) {
        double total = 0;
        for (int j = 0; j < C; j++) total += exp(x[i * C + j]);
        for (int j = 0; j < C; j++) wanted[i * C + j] = (float)(exp(x[i * C + j]) / total);
    }
    float *d_y = device<float>(N * C);
    softmax<<<(N + 3) / 4, 128>>>(d_y, d_x, N, C);
    compare("softmax", host(d_y, N * C), wanted, 1e-6);
    CUDA(cudaFree(d_x));
    CUDA(cudaFree(d_sums));
    CUDA(cudaFree(d_y));
}

static void check_products(int M, int N, int K) {
    Floats A = noises(M * K), B = noises(K * N);
    float *d_A = device(A), *d_B = device(B), *d_C = device<float>(M * N);
    product<16><<<dim3((N + 15) / 16, (M + 15) / 16), dim3(16, 16)>>>(d_C, d_A, d_B, M, N, K);
    compare("product", host(d_C, M * N), plain_product(A, B, M, N, K), 1e-5);
    bf16 *d_Ab = device(rounded(A)), *d_Bb = device(rounded(B));
    product_bf16<0><<<dim3((N + 31) / 32, (M + 31) / 32), 128>>>(d_C, d_Ab, d_Bb, M, N, K);
    compare("product_bf16", host(d_C, M * N), plain_product(A, B, M, N, K), 1e-5);
    CUDA(cudaFree(d_A));
    CUDA(cudaFree(d_B));
    CUDA(cudaFree(d_C));
    CUDA(cudaFree(d_Ab));
    CUDA(cudaFree(d_Bb));
}

static void check_copies() {
    std::vector<uint32_t> wanted(32 * 8);
    for (int lane = 0; lane < 32; lane++) {
        uint32_t *w = &wanted[lane * 8], g = lane / 4, q = lane % 4;
        auto pair = [&](uint32_t i, bool transposed) {
            uint32_t low = 64 * i + (transposed ? 16 * q + g : 8 * g + 2 * q);
            return low | (low + (transposed ? 8 : 1)) << 16;
        };
        for (int i = 0; i < 4; i++) w[i] = pair(i, false), w[4 + i] = pair(i, true);
    }
    uint32_t *d_out = device<uint32_t>(32 * 8);
    load_matrices<<<1, 32>>>(d_out);
    equal("load_matrices", host(d_out, 32 * 8), wanted);

    std::vector<unsigned> in(128), copied(128);
    for (unsigned i = 0; i < 128; i++) in[i] = i + 1, copied[i] = i / 4 % 2 ? i + 1 : 0;
    unsigned *d_in = device(in);
    copy_async<<<1, 32>>>(d_out, d_in);
    equal("copy_async", host(d_out, 128), copied);

    Floats x = noises(64);
    std::vector<bf16> y = rounded(x);
    float *d_x = device(x), *d_x2 = device<float>(64);
    bf16 *d_y = device(y), *d_y2 = device<bf16>(64);
    vectors<<<1, 16>>>((float4 *)d_x2, (const float4 *)d_x, (uint2 *)d_y2, (const uint2 *)d_y);
    for (float &v : x) v *= 2;
    y = host(d_y2, 64);
    compare("vectors", host(d_x2, 64), x, 0);
    for (int i = 0; i < 64; i++) CHECK(__bfloat162float(y[i]) == x[i], "element %d", i);

    // Ties to even, the largest number, overflow, a subnormal number, NaN
    Floats special = {1, 1.00390625f, 1.01171875f, -1.0039064f, 3.3895314e38f, 3.4e38f, 1e-40f, NAN};
    std::vector<unsigned short> bits = {0x3f80, 0x3f80, 0x3f82, 0xbf81, 0x7f7f, 0x7f80, 0x0001, 0x7fff};
    float *d_special = device(special);
    unsigned short *d_bits = device<unsigned short>(8);
    round_bf16<<<1, 8>>>(d_bits, d_special);
    equal("round_bf16", host(d_bits, 8), bits);
    for (void *p : {(void *)d_out, (void *)d_in, (void *)d_x, (void *)d_x2, (void *)d_y, (void *)d_y2,
                    (void *)d_special, (void *)d_bits})
        CUDA(cudaFree(p));
}

static void check_threads() {
    std::vector<unsigned> wanted(4 * 64), once(24 * 30, 1);
    for (unsigned t = 0; t < 64; t++) {
        unsigned lane = t % 32, *w = &wanted[4 * t];
        w[0] = lane / 16 * 16 + 5;
        w[1] = lane ^ 17;
        w[2] = 0x49249249;
        w[3] = lane < 16 ? 15 : 0;
    }
    unsigned *d_out = device<unsigned>(24 * 30);
    lanes<<<1, 64>>>(d_out);
    equal("lanes", host(d_out, 4 * 64), wanted);
    CUDA(cudaMemset(d_out, 0, 24 * 30 * sizeof(unsigned)));
    indices<<<dim3(2, 3, 4), dim3(5, 3, 2)>>>(d_out);
    equal("indices", host(d_out, 24 * 30), once);

    std::vector<uint32_t> words(64);
    for (uint32_t i = 0; i < 64; i++) words[i] = philox(philox_key(9, PHILOX_DROPOUT, 3), i, 1, 2, 3).x[0];
    random_words<<<1, 64>>>(d_out, 9);
    equal("random_words", host(d_out, 64), words);

    const int n = 1000;
    std::vector<int> values(n), counts(8);
    float total = 0;
    for (int &v : values) {
        v = (int)((noise() + 1) * 500);
        counts[v % 8]++;
        total += (float)v; // exact
    }
    int *d_values = device(values), *d_counts = device<int>(8);
    float *d_total = device<float>(1);
    histogram<<<(n + 127) / 128, 128>>>(d_counts, d_total, d_values, n);
    equal("histogram", host(d_counts, 8), counts);
    CHECK(host(d_total, 1)[0] == total, "atomicAdd of floats");
    for (void *p : {(void *)d_out, (void *)d_values, (void *)d_counts, (void *)d_total}) CUDA(cudaFree(p));
}

template <int MISTAKE>
static void check_relay(bool reset) {
    int n = 3, steps = 20;
    std::vector<unsigned> x(n * steps * 4, ~0u), wanted(n * steps * 4);
    uint2 *d_x = nullptr;
    CUDA(cudaMalloc(&d_x, x.size() * 4));
    for (int i = 0; i < n * 4; i++) x[i] = (unsigned)i;
    CUDA(cudaMemcpy(d_x, x.data(), reset ? x.size() * 4 : n * 16, cudaMemcpyHostToDevice));
    for (int s = 0; s < steps; s++)
        for (int i = 0; i < n * 4; i++) wanted[s * n * 4 + i] = (i + s * 4) % (n * 4) + s;
    void *arguments[] = {&d_x, &steps};
    CUDA(cudaLaunchCooperativeKernel(relay<MISTAKE>, dim3(n), dim3(1), arguments, 0, nullptr));
    equal("relay", host((unsigned *)d_x, n * steps * 4), wanted);
    CUDA(cudaFree(d_x));
}

// Two clusters of 4 blocks, after a kernel that doubles x, which they may overlap with.
template <int MISTAKE>
static void check_clusters(bool cooperative) {
#if CLUSTERS
    const int n = 256, steps = 9;
    Floats x(n * steps, 1.0f);
    float *d_x = device(x);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CUDA(cudaStreamCreate(&stream));
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config =
        cluster_config(attributes, 4, n / 32, 32, steps * sizeof(float), cooperative, stream);
    int clusters = 0;
    CUDA(cudaOccupancyMaxActiveClusters(&clusters, pascal_of_cluster<MISTAKE>, &config));
    if (clusters < 2) return;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    doubled<0><<<(n + 127) / 128, 128, 0, stream>>>(d_x, d_x, n);
    CUDA(cudaLaunchKernelEx(&config, pascal_of_cluster<MISTAKE>, d_x, steps));
    CUDA(cudaStreamEndCapture(stream, &graph));
    const int edges = overlap_kernels(graph, doubled<0>);
    CHECK(edges == (OVERLAP_KERNELS && !cooperative), "%d edges", edges);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CUDA(cudaGraphLaunch(executable, nullptr));
    for (int i = 0; i < n; i++) x[i] = 2;
    for (int i = n; i < n * steps; i++) x[i] = x[i - n] + (i % 128 ? x[i - n - 1] : 0);
    equal("pascal_of_cluster", host(d_x, n * steps), x);
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
    attributes[0].val.clusterDim.x = 3;
    CHECK(cudaLaunchKernelEx(&config, pascal_of_cluster<MISTAKE>, d_x, steps) == cudaErrorInvalidClusterSize, "8 / 3");
    cudaGetLastError();
    CUDA(cudaFree(d_x));
#endif
}

static void check_cooperative() {
    int n = 4, steps = 9;
    Floats x(n * steps);
    x[0] = 1;
    float *d_x = device(x);
    for (int s = 1; s < steps; s++)
        for (int b = 0; b < n; b++) x[s * n + b] = x[(s - 1) * n + b] + (b ? x[(s - 1) * n + b - 1] : 0);
    void *arguments[] = {&d_x, &steps};
    CUDA(cudaLaunchCooperativeKernel(pascal, dim3(n), dim3(64), arguments, 0, nullptr));
    compare("pascal", host(d_x, n * steps), x, 0);
    CUDA(cudaFree(d_x));

    Floats row(n, 0.0f);
    row[0] = 1;
    float *d_row = device(row);
    unsigned *d_arrived = device<unsigned>(1);
    for (int s = 1; s < steps; s++)
        for (int b = n - 1; b > 0; b--) row[b] += row[b - 1];
    int once = steps - 1;
    void *in_place[] = {&d_row, &d_arrived, &once};
    CUDA(cudaLaunchCooperativeKernel(pascal_in_place<0>, dim3(n), dim3(64), in_place, 0, nullptr));
    compare("pascal_in_place", host(d_row, n), row, 0);
    CUDA(cudaFree(d_row));
    CUDA(cudaFree(d_arrived));

    int *d_turn = device<int>(1), rounds = 10;
    void *turns[] = {&d_turn, &rounds};
    CUDA(cudaLaunchCooperativeKernel(ping_pong, dim3(2), dim3(1), turns));
    CHECK(host(d_turn, 1)[0] == 20, "ping_pong");
    CUDA(cudaFree(d_turn));

    check_relay<0>(true);

    int blocks = 0;
    CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, pascal, 64, 0));
    CHECK(blocks > 0, "%d blocks", blocks);
    CHECK(cudaLaunchCooperativeKernel(pascal, dim3(100000), dim3(64), arguments) == cudaErrorCooperativeLaunchTooLarge,
          "100000 blocks cannot live at once");
    CHECK(cudaGetLastError() == cudaErrorCooperativeLaunchTooLarge, "the error is kept");
}

// A graph of two streams, as a training step is one. The main stream makes x = 2 a, then z += x, x /= 2; the other
// y = (y + x) / 2 between the first and the last of these. At the end two blocks add 1 to turn[0], in turn. The
// mistakes: y does not wait for x, x does not wait for y, the main stream never does.
enum { NONE, NO_EVENT, EARLY, NO_JOIN };
struct Branches {
    float *x, *y, *z, *a;
    int *turn;
    int n;
};
static cudaError_t capture(cudaGraph_t *graph, Branches b, int mistake) {
    cudaStream_t stream, branch;
    cudaEvent_t start, ready, join;
    int blocks = (b.n + 127) / 128, rounds = 1;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamCreate(&branch));
    for (cudaEvent_t *event : {&start, &ready, &join}) CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CUDA(cudaEventRecord(start, stream));
    CUDA(cudaStreamWaitEvent(branch, start, 0));
    CUDA(cudaMemsetAsync(b.x, 0, b.n * sizeof(float), stream));
    CUDA(cudaMemcpyAsync(b.x, b.a, b.n * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    scale<<<blocks, 128, 0, stream>>>(b.x, 2.0f, b.n);
    CUDA(cudaEventRecord(ready, stream));
    if (mistake != NO_EVENT) CUDA(cudaStreamWaitEvent(branch, ready, 0));
    add<<<blocks, 128, 0, branch>>>(b.y, b.x, b.n);
    scale<<<blocks, 128, 0, branch>>>(b.y, 0.5f, b.n);
    CUDA(cudaEventRecord(join, branch));
    add<<<blocks, 128, 0, stream>>>(b.z, b.x, b.n);
    if (mistake == EARLY) scale<<<blocks, 128, 0, stream>>>(b.x, 0.5f, b.n);
    if (mistake != NO_JOIN) CUDA(cudaStreamWaitEvent(stream, join, 0));
    if (mistake != EARLY) scale<<<blocks, 128, 0, stream>>>(b.x, 0.5f, b.n);
    void *arguments[] = {&b.turn, &rounds};
    CUDA(cudaLaunchCooperativeKernel(ping_pong, dim3(2), dim3(1), arguments, 0, stream));
    cudaError_t error = cudaStreamEndCapture(stream, graph);
    for (cudaEvent_t event : {start, ready, join}) CUDA(cudaEventDestroy(event));
    CUDA(cudaStreamDestroy(stream));
    CUDA(cudaStreamDestroy(branch));
    return error;
}
static void check_graph(int mistake) {
    const int n = 300, launches = 8;
    Floats y = noises(n), z = noises(n), a = noises(n);
    Branches b = {device<float>(n), device(y), device(z), device(a), device<int>(1), n};
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable;
    CHECK(capture(&graph, b, NO_JOIN) == cudaErrorStreamCaptureUnjoined && !graph, "a branch that is not joined");
    CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnjoined, "the error is kept");
    CUDA(capture(&graph, b, mistake));
    equal("a captured kernel has not run", host(b.y, n), y);
    size_t nodes = 0;
    CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    CHECK(nodes == 8, "%zu nodes", nodes);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < launches; i++) CUDA(cudaGraphLaunch(executable, nullptr));
    CUDA(cudaDeviceSynchronize());
    for (int k = 0; k < launches; k++)
        for (int i = 0; i < n; i++) y[i] = (y[i] + 2 * a[i]) * 0.5f, z[i] += 2 * a[i];
    equal("graph, x", host(b.x, n), a);
    equal("graph, y", host(b.y, n), y);
    equal("graph, z", host(b.z, n), z);
    CHECK(host(b.turn, 1)[0] == 2 * launches, "a cooperative kernel in a graph");
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    for (float *p : {b.x, b.y, b.z, b.a}) CUDA(cudaFree(p));
    CUDA(cudaFree(b.turn));
}

// A graph of kernels that overlap: y[0] = 2 x, y[1] = 2 y[0], y[2] = 2 y[1]; beside the last of these, on another
// stream, y[3] = 2 y[0]; when both are done y[3] = 2 y[2]; two blocks in turn; y[4] = 2 y[3]. Programmatic are the
// edges to y[1], y[2] and the first y[3].
template <int MISTAKE>
static void check_overlap() {
    const int n = 300, blocks = 3, launches = 3;
    int rounds = 1, *turn = device<int>(1);
    Floats x = noises(n);
    float *d_x = device(x), *y[5];
    cudaStream_t stream, branch;
    cudaEvent_t fork, join;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaFuncAttributes about;
    for (float *&p : y) p = device<float>(n);
    for (cudaStream_t *s : {&stream, &branch}) CUDA(cudaStreamCreate(s));
    for (cudaEvent_t *event : {&fork, &join}) CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CUDA(cudaMemsetAsync(y[0], 0, n * sizeof(float), stream));
    doubled<0><<<blocks, 128, 0, stream>>>(y[0], d_x, n);
    CUDA(cudaEventRecord(fork, stream));
    CUDA(cudaStreamWaitEvent(branch, fork, 0));
    doubled<MISTAKE><<<blocks, 128, 0, stream>>>(y[1], y[0], n);
    doubled<0><<<blocks, 128, 0, branch>>>(y[3], y[0], n);
    CUDA(cudaEventRecord(join, branch));
    doubled<0><<<blocks, 128, 0, stream>>>(y[2], y[1], n);
    CUDA(cudaStreamWaitEvent(stream, join, 0));
    doubled<0><<<blocks, 128, 0, stream>>>(y[3], y[2], n);
    void *arguments[] = {&turn, &rounds};
    CUDA(cudaLaunchCooperativeKernel(ping_pong, dim3(2), dim3(1), arguments, 0, stream));
    doubled<0><<<blocks, 128, 0, stream>>>(y[4], y[3], n);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaFuncGetAttributes(&about, ping_pong));
    const int edges = overlap_kernels(graph, ping_pong);
    CHECK(edges == (about.ptxVersion < 90 || !OVERLAP_KERNELS ? 0 : 3), "%d edges", edges);
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < launches; i++) CUDA(cudaGraphLaunch(executable, nullptr));
    CUDA(cudaDeviceSynchronize());
    for (float *p : {y[0], y[1], y[2], y[3], y[4]}) {
        for (float &v : x) v *= 2;
        equal("overlapping kernels", host(p, n), x);
        CUDA(cudaFree(p));
    }
    CHECK(host(turn, 1)[0] == 2 * launches, "a cooperative kernel between them");
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    for (cudaEvent_t event : {fork, join}) CUDA(cudaEventDestroy(event));
    for (cudaStream_t s : {stream, branch}) CUDA(cudaStreamDestroy(s));
    CUDA(cudaFree(d_x));
    CUDA(cudaFree(turn));
}

// A large piece of dynamic shared memory, and what the runtime refuses
static void check_runtime() {
    float *d_x = device<float>(1024), *d_sums = device<float>(1);
    Floats ones(1024, 1.0f);
    CUDA(cudaMemcpy(d_x, ones.data(), 4096, cudaMemcpyHostToDevice));
    block_sum<0><<<1, 1024, 60000>>>(d_sums, d_x, 1024);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue, "more than 48 KB need cudaFuncSetAttribute");
    int count = 0;
    cudaDeviceProp device;
    CUDA(cudaGetDeviceCount(&count));
    CUDA(cudaGetDeviceProperties(&device, 0));
    CHECK(count >= 1 && device.multiProcessorCount > 0 && device.cooperativeLaunch == 1 && device.major >= 7, "%d",
          count);
    const int most = (int)device.sharedMemPerBlockOptin;
    CHECK(most > 60000, "%d bytes", most);
    CHECK(cudaFuncSetAttribute(block_sum<0>, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1) ==
              cudaErrorInvalidValue,
          "more than a block can have");
    CHECK(cudaGetLastError() == cudaErrorInvalidValue, "the error is kept");
    CUDA(cudaFuncSetAttribute(block_sum<0>, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000));
    block_sum<0><<<1, 1024, 60000>>>(d_sums, d_x, 1024);
    compare("block_sum of 1024", host(d_sums, 1), {1024.0f}, 0);
    scale<<<1, 1025>>>(d_x, 2.0f, 1024);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration, "1025 threads are too many");
    scale<<<0, 32>>>(d_x, 2.0f, 1024);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration, "no block");
    size_t available = 0, total = 0;
    CUDA(cudaMemGetInfo(&available, &total));
    CHECK(available > 0 && available < total, "%zu bytes of %zu", available, total);
    float *never = nullptr;
    CHECK(cudaMalloc(&never, 2 * total) == cudaErrorMemoryAllocation && !never, "more than there is");
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess, "the error, once");
    CUDA(cudaFree(d_x));
    CUDA(cudaFree(d_sums));
}

// A launch with a mistake: its line and the kernel's name are reported, also while a stream is captured.
static void launch_wrongly(float *x, bool captured) {
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    if (captured) CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    scale<<<1, 1024, 0, stream>>>(x, 2.0f, 1024);
    LAUNCHED(scale);
    scale<<<1, 1025, 0, stream>>>(x, 2.0f, 1024);
    LAUNCHED(scale); // here: launch captured
}

// What only the emulator promises: copies that a GPU may let pass, memory that starts as NaN but not as all ones, and
// no more blocks at once than there are on a GPU whatever registers nvcc gives them.
static void check_emulator() {
#ifdef CUDA_EMU
    Floats x(4);
    float *d_x = nullptr;
    CUDA(cudaMalloc(&d_x, 16));
    CUDA(cudaMemcpy(x.data(), d_x, 16, cudaMemcpyDeviceToHost));
    CHECK(x[3] != x[3], "%g is not NaN", (double)x[3]);
    uint32_t word;
    memcpy(&word, &x[3], 4);
    CHECK(~word, "fresh memory is all ones");
    int blocks = 0;
    CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, product<16>, 256, 0));
    CHECK(blocks == 1, "%d blocks of 256 threads", blocks);
    CHECK(cudaMemcpy(d_x, x.data(), 20, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "past the end");
    CHECK(cudaMemcpy(d_x, x.data(), 16, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue, "the wrong way");
    CHECK(cudaMemset(d_x + 1, 0, 16) == cudaErrorInvalidValue, "past the end");
    CHECK(cudaFree(d_x + 1) == cudaErrorInvalidValue, "inside an allocation");
    cudaStream_t stream;
    cudaGraph_t graph;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(cudaMemset(d_x, 0, 16) == cudaErrorStreamCaptureImplicit, "on another stream than the captured one");
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
    CUDA(cudaFree(d_x));
    cudaGetLastError();
#endif
}

int main(int argc, char **argv) {
    if (argc == 1) {
        check_reductions();
        check_products(64, 64, 64);
        check_products(45, 40, 56);
        check_copies();
        check_threads();
        check_cooperative();
        check_graph(NONE);
        check_overlap<0>();
        for (bool cooperative : {false, true}) check_clusters<0>(cooperative);
        check_runtime();
        check_emulator();
        return check_report("emu");
    }
    auto planted = [&](const char *name) { return !strcmp(argv[1], name); };
    float *x = device(noises(1024)), *out = device<float>(1024);
    bf16 *a = device<bf16>(64 * 64);
    if (planted("barrier1")) block_sum<1><<<4, 256, 256 * sizeof(float)>>>(out, x, 256);
    if (planted("barrier2")) block_sum<2><<<4, 256, 256 * sizeof(float)>>>(out, x, 256);
    if (planted("dynamic")) block_sum<3><<<4, 256, 256 * sizeof(float)>>>(out, x, 256);
    if (planted("nowait")) product_bf16<1><<<dim3(1, 1), 128>>>(out, a, a, 32, 32, 64);
    if (planted("reuse")) product_bf16<2><<<dim3(1, 1), 128>>>(out, a, a, 32, 32, 64);
    if (planted("global")) past_global<<<9, 128>>>(out, 1024);
    if (planted("static")) past_static<<<1, 64>>>(out);
    if (planted("neighbour")) reads_then_writes<<<1, 128>>>(out);
    if (planted("returned")) stores_what_returns<<<1, 128>>>(out);
    if (planted("lockstep")) lockstep<<<1, 32>>>(out);
    if (planted("blocks")) blocks_collide<<<2, 64>>>(out);
    if (planted("ticket")) sum_by_last_block<1><<<20, 32>>>(out, x, device<unsigned>(1), x + 32, 900);
    if (planted("fence") || planted("resident")) {
        unsigned *arrived = device<unsigned>(1);
        int steps = 9;
        void *arguments[] = {&x, &arrived, &steps};
        if (planted("fence"))
            CUDA(cudaLaunchCooperativeKernel(pascal_in_place<1>, dim3(4), dim3(64), arguments));
        else
            pascal_in_place<0><<<1000, 64>>>(x, arrived, steps);
    }
    if (planted("torn")) check_relay<1>(true);
    if (planted("forgotten")) check_relay<0>(false);
    if (planted("event")) check_graph(NO_EVENT);
    if (planted("early")) check_graph(EARLY);
    if (planted("ahead")) check_overlap<1>();
    if (planted("unaware")) check_overlap<2>();
    if (planted("unborn")) check_clusters<1>(false);
    if (planted("step")) check_clusters<2>(false);
    if (planted("end")) check_clusters<3>(false);
    if (planted("local")) check_clusters<4>(false);
    if (planted("beyond")) check_clusters<5>(false);
    if (planted("divergent")) two_barriers<<<1, 64>>>(out);
    if (planted("deadlock")) stuck<<<1, 32>>>((unsigned *)out);
    if (planted("absent")) half_a_warp<<<1, 32>>>(out);
    if (planted("host")) out[5] = 1; // here: host
    if (planted("launch") || planted("captured")) launch_wrongly(x, planted("captured"));
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (planted("attribute")) cuda_check(cudaFuncSetAttribute(scale, most, 1 << 30)); // here: attribute
    if (planted("cooperative")) {
        int steps = 9;
        void *arguments[] = {&x, &steps};
        cudaLaunchCooperativeKernel(pascal, dim3(100000), dim3(64), arguments);
        LAUNCHED(pascal); // here: cooperative
    }
    Floats result = host(out, 1024);
    if (planted("nowait")) CHECK(result[0] == 0, "a product of zeros is %g", (double)result[0]);
    return check_report(argv[1]);
}
