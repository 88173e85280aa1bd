// Clusters, from compute capability 9.0 on: blocks that follow each other along blockIdx.x, run at the same time on
// neighbouring multiprocessors, wait for each other, and reach each other's shared memory. CUDA C++ Programming Guide,
// "Thread Block Clusters" and "Distributed Shared Memory"; PTX ISA, barrier.cluster and mapa.
//
// The kernels that use them are compiled with `make CLUSTERS=1` only. They agree with the others through the emulator,
// but have not been run on a GPU.
#ifndef CLUSTER_CUH
#define CLUSTER_CUH

#include "cuda/check.cuh"
#include <stdint.h>

#ifndef CLUSTERS
#define CLUSTERS 0
#endif

#if CLUSTERS && !defined(CUDA_EMU)

// The block's number in its cluster.
__device__ inline int cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return (int)rank;
}

// The barrier of all threads of the cluster. What they wrote before it, all of them see after it.
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Where block `rank` of the cluster has what `own` points to in this block's shared memory. All blocks must have begun:
// a cluster_sync() lies between a kernel's beginning and its first access, and another one between the last access and
// the end of the block that was reached.
template <typename T>
__device__ inline T *cluster_shared(T *own, int rank) {
    uint64_t there = (uint64_t)own;
#if __CUDA_ARCH__ >= 900
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((uint64_t)own), "r"(rank));
#endif
    return (T *)there;
}

#endif

#if CLUSTERS

// A launch in clusters of n blocks, for cudaLaunchKernelEx(). n is at most 8 and divides grid.x. The launch points to
// `attributes`, which must stay.
static inline cudaLaunchConfig_t cluster_config(cudaLaunchAttribute (&attributes)[2], int n, dim3 grid, int threads,
                                                size_t shared, bool cooperative, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {(unsigned)n, 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = cooperative;
    return {grid, dim3((unsigned)threads), shared, stream, attributes, 2};
}

// How many clusters of such a launch the GPU runs at once; 0 where it has none, or the kernel was compiled without.
template <typename Kernel>
static inline int clusters_at_once(Kernel *kernel, const cudaLaunchConfig_t *config) {
    int clusters = 0;
    cudaFuncAttributes about;
    cuda_check(cudaFuncGetAttributes(&about, kernel));
    if (about.ptxVersion >= 90) cuda_check(cudaOccupancyMaxActiveClusters(&clusters, kernel, config));
    return clusters;
}

#endif

#endif
