/* A chunk of pages to bytes.
 *
 * The size of a page says everything about it: 0 is a zero page of which nothing is stored, the page size is
 * a page stored plain, anything between is one compressed stream, and VMD_SAME_SIZE is a page that holds what
 * was known of it, of which nothing is stored either.
 */
#ifndef VMD_PACK_H
#define VMD_PACK_H

#include "claim.h"
#include "codecs/engine.h"
#include "scan.h"

#define VMD_SAME_SIZE UINT32_MAX

struct vmd_packer {
    const struct vmd_engine *engine;
    size_t page_size;
    void *encoder;
    uint8_t *window; /* the pages that are being packed */
    int exact;       /* the engine is asked about each page, also where it is clear that it makes none smaller */
    struct vmd_claim claim;
};

int vmd_packer_open(struct vmd_packer *packer, const struct vmd_engine *engine, int level, size_t page_size);
void vmd_packer_close(struct vmd_packer *packer);

/* Of an engine that has train(): fits the packer to pages like these, which must not change meanwhile. */
int vmd_packer_train(struct vmd_packer *packer, const uint8_t *pages, size_t page_count);

/* What `out` must hold; SIZE_MAX if that overflows. */
size_t vmd_pack_bound(const struct vmd_packer *packer, size_t page_count);

/* The memory of `scan` may change during the call: each page becomes what it was at some moment.
 * Writes sizes[page_count] and *used <= page_count * page_size bytes of `out`; the rest of `out` is scratch.
 * On VMD_BROKEN the page that failed is in *bad_page; on VMD_ERRNO *error is as of vmd_scan_window. */
int vmd_pack(struct vmd_packer *packer, const struct vmd_scan *scan, uint8_t *out, size_t cap, uint32_t *sizes,
             size_t *used, size_t *bad_page, int *error);

#endif
