"""What differs per CPU architecture, as one record.

Page frames are counted from address 0 on all of them: ARCH_PFN_OFFSET is 0 in every kdump that QEMU writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from vmdump.arch.registers import RegisterNote, build_cpus, parse_cpus
from vmdump.formats.elf import ElfClass
from vmdump.formats.kdump import SubHeaderForm
from vmdump.formats.layout import ByteOrder
from vmdump.formats.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from vmdump.arch.paging.tables import FindSpaces

__all__ = ["Arch", "linear_map", "lowest_block"]

_PAGE_OFFSETS = (0xC0000000, 0x80000000, 0x40000000)
_NEAR = 0x1FFFFFFF
"""_stext is in the first 512 MiB behind PAGE_OFFSET: i386 moves its image so far."""


def _zero(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    return 0


def lowest_block(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    """Take the start of the lowest block for phys_base, as QEMU does for ARM."""
    return lowest


def _unknown(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    return None


def linear_map(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    """Find what a 32-bit Linux maps in one piece: memory from its start on, at PAGE_OFFSET.

    No VMCOREINFO tells PAGE_OFFSET, which a kernel is built with; these are the usual ones. Nor does it tell
    where that memory ends and vmalloc's begins.
    """
    begin = (vmcoreinfo.symbol("_stext") or 0) & ~_NEAR
    return address - begin + lowest if begin in _PAGE_OFFSETS and begin <= address < 1 << 32 else None


class Arch(NamedTuple):
    """One CPU architecture in one byte order.

    Attributes
    ----------
    name : str
        What a user writes in ``arch=``.
    machine : int
        e_machine of the ELF header.
    uts_machine : str
        utsname.machine of the kdump header, as ``uname -m`` prints it.
    elf_class : int
        32 or 64.
    byteorder : str
        ``little`` or ``big``.
    register_notes : tuple of RegisterNote
        The notes that QEMU writes for each vCPU, in its order.
    short_names : tuple of (str, str)
        Registers by two names, the second one wider: whoever gives one of them gives both.
    page_sizes : tuple of int
        Sizes in bytes that Linux' pages can have there; any other size in VMCOREINFO is not believed.
    page_size : int
        The dump's block size in bytes where VMCOREINFO does not tell the guest's, as QEMU has it.
    sub_header_32 : str
        How the C compiler of this architecture lays out the 32-bit kdump sub-header.
    max_end_32 : int
        The highest end of memory, a guest-physical address, that a 32-bit file of this architecture holds.
    phys_base : callable
        ``(vmcoreinfo, start of the lowest block) -> int``, the kdump sub-header's phys_base; may be negative.
    kernel_to_phys : callable
        ``(vmcoreinfo, virtual address, start of the lowest block) -> int or None``, the guest-physical
        address of what Linux maps directly, its image above all; None where it takes page tables to know.
    kernel_to_phys_is_sure : bool
        False where that assumes what VMCOREINFO does not tell: what is not found there may be elsewhere.
    page_tables : str
        ``module:function`` in `vmdump.arch.paging` that finds the page tables, loaded only when asked for;
        empty where there is no page-table walk.
    """

    name: str
    machine: int
    uts_machine: str
    elf_class: ElfClass
    byteorder: ByteOrder
    register_notes: tuple[RegisterNote, ...] = ()
    short_names: tuple[tuple[str, str], ...] = ()
    page_sizes: tuple[int, ...] = (4096,)
    page_size: int = 4096
    sub_header_32: SubHeaderForm = "32 padded"
    max_end_32: int = 1 << 32
    phys_base: Callable[[Vmcoreinfo, int], int] = _zero
    kernel_to_phys: Callable[[Vmcoreinfo, int, int], int | None] = _unknown
    kernel_to_phys_is_sure: bool = True
    page_tables: str = ""

    @property
    def address_spaces(self) -> FindSpaces | None:
        """The function that finds a guest's page tables; None where there is no page-table walk."""
        module, _, name = self.page_tables.partition(":")
        return getattr(import_module(f"vmdump.arch.paging.{module}"), name) if name else None

    def notes(self, cpus: Sequence[Mapping[str, int]], byteorder: ByteOrder | None = None) -> bytes:
        """Make the notes of vCPUs, as QEMU would write them.

        NT_PRSTATUS is always among them, and so is the QEMU note of x86; another note where one of its
        registers is given.

        Parameters
        ----------
        cpus : sequence of mapping of str to int
            The registers of each vCPU by name, as `cpus` gives them. What is not given is zero.
        byteorder : {"little", "big"}, optional
            Where it is not the architecture's usual one.

        Raises
        ------
        RequestError
            A register has no place in the notes, or a value does not fit its register.
        """
        return build_cpus(
            self.register_notes, [self._completed(cpu) for cpu in cpus], byteorder or self.byteorder
        )

    def _completed(self, registers: Mapping[str, int]) -> dict[str, int]:
        completed = dict(registers)
        for short, long in self.short_names:
            if short in registers:
                completed.setdefault(long, registers[short])
            elif long in registers:
                completed[short] = registers[long] & 0xFFFFFFFF
        return completed

    def cpus(self, notes: bytes, byteorder: ByteOrder | None = None) -> tuple[Mapping[str, int], ...]:
        """Find the registers of each vCPU in the notes of a dump; see :attr:`vmdump.guest.guest.Guest.cpus`.

        Raises
        ------
        FormatError
            A note is longer than the notes, or there are more vCPUs than any guest has.
        """
        return parse_cpus(self.register_notes, notes, byteorder or self.byteorder)
