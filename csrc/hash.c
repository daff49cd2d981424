/* The page hash, in three stages as VHASH has them (Dai, Krovetz, "VHASH Security", IACR ePrint 2007/338):
 *
 * 1. NH of each block of 1 KiB (Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC: Fast and Secure Message
 *    Authentication", CRYPTO '99), with words of 64 bits: the sum of (m[2i] + k[2i]) * (m[2i+1] + k[2i+1]),
 *    factors modulo 2^64, products and sum modulo 2^128. VHASH drops two bits of it, and with them two bits
 *    of certainty; here all 128 stay, as two words, hi and lo.
 * 2. A polynomial over the blocks modulo p = 2^127 - 1: acc = acc * x + hi * y + lo, with x, y < 2^126.
 * 3. From the 127 bits to 64, the multilinear hash of Lemire and Kaser ("Strongly universal string hashing is
 *    fast", 2014): the upper half of a + b * (lower word) + c * (upper word) modulo 2^128.
 *
 * Two different pages, n blocks each, chosen without knowing the key, have the same hash with a chance below
 *
 *      2^-64        that stage 1 gives equal sums for a block that differs,
 *    + 2^-126       that y makes different (hi, lo) equal,
 *    + n * 2^-126   that x is a root of the difference of two polynomials,
 *    + 2^-64        that stage 3 makes different numbers equal:
 *
 * 2^-63, and 2^-43 that one of a million changed pages is missed. Why 2^-64 in stage 1, whatever factors are
 * zero: say m[2i] differs. The sum is linear in the products, so a zero can hide its partner only, never
 * another pair. Whatever all other key words are, at most one of the 2^64 values of k[2i+1] makes the sums
 * equal (and of k[2i], if m[2i+1] differs). So the bound holds for the page, not for each word: one pair that
 * differs is enough. All pages and blocks may share the key: the bound is for each two pages by themselves.
 *
 * Measured on a Xeon (Sapphire Rapids, virtual), gcc 12 -O3, one core, pages of 4 KiB, in GB/s, the second of
 * two numbers with a prefetch:
 *
 *                                                       256 KiB in cache    1 GiB in memory
 *   this                                                     20, 22             5.5, 8.5
 *   this, blocks of 4 KiB and a key as long                  20, 25             5.2, 8.6
 *   8 chains of multiply-folds                               31, 28             6.3, 7.7
 *   NH of 32-bit words under two keys, AVX2                  31, 23             4.7, 7.6
 *   the same without AVX2                                     6                 3.9
 *   the sum of all words, which is the least to do           33, 32             8.0, 8.8
 *
 * Memory decides, so no second variant for AVX2. A chain, acc = fold((m ^ k) * (m' ^ acc)), has no such
 * proof: a factor of zero wipes out all words of its lane before it. */
#include "hash.h"

#include <string.h>

enum {
    BLOCK = 1024,
    BLOCK_WORDS = BLOCK / 8,
    /* So many bytes ahead: 1 KiB is too near, 4 and 8 KiB win nothing more. */
    PREFETCH = 2048,
    /* The key's words: BLOCK_WORDS of stage 1, then numbers of two words each, the lower one first. */
    KEY_X = BLOCK_WORDS,
    KEY_Y = KEY_X + 2,
    KEY_A = KEY_Y + 2,
    KEY_B = KEY_A + 2,
    KEY_C = KEY_B + 2,
    KEY_END = KEY_C + 2,
};

_Static_assert(KEY_END == VMD_HASH_KEY_WORDS, "the key has as many words as the header says");
_Static_assert(BLOCK % VMD_HASH_GRAIN == 0, "a page ends with a whole grain");

#define LOW_63 (~(uint64_t)0 >> 1)
#define LOW_62 (~(uint64_t)0 >> 2)

/* Numbers modulo 2^128. */
#ifdef __SIZEOF_INT128__
__extension__ typedef unsigned __int128 wide;

static inline wide wide_of(uint64_t hi, uint64_t lo)
{
    return (wide)hi << 64 | lo;
}

static inline uint64_t wide_lo(wide a)
{
    return (uint64_t)a;
}

static inline uint64_t wide_hi(wide a)
{
    return (uint64_t)(a >> 64);
}

static inline wide wide_add(wide a, wide b)
{
    return a + b;
}

static inline wide wide_mul(uint64_t a, uint64_t b)
{
    return (wide)a * b;
}
#else /* 32-bit targets */
typedef struct {
    uint64_t hi, lo;
} wide;

static inline wide wide_of(uint64_t hi, uint64_t lo)
{
    return (wide){hi, lo};
}

static inline uint64_t wide_lo(wide a)
{
    return a.lo;
}

static inline uint64_t wide_hi(wide a)
{
    return a.hi;
}

static inline wide wide_add(wide a, wide b)
{
    uint64_t lo = a.lo + b.lo;

    return wide_of(a.hi + b.hi + (lo < a.lo), lo);
}

static inline wide wide_mul(uint64_t a, uint64_t b)
{
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t low = a0 * b0;
    /* (2^32 - 1)^2 + 2 * (2^32 - 1) is 2^64 - 1: neither sum overflows. */
    uint64_t middle = a1 * b0 + (low >> 32);
    uint64_t other = a0 * b1 + (uint32_t)middle;

    return wide_of(a1 * b1 + (middle >> 32) + (other >> 32), other << 32 | (uint32_t)low);
}
#endif

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline wide number(const uint64_t *key, int at)
{
    return wide_of(key[at + 1], key[at]);
}

/* Below 2^127 and the same modulo p; `a` < 2^128 - 1. */
static inline wide fold(wide a)
{
    return wide_add(wide_of(wide_hi(a) & LOW_63, wide_lo(a)), wide_of(0, wide_hi(a) >> 63));
}

/* a * b modulo p for a < 2^127 and b < 2^126; the result is below 2^127 + 2^126 + 2^66. */
static inline wide multiply(wide a, wide b)
{
    wide low = wide_mul(wide_lo(a), wide_lo(b));
    wide middle = wide_add(wide_mul(wide_hi(a), wide_lo(b)), wide_mul(wide_lo(a), wide_hi(b)));
    wide high = wide_mul(wide_hi(a), wide_hi(b));
    /* The product is 2^128 * twos + 2^64 * sum + (the lower word of low), and 2^128 is 2 modulo p. */
    wide twos = wide_add(high, wide_of(0, wide_hi(middle)));
    wide sum = wide_add(wide_of(0, wide_hi(low)), wide_of(0, wide_lo(middle)));
    uint64_t carry = wide_hi(sum) << 1 | wide_lo(sum) >> 63;

    return wide_add(wide_add(wide_add(twos, twos), wide_of(0, carry)),
                    wide_of(wide_lo(sum) & LOW_63, wide_lo(low)));
}

static inline wide pair(const uint8_t *data, const uint64_t *key)
{
    return wide_mul(load64(data) + key[0], load64(data + 8) + key[1]);
}

/* Stage 1; `size` is a multiple of VMD_HASH_GRAIN, at most BLOCK. */
static inline wide nh(const uint8_t *data, size_t size, const uint64_t *key)
{
    wide sum = wide_of(0, 0);

    for (size_t i = 0; i < size; i += VMD_HASH_GRAIN, data += VMD_HASH_GRAIN, key += VMD_HASH_GRAIN / 8) {
        /* Beyond the end of the pages it does nothing; as a number, because no pointer may point there. */
        __builtin_prefetch((const void *)((uintptr_t)data + PREFETCH));
        wide first = wide_add(pair(data, key), pair(data + 16, key + 2));
        wide second = wide_add(pair(data + 32, key + 4), pair(data + 48, key + 6));
        sum = wide_add(sum, wide_add(first, second));
    }
    return sum;
}

static inline uint64_t hash_page(const uint8_t *data, size_t size, const uint64_t *key)
{
    wide x = wide_of(key[KEY_X + 1] & LOW_62, key[KEY_X]), y = wide_of(key[KEY_Y + 1] & LOW_62, key[KEY_Y]);
    wide b = number(key, KEY_B), c = number(key, KEY_C), acc = wide_of(0, 0), block, sum;

    for (size_t block_size; size; size -= block_size, data += block_size) {
        block_size = size < BLOCK ? size : BLOCK;
        block = nh(data, block_size, key);
        /* Off the path from block to block: only a multiplication and two folds wait for acc. */
        block = fold(wide_add(multiply(wide_of(0, wide_hi(block)), y), wide_of(0, wide_lo(block))));
        acc = fold(wide_add(fold(multiply(acc, x)), block));
    }
    /* 0 and p are the same number. */
    if (wide_hi(acc) == LOW_63 && wide_lo(acc) == ~(uint64_t)0)
        acc = wide_of(0, 0);
    sum = wide_add(number(key, KEY_A), wide_mul(wide_lo(b), wide_lo(acc)));
    sum = wide_add(sum, wide_mul(wide_lo(c), wide_hi(acc)));
    return wide_hi(sum) + wide_hi(b) * wide_lo(acc) + wide_hi(c) * wide_hi(acc);
}

void vmd_hash_pages(const uint8_t *data, size_t page_size, size_t count, const uint64_t *key, uint64_t *out)
{
    for (size_t i = 0; i < count; i++, data += page_size)
        out[i] = hash_page(data, page_size, key);
}
