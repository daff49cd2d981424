"""Any guest of which the host has lost some pages, to kdump: all else is there, and the lost are named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.elf import ElfCore
from oracles.flattened import Flattened
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump
from vmdump.arch import arch_by_name
from vmdump.guest.blocks import Block
from vmdump.sources.base import StillSource

SMALL = 4096
"""The host loses pages of this size, whatever the guest's page size is."""
CHUNK = 4 << 20


class Damaged:
    """Memory of which some pages of the host read as zeros; each is noted when it is read."""

    copies = True

    def __init__(self, start: int, memory: np.ndarray, lost: set[int], noted: set[int]) -> None:
        self._start = start
        self._memory = memory
        self._lost = lost
        self._noted = noted

    @property
    def size(self) -> int:
        return len(self._memory)

    def extents(self) -> Iterator[tuple[int, int]]:
        data = np.flatnonzero(self._memory.reshape(-1, SMALL).any(axis=1))
        pages = sorted({*data.tolist(), *self._lost})
        return iter([(page * SMALL, (page + 1) * SMALL) for page in pages])

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        out = scratch[:length]
        out[:] = self._memory[offset : offset + length]
        for page in self._lost:
            begin, end = page * SMALL, (page + 1) * SMALL
            if begin < offset + length and offset < end:
                out[max(begin - offset, 0) : end - offset] = 0
                self._noted.add(self._start + begin)
        return out


class DamagedGuest(StillSource):
    """A guest of such memory."""

    def __init__(self, blocks: list[tuple[int, np.ndarray, set[int]]], *, arch: str, page_size: int) -> None:
        self._noted: set[int] = set()
        super().__init__(
            [Block(start, Damaged(start, memory, lost, self._noted)) for start, memory, lost in blocks],
            arch_by_name(arch),
            page_size=page_size,
        )

    @property
    def unreadable(self) -> list[tuple[int, int]]:  # type: ignore[override]
        return merged({(address, address + SMALL) for address in self._noted})


def merged(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and found[-1][1] == begin:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


def bits(bitmap: bytes) -> set[int]:
    octets = np.frombuffer(bitmap, np.uint8)
    return set(np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist())


def check(
    blocks: list[tuple[int, np.ndarray, set[int]]], *, arch: str, page_size: int, codec: str, layout: str
) -> None:
    """Dump, and compare with the memory that was made here."""
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        path = Path(folder) / "guest"
        guest = DamagedGuest(blocks, arch=arch, page_size=page_size)
        report = vmdump.dump(guest, path, format=f"kdump-{codec}", layout=layout, threads=2)
        if layout == "flattened":
            Flattened(path).rearrange(Path(folder) / "standard")
            path = Path(folder) / "standard"
        dump = Kdump(path)
        everything, kept, lost_ranges = set(), {}, set()
        for start, memory, lost in blocks:
            lost_here = {page * SMALL // page_size for page in lost}
            lost_ranges |= {(start + page * SMALL, start + (page + 1) * SMALL) for page in lost}
            for number, page in enumerate(memory.reshape(-1, page_size)):
                pfn = start // page_size + number
                everything.add(pfn)
                if number not in lost_here:
                    kept[pfn] = page.tobytes()
        assert bits(dump.bitmap1) == everything
        assert bits(dump.bitmap2) == set(kept)
        found = dict(dump.pages())
        assert found.keys() == kept.keys()
        for pfn, page in kept.items():
            assert found[pfn] == page, f"page {pfn:#x}"
        assert report.excluded_pages == len(everything) - len(kept)
        assert list(report.unreadable) == merged(lost_ranges)
        zero = sum(not any(page) for page in kept.values())
        assert report.zero_pages == zero
        assert report.zero_pages + report.plain_pages + report.compressed_pages == len(kept)
        plain = sum(1 for row in dump.descriptors if row["flags"] == 0)
        assert report.plain_pages == plain - zero


@st.composite
def damaged_blocks(draw: st.DrawFn, page_size: int) -> list[tuple[int, np.ndarray, set[int]]]:
    blocks = []
    pfn = draw(st.sampled_from([0, 1, 7, 8, 0xFFF8, (1 << 32) // page_size - 3]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(1, 4))):
        pages = draw(st.integers(1, 24))
        memory = np.zeros((pages, page_size), np.uint8)
        for page in draw(st.sets(st.integers(0, pages - 1))):
            kind = draw(st.sampled_from(["noise", "text", "edge"]))
            if kind == "noise":
                memory[page] = rng.integers(0, 256, page_size, np.uint8)
            elif kind == "text":
                memory[page] = np.resize(np.frombuffer(b"%d crash> bt -a " % page, np.uint8), page_size)
            else:
                memory[page, -1] = 1
        host_pages = pages * page_size // SMALL
        lost = draw(st.sets(st.integers(0, host_pages - 1), max_size=12))
        blocks.append((pfn * page_size, memory.reshape(-1), lost))
        pfn += pages + draw(st.integers(0, 20))
    return blocks


@pytest.mark.parametrize("layout", ["standard", "flattened"])
@pytest.mark.parametrize("codec", sorted(CODEC_FLAGS))
@settings(max_examples=20)
@given(data=st.data())
def test_all_but_the_lost_pages(codec: str, layout: str, data: st.DataObject) -> None:
    check(data.draw(damaged_blocks(SMALL)), arch="x86_64", page_size=SMALL, codec=codec, layout=layout)


@pytest.mark.parametrize("layout", ["standard", "flattened"])
@pytest.mark.parametrize(("arch", "page_size"), [("aarch64", 65536), ("ppc64", 16384)])
@settings(max_examples=12)
@given(data=st.data())
def test_pages_bigger_than_the_host_s(arch: str, page_size: int, layout: str, data: st.DataObject) -> None:
    """A guest's page of which a part is lost is excluded, and what is left of it is not in the way."""
    blocks = data.draw(damaged_blocks(page_size))
    check(blocks, arch=arch, page_size=page_size, codec="zlib", layout=layout)


@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_lost_pages_at_the_borders_of_the_work(layout: str) -> None:
    """The first and last page of a block and of a piece of work, and all pages of one."""
    memory = np.resize(np.arange(1, 200, dtype=np.uint8), 3 * CHUNK)
    per_chunk = CHUNK // SMALL
    lost = {0, per_chunk - 1, per_chunk, 3 * per_chunk - 1, *range(2 * per_chunk + 8, 2 * per_chunk + 24)}
    blocks = [(0, memory, lost), (1 << 32, memory[:CHUNK].copy(), set(range(per_chunk)))]
    check(blocks, arch="x86_64", page_size=SMALL, codec="lzo", layout=layout)


def test_all_pages_are_lost() -> None:
    memory = np.full(16 * SMALL, 7, np.uint8)
    check([(0, memory, set(range(16)))], arch="x86_64", page_size=SMALL, codec="zlib", layout="standard")


def test_page_that_was_lost_once(tmp_path: Path) -> None:
    """It could not be read when the headers were made, and then it could: what is written stays a dump."""
    memory = np.random.default_rng(5).integers(0, 256, (16, SMALL), np.uint8)

    class Recovered(vmdump.BlockSource):
        unreadable = ((3 * SMALL, 4 * SMALL),)

    report = vmdump.dump(Recovered([(0, memory.reshape(-1))]), tmp_path / "guest", format="kdump-zlib")
    pages = dict(Kdump(tmp_path / "guest").pages())
    assert set(pages) | {3} == set(range(16))
    for pfn, page in pages.items():
        assert page == memory[pfn].tobytes(), f"page {pfn}"
    assert report.excluded_pages == 16 - len(pages)


def test_elf_has_zeros_in_their_place(tmp_path: Path) -> None:
    memory = np.full(16 * SMALL, 7, np.uint8)
    guest = DamagedGuest([(0, memory, {0, 9, 15})], arch="x86_64", page_size=SMALL)
    report = vmdump.dump(guest, tmp_path / "guest", format="elf")
    assert report.unreadable == ((0, SMALL), (9 * SMALL, 10 * SMALL), (15 * SMALL, 16 * SMALL))
    core = ElfCore(tmp_path / "guest").check_vmdump_layout()
    for page in range(16):
        assert core.read(page * SMALL, SMALL) == bytes([0 if page in (0, 9, 15) else 7]) * SMALL
