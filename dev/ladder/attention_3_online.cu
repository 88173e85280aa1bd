// Relative attention, rung 3: one pass, with a softmax that runs along (Milakov and Gimelshein, Online normalizer
// calculation for softmax, 2018; Dao et al., FlashAttention, 2022). A tile's weights are made before the largest score
// of the row is known, relative to the largest so far, `top`. When a later tile has a larger one, everything summed up
// so far shrinks by the same factor:
//
//     new_top = max(top, the tile's largest)      shrink = exp(top - new_top)
//     sum = sum * shrink + sum over the tile of exp(score - new_top)
//     out = out * shrink + sum over the tile of exp(score - new_top) * v
//
// What is counted: scores are stored and not read back. A key and its value come together, so there are half as many
// barriers. A warp has two queries throughout: it makes their weights, keeps them in its own part of shared memory, and
// sums its own values, without waiting for other warps.
// What limits it: multiply-adds of single numbers out of shared memory, three wavefronts for each of a score, two for
// each of a sum. A tensor core does 2048 of either in one instruction, out of registers.
//   attention_3_online [T [HEADS]]
#include "ladder/ladder.cuh"

constexpr int QUERIES = 16, KEYS = 32, ROW = HS + 1;

static __device__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
    return x;
}

static __global__ void __launch_bounds__(256) attention_kernel(Heads<float, float> a, int T, int C) {
    __shared__ float q[QUERIES][ROW];
    __shared__ float k[KEYS][ROW];
    __shared__ float v[KEYS][ROW];
    __shared__ float rel[QUERIES + KEYS][ROW];
    __shared__ float weight[QUERIES][KEYS + 1];
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, h = (int)blockIdx.y;
    const int t0 = (int)blockIdx.x * QUERIES, end = t0 + QUERIES;
    const int own = 2 * warp + lane / HS, c = lane % HS; // of the sums: a lane has a channel of one of the two queries
    const float *head = a.qkv + h * HS;
    float *scores = a.scores + ((size_t)h * T + t0) * T;
    const float *below = a.below + ((size_t)h * T + t0) * T;
    float top[2] = {-INFINITY, -INFINITY}, sum = 0, out = 0;
    q[thread / HS][thread % HS] = head[(t0 + thread / HS) * 3 * C + thread % HS];
    for (int j0 = 0; j0 < end; j0 += KEYS) {
        __syncthreads();
        for (int i = thread; i < KEYS * HS; i += 256) {
            const float *from = head + (j0 + i / HS) * 3 * C + i % HS;
            k[i / HS][i % HS] = from[C];
            v[i / HS][i % HS] = from[2 * C];
        }
        for (int i = thread; i < (QUERIES + KEYS) * HS; i += 256) {
            const int distance = min(max(t0 - j0 - (KEYS - 1) + i / HS, 0), DISTANCES - 1);
            rel[i / HS][i % HS] = a.rel[(DISTANCES - 1 - distance) * HS + i % HS];
        }
        __syncthreads();
        float shrink[2];
        for (int n = 0; n < 2; n++) {
            const int i = 2 * warp + n, j = j0 + lane;
            float score = 0;
            for (int d = 0; d < HS; d++) score += q[i][d] * (k[lane][d] + rel[KEYS - 1 + i - lane][d]);
            score = j > t0 + i ? -INFINITY : score * 0.25f + below[i * T + j];
            if (j <= t0 + i) scores[i * T + j] = score;
            const float new_top = fmaxf(top[n], warp_max(score));
            shrink[n] = expf(top[n] - new_top); // the first time exp(-infinity), 0
            top[n] = new_top;
            weight[i][lane] = expf(score - new_top);
        }
        __syncwarp();
        sum *= shrink[lane / HS];
        out *= shrink[lane / HS];
        for (int j = 0; j < KEYS; j++) {
            sum += weight[own][j];
            out += weight[own][j] * v[j][c];
        }
        __syncwarp();
    }
    a.out[(t0 + own) * C + h * HS + c] = out / sum;
}

static void run(Heads<float, float> a, int T, int NH, cudaStream_t stream) {
    attention_kernel<<<dim3(T / QUERIES, NH), 256, 0, stream>>>(a, T, NH * HS);
    LAUNCHED(attention_kernel);
}

int main(int argc, char **argv) { return ladder_attention<float, float>(argc, argv, square_place, square_room, run); }
