"""What pages are used for, by the descriptions that the guest's kernel has of them."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

__all__ = [
    "CACHE",
    "CACHE_PRIVATE",
    "DOUBTFUL",
    "FREE",
    "HUGE",
    "HUGE_FLAG",
    "HUGE_MAPCOUNT",
    "HUGE_NONE",
    "HUGE_U8",
    "HUGE_U16",
    "HUGE_WORD",
    "KERNEL",
    "MAX_ORDER",
    "OFFLINE",
    "ORDER_IN_FLAGS",
    "ORDER_NONE",
    "ORDER_U8",
    "ORDER_U16",
    "ORDER_WORD",
    "POISONED",
    "SLAB",
    "TABLE",
    "TAIL",
    "TYPE_COUNT",
    "UNACCEPTED",
    "UNKNOWN",
    "UNREADABLE",
    "USER",
    "PageTyper",
    "spread_type",
]

MAX_ORDER = VMD_MAX_ORDER
ORDER_NONE, ORDER_IN_FLAGS = VMD_ORDER_NONE, VMD_ORDER_IN_FLAGS
ORDER_U8, ORDER_U16, ORDER_WORD = VMD_ORDER_U8, VMD_ORDER_U16, VMD_ORDER_WORD
HUGE_NONE, HUGE_MAPCOUNT, HUGE_FLAG = VMD_HUGE_NONE, VMD_HUGE_MAPCOUNT, VMD_HUGE_FLAG
HUGE_U8, HUGE_U16, HUGE_WORD = VMD_HUGE_U8, VMD_HUGE_U16, VMD_HUGE_WORD
UNKNOWN, UNREADABLE, DOUBTFUL, TAIL = (
    VMD_TYPE_UNKNOWN, VMD_TYPE_UNREADABLE, VMD_TYPE_DOUBTFUL, VMD_TYPE_TAIL
)
KERNEL, SLAB, TABLE = VMD_TYPE_KERNEL, VMD_TYPE_SLAB, VMD_TYPE_TABLE
FREE, UNACCEPTED = VMD_TYPE_FREE, VMD_TYPE_UNACCEPTED
CACHE, CACHE_PRIVATE, USER, HUGE = VMD_TYPE_CACHE, VMD_TYPE_CACHE_PRIVATE, VMD_TYPE_USER, VMD_TYPE_HUGE
OFFLINE, TYPE_COUNT, POISONED = VMD_TYPE_OFFLINE, VMD_TYPE_COUNT, VMD_TYPE_POISONED


@cython.final
cdef class PageTyper:
    """Tells types of pages by descriptions of one layout; from several threads at once.

    Parameters
    ----------
    size, word : int
        Bytes of a description, and of a word in it: 4 or 8.
    swapped : bool
        The byte order is not this machine's.
    flags, mapping, private, mapcount, compound, order, huge : int
        Offsets of fields in bytes; -1 for one that is not there.
    order_form, huge_form, huge_value : int
        ORDER_... and HUGE_...: how the second description of a compound page tells its order, and whether it
        is hugetlbfs'.
    free_orders : int
        Of blocks of free pages; larger ones are doubtful.
    lru_mask, private_mask, swapcache_mask, swapbacked_mask, slab_mask, poison_mask, head_mask : int
        Of flags; 0 for one that is not there.
    buddy_value, slab_value, offline_value, unaccepted_value, table_value : int
        Of the map count; -1 for none.

    Raises
    ------
    ValueError
        A field is not inside a description, or no description has this size.
    """

    cdef vmd_page_layout _layout

    def __cinit__(
        self, *, size, word, swapped, flags, mapping, private, mapcount, compound, order, order_form, huge,
        huge_form, huge_value, free_orders, lru_mask, private_mask, swapcache_mask, swapbacked_mask,
        slab_mask, poison_mask, head_mask, buddy_value, slab_value, offline_value, unaccepted_value,
        table_value,
    ):
        self._layout = vmd_page_layout(
            size, word, swapped, flags, mapping, private, mapcount, compound, order, order_form, huge,
            huge_form, huge_value, free_orders, lru_mask, private_mask, swapcache_mask, swapbacked_mask,
            slab_mask, poison_mask, head_mask, buddy_value, slab_value, offline_value, unaccepted_value,
            table_value,
        )
        if not vmd_page_layout_fits(&self._layout):
            raise ValueError("a field is not inside a description, or no description has this size")

    def tell(self, const uint8_t[::1] descriptions not None, first, uint8_t[::1] types not None):
        """Tell the types of pages one behind the other.

        Parameters
        ----------
        descriptions : (n * size,) uint8, C-contiguous, may be read-only
            They may change meanwhile.
        first : int
            Frame number of the first page.
        types : (n,) uint8, C-contiguous, writable
            Receives a type each, with the bit POISONED beside it.

        Returns
        -------
        list of (int, int, int)
            Runs that go on behind these pages: first page there, pages, and type.

        Raises
        ------
        ValueError
            A length is wrong.
        """
        cdef size_t n = types.shape[0], open_runs = 0
        cdef uint64_t pfn = first
        cdef vmd_type_run runs[2]
        if <size_t>descriptions.shape[0] != n * <size_t>self._layout.size:
            raise ValueError(f"{descriptions.shape[0]} bytes are not {n} descriptions of {self._layout.size}")
        if n:
            with nogil:
                open_runs = vmd_page_types(&self._layout, &descriptions[0], pfn, n, &types[0], runs)
        return [(runs[i].first, runs[i].count, runs[i].type) for i in range(open_runs)]


def spread_type(uint8_t[::1] types not None, type) -> None:
    """Give pages the type of a run that began before them; what is told of them alone gives way to it.

    Parameters
    ----------
    types : (n,) uint8, C-contiguous, writable
        Pages of the run. Those that are broken stay so, and a run of pages that every dump has takes in
        tails only.
    type : int
        Of the run.
    """
    cdef size_t n = types.shape[0]
    cdef uint8_t wanted = type
    if n:
        with nogil:
            vmd_spread_type(&types[0], n, wanted)
