// LSTM step, rung 4: the recurrence of train_lstm_music.cu, recurrence_forward_fast_kernel().
//
// A block owns the same 8 units, but loads their weights once, into registers, 32 KB a block, and keeps them for all
// steps: 64 blocks hold all 2 MB. The products go to tensor cores, for which 8 windows are just wide enough. There is
// no barrier of the grid either. Before the launch another one (the second that the table counts) fills h with a number
// that cannot occur, and a block that reads it waits until another number stands there: one journey to L2 fewer.
//
// What is counted: the sectors loaded grow with T only by h itself, 8 KB a block and step, and by what is looked at in
// vain, as often as the emulator's order has it. More is stored than in rung 3: h after dropout, and what h was filled
// with, for the backward too. The trainer runs all layers in this launch; here there is one.
// What limits it: the way of h to L2 and back, in every step. Only within a Hopper cluster, a few multiprocessors, is
// there a shorter one.
//   lstm_4_production [T [H]]
#define TESTING
#include "train_lstm_music.cu"

#include "ladder/ladder.cuh"

static void run(Recurrence a, int T, int H, cudaStream_t stream) {
    typedef __nv_bfloat16 bf16;
    static LayerRecurrence<bf16> layer; // with what only this rung has, made in the first call
    static RecurrenceShape shape;
    static DeviceState *state;
    if (!state) {
        float *zeros; // biases, which the table has in it
        cuda_check(cudaMalloc(&zeros, 4 * (size_t)H * sizeof(float)));
        cuda_check(cudaMemset(zeros, 0, 4 * (size_t)H * sizeof(float)));
        shape = recurrence_shape<bf16>(WINDOWS, T, H, 1);
        const size_t n = (size_t)T * WINDOWS * H;
        layer = {nullptr, a.w_hh, zeros, zeros, {{{0, 0}}, 0, 1}, a.gates, a.c, a.h, nullptr, nullptr, nullptr};
        cuda_check(cudaMalloc(&layer.x, n * sizeof(bf16)));
        cuda_check(cudaMalloc(&layer.dgates, 4 * n * sizeof(bf16)));
        cuda_check(cudaMalloc(&state, sizeof *state));
        cuda_check(cudaMemset(state, 0, sizeof *state));
    }
    recurrence_prepare(&layer, shape, stream);
    recurrence_forward(&layer, shape, a.table, a.token, state, stream);
}

int main(int argc, char **argv) { return ladder_recurrence(argc, argv, run); }
