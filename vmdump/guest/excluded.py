"""Pages that are in a guest and excluded from its dump; asked for in windows, so that masks stay small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.memory import GuestMemory
from vmdump.guest.whole import page_runs

__all__ = ["count_excluded", "excluded_masks", "excluded_ranges", "nth_page", "partly_excluded"]

_WINDOW = 1 << 18
"""Pages asked for together: a quarter of a MiB of answers."""


def excluded_masks(
    guest: GuestMemory, begin_pfn: int, end_pfn: int
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Tell which pages of ``[begin_pfn, end_pfn)`` are excluded, in windows of which at least one page is.

    Yields
    ------
    pfn, mask
        The first page of the window, and which of its pages are excluded.
    """
    if not guest.excluded_size:
        return
    for pfn in range(begin_pfn, end_pfn, _WINDOW):
        mask = guest.excluded_pages(pfn, min(_WINDOW, end_pfn - pfn))
        if mask is not None and mask.any():
            yield pfn, mask


def count_excluded(guest: GuestMemory, begin_pfn: int, end_pfn: int) -> int:
    """Count the excluded pages of ``[begin_pfn, end_pfn)``."""
    return sum(int(np.count_nonzero(mask)) for _, mask in excluded_masks(guest, begin_pfn, end_pfn))


def excluded_ranges(guest: GuestMemory, begin: int, end: int) -> NDArray[np.int64]:
    """Give the guest-physical ranges inside ``[begin, end)`` that are excluded.

    Returns
    -------
    (n, 2) int64
        ``[begin, end)`` of each, in bytes counted from `begin`, ascending; they do not touch.
    """
    page_size = guest.page_size
    first, last = begin // page_size, -(-end // page_size)
    found = []
    for pfn, mask in excluded_masks(guest, first, last):
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).astype(np.int64)
        found.append((edges + (pfn - first)).reshape(-1, 2))
    if not found:
        return np.empty((0, 2), np.int64)
    ranges = np.concatenate(found) * page_size - (begin - first * page_size)
    ranges = np.clip(ranges, 0, end - begin)
    # A range that was cut by a window goes on in the next one.
    apart = ranges[1:, 0] > ranges[:-1, 1]
    return np.stack(
        (ranges[np.concatenate(([True], apart)), 0], ranges[np.concatenate((apart, [True])), 1]), axis=1
    )


def partly_excluded(guest: GuestMemory, pfn: int, count: int, page_size: int) -> NDArray[np.bool_]:
    """Tell of which pages a part, or all, is excluded.

    Parameters
    ----------
    guest : GuestMemory
        Whose own pages may have another size.
    pfn, count : int
        The pages, by frame number in units of `page_size`.
    page_size : int
        Bytes.

    Returns
    -------
    (count,) bool
    """
    begin, end = pfn * page_size, (pfn + count) * page_size
    first, last = begin // guest.page_size, -(-end // guest.page_size)
    excluded = guest.excluded_pages(first, last - first)
    pages = np.zeros(count, np.bool_)
    if excluded is None:
        return pages
    unit = min(guest.page_size, page_size)
    units = np.repeat(excluded, guest.page_size // unit)
    skip = (begin - first * guest.page_size) // unit
    np.any(units[skip : skip + (end - begin) // unit].reshape(count, -1), axis=1, out=pages)
    return pages


def nth_page(guest: GuestMemory, index: int) -> int:
    """Give the frame number of a page by its number among those that are in the dump.

    Parameters
    ----------
    guest : Guest
        The guest.
    index : int
        From 0; smaller than the number of pages in the dump.
    """
    for begin, end in page_runs(guest.blocks, guest.page_size):
        here = end - begin - count_excluded(guest, begin, end)
        if index >= here:
            index -= here
            continue
        position = begin
        for pfn, mask in excluded_masks(guest, begin, end):
            kept = np.flatnonzero(~mask)
            if index < pfn - position:
                return position + index
            index -= pfn - position
            if index < kept.size:
                return pfn + int(kept[index])
            index -= kept.size
            position = pfn + mask.size
        return position + index
    raise ValueError("the dump has fewer pages")
