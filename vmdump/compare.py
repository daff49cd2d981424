"""Whether a dump holds the memory of a guest, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from vmdump.kernels.bits import equal
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, in_order
from vmdump.sources.base import Block, Source
from vmdump.units import merge_runs

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
    different: list[int] = []
    compared = 0
    slots = [dump.page_size] * (threads + SLOTS_BEYOND_THREADS)
    pieces = in_order(
        _common_pieces(guest, dump), _differences, slots, threads=threads, idle=lambda piece: False
    )
    with closing(pieces):
        for (_, _, _, length), found in pieces:
            compared += length
            different += found or ()
    mine, theirs = _merged(guest), _merged(dump)
    return Comparison(compared, tuple(different), mine == theirs)


def _merged(source: Source) -> list[tuple[int, int]]:
    """Join blocks that touch: a dump does not tell where one block ends and the next begins."""
    return list(merge_runs((block.start, block.end) for block in source.blocks))


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
