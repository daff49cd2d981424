"""64-bit MIPS in both byte orders.

Source of the layout: Linux' elf_gregset_t of the n64 ABI (arch/mips/include/asm/reg.h). QEMU does not dump
these machines.
"""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import numbered, prstatus, words
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["BIG", "LITTLE", "SPECIAL", "kernel_to_phys"]

SPECIAL = ("lo", "hi", "cp0_epc", "cp0_badvaddr", "cp0_status", "cp0_cause")

_KSEG0, _KSEG2 = 0x80000000, 0xC0000000
_XKPHYS = 0b10
"""Top two bits of addresses that are physical ones, with three bits about caches between."""


def kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    """Find what the processor maps without tables: kseg0 and kseg1, and xkphys of 64 bits."""
    # A 64-bit kernel has kseg0 and kseg1 with the sign extended.
    if address >> 32 in (0, 0xFFFFFFFF) and _KSEG0 <= address & 0xFFFFFFFF < _KSEG2:
        return address & (1 << 29) - 1
    return address & (1 << 59) - 1 if address >> 62 == _XKPHYS else None


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
    kernel_to_phys=kernel_to_phys,
    page_tables="mips64:mips64_spaces",
)
LITTLE = BIG._replace(name="mips64el", byteorder="little")
