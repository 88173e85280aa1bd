// LayerNorm with residual and dropout, rung 4: what train_gpt_music.cu runs, residual_dropout_layernorm_forward() and
// residual_dropout_layernorm_backward(). LayerNorm is the end of the matrix product that makes its branch, and in the
// backward of the product that makes dy. A block owns 16 whole rows of the product; the sums go from its registers to
// shared memory, and there a warp has a row after the other, as in rungs 2 and 3.
//
//     rungs 1 to 3    product --> branch in memory --> LayerNorm --> y        rung 4    product, LayerNorm --> y
//
// What is counted: the products, which are not in the rungs below, and no load of branch or dy. Nor is there a store of
// them, which in those rungs is the product's. The weights of the two products, 128 KB each, are loaded by every block:
// that is what is loaded over the least, and why many rows get 64 to a block.
// What limits it: those weights, which come from the L2 cache, and with few rows the number of blocks.
//   layernorm_4_production [R]
#define TESTING
#include "train_gpt_music.cu"

#include "ladder/ladder.cuh"

static void run(Norm a, int R, cudaStream_t stream) {
    typedef __nv_bfloat16 bf16;
    constexpr int C = WIDTH, ROWS = 16;
    static float *ones, *zeros, *parts; // what only this rung has, made in the first call
    static uint8_t *kept;
    static DeviceState *state;
    if (!ones) {
        const std::vector<float> one(C, 1);
        DeviceState now = {};
        now.step = STAGE_STEP;
        cuda_check(cudaMalloc(&ones, C * sizeof(float)));
        cuda_check(cudaMalloc(&zeros, C * sizeof(float)));
        cuda_check(cudaMalloc(&parts, layernorm_sums_size(R, C, ROWS) * sizeof(float)));
        cuda_check(cudaMalloc(&kept, (size_t)R * C / 4));
        cuda_check(cudaMalloc(&state, sizeof now));
        cuda_check(cudaMemcpy(ones, one.data(), C * sizeof(float), cudaMemcpyHostToDevice));
        cuda_check(cudaMemset(zeros, 0, C * sizeof(float)));
        cuda_check(cudaMemcpy(state, &now, sizeof now, cudaMemcpyHostToDevice));
    }
    const LayerNorm<bf16> norm = {a.y, a.normalized, a.rstd, kept, a.w, a.b, {a.key, 1u << 31, 2}, ROWS};
    const Residual x = {a.x, ones, zeros, nullptr, nullptr}; // x times 1 plus 0
    residual_dropout_layernorm_forward<bf16>(norm, x, linear_forward<bf16>(a.inp, a.inp_w, R, C, C), zeros, nullptr,
                                             state, WINDOW, stream);
    residual_dropout_layernorm_backward<bf16>(a.dx, true, a.dbranch, parts, norm,
                                              linear_backward<bf16>(a.dout, C, a.dout_w, R, C, C), nullptr, stream);
    SumList sums = {};
    layernorm_sums(&sums, a.dw, a.db, parts, R, C, ROWS);
    sum_parts(&sums, stream);
}

int main(int argc, char **argv) { return ladder_layernorm<true>(argc, argv, run); }
