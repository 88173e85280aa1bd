// What the GPU at hand can do at most, a line for each, median of several runs on random data:
//
//   nvcc -O3 -arch=sm_90 -Idev dev/tools/gpu_limits.cu -o gpu_limits && ./gpu_limits
//
//   copy_GB_s       a copy within device memory, bytes read and bytes written
//   graph_node_us   a kernel that does nothing, as one of 200 nodes, each behind the one before, of a CUDA graph
//   grid_sync_us    cooperative groups' grid.sync(), one block on each multiprocessor
//   barrier_us      the same by one counter in global memory: what a recurrence on the whole GPU pays at each time step
//   bf16_TFLOP_s, fp32_TFLOP_s   with -DCUBLAS -lcublas: its product of 8192 x 8192 matrices, fp32 without TF32
#include "cuda/check.cuh"
#include <algorithm>
#include <cooperative_groups.h>
#ifdef CUBLAS
#include <cublas_v2.h>
#include <cuda_bf16.h>
#endif

// Milliseconds of `work`, which puts something on the stream: the median of RUNS, after a few to warm up.
template <typename Work>
static float milliseconds(cudaStream_t stream, Work work) {
    enum { WARM_UP = 3, RUNS = 9 };
    cudaEvent_t start, end;
    float ms[RUNS];
    cuda_check(cudaEventCreate(&start));
    cuda_check(cudaEventCreate(&end));
    for (int i = -WARM_UP; i < RUNS; i++) {
        cuda_check(cudaEventRecord(start, stream));
        work();
        cuda_check(cudaEventRecord(end, stream));
        cuda_check(cudaEventSynchronize(end));
        if (i >= 0) cuda_check(cudaEventElapsedTime(&ms[i], start, end));
    }
    cuda_check(cudaGetLastError());
    cuda_check(cudaEventDestroy(start));
    cuda_check(cudaEventDestroy(end));
    std::sort(ms, ms + RUNS);
    return ms[RUNS / 2];
}

// Numbers in [-1, 1) that are different for each index; any grid.
template <typename T>
__global__ void fill_kernel(T *x, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned h = (unsigned)i * 2654435761u;
        h = (h ^ h >> 15) * 2246822519u;
        h = (h ^ h >> 13) * 3266489917u;
        x[i] = (T)((float)(int)h * (1.0f / 2147483648.0f));
    }
}

__global__ void empty_kernel() {}

__global__ void grid_sync_kernel(unsigned *, int times) {
    for (int i = 0; i < times; i++) cooperative_groups::this_grid().sync();
}

// `arrived` is zero at the start and counts all blocks' arrivals; the i-th barrier opens at i times the blocks.
__global__ void barrier_kernel(unsigned *arrived, int times) {
    for (int i = 1; i <= times; i++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(arrived, 1);
            while (*(volatile unsigned *)arrived < i * gridDim.x) {
            }
            __threadfence();
        }
        __syncthreads();
    }
}

static void copy(cudaStream_t stream) {
    size_t available, total;
    cuda_check(cudaMemGetInfo(&available, &total));
    const size_t bytes = std::min((size_t)2 << 30, available / 4) / 4096 * 4096;
    float *from, *to;
    for (float **x : {&from, &to}) cuda_check(cudaMalloc(x, bytes));
    fill_kernel<float><<<1024, 256, 0, stream>>>(from, bytes / sizeof(float));
    const float ms =
        milliseconds(stream, [&] { cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream)); });
    printf("copy_GB_s %.0f\n", 2.0 * (double)bytes / ms / 1e6);
    for (float *x : {from, to}) cuda_check(cudaFree(x));
}

static void graph_node(cudaStream_t stream) {
    enum { NODES = 200 };
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < NODES; i++) empty_kernel<<<1, 32, 0, stream>>>();
    cuda_check(cudaStreamEndCapture(stream, &graph));
    cuda_check(cudaGraphInstantiate(&executable, graph, 0));
    printf("graph_node_us %.3f\n",
           1e3 * milliseconds(stream, [&] { cuda_check(cudaGraphLaunch(executable, stream)); }) / NODES);
    cuda_check(cudaGraphExecDestroy(executable));
    cuda_check(cudaGraphDestroy(graph));
}

static void barriers(cudaStream_t stream, int multiprocessors) {
    const dim3 grid(multiprocessors), block(256);
    int times = 1000;
    unsigned *arrived;
    cuda_check(cudaMalloc(&arrived, sizeof *arrived));
    void *arguments[] = {&arrived, &times};
    float ms = milliseconds(
        stream, [&] { cuda_check(cudaLaunchCooperativeKernel(grid_sync_kernel, grid, block, arguments, 0, stream)); });
    printf("grid_sync_us %.3f\n", 1e3 * ms / times);
    ms = milliseconds(stream, [&] {
        cuda_check(cudaMemsetAsync(arrived, 0, sizeof *arrived, stream));
        cuda_check(cudaLaunchCooperativeKernel(barrier_kernel, grid, block, arguments, 0, stream));
    });
    printf("barrier_us %.3f\n", 1e3 * ms / times);
    cuda_check(cudaFree(arrived));
}

#ifdef CUBLAS
static void cuda_check_call(cublasStatus_t status, const char *what, const char *file, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "%s:%d: %s: cuBLAS refuses\n", file, line, what);
    exit(1);
}

template <typename T>
static void product(cublasHandle_t cublas, cudaStream_t stream, const char *name, cudaDataType type) {
    const int n = 8192;
    const size_t size = (size_t)n * n;
    const float one = 1, zero = 0;
    T *a, *b, *c;
    for (T **x : {&a, &b, &c}) cuda_check(cudaMalloc(x, size * sizeof(T)));
    for (T *x : {a, b}) fill_kernel<T><<<1024, 256, 0, stream>>>(x, size);
    const float ms = milliseconds(stream, [&] {
        cuda_check(cublasGemmEx(cublas, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, a, type, n, b, type, n, &zero, c, type,
                                n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    });
    printf("%s %.1f\n", name, 2.0 * n * n * n / ms / 1e9);
    for (T *x : {a, b, c}) cuda_check(cudaFree(x));
}
#endif

int main() {
    int count = 0;
    cudaDeviceProp about;
    cudaStream_t stream;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1) {
        fprintf(stderr, "gpu_limits: there is no GPU that CUDA can use\n");
        return 1;
    }
    cuda_check(cudaGetDeviceProperties(&about, 0));
    cuda_check(cudaStreamCreate(&stream));
    printf("# %s, %d multiprocessors\n", about.name, about.multiProcessorCount);
    copy(stream);
    graph_node(stream);
    barriers(stream, about.multiProcessorCount);
#ifdef CUBLAS
    cublasHandle_t cublas;
    cuda_check(cublasCreate(&cublas));
    cuda_check(cublasSetStream(cublas, stream));
    product<__nv_bfloat16>(cublas, stream, "bf16_TFLOP_s", CUDA_R_16BF);
    product<float>(cublas, stream, "fp32_TFLOP_s", CUDA_R_32F);
    cuda_check(cublasDestroy(cublas));
#endif
    cuda_check(cudaStreamDestroy(stream));
    return 0;
}
