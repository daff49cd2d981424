"""Between the attach and the dump a guest goes on: what counts is what it is inside the stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from oracles.elf import ElfCore, split_notes
from oracles.kdump import Kdump

import vmdump
from live.conftest import MakeGuest
from live.dumping import MIB
from live.guests import Guest
from live.test_stopped import blocks, check_elf, check_kdump

DIMM = 4 << 30
"""Where a q35 with less than 2 GiB puts its first DIMM."""


@pytest.fixture(params=["memory-backend-ram", "memory-backend-memfd"])
def backend(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def plug(guest: Guest, backend: str, name: str = "dimm") -> None:
    guest.monitor.execute("object-add", qom_type=backend, id=f"{name}-memory", size=128 * MIB)
    guest.monitor.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory")


def poke(guest: Guest, address: int, data: bytes) -> None:
    """Write to the guest's memory, as a program in it would."""
    text = guest.monitor.execute("human-monitor-command", command_line=f"gpa2hva {address:#x}")
    with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(int(text.rsplit(maxsplit=1)[1], 16))
        assert memory.write(data) == len(data)


@pytest.mark.parametrize("running", [False, True], ids=["paused", "running"])
def test_a_dimm_is_plugged_in(running: bool, backend: str, bare_guest: MakeGuest, scratch: Path) -> None:
    guest = bare_guest("256M", extra=("-m", "slots=2,maxmem=1G"))
    if running:
        guest.monitor.execute("cont")
    ours, kdump, theirs = (scratch / name for name in ("elf", "kdump", "theirs"))
    noise = os.urandom(MIB)
    with vmdump.open_source(f"qmp:{guest.qmp}") as source:
        before = [(block.start, block.size) for block in source.blocks]
        plug(guest, backend)
        poke(guest, DIMM + 3 * MIB, noise)
        vmdump.dump(source, ours, format="elf")
        vmdump.dump(source, kdump)
    assert guest.running() is running
    assert (DIMM, 128 * MIB) not in before
    core = ElfCore(ours)
    assert (DIMM, 128 * MIB) in blocks(core)
    assert core.read(DIMM + 3 * MIB, MIB) == noise
    compressed = Kdump(kdump).check(ahead=running)
    assert b"".join(compressed.page((DIMM + 3 * MIB) // 4096 + page) for page in range(256)) == noise
    if not running:
        guest.monitor.dump(theirs)
        assert blocks(ElfCore(theirs)) == sorted([*before, (DIMM, 128 * MIB)])
        check_elf(core, ElfCore(theirs))
        assert check_kdump(compressed, ElfCore(theirs)) >= 256


def registers(notes: bytes) -> list[bytes]:
    return [note.desc for note in split_notes(notes, "<") if note.name in (b"CORE", b"QEMU")]


def test_the_registers_are_those_of_the_stop(busy_guest: Guest, scratch: Path) -> None:
    """The guest computes between the attach and the dump, then it is paused: QEMU tells the same."""
    with vmdump.open_source(f"qmp:{busy_guest.qmp}") as source:
        attached = registers(source.notes)
        busy_guest.wait_tick()
        busy_guest.monitor.execute("stop")
        vmdump.dump(source, scratch / "stopped")
        truth = _headers(busy_guest, scratch / "theirs")
    notes = Kdump(scratch / "stopped").notes
    assert notes == truth
    assert registers(notes) != attached


def _headers(guest: Guest, path: Path) -> bytes:
    """The notes of QEMU's dump of a guest's first page."""
    guest.monitor.execute(
        "dump-guest-memory", paging=False, protocol=f"file:{path}", format="elf", begin=0, length=4096
    )
    return ElfCore(path).notes


def test_the_registers_of_a_running_guest(busy_guest: Guest, scratch: Path) -> None:
    """Its own stop counts: the instruction pointers of two dumps of a busy guest are not the same."""
    busy_guest.wait_tick()
    seen = set()
    for number in range(3):
        path = scratch / f"{number}"
        with vmdump.open_source(f"qmp:{busy_guest.qmp}") as source:
            attached = registers(source.notes)
            busy_guest.wait_tick()
            vmdump.dump(source, path, format="elf", begin=0, length=4096)
        dumped = registers(ElfCore(path).notes)
        assert dumped != attached, "the registers are those of the attach"
        seen.add(tuple(dumped))
    assert len(seen) == 3
