/* Bitmaps of a dump: the functions that go 64 bits at a time against ones that look at each bit.
 *
 * Input: begin (2 bytes), end (2), most runs wanted (1); the rest is the bitmap. */
#include "bits.h"
#include "input.h"

static int is_set(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    uint64_t begin = take_number(&in, 2), end = take_number(&in, 2), counted = 0, last = 0;
    size_t wanted = take_number(&in, 1), found = 0;
    struct guarded map = guarded_alloc(in.size);
    uint64_t limit = 8 * (uint64_t)map.size;

    take(&in, map.bytes, map.size);
    end = limit ? end % (limit + 1) : 0;
    begin = end ? begin % (end + 1) : 0;
    for (uint64_t i = begin; i < end; i++)
        counted += (uint64_t)is_set(map.bytes, i);
    PROMISE(vmd_bits_count(map.bytes, begin, end) == counted);

    size_t all = vmd_bits_runs(map.bytes, begin, end, NULL, SIZE_MAX);
    size_t most = wanted < all ? wanted : all;
    uint64_t *runs = calloc(2 * most + 1, sizeof *runs);
    PROMISE(vmd_bits_runs(map.bytes, begin, end, runs, most) == most);
    for (uint64_t i = begin; i < end && found < most; i++) {
        if (!is_set(map.bytes, i) || (i > begin && is_set(map.bytes, i - 1)))
            continue;
        for (last = i; last < end && is_set(map.bytes, last);)
            last++;
        PROMISE(runs[2 * found] == i && runs[2 * found + 1] == last);
        found++;
    }
    PROMISE(found == most);
    free(runs);

    struct guarded before = guarded_alloc(map.size);
    memcpy(before.bytes, map.bytes, map.size);
    vmd_bits_set_range(map.bytes, begin, end);
    for (uint64_t i = 0; i < limit; i++)
        PROMISE(is_set(map.bytes, i) == ((i >= begin && i < end) || is_set(before.bytes, i)));
    guarded_free(&before);
    guarded_free(&map);
    return 0;
}
