// LSTM step, rung 3: one launch for all steps. The loop over t is in the kernel, and between two steps all blocks wait
// for each other at a barrier of the whole grid, so that h is there. That needs all blocks to run at the same time, or
// those that run would wait for ever for those that cannot start: the launch is cooperative, which CUDA refuses if they
// do not all fit. (On a GPU with fewer multiprocessors several blocks share one.)
//
// What is counted: one launch, and T - 1 barriers of the grid. c stays in a register from step to step and is not
// loaded again. The weights still are, in every step, though they never change: 2 MB for 512 units.
// What limits it: the weights' way from the L2 cache, and the barrier. It takes two journeys to L2, to say "I am here"
// and to hear that all are, in which nothing else happens.
//   lstm_3_cooperative [T [H]]
#include "ladder/ladder.cuh"
#include <cooperative_groups.h>

typedef __nv_bfloat16 bf16;
constexpr int UNITS = 8, CELLS = UNITS * WINDOWS, PARTS = 4;
struct __align__(16) Eight { // of k
    bf16 at[8];
};

static __device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

static __global__ void __launch_bounds__(CELLS *PARTS) steps_kernel(Recurrence a, int T, int H) {
    __shared__ float parts[PARTS][4][CELLS];
    const int cell = (int)threadIdx.x % CELLS, part = (int)threadIdx.x / CELLS;
    const int u = (int)blockIdx.x * UNITS + cell / WINDOWS, b = cell % WINDOWS;
    float c = 0;
    for (int t = 0; t < T; t++) {
        const int r = t * WINDOWS + b;
        if (t > 0) cooperative_groups::this_grid().sync(); // h of the step before is there
        float z[4] = {0, 0, 0, 0};
        for (int k = 8 * part; k < H && t > 0; k += 8 * PARTS) {
            const Eight h = *(const Eight *)&a.h[(r - WINDOWS) * H + k];
            for (int gate = 0; gate < 4; gate++) {
                const Eight w = *(const Eight *)&a.w_hh[(gate * H + u) * H + k];
                for (int i = 0; i < 8; i++) z[gate] += __bfloat162float(w.at[i]) * __bfloat162float(h.at[i]);
            }
        }
        for (int gate = 0; gate < 4; gate++) parts[part][gate][cell] = z[gate];
        __syncthreads(); // the next step's stores come after the barrier of the grid
        if (part > 0) continue;
        for (int gate = 0; gate < 4; gate++) {
            z[gate] = a.table[a.token[r] * 4 * H + gate * H + u];
            for (int p = 0; p < PARTS; p++) z[gate] += parts[p][gate][cell];
        }
        const float i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanhf(z[2]), o = sigmoid(z[3]);
        c = f * c + i * g;
        *(float4 *)&a.gates[(r * H + u) * 4] = make_float4(i, f, g, o);
        a.c[r * H + u] = c;
        a.h[r * H + u] = __float2bfloat16(o * tanhf(c));
    }
}

static void run(Recurrence a, int T, int H, cudaStream_t stream) {
    void *arguments[] = {&a, &T, &H};
    cudaLaunchCooperativeKernel(steps_kernel, H / UNITS, CELLS * PARTS, arguments, 0, stream);
    LAUNCHED(steps_kernel);
}

int main(int argc, char **argv) { return ladder_recurrence(argc, argv, run); }
