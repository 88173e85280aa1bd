// The recurrence of train_lstm_music.cu, forward and backward, plain and fast, against plain C in double.
//   test_recurrence quick|some|large|all     large wants CUDA_EMU_MULTIPROCESSORS=64
//   test_recurrence past                     a planted mistake: a store one number past a piece of the model's memory
// With bf16 the plain C rounds where the kernels do (weights, h, x, dgates), so that what is left is the error of sums
// in fp32, and now and then an operand that this makes round to the other side.
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

template <typename Number>
struct Array { // of the host and of the device
    std::vector<Number> host;
    Number *device = nullptr;
    explicit Array(size_t n) : host(n) { cuda_check(cudaMalloc(&device, bytes())); }
    Array(const Array &) = delete;
    ~Array() { cudaFree(device); }
    size_t bytes() const { return host.size() * sizeof(Number); }
    void up() { cuda_check(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice)); }
    void down() { cuda_check(cudaMemcpy((void *)host.data(), device, bytes(), cudaMemcpyDeviceToHost)); }
    void poison() { cuda_check(cudaMemset(device, 0x7f, bytes())); } // large numbers, and not ABSENT
};

// ||a - b|| / ||b|| within the tolerance
template <typename Number>
static void compare(const char *what, const char *where, Array<Number> &a, const std::vector<double> &b,
                    double tolerance) {
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

// ---- a case: its tensors on the device, and what they should be

template <typename Operand>
struct Layer {
    Array<Operand> w_ih, w_hh, h, x, dgates;
    Array<float> b_ih, b_hh, gates, c, dc;
    Dropout dropout;
    struct {
        std::vector<double> w_ih, w_hh, gates, c, h, x, dgates; // gates as [unit][gate]
    } plain;

    // p: how likely dropout is
    Layer(size_t H, size_t R, size_t B, int l, double p)
        : w_ih(4 * H * H), w_hh(4 * H * H), h(R * H), x(R * H), dgates(4 * R * H), b_ih(4 * H), b_hh(4 * H),
          gates(4 * R * H), c(R * H), dc(B * H) {
        dropout = {philox_key(7, PHILOX_DROPOUT, (uint32_t)l), (uint32_t)(p * 4294967296.0), (float)(1 / (1 - p))};
        plain = {{},
                 {},
                 std::vector<double>(4 * R * H),
                 std::vector<double>(R * H),
                 std::vector<double>(R * H),
                 std::vector<double>(R * H),
                 std::vector<double>(4 * R * H)};
        fill(w_ih, plain.w_ih, H);
        fill(w_hh, plain.w_hh, H);
        for (Array<float> *bias : {&b_ih, &b_hh}) {
            for (auto &number : bias->host) number = (float)(random_uniform() / sqrt((double)H));
            bias->up();
        }
    }
    static void fill(Array<Operand> &weights, std::vector<double> &copy, size_t H) {
        for (auto &weight : weights.host) {
            const float value = round_half((float)(1.5 * random_uniform() / sqrt((double)H)), BF16<Operand>);
            set(&weight, value);
            copy.push_back((double)value);
        }
        weights.up();
    }
    void poison() {
        for (Array<Operand> *array : {&h, &x, &dgates}) array->poison();
        for (Array<float> *array : {&gates, &c, &dc}) array->poison();
    }
};

template <typename Operand>
struct Case {
    int B, T, H, L;
    double p;
    Array<float> table, d; // d: the gradient of the last layer's x
    Array<uint8_t> tokens;
    Array<DeviceState> state;
    std::vector<std::unique_ptr<Layer<Operand>>> layers;

    Case(int B, int T, int H, int L, double p)
        : B(B), T(T), H(H), L(L), p(p), table((size_t)V * 4 * H), d((size_t)B * T * H), tokens((size_t)B * T),
          state(1) {
        random_state = (uint64_t)(B * 1000003 + T * 10007 + H * 101 + L * 7 + (p > 0));
        state.host[0].step = 12345;
        for (auto &number : table.host) number = (float)random_uniform();
        for (auto &number : d.host) number = (float)random_uniform();
        for (auto &token : tokens.host) token = (uint8_t)((random_uniform() + 1) / 2 * V);
        state.up();
        table.up();
        d.up();
        tokens.up();
        for (int l = 0; l < L; l++) {
            layers.push_back(std::make_unique<Layer<Operand>>((size_t)H, (size_t)B * T, (size_t)B, l, p));
        }
    }
    double mask(int l, int b, int t, int u) const {
        const Dropout dropout = layers[l]->dropout;
        if (dropout.threshold == 0) return (double)dropout.scale;
        const int64_t step = state.host[0].step;
        const Philox4 words = philox(dropout.key, (uint32_t)u / 4, (uint32_t)t, (uint32_t)b, (uint32_t)step);
        return words.x[u % 4] >= dropout.threshold ? (double)dropout.scale : 0;
    }
};

static double sigmoid_double(double x) { return 1 / (1 + exp(-x)); }

// x as the kernels store it
template <typename Operand>
static double stored(double x) {
    return BF16<Operand> ? (double)round_half((float)x, true) : x;
}

template <typename Operand>
static void plain_forward(const Case<Operand> &m) {
    const int B = m.B, T = m.T, H = m.H;
    for (int l = 0; l < m.L; l++) {
        const Layer<Operand> &a = *m.layers[l];
        auto &out = m.layers[l]->plain;
        for (int t = 0; t < T; t++) {
            for (int b = 0; b < B; b++) {
                const size_t r = (size_t)t * B + b;
                std::vector<double> z(4 * H);
                for (int j = 0; j < 4 * H; j++) {
                    double sum = (double)a.b_ih.host[j] + (double)a.b_hh.host[j];
                    if (l == 0) sum += (double)m.table.host[(size_t)m.tokens.host[r] * 4 * H + j];
                    for (int k = 0; k < H && l > 0; k++) {
                        sum += out.w_ih[(size_t)j * H + k] * m.layers[l - 1]->plain.x[r * H + k];
                    }
                    for (int k = 0; k < H && t > 0; k++) sum += out.w_hh[(size_t)j * H + k] * out.h[(r - B) * H + k];
                    z[j] = sum;
                }
                for (int u = 0; u < H; u++) {
                    const double i = sigmoid_double(z[u]), f = sigmoid_double(z[H + u]), g = tanh(z[2 * H + u]),
                                 o = sigmoid_double(z[3 * H + u]);
                    const double c = (t > 0 ? f * out.c[(r - B) * H + u] : 0) + i * g;
                    double *gate = &out.gates[(r * H + u) * 4];
                    gate[0] = i, gate[1] = f, gate[2] = g, gate[3] = o;
                    out.c[r * H + u] = c;
                    out.h[r * H + u] = stored<Operand>(o * tanh(c));
                    out.x[r * H + u] = stored<Operand>(out.h[r * H + u] * m.mask(l, b, t, u));
                }
            }
        }
    }
}

// Time step t of layer l in window b. dc [H] comes as the gradient of c_t and leaves as that of c_(t-1).
template <typename Operand>
static void plain_backward_step(const Case<Operand> &m, int l, int b, int t, double *dc, const double *dx) {
    const int B = m.B, H = m.H;
    const size_t r = (size_t)t * B + b;
    auto &out = m.layers[l]->plain;
    std::vector<double> dh(H);
    for (int u = 0; u < H; u++) dh[u] = dx[r * H + u] * m.mask(l, b, t, u);
    for (int j = 0; j < 4 * H && t < m.T - 1; j++) {
        const double dgate = out.dgates[(r + B) * 4 * H + j];
        for (int u = 0; u < H; u++) dh[u] += dgate * out.w_hh[(size_t)j * H + u];
    }
    for (int u = 0; u < H; u++) {
        const double *gate = &out.gates[(r * H + u) * 4], i = gate[0], f = gate[1], g = gate[2], o = gate[3];
        const double tanh_c = tanh(out.c[r * H + u]), c_before = t > 0 ? out.c[(r - B) * H + u] : 0;
        const double dc_u = dc[u] + dh[u] * o * (1 - tanh_c * tanh_c);
        const double d[4] = {dc_u * g * i * (1 - i), dc_u * c_before * f * (1 - f), dc_u * i * (1 - g * g),
                             dh[u] * tanh_c * o * (1 - o)};
        for (int k = 0; k < 4; k++) out.dgates[r * 4 * H + (size_t)k * H + u] = stored<Operand>(d[k]);
        dc[u] = dc_u * f;
    }
}

template <typename Operand>
static void plain_backward(const Case<Operand> &m) {
    const int B = m.B, T = m.T, H = m.H;
    std::vector<double> dx(m.d.host.begin(), m.d.host.end());
    for (int l = m.L - 1; l >= 0; l--) {
        std::vector<double> dc((size_t)B * H);
        for (int t = T - 1; t >= 0; t--) {
            for (int b = 0; b < B; b++) plain_backward_step(m, l, b, t, &dc[(size_t)b * H], dx.data());
        }
        const auto &out = m.layers[l]->plain;
        for (size_t r = 0; r < (size_t)B * T; r++) {
            for (int u = 0; u < H; u++) dx[r * H + u] = 0;
            for (int j = 0; j < 4 * H; j++) {
                for (int u = 0; u < H; u++) dx[r * H + u] += out.dgates[r * 4 * H + j] * out.w_ih[(size_t)j * H + u];
            }
        }
    }
}

// ---- the kernels against it

template <typename Operand>
static void check(Case<Operand> &m, const std::vector<LayerRecurrence<Operand>> &layers, RecurrenceShape shape,
                  double forward_tolerance, double backward_tolerance) {
    Array<float> dx(m.d.host.size());
    for (auto &a : m.layers) a->poison();
    cuda_check(cudaMemcpy(dx.device, m.d.device, dx.bytes(), cudaMemcpyDeviceToDevice));
    recurrence_prepare<Operand>(layers.data(), shape, nullptr);
    recurrence_forward<Operand>(layers.data(), shape, m.table.device, m.tokens.device, m.state.device, nullptr);
    cuda_check(cudaDeviceSynchronize());
    recurrence_backward<Operand>(layers.data(), shape, dx.device, m.state.device, nullptr);
    cuda_check(cudaDeviceSynchronize());
    char where[200], name[40];
    const char *kernels = shape.clusters ? "clusters" : shape.forward_sets ? "fast" : "plain";
    snprintf(where, sizeof where, "%s %s B=%d T=%d H=%d L=%d p=%g", BF16<Operand> ? "bf16" : "fp32", kernels, m.B, m.T,
             m.H, m.L, m.p);
    const double before = worst;
    worst = 0;
    for (int l = 0; l < m.L; l++) {
        Layer<Operand> &a = *m.layers[l];
        auto of_layer = [&](const char *what) {
            snprintf(name, sizeof name, "%s of layer %d", what, l);
            return name;
        };
        compare(of_layer("h"), where, a.h, a.plain.h, forward_tolerance);
        compare(of_layer("x"), where, a.x, a.plain.x, forward_tolerance);
        compare(of_layer("c"), where, a.c, a.plain.c, forward_tolerance);
        compare(of_layer("dgates"), where, a.dgates, a.plain.dgates, backward_tolerance);
    }
    printf("%-44s %.2f of the tolerance %.1e\n", where, worst, forward_tolerance);
    fflush(stdout);
    worst = fmax(worst, before);
}

template <typename Operand>
static void run(int B, int T, int H, int L, double p) {
    Case<Operand> m(B, T, H, L, p);
    std::vector<LayerRecurrence<Operand>> layers;
    for (auto &a : m.layers) {
        layers.push_back({a->w_ih.device, a->w_hh.device, a->b_ih.device, a->b_hh.device, a->dropout, a->gates.device,
                          a->c.device, a->h.device, a->x.device, a->dgates.device, a->dc.device});
    }
    plain_forward(m);
    plain_backward(m);
    // fp32: a sum of K products has an error of about eps sqrt(K) of its size, gates some 3e-7 more, and time steps and
    // layers add theirs. bf16: with a relative error e, an operand rounds to the other side with probability 2^8 e and
    // is then off by 2^-8 of itself: sqrt(2^-8 e) in the norm, and this error goes into the next rounding, one after
    // the other along layers and time steps. It tends to 2^-8.
    const double exact = 1e-6 * sqrt((double)T * L) * (1 + sqrt(4.0 * H) / 32);
    double forward_tolerance = exact, backward_tolerance = 2 * exact;
    for (int i = 0; BF16<Operand> && i < T + L; i++) forward_tolerance = sqrt(ldexp(forward_tolerance, -8));
    for (int i = 0; BF16<Operand> && i < 2 * (T + L); i++) backward_tolerance = sqrt(ldexp(backward_tolerance, -8));
    const RecurrenceShape fast = recurrence_shape<Operand>(B, T, H, L), plain = {B, T, H, L, 0, 0, false};
    check(m, layers, plain, forward_tolerance, backward_tolerance);
    if (fast.forward_sets) check(m, layers, fast, forward_tolerance, backward_tolerance);
}

template <typename Operand>
static void all(const char *which) {
    const int Bs[] = {1, 3, 8, 9, 17}, Ts[] = {1, 2, 7, 33}, Hs[] = {32, 48, 64};
    if (!strcmp(which, "quick")) {
        run<Operand>(3, 3, 32, 1, 0.5);
        run<Operand>(9, 3, 32, 2, 0.25);
        run<Operand>(1, 2, 48, 2, 0);
        return;
    }
    if (!strcmp(which, "large")) {
        run<Operand>(9, 3, 512, 2, 0.5);
        run<Operand>(17, 2, 288, 2, 0);
        run<Operand>(3, 3, 512, 1, 0.5);
        run<Operand>(2, 2, 512, 3, 0.5);
        return;
    }
    if (!strcmp(which, "some")) {
        run<Operand>(1, 33, 32, 2, 0.5);
        run<Operand>(9, 7, 48, 3, 0.5);
        run<Operand>(17, 7, 64, 1, 0);
        run<Operand>(17, 3, 128, 2, 0.5);
        run<Operand>(3, 1, 96, 2, 0.25);
        return;
    }
    int n = 0;
    for (int H : Hs) {
        for (int T : Ts) {
            for (int B : Bs) {
                for (int L = 1; L <= 3; L++) run<Operand>(B, T, H, L, (n++ % 3) * 0.25);
            }
        }
    }
    run<Operand>(9, 7, 128, 2, 0.5);
}

static __global__ void past_kernel(float *x, int n) {
    x[n] = 1; // here: past
}
static int past(void) {
    DeviceArena arena = {};
    float *x, *y;
    cuda_check(cudaMalloc(&arena.base, 4096));
    device_take(&arena, 63, &x);
    device_take(&arena, 64, &y);
    past_kernel<<<1, 1>>>(x, 62);
    past_kernel<<<1, 1>>>(x, 63);
    return 0;
}

int main(int argc, char **argv) {
    const char *which = argc > 1 ? argv[1] : "all";
    if (!strcmp(which, "past")) return past();
    all<float>(which);
    all<__nv_bfloat16>(which);
    printf("bytes %016llx\nlargest part of a tolerance %.2f\n", (unsigned long long)hash, worst);
    printf("recurrence: %d passed, %d failed\n", passed, failed);
    return failed > 0;
}
