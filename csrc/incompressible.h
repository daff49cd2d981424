/* Pages that no deflate makes smaller, told without compressing them. */
#ifndef VMD_INCOMPRESSIBLE_H
#define VMD_INCOMPRESSIBLE_H

#include <stddef.h>
#include <stdint.h>

/* 1 if compressing the page is not worth the time, else 0: always 0 unless `size` is 4096, 8192, ... 65536.
 * Depends on the bytes only. */
int vmd_is_incompressible(const uint8_t *page, size_t size);

#endif
