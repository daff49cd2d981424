"""The list of a guest's virtual mappings with QEMU's mistakes.

QEMU clears only bit 63 of an x86 page's entry before it takes the rest for an address
(``target/i386/arch_memory_mapping.c``), and lets a mapping grow downwards in virtual memory alone
(``memory_mapping.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging import mappings
from vmdump.arch.paging.mappings import MappingClass, listed_mappings, numbered, rows_of
from vmdump.arch.paging.tables import AddressSpace, ReadTables, Runs, TableFormat, Words

__all__ = ["mapped_runs"]

_CLEARED = 1 << 63
_MAX_MAPPINGS = 1 << 17
"""Where new ones stand between others: 4 s. QEMU itself would compare for minutes."""


def mapped_runs(
    spaces: Sequence[AddressSpace],
    read: ReadTables,
    keep: Callable[[Words], NDArray[np.bool_]],
    *,
    max_tables: int,
) -> Runs:
    """Walk all page tables and merge what they map; see :func:`vmdump.arch.paging.mappings.mapped_runs`."""
    misread = [space._replace(format=_misread(space.format)) for space in spaces]
    return mappings.mapped_runs(misread, read, keep, max_tables=max_tables, add=_added)


@cache
def _misread(form: TableFormat) -> TableFormat:
    return form._replace(decode=partial(_decode, form=form))


def _decode(
    entries: Words, level: int, places: Words, *, form: TableFormat
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    """Decode entries without the pages that seem to lie beyond all memory."""
    table, page, address = form.decode(entries, level, places)
    return table, page & ((entries & np.uint64(form.attributes & ~_CLEARED)) == 0), address


def _added(
    listed: Runs, created: NDArray[np.int64], found: Runs, limit: int
) -> tuple[Runs, NDArray[np.int64], int]:
    """Add the runs of a walk, each of pages of one size.

    What precedes a mapping moves its virtual address down and makes it longer, but leaves its guest-physical
    address. So it shows the wrong memory from then on, and is of another class.
    """
    if not listed.size.size:
        found = found.compressed()
    numbers = numbered(created, found)
    if not listed.size.size or not found.size.size:
        return Runs.joined((listed, found)), np.concatenate((created, numbers)), 0
    total = listed.size.size + found.size.size
    if total > min(limit, _MAX_MAPPINGS):
        return listed, created, limit + 1
    classes: dict[int, MappingClass] = {}

    def class_of(distance: int) -> MappingClass:
        return classes.setdefault(distance, MappingClass(distance))

    for virtual, begin, size, number in rows_of(listed.virtual, listed.physical, listed.size, created):
        class_of(virtual - begin).insert(begin, begin + size, number)
    for virtual, begin, size, page, number in rows_of(*found, numbers):
        end = begin + size
        known = class_of(virtual - begin)
        while begin < end:
            at = known.find(begin, page)
            if at is None:
                known.insert(begin, end, number)
                break
            first = known.begins[at]
            if first <= begin:
                known.grow(at, first, end)
                break
            last, older = known.remove(at)
            longer = max(last - begin, page)
            class_of(begin + known.distance - first).insert(first, first + longer, older)
            begin += page
    # Their number is small already; an eighth of it bounds the time for all vCPUs.
    return *listed_mappings(classes.values()), total // 8 + 1
