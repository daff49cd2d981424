"""Whether a dump holds the memory of a guest, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from vmdump.kernels.bits import equal
from vmdump.sources.base import Block, Source

__all__ = ["Comparison", "compare"]

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes
    ----------
    bytes_compared : int
        Guest memory that both hold, in bytes.
    different : tuple of int
        Guest-physical addresses of the pages that differ.
    blocks_equal : bool
        True if both have memory at the same addresses.
    """

    bytes_compared: int
    different: tuple[int, ...]
    blocks_equal: bool

    @property
    def equal(self) -> bool:
        """True if nothing differs."""
        return self.blocks_equal and not self.different


def compare(guest: Source, dump: Source, *, threads: int = 1) -> Comparison:
    """Compare all memory of two guests.

    Parameters
    ----------
    guest, dump : Source
        Pages are those of `dump`.
    threads : int
        Threads that read and compare.

    Raises
    ------
    SourceError, FormatError, CodecError
        One of them cannot be read.
    """
    mine = [(block.start, block.end) for block in guest.blocks]
    theirs = [(block.start, block.end) for block in dump.blocks]
    pieces = list(_common_pieces(guest, dump))
    with ThreadPoolExecutor(threads) as pool:
        different = [
            address for found in pool.map(partial(_differences, dump.page_size), pieces) for address in found
        ]
    compared = sum(length for _, _, _, length in pieces)
    return Comparison(compared, tuple(different), _merged(mine) == _merged(theirs))


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that touch: a dump does not tell where one block ends and the next begins."""
    merged: list[tuple[int, int]] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return merged


def _common_pieces(guest: Source, dump: Source) -> Iterator[tuple[Block, Block, int, int]]:
    left, right = list(guest.blocks[::-1]), list(dump.blocks[::-1])
    while left and right:
        mine, theirs = left[-1], right[-1]
        begin, end = max(mine.start, theirs.start), min(mine.end, theirs.end)
        for address in range(begin, end, _CHUNK):
            yield mine, theirs, address, min(_CHUNK, end - address)
        (left if mine.end <= theirs.end else right).pop()


def _differences(page_size: int, piece: tuple[Block, Block, int, int]) -> list[int]:
    mine, theirs, address, length = piece
    first = mine.memory.view(address - mine.start, length, np.empty(length, np.uint8))
    second = theirs.memory.view(address - theirs.start, length, np.empty(length, np.uint8))
    if equal(first, second):
        return []
    whole = range(0, length, page_size)
    return [
        address + at for at in whole if not equal(first[at : at + page_size], second[at : at + page_size])
    ]
