"""Page tables of Linux guests: QEMU's own list of mappings, its monitor's translation, and drgn's."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import PT_LOAD, ElfCore, Segment

import vmdump
from live.conftest import MakeGuest
from live.guests import Guest, MonitorError

PAGE = 4096
MIB = 1 << 20
ADDRESSES = 1000


class Load(NamedTuple):
    """A PT_LOAD, with the offset of its memory from that of all memory."""

    vaddr: int
    paddr: int
    memsz: int
    filesz: int
    place: int


def loads_of(segments: list[Segment]) -> list[Load]:
    filled = [s for s in segments if s.filesz]
    first = min(s.offset for s in filled)
    return [Load(s.vaddr, s.paddr, s.memsz, s.filesz, s.offset - first if s.filesz else 0) for s in segments]


def qemus_loads(guest: Guest, **request: int) -> list[Load]:
    """The PT_LOADs of QEMU's own dump with ``paging=true``, which breaks off behind its headers."""
    path = guest.folder / "paging"
    os.mkfifo(path)
    segments: list[Segment] = []

    def read() -> None:
        with path.open("rb") as file:
            header = file.read(64)
            (phoff,) = struct.unpack_from("<Q", header, 32)
            (phnum,) = struct.unpack_from("<H", header, 56)
            file.read(phoff - 64)
            for _ in range(phnum):
                kind, flags, offset, *rest, align = struct.unpack("<II6Q", file.read(56))
                if kind == PT_LOAD:
                    vaddr, paddr, filesz, memsz = rest
                    segments.append(Segment(kind, offset, vaddr, paddr, filesz, memsz, flags, align))

    reader = threading.Thread(target=read)
    reader.start()
    # QEMU may have written everything before it finds the reader gone.
    with contextlib.suppress(MonitorError):
        guest.monitor.execute("dump-guest-memory", paging=True, protocol=f"file:{path}", **request)
    reader.join()
    path.unlink()
    return loads_of(segments)


@pytest.fixture(scope="module")
def five_levels() -> Iterator[Guest]:
    judges.require("guest")
    with Guest("512M", cpu="max,la57=on") as guest:
        guest.wait_ready()
        guest.monitor.execute("stop")
        yield guest


@pytest.fixture(params=["linux_guest", "five_levels"])
def stopped(request: pytest.FixtureRequest) -> Guest:
    guest: Guest = request.getfixturevalue(request.param)
    return guest


def dumped(run_vmdump: RunVmdump, guest: Guest, output: Path, *options: str) -> ElfCore:
    done = run_vmdump("dump", f"qmp:{guest.qmp}", output, "-f", "elf", "--paging", *options)
    assert done.returncode == 0, done.stderr.decode()
    return ElfCore(output)


def check_loads(theirs: list[Load], guest: Guest, run_vmdump: RunVmdump, folder: Path, *options: str) -> None:
    """Equal, but for a mapping that the second vCPU's tables extend downwards: with those QEMU is wrong.

    Two processes that share pages make one now and then; with --compat qemu it is there.
    """
    mine = loads_of(dumped(run_vmdump, guest, folder / "mine", *options).loads)
    if mine != theirs:
        mistaken = dumped(run_vmdump, guest, folder / "mistaken", *options, "--compat", "qemu")
        assert loads_of(mistaken.loads) == theirs
        assert 0 < len(set(mine) ^ set(theirs)) <= len(mine) // 10


def test_program_headers_are_qemus(stopped: Guest, run_vmdump: RunVmdump, scratch: Path) -> None:
    theirs = qemus_loads(stopped)
    assert len(theirs) > 100
    check_loads(theirs, stopped, run_vmdump, scratch)


@pytest.mark.parametrize(("begin", "length"), [(MIB, 63 * MIB), (0x9F000, 0x22000), (3 * MIB + 4096, 8192)])
def test_program_headers_of_a_part_are_qemus(
    begin: int, length: int, linux_guest: Guest, run_vmdump: RunVmdump, scratch: Path
) -> None:
    theirs = qemus_loads(linux_guest, begin=begin, length=length)
    assert theirs
    check_loads(theirs, linux_guest, run_vmdump, scratch, "--begin", str(begin), "--length", str(length))


def gva2gpa(guest: Guest, address: int) -> int | None:
    """What the monitor makes of an address by the tables of the first vCPU."""
    text = guest.monitor.execute("human-monitor-command", command_line=f"gva2gpa {address:#x}")
    found = re.fullmatch(r"gpa: (?:0x)?([0-9a-f]+)\s*", text)
    assert found or "Unmapped" in text, text
    return int(found[1], 16) if found else None


def some_addresses(guest: vmdump.Source, seed: int) -> list[int]:
    """Addresses, mapped and not, at the ends of mappings and inside; processes' are in the lower half."""
    rng = random.Random(seed)
    runs = guest.mappings()
    bits = 57 if guest.vmcoreinfo.number("pgtable_l5_enabled") else 48
    chosen = []
    for _ in range(ADDRESSES):
        index = rng.randrange(len(runs.size))
        begin, size = int(runs.virtual[index]), int(runs.size[index])
        address = begin + rng.choice([0, size - 1, rng.randrange(size), rng.randrange(size), -1, size])
        upper = address >> (bits - 1) & 1
        chosen.append(address if upper else address & (1 << bits) - 1)
    return chosen


def translated(source: vmdump.Source, address: int) -> int | None:
    try:
        return source.translate(address, cpu=0)
    except vmdump.errors.TranslationError:
        return None


def test_translation_is_the_monitors(stopped: Guest) -> None:
    seed = random.randrange(1 << 32)
    with vmdump.open_source(f"qmp:{stopped.qmp}") as source:
        addresses = some_addresses(source, seed)
        mine = [translated(source, address) for address in addresses]
    theirs = [gva2gpa(stopped, address) for address in addresses]
    assert mine == theirs, f"seed {seed}"
    assert sum(address is not None for address in mine) > ADDRESSES // 2


def test_memory_by_virtual_addresses_is_drgns(stopped: Guest, run_vmdump: RunVmdump, scratch: Path) -> None:
    judges.require("drgn")
    import drgn

    output = scratch / "kdump"
    assert run_vmdump("dump", f"qmp:{stopped.qmp}", output).returncode == 0
    program = drgn.Program()
    program.set_core_dump(output)
    seed = random.randrange(1 << 32)
    same = 0
    with vmdump.open(output) as dump:
        for address in some_addresses(dump, seed):
            if not address >> 63:
                continue  # drgn reads these for one process only
            try:
                mine = dump.read_virtual(address, 64)
            except vmdump.errors.ReadError:
                # drgn knows the kernel's direct map without its tables, also where these leave out memory.
                continue
            assert mine == program.read(address, 64), f"seed {seed}, address {address:#x}"
            same += 1
    assert same > ADDRESSES // 3


def test_running_guest(make_guest: MakeGuest, run_vmdump: RunVmdump, scratch: Path) -> None:
    """Its tables change between what is written ahead and the stop."""
    guest = make_guest("512M", fill=40, busy=True, tick=True)
    core = dumped(run_vmdump, guest, scratch / "mine")
    assert len(core.loads) > 100
    with vmdump.open(scratch / "mine") as dump:
        address = dump.vmcoreinfo.symbol("init_uts_ns")
        assert address is not None
        inside = [s for s in core.loads if s.vaddr <= address < s.vaddr + s.filesz]
        assert inside
        place = inside[0].offset + address - inside[0].vaddr
        assert (scratch / "mine").read_bytes()[place : place + 512] == dump.read_virtual(address, 512)
        assert dump.size > 500 * MIB


def test_compat_file_is_qemus_with_its_mistakes(five_levels: Guest, scratch: Path) -> None:
    theirs, mine = scratch / "theirs", scratch / "mine"
    five_levels.monitor.execute("dump-guest-memory", paging=True, protocol=f"file:{theirs}")
    vmdump.dump(f"qmp:{five_levels.qmp}", mine, format="elf", paging=True, compat="qemu")
    assert filecmp.cmp(mine, theirs, shallow=False)
