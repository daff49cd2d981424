"""Which memory is dumped, in which pieces: pure functions of blocks and extents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmdump.errors import RequestError
from vmdump.guest.blocks import Block
from vmdump.units import ADDRESS_LIMIT, align_up

__all__ = ["Run", "Slice", "chosen_blocks", "cut_blocks", "cut_runs", "whole_blocks"]


class Slice(NamedTuple):
    """The part of a block that is dumped: ``[begin, end)`` in bytes from the block's start."""

    block: Block
    begin: int
    end: int

    @property
    def start(self) -> int:
        """Guest-physical address of the first byte."""
        return self.block.start + self.begin

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


class Run(NamedTuple):
    """A piece of a slice: a chunk of data, or a hole of any length.

    Attributes
    ----------
    block : Block
        Where it lies.
    offset, length : int
        Bytes from the block's start, and bytes.
    hole : bool
        True if it is known to be zero and must not be read.
    """

    block: Block
    offset: int
    length: int
    hole: bool


def whole_blocks(blocks: Sequence[Block]) -> list[Slice]:
    """Take all blocks from end to end."""
    return [Slice(block, 0, block.size) for block in blocks]


def cut_blocks(blocks: Iterable[Block], begin: int, end: int) -> list[Slice]:
    """Take the part of the blocks inside ``[begin, end)``."""
    return [
        Slice(block, max(begin - block.start, 0), min(end - block.start, block.size))
        for block in blocks
        if block.start < end and block.end > begin
    ]


def chosen_blocks(blocks: Sequence[Block], within: tuple[int, int] | None) -> list[Slice]:
    """Take all blocks, or their part inside a range.

    Parameters
    ----------
    blocks : sequence of Block
        In address order.
    within : (int, int) or None
        First guest-physical address, and bytes.

    Raises
    ------
    RequestError
        The range exceeds 64-bit addresses, is empty, or has no memory in it.
    """
    if within is None:
        return whole_blocks(blocks)
    begin, length = within
    end = begin + length
    if begin < 0 or length <= 0 or end > ADDRESS_LIMIT:
        raise RequestError(
            f"length: [{begin:#x}, {end:#x}) is not a range of 64-bit addresses", parameter="length"
        )
    slices = cut_blocks(blocks, begin, end)
    if not slices:
        raise RequestError(f"begin: there is no memory in [{begin:#x}, {end:#x})", parameter="begin")
    return slices


def cut_runs(slices: Iterable[Slice], *, unit: int, chunk: int, join: int) -> Iterator[Run]:
    """Cut slices into data runs of at most `chunk` bytes and holes between them, in address order.

    Parameters
    ----------
    slices : iterable of Slice
        In address order.
    unit : int
        Data begins and ends at multiples of this from the block's start, in bytes.
    chunk : int
        A multiple of `unit`; data runs are cut at multiples of it from the block's start, so that the
        cuts do not depend on who asks.
    join : int
        Holes shorter than this are taken as data. Reading them is left to the memory, which knows them.
    """
    for piece in slices:
        position = piece.begin
        for begin, end in _joined(piece, unit, join):
            if begin > position:
                yield Run(piece.block, position, begin - position, hole=True)
            position = begin
            while position < end:
                cut = min(end, position - position % chunk + chunk)
                yield Run(piece.block, position, cut - position, hole=False)
                position = cut
        if position < piece.end:
            yield Run(piece.block, position, piece.end - position, hole=True)


def _joined(piece: Slice, unit: int, join: int) -> Iterator[tuple[int, int]]:
    """Give the extents inside a slice, widened to units, those with short holes between them as one."""
    pending: tuple[int, int] | None = None
    for begin, end in piece.block.memory.extents():
        begin = max(begin - begin % unit, piece.begin)
        end = min(align_up(end, unit), piece.end)
        if begin >= end:
            continue
        if pending is not None and begin - pending[1] < max(join, 1):
            pending = (pending[0], max(end, pending[1]))
            continue
        if pending is not None:
            yield pending
        pending = (begin, end)
    if pending is not None:
        yield pending
