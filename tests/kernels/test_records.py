"""Records of a stream, put in place, against a plain Python reading of it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels import records

END = struct.pack(">qq", -1, -1)


def stream_of(pieces: list[tuple[int, bytes]], start: int = 0) -> bytes:
    return bytes(start) + b"".join(struct.pack(">qq", at, len(data)) + data for at, data in pieces) + END


@st.composite
def apart(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Records that do not overlap, in any order, some longer than the kernel's window."""
    pieces, at = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9000)), max_size=12)):
        pieces.append((at + gap, os.urandom(size)))
        at += gap + size
    return draw(st.permutations(pieces))


@given(apart(), st.integers(0, 30000), st.integers(0, 30000), st.booleans())
def test_scan_and_read(pieces: list[tuple[int, bytes]], offset: int, length: int, in_memory: bool) -> None:
    raw = stream_of(pieces, 100)
    truth = bytearray(max([at + len(data) for at, data in pieces], default=0) + 60000)
    for at, data in pieces:
        truth[at : at + len(data)] = data
    fd = os.memfd_create("stream")
    try:
        os.write(fd, raw)
        stream = np.frombuffer(raw, np.uint8) if in_memory else fd
        begins, ends, places, bad = records.scan(stream, len(raw), 100)
        assert bad is None
        assert [(int(b), int(e - b)) for b, e in zip(begins, ends, strict=True)] == [
            (at, len(data)) for at, data in pieces
        ]
        order = np.argsort(begins)
        out = np.full(length, 0xAA, np.uint8)
        records.read(stream, len(raw), begins[order], ends[order], places[order], offset, out)
        assert out.tobytes() == bytes(truth[offset : offset + length])
    finally:
        os.close(fd)


@pytest.mark.parametrize("count", [65535, 65536, 65537, 200000])
def test_more_records_than_one_call_takes(count: int) -> None:
    raw = np.frombuffer(stream_of([(at, b"x") for at in range(count)]), np.uint8)
    begins, ends, places, bad = records.scan(raw, raw.size, 0)
    assert bad is None
    assert np.array_equal(begins, np.arange(count))
    assert np.array_equal(ends, begins + 1)
    assert np.array_equal(places, 17 * begins + 16)


@pytest.mark.parametrize(
    ("tail", "bad"),
    [
        (b"", 20),
        (END[:15], 20),
        (struct.pack(">qq", -2, 4) + b"four", 20),
        (struct.pack(">qq", 4, -1) + b"four", 20),
        (struct.pack(">qq", 4, 0) + END, 20),
        (struct.pack(">qq", 4, 5) + b"four", 20),
        (struct.pack(">qq", (1 << 63) - 4, 5) + b"fours", 20),
        (struct.pack(">qq", 4, (1 << 63) - 1) + b"four", 20),
    ],
)
def test_streams_that_go_wrong(tail: bytes, bad: int) -> None:
    raw = struct.pack(">qq", 0, 4) + b"zero" + tail
    begins, *_, found = records.scan(np.frombuffer(raw, np.uint8), len(raw), 0)
    assert (len(begins), found) == (1, bad)


def test_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    raw = stream_of([(0, bytes(10000)), (10000, bytes(10000))])
    path.write_bytes(raw)
    with path.open("r+b") as file:
        table = records.scan(file.fileno(), len(raw), 0)[:3]
        file.truncate(12000)
        with pytest.raises(OSError, match="the file ended") as scanning:
            records.scan(file.fileno(), len(raw), 0)
        with pytest.raises(OSError, match="the file ended") as reading:
            records.read(file.fileno(), len(raw), *table, 9000, np.empty(5000, np.uint8))
    assert scanning.value.errno is None
    assert reading.value.errno is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        records.scan(file_number_that_is_closed(), len(raw), 0)


def file_number_that_is_closed() -> int:
    fd = os.memfd_create("closed")
    os.close(fd)
    return fd


def test_tables_that_lie() -> None:
    raw = np.zeros(100, np.uint8)
    out = np.empty(10, np.uint8)

    def numbers(*values: int) -> np.ndarray:
        return np.array(values, np.uint64)

    for begins, ends, places in [
        (numbers(0), numbers(10), numbers(91)),
        (numbers(0), numbers(10), numbers((1 << 64) - 1)),
        (numbers(0, 4), numbers(6, 10), numbers(0, 0)),
        (numbers(5), numbers(3), numbers(0)),
    ]:
        with pytest.raises(ValueError, match="leaves the stream"):
            records.read(raw, 100, begins, ends, places, 0, out)
    with pytest.raises(ValueError, match="not a stream of"):
        records.scan(raw, 99, 0)
    with pytest.raises(ValueError, match="2 ends"):
        records.read(raw, 100, numbers(0), numbers(1, 2), numbers(0), 0, out)
