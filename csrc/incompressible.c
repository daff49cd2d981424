/* Pages that no deflate makes smaller, told without compressing them.
 *
 * Deflate has two means: shorter codes for bytes that are more frequent than others, and references to bytes
 * that came before. So a page is incompressible if its bytes are about equally frequent and hardly anything
 * in it comes twice. Three looks, the one that settles most first:
 *
 * 1. The bytes at 8 places, 256 in all, are clearly not equally frequent: 98,618 of 118,458 pages, which are
 *    those of a Linux guest that are not zero; it held 75 MiB of gzip's output and of random bytes.
 * 2. Four bytes come twice: 1,051 pages.
 * 3. All bytes together are not equally frequent: 785 pages.
 *
 * The other 18,004 are incompressible: not one of them becomes smaller with ISA-L at levels 0 to 2, with
 * libdeflate and zlib at level 1, or with zstd at 1, 3 and 9. ISA-L at level 1 fails at 1,679 more.
 *
 * On a Xeon (Sapphire Rapids, virtual) the first look takes 0.2 us, all three take 3.5 us. Compressing such
 * a page takes 24 us with ISA-L at level 1 and 8.5 us at level 0, 23 us with libdeflate, 60 us with zlib; but
 * 4.6 us with zstd and 1.6 us with LZO and Snappy, which notice by themselves. All pages of that guest take
 * 16.5 % longer with ISA-L at level 1 without the looks (4.8 % at level 0, libdeflate 10, zlib 18); those that
 * can be compressed take 0.8 % longer with them.
 *
 * Frequencies are judged by the sum of their squares. For n bytes drawn from 256 evenly it is n + n(n-1)/256
 * on average, with a standard deviation of n * sqrt(2/256). */
#include "incompressible.h"

#include <string.h>

enum {
    PIECE = 4096,
    MAX_SIZE = 1 << 16,
    LOOKS = 8,
    LOOK = 32,
    /* 511 + 7 * 22.6, and 69,616 + 6 * 362. Bytes that lie below the second could save 0.3 % of a page by
     * shorter codes; the header of the codes takes 2 %. */
    SKEWED_LOOKS = 670,
    SKEWED_PIECE = 71800,
    SLOT_BITS = 12,
};

/* A sum of squares grows by 2c + 1 when a count c grows by 1. */
static int looks_skewed(const uint8_t *page, size_t size)
{
    uint8_t counts[256] = {0};
    uint32_t sum = 0;

    for (size_t i = 0; i < LOOKS; i++) {
        const uint8_t *look = page + size / LOOKS * i;
        for (size_t j = 0; j < LOOK; j++)
            sum += 2U * counts[look[j]]++ + 1U;
        if (sum > SKEWED_LOOKS)
            return 1;
    }
    return 0;
}

static int is_skewed(const uint8_t *piece)
{
    uint16_t counts[256] = {0};
    uint32_t sum = 0;

    for (size_t i = 0; i < PIECE; i++)
        counts[piece[i]]++;
    for (size_t byte = 0; byte < 256; byte++)
        sum += (uint32_t)counts[byte] * counts[byte];
    return sum > SKEWED_PIECE;
}

static uint32_t four_bytes(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static size_t slot_of(uint32_t four)
{
    return four * 0x9E3779B1U >> (32 - SLOT_BITS);
}

/* Whether four bytes come twice, as far as some positions show: every `step`th is remembered, another one in
 * turn in each period of step * step, and the first `step` of each period are looked up besides. Among their
 * distances is every one, so a longer run that comes twice does not escape, and of short ones, which matter
 * only if there are many, one is enough. Were it not in turn, words at odd addresses would be overlooked.
 * Inlined with a constant step, so that the loops are unrolled, it takes 1.6 instead of 6.5 us. */
static inline int repeats(const uint8_t *page, size_t size, const size_t step)
{
    const size_t period = step * step;
    uint16_t positions[1 << SLOT_BITS] = {0}; /* position 0 counts as remembered: what is found is compared */

    for (size_t at = period; at + step * period + 3 <= size;) {
        for (size_t turn = 0; turn < step; turn++, at += period) {
            for (size_t i = 0; i < step; i++) {
                uint32_t four = four_bytes(page + at + i);
                if (four_bytes(page + positions[slot_of(four)]) == four)
                    return 1;
            }
            for (size_t i = turn; i < period; i += step) {
                uint32_t four = four_bytes(page + at + i);
                size_t slot = slot_of(four);
                if (i >= step && four_bytes(page + positions[slot]) == four)
                    return 1;
                positions[slot] = (uint16_t)(at + i);
            }
        }
    }
    return 0;
}

static int has_repeat(const uint8_t *page, size_t size)
{
    if (size < 4 * PIECE)
        return repeats(page, size, 2);
    return size < 16 * PIECE ? repeats(page, size, 4) : repeats(page, size, 8);
}

int vmd_is_incompressible(const uint8_t *page, size_t size)
{
    if (size == 0 || size % PIECE != 0 || size > MAX_SIZE)
        return 0;
    if (looks_skewed(page, size) || has_repeat(page, size))
        return 0;
    for (size_t at = 0; at < size; at += PIECE)
        if (is_skewed(page + at))
            return 0;
    return 1;
}
