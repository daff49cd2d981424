/* Zero-page test. The scalar kernel is the reference the others are checked against. */
#ifndef VMD_ZERO_H
#define VMD_ZERO_H

#include <stddef.h>
#include <stdint.h>

/* 1 if all `size` bytes at `mem` are zero, else 0. Any size and any alignment. */
typedef int (*vmd_zero_fn)(const uint8_t *mem, size_t size);

enum vmd_zero_id { VMD_ZERO_SCALAR, VMD_ZERO_AVX2, VMD_ZERO_AVX512, VMD_ZERO_NEON, VMD_ZERO_COUNT };

enum vmd_zero_state { VMD_ZERO_USABLE, VMD_ZERO_NOT_BUILT, VMD_ZERO_NO_CPU };

const char *vmd_zero_name(int id);
enum vmd_zero_state vmd_zero_kernel_state(int id);
vmd_zero_fn vmd_zero_kernel(int id); /* NULL unless usable */
int vmd_zero_default(void);          /* the fastest usable kernel, as measured */

/* zero[i] = 1 if page i is all zero, else 0. */
void vmd_zero_pages(vmd_zero_fn test, const uint8_t *mem, size_t page_count, size_t page_size, uint8_t *zero);

#endif
