"""What is whole of a kdump file that was cut short, or of which parts were lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError, LayoutError
from vmdump.formats import kdump
from vmdump.readers.bitmap import WINDOW, PageBitmap
from vmdump.readers.file import RawBytes
from vmdump.readers.flattened import FlattenedBytes
from vmdump.readers.kdump import KdumpDump
from vmdump.readers.kdump_areas import zero_page
from vmdump.sources.base import HasDescriptor, Memory, Pages

if TYPE_CHECKING:
    from vmdump.readers.kdump import _Part

__all__ = ["SalvagedBytes", "SalvagedKdump"]

_ENDLESS = 1 << 62
_MAX_READ = 64 << 20
_BATCH = 4 << 20
"""Bytes of pages unpacked together."""


class SalvagedBytes:
    """A dump in its standard layout of which bytes are missing: they read as zeros, and can be told apart.

    Parameters
    ----------
    file : RawBytes or FlattenedBytes
        What there is; owned from now on.
    """

    size = _ENDLESS

    def __init__(self, file: RawBytes | FlattenedBytes) -> None:
        self._file = file
        self.path = file.path
        begins, ends = np.zeros(1, np.uint64), np.array([file.size], np.uint64)
        if isinstance(file, FlattenedBytes) and file.size:
            begins, ends = file.runs()
        self._begins, self._ends = begins, ends

    def has(self, offsets: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which ranges of the standard layout are there as a whole.

        Parameters
        ----------
        offsets, sizes : (n,) uint64
            Whatever a damaged file says.
        """
        run = np.searchsorted(self._begins, offsets, side="right") - 1
        ends = np.where(run >= 0, self._ends[np.maximum(run, 0)], np.uint64(0))
        found: NDArray[np.bool_] = (offsets <= ends) & (sizes <= ends - np.minimum(offsets, ends))
        return found

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; what is missing is zero."""
        there = min(max(self._file.size - offset, 0), out.size) if offset >= 0 else 0
        out[there:] = 0
        if there:
            self._file.read_into(offset, out[:there])

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes; FormatError where they are more than a header ever asks for."""
        if not 0 <= length <= _MAX_READ:
            raise FormatError(f"{length} bytes of headers cannot be", path=self.path, offset=offset)
        out = np.empty(length, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    def memory(self, offset: int, size: int, filled: int) -> Memory:
        """Give guest memory that lies here."""
        begin = min(offset, self._file.size)
        return self._file.memory(begin, size, min(self._file.size - begin, filled))

    @property
    def allocated(self) -> int:
        """Bytes that the file occupies."""
        return self._file.allocated

    @property
    def files(self) -> tuple[HasDescriptor, ...]:
        """The open files that hold the bytes."""
        return self._file.files

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SalvagedKdump(KdumpDump):
    """The pages of a damaged kdump file that are whole; all others are excluded.

    A page is whole if its descriptor is there and makes sense, and its data are there and unpack.

    Parameters
    ----------
    file : SalvagedBytes
        Owned from now on.
    layout : {"standard", "flattened"}
        How it lies in the file.

    Attributes
    ----------
    lost_pages : int
        Pages that the dump had and that are not whole. Where the bitmap of these is not there, all pages of
        the guest that are not had.

    Raises
    ------
    FormatError
        The headers or the bitmaps are not there.
    CapabilityError
        It is a part of a split set.
    """

    def __init__(self, file: SalvagedBytes, layout: str) -> None:
        self._salvaged = file
        try:
            super().__init__([file], layout)
        except LayoutError as error:
            raise FormatError(f"it ends before it tells of any memory: {error}", path=file.path) from error
        # Where the second bitmap is cut, it does not tell where the descriptors end and the data begin; the
        # first one does, if no page was excluded.
        itemsize, size = self._descriptor.itemsize, self.headers.block_size
        data = self.headers.descriptors_offset + self._known.total * itemsize
        if file.has(np.array([data], np.uint64), np.array([size], np.uint64)).all():
            found = zero_page(file, data, size)
            self._parts = [replace(part, zero=part.zero if found < 0 else found) for part in self._parts]
        windows, rows = self._stored.windows, np.zeros_like(self._stored.rows)
        for window, row in zip(windows.tolist(), rows[:-1], strict=True):
            begin, end = self._pages_of(window)
            readable = np.packbits(self._readable(self._parts[0], begin, end - begin), bitorder="little")
            row[: len(readable)] = readable
        self._present = PageBitmap(self._stored.size, windows, rows)
        batch = max(_BATCH // self.page_size, 8)
        out = np.empty((batch, self.page_size), np.uint8)
        for window, row in zip(windows.tolist(), rows[:-1], strict=True):
            begin, end = self._pages_of(window)
            for pfn in range(begin, end, batch):
                if row[(pfn - begin) // 8 : (pfn - begin + batch) // 8].any():
                    for damaged in self._damaged(pfn, out[: end - pfn]):
                        row[(damaged - begin) // 8] &= 0xFF ^ 1 << damaged % 8
        self._present = PageBitmap(self._stored.size, windows, rows)
        begin, end = self.headers.bitmap_offsets[0], self.headers.descriptors_offset
        bitmaps = file.has(np.array([begin], np.uint64), np.array([end - begin], np.uint64)).all()
        had = self._stored if bitmaps else self._known
        self.lost_pages = had.total - self._present.total
        self.excluded_size = (self._known.total - self._present.total) * self.page_size
        self.incomplete = self.incomplete or self.lost_pages > 0 or not bitmaps

    def _rows(self, part: _Part, pfn: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
        stored, rows = super()._rows(part, pfn, count)
        present = self._present.select(pfn, count)
        return present, rows[present[stored]]

    def _readable(self, part: _Part, pfn: int, count: int) -> NDArray[np.bool_]:
        """Tell of which pages descriptor and data are there."""
        stored, rows = super()._rows(part, pfn, count)
        itemsize = np.uint64(rows.dtype.itemsize)
        rank = self._stored.rank(pfn) - part.rank
        numbers = np.arange(rank, rank + len(rows), dtype=np.uint64)
        places = numbers * itemsize + np.uint64(part.table)
        offsets, sizes = rows["offset"].astype(np.uint64), rows["size"].astype(np.uint64)
        flags = rows["flags"].astype(np.uint32)
        whole = self._salvaged.has(places, np.full(len(rows), itemsize))
        whole &= self._salvaged.has(offsets, sizes)
        # Descriptors that were never written are zero; so were those that are not there.
        whole &= (sizes > 0) & (sizes <= self.page_size) & (offsets >= np.uint64(part.table))
        whole &= np.where(flags == 0, sizes == self.page_size, np.isin(flags, list(kdump.FLAG_CODECS)))
        readable = stored.copy()
        readable[stored] = whole
        return readable

    def _damaged(self, pfn: int, out: Pages) -> Iterable[int]:
        """Unpack pages, and give those that do not unpack."""
        damage: dict[int, str] = {}
        self.read_pages(pfn, out, damage)
        return damage

    def _pages_of(self, window: int) -> tuple[int, int]:
        return window * WINDOW, min((window + 1) * WINDOW, self._stored.size)
