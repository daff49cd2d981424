/* Types of pages: any layout that is accepted, over any descriptions.
 *
 * Input: a layout (25 numbers of 2 bytes, sign extended), first page (4 bytes); the rest are descriptions.
 * Each type is one of the known, and pages told in two halves are as those told at once, unless something goes
 * over the middle. */
#include "page_types.h"
#include "input.h"

static int64_t take_signed(struct input *in)
{
    return (int16_t)take_number(in, 2);
}

static void take_layout(struct input *in, struct vmd_page_layout *layout)
{
    int64_t *fields = (int64_t *)layout;

    for (size_t i = 0; i < sizeof(*layout) / sizeof(*fields); i++)
        fields[i] = take_signed(in);
    layout->swapped &= 1;
    layout->word = layout->word & 1 ? 4 : 8;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    struct vmd_page_layout layout;
    struct vmd_type_run runs[2], halves[2];

    take_layout(&in, &layout);
    uint64_t first = take_number(&in, 4);
    if (!vmd_page_layout_fits(&layout))
        return 0;
    size_t count = in.size / (size_t)layout.size;
    struct guarded pages = guarded_alloc(count * (size_t)layout.size);
    struct guarded types = guarded_alloc(count);
    take(&in, pages.bytes, pages.size);

    size_t open = vmd_page_types(&layout, pages.bytes, first, count, types.bytes, runs);
    PROMISE(open <= 2);
    for (size_t i = 0; i < open; i++) {
        PROMISE(runs[i].first == first + count && runs[i].count > 0);
        PROMISE(runs[i].count < (uint64_t)1 << VMD_MAX_ORDER);
    }
    for (size_t i = 0; i < count; i++) {
        unsigned type = types.bytes[i] & ~(unsigned)VMD_TYPE_POISONED;
        PROMISE(type > VMD_TYPE_UNREADABLE && type < VMD_TYPE_COUNT);
    }

    size_t middle = count / 2;
    struct guarded again = guarded_alloc(count);
    size_t over = vmd_page_types(&layout, pages.bytes, first, middle, again.bytes, halves);
    vmd_page_types(&layout, pages.bytes + middle * (size_t)layout.size, first + middle, count - middle,
                   again.bytes + middle, runs);
    /* Elsewhere the second description of a head may be in the other half. */
    if (over == 0 && middle > 0 && (first + middle) % 512 == 0)
        PROMISE(memcmp(types.bytes, again.bytes, count) == 0);
    guarded_free(&again);
    guarded_free(&types);
    guarded_free(&pages);
    return 0;
}
