// safetensors: named tensors and a few strings in one file that PyTorch, NumPy and a person can read.
//
//     8 bytes   length of the header, little-endian
//     header    JSON: {"__metadata__": {"key": "value", ...},
//                      "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
//     data      the tensors' bytes, little-endian, row-major; offsets count from here
//
// Promises, reading: any bytes at all give a file whose every tensor lies inside it, or a sentence; never a crash. As
// the format demands, the tensors must tile the data exactly: overlaps, holes and bytes left over are errors, as they
// are in the reference reader. Stricter than that one: duplicate names or keys, unknown fields and \u0000 are errors
// too, and ranks end at 8. Any order, alignment and JSON spacing is taken. Data may be unaligned, which st_get minds.
// Writing: the same input gives the same bytes; the data starts at a multiple of 64; a killed program, a full disk or a
// forbidden folder leaves the old file or the new one, never half of one.
//
// Left out: types below a byte (F4, F6), files larger than memory, big-endian machines, systems without POSIX.
// Format: https://huggingface.co/docs/safetensors. C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#include "base/text.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h: tensors are used as they lie in the file, which needs a little-endian machine"
#endif

// clang-format off
#define ST_TYPES(X)                                                                                                    \
    X(BOOL, 1) X(U8, 1) X(I8, 1) X(F8_E5M2, 1) X(F8_E4M3, 1) X(F8_E8M0, 1)                                             \
    X(I16, 2) X(U16, 2) X(F16, 2) X(BF16, 2)                                                                           \
    X(I32, 4) X(U32, 4) X(F32, 4)                                                                                      \
    X(C64, 8) X(F64, 8) X(I64, 8) X(U64, 8)
// clang-format on

#define ST_ENUM(name, size) ST_##name,
#define ST_ROW(name, size) {#name, size},
typedef enum { ST_TYPES(ST_ENUM) ST_TYPE_COUNT } StType;

static const struct {
    const char *name; // as the header has it
    int size;         // bytes of one element
} st_types[] = {ST_TYPES(ST_ROW)};

enum { ST_MAX_RANK = 8, ST_MAX_HEADER = 100000000 }; // the header's limit is the reference reader's

static inline int st_size(StType type) { return st_types[type].size; }

static inline const char *st_type_name(StType type) { return st_types[type].name; }

typedef struct {
    const char *name;
    StType type;
    int rank; // 0: a scalar
    int64_t shape[ST_MAX_RANK];
    int64_t count;    // elements, the product of the shape
    const void *data; // count * st_size(type) bytes, at any address
} StTensor;

// "[153, 256]", of a scalar "[]"; a size below 0 is "any".
static inline const char *st_shape_text(char text[200], int rank, const int64_t *shape) {
    int n = snprintf(text, 200, "[");
    for (int d = 0; d < rank; d++) { // of 8 sizes at most, 20 digits each
        n += snprintf(text + n, (size_t)(200 - n), shape[d] < 0 ? "%sany" : "%s%lld", d ? ", " : "",
                      (long long)shape[d]);
    }
    snprintf(text + n, (size_t)(200 - n), "]");
    return text;
}

typedef struct {
    const char *key, *value;
} StMeta;

typedef struct {
    StTensor *tensors; // by name, in strcmp's order
    int n_tensors;
    StMeta *meta; // by key
    int n_meta;
    void *bytes; // the file; names, strings and data point into it
    size_t size;
} StFile;

static inline void st_free(StFile *file) {
    free(file->tensors);
    free(file->meta);
    free(file->bytes);
    memset(file, 0, sizeof *file);
}

typedef struct { // where the parser stands in the header, and where its complaint goes
    const char *path, *begin, *end;
    char *at; // strings are unescaped in place, which never makes them longer
    char *error;
} StText;

static inline bool st_expected(const StText *text, const char *what) {
    return fail(text->error, "%s: not a safetensors file: byte %lld of its header should be %s", text->path,
                (long long)(text->at - text->begin) + 8, what);
}

static inline void st_skip(StText *text) { // JSON's white space
    while (text->at < text->end && *text->at && strchr(" \t\r\n", *text->at)) text->at++;
}

static inline bool st_take(StText *text, char c) { // c after white space, if it is next
    st_skip(text);
    if (text->at == text->end || *text->at != c) return false;
    text->at++;
    return true;
}

static inline bool st_need(StText *text, char c) {
    char what[] = "' '";
    what[1] = c;
    return st_take(text, c) || st_expected(text, what);
}

static inline int st_parse_hex(StText *text) { // four hexadecimal digits, or -1
    if (text->end - text->at < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++, text->at++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF", *digit = strchr(digits, *text->at);
        if (!digit || !*digit) return -1;
        value = value * 16 + (int)(digit - digits) % 16;
    }
    return value;
}

// An escape, the backslash already taken. Writes at most 4 bytes of UTF-8 to *to; false without a sentence.
static inline bool st_parse_escape(StText *text, char **to) {
    if (text->at == text->end) return false;
    const char *from = "\"\\/bfnrt", *into = "\"\\/\b\f\n\r\t", *simple = strchr(from, *text->at);
    char c = *text->at++;
    if (!c) return false;
    if (simple) {
        *(*to)++ = into[simple - from];
        return true;
    }
    int code = c == 'u' ? st_parse_hex(text) : -1;
    if (code >= 0xD800 && code < 0xDC00) { // the first half of a surrogate pair
        if (text->end - text->at < 2 || text->at[0] != '\\' || text->at[1] != 'u') return false;
        text->at += 2;
        int low = st_parse_hex(text);
        if (low < 0xDC00 || low > 0xDFFF) return false;
        code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00);
    } else if (code <= 0 || (code >= 0xDC00 && code < 0xE000)) {
        return false;
    }
    static const int firsts[] = {0, 0xC0, 0xE0, 0xF0};
    int more = (code >= 0x80) + (code >= 0x800) + (code >= 0x10000); // bytes of six bits each behind the first
    *(*to)++ = (char)(firsts[more] | code >> 6 * more);
    while (more--) *(*to)++ = (char)(0x80 | (code >> 6 * more & 63));
    return true;
}

static inline bool st_parse_string(StText *text, const char **out) {
    if (!st_take(text, '"')) return st_expected(text, "the quote that opens a string");
    char *to = text->at;
    *out = to;
    while (text->at < text->end && *text->at != '"') {
        if (*text->at == '\\') {
            text->at++;
            if (!st_parse_escape(text, &to)) return st_expected(text, "part of a valid \\ escape (and not \\u0000)");
            continue;
        }
        int length = utf8_length(text->at, (size_t)(text->end - text->at));
        if (!length || (unsigned char)*text->at < 32) return st_expected(text, "a UTF-8 character of a string");
        while (length--) *to++ = *text->at++;
    }
    if (text->at == text->end) return st_expected(text, "the quote that closes a string");
    text->at++;
    *to = 0;
    return true;
}

// A list of integers, each 0 to 2^63-1: how many there are, and the first max of them.
static inline bool st_parse_integers(StText *text, int64_t *list, int max, int *n) {
    *n = 0;
    if (!st_need(text, '[')) return false;
    if (st_take(text, ']')) return true;
    do {
        st_skip(text);
        int64_t value = 0;
        const char *first = text->at;
        for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
            int digit = *text->at - '0';
            if (value > (INT64_MAX - digit) / 10) return st_expected(text, "within an integer below 2^63");
            value = value * 10 + digit;
        }
        if (text->at == first) return st_expected(text, "a digit");
        if (*first == '0' && text->at > first + 1) return st_expected(text, "an integer without leading zeros");
        if (*n < max) list[*n] = value;
        ++*n;
    } while (st_take(text, ','));
    return st_need(text, ']');
}

// {"dtype": ..., "shape": ..., "data_offsets": ...} in any order, checked against the data's size.
static inline bool st_parse_tensor(StText *text, StTensor *tensor, const char *data, size_t data_size) {
    char *error = text->error;
    const char *path = text->path, *key, *type;
    int64_t offsets[2] = {0, 0};
    int n_offsets = 0, seen = 0;
    if (!st_need(text, '{')) return false;
    do {
        if (!st_parse_string(text, &key) || !st_need(text, ':')) return false;
        int field = !strcmp(key, "dtype") ? 1 : !strcmp(key, "shape") ? 2 : !strcmp(key, "data_offsets") ? 4 : 0;
        if (!field || (seen & field)) {
            return fail(error, "%s: tensor '%.80s' has %s field '%.80s'; it must have dtype, shape and data_offsets",
                        path, tensor->name, field ? "a second" : "the unknown", key);
        }
        seen |= field;
        if (field == 1) {
            if (!st_parse_string(text, &type)) return false;
            int found = 0;
            while (found < ST_TYPE_COUNT && strcmp(type, st_type_name((StType)found))) found++;
            if (found == ST_TYPE_COUNT) {
                return fail(error,
                            "%s: tensor '%.80s' has the unknown dtype '%.80s'; known are BOOL, U8 to U64, I8 to I64, "
                            "F8_*, F16, BF16, F32, F64 and C64",
                            path, tensor->name, type);
            }
            tensor->type = (StType)found;
        } else if (field == 2) {
            if (!st_parse_integers(text, tensor->shape, ST_MAX_RANK, &tensor->rank)) return false;
        } else if (!st_parse_integers(text, offsets, 2, &n_offsets)) {
            return false;
        }
    } while (st_take(text, ','));
    if (!st_need(text, '}')) return false;

    if (seen != 7) return fail(error, "%s: tensor '%.80s' lacks its dtype, shape or data_offsets", path, tensor->name);
    if (tensor->rank > ST_MAX_RANK) {
        return fail(error, "%s: tensor '%.80s' has more than %d dimensions", path, tensor->name, ST_MAX_RANK);
    }
    if (n_offsets != 2 || offsets[0] > offsets[1] || (uint64_t)offsets[1] > data_size) {
        return fail(error,
                    "%s: tensor '%.80s' should have data_offsets [begin, end] within the file's %zu bytes of data; "
                    "the file may have been cut short",
                    path, tensor->name, data_size);
    }
    int64_t bytes = st_size(tensor->type);
    for (int i = 0; i < tensor->rank; i++) {
        if (tensor->shape[i] && bytes > INT64_MAX / tensor->shape[i]) {
            return fail(error, "%s: tensor '%.80s' has a shape of 2^63 bytes or more", path, tensor->name);
        }
        bytes *= tensor->shape[i];
    }
    if (bytes != offsets[1] - offsets[0]) {
        return fail(error, "%s: tensor '%.80s' has %lld bytes of data; its dtype and shape need %lld", path,
                    tensor->name, (long long)(offsets[1] - offsets[0]), (long long)bytes);
    }
    tensor->count = bytes / st_size(tensor->type);
    tensor->data = data + offsets[0];
    return true;
}

static inline bool st_parse_meta(StText *text, StFile *file) {
    if (!st_need(text, '{')) return false;
    if (st_take(text, '}')) return true;
    do {
        StMeta *meta = &file->meta[file->n_meta];
        if (!st_parse_string(text, &meta->key) || !st_need(text, ':') || !st_parse_string(text, &meta->value))
            return false;
        file->n_meta++;
    } while (st_take(text, ','));
    return st_need(text, '}');
}

static inline int st_by_place(const void *a, const void *b) {
    const StTensor *x = (const StTensor *)a, *y = (const StTensor *)b;
    uintptr_t u = (uintptr_t)x->data, v = (uintptr_t)y->data;
    if (u != v) return u < v ? -1 : 1;
    return (x->count > 0) - (y->count > 0); // an empty tensor comes before the one that starts where it stands
}

static inline int st_by_name(const void *a, const void *b) { // of StTensor or StMeta: the name comes first in both
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static inline bool st_sort(StFile *file, const char *path, char *error) { // by name; false: two have the same one
    if (file->n_tensors) qsort(file->tensors, (size_t)file->n_tensors, sizeof(StTensor), st_by_name);
    for (int i = 1; i < file->n_tensors; i++) {
        const StTensor *t = &file->tensors[i];
        if (!st_by_name(t - 1, t)) return fail(error, "%s: has two tensors of the name '%.80s'", path, t->name);
    }
    return true;
}

// What a file is that is no safetensors file, or NULL.
static inline const char *st_other_kind(const char *bytes, size_t size) {
    if (size > 8 && bytes[8] == '{') return NULL;
    if (size >= 4 && !memcmp(bytes, "MThd", 4)) return "a MIDI file, with which sample_music goes on as --prime FILE";
    if (size >= 4 && (!memcmp(bytes, "PK\3\4", 4) || !memcmp(bytes, "\x80\2\x8a\n", 4))) {
        return "one that torch.save made; safetensors.torch.save_file(model.state_dict(), FILE) makes the right one";
    }
    size_t i = 0, length = 1;
    for (; i < size && i < 4096 && length; i += length) {
        length = strchr("\t\n\r", bytes[i]) && bytes[i] ? 1 : (size_t)shown_length(bytes + i, size - i);
    }
    return i && length ? "a text" : NULL;
}

static inline bool st_parse_all(StFile *file, const char *path, char *error) {
    uint64_t header;
    const char *kind = st_other_kind((const char *)file->bytes, file->size);
    if (kind) return fail(error, "%s: not a safetensors file, but %s", path, kind);
    if (file->size < sizeof header) {
        return fail(error, "%s: not a safetensors file: it has %zu bytes, and the header's length alone takes 8", path,
                    file->size);
    }
    memcpy(&header, file->bytes, sizeof header);
    char *begin = (char *)file->bytes + 8;
    if (header > ST_MAX_HEADER || header > file->size - 8) {
        return fail(error,
                    "%s: not a safetensors file, or cut short: it announces a header of %llu bytes and has %zu left",
                    path, (unsigned long long)header, file->size - 8);
    }
    StText text = {path, begin, begin + header, begin, error};
    const char *data = begin + header;
    size_t data_size = file->size - 8 - (size_t)header;
    if (!header || *begin != '{') return st_expected(&text, "'{'");
    st_take(&text, '{');
    // A tensor takes at least 49 bytes of the header, a string of the metadata 6; one more of each may be cut short.
    file->tensors = (StTensor *)calloc((size_t)header / 49 + 2, sizeof *file->tensors);
    file->meta = (StMeta *)calloc((size_t)header / 6 + 2, sizeof *file->meta);
    if (!file->tensors || !file->meta) return fail(error, "%s: its header does not fit into memory", path);
    bool has_meta = false;
    if (!st_take(&text, '}')) {
        do {
            const char *name;
            if (!st_parse_string(&text, &name) || !st_need(&text, ':')) return false;
            if (!strcmp(name, "__metadata__")) {
                if (has_meta) return fail(error, "%s: its header has __metadata__ twice", path);
                has_meta = true;
                if (!st_parse_meta(&text, file)) return false;
                continue;
            }
            StTensor *tensor = &file->tensors[file->n_tensors++];
            tensor->name = name;
            if (!st_parse_tensor(&text, tensor, data, data_size)) return false;
        } while (st_take(&text, ','));
        if (!st_need(&text, '}')) return false;
    }
    st_skip(&text);
    if (text.at != text.end) return st_expected(&text, "white space up to its end");

    const char *covered = data;
    qsort(file->tensors, (size_t)file->n_tensors, sizeof(StTensor), st_by_place);
    for (int i = 0; i < file->n_tensors; i++) {
        const StTensor *t = &file->tensors[i];
        if ((const char *)t->data != covered) {
            return fail(error, "%s: tensor '%.80s' %s; tensors must follow each other exactly", path, t->name,
                        (const char *)t->data < covered ? "overlaps another" : "comes after bytes that belong to none");
        }
        covered += t->count * st_size(t->type);
    }
    if (covered != data + data_size) {
        return fail(error, "%s: %lld bytes after the last tensor belong to none; the file is damaged", path,
                    (long long)(data + data_size - covered));
    }
    if (!st_sort(file, path, error)) return false;
    qsort(file->meta, (size_t)file->n_meta, sizeof(StMeta), st_by_name);
    for (int i = 1; i < file->n_meta; i++) {
        const StMeta *m = &file->meta[i];
        if (!st_by_name(m - 1, m)) return fail(error, "%s: has the metadata key '%.80s' twice", path, m->key);
    }
    return true;
}

// Parses a file that is in memory already. Takes over bytes[size] (from malloc): st_free frees it, and so does a
// failure. path only serves the sentences.
static inline bool st_parse(StFile *file, void *bytes, size_t size, const char *path, char *error) {
    memset(file, 0, sizeof *file);
    file->bytes = bytes;
    file->size = size;
    if (st_parse_all(file, path, error)) return true;
    st_free(file);
    return false;
}

// Reads a file whole. Afterwards st_free; after a failure file is empty and needs none.
static inline bool st_read(StFile *file, const char *path, char *error) {
    void *bytes;
    size_t size;
    memset(file, 0, sizeof *file);
    return read_file(path, &bytes, &size, error) && st_parse(file, bytes, size, path, error);
}

static inline const StTensor *st_find(const StFile *file, const char *name) { // or NULL
    if (!file->n_tensors) return NULL;
    return (const StTensor *)bsearch(&name, file->tensors, (size_t)file->n_tensors, sizeof(StTensor), st_by_name);
}

static inline const char *st_meta(const StFile *file, const char *key) { // the value, or NULL
    if (!file->n_meta) return NULL;
    const StMeta *found = (const StMeta *)bsearch(&key, file->meta, (size_t)file->n_meta, sizeof(StMeta), st_by_name);
    return found ? found->value : NULL;
}

static inline double st_half(uint16_t bits) { // IEEE binary16
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double size = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    if (exponent == 31) size = mantissa ? NAN : HUGE_VAL;
    return bits >> 15 ? -size : size;
}

// Element i of a F64, F32, F16 or BF16 tensor.
static inline double st_get(const StTensor *tensor, int64_t i) {
    const char *at = (const char *)tensor->data + i * st_size(tensor->type);
    double f64;
    float f32 = 0;
    uint16_t bits;
    switch (tensor->type) {
    case ST_F64: memcpy(&f64, at, sizeof f64); return f64;
    case ST_F32: memcpy(&f32, at, sizeof f32); return (double)f32;
    case ST_F16: memcpy(&bits, at, sizeof bits); return st_half(bits);
    case ST_BF16: memcpy((char *)&f32 + 2, at, 2); return (double)f32; // the upper half of a float
    default: return 0;
    }
}

static inline bool st_is_float(const StTensor *tensor) {
    return tensor->type == ST_F64 || tensor->type == ST_F32 || tensor->type == ST_F16 || tensor->type == ST_BF16;
}

// A tensor to write, shape[rank]. Nothing is copied but the shape.
static inline StTensor st_tensor(const char *name, StType type, int rank, const int64_t *shape, const void *data) {
    StTensor tensor = {name, type, rank, {0}, 0, data};
    for (int d = 0; d < rank; d++) tensor.shape[d] = shape[d];
    return tensor;
}

// The place of a tensor in the file: larger elements first, so that all are aligned without gaps, then by name.
static inline int st_by_size(const void *a, const void *b) {
    const StTensor *x = (const StTensor *)a, *y = (const StTensor *)b;
    int difference = st_size(y->type) - st_size(x->type);
    return difference ? difference : strcmp(x->name, y->name);
}

// The header, its length included, of sorted tensors and metadata. Sets the tensors' counts from their shapes.
static inline bool st_make_header(TextBuffer *out, const char *path, StTensor *tensors, int n, const StMeta *meta,
                                  int n_meta, char *error) {
    int64_t offset = 0;
    text_add(out, "\0\0\0\0\0\0\0\0{", 9);
    for (int i = 0; i < n_meta; i++) {
        if (!utf8_valid(meta[i].key) || !utf8_valid(meta[i].value) || (i && !strcmp(meta[i].key, meta[i - 1].key))) {
            return fail(error, "%s: cannot be written: metadata '%.80s' is there twice or is not UTF-8", path,
                        meta[i].key);
        }
        text_print(out, i ? ",\n" : "\"__metadata__\":{");
        text_json(out, meta[i].key, "");
        text_add(out, ":", 1);
        text_json(out, meta[i].value, "");
    }
    if (n_meta) text_print(out, n ? "},\n" : "}");
    for (int i = 0; i < n; i++) {
        StTensor *t = &tensors[i];
        if (!utf8_valid(t->name) || !strcmp(t->name, "__metadata__") || (i && !st_by_size(t, t - 1))) {
            return fail(error, "%s: cannot be written: tensor name '%.80s' is there twice or not allowed", path,
                        t->name);
        }
        if (i) text_add(out, ",\n", 2);
        text_json(out, t->name, "");
        text_print(out, ":{\"dtype\":\"%s\",\"shape\":[", st_type_name(t->type));
        t->count = 1;
        for (int d = 0; d < t->rank; d++) {
            text_print(out, d ? ",%lld" : "%lld", (long long)t->shape[d]);
            t->count *= t->shape[d];
        }
        int64_t end = offset + t->count * st_size(t->type);
        text_print(out, "],\"data_offsets\":[%lld,%lld]}", (long long)offset, (long long)end);
        offset = end;
    }
    text_add(out, "}", 1);
    while (!out->failed && out->size % 64) text_add(out, " ", 1);
    if (out->failed) return fail(error, "%s: cannot be written: out of memory", path);
    uint64_t length = out->size - 8;
    if (length > ST_MAX_HEADER) {
        return fail(error, "%s: cannot be written: its header of %llu bytes is above the limit of %d", path,
                    (unsigned long long)length, ST_MAX_HEADER);
    }
    memcpy(out->bytes, &length, sizeof length);
    return true;
}

// Writes n tensors and n_meta strings, atomically (see AtomicFile). Of a tensor its name, type, rank, shape and data
// count; they and the metadata may come in any order, and are sorted into that of the file: larger elements first, then
// by name; metadata by key.
static inline bool st_write(const char *path, StTensor *tensors, int n, StMeta *meta, int n_meta, char *error) {
    TextBuffer header = {NULL, 0, 0, false};
    AtomicFile out;
    if (n) qsort(tensors, (size_t)n, sizeof *tensors, st_by_size);
    if (n_meta) qsort(meta, (size_t)n_meta, sizeof *meta, st_by_name);
    bool ok = st_make_header(&header, path, tensors, n, meta, n_meta, error) && atomic_open(&out, path, error);
    if (ok) {
        atomic_write(&out, header.bytes, header.size);
        for (int i = 0; i < n; i++) {
            atomic_write(&out, tensors[i].data, (size_t)(tensors[i].count * st_size(tensors[i].type)));
        }
        ok = atomic_close(&out, error);
    }
    free(header.bytes);
    return ok;
}
