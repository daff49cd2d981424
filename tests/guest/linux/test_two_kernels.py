"""VMCOREINFO of several kernels in one memory: the one that readers want is taken, and all are named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles.elf_builder import note
from oracles.kdump import Kdump
from oracles.page_tables import Tables, long_mode

import vmdump
from vmdump.errors import RequestError

PAGE = 4096
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
SIZE = 16 << 20
STEXT = 0xFFFF_FFFF_8100_0000
"""Where both kernels have their text, as without KASLR."""
CR0_PG, CR4_PAE = 1 << 31, 1 << 5


@dataclass(frozen=True)
class Kernel:
    """A kernel whose image of 1 MiB is at a guest-physical address."""

    release: str
    at: int
    crashed: int | None = None

    def text(self, *, crashed: bool = True) -> bytes:
        mark = "" if self.crashed is None or not crashed else f"CRASHTIME={self.crashed}\n"
        return (
            f"OSRELEASE={self.release}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={STEXT + 0x8000:x}\n"
            f"OFFSET(uts_namespace.name)=0\nSYMBOL(_stext)={STEXT:x}\n"
            f"NUMBER(phys_base)={self.at - (STEXT - KERNEL_MAP)}\n{mark}"
        ).encode()

    def put(self, memory: bytearray, *, there: bool = True) -> None:
        """Put what a kernel keeps into its image: the names, and the text as it was before a crash."""
        names = ("Linux", "node", self.release if there else "9.9.9", "#1 SMP", "x86_64", "(none)")
        data = b"".join(name.encode().ljust(65, b"\0") for name in names)
        memory[self.at + 0x8000 : self.at + 0x8000 + len(data)] = data

    def place(self, memory: bytearray, address: int, form: str, *, crashed: bool = True) -> None:
        text = self.text(crashed=crashed)
        data = text if form == "text" else note(b"VMCOREINFO", 0, text)
        memory[address : address + len(data)] = data


CRASHED = Kernel("6.1.0-crashed", 2 << 20, 1_700_000_000)
CAPTURE = Kernel("6.1.0-capture", 8 << 20)


def capture_kernel(places: Sequence[int]) -> bytearray:
    """A guest in its capture kernel: five of them, at these pages.

    The crashed kernel's text of before, the copy with CRASHTIME, and the note of it; the capture kernel's.
    """
    memory = bytearray(SIZE)
    CRASHED.put(memory)
    CAPTURE.put(memory)
    CRASHED.place(memory, places[0] * PAGE, "text", crashed=False)
    CRASHED.place(memory, places[1] * PAGE, "text")
    CRASHED.place(memory, places[2] * PAGE, "note")
    CAPTURE.place(memory, places[3] * PAGE, "text")
    CAPTURE.place(memory, places[4] * PAGE, "note")
    return memory


def guest(memory: bytearray, **options: object) -> vmdump.BlockSource:
    return vmdump.BlockSource(np.frombuffer(memory, np.uint8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_the_kernel_that_crashed_is_taken(seed: int) -> None:
    places = random.Random(seed).sample(range(3000, 4000), 5)
    found = vmdump.info(guest(capture_kernel(places)))
    assert found.vmcoreinfo["OSRELEASE"] == CRASHED.release
    assert found.vmcoreinfo["CRASHTIME"] == "1700000000"
    assert found.utsname["release"] == CRASHED.release
    assert found.phys_base == (CRASHED.at - (STEXT - KERNEL_MAP)) % (1 << 64)
    listed = [(place.number, place.address, place.osrelease) for place in found.vmcoreinfo_found]
    kernels = [CRASHED, CRASHED, CRASHED, CAPTURE, CAPTURE]
    by_place = sorted(zip(places, kernels, strict=True), key=lambda pair: pair[0])
    assert listed == [(n, at * PAGE, kernel.release) for n, (at, kernel) in enumerate(by_place, 1)]
    marked = [place for place in found.vmcoreinfo_found if place.crashtime == 1_700_000_000]
    assert {place.address for place in marked} == {places[1] * PAGE, places[2] * PAGE}
    assert [place.address for place in found.vmcoreinfo_found if place.chosen] == [min(places[1:3]) * PAGE]


def test_the_last_crash_counts() -> None:
    memory = bytearray(SIZE)
    for index, (at, time) in enumerate([(2, 1_700_000_000), (4, 1_800_000_000), (6, 1_600_000_000)]):
        kernel = Kernel(f"6.{index}", at << 20, time)
        kernel.put(memory)
        kernel.place(memory, (3000 + index) * PAGE, "note")
    assert guest(memory).vmcoreinfo["OSRELEASE"] == "6.1"


def test_a_crash_of_a_kernel_that_is_gone_does_not_count() -> None:
    memory = bytearray(SIZE)
    CRASHED.put(memory, there=False)
    CAPTURE.put(memory)
    CRASHED.place(memory, 3000 * PAGE, "note")
    CAPTURE.place(memory, 3001 * PAGE, "note")
    found = vmdump.info(guest(memory))
    assert found.vmcoreinfo["OSRELEASE"] == CAPTURE.release
    assert [place.verdict for place in found.vmcoreinfo_found] == ["wrong", "right"]


def two_running(used: Sequence[int], *, user: bool) -> vmdump.BlockSource:
    """Two kernels that did not crash; the vCPUs are in these, by their tables."""
    memory = bytearray(SIZE)
    kernels = [Kernel("6.1.0-one", 2 << 20), Kernel("6.1.0-two", 8 << 20)]
    roots = []
    for index, kernel in enumerate(kernels):
        kernel.put(memory)
        kernel.place(memory, (3000 + index) * PAGE, "note")
        tables = Tables(memory, long_mode(4), (12 << 20) + (index << 20))
        for page in range(0, 1 << 20, PAGE):
            tables.map(STEXT + page, kernel.at + page, 3)
        # The second page of the pair: what a process of its own has, without the kernel.
        assert tables.root % (2 * PAGE) == 0
        moved = (14 << 20) + 2 * PAGE * index
        memory[moved : moved + PAGE] = memory[tables.root : tables.root + PAGE]
        roots.append(moved)
    cpus = [
        {"cr0": CR0_PG, "cr4": CR4_PAE, "cr3": roots[kernel] | (PAGE if user else 0), "rip": STEXT}
        for kernel in used
    ]
    return guest(memory, cpus=cpus)


@pytest.mark.parametrize("user", [False, True], ids=["in the kernel", "in a process"])
@pytest.mark.parametrize(
    ("used", "taken"), [([0], "one"), ([1], "two"), ([0, 1, 1], "two"), ([0, 0, 1], "one")]
)
def test_the_kernel_that_the_vcpus_are_in(used: list[int], taken: str, user: bool) -> None:
    found = vmdump.info(two_running(used, user=user))
    assert found.vmcoreinfo["OSRELEASE"] == f"6.1.0-{taken}"
    assert [place.cpus for place in found.vmcoreinfo_found] == [used.count(0), used.count(1)]


@pytest.mark.parametrize("taken", [0, 1])
def test_program_counters_where_no_register_tells_page_tables(taken: int) -> None:
    """KASLR gives kernels different places; aarch64's notes do not tell the roots of page tables."""
    memory = bytearray(SIZE)
    images = [0xFFFF_8000_0801_0000, 0xFFFF_A000_4001_0000]
    for index, image in enumerate(images):
        text = (
            f"OSRELEASE=6.1.0-{index}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={image + 0x8000:x}\n"
            f"OFFSET(uts_namespace.name)=0\nSYMBOL(_stext)={image:x}\n"
            f"NUMBER(kimage_voffset)={image - ((2 + 4 * index) << 20)}\n"
        ).encode()
        names = ("Linux", "node", f"6.1.0-{index}", "#1 SMP", "aarch64", "(none)")
        data = b"".join(name.encode().ljust(65, b"\0") for name in names)
        at = ((2 + 4 * index) << 20) + 0x8000
        memory[at : at + len(data)] = data
        memory[(3000 + index) * PAGE : (3000 + index) * PAGE + len(text)] = text
    source = guest(memory, arch="aarch64", cpus=[{"pc": images[taken] + 0x1234}])
    assert source.vmcoreinfo["OSRELEASE"] == f"6.1.0-{taken}"


def test_registers_do_not_outweigh_a_crash() -> None:
    """A vCPU of the guest is in the capture kernel."""
    memory = capture_kernel(range(3000, 3005))
    tables = Tables(memory, long_mode(4), 12 << 20)
    for page in range(0, 1 << 20, PAGE):
        tables.map(STEXT + page, CAPTURE.at + page, 3)
    source = guest(memory, cpus=[{"cr0": CR0_PG, "cr4": CR4_PAE, "cr3": tables.root}])
    found = vmdump.info(source)
    assert found.vmcoreinfo["OSRELEASE"] == CRASHED.release
    assert [place.cpus for place in found.vmcoreinfo_found] == [0, 0, 0, 1, 1]


# The user chooses


def test_what_the_capture_kernel_keeps_of_the_other_one() -> None:
    """Notes of registers, then VMCOREINFO: its /proc/vmcore has them."""
    memory = bytearray(SIZE)
    CRASHED.put(memory)
    CAPTURE.put(memory)
    notes = 2 * note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, CRASHED.text())
    memory[3000 * PAGE : 3000 * PAGE + len(notes)] = notes
    CAPTURE.place(memory, 3001 * PAGE, "note")
    # Other notes, those of a process say, are none.
    memory[3002 * PAGE : 3002 * PAGE + 356] = note(b"CORE", 1, bytes(336))
    found = vmdump.info(guest(memory))
    assert found.vmcoreinfo["OSRELEASE"] == CRASHED.release
    assert [place.address // PAGE for place in found.vmcoreinfo_found] == [3000, 3001]


@pytest.fixture
def lime(tmp_path: Path) -> Path:
    from oracles.lime_builder import build_lime

    path = tmp_path / "guest.lime"
    path.write_bytes(build_lime([(0, bytes(capture_kernel(range(3000, 3005))))]))
    return path


@pytest.mark.parametrize("command", ["dump", "convert"])
def test_one_by_its_number(command: str, lime: Path, tmp_path: Path, run_vmdump: RunVmdump) -> None:
    done = run_vmdump(command, lime, tmp_path / "dump", "--vmcoreinfo", "found:4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vmcoreinfo_found"] == 3003 * PAGE
    assert Kdump(tmp_path / "dump").vmcoreinfo == CAPTURE.text()
    # From a dump that tells one as well.
    report = vmdump.convert(tmp_path / "dump", tmp_path / "again", vmcoreinfo="found:1")
    assert report.vmcoreinfo_found == 3000 * PAGE
    assert Kdump(tmp_path / "again").vmcoreinfo == CRASHED.text(crashed=False)
    assert Kdump(tmp_path / "again").uts["release"] == CRASHED.release


def test_info_lists_them(lime: Path, run_vmdump: RunVmdump) -> None:
    lines = run_vmdump("info", lime).stdout.decode().splitlines()
    (taken,) = (line for line in lines if line.endswith(", taken"))
    assert taken.startswith(
        f"found:2      VMCOREINFO found in memory at {3001 * PAGE:#x}: 6.1.0-crashed, crashed"
    )
    assert sum(line.startswith("found:") for line in lines) == 5
    told = json.loads(run_vmdump("info", lime, "--json").stdout)["vmcoreinfo_found"]
    assert told[1] == {
        **{"number": 2, "address": 3001 * PAGE, "osrelease": "6.1.0-crashed", "crashtime": 1_700_000_000},
        **{"verdict": "right", "cpus": 0, "chosen": True},
    }


@pytest.mark.parametrize("name", ["found:0", "found:6", "found:99999999999999999999", "found:", "found:x"])
@pytest.mark.parametrize("command", ["dump", "convert"])
def test_no_such_number(command: str, name: str, lime: Path, tmp_path: Path, run_vmdump: RunVmdump) -> None:
    done = run_vmdump(command, lime, tmp_path / "dump", "--vmcoreinfo", name)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"vmcoreinfo" in done.stderr
    assert not (tmp_path / "dump").exists()


def test_a_number_needs_the_search(lime: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="search"):
        vmdump.dump(lime, tmp_path / "dump", vmcoreinfo="found:1", search=False)


def test_a_file_of_that_name(lime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(lime, "guest")
    mine = b"OSRELEASE=1.2.3-mine\nPAGESIZE=4096\n"
    Path("found:2").write_bytes(mine)
    for number, given in enumerate(("./found:2", Path("found:2"))):
        vmdump.dump(lime, f"dump{number}", vmcoreinfo=given)
        assert Kdump(Path(f"dump{number}")).vmcoreinfo == mine


def test_files_with_many_of_them() -> None:
    """Kernels that are not in memory do not hide the one that is, behind them."""
    memory = bytearray(SIZE)
    CRASHED.put(memory)
    for index in range(200):
        Kernel(f"5.{index}", index << 12, 1_800_000_000).place(memory, (3000 + index) * PAGE, "text")
    CRASHED.place(memory, 3500 * PAGE, "note")
    source = guest(memory)
    assert source.vmcoreinfo["OSRELEASE"] == CRASHED.release
    assert [place.verdict for place in vmdump.info(source).vmcoreinfo_found] == ["wrong"] * 32 + ["right"]


def test_memory_that_is_full_of_them() -> None:
    """Work is bounded, however many pages begin so."""
    memory = np.zeros((64 << 20) // PAGE * PAGE, np.uint8).reshape(-1, PAGE)
    text = CRASHED.text()
    memory[:, : len(text)] = np.frombuffer(text, np.uint8)
    memory[:, len(text)] = np.arange(len(memory)) % 251 + 1  # each is another text, and none is right
    source = vmdump.BlockSource(memory)
    assert not source.vmcoreinfo
    assert len(source.searched.findings or ()) <= 64
