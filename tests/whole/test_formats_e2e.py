"""Every format, layout and engine, end to end: each page read back by other people's readers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore
from oracles.flattened import Flattened
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump
import vmdump.errors

GUEST = "synthetic:64M?seed=3&fill=0.5"
PAGE = 4096
PIECE = 1 << 20

Truth = dict[int, bytes]
"""Guest-physical address of a piece (at most 1 MiB) to its bytes."""


def usable_engines() -> list[tuple[str, str]]:
    """Give the (codec, engine) pairs of this build, from the command that tells a user."""
    done = subprocess.run(
        [sys.executable, "-m", "vmdump", "capabilities", "--json"], capture_output=True, check=True
    )
    engines = json.loads(done.stdout)["engines"]
    return [(engine["codec"], engine["name"]) for engine in engines if not engine["missing"]]


@pytest.fixture(scope="module")
def truth() -> Truth:
    with vmdump.open_source(GUEST) as source:
        return {
            address: source.read(address, min(PIECE, block.end - address))
            for block in source.blocks
            for address in range(block.start, block.end, PIECE)
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


def check_pages(kdump: Kdump, truth: Truth) -> None:
    """Assert that the dump holds exactly the guest's pages."""
    pages = {
        (address + offset) // PAGE: data[offset : offset + PAGE]
        for address, data in truth.items()
        for offset in range(0, len(data), PAGE)
    }
    assert kdump.pfns.tolist() == sorted(pages)
    for pfn, page in kdump.pages():
        assert page == pages[pfn], f"pfn {pfn:#x}"


def read_by_others(path: Path, truth: Truth, *, flattened: bool = False) -> None:
    """Assert that drgn and libkdumpfile read the guest; libkdumpfile before 0.5.3 reads no flattened file."""
    ranges = [(address, len(data)) for address, data in truth.items()]
    assert judges.drgn_read(path, ranges) == list(truth.values())
    if not flattened:
        assert judges.libkdumpfile_read(path, ranges) == list(truth.values())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dump(run_vmdump: RunVmdump, output: Path | str, *options: object, **run_options: object) -> bytes:
    done = run_vmdump("dump", GUEST, output, *options, **run_options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout or b""


@pytest.mark.parametrize(("codec", "engine"), usable_engines())
def test_every_engine_in_both_layouts(
    codec: str, engine: str, truth: Truth, run_vmdump: RunVmdump, scratch: Path
) -> None:
    standard, flattened = scratch / "standard", scratch / "flattened"
    options = ("-f", f"kdump-{codec}", "--engine", engine)
    dump(run_vmdump, standard, *options, "--layout", "standard")
    dump(run_vmdump, flattened, *options, "--layout", "flattened")

    kdump = Kdump(standard).check()
    assert kdump.codec_flag == CODEC_FLAGS[codec]
    check_pages(kdump, truth)
    Flattened(flattened).check().rearrange(scratch / "ours")
    assert digest(scratch / "ours") == digest(standard)
    judges.makedumpfile_rearrange(flattened, scratch / "theirs")
    assert digest(scratch / "theirs") == digest(standard)
    read_by_others(standard, truth)
    read_by_others(flattened, truth, flattened=True)


def test_elf(truth: Truth, run_vmdump: RunVmdump, scratch: Path) -> None:
    path = scratch / "core"
    dump(run_vmdump, path, "-f", "elf")
    core = ElfCore(path).check_vmdump_layout()
    assert [core.read(address, len(data)) for address, data in truth.items()] == list(truth.values())
    assert sum(load.memsz for load in core.loads) == sum(map(len, truth.values()))
    names = [note.name for note in core.note_list()]
    assert names == [b"CORE", b"CORE", b"QEMU", b"QEMU", b"VMCOREINFO"]
    text = judges.readelf(path, "--file-header", "--segments", "--notes")
    assert text.count(" LOAD ") == len(core.loads)
    read_by_others(path, truth)


@pytest.mark.parametrize("codec", sorted(CODEC_FLAGS))
def test_raw_formats_are_the_standard_layout(codec: str, run_vmdump: RunVmdump, scratch: Path) -> None:
    dump(run_vmdump, scratch / "raw", "-f", f"kdump-raw-{codec}")
    dump(run_vmdump, scratch / "standard", "-f", f"kdump-{codec}", "--layout", "standard")
    dump(run_vmdump, scratch / "auto", "-f", f"kdump-{codec}")
    assert digest(scratch / "raw") == digest(scratch / "standard") == digest(scratch / "auto")


def test_default_is_kdump_zlib(run_vmdump: RunVmdump, scratch: Path) -> None:
    dump(run_vmdump, scratch / "default")
    dump(run_vmdump, scratch / "named", "-f", "kdump-zlib")
    assert digest(scratch / "default") == digest(scratch / "named")
    assert (scratch / "default").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd"])
def test_standard_output(name: str, run_vmdump: RunVmdump, scratch: Path) -> None:
    """A pipe gets the flattened layout, a redirected file the standard one."""
    pipe, redirected = scratch / "pipe", scratch / "redirected"
    pipe.write_bytes(dump(run_vmdump, "-", "-f", name))
    with redirected.open("wb") as file:
        dump(run_vmdump, "-", "-f", name, stdout=file)
    if name == "elf":
        dump(run_vmdump, scratch / "path", "-f", name)
        assert digest(pipe) == digest(redirected) == digest(scratch / "path")
    else:
        dump(run_vmdump, scratch / "flattened", "-f", name, "--layout", "flattened")
        dump(run_vmdump, scratch / "standard", "-f", name, "--layout", "standard")
        assert digest(pipe) == digest(scratch / "flattened")
        assert digest(redirected) == digest(scratch / "standard")


def test_open_descriptors(run_vmdump: RunVmdump, scratch: Path) -> None:
    """fd:N writes to what the caller opened: a file gets the standard layout, a pipe the flattened one."""
    dump(run_vmdump, scratch / "standard", "-f", "kdump-lzo", "--layout", "standard")
    dump(run_vmdump, scratch / "flattened", "-f", "kdump-lzo", "--layout", "flattened")
    with (scratch / "fd").open("wb") as file:
        dump(run_vmdump, f"fd:{file.fileno()}", "-f", "kdump-lzo", pass_fds=(file.fileno(),))
    assert digest(scratch / "fd") == digest(scratch / "standard")

    reader, writer = os.pipe()
    received: list[bytes] = []

    def drain() -> None:
        with open(reader, "rb") as stream:
            received.append(stream.read())

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        dump(run_vmdump, f"fd:{writer}", "-f", "kdump-lzo", pass_fds=(writer,))
    finally:
        os.close(writer)
        thread.join()
    assert hashlib.sha256(received[0]).hexdigest() == digest(scratch / "flattened")


@pytest.mark.parametrize("options", [("-f", "kdump-raw-zlib"), ("-f", "kdump-zlib", "--layout", "standard")])
def test_standard_layout_needs_a_seekable_output(options: tuple[str, ...], run_vmdump: RunVmdump) -> None:
    done = run_vmdump("dump", GUEST, "-", *options)
    assert done.returncode == vmdump.errors.SinkError.exit_code
    assert done.stdout == b""
    assert "seekable" in done.stderr.decode()


@pytest.mark.parametrize("source_format", ["elf", "kdump-zlib", "kdump-lzo"])
@pytest.mark.parametrize(("option", "codec"), [("-c", "zlib"), ("-l", "lzo")])
@pytest.mark.parametrize("level", [0, 1])
def test_makedumpfile_refilters(
    source_format: str,
    option: str,
    codec: str,
    level: int,
    truth: Truth,
    run_vmdump: RunVmdump,
    scratch: Path,
) -> None:
    """The pages of a dump that makedumpfile makes of ours are the guest's."""
    dump(run_vmdump, scratch / "ours", "-f", source_format)
    judges.makedumpfile_filter(scratch / "ours", scratch / "theirs", option, "-d", str(level))
    theirs = Kdump(scratch / "theirs")
    assert theirs.codec_flag == CODEC_FLAGS[codec]
    check_pages(theirs, truth)


def test_report(run_vmdump: RunVmdump, truth: Truth, scratch: Path) -> None:
    """--json is one object on standard output, and its numbers are the file's."""
    report = json.loads(dump(run_vmdump, scratch / "dump", "-f", "kdump-lzo", "-j", 2, "--json"))
    kdump = Kdump(scratch / "dump")
    zero = kdump.descriptors["offset"] == kdump.data_offset
    plain = (kdump.descriptors["flags"] == 0) & ~zero
    told = {"format": "kdump-lzo", "layout": "standard", "codec": "lzo", "threads": 2}
    told |= {"guest_bytes": sum(map(len, truth.values())), "output_bytes": kdump.size}
    told |= {"zero_pages": int(zero.sum()), "plain_pages": int(plain.sum())}
    told["compressed_pages"] = len(kdump.pfns) - told["zero_pages"] - told["plain_pages"]
    assert {name: report[name] for name in told} == told
    assert 0 < report["hole_bytes"] <= told["zero_pages"] * PAGE


# What drgn 0.3 demands of VMCOREINFO before it opens an x86_64 guest.
VMCOREINFO = b"""OSRELEASE=6.1.0-test
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff82610000
KERNELOFFSET=0
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
"""


@pytest.fixture(scope="module")
def array_guest() -> list[tuple[int, np.ndarray]]:
    """Give three blocks made here: zeros, text, counters and noise, with a gap before each."""
    rng = np.random.default_rng(11)
    text = np.frombuffer((b"crash> bt -a  PID: 1 TASK: ffff888003a58000\n" * 12000)[: 128 * PAGE], np.uint8)
    counters = np.arange(128 * PAGE // 8, dtype="<u8").view(np.uint8)
    noise = rng.integers(0, 256, 64 * PAGE, np.uint8)
    low = np.concatenate((np.zeros(32 * PAGE, np.uint8), text, noise, np.zeros(PAGE, np.uint8)))
    return [(0x10_0000, low), (0x4000_0000, counters), (0x1_0000_0000, np.concatenate((noise[::-1], text)))]


def all_formats() -> Iterator[tuple[str, str]]:
    yield "elf", "auto"
    for codec in CODEC_FLAGS:
        yield from (
            (f"kdump-{codec}", "standard"),
            (f"kdump-{codec}", "flattened"),
            (f"kdump-raw-{codec}", "auto"),
        )


@pytest.mark.parametrize(("name", "layout"), list(all_formats()))
def test_arrays_through_the_python_interface(
    name: str, layout: str, array_guest: list[tuple[int, np.ndarray]], tmp_path: Path
) -> None:
    truth = {
        start + offset: memory[offset : offset + PIECE].tobytes()
        for start, memory in array_guest
        for offset in range(0, len(memory), PIECE)
    }
    path = tmp_path / "dump"
    vmdump.dump(vmdump.BlockSource(array_guest, vmcoreinfo=VMCOREINFO), path, format=name, layout=layout)
    if name == "elf":
        core = ElfCore(path).check_vmdump_layout()
        assert [core.read(address, len(data)) for address, data in truth.items()] == list(truth.values())
    elif layout == "flattened":
        Flattened(path).check().rearrange(tmp_path / "standard")
        check_pages(Kdump(tmp_path / "standard").check(), truth)
    else:
        check_pages(Kdump(path).check(), truth)
    read_by_others(path, truth, flattened=layout == "flattened")

    with vmdump.open(path) as reader:
        assert [(block.start, block.size) for block in reader.blocks] == [(s, len(m)) for s, m in array_guest]
        assert [reader.read(address, len(data)) for address, data in truth.items()] == list(truth.values())
        pages = reader.pages(0x4000_0000 // PAGE, 128)
        assert np.array_equal(np.asarray(pages).reshape(-1), array_guest[1][1])
        assert reader.vmcoreinfo["OSRELEASE"] == "6.1.0-test"


def test_bare_buffers_and_pairs(tmp_path: Path) -> None:
    """A buffer is one block at 0; a list may mix pairs and blocks."""
    memory = b"bare" * 1024
    vmdump.dump(memory, tmp_path / "bare", format="elf")
    vmdump.dump(vmdump.BlockSource([(0, memory)]), tmp_path / "pair", format="elf")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "pair").read_bytes()
    assert [(load.paddr, load.memsz) for load in ElfCore(tmp_path / "bare").loads] == [(0, 4096)]


def test_utsname_and_phys_base_of_the_synthetic_guest(run_vmdump: RunVmdump, scratch: Path) -> None:
    dump(run_vmdump, scratch / "dump")
    kdump = Kdump(scratch / "dump")
    told = dict(line.split("=", 1) for line in kdump.vmcoreinfo.decode().splitlines() if "=" in line)
    assert kdump.uts["sysname"] == "Linux"
    assert kdump.uts["release"] == told["OSRELEASE"]
    assert kdump.uts["machine"] == "x86_64"
    assert kdump.uts["version"].startswith("#1 SMP")
    assert kdump.sub_header["phys_base"] == int(told["NUMBER(phys_base)"])
    names = ("linux.uts.release", "arch.name", "file.format")
    attributes = judges.libkdumpfile_attributes(scratch / "dump", names)
    assert attributes["linux.uts.release"] == told["OSRELEASE"]
    assert attributes["arch.name"] == "x86_64"
