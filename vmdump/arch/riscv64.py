"""64-bit RISC-V.

Source of the layout: Linux' ``struct user_regs_struct`` (arch/riscv/include/uapi/asm/ptrace.h). QEMU writes
no floating-point note.
"""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import prstatus, words
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["ARCH", "REGISTERS", "kernel_to_phys"]

REGISTERS = (
    *("pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"),
    *("a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"),
    *("s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6"),
)
"""pc, then x1 to x31 by their names in the calling convention."""


def kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    """Find the kernel's image."""
    offset = vmcoreinfo.number("va_kernel_pa_offset")
    return None if offset is None else address - offset


ARCH = Arch(
    "riscv64",
    machine=243,
    uts_machine="riscv64",
    elf_class=64,
    byteorder="little",
    register_notes=(prstatus("riscv64", 8, words("u8", *REGISTERS), fpvalid=False),),
    kernel_to_phys=kernel_to_phys,
    page_tables="riscv:riscv_spaces",
)
