// The recurrence of train_lstm_music.cu, forward and backward, plain and fast, against plain C in double.
//   test_recurrence quick|some|large|all     large wants CUDA_EMU_MULTIPROCESSORS=8
// With bf16 the C rounds where the kernels do (weights, h, x, dgates), so that what is left is the error of sums in
// fp32, and now and then an operand that this makes round to the other side.
#define TESTING
#include "train_lstm_music.cu"

#include <memory>
#include <vector>

static int passed, failed;
static uint64_t hash = 14695981039346656037u;
static double worst;

static uint64_t random_state = 1;
static double random_uniform(void) { // -1..1
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(random_state >> 11 << 1) / 9007199254740992.0 - 1;
}
static float round_half(float x, bool bf16) {
    if (!bf16) return x;
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, 4);
    return x;
}
static void set(float *to, float x) { *to = x; }
static void set(__nv_bfloat16 *to, float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    uint16_t h = (uint16_t)(u >> 16);
    memcpy((void *)to, &h, 2);
}
static float get(float x) { return x; }
static float get(__nv_bfloat16 x) {
    uint16_t h;
    memcpy(&h, (void *)&x, 2);
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

template <typename T>
struct Array { // of the host and of the device
    std::vector<T> host;
    T *device = nullptr;
    explicit Array(size_t n) : host(n) { cuda_check(cudaMalloc(&device, (n ? n : 1) * sizeof(T))); }
    Array(const Array &) = delete;
    ~Array() { cudaFree(device); }
    void up() { cuda_check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice)); }
    void down() {
        cuda_check(cudaMemcpy((void *)host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    }
    void poison() { cuda_check(cudaMemset(device, 0xff, (host.size() ? host.size() : 1) * sizeof(T))); }
};

// ||a - b|| / ||b|| within the tolerance
template <typename T>
static void compare(const char *what, const char *where, Array<T> &a, const std::vector<double> &b, double tolerance) {
    a.down();
    double difference = 0, size = 0;
    for (size_t i = 0; i < b.size(); i++) {
        const double d = (double)get(a.host[i]) - b[i];
        difference += d * d;
        size += b[i] * b[i];
        uint32_t bits;
        float value = get(a.host[i]);
        memcpy(&bits, &value, 4);
        hash = (hash ^ bits) * 1099511628211u;
    }
    const double used = sqrt(difference) / (sqrt(size) + 1e-30) / tolerance;
    if (used > worst) worst = used;
    if (used <= 1 || (size == 0 && difference == 0)) {
        passed++;
    } else {
        failed++;
        printf("FAIL %s: %s is off by %g of the tolerance %g\n", where, what, used, tolerance);
    }
}

static double sigmoid_double(double x) { return 1 / (1 + exp(-x)); }

template <typename Half>
static void run(int B, int T, int H, int L, double p) {
    const bool bf16 = sizeof(Half) == 2;
    const int R = B * T, G = 4 * H;
    const size_t RH = (size_t)R * H;
    random_state = (uint64_t)(B * 1000003 + T * 10007 + H * 101 + L * 7 + (p > 0));
    Array<float> table((size_t)V * G), d(RH), d_work(RH);
    Array<uint8_t> tokens(R);
    Array<DeviceState> state(1);
    state.host[0].step = 12345;
    state.up();
    for (auto &x : table.host) x = (float)random_uniform();
    for (auto &x : d.host) x = (float)random_uniform();
    for (auto &x : tokens.host) x = (uint8_t)((random_uniform() + 1) / 2 * V);
    table.up();
    d.up();
    tokens.up();
    struct Layer {
        Array<Half> w_ih, w_hh, h, x, dgates;
        Array<float> bias, gates, c, dc;
        std::vector<double> gate, c_d, h_d, x_d, dgates_d, tanh_c;
        Layer(size_t H, size_t R, size_t B)
            : w_ih(4 * H * H), w_hh(4 * H * H), h(R * H), x(R * H), dgates(4 * R * H), bias(4 * H), gates(4 * R * H),
              c(R * H), dc(B * H), gate(4 * R * H), c_d(R * H), h_d(R * H), x_d(R * H), dgates_d(4 * R * H),
              tanh_c(R * H) {}
    };
    std::vector<std::unique_ptr<Layer>> layer;
    std::vector<LayerRecurrence<Half>> layers;
    std::vector<double> w_ih[3], w_hh[3];
    for (int l = 0; l < L; l++) {
        layer.push_back(std::make_unique<Layer>((size_t)H, (size_t)R, (size_t)B));
        Layer &a = *layer[l];
        for (int m = 0; m < 2; m++) {
            for (auto &x : (m ? a.w_hh : a.w_ih).host) {
                float value = round_half((float)(1.5 * random_uniform() / sqrt(H)), bf16);
                set(&x, value);
                (m ? w_hh : w_ih)[l].push_back((double)value);
            }
        }
        for (auto &x : a.bias.host) x = (float)(random_uniform() / sqrt(H));
        a.w_ih.up();
        a.w_hh.up();
        a.bias.up();
        const Dropout dropout = {philox_key(7, PHILOX_DROPOUT, (uint32_t)l), (uint32_t)(p * 4294967296.0),
                                 (float)(1 / (1 - p))};
        layers.push_back({a.w_ih.device, a.w_hh.device, a.bias.device, dropout, a.gates.device, a.c.device, a.h.device,
                          a.x.device, a.dgates.device, a.dc.device});
    }
    auto kept = [&](int l, int b, int t, int u) {
        const Dropout d = layers[l].dropout;
        if (d.threshold == 0) return (double)d.scale;
        const Philox4 words = philox(d.key, (uint32_t)u / 4, (uint32_t)t, (uint32_t)b, (uint32_t)state.host[0].step);
        return words.x[u % 4] >= d.threshold ? (double)d.scale : 0;
    };

    // In double
    for (int l = 0; l < L; l++) {
        Layer &a = *layer[l];
        for (int t = 0; t < T; t++) {
            for (int b = 0; b < B; b++) {
                const size_t r = (size_t)t * B + b;
                std::vector<double> z(G);
                for (int j = 0; j < G; j++) {
                    double sum = l ? a.bias.host[j] : table.host[(size_t)tokens.host[r] * G + j];
                    for (int k = 0; k < H && l > 0; k++)
                        sum += w_ih[l][(size_t)j * H + k] * layer[l - 1]->x_d[r * H + k];
                    for (int k = 0; k < H && t > 0; k++) sum += w_hh[l][(size_t)j * H + k] * a.h_d[(r - B) * H + k];
                    z[j] = sum;
                }
                for (int u = 0; u < H; u++) {
                    double i = sigmoid_double(z[u]), f = sigmoid_double(z[H + u]), g = tanh(z[2 * H + u]),
                           o = sigmoid_double(z[3 * H + u]), *gate = &a.gate[(r * H + u) * 4];
                    gate[0] = i, gate[1] = f, gate[2] = g, gate[3] = o;
                    const double c = (t > 0 ? f * a.c_d[(r - B) * H + u] : 0) + i * g;
                    a.c_d[r * H + u] = c;
                    a.tanh_c[r * H + u] = tanh(c);
                    const double h = o * tanh(c);
                    a.h_d[r * H + u] = bf16 ? (double)round_half((float)h, true) : h;
                    const double x = a.h_d[r * H + u] * kept(l, b, t, u);
                    a.x_d[r * H + u] = bf16 ? (double)round_half((float)x, true) : x;
                }
            }
        }
    }
    std::vector<double> dx(d.host.begin(), d.host.end());
    for (int l = L - 1; l >= 0; l--) {
        Layer &a = *layer[l];
        std::vector<double> dc((size_t)B * H);
        for (int t = T - 1; t >= 0; t--) {
            for (int b = 0; b < B; b++) {
                const size_t r = (size_t)t * B + b;
                std::vector<double> dh(H);
                for (int u = 0; u < H; u++) dh[u] = dx[r * H + u] * kept(l, b, t, u);
                for (int j = 0; j < G && t < T - 1; j++) {
                    const double dgate = a.dgates_d[(r + B) * G + j];
                    for (int u = 0; u < H; u++) dh[u] += dgate * w_hh[l][(size_t)j * H + u];
                }
                for (int u = 0; u < H; u++) {
                    const double *gate = &a.gate[(r * H + u) * 4], i = gate[0], f = gate[1], g = gate[2], o = gate[3];
                    const double tanh_c = a.tanh_c[r * H + u];
                    const double dc_u = dc[(size_t)b * H + u] + dh[u] * o * (1 - tanh_c * tanh_c);
                    const double out[4] = {dc_u * g * i * (1 - i),
                                           t > 0 ? dc_u * a.c_d[(r - B) * H + u] * f * (1 - f) : 0,
                                           dc_u * i * (1 - g * g), dh[u] * tanh_c * o * (1 - o)};
                    for (int k = 0; k < 4; k++)
                        a.dgates_d[r * G + (size_t)k * H + u] = bf16 ? (double)round_half((float)out[k], true) : out[k];
                    dc[(size_t)b * H + u] = dc_u * f;
                }
            }
        }
        if (l == 0) break;
        for (int r = 0; r < R; r++) {
            for (int u = 0; u < H; u++) dx[(size_t)r * H + u] = 0;
            for (int j = 0; j < G; j++)
                for (int u = 0; u < H; u++)
                    dx[(size_t)r * H + u] += a.dgates_d[(size_t)r * G + j] * w_ih[l][(size_t)j * H + u];
        }
    }

    // fp32: a sum of K products has an error of about eps sqrt(K) of its size, gates some 3e-7 more, and steps and
    // layers add theirs. bf16: with a relative error e, an operand rounds to the other side with probability 2^8 e and
    // is then off by 2^-8 of itself: sqrt(2^-8 e) in the norm, and this error goes into the next rounding, one after
    // the other along layers and steps. It tends to 2^-8.
    const double exact = 1e-6 * sqrt((double)T * L) * (1 + sqrt(4.0 * H) / 32);
    double forward_tolerance = exact, backward_tolerance = 2 * exact;
    for (int i = 0; bf16 && i < T + L; i++) forward_tolerance = sqrt(ldexp(forward_tolerance, -8));
    for (int i = 0; bf16 && i < 2 * (T + L); i++) backward_tolerance = sqrt(ldexp(backward_tolerance, -8));
    const RecurrenceShape shape = {B, T, H, L};
    for (int fast = 0; fast < 2; fast++) {
        if (fast && !recurrence_is_fast<Half>(shape)) continue;
        for (auto &a : layer) {
            a->h.poison();
            a->x.poison();
            a->dgates.poison();
            a->gates.poison();
            a->c.poison();
            a->dc.poison();
        }
        cuda_check(cudaMemcpy(d_work.device, d.device, RH * sizeof(float), cudaMemcpyDeviceToDevice));
        recurrence_forward<Half>(layers.data(), shape, fast, table.device, tokens.device, state.device, nullptr);
        cuda_check(cudaGetLastError());
        cuda_check(cudaDeviceSynchronize());
        recurrence_backward<Half>(layers.data(), shape, fast, d_work.device, state.device, nullptr);
        cuda_check(cudaGetLastError());
        cuda_check(cudaDeviceSynchronize());
        char where[200];
        snprintf(where, sizeof where, "%s %s B=%d T=%d H=%d L=%d p=%g", bf16 ? "bf16" : "fp32", fast ? "fast" : "plain",
                 B, T, H, L, p);
        const double before = worst;
        worst = 0;
        for (int l = 0; l < L; l++) {
            char name[40];
            const char *names[] = {"h", "x", "c", "dgates"};
            for (int i = 0; i < 4; i++) {
                snprintf(name, sizeof name, "%s of layer %d", names[i], l);
                if (i == 0) compare(name, where, layer[l]->h, layer[l]->h_d, forward_tolerance);
                if (i == 1) compare(name, where, layer[l]->x, layer[l]->x_d, forward_tolerance);
                if (i == 2) compare(name, where, layer[l]->c, layer[l]->c_d, forward_tolerance);
                if (i == 3) compare(name, where, layer[l]->dgates, layer[l]->dgates_d, backward_tolerance);
            }
        }
        printf("%-44s %.2f of the tolerance %.1e\n", where, worst, forward_tolerance);
        fflush(stdout);
        worst = fmax(worst, before);
    }
}

template <typename Half>
static void all(const char *which) {
    const int Bs[] = {1, 3, 8, 9, 17}, Ts[] = {1, 2, 7, 33}, Hs[] = {32, 48, 64};
    if (!strcmp(which, "quick")) {
        run<Half>(3, 3, 32, 1, 0.5);
        run<Half>(9, 3, 32, 2, 0.25);
        run<Half>(1, 2, 48, 2, 0);
        return;
    }
    if (!strcmp(which, "large")) {
        run<Half>(9, 3, 512, 2, 0.5);
        run<Half>(17, 2, 288, 2, 0);
        run<Half>(3, 3, 512, 1, 0.5);
        run<Half>(2, 2, 512, 3, 0.5);
        return;
    }
    if (!strcmp(which, "some")) {
        run<Half>(1, 33, 32, 2, 0.5);
        run<Half>(9, 7, 48, 3, 0.5);
        run<Half>(17, 7, 64, 1, 0);
        run<Half>(17, 3, 128, 2, 0.5);
        run<Half>(3, 1, 96, 2, 0.25);
        return;
    }
    int n = 0;
    for (int H : Hs)
        for (int T : Ts)
            for (int B : Bs)
                for (int L = 1; L <= 3; L++) {
                    run<Half>(B, T, H, L, (n++ % 3) * 0.25);
                }
    run<Half>(9, 7, 128, 2, 0.5);
}

int main(int argc, char **argv) {
    const char *which = argc > 1 ? argv[1] : "all";
    all<float>(which);
    all<__nv_bfloat16>(which);
    printf("bytes %016llx\nlargest part of a tolerance %.2f\n", (unsigned long long)hash, worst);
    printf("recurrence: %d passed, %d failed\n", passed, failed);
    return failed > 0;
}
