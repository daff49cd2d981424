"""The files that the dump interface writes: each holds what QEMU's own of the same paused guest holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles import judges
from oracles.elf import PT_NOTE, ElfCore, Note, split_notes
from oracles.holdings import BLOCKS_NOTE
from oracles.kdump import Kdump

from live.doors import Door
from live.guests import Guest
from live.raw_client import Client, error_text

PAGE = 4096
STANDARD = ".standard"
MIB = 1 << 20
CODECS = {"kdump-zlib": 1, "kdump-lzo": 2, "kdump-snappy": 4}
Pages = dict[int, bytes]
RANGES = [(0, 64), (MIB, PAGE), (2 * MIB - 8, 16), (96 * MIB - PAGE, PAGE)]


@pytest.fixture
def client(linux_door: Door) -> Client:
    return linux_door.client()


def qemus(guest: Guest, scratch: Path, **arguments: object) -> ElfCore:
    """QEMU's own ELF dump."""
    path = scratch / "qemu.elf"
    path.unlink(missing_ok=True)
    request = {"paging": False, "protocol": f"file:{path}", **arguments}
    guest.monitor.execute("dump-guest-memory", **request)
    return ElfCore(path)


def headers(core: ElfCore) -> list[tuple[int, ...]]:
    """The program headers but for where in the file they point to."""
    return [(s.type, s.vaddr, s.paddr, s.filesz, s.memsz) for s in core.segments if s.type != PT_NOTE]


def memory(core: ElfCore) -> list[tuple[int, bytes]]:
    return [(load.paddr, core.load_bytes(load)) for load in core.loads]


def check_notes(mine: list[Note], theirs: list[Note]) -> None:
    """QEMU's notes in QEMU's order; a note of vmdump's own, which no reader looks for, may follow."""
    kept = [note for note in mine if (note.name, note.type) != BLOCKS_NOTE]
    assert [(note.name, note.type) for note in kept] == [(note.name, note.type) for note in theirs]
    assert kept == theirs


def pages_of(core: ElfCore) -> Pages:
    return {
        (paddr + at) // PAGE: data[at : at + PAGE]
        for paddr, data in memory(core)
        for at in range(0, len(data), PAGE)
    }


def standard(path: Path) -> Path:
    """The standard layout of a flattened kdump file."""
    output = path.with_suffix(STANDARD)
    judges.makedumpfile_rearrange(path, output)
    return output


def test_elf(linux_door: Door, client: Client, scratch: Path) -> None:
    """Headers, notes and memory; and readers find the same."""
    path = scratch / "mine.elf"
    assert client.dump(path)["return"] == {}
    total = client.ask("query-dump")["total"]
    mine, theirs = ElfCore(path), qemus(linux_door.guest, scratch)
    assert headers(mine) == headers(theirs)
    assert memory(mine) == memory(theirs)
    check_notes(mine.note_list(), theirs.note_list())
    assert mine.machine == theirs.machine
    assert total == sum(load.memsz for load in theirs.loads)
    expected = [theirs.read(*one) for one in RANGES]
    assert any(map(any, expected))
    assert judges.drgn_read(path, RANGES) == judges.libkdumpfile_read(path, RANGES) == expected
    told = judges.readelf(path, "--file-header", "--segments", "--notes")
    assert "CORE (Core file)" in told
    assert told.count("NT_PRSTATUS") == 2
    assert "VMCOREINFO" in told


# QEMU's own file of this guest takes makedumpfile long to lay out anew; `test_codecs` has it of another.
@pytest.mark.parametrize("linux_door", ["serve"], indirect=True)
def test_kdump(linux_door: Door, client: Client, scratch: Path) -> None:
    """Notes, VMCOREINFO and every page; and readers find the same."""
    path = scratch / "mine.kdump"
    assert client.dump(path, format="kdump-zlib")["return"] == {}
    mine, theirs = Kdump(standard(path)), qemus(linux_door.guest, scratch)
    check_notes(split_notes(mine.notes, "<"), theirs.note_list())
    assert mine.vmcoreinfo == next(n.desc for n in theirs.note_list() if n.name == b"VMCOREINFO")
    assert dict(mine.pages()) == pages_of(theirs)
    expected = [theirs.read(*one) for one in RANGES]
    assert judges.libkdumpfile_read(path.with_suffix(STANDARD), RANGES) == expected
    # Of QEMU's own file, drgn does not find out of what architecture it is.
    assert judges.drgn_read(path, RANGES) == expected


@pytest.mark.parametrize("format", CODECS)
def test_codecs(door: Door, scratch: Path, format: str) -> None:
    """Headers, notes and every page."""
    path, client = scratch / "mine.kdump", door.client()
    reply = client.dump(path, format=format)
    if "error" in reply:
        assert error_text(reply) == f"{format} is not available now"
        assert format not in client.ask("query-dump-guest-memory-capability")["formats"]
        return
    door.guest.monitor.dump(scratch / "theirs.kdump", "kdump-zlib")
    mine, other = Kdump(standard(path)), Kdump(standard(scratch / "theirs.kdump"))
    assert mine.codec_flag == CODECS[format]
    assert mine.notes == other.notes
    assert mine.max_mapnr == other.max_mapnr
    assert mine.frame_ranges() == other.frame_ranges()
    assert dict(mine.pages()) == pages_of(qemus(door.guest, scratch))


@pytest.mark.parametrize("door", ["serve"], indirect=True)
@pytest.mark.parametrize(
    "format", ["kdump-zstd", "kdump-raw-zlib", "kdump-raw-lzo", "kdump-raw-snappy", "kdump-raw-zstd"]
)
def test_formats_that_qemu_lacks(door: Door, scratch: Path, format: str) -> None:
    """Zstandard, which kernels and crash know; and the standard layout, which QEMU has from 8.2 on."""
    path, client = scratch / "mine.kdump", door.client()
    assert format in client.ask("query-dump-guest-memory-capability")["formats"]
    assert client.dump(path, format=format)["return"] == {}
    if "raw" in format:
        assert path.read_bytes()[:8] == b"KDUMP   "
    mine = Kdump(path if "raw" in format else standard(path))
    assert mine.codec_flag == {**CODECS, "kdump-zstd": 32}[format.replace("-raw", "")]
    assert dict(mine.pages()) == pages_of(qemus(door.guest, scratch))


def test_paging(linux_door: Door, client: Client, scratch: Path) -> None:
    """The program headers have the virtual addresses of every vCPU's page tables."""
    path = scratch / "mine.elf"
    assert client.dump(path, paging=True)["return"] == {}
    mine, theirs = ElfCore(path), qemus(linux_door.guest, scratch, paging=True)
    assert sorted(headers(mine)) == sorted(headers(theirs))
    assert headers(mine) == headers(theirs)
    assert any(load.vaddr >= 1 << 47 for load in mine.loads)
    for load, other in zip(mine.loads, theirs.loads, strict=True):
        assert bytes(mine.load_view(load)) == bytes(theirs.load_view(other))
    check_notes(mine.note_list(), theirs.note_list())


@pytest.mark.parametrize(
    ("begin", "length", "paging"),
    [
        (0, PAGE, False),
        (100, 100, False),
        (MIB - 3, 2 * PAGE + 5, False),
        (MIB - 3, 2 * PAGE + 5, True),
        (96 * MIB - 1, 2, False),
        # Over the end of the memory, and all of it with the ROMs below 4 GiB.
        (95 * MIB, 1 << 40, False),
        (64 * MIB, 1 << 40, True),
        (0, 1 << 50, False),
    ],
)
def test_ranges(
    linux_door: Door, client: Client, scratch: Path, begin: int, length: int, paging: bool
) -> None:
    path = scratch / "mine.elf"
    assert client.dump(path, begin=begin, length=length, paging=paging)["return"] == {}
    told = client.ask("query-dump")
    theirs = qemus(linux_door.guest, scratch, begin=begin, length=length, paging=paging)
    mine = ElfCore(path)
    assert headers(mine) == headers(theirs)
    for load, other in zip(mine.loads, theirs.loads, strict=True):
        assert bytes(mine.load_view(load)) == bytes(theirs.load_view(other))
    check_notes(mine.note_list(), theirs.note_list())
    assert told == {**told, **linux_door.guest.monitor.execute("query-dump")}


# It finds no kernel in QEMU's own files of this guest.
@pytest.mark.parametrize("linux_door", ["serve"], indirect=True)
@pytest.mark.parametrize("format", ["elf", "kdump-zlib"])
def test_makedumpfile(client: Client, scratch: Path, format: str) -> None:
    """It finds the kernel's log, and filters."""
    path = scratch / "mine"
    assert client.dump(path, format=format)["return"] == {}
    if format != "elf":
        path = standard(path)
    assert b"Linux version" in judges.makedumpfile_dmesg(path, scratch / "log")
    if format == "elf":
        judges.makedumpfile_filter(path, scratch / "small", "-d", "31", "-c")
        assert (scratch / "small").stat().st_size > PAGE
