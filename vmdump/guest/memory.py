"""A guest's memory: its blocks, and which of their pages are excluded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import ExcludedPage
from vmdump.guest.blocks import MIN_PAGE_SIZE, Block, BlockList, check_blocks, find_pieces

if TYPE_CHECKING:
    from vmdump.guest.stored import StoredPages

__all__ = ["GuestMemory", "largest_page"]


class GuestMemory:
    """Blocks of memory, of whose pages some may be excluded from the dump that they come from.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted, not overlapping.

    Raises
    ------
    LayoutError
        They are not.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = check_blocks(blocks)

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes of guest memory."""
        if isinstance(self.blocks, BlockList):
            return self.blocks.size
        return sum(block.size for block in self.blocks)

    @cached_property
    def excluded_size(self) -> int:
        """Bytes of the pages inside the blocks that are not in the dump; see :meth:`excluded_pages`."""
        return 0

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages inside the blocks are not in the dump that this guest comes from.

        Their memory gives zeros; :meth:`read` raises ExcludedPage.

        Parameters
        ----------
        pfn, count : int
            The pages, by frame number in units of `page_size`.

        Returns
        -------
        (count,) bool or None
            None where nothing is excluded.
        """
        return None

    def stored_pages(
        self, pfn: int, count: int, without: NDArray[np.bool_] | None = None
    ) -> StoredPages | None:
        """Give pages inside the blocks as they are stored; None where they are not stored one by one.

        Parameters
        ----------
        pfn, count : int
            The pages: as many as shall be in memory at once.
        without : (count,) bool, optional
            Pages that are taken for excluded, and of which nothing is read.

        Raises
        ------
        VmdumpError
            As of :meth:`read`.
        """
        return None

    def read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory.

        Raises
        ------
        ReadError
            Part of ``[address, address + length)`` is in no block.
        ExcludedPage
            Part of it is excluded from the dump.
        SourceError
            The memory cannot be read.
        """
        if length <= 0:
            return b""
        end = address + length
        with self._naming():
            pieces = list(find_pieces(self.blocks, address, end))
            first = address // self.page_size
            excluded = self.excluded_pages(first, -(-end // self.page_size) - first)
            if excluded is not None and excluded.any():
                raise self._excluded_page(max(address, (first + int(excluded.argmax())) * self.page_size))
            parts = []
            for block, low, high in pieces:
                scratch = np.empty(high - low if block.memory.copies else 0, np.uint8)
                parts.append(block.memory.view(low, high - low, scratch).tobytes())
        return b"".join(parts)

    def pieces(self, begin: int, end: int) -> Iterator[tuple[Block, int, int]]:
        """Find the memory of addresses; see :func:`vmdump.guest.blocks.find_pieces`."""
        with self._naming():
            yield from find_pieces(self.blocks, begin, end)

    def _excluded_page(self, address: int) -> ExcludedPage:
        """Make the error of a page that is excluded."""
        return ExcludedPage.at(address)

    def _naming(self) -> AbstractContextManager[None]:
        """Give a context whose errors name the file that the guest was read from, if it was."""
        return nullcontext()


def largest_page(blocks: Sequence[Block], size: int) -> int:
    """Halve a page size until all blocks are multiples of it, or it is the smallest that there is."""
    if isinstance(blocks, BlockList):
        bits = int(np.bitwise_or.reduce(blocks.starts) | np.bitwise_or.reduce(blocks.sizes))
    else:
        bits = reduce(or_, (block.start | block.size for block in blocks))
    while size > MIN_PAGE_SIZE and bits % size:
        size //= 2
    return size
