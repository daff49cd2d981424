"""The write cache in front of pipes, sockets and terminals: readers that are slow, stall or go away."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from vmdump.errors import Cancelled
from vmdump.kernels.cache import WriteCache

ALIGN = 4096
MiB = 1 << 20


def pattern(size: int) -> bytes:
    """Bytes in which every aligned block differs from every other."""
    return (np.arange(size, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8).tobytes()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):  # a test may have closed it
            os.close(fd)


def forget_nowait(reading: int, writing: int) -> None:
    """Make a pipe refuse RWF_NOWAIT, as with older kernels: splice() into it does that for good."""
    with tempfile.TemporaryFile() as file:
        file.write(b"spliced")
        file.flush()
        os.splice(file.fileno(), writing, 7, offset_src=0)
    assert os.read(reading, 100) == b"spliced"


def read_all(fd: int, pause: float = 0.0, piece: int = MiB) -> tuple[threading.Thread, bytearray]:
    found = bytearray()

    def read() -> None:
        while data := os.read(fd, piece):
            found.extend(data)
            time.sleep(pause)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, found


@pytest.mark.parametrize(("pause", "piece"), [(0.0, MiB), (0.0, 100), (0.001, 1000)])
@pytest.mark.parametrize("old", [False, True])
def test_pipe(pipe: tuple[int, int], pause: float, piece: int, old: bool) -> None:
    reading, writing = pipe
    if old:
        forget_nowait(reading, writing)
    data = pattern(200_000)
    thread, found = read_all(reading, pause, piece)
    cache = WriteCache(writing, seekable=False, capacity=16 * ALIGN)
    for begin in range(0, 100_000, 999):
        cache.write(data[begin : min(begin + 999, 100_000)])
    cache.write(data[100_000:])
    cache.flush()
    os.close(writing)
    thread.join()
    assert cache.bytes_written == cache.position == len(data)
    assert bytes(found) == data


def test_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = pattern(3 * MiB)
        thread, found = read_all(theirs.fileno())
        cache = WriteCache(ours.fileno(), seekable=False)
        cache.write(data)
        cache.flush()
        ours.close()
        thread.join()
        assert bytes(found) == data


def test_terminal() -> None:
    """A terminal takes no RWF_NOWAIT: it is written in pieces after poll()."""
    leader, follower = os.openpty()
    try:
        tty.setraw(follower)
        data = pattern(50_000)
        found = bytearray()

        def read() -> None:
            while len(found) < len(data):
                found.extend(os.read(leader, 65536))

        thread = threading.Thread(target=read)
        thread.start()
        cache = WriteCache(follower, seekable=False)
        cache.write(data)
        cache.flush()
        thread.join()
        assert bytes(found) == data
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_goes_away(kind: str) -> None:
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = (end.detach() for end in socket.socketpair())
    try:
        cache = WriteCache(writing, seekable=False, capacity=ALIGN)
        cache.write(bytes(100))
        cache.flush()
        threading.Timer(0.05, os.close, (reading,)).start()
        with pytest.raises(BrokenPipeError):
            cache.write(bytes(16 * MiB))
        written = cache.bytes_written
        with pytest.raises(OSError, match=os.strerror(errno.EPIPE)):
            cache.flush()
        with pytest.raises(OSError, match=os.strerror(errno.EPIPE)):
            cache.write(b"x")
        assert cache.bytes_written == written
    finally:
        os.close(writing)


@pytest.fixture(params=["pipe", "old pipe", "socket", "terminal"])
def stalled(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor to something that nobody reads from."""
    if request.param == "socket":
        reading, writing = (end.detach() for end in socket.socketpair())
    elif request.param == "terminal":
        reading, writing = os.openpty()
        tty.setraw(writing)
    else:
        reading, writing = os.pipe()
        if request.param == "old pipe":
            forget_nowait(reading, writing)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("stalled", ["pipe", "old pipe", "socket"], indirect=True)
@pytest.mark.parametrize("how", ["write", "flush"])
def test_cancel_while_the_reader_stalls(stalled: int, how: str) -> None:
    """Without the question between attempts this would hang."""
    questions = 0

    def cancelled() -> bool:
        nonlocal questions
        questions += 1
        return questions > 3

    cache = WriteCache(stalled, seekable=False, capacity=MiB)
    size = 4 * MiB if how == "write" else MiB
    if how == "flush":
        for _ in range(8):  # a long write would not be kept in the buffer
            cache.write(bytes(size // 8))
    with pytest.raises(Cancelled):
        cache.write(bytes(size), cancelled) if how == "write" else cache.flush(cancelled)
    assert questions == 4
    assert 0 < cache.bytes_written < size
    with pytest.raises(OSError, match=os.strerror(errno.ECANCELED)):
        cache.flush()


def test_signals_arrive_while_the_reader_stalls(stalled: int) -> None:
    """Ctrl-C ends a write to what nobody reads."""
    cache = WriteCache(stalled, seekable=False)

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Alarm):
            cache.write(bytes(16 * MiB))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
