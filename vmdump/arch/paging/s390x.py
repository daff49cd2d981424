"""Page tables of z/Architecture: up to three levels of region tables, segment tables, and page tables.

Source: z/Architecture Principles of Operation, chapter 3, "Dynamic Address Translation".
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, TableFormat, Words

__all__ = ["s390x_spaces"]

_DAT = 1 << 58
_HOME_SPACE = 0b11 << 46
"""Both bits of a PSW that choose among the control registers with page tables."""
_ORIGIN = -4096 & (1 << 64) - 1
_LENGTH = 3
_TYPE = 3 << 2
_REAL_SPACE = 1 << 5
_FIRST_PART = 3 << 6
_PART = 512
"""Entries: tables come in quarters, and the first and the last ones may be missing."""
_SHIFTS = (53, 42, 31, 20, 12)
_REGIONS = 3
_INVALID, _INVALID_PAGE = 1 << 5, 1 << 10
_LARGE = 1 << 10
_PAGE_ZERO = 1 << 11
"""A bit that is zero in each valid entry of a page table."""


def _valid(entries: Words, level: int, *, top: int) -> NDArray[np.bool_]:
    level += top
    if level == len(_SHIFTS) - 1:
        valid = (entries & np.uint64(_INVALID_PAGE | _PAGE_ZERO)) == 0
    else:
        # The type of a table is in its entries: 3 in the top one, 0 in segment tables.
        valid = (entries & np.uint64(_TYPE | _INVALID)) == np.uint64((_REGIONS - level) << 2)
    # The hardware takes zero for page 0. Linux has bits of its own in each entry that is in use.
    used: NDArray[np.bool_] = valid & (entries != 0)
    return used


def _decode(
    entries: Words, level: int, places: Words, *, top: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    level += top
    nothing = np.zeros(entries.shape, bool)
    size = (1 << 64) - (1 << _SHIFTS[level])
    if level == len(_SHIFTS) - 1:
        return nothing, ~nothing, entries & np.uint64(size)
    page = (entries & np.uint64(_LARGE)) != 0 if level >= _REGIONS - 1 else nothing
    # A page table has 256 entries, and so begins at multiples of half a page.
    origin = _ORIGIN if level < _REGIONS else _ORIGIN | 2048
    return ~page, page, np.where(page, entries & np.uint64(size), entries & np.uint64(origin))


def _bounds(entries: Words, level: int, *, top: int) -> tuple[Words, Words]:
    """Give the entries that a region or segment table has, named in quarters of it."""
    if level + top >= _REGIONS:
        return np.zeros_like(entries), np.full_like(entries, _PART - 1)
    first = (entries & np.uint64(_FIRST_PART)) >> np.uint64(6)
    last = entries & np.uint64(_LENGTH)
    return first * np.uint64(_PART), last * np.uint64(_PART) + np.uint64(_PART - 1)


@cache
def _format(top: int) -> TableFormat:
    """Give the format of tables with this level of five as their top: 0 to 3."""
    return TableFormat(
        64 if top == 0 else _SHIFTS[top - 1],
        _SHIFTS[top:],
        partial(_decode, top=top),
        byteorder="big",
        valid=partial(_valid, top=top),
        bounds=partial(_bounds, top=top),
    )


def _of_control(element: int, prefix: int) -> AddressSpace | None:
    """Find the tables that an address-space-control element names; None where it names real memory."""
    if element & _REAL_SPACE:
        return None
    form = _format(_REGIONS - ((element & _TYPE) >> 2))
    end = ((element & _LENGTH) + 1) * _PART << form.shifts[0]
    return AddressSpace(form, element & _ORIGIN, "zeros", end=end, prefix=prefix)


def s390x_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the page tables of a guest, by the control registers of its vCPUs and by VMCOREINFO.

    A vCPU's are those from which it fetches instructions. While it runs a process they have no kernel.

    Parameters
    ----------
    facts : KernelFacts
        With ``psw_mask``, ``cr1``, ``cr13`` and ``prefix`` of the vCPUs.
    """
    cpus = []
    for cpu in facts.cpus:
        if "psw_mask" not in cpu or "cr1" not in cpu:
            continue
        element = cpu["cr13" if cpu["psw_mask"] & _HOME_SPACE == _HOME_SPACE else "cr1"]
        cpus.append(_of_control(element, cpu.get("prefix", 0)) if cpu["psw_mask"] & _DAT else None)
    kernel, root = None, facts.root
    if root is not None:
        # All entries of a table have its type, those that are not valid as well.
        first = facts.word(root) or 0
        kernel = AddressSpace(_format(_REGIONS - ((first & _TYPE) >> 2)), root & _ORIGIN, "zeros")
    return AddressSpaces(kernel, tuple(cpus), kernel_first=True)
