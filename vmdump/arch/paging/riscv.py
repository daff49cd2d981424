"""Page tables of RISC-V: Sv32, Sv39, Sv48 and Sv57.

Source: the RISC-V Privileged Architecture, chapter "Supervisor-Level ISA", with Svnapot and Svpbmt.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, TableFormat, Words

__all__ = ["riscv_spaces"]

_BITS = (32, 39, 48, 57)
_READ_WRITE_EXECUTE = 0xE
_PPN = (1 << 54) - (1 << 10)
_NAPOT = 1 << 63
_NAPOT_PAGES = 0xF
"""With bit 63 the lowest 4 bits of the page number say that 16 pages are one; each has bits of its own."""


def _decode(
    entries: Words, level: int, places: Words, *, shifts: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    address = (entries & np.uint64(_PPN)) << np.uint64(2)
    leaf = (entries & np.uint64(_READ_WRITE_EXECUTE)) != 0
    if level == len(shifts) - 1:
        table = np.zeros(entries.shape, bool)
        napot = (entries & np.uint64(_NAPOT)) != 0
        pages = np.uint64(_NAPOT_PAGES)
        own = address & ~(pages << np.uint64(12)) | (places & pages) << np.uint64(12)
        return table, leaf, np.where(napot, own, address)
    # A large page that does not begin at a multiple of its size is a fault.
    aligned = (address & np.uint64((1 << shifts[level]) - 1)) == 0
    return ~leaf, leaf & aligned, address


@cache
def _format(bits: int) -> TableFormat:
    """Give the format by the bits of an address that are translated."""
    # Sv32 has entries of 4 bytes, which have no attributes above the address.
    shifts = (22, 12) if bits == 32 else tuple(reversed(range(12, bits, 9)))
    return TableFormat(bits, shifts, partial(_decode, shifts=shifts), entry_size=4 if bits == 32 else 8)


def riscv_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the kernel's page tables by VMCOREINFO; no note has the register satp.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO's ``VA_BITS`` is the mode.
    """
    bits, root = facts.vmcoreinfo.number("VA_BITS"), facts.root
    if root is None or bits not in _BITS:
        return AddressSpaces()
    return AddressSpaces(AddressSpace(_format(bits), root, "zeros" if bits == 32 else "sign"))
