"""--compat qemu of a live guest: the bytes that its own QEMU writes, whatever machine it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import judges
from oracles.elf import ElfCore

import vmdump
from live.guests import Guest, Monitor
from live.machines import KINDS, Kind, Machine
from vmdump.kernels.engines import native_engines

QEMUS = (
    *("x86_64", "i386", "aarch64", "aarch64-sve", "arm", "ppc", "ppc-e500"),
    *("ppc64", "s390x", "riscv64", "riscv32"),
)
ODD = {
    # Its first block begins at 0x400.
    "n800": Kind("arm", "n800", (range(15),), memory=128),
    # 26 blocks, most of which begin or end inside a page of 64 KiB, up to six in one page.
    "raspi3b": Kind("aarch64", "raspi3b", (range(31),), memory=1024),
    # Memory ends inside a page of 64 KiB.
    "33M": Kind(
        "aarch64",
        "virt",
        (range(31),),
        options=(
            *("-object", "memory-backend-ram,id=odd,size=33800K", "-machine", "virt,memory-backend=odd"),
            *("-cpu", "cortex-a57", "-m", "33800K"),
        ),
    ),
    # Pages of 4 KiB, which of ppc64 only pseries has not.
    "g3beige": Kind("ppc64", "g3beige", (range(32),)),
}

pytestmark = pytest.mark.skipif("zlib" not in native_engines(), reason="this build has no zlib")


def same_bytes(one: Path, other: Path) -> None:
    first, second = (np.memmap(path, np.uint8, "r") for path in (one, other))
    assert first.size == second.size
    for begin in range(0, first.size, 1 << 24):
        assert np.array_equal(first[begin : begin + (1 << 24)], second[begin : begin + (1 << 24)]), (
            f"{begin:#x}"
        )


def demand_same_version(monitor: Monitor) -> None:
    """Skip the test under another QEMU: later ones write other files of some machines."""
    version = monitor.greeting["version"]["qemu"]
    if (version["major"], version["minor"]) != (7, 2):
        pytest.skip(f"QEMU {version['major']}.{version['minor']} is not 7.2")


def check_elf(monitor: Monitor, qmp: Path, folder: Path, paging: bool = False, **part: int) -> None:
    """Assert that vmdump and QEMU write the same ELF file; `part` may be a begin and a length."""
    demand_same_version(monitor)
    where = f"file:{folder / 'qemus.elf'}"
    monitor.execute("dump-guest-memory", paging=paging, protocol=where, **part)
    options: dict[str, Any] = {"compat": "qemu", "format": "elf", "paging": paging, **part}
    vmdump.dump(f"qmp:{qmp}", folder / "mine.elf", force=True, **options)
    same_bytes(folder / "mine.elf", folder / "qemus.elf")


def check_stream(monitor: Monitor, qmp: Path, folder: Path) -> None:
    """Assert that vmdump and QEMU write the same flattened kdump file."""
    demand_same_version(monitor)
    monitor.dump(folder / "qemus.flat", "kdump-zlib")
    vmdump.dump(f"qmp:{qmp}", folder / "mine.flat", compat="qemu")
    same_bytes(folder / "mine.flat", folder / "qemus.flat")


def check_kdump(monitor: Monitor, qmp: Path, folder: Path) -> None:
    """Assert that vmdump and QEMU write the same kdump file, as a stream and rearranged."""
    check_stream(monitor, qmp, folder)
    vmdump.dump(f"qmp:{qmp}", folder / "mine.kdump", compat="qemu", format="kdump-raw-zlib")
    judges.makedumpfile_rearrange(folder / "qemus.flat", folder / "qemus.kdump")
    same_bytes(folder / "mine.kdump", folder / "qemus.kdump")


@pytest.mark.parametrize(
    ("name", "cpus"), [(name, cpus) for name in QEMUS for cpus in (1, 2)[: KINDS[name].most_cpus]]
)
def test_machine(name: str, cpus: int, scratch: Path) -> None:
    judges.require(f"qemu-system-{KINDS[name].arch}")
    with Machine(KINDS[name], cpus, seed=17 + cpus) as guest:
        check_elf(guest.monitor, guest.qmp, scratch, paging=cpus == 2)
        check_kdump(guest.monitor, guest.qmp, scratch)


@pytest.mark.parametrize(("name", "cpus"), [("n800", 1), ("raspi3b", 4), ("33M", 1), ("g3beige", 1)])
def test_blocks_that_are_no_whole_pages(name: str, cpus: int, scratch: Path) -> None:
    judges.require(f"qemu-system-{ODD[name].arch}")
    with Machine(ODD[name], cpus, seed=23) as guest:
        check_kdump(guest.monitor, guest.qmp, scratch)
        if name != "raspi3b":  # of 1 GiB
            check_elf(guest.monitor, guest.qmp, scratch)


def test_part_of_the_memory(scratch: Path) -> None:
    judges.require("qemu-system-x86_64")
    with Machine(KINDS["x86_64"], 2, seed=29) as guest:
        check_elf(guest.monitor, guest.qmp, scratch, begin=0x123000, length=0x700000)
        check_elf(guest.monitor, guest.qmp, scratch, begin=0x1000001, length=0xFEFFF000 + 77)


def test_linux_guest(running_guest: Guest, scratch: Path) -> None:
    """It has VMCOREINFO, a phys_base that QEMU reads wrongly, and page tables."""
    running_guest.monitor.execute("stop")
    check_elf(running_guest.monitor, running_guest.qmp, scratch, paging=True)
    assert len(ElfCore(scratch / "mine.elf").loads) > 20
    check_elf(
        running_guest.monitor, running_guest.qmp, scratch, paging=True, begin=0x1234000, length=0x5678000
    )
    check_stream(running_guest.monitor, running_guest.qmp, scratch)
    with vmdump.open(scratch / "mine.flat") as dump:
        told = dump.vmcoreinfo.number("phys_base")
        assert told
        assert f"NUMBER(phys_base)={told}\n".encode() in dump.vmcoreinfo.text
