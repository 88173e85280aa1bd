// Following a song while it is made (--live): lines of text, each at its time. Times and lengths are seconds of music.
//
//        0.500  note  F#4   66  0.250         with "prime" behind it if it belongs to the prime
//        2.000  bar   2
//        7.750  end                            of the last note; not where the song was interrupted
//
// C11, gcc and clang.
#pragma once

#include "base/program.h"

#include "sample/song.h"

typedef struct {
    FILE *out;                   // NULL: the song is not followed
    volatile sig_atomic_t *stop; // set by who interrupts the song, and by live_flush
    bool quiet;                  // the music that comes is not written, and takes no time
    const TempoMap *tempo;       // seconds by steps
    double started;              // by the clock; 0: nothing was written yet
    Place place;
    int64_t first, end; // steps: where the music that is written begins, and where the longest note ends
    int bar;
} Live;

// Waits until so much of the music has gone by, or someone interrupts.
static inline void live_wait(Live *live, double time) {
    if (!live->started) live->started = seconds_now() - time;
    for (double left; !*live->stop && (left = live->started + time - seconds_now()) > 0;) {
        const struct timespec nap = {0, (long)(fmin(left, 0.25) * 1e9)};
        nanosleep(&nap, NULL);
    }
}

// A reader that goes away, or reads nothing until Ctrl-C, ends the song; that is no error.
static inline void live_flush(Live *live) {
    if (!fflush(live->out)) return;
    if (errno == EPIPE || errno == EINTR) clearerr(live->out);
    *live->stop = 1;
}

// The song goes on with a token; remark: what stands behind a note.
static inline void live_token(Live *live, int token, const char *remark) {
    const int64_t start = place_step(&live->place);
    const double time = tempo_seconds(live->tempo, (double)live->first, (double)start);
    const bool line = place_see(&live->place, token), note = midi_token_kind(token) == MIDI_KIND_DURATION;
    if (live->quiet && token == MIDI_BAR) live->first = live->place.line;
    if (live->quiet || !(line || note)) return;
    live_wait(live, time);
    if (*live->stop) return;
    if (line) fprintf(live->out, "%9.3f  bar   %d\n", time, ++live->bar + 1);
    if (note) {
        const int64_t end = start + token - MIDI_DURATION + 1;
        const int key = live->place.pitch + MIDI_LOWEST_KEY;
        char name[16];
        if (live->end < end) live->end = end;
        fprintf(live->out, "%9.3f  note  %-4s %3d  %.3f%s\n", time, key_name(key, name), key,
                tempo_seconds(live->tempo, (double)start, (double)end), remark);
    }
    live_flush(live);
}

// The song is complete: waits until its last note has ended.
static inline void live_end(Live *live) {
    const int64_t end = live->end > live->place.line ? live->end : live->place.line;
    const double time = tempo_seconds(live->tempo, (double)live->first, (double)end);
    live_wait(live, time);
    if (*live->stop) return;
    fprintf(live->out, "%9.3f  end\n", time);
    live_flush(live);
}
