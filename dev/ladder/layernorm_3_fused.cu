// LayerNorm with residual and dropout, rung 3: one backward kernel for dx, dbranch, dw and db. A lane has the same
// eight channels in every row, so a warp that takes one row after the other can sum dw and db of its rows in registers.
// The warps of a block, 8 with ROWS / 8 rows each, then meet in shared memory, and each block stores its part:
//
//     block 0: rows 0..15      part 0 of dw and db  --.
//     block 1: rows 16..31     part 1               --+-->  a thread a column adds the parts, in order
//     ...                      ...                  --'
//
// The order of the sums is always the same, so that the same inputs give the same bytes; atomicAdd() would not.
//
// What is counted: dy and normalized are loaded once in the backward, no longer twice. The last kernel reads R / 16
// numbers a thread in place of 2 R, so it is a short walk however many rows there are.
// What limits it: memory. Beyond the least it loads only normalized, which the forward has made, and w and b, again for
// each row, from caches. Less is possible only if the branch never gets to memory.
//   layernorm_3_fused [R]
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;
constexpr int THREADS = 256, EACH = WIDTH / 128, ROWS = 16; // of a block; fours of a lane; rows of a block's part
struct __align__(8) Four {
    bf16 at[4];
};
static __device__ Four to_bf16(float4 v) {
    return {{__float2bfloat16(v.x), __float2bfloat16(v.y), __float2bfloat16(v.z), __float2bfloat16(v.w)}};
}
static __device__ float4 load(const float *row, int g) { return *(const float4 *)&row[4 * g]; }
static __device__ float4 times(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
static __device__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
static __device__ float4 scaled(float4 a, float by, float past) { // (a - past) by
    return make_float4((a.x - past) * by, (a.y - past) * by, (a.z - past) * by, (a.w - past) * by);
}
static __device__ float total(float4 a) { return a.x + a.y + a.z + a.w; }
static __device__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

static __global__ void __launch_bounds__(THREADS) forward_kernel(Norm a) {
    const int lane = (int)threadIdx.x % 32, r = (int)(blockIdx.x * THREADS + threadIdx.x) / 32, at = r * WIDTH;
    float4 v[EACH];
    float sum = 0, squares = 0;
    for (int i = 0; i < EACH; i++) {
        const int g = lane + 32 * i;
        v[i] = plus(load(a.x + at, g), times(load(a.branch + at, g), mask_four(a.key, r, g)));
        sum += total(v[i]);
    }
    const float mean = warp_sum(sum) / WIDTH;
    for (int i = 0; i < EACH; i++) {
        const float4 past = scaled(v[i], 1, mean);
        squares += total(times(past, past));
    }
    const float rstd = 1 / sqrtf(warp_sum(squares) / WIDTH + 1e-5f);
    for (int i = 0; i < EACH; i++) {
        const int g = lane + 32 * i;
        const float4 normalized = scaled(v[i], rstd, mean);
        *(float4 *)&a.normalized[at + 4 * g] = normalized;
        *(Four *)&a.y[at + 4 * g] = to_bf16(plus(times(normalized, load(a.w, g)), load(a.b, g)));
    }
    if (lane == 0) a.rstd[r] = rstd;
}

// parts [blocks][2][WIDTH]: what the block's rows add to dw, then to db
static __global__ void __launch_bounds__(THREADS) backward_kernel(Norm a, float *parts) {
    __shared__ __align__(16) float sums[THREADS / 32][2][WIDTH];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    float4 w[EACH], dw[EACH] = {}, db[EACH] = {};
    for (int i = 0; i < EACH; i++) w[i] = load(a.w, lane + 32 * i);
    for (int row = warp; row < ROWS; row += THREADS / 32) {
        const int r = (int)blockIdx.x * ROWS + row, at = r * WIDTH;
        float4 gradient[EACH], normalized[EACH];
        float sum = 0, product = 0;
        for (int i = 0; i < EACH; i++) {
            const int g = lane + 32 * i;
            const float4 dy = load(a.dy + at, g);
            normalized[i] = load(a.normalized + at, g);
            dw[i] = plus(dw[i], times(dy, normalized[i]));
            db[i] = plus(db[i], dy);
            gradient[i] = times(dy, w[i]);
            sum += total(gradient[i]);
            product += total(times(gradient[i], normalized[i]));
        }
        const float mean = warp_sum(sum) / WIDTH, mean_product = warp_sum(product) / WIDTH, rstd = a.rstd[r];
        for (int i = 0; i < EACH; i++) {
            const int g = lane + 32 * i;
            const float4 dx = scaled(plus(gradient[i], scaled(normalized[i], -mean_product, 0)), rstd, mean);
            *(float4 *)&a.dx[at + 4 * g] = dx;
            *(Four *)&a.dbranch[at + 4 * g] = to_bf16(times(dx, mask_four(a.key, r, g)));
        }
    }
    for (int i = 0; i < EACH; i++) {
        *(float4 *)&sums[warp][0][4 * (lane + 32 * i)] = dw[i];
        *(float4 *)&sums[warp][1][4 * (lane + 32 * i)] = db[i];
    }
    __syncthreads();
    for (int c = (int)threadIdx.x; c < 2 * WIDTH; c += THREADS) {
        float sum = 0;
        for (int w = 0; w < THREADS / 32; w++) sum += sums[w][c / WIDTH][c % WIDTH];
        parts[(int)blockIdx.x * 2 * WIDTH + c] = sum;
    }
}

static __global__ void sum_parts_kernel(Norm a, const float *parts, int n) {
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float sum = 0;
    for (int part = 0; part < n; part++) sum += parts[part * 2 * WIDTH + c];
    (c < WIDTH ? a.dw : a.db)[c % WIDTH] = sum;
}

static void run(Norm a, int R, cudaStream_t stream) {
    static float *parts;
    if (!parts) cuda_check(cudaMalloc(&parts, (size_t)R / ROWS * 2 * WIDTH * sizeof *parts));
    forward_kernel<<<R * 32 / THREADS, THREADS, 0, stream>>>(a);
    LAUNCHED(forward_kernel);
    backward_kernel<<<R / ROWS, THREADS, 0, stream>>>(a, parts);
    LAUNCHED(backward_kernel);
    sum_parts_kernel<<<2 * WIDTH / 32, 32, 0, stream>>>(a, parts, R / ROWS);
    LAUNCHED(sum_parts_kernel);
}

int main(int argc, char **argv) { return ladder_layernorm<false>(argc, argv, run); }
