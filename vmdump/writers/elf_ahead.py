"""The memory of a running guest, written before its pause into the ELF core that it will be in."""

from __future__ import annotations

from dataclasses import replace

from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.base import Ahead
from vmdump.writers.elf_filtered import for_core
from vmdump.writers.elf_head import UNIT, elf_head
from vmdump.writers.elf_memory import write_memory
from vmdump.writers.elf_partial import kept_core
from vmdump.writers.elf_plan import ElfPlan, plan_elf
from vmdump.writers.lanes import PlainFile
from vmdump.writers.loads import Selection
from vmdump.writers.seen import note_read, pages_ahead
from vmdump.writers.tally import Tally

__all__ = ["ElfAhead"]

_MORE_MAPPINGS = 64 << 10
"""Bytes: program headers of 1170 mappings that a guest may add while its memory is written ahead."""


class ElfAhead(Ahead):
    """Memory at its place in the core, where that may change behind room for more program headers than now.

    The list of page tables' mappings changes, and which pages a filter leaves out. What a filtered guest
    comes to have beside what it has now goes behind all of that; what it comes to lack becomes zeros there.

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
        if mappings is not None or guest.filtered is not None:
            room = 2 * len(self._head.content) + _MORE_MAPPINGS
            self._head = elf_head(guest, slices, mappings, memory_offset=align_up(room, UNIT))
        control.start(sum(piece.size for piece in slices))
        self._written = pages_ahead(guest, UNIT, sink)
        try:
            file = PlainFile(sink, control.cancelled)
            lane = file.lane(len(self._head.content))
            with kept_core(guest, self._head, sink, lane):
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
        if guest.filtered is not None:
            return self._plan_filtered(for_core(guest))
        room = len(self._head.content) if self._selection.paging else 0
        plan = plan_elf(guest, self._selection, memory_offset=room)
        if plan.head.same_places(self._head):
            return replace(plan, ahead=self._written)
        self._sink.clear()
        return plan

    def _plan_filtered(self, guest: Guest) -> ElfPlan:
        room, before = len(self._head.content), self._head.pieces
        if before.sizes.size:
            plan = plan_elf(guest, self._selection, memory_offset=room, before=before)
            whole = not any((piece.start | piece.size | piece.block.start) % UNIT for piece in plan.slices)
            if whole and len(plan.head.content) == room:
                note_read(self._written, guest)
                return replace(plan, ahead=self._written)
        self._sink.clear()
        return plan_elf(guest, self._selection)

    def close(self) -> None:
        """Remove the temporary file."""
        self._written.close()
