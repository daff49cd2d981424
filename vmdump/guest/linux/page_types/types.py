"""The types of all pages of a guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging import Runs
from vmdump.errors import CapabilityError, ReadError
from vmdump.guest.blocks import Pages
from vmdump.guest.linux.page_types.arrays import PageArray, Typed, find_arrays
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.guest.linux.page_types.reading import StructReader, page_frames
from vmdump.kernels.page_types import (
    KERNEL,
    MAX_ORDER,
    UNKNOWN,
    UNREADABLE,
    spread_type,
)

__all__ = ["GoingOn", "PageTypes", "ToldBefore", "demand_vmcoreinfo", "kernel_page_size", "tell_types"]

Types = NDArray[np.uint8]
GoingOn = list[tuple[int, int, int]]
"""Runs that go on behind the pages that were told: first page there, pages, and type."""

_CHUNK = 1 << 15
"""Pages whose struct pages are read and told at once, from a multiple of it on: a section of x86, 2 MiB."""
_MIXED = -1
"""Of a chunk whose pages have several types."""
_CHUNKS_PER_WALK = 32
"""A walk of page tables takes 0.2 ms, a chunk 0.5 ms."""


class PageTypes:
    """What the pages of a guest are used for: a byte for each that has a struct page.

    Where 2^15 pages in a row are of one type, that is all that is kept: what nobody has used of a guest of 1
    TiB would take 256 MiB.

    Attributes
    ----------
    page_size : int
        Bytes of a page, as the guest's kernel has them.
    arrays : list of (int, int)
        Frame numbers ``[begin, end)`` that have struct pages, ascending, not touching.
    """

    def __init__(self, page_size: int, arrays: list[PageArray]) -> None:
        self.page_size = page_size
        self.arrays: list[tuple[int, int]] = []
        for array in arrays:
            if self.arrays and self.arrays[-1][1] == array.first:
                self.arrays[-1] = (self.arrays[-1][0], array.first + array.pages)
            else:
                self.arrays.append((array.first, array.first + array.pages))
        bounds = np.array(self.arrays, np.int64).reshape(-1, 2)
        self._begins, self._ends = bounds.T
        sizes = self._ends - self._begins
        self._places = np.cumsum(sizes) - sizes
        # Memory that is never written takes none.
        self._types: Types = np.zeros(int(sizes.sum()), np.uint8)
        chunks = -(-self._ends // _CHUNK) - self._begins // _CHUNK
        self._first_chunks = np.cumsum(chunks) - chunks
        self._same = np.full(int(chunks.sum()), _MIXED, np.int16)

    def tell(self, pfn: int, types: Types) -> None:
        """Say what pages are, which all have struct pages: all that a chunk has of an array together."""
        index = self._index(pfn)
        first, last = pfn // _CHUNK, (pfn + types.size - 1) // _CHUNK
        begin = max(first * _CHUNK, self.arrays[index][0])
        end = min((first + 1) * _CHUNK, self.arrays[index][1])
        if first == last and (begin, end) == (pfn, pfn + types.size) and (types == types[0]).all():
            self._same[self._chunk(index, pfn)] = types[0]
        else:
            chunk = self._chunk(index, pfn)
            self._same[chunk : chunk + last - first + 1] = _MIXED
            self._view(index, pfn, types.size)[:] = types

    def _index(self, pfn: int) -> int:
        return int(np.searchsorted(self._ends, pfn, side="right"))

    def _chunk(self, index: int, pfn: int) -> int:
        return int(self._first_chunks[index]) + pfn // _CHUNK - self.arrays[index][0] // _CHUNK

    def _view(self, index: int, pfn: int, count: int) -> Types:
        at = int(self._places[index]) + pfn - self.arrays[index][0]
        return self._types[at : at + count]

    def _chunks(self, pfn: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Give of pages that have struct pages the array, and the first and the end of each chunk's."""
        index = self._index(pfn)
        while index < len(self.arrays) and self.arrays[index][0] < pfn + count:
            low, end = max(self.arrays[index][0], pfn), min(self.arrays[index][1], pfn + count)
            while low < end:
                high = min(low - low % _CHUNK + _CHUNK, end)
                yield index, low, high
                low = high
            index += 1

    def of(self, pfn: int, count: int) -> Types:
        """Give the types of any pages, by frame number in units of `page_size`.

        Returns
        -------
        (count,) uint8
            UNKNOWN of pages that have no struct page.
        """
        found = np.full(count, UNKNOWN, np.uint8)
        for index, low, high in self._chunks(pfn, count):
            same = int(self._same[self._chunk(index, low)])
            found[low - pfn : high - pfn] = self._view(index, low, high - low) if same == _MIXED else same
        return found

    def counts(self, runs: list[tuple[int, int]]) -> NDArray[np.int64]:
        """Count pages by type.

        Parameters
        ----------
        runs : list of (int, int)
            Frame numbers ``[begin, end)`` of the pages that are counted.

        Returns
        -------
        (256,) int64
        """
        counts = np.zeros(256, np.int64)
        for begin, end in runs:
            counts[UNKNOWN] += end - begin
            for index, low, high in self._chunks(begin, end - begin):
                same = int(self._same[self._chunk(index, low)])
                counts[UNKNOWN] -= high - low
                if same == _MIXED:
                    counts += np.bincount(self._view(index, low, high - low), minlength=256)
                else:
                    counts[same] += high - low
        return counts

    def spread(self, runs: GoingOn) -> None:
        """Give the pages of runs that began before them their type, as far as they have struct pages.

        Parameters
        ----------
        runs : GoingOn
            The runs.
        """
        for first, count, kind in runs:
            for index, low, high in self._chunks(first, count):
                chunk = self._chunk(index, low)
                same = int(self._same[chunk])
                if same == kind:
                    continue
                if same != _MIXED:
                    begin = max(low - low % _CHUNK, self.arrays[index][0])
                    end = min(low - low % _CHUNK + _CHUNK, self.arrays[index][1])
                    self._view(index, begin, end - begin)[:] = same
                    self._same[chunk] = _MIXED
                spread_type(self._view(index, low, high - low), kind)


class ToldBefore(Protocol):
    """What was told of a guest before: :class:`vmdump.guest.linux.page_types.ahead.TypesAhead`."""

    @property
    def page_size(self) -> int:
        """Bytes of the pages that it compares."""

    def begin(self, types: PageTypes, layout: PageLayout) -> PageTypes:
        """Give what receives the types."""

    def recall(self, part: PageArray, data: Pages, physical: NDArray[np.int64] | None) -> GoingOn | None:
        """Give what was told of the same struct pages; None if they are to be told."""

    def note(self, part: PageArray, going_on: GoingOn) -> None:
        """Take what is told of the struct pages that it was asked for last."""

    def spread(self, runs: GoingOn) -> None:
        """Take runs by which types were changed after they were told."""


def demand_vmcoreinfo(guest: Typed) -> None:
    """Demand a VMCOREINFO, which is that of the kernel that runs.

    Raises
    ------
    CapabilityError
        There is none, or its ``_stext`` does not translate.
    """
    lines = guest.vmcoreinfo
    stext = lines.symbol("_stext")
    if stext is None:
        raise CapabilityError("this guest has no VMCOREINFO to tell what its pages are used for")
    try:
        guest.virtual.runs(stext, 1, None)
    except (ReadError, CapabilityError) as error:
        raise CapabilityError(
            f"the guest's VMCOREINFO is not that of the kernel in its memory ({error})"
        ) from error


def kernel_page_size(guest: Typed) -> int:
    """Give the bytes of a page as the guest's kernel has them, which a dump need not."""
    told = guest.vmcoreinfo.page_size
    return told if told is not None and told in guest.arch.page_sizes else guest.page_size


def _nothing() -> None:
    pass


def tell_types(
    guest: Typed,
    *,
    threads: int = 1,
    check: Callable[[], None] = _nothing,
    only: int | None = None,
    ahead: ToldBefore | None = None,
) -> PageTypes:
    """Tell the types of all pages of a guest, by its kernel's struct pages.

    The rules and their order are makedumpfile's. Three things differ on purpose. Pages without a struct page
    (firmware, device memory) are kept; there all above the last of them are missing. Nothing but PG_slab and
    the map count tells slab pages; there bit 7 does since 6.10, which is PG_waiters. And what contradicts
    itself is kept and counted: a free block of an impossible order, a head that is not aligned.

    Parameters
    ----------
    guest : Typed
        The guest; its memory must not change meanwhile.
    threads : int
        Threads that read and tell.
    check : callable
        Called now and then; raises to end it.
    only : int, optional
        Frame number of the only page that is asked for: pages that cannot matter for it have no type then.
    ahead : ToldBefore, optional
        What was told before, which is kept up to date: only what has changed is told. The types are those of
        before, changed in place. Struct pages may change meanwhile then.

    Raises
    ------
    CapabilityError
        Its VMCOREINFO is missing, of another kernel, or tells too little.
    ReadError
        What tells where struct pages are is not in memory.
    SourceError
        The memory cannot be read.
    """
    demand_vmcoreinfo(guest)
    lines = guest.vmcoreinfo
    layout = PageLayout.of(lines, 8 if guest.arch.elf_class == 64 else 4, guest.byteorder)
    page_size = kernel_page_size(guest)
    arrays = find_arrays(guest, lines, layout.size)
    told = arrays if only is None else _around(arrays, only, layout.size)
    types = PageTypes(page_size, told)
    if ahead is not None:
        types = ahead.begin(types, layout)
    typer, size = layout.typer(), layout.size
    reader = StructReader(guest, copies=ahead is not None)
    of_zeros = np.empty(1, np.uint8)
    typer.tell(np.zeros(size, np.uint8), 0, of_zeros)

    def tell(part: PageArray, runs: Runs) -> GoingOn:
        length = part.pages * size
        data, missing, hole = reader.read(runs, part.address, length)
        if ahead is not None and not missing and not hole:
            pages = page_frames(runs, part.address, length, ahead.page_size)
            known = ahead.recall(part, data, pages)
            if known is not None:
                return known
        found = np.repeat(of_zeros, part.pages)
        going_on: GoingOn = [] if hole else typer.tell(data, part.first, found)
        for begin, end in missing:
            found[begin // size : -(-end // size)] = UNREADABLE
        types.tell(part.first, found)
        if ahead is not None:
            ahead.note(part, going_on)
        return going_on

    def tell_batch(batch: list[PageArray]) -> GoingOn:
        check()
        begin, last = batch[0].address, batch[-1]
        runs = guest.virtual.kernel_runs(begin, last.address + last.pages * size - begin)
        return [run for part in batch for run in tell(part, runs)]

    going_on: GoingOn = []
    with ThreadPoolExecutor(threads, thread_name_prefix="vmdump-types") as pool:
        tasks: list[Future[GoingOn]] = []
        try:
            tasks = [pool.submit(tell_batch, batch) for batch in _batches(told, size, threads)]
            for task in tasks:
                going_on += task.result()
        finally:
            for task in tasks:
                task.cancel()
    types.spread(going_on)
    if ahead is not None:
        ahead.spread(going_on)
    # Of one page it need not be asked where its own struct page says what it is used for.
    if not layout.tells_free and (only is None or types.of(only, 1)[0] == KERNEL):
        from vmdump.guest.linux.page_types.free_lists import listed_runs  # no kernel of this decade has none

        for run in listed_runs(guest, lines, layout, arrays):
            types.spread([run])
            if ahead is not None:
                ahead.spread([run])
            if only is not None and run[0] <= only < run[0] + run[1]:
                break
    return types


def _around(arrays: list[PageArray], pfn: int, size: int) -> list[PageArray]:
    """Limit arrays to a page and those whose struct pages may tell of it: no run is longer or not aligned."""
    begin, end = pfn >> MAX_ORDER << MAX_ORDER, pfn + 2
    cut = []
    for array in arrays:
        low, high = max(array.first, begin), min(array.first + array.pages, end)
        if low < high:
            cut.append(PageArray(low, high - low, array.address + (low - array.first) * size))
    return cut


def _batches(arrays: list[PageArray], size: int, threads: int) -> list[list[PageArray]]:
    """Cut arrays into chunks, and put those together whose struct pages are found by one walk."""
    chunks = sum(array.pages for array in arrays) // _CHUNK
    most = max(min(_CHUNKS_PER_WALK, chunks // (2 * threads)), 1)
    batches: list[list[PageArray]] = []
    for array in arrays:
        end, pfn = array.first + array.pages, array.first
        batch: list[PageArray] = []
        while pfn < end:
            cut = min(end, pfn - pfn % _CHUNK + _CHUNK)
            batch.append(PageArray(pfn, cut - pfn, array.address + (pfn - array.first) * size))
            pfn = cut
            if len(batch) == most or pfn == end:
                batches.append(batch)
                batch = []
    return batches
