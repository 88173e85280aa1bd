// test_matmul_gpu.cu with all its shapes and tiles: it takes minutes to compile and to run.
#define ALL_SHAPES true
#include "test/test_matmul_gpu.cu"
