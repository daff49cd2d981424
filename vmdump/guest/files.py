"""Memory that lies in a file: read with pread, its holes found with SEEK_DATA and never read.

pread and not a mapping: a file that shrinks is then an error and no SIGBUS, the pages do not count as
resident memory of vmdump, and on data that is used once it is as fast (the copy runs at 11 GB/s, a
mapping's page faults let a zero test see 4 to 9 GB/s).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from bisect import bisect_right, insort
from collections.abc import Iterator
from operator import itemgetter

from vmdump.errors import SourceError
from vmdump.guest.blocks import FileRuns, Pages

__all__ = ["DataRuns", "FileMemory", "GuestFile"]

_LONG = 1 << 20
"""Bytes of a run that is worth remembering: 7 us."""
_MOST = 256
"""Runs."""


class DataRuns:
    """Long data runs of a file that were found once: SEEK_HOLE walks all pages up to the hole.

    That takes 29 ns for each page on tmpfs, so asking again for each 4 MiB of a long run is quadratic: 20 s
    for 4 GiB. What has become a hole since reads as zeros. From several threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: tuple[tuple[int, int], ...] = ()

    def find(self, position: int) -> tuple[int, int] | None:
        """Give a data run ``[begin, end)`` with a file offset in it; None if none is known."""
        runs = self._runs
        index = bisect_right(runs, position, key=itemgetter(0)) - 1
        return runs[index] if index >= 0 and position < runs[index][1] else None

    def add(self, begin: int, end: int) -> None:
        """Note a data run; short ones, and those beyond a number, are forgotten."""
        if end - begin < _LONG:
            return
        with self._lock:
            runs = [run for run in self._runs if run[0] < begin or run[1] > end]
            insort(runs, (begin, end))
            self._runs = tuple(runs[:_MOST])

    def take(self, others: DataRuns) -> None:
        """Know what is known of another opening of the same file."""
        self._runs = others._runs


class GuestFile:
    """An open file of guest memory. Reads may come from several threads.

    Parameters
    ----------
    path : str or path
        A regular file or block device.
    name : str, optional
        What errors call it instead of its path.

    Attributes
    ----------
    path : str
        Named in errors.
    size : int
        Bytes, when it was opened.
    data_runs : DataRuns
        What of it is known to be data.

    Raises
    ------
    SourceError
        It is missing, unreadable, or neither a regular file nor a block device.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "") -> None:
        self.path = name or os.fspath(path)
        self.data_runs = DataRuns()
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            mode = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ESPIPE
                raise SourceError(
                    "cannot use this as a source", path=self.path, errno=code, hint="a regular file is needed"
                )
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except SourceError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise SourceError("cannot open the source", path=self.path, errno=error.errno) from error

    @property
    def fd(self) -> int:
        """The descriptor; SourceError once the file is closed."""
        if self._fd < 0:
            raise SourceError("the source is closed", path=self.path)
        return self._fd

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`.

        Raises
        ------
        SourceError
            The bytes cannot be read, or are no longer there.
        """
        done = 0
        while done < out.size:
            try:
                count = os.preadv(self.fd, [out[done:].data], offset + done)
            except SourceError:
                raise
            except OSError as error:
                raise SourceError(
                    f"cannot read at file offset {offset + done:#x}", path=self.path, errno=error.errno
                ) from error
            if count == 0:
                self.demand_size(offset + out.size)
                raise SourceError(f"no data at file offset {offset + done:#x}", path=self.path)
            done += count

    def demand_size(self, end: int) -> None:
        """Raise SourceError if the file does not reach to `end` any more."""
        size = os.fstat(self.fd).st_size
        if size < end:
            raise SourceError(f"the file ends at {size:#x}, it was longer when it was opened", path=self.path)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileMemory:
    """A block whose bytes are a range of an open file.

    Parameters
    ----------
    file : GuestFile
        Stays the caller's.
    file_offset : int
        Of the block's first byte.
    size : int
        Bytes of the block.
    filled : int, optional
        Bytes that are in the file; those behind are zero. All, if not given.
    """

    copies = True

    def __init__(self, file: GuestFile, file_offset: int, size: int, filled: int | None = None) -> None:
        self._file = file
        self._file_offset = file_offset
        self._size = size
        self._filled = size if filled is None else filled
        self._run = (0, 0)  # the data run found last, however short

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the file's data runs; where the file system cannot tell, everything is data."""
        return self._extents(0, self._filled)

    def _extents(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        base = self._file_offset
        position = base + begin
        limit = base + end
        while position < limit:
            data, hole = self._run
            known = (data, hole) if data <= position < hole else self._file.data_runs.find(position)
            if known is None:
                data, hole = self._find_run(position, limit)
                if data >= limit:
                    return
                self._file.data_runs.add(data, hole)
                self._run = (data, hole)
            else:
                data, hole = position, known[1]
            yield data - base, min(hole, limit) - base
            position = hole

    def _find_run(self, position: int, limit: int) -> tuple[int, int]:
        """Give the first data run from `position` on, as file offsets; an empty one at `limit` if none is."""
        fd = self._file.fd
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
            known = self._file.data_runs.find(data)
            return data, os.lseek(fd, data, os.SEEK_HOLE) if known is None else known[1]
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._file.demand_size(limit)
                return limit, limit
            if error.errno != errno.EINVAL:
                raise SourceError("cannot look for holes", path=self._file.path, errno=error.errno) from error
            return position, limit

    def file_runs(self, offset: int, length: int) -> FileRuns:
        """Give the data runs inside, all of the one file."""
        fd, base = self._file.fd, self._file_offset
        end = min(offset + length, self._filled)
        return [(low - offset, high - offset, fd, base + low) for low, high in self._extents(offset, end)]

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Read into `scratch`; holes inside are filled with zeros and not read."""
        out = scratch[:length]
        position = 0
        for begin, end in self._extents(offset, min(offset + length, self._filled)):
            out[position : begin - offset] = 0
            self._file.read_into(self._file_offset + begin, out[begin - offset : end - offset])
            position = end - offset
        out[position:] = 0
        return out
