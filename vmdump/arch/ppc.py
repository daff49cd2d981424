"""32-bit PowerPC."""

from __future__ import annotations

from vmdump.arch.base import Arch, linear_map
from vmdump.arch.powerpc import register_notes, user_registers
from vmdump.arch.registers import prstatus

__all__ = ["ARCH"]

_LINUX = prstatus("ppc", 4, user_registers("u4"), fpvalid=False, padding=16).layout

ARCH = Arch(
    "ppc",
    machine=20,
    uts_machine="ppc",
    elf_class=32,
    byteorder="big",
    page_sizes=(4096, 16384, 65536),
    register_notes=register_notes("ppc", "u4", others=(_LINUX,)),
    kernel_to_phys=linear_map,
    kernel_to_phys_is_sure=False,
)
