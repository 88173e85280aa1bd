// sample_music.c: new piano music from trained models: .mid to play, .wav to hear, .html to do both, .svg to look at.
//
//     ./sample_music -o song.mid -o song.svg --seed 7
//     ./sample_music out/lstm/model.safetensors --prime mine.mid --top-p 0.95 -n 4 --weights int8 -o song.mid
//
// Promises. The same model, flags and seed give the same bytes, whatever the number of threads; song i of `-n N` is the
// song that `--seed s+i-1` gives, unless it is interrupted, which its file says. Every token obeys the grammar of
// midi.h, so that none is wasted. An output file appears whole or not at all.
//
// Read down: logits become a token, tokens a song, many songs are made at once, and the command line says which. The
// models that give the logits are in dev/sample/decoder.h, which says how they are fast. What a song is as music is in
// song.h there, how loud in dynamics.h, its files in formats.h, the prime in prime.h, --live in live.h, --eval and
// --bench in measure.h.

#include "sample/decoder.h" // first: it chooses the system's interfaces

#include "base/flags.h"
#include "base/limits.h"
#include "base/program.h"
#include "sample/dynamics.h"
#include "sample/figures.h"
#include "sample/formats.h"
#include "sample/keys.h"
#include "sample/live.h"
#include "sample/measure.h"
#include "sample/memory.h"
#include "sample/prime.h"
#include "sample/song.h"
#define MIDI_IMPLEMENTATION
#include "midi.h"

_Static_assert((int)DATA_TOKENS == (int)MIDI_TOKENS, "models and midi.h have the same tokens");

#define STARTER "data_prep/starter_model.safetensors" // beside this program; `make starter-model` trains it

enum { MAX_MODELS = 16, INTERRUPTED = 130 }; // the exit status that shells give to what Ctrl-C ended

static volatile sig_atomic_t interrupted; // by Ctrl-C or SIGTERM, which ends songs first and then the program

// ---- from logits to a token

typedef struct {
    double temperature; // 0: always the likeliest
    int64_t top_k;      // 0: off
    double top_p;       // 1: off
    double min_p;       // 0: off
    bool barred[V];     // pitches that are never chosen; not all of them
} Filter;

typedef struct {
    int token;
    double p;
} Candidate;

// Sorts a list in the order of tokens: likeliest first, of equal ones the lower token. By insertion, which beats qsort
// for so few.
static void sort_by_chance(Candidate *list, int n) {
    for (int i = 1; i < n; i++) {
        const Candidate next = list[i];
        int at = i;
        for (; at && list[at - 1].p < next.p; at--) list[at] = list[at - 1];
        list[at] = next;
    }
}

// The tokens that may be drawn after `previous`, likeliest first, with chances that add up to 1: those that the grammar
// allows and the filter does not bar, at the temperature; of these the top_k likeliest; of these the fewest that
// together have top_p of the chance (Holtzman et al., 2020); of these the ones at least min_p times as likely as the
// likeliest (Nguyen et al., 2024). Returns how many, at least 1: after an offset a bar line may always follow, and
// nothing else is ever barred.
static int candidates(const float *logits, int previous, const Filter *filter, Candidate list[MIDI_TOKENS]) {
    int n = 0;
    double most = -INFINITY, sum = 0, together = 0;
    for (int token = 0; token < MIDI_TOKENS; token++) {
        if (filter->barred[token] || !midi_may_follow(previous, token)) continue;
        list[n].token = token;
        list[n++].p = logits[token];
        if (logits[token] > most) most = logits[token];
    }
    for (int i = 0; i < n; i++) {
        bool top = list[i].p == most;
        list[i].p = filter->temperature > 0 ? exp((list[i].p - most) / filter->temperature) : top;
    }
    sort_by_chance(list, n);
    if (filter->temperature == 0) n = 1;
    if (filter->top_k && n > filter->top_k) n = (int)filter->top_k;
    for (int i = 0; i < n; i++) sum += list[i].p;
    for (int i = 0; i < n; i++) {
        if (i && (together >= filter->top_p * sum || list[i].p < filter->min_p * list[0].p)) n = i;
        if (i < n) together += list[i].p;
    }
    for (int i = 0; i < n; i++) list[i].p /= together;
    return n;
}

// Draws by u in [0, 1): the first candidate at which the chances, added up from the likeliest down, pass u.
static int draw(const float *logits, int previous, const Filter *filter, double u) {
    Candidate list[MIDI_TOKENS];
    int n = candidates(logits, previous, filter, list), i = 0;
    double sum = list[0].p;
    while (i < n - 1 && sum <= u) sum += list[++i].p;
    return list[i].token;
}

// ---- from tokens to a song

typedef struct { // what all songs of one call share
    Filter filter;
    int64_t tokens, bars; // at most so much new material; 0: no limit
    double seconds;       // at least so much, to the next bar line; 0: no limit, but one of the three is set
    int64_t context, songs, threads;
    double bpm, dynamics, memory;
    uint64_t seed;
    const char *scale, *lowest, *highest;
    bool live;
    Prime prime;
    TempoMap tempo; // seconds by steps
} Settings;

typedef struct { // a song in the making
    Song song;
    int64_t number; // of all songs
    const Settings *settings;
    PhiloxKey key;
    size_t most;      // new tokens at most
    size_t fed;       // tokens that the model has seen, a first BAR included if there is no prime
    int64_t bars;     // whole new ones; -1: in the bar in which a prime breaks off
    Place place;      // behind the last token
    Memory memory;    // of the song so far
    int64_t first;    // step at which the new material begins
    size_t notes;     // new ones
    size_t whole;     // tokens up to the last new bar line behind a note; 0: there is none
    double whole_nll; // the song's up to there
    double surprises, started;
    Live live;
} Maker;

// Times the music by its tempos; without a prime there is one, bpm.
static void settings_time(Settings *s) {
    Marks *marks = &s->prime.marks;
    if (!marks->n_tempos) {
        marks->tempos = must_have(calloc(1, sizeof *marks->tempos));
        marks->tempos[marks->n_tempos++].value = (int)lrint(60e6 / s->bpm);
    }
    for (size_t i = 0; i < marks->n_tempos; i++) {
        const Mark *mark = &marks->tempos[i];
        const double quarter = 60 / (i ? bpm_of(mark->value) : s->bpm);
        tempo_add(&s->tempo, (double)mark->tick / MIDI_STEP, quarter / 4);
    }
}

// The most new tokens of a song. With --bars or --seconds alone there is a limit too: a model may never end a bar.
static size_t most_tokens(const Settings *settings) {
    enum { TOKENS_IN_BAR = 2048 };
    const double step = settings->tempo.spans[settings->tempo.n - 1].unit;
    double bars = settings->bars ? (double)settings->bars : settings->seconds / step / 16 + 1;
    return settings->tokens ? (size_t)settings->tokens : (size_t)((bars < 1e5 ? bars : 1e5) * TOKENS_IN_BAR);
}

static int64_t context_needed(const Settings *settings) {
    int64_t longest = (int64_t)(settings->prime.n + most_tokens(settings) + 1);
    return longest < settings->context ? longest : settings->context;
}

static bool maker_begin(Maker *maker, const Settings *settings, uint64_t seed, char *error) {
    const size_t n = settings->prime.n, most = most_tokens(settings);
    *maker = (Maker){.settings = settings, .key = philox_key(seed, PHILOX_SAMPLE, 0), .most = most};
    maker->song = (Song){.seed = seed, .tokens = malloc(n + most), .n = n, .n_prime = n};
    if (!maker->song.tokens) return fail(error, "no memory for a song of %zu tokens", n + most);
    maker->memory.strength = settings->memory;
    for (size_t i = 0; i < n; i++) {
        place_see(&maker->place, maker->song.tokens[i] = settings->prime.tokens[i]);
        memory_chance(&maker->memory, maker->song.tokens, (int64_t)i);
        memory_see(&maker->memory, maker->song.tokens[i]);
    }
    maker->first = place_step(&maker->place);
    maker->bars = n && settings->prime.tokens[n - 1] != MIDI_BAR ? -1 : 0;
    maker->started = seconds_now();
    FILE *out = settings->live ? stdout : NULL;
    maker->live =
        (Live){.out = out, .stop = &interrupted, .quiet = settings->prime.left_out, .tempo = &settings->tempo};
    return true;
}

// The token to feed next. There always is one.
static int maker_next(const Maker *maker) {
    const Song *song = &maker->song;
    if (song->n_prime) return song->tokens[maker->fed];
    return maker->fed ? song->tokens[maker->fed - 1] : MIDI_BAR;
}

// Whether a song that has more to come goes on. An interrupted one ends: at its last bar line, or within its first bar
// where it is; without a new note nothing new is left of it. A song that was followed live keeps all that was heard,
// and the note that was to come next.
static bool maker_goes_on(Maker *maker) {
    Song *song = &maker->song;
    if (!interrupted) return true;
    song->interrupted = true;
    if (!maker->notes) song->n = song->n_prime;
    if (!maker->live.out && maker->whole) {
        song->n = maker->whole;
        song->nll = maker->whole_nll;
    }
    return false;
}

// The model has seen the token of maker_next, and these are its logits. If that was the last token there is, chooses
// one more: new token i with the random number of counter i, so that it does not matter who else draws. Returns whether
// the song goes on: it ends after so many new tokens, at the bar line at which there are enough bars or seconds, or
// when it is interrupted. (The rest of the bar in which a prime breaks off is no whole bar; bar lines count as
// song_find_lines counts them.)
static bool maker_take(Maker *maker, const float *logits) {
    Song *song = &maker->song;
    const Settings *settings = maker->settings;
    const bool lead = !song->n_prime;
    if (maker->live.out && maker->fed < song->n_prime) live_token(&maker->live, song->tokens[maker->fed], "  prime");
    if (++maker->fed < song->n + lead) return maker_goes_on(maker);
    const size_t i = song->n - song->n_prime;
    const int previous = song->n ? song->tokens[song->n - 1] : MIDI_BAR;
    Philox4 words = philox(maker->key, (uint32_t)i, 0, 0, 0);
    const double chance = memory_chance(&maker->memory, song->tokens, (int64_t)song->n);
    float mixed[V];
    memcpy(mixed, logits, sizeof mixed);
    mix(mixed, maker->memory.again, chance);
    int token = draw(mixed, previous, &settings->filter, philox_uniform(words.x[0], words.x[1]));
    song->tokens[song->n++] = (uint8_t)token;
    memory_see(&maker->memory, token);
    maker->surprises += surprise(logits, token);
    const bool line = place_see(&maker->place, token);
    maker->bars += line;
    maker->live.quiet = false;
    if (maker->live.out) live_token(&maker->live, token, "");
    const double seconds = tempo_seconds(&settings->tempo, (double)maker->first, (double)maker->place.line);
    const bool enough = line && ((settings->bars && maker->bars >= settings->bars) ||
                                 (settings->seconds > 0 && seconds >= settings->seconds - 1e-9));
    song->cut = !enough && (settings->bars || settings->seconds > 0);
    song->nll = maker->surprises / (double)(i + 1);
    song->took = seconds_now() - maker->started;
    maker->notes += midi_token_kind(token) == MIDI_KIND_DURATION;
    if (line && maker->notes) {
        maker->whole = song->n;
        maker->whole_nll = song->nll;
    }
    if (!enough && i + 1 < maker->most) return maker_goes_on(maker);
    if (maker->live.out) live_end(&maker->live);
    return false;
}

// The model and the settings in words: all that it takes to make the song again.
static void song_describe(Song *song, const Model *model, const Settings *settings) {
    const Filter *filter = &settings->filter;
    snprintf(song->model_name, sizeof song->model_name, "%s", model->name);
    snprintf(song->model, sizeof song->model, "sample_music %s, model %s", MUSIC_VERSION, model->about);
    if (settings->tokens) song_add_setting(song, "tokens %lld", (long long)settings->tokens);
    if (settings->bars) song_add_setting(song, "bars %lld", (long long)settings->bars);
    if (settings->seconds > 0) song_add_setting(song, "seconds %g", settings->seconds);
    song_add_setting(song, "temperature %g", filter->temperature);
    if (filter->top_k) song_add_setting(song, "top-k %lld", (long long)filter->top_k);
    if (filter->top_p < 1) song_add_setting(song, "top-p %g", filter->top_p);
    if (filter->min_p > 0) song_add_setting(song, "min-p %g", filter->min_p);
    if (settings->scale) song_add_setting(song, "scale %.24s", settings->scale);
    if (settings->lowest) song_add_setting(song, "lowest %.8s", settings->lowest);
    if (settings->highest) song_add_setting(song, "highest %.8s", settings->highest);
    song_add_setting(song, "memory %g", settings->memory);
    if (model->kind == GPT) song_add_setting(song, "context %lld", (long long)settings->context);
    if (settings->prime.marks.n_tempos == 1) song_add_setting(song, "bpm %g", settings->bpm);
    if (settings->dynamics < 1) song_add_setting(song, "dynamics %g", settings->dynamics);
    if (settings->prime.path) {
        const char *slash = strrchr(settings->prime.path, '/');
        song_add_setting(song, "prime %.120s (%zu tokens%s%s%s)", slash ? slash + 1 : settings->prime.path,
                         settings->prime.n, settings->prime.left_out ? ", left out" : "",
                         settings->prime.keep_short ? ", keep-short" : "",
                         settings->prime.no_drums ? ", no-drums" : "");
    }
    if (song->interrupted) { // without this the same flags would seem to give the same song
        const size_t new = song->n - song->n_prime;
        song_add_setting(song, "interrupted after %zu new token%s", new, plural(new));
    }
}

// How fast the song was made, and what ended it before it had all that was asked for.
static void report_making(const Song *song, const Settings *settings, TextBuffer *out) {
    const size_t new = song->n - song->n_prime;
    if (settings->songs == 1 && !settings->live && song->took > 0) {
        text_print(out, "  %.0f tokens/s", (double)song->n / song->took);
    }
    if (song->interrupted) {
        text_print(out, "  interrupted after %zu new token%s", new, plural(new));
    } else if (song->cut) {
        text_print(out, "  ended after %zu new token%s, before --", new, plural(new));
        if (settings->bars) text_print(out, "bars %lld", (long long)settings->bars);
        if (!settings->bars) text_print(out, "seconds %g", settings->seconds);
    }
}

// ---- many songs
//
// A token is too little work to share between cores, a song is not: each thread makes a batch of songs. The batch reads
// each weight once for all its songs, and a song that ends leaves its slot to the next.

typedef struct { // what the command line asks for
    Settings settings;
    Texts models, outputs;
    Path found[MAX_MODELS]; // where a model is a folder: its file
    const Flag *context, *bpm;
    const char *weights, *dataset, *data;
    Figures training; // of data
    int64_t stride;
    bool bench, stream;
    bool page;      // an .html is asked for
    FILE *report;   // stdout, unless that is for music
    bool shortened; // by Ctrl-C: a song was interrupted, or never begun
} Call;

typedef struct { // what the threads share
    Call *call;
    const Model *model;
    int64_t first;       // number of this model's first song
    int64_t next;        // of these, the first that nobody has begun
    int64_t all;         // songs of all models
    bool good;           // none has failed yet
    TextBuffer *reports; // [all] what to say about each song, once it is written
    Song *kept;          // [all], where a page is to show them
    int64_t made, reported, tokens;
    char *error;
} Job;

static void job_fail(Job *job, const char *problem) {
#pragma omp critical(job)
    {
        if (job->good) memcpy(job->error, problem, ERROR_SIZE);
        job->good = false;
    }
}

// Song i of all is made: writes its own files, and says so once all songs before it have been reported.
static void job_finish(Job *job, Song *song, int64_t i) {
    const Texts *outputs = &job->call->outputs;
    const Settings *settings = &job->call->settings;
    char problem[ERROR_SIZE];
    TextBuffer report = {NULL, 0, 0, false};
    const bool none = song->interrupted && song->n == song->n_prime;
    song_describe(song, job->model, settings);
    bool ok = true;
    if (!none) song_finish(song, settings->prime.left_out, &settings->prime.marks);
    if (!none) song_add_dynamics(song, settings->dynamics, &settings->prime);
    for (int k = 0; ok && !none && k < outputs->n; k++) {
        if (!format_of(outputs->list[k])->make) continue;
        const Path name = output_name(outputs->list[k], i, job->all);
        ok = songs_write(song, 1, name.text, problem);
        if (ok) text_print(&report, "%s ", name.text);
    }
    if (ok && !report.size) text_print(&report, "song %lld ", (long long)i + 1);
    if (ok && none) text_print(&report, " not written: it was interrupted before its first new note");
    if (ok && !none) {
        song_report(song, &report);
        const size_t new = song->n - song->n_prime;
        if (job->call->data) figures_report(&job->call->training, song->tokens + song->n_prime, new, &report);
        report_making(song, settings, &report);
    }
    if (ok && job->call->models.n > 1) text_print(&report, "  %s", job->model->path);
    must(!report.failed);
    if (!ok) job_fail(job, problem);
#pragma omp critical(job)
    {
        job->call->shortened = job->call->shortened || song->interrupted;
        if (ok && !none) job->tokens += (int64_t)song->n;
        if (ok && !none && job->kept) {
            job->kept[i] = *song;
            *song = (Song){0};
        }
        job->made += ok && !none;
        job->reports[i] = report;
        for (; job->good && job->reported < job->all && job->reports[job->reported].size; job->reported++) {
            const TextBuffer *line = &job->reports[job->reported];
            clean_text(line->bytes, line->size);
            fprintf(job->call->report, "%.*s\n", (int)line->size, line->bytes);
            fflush(job->call->report);
        }
    }
    song_free(song);
}

static int64_t job_take(Job *job) { // the next song's number, -1: none
    int64_t i = -1;
#pragma omp critical(job)
    if (job->good && !interrupted && job->next < job->call->settings.songs) i = job->first + job->next++;
    return i;
}

// Makes songs in so many slots until there are no more to make.
static void job_work(Job *job, int n_slots) {
    const Settings *settings = &job->call->settings;
    char problem[ERROR_SIZE];
    Batch batch;
    Maker makers[MAX_SLOTS];
    int slots[MAX_SLOTS], tokens[MAX_SLOTS], n = 0; // the first n slots are busy
    bool more = true;
    if (!batch_new(&batch, job->model, n_slots, (int)context_needed(settings), problem)) {
        job_fail(job, problem);
        return;
    }
    for (int slot = 0; slot < n_slots; slot++) slots[slot] = slot;
    for (;;) {
        while (more && n < n_slots) {
            Maker *maker = &makers[slots[n]];
            const int64_t i = job_take(job);
            more = i >= 0;
            if (!more) break;
            if (maker_begin(maker, settings, settings->seed + (uint64_t)(i - job->first), problem)) {
                maker->number = i;
                batch_begin(&batch, slots[n++]);
            } else {
                job_fail(job, problem);
            }
        }
        if (!n) break;
        for (int k = 0; k < n; k++) tokens[k] = maker_next(&makers[slots[k]]);
        batch_step(&batch, slots, n, tokens);
        for (int k = n - 1; k >= 0; k--) {
            const int slot = slots[k];
            Maker *maker = &makers[slot];
            const float *logits = row(batch.logits, slot);
            const bool finite = row_finite(logits, V);
            if (!finite && !not_finite(job->model, problem)) job_fail(job, problem);
            if (finite && maker_take(maker, logits)) continue;
            if (finite) job_finish(job, &maker->song, maker->number);
            song_free(&maker->song);
            slots[k] = slots[--n]; // the last of the busy ones, which had its turn, takes its place
            slots[n] = slot;
        }
    }
    batch_free(&batch);
}

// How many songs a thread makes at a time. They carry about half as much state as the weights take, and one song more:
// a Transformer's keys and values are read for each token, and those of many songs would drive each other and the
// weights out of the processor's cache. All threads together carry at most 1 GB. Where there are more songs to make,
// they are made in turns of the same size.
static int slots_of(const Model *model, const Settings *settings, int64_t threads) {
    const int64_t each = batch_size(model, 1, (int)context_needed(settings)),
                  songs = divide_up(settings->songs, threads);
    int64_t most = 1 + divide_up(model->bytes, 2 * each);
    if (most > ((int64_t)1 << 30) / threads / each) most = ((int64_t)1 << 30) / threads / each;
    if (most > MAX_SLOTS) most = MAX_SLOTS;
    if (most < 1) most = 1;
    return (int)divide_up(songs, divide_up(songs, most));
}

// All songs of all models, each model with the same seeds.
static bool make_all(Call *call, const Model *models, int n_models, char *error) {
    const Settings *settings = &call->settings;
    const int threads = (int)(settings->threads < settings->songs ? settings->threads : settings->songs);
    const double start = seconds_now();
    Job job = {.call = call, .all = n_models * settings->songs, .good = true, .error = error};
    job.reports = must_have(calloc((size_t)job.all, sizeof *job.reports));
    if (call->page) job.kept = must_have(calloc((size_t)job.all, sizeof *job.kept));
    for (int k = 0; k < n_models && job.good && !interrupted; k++) {
        job.model = &models[k];
        job.first = k * settings->songs;
        job.next = 0;
        const int n_slots = slots_of(job.model, settings, threads);
#pragma omp parallel num_threads(threads)
        job_work(&job, n_slots);
    }
    const double took = seconds_now() - start;
    const int64_t left = job.all - job.first - job.next; // that were never begun
    call->shortened = call->shortened || left;
    for (int k = 0; job.good && job.made && k < call->outputs.n; k++) {
        const char *path = call->outputs.list[k];
        if (format_of(path)->make) continue;
        job.good = songs_write(job.kept, (int)job.all, path, error);
        if (job.good) print_line(call->report, "%s  %lld song%s", path, (long long)job.made, plural((size_t)job.made));
    }
    if (job.good && settings->songs > 1) {
        fprintf(call->report, "%lld song%s  %lld tokens  %.1f s  %.0f tokens/s", (long long)job.made,
                plural((size_t)job.made), (long long)job.tokens, took, (double)job.tokens / took);
        fprintf(call->report, call->shortened ? "  interrupted\n" : "\n");
    }
    if (job.good && left) {
        fprintf(call->report, "interrupted before %lld of %lld song%s began\n", (long long)left, (long long)job.all,
                plural((size_t)job.all));
    }
    for (int64_t i = 0; i < job.all; i++) {
        free(job.reports[i].bytes);
        if (job.kept) song_free(&job.kept[i]);
    }
    free(job.reports);
    free(job.kept);
    return job.good;
}

// ---- the prime

// The prime, and its tempo if the caller gave none.
static bool read_prime(Settings *s, bool own_bpm, FILE *out, char *error) {
    if (!prime_read(&s->prime, error)) return false;
    Marks *marks = &s->prime.marks;
    const int last = marks->tempos[marks->n_tempos - 1].value;
    if (!own_bpm) s->bpm = bpm_of(marks->tempos[0].value);
    prime_tell(&s->prime, s->bpm, own_bpm, out);
    if (!own_bpm && s->prime.left_out) s->bpm = bpm_of(last);
    if (own_bpm || s->prime.left_out) { // one tempo
        marks->tempos[0].value = own_bpm ? (int)lrint(60e6 / s->bpm) : last;
        marks->n_tempos = 1;
    }
    return true;
}

// ---- the command line

static uint64_t fresh_seed(void) { // 32 bits: enough to differ, and short to type
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint32_t)now.tv_sec * 2654435761u + (uint32_t)now.tv_nsec;
}

// Bars the pitches outside --scale, --lowest and --highest.
static bool parse_pitches(Settings *s, char *error) {
    int classes = s->scale ? read_scale(s->scale) : 0xFFF;
    int lowest = s->lowest ? read_key(s->lowest) : MIDI_LOWEST_KEY, left = 0;
    int highest = s->highest ? read_key(s->highest) : MIDI_HIGHEST_KEY;
    const char *key_help = "it must be a key of the piano: A0 to C8, as C#4, Bb2 or 60";
    if (!classes) {
        TextBuffer names = {NULL, 0, 0, false};
        for (int i = 0; i < N_SCALES; i++) text_print(&names, "%s%s", i ? ", " : "", scales[i].name);
        fail(error, "--scale %.40s: it must be a note and a scale, as C-major or F#-minor; scales are %.*s", s->scale,
             (int)names.size, names.bytes ? names.bytes : "");
        free(names.bytes);
        return false;
    }
    if (lowest < 0) return fail(error, "--lowest %.40s: %s", s->lowest, key_help);
    if (highest < 0) return fail(error, "--highest %.40s: %s", s->highest, key_help);
    for (int key = MIDI_LOWEST_KEY; key <= MIDI_HIGHEST_KEY; key++) {
        const bool in = key >= lowest && key <= highest && classes >> key % 12 & 1;
        s->filter.barred[MIDI_PITCH + key - MIDI_LOWEST_KEY] = !in;
        left += in;
    }
    char low[16], high[16];
    return left || fail(error, "%s: no key of %s lies from %s to %s%s", s->lowest ? "--lowest" : "--highest",
                        s->scale ? s->scale : "the piano", key_name(lowest, low), key_name(highest, high),
                        lowest > highest ? ", because it is above --highest; swap the two" : "; widen the range");
}

static bool parse_outputs(Call *call, char *error) {
    const bool several = call->settings.songs > 1 || call->models.n > 1;
    bool to_stdout = false;
    for (int i = 0; i < call->outputs.n; i++) {
        const char *path = call->outputs.list[i];
        const Format *format = format_of(path);
        if (!format) return fail(error, "-o %s: the name should end in .mid, .wav, .html or .svg, or be -", path);
        if (!format->make) call->page = true;
        if (strcmp(path, "-")) continue;
        if (to_stdout) return fail(error, "-o -: it was given twice; once is enough");
        if (isatty(1)) return fail(error, "-o -: a terminal plays no MIDI; name a file, or pipe it into a player");
        if (several) return fail(error, "-o -: the standard output takes one song; name a file for more");
        to_stdout = true;
    }
    if (call->settings.live && several) return fail(error, "--live: it follows one song of one model");
    if (call->settings.live && to_stdout) return fail(error, "--live: it writes to the standard output, as -o - does");
    if (call->page && call->settings.songs * (call->models.n ? call->models.n : 1) > 256) {
        return fail(error, "-n %lld: an .html shows 256 songs at most", (long long)call->settings.songs);
    }
    call->report = to_stdout || call->settings.live ? stderr : stdout;
    if (!call->outputs.n) call->outputs.list[call->outputs.n++] = "song.mid";
    return true;
}

// False, and a sentence, where an argument is wrong.
static bool parse_call(Call *call, Flags *f, int argc, char **argv, char *error) {
    Settings *s = &call->settings;
    const double many = 1e6;
    flag_texts(f, "", "MODEL", &call->models, MAX_MODELS,
               "what a trainer saved, or its --out folder; several to compare [out/gpt, out/lstm, or a small one]");
    flag_texts(
        f, "o", "FILE", &call->outputs, MAX_TEXTS,
        "write FILE: .mid is music, .wav sound, .html a page that shows and plays all songs, .svg a piano roll, - "
        "the .mid to the standard output; may be given several times [song.mid]");
    flag_whole(f, "n", &s->songs, 1, 1, 10000,
               "N songs of each model, each with the next seed, as FILE-1.mid, FILE-2.mid, ...");
    Flag *seed = flag_seed(f, &s->seed, "for the same song again [a fresh one, which is printed]");
    flag_whole(f, "tokens", &s->tokens, 0, 1, many,
               "at most N new tokens, about a third as many notes [1024, or no limit with --bars or --seconds]");
    flag_whole(f, "bars", &s->bars, 0, 1, 1e5, "stop at the bar line after N whole new bars");
    flag_number(f, "seconds", &s->seconds, 0, "(0, 100000]",
                "stop at the first bar line after F seconds of new music [no limit]");
    flag_number(f, "temperature", &s->filter.temperature, 1, "[0, 100]",
                "below 1 safer, above 1 wilder, 0 always the likeliest token");
    flag_whole(f, "top-k", &s->filter.top_k, 0, 0, MIDI_TOKENS, "only the N likeliest tokens [0: all]");
    flag_number(f, "top-p", &s->filter.top_p, 1, "(0, 1]",
                "only the likeliest tokens that together have F of the chance [1: all]");
    flag_number(f, "min-p", &s->filter.min_p, 0, "[0, 1]",
                "only tokens at least F times as likely as the likeliest [0: all]");
    flag_number(f, "memory", &s->memory, 0.25, "[0, 1]",
                "the part of a song that comes back to what was played before, about; 0: no help for the model's own");
    flag_text(f, "scale", "NAME", &s->scale, NULL, "new notes only from a scale: C-major, F#-minor, Bb-blues, ...");
    flag_text(f, "lowest", "KEY", &s->lowest, NULL, "no new note below: C3, F#2, 48");
    flag_text(f, "highest", "KEY", &s->highest, NULL, "no new note above");
    flag_text(f, "prime", "FILE", &s->prime.path, NULL, "go on from the beginning of this MIDI file");
    flag_whole(f, "prime-tokens", &s->prime.most, 256, 1, many, "its first N tokens");
    flag_switch(f, "no-prime", &s->prime.left_out, "leave the prime out of what is written");
    flag_switch(f, "keep-short", &s->prime.keep_short, "of the prime keep notes too short for the grid, a 16th long");
    flag_switch(f, "no-drums", &s->prime.no_drums, "of the prime drop the notes of channel 10, the drums");
    flag_switch(f, "live", &s->live,
                "write each note and bar line as text when its time comes, until the end or Ctrl-C; files after that");
    flag_text(f, "weights", "TYPE", &call->weights, "float32", "how weights are held; smaller is faster")->choices =
        "float32|bf16|int8";
    call->context = flag_whole(f, "context", &s->context, 1024, 1, 65536,
                               "a Transformer's token looks back on the last N; an LSTM's state carries all");
    call->bpm = flag_number(f, "bpm", &s->bpm, 120, "[4, 1000]", "quarters per minute [the prime's, else 120]");
    flag_number(f, "dynamics", &s->dynamics, 1, "[0, 1]",
                "how far notes are louder and softer than others; 0: not, and no pedal");
    flag_whole(f, "threads", &s->threads, threads_default(), 1, 1024,
               "that share the songs of -n; changes no byte [all cores]");
    flag_text(f, "data", "WHERE", &call->data, NULL,
              "the training set or its folder: says how many notes in a row a song has copied, in any key");
    flag_text(f, "eval", "DATASET", &call->dataset, NULL,
              "no song: the model's mean loss on this test.safetensors, as the trainers' --eval");
    Flag *stride = flag_whole(f, "eval-stride", &call->stride, 64, 1, 1e15, "of every Nth window of 256; 1: all");
    flag_switch(f, "stream", &call->stream, "--eval over whole pieces, by the model alone and with --memory");
    flag_switch(f, "bench", &call->bench,
                "no song: time a token of -n songs (a Transformer's at contexts 256 and 1,024) against reading memory, "
                "one core");
    if (!flags_parse(f, argc, argv, error)) return false;
    if (!parse_outputs(call, error) || !parse_pitches(s, error)) return false;
    const char *needs = s->prime.left_out     ? "no-prime"
                        : s->prime.keep_short ? "keep-short"
                        : s->prime.no_drums   ? "no-drums"
                                              : NULL;
    if (needs && !s->prime.path) return fail(error, "--%s: it goes with --prime FILE", needs);
    if (call->stream && !call->dataset) return fail(error, "--stream: it goes with --eval DATASET");
    if (call->stream && stride->given) return fail(error, "--eval-stride: --stream takes whole pieces; leave it out");
    if (call->bench && call->dataset) return fail(error, "--bench and --eval exclude each other; give one of them");
    if (call->bench && s->songs > MAX_SLOTS) {
        return fail(error, "-n %lld: --bench takes at most %d songs", (long long)s->songs, MAX_SLOTS);
    }
    if (!s->tokens && !s->bars && !(s->seconds > 0)) s->tokens = 1024;
    if (!seed->given) s->seed = fresh_seed();
#ifndef _OPENMP
    s->threads = 1;
#endif
    return true;
}

static const char before_flags[] = "usage: sample_music [MODEL ...] [-o FILE ...] [flags]\n\n"
                                   "Writes new piano music with trained models, or goes on with yours.\n\n";
static const char behind_flags[] =
    "\nGood starting points: --temperature 0.9, --top-p 0.95 or --min-p 0.05.\n"
    "Ctrl-C ends each song in the making at its last bar line, begins no other, and writes what was made;\n"
    "a second one ends the program at once.\n"
    "Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted (0 with --live, which that ends).\n";

// ---- the program

// Finds the model in a trainer's folder: the best one, or what a run saved that has no best one yet, if `latest` allows
// that. False: there is none.
static bool model_in(const char *folder, bool latest, Path *path) {
    *path = path_join(folder, "model.safetensors");
    if (!access(path->text, F_OK)) return true;
    *path = path_join(folder, "last.safetensors");
    return latest && !access(path->text, F_OK);
}

// Puts the model's file in the place of each folder, and finds one if none is named; program: argv[0].
static bool find_models(Call *call, const char *program, char *error) {
    static const char *const usual[] = {"out/gpt", "out/lstm"};
    const bool named = call->models.n;
    for (int i = 0; i < 4 && !named && !call->models.n; i++) {
        if (model_in(usual[i % 2], i > 1, &call->found[0])) call->models.list[call->models.n++] = usual[i % 2];
    }
    if (!call->models.n) {
        call->found[0] = path_beside_program(program, STARTER);
        const char *starter = call->found[0].text;
        if (access(starter, R_OK)) {
            return fail(error,
                        "out/gpt/model.safetensors: there is no such model yet, and no %s; train one with "
                        "./train_gpt_music, or name a model's file",
                        starter);
        }
        print_line(call->report, "%s: used, a small model that comes along, because none is trained yet", starter);
        call->models.list[call->models.n++] = starter;
    }
    for (int k = 0; k < call->models.n; k++) {
        const char *folder = call->models.list[k];
        struct stat about;
        if (stat(folder, &about) || !S_ISDIR(about.st_mode)) continue;
        const char *path = call->models.list[k] = call->found[k].text;
        if (!model_in(folder, true, &call->found[k])) {
            return fail(error, "%s: is a folder without model.safetensors; name a model's file", folder);
        }
        if (!strcmp(strrchr(path, '/'), "/last.safetensors")) {
            print_line(call->report, "%s: used, because %s has no model.safetensors yet", path, folder);
        }
    }
    return true;
}

static bool load_models(const Call *call, Model *models, char *error) {
    int precision = FLOAT32;
    while (strcmp(call->weights, precision_names[precision])) precision++; // one of them is the flag's
    for (int k = 0; k < call->models.n; k++) {
        if (!model_load(&models[k], call->models.list[k], (Precision)precision, error)) return false;
    }
    return true;
}

static void interrupt(int number) { // a first signal ends the songs, a second one the program
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupted = 1;
}

// Also for a job in the background, for which the shell had Ctrl-C ignored.
static void catch_signals(bool live) {
    struct sigaction action = {0};
    action.sa_handler = interrupt;
    action.sa_flags = live ? 0 : SA_RESTART; // live, a signal interrupts writing to a reader that takes nothing
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (live) signal(SIGPIPE, SIG_IGN); // a reader that goes away ends the song, too
}

// Does what is asked for. Returns the exit status.
static int run(Call *call, Model *models, int argc, char **argv, char *error) {
    Settings *settings = &call->settings;
    Flags flags = {0};
    bool any_context = false, ok = true;
    if (!parse_call(call, &flags, argc, argv, error)) return 2;
    if (flags_answer(&flags, "sample_music", before_flags, behind_flags)) return 0;
    if (!find_models(call, argv[0], error) || !load_models(call, models, error)) return 1;
    for (int k = 0; k < call->models.n; k++) any_context = any_context || models[k].kind == GPT;
    if (call->context->given && !any_context) {
        fail(error, "--context %lld: %s is an LSTM, whose state carries all that came before; leave the flag out",
             (long long)settings->context, models[0].path);
        return 2;
    }
    const int songs = (int)settings->songs;
    for (int k = 0; ok && k < call->models.n; k++) {
        const Model *m = &models[k];
        const int threads = (int)settings->threads, context = (int)settings->context;
        if (call->stream) ok = measure_stream(m, call->dataset, context, settings->memory, threads, error);
        if (call->dataset && !call->stream) ok = measure_loss(m, call->dataset, call->stride, threads, error);
        if (call->bench) ok = measure_speed(m, 256, songs, error);
        if (call->bench && ok && m->kind == GPT) ok = measure_speed(m, 1024, songs, error);
    }
    if (call->bench || call->dataset) return !ok;
    if (call->data && !figures_open(&call->training, call->data, error)) return 1;
    if (settings->prime.path && !read_prime(settings, call->bpm->given, call->report, error)) return 1;
    settings_time(settings);
    for (int k = 0; k < call->outputs.n; k++) {
        if (!folder_is_writable(call->outputs.list[k], error)) return 1;
    }
    catch_signals(settings->live);
    if (!make_all(call, models, call->models.n, error)) return 1;
    return call->shortened && !settings->live ? INTERRUPTED : 0;
}

static int sample_main(int argc, char **argv) {
    Call call = {0};
    static Model models[MAX_MODELS];
    char error[ERROR_SIZE] = "";
    interrupted = 0;
    program_start();
    const int status = run(&call, models, argc, argv, error);
    for (int k = 0; k < MAX_MODELS; k++) model_free(&models[k]);
    prime_free(&call.settings.prime);
    figures_free(&call.training);
    free(call.settings.tempo.spans);
    return program_end("sample_music", status, error);
}

#ifndef TESTING
int main(int argc, char **argv) {
    threads_wait_briefly(argv);
    return sample_main(argc, argv);
}
#endif
