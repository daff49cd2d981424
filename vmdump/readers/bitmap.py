"""A kdump file's bitmaps: one bit a page, with the counts that find a page's descriptor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.kernels import bits
from vmdump.sources.base import Pages

__all__ = ["PageBitmap"]

_WINDOW = 1 << 15
"""Bits between two counts that are kept: 4 KiB, counted in 0.3 us."""
_RUN_WINDOW = 1 << 20
"""Bits whose runs are looked for at once: 8 MiB of them at most."""


class PageBitmap:
    """A bitmap of pages.

    Parameters
    ----------
    data : (n,) uint8
        Bit ``pfn % 8`` of byte ``pfn // 8``, for pages ``[0, 8 * n)``.
    """

    def __init__(self, data: Pages) -> None:
        self._data = np.ascontiguousarray(data)
        self.size = 8 * data.size
        begins = range(0, self.size, _WINDOW)
        counts = [bits.count(self._data, begin, min(begin + _WINDOW, self.size)) for begin in begins]
        self._ranks = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).tolist()

    @property
    def total(self) -> int:
        """Set bits."""
        total: int = self._ranks[-1]
        return total

    def rank(self, pfn: int) -> int:
        """Count the set bits below `pfn`, ``0 <= pfn <= size``."""
        window = pfn // _WINDOW
        known: int = self._ranks[window]
        return known + bits.count(self._data, window * _WINDOW, pfn)

    def has(self, pfn: int) -> bool:
        """Tell whether the bit of a page is set; those beyond the bitmap are not."""
        return 0 <= pfn < self.size and bool(self._data[pfn >> 3] >> (pfn & 7) & 1)

    def select(self, pfn: int, count: int) -> NDArray[np.bool_]:
        """Give the bits of pages ``[pfn, pfn + count)``; those beyond the bitmap are not set."""
        first = pfn // 8
        data = self._data[first : -(-(pfn + count) // 8)]
        found = np.unpackbits(data, bitorder="little")[pfn - 8 * first :][:count].astype(np.bool_)
        return found if len(found) == count else np.pad(found, (0, count - len(found)))

    def next_runs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Give the first runs of set bits of ``[begin, end)``, at least one if there is any; ``(k, 2)``.

        The last one may be cut; it goes on at its end.
        """
        while begin < end:
            found: NDArray[np.uint64] = bits.runs(self._data, begin, min(begin + _RUN_WINDOW, end))
            if len(found):
                return found
            begin += _RUN_WINDOW
        return np.empty((0, 2), np.uint64)

    def runs(self, limit: int) -> NDArray[np.uint64] | None:
        """Give all runs ``[begin, end)`` of set bits, ``(k, 2)``; None where they are more than `limit`."""
        parts: list[NDArray[np.uint64]] = []
        total = 0
        for begin in range(0, self.size, _RUN_WINDOW):
            part = bits.runs(self._data, begin, min(begin + _RUN_WINDOW, self.size))
            if len(part) and parts and part[0, 0] == parts[-1][-1, 1]:
                parts[-1][-1, 1] = part[0, 1]
                part = part[1:]
            if len(part):
                parts.append(part)
                total += len(part)
            if total > limit:
                return None
        return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
