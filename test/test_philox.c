// dev/base/philox.h: published vectors, rows, permutations, log and sine against the system's, the normal distribution,
// and the exact bits of what every machine must agree on.
#include "base/philox.h"

#include "check.h"

#include <stdlib.h>
#include <string.h>

static PhiloxKey key_of(uint32_t k0, uint32_t k1) {
    PhiloxKey key = {{k0, k1}};
    return key;
}

// The known answers that come with Random123, for Philox4x32-10: counter, key, words.
static void test_vectors(void) {
    static const uint32_t vectors[3][10] = {{0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                            {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                                             0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                            {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
                                             0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        const uint32_t *v = vectors[i];
        Philox4 words = philox(key_of(v[4], v[5]), v[0], v[1], v[2], v[3]);
        CHECK(!memcmp(words.x, v + 6, sizeof words.x), "vector %d gave %08x %08x %08x %08x", i, words.x[0], words.x[1],
              words.x[2], words.x[3]);
    }
    PhiloxKey key = philox_key(0x299f31d0a4093822, PHILOX_DROPOUT, 7);
    Philox4 words = philox(key_of(0xa4093822, 0x299f31d0), PHILOX_DROPOUT, 7, 0, 0);
    CHECK(key.k[0] == words.x[0] && key.k[1] == words.x[1], "a key is the first two words of (purpose, index, 0, 0)");
}

static void test_row(void) {
    enum { MOST = 70 };
    uint32_t row[4 * MOST + 4];
    PhiloxKey key = philox_key(3, PHILOX_DROPOUT, 1);
    int wrong = 0;
    for (int n = 0; n <= MOST; n++) {
        memset(row, 0xAB, sizeof row);
        philox_row(key, n, 0xfffffff0u + (uint32_t)n, 5, 0x80000000u, row);
        for (int i = 0; i < n; i++) {
            Philox4 words = philox(key, (uint32_t)i, 0xfffffff0u + (uint32_t)n, 5, 0x80000000u);
            wrong += !!memcmp(words.x, row + 4 * i, sizeof words.x);
        }
        for (int i = 0; i < 4; i++) wrong += row[4 * n + i] != 0xABABABABu;
    }
    CHECK(wrong == 0, "rows differ from philox() in %d places", wrong);
}

static void test_permutation(void) {
    static const uint64_t large[] = {4095, 4096, 4097, 65536, 65537, 262145, 639257};
    enum { SMALL = 2000, LARGE = sizeof large / sizeof *large };
    unsigned char *seen = (unsigned char *)malloc(639257);
    int not_bijective = 0;
    for (int k = 0; k < SMALL + LARGE; k++) {
        uint64_t n = k < SMALL ? (uint64_t)k + 1 : large[k - SMALL], hit = 0;
        PhiloxKey key = philox_key(11, PHILOX_WINDOWS, (uint32_t)k);
        memset(seen, 0, n);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = philox_permute(key, n, i);
            if (to < n && !seen[to]) {
                seen[to] = 1;
                hit++;
            }
        }
        not_bijective += hit != n;
    }
    free(seen);
    CHECK(not_bijective == 0, "%d of the permutations are not bijections", not_bijective);

    // Sizes that no table can hold: inside the range, and no value twice among the first ones.
    static const uint64_t huge[] = {((uint64_t)1 << 32) + 1, (uint64_t)1 << 62, ((uint64_t)1 << 63) - 1, UINT64_MAX};
    for (int k = 0; k < 4; k++) {
        enum { SOME = 1000 };
        static uint64_t to[SOME];
        int wrong = 0;
        for (int i = 0; i < SOME; i++) {
            to[i] = philox_permute(key_of(1, 2), huge[k], (uint64_t)i);
            wrong += to[i] >= huge[k];
            for (int j = 0; j < i; j++) wrong += to[i] == to[j];
        }
        CHECK(wrong == 0, "the order of %llu values repeats or leaves its range %d times", (unsigned long long)huge[k],
              wrong);
    }
}

// Over keys, all 24 orders of 4 values must be equally likely, and so all 240 pairs that two of 16 values go to. Of the
// chi-squares with 23 and 239 degrees of freedom these bounds cut off less than one in 10^5.
static void test_permutation_is_fair(void) {
    enum { TRIES = 24000 };
    int orders[256] = {0}, pairs[256] = {0}, kinds = 0;
    for (int t = 0; t < TRIES; t++) {
        PhiloxKey key = philox_key(5, PHILOX_SPLIT, (uint32_t)t);
        int code = 0;
        for (uint64_t i = 0; i < 4; i++) code = code * 4 + (int)philox_permute(key, 4, i);
        orders[code]++;
        pairs[philox_permute(key, 16, 0) * 16 + philox_permute(key, 16, 1)]++;
    }
    double of_orders = 0, of_pairs = 0;
    for (int i = 0; i < 256; i++) {
        double a = orders[i] - TRIES / 24.0, b = pairs[i] - TRIES / 240.0;
        kinds += orders[i] > 0;
        if (orders[i]) of_orders += a * a / (TRIES / 24.0);
        if (i / 16 != i % 16) of_pairs += b * b / (TRIES / 240.0);
    }
    CHECK(kinds == 24, "%d of 24 orders occur", kinds);
    CHECK(of_orders > 3 && of_orders < 62, "chi-square of the orders is %.1f, expected 23", of_orders);
    CHECK(of_pairs > 150 && of_pairs < 343, "chi-square of the pairs is %.1f, expected 239", of_pairs);
}

static void test_functions(void) {
    double worst_log = 0, worst_small = 0, worst_sine = 0, worst_one = 0;
    PhiloxKey key = key_of(9, 9);
    for (uint32_t i = 0; i < 200000; i++) {
        Philox4 words = philox(key, i, 0, 0, 0);
        double u = philox_uniform(words.x[0], words.x[1]);
        double x = ldexp(1 - u, -(int)(i % 60)); // (0, 1] and far below
        double error = fabs((double)((long double)philox_log(x) - logl((long double)x)));
        double size = fabs((double)logl((long double)x));
        if (size > 0 && error / size > worst_log) worst_log = error / size;
        double near_one = 1 + (u - 0.5) / 1024, near_log = (double)logl((long double)near_one);
        error = fabs((double)((long double)philox_log(near_one) - logl((long double)near_one)));
        if (near_log != 0 && error / fabs(near_log) > worst_small) worst_small = error / fabs(near_log);

        double turns = i % 3 ? u : (u - 0.5) * 1000, sine, cosine;
        philox_sincos2pi(turns, &sine, &cosine);
        long double angle = 6.283185307179586476925286766559L * ((long double)turns - rintl((long double)turns));
        double off = fabs((double)((long double)sine - sinl(angle))),
               off2 = fabs((double)((long double)cosine - cosl(angle)));
        if (off > worst_sine) worst_sine = off;
        if (off2 > worst_sine) worst_sine = off2;
        double one = fabs(sine * sine + cosine * cosine - 1);
        if (one > worst_one) worst_one = one;
    }
    printf("philox: worst log %.2g relative (%.2g near 1), worst sine or cosine %.2g\n", worst_log, worst_small,
           worst_sine);
    CHECK(worst_log < 8e-16, "log is off by %g relative", worst_log);
    CHECK(worst_small < 8e-16, "log near 1 is off by %g relative", worst_small);
    CHECK(worst_sine < 6e-16, "sine or cosine is off by %g", worst_sine);
    CHECK(worst_one < 1e-15, "sine^2 + cosine^2 is off by %g", worst_one);
    CHECK(philox_log(1) == 0, "log 1 is %g", philox_log(1));
    double s, c;
    philox_sincos2pi(0.25, &s, &c);
    CHECK(s == 1 && c == 0, "a quarter turn gives %g, %g", s, c);
    philox_sincos2pi(-1.5, &s, &c);
    CHECK(s == 0 && c == -1, "minus one and a half turns give %g, %g", s, c);
    CHECK(philox_uniform(0, 0) == 0 && philox_uniform(0xffffffffu, 0xffffffffu) == 1 - 1.0 / 9007199254740992.0,
          "uniform numbers run from 0 to 1 - 2^-53");
}

// Sample moments of 10^6 values against N(0, 1), each within 5 standard errors.
static void test_normal(void) {
    enum { N = 1000000 };
    double sum = 0, square = 0, cube = 0, fourth = 0, neighbours = 0, before = 0, largest = 0;
    int beyond_two = 0;
    PhiloxKey key = philox_key(1, PHILOX_INIT, 0);
    for (uint64_t i = 0; i < N; i++) {
        double x = philox_normal(key, i), x2 = x * x;
        sum += x;
        square += x2;
        cube += x2 * x;
        fourth += x2 * x2;
        neighbours += x * before;
        before = x;
        beyond_two += fabs(x) > 2;
        raise_to(&largest, fabs(x));
    }
    double error = 1 / sqrt((double)N), tail = 0.0455002638963584;
    CHECK(fabs(sum / N) < 5 * error, "mean %g", sum / N);
    CHECK(fabs(square / N - 1) < 5 * sqrt(2.0) * error, "variance %g", square / N);
    CHECK(fabs(cube / N) < 5 * sqrt(15.0) * error, "third moment %g", cube / N);
    CHECK(fabs(fourth / N - 3) < 5 * sqrt(96.0) * error, "fourth moment %g", fourth / N);
    CHECK(fabs(neighbours / N) < 5 * error, "neighbours correlate by %g", neighbours / N);
    CHECK(fabs((double)beyond_two / N - tail) < 5 * sqrt(tail) * error, "a part of %g lies beyond 2",
          (double)beyond_two / N);
    CHECK(largest > 4 && largest < 8.6, "the largest is %g", largest);
}

// The bits that initial weights, masks and orders hang on: a hash (FNV-1a) of each kind, the same on every machine.
static uint64_t hash(uint64_t h, uint64_t value) {
    for (int i = 0; i < 8; i++) h = (h ^ (value >> 8 * i & 255)) * 0x100000001b3u;
    return h;
}

static void test_bits(void) {
    uint64_t normals = 0xcbf29ce484222325u, orders = normals, bits;
    PhiloxKey key = philox_key(12345678901234567890u, PHILOX_INIT, 3);
    for (uint64_t i = 0; i < 100000; i++) {
        double x = philox_normal(key, i);
        memcpy(&bits, &x, sizeof bits);
        normals = hash(normals, bits);
        orders = hash(orders, philox_permute(key, 100000, i));
    }
    CHECK(normals == 0x9a01b1f2ca7e6060u, "the normals' bits hash to %016llx", (unsigned long long)normals);
    CHECK(orders == 0xf43388a24fb3f909u, "the permutation hashes to %016llx", (unsigned long long)orders);
}

int main(void) {
    test_vectors();
    test_row();
    test_permutation();
    test_permutation_is_fair();
    test_functions();
    test_normal();
    test_bits();
    return check_report("philox");
}
