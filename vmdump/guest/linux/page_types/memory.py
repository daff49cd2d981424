"""Memory of which some pages are left out: they are zero, and are not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Block, BlockList, FileRuns, Memory, Pages, file_runs, read_into

__all__ = ["Excluded", "without_pages"]

Excluded = Callable[[int, int], NDArray[np.bool_]]
"""``(pfn, count) -> (count,) bool``: which pages are left out."""

_WINDOW = 1 << 18
"""Pages asked for together."""
_SHORT = 64 << 10
"""Bytes left out that are read along: a call takes as long as some 16 pages."""


def without_pages(blocks: Sequence[Block], excluded: Excluded, page_size: int) -> Sequence[Block]:
    """Give blocks without some of their pages.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted.
    excluded : callable
        Which pages are left out.
    page_size : int
        Bytes.
    """

    def make(start: int, memory: Memory) -> _PartialMemory:
        return _PartialMemory(memory, start, excluded, page_size)

    if isinstance(blocks, BlockList):
        return BlockList(
            blocks.starts, blocks.sizes, lambda index: make(blocks[index].start, blocks[index].memory)
        )
    return tuple(Block(block.start, make(block.start, block.memory)) for block in blocks)


class _PartialMemory:
    copies = True

    def __init__(self, memory: Memory, start: int, excluded: Excluded, page_size: int) -> None:
        self._memory = memory
        self._start = start
        self._excluded = excluded
        self._page_size = page_size
        self.size = memory.size

    def _kept(self, offset: int, length: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]] | None:
        """Tell which pages of a range are left out, and give the ranges that are not; None if all are there.

        Returns
        -------
        mask : (n,) bool
            From the page of the first byte on.
        ranges : (m, 2) int64
            Bytes from `offset` on, ascending.
        """
        begin, size = self._start + offset, self._page_size
        first, last = begin // size, -(-(begin + length) // size)
        mask = self._excluded(first, last - first)
        if not mask.any():
            return None
        edges = np.flatnonzero(np.diff(~mask, prepend=False, append=False)).astype(np.int64)
        ranges = edges.reshape(-1, 2) * size - (begin - first * size)
        return mask, np.clip(ranges, 0, length)

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the runs that may hold data; those with a few pages left out between them as one."""
        window = _WINDOW * self._page_size
        for begin, end in self._memory.extents():
            for offset in range(begin, end, window):
                length = min(window, end - offset)
                found = self._kept(offset, length)
                if found is None:
                    yield offset, offset + length
                    continue
                yield from ((offset + low, offset + high) for low, high in _joined(found[1]).tolist())

    def file_runs(self, offset: int, length: int) -> FileRuns | None:
        """Give the data runs inside that are not left out; None where they are in no file."""
        runs = file_runs(self._memory, offset, length)
        found = self._kept(offset, length) if runs else None
        if runs is None or found is None:
            return runs
        kept = found[1]
        result: FileRuns = []
        for begin, end, fd, position in runs:
            first = int(np.searchsorted(kept[:, 1], begin, side="right"))
            last = int(np.searchsorted(kept[:, 0], end))
            pieces = np.clip(kept[first:last], begin, end)
            places = pieces[:, 0] - begin + position
            result += [
                (low, high, fd, place)
                for (low, high), place in zip(pieces.tolist(), places.tolist(), strict=True)
            ]
        return result

    def view_without(self, offset: int, length: int, scratch: Pages, without: NDArray[np.bool_]) -> Pages:
        """Read whole pages that are not left out, but those of `without`, which may hold anything."""
        view_without = getattr(self._memory, "view_without", None)
        if view_without is None:
            return self.view(offset, length, scratch)
        found = self._kept(offset, length)
        pages: Pages = view_without(offset, length, scratch, without if found is None else without | found[0])
        return pages

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Read what is not left out; the rest is zero."""
        found = self._kept(offset, length)
        if found is None:
            return self._memory.view(offset, length, scratch)
        mask, kept = found
        lead = (self._start + offset) % self._page_size
        whole = lead == 0 and length % self._page_size == 0
        view_without = getattr(self._memory, "view_without", None)
        if whole and view_without is not None:
            # Pages that are packed one by one: none of those left out is unpacked.
            pages: Pages = view_without(offset, length, scratch, mask)
            return pages
        out = scratch[:length]
        out[:] = 0
        for low, high in _joined(kept).tolist():
            read_into(self._memory, offset + low, out[low:high])
        if whole:
            out.reshape(-1, self._page_size)[mask] = 0
            return out
        for low, high in zip(kept[:-1, 1].tolist(), kept[1:, 0].tolist(), strict=True):
            out[low:high] = 0
        return out


def _joined(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Make one of ranges that lie near each other."""
    if len(ranges) < 2:
        return ranges
    far = np.flatnonzero(ranges[1:, 0] - ranges[:-1, 1] >= _SHORT)
    return np.stack((ranges[np.append(0, far + 1), 0], ranges[np.append(far, len(ranges) - 1), 1]), axis=1)
