// A memory of the song so far, which sees to it that music comes back to what it has said. A network forgets what has
// left its context, and an LSTM recalls nothing exactly.
//
// The memory looks for the earlier place in the song before which the most tokens are the same as before the song's
// end, of equal ones the latest. If these are n tokens, MEMORY_SAME at most, the song goes on as it did there with the
// chance c, as each token that is the same takes a fifth of the doubt:
//
//     c = 1 - 0.8^n          p(token) = (1 - c) p_network(token), and c more for the token that came at that place
//
// Match models of data compression do this (Mahoney, PAQ6, 2002; Cleary and Witten's PPM, 1984, mixes matches of all
// lengths). Here the song also decides how many tokens must be the same. A token is repetition, by the memory or not,
// if it came as it did at a place with MEMORY_SAME tokens that are the same. The song owes repetition: a part S of its
// tokens, less those that are. While it owes none, the memory is silent; the more it owes, the fewer tokens need be the
// same. So songs come near the same part of repetition with models that repeat much or nothing, and no loop goes on for
// the memory's sake.
//
// The constants are measured: dev/doc/BENCHMARKS.md. Promises. A match is exact, and needs no memory but the song's
// own. Leaves out: other songs, and repetition in another key. C11, gcc and clang.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    MEMORY_LEAST = 5,    // tokens that must be the same, at least
    MEMORY_SAME = 16,    // and where nothing is owed: five notes and a bit
    MEMORY_OWED = 8,     // tokens of repetition that are owed for each one less
    MEMORY_NEAR = 32,    // no nearer place counts, as a song would go round in circles
    MEMORY_REACH = 16384 // nor a farther one, which bounds the work of a token
};

typedef struct {     // all 0, but for the strength, where a song begins
    double strength; // S, the part of the song that is to be repetition, 0 to 1; 0: no memory
    double owed;     // tokens of repetition
    int same;        // that many tokens are the same before the best place; 0: there is none
    int again;       // the token that came there
} Memory;

// Finds the best place for tokens[n]. Returns the chance c, below 1, that this is memory->again.
static inline double memory_chance(Memory *memory, const uint8_t *tokens, int64_t n) {
    const int64_t first = n > MEMORY_REACH + MEMORY_LEAST ? n - MEMORY_REACH : MEMORY_LEAST;
    uint32_t end, before; // four tokens, which differ at most places
    memory->same = 0;
    if (memory->strength == 0 || n < MEMORY_NEAR) return 0;
    memcpy(&end, tokens + n - sizeof end, sizeof end);
    for (int64_t place = n - MEMORY_NEAR; place >= first && memory->same < MEMORY_SAME; place--) {
        memcpy(&before, tokens + place - sizeof before, sizeof before);
        if (before != end) continue;
        int same = sizeof end;
        while (same < MEMORY_SAME && same < place && tokens[place - 1 - same] == tokens[n - 1 - same]) same++;
        if (same < MEMORY_LEAST || same <= memory->same) continue;
        memory->same = same;
        memory->again = tokens[place];
    }
    const double needed = MEMORY_SAME - memory->owed / MEMORY_OWED; // no place has more than MEMORY_SAME
    return memory->same >= needed ? 1 - pow(0.8, memory->same) : 0;
}

// The song goes on with a token.
static inline void memory_see(Memory *memory, int token) {
    memory->owed += memory->strength - (memory->same == MEMORY_SAME && memory->again == token);
}
