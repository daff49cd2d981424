"""How a kdump file is written: headers, two bitmaps, one descriptor per page, page data.

All zero pages share the first page of data, as QEMU and makedumpfile have it; a descriptor with offset 0
means an incomplete dump to crash, so there is no cheaper way to say zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.formats import kdump
from vmdump.formats.names import Layout
from vmdump.guest.excluded import count_excluded
from vmdump.guest.guest import Guest
from vmdump.guest.whole import page_runs, partial_pages, whole_pages
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.share import SharedPages
from vmdump.pipeline.ahead import PagesAhead, new_key
from vmdump.pipeline.chunks import Packed, packed
from vmdump.pipeline.control import Control
from vmdump.pipeline.copied import CopiedPages
from vmdump.pipeline.plan import Run, cut_blocks
from vmdump.sinks.base import Sink
from vmdump.units import merge_runs
from vmdump.writers.base import Plan, demand_seekable
from vmdump.writers.bitmaps import without, write_bitmap
from vmdump.writers.descriptors import DescriptorTable
from vmdump.writers.kdump_head import KdumpHead
from vmdump.writers.kdump_partial import PartialKdump, keep_flattened, reserve_front
from vmdump.writers.lanes import FlattenedFile, Lane, PlainFile
from vmdump.writers.packers import Packers
from vmdump.writers.pagedata import DataAhead, PageData
from vmdump.writers.tally import Tally

__all__ = ["KdumpForm", "KdumpPages", "KdumpPlan"]

_SHARED_CODECS = ("zlib", "zstd")
"""Of which identical pages are looked for although nothing else needs their hashes: that takes 0.5 us a page,
where these codecs take 13 to 19 us and the others 6."""


class KdumpForm(NamedTuple):
    """The form that a kdump file is to have.

    Attributes
    ----------
    codec : str
        Of the pages.
    layout : {"auto", "standard", "flattened"}
        auto is standard where the sink is seekable.
    packs_anew : bool
        All pages are packed, also those that are stored as the codec packs them.
    """

    codec: str
    layout: Layout
    packs_anew: bool

    def layout_for(self, sink: Sink) -> Layout:
        """Tell in which layout it is written there; see :meth:`vmdump.writers.base.Writer.layout_for`."""
        if self.layout == "flattened" or (self.layout == "auto" and not sink.seekable):
            return "flattened"
        demand_seekable(sink)
        return "standard"

    def copied_pages(self, guest: Guest) -> CopiedPages | None:
        """Give the pages of a guest that are copied as they are stored; None if all are packed."""
        if self.packs_anew or guest.codec is None:
            return None
        flag = kdump.CODEC_FLAGS[self.codec]
        return CopiedPages(guest.stored_pages, flag, plain=guest.codec == self.codec)


@dataclass(frozen=True)
class KdumpPlan(Plan):
    """A guest laid out in a kdump file, or a part of it in one of a split set.

    Attributes
    ----------
    form : KdumpForm
        Which form it has.
    head : KdumpHead
        What stands in front, and where the rest goes.
    packers : Packers
        Of the guest's pages.
    ahead : DataAhead or None
        Page data that is in the sink already, and fits the head.
    """

    form: KdumpForm
    head: KdumpHead
    packers: Packers
    ahead: DataAhead | None = None

    def pack(
        self,
        threads: int,
        *,
        key: NDArray[np.uint64] | None,
        ahead: PagesAhead | None = None,
        copied: CopiedPages | None = None,
    ) -> Generator[tuple[int, Run, Packed | None]]:
        """Pack the pages of this file; parameters as for :func:`vmdump.pipeline.chunks.packed`.

        Yields
        ------
        pfn, run, result
            What :func:`vmdump.pipeline.chunks.packed` gives, and the first page of it.
        """
        page_size = self.guest.page_size
        blocks = whole_pages(self.guest.blocks, page_size)
        runs = packed(
            cut_blocks(blocks, self.head.begin_pfn * page_size, self.head.end_pfn * page_size),
            self.packers.make,
            page_size=page_size,
            threads=threads,
            key=key,
            ahead=ahead,
            copied=copied,
        )
        with closing(runs):
            for run, result in runs:
                yield (run.block.start + run.offset) // page_size, run, result

    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the file; where pages were written ahead, those that have changed, and all but page data."""
        guest, head, ahead = self.guest, self.head, self.ahead
        flatten = self.form.layout_for(sink) == "flattened"
        sink.demand(head.page_count * kdump.PAGE_DESCRIPTOR.size)
        tally = Tally(partial_pages=self._count_partial_pages())
        pfns = page_runs(guest.blocks, guest.page_size)
        file = (FlattenedFile if flatten else PlainFile)(sink, control.cancelled)
        if not flatten:
            reserve_front(sink, guest, head)
        front = file.lane(0)
        front.write(head.content)
        write_bitmap(front, pfns, head.bitmap_size)
        if flatten and guest.excluded_size:
            # What a dump excludes is known now; which pages are unreadable is known only later.
            write_bitmap(front, pfns, head.bitmap_size, excluding=guest)
        front.finish()
        table = file.lane(head.descriptors_offset)
        bitmap = file.lane(len(head.content) + head.bitmap_size)
        checkpoints = None
        if flatten:
            from vmdump.writers.checkpoints import Checkpoints  # most files are of the standard layout

            checkpoints = Checkpoints(
                table, None if guest.excluded_size else bitmap, head.bitmap_size, head.data_offset
            )
        if ahead and ahead.data_offset != head.data_offset:
            zeros = file.lane(head.data_offset)
            zeros.write(bytes(guest.page_size))
            zeros.finish()
        data = self._page_data(file)
        descriptors = self.descriptors(None if flatten or sink.keeps else table, head.data_offset, tally)
        with closing(descriptors), closing(self._packed(threads)) as runs:
            pages = KdumpPages(guest, data, descriptors, tally, count_changed=ahead is not None)
            with pages.kept(head, sink, file, ahead.pages if ahead else None):
                for pfn, run, result in runs:
                    end_pfn = pfn + run.length // guest.page_size
                    unreadable = pages.add(pfn, end_pfn, result)
                    if checkpoints and checkpoints.add(without([(pfn, end_pfn)], unreadable), data):
                        checkpoints.write(data, descriptors, end_pfn)
                    control.advance(run.length)
                release()
                if checkpoints:
                    checkpoints.finish(data, descriptors)
                else:
                    data.finish()
                    # Which pages are unreadable is known only now that all have been read.
                    present = without(pfns, list(merge_runs(pages.unreadable)))
                    write_bitmap(bitmap, present, head.bitmap_size, excluding=guest)
                    bitmap.finish()
                    descriptors.finish(table)
                file.finish()
        if sink.keeps:
            sink.keep()
        tally.output_bytes = file.size
        return tally

    def descriptors(self, lane: Lane | None, zero_offset: int, tally: Tally) -> DescriptorTable:
        """Give a table for the pages of this guest; parameters as of `DescriptorTable`."""
        guest, flag = self.guest, kdump.CODEC_FLAGS[self.form.codec]
        return DescriptorTable(guest.byteorder, flag, guest.page_size, zero_offset, lane, tally)

    def _count_partial_pages(self) -> int:
        partial = partial_pages(self.guest.blocks, self.guest.page_size)
        here = np.searchsorted(partial, np.array([self.head.begin_pfn, self.head.end_pfn], np.uint64))
        return int(here[1] - here[0])

    def _page_data(self, file: FlattenedFile | PlainFile) -> PageData:
        ahead, zero_offset = self.ahead, self.head.data_offset
        return PageData(
            file.lane(ahead.next_offset if ahead else zero_offset),
            zero_offset,
            self.guest.page_size,
            ahead.next_offset if ahead else None,
            shared=ahead.shared if ahead else SharedPages(),
        )

    def _packed(self, threads: int) -> Generator[tuple[int, Run, Packed | None]]:
        ahead = self.ahead.pages if self.ahead else None
        key = ahead.key if ahead else new_key() if self.form.codec in _SHARED_CODECS else None
        return self.pack(threads, key=key, ahead=ahead, copied=self.form.copied_pages(self.guest))


class KdumpPages:
    """Where packed pages go, and what is counted of them.

    Parameters
    ----------
    guest : Guest
        Whose pages they are.
    data, descriptors, tally
        Where their data, their places and their counts go.
    count_changed : bool
        The pages that are packed are those that have changed since all were.

    Attributes
    ----------
    unreadable : list of (int, int)
        Ranges of frame numbers that the host could not read.
    end_pfn : int
        All pages below it were added.
    """

    def __init__(
        self, guest: Guest, data: PageData, descriptors: DescriptorTable, tally: Tally, *, count_changed: bool
    ) -> None:
        self._guest = guest
        self._data = data
        self._descriptors = descriptors
        self._tally = tally
        self._count_changed = count_changed
        self.unreadable: list[tuple[int, int]] = []
        self.end_pfn = 0

    @contextmanager
    def kept(
        self, head: KdumpHead, sink: Sink, file: FlattenedFile | PlainFile, ahead: PagesAhead | None = None
    ) -> Iterator[None]:
        """Let a sink that keeps have a readable file of the pages that were added, if the rest fails.

        Of those that were not, it has what was written of them ahead.
        """
        try:
            yield
        except BaseException:
            if sink.keeps:
                if isinstance(file, FlattenedFile):
                    keep_flattened(self._guest, head, sink, file)
                else:
                    partial = PartialKdump(self._guest, head, sink, self._data, self._descriptors)
                    partial.keep(self.end_pfn, list(merge_runs(self.unreadable)), ahead)
            raise

    def add(
        self, pfn: int, end_pfn: int, result: Packed | None, places: NDArray[np.void] | None = None
    ) -> list[tuple[int, int]]:
        """Add ``[pfn, end_pfn)``, with their places if they are stored; give what the host could not read."""
        unreadable = self._add(pfn, end_pfn, result, places)
        self.end_pfn = end_pfn
        return unreadable

    def _add(
        self, pfn: int, end_pfn: int, result: Packed | None, places: NDArray[np.void] | None
    ) -> list[tuple[int, int]]:
        tally, descriptors, pages = self._tally, self._descriptors, end_pfn - pfn
        if result is None:
            # A hole may be of any length, and all of it excluded.
            included = pages - count_excluded(self._guest, pfn, end_pfn)
            descriptors.add_zero_pages(included)
            tally.excluded_pages += pages - included
            tally.hole_bytes += included * self._guest.page_size
            return []
        unreadable = self._unreadable(pfn, end_pfn)
        self.unreadable += unreadable
        excluded = self._excluded(pfn, pages, unreadable)
        tally.copied_pages += result.copied
        if excluded is None and not result.sizes.any():
            descriptors.add_zero_pages(pages)
            return unreadable
        if self._count_changed:
            tally.changed_pages += int(np.count_nonzero((result.sizes != 0) & (result.sizes != SAME_SIZE)))
        places = self._data.append(result) if places is None else places
        descriptors.add(places if excluded is None else places[~excluded])
        tally.excluded_pages += 0 if excluded is None else int(np.count_nonzero(excluded))
        return unreadable

    def _unreadable(self, pfn: int, end_pfn: int) -> list[tuple[int, int]]:
        page_size = self._guest.page_size
        ranges = [
            (max(low // page_size, pfn), min(-(-high // page_size), end_pfn))
            for low, high in self._guest.unreadable
        ]
        return list(merge_runs((begin, end) for begin, end in ranges if begin < end))

    def _excluded(self, pfn: int, pages: int, unreadable: list[tuple[int, int]]) -> NDArray[np.bool_] | None:
        """Tell which pages are not in the dump, excluded or unreadable; None if all are."""
        excluded = self._guest.excluded_pages(pfn, pages)
        if unreadable:
            excluded = np.zeros(pages, np.bool_) if excluded is None else excluded.copy()
            for begin, end in unreadable:
                excluded[begin - pfn : end - pfn] = True
        return excluded if excluded is not None and excluded.any() else None
