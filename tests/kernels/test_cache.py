"""The write cache in front of files: contents, alignment, holes, failures and cancelling."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.errors import Cancelled
from vmdump.kernels.cache import WriteCache

ALIGN = 4096
MiB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "out", os.O_CREAT | os.O_RDWR, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def direct(tmp_path: Path, file: int) -> Iterator[int]:
    """The same file with O_DIRECT."""
    try:
        fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"{tmp_path} has no O_DIRECT: {error.strerror}")
    yield fd
    os.close(fd)


def pattern(size: int) -> bytes:
    """Bytes in which every aligned block differs from every other."""
    return (np.arange(size, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8).tobytes()


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


# --- files --------------------------------------------------------------------------------------------------


def test_small_writes_are_coalesced(file: int) -> None:
    cache = WriteCache(file, seekable=True, capacity=2 * ALIGN)
    data = pattern(3 * ALIGN)
    for begin in range(0, len(data), 100):
        cache.write(data[begin : begin + 100])
        assert cache.position == min(begin + 100, len(data))
        assert cache.bytes_written == os.fstat(file).st_size
        assert cache.bytes_written % (2 * ALIGN) == 0
    cache.flush()
    assert cache.bytes_written == cache.position == len(data)
    assert content(file) == data


def test_any_buffer(file: int) -> None:
    cache = WriteCache(file, seekable=True)
    data = pattern(ALIGN)
    for buffer in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), b""):
        cache.write(buffer)
    with pytest.raises(TypeError):
        cache.write(None)  # type: ignore[arg-type]
    cache.flush()
    assert content(file) == 4 * data


def test_nothing_is_written_before_it_must_be(file: int) -> None:
    cache = WriteCache(file, seekable=True)
    cache.write(b"lost")
    del cache
    assert content(file) == b""


def test_seek_leaves_a_hole(file: int) -> None:
    cache = WriteCache(file, seekable=True, capacity=ALIGN, offset=10)
    cache.write(b"first")
    cache.seek(15)  # where it is: no flush
    assert cache.bytes_written == 0
    cache.seek(64 * MiB)
    assert cache.bytes_written == 5
    cache.write(b"last")
    cache.seek(0)
    cache.write(b"header")
    cache.flush()
    assert os.pread(file, 20, 0) == b"header" + bytes(4) + b"first" + bytes(5)
    assert os.fstat(file).st_size == 64 * MiB + 4
    assert os.pread(file, 4, 64 * MiB) == b"last"
    assert os.fstat(file).st_blocks * 512 < MiB


def test_large_writes_bypass_the_buffer(file: int) -> None:
    cache = WriteCache(file, seekable=True, capacity=ALIGN)
    data = pattern(40 * MiB)  # more than one system call's worth
    cache.write(data)
    assert cache.bytes_written > 40 * MiB - ALIGN
    cache.write(b"end")
    cache.flush()
    assert content(file) == data + b"end"


def test_direct_writes(file: int, direct: int) -> None:
    data = np.zeros(4 * MiB + ALIGN, np.uint8)
    aligned = data[-data.ctypes.data % ALIGN :][: 4 * MiB]
    aligned[:] = np.frombuffer(pattern(4 * MiB), np.uint8)
    for offset, begin, end in (
        (0, 0, 4 * MiB),
        (0, 1, 3 * MiB + 1),
        (513, 0, 4 * MiB),
        (513, 513, 4 * MiB - 7),
        (ALIGN - 1, 3, 999_999),
    ):
        os.ftruncate(file, 0)
        cache = WriteCache(file, seekable=True, capacity=64 * ALIGN, direct_fd=direct, offset=offset)
        cache.write(aligned[begin:end])
        cache.flush()
        cache.write(aligned[:ALIGN])  # behind a ragged end
        cache.flush()
        expected = bytes(offset) + aligned[begin:end].tobytes() + aligned[:ALIGN].tobytes()
        assert content(file) == expected, (offset, begin, end)
        assert cache.bytes_written == len(expected) - offset


@pytest.mark.parametrize("bypass", [False, True])
def test_direct_gets_what_is_aligned_and_nothing_else(file: int, tmp_path: Path, bypass: bool) -> None:
    """With a second file in the place of the O_DIRECT descriptor, it shows who wrote what."""
    second = os.open(tmp_path / "second", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        cache = WriteCache(file, seekable=True, capacity=(20 if bypass else 64) * ALIGN, direct_fd=second)
        room = np.frombuffer(pattern(42 * ALIGN), np.uint8).copy()
        data = room[-room.ctypes.data % ALIGN :][: 40 * ALIGN + 7]  # as aligned in memory as in the file
        cache.write(data[:100])
        cache.flush()
        cache.write(data[100:])
        cache.flush()
        plain, direct = content(file), content(second)
    finally:
        os.close(second)
    whole = data.tobytes()
    middle = slice(ALIGN, 40 * ALIGN)
    assert len(direct) == middle.stop
    assert direct[middle] == whole[middle]
    assert not any(direct[: middle.start])
    assert len(plain) == len(whole)
    assert not any(plain[middle])
    assert plain[: middle.start] + plain[middle.stop :] == whole[: middle.start] + whole[middle.stop :]


def test_a_direct_descriptor_that_refuses_is_left(file: int) -> None:
    """Some file systems open with O_DIRECT and then say EINVAL, as this file does to what is no number."""
    refusing = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.pwrite(refusing, pattern(ALIGN), 0)
        cache = WriteCache(file, seekable=True, capacity=20 * ALIGN, direct_fd=refusing)
        cache.write(pattern(40 * ALIGN))
        cache.flush()
    finally:
        os.close(refusing)
    assert content(file) == pattern(40 * ALIGN)


def test_short_pieces_go_through_the_page_cache(file: int, tmp_path: Path) -> None:
    second = os.open(tmp_path / "second", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        cache = WriteCache(file, seekable=True, capacity=64 * ALIGN, direct_fd=second)
        cache.write(pattern(15 * ALIGN))
        cache.seek(64 * ALIGN)
        cache.write(pattern(16 * ALIGN))
        cache.flush()
        assert content(file) == pattern(15 * ALIGN)
        assert content(second) == bytes(64 * ALIGN) + pattern(16 * ALIGN)
    finally:
        os.close(second)


Script = list[tuple[str, int, int]]
KiB = 1 << 10


@st.composite
def scripts(draw: st.DrawFn, sizes: st.SearchStrategy[int], max_size: int) -> Script:
    """Draw calls: verb, bytes or offset, and where in memory the data begins."""
    step = st.tuples(
        st.sampled_from(["write", "write", "seek", "flush"]),
        sizes,
        st.sampled_from([0, 0, 1, 3, 512, ALIGN - 1]),
    )
    return draw(st.lists(step, max_size=max_size))


def check_script(script: Script, capacity: int, offset: int, with_direct: bool, data: np.ndarray) -> None:
    """Run a script against a bytearray that grows like a sparse file."""
    model, at, writes = bytearray(), offset, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        direct_fd = -1
        if with_direct:
            with suppress(OSError):
                direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            cache = WriteCache(fd, seekable=True, capacity=capacity, direct_fd=direct_fd, offset=offset)
            for verb, number, shift in script:
                if verb == "write":
                    piece = (
                        data[shift : shift + number].copy() if shift == 1 else data[shift : shift + number]
                    )
                    cache.write(piece)
                    if number:
                        model.extend(bytes(max(0, at + number - len(model))))
                        model[at : at + number] = piece.tobytes()
                    if shift == 1:
                        piece[:] = 0xEE  # free for reuse
                    at += number
                    writes += number
                elif verb == "seek":
                    cache.seek(number)
                    at = number
                else:
                    cache.flush()
                    assert content(fd) == model
                assert cache.position == at
            cache.flush()
            assert cache.bytes_written == writes
            assert content(fd) == model
        finally:
            os.close(fd)
            if direct_fd >= 0:
                os.close(direct_fd)


def aligned_pattern(size: int) -> np.ndarray:
    room = np.empty(size + ALIGN, np.uint8)
    data = room[-room.ctypes.data % ALIGN :][:size]
    data[:] = np.frombuffer(pattern(size), np.uint8)
    return data


SHORT_DATA = aligned_pattern(8 * ALIGN)
LONG_DATA = aligned_pattern(2 * MiB)
short_sizes = st.integers(0, 3 * ALIGN) | st.sampled_from([ALIGN, 2 * ALIGN, 2 * ALIGN + 1, 5 * ALIGN])
long_sizes = st.sampled_from(
    [1, 100, ALIGN, 256 * KiB - 1, 256 * KiB, 256 * KiB + 1, 300_000, 512 * KiB, MiB, MiB + 5]
)


@given(
    script=scripts(short_sizes, 12),
    pages=st.integers(1, 4),
    offset=st.integers(0, 2 * ALIGN),
    with_direct=st.booleans(),
)
def test_any_sequence(script: Script, pages: int, offset: int, with_direct: bool) -> None:
    check_script(script, pages * ALIGN, offset, with_direct, SHORT_DATA)


@given(
    script=scripts(long_sizes, 8),
    capacity=st.sampled_from([128 * KiB, 256 * KiB, 512 * KiB, MiB]),
    offset=st.sampled_from([0, 0, 1, 512, ALIGN]),
    with_direct=st.booleans(),
)
def test_any_sequence_of_long_writes(script: Script, capacity: int, offset: int, with_direct: bool) -> None:
    """Writes from 256 KiB on go past the buffer, behind what is in it."""
    check_script(script, capacity, offset, with_direct, LONG_DATA)


@pytest.mark.parametrize("pending", [0, 1, ALIGN, 100_000])
@pytest.mark.parametrize(
    ("capacity", "size", "bypasses"),
    [
        (MiB, 256 * KiB - 1, False),
        (MiB, 256 * KiB, True),
        (MiB, MiB + 1, True),
        (128 * KiB, 128 * KiB - 1, False),
        (128 * KiB, 128 * KiB, True),
    ],
)
def test_long_writes_bypass_the_buffer(
    file: int, pending: int, capacity: int, size: int, bypasses: bool
) -> None:
    cache = WriteCache(file, seekable=True, capacity=capacity)
    cache.write(LONG_DATA[:pending])
    assert cache.bytes_written == 0
    cache.write(LONG_DATA[pending : pending + size])
    if bypasses:
        assert cache.bytes_written == pending + size
        assert content(file) == LONG_DATA[: pending + size].tobytes()
    else:
        assert cache.bytes_written in (0, capacity)
    cache.write(b"end")
    cache.flush()
    assert content(file) == LONG_DATA[: pending + size].tobytes() + b"end"


@pytest.mark.parametrize("shift", [0, 1, 512, ALIGN - 1])
def test_long_writes_to_o_direct_are_as_aligned_as_the_file(file: int, tmp_path: Path, shift: int) -> None:
    """What is not would go through the page cache: it is put into the buffer, which is."""
    second = os.open(tmp_path / "second", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        cache = WriteCache(file, seekable=True, capacity=MiB, direct_fd=second)
        cache.write(LONG_DATA[shift : shift + 512 * KiB])
        assert cache.bytes_written == (0 if shift else 512 * KiB)
        cache.flush()
        assert content(second) == LONG_DATA[shift : shift + 512 * KiB].tobytes()
        assert content(file) == b""
    finally:
        os.close(second)


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seekable", [False, True])
def test_a_full_disk(seekable: bool) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        cache = WriteCache(fd, seekable=seekable, capacity=ALIGN)
        cache.write(b"kept")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as error:
            cache.flush()
        assert error.value.errno == errno.ENOSPC
        assert cache.bytes_written == 0
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            cache.flush()
        if seekable:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                cache.seek(0)
    finally:
        os.close(fd)


def test_a_file_that_may_not_grow(file: int) -> None:
    """A write that comes out short is continued, and the error then names the reason."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        cache = WriteCache(file, seekable=True, capacity=ALIGN)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            cache.write(pattern(5 * ALIGN))
        assert cache.bytes_written == 10_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert content(file) == pattern(5 * ALIGN)[:10_000]


def test_a_closed_descriptor(file: int) -> None:
    closed = os.dup(file)
    cache = WriteCache(closed, seekable=True)
    os.close(closed)
    cache.write(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        cache.flush()


def test_cancel_between_large_writes(file: int) -> None:
    answers = iter([False, True])
    cache = WriteCache(file, seekable=True)
    data = bytes(64 * MiB)
    with pytest.raises(Cancelled):
        cache.write(data, lambda: next(answers))
    assert 0 < cache.bytes_written < len(data)


def test_an_error_of_the_question_is_passed_on(file: int) -> None:
    def cancelled() -> bool:
        raise LookupError("nobody to ask")

    cache = WriteCache(file, seekable=True)
    with pytest.raises(LookupError, match="nobody"):
        cache.write(b"x", cancelled)
    with pytest.raises(OSError, match=os.strerror(errno.ECANCELED)):
        cache.write(b"x")
    assert content(file) == b""


def test_the_question_may_not_write(file: int) -> None:
    def write(cache: WriteCache) -> None:
        cache.write(b"x")

    def seek(cache: WriteCache) -> None:
        cache.seek(9)

    for inside in (write, WriteCache.flush, seek):
        cache = WriteCache(file, seekable=True)
        with pytest.raises(RuntimeError, match="in use"):
            cache.write(b"x", partial(inside, cache))  # type: ignore[arg-type]


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -ALIGN, ALIGN - 1, ALIGN + 1])
def test_capacity_is_checked(file: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        WriteCache(file, seekable=True, capacity=capacity)


def test_offsets_are_checked(file: int) -> None:
    makers: list[Callable[[int], object]] = [
        lambda offset: WriteCache(file, seekable=True, offset=offset),
        WriteCache(file, seekable=True).seek,
    ]
    for make in makers:
        for offset in (-1, 1 << 63):
            with pytest.raises(ValueError, match="offset"):
                make(offset)
    with pytest.raises(ValueError, match="no other file offset"):
        WriteCache(file, seekable=False).seek(0)


def test_a_file_that_appends_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        with pytest.raises(ValueError, match="appends"):
            WriteCache(fd, seekable=True)
        WriteCache(fd, seekable=False)
    finally:
        os.close(fd)
