"""The view of a guest without some types: what it says, and what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.filter_goldens import bitmaps, expected, memory, opened
from helpers.struct_pages import LRU, PAGE, flat, structs

import vmdump
from vmdump.errors import ExcludedPage
from vmdump.guest.blocks import file_runs
from vmdump.guest.linux.page_types.filter import Filtered, filtered
from vmdump.guest.linux.page_types.types import tell_types


@pytest.fixture(scope="module", params=["buffer", "file"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "buffer":
        return opened("6.12")
    path = tmp_path_factory.mktemp("guest") / "core"
    path.write_bytes(memory("6.12").tobytes())
    return vmdump.open(path)


def view_of_level(guest: Any, level: int) -> Any:
    return filtered(guest, tell_types(guest), level)


def kept_pages(level: str) -> np.ndarray:
    return bitmaps("6.12")[level]


def test_it_says_what_is_left_out(guest: Any) -> None:
    view = view_of_level(guest, 31)
    pages = expected("6.12")["max_mapnr"]
    excluded = bitmaps("6.12")["bitmap1"] & ~kept_pages("d31")
    assert np.array_equal(view.excluded_pages(0, pages) & bitmaps("6.12")["bitmap1"], excluded)
    assert view.excluded_size == PAGE * np.count_nonzero(excluded)
    assert view.dump_level == 31
    assert view.filtered.doubtful_pages == 0
    assert (guest.excluded_size, guest.dump_level, guest.filtered) == (0, 1, None)
    first = int(excluded.argmax())
    with pytest.raises(ExcludedPage):
        view.read(first * PAGE - 8, 16)
    kept = int(kept_pages("d31").argmax())
    assert view.read(kept * PAGE, 16) == guest.read(kept * PAGE, 16)


def test_any_range_of_pages(guest: Any) -> None:
    """Of one of the parts in which it is remembered, of several, and beyond the guest's end."""
    view = view_of_level(guest, 31)
    pages = expected("6.12")["max_mapnr"]
    excluded = np.zeros(2 * pages, bool)
    excluded[:pages] = view.filtered.excluded(0, pages)
    for begin, end in [(0, 2 * pages), (0, 0), (5, 5 + pages), (32767, 32769), (32768, 65536), (40, 41)]:
        assert np.array_equal(view.excluded_pages(begin, end - begin), excluded[begin:end])


def test_memory_has_what_is_kept_and_zeros_elsewhere(guest: Any) -> None:
    view = view_of_level(guest, 31)
    plain, part = guest.blocks[0].memory, view.blocks[0].memory
    kept = kept_pages("d31")
    random = np.random.RandomState(3)
    scratch = [np.empty(1 << 22, np.uint8) for _ in range(2)]
    for _ in range(60):
        begin = int(random.randint(0, plain.size - 1))
        length = int(min(random.randint(1, 1 << 22), plain.size - begin))
        want = np.array(plain.view(begin, length, scratch[0]))
        want[~kept[np.arange(begin, begin + length) // PAGE]] = 0
        assert np.array_equal(part.view(begin, length, scratch[1]), want)


@pytest.mark.parametrize("unit", [1, 512, PAGE])
def test_pages_here_and_there(unit: int) -> None:
    """What is left out between pages that lie near each other is read along, and zero."""
    pages = structs(4096)
    random = np.random.RandomState(4)
    out = random.random_sample(4096) < 0.3
    out[:512] = False
    pages["flags"][out] = LRU
    guest = flat(pages)
    view = view_of_level(guest, 2)
    plain, part = guest.blocks[0].memory, view.blocks[0].memory
    for _ in range(20):
        begin, length = (int(random.randint(1, 2048 * PAGE // unit)) * unit for _ in range(2))
        want = np.array(plain.view(begin, length, np.empty(0, np.uint8)))
        want[out[np.arange(begin, begin + length) // PAGE]] = 0
        assert np.array_equal(part.view(begin, length, np.empty(length, np.uint8)), want)


def test_data_runs_are_those_of_kept_pages(guest: Any) -> None:
    view = view_of_level(guest, 31)
    plain, part = guest.blocks[0].memory, view.blocks[0].memory
    kept = kept_pages("d31")[: plain.size // PAGE]
    data = np.zeros(kept.size, bool)
    for begin, end in part.extents():
        data[begin // PAGE : -(-end // PAGE)] = True
    there = np.zeros(kept.size, bool)
    for begin, end in plain.extents():
        there[begin // PAGE : -(-end // PAGE)] = True
    assert not (kept & there & ~data).any()
    assert np.count_nonzero(data) < 2 * np.count_nonzero(kept)
    offset, length = 3 * PAGE + 512, 4096 * PAGE
    runs, all_runs = (file_runs(memory, offset, length) for memory in (part, plain))
    assert (runs is None) == (all_runs is None)
    if runs is not None and all_runs is not None:
        covered = np.zeros(length, bool)
        for begin, end, fd, position in runs:
            assert not covered[begin:end].any()
            covered[begin:end] = True
            assert any(
                low <= begin < end <= high and fd == other and position - begin == at - low
                for low, high, other, at in all_runs
            )
        wanted = kept[np.arange(offset, offset + length) // PAGE]
        for begin, end, _, _ in all_runs:
            assert np.array_equal(covered[begin:end], wanted[begin:end])


def test_levels_add_up(guest: Any) -> None:
    twice = view_of_level(view_of_level(guest, 16), 8)
    assert twice.dump_level == 25
    pages = expected("6.12")["max_mapnr"]
    exists = bitmaps("6.12")["bitmap1"]
    assert np.array_equal(~twice.excluded_pages(0, pages) & exists, kept_pages("d24"))
    more = view_of_level(twice, 7)
    assert np.array_equal(~more.excluded_pages(0, pages) & exists, kept_pages("d31"))
    assert more.dump_level == 31


def test_pages_of_another_size(tmp_path: Path) -> None:
    """A dump may be of larger pages than the kernel's, or of smaller ones."""
    pages = structs(4096)
    pages["flags"][64:90] = LRU
    guest = flat(pages)
    types = tell_types(guest)

    class Base:
        blocks = guest.blocks
        page_size = 65536

    # Pages 64 to 79 make one of 64 KiB, and 80 to 95 are not all left out.
    assert np.flatnonzero(Filtered(Base, types, 2).excluded(0, 256)).tolist() == [4]
    types.page_size = 4 * PAGE
    small = Filtered(guest, types, 2)
    assert np.flatnonzero(small.excluded(250, 120)).tolist() == list(range(6, 110))


def test_long_runs_only(guest: Any) -> None:
    core = view_of_level(guest, 31).filtered.only_long_runs(256)
    size = core.blocks[0].size // PAGE
    left_out = core.excluded_pages(0, size)
    edges = np.flatnonzero(np.diff(left_out, prepend=False, append=False)).reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0]
    assert ((lengths >= 256) | (edges[:, 1] == size)).all()
    assert len(edges) > 5
    assert not (left_out & kept_pages("d31")[:size]).any()
