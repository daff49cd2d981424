"""The area of page data in a kdump file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.share import SharedPages
from vmdump.pipeline.ahead import PLACE, PagesAhead
from vmdump.pipeline.chunks import ALIGNMENT, Packed
from vmdump.units import align_up
from vmdump.writers.lanes import Lane

__all__ = ["DataAhead", "PageData"]

_WORTH_ALIGNING = 256 << 10
"""Bytes of one chunk that begin at a block of the file, so that they can be written from where they are: no
byte is copied, and half a block on average, less than 1 %, is lost to zeros. What is shorter is gathered."""


class DataAhead(NamedTuple):
    """Page data in a standard kdump file that was packed while the guest still ran.

    Attributes
    ----------
    pages : PagesAhead
        What the pages held, and their places.
    shared : SharedPages
        The same, by contents.
    data_offset, next_offset : int
        File offsets of the first page, which is the shared zero page, and behind the last one.
    """

    pages: PagesAhead
    shared: SharedPages
    data_offset: int
    next_offset: int

    def fits(self, data_offset: int, page_size: int) -> bool:
        """Tell whether the file can be one whose page data begin at another offset.

        Readers take the page of zeros for the one that begins right behind the last descriptor. Where that
        has moved, there must be room for another one.
        """
        gap = self.data_offset - data_offset
        return page_size == self.pages.page_size and (gap == 0 or gap >= page_size)


class PageData:
    """Stores pages one behind the other, identical ones once; the first is the page of zeros.

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
    shared : SharedPages
        The pages that are there already, kept up to date.

    Attributes
    ----------
    zero_offset, next_offset : int
        File offsets of the zero page, and behind the last page.
    """

    def __init__(
        self,
        lane: Lane,
        zero_offset: int,
        page_size: int,
        next_offset: int | None = None,
        *,
        shared: SharedPages,
    ) -> None:
        self._lane = lane
        self.zero_offset = zero_offset
        self._page_size = page_size
        self._shared = shared
        if next_offset is None:
            lane.write(bytes(page_size))
            next_offset = zero_offset + page_size
        self.next_offset = next_offset

    def append(self, packed: Packed) -> NDArray[np.void]:
        """Store the new pages of a run.

        Returns
        -------
        (pages,) PLACE
            Where all pages of the run are in the file, and their bytes there; zero pages are in the shared
            one, and pages of SAME_SIZE where `packed` says.
        """
        new = np.flatnonzero((packed.sizes != 0) & (packed.sizes != SAME_SIZE))
        places: NDArray[np.void] = np.empty(packed.sizes.size, PLACE)
        places["offset"], places["size"] = self.zero_offset, self._page_size
        if packed.places is not None:
            same = packed.sizes == SAME_SIZE
            places[same] = packed.places[same]
        if new.size:
            hashes = None if packed.hashes is None else packed.hashes[new]
            places[new] = self._store(packed.data, packed.sizes[new], hashes)
        return places

    def _store(
        self, data: Pages, sizes: NDArray[np.uint32], hashes: NDArray[np.uint64] | None
    ) -> NDArray[np.void]:
        """Store pages that lie one behind the other, and give their places."""
        ends = np.cumsum(sizes, dtype=np.uint64)
        used = int(ends[-1])
        aligned = used >= _WORTH_ALIGNING
        if aligned:
            gap = -self.next_offset % ALIGNMENT
            self._lane.write(bytes(gap))
            self.next_offset += gap
        offsets = ends - sizes + np.uint64(self.next_offset)
        if hashes is not None:
            used = self._shared.store(data, sizes, hashes, self.next_offset, offsets)
        end = align_up(used, ALIGNMENT) if aligned else used
        data[used:end] = 0
        self._lane.write(data[:end])
        self.next_offset += end
        places: NDArray[np.void] = np.empty(sizes.size, PLACE)
        places["offset"], places["size"] = offsets, sizes
        return places

    def finish(self) -> None:
        """Hand everything to the operating system."""
        self._lane.finish()
