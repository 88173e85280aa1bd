// The functions of vector.h against the C library in double: how far off, in every lane, at the ends and for NaN.
#include <stdlib.h>
#include <string.h>

#include "cpu/vector.h"

#include "check.h"

enum { EXP, SIGMOID, TANH };

static real of(int function, real x, int lane) { // the other lanes hold other numbers
    vector v = zero;
    for (int i = 0; i < LANES; i++) v[i] = (real)-i;
    v[lane] = x;
    v = function == EXP ? exp_vector(v) : function == SIGMOID ? sigmoid_vector(v) : tanh_vector(v);
    return v[lane];
}

static double exactly(int function, double x) {
    return function == EXP ? exp(x) : function == SIGMOID ? 1 / (1 + exp(-x)) : tanh(x);
}

int main(void) {
    const char *names[] = {"exp", "sigmoid", "tanh"};
    const double nan_bits = (double)nanf("5"), epsilon = sizeof(real) == sizeof(double) ? 2e-16 : 1.2e-7;
    for (int function = EXP; function <= TANH; function++) {
        double worst = 0, at = 0;
        for (double x = -86.9; x < (function == EXP ? 0.0001 : 87); x += 0.00137) {
            real argument = (real)(x > -0.001 && x < 0.001 ? x * 1e-3 : x);
            double error = fabs((double)of(function, argument, (int)(x * 1000 + 90000) % LANES) /
                                    exactly(function, (double)argument) -
                                1);
            if (error > worst) worst = error, at = x;
        }
        printf("%-8s within %.2g of the number, worst at %g\n", names[function], worst, at);
        CHECK(worst < 4 * epsilon, "%s is off by %g at %g", names[function], worst, at);
        CHECK(isnan((double)of(function, (real)nan_bits, LANES - 1)), "%s of NaN", names[function]);
        CHECK(isnan((double)of(function, (real)-nan_bits, 0)), "%s of -NaN", names[function]);
        CHECK((double)of(function, -INFINITY, 0) == exactly(function, -INFINITY), "%s of -inf", names[function]);
        CHECK((double)of(function, 0, 0) == exactly(function, 0), "%s of 0", names[function]);
        if (function == EXP) continue;
        CHECK((double)of(function, INFINITY, 0) == 1, "%s of inf", names[function]);
        CHECK((double)of(function, (real)1e30, 0) == 1, "%s of 1e30", names[function]);
        CHECK((double)of(function, (real)-1e30, 0) == exactly(function, -1e30), "%s of -1e30", names[function]);
        CHECK(function != TANH || (double)of(TANH, (real)1e-20, 0) == (double)(real)1e-20, "tanh of 1e-20");
    }
    real memory[3 * LANES];
    for (int i = 0; i < 3 * LANES; i++) memory[i] = (real)i;
    for (int n = -1; n <= LANES + 1; n++) {
        vector v = load_part(memory + 1, n);
        for (int i = 0; i < LANES; i++) CHECK(v[i] == (i < n ? (real)(i + 1) : 0), "load_part of %d", n);
        store_part(memory + LANES, v - 1, n);
        for (int i = 0; i < LANES; i++)
            CHECK(memory[LANES + i] == (real)(i < n ? i : LANES + i), "store_part of %d", n);
        for (int i = 0; i < 3 * LANES; i++) memory[i] = (real)i;
    }
    CHECK(sum_lanes(all_lanes(2)) == 2 * LANES, "sum_lanes");
    return check_report("vector");
}
