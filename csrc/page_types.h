/* What pages are used for, by the guest kernel's own descriptions of them: one pass over an array of these. */
#ifndef VMD_PAGE_TYPES_H
#define VMD_PAGE_TYPES_H

#include <stddef.h>
#include <stdint.h>

enum vmd_page_type {
    VMD_TYPE_UNKNOWN,       /* nothing describes it */
    VMD_TYPE_UNREADABLE,    /* what describes it cannot be read */
    VMD_TYPE_DOUBTFUL,      /* its description contradicts itself */
    VMD_TYPE_TAIL,          /* a part of a compound page whose head was not met */
    VMD_TYPE_KERNEL,
    VMD_TYPE_SLAB,
    VMD_TYPE_TABLE, /* a page table */
    VMD_TYPE_FREE,
    VMD_TYPE_UNACCEPTED,    /* free, and never given to the guest by its host */
    VMD_TYPE_CACHE,
    VMD_TYPE_CACHE_PRIVATE, /* of a file, with buffers or other private data */
    VMD_TYPE_USER,
    VMD_TYPE_HUGE,          /* of hugetlbfs, in use or in its pool */
    VMD_TYPE_OFFLINE,
    VMD_TYPE_COUNT,
    VMD_TYPE_POISONED = 0x80, /* a bit beside the type: the memory is broken */
};

/* Pages of a compound page or of a free block: 2^21 of the smallest are 8 GiB, more than any kernel has. */
enum { VMD_MAX_ORDER = 21 };

/* How the order of a compound page is told, in the description of its second page. */
enum vmd_order_form { VMD_ORDER_NONE, VMD_ORDER_IN_FLAGS, VMD_ORDER_U8, VMD_ORDER_U16, VMD_ORDER_WORD };

/* How hugetlbfs' compound pages are told. */
enum vmd_huge_form { VMD_HUGE_NONE, VMD_HUGE_MAPCOUNT, VMD_HUGE_FLAG, VMD_HUGE_U8, VMD_HUGE_U16, VMD_HUGE_WORD };

/* Offsets are in bytes, -1 for a field that is not there; masks of flags are 0 for a flag that is not there. A
 * value of the map count is told as 32 bits, and -1, which is that of any page that nobody maps, for none. */
struct vmd_page_layout {
    int64_t size; /* of a description */
    int64_t word; /* 4 or 8 bytes */
    int64_t swapped;
    int64_t flags, mapping, private_, mapcount, compound;
    int64_t order, order_form;
    int64_t huge, huge_form;
    int64_t huge_value;
    int64_t free_orders; /* of blocks of free pages */
    int64_t lru_mask, private_mask, swapcache_mask, swapbacked_mask, slab_mask, poison_mask, head_mask;
    int64_t buddy_value, slab_value, offline_value, unaccepted_value, table_value;
};

/* A run of pages that goes on behind the array in which its head is. */
struct vmd_type_run {
    uint64_t first, count, type;
};

/* Tells whether the fields lie inside a description, and a description can be one. */
int vmd_page_layout_fits(const struct vmd_page_layout *layout);

/* Whether pages of a type are in every dump. */
static inline int vmd_type_is_kept(unsigned type)
{
    return type <= VMD_TYPE_TABLE;
}

/* Tells the types of the `count` pages from frame `first` on, described at `descriptions`, which may have any
 * alignment and change meanwhile. What a head says is so of its whole run; of runs that go on behind the array,
 * at most two, the number is returned. */
size_t vmd_page_types(const struct vmd_page_layout *layout, const uint8_t *descriptions, uint64_t first,
                      size_t count, uint8_t *types, struct vmd_type_run runs[2]);

/* Gives `count` pages the type of a run that began elsewhere. */
void vmd_spread_type(uint8_t *types, size_t count, uint8_t type);

#endif
