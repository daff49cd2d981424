"""Where pieces of memory lie in an ELF core that was begun before it was known which pieces there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.writers.lanes import Lane

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Pieces", "PlacedLane"]

_Column = NDArray[np.uint64]


@dataclass(frozen=True)
class Pieces:
    """Pieces of memory in a file.

    Attributes
    ----------
    starts, sizes, offsets : (n,) uint64
        Guest-physical address of each, ascending, its bytes, more than 0, and its file offset.
    """

    starts: _Column
    sizes: _Column
    offsets: _Column

    @property
    def end(self) -> int:
        """File offset behind the last one."""
        return int((self.offsets + self.sizes).max(initial=0))

    def placing(self, starts: _Column, sizes: _Column) -> Pieces:
        """Give other pieces: what is in these stays where it is, the rest goes behind them.

        Parameters
        ----------
        starts, sizes : (m,) uint64
            Of the others, ascending, not overlapping.

        Returns
        -------
        Pieces
            As many as are needed; those that are in one piece of both are not cut.
        """
        old_edges = np.concatenate((self.starts, self.starts + self.sizes))
        ends = starts + sizes
        edges = np.unique(np.concatenate((old_edges, starts, ends)))
        begins, sizes_between = edges[:-1], np.diff(edges)
        wanted = _inside(begins, starts, ends)
        begins, sizes_between = begins[wanted], sizes_between[wanted]
        old = np.searchsorted(self.starts, begins, side="right").astype(np.intp) - 1
        there = _inside(begins, self.starts, self.starts + self.sizes)
        offsets = np.zeros(begins.size, np.uint64)
        offsets[there] = self.offsets[old[there]] + begins[there] - self.starts[old[there]]
        new = sizes_between[~there]
        offsets[~there] = np.uint64(self.end) + np.cumsum(new, dtype=np.uint64) - new
        return Pieces(begins, sizes_between, offsets)

    def without(self, others: Pieces) -> list[tuple[int, int]]:
        """Give file offsets and bytes of what is in these and not in the others."""
        kept = others.offsets < np.uint64(self.end)
        taken = sorted(zip(others.offsets[kept].tolist(), others.sizes[kept].tolist(), strict=True))
        gone, position = [], int(self.offsets.min(initial=self.end))
        for offset, size in [*taken, (self.end, 0)]:
            if offset > position:
                gone.append((position, offset - position))
            position = max(position, offset + size)
        return gone


def _inside(points: _Column, begins: _Column, ends: _Column) -> NDArray[np.bool_]:
    """Tell which points are in ranges that ascend and do not overlap."""
    index = np.searchsorted(begins, points, side="right").astype(np.intp) - 1
    inside: NDArray[np.bool_] = (
        (index >= 0) & (points < ends[np.maximum(index, 0)])
        if begins.size
        else (np.zeros(points.size, np.bool_))
    )
    return inside


class PlacedLane:
    """A lane of memory in the order of its addresses, of which each piece goes to its place in a file.

    Parameters
    ----------
    open_lane : callable
        Opens a lane at a file offset.
    pieces : Pieces
        Where they are.
    behind : int
        File offset from which on what is written goes through a lane of its own: both only go forward.
    """

    def __init__(self, open_lane: Callable[[int], Lane], pieces: Pieces, behind: int) -> None:
        self._pieces = list(zip(pieces.sizes.tolist(), pieces.offsets.tolist(), strict=True))
        self._behind = behind
        first = min((offset for _, offset in self._pieces), default=behind)
        self._lanes = [open_lane(min(first, behind)), open_lane(behind)]
        self._positions = [min(first, behind), behind]
        self._index = self._done = 0

    def write(self, data: Buffer) -> None:
        """Append bytes; they may be changed afterwards."""
        rest = memoryview(data).cast("B")
        while rest:
            lane, size = self._next(len(rest))
            lane.write(rest[:size])
            rest = rest[size:]

    def skip(self, size: int) -> None:
        """Leave bytes as they are."""
        while size > 0:
            lane, count = self._next(size)
            lane.skip(count)
            size -= count

    def clear(self, size: int) -> None:
        """Append zeros, whatever was there before."""
        while size > 0:
            lane, count = self._next(size)
            lane.clear(count)
            size -= count

    def finish(self) -> None:
        """Hand everything to the operating system."""
        for lane in self._lanes:
            lane.finish()

    def _next(self, most: int) -> tuple[Lane, int]:
        """Take the next bytes of a piece; give the lane that is at their place, and how many they are."""
        size, offset = self._pieces[self._index]
        offset += self._done
        number = int(offset >= self._behind)
        lane = self._lanes[number]
        if offset > self._positions[number]:
            lane.skip(offset - self._positions[number])
        count = min(size - self._done, most)
        self._positions[number] = offset + count
        self._done += count
        if self._done == size:
            self._index, self._done = self._index + 1, 0
        return lane, count
