// Counts what a GPU would have to do for the kernels that run under cuda_emu.h: how they use memory, shared memory,
// tensor cores and barriers, and how deep a graph is. A speed is nowhere in it; dev/tools/cost.awk makes one of it.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before every load and store. This file is linked
// in place of ThreadSanitizer's library and answers those calls (cuda_emu_hooks.h). ldmatrix, cp.async, mma.sync and
// exchange_load() report what they do by themselves.
//
// How lanes are matched. A GPU's warp makes one request of what its 32 lanes want at one instruction. Here each lane is
// a fiber that runs until it has to wait, so the lanes of a request come one after the other. The k-th load of a lane
// by an instruction since the warp was last together belongs to the same request as the k-th of each other lane. An
// instruction is a place in the compiled code, or, for those that report themselves, a line of the .cu. A warp is
// together where all of its lanes that have not exited wait for each other: at __syncthreads(), grid.sync(), and
// __syncwarp(), shuffles, votes, ldmatrix, mma.sync with all lanes. Then its requests are complete, and are counted.
//
// What is exact: everything, where the lanes of a warp run the same instructions between two such places, or leave some
// out together, or some lanes come to an instruction never.
// What is estimated:
//   lanes that skip an instruction in one round of a loop and not in the next move up into an earlier request
//   how wide a load is: as wide as the source states it (float4: 16 bytes, one request). The kernels are compiled with
//     -O2 but without what splits or joins accesses (-fno-tree-sra, -fno-store-merging, -fno-tree-vectorize). GCC does
//     that; clang splits float4. Where nvcc joins adjacent narrow accesses, there are fewer requests than counted here
//   a value that the source loads twice: the compiler here and nvcc may differ in keeping it
//   what a block loads while it waits for another block: how often it looks depends on the order of the fibers
//   bank conflicts between two __shared__ variables in one request: here each begins at a multiple of 256 bytes
// Not in it: copies in the L1 cache (every sector of a request counts as one from L2), kernel parameters, local
// variables (registers, it is hoped), copies and memsets of a graph. An atomic counts as a store of 4 bytes.
//
// What is printed at the end, to CUDA_EMU_COUNTS=FILE or else to stdout: lines of words, a number or a name each.
//   graph       nodes of a graph's launch, nodes on its longest path, and how many of these are behind programmatic
//               edges; of several longest paths, the one with most of them
//   kernel      a kernel in a grid of one size with the same number of products, in order of the first launch: how
//               often launched, and how often on a longest path of a graph; blocks, threads a block, bytes of dynamic
//               shared memory; then, of all launches together,
//     loads, stores of global memory: requests, sectors of 32 bytes, the fewest sectors that hold as many bytes, and
//               sectors that are new in their launch: what DRAM brings (if not written in the same launch) and takes
//     shared    requests, and wavefronts: passes over 32 banks of 4 bytes, by all 32 lanes at once, or by 16 for
//               accesses of 8 bytes, or by 8 for 16 bytes and ldmatrix; and the fewest that these bytes need
//     products  mma.sync of 16 x 8 x 16, a warp each; barriers: of blocks, warps, clusters and grids
//   conflict    a line of the .cu, of this kernel: its wavefronts and the fewest, where they differ; the worst 5
// Kernels that run outside of graphs are left out if there are graphs.
#include "emu/cuda_emu_hooks.h"
#include <inttypes.h>
#include <unordered_map>

namespace {
constexpr int LOADS = 0, STORES = 4, SHARED = 8, WORK = 11, COLUMNS = WORK + WORKS; // where columns begin
struct Wavefronts {
    uint64_t used, least;
};
struct Kernel { // launches of a kernel that are alike
    const void *entry;
    dim3 grid, block;
    size_t dynamic;
    bool in_graph;
    uint64_t launches, on_path, sums[COLUMNS];
    std::map<uint32_t, Wavefronts> lines; // by place
};
struct Request {
    uint32_t lanes, size;
    uint32_t at[32]; // by lane: the address, as an offset in memory
};
struct Instruction { // what a warp has asked for by it since it was last together
    uint32_t where;
    bool store, shared, used;
    std::vector<Request> requests;
    uint32_t next[32]; // by lane: the number of its next request
};
struct Pending { // of a warp
    std::unordered_map<uint64_t, Instruction> instructions;
    std::vector<Instruction *> used;
};
struct Path {
    uint32_t nodes, early; // and how many of these are behind programmatic edges
    auto operator<=>(const Path &) const = default;
};
struct Node { // of the graph's launch that is under way
    std::vector<bool> past;
    Path path;       // the longest that ends with it
    uint32_t behind; // nodes on the longest that begins with it
    int kernel;      // its number in `kernels`, or -1
};
std::vector<Kernel> kernels;
Kernel now;                   // the launch that is under way
bool launched, in_graph;      // there is one; a graph is under way
uint32_t launches;            // so far
std::vector<Pending> pending; // by the warp's number in the gang
std::map<size_t, Node> nodes; // by number
size_t node;                  // the one under way
size_t graph_nodes;
Path graph_path;
uint32_t *const touched[2] = {(uint32_t *)reserve(MEMORY / 32 * 4), (uint32_t *)reserve(MEMORY / 32 * 4)}; // by sector:
// the launch that last loaded, and the one that last stored

void add(Wavefronts &sum, const Wavefronts &w) { sum = {sum.used + w.used, sum.least + w.least}; }

// The numbers first..last-1 sorted, each once. Returns the end.
uint32_t *sorted(uint32_t *first, uint32_t *last) {
    if (!std::is_sorted(first, last)) std::sort(first, last);
    return std::unique(first, last);
}

void count_global(const Request &r, bool store) {
    uint32_t at[32], sectors[64], *end = at, *sector = sectors;
    for (uint32_t m = r.lanes; m; m &= m - 1) *end++ = r.at[__builtin_ctz(m)];
    end = sorted(at, end);
    for (uint32_t *a = at; a < end; a++)
        for (uint32_t s = *a / 32; s <= (*a + r.size - 1) / 32; s++) *sector++ = s;
    uint32_t *last = sorted(sectors, sector);
    uint64_t *sums = now.sums + (store ? STORES : LOADS);
    sums[0]++;
    sums[1] += (uint64_t)(last - sectors);
    sums[2] += ((uint64_t)(end - at) * r.size + 31) / 32;
    for (uint32_t *s = sectors; s < last; s++) {
        sums[3] += touched[store][*s] != launches && (store || touched[1][*s] != launches);
        touched[store][*s] = launches;
    }
}

void count_shared(const Request &r, uint32_t where) {
    const uint32_t lanes = r.size <= 4 ? 32 : r.size <= 8 ? 16 : 8, group = lanes == 32 ? ~0u : (1u << lanes) - 1;
    Wavefronts sum = {0, 0};
    for (uint32_t first = 0; first < 32; first += lanes) {
        uint32_t words[64], *end = words, banks[32] = {};
        for (uint32_t m = r.lanes & group << first; m; m &= m - 1) {
            const uint32_t at = r.at[__builtin_ctz(m)];
            for (uint32_t w = at / 4; w <= (at + r.size - 1) / 4; w++) *end++ = w;
        }
        if (end == words) continue;
        end = sorted(words, end);
        for (uint32_t *w = words; w < end; w++) banks[*w % 32]++;
        sum.used += *std::max_element(banks, banks + 32);
        sum.least += (uint64_t)(end - words + 31) / 32;
    }
    now.sums[SHARED]++;
    now.sums[SHARED + 1] += sum.used;
    now.sums[SHARED + 2] += sum.least;
    add(now.lines[where], sum);
}

Pending &pending_of(const Warp &warp) {
    const size_t number = (size_t)(&warp - gang->warps.data());
    if (number >= pending.size()) pending.resize(gang->warps.size());
    return pending[number];
}

void accessed(const void *p, size_t size, AccessKind kind, uint32_t where) {
    if (!me || !in_memory(p) || kind == ARRIVED_READ || kind == ARRIVED_WRITE) return;
    const bool store = kind & 1, shared = is_shared(offset_of(p));
    Pending &mine = pending_of(*me->warp);
    Instruction &i = mine.instructions[(uint64_t)where << 2 | (uint64_t)store << 1 | shared];
    if (!i.used) {
        i.where = where, i.store = store, i.shared = shared, i.used = true;
        mine.used.push_back(&i);
    }
    for (size_t done = 0; done < size; done += 16) { // 16 bytes at most, but for what the compiler copies as a whole
        const uint32_t k = i.next[me->lane]++;
        if (k == i.requests.size()) i.requests.push_back({});
        i.requests[k].lanes |= 1u << me->lane;
        i.requests[k].at[me->lane] = (uint32_t)(offset_of(p) + done);
        i.requests[k].size = (uint32_t)std::min(size - done, (size_t)16);
    }
}

// The launch under way is over: its counts go to those of the launches like it.
void end_launch() {
    if (!launched) return;
    launched = false;
    auto alike = [](const Kernel &k) {
        return k.entry == now.entry && k.in_graph == now.in_graph && k.dynamic == now.dynamic &&
               !memcmp(&k.grid, &now.grid, sizeof k.grid) && !memcmp(&k.block, &now.block, sizeof k.block) &&
               k.sums[WORK + PRODUCT] == now.sums[WORK + PRODUCT] * k.launches;
    };
    auto at = std::find_if(kernels.begin(), kernels.end(), alike);
    if (now.in_graph) nodes[node].kernel = (int)(at - kernels.begin());
    if (at == kernels.end()) return kernels.push_back(now);
    at->launches++;
    for (int i = 0; i < COLUMNS; i++) at->sums[i] += now.sums[i];
    for (auto &[where, line] : now.lines) add(at->lines[where], line);
}

// The graph's launch is over: which of its kernels were on a longest path?
void end_graph() {
    Path path = {};
    for (auto n = nodes.rbegin(); n != nodes.rend(); n++) { // a node waits for earlier ones only
        path = std::max(path, n->second.path);
        for (size_t i = 0; i < n->second.past.size(); i++)
            if (n->second.past[i]) nodes[i].behind = std::max(nodes[i].behind, n->second.behind + 1);
    }
    for (auto &[number, n] : nodes)
        if (n.kernel >= 0 && n.path.nodes + n.behind - 1 == path.nodes) kernels[(size_t)n.kernel].on_path++;
    if (nodes.size() > graph_nodes) graph_nodes = nodes.size(), graph_path = path;
    nodes.clear();
}

// kernel<bf16,64>, without spaces and arguments
std::string name_of(const void *entry) {
    std::vector<std::string> found = look_up("Cfe", code(entry));
    std::string name = found.empty() ? "?" : found[0].substr(0, found[0].find('('));
    for (const char *cut : {"void ", "__nv_", "loat16", " "})
        for (size_t at; (at = name.find(cut)) != std::string::npos;)
            name.replace(at, strlen(cut), *cut == 'l' ? "16" : "");
    return name;
}

void print_kernel(FILE *file, const Kernel &k) {
    const std::string name = name_of(k.entry);
    fprintf(file, "kernel %-52s %3" PRIu64 " %3" PRIu64 " %6u %4u %6zu", name.c_str(), k.launches, k.on_path,
            k.grid.x * k.grid.y * k.grid.z, k.block.x * k.block.y * k.block.z, k.dynamic);
    for (uint64_t n : k.sums) fprintf(file, " %9" PRIu64, n);
    fprintf(file, "\n");
    std::map<std::string, Wavefronts> lines;
    for (auto &[where, line] : k.lines)
        if (line.used > line.least) add(lines[place(where)], line);
    for (int i = 0; i < 5 && !lines.empty(); i++) {
        auto better = [](auto &a, auto &b) { return a.second.used - a.second.least < b.second.used - b.second.least; };
        auto worst = std::max_element(lines.begin(), lines.end(), better);
        fprintf(file, "conflict %-52s %-32s %9" PRIu64 " %9" PRIu64 "\n", name.c_str(), worst->first.c_str(),
                worst->second.used, worst->second.least);
        lines.erase(worst);
    }
}

struct Report {
    ~Report() {
        end_launch();
        FILE *file = open_named("CUDA_EMU_COUNTS", "w", stdout);
        if (!file) return;
        if (graph_nodes) fprintf(file, "graph %zu %u %u\n", graph_nodes, graph_path.nodes, graph_path.early);
        for (const Kernel &k : kernels)
            if (k.in_graph == (graph_nodes > 0)) print_kernel(file, k);
    }
} report;
} // namespace

void emu::forget_accesses(const void *, size_t) {}
void emu::note_access(const void *p, size_t size, AccessKind kind, Site site) {
    accessed(p, size, kind, number_of(site));
}
void emu::note_end(const void *, size_t) {}
void emu::note_fence() {}
void emu::note_atomic(const void *p) { accessed(p, 4, WRITE, code(__builtin_return_address(0))); }
void emu::note_launch(const Launch &launch, uint32_t) {
    end_launch();
    launched = true;
    launches++;
    if (in_graph) nodes[node].path.early += launch.early;
    now = {launch.entry, launch.grid, launch.block, launch.shared, in_graph, 1, 0, {}, {}};
}
void emu::note_node(const std::vector<bool> *past) {
    end_launch();
    in_graph = past;
    if (!past) return end_graph();
    node = past->size();
    Node &n = nodes[node] = {*past, {1, 0}, 1, -1};
    for (size_t i = 0; i < past->size(); i++)
        if ((*past)[i]) n.path = std::max(n.path, {nodes[i].path.nodes + 1, nodes[i].path.early});
}
void emu::note_together(const Warp &warp) {
    Pending &mine = pending_of(warp);
    for (Instruction *i : mine.used) {
        for (size_t k = 0; k < i->requests.size() && i->requests[k].lanes; k++) {
            Request &r = i->requests[k];
            if (i->shared)
                count_shared(r, i->where);
            else
                count_global(r, i->store);
            r.lanes = 0;
        }
        i->used = false;
        memset(i->next, 0, sizeof i->next);
    }
    mine.used.clear();
}
void emu::note_work(Work work) { now.sums[WORK + work]++; }
