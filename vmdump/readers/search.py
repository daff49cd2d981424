"""Where bytes, or what a regular expression describes, are in a guest's memory."""

from __future__ import annotations

import operator
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import AccessDenied, CodecError, FormatError, ReadError, RequestError, SourceError
from vmdump.guest.blocks import Block, Pages, block_bounds, find_pieces, read_into
from vmdump.guest.guest import Guest
from vmdump.guest.whole import page_runs
from vmdump.kernels.find import find_all, period_of
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, in_order
from vmdump.units import ADDRESS_LIMIT, merge_runs

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["LONGEST", "MAX_LENGTH", "Wanted", "search", "wanted"]

MAX_LENGTH = 4096
"""Bytes of memory that a match of a regular expression is about, if nothing is said."""
LONGEST = 1 << 20
"""Bytes that a match may have, whatever is said: each thread holds three times as many."""
_CELL = 1 << 20
"""Bytes in which matches begin that one thread looks for at once."""

Range = tuple[int, int]
Spans = list[Range]
_READ_ERRORS = (SourceError, FormatError, CodecError, ReadError)


class _Place(NamedTuple):
    """Memory without gaps: what is looked at, and in which part of it a match has to begin."""

    address: int
    data: Pages
    first: int
    last: int


class _Bytes:
    """Bytes that are looked for as they are."""

    before = 0

    def __init__(self, pattern: bytes) -> None:
        self._pattern = pattern
        self._period = period_of(pattern)
        self.after = len(pattern) - 1
        self.quiet = any(pattern)

    def look(self, place: _Place) -> NDArray[np.uint64]:
        """Give the addresses of all places, those that overlap included."""
        found = find_all(place.data[place.first : place.last + self.after], self._pattern, self._period)
        return found + np.uint64(place.address + place.first)

    def addresses(self, found: Iterator[tuple[_Place, Any]]) -> Iterator[int]:
        """Give what was found, in order."""
        for _, here in found:
            yield from here.tolist()


class _Expression:
    """A regular expression, found as :func:`re.finditer` finds it in memory without gaps."""

    def __init__(self, pattern: re.Pattern[bytes], max_length: int) -> None:
        self._pattern = pattern
        self._longest = max_length
        self.before = self.after = max_length
        self.quiet = pattern.search(bytes(4 * max_length)) is None

    def look(self, place: _Place) -> None:
        """Leave it to :meth:`addresses`: only in the main thread can a match be interrupted."""

    def addresses(self, found: Iterator[tuple[_Place, Any]]) -> Iterator[int]:
        """Look for matches, without what overlaps a match in front of it."""
        done, told = 0, -1
        for place, _ in found:
            first = min(max(place.first, done - place.address), place.last)
            for begin, end in self._spans(place._replace(first=first)):
                if place.address + begin > told:
                    told = place.address + begin
                    yield told
                done = place.address + end

    def _spans(self, place: _Place) -> Spans:
        """Give offsets ``[begin, end)`` of the matches, which do not overlap."""
        view, found, at = memoryview(place.data), Spans(), place.first
        while at < place.last:
            for match in self._pattern.finditer(view, at):
                begin, end = match.span()
                if begin >= place.last:
                    return found
                if end - begin > self._longest:
                    # Where this one ends would depend on how much of the memory is seen.
                    short = self._pattern.match(view, begin, begin + self._longest)
                    at = begin + 1
                    if short is not None:
                        at = max(short.end(), at)
                        found.append((begin, at))
                    break
                found.append((begin, end))
            else:
                return found
        return found


@dataclass(frozen=True)
class Wanted:
    """What is looked for, and between which guest-physical addresses; :func:`wanted` makes it."""

    matcher: _Bytes | _Expression
    low: int
    high: int


def wanted(
    pattern: Buffer | re.Pattern[bytes],
    *,
    begin: int | None = None,
    length: int | None = None,
    max_length: int = MAX_LENGTH,
) -> Wanted:
    """Check a request; parameters as for :func:`vmdump.find`.

    Raises
    ------
    RequestError
        The pattern is empty or too long, or a number is out of range.
    """
    low = 0 if begin is None else operator.index(begin)
    high = ADDRESS_LIMIT if length is None else low + operator.index(length)
    if not 0 <= low <= high <= ADDRESS_LIMIT:
        parameter = "begin" if length is None else "length"
        raise RequestError(f"{parameter}: {low:#x}-{high:#x} is not within 64 bits", parameter=parameter)
    return Wanted(_matcher(pattern, max_length), low, high)


def search(
    guest: Guest,
    wanted: Wanted,
    *,
    threads: int,
    advance: Callable[[int], object] = lambda done: None,
    skipped: Callable[[int, int], object] = lambda begin, end: None,
) -> Iterator[int]:
    """Look for a pattern, as addresses are asked for.

    Parameters
    ----------
    guest : Guest
        Where.
    wanted : Wanted
        What.
    threads : int
        That read, and look for bytes.
    advance : callable
        Told how many bytes of the guest's memory are behind it.
    skipped : callable
        Told ranges ``[begin, end)`` of memory that could not be read.

    Raises
    ------
    SourceError
        The memory of a guest that is no dump cannot be read.
    """
    looking = _Search(guest, wanted, advance, skipped)
    return wanted.matcher.addresses(looking.found(threads))


def _matcher(pattern: Buffer | re.Pattern[bytes], max_length: int) -> _Bytes | _Expression:
    """Check what is looked for."""
    if isinstance(pattern, re.Pattern):
        if not isinstance(pattern.pattern, bytes):
            raise RequestError('pattern: memory is bytes; write re.compile(rb"...")', parameter="pattern")
        if not 1 <= max_length <= LONGEST:
            raise RequestError(f"max_length: {max_length} is not from 1 to {LONGEST}", parameter="max_length")
        if pattern.match(b"") is not None:
            raise RequestError(
                f"pattern: {pattern.pattern!r} matches zero bytes as well, which are everywhere",
                parameter="pattern",
            )
        return _Expression(pattern, max_length)
    if isinstance(pattern, str):
        raise RequestError(
            "pattern: memory is bytes; encode the text, as in text.encode()", parameter="pattern"
        )
    raw = bytes(memoryview(pattern))
    if not raw:
        raise RequestError("pattern: it is empty, and nothing is everywhere", parameter="pattern")
    if len(raw) > LONGEST:
        raise RequestError(f"pattern: it has {len(raw)} bytes, and may have {LONGEST}", parameter="pattern")
    return _Bytes(raw)


@dataclass(frozen=True)
class _Cell:
    """Where matches begin, and which part of what has to be seen for that may not be zero."""

    begin: int
    end: int
    data: Sequence[Range]


class _Search:
    """One guest and what is looked for in it, between two addresses."""

    def __init__(
        self,
        guest: Guest,
        wanted: Wanted,
        advance: Callable[[int], object],
        skipped: Callable[[int, int], object],
    ) -> None:
        self._guest = guest
        self._matcher = wanted.matcher
        self._low, self._high = wanted.low, wanted.high
        self._advance, self._skipped = advance, skipped
        starts, sizes = block_bounds(guest.blocks)
        lasts = starts + (sizes - np.uint64(1))
        apart = starts[1:] - lasts[:-1] > 1
        self._starts, self._lasts = starts[np.append(True, apart)], lasts[np.append(apart, True)]

    def found(self, threads: int) -> Iterator[tuple[_Place, Any]]:
        """Look at all cells, side by side; a place is valid until the next one is asked for."""
        size = _CELL + self._matcher.before + self._matcher.after
        slots = [np.empty(size, np.uint8) for _ in range(threads + SLOTS_BEYOND_THREADS)]
        results = in_order(self._cells(), self._look, slots, threads=threads, idle=lambda _: False)
        done = at = 0
        with closing(results):
            for cell, result in results:
                places, bad = result or ((), ())
                for begin, end in bad:
                    if begin < cell.end and end > cell.begin:
                        self._skipped(max(begin, cell.begin), min(end, cell.end))
                yield from places
                done += sum(end - begin for begin, end in self._memory(at, cell.end))
                at = cell.end
                self._advance(done)

    def _data(self) -> Iterator[Range]:
        """Give the memory that may not be zero, between the two addresses."""
        extents = (
            (block.start + begin, block.start + end)
            for block in self._guest.blocks
            if block.end > self._low and block.start < self._high
            for begin, end in block.memory.extents()
        )
        for begin, end in merge_runs(extents):
            if begin < self._high and end > self._low:
                yield max(begin, self._low), min(end, self._high)

    def _cells(self) -> Iterator[_Cell]:
        """Cut memory into cells; those are left out around which there are zeros that nothing matches."""
        before, after = self._matcher.before, self._matcher.after
        runs, known = self._data(), deque[Range]()

        def know(address: int) -> None:
            """Take data up to an address, and the run behind it."""
            while not known or known[-1][0] < address:
                run = next(runs, None)
                if run is None:
                    return
                known.append(run)

        def cell(number: int) -> _Cell:
            begin, end = number * _CELL, (number + 1) * _CELL
            know(end + after)
            while known and known[0][1] <= begin - before:
                known.popleft()
            data = [run for run in known if run[0] < end + after]
            return _Cell(max(begin, self._low), min(end, self._high), data)

        if self._matcher.quiet:
            number = 0
            while True:
                while known and known[0][1] <= number * _CELL - before:
                    known.popleft()
                know(0)
                if not known:
                    return
                number = max(number, (known[0][0] - after) // _CELL)
                if (made := cell(number)).begin < made.end:
                    yield made
                number += 1
        for first, last in page_runs(self._guest.blocks, _CELL):
            for number in range(max(first, self._low // _CELL), min(last, -(-self._high // _CELL))):
                yield cell(number)

    def _look(self, slot: Pages, cell: _Cell) -> tuple[list[tuple[_Place, Any]], Sequence[Range]]:
        """Read what belongs to a cell, and look for matches that begin in it."""
        low = max(cell.begin - self._matcher.before, self._low)
        high = min(cell.end + self._matcher.after, self._high)
        window = slot[: high - low]
        window[:] = 0
        bad = list(merge_runs(sorted([*self._read(cell, low, window), *self._unreadable(low, high)])))
        gaps = merge_runs(sorted([*bad, *self._excluded(low, high)]))
        places = []
        for begin, end in _without(self._memory(low, high), list(gaps)):
            first, last = max(begin, cell.begin), min(end, cell.end)
            if first < last:
                place = _Place(begin, window[begin - low : end - low], first - begin, last - begin)
                places.append((place, self._matcher.look(place)))
        return places, bad

    def _memory(self, low: int, high: int) -> Iterator[Range]:
        """Give the memory between two addresses."""
        first = int(self._lasts.searchsorted(np.uint64(low)))
        last = int(self._starts.searchsorted(np.uint64(high - 1), side="right"))
        pairs = zip(self._starts[first:last].tolist(), self._lasts[first:last].tolist(), strict=True)
        return ((max(begin, low), min(end + 1, high)) for begin, end in pairs)

    def _excluded(self, low: int, high: int) -> Iterator[Range]:
        """Give what is excluded between two addresses, in whole pages."""
        size = self._guest.page_size
        first, last = low // size, -(-high // size)
        mask = self._guest.excluded_pages(first, last - first)
        return iter(()) if mask is None else _ranges(mask, first, size)

    def _unreadable(self, low: int, high: int) -> Iterator[Range]:
        """Give what the host could not read of a live guest, which gave zeros for it."""
        return ((begin, end) for begin, end in self._guest.unreadable if begin < high and end > low)

    def _read(self, cell: _Cell, low: int, window: Pages) -> Iterator[Range]:
        """Fill the window with data; give what cannot be read, in whole pages."""
        high = low + window.size
        for begin, end in cell.data:
            for block, first, last in find_pieces(self._guest.blocks, max(begin, low), min(end, high)):
                at = block.start + first - low
                yield from self._read_piece(block, first, window[at : at + last - first])

    def _read_piece(self, block: Block, offset: int, out: Pages) -> Iterator[Range]:
        """Read a piece of a block; where that fails, its halves, down to the pages that cannot be read."""
        address, size = block.start + offset, self._guest.page_size
        first, last = address // size, -(-(address + out.size) // size)
        try:
            read_into(block.memory, offset, out)
        except _READ_ERRORS as error:
            # A guest whose process ends, or of which nothing may be read, is no guest without the pattern.
            if self._guest.changes or self._guest.fuzzy or isinstance(error, AccessDenied):
                raise
            if last - first == 1:
                yield first * size, last * size
                return
            if not address % size and not out.size % size:
                intact = self._read_intact(first, out.reshape(-1, size))
                if intact is not None:
                    yield from _ranges(~intact, first, size)
                    return
            middle = (first + last) // 2 * size - address
            yield from self._read_piece(block, offset, out[:middle])
            yield from self._read_piece(block, offset + middle, out[middle:])

    def _read_intact(self, pfn: int, pages: Pages) -> NDArray[np.bool_] | None:
        """Read all intact pages at once, as files can that store pages one by one; tell which they are."""
        read_whole = getattr(self._guest, "read_whole", None)
        try:
            told = None if read_whole is None else read_whole(pfn, pages)
        except _READ_ERRORS:
            return None
        if told is None:
            return None
        intact = np.ones(len(pages), np.bool_)
        intact[np.array(sorted(told[0]), np.int64) - pfn] = False
        return intact


def _ranges(mask: NDArray[np.bool_], first: int, size: int) -> Iterator[Range]:
    """Give the runs of pages that a mask has, in bytes."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return (((first + begin) * size, (first + end) * size) for begin, end in pairs)


def _without(runs: Iterator[Range], gaps: Sequence[Range]) -> Iterator[Range]:
    """Cut gaps out of runs; both ascend and do not overlap."""
    index = 0
    for begin, end in runs:
        while index < len(gaps) and gaps[index][1] <= begin:
            index += 1
        at = index
        while at < len(gaps) and gaps[at][0] < end:
            if begin < gaps[at][0]:
                yield begin, gaps[at][0]
            begin = gaps[at][1]
            at += 1
        if begin < end:
            yield begin, end
