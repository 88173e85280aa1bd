// dev/base/safetensors.h: what is written and read again, every kind of damaged file, a random search for crashes (to
// be run under AddressSanitizer), and what happens when a file cannot be written.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sys/file.h>

// Stands for flock in everything below: a file system may have no locks.
static int no_locks;
static int flock_if_any(int file, int how) {
    if (!no_locks) return flock(file, how);
    errno = ENOLCK;
    return -1;
}
#define flock flock_if_any

#include "base/params.h" // model_read
#include "base/safetensors.h"

#include "check.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static char folder[256], error[ERROR_SIZE];

static const char *in_folder(const char *name) { // valid for this and the next 15 calls
    static char paths[16][512];
    static int next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static StTensor tensor_of(const char *name, StType type, int rank, int64_t d0, int64_t d1, const void *data) {
    StTensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.type = type;
    t.rank = rank;
    t.shape[0] = d0;
    t.shape[1] = d1;
    t.data = data;
    return t;
}

// A file in memory: the header's text (of a given length, so that it may hold NULs), then data_size bytes 0, 1, 2, ...
static char *make_file(const char *header, size_t length, size_t data_size, size_t *size) {
    *size = 8 + length + data_size;
    char *bytes = (char *)malloc(*size);
    uint64_t n = length;
    memcpy(bytes, &n, 8);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_size; i++) bytes[8 + length + i] = (char)i;
    return bytes;
}

static bool parse(StFile *file, const char *header, size_t data_size) {
    size_t size;
    char *bytes = make_file(header, strlen(header), data_size, &size);
    error[0] = 0;
    return st_parse(file, bytes, size, "test file", error);
}

static void test_round_trip(void) {
    const float weights[6] = {1.5f, -2, 3e-40f, INFINITY, -0.0f, 6};
    const int64_t starts[2] = {-1, INT64_MAX};
    const uint8_t bytes[3] = {0, 128, 255};
    const double scalar = 0.1;
    StTensor tensors[] = {tensor_of("tokens", ST_U8, 1, 3, 0, bytes), tensor_of("b.weight", ST_F32, 2, 2, 3, weights),
                          tensor_of("none", ST_F32, 2, 0, 5, NULL),
                          tensor_of("a\"\\\n\x01\xc3\xa9", ST_F64, 0, 0, 0, &scalar),
                          tensor_of("starts", ST_I64, 1, 2, 0, starts)};
    StMeta meta[] = {{"z", "last"}, {"quote\"", "back\\slash\ttab\nline \xf0\x9f\x8e\xb9"}, {"empty", ""}};
    const char *path = in_folder("round.safetensors");
    bool written = st_write(path, tensors, 5, meta, 3, error);
    CHECK(written, "%s", error);

    StFile file;
    bool read = st_read(&file, path, error);
    CHECK(read, "%s", error);
    if (!read) return;
    CHECK(file.n_tensors == 5 && file.n_meta == 3, "%d tensors and %d strings", file.n_tensors, file.n_meta);
    int wrong = 0;
    for (int i = 0; i < 5; i++) {
        const StTensor *t = st_find(&file, tensors[i].name);
        int64_t count = 1;
        for (int d = 0; d < tensors[i].rank; d++) count *= tensors[i].shape[d];
        if (!t || t->type != tensors[i].type || t->rank != tensors[i].rank || t->count != count ||
            memcmp(t->shape, tensors[i].shape, (size_t)t->rank * 8) ||
            (count && memcmp(t->data, tensors[i].data, (size_t)count * (size_t)st_size(t->type)))) {
            wrong++;
        }
    }
    CHECK(wrong == 0, "%d of 5 tensors changed on the way", wrong);
    for (int i = 0; i < 3; i++) {
        const char *value = st_meta(&file, meta[i].key);
        CHECK(value && !strcmp(value, meta[i].value), "metadata %d came back as '%s'", i, value ? value : "nothing");
    }
    CHECK(!st_find(&file, "absent") && !st_meta(&file, "absent"), "an absent name must give NULL");

    // The layout that others rely on: data at a multiple of 64, larger elements first, then by name.
    const char *base = (const char *)file.bytes;
    const char *order[] = {"a\"\\\n\x01\xc3\xa9", "starts", "b.weight", "none", "tokens"};
    uint64_t header;
    memcpy(&header, base, 8);
    CHECK((8 + header) % 64 == 0, "data starts at %llu", (unsigned long long)header + 8);
    int64_t offset = 8 + (int64_t)header;
    for (int i = 0; i < 5; i++) {
        const StTensor *t = st_find(&file, order[i]);
        CHECK(t && (const char *)t->data - base == offset, "tensor %d is not at %lld", i, (long long)offset);
        if (t) offset += t->count * st_size(t->type);
    }
    CHECK(offset == (int64_t)file.size, "the file has %zu bytes, its tensors end at %lld", file.size,
          (long long)offset);

    // Tensors and strings in another order give the same bytes.
    StTensor swapped[] = {tensors[4], tensors[2], tensors[0], tensors[3], tensors[1]};
    StMeta swapped_meta[] = {meta[2], meta[0], meta[1]};
    void *first = NULL, *again = NULL;
    size_t size = 0, size_again = 0;
    st_write(in_folder("again.safetensors"), swapped, 5, swapped_meta, 3, error);
    read =
        read_file(path, &first, &size, error) && read_file(in_folder("again.safetensors"), &again, &size_again, error);
    CHECK(read, "%s", error);
    CHECK(read && size == size_again && !memcmp(again, first, size), "the order of the arguments shows in the file");
    free(first);
    free(again);
    st_free(&file);
}

static void test_exact_bytes(void) {
    const uint8_t two[2] = {7, 9};
    StTensor t = tensor_of("t", ST_U8, 1, 2, 0, two);
    StMeta meta = {"k", "v"};
    static const char expected[] = "\x78\0\0\0\0\0\0\0{\"__metadata__\":{\"k\":\"v\"},\n"
                                   "\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"
                                   "                                         \x07\x09";
    void *bytes = NULL;
    size_t size = 0;
    bool ok =
        st_write(in_folder("exact"), &t, 1, &meta, 1, error) && read_file(in_folder("exact"), &bytes, &size, error);
    CHECK(ok, "%s", error);
    CHECK(size == sizeof expected - 1 && !memcmp(bytes, expected, size), "%zu bytes, not the expected %zu", size,
          sizeof expected - 1);
    free(bytes);
    ok = st_write(in_folder("nothing"), NULL, 0, NULL, 0, error) &&
         read_file(in_folder("nothing"), &bytes, &size, error);
    CHECK(ok && size == 64 && !memcmp((char *)bytes + 8, "{} ", 3), "a file of nothing has %zu bytes", size);
    free(bytes);
}

static bool to_floats(const StTensor *tensor, float *out) {
    for (int64_t i = 0; i < tensor->count; i++) out[i] = (float)st_get(tensor, i);
    return st_is_float(tensor);
}

static bool to_doubles(const StTensor *tensor, double *out) {
    for (int64_t i = 0; i < tensor->count; i++) out[i] = st_get(tensor, i);
    return st_is_float(tensor);
}

static void test_foreign_files(void) {
    StFile file;
    // Any spacing, order of fields and of tensors, alignment, escapes and trailing space; names are compared unescaped.
    bool ok =
        parse(&file,
              "{ \"b\" :\t{\"data_offsets\":[1,9],\n\"shape\":[1,2],\"dtype\":\"F32\"},\r\n"
              "\"\\u0061\\n\\/\\ud83c\\udfb9\\u00e9\\u20AC\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]} , "
              "\"__metadata__\":{} } \n\t ",
              9);
    CHECK(ok, "%s", error);
    if (ok) {
        const StTensor *b = st_find(&file, "b"), *a = st_find(&file, "a\n/\xf0\x9f\x8e\xb9\xc3\xa9\xe2\x82\xac");
        CHECK(a && b, "the names are '%s' and '%s'", file.tensors[0].name, file.tensors[1].name);
        float values[2], expected[2];
        const unsigned char raw[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        memcpy(expected, raw, 8);
        CHECK(b && to_floats(b, values) && !memcmp(values, expected, 8), "unaligned values are read wrongly");
        CHECK(a && !to_floats(a, values), "an I8 tensor must not pass for floating point");
        st_free(&file);
    }
    ok = parse(&file, "{}", 0);
    CHECK(ok && file.n_tensors == 0 && !st_find(&file, "x") && !st_meta(&file, "x"), "an empty file: %s", error);
    if (ok) st_free(&file);
    ok = parse(&file,
               "{\"e\":{\"dtype\":\"F64\",\"shape\":[0,9223372036854775807],\"data_offsets\":[2,2]},"
               "\"d\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
               "\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
               3);
    CHECK(ok && st_find(&file, "e")->count == 0, "an empty tensor between two others: %s", error);
    if (ok) st_free(&file);
}

static void test_conversions(void) {
    const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0xc000, 0x7bff, 0x7c00, 0xfc00, 0x3555};
    const double as_double[] = {
        0,        -0.0,      5.9604644775390625e-8, 6.0975551605224609e-5, 6.103515625e-5, 1, -2, 65504,
        INFINITY, -INFINITY, 0.333251953125};
    StTensor t = tensor_of("h", ST_F16, 1, 11, 0, halves);
    t.count = 11;
    float floats[11];
    double doubles[11];
    CHECK(to_floats(&t, floats) && to_doubles(&t, doubles), "halves must convert");
    for (int i = 0; i < 11; i++) {
        CHECK(floats[i] == (float)as_double[i] && doubles[i] == as_double[i] &&
                  !signbit(doubles[i]) == !signbit(as_double[i]),
              "half %04x became %g", halves[i], doubles[i]);
    }
    const uint16_t nan_bits[] = {0x7e00, 0xfc01};
    t.data = nan_bits;
    t.count = 2;
    CHECK(to_floats(&t, floats) && isnan(floats[0]) && isnan(floats[1]), "half NaNs became %g and %g",
          (double)floats[0], (double)floats[1]);
    const uint16_t brains[] = {0x3f80, 0xc049, 0x0001};
    t = tensor_of("b", ST_BF16, 1, 3, 0, brains);
    t.count = 3;
    CHECK(to_doubles(&t, doubles) && doubles[0] == 1 && doubles[1] == -3.140625 && doubles[2] == ldexp(1, -133),
          "bf16 became %g %g %g", doubles[0], doubles[1], doubles[2]);
    const double wide[] = {0.1, 1e300};
    t = tensor_of("d", ST_F64, 1, 2, 0, wide);
    t.count = 2;
    CHECK(to_floats(&t, floats) && floats[0] == 0.1f && isinf(floats[1]), "doubles became %g %g", (double)floats[0],
          (double)floats[1]);
}

#define U8_2 "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]"

// A header, the bytes of data after it, and part of the sentence that it must give.
static const struct {
    const char *header;
    size_t data_size;
    const char *sentence;
} damaged[] = {
    {"", 0, "should be '{'"},
    {" {}", 0, "byte 8 of its header should be '{'"},
    {"[]", 0, "should be '{'"},
    {"{", 0, "opens a string"},
    {"{}x", 0, "white space up to its end"},
    {"{} {}", 0, "white space up to its end"},
    {"{,}", 0, "opens a string"},
    {"{\"a", 0, "closes a string"},
    {"{\"a\"", 0, "':'"},
    {"{\"a\":", 0, "'{'"},
    {"{\"a\":1}", 0, "'{'"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[", 0, "'{'"},
    {"{\"a\":{\"dtype\":{\"dtype\":{}}}}", 0, "opens a string"},
    {"{\"a\":{" U8_2 "}", 2, "'}'"},
    {"{\"a\":{" U8_2 ",}}", 2, "opens a string"},
    {"{\"a\":{" U8_2 "},}", 2, "opens a string"},
    {"{\"a\":{" U8_2 "} \"b\":{}}", 2, "'}'"},
    {"{'a':{" U8_2 "}}", 2, "opens a string"},
    {"{\"a\":{}}", 2, "opens a string"},
    {"{\"a\":{\"dtype\":\"U8\"}}", 2, "lacks its dtype, shape or data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, "lacks its dtype, shape or data_offsets"},
    {"{\"a\":{" U8_2 ",\"dtype\":\"U8\"}}", 2, "has a second field 'dtype'"},
    {"{\"a\":{" U8_2 ",\"strides\":[1]}}", 2, "the unknown field 'strides'"},
    {"{\"a\":{\"dtype\":\"Q9\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "unknown dtype 'Q9'"},
    {"{\"a\":{\"dtype\":\"u8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "unknown dtype 'u8'"},
    {"{\"a\":{\"dtype\":8,\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "opens a string"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]}}", 2, "'['"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]}}", 2, "a digit"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", 2, "']'"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2e0],\"data_offsets\":[0,2]}}", 2, "']'"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[02],\"data_offsets\":[0,2]}}", 2, "leading zeros"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2,],\"data_offsets\":[0,2]}}", 2, "a digit"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,2]}}", 2, "below 2^63"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551618],\"data_offsets\":[0,2]}}", 2, "below 2^63"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,2]}}", 2, "2^63 bytes or more"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "2^63 bytes or more"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2, "more than 8 dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
     "has 2 bytes of data; its dtype and shape need 8"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,2]}}", 2,
     "has 2 bytes of data; its dtype and shape need 1"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,3]}}", 2, "cut short"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}", 2, "data_offsets [begin, end]"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", 2, "data_offsets [begin, end]"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,2]}}", 2, "data_offsets [begin, end]"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[9223372036854775805,9223372036854775807]}}", 2,
     "cut short"},
    {"{\"a\":{" U8_2 "},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}", 3,
     "two tensors of the name 'a'"},
    {"{\"a\":{" U8_2 "},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}", 2,
     "two tensors of the name 'a'"},
    {"{\"a\":{" U8_2 "},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "overlaps another"},
    {"{\"a\":{" U8_2 "},\"b\":{" U8_2 "}}", 2, "overlaps another"},
    {"{\"a\":{" U8_2 "},\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}", 2, "overlaps another"},
    {"{\"a\":{" U8_2 "},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[3,4]}}", 4,
     "bytes that belong to none"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "bytes that belong to none"},
    {"{\"a\":{" U8_2 "}}", 5, "3 bytes after the last tensor"},
    {"{}", 1, "1 bytes after the last tensor"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "the metadata key 'a' twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "opens a string"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, "opens a string"},
    {"{\"__metadata__\":\"a\"}", 0, "'{'"},
    {"{\"__metadata__\":{\"a\":\"b\",}}", 0, "opens a string"},
    {"{\"__metadata__\":{\"a\":\"\xff\"}}", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"\xc0\x80\"}}", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}}", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"\xf4\x90\x80\x80\"}}", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"\xe2\x82", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"line\nbreak\"}}", 0, "a UTF-8 character"},
    {"{\"__metadata__\":{\"a\":\"\\x41\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\u00g0\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\u0000\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\ud800\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\ud800\\u0041\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\udc00\"}}", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\u00", 0, "valid \\ escape"},
    {"{\"__metadata__\":{\"a\":\"\\", 0, "valid \\ escape"},
};

static void test_damaged_headers(void) {
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        StFile file;
        bool ok = parse(&file, damaged[i].header, damaged[i].data_size);
        CHECK(!ok && strstr(error, damaged[i].sentence) && strstr(error, "test file: ") == error,
              "case %zu, %s: expected '%s', got '%s'", i, damaged[i].header, damaged[i].sentence,
              ok ? "no error" : error);
        if (ok) st_free(&file);
    }
    StFile file;
    size_t size;
    char *bytes = make_file("{\"a\0\":{}}", 10, 0, &size);
    CHECK(!st_parse(&file, bytes, size, "test file", error) && strstr(error, "a UTF-8 character"), "a raw NUL: %s",
          error);
    bytes = make_file("{}\0", 3, 0, &size);
    CHECK(!st_parse(&file, bytes, size, "test file", error) && strstr(error, "white space"), "a NUL as padding: %s",
          error);

    const uint64_t lengths[] = {3, 100, 100000001, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    for (int i = 0; i < 6; i++) {
        bytes = make_file("{}", 2, 0, &size);
        memcpy(bytes, &lengths[i], 8);
        CHECK(!st_parse(&file, bytes, size, "test file", error) && strstr(error, "announces a header of"),
              "a header of %llu: %s", (unsigned long long)lengths[i], error);
    }

    // A great many levels must not use up the stack.
    enum { DEEP = 1000000 };
    char *deep = (char *)malloc(DEEP + 1);
    memset(deep, '[', DEEP);
    memcpy(deep, "{\"a\":", 5);
    deep[DEEP] = 0;
    CHECK(!parse(&file, deep, 0), "a million open brackets must be an error");
    for (int i = 0; i + 5 <= DEEP; i += 5) memcpy(deep + i, "{\"a\":", 5);
    CHECK(!parse(&file, deep, 0), "200,000 nested objects must be an error");
    free(deep);
}

// A valid file to damage, of n bytes (malloc).
static char *sample(size_t *n) {
    const float weights[6] = {1, 2, 3, 4, 5, 6};
    const uint8_t tokens[5] = {0, 1, 2, 3, 4};
    const int64_t starts[3] = {0, 2, 5};
    StTensor tensors[] = {tensor_of("tokens", ST_U8, 1, 5, 0, tokens),
                          tensor_of("layers.0.weight", ST_F32, 2, 2, 3, weights),
                          tensor_of("starts", ST_I64, 1, 3, 0, starts), tensor_of("e", ST_F16, 2, 0, 4, NULL)};
    StMeta meta[] = {{"format", "test/1"}, {"names", "a\nb \"quoted\" \xc3\xa9"}};
    void *bytes = NULL;
    if (!st_write(in_folder("sample"), tensors, 4, meta, 2, error) ||
        !read_file(in_folder("sample"), &bytes, n, error)) {
        printf("%s\n", error);
        exit(1);
    }
    return (char *)bytes;
}

// However many colons a header has, its lists are no longer than it can need.
static void test_colons(void) {
    enum { COLONS = 4 << 20 };
    static const char begin[] = "{\"__metadata__\":{\"k\":\"", end[] = "\"}}";
    char *header = (char *)malloc(COLONS + sizeof begin + sizeof end);
    struct rlimit before, tight;
    StFile file;
    sprintf(header, "%s%*s%s", begin, COLONS, "", end);
    memset(header + sizeof begin - 1, ':', COLONS);
    getrlimit(RLIMIT_DATA, &before);
    tight = before;
    tight.rlim_cur = 200 << 20;
    if (!CHECK_SANITIZED) setrlimit(RLIMIT_DATA, &tight);
    CHECK(parse(&file, header, 0), "%s", error);
    setrlimit(RLIMIT_DATA, &before);
    CHECK(st_meta(&file, "k") && strlen(st_meta(&file, "k")) == COLONS, "the colons");
    st_free(&file);
    free(header);
}

// The names that PyTorch gives the tensors of a wrapped model.
static void test_wrapped(void) {
    const float one = 1;
    StTensor tensors[] = {tensor_of("module.z", ST_F32, 0, 0, 0, &one),
                          tensor_of("_orig_mod.module.module.a", ST_F32, 0, 0, 0, &one),
                          tensor_of("n_averaged", ST_F32, 0, 0, 0, &one), tensor_of("z", ST_F32, 0, 0, 0, &one)};
    const char *path = in_folder("wrapped.safetensors");
    StFile file;
    CHECK(st_write(path, tensors, 3, NULL, 0, error) && model_read(&file, path, error), "%s", error);
    CHECK(file.n_tensors == 3 && st_find(&file, "a") && st_find(&file, "n_averaged") && st_find(&file, "z"), "a, z");
    st_free(&file);
    CHECK(st_write(path, tensors, 4, NULL, 0, error) && !model_read(&file, path, error), "z is there twice");
    CHECK(strstr(error, "has two tensors of the name 'z'"), "it says: %s", error);
}

static void test_truncations(void) {
    size_t n;
    char *whole = sample(&n);
    int accepted = 0, silent = 0;
    for (size_t size = 0; size < n; size++) {
        char *bytes = (char *)malloc(size ? size : 1);
        memcpy(bytes, whole, size);
        StFile file;
        error[0] = 0;
        if (st_parse(&file, bytes, size, "test file", error)) {
            accepted++;
            st_free(&file);
        }
        silent += !error[0];
    }
    CHECK(accepted == 0 && silent == 0, "%d cut files were accepted, %d gave no sentence", accepted, silent);
    free(whole);
}

static uint64_t random_state = 1;
static uint32_t random_below(uint32_t n) { // Knuth's linear congruential generator
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

// Whatever is accepted must lie within its bytes, tile the data, and be readable to its last element.
static bool consistent(const StFile *file) {
    const char *end = (const char *)file->bytes + file->size;
    double sum = 0;
    for (int i = 0; i < file->n_tensors; i++) {
        const StTensor *t = &file->tensors[i];
        int64_t bytes = t->count * st_size(t->type);
        if ((const char *)t->data < (const char *)file->bytes + 8 || bytes > end - (const char *)t->data) return false;
        if (!utf8_valid(t->name) || !st_find(file, t->name)) return false;
        for (int64_t j = 0; j < bytes; j++) sum += ((const char *)t->data)[j];
        for (int64_t j = 0; j < t->count && st_is_float(t); j++) sum += st_get(t, j);
    }
    for (int i = 0; i < file->n_meta; i++) {
        if (!utf8_valid(file->meta[i].value) || st_meta(file, file->meta[i].key) != file->meta[i].value) return false;
    }
    volatile double used = sum;
    (void)used;
    return true;
}

static void test_mutations(void) {
    static const char *pieces[] = {"\"",
                                   "{",
                                   "}",
                                   "[",
                                   "]",
                                   ",",
                                   ":",
                                   "\\u",
                                   "\\ud83c\\udfb9",
                                   "0",
                                   "9",
                                   "1000000",
                                   "\"F32\"",
                                   "\"shape\":",
                                   "\\",
                                   "\n",
                                   "\"dtype\":",
                                   "[0,0]",
                                   "null",
                                   "-1",
                                   "1e3",
                                   "\xff",
                                   "\xc3",
                                   "{\"a\":",
                                   " ",
                                   "",
                                   "__metadata__",
                                   "\"U8\"",
                                   "9223372036854775807"};
    size_t n;
    char *whole = sample(&n);
    int accepted = 0, inconsistent = 0, silent = 0, tries = 30000;
    for (int t = 0; t < tries; t++) {
        size_t size = n;
        char *bytes = (char *)malloc(n + 256);
        memcpy(bytes, whole, n);
        for (uint32_t edits = 1 + random_below(3); edits--;) {
            size_t at = random_below((uint32_t)(t % 4 ? 350 : size)) % size, length;
            const char *piece = pieces[random_below(sizeof pieces / sizeof *pieces)];
            switch (random_below(5)) {
            case 0: bytes[at] = (char)random_below(256); break;
            case 1: bytes[at] = (char)(bytes[at] ^ 1 << random_below(8)); break;
            case 2: // insert
                length = strlen(piece);
                memmove(bytes + at + length, bytes + at, size - at);
                memcpy(bytes + at, piece, length);
                size += length;
                break;
            case 3: // delete
                length = 1 + random_below(8);
                if (length >= size - at) break;
                memmove(bytes + at, bytes + at + length, size - at - length);
                size -= length;
                break;
            default: // overwrite
                length = strlen(piece);
                if (length <= size - at) memcpy(bytes + at, piece, length);
            }
        }
        if (t % 8 && size > 8) { // else nearly every edit would only be a wrong length
            uint64_t header = 0;
            memcpy(&header, whole, 8);
            header += size - n;
            memcpy(bytes, &header, 8);
        }
        char *exact = (char *)malloc(size); // so that the sanitizer sees every step outside
        memcpy(exact, bytes, size);
        free(bytes);
        StFile file;
        error[0] = 0;
        if (st_parse(&file, exact, size, "test file", error)) {
            accepted++;
            inconsistent += !consistent(&file);
            st_free(&file);
        } else {
            silent += !error[0];
        }
    }
    free(whole);
    printf("safetensors: %d of %d mutations still load\n", accepted, tries);
    CHECK(inconsistent == 0 && silent == 0, "%d files were misread, %d gave no sentence", inconsistent, silent);
    CHECK(accepted > tries / 100 && accepted < tries / 2, "%d of %d mutations load, so the search says little",
          accepted, tries);
}

static bool holds(const char *path, const char *text) { // is this the whole content?
    void *bytes = NULL;
    size_t size = 0;
    bool same = read_file(path, &bytes, &size, error) && size == strlen(text) && !memcmp(bytes, text, size);
    free(bytes);
    return same;
}

static bool exists(const char *path) {
    struct stat about;
    return !stat(path, &about);
}

static void test_reading_trouble(void) {
    StFile file;
    CHECK(!st_read(&file, in_folder("absent"), error) && strstr(error, "/absent: cannot be opened: "), "%s", error);
    CHECK(!st_read(&file, folder, error) && strstr(error, ": is a folder; give a file"), "%s", error);
    CHECK(!st_read(&file, "/dev/null", error) && strstr(error, "is not a regular file"), "%s", error);
    write_file_atomically(in_folder("empty"), "", 0, error);
    CHECK(!st_read(&file, in_folder("empty"), error) && strstr(error, "it has 0 bytes"), "%s", error);
    write_file_atomically(in_folder("text"), "Dear reader, this is no tensor\n", 31, error);
    CHECK(!st_read(&file, in_folder("text"), error) && strstr(error, "not a safetensors file"), "%s", error);
    fail(error, "a\x1b[31m%s", "\n");
    CHECK(!strcmp(error, "a?[31m?"), "control characters reach the terminal: %s", error);
    fail(error, "%s again", error);
    CHECK(!strcmp(error, "a?[31m? again"), "a sentence may be part of itself: %s", error);
}

static void test_writing(void) {
    const char *path = in_folder("file");
    CHECK(write_file_atomically(path, "old", 3, error) && holds(path, "old"), "%s", error);
    CHECK(write_file_atomically(path, "new and longer", 14, error) && holds(path, "new and longer"), "%s", error);
    CHECK(!exists(in_folder("file.1.tmp")), "the temporary file is left over");

    CHECK(!write_file_atomically(folder, "x", 1, error) && strstr(error, "it is a folder"), "%s", error);
    // A pipe of our own stands for all devices: if this check ever breaks, nothing of the machine is lost.
    CHECK(!mkfifo(in_folder("pipe"), 0600), "no pipe could be made");
    CHECK(!write_file_atomically(in_folder("pipe"), "x", 1, error) && strstr(error, "not a regular file"), "%s", error);
    CHECK(!write_file_atomically(in_folder("no/such"), "x", 1, error) && strstr(error, "its folder must exist"), "%s",
          error);
    CHECK(!write_file_atomically(in_folder("file/x"), "x", 1, error) && strstr(error, "its folder must exist"), "%s",
          error);
    CHECK(!write_file_atomically("", "x", 1, error) && strstr(error, "has no name"), "%s", error);

    StTensor twice[] = {tensor_of("a", ST_U8, 1, 1, 0, "x"), tensor_of("a", ST_U8, 1, 1, 0, "y")};
    CHECK(!st_write(path, twice, 2, NULL, 0, error) && strstr(error, "'a' is there twice"), "%s", error);
    StTensor bad = tensor_of("\xff", ST_U8, 1, 1, 0, "x");
    CHECK(!st_write(path, &bad, 1, NULL, 0, error) && strstr(error, "not allowed"), "%s", error);
    StMeta bad_meta = {"k", "\xff"};
    CHECK(!st_write(path, NULL, 0, &bad_meta, 1, error) && strstr(error, "not UTF-8"), "%s", error);
    CHECK(holds(path, "new and longer"), "a failed write changed the old file");
}

// Temporary files: those of programs that live, of dead ones, and what only has such a name.
static void test_temporary(void) {
    AtomicFile first, second;
    const char *path = in_folder("shared");
    CHECK(atomic_open(&first, path, error) && atomic_open(&second, path, error), "%s", error);
    const char *temporary = first.temporary.text;
    CHECK(strcmp(temporary, second.temporary.text), "two writers share %s", temporary);
    atomic_write(&first, "first", 5);
    atomic_write(&second, "second", 6);
    CHECK(write_file_atomically(path, "third", 5, error) && holds(path, "third"), "%s", error);
    CHECK(exists(temporary) && exists(second.temporary.text), "a living writer has lost its file");
    CHECK(atomic_close(&second, error) && holds(path, "second"), "%s", error);
    CHECK(atomic_close(&first, error) && holds(path, "first"), "%s", error);
    CHECK(!exists(temporary), "%s is left over", temporary);
    for (int lockless = 0; lockless < 2; lockless++) {
        pid_t child = fork();
        if (child == 0) { // two programs that are killed
            raise(atomic_open(&first, path, error) && atomic_open(&second, path, error) ? SIGKILL : SIGTERM);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL, "the kill");
        no_locks = lockless;
        CHECK(exists(temporary), "where is %s?", temporary);
        CHECK(write_file_atomically(path, "x", 1, error) && holds(path, "x"), "%s", error);
        CHECK(exists(temporary) == lockless && exists(in_folder("shared.2.tmp")) == lockless, "%s after its death",
              temporary);
        no_locks = 0;
    }

    // A link is neither followed nor taken for left over, nor is anything else that is no file of ours.
    write_file_atomically(in_folder("victim"), "precious", 8, error);
    CHECK(!symlink(in_folder("victim"), in_folder("linked.1.tmp")) &&
              !symlink(in_folder("nowhere"), in_folder("linked.2.tmp")) && !mkfifo(in_folder("linked.3.tmp"), 0600) &&
              !mkdir(in_folder("linked.4.tmp"), 0700),
          "links");
    write_file_atomically(in_folder("linked.tmp"), "yours", 5, error);
    CHECK(write_file_atomically(in_folder("linked"), "x", 1, error) && holds(in_folder("linked"), "x"), "%s", error);
    CHECK(holds(in_folder("victim"), "precious") && holds(in_folder("linked.1.tmp"), "precious") &&
              !exists(in_folder("nowhere")) && holds(in_folder("linked.tmp"), "yours") &&
              exists(in_folder("linked.3.tmp")) && exists(in_folder("linked.4.tmp")),
          "another's file was taken");

    // A file keeps its mode; a new one has the usual one.
    static const mode_t modes[] = {0600, 0640, 0666, 0400};
    struct stat about;
    const mode_t mask = umask(027);
    path = in_folder("mode");
    CHECK(write_file_atomically(path, "x", 1, error) && !stat(path, &about) && (about.st_mode & 07777) == 0640, "new");
    for (int i = 0; i < 4; i++) {
        CHECK(!chmod(path, modes[i]) && write_file_atomically(path, "y", 1, error), "%s", error);
        CHECK(!stat(path, &about) && (about.st_mode & 07777) == modes[i], "%o became %o", (unsigned)modes[i],
              (unsigned)about.st_mode);
    }
    umask(mask);
}

// Runs one attempt in a child process, because limits and users cannot be taken back; reports through a pipe.
static void in_child(void (*restrict_child)(void), const char *path, const char *expected) {
    int ends[2];
    char text[ERROR_SIZE] = "the child died";
    if (pipe(ends)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        static char big[1 << 20];
        restrict_child();
        bool ok = write_file_atomically(path, big, sizeof big, error);
        strcpy(text, ok ? "it was written" : error);
        _exit(write(ends[1], text, sizeof text) != (ssize_t)sizeof text);
    }
    close(ends[1]);
    if (read(ends[0], text, sizeof text) < 0) strcpy(text, "no report");
    close(ends[0]);
    waitpid(child, NULL, 0);
    CHECK(strstr(text, expected) && strstr(text, path) == text, "expected '%s', got '%s'", expected, text);
    CHECK(holds(path, "old"), "the old file is gone");
    char temporary[600];
    snprintf(temporary, sizeof temporary, "%s.1.tmp", path);
    CHECK(!exists(temporary), "%s is left over", temporary);
}

static void small_files_only(void) { // what a full disk is to a program
    struct rlimit limit = {100000, 100000};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void become_nobody(void) { // root may write anywhere
    if (geteuid() == 0 && setuid(65534)) _exit(1);
}

static void test_unwritable(void) {
    const char *path = in_folder("limited");
    write_file_atomically(path, "old", 3, error);
    in_child(small_files_only, path, "make room, or write elsewhere");

    mkdir(in_folder("locked"), 0755);
    path = in_folder("locked/file");
    write_file_atomically(path, "old", 3, error);
    chmod(folder, 0755);
    chmod(in_folder("locked"), 0555);
    in_child(become_nobody, path, "choose a folder that you may write to");
    const bool root = !geteuid() && !seteuid(65534);
    CHECK(!make_folders(in_folder("locked/new/deep"), error) && strstr(error, "locked/new: ") &&
              strstr(error, strerror(EACCES)),
          "%s", error);
    if (root && seteuid(0)) exit(1);
    chmod(in_folder("locked"), 0755);
}

int main(void) {
    char command[300];
    check_folder(folder);
    test_round_trip();
    test_exact_bytes();
    test_foreign_files();
    test_conversions();
    test_damaged_headers();
    test_colons();
    test_wrapped();
    test_truncations();
    test_mutations();
    test_reading_trouble();
    test_writing();
    test_temporary();
    test_unwritable();
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(!system(command), "the scratch folder stays");
    return check_report("safetensors");
}
