// CUDA's vocabulary, for cuda_emu.h: keywords, vector types, device functions, bf16, and the part of the runtime API
// that this project uses. Where an argument makes no difference here it has no name.
#pragma once

#include "emu/cuda_emu_threads.h"

// ---- Keywords and vectors

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define EMU_VECTORS(T, name)                                                                                           \
    struct alignas(2 * sizeof(T)) name##2 {                                                                            \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    struct alignas(4 * sizeof(T)) name##4 {                                                                            \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float)
EMU_VECTORS(unsigned, uint)

// ---- Device functions: synchronisation and warps

inline void __syncthreads(EMU_SITE) { emu::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
    emu::warp_operation(
        mask, nullptr,
        [](emu::Warp &warp, unsigned) {
            warp.synced = ++emu::sync_clock;
            emu::note_work(emu::WARP_BARRIER);
        },
        site);
}
EMU_UNCHECKED inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    emu::note_fence();
}
inline int cluster_rank() { return emu::me->block->number % emu::gang->launch->cluster; }
inline void cluster_sync(EMU_SITE) { emu::group_barrier(*emu::me->block->cluster, site); }
template <class T>
inline T *cluster_shared(T *own, int rank, EMU_SITE) {
    return (T *)emu::cluster_shared((void *)own, rank, site);
}
inline void cudaGridDependencySynchronize(EMU_SITE) { emu::await_kernel_before(site); }
inline void cudaTriggerProgrammaticLaunchCompletion() {} // kernels begin early whether or not it is called
[[noreturn]] inline void __trap(EMU_SITE) { emu::die(site, "__trap()"); }
// Another thread gets to run: a loop that waits for another thread's store needs it.
inline void __nanosleep(unsigned, EMU_SITE) { emu::sleep(site); }
namespace cooperative_groups {
struct grid_group {
    void sync(EMU_SITE) const { emu::grid_barrier(site); }
};
inline grid_group this_grid() { return {}; }
} // namespace cooperative_groups

namespace emu {
template <class T>
struct Shuffled {
    T value, result;
    int source;
};
template <class T>
inline T shuffle(unsigned mask, T value, int source, Site site) {
    Shuffled<T> offer = {value, value, source};
    auto exchange = [](Warp &warp, unsigned lanes) {
        for (unsigned m = lanes; m; m &= m - 1) {
            int lane = __builtin_ctz(m);
            auto &taker = offer_of<Shuffled<T>>(warp, lane);
            if (!(lanes >> taker.source & 1))
                die(warp.lanes[lane].site, "lane %d reads from lane %d, which does not take part in the shuffle", lane,
                    taker.source);
            taker.result = offer_of<Shuffled<T>>(warp, taker.source).value;
        }
    };
    warp_operation(mask, &offer, exchange, site);
    return offer.result;
}
} // namespace emu
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
    return emu::shuffle(mask, value, (emu::me->lane & -width) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_SITE) {
    int lane = emu::me->lane, source = lane ^ bits;
    return emu::shuffle(mask, value, source >= (lane & -width) + width ? lane : source, site);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMU_SITE) {
    unsigned votes = vote != 0; // this lane's, then those of all
    auto count = [](emu::Warp &warp, unsigned lanes) {
        unsigned all = 0;
        for (unsigned m = lanes; m; m &= m - 1)
            if (emu::offer_of<unsigned>(warp, __builtin_ctz(m))) all |= m & -m;
        for (unsigned m = lanes; m; m &= m - 1) emu::offer_of<unsigned>(warp, __builtin_ctz(m)) = all;
    };
    emu::warp_operation(mask, &votes, count, site);
    return votes;
}
inline int __any_sync(unsigned mask, int vote, EMU_SITE) { return __ballot_sync(mask, vote, site) != 0; }

// ---- Device functions: atomics, loads, arithmetic

namespace emu {
template <class T, class F>
EMU_UNCHECKED inline T atomically(T *p, F f) {
    T old, next;
    note_atomic(p);
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do next = f(old);
    while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}
template <class T>
using Same = std::common_type_t<T>; // for a parameter from which T is not deduced
} // namespace emu
template <class T>
inline T atomicAdd(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return T(old + v); });
}
template <class T>
inline T atomicOr(T *p, emu::Same<T> v) {
    return emu::atomically(p, [=](T old) { return T(old | v); });
}
template <class T>
EMU_UNCHECKED inline T __ldg(const T *p, EMU_SITE) {
    emu::note_access(p, sizeof(T), emu::READ, site);
    return *p;
}

// These are macros because the C library has, or may come to have, functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline float __uint_as_float(unsigned i) { return std::bit_cast<float>(i); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
    return std::min<std::common_type_t<A, B>>(a, b);
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
    return std::max<std::common_type_t<A, B>>(a, b);
}

// ---- bf16: the upper half of a float, rounded to nearest, ties to even

struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        unsigned u = __float_as_uint(f);
        bits = (unsigned short)(f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }

// ---- fp16: 5 bits of exponent, 11 of precision; storage, conversions and the larger of two only

struct __half {
    unsigned short bits;
};
inline __half __ushort_as_half(unsigned short u) { return {u}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
// Rounds to nearest, ties to even.
inline __half __float2half_rn(float f) {
    unsigned sign = __float_as_uint(f) >> 16 & 0x8000;
    float size = fabsf(f);
    if (f != f) return {(unsigned short)(sign | 0x7fff)};
    if (size >= 65520) return {(unsigned short)(sign | 0x7c00)};                                    // infinity
    if (size < ldexpf(1, -14)) return {(unsigned short)(sign | (unsigned)rintf(ldexpf(size, 24)))}; // subnormal
    unsigned u = __float_as_uint(size);
    u += 0xfff + (u >> 13 & 1);
    return {(unsigned short)(sign | ((u >> 13) - (112 << 10)))};
}
inline float __half2float(__half h) {
    unsigned exponent = h.bits >> 10 & 31, digits = h.bits & 1023;
    float size = exponent == 31 ? (digits ? NAN : INFINITY)
                 : exponent     ? ldexpf((float)(1024 + digits), (int)exponent - 25)
                                : ldexpf((float)digits, -24);
    return h.bits >> 15 ? -size : size;
}
struct __half2 {
    __half x, y;
};
inline __half __hmax(__half a, __half b) { return __float2half_rn(fmaxf(__half2float(a), __half2float(b))); }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }

// ---- The runtime API: errors, streams, launches

#define EMU_ERRORS(ERROR)                                                                                              \
    ERROR(cudaSuccess, 0, "no error")                                                                                  \
    ERROR(cudaErrorInvalidValue, 1, "invalid argument")                                                                \
    ERROR(cudaErrorMemoryAllocation, 2, "out of memory")                                                               \
    ERROR(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                          \
    ERROR(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")             \
    ERROR(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                               \
    ERROR(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                                \
    ERROR(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")            \
    ERROR(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")                            \
    ERROR(cudaErrorInvalidClusterSize, 912, "cluster misconfiguration")                                                \
    ERROR(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                  \
    ERROR(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")                \
    ERROR(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                                   \
    ERROR(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")             \
    ERROR(cudaErrorStreamCaptureImplicit, 906,                                                                         \
          "operation would make the legacy stream depend on a capturing blocking stream")
#define EMU_ENUMERATOR(name, number, text) name = number,
#define EMU_TEXT(name, number, text) error == name ? text:
enum cudaError_t { EMU_ERRORS(EMU_ENUMERATOR) };
inline const char *cudaGetErrorString(cudaError_t error) { return EMU_ERRORS(EMU_TEXT) "unrecognized error code"; }

// A stream does its work at once. While it is captured, the work becomes nodes of a graph.
namespace emu {
struct Stream;
struct Node {
    std::function<void()> work;
    std::shared_ptr<Launch> kernel; // or null
    size_t waits;                   // how many nodes it directly waits for
    std::vector<size_t> next;       // the nodes that directly wait for it
    std::vector<bool> past;         // past[i]: node i, captured earlier, is done before this one in every order
};
struct Graph {
    std::vector<Node> nodes;
    std::vector<Stream *> streams; // those captured into it; the first is the one that began
};
struct Stream {
    std::shared_ptr<Graph> capture; // null: the stream is not captured
    std::set<size_t> last;          // the nodes that its next node waits for
};
struct Event : Stream {}; // as the stream was when it was recorded
inline int captures;      // how many are open
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void *, int> dynamic_limit; // what cudaFuncSetAttribute set, by kernel

inline cudaError_t result(cudaError_t error) {
    if (error) last_error = error;
    return error;
}
inline cudaError_t enqueue(Stream *stream, std::function<void()> work, std::shared_ptr<Launch> kernel = nullptr) {
    if (!stream && captures) return result(cudaErrorStreamCaptureImplicit);
    if (!stream || !stream->capture) return work(), cudaSuccess;
    std::vector<Node> &nodes = stream->capture->nodes;
    Node node = {std::move(work), std::move(kernel), stream->last.size(), {}, std::vector<bool>(nodes.size())};
    for (size_t i : stream->last) {
        nodes[i].next.push_back(nodes.size());
        for (size_t j = 0; j < i; j++) node.past[j] = node.past[j] || nodes[i].past[j];
        node.past[i] = true;
    }
    stream->last = {nodes.size()};
    nodes.push_back(std::move(node));
    return cudaSuccess;
}

// Runs the nodes one by one. Of those that need not wait any more it takes the one captured first, or last, or any. In
// random order a kernel behind a programmatic edge begins before the last node that it waits for.
inline void run_graph(const Graph &graph) {
    uint64_t random = config.seed * 0x9E3779B97F4A7C15u + ++sync_clock;
    std::vector<size_t> waits;
    std::set<size_t> ready;
    for (const Node &node : graph.nodes) {
        if (!node.waits) ready.insert(waits.size());
        waits.push_back(node.waits);
    }
    while (!ready.empty()) {
        size_t n = ready.size(), k = config.order == RANDOM ? next_random(random) % n : 0;
        auto at = std::next(ready.begin(), (long)(config.order == REVERSE ? n - 1 : k));
        const Node &node = graph.nodes[*at];
        ready.erase(at);
        note_node(&node.past);
        for (size_t i : node.next)
            if (Launch *kernel = graph.nodes[i].kernel.get(); config.order == RANDOM && waits[i] == 1)
                if (kernel && kernel->early) begin_early(*kernel);
        node.work();
        for (size_t i : node.next)
            if (!--waits[i]) ready.insert(i);
    }
    note_node(nullptr);
}

// The emulated GPU: multiprocessors like those of an A100.
constexpr int SHARED_DEFAULT = 48 << 10, SHARED_LIMIT = 163 << 10, SHARED_SIZE = 164 << 10;
// Blocks on one multiprocessor. How many registers nvcc gives a kernel is not known here. So a thread is taken to have
// the most, 256, as far as a block of them fits in the 65536 there are: a GPU runs as many blocks or more.
inline int blocks_at_once(int threads, size_t shared) {
    const int rounded = (threads + 31) / 32 * 32;
    return std::min({2048 / rounded, std::max(1, 256 / rounded), 32, SHARED_SIZE / ((int)shared + 1024)});
}

inline cudaError_t launch_checked(Launch launch, Stream *stream) {
    dim3 grid = launch.grid, block = launch.block;
    size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    bool grid_fits = blocks && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16;
    if (config.major == 0) return result(cudaErrorNoDevice);
    if (!grid_fits || !threads || threads > 1024 || block.z > 64) return result(cudaErrorInvalidConfiguration);
    size_t limit = dynamic_limit.count(launch.entry) ? dynamic_limit[launch.entry] : SHARED_DEFAULT;
    if (launch.shared > limit) return result(cudaErrorInvalidValue);
    if (launch.cluster > config.cluster || grid.x % (unsigned)launch.cluster)
        return result(cudaErrorInvalidClusterSize);
    if (launch.cooperative && blocks > (size_t)(config.multiprocessors * blocks_at_once((int)threads, launch.shared)))
        return result(cudaErrorCooperativeLaunchTooLarge);
    auto kernel = std::make_shared<Launch>(launch);
    return enqueue(
        stream, [kernel] { run_kernel(*kernel); }, kernel);
}

// What cuda2cpp.sed makes of kernel<<<grid, block, shared, stream>>>: a function that takes the kernel's arguments.
template <class... P>
inline auto launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared = 0,
                   Stream *stream = nullptr) {
    return [=](P... arguments) {
        auto body = [=] { kernel(arguments...); };
        launch_checked({(const void *)kernel, name, body, grid, block, shared, false}, stream);
    };
}
// What cuda2cpp.sed makes of cudaLaunchCooperativeKernel(kernel, ...).
template <class... P>
inline cudaError_t launch_cooperative(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, void **arguments,
                                      size_t shared = 0, Stream *stream = nullptr) {
    auto values_of = [=]<size_t... I>(std::index_sequence<I...>) {
        return std::make_tuple(*(std::decay_t<P> *)arguments[I]...);
    };
    auto body = [kernel, values = values_of(std::index_sequence_for<P...>())] { std::apply(kernel, values); };
    return launch_checked({(const void *)kernel, name, body, grid, block, shared, true}, stream);
}
} // namespace emu

// Launches with attributes
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };
union cudaLaunchAttributeValue {
    int cooperative;
    struct {
        unsigned x, y, z;
    } clusterDim;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    emu::Stream *stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
namespace emu {
// What cuda2cpp.sed makes of cudaLaunchKernelEx(&config, kernel, ...).
template <class... P>
inline cudaError_t launch_with(const char *name, const cudaLaunchConfig_t *c, void (*kernel)(P...), Same<P>... values) {
    Launch launch = {(const void *)kernel, name, [=] { kernel(values...); }, c->gridDim, c->blockDim,
                     c->dynamicSmemBytes,  false};
    for (unsigned i = 0; i < c->numAttrs; i++) {
        const cudaLaunchAttributeValue &value = c->attrs[i].val;
        if (c->attrs[i].id == cudaLaunchAttributeCooperative) launch.cooperative = value.cooperative;
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) launch.cluster = (int)value.clusterDim.x;
    }
    return launch_checked(launch, c->stream);
}
} // namespace emu

// ---- The runtime API: memory, device, streams, graphs

using cudaStream_t = emu::Stream *;
using cudaEvent_t = emu::Event *;
using cudaGraph_t = emu::Graph *;
using cudaGraphNode_t = emu::Node *;
using cudaGraphExec_t = emu::Graph *;

// Memory. The emulator's device memory is the host's, but copies are checked as if it were not.
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
namespace emu {
inline auto &allocations = *new std::map<const char *, size_t>; // size by address; never destroyed
inline size_t allocated() {
    size_t sum = 0;
    for (auto &a : allocations) sum += a.second;
    return sum;
}
// Do p[0..size-1] lie in one allocation?
inline bool on_device(const void *p, size_t size) {
    auto next = allocations.upper_bound((const char *)p);
    if (next == allocations.begin()) return false;
    auto &[start, length] = *--next;
    return (const char *)p + size <= start + length;
}
EMU_UNCHECKED inline void copy_bytes(void *to, const void *from, size_t size) { memmove(to, from, size); }
EMU_UNCHECKED inline void set_bytes(void *to, int value, size_t size) { memset(to, value, size); }
} // namespace emu
template <class T>
inline cudaError_t cudaMalloc(T **pointer, size_t size) {
    *pointer = nullptr;
    if (emu::config.major == 0) return emu::result(cudaErrorNoDevice);
    if (size == 0) return cudaSuccess;
    void *memory = size <= emu::config.memory - emu::allocated() ? emu::allocate(size) : nullptr;
    if (!memory) return emu::result(cudaErrorMemoryAllocation);
    *pointer = (T *)memory;
    emu::set_undefined(memory, size);
    emu::allocations[(const char *)memory] = size;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *pointer) {
    if (pointer && !emu::allocations.erase((const char *)pointer)) return emu::result(cudaErrorInvalidValue);
    emu::deallocate(pointer);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (size && (emu::on_device(to, size) != to_device || emu::on_device(from, size) != from_device))
        return emu::result(cudaErrorInvalidValue);
    return emu::enqueue(stream, [=] { emu::copy_bytes(to, from, size); });
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind);
}
inline cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream = nullptr) {
    if (size && !emu::on_device(to, size)) return emu::result(cudaErrorInvalidValue);
    return emu::enqueue(stream, [=] { emu::set_bytes(to, value, size); });
}
inline cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size); }
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = emu::config.memory;
    *available = *total - emu::allocated();
    return cudaSuccess;
}

// The device
#define CUDART_VERSION 13000
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, cooperativeLaunch;
    size_t sharedMemPerBlockOptin;
};
inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = emu::config.major != 0;
    return *count ? cudaSuccess : emu::result(cudaErrorNoDevice);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    if (emu::config.major == 0) return emu::result(cudaErrorNoDevice);
    const emu::Config &config = emu::config;
    *p = {"CUDA on the CPU", config.major, config.minor, config.multiprocessors, 1, emu::SHARED_LIMIT};
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class F>
inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int value) {
    if (value < 0 || value > emu::SHARED_LIMIT) return emu::result(cudaErrorInvalidValue);
    emu::dynamic_limit[(const void *)kernel] = value;
    return cudaSuccess;
}
// The emulated device runs what can be built for its compute capability: 7.5 and up.
struct cudaFuncAttributes {
    int ptxVersion;
};
template <class F>
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *about, F *) {
    about->ptxVersion = emu::config.major * 10 + emu::config.minor;
    return about->ptxVersion < 75 ? emu::result(cudaErrorNoKernelImageForDevice) : cudaSuccess;
}
template <class F>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int threads, size_t shared) {
    return *blocks = emu::blocks_at_once(threads, shared), cudaSuccess;
}

template <class F>
inline cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, F *, const cudaLaunchConfig_t *c) {
    int blocks = emu::config.cluster > 1 ? emu::blocks_at_once((int)c->blockDim.x, c->dynamicSmemBytes) : 0;
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension)
            *clusters = emu::config.multiprocessors * blocks / (int)c->attrs[i].val.clusterDim.x;
    return cudaSuccess;
}

// Streams and events
enum { cudaStreamDefault, cudaEventDisableTiming = 2 };
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) { return *stream = new emu::Stream, cudaSuccess; }
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *to, unsigned, int) { return cudaStreamCreate(to); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() {
    return emu::captures ? emu::result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream && stream->capture ? emu::result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *to, unsigned) { return *to = new emu::Event, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    *event = {stream ? *stream : emu::Stream()};
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
// A stream that waits for an event of a captured stream is captured too.
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    std::shared_ptr<emu::Graph> capture = event->capture;
    if (capture && capture->streams.empty()) capture = nullptr; // that capture has ended
    if (!stream) return capture ? emu::result(cudaErrorStreamCaptureImplicit) : cudaSuccess;
    if (stream->capture && stream->capture != capture) return emu::result(cudaErrorStreamCaptureIsolation);
    if (!capture) return cudaSuccess;
    if (!stream->capture) capture->streams.push_back(stream);
    stream->capture = capture;
    stream->last.insert(event->last.begin(), event->last.end());
    return cudaSuccess;
}

// Graphs
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream->capture) return emu::result(cudaErrorStreamCaptureUnsupported);
    emu::captures++;
    stream->capture = std::make_shared<emu::Graph>(emu::Graph{{}, {stream}});
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    std::shared_ptr<emu::Graph> capture = stream->capture;
    *graph = nullptr;
    if (!capture) return emu::result(cudaErrorInvalidValue);
    if (stream != capture->streams[0]) return emu::result(cudaErrorStreamCaptureUnmatched);
    bool joined = true; // every node that nobody waits for must be one that this stream would wait for
    for (size_t i = 0; i < capture->nodes.size(); i++)
        joined = joined && (!capture->nodes[i].next.empty() || stream->last.count(i));
    emu::captures--;
    for (cudaStream_t captured : capture->streams) captured->capture = nullptr, captured->last.clear();
    capture->streams.clear();
    if (!joined) return emu::result(cudaErrorStreamCaptureUnjoined);
    *graph = new emu::Graph(std::move(*capture));
    return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void *, size_t *count) {
    return *count = graph->nodes.size(), cudaSuccess;
}
inline cudaError_t cudaGraphGetEdges(cudaGraph_t graph, cudaGraphNode_t *from, cudaGraphNode_t *to, void *,
                                     size_t *count) {
    size_t n = 0;
    for (emu::Node &node : graph->nodes)
        for (size_t i : node.next) {
            if (from) from[n] = &node, to[n] = &graph->nodes[i];
            n++;
        }
    return *count = n, cudaSuccess;
}
enum cudaGraphNodeType { cudaGraphNodeTypeKernel, cudaGraphNodeTypeMemcpy };
inline cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType *type) {
    return *type = node->kernel ? cudaGraphNodeTypeKernel : cudaGraphNodeTypeMemcpy, cudaSuccess;
}
inline cudaError_t cudaGraphKernelNodeGetAttribute(cudaGraphNode_t node, int, cudaLaunchAttributeValue *value) {
    return value->cooperative = node->kernel->cooperative, cudaSuccess;
}
// One change of edges is known here: an ordinary one is removed, and added again as a programmatic one.
enum { cudaGraphDependencyTypeProgrammatic = 1, cudaGraphKernelNodePortProgrammatic = 1 };
struct cudaGraphEdgeData {
    unsigned char from_port, to_port, type, reserved[5];
};
inline cudaError_t cudaGraphRemoveDependencies(cudaGraph_t, cudaGraphNode_t *, cudaGraphNode_t *, void *, size_t) {
    return cudaSuccess;
}
inline cudaError_t cudaGraphAddDependencies(cudaGraph_t, cudaGraphNode_t *from, cudaGraphNode_t *to,
                                            const cudaGraphEdgeData *edge, size_t) {
    if (!(*from)->kernel || !(*to)->kernel || edge->from_port != edge->type) return emu::result(cudaErrorInvalidValue);
    return (*to)->kernel->early = edge->type, cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long = 0) {
    return *executable = new emu::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (stream && stream->capture) return emu::result(cudaErrorStreamCaptureUnsupported);
    return emu::enqueue(stream, [=] { emu::run_graph(*executable); });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
