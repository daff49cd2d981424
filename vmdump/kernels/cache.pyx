"""The write cache: large aligned writes out of small ones, in front of a file descriptor."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint64_t

import errno
import fcntl
import os

from vmdump.errors import Cancelled

__all__ = ["WriteCache"]


cdef extern from "cache.h":
    enum:
        VMD_OK
        VMD_AGAIN
        VMD_ERRNO
        VMD_CACHE_ALIGN
    ctypedef struct vmd_claim "struct vmd_claim":
        pass
    ctypedef struct vmd_cache "struct vmd_cache":
        int seekable
        uint64_t written
        vmd_claim claim
    bint vmd_claim_take(vmd_claim *claim) noexcept nogil
    void vmd_claim_drop(vmd_claim *claim) noexcept nogil
    int vmd_cache_open(
        vmd_cache *cache, int fd, int direct_fd, int seekable, size_t capacity, uint64_t offset
    ) noexcept nogil
    void vmd_cache_close(vmd_cache *cache) noexcept nogil
    uint64_t vmd_cache_position(const vmd_cache *cache) noexcept nogil
    int vmd_cache_write(
        vmd_cache *cache, const uint8_t *data, size_t size, size_t *taken, int *error
    ) noexcept nogil
    int vmd_cache_flush(vmd_cache *cache, int *error) noexcept nogil
    void vmd_cache_move(vmd_cache *cache, uint64_t offset) noexcept nogil


@cython.final
cdef class WriteCache:
    """Coalesces writes in front of a file descriptor; for one thread at a time.

    After a failure of any kind nothing more is written: what was buffered is dropped, and every further call
    raises the first error again. The descriptors are the caller's, who also closes them.

    Parameters
    ----------
    fd : int
        Open for writing, without O_APPEND if `seekable`.
    seekable : bool
        True: written with pwrite() at tracked offsets. False: a pipe or socket, written in order and never
        waited for longer than 100 ms at a time; or a terminal, for which only a signal ends a wait.
    capacity : int
        Bytes of the buffer, a positive multiple of 4096. A write of at least this much, or of 256 KiB,
        bypasses the buffer.
    direct_fd : int
        The same file opened with O_DIRECT, for whatever is aligned and has 64 KiB, or -1. Not used if not
        `seekable`.
    offset : int
        File offset of the first byte.

    Attributes
    ----------
    position : int
        File offset of the next byte that is appended.
    bytes_written : int
        Bytes that the kernel has taken.

    Raises
    ------
    ValueError
        `capacity` or `offset` is out of range, or `fd` appends.
    """

    cdef vmd_cache _cache
    cdef bint _open
    cdef int _failure

    def __cinit__(self, int fd, *, bint seekable, capacity=4 << 20, int direct_fd=-1, offset=0):
        if capacity <= 0 or capacity % VMD_CACHE_ALIGN:
            raise ValueError(f"capacity: {capacity} is no positive multiple of {VMD_CACHE_ALIGN}")
        _check_offset(offset)
        # Linux ignores the offset of pwrite() with O_APPEND.
        if seekable and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            raise ValueError(f"descriptor {fd} appends, so it cannot be written at chosen offsets")
        if vmd_cache_open(&self._cache, fd, direct_fd, seekable, capacity, offset) != VMD_OK:
            raise MemoryError(f"no memory for a write cache of {capacity} bytes")
        self._open = True

    def __dealloc__(self):
        if self._open:
            vmd_cache_close(&self._cache)

    @property
    def position(self) -> int:
        """File offset of the next byte that is appended."""
        return vmd_cache_position(&self._cache)

    @property
    def bytes_written(self) -> int:
        """Bytes that the kernel has taken."""
        return self._cache.written

    def write(self, const uint8_t[::1] data not None, cancelled=None) -> None:
        """Append bytes at the current position.

        Parameters
        ----------
        data : (n,) uint8, C-contiguous, may be read-only
            Free for reuse afterwards.
        cancelled : callable or None
            Asked between attempts to write; nothing more is written once it returns true.

        Raises
        ------
        OSError
            A write failed; `errno` says how.
        Cancelled
            `cancelled` returned true.
        RuntimeError
            Another thread is in a call of this object.
        """
        if data.shape[0]:
            self._run(&data[0], data.shape[0], cancelled, -1)

    def flush(self, cancelled=None) -> None:
        """Hand everything to the kernel. Parameters and errors as of `write`."""
        self._run(NULL, 0, cancelled, -1)

    def seek(self, offset, cancelled=None) -> None:
        """Go on writing elsewhere; what is skipped stays a hole. Parameters and errors as of `write`.

        Parameters
        ----------
        offset : int
            File offset of the next byte; if it is not the current one, everything is flushed first.
        cancelled : callable or None
            As of `write`.

        Raises
        ------
        ValueError
            The file is not seekable, or the offset is out of range.
        """
        if not self._cache.seekable:
            raise ValueError("a pipe, socket or terminal has no other file offset")
        _check_offset(offset)
        if offset != self.position:
            self._run(NULL, 0, cancelled, offset)

    cdef int _run(self, const uint8_t *data, size_t size, cancelled, int64_t move_to) except -1:
        """Write `data`, or flush if it is NULL, then move unless -1; every way out but success is final."""
        if not vmd_claim_take(&self._cache.claim):
            raise RuntimeError("this WriteCache is in use by another thread")
        try:
            if self._failure:
                raise OSError(self._failure, os.strerror(self._failure))
            try:
                self._attempts(data, size, cancelled)
                if move_to >= 0:
                    vmd_cache_move(&self._cache, move_to)
            except BaseException:
                self._failure = self._failure or errno.ECANCELED
                raise
        finally:
            vmd_claim_drop(&self._cache.claim)
        return 0

    cdef int _attempts(self, const uint8_t *data, size_t size, cancelled) except -1:
        cdef size_t taken = 0
        cdef int status = VMD_AGAIN, error = 0
        while status == VMD_AGAIN:
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled while writing")
            with nogil:
                if data is NULL:
                    status = vmd_cache_flush(&self._cache, &error)
                else:
                    status = vmd_cache_write(&self._cache, data, size, &taken, &error)
            if status == VMD_AGAIN:
                PyErr_CheckSignals()
        if status == VMD_ERRNO:
            self._failure = error
            raise OSError(error, os.strerror(error))
        return 0


def _check_offset(offset) -> None:
    if not 0 <= offset < 1 << 63:
        raise ValueError(f"offset: {offset} is no file offset")
