// Relative attention, rung 1: a thread for each score, with scores and weights in memory. Three kernels, the three
// passes of plain_gpt.c's attention_forward(), each over all heads and positions:
//
//     scores (h, t, j)    a thread each     q_t . (k_j + rel[t - j]) / 4 + below     --> scores in memory
//     softmax (h, t)      a thread each     exp(score - top) / sum                   --> weights in memory
//     out (h, t, c)       a thread each     sum over j of weight * v_j[c]
//
// What is counted: 48 loads for the 16 multiply-adds of a score. A warp's lanes have 32 keys j, whose k_j lie 3 C
// numbers apart, so a load of them touches 32 sectors. Then T x T weights of each head are stored, although the scores
// already are. Softmax reads the scores three times, with its lanes in 32 different rows; so each of its loads and
// stores touches 32 sectors, too.
// What limits it: those sectors, over 150 times the least; and with longer windows the memory for the weights.
//   attention_1_scores [T [HEADS]]
#include "ladder/ladder.cuh"

static float *weights; // [NH,T,T]

static __global__ void scores_kernel(Heads<float, float> a, int T, int C) {
    const int j = (int)(blockIdx.x * 32 + threadIdx.x), t = (int)(blockIdx.y * 8 + threadIdx.y), h = (int)blockIdx.z;
    if (j > t) return;
    const float *q = a.qkv + t * 3 * C + h * HS, *k = a.qkv + j * 3 * C + C + h * HS;
    const float *rel = a.rel + max(DISTANCES - 1 - (t - j), 0) * HS;
    const size_t at = ((size_t)h * T + t) * T + j;
    float sum = 0;
    for (int c = 0; c < HS; c++) sum += q[c] * (k[c] + rel[c]);
    a.scores[at] = sum * 0.25f + a.below[at];
}

static __global__ void softmax_kernel(Heads<float, float> a, float *weights, int T) {
    const int t = (int)(blockIdx.x * 32 + threadIdx.x), h = (int)blockIdx.y;
    const size_t row = ((size_t)h * T + t) * T;
    float top = -INFINITY, sum = 0;
    for (int j = 0; j <= t; j++) top = fmaxf(top, a.scores[row + j]);
    for (int j = 0; j <= t; j++) sum += expf(a.scores[row + j] - top);
    for (int j = 0; j <= t; j++) weights[row + j] = expf(a.scores[row + j] - top) / sum;
}

static __global__ void out_kernel(Heads<float, float> a, const float *weights, int T, int C) {
    const int c = (int)threadIdx.x, t = (int)(blockIdx.x * 16 + threadIdx.y), h = (int)blockIdx.y;
    float sum = 0;
    for (int j = 0; j <= t; j++) {
        sum += weights[((size_t)h * T + t) * T + j] * a.qkv[j * 3 * C + 2 * C + h * HS + c];
    }
    a.out[t * C + h * HS + c] = sum;
}

static void run(Heads<float, float> a, int T, int NH, cudaStream_t stream) {
    const int C = NH * HS;
    if (!weights) cuda_check(cudaMalloc(&weights, square_room(T, NH) * sizeof *weights));
    scores_kernel<<<dim3(T / 32, T / 8, NH), dim3(32, 8), 0, stream>>>(a, T, C);
    LAUNCHED(scores_kernel);
    softmax_kernel<<<dim3(T / 32, NH), 32, 0, stream>>>(a, weights, T);
    LAUNCHED(softmax_kernel);
    out_kernel<<<dim3(T / 16, NH), dim3(HS, 16), 0, stream>>>(a, weights, T, C);
    LAUNCHED(out_kernel);
}

int main(int argc, char **argv) { return ladder_attention<float, float>(argc, argv, square_place, square_room, run); }
