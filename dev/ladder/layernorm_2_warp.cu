// LayerNorm with residual and dropout, rung 2: a warp for each row. Lane i has channels 4i..4i+3 and 128 + 4i.., eight
// in all, in registers from the first load to the last store. Sums over the row are sums of the lanes' sums, which
// __shfl_xor_sync() makes in five exchanges, without shared memory:
//
//     lanes     0  1  2  3  ...      with lane ^ 16, then ^ 8, ^ 4, ^ 2, ^ 1: all lanes have the sum of all
//     row       ====------====----   16 bytes a lane, side by side
//
// What is counted: 32 lanes load 512 bytes in a row, whole sectors, each once in the forward and once in the backward,
// and 32 times as many threads have a load under way.
// What limits it: dw and db. Their kernel loads dy and normalized once more, a quarter of all that is loaded, with a
// thread for each column: WIDTH threads that walk through all R rows, however many these are. And each row has w and b
// loaded for it again.
//   layernorm_2_warp [R]
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;
constexpr int THREADS = 256, EACH = WIDTH / 128; // of a block; fours of a lane
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

static __global__ void __launch_bounds__(THREADS) backward_rows_kernel(Norm a) {
    const int lane = (int)threadIdx.x % 32, r = (int)(blockIdx.x * THREADS + threadIdx.x) / 32, at = r * WIDTH;
    float4 gradient[EACH], normalized[EACH];
    float sum = 0, product = 0;
    for (int i = 0; i < EACH; i++) {
        const int g = lane + 32 * i;
        normalized[i] = load(a.normalized + at, g);
        gradient[i] = times(load(a.dy + at, g), load(a.w, g));
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

static __global__ void backward_columns_kernel(Norm a, int R) {
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float dw = 0, db = 0;
    for (int r = 0; r < R; r++) {
        dw += a.dy[r * WIDTH + c] * a.normalized[r * WIDTH + c];
        db += a.dy[r * WIDTH + c];
    }
    a.dw[c] = dw;
    a.db[c] = db;
}

static void run(Norm a, int R, cudaStream_t stream) {
    forward_kernel<<<R * 32 / THREADS, THREADS, 0, stream>>>(a);
    LAUNCHED(forward_kernel);
    backward_rows_kernel<<<R * 32 / THREADS, THREADS, 0, stream>>>(a);
    LAUNCHED(backward_rows_kernel);
    backward_columns_kernel<<<WIDTH / 32, 32, 0, stream>>>(a, R);
    LAUNCHED(backward_columns_kernel);
}

int main(int argc, char **argv) { return ladder_layernorm<false>(argc, argv, run); }
