"""What is found in memory: what bytes.find() and re.finditer() find in memory without gaps, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.excluding import ExcludingSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import kdump_builder, small_dumps

import vmdump
from vmdump.errors import RequestError
from vmdump.readers import search

PAGE = 4096
CELL = 2 * PAGE
"""Instead of 1 MiB, so that the edges of what threads look at are many."""


@pytest.fixture(autouse=True)
def _small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CELL", CELL)


def places(data: bytes, pattern: bytes) -> Iterator[int]:
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def expected(runs: dict[int, bytes], find: Callable[[bytes], Iterator[int]]) -> list[int]:
    return [start + at for start, data in sorted(runs.items()) for at in find(data)]


WORDS = (b"\0", b"\0\0\0", b"ab", b"aba", b"abab" * 3, b"b" + bytes(5), bytes(3) + b"a", b"needle" * 40)


@st.composite
def memory(draw: st.DrawFn) -> tuple[list[tuple[int, np.ndarray]], set[int], dict[int, bytes]]:
    """Blocks with words at the edges of pages, some pages of them excluded, and the memory that is left."""
    blocks, left, excluded = [], {}, set()
    pfn = draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 6))
        data = bytearray(count * PAGE)
        for _ in range(draw(st.integers(0, 12))):
            word = draw(st.sampled_from(WORDS))
            edge = draw(st.integers(0, count)) * PAGE + draw(st.integers(-8, 8))
            at = min(max(edge, 0), len(data) - len(word))
            data[at : at + len(word)] = word
        blocks.append((pfn * PAGE, np.frombuffer(bytes(data), np.uint8)))
        gone = draw(st.sets(st.integers(0, count - 1), max_size=2))
        excluded |= {pfn + page for page in gone}
        for page in set(range(count)) - gone:
            left[pfn + page] = bytes(data[page * PAGE : (page + 1) * PAGE])
        pfn += count + draw(st.sampled_from([0, 0, 1, 40]))
    return blocks, excluded, joined(left)


def joined(pages: dict[int, bytes]) -> dict[int, bytes]:
    runs: dict[int, bytes] = {}
    begin = -1
    for pfn, page in sorted(pages.items()):
        if begin < 0 or begin * PAGE + len(runs[begin * PAGE]) != pfn * PAGE:
            begin = pfn
            runs[begin * PAGE] = b""
        runs[begin * PAGE] += page
    return runs


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    guest=memory(), pattern=st.sampled_from([*WORDS, b"eedlen", b"a" + bytes(4)]), threads=st.integers(1, 3)
)
def test_bytes_across_pages_and_blocks(
    guest: tuple[list[tuple[int, np.ndarray]], set[int], dict[int, bytes]], pattern: bytes, threads: int
) -> None:
    blocks, excluded, left = guest
    source = ExcludingSource(blocks, PAGE, excluded)
    found = list(vmdump.find(source, pattern, threads=threads))
    assert found == expected(left, lambda data: places(data, pattern))


EXPRESSIONS = [
    rb"[ab]+",
    rb"needle(?:needle)*",
    rb"\0{3}a",
    rb"(?<=\0)ab",
    rb"(?=aba)",
    rb"\A[^x]",
    rb"b(?!a)",
    rb".\Z",
    rb"\0[^\0]",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(guest=memory(), text=st.sampled_from(EXPRESSIONS), threads=st.integers(1, 3))
def test_expressions_across_pages_and_blocks(
    guest: tuple[list[tuple[int, np.ndarray]], set[int], dict[int, bytes]], text: bytes, threads: int
) -> None:
    blocks, excluded, left = guest
    pattern = re.compile(text, re.DOTALL)
    found = list(vmdump.find(ExcludingSource(blocks, PAGE, excluded), pattern, threads=threads))
    assert found == expected(left, lambda data: (match.start() for match in pattern.finditer(data)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(begin=st.integers(0, 3 * PAGE), length=st.integers(0, 3 * PAGE), at=st.integers(0, 3 * PAGE - 6))
def test_range(begin: int, length: int, at: int) -> None:
    data = bytearray(3 * PAGE)
    data[at : at + 6] = b"needle"
    found = list(vmdump.find(bytes(data), b"needle", begin=begin, length=length))
    assert found == list(places(bytes(data)[: begin + length], b"needle"))[: begin <= at]
    pattern = re.compile(rb"needle|\A\0")
    assert list(vmdump.find(bytes(data), pattern, begin=begin, length=length)) == [
        begin + match.start() for match in pattern.finditer(bytes(data)[begin : begin + length])
    ]


def test_matches_that_are_too_long_do_not_depend_on_where_threads_begin() -> None:
    data = bytes(100) + b"a" * (3 * PAGE) + bytes(PAGE - 100)
    found = list(vmdump.find(data, re.compile(rb"a+"), max_length=1000))
    assert found == list(range(100, 100 + 3 * PAGE, 1000))
    # One that cannot end after 1000 bytes is none, until it is short enough.
    found = list(vmdump.find(data, re.compile(rb"a+\0"), max_length=1000))
    assert found == [100 + 3 * PAGE + 1 - 1000]


def test_every_kind_of_dump() -> None:
    for dump in small_dumps.all_kinds():
        with vmdump.open(bytes(dump.data)) as opened:
            runs = joined({pfn + i: bytes(page) for pfn, pages in opened for i, page in enumerate(pages)})
            for pattern in (b"\2\2\2", b"\xfe\xff\0\1", b"\3", b"\0\0\0\0"):
                assert list(opened.find(pattern, threads=2)) == expected(
                    runs, lambda data, pattern=pattern: places(data, pattern)
                ), dump


def test_damaged_pages_break_matches(tmp_path: Path) -> None:
    pages = dict.fromkeys(range(8), b"needle" * 682 + b"need")
    file = tmp_path / "dump"
    file.write_bytes(kdump_builder.build_kdump(kdump_builder.Build(pages)))
    with vmdump.open(file) as dump:
        whole = list(dump.find(b"needneedle"))
        assert whole == [(pfn + 1) * PAGE - 4 for pfn in range(7)]
        stored = dump.stored_pages(3, 1)
        assert stored is not None
        at, size = int(stored.identities[0]), int(stored.sizes[0])
    damaged = bytearray(file.read_bytes())
    damaged[at : at + size] = b"\xff" * size
    file.write_bytes(damaged)
    skipped: list[tuple[int, int]] = []
    found = list(vmdump.find(file, b"needneedle", skipped=lambda *run: skipped.append(run)))
    assert found == [address for address in whole if address // PAGE not in (2, 3)]
    assert skipped == [(3 * PAGE, 4 * PAGE)]


def test_holes_are_passed_over(tmp_path: Path) -> None:
    """1 TiB with a word in its middle, at the edge of a hole: all cells would take an hour."""
    at = (1 << 39) - 3
    with (tmp_path / "ram").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(at)
        file.write(b"needle")
    told: list[tuple[int, int]] = []
    source = f"raw:{tmp_path}/ram?base=0"
    assert list(vmdump.find(source, b"needle", progress=lambda *moment: told.append(moment))) == [at]
    assert list(vmdump.find(source, re.compile(rb"\0{100}n.*?\0{100}"))) == [at - 100]
    assert 0 < len(told) < 10


def test_wrong_requests() -> None:
    for pattern, parameter in (
        (b"", "pattern"),
        ("text", "pattern"),
        (re.compile("text"), "pattern"),
        (re.compile(rb"a*"), "pattern"),
        (bytes(search.LONGEST + 1), "pattern"),
    ):
        with pytest.raises(RequestError) as caught:
            vmdump.find(bytes(PAGE), pattern)  # type: ignore[arg-type]
        assert caught.value.parameter == parameter
    for options in ({"begin": -1}, {"length": -1}, {"begin": 1, "length": 1 << 64}, {"threads": 0}):
        with pytest.raises(RequestError) as caught:
            vmdump.find(bytes(PAGE), b"a", **options)  # type: ignore[arg-type]
        assert caught.value.parameter in options
    with pytest.raises(RequestError) as caught:
        vmdump.find(bytes(PAGE), re.compile(rb"a"), max_length=0)
    assert caught.value.parameter == "max_length"


def test_numbers_are_pythons_own_and_a_search_can_be_dropped() -> None:
    found = vmdump.find(b"needle".ljust(PAGE), b"needle")
    assert type(next(found)) is int
    for pattern in (b"\0", re.compile(rb"\0")):
        endless = vmdump.find(bytes(64 * PAGE), pattern)
        assert [next(endless) for _ in range(3)] == [0, 1, 2]
        endless.close()  # type: ignore[attr-defined]
