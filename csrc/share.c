/* Packed pages that hold the same, of which one is kept.
 *
 * A page has one possible entry, which its packed bytes choose and not its hash: so what is found does not
 * depend on the random key of the hash, and the same guest gives the same file. Each page is compared with
 * that one entry: two different pages are taken for one with a chance of 2^-63, even if somebody who does
 * not know the key wants them to be. */
#include "share.h"

#include <string.h>

enum { SAMPLES = 16 };

static size_t entry_of(const uint8_t *packed, uint32_t size)
{
    uint64_t mixed = size;

    for (uint32_t i = 0; i < SAMPLES; i++)
        mixed = (mixed ^ packed[(uint64_t)size * i / SAMPLES]) * 0x9E3779B97F4A7C15u;
    return (size_t)(mixed >> (64 - VMD_SHARE_BITS));
}

size_t vmd_share(struct vmd_shared *table, uint8_t *data, const uint32_t *sizes, const uint64_t *hashes,
                 size_t page_count, uint64_t next, uint64_t *offsets)
{
    const uint8_t *page = data;
    size_t used = 0;

    for (size_t i = 0; i < page_count; page += sizes[i], i++) {
        struct vmd_shared *entry = &table[entry_of(page, sizes[i])];
        if (entry->hash != hashes[i] || entry->size != sizes[i]) {
            *entry = (struct vmd_shared){.hash = hashes[i], .offset = next + used, .size = sizes[i]};
            if (data + used != page)
                memmove(data + used, page, sizes[i]);
            used += sizes[i];
        }
        offsets[i] = entry->offset;
    }
    return used;
}
