"""Other people's dumps as the source: of several codecs, of every header version, LiME, AVML, raw memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.goldens import MACHINES
from oracles import elf_builder, holdings
from oracles.flattened import Flattened
from oracles.kdump import Kdump
from oracles.kdump_builder import Build, build_kdump, build_split

import vmdump
from vmdump.guest.linux.page_types.types import PageTypes

PAGE = 4096
FORMATS = ["elf", "kdump-lzo"]


def page(seed: int) -> bytes:
    if seed % 5 == 0:
        return bytes(PAGE)
    if seed % 5 == 1:
        return np.random.default_rng(seed).integers(0, 256, PAGE, np.uint8).tobytes()
    return (b"%08d" % (seed // 2)) * (PAGE // 8)


PAGES = {pfn: page(pfn) for pfn in [*range(1, 300), *range(0x1000, 0x1180)]}


def held(path: Path, name: str, page_size: int = PAGE) -> dict[int, bytes]:
    return (holdings.of_elf(path, page_size) if name == "elf" else holdings.of_kdump(path)).pages


def with_status(build: Build, status: int) -> bytes:
    """Build a file whose header says that its codec is the one of this flag."""
    raw = bytearray(build_kdump(build))
    struct.pack_into(build.prefix + "I", raw, 424 if build.bits == 64 else 412, status)
    return bytes(raw)


@pytest.mark.parametrize("wanted", ["zlib", "lzo", "snappy", "zstd"])
@pytest.mark.parametrize("named", ["none", "zlib", "lzo"])
def test_pages_of_several_codecs(named: str, wanted: str, tmp_path: Path) -> None:
    """Of each run some pages are copied and the others packed: those in order, these by the wanted codec."""
    codecs = ("lzo", "zlib", "none", "zstd", "snappy", "zlib", "lzo")
    build = Build(PAGES, codecs=codecs, sub={"dump_level": 1})
    (tmp_path / "mixed").write_bytes(with_status(build, {"none": 0, "zlib": 1, "lzo": 2}[named]))
    report = vmdump.convert(tmp_path / "mixed", tmp_path / "one", format=f"kdump-{wanted}", threads=2)
    one = Kdump(tmp_path / "one").check()
    assert dict(one.pages()) == PAGES
    mixed = Kdump(tmp_path / "mixed")
    flags = {"zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
    taken = mixed.descriptors["flags"] == flags[wanted]
    if named == wanted:
        taken |= (mixed.descriptors["flags"] == 0) & (mixed.descriptors["offset"] != mixed.data_offset)
    assert report.copied_pages == int(taken.sum()) > 0
    for index in np.flatnonzero(taken).tolist():
        (old, size, _, _), (new, new_size, _, _) = (dump.descriptors[index].tolist() for dump in (mixed, one))
        assert mixed.data_at(old, size) == one.data_at(new, new_size)


@pytest.mark.parametrize("exclude", [1, 31])
def test_pages_that_are_copied_are_not_unpacked_beside_others(
    exclude: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in their bytes stays as it is, with and without a filter before them."""
    raw = bytearray(build_kdump(Build(PAGES, codecs=("lzo", "zlib"), sub={"dump_level": 1})))
    (tmp_path / "mixed").write_bytes(raw)
    mixed = Kdump(tmp_path / "mixed")
    index = int(np.flatnonzero(mixed.descriptors["flags"] == 2)[0])
    offset, size, _, _ = mixed.descriptors[index].tolist()
    raw[offset : offset + size] = b"\xff" * size
    (tmp_path / "mixed").write_bytes(raw)
    if exclude > 1:  # there are no struct pages in it, all of which stay then
        types = PageTypes(PAGE, [])
        monkeypatch.setattr("vmdump.operations.exclusion.tell_types", lambda *_, **__: types)
        monkeypatch.setattr("vmdump.guest.linux.page_types.types.demand_vmcoreinfo", lambda _: None)
    vmdump.convert(tmp_path / "mixed", tmp_path / "one", format="kdump-lzo", exclude=exclude)
    one = Kdump(tmp_path / "one")
    at, length, _, _ = one.descriptors[index].tolist()
    assert one.data_at(at, length) == b"\xff" * size
    others = {pfn: content for pfn, content in PAGES.items() if pfn != sorted(PAGES)[index]}
    assert {pfn: one.page(pfn) for pfn in others} == others


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(("bits", "byteorder", "machine"), [(64, "little", b"x86_64"), (32, "big", b"ppc")])
@pytest.mark.parametrize("name", FORMATS)
def test_every_header_version(
    version: int, bits: int, byteorder: str, machine: bytes, name: str, tmp_path: Path
) -> None:
    build = Build(PAGES, version=version, bits=bits, byteorder=byteorder, machine=machine, codecs=("lzo",))
    if bits == 32:
        build = Build(**{**build.__dict__, "padded": True, "vmcoreinfo": b"PAGESIZE=4096\n" * (version > 2)})
    (tmp_path / "old").write_bytes(with_status(build, 2))
    report = vmdump.convert(tmp_path / "old", tmp_path / "new", format=name)
    assert held(tmp_path / "new", name) == PAGES
    if name == "kdump-lzo":
        assert Kdump(tmp_path / "new").header["version"] == 6
        assert Kdump(tmp_path / "new").sub_header["phys_base"] == 0x1000
        assert report.copied_pages == report.compressed_pages + report.plain_pages


@pytest.mark.parametrize("name", FORMATS)
def test_parts_of_equal_offsets(name: str, tmp_path: Path) -> None:
    """In a set, pages of different parts at the same place are different pages."""
    cuts = [100, 200, 0x1050]
    files = []
    for number, raw in enumerate(build_split(Build(PAGES, codecs=("lzo",)), cuts)):
        files.append(tmp_path / f"part{number}")
        files[-1].write_bytes(raw)
    vmdump.convert(files[::-1], tmp_path / "one", format=name)
    assert held(tmp_path / "one", name) == PAGES


@pytest.mark.parametrize("machine", MACHINES)
def test_qemus_own_dumps(machine: str, golden: Callable[[str, str], Path], scratch: Path) -> None:
    """QEMU's flattened kdump becomes a standard one without packing, and a core of the same memory."""
    theirs = golden(machine, "kdump-zlib")
    Flattened(theirs).rearrange(scratch / "theirs")
    truth = dict(Kdump(scratch / "theirs").pages())
    page_size = Kdump(scratch / "theirs").block_size
    notes = Kdump(scratch / "theirs").notes
    report = vmdump.convert(theirs, scratch / "kdump", format="kdump-zlib")
    assert report.copied_pages == report.plain_pages + report.compressed_pages
    assert Kdump(scratch / "kdump").check().notes == notes
    assert held(scratch / "kdump", "kdump") == truth
    vmdump.convert(theirs, scratch / "core", format="elf")
    assert held(scratch / "core", "elf", page_size) == truth
    assert holdings.of_elf(scratch / "core", page_size).notes == notes
    vmdump.convert(scratch / "core", scratch / "set", format="kdump-zlib", split=2)
    assert holdings.of_split([scratch / "set.1", scratch / "set.2"]).pages == truth


BLOCKS = [
    (0x1000, b"".join(page(pfn) for pfn in range(1, 60))),
    (0x100000, b"".join(map(page, range(7, 99)))),
]


def lime() -> bytes:
    """Build what the LiME module writes: magic, version, first and last address and bytes of each block."""
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + len(data) - 1) + data for start, data in BLOCKS
    )


def avml() -> bytes:
    """Build AVML's second version: the same header, then a snappy frame, then its length."""
    import snappy

    out = b""
    for start, data in BLOCKS:
        packed = snappy.StreamCompressor().compress(data)
        out += struct.pack("<IIQQ8x", 0x4C4D5641, 2, start, start + len(data) - 1) + packed
        out += struct.pack("<Q", len(packed))
    return out


@pytest.mark.parametrize("name", [*FORMATS, "kdump-zstd"])
@pytest.mark.parametrize("kind", ["lime", "avml", "raw"])
def test_formats_without_notes(kind: str, name: str, tmp_path: Path) -> None:
    path, given, blocks = tmp_path / "memory", str(tmp_path / "memory"), BLOCKS
    if kind == "raw":
        path.write_bytes(BLOCKS[1][1])
        given, blocks = f"raw:{path}?base=0x100000", BLOCKS[1:]
    else:
        path.write_bytes(lime() if kind == "lime" else avml())
    truth = {
        (start + at) // PAGE: data[at : at + PAGE]
        for start, data in blocks
        for at in range(0, len(data), PAGE)
    }
    vmdump.convert(given, tmp_path / "there", format=name)
    assert held(tmp_path / "there", name) == truth
    vmdump.convert(tmp_path / "there", tmp_path / "set", format="kdump-lzo", split=4)
    assert holdings.of_split([tmp_path / f"set.{part}" for part in (1, 2, 3, 4)]).pages == truth


def test_eraseinfo_of_makedumpfiles_core(tmp_path: Path) -> None:
    """makedumpfile writes it as a note, and the kdump file has a place of its own for it."""
    erased = elf_builder.note(b"ERASEINFO", 0, b"erase secrets\n")
    notes = elf_builder.note(b"CORE", 1, bytes(336))
    loads = [elf_builder.Load(0x1000, page(2) + page(3))]
    (tmp_path / "core").write_bytes(elf_builder.build_elf(loads, notes=notes + erased))
    vmdump.convert(tmp_path / "core", tmp_path / "kdump", format="kdump-zlib")
    found = holdings.of_kdump(tmp_path / "kdump")
    assert (found.notes, found.erased) == (notes, b"erase secrets\n")
    vmdump.convert(tmp_path / "kdump", tmp_path / "back", format="elf")
    back = holdings.of_elf(tmp_path / "back")
    assert (back.notes, back.erased) == (notes, b"erase secrets\n")
