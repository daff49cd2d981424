"""Pages packed or written ahead, by frame number: what they held, and where they went.

What a page holds later tells whether it has changed since.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import SinkError
from vmdump.kernels.hash import KEY_WORDS

__all__ = ["PLACE", "PagesAhead", "new_key"]

PLACE = np.dtype([("offset", np.uint64), ("size", np.uint32)])
"""Where a page went: offset and bytes in the output."""

_ENTRY = np.dtype([("hash", np.uint64), ("place", PLACE)])
_BATCH = 1 << 16
"""Entries looked at together: 1.3 MB."""
_REGION = 1024
"""Pages of which is remembered in memory whether any was recorded: where none was, nothing is read."""


def new_key() -> NDArray[np.uint64]:
    """Make a key for the hashes of one dump; (KEY_WORDS,) uint64."""
    return np.frombuffer(os.urandom(8 * KEY_WORDS), np.uint64)


class PagesAhead:
    """A sparse table of pages in a temporary file: 20 bytes for each, 0.5 % of what was packed.

    In memory it would be 335 MB for a guest of 64 GiB. A page is the same when its 64-bit hash is; the key of
    the hash is random, so that nobody can make a change that goes unseen, and chance does so once in 2^63
    changes. Reads and records may come from several threads at once.

    Parameters
    ----------
    page_size : int
        Bytes.
    folder : str or None
        Of the temporary file; None for the system's.
    key : (KEY_WORDS,) uint64, optional
        Of the hash; without it, a new one.

    Attributes
    ----------
    key : (KEY_WORDS,) uint64
        Of the hash.
    page_size : int
        Bytes.
    read_now : callable or None
        ``(pfn, count) -> (count,) uint64``: hashes of pages that were read since for another purpose, and do
        not change any more; 0 of all others.

    Raises
    ------
    SinkError
        Creating the file failed.
    """

    def __init__(self, page_size: int, folder: str | None, *, key: NDArray[np.uint64] | None = None) -> None:
        import tempfile  # 11 modules more, and few guests run

        self.key = new_key() if key is None else key
        self.page_size = page_size
        self.read_now: Callable[[int, int], NDArray[np.uint64]] | None = None
        self._regions: set[int] = set()
        self._folder = folder or tempfile.gettempdir()
        with self._errors():
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by close()

    def record(self, pfn: int, hashes: NDArray[np.uint64], places: NDArray[np.void] | None = None) -> None:
        """Remember pages from frame number `pfn` on.

        Parameters
        ----------
        pfn : int
            Of the first page.
        hashes : (n,) uint64
            Of what they held, 0 for zeros.
        places : (n,) PLACE, optional
            Where that went; not needed where the frame number tells it.

        Raises
        ------
        SinkError
            Writing the file failed.
        """
        entries: NDArray[np.void] = np.zeros(hashes.size, _ENTRY)
        entries["hash"] = hashes
        if places is not None:
            entries["place"] = places
        self._regions.update(self._regions_of(pfn, hashes.size))
        raw, position = entries.view(np.uint8).data, pfn * _ENTRY.itemsize
        with self._errors():
            while raw:
                count = os.pwrite(self._file.fileno(), raw, position)
                raw, position = raw[count:], position + count

    @staticmethod
    def _regions_of(pfn: int, count: int) -> range:
        return range(pfn // _REGION, -(-(pfn + count) // _REGION))

    def read(self, pfn: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.void]] | None:
        """Look up pages from frame number `pfn` on; None if no page of them was recorded.

        Returns
        -------
        hashes : (count,) uint64
            Of what they held, 0 where that was zeros or was never recorded.
        places : (count,) PLACE
            Where that went.

        Raises
        ------
        SinkError
            They cannot be read.
        """
        if self._regions.isdisjoint(self._regions_of(pfn, count)):
            return None
        entries: NDArray[np.void] = np.zeros(count, _ENTRY)
        raw, position = entries.view(np.uint8).data, pfn * _ENTRY.itemsize
        with self._errors():
            while raw and (size := os.preadv(self._file.fileno(), [raw], position)):
                raw, position = raw[size:], position + size
        return entries["hash"].copy(), entries["place"].copy()

    def unchanged(self, pfn: int, known: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
        """Tell which pages are known to hold what they held without being read again; None if none is.

        Parameters
        ----------
        pfn : int
            Of the first page.
        known : (n,) uint64
            As :meth:`read` gives them.
        """
        if self.read_now is None:
            return None
        same: NDArray[np.bool_] = (known != 0) & (self.read_now(pfn, known.size) == known)
        return same if same.any() else None

    def recorded(self, pfn: int, count: int) -> Iterator[tuple[int, int]]:
        """Give the runs ``[begin, end)`` of frame numbers inside that did not hold zeros, ascending.

        Raises
        ------
        SinkError
            They cannot be read.
        """
        end = pfn + count
        while pfn < end:
            with self._errors():
                try:
                    found = os.lseek(self._file.fileno(), pfn * _ENTRY.itemsize, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    return
            pfn = max(pfn, found // _ENTRY.itemsize)
            size = min(_BATCH, end - pfn)
            if size <= 0:
                return
            found_here = self.read(pfn, size)
            if found_here is not None:
                edges = np.flatnonzero(np.diff(found_here[0] != 0, prepend=False, append=False)) + pfn
                yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            pfn += size

    def close(self) -> None:
        """Give back the temporary file; closing twice does nothing."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(
                "cannot keep what the pages held",
                path=self._folder,
                errno=error.errno,
                hint="free some space, or choose another folder",
            ) from error
