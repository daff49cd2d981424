"""The list of a guest's virtual mappings, as an ELF core with page tables has it.

What is merged with what, and the order, are QEMU's (``memory_mapping.c``). It keeps one list by ascending
guest-physical address, of equal ones the newest first, and adds page after page in the order of virtual
addresses, vCPU after vCPU. A page grows the first mapping in the list that it continues, overlaps or precedes
by the same distance between virtual and guest-physical addresses; else it becomes a new one. So mappings that
grow into each other stay two.

Of a run of contiguous pages only the first one decides: the mapping that takes it has grown up to the second
one, or holds that already. And mappings meet only within their class, those of equal distance. So one walk
makes one mapping of each run, and a further walk is compared class by class, where QEMU compares each page
with the whole list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import MAX_RUNS, AddressSpace, ReadTables, Runs, Words, walk
from vmdump.errors import TranslationError

__all__ = ["identity", "mapped_runs"]

_PAGE_SHIFT = 12
_PAGE_BITS = 41
"""Of a page frame number behind the last one of 52-bit addresses; 22 bits more number the `MAX_RUNS` runs."""


def identity(starts: Words, sizes: Words) -> Runs:
    """Give the mappings of a guest without paging: each block at its own address."""
    return Runs(starts, starts, sizes, sizes)


def mapped_runs(
    spaces: Sequence[AddressSpace],
    read: ReadTables,
    keep: Callable[[Words], NDArray[np.bool_]],
    *,
    max_tables: int,
) -> Runs:
    """Walk all page tables and merge what they map.

    Parameters
    ----------
    spaces : sequence of AddressSpace
        In the order of the vCPUs. What several of them share, the kernel's half above all, is walked once.
    read : ReadTables
        Reads tables.
    keep : callable
        ``(guest-physical addresses of pages) -> bool``: which of them are memory.
    max_tables : int
        Tables in one walk, at most.

    Raises
    ------
    TranslationError
        The tables stand for more than can be listed.
    """
    listed = Runs.joined(())
    created = np.empty(0, np.int64)
    walked: list[tuple[AddressSpace, Words]] = []
    for space in spaces:
        top = _top_table(space, read)
        rest = top.copy()
        for other, entries in walked:
            # Equal entries of top tables of one format mean the same, whatever is below them.
            if space.format is other.format:
                rest[top == entries] = 0
        walked.append((space, top))
        found = space.listed(walk(space, read, top=rest, keep=keep, max_tables=max_tables))
        numbers = np.arange(found.size.size) + (int(created.max()) + 1 if created.size else 0)
        if listed.size.size + found.size.size > MAX_RUNS:
            raise TranslationError(
                f"the page tables of the vCPUs stand for more than {MAX_RUNS} mappings", address=space.root
            )
        if listed.size.size:
            listed, created = _added(listed, created, found, numbers)
        else:
            listed, created = found, numbers
    return listed.take(np.lexsort((-created, listed.physical)))


def _top_table(space: AddressSpace, read: ReadTables) -> Words:
    form = space.format
    data = read(np.array([space.root], np.uint64), form.entries(0) * form.entry_size)
    entries: Words = data.view(f"<u{form.entry_size}")[0].astype(np.uint64)
    return entries


def _added(
    listed: Runs, created: NDArray[np.int64], found: Runs, numbers: NDArray[np.int64]
) -> tuple[Runs, NDArray[np.int64]]:
    """Add the runs of a walk to the mappings of those before, in their order."""
    both = Runs.joined((listed, found))
    order = np.concatenate((created, numbers))
    old = listed.size.size
    _, kind = np.unique(both.virtual - both.physical, return_inverse=True)
    prefix = kind.astype(np.uint64) << np.uint64(_PAGE_BITS)
    begins = prefix | both.physical >> np.uint64(_PAGE_SHIFT)
    ends = prefix | (both.physical + both.size) >> np.uint64(_PAGE_SHIFT)
    sorted_old = np.argsort(begins[:old])
    # What lies in a mapping as it is changes nothing.
    below = np.searchsorted(begins[:old][sorted_old], begins[old:], side="right").astype(np.intp) - 1
    holder = sorted_old[np.maximum(below, 0)]
    new = (below < 0) | (begins[holder] > begins[old:]) | (ends[holder] < ends[old:])
    # What is alone in its class meets nothing.
    alone = np.bincount(kind)[kind] == 1
    changed = np.zeros(int(kind.max()) + 1, bool)
    changed[kind[old:][new & ~alone[old:]]] = True
    stays = np.concatenate((np.ones(old, bool), new & alone[old:])) & ~changed[kind]
    parts, orders = [both.take(stays)], [order[stays]]
    met = np.flatnonzero(changed[kind])
    met = met[np.lexsort((order[met], kind[met]))]
    for members in np.split(met, np.flatnonzero(np.diff(kind[met])) + 1) if met.size else ():
        merged, merged_order = _class_added(both.take(members), order[members], int((members < old).sum()))
        parts.append(merged)
        orders.append(merged_order)
    return Runs.joined(parts), np.concatenate(orders)


def _class_added(runs: Runs, order: NDArray[np.int64], old: int) -> tuple[Runs, NDArray[np.int64]]:
    """Add runs to the mappings of the same class; the first `old` ones are those, in any order."""
    first = np.lexsort((-order[:old], runs.physical[:old]))
    begins: list[int] = runs.physical[:old][first].tolist()
    ends: list[int] = (runs.physical + runs.size)[:old][first].tolist()
    numbers: list[int] = order[:old][first].tolist()
    # The highest end so far: the first mapping that reaches up to an address is where this does first.
    reach = np.maximum.accumulate(np.array(ends, np.uint64)).tolist()
    new = zip(
        *(column[old:].tolist() for column in (runs.physical, runs.size, runs.page, order)), strict=True
    )
    for begin, size, page, number in new:
        end = begin + size
        at = bisect_left(reach, begin)
        if at < len(begins) and begins[at] <= begin + page:
            begins[at] = min(begins[at], begin)
            ends[at] = max(ends[at], end)
        else:
            at = bisect_left(begins, begin)
            begins.insert(at, begin)
            ends.insert(at, end)
            numbers.insert(at, number)
            reach.insert(at, end)
        for index in range(at, len(reach)):
            highest = max(ends[index], reach[index - 1] if index else 0)
            if index > at and reach[index] == highest:
                break
            reach[index] = highest
    physical = np.array(begins, np.uint64)
    distance = runs.virtual[:1] - runs.physical[:1]
    merged = Runs(
        physical + distance, physical, np.array(ends, np.uint64) - physical, runs.page[: len(begins)]
    )
    return merged, np.array(numbers, np.int64)
