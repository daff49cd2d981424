"""What every dump that was opened can do, whatever its format."""

from __future__ import annotations

import numpy as np

from vmdump.errors import ReadError
from vmdump.sources.base import Pages, Source

__all__ = ["Dump"]


class Dump(Source):
    """A dump file as a guest.

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
            Pages; all must be in one block.
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
        FormatError, CodecError, SourceError
            The dump is damaged or cannot be read.
        """
        if out is None:
            out = np.empty((count, self.page_size), np.uint8)
        elif out.shape != (count, self.page_size) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous array of uint8 of shape {(count, self.page_size)}")
        begin = pfn * self.page_size
        end = begin + count * self.page_size
        for block in self.blocks:
            if block.start <= begin and end <= block.end:
                flat = out.reshape(-1)
                data = block.memory.view(begin - block.start, end - begin, flat)
                if not np.may_share_memory(data, flat):
                    flat[:] = data
                return out
        raise ReadError(f"no block holds the pages [{pfn:#x}, {pfn + count:#x})", address=begin)
