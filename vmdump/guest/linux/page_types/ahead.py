"""Types told of a guest that runs, and told again where its struct pages have changed when it is paused."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages
from vmdump.guest.linux.page_types.arrays import PageArray
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.guest.linux.page_types.types import GoingOn, PageTypes
from vmdump.kernels.hash import hash_pages

__all__ = ["TypesAhead"]

Hashes = NDArray[np.uint64]


class _Told(NamedTuple):
    part: PageArray
    hashes: Hashes
    going_on: GoingOn


class TypesAhead:
    """What struct pages held when types were told by them: a hash for each page of them, 1/8 byte per page.

    A chunk of struct pages that holds what it held is not told again. The chance that a change goes unseen is
    that of :class:`vmdump.pipeline.ahead.PagesAhead`, whose key this has to be. What was read of the guest
    that is held now is known to whoever reads these pages for the dump: :meth:`hashes`.

    Parameters
    ----------
    key : (KEY_WORDS,) uint64
        Of the hashes.
    page_size : int
        Bytes that have a hash.

    Attributes
    ----------
    key, page_size
        The same.
    told_again : int
        Chunks that were told anew since the last :meth:`begin`.
    """

    def __init__(self, key: Hashes, page_size: int) -> None:
        self.key = key
        self.page_size = page_size
        self.told_again = 0
        self._types: PageTypes | None = None
        self._layout: PageLayout | None = None
        self._before: dict[int, _Told] = {}
        self._now: dict[int, _Told] = {}
        self._read: list[tuple[NDArray[np.int64], Hashes]] = []
        self._pages: tuple[NDArray[np.int64], Hashes] | None = None
        self._lock = threading.Lock()

    def begin(self, types: PageTypes, layout: PageLayout) -> PageTypes:
        """Begin to tell the types of all pages.

        Parameters
        ----------
        types : PageTypes
            Of these pages, not told yet.
        layout : PageLayout
            By which they are told.

        Returns
        -------
        PageTypes
            Those to be told: the ones of before, if they are of the same pages.
        """
        before = self._types if layout == self._layout else None
        self._before, self._now, self._read, self._pages, self.told_again = self._now, {}, [], None, 0
        if before is None or (before.page_size, before.arrays) != (types.page_size, types.arrays):
            self._before = {}
            before = types
        self._types, self._layout = before, layout
        return before

    def recall(self, part: PageArray, data: Pages, physical: NDArray[np.int64] | None) -> GoingOn | None:
        """Give the runs that go on behind a chunk that holds what it held; None if it is to be told.

        Parameters
        ----------
        part : PageArray
            The chunk.
        data : (n,) uint8
            Its struct pages, all of them; they do not change any more.
        physical : (m,) int64 or None
            Frame number of each page of `data`, where all of them are whole.
        """
        if physical is None:
            return None
        hashes = np.empty(physical.size, np.uint64)
        hash_pages(data, self.page_size, self.key, hashes)
        hashes[hashes == 0] = 1  # as PageScan has it: 0 stands for zeros
        before = self._before.get(part.first)
        same = before is not None and before.part == part and np.array_equal(before.hashes, hashes)
        going_on = before.going_on if same and before is not None else None
        with self._lock:
            self.told_again += going_on is None
            self._read.append((physical, hashes))
            self._now[part.first] = _Told(part, hashes, going_on or [])
        return going_on

    def note(self, part: PageArray, going_on: GoingOn) -> None:
        """Note which runs go on behind a chunk that was told."""
        with self._lock:
            told = self._now.get(part.first)
            if told is not None:
                self._now[part.first] = told._replace(going_on=going_on)

    def spread(self, runs: GoingOn) -> None:
        """Forget the chunks into which runs go on: what is told of them alone is not there any more."""
        if not runs:
            return
        reached = [
            told.part.first
            for told in self._now.values()
            if any(
                first < told.part.first + told.part.pages and told.part.first < first + count
                for first, count, _ in runs
            )
        ]
        for first in reached:
            del self._now[first]

    def hashes(self, pfn: int, count: int) -> Hashes:
        """Give the hashes of pages that were read since the last :meth:`begin`, as hashes of their contents.

        Returns
        -------
        (count,) uint64
            0 of pages that were not read. A page of zeros has any number.
        """
        with self._lock:
            if self._pages is None:
                pfns = np.concatenate([np.empty(0, np.int64), *(pages for pages, _ in self._read)])
                read = np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in self._read)])
                order = np.argsort(pfns, kind="stable")
                self._pages, self._read = (pfns[order], read[order]), []
        pfns, read = self._pages
        low, high = np.searchsorted(pfns, (pfn, pfn + count)).tolist()
        found = np.zeros(count, np.uint64)
        found[pfns[low:high] - pfn] = read[low:high]
        return found
