/* Pieces of memory that lie in files: which piece, and its bytes. */
#ifndef VMD_READ_H
#define VMD_READ_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Fills out[0, length) with the file's bytes from `offset` on. VMD_ERRNO with the errno in *error, or 0 there
 * where the file ended. */
int vmd_read_at(int fd, uint64_t offset, uint8_t *out, uint64_t length, int *error);

/* Gives the index of the first of `count` ascending ends that is behind `offset`, or `count`. They are 64 bits
 * wide, not negative, and `stride` bytes apart. */
size_t vmd_first_behind(const void *ends, size_t stride, size_t count, uint64_t offset);

#endif
