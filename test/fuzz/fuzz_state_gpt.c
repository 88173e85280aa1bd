// The weights and the state of a Transformer's run, see state.h.
#include "tensors.h" // first

#define TESTING
#include "dev/train_gpt_music.c"

#define SPEC GPT_MODEL_SPEC, .layout = gpt_layout
#include "state.h"
