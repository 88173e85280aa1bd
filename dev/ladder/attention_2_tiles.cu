// Relative attention, rung 2: tiles, in one kernel. A block has 16 queries of a head and goes through the keys in tiles
// of 32. A tile of 16 x 32 scores meets 47 distances, from t0 - j0 - 31 to t0 - j0 + 15: these relative vectors are
// staged in shared memory too, by distance, so that score (i, j) of the tile finds its own at row 31 + i - j.
//
//            32 keys -->
//     16     +--------------------+      each warp has 2 of the queries, each lane a key
//     q      | i - j, the distance|
//            +--------------------+
//
// The scores go to memory, as the layer above and the backward need them; softmax and the sum of values read them back
// from there, a tile at a time: first the largest of each row is known, then exp() of all is summed.
//
// What is counted: one launch. A key, a value and a distance are loaded once for 16 queries, so what is loaded falls to
// 4 times the least. No weights are stored. In the loads' place come wavefronts of shared memory: three for each
// multiply-add of a score, two for each of the sum of values.
// What limits it: scores are read back, as much again as is stored; the keys are walked through twice, with two
// barriers a tile each time; and shared memory.
//   attention_2_tiles [T [HEADS]]
#include "ladder/ladder.cuh"

constexpr int QUERIES = 16, KEYS = 32, ROW = HS + 1; // rows of 17 floats: 32 lanes in 32 rows find 32 banks

static __device__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
    return x;
}

static __global__ void __launch_bounds__(256) attention_kernel(Heads<float, float> a, int T, int C) {
    __shared__ float q[QUERIES][ROW];
    __shared__ float k[KEYS][ROW]; // keys, later values
    __shared__ float rel[QUERIES + KEYS][ROW];
    __shared__ float weight[QUERIES][KEYS + 1];
    __shared__ float tops[QUERIES];
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, h = (int)blockIdx.y;
    const int t0 = (int)blockIdx.x * QUERIES, end = t0 + QUERIES;
    const float *head = a.qkv + h * HS;
    float *scores = a.scores + ((size_t)h * T + t0) * T;
    const float *below = a.below + ((size_t)h * T + t0) * T;
    float top[2] = {-INFINITY, -INFINITY};
    q[thread / HS][thread % HS] = head[(t0 + thread / HS) * 3 * C + thread % HS];
    for (int j0 = 0; j0 < end; j0 += KEYS) { // the scores, and the largest of each row
        __syncthreads();
        for (int i = thread; i < KEYS * HS; i += 256) k[i / HS][i % HS] = head[(j0 + i / HS) * 3 * C + C + i % HS];
        for (int i = thread; i < (QUERIES + KEYS) * HS; i += 256) { // row x: distance t0 - j0 - 31 + x
            const int distance = min(max(t0 - j0 - (KEYS - 1) + i / HS, 0), DISTANCES - 1);
            rel[i / HS][i % HS] = a.rel[(DISTANCES - 1 - distance) * HS + i % HS];
        }
        __syncthreads();
        for (int n = 0; n < 2; n++) {
            const int i = 2 * warp + n, j = j0 + lane;
            float sum = 0;
            for (int c = 0; c < HS; c++) sum += q[i][c] * (k[lane][c] + rel[KEYS - 1 + i - lane][c]);
            if (j > t0 + i) continue;
            const float score = sum * 0.25f + below[i * T + j];
            scores[i * T + j] = score;
            top[n] = fmaxf(top[n], score);
        }
    }
    for (int n = 0; n < 2; n++) {
        top[n] = warp_max(top[n]);
        if (lane == 0) tops[2 * warp + n] = top[n];
    }
    const int i = thread / HS, c = thread % HS; // now a thread has a channel of a query
    float sum = 0, out = 0;
    for (int j0 = 0; j0 < end; j0 += KEYS) {
        __syncthreads();
        for (int x = thread; x < KEYS * HS; x += 256) k[x / HS][x % HS] = head[(j0 + x / HS) * 3 * C + 2 * C + x % HS];
        for (int x = thread; x < QUERIES * KEYS; x += 256) {
            const int row = x / KEYS, j = j0 + x % KEYS;
            weight[row][x % KEYS] = j > t0 + row ? 0 : expf(scores[row * T + j] - tops[row]);
        }
        __syncthreads();
        for (int j = 0; j < KEYS; j++) {
            sum += weight[i][j];
            out += weight[i][j] * k[j][c];
        }
    }
    a.out[(t0 + i) * C + h * HS + c] = out / sum;
}

static void run(Heads<float, float> a, int T, int NH, cudaStream_t stream) {
    attention_kernel<<<dim3(T / QUERIES, NH), 256, 0, stream>>>(a, T, NH * HS);
    LAUNCHED(attention_kernel);
}

int main(int argc, char **argv) { return ladder_attention<float, float>(argc, argv, square_place, square_room, run); }
