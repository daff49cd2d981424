"""vmdump repair of LiME and AVML files, and of split sets: whole pages come back, nothing else does."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import snappy
from helpers.command import RunVmdump
from hypothesis import given
from hypothesis import strategies as st
from oracles import judges
from oracles.kdump import INCOMPLETE, Kdump
from oracles.kdump_builder import EXCLUDED, Build, build_kdump, build_split
from oracles.lime_builder import FRAME, STREAM, build_avml, build_lime, header

import vmdump
from vmdump import errors
from vmdump.readers.crc32c import masked_crc32c

PAGE = 4096
Ranges = Sequence[tuple[int, bytes]]


def memory(pages: int, seed: int) -> bytes:
    """Pages of text, of noise and of zeros."""
    rng = random.Random(seed)
    kinds = [rng.randbytes(PAGE), (b"%d and so on, " % seed * PAGE)[:PAGE], bytes(PAGE)]
    return b"".join(struct.pack("<QQ", seed, at) + rng.choice(kinds)[16:] for at in range(pages))


RANGES: Ranges = ((0x1000, memory(150, 1)), (0x100000, memory(300, 2)), (0x40000000, memory(97, 3)))
TOTAL = sum(len(data) for _, data in RANGES) // PAGE


def real_avml(ranges: Ranges, *, piece: int = 1 << 18) -> bytes:
    """As AVML writes it, with checksums that somebody else computes."""
    out = bytearray()
    for start, data in ranges:
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            stream = snappy.StreamCompressor().compress(part)
            out += header(b"AVML", 2, start + at, len(part)) + stream + struct.pack("<Q", len(stream))
    return bytes(out)


def truth(ranges: Ranges) -> dict[int, bytes]:
    return {
        (start + at) // PAGE: data[at : at + PAGE]
        for start, data in ranges
        for at in range(0, len(data), PAGE)
    }


def repaired(path: Path, output: Path, ranges: Ranges = RANGES) -> set[int]:
    """Repair a file; every page of the output must be the guest's. Give the pages that are there."""
    done = vmdump.repair(path, output)
    oracle = Kdump(output)
    expected = truth(ranges)
    kept = dict(oracle.pages())
    assert kept == {pfn: expected[pfn] for pfn in kept}
    assert done.kept_pages == len(kept)
    assert done.incomplete == bool(oracle.header["status"] & INCOMPLETE)
    with vmdump.open(output) as dump:
        known = sum(block.size for block in dump.blocks) // PAGE
        assert (dump.excluded_size // PAGE, done.lost_pages) == (known - len(kept),) * 2
    found = vmdump.info(path)
    if found.damage:
        # Without unpacking; damage inside a frame is not seen.
        assert found.damaged_pages <= done.lost_pages
        assert str(path) in found.damage
    return set(kept)


def lime_pages(size: int) -> set[int]:
    """The pages that the first `size` bytes of RANGES as a LiME file hold as a whole."""
    found, at = set(), 0
    for start, data in RANGES:
        at += 32
        for offset in range(0, len(data), PAGE):
            if at + offset + PAGE <= size:
                found.add((start + offset) // PAGE)
        at += len(data)
    return found


@pytest.mark.parametrize(
    "back", [1, 96, 4096, 97 * PAGE - 1, 97 * PAGE, 97 * PAGE + 1, 97 * PAGE + 40, 1_000_000]
)
def test_lime_that_was_cut(back: int, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    data = build_lime(RANGES)
    path = tmp_path / "cut.lime"
    path.write_bytes(data[:-back])
    with pytest.raises(errors.FormatError):
        vmdump.open(path)
    assert repaired(path, tmp_path / "out") == lime_pages(len(data) - back)
    found = json.loads(run_vmdump("info", path, "--json").stdout)
    assert (found["format"], found["incomplete"]) == ("lime", True)


@pytest.mark.parametrize("build", [build_lime, build_avml])
@pytest.mark.parametrize("command", ["info", "repair", "dmesg"])
def test_the_end_of_the_address_space(
    command: str,
    build: Callable[[Sequence[tuple[int, bytes]]], bytes],
    run_vmdump: RunVmdump,
    tmp_path: Path,
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(build([(0x1000, bytes(range(256)) * 64), ((1 << 64) - PAGE, bytes(PAGE))])[:-9])
    done = run_vmdump(command, path, *([tmp_path / "out"] if command == "repair" else []))
    assert done.returncode == errors.FormatError.exit_code
    assert done.stderr.startswith(f"vmdump: {path}: ".encode())
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_log_that_was_cut_off(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """What is lost was not excluded by who made the dump."""
    path = tmp_path / "dump"
    vmdump.dump("synthetic:64M?seed=5&fill=0.8", path, format="elf")
    os.truncate(path, 1 << 20)
    done = run_vmdump("dmesg", path)
    assert done.returncode == errors.ReadError.exit_code
    assert not done.stdout
    assert done.stderr.startswith(f"vmdump: {path}: the memory at ".encode())
    assert done.stderr.count(bytes(path)) == 1
    assert done.stderr.endswith(b"; the log is not in what is left\n")


def test_lime_with_a_damaged_header(tmp_path: Path) -> None:
    """The ranges behind it are found by their headers; what looks like one in memory is none."""
    fake = header(b"EMiL", 1, 0x7000000, 2 * PAGE).ljust(PAGE, b"x")
    ranges = [(0x1000, memory(20, 1)), (0x100000, fake + memory(20, 2)), (0x200000, memory(30, 3))]
    data = bytearray(build_lime(ranges))
    second = 32 + 20 * PAGE
    data[second + 4] = 99
    (tmp_path / "damaged").write_bytes(data)
    kept = repaired(tmp_path / "damaged", tmp_path / "out", ranges)
    assert kept == set(truth([ranges[0], ranges[2]]))
    assert vmdump.info(tmp_path / "out").incomplete


def frame_ends(stream: bytes) -> list[tuple[int, int, int]]:
    """Begin, end and address of each frame with memory."""
    found, at = [], 0
    while at < len(stream):
        _, _, start, last, _ = struct.unpack_from("<4sIQQQ", stream, at)
        at += 32
        done = 0
        while done < last - start + 1:
            kind, size = stream[at], int.from_bytes(stream[at + 1 : at + 4], "little")
            if kind in (0, 1):
                found.append((at, at + 4 + size, start + done))
                done += FRAME
            at += 4 + size
        at += 8
    return found


AVML = real_avml(RANGES)
FRAMES = frame_ends(AVML)


def clip(addresses: Sequence[int]) -> set[int]:
    """The pages of the frames that begin at these addresses; a frame ends with its range."""
    found: set[int] = set()
    for address in addresses:
        start, data = next((s, d) for s, d in RANGES if s <= address < s + len(d))
        end = min(address + FRAME, start + len(data))
        found |= set(range(address // PAGE, end // PAGE))
    return found


@pytest.mark.parametrize("frame", [0, 1, 5, len(FRAMES) - 1])
@pytest.mark.parametrize("more", [-1, 0, 3, 100])
def test_avml_that_was_cut(frame: int, more: int, tmp_path: Path) -> None:
    size = FRAMES[frame][1] + more
    path = tmp_path / "cut.avml"
    path.write_bytes(AVML[:size])
    whole = [at for _, end, at in FRAMES if end <= size]
    if not whole:
        with pytest.raises(errors.FormatError, match=r"cut.avml: none of its memory is intact"):
            vmdump.repair(path, tmp_path / "out")
        return
    assert repaired(path, tmp_path / "out") == clip(whole)


@pytest.mark.parametrize("kind", ["checksum", "data", "type", "length"])
def test_avml_with_a_damaged_frame(kind: str, tmp_path: Path) -> None:
    """Behind a frame whose length is not known, the next piece goes on."""
    data = bytearray(AVML)
    begin, end, address = FRAMES[6]
    if kind == "checksum":
        data[begin + 4] ^= 1
    elif kind == "data":
        data[(begin + end) // 2] ^= 0xFF
    elif kind == "type":
        data[begin] = 2
    else:
        data[begin + 3] = 0xFF
    path = tmp_path / "damaged.avml"
    path.write_bytes(data)
    kept = repaired(path, tmp_path / "out")
    lost = [address]
    if kind in ("type", "length"):
        start = next(s for s, d in RANGES if s <= address < s + len(d))
        piece = (address - start) // (1 << 18)
        lost = [
            at
            for _, _, at in FRAMES
            if at >= address and (at - start) // (1 << 18) == piece and at < start + (2 << 20)
        ]
    assert kept == clip([at for _, _, at in FRAMES if at not in lost])


def test_avml_without_checksums(tmp_path: Path) -> None:
    path = tmp_path / "whole.avml"
    path.write_bytes(build_avml(RANGES))
    assert repaired(path, tmp_path / "out") == set(truth(RANGES))
    assert not vmdump.info(tmp_path / "out").incomplete


def test_other_architectures(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    path = tmp_path / "cut.lime"
    path.write_bytes(build_lime(RANGES)[:-5000])
    done = run_vmdump("repair", f"lime:{path}?arch=aarch64", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert vmdump.info(tmp_path / "out").arch == "aarch64"
    assert vmdump.info(f"lime:{path}?arch=riscv64").arch == "riscv64"


def test_judges_open_the_result(tmp_path: Path) -> None:
    path = tmp_path / "cut.avml"
    path.write_bytes(AVML[: len(AVML) * 2 // 3])
    kept = sorted(repaired(path, tmp_path / "out"))
    chosen = random.Random(1).sample(kept, 20)
    expected = [truth(RANGES)[pfn] for pfn in chosen]
    assert judges.libkdumpfile_read(tmp_path / "out", [(pfn * PAGE, PAGE) for pfn in chosen]) == expected


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 1000, 4096, FRAME - 1, FRAME])
def test_checksums_are_snappys(size: int) -> None:
    data = np.frombuffer(random.Random(size).randbytes(3 * size), np.uint8).reshape(3, size)
    stored = [
        struct.unpack_from("<I", snappy.StreamCompressor().compress(row.tobytes()), len(STREAM) + 4)[0]
        for row in data
    ]
    assert masked_crc32c(data).tolist() == stored


@given(data=st.data())
def test_whatever_is_left_of_ranges(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut anywhere and with bytes changed: an error in one line, or pages; all of AVML's are the guest's."""
    folder = tmp_path_factory.mktemp("any")
    ranges = ((0x1000, memory(20, 1)), (0x100000, memory(40, 2)), (0x200000, memory(9, 3)))
    avml = data.draw(st.booleans())
    raw = bytearray(real_avml(ranges, piece=1 << 16) if avml else build_lime(ranges))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(raw)
    try:
        vmdump.repair(folder / "damaged", folder / "repaired")
    except errors.VmdumpError as error:
        assert "\n" not in str(error)
        assert str(folder / "damaged") in str(error)
        return
    assert not vmdump.verify(folder / "repaired").damaged_pages


# Split sets

PAGES = {pfn: memory(1, pfn) if pfn % 9 else EXCLUDED for pfn in range(16, 200)}
CUTS = (50, 90, 150)
SETS: dict[str, Build] = {
    "zlib": Build(PAGES),
    "mixed": Build(PAGES, codecs=("zlib", "lzo", "none")),
    "32 bits": Build(PAGES, bits=32, machine=b"i686", version=5),
}


def bounds(index: int) -> range:
    edges = [0, *CUTS, 200]
    return range(edges[index], edges[index + 1])


def stored_pages(pfns: Sequence[int]) -> dict[int, bytes]:
    return {pfn: data for pfn in pfns if (data := PAGES.get(pfn)) is not None}


def write_set(name: str, folder: Path) -> list[Path]:
    paths = []
    for index, data in enumerate(build_split(SETS[name], CUTS)):
        paths.append(folder / f"part{index}")
        paths[-1].write_bytes(data)
    return paths


def kept_by(parts: Sequence[Path], output: Path) -> dict[int, bytes]:
    done = vmdump.repair(parts, output)
    with vmdump.open(output) as dump:
        found = {pfn + at: page.tobytes() for pfn, pages in dump for at, page in enumerate(pages)}
        assert dump.size == len(PAGES) * PAGE
        assert dump.incomplete == done.incomplete
    assert done.kept_pages == len(found)
    assert done.lost_pages == len(stored_pages(range(200))) - len(found)
    return found


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("missing", [(), (0,), (1,), (3,), (0, 3), (0, 1, 2)])
def test_sets_with_missing_parts(name: str, missing: tuple[int, ...], tmp_path: Path) -> None:
    paths = write_set(name, tmp_path)
    there = [index for index in (2, 0, 3, 1) if index not in missing]
    found = kept_by([paths[index] for index in there], tmp_path / "out")
    assert found == stored_pages([pfn for index in there for pfn in bounds(index)])
    assert vmdump.info(tmp_path / "out").incomplete == bool(missing)


@pytest.mark.parametrize("cut", [0, 5, 100, 5000, 13000])
def test_set_with_a_part_cut_in_its_headers(cut: int, tmp_path: Path) -> None:
    paths = write_set("zlib", tmp_path)
    os.truncate(paths[1], cut)
    found = kept_by(paths, tmp_path / "out")
    assert found == stored_pages([pfn for index in (0, 2, 3) for pfn in bounds(index)])


def test_set_with_a_part_cut_in_its_data(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    paths = write_set("zlib", tmp_path)
    os.truncate(paths[2], paths[2].stat().st_size - 20_000)
    with vmdump.open(paths) as dump, pytest.raises(errors.FormatError, match=r"part2: .*'vmdump repair'"):
        dump.pages(149, 1)
    done = run_vmdump("repair", *reversed(paths), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert b"marked as incomplete" in done.stderr
    with vmdump.open(tmp_path / "out") as dump:
        found = {pfn + at: page.tobytes() for pfn, pages in dump for at, page in enumerate(pages)}
    others = stored_pages([pfn for index in (0, 1, 3) for pfn in bounds(index)])
    assert others.items() <= found.items() <= stored_pages(range(200)).items()
    assert len(others) < len(found) < len(stored_pages(range(200)))
    assert vmdump.info(paths).damaged_pages == len(stored_pages(range(200))) - len(found)


def test_sets_of_many_parts(tmp_path: Path) -> None:
    """Each says of itself that it has no end: their sum is beyond 64 bits."""
    cuts = tuple(range(20, 200, 10))
    paths = []
    for index, data in enumerate(build_split(SETS["zlib"], cuts)):
        if index != 7:
            paths.append(tmp_path / f"part{index}")
            paths[-1].write_bytes(data)
    found = kept_by(paths, tmp_path / "out")
    assert found == stored_pages([pfn for pfn in range(200) if not 80 <= pfn < 90])


def test_real_set(tmp_path: Path) -> None:
    vmdump.convert("synthetic:64M?seed=5&fill=0.6", tmp_path / "set", split=3)
    judges.require("makedumpfile")
    judges.makedumpfile_reassemble([tmp_path / f"set.{n}" for n in (1, 2, 3)], tmp_path / "whole")
    os.remove(tmp_path / "set.2")
    done = vmdump.repair([tmp_path / "set.3", tmp_path / "set.1"], tmp_path / "out")
    comparison = vmdump.verify(tmp_path / "out", against=tmp_path / "whole").comparison
    assert comparison is not None
    assert comparison.equal
    assert comparison.excluded_pages == done.lost_pages > 1000
    with vmdump.open(tmp_path / "out") as dump:
        pfns = [pfn for pfn, _ in dump][:5]
        assert judges.drgn_read(tmp_path / "out", [(pfn * PAGE, PAGE) for pfn in pfns]) == [
            dump.read(pfn * PAGE, PAGE) for pfn in pfns
        ]


def test_what_is_no_set(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    paths = write_set("zlib", tmp_path)
    (tmp_path / "other").write_bytes(build_kdump(Build({1: memory(1, 1)})))
    (tmp_path / "text").write_bytes(b"no dump" * 1000)
    (tmp_path / "empty").touch()
    for names, told in (
        ((paths[0], tmp_path / "other"), b"other: this is not a part of the split set"),
        ((paths[0], tmp_path / "text"), b"text: this is not a kdump file"),
        ((tmp_path / "empty", tmp_path / "empty"), b"empty: no part of the set has its headers"),
        ((paths[0], paths[0]), b"are in another part, too"),
    ):
        done = run_vmdump("repair", *names, tmp_path / "out")
        assert done.returncode == errors.FormatError.exit_code, done.stderr
        assert told in done.stderr
        assert not (tmp_path / "out").exists()
