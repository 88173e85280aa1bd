// Matrix product, rung 5: tensor cores. x and w are bf16, sums stay float. A block of 4 warps makes 64 x 64 elements,
// a warp 32 x 32 of them, as 2 x 4 pieces of 16 x 8. One instruction, mma.sync, adds 16 x 16 of x times 16 x 8 of w to
// a piece: 2048 multiply-adds by one warp. Which lane holds which element is drawn in cuda/tensor_core.cuh; ldmatrix
// brings them from shared memory in that order, four matrices of 8 x 8 at once.
//
// What is counted: products of tensor cores, and with them fewer wavefronts of shared memory: for 16 of c a warp reads
// 4 ldmatrix, 16 wavefronts, for 8 products. Numbers have half the bytes, so half the sectors are loaded. A step has 32
// of c, a row of a tile 40, 5 times 16 bytes as before.
// What limits it: the ends of the work. A lane holds pairs of adjacent outputs, 4 bytes, so a store of a warp fills
// only 16 bytes of each sector: the sectors stored are twice the fewest. With two buffers copies are one step ahead,
// and a step is short now, shorter than memory takes. And where there are many rows, larger tiles would load less.
//   matmul_5_tensor_cores [R [C [OC]]]
#include "cuda/tensor_core.cuh"
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;
constexpr int TILE = 64, STEP = 32, ROW = STEP + 8;

static __global__ void __launch_bounds__(128)
    linear_kernel(bf16 *y, const bf16 *x, const bf16 *w, const float *b, int C, int OC) {
    __shared__ __align__(16) bf16 x_tiles[2][TILE][ROW];
    __shared__ __align__(16) bf16 w_tiles[2][TILE][ROW];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int r0 = (int)blockIdx.y * TILE, o0 = (int)blockIdx.x * TILE;
    const int m0 = warp / 2 * 32, n0 = warp % 2 * 32; // the warp's rows and columns in the block's tile
    float sums[2][4][4] = {};
    auto copy = [&](int step) {
        for (int row = (int)threadIdx.x / 4; row < TILE; row += 32) {
            const int column = (int)threadIdx.x % 4 * 8, c = step * STEP + column;
            cp_async(&x_tiles[step % 2][row][column], &x[(r0 + row) * C + c]);
            cp_async(&w_tiles[step % 2][row][column], &w[(o0 + row) * C + c]);
        }
        cp_async_commit();
    };
    copy(0);
    for (int step = 0; step < C / STEP; step++) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < C / STEP) copy(step + 1);
        const bf16(*x_tile)[ROW] = x_tiles[step % 2], (*w_tile)[ROW] = w_tiles[step % 2];
#pragma unroll
        for (int c = 0; c < STEP; c += 16) {
            uint32_t x_c[2][4], w_c[2][4]; // x_c[m]: 16 x 16 of x; w_c[n]: two times 16 x 8 of w^T
#pragma unroll
            for (int m = 0; m < 2; m++) ldmatrix(x_c[m], &x_tile[m0 + 16 * m + lane % 16][c + lane / 16 * 8]);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                ldmatrix(w_c[n], &w_tile[n0 + 16 * n + lane / 16 * 8 + lane % 8][c + lane / 8 % 2 * 8]);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int n = 0; n < 4; n++) mma_bf16(sums[m][n], x_c[m], w_c[n / 2] + n % 2 * 2);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int o = o0 + n0 + 8 * n + lane % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; half++) { // rows g and g + 8
                const int r = r0 + m0 + 16 * m + 8 * half + lane / 4;
                const float *sum = &sums[m][n][2 * half];
                *(__nv_bfloat162 *)&y[r * OC + o] = __floats2bfloat162_rn(sum[0] + b[o], sum[1] + b[o + 1]);
            }
        }
    }
}

static void run(bf16 *y, const bf16 *x, const bf16 *w, const float *b, int R, int C, int OC, cudaStream_t stream) {
    linear_kernel<<<dim3(OC / TILE, R / TILE), 128, 0, stream>>>(y, x, w, b, C, OC);
    LAUNCHED(linear_kernel);
}

int main(int argc, char **argv) { return ladder_linear<bf16>(argc, argv, run); }
