"""The blocks of a kdump file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages
from vmdump.readers.kinds import PageKind

__all__ = ["KdumpMemory"]


class _HoldsPages(Protocol):
    """What of a kdump file its blocks take."""

    @property
    def excluded_size(self) -> int:
        """Bytes of the pages that are not in it."""

    def stored_runs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Give the first runs of pages of ``[begin, end)`` in it."""

    def page_kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Tell how it holds pages."""

    def read_pages(
        self,
        pfn: int,
        out: Pages,
        damage: dict[int, str] | None = None,
        without: NDArray[np.bool_] | None = None,
    ) -> None:
        """Unpack pages."""


class KdumpMemory:
    """A run of pages that the guest had; those not in the dump are zero."""

    copies = True

    def __init__(self, dump: _HoldsPages, page_size: int, first_pfn: int, page_count: int) -> None:
        self._dump = dump
        self._page_size = page_size
        self._first_pfn = first_pfn
        self._page_count = page_count

    @property
    def size(self) -> int:
        """Bytes."""
        return self._page_count * self._page_size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the runs of pages that are in the dump."""
        if not self._dump.excluded_size:
            yield 0, self.size
            return
        begin, end = self._first_pfn, self._first_pfn + self._page_count
        while len(found := self._dump.stored_runs(begin, end)):
            for low, high in found.tolist():
                yield (low - self._first_pfn) * self._page_size, (high - self._first_pfn) * self._page_size
            begin = int(found[-1, 1])

    def is_zero(self, offset: int, length: int) -> bool:
        """Tell whether descriptors say so; FormatError where one is damaged."""
        first, last = offset // self._page_size, -(-(offset + length) // self._page_size)
        return bool((self._dump.page_kinds(self._first_pfn + first, last - first) <= PageKind.ZERO).all())

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Unpack into `scratch`."""
        return self._view(offset, length, scratch, None)

    def view_without(self, offset: int, length: int, scratch: Pages, without: NDArray[np.bool_]) -> Pages:
        """Unpack whole pages but those that are left out; see `vmdump.guest.linux.page_types.memory`."""
        pages = scratch[:length].reshape(-1, self._page_size)
        self._dump.read_pages(self._first_pfn + offset // self._page_size, pages, without=without)
        return scratch[:length]

    def view_whole(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Give what :meth:`view` gives, with zeros for the pages that are damaged."""
        return self._view(offset, length, scratch, {})

    def _view(self, offset: int, length: int, scratch: Pages, damage: dict[int, str] | None) -> Pages:
        page_size = self._page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        whole = (
            scratch[:length]
            if length == (last - first) * page_size
            else np.empty((last - first) * page_size, np.uint8)
        )
        pages = whole.reshape(-1, page_size)
        self._dump.read_pages(self._first_pfn + first, pages, damage)
        if damage:
            pages[np.array(list(damage)) - (self._first_pfn + first)] = 0
        begin = offset - first * page_size
        return whole[begin : begin + length]
