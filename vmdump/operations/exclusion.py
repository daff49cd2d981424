"""Which pages a dump of one guest leaves out: told while it runs, and decided when it is held."""

from __future__ import annotations

from collections.abc import Callable

from vmdump.errors import CapabilityError
from vmdump.guest.guest import Guest
from vmdump.guest.linux.page_types.ahead import TypesAhead
from vmdump.guest.linux.page_types.filter import filtered
from vmdump.guest.linux.page_types.types import demand_vmcoreinfo, tell_types
from vmdump.guest.linux.page_types.way_out import DUMP_ALL, naming_way_out
from vmdump.pipeline.ahead import new_key

__all__ = ["Exclusion"]


class Exclusion:
    """Leaves out pages by what the guest's kernel tells of them.

    Parameters
    ----------
    level : int
        What is left out, in makedumpfile's bits.
    threads : int
        Threads that read and tell.
    check : callable
        Called now and then; raises to end it.
    """

    def __init__(self, level: int, *, threads: int, check: Callable[[], None]) -> None:
        self._level = level
        self._threads = threads
        self._check = check
        self._ahead: TypesAhead | None = None

    def of(self, guest: Guest) -> Guest:
        """Give a guest without the pages that are left out, by what its struct pages hold now.

        Raises
        ------
        CapabilityError
            Types of pages cannot be told.
        SourceError
            The memory cannot be read.
        """
        with naming_way_out(DUMP_ALL):
            types = tell_types(guest, threads=self._threads, check=self._check, ahead=self._ahead)
        return filtered(guest, types, self._level, self._ahead)

    def of_running(self, guest: Guest) -> Guest | None:
        """Give a guest that runs on without them as they are now; None where it changes too much for that.

        What is in the dump is decided by the guest that is held: this may be packed early, and be dropped.

        Raises
        ------
        CapabilityError
            Its VMCOREINFO is missing, or of another kernel.
        SourceError
            The memory cannot be read.
        """
        with naming_way_out(DUMP_ALL):
            demand_vmcoreinfo(guest)
        self._ahead = TypesAhead(new_key(), guest.page_size)
        try:
            return self.of(guest)
        except CapabilityError:
            return None
