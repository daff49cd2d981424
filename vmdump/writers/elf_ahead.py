"""The memory of a running guest, written before its pause into the ELF core that it will be in."""

from __future__ import annotations

from dataclasses import replace

from vmdump.guest.guest import Guest
from vmdump.pipeline.ahead import PagesAhead
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.base import Ahead
from vmdump.writers.elf_head import UNIT, elf_head
from vmdump.writers.elf_memory import write_memory
from vmdump.writers.elf_plan import ElfPlan, plan_elf
from vmdump.writers.lanes import PlainFile
from vmdump.writers.loads import Selection
from vmdump.writers.tally import Tally

__all__ = ["ElfAhead"]

_MORE_MAPPINGS = 64 << 10
"""Bytes: program headers of 1170 mappings that a guest may add while its memory is written ahead."""


class ElfAhead(Ahead):
    """Memory at its place in the core; with page tables behind room for more program headers than now.

    Parameters
    ----------
    guest : Guest
        The guest as it is now; its memory consists of whole units.
    selection : Selection
        What of it is in the core.
    sink : Sink
        Sparse.
    threads, control
        As for :meth:`vmdump.writers.base.Writer.write_ahead`.

    Raises
    ------
    SourceError, SinkError, Cancelled
        And nothing is committed.
    """

    def __init__(
        self, guest: Guest, selection: Selection, sink: Sink, *, threads: int, control: Control
    ) -> None:
        self._selection = selection
        self._sink = sink
        slices, mappings = selection.slices(guest), selection.mappings(guest)
        self._head = elf_head(guest, slices, mappings)
        if mappings is not None:
            room = 2 * len(self._head.content) + _MORE_MAPPINGS
            self._head = elf_head(guest, slices, mappings, memory_offset=align_up(room, UNIT))
        control.start(sum(piece.size for piece in slices))
        self._written = PagesAhead(UNIT, sink.folder)
        try:
            file = PlainFile(sink, control.cancelled)
            lane = file.lane(len(self._head.content))
            write_memory(
                guest,
                lane,
                slices,
                Tally(),
                threads=threads,
                control=control,
                record=self._written,
            )
            lane.finish()
        except BaseException:
            self.close()
            raise

    def plan(self, guest: Guest) -> ElfPlan:
        """Lay the guest out with its memory where it was written, if there is room for what comes before."""
        room = len(self._head.content) if self._selection.paging else 0
        plan = plan_elf(guest, self._selection, memory_offset=room)
        if plan.head.same_places(self._head):
            return replace(plan, ahead=self._written)
        self._sink.clear()
        return plan

    def close(self) -> None:
        """Remove the temporary file."""
        self._written.close()
