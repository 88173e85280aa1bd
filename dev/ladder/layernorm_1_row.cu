// LayerNorm with residual and dropout, rung 1: a thread for each row, the loops of plain.h inside it; and for dw
// and db, which sum over rows, a thread for each column. y = LN(x + dropout(branch)) w + b, forward and backward.
//
//             channels -->                        channels -->
//     lane 0  ===================>                | | | |
//     lane 1  ===================>   y, dx        v v v v      dw, db
//     lane 2  ===================>                lanes
//
// What is counted: at any time the 32 lanes of a warp are in 32 rows, so each load and store touches 32 sectors, and
// uses 4 or 16 bytes of each. A row is read again in each pass: the sum of x and branch is stored, and read twice. Only
// as many threads work as there are rows.
// What limits it: the sectors, 18 times the least loaded and 9 times the least stored, and a chain of loads in so few
// threads that there is nothing else to do while one is under way.
//   layernorm_1_row [R]
#include "ladder/ladder.cuh"

typedef __nv_bfloat16 bf16;
struct __align__(8) Four { // bf16 for one store
    bf16 at[4];
};
static __device__ Four to_bf16(float4 v) {
    return {{__float2bfloat16(v.x), __float2bfloat16(v.y), __float2bfloat16(v.z), __float2bfloat16(v.w)}};
}

static __global__ void forward_kernel(Norm a, int R) {
    const int r = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (r >= R) return;
    float sum = 0, squares = 0;
    for (int c = 0; c < WIDTH; c += 4) { // pass 1: what is normalized, and its mean
        const float4 x = *(const float4 *)&a.x[r * WIDTH + c], branch = *(const float4 *)&a.branch[r * WIDTH + c];
        const float4 mask = mask_four(a.key, r, c / 4);
        const float4 v = make_float4(x.x + branch.x * mask.x, x.y + branch.y * mask.y, x.z + branch.z * mask.z,
                                     x.w + branch.w * mask.w);
        *(float4 *)&a.normalized[r * WIDTH + c] = v;
        sum += v.x + v.y + v.z + v.w;
    }
    const float mean = sum / WIDTH;
    for (int c = 0; c < WIDTH; c++) { // pass 2: its variance
        const float past = a.normalized[r * WIDTH + c] - mean;
        squares += past * past;
    }
    const float rstd = 1 / sqrtf(squares / WIDTH + 1e-5f);
    for (int c = 0; c < WIDTH; c++) { // pass 3: the output
        const float normalized = (a.normalized[r * WIDTH + c] - mean) * rstd;
        a.normalized[r * WIDTH + c] = normalized;
        a.y[r * WIDTH + c] = __float2bfloat16(normalized * a.w[c] + a.b[c]);
    }
    a.rstd[r] = rstd;
}

// dx = rstd * (g - mean of g - normalized * mean of (g * normalized)), g = dy * w; dbranch = dx * mask
static __global__ void backward_rows_kernel(Norm a, int R) {
    const int r = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (r >= R) return;
    float sum = 0, product = 0;
    for (int c = 0; c < WIDTH; c++) {
        const float g = a.dy[r * WIDTH + c] * a.w[c];
        sum += g;
        product += g * a.normalized[r * WIDTH + c];
    }
    const float mean = sum / WIDTH, mean_product = product / WIDTH, rstd = a.rstd[r];
    for (int c = 0; c < WIDTH; c += 4) {
        float dx[4];
        for (int i = 0; i < 4; i++) {
            const int at = r * WIDTH + c + i;
            dx[i] = rstd * (a.dy[at] * a.w[c + i] - mean - a.normalized[at] * mean_product);
            a.dx[at] = dx[i];
        }
        const float4 mask = mask_four(a.key, r, c / 4);
        *(Four *)&a.dbranch[r * WIDTH + c] =
            to_bf16(make_float4(dx[0] * mask.x, dx[1] * mask.y, dx[2] * mask.z, dx[3] * mask.w));
    }
}

static __global__ void backward_columns_kernel(Norm a, int R) {
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float dw = 0, db = 0;
    for (int r = 0; r < R; r++) {
        dw += a.dy[r * WIDTH + c] * a.normalized[r * WIDTH + c];
        db += a.dy[r * WIDTH + c];
    }
    a.dw[c] = dw;
    a.db[c] = db;
}

static void run(Norm a, int R, cudaStream_t stream) {
    forward_kernel<<<(R + 31) / 32, 32, 0, stream>>>(a, R);
    LAUNCHED(forward_kernel);
    backward_rows_kernel<<<(R + 31) / 32, 32, 0, stream>>>(a, R);
    LAUNCHED(backward_rows_kernel);
    backward_columns_kernel<<<WIDTH / 32, 32, 0, stream>>>(a, R);
    LAUNCHED(backward_columns_kernel);
}

int main(int argc, char **argv) { return ladder_layernorm<false>(argc, argv, run); }
