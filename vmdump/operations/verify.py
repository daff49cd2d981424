"""Whether every page of a dump can be read, and whether it holds another guest's memory, page by page."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import CodecError, FormatError, ReadError, SourceError
from vmdump.guest.blocks import Block, Pages
from vmdump.guest.common import CommonMemory, common_ranges
from vmdump.guest.excluded import partly_excluded
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import AS_TOLD
from vmdump.guest.whole import data_runs, page_runs, whole_pages
from vmdump.kernels.bits import equal
from vmdump.opening import opened, session
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, check_threads, in_order
from vmdump.readers.dump import Dump
from vmdump.readers.kinds import PageKind, name_kinds
from vmdump.units import ADDRESS_LIMIT, align_up, counted, merge_runs

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["Comparison", "Damage", "Verification", "compare", "verify"]

_CHUNK = 4 << 20
_PAGES_COUNTED = 1 << 20
_LISTED = 100
"""Pages and ranges that a report names; it counts all."""
_READ_ERRORS = (SourceError, FormatError, CodecError, ReadError)

Range = tuple[int, int]


@dataclass(frozen=True)
class Damage:
    """A page that cannot be read.

    Attributes
    ----------
    pfn : int
        Its frame number.
    reason : str
        The error's text.
    """

    pfn: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes
    ----------
    bytes_compared : int
        Guest memory that both hold, in bytes.
    different : tuple of int
        Guest-physical addresses of the pages that differ, the first 100.
    different_pages : int
        How many differ.
    excluded_pages : int
        Pages that are excluded from one of them, and were not compared.
    only_in_guest, only_in_dump : tuple of (int, int)
        Ranges ``[begin, end)`` of memory that the other does not have, the first 100, in whole pages: where
        the memory of one ends inside a page, as it never does in a kdump file, what both have is compared.
    """

    bytes_compared: int
    different: tuple[int, ...]
    different_pages: int
    excluded_pages: int
    only_in_guest: tuple[Range, ...]
    only_in_dump: tuple[Range, ...]

    @property
    def blocks_equal(self) -> bool:
        """True if both have memory at the same addresses."""
        return not self.only_in_guest and not self.only_in_dump

    @property
    def equal(self) -> bool:
        """True if nothing differs."""
        return self.blocks_equal and not self.different_pages


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes
    ----------
    page_size : int
        Bytes of a page of the dump.
    pages : int
        Pages of the guest, those that are excluded included.
    kinds : dict of str to int
        How many of them the dump holds in which way: the names of
        :class:`vmdump.readers.kinds.PageKind`, in lower case, that come up.
    damaged : tuple of Damage
        Pages that cannot be read, the first 100.
    damaged_pages : int
        How many cannot be read.
    comparison : Comparison or None
        With the other guest, where there is one.
    """

    page_size: int
    pages: int
    kinds: dict[str, int]
    damaged: tuple[Damage, ...]
    damaged_pages: int
    comparison: Comparison | None

    @property
    def whole(self) -> bool:
        """True if every page can be read and nothing differs from the other guest."""
        return not self.damaged_pages and (self.comparison is None or self.comparison.equal)

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON has it."""
        return asdict(self)


def verify(
    dump: AnySource,
    *,
    against: AnySource | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Read and decompress every page of a dump, and compare it with another guest.

    Parameters
    ----------
    dump : str, path, sequence of paths, Source, buffer, or list of blocks
        What :func:`vmdump.dump` takes as a source.
    against : str, path, sequence of paths, Source, buffer, or list of blocks, optional
        Another dump, or a guest; one that runs is paused meanwhile. Pages that are excluded from either are
        counted and not compared.
    threads : int, optional
        Threads that read and compare; the processors this process may use, if not given.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory.

    Returns
    -------
    Verification
        It lists pages that cannot be read; they are not compared.

    Raises
    ------
    SourceError, FormatError, LayoutError, CapabilityError, RequestError
        One of them cannot be opened, or `threads` are not from 1 to 1024.
    SourceError, FormatError, CodecError
        The other guest cannot be read.
    GuestBusy, QmpError, AccessDenied
        A live guest cannot be read now.
    """
    threads = check_threads(threads)
    with opened(dump, search=False) as source:
        if against is None:
            return _scan(source, None, threads, progress)
        with (
            session(against) as other,
            other.held(pause=True, cancelled=lambda: False, vmcoreinfo=AS_TOLD) as guest,
        ):
            return _scan(source, guest, threads, progress)


def compare(guest: Guest, dump: Guest, *, threads: int = 1) -> Comparison:
    """Compare all memory of two guests.

    Parameters
    ----------
    guest, dump : Guest
        Pages are those of `dump`.
    threads : int
        Threads that read and compare.

    Raises
    ------
    SourceError, FormatError, CodecError
        One of them cannot be read.
    """
    found = _scan(dump, guest, threads, None)
    if found.damaged:
        first = found.damaged[0]
        pages = counted(found.damaged_pages, "page")
        raise FormatError(f"{pages} cannot be read, the first is {first.pfn:#x}: {first.reason}")
    assert found.comparison is not None
    return found.comparison


@dataclass
class _Findings:
    """What one piece of work found, or all of them together."""

    kinds: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PageKind), np.int64))
    damaged: list[Damage] = field(default_factory=list)
    damaged_pages: int = 0
    damaged_bytes: int = 0
    """Of these pages, what both have: it is not compared."""
    different: list[int] = field(default_factory=list)
    different_pages: int = 0

    def add(self, other: _Findings) -> None:
        self.kinds += other.kinds
        self.damaged += other.damaged[: _LISTED - len(self.damaged)]
        self.damaged_pages += other.damaged_pages
        self.damaged_bytes += other.damaged_bytes
        self.different += other.different[: _LISTED - len(self.different)]
        self.different_pages += other.different_pages


@dataclass(frozen=True)
class _Piece:
    """Whole pages inside one block of the dump, and inside one of the guest or in none."""

    mine: Block
    theirs: Block | None
    begin: int
    end: int


class _Scan:
    """One dump and what it is compared with."""

    def __init__(self, dump: Guest, guest: Guest | None, common: CommonMemory) -> None:
        self.dump = dump
        self.guest = guest
        self.page_size = dump.page_size
        self.common = common

    def work(self, scratch: Pages, piece: _Piece) -> _Findings:
        """Read a piece of the dump, and compare it with the guest."""
        found = _Findings()
        length = piece.end - piece.begin
        first, count = piece.begin // self.page_size, length // self.page_size
        bad = np.zeros(count, np.bool_)
        mine = self._read(piece, scratch[:_CHUNK], bad, found)
        if self.guest is None or piece.theirs is None:
            return found
        found.damaged_bytes = self.common.size_of(first, bad)
        theirs = piece.theirs.memory.view(piece.begin - piece.theirs.start, length, scratch[_CHUNK:])
        if not equal(mine, theirs):
            unlike = np.not_equal(mine, theirs)
            self.common.clear_others(piece.begin, unlike)
            differ = np.asarray(unlike.reshape(count, self.page_size).any(axis=1))
            differ[bad] = False
            for source in (self.dump, self.guest):
                differ[partly_excluded(source, first, count, self.page_size)] = False
            found.different_pages = int(np.count_nonzero(differ))
            pages = np.flatnonzero(differ)[:_LISTED].tolist()
            found.different = [(first + page) * self.page_size for page in pages]
        return found

    def _read(self, piece: _Piece, out: Pages, bad: NDArray[np.bool_], found: _Findings) -> Pages:
        """Read a piece; where that fails, its halves, down to the pages that cannot be read."""
        block, begin, end = piece.mine, piece.begin, piece.end
        pfn = begin // self.page_size
        try:
            kinds = self._kinds(pfn, len(bad))
            data = block.memory.view(begin - block.start, end - begin, out)
        except _READ_ERRORS as error:
            if len(bad) == 1:
                bad[:] = True
                found.damaged_pages += 1
                if len(found.damaged) < _LISTED:
                    found.damaged.append(Damage(pfn, str(error)))
                return out[: end - begin]
            if self._read_whole(piece, out[: end - begin], bad, found):
                return out[: end - begin]
            half = len(bad) // 2
            middle = (pfn + half) * self.page_size
            for part, low, high in ((bad[:half], begin, middle), (bad[half:], middle, end)):
                target = out[low - begin : high - begin]
                data = self._read(_Piece(block, None, low, high), target, part, found)
                if not np.may_share_memory(data, target):
                    target[:] = data
            return out[: end - begin]
        found.kinds += np.bincount(kinds, minlength=len(PageKind))
        return data

    def _read_whole(self, piece: _Piece, out: Pages, bad: NDArray[np.bool_], found: _Findings) -> bool:
        """Read all intact pages at once: to find a million damaged ones by halves takes an hour."""
        pfn, pages = piece.begin // self.page_size, out.reshape(-1, self.page_size)
        try:
            told = self.dump.read_whole(pfn, pages) if isinstance(self.dump, Dump) else None
        except _READ_ERRORS:
            return False
        if told is None:
            return False
        damage, kinds = told
        damaged = sorted(damage)
        bad[np.array(damaged, np.int64) - pfn] = True
        found.damaged_pages += len(damaged)
        listed = damaged[: max(_LISTED - len(found.damaged), 0)]
        found.damaged += [Damage(page, damage[page]) for page in listed]
        found.kinds += np.bincount(kinds[~bad], minlength=len(PageKind))
        return True

    def _kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        if isinstance(self.dump, Dump):
            return self.dump.page_kinds(pfn, count)
        return np.full(count, PageKind.PLAIN, np.uint8)


def _scan(
    dump: Guest, guest: Guest | None, threads: int, progress: Callable[[int, int], None] | None
) -> Verification:
    page_size = dump.page_size
    common = CommonMemory(dump.blocks, () if guest is None else guest.blocks, page_size)
    scan = _Scan(dump, guest, common)
    mine = page_runs(dump.blocks, page_size)
    pages = sum(end - begin for begin, end in mine)
    slots = [np.empty(2 * _CHUNK, np.uint8) for _ in range(threads + SLOTS_BEYOND_THREADS)]
    done, found = 0, _Findings()
    results = in_order(_pieces(dump, guest), scan.work, slots, threads=threads, idle=lambda piece: False)
    with closing(results):
        for piece, part in results:
            assert part is not None
            found.add(part)
            done += piece.end - piece.begin
            if progress is not None:
                progress(done, pages * page_size)
    if progress is not None:
        progress(pages * page_size, pages * page_size)
    comparison = None
    if guest is not None:
        theirs = page_runs(guest.blocks, page_size)
        excluded, excluded_bytes = _count_excluded(dump, guest, list(common_ranges(mine, theirs)), common)
        comparison = Comparison(
            common.size - excluded_bytes - found.damaged_bytes,
            tuple(found.different),
            found.different_pages,
            excluded,
            tuple(_beyond(guest, dump)),
            tuple(_beyond(dump, guest)),
        )
    return Verification(
        dump.page_size,
        pages,
        name_kinds(found.kinds, pages, dump.excluded_size // page_size, found.damaged_pages),
        tuple(found.damaged),
        found.damaged_pages,
        comparison,
    )


def _beyond(source: Guest, other: Guest) -> Iterator[Range]:
    """Give the first ranges of memory that the other one does not have, in pages of the larger size."""
    page_size = max(source.page_size, other.page_size)
    ours, others = page_runs(source.blocks, page_size), page_runs(other.blocks, page_size)
    # What the others lack, from 0 to the end of all addresses.
    ends = [0, *(end for _, end in others)]
    begins = [*(begin for begin, _ in others), ADDRESS_LIMIT]
    gaps = [gap for gap in zip(ends, begins, strict=True) if gap[0] < gap[1]]
    for begin, end in islice(common_ranges(ours, gaps), _LISTED):
        yield begin * page_size, end * page_size


def _count_excluded(dump: Guest, guest: Guest, pages: list[Range], common: CommonMemory) -> tuple[int, int]:
    """Count the pages that are excluded from either, of those of which both have memory.

    Returns
    -------
    (int, int)
        Pages, and the bytes of them that both have.
    """
    total = size = 0
    if not dump.excluded_size and not guest.excluded_size:
        return 0, 0
    for first, last in pages:
        for pfn in range(first, last, _PAGES_COUNTED):
            count = min(_PAGES_COUNTED, last - pfn)
            excluded = partly_excluded(dump, pfn, count, dump.page_size)
            excluded |= partly_excluded(guest, pfn, count, dump.page_size)
            total += int(np.count_nonzero(excluded))
            size += common.size_of(pfn, excluded)
    return total, size


def _pieces(dump: Guest, guest: Guest | None) -> Iterator[_Piece]:
    """Cut what may not be zero where blocks of the dump and the guest begin and end, and into chunks.

    All in whole pages of the dump.
    """
    sources = (dump,) if guest is None else (dump, guest)
    runs = merge_runs(heapq.merge(*(data_runs(source.blocks, dump.page_size) for source in sources)))
    mine = iter(whole_pages(dump.blocks, dump.page_size))
    theirs = iter(() if guest is None else whole_pages(guest.blocks, dump.page_size))
    block, other = next(mine, None), next(theirs, None)
    for begin, end in runs:
        position = begin
        while position < end:
            while block is not None and block.end <= position:
                block = next(mine, None)
            while other is not None and other.end <= position:
                other = next(theirs, None)
            if block is None:
                return
            position = max(position, block.start)
            shared = other is not None and other.start <= position
            cut = block.end if other is None else min(block.end, other.end if shared else other.start)
            limit = min(end, cut, align_up(position + 1, _CHUNK))
            if position < limit:
                yield _Piece(block, other if shared else None, position, limit)
            position = max(position, limit)
