"""32-bit RISC-V."""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import prstatus, words
from vmdump.arch.riscv64 import REGISTERS

__all__ = ["ARCH"]

ARCH = Arch(
    "riscv32",
    machine=243,
    uts_machine="riscv32",
    elf_class=32,
    byteorder="little",
    register_notes=(prstatus("riscv32", 4, words("u4", *REGISTERS), fpvalid=False),),
)
