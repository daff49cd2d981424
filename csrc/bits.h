/* LSB-first bitmaps: bit i is bit i % 8 of byte i / 8. Ranges are half-open and lie inside the bitmap. */
#ifndef VMD_BITS_H
#define VMD_BITS_H

#include <stddef.h>
#include <stdint.h>

void vmd_bits_set_range(uint8_t *bits, uint64_t begin, uint64_t end);
uint64_t vmd_bits_count(const uint8_t *bits, uint64_t begin, uint64_t end);

/* The first run of set bits in [begin, end): [*run_begin, *run_end). Returns 0 if no bit is set. */
int vmd_bits_next_run(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t *run_begin,
                      uint64_t *run_end);

/* Up to `max` runs of [begin, end) as pairs into `runs`; returns how many. `runs` may be NULL: count only. */
size_t vmd_bits_runs(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t *runs, size_t max);

#endif
