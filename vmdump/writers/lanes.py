"""Lanes: bytes that go to the output in order, each lane from a place of its own.

A writer opens a lane for the headers, one for the page data and so on. In the standard layout a lane is
a position in the file, in a plain stream there is one lane only, and in the flattened layout a lane
becomes records of 4 MiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from vmdump.formats import flattened
from vmdump.kernels.cache import WriteCache
from vmdump.sinks.file import Output

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FlattenedFile", "Lane", "PlainFile"]

_CACHE_SIZE = 4 << 20
_RECORD_SIZE = 4 << 20
"""Readers sort records; QEMU's of 16 KiB make a dump of 100 GiB slow to open."""
_ZEROS = bytes(1 << 20)

Cancelled = Callable[[], bool]


class Lane(Protocol):
    """Bytes from one place on."""

    def write(self, data: Buffer) -> None:
        """Append bytes; they may be changed afterwards."""

    def skip(self, size: int) -> None:
        """Append `size` zero bytes: a hole where the output can have one."""

    def clear(self, size: int) -> None:
        """Append `size` zero bytes, whatever was there before."""

    def finish(self) -> None:
        """Hand everything to the operating system."""


def _write_zeros(lane: Lane, size: int) -> None:
    while size > 0:
        lane.write(_ZEROS[:size])
        size -= len(_ZEROS)


class _File:
    """What both kinds of file share: the output, and its cleaning up."""

    def __init__(self, output: Output, cancelled: Cancelled) -> None:
        self._output = output
        self._cancelled = cancelled
        # Through the page cache a file took 0.46 GB/s, past it 2 GB/s.
        self._direct = output.open_direct() if output.seekable else -1

    @property
    def seekable(self) -> bool:
        """True if lanes may be written side by side."""
        return False

    def _make_cache(self, offset: int = 0) -> WriteCache:
        return WriteCache(
            self._output.fd,
            seekable=self._output.seekable,
            capacity=_CACHE_SIZE,
            direct_fd=self._direct,
            offset=offset,
        )

    def _errors(self) -> AbstractContextManager[None]:
        return self._output.errors("cannot write the output")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


class PlainFile(_File):
    """The bytes of a dump as they are: in any order where the output is seekable, else in one lane.

    Parameters
    ----------
    output : Output
        Stays the caller's.
    cancelled : callable
        Asked while a write waits.
    """

    def __init__(self, output: Output, cancelled: Cancelled) -> None:
        super().__init__(output, cancelled)
        self.size = 0

    @property
    def seekable(self) -> bool:
        """True if lanes may be written side by side."""
        return self._output.seekable

    @property
    def sparse(self) -> bool:
        """True if what a lane skips is a hole."""
        return self._output.sparse

    def lane(self, offset: int) -> Lane:
        """Open a lane at a file offset; its whole blocks bypass the page cache where that is possible."""
        return _PlainLane(self, offset)

    def finish(self) -> None:
        """Give the file its length."""
        with self._errors():
            self._output.set_size(self.size)


class _PlainLane:
    def __init__(self, file: PlainFile, offset: int) -> None:
        self._file = file
        self._cache = file._make_cache(offset)

    def write(self, data: Buffer) -> None:
        with self._file._errors():
            self._cache.write(data, self._file._cancelled)

    def skip(self, size: int) -> None:
        if not self._file.sparse:
            _write_zeros(self, size)
            return
        with self._file._errors():
            self._cache.seek(self._cache.position + size, self._file._cancelled)

    def clear(self, size: int) -> None:
        _write_zeros(self, size)

    def finish(self) -> None:
        with self._file._errors():
            self._cache.flush(self._file._cancelled)
        self._file.size = max(self._file.size, self._cache.position)


class FlattenedFile(_File):
    """The flattened layout: lanes one behind the other, as records in a stream."""

    def __init__(self, output: Output, cancelled: Cancelled) -> None:
        super().__init__(output, cancelled)
        self._cache = self._make_cache()
        self._buffer = np.empty(_RECORD_SIZE, np.uint8)
        self._put(flattened.file_header())

    @property
    def size(self) -> int:
        """Bytes of the stream so far."""
        return self._cache.position

    def lane(self, offset: int) -> Lane:
        """Open a lane at an offset of the standard file; the lane before must be finished."""
        return _FlattenedLane(self, offset)

    def record(self, offset: int, data: Buffer) -> None:
        """Write one record, whatever its size; not while a lane has bytes that wait for more."""
        self._put(flattened.record(offset, memoryview(data).nbytes))
        self._put(data)

    def finish(self) -> None:
        """Write the end mark."""
        self._put(flattened.END_MARK)
        with self._errors():
            self._cache.flush(self._cancelled)
            self._output.set_size(self.size)

    def _put(self, data: Buffer) -> None:
        with self._errors():
            self._cache.write(data, self._cancelled)


class _FlattenedLane:
    def __init__(self, file: FlattenedFile, offset: int) -> None:
        self._file = file
        self._offset = offset
        self._filled = 0

    def write(self, data: Buffer) -> None:
        rest = np.frombuffer(data, np.uint8) if memoryview(data).nbytes else np.empty(0, np.uint8)
        while rest.size:
            piece = rest[: _RECORD_SIZE - self._filled]
            self._file._buffer[self._filled : self._filled + piece.size] = piece
            self._filled += piece.size
            rest = rest[piece.size :]
            if self._filled == _RECORD_SIZE:
                self.finish()

    def skip(self, size: int) -> None:
        _write_zeros(self, size)

    clear = skip

    def finish(self) -> None:
        if self._filled:
            self._file.record(self._offset, self._file._buffer[: self._filled])
            self._offset += self._filled
            self._filled = 0
