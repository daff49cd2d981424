"""PT_LOADs that hold the same memory at several places of the file: one of these is read, all are compared.

A copy of /proc/vmcore has the kernel's text a second time, in a PT_LOAD of its own inside one of the RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import LayoutError
from vmdump.guest.blocks import Block, BlockList, Memory
from vmdump.guest.pieces import join_pieces
from vmdump.kernels.bits import equal
from vmdump.readers.bytes.file import ByteFile
from vmdump.units import ADDRESS_LIMIT

__all__ = ["blocks_of_copies"]

_WINDOW = 64 << 10
"""Bytes compared at a time."""
_MOST_WINDOWS = 4096
"""Windows that are compared, 256 MiB in 0.1 s; a kernel's text has 20 to 60 MiB. Of a larger copy, which only
a hostile file has, as many samples are compared, evenly spread."""
_SAMPLE = 4096

_Column = NDArray[np.uint64]


@dataclass(frozen=True)
class _Runs:
    """Runs of memory, ``[first, last]`` inclusive because nothing else has room for 2^64.

    `shift` is what is added to an address, modulo 2^64, to have its place in the file.
    """

    first: _Column
    last: _Column
    shift: _Column

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> _Runs:
        return _Runs(self.first[rows], self.last[rows], self.shift[rows])

    def __len__(self) -> int:
        return len(self.first)


def blocks_of_copies(file: ByteFile, table: NDArray[np.uint64]) -> BlockList:
    """Make blocks of PT_LOADs that overlap in any way.

    Those that overlap are one block. Where one has bytes and another one only zeros, it has the bytes.

    Parameters
    ----------
    file : ByteFile
        The core.
    table : (4, n) uint64
        p_paddr, p_offset, p_filesz and p_memsz; checked to lie inside the file and below 2^64, none empty.

    Raises
    ------
    LayoutError
        Two of them hold different bytes for one address.
    """
    paddr, _, _, memsz = table
    begin, offset, filesz, _ = table[:, table[2] != 0]
    runs = _merged(_Runs(begin, begin + (filesz - np.uint64(1)), offset - begin))
    cover, copies = _apart(runs)
    _compare(file, cover, copies)
    # Runs of PT_LOADs that touch, in memory and in the file, are one, as in other cores.
    first = np.concatenate((paddr, runs.first))
    order = np.argsort(first, kind="stable")
    first = first[order]
    reach = np.maximum.accumulate(np.concatenate((paddr + (memsz - np.uint64(1)), runs.last))[order])
    begins = np.flatnonzero(np.append(True, first[1:] > reach[:-1]))
    starts, lasts = first[begins], reach[np.append(begins[1:], len(first)) - 1]
    sizes = lasts - starts + np.uint64(1)
    lengths, offsets = cover.last - cover.first + np.uint64(1), cover.first + cover.shift

    def memory(index: int, size: int) -> Memory:
        length = int(lengths[index])
        return file.memory(int(offsets[index]), size or length, length)

    pieces: Sequence[Block] = ()
    if len(cover):
        pieces = BlockList(cover.first, lengths, lambda index: memory(index, 0))
    join = join_pieces(pieces)
    low = np.searchsorted(cover.first, starts)
    high = np.searchsorted(cover.first, lasts, side="right")

    def make(index: int) -> Memory:
        at, count = int(low[index]), int(high[index] - low[index])
        if not count:
            return file.memory(0, int(sizes[index]), 0)
        if count == 1 and cover.first[at] == starts[index]:
            return memory(at, int(sizes[index]))
        return join(int(starts[index]), int(lasts[index]) + 1)

    return BlockList(starts, sizes, make)


def _merged(runs: _Runs) -> _Runs:
    """Join runs that overlap or touch and are at the same place of the file; sorted by that place."""
    runs = runs[np.lexsort((runs.first, runs.shift))]
    if not len(runs):
        return runs
    other = np.append(True, runs.shift[1:] != runs.shift[:-1])
    # How far those before reach, of the same shift: numbers that go on from shift to shift never fall back.
    lasts, number = np.unique(runs.last, return_inverse=True)
    number = number + (np.cumsum(other) - 1) * len(lasts)
    reach = lasts[np.maximum.accumulate(number) % len(lasts)]
    gap = np.zeros(len(runs), np.bool_)
    gap[1:] = (runs.first[1:] > reach[:-1]) & (runs.first[1:] - reach[:-1] > 1)
    begins = np.flatnonzero(other | gap)
    return _Runs(runs.first[begins], reach[np.append(begins[1:], len(runs)) - 1], runs.shift[begins])


def _apart(runs: _Runs) -> tuple[_Runs, _Runs]:
    """Cut runs into those that hold all memory once, and their copies; both ascend."""
    runs = runs[np.lexsort((~runs.last, runs.first))]
    reach = np.maximum.accumulate(runs.last)[:-1]
    again = np.append(np.zeros(min(len(runs), 1), np.bool_), runs.first[1:] <= reach)
    reach = np.append(np.zeros(min(len(runs), 1), np.uint64), reach)
    copies = _Runs(runs.first, np.minimum(runs.last, reach), runs.shift)[again]
    new = ~again | (runs.last > reach)
    return _Runs(np.where(again, reach + np.uint64(1), runs.first), runs.last, runs.shift)[new], copies


def _compare(file: ByteFile, cover: _Runs, copies: _Runs) -> None:
    """Raise LayoutError where a copy holds other bytes than the cover."""
    mine, theirs = np.empty(_WINDOW, np.uint8), np.empty(_WINDOW, np.uint8)
    for address, length, copy, piece in _spots(cover, copies):
        here = (address + int(copies.shift[copy])) % ADDRESS_LIMIT
        there = (address + int(cover.shift[piece])) % ADDRESS_LIMIT
        file.read_into(here, mine[:length])
        file.read_into(there, theirs[:length])
        if not equal(mine[:length], theirs[:length]):
            at = int((mine[:length] != theirs[:length]).argmax())
            raise LayoutError(
                f"{file.path}: two PT_LOADs hold the address {address + at:#x}, with different bytes: "
                f"{theirs[at]:#04x} at file offset {there + at:#x}, {mine[at]:#04x} at {here + at:#x}",
                address=address + at,
            )


def _spots(cover: _Runs, copies: _Runs) -> Iterator[tuple[int, int, int, int]]:
    """Say what to compare: address, bytes, number of the copy, and number of the piece of the cover."""
    if not len(copies):
        return
    sizes = (copies.last - copies.first).astype(np.float64) + 1
    pieces = np.searchsorted(cover.first, copies.last, side="right") - np.searchsorted(
        cover.first, copies.first, side="right"
    )
    if (sizes // _WINDOW + pieces + 1).sum() <= _MOST_WINDOWS:
        for copy in range(len(copies)):
            address, last = int(copies.first[copy]), int(copies.last[copy])
            while address <= last:
                spot = _spot(cover, address, last, copy, _WINDOW)
                yield spot
                address += spot[1]
        return
    ends = np.cumsum(sizes)
    for place in np.linspace(0, ends[-1], _MOST_WINDOWS, endpoint=False).tolist():
        copy = min(int(np.searchsorted(ends, place, side="right")), len(copies) - 1)
        skipped = max(int(place - (ends[copy] - sizes[copy])), 0)
        last = int(copies.last[copy])
        yield _spot(cover, min(int(copies.first[copy]) + skipped, last), last, copy, _SAMPLE)


def _spot(cover: _Runs, address: int, last: int, copy: int, most: int) -> tuple[int, int, int, int]:
    piece = int(np.searchsorted(cover.first, np.uint64(address), side="right")) - 1
    end = min(last, int(cover.last[piece])) + 1
    return address, min(end - address, most), copy, piece
