// dev/tools/compare_tensors: what it prints and its exit status, on files made here: equal ones, a difference planted
// at a known element just over and just under the tolerance, missing tensors, other shapes and types, NaN, broken files
// and wrong usage.
#define main compare_tensors_main
#include "dev/tools/compare_tensors.c"
#undef main

#include "check.h"
#include <fcntl.h>

static char folder[256], error[ERROR_SIZE];
static char printed[1 << 16], complaint[ERROR_SIZE]; // of the last run

static const char *in_folder(const char *name) { // valid for this and the next 7 calls
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void read_text(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "rb");
    text[file ? fread(text, 1, size - 1, file) : 0] = 0;
    if (file) fclose(file);
}

// Runs the program with words that spaces separate (A and B stand for the two files) and returns its exit status.
static int run(const char *words) {
    char line[2048], *arguments[80] = {(char *)"compare_tensors"};
    const char *files[2] = {in_folder("printed"), in_folder("complaint")};
    int n = 1, kept[2];
    snprintf(line, sizeof line, "%s", words);
    for (char *word = strtok(line, " "); word && n < 79; word = strtok(NULL, " ")) {
        bool file = !strcmp(word, "A") || !strcmp(word, "B");
        arguments[n++] = file ? (char *)in_folder(word) : word;
    }
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        int out = open(files[i], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        kept[i] = dup(i + 1);
        dup2(out, i + 1);
        close(out);
    }
    int status = compare_tensors_main(n, arguments);
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        dup2(kept[i], i + 1);
        close(kept[i]);
    }
    read_text(files[0], printed, sizeof printed);
    read_text(files[1], complaint, sizeof complaint);
    return status;
}

#define RUNS(status, words)                                                                                            \
    do {                                                                                                               \
        int ended = run(words);                                                                                        \
        CHECK(ended == (status), "%s: it ended with %d: %s%s", words, ended, printed, complaint);                      \
    } while (0)
#define PRINTS(text) CHECK(strstr(printed, text), "it printed: %s%s", printed, complaint)
#define COMPLAINS(text) CHECK(strstr(complaint, text), "it said: %s", complaint)

static StTensor tensor_of(const char *name, StType type, int rank, int64_t d0, int64_t d1, int64_t d2,
                          const void *data) {
    StTensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.type = type;
    t.rank = rank;
    t.shape[0] = d0;
    t.shape[1] = d1;
    t.shape[2] = d2;
    t.data = data;
    return t;
}

static void save(const char *name, const StTensor *tensors, int n) {
    StTensor sorted[8];
    StMeta meta[] = {{"model", "gpt"}, {"names", "one\ntwo"}};
    memcpy(sorted, tensors, (size_t)n * sizeof *sorted);
    CHECK(st_write(in_folder(name), sorted, n, meta, 2, error), "%s", error);
}

static float weights[24], other[24]; // [2,3,4], each value 1: a norm of sqrt(24)
static const int64_t input[4] = {1, 2, (1ll << 60) + 1, 4};

static void save_weights(const char *name, const float *values) {
    StTensor list[] = {tensor_of("grad.w", ST_F32, 3, 2, 3, 4, values), tensor_of("input", ST_I64, 1, 4, 0, 0, input),
                       tensor_of("none", ST_F32, 2, 0, 5, 0, NULL), tensor_of("loss", ST_F32, 0, 0, 0, 0, values)};
    save(name, list, 4);
}

// Of 200 ReLUs k differ: gradients may be sqrt(2k / 200) (1 + 3 / sqrt(k)) further apart, other tensors not.
static void test_relus(void) {
    float outputs[200], gradient[4] = {3, 4, 0, 0}, moved[4] = {3, 4, 1.9f, 0}; // 0.38 apart
    for (int i = 0; i < 200; i++) outputs[i] = i % 2 ? 1e-9f : 0;
    StTensor list[] = {tensor_of("act.fc1", ST_F32, 2, 10, 20, 0, outputs),
                       tensor_of("grad.w", ST_F32, 1, 4, 0, 0, gradient),
                       tensor_of("new.w", ST_F32, 1, 4, 0, 0, gradient)};
    save("A", list, 3);
    list[1].data = moved;
    outputs[7] = 0;
    save("B", list, 3);
    RUNS(1, "compare B A --rtol 1e-5 --rtol act.=1");
    PRINTS(" failed=1 ");
    RUNS(0, "compare B A --rtol 1e-5 --rtol act.=1 --relu act."); // k = 1: 0.4
    PRINTS("1 of 200 ReLUs differ: 0.4 more for grad.");
    PRINTS(" used=0.95 worst=grad.w");
    outputs[8] = 1e-9f;
    save("B", list, 3);
    RUNS(0, "compare B A --rtol 1e-5 --rtol act.=2 --relu act.fc"); // k = 2: 0.4414
    PRINTS("2 of 200 ReLUs differ: 0.44 more for grad.");
    PRINTS(" used=0.861 worst=grad.w");
    list[2].data = moved;
    save("B", list, 3);
    RUNS(1, "compare B A --rtol 1e-5 --rtol act.=2 --relu act.fc");
    PRINTS("worst=new.w");
    RUNS(2, "show A --relu act.");
    COMPLAINS("go with compare only");
}

static void test_differences(void) {
    save_weights("A", weights);
    save_weights("B", weights);
    RUNS(0, "compare A B --rtol 0");
    PRINTS("\ncompare tensors=4 failed=0 only_one=0 missing=0 used=0 worst=-\n");

    // Of 24 ones one is moved by d: the relative difference is d / sqrt(24), here 2^-10 / 4.89898 = 1.99336e-4.
    memcpy(other, weights, sizeof other);
    other[1 * 12 + 2 * 4 + 3] += 0.0009765625f; // 2^-10
    save_weights("A", other);
    RUNS(0, "compare A B --rtol 1.994e-4");
    PRINTS("[1, 2, 3] 1.00097656 1");
    PRINTS("0.000977  0.000199         1"); // max, relative, part of the tolerance
    PRINTS(" used=1 worst=grad.w\n");
    RUNS(1, "compare A B --rtol 1.993e-4");
    PRINTS("[1, 2, 3] 1.00097656 1  FAIL\n");
    PRINTS("\ncompare tensors=4 failed=1 only_one=0 missing=0 used=1 worst=grad.w\n");
    RUNS(1, "compare A B"); // 1e-5
    PRINTS(" used=19.9 ");
    RUNS(0, "compare A B --rtol=1e-3");
    PRINTS(" used=0.199 ");
    RUNS(1, "compare --rtol 0 A B");
    PRINTS(" used=inf worst=grad.w\n");

    // The last pattern that fits counts.
    RUNS(0, "compare A B --rtol 0 --rtol grad.=1e-3");
    RUNS(0, "compare A B --rtol 0 --rtol g*.w=1e-3");
    RUNS(1, "compare A B --rtol grad.=1e-3 --rtol 0");
    RUNS(1, "compare A B --rtol rad.=1e-3");

    RUNS(1, "compare A B --quiet");
    CHECK(!strstr(printed, "\ninput") && strstr(printed, "\ngrad.w"), "--quiet printed: %s", printed);
}

static void test_families(void) {
    float zeros[24] = {0}, tiny[24] = {0};
    tiny[5] = 1e-6f; // against 1e-3 * sqrt(24) of grad.w: 2.04e-4
    StTensor a[] = {tensor_of("grad.w", ST_F32, 1, 24, 0, 0, weights), tensor_of("grad.b", ST_F32, 1, 24, 0, 0, tiny)};
    StTensor b[] = {tensor_of("grad.w", ST_F32, 1, 24, 0, 0, weights), tensor_of("grad.b", ST_F32, 1, 24, 0, 0, zeros)};
    save("A", a, 2);
    save("B", b, 2);
    RUNS(0, "compare A B --rtol 2.05e-4");
    PRINTS(" used=0.996 worst=grad.b\n");
    RUNS(1, "compare A B --rtol 2.03e-4");
    a[1].name = b[1].name = "act.b"; // alone in its family, and its norm is 0
    save("A", a, 2);
    save("B", b, 2);
    RUNS(1, "compare A B --rtol 1e30");
    PRINTS(" used=inf worst=act.b\n");
}

static double seconds_for(int n) { // to compare a file of n tensors with itself
    StTensor *list = calloc((size_t)n, sizeof *list);
    char(*names)[32] = calloc((size_t)n, sizeof *names);
    for (int i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "%s.%d", i % 2 ? "grad" : "new", i);
        list[i] = tensor_of(names[i], ST_F32, 0, 0, 0, 0, weights);
    }
    CHECK(st_write(in_folder("A"), list, n, NULL, 0, error), "%s", error);
    const clock_t start = clock();
    RUNS(0, "compare A A --quiet");
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    free(list);
    free(names);
    return seconds;
}

// The time for a file is nearly proportional to the number of its tensors.
static void test_many_tensors(void) {
    const int n = check_brief() ? 2000 : 4000;
    const double few = seconds_for(n), many = seconds_for(8 * n);
    CHECK(many < 24 * few + 0.1, "%d tensors take %.3f s, eight times as many %.3f s", n, few, many);
}

static void test_missing(void) {
    StTensor list[] = {tensor_of("grad.a", ST_F32, 1, 4, 0, 0, weights),
                       tensor_of("grad.b", ST_F32, 1, 4, 0, 0, weights),
                       tensor_of("zeta", ST_F32, 1, 4, 0, 0, weights)};
    save("A", list, 2);
    save("B", list + 1, 2);
    RUNS(0, "compare A B");
    PRINTS("grad.a  only in ");
    PRINTS("zeta    only in ");
    PRINTS("\ncompare tensors=1 failed=0 only_one=2 missing=0 used=0 worst=-\n");
    RUNS(0, "compare A B --require grad.b");
    RUNS(1, "compare A B --require grad.");
    PRINTS("grad.a  only in ");
    PRINTS("and required  FAIL\n");
    PRINTS(" only_one=2 missing=1 ");
    RUNS(1, "compare A B --require z --quiet");
    CHECK(!strstr(printed, "grad.a") && strstr(printed, "zeta"), "--quiet printed: %s", printed);
    RUNS(1, "compare A B --require grad.b --require act.");
    PRINTS("act.* is required, and in neither file  FAIL\n");
    RUNS(1, "compare A B --require *");
    PRINTS(" missing=2 ");
    save("B", list + 2, 1);
    RUNS(1, "compare A B");
    COMPLAINS("have no tensor in common; nothing was compared");
    save("B", list, 0);
    RUNS(1, "compare A B");
    RUNS(1, "compare B B");
}

// Whether two tensors of one name are told apart.
static int one_against(StTensor a, StTensor b) {
    save("A", &a, 1);
    save("B", &b, 1);
    return run("compare A B --rtol 1e-6");
}

static void test_kinds(void) {
    const double doubles[4] = {1, 1, 1, 1}, moved[4] = {1, 1 + 1e-5, 1, 1};
    StTensor f32 = tensor_of("x", ST_F32, 2, 1, 4, 0, weights), f64 = tensor_of("x", ST_F64, 2, 1, 4, 0, doubles);
    CHECK(one_against(f32, f64) == 0, "F32 against an equal F64: %s", printed);
    f64.data = moved;
    CHECK(one_against(f32, f64) == 1 && strstr(printed, "[0, 1] 1 1.00001"), "F32 against another F64: %s", printed);
    StTensor turned = f32;
    turned.shape[0] = 4;
    turned.shape[1] = 1;
    CHECK(one_against(f32, turned) == 1, "another shape: %s", printed);
    PRINTS("F32 [1, 4] against F32 [4, 1]  FAIL\n");
    turned = f32;
    turned.rank = 1;
    turned.shape[0] = 4;
    CHECK(one_against(f32, turned) == 1, "another rank: %s", printed);

    int64_t counted[4];
    memcpy(counted, input, sizeof counted);
    StTensor whole = tensor_of("x", ST_I64, 1, 4, 0, 0, input), second = tensor_of("x", ST_I64, 1, 4, 0, 0, counted);
    CHECK(one_against(whole, second) == 0, "equal whole numbers: %s", printed);
    counted[2]--; // the same double
    CHECK(one_against(whole, second) == 1 && strstr(printed, "  [2] "), "2^60 + 1 against 2^60: %s", printed);
    second.type = ST_F64;
    CHECK(one_against(whole, second) == 1 && strstr(printed, "I64 [4] against F64 [4]"), "I64, F64: %s", printed);
    second.type = ST_U64;
    CHECK(one_against(whole, second) == 1, "I64 against U64: %s", printed);
    StTensor complex = tensor_of("x", ST_C64, 1, 4, 0, 0, input), other_complex = complex;
    other_complex.data = counted;
    CHECK(one_against(complex, complex) == 0, "equal bytes: %s", printed);
    CHECK(one_against(complex, other_complex) == 1, "other bytes: %s", printed);

    StTensor nothing = tensor_of("x", ST_F32, 1, 0, 0, 0, NULL);
    CHECK(one_against(nothing, nothing) == 0, "two empty tensors: %s", printed);
    CHECK(one_against(nothing, f32) == 1, "an empty one against four: %s", printed);

    float odd[4] = {1, 1, NAN, 1};
    StTensor bad = tensor_of("x", ST_F32, 2, 1, 4, 0, odd);
    for (int i = 0; i < 2; i++) {
        CHECK(one_against(bad, f32) == 1 && strstr(printed, "  [0, 2] "), "in A: %s", printed);
        CHECK(one_against(f32, bad) == 1 && strstr(printed, "  [0, 2] "), "in B: %s", printed);
        CHECK(one_against(bad, bad) == 1, "in both: %s", printed);
        PRINTS(" used=inf worst=x\n");
        odd[2] = -INFINITY;
    }
    const double huge[2] = {1e308, 1}, negative[2] = {-1e308, 1};
    CHECK(one_against(tensor_of("x", ST_F64, 1, 2, 0, 0, huge), tensor_of("x", ST_F64, 1, 2, 0, 0, negative)) == 1,
          "opposite values whose difference overflows: %s", printed);
}

static void test_show(void) {
    const float values[6] = {-2, 0, 1, NAN, 3, -INFINITY};
    const int8_t small[2] = {-3, 5};
    const uint8_t bytes[2] = {200, 100};
    StTensor list[] = {tensor_of("w", ST_F32, 2, 2, 3, 0, values), tensor_of("i", ST_I8, 1, 2, 0, 0, small),
                       tensor_of("u", ST_U8, 1, 2, 0, 0, bytes), tensor_of("none", ST_F64, 1, 0, 0, 0, NULL),
                       tensor_of("c", ST_C64, 0, 0, 0, 0, input)};
    save("A", list, 5);
    RUNS(0, "show A");
    PRINTS(": 5 tensors, 11 elements, ");
    PRINTS("  model = gpt\n  names = one?two\n");
    PRINTS("w       F32   [2, 3]                  -2           3         0.5      1.8708  2 NOT FINITE\n");
    PRINTS("i       I8    [2]                     -3           5           1      4.1231\n");
    PRINTS("u       U8    [2]                    100         200         150      158.11\n");
    PRINTS("none    F64   [0]             empty\n");
    PRINTS("c       C64   []");
    save("A", list, 0);
    RUNS(0, "show A");
}

static void test_errors(void) {
    save_weights("A", weights);
    save_weights("B", weights);
    const char *wrong[] = {"",
                           "show",
                           "show A B",
                           "compare A",
                           "compare A B A",
                           "A B",
                           "show A --quiet",
                           "show A --rtol 1",
                           "show A --require loss",
                           "compare A B --rtol",
                           "compare A B --rtol -1",
                           "compare A B --rtol nan",
                           "compare A B --rtol grad.",
                           "compare A B --rtol grad.=",
                           "compare A B --rtol grad.=inf",
                           "compare A B --tolerance 1",
                           "compare A B --require="};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        RUNS(2, wrong[i]);
        COMPLAINS("compare_tensors: ");
        CHECK(!*printed, "%s printed: %s", wrong[i], printed);
    }
    char line[512];
    snprintf(line, sizeof line, "compare A B --require %0300d", 1);
    RUNS(2, line);
    RUNS(0, "--help");
    PRINTS("--require PATTERN");
    RUNS(0, "--version");

    RUNS(1, "show missing");
    COMPLAINS("compare_tensors: missing: cannot be opened");
    CHECK(!truncate(in_folder("B"), 100), "B cannot be cut");
    RUNS(1, "compare A B");
    COMPLAINS("cut short");
    RUNS(1, "compare B A");
    RUNS(1, "show B");
}

int main(void) {
    check_folder(folder);
    for (int i = 0; i < 24; i++) weights[i] = 1;
    test_differences();
    test_relus();
    test_families();
    test_many_tensors();
    test_missing();
    test_kinds();
    test_show();
    test_errors();
    for (int i = 0; i < 4; i++) remove(in_folder((const char *[]){"A", "B", "printed", "complaint"}[i]));
    CHECK(!rmdir(folder), "%s is not empty", folder);
    return check_report("compare");
}
