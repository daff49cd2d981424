"""Bytes of a dump by offset: of a file, of a buffer and of a flattened stream, against what was put there."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.errors import FormatError
from vmdump.readers.bytes.file import BufferBytes, ByteFile, PlainBytes
from vmdump.readers.bytes.flattened import FlattenedBytes

DATA = bytes(range(1, 256)) * 40
FURTHEST = 400
RECORDS = st.lists(st.tuples(st.integers(0, FURTHEST), st.binary(min_size=1, max_size=90)), max_size=12)


def flattened(records: list[tuple[int, bytes]]) -> bytes:
    """A flattened file: a header, the records as they are given, the end mark."""
    header = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    body = b"".join(struct.pack(">qq", offset, len(data)) + data for offset, data in records)
    return header + body + struct.pack(">qq", -1, -1)


def put_in_place(records: list[tuple[int, bytes]]) -> bytes:
    """What the records make when they are written one after the other."""
    whole = bytearray(max((offset + len(data) for offset, data in records), default=0))
    for offset, data in records:
        whole[offset : offset + len(data)] = data
    return bytes(whole)


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[ByteFile]:
    """DATA in one of the ways in which a dump may be given."""
    if kind == "flattened":
        file: ByteFile = FlattenedBytes(BufferBytes(flattened([(5000, DATA[5000:]), (0, DATA[:5000])])))
    elif kind == "buffer":
        file = BufferBytes(DATA)
    else:
        (folder / "dump").write_bytes(DATA)
        file = PlainBytes(folder / "dump")
    yield file
    file.close()


def check_reads(file: ByteFile, expected: bytes, begin: int, end: int) -> None:
    assert file.size == len(expected)
    assert file.read(begin, end - begin) == expected[begin:end]
    out = np.empty(end - begin, np.uint8)
    file.read_into(begin, out)
    assert out.tobytes() == expected[begin:end]


@given(RECORDS, st.data())
def test_of_records_that_overlap_the_later_counts(
    records: list[tuple[int, bytes]], draw: st.DataObject
) -> None:
    expected = put_in_place(records)
    begin, end = sorted(draw.draw(st.tuples(*[st.integers(0, len(expected))] * 2)))
    check_reads(FlattenedBytes(BufferBytes(flattened(records))), expected, begin, end)


@pytest.mark.parametrize("kind", ["file", "buffer", "flattened"])
def test_bytes_are_where_they_were_put(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as file:
        for begin, end in (
            (0, len(DATA)),
            (0, 0),
            (4999, 5001),
            (len(DATA) - 1, len(DATA)),
            (len(DATA),) * 2,
        ):
            check_reads(file, DATA, begin, end)
        assert len(file.files) == (kind == "file")


@pytest.mark.parametrize("kind", ["file", "buffer", "flattened"])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(DATA) + 1), (len(DATA), 1), (-1, 1), (5, -1), (1 << 64, 1), (0, 1 << 64)]
)
def test_what_is_outside_is_an_error(kind: str, offset: int, length: int, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as file, pytest.raises(FormatError) as error:
        file.read(offset, length)
    assert file.path in str(error.value)


@pytest.mark.parametrize("kind", ["file", "buffer", "flattened"])
@pytest.mark.parametrize("filled", [0, 1, 4096, 8192])
def test_memory_has_zeros_behind_what_is_stored(kind: str, filled: int, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as file:
        memory = file.memory(100, 8192, filled)
        assert memory.size == 8192
        page = memory.view(0, 8192, np.full(8192, 7, np.uint8))
        assert page.tobytes() == DATA[100 : 100 + filled].ljust(8192, b"\0")
        del page, memory
