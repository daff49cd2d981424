from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "page_types.h":
    enum:
        VMD_MAX_ORDER
        VMD_ORDER_NONE
        VMD_ORDER_IN_FLAGS
        VMD_ORDER_U8
        VMD_ORDER_U16
        VMD_ORDER_WORD
        VMD_HUGE_NONE
        VMD_HUGE_MAPCOUNT
        VMD_HUGE_FLAG
        VMD_HUGE_U8
        VMD_HUGE_U16
        VMD_HUGE_WORD
        VMD_TYPE_UNKNOWN
        VMD_TYPE_UNREADABLE
        VMD_TYPE_DOUBTFUL
        VMD_TYPE_TAIL
        VMD_TYPE_KERNEL
        VMD_TYPE_SLAB
        VMD_TYPE_TABLE
        VMD_TYPE_FREE
        VMD_TYPE_UNACCEPTED
        VMD_TYPE_CACHE
        VMD_TYPE_CACHE_PRIVATE
        VMD_TYPE_USER
        VMD_TYPE_HUGE
        VMD_TYPE_OFFLINE
        VMD_TYPE_COUNT
        VMD_TYPE_POISONED
    ctypedef struct vmd_page_layout "struct vmd_page_layout":
        int64_t size, word, swapped, flags, mapping, private_, mapcount, compound
        int64_t order, order_form, huge, huge_form, huge_value, free_orders
        int64_t lru_mask, private_mask, swapcache_mask, swapbacked_mask, slab_mask, poison_mask, head_mask
        int64_t buddy_value, slab_value, offline_value, unaccepted_value, table_value
    ctypedef struct vmd_type_run "struct vmd_type_run":
        uint64_t first, count, type
    bint vmd_page_layout_fits(const vmd_page_layout *layout) noexcept nogil
    size_t vmd_page_types(
        const vmd_page_layout *layout, const uint8_t *descriptions, uint64_t first, size_t count,
        uint8_t *types, vmd_type_run *runs
    ) noexcept nogil
    void vmd_spread_type(uint8_t *types, size_t count, uint8_t type) noexcept nogil
