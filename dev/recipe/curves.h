// Loss curves as an SVG of its own: the loss.svg of one training run, and several runs in one figure.
//
// The figure explains itself: epochs by nats per token, each run in one colour, its test loss strong and its training
// loss faint, a ring around the lowest test loss, and a published result, where there is one, as a dashed line with a
// diamond at its epoch; beside them their names, with the last losses. Left out: anything to click, and logarithmic
// axes. C11 and C++17; with -std=c11 include it before the system's headers.
#pragma once

#include "base/text.h"

typedef struct {
    double epoch;       // how many were done, the part of an unfinished one included
    double train, test; // mean losses, finite
} LossPoint;

typedef struct {
    const char *name; // plain text, without & and <
    const LossPoint *points;
    int n;                // at least 1
    double published;     // a loss to compare with, or 0
    int published_epochs; // which were trained for it
} LossCurve;

enum { MAX_CURVES = 4, CURVE_LEFT = 72, CURVE_TOP = 68, CURVE_BOTTOM = 404, CURVE_HEIGHT = 464, CURVE_LINE = 17 };

typedef struct { // epochs 0..end and losses low..high lie between the pixels CURVE_LEFT..right and CURVE_BOTTOM..TOP
    double end, low, high, right;
} CurveAxes;

static inline double curve_x(const CurveAxes *axes, double epoch) {
    return CURVE_LEFT + epoch / axes->end * (axes->right - CURVE_LEFT);
}

static inline double curve_y(const CurveAxes *axes, double loss) {
    return CURVE_TOP + (axes->high - loss) / (axes->high - axes->low) * (CURVE_BOTTOM - CURVE_TOP);
}

// Index of the lowest test loss, the first of equal ones.
static inline int curve_best(const LossCurve *curve) {
    int best = 0;
    for (int i = 1; i < curve->n; i++) {
        if (curve->points[i].test < curve->points[best].test) best = i;
    }
    return best;
}

// Draws the grid and its numbers. Returns axes that hold every point and diamond, their ends at lines of the grid.
static inline CurveAxes curve_axes(TextBuffer *out, const LossCurve *curves, int n, double right, const char *epochs) {
    CurveAxes axes = {1, HUGE_VAL, -HUGE_VAL, right};
    for (int k = 0; k < n; k++) {
        const LossCurve *curve = &curves[k];
        for (int i = 0; i < curve->n; i++) {
            const LossPoint *point = &curve->points[i];
            axes.end = fmax(axes.end, point->epoch);
            axes.low = fmin(axes.low, fmin(point->train, point->test));
            axes.high = fmax(axes.high, fmax(point->train, point->test));
        }
        if (!(curve->published > 0)) continue;
        axes.end = fmax(axes.end, curve->published_epochs);
        axes.low = fmin(axes.low, curve->published);
        axes.high = fmax(axes.high, curve->published);
    }
    double y_step = nice_step(fmax(axes.high - axes.low, 0.05), 10), x_step = fmax(1, nice_step(axes.end, 10));
    axes.low = floor(axes.low / y_step) * y_step;
    axes.high = fmax(ceil(axes.high / y_step) * y_step, axes.low + y_step);
    text_print(out, "<g fill=\"#555\" text-anchor=\"end\">\n");
    for (int i = 0; axes.low + i * y_step < axes.high + y_step / 2; i++) {
        double loss = axes.low + i * y_step, y = curve_y(&axes, loss);
        text_print(out, "<path stroke=\"%s\" d=\"M%d %.1fH%.0f\"/><text x=\"%d\" y=\"%.1f\">%.6g</text>\n",
                   i ? "#e6e6e6" : "#999", CURVE_LEFT, y, right, CURVE_LEFT - 10, y + 4, loss);
    }
    text_print(out, "</g>\n<g fill=\"#555\" text-anchor=\"middle\">\n");
    for (double x = 0; x <= axes.end + 1e-9; x += x_step) {
        text_print(out, "<path stroke=\"#999\" d=\"M%.1f %dv5\"/><text x=\"%.1f\" y=\"%d\">%.0f</text>\n",
                   curve_x(&axes, x), CURVE_BOTTOM, curve_x(&axes, x), CURVE_BOTTOM + 20, x);
    }
    text_print(out, "<text x=\"%.0f\" y=\"%d\">%s</text>\n", (CURVE_LEFT + right) / 2, CURVE_HEIGHT - 16, epochs);
    text_print(out, "<text transform=\"translate(20 %d) rotate(-90)\">loss (nats per token)</text>\n</g>\n",
               (CURVE_TOP + CURVE_BOTTOM) / 2);
    return axes;
}

static inline void curve_line(TextBuffer *out, const CurveAxes *axes, const LossCurve *curve, bool test,
                              const char *color) {
    text_print(out, "<g fill=\"%s\" opacity=\"%s\">\n<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" ", color,
               test ? "1" : "0.55", color, test ? "2" : "1.5");
    text_print(out, "points=\"");
    for (int pass = 0; pass < 2; pass++) { // first the line, then its points
        for (int i = 0; i < curve->n; i++) {
            const LossPoint *point = &curve->points[i];
            text_print(out, pass ? "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n" : "%.1f,%.1f ",
                       curve_x(axes, point->epoch), curve_y(axes, test ? point->test : point->train));
        }
        text_print(out, pass ? "" : "\"/>\n");
    }
    if (test) {
        const LossPoint *best = &curve->points[curve_best(curve)];
        text_print(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6.5\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n",
                   curve_x(axes, best->epoch), curve_y(axes, best->test), color);
    }
    text_print(out, "</g>\n");
}

static inline void curve_published(TextBuffer *out, const CurveAxes *axes, const LossCurve *curve, const char *color) {
    const double y = curve_y(axes, curve->published);
    text_print(out, "<path stroke=\"%s\" stroke-dasharray=\"5 4\" opacity=\"0.75\" d=\"M%d %.1fH%.0f\"/>\n", color,
               CURVE_LEFT, y, axes->right);
    text_print(out, "<path fill=\"white\" stroke=\"%s\" d=\"M%.1f %.1fl5 5-5 5-5-5z\"/>\n", color,
               curve_x(axes, curve->published_epochs), y - 5);
}

// Draws the figure of n curves, 1 to MAX_CURVES. The title and the text under the epochs are plain, without & and <.
static inline void curves_draw(TextBuffer *out, const char *title, const char *epochs, const LossCurve *curves, int n) {
    static const char *const colors[MAX_CURVES] = {"#1f6fb4", "#c4501b", "#2e8b57", "#7a4fa3"};
    const int width = n > 1 ? 860 : 760, right = n > 1 ? 624 : 632;
    text_print(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"Helvetica Neue, Arial, "
               "sans-serif\" font-size=\"13\">\n<title>%s</title>\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n"
               "<text x=\"%d\" y=\"26\" font-size=\"16\" font-weight=\"bold\" fill=\"#222\">%s</text>\n",
               width, CURVE_HEIGHT, title, width, CURVE_HEIGHT, CURVE_LEFT, title);
    text_print(out, "<text x=\"%d\" y=\"47\" fill=\"#555\">best test loss (ring):", CURVE_LEFT);
    bool compared = false;
    for (int k = 0; k < n; k++) {
        compared |= curves[k].published > 0;
        const int best = curve_best(&curves[k]);
        text_print(out, "%s <tspan fill=\"%s\">%s%s%.4f, epoch %d</tspan>", k ? ";" : "", colors[k],
                   n == 2 ? curves[k].name : "", n == 2 ? " " : "", curves[k].points[best].test, best + 1);
    }
    text_print(out, "%s</text>\n", compared ? "; dashed: published" : "");
    CurveAxes axes = curve_axes(out, curves, n, right, epochs);
    for (int i = 0; i < 3 * n; i++) { // what is published, what was trained on, and on top of them the test losses
        const LossCurve *curve = &curves[i % n];
        const LossPoint *last = &curve->points[curve->n - 1];
        const double values[] = {curve->published, last->train, last->test};
        static const char *const names[] = {"published", "train", "test"}, *const opacities[] = {"0.75", "0.8", "1"};
        const int what = i / n;
        if (!what && !(curve->published > 0)) continue;
        if (!what) curve_published(out, &axes, curve, colors[i % n]);
        if (what) curve_line(out, &axes, curve, what == 2, colors[i % n]);
        text_print(out, "<text x=\"%d\" y=\"%d\" fill=\"%s\" opacity=\"%s\">%.40s%s%s %.*f</text>\n", right + 20,
                   CURVE_TOP + CURVE_LINE * (3 * (i % n) + 3 - what), colors[i % n], opacities[what],
                   n > 1 ? curve->name : "", n > 1 ? " " : "", names[what], what ? 4 : 3, values[what]);
    }
    text_print(out, "</svg>\n");
}
