/* What is asked of a page without unpacking it: zero, hash, incompressible; of any bytes at any alignment.
 *
 * Input: how far before the end of a page the bytes end (1 byte), the key's seed (8); the rest are the bytes. */
#include "hash.h"
#include "incompressible.h"
#include "input.h"
#include "zero.h"

static int is_zero(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i])
            return 0;
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    size_t shift = take_number(&in, 1);
    uint64_t seed = take_number(&in, 8), key[VMD_HASH_KEY_WORDS], hashes[2];
    struct guarded exact = guarded_alloc(in.size), shifted = guarded_alloc(in.size + shift);

    take(&in, exact.bytes, exact.size);
    if (exact.size)
        memcpy(shifted.bytes, exact.bytes, exact.size);
    for (int id = 0; id < VMD_ZERO_COUNT; id++) {
        vmd_zero_fn zero = vmd_zero_kernel(id);
        if (!zero)
            continue;
        PROMISE(zero(exact.bytes, exact.size) == is_zero(exact.bytes, exact.size));
        PROMISE(zero(shifted.bytes, exact.size) == is_zero(exact.bytes, exact.size));
    }
    for (size_t i = 0; i < VMD_HASH_KEY_WORDS; i++)
        key[i] = seed = seed * 6364136223846793005u + 1442695040888963407u;
    size_t hashed = exact.size / VMD_HASH_GRAIN * VMD_HASH_GRAIN;
    vmd_hash_pages(exact.bytes, hashed, 1, key, &hashes[0]);
    vmd_hash_pages(shifted.bytes, hashed, 1, key, &hashes[1]);
    PROMISE(hashes[0] == hashes[1]);
    PROMISE(vmd_is_incompressible(exact.bytes, exact.size) == vmd_is_incompressible(shifted.bytes, exact.size));
    for (size_t page = 4096; page <= exact.size && page <= 65536; page += 4096)
        (void)vmd_is_incompressible(exact.bytes + exact.size - page, page);
    guarded_free(&exact);
    guarded_free(&shifted);
    return 0;
}
