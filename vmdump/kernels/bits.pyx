"""LSB-first bitmaps: bit i is bit ``i % 8`` of byte ``i // 8``. Ranges are half-open."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

import numpy as np

__all__ = ["count", "equal", "runs", "set_range"]


def _check_range(begin, end, size) -> None:
    if not 0 <= begin <= end:
        raise ValueError(f"bits [{begin}, {end}) are not a range")
    if end > 8 * size:
        raise IndexError(f"bits [{begin}, {end}) leave a bitmap of {8 * size} bits")


def set_range(uint8_t[::1] bits not None, begin, end) -> None:
    """Set the bits ``[begin, end)``.

    Parameters
    ----------
    bits : (n,) uint8, C-contiguous, writable
        The bitmap.
    begin, end : int
        ``0 <= begin <= end <= 8 * n``.

    Raises
    ------
    ValueError
        `begin` is negative or beyond `end`.
    IndexError
        `end` is beyond the bitmap.
    """
    _check_range(begin, end, bits.shape[0])
    cdef uint64_t first = begin, last = end
    if first < last:
        with nogil:
            vmd_bits_set_range(&bits[0], first, last)


def count(const uint8_t[::1] bits not None, begin, end) -> int:
    """Count the set bits of ``[begin, end)``; parameters and errors as of `set_range`, read-only allowed."""
    _check_range(begin, end, bits.shape[0])
    cdef uint64_t first = begin, last = end, result = 0
    if first < last:
        with nogil:
            result = vmd_bits_count(&bits[0], first, last)
    return result


def runs(const uint8_t[::1] bits not None, begin, end):
    """Find the runs of set bits of ``[begin, end)``; parameters and errors as of `count`.

    Returns
    -------
    (k, 2) uint64
        Ascending ``[begin, end)`` of each run; a run that leaves the window is cut.
    """
    _check_range(begin, end, bits.shape[0])
    cdef uint64_t first = begin, last = end
    cdef size_t found = 0
    if first < last:
        with nogil:
            found = vmd_bits_runs(&bits[0], first, last, NULL, <size_t>-1)
    result = np.empty((found, 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] view = result
    if found:
        with nogil:
            found = vmd_bits_runs(&bits[0], first, last, &view[0, 0], found)
    return result[:found]


def equal(const uint8_t[::1] a not None, const uint8_t[::1] b not None) -> bool:
    """Tell whether two buffers are equal; buffers of different lengths are not.

    Parameters
    ----------
    a, b : (n,) uint8, C-contiguous, may be read-only
        Any buffers.
    """
    cdef size_t size = a.shape[0]
    cdef int difference = 0
    if a.shape[0] != b.shape[0]:
        return False
    if size:
        with nogil:
            difference = memcmp(&a[0], &b[0], size)
    return difference == 0
