/* The pages of a chunk, window by window. */
#define _GNU_SOURCE
#include "scan.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

size_t vmd_window_pages(size_t page_size)
{
    size_t pages = VMD_WINDOW_SIZE / page_size;

    return pages == 0 ? 1 : pages > VMD_WINDOW_PAGES ? VMD_WINDOW_PAGES : pages;
}

size_t vmd_window_size(size_t page_size)
{
    return vmd_window_pages(page_size) * page_size;
}

static int read_whole(const struct vmd_run *run, uint8_t *out, uint64_t begin, uint64_t end, int *error)
{
    while (begin < end) {
        ssize_t n = pread((int)run->fd, out, end - begin, (off_t)((uint64_t)run->offset + begin - (uint64_t)run->begin));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            *error = n < 0 ? errno : 0;
            return VMD_ERRNO;
        }
        out += n;
        begin += (uint64_t)n;
    }
    return VMD_OK;
}

/* The first run that ends behind `begin`. */
static size_t first_run(const struct vmd_scan *scan, uint64_t begin)
{
    size_t low = 0, high = scan->run_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint64_t)scan->runs[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Fills `out` with the bytes [begin, end) of the chunk. */
static int gather(const struct vmd_scan *scan, uint64_t begin, uint64_t end, uint8_t *out, int *error)
{
    for (size_t i = first_run(scan, begin); i < scan->run_count && begin < end; i++) {
        const struct vmd_run *run = &scan->runs[i];
        uint64_t low = (uint64_t)run->begin > begin ? (uint64_t)run->begin : begin;
        uint64_t high = (uint64_t)run->end < end ? (uint64_t)run->end : end;

        if (low >= end)
            break;
        memset(out, 0, low - begin);
        int status = read_whole(run, out + (low - begin), low, high, error);
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
