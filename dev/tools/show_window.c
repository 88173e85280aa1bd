// A window of a piece as trained models see it, as a page to click through: on the piano roll the loss of each token,
// and for any token what a model found likeliest and what went on inside of it, the attention of each head of a
// Transformer or the gates of each unit of an LSTM. Two models stand side by side.
//
//     dev/tools/show_window out/gpt/model.safetensors out/lstm/model.safetensors piece.mid -o show.html
//
// Promises. The page is one file that needs nothing else; it appears whole or not at all; the same models and piece
// give the same bytes. The losses are those of the trainers' --eval for this window, 256 tokens and the one before
// them, to rounding: models begin anew with it and know nothing of the bars before. A piece that is shorter, or ends
// sooner, is shown as far as it goes.
//
// The models are run by the sampler's decoder, the page is the player's (dev/sample/player.html) with what
// dev/tools/window.html adds. Weights and gates are rounded to 15 levels, so that the page of a published Transformer
// has 3 MB; losses and probabilities are not.
#include "sample/decoder.h" // first: it chooses the system's interfaces

#include "base/flags.h"
#include "base/program.h"
#include "build/window_page.h" // static const char window_page[]
#include "sample/formats.h"
#include "sample/measure.h"

#define MIDI_STATIC
#define MIDI_IMPLEMENTATION
#include "midi.h"

// ---- the window

typedef struct {
    const char *path;
    uint8_t *tokens; // of the piece, owned
    size_t n, first; // how many are shown, from which one on
    int64_t bar;     // at which it begins, from 1
    int tempo;       // the piece's first one, in microseconds a quarter
} Window;

// Finds the token behind so many bar lines. False: there is no such bar, or nothing in it.
static bool window_find(Window *w, size_t n_tokens, char *error) {
    Place place = {0};
    int64_t bar = 1;
    for (w->first = 0; bar < w->bar && w->first < n_tokens; w->first++) bar += place_see(&place, w->tokens[w->first]);
    w->n = n_tokens - w->first < WINDOW + 1 ? n_tokens - w->first : WINDOW + 1;
    if (w->n > 1) return true;
    return fail(error, "--from %lld: the music of %s ends in bar %lld", (long long)w->bar, w->path,
                (long long)(bar - (bar == w->bar)));
}

static bool window_read(Window *w, char *error) {
    midi_song song;
    midi_report report;
    midi_error problem;
    size_t n = 0;
    const bool ok = midi_read_file(&song, w->path, 32 << 20, &problem) &&
                    midi_encode(&song, &w->tokens, &n, &report, &problem) && midi_usable(&song, &report, &problem);
    const int tempo = song.n_tempos ? song.tempos[0].us_per_quarter : 500000;
    w->tempo = tempo < 60000 ? 60000 : tempo > 15000000 ? 15000000 : tempo; // which the player can show
    midi_free(&song);
    return ok ? window_find(w, n, error) : fail(error, "%s: %s", w->path, problem.text);
}

// ---- what goes on inside a model

// Numbers from 0 to 1 as multiples of 1/14, two in a byte, the first of them in its low half.
typedef struct {
    uint8_t *bytes; // owned; zeros, and room for all
    size_t n;
} Inside;

static void keep(Inside *to, double x) {
    const int level = x > 0 ? (int)(14 * x + 0.5) : 0; // of a NaN 0
    to->bytes[to->n / 2] |= (uint8_t)(level << 4 * (to->n % 2));
    to->n++;
}

// A layer of a Transformer: for each head the square roots of its weights on all tokens so far, which show small ones
// better. A layer of an LSTM: the gates i of all units, then f, then (g + 1) / 2, then o.
static void see(const Batch *b, int layer, void *inside) {
    (void)layer; // they come in order
    if (b->model->kind == GPT) {
        for (int h = 0; h < b->model->gpt.NH; h++) {
            const float *scores = row(b->gpt.scores, 0) + h * b->gpt.entries;
            const int n = gpt_filled(&b->gpt, 0);
            double top = -INFINITY, sum = 0;
            for (int j = 0; j < n; j++) top = fmax(top, scores[j]);
            for (int j = 0; j < n; j++) sum += exp(scores[j] - top);
            for (int j = 0; j < n; j++) keep(inside, sqrt(exp(scores[j] - top) / sum));
        }
    } else {
        const int H = b->model->lstm.H;
        for (int r = 0; r < 4 * H; r++) {
            const double x = row(b->lstm.gates, 0)[row_in_memory(GATES, r, 4 * H)];
            keep(inside, r / H == 2 ? (tanh(x) + 1) / 2 : 1 / (1 + exp(-x)));
        }
    }
}

static size_t numbers_seen(const Model *m, size_t n) { // of n tokens
    if (m->kind == GPT) return n * (n + 1) / 2 * (size_t)m->gpt.L * (size_t)m->gpt.NH;
    return n * (size_t)m->lstm.L * 4 * (size_t)m->lstm.H;
}

// ---- the page

// "[loss,token,probability,...]": the loss of a token, and which ones the model found likeliest before it came.
static void add_row(TextBuffer *out, const float *logits, int token) {
    bool said[V] = {false};
    text_print(out, "[%.7g", surprise(logits, token));
    for (int i = 0; i < 5; i++) {
        int best = -1;
        for (int v = 0; v < V; v++) {
            if (!said[v] && (best < 0 || logits[v] > logits[best])) best = v;
        }
        said[best] = true;
        text_print(out, ",%d,%.4g", best, exp(-surprise(logits, best)));
    }
    text_print(out, "]");
}

static bool add_model(TextBuffer *out, const Window *w, const Model *m, char *error) {
    const bool gpt = m->kind == GPT;
    const size_t size = (numbers_seen(m, w->n - 1) + 1) / 2;
    Inside inside = {calloc(size, 1), 0};
    Batch batch;
    bool ok = inside.bytes || fail(error, "%s: no memory for %zu bytes to show", m->path, size);
    if (!ok || !batch_new(&batch, m, 1, WINDOW, error)) {
        free(inside.bytes);
        return false;
    }
    text_print(out, "{\"about\":");
    player_string(out, m->about);
    text_print(out, ",\"kind\":\"%s\",\"layers\":%d,\"units\":%d,\"rows\":[", kind_names[m->kind],
               gpt ? m->gpt.L : m->lstm.L, gpt ? m->gpt.NH : m->lstm.H);
    batch_begin(&batch, 0);
    for (size_t t = 0; ok && t + 1 < w->n; t++) {
        const uint8_t *token = w->tokens + w->first + t;
        batch_watch(&batch, (int[]){0}, 1, (int[]){token[0]}, see, &inside);
        ok = row_finite(row(batch.logits, 0), V) || not_finite(m, error);
        text_print(out, t ? ",\n" : "\n");
        if (ok) add_row(out, row(batch.logits, 0), token[1]);
    }
    text_print(out, "],\n\"inside\":\"");
    player_base64(out, inside.bytes, size);
    text_print(out, "\"}");
    batch_free(&batch);
    free(inside.bytes);
    return ok;
}

// The player's page of the window as a song, up to its end.
static bool add_song(TextBuffer *out, const Window *w, const Model *models, int n_models, char *error) {
    const char *slash = strrchr(w->path, '/'), *name = slash ? slash + 1 : w->path, *end = "</body>\n</html>\n";
    Mark tempo = {0, 0, w->tempo};
    Song song = {.n = w->n, .tokens = w->tokens + w->first};
    char settings[HOW_SIZE + 300];
    snprintf(song.model, sizeof song.model, "%.200s", name);
    song_add_setting(&song, "%zu tokens from bar %lld of the piece on", w->n - 1, (long long)w->bar);
    snprintf(settings, sizeof settings, "%s, as %s%s%s see%s them", song.how, models[0].name,
             n_models > 1 ? " and " : "", n_models > 1 ? models[1].name : "", n_models > 1 ? "" : "s");
    player_open(out);
    song_finish(&song, false, &(Marks){.tempos = &tempo, .n_tempos = 1});
    const bool ok = player_song(out, &song, name, settings, true, error);
    player_close(out);
    out->size -= out->failed ? 0 : strlen(end);
    song.tokens = NULL; // the window's
    song_free(&song);
    return ok;
}

static bool make_page(TextBuffer *out, const Window *w, const Model *models, int n_models, char *error) {
    if (!add_song(out, w, models, n_models, error)) return false;
    text_print(out, "<script id=\"window\" type=\"application/json\">\n{\"tokens\":[");
    for (size_t i = 0; i < w->n; i++) text_print(out, "%s%d", i ? "," : "", w->tokens[w->first + i]);
    text_print(out, "],\n\"models\":[");
    for (int k = 0; k < n_models; k++) {
        text_print(out, k ? ",\n" : "");
        if (!add_model(out, w, &models[k], error)) return false;
    }
    text_print(out, "]}\n</script>\n");
    text_add(out, window_page, strlen(window_page));
    return true;
}

// ---- the program

static bool run(const Texts *words, int64_t bar, const char *path, char *error) {
    const int n_models = words->n - 1;
    Window window = {.path = words->list[n_models], .bar = bar};
    Model models[2] = {{0}};
    TextBuffer out = {NULL, 0, 0, false};
    bool ok = window_read(&window, error) && folder_is_writable(path, error);
    for (int k = 0; ok && k < n_models; k++) ok = model_load(&models[k], words->list[k], FLOAT32, error);
    ok = ok && make_page(&out, &window, models, n_models, error);
    if (ok)
        ok = text_write(&out, path, error);
    else
        free(out.bytes);
    for (int k = 0; k < n_models; k++) model_free(&models[k]);
    MIDI_FREE(window.tokens);
    return ok;
}

int main(int argc, char **argv) {
    Flags flags = {0};
    Texts words;
    int64_t bar;
    const char *path;
    char error[ERROR_SIZE] = "";
    program_start();
    flag_texts(&flags, "", "FILE", &words, 3, "one model or two, and then a .mid file");
    flag_text(&flags, "o", "PAGE", &path, "show.html", "the page to write");
    flag_whole(&flags, "from", &bar, 1, 1, 1e9, "the bar at which the window begins");
    const char *about = "show_window - a window of a piece as trained models see it, as a page to click through\n\n";
    bool good = flags_parse(&flags, argc, argv, error);
    if (good && flags_answer(&flags, "show_window", about, "")) return program_end("show_window", 0, error);
    if (good && words.n < 2) good = fail(error, "give a model, or two, and then a .mid file; --help says more");
    return program_end("show_window", good ? !run(&words, bar, path, error) : 2, error);
}
