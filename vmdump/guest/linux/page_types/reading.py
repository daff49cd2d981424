"""Struct pages read from memory that may be scattered."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging import Runs
from vmdump.errors import CodecError, FormatError, ReadError
from vmdump.guest.blocks import Pages, file_runs, find_pieces, read_into
from vmdump.guest.linux.page_types.arrays import Typed
from vmdump.kernels.gather import gather

__all__ = ["StructReader", "page_frames"]

_NEAR = 64 << 10
"""Bytes between two pieces that are read as one."""
_MOST_READ = 4
"""Times as many bytes as are wanted, at most."""


def page_frames(runs: Runs, address: int, length: int, page_size: int) -> NDArray[np.int64] | None:
    """Give the frame number of each page of ``[address, address + length)``, all of which is mapped.

    Returns
    -------
    (n,) int64 or None
        None where a page is not whole, or not in one piece.
    """
    begins, physical, sizes = _cut(runs, address, length)
    if sizes.size == 1 and int(sizes[0]) == length and (int(physical[0]) | length) % page_size == 0:
        first = int(physical[0]) // page_size
        return np.arange(first, first + length // page_size)
    size = np.uint64(page_size)
    if ((begins | physical | sizes) % size).any() or int(sizes.sum()) != length:
        return None
    counts = (sizes // size).astype(np.int64)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat((physical // size).astype(np.int64), counts) + within


def _cut(
    runs: Runs, address: int, length: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Give the parts of runs in a range: where they begin in it and in physical memory, and sizes."""
    low = int(np.searchsorted(runs.virtual + (runs.size - np.uint64(1)), np.uint64(address)))
    high = int(np.searchsorted(runs.virtual, np.uint64(address + length - 1), side="right"))
    begins = np.maximum(runs.virtual[low:high], np.uint64(address)) - np.uint64(address)
    physical = runs.physical[low:high] + (begins + np.uint64(address) - runs.virtual[low:high])
    rest = runs.virtual[low:high] + (runs.size[low:high] - np.uint64(1)) - np.uint64(address)
    return begins, physical, np.minimum(rest, np.uint64(length - 1)) - begins + np.uint64(1)


class _Read(NamedTuple):
    data: Pages
    missing: list[tuple[int, int]]
    hole: bool = False


class StructReader(threading.local):
    """Reads virtual memory by lists of runs; made anew in each thread that uses it, with its own scratch.

    Parameters
    ----------
    guest : Typed
        Whose memory is read.
    copies : bool
        What is read is a copy, which does not change any more.
    """

    def __init__(self, guest: Typed, *, copies: bool = False) -> None:
        self._guest = guest
        self._copies = copies
        self._out: Pages = np.empty(0, np.uint8)
        self._spans: Pages = np.empty(0, np.uint8)

    def read(self, runs: Runs, address: int, length: int) -> _Read:
        """Read ``[address, address + length)``.

        Parameters
        ----------
        runs : Runs
            Ascending; of this memory and more.

        Returns
        -------
        data : (length,) uint8
            Zeros where it is missing; valid until the next call in this thread.
        missing : list of (int, int)
            What is not mapped, not in memory, not in the dump, or damaged: bytes from `address` on.
        hole : bool
            All of it is known to be zero. `data` is empty then.

        Raises
        ------
        SourceError
            The memory cannot be read.
        """
        begins, physical, sizes = _cut(runs, address, length)
        whole = int(sizes.sum()) == length
        if whole and sizes.size == 1:
            found = self._in_place(int(physical[0]), length)
            if found is not None:
                return found
        out = self._buffer("_out", length)
        if whole and sizes.size > 1 and self._gather(physical, sizes, out):
            return _Read(out, [])
        return _Read(out, self._pieces(begins, physical, sizes, out))

    def _buffer(self, name: str, size: int) -> Pages:
        if getattr(self, name).size < size:
            setattr(self, name, np.empty(size, np.uint8))
        found: Pages = getattr(self, name)
        return found[:size]

    def _is_whole(self, address: int, size: int) -> bool:
        """Tell whether all of it is in the dump that the guest comes from."""
        guest = self._guest
        if not guest.excluded_size:
            return True
        first = address // guest.page_size
        mask = guest.excluded_pages(first, -(-(address + size) // guest.page_size) - first)
        return mask is None or not mask.any()

    def _in_place(self, address: int, size: int) -> _Read | None:
        """Give memory where it is, or read it in one go; None if a part of it is missing."""
        try:
            pieces = list(find_pieces(self._guest.blocks, address, address + size))
            if len(pieces) != 1 or not self._is_whole(address, size):
                return None
            block, low, high = pieces[0]
            if file_runs(block.memory, low, high - low) == []:
                return _Read(np.empty(0, np.uint8), [], hole=True)
            if self._copies and not block.memory.copies:
                return None
            scratch = self._buffer("_out", size) if block.memory.copies else np.empty(0, np.uint8)
            return _Read(block.memory.view(low, high - low, scratch), [])
        except (ReadError, FormatError, CodecError):
            return None

    def _gather(self, physical: NDArray[np.uint64], sizes: NDArray[np.uint64], out: Pages) -> bool:
        """Read pieces that lie near each other together; False if they do not, or a part is missing.

        Where hugetlbfs gives back what describes its tails, a section is 512 pages in any order, some of
        which are many times there.
        """
        order = np.argsort(physical, kind="stable")
        begins, ends = physical[order], np.maximum.accumulate(physical[order] + sizes[order])
        breaks = np.flatnonzero(begins[1:] > ends[:-1] + np.uint64(_NEAR)) + 1
        firsts, lasts = np.append(0, breaks), np.append(breaks - 1, len(order) - 1)
        spans = ends[lasts] - begins[firsts]
        total = int(spans.sum())
        if total > _MOST_READ * out.size or 2 * len(firsts) > len(order):
            return False
        data = self._buffer("_spans", total)
        places = np.cumsum(spans) - spans
        for begin, size, place in zip(begins[firsts].tolist(), spans.tolist(), places.tolist(), strict=True):
            if not self._is_whole(begin, size) or not self._fill(begin, data[place : place + size]):
                return False
        span = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(order))))
        offsets = np.empty(len(order), np.uint64)
        offsets[order] = begins - begins[firsts][span] + places[span]
        gather(data, offsets, sizes.astype(np.uint32), out)
        return True

    def _pieces(
        self, begins: NDArray[np.uint64], physical: NDArray[np.uint64], sizes: NDArray[np.uint64], out: Pages
    ) -> list[tuple[int, int]]:
        """Read piece by piece; give what is missing."""
        missing: list[tuple[int, int]] = []
        reached = 0
        for begin, address, size in zip(begins.tolist(), physical.tolist(), sizes.tolist(), strict=True):
            if begin > reached:
                missing.append((reached, begin))
            reached = begin + size
            if not self._is_whole(address, size) or not self._fill(address, out[begin:reached]):
                missing += self._by_pages(begin, address, out[begin:reached])
        if reached < out.size:
            missing.append((reached, out.size))
        for begin, end in missing:
            out[begin:end] = 0
        return missing

    def _by_pages(self, begin: int, address: int, out: Pages) -> list[tuple[int, int]]:
        """Read a run of which a part is missing page by page."""
        missing = []
        page_size = self._guest.page_size
        at = 0
        while at < out.size:
            end = min(at + page_size - (address + at) % page_size, out.size)
            there = self._is_whole(address + at, end - at) and self._fill(address + at, out[at:end])
            if not there:
                missing.append((begin + at, begin + end))
            at = end
        return missing

    def _fill(self, address: int, out: Pages) -> bool:
        """Read memory; False if a part of it is missing or damaged."""
        at = 0
        try:
            for block, low, high in find_pieces(self._guest.blocks, address, address + out.size):
                read_into(block.memory, low, out[at : at + high - low])
                at += high - low
        except (ReadError, FormatError, CodecError):
            return False
        return True
