"""The kdump-zlib file that QEMU 7.2 writes, byte for byte, and as the same flattened records.

Its pages are those of the target architecture, and each block has its own: where blocks begin or end inside a
page, the rest of the page is zeros, and a page with two blocks in it has two descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.codecs.engines import PagePacker
from vmdump.errors import SinkError
from vmdump.formats import kdump
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.guest.blocks import read_into
from vmdump.guest.guest import Block, Guest, Memory, Pages
from vmdump.pipeline.chunks import packed
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import whole_blocks
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.bitmaps import bitmap_windows
from vmdump.writers.compat.target import notes_of_qemu, qemu_target
from vmdump.writers.lanes import FlattenedFile, Lane, PlainFile
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Buffer

    _Put = Callable[[int, Buffer], None]

__all__ = ["CompatPlan", "plan_compat_kdump", "write_compat_kdump"]

_LAST_32BIT = 0xFFFFFFFF
_CACHED_PAGES = 4
"""Pages for which QEMU has room before it writes a record: 16 KiB of data or descriptors, mostly."""
_BATCH = 1 << 16
"""Descriptors of a hole made at a time: 1.5 MiB."""


@dataclass(frozen=True)
class CompatPlan:
    """All that is known before the first page is packed.

    Attributes
    ----------
    page_size : int
        Block size, in bytes.
    blocks : tuple of Block
        The guest's, made of whole pages; they overlap where two had a part of one page.
    byteorder : str
        Of the guest.
    records : tuple of (int, bytes)
        Header, sub-header and notes, each with its file offset.
    bitmap_offset, bitmap_size : int
        File offset of the first bitmap, and bytes that each has.
    page_count : int
        Descriptors.
    descriptors_offset, data_offset : int
        File offsets of the first descriptor and of the first byte of page data.
    """

    page_size: int
    blocks: tuple[Block, ...]
    byteorder: ByteOrder
    records: tuple[tuple[int, bytes], ...]
    bitmap_offset: int
    bitmap_size: int
    page_count: int
    descriptors_offset: int
    data_offset: int


class _PaddedMemory:
    """A block between zeros, which make whole pages of it."""

    copies = True

    def __init__(self, memory: Memory, before: int, after: int) -> None:
        self._memory = memory
        self._before = before
        self.size = before + memory.size + after

    def extents(self) -> Iterator[tuple[int, int]]:
        return ((self._before + begin, self._before + end) for begin, end in self._memory.extents())

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        out = scratch[:length]
        begin = max(offset - self._before, 0)
        end = min(offset - self._before + length, self._memory.size)
        low = begin + self._before - offset
        high = low + end - begin
        read_into(self._memory, begin, out[low:high])
        out[:low] = 0
        out[high:] = 0
        return out


def _padded(block: Block, page_size: int) -> Block:
    before, after = block.start % page_size, -block.end % page_size
    if not before and not after:
        return block
    return Block(block.start - before, _PaddedMemory(block.memory, before, after))


def plan_compat_kdump(source: Guest) -> CompatPlan:
    """Lay out the kdump file that QEMU 7.2 would write.

    Raises
    ------
    CapabilityError
        QEMU 7.2 does not dump such guests.
    """
    target = qemu_target(source)
    page_size, elf_class = target.page_size, source.elf_class
    notes, byteorder = notes_of_qemu(source)
    word_mask = (1 << elf_class) - 1
    blocks = tuple(_padded(block, page_size) for block in source.blocks)
    # Rounded down: a last page that memory does not fill is behind the end.
    max_mapnr = source.blocks[-1].end // page_size
    bitmap_size = align_up(-(-max_mapnr // 8), page_size)
    bitmap_blocks = 2 * bitmap_size // page_size
    sub_header = kdump.SUB_HEADER["64" if elf_class == 64 else "32 packed"]
    sub_header_offset = kdump.HEADER_BLOCKS * page_size
    notes_offset = sub_header_offset + sub_header.size
    sub_hdr_size = -(-(sub_header.size + len(notes)) // page_size)
    vmcoreinfo = find_vmcoreinfo(notes, byteorder)
    header = kdump.HEADER[elf_class].pack(
        byteorder,
        signature=kdump.SIGNATURE,
        header_version=kdump.HEADER_VERSION,
        machine=target.uts_machine,
        status=kdump.CODEC_FLAGS["zlib"],
        block_size=page_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks & _LAST_32BIT,
        max_mapnr=min(max_mapnr, _LAST_32BIT),
        nr_cpus=source.nr_cpus,
    )
    second = sub_header.pack(
        byteorder,
        phys_base=target.phys_base(source.vmcoreinfo, source.blocks[0].start) & word_mask,
        dump_level=kdump.DUMP_LEVEL,
        offset_vmcoreinfo=notes_offset + vmcoreinfo.offset if vmcoreinfo else 0,
        size_vmcoreinfo=vmcoreinfo.size if vmcoreinfo else 0,
        offset_note=notes_offset,
        size_note=len(notes),
        max_mapnr_64=max_mapnr,
    )
    records = [(0, header), (sub_header_offset, second)]
    if notes:
        records.append((notes_offset, notes))
    bitmap_offset = (kdump.HEADER_BLOCKS + sub_hdr_size) * page_size
    descriptors_offset = bitmap_offset + 2 * bitmap_size
    page_count = sum(block.size for block in blocks) // page_size
    return CompatPlan(
        page_size=page_size,
        blocks=blocks,
        byteorder=byteorder,
        records=tuple(records),
        bitmap_offset=bitmap_offset,
        bitmap_size=bitmap_size,
        page_count=page_count,
        descriptors_offset=descriptors_offset,
        data_offset=descriptors_offset + page_count * kdump.PAGE_DESCRIPTOR.size,
    )


def _bitmap_records(plan: CompatPlan) -> Iterator[tuple[int, Pages]]:
    """Give both bitmaps, a page of one and the same of the other in turn, up to the last page with a bit."""
    page_size = plan.page_size
    pfns = [(block.start // page_size, block.end // page_size) for block in plan.blocks]
    size = align_up(-(-pfns[-1][1] // 8), page_size)
    zeros = np.zeros(page_size, np.uint8)
    offset = plan.bitmap_offset
    for length, window in bitmap_windows(pfns, size):
        for begin in range(0, length, page_size):
            data = zeros if window is None else window[begin : begin + page_size]
            yield offset, data
            yield offset + plan.bitmap_size, data
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
    plan : CompatPlan
        Of the file.
    put_descriptors, put_data : callable
        Write a record.
    tally : Tally
        Its page counts are raised.
    """

    def __init__(self, plan: CompatPlan, put_descriptors: _Put, put_data: _Put, tally: Tally) -> None:
        capacity = _CACHED_PAGES * plan.page_size
        self._page_size = plan.page_size
        self._zero_offset = plan.data_offset
        self._tally = tally
        self._dtype = kdump.PAGE_DESCRIPTOR.dtype(plan.byteorder)
        self._descriptors = _DataCache(put_descriptors, plan.descriptors_offset, capacity)
        self._data = _DataCache(put_data, plan.data_offset, capacity)
        self._data.add(np.zeros(plan.page_size, np.uint8))
        self._next_offset = plan.data_offset + plan.page_size

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


def write_compat_kdump(
    plan: CompatPlan,
    output: Sink,
    *,
    make_packer: Callable[[int], PagePacker],
    flatten: bool,
    threads: int,
    control: Control,
    release: Callable[[], object],
) -> Tally:
    """Write the kdump-zlib file that QEMU 7.2 would have written.

    Parameters
    ----------
    plan : CompatPlan
        The guest's memory, and the layout of the file.
    output : Sink
        Seekable unless `flatten`.
    make_packer : callable
        ``page_size -> PagePacker`` that calls zlib as QEMU does; called once per thread.
    flatten : bool
        Write the records that QEMU writes; else the file that ``makedumpfile -R`` makes of them.
    threads : int
        Worker threads.
    control : Control
        Told of every chunk.
    release : callable
        Called when all memory has been read.

    Raises
    ------
    SourceError, SinkError, CodecError, Cancelled
        And nothing is committed.
    """
    if not flatten and not output.seekable:
        raise SinkError(
            "the standard layout needs a seekable output", path=output.name, hint="use --layout flattened"
        )
    tally = Tally()
    with (FlattenedFile if flatten else PlainFile)(output, control.cancelled) as file:
        _write_file(file, plan, tally, release, make_packer=make_packer, threads=threads, control=control)
        file.finish()
        tally.size = file.size
    return tally


def _write_file(
    file: FlattenedFile | PlainFile,
    plan: CompatPlan,
    tally: Tally,
    release: Callable[[], object],
    *,
    make_packer: Callable[[int], PagePacker],
    threads: int,
    control: Control,
) -> None:
    if isinstance(file, FlattenedFile):
        put = put_descriptors = put_data = file.record
        lanes: tuple[Lane, ...] = ()
    else:
        put = partial(_put_alone, file)
        lanes = file.lane(plan.descriptors_offset), file.lane(plan.data_offset)
        put_descriptors, put_data = (partial(_append, lane) for lane in lanes)
    for offset, header in plan.records:
        put(offset, header)
    for offset, bits in _bitmap_records(plan):
        put(offset, bits)
    area = _PageArea(plan, put_descriptors, put_data, tally)
    runs = packed(
        whole_blocks(plan.blocks),
        lambda: make_packer(plan.page_size),
        page_size=plan.page_size,
        threads=threads,
    )
    with closing(runs):
        for run, result in runs:
            if result is None:
                area.add_zero_pages(run.length // plan.page_size)
                tally.hole_bytes += run.length
            else:
                area.add(result.data, result.sizes)
            control.advance(run.length)
    release()
    area.finish()
    for lane in lanes:
        lane.finish()


def _put_alone(file: PlainFile, offset: int, data: Buffer) -> None:
    """Write bytes at once: what comes later may be for the same place."""
    lane = file.lane(offset)
    lane.write(data)
    lane.finish()


def _append(lane: Lane, offset: int, data: Buffer) -> None:
    lane.write(data)
