/* A stream of records that belong at offsets of another file. */
#define _GNU_SOURCE
#include "records.h"

#include <endian.h>
#include <string.h>

#include "read.h"

/* The bytes [begin, begin + length) of the stream, which must be inside it. */
static int read_at(const struct vmd_stream *stream, uint64_t begin, uint8_t *out, uint64_t length, int *error)
{
    if (stream->bytes) {
        memcpy(out, stream->bytes + begin, length);
        return VMD_OK;
    }
    return vmd_read_at(stream->fd, begin, out, length, error);
}

int vmd_records_scan(const struct vmd_stream *stream, uint64_t *position, uint64_t *begins, uint64_t *ends,
                     uint64_t *places, size_t max, size_t *count, int *error)
{
    /* Short records are many: 4 KiB hold 240 of one byte. Of long ones a window holds one header, and reading
     * 4 KiB of a page that is cached costs no more than 16 bytes do. */
    uint8_t window[VMD_RECORD_WINDOW];
    uint64_t window_begin = 0, window_end = 0, at = *position, offset, size;
    size_t n = 0;
    int status = VMD_AGAIN;

    for (; n < max; n++) {
        if (at > stream->size || stream->size - at < VMD_RECORD_HEADER) {
            status = VMD_OUTSIDE;
            break;
        }
        if (at < window_begin || at + VMD_RECORD_HEADER > window_end) {
            uint64_t left = stream->size - at;
            window_begin = at;
            window_end = at + (left < sizeof(window) ? left : sizeof(window));
            status = read_at(stream, window_begin, window, window_end - window_begin, error);
            if (status != VMD_OK)
                break;
            status = VMD_AGAIN;
        }
        memcpy(&offset, window + (at - window_begin), 8);
        memcpy(&size, window + (at - window_begin) + 8, 8);
        offset = be64toh(offset);
        size = be64toh(size);
        if (offset == UINT64_MAX && size == UINT64_MAX) {
            status = VMD_OK;
            break;
        }
        if (offset > INT64_MAX || size == 0 || size > INT64_MAX - offset ||
            size > stream->size - at - VMD_RECORD_HEADER) {
            status = VMD_OUTSIDE;
            break;
        }
        begins[n] = offset;
        ends[n] = offset + size;
        places[n] = at + VMD_RECORD_HEADER;
        at += VMD_RECORD_HEADER + size;
    }
    *position = at;
    *count = n;
    return status;
}

int vmd_records_read(const struct vmd_stream *stream, const uint64_t *begins, const uint64_t *ends,
                     const uint64_t *places, size_t count, uint64_t offset, uint8_t *out, uint64_t length,
                     int *error)
{
    uint64_t done = 0;

    for (size_t i = vmd_first_behind(ends, sizeof(*ends), count, offset); i < count && done < length; i++) {
        uint64_t low = begins[i] > offset ? begins[i] - offset : 0;
        uint64_t high = ends[i] - offset;

        if (low >= length)
            break;
        if (low < done || high <= low)
            return VMD_OUTSIDE;
        if (high > length)
            high = length;
        uint64_t skipped = offset + low - begins[i];
        if (places[i] > stream->size || skipped > stream->size - places[i] ||
            high - low > stream->size - places[i] - skipped)
            return VMD_OUTSIDE;
        memset(out + done, 0, low - done);
        int status = read_at(stream, places[i] + skipped, out + low, high - low, error);
        if (status != VMD_OK)
            return status;
        done = high;
    }
    memset(out + done, 0, length - done);
    return VMD_OK;
}
