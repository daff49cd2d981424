"""The pages of a running guest, packed before its pause into the kdump file that they will be in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from vmdump.formats.kdump import PAGE_DESCRIPTOR
from vmdump.guest.guest import Guest
from vmdump.kernels.share import SharedPages
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.base import Ahead
from vmdump.writers.kdump_partial import reserve_front
from vmdump.writers.kdump_plan import KdumpPages, KdumpPlan
from vmdump.writers.lanes import PlainFile
from vmdump.writers.pagedata import DataAhead, PageData
from vmdump.writers.seen import note_read, pages_ahead
from vmdump.writers.tally import Tally

__all__ = ["KdumpAhead"]

_MORE_PAGES = 1 << 16
"""That may come to be dumped until the pause, beside a quarter of those that are now. Room for descriptors is
a hole of the file; where it is too small, all pages are packed during the pause."""


class KdumpAhead(Ahead):
    """Page data in a standard file that has nothing else yet.

    Parameters
    ----------
    lay_out : callable
        Lays a guest out in the file.
    guest : Guest
        The guest as it is now.
    sink : Sink
        Sparse.
    threads, control
        As for :meth:`vmdump.writers.base.Writer.write_ahead`.

    Raises
    ------
    SourceError, SinkError, CodecError, Cancelled
        And nothing is committed.
    """

    def __init__(
        self,
        lay_out: Callable[[Guest], KdumpPlan],
        guest: Guest,
        sink: Sink,
        *,
        threads: int,
        control: Control,
    ) -> None:
        self._lay_out = lay_out
        self._sink = sink
        plan = lay_out(guest)
        control.start(plan.memory_size)
        self._packers = plan.packers
        self._pages = pages_ahead(guest, guest.page_size, sink)
        try:
            self._data = self._pack(plan, threads, control)
        except BaseException:
            self.close()
            raise

    def _pack(self, plan: KdumpPlan, threads: int, control: Control) -> DataAhead:
        offset, shared = plan.head.data_offset + _room(plan), SharedPages()
        reserve_front(self._sink, plan.guest, plan.head)
        file = PlainFile(self._sink, control.cancelled)
        data = PageData(file.lane(offset), offset, plan.guest.page_size, shared=shared)
        with closing(plan.pack(threads, key=self._pages.key)) as runs, self._kept(plan, data, file) as kept:
            for pfn, run, result in runs:
                places = None
                if result is not None and result.hashes is not None and result.data.size:
                    places = data.append(result)
                    self._pages.record(pfn, result.hashes, places)
                if kept is not None:
                    kept.add(pfn, pfn + run.length // plan.guest.page_size, result, places)
                control.advance(run.length)
            data.finish()
        return DataAhead(self._pages, shared, offset, data.next_offset)

    @contextmanager
    def _kept(self, plan: KdumpPlan, data: PageData, file: PlainFile) -> Iterator[KdumpPages | None]:
        """Give what knows the pages that are there, where the sink is to keep them if the rest fails."""
        if not self._sink.keeps:
            yield None
            return
        with closing(plan.descriptors(None, data.zero_offset, Tally())) as descriptors:
            pages = KdumpPages(plan.guest, data, descriptors, Tally(), count_changed=False)
            with pages.kept(plan.head, self._sink, file):
                yield pages

    def plan(self, guest: Guest) -> KdumpPlan:
        """Lay the guest out in front of the pages that are there, if there is room."""
        plan = self._lay_out(guest)
        if self._data.fits(plan.head.data_offset, guest.page_size):
            note_read(self._pages, guest)
            # Trained already, and what has changed is packed as the rest was.
            return replace(plan, packers=self._packers, ahead=self._data)
        self._sink.clear()
        return plan

    def close(self) -> None:
        """Remove the temporary file."""
        self._pages.close()


def _room(plan: KdumpPlan) -> int:
    """Give the bytes of descriptors that a guest may need whose pages are not all dumped."""
    guest = plan.guest
    if guest.filtered is None:
        return 0
    more = min(plan.head.page_count // 4 + _MORE_PAGES, guest.excluded_size // guest.page_size)
    # Less than a page between the old place of the page of zeros and the new one is of no use.
    return align_up(more * PAGE_DESCRIPTOR.size + guest.page_size, guest.page_size)
