"""What of a guest's memory is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmdump.guest.blocks import find_block
from vmdump.guest.memory import GuestMemory
from vmdump.units import ADDRESS_LIMIT, merge_runs

__all__ = ["present_runs"]

_PAGES = 1 << 18
"""That are asked about at once."""


def present_runs(guest: GuestMemory, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the memory between two addresses that is in blocks and was not excluded.

    Parameters
    ----------
    guest : GuestMemory
        Whose.
    begin, end : int
        Guest-physical; any.

    Yields
    ------
    begin, end : int
        Ascending, not touching.
    """
    return merge_runs(_runs(guest, max(begin, 0), min(end, ADDRESS_LIMIT)))


def _runs(guest: GuestMemory, begin: int, end: int) -> Iterator[tuple[int, int]]:
    size, blocks = guest.page_size, guest.blocks
    index = max(find_block(blocks, begin), 0) if begin < end else len(blocks)
    while index < len(blocks) and (block := blocks[index]).start < end:
        low, high = max(block.start, begin), min(block.end, end)
        while low < high:
            first = low // size
            stop = min((first + _PAGES) * size, high)
            excluded = guest.excluded_pages(first, -(-stop // size) - first)
            if excluded is None:
                yield low, stop
            else:
                edges = np.flatnonzero(np.diff(excluded, prepend=True, append=True)) + first
                for run in (edges.reshape(-1, 2) * size).tolist():
                    yield max(run[0], low), min(run[1], stop)
            low = stop
        index += 1
