// The weights and the state of an LSTM's run, see state.h.
#include "tensors.h" // first

#define TESTING
#include "dev/train_lstm_music.c"

#define SPEC                                                                                                           \
    .name = "lstm", .size_flags = lstm_size_flags, .n_sizes = LSTM_SIZES, .check_sizes = lstm_check_sizes,             \
    .layout = lstm_layout, .sizes_of_file = lstm_sizes_of_file
#include "state.h"
