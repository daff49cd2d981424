"""Packed pages that hold the same, of which one is kept."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

__all__ = ["SharedPages"]


@cython.final
cdef class SharedPages:
    """Which pages were stored, and where: a table of 3 MB, however many there are; for one thread at a time.

    What is found depends on the pages and their order alone. Two different pages are taken for one with a
    chance of 2^-63, by whoever does not know the key of their hashes.
    """

    cdef vmd_shared *_table

    def __cinit__(self):
        self._table = <vmd_shared *>calloc(VMD_SHARE_ENTRIES, sizeof(vmd_shared))
        if self._table is NULL:
            raise MemoryError("no memory for the table of shared pages")

    def __dealloc__(self):
        free(self._table)

    def store(
        self,
        uint8_t[::1] data not None,
        const uint32_t[::1] sizes not None,
        const uint64_t[::1] hashes not None,
        next_offset,
        uint64_t[::1] offsets not None,
    ) -> int:
        """Give pages their places; those that are stored already keep their old ones.

        Parameters
        ----------
        data : (m,) uint8, C-contiguous, writable
            Packed pages, one behind the other; ``m >= sum(sizes)``. Those that are new are moved together.
        sizes : (n,) uint32, C-contiguous, may be read-only
            Bytes of each page in `data`, > 0.
        hashes : (n,) uint64, C-contiguous, may be read-only
            Of the pages, all with the same key; not 0.
        next_offset : int
            Where the first new page goes.
        offsets : (n,) uint64, C-contiguous, writable
            Receives the places.

        Returns
        -------
        int
            Bytes of `data` that the new pages take.

        Raises
        ------
        ValueError
            The lengths do not match, or a size is 0.
        """
        cdef size_t n = sizes.shape[0], total = 0, used = 0, i
        cdef uint64_t next = next_offset
        cdef bint empty = False
        for i in range(n):
            total += sizes[i]
            empty |= sizes[i] == 0
        if hashes.shape[0] != <Py_ssize_t>n or offsets.shape[0] != <Py_ssize_t>n:
            raise ValueError(f"{n} sizes, {hashes.shape[0]} hashes and room for {offsets.shape[0]} offsets")
        if empty or total > <size_t>data.shape[0]:
            raise ValueError(f"pages of {total} bytes, one of them empty or outside {data.shape[0]} bytes")
        if n:
            with nogil:
                used = vmd_share(self._table, &data[0], &sizes[0], &hashes[0], n, next, &offsets[0])
        return used
