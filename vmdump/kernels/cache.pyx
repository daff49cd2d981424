"""The write cache: large aligned writes out of small ones, in front of a file descriptor."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t

from vmdump.kernels.claim cimport take, vmd_claim_drop
from vmdump.kernels.status cimport VMD_AGAIN, VMD_ERRNO, VMD_OK

import errno
import fcntl
import os

from vmdump.errors import Cancelled

__all__ = ["WriteCache"]


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
        Bytes of the buffer, a positive multiple of 4096. Writes of that many, or of 256 KiB, bypass it.
    direct_fd : int
        The same file opened with O_DIRECT, for whatever is aligned and has 64 KiB, or -1. Not used if not
        `seekable`.
    offset : int
        File offset of the first byte.

    Raises
    ------
    ValueError
        `capacity` or `offset` is out of range, or `fd` appends.
    """

    cdef vmd_cache _cache

    def __cinit__(self, int fd, *, bint seekable, capacity=4 << 20, int direct_fd=-1, offset=0):
        if capacity <= 0 or capacity % VMD_CACHE_ALIGN:
            raise ValueError(f"capacity: {capacity} is not a positive multiple of {VMD_CACHE_ALIGN}")
        _check_offset(offset)
        # Linux ignores the offset of pwrite() with O_APPEND.
        if seekable and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            raise ValueError(f"descriptor {fd} appends: it ignores the offsets of writes")
        if vmd_cache_open(&self._cache, fd, direct_fd, seekable, capacity, offset) != VMD_OK:
            raise MemoryError(f"no memory for a write cache of {capacity} bytes")

    def __dealloc__(self):
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
            self._run(&data[0], data.shape[0], 0, cancelled)

    def flush(self, cancelled=None) -> None:
        """Hand everything to the kernel. Parameters and errors as of `write`."""
        self._run(NULL, 0, vmd_cache_position(&self._cache), cancelled)

    def seek(self, offset, cancelled=None) -> None:
        """Go on at another file offset, behind a flush; what is skipped stays a hole. Errors as of `write`.

        Raises
        ------
        ValueError
            The file is not seekable, or the offset is out of range.
        """
        if not self._cache.seekable:
            raise ValueError("a pipe, socket or terminal has no other file offset")
        _check_offset(offset)
        if offset != self.position:
            self._run(NULL, 0, offset, cancelled)

    cdef int _run(self, const uint8_t *data, size_t size, uint64_t next, cancelled) except -1:
        """Write `data`, or flush and go on at `next` if it is NULL; every way out but success is final."""
        cdef size_t taken = 0
        cdef int status = VMD_ERRNO if self._cache.failure else VMD_AGAIN
        take(&self._cache.claim, "WriteCache")
        try:
            while status == VMD_AGAIN:
                if cancelled is not None and cancelled():
                    raise Cancelled("cancelled while writing")
                with nogil:
                    if data is NULL:
                        status = vmd_cache_flush(&self._cache, next)
                    else:
                        status = vmd_cache_write(&self._cache, data, size, &taken)
                if status == VMD_AGAIN:
                    PyErr_CheckSignals()
        except BaseException:
            self._cache.failure = self._cache.failure or errno.ECANCELED
            raise
        finally:
            vmd_claim_drop(&self._cache.claim)
        if status == VMD_ERRNO:
            raise OSError(self._cache.failure, os.strerror(self._cache.failure))


def _check_offset(offset) -> None:
    if not 0 <= offset < 1 << 63:
        raise ValueError(f"offset: {offset} is not a file offset")
