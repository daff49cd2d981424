"""The area of page data in a kdump file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.pipeline.known import PLACED
from vmdump.sources.base import Pages
from vmdump.writers.lanes import Lane

__all__ = ["PageData"]


class PageData:
    """Stores pages one behind the other; the first is a zero page that all zero pages share.

    Parameters
    ----------
    lane : Lane
        Where the data goes.
    zero_offset : int
        File offset of the shared zero page.
    page_size : int
        Bytes.
    next_offset : int, optional
        File offset at which `lane` goes on, behind pages that are there already; without it the lane
        begins with the zero page.
    """

    def __init__(self, lane: Lane, zero_offset: int, page_size: int, next_offset: int | None = None) -> None:
        self._lane = lane
        self._zero_offset = zero_offset
        self._page_size = page_size
        if next_offset is None:
            lane.write(bytes(page_size))
            next_offset = zero_offset + page_size
        self.next_offset = next_offset

    def append(self, data: Pages, sizes: NDArray[np.uint32]) -> NDArray[np.void]:
        """Store packed pages.

        Parameters
        ----------
        data : (n,) uint8
            All but the zero pages.
        sizes : (pages,) uint32
            Bytes of each page in `data`: 0 for a zero page, the page size for a plain one.

        Returns
        -------
        (pages,) PLACED
            Where they are in the file, and their bytes there.
        """
        zero = sizes == 0
        ends = self.next_offset + np.cumsum(sizes, dtype=np.uint64)
        placed: NDArray[np.void] = np.empty(sizes.size, PLACED)
        placed["offset"] = np.where(zero, np.uint64(self._zero_offset), ends - sizes)
        placed["size"] = np.where(zero, np.uint32(self._page_size), sizes)
        self._lane.write(data)
        self.next_offset += data.size
        return placed

    def finish(self) -> None:
        """Hand everything to the operating system."""
        self._lane.finish()
