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
from vmdump.writers.lanes import PlainFile
from vmdump.writers.loads import Selection
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
    """

    slices: list[Slice]
    head: ElfHead
    ahead: PagesAhead | None = None

    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the core, or of what was written ahead what has changed."""
        tally = Tally(output_bytes=self.head.file_size)
        file = PlainFile(sink, control.cancelled)
        lane = file.lane(0)
        lane.write(self.head.content)
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
        file.finish()
        return tally


def plan_elf(guest: Guest, selection: Selection, *, memory_offset: int = 0) -> ElfPlan:
    """Lay a guest out in an ELF core.

    Parameters
    ----------
    guest : Guest
        The guest.
    selection : Selection
        What of it is in the core.
    memory_offset : int
        Memory begins there, at a multiple of `UNIT`, or behind it.

    Raises
    ------
    VmdumpError
        As of :meth:`vmdump.writers.base.Writer.plan`.
    """
    slices, mappings = selection.slices(guest), selection.mappings(guest)
    size = sum(piece.size for piece in slices)
    head = elf_head(guest, slices, mappings, memory_offset=memory_offset)
    return ElfPlan(guest, size, size, slices, head)
