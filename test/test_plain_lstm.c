// Every gradient of the plain LSTM against differences, with dropout on, in small odd shapes; and Adamax.
#define TESTING
#include "dev/plain/plain_lstm.c"

typedef Lstm Model;
#define MODEL(function) lstm_##function
#include "plain.h"

int main(void) {
    // three layers
    check_plain((Config){.E = 3, .H = 5, .L = 3, .B = 2, .T = 9, .dropout = 0.5, .seed = 6});
    // one layer, one window, no dropout
    check_plain((Config){.E = 2, .H = 7, .L = 1, .B = 1, .T = 23, .dropout = 0, .seed = 2});
    // an embedding wider than the layers
    check_plain((Config){.E = 9, .H = 4, .L = 2, .B = 3, .T = 6, .dropout = 0.25, .seed = 3});
    // a single position
    check_plain((Config){.E = 4, .H = 5, .L = 2, .B = 4, .T = 1, .dropout = 0.5, .seed = 4});
    check_plain_update((Config){.E = 3, .H = 5, .L = 1, .B = 1, .T = 1, .seed = 5});
    return check_report("plain_lstm");
}
