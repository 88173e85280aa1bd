// CUDA on a CPU: runs ordinary .cu source with g++ or clang++, without nvcc and without a GPU. It serves tests, and
// readers who want to go through a kernel step by step in a debugger.
//
// How a block runs. Every CUDA thread is a fiber: a function call with a stack of its own. All fibers of a block share
// one thread of the operating system, so only one of them runs at a time. A fiber runs until it has to wait for others:
// at __syncthreads(), at a warp operation such as __shfl_sync(), at grid.sync(). There it hands the processor to the
// next fiber that is ready. The last fiber to arrive does what all have waited for: it exchanges the values, or opens
// the barrier. A hand-over saves six registers and the stack pointer. Threads that never wait need no hand-over: one
// fiber runs them one after the other.
//
// How a grid runs. Blocks run in parallel on OpenMP's threads. The blocks of a cooperative launch wait for each other,
// so the fibers of all of them live at once, on one thread of the operating system; so do those of a cluster. A loop
// that waits for another thread's store must call __nanosleep(), or no other fiber gets to run.
//
// How streams run. Work is done at once, in the order in which the host asks for it. The nodes of a graph are done one
// after the other as well. CUDA_EMU_ORDER picks one of the orders that the captured streams and events allow. Behind a
// programmatic edge, order rand lets the first block of a kernel begin before the kernel ahead has run. There it comes
// as far as its threads' cudaGridDependencySynchronize().
//
// The parts:
//   cuda2cpp.sed             makes C++ of launches and __shared__ declarations, line for line
//   cuda_emu.h               this file, which takes the place of <cuda_runtime.h> and the like
//   cuda_emu_api.h           the names that a .cu uses, most of them a line each
//   cuda_emu_threads.h       fibers, the scheduler, barriers, shared memory, launches
//   cuda_emu_tensor_core.h   the instructions of cuda/tensor_core.cuh
//   cuda_emu_race.cpp        the race check
//   cuda_emu_count.cpp       counts of what a GPU would do
//   cuda_emu_hooks.h         what these two share
//
// How to build, for x86-64 and 64-bit ARM (not run on the latter yet):
//   { echo '#line 1 "x.cu"'; sed -f dev/emu/cuda2cpp.sed x.cu; } >x.cpp
//   g++ -std=c++20 -O2 -fopenmp -Idev x.cpp                       to run it
//   g++ -std=c++20 -g -Idev x.cpp && gdb a.out                    to step through it, after
//                                                                 break x.cu:37 if threadIdx.x == 5
//   g++ -std=c++20 -g -fsanitize=address,undefined -Idev x.cpp    to find accesses out of bounds, of any memory; there
//                                                                 EMU_ASAN is defined, for gaps that a .cu forbids
//   g++ -std=c++20 -g -fsanitize=thread -Idev -c x.cpp            to find missing barriers, missing events in graphs,
//                                                                 device memory used ahead of that call
//   g++ -std=c++20 -O2 -Idev x.o dev/emu/cuda_emu_race.cpp
//   make build/x_emu_count                                        to count, x.cu lying in the checkout
//
// What every build finds: launches that CUDA refuses, barriers that only some threads reach, deadlocks, shuffles from
// lanes that are absent, copies past an allocation, threads behind a programmatic edge that end without that call. A
// kernel's mistake ends the program with the line of the .cu; a call's mistake is returned as CUDA's error. Memory
// starts as NaN.
// What it cannot tell: speed, registers (a multiprocessor has as many blocks as run whatever they take), the last bits
// of a tensor core's sums, whether a kernel reads the host's memory (here it may), what streams that are not captured
// would do at the same time.
//
// Environment:
//   CUDA_EMU_ORDER=fwd|rev|rand[:SEED]   which thread, warp, block, graph node goes first, if CUDA leaves it open [fwd]
//   CUDA_EMU_COUNTS=FILE                 where a program built to count prints what it has counted [stdout]
//   CUDA_EMU_KERNELS=FILE                the names of the kernels that ran are appended to FILE, one a line
//   CUDA_EMU_MEMORY=MIB                  size of the device's memory [as much as the machine has]
//   CUDA_EMU_CAPABILITY=7.5              compute capability that the device reports [9.0]; 0: there is no device
//   CUDA_EMU_CLUSTERS=1                  it can run clusters, whose kernels are in every emulated program [0]
//   CUDA_EMU_MULTIPROCESSORS=N           how many it has, for cooperative launches [4]
#pragma once
#define CUDA_EMU 1

#include "emu/cuda_emu_api.h"
