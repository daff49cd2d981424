"""Where a pattern is in a buffer."""

from libc.stdint cimport uint8_t, uint64_t

import numpy as np

__all__ = ["find_all", "period_of"]

cdef enum:
    _ROOM = 4096  # offsets that are found between two allocations


def period_of(const uint8_t[::1] pattern not None) -> int:
    """Give the smallest distance at which a pattern can overlap itself.

    Parameters
    ----------
    pattern : (m,) uint8, C-contiguous, may be read-only
        m > 0.

    Returns
    -------
    int
        From 1, of equal bytes, to m, of a pattern that cannot.
    """
    cdef size_t size = pattern.shape[0], at, border = 0
    if size == 0:
        raise ValueError("the pattern is empty")
    table = np.zeros(size, dtype=np.uint64)
    cdef uint64_t[::1] borders = table
    with nogil:
        # Of each beginning of the pattern, the longest proper beginning that is its end as well.
        for at in range(1, size):
            while border and pattern[at] != pattern[border]:
                border = borders[border - 1]
            if pattern[at] == pattern[border]:
                border += 1
            borders[at] = border
    return size - border


def find_all(const uint8_t[::1] data not None, const uint8_t[::1] pattern not None, period):
    """Find all places of a pattern, those that overlap included.

    Parameters
    ----------
    data : (n,) uint8, C-contiguous, may be read-only
        Where it is looked for. May change meanwhile: then what is found was there at some moment.
    pattern : (m,) uint8, C-contiguous, may be read-only
        m > 0.
    period : int
        What :func:`period_of` gives.

    Returns
    -------
    (k,) uint64
        Offsets in `data`, ascending.
    """
    cdef size_t data_len = data.shape[0], pattern_len = pattern.shape[0], at = 0, count = 0
    cdef size_t distance = period
    if pattern_len == 0 or distance == 0 or distance > pattern_len:
        raise ValueError(f"a period of {distance} and a pattern of {pattern_len} bytes")
    cdef uint64_t[::1] out
    parts = []
    while at < data_len:
        part = np.empty(_ROOM, dtype=np.uint64)
        out = part
        with nogil:
            vmd_find(
                &data[0], data_len, &pattern[0], pattern_len, distance, &out[0], _ROOM, &at, &count
            )
        parts.append(part[:count])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
