// The weights and the state of a Transformer's run, see state.h.
#include "tensors.h" // first

#define TESTING
#include "dev/train_gpt_music.c"

#define SPEC                                                                                                           \
    .name = "gpt", .size_flags = gpt_size_flags, .n_sizes = GPT_SIZES, .check_sizes = gpt_check_sizes,                 \
    .layout = gpt_layout, .sizes_of_file = gpt_sizes_of_file
#include "state.h"
