"""Chunks of pages to bytes, by the native engines."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from vmdump.kernels.claim cimport take, vmd_claim_drop
from vmdump.kernels.engines cimport checked_level, checked_page_size, find_engine, vmd_engine
from vmdump.kernels.scan cimport PageScan
from vmdump.kernels.status cimport VMD_ERRNO, VMD_OK, raise_read_error

from vmdump.errors import CodecError

__all__ = ["SAME_SIZE", "Packer"]

SAME_SIZE = VMD_SAME_SIZE


@cython.final
cdef class Packer:
    """Packs pages with one native engine; for one thread at a time.

    Parameters
    ----------
    engine : str
        One of `vmdump.kernels.engines.native_engines`.
    page_size : int
        Bytes, 1..1 MiB.
    level : int or None
        Of the engine; None for its default.
    exact : bool
        Each page is the engine's own result, which is compressed wherever that is smaller. Otherwise pages
        that look incompressible are stored plain without asking it.

    Raises
    ------
    EngineUnavailable
        The engine was not built.
    RequestError
        The page size or the level is out of range.
    """

    cdef vmd_packer _packer
    cdef readonly str engine
    cdef readonly int level
    cdef readonly size_t page_size

    def __cinit__(self, engine, page_size, level=None, *, exact=False):
        cdef const vmd_engine *found = find_engine(engine)
        self.engine = engine
        self.level = checked_level(engine, level, found.min_level, found.max_level, found.default_level)
        self.page_size = checked_page_size(page_size)
        if vmd_packer_open(&self._packer, found, self.level, self.page_size) != VMD_OK:
            raise MemoryError(f"engine {engine}: no memory for its context")
        self._packer.exact = exact

    def __dealloc__(self):
        vmd_packer_close(&self._packer)

    def bound(self, page_count) -> int:
        """Tell how many bytes `pack` needs for `page_count` pages."""
        return vmd_pack_bound(&self._packer, page_count)

    def train(self, const uint8_t[::1] pages not None) -> bool:
        """Fit the packer to pages like these, if its engine and level can be fitted; then `pack` follows.

        Packers that were trained on the same pages give the same bytes, and other bytes than all others.

        Parameters
        ----------
        pages : (n * page_size,) uint8, C-contiguous, may be read-only
            A sample: 256 pages of 4 KiB are enough, of fewer than 16 nothing is learnt. They must not change
            meanwhile.

        Returns
        -------
        bool
            False if the engine has nothing to train at this level.

        Raises
        ------
        ValueError
            The length is not a whole number of pages.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef size_t n = pages.shape[0] // self.page_size
        cdef int status
        if pages.shape[0] != <Py_ssize_t>(n * self.page_size):
            raise ValueError(f"{pages.shape[0]} bytes are not a whole number of pages of {self.page_size}")
        if self._packer.engine.train is NULL or self._packer.engine.trained_level != self.level:
            return False
        if n == 0:
            return True
        take(&self._packer.claim, f"{self.engine} Packer")
        with nogil:
            status = vmd_packer_train(&self._packer, &pages[0], n)
        vmd_claim_drop(&self._packer.claim)
        if status != VMD_OK:
            raise MemoryError(f"engine {self.engine}: no memory to train it")
        return True

    def pack(self, mem not None, uint8_t[::1] out not None, uint32_t[::1] sizes not None) -> int:
        """Pack pages. The memory may change meanwhile: each page becomes what it was at some moment.

        Parameters
        ----------
        mem : PageScan, or (n * page_size,) uint8, C-contiguous, may be read-only
            The pages.
        out : (m,) uint8, C-contiguous, writable
            ``m >= bound(n)``; what lies behind the bytes used is scratch.
        sizes : (n,) uint32, C-contiguous, writable
            Bytes of each page in `out`: 0 for zero and `SAME_SIZE` for one that holds what is known of it, of
            which nothing is stored; `page_size` for plain; else those of one compressed stream.

        Returns
        -------
        int
            Bytes of `out` that are used; page after page without gaps.

        Raises
        ------
        ValueError
            The lengths do not match.
        CodecError
            The engine failed; `page` is the index in this call.
        OSError
            As of `PageScan.read`.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef PageScan pages = mem if isinstance(mem, PageScan) else PageScan(mem, self.page_size)
        cdef size_t n = sizes.shape[0], cap = out.shape[0], used = 0, bad = 0
        cdef int status, error = 0
        if pages.scan.page_count != n or pages.scan.page_size != self.page_size:
            raise ValueError(
                f"{pages.page_count} pages of {pages.page_size} bytes are not {n} pages of {self.page_size}"
            )
        if cap < vmd_pack_bound(&self._packer, n):
            raise ValueError(f"out has {cap} bytes; {n} pages need {self.bound(n)}")
        if n == 0:
            return 0
        take(&self._packer.claim, f"{self.engine} Packer")
        with nogil:
            status = vmd_pack(&self._packer, &pages.scan, &out[0], cap, &sizes[0], &used, &bad, &error)
        vmd_claim_drop(&self._packer.claim)
        if status == VMD_ERRNO:
            raise_read_error(error)
        if status != VMD_OK:
            raise CodecError(f"{self.engine} failed to compress page {bad}", engine=self.engine, page=bad)
        return used
