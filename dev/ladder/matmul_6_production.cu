// Matrix product, rung 6: what train_gpt_music.cu and train_lstm_music.cu call, matmul_forward() of cuda/matmul.cuh.
//
// Its kernel is rung 5 with the ends mended. Lanes swap pairs before they store, so that a warp fills whole sectors.
// Copies run three steps ahead in small tiles, two in large ones, still with one barrier a step. Many rows get tiles of
// 128 x 128, which load half as much. It takes any sizes, rows of any alignment, both precisions, transposed operands,
// and does at its end what would else be a kernel of its own: bias, ReLU, the ReLU's backward, a sum.
//
// What is counted: the sectors stored are the fewest. The few loads more than in rung 5 are the bias, which each lane
// loads by single numbers.
// What limits it: on Hopper, that mma.sync is not all that tensor cores can do there. wgmma, a product by four warps
// that reads shared memory by itself, would be the next rung; cuda/matmul.cuh leaves it out.
//   matmul_6_production [R [C [OC]]]
#include "cuda/matmul.cuh"
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;

static void run(bf16 *y, const bf16 *x, const bf16 *w, const float *b, int R, int C, int OC, cudaStream_t stream) {
    matmul_forward(y, x, w, b, false, R, C, OC, stream);
}

int main(int argc, char **argv) { return ladder_linear<bf16>(argc, argv, run); }
