// Following a song while it is made (--live): lines of text, each at its time. Times and lengths are seconds of music.
//
//        0.500  note  F#4   66  0.250         with "prime" behind it if it belongs to the prime
//        2.000  bar   2
//        7.750  end                            of the last note; not where the song was interrupted
//
// C11, gcc and clang.
#ifndef LIVE_H
#define LIVE_H

#include "base/program.h"

#include "sample/song.h"

typedef struct {
    FILE *out;                   // NULL: the song is not followed
    volatile sig_atomic_t *stop; // set by who interrupts the song, and by live_flush
    bool quiet;                  // the music that comes is not written, and takes no time
    double step;                 // seconds
    double started;              // by the clock; 0: nothing was written yet
    int64_t line, first;         // steps: the last bar line, and where the music that is written begins
    int64_t end;                 // steps: of the note that sounds longest
    int bar;
    int offset, pitch;
} Live;

// Waits until so much of the music has gone by, or someone interrupts.
static inline void live_wait(Live *live, double time) {
    if (!live->started) live->started = seconds_now() - time;
    for (double left; !*live->stop && (left = live->started + time - seconds_now()) > 0;) {
        struct timespec nap = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        if (left > 0.25) nap = (struct timespec){0, 250000000};
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
    const midi_kind kind = midi_token_kind(token);
    const double time = (double)(live->line + live->offset - live->first) * live->step;
    char name[16];
    if (kind == MIDI_KIND_OFFSET) live->offset = token - MIDI_OFFSET;
    if (kind == MIDI_KIND_PITCH) live->pitch = token - MIDI_PITCH + MIDI_LOWEST_KEY;
    if (kind == MIDI_KIND_BAR) live->line += live->offset;
    if (kind == MIDI_KIND_BAR && live->quiet) live->first = live->line;
    if (live->quiet || kind == MIDI_KIND_OFFSET || kind == MIDI_KIND_PITCH) return;
    const bool counts = live->offset && live->offset != LONGEST_BAR;
    if (kind == MIDI_KIND_BAR && !counts) return;
    live_wait(live, time);
    if (*live->stop) return;
    if (kind == MIDI_KIND_BAR) fprintf(live->out, "%9.3f  bar   %d\n", time, ++live->bar + 1);
    if (kind == MIDI_KIND_DURATION) {
        const int steps = token - MIDI_DURATION + 1;
        if (live->end < live->line + live->offset + steps) live->end = live->line + live->offset + steps;
        fprintf(live->out, "%9.3f  note  %-4s %3d  %.3f%s\n", time, key_name(live->pitch, name), live->pitch,
                steps * live->step, remark);
    }
    live_flush(live);
}

// The song is complete: waits until its last note has ended.
static inline void live_end(Live *live) {
    const int64_t end = live->end > live->line ? live->end : live->line;
    const double time = (double)(end - live->first) * live->step;
    live_wait(live, time);
    if (*live->stop) return;
    fprintf(live->out, "%9.3f  end\n", time);
    live_flush(live);
}

#endif
