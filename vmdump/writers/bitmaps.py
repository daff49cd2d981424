"""The bitmaps of a kdump file: which pages the guest has, and which of them are in the dump."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter

import numpy as np

from vmdump.guest.blocks import Pages
from vmdump.guest.excluded import excluded_masks
from vmdump.guest.guest import Guest
from vmdump.kernels.bits import set_range
from vmdump.writers.lanes import Lane

__all__ = ["bitmap_windows", "without", "write_bitmap"]

_WINDOW = 1 << 16
"""Bytes of a bitmap made at a time: 2 GiB of guest memory in 4 KiB pages. A single page takes as much."""


def write_bitmap(
    lane: Lane, ranges: Sequence[tuple[int, int]], size: int, excluding: Guest | None = None
) -> None:
    """Write a bitmap.

    Parameters
    ----------
    lane : Lane
        Where it goes.
    ranges : sequence of (int, int)
        Pages whose bits are set: ``[begin, end)``, ascending.
    size : int
        Bytes of the bitmap.
    excluding : Guest, optional
        Whose excluded pages have no bit.
    """
    first_pfn = 0
    for length, window in bitmap_windows(ranges, size):
        if window is None:
            lane.skip(length)
        else:
            if excluding is not None and excluding.excluded_size:
                _clear_excluded(excluding, window, first_pfn, ranges)
            if window.any():
                lane.write(window)
            else:
                lane.skip(length)
        first_pfn += 8 * length


def without(ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Take ranges out of ranges; both ascending, and one that is taken out may reach over several."""
    left = []
    at = 0
    for begin, end in ranges:
        while at < len(taken) and taken[at][0] < end:
            left.append((begin, taken[at][0]))
            begin = max(begin, taken[at][1])
            if taken[at][1] > end:
                break
            at += 1
        left.append((begin, end))
    return [(begin, end) for begin, end in left if begin < end]


def bitmap_windows(ranges: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, Pages | None]]:
    """Give a bitmap in windows of 64 KiB.

    Parameters
    ----------
    ranges : sequence of (int, int)
        Frame numbers ``[begin, end)`` whose bits are set, ascending.
    size : int
        Bytes of the bitmap.

    Yields
    ------
    length : int
        Bytes of the window.
    window : (length,) uint8 or None
        Valid until the next one is asked for; None if no bit is set.
    """
    window = np.empty(min(size, _WINDOW), np.uint8)
    first = 0
    for begin in range(0, size, _WINDOW):
        length = min(size - begin, _WINDOW)
        first_pfn, end_pfn = 8 * begin, 8 * (begin + length)
        while first < len(ranges) and ranges[first][1] <= first_pfn:
            first += 1
        index = first
        if index < len(ranges) and ranges[index][0] < end_pfn:
            window[:length] = 0
        while index < len(ranges) and ranges[index][0] < end_pfn:
            low, high = ranges[index]
            set_range(window[:length], max(low, first_pfn) - first_pfn, min(high, end_pfn) - first_pfn)
            index += 1
        yield length, window[:length] if index > first else None


def _clear_excluded(guest: Guest, window: Pages, first_pfn: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Clear the bits of excluded pages in the window that begins with `first_pfn`, a multiple of 8."""
    end_pfn = first_pfn + 8 * window.size
    for index in range(bisect_right(ranges, first_pfn, key=itemgetter(1)), len(ranges)):
        low, high = ranges[index]
        if low >= end_pfn:
            break
        for pfn, mask in excluded_masks(guest, max(low, first_pfn), min(high, end_pfn)):
            lead = (pfn - first_pfn) % 8
            bits = np.packbits(np.concatenate((np.zeros(lead, np.bool_), mask)), bitorder="little")
            at = (pfn - first_pfn) // 8
            window[at : at + bits.size] &= ~bits
