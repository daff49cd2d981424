"""64-bit MIPS in both byte orders.

Source of the layout: Linux' elf_gregset_t of the n64 ABI (arch/mips/include/asm/reg.h). QEMU has no dump of
these machines.
"""

from __future__ import annotations

from dataclasses import replace

from vmdump.arch.base import Arch
from vmdump.arch.registers import numbered, prstatus, words

__all__ = ["BIG", "LITTLE", "SPECIAL"]

SPECIAL = ("lo", "hi", "cp0_epc", "cp0_badvaddr", "cp0_status", "cp0_cause")

BIG = Arch(
    "mips64",
    machine=8,
    uts_machine="mips64",
    elf_class=64,
    byteorder="big",
    page_sizes=(4096, 16384, 65536),
    register_notes=(
        # elf_gregset_t has 45 words in both ABIs.
        prstatus(
            "mips64", 8, (*numbered("r", "u8", 0, 32), *words("u8", *SPECIAL)), fpvalid=False, padding=7 * 8
        ),
    ),
)
LITTLE = replace(BIG, name="mips64el", byteorder="little")
