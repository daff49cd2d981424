"""What is known of a guest's Linux kernel: its VMCOREINFO, who told it, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

from vmdump.arch import Arch, arch_by_uts_machine
from vmdump.errors import CodecError, FormatError, ReadError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import VMCOREINFO_NAME, build_note, find_vmcoreinfo, without_notes
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.linux.found import FoundVmcoreinfo
from vmdump.guest.linux.utsname import UTS_SIZE, Utsname
from vmdump.units import ADDRESS_LIMIT

__all__ = ["Kernel", "Told"]


class Told(NamedTuple):
    """The VMCOREINFO that a guest tells or was given, and whether another one is looked for.

    Attributes
    ----------
    notes : bytes
        All ELF notes of the guest; VMCOREINFO is one of them, if it is told.
    byteorder : {"little", "big"}
        Of the notes.
    lines : Vmcoreinfo
        By its keys; empty where the notes have none.
    found : FoundVmcoreinfo or None
        Where the lines were found, if they were.
    search : bool
        VMCOREINFO is looked for in memory where it is not told, when it is first asked for.
    progress : callable or None
        Told (done, total) in bytes of memory by a search that takes longer than a second.
    """

    notes: bytes
    byteorder: ByteOrder
    lines: Vmcoreinfo
    found: FoundVmcoreinfo | None = None
    search: bool = True
    progress: Callable[[int, int], object] | None = None

    @classmethod
    def by_notes(cls, notes: bytes, byteorder: ByteOrder) -> Self:
        """Take what the notes tell.

        Raises
        ------
        FormatError
            A note is longer than the notes.
        """
        note = find_vmcoreinfo(notes, byteorder)
        return cls(notes, byteorder, Vmcoreinfo(note.desc if note else b""))

    def with_text(self, text: bytes, found: FoundVmcoreinfo | None = None) -> Self:
        """Let a text, which may have been found in memory, take the place of what the notes tell."""
        others = without_notes(self.notes, VMCOREINFO_NAME, self.byteorder)
        notes = others + build_note(VMCOREINFO_NAME, 0, text, self.byteorder)
        return self._replace(notes=notes, lines=Vmcoreinfo(text), found=found)

    @property
    def is_whole(self) -> bool:
        """Whether it is whole enough to name a release."""
        return "OSRELEASE" in self.lines


class Kernel(NamedTuple):
    """A guest's Linux kernel as a VMCOREINFO describes it, which may be that of another kernel.

    Attributes
    ----------
    vmcoreinfo : Vmcoreinfo
        What describes it; empty where nothing does.
    arch : Arch
        The guest's architecture.
    lowest : int
        Guest-physical address of the guest's first memory.
    """

    vmcoreinfo: Vmcoreinfo
    arch: Arch
    lowest: int

    @property
    def release(self) -> bytes:
        """As ``uname -r`` prints it; empty where that is not told."""
        return self.vmcoreinfo.get("OSRELEASE", "").encode("utf-8", "surrogateescape")

    @property
    def phys_base(self) -> int:
        """Where its image was moved to, as an unsigned 64-bit number."""
        return self.arch.phys_base(self.vmcoreinfo, self.lowest) % ADDRESS_LIMIT

    def to_phys(self, address: int) -> int | None:
        """Find what it maps directly; see :meth:`vmdump.guest.guest.Guest.kernel_to_phys`."""
        return self.arch.kernel_to_phys(self.vmcoreinfo, address, self.lowest)

    def names_in(self, read: Callable[[int, int], bytes]) -> Utsname | None:
        """Read its names where they should be; None if something else is there.

        Parameters
        ----------
        read : callable
            ``(guest-physical address, length) -> bytes``.
        """
        virtual = self.vmcoreinfo.symbol("init_uts_ns")
        offset = self.vmcoreinfo.offset("uts_namespace.name")
        if virtual is None or offset is None:
            return None
        address = self.to_phys(virtual + offset)
        if address is None:
            return None
        try:
            names = Utsname.unpack(read(address, UTS_SIZE))
        except (ReadError, FormatError, CodecError):  # not there, or damaged
            return None
        plausible = names is not None and names.is_of(self.release) and names.version and names.machine
        return names if plausible else None

    def complete(self, names: Utsname | None, elf_class: ElfClass, byteorder: ByteOrder) -> Utsname:
        """Give all the names that readers take.

        Parameters
        ----------
        names : Utsname or None
            Those that are known besides the release, if any are.
        elf_class, byteorder
            Of the guest.
        """
        names = names or Utsname.of_release(self.release)
        machine, arch = names.machine, self.arch
        if arch.uts_machine:
            meant = arch_by_uts_machine(machine.decode("ascii", "replace"), elf_class, byteorder)
            machine = machine if meant.machine == arch.machine else arch.uts_machine.encode()
        return names.completed(machine) if names.release else names._replace(machine=machine)
