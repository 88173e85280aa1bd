// Matrix product, rung 4: rung 3, with the copies of the next step under way during the arithmetic of this one.
// cp.async takes 16 bytes from global to shared memory without a register and without waiting. There are two buffers:
//
//     step        0             1             2             3
//     copies      1 -> B        2 -> A        3 -> B        4 -> A
//     arithmetic  from A        from B        from A        from B       (step 0 was copied before the loop)
//
// What is counted: one barrier a step instead of two. Behind it the copies of this step are there, and the other
// buffer, which everybody has read, is free for the next. All other counts stay: the work is the same.
// Why it is faster all the same: the 64 x 64 x 16 multiply-adds of a step take a multiprocessor 512 clocks at 128 a
// clock, and memory takes as long to answer. Now both run at the same time. No count shows that, a GPU's time does.
// What limits it: multiply-adds themselves. Tensor cores make some 15 times as many a clock in bf16.
//   matmul_4_async [R [C [OC]]]
#include "cuda/tensor_core.cuh"
#include "ladder/ladder.cuh"

constexpr int TILE = 64, STEP = 16, ROW = STEP + 4;

static __global__ void __launch_bounds__(256)
    linear_kernel(float *y, const float *x, const float *w, const float *b, int C, int OC) {
    __shared__ __align__(16) float x_tiles[2][TILE][ROW];
    __shared__ __align__(16) float w_tiles[2][TILE][ROW];
    const int j = (int)threadIdx.x % 16, i = (int)threadIdx.x / 16;
    const int r0 = (int)blockIdx.y * TILE, o0 = (int)blockIdx.x * TILE;
    const int row = (int)threadIdx.x / 4, column = (int)threadIdx.x % 4 * 4;
    float sums[4][4];
    for (int n = 0; n < 4; n++) {
        for (int m = 0; m < 4; m++) sums[m][n] = b[o0 + j + 16 * n];
    }
    auto copy = [&](int step) { // begins to
        const int c = step * STEP + column;
        cp_async(&x_tiles[step % 2][row][column], &x[(r0 + row) * C + c]);
        cp_async(&w_tiles[step % 2][row][column], &w[(o0 + row) * C + c]);
        cp_async_commit();
    };
    copy(0);
    for (int step = 0; step < C / STEP; step++) {
        cp_async_wait<0>(); // this thread's copies have come
        __syncthreads();    // all threads' have, and nobody reads the other buffer any more
        if (step + 1 < C / STEP) copy(step + 1);
        const float(*x_tile)[ROW] = x_tiles[step % 2], (*w_tile)[ROW] = w_tiles[step % 2];
        for (int c = 0; c < STEP; c += 4) {
            float4 x_c[4], w_c[4];
#pragma unroll
            for (int m = 0; m < 4; m++) x_c[m] = *(const float4 *)&x_tile[i + 16 * m][c];
#pragma unroll
            for (int n = 0; n < 4; n++) w_c[n] = *(const float4 *)&w_tile[j + 16 * n][c];
#pragma unroll
            for (int m = 0; m < 4; m++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    sums[m][n] += x_c[m].x * w_c[n].x;
                    sums[m][n] += x_c[m].y * w_c[n].y;
                    sums[m][n] += x_c[m].z * w_c[n].z;
                    sums[m][n] += x_c[m].w * w_c[n].w;
                }
            }
        }
    }
    for (int m = 0; m < 4; m++) {
        for (int n = 0; n < 4; n++) y[(r0 + i + 16 * m) * OC + o0 + j + 16 * n] = sums[m][n];
    }
}

static void run(float *y, const float *x, const float *w, const float *b, int R, int C, int OC, cudaStream_t stream) {
    linear_kernel<<<dim3(OC / TILE, R / TILE), 256, 0, stream>>>(y, x, w, b, C, OC);
    LAUNCHED(linear_kernel);
}

int main(int argc, char **argv) { return ladder_linear<float>(argc, argv, run); }
