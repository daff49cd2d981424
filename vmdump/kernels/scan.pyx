"""The pages of a chunk: gathered from files or in memory, and told apart as zero, known or new."""

cimport cython
from libc.stdint cimport uint8_t

from vmdump.kernels.hash cimport check_hashing
from vmdump.kernels.status cimport VMD_OK, raise_read_error
from vmdump.kernels.zero cimport zero_kernel

import numpy as np

__all__ = ["CLEARED", "NEW", "RUN_WORDS", "SAME", "ZERO", "PageScan"]

ZERO, SAME, CLEARED, NEW = VMD_PAGE_ZERO, VMD_PAGE_SAME, VMD_PAGE_CLEARED, VMD_PAGE_NEW
RUN_WORDS = sizeof(vmd_run) // 8


@cython.final
cdef class PageScan:
    """Pages as a kernel reads them: in memory, or in runs of files that it reads itself, 256 KiB at a time.

    Parameters
    ----------
    mem : (n * page_size,) uint8, C-contiguous, may be read-only, or None
        The pages. They may change meanwhile.
    page_size : int
        Bytes, > 0.
    runs : (m, 4) int64, C-contiguous, may be read-only, or None
        Instead of `mem`: begin and end in the chunk, descriptor, and file offset of the begin, all in bytes.
        They ascend and do not overlap; what no run covers is zero. The descriptors are the caller's.
    page_count : int
        Pages of the chunk, where `runs` are given.
    key : (KEY_WORDS,) uint64 or None
        Of the keyed hash, see `vmdump.kernels.hash`; without it nothing is hashed.
    hashes : (n,) uint64, writable, or None
        With `key`: receives the pages' hashes, 0 for pages of zeros.
    known : (n,) uint64, may be read-only, or None
        Hashes of what the pages held before, 0 for zeros or for what is not known.

    Raises
    ------
    ValueError
        A length is wrong, or runs do not ascend inside the chunk.
    """

    def __cinit__(self, mem, page_size, *, runs=None, page_count=0, key=None, hashes=None, known=None):
        if page_size <= 0:
            raise ValueError(f"page_size: {page_size} is not positive")
        self.scan.page_size = page_size
        self.scan.zero = zero_kernel(None)
        if mem is None:
            self._take_runs(runs, page_count)
        else:
            self._take_mem(mem)
        if key is not None:
            self._take_hashes(key, known, hashes)

    cdef int _take_mem(self, mem) except -1:
        self._mem = mem
        cdef size_t length = self._mem.shape[0]
        if length % self.scan.page_size:
            raise ValueError(f"{length} bytes are not a whole number of pages of {self.scan.page_size}")
        self.scan.page_count = length // self.scan.page_size
        if length:
            self.scan.bytes = &self._mem[0]

    cdef int _take_runs(self, runs, page_count) except -1:
        self._runs = runs
        self.scan.page_count, self.scan.run_count = page_count, self._runs.shape[0]
        if not self.scan.run_count:
            return 0
        if self._runs.shape[1] != RUN_WORDS:
            raise ValueError(f"runs: {self._runs.shape[1]} words each instead of {RUN_WORDS}")
        self.scan.runs = <const vmd_run *>&self._runs[0, 0]
        cdef int64_t size = page_count * self.scan.page_size
        cdef size_t bad = vmd_first_bad_run(self.scan.runs, self.scan.run_count, size)
        if bad < self.scan.run_count:
            raise ValueError(f"runs: run {bad} does not ascend inside {size} bytes")

    cdef int _take_hashes(self, key, known, hashes) except -1:
        self._key, self._hashes = key, hashes
        cdef size_t count = self.scan.page_count
        check_hashing(self.scan.page_size, self._key.shape[0])
        if self._hashes.shape[0] != <Py_ssize_t>count:
            raise ValueError(f"hashes: room for {self._hashes.shape[0]}, but there are {count} pages")
        if not count:
            return 0
        self.scan.key, self.scan.hashes = &self._key[0], &self._hashes[0]
        if known is not None:
            self._known = known
            if self._known.shape[0] != <Py_ssize_t>count:
                raise ValueError(f"known: {self._known.shape[0]} hashes, but there are {count} pages")
            self.scan.known = &self._known[0]

    @property
    def page_count(self) -> int:
        """Pages of the chunk."""
        return self.scan.page_count

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self.scan.page_size

    def read(self, uint8_t[::1] kinds not None, out=None):
        """Read the pages, and tell what they are.

        Parameters
        ----------
        kinds : (n,) uint8, C-contiguous, writable
            ZERO, SAME (not zero, of the known hash), CLEARED (zero, but was not when it became known) or NEW.
        out : (m,) uint8 array, C-contiguous, writable, or None
            ``m >= n * page_size``; receives the pages that are in runs. None: a new array does.

        Returns
        -------
        (n * page_size,) uint8 array
            The pages: a view of `out`; those in memory where they are, or a copy if they are hashed: what
            has a hash does not change.

        Raises
        ------
        ValueError
            A length is wrong.
        OSError
            A run could not be read; without an errno where a file ended.
        """
        cdef size_t n = self.scan.page_count, page_size = self.scan.page_size
        cdef int status, error = 0
        cdef bint gathered = self.scan.bytes is NULL, copied = self.scan.key is not NULL or gathered
        if kinds.shape[0] != <Py_ssize_t>n:
            raise ValueError(f"kinds: room for {kinds.shape[0]}, but there are {n} pages")
        if n == 0:
            return np.empty(0, np.uint8)
        if not copied:
            result = np.asarray(self._mem)
        elif out is None or not gathered:
            result = np.zeros(n * page_size, np.uint8)
        else:
            result = out[: n * page_size]
        cdef uint8_t[::1] target
        if copied:
            target = result
            if target.shape[0] != <Py_ssize_t>(n * page_size):
                raise ValueError(f"out has {target.shape[0]} bytes; {n} pages of {page_size} need more")
        with nogil:
            status = vmd_scan_chunk(&self.scan, &target[0] if copied else NULL, &kinds[0], &error)
        if status != VMD_OK:
            raise_read_error(error)
        return result
