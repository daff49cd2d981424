"""A kdump file that cannot be finished: its mark, and what tells where the pages are that it has."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vmdump.errors import VmdumpError
from vmdump.guest.excluded import count_excluded
from vmdump.guest.guest import Guest
from vmdump.guest.whole import page_runs
from vmdump.interrupts import Deferred
from vmdump.pipeline.ahead import PagesAhead
from vmdump.sinks.base import Sink
from vmdump.units import merge_runs
from vmdump.writers.bitmaps import without, write_bitmap
from vmdump.writers.descriptors import DescriptorTable
from vmdump.writers.kdump_head import KdumpHead, marked_incomplete
from vmdump.writers.lanes import FlattenedFile, Lane, PlainFile
from vmdump.writers.pagedata import PageData

__all__ = ["PartialKdump", "keep_flattened", "reserve_front"]

_BATCH = 1 << 16
"""Pages looked up together."""
_SPARSE = 64
"""Bitmaps that take more than this part of the memory are mostly holes: they are not reserved."""


def reserve_front(sink: Sink, guest: Guest, head: KdumpHead) -> None:
    """See to it that all in front of the page data can be written when the disk is full.

    Raises
    ------
    SinkError
        It is full already.
    """
    if sink.keeps and head.bitmap_size <= guest.size // _SPARSE + (1 << 20):
        sink.reserve(head.data_offset)


class PartialKdump(NamedTuple):
    """A file of the standard layout that cannot be finished.

    Attributes
    ----------
    guest : Guest
        Whose memory it is.
    head : KdumpHead
        Of the file.
    sink : Sink
        One that keeps.
    data, descriptors
        What was added of the pages.
    """

    guest: Guest
    head: KdumpHead
    sink: Sink
    data: PageData
    descriptors: DescriptorTable

    def keep(self, end_pfn: int, unreadable: Sequence[tuple[int, int]], ahead: PagesAhead | None) -> None:
        """Write all but page data; where that fails, it is not kept.

        Parameters
        ----------
        end_pfn : int
            All pages below it were added.
        unreadable : sequence of (int, int)
            Pages that the host could not read.
        ahead : PagesAhead or None
            Where the others are, if they were written before.
        """
        with Deferred(), contextlib.suppress(VmdumpError, OSError):
            with contextlib.suppress(VmdumpError, OSError):
                self.data.finish()
            guest, head, sink = self.guest, self.head, self.sink
            runs = page_runs(guest.blocks, guest.page_size)
            present = self._present(runs, head.begin_pfn, min(end_pfn, head.end_pfn), unreadable)
            most = _count(guest, present)
            if ahead is not None:
                rest = self._present(runs, max(end_pfn, head.begin_pfn), head.end_pfn, unreadable)
                most += self._add_ahead(rest, ahead)
                present = list(merge_runs([*present, *rest]))
            file = PlainFile(sink, _never)
            count = self.descriptors.finish_partly(file.lane(head.descriptors_offset), most, sink.end())
            if not count:
                return
            is_part = (head.begin_pfn, head.end_pfn) != (0, runs[-1][1])
            # Each part of a set has the bits of all pages.
            bits = without(runs, unreadable) if is_part else _first(guest, present, count)
            front = _Clearing(file.lane(0))
            front.write(marked_incomplete(head, guest).ljust(guest.page_size, b"\0"))
            front.write(head.content[guest.page_size :])
            write_bitmap(front, runs, head.bitmap_size)
            write_bitmap(front, bits, head.bitmap_size, excluding=guest)
            front.finish()
            sink.keep()

    @staticmethod
    def _present(
        runs: Sequence[tuple[int, int]], begin_pfn: int, end_pfn: int, unreadable: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        here = [(max(low, begin_pfn), min(high, end_pfn)) for low, high in runs]
        return without([(low, high) for low, high in here if low < high], unreadable)

    def _add_ahead(self, ranges: Sequence[tuple[int, int]], ahead: PagesAhead) -> int:
        """Add the places that pages have by now; give how many pages that are."""
        added = 0
        for begin, end in ranges:
            for pfn in range(begin, end, _BATCH):
                count = min(_BATCH, end - pfn)
                excluded = self.guest.excluded_pages(pfn, count)
                found = ahead.read(pfn, count)
                kept = np.ones(count, np.bool_) if excluded is None else ~excluded
                number = int(np.count_nonzero(kept))
                added += number
                if found is None:
                    self.descriptors.add_zero_pages(number)
                    continue
                hashes, places = found
                zeros = hashes == 0
                places["offset"][zeros] = self.data.zero_offset
                places["size"][zeros] = self.guest.page_size
                self.descriptors.add(places[kept])
        return added


def keep_flattened(guest: Guest, head: KdumpHead, sink: Sink, file: FlattenedFile) -> None:
    """End a flattened file behind its last record; where that fails, it is not kept."""
    with Deferred(), contextlib.suppress(VmdumpError, OSError):
        if file.cut(marked_incomplete(head, guest)):
            sink.keep()


def _never() -> bool:
    return False


def _count(guest: Guest, ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - begin - count_excluded(guest, begin, end) for begin, end in ranges)


def _first(guest: Guest, ranges: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Cut ranges of pages behind the first `count` that are not excluded."""
    first = []
    for begin, end in ranges:
        here = end - begin - count_excluded(guest, begin, end)
        if here > count:
            low, high = begin, end
            while low < high:
                middle = (low + high) // 2
                if middle - begin - count_excluded(guest, begin, middle) < count:
                    low = middle + 1
                else:
                    high = middle
            first.append((begin, low))
            break
        first.append((begin, end))
        count -= here
    return first


class _Clearing:
    """A lane in which what is skipped becomes zeros, whatever was there before."""

    def __init__(self, lane: Lane) -> None:
        self.write, self.finish = lane.write, lane.finish
        self.skip = self.clear = lane.clear
