"""kdump-compressed: headers, two bitmaps, one descriptor per page, page data.

All zero pages share the first page of data, as QEMU and makedumpfile have it; a descriptor with offset 0
means an incomplete dump to crash, so there is no cheaper way to say zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import CapabilityError, LayoutError, SinkError
from vmdump.formats import kdump
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.kernels.bits import set_range
from vmdump.kernels.engines import PagePacker
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.share import SharedPages
from vmdump.pipeline.chunks import Packed, packed
from vmdump.pipeline.control import Control
from vmdump.pipeline.known import KnownPages, new_key
from vmdump.pipeline.plan import Run, whole_blocks
from vmdump.sources.base import Pages, Source
from vmdump.units import align_up
from vmdump.writers.descriptors import DescriptorTable
from vmdump.writers.lanes import FlattenedFile, Lane, PlainFile
from vmdump.writers.output import Output
from vmdump.writers.pagedata import PageData
from vmdump.writers.tally import Tally

__all__ = ["EarlyPages", "KdumpPlan", "bitmap_windows", "plan_kdump", "write_early", "write_kdump"]

_BITMAP_WINDOW = 1 << 20
"""Bytes of a bitmap made at a time: 32 GiB of guest memory in 4 KiB pages."""
_LAST_32BIT = 0xFFFFFFFF
_UTS_LENGTH = 64
"""Bytes of a name in utsname; one more ends it."""
_LAST_SIGNED_32BIT = 0x7FFFFFFF
_SHARED_CODECS = ("zlib", "zstd")
"""Of which identical pages are looked for although nothing else needs their hashes: that takes 0.5 us a page,
where these codecs take 13 to 19 us and the others 6."""


@dataclass(frozen=True)
class KdumpPlan:
    """Every offset of a kdump file that is known before the first page is packed.

    Attributes
    ----------
    head : bytes
        Header, sub-header and notes, padded to whole blocks; the first bitmap follows.
    bitmap_size : int
        Bytes of one of the two bitmaps.
    page_count : int
        Pages in the dump, a descriptor each.
    descriptors_offset, data_offset : int
        File offsets of the first descriptor and of the first byte of page data.
    """

    head: bytes
    bitmap_size: int
    page_count: int
    descriptors_offset: int
    data_offset: int


def plan_kdump(source: Source, codec: str) -> KdumpPlan:
    """Lay out a kdump file.

    Raises
    ------
    LayoutError
        A block is not made of whole pages, or the guest ends at an address the format has no room for.
    """
    block_size = source.page_size
    if not source.arch.uts_machine:
        raise CapabilityError(f"{source.arch.name}: no kdump file of a machine without a name; dump to elf")
    for block in source.blocks:
        if (block.start | block.size) % block_size:
            raise LayoutError(
                f"block {block.start:#x}-{block.end:#x} is not made of whole pages of {block_size} bytes",
                address=block.start,
            )
    max_mapnr = source.blocks[-1].end // block_size
    bitmap_size = align_up(-(-max_mapnr // 8), block_size)
    bitmap_blocks = 2 * bitmap_size // block_size
    if bitmap_blocks > _LAST_SIGNED_32BIT:
        raise LayoutError(
            f"memory ends at {source.blocks[-1].end:#x}: the bitmaps would need {bitmap_blocks} blocks, "
            "more than the format can count; dump to elf",
            address=source.blocks[-1].start,
        )
    head = _head(source, codec, max_mapnr, bitmap_blocks)
    descriptors_offset = len(head) + 2 * bitmap_size
    page_count = source.size // block_size
    data_offset = descriptors_offset + page_count * kdump.PAGE_DESCRIPTOR.size
    return KdumpPlan(head, bitmap_size, page_count, descriptors_offset, data_offset)


def _sub_header_form(source: Source) -> kdump.SubHeaderForm:
    if source.elf_class == 64:
        return "64"
    # libkdumpfile tells the 32-bit forms apart by offset_vmcoreinfo, and takes 0 for packed.
    return source.arch.sub_header_32 if source.vmcoreinfo else "32 packed"


def _head(source: Source, codec: str, max_mapnr: int, bitmap_blocks: int) -> bytes:
    block_size = source.page_size
    word_mask = (1 << source.elf_class) - 1
    sub_header = kdump.SUB_HEADER[_sub_header_form(source)]
    notes_offset = kdump.HEADER_BLOCKS * block_size + sub_header.size
    sub_hdr_size = -(-(sub_header.size + len(source.notes)) // block_size)
    uts = source.utsname
    header = kdump.HEADER[source.elf_class].pack(
        source.byteorder,
        signature=kdump.SIGNATURE,
        header_version=kdump.HEADER_VERSION,
        **{field.name: getattr(uts, field.name)[:_UTS_LENGTH] for field in fields(uts)},
        status=kdump.CODEC_FLAGS[codec],
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=min(max_mapnr, _LAST_32BIT),
        nr_cpus=source.nr_cpus,
    )
    vmcoreinfo = find_vmcoreinfo(source.notes, source.byteorder)
    second = sub_header.pack(
        source.byteorder,
        phys_base=source.phys_base & word_mask,
        dump_level=kdump.DUMP_LEVEL,
        offset_vmcoreinfo=notes_offset + vmcoreinfo.offset if vmcoreinfo else 0,
        size_vmcoreinfo=len(vmcoreinfo.desc) if vmcoreinfo else 0,
        offset_note=notes_offset,
        size_note=len(source.notes),
        max_mapnr_64=max_mapnr,
    )
    body = header.ljust(kdump.HEADER_BLOCKS * block_size, b"\0") + second + source.notes
    return body.ljust((kdump.HEADER_BLOCKS + sub_hdr_size) * block_size, b"\0")


def bitmap_windows(ranges: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, Pages | None]]:
    """Give a bitmap in windows of 1 MiB.

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
    window = np.empty(min(size, _BITMAP_WINDOW), np.uint8)
    first = 0
    for begin in range(0, size, _BITMAP_WINDOW):
        length = min(size - begin, _BITMAP_WINDOW)
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


def _write_bitmap(lane: Lane, ranges: Sequence[tuple[int, int]], size: int) -> None:
    for length, window in bitmap_windows(ranges, size):
        if window is None:
            lane.skip(length)
        else:
            lane.write(window)


def _without(ranges: Sequence[tuple[int, int]], excluded: Sequence[int]) -> list[tuple[int, int]]:
    """Take single pfns, ascending, out of ranges of pfns."""
    left = []
    at = 0
    for begin, end in ranges:
        while at < len(excluded) and excluded[at] < end:
            left.append((begin, excluded[at]))
            begin = excluded[at] + 1
            at += 1
        left.append((begin, end))
    return [(begin, end) for begin, end in left if begin < end]


def _lost_pages(source: Source, run: Run) -> list[int]:
    """Give the pages of a run, by number in it, of which the host could not read a byte."""
    begin, page_size = run.block.start + run.offset, source.page_size
    pages = run.length // page_size
    lost: set[int] = set()
    for low, high in source.unreadable:
        lost.update(range(max((low - begin) // page_size, 0), min(-((begin - high) // page_size), pages)))
    return sorted(lost)


@dataclass(frozen=True)
class EarlyPages:
    """Pages in a standard kdump file that were packed while the guest still ran.

    Attributes
    ----------
    known : KnownPages
        What they held, and their places.
    shared : SharedPages
        The same, by contents.
    zero_offset, next_offset : int
        File offsets of the shared zero page, and behind the last page.
    """

    known: KnownPages
    shared: SharedPages
    zero_offset: int
    next_offset: int

    def fit(self, plan: KdumpPlan, page_size: int) -> bool:
        """Tell whether a file of another layout has room in front of these pages."""
        return page_size == self.known.page_size and plan.data_offset <= self.zero_offset


def write_early(
    source: Source,
    plan: KdumpPlan,
    output: Output,
    known: KnownPages,
    *,
    make_packer: Callable[[int], PagePacker],
    threads: int,
    control: Control,
) -> EarlyPages:
    """Pack the pages of a running guest ahead of :func:`write_kdump`, which then packs what has changed.

    Only page data is written, nothing that makes a dump of it.

    Parameters
    ----------
    source : Source
        The guest; runs.
    plan : KdumpPlan
        Its layout now; where it is laid out otherwise later, these pages may be of no use.
    output : Output
        Seekable; the layout will be the standard one.
    known : KnownPages
        Of the guest's page size; empty.
    make_packer, threads, control
        As for :func:`write_kdump`.

    Raises
    ------
    SourceError, SinkError, CodecError, Cancelled
        And nothing is committed.
    """
    page_size = source.page_size
    shared = SharedPages()
    with PlainFile(output, control.cancelled) as file:
        data = PageData(file.lane(plan.data_offset), plan.data_offset, page_size, shared=shared)
        with closing(_packed(source, make_packer, threads, known.key, known)) as runs:
            for run, result in runs:
                if result is not None and result.hashes is not None and result.data.size:
                    known.record(_pfn(source, run), result.hashes, data.append(result))
                control.advance(run.length)
        data.finish()
    return EarlyPages(known, shared, plan.data_offset, data.next_offset)


def _packed(
    source: Source,
    make_packer: Callable[[int], PagePacker],
    threads: int,
    key: NDArray[np.uint64] | None,
    known: KnownPages | None,
) -> Generator[tuple[Run, Packed | None]]:
    page_size = source.page_size
    return packed(
        whole_blocks(source.blocks),
        lambda: make_packer(page_size),
        page_size=page_size,
        threads=threads,
        key=key,
        known=known,
    )


def _changed(sizes: NDArray[np.uint32]) -> int:
    return int(np.count_nonzero((sizes != 0) & (sizes != SAME_SIZE)))


def _pfn(source: Source, run: Run) -> int:
    return (run.block.start + run.offset) // source.page_size


def write_kdump(
    source: Source,
    plan: KdumpPlan,
    output: Output,
    *,
    codec: str,
    make_packer: Callable[[int], PagePacker],
    flatten: bool,
    threads: int,
    control: Control,
    early: EarlyPages | None = None,
) -> Tally:
    """Write a kdump-compressed file of the whole guest.

    Parameters
    ----------
    source : Source
        The guest.
    plan : KdumpPlan
        Its layout, for the same codec.
    output : Output
        Seekable unless `flatten`.
    codec : str
        Named by the page flags.
    make_packer : callable
        ``page_size -> PagePacker`` of that codec; called once per thread.
    flatten : bool
        Write the flattened layout.
    threads : int
        Worker threads.
    control : Control
        Told of every chunk.
    early : EarlyPages, optional
        Pages that are in the output already, and fit the plan.

    Raises
    ------
    SourceError, SinkError, CodecError, Cancelled
        And nothing is committed.
    """
    if not flatten and not output.seekable:
        raise SinkError(
            "the standard layout needs a seekable output", path=output.name, hint="use --layout flattened"
        )
    output.demand(plan.page_count * kdump.PAGE_DESCRIPTOR.size)
    page_size = source.page_size
    pfns = [(block.start // page_size, block.end // page_size) for block in source.blocks]
    excluded: list[int] = []
    tally = Tally()
    zero_offset = early.zero_offset if early else plan.data_offset
    with (FlattenedFile if flatten else PlainFile)(output, control.cancelled) as file:
        head = file.lane(0)
        head.write(plan.head)
        _write_bitmap(head, pfns, plan.bitmap_size)
        head.finish()
        # A stream has no way back: there the table follows the data.
        table = None if flatten else file.lane(plan.descriptors_offset)
        next_offset = early.next_offset if early else None
        lane = file.lane(next_offset or zero_offset)
        shared = early.shared if early else SharedPages()
        known = early.known if early else None
        key = known.key if known else new_key() if codec in _SHARED_CODECS else None
        data = PageData(lane, zero_offset, page_size, next_offset, shared=shared)
        codec_flag = kdump.CODEC_FLAGS[codec]
        with (
            closing(
                DescriptorTable(source.byteorder, codec_flag, page_size, zero_offset, table, tally)
            ) as descriptors,
            closing(_packed(source, make_packer, threads, key, known)) as runs,
        ):
            for run, result in runs:
                if result is None:
                    descriptors.add_zero_pages(run.length // page_size)
                    tally.hole_bytes += run.length
                else:
                    lost = _lost_pages(source, run)
                    excluded += [_pfn(source, run) + page for page in lost]
                    if lost or result.sizes.any():
                        tally.changed_pages += _changed(result.sizes) if early else 0
                        placed = data.append(result)
                        descriptors.add(np.delete(placed, lost) if lost else placed)
                    else:
                        descriptors.add_zero_pages(run.length // page_size)
                control.advance(run.length)
            source.release()
            data.finish()
            # Which pages are in the dump is known only now that all have been read.
            dumped = file.lane(len(plan.head) + plan.bitmap_size)
            _write_bitmap(dumped, _without(pfns, excluded), plan.bitmap_size)
            if table is not None:
                dumped.finish()
            # In a stream they follow in the same lane: the table lies directly behind that bitmap.
            descriptors.finish(table or dumped)
        file.finish()
        tally.size = file.size
        tally.excluded_pages = len(excluded)
    return tally
