"""What differs per CPU architecture, as one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmdump.formats.elf import ElfClass
from vmdump.formats.kdump import SubHeaderForm
from vmdump.formats.layout import ByteOrder
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["Arch", "lowest_block"]


def _zero(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    return 0


def lowest_block(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    """Take the start of the lowest block for phys_base, as QEMU does for ARM."""
    return lowest


def _unknown(vmcoreinfo: Vmcoreinfo, address: int) -> int | None:
    return None


@dataclass(frozen=True)
class Arch:
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
    page_size : int
        The dump's block size in bytes where VMCOREINFO does not tell the guest's, as QEMU has it.
    sub_header_32 : str
        How the C compiler of this architecture lays out the 32-bit kdump sub-header.
    max_end_32 : int
        The highest end of memory, a guest-physical address, that a 32-bit file of this architecture holds.
    phys_base : callable
        ``(vmcoreinfo, start of the lowest block) -> int``, the kdump sub-header's phys_base; may be negative.
    kernel_image_to_phys : callable
        ``(vmcoreinfo, virtual address of a kernel symbol) -> int or None``, its guest-physical address
        where that needs no page table.
    """

    name: str
    machine: int
    uts_machine: str
    elf_class: ElfClass
    byteorder: ByteOrder
    page_size: int = 4096
    sub_header_32: SubHeaderForm = "32 padded"
    max_end_32: int = 1 << 32
    phys_base: Callable[[Vmcoreinfo, int], int] = _zero
    kernel_image_to_phys: Callable[[Vmcoreinfo, int], int | None] = _unknown
