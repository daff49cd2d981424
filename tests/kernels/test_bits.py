"""Bitmaps against numpy's packbits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels import bits

Bools = npt.NDArray[np.bool_]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Bools, int, int]:
    """A bitmap as booleans (long runs and single bits), and a window in it."""
    runs = draw(st.lists(st.integers(0, 200) | st.integers(0, 3), max_size=12))
    flags = np.zeros(sum(runs) + -sum(runs) % 8, np.bool_)
    at = 0
    for index, run in enumerate(runs):
        flags[at : at + run] = index % 2 == 0
        at += run
    begin = draw(st.integers(0, flags.size))
    return flags, begin, draw(st.integers(begin, flags.size))


def pack(flags: Bools) -> npt.NDArray[np.uint8]:
    return np.packbits(flags, bitorder="little")


@given(windows())
def test_set_range(case: tuple[Bools, int, int]) -> None:
    flags, begin, end = case
    bitmap = pack(flags)
    bits.set_range(bitmap, begin, end)
    flags[begin:end] = True
    assert bitmap.tolist() == pack(flags).tolist()


@given(windows())
def test_count(case: tuple[Bools, int, int]) -> None:
    flags, begin, end = case
    assert bits.count(pack(flags), begin, end) == flags[begin:end].sum()


@given(windows())
def test_runs(case: tuple[Bools, int, int]) -> None:
    flags, begin, end = case
    steps = np.diff(np.concatenate(([0], flags[begin:end].astype(np.int8), [0])))
    expected = np.stack((np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)), axis=1) + begin
    found = bits.runs(pack(flags), begin, end)
    assert found.dtype == np.uint64
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_equal(data: bytes, position: int, shorter: bool) -> None:
    other = bytearray(data)
    assert bits.equal(data, other)
    if shorter:
        assert not bits.equal(data, other + b"\0")
    elif data:
        other[position % len(data)] ^= 1
        assert not bits.equal(data, other)


def test_neighbours_are_left_alone() -> None:
    bitmap = np.zeros(4, np.uint8)
    bits.set_range(bitmap[1:3], 0, 16)
    assert bitmap.tolist() == [0, 0xFF, 0xFF, 0]
    bits.set_range(bitmap[:1], 3, 5)
    assert bitmap.tolist() == [0b11000, 0xFF, 0xFF, 0]


@pytest.mark.parametrize("function", [bits.set_range, bits.count, bits.runs])
@pytest.mark.parametrize(
    ("begin", "end", "error"),
    [
        (-1, 4, ValueError),
        (5, 4, ValueError),
        (0, 17, IndexError),
        (0, 1 << 70, IndexError),
        (17, 17, IndexError),
    ],
)
def test_ranges_are_checked(function: Any, begin: int, end: int, error: type[Exception]) -> None:
    bitmap = np.zeros(2, np.uint8)
    with pytest.raises(error):
        function(bitmap, begin, end)
    assert not bitmap.any()


def test_buffers() -> None:
    assert bits.count(b"\xff\x01", 0, 16) == 9
    assert bits.runs(b"", 0, 0).shape == (0, 2)
    with pytest.raises((BufferError, ValueError)):
        bits.set_range(b"\0", 0, 8)
