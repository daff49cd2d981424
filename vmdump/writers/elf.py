"""ELF cores."""

from __future__ import annotations

from vmdump.errors import CapabilityError
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.writers.base import Ahead, Writer
from vmdump.writers.elf_filtered import for_core
from vmdump.writers.elf_head import UNIT
from vmdump.writers.elf_plan import ElfPlan, plan_elf
from vmdump.writers.loads import Selection

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
        """Refuse a guest whose kind of page tables is unknown, or without memory in the range."""
        if self.selection.paging and guest.arch.address_spaces is None:
            raise CapabilityError(f"paging: no page-table walk for {guest.arch.name} in this version")
        self.selection.slices(guest)

    def plan(self, guest: Guest) -> ElfPlan:
        """Lay a guest out."""
        return plan_elf(for_core(guest), self.selection)

    def writes_ahead(self, sink: Sink) -> bool:
        """Tell whether it is a file, in which what is skipped is zeros."""
        return sink.sparse

    def write_ahead(self, guest: Guest, sink: Sink, *, threads: int, control: Control) -> Ahead | None:
        """Write all memory that is not zero; None if it does not consist of whole units.

        None also where mappings tell of a guest that was filtered: they are cut where pages are left out.
        """
        if guest.filtered is not None and self.selection.paging:
            return None
        guest = for_core(guest)
        slices = self.selection.slices(guest)
        if any((piece.start | piece.size | piece.block.start) % UNIT for piece in slices):
            return None
        from vmdump.writers.elf_ahead import ElfAhead  # few guests run

        return ElfAhead(guest, self.selection, sink, threads=threads, control=control)
