// The weights and the state of an LSTM's run, see state.h.
#include "tensors.h" // first

#define TESTING
#include "dev/train_lstm_music.c"

#define SPEC LSTM_MODEL_SPEC, .layout = lstm_layout
#include "state.h"
