"""What QEMU 7.2 writes into its dumps, architecture by architecture, whatever the guest is.

Source: dumps that QEMU 7.2.22 made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.units import ADDRESS_LIMIT

__all__ = ["TARGETS", "QemuTarget"]

_HEXADECIMAL = re.compile(r"\s*([+-]?)(?:0[xX])?([0-9a-fA-F]+)")


@dataclass(frozen=True)
class QemuTarget:
    """QEMU's dumps of guests of one architecture.

    Attributes
    ----------
    uts_machine : bytes
        utsname.machine of its kdump files.
    page_size : int
        Block size of its kdump files, in bytes.
    phys_base_line : str
        The line of VMCOREINFO that phys_base comes from; empty if QEMU does not look there.
    lowest_block : bool
        Without that line phys_base is the start of the lowest block, else 0.
    page_tables : bool
        QEMU walks page tables; of other guests it ignores a demand for paging.
    """

    uts_machine: bytes = b"Unknown"
    page_size: int = 4096
    phys_base_line: str = ""
    lowest_block: bool = False
    page_tables: bool = False

    def phys_base(self, vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
        """Give phys_base as an unsigned 64-bit number: whatever the line says is read as hexadecimal.

        Parameters
        ----------
        vmcoreinfo : Vmcoreinfo
            Of the guest.
        lowest : int
            Guest-physical address of its first byte of memory.
        """
        match = _HEXADECIMAL.fullmatch(vmcoreinfo.get(self.phys_base_line, ""))
        if match is None or int(match[2], 16) >= ADDRESS_LIMIT:
            return lowest if self.lowest_block else 0
        number = int(match[2], 16)
        return -number % ADDRESS_LIMIT if match[1] == "-" else number


_PPC64 = QemuTarget(page_size=65536)
TARGETS = {
    "x86_64": QemuTarget(b"x86_64", phys_base_line="NUMBER(phys_base)", page_tables=True),
    "i386": QemuTarget(b"i686", page_tables=True),
    "aarch64": QemuTarget(page_size=65536, phys_base_line="NUMBER(PHYS_OFFSET)", lowest_block=True),
    "arm": QemuTarget(lowest_block=True),
    "ppc64": _PPC64,
    "ppc64le": _PPC64,
    "ppc": QemuTarget(),
    "s390x": QemuTarget(b"S390X"),
    "riscv64": QemuTarget(),
    "riscv32": QemuTarget(),
}
"""By the name of the architecture; QEMU 7.2 does not dump others.

An i386 guest is one of qemu-system-i386 here, and a ppc64 guest one of the machine pseries."""
