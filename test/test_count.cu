// Kernels whose counts (dev/emu/cuda_emu_count.cpp) can be told by looking at them; test_count.sh knows them.
//   test_count [graph]     graph: kernels of a graph that forks and joins, else all others, each launched once
#include "cuda/check.cuh"
#include "cuda/tensor_core.cuh"
#include <cooperative_groups.h>
#include <string.h>

// ---- Global memory: sectors of 32 bytes, of a warp

__global__ void adjacent(float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void reversed(float *out, const float *in) { out[threadIdx.x] = in[31 - threadIdx.x]; }
__global__ void shifted(float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x + 1]; }
__global__ void strided(float *out, const float *in) { out[threadIdx.x * 8] = in[threadIdx.x * 16]; }
__global__ void broadcast(float *out, const float *in) { out[threadIdx.x] = in[5]; }
__global__ void fours(float4 *out, const float4 *in) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void made(uint4 *out, uint2 *pairs, unsigned x) {
    out[threadIdx.x] = make_uint4(x, x, x, x);
    pairs[threadIdx.x] = make_uint2(x, x);
}
__global__ void shorts(__nv_bfloat16 *out, const __nv_bfloat16 *in) {
    out[threadIdx.x] = __float2bfloat16(__bfloat162float(in[threadIdx.x]) * 2);
}
__global__ void again(float *out, const float *in, int n) { // all of `in`, n times, by two blocks
    float sum = 0;
    for (int i = 0; i < n; i++) sum += __ldg(&in[threadIdx.x]);
    out[blockIdx.x * 32 + threadIdx.x] = sum;
}
__global__ void rewritten(volatile float *x) { // what is read was written in this launch
    x[threadIdx.x] = 1;
    x[threadIdx.x] = x[threadIdx.x] + 1;
}
__global__ void added(int *x) { atomicAdd(x, 1); }
__global__ void branches(float *out, const float *in) { // half a warp each
    if (threadIdx.x < 16)
        out[threadIdx.x] = in[threadIdx.x];
    else
        atomicAdd((int *)&out[threadIdx.x], (int)in[threadIdx.x + 32]);
}
__global__ void trips(float *out, const float *in) { // a lane makes 1 to 4 rounds
    float sum = 0;
    for (unsigned i = 0; i <= threadIdx.x / 8; i++) sum += in[i * 32 + threadIdx.x];
    out[threadIdx.x] = sum;
}

// ---- Shared memory: wavefronts of 32 banks

template <int STRIDE>
__global__ void every(float *out) {
    __shared__ float s[32 * STRIDE];
    s[threadIdx.x * STRIDE] = 1;
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x * STRIDE];
}
__global__ void one_word(float *out) {
    __shared__ float s[2];
    if (threadIdx.x == 0) s[0] = s[1] = 1;
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x / 16]; // two words for all
}
__global__ void wide(float *out) { // 8 bytes: by halves of a warp; 16: by quarters
    __shared__ __align__(16) float s[128];
    *(float2 *)&s[threadIdx.x * 2] = make_float2(1, 2);
    __syncwarp();
    const float4 v = *(const float4 *)&s[threadIdx.x * 4];
    out[threadIdx.x] = v.x + v.w;
}
__global__ void few_words(float *out) { // half a warp wants the same 8 bytes, a quarter the same 16
    __shared__ __align__(16) float s[16];
    if (threadIdx.x < 16) s[threadIdx.x] = 1;
    __syncwarp();
    const float2 a = *(const float2 *)&s[threadIdx.x / 16 * 2];
    const float4 b = *(const float4 *)&s[threadIdx.x / 8 * 4];
    out[threadIdx.x] = a.x + a.y + b.x + b.y + b.z + b.w;
}
// Rows of 64 bytes, 4 lanes each, and ROW bytes from one to the next: the two rows of a quarter warp may share banks.
template <int ROW>
__global__ void rows(float *out, const uint4 *in) {
    __shared__ __align__(16) unsigned char s[8 * ROW];
    cp_async(s + threadIdx.x / 4 * ROW + threadIdx.x % 4 * 16, in + threadIdx.x, threadIdx.x < 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x];
}
// Eight rows of 16 bytes for each matrix, ROW bytes from one to the next.
template <int ROW>
__global__ void matrices(float *out) {
    __shared__ __align__(16) unsigned char s[32 * ROW];
    uint32_t r[4], b[2] = {0, 0};
    float d[4] = {0};
    for (int i = threadIdx.x; i < 8 * ROW; i += 32) ((uint32_t *)s)[i] = 0;
    __syncwarp();
    ldmatrix(r, s + threadIdx.x * ROW);
    for (int i = 0; i < 3; i++) mma_bf16(d, r, b);
    out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

// ---- Barriers, exchanges, graphs

__global__ void barriers(float *out) {
    __shared__ float s;
    for (int i = 0; i < 3; i++) {
        if (threadIdx.x == 0) s = (float)i;
        __syncthreads();
        __syncwarp();
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = s;
}
__global__ void grids(uint4 *x) {
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    exchange_store(x + blockIdx.x * 32 + threadIdx.x, make_uint2(1, 1));
    grid.sync();
    const uint4 v = exchange_load(x + (1 - blockIdx.x) * 32 + threadIdx.x, threadIdx.x < 2);
    grid.sync();
    x[blockIdx.x * 32 + threadIdx.x] = v;
}
__global__ void on_both(float *x) { x[threadIdx.x] = 1; }
__global__ void on_main(float *x) { x[threadIdx.x] = 2; }
__global__ void on_side(float *x) { x[32 + threadIdx.x] = 3; }

// on_both, then on_main twice beside on_side, then a memset and on_both: 6 nodes, 5 of them on the longest path
static void run_graph(float *x) {
    cudaStream_t stream, side;
    cudaEvent_t forked, joined;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda_check(cudaStreamCreate(&stream));
    cuda_check(cudaStreamCreate(&side));
    cuda_check(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
    cuda_check(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    on_both<<<1, 32, 0, stream>>>(x);
    cuda_check(cudaEventRecord(forked, stream));
    cuda_check(cudaStreamWaitEvent(side, forked));
    on_side<<<1, 32, 0, side>>>(x);
    cuda_check(cudaEventRecord(joined, side));
    on_main<<<1, 32, 0, stream>>>(x);
    on_main<<<1, 32, 0, stream>>>(x);
    cuda_check(cudaStreamWaitEvent(stream, joined));
    cuda_check(cudaMemsetAsync(x, 0, 128, stream));
    on_both<<<1, 32, 0, stream>>>(x);
    cuda_check(cudaStreamEndCapture(stream, &graph));
    cuda_check(cudaGraphInstantiate(&executable, graph, 0));
    cuda_check(cudaGraphLaunch(executable, stream));
    cuda_check(cudaStreamSynchronize(stream));
}

int main(int argc, char **argv) {
    float *x;
    cuda_check(cudaMalloc(&x, 1 << 20));
    float *y = x + (1 << 17); // the other half
    on_side<<<1, 32>>>(x);
    if (argc > 1 && !strcmp(argv[1], "graph")) {
        run_graph(x);
    } else {
        adjacent<<<1, 32>>>(y, x);
        reversed<<<1, 32>>>(y, x);
        shifted<<<1, 32>>>(y, x);
        strided<<<1, 32>>>(y, x);
        broadcast<<<1, 32>>>(y, x);
        fours<<<1, 32>>>((float4 *)y, (float4 *)x);
        made<<<1, 32>>>((uint4 *)y, (uint2 *)x, 7);
        shorts<<<1, 32>>>((__nv_bfloat16 *)y, (__nv_bfloat16 *)x);
        again<<<2, 32>>>(y, x, 3);
        rewritten<<<1, 32>>>(x);
        added<<<2, 32>>>((int *)x);
        branches<<<1, 32>>>(y, x);
        trips<<<1, 32>>>(y, x);
        every<1><<<1, 32>>>(y);
        every<2><<<1, 32>>>(y);
        every<32><<<1, 32>>>(y);
        every<33><<<1, 32>>>(y);
        one_word<<<1, 32>>>(y);
        wide<<<1, 32>>>(y);
        few_words<<<1, 32>>>(y);
        rows<64><<<1, 32>>>(y, (uint4 *)x);
        rows<80><<<1, 32>>>(y, (uint4 *)x);
        matrices<128><<<1, 32>>>(y);
        matrices<144><<<1, 32>>>(y);
        barriers<<<2, 64>>>(y);
        void *arguments[] = {&x};
        cuda_check(cudaLaunchCooperativeKernel(grids, dim3(2), dim3(32), arguments, 0, nullptr));
        adjacent<<<1, 32>>>(y, x);
    }
    cuda_check(cudaDeviceSynchronize());
    cuda_check(cudaFree(x));
    return 0;
}
