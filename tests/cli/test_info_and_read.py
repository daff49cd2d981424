"""vmdump info and vmdump read: what they say is what other people's tools say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.goldens import DATA, MACHINES
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import EM_386, Load, build_elf
from oracles.flattened import flatten
from oracles.kdump import Kdump

import vmdump
from vmdump import errors

GUEST = "synthetic:16M?seed=3&fill=0.5"
PAGE = 4096
Golden = Callable[[str, str], Path]


def info(run_vmdump: RunVmdump, dump: object) -> dict[str, Any]:
    done = run_vmdump("info", dump, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
@pytest.mark.parametrize("machine", MACHINES)
def test_info_of_qemus_dumps(machine: str, name: str, golden: Golden) -> None:
    path = golden(machine, name)
    found = vmdump.info(path)
    assert found.maker.startswith("QEMU")
    assert found.file_bytes == path.stat().st_size
    assert sum(found.kinds.values()) == found.pages
    assert not found.incomplete
    if name == "elf":
        table = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=False).stdout
        sizes = [
            int(row, 16) for row in re.findall(r"^\s+LOAD(?:\s+0x\w+){4}\s+0x(\w+)", table, re.MULTILINE)
        ]
        assert found.guest_bytes == sum(sizes)
        heads = subprocess.run(["readelf", "-hW", path], capture_output=True, text=True, check=False).stdout
        # QEMU writes 64-bit files of i386.
        assert f"ELF{64 if 'Intel 80386' in heads else found.bits}" in heads
        assert found.bits == 32 or "Intel 80386" not in heads
        assert f"{found.byteorder} endian" in heads


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_info_counts_as_the_descriptors_do(codec: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "dump", format=f"kdump-{codec}")
    oracle = Kdump(tmp_path / "dump")
    zero = oracle.descriptors["offset"] == oracle.data_offset
    flags = Counter(oracle.descriptors["flags"][~zero].tolist())
    expected = {"zero": int(zero.sum()), "plain": flags[0], codec: flags[oracle.codec_flag]}
    found = info(run_vmdump, tmp_path / "dump")
    assert found["kinds"] == {kind: count for kind, count in expected.items() if count}
    assert found["compression"] == codec
    assert found["pages"] == len(oracle.pfns)
    assert found["utsname"] == oracle.uts
    assert found["maker"] == "vmdump, or makedumpfile -d 1"
    assert "".join(f"{k}={v}\n" for k, v in found["vmcoreinfo"].items()).encode() == oracle.vmcoreinfo
    text = run_vmdump("info", tmp_path / "dump").stdout.decode()
    assert f"format       kdump standard, {codec}\n" in text
    assert "OSRELEASE=" not in text
    assert f"VMCOREINFO   {len(found['vmcoreinfo'])} lines, shown by --show-vmcoreinfo\n" in text
    text = run_vmdump("info", tmp_path / "dump", "--show-vmcoreinfo").stdout.decode()
    assert f"OSRELEASE={oracle.uts['release']}\n" in text


def test_info_tells_facts_first(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "dump", vmcoreinfo=b"OSRELEASE=6.1\nPAGESIZE=4096\nCRASHTIME=86400\n")
    os.utime(tmp_path / "dump", (0, 90061))
    lines = run_vmdump("info", tmp_path / "dump").stdout.decode().splitlines()
    titles = [title for line in lines if (title := line[:13].strip())]
    facts = ["format", "made by", "written", "guest", "system", "crashed", "memory", "pages", "size"]
    assert titles == [*facts, "blocks", "phys_base", "notes", "VMCOREINFO"]
    assert "written      1970-01-02 01:01:01 UTC" in lines
    assert "crashed      1970-01-02 00:00:00 UTC" in lines
    found = vmdump.info(tmp_path / "dump")
    assert (found.written, found.live) == (90061, None)
    assert vmdump.info(GUEST).written is None


@pytest.mark.parametrize("time", ["9" * 30, "-1", "x", ""])
def test_info_of_a_dump_that_tells_no_time(time: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    vmdump.dump(
        GUEST, tmp_path / "dump", vmcoreinfo=f"OSRELEASE=6.1\nPAGESIZE=4096\nCRASHTIME={time}\n".encode()
    )
    done = run_vmdump("info", tmp_path / "dump")
    assert done.returncode == 0, done.stderr
    assert b"\ncrashed " not in done.stdout


def test_info_escapes_what_the_file_says(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    text = b"OSRELEASE=6.1\x1b[2J\nPAGESIZE=4096\n"
    vmdump.dump(np.zeros(PAGE, np.uint8), tmp_path / "dump", format="elf", vmcoreinfo=text)
    shown = run_vmdump("info", tmp_path / "dump", "--show-vmcoreinfo").stdout
    assert b"\x1b" not in shown
    assert b"OSRELEASE=6.1\\x1b[2J\n" in shown


def test_what_is_counted_agrees_with_its_number(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    dump, other = tmp_path / "dump", tmp_path / "other"
    vmdump.dump(np.full(PAGE, 1, np.uint8), dump)
    vmdump.dump(np.full(PAGE, 2, np.uint8), other)
    text = run_vmdump("info", dump).stdout.decode()
    assert "little-endian, 1 vCPU, pages of 4096 bytes\n" in text
    assert "memory       4.0 KiB in 1 block\n" in text
    with vmdump.open(dump) as opened:
        assert repr(opened).endswith("1 block, 4.0 KiB, pages of 4096, 1 vCPU>")
    done = run_vmdump("verify", dump, "--against", other)
    assert f"{dump}: 1 page: " in done.stdout.decode()
    assert "1 page differs, 0 excluded pages not compared" in done.stdout.decode()
    assert "1 page differs from" in done.stderr.decode()
    with dump.open("r+b") as file:
        file.truncate(dump.stat().st_size - 1)
    assert "incomplete   1 descriptor is damaged, " in run_vmdump("info", dump).stdout.decode()


def test_info_of_what_is_not_a_dump(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """What it is, and not the name of a class; nobody has made it."""
    (tmp_path / "ram").write_bytes(bytes(range(256)) * 16)
    raw = f"raw:{tmp_path / 'ram'}"
    with vmdump.open(raw) as opened:
        formats = {raw: opened.format, "synthetic:2M": "synthetic"}
    for source, expected in formats.items():
        assert info(run_vmdump, source)["format"] == expected
        lines = run_vmdump("info", source).stdout.decode().splitlines()
        assert lines[0] == f"format       {expected}"
        assert not [line for line in lines if line.startswith("made by")]
    assert vmdump.info(np.zeros(PAGE, np.uint8)).format == "buffers"


def test_info_of_a_32_bit_guest_in_a_64_bit_file(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """QEMU writes one for an i386 guest with memory beyond 4 GiB."""
    (tmp_path / "core").write_bytes(build_elf([Load(1 << 32, b"x" * PAGE)], machine=EM_386, bits=64))
    found = info(run_vmdump, tmp_path / "core")
    assert (found["arch"], found["bits"]) == ("i386", 32)
    assert "guest        i386, 32-bit, " in run_vmdump("info", tmp_path / "core").stdout.decode()


def test_info_of_a_huge_hole(tmp_path: Path) -> None:
    with (tmp_path / "ram").open("wb") as file:
        file.truncate(1 << 43)
    found = vmdump.info(f"raw:{tmp_path / 'ram'}?base=0")
    assert found.pages == 1 << 31


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    memory = np.random.RandomState(1).randint(0, 256, 3 << 20).astype(np.uint8)
    vmdump.dump([(0x10000, memory[: 1 << 20]), (0x110000, memory[1 << 20 :])], tmp_path / "dump")
    (tmp_path / "memory").write_bytes(memory.tobytes())
    return tmp_path / "dump"


@pytest.mark.parametrize(
    ("begin", "length"), [(0, 1), (5, 4091), (4095, 2), ((1 << 20) - 3, 8), (77, 2 << 20), (9, 0)]
)
def test_read_gives_the_bytes(
    begin: int, length: int, dump: Path, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    expected = (tmp_path / "memory").read_bytes()[begin : begin + length]
    address = hex(0x10000 + begin)
    assert run_vmdump("read", dump, address, length).stdout == expected
    done = run_vmdump("read", dump, address, length, "-o", tmp_path / "bytes")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bytes").read_bytes() == expected
    again = run_vmdump("read", dump, address, length, "-o", tmp_path / "bytes")
    assert again.returncode == errors.OutputExists.exit_code


def test_who_shares_the_output_goes_on_behind_the_bytes(
    dump: Path, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    with (tmp_path / "shared").open("wb", buffering=0) as shared:
        for before in (b"", b"between"):
            shared.write(before)
            assert run_vmdump("read", dump, 0x10000, 100, stdout=shared).returncode == 0
        shared.write(b"after")
    expected = (tmp_path / "memory").read_bytes()[:100]
    assert (tmp_path / "shared").read_bytes() == expected + b"between" + expected + b"after"


def test_read_as_hexdump_prints_it(dump: Path, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes((tmp_path / "memory").read_bytes()[:100])
    judges.require("hexdump")
    expected = subprocess.run(
        ["hexdump", "-Cv", tmp_path / "part"], capture_output=True, text=True, check=True
    )
    lines = [f"{int(line[:8], 16) + 0x10000:08x}{line[8:]}" for line in expected.stdout.splitlines()[:-1]]
    assert run_vmdump("read", dump, "64K", 100, "--hex").stdout.decode().splitlines() == lines


def test_read_of_what_is_not_there(dump: Path, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    for address, length, code in [
        (0, 16, errors.ReadError.exit_code),
        ("0x10000", "4M", errors.ReadError.exit_code),
        ("0xffffffffffffffff", 2, errors.RequestError.exit_code),
        ("0xfffffffffffffff0", 16, errors.ReadError.exit_code),
        ("here", 16, errors.RequestError.exit_code),
        (0, -1, errors.RequestError.exit_code),
    ]:
        done = run_vmdump("read", dump, address, length, "-o", tmp_path / "bytes")
        assert done.returncode == code, (address, length, done.stderr)
        complaints = [line for line in done.stderr.splitlines() if not line.startswith(b"Usage: ")]
        assert len(complaints) == 1
        assert not (tmp_path / "bytes").exists()


def test_read_without_page_tables(dump: Path, run_vmdump: RunVmdump) -> None:
    done = run_vmdump("read", dump, "0xffffffff81000000", 16, "--virtual")
    assert done.returncode == errors.CapabilityError.exit_code
    assert len(done.stderr.splitlines()) == 1


def test_heads_of_files_tell_of_the_guest(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """The first 64 KiB: blocks, notes and VMCOREINFO are there, memory is not."""
    for name in ("elf.head64k", "kdump-zlib.head64k"):
        path = DATA / "x86_64-linux-128M" / name
        found = info(run_vmdump, path)
        assert found["damage"].startswith(f"{path}: ")
        assert found["guest_bytes"] > 100 << 20
        assert found["damaged_pages"] > found["pages"] * 0.9
        assert found["vmcoreinfo"]["OSRELEASE"]
        done = run_vmdump("dump", path, tmp_path / "out")
        assert done.returncode == errors.FormatError.exit_code
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("level", [0, 1, 31])
def test_makedumpfile_is_never_taken_for_another(level: int, scratch: Path) -> None:
    vmdump.dump("synthetic:8M?seed=5&fill=0.5", scratch / "core", format="elf")
    judges.makedumpfile_filter(scratch / "core", scratch / "dump", "-l", "-d", str(level))
    assert "makedumpfile" in vmdump.info(scratch / "dump").maker
    assert "makedumpfile" in vmdump.info(scratch / "core").maker


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_the_maker_of_a_dump_that_is_no_file_of_its_own(name: str, golden: Golden, tmp_path: Path) -> None:
    """In a buffer, and flattened: the header is where the dump is, not where a file begins."""
    data = golden("x86_64-q35", name).read_bytes()
    with vmdump.open(data) as dump:
        maker = vmdump.info(dump).maker
    assert maker == vmdump.info(golden("x86_64-q35", name)).maker
    assert maker.startswith("QEMU")
    if not data.startswith(b"makedumpfile"):
        flattened = tmp_path / "flattened"
        flattened.write_bytes(flatten(data))
        assert vmdump.info(flattened).maker == maker


def test_a_set_stands_wherever_a_dump_does(run_vmdump: RunVmdump, scratch: Path) -> None:
    """Each command takes all parts of a set that makedumpfile wrote, and sees the dump that was split."""
    whole = scratch / "whole"
    vmdump.dump("synthetic:24M?seed=5&fill=0.5", whole, format="elf")
    parts = [scratch / f"part.{number}" for number in (1, 2, 3)]
    judges.makedumpfile_split(whole, parts, "-l", "-d", "0")

    def printed(*words: object) -> bytes:
        done = run_vmdump(*words)
        assert (done.returncode, done.stderr) == (0, b""), words
        return done.stdout

    stretch = ("0x7ff000", "12M")
    assert printed("read", *parts, *stretch) == printed("read", whole, *stretch)
    messages = [run_vmdump("dmesg", *names).stderr for names in (parts, (whole,))]
    assert messages[0].replace(bytes(parts[0]), bytes(whole)) == messages[1]
    size = sum(stop - start for start, stop in json.loads(printed("info", *parts, "--json"))["blocks"])
    assert size == sum(load.memsz for load in ElfCore(whole).loads)
    found = printed("verify", *parts, "--against", whole)
    assert found.startswith(f"{parts[0]} and 2 more: {size // PAGE} pages: ".encode())
    printed("dump", *parts, scratch / "again", "-f", "elf", "-q")
    assert (scratch / "again").read_bytes() == whole.read_bytes()
