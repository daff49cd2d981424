"""Where blocks of guest memory lie in QEMU's process, by what is in them.

Only QEMU's monitor tells it, and libvirt marks a domain as tainted when that is asked. But a block is
contiguous in the process, and libvirt shows what is at a guest-physical address: a few pages whose contents
are at one of the places where the block could be, and at no other, fix all of it.

Of memory that holds next to nothing, as unused video memory does, the size tells it: QEMU keeps the guest's
memory from its own children (``ram_block_add()`` in softmmu/physmem.c: MADV_DONTFORK), and puts a page that
nobody can read behind each part (``qemu_ram_mmap()`` in util/mmap-alloc.c). So the kernel tells where the
parts are that QEMU has, and of just that size, with contents that do not say otherwise, there is often one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import SourceError
from vmdump.sources.process import process
from vmdump.sources.process.memory import ProcessMemory
from vmdump.sources.process.pagemap import PAGE

__all__ = ["find_places"]

_WINDOW = 64 << 10
"""Bytes that are shown at once: libvirt needs 6 ms for them, and as much for a page."""
_WINDOWS = 12
"""The most that are looked at for a block."""
_PARTS = 3
"""Of a possible place: pages with contents are looked for in each."""
_PROOF = 3
"""Different pages that have to be the same on both sides; of smaller blocks, all."""
_TRIES = 4
"""Times that a page has to differ: the guest may write to it, and back again, while it is shown."""
_WORD = 8
_USER_END = 1 << 63
"""What is mapped beyond, a page of the kernel's, is not to be read."""

_Bytes = NDArray[np.uint8]


@dataclass
class _Candidate:
    """A place where a block could be.

    Attributes
    ----------
    begin : int
        Virtual address.
    proofs : set of bytes
        The pages that were the same.
    refuted : bool
        One was not.
    """

    begin: int
    proofs: set[bytes] = field(default_factory=set)
    refuted: bool = False


def find_places(
    ranges: Sequence[tuple[int, int]],
    mappings: Sequence[process.Mapping],
    memory: ProcessMemory,
    peek: Callable[[int, int], bytes],
    kept: Callable[[], Sequence[tuple[int, int]]],
) -> list[int | None]:
    """Find blocks of guest memory in QEMU's process. The guest may run.

    Parameters
    ----------
    ranges : sequence of (int, int)
        Guest-physical address and bytes of each block, ascending.
    mappings : sequence of Mapping
        Of the process, ascending.
    memory : ProcessMemory
        Of the process.
    peek : callable
        Shows what is at a guest-physical address: called with that and a number of bytes.
    kept : callable
        Gives begin and end of what the process keeps from its children, see :meth:`Process.kept`.

    Returns
    -------
    list of (int or None)
        The virtual address of each block's first byte; None where nothing proves one.

    Raises
    ------
    SourceError
        The process has ended.
    VmdumpError
        Of `peek` and `kept`.
    """
    found: dict[int, int] = {}
    sizes = dict(ranges)
    for _ in range(2):  # what lies beside others is seen once they are found
        for start, size in ranges:
            if start not in found:
                places = _possible_places(start, size, mappings, found, sizes)
                begin = _Search(start, size, memory, peek).find(places)
                if begin is not None:
                    found[start] = begin
    found |= _rests(ranges, mappings, found)
    missing = [each for each in ranges if each[0] not in found]
    if missing and found:
        parts = kept()
        # Where this QEMU does not mark the guest's memory so, the marks of others tell nothing.
        if all(
            any(_lies_in(part, found[start], size) for part in parts)
            for start, size in ranges
            if start in found
        ):
            for start, size in reversed(missing):  # the large one from address 0 on is behind the small one
                begin = _Search(start, size, memory, peek).settle(
                    *_marked_places(start, size, parts, found, sizes)
                )
                if begin is not None:
                    found[start] = begin
    return [found.get(start) for start, _ in ranges]


def _possible_places(
    start: int,
    size: int,
    mappings: Sequence[process.Mapping],
    found: Mapping[int, int],
    sizes: Mapping[int, int],
) -> list[int]:
    """Give where a block could begin, the most likely first.

    QEMU's own blocks begin where a mapping does. One that guest-physical memory has in two parts continues
    behind the hole, either where it would without one (above 640 KiB), or at once (at 4 GiB). Of the firmware
    the last part lies below 1 MiB as well.
    """
    likely: list[int] = []
    others: list[int] = []
    for area in _areas(mappings):
        low, high = area[0].begin, area[-1].end
        near = []
        for other, begin in found.items():
            if low <= begin < high:
                near += [begin + start - other, begin + sizes[other], begin - size]
        exact = [each.begin for each in area if each.end - each.begin == size]
        bounds = [each.begin for each in area] + [each.end - size for each in area]
        for places, part in ((likely, [*near, *exact]), (others, bounds)):
            places += [begin for begin in part if low <= begin and begin + size <= high]
    return list(dict.fromkeys(likely + others))


def _lies_in(part: tuple[int, int], begin: int, size: int) -> bool:
    return part[0] <= begin and begin + size <= part[1]


def _marked_places(
    start: int,
    size: int,
    parts: Sequence[tuple[int, int]],
    found: Mapping[int, int],
    sizes: Mapping[int, int],
) -> tuple[list[int], list[int]]:
    """Give places of a block that are all of a part of QEMU's guest memory; and others, beside other blocks.

    The memory from address 0 on is one part, and guest-physical memory may leave out what is behind 640 KiB.
    """
    whole = [low for low, high in parts if high - low == size]
    whole += [low + start for low, high in parts if high - low == start + size and start]
    bases = {place - other for other, place in found.items()}
    whole += [low + start for low, high in parts if low in bases and low + start + size <= high]
    whole = list(dict.fromkeys(whole))
    beside = [
        begin
        for part in parts
        for other, place in found.items()
        for begin in (place + start - other, place + sizes[other], place - size)
        if _lies_in(part, place, sizes[other]) and _lies_in(part, begin, size)
    ]
    return whole, [begin for begin in dict.fromkeys(beside) if begin not in whole]


def _rests(
    ranges: Sequence[tuple[int, int]], mappings: Sequence[process.Mapping], found: Mapping[int, int]
) -> dict[int, int]:
    """Place blocks without contents, of which there is one, in mappings that lack one of just that size.

    That is memory above 4 GiB that the guest has not used yet: its part below fixes the mapping.
    """
    sizes = dict(ranges)
    gaps: dict[int, list[int]] = {}
    for run in process.merged(mappings):
        inside = [start for start, begin in found.items() if run.begin <= begin < run.end]
        parts = sorted((found[start], sizes[start]) for start in inside)
        end = run.begin
        if parts and run.readable:
            for begin, size in parts:
                if begin != end:
                    break
                end += size
            else:
                gaps.setdefault(run.end - end, []).append(end)
    lacking = [size for start, size in ranges if start not in found]
    return {
        start: gaps[size][0]
        for start, size in ranges
        if start not in found and lacking.count(size) == 1 and len(gaps.get(size, ())) == 1
    }


def _areas(mappings: Sequence[process.Mapping]) -> list[list[process.Mapping]]:
    """Give the mappings between which there is no gap together."""
    areas: list[list[process.Mapping]] = []
    for mapping in mappings:
        if not mapping.readable or mapping.end > _USER_END:
            continue
        if areas and areas[-1][-1].end == mapping.begin:
            areas[-1].append(mapping)
        else:
            areas.append([mapping])
    return areas


class _Search:
    """The search for one block."""

    def __init__(
        self, start: int, size: int, memory: ProcessMemory, peek: Callable[[int, int], bytes]
    ) -> None:
        self._start = start
        self._size = size
        self._memory = memory
        self._peek = peek
        self._needed = min(_PROOF, max(size // PAGE, 1))
        self._patient = False

    def find(self, places: Sequence[int]) -> int | None:
        """Give the only place that contents prove and do not refute; None if there is not one."""
        candidates = [_Candidate(begin) for begin in places]
        for offset in islice(self._windows(candidates), _WINDOWS):
            self._compare(offset, min(_WINDOW, self._size - offset), candidates)
            left = [each for each in candidates if not each.refuted]
            # One of which nothing is known yet could be the right one.
            if len(left) == 1 and len(left[0].proofs) >= self._needed:
                return left[0].begin
            if not left:
                break
        return None

    def settle(self, whole: Sequence[int], beside: Sequence[int]) -> int | None:
        """Give the only place that contents do not refute; None if there is not one.

        Parameters
        ----------
        whole : sequence of int
            Places that are all of a mapping, where nothing else need speak for them.
        beside : sequence of int
            Others, of which a page has to be the same.
        """
        self._patient = True
        candidates = [_Candidate(begin) for begin in (*whole, *beside)]
        first = {0, max(self._size - _WINDOW, 0)}
        for offset in islice(chain(first, self._windows(candidates)), _WINDOWS):
            self._check(offset, min(_WINDOW, self._size - offset), candidates)
        left = [each for each in candidates if not each.refuted and (each.begin in whole or each.proofs)]
        return left[0].begin if len(left) == 1 else None

    def _windows(self, candidates: Sequence[_Candidate]) -> Iterator[int]:
        """Give offsets in the block at which something is, in a place that is not refuted."""
        seen = set()
        for candidate in candidates:
            for part in range(_PARTS):
                low, high = (self._size // PAGE * number // _PARTS * PAGE for number in (part, part + 1))
                begin = candidate.begin
                if candidate.refuted or begin % PAGE or low == high:
                    continue
                for run, _ in islice(self._memory.table.populated(begin + low, begin + high), 2):
                    offset = max(min(run - begin, self._size - _WINDOW), 0)
                    offset -= offset % PAGE
                    if offset not in seen and not candidate.refuted:
                        seen.add(offset)
                        yield offset

    def _compare(self, offset: int, length: int, candidates: Sequence[_Candidate]) -> None:
        """Compare what libvirt shows with what is in the places that are left."""
        shown = self._show(offset, length)
        telling = [low for low in range(0, length, PAGE) if _is_telling(shown[low : low + PAGE])]
        if not telling:
            return
        # Of the wrong places there may be hundreds: a few pages are enough for them.
        some = telling[:: len(telling) // _PROOF + 1]
        fresh = [each for each in candidates if not each.refuted and not each.proofs]
        right = [each for each in fresh if any(self._is_same(each, offset, low, shown) for low in some)]
        if not right and len(fresh) == len([each for each in candidates if not each.refuted]):
            return  # the guest is writing to them all
        for candidate in fresh:
            candidate.refuted = candidate not in right
        self._check(offset, length, candidates)

    def _check(self, offset: int, length: int, candidates: Sequence[_Candidate]) -> None:
        """Compare all that is in the places that are left with what libvirt shows."""
        left = [each for each in candidates if not each.refuted]
        before = [self._read(each.begin + offset, length) for each in left]
        shown = self._show(offset, length)
        for candidate, first in zip(left, before, strict=True):
            second = self._read(candidate.begin + offset, length)
            if first is None or second is None:
                candidate.refuted = True
                continue
            differing = []
            for low in range(0, length, PAGE):
                page, again, wanted = (each[low : low + PAGE] for each in (first, second, shown))
                if not np.array_equal(page, again):
                    continue  # the guest is writing there
                if not np.array_equal(page, wanted):
                    differing.append(offset + low)
                elif _is_telling(page):
                    candidate.proofs.add(page.tobytes())
            candidate.refuted = any(self._differs(candidate, at) for at in differing)

    def _is_same(self, candidate: _Candidate, offset: int, low: int, shown: _Bytes) -> bool:
        wanted = shown[low : low + PAGE]
        page = self._read(candidate.begin + offset + low, len(wanted))
        return page is not None and np.array_equal(page, wanted)

    def _differs(self, candidate: _Candidate, offset: int) -> bool:
        """Tell whether a page of a place is not the block's; if nothing else speaks for it, at once."""
        length = min(PAGE, self._size - offset)
        for _ in range(_TRIES if candidate.proofs or self._patient else 0):
            first = self._read(candidate.begin + offset, length)
            shown = self._show(offset, length)
            second = self._read(candidate.begin + offset, length)
            if first is None or second is None:
                return True
            if np.array_equal(first, shown) or not np.array_equal(first, second):
                return False
        return True

    def _show(self, offset: int, length: int) -> _Bytes:
        return np.frombuffer(self._peek(self._start + offset, length), np.uint8)

    def _read(self, address: int, length: int) -> _Bytes | None:
        """Read from the process; None where nothing can be read."""
        out = np.empty(length, np.uint8)
        try:
            self._memory.read_into(address, out)
        except SourceError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                raise
            return None
        return out


def _is_telling(page: _Bytes) -> bool:
    """Tell whether a page is more than one word again and again, as many pages are."""
    words = page[: len(page) // _WORD * _WORD].view(np.uint64)
    return bool(len(words)) and not np.all(words == words[0])
