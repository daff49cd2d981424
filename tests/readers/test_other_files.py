"""LiME, AVML, raw and ELF files, buffers, flattened files of all kinds, and what is refused by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import mmap
import shutil
import struct
import subprocess
import threading
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zstandard
from helpers.command import RunVmdump
from hypothesis import given
from hypothesis import strategies as st
from oracles import judges
from oracles.elf_builder import Load, build_elf
from oracles.kdump_builder import EXCLUDED, Build, build_kdump
from oracles.lime_builder import STREAM, build_avml, build_lime, frame, header

import vmdump
from vmdump import PageKind
from vmdump.errors import CapabilityError, CodecError, FormatError, LayoutError, ReadError, RequestError

PAGE = 4096
RANDOM = np.random.default_rng(3)


def memory(pages: int, seed: int) -> bytes:
    """Pages of text, noise and zeros."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, pages)
    noise = random.integers(0, 256, PAGE, np.uint8).tobytes()
    return b"".join((bytes(PAGE), noise, (b"%d guest " % seed * PAGE)[:PAGE])[kind] for kind in kinds)


RANGES = [(0x1000, memory(157, 1)), (0x100000, memory(700, 2)), (0x500000000, memory(33, 3))]


def check(dump: vmdump.Dump, ranges: list[tuple[int, bytes]]) -> None:
    assert [(block.start, block.size) for block in dump.blocks] == [(at, len(data)) for at, data in ranges]
    for start, data in ranges:
        size = len(data)
        for offset, length in [(0, 1), (5, 70000), (PAGE - 1, 2), (size - 9, 9), (65530, 12), (0, size)]:
            if offset < size:
                length = min(length, size - offset)
                assert dump.read(start + offset, length) == data[offset : offset + length]
        assert start in dump
        assert np.uint64(start) in dump
        assert "start" not in dump
        assert start + len(data) not in dump
        assert start - 1 not in dump
        with pytest.raises(ReadError):
            dump.read(start + len(data) - 1, 2)
        pages = dump.pages(start // PAGE, len(data) // PAGE, threads=2)
        assert pages.tobytes() == data
        assert (dump.page_kinds(start // PAGE, len(data) // PAGE) >= PageKind.ZERO).all()
        assert dump.page_kinds(start // PAGE - 1, 1)[0] == PageKind.MISSING
    for threads in (1, 3):
        seen = [(pfn * PAGE, batch.tobytes()) for pfn, batch in dump.batches(threads=threads)]
        assert b"".join(data for _, data in seen) == b"".join(data for _, data in ranges)
        assert {at for at, _ in ranges} <= {at for at, _ in seen}
    assert dump.format in repr(dump)


@pytest.mark.parametrize("build", [build_lime, build_avml, lambda ranges: build_avml(ranges, piece=1 << 18)])
@pytest.mark.parametrize("where", ["file", "bytes", "mmap", "numpy"])
def test_lime_and_avml(build: object, where: str, tmp_path: Path) -> None:
    data = build(RANGES)  # type: ignore[operator]
    path = tmp_path / "memory.lime"
    path.write_bytes(data)
    with path.open("rb") as file:
        source = {
            "file": path,
            "bytes": data,
            "mmap": mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
            "numpy": np.frombuffer(data, np.uint16) if len(data) % 2 == 0 else memoryview(data),
        }[where]
        with vmdump.open(source, arch="aarch64") as dump:
            assert dump.arch.name == "aarch64"
            check(dump, RANGES)


def test_architecture_is_asked_only_where_nothing_tells() -> None:
    with vmdump.open(build_lime(RANGES)) as dump:
        assert dump.arch.name == "x86_64"
    with pytest.raises(RequestError, match="arch"):
        vmdump.open(build_elf([Load(0, bytes(PAGE))]), arch="aarch64")
    with pytest.raises(RequestError, match="vax"):
        vmdump.open(build_lime(RANGES), arch="vax")


def test_architecture_in_the_name(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """Wherever a dump is named, on the command line as well."""
    path, core = tmp_path / "ram?a", tmp_path / "core"
    path.write_bytes(build_lime(RANGES))
    core.write_bytes(build_elf([Load(0, bytes(PAGE))]))
    done = run_vmdump("info", f"lime:{path}?arch=aarch64", "--json")
    assert json.loads(done.stdout)["arch"] == "aarch64"
    for source, told in ((f"lime:{core}", "is not a LiME"), (f"avml:{path}?base=0", "base: avml sources")):
        done = run_vmdump("info", source)
        assert (done.returncode, told in done.stderr.decode()) == (RequestError.exit_code, True)


PAIR = build_avml([(0, memory(40, 9))])
FIRST = len(header(b"AVML", 2, 0, 1)) + len(STREAM)

# 64 KiB claimed by the bytes of 62 KiB: copies of 64 bytes take 3 each.
THIN_FRAME = struct.pack("<I", (4 + 2 + 2900) << 8) + bytes(4) + b"\x80\x80\x04" + bytes(2899)
FRAME_OF_4_GIB = struct.pack("<I", 9 << 8) + bytes(4) + b"\xff\xff\xff\xff\x0f"


@pytest.mark.parametrize(
    "data",
    [
        build_lime(RANGES)[:-1],
        build_lime(RANGES) + b"EMiL",
        build_lime(RANGES) + bytes(40),
        header(b"EMiL", 2, 0, PAGE) + bytes(PAGE),
        header(b"EMiL", 1, 0x2000, PAGE - 0x2000) + bytes(PAGE),
        b"EMiL" + struct.pack("<IQQQ", 1, 0, (1 << 64) - 1, 0) + bytes(PAGE),
        build_lime([(0, bytes(2 * PAGE)), (PAGE, bytes(PAGE))]),
        PAIR[:-1],
        PAIR[:200],
        PAIR[:FIRST],
        PAIR[:FIRST] + b"\x02" + PAIR[FIRST + 1 :],
        PAIR[:FIRST] + b"\x00\xff\xff\xff" + PAIR[FIRST + 4 :],
        PAIR[:40] + b"xxxxxx" + PAIR[46:],
        header(b"AVML", 2, 0, PAGE) + STREAM + frame(bytes(2 * PAGE)) + bytes(8),
        header(b"AVML", 2, 0, PAGE) + STREAM + FRAME_OF_4_GIB + bytes(99),
        header(b"AVML", 2, 0, PAGE) + STREAM + struct.pack("<I", 4 << 8) + bytes(99),
        header(b"AVML", 2, 0, 1 << 16) + STREAM + THIN_FRAME + bytes(8),
        header(b"AVML", 3, 0, PAGE) + bytes(99),
        header(b"AVML", 2, 0, 1 << 40) + STREAM + (struct.pack("<I", 0x80) * 70000),
        header(b"AVML", 2, 0, 1 << 20) + STREAM + frame(b"x") * 70000 + bytes(8),
    ],
    # Not the bytes: snappy may pack the same ones otherwise in another process.
    ids=map(str, count()),
)  # fmt: skip
def test_lime_and_avml_that_lie(data: bytes) -> None:
    with pytest.raises((FormatError, LayoutError)):
        vmdump.open(data)


def test_avml_frame_that_does_not_unpack() -> None:
    damaged = bytearray(header(b"AVML", 2, 0, PAGE) + STREAM + frame(memory(1, 2)) + bytes(8))
    damaged[-12] ^= 0xFF
    damaged[60] ^= 0xFF
    with vmdump.open(damaged) as dump, pytest.raises(CodecError, match="memory at 0x0"):
        dump.read(0, 9)


def test_raw(tmp_path: Path) -> None:
    data = memory(50, 4)
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + 64 * PAGE)
    with vmdump.open(f"raw:{path}?base=0x40000000&arch=riscv64") as dump:
        assert (dump.arch.name, dump.format) == ("riscv64", "raw")
        check(dump, [(0x40000000, data + bytes(64 * PAGE))])
        assert dump.page_kinds(0x40000 + 50 + 16, 40).tolist() == [PageKind.ZERO] * 40


def test_elf_beyond_filesz_is_zero_and_known_to_be() -> None:
    core = build_elf([Load(0x10000, memory(3, 5), memsz=9 * PAGE), Load(0x100000, memory(2, 6))])
    with vmdump.open(core) as dump:
        check(dump, [(0x10000, memory(3, 5) + bytes(6 * PAGE)), (0x100000, memory(2, 6))])
        kinds = dump.page_kinds(14, 14).tolist()
        assert kinds == [0, 0, *[PageKind.PLAIN] * 3, *[PageKind.ZERO] * 6, 0, 0, 0]
        assert dump.stored_pages(16, 1) is None
        assert dump.excluded_pages(16, 3) is None


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("xnum", [False, True])
@pytest.mark.parametrize("sections_first", [False, True])
def test_elf_forms_as_files_and_flattened(
    bits: int, byteorder: str, xnum: bool, sections_first: bool, tmp_path: Path
) -> None:
    ranges = [(0x10000, memory(3, 5)), (0x100000, memory(17, 6))]
    core = build_elf(
        [Load(*one) for one in ranges],
        bits=bits,
        byteorder=byteorder,
        xnum=xnum,
        sections_first=sections_first,
    )
    path = tmp_path / "core"
    for data in (core, flatten([(at, core[at : at + 777]) for at in range(0, len(core), 777)])):
        path.write_bytes(data)
        for source in (path, data):
            with vmdump.open(source) as dump:
                assert (dump.elf_class, dump.byteorder) == (bits, byteorder)
                for at, content in ranges:
                    assert dump.read(at, len(content)) == content


def flatten(records: list[tuple[int, bytes]]) -> bytes:
    head = (b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    body = b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records)
    return head + body + struct.pack(">qq", -1, -1)


@given(st.data())
def test_records_that_overlap_are_as_makedumpfile_puts_them(data: st.DataObject) -> None:
    """In any order, over each other: the last one in the file counts, as if each were written in turn."""
    truth = bytearray(build_kdump(Build({1: b"a" * PAGE, 2: b"b" * PAGE})))
    size = len(truth)
    pieces = [(at, bytes(truth[at : at + 4000])) for at in range(0, size, 4000)]
    wrong = data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 9000)), max_size=8), label="overwritten"
    )
    garbage = [(at, b"\xee" * min(length, size - at)) for at, length in wrong]
    records = [*data.draw(st.permutations(garbage)), *data.draw(st.permutations(pieces))]
    with vmdump.open(flatten(records)) as dump:
        assert dump.read(PAGE, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE


def test_makedumpfile_agrees_on_overlapping_records(tmp_path: Path) -> None:
    judges.require("makedumpfile")
    truth = build_kdump(Build({1: b"a" * PAGE, 2: b"b" * PAGE}))
    wrong = b"\xee" * 9000
    records = [(100, wrong), (0, truth[:5000]), (20, wrong[:50]), (8000, truth[8000:]), (0, truth[:8100])]
    flat, standard = tmp_path / "flat", tmp_path / "standard"
    flat.write_bytes(flatten(records))
    with flat.open("rb") as stream:
        subprocess.run(["makedumpfile", "-R", standard], stdin=stream, check=True, capture_output=True)
    assert standard.read_bytes() == truth
    with vmdump.open(flat) as dump:
        assert dump.read(PAGE, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE


def test_flattened_records_of_one_byte_each() -> None:
    truth = build_kdump(Build({1: b"a" * PAGE}))
    order = np.random.default_rng(1).permutation(len(truth)).tolist()
    with vmdump.open(flatten([(at, truth[at : at + 1]) for at in order])) as dump:
        assert dump.read(PAGE, PAGE) == b"a" * PAGE


def test_more_notes_than_any_guest_has() -> None:
    """A file of 64 MiB can hold five million empty ones."""
    with pytest.raises(FormatError, match="notes, and no guest has so many"):
        vmdump.open(build_elf([Load(0, bytes(PAGE))], notes=struct.pack("<III", 0, 0, 1) * 200_000))


@pytest.mark.parametrize(
    ("pack", "command"),
    [
        (lzma.compress, "unxz"),
        (gzip.compress, "gunzip"),
        (bz2.compress, "bunzip2"),
        (zstandard.compress, "unzstd"),
    ],
)
def test_compressed_as_a_whole(pack: object, command: str, tmp_path: Path) -> None:
    path = tmp_path / "core's dump"  # without a suffix, and quoted
    core = build_elf([Load(0, bytes(PAGE))])
    path.write_bytes(pack(core))  # type: ignore[operator]
    with pytest.raises(CapabilityError) as caught:
        vmdump.open(path)
    assert caught.value.exit_code == 7
    line = str(caught.value).partition("unpack it: ")[2]
    assert line.startswith(f"{command} < ")
    if shutil.which(command):
        subprocess.run(line, shell=True, check=True)
        assert Path(f"{path}.unpacked").read_bytes() == core


def test_closed_and_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(Build({1: b"a" * PAGE, 5: EXCLUDED})))
    dump = vmdump.open(path)
    dump.close()
    dump.close()
    with pytest.raises(vmdump.errors.SourceError, match="closed"):
        dump.read(PAGE, 1)
    assert "excluded" in repr(dump)


@pytest.mark.parametrize("kind", ["kdump", "avml"])
def test_closed_after_reading(kind: str, tmp_path: Path) -> None:
    """Nothing is given any more, not even what was read before."""
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(Build({1: b"a" * PAGE})) if kind == "kdump" else PAIR)
    dump = vmdump.open(path)
    address = dump.blocks[0].start
    dump.read(address, 1)
    dump.close()
    with pytest.raises(vmdump.errors.SourceError, match="closed"):
        dump.read(address, 1)


def test_threads_at_once(tmp_path: Path) -> None:
    """Eight threads read small and large pieces of one dump in each other's way."""
    pages = {pfn: (b"%d " % pfn * PAGE)[:PAGE] for pfn in range(3000)}
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(Build(pages, codecs=("zlib", "lzo", "none"))))
    failures: list[BaseException] = []
    with vmdump.open(path) as dump:

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            try:
                for _ in range(150):
                    pfn, count = int(random.integers(0, 2900)), int(random.integers(1, 100))
                    assert dump.read(pfn * PAGE + 9, 50) == pages[pfn][9:59]
                    assert dump.read(pfn * PAGE, PAGE) == pages[pfn]
                    wanted = b"".join(pages[at] for at in range(pfn, pfn + count))
                    assert dump.pages(pfn, count, threads=2).tobytes() == wanted
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_wrong_arguments() -> None:
    with vmdump.open(build_kdump(Build({1: b"a" * PAGE}))) as dump:
        for wrong in (
            np.empty((2, PAGE), np.uint8),
            np.empty((1, PAGE), np.uint16),
            np.empty((1, 2 * PAGE), np.uint8)[:, ::2],
        ):
            with pytest.raises(ValueError, match="out must be"):
                dump.pages(1, 1, out=wrong)
        for count, threads, wrong_one in ((-1, 1, "count"), (1, 0, "threads")):
            with pytest.raises(ValueError, match=wrong_one):
                dump.pages(1, count, threads=threads)
        assert dump.pages(1, 0).shape == (0, PAGE)
        for address in (-1, 1 << 64, 1 << 70, "1", None):
            assert address not in dump
        for address in (-1, 1 << 64, 1 << 70):
            with pytest.raises(ReadError):
                dump.read(address, 1)
            with pytest.raises(ReadError):
                dump.read(address, PAGE)
        assert dump.read(PAGE, 0) == b""
