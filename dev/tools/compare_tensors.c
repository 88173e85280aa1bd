// safetensors files seen and compared: models, resume states, the trainers' dumps, datasets.
//
//     compare_tensors show FILE                    the metadata, and what each tensor holds
//     compare_tensors compare A B --rtol 1e-5      how far the tensors of A are from those of B, the reference
//
// Two tensors of floating point, of any precisions, agree when ||a - b|| / max(||b||, n / 1000) is at most the relative
// tolerance; n is the largest norm of B's tensors of the same family, which is what a name has before its first dot
// (param, new, grad, act). It stands in for the norm of a tensor that is zero but for rounding, such as the gradient of
// a key's bias. A ReLU whose input is zero but for rounding may be open in one file only; then what goes back through
// it differs as a whole, and --relu allows the gradients as much. Tensors of other types agree when they are equal; NaN
// and infinity agree with nothing.
//
// Promises: exit status 0 only if every tensor that both files have agrees and none that --require names is missing;
// the last line is for scripts. Left out: values of complex and 8-bit floating types, which are compared as bytes.
#include "base/flags.h" // first: it chooses the system's interfaces
#include "base/program.h"
#include "base/safetensors.h"

#include <fnmatch.h>

enum { MAX_PATTERN = 200, MAX_WIDTH = 100 };

// ---- values

static bool is_number(const StTensor *tensor) {
    return tensor->type != ST_C64 && strncmp(st_type_name(tensor->type), "F8_", 3);
}

// Element i, or 0 where it is no number; whole numbers beyond 2^53 are rounded.
static double value_of(const StTensor *tensor, int64_t i) {
    if (st_is_float(tensor) || !is_number(tensor)) return st_get(tensor, i);
    int64_t bits = 0; // little-endian: a short element fills the low bytes
    size_t size = (size_t)st_size(tensor->type);
    memcpy(&bits, (const char *)tensor->data + (size_t)i * size, size);
    switch (tensor->type) {
    case ST_I8: return (double)(int8_t)bits;
    case ST_I16: return (double)(int16_t)bits;
    case ST_I32: return (double)(int32_t)bits;
    case ST_U64: return (double)(uint64_t)bits;
    default: return (double)bits;
    }
}

// Sums of squares and norms are long double, so that no double overflows or vanishes in them where that is wider.
static long double norm_of(const StTensor *tensor) {
    long double sum = 0;
    for (int64_t i = 0; i < tensor->count; i++) {
        long double value = value_of(tensor, i);
        sum += value * value;
    }
    return sqrtl(sum);
}

// ---- text

static void print_text(const char *text) { // up to MAX_WIDTH bytes, what is not to be shown as '?'
    int n = 0;
    for (int step; text[n] && (step = utf8_length(text + n, strlen(text + n))) && n + step <= MAX_WIDTH; n += step) {
        for (int i = n; i < n + step; i++) putchar(shown_length(text + n, (size_t)step) ? text[i] : '?');
    }
    if (text[n]) printf("... (%zu bytes)", strlen(text));
}

static const char *index_text(const StTensor *tensor, int64_t at, char text[200]) { // of element number at
    int64_t index[ST_MAX_RANK];
    for (int d = tensor->rank - 1; d >= 0; at /= tensor->shape[d--]) index[d] = at % tensor->shape[d];
    return st_shape_text(text, tensor->rank, index);
}

static int name_width(int width, const StFile *file) { // at least width
    for (int i = 0; i < file->n_tensors; i++) {
        int length = (int)strlen(file->tensors[i].name);
        if (length > width && length <= 60) width = length;
    }
    return width;
}

static void print_name(const char *name, int width) {
    print_text(name);
    printf("%*s  ", strlen(name) < (size_t)width ? width - (int)strlen(name) : 0, "");
}

// ---- show

static void show_tensor(const StTensor *tensor, int width) {
    char shape[200];
    double min = INFINITY, max = -INFINITY;
    long double sum = 0, squares = 0;
    int64_t finite = 0;
    print_name(tensor->name, width);
    printf("%-5s %-14s", st_type_name(tensor->type), st_shape_text(shape, tensor->rank, tensor->shape));
    if (!is_number(tensor) || !tensor->count) {
        printf(tensor->count ? "\n" : "  empty\n");
        return;
    }
    for (int64_t i = 0; i < tensor->count; i++) {
        double value = value_of(tensor, i);
        if (!isfinite(value)) continue;
        if (value < min) min = value;
        if (value > max) max = value;
        sum += value;
        squares += (long double)value * value;
        finite++;
    }
    if (finite) {
        printf(" %11.5g %11.5g %11.4g %11.5g", min, max, (double)(sum / finite), (double)sqrtl(squares / finite));
    }
    if (finite < tensor->count) printf("  %lld NOT FINITE", (long long)(tensor->count - finite));
    printf("\n");
}

static bool show(const char *path, char *error) {
    StFile file;
    if (!st_read(&file, path, error)) return false;
    int width = name_width(6, &file);
    long long elements = 0;
    for (int i = 0; i < file.n_tensors; i++) elements += file.tensors[i].count;
    print_line(stdout, "%s: %d tensors, %lld elements, %zu bytes", path, file.n_tensors, elements, file.size);
    for (int i = 0; i < file.n_meta; i++) {
        printf("  ");
        print_text(file.meta[i].key);
        printf(" = ");
        print_text(file.meta[i].value);
        printf("\n");
    }
    if (file.n_tensors) {
        printf("\n%-*s  %-5s %-14s %11s %11s %11s %11s\n", width, "tensor", "type", "shape", "min", "max", "mean",
               "rms");
    }
    for (int i = 0; i < file.n_tensors; i++) show_tensor(&file.tensors[i], width);
    st_free(&file);
    return true;
}

// ---- compare

typedef struct { // the beginning of names; * in it fits anything
    char glob[MAX_PATTERN + 2];
    double rtol;
} Pattern;

typedef struct {
    Pattern list[MAX_TEXTS];
    int n;
} Patterns;

typedef struct {
    StFile a, b;
    long double *norms, *of_family; // of b's tensors, see find_norms
    Patterns tolerances, required, relus;
    double relu_rtol; // by which gradients may differ because of them
    bool quiet;
    int width, compared, failed, only_one, missing;
    double used; // the largest part of a tolerance, and whose it is
    const char *worst;
} Comparison;

static const Pattern *last_fitting(const Patterns *patterns, const char *name) { // or NULL
    for (int i = patterns->n - 1; i >= 0; i--) {
        if (!fnmatch(patterns->list[i].glob, name, 0)) return &patterns->list[i];
    }
    return NULL;
}

// Each text is PATTERN, or with rtol F or PATTERN=F.
static bool patterns_read(Patterns *patterns, const Texts *texts, bool rtol, char *error) {
    for (; patterns->n < texts->n; patterns->n++) {
        Pattern *pattern = &patterns->list[patterns->n];
        const char *text = texts->list[patterns->n], *equals = strrchr(text, '=');
        size_t length = strlen(text);
        if (rtol) {
            Flags scratch = {0};
            Flag *number = flag_number(&scratch, "rtol", &pattern->rtol, 0, "[0, inf)", "");
            const char *value = equals ? equals + 1 : text;
            if (!flag_set(number, value, error)) return fail(error, "--rtol %.60s: %s", text, error);
            length = equals ? (size_t)(equals - text) : 0;
        }
        if (length > MAX_PATTERN) return fail(error, "%.60s...: a pattern has at most %d bytes", text, MAX_PATTERN);
        snprintf(pattern->glob, sizeof pattern->glob, "%.*s*", (int)length, text);
    }
    return true;
}

// Of N ReLUs about half are open. Where k of them are open in one file only, ||a - b|| / ||b|| of what comes back
// through is about sqrt(k / (N / 2)), and of the gradients behind it too. A single one may weigh four times the mean,
// where sums cancel; many average out.
static void find_relus(Comparison *c) {
    long long all = 0, differ = 0;
    double squares = 0;
    for (int i = 0; i < c->a.n_tensors; i++) {
        const StTensor *a = &c->a.tensors[i], *b = st_find(&c->b, a->name);
        if (!last_fitting(&c->relus, a->name) || !b || a->count != b->count) continue;
        long long k = 0;
        for (int64_t e = 0; e < a->count; e++) k += (value_of(a, e) > 0) != (value_of(b, e) > 0);
        all += a->count;
        differ += k;
        if (a->count) squares += 2 * (double)k / (double)a->count;
    }
    if (differ) c->relu_rtol = sqrt(squares) * (1 + 3 / sqrt((double)differ));
    if (c->relus.n) printf("%lld of %lld ReLUs differ: %.2g more for grad.\n", differ, all, c->relu_rtol);
}

static bool same_family(const StTensor *a, const StTensor *b) {
    const size_t length = strcspn(a->name, ".");
    return strcspn(b->name, ".") == length && !strncmp(a->name, b->name, length);
}

// The norms of b's tensors, and of each family, which lie side by side, the largest that is finite.
static void find_norms(Comparison *c) {
    const StTensor *b = c->b.tensors;
    const int n = c->b.n_tensors;
    c->norms = must_have(calloc(2 * (size_t)n + 1, sizeof *c->norms));
    long double *of_family = c->of_family = c->norms + n;
    for (int i = 0; i < n; i++) {
        c->norms[i] = norm_of(&b[i]);
        if (isfinite(c->norms[i])) of_family[i] = c->norms[i];
        if (i && same_family(&b[i - 1], &b[i])) of_family[i] = fmaxl(of_family[i - 1], of_family[i]);
    }
    for (int i = n - 1; i > 0; i--) {
        if (same_family(&b[i - 1], &b[i])) of_family[i - 1] = of_family[i];
    }
}

static void compare_tensor(Comparison *c, const StTensor *a, const StTensor *b) {
    char text[200], other[200];
    bool floats = st_is_float(a) && st_is_float(b);
    c->compared++;
    if (a->rank != b->rank || memcmp(a->shape, b->shape, sizeof a->shape) || (!floats && a->type != b->type)) {
        c->failed++;
        print_name(a->name, c->width);
        printf("%s %s against %s %s  FAIL\n", st_type_name(a->type), st_shape_text(text, a->rank, a->shape),
               st_type_name(b->type), st_shape_text(other, b->rank, b->shape));
        return;
    }
    const char *in_a = (const char *)a->data, *in_b = (const char *)b->data;
    size_t size = (size_t)st_size(a->type);
    double max = 0;
    int64_t worst = 0;
    long double sum = 0;
    for (int64_t i = 0; i < a->count; i++) {
        double x = value_of(a, i), y = value_of(b, i), gap = fabs(x - y);
        if (floats && (!isfinite(x) || !isfinite(y))) gap = INFINITY;
        // Doubles do not tell all whole numbers apart, bytes do.
        if (!floats) gap = memcmp(in_a + (size_t)i * size, in_b + (size_t)i * size, size) ? fmax(gap, 1) : 0;
        sum += (long double)gap * gap;
        if (gap > max) {
            max = gap;
            worst = i;
        }
    }
    const Pattern *tolerance = last_fitting(&c->tolerances, a->name);
    double rtol = !floats ? 0 : tolerance ? tolerance->rtol : 1e-5;
    if (!strncmp(a->name, "grad.", 5)) rtol += c->relu_rtol;
    const int64_t at = b - c->b.tensors;
    long double norm = fmaxl(c->norms[at], c->of_family[at] / 1000);
    double relative = max == 0 ? 0 : floats && isfinite(max) ? (double)(sqrtl(sum) / norm) : INFINITY;
    double used = relative == 0 ? 0 : relative / rtol;
    bool good = used <= 1 && !isinf(norm); // NaN is not
    if (!good) c->failed++;
    if (!(used <= c->used)) {
        c->used = used;
        c->worst = a->name;
    }
    if (good && c->quiet) return;
    print_name(a->name, c->width);
    printf("%-14s %9.3g %9.3g %9.3g", st_shape_text(text, a->rank, a->shape), max, relative, used);
    if (max > 0) {
        printf("  %s %.9g %.9g", index_text(a, worst, text), value_of(a, worst), value_of(b, worst));
    }
    printf(good ? "\n" : "  FAIL\n");
}

static void one_sided(Comparison *c, const StTensor *tensor, const char *path) {
    bool required = last_fitting(&c->required, tensor->name);
    c->only_one++;
    if (required) c->missing++;
    if (c->quiet && !required) return;
    print_name(tensor->name, c->width);
    print_line(stdout, "only in %s%s", path, required ? ", and required  FAIL" : "");
}

static bool in_file(const char *glob, const StFile *file) {
    int i = 0;
    while (i < file->n_tensors && fnmatch(glob, file->tensors[i].name, 0)) i++;
    return i < file->n_tensors;
}

static bool compare(Comparison *c, const char *path_a, const char *path_b, char *error) {
    if (!st_read(&c->a, path_a, error) || !st_read(&c->b, path_b, error)) return false;
    find_norms(c);
    find_relus(c);
    c->width = name_width(name_width(6, &c->a), &c->b);
    printf("%-*s  %-14s %9s %9s %9s  %s\n", c->width, "tensor", "shape", "max diff", "relative", "of rtol",
           "farthest element, in A, in B");
    for (int i = 0, j = 0; i < c->a.n_tensors || j < c->b.n_tensors;) { // both are sorted by name
        const StTensor *a = i < c->a.n_tensors ? &c->a.tensors[i] : NULL;
        const StTensor *b = j < c->b.n_tensors ? &c->b.tensors[j] : NULL;
        int order = !a ? 1 : !b ? -1 : st_by_name(a, b);
        if (order < 0) one_sided(c, a, path_a);
        if (order > 0) one_sided(c, b, path_b);
        if (order == 0) compare_tensor(c, a, b);
        i += order <= 0;
        j += order >= 0;
    }
    for (int i = 0; i < c->required.n; i++) {
        const char *glob = c->required.list[i].glob;
        if (in_file(glob, &c->a) || in_file(glob, &c->b)) continue;
        print_line(stdout, "%s is required, and in neither file  FAIL", glob);
        c->missing++;
    }
    printf("compare tensors=%d failed=%d only_one=%d missing=%d used=%.3g worst=", c->compared, c->failed, c->only_one,
           c->missing, c->used);
    print_text(c->worst ? c->worst : "-");
    printf("\n");
    if (!c->compared) return fail(error, "%s and %s have no tensor in common; nothing was compared", path_a, path_b);
    return !c->failed && !c->missing;
}

// ---- the program

static const char before_flags[] =
    "compare_tensors - what safetensors files hold, and how far two of them are apart\n\n"
    "  compare_tensors show FILE          metadata; of each tensor type, shape, min, max, mean, rms\n"
    "  compare_tensors compare A B        of each tensor that both have: the largest difference, the relative\n"
    "                                     one ||a - b|| / ||b||, the part of the tolerance that it takes, and\n"
    "                                     where the largest is; tensors that only one file has are listed.\n"
    "                                     With --relu, of whose N outputs k are positive in one file\n"
    "                                     only, grad. may differ by sqrt(2k / N) (1 + 3 / sqrt(k)) more\n\n";
static const char behind_flags[] =
    "\nPATTERN is the beginning of a name, * in it fits anything: --rtol 1e-5 --rtol 'act.layers.*.attn=1e-4'\n"
    "--require grad. --require loss. Of several tolerances the last that fits counts. Whole numbers must be\n"
    "equal; NaN and infinity never agree. The last line is for scripts:\n"
    "    compare tensors=363 failed=0 only_one=0 missing=0 used=0.412 worst=grad.layers.0.attn.rel\n"
    "Exit status: 0 all is within tolerance, 1 it is not or a file cannot be read, 2 wrong usage.\n";

int main(int argc, char **argv) {
    Flags flags = {0};
    Texts words, tolerances, required, relus;
    Comparison c = {0};
    char error[ERROR_SIZE] = "";
    program_start();
    flag_texts(&flags, "", "show|compare FILE", &words, 3, "what to do, and with which files");
    flag_texts(&flags, "rtol", "[PATTERN=]F", &tolerances, MAX_TEXTS, "relative tolerance, of these names [1e-5]");
    flag_texts(&flags, "require", "PATTERN", &required, MAX_TEXTS, "both files must have these tensors");
    flag_texts(&flags, "relu", "PATTERN", &relus, MAX_TEXTS, "outputs of ReLUs; see above");
    flag_switch(&flags, "quiet", &c.quiet, "print only what fails, and the last line");
    bool good = flags_parse(&flags, argc, argv, error) && patterns_read(&c.tolerances, &tolerances, true, error) &&
                patterns_read(&c.required, &required, false, error) && patterns_read(&c.relus, &relus, false, error);
    if (good && flags_answer(&flags, "compare_tensors", before_flags, behind_flags)) {
        return program_end("compare_tensors", 0, error);
    }
    bool shows = words.n == 2 && !strcmp(words.list[0], "show");
    if (good && !shows && (words.n != 3 || strcmp(words.list[0], "compare"))) {
        good = fail(error, "write `show FILE` or `compare A B`; --help says more");
    }
    if (good && shows && (tolerances.n || required.n || relus.n || c.quiet)) {
        good = fail(error, "--rtol, --require, --relu and --quiet go with compare only");
    }
    if (!good) return program_end("compare_tensors", 2, error);
    int status = shows ? !show(words.list[1], error) : !compare(&c, words.list[1], words.list[2], error);
    st_free(&c.a);
    st_free(&c.b);
    free(c.norms);
    return program_end("compare_tensors", status, error);
}
