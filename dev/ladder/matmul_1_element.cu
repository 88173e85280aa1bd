// Matrix product, rung 1: a thread for each element of y = x w^T + b, plain.h's linear_forward() with its two outer
// loops dealt out to threads.
//
// What is counted: two loads for each multiply-add. The lanes of a warp have 2 rows of x and 16 outputs, whose w[o][c]
// lie in 16 rows, so a load of w touches 16 sectors of 32 bytes for 4 bytes in each. Every row of x is loaded again for
// each output, every row of w for each row of x: over 200 times the least.
// What limits it: the loads. Caches keep most of them from memory, but for each multiply-add of a warp the L1 cache has
// to look 18 sectors up.
//   matmul_1_element [R [C [OC]]]
#include "ladder/ladder.cuh"

static __global__ void linear_kernel(float *y, const float *x, const float *w, const float *b, int C, int OC) {
    const int o = (int)(blockIdx.x * 16 + threadIdx.x), r = (int)(blockIdx.y * 16 + threadIdx.y);
    float sum = b[o];
    for (int c = 0; c < C; c++) sum += x[r * C + c] * w[o * C + c];
    y[r * OC + o] = sum;
}

static void run(float *y, const float *x, const float *w, const float *b, int R, int C, int OC, cudaStream_t stream) {
    linear_kernel<<<dim3(OC / 16, R / 16), dim3(16, 16), 0, stream>>>(y, x, w, b, C, OC);
    LAUNCHED(linear_kernel);
}

int main(int argc, char **argv) { return ladder_linear<float>(argc, argv, run); }
