/* Pieces of a buffer, one behind the other. */
#include "gather.h"
#include "status.h"

#include <string.h>

int vmd_gather(const uint8_t *data, size_t data_len, const uint64_t *offsets, const uint32_t *sizes, size_t count,
               uint8_t *out, size_t out_len, size_t *used, size_t *bad)
{
    size_t at = 0;

    for (size_t i = 0; i < count; i++) {
        *bad = i;
        if (sizes[i] == 0)
            continue;
        if (offsets[i] > data_len || sizes[i] > data_len - offsets[i])
            return VMD_OUTSIDE;
        if (sizes[i] > out_len - at)
            return VMD_NO_ROOM;
        memcpy(out + at, data + offsets[i], sizes[i]);
        at += sizes[i];
    }
    *used = at;
    return VMD_OK;
}
