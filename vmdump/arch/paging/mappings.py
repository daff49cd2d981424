"""The list of a guest's virtual mappings, as an ELF core with page tables has it.

What is merged with what, and the order, are QEMU's (``memory_mapping.c``). It keeps one list by ascending
guest-physical address, of equal ones the newest first, and adds page after page in the order of virtual
addresses, vCPU after vCPU. A page grows the first mapping in the list that it continues, overlaps or precedes
by the same distance between virtual and guest-physical addresses; else it becomes a new one. So mappings that
grow into each other stay two.

Of a run of contiguous pages only the first one decides: the mapping that takes it has grown up to the second
one, or holds that already. And mappings meet only within their class, those of equal distance. So one walk
makes one mapping of each run. In a further walk only what touches within a class can meet, and that is looked
at group by group, where QEMU compares each page with the whole list.

Tables that QEMU meets again, those of the kernel above all, are not walked again. What they map is added
again once mappings have met: one that another vCPU's tables made longer may now take what another one has.
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

__all__ = ["Add", "MappingClass", "listed_mappings", "mapped_runs", "numbered", "rows_of"]

Add = Callable[[Runs, NDArray[np.int64], Runs, int], tuple[Runs, NDArray[np.int64], int]]
"""``(mappings, when each was created, runs of a walk, most that may meet) -> (mappings, when each was
created, how many have met others)``; nothing is added if more than that meet."""

_MAX_SPACES = 4096
"""Different roots: QEMU has no more vCPUs. To compare the top tables of so many takes 160 MiB."""
_MAX_COMPARED = 1 << 25
"""Mappings that are compared for all vCPUs together; 2**19 take 0.1 s. A Linux guest has some 10,000."""
_MAX_MET = 1 << 19
"""Those among them that meet others, which are looked at one by one: so many take 1.2 s and 250 MiB."""
_PAGE_SHIFT = 12
_PAGE_BITS = 41
"""Of a page frame number behind the last one of 52-bit addresses; those above number up to 2**20 classes."""


def mapped_runs(
    spaces: Sequence[AddressSpace],
    read: ReadTables,
    keep: Callable[[Words], NDArray[np.bool_]],
    *,
    max_tables: int,
    add: Add | None = None,
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
    add : Add, optional
        Adds what one vCPU's tables map to the mappings of those before, with mistakes of its own; what they
        share is then added again, too. Without it the list has no mistakes.

    Raises
    ------
    TranslationError
        The tables stand for more than can be listed.
    """
    distinct = list(dict.fromkeys(spaces))
    if len(distinct) > _MAX_SPACES:
        raise TranslationError(
            f"the vCPUs have {len(distinct)} different page tables, and no guest has more than {_MAX_SPACES}",
            address=distinct[0].root,
        )
    # The mistakes are made page by page.
    walks = _Walks(distinct, read, keep, max_tables=max_tables, by_page=add is not None)
    listed = Runs.joined(())
    created = np.empty(0, np.int64)
    compared = all_met = changes = 0
    after: dict[AddressSpace, int] = {}
    for space in spaces:
        if after.get(space) == changes:
            continue
        before, orders = listed, created
        # What an earlier one maps as well makes a difference only after mappings have met.
        known = not (add or all_met or space in after)
        found = walks.own(space) if known else walks.everything(space)
        listed, created, met = (add or _added)(before, orders, found, _MAX_MET - all_met)
        if known and met:
            found = walks.everything(space)
            listed, created, met = _added(before, orders, found, _MAX_MET)
        all_met += met
        compared += before.size.size + found.size.size
        if compared > _MAX_COMPARED or all_met > _MAX_MET or listed.size.size > MAX_RUNS:
            raise TranslationError(
                "the page tables of the vCPUs stand for more mappings than can be merged", address=space.root
            )
        # What changed nothing would change nothing when it is added again.
        after[space] = changes
        changes += not all(map(np.array_equal, before, listed))
    return listed.take(np.lexsort((-created, listed.physical)))


class _Walks:
    """What each of several page tables maps; the entries of top tables that are equal are walked once."""

    def __init__(
        self,
        spaces: Sequence[AddressSpace],
        read: ReadTables,
        keep: Callable[[Words], NDArray[np.bool_]],
        *,
        max_tables: int,
        by_page: bool,
    ) -> None:
        self._keep = keep
        self._by_page = by_page
        self._max_tables = max_tables
        self._read = read
        self._visited = 0
        self._runs: dict[AddressSpace, Runs] = {}
        self._tops: dict[AddressSpace, Words] = {}
        self._owners: dict[AddressSpace, NDArray[np.intp]] = {}
        self._spaces = spaces
        forms = dict.fromkeys(space.format for space in spaces)
        for form in forms:
            members = [index for index, space in enumerate(spaces) if space.format is form]
            roots = np.array([spaces[index].root for index in members], np.uint64)
            tops = form.read(roots, 0, read)
            for row, index in enumerate(members):
                end = spaces[index].end
                if end is not None:
                    tops[row, end >> form.shifts[0] :] = 0
            # Equal entries of top tables of one format mean the same, whatever is below them.
            first = _first_equal(tops)
            for row, index in enumerate(members):
                self._tops[spaces[index]] = np.where(first[row] == row, tops[row], 0)
                self._owners[spaces[index]] = np.where(
                    form.valid(tops[row], 0), np.array(members)[first[row]], -1
                )

    def _counted(self, addresses: Words, size: int) -> NDArray[np.uint8]:
        self._visited += addresses.size
        return self._read(addresses, size)

    def _walked(self, space: AddressSpace) -> Runs:
        if space not in self._runs:
            self._visited += 1
            self._runs[space] = walk(
                space,
                self._counted,
                top=self._tops[space],
                keep=self._keep,
                max_tables=self._max_tables,
                visited=self._visited - 1,
                by_page=self._by_page,
            )
            if sum(runs.size.size for runs in self._runs.values()) > MAX_RUNS:
                raise TranslationError(
                    f"the page tables of the vCPUs stand for more than {MAX_RUNS} mappings",
                    address=space.root,
                )
        return self._runs[space]

    def own(self, space: AddressSpace) -> Runs:
        """Give what no space before has."""
        return space.listed(self._walked(space))

    def everything(self, space: AddressSpace) -> Runs:
        """Give all that the tables of a space map."""
        owners = self._owners[space]
        shift = np.uint64(space.format.shifts[0])
        parts = []
        for owner in np.unique(owners[owners >= 0]).tolist():
            runs = _cut_at(self._walked(self._spaces[owner]), shift)
            parts.append(runs.take(owners[(runs.virtual >> shift).astype(np.intp)] == owner))
        runs = Runs.joined(parts)
        runs = runs.take(np.argsort(runs.virtual, kind="stable"))
        return space.listed(runs.compressed(by_page=self._by_page))


def _first_equal(tops: Words) -> NDArray[np.intp]:
    """Tell for each entry of top tables, (n, entries), the first table that has the same one there."""
    order = np.argsort(tops, axis=0, kind="stable")
    ascending = np.take_along_axis(tops, order, 0)
    numbers = np.zeros(tops.shape, np.intp)
    numbers[1:] = np.where(ascending[1:] != ascending[:-1], np.arange(1, len(tops))[:, None], 0)
    firsts = np.take_along_axis(order, np.maximum.accumulate(numbers, axis=0), 0)
    np.put_along_axis(numbers, order, firsts, 0)
    return numbers


def _cut_at(runs: Runs, shift: np.uint64) -> Runs:
    """Cut runs where another entry of the top table begins."""
    first = runs.virtual >> shift
    count = ((runs.virtual + (runs.size - np.uint64(1)) >> shift) - first).astype(np.intp) + 1
    whole = runs.take(np.repeat(np.arange(count.size), count))
    slot = np.arange(whole.size.size) - np.repeat(np.cumsum(count) - count, count)
    begin = np.repeat(first, count) + slot.astype(np.uint64) << shift
    low = np.maximum(begin, whole.virtual) - whole.virtual
    high = np.minimum(begin + (np.uint64(1) << shift) - whole.virtual, whole.size)
    return Runs(whole.virtual + low, whole.physical + low, high - low, whole.page)


def _added(
    listed: Runs, created: NDArray[np.int64], found: Runs, limit: int
) -> tuple[Runs, NDArray[np.int64], int]:
    numbers = numbered(created, found)
    if not listed.size.size or not found.size.size:
        return Runs.joined((listed, found)), np.concatenate((created, numbers)), 0
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
    # A group is what touches each other, directly or by others; what is alone meets nothing.
    ascending = np.argsort(begins)
    gaps = begins[ascending][1:] > np.maximum.accumulate(ends[ascending])[:-1]
    group = np.empty(begins.size, np.intp)
    group[ascending] = np.concatenate((np.zeros(1, np.intp), np.cumsum(gaps)))
    alone = np.bincount(group)[group] == 1
    changed = np.zeros(int(group.max()) + 1, bool)
    changed[group[old:][~held & ~alone[old:]]] = True
    stays = np.concatenate((np.ones(old, bool), ~held & alone[old:])) & ~changed[group]
    parts, orders = [both.take(stays)], [order[stays]]
    met = np.flatnonzero(changed[group])
    if met.size > limit:
        return listed, created, met.size
    met = met[np.lexsort((order[met], group[met]))]
    for members in np.split(met, np.flatnonzero(np.diff(group[met])) + 1) if met.size else ():
        merged, merged_order = _class_added(both.take(members), order[members], int((members < old).sum()))
        parts.append(merged)
        orders.append(merged_order)
    return Runs.joined(parts), np.concatenate(orders), met.size


def numbered(created: NDArray[np.int64], found: Runs) -> NDArray[np.int64]:
    """Give the runs of a walk the numbers behind those of the mappings that were created before."""
    return np.arange(found.size.size) + (int(created.max()) + 1 if created.size else 0)


def _class_added(runs: Runs, order: NDArray[np.int64], old: int) -> tuple[Runs, NDArray[np.int64]]:
    """Add runs to the mappings of the same group; the first `old` ones are those, in any order."""
    distance = int(runs.virtual[0]) - int(runs.physical[0])
    known = MappingClass(distance)
    mappings = list(rows_of(runs.physical, runs.size, runs.page, order))
    for begin, size, _, number in mappings[:old]:
        known.insert(begin, begin + size, number)
    for begin, size, page, number in mappings[old:]:
        at = known.find(begin, page)
        if at is None:
            known.insert(begin, begin + size, number)
        else:
            known.grow(at, min(known.begins[at], begin), begin + size)
    return listed_mappings([known])


def rows_of(*columns: NDArray[Any]) -> Iterator[tuple[int, ...]]:
    """Go through columns of one length row by row, as Python's numbers."""
    return zip(*(column.tolist() for column in columns), strict=True)


def listed_mappings(classes: Iterable[MappingClass]) -> tuple[Runs, NDArray[np.int64]]:
    """List the mappings of all classes, and when each was created."""
    page = 1 << _PAGE_SHIFT
    rows = [
        (begin + known.distance & ADDRESS_LIMIT - 1, begin, end - begin, page, number)
        for known in classes
        for begin, end, number in zip(known.begins, known.ends, known.numbers, strict=True)
    ]
    *columns, numbers = zip(*rows, strict=True)
    return Runs(*(np.array(column, np.uint64) for column in columns)), np.array(numbers, np.int64)


class MappingClass:
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
