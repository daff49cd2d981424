/* Packed pages that hold the same: each offset must lead to the bytes of its page.
 *
 * Input: pages - 1 (1 byte), then per page its size - 1 (1 byte); the rest are the pages. */
#include "input.h"
#include "share.h"

enum { MAX_PAGES = 64, NEXT = 1000 };

static uint64_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = 14695981039346656037u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    size_t pages = take_number(&in, 1) % MAX_PAGES + 1, total = 0, at = 0;
    struct vmd_shared *table = calloc(VMD_SHARE_ENTRIES, sizeof *table);
    uint32_t sizes[MAX_PAGES];
    uint64_t hashes[MAX_PAGES], offsets[MAX_PAGES];

    PROMISE(table);
    for (size_t i = 0; i < pages; i++)
        total += sizes[i] = (uint32_t)take_number(&in, 1) + 1;
    struct guarded data = guarded_alloc(total), before = guarded_alloc(total);
    take(&in, data.bytes, total);
    memcpy(before.bytes, data.bytes, total);
    for (size_t i = 0; i < pages; at += sizes[i], i++)
        hashes[i] = hash_of(before.bytes + at, sizes[i]);
    size_t left = vmd_share(table, data.bytes, sizes, hashes, pages, NEXT, offsets);
    PROMISE(left <= total);
    at = 0;
    for (size_t i = 0; i < pages; at += sizes[i], i++) {
        PROMISE(offsets[i] >= NEXT && sizes[i] <= left && offsets[i] - NEXT <= left - sizes[i]);
        PROMISE(memcmp(data.bytes + (offsets[i] - NEXT), before.bytes + at, sizes[i]) == 0);
    }
    guarded_free(&data);
    guarded_free(&before);
    free(table);
    return 0;
}
