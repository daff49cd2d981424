"""Pages that have been packed before, by frame number: what they held, and where they went."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from vmdump.kernels.hash import KEY_WORDS, hash_pages
from vmdump.sources.base import Pages

__all__ = ["PLACED", "KnownPages"]

PLACED = np.dtype([("offset", np.uint64), ("size", np.uint32)])
"""Where a page went: offset and bytes in the output. An offset of 0 stands for nowhere."""

_ENTRY = np.dtype([("hash", np.uint64), ("placed", PLACED)])
_REGION = 1024
"""Pages in one array: 20 KiB. A guest's memory comes in clusters, so few entries stay empty."""


class KnownPages:
    """A sparse table of pages, 20 bytes for each: 0.5 % of what was packed.

    A page is the same when its 64-bit hash is; the key of the hash is random, so that nobody can make a
    change that goes unseen, and chance does so once in 2^63 changes.

    Parameters
    ----------
    page_size : int
        Bytes.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._key = np.frombuffer(os.urandom(8 * KEY_WORDS), np.uint64)
        self._regions: dict[int, NDArray[np.void]] = {}

    def hashes(self, data: Pages) -> NDArray[np.uint64]:
        """Hash whole pages; (n,) for n pages."""
        hashes = np.empty(data.size // self._page_size, np.uint64)
        hash_pages(data, self._page_size, self._key, hashes)
        return hashes

    def record(self, pfn: int, hashes: NDArray[np.uint64], placed: NDArray[np.void]) -> None:
        """Remember pages from frame number `pfn` on.

        Parameters
        ----------
        pfn : int
            Of the first page.
        hashes : (n,) uint64
            Of what they held.
        placed : (n,) PLACED
            Where that went.
        """
        for begin, count, region, at in self._pieces(pfn, hashes.size):
            entries = self._regions.get(region)
            if entries is None:
                entries = self._regions[region] = np.zeros(_REGION, _ENTRY)
            entries["hash"][at : at + count] = hashes[begin : begin + count]
            entries["placed"][at : at + count] = placed[begin : begin + count]

    def unchanged(self, pfn: int, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
        """Tell which pages from frame number `pfn` on hold what they held when they were recorded.

        Parameters
        ----------
        pfn : int
            Of the first page.
        hashes : (n,) uint64
            Of what they hold now.

        Returns
        -------
        same : (n,) bool
            False for pages that were never recorded.
        placed : (n,) PLACED
            Where the same ones went; a copy.
        """
        same = np.zeros(hashes.size, np.bool_)
        placed: NDArray[np.void] = np.zeros(hashes.size, PLACED)
        for begin, count, region, at in self._pieces(pfn, hashes.size):
            entries = self._regions.get(region)
            if entries is None:
                continue
            piece = slice(begin, begin + count)
            placed[piece] = entries["placed"][at : at + count]
            same[piece] = (entries["hash"][at : at + count] == hashes[piece]) & (placed["offset"][piece] != 0)
        return same, placed

    @staticmethod
    def _pieces(pfn: int, count: int) -> list[tuple[int, int, int, int]]:
        """Cut pages into those of one region each: begin and count among them, region, place in it."""
        pieces = []
        begin = 0
        while begin < count:
            region, at = divmod(pfn + begin, _REGION)
            size = min(count - begin, _REGION - at)
            pieces.append((begin, size, region, at))
            begin += size
        return pieces
