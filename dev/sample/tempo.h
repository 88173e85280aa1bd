// Tempos one after the other: how many seconds music takes that is played at them. C11 and C++17.
#pragma once

#include "base/files.h"

typedef struct {
    double at, unit; // from this time on a unit of time, a tick, say, lasts so many seconds
    double before;   // seconds up to there
} TempoSpan;

typedef struct {
    TempoSpan *spans; // [n] by time, the first at 0; owned
    size_t n;
} TempoMap;

static inline void tempo_add(TempoMap *map, double at, double unit) { // later than all others
    const TempoSpan *last = map->n ? &map->spans[map->n - 1] : NULL;
    const TempoSpan span = {at, unit, last ? last->before + (at - last->at) * last->unit : 0};
    map->spans = (TempoSpan *)must_have(realloc(map->spans, (map->n + 1) * sizeof span));
    map->spans[map->n++] = span;
}

static inline const TempoSpan *tempo_at(const TempoMap *map, double time) {
    size_t low = 0, high = map->n;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        *(map->spans[middle].at <= time ? &low : &high) = middle;
    }
    return &map->spans[low];
}

static inline double tempo_seconds(const TempoMap *map, double from, double to) {
    const TempoSpan *a = tempo_at(map, from), *b = tempo_at(map, to);
    if (a == b) return (to - from) * a->unit;
    return b->before + (to - b->at) * b->unit - (a->before + (from - a->at) * a->unit);
}
