"""The memory of another process as blocks' memory: files that it maps, and pages that only it has."""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Protocol, overload

from vmdump.errors import SourceError
from vmdump.guest.blocks import FileRuns, Memory, Pages, file_runs
from vmdump.guest.files import FileMemory
from vmdump.sources.process.pagemap import PAGE, PageTable
from vmdump.sources.process.process import Process
from vmdump.units import merge_runs

__all__ = ["JoinedMemory", "PrivateMemory", "ProcessMemory", "UnreadablePages", "WatchedMemory"]

_UNREADABLE = (errno.EIO, errno.EFAULT)
"""What a read of a page gives that the host does not have any more."""


class ProcessMemory:
    """The bytes of a process at virtual addresses; from several threads.

    Parameters
    ----------
    process : Process
        Its owner closes it.

    Raises
    ------
    AccessDenied, SourceError
        As for :meth:`Process.open`.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        # The right is checked when it is opened, and stays.
        self._fd = process.open("mem")
        self.table = PageTable(process)

    def read_into(self, address: int, out: Pages) -> None:
        """Fill `out` from a virtual address.

        Raises
        ------
        SourceError
            With EIO where a page cannot be read, with ESRCH where the process has ended.
        """
        done = 0
        while done < out.size:
            try:
                count = os.preadv(self._fd, [out[done:].data], address + done)
            except OSError as error:
                self._process.fail("mem", error)
            if count == 0:
                self._process.fail("mem", OSError(errno.ESRCH, os.strerror(errno.ESRCH)))
            done += count

    @property
    def fd(self) -> int:
        """Where addresses are file offsets."""
        return self._fd

    def close(self) -> None:
        """Close the descriptors; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.table.close()


class PrivateMemory:
    """A block, or a part of one, that only the process has: anonymous, or written copies of a file's pages.

    Parameters
    ----------
    process : ProcessMemory
        Where it is.
    address, size : int
        Virtual address and bytes.
    file : FileMemory, optional
        What the pages hold that the process has not written; zeros, if not given.
    """

    copies = True

    def __init__(
        self, process: ProcessMemory, address: int, size: int, file: FileMemory | None = None
    ) -> None:
        self._process = process
        self._address = address
        self._size = size
        self._file = file

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the pages that the process has, and the file's data."""
        own = self._own(0, self._size)
        return own if self._file is None else merge_runs(sorted([*own, *self._file.extents()]))

    def _own(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        base = self._address
        low, high = base + begin, base + end
        pages = self._process.table.populated(
            low - low % PAGE, high + -high % PAGE, anonymous=self._file is not None
        )
        return ((max(first, low) - base, min(last, high) - base) for first, last in pages)

    def file_runs(self, offset: int, length: int) -> FileRuns | None:
        """Give the process's own pages; None where a file's lie between them."""
        if self._file is not None:
            return None
        fd, base = self._process.fd, self._address
        own = self._own(offset, offset + length)
        return [(low - offset, high - offset, fd, base + low) for low, high in own]

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Read into `scratch`; pages that are not there become zeros and are not touched."""
        out = scratch[:length]
        if self._file is None:
            position = 0
            for begin, end in self._own(offset, offset + length):
                out[position : begin - offset] = 0
                self._process.read_into(self._address + begin, out[begin - offset : end - offset])
                position = end - offset
            out[position:] = 0
            return out
        self._file.view(offset, length, scratch)
        for begin, end in self._own(offset, offset + length):
            self._process.read_into(self._address + begin, out[begin - offset : end - offset])
        return out


class JoinedMemory:
    """Several memories, one behind the other, as one.

    Parameters
    ----------
    parts : sequence of Memory
        In order.
    """

    copies = True

    def __init__(self, parts: Sequence[Memory]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.size)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._starts[-1]

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the parts' extents."""
        for start, part in zip(self._starts, self._parts, strict=False):
            for begin, end in part.extents():
                yield start + begin, start + end

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Memory, int, int, int]]:
        """Give the parts that hold some of it, with the begin and end there, and the place of the begin."""
        end = offset + length
        for start, part in zip(self._starts, self._parts, strict=False):
            low, high = max(offset, start), min(end, start + part.size)
            if low < high:
                yield part, low - start, high - start, low - offset

    def file_runs(self, offset: int, length: int) -> FileRuns | None:
        """Give those of all parts; None if one of them has none."""
        found: FileRuns = []
        for part, begin, end, at in self._pieces(offset, length):
            runs = file_runs(part, begin, end - begin)
            if runs is None:
                return None
            found += [(low + at, high + at, fd, place) for low, high, fd, place in runs]
        return found

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Let each part fill its piece of `scratch`."""
        for part, begin, end, at in self._pieces(offset, length):
            part.view(begin, end - begin, scratch[at : at + end - begin])
        return scratch[:length]


class UnreadablePages(Sequence[tuple[int, int]]):
    """Pages that the host could not read so far; from several threads.

    As a sequence: ranges ``[begin, end)`` of addresses, ascending, that do not touch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: list[tuple[int, int]] = []

    def add(self, begin: int, end: int) -> None:
        """Note a range of addresses."""
        with self._lock:
            first = bisect_left(self._ranges, begin, key=itemgetter(1))
            behind = bisect_right(self._ranges, end, key=itemgetter(0))
            if first < behind:
                begin, end = min(begin, self._ranges[first][0]), max(end, self._ranges[behind - 1][1])
            self._ranges[first:behind] = [(begin, end)]

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Give those of now."""
        with self._lock:
            return tuple(self._ranges)

    def __len__(self) -> int:
        return len(self.ranges())

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[int, int], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | tuple[tuple[int, int], ...]:
        return self.ranges()[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.ranges())


class _Watch(Protocol):
    """What a `WatchedMemory` asks about the process behind it."""

    unreadable: UnreadablePages

    def demand_alive(self) -> None:
        """Raise an error if the process is no longer there."""


class WatchedMemory:
    """Memory of a process that may end: a page that cannot be read becomes zero and is noted.

    Parameters
    ----------
    memory : Memory
        Reads a block.
    start : int
        Address of its first byte, for the note.
    watch : Watch
        Knows whether the process is still there.
    """

    copies = True

    def __init__(self, memory: Memory, start: int, watch: _Watch) -> None:
        self._memory = memory
        self._start = start
        self._watch = watch

    @property
    def size(self) -> int:
        """Bytes."""
        return self._memory.size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the memory's extents."""
        return self._memory.extents()

    def file_runs(self, offset: int, length: int) -> FileRuns | None:
        """Give the memory's."""
        self._watch.demand_alive()
        return file_runs(self._memory, offset, length)

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Read; page by page where that fails."""
        self._watch.demand_alive()
        try:
            return self._memory.view(offset, length, scratch)
        except SourceError as error:
            if error.errno not in _UNREADABLE:
                raise
        for begin in range(offset - offset % PAGE, offset + length, PAGE):
            low, high = max(begin, offset), min(begin + PAGE, offset + length)
            self._page(begin, low, high, scratch[low - offset : high - offset])
        return scratch[:length]

    def _page(self, page: int, low: int, high: int, out: Pages) -> None:
        try:
            self._memory.view(low, high - low, out)
        except SourceError as error:
            if error.errno not in _UNREADABLE:
                raise
            self._watch.demand_alive()
            out[:] = 0
            self._watch.unreadable.add(self._start + page, self._start + page + PAGE)
