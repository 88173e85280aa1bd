// The machine's limit for float matrix products, by OpenBLAS: cc -O2 dev/tools/sgemm_limit.c -lopenblas && ./a.out 2048
// 768 256 Prints the median and the best rate of C[M,N] = A[M,K] B[N,K]^T over a second of products.
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    int M = argc > 1 ? atoi(argv[1]) : 2048, N = argc > 2 ? atoi(argv[2]) : 768, K = argc > 3 ? atoi(argv[3]) : 256;
    float *A = malloc(sizeof *A * (size_t)M * (size_t)K), *B = malloc(sizeof *B * (size_t)N * (size_t)K);
    float *C = malloc(sizeof *C * (size_t)M * (size_t)N);
    static double times[100000];
    int n = 0;
    if (!A || !B || !C) return 1;
    for (int i = 0; i < M * K; i++) A[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < N * K; i++) B[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (double start = now(); now() < start + 1.5 && n < 100000;) {
        double t = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, A, K, B, K, 0, C, N);
        t = now() - t;
        if (now() > start + 0.5) times[n++] = t; // after half a second of warm-up
    }
    qsort(times, (size_t)n, sizeof *times, ascending);
    double flop = 2e-9 * M * N * K;
    printf("sgemm %dx%dx%d median=%.1f best=%.1f GFLOP/s\n", M, N, K, flop / times[n / 2], flop / times[0]);
    return 0;
}
