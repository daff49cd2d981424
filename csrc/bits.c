/* LSB-first bitmaps, 64 bits at a time. */
#define _DEFAULT_SOURCE
#include "bits.h"

#include <endian.h>
#include <string.h>

/* The bits of a byte from bit `first` up; the bits below bit `last`. */
static inline uint8_t mask_from(uint64_t first)
{
    return (uint8_t)(0xffu << (first % 8));
}

static inline uint8_t mask_below(uint64_t last)
{
    return (uint8_t)~(0xffu << (last % 8));
}

void vmd_bits_set_range(uint8_t *bits, uint64_t begin, uint64_t end)
{
    uint64_t first = begin / 8, last = end / 8;

    if (begin >= end)
        return;
    if (first == last) {
        bits[first] |= mask_from(begin) & mask_below(end);
        return;
    }
    bits[first] |= mask_from(begin);
    memset(bits + first + 1, 0xff, last - first - 1);
    if (end % 8)
        bits[last] |= mask_below(end);
}

/* The classic tree of sums: gcc -O3 vectorises it, which the table behind __builtin_popcountll is not. */
static inline uint64_t popcount64(uint64_t w)
{
    w -= (w >> 1) & 0x5555555555555555u;
    w = (w & 0x3333333333333333u) + ((w >> 2) & 0x3333333333333333u);
    w = (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (w * 0x0101010101010101u) >> 56;
}

uint64_t vmd_bits_count(const uint8_t *bits, uint64_t begin, uint64_t end)
{
    uint64_t first = begin / 8, last = end / 8, sum = 0, word;

    if (begin >= end)
        return 0;
    if (first == last)
        return popcount64(bits[first] & mask_from(begin) & mask_below(end));
    sum = popcount64(bits[first++] & mask_from(begin));
    for (; first + 8 <= last; first += 8) {
        memcpy(&word, bits + first, 8);
        sum += popcount64(word);
    }
    for (; first < last; first++)
        sum += popcount64(bits[first]);
    if (end % 8)
        sum += popcount64(bits[last] & mask_below(end));
    return sum;
}

/* The first bit of [begin, end) that is set after `flip` was applied to the bitmap, or `end`. */
static uint64_t next_bit(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t flip)
{
    uint64_t at = begin, word;

    while (at < end) {
        uint64_t byte = at / 8;
        if (at % 8 == 0 && at + 64 <= end) {
            memcpy(&word, bits + byte, 8);
            word = le64toh(word) ^ flip;
            if (word)
                return at + (unsigned)__builtin_ctzll(word);
            at += 64;
        } else {
            word = (bits[byte] ^ (uint8_t)flip) & mask_from(at);
            if (word) {
                at = byte * 8 + (unsigned)__builtin_ctzll(word);
                return at < end ? at : end;
            }
            at = (byte + 1) * 8;
        }
    }
    return end;
}

int vmd_bits_next_run(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t *run_begin,
                      uint64_t *run_end)
{
    *run_begin = next_bit(bits, begin, end, 0);
    if (*run_begin >= end)
        return 0;
    *run_end = next_bit(bits, *run_begin, end, ~(uint64_t)0);
    return 1;
}

size_t vmd_bits_runs(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t *runs, size_t max)
{
    size_t n = 0;
    uint64_t run_begin, run_end;

    for (; n < max && vmd_bits_next_run(bits, begin, end, &run_begin, &run_end); n++) {
        if (runs) {
            runs[2 * n] = run_begin;
            runs[2 * n + 1] = run_end;
        }
        begin = run_end;
    }
    return n;
}
