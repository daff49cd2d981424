"""Page tables of AArch32: short descriptors, and the long ones of LPAE.

Source: Arm's Architecture Reference Manual for ARMv7-A, chapter B3 (VMSA).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.aarch64 import aarch64_format
from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, TableFormat, Words

__all__ = ["arm_spaces"]

_KIND = 3
_SMALL = 1 << 1
"""A section in the top table, a page of 4 KiB in the one below; bit 0 then forbids to execute it."""
_SUPERSECTION = 1 << 18


def _valid(entries: Words, level: int) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (entries & np.uint64(_KIND)) != 0
    return valid


def _decode(entries: Words, level: int, places: Words) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    small = (entries & np.uint64(_SMALL)) != 0
    nothing = np.zeros(entries.shape, bool)
    # A page of 16 times the size is 16 equal entries.
    part = places & np.uint64(15)
    if level == 1:
        large = entries & np.uint64(0xFFFF0000) | part << np.uint64(12)
        return nothing, ~nothing, np.where(small, entries & np.uint64(0xFFFFF000), large)
    # Bits 39:36 of the address of a supersection are at 8:5, bits 35:32 at 23:20.
    high = (entries & np.uint64(0x1E0)) << np.uint64(31) | (entries & np.uint64(0xF00000)) << np.uint64(12)
    large = entries & np.uint64(0xFF000000) | high | part << np.uint64(20)
    whole = np.where((entries & np.uint64(_SUPERSECTION)) != 0, large, entries & np.uint64(0xFFF00000))
    return ~small, small, np.where(small, whole, entries & np.uint64(0xFFFFFC00))


_SHORT = TableFormat(32, (20, 12), _decode, entry_size=4, valid=_valid)


@cache
def _long() -> TableFormat:
    """Give the format of LPAE: that of AArch64's three levels, with fewer bits of an address."""
    return aarch64_format(12, 39)._replace(bits=32)


def arm_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the kernel's page tables by VMCOREINFO; no note has the registers that name those in use.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO says whether entries are long ones.
    """
    root = facts.root
    if root is None:
        return AddressSpaces()
    form = _long() if facts.vmcoreinfo.get("CONFIG_ARM_LPAE") == "y" else _SHORT
    return AddressSpaces(AddressSpace(form, root, "zeros"))
