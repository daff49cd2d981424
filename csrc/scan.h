/* The pages of a chunk, window by window: gathered from files if they are not in memory, and told apart as
 * zero, known or new while they are in the cache. */
#ifndef VMD_SCAN_H
#define VMD_SCAN_H

#include "hash.h"
#include "status.h"
#include "zero.h"

enum vmd_page_kind {
    VMD_PAGE_ZERO,    /* all zero, and nothing else is known of it */
    VMD_PAGE_SAME,    /* not zero, and its hash is the known one */
    VMD_PAGE_CLEARED, /* all zero; it was not when its hash was taken */
    VMD_PAGE_NEW,     /* not zero, and not known */
};

/* Bytes [begin, end) of the chunk are in a file at `offset`; runs ascend, and what no run covers is zero. */
struct vmd_run {
    int64_t begin, end, fd, offset;
};

/* What is read at a time: half of the smallest level 2 cache that is common. 4 GiB of a file in tmpfs came in
 * at 11.9 GB/s in pieces of 256 KiB, at 10.3 in pieces of 4 MiB (two threads, Xeon of 2023). */
enum { VMD_WINDOW_SIZE = 256 << 10, VMD_WINDOW_PAGES = 64 };

struct vmd_scan {
    const uint8_t *bytes; /* the pages, or NULL: then they are in the runs */
    const struct vmd_run *runs;
    size_t run_count;
    size_t page_size, page_count;
    vmd_zero_fn zero;
    const uint64_t *key;   /* NULL: no hashes */
    const uint64_t *known; /* page_count hashes, 0 where none was taken; NULL: none at all */
    uint64_t *hashes;      /* page_count hashes, 0 for a page of zeros */
};

/* Gives the index of the first run that does not ascend inside a chunk of `size` bytes, or `count`. */
size_t vmd_first_bad_run(const struct vmd_run *runs, size_t count, int64_t size);

/* Pages in a window: at least 1, at most VMD_WINDOW_PAGES. */
size_t vmd_window_pages(size_t page_size);

/* Bytes that a window of runs needs. */
size_t vmd_window_size(size_t page_size);

/* Puts the pages [first, first + count) that are not zero into `window`, and tells all their kinds; what is
 * there of the others may be anything. *pages is where they are. Pages in memory may do without a window, if nobody writes to
 * them. VMD_ERRNO with the errno, or 0 where a file ended, in *error. */
int vmd_scan_window(const struct vmd_scan *scan, size_t first, size_t count, uint8_t *window,
                    const uint8_t **pages, uint8_t *kinds, int *error);

/* All windows of the chunk into `out`; NULL is allowed as it is for a window. */
int vmd_scan_chunk(const struct vmd_scan *scan, uint8_t *out, uint8_t *kinds, int *error);

#endif
