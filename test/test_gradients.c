// Every gradient of the Transformer against central differences, in double, with dropout on: small odd shapes with
// several layers, more positions than relative distances, sizes that are no multiple of a vector, a tile or each other.
// Compile with -DREAL=double.
#define TESTING
#include "dev/train_gpt_music.c"

#include "model.h"

int main(void) {
#ifdef _OPENMP
    omp_set_num_threads(1); // so small that threads would spend their time waiting
#endif
    // T above the relative distances, one tile of queries; head size 3
    check_gradients(&gpt_spec, model_config(2, 11, 0.5, 5, "fp32", SIZES(3, 12, 4, 10, 5)));
    // several tiles of queries and panels of keys, the last ones partial; head size 5
    check_gradients(&gpt_spec, model_config(1, 37, 0.25, 2, "fp32", SIZES(2, 10, 2, 7, 9)));
    // a head wider than a vector, more distances than positions, one layer, no dropout
    check_gradients(&gpt_spec, model_config(1, 18, 0, 3, "fp32", SIZES(1, 20, 1, 9, 24)));
    // a single position
    check_gradients(&gpt_spec, model_config(3, 1, 0.5, 4, "fp32", SIZES(2, 8, 2, 8, 3)));
    return check_report("gradients");
}
