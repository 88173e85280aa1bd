// Programmatic dependent launch, from compute capability 9.0 and CUDA 12.3 on: a kernel of a graph begins before the
// one that it depends on has ended, so that the time a launch takes passes while the other still computes.
//
// Along an ordinary edge of a graph nothing of the second kernel begins until the first has ended and its results are
// in memory. Along a programmatic edge its blocks are launched as soon as every block of the first has called
// cudaTriggerProgrammaticLaunchCompletion() and there is room. They wait in cudaGridDependencySynchronize() until the
// first has ended. Without that trigger the launch would begin when the last block of the first has exited, and hide
// only the end of that kernel. CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization", its
// part about graphs; PTX ISA, griddepcontrol.
//
// The rules:
//   Every kernel in such a graph begins with await_previous_kernel(), also one that needs nothing of the kernel before.
//     It begins when that one has come past its own wait, so only these two overlap, and when it ends all before it
//     have ended. Blocks that wait take registers and shared memory, but only after all of the first have theirs.
//   Cooperative kernels have ordinary edges on both sides: their blocks wait for each other.
//   A kernel that depends on several others has ordinary edges too: CUDA's documents do not say what a wait means
//   there.
//   __ldg() must not read what the kernel just before has written: the compiler may move such a load ahead of the wait.
// The emulator and its race check watch over the first rule (emu/cuda_emu.h).
//
// Without it, for comparison: NVCC_APPEND_FLAGS=-DOVERLAP_KERNELS=0 make -B DEVICE=cuda train_gpt_music
#ifndef OVERLAP_CUH
#define OVERLAP_CUH

#include "cuda/check.cuh"

#ifndef OVERLAP_KERNELS
#define OVERLAP_KERNELS (CUDART_VERSION >= 12030)
#endif

// The first statement of a kernel: waits until the kernel before it has ended, and lets the next one begin to wait.
__device__ inline void await_previous_kernel() {
#if OVERLAP_KERNELS && (defined(CUDA_EMU) || __CUDA_ARCH__ >= 900)
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

#if !OVERLAP_KERNELS
#define overlap_kernels(...) 0
#else
#if CUDART_VERSION < 13000 // the names of the forms that know kinds of edges
#define cudaGraphGetEdges cudaGraphGetEdges_v2
#define cudaGraphRemoveDependencies cudaGraphRemoveDependencies_v2
#define cudaGraphAddDependencies cudaGraphAddDependencies_v2
#endif

static inline bool can_overlap(cudaGraphNode_t node) { // a kernel that is not cooperative
    cudaGraphNodeType type;
    cudaLaunchAttributeValue value;
    cuda_check(cudaGraphNodeGetType(node, &type));
    if (type != cudaGraphNodeTypeKernel) return false;
    cuda_check(cudaGraphKernelNodeGetAttribute(node, cudaLaunchAttributeCooperative, &value));
    return !value.cooperative;
}

// Makes the edges of a captured graph programmatic where the rules allow it, and returns how many. `kernel` is any of
// the program's kernels: where they were compiled for an older GPU, none of them waits, and the edges stay as they are.
template <typename Kernel>
static inline int overlap_kernels(cudaGraph_t graph, Kernel *kernel) {
    int driver = 0, overlapping = 0;
    size_t n = 0;
    cudaFuncAttributes about;
    cuda_check(cudaDriverGetVersion(&driver));
    cuda_check(cudaFuncGetAttributes(&about, kernel));
    if (driver < 12030 || about.ptxVersion < 90) return 0;
    cuda_check(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &n));
    cudaGraphNode_t *from = (cudaGraphNode_t *)malloc(2 * n * sizeof *from + 1), *to = from + n;
    if (!from) cuda_check(cudaErrorMemoryAllocation);
    cuda_check(cudaGraphGetEdges(graph, from, to, nullptr, &n));
    for (size_t i = 0; i < n; i++) {
        int edges = 0; // that lead to this kernel
        for (size_t j = 0; j < n; j++) edges += to[j] == to[i];
        if (edges > 1 || !can_overlap(from[i]) || !can_overlap(to[i])) continue;
        const cudaGraphEdgeData programmatic = {
            cudaGraphKernelNodePortProgrammatic, 0, cudaGraphDependencyTypeProgrammatic, {}};
        cuda_check(cudaGraphRemoveDependencies(graph, &from[i], &to[i], nullptr, 1));
        cuda_check(cudaGraphAddDependencies(graph, &from[i], &to[i], &programmatic, 1));
        overlapping++;
    }
    free(from);
    return overlapping;
}
#endif

#endif
