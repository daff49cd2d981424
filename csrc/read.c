/* Pieces of memory that lie in files. */
#define _GNU_SOURCE
#include "read.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int vmd_read_at(int fd, uint64_t offset, uint8_t *out, uint64_t length, int *error)
{
    while (length) {
        ssize_t n = pread(fd, out, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            *error = n < 0 ? errno : 0;
            return VMD_ERRNO;
        }
        out += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return VMD_OK;
}

size_t vmd_first_behind(const void *ends, size_t stride, size_t count, uint64_t offset)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint64_t end;
        memcpy(&end, (const uint8_t *)ends + middle * stride, sizeof(end));
        if (end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
