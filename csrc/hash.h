/* A keyed hash of 64 bits per page: has a page changed? Whoever does not know the key makes two different
 * pages of the same hash with a chance of 2^-63; hash.c has the proof. */
#ifndef VMD_HASH_H
#define VMD_HASH_H

#include <stddef.h>
#include <stdint.h>

/* A page size is a multiple of this. */
#define VMD_HASH_GRAIN 64

/* Words of a key: uniformly random, secret, and new for each dump. */
#define VMD_HASH_KEY_WORDS 138

/* Hash `count` pages of `page_size` bytes, a multiple of VMD_HASH_GRAIN, into `out`. The hash of a page that
 * changes meanwhile is any number. Only hashes of the same page size, key and byte order compare. */
void vmd_hash_pages(const uint8_t *data, size_t page_size, size_t count, const uint64_t *key, uint64_t *out);

#endif
