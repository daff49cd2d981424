"""What makes a stream that breaks off readable up to there: bitmap and descriptors between the page data."""

from __future__ import annotations

from collections.abc import Sequence

from vmdump.units import merge_runs
from vmdump.writers.bitmaps import bitmap_windows
from vmdump.writers.descriptors import DescriptorTable
from vmdump.writers.lanes import Lane
from vmdump.writers.pagedata import PageData

__all__ = ["Checkpoints"]

_FIRST = 1 << 20
_SHARE = 32
"""Checkpoints are 1 MiB of page data apart, and later a 32nd of what is written: 1 TiB has 370 of them.
Readers sort records by insertion, so that many small ones, as QEMU writes them, take long to open."""


class Checkpoints:
    """Writes the second bitmap and the descriptors of a flattened file as far as they are known.

    Parameters
    ----------
    table : Lane
        Where descriptors go.
    bitmap : Lane or None
        Where the second bitmap goes; None if all of it is there already.
    bitmap_size : int
        Its bytes.
    begin : int
        Offset at which page data begin.
    """

    def __init__(self, table: Lane, bitmap: Lane | None, bitmap_size: int, begin: int) -> None:
        self._table = table
        self._bitmap = bitmap
        self._bits = 8 * bitmap_size
        self._present: list[tuple[int, int]] = []
        self._written = 0
        self._begin = begin
        self._next = begin + _FIRST

    def add(self, present: Sequence[tuple[int, int]], data: PageData) -> bool:
        """Note pages that are in the dump, ascending; tell whether it is time to write."""
        last = self._present[-1:]
        self._present[-1:] = merge_runs([*last, *present])
        return data.next_offset >= self._next

    def write(self, data: PageData, descriptors: DescriptorTable, end_pfn: int) -> None:
        """Write everything about the pages below `end_pfn`."""
        data.finish()
        descriptors.finish(self._table)
        self._write_bitmap(end_pfn // 8 * 8)
        done = data.next_offset - self._begin
        self._next = data.next_offset + max(_FIRST, done // _SHARE)

    def finish(self, data: PageData, descriptors: DescriptorTable) -> None:
        """Write the rest."""
        self.write(data, descriptors, self._bits)

    def _write_bitmap(self, end: int) -> None:
        """Write the bits up to `end`, a multiple of 8."""
        if self._bitmap is None:
            return
        begin, self._written = self._written, end
        ranges = [(low - begin, min(high, end) - begin) for low, high in self._present if low < end]
        self._present = [(max(low, end), high) for low, high in self._present if high > end]
        for length, window in bitmap_windows(ranges, (end - begin) // 8):
            if window is None:
                self._bitmap.skip(length)
            else:
                self._bitmap.write(window)
        self._bitmap.finish()
