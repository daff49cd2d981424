/* Where a pattern is in a buffer. */
#define _GNU_SOURCE /* memmem */
#include "find.h"

#include <string.h>

void vmd_find(const uint8_t *data, size_t data_len, const uint8_t *pattern, size_t pattern_len, size_t period,
              uint64_t *out, size_t room, size_t *from, size_t *count)
{
    size_t found = 0, at = *from;

    while (found < room && at < data_len && pattern_len <= data_len - at) {
        /* memmem() hands a single byte to memchr(); both of glibc take linear time. */
        const uint8_t *next = memmem(data + at, data_len - at, pattern, pattern_len);

        if (next == NULL)
            break;
        at = (size_t)(next - data);
        out[found++] = at;
        /* The next one is `period` further, or behind that. To look there first costs the bytes by which it is
         * longer; memmem() would prepare for the pattern anew, at each of a million places. */
        while (found < room && period < pattern_len && period <= data_len - at - pattern_len &&
               memcmp(data + at + pattern_len, pattern + pattern_len - period, period) == 0) {
            at += period;
            out[found++] = at;
        }
        at++;
    }
    *from = found == room ? at : data_len;
    *count = found;
}
