"""Pages that are in a guest and excluded from its dumps: found in windows, so that masks stay small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.guest import Guest
from vmdump.guest.whole import page_runs
from vmdump.pipeline.plan import Slice

__all__ = ["count_excluded", "excluded_ranges", "masks", "nth_page", "segments"]

_WINDOW = 1 << 18
"""Pages asked for together: a quarter of a MiB of answers."""


def masks(guest: Guest, begin_pfn: int, end_pfn: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
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


def count_excluded(guest: Guest, begin_pfn: int, end_pfn: int) -> int:
    """Count the excluded pages of ``[begin_pfn, end_pfn)``."""
    return sum(int(np.count_nonzero(mask)) for _, mask in masks(guest, begin_pfn, end_pfn))


def excluded_ranges(guest: Guest, begin: int, end: int) -> NDArray[np.int64]:
    """Give the guest-physical ranges inside ``[begin, end)`` that are excluded.

    Returns
    -------
    (n, 2) int64
        ``[begin, end)`` of each, in bytes counted from `begin`, ascending; they do not touch.
    """
    page_size = guest.page_size
    first, last = begin // page_size, -(-end // page_size)
    found = []
    for pfn, mask in masks(guest, first, last):
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


def segments(guest: Guest, slices: Sequence[Slice]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Cut slices into the ranges that are in the dump.

    Returns
    -------
    starts, sizes : (n,) uint64
        Guest-physical address of the first byte, and bytes, of each range; ascending.
    """
    if not guest.excluded_size:
        starts, sizes = [piece.start for piece in slices], [piece.size for piece in slices]
        return np.array(starts, np.uint64), np.array(sizes, np.uint64)
    all_starts, all_ends = [], []
    for piece in slices:
        excluded = excluded_ranges(guest, piece.start, piece.start + piece.size)
        begins = np.concatenate(([0], excluded[:, 1]))
        ends = np.concatenate((excluded[:, 0], [piece.size]))
        kept = begins < ends
        all_starts.append(begins[kept].astype(np.uint64) + np.uint64(piece.start))
        all_ends.append(ends[kept].astype(np.uint64) + np.uint64(piece.start))
    starts_, ends_ = np.concatenate(all_starts), np.concatenate(all_ends)
    return starts_, ends_ - starts_


def nth_page(guest: Guest, index: int) -> int:
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
        for pfn, mask in masks(guest, begin, end):
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
