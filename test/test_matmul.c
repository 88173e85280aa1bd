// matmul.h against sums in double, on random shapes with edges of every kind, both operands plain or transposed, every
// epilogue, in float (or double) and in bf16; and that one thread and several give the same bytes.
#include "cpu/matmul.h"

#include "check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static unsigned state = 1;
static int below(int n) { // 0..n-1
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (unsigned)n);
}
static real *random_matrix(int n) {
    real *x = malloc((size_t)n * sizeof *x);
    for (int i = 0; i < n; i++) x[i] = (real)(below(2001) - 1000) / 1000;
    return x;
}

int main(void) {
    const double epsilon = sizeof(real) == sizeof(float) ? 1.2e-7 : 2.3e-16;
    for (int trial = 0; trial < 300; trial++) {
        int M = 1 + below(trial % 10 ? 40 : 200), N = 1 + below(90), K = 1 + below(trial % 7 ? 60 : 700);
        bool a_turned = below(2), b_turned = below(2), add = below(2), relu = below(2), gated = below(2),
             biased = below(2);
        real *a = random_matrix(M * K), *b = random_matrix(K * N), *gate = random_matrix(M * N),
             *bias = random_matrix(N);
        real *out = random_matrix(M * N), *again = malloc((size_t)(M * N) * sizeof *again);
        real *scratch = malloc(matmul_scratch_size((size_t)K, (size_t)N) * sizeof *scratch);
        real *before = malloc((size_t)(M * N) * sizeof *before);
        memcpy(again, out, (size_t)(M * N) * sizeof *out);
        memcpy(before, out, (size_t)(M * N) * sizeof *out);
        const MatmulSpace space = {scratch, sizeof(real) == sizeof(float) && trial % 2};
        int a_row = a_turned ? 1 : K, a_col = a_turned ? M : 1, b_row = b_turned ? 1 : N, b_col = b_turned ? K : 1;
        Epilogue epilogue = {.bias = biased ? bias : NULL, .relu = relu, .gate = gated ? gate : NULL, .add = add};
#ifdef _OPENMP
        omp_set_num_threads(1);
#endif
        matmul(out, M, N, K, a, a_row, a_col, b, b_row, b_col, epilogue, space);
#ifdef _OPENMP
        omp_set_num_threads(3);
#endif
        matmul(again, M, N, K, a, a_row, a_col, b, b_row, b_col, epilogue, space);
        CHECK(!memcmp(out, again, (size_t)(M * N) * sizeof *out), "threads change bytes, %d x %d x %d", M, N, K);
        double worst = 0;
        for (int i = 0; i < M; i++) {
            for (int n = 0; n < N; n++) {
                double sum = add ? (double)before[i * N + n] : 0;
                for (int k = 0; k < K; k++) {
                    double x = (double)a[i * a_row + k * a_col], y = (double)b[k * b_row + n * b_col];
                    sum += space.bf16 ? nearest_bf16(x) * nearest_bf16(y) : x * y;
                }
                if (biased) sum += (double)bias[n];
                if (relu && sum < 0) sum = 0;
                if (gated && !(gate[i * N + n] > 0)) sum = 0;
                double off = fabs(sum - (double)out[i * N + n]);
                if (!(off <= worst)) worst = off;
            }
        }
        // K + 2 roundings of sums that stay below K + 2, and a random walk of them is far below that
        double allowed = epsilon * (K + 2) * sqrt(K + 2.0);
        CHECK(worst <= allowed, "%d x %d x %d is off by %g, allowed %g", M, N, K, worst, allowed);
        free(a), free(b), free(gate), free(bias), free(out), free(again), free(scratch), free(before);
    }
    // NaN must come through a ReLU, so that a run that went wrong is noticed
    real x[1] = {(real)NAN}, w[1] = {1}, y[1] = {0}, scratch[TILE_N] = {0};
    matmul_forward(y, x, w, NULL, true, 1, 1, 1, (MatmulSpace){scratch, false});
    CHECK(isnan((double)y[0]), "a ReLU turned NaN into %g", (double)y[0]);
    if (sizeof(real) == sizeof(float)) {
        matmul_forward(y, x, w, NULL, true, 1, 1, 1, (MatmulSpace){scratch, true});
        CHECK(isnan((double)y[0]), "bf16 turned NaN into %g", (double)y[0]);
    }
    // the column sums of a linear layer's backward
    real dy[6] = {1, 2, 3, 4, 5, 6}, in[4] = {1, 1, 1, 1}, dw[6] = {0}, db[3] = {1, 1, 1}, room[2 * TILE_N];
    matmul_backward_weight(dw, db, dy, in, 2, 2, 3, (MatmulSpace){room, false});
    CHECK(db[0] == 6 && db[1] == 8 && db[2] == 10, "bias gradient %g %g %g", (double)db[0], (double)db[1],
          (double)db[2]);
    CHECK(dw[0] == 5 && dw[5] == 9, "weight gradient %g .. %g", (double)dw[0], (double)dw[5]);
    // more rows than it takes at a time: small integers, whose sums are exact
    enum { R = 2 * MATMUL_ROWS + 5, C = 3, OC = 7 };
    real *dy_long = random_matrix(R * OC), *x_long = random_matrix(R * C),
         *room_long = malloc(sizeof(real[MATMUL_ROWS * TILE_N]));
    real dw_long[OC * C];
    for (int i = 0; i < R * OC; i++) dy_long[i] = (real)(i % 5);
    for (int i = 0; i < R * C; i++) x_long[i] = (real)(i % 7);
    for (int bf16 = 0; bf16 <= (sizeof(real) == sizeof(float)); bf16++) {
        memset(dw_long, 0, sizeof dw_long);
        matmul_backward_weight(dw_long, NULL, dy_long, x_long, R, C, OC, (MatmulSpace){room_long, bf16});
        for (int i = 0; i < OC * C; i++) {
            double sum = 0;
            for (int r = 0; r < R; r++) sum += (double)dy_long[r * OC + i / C] * (double)x_long[r * C + i % C];
            CHECK((double)dw_long[i] == sum, "weight gradient %d of many rows is %g, not %g", i, (double)dw_long[i],
                  sum);
        }
    }
    free(dy_long), free(x_long), free(room_long);
    return check_report("matmul");
}
