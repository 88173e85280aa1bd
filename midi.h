/* midi.h - Standard MIDI Files <-> notes <-> the 153 event tokens of the models, in one header.

What it leaves out:
- Formats other than 0 and 1, and SMPTE time: divisions are ticks per quarter note.
- It reads notes, tempos, time signatures and texts. Programs, pedal and other controllers, bends, key signatures,
  aftertouch and sysex are read over, and lost when the song is written again. So a note that only the pedal holds is
  as short as its key was down; song.pedal_presses tells whether there is a pedal.
- The whole file and song are held in memory: about 30 times the file's size at worst.
- The token grid is a 16th note; triplets and grace notes are rounded to it.
- A file of 40 bytes can claim a piece of a billion steps: the limits MIDI_MAX_ below refuse such songs.

What it promises: any bytes at all give a song, or one sentence that says what is wrong and at which byte; never a
crash, never more than n log n work, never more memory than a fixed multiple of the file plus 150 MB at the limits. The
same bytes give the same tokens on every machine.

BUILD  In one C11 or C++ file:

    #define MIDI_IMPLEMENTATION
    #include "midi.h"

Before that you may define MIDI_STATIC (all functions static), MIDI_MALLOC, MIDI_REALLOC and MIDI_FREE (all three, in
every file that includes midi.h), or MIDI_NO_FILES (no midi_read_file). Doubles must be computed as doubles: -ffast-math
does no harm, x87 arithmetic is refused.

USE  Every int function returns 1, or 0 with a sentence in error.text. A file to tokens and back to a file:

    int main(void) {
        midi_song song, back;
        midi_report report;
        midi_error error;
        uint8_t *tokens, *bytes;
        size_t n, size;
        if (!midi_read_file(&song, "in.mid", 32 << 20, &error) || !midi_encode(&song, &tokens, &n, &report, &error))
            return printf("in.mid: %s\n", error.text), 1;
        printf("%zu notes, %zu bars, %zu tokens\n", report.notes, report.bars, n);
        if (!midi_decode(tokens, n, &back, &error) || !midi_add_tempo(&back, 0, 500000, 0) ||
            !midi_write(&back, &bytes, &size, &error))
            return printf("%s\n", error.text), 1;
        FILE *file = fopen("out.mid", "wb");
        int written = file && fwrite(bytes, 1, size, file) == size && !fclose(file);
        MIDI_FREE(bytes);
        MIDI_FREE(tokens);
        midi_free(&back);
        midi_free(&song);
        return !written;
    }

THE BYTES  A Standard MIDI File (MIDI Manufacturers Association, RP-001) is a row of chunks: four letters, a 32-bit
length, that many bytes. All numbers are big-endian. A whole file, in hexadecimal:

    4D 54 68 64  00 00 00 06  00 00  00 01  01 E0     "MThd", 6 bytes: format 0, one track, 480 ticks a quarter
    4D 54 72 6B  00 00 00 0C                          "MTrk", 12 bytes of events:
    00     90 3C 50                                   at once: note-on, key 3C (middle C), velocity 50
    83 60     3C 00                                   480 ticks later: the same message, velocity 0 = note-off
    00     FF 2F 00                                   at once: end of track

An event is a delta time and a message. The delta counts ticks since the event before, as a variable-length number:
seven bits a byte, highest first, bit 7 set on all but the last, four bytes at most; 83 60 is 3 * 128 + 96 = 480.
The first byte of a message is its status, the others are its data; c is the channel:

    8c key velocity    note-off               Ec low high          pitch bend
    9c key velocity    note-on                F0 or F7, length     sysex: the length, then that many bytes
    Ac key pressure    aftertouch of a key    FF type length       meta event: the same, with a type
    Bc number value    control change           01 to 0F             text: 03 track name, 05 lyric, 06 marker
    Cc program         program change           2F                   end of track
    Dc pressure        aftertouch               51, 3 bytes          tempo: microseconds a quarter
                                                58, n e c b          time signature n / 2^e
                                                59, sharps minor     key signature

Data bytes of channel messages are below 80. So a message that begins with one has left its status out and takes that of
the channel message before it, as the second event above does (running status).

THE TOKENS  0 BAR; 1..32 OFFSET 0..31; 33..120 PITCH of the piano keys 21..108; 121..152 DURATION 1..32; a step is a
16th. OFFSET PITCH DURATION is a note, OFFSET BAR a bar line, and OFFSET counts from the bar line before. Notes are cut
into pieces of 32 steps, bars into pieces of 31. The file above is 1 72 124: offset 0, key 21 + 39, 4 steps.

Licence: MIT, see LICENSE. */

#ifndef MIDI_H
#define MIDI_H

#define MIDI_VERSION "1.0"

#include <stddef.h>
#include <stdint.h>

#ifndef MIDI_MALLOC
#include <stdlib.h>
#define MIDI_MALLOC malloc
#define MIDI_REALLOC realloc
#define MIDI_FREE free
#endif

#ifdef MIDI_STATIC
#define MIDI_DEF static inline
#else
#define MIDI_DEF extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MIDI_BAR = 0,        // the token of a bar line
    MIDI_OFFSET = 1,     // + steps since the last bar line, 0..31
    MIDI_PITCH = 33,     // + key - MIDI_LOWEST_KEY, 0..87
    MIDI_DURATION = 121, // + steps - 1, 0..31
    MIDI_TOKENS = 153,   // size of the vocabulary
    MIDI_LOWEST_KEY = 21,
    MIDI_HIGHEST_KEY = 108,
    MIDI_STEP = 120,           // ticks of a step in decoded songs, whose division is 480
    MIDI_MAX_STEPS = 1 << 24,  // longest piece: 24 days at 120 quarters a minute
    MIDI_MAX_PIECES = 1 << 22, // most notes of a token stream, counted after cutting them into pieces of 32 steps
    MIDI_MAX_LINES = 1 << 26,  // most bar lines to compute, summed over the time signatures (each makes 2^24 at most)
    MIDI_MAX_BARS = 500000,    // most BAR tokens of a piece that midi_usable finds usable
    MIDI_MAX_TRACKS = 65535,
    MIDI_DRUMS = 9 // the channel that everybody calls 10
};

// Times are ticks since the start of the song. `track` is the number of the track chunk in the file, from 0; a song
// made by hand may leave it 0 everywhere.
typedef struct {
    int64_t start, end;             // end >= start
    uint8_t key, velocity, channel; // 0..127 (60 = middle C), 1..127, 0..15
    int track;
} midi_note;

typedef struct {
    int64_t tick;
    int32_t us_per_quarter; // microseconds, 0..2^24-1; 500000 = 120 quarters a minute
    int track;
} midi_tempo;

typedef struct {
    int64_t tick;
    uint8_t numerator, exponent; // numerator / 2^exponent, 1..255 and 0..7
    int track;
} midi_meter;

typedef struct {
    int64_t start, end; // the sustain pedal is down from the one to the other, end > start
    uint8_t channel;
    int track;
} midi_pedal;

typedef struct {
    int64_t tick;
    uint8_t type; // of the meta event, 1..15: 1 text, 2 copyright, 3 track name, 4 instrument, 5 lyric, 6 marker, 7 cue
    char *text;   // in whatever encoding the file has, with a 0 after its last byte
    size_t length; // bytes without that 0 (the text itself may hold zeros)
    int track;
} midi_text;

// A song owns its arrays; they come from midi_read, midi_decode or the midi_add functions and go with midi_free.
typedef struct {
    int format;   // 0 or 1 (also for a file that says 0 and has several tracks)
    int n_tracks; // track chunks read; when writing, at least as many, more if the events name more
    int division; // ticks per quarter, 1..32767
    midi_note *notes;
    size_t n_notes; // in the order in which they begin, track after track
    midi_tempo *tempos;
    size_t n_tempos; // in file order, as all that follow: track after track
    midi_meter *meters;
    size_t n_meters; // without those that make no sense (numerator 0, exponent above 7)
    midi_text *texts;
    size_t n_texts;
    midi_pedal *pedals; // to be written; midi_read leaves them out
    size_t n_pedals;
    int64_t *bars;
    size_t n_bars;     // ticks of the BAR tokens; midi_decode only
    int64_t last_mark; // latest tick of a tempo, key signature, lyric or control change: what stretches a piece's end
    // What was odd about the file:
    size_t open_notes;     // notes never ended, closed at the end of their track
    size_t unmatched_offs; // note-offs without a note
    size_t ignored_meters; // time signatures that make no sense
    size_t skipped_chunks; // chunks that are no tracks
    size_t missing_tracks; // announced in the header, not in the file
    size_t unread_tracks;  // in the file, not announced in the header, and so not read
    size_t pedal_presses;  // how often the sustain pedal goes down, control change 64 from below 64 to 64 or more
    size_t dropped_drums;  // midi_drop_drums: notes that it took out
    size_t trailing_bytes; // after the last track
    size_t dropped_tokens; // midi_decode: tokens out of order
} midi_song;

typedef struct {
    size_t offset;  // byte of the file (token, note, ... of the input) where it went wrong, or MIDI_NO_OFFSET
    int code;       // errno where the system failed, as it may also for a good file (ENOMEM: no memory); else 0
    char text[240]; // one sentence, without a full stop, that names the offset too
} midi_error;
#define MIDI_NO_OFFSET ((size_t)-1)

// What midi_encode did. notes + out_of_range + vanished are all notes of the song.
typedef struct {
    int64_t steps;       // where the piece ends, in steps
    size_t bars;         // BAR tokens
    size_t notes;        // notes of the song that are in the tokens
    size_t split;        // of these, notes longer than 32 steps, cut into pieces
    size_t moved;        // of these, notes that begin between two steps and were moved to one
    size_t drums;        // of these, notes of channel MIDI_DRUMS, which become keys of the piano
    size_t pieces;       // what the notes became, three tokens each; above MIDI_MAX_PIECES no longer exact
    size_t out_of_range; // notes dropped because no piano has the key
    size_t vanished;     // notes dropped because start and end round to one step: too short
    int assumed_meter;   // 1: the song has no time signature and was read as 4/4
} midi_report;

// Reads the bytes of a file. Tolerant, as real folders need: unknown chunks, a RIFF RMID wrapper, fewer tracks than
// announced and bytes after the last one are accepted and counted. *song may be uninitialised; a failure empties it.
MIDI_DEF int midi_read(midi_song *song, const void *bytes, size_t size, midi_error *error);

#ifndef MIDI_NO_FILES
// The same from a path, which must be a regular file of at most max_bytes.
MIDI_DEF int midi_read_file(midi_song *song, const char *path, size_t max_bytes, midi_error *error);
#endif

// Makes the bytes of a file; the caller frees *bytes with MIDI_FREE. Events may stand in any order. Format 1: a track
// for each `track` named; format 0: all in one. At one tick: texts, tempos, meters, pedals, note-offs, note-ons. What
// midi_read read comes back the same from midi_read(midi_write(song)), save the order of notes that begin together, the
// counts and last_mark. The file pairs notes first in, first out: where notes of one track, channel and key overlap,
// the one that begins first ends first.
// Errors: a field out of its range, a gap of 2^28 ticks or more, a track of 4 GiB, no memory.
MIDI_DEF int midi_write(const midi_song *song, uint8_t **bytes, size_t *size, midi_error *error);

// Frees what the song owns and empties it.
MIDI_DEF void midi_free(midi_song *song);

// Append a copy to a song that is zeroed (memset) or came from midi_read or midi_decode. 0 = no memory, song unchanged.
MIDI_DEF int midi_add_note(midi_song *song, int64_t start, int64_t end, int key, int velocity, int channel, int track);
MIDI_DEF int midi_add_tempo(midi_song *song, int64_t tick, int us_per_quarter, int track);
MIDI_DEF int midi_add_meter(midi_song *song, int64_t tick, int numerator, int exponent, int track);
MIDI_DEF int midi_add_text(midi_song *song, int64_t tick, int type, const char *text, int track);
MIDI_DEF int midi_add_pedal(midi_song *song, int64_t start, int64_t end, int channel, int track);

// Tick -> step: rint(tick * (4.0 / division)), ties to even, in IEEE double. Above 2^25 it stays 2^25.
MIDI_DEF int64_t midi_steps(int64_t tick, int division);

// These change a song before midi_encode, for those who want other notes in the tokens than a plain reading gives. Each
// returns how many notes it changed. midi_drop_drums takes the notes of channel MIDI_DRUMS out. midi_keep_short makes
// the notes that would vanish a step long (where a tick is longer than a step, a tick).
MIDI_DEF size_t midi_drop_drums(midi_song *song);
MIDI_DEF size_t midi_keep_short(midi_song *song);

// Counts the notes that begin before a step, INT64_MAX for all, as midi_encode does; steps and bars stay 0.
MIDI_DEF void midi_count(const midi_song *song, int64_t before, midi_report *report);

// Song -> tokens; the caller frees *tokens with MIDI_FREE (never NULL). report may be NULL. The stream may be empty.
// Errors: longer than MIDI_MAX_STEPS, more than MIDI_MAX_PIECES or MIDI_MAX_LINES, division not 1..32767, no memory.
MIDI_DEF int midi_encode(const midi_song *song, uint8_t **tokens, size_t *n, midi_report *report, midi_error *error);

// Whether what midi_encode made of a song is music. 0 and the reason where it holds no note (the song has none, or all
// are too short, out of range, dropped drums or in tracks that the header does not announce), or too many bar
// lines, more than MIDI_MAX_BARS.
MIDI_DEF int midi_usable(const midi_song *song, const midi_report *report, midi_error *error);

// Tokens -> song of division 480: notes sorted by (start, key, duration) with velocity 80 on channel 0 of track 0, and
// the bar lines in song->bars; no tempo, no meter. Tokens out of order are dropped and counted. Errors: a token of 153
// or more, no memory. On failure the song is empty.
MIDI_DEF int midi_decode(const uint8_t *tokens, size_t n, midi_song *song, midi_error *error);

typedef enum { MIDI_KIND_BAR, MIDI_KIND_OFFSET, MIDI_KIND_PITCH, MIDI_KIND_DURATION } midi_kind;
MIDI_DEF midi_kind midi_token_kind(int token); // token in 0..152

// The grammar: may token `next` follow token `previous` (-1 at the start of a stream)? DURATION, BAR or the start ->
// OFFSET; OFFSET -> BAR or PITCH; PITCH -> DURATION.
MIDI_DEF int midi_may_follow(int previous, int next);

#ifdef __cplusplus
}
#endif
#endif // MIDI_H

#ifdef MIDI_IMPLEMENTATION

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#ifndef MIDI_NO_FILES
#include <sys/stat.h>
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 2
#error "midi.h needs double arithmetic that rounds to double: compile with -msse2 -mfpmath=sse"
#endif

static int midi__fail(midi_error *error, size_t offset, const char *format, ...) {
    if (!error) return 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    error->offset = offset;
    error->code = 0;
    size_t length = strlen(error->text);
    if (offset != MIDI_NO_OFFSET) {
        snprintf(error->text + length, sizeof error->text - length, " (byte %llu)", (unsigned long long)offset);
    }
    return 0;
}

static int midi__no_memory(midi_error *error) {
    midi__fail(error, MIDI_NO_OFFSET, "out of memory");
    if (error) error->code = ENOMEM;
    return 0;
}

// Appends a copy of an item of size bytes to an array of *n such items; list points to the pointer to it. 0 = no
// memory. Arrays have room for 16 items, then double whenever n is a power of two, so that n tells the room.
static int midi__append(void *list, size_t *n, const void *item, size_t size) {
    uint8_t *array;
    memcpy(&array, list, sizeof array);
    if (*n == 0 || (*n >= 16 && (*n & (*n - 1)) == 0)) {
        size_t room = *n ? 2 * *n : 16;
        array = room > SIZE_MAX / 2 / size ? NULL : (uint8_t *)MIDI_REALLOC(array, room * size);
        if (!array) return 0;
        memcpy(list, &array, sizeof array);
    }
    memcpy(array + size * (*n)++, item, size);
    return 1;
}

MIDI_DEF int midi_add_note(midi_song *song, int64_t start, int64_t end, int key, int velocity, int channel, int track) {
    midi_note note = {start, end, (uint8_t)key, (uint8_t)velocity, (uint8_t)channel, track};
    return midi__append(&song->notes, &song->n_notes, &note, sizeof note);
}

MIDI_DEF int midi_add_tempo(midi_song *song, int64_t tick, int us_per_quarter, int track) {
    midi_tempo tempo = {tick, us_per_quarter, track};
    return midi__append(&song->tempos, &song->n_tempos, &tempo, sizeof tempo);
}

MIDI_DEF int midi_add_meter(midi_song *song, int64_t tick, int numerator, int exponent, int track) {
    midi_meter meter = {tick, (uint8_t)numerator, (uint8_t)exponent, track};
    return midi__append(&song->meters, &song->n_meters, &meter, sizeof meter);
}

static int midi__add_text(midi_song *song, int64_t tick, int type, const void *bytes, size_t length, int track) {
    midi_text text = {tick, (uint8_t)type, (char *)MIDI_MALLOC(length + 1), length, track};
    if (!text.text) return 0;
    memcpy(text.text, bytes, length);
    text.text[length] = 0;
    if (midi__append(&song->texts, &song->n_texts, &text, sizeof text)) return 1;
    MIDI_FREE(text.text);
    return 0;
}

MIDI_DEF int midi_add_text(midi_song *song, int64_t tick, int type, const char *text, int track) {
    return midi__add_text(song, tick, type, text, strlen(text), track);
}

MIDI_DEF int midi_add_pedal(midi_song *song, int64_t start, int64_t end, int channel, int track) {
    midi_pedal pedal = {start, end, (uint8_t)channel, track};
    return midi__append(&song->pedals, &song->n_pedals, &pedal, sizeof pedal);
}

MIDI_DEF void midi_free(midi_song *song) {
    for (size_t i = 0; i < song->n_texts; i++) MIDI_FREE(song->texts[i].text);
    MIDI_FREE(song->notes);
    MIDI_FREE(song->tempos);
    MIDI_FREE(song->meters);
    MIDI_FREE(song->texts);
    MIDI_FREE(song->pedals);
    MIDI_FREE(song->bars);
    memset(song, 0, sizeof *song);
}

// ---- reading

typedef struct {
    const uint8_t *bytes;
    size_t size, at;
    midi_song *song;
    midi_error *error;
    // The open notes of each channel and key wait in a queue. first and the `end` of an open note lead on to the next
    // one: -2 - its number, or -1 where there is none, so that all open ends are negative. last is a note's number.
    int64_t first[16 * 128], last[16 * 128];
    unsigned pedals; // bit c: the sustain pedal of channel c is down in this track
} midi__reader;

static uint32_t midi__big_endian(const uint8_t *bytes, int n) {
    uint32_t value = 0;
    for (int i = 0; i < n; i++) value = value << 8 | bytes[i];
    return value;
}

static int midi__ends(midi__reader *reader, const char *where) {
    return midi__fail(reader->error, reader->size, "the file ends inside %s", where);
}

static int midi__number(midi__reader *reader, uint32_t *value) {
    *value = 0;
    for (size_t start = reader->at; reader->at < start + 4;) {
        if (reader->at >= reader->size) return midi__ends(reader, "a variable-length number");
        uint8_t byte = reader->bytes[reader->at++];
        *value = *value << 7 | (byte & 0x7F);
        if (byte < 0x80) return 1;
    }
    return midi__fail(reader->error, reader->at - 4, "a variable-length number is longer than four bytes");
}

static int midi__note_on(midi__reader *reader, int64_t tick, int channel, int key, int velocity, int track) {
    midi_song *song = reader->song;
    int64_t i = (int64_t)song->n_notes;
    if (!midi_add_note(song, tick, -1, key, velocity, channel, track)) return midi__no_memory(reader->error);
    int queue = channel * 128 + key;
    int64_t *link = reader->first[queue] == -1 ? &reader->first[queue] : &song->notes[reader->last[queue]].end;
    *link = -2 - i;
    reader->last[queue] = i;
    return 1;
}

static void midi__note_off(midi__reader *reader, int64_t tick, int channel, int key) {
    int queue = channel * 128 + key;
    int64_t i = -2 - reader->first[queue];
    reader->song->unmatched_offs += i < 0;
    if (i < 0) return;
    reader->first[queue] = reader->song->notes[i].end;
    reader->song->notes[i].end = tick;
}

// Meta events whose payload is too short or makes no sense are ignored.
static int midi__meta(midi__reader *reader, int64_t tick, int type, const uint8_t *data, size_t length, int track) {
    midi_song *song = reader->song;
    int mark = 0, stored = 1;
    if (type >= 1 && type <= 15) {
        stored = midi__add_text(song, tick, type, data, length, track);
        mark = type == 5;
    } else if (type == 0x51 && length >= 3) {
        stored = midi_add_tempo(song, tick, (int)midi__big_endian(data, 3), track);
        mark = 1;
    } else if (type == 0x58 && length >= 4 && data[0] > 0 && data[1] <= 7) {
        stored = midi_add_meter(song, tick, data[0], data[1], track);
    } else if (type == 0x58) {
        song->ignored_meters++;
    } else if (type == 0x59 && length >= 2) {
        int sharps = data[0] > 127 ? data[0] - 256 : data[0];
        mark = sharps >= -7 && sharps <= 7 && data[1] <= 1;
    }
    if (mark && tick > song->last_mark) song->last_mark = tick;
    return stored || midi__no_memory(reader->error);
}

// Reads the events of the track whose chunk ends at byte `end`. Ticks cannot overflow: a delta is below 2^28 and takes
// three bytes with its event, so that would need a file of 2^36 bytes.
static int midi__events(midi__reader *reader, size_t end, int track, int64_t *tick) {
    const uint8_t *bytes = reader->bytes;
    int running = 0; // status of the last channel message, 0 = none yet
    while (reader->at != end) {
        if (reader->at > end) return midi__fail(reader->error, end, "an event runs past the end of its track");
        uint32_t delta, length;
        if (!midi__number(reader, &delta)) return 0;
        *tick += delta;
        if (reader->at >= reader->size) return midi__ends(reader, "a track");
        size_t start = reader->at;
        int status = bytes[start] < 0x80 ? running : bytes[start];
        if (!status) {
            return midi__fail(reader->error, start, "a message without a status byte has none before it in its track");
        }
        reader->at += bytes[start] >= 0x80;

        if (status == 0xFF || status == 0xF0 || status == 0xF7) {
            if (status == 0xFF && reader->at >= reader->size) return midi__ends(reader, "a meta event");
            int type = status == 0xFF ? bytes[reader->at++] : -1;
            if (!midi__number(reader, &length)) return 0;
            if (length > reader->size - reader->at) {
                return midi__fail(reader->error, start, "an event claims %u bytes, the file has %llu left",
                                  (unsigned)length, (unsigned long long)(reader->size - reader->at));
            }
            const uint8_t *data = bytes + reader->at;
            reader->at += length;
            if (type == 0x2F) return 1; // what follows in the chunk does not count
            if (type >= 0 && !midi__meta(reader, *tick, type, data, length, track)) return 0;
            continue;
        }

        // Data bytes of 8x to Ex and of F0 to FF, -1 = undefined
        static const int8_t channel_bytes[8] = {2, 2, 2, 2, 1, 1, 2, 0};
        static const int8_t system_bytes[16] = {-1, 1, 2, 1, -1, -1, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1};
        int n = status < 0xF0 ? channel_bytes[(status >> 4) - 8] : system_bytes[status & 15];
        if (n < 0) return midi__fail(reader->error, start, "the status byte %02X means nothing", (unsigned)status);
        if (reader->size - reader->at < (size_t)n) return midi__ends(reader, "a message");
        const uint8_t *data = bytes + reader->at;
        for (int i = 0; i < n; i++) {
            if (data[i] > 127) return midi__fail(reader->error, reader->at + i, "a data byte is above 7F");
        }
        reader->at += n;
        if (status >= 0xF0) continue;
        running = status;
        int kind = status >> 4, channel = status & 15;
        if (kind == 9 && data[1] > 0) {
            if (!midi__note_on(reader, *tick, channel, data[0], data[1], track)) return 0;
        } else if (kind == 8 || kind == 9) {
            midi__note_off(reader, *tick, channel, data[0]);
        } else if (kind == 0xB) {
            if (*tick > reader->song->last_mark) reader->song->last_mark = *tick;
            unsigned before = reader->pedals, pedal = 1u << channel;
            if (data[0] == 64) reader->pedals = data[1] < 64 ? before & ~pedal : before | pedal;
            reader->song->pedal_presses += reader->pedals > before;
        }
    }
    return 1;
}

static int midi__track(midi__reader *reader, size_t end, int track) {
    midi_song *song = reader->song;
    size_t first_note = song->n_notes;
    int64_t tick = 0;
    reader->pedals = 0;
    if (!midi__events(reader, end, track, &tick)) return 0;
    for (size_t i = first_note; i < song->n_notes; i++) {
        midi_note *note = &song->notes[i];
        if (note->end >= 0) continue;
        reader->first[note->channel * 128 + note->key] = -1;
        note->end = tick;
        song->open_notes++;
    }
    return 1;
}

static int midi__chunks(midi__reader *reader) {
    midi_song *song = reader->song;
    midi_error *error = reader->error;
    const uint8_t *bytes = reader->bytes;
    size_t size = reader->size;
    int wrapped = size >= 12 && !memcmp(bytes, "RIFF", 4) && !memcmp(bytes + 8, "RMID", 4);
    if (size == 0) return midi__fail(error, 0, "the file is empty");
    if (wrapped) {
        while (reader->at + 4 <= size && memcmp(bytes + reader->at, "MThd", 4)) reader->at++;
        if (reader->at + 4 > size) return midi__fail(error, 0, "an RMID file without MThd in it");
    }
    const uint8_t *header = bytes + reader->at;
    size_t there = size - reader->at;
    if (there >= 4 && memcmp(header, "MThd", 4)) {
        return midi__fail(error, 0, "not a MIDI file: it does not begin with MThd");
    }
    if (there < 14) return midi__fail(error, size, "too short for a MIDI file");
    size_t length = midi__big_endian(header + 4, 4);
    if (length < 6) return midi__fail(error, reader->at + 4, "the header is shorter than 6 bytes");
    int format = (int)midi__big_endian(header + 8, 2);
    int announced = (int)midi__big_endian(header + 10, 2);
    int division = (int)midi__big_endian(header + 12, 2);
    if (format > 1) return midi__fail(error, reader->at + 8, "format %d is not supported, only 0 and 1 are", format);
    if (division > 32767) {
        return midi__fail(error, reader->at + 12, "its times are SMPTE frames; ticks per quarter note are needed");
    }
    if (division < 1) return midi__fail(error, reader->at + 12, "the division is 0 ticks per quarter note");
    song->division = division;
    reader->at += 8;
    reader->at = length > size - reader->at ? size : reader->at + length;

    while (song->n_tracks < announced) {
        size_t left = size - reader->at;
        if (left == 0 && song->n_tracks > 0) break; // fewer tracks than announced
        if (left < 8) {
            return midi__fail(error, size, "the file ends before track %d of %d", song->n_tracks + 1, announced);
        }
        const uint8_t *chunk = bytes + reader->at;
        length = midi__big_endian(chunk + 4, 4);
        if (length > left - 8) {
            return midi__fail(error, reader->at, "a chunk claims %llu bytes, the file has %llu left",
                              (unsigned long long)length, (unsigned long long)(left - 8));
        }
        reader->at += 8;
        size_t end = reader->at + length;
        int is_track = !memcmp(chunk, "MTrk", 4);
        if (is_track && !midi__track(reader, end, song->n_tracks)) return 0;
        // An end-of-track may reach past its chunk; the next chunk begins where the length says all the same.
        reader->at = end;
        song->n_tracks += is_track;
        song->skipped_chunks += !is_track;
    }
    song->missing_tracks = (size_t)(announced - song->n_tracks);
    song->trailing_bytes = wrapped ? 0 : size - reader->at;
    while (size - reader->at >= 8) {
        song->unread_tracks += !memcmp(bytes + reader->at, "MTrk", 4);
        length = midi__big_endian(bytes + reader->at + 4, 4);
        reader->at += 8;
        reader->at = length > size - reader->at ? size : reader->at + length;
    }
    song->format = song->n_tracks > 1 ? 1 : format;
    return 1;
}

MIDI_DEF int midi_read(midi_song *song, const void *bytes, size_t size, midi_error *error) {
    memset(song, 0, sizeof *song);
    midi__reader reader = {(const uint8_t *)bytes, size, 0, song, error, {0}, {0}, 0};
    for (int i = 0; i < 16 * 128; i++) reader.first[i] = -1;
    int done = midi__chunks(&reader);
    if (!done) midi_free(song);
    return done;
}

#ifndef MIDI_NO_FILES
static int midi__unreadable(midi_error *error) {
    int code = errno;
    midi__fail(error, MIDI_NO_OFFSET, "cannot be read: %s", strerror(code));
    if (error) error->code = code;
    return 0;
}

MIDI_DEF int midi_read_file(midi_song *song, const char *path, size_t max_bytes, midi_error *error) {
    memset(song, 0, sizeof *song);
    struct stat status; // asked before opening, because opening a pipe would wait for a writer
    if (stat(path, &status)) return midi__unreadable(error);
    if (!S_ISREG(status.st_mode)) return midi__fail(error, MIDI_NO_OFFSET, "is not a regular file");
    if ((uint64_t)status.st_size > max_bytes) {
        return midi__fail(error, MIDI_NO_OFFSET, "has %lld bytes, more than the %llu that a MIDI file may have",
                          (long long)status.st_size, (unsigned long long)max_bytes);
    }
    FILE *file = fopen(path, "rb");
    if (!file) return midi__unreadable(error);
    void *bytes = MIDI_MALLOC((size_t)status.st_size + 1);
    size_t size = bytes ? fread(bytes, 1, (size_t)status.st_size, file) : 0;
    int done = bytes ? 1 : midi__no_memory(error);
    if (ferror(file)) done = midi__unreadable(error);
    fclose(file);
    done = done && midi_read(song, bytes, size, error);
    MIDI_FREE(bytes);
    return done;
}
#endif

// ---- writing

typedef struct {
    int64_t tick, order; // order: what decides between events of one tick and rank
    size_t index;
    int track;
    uint8_t rank;
} midi__event;

enum { MIDI__TEXT, MIDI__TEMPO, MIDI__METER, MIDI__PEDAL, MIDI__OFF, MIDI__ON_OFF, MIDI__ON };

typedef struct {
    uint8_t *bytes;
    size_t n;
    int failed;
} midi__buffer;

static void midi__put(midi__buffer *buffer, const void *bytes, size_t n) {
    for (size_t i = 0; i < n && !buffer->failed; i++) {
        buffer->failed = !midi__append(&buffer->bytes, &buffer->n, (const uint8_t *)bytes + i, 1);
    }
}

static void midi__put_big_endian(midi__buffer *buffer, uint32_t value, int n) {
    uint8_t bytes[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    midi__put(buffer, bytes + 4 - n, (size_t)n);
}

static void midi__put_number(midi__buffer *buffer, uint32_t value) {
    for (int shift = 21; shift >= 0; shift -= 7) {
        uint8_t byte = (uint8_t)((value >> shift & 0x7F) | (shift ? 0x80 : 0));
        if (value >> shift || shift == 0) midi__put(buffer, &byte, 1);
    }
}

// The order of the file to be. Note-ons of one tick are sorted by their ends, so that the reader's first in, first out
// gives each its own.
static int midi__before(const void *left, const void *right) {
    const midi__event *a = (const midi__event *)left, *b = (const midi__event *)right;
    if (a->track != b->track) return a->track < b->track ? -1 : 1;
    if (a->tick != b->tick) return a->tick < b->tick ? -1 : 1;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    if (a->order != b->order) return a->order < b->order ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

// A list of events. One that has no room, with NULL for its events, only checks what it gets.
typedef struct {
    midi__event *events;
    size_t n;
    midi_error *error;
} midi__list;

static int midi__add_event(midi__list *list, int good, int rank, size_t i, int64_t tick, int64_t order, int track) {
    static const char *const names[] = {"text", "tempo", "meter", "pedal", "note", "note", "note"};
    midi__event event = {tick, order, i, track, (uint8_t)rank};
    if (good && tick >= 0 && track >= 0 && track < MIDI_MAX_TRACKS) {
        if (list->events) list->events[list->n++] = event;
        return 1;
    }
    midi__fail(list->error, MIDI_NO_OFFSET, "%s %llu of the song has a field out of its range", names[rank],
               (unsigned long long)i);
    if (list->error) list->error->offset = i;
    return 0;
}

// Checks a song and lists all its events.
static int midi__list_events(midi__list *list, const midi_song *song) {
    midi_error *error = list->error;
    if (song->format < 0 || song->format > 1) return midi__fail(error, MIDI_NO_OFFSET, "the format is not 0 or 1");
    if (song->division < 1 || song->division > 32767) {
        return midi__fail(error, MIDI_NO_OFFSET, "the division is %d, not 1 to 32767", song->division);
    }
    if (song->n_tracks < 0 || song->n_tracks > MIDI_MAX_TRACKS) {
        return midi__fail(error, MIDI_NO_OFFSET, "the song has %d tracks, not 0 to 65535", song->n_tracks);
    }
    int good = 1;
    for (size_t i = 0; i < song->n_notes && good; i++) {
        const midi_note *note = &song->notes[i];
        int rank = note->start == note->end ? MIDI__ON_OFF : MIDI__ON;
        good = note->end >= note->start && note->key <= 127 && note->channel <= 15;
        good = good && note->velocity >= 1 && note->velocity <= 127;
        good = midi__add_event(list, good, rank, i, note->start, note->end, note->track);
        if (good && rank == MIDI__ON) midi__add_event(list, 1, MIDI__OFF, i, note->end, note->start, note->track);
    }
    for (size_t i = 0; i < song->n_tempos && good; i++) {
        const midi_tempo *tempo = &song->tempos[i];
        good = tempo->us_per_quarter >= 0 && tempo->us_per_quarter < 1 << 24;
        good = midi__add_event(list, good, MIDI__TEMPO, i, tempo->tick, 0, tempo->track);
    }
    for (size_t i = 0; i < song->n_meters && good; i++) {
        const midi_meter *meter = &song->meters[i];
        good = meter->numerator >= 1 && meter->exponent <= 7;
        good = midi__add_event(list, good, MIDI__METER, i, meter->tick, 0, meter->track);
    }
    for (size_t i = 0; i < song->n_texts && good; i++) {
        const midi_text *text = &song->texts[i];
        good = text->type >= 1 && text->type <= 15 && text->length < 1 << 28;
        good = midi__add_event(list, good, MIDI__TEXT, i, text->tick, 0, text->track);
    }
    for (size_t i = 0; i < song->n_pedals && good; i++) {
        const midi_pedal *pedal = &song->pedals[i];
        good = pedal->end > pedal->start && pedal->channel <= 15;
        good = midi__add_event(list, good, MIDI__PEDAL, i, pedal->start, 1, pedal->track); // behind an end at its tick
        if (good) midi__add_event(list, 1, MIDI__PEDAL, i, pedal->end, 0, pedal->track);
    }
    return good;
}

// *running is the status that the reader will have; a meta event ends it for readers that are strict.
static void midi__put_note(midi__buffer *buffer, const midi_note *note, int velocity, int *running) {
    uint8_t bytes[3] = {(uint8_t)(0x90 | note->channel), note->key, (uint8_t)velocity};
    int left_out = bytes[0] == *running;
    midi__put(buffer, bytes + left_out, (size_t)(3 - left_out));
    *running = bytes[0];
}

static void midi__put_event(midi__buffer *buffer, const midi_song *song, const midi__event *event, int *running) {
    if (event->rank >= MIDI__OFF) {
        const midi_note *note = &song->notes[event->index];
        if (event->rank != MIDI__OFF) midi__put_note(buffer, note, note->velocity, running);
        if (event->rank == MIDI__ON_OFF) midi__put_number(buffer, 0);
        if (event->rank != MIDI__ON) midi__put_note(buffer, note, 0, running);
        return;
    }
    *running = 0;
    if (event->rank == MIDI__TEXT) {
        const midi_text *text = &song->texts[event->index];
        midi__put_big_endian(buffer, 0xFF00u | text->type, 2);
        midi__put_number(buffer, (uint32_t)text->length);
        midi__put(buffer, text->text, text->length);
    } else if (event->rank == MIDI__TEMPO) {
        midi__put_big_endian(buffer, 0xFF5103, 3);
        midi__put_big_endian(buffer, (uint32_t)song->tempos[event->index].us_per_quarter, 3);
    } else if (event->rank == MIDI__PEDAL) {
        uint32_t value = event->order ? 127 : 0;
        midi__put_big_endian(buffer, 0xB04000u | (uint32_t)song->pedals[event->index].channel << 16 | value, 3);
    } else {
        const midi_meter *meter = &song->meters[event->index];
        int clocks = 96 >> meter->exponent; // MIDI clocks a metronome beat, 24 a quarter
        uint8_t bytes[7] = {0xFF, 0x58, 4, meter->numerator, meter->exponent, (uint8_t)(clocks > 0 ? clocks : 1), 8};
        midi__put(buffer, bytes, 7);
    }
}

static int midi__put_track(midi__buffer *buffer, const midi_song *song, const midi__event *events, size_t n,
                           midi_error *error) {
    midi__put(buffer, "MTrk\0\0\0\0", 8);
    size_t start = buffer->n;
    int64_t tick = 0;
    int running = 0;
    for (size_t i = 0; i < n; i++) {
        if (events[i].tick - tick >= 1 << 28) {
            return midi__fail(error, MIDI_NO_OFFSET, "a gap of %lld ticks is too long for a MIDI file, the most is %d",
                              (long long)(events[i].tick - tick), (1 << 28) - 1);
        }
        midi__put_number(buffer, (uint32_t)(events[i].tick - tick));
        midi__put_event(buffer, song, &events[i], &running);
        tick = events[i].tick;
    }
    midi__put(buffer, "\0\xFF\x2F\0", 4);
    if (buffer->failed) return midi__no_memory(error);
    const uint64_t length = buffer->n - start;
    if (length > UINT32_MAX) {
        return midi__fail(error, MIDI_NO_OFFSET, "a track has 4 GiB or more, too long for a MIDI file");
    }
    for (int i = 0; i < 4; i++) buffer->bytes[start - 4 + i] = (uint8_t)(length >> (24 - 8 * i));
    return 1;
}

MIDI_DEF int midi_write(const midi_song *song, uint8_t **bytes, size_t *size, midi_error *error) {
    *bytes = NULL;
    *size = 0;
    size_t room = 2 * (song->n_notes + song->n_pedals) + song->n_tempos + song->n_meters + song->n_texts + 1;
    midi__event *events = room < SIZE_MAX / sizeof *events ? (midi__event *)MIDI_MALLOC(room * sizeof *events) : NULL;
    midi__list list = {events, 0, error};
    if (!events) return midi__no_memory(error);
    if (!midi__list_events(&list, song)) {
        MIDI_FREE(events);
        return 0;
    }
    size_t n = list.n;
    for (size_t i = 0; i < n && song->format == 0; i++) events[i].track = 0;
    qsort(events, n, sizeof *events, midi__before);
    int tracks = song->format == 0 || song->n_tracks < 1 ? 1 : song->n_tracks;
    if (n > 0 && events[n - 1].track >= tracks) tracks = events[n - 1].track + 1;
    midi__buffer buffer = {NULL, 0, 0};
    midi__put(&buffer, "MThd\0\0\0\6", 8);
    midi__put_big_endian(&buffer, (uint32_t)song->format, 2);
    midi__put_big_endian(&buffer, (uint32_t)tracks, 2);
    midi__put_big_endian(&buffer, (uint32_t)song->division, 2);
    int done = 1;
    for (size_t track = 0, first = 0; done && track < (size_t)tracks; track++) {
        size_t next = first;
        while (next < n && events[next].track == (int)track) next++;
        done = midi__put_track(&buffer, song, events + first, next - first, error);
        first = next;
    }
    MIDI_FREE(events);
    if (done) *bytes = buffer.bytes, *size = buffer.n;
    if (!done) MIDI_FREE(buffer.bytes);
    return done;
}

// ---- tokens

MIDI_DEF int64_t midi_steps(int64_t tick, int division) {
    // volatile: the quotient is rounded before the product, whatever liberties the compiler was given.
    volatile double steps_per_tick = 4.0 / (double)division;
    volatile double steps = (double)tick * steps_per_tick;
    if (!(steps < 1 << 25)) return 1 << 25;
    int64_t whole = (int64_t)steps;
    double rest = steps - (double)whole; // exact
    return whole + (rest > 0.5 || (rest == 0.5 && whole % 2 == 1));
}

static int midi__piece_before(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

// Sets lines[step], 0 <= step <= steps, to whether there is a bar line. Each time signature rules until the next one in
// file order, the last until the end; a bar of numerator / 2^exponent is 16 * numerator units of 2^-exponent step.
static int midi__bar_lines(const midi_song *song, int64_t steps, uint8_t *lines, midi_error *error) {
    midi_meter common = {0, 4, 2, 0};
    const midi_meter *meters = song->n_meters ? song->meters : &common;
    size_t n = song->n_meters ? song->n_meters : 1;
    int64_t total = 0;
    memset(lines, 0, (size_t)steps + 1);
    for (size_t i = 0; i < n; i++) {
        int exponent = meters[i].exponent;
        int64_t start = midi_steps(meters[i].tick, song->division) << exponent;
        int64_t limit = (i + 1 < n ? midi_steps(meters[i + 1].tick, song->division) : steps) << exponent;
        int64_t bar = 16 * (int64_t)meters[i].numerator;
        if (start >= limit) continue;
        int64_t count = (limit - start) / bar;
        total += count;
        if (count > MIDI_MAX_STEPS || total > MIDI_MAX_LINES) {
            return midi__fail(error, MIDI_NO_OFFSET, "the time signatures (one is %d/%d) make more than %d bar lines",
                              meters[i].numerator, 1 << exponent,
                              count > MIDI_MAX_STEPS ? MIDI_MAX_STEPS : MIDI_MAX_LINES);
        }
        for (int64_t line = start; line < limit; line += bar) lines[midi_steps(line, 4 << exponent)] = 1;
    }
    return 1;
}

// Merges bar lines and note pieces (time << 12 | pitch << 5 | duration - 1, sorted) into tokens; returns how many:
// three a piece, and two a bar item, each of which goes on by a step at least.
static size_t midi__merge(const uint8_t *lines, int64_t steps, const uint64_t *pieces, size_t n, uint8_t *tokens,
                          size_t *bars) {
    size_t count = 0, i = 0;
    int64_t base = 0, line = 0; // line: the first bar line after base, or -1
    *bars = 0;
    for (;;) {
        if (line >= 0 && line <= base) {
            const void *next = base < steps ? memchr(lines + base + 1, 1, (size_t)(steps - base)) : NULL;
            line = next ? (const uint8_t *)next - lines : -1;
        }
        if (line < 0 && i == n) return count;
        int64_t time = i < n ? (int64_t)(pieces[i] >> 12) : steps + 1;
        int64_t stop = line >= 0 && line <= base + 31 ? line : base + 31;
        // A bar item: on the way to the next line as soon as its turn comes, behind the last line only for a note.
        if (line >= 0 ? stop <= time : time > stop) {
            tokens[count++] = (uint8_t)(MIDI_OFFSET + stop - base);
            tokens[count++] = MIDI_BAR;
            base = stop;
            ++*bars;
        } else {
            tokens[count++] = (uint8_t)(MIDI_OFFSET + time - base);
            tokens[count++] = (uint8_t)(MIDI_PITCH + (pieces[i] >> 5 & 127));
            tokens[count++] = (uint8_t)(MIDI_DURATION + (pieces[i++] & 31));
        }
    }
}

static int64_t midi__later(int64_t a, int64_t b) { return a > b ? a : b; }

static int midi__on_piano(const midi_note *note) {
    return note->key >= MIDI_LOWEST_KEY && note->key <= MIDI_HIGHEST_KEY;
}

MIDI_DEF size_t midi_drop_drums(midi_song *song) {
    size_t all = song->n_notes, kept = 0;
    for (size_t i = 0; i < all; i++) {
        if (song->notes[i].channel != MIDI_DRUMS) song->notes[kept++] = song->notes[i];
    }
    song->n_notes = kept;
    song->dropped_drums += all - kept;
    return all - kept;
}

MIDI_DEF size_t midi_keep_short(midi_song *song) {
    size_t changed = 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        midi_note *note = &song->notes[i];
        int64_t step = midi_steps(note->start, song->division);
        if (!midi__on_piano(note) || midi_steps(note->end, song->division) > step) continue;
        note->end = midi__later(note->start + 1, ((step + 1) * song->division + 2) / 4); // the tick nearest to step + 1
        changed++;
    }
    return changed;
}

MIDI_DEF void midi_count(const midi_song *song, int64_t before, midi_report *report) {
    memset(report, 0, sizeof *report);
    report->assumed_meter = song->n_meters == 0;
    for (size_t i = 0; i < song->n_notes; i++) {
        const midi_note *note = &song->notes[i];
        int64_t start = midi_steps(note->start, song->division);
        int64_t duration = midi_steps(note->end, song->division) - start;
        if (start >= before) continue;
        if (!midi__on_piano(note)) {
            report->out_of_range++;
        } else if (duration == 0) {
            report->vanished++;
        } else {
            report->notes++;
            report->split += duration > 32;
            report->moved += note->start % song->division * 4 % song->division != 0;
            report->drums += note->channel == MIDI_DRUMS;
            if (report->pieces <= MIDI_MAX_PIECES) report->pieces += (size_t)(duration + 31) / 32;
        }
    }
}

MIDI_DEF int midi_encode(const midi_song *song, uint8_t **tokens, size_t *n, midi_report *report, midi_error *error) {
    midi_report own;
    if (!report) report = &own;
    memset(report, 0, sizeof *report);
    *tokens = NULL;
    *n = 0;
    midi__list check = {NULL, 0, error};
    if (!midi__list_events(&check, song)) return 0;

    int64_t last = song->last_mark;
    for (size_t i = 0; i < song->n_tempos; i++) last = midi__later(last, song->tempos[i].tick);
    for (size_t i = 0; i < song->n_meters; i++) last = midi__later(last, song->meters[i].tick);
    for (size_t i = 0; i < song->n_notes; i++) last = midi__later(last, song->notes[i].end);
    int64_t end = midi_steps(last, song->division);
    if (end > MIDI_MAX_STEPS) {
        return midi__fail(error, MIDI_NO_OFFSET, "the piece is longer than %d steps (16th notes)", MIDI_MAX_STEPS);
    }
    midi_count(song, INT64_MAX, report);
    report->steps = end;
    size_t n_pieces = report->pieces;
    if (n_pieces > MIDI_MAX_PIECES) {
        return midi__fail(error, MIDI_NO_OFFSET, "the piece has more than %d notes, counted in pieces of 32 steps",
                          MIDI_MAX_PIECES);
    }

    uint8_t *lines = (uint8_t *)MIDI_MALLOC((size_t)end + 1);
    uint64_t *pieces = (uint64_t *)MIDI_MALLOC((n_pieces + 1) * sizeof *pieces);
    uint8_t *stream = (uint8_t *)MIDI_MALLOC(3 * n_pieces + 2 * (size_t)end + 1);
    int done = lines && pieces && stream ? midi__bar_lines(song, end, lines, error) : midi__no_memory(error);
    if (done) {
        size_t k = 0;
        for (size_t i = 0; i < song->n_notes; i++) {
            const midi_note *note = &song->notes[i];
            if (!midi__on_piano(note)) continue;
            int64_t time = midi_steps(note->start, song->division), stop = midi_steps(note->end, song->division);
            for (; time < stop; time += 32) {
                uint64_t pitch = (uint64_t)(note->key - MIDI_LOWEST_KEY), duration = (uint64_t)(stop - time);
                pieces[k++] = (uint64_t)time << 12 | pitch << 5 | ((duration < 32 ? duration : 32) - 1);
            }
        }
        qsort(pieces, n_pieces, sizeof *pieces, midi__piece_before);
        *n = midi__merge(lines, end, pieces, n_pieces, stream, &report->bars);
        *tokens = (uint8_t *)MIDI_REALLOC(stream, *n + 1); // smaller, so it may fail
        if (!*tokens) *tokens = stream;
        stream = NULL;
    }
    MIDI_FREE(lines);
    MIDI_FREE(pieces);
    MIDI_FREE(stream);
    return done;
}

MIDI_DEF int midi_usable(const midi_song *song, const midi_report *report, midi_error *error) {
    if (report->notes && report->bars <= MIDI_MAX_BARS) return 1;
    if (report->notes) {
        return midi__fail(error, MIDI_NO_OFFSET, "its %llu bar lines alone take more than %d tokens",
                          (unsigned long long)report->bars, 2 * MIDI_MAX_BARS);
    }
    const struct {
        size_t n;
        const char *what;
    } reasons[] = {{report->vanished, "too short for the grid of 16ths"},
                   {report->out_of_range, "outside the piano's keys"},
                   {song->dropped_drums, "dropped with the drums"},
                   {song->unread_tracks, "of its tracks not read, because the header announces fewer"},
                   {song->missing_tracks, "of the tracks that the header announces missing"}};
    char why[320] = "";
    for (size_t i = 0, used = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (!reasons[i].n) continue;
        used += (size_t)snprintf(why + used, sizeof why - used, "%s%llu %s", used ? ", " : ": ",
                                 (unsigned long long)reasons[i].n, reasons[i].what);
    }
    size_t all = song->n_notes + song->dropped_drums;
    return midi__fail(error, MIDI_NO_OFFSET, "%s%s", all ? "none of its notes can be used" : "holds no notes", why);
}

static int midi__note_before(const void *left, const void *right) {
    const midi_note *a = (const midi_note *)left, *b = (const midi_note *)right;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

MIDI_DEF int midi_decode(const uint8_t *tokens, size_t n, midi_song *song, midi_error *error) {
    memset(song, 0, sizeof *song);
    song->division = 4 * MIDI_STEP;
    song->n_tracks = 1;
    int64_t base = 0;
    int offset = -1, pitch = -1; // -1 = not set
    int done = 1;
    for (size_t i = 0; i < n && done; i++) {
        int token = tokens[i];
        if (token >= MIDI_TOKENS) {
            midi__fail(error, MIDI_NO_OFFSET, "token %llu is %d, but tokens are 0 to 152", (unsigned long long)i,
                       token);
            if (error) error->offset = i;
            midi_free(song);
            return 0;
        }
        midi_kind kind = midi_token_kind(token);
        if (kind == MIDI_KIND_PITCH && offset >= 0) pitch = token - MIDI_PITCH;
        if (kind == MIDI_KIND_PITCH) continue;
        if (kind == MIDI_KIND_BAR && offset >= 0) {
            base += offset;
            int64_t tick = base * MIDI_STEP;
            done = midi__append(&song->bars, &song->n_bars, &tick, sizeof tick);
        } else if (kind == MIDI_KIND_DURATION && pitch >= 0) {
            int64_t start = (base + offset) * MIDI_STEP, duration = (token - MIDI_DURATION + 1) * MIDI_STEP;
            done = midi_add_note(song, start, start + duration, MIDI_LOWEST_KEY + pitch, 80, 0, 0);
        }
        offset = kind == MIDI_KIND_OFFSET ? token - MIDI_OFFSET : -1;
        pitch = -1;
    }
    if (!done) {
        midi_free(song);
        return midi__no_memory(error);
    }
    song->dropped_tokens = n - 3 * song->n_notes - 2 * song->n_bars;
    if (song->n_notes) qsort(song->notes, song->n_notes, sizeof *song->notes, midi__note_before);
    return 1;
}

MIDI_DEF midi_kind midi_token_kind(int token) {
    return (midi_kind)((token >= MIDI_OFFSET) + (token >= MIDI_PITCH) + (token >= MIDI_DURATION));
}

MIDI_DEF int midi_may_follow(int previous, int next) {
    midi_kind kind = midi_token_kind(next), before = previous < 0 ? MIDI_KIND_BAR : midi_token_kind(previous);
    if (before == MIDI_KIND_OFFSET) return kind == MIDI_KIND_BAR || kind == MIDI_KIND_PITCH;
    return kind == (before == MIDI_KIND_PITCH ? MIDI_KIND_DURATION : MIDI_KIND_OFFSET);
}

#endif // MIDI_IMPLEMENTATION
