/* A chunk of pages out of the bytes of a dump. */
#include "unpack.h"

#include <string.h>

int vmd_unpacker_open(struct vmd_unpacker *unpacker, const struct vmd_engine *engine, size_t page_size)
{
    unpacker->engine = engine;
    unpacker->page_size = page_size;
    vmd_claim_init(&unpacker->claim);
    unpacker->decoder = engine->decoder_create();
    return unpacker->decoder ? VMD_OK : VMD_NO_MEMORY;
}

void vmd_unpacker_close(struct vmd_unpacker *unpacker)
{
    if (unpacker->decoder)
        unpacker->engine->decoder_destroy(unpacker->decoder);
    unpacker->decoder = NULL;
}

int vmd_unpack(struct vmd_unpacker *unpacker, const uint8_t *data, size_t data_len, const uint64_t *offsets,
               const uint32_t *sizes, const uint8_t *compressed, size_t page_count, uint8_t *out,
               size_t *bad_page)
{
    const size_t page_size = unpacker->page_size;

    for (size_t i = 0; i < page_count; i++, out += page_size) {
        const uint8_t *src;
        int status = VMD_OK;

        *bad_page = i;
        if (sizes[i] == 0) {
            memset(out, 0, page_size);
            continue;
        }
        if (offsets[i] > data_len || sizes[i] > data_len - offsets[i])
            return VMD_OUTSIDE;
        src = data + offsets[i];
        if (compressed[i])
            status = unpacker->engine->decompress(unpacker->decoder, src, sizes[i], out, page_size);
        else if (sizes[i] == page_size)
            memcpy(out, src, page_size);
        else
            status = VMD_BAD_SIZE;
        if (status != VMD_OK)
            return status;
    }
    return VMD_OK;
}
