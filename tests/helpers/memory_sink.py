"""A sink in memory: no descriptor, and no more abilities than it claims."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from vmdump.errors import Cancelled
from vmdump.sinks import opening
from vmdump.sinks.base import Channel, Sink

PREFIX = "memory:"
_PART = 100_000
"""Bytes that a channel keeps before it hands them over; no multiple of a page."""


class MemorySink(Sink):
    """Bytes that are seen when they are published.

    Attributes
    ----------
    content : bytearray
        What was written.
    published : bytes or None
        What is seen.
    calls : list of str
        The methods called so far, those of channels included.
    fails_at : int
        The number of the call that fails, from 1 on; 0 for none.
    stalled : threading.Event or None
        Set when a channel waits for being cancelled, instead of writing; None for a sink that does not stall.
    """

    def __init__(
        self,
        name: str = "memory:dump",
        *,
        seekable: bool = False,
        sparse: bool = False,
        retractable: bool = False,
        fails_at: int = 0,
        stalls: bool = False,
    ) -> None:
        self.name = name
        self.seekable, self.sparse, self.retractable = seekable, sparse, retractable
        self.content = bytearray()
        self.published: bytes | None = None
        self.calls: list[str] = []
        self.fails_at = fails_at
        self.stalled = threading.Event() if stalls else None
        self._channels = 0

    def note(self, call: str) -> None:
        """Note a call, or fail; after a failure, nothing may be called that writes."""
        assert not self.failed, f"{call} after a failure"
        assert "close" not in self.calls, f"{call} after close"
        self.calls.append(call)
        if self.failed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def failed(self) -> bool:
        return 0 < self.fails_at <= len(self.calls)

    def put(self, position: int, data: bytes) -> None:
        # What is not sparse has something else, not zeros, where nothing was written.
        gap = position - len(self.content)
        assert gap <= 0 or self.seekable
        self.content.extend((b"\0" if self.sparse else b"\xee") * max(0, gap))
        self.content[position : position + len(data)] = data

    def channel(self, offset: int = 0) -> Channel:
        with self.errors("cannot write"):
            self.note("channel")
        assert self.seekable or (offset == 0 and self._channels == 0)
        self._channels += 1
        return MemoryChannel(self, offset)

    def begin(self, files: Iterable[object], in_use: Iterable[os.stat_result] = ()) -> None:
        with self.errors("cannot begin"):
            self.note("begin")

    def demand(self, size: int) -> None:
        with self.errors("cannot have so much"):
            self.note("demand")

    def clear(self) -> None:
        assert self.sparse
        with self.errors("cannot be emptied"):
            self.note("clear")
        self.content.clear()

    def set_size(self, size: int) -> None:
        with self.errors("cannot end"):
            self.note("set_size")
        if self.sparse:
            self.content.extend(bytes(max(0, size - len(self.content))))
        assert len(self.content) >= size
        del self.content[size:]

    def sync(self) -> None:
        with self.errors("cannot sync"):
            self.note("sync")

    def publish(self) -> None:
        with self.errors("cannot publish"):
            self.note("publish")
        self.published = bytes(self.content)

    def retract(self) -> None:
        assert self.retractable
        self.published = None

    def abort(self) -> None:
        self.calls.append("abort")
        self.content.clear()

    def close(self) -> None:
        assert "close" not in self.calls
        self.calls.append("close")


class MemoryChannel:
    def __init__(self, sink: MemorySink, position: int) -> None:
        self._sink = sink
        self._waiting = bytearray()
        self.position = position

    def write(self, data: object, cancelled: Callable[[], bool] | None = None) -> None:
        self._call("write", cancelled)
        piece = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._waiting += piece
        self.position += len(piece)
        if len(self._waiting) >= _PART:
            self._hand_over()

    def seek(self, offset: int, cancelled: Callable[[], bool] | None = None) -> None:
        assert self._sink.seekable
        self._call("seek", cancelled)
        self._hand_over()
        self.position = offset

    def flush(self, cancelled: Callable[[], bool] | None = None) -> None:
        self._call("flush", cancelled)
        self._hand_over()

    def _hand_over(self) -> None:
        self._sink.put(self.position - len(self._waiting), bytes(self._waiting))
        self._waiting.clear()

    def _call(self, name: str, cancelled: Callable[[], bool] | None) -> None:
        self._sink.note(name)
        if self._sink.stalled is not None:
            self._sink.stalled.set()
            assert cancelled is not None
            while not cancelled():
                time.sleep(0.001)
            raise Cancelled("cancelled while writing")


def register(monkeypatch: pytest.MonkeyPatch, *sinks: MemorySink) -> None:
    """Let the names of these sinks open them."""
    named = {sink.name: sink for sink in sinks}

    def open_memory(name: str, *, force: bool, cancelled: Callable[[], bool]) -> Sink | None:
        return named.get(name)

    monkeypatch.setattr(opening, "_KINDS", (open_memory, *opening._KINDS))
