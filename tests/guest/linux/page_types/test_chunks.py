"""Types of chunks of pages of one type, and struct pages in holes: little memory, and nothing is read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from helpers.struct_pages import BUDDY, KEYS_6_12, LRU, PAGE, structs, text
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.guest.blocks import FileRuns, Pages
from vmdump.guest.linux.page_types.arrays import PageArray
from vmdump.guest.linux.page_types.types import PageTypes, tell_types
from vmdump.kernels.page_types import CACHE, FREE, KERNEL, POISONED, TAIL, UNKNOWN, USER, spread_type

CHUNK = 1 << 15
ARRAYS = [PageArray(0x1000, CHUNK, 0), PageArray(CHUNK + 0x1000, 2 * CHUNK, 0), PageArray(8 * CHUNK, 100, 0)]
END = 9 * CHUNK
KINDS = st.sampled_from([FREE, KERNEL, CACHE, TAIL, USER | POISONED])
RUNS = st.tuples(st.integers(0, END - 1), st.integers(1, 2 * CHUNK), KINDS)


def pieces() -> list[tuple[int, int]]:
    """Cut the arrays as they are told: at multiples of a chunk."""
    cuts = [
        sorted({a.first, a.first + a.pages, *range(-(-a.first // CHUNK) * CHUNK, a.first + a.pages, CHUNK)})
        for a in ARRAYS
    ]
    return [pair for cut in cuts for pair in pairwise(cut)]


@given(
    kinds=st.lists(KINDS, min_size=len(pieces()), max_size=len(pieces())),
    mixed=st.sets(st.integers(0, len(pieces()) - 1)),
    runs=st.lists(RUNS, max_size=6),
    window=st.tuples(st.integers(0, END), st.integers(0, END)),
)
def test_types_are_those_that_were_told(
    kinds: list[int], mixed: set[int], runs: list[tuple[int, int, int]], window: tuple[int, int]
) -> None:
    types, model = PageTypes(PAGE, ARRAYS), np.full(2 * END + 5, UNKNOWN, np.uint8)
    for index, ((begin, end), kind) in enumerate(zip(pieces(), kinds, strict=True)):
        piece = np.full(end - begin, kind, np.uint8)
        if index in mixed:
            piece[::7] = TAIL
        types.tell(begin, piece)
        model[begin:end] = piece
    types.spread(runs)
    known = np.zeros(model.size, np.bool_)
    for begin, end in pieces():
        known[begin:end] = True
    for first, count, kind in runs:
        spread = model[first : first + count].copy()
        spread_type(spread, kind)
        model[first : first + count] = np.where(known[first : first + count], spread, UNKNOWN)
    assert np.array_equal(types.of(0, END), model[:END])
    pfn, count = window
    assert np.array_equal(types.of(pfn, count), model[pfn : pfn + count])
    runs_of_pages = [(pfn // 2, pfn // 2 + 5), (pfn, pfn + count)]
    counted = sum(np.bincount(model[begin:end], minlength=256) for begin, end in runs_of_pages)
    assert np.array_equal(types.counts(runs_of_pages), counted)


class Hole:
    """Struct pages that are a hole of a file, of which nothing may be read."""

    copies = True

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self) -> Any:
        return iter(())

    def file_runs(self, offset: int, length: int) -> FileRuns:
        return []

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        raise AssertionError("a hole was read")


def guest_with_holes(size: int, *, read: bool = False) -> Any:
    """Make a guest whose struct pages lie at 1 TiB; those of its first chunk are there, the others a hole."""
    first = structs(CHUNK)
    first["flags"][:100] = LRU
    first["mapcount"][1024] = BUDDY
    first["private"][1024] = 10
    low: Any = np.zeros(64 * PAGE, np.uint8)
    array = 1 << 40
    low[0x2000:0x2008].view("<u8")[0] = array
    rest = size // PAGE * 64 - first.nbytes
    hole: Any = np.zeros(rest, np.uint8) if read else Hole(rest)
    lines = text({**KEYS_6_12, "SYMBOL(mem_map)": 0x2000})
    blocks: list[Any] = [(0, low), (low.size, Hole(size - low.size)), (array, first.view(np.uint8))]
    return vmdump.BlockSource(
        [*blocks, (array + first.nbytes, hole)], cpus=[{"cr0": 0, "cr3": 0, "cr4": 0}], vmcoreinfo=lines
    )


def test_holes_are_not_read_and_are_pages_of_zeros() -> None:
    size = 1 << 30
    with guest_with_holes(size) as guest, guest_with_holes(size, read=True) as same:
        types, expected = (tell_types(each, threads=2).of(0, size // PAGE) for each in (guest, same))
    assert np.array_equal(types, expected)
    assert (types[:100] == CACHE).all()
    assert (types[1024:2048] == FREE).all()
    assert (types[CHUNK:] == KERNEL).all()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_does_not_grow_with_what_is_of_one_type() -> None:
    size = 1 << 39
    with guest_with_holes(size) as guest:
        before = resident()
        types = tell_types(guest)
        grown = resident() - before
    assert types.of(size // PAGE - 1, 1)[0] == KERNEL
    # A byte for each page would be 128 MiB.
    assert grown < 32 << 20
