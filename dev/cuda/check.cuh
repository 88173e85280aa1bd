// Checks of CUDA calls and kernel launches, each where it happens. What fails here is the machine or this program, not
// the user: the sentence `FILE:LINE: WHAT: CUDA's reason` goes to stderr and the program ends with status 1. The files
// that training has written stay as they are.
//
// A launch reports at once only what is wrong with the launch itself, such as its sizes or its shared memory. What a
// kernel does wrong while it runs is reported by some later call. A program built with -DLAUNCH_CHECKS waits for each
// kernel right after its launch, and trains without a CUDA graph, so that the sentence names the kernel that failed:
//   NVCC_APPEND_FLAGS=-DLAUNCH_CHECKS make -B DEVICE=cuda train_gpt_music
#ifndef CUDA_CHECK_CUH
#define CUDA_CHECK_CUH

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef LAUNCH_CHECKS
#define LAUNCH_CHECKS 0
#endif

// cuda_check(call): for every call that returns a cudaError_t, cudaFuncSetAttribute() too.
#define cuda_check(call) cuda_check_call(call, #call, __FILE__, __LINE__)

// LAUNCHED(kernel): on the line after kernel<<<...>>>(...) or cudaLaunchCooperativeKernel(kernel, ...). A launch that
// fails leaves its error to cudaGetLastError(), also while a stream is captured.
#define LAUNCHED(...) cuda_check_launch("kernel " #__VA_ARGS__, __FILE__, __LINE__)

static inline void cuda_check_call(cudaError_t status, const char *what, const char *file, int line) {
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, cudaGetErrorString(status));
    exit(1);
}

static inline void cuda_check_launch(const char *what, const char *file, int line) {
    cuda_check_call(cudaGetLastError(), what, file, line);
    if (LAUNCH_CHECKS) cuda_check_call(cudaDeviceSynchronize(), what, file, line);
}

#endif
