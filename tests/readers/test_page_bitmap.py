"""Bitmaps of pages that are here and there in a large memory, against sets of numbers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from helpers.command import run_measured
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.readers.bitmap import WINDOW, PageBitmap, read_bitmap
from vmdump.readers.bytes.file import BufferBytes, PlainBytes

PAGE = 4096
FAR = 0x200080000000
"""Where pseries has the memory of its graphics card: 32 TiB, and 2 GiB."""

# Windows begin and end at multiples of 2^15 pages; runs cross them, and lie far from each other.
RUNS = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda n: n * WINDOW) | st.integers(0, 40 * WINDOW),
        st.integers(1, 70) | st.integers(1, 3 * WINDOW),
    ),
    max_size=4,
)


def bitmap_of(pages: set[int], size: int, in_file: bool) -> PageBitmap:
    """Read the bitmap from a buffer, or from a file with holes; behind its end all bits are set."""
    flags = np.ones(-(-size // 8) * 8, np.uint8)
    flags[:size] = 0
    flags[list(pages)] = 1
    data = b"head" + np.packbits(flags, bitorder="little").tobytes() + b"\xff" * 9
    if not in_file:
        return read_bitmap(BufferBytes(data), 4, size)
    with tempfile.NamedTemporaryFile() as file:
        for begin in range(0, len(data), PAGE):
            if any(data[begin : begin + PAGE]):
                os.pwrite(file.fileno(), data[begin : begin + PAGE], begin)
        opened = PlainBytes(file.name)
        try:
            return read_bitmap(opened, 4, size)
        finally:
            opened.close()


def runs_of(pages: set[int]) -> list[list[int]]:
    begins = sorted(pfn for pfn in pages if pfn - 1 not in pages)
    ends = sorted(pfn + 1 for pfn in pages if pfn + 1 not in pages)
    return [list(run) for run in zip(begins, ends, strict=True)]


@given(RUNS, st.integers(1, 43 * WINDOW), st.booleans(), st.data())
def test_against_sets(runs: list[tuple[int, int]], size: int, in_file: bool, data: st.DataObject) -> None:
    pages = {pfn for begin, count in runs for pfn in range(begin, min(begin + count, size))}
    bitmap = bitmap_of(pages, size, in_file)
    assert (bitmap.size, bitmap.total) == (size, len(pages))
    found = bitmap.runs(1 << 20)
    assert found is not None
    assert found.tolist() == runs_of(pages)
    assert bitmap.runs(len(found) - 1) is None or not pages
    pfn = data.draw(st.integers(0, size), "pfn")
    assert bitmap.rank(pfn) == sum(1 for page in pages if page < pfn)
    assert bitmap.has(pfn) is (pfn in pages)
    assert not bitmap.has(-1)
    count = data.draw(st.integers(1, 2 * WINDOW), "count")
    assert np.flatnonzero(bitmap.select(pfn, count)).tolist() == sorted(
        page - pfn for page in pages if pfn <= page < pfn + count
    )
    walked: set[int] = set()
    begin = pfn
    while len(some := bitmap.next_runs(begin, size)):
        assert begin <= some[0, 0]
        walked.update(*(range(*run) for run in some.tolist()))
        begin = int(some[-1, 1])
    assert walked == {page for page in pages if page >= pfn}


@given(RUNS, RUNS, st.integers(1, 43 * WINDOW))
def test_pages_of_both(first: list[tuple[int, int]], second: list[tuple[int, int]], size: int) -> None:
    sets = [{pfn for a, n in runs for pfn in range(a, min(a + n, size))} for runs in (first, second)]
    both = bitmap_of(sets[0], size, False) | bitmap_of(sets[1], size, False)
    found = both.runs(1 << 20)
    assert found is not None
    assert found.tolist() == runs_of(sets[0] | sets[1])


def test_memory_of_a_device_at_32_tib(tmp_path: Path) -> None:
    """Bitmaps of 1 GiB each that hold two pieces: dumped, read, checked, repaired and written again."""
    near, far = os.urandom(4 * PAGE), os.urandom(2 * PAGE)
    path, whole, again = tmp_path / "dump", tmp_path / "whole", tmp_path / "again"
    vmdump.dump([(0, near), (FAR, far)], path)
    with vmdump.open(path) as dump:
        assert [(block.start, block.memory.size) for block in dump.blocks] == [(0, 4 * PAGE), (FAR, 2 * PAGE)]
        assert dump.read(0, len(near)) == near
        assert dump.pages(FAR // PAGE, 2).tobytes() == far
        assert FAR - 1 not in dump
    for words in (("verify", path), ("repair", path, whole), ("convert", path, again, "-f", "kdump-lzo")):
        code, said, peak = run_measured(*words)
        assert code == 0, said
        assert peak < 100 << 20, words
    for copy in (whole, again):
        assert copy.stat().st_blocks * 512 < 4 << 20
        with vmdump.open(copy) as dump:
            assert dump.read(FAR, len(far)) == far
