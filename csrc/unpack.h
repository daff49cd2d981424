/* A chunk of pages out of the bytes of a dump. */
#ifndef VMD_UNPACK_H
#define VMD_UNPACK_H

#include "claim.h"
#include "codecs/engine.h"

struct vmd_unpacker {
    const struct vmd_engine *engine;
    size_t page_size;
    void *decoder;
    struct vmd_claim claim;
};

int vmd_unpacker_open(struct vmd_unpacker *unpacker, const struct vmd_engine *engine, size_t page_size);
void vmd_unpacker_close(struct vmd_unpacker *unpacker);

/* Page i is the sizes[i] bytes at data + offsets[i]; nothing of the arrays or the data is trusted.
 * VMD_OUTSIDE, VMD_BAD_SIZE or VMD_BROKEN, with the page in *bad_page. */
int vmd_unpack(struct vmd_unpacker *unpacker, const uint8_t *data, size_t data_len, const uint64_t *offsets,
               const uint32_t *sizes, const uint8_t *compressed, size_t page_count, uint8_t *out,
               size_t *bad_page);

#endif
