// The whole test framework: count what held, say what did not, and let the exit status tell.
// A test program calls CHECK for every fact and ends with `return check_report("name");`, whose closing line
// `name: N passed, N failed` is what test/run adds up.
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int check_passed, check_failed;

// Whether AddressSanitizer makes the program slow, see check_brief.
#ifdef __has_feature
#define CHECK_SANITIZED __has_feature(address_sanitizer)
#elif defined __SANITIZE_ADDRESS__
#define CHECK_SANITIZED 1
#else
#define CHECK_SANITIZED 0
#endif

// Whether long loops take some of their steps only: with AddressSanitizer, unless the slow tests are asked for.
static inline int check_brief(void) { return CHECK_SANITIZED && !getenv("TEST_LONG"); }

// CHECK(condition, "what was expected, printf style", ...)
#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            check_passed++;                                                                                            \
        } else {                                                                                                       \
            check_failed++;                                                                                            \
            printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #condition);                                                \
            printf(__VA_ARGS__);                                                                                       \
            printf("\n");                                                                                              \
        }                                                                                                              \
    } while (0)

// A new scratch folder, whose name goes to folder[200]; the test removes it. Without one the test ends.
static inline void check_folder(char *folder) {
    const char *base = getenv("TMPDIR");
    snprintf(folder, 200, "%.160s/music_test.XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(folder)) return;
    perror(folder);
    exit(1);
}

// *most = the larger of the two. fmax in a loop over floats makes gcc 12 for aarch64 fail.
static inline void raise_to(double *most, double x) {
    if (x > *most) *most = x;
}

// The nearest number with the 8 bits of a bf16, ties to even, by arithmetic instead of bits.
static inline double nearest_bf16(double x) {
    int exponent;
    double m = frexp(x, &exponent);
    return ldexp(nearbyint(ldexp(m, 8)), exponent - 8);
}

static inline int check_report(const char *name) {
    printf("%s: %d passed, %d failed\n", name, check_passed, check_failed);
    return check_failed > 0 || check_passed == 0;
}

#endif
