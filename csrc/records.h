/* A stream of records that belong at offsets of another file: two signed 64-bit big-endian numbers, offset and
 * size, then that many bytes; both are -1 at the end. */
#ifndef VMD_RECORDS_H
#define VMD_RECORDS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum { VMD_RECORD_HEADER = 16, VMD_RECORD_WINDOW = 4096 };

/* Where the stream is: in a file, or in memory if `bytes` is not NULL. It has `size` bytes. */
struct vmd_stream {
    int fd;
    const uint8_t *bytes;
    uint64_t size;
};

/* Walks the records from *position on until there are `max`, and leaves in *position where the next one begins.
 * VMD_AGAIN if there are more, VMD_OK at the end mark. VMD_OUTSIDE where a record at *position is negative,
 * empty, or not inside the stream; VMD_ERRNO with *error = 0 where the file has become shorter. */
int vmd_records_scan(const struct vmd_stream *stream, uint64_t *position, uint64_t *begins, uint64_t *ends,
                     uint64_t *places, size_t max, size_t *count, int *error);

/* Fills out[0, length) with what the records hold from `offset` on, and zeros where they hold nothing. Records
 * ascend and do not overlap; places[i] is where the stream has the first byte of record i. Places are checked
 * against the stream. */
int vmd_records_read(const struct vmd_stream *stream, const uint64_t *begins, const uint64_t *ends,
                     const uint64_t *places, size_t count, uint64_t offset, uint8_t *out, uint64_t length,
                     int *error);

#endif
