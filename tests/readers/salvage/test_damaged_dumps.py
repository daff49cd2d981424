"""Dumps that are damaged or were cut short: what is left is told and read, whatever is missing elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import Load, build_elf, note
from oracles.kdump import DESCRIPTOR_SIZE, INCOMPLETE, Kdump
from oracles.kdump_builder import Build, build_kdump, build_split
from oracles.lime_builder import build_lime
from oracles.small_dumps import VMCOREINFO

import vmdump
from vmdump import PageKind, errors
from vmdump.readers.registry import open_dump

GUEST = "synthetic:32M?seed=5&fill=0.8"
PAGE = 4096
HINT = "see 'vmdump verify', 'vmdump repair'"


def page(pfn: int) -> bytes:
    return struct.pack("<Q", pfn) * (PAGE // 8)


PAGES = {pfn: page(pfn) for pfn in range(16, 80)}


def spoil(path: Path, pfn: int, descriptor: bytes) -> None:
    """Overwrite the begin of a page's descriptor."""
    kdump = Kdump(path)
    index = kdump.pfns.tolist().index(pfn)
    with path.open("r+b") as file:
        file.seek(kdump.descriptor_offset + DESCRIPTOR_SIZE * index)
        file.write(descriptor)


@pytest.fixture
def zero_size(tmp_path: Path) -> Path:
    """Hyper-V's vm2core leaves out the descriptor of a page: all of it is zero but the offset."""
    path = tmp_path / "zero-size"
    path.write_bytes(build_kdump(Build(PAGES, notes=note(b"CORE", 1, bytes(336)), vmcoreinfo=VMCOREINFO)))
    offset = Kdump(path).descriptors["offset"][4]
    spoil(path, 20, struct.pack("<QIIQ", offset, 0, 0, 0))
    return path


def told(run_vmdump: RunVmdump, *names: object) -> tuple[dict[str, object], str]:
    """What info says as JSON and in words; its exit code is 0."""
    found = run_vmdump("info", *names, "--json")
    assert found.returncode == 0, found.stderr
    text = run_vmdump("info", *names)
    assert text.returncode == 0
    assert not text.stderr
    return json.loads(found.stdout), text.stdout.decode()


def test_info_counts_behind_a_damaged_descriptor(zero_size: Path, run_vmdump: RunVmdump) -> None:
    found, text = told(run_vmdump, zero_size)
    assert found["damaged_pages"] == 1
    assert found["pages"] == 64
    assert found["kinds"] == {"zlib": 63}
    assert found["damage"] == ""
    assert found["vmcoreinfo"]
    assert f"1 descriptor is damaged, {HINT}" in text
    assert "256.0 KiB in 1 block\n" in text


@pytest.mark.parametrize(
    "descriptor",
    [bytes(24), struct.pack("<QII", 1 << 60, 99, 1), struct.pack("<QII", 8192, 5000, 1), b"\xff" * 24],
)
def test_only_the_damaged_page_cannot_be_read(descriptor: bytes, zero_size: Path) -> None:
    spoil(zero_size, 77, descriptor)
    with vmdump.open(zero_size) as dump:
        for pfn, data in PAGES.items():
            if pfn in (20, 77):
                for question in (dump.read, dump.page_kinds, dump.pages):
                    with pytest.raises(errors.FormatError, match=r"zero-size: .*'vmdump repair'"):
                        question(pfn * PAGE, 8) if question == dump.read else question(pfn, 1)
            else:
                assert dump.read(pfn * PAGE, PAGE) == data
        kinds, damaged = dump.kinds_and_damage(0, 100)
        assert (np.flatnonzero(damaged) == [20, 77]).all()
        assert kinds[[15, 16, 19, 20, 21, 79, 80]].tolist() == [
            0,
            *[PageKind.ZLIB] * 2,
            0,
            *[PageKind.ZLIB] * 2,
            0,
        ]
    assert vmdump.info(zero_size).damaged_pages == 2


def test_a_million_damaged_descriptors_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    vmdump.dump("synthetic:64M?seed=5&fill=0.8", path)
    kdump = Kdump(path)
    with path.open("r+b") as file:
        file.seek(kdump.descriptor_offset)
        file.write(b"\xff" * DESCRIPTOR_SIZE * len(kdump.pfns))
    found = vmdump.info(path)
    assert (found.damaged_pages, found.kinds) == (len(kdump.pfns), {})


@pytest.mark.parametrize("output_format", ["kdump-zlib", "kdump-zstd", "elf"])
def test_convert_keeps_going(
    output_format: str, zero_size: Path, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    refused = run_vmdump("convert", zero_size, tmp_path / "out", "-f", output_format)
    assert refused.returncode == errors.FormatError.exit_code
    assert b"'vmdump repair'" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = run_vmdump("convert", zero_size, tmp_path / "out", "-f", output_format, "--keep-going", "--json")
    assert done.returncode == errors.IncompleteDump.exit_code == 15
    assert len(done.stderr.splitlines()) == 1
    assert f"1 page of {zero_size} cannot be read" in done.stderr.decode()
    assert json.loads(done.stdout)["lost_pages"] == 1
    with vmdump.open(tmp_path / "out") as dump:
        assert dump.incomplete
        assert {pfn: dump.read(pfn * PAGE, PAGE) for pfn in PAGES if pfn != 20} == {
            pfn: data for pfn, data in PAGES.items() if pfn != 20
        }
        with pytest.raises(errors.ExcludedPage):
            dump.read(20 * PAGE, 1)
    if output_format == "elf":
        assert ElfCore(tmp_path / "out")
    else:
        ranges = [(pfn * PAGE, PAGE) for pfn in (16, 19, 21, 79)]
        assert judges.libkdumpfile_read(tmp_path / "out", ranges) == [page(at // PAGE) for at, _ in ranges]
        assert Kdump(tmp_path / "out").header["status"] & INCOMPLETE


def test_convert_keeps_going_without_damage(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(build_kdump(Build(PAGES)))
    done = run_vmdump("convert", tmp_path / "whole", tmp_path / "out", "--keep-going", "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    assert not Kdump(tmp_path / "out").header["status"] & INCOMPLETE
    with vmdump.open(tmp_path / "whole") as dump, pytest.raises(errors.RequestError, match="keep_going"):
        vmdump.convert(dump, tmp_path / "again", keep_going=True)


def test_convert_keeps_going_with_a_set(tmp_path: Path) -> None:
    parts = build_split(Build(PAGES), (30, 50))
    for index in (0, 2):
        (tmp_path / f"part{index}").write_bytes(parts[index])
    names = [tmp_path / "part2", tmp_path / "part0"]
    with pytest.raises(errors.CapabilityError, match="'vmdump repair'"):
        vmdump.convert(names, tmp_path / "out")
    assert vmdump.convert(names, tmp_path / "out", keep_going=True).lost_pages == 20
    assert vmdump.info(tmp_path / "out").kinds == {"zlib": 44, "excluded": 20}


# Files that do not open as a whole


@pytest.mark.parametrize("share", [0.9, 0.3])
@pytest.mark.parametrize(
    ("output_format", "layout"), [("elf", "auto"), ("kdump-lzo", "standard"), ("kdump-lzo", "flattened")]
)
def test_info_of_a_file_that_was_cut(
    output_format: str, layout: str, share: float, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    vmdump.dump(GUEST, path, format=output_format, layout=layout)
    whole = vmdump.info(path)
    os.truncate(path, int(path.stat().st_size * share))
    found, text = told(run_vmdump, path)
    assert found["blocks"] == [list(block) for block in whole.blocks]
    assert (found["arch"], found["pages"], found["vmcoreinfo"]) == (whole.arch, whole.pages, whole.vmcoreinfo)
    lost = found["damaged_pages"]
    assert isinstance(lost, int)
    assert 0 < lost < whole.pages
    assert isinstance(found["kinds"], dict)
    assert sum(found["kinds"].values()) == whole.pages - lost
    done = vmdump.repair(path, tmp_path / "repaired")
    assert done.lost_pages == lost
    assert HINT in text
    if found["damage"]:  # a kdump file opens, and only pages at its end cannot be read
        assert str(path) in str(found["damage"])
        with pytest.raises(errors.VmdumpError):
            vmdump.open(path)


@pytest.mark.parametrize("size", [5000, 9000, 14000])
def test_info_of_headers_only(size: int, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    vmdump.dump(GUEST, path)
    kdump, whole = Kdump(path), vmdump.info(path)
    os.truncate(path, kdump.bitmap_offset + size)
    with pytest.raises(errors.FormatError):
        vmdump.open(path)
    found = vmdump.info(path)
    assert str(path) in found.damage
    assert found.vmcoreinfo == whole.vmcoreinfo
    assert found.kinds == {}
    assert found.damaged_pages == found.pages > 0


def test_info_of_a_part_of_a_set(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(build_split(Build(PAGES), (30,))[1])
    found, _ = told(run_vmdump, tmp_path / "part")
    assert "open all of its parts" in str(found["damage"])
    assert (found["damaged_pages"], found["kinds"]) == (14, {"zlib": 50})


def test_info_of_what_is_no_dump_is_an_error(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """One line, about the file as a whole, not about what a repair would have wanted."""
    for data in (b"\x7fELF" + bytes(8), b"KDUMP   " + bytes(100), b"QFI\xfb" + bytes(100), b""):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(errors.VmdumpError) as caught:
            vmdump.open(tmp_path / "file")
        done = run_vmdump("info", tmp_path / "file")
        assert done.returncode == caught.value.exit_code
        assert done.stderr.decode() == f"vmdump: {caught.value}\n"


def test_info_with_damaged_notes(tmp_path: Path) -> None:
    """Notes in front of the damaged one are counted, and nothing else suffers."""
    good = note(b"CORE", 1, bytes(336))
    bad = struct.pack("<III", 5, 1 << 20, 1) + b"CORE\0\0\0\0"
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(Build(PAGES, notes=note(b"VMCOREINFO", 0, VMCOREINFO) + good + bad)))
    found = vmdump.info(path)
    assert (found.notes, found.cpus) == ({"VMCOREINFO": 1, "CORE": 1}, 1)
    assert str(path) in found.damage
    assert found.kinds == {"zlib": 64}


# A disk that is full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mount.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("options", [("-l", "-d0"), ("-c", "-d1"), ("-E", "-d0"), ("-F", "-l", "-d0")])
def test_makedumpfile_on_a_full_disk(options: tuple[str, ...], run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """It writes what it has, and marks it as incomplete: descriptors of later pages are zero."""
    judges.require("makedumpfile")
    full, disk = tmp_path / "full", tmp_path / "disk"
    vmdump.dump(GUEST, full, format="elf" if "-E" in options else "kdump-lzo")
    disk.mkdir()
    with small_disk(disk, "4M"):
        path = disk / "vmcore-incomplete"
        flat = "-F" in options
        with (path if flat else tmp_path / "messages").open("wb") as output:
            words = [full] if flat else [full, path]
            done = subprocess.run(["makedumpfile", *options, *words], check=False, stdout=output, stderr=-1)
        assert done.returncode == 1
        found, text = told(run_vmdump, path)
        lost = found["damaged_pages"]
        assert isinstance(lost, int)
        assert lost > 1000
        assert HINT in text
        assert found["incomplete"]
        whole = vmdump.info(full)
        assert isinstance(found["kinds"], dict)
        assert sum(found["kinds"].values()) + lost == found["pages"]
        assert found["vmcoreinfo"] == whole.vmcoreinfo
        verified = run_vmdump("verify", path)
        if not found["damage"]:
            assert verified.returncode == errors.DamagedPages.exit_code
            assert vmdump.verify(path).damaged_pages == lost
        done = run_vmdump("repair", path, tmp_path / "repaired", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["lost_pages"] == lost
        going = run_vmdump("convert", path, tmp_path / "converted", "--keep-going", "-f", "kdump-zlib")
        assert going.returncode == errors.IncompleteDump.exit_code
    for result in ("repaired", "converted"):
        comparison = vmdump.verify(tmp_path / result, against=full).comparison
        assert comparison is not None
        assert not comparison.different_pages
        assert vmdump.info(tmp_path / result).incomplete
    with vmdump.open(tmp_path / "converted") as dump:
        kept = [pfn for pfn, _ in dump][:3]
        expected = [dump.read(pfn * PAGE, PAGE) for pfn in kept]
    ranges = [(pfn * PAGE, PAGE) for pfn in kept]
    assert judges.drgn_read(tmp_path / "converted", ranges) == expected
    assert judges.libkdumpfile_read(tmp_path / "converted", ranges) == expected


@pytest.mark.parametrize("damage", ["length", "place", "size"])
def test_a_core_with_a_damaged_note(damage: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """Header, memory and the notes in front of it are told, and kept by repair."""
    status = note(b"CORE", 1, bytes(336))
    notes = status + note(b"LINUX", 7, b"rest")
    core = bytearray(build_elf([Load(0x100000, b"memory.." * 1024)], notes=notes))
    at, length = struct.unpack_from("<Q", core, 64 + 8)[0], struct.unpack_from("<Q", core, 64 + 32)[0]
    assert core[at : at + length].startswith(status)
    if damage == "length":
        struct.pack_into("<I", core, at + len(status) + 4, 0x7FFFFFF0)
    else:
        struct.pack_into("<Q", core, 64 + (8 if damage == "place" else 32), 1 << 40)
    path, out = tmp_path / "core", tmp_path / "out"
    path.write_bytes(core)
    with pytest.raises(errors.FormatError):
        vmdump.open(path)
    found, _ = told(run_vmdump, path)
    kept = int(damage == "length")
    assert found["blocks"] == [[0x100000, 0x102000]]
    assert found["kinds"] == {"plain": 2}
    assert found["notes"] == ({"CORE": 1} if kept else {})
    assert str(path) in str(found["damage"])
    done = vmdump.repair(path, out)
    assert (done.kept_pages, done.lost_pages, done.incomplete) == (2, 0, True)
    with vmdump.open(out) as dump:
        assert dump.read(0x100000, 8192) == b"memory.." * 1024
        assert dump.notes == status * kept


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["elf", "lime"])
def test_pages_that_are_lost_are_not_given_as_zeros(kind: str, threads: int, tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * (PAGE * 40 // 255 + 1)
    first, second = data[: 30 * PAGE], data[: 9 * PAGE]
    memory = [(0x10000, first), (0x100000, second)]
    file = build_elf([Load(*part) for part in memory]) if kind == "elf" else build_lime(memory)
    path, out = tmp_path / "dump", tmp_path / "out"
    path.write_bytes(file[: -7 * PAGE])
    vmdump.repair(path, out)
    with vmdump.open(out) as dump, open_dump(path, damaged=True) as damaged:
        for one in (dump, damaged):
            seen = {
                pfn + at: page for pfn, pages in one.batches(threads=threads) for at, page in enumerate(pages)
            }
            assert sorted(seen) == [*range(0x10, 0x2E), 0x100, 0x101]
            assert seen[0x101].tobytes() == second[PAGE : 2 * PAGE]


@pytest.mark.parametrize("bits", [32, 64])
def test_an_empty_vmcoreinfo(bits: int, tmp_path: Path) -> None:
    """Its place without bytes would be taken for the padding of another form of the sub-header."""
    core = build_elf(
        [Load(0x100000, b"memory.." * 512)],
        notes=note(b"VMCOREINFO", 0, b""),
        bits=bits,
        machine=bits // 64 * 59 + 3,
    )
    (tmp_path / "core").write_bytes(core)
    vmdump.convert(tmp_path / "core", tmp_path / "out")
    with vmdump.open(tmp_path / "out") as dump:
        assert dump.read(0x100000, PAGE) == b"memory.." * 512
