"""32-bit RISC-V."""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import prstatus, words
from vmdump.arch.riscv64 import REGISTERS, kernel_to_phys
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["ARCH"]


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    physical = kernel_to_phys(vmcoreinfo, address, lowest)
    # The offset has 32 bits: it wraps where memory is above the kernel's addresses.
    return None if physical is None else physical % (1 << 32)


ARCH = Arch(
    "riscv32",
    machine=243,
    uts_machine="riscv32",
    elf_class=32,
    byteorder="little",
    register_notes=(prstatus("riscv32", 4, words("u4", *REGISTERS), fpvalid=False),),
    kernel_to_phys=_kernel_to_phys,
    page_tables="riscv:riscv_spaces",
)
