/* One pass over page descriptions. Whatever they hold, a page whose description is not beyond doubt is kept. */
#include "page_types.h"

#include <string.h>

/* Descriptions that are looked up together: the second one of a compound page is not looked at across them. */
enum { GROUP = 512 };

static inline uint32_t load_32(const uint8_t *at, int swapped)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return swapped ? __builtin_bswap32(value) : value;
}

static inline uint64_t load_word(const uint8_t *at, int wide, int swapped)
{
    uint64_t value;

    if (!wide)
        return load_32(at, swapped);
    memcpy(&value, at, sizeof(value));
    return swapped ? __builtin_bswap64(value) : value;
}

static inline uint16_t load_16(const uint8_t *at, int swapped)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return swapped ? __builtin_bswap16(value) : value;
}

static int field_fits(const struct vmd_page_layout *layout, int64_t offset, int64_t width)
{
    return offset >= -1 && offset <= layout->size - width;
}

/* A field of the second description: forms from `u8` on have it, of 1 byte, 2, and a word. */
static int second_field_fits(const struct vmd_page_layout *layout, int64_t offset, int64_t form, int64_t u8)
{
    return form >= 0 &&
           (form < u8 || (offset >= 0 && field_fits(layout, offset, form == u8 + 2 ? layout->word : form - u8 + 1)));
}

int vmd_page_layout_fits(const struct vmd_page_layout *layout)
{
    const int64_t word = layout->word;

    return (word == 4 || word == 8) && layout->size >= 4 * word && layout->size <= 4096 && layout->flags >= 0 &&
           layout->mapping >= 0 && field_fits(layout, layout->flags, word) &&
           field_fits(layout, layout->mapping, word) && field_fits(layout, layout->private_, word) &&
           field_fits(layout, layout->mapcount, 4) && field_fits(layout, layout->compound, word) &&
           second_field_fits(layout, layout->order, layout->order_form, VMD_ORDER_U8) &&
           second_field_fits(layout, layout->huge, layout->huge_form, VMD_HUGE_U8) &&
           layout->order_form <= VMD_ORDER_WORD && layout->huge_form <= VMD_HUGE_WORD &&
           layout->free_orders >= 1 && layout->free_orders <= VMD_MAX_ORDER + 1 &&
           (layout->private_ >= 0 || layout->buddy_value == -1);
}

static inline int aligned(uint64_t pfn, uint64_t order)
{
    return (pfn & (((uint64_t)1 << order) - 1)) == 0;
}

struct verdict {
    unsigned type, order;
};

/* What the second description of a compound page says; returns 0 if no page can be so. */
static inline int compound(const struct vmd_page_layout *l, const uint8_t *second, uint64_t pfn, uint32_t mapcount,
                           unsigned *order, int *huge, int wide, int swapped)
{
    const uint64_t flags = load_word(second + l->flags, wide, swapped);
    uint64_t told = 0;

    switch (l->order_form) {
    case VMD_ORDER_IN_FLAGS:
        told = flags & 0xff;
        break;
    case VMD_ORDER_U8:
        told = second[l->order];
        break;
    case VMD_ORDER_U16:
        told = load_16(second + l->order, swapped);
        break;
    case VMD_ORDER_WORD:
        told = load_word(second + l->order, wide, swapped);
        break;
    }
    switch (l->huge_form) {
    case VMD_HUGE_MAPCOUNT:
        *huge = mapcount == (uint32_t)l->huge_value;
        break;
    case VMD_HUGE_FLAG:
        *huge = (flags & (uint64_t)l->huge_value) != 0;
        break;
    case VMD_HUGE_U8:
        *huge = second[l->huge] == (uint8_t)l->huge_value;
        break;
    case VMD_HUGE_U16:
        *huge = load_16(second + l->huge, swapped) == (uint16_t)l->huge_value;
        break;
    case VMD_HUGE_WORD:
        *huge = load_word(second + l->huge, wide, swapped) ==
                (wide ? (uint64_t)l->huge_value : (uint32_t)l->huge_value);
        break;
    }
    if (told > VMD_MAX_ORDER || !aligned(pfn, told))
        return 0;
    *order = (unsigned)told;
    return 1;
}

/* The type of one page by its description, and by the next one if that is at hand. */
static inline struct verdict judge(const struct vmd_page_layout *l, const uint8_t *page, const uint8_t *second,
                                   uint64_t pfn, int wide, int swapped)
{
    const uint64_t flags = load_word(page + l->flags, wide, swapped);
    const uint32_t mapcount = l->mapcount < 0 ? UINT32_MAX : load_32(page + l->mapcount, swapped);
    struct verdict found = {VMD_TYPE_KERNEL, 0};
    int huge = 0, sure = 1;

    if (flags == (wide ? UINT64_MAX : UINT32_MAX))
        return (struct verdict){VMD_TYPE_DOUBTFUL, 0}; /* never set up, or poisoned when it was taken away */
    if (l->compound >= 0 && load_word(page + l->compound, wide, swapped) & 1)
        return (struct verdict){VMD_TYPE_TAIL, 0};

    const unsigned poison = flags & (uint64_t)l->poison_mask ? VMD_TYPE_POISONED : 0;
    const int typed = mapcount != UINT32_MAX;
    const int slab = (typed && mapcount == (uint32_t)l->slab_value) || (flags & (uint64_t)l->slab_mask);

    if (typed && !slab && mapcount == (uint32_t)l->buddy_value) {
        uint64_t order = load_word(page + l->private_, wide, swapped);
        if (order >= (uint64_t)l->free_orders || !aligned(pfn, order))
            return (struct verdict){VMD_TYPE_DOUBTFUL, 0};
        return (struct verdict){VMD_TYPE_FREE | poison, (unsigned)order};
    }
    if (typed && mapcount == (uint32_t)l->unaccepted_value) {
        unsigned order = (unsigned)l->free_orders - 1;
        return aligned(pfn, order) ? (struct verdict){VMD_TYPE_UNACCEPTED | poison, order}
                                   : (struct verdict){VMD_TYPE_DOUBTFUL, 0};
    }
    if (second && flags & (uint64_t)l->head_mask)
        sure = compound(l, second, pfn, mapcount, &found.order, &huge, wide, swapped);

    const int anon = !slab && load_word(page + l->mapping, wide, swapped) & 1;
    const int cache = (flags & (uint64_t)l->lru_mask) ||
                      (flags & (uint64_t)l->swapbacked_mask && flags & (uint64_t)l->swapcache_mask);

    if (cache && !anon)
        found.type = flags & (uint64_t)l->private_mask ? VMD_TYPE_CACHE_PRIVATE : VMD_TYPE_CACHE;
    else if (anon || huge)
        found.type = huge ? VMD_TYPE_HUGE : VMD_TYPE_USER;
    else if (typed && !slab && mapcount == (uint32_t)l->offline_value)
        found.type = VMD_TYPE_OFFLINE;
    else if (slab)
        found.type = VMD_TYPE_SLAB;
    else if (typed && mapcount == (uint32_t)l->table_value)
        found.type = VMD_TYPE_TABLE;
    if (!sure && (poison || !vmd_type_is_kept(found.type)))
        return (struct verdict){VMD_TYPE_DOUBTFUL, 0};
    found.type |= poison;
    return found;
}

/* A compound page is broken as a whole, and of a free block the first page. */
static inline unsigned of_whole_run(unsigned type)
{
    const unsigned sound = type & ~(unsigned)VMD_TYPE_POISONED;

    return sound == VMD_TYPE_FREE || sound == VMD_TYPE_UNACCEPTED ? sound : type;
}

struct open_run {
    uint64_t first, end;
    unsigned type;
};

static inline __attribute__((always_inline)) size_t pass(const struct vmd_page_layout *l, const uint8_t *page,
                                                         uint64_t first, size_t count, uint8_t *types,
                                                         struct vmd_type_run *runs, int wide, int swapped)
{
    /* A run of pages that some dump leaves out, and one of pages that every dump has. Heads are aligned, so a
     * run that begins inside another one ends in it. */
    struct open_run left = {0, 0, 0}, kept = {0, 0, 0};
    const uint64_t end = first + count;
    size_t open = 0;

    for (uint64_t pfn = first; pfn != end; pfn++, page += l->size) {
        const uint8_t *second = pfn + 1 != end && (pfn & (GROUP - 1)) != GROUP - 1 ? page + l->size : NULL;
        struct verdict found = judge(l, page, second, pfn, wide, swapped);
        unsigned type = found.type;

        if (pfn < left.end) {
            type = left.type | (type & VMD_TYPE_POISONED);
        } else if (found.order && !vmd_type_is_kept(type)) {
            left = (struct open_run){pfn, pfn + ((uint64_t)1 << found.order), of_whole_run(type)};
        } else if (found.order) {
            kept = (struct open_run){pfn, pfn + ((uint64_t)1 << found.order), type};
        } else if (type == VMD_TYPE_TAIL && pfn < kept.end) {
            type = kept.type;
        }
        types[pfn - first] = (uint8_t)type;
    }
    if (left.end > end)
        runs[open++] = (struct vmd_type_run){end, left.end - end, left.type};
    if (kept.end > end)
        runs[open++] = (struct vmd_type_run){end, kept.end - end, kept.type};
    return open;
}

size_t vmd_page_types(const struct vmd_page_layout *layout, const uint8_t *descriptions, uint64_t first,
                      size_t count, uint8_t *types, struct vmd_type_run runs[2])
{
    /* Each of them with constants: nothing is asked per page. */
    if (layout->word == 8)
        return layout->swapped ? pass(layout, descriptions, first, count, types, runs, 1, 1)
                               : pass(layout, descriptions, first, count, types, runs, 1, 0);
    return layout->swapped ? pass(layout, descriptions, first, count, types, runs, 0, 1)
                           : pass(layout, descriptions, first, count, types, runs, 0, 0);
}

void vmd_spread_type(uint8_t *types, size_t count, uint8_t type)
{
    for (size_t i = 0; i < count; i++) {
        if (!vmd_type_is_kept(type))
            types[i] = type | (types[i] & VMD_TYPE_POISONED);
        else if (types[i] == VMD_TYPE_TAIL)
            types[i] = type;
    }
}
