"""Which pages of another process are there, without touching those that are not.

Source: Linux' Documentation/admin-guide/mm/pagemap.rst and include/uapi/linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.sources.process.process import Process
from vmdump.units import merge_runs

__all__ = ["PAGE", "PageTable"]

PAGE = mmap.PAGESIZE

_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_SCAN_REGIONS = 4096
_SCAN_ARGUMENT = np.dtype(
    [
        (name, np.uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    ]
)
_REGION = np.dtype([("start", np.uint64), ("end", np.uint64), ("categories", np.uint64)])

_ENTRY_FILE, _ENTRY_SWAPPED, _ENTRY_PRESENT = 61, 62, 63
_WINDOW = 1 << 17
"""Entries read at a time where there is no PAGEMAP_SCAN: 1 MiB of them, for 512 MiB of memory."""


class PageTable:
    """The page table of a process, as ``/proc/PID/pagemap`` shows it. From several threads.

    Parameters
    ----------
    process : Process
        Its owner closes it.
    scan : bool
        Use PAGEMAP_SCAN (Linux 6.7, 3 ns per page; reading entries takes 35 ns) where there is one.

    Raises
    ------
    AccessDenied, SourceError
        As for :meth:`Process.open`.
    """

    def __init__(self, process: Process, *, scan: bool = True) -> None:
        self._process = process
        self._fd = process.open("pagemap")
        self._scans = scan

    def populated(self, begin: int, end: int, *, anonymous: bool = False) -> Iterator[tuple[int, int]]:
        """Give the runs of pages that have contents, ascending and merged.

        Parameters
        ----------
        begin, end : int
            Virtual addresses, multiples of `PAGE`.
        anonymous : bool
            Only those that are not just the contents of a file.

        Yields
        ------
        begin, end : int
            Virtual addresses. Pages outside of them read as zero, or as the file that is mapped.

        Raises
        ------
        SourceError
            The process has ended.
        """
        return merge_runs(self._runs(begin, end, anonymous))

    def _runs(self, begin: int, end: int, anonymous: bool) -> Iterator[tuple[int, int]]:
        while begin < end and self._scans:
            try:
                runs, begin = self._scan(begin, end, anonymous)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    self._process.fail("pagemap", error)
                self._scans = False
            else:
                yield from runs
        while begin < end:
            size = min(_WINDOW, (end - begin) // PAGE)
            yield from self._entries(begin, size, anonymous)
            begin += size * PAGE

    def _scan(self, begin: int, end: int, anonymous: bool) -> tuple[list[tuple[int, int]], int]:
        """Ask the kernel for runs from `begin` on; they, and where it stopped."""
        excluded = _IS_PFNZERO | (_IS_FILE if anonymous else 0)
        regions = np.empty(_SCAN_REGIONS, _REGION)
        argument: NDArray[np.void] = np.zeros(1, _SCAN_ARGUMENT)
        argument["size"] = _SCAN_ARGUMENT.itemsize
        argument["start"], argument["end"] = begin, end
        argument["vec"], argument["vec_len"] = regions.ctypes.data, len(regions)
        argument["category_inverted"] = argument["category_mask"] = excluded
        argument["category_anyof_mask"] = argument["return_mask"] = _IS_PRESENT | _IS_SWAPPED
        count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
        starts, ends = regions["start"][:count].tolist(), regions["end"][:count].tolist()
        return list(zip(starts, ends, strict=True)), int(argument["walk_end"][0])

    def _entries(self, begin: int, count: int, anonymous: bool) -> list[tuple[int, int]]:
        try:
            raw = os.pread(self._fd, count * 8, begin // PAGE * 8)
        except OSError as error:
            self._process.fail("pagemap", error)
        # Beyond the end of the address space of a process that has ended, nothing is read.
        entries = np.zeros(count, np.uint64)
        entries[: len(raw) // 8] = np.frombuffer(raw, np.uint64)
        there = (entries >> _ENTRY_PRESENT | entries >> _ENTRY_SWAPPED) & 1
        if anonymous:
            there &= ~(entries >> _ENTRY_FILE)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], there.astype(np.int8), [0]))))
        bounds = (begin + edges * PAGE).tolist()
        return list(zip(bounds[::2], bounds[1::2], strict=True))

    def close(self) -> None:
        """Close the descriptor; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
