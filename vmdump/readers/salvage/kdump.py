"""What is left of a kdump file that was cut short, or has lost parts, or of a split set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError, LayoutError
from vmdump.formats import kdump
from vmdump.guest.blocks import HasDescriptor, Memory, Pages
from vmdump.readers.bitmap import WINDOW, PageBitmap
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.bytes.flattened import FlattenedBytes
from vmdump.readers.checking import Checking
from vmdump.readers.contents import Contents
from vmdump.readers.kdump import KdumpDump
from vmdump.readers.kdump_areas import KdumpPart, zero_page
from vmdump.readers.kdump_header import KdumpHeaders, read_headers, sort_parts

__all__ = ["SalvagedKdump"]

_ENDLESS = 1 << 62
_MAX_READ = 64 << 20
_BATCH = 4 << 20
"""Bytes of pages unpacked together."""


class SalvagedBytes:
    """A dump in its standard layout of which bytes are missing: they read as zeros, and can be told apart.

    Parameters
    ----------
    file : ByteFile
        Its file; owned from now on.

    Attributes
    ----------
    end : int
        Bytes of the standard layout up to the last that is there.
    """

    size = _ENDLESS

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self.path = file.path
        begins, ends = np.zeros(1, np.uint64), np.array([file.size], np.uint64)
        if isinstance(file, FlattenedBytes) and file.size:
            begins, ends = file.runs()
        self._begins, self._ends = begins, ends
        self.end = file.size

    def holds(self, offset: int, size: int) -> bool:
        """Tell whether a range of the standard layout is there as a whole."""
        return bool(self.has(np.array([offset], np.uint64), np.array([size], np.uint64)).all())

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
            raise FormatError(f"headers of {length} bytes are too large", path=self.path, offset=offset)
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
    """The intact pages of a damaged kdump file, or of a split set; all others are excluded.

    A page is intact if its descriptor is there and valid, and its data are there and, if that is checked,
    unpack. Parts of a set may be missing.

    Parameters
    ----------
    contents : Contents
        One file, or some parts of a split set; those that have lost their headers are not read.

    Raises
    ------
    FormatError
        The headers or the bitmaps are lost, or the files are not a set.
    """

    def __init__(self, contents: Contents) -> None:
        self._salvaged = parts = _parts_of(contents)
        try:
            super().__init__(contents._replace(files=parts))
        except LayoutError as error:
            raise FormatError(f"it ends before any memory: {error}", path=self.path) from error
        self._parts = list(self._with_zero_pages())
        windows, rows = self._stored.windows, np.zeros_like(self._stored.rows)
        for window, row in zip(windows.tolist(), rows[:-1], strict=True):
            begin, end = self._pages_of(window)
            readable = np.packbits(self._readable(begin, end - begin), bitorder="little")
            row[: len(readable)] = readable
        self._present = PageBitmap(self._stored.size, windows, rows)
        if contents.checking is not None:
            self._drop_damaged(windows, rows, contents.checking)
        self.incomplete = self.incomplete or self.lost_pages > 0 or not self._has_bitmaps

    @property
    def lost_pages(self) -> int:
        """Pages that the dump had and that are not whole.

        Where the bitmap of these is not there, all pages of the guest that are not had.
        """
        had = self._stored if self._has_bitmaps else self._known
        return had.total - self._present.total

    def _sort(self, parts: list[tuple[ByteFile, KdumpHeaders]]) -> list[tuple[ByteFile, KdumpHeaders]]:
        return sort_parts(parts, complete=False)

    def _read_bitmaps(self, file: ByteFile, headers: KdumpHeaders) -> NDArray[np.uint64]:
        """Read the bitmaps of a part that has them as a whole, if there is one: all parts have the same."""
        begin = headers.bitmap_offsets[0]
        whole = [part for part in self._salvaged if part.holds(begin, headers.descriptors_offset - begin)]
        self._has_bitmaps = bool(whole)
        return super()._read_bitmaps(whole[0] if whole else file, headers)

    def _with_zero_pages(self) -> Iterator[KdumpPart]:
        """Find the pages that zero pages share, and count the bytes that the files really have.

        Where the second bitmap is cut, it does not tell where the descriptors end and the data begin; the
        first one does, if no page was excluded.
        """
        base, size = 0, self.headers.block_size
        for part in self._parts:
            file = next(known for known in self._salvaged if known is part.file)
            data = part.table + self._known.total * self._descriptor.itemsize
            found = zero_page(file, data, size) if file.holds(data, size) else -1
            yield replace(part, zero=part.zero if found < 0 else found, base=base)
            base += file.end

    def _drop_damaged(self, windows: NDArray[np.intp], rows: Pages, checking: Checking) -> None:
        batch = max(_BATCH // self.page_size, 8)

        def tasks() -> Iterator[tuple[Pages, int, int]]:
            for window, row in zip(windows.tolist(), rows[:-1], strict=True):
                begin, end = self._pages_of(window)
                for pfn in range(begin, end, batch):
                    bits = row[(pfn - begin) // 8 : (pfn - begin + batch) // 8]
                    if bits.any():
                        yield bits, pfn, min(batch, end - pfn)

        def work(out: Pages, task: tuple[Pages, int, int]) -> Iterable[int]:
            _, pfn, count = task
            damage: dict[int, str] = {}
            self.read_pages(pfn, out[:count], damage)
            return damage

        def take(task: tuple[Pages, int, int], damaged: Iterable[int]) -> int:
            bits, pfn, _ = task
            unpacked = int(np.count_nonzero(np.unpackbits(bits))) * self.page_size
            for page in damaged:
                bits[(page - pfn) // 8] &= 0xFF ^ 1 << (page - pfn) % 8
            return unpacked

        checking.run(
            tasks(),
            work,
            take,
            make_slot=lambda: np.empty((batch, self.page_size), np.uint8),
            size=self._present.total * self.page_size,
            guest_size=self.size,
        )
        self._present = PageBitmap(self._stored.size, windows, rows)

    def _rows(self, part: KdumpPart, pfn: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
        stored, rows = super()._rows(part, pfn, count)
        present = self._present.select(pfn, count)
        return present, rows[present[stored]]

    def _readable(self, pfn: int, count: int) -> NDArray[np.bool_]:
        """Tell which pages still have descriptor and data."""
        found = np.zeros(count, np.bool_)
        for part, begin, end in self._cut(pfn, count):
            found[begin - pfn : end - pfn] = self._readable_of(part, begin, end - begin)
        return found

    def _readable_of(self, part: KdumpPart, pfn: int, count: int) -> NDArray[np.bool_]:
        file = next(known for known in self._salvaged if known is part.file)
        stored, rows = super()._rows(part, pfn, count)
        itemsize = np.uint64(rows.dtype.itemsize)
        rank = self._stored.rank(pfn) - part.rank
        numbers = np.arange(rank, rank + len(rows), dtype=np.uint64)
        places = numbers * itemsize + np.uint64(part.table)
        offsets, sizes = rows["offset"].astype(np.uint64), rows["size"].astype(np.uint64)
        flags = rows["flags"].astype(np.uint32)
        whole = file.has(places, np.full(len(rows), itemsize))
        whole &= file.has(offsets, sizes)
        # Descriptors that were never written are zero; missing ones read as zero.
        whole &= (sizes > 0) & (sizes <= self.page_size) & (offsets >= np.uint64(part.table))
        whole &= np.where(flags == 0, sizes == self.page_size, np.isin(flags, list(kdump.FLAG_CODECS)))
        readable = stored.copy()
        readable[stored] = whole
        return readable

    def _pages_of(self, window: int) -> tuple[int, int]:
        return window * WINDOW, min((window + 1) * WINDOW, self._stored.size)


def _parts_of(contents: Contents) -> list[SalvagedBytes]:
    parts = [SalvagedBytes(file) for file in contents.files]
    if len(parts) == 1:
        return parts
    whole = [part for part in parts if _has_headers(part)]
    if not whole:
        raise FormatError("no part of the set has its headers", path=contents.file.path)
    return whole


def _has_headers(file: SalvagedBytes) -> bool:
    """Tell whether a part of a split set still has its headers; all of its pages are behind them."""
    try:
        headers = read_headers(file)
    except FormatError:
        return False
    return file.holds(0, headers.bitmap_offsets[0])
