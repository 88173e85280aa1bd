// The piano roll of a song as an .svg, for a page or a printed figure: time to the right in bars, broken into rows as a
// score is, pitch upwards in semitones, and seconds below each row.
//
// Promises: each note stands in the file once with data-note="key start end" (ticks), for programs; any text is shown
// as text. Leaves out: loudness, tempo changes.
#ifndef ROLL_H
#define ROLL_H

#include "base/text.h"

#include "midi.h"

#include <math.h>

typedef struct {
    const char *name;                // of the picture, for those who cannot see it
    const char *title, *how, *model; // three lines of text above
    const midi_note *notes;          // sorted by start; 480 ticks are a quarter
    const bool *from_prime;          // [n_notes]: given, drawn in grey
    size_t n_notes;
    const int64_t *lines; // [n_lines] ticks of the bar lines, 0 the first
    int n_lines;
    int64_t end; // tick
    double tick_seconds;
} Roll;

enum { ROLL_QUARTER = 4 * MIDI_STEP };

// Adds text as XML. What is not UTF-8, or is a control or no character (U+FFFE, U+FFFF), becomes '?'.
static inline void roll_text(TextBuffer *out, const char *text) {
    size_t left = strlen(text);
    while (left) {
        int length = utf8_length(text, left);
        const char *name = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : NULL;
        if (name) {
            text_add(out, name, strlen(name));
        } else if (!length || (unsigned char)*text < 32 || *text == 127 || !strncmp(text, "\xEF\xBF\xBE", 3) ||
                   !strncmp(text, "\xEF\xBF\xBF", 3)) {
            text_add(out, "?", 1);
        } else {
            text_add(out, text, (size_t)length);
        }
        text += length ? length : 1;
        left -= (size_t)(length ? length : 1);
    }
}

// Numbers are in pixels of a page 1,000 wide.
typedef struct {
    int rows;
    double tick_width, key_height;
    int lowest, highest; // keys
} RollPage;

enum { ROLL_LEFT = 44, ROLL_WIDTH = 940, ROLL_TOP = 92, ROLL_GAP = 42, ROLL_BOTTOM = 22, ROLL_STEPS = 128 };

// Where the row that begins at `start` ends: at the last bar line that still fits, else in the middle of a bar.
static inline int64_t roll_row_end(const Roll *roll, int64_t start) {
    const int64_t most = start + ROLL_STEPS * MIDI_STEP;
    int64_t end = start;
    for (int i = 0; i < roll->n_lines; i++) {
        if (roll->lines[i] <= most) end = roll->lines[i];
    }
    return roll->end <= most ? roll->end : end > start ? end : most;
}

static inline RollPage roll_measure(const Roll *roll) {
    RollPage page = {0, 0, 3.6, 127, 0};
    int64_t longest = 16 * MIDI_STEP, start = 0;
    do { // the longest row fills the page
        int64_t end = roll_row_end(roll, start);
        longest = end - start > longest ? end - start : longest;
        start = end;
        page.rows++;
    } while (start < roll->end);
    page.tick_width = (double)ROLL_WIDTH / (double)longest;
    for (size_t i = 0; i < roll->n_notes; i++) {
        int key = roll->notes[i].key;
        page.lowest = key < page.lowest ? key : page.lowest;
        page.highest = key > page.highest ? key : page.highest;
    }
    if (page.lowest > page.highest) page.lowest = page.highest = 60;
    page.lowest -= 2;
    page.highest += 2;
    while (page.highest - page.lowest < 24) page.lowest -= page.lowest > 22, page.highest += page.highest < 107;
    page.highest += page.highest % 12 == 0; // above the row stands "bar", which needs room
    return page;
}

// The keys: black ones and the lines below each C, as far as the row goes, and what stands to their left.
static inline void roll_keys(TextBuffer *out, const RollPage *page, double width, double height) {
    static const bool black[12] = {0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0};
    text_print(out, "<path class=\"black\" d=\"");
    for (int key = page->highest; key >= page->lowest; key--) {
        if (!black[key % 12]) continue;
        text_print(out, "M0 %.1fh%.1fv%.1fh-%.1fz", (page->highest - key) * page->key_height, width, page->key_height,
                   width);
    }
    text_print(out, "\"/>\n");
    for (int key = page->highest; key >= page->lowest; key--) {
        if (key % 12) continue;
        double y = (page->highest - key + 1) * page->key_height;
        text_print(out, "<path class=\"c\" d=\"M0 %.1fh%.1f\"/>", y, width);
        text_print(out, "<text class=\"small end\" x=\"-6\" y=\"%.1f\">C%d</text>\n", y + 1, key / 12 - 1);
    }
    text_print(out, "<rect class=\"frame\" width=\"%.1f\" height=\"%.1f\"/>\n", width, height);
    text_print(out, "<text class=\"small end\" x=\"-6\" y=\"-5\">bar</text>\n");
}

static inline void roll_seconds(TextBuffer *out, const Roll *roll, const RollPage *page, int64_t start, int64_t end,
                                double height) {
    const double second = page->tick_width / roll->tick_seconds, slack = 1e-3; // pixels; seconds
    const double step = nice_step(ROLL_WIDTH / second, 10), from = (double)start * roll->tick_seconds;
    const double to = (double)end * roll->tick_seconds + (end < roll->end ? -slack : slack);
    for (double k = ceil(fmax(from - slack, 0) / step); k * step <= to; k++) {
        const double x = (k * step - from) * second;
        text_print(out, "<path class=\"bar\" d=\"M%.1f %.1fv3\"/>", x, height);
        text_print(out, "<text class=\"time\" x=\"%.1f\" y=\"%.1f\">%.10g s</text>\n", x, height + 12, k * step);
    }
}

static inline void roll_row(TextBuffer *out, const Roll *roll, const RollPage *page, int64_t start, int64_t end,
                            double top) {
    double height = (page->highest - page->lowest + 1) * page->key_height, labelled = -100;
    text_print(out, "<g transform=\"translate(%d,%.1f)\">\n", ROLL_LEFT, top);
    roll_keys(out, page, end > start ? (double)(end - start) * page->tick_width : (double)ROLL_WIDTH, height);
    roll_seconds(out, roll, page, start, end, height);
    for (int i = 0; i < roll->n_lines; i++) {
        int64_t line = roll->lines[i], next = i + 1 < roll->n_lines ? roll->lines[i + 1] : roll->end;
        if (line > end || next < start || (line == end && line < roll->end)) continue;
        double x = (double)(line - start) * page->tick_width;
        for (int64_t beat = line + ROLL_QUARTER; beat < next && beat < end; beat += ROLL_QUARTER) {
            double at = (double)(beat - start) * page->tick_width;
            if (beat > start) text_print(out, "<path class=\"beat\" d=\"M%.1f 0V%.1f\"/>\n", at, height);
        }
        if (line < start) continue;
        text_print(out, "<path class=\"bar\" d=\"M%.1f 0V%.1f\"/>\n", x, height);
        if (x - labelled < 24 || line >= roll->end) continue; // room for three digits
        text_print(out, "<text class=\"small\" x=\"%.1f\" y=\"-5\">%d</text>\n", x, i + 1);
        labelled = x;
    }
    for (size_t i = 0; i < roll->n_notes; i++) {
        const midi_note *note = &roll->notes[i];
        int64_t from = note->start > start ? note->start : start, to = note->end < end ? note->end : end;
        if (from >= to) continue;
        double width = (double)(to - from) * page->tick_width - 0.8;
        text_print(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"1\"",
                   roll->from_prime[i] ? "prime" : "new", (double)(from - start) * page->tick_width + 0.4,
                   (page->highest - note->key) * page->key_height, width > 0.8 ? width : 0.8, page->key_height);
        if (from == note->start) { // once per note, for programs: key, start and end in ticks
            text_print(out, " data-note=\"%d %lld %lld\"", note->key, (long long)note->start, (long long)note->end);
        }
        text_print(out, "/>\n");
    }
    text_print(out, "</g>\n");
}

static inline void roll_head(TextBuffer *out, const Roll *roll, double page_height) {
    int width = ROLL_LEFT + ROLL_WIDTH + 16;
    text_print(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%d\" height=\"%.0f\" ", width,
               page_height);
    text_print(out, "viewBox=\"0 0 %d %.0f\">\n<title>", width, page_height);
    roll_text(out, roll->name);
    text_print(out, "</title>\n<style>text{font-family:'Helvetica Neue',Arial,sans-serif;fill:#222}"
                    ".small{font-size:10px;fill:#666}.time{font-size:9px;fill:#767676;text-anchor:middle}"
                    ".end{text-anchor:end}.new{fill:#1f6fb4}.prime{fill:#8c8c8c}.new,.prime{fill-opacity:.85}"
                    ".black{fill:#f3f4f6}.c{stroke:#d3d6dc}"
                    ".bar{stroke:#b4b9c2}.beat{stroke:#e7e9ed}.frame{fill:none;stroke:#b4b9c2}"
                    "path,.frame{stroke-width:.8}</style>\n");
    text_print(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n");
    text_print(out, "<text x=\"%d\" y=\"26\" font-size=\"16\" font-weight=\"bold\">", ROLL_LEFT);
    roll_text(out, roll->title);
    text_print(out, "</text>\n");
    if (roll->n_notes && roll->from_prime[0]) {
        text_print(out, "<rect class=\"prime\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 126);
        text_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">prime</text>", width - 107);
        text_print(out, "<rect class=\"new\" x=\"%d\" y=\"20\" width=\"14\" height=\"6\" rx=\"1\"/>", width - 64);
        text_print(out, "<text class=\"small\" x=\"%d\" y=\"27\">new</text>\n", width - 45);
    }
    text_print(out, "<text class=\"small\" x=\"%d\" y=\"43\">", ROLL_LEFT);
    roll_text(out, roll->how);
    text_print(out, "</text>\n<text class=\"small\" x=\"%d\" y=\"57\">", ROLL_LEFT);
    roll_text(out, roll->model);
    text_print(out, "</text>\n");
}

// Appends a whole .svg.
static inline void roll_svg(TextBuffer *out, const Roll *roll) {
    const RollPage page = roll_measure(roll);
    double row_height = (page.highest - page.lowest + 1) * page.key_height + ROLL_GAP;
    roll_head(out, roll, ROLL_TOP + page.rows * row_height - ROLL_GAP + ROLL_BOTTOM);
    for (int64_t i = 0, start = 0, end; i < page.rows; i++, start = end) {
        end = roll_row_end(roll, start);
        roll_row(out, roll, &page, start, end, ROLL_TOP + (double)i * row_height);
    }
    text_print(out, "</svg>\n");
}

#endif
