"""64-bit PowerPC in both byte orders: pseries and powernv."""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.powerpc import register_notes
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["BIG", "LITTLE"]

_DIRECT_BITS = 51
_DIRECT = 0xC000000000000000 >> _DIRECT_BITS
"""Top 13 bits of the addresses at which all memory is mapped; vmalloc begins at 0xc008000000000000."""


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    return address & (1 << _DIRECT_BITS) - 1 if address >> _DIRECT_BITS == _DIRECT else None


# 64 KiB is what Linux uses on most of these machines, and what QEMU takes for pseries.
BIG = Arch(
    "ppc64",
    machine=21,
    uts_machine="ppc64",
    elf_class=64,
    byteorder="big",
    register_notes=register_notes("ppc64", "u8"),
    page_sizes=(4096, 65536),
    page_size=65536,
    kernel_to_phys=_kernel_to_phys,
    page_tables="ppc64:ppc64_spaces",
)
LITTLE = BIG._replace(name="ppc64le", uts_machine="ppc64le", byteorder="little")
