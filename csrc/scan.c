/* The pages of a chunk, window by window. */
#include "scan.h"

#include <string.h>

#include "read.h"

size_t vmd_first_bad_run(const struct vmd_run *runs, size_t count, int64_t size)
{
    int64_t position = 0;

    for (size_t i = 0; i < count; position = runs[i++].end)
        if (runs[i].begin < position || runs[i].end < runs[i].begin || runs[i].end > size || runs[i].offset < 0)
            return i;
    return count;
}

size_t vmd_window_pages(size_t page_size)
{
    size_t pages = VMD_WINDOW_SIZE / page_size;

    return pages == 0 ? 1 : pages > VMD_WINDOW_PAGES ? VMD_WINDOW_PAGES : pages;
}

size_t vmd_window_size(size_t page_size)
{
    return vmd_window_pages(page_size) * page_size;
}

/* Fills `out` with the bytes [begin, end) of the chunk. */
static int gather(const struct vmd_scan *scan, uint64_t begin, uint64_t end, uint8_t *out, int *error)
{
    size_t i = scan->run_count ? vmd_first_behind(&scan->runs->end, sizeof(*scan->runs), scan->run_count, begin) : 0;

    for (; i < scan->run_count && begin < end; i++) {
        const struct vmd_run *run = &scan->runs[i];
        uint64_t low = (uint64_t)run->begin > begin ? (uint64_t)run->begin : begin;
        uint64_t high = (uint64_t)run->end < end ? (uint64_t)run->end : end;

        if (low >= end)
            break;
        memset(out, 0, low - begin);
        uint64_t offset = (uint64_t)run->offset + low - (uint64_t)run->begin;
        int status = vmd_read_at((int)run->fd, offset, out + (low - begin), high - low, error);
        if (status != VMD_OK)
            return status;
        out += high - begin;
        begin = high;
    }
    memset(out, 0, end - begin);
    return VMD_OK;
}

/* `copy` is where the page goes before anything but the zero test looks at it, or NULL. */
static enum vmd_page_kind look(const struct vmd_scan *scan, const uint8_t *page, size_t i, uint8_t *copy)
{
    uint64_t known = scan->known ? scan->known[i] : 0, hash;

    if (scan->zero(page, scan->page_size)) {
        if (scan->key)
            scan->hashes[i] = 0;
        return known ? VMD_PAGE_CLEARED : VMD_PAGE_ZERO;
    }
    if (copy)
        page = memcpy(copy, page, scan->page_size);
    if (!scan->key)
        return VMD_PAGE_NEW;
    vmd_hash_pages(page, scan->page_size, 1, scan->key, &hash);
    hash += hash == 0; /* 0 stands for zeros */
    scan->hashes[i] = hash;
    return hash == known ? VMD_PAGE_SAME : VMD_PAGE_NEW;
}

int vmd_scan_window(const struct vmd_scan *scan, size_t first, size_t count, uint8_t *window,
                    const uint8_t **pages, uint8_t *kinds, int *error)
{
    const size_t page_size = scan->page_size;
    uint64_t begin = (uint64_t)first * page_size;
    const uint8_t *page = window;

    if (scan->bytes) {
        page = scan->bytes + begin;
    } else {
        int status = gather(scan, begin, begin + (uint64_t)count * page_size, window, error);
        if (status != VMD_OK)
            return status;
    }
    for (size_t i = 0; i < count; i++) {
        uint8_t *copy = scan->bytes && window ? window + i * page_size : NULL;
        kinds[i] = (uint8_t)look(scan, page + i * page_size, first + i, copy);
    }
    *pages = window ? window : page;
    return VMD_OK;
}

int vmd_scan_chunk(const struct vmd_scan *scan, uint8_t *out, uint8_t *kinds, int *error)
{
    const size_t window = vmd_window_pages(scan->page_size);
    const uint8_t *pages;
    int status = VMD_OK;

    for (size_t first = 0, count; first < scan->page_count && status == VMD_OK; first += count) {
        count = scan->page_count - first < window ? scan->page_count - first : window;
        status = vmd_scan_window(scan, first, count, out ? out + first * scan->page_size : NULL, &pages,
                                 kinds + first, error);
    }
    return status;
}
