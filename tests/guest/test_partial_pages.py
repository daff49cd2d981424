"""Memory that begins and ends inside pages: kept, with zeros where a page has none, and each page once."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.converting import opened, parts, write
from helpers.excluding import ExcludingSource
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import EM_AARCH64, Load, build_elf, note
from oracles.flattened import Flattened
from oracles.kdump import Kdump
from oracles.lime_builder import build_avml, build_lime

import vmdump
from vmdump import PageKind
from vmdump.errors import ExcludedPage, ReadError

PAGE = 4096
# Ranges of /proc/iomem of a PC: they end inside pages, and cut pages in the middle.
EDGES = (0xC60CE000, 0xC61CE018, 0xC61DDC58, 0xC61DE018, 0xC61EE058, 0xC6200000)


def memory(begin: int, end: int) -> bytes:
    """Guest memory whose every 8 bytes tell their address."""
    low = begin // 8 * 8
    words = np.arange(low, end + 7, 8, dtype="<u8") ^ np.uint64(0x5A5A_1234_0000_0000)
    return words.tobytes()[begin - low : end - low]


IOMEM = [(0x1000, memory(0x1000, 0x9FC00))] + [
    (begin, memory(begin, end)) for begin, end in itertools.pairwise(EDGES)
]

Ranges = Sequence[tuple[int, bytes]]


def pages_of(ranges: Ranges, page_size: int) -> dict[int, bytes]:
    """Model of what a dump of whole pages has to hold, byte by byte."""
    pages: dict[int, bytearray] = {}
    for start, data in ranges:
        for pfn in range(start // page_size, -(-(start + len(data)) // page_size)):
            page = pages.setdefault(pfn, bytearray(page_size))
            low, high = max(start, pfn * page_size), min(start + len(data), (pfn + 1) * page_size)
            page[low - pfn * page_size : high - pfn * page_size] = data[low - start : high - start]
    return {pfn: bytes(page) for pfn, page in pages.items()}


def partial(ranges: Ranges, page_size: int) -> int:
    held: dict[int, int] = {}
    for start, data in ranges:
        for pfn in range(start // page_size, -(-(start + len(data)) // page_size)):
            low, high = max(start, pfn * page_size), min(start + len(data), (pfn + 1) * page_size)
            held[pfn] = held.get(pfn, 0) + high - low
    return sum(size < page_size for size in held.values())


class Guest(NamedTuple):
    """A drawn guest: address, size, and whether it is zero, of each block."""

    places: list[tuple[int, int, bool]]
    page_size: int
    kind: str

    @property
    def ranges(self) -> list[tuple[int, bytes]]:
        return [
            (start, bytes(size) if zero else memory(start, start + size)) for start, size, zero in self.places
        ]


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    page_size = draw(st.sampled_from([4096, 4096, 16384, 65536]))
    position = draw(st.sampled_from([0, 1, 0x1000, 0xFFFF_F000, (1 << 40) - 5]))
    steps = st.sampled_from([1, 8, 100, 0x400, PAGE - 1, PAGE, page_size, page_size + 24, 3 * page_size])
    gaps = st.sampled_from([0, 0, 1, 0x18, PAGE, page_size, 5 * page_size])
    places = []
    for gap, size in draw(st.lists(st.tuples(gaps, steps), min_size=1, max_size=6)):
        position += gap
        places.append((position, size, draw(st.integers(0, 4)) == 0))
        position += size
    kinds = ["lime", "avml", "elf", "blocks"]
    return Guest(places, page_size, draw(st.sampled_from(kinds)))


def source_of(guest: Guest) -> vmdump.Source:
    text = f"OSRELEASE=6.1.0\nPAGESIZE={guest.page_size}\n".encode()
    if guest.kind == "blocks":
        return vmdump.BlockSource(guest.ranges, arch="aarch64", page_size=guest.page_size)
    if guest.kind == "elf":
        loads = [Load(start, data) for start, data in guest.ranges]
        return vmdump.open(build_elf(loads, machine=EM_AARCH64, notes=note(b"VMCOREINFO", 0, text)))
    build = build_lime if guest.kind == "lime" else build_avml
    return vmdump.open(build(guest.ranges), arch="aarch64").with_vmcoreinfo(text)


@settings(max_examples=60)
@given(guest=guests(), layout=st.sampled_from(["standard", "flattened"]), split=st.booleans())
def test_any_ranges(guest: Guest, layout: str, split: bool) -> None:
    expected = pages_of(guest.ranges, guest.page_size)
    cut = partial(guest.ranges, guest.page_size)
    with tempfile.TemporaryDirectory() as folder, source_of(guest) as source:
        assert source.page_size == guest.page_size
        assert vmdump.info(source).partial_pages == cut
        assert vmdump.info(source).pages == len(expected)
        path = Path(folder) / "kdump"
        report = vmdump.dump(source, path, format="kdump-lzo", layout=layout)
        assert report.partial_pages == cut
        assert report.guest_bytes == sum(len(data) for _, data in guest.ranges)
        if layout == "flattened":
            Flattened(path).check().rearrange(Path(folder) / "standard")
            path = Path(folder) / "standard"
        oracle = Kdump(path).check()
        assert oracle.block_size == guest.page_size
        assert dict(oracle.pages()) == expected
        # The ELF file has the bytes and no more.
        elf = ElfCore(Path(write(source, Path(folder) / "elf", "elf").output)).check_vmdump_layout()
        assert joined((load.paddr, elf.load_bytes(load)) for load in elf.loads) == joined(guest.ranges)
        check_views(source, guest, expected)
        for here, there in ((source, path), (path, source), (Path(folder) / "elf", path)):
            found = vmdump.verify(here, against=there)
            assert found.whole
            whole = pages_of(guest.ranges, found.page_size)
            if found.page_size == guest.page_size or here != path:
                assert found.pages == sum(found.kinds.values()) == len(whole)
            assert found.comparison is not None
            assert found.comparison.bytes_compared == report.guest_bytes
        if split and len(expected) >= 2:
            vmdump.convert(source, Path(folder) / "part", split=2, format="kdump-lzo")
            with vmdump.open(parts(Path(folder) / "part")) as dump:
                assert each_page(dump) == expected


def joined(ranges: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Ranges that touch as one: AVML cuts memory into pieces, and its reader joins them."""
    found: list[tuple[int, bytes]] = []
    for start, data in ranges:
        if found and found[-1][0] + len(found[-1][1]) == start:
            found[-1] = found[-1][0], found[-1][1] + data
        else:
            found.append((start, data))
    return found


def each_page(batches: Iterable[tuple[int, np.ndarray]]) -> dict[int, bytes]:
    return {pfn + at: page.tobytes() for pfn, pages in batches for at, page in enumerate(pages)}


def check_views(source: vmdump.Source, guest: Guest, expected: dict[int, bytes]) -> None:
    """Whole pages of a dump that has none, and the bytes as they are."""
    if not isinstance(source, vmdump.Dump):
        return
    size = guest.page_size
    for threads in (1, 2):
        assert each_page(source.batches(threads=threads)) == expected
    for pfn in expected:
        assert source.pages(pfn, 1).tobytes() == expected[pfn]
        assert source.page_kinds(pfn, 1)[0] in (PageKind.PLAIN, PageKind.ZERO)
    for start, data in guest.ranges:
        assert source.read(start, len(data)) == data
    last = max(expected) + 1
    with pytest.raises(ReadError):
        source.pages(last, 1)
    end = guest.ranges[-1][0] + len(guest.ranges[-1][1])
    assert end - 1 in source
    assert end not in source
    with pytest.raises(ReadError):
        source.read(end - 1, 2)
    assert source.page_kinds(last, 1)[0] == PageKind.MISSING == PageKind(source.page_kinds(last, size)[0])


@pytest.mark.parametrize("kind", ["lime", "avml", "elf"])
def test_other_readers(kind: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """Ranges of an /proc/iomem to kdump, by whatever route, open in drgn and libkdumpfile."""
    source = tmp_path / "source"
    text = (
        b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82010000\nSYMBOL(init_uts_ns)="
        b"ffffffff82000000\nOFFSET(uts_namespace.name)=0\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
    )
    if kind == "elf":
        notes = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, text)
        source.write_bytes(build_elf([Load(start, data) for start, data in IOMEM], notes=notes))
    else:
        source.write_bytes((build_lime if kind == "lime" else build_avml)(IOMEM))
        (tmp_path / "text").write_bytes(text)
    given_text = () if kind == "elf" else ("--vmcoreinfo", tmp_path / "text")
    expected = pages_of(IOMEM, PAGE)
    done = run_vmdump("dump", source, tmp_path / "kdump", "--json", *given_text)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["partial_pages"] == 1
    for argument in (("kdump", "elf", "-f", "elf"), ("elf", "again")):
        done = run_vmdump("convert", tmp_path / argument[0], tmp_path / argument[1], *argument[2:])
        assert done.returncode == 0, done.stderr
    ranges = [(pfn * PAGE, PAGE) for pfn in expected]
    for name in ("kdump", "elf", "again"):
        assert judges.drgn_read(tmp_path / name, ranges) == list(expected.values())
        assert judges.libkdumpfile_read(tmp_path / name, ranges) == list(expected.values())
    assert dict(Kdump(tmp_path / "again").check().pages()) == expected
    done = run_vmdump("info", source)
    assert "465 plain" in done.stdout.decode()
    assert "1 page, inside which memory ends" in done.stdout.decode()
    done = run_vmdump("verify", source, "--against", tmp_path / "kdump")
    assert (done.returncode, "465 pages: 465 plain; 0 damaged" in done.stdout.decode()) == (0, True)


def test_makedumpfile_filters_it(scratch: Path) -> None:
    """A guest with a kernel in it, whose memory ends inside pages and is cut in the middle of some."""
    vmdump.dump("synthetic:64M?seed=5&fill=0.5", scratch / "core", format="elf")
    with vmdump.open(scratch / "core") as dump:
        low, *others, high = dump.blocks
        middle, end = high.start + high.size // 2 + 0x18, high.end - 0x400
        ranges = [
            (low.start, dump.read(low.start, low.size - 0x400)),
            *((block.start, dump.read(block.start, block.size)) for block in others),
            (high.start, dump.read(high.start, middle - high.start)),
            (middle, dump.read(middle, end - middle)),
        ]
        guest = vmdump.BlockSource(ranges, arch=dump.arch, notes=dump.notes)
        vmdump.dump(guest, scratch / "cut", format="elf")
    report = vmdump.convert(scratch / "cut", scratch / "kdump", format="kdump-lzo")
    assert report.partial_pages == 2
    expected = pages_of(ranges, PAGE)
    assert dict(Kdump(scratch / "kdump").check().pages()) == expected
    judges.makedumpfile_filter(scratch / "kdump", scratch / "filtered", "-l", "-d", "1")
    kept = dict(Kdump(scratch / "filtered").pages())
    assert kept == expected
    # Of the ELF core makedumpfile drops what is no whole page.
    judges.makedumpfile_filter(scratch / "cut", scratch / "theirs", "-l", "-d", "0")
    theirs = dict(Kdump(scratch / "theirs").pages())
    assert len(theirs) < len(expected)
    assert all(expected[pfn] == page for pfn, page in theirs.items())


def test_a_page_of_two_differs(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """What both have is compared, and what only a whole page has is not."""
    kdump, lime = tmp_path / "kdump", tmp_path / "lime"
    vmdump.dump([(0x1000, memory(0x1000, 0xA0000))], kdump)
    lime.write_bytes(build_lime(IOMEM[:1]))
    found = vmdump.verify(kdump, against=lime)
    assert found.whole
    assert found.comparison is not None
    assert found.comparison.bytes_compared == 0x9EC00
    changed = bytearray(IOMEM[0][1])
    changed[-1] ^= 1
    lime.write_bytes(build_lime([(0x1000, bytes(changed))]))
    done = run_vmdump("verify", lime, "--against", kdump)
    assert (done.returncode, "different: pfn 0x9f" in done.stdout.decode()) == (19, True)
    # A page of which one has nothing is still missing.
    lime.write_bytes(build_lime([(0x1000, memory(0x1000, 0x9F000))]))
    comparison = vmdump.verify(lime, against=kdump).comparison
    assert comparison is not None
    assert comparison.only_in_guest == ((0x9F000, 0xA0000),)


@settings(max_examples=50)
@given(guest=guests(), data=st.data())
def test_excluded_pages(guest: Guest, data: st.DataObject) -> None:
    """Excluded pages of which the guest has only a part stay excluded, once, from format to format."""
    expected = pages_of(guest.ranges, guest.page_size)
    excluded = data.draw(st.sets(st.sampled_from(sorted(expected)), max_size=len(expected) - 1))
    kept = {pfn: page for pfn, page in expected.items() if pfn not in excluded}
    with tempfile.TemporaryDirectory() as folder:
        source = ExcludingSource(guest.ranges, guest.page_size, excluded, arch="aarch64")
        for kind, before in (("kdump-lzo", source), ("elf", source), ("kdump-zlib", Path(folder) / "elf")):
            path = Path(folder) / kind
            write(before, path, kind)
            with vmdump.open(opened(path, kind)) as dump:
                assert dump.excluded_size // dump.page_size >= len(excluded)
                if kind != "elf":
                    unit = dump.page_size // PAGE
                    held = dict(Kdump(path).pages())
                    assert (
                        held
                        == pages_of(
                            [(pfn * guest.page_size, page) for pfn, page in kept.items()], PAGE * unit
                        )
                        or unit * PAGE != guest.page_size
                    )
                for start, content in guest.ranges:
                    for pfn in {start // guest.page_size, (start + len(content) - 1) // guest.page_size}:
                        low = max(start, pfn * guest.page_size)
                        high = min(start + len(content), (pfn + 1) * guest.page_size)
                        if pfn in excluded:
                            with pytest.raises(ExcludedPage):
                                dump.read(low, high - low)
                        else:
                            assert dump.read(low, high - low) == content[low - start : high - start]


def test_ends_of_the_address_space(tmp_path: Path) -> None:
    """Inclusive everywhere: the last byte of all has a page."""
    last = (1 << 64) - 1
    ranges = [(0, b"first"), (last - 7, b"the last")]
    with vmdump.open(build_lime(ranges)) as dump:
        assert dump.pages(0, 1)[0, :8].tobytes() == b"first\0\0\0"
        assert dump.pages(last // PAGE, 1)[0, -9:].tobytes() == b"\0the last"
        assert [pfn for pfn, _ in dump] == [0, last // PAGE]
        found = vmdump.verify(dump, against=dump)
        assert found.whole
        assert found.pages == 2
        assert found.comparison is not None
        assert found.comparison.bytes_compared == 13
        assert vmdump.info(dump).partial_pages == 2
