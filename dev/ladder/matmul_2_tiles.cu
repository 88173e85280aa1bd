// Matrix product, rung 2: tiles in shared memory. A block makes 32 x 32 elements of y. It walks along c in steps of 32;
// in each it copies a tile of x and a tile of w, and every thread multiplies from there.
//
//         c -->                         c -->
//       +--+--+--+--+                 +--+--+--+--+
//     r |  |XX|  |  | 32 rows of x    |  |WW|  |  | 32 rows of w      sum (r, o) += row r of XX times row o of WW
//       +--+--+--+--+               o +--+--+--+--+
//
// What is counted: a number that was loaded once is used 32 times, so the sectors loaded fall far. The 32 lanes of a
// load read 32 numbers side by side: 4 whole sectors. A row of a tile has 33 floats. With 32 the lanes, which read 32
// rows at the same column, would all want the same bank, one after the other; set ROW to 32 to see it counted.
// What limits it: still two loads for each multiply-add, now of shared memory. It makes one wavefront a clock, where
// the multiply-adds of two to four warps would fit (sm_80 has 64 a clock, sm_90 128). And everybody waits twice a step:
// for the copies, and for the last reader.
//   matmul_2_tiles [R [C [OC]]]
#include "ladder/ladder.cuh"

constexpr int TILE = 32, ROW = TILE + 1;

static __global__ void __launch_bounds__(TILE *TILE)
    linear_kernel(float *y, const float *x, const float *w, const float *b, int C, int OC) {
    __shared__ float x_tile[TILE][ROW];
    __shared__ float w_tile[TILE][ROW];
    const int i = (int)threadIdx.y, j = (int)threadIdx.x; // the thread's row and column in the block's tile
    const int r0 = (int)blockIdx.y * TILE, o0 = (int)blockIdx.x * TILE;
    float sum = b[o0 + j];
    for (int c0 = 0; c0 < C; c0 += TILE) {
        x_tile[i][j] = x[(r0 + i) * C + c0 + j];
        w_tile[i][j] = w[(o0 + i) * C + c0 + j];
        __syncthreads(); // the tiles are there
        for (int c = 0; c < TILE; c++) sum += x_tile[i][c] * w_tile[j][c];
        __syncthreads(); // nobody reads them any more
    }
    y[(r0 + i) * OC + o0 + j] = sum;
}

static void run(float *y, const float *x, const float *w, const float *b, int R, int C, int OC, cudaStream_t stream) {
    linear_kernel<<<dim3(OC / TILE, R / TILE), dim3(TILE, TILE), 0, stream>>>(y, x, w, b, C, OC);
    LAUNCHED(linear_kernel);
}

int main(int argc, char **argv) { return ladder_linear<float>(argc, argv, run); }
