"""Which memory two guests have in common, to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Block
from vmdump.units import merge_runs

__all__ = ["CommonMemory", "common_ranges"]

Range = tuple[int, int]


class CommonMemory:
    """The bytes that two guests have, of which one may have only a part of a page.

    Parameters
    ----------
    ours, others : sequence of Block
        Of the two guests.
    page_size : int
        Bytes.

    Attributes
    ----------
    size : int
        All bytes that both have.
    """

    def __init__(self, ours: Sequence[Block], others: Sequence[Block], page_size: int) -> None:
        # Joined where they touch: a dump does not tell where one block ends and the next begins.
        mine, theirs = (
            list(merge_runs((block.start, block.end) for block in blocks)) for blocks in (ours, others)
        )
        ranges = list(common_ranges(mine, theirs))
        self.size = sum(end - begin for begin, end in ranges)
        # With the last byte, and not what is behind it: that may be 2^64.
        table = np.array([(begin, end - 1) for begin, end in ranges], np.uint64).reshape(-1, 2)
        self._begins, self._lasts = table.T
        self._page_size = page_size
        size = np.uint64(page_size)
        self._first, self._last = self._begins // size, self._lasts // size
        # What ranges have of the pages in which they begin and end; all others in them are theirs as a whole.
        one = self._first == self._last
        head = (
            np.where(one, self._lasts, self._first * size + (size - np.uint64(1)))
            - self._begins
            + np.uint64(1)
        )
        tail = np.where(one, np.uint64(0), self._lasts % size + np.uint64(1))
        self._pages, place = np.unique(np.concatenate((self._first, self._last)), return_inverse=True)
        self._held = np.zeros(len(self._pages), np.uint64)
        np.add.at(self._held, place, np.concatenate((head, tail)))

    def clear_others(self, begin: int, marks: NDArray[np.bool_]) -> None:
        """Take the marks away of bytes from an address on that only one of them has."""
        position = 0
        low, high = self._between(self._begins, self._lasts, begin, len(marks))
        for first, last in zip(self._begins[low:high].tolist(), self._lasts[low:high].tolist(), strict=True):
            marks[position : max(first - begin, 0)] = False
            position = last + 1 - begin
        marks[position:] = False

    def size_of(self, pfn: int, pages: NDArray[np.bool_]) -> int:
        """Count the bytes that both have of the pages from `pfn` on that are true."""
        low, high = self._between(self._first, self._last, pfn, len(pages))
        steps = np.zeros(len(pages) + 1, np.int64)
        start = np.uint64(pfn)
        np.add.at(steps, np.maximum(self._first[low:high], start) - start, 1)
        np.add.at(steps, np.minimum(self._last[low:high] + np.uint64(1) - start, np.uint64(len(pages))), -1)
        taken = pages & (np.cumsum(steps[:-1]) > 0)
        low, high = np.searchsorted(self._pages, np.array([pfn, pfn + len(pages)], np.uint64)).tolist()
        lacks = np.uint64(self._page_size) - self._held[low:high]
        lacking = int(lacks[taken[self._pages[low:high].astype(np.int64) - pfn]].sum(dtype=np.uint64))
        return int(np.count_nonzero(taken)) * self._page_size - lacking

    @staticmethod
    def _between(
        firsts: NDArray[np.uint64], lasts: NDArray[np.uint64], begin: int, count: int
    ) -> tuple[int, int]:
        """Find the ranges of which a part is in ``[begin, begin + count)``."""
        low = int(np.searchsorted(lasts, np.uint64(begin)))
        return low, int(np.searchsorted(firsts, np.uint64(begin + count - 1), side="right"))


def common_ranges(ours: list[Range], others: list[Range]) -> Iterator[Range]:
    """Give what is in both; each is ascending, and its ranges do not touch."""
    left, right = ours[::-1], others[::-1]
    while left and right:
        begin, end = max(left[-1][0], right[-1][0]), min(left[-1][1], right[-1][1])
        if begin < end:
            yield begin, end
        (left if left[-1][1] <= right[-1][1] else right).pop()
