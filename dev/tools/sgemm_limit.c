// The machine's limit for float matrix products, by OpenBLAS:
//
//     cc -O2 -Idev dev/tools/sgemm_limit.c -lopenblas && ./a.out 2048 768 256
//
// Prints the median and the best rate of C[M,N] = A[M,K] B[N,K]^T over a second of products.
#include "base/program.h"

#include <cblas.h>

int main(int argc, char **argv) {
    int M = argc > 1 ? atoi(argv[1]) : 2048, N = argc > 2 ? atoi(argv[2]) : 768, K = argc > 3 ? atoi(argv[3]) : 256;
    float *A = malloc(sizeof *A * (size_t)M * (size_t)K), *B = malloc(sizeof *B * (size_t)N * (size_t)K);
    float *C = malloc(sizeof *C * (size_t)M * (size_t)N);
    static double times[100000];
    int n = 0;
    if (!A || !B || !C) return 1;
    for (int i = 0; i < M * K; i++) A[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < N * K; i++) B[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (double start = seconds_now(); seconds_now() < start + 1.5 && n < 100000;) {
        double t = seconds_now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, A, K, B, K, 0, C, N);
        t = seconds_now() - t;
        if (seconds_now() > start + 0.5) times[n++] = t; // after half a second of warm-up
    }
    double flop = 2e-9 * M * N * K, middle = median(times, (size_t)n);
    printf("sgemm %dx%dx%d median=%.1f best=%.1f GFLOP/s\n", M, N, K, flop / middle, flop / times[0]);
    return 0;
}
