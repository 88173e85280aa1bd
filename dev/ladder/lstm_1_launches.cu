// LSTM step, rung 1: a launch for each time step. A block owns 8 units in the 8 windows. Its 256 threads are 4 for each
// of these 64 cells, and share k:
//
//     z[gate] = what the input says + sum over k of w_hh[gate][unit][k] * h_(t-1)[window][k]
//     part 0:  k = 0..7, 32..39, ...    part 1:  k = 8..15, ...    part 2, 3
//
// The parts of the sums meet in shared memory, and the thread of part 0 does the rest of the cell. The next step needs
// h of all units, so all blocks must be done before it begins: here by the end of the launch.
//
// What is counted: T launches. In each, all weights are loaded anew, 2 MB for 512 units, for 8 products with each. They
// come from the L2 cache, but the sectors over the least grow with T.
// What limits it: launches. The 8.4 million multiply-adds of a step keep a GPU busy for some hundred clocks; to ask for
// a launch takes the host thousands. And no launch begins before the one before it has ended.
//   lstm_1_launches [T [H]]
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;
constexpr int UNITS = 8, CELLS = UNITS * WINDOWS, PARTS = 4;
struct __align__(16) Eight { // of k
    bf16 at[8];
};

static __device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

static __global__ void __launch_bounds__(CELLS *PARTS) step_kernel(Recurrence a, int H, int t) {
    __shared__ float parts[PARTS][4][CELLS];
    const int cell = (int)threadIdx.x % CELLS, part = (int)threadIdx.x / CELLS;
    const int u = (int)blockIdx.x * UNITS + cell / WINDOWS, b = cell % WINDOWS, r = t * WINDOWS + b;
    float z[4] = {0, 0, 0, 0};
    for (int k = 8 * part; k < H && t > 0; k += 8 * PARTS) {
        const Eight h = *(const Eight *)&a.h[(r - WINDOWS) * H + k];
        for (int gate = 0; gate < 4; gate++) {
            const Eight w = *(const Eight *)&a.w_hh[(gate * H + u) * H + k];
            for (int i = 0; i < 8; i++) z[gate] += __bfloat162float(w.at[i]) * __bfloat162float(h.at[i]);
        }
    }
    for (int gate = 0; gate < 4; gate++) parts[part][gate][cell] = z[gate];
    __syncthreads();
    if (part > 0) return;
    for (int gate = 0; gate < 4; gate++) {
        z[gate] = a.table[a.token[r] * 4 * H + gate * H + u];
        for (int p = 0; p < PARTS; p++) z[gate] += parts[p][gate][cell];
    }
    const float i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanhf(z[2]), o = sigmoid(z[3]);
    const float c = (t > 0 ? f * a.c[(r - WINDOWS) * H + u] : 0) + i * g;
    *(float4 *)&a.gates[(r * H + u) * 4] = make_float4(i, f, g, o);
    a.c[r * H + u] = c;
    a.h[r * H + u] = __float2bfloat16(o * tanhf(c));
}

static void run(Recurrence a, int T, int H, cudaStream_t stream) {
    for (int t = 0; t < T; t++) {
        step_kernel<<<H / UNITS, CELLS * PARTS, 0, stream>>>(a, H, t);
        LAUNCHED(step_kernel);
    }
}

int main(int argc, char **argv) { return ladder_recurrence(argc, argv, run); }
