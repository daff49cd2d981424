"""Blocks that are put together from pieces of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

from vmdump.guest.blocks import Block, FileRuns, Pages, file_runs, find_block, read_into

__all__ = ["PiecesMemory", "join_pieces"]

_KEPT = 64


def join_pieces(pieces: Sequence[Block]) -> Callable[[int, int], PiecesMemory]:
    """Give what makes blocks of pieces: called with begin and end of one, as of :class:`PiecesMemory`."""
    # A piece is looked up for each read, and the data runs that it found in its file are in it.
    return partial(PiecesMemory, pieces, lru_cache(_KEPT)(pieces.__getitem__))


class PiecesMemory:
    """A block of which only pieces are there; the rest is zero.

    Parameters
    ----------
    pieces : sequence of Block
        Sorted; each of them lies inside the block or outside it.
    piece : callable
        ``(index) -> Block``, which keeps those used last.
    begin, end : int
        Guest-physical addresses of the block.
    """

    copies = True

    def __init__(self, pieces: Sequence[Block], piece: Callable[[int], Block], begin: int, end: int) -> None:
        self._pieces = pieces
        self._piece = piece
        self._begin = begin
        self.size = end - begin

    def _inside(self, offset: int, length: int) -> Iterator[tuple[Block, int, int, int]]:
        """Give the pieces in a range of the block: the piece, begin and end in it, its place in the block."""
        begin, end = self._begin + offset, self._begin + offset + length
        index = max(find_block(self._pieces, begin), 0)
        while index < len(self._pieces) and (piece := self._piece(index)).start < end:
            if piece.end > begin:
                low, high = max(begin - piece.start, 0), min(end, piece.end) - piece.start
                yield piece, low, high, piece.start - self._begin
            index += 1

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the runs that may hold data in any piece."""
        for piece, _, _, place in self._inside(0, self.size):
            for begin, end in piece.memory.extents():
                yield place + begin, place + end

    def file_runs(self, offset: int, length: int) -> FileRuns | None:
        """Give the data runs inside, of all pieces; None where one of them is in no file."""
        found: FileRuns = []
        for piece, low, high, place in self._inside(offset, length):
            runs = file_runs(piece.memory, low, high - low)
            if runs is None:
                return None
            at = place + low - offset
            found += [(at + begin, at + end, fd, position) for begin, end, fd, position in runs]
        return found

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Put the pieces into `scratch`, and zeros between them."""
        out = scratch[:length]
        out[:] = 0
        for piece, low, high, place in self._inside(offset, length):
            read_into(piece.memory, low, out[place + low - offset : place + high - offset])
        return out
