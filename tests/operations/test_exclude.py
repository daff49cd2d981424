"""Dumps without some types of pages: as makedumpfile's, in every form, for other people's readers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import run
from helpers.converting import held, opened, parts, write
from helpers.filter_goldens import KERNELS, bitmaps, expected, memory
from oracles import judges
from oracles.elf import ElfCore
from oracles.kdump import Kdump

import vmdump
from vmdump.errors import CapabilityError, ExcludedPage, RequestError
from vmdump.operations.dump import check_request

PAGE = 4096
FIRMWARE = range(0xFFFC0, 0x100000)
"""Pages without struct pages, which vmdump keeps."""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cores")

    def make(kernel: str) -> Path:
        path = folder / kernel
        if not path.exists():
            path.write_bytes(memory(kernel).tobytes())
        return path

    return make


def content(core: Path) -> np.ndarray:
    """Give the memory that begins at 0, a row for each page."""
    load = ElfCore(core).loads[0]
    return np.fromfile(core, np.uint8, load.filesz, offset=load.offset).reshape(-1, PAGE)


def bits(bitmap: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(bool)


@pytest.mark.parametrize("level", [2, 4, 8, 16, 23, 24, 30, 31])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kdump_files(kernel: str, level: int, core: Any, tmp_path: Path) -> None:
    report = vmdump.convert(core(kernel), tmp_path / "dump", format="kdump-lzo", exclude=level)
    dump = Kdump(tmp_path / "dump")
    pages, want = expected(kernel)["max_mapnr"], bitmaps(kernel)
    first, second = (bits(bitmap) for bitmap in (dump.bitmap1, dump.bitmap2))
    assert np.array_equal(first[:pages], want["bitmap1"])
    assert np.array_equal(second[:pages], want[f"d{level}"])
    assert np.flatnonzero(second[pages:]).tolist() == [pfn - pages for pfn in FIRMWARE]
    assert dump.sub_header["dump_level"] == report.dump_level == level | 1
    assert report.excluded_pages == np.count_nonzero(first & ~second)
    assert report.doubtful_pages == 0
    zeros = expected(kernel)["levels"][level | 1]["pages_stored_as_zero_page"]
    shared = int((dump.descriptors["offset"] == dump.data_offset).sum())
    assert shared == report.zero_pages
    if level != 31:
        return
    there = content(core(kernel))
    found = dict(dump.pages())
    assert sum(not any(found[pfn]) for pfn in found if pfn < pages) == zeros
    assert all(found[pfn] == there[pfn].tobytes() for pfn in np.flatnonzero(second[:pages]).tolist())


@pytest.mark.parametrize("level", [2, 4, 8, 16, 23, 30, 31])
@pytest.mark.parametrize("kernel", KERNELS)
def test_elf_files(kernel: str, level: int, core: Any, tmp_path: Path) -> None:
    """An odd level has the PT_LOADs of the even one below: zeros are holes of the file."""
    report = vmdump.convert(core(kernel), tmp_path / "dump", format="elf", exclude=level)
    told = expected(kernel, "expected-elf")["levels"]
    dump = ElfCore(tmp_path / "dump").check_vmdump_layout()
    loads = [
        (
            load.paddr,
            load.filesz,
            load.memsz,
            hashlib.sha256(dump.load_bytes(load)[: load.filesz]).hexdigest(),
        )
        for load in dump.loads
    ]
    assert [load[:3] for load in loads if load[0] >= 1 << 31] == [(FIRMWARE.start * PAGE, 0x40000, 0x40000)]
    if str(level & ~1) in told:
        want = [
            (
                int(load["p_paddr"], 16),
                int(load["p_filesz"], 16),
                int(load["p_memsz"], 16),
                load["data_sha256"],
            )
            for load in told[str(level & ~1)]["pt_load"]
            if not load["above_max_mapnr"]
        ]
        assert loads[:-1] == want
    there = vmdump.open(core(kernel))
    with vmdump.open(tmp_path / "dump") as again:
        assert again.size == there.size
        assert again.excluded_size == PAGE * report.excluded_pages
        left_out = bitmaps(kernel)["bitmap1"] & ~bitmaps(kernel)[f"d{level}"]
        excluded = again.excluded_pages(0, left_out.size)
        assert excluded is not None
        assert not (excluded & ~left_out).any()
        for pfn in np.flatnonzero(excluded)[::997].tolist():
            with pytest.raises(ExcludedPage):
                again.read(pfn * PAGE, 1)
        for pfn in np.flatnonzero(bitmaps(kernel)[f"d{level}"])[::997].tolist():
            assert again.read(pfn * PAGE, PAGE) == there.read(pfn * PAGE, PAGE)


@pytest.mark.parametrize("kind", ["kdump-zlib flattened", "kdump-zstd split", "kdump-snappy standard"])
def test_every_form_holds_the_same(kind: str, core: Any, tmp_path: Path) -> None:
    vmdump.convert(core("6.12"), tmp_path / "plain", format="kdump-lzo", exclude=31)
    write(core("6.12"), tmp_path / "other", kind, exclude=31)
    assert held(tmp_path / "other", kind) == held(tmp_path / "plain", "kdump-lzo standard")
    with vmdump.open(opened(tmp_path / "other", kind)) as dump:
        assert dump.dump_level == 31


@pytest.mark.parametrize("format", ["kdump-lzo", "elf"])
def test_filtering_again(format: str, core: Any, tmp_path: Path) -> None:
    """Levels add up, of kdump files without packing anything again."""
    vmdump.convert(core("7.3"), tmp_path / "d16", format=format, exclude=16)
    vmdump.convert(core("7.3"), tmp_path / "d31", format="kdump-lzo", exclude=31)
    report = vmdump.convert(
        tmp_path / "d16", tmp_path / "again", format="kdump-lzo", exclude="cache-private,user"
    )
    assert report.dump_level == (29 if format == "kdump-lzo" else 13)
    assert report.copied_pages == (report.compressed_pages + report.plain_pages) * (format == "kdump-lzo")
    again, once = (Kdump(tmp_path / name) for name in ("again", "d31"))
    if format == "kdump-lzo":
        assert (again.bitmap1, again.bitmap2) == (once.bitmap1, once.bitmap2)
        assert dict(again.pages()) == dict(once.pages())
    else:
        # Short runs of free pages were left in the core.
        assert not (bits(once.bitmap2) & ~bits(again.bitmap2)).any()
    plain = vmdump.convert(tmp_path / "d31", tmp_path / "copy", format="kdump-lzo")
    assert plain.dump_level == 31
    assert Kdump(tmp_path / "copy").bitmap2 == once.bitmap2


def test_an_elf_core_of_a_filtered_dump(core: Any, tmp_path: Path) -> None:
    """What the dump lacks is in no PT_LOAD's bytes, however short the run."""
    vmdump.convert(core("6.1"), tmp_path / "d16", format="kdump-lzo", exclude=16)
    vmdump.convert(tmp_path / "d16", tmp_path / "core", format="elf", exclude=2)
    free = bitmaps("6.1")["bitmap1"] & ~bitmaps("6.1")["d16"]
    with vmdump.open(tmp_path / "core") as dump:
        excluded = dump.excluded_pages(0, free.size)
    assert excluded is not None
    assert (excluded & free).sum() == free.sum()
    assert np.count_nonzero(excluded) > free.sum()


def test_makedumpfile_takes_the_files(core: Any, tmp_path: Path) -> None:
    """Debian's 1.7.2 is right about kernels up to 6.1.

    Of a kdump file with memory above the last struct page, as firmware is, it makes none: it gets the first
    block only.
    """
    pages = expected("6.1")["max_mapnr"]
    for format in ("kdump-lzo", "elf"):
        guest = vmdump.open(core("6.1"))
        low = vmdump.BlockSource([guest.blocks[0]], arch="x86_64", notes=guest.notes)
        vmdump.dump(guest if format == "elf" else low, tmp_path / format, format=format, exclude=16)
        judges.makedumpfile_filter(tmp_path / format, tmp_path / f"{format}.31", "-l", "-d", "31")
        again = Kdump(tmp_path / f"{format}.31")
        found = bits(again.bitmap2)[:pages]
        assert np.array_equal(found, bitmaps("6.1")["d31"][: found.size])
        assert not bitmaps("6.1")["d31"][found.size :].any()
    write(core("6.1"), tmp_path / "split", "kdump-zlib split", exclude=31)
    judges.makedumpfile_reassemble(parts(tmp_path / "split"), tmp_path / "whole")
    assert np.array_equal(bits(Kdump(tmp_path / "whole").bitmap2)[:pages], bitmaps("6.1")["d31"])
    write(core("6.1"), tmp_path / "flat", "kdump-zlib flattened", exclude=31)
    judges.makedumpfile_rearrange(tmp_path / "flat", tmp_path / "standard")
    assert np.array_equal(bits(Kdump(tmp_path / "standard").bitmap2)[:pages], bitmaps("6.1")["d31"])


@pytest.mark.parametrize("format", ["kdump-lzo", "elf"])
def test_other_readers_take_the_files(format: str, core: Any, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    vmdump.convert(core("6.12"), path, format=format, exclude=31)
    there = content(core("6.12"))
    ranges = [(pfn * PAGE, PAGE) for pfn in np.flatnonzero(bitmaps("6.12")["d31"])[::500].tolist()]
    want = [there[address // PAGE].tobytes() for address, _ in ranges]
    assert judges.drgn_read(path, ranges) == want
    assert judges.libkdumpfile_read(path, ranges) == want
    if format == "elf":
        judges.readelf(path, "-l", "-n")
    else:
        excluded = int((bitmaps("6.12")["bitmap1"] & ~bitmaps("6.12")["d31"]).argmax())
        with pytest.raises(Exception, match=r"[Ee]xcluded"):
            judges.drgn_read(path, [(excluded * PAGE, 8)])


def test_the_command(core: Any, tmp_path: Path) -> None:
    done = run("convert", core("6.1"), tmp_path / "a", "-d", 30, "-f", "kdump-lzo", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["dump_level"], report["doubtful_pages"]) == (31, 0)
    names = "cache,cache-private,user,free"
    done = run("dump", core("6.1"), tmp_path / "b", "--exclude", names, "-f", "kdump-lzo", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    done = run("info", tmp_path / "a")
    assert b"vmdump, or makedumpfile" in done.stdout


@pytest.mark.parametrize("level", [0, 1])
def test_zeros_only_take_no_kernel(level: int, tmp_path: Path) -> None:
    data = np.zeros(64 * PAGE, np.uint8)
    data[7 * PAGE] = 1
    plain = vmdump.dump(data, tmp_path / "plain")
    report = vmdump.dump(data, tmp_path / "dump", exclude=level)
    assert (report.dump_level, report.excluded_pages) == (1, 0)
    assert (tmp_path / "dump").read_bytes() == (tmp_path / "plain").read_bytes()
    assert plain.dump_level == 1


@pytest.mark.parametrize("search", [True, False])
def test_without_vmcoreinfo_nothing_is_written(search: bool, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"--vmcoreinfo FILE, or dump all pages with -d 1$"):
        vmdump.dump(bytes(1 << 20), tmp_path / "dump", exclude=31, search=search)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["kdump-zlib", "elf"])
def test_a_stale_vmcoreinfo(format: str, core: Any, tmp_path: Path) -> None:
    with vmdump.open(core("6.12")) as other:
        (tmp_path / "lines").write_bytes(other.vmcoreinfo.text.rstrip(b"\0"))
    out = tmp_path / "out"
    out.mkdir()
    words = ("-d", 31, "-f", format, "--vmcoreinfo", tmp_path / "lines")
    for command in ("dump", "convert"):
        done = run(command, core("7.3"), out / "dump", *words)
        assert done.returncode == CapabilityError.exit_code
        assert done.stderr.count(b"\n") == 1
        assert b"is not that of the kernel in its memory" in done.stderr
        assert list(out.iterdir()) == []
    with pytest.raises(CapabilityError):
        check_request(core("7.3"), out / "dump", exclude=31, vmcoreinfo=tmp_path / "lines")


@pytest.mark.parametrize("words", [("-d", 32), ("-d", -1), ("--exclude", "all"), ("--exclude", "")])
def test_no_levels(words: tuple[object, ...], tmp_path: Path) -> None:
    done = run("dump", "synthetic:2M", tmp_path / "dump", *words)
    assert done.returncode == RequestError.exit_code
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "dump").exists()


def test_what_contradicts_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="QEMU excludes no pages"):
        vmdump.dump("synthetic:2M", tmp_path / "dump", exclude=31, compat="qemu")
    with pytest.raises(RequestError, match="--force-fuzzy"):
        vmdump.dump("synthetic:2M", tmp_path / "dump", exclude="free", pause=False)
    vmdump.dump("synthetic:2M", tmp_path / "dump", exclude="zero", pause=False)


def test_pages_in_doubt_are_kept_and_counted(core: Any, tmp_path: Path) -> None:
    """The report's line says how many; here the struct pages of a section are gone."""
    data = np.array(memory("7.3"))
    with vmdump.open(data) as guest:
        vmemmap = guest.vmcoreinfo.symbol("vmemmap")
        assert vmemmap is not None
        free = int((bitmaps("7.3")["bitmap1"] & ~bitmaps("7.3")["d16"]).argmax())
        place = guest.translate(vmemmap + 64 * free)
    data[0x2000 + place + 40 : 0x2000 + place + 48].view("<u8")[0] = 63
    report = vmdump.dump(vmdump.open(data), tmp_path / "dump", exclude=16)
    assert report.doubtful_pages == 1
    before = np.count_nonzero(bitmaps("7.3")["bitmap1"] & ~bitmaps("7.3")["d16"])
    assert report.excluded_pages < before
