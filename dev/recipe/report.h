// What a run reports in files: log.csv, a row per epoch, and loss.svg, the curves.
//
// C11 and C++17, POSIX. Include it before any system header.
#pragma once

#include "recipe/run.h"

#include "recipe/curves.h"

static inline int row_text(char text[192], const LogRow *row) { // all but the seconds
    return snprintf(text, 192, "%lld,%lld,%.9g,%.9g,%.9g,%lld,", row->epoch, row->step, row->train, row->test, row->lr,
                    row->steps);
}

// Takes the seconds, which are in no other file, out of an existing log.csv, from rows that are otherwise the same.
static inline bool log_recall_seconds(TrainRun *run) {
    char *bytes = NULL;
    size_t size;
    if (access(run->log_path.text, F_OK)) return true;
    if (!read_file(run->log_path.text, (void **)&bytes, &size, run->error)) return false;
    for (int i = 0; i < run->n_rows; i++) {
        char text[193] = "\n";
        row_text(text + 1, &run->rows[i]);
        const char *found = strstr(bytes, text), *at = found ? found + strlen(text) : "";
        char *end;
        double seconds = strtod(at, &end);
        if (end > at && *end == '\n' && seconds >= 0) run->rows[i].seconds = seconds;
    }
    free(bytes);
    return true;
}

static inline bool curve_write(TrainRun *run, int n) {
    LossPoint *points = (LossPoint *)malloc((size_t)n * sizeof *points);
    if (!points) return atomic_fail(run->svg_path.text, ENOMEM, run->error);
    for (int i = 0; i < n; i++) {
        points[i].epoch = (double)run->rows[i].step / (double)run->epoch_steps;
        points[i].train = run->rows[i].train;
        points[i].test = run->rows[i].test;
    }
    const LossCurve curve = {run->spec->name, points, n, 0, 0};
    char title[128], epochs[64], count[32];
    snprintf(title, sizeof title, "%s, %s parameters: loss by epoch", run->spec->name,
             thousands(count, run->layout.count));
    snprintf(epochs, sizeof epochs, "epoch (%s steps each)", thousands(count, run->epoch_steps));
    TextBuffer out = {NULL, 0, 0, false};
    curves_draw(&out, title, epochs, &curve, 1);
    free(points);
    return text_write(&out, run->svg_path.text, run->error);
}

// Writes log.csv and loss.svg of the first n rows; without rows, a header and no curve.
static inline bool reports_write(TrainRun *run, int n) {
    TextBuffer out = {NULL, 0, 0, false};
    text_print(&out, "epoch,step,train_loss,test_loss,lr,steps,seconds\n");
    for (int i = 0; i < n; i++) {
        char text[192];
        row_text(text, &run->rows[i]);
        text_print(&out, "%s", text);
        if (run->rows[i].seconds >= 0) text_print(&out, "%.1f", run->rows[i].seconds);
        text_print(&out, "\n");
    }
    if (!text_write(&out, run->log_path.text, run->error)) return false;
    if (n) return curve_write(run, n);
    unlink(run->svg_path.text);
    return true;
}
