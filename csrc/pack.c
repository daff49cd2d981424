/* A chunk of pages to bytes. */
#include "pack.h"
#include "incompressible.h"

#include <stdlib.h>
#include <string.h>

int vmd_packer_open(struct vmd_packer *packer, const struct vmd_engine *engine, int level, size_t page_size)
{
    packer->engine = engine;
    packer->page_size = page_size;
    packer->exact = 0;
    vmd_claim_init(&packer->claim);
    packer->window = malloc(vmd_window_size(page_size));
    packer->encoder = engine->encoder_create(level, page_size);
    if (packer->window && packer->encoder)
        return VMD_OK;
    vmd_packer_close(packer);
    return VMD_NO_MEMORY;
}

void vmd_packer_close(struct vmd_packer *packer)
{
    if (packer->encoder)
        packer->engine->encoder_destroy(packer->encoder);
    free(packer->window);
    packer->encoder = NULL;
    packer->window = NULL;
}

int vmd_packer_train(struct vmd_packer *packer, const uint8_t *pages, size_t page_count)
{
    return packer->engine->train(packer->encoder, pages, page_count, packer->page_size);
}

/* A page keeps at most page_size bytes, so before each one there is room for an engine's worst case if the
 * last one has it. */
size_t vmd_pack_bound(const struct vmd_packer *packer, size_t page_count)
{
    size_t worst = packer->engine->bound(packer->page_size);

    if (page_count == 0)
        return 0;
    if (page_count > (SIZE_MAX - worst) / packer->page_size)
        return SIZE_MAX;
    return (page_count - 1) * packer->page_size + worst;
}

/* One page that is not zero to out[0, cap), cap being enough for the engine's worst case. */
static int pack_page(struct vmd_packer *packer, const uint8_t *page, uint8_t *out, size_t cap, size_t *written)
{
    const size_t page_size = packer->page_size;
    int status = VMD_NO_ROOM;

    if (packer->exact || !packer->engine->slow_on_noise || !vmd_is_incompressible(page, page_size))
        status = packer->engine->compress(packer->encoder, page, page_size, out, cap, written);
    if (status == VMD_NO_ROOM || (status == VMD_OK && *written >= page_size)) {
        memcpy(out, page, page_size);
        *written = page_size;
        return VMD_OK;
    }
    return status;
}

int vmd_pack(struct vmd_packer *packer, const struct vmd_scan *scan, uint8_t *out, size_t cap, uint32_t *sizes,
             size_t *used, size_t *bad_page, int *error)
{
    const size_t page_size = packer->page_size, page_count = scan->page_count;
    const size_t window = vmd_window_pages(page_size);
    uint8_t kinds[VMD_WINDOW_PAGES];
    const uint8_t *page;
    size_t at = 0, written;

    *used = 0;
    if (cap < vmd_pack_bound(packer, page_count))
        return VMD_NO_ROOM;
    for (size_t first = 0, count; first < page_count; first += count) {
        count = page_count - first < window ? page_count - first : window;
        /* A running guest writes to its pages. An encoder that reads one twice (for the matches and for the
         * Adler-32, or for the histogram and for the codes) would make a stream that no reader accepts, or
         * write more than it computed, and its hash would be that of another page. So all are copied, which
         * costs 0 to 5 %. */
        int status = vmd_scan_window(scan, first, count, packer->window, &page, kinds, error);
        if (status != VMD_OK)
            return status;
        for (size_t i = 0; i < count; i++, page += page_size) {
            if (kinds[i] != VMD_PAGE_NEW) {
                sizes[first + i] = kinds[i] == VMD_PAGE_SAME ? VMD_SAME_SIZE : 0;
                continue;
            }
            status = pack_page(packer, page, out + at, cap - at, &written);
            if (status != VMD_OK) {
                *bad_page = first + i;
                return status;
            }
            sizes[first + i] = (uint32_t)written;
            at += written;
        }
    }
    *used = at;
    return VMD_OK;
}
