"""vmdump verify: damage and differences are found, named by pfn and told by the exit code."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.excluding import ExcludingSource
from oracles.kdump import DESCRIPTOR_SIZE, Kdump
from oracles.kdump_builder import Build, build_kdump

import vmdump
from vmdump import errors
from vmdump.readers import kdump

PAGE = 4096
GUEST = "synthetic:16M?seed=3&fill=0.5"
DAMAGED, DIFFERENT = 18, 19


def write(path: Path, name: str = "kdump-zlib", source: Any = GUEST) -> Path:
    vmdump.dump(source, path, format=name)
    return path


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_kinds_are_those_of_the_descriptors(codec: str, tmp_path: Path) -> None:
    oracle = Kdump(write(tmp_path / "dump", f"kdump-{codec}"))
    zero = oracle.descriptors["offset"] == oracle.data_offset
    plain = (oracle.descriptors["flags"] == 0) & ~zero
    expected = {"zero": zero.sum(), "plain": plain.sum(), codec: (oracle.descriptors["flags"] != 0).sum()}
    found = vmdump.verify(tmp_path / "dump")
    assert found.kinds == {kind: int(count) for kind, count in expected.items() if count}
    assert found.pages == len(oracle.pfns)
    assert found.whole


def test_every_damaged_page_is_named_and_the_others_are_read(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    dump = write(tmp_path / "dump")
    oracle = Kdump(dump)
    packed = np.flatnonzero(oracle.descriptors["flags"] != 0)
    uses = Counter(oracle.descriptors["offset"].tolist())
    alone = [index for index in packed.tolist() if uses[int(oracle.descriptors["offset"][index])] == 1]
    broken = [alone[0], alone[1], alone[len(alone) // 2], alone[-1]]
    for index in broken[:3]:
        patch(dump, int(oracle.descriptors["offset"][index]), b"\xff" * 2)
    # A descriptor that points behind the file.
    patch(dump, oracle.descriptor_offset + 24 * broken[3], b"\xff" * 8)
    pfns = oracle.pfns[broken].tolist()

    found = vmdump.verify(dump, threads=2)
    assert [damage.pfn for damage in found.damaged] == pfns
    assert found.damaged_pages == 4
    assert sum(found.kinds.values()) == found.pages - 4
    assert found.kinds["zlib"] == len(packed) - 4

    done = run_vmdump("verify", dump)
    assert done.returncode == DAMAGED
    assert done.stderr.decode() == (
        f"vmdump: {dump}: 4 pages cannot be read, the first is pfn {pfns[0]:#x}\n"
    )
    assert all(f"pfn {pfn:#x}: " in done.stdout.decode() for pfn in pfns)
    # What is damaged is not different.
    against = run_vmdump("verify", dump, "--against", GUEST, "--json")
    assert against.returncode == DAMAGED
    report = json.loads(against.stdout)
    assert report["comparison"]["different_pages"] == 0
    assert report["comparison"]["bytes_compared"] == (found.pages - 4) * PAGE


def test_differences_by_pfn(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    elf = write(tmp_path / "elf", "elf")
    other = Path(shutil.copy(elf, tmp_path / "other"))
    patch(other, other.stat().st_size - 1, bytes([other.read_bytes()[-1] ^ 1]))  # of the last block
    with vmdump.open(elf) as dump:
        last = dump.blocks[-1].end // PAGE - 1
    done = run_vmdump("verify", elf, "--against", other, "-q")
    assert done.returncode == DIFFERENT
    assert f"different: pfn {last:#x}\n" in done.stdout.decode()
    assert done.stderr.decode().endswith(f"1 page differs from {other}, the first is pfn {last:#x}\n")
    same = run_vmdump("verify", elf, "--against", GUEST)
    assert same.returncode == 0, same.stderr
    assert "0 pages differ" in same.stdout.decode()


def test_memory_that_one_lacks(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    memory = np.ones(64 * PAGE, np.uint8)
    whole = write(tmp_path / "whole", source=[(0, memory[: 32 * PAGE]), (64 * PAGE, memory[32 * PAGE :])])
    part = write(tmp_path / "part", source=[(8 * PAGE, memory[: 16 * PAGE])])
    found = vmdump.verify(part, against=whole).comparison
    assert found is not None
    assert found.only_in_guest == ((0, 8 * PAGE), (24 * PAGE, 32 * PAGE), (64 * PAGE, 96 * PAGE))
    assert found.only_in_dump == ()
    done = run_vmdump("verify", whole, "--against", part)
    assert done.returncode == DIFFERENT
    assert f"only in {whole}: 0x40000-0x60000" in done.stdout.decode()


def test_lists_are_bounded(tmp_path: Path) -> None:
    ones = write(tmp_path / "ones", source=np.ones(4096 * PAGE, np.uint8))
    found = vmdump.verify(ones, against=np.full(4096 * PAGE, 2, np.uint8)).comparison
    assert found is not None
    assert found.different_pages == 4096
    assert found.different == tuple(page * PAGE for page in range(100))


def test_holes_are_neither_read_nor_lost(tmp_path: Path) -> None:
    """A PT_LOAD may claim 2^60 bytes that are zero: they are counted, not walked."""
    path = tmp_path / "guest.ram"
    with path.open("wb") as file:
        file.truncate(1 << 42)
        file.seek(5 << 30)
        file.write(b"x" * PAGE)
    found = vmdump.verify(f"raw:{path}?base=0", against=f"raw:{path}?base=0")
    assert found.pages == (1 << 42) // PAGE
    assert found.kinds["plain"] < 1024
    assert found.comparison is not None
    assert found.comparison.bytes_compared == 1 << 42
    assert found.whole


def test_excluded_pages_are_counted_and_not_compared() -> None:
    memory = np.random.RandomState(1).randint(0, 256, 64 * PAGE).astype(np.uint8)
    other = memory.copy()
    other[[3 * PAGE, 16 * PAGE, 40 * PAGE, 50 * PAGE]] ^= 1
    small = ExcludingSource([(0, memory)], PAGE, {3, 4})
    large = ExcludingSource([(0, other)], 4 * PAGE, {10})  # pages 40 to 43 of 4 KiB
    found = vmdump.verify(small, against=large).comparison
    assert found is not None
    assert found.excluded_pages == 6
    assert [address // PAGE for address in found.different] == [16, 50]
    assert found.bytes_compared == 58 * PAGE
    back = vmdump.verify(large, against=small).comparison
    assert back is not None
    assert back.excluded_pages == 3
    assert [address // PAGE for address in back.different] == [16, 48]


def test_thousands_of_damaged_pages_of_many_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found in one go: by halves, a million of them took an hour, and so would a hostile file."""
    codecs = ("zlib", "lzo", "snappy", "none")
    pages = {pfn: (b"%d " % pfn * PAGE)[:PAGE] for pfn in range(1200)}
    dump = tmp_path / "dump"
    dump.write_bytes(build_kdump(Build(pages, codecs=codecs)))
    oracle = Kdump(dump)
    broken = np.random.default_rng(1).permutation(1200)[:800].tolist()
    for number, pfn in enumerate(broken):
        if number % 2 or codecs[pfn % 4] == "none":
            place = oracle.descriptor_offset + DESCRIPTOR_SIZE * pfn
            patch(dump, place + 8 * (number % 4 == 1), b"\xff" * 8)  # offset, or size and flags
        else:
            patch(dump, int(oracle.descriptors["offset"][pfn]), b"\xff" * 4)
    reads = []
    read_spans = kdump.read_spans
    monkeypatch.setattr(kdump, "read_spans", lambda *args: reads.append(args) or read_spans(*args))

    found = vmdump.verify(dump, threads=2, against=[(0, b"".join(pages.values()))])
    assert found.damaged_pages == 800
    assert [damage.pfn for damage in found.damaged] == sorted(broken)[:100]
    expected = Counter(codecs[pfn % 4].replace("none", "plain") for pfn in pages.keys() - broken)
    assert found.kinds == expected
    assert found.comparison is not None
    assert found.comparison.equal
    assert found.comparison.bytes_compared == 400 * PAGE
    assert len(reads) < 20

    reads.clear()
    done = vmdump.repair(dump, tmp_path / "repaired", threads=1)
    assert (done.kept_pages, done.lost_pages) == (400, 800)
    assert len(reads) < 20
    with vmdump.open(tmp_path / "repaired") as repaired:
        got = {pfn + index: page.tobytes() for pfn, part in repaired for index, page in enumerate(part)}
    assert got == {pfn: page for pfn, page in pages.items() if pfn not in set(broken)}


@pytest.mark.parametrize(
    ("name", "layout"), [("elf", "auto"), ("kdump-zlib", "standard"), ("kdump-zlib", "flattened")]
)
def test_what_is_cut_short_names_the_way_out(name: str, layout: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    vmdump.dump(GUEST, dump, format=name, layout=layout)
    os.truncate(dump, dump.stat().st_size - 1)
    with pytest.raises(errors.FormatError, match=r"cut short.*, see 'vmdump repair'"):
        vmdump.dump(dump, tmp_path / "out")
    # Of a flattened file only the end mark is damaged.
    assert vmdump.info(dump).damaged_pages == int(layout != "flattened")
