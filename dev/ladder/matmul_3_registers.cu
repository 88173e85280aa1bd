// Matrix product, rung 3: a thread makes 4 x 4 elements, and keeps what it has read in registers. A block of 256
// threads makes 64 x 64. For 4 of c a thread reads 4 rows of x and 4 rows of w, 16 bytes of each, and has 64
// multiply-adds of them:
//
//                     w: rows j, j+16, j+32, j+48
//      x: rows i         sum  sum  sum  sum
//              i+16      sum  sum  sum  sum         thread (i, j) of 16 x 16
//              i+32      sum  sum  sum  sum
//              i+48      sum  sum  sum  sum
//
// What is counted: the wavefronts of shared memory for each multiply-add are a quarter of those of rung 2, as a number
// in a register serves four. The tiles are twice as large, so the sectors loaded fall to a half. A row of a tile has 20
// floats, 5 times 16 bytes: as 5 is odd, 8 lanes that read 8 rows find 8 different groups of banks. (The copies, which
// store two rows of 4 pieces at once, do not: the few wavefronts beyond the least are theirs.)
// What limits it: time that no count shows. A block copies, waits for memory, multiplies, waits, copies again; while
// it waits it multiplies nothing. And each number passes through a register on its way to shared memory.
//   matmul_3_registers [R [C [OC]]]
#include "ladder/ladder.cuh"

constexpr int TILE = 64, STEP = 16, ROW = STEP + 4; // rows of a tile, columns of a step, floats from row to row

static __global__ void __launch_bounds__(256)
    linear_kernel(float *y, const float *x, const float *w, const float *b, int C, int OC) {
    __shared__ __align__(16) float x_tile[TILE][ROW];
    __shared__ __align__(16) float w_tile[TILE][ROW];
    const int j = (int)threadIdx.x % 16, i = (int)threadIdx.x / 16;
    const int r0 = (int)blockIdx.y * TILE, o0 = (int)blockIdx.x * TILE;
    const int row = (int)threadIdx.x / 4, column = (int)threadIdx.x % 4 * 4; // what the thread copies of both tiles
    float sums[4][4];
    for (int n = 0; n < 4; n++) {
        for (int m = 0; m < 4; m++) sums[m][n] = b[o0 + j + 16 * n];
    }
    for (int c0 = 0; c0 < C; c0 += STEP) {
        *(float4 *)&x_tile[row][column] = *(const float4 *)&x[(r0 + row) * C + c0 + column];
        *(float4 *)&w_tile[row][column] = *(const float4 *)&w[(o0 + row) * C + c0 + column];
        __syncthreads();
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
        __syncthreads();
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
