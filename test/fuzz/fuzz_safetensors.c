// base/safetensors.h: any bytes are a file, whose every tensor lies inside it, or a sentence. A file that was read is
// written; what is written is read again as the same tensors and metadata, and is written again as the same bytes.
#define ROUGH 2
#include "tensors.h"

UNTRACED static void promise_file(const StFile *file) {
    const char *begin = file->bytes, *end = begin + file->size;
    int64_t tiled = 0;
    for (int i = 0; i < file->n_tensors; i++) {
        const StTensor *t = &file->tensors[i];
        const int64_t bytes = t->count * st_size(t->type);
        int64_t count = 1;
        for (int d = 0; d < t->rank; d++) count *= t->shape[d];
        PROMISE(t->rank >= 0 && t->rank <= ST_MAX_RANK && count == t->count, "%s: its shape", t->name);
        PROMISE((const char *)t->data >= begin + 8 && bytes >= 0 && bytes <= end - (const char *)t->data, "%s",
                t->name);
        PROMISE(st_find(file, t->name) == t && utf8_valid(t->name), "%s is not found", t->name);
        tiled += bytes;
        for (int64_t e = 0; e < t->count && e < 16; e++)
            PROMISE(st_is_float(t) || !st_get(t, e), "%s: its type", t->name);
    }
    uint64_t header;
    memcpy(&header, begin, 8);
    PROMISE((uint64_t)tiled == file->size - 8 - header, "%lld bytes of tensors", (long long)tiled);
    for (int i = 0; i < file->n_meta; i++) {
        PROMISE(st_meta(file, file->meta[i].key) == file->meta[i].value, "%s is not found", file->meta[i].key);
        PROMISE(utf8_valid(file->meta[i].value), "%s is no UTF-8", file->meta[i].key);
    }
}

UNTRACED static void promise_same(const StFile *a, const StFile *b) {
    PROMISE(a->n_tensors == b->n_tensors && a->n_meta == b->n_meta, "a tensor or a metadata value was lost");
    for (int i = 0; i < a->n_tensors; i++) {
        const StTensor *x = &a->tensors[i], *y = &b->tensors[i];
        PROMISE(!strcmp(x->name, y->name) && x->type == y->type && x->rank == y->rank &&
                    !memcmp(x->shape, y->shape, (size_t)x->rank * sizeof *x->shape) &&
                    !memcmp(x->data, y->data, (size_t)(x->count * st_size(x->type))),
                "%s differs", x->name);
    }
    for (int i = 0; i < a->n_meta; i++) {
        PROMISE(!strcmp(a->meta[i].key, b->meta[i].key) && !strcmp(a->meta[i].value, b->meta[i].value), "%s differs",
                a->meta[i].key);
    }
}

// Writes the file, and reads what was written.
UNTRACED static StFile rewritten(const StFile *file) {
    char error[ERROR_SIZE];
    const char *path = scratch_path("a.safetensors");
    StFile again;
    PROMISE(st_write(path, file->tensors, file->n_tensors, file->meta, file->n_meta, error), "%s", error);
    PROMISE(st_read(&again, path, error), "%s", error);
    PROMISE(again.size % 64 == 0 || again.n_tensors, "the data are not aligned");
    return again;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    char error[ERROR_SIZE] = "";
    void *bytes = malloc(size + 1); // a NUL follows the bytes of a file that was read
    if (!bytes) abort();
    memcpy(bytes, input, size);
    ((char *)bytes)[size] = 0;
    StFile file;
    if (!st_parse(&file, bytes, size, "file", error)) {
        promise_sentence(error);
        PROMISE(!file.bytes && !file.tensors && !file.meta, "something is left of a file that is none");
        return 0;
    }
    promise_file(&file);
    StFile second = rewritten(&file), third = rewritten(&second);
    promise_same(&file, &second);
    PROMISE(second.size == third.size && !memcmp(second.bytes, third.bytes, third.size), "other bytes");
    planted(file.bytes, size + 1);
    st_free(&file);
    st_free(&second);
    st_free(&third);
    return 0;
}
