// How inputs of the targets that read safetensors files are changed. Bytes alone rarely stay a file, because the header
// has its length and each tensor its place. So a change is one of three: any bytes, the header's or the data's, with
// the length mended; or a file is read and written again with another type, shape, name, number or metadata value.
#ifndef FUZZ_TENSORS_H
#define FUZZ_TENSORS_H

#include "fuzz.h"

// A target of files that hold something looks for new ways behind the parser, which has a target of its own: that one
// defines ROUGH first, of how many changes one is of bytes.
#ifdef ROUGH
#include "base/safetensors.h"
#else
#define ROUGH 16
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function)
#include "base/safetensors.h"
#pragma clang attribute pop
#endif

UNTRACED static void add_json(TextBuffer *out, const char *text) { // a quoted string
    text_add(out, "\"", 1);
    for (; *text; text++) {
        const bool plain = (unsigned char)*text >= 32 && *text != '"' && *text != '\\';
        if (plain) text_add(out, text, 1);
        if (!plain) text_print(out, "\\u%04x", *text);
    }
    text_add(out, "\"", 1);
}

// A file's text, with tensors of these sizes in bytes: the `count` bytes that each has are repeated or cut. added: the
// key of one more metadata value, or NULL.
UNTRACED static TextBuffer file_text(const StFile *file, const int64_t *sizes, const char *added) {
    TextBuffer out = {NULL, 0, 0, false};
    int64_t at = 0;
    text_add(&out, "\0\0\0\0\0\0\0\0{\"__metadata__\":{", 25);
    for (int i = 0; i < file->n_meta; i++) {
        if (i) text_add(&out, ",", 1);
        add_json(&out, file->meta[i].key);
        text_add(&out, ":", 1);
        add_json(&out, file->meta[i].value);
    }
    if (added) text_print(&out, "%s\"%s\":\"1,1\"", file->n_meta ? "," : "", added);
    text_add(&out, "}", 1);
    for (int i = 0; i < file->n_tensors; i++) {
        const StTensor *t = &file->tensors[i];
        text_add(&out, ",", 1);
        add_json(&out, t->name);
        text_print(&out, ":{\"dtype\":\"%s\",\"shape\":[", st_type_name(t->type));
        for (int d = 0; d < t->rank; d++) text_print(&out, d ? ",%lld" : "%lld", (long long)t->shape[d]);
        text_print(&out, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + sizes[i]));
        at += sizes[i];
    }
    text_add(&out, "}", 1);
    const uint64_t length = out.size - 8;
    memcpy(out.bytes, &length, 8);
    for (int i = 0; i < file->n_tensors; i++) {
        const int64_t has = file->tensors[i].count;
        for (int64_t k = 0, part; k < sizes[i]; k += part) {
            part = has && has < sizes[i] - k ? has : sizes[i] - k;
            if (has) text_add(&out, file->tensors[i].data, (size_t)part);
            if (!has) text_print(&out, "%*s", (int)(part = part < 64 ? part : 64), "");
        }
    }
    return out;
}

// Changes one thing of a file that can be read. Returns its new size, 0 where there is none.
UNTRACED static size_t mutate_file(uint8_t *bytes, size_t size, size_t most, unsigned seed) {
    static const int64_t dimensions[] = {0, 1, 2, 3, 7, 64, 153, 65536, 1 << 20, INT64_MAX};
    static const uint32_t numbers[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1, 0x80000000, 0x3F800000, 0};
    static const char *const keys[] = {"best_loss", "best_epoch", "best_step", "ended",
                                       "seconds",   "test_loss",  "epoch",     "window"}; // not in every file
    char value[512], error[ERROR_SIZE];
    StFile file;
    char *copy = malloc(size + 1);
    if (!copy) abort();
    memcpy(copy, bytes, size);
    if (!st_parse(&file, copy, size, "", error)) return 0;
    for (int i = 0; i < file.n_tensors; i++) file.tensors[i].count *= st_size(file.tensors[i].type);
    const unsigned what = seed % 10, which = seed / 10, how = seed / 4096;
    StTensor *t = file.n_tensors ? &file.tensors[which % (unsigned)file.n_tensors] : NULL;
    StMeta *meta = file.n_meta ? &file.meta[which % (unsigned)file.n_meta] : NULL;
    int64_t sizes[256];
    if (what == 0 && t) t->type = (StType)(how % ST_TYPE_COUNT);
    if (what <= 2 && t && t->rank) t->shape[how % (unsigned)t->rank] = dimensions[how / 8 % 10];
    if (what == 3 && t && t->rank) t->shape[how % (unsigned)t->rank] ^= how >> 8 & 3;
    if (what == 4 && t && how % 2) *t = file.tensors[--file.n_tensors];
    if (what == 4 && t && how % 2 == 0 && t->rank < ST_MAX_RANK) t->shape[t->rank++] = 1;
    if (what == 5 && meta && how % 4 == 0) *meta = file.meta[--file.n_meta];
    const char *added = what == 5 && how % 4 == 1 ? keys[how / 4 % 8] : NULL;
    if (what >= 5 && what <= 6 && meta && how % 4 >= 2) {
        const size_t had = strnlen(meta->value, sizeof value - 1);
        memcpy(value, meta->value, had);
        value[LLVMFuzzerMutate((uint8_t *)value, had, sizeof value - 1)] = 0;
        meta->value = value;
    }
    if (what >= 7 && t && t->count && st_size(t->type) == 4) {
        memcpy((char *)t->data + how / 32 % (uint64_t)t->count / 4 * 4, &numbers[how % 8], 4);
    }
    size_t all = 0;
    for (int i = 0; i < file.n_tensors && i < 256 && all <= most; i++) {
        double bytes_now = st_size(file.tensors[i].type);
        for (int d = 0; d < file.tensors[i].rank; d++) bytes_now *= (double)file.tensors[i].shape[d];
        sizes[i] = bytes_now >= 0 && bytes_now <= (double)most ? (int64_t)bytes_now : 0;
        all += (size_t)sizes[i];
    }
    TextBuffer out = {NULL, 0, 0, false};
    if (file.n_tensors <= 256 && all <= most) out = file_text(&file, sizes, added);
    st_free(&file);
    if (out.size > most) out.size = 0;
    if (out.size) memcpy(bytes, out.bytes, out.size);
    free(out.bytes);
    return out.size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t most, unsigned seed) {
    const size_t changed = seed % ROUGH ? mutate_file(bytes, size, most, seed / ROUGH) : 0;
    if (changed) return changed;
    uint64_t header = 0;
    if (size >= 8) memcpy(&header, bytes, 8);
    if (size < 8 || size == most || header > size - 8 || seed / ROUGH % 16 == 0) {
        return LLVMFuzzerMutate(bytes, size, most);
    }
    const size_t data = size - 8 - header;
    if (seed / ROUGH % 4 == 1) return 8 + header + LLVMFuzzerMutate(bytes + 8 + header, data, most - 8 - header);
    uint8_t *part = malloc(most); // the header, to grow or shrink before the data
    if (!part) abort();
    memcpy(part, bytes + 8, header);
    uint64_t length = LLVMFuzzerMutate(part, header, most - 8 - data);
    memmove(bytes + 8 + length, bytes + 8 + header, data);
    memcpy(bytes + 8, part, length);
    memcpy(bytes, &length, 8);
    free(part);
    return 8 + length + data;
}

#endif
