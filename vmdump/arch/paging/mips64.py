"""Page tables of 64-bit MIPS as Linux has them, and what needs none: xkphys, kseg0 and kseg1.

The hardware knows no page tables: what is in them is up to Linux. How many bits an entry has for Linux, below
those for the hardware, differs from one build to another, and only the entries themselves tell it.

Sources: MIPS64 Privileged Resource Architecture, chapter 4; Linux' arch/mips/include/asm/pgtable-bits.h.
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
from vmdump.formats.layout import ByteOrder

__all__ = ["mips64_spaces"]

_XKPHYS = 0b10 << 62
_XKPHYS_BITS = 59
"""Of a physical address; the three above them say how it is cached."""
_KSEG0, _KSEG1 = 0xFFFFFFFF80000000, 0xFFFFFFFFA0000000
_KSEG_SIZE = 1 << 29
_KERNEL = 0xC000000000000000
"""xkseg: the kernel's addresses that have page tables."""
_PRESENT = 1
_SHAPES = {4096: (40, (30, 21, 12)), 16384: (47, (36, 25, 14))}
"""By the size of a page: bits of an address, and shifts. With pages of 4 KiB the top table is two of them."""
_GLOBAL = 0b1110
"""Of the kernel's pages: global, valid and dirty, the lowest bits of the hardware's. Below them is one of
Linux' that is clear, for pages that are special or huge."""
_GLOBAL_PLACES = range(5, 10)
_TO_FRAME = 6
"""Bits from that of a global page to the page frame number, where a page has 4 KiB."""
_MAX_SAMPLED = 64
"""Tables of a level from which the place of these bits is learnt."""


def _table_address(entries: Words) -> Words:
    """Give the physical address of what the kernel has in kseg0 or xkphys."""
    low = entries & np.uint64(_KSEG_SIZE - 1)
    return np.where(entries >= np.uint64(_KSEG0), low, entries & np.uint64((1 << _XKPHYS_BITS) - 1))


def _valid(entries: Words, level: int) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (entries & np.uint64(_PRESENT)) != 0
    # A table is named by its address where no tables are needed.
    return valid if level == 2 else valid | (entries >= np.uint64(_XKPHYS)) & differ(entries)


def _decode(
    entries: Words, level: int, places: Words, *, shifts: tuple[int, ...], frame_shift: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    page = (entries & np.uint64(_PRESENT)) != 0
    whole = entries >> np.uint64(frame_shift) << np.uint64(shifts[-1])
    whole &= np.uint64(-(1 << shifts[level]) & (1 << 64) - 1)
    large = page if level else np.zeros(entries.shape, bool)
    return ~page, large, np.where(page, whole, _table_address(entries))


@cache
def _format(page_size: int, frame_shift: int, byteorder: ByteOrder) -> TableFormat:
    bits, shifts = _SHAPES[page_size]
    decode = partial(_decode, shifts=shifts, frame_shift=frame_shift)
    return TableFormat(bits, shifts, decode, byteorder=byteorder, valid=_valid)


def _place_of_global(form: TableFormat, root: int, facts: KernelFacts) -> int | None:
    """Find the place of the bit of global pages by what most of the kernel's entries have."""
    tables = np.array([root], np.uint64)
    for level in (0, 1):
        entries = form.read(tables, level, facts.read)
        named = np.unique(entries[form.valid(entries, level) & ((entries & np.uint64(_PRESENT)) == 0)])
        tables = _table_address(named[:_MAX_SAMPLED])
    entries = form.read(tables, 2, facts.read)
    pages = entries[form.valid(entries, 2)]
    votes = [
        np.count_nonzero(pages >> np.uint64(place - 1) & np.uint64(0xF) == np.uint64(_GLOBAL))
        for place in _GLOBAL_PLACES
    ]
    return _GLOBAL_PLACES[int(np.argmax(votes))] if any(votes) else None


def mips64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Tell what every processor maps, and find the kernel's page tables by VMCOREINFO.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO says how large pages are.
    """
    begins = [_XKPHYS + (caches << _XKPHYS_BITS) for caches in range(8)] + [_KSEG0, _KSEG1]
    sizes = np.array([1 << _XKPHYS_BITS] * 8 + [_KSEG_SIZE] * 2, np.uint64)
    direct = Runs(np.array(begins, np.uint64), np.zeros_like(sizes), sizes, sizes)
    page_size, root = facts.vmcoreinfo.page_size, facts.root
    if page_size is None or page_size not in _SHAPES or root is None:
        return AddressSpaces(direct=direct)
    place = _place_of_global(_format(page_size, 0, facts.byteorder), root, facts)
    if place is None:
        return AddressSpaces(direct=direct)
    frame_shift = place + _TO_FRAME + page_size.bit_length() - 13
    return AddressSpaces(
        AddressSpace(_format(page_size, frame_shift, facts.byteorder), root, _KERNEL), direct=direct
    )
