"""What is written of a running guest before it is paused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmdump.codecs.engines import PagePacker
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.pipeline.known import KnownPages
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.writers.elf import UNIT, ElfPlan, plan_elf, write_elf_early
from vmdump.writers.kdump import EarlyPages, KdumpPlan, write_early

if TYPE_CHECKING:
    from vmdump.operations.request import Request

__all__ = ["Early"]


class Early:
    """What was written of a running guest before it was stopped.

    Attributes
    ----------
    make_packer : callable or None
        What made the packers, for those pages that have to be packed again.
    """

    def __init__(self, request: Request, output: Sink, control: Control) -> None:
        self._request = request
        self._output = output
        self._control = control
        self.make_packer: Callable[[int], PagePacker] | None = None
        self._known: KnownPages | None = None
        self._pages: EarlyPages | None = None
        self._plan: ElfPlan | None = None

    def write(self, guest: Guest) -> None:
        """Write the guest as it is now."""
        request, threads, control = self._request, self._request.threads, self._control
        slices, plan = request.lay_out(guest)
        control.start(plan.memory_size if plan else sum(piece.size for piece in slices))
        self.close()
        self._known = known = KnownPages(guest.page_size if plan else UNIT, self._output.folder)
        if plan is None:
            self._plan = write_elf_early(
                guest,
                slices,
                self._output,
                known,
                threads=threads,
                control=control,
                mappings=request.list_mappings(guest),
            )
        else:
            self.make_packer = make_packer = request.packers(guest)
            self._pages = write_early(
                guest, plan, self._output, known, make_packer=make_packer, threads=threads, control=control
            )

    def pages_for(self, guest: Guest, plan: KdumpPlan) -> EarlyPages | None:
        """Give what is there of a kdump file; None, and an empty output, if it is of no use for the plan."""
        if self._pages is not None and not self._pages.fit(plan, guest.page_size):
            self._pages = self.make_packer = None
            self._output.clear()
        return self._pages

    def units_for(self, guest: Guest, slices: list[Slice]) -> tuple[ElfPlan, KnownPages | None]:
        """Give the plan, and what is there of an ELF file.

        It is None, and the output empty, if its memory is elsewhere now.
        """
        mappings, early = self._request.list_mappings(guest), self._plan
        # With mappings there is room in front of memory, as nobody knows how many there will be.
        room = len(early.head) if early is not None and mappings is not None else 0
        plan = plan_elf(guest, slices, mappings, memory_offset=room)
        if early is None:
            return plan, None
        if not early.same_places(plan):
            self._output.clear()
            return plan, None
        return plan, self._known

    def close(self) -> None:
        """Give back its temporary file."""
        if self._known is not None:
            self._known.close()
            self._known = None
