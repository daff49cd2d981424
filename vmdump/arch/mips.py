"""32-bit MIPS in both byte orders: elf_gregset_t of the o32 ABI, six unused words in front."""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.mips64 import SPECIAL, kernel_to_phys
from vmdump.arch.registers import numbered, prstatus, words
from vmdump.formats.layout import Field

__all__ = ["BIG", "LITTLE"]

BIG = Arch(
    "mips",
    machine=8,
    uts_machine="mips",
    elf_class=32,
    byteorder="big",
    page_sizes=(4096, 16384, 65536),
    register_notes=(
        prstatus(
            "mips",
            4,
            (Field("pad_arguments", "V24"), *numbered("r", "u4", 0, 32), *words("u4", *SPECIAL)),
            fpvalid=False,
            padding=4,
        ),
    ),
    kernel_to_phys=kernel_to_phys,
)
LITTLE = BIG._replace(name="mipsel", byteorder="little")
