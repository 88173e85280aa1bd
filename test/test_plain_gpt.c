// Every gradient of the plain Transformer against differences, with dropout on, in small odd shapes; and Adamax.
#define TESTING
#include "dev/plain/plain_gpt.c"

typedef Gpt Model;
#define MODEL(function) gpt_##function
#include "plain.h"

int main(void) {
    // three layers, more positions than relative distances, head size 3
    check_plain((Config){.L = 3, .C = 6, .NH = 2, .F = 5, .D = 4, .B = 2, .T = 9, .dropout = 0.5, .seed = 1});
    // one wide head, more distances than positions, no dropout
    check_plain((Config){.L = 1, .C = 7, .NH = 1, .F = 9, .D = 12, .B = 3, .T = 5, .dropout = 0, .seed = 2});
    // heads of one number, one distance
    check_plain((Config){.L = 2, .C = 5, .NH = 5, .F = 3, .D = 1, .B = 1, .T = 11, .dropout = 0.25, .seed = 3});
    // a single position
    check_plain((Config){.L = 2, .C = 8, .NH = 2, .F = 7, .D = 3, .B = 3, .T = 1, .dropout = 0.5, .seed = 4});
    check_plain_update((Config){.L = 1, .C = 6, .NH = 2, .F = 5, .D = 4, .B = 1, .T = 1, .seed = 5});
    return check_report("plain_gpt");
}
