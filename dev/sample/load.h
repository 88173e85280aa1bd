// Memory for models at work, and weights on their way into it: tensors of a safetensors file are checked and copied
// into one block of memory, in the arrangements that weights.h multiplies.
//
//     Loader from = {&file, path, precision, error, true, 0, {NULL, 0}};   without memory: checks all, counts how much
//     from.arena = (Arena){vector_alloc(...), 0};                          the same calls again: copies
//     fc1 = load_linear(&from, rows, cols, "layers.%d.fc1", layer);
//
// It promises that a tensor that is missing, of another shape or type, or that holds a number that is not finite ends
// in one sentence that names the file and the tensor. C11, gcc and clang.
#pragma once

#include "base/params.h" // first: it chooses the system's interfaces

#include "sample/weights.h"

// ---- memory

// Zeroed memory, aligned for vectors, in whole large pages where it is much, for free(); see allocate_or_advise.
static inline float *vector_alloc(const char *what, int64_t floats, const char *advice, char *error) {
    const int64_t page = (2 << 20) / (int64_t)sizeof(float), whole = floats < page ? floats : round_up(floats, page);
    return allocate_or_advise(what, (double)whole, sizeof(float), advice, error);
}

// So many floats of a block of memory, and zeros up to the next whole panel. Without memory it only counts.
static inline float *take(Arena *arena, int64_t floats) { return arena_take(arena, (double)round_up(floats, PANEL)); }

static inline Rows take_rows(Arena *arena, int n, int64_t floats) { // n vectors
    const int64_t stride = round_up(floats, PANEL);
    return (Rows){take(arena, n * stride), stride};
}

static inline float *row(Rows rows, int i) { return rows.at + i * rows.stride; }

static inline Rows shared(float *vector) { return (Rows){vector, 0}; } // by all songs of a batch

// ---- weights out of a file

// A model's file on its way into memory.
typedef struct {
    const StFile *file;
    const char *path;
    Precision precision; // of the large matrices
    char *error;
    bool ok;       // false once a sentence is in error
    int64_t bytes; // of the arrays that a token reads
    Arena arena;
} Loader;

// How the rows of a tensor lie in memory.
typedef enum {
    ROWS,   // one after the other, [rows][cols rounded up to LANES]
    PANELS, // in panels, see weights.h
    GATES   // in panels, each of which holds LANES units with their four gates, [units / LANES][cols][4][LANES]
} Arrangement;

static inline bool load_no_memory(const Loader *from) {
    return fail(from->error, "%s: does not fit into memory", from->path);
}

// The sizes of a model, as sizes_of_file of its kind reads them out of the tensors' shapes.
static inline bool load_sizes(Loader *from, bool (*sizes_of_file)(const StFile *, int *, char *), int *sizes) {
    from->ok = sizes_of_file(from->file, sizes, from->error) || fail(from->error, "%s: %s", from->path, from->error);
    return from->ok;
}

// The tensor of a name, if it has this rank (1 or 2) and, where they are not 0, these sizes; else NULL and a sentence.
// A name is what `format` says of the layer, and then the part: "layers.%d.fc1", 3, ".bias".
static inline const StTensor *load_tensor(Loader *from, int rank, int64_t rows, int64_t cols, const char *format,
                                          int layer, const char *part) {
    const int64_t want[2] = {rows ? rows : -(1 << 20), cols ? cols : -(1 << 20)};
    char name[80];
    if (!from->ok) return NULL;
    snprintf(name, sizeof name, format, layer);
    strcat(name, part);
    const StTensor *tensor = file_tensor(from->file, name, rank, want, from->error);
    from->ok = tensor || fail(from->error, "%s: %s", from->path, from->error);
    return tensor;
}

// Row `row` of a tensor of so many rows becomes this row of the matrix in memory.
static inline int row_in_memory(Arrangement arrangement, int row, int rows) {
    if (arrangement != GATES) return row;
    const int units = rows / 4, gate = row / units, unit = row % units;
    return unit / LANES * PANEL + gate * LANES + unit % LANES;
}

// The tensor's numbers as floats, all finite, [rows][cols], for free(). NULL where there is no tensor or no arena
// memory yet; NULL and a sentence where they cannot be had.
static inline float *load_numbers(Loader *from, const StTensor *tensor) {
    if (!tensor || !from->arena.base) return NULL;
    float *copy = malloc((size_t)tensor->count * sizeof *copy);
    from->ok = copy || load_no_memory(from);
    for (int64_t i = 0; from->ok && i < tensor->count; i++) {
        copy[i] = (float)st_get(tensor, i);
        if (isfinite(copy[i])) continue;
        from->ok = fail(from->error, "%s: tensor '%s' has a number that is not finite", from->path, tensor->name);
    }
    if (from->ok) return copy;
    free(copy);
    return NULL;
}

// A matrix of weights [rows][cols] in a precision: checked and counted, and copied once there is memory.
static inline Weights load_matrix(Loader *from, Precision precision, Arrangement arrangement, int rows, int cols,
                                  const char *format, int layer, const char *part) {
    const int high = arrangement == GATES ? 4 * (int)round_up(rows / 4, LANES) : rows;
    Weights w = {precision, cols, high, NULL, NULL, NULL};
    const StTensor *tensor = load_tensor(from, 2, rows, cols, format, layer, part);
    if (tensor && precision == INT8 && cols > 65536) {
        from->ok = fail(from->error, "%s: tensor '%s' has rows of %d, too long for int8; take --weights float32",
                        from->path, tensor->name, cols);
    }
    if (!from->ok) return w;
    w.panels = take(&from->arena, panels_words(precision, cols, high));
    if (precision == INT8) {
        w.scales = take(&from->arena, high);
        w.starts = (int32_t *)(void *)take(&from->arena, high);
    }
    from->bytes += ((int64_t)cols * 4 / columns_a_word(precision) + (precision == INT8 ? 8 : 0)) * rows;
    float *copy = load_numbers(from, tensor);
    for (int i = 0; copy && i < rows; i++) {
        weights_set_row(&w, row_in_memory(arrangement, i, rows), copy + (int64_t)i * cols);
    }
    free(copy);
    return w;
}

// The same for other floats: a vector [rows] if cols is 0, else a matrix [rows][cols] in ROWS.
static inline float *load_floats(Loader *from, Arrangement arrangement, int rows, int cols, const char *format,
                                 int layer, const char *part) {
    const StTensor *tensor = load_tensor(from, cols ? 2 : 1, rows, cols, format, layer, part);
    if (!tensor) return NULL;
    const int64_t high = arrangement == GATES ? 4 * round_up(rows / 4, LANES) : rows;
    const int64_t wide = cols ? round_up(cols, LANES) : 1, width = cols ? cols : 1;
    float *to = take(&from->arena, high * wide), *copy = load_numbers(from, tensor);
    if (!cols) from->bytes += (int64_t)rows * 4;
    for (int i = 0; copy && i < rows; i++) {
        memcpy(to + row_in_memory(arrangement, i, rows) * wide, copy + i * width, (size_t)width * sizeof *copy);
    }
    free(copy);
    return to;
}

// NAME.weight and NAME.bias of y = bias + W x [rows][cols].
typedef struct {
    Weights weights;
    float *bias;
} Linear;

static inline Linear load_linear(Loader *from, int rows, int cols, const char *format, int layer) {
    const Weights weights = load_matrix(from, from->precision, PANELS, rows, cols, format, layer, ".weight");
    return (Linear){weights, load_floats(from, PANELS, rows, 0, format, layer, ".bias")};
}

// The same two, each [n], of a LayerNorm.
typedef struct {
    float *weight, *bias;
} Norm;

static inline Norm load_norm(Loader *from, int n, const char *format, int layer) {
    float *weight = load_floats(from, PANELS, n, 0, format, layer, ".weight");
    return (Norm){weight, load_floats(from, PANELS, n, 0, format, layer, ".bias")};
}
