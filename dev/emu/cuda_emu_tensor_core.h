// What the instructions of cuda/tensor_core.cuh do, in C++. That file says which lane holds what; source: PTX ISA.
#pragma once

#include "emu/cuda_emu_api.h"

// The last lane of the warp to arrive gathers A, B and D from all lanes, multiplies and gives each lane its sums.
inline void mma_bf16(float *d, const uint32_t *a, const uint32_t *b, EMU_SITE) {
    struct Registers {
        float *d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    auto multiply = [](emu::Warp &warp, unsigned lanes) {
        if (lanes != ~0u) emu::die(warp.lanes[__builtin_ctz(lanes)].site, "mma.sync needs all 32 lanes of the warp");
        float A[16][16], B[16][8], D[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Registers &r = emu::offer_of<Registers>(warp, lane);
            int g = lane / 4, q = lane % 4;
            for (int i = 0; i < 4; i++)
                for (int half = 0; half < 2; half++)
                    A[g + i % 2 * 8][2 * q + i / 2 * 8 + half] = __uint_as_float(r.a[i] >> 16 * half << 16);
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++)
                    B[2 * q + i * 8 + half][g] = __uint_as_float(r.b[i] >> 16 * half << 16);
            for (int i = 0; i < 4; i++) D[g + i / 2 * 8][2 * q + i % 2] = r.d[i];
        }
        for (int m = 0; m < 16; m++)
            for (int k = 0; k < 16; k++)
                for (int n = 0; n < 8; n++) D[m][n] += A[m][k] * B[k][n];
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                emu::offer_of<Registers>(warp, lane).d[i] = D[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
        emu::note_work(emu::PRODUCT);
    };
    emu::warp_operation(~0u, &mine, multiply, site);
}

// Each lane reads a row; the last lane of the warp to arrive deals out the elements.
template <bool TRANSPOSED = false>
inline void ldmatrix(uint32_t *r, const void *row, EMU_SITE) {
    struct Rows {
        uint16_t row[8];
        uint32_t *r;
    } mine = {{}, r};
    if ((uintptr_t)row % 16) emu::die(site, "ldmatrix: a row's address is no multiple of 16");
    emu::note_access(row, 16, emu::READ, site);
    emu::copy_bytes(mine.row, row, 16);
    auto distribute = [](emu::Warp &warp, unsigned lanes) {
        if (lanes != ~0u) emu::die(warp.lanes[__builtin_ctz(lanes)].site, "ldmatrix needs all 32 lanes of the warp");
        auto element = [&](int i, int j, int k) { return (uint32_t)emu::offer_of<Rows>(warp, 8 * i + j).row[k]; };
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0, g = lane / 4, q = lane % 4; i < 4; i++)
                emu::offer_of<Rows>(warp, lane).r[i] = TRANSPOSED
                                                           ? element(i, 2 * q, g) | element(i, 2 * q + 1, g) << 16
                                                           : element(i, g, 2 * q) | element(i, g, 2 * q + 1) << 16;
    };
    emu::warp_operation(~0u, &mine, distribute, site);
}

// A GPU copies at some time between the request and the wait. A missing wait shows where the copy is late, as in order
// fwd; a buffer that is reused too soon shows where it is early, as in order rev. In order rand it is either.
namespace emu {
EMU_UNCHECKED inline void copy_now(AsyncCopy &copy) {
    if (copy.done) return;
    memcpy(copy.to, copy.from, (size_t)copy.given);
    memset((char *)copy.to + copy.given, 0, (size_t)(16 - copy.given));
    copy.done = true;
}
} // namespace emu
inline void cp_async(void *shared, const void *global, bool there = true, EMU_SITE) {
    using namespace emu;
    if (((uintptr_t)shared | (uintptr_t)global) % 16) die(site, "cp.async: an address is no multiple of 16");
    const int given = there ? 16 : 0;
    note_access(global, (size_t)given, COPY_READ, site);
    note_access(shared, 16, COPY_WRITE, site);
    me->copies.push_back({shared, global, given, me->copy_group, false});
    bool early = config.order == RANDOM ? next_random(gang->random) >> 40 & 1 : config.order == REVERSE;
    if (early) copy_now(me->copies.back());
}
inline void cp_async_commit() { emu::me->copy_group++; }
template <int LEFT>
inline void cp_async_wait(EMU_SITE) {
    using namespace emu;
    auto copy = me->copies.begin();
    for (; copy < me->copies.end() && copy->group < me->copy_group - LEFT; copy++) {
        copy_now(*copy);
        note_access(copy->from, (size_t)copy->given, ARRIVED_READ, site);
        note_access(copy->to, 16, ARRIVED_WRITE, site);
    }
    me->copies.erase(me->copies.begin(), copy);
}

// The race check does not see these two: readers find out by themselves whether what they want has come. A GPU's store
// reaches readers at some time, each 8 bytes by themselves. In order rand a look finds either half of its 16 bytes as
// it was before the store, until a look has found the new one.
inline uint4 exchange_load(const void *from, bool there, EMU_SITE) {
    uint4 value = {0, 0, 0, 0};
    if (!there) return value;
    emu::note_access(from, sizeof value, emu::EXCHANGE_READ, site);
    emu::copy_bytes(&value, from, sizeof value);
    for (int half = 0; half < 2 && emu::config.order == emu::RANDOM; half++) {
        auto before = emu::gang->unseen.find((const char *)from + 8 * half);
        if (before == emu::gang->unseen.end()) continue;
        if (emu::next_random(emu::gang->random) >> 40 & 1)
            memcpy((char *)&value + 8 * half, &before->second, 8);
        else
            emu::gang->unseen.erase(before);
    }
    return value;
}
inline void exchange_store(void *to, uint2 value, EMU_SITE) {
    emu::note_access(to, sizeof value, emu::EXCHANGE_WRITE, site);
    uint64_t before;
    emu::copy_bytes(&before, to, sizeof before);
    if (emu::config.order == emu::RANDOM) emu::gang->unseen.emplace(to, before);
    emu::copy_bytes(to, &value, sizeof value);
}

inline int keep(int x) { return x; }
inline float exp2_approx(float x) { return x < -126 ? 0 : exp2f(x); }
