"""Page tables of AArch64: granules of 4, 16 and 64 KiB.

Source: Arm's Architecture Reference Manual, chapter D8 (VMSAv8-64).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, TableFormat, Words

__all__ = ["aarch64_format", "aarch64_spaces"]

_GRANULES: dict[int | None, int] = {4096: 12, 16384: 14, 65536: 16}
_BITS = range(25, 53)
"""A 64-bit address has at least 12 that are not translated (FEAT_LVA), and at most 39 (T1SZ)."""
_TABLE_OR_PAGE = 2
_BLOCK_SHIFTS = {12: (30, 21), 14: (25,), 16: (42, 29)}
"""Levels with blocks. Those of 512 GiB (4 KiB granules) and 64 GiB (16 KiB) need 52-bit addresses."""
_BLOCK_SHIFTS_52 = {12: (39, 30, 21), 14: (36, 25), 16: (42, 29)}


def _decode(
    entries: Words, level: int, places: Words, *, shifts: tuple[int, ...], wide: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    granule, shift = shifts[-1], shifts[level]
    kind = (entries & np.uint64(_TABLE_OR_PAGE)) != 0
    nothing = np.zeros(entries.shape, bool)
    if level == len(shifts) - 1:
        table, page = nothing, kind
    else:
        blocks = (_BLOCK_SHIFTS_52 if wide else _BLOCK_SHIFTS)[granule]
        table, page = kind, ~kind if shift in blocks else nothing
    top = 50 if wide and granule < 16 else 48
    address = entries & np.uint64((1 << top) - (1 << granule))
    whole = entries & np.uint64((1 << top) - (1 << shift))
    if granule == 16:
        # Bits 51:48 are where a smaller granule has bits 15:12; a kernel of 48-bit addresses has zeros there.
        high = (entries & np.uint64(0xF000)) << np.uint64(36)
    elif wide:
        high = (entries & np.uint64(0x300)) << np.uint64(42)
    else:
        high = np.zeros_like(entries)
    return table, page, np.where(page, whole, address) | high


@cache
def aarch64_format(page_shift: int, bits: int) -> TableFormat:
    """Give the format of the tables of one half of the address space.

    Parameters
    ----------
    page_shift : int
        12, 14 or 16: the granule.
    bits : int
        Of an address that are translated: 64 less T0SZ or T1SZ. More than 48 need 52-bit physical addresses
        where the granule is 4 or 16 KiB (FEAT_LPA2).
    """
    per_level = page_shift - 3
    shifts = tuple(reversed(range(page_shift, bits, per_level)))
    wide = bits > 48
    return TableFormat(bits, shifts, partial(_decode, shifts=shifts, wide=wide))


def aarch64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the kernel's page tables by VMCOREINFO; no note has the registers that name those in use.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO says how large pages are, and how many bits of an address are translated.
    """
    vmcoreinfo, root = facts.vmcoreinfo, facts.root
    page_shift = _GRANULES.get(vmcoreinfo.page_size)
    bits = vmcoreinfo.number("VA_BITS")
    # A kernel that is built for 52 bits runs with fewer on a CPU without them. With granules of 64 KiB it
    # then uses the end of the same top table, with smaller ones it leaves out the top level.
    unused = vmcoreinfo.number("TCR_EL1_T1SZ") or vmcoreinfo.number("tcr_el1_t1sz")
    if unused is not None and page_shift != 16:
        bits = 64 - unused
    if root is None or not page_shift or bits not in _BITS:
        return AddressSpaces()
    return AddressSpaces(AddressSpace(aarch64_format(page_shift, bits), root, "ones"))
