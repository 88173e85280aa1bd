// Stages of dev/plain/plain_lstm.c on arrays (stages.h).
#define main plain_lstm_main // which is called by nobody
#include "plain/plain_lstm.c"

#include "ladder/stages.h"
