"""kdump-compressed: headers, two bitmaps, one descriptor per page, page data.

All zero pages share the first page of data, as QEMU and makedumpfile have it; a descriptor with offset 0
means an incomplete dump to crash, so there is no cheaper way to say zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.codecs.engines import PagePacker
from vmdump.errors import SinkError
from vmdump.formats import kdump
from vmdump.guest.guest import Guest
from vmdump.guest.whole import page_runs, partial_pages, whole_pages
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.share import SharedPages
from vmdump.pipeline.chunks import Packed, packed
from vmdump.pipeline.control import Control
from vmdump.pipeline.copies import Copies
from vmdump.pipeline.known import KnownPages, new_key
from vmdump.pipeline.plan import Run, cut_blocks
from vmdump.sinks.base import Sink
from vmdump.units import merge_runs
from vmdump.writers.bitmaps import without, write_bitmap
from vmdump.writers.checkpoints import Checkpoints
from vmdump.writers.descriptors import DescriptorTable
from vmdump.writers.excluded import count_excluded
from vmdump.writers.kdump_plan import KdumpPlan, plan_kdump, plan_split
from vmdump.writers.lanes import FlattenedFile, PlainFile
from vmdump.writers.pagedata import PageData
from vmdump.writers.tally import Tally

__all__ = ["EarlyPages", "KdumpPlan", "plan_kdump", "plan_split", "write_early", "write_kdump"]

_SHARED_CODECS = ("zlib", "zstd")
"""Of which identical pages are looked for although nothing else needs their hashes: that takes 0.5 us a page,
where these codecs take 13 to 19 us and the others 6."""


@dataclass(frozen=True)
class EarlyPages:
    """Pages in a standard kdump file that were packed while the guest still ran.

    Attributes
    ----------
    known : KnownPages
        What they held, and their places.
    shared : SharedPages
        The same, by contents.
    data_offset, next_offset : int
        File offsets of the first page, which is the shared zero page, and behind the last one.
    """

    known: KnownPages
    shared: SharedPages
    data_offset: int
    next_offset: int

    def fit(self, plan: KdumpPlan, page_size: int) -> bool:
        """Tell whether a file of another layout has room in front of these pages.

        Readers take the page of zeros for the one that begins right behind the last descriptor. Where that
        has moved, there must be room for another one.
        """
        gap = self.data_offset - plan.data_offset
        return page_size == self.known.page_size and (gap == 0 or gap >= page_size)


def write_early(
    source: Guest,
    plan: KdumpPlan,
    output: Sink,
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
    source : Guest
        The guest; runs.
    plan : KdumpPlan
        Its layout now; where it is laid out otherwise later, these pages may be of no use.
    output : Sink
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
        with closing(_packed(source, plan, make_packer, threads, known.key, known)) as runs:
            for run, result in runs:
                if result is not None and result.hashes is not None and result.data.size:
                    known.record(_pfn(source, run), result.hashes, data.append(result))
                control.advance(run.length)
        data.finish()
    return EarlyPages(known, shared, plan.data_offset, data.next_offset)


def _packed(
    source: Guest,
    plan: KdumpPlan,
    make_packer: Callable[[int], PagePacker],
    threads: int,
    key: NDArray[np.uint64] | None,
    known: KnownPages | None,
    copies: Copies | None = None,
) -> Generator[tuple[Run, Packed | None]]:
    page_size = source.page_size
    blocks = whole_pages(source.blocks, page_size)
    return packed(
        cut_blocks(blocks, plan.begin_pfn * page_size, plan.end_pfn * page_size),
        lambda: make_packer(page_size),
        page_size=page_size,
        threads=threads,
        key=key,
        known=known,
        copies=copies,
    )


def _absent(source: Guest, pfn: int, pages: int, lost: list[tuple[int, int]]) -> NDArray[np.bool_] | None:
    """Tell which pages from `pfn` on are not in the dump: excluded, or the host could read no byte of them.

    What the host could not read is added to `lost`, in ranges of pfns; None if all pages are there.
    """
    absent = source.excluded_pages(pfn, pages)
    page_size = source.page_size
    for low, high in source.unreadable:
        begin, end = max(low // page_size, pfn), min(-(-high // page_size), pfn + pages)
        if begin < end:
            absent = np.zeros(pages, np.bool_) if absent is None else absent.copy()
            absent[begin - pfn : end - pfn] = True
            lost.append((begin, end))
    return absent if absent is not None and absent.any() else None


def _changed(sizes: NDArray[np.uint32]) -> int:
    return int(np.count_nonzero((sizes != 0) & (sizes != SAME_SIZE)))


def _pfn(source: Guest, run: Run) -> int:
    return (run.block.start + run.offset) // source.page_size


def write_kdump(
    source: Guest,
    plan: KdumpPlan,
    output: Sink,
    *,
    codec: str,
    make_packer: Callable[[int], PagePacker],
    flatten: bool,
    threads: int,
    control: Control,
    early: EarlyPages | None = None,
    copies: Copies | None = None,
    release: Callable[[], object] = lambda: None,
) -> Tally:
    """Write a kdump-compressed file of the whole guest, or one part of a split set, as it is planned.

    Parameters
    ----------
    source : Guest
        The guest.
    plan : KdumpPlan
        Its layout, for the same codec.
    output : Sink
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
    copies : Copies, optional
        Pages that are taken as the source has them, without packing.
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
    output.demand(plan.page_count * kdump.PAGE_DESCRIPTOR.size)
    page_size = source.page_size
    pfns = page_runs(source.blocks, page_size)
    lost: list[tuple[int, int]] = []
    partial = partial_pages(source.blocks, page_size)
    here = np.searchsorted(partial, np.array([plan.begin_pfn, plan.end_pfn], np.uint64))
    tally = Tally(partial_pages=int(here[1] - here[0]))
    zero_offset = plan.data_offset
    with (FlattenedFile if flatten else PlainFile)(output, control.cancelled) as file:
        head = file.lane(0)
        head.write(plan.head)
        write_bitmap(head, pfns, plan.bitmap_size)
        if flatten and source.excluded_size:
            # A dump lacks what it lacks; of a guest it is known only now and then what could be read.
            write_bitmap(head, pfns, plan.bitmap_size, excluding=source)
        head.finish()
        table = file.lane(plan.descriptors_offset)
        dumped = file.lane(len(plan.head) + plan.bitmap_size)
        checkpoints = None
        if flatten:
            bitmap = None if source.excluded_size else dumped
            checkpoints = Checkpoints(table, bitmap, plan.bitmap_size, zero_offset)
        if early and early.data_offset != zero_offset:
            zeros = file.lane(zero_offset)
            zeros.write(bytes(page_size))
            zeros.finish()
        next_offset = early.next_offset if early else None
        lane = file.lane(next_offset or zero_offset)
        shared = early.shared if early else SharedPages()
        known = early.known if early else None
        key = known.key if known else new_key() if codec in _SHARED_CODECS else None
        data = PageData(lane, zero_offset, page_size, next_offset, shared=shared)
        codec_flag = kdump.CODEC_FLAGS[codec]
        with (
            closing(
                DescriptorTable(
                    source.byteorder, codec_flag, page_size, zero_offset, None if flatten else table, tally
                )
            ) as descriptors,
            closing(_packed(source, plan, make_packer, threads, key, known, copies)) as runs,
        ):
            for run, result in runs:
                pfn, pages = _pfn(source, run), run.length // page_size
                already_lost = len(lost)
                if result is None:
                    # A hole may be of any length, and all of it excluded.
                    left = pages - count_excluded(source, pfn, pfn + pages)
                    descriptors.add_zero_pages(left)
                    tally.excluded_pages += pages - left
                    tally.hole_bytes += left * page_size
                else:
                    absent = _absent(source, pfn, pages, lost)
                    tally.copied_pages += result.copied
                    if absent is not None or result.sizes.any():
                        tally.changed_pages += _changed(result.sizes) if early else 0
                        placed = data.append(result)
                        descriptors.add(placed if absent is None else placed[~absent])
                        tally.excluded_pages += 0 if absent is None else int(np.count_nonzero(absent))
                    else:
                        descriptors.add_zero_pages(pages)
                if checkpoints is not None:
                    there = without([(pfn, pfn + pages)], list(merge_runs(lost[already_lost:])))
                    if checkpoints.add(there, data):
                        checkpoints.write(data, descriptors, pfn + pages)
                control.advance(run.length)
            release()
            if checkpoints is not None:
                checkpoints.finish(data, descriptors)
            else:
                data.finish()
                # Which pages are in the dump is known only now that all have been read.
                there = without(pfns, list(merge_runs(lost)))
                write_bitmap(dumped, there, plan.bitmap_size, excluding=source)
                dumped.finish()
                descriptors.finish(table)
        file.finish()
        tally.size = file.size
    return tally
