"""Dumps that have pieces of the guest's blocks: what is between them is excluded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.guest.blocks import MIN_PAGE_SIZE, Block, BlockList, block_bounds
from vmdump.guest.pieces import join_pieces
from vmdump.guest.whole import runs_of_pages
from vmdump.readers.dump import Dump

__all__ = ["PieceList", "PiecesDump"]

_MAX_EXCLUDED = 1 << 52
"""Bytes: what processors can address. Whoever looks for excluded pages goes through all of them."""


class PieceList:
    """The guest's blocks, and the pieces of them that are in the dump.

    Parameters
    ----------
    pieces : sequence of Block
        Sorted, not overlapping.
    table : (n, 2) uint64
        ``[begin, end)`` of the guest's blocks.
    path : str
        Named in errors.

    Attributes
    ----------
    blocks : BlockList
        The guest's.

    Raises
    ------
    FormatError
        A piece is in no block, a block ends before it begins, or too much memory is excluded.
    LayoutError
        The blocks overlap, or there is none.
    """

    def __init__(self, pieces: Sequence[Block], table: NDArray[np.uint64], path: str) -> None:
        begins, ends = table[:, 0], table[:, 1]
        if (ends <= begins).any():
            raise FormatError("a block of the guest ends before it begins", path=path)
        join = join_pieces(pieces)
        self.blocks = BlockList(
            begins, ends - begins, lambda index: join(int(begins[index]), int(ends[index]))
        )
        starts, sizes = block_bounds(pieces)
        stops = starts + sizes
        home = np.searchsorted(begins, starts, side="right") - 1
        if (home < 0).any() or (stops > ends[home]).any() or (stops <= starts).any():
            raise FormatError("a PT_LOAD is outside the guest's blocks that a note tells", path=path)
        # Between two of these one after the other there is a gap, which may be empty.
        self._gap_begins = np.sort(np.concatenate((begins, stops)))
        self._gap_ends = np.sort(np.concatenate((starts, ends)))
        if sum((self._gap_ends - self._gap_begins).tolist()) > _MAX_EXCLUDED:
            raise FormatError("more memory is excluded than a machine can address", path=path)
        self._blocks_bounds = begins, ends
        self._pieces_bounds = starts, stops
        self._gaps: dict[int, NDArray[np.uint64]] = {}

    def page_size(self, largest: int, smallest: int) -> int:
        """Halve the largest page size until what is excluded inside blocks is made of whole pages."""
        begins, ends = self._blocks_bounds
        gap = self._gap_begins < self._gap_ends
        cuts = [
            self._gap_begins[gap & ~np.isin(self._gap_begins, begins)],
            self._gap_ends[gap & ~np.isin(self._gap_ends, ends)],
        ]
        bits = int(np.bitwise_or.reduce(np.concatenate(cuts)))
        while largest > smallest and bits % largest:
            largest //= 2
        return largest

    def excluded_size(self, page_size: int) -> int:
        """Count the bytes of the pages of this size that are excluded."""
        gaps = self._excluded_runs(page_size)
        return int((gaps[:, 1] - gaps[:, 0]).sum(dtype=np.uint64)) * page_size

    def _excluded_runs(self, page_size: int) -> NDArray[np.uint64]:
        """Give the runs of excluded pages; a page of which a part is in the dump is not excluded."""
        if page_size in self._gaps:
            return self._gaps[page_size]
        guest, there = (
            runs_of_pages(begins, ends - begins, page_size)
            for begins, ends in (self._blocks_bounds, self._pieces_bounds)
        )
        begins = np.sort(np.concatenate((guest[:, 0], there[:, 1])))
        ends = np.sort(np.concatenate((there[:, 0], guest[:, 1])))
        kept = begins < ends
        gaps = self._gaps[page_size] = np.stack((begins[kept], ends[kept]), axis=1)
        return gaps

    def runs(self, page_size: int) -> Iterator[tuple[int, int]]:
        """Give the runs of pages that are not excluded: frame numbers ``[begin, end)``, ascending."""
        begins, ends = self._pieces_bounds
        yield from map(tuple, runs_of_pages(begins, ends - begins, page_size).tolist())

    def excluded(self, pfn: int, count: int, page_size: int) -> NDArray[np.bool_]:
        """Tell which of `count` pages from `pfn` on are excluded."""
        gaps = self._excluded_runs(page_size)
        begin, end = pfn, pfn + count
        low = int(np.searchsorted(gaps[:, 1], np.uint64(begin), side="right"))
        high = int(np.searchsorted(gaps[:, 0], np.uint64(end), side="left"))
        steps = np.zeros(count + 1, np.int32)
        np.add.at(steps, np.maximum(gaps[low:high, 0], np.uint64(begin)) - np.uint64(begin), 1)
        np.add.at(steps, np.minimum(gaps[low:high, 1], np.uint64(end)) - np.uint64(begin), -1)
        result: NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
        return result


class PiecesDump(Dump):
    """A dump that may have only pieces of the guest's blocks; `_pieces` is set before the blocks are."""

    _pieces: PieceList | None = None

    @cached_property
    def excluded_size(self) -> int:
        """Bytes of the pages that are in no piece."""
        return 0 if self._pieces is None else self._pieces.excluded_size(self.page_size)

    def _natural_page_size(self) -> int:
        size = super()._natural_page_size()
        return size if self._pieces is None else self._pieces.page_size(size, MIN_PAGE_SIZE)

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages of the guest's blocks are in no piece; None if all are."""
        return None if self._pieces is None else self._pieces.excluded(pfn, count, self.page_size)

    def _runs(self) -> Iterator[tuple[int, int]]:
        yield from super()._runs() if self._pieces is None else self._pieces.runs(self.page_size)
