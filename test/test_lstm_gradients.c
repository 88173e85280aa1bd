// Every gradient of the LSTM against central differences, in double, with dropout on: small odd shapes, one to three
// layers, batches that are and are no multiple of a tile, widths that are no multiple of a vector. Compiled with
// -DREAL=double by the Makefile.
#define TESTING
#include "dev/train_lstm_music.c"

#include "model.h"

int main(void) {
#ifdef _OPENMP
    omp_set_num_threads(1); // so small that threads would spend their time waiting
#endif
    check_gradients(&lstm_spec, model_config(3, 11, 0.5, 1, "fp32", SIZES(5, 7, 2)));
    check_gradients(&lstm_spec, model_config(1, 37, 0.25, 2, "fp32", SIZES(3, 4, 3)));
    check_gradients(&lstm_spec, model_config(9, 5, 0, 3, "fp32", SIZES(2, 19, 1))); // above a panel, a tile and one row
    check_gradients(&lstm_spec, model_config(8, 1, 0.5, 4, "fp32", SIZES(6, 3, 2))); // a single position
    return check_report("lstm_gradients");
}
