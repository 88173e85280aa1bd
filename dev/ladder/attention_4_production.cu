// Relative attention, rung 4: on tensor cores, attention_forward_16_kernel() of train_gpt_music.cu.
//
// A head of 16 channels is one step of a tensor core's product. A warp has 16 queries in registers and goes along the
// keys in patches of 16 x 16, each alone, as in rung 3: products with keys, softmax along the way, products of the
// weights with values, all without leaving the registers. What depends on the distance is a product too, of the queries
// with 16 relative vectors at once; as score (t, j) wants column t - j of it, it goes through shared memory, where each
// row is read with a shift of its own. Keys and values are staged for eight warps by cp.async. Scores are kept in fp16,
// only those on and below the diagonal, in patches, so that a warp stores and loads 256 bytes in a row.
//
// What is counted: products; an eighteenth of the wavefronts, one barrier, a twelfth of the loads, and a quarter of the
// bytes. Relative vectors come as bf16. A little more is stored than the least: patches on the diagonal are whole.
// What limits it: the way of the scores to memory and back, which the model's score residual demands.
//   attention_4_production [T [HEADS]]     T: at most 256
#define TESTING
#include "train_gpt_music.cu"

#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;

static size_t place(int h, int t, int j, int T) {
    const int strips = T / STRIP, I = t / STRIP, J = j / STRIP;
    const size_t patch = (size_t)h * (strips * (strips + 1) / 2) + I * (I + 1) / 2 + J;
    return patch * PATCH + t % 8 * 32 + j % 8 * 4 + t / 8 % 2 * 2 + j / 8 % 2;
}
static size_t room(int T, int NH) {
    return attention_scores_size(1, attention_shape(T, NH * HS, NH, DISTANCES, WHOLE_BYTES));
}

static void run(Heads<bf16, __half> a, int T, int NH, cudaStream_t stream) {
    static float *log_sums; // what only this rung has, made in the first call
    static bf16 *rel;
    if (!log_sums) {
        float exact[DISTANCES * HS];
        bf16 rounded[DISTANCES * HS];
        cuda_check(cudaMemcpy(exact, a.rel, sizeof exact, cudaMemcpyDeviceToHost));
        for (int i = 0; i < DISTANCES * HS; i++) rounded[i] = __float2bfloat16(exact[i]);
        cuda_check(cudaMalloc(&log_sums, (size_t)T * NH * sizeof *log_sums));
        cuda_check(cudaMalloc(&rel, sizeof rounded));
        cuda_check(cudaMemcpy(rel, rounded, sizeof rounded, cudaMemcpyHostToDevice));
    }
    const Attention<bf16> arrays = {(bf16 *)a.qkv, a.scores, log_sums, a.out};
    attention_forward<bf16>(arrays, a.below, rel, 1, attention_shape(T, NH * HS, NH, DISTANCES, WHOLE_BYTES), stream);
}

int main(int argc, char **argv) { return ladder_attention<bf16, __half>(argc, argv, place, room, run); }
