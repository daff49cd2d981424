"""How an ELF core is written: headers and notes, then memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmdump.guest.guest import Guest
from vmdump.pipeline.ahead import PagesAhead
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.writers.base import Plan
from vmdump.writers.elf_head import ElfHead, elf_head
from vmdump.writers.elf_memory import write_memory
from vmdump.writers.elf_partial import kept_core
from vmdump.writers.lanes import Lane, PlainFile
from vmdump.writers.loads import Selection
from vmdump.writers.places import Pieces, PlacedLane
from vmdump.writers.tally import Tally

__all__ = ["ElfPlan", "plan_elf"]


@dataclass(frozen=True)
class ElfPlan(Plan):
    """A guest laid out in an ELF core.

    Attributes
    ----------
    slices : list of Slice
        The memory that is dumped.
    head : ElfHead
        What stands in front of it.
    ahead : PagesAhead or None
        Units of it that are in the sink already.
    before : Pieces or None
        Where memory was written ahead, if some of it is not dumped, or has no place there.
    """

    slices: list[Slice]
    head: ElfHead
    ahead: PagesAhead | None = None
    before: Pieces | None = None

    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the core, or of what was written ahead what has changed."""
        tally = Tally()
        file = PlainFile(sink, control.cancelled)
        lane: Lane = file.lane(0)
        lane.write(self.head.content)
        if self.before is not None:
            lane.finish()
            lane = PlacedLane(file.lane, self.head.pieces, self.before.end)
        with kept_core(self.guest, self.head, sink, lane):
            write_memory(
                self.guest,
                lane,
                self.slices,
                tally,
                threads=threads,
                control=control,
                ahead=self.ahead,
            )
            release()
            lane.finish()
        for offset, size in self.before.without(self.head.pieces) if self.before is not None else ():
            # Pages that are left out now.
            lane = file.lane(offset)
            lane.clear(size)
            lane.finish()
        file.finish()
        if sink.keeps:
            sink.keep()
        tally.output_bytes = file.size
        return tally


def plan_elf(
    guest: Guest, selection: Selection, *, memory_offset: int = 0, before: Pieces | None = None
) -> ElfPlan:
    """Lay a guest out in an ELF core.

    Parameters
    ----------
    guest : Guest
        The guest.
    selection : Selection
        What of it is in the core.
    memory_offset : int
        Memory begins there, at a multiple of `UNIT`, or behind it.
    before : Pieces, optional
        What was written ahead, and where.

    Raises
    ------
    VmdumpError
        As of :meth:`vmdump.writers.base.Writer.plan`.
    """
    slices, mappings = selection.slices(guest), selection.mappings(guest)
    size = sum(piece.size for piece in slices)
    head = elf_head(guest, slices, mappings, memory_offset=memory_offset, before=before)
    return ElfPlan(guest, size, size, slices, head, before=before)
