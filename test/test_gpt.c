// The Transformer's size, its updates and its learning (model.h). Its activations and gradients are for test_plain.sh.
#define TESTING
#include "dev/train_gpt_music.c"

#include "model.h"

int main(void) {
    ParamLayout layout = {0};
    const int paper[] = {8, 256, 16, 512, 240};
    gpt_layout(paper, &layout);
    CHECK(layout.count == 4326041, "%lld parameters instead of 4,326,041", (long long)layout.count);
    layout_free(&layout);
    ModelConfig config = model_config(8, 256, 0.5, 1, "fp32", SIZES(8, 256, 16, 512, 240));
    CHECK(fabs(gpt_step_flops(&config) / 1e9 - 61.7) < 0.05, "%.2f GFLOP a step", gpt_step_flops(&config) / 1e9);
    check_adamax(&gpt_spec, model_config(3, 35, 0.3, 3, "fp32", SIZES(3, 15, 5, 11, 4)));
    const char *precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        check_learning(&gpt_spec, model_config(4, 40, 0.1, 5, precisions[i], SIZES(2, 32, 4, 48, 16)), 160, 3e-3,
                       "layers.0.ln2.bias", "act.layers.1");
    }
    return check_report("gpt");
}
