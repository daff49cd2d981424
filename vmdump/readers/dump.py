"""What every dump that was opened can do, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import ExcludedPage
from vmdump.readers.kinds import PageKind, StoredPages
from vmdump.sources.base import Block, Pages, Source, file_runs, find_block
from vmdump.units import ADDRESS_LIMIT

__all__ = ["Dump"]


class Dump(Source):
    """A dump file as a guest.

    `blocks` is the memory that the guest had. Pages inside them that the dump leaves out are excluded:
    reading one raises ExcludedPage, and reading what is in no block ReadError, so neither is ever taken for
    a page of zeros.

    Attributes
    ----------
    format : str
        ``elf``, or ``kdump`` with its layout: ``kdump standard``, ``kdump flattened``.
    """

    format: str

    def pages(self, pfn: int, count: int, out: Pages | None = None) -> Pages:
        """Read whole pages.

        Parameters
        ----------
        pfn : int
            Frame number of the first page.
        count : int
            Pages; all must be in the dump.
        out : (count, page_size) uint8, C-contiguous, optional
            Filled instead of a new array.

        Returns
        -------
        (count, page_size) uint8
            `out`, or a new array.

        Raises
        ------
        ReadError
            A page is in no block of the dump.
        ExcludedPage
            A page was left out of it.
        FormatError, CodecError, SourceError
            The dump is damaged or cannot be read.
        """
        begin, end = pfn * self.page_size, (pfn + count) * self.page_size
        pieces = list(self.pieces(begin, end))
        excluded = self.excluded_pages(pfn, count)
        if excluded is not None and excluded.any():
            raise ExcludedPage.at((pfn + int(excluded.argmax())) * self.page_size)
        if out is None:
            out = np.empty((count, self.page_size), np.uint8)
        elif out.shape != (count, self.page_size) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous array of uint8 of shape {(count, self.page_size)}")
        flat = out.reshape(-1)
        for block, low, high in pieces:
            at = block.start + low - begin
            target = flat[at : at + high - low]
            data = block.memory.view(low, high - low, target)
            if not np.may_share_memory(data, target):
                target[:] = data
        return out

    def page_kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Tell how the dump holds pages, without reading them.

        Parameters
        ----------
        pfn, count : int
            Any pages below 2^64 bytes.

        Returns
        -------
        (count,) uint8
            A `PageKind` each. A page of which a part is in a block has the kind of that part.

        Raises
        ------
        FormatError, SourceError
            The dump is damaged or cannot be read.
        """
        kinds = np.full(count, PageKind.MISSING, np.uint8)
        size = self.page_size
        for block, low, high in self._blocks_in(pfn * size, (pfn + count) * size):
            start = block.start - pfn * size
            here = _covering(start + low, start + high, size)
            kinds[here] = np.maximum(kinds[here], PageKind.ZERO)
            found = file_runs(block.memory, low, high - low)
            for begin, end in [(0, high - low)] if found is None else [run[:2] for run in found]:
                kinds[_covering(start + low + begin, start + low + end, size)] = PageKind.PLAIN
        return kinds

    def _blocks_in(self, begin: int, end: int) -> Iterator[tuple[Block, int, int]]:
        """Give the blocks that have a part in ``[begin, end)``, and the part, in bytes from their start."""
        index = max(find_block(self.blocks, min(begin, ADDRESS_LIMIT - 1)), 0)
        while index < len(self.blocks) and (block := self.blocks[index]).start < end:
            if block.end > begin:
                yield block, max(begin - block.start, 0), min(end, block.end) - block.start
            index += 1

    def stored_pages(self, pfn: int, count: int) -> StoredPages | None:
        """Give pages as they lie in the file, for whoever copies them without unpacking.

        Parameters
        ----------
        pfn, count : int
            Pages; all must be in one or several blocks. As many as shall be in memory at once.

        Returns
        -------
        StoredPages or None
            None where the file does not hold pages one by one, as an ELF core.

        Raises
        ------
        ReadError
            A page is in no block.
        FormatError, SourceError
            A page's descriptor is wrong, or the file cannot be read.
        """
        return None


def _covering(begin: int, end: int, size: int) -> slice:
    """Give the pages that ``[begin, end)`` touches."""
    return slice(begin // size, -(-end // size))
