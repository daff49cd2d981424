/* Pieces of a buffer, one behind the other. */
#ifndef VMD_GATHER_H
#define VMD_GATHER_H

#include <stddef.h>
#include <stdint.h>

/* Piece i is the sizes[i] bytes at data + offsets[i]; nothing of the arrays is trusted. Writes *used bytes of
 * `out`, which does not overlap `data`. VMD_OUTSIDE or VMD_NO_ROOM, with the piece in *bad. */
int vmd_gather(const uint8_t *data, size_t data_len, const uint64_t *offsets, const uint32_t *sizes, size_t count,
               uint8_t *out, size_t out_len, size_t *used, size_t *bad);

#endif
