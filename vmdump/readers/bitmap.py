"""A kdump file's bitmaps: one bit a page, with the counts that find a page's descriptor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.guest.blocks import Pages
from vmdump.kernels import bits
from vmdump.readers.bytes.file import ByteFile
from vmdump.units import align_up

__all__ = ["WINDOW", "PageBitmap", "read_bitmap"]

WINDOW = 1 << 15
"""Bits between two counts that are kept: 4 KiB, counted in 0.3 us."""
_ROW = WINDOW // 8
_RUN_WINDOWS = 32
"""Windows whose runs are looked for at once: 8 MiB of them at most."""
_CHUNK = 4 << 20
_MAX_ROWS = 1 << 14
"""64 MiB of windows, 2 TiB of a guest, that every file may have; a larger file may have more."""


class PageBitmap:
    """A bitmap of pages. Windows without pages are not kept: memory of a device may be at 32 TiB.

    Parameters
    ----------
    size : int
        Pages.
    windows : (k,) intp
        Numbers of the windows that are kept, ascending.
    rows : (k + 1, WINDOW / 8) uint8
        Their bits: bit ``pfn % 8`` of byte ``pfn // 8``; none is set from `size` on. The last row is zero,
        and stands for all other windows. Not copied.
    """

    def __init__(self, size: int, windows: NDArray[np.intp], rows: Pages) -> None:
        self.size = size
        self.windows = windows
        self.rows = rows
        self._bits = rows.reshape(-1)
        count = -(-size // WINDOW)
        self._row_of = np.full(count, len(windows), np.int64)
        self._row_of[windows] = np.arange(len(windows))
        counts = np.zeros(count + 1, np.int64)
        counts[windows + 1] = [
            bits.count(self._bits, row * WINDOW, (row + 1) * WINDOW) for row in range(len(windows))
        ]
        # An item of a memoryview is a Python int, and takes a third of the time of an array's.
        self._rank_of = memoryview(np.cumsum(counts))
        self._places, self._bytes = memoryview(self._row_of), memoryview(self._bits)

    @property
    def total(self) -> int:
        """Set bits."""
        return self._rank_of[-1]

    def rank(self, pfn: int) -> int:
        """Count the set bits below `pfn`, ``0 <= pfn <= size``."""
        window, rest = divmod(pfn, WINDOW)
        known = self._rank_of[window]
        if rest:
            begin = self._places[window] * WINDOW
            known += bits.count(self._bits, begin, begin + rest)
        return known

    def has(self, pfn: int) -> bool:
        """Tell whether the bit of a page is set; those beyond the bitmap are not."""
        if not 0 <= pfn < self.size:
            return False
        window, bit = divmod(pfn, WINDOW)
        return bool(self._bytes[self._places[window] * _ROW + (bit >> 3)] >> (bit & 7) & 1)

    def select(self, pfn: int, count: int) -> NDArray[np.bool_]:
        """Give the bits of pages ``[pfn, pfn + count)``; those beyond the bitmap are not set."""
        first = pfn // WINDOW
        data = self.rows[self._row_of[first : -(-(pfn + count) // WINDOW)]].reshape(-1)
        bit = pfn - first * WINDOW
        flags = np.unpackbits(data[bit // 8 : -(-(bit + count) // 8)], bitorder="little")
        found = flags[bit % 8 :][:count].astype(np.bool_)
        return found if len(found) == count else np.pad(found, (0, count - len(found)))

    def _pieces(self, begin: int, end: int) -> Iterator[NDArray[np.uint64]]:
        """Give the runs of ``[begin, end)``, those of neighbouring windows at once; a run may be cut."""
        windows = self.windows
        row = int(np.searchsorted(windows, begin // WINDOW))
        while row < len(windows) and windows[row] * WINDOW < end:
            ahead = windows[row : row + _RUN_WINDOWS]
            base = int(ahead[0] - row) * WINDOW
            row += int(np.count_nonzero(ahead - ahead[0] == np.arange(len(ahead))))
            low, high = max(begin, int(ahead[0]) * WINDOW), min(end, base + row * WINDOW)
            yield bits.runs(self._bits, low - base, high - base) + np.uint64(base)

    def next_runs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Give the first runs of set bits of ``[begin, end)``, at least one if there is any; ``(k, 2)``.

        The last one may be cut; it goes on at its end.
        """
        return next(filter(len, self._pieces(begin, end)), np.empty((0, 2), np.uint64))

    def runs(self, limit: int) -> NDArray[np.uint64] | None:
        """Give all runs ``[begin, end)`` of set bits, ``(k, 2)``; None if there are more than `limit`."""
        parts: list[NDArray[np.uint64]] = []
        total = 0
        for part in self._pieces(0, self.size):
            if len(part) and parts and part[0, 0] == parts[-1][-1, 1]:
                parts[-1][-1, 1] = part[0, 1]
                part = part[1:]
            if len(part):
                parts.append(part)
                total += len(part)
            if total > limit:
                return None
        return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)

    def __or__(self, other: PageBitmap) -> PageBitmap:
        """Give the pages of both."""
        windows = np.union1d(self.windows, other.windows)
        rows = np.zeros((len(windows) + 1, _ROW), np.uint8)
        for bitmap in (self, other):
            places = np.searchsorted(windows, bitmap.windows)
            for place, row in zip(places, bitmap.rows[:-1], strict=True):
                rows[place] |= row
        return PageBitmap(max(self.size, other.size), windows, rows)


def read_bitmap(file: ByteFile, offset: int, page_count: int) -> PageBitmap:
    """Read a bitmap of `page_count` pages; what is in a hole of the file is not read.

    Raises
    ------
    FormatError
        Its bits lie further apart than those of any guest: a window takes 4 KiB, and a flattened record that
        sets one bit of it 17 bytes.
    """
    size = -(-page_count // 8)
    memory = file.memory(offset, size, size)
    most = max(_MAX_ROWS, file.allocated // _ROW)
    windows: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
    parts: list[Pages] = []
    scratch = np.empty(min(_CHUNK, align_up(size, _ROW)), np.uint8)
    done = count = 0
    for begin, end in memory.extents():
        for start in range(max(done, begin - begin % _ROW), end, _CHUNK):
            done = min(start + _CHUNK, size)
            data = memory.view(start, done - start, scratch)
            if done == size:
                data = np.pad(data, (0, -len(data) % _ROW))
                if page_count % 8:
                    data[(size - 1) - start] &= (1 << page_count % 8) - 1
            rows = data.reshape(-1, _ROW)
            used = np.flatnonzero(rows.view(np.uint64).any(axis=1))
            count += len(used)
            if count > most:
                raise FormatError("the pages lie too far apart", path=file.path, offset=offset + start)
            windows.append(used + start // _ROW)
            parts.append(rows[used])
    parts.append(np.zeros((1, _ROW), np.uint8))
    return PageBitmap(page_count, np.concatenate(windows), np.concatenate(parts))
