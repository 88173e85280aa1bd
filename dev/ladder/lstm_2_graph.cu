// LSTM step, rung 2: the launches of rung 1 as one CUDA graph. The kernel is the same. The host asks for all steps
// once, while the stream is captured: then nothing runs, but the driver learns what depends on what. From then on one
// call launches them all.
//
//     capture       step 0 -> step 1 -> ... -> step T-1      once
//     launch        one call of the host                     each time
//
// What is counted: one launch by the host instead of T; the path through the graph has T nodes. All else stays.
// What limits it: a node still begins only when the last block of the one before has ended, and its own blocks have to
// be started. Each still loads all weights: nothing survives a kernel but what is in memory. Both trainers launch a
// training step so, as one graph.
//   lstm_2_graph [T [H]]
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
    static cudaGraphExec_t steps; // of the first call's arguments
    if (!steps) {
        cudaGraph_t graph;
        cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (int t = 0; t < T; t++) {
            step_kernel<<<H / UNITS, CELLS * PARTS, 0, stream>>>(a, H, t);
            LAUNCHED(step_kernel);
        }
        cuda_check(cudaStreamEndCapture(stream, &graph));
        cuda_check(cudaGraphInstantiate(&steps, graph));
        cuda_check(cudaGraphDestroy(graph));
    }
    cuda_check(cudaGraphLaunch(steps, stream));
}

int main(int argc, char **argv) { return ladder_recurrence(argc, argv, run); }
