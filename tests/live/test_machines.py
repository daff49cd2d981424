"""Guests of every architecture: vmdump's dumps of them are QEMU's, and open in other people's readers.

Where QEMU has no dump of its own, its gdb stub and the file behind the memory say what is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore, split_notes
from oracles.flattened import Flattened
from oracles.kdump import Kdump

import vmdump
from live.machines import KINDS, MIB, Machine
from vmdump.errors import QmpError

# Of 32-bit machines without a name of their own it is the processor's; QEMU's own kdump says "Unknown".
UNAME_MACHINES = {
    "x86_64": "i686",  # the first vCPU is not in long mode
    "i386": "i686",
    "aarch64": "aarch64",
    "aarch64-sve": "aarch64",
    "arm": "armv7l",
    "ppc": "ppc",
    "ppc-e500": "ppc",
    "ppc64": "ppc64",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "riscv32": "riscv32",
    "loongarch64": "loongarch64",
    "mips": "mips",
    "mips64": "mips64",
    "mips64el": "mips64",
}
WITHOUT_DUMP = ("loongarch64", "mips", "mips64", "mips64el")
WITH_DUMP = [
    (name, cpus)
    for name, kind in KINDS.items()
    if name not in (*WITHOUT_DUMP, "m68k")
    for cpus in (1, 2)[: kind.most_cpus]
]
PIECE = MIB


def machine(name: str, cpus: int) -> Machine:
    judges.require(f"qemu-system-{KINDS[name].arch}")
    return Machine(KINDS[name], cpus, seed=7 + cpus)


def dump(run_vmdump: RunVmdump, source: object, output: Path, *options: str) -> Path:
    done = run_vmdump("dump", source, output, *options)
    assert done.returncode == 0, done.stderr.decode()
    return output


def pieces(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for begin, end in ranges:
        for address in range(begin, end, PIECE):
            yield address, min(PIECE, end - address)


@pytest.mark.parametrize(("name", "cpus"), WITH_DUMP)
def test_dumps_are_qemus(name: str, cpus: int, run_vmdump: RunVmdump, scratch: Path) -> None:
    with machine(name, cpus) as guest:
        guest.monitor.dump(scratch / "qemus.elf")
        guest.monitor.dump(scratch / "qemus.flat", "kdump-zlib")
        mine = ElfCore(dump(run_vmdump, f"qmp:{guest.qmp}", scratch / "mine.elf", "-f", "elf"))
        kdump = Kdump(dump(run_vmdump, f"qmp:{guest.qmp}", scratch / "mine.kdump")).check()
        with vmdump.open_source(f"qmp:{guest.qmp}") as source:
            assert source.nr_cpus == len(source.cpus) == cpus
            assert all(sum(value > 0 for value in cpu.values()) >= 8 for cpu in source.cpus)
            assert source.cpus[0] != source.cpus[-1] or cpus == 1
            # What is made of the registers is what QEMU made of them.
            made = source.arch.notes(source.cpus, source.byteorder)

    qemus = ElfCore(scratch / "qemus.elf")
    mine.check_vmdump_layout()
    assert (mine.bits, mine.byteorder, mine.machine) == (qemus.bits, qemus.byteorder, qemus.machine)
    assert mine.notes == qemus.notes
    assert len(made) == len(qemus.notes)
    if not name.startswith(("ppc", "s390x")):  # QEMU has no pids there, or in the host's byte order
        assert made == qemus.notes
    spans = [(load.paddr, load.paddr + load.memsz) for load in qemus.loads]
    assert [(load.paddr, load.paddr + load.memsz) for load in mine.loads] == spans
    for theirs in qemus.loads:
        assert mine.read(theirs.paddr, theirs.memsz) == qemus.load_bytes(theirs), f"{theirs.paddr:#x}"
    assert judges.readelf(scratch / "mine.elf", "--segments", "--notes").count("NT_PRSTATUS") == cpus

    Flattened(scratch / "qemus.flat").rearrange(scratch / "qemus.kdump")
    theirs_kdump = Kdump(scratch / "qemus.kdump").check()
    assert (kdump.form, kdump.block_size) == (theirs_kdump.form, theirs_kdump.block_size)
    assert kdump.notes == theirs_kdump.notes
    assert kdump.sub_header == theirs_kdump.sub_header
    assert (kdump.bitmap1, kdump.bitmap2) == (theirs_kdump.bitmap1, theirs_kdump.bitmap2)
    assert all(a == b for a, b in zip(kdump.pages(), theirs_kdump.pages(), strict=True))
    assert kdump.header["nr_cpus"] == cpus
    assert kdump.uts["machine"] == UNAME_MACHINES[name]
    for where, data in zip(
        pieces(spans), judges.libkdumpfile_read(scratch / "mine.kdump", pieces(spans)), strict=True
    ):
        assert data == qemus.read(*where), f"{where[0]:#x}"


POWER_MSR = 65
"""Its number in the stub's description; bit 0 says that the vCPU runs little-endian."""


def test_little_endian_power(run_vmdump: RunVmdump, scratch: Path) -> None:
    """QEMU before 8.1 takes every guest of pseries for a big-endian one, and crash does not open its dump."""
    with machine("ppc64", 2) as guest:
        stub = guest.gdb()
        stub.select(1)
        stub.write(POWER_MSR, bytes.fromhex("8000000002009033"))
        stub.close()
        guest.monitor.dump(scratch / "qemus.elf")
        source = f"qmp:{guest.qmp}"
        mine = ElfCore(dump(run_vmdump, source, scratch / "mine.elf", "-f", "elf"))
        kdump = Kdump(dump(run_vmdump, source, scratch / "mine.kdump")).check()
        dump(run_vmdump, source, scratch / "compat.elf", "-f", "elf", "--compat", "qemu")
    qemus = ElfCore(scratch / "qemus.elf")
    assert (qemus.byteorder, mine.byteorder, kdump.form.byteorder) == ("big", "little", "little")
    assert kdump.uts["machine"] == "ppc64le"
    assert (scratch / "compat.elf").read_bytes() == (scratch / "qemus.elf").read_bytes()
    with vmdump.open(scratch / "qemus.elf") as theirs, vmdump.open(scratch / "mine.kdump") as opened:
        assert opened.arch.name == "ppc64le"
        assert opened.cpus == theirs.cpus
        assert opened.cpus[1]["msr"] == 0x8000000002009033
    gprs = slice(112, 112 + 32 * 8)  # of struct elf_prstatus
    for big, little in zip(split_notes(qemus.notes, ">"), split_notes(mine.notes, "<"), strict=True):
        assert (big.name, big.type, len(big.desc)) == (little.name, little.type, len(little.desc))
        if big.type == 1:
            there, here = np.frombuffer(big.desc[gprs], ">u8"), np.frombuffer(little.desc[gprs], "<u8")
            assert np.array_equal(there, here)
    spans = [(load.paddr, load.paddr + load.memsz) for load in qemus.loads]
    for where, data in zip(
        pieces(spans), judges.libkdumpfile_read(scratch / "mine.kdump", pieces(spans)), strict=True
    ):
        assert data == qemus.read(*where), f"{where[0]:#x}"


# Register: its number in the stub's description of the architecture.
LOONGARCH = {**{f"r{number}": number for number in range(32)}, "era": 33, "badv": 34}
LOONGARCH |= {f"f{number}": 35 + number for number in range(32)} | {"fcsr": 75}
MIPS = {f"r{number}": number for number in range(32)}
MIPS |= {"cp0_status": 32, "lo": 33, "hi": 34, "cp0_cause": 36, "cp0_epc": 37}


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("name", WITHOUT_DUMP)
def test_a_guest_that_qemu_cannot_dump(name: str, cpus: int, run_vmdump: RunVmdump, scratch: Path) -> None:
    with machine(name, cpus) as guest:
        with pytest.raises(Exception, match="not currently supported"):
            guest.monitor.dump(scratch / "qemus.elf")
        stub, truth = guest.gdb(), []
        for cpu in range(cpus):
            stub.select(cpu)
            numbers = LOONGARCH if name == "loongarch64" else MIPS
            truth.append({register: stub.read(number) for register, number in numbers.items()})
        stub.close()
        spans = guest.memory_map()
        mine = ElfCore(dump(run_vmdump, f"qmp:{guest.qmp}", scratch / "mine.elf", "-f", "elf"))
        kdump = Kdump(dump(run_vmdump, f"qmp:{guest.qmp}", scratch / "mine.kdump")).check()
        ram = np.fromfile(guest.ram, np.uint8)

    with vmdump.open(scratch / "mine.kdump") as opened:
        for found, registers in zip(opened.cpus, truth, strict=True):
            values = {name: int.from_bytes(data, opened.byteorder) for name, data in registers.items()}
            assert {name: found[name] for name in values} == values
            assert sum(value > 1 << 16 for value in values.values()) > 25
        assert opened.notes == mine.notes
    assert kdump.uts["machine"] == UNAME_MACHINES[name]
    assert [(load.paddr, load.paddr + load.memsz) for load in mine.loads] == [
        (begin, end) for begin, end, _ in spans
    ]
    assert judges.readelf(scratch / "mine.elf", "--segments", "--notes").count("NT_PRSTATUS") == cpus
    # Of the large zero parts a sample will do.
    expected = {
        address: ram[offset + address - begin : offset + address - begin + size].tobytes()
        for begin, end, offset in spans
        if offset is not None
        for address, size in pieces([(begin, end)])
        if address % (64 * MIB) == 0 or ram[offset + address - begin :][:size].any()
    }
    assert sum(any(data) for data in expected.values()) >= 3
    ranges = [(address, len(data)) for address, data in expected.items()]
    assert [mine.read(*where) for where in ranges] == list(expected.values())
    assert judges.libkdumpfile_read(scratch / "mine.kdump", ranges) == list(expected.values())


@pytest.mark.parametrize("name", ["mips64el", "riscv64"])
def test_a_running_machine_is_stopped_and_runs_again(name: str, scratch: Path) -> None:
    with machine(name, 2) as guest:
        guest.monitor.execute("cont")
        with vmdump.open_source(f"qmp:{guest.qmp}") as source:
            before = guest.monitor.event_names().count("STOP")
            report = vmdump.dump(source, scratch / "paused")
            assert guest.monitor.event_names().count("STOP") > before
            assert guest.monitor.status() == "running"
            assert not report.fuzzy
            assert report.paused_seconds
            assert vmdump.dump(source, scratch / "fuzzy", pause=False).fuzzy
        assert guest.monitor.status() == "running"
    for output in ("paused", "fuzzy"):
        with vmdump.open(scratch / output) as dump:
            assert len(dump.cpus) == 2
            assert dump.arch.name == name


def test_an_architecture_that_vmdump_does_not_know() -> None:
    with machine("m68k", 1) as guest, pytest.raises(QmpError, match="not currently supported"):
        vmdump.open_source(f"qmp:{guest.qmp}")
