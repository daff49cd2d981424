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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import MAX_RUNS, AddressSpace, ReadTables, Runs, Words, walk
from vmdump.errors import TranslationError
from vmdump.units import ADDRESS_LIMIT

__all__ = ["identity", "mapped_runs"]

_PAGE_SHIFT = 12
_PAGE_BITS = 41
"""Of a page frame number behind the last one of 52-bit addresses; those above number up to 2**20 classes."""


def identity(starts: Words, sizes: Words) -> Runs:
    """Give the mappings of a guest without paging: each block at its own address."""
    return Runs(starts, starts, sizes, sizes)


def mapped_runs(
    spaces: Sequence[AddressSpace],
    read: ReadTables,
    keep: Callable[[Words], NDArray[np.bool_]],
    *,
    max_tables: int,
    as_qemu: bool = False,
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
    as_qemu : bool
        With QEMU's mistakes.

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
        offsets = walk(space, read, top=rest, keep=keep, max_tables=max_tables, as_qemu=as_qemu)
        found = space.listed(offsets)
        numbers = np.arange(found.size.size) + (int(created.max()) + 1 if created.size else 0)
        if listed.size.size + found.size.size > MAX_RUNS:
            raise TranslationError(
                f"the page tables of the vCPUs stand for more than {MAX_RUNS} mappings", address=space.root
            )
        if listed.size.size:
            listed, created = (_added_as_qemu if as_qemu else _added)(listed, created, found, numbers)
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
    # What lies in the first mapping that reaches up to it changes nothing.
    reach = np.concatenate((np.zeros(1, np.uint64), np.maximum.accumulate(ends[:old][sorted_old])))
    below = np.searchsorted(begins[:old][sorted_old], begins[old:], side="right").astype(np.intp) - 1
    holder = sorted_old[np.maximum(below, 0)]
    held = (below >= 0) & (reach[below] < begins[old:]) & (ends[holder] >= ends[old:])
    # What is alone in its class meets nothing.
    alone = np.bincount(kind)[kind] == 1
    changed = np.zeros(int(kind.max()) + 1, bool)
    changed[kind[old:][~held & ~alone[old:]]] = True
    stays = np.concatenate((np.ones(old, bool), ~held & alone[old:])) & ~changed[kind]
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
    distance = int(runs.virtual[0]) - int(runs.physical[0])
    known = _Class(distance)
    mappings = list(_rows(runs.physical, runs.size, runs.page, order))
    for begin, size, _, number in mappings[:old]:
        known.insert(begin, begin + size, number)
    for begin, size, page, number in mappings[old:]:
        at = known.find(begin, page)
        if at is None:
            known.insert(begin, begin + size, number)
        else:
            known.grow(at, min(known.begins[at], begin), begin + size)
    return _listed([known])


def _added_as_qemu(
    listed: Runs, created: NDArray[np.int64], found: Runs, numbers: NDArray[np.int64]
) -> tuple[Runs, NDArray[np.int64]]:
    """Add the runs of a walk as QEMU does.

    What precedes a mapping moves its virtual address down and makes it longer, but leaves its guest-physical
    address. So it shows the wrong memory from then on, and is of another class.
    """
    classes: dict[int, _Class] = {}

    def class_of(distance: int) -> _Class:
        return classes.setdefault(distance, _Class(distance))

    for virtual, begin, size, number in _rows(listed.virtual, listed.physical, listed.size, created):
        class_of(virtual - begin).insert(begin, begin + size, number)
    for virtual, begin, size, page, number in _rows(*found, numbers):
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
    return _listed(classes.values())


def _rows(*columns: NDArray[Any]) -> Iterator[tuple[int, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _listed(classes: Iterable[_Class]) -> tuple[Runs, NDArray[np.int64]]:
    page = 1 << _PAGE_SHIFT
    rows = [
        (begin + known.distance & ADDRESS_LIMIT - 1, begin, end - begin, page, number)
        for known in classes
        for begin, end, number in zip(known.begins, known.ends, known.numbers, strict=True)
    ]
    *columns, numbers = zip(*rows, strict=True)
    return Runs(*(np.array(column, np.uint64) for column in columns)), np.array(numbers, np.int64)


class _Class:
    """The mappings of one distance between virtual and guest-physical addresses, in the order of the list.

    Attributes
    ----------
    distance : int
        What is added to a guest-physical address.
    begins, ends, numbers : list of int
        Guest-physical addresses, and when each mapping was created.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.numbers: list[int] = []
        # The highest end so far: the first mapping that reaches up to an address is where this does first.
        self._reach: list[int] = []

    def find(self, begin: int, page: int) -> int | None:
        """Find the first mapping that a page continues, overlaps or precedes."""
        at = bisect_left(self._reach, begin)
        return at if at < len(self.begins) and self.begins[at] <= begin + page else None

    def insert(self, begin: int, end: int, number: int) -> None:
        """Put a mapping before all that do not begin lower."""
        at = bisect_left(self.begins, begin)
        while at < len(self.begins) and self.begins[at] == begin and self.numbers[at] > number:
            at += 1
        self.begins.insert(at, begin)
        self.ends.insert(at, end)
        self.numbers.insert(at, number)
        self._reach.insert(at, end)
        self._renew(at)

    def grow(self, at: int, begin: int, end: int) -> None:
        """Let a mapping begin at `begin`, and end at `end` if that is more."""
        self.begins[at] = begin
        self.ends[at] = max(self.ends[at], end)
        self._renew(at)

    def remove(self, at: int) -> tuple[int, int]:
        """Take a mapping out; its end and number."""
        taken = self.ends[at], self.numbers[at]
        for column in (self.begins, self.ends, self.numbers, self._reach):
            del column[at]
        self._renew(at)
        return taken

    def _renew(self, at: int) -> None:
        for index in range(at, len(self._reach)):
            highest = max(self.ends[index], self._reach[index - 1] if index else 0)
            if index > at and self._reach[index] == highest:
                break
            self._reach[index] = highest
