// Whole numbers that are rounded up: how many pieces of a size cover n things, and how many things those pieces hold.
//
// C11 and C++17.
#pragma once

#include <stdint.h>

static inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; } // n >= 0, by >= 1

static inline int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }
