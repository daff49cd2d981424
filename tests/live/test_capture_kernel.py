"""A guest in its capture kernel: its /proc/vmcore, and what makedumpfile, LiME and vmdump make of it.

QEMU's own dump of the same guest is the truth for memory: the capture kernel runs in what was reserved for
it, and leaves all other memory as the crash left it.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore, split_notes
from oracles.kdump import Kdump
from oracles.lime_builder import build_lime

import vmdump
from live.dumping import MIB, succeeds
from live.guests import Guest
from vmdump import errors

PAGE = 4096
# With 256 MiB the kernel may lie in the middle, by KASLR, and leave no 96 MiB in one piece.
MEMORY, RESERVED = 320 * MIB, "crashkernel=96M"
PATIENCE = 240
Ranges = list[tuple[int, int]]


class Crashed(NamedTuple):
    """The guest, paused in its capture kernel.

    folder          for more files; removed with the guest
    vmcore          its copy of /proc/vmcore
    core            QEMU's dump of it
    ram, reserved   by /proc/iomem: ranges of "System RAM", and of it what was reserved for the capture kernel
    """

    guest: Guest
    folder: Path
    vmcore: Path
    core: ElfCore
    ram: Ranges
    reserved: tuple[int, int]

    @property
    def left(self) -> Ranges:
        """What /proc/vmcore has to hold: kexec_file_load leaves the first MiB out, too."""
        return without(without(self.ram, self.reserved), (0, MIB))

    def memory(self, begin: int, end: int) -> bytes:
        """What QEMU's dump has at these addresses."""
        return self.core.read(begin, end - begin)


def ranges(serial: str, name: str) -> Ranges:
    """The lines of /proc/iomem with this name, half-open."""
    found = re.findall(rf"^ *([0-9a-f]+)-([0-9a-f]+) : {name}\r?$", serial, re.MULTILINE)
    return [(int(begin, 16), int(end, 16) + 1) for begin, end in found]


def wait_copied(guest: Guest) -> str:
    """Wait until the capture kernel has copied /proc/vmcore; the serial console."""
    begin = time.monotonic()
    while True:
        text = guest.serial.read_text(errors="replace")
        if re.search(r"VMCORE-SIZE \d+\r?\n", text):
            return text
        late = time.monotonic() - begin > PATIENCE
        if late or guest.process.poll() is not None or text.count("Kernel panic") > 1 or "kexec_file" in text:
            raise RuntimeError(f"no /proc/vmcore after {time.monotonic() - begin:.0f} s:\n{text[-4000:]}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def crashed() -> Iterator[Crashed]:
    judges.require("guest")
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as name:
        folder = Path(name)
        disk = folder / "vmcore"
        with disk.open("wb") as file:
            file.truncate(MEMORY)
        with Guest(
            f"{MEMORY // MIB}M",
            vmcoreinfo=False,
            initrd="crash.gz",
            append=f"crash=1 {RESERVED}",
            extra=("-drive", f"file={disk},format=raw,if=virtio"),
        ) as guest:
            serial = wait_copied(guest)
            guest.monitor.execute("stop")
            found = re.search(r"VMCORE-SIZE (\d+)", serial)
            assert found
            # QEMU keeps its lock and its own view of the disk, which is not written again.
            with disk.open("r+b") as file:
                file.truncate(int(found[1]))
            guest.monitor.dump(folder / "qemu.elf")
            (reserved,) = ranges(serial, "Crash kernel")
            ram = ranges(serial, "System RAM")
            assert any(begin % PAGE or end % PAGE for begin, end in ram), "each range is whole pages"
            yield Crashed(guest, folder, disk, ElfCore(folder / "qemu.elf"), ram, reserved)


def without(given: Ranges, hole: tuple[int, int]) -> Ranges:
    """Ranges but for one that lies in one of them."""
    parts = itertools.chain.from_iterable(
        [(begin, min(end, hole[0])), (max(begin, hole[1]), end)]
        if begin < hole[1] and hole[0] < end
        else [(begin, end)]
        for begin, end in given
    )
    return [(begin, end) for begin, end in parts if begin < end]


def differing(path: Path, crashed: Crashed, wanted: Ranges) -> list[int]:
    """The addresses of pages that vmdump reads of a dump, and that are not what QEMU's dump has there."""
    found = []
    with vmdump.open(path) as dump:
        for begin, end in wanted:
            for at in range(begin, end, MIB):
                stop = min(at + MIB, end)
                mine, theirs = bytes(dump.read(at, stop - at)), crashed.memory(at, stop)
                if mine != theirs:
                    steps = range(0, stop - at, PAGE)
                    found += [at + step for step in steps if mine[step:][:PAGE] != theirs[step:][:PAGE]]
    return found


def stored(path: Path) -> Ranges:
    """What an ELF dump has bytes for: the ranges of its segments, once each, in order."""
    loads = sorted((load.paddr, load.paddr + load.filesz) for load in ElfCore(path).loads)
    once: Ranges = []
    for begin, end in loads:
        if once and begin <= once[-1][1]:
            once[-1] = (once[-1][0], max(once[-1][1], end))
        elif begin < end:
            once.append((begin, end))
    return once


def vmcoreinfo_of(path: Path) -> dict[str, str]:
    """The VMCOREINFO note of an ELF dump."""
    core = ElfCore(path)
    (note,) = (note for note in split_notes(core.notes, "<") if note.name == b"VMCOREINFO")
    text = note.desc.rstrip(b"\0").decode()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def makedumpfile(*words: object, code: int = 0) -> str:
    """Run it; what it said."""
    judges.require("makedumpfile")
    done = subprocess.run(
        ["makedumpfile", *map(str, words)], capture_output=True, text=True, errors="replace", check=False
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == (code == 0), said
    return said


def check_log(path: Path) -> None:
    """Assert that makedumpfile finds the log of the kernel that crashed."""
    log = path.with_suffix(".log")
    makedumpfile("--dump-dmesg", path, log)
    assert b"sysrq: Trigger a crash" in log.read_bytes()


def check_kdump(path: Path, crashed: Crashed) -> Kdump:
    """Assert that others read a kdump file as the kernel that crashed."""
    text = vmcoreinfo_of(crashed.vmcore)
    kdump = Kdump(path)
    check_log(path)
    judges.require("drgn")
    import drgn

    program = drgn.Program()
    program.set_core_dump(path)
    assert program["UTS_RELEASE"].string_().decode() == text["OSRELEASE"]
    address = int(text["SYMBOL(init_uts_ns)"], 16)
    assert b"Linux\0" in program.read(address, 64 + 6 * 65)
    return kdump


# /proc/vmcore


def test_the_vmcore_has_qemus_bytes(crashed: Crashed) -> None:
    assert stored(crashed.vmcore) == crashed.left
    assert "CRASHTIME" in vmcoreinfo_of(crashed.vmcore)
    assert differing(crashed.vmcore, crashed, crashed.left) == []


def test_what_is_told_of_the_vmcore(crashed: Crashed, run_vmdump: RunVmdump) -> None:
    done = run_vmdump("info", crashed.vmcore, "--json")
    assert done.returncode == 0, done.stderr
    assert vmcoreinfo_of(crashed.vmcore)["OSRELEASE"] in json.dumps(json.loads(done.stdout))
    done = run_vmdump("verify", crashed.vmcore)
    assert done.returncode == 0, done.stderr
    log = run_vmdump("dmesg", crashed.vmcore)
    makedumpfile("--dump-dmesg", crashed.vmcore, crashed.folder / "theirs.log")
    assert log.stdout == (crashed.folder / "theirs.log").read_bytes()


def test_the_vmcore_becomes_a_kdump(crashed: Crashed, scratch: Path) -> None:
    vmdump.convert(crashed.vmcore, scratch / "kdump", format="kdump-zlib")
    kdump = check_kdump(scratch / "kdump", crashed).check()
    pages = {page for begin, end in stored(crashed.vmcore) for page in range(begin // PAGE, -(-end // PAGE))}
    assert set(kdump.pfns.tolist()) == pages
    assert differing(scratch / "kdump", crashed, crashed.left) == []


# makedumpfile's


@pytest.mark.parametrize("options", ["-E -d 0", "-E -d 31", "-c -d 31", "-l -d 0"])
def test_makedumpfiles_of_it(options: str, crashed: Crashed, scratch: Path) -> None:
    path = scratch / "theirs"
    makedumpfile(*options.split(), crashed.vmcore, path)
    if options.startswith("-E"):
        there = stored(path)
    else:
        pfns = Kdump(path).pfns
        there = [(pfn * PAGE, (pfn + 1) * PAGE) for pfn in pfns[:: max(1, len(pfns) // 3000)].tolist()]
    wanted = [
        (max(begin, low), min(end, high))
        for begin, end in there
        for low, high in crashed.left
        if max(begin, low) < min(end, high)
    ]
    assert sum(end - begin for begin, end in wanted) > 4 * MIB
    assert differing(path, crashed, wanted) == []
    vmdump.convert(path, scratch / "kdump", format="kdump-zlib")
    check_kdump(scratch / "kdump", crashed)


@pytest.mark.parametrize("options", ["-c -d 1", "-E -d 31"])
def test_makedumpfile_on_a_full_disk(
    options: str, crashed: Crashed, scratch: Path, run_vmdump: RunVmdump
) -> None:
    """What it has written so far is marked as incomplete, and all of it that is whole comes back."""
    small, full = scratch / "small", scratch / "full"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", small], capture_output=True)
    if done.returncode:
        pytest.skip(f"a file system that runs full needs root: {done.stderr.decode().strip()}")
    try:
        said = makedumpfile(*options.split(), crashed.vmcore, small / "dump", code=1)
        assert "No space left on device" in said
        full.write_bytes((small / "dump").read_bytes())
    finally:
        subprocess.run(["umount", small], check=True)
    assert full.stat().st_size > 4 * MIB
    told = run_vmdump("info", full, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["incomplete"] is True
    plain = run_vmdump("info", full)
    assert b"incomplete" in plain.stdout
    repaired = run_vmdump("repair", full, scratch / "repaired")
    assert repaired.returncode == 0, repaired.stderr
    compared = 0
    with vmdump.open(scratch / "repaired") as dump:
        for begin, end in crashed.left:
            for at in range(-(-begin // PAGE) * PAGE, end - PAGE + 1, PAGE):
                try:
                    mine = bytes(dump.read(at, PAGE))
                except errors.ReadError:
                    continue
                if any(mine):
                    assert mine == crashed.memory(at, at + PAGE), hex(at)
                    compared += 1
    assert compared > 500


# Memory that is not made of whole pages


def test_lime_ranges_of_its_iomem(crashed: Crashed, scratch: Path) -> None:
    lime = scratch / "lime"
    lime.write_bytes(build_lime([(begin, crashed.memory(begin, end)) for begin, end in crashed.ram]))
    assert differing(lime, crashed, crashed.ram) == []
    vmdump.convert(lime, scratch / "kdump", format="kdump-zlib")
    kdump = Kdump(scratch / "kdump").check()
    pages = {page for begin, end in crashed.ram for page in range(begin // PAGE, -(-end // PAGE))}
    assert set(kdump.pfns.tolist()) == pages
    for begin, end in crashed.ram:
        for pfn in (begin // PAGE, (end - 1) // PAGE):
            low, high = max(begin, pfn * PAGE), min(end, (pfn + 1) * PAGE)
            before, behind = low - pfn * PAGE, (pfn + 1) * PAGE - high
            assert kdump.page(pfn) == bytes(before) + crashed.memory(low, high) + bytes(behind), hex(pfn)
    assert differing(scratch / "kdump", crashed, crashed.ram) == []


# The guest itself


def test_the_kernel_that_crashed_is_chosen(crashed: Crashed, scratch: Path) -> None:
    """Its memory holds the texts of both kernels; the one that crashed has a time of its crash."""
    texts = {
        text
        for load in crashed.core.loads
        for text in re.findall(rb"OSRELEASE=[^\0]{2000,4000}", crashed.core.load_bytes(load))
    }
    bases = {found[0] for text in texts if (found := re.findall(rb"KERNELOFFSET=(\w+)", text))}
    assert len(bases) == 2, bases
    succeeds(crashed.guest, scratch / "dump")
    text, truth = Kdump(scratch / "dump").check(ahead=True).vmcoreinfo.decode(), vmcoreinfo_of(crashed.vmcore)
    for key in ("CRASHTIME", "KERNELOFFSET", "NUMBER(phys_base)", "OSRELEASE"):
        assert f"{key}={truth[key]}\n" in text, key
    # Not drgn: libkdumpfile follows the first vCPU's CR3, which is the capture kernel's if that one crashed.
    check_log(scratch / "dump")
