// Random numbers that depend on nothing but a key and a position: Philox4x32-10, and what is made of its words.
//
// Promises. The same words, masks, permutations, uniform and normal numbers on every CPU, GPU, compiler and thread
// count. The words are integers, so that is easy; the normals take log, sine and cosine, which differ between libraries
// and would differ between compilers that fuse products and sums. So these are written here, in double, with every
// product that meets a sum an explicit fma() (or exact), which leaves a compiler nothing to choose.
//
// Left out: secrecy (Philox is no cipher), and normals on the GPU (initial weights are made by the host).
// Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
// C11, C++17 and CUDA.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__FAST_MATH__) || (defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 2)
#error "philox.h: -ffast-math or x87 arithmetic would give other initial weights than every other machine has"
#endif

#ifdef __CUDACC__
#define PHILOX_FN static inline __host__ __device__
#else
#define PHILOX_FN static inline
#endif

typedef struct {
    uint32_t x[4];
} Philox4;

typedef struct {
    uint32_t k[2];
} PhiloxKey;

// What a stream is for: no two purposes of one seed share a key.
enum { PHILOX_INIT = 1, PHILOX_DROPOUT = 2, PHILOX_WINDOWS = 3, PHILOX_TRANSPOSE = 8, PHILOX_BENCH = 7 }; // trainers
enum { PHILOX_SAMPLE = 4, PHILOX_COMPOSE = 5, PHILOX_SPLIT = 6 };

// Four words for the counter (c0, c1, c2, c3). Each of the ten rounds has two 32 x 32 -> 64 bit products (Salmon et
// al., section 3.3).
PHILOX_FN Philox4 philox(PhiloxKey key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = key.k[0], k1 = key.k[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; // golden ratio
        k1 += 0xBB67AE85u; // sqrt(3) - 1
    }
    const Philox4 out = {{c0, c1, c2, c3}};
    return out;
}

// The key of stream `index` (a tensor, a dropout site, an epoch, a song) of a purpose.
PHILOX_FN PhiloxKey philox_key(uint64_t seed, uint32_t purpose, uint32_t index) {
    const PhiloxKey seeded = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
    const Philox4 words = philox(seeded, purpose, index, 0, 0);
    const PhiloxKey key = {{words.x[0], words.x[1]}};
    return key;
}

// out[4n]: the words of philox(key, i, c1, c2, c3), i = 0..n-1, one after the other. Compilers turn this loop into
// vectors, but not a loop over philox(): here each counter word lives in 64 bits, as vector units multiply.
static inline void philox_row(PhiloxKey key, int n, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *out) {
    for (int i = 0; i < n; i++) {
        uint64_t x0 = (uint64_t)i, x1 = c1, x2 = c2, x3 = c3; // only the low halves matter
        uint32_t k0 = key.k[0], k1 = key.k[1];
        for (int round = 0; round < 10; round++) {
            uint64_t a = 0xD2511F53u * (x0 & 0xFFFFFFFFu), b = 0xCD9E8D57u * (x2 & 0xFFFFFFFFu);
            x0 = (b >> 32) ^ x1 ^ k0;
            x1 = b;
            x2 = (a >> 32) ^ x3 ^ k1;
            x3 = a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        out[4 * i] = (uint32_t)x0;
        out[4 * i + 1] = (uint32_t)x1;
        out[4 * i + 2] = (uint32_t)x2;
        out[4 * i + 3] = (uint32_t)x3;
    }
}

// 53 bits of two words as a double in [0, 1).
PHILOX_FN double philox_uniform(uint32_t high, uint32_t low) {
    return (double)(((uint64_t)high << 32 | low) >> 11) * (1.0 / 9007199254740992.0);
}

// Where i goes in a random order of 0..n-1 (0 <= i < n): a bijection that needs no shuffled array. A Feistel network
// permutes the 2h-bit numbers, 4^h >= n, and what falls outside 0..n-1 is permuted again until it falls inside ("cycle
// walking": J. Black, P. Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002). On average fewer than four walks
// of eight rounds.
PHILOX_FN uint64_t philox_permute(PhiloxKey key, uint64_t n, uint64_t i) {
    if (n < 2) return 0;
    int h = 1;
    while (h < 32 && (n - 1) >> 2 * h) h++;
    uint32_t mask = (uint32_t)(((uint64_t)1 << h) - 1);
    do {
        uint32_t left = (uint32_t)(i >> h), right = (uint32_t)i & mask;
        for (uint32_t round = 0; round < 8; round++) {
            uint32_t mixed = (left ^ philox(key, right, round, 0, 0).x[0]) & mask;
            left = right;
            right = mixed;
        }
        i = (uint64_t)left << h | right;
    } while (i >= n);
    return i;
}

// Natural logarithm of a finite x > 0, to about one unit in the last place. With x = 2^e m, m in [sqrt(1/2), sqrt(2)),
// and s = (m - 1) / (m + 1): log x = e log 2 + 2 (s + s^3/3 + s^5/5 + ...). Host only.
static inline double philox_log(double x) {
    static const double odd[] = {1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                 1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
    const double log2_high = 0x1.62e42fefa3800p-1, log2_low = 0x1.ef35793c76730p-45;
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.70710678118654752) {
        m = ldexp(m, 1);
        exponent--;
    }
    double e = exponent, s = (m - 1) / (m + 1), z = s * s, sum = odd[0];
    for (int i = 1; i < 11; i++) sum = fma(sum, z, odd[i]);
    double twice = s + s, low = fma(twice * z, sum, e * log2_low);
    return fma(e, log2_high, twice) + low;
}

// Sine and cosine of 2 pi turns, |turns| < 2^28, to about 2e-16: the turn is reduced to at most an eighth, exactly, and
// the rest is Taylor's series. Host only.
static inline void philox_sincos2pi(double turns, double *sine, double *cosine) {
    static const double sines[] = {1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
                                   1.0 / 362880,          -1.0 / 5040,          1.0 / 120,        -1.0 / 6};
    static const double cosines[] = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
                                     1.0 / 40320,          -1.0 / 720,         1.0 / 24,        -1.0 / 2};
    double quarters = rint(turns * 4), x = fma(quarters, -0.25, turns) * 6.283185307179586477, z = x * x;
    double s = sines[0], c = cosines[0];
    for (int i = 1; i < 8; i++) s = fma(s, z, sines[i]);
    for (int i = 1; i < 8; i++) c = fma(c, z, cosines[i]);
    s = fma(x * z, s, x);
    c = fma(z, c, 1);
    switch ((int)quarters & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}

// Element i of a stream of N(0, 1), by Box and Muller: counter i / 2 gives a pair, by its cosine and its sine. At most
// 8.6 in size. Host only.
static inline double philox_normal(PhiloxKey key, uint64_t i) {
    Philox4 words = philox(key, (uint32_t)(i >> 1), (uint32_t)(i >> 33), 0, 0);
    double above_zero = 1 - philox_uniform(words.x[0], words.x[1]), sine, cosine; // (0, 1], exact
    philox_sincos2pi(philox_uniform(words.x[2], words.x[3]), &sine, &cosine);
    // Not a plain product, which a compiler may fuse with a sum of the caller's.
    return fma(sqrt(-2 * philox_log(above_zero)), i & 1 ? sine : cosine, 0);
}
