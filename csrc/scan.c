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

/* Gives the first page from `first` on of which a run has a part, or `end`. */
static size_t next_covered(const struct vmd_scan *scan, size_t first, size_t end)
{
    uint64_t begin = (uint64_t)first * scan->page_size;
    size_t i = scan->run_count ? vmd_first_behind(&scan->runs->end, sizeof(*scan->runs), scan->run_count, begin) : 0;

    if (i == scan->run_count || (uint64_t)scan->runs[i].begin >= (uint64_t)end * scan->page_size)
        return end;
    size_t page = (size_t)((uint64_t)scan->runs[i].begin / scan->page_size);
    return page > first ? page : first;
}

/* Gives a page behind `first`, of which a run has a part, up to which the run goes; at most `end`. */
static size_t covered_end(const struct vmd_scan *scan, size_t first, size_t end)
{
    uint64_t begin = (uint64_t)first * scan->page_size;
    size_t i = vmd_first_behind(&scan->runs->end, sizeof(*scan->runs), scan->run_count, begin);
    size_t page = (size_t)(((uint64_t)scan->runs[i].end + scan->page_size - 1) / scan->page_size);

    return page < end ? page : end;
}

static enum vmd_page_kind is_zero(const struct vmd_scan *scan, size_t i)
{
    if (scan->key)
        scan->hashes[i] = 0;
    return scan->known && scan->known[i] ? VMD_PAGE_CLEARED : VMD_PAGE_ZERO;
}

/* `copy` is where the page goes before anything but the zero test looks at it, or NULL. */
static enum vmd_page_kind look(const struct vmd_scan *scan, const uint8_t *page, size_t i, uint8_t *copy)
{
    uint64_t known = scan->known ? scan->known[i] : 0, hash;

    if (scan->zero(page, scan->page_size))
        return is_zero(scan, i);
    if (copy)
        page = memcpy(copy, page, scan->page_size);
    if (!scan->key)
        return VMD_PAGE_NEW;
    vmd_hash_pages(page, scan->page_size, 1, scan->key, &hash);
    hash += hash == 0; /* 0 stands for zeros */
    scan->hashes[i] = hash;
    return hash == known ? VMD_PAGE_SAME : VMD_PAGE_NEW;
}

static int look_in_runs(const struct vmd_scan *scan, size_t first, size_t count, uint8_t *window, uint8_t *kinds,
                        int *error)
{
    const size_t page_size = scan->page_size, last = first + count;
    size_t page = first;

    while (page < last) {
        /* Most pages of a filtered guest are in no run: setting them to zero, and looking for what is not zero
         * there, would take as long as copying them. */
        for (size_t covered = next_covered(scan, page, last); page < covered; page++)
            kinds[page - first] = (uint8_t)is_zero(scan, page);
        if (page == last)
            break;
        size_t end = covered_end(scan, page, last);
        uint8_t *bytes = window + (page - first) * page_size;
        int status = gather(scan, (uint64_t)page * page_size, (uint64_t)end * page_size, bytes, error);
        if (status != VMD_OK)
            return status;
        for (; page < end; page++, bytes += page_size)
            kinds[page - first] = (uint8_t)look(scan, bytes, page, NULL);
    }
    return VMD_OK;
}

int vmd_scan_window(const struct vmd_scan *scan, size_t first, size_t count, uint8_t *window,
                    const uint8_t **pages, uint8_t *kinds, int *error)
{
    const size_t page_size = scan->page_size;

    if (!scan->bytes) {
        *pages = window;
        return look_in_runs(scan, first, count, window, kinds, error);
    }
    const uint8_t *page = scan->bytes + (uint64_t)first * page_size;
    for (size_t i = 0; i < count; i++) {
        uint8_t *copy = window ? window + i * page_size : NULL;
        kinds[i] = (uint8_t)look(scan, page + i * page_size, first + i, copy);
    }
    *pages = window ? window : page;
    return VMD_OK;
}

/* Sets the pages of a window to zero that were not put there. */
static void clear_zeros(uint8_t *window, const uint8_t *kinds, size_t count, size_t page_size)
{
    for (size_t i = 0; i < count; i++)
        if (kinds[i] == VMD_PAGE_ZERO || kinds[i] == VMD_PAGE_CLEARED)
            memset(window + i * page_size, 0, page_size);
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
        if (!scan->bytes && status == VMD_OK)
            clear_zeros(out + first * scan->page_size, kinds + first, count, scan->page_size);
    }
    return status;
}
