// The LSTM's size, its updates and its learning (model.h). Its activations and gradients are for test_plain.sh.
#define TESTING
#include "dev/train_lstm_music.c"

#include "model.h"

int main(void) {
    ParamLayout layout = {0};
    const int paper[] = {64, 512, 2};
    lstm_layout(paper, &layout);
    CHECK(layout.count == 4426457, "%lld parameters instead of 4,426,457", (long long)layout.count);
    layout_free(&layout);
    ModelConfig config = model_config(8, 256, 0.5, 1, "fp32", SIZES(64, 512, 2));
    CHECK(fabs(lstm_step_flops(&config) / 1e9 - 54.1) < 0.05, "%.2f GFLOP a step", lstm_step_flops(&config) / 1e9);
    check_adamax(&lstm_spec, model_config(9, 11, 0.3, 3, "fp32", SIZES(7, 33, 3)));
    const char *precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        check_learning(&lstm_spec, model_config(4, 40, 0.1, 5, precisions[i], SIZES(16, 32, 2)), 400, 5e-3,
                       "head.6.weight", "act.head.7");
    }
    return check_report("lstm");
}
