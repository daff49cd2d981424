"""What every dump that was opened can do, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Block, Memory, Pages, file_runs, find_block, find_pieces, read_into
from vmdump.guest.whole import page_runs, whole_pages
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, check_threads, in_order
from vmdump.readers.bytes.file import ByteFile, naming_file
from vmdump.readers.kinds import PageKind
from vmdump.sources.base import StillSource
from vmdump.units import ADDRESS_LIMIT, counted, format_size

if TYPE_CHECKING:
    import re

    from typing_extensions import Buffer

__all__ = ["Dump"]

_BATCH = 4 << 20
"""Bytes of pages that one thread reads at once."""


class Dump(StillSource):
    """A dump file as a guest.

    `blocks` is the memory that the guest had. Pages of it that are not in the dump are excluded: reading one
    raises ExcludedPage. Reading outside the blocks raises ReadError. Neither is ever taken for zeros.

    Attributes
    ----------
    format : str
        ``elf``, ``lime``, ``avml``, ``raw``, or ``kdump`` with its layout: ``kdump standard``, ``kdump
        flattened``, ``kdump split standard``.
    path : str
        Of the file, or of the first that was named; ``buffer`` for a buffer.
    """

    path: str
    _opened: Sequence[ByteFile] = ()

    def _take(self, files: Sequence[ByteFile]) -> None:
        """Own the files that it is read from."""
        self._opened = files
        self.files = tuple(opened for file in files for opened in file.files)
        self.path = files[0].path

    def _naming(self) -> AbstractContextManager[None]:
        return naming_file(self.path)

    @cached_property
    def _page_blocks(self) -> Sequence[Block]:
        """The blocks in whole pages."""
        return whole_pages(self.blocks, self.page_size)

    def pages(self, pfn: int, count: int, out: Pages | None = None, *, threads: int = 1) -> Pages:
        """Read whole pages; where a page has no memory, because a block ends inside it, there are zeros.

        Parameters
        ----------
        pfn : int
            Frame number of the first page.
        count : int
            Pages; all must be in the dump.
        out : (count, page_size) uint8, C-contiguous, optional
            Filled instead of a new array.
        threads : int
            Threads that read side by side; they hold the GIL for some 2 % of the time.

        Returns
        -------
        (count, page_size) uint8
            `out`, or a new array.

        Raises
        ------
        ReadError
            A page is in no block of the dump.
        ExcludedPage
            A page is excluded.
        FormatError, CodecError, SourceError
            The dump is damaged or cannot be read.
        RequestError
            `threads` are not from 1 to 1024.
        """
        threads = check_threads(threads)
        if count < 0:
            raise ValueError(f"count: {count} is negative")
        self._demand(pfn, count)
        if out is None:
            out = np.empty((count, self.page_size), np.uint8)
        elif out.shape != (count, self.page_size) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous array of uint8 of shape {(count, self.page_size)}")
        batch = max(_BATCH // self.page_size, 1)
        if threads == 1 or count <= batch:
            self._fill(pfn, out)
            return out
        tasks = [(pfn + begin, out[begin : begin + batch]) for begin in range(0, count, batch)]
        for _ in in_order(
            tasks,
            lambda _, task: self._fill(*task),
            range(threads + SLOTS_BEYOND_THREADS),
            threads=threads,
            idle=lambda _: False,
        ):
            pass
        return out

    def _demand(self, pfn: int, count: int) -> None:
        """Raise ReadError or ExcludedPage unless all these pages are in the dump."""
        with self._naming():
            for _ in find_pieces(self._page_blocks, pfn * self.page_size, (pfn + count) * self.page_size):
                pass
            excluded = self.excluded_pages(pfn, count)
            if excluded is not None and excluded.any():
                raise self._excluded_page((pfn + int(excluded.argmax())) * self.page_size)

    def _fill(self, pfn: int, out: Pages) -> None:
        """Read pages that are in blocks; excluded ones become zeros."""
        begin, flat = pfn * self.page_size, out.reshape(-1)
        for block, low, high in find_pieces(self._page_blocks, begin, begin + flat.size):
            at = block.start + low - begin
            read_into(block.memory, low, flat[at : at + high - low])

    def __contains__(self, address: object) -> bool:
        """Tell whether the dump holds the byte at a guest-physical address."""
        if not isinstance(address, SupportsIndex):
            return False
        address = address.__index__()  # numpy's integers are addresses, too
        if not 0 <= address < ADDRESS_LIMIT:
            return False
        index = find_block(self.blocks, address)
        if index < 0 or address >= self.blocks[index].end:
            return False
        excluded = self.excluded_pages(address // self.page_size, 1)
        return excluded is None or not excluded[0]

    def __iter__(self) -> Iterator[tuple[int, Pages]]:
        """Give all pages that are in the dump; see :meth:`batches`."""
        return self.batches()

    def batches(self, *, threads: int = 1) -> Iterator[tuple[int, Pages]]:
        """Give all pages that are in the dump, by ascending frame number.

        Where a page has no memory, because a block ends inside it, there are zeros; :meth:`read` refuses that
        part.

        Parameters
        ----------
        threads : int
            Threads that read side by side, some batches ahead.

        Yields
        ------
        pfn : int
            Frame number of the first page.
        pages : (n, page_size) uint8
            Consecutive pages, 4 MiB of them at most. Each batch is an array of its own.

        Raises
        ------
        FormatError, CodecError, SourceError
            The dump is damaged or cannot be read.
        RequestError
            `threads` are not from 1 to 1024.
        """
        threads = check_threads(threads)
        batch = max(_BATCH // self.page_size, 1)

        def read(_: object, task: tuple[int, int]) -> Pages:
            out = np.empty((task[1], self.page_size), np.uint8)
            self._fill(task[0], out)
            return out

        tasks = (
            (pfn, min(batch, end - pfn)) for begin, end in self._runs() for pfn in range(begin, end, batch)
        )
        if threads == 1:
            yield from ((task[0], read(None, task)) for task in tasks)
            return
        slots = range(threads + SLOTS_BEYOND_THREADS)
        for (pfn, _), pages in in_order(tasks, read, slots, threads=threads, idle=lambda _: False):
            if pages is not None:
                yield pfn, pages

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Give the runs ``[begin, end)`` of pages in the dump."""
        yield from page_runs(self.blocks, self.page_size)

    def find(
        self,
        pattern: Buffer | re.Pattern[bytes],
        *,
        begin: int | None = None,
        length: int | None = None,
        max_length: int = 4096,
        threads: int | None = None,
    ) -> Iterator[int]:
        """Find bytes, or what a regular expression describes, in the memory of the dump.

        :func:`vmdump.find` does the same with any guest, and says what is found.

        Parameters
        ----------
        pattern, begin, length, max_length, threads
            As for :func:`vmdump.find`.

        Returns
        -------
        iterator of int
            Guest-physical addresses, ascending.

        Raises
        ------
        RequestError
            As for :func:`vmdump.find`.
        """
        from vmdump.readers.search import search, wanted  # few dumps are searched

        what = wanted(pattern, begin=begin, length=length, max_length=max_length)
        return search(self, what, threads=check_threads(threads))

    def page_kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Tell how the dump holds pages, without reading them.

        Parameters
        ----------
        pfn, count : int
            Any pages; those in no block are MISSING.

        Returns
        -------
        (count,) uint8
            A `PageKind` each. A page of which a part is in a block has the kind of that part.

        Raises
        ------
        FormatError, SourceError
            The dump is damaged or cannot be read.
        """
        kinds = np.full(count, PageKind.MISSING, np.uint8)
        size = self.page_size
        for block, low, high in self._blocks_in(pfn * size, (pfn + count) * size):
            start = block.start - pfn * size
            here = _covering(start + low, start + high, size)
            kinds[here] = np.maximum(kinds[here], PageKind.ZERO)
            for begin, end in _data(block.memory, low, high):
                kinds[_covering(start + begin, start + end, size)] = PageKind.PLAIN
        return kinds

    def kinds_and_damage(self, pfn: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Tell how the dump holds pages, and which of them have invalid descriptors.

        Parameters
        ----------
        pfn, count : int
            As of :meth:`page_kinds`.

        Returns
        -------
        kinds : (count,) uint8
            What :meth:`page_kinds` tells; MISSING of damaged pages.
        damaged : (count,) bool
            Pages whose descriptors are invalid. Reading one of these is a FormatError.

        Raises
        ------
        SourceError
            The dump cannot be read.
        """
        return self.page_kinds(pfn, count), np.zeros(count, np.bool_)

    def _blocks_in(self, begin: int, end: int) -> Iterator[tuple[Block, int, int]]:
        """Give the blocks that have a part in ``[begin, end)``, and the part, in bytes from their start."""
        index = max(find_block(self.blocks, min(max(begin, 0), ADDRESS_LIMIT - 1)), 0)
        while index < len(self.blocks) and (block := self.blocks[index]).start < end:
            if block.end > begin:
                yield block, max(begin - block.start, 0), min(end, block.end) - block.start
            index += 1

    def read_whole(self, pfn: int, out: Pages) -> tuple[Mapping[int, str], NDArray[np.uint8]] | None:
        """Read pages of which some are damaged, in one go.

        Parameters
        ----------
        pfn : int
            Frame number of the first page; all must be in one block.
        out : (count, page_size) uint8, C-contiguous
            Filled; damaged pages are undefined, excluded ones zero.

        Returns
        -------
        (damage, kinds) or None
            What is wrong with damaged pages, by frame number, and what :meth:`page_kinds` tells of the
            others. None if the file does not store pages one by one.

        Raises
        ------
        SourceError
            The file cannot be read.
        """
        return None

    def _repr_html_(self) -> str:
        """Give a table for a notebook."""
        from vmdump.markup import facts_table

        rows = [
            ("format", self.format),
            ("guest", f"{self.arch.name}, {self.byteorder}-endian, {counted(self.nr_cpus, 'vCPU')}"),
            ("memory", f"{format_size(self.size)} in {counted(len(self.blocks), 'block')}"),
            ("pages", f"of {self.page_size} bytes"),
        ]
        if self.excluded_size:
            rows.append(("excluded", format_size(self.excluded_size)))
        return facts_table(self.path, rows)

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        for file in self._opened:
            file.close()

    def __repr__(self) -> str:
        excluded = f", {format_size(self.excluded_size)} excluded" if self.excluded_size else ""
        return (
            f"<{type(self).__name__} {self.path!r}: {self.format}, {self.arch.name} {self.byteorder}-endian, "
            f"{counted(len(self.blocks), 'block')}, {format_size(self.size)}{excluded}, "
            f"pages of {self.page_size}, {counted(self.nr_cpus, 'vCPU')}>"
        )


def _data(memory: Memory, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Give the runs of ``[low, high)`` that may hold data."""
    found = file_runs(memory, low, high - low)
    if found is not None:
        yield from ((low + begin, low + end) for begin, end, _, _ in found)
        return
    for begin, end in memory.extents():
        if begin >= high:
            return
        if end > low:
            yield max(begin, low), min(end, high)


def _covering(begin: int, end: int, size: int) -> slice:
    """Give the pages that ``[begin, end)`` touches."""
    return slice(begin // size, -(-end // size))
