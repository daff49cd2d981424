"""Every form of kdump file that there is, built from the format's own tables, and read by vmdump."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.kdump_builder import EXCLUDED, Build, build_kdump, build_split

import vmdump
from vmdump import PageKind
from vmdump.errors import CapabilityError, ExcludedPage, FormatError, LayoutError, ReadError

PAGE = 4096
RANDOM = np.random.default_rng(7)


def text(seed: int) -> bytes:
    return (b"page %d of a guest " % seed * 400)[:PAGE]


NOISE = RANDOM.integers(0, 256, PAGE, np.uint8).tobytes()
PAGES: dict[int, bytes | None] = {
    3: text(3),
    4: bytes(PAGE),
    5: EXCLUDED,
    6: NOISE,
    7: EXCLUDED,
    8: text(8),
    **{pfn: text(pfn) for pfn in range(40, 60)},
    100: EXCLUDED,
    101: text(101),
}
NOTE = struct.pack("<III", 5, 8, 1) + b"CORE\0\0\0\0" + bytes(8)
INFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"


def check(dump: vmdump.Dump, pages: dict[int, bytes | None]) -> None:
    """Compare each page, below and beyond the memory too, with what was built."""
    stored = []
    for pfn in range(max(pages) + 3):
        kind = dump.page_kinds(pfn, 1)[0]
        address = pfn * dump.page_size
        if pfn not in pages:
            assert kind == PageKind.MISSING
            assert address not in dump
            with pytest.raises(ReadError) as caught:
                dump.read(address + 5, 1)
            assert not isinstance(caught.value, ExcludedPage)
            with pytest.raises(ReadError):
                dump.pages(pfn, 1)
            continue
        page = pages[pfn]
        if page is EXCLUDED:
            assert kind == PageKind.EXCLUDED
            assert address not in dump
            with pytest.raises(ExcludedPage) as excluded:
                dump.read(address + 5, 1)
            assert excluded.value.address == address + 5
            with pytest.raises(ExcludedPage) as excluded:
                dump.pages(pfn, 1)
            assert excluded.value.address == address
            continue
        stored.append(pfn)
        assert address in dump
        assert np.uint64(address) in dump
        assert kind == PageKind.ZERO if not any(page) else kind >= PageKind.PLAIN
        assert dump.read(address + 7, 100) == page[7:107]
        assert dump.pages(pfn, 1).tobytes() == page
    assert dump.excluded_size == dump.page_size * sum(page is EXCLUDED for page in pages.values())
    assert [pfn for first, batch in dump for pfn in range(first, first + len(batch))] == stored
    assert b"".join(batch.tobytes() for _, batch in dump) == b"".join(pages[pfn] or b"" for pfn in stored)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("version", range(1, 7))
def test_every_version_class_and_byte_order(version: int, byteorder: str, bits: int) -> None:
    note = NOTE if byteorder == "little" else struct.pack(">III", 5, 8, 1) + NOTE[12:]
    for padded, notes, info in itertools.product({False, bits == 32}, (b"", note), (b"", INFO)):
        build = Build(
            PAGES,
            version=version,
            bits=bits,
            byteorder=byteorder,
            padded=padded,
            notes=notes if version >= 4 else b"",
            vmcoreinfo=info if version >= 3 else b"",
        )
        with vmdump.open(build_kdump(build)) as dump:
            assert (dump.elf_class, dump.byteorder) == (bits, byteorder)
            assert dump.notes[: len(build.notes)] == build.notes
            assert dict(dump.vmcoreinfo) == (
                {"OSRELEASE": "6.1.0", "PAGESIZE": "4096"} if build.vmcoreinfo else {}
            )
            assert dump.utsname.release == b"6.1.0"
            check(dump, PAGES)


@pytest.mark.parametrize(
    "codecs", [("zlib",), ("lzo",), ("snappy",), ("zstd",), ("zlib", "zstd", "none", "lzo")]
)
def test_every_codec_and_all_in_one_file(codecs: tuple[str, ...]) -> None:
    with vmdump.open(build_kdump(Build(PAGES, codecs=codecs))) as dump:
        check(dump, PAGES)
        kinds = set(dump.page_kinds(40, 20).tolist())
        assert kinds == {PageKind[codec.upper()] if codec != "none" else PageKind.PLAIN for codec in codecs}


@pytest.mark.parametrize(("byteorder", "arch"), [("little", "ppc64le"), ("big", "ppc64")])
def test_little_endian_kernel_in_a_file_of_either_byte_order(byteorder: str, arch: str) -> None:
    with vmdump.open(build_kdump(Build(PAGES, machine=b"ppc64le", byteorder=byteorder))) as dump:
        assert (dump.arch.name, dump.byteorder) == (arch, byteorder)


def test_64_kib_pages() -> None:
    pages = {pfn: page and page * 16 for pfn, page in PAGES.items()}
    with vmdump.open(build_kdump(Build(pages, block_size=65536))) as dump:
        assert dump.page_size == 65536
        check(dump, pages)


def test_file_with_one_bitmap() -> None:
    """What crash does: the bitmap is both that of the memory and that of the dump."""
    pages = {pfn: page for pfn, page in PAGES.items() if page is not EXCLUDED}
    with vmdump.open(build_kdump(Build(pages, one_bitmap=True))) as dump:
        check(dump, pages)


@given(
    st.dictionaries(
        st.integers(0, 300), st.sampled_from([EXCLUDED, bytes(PAGE), text(1), NOISE]), min_size=1
    ),
    st.integers(0, 310),
    st.integers(0, 310),
)
def test_kinds_and_stored_pages(pages: dict[int, bytes | None], pfn: int, count: int) -> None:
    """Kinds of any range are those of its pages, and what is stored unpacks to them."""
    import zlib

    with vmdump.open(build_kdump(Build(pages, codecs=("zlib", "none")))) as dump:
        kinds = dump.page_kinds(pfn, count)
        for at in range(pfn, pfn + count):
            page = pages.get(at)
            expected = {PageKind.MISSING} if at not in pages else {PageKind.EXCLUDED}
            if page is not None:
                expected = {PageKind.PLAIN, PageKind.ZLIB} if any(page) else {PageKind.ZERO}
            assert kinds[at - pfn] in expected
        excluded = dump.excluded_pages(pfn, count)
        if excluded is not None:
            assert np.array_equal(excluded, kinds == PageKind.EXCLUDED)
        if (kinds == PageKind.MISSING).any():
            with pytest.raises(ReadError):
                dump.stored_pages(pfn, count)
            return
        stored = dump.stored_pages(pfn, count)
        assert stored is not None
        assert np.array_equal(stored.excluded, kinds == PageKind.EXCLUDED)
        assert np.array_equal(stored.zero, kinds == PageKind.ZERO)
        assert len(np.unique(stored.identities[stored.zero])) <= 1
        for index in np.flatnonzero(~stored.excluded):
            begin, size = int(stored.offsets[index]), int(stored.sizes[index])
            raw = stored.data[begin : begin + size].tobytes()
            assert (zlib.decompress(raw) if stored.flags[index] else raw) == pages[pfn + int(index)]


def test_split_set_in_any_order(tmp_path: Path) -> None:
    paths = []
    for index, part in enumerate(build_split(Build(PAGES), [7, 50, 90])):
        paths.append(tmp_path / f"part{index}")
        paths[-1].write_bytes(part)
    for order in itertools.permutations(paths):
        with vmdump.open(order) as dump:
            check(dump, PAGES)
    with vmdump.open(paths) as dump:
        assert dump.pages(40, 20).tobytes() == b"".join(text(pfn) for pfn in range(40, 60))
        stored = dump.stored_pages(40, 20)
        assert stored is not None
        assert len(np.unique(stored.identities)) == 20
        assert np.array_equal(
            dump.page_kinds(0, 102), np.concatenate([dump.page_kinds(i, 1) for i in range(102)])
        )


def test_split_set_that_is_none(tmp_path: Path) -> None:
    parts = build_split(Build(PAGES), [7, 50])
    other = build_split(Build(PAGES, machine=b"riscv64"), [7, 50])
    whole = build_kdump(Build(PAGES))
    names = {
        "a": parts[0],
        "b": parts[1],
        "c": parts[2],
        "other": other[2],
        "whole": whole,
        "text": b"text" * 99,
    }
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)

    def opened(*names: str) -> object:
        return vmdump.open([tmp_path / name for name in names])

    with pytest.raises(CapabilityError, match="pages 0x7 to 0x32 are missing"):
        opened("a", "c")
    with pytest.raises(CapabilityError, match="pages 0x32 to 0x66 are missing"):
        opened("a", "b")
    with pytest.raises(CapabilityError, match="open all of its parts together"):
        vmdump.open(tmp_path / "b")
    for wrong in (("a", "b", "other"), ("a", "b", "c", "whole"), ("a", "b", "b", "c"), ("whole", "whole")):
        with pytest.raises(FormatError):
            opened(*wrong)
    with pytest.raises(FormatError, match="text: this is not a kdump file"):
        opened("a", "text", "c")
    with pytest.raises(vmdump.errors.RequestError):
        vmdump.open([])


@pytest.mark.parametrize("version", [2, 5])
def test_split_set_of_an_old_version(version: int, tmp_path: Path) -> None:
    paths = []
    for index, part in enumerate(build_split(Build(PAGES, version=version), [50])):
        paths.append(tmp_path / f"part{index}")
        paths[-1].write_bytes(part)
    with vmdump.open(paths) as dump:
        check(dump, PAGES)


def test_shared_zero_page_is_not_taken_for_another(tmp_path: Path) -> None:
    """A first plain page that is not zero is no zero page, whatever points at it."""
    data = bytearray(build_kdump(Build(PAGES)))
    zero_at = len(data) - len(build_kdump(Build(PAGES)).split(bytes(PAGE))[-1])
    with vmdump.open(bytes(data)) as dump:
        stored = dump.stored_pages(4, 1)
        assert stored is not None
        zero_at = int(stored.identities[0])
    data[zero_at + 9] = 1
    with vmdump.open(data) as dump:
        assert dump.page_kinds(4, 1)[0] == PageKind.PLAIN
        assert dump.pages(4, 1)[0, 9] == 1


def test_bitmap_of_alternating_bits_is_refused() -> None:
    """A hostile first bitmap claims half a million blocks in 128 KiB."""
    base = Build({3: text(3)}, max_mapnr=1 << 20)
    data = bytearray(build_kdump(base))
    bitmap_at = 3 * PAGE
    data[bitmap_at : bitmap_at + (1 << 17)] = b"\x55" * (1 << 17)
    with pytest.raises(FormatError, match="pieces"):
        vmdump.open(data)


def test_too_large_a_bitmap_in_a_hole(tmp_path: Path) -> None:
    """Bitmaps of 8 GiB that the file has only as a hole are refused, not looked through."""
    data = bytearray(build_kdump(Build({3: text(3)})))
    struct.pack_into("<I", data, 436, 1 << 22)  # bitmap_blocks
    struct.pack_into("<Q", data, PAGE + 96, 1 << 36)  # max_mapnr_64
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.write(data)
        file.truncate(1 << 35)
    with pytest.raises(FormatError, match="more than the file holds"):
        vmdump.open(path)


def test_diskdump_and_nothing() -> None:
    with pytest.raises(CapabilityError, match="diskdump"):
        vmdump.open(b"DISKDUMP" + bytes(9000))
    with pytest.raises(LayoutError, match="no memory"):
        vmdump.open(build_kdump(Build({}, max_mapnr=100)))
