"""The kdump-zlib file that QEMU 7.2 writes, byte for byte, and as the same flattened records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.formats import kdump
from vmdump.formats.names import Layout
from vmdump.guest.blocks import Pages
from vmdump.guest.guest import Guest
from vmdump.pipeline.chunks import packed
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import whole_blocks
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.base import Plan, Writer, demand_seekable
from vmdump.writers.bitmaps import bitmap_windows
from vmdump.writers.compat.kdump_head import CompatHead, compat_head
from vmdump.writers.compat.target import ENGINE, LEVEL, make_compat_packer
from vmdump.writers.lanes import FlattenedFile, Lane, PlainFile
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Buffer

    _Put = Callable[[int, Buffer], None]

__all__ = ["CompatKdumpWriter"]

_CACHED_PAGES = 4
"""Pages for which QEMU has room before it writes a record: 16 KiB of data or descriptors, mostly."""
_BATCH = 1 << 16
"""Descriptors of a hole made at a time: 1.5 MiB."""


class CompatKdumpWriter(Writer):
    """The kdump-zlib file of QEMU 7.2.

    Parameters
    ----------
    layout : {"auto", "standard", "flattened"}
        auto is flattened, as QEMU's records are; standard is what ``makedumpfile -R`` makes of them.
    """

    codec = ENGINE
    engine = ENGINE
    level = LEVEL
    takes_found_vmcoreinfo = False

    def __init__(self, *, layout: Layout = "auto") -> None:
        self._layout = layout

    def layout_for(self, sink: Sink) -> Layout:
        """Tell in which layout it is written there."""
        if self._layout != "standard":
            return "flattened"
        demand_seekable(sink)
        return "standard"

    def plan(self, guest: Guest) -> CompatKdumpPlan:
        """Lay a guest out."""
        head = compat_head(guest)
        memory_size = sum(block.size for block in head.blocks)
        return CompatKdumpPlan(guest, guest.size, memory_size, self, head)


@dataclass(frozen=True)
class CompatKdumpPlan(Plan):
    """A guest laid out in QEMU's kdump file.

    Attributes
    ----------
    writer : CompatKdumpWriter
        Says in which layout it is written.
    head : CompatHead
        What stands in front, and where the rest goes.
    """

    writer: CompatKdumpWriter
    head: CompatHead

    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the records, or what they make."""
        flatten = self.writer.layout_for(sink) == "flattened"
        tally = Tally()
        file = (FlattenedFile if flatten else PlainFile)(sink, control.cancelled)
        self._write_file(file, tally, threads, control, release)
        file.finish()
        tally.output_bytes = file.size
        return tally

    def _write_file(
        self,
        file: FlattenedFile | PlainFile,
        tally: Tally,
        threads: int,
        control: Control,
        release: Callable[[], None],
    ) -> None:
        head = self.head
        if isinstance(file, FlattenedFile):
            put = put_descriptors = put_data = file.record
            lanes: tuple[Lane, ...] = ()
        else:
            put = partial(_put_alone, file)
            lanes = file.lane(head.descriptors_offset), file.lane(head.data_offset)
            put_descriptors, put_data = (partial(_append, lane) for lane in lanes)
        for offset, header in head.records:
            put(offset, header)
        for offset, bits in _bitmap_records(head):
            put(offset, bits)
        area = _PageArea(head, put_descriptors, put_data, tally)
        runs = packed(
            whole_blocks(head.blocks),
            lambda: make_compat_packer(head.page_size),
            page_size=head.page_size,
            threads=threads,
        )
        with closing(runs):
            for run, result in runs:
                if result is None:
                    area.add_zero_pages(run.length // head.page_size)
                    tally.hole_bytes += run.length
                else:
                    area.add(result.data, result.sizes)
                control.advance(run.length)
        release()
        area.finish()
        for lane in lanes:
            lane.finish()


def _bitmap_records(head: CompatHead) -> Iterator[tuple[int, Pages]]:
    """Give both bitmaps, a page of one and the same of the other in turn, up to the last page with a bit."""
    page_size = head.page_size
    pfns = [(block.start // page_size, block.end // page_size) for block in head.blocks]
    size = align_up(-(-pfns[-1][1] // 8), page_size)
    zeros = np.zeros(page_size, np.uint8)
    offset = head.bitmap_offset
    for length, window in bitmap_windows(pfns, size):
        for begin in range(0, length, page_size):
            data = zeros if window is None else window[begin : begin + page_size]
            yield offset, data
            yield offset + head.bitmap_size, data
            offset += page_size


class _DataCache:
    """Pieces of bytes that go into one area of the file; a record is written before a piece has no room.

    Parameters
    ----------
    put : callable
        ``(file offset, bytes)``, writes a record.
    offset : int
        Of the area.
    capacity : int
        Bytes of the longest record.
    """

    def __init__(self, put: _Put, offset: int, capacity: int) -> None:
        self._put = put
        self._offset = offset
        self._buffer: Pages = np.empty(capacity, np.uint8)
        self._filled = 0

    def cuts(self, sizes: NDArray[np.uint32]) -> list[tuple[int, int]]:
        """Tell where records end when pieces of these sizes come.

        Returns
        -------
        list of (int, int)
            Number of the piece that has no room any more, and where it begins.
        """
        ends = np.cumsum(sizes, dtype=np.int64)
        found: list[tuple[int, int]] = []
        begin = -self._filled
        while True:
            piece = int(np.searchsorted(ends, begin + self._buffer.size, side="right"))
            if piece == ends.size:
                return found
            begin = int(ends[piece]) - int(sizes[piece])
            found.append((piece, begin))

    def add(self, data: Pages) -> None:
        """Keep bytes, for which there is room."""
        self._buffer[self._filled : self._filled + data.size] = data
        self._filled += data.size

    def flush(self) -> None:
        """Write what is kept as a record, if there is any."""
        if self._filled:
            self._put(self._offset, self._buffer[: self._filled])
            self._offset += self._filled
            self._filled = 0


class _PageArea:
    """Descriptors and data of pages, as QEMU writes them: what is full first goes first.

    Parameters
    ----------
    head : CompatHead
        Of the file.
    put_descriptors, put_data : callable
        Write a record.
    tally : Tally
        Its page counts are raised.
    """

    def __init__(self, head: CompatHead, put_descriptors: _Put, put_data: _Put, tally: Tally) -> None:
        capacity = _CACHED_PAGES * head.page_size
        self._page_size = head.page_size
        self._zero_offset = head.data_offset
        self._tally = tally
        self._dtype = kdump.PAGE_DESCRIPTOR.dtype(head.byteorder)
        self._descriptors = _DataCache(put_descriptors, head.descriptors_offset, capacity)
        self._data = _DataCache(put_data, head.data_offset, capacity)
        self._data.add(np.zeros(head.page_size, np.uint8))
        self._next_offset = head.data_offset + head.page_size

    def add(self, data: Pages, sizes: NDArray[np.uint32]) -> None:
        """Add pages: their data one behind the other, and the bytes of each, 0 for zeros."""
        stored = np.flatnonzero(sizes)
        offsets = np.cumsum(sizes, dtype=np.uint64) - sizes + np.uint64(self._next_offset)
        table: NDArray[np.void] = np.zeros(sizes.size, self._dtype)
        table["offset"] = np.where(sizes == 0, np.uint64(self._zero_offset), offsets)
        table["size"] = np.where(sizes == 0, np.uint32(self._page_size), sizes)
        compressed = (sizes != 0) & (sizes != self._page_size)
        table["flags"] = np.where(compressed, np.uint32(kdump.CODEC_FLAGS["zlib"]), np.uint32(0))
        used = int(sizes.sum(dtype=np.uint64))
        self._next_offset += used
        self._tally.zero_pages += sizes.size - stored.size
        self._tally.compressed_pages += int(np.count_nonzero(compressed))
        self._tally.plain_pages += stored.size - int(np.count_nonzero(compressed))
        self._write(table.view(np.uint8), stored, data[:used], sizes[stored])

    def add_zero_pages(self, count: int) -> None:
        """Add pages of a hole."""
        for begin in range(0, count, _BATCH):
            self.add(np.empty(0, np.uint8), np.zeros(min(_BATCH, count - begin), np.uint32))

    def _write(
        self, table: Pages, stored: NDArray[np.intp], data: Pages, data_sizes: NDArray[np.uint32]
    ) -> None:
        entry = self._dtype.itemsize
        table_sizes = np.full(table.size // entry, entry, np.uint32)
        # The data of a page goes before its descriptor.
        cuts = [(int(stored[piece]), 0, begin) for piece, begin in self._data.cuts(data_sizes)]
        cuts += [(page, 1, begin) for page, begin in self._descriptors.cuts(table_sizes)]
        areas = ((self._data, data), (self._descriptors, table))
        positions = [0, 0]
        for _, area, begin in sorted(cuts):
            cache, pieces = areas[area]
            cache.add(pieces[positions[area] : begin])
            cache.flush()
            positions[area] = begin
        for (cache, pieces), position in zip(areas, positions, strict=True):
            cache.add(pieces[position:])

    def finish(self) -> None:
        """Write what is left."""
        self._descriptors.flush()
        self._data.flush()


def _put_alone(file: PlainFile, offset: int, data: Buffer) -> None:
    """Write bytes at once: what comes later may be for the same place."""
    lane = file.lane(offset)
    lane.write(data)
    lane.finish()


def _append(lane: Lane, offset: int, data: Buffer) -> None:
    lane.write(data)
