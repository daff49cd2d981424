"""vmdump repair: every page that is whole comes back, no other one does, and others open the result."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from hypothesis import given
from hypothesis import strategies as st
from oracles import judges
from oracles.flattened import Flattened
from oracles.kdump import DESCRIPTOR_SIZE, INCOMPLETE, Kdump

import vmdump
from vmdump import errors

GUEST = "synthetic:16M?seed=5&fill=0.6"
PAGE = 4096
Golden = Callable[[str, str], Path]


def cut(path: Path, size: int, target: Path) -> Path:
    shutil.copy(path, target)
    os.truncate(target, size)
    return target


class Held:
    """Which bytes of the standard layout a file still holds; each as one byte of truth."""

    def __init__(self, size: int) -> None:
        self._there = np.zeros(size + 1, np.int8)

    def add(self, begin: int, end: int) -> None:
        self._there[begin:end] = 1

    def all(self, begin: int, end: int) -> bool:
        return end < len(self._there) and bool(self._there[begin:end].all())


def records_before(path: Path, size: int, held: Held) -> None:
    """Mark what the records of the first `size` bytes of a flattened file hold, the cut one included."""
    raw = path.read_bytes()[:size]
    at = 4096
    while at + 16 < size:
        offset, length = struct.unpack_from(">qq", raw, at)
        if offset < 0:
            return
        held.add(offset, offset + min(length, size - at - 16))
        at += 16 + length


def whole_pages(full: Kdump, held: Held) -> dict[int, int]:
    """The pages of an undamaged file whose descriptor and data are held: index by pfn."""
    found = {}
    for index, pfn in enumerate(full.pfns.tolist()):
        place = full.descriptor_offset + DESCRIPTOR_SIZE * index
        offset, size, _, _ = full.descriptors[index].tolist()
        bit = full.bitmap_offset + len(full.bitmap1) + pfn // 8
        if (
            held.all(bit, bit + 1)
            and held.all(place, place + DESCRIPTOR_SIZE)
            and held.all(offset, offset + size)
        ):
            found[pfn] = index
    return found


def check_kdump(repaired: Path, full: Kdump, expected: dict[int, int]) -> Kdump:
    oracle = Kdump(repaired)
    assert oracle.pfns.tolist() == list(expected)
    assert oracle.header["status"] & INCOMPLETE == (0 if len(expected) == len(full.pfns) else INCOMPLETE)
    assert oracle.codec_flag == full.codec_flag
    for pfn, index in expected.items():
        assert oracle.page(pfn) == full.page_at(index), f"pfn {pfn:#x}"
    return oracle


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
@pytest.mark.parametrize("share", [0.99, 0.6, 0.25])
def test_truncated_standard_file(codec: str, share: float, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "full", format=f"kdump-{codec}")
    size = int((tmp_path / "full").stat().st_size * share)
    full, held = Kdump(tmp_path / "full"), Held((tmp_path / "full").stat().st_size)
    held.add(0, size)
    expected = whole_pages(full, held)
    assert 0 < len(expected) < len(full.pfns)
    done = vmdump.repair(cut(tmp_path / "full", size, tmp_path / "cut"), tmp_path / "repaired")
    assert (done.kept_pages, done.lost_pages) == (len(expected), len(full.pfns) - len(expected))
    assert done.incomplete
    assert done.report.copied_pages > 0
    oracle = check_kdump(tmp_path / "repaired", full, expected)
    assert oracle.bitmap1 == full.bitmap1
    pfns = random.Random(1).sample(sorted(expected), 20)
    pages = [full.page_at(expected[pfn]) for pfn in pfns]
    ranges = [(pfn * PAGE, PAGE) for pfn in pfns]
    assert judges.libkdumpfile_read(tmp_path / "repaired", ranges) == pages
    assert judges.drgn_read(tmp_path / "repaired", ranges) == pages
    assert vmdump.info(tmp_path / "repaired").incomplete


@pytest.mark.parametrize("machine", ["x86_64-q35", "aarch64-virt", "ppc-g3", "arm-virt"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_truncated_flattened_file_of_qemu(
    machine: str, share: float, golden: Golden, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    """QEMU's descriptors and data alternate: what was written so far is there, up to the last descriptors."""
    path = golden(machine, "kdump-zlib")
    Flattened(path).rearrange(tmp_path / "full")
    full, held = Kdump(tmp_path / "full"), Held((tmp_path / "full").stat().st_size)
    size = int(path.stat().st_size * share)
    records_before(path, size, held)
    expected = whole_pages(full, held)
    done = run_vmdump("repair", cut(path, size, tmp_path / "cut"), tmp_path / "repaired", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept_pages"] == len(expected)
    check_kdump(tmp_path / "repaired", full, expected)


@pytest.mark.parametrize("codec", ["zlib", "snappy"])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.3])
def test_truncated_flattened_file(codec: str, share: float, tmp_path: Path) -> None:
    """Bitmap and descriptors come between the data, so that little is lost of a stream that breaks off."""
    vmdump.dump(
        "synthetic:64M?seed=5&fill=0.6", tmp_path / "flat", format=f"kdump-{codec}", layout="flattened"
    )
    Flattened(tmp_path / "flat").check().rearrange(tmp_path / "full")
    full, held = Kdump(tmp_path / "full").check(), Held((tmp_path / "full").stat().st_size)
    size = int((tmp_path / "flat").stat().st_size * share)
    records_before(tmp_path / "flat", size, held)
    expected = whole_pages(full, held)
    assert len(expected) > (share - 0.2) * len(full.pfns)
    done = vmdump.repair(cut(tmp_path / "flat", size, tmp_path / "cut"), tmp_path / "repaired")
    assert (done.kept_pages, done.lost_pages) == (len(expected), len(full.pfns) - len(expected))
    check_kdump(tmp_path / "repaired", full, expected)
    zero = int((full.descriptors["offset"][list(expected.values())] == full.data_offset).sum())
    assert done.report.zero_pages == zero > 0


def test_only_the_end_mark_is_missing(golden: Golden, tmp_path: Path) -> None:
    path = golden("x86_64-q35", "kdump-zlib")
    with pytest.raises(errors.FormatError):
        vmdump.open(cut(path, path.stat().st_size - 16, tmp_path / "cut"))
    done = vmdump.repair(tmp_path / "cut", tmp_path / "repaired")
    assert (done.lost_pages, done.incomplete) == (0, False)
    assert vmdump.verify(tmp_path / "repaired", against=path).whole


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """Pages that do not unpack, and descriptors that point anywhere, are dropped; the others are kept."""
    vmdump.dump(GUEST, tmp_path / "full")
    full = Kdump(tmp_path / "full")
    packed = np.flatnonzero(full.descriptors["flags"] != 0).tolist()
    offsets = full.descriptors["offset"].tolist()
    alone = [index for index in packed if offsets.count(offsets[index]) == 1]
    broken = alone[5:400:80]
    shutil.copy(tmp_path / "full", tmp_path / "damaged")
    with (tmp_path / "damaged").open("r+b") as file:
        for index in broken[:-2]:
            file.seek(offsets[index])
            file.write(b"\xff\xff")
        for index, value in zip(broken[-2:], (b"\xff" * 8, bytes(24)), strict=True):
            file.seek(full.descriptor_offset + DESCRIPTOR_SIZE * index)
            file.write(value)
    done = vmdump.repair(tmp_path / "damaged", tmp_path / "repaired")
    assert done.lost_pages == len(broken)
    expected = {pfn: index for index, pfn in enumerate(full.pfns.tolist()) if index not in broken}
    check_kdump(tmp_path / "repaired", full, expected)


@pytest.mark.parametrize("where", ["bitmap1", "bitmap2", "descriptors"])
def test_truncated_before_the_data(where: str, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "full")
    full = Kdump(tmp_path / "full")
    size = {
        "bitmap1": full.bitmap_offset + 100,
        "bitmap2": full.bitmap_offset + len(full.bitmap1) + 100,
        "descriptors": full.descriptor_offset + 1000,
    }[where]
    done = vmdump.repair(cut(tmp_path / "full", size, tmp_path / "cut"), tmp_path / "repaired")
    assert done.kept_pages == 0
    assert done.incomplete
    with vmdump.open(tmp_path / "full") as whole, vmdump.open(tmp_path / "repaired") as repaired:
        assert repaired.vmcoreinfo.text == whole.vmcoreinfo.text
        known = full.bitmap1[:100] if where == "bitmap1" else full.bitmap1
        assert repaired.size == PAGE * sum(byte.bit_count() for byte in known)
        with pytest.raises(errors.ExcludedPage):
            repaired.read(0, 16)


@pytest.mark.parametrize("share", [0.9, 0.4])
def test_truncated_elf(share: float, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "full", format="elf")
    size = int((tmp_path / "full").stat().st_size * share) | 1
    path = cut(tmp_path / "full", size, tmp_path / "cut")
    with pytest.raises(errors.FormatError):
        vmdump.open(path)
    done = run_vmdump("repair", path, tmp_path / "repaired")
    assert done.returncode == 0, done.stderr
    assert b"marked as incomplete" in done.stderr
    heads = judges.readelf(tmp_path / "repaired", "-h")
    assert "Flags:                             0x1\n" in heads
    with vmdump.open(tmp_path / "full") as whole, vmdump.open(tmp_path / "repaired") as repaired:
        assert repaired.incomplete
        assert [block.start for block in repaired.blocks] == [block.start for block in whole.blocks]
        assert repaired.size == whole.size
        found = vmdump.verify(repaired, against=whole).comparison
        assert found is not None
        assert found.equal
        assert found.excluded_pages == repaired.excluded_size // PAGE
        # Headers and notes are in front; the memory that was cut off is lost, in whole pages.
        lost = (tmp_path / "full").stat().st_size - size
        assert lost <= repaired.excluded_size < lost + PAGE
    again = run_vmdump("repair", path, tmp_path / "repaired")
    assert again.returncode == errors.OutputExists.exit_code


def test_incomplete_stays_incomplete(tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "full")
    cut(tmp_path / "full", (tmp_path / "full").stat().st_size // 2, tmp_path / "cut")
    vmdump.repair(tmp_path / "cut", tmp_path / "repaired")
    vmdump.dump(tmp_path / "repaired", tmp_path / "again", format="elf")
    assert vmdump.info(tmp_path / "again").incomplete
    vmdump.dump(tmp_path / "again", tmp_path / "back", format="kdump-lzo")
    assert Kdump(tmp_path / "back").header["status"] & INCOMPLETE
    assert (
        vmdump.info(tmp_path / "back").kinds["excluded"]
        == vmdump.info(tmp_path / "repaired").kinds["excluded"]
    )


@pytest.mark.parametrize("name", ["empty", "short", "text"])
def test_what_was_never_a_dump(name: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    data = {"empty": b"", "short": b"KDUMP   " + bytes(20), "text": b"hello world" * 1000}[name]
    (tmp_path / "file").write_bytes(data)
    done = run_vmdump("repair", tmp_path / "file", tmp_path / "repaired")
    assert done.returncode in (errors.FormatError.exit_code, errors.LayoutError.exit_code), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "repaired").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    vmdump.dump("synthetic:2M?seed=5", folder / "dump")
    return (folder / "dump").read_bytes()


@given(data=st.data())
def test_whatever_is_repaired_can_be_read(
    data: st.DataObject, small: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    raw = bytearray(small[: data.draw(st.integers(0, len(small)))])
    for _ in range(data.draw(st.integers(0, 5))):
        if raw:
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(raw)
    try:
        vmdump.repair(folder / "damaged", folder / "repaired")
    except errors.VmdumpError as error:
        assert "\n" not in str(error)
        return
    assert not vmdump.verify(folder / "repaired").damaged_pages
