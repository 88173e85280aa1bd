// plain_step_gpt DUMP OUT, plain_step_lstm DUMP OUT: the plain model repeats the training step of a trainer's --dump.
//
// Weights, batch, seed, step, dropout and sizes are the dump's. OUT gets, in double and by the dump's names, every
// activation that the dump has, logits, loss, grad.*, new.* and, where the dump has it, new.average.*, and at step 0
// param.*, the plain model's own first weights. new.* is what Adamax makes of the dump's gradients, not of its own:
// near a first step that is almost lr * sign(g), and of a gradient that is zero but for rounding each program would
// make a whole step. So the update is checked to all its digits, and the gradients are by themselves.
#define TESTING
#ifdef PLAIN_lstm
#include "dev/plain/plain_lstm.c"
typedef Lstm Model;
#define MODEL(function) lstm_##function
#else
#include "dev/plain/plain_gpt.c"
typedef Gpt Model;
#define MODEL(function) gpt_##function
#endif

static void stop(const char *path, const char *what, const char *name) {
    fprintf(stderr, "plain_step: %s: %s '%s'\n", path, what, name);
    exit(1);
}

static double number_of(const StFile *dump, const char *path, const char *key) { // of the metadata
    const char *text = st_meta(dump, key);
    if (!text) stop(path, "its metadata lack", key);
    return strtod(text, NULL);
}

static Config config_of(const StFile *dump, const char *path) {
    const StTensor *input = st_find(dump, "input");
    if (!input) stop(path, "not a dump: it lacks", "input");
    Config config = {.B = (int)input->shape[0], .T = (int)input->shape[1]};
    config.dropout = number_of(dump, path, "dropout");
    config.seed = strtoull(st_meta(dump, "seed"), NULL, 10);
#ifdef PLAIN_lstm
    config.E = (int)number_of(dump, path, "embed");
    config.H = (int)number_of(dump, path, "width");
#else
    config.C = (int)number_of(dump, path, "width");
    config.NH = (int)number_of(dump, path, "heads");
    config.F = (int)number_of(dump, path, "hidden");
    config.D = (int)number_of(dump, path, "rel");
#endif
    config.L = (int)number_of(dump, path, "layers");
    return config;
}

enum { MOST = 10000 };

typedef struct { // the tensors of OUT
    StTensor list[MOST];
    char names[MOST][96];
    int n;
} Out;

// Adds n numbers as they are now, in the shape of the dump's tensor of this name.
static void out_add(Out *out, const StFile *dump, const char *path, const char *prefix, const char *name,
                    const double *numbers, int n) {
    if (out->n == MOST) stop(path, "it has too many tensors; there is no room for", name);
    snprintf(out->names[out->n], sizeof out->names[0], "%s%s", prefix, name);
    const StTensor *like = st_find(dump, out->names[out->n]);
    if (!like || like->count != n) stop(path, "it lacks, or has in another shape,", out->names[out->n]);
    double *copy = malloc((size_t)n * sizeof *copy);
    memcpy(copy, numbers, (size_t)n * sizeof *copy);
    out->list[out->n] = *like;
    out->list[out->n].name = out->names[out->n];
    out->list[out->n].type = ST_F64;
    out->list[out->n++].data = copy;
}

// Reads a parameter's numbers from the dump's tensor PREFIX NAME.
static void take(const StFile *dump, const char *path, const char *prefix, const Tensor *t, double *numbers) {
    char name[96];
    snprintf(name, sizeof name, "%s%s", prefix, t->name);
    const StTensor *from = st_find(dump, name);
    if (!from || from->count != t->rows * t->columns || !st_is_float(from)) stop(path, "it lacks", name);
    for (int64_t i = 0; i < from->count; i++) numbers[i] = st_get(from, i);
}

int main(int argc, char **argv) {
    char error[ERROR_SIZE];
    StFile dump;
    if (argc != 3) return fprintf(stderr, "plain_step: write plain_step DUMP OUT\n"), 2;
    const char *path = argv[1];
    if (!st_read(&dump, path, error)) return fprintf(stderr, "plain_step: %s\n", error), 1;
    const Config config = config_of(&dump, path);
    const int64_t step = (int64_t)number_of(&dump, path, "step");
    static Out out;
    Model m;
    MODEL(create)(&m, config);
    Tensor **params = m.all.list, **acts = params + m.all.n_params, **end = params + m.all.n;
    for (Tensor **t = params; t < acts; t++) {
        const int n = (*t)->rows * (*t)->columns;
        if (step == 0) out_add(&out, &dump, path, "param.", (*t)->name, (*t)->value, n);
        take(&dump, path, "param.", *t, (*t)->value);
        if (step > 0) take(&dump, path, "adamax.exp_avg.", *t, (*t)->exp_avg);
        if (step > 0) take(&dump, path, "adamax.exp_inf.", *t, (*t)->exp_inf);
    }
    const int R = config.B * config.T;
    const StTensor *input = st_find(&dump, "input"), *target = st_find(&dump, "target");
    int *inputs = malloc((size_t)R * sizeof *inputs), *targets = malloc((size_t)R * sizeof *targets);
    for (int r = 0; r < R; r++) {
        inputs[r] = (int)((const int64_t *)input->data)[r];
        targets[r] = (int)((const int64_t *)target->data)[r];
    }
    const double loss = MODEL(forward)(&m, inputs, targets, step);
    MODEL(backward)(&m, inputs, targets, step);
    out_add(&out, &dump, path, "loss", "", &loss, 1);
    for (Tensor **t = acts; t < end; t++) {
        if (st_find(&dump, (*t)->name))
            out_add(&out, &dump, path, "", (*t)->name, (*t)->value, (*t)->rows * (*t)->columns);
    }
    const double keep = number_of(&dump, path, "average"), part = fmax(1 - keep, 10.0 / (double)(step + 11));
    const double lr = number_of(&dump, path, "lr"), decay = lr * number_of(&dump, path, "weight_decay");
    for (Tensor **t = params; t < acts; t++) {
        const int n = (*t)->rows * (*t)->columns;
        out_add(&out, &dump, path, "grad.", (*t)->name, (*t)->grad, n);
        take(&dump, path, "grad.", *t, (*t)->grad);
        const bool matrix = out.list[out.n - 1].rank == 2;
        for (int i = 0; i < n && matrix; i++) (*t)->value[i] -= decay * (*t)->value[i];
    }
    adamax(&m.all, lr, step + 1);
    for (Tensor **t = params; t < acts; t++) {
        const int n = (*t)->rows * (*t)->columns;
        out_add(&out, &dump, path, "new.", (*t)->name, (*t)->value, n);
        if (keep == 0) continue;
        double *average = (*t)->grad; // whose numbers nobody needs any more
        take(&dump, path, step > 0 ? "average." : "param.", *t, average);
        for (int i = 0; i < n; i++) average[i] += part * ((*t)->value[i] - average[i]);
        out_add(&out, &dump, path, "new.average.", (*t)->name, average, n);
    }
    if (!st_write(argv[2], out.list, out.n, NULL, 0, error)) return fprintf(stderr, "plain_step: %s\n", error), 1;
    printf("step %d, loss %.9g: %s\n", (int)step, loss, argv[2]);
    for (int i = 0; i < out.n; i++) free((void *)out.list[i].data);
    MODEL(free)(&m);
    free(inputs);
    free(targets);
    st_free(&dump);
    return 0;
}
