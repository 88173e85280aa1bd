// Matrices of weights as a sampler wants them, held in memory as float32, bf16 or int8, and their products with a
// vector of each song of a batch: y_s = bias_s + W x_s.
//
// A token is little work and much reading, because each weight serves one multiplication per song. So the weights lie
// in memory in the order in which they are read (for one song from two places at once) and in few bytes, and a weight
// that was read is multiplied with the vectors of all songs of the batch while it is in a register.
//
//     float32   4 bytes     products and sums in float
//     bf16      2 bytes     the upper half of the nearest float; x is rounded to that, too; products and sums in float
//     int8      1 byte      weight = scale of its row * (-127..127); x = scale of x * (-127..127); their products are
//                           summed as integers, exactly (Dettmers et al., LLM.int8(), 2022, section 2.1)
//
// It promises that a song's result is the same bytes whoever else is in the batch, because each sum has one order; that
// int8's sums are the same on every machine; that a number that is not finite in x shows in y. It leaves out rows of
// more than 65,536 int8, whose sums could overflow, and a separate treatment of columns with outliers (section 3 of
// that paper), which the models of this project do not have. C11, gcc and clang.
#pragma once

#include "base/round.h"
#include "cpu/vector.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

typedef enum { FLOAT32, BF16, INT8 } Precision;

static const char *const precision_names[] = {"float32", "bf16", "int8"};

typedef int32_t ints __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int8_t bytes_of_ints __attribute__((vector_size(VECTOR_BYTES / 4), aligned(1), may_alias));

// A panel is PANEL rows of a matrix, four vectors of them: each number of x meets four whole vectors of weights that
// follow each other. TILE_SONGS songs share a panel's pass through the registers: 6 where there are 32 of these. Of 16
// some sums go to memory and back, but 4 songs are still 20 to 40 % faster together than one after the other.
enum { PANEL = 4 * LANES };
#if defined(__AVX512F__) || defined(__aarch64__)
enum { TILE_SONGS = 6 };
#else
enum { TILE_SONGS = 4 };
#endif

#if defined(__clang__)
#define UNROLL_FULLY _Pragma("clang loop unroll(full)") // without it clang keeps the sums in memory
#else
#define UNROLL_FULLY UNROLL
#endif
#define KEEP_LOOP _Pragma("GCC unroll 1") // an unrolled loop reads memory in larger bites, out of order and slower

// W [n_out][n_in], its rows padded with zeros to whole panels:
//     float32   [n_out / PANEL][n_in][PANEL] floats
//     bf16      [n_out / PANEL][n_in / 2][PANEL] words: an even column in the lower half, the next in the upper
//     int8      [n_out / PANEL][n_in / 4][PANEL][4]: four columns of a row
typedef struct {
    Precision precision;
    int n_in, n_out;
    void *panels;
    float *scales;   // int8 only: [n_out]
    int32_t *starts; // int8 only: [n_out] what a row's sum begins with, see BYTE_ZERO
} Weights;

// A vector for each song: that of song s begins at `at + s * stride`. Stride 0: all share one.
typedef struct {
    float *at;
    int64_t stride;
} Rows;

static inline int columns_a_word(Precision precision) { return 1 << precision; }

static inline int64_t panels_words(Precision precision, int n_in, int n_out) { // of 4 bytes
    return round_up(n_out, PANEL) * (round_up(n_in, columns_a_word(precision)) / columns_a_word(precision));
}

static inline uint16_t to_bf16(float x) { return (uint16_t)bf16_round(all_lanes(x))[0]; }

// ---- four products of bytes at once
//
// In each 4 bytes of w and x: sum += w0 x0 + w1 x1 + w2 x2 + w3 x3. Where the processor takes x without sign, x holds
// BYTE_ZERO more than it means, and a row's sum starts at -BYTE_ZERO times the sum of its weights.
#if defined(__AVX512VNNI__)
#define BYTE_ZERO 128
ALWAYS_INLINE ints dot_bytes(ints sum, ints w, ints x) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
#elif defined(__AVXVNNI__) && VECTOR_BYTES == 32
#define BYTE_ZERO 128
ALWAYS_INLINE ints dot_bytes(ints sum, ints w, ints x) {
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
#elif defined(__AVX2__) && VECTOR_BYTES == 32
#define BYTE_ZERO 0
ALWAYS_INLINE ints dot_bytes(ints sum, ints w, ints x) { // |x| times w with x's sign; pairs of them fit 16 bits
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), _mm256_sign_epi8((__m256i)w, (__m256i)x));
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define BYTE_ZERO 0
ALWAYS_INLINE ints dot_bytes(ints sum, ints w, ints x) {
    return (ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}
#else
#define BYTE_ZERO 0
ALWAYS_INLINE ints dot_bytes(ints sum, ints w, ints x) {
    UNROLL_FULLY for (int shift = 24; shift >= 0; shift -= 8) {
        sum += ((ints)((words)w << shift) >> 24) * ((ints)((words)x << shift) >> 24);
    }
    return sum;
}
#endif

ALWAYS_INLINE ints all_words(const char *bytes) { // these four bytes in each word
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return (ints){0} + four;
}

// ---- making a matrix

#define SMALLEST_SCALE 1e-37f // of bytes; below it 1 / scale is no float any more, and all bytes are 0

// Row `row` becomes these numbers, all finite. The memory of rows that are never set must be zeroed.
static inline void weights_set_row(Weights *w, int row, const float *numbers) {
    const int across = columns_a_word(w->precision);
    uint32_t *first = (uint32_t *)w->panels + row / PANEL * panels_words(w->precision, w->n_in, PANEL) + row % PANEL;
    float most = 0;
    int32_t sum = 0;
    for (int i = 0; i < w->n_in; i++) most = fabsf(numbers[i]) > most ? fabsf(numbers[i]) : most;
    const float scale = most / 127, inverse = scale >= SMALLEST_SCALE ? 1 / scale : 0;
    for (int i = 0; i < w->n_in; i++) {
        uint32_t *word = first + (int64_t)(i / across) * PANEL;
        if (w->precision == FLOAT32) memcpy(word, &numbers[i], 4);
        if (w->precision == BF16) *word |= (uint32_t)to_bf16(numbers[i]) << 16 * (i % 2);
        if (w->precision == INT8) {
            const int32_t whole = (int32_t)rintf(numbers[i] * inverse); // -127..127
            ((char *)word)[i % 4] = (char)whole;
            sum += whole;
        }
    }
    if (w->precision == INT8) {
        w->scales[row] = scale;
        w->starts[row] = -BYTE_ZERO * sum;
    }
}

// ---- x as the products take it: as it is, in pairs of bf16, or as bytes

enum { BYTES_HEAD = 64 }; // bytes before the numbers, the first four of which are their scale

static inline size_t byte_vector_size(int n) { return (size_t)(BYTES_HEAD + round_up(n, PANEL)); }

// x to the nearest integer, |x| < 2^22, in the low bits of each word: 1.5 * 2^23 + x has no bits for a fraction.
ALWAYS_INLINE ints low_bits_round(vector x) { return (ints)(x + 12582912); }

// Makes bytes of x [n]. to [byte_vector_size(n)] gets the scale, and from BYTES_HEAD on x / scale + byte_zero. Returns
// the scale, which is infinite if a number is not finite.
static inline float byte_vector(char *to, const float *x, int n, int byte_zero) {
    vector tops = {0};
    for (int i = 0; i < n; i += LANES) {
        const vector numbers = load_part(x + i, n - i);
        tops = larger(select_vector(numbers - numbers == 0, abs_vector(numbers), all_lanes(INFINITY)), tops);
    }
    const float most = largest_lane(tops), scale = most / 127, inverse = scale >= SMALLEST_SCALE ? 127 / most : 0;
    for (int i = 0; i < n; i += LANES) {
        const ints whole = low_bits_round(load_part(x + i, n - i) * inverse);
        *(bytes_of_ints *)(to + BYTES_HEAD + i) = __builtin_convertvector(whole + byte_zero, bytes_of_ints);
    }
    memcpy(to, &scale, sizeof scale);
    return scale;
}

static inline size_t packed_size(Precision precision, int n) { // bytes, a multiple of 16
    if (precision == BF16) return (size_t)(2 * round_up(n, PANEL));
    return precision == INT8 ? byte_vector_size(n) : 0;
}

// ---- a tile: M products of a panel with a vector, which share a pass through the registers
//
// A tile is either one panel and M songs, so that a weight that was read serves all of them; or, with `apart`, M panels
// that lie far from each other and one song, because a core reads two orderly streams faster than one. precision, M and
// apart are constants wherever panel_tile is called, so that the compiler keeps the sums in registers.

typedef struct {
    const char *panel;     // of weights
    const float *scales;   // int8 only: [PANEL]
    const int32_t *starts; // int8 only: [PANEL]
    float x_scale;         // int8 only
    const char *x;         // as packed, or floats
    const float *bias;     // [PANEL]
    float *y;              // [PANEL], may be bias
} PanelProduct;

enum { STREAMS = 2, MOST_PRODUCTS = TILE_SONGS > STREAMS ? TILE_SONGS : STREAMS };

ALWAYS_INLINE void panel_tile(const Precision precision, const int M, const bool apart, const PanelProduct *p,
                              int n_words) {
    vector sums[MOST_PRODUCTS][4];
    ints whole[MOST_PRODUCTS][4]; // the sums of int8
    words row[4];
    UNROLL_FULLY for (int m = 0; m < M; m++) {
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            if (precision != INT8) sums[m][k] = load(p[m].bias + k * LANES);
            if (precision == INT8) whole[m][k] = *(const ints *)(p[m].starts + k * LANES);
        }
    }
    KEEP_LOOP for (int i = 0; i < n_words; i++) {
        UNROLL_FULLY for (int m = 0; m < M; m++) {
            const words *w = (const words *)(const void *)p[m].panel + 4 * (ptrdiff_t)i;
            const words x = (words)all_words(p[m].x + 4 * (ptrdiff_t)i);
            UNROLL_FULLY for (int k = 0; k < 4; k++) {
                // For several songs the weight is volatile: else the compiler reads it again for each song.
                if (M == 1 || apart) row[k] = w[k];
                if (M > 1 && !apart && m == 0) row[k] = *(const volatile words *)(w + k);
                if (precision == FLOAT32) sums[m][k] += (vector)row[k] * (vector)x;
                if (precision == BF16) sums[m][k] = bf16_dot(sums[m][k], row[k], x);
                if (precision == INT8) whole[m][k] = dot_bytes(whole[m][k], (ints)row[k], (ints)x);
            }
        }
    }
    UNROLL_FULLY for (int m = 0; m < M; m++) {
        UNROLL_FULLY for (int k = 0; k < 4; k++) {
            const int at = k * LANES;
            if (precision == INT8) {
                sums[m][k] = __builtin_convertvector(whole[m][k], vector) * (load(p[m].scales + at) * p[m].x_scale) +
                             load(p[m].bias + at);
            }
            store(p[m].y + at, sums[m][k]);
        }
    }
}

static inline void panel_tile_of(Precision precision, int M, bool apart, const PanelProduct *p, int n_words) {
#define TILES(M, apart)                                                                                                \
    if (precision == FLOAT32) panel_tile(FLOAT32, M, apart, p, n_words);                                               \
    if (precision == BF16) panel_tile(BF16, M, apart, p, n_words);                                                     \
    if (precision == INT8) panel_tile(INT8, M, apart, p, n_words)
    if (apart) {
        TILES(STREAMS, true);
        return;
    }
    switch (M) {
#if defined(__AVX512F__) || defined(__aarch64__)
    case 6: TILES(6, false); break;
    case 5: TILES(5, false); break;
#endif
    case 4: TILES(4, false); break;
    case 3: TILES(3, false); break;
    case 2: TILES(2, false); break;
    default: TILES(1, false);
    }
#undef TILES
}

// ---- products

// One product of a song with a panel. `packed` is the song's x for bf16 and int8, which take it instead of x.
static inline PanelProduct product_at(const Weights *w, int panel, int n_words, Rows y, Rows bias, Rows x, int song,
                                      const char *packed) {
    const int64_t first = (int64_t)panel * PANEL;
    PanelProduct p = {.panel = (const char *)w->panels + 4 * first * n_words,
                      .x = w->precision == FLOAT32 ? (const char *)(x.at + song * x.stride) : packed,
                      .bias = bias.at + song * bias.stride + first,
                      .y = y.at + song * y.stride + first};
    if (w->precision == INT8) {
        p.scales = w->scales + first;
        p.starts = w->starts + first;
        memcpy(&p.x_scale, packed, sizeof p.x_scale);
        p.x += BYTES_HEAD;
    }
    return p;
}

// y_s = bias_s + W x_s for the n songs listed. All vectors are padded to whole panels; bias may be y. `packed` holds
// the songs' x as product() packs them for bf16 and int8, which take that instead of x.
static inline void product_of(const Weights *w, Rows y, Rows bias, Rows x, const int *songs, int n,
                              const char *packed) {
    const size_t each = packed_size(w->precision, w->n_in);
    const int panels = (int)divide_up(w->n_out, PANEL), n_words = (int)divide_up(w->n_in, columns_a_word(w->precision));
    const int apart = n == 1 ? panels / STREAMS : 0; // panels between two streams
    PanelProduct p[MOST_PRODUCTS];
    for (int o = 0; o < apart; o++) {
        for (int m = 0; m < STREAMS; m++) p[m] = product_at(w, o + m * apart, n_words, y, bias, x, songs[0], packed);
        panel_tile_of(w->precision, STREAMS, true, p, n_words);
    }
    for (int o = STREAMS * apart; o < panels; o++) {
        for (int s = 0, tiles = (int)divide_up(n, TILE_SONGS), M; tiles; s += M, tiles--) { // the songs in even parts
            M = (int)divide_up(n - s, tiles);
            for (int m = 0; m < M; m++) {
                p[m] =
                    product_at(w, o, n_words, y, bias, x, songs[s + m], each ? packed + (size_t)(s + m) * each : NULL);
            }
            panel_tile_of(w->precision, M, false, p, n_words);
        }
    }
}

// The same where `packed` is scratch memory: packed_size(n_in) for each song.
static inline void product(const Weights *w, Rows y, Rows bias, Rows x, const int *songs, int n, char *packed) {
    const size_t each = packed_size(w->precision, w->n_in);
    for (int s = 0; s < n && each; s++) {
        const float *from = x.at + songs[s] * x.stride;
        char *to = packed + (size_t)s * each;
        if (w->precision == BF16) bf16_pack((word *)(void *)to, from, w->n_in);
        if (w->precision == INT8) byte_vector(to, from, w->n_in, BYTE_ZERO);
    }
    product_of(w, y, bias, x, songs, n, packed);
}
