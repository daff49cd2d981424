"""ELF core: headers and notes, then memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmdump.errors import CapabilityError
from vmdump.guest.guest import Guest
from vmdump.pipeline.ahead import PagesAhead
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.writers.base import Ahead, Plan, Writer
from vmdump.writers.elf_head import UNIT, ElfHead, elf_head
from vmdump.writers.elf_memory import write_memory
from vmdump.writers.lanes import PlainFile
from vmdump.writers.loads import Selection
from vmdump.writers.tally import Tally

__all__ = ["ElfWriter"]


class ElfWriter(Writer):
    """ELF cores.

    Parameters
    ----------
    selection : Selection
        What of a guest is in them.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def check(self, guest: Guest) -> None:
        """Refuse a guest whose page tables nobody can walk, or without memory in the range."""
        if self.selection.paging and guest.arch.address_spaces is None:
            raise CapabilityError(f"paging: no page-table walk for {guest.arch.name} in this version")
        self.selection.slices(guest)

    def plan(self, guest: Guest, *, memory_offset: int = 0) -> ElfPlan:
        """Lay a guest out; memory begins at `memory_offset`, a multiple of `UNIT`, or behind it."""
        slices, mappings = self.selection.slices(guest), self.selection.mappings(guest)
        size = sum(piece.size for piece in slices)
        head = elf_head(guest, slices, mappings, memory_offset=memory_offset)
        return ElfPlan(guest, size, size, slices, head)

    def writes_ahead(self, sink: Sink) -> bool:
        """Tell whether it is a file, in which what is skipped is zeros."""
        return sink.sparse

    def write_ahead(self, guest: Guest, sink: Sink, *, threads: int, control: Control) -> Ahead | None:
        """Write all memory that is not zero; None if it does not consist of whole units."""
        slices = self.selection.slices(guest)
        if any((piece.start | piece.size | piece.block.start) % UNIT for piece in slices):
            return None
        from vmdump.writers.elf_ahead import ElfAhead  # few guests run

        return ElfAhead(self, guest, sink, threads=threads, control=control)


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
        tally = Tally(size=self.head.file_size)
        with PlainFile(sink, control.cancelled) as file:
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
