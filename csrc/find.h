/* Where a pattern is in a buffer. */
#ifndef VMD_FIND_H
#define VMD_FIND_H

#include <stddef.h>
#include <stdint.h>

/* Writes the offsets of `pattern` in `data` from *from on, ascending, those that overlap included; at most
 * `room` of them, and their number to *count. *from becomes where to go on: `data_len` when that was all.
 *
 * `period` is the smallest distance at which the pattern can overlap itself, `pattern_len` if it cannot: with it
 * the time is linear, however often the pattern is there. Neither is trusted more than that. */
void vmd_find(const uint8_t *data, size_t data_len, const uint8_t *pattern, size_t pattern_len, size_t period,
              uint64_t *out, size_t room, size_t *from, size_t *count);

#endif
