"""What a guest's memory is used for: a type for each page, and how much of each there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmdump.formats.levels import EXCLUDABLE, ZERO
from vmdump.guest.linux.page_types.arrays import Typed
from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.types import kernel_page_size, tell_types
from vmdump.kernels import page_types as kernel

__all__ = [
    "SHOWN_LEVELS",
    "PageType",
    "PageUsage",
    "TypeCount",
    "excluding_bits",
    "name_bits",
    "named_type",
    "type_of",
]

SHOWN_LEVELS = (1, 16, 17, 23, 31)
"""Levels that people use: no zeros; nothing free, with zeros and without; no cache; the kernel only."""

_WINDOW = 1 << 20
"""Pages looked at together."""


class PageType(IntEnum):
    """What a page is used for.

    MISSING is no page: the guest has no memory there. UNDESCRIBED pages have no struct page, as firmware's
    have none; those of DOUBTFUL ones contradict themselves or cannot be read. ZERO holds zeros only, and is
    of a type that no level leaves out: like makedumpfile, others are what they are used for, whatever they
    hold. USER is anonymous memory, HUGE is hugetlbfs', KERNEL is whatever else the kernel has:
    before 6.12 page tables as well, of which nothing tells there.
    """

    MISSING = 0
    UNDESCRIBED = 1
    DOUBTFUL = 2
    ZERO = 3
    FREE = 4
    CACHE = 5
    CACHE_PRIVATE = 6
    USER = 7
    HUGE = 8
    SLAB = 9
    PAGE_TABLE = 10
    OFFLINE = 11
    POISONED = 12
    KERNEL = 13

    @property
    def is_told(self) -> bool:
        """Whether struct pages tell what it is used for."""
        return self > PageType.DOUBTFUL

    @property
    def label(self) -> str:
        """The name as people write it: ``cache private``."""
        return _LABELS.get(self, self.name.lower().replace("_", " "))


_LABELS = {PageType.KERNEL: "other kernel", PageType.UNDESCRIBED: "without a struct page"}
"""Where the name alone says too little."""


_OF_KERNEL = {
    kernel.UNKNOWN: PageType.UNDESCRIBED,
    kernel.UNREADABLE: PageType.DOUBTFUL,
    kernel.DOUBTFUL: PageType.DOUBTFUL,
    kernel.TAIL: PageType.KERNEL,
    kernel.KERNEL: PageType.KERNEL,
    kernel.SLAB: PageType.SLAB,
    kernel.TABLE: PageType.PAGE_TABLE,
    kernel.FREE: PageType.FREE,
    kernel.UNACCEPTED: PageType.FREE,
    kernel.CACHE: PageType.CACHE,
    kernel.CACHE_PRIVATE: PageType.CACHE_PRIVATE,
    kernel.USER: PageType.USER,
    kernel.HUGE: PageType.HUGE,
    kernel.OFFLINE: PageType.OFFLINE,
}


def _by_kernel() -> NDArray[np.uint8]:
    table = np.full(256, PageType.POISONED, np.uint8)
    table[: kernel.TYPE_COUNT] = [_OF_KERNEL[kind] for kind in range(kernel.TYPE_COUNT)]
    return table


_TYPES = _by_kernel()
"""A `PageType` for each type that struct pages tell, with and without the bit POISONED."""


def _level_bits() -> list[int]:
    bits = [0] * len(PageType)
    for kind, page_type in enumerate(_TYPES.tolist()):
        for bit in EXCLUDABLE.values():
            if excluded_types(bit)[kind]:
                bits[page_type] |= bit
    bits[PageType.ZERO] = ZERO
    return bits


_BITS = _level_bits()
_KEPT_TYPES = np.array([not bits for bits in _BITS])


def excluding_bits(page_type: PageType) -> int:
    """Give the bits of a dump level of which each leaves out pages of a type."""
    return _BITS[page_type]


def name_bits(bits: int) -> str:
    """Name bits of a dump level: ``2 (cache), 4 (cache-private)``; empty for none."""
    return ", ".join(f"{bit} ({name})" for name, bit in EXCLUDABLE.items() if bits & bit)


def named_type(kind: int) -> PageType:
    """Give the `PageType` for a type that struct pages tell."""
    return PageType(int(_TYPES[kind]))


def type_of(guest: Typed, address: int) -> PageType:
    """Tell the type of the page at a guest-physical address, by the struct pages that matter for it.

    Raises
    ------
    CapabilityError, ReadError, SourceError
        As of :func:`vmdump.guest.linux.page_types.types.tell_types`.
    """
    pfn = address // kernel_page_size(guest)
    return named_type(int(tell_types(guest, only=pfn).of(pfn, 1)[0]))


@dataclass(frozen=True)
class TypeCount:
    """How many pages are of one type.

    Attributes
    ----------
    pages, bytes : int
        Of the guest.
    zero_pages : int
        Those of them that are known to hold zeros only.
    excluded_pages : int
        Those that are not in the dump which the guest comes from; what they held is not known.
    """

    pages: int
    bytes: int
    zero_pages: int
    excluded_pages: int


class PageUsage:
    """What the pages of a guest are used for.

    Attributes
    ----------
    page_size : int
        Bytes of a page, as the guest's kernel has them; frame numbers are in units of it.
    runs : list of (int, int)
        Frame numbers ``[begin, end)`` of the guest's pages, ascending, not touching.
    running : bool
        The guest ran on meanwhile: the figures are of no one moment.

    Parameters
    ----------
    page_size, runs, running
        The attributes.
    """

    def __init__(self, page_size: int, runs: list[tuple[int, int]], *, running: bool) -> None:
        self.page_size = page_size
        self.runs = runs
        self.running = running
        bounds = np.array(runs, np.int64).reshape(-1, 2)
        self._begins, self._ends = bounds.T
        sizes = self._ends - self._begins
        self._places = np.cumsum(sizes) - sizes
        # What is not written to takes no memory, which counts of a large guest with little data.
        self._codes = np.zeros(int(sizes.sum()), np.uint8)
        self._data = np.zeros(self._codes.size, np.bool_)
        self._excluded = np.zeros(self._codes.size, np.bool_)

    def mark_data(self, pfn: int, data: NDArray[np.bool_]) -> None:
        """Note which pages of a run hold more than zeros, beside what was noted before."""
        at = self._place(pfn)
        self._data[at : at + data.size] |= data

    def mark_types(self, pfn: int, kinds: NDArray[np.uint8], excluded: NDArray[np.bool_] | None) -> None:
        """Note what struct pages tell of pages of a run, once it is known which hold data.

        Parameters
        ----------
        pfn : int
            The first one.
        kinds : (n,) uint8
            Types as of :class:`vmdump.guest.linux.page_types.types.PageTypes`.
        excluded : (n,) bool or None
            Which of them are not in the dump.
        """
        here = slice(self._place(pfn), self._place(pfn) + kinds.size)
        zero = ~self._data[here]
        if excluded is not None:
            self._excluded[here] = excluded
            zero &= ~excluded
        types = _TYPES[kinds]
        types[zero & _KEPT_TYPES[types]] = PageType.ZERO
        self._codes[here] = types

    def _place(self, pfn: int) -> int:
        index = int(np.searchsorted(self._ends, pfn, side="right"))
        return int(self._places[index]) + pfn - int(self._begins[index])

    def of(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Give the types of any pages: a `PageType` each, MISSING where the guest has no memory."""
        found = np.zeros(count, np.uint8)
        index = int(np.searchsorted(self._ends, pfn, side="right"))
        while index < len(self.runs) and (begin := self.runs[index][0]) < pfn + count:
            low, high = max(begin, pfn), min(self.runs[index][1], pfn + count)
            at = self._place(low)
            found[low - pfn : high - pfn] = self._codes[at : at + high - low]
            index += 1
        return found

    def windows(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Give the types of all pages: the first frame number, and a `PageType` each; some at a time."""
        for begin, end in self.runs:
            for pfn in range(begin, end, _WINDOW):
                at, count = self._place(pfn), min(_WINDOW, end - pfn)
                yield pfn, self._codes[at : at + count]

    @cached_property
    def types(self) -> NDArray[np.uint8]:
        """A `PageType` for each frame number from 0 to the guest's last; MISSING where there is no memory."""
        types = np.zeros(self.runs[-1][1] if self.runs else 0, np.uint8)
        for pfn, codes in self.windows():
            types[pfn : pfn + codes.size] = codes
        return types

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Pages by type, whether they are excluded, and whether they hold data."""
        counts = np.zeros(len(PageType) * 4, np.int64)
        for at in range(0, self._codes.size, _WINDOW):
            here = slice(at, at + _WINDOW)
            index = self._codes[here] * np.uint8(4) + self._excluded[here] * np.uint8(2) + self._data[here]
            counts += np.bincount(index, minlength=counts.size)
        return counts.reshape(len(PageType), 2, 2)

    @cached_property
    def counts(self) -> dict[PageType, TypeCount]:
        """How many pages there are of each type, none as well."""
        counts = self._counts
        return {
            kind: TypeCount(
                pages=int(counts[kind].sum()),
                bytes=int(counts[kind].sum()) * self.page_size,
                zero_pages=int(counts[kind, 0, 0]),
                excluded_pages=int(counts[kind, 1].sum()),
            )
            for kind in PageType
            if kind != PageType.MISSING
        }

    def bytes_at(self, level: int) -> int:
        """Give the bytes of the pages that a dump of some level has: those that none of its bits leaves out.

        Pages that the dump from which the guest comes lacks are in none.

        Parameters
        ----------
        level : int
            0 to 31, in makedumpfile's bits.
        """
        kept = [kind for kind in PageType if not excluding_bits(kind) & level & ~ZERO]
        here = self._counts[kept, 0]
        return int((here[:, 1] if level & ZERO else here).sum()) * self.page_size

    def as_dict(self) -> dict[str, Any]:
        """Give the figures by name, for JSON."""
        return {
            "page_size": self.page_size,
            "pages": self._codes.size,
            "running": self.running,
            "types": {kind.name.lower(): vars(count) for kind, count in self.counts.items()},
            "levels": {str(level): self.bytes_at(level) for level in SHOWN_LEVELS},
        }

    def __repr__(self) -> str:
        pages = ", ".join(f"{each.pages} {kind.label}" for kind, each in self.counts.items() if each.pages)
        return f"<PageUsage of {self._codes.size} pages: {pages}>"
