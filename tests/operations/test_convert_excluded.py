"""Pages that a dump leaves out stay left out, and are never zeros or missing, whatever it is converted to."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.converting import held, opened, parts, write
from hypothesis import given
from hypothesis import strategies as st
from oracles import elf_builder, holdings, judges
from oracles.holdings import Holdings
from oracles.kdump import Kdump
from oracles.kdump_builder import EXCLUDED, Build, build_kdump

import vmdump
from vmdump.errors import ExcludedPage, FormatError, LayoutError, ReadError, VmdumpError

PAGE = 4096
ERASED = b"erase cpu_secrets.key 32\n"
KINDS = ["elf", "kdump-zlib standard", "kdump-zlib flattened", "kdump-lzo standard", "kdump-zstd split"]


def page(seed: int) -> bytes:
    """Every fourth is zero, every fourth does not shrink."""
    if seed % 4 == 0:
        return bytes(PAGE)
    if seed % 4 == 1:
        return np.random.default_rng(seed).integers(0, 256, PAGE, np.uint8).tobytes()
    return (b"%08d" % seed) * (PAGE // 8)


def filtered() -> Build:
    """Build a dump of makedumpfile's kind: two blocks, in which runs and single pages are left out."""
    pages: dict[int, bytes | None] = {pfn: page(pfn) for pfn in [*range(0x10, 0x90), *range(0x4000, 0x4A00)]}
    for pfn in [*range(0x20, 0x31), 0x40, 0x42, *range(0x80, 0x90), 0x4000, *range(0x4100, 0x4900)]:
        pages[pfn] = EXCLUDED
    notes = elf_builder.note(b"CORE", 1, bytes(336)) + elf_builder.note(b"VMCOREINFO", 0, b"PAGESIZE=4096\n")
    return Build(pages, notes=notes, max_mapnr=0x5000)


def with_eraseinfo(build: Build) -> bytes:
    at = len(build_kdump(build))
    sub = {"offset_eraseinfo": at, "size_eraseinfo": len(ERASED), "dump_level": 31}
    return build_kdump(replace(build, sub=sub)) + ERASED


def truth(build: Build, erased: bytes = ERASED) -> Holdings:
    kept = {pfn: data for pfn, data in build.pages.items() if data is not EXCLUDED}
    return Holdings(kept, set(build.pages) - set(kept), build.notes, b"PAGESIZE=4096\n", erased)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filtered") / "dump"
    path.write_bytes(with_eraseinfo(filtered()))
    return path


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_there_and_back(here: str, there: str, source: Path, tmp_path: Path) -> None:
    expected = truth(filtered())
    write(source, tmp_path / "here", here)
    first = opened(tmp_path / "here", here)
    report = write(first, tmp_path / "there", there)
    assert report.excluded_pages == len(expected.excluded)
    assert held(tmp_path / "there", there) == expected
    second = opened(tmp_path / "there", there)
    write(second, tmp_path / "back", here)
    assert held(tmp_path / "back", here) == expected
    with vmdump.open(second) as dump:
        assert dump.excluded_size == PAGE * len(expected.excluded)
        assert (dump.eraseinfo, dump.notes) == (ERASED, expected.notes)
        assert dump.read(0x41 * PAGE, PAGE) == page(0x41)
        for pfn in (0x20, 0x42, 0x8F, 0x4000, 0x48FF):
            with pytest.raises(ExcludedPage):
                dump.read(pfn * PAGE, 1)
        for pfn in (0, 0x90, 0x4A00):
            with pytest.raises(ReadError, match="no memory"):
                dump.read(pfn * PAGE, 1)


def test_the_level_and_the_pages_as_they_lie(source: Path, tmp_path: Path) -> None:
    """makedumpfile goes by the level when it filters again; nothing of the pages is packed again."""
    report = write(source, tmp_path / "copy", "kdump-zlib standard")
    copy = Kdump(tmp_path / "copy")
    assert copy.sub_header["dump_level"] == 31
    assert report.copied_pages == report.plain_pages + report.compressed_pages > 0
    assert report.zero_pages == sum(not any(data) for data in truth(filtered()).pages.values())
    assert int((copy.descriptors["offset"] == copy.data_offset).sum()) == report.zero_pages


def position_in_crash(part: Kdump, pfn: int) -> int:
    """Give the number of the descriptor that crash takes for a page of a part.

    It adds up sections of 4096 pages by whole 64-bit words of the bitmap, and counts the rest one by one.
    """
    begin = part.sub_header["start_pfn_64"]
    dumped = np.unpackbits(np.frombuffer(part.bitmap2, np.uint8), bitorder="little")
    sections = (pfn - begin) // 4096
    first = begin // 64 * 64
    counted = dumped[first : first + sections * 4096].sum() + dumped[begin + sections * 4096 : pfn].sum()
    return int(counted)


@pytest.mark.parametrize("count", [2, 5, 7])
def test_a_split_set_as_crash_counts(count: int, tmp_path: Path) -> None:
    """Each part has about as many pages as any other, and crash takes none for another one."""
    pages = 37 * 36
    blocks = [(first * PAGE, np.zeros(37 * PAGE, np.uint8)) for first in range(7, 40000, 1111)]
    vmdump.convert(vmdump.BlockSource(blocks), tmp_path / "set", format="kdump-lzo", split=count)
    for path in parts(tmp_path / "set"):
        part = Kdump(path)
        begin, end = part.sub_header["start_pfn_64"], part.sub_header["end_pfn_64"]
        own = part.pfns[(part.pfns >= begin) & (part.pfns < end)].tolist()
        assert [position_in_crash(part, pfn) for pfn in own] == list(range(len(own)))
        assert abs(len(own) - pages / count) <= 64


def test_reassembled_by_makedumpfile(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "set", "kdump-zstd split")
    judges.makedumpfile_reassemble(parts(tmp_path / "set"), tmp_path / "whole")
    assert holdings.of_kdump(tmp_path / "whole") == truth(filtered())


def test_in_the_eyes_of_libkdumpfile(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "core", "elf")
    write(tmp_path / "core", tmp_path / "guest", "kdump-lzo standard")
    expected = truth(filtered())
    ranges = [(pfn * PAGE, PAGE) for pfn in expected.pages]
    assert judges.libkdumpfile_read(tmp_path / "guest", ranges) == list(expected.pages.values())
    for pfn in (0x40, 0x4100):
        with pytest.raises(AssertionError, match="Excluded page"):
            judges.libkdumpfile_read(tmp_path / "guest", [(pfn * PAGE, PAGE)])


@pytest.mark.parametrize("begin", [0x1FFF0, 0x20000, 0x20800, 0x40000, 0x40FFF])
@pytest.mark.parametrize("length", [1, 0x1000, 0x21010])
def test_a_part_of_the_memory(begin: int, length: int, source: Path, tmp_path: Path) -> None:
    """dump --begin --length of a filtered dump, also inside pages: what is left out is in no segment."""
    expected = truth(filtered())
    inside = [pfn for pfn in expected.pages if pfn * PAGE < begin + length and (pfn + 1) * PAGE > begin]
    vmdump.dump(str(source), tmp_path / "part", format="elf", begin=begin, length=length)
    core = judges_elf(tmp_path / "part")
    assert {address // PAGE for address in core} == set(inside)
    for pfn in inside:
        low, high = max(pfn * PAGE, begin), min((pfn + 1) * PAGE, begin + length)
        assert core[low] == expected.pages[pfn][low - pfn * PAGE : high - pfn * PAGE]


def judges_elf(path: Path) -> dict[int, bytes]:
    """Give the memory of a core by address, cut at pages."""
    from oracles.elf import ElfCore

    found = {}
    for load in ElfCore(path).check_vmdump_layout().loads:
        data, address = ElfCore(path).load_bytes(load), load.paddr
        while data:
            size = PAGE - address % PAGE
            found[address] = data[:size]
            data, address = data[size:], address + size
    return found


@given(
    excluded=st.sets(st.integers(0, 63)),
    gap=st.integers(0, 9),
    kind=st.sampled_from(KINDS),
    block=st.integers(1, 63),
)
def test_any_pages(
    excluded: set[int], gap: int, kind: str, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two blocks, perhaps touching, any pages left out: of whole blocks and of all of them, too."""
    pfns = [3 + number + (gap if number >= block else 0) for number in range(64)]
    pages = {pfn: EXCLUDED if number in excluded else page(pfn) for number, pfn in enumerate(pfns)}
    build = Build(pages, notes=filtered().notes)
    folder = tmp_path_factory.mktemp("any")
    (folder / "dump").write_bytes(build_kdump(build))
    if kind.endswith("split") and 64 - len(excluded) < 3:
        return
    write(folder / "dump", folder / "there", kind)
    expected = truth(build, erased=b"")
    assert held(folder / "there", kind) == expected
    there = opened(folder / "there", kind)
    write(there, folder / "back", "kdump-zlib standard")
    assert holdings.of_kdump(folder / "back") == expected


def test_more_segments_than_a_program_header_counts(tmp_path: Path) -> None:
    """Every second page is left out of 66000 segments: the count is in a section header."""
    pages: dict[int, bytes | None] = dict.fromkeys(range(132_000), EXCLUDED)
    some = page(2)
    pages |= dict.fromkeys(range(0, 132_000, 2), some)
    (tmp_path / "dump").write_bytes(build_kdump(Build(pages, codecs=("lzo",))))
    vmdump.convert(tmp_path / "dump", tmp_path / "core", format="elf")
    vmdump.convert(tmp_path / "core", tmp_path / "back", format="kdump-lzo")
    back = Kdump(tmp_path / "back")
    assert back.pfns.tolist() == list(range(0, 132_000, 2))
    assert holdings.bits(back.bitmap1) == set(range(132_000))
    assert back.page(131_998) == some


NOTE = struct.Struct("<QQ")


@pytest.mark.parametrize(
    "desc",
    [
        b"",
        b"12345678",
        NOTE.pack(0x2000, 0x1000),
        NOTE.pack(0x1000, 0x2000),
        NOTE.pack(0, 0x2000),
        NOTE.pack(0, 0x8000) + NOTE.pack(0x7000, 0x9000),
        NOTE.pack(0, 0xFFFF_FFFF_FFFF_F000),
        NOTE.pack(0x8000, 0x9000),
    ],
)
def test_notes_that_lie(desc: bytes, tmp_path: Path) -> None:
    """A note of blocks that are none, or that do not hold the segments, is an error."""
    path = tmp_path / "core"
    notes = elf_builder.note(b"VMDUMP", 2, desc)
    path.write_bytes(elf_builder.build_elf([elf_builder.Load(0x1000, bytes(2 * PAGE))], notes=notes))
    with pytest.raises((FormatError, LayoutError)):
        vmdump.open(path)


def test_a_note_of_a_foreign_page_size(tmp_path: Path) -> None:
    """Segments of less than a page: what a page has a part of is not left out."""
    path = tmp_path / "core"
    notes = elf_builder.note(b"VMDUMP", 2, NOTE.pack(0, 0x4000))
    path.write_bytes(elf_builder.build_elf([elf_builder.Load(0x1800, b"x" * 0x1000)], notes=notes))
    with vmdump.open(path) as dump:
        found = dump.excluded_pages(0, 4)
        assert found is not None
        assert found.tolist() == [True, False, False, True]
        assert dump.excluded_size == 2 * PAGE
        assert dump.read(0x1000, 0x2000) == bytes(0x800) + b"x" * 0x1000 + bytes(0x800)


def test_eraseinfo_that_is_not_there(tmp_path: Path) -> None:
    sub = {"offset_eraseinfo": 1 << 40, "size_eraseinfo": 32}
    (tmp_path / "dump").write_bytes(build_kdump(replace(filtered(), sub=sub)))
    with pytest.raises(VmdumpError):
        vmdump.convert(tmp_path / "dump", tmp_path / "out", format="elf")
    assert [path.name for path in tmp_path.iterdir()] == ["dump"]
