// The compiler's own vectors (gcc and clang) of `real`, which is float unless REAL says double: 64 bytes with AVX-512,
// 32 with AVX, 16 with NEON or SSE; the same source compiles to each, chosen by -march. It has loads and stores at any
// address, masks, sums over lanes, bf16, and the functions that a language model needs: e^x, logistic and tanh.
//
// It promises the same result for the same number in every lane, NaN out for NaN in, and correct infinities; in double
// the functions are the C library's. It leaves out arguments for which the models have no use: e^x is for x <= 0.
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
enum { LANES = VECTOR_BYTES / (int)sizeof(real) };
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias)); // at any address
typedef __typeof__((vector){0} < (vector){0}) vector_mask; // integers of the same width, all ones where true

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

static const vector zero = {0};

ALWAYS_INLINE vector load(const real *p) { return *(const vector *)p; }
ALWAYS_INLINE void store(real *p, vector v) { *(vector *)p = v; }

// The same of the first n numbers at p only; n <= 0: zeros, and nothing is stored.
ALWAYS_INLINE vector load_part(const real *p, int n) {
    if (n >= LANES) return load(p);
    vector v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
}

ALWAYS_INLINE void store_part(real *p, vector v, int n) {
    if (n >= LANES) {
        store(p, v);
    } else {
        for (int i = 0; i < n; i++) p[i] = v[i];
    }
}

ALWAYS_INLINE vector all_lanes(real x) { return (vector){0} + x; } // x in each

ALWAYS_INLINE vector keep_where(vector_mask where, vector v) { return (vector)((vector_mask)v & where); }

ALWAYS_INLINE vector select_vector(vector_mask where, vector yes, vector no) {
    return (vector)(((vector_mask)yes & where) | ((vector_mask)no & ~where));
}

ALWAYS_INLINE real sum_lanes(vector v) { // always in this order
    real sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

// Of each lane the larger one, b where a is no number.
ALWAYS_INLINE vector larger(vector a, vector b) { return select_vector(a > b, a, b); }

ALWAYS_INLINE real largest_lane(vector v) { // by parts of 16 bytes, as one lane after the other takes much longer
    typedef real part __attribute__((vector_size(16)));
    typedef __typeof__((part){0} < (part){0}) part_mask;
    enum { PART = 16 / (int)sizeof(real) };
    part parts[LANES / PART];
    memcpy(parts, &v, sizeof v);
    part top = parts[0];
    for (int i = 1; i < LANES / PART; i++) {
        const part_mask where = parts[i] > top;
        top = (part)(((part_mask)parts[i] & where) | ((part_mask)top & ~where));
    }
    real most = top[0];
    for (int k = 1; k < PART; k++) most = top[k] > most ? top[k] : most;
    return most;
}

ALWAYS_INLINE vector abs_vector(vector x) { return select_vector(x < 0, -x, x); }

// e^x for x <= 0, within 2 units in the last place in float; e^-inf = 0. x = n ln 2 + f with |f| <= ln(2)/2: a
// polynomial in f (Taylor to f^7, its remainder below 2^-27), times 2^n.
ALWAYS_INLINE vector exp_vector(vector x) {
    if (sizeof(real) == sizeof(double)) {
        for (int i = 0; i < LANES; i++) x[i] = (real)exp((double)x[i]);
        return x;
    }
    typedef uint32_t bits __attribute__((vector_size(VECTOR_BYTES))); // of floats
    const real round = (real)12582912; // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    vector_mask tiny = x < (real)-87;  // flushed to 0
    vector n = x * (real)1.44269504088896341 + round;
    vector power = (vector)(((bits)n - (bits)all_lanes(round - 127)) << 23); // 2^n
    n -= round;
    vector f = x - n * (real)0.693145751953125 - n * (real)1.42860682030941723e-6; // ln 2 in two parts, the first exact
    vector p = f * (real)(1.0 / 5040) + (real)(1.0 / 720);
    p = p * f + (real)(1.0 / 120);
    p = p * f + (real)(1.0 / 24);
    p = p * f + (real)(1.0 / 6);
    p = p * f + (real)0.5;
    p = p * f + 1;
    p = p * f + 1;
    return keep_where(~tiny, p * power);
}

// 1 / (1 + e^-x), by e^-|x|, so that nothing overflows.
ALWAYS_INLINE vector sigmoid_vector(vector x) {
    vector e = exp_vector(-abs_vector(x));
    return select_vector(x < 0, e, select_vector(x == x, all_lanes(1), x)) / (e + 1);
}

// tanh x = (1 - e^-2|x|) / (1 + e^-2|x|) with the sign of x; near 0, where that loses digits, by its series
// x - x^3/3 + 2x^5/15 - ..., whose remainder for |x| < 1/4 is below 2^-27 of x.
ALWAYS_INLINE vector tanh_vector(vector x) {
    if (sizeof(real) == sizeof(double)) {
        for (int i = 0; i < LANES; i++) x[i] = (real)tanh((double)x[i]);
        return x;
    }
    vector size = abs_vector(x), square = x * x, e = exp_vector(-2 * size), far = (1 - e) / (1 + e);
    vector p = square * (real)(-1382.0 / 155925) + (real)(62.0 / 2835);
    p = p * square - (real)(17.0 / 315);
    p = p * square + (real)(2.0 / 15);
    p = p * square - (real)(1.0 / 3);
    vector near = x + x * square * p;
    return select_vector(size < (real)0.25, near, select_vector(x < 0, -far, far));
}

// ---- bf16: the upper half of a float, 8 bits of precision (only where `real` is float)
//
// Products take them in pairs: two that follow each other lie in one word, the first in its lower half.

typedef uint32_t word __attribute__((may_alias)); // they lie in memory that is otherwise of reals
typedef word words __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

// Each number rounded to the nearest, ties to even, in the lower half of its word; a NaN stays one.
ALWAYS_INLINE words bf16_round(vector x) {
#ifdef __AVX512BF16__
    return (words)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    words bits = (words)x, rounded = bits + 0x7FFF + (bits >> 16 & 1), nan = (words)((bits & 0x7FFFFFFF) > 0x7F800000);
    return ((rounded & ~nan) | ((bits | 0x400000) & nan)) >> 16;
#endif
}

// out[j] = the pair of x[2j] and x[2j + 1], of n numbers, a last odd one with 0; out has room for whole vectors
static inline void bf16_pack(word *out, const real *x, int n) {
    typedef word half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));
    for (int j = 0; j < n; j += LANES) {
#ifdef __AVX512BF16__
        *(half *)(out + j / 2) = (half)_mm512_cvtneps_pbh((__m512)load_part(x + j, n - j));
#else
        typedef uint64_t longs __attribute__((vector_size(VECTOR_BYTES), may_alias));
        longs pairs = (longs)bf16_round(load_part(x + j, n - j));
        *(half *)(out + j / 2) = __builtin_convertvector(pairs | pairs >> 16, half);
#endif
    }
}

// sums + a b, of the two products of each word. Where the processor cannot, the same in two multiply-adds.
ALWAYS_INLINE vector bf16_dot(vector sums, words a, words b) {
#ifdef __AVX512BF16__
    return (vector)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    sums += (vector)(a & 0xFFFF0000) * (vector)(b & 0xFFFF0000);
    return sums + (vector)(a << 16) * (vector)(b << 16);
#endif
}
