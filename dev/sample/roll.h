// The piano roll of a song as an .svg, for a page or a printed figure: time to the right in bars, broken into rows as a
// score is, pitch upwards in semitones, and seconds below each row. Of several silent rows one is drawn.
//
// Promises: each note stands in the file once with data-note="key start end" (ticks), for programs; any text is shown
// as text; time and size are linear in notes and bars. Leaves out: loudness.
#pragma once

#include "sample/song.h"

// A text as XML, cleaned as clean_text does.
static inline void roll_text(TextBuffer *out, const char *text) {
    for (int length; *text; text += length ? length : 1) {
        const char *name = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : NULL;
        length = shown_length(text, 4);
        if (!length) name = "?";
        text_add(out, name ? name : text, name ? strlen(name) : (size_t)length);
    }
}

// Numbers are in pixels of a page 1,000 wide.
typedef struct {
    int rows;
    double tick_width, height; // the height of a row
    int lowest, highest;       // keys
} RollPage;

enum { ROLL_LEFT = 44, ROLL_WIDTH = 940, ROLL_TOP = 92, ROLL_GAP = 42, ROLL_BOTTOM = 22, ROLL_STEPS = 128 };
static const double roll_key = 3.6; // the height of a key

typedef struct {
    int number;         // from 1, of all rows
    bool silent;        // no note sounds in it
    int64_t start, end; // ticks
    int line;           // the last bar line up to the start
    size_t first, last; // the notes that sound in it are among these, without the last
} RollRow;

// Goes on by a row, which ends at the last bar line that still fits, else in the middle of a bar.
static inline void roll_step(const Song *song, RollRow *row) {
    const midi_note *notes = song->midi.notes; // none longer than 32 steps
    const size_t n = song->midi.n_notes;
    const int64_t start = row->start = row->end, most = start + ROLL_STEPS * MIDI_STEP;
    while (row->line + 1 < song->n_lines && song->lines[row->line + 1] <= start) row->line++;
    int line = row->line;
    while (line + 1 < song->n_lines && song->lines[line + 1] <= most) line++;
    row->end = song->end <= most ? song->end : song->lines[line] > start ? song->lines[line] : most;
    row->number++;
    row->silent = true;
    while (row->first < n && notes[row->first].start + 32 * MIDI_STEP <= start) row->first++;
    for (row->last = row->first; row->last < n && notes[row->last].start < row->end; row->last++) {
        if (notes[row->last].end > start) row->silent = false;
    }
}

// Goes on to the next row that is drawn. False: there is none.
static inline bool roll_next(const Song *song, RollRow *row) {
    for (;;) {
        const bool silent = row->silent;
        if (row->number && row->end >= song->end) return false;
        roll_step(song, row);
        if (!silent || !row->silent) return true;
    }
}

static inline RollPage roll_measure(const Song *song) {
    RollPage page = {0};
    int64_t longest = 16 * MIDI_STEP;
    for (RollRow row = {0}; roll_next(song, &row); page.rows++) { // the longest row fills the page
        longest = row.end - row.start > longest ? row.end - row.start : longest;
    }
    page.tick_width = (double)ROLL_WIDTH / (double)longest;
    if (!song_range(song, &page.lowest, &page.highest)) page.lowest = page.highest = 60;
    page.lowest -= 2;
    page.highest += 2;
    while (page.highest - page.lowest < 24) page.lowest -= page.lowest > 22, page.highest += page.highest < 107;
    page.highest += page.highest % 12 == 0; // above the row stands "bar", which needs room
    page.height = (page.highest - page.lowest + 1) * roll_key;
    return page;
}

// The keys: black ones and the lines below each C, as far as the row goes, and what stands to their left.
static inline void roll_keys(TextBuffer *out, const RollPage *page, double width) {
    static const bool black[12] = {0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0};
    text_print(out, "<path class=\"black\" d=\"");
    for (int key = page->highest; key >= page->lowest; key--) {
        if (!black[(key + 12) % 12]) continue;
        text_print(out, "M0 %.1fh%.1fv%.1fh-%.1fz", (page->highest - key) * roll_key, width, roll_key, width);
    }
    text_print(out, "\"/>\n");
    for (int key = page->highest; key >= page->lowest; key--) {
        if (key % 12) continue;
        double y = (page->highest - key + 1) * roll_key;
        text_print(out, "<path class=\"c\" d=\"M0 %.1fh%.1f\"/>", y, width);
        text_print(out, "<text class=\"small end\" x=\"-6\" y=\"%.1f\">C%d</text>\n", y + 1, key / 12 - 1);
    }
    text_print(out, "<rect class=\"frame\" width=\"%.1f\" height=\"%.1f\"/>\n", width, page->height);
    text_print(out, "<text class=\"small end\" x=\"-6\" y=\"-5\">bar</text>\n");
}

static inline void roll_seconds(TextBuffer *out, const Song *song, const RollPage *page, int64_t start, int64_t end) {
    const TempoMap *map = &song->tempo;
    const double first = (double)start, slack = 1e-3, from = song_time(song, start); // seconds
    const double to = song_time(song, end) + (end < song->end ? -slack : slack);
    const TempoSpan *span = tempo_at(map, first), *last = map->spans + map->n - 1;
    const double mean = tempo_at(map, (double)end) == span ? span->unit : (to - from) / (double)(end - start); // a tick
    const double step = nice_step(ROLL_WIDTH / (page->tick_width / mean), 10);
    for (double k = ceil(fmax(from - slack, 0) / step); k * step <= to; k++) {
        while (span < last && span[1].before <= k * step) span++;
        const double at = fmax(span->at, first), since = k * step - tempo_seconds(map, 0, at);
        const double x = (at - first) * page->tick_width + since * (page->tick_width / span->unit);
        text_print(out, "<path class=\"bar\" d=\"M%.1f %.1fv3\"/>", x, page->height);
        text_print(out, "<text class=\"time\" x=\"%.1f\" y=\"%.1f\">%.10g s</text>\n", x, page->height + 12, k * step);
    }
}

static inline void roll_row(TextBuffer *out, const Song *song, const RollPage *page, const RollRow *row, double top) {
    const int64_t start = row->start, end = row->end;
    double labelled = -100;
    text_print(out, "<g transform=\"translate(%d,%.1f)\">\n", ROLL_LEFT, top);
    roll_keys(out, page, end > start ? (double)(end - start) * page->tick_width : (double)ROLL_WIDTH);
    roll_seconds(out, song, page, start, end);
    for (int i = row->line; i < song->n_lines && song->lines[i] <= end; i++) {
        int64_t line = song->lines[i], next = i + 1 < song->n_lines ? song->lines[i + 1] : song->end;
        if (line == end && line < song->end) break;
        double x = (double)(line - start) * page->tick_width;
        int64_t beat = line + QUARTER * (line < start ? (start - line) / QUARTER + 1 : 1);
        for (; beat < next && beat < end; beat += QUARTER) {
            double at = (double)(beat - start) * page->tick_width;
            text_print(out, "<path class=\"beat\" d=\"M%.1f 0V%.1f\"/>\n", at, page->height);
        }
        if (line < start) continue;
        text_print(out, "<path class=\"bar\" d=\"M%.1f 0V%.1f\"/>\n", x, page->height);
        if (x - labelled < 24 || line >= song->end) continue; // room for three digits
        text_print(out, "<text class=\"small\" x=\"%.1f\" y=\"-5\">%d</text>\n", x, i + 1);
        labelled = x;
    }
    for (size_t i = row->first; i < row->last; i++) {
        const midi_note *note = &song->midi.notes[i];
        int64_t from = note->start > start ? note->start : start, to = note->end < end ? note->end : end;
        if (from >= to) continue;
        double width = (double)(to - from) * page->tick_width - 0.8;
        text_print(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"1\"",
                   song->from_prime[i] ? "prime" : "new", (double)(from - start) * page->tick_width + 0.4,
                   (page->highest - note->key) * roll_key, width > 0.8 ? width : 0.8, roll_key);
        if (from == note->start) { // once per note, for programs: key, start and end in ticks
            text_print(out, " data-note=\"%d %lld %lld\"", note->key, (long long)note->start, (long long)note->end);
        }
        text_print(out, "/>\n");
    }
    text_print(out, "</g>\n");
}

// The title, the lines of text below it, and which color is whose.
static inline void roll_head(TextBuffer *out, const Song *song, double page_height) {
    const int width = ROLL_LEFT + ROLL_WIDTH + 16, bars = song_bars(song);
    const size_t n = song->midi.n_notes;
    char notes[40] = "no notes", title[100], settings[HOW_SIZE + 32];
    if (n) snprintf(notes, sizeof notes, "%zu note%s", n, plural(n));
    snprintf(title, sizeof title, "%s, %d bar%s, %.0f s", notes, bars, plural((size_t)bars), song_seconds(song));
    text_print(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%d\" height=\"%.0f\" ", width,
               page_height);
    text_print(out, "viewBox=\"0 0 %d %.0f\">\n<title>", width, page_height);
    roll_text(out, song->model_name);
    text_print(out, ", seed %llu: piano roll of %s", (unsigned long long)song->seed, title);
    text_print(out, "</title>\n<style>text{font-family:'Helvetica Neue',Arial,sans-serif;fill:#222}"
                    ".small{font-size:10px;fill:#666}.time{font-size:9px;fill:#767676;text-anchor:middle}"
                    ".end{text-anchor:end}.new{fill:#1f6fb4}.prime{fill:#8c8c8c}.new,.prime{fill-opacity:.85}"
                    ".black{fill:#f3f4f6}.c{stroke:#d3d6dc}"
                    ".bar{stroke:#b4b9c2}.beat{stroke:#e7e9ed}.frame{fill:none;stroke:#b4b9c2}"
                    "path,.frame{stroke-width:.8}</style>\n");
    text_print(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n");
    text_print(out, "<text x=\"%d\" y=\"26\" font-size=\"16\" font-weight=\"bold\">", ROLL_LEFT);
    roll_text(out, title);
    text_print(out, "</text>\n");
    if (n && song->from_prime[0]) {
        text_print(out, "<rect class=\"prime\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 126);
        text_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">prime</text>", width - 107);
        text_print(out, "<rect class=\"new\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 64);
        text_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">new</text>\n", width - 45);
    }
    text_print(out, "<text class=\"small\" x=\"%d\" y=\"43\">", ROLL_LEFT);
    roll_text(out, song_settings(song, settings));
    text_print(out, "</text>\n<text class=\"small\" x=\"%d\" y=\"57\">", ROLL_LEFT);
    roll_text(out, song->model);
    text_print(out, "</text>\n");
}

// Appends a whole .svg. Nothing can go wrong; error is what every format has.
static inline bool roll_svg(TextBuffer *out, const Song *song, char *error) {
    (void)error;
    const RollPage page = roll_measure(song);
    const double row_height = page.height + ROLL_GAP;
    roll_head(out, song, ROLL_TOP + page.rows * row_height - ROLL_GAP + ROLL_BOTTOM);
    int i = 0;
    for (RollRow row = {0}; roll_next(song, &row); i++) roll_row(out, song, &page, &row, ROLL_TOP + i * row_height);
    text_print(out, "</svg>\n");
    return true;
}
