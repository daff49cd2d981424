"""A guest without pages of some types: a view of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import ExcludedPage
from vmdump.guest.excluded import excluded_ranges
from vmdump.guest.linux.page_types.ahead import TypesAhead
from vmdump.guest.linux.page_types.arrays import Typed
from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.memory import without_pages
from vmdump.guest.linux.page_types.types import PageTypes
from vmdump.guest.stored import StoredPages
from vmdump.guest.views import view_of
from vmdump.guest.whole import page_runs
from vmdump.kernels.page_types import DOUBTFUL, UNREADABLE

if TYPE_CHECKING:
    from vmdump.guest.linux.page_types.usage import PageType

__all__ = ["Filterable", "Filtered", "filtered"]

_WINDOW = 1 << 18
"""Pages asked for together."""
_REMEMBERED_PAGES = 1 << 15
"""Of which is remembered together what is left out."""
_REMEMBERED = 256
"""Times that: 32 GiB of a guest."""

_Mask = Callable[[int, int], NDArray[np.bool_]]


class Filterable(Typed, Protocol):
    """What of a guest a filter asks; :class:`vmdump.guest.guest.Guest` tells of each."""

    dump_level: int

    def stored_pages(
        self, pfn: int, count: int, without: NDArray[np.bool_] | None = None
    ) -> StoredPages | None:
        """Give pages as they are stored."""

    def read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory."""


_Guest = TypeVar("_Guest", bound=Filterable)


@dataclass(frozen=True)
class Filtered:
    """What was left out of a guest.

    Attributes
    ----------
    base : Guest
        The guest with all its pages.
    types : PageTypes
        Of these.
    level : int
        What is left out, in makedumpfile's bits.
    ahead : TypesAhead or None
        What the types were told by, where that was kept.
    """

    base: Any
    types: PageTypes
    level: int
    ahead: TypesAhead | None = None

    @cached_property
    def doubtful_pages(self) -> int:
        """Pages that were kept because their struct pages contradict themselves, or cannot be read."""
        counts = self.types.counts(page_runs(self.base.blocks, self.types.page_size))
        return int(counts[[DOUBTFUL, UNREADABLE]].sum())

    def type_at(self, address: int) -> PageType:
        """Tell the type of the page at a guest-physical address."""
        from vmdump.guest.linux.page_types.usage import named_type  # few ask for what was excluded

        return named_type(int(self.types.of(address // self.types.page_size, 1)[0]))

    def excluded(self, pfn: int, count: int) -> NDArray[np.bool_]:
        """Tell which pages, by frame number in units of the guest's page size, are left out by type.

        A page of the guest that is a part of a page of its kernel is left out with that, and one of several
        with all of these.
        """
        size, page_size = self.types.page_size, self.base.page_size
        if size == page_size:
            return self._left_out(pfn, count)
        if size > page_size:
            parts = size // page_size
            first, last = pfn // parts, -(-(pfn + count) // parts)
            whole = np.repeat(self._left_out(first, last - first), parts)
            return whole[pfn - first * parts :][:count]
        parts = page_size // size
        pages = self._left_out(pfn * parts, count * parts).reshape(-1, parts)
        whole = np.empty(count, np.bool_)
        np.all(pages, axis=1, out=whole)
        return whole

    def _left_out(self, pfn: int, count: int) -> NDArray[np.bool_]:
        table = excluded_types(self.level).tobytes()
        # Twice as fast as numpy's look-up by an array of indices.
        return np.frombuffer(self.types.of(pfn, count).tobytes().translate(table), np.bool_)

    def only_long_runs(self, shortest: int) -> Any:
        """Give the guest without those of these pages that are in long runs of a block, or at its end.

        Parameters
        ----------
        shortest : int
            Pages of a run that is long. Pages that the base lacks count.
        """
        excluded = _remembering(self.excluded)
        guest = _view(self.base, self, excluded)
        found = []
        for begin, end in page_runs(self.base.blocks, self.base.page_size):
            size = self.base.page_size
            runs = excluded_ranges(guest, begin * size, end * size) // size + begin
            found.append(runs[(runs[:, 1] - runs[:, 0] >= shortest) | (runs[:, 1] == end)])
        runs = np.concatenate(found)
        return _view(self.base, self, _inside(runs, excluded))


def _inside(runs: NDArray[np.int64], excluded: _Mask) -> _Mask:
    """Limit what is left out to runs of pages."""

    def limited(pfn: int, count: int) -> NDArray[np.bool_]:
        low = int(np.searchsorted(runs[:, 1], pfn, side="right"))
        high = int(np.searchsorted(runs[:, 0], pfn + count))
        inside = np.zeros(count, np.bool_)
        # Long ones are few: 1024 of 256 pages at most where 1 GiB is asked for.
        for begin, end in (runs[low:high] - pfn).tolist():
            inside[max(begin, 0) : end] = True
        return excluded(pfn, count) & inside if low < high else inside

    return limited


def filtered(guest: _Guest, types: PageTypes, level: int, ahead: TypesAhead | None = None) -> _Guest:
    """Give a guest without pages of some types.

    What the guest lacks already it lacks as well, and levels add up. Memory is read through the guest; pages
    that are left out are zero and are not read.

    Parameters
    ----------
    guest : Guest
        The guest.
    types : PageTypes
        Of its pages, as its memory is now.
    level : int
        What is left out, in makedumpfile's bits; the lowest, for zeros, changes nothing.
    ahead : TypesAhead, optional
        What the types were told by.
    """
    found = Filtered(guest, types, level, ahead)
    return _view(guest, found, _remembering(found.excluded))


def _remembering(excluded: _Mask) -> _Mask:
    """Remember what was asked for last: a dump asks four times for every page, in two places at once."""

    @lru_cache(_REMEMBERED)
    def part(index: int) -> NDArray[np.bool_]:
        mask = excluded(index * _REMEMBERED_PAGES, _REMEMBERED_PAGES)
        mask.setflags(write=False)
        return mask

    def remembered(pfn: int, count: int) -> NDArray[np.bool_]:
        first, skip = divmod(pfn, _REMEMBERED_PAGES)
        last = (pfn + max(count, 1) - 1) // _REMEMBERED_PAGES
        if first == last:
            return part(first)[skip : skip + count]
        return np.concatenate([part(index) for index in range(first, last + 1)])[skip : skip + count]

    return remembered


def _view(guest: _Guest, found: Filtered, excluded: _Mask) -> _Guest:
    page_size = guest.page_size

    def excluded_pages(pfn: int, count: int) -> NDArray[np.bool_]:
        mask, own = excluded(pfn, count), guest.excluded_pages(pfn, count)
        return mask if own is None else mask | own

    def stored_pages(pfn: int, count: int, without: NDArray[np.bool_] | None = None) -> StoredPages | None:
        mask = excluded(pfn, count)
        return guest.stored_pages(pfn, count, mask if without is None else mask | without)

    def read(address: int, length: int) -> bytes:
        first = address // page_size
        mask = excluded(first, -(-(address + length) // page_size) - first) if length > 0 else None
        if mask is not None and mask.any():
            at = max(address, (first + int(mask.argmax())) * page_size)
            raise ExcludedPage.at(at, lambda: found.type_at(at).label)
        return guest.read(address, length)

    count = sum(
        int(np.count_nonzero(excluded_pages(pfn, min(_WINDOW, end - pfn))))
        for begin, end in page_runs(guest.blocks, page_size)
        for pfn in range(begin, end, _WINDOW)
    )
    return view_of(
        guest,
        blocks=without_pages(guest.blocks, excluded, page_size),
        excluded_pages=excluded_pages,
        excluded_size=count * page_size,
        stored_pages=stored_pages,
        read=read,
        dump_level=guest.dump_level | found.level,
        filtered=found,
    )
