"""Lanes: bytes that go to a sink in order, each lane from a place of its own.

A writer opens a lane for the headers, one for the page data and so on. In the standard layout a lane is
a position in the file, in a plain stream there is one lane only, and in the flattened layout a lane
becomes records of 4 MiB.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vmdump.errors import VmdumpError
from vmdump.formats import flattened
from vmdump.sinks.base import Sink

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FlattenedFile", "Lane", "PlainFile"]

_RECORD_SIZE = 4 << 20
"""Readers sort records; QEMU's of 16 KiB make a dump of 100 GiB slow to open."""
_ZEROS = bytes(1 << 20)

Cancelled = Callable[[], bool]


def _never() -> bool:
    return False


class Lane(Protocol):
    """Bytes from one place on."""

    def write(self, data: Buffer) -> None:
        """Append bytes; they may be changed afterwards."""

    def skip(self, size: int) -> None:
        """Append `size` zero bytes: a hole where the sink can have one."""

    def clear(self, size: int) -> None:
        """Append `size` zero bytes, whatever was there before."""

    def finish(self) -> None:
        """Hand everything to the operating system."""


def _write_zeros(lane: Lane, size: int) -> None:
    while size > 0:
        lane.write(_ZEROS[:size])
        size -= len(_ZEROS)


class _File:
    """What both kinds of file share."""

    def __init__(self, sink: Sink, cancelled: Cancelled) -> None:
        self._sink = sink
        self._cancelled = cancelled

    def _errors(self) -> AbstractContextManager[None]:
        return self._sink.errors("cannot write the output")


class PlainFile(_File):
    """The bytes of a dump as they are: in any order where the sink is seekable, else in one lane.

    Parameters
    ----------
    sink : Sink
        Stays the caller's.
    cancelled : callable
        Asked while a write waits.
    """

    def __init__(self, sink: Sink, cancelled: Cancelled) -> None:
        super().__init__(sink, cancelled)
        self.size = 0

    @property
    def sparse(self) -> bool:
        """True if what a lane skips is a hole."""
        return self._sink.sparse

    def lane(self, offset: int) -> Lane:
        """Open a lane at a file offset."""
        return _PlainLane(self, offset)

    def finish(self) -> None:
        """Give the file its length."""
        self._sink.set_size(self.size)


class _PlainLane:
    def __init__(self, file: PlainFile, offset: int) -> None:
        self._file = file
        self._channel = file._sink.channel(offset)

    def write(self, data: Buffer) -> None:
        with self._file._errors():
            self._channel.write(data, self._file._cancelled)

    def skip(self, size: int) -> None:
        if not self._file.sparse:
            _write_zeros(self, size)
            return
        with self._file._errors():
            self._channel.seek(self._channel.position + size, self._file._cancelled)

    def clear(self, size: int) -> None:
        _write_zeros(self, size)

    def finish(self) -> None:
        with self._file._errors():
            self._channel.flush(self._file._cancelled)
        self._file.size = max(self._file.size, self._channel.position)


class FlattenedFile(_File):
    """The flattened layout: lanes one behind the other, as records in a stream."""

    def __init__(self, sink: Sink, cancelled: Cancelled) -> None:
        super().__init__(sink, cancelled)
        self._channel = sink.channel()
        self._buffer = np.empty(_RECORD_SIZE, np.uint8)
        self._ends = array("Q")
        self._put(flattened.file_header())

    @property
    def size(self) -> int:
        """Bytes of the stream so far."""
        return self._channel.position

    def lane(self, offset: int) -> Lane:
        """Open a lane at an offset of the standard file; the lane before must be finished."""
        return _FlattenedLane(self, offset)

    def record(self, offset: int, data: Buffer) -> None:
        """Write one record, whatever its size; not while a lane has bytes that wait for more."""
        self._put(flattened.record(offset, memoryview(data).nbytes))
        self._put(data)
        if self._sink.keeps:
            self._ends.append(self.size)

    def finish(self) -> None:
        """Write the end mark."""
        self._put(flattened.END_MARK)
        with self._errors():
            self._channel.flush(self._cancelled)
        self._sink.set_size(self.size)

    def cut(self, header: bytes) -> bool:
        """End a file that cannot be finished behind the last whole record; tell whether there is one.

        Parameters
        ----------
        header : bytes
            What the dump is to begin with instead; no longer than its first record.

        Raises
        ------
        SinkError
            Writing failed, or the sink does not keep.
        """
        with contextlib.suppress(VmdumpError), self._errors():
            self._channel.flush(_never)
        there = self._sink.end()
        ends = [end for end in self._ends if end <= there]
        if not ends:
            return False
        self._sink.set_size(ends[-1])
        first = flattened.FILE_HEADER_SIZE + flattened.RECORD.size
        for offset, data in ((ends[-1], flattened.END_MARK), (first, header)):
            with self._errors():
                channel = self._sink.channel(offset)
                channel.write(data, _never)
                channel.flush(_never)
        return True

    def _put(self, data: Buffer) -> None:
        with self._errors():
            self._channel.write(data, self._cancelled)


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
