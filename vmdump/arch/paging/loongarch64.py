"""Page tables of LoongArch as Linux has them: three levels, and windows without tables.

Sources: LoongArch Reference Manual, volume 1, chapter 5; Linux' arch/loongarch/include/asm/pgtable.h.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import (
    AddressSpace,
    AddressSpaces,
    KernelFacts,
    Runs,
    TableFormat,
    Words,
    differ,
)

__all__ = ["loongarch64_spaces"]

_PRESENT = 1 << 7
"""Linux' own: the hardware's bit 0 is cleared to learn of accesses."""
_HUGE = 1 << 6
_ADDRESS_BITS = 48
_WINDOWS = (0x8000 << 48, 0x9000 << 48)
"""All memory without and with the caches, as Linux sets them."""
_KERNEL = 0xFFFF800000000000
"""The lowest address that Linux has kernel's tables for on a processor with 48 bits of an address."""
_PAGE_SHIFTS = {4096: 12, 16384: 14, 65536: 16}


def _valid(entries: Words, level: int) -> NDArray[np.bool_]:
    # An entry that names a table is its address in a window, without any bit of a page's.
    valid: NDArray[np.bool_] = (entries & np.uint64(_PRESENT)) != 0
    return valid if level == 2 else valid | (entries != 0) & differ(entries)


def _decode(
    entries: Words, level: int, places: Words, *, shifts: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    everything = np.ones(entries.shape, bool)
    large = everything if level == 2 else (entries & np.uint64(_HUGE)) != 0
    present = (entries & np.uint64(_PRESENT)) != 0
    shift = np.where(large, shifts[level], shifts[-1]).astype(np.uint64)
    address = (entries & np.uint64((1 << _ADDRESS_BITS) - 1)) >> shift << shift
    return ~large, large & present, address


@cache
def _format(page_shift: int) -> TableFormat:
    per_level = page_shift - 3
    shifts = (page_shift + 2 * per_level, page_shift + per_level, page_shift)
    return TableFormat(page_shift + 3 * per_level, shifts, partial(_decode, shifts=shifts), valid=_valid)


def loongarch64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find what the windows hold, and the kernel's page tables by VMCOREINFO.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO says how large pages are.
    """
    begins = np.array(_WINDOWS, np.uint64)
    sizes = np.full(begins.size, 1 << _ADDRESS_BITS, np.uint64)
    direct = Runs(begins, np.zeros_like(begins), sizes, sizes)
    page_shift, root = _PAGE_SHIFTS.get(facts.vmcoreinfo.page_size or 0), facts.root
    if page_shift is None or root is None:
        return AddressSpaces(direct=direct)
    form = _format(page_shift)
    return AddressSpaces(AddressSpace(form, root, _KERNEL & -(1 << form.bits)), direct=direct)
