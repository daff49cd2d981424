"""Memory that is not made of whole pages, in whole pages: zeros are where a page has no memory.

The memory below 1 MiB of every PC ends inside a page, and so do the ranges of /proc/iomem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Block, BlockList, Memory, block_bounds
from vmdump.units import align_up

__all__ = ["count_pages", "data_runs", "page_runs", "partial_pages", "runs_of_pages", "whole_pages"]


def whole_pages(blocks: Sequence[Block], page_size: int) -> Sequence[Block]:
    """Give blocks that are made of whole pages.

    Blocks that share a page become one; nothing is copied before it is read.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted, not overlapping.
    page_size : int
        Bytes.

    Returns
    -------
    sequence of Block
        `blocks` itself, if that is what they are.
    """
    starts, sizes = block_bounds(blocks)
    size = np.uint64(page_size)
    if not int(np.bitwise_or.reduce(starts) | np.bitwise_or.reduce(sizes)) % page_size:
        return blocks
    first, last = _pages(starts, sizes, size)
    begins = np.flatnonzero(np.append(True, first[1:] > last[:-1]))
    ends = np.append(begins[1:], len(first))
    whole_starts = first[begins] * size
    whole_sizes = (last[ends - 1] - first[begins] + np.uint64(1)) * size
    same = (starts[begins] == whole_starts) & (sizes[begins] == whole_sizes)
    from vmdump.guest.pieces import join_pieces  # few guests have blocks that end inside a page

    join = join_pieces(blocks)

    def make(index: int) -> Memory:
        if same[index]:
            return blocks[int(begins[index])].memory
        start = int(whole_starts[index])
        return join(start, start + int(whole_sizes[index]))

    return BlockList(whole_starts, whole_sizes, make)


def page_runs(blocks: Sequence[Block], page_size: int) -> list[tuple[int, int]]:
    """Give the runs of pages that have memory, a part of them at least.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted, not overlapping.
    page_size : int
        Bytes.

    Returns
    -------
    list of (int, int)
        Frame numbers ``[begin, end)``, ascending, not touching.
    """
    return [(begin, end) for begin, end in runs_of_pages(*block_bounds(blocks), page_size).tolist()]


def count_pages(blocks: Sequence[Block], page_size: int) -> int:
    """Count the pages of :func:`page_runs`."""
    runs = runs_of_pages(*block_bounds(blocks), page_size)
    return int((runs[:, 1] - runs[:, 0]).sum())


def data_runs(blocks: Sequence[Block], page_size: int) -> Iterator[tuple[int, int]]:
    """Give the memory that may not be zero, in whole pages.

    Parameters
    ----------
    blocks, page_size
        As for :func:`page_runs`.

    Yields
    ------
    begin, end : int
        Guest-physical addresses; ascending, and those of two blocks that share a page overlap.
    """
    for block in blocks:
        for begin, end in block.memory.extents():
            yield (block.start + begin) // page_size * page_size, align_up(block.start + end, page_size)


def runs_of_pages(
    starts: NDArray[np.uint64], sizes: NDArray[np.uint64], page_size: int
) -> NDArray[np.uint64]:
    """Give :func:`page_runs` as an array.

    Parameters
    ----------
    starts, sizes : (n,) uint64
        Blocks, as of :func:`vmdump.guest.blocks.block_bounds`.
    page_size : int
        Bytes.

    Returns
    -------
    (m, 2) uint64
    """
    first, last = _pages(starts, sizes, np.uint64(page_size))
    apart = (first[1:] > last[:-1]) & (first[1:] - last[:-1] > 1)
    begins = np.flatnonzero(np.append(np.ones(min(len(first), 1), np.bool_), apart))
    ends = last[np.append(begins[1:], len(first)) - 1] + np.uint64(1) if len(first) else last
    return np.stack((first[begins], ends), axis=1)


def partial_pages(blocks: Sequence[Block], page_size: int) -> NDArray[np.uint64]:
    """Find the pages of which only a part is in blocks.

    Parameters
    ----------
    blocks, page_size
        As for :func:`page_runs`.

    Returns
    -------
    (n,) uint64
        Frame numbers, ascending.
    """
    starts, sizes = block_bounds(blocks)
    lasts = starts + (sizes - np.uint64(1))
    size = np.uint64(page_size)
    # Where blocks touch inside a page, nothing of it is missing between them.
    apart = starts[1:] - lasts[:-1] > 1
    begins, ends = starts[np.append(True, apart)], lasts[np.append(apart, True)]
    cut = np.concatenate((begins[begins % size != 0], ends[ends % size != size - np.uint64(1)]))
    # np.unique() loads numpy.ma, which takes 10 ms; most guests are made of whole pages.
    return np.unique(cut // size) if cut.size else cut


def _pages(
    starts: NDArray[np.uint64], sizes: NDArray[np.uint64], page_size: np.uint64
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give the first and the last page of each block."""
    return starts // page_size, (starts + (sizes - np.uint64(1))) // page_size
