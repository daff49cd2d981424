"""Raw memory of real machines: QEMU's own map of it, QEMU's own dump, and what is refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore

import vmdump
from live.guests import SHM, Guest
from vmdump.errors import LayoutError

MIB = 1 << 20
SMALL = "q35,max-ram-below-4g=128M"
PLACED = "machine=q35&max_ram_below_4g=128M"

MACHINES = [
    *(("x86_64", "q35", size) for size in ("128M", "2815M", "2816M", "4608M")),
    *(("x86_64", "pc", size) for size in ("3583M", "3584M", "4608M", "1009G")),
    *(("x86_64", "microvm", size) for size in ("3G", "3073M")),
    *(("x86_64", "pc-i440fx-1.7", size) for size in ("3584M", "3585M")),
    ("x86_64", "isapc", "4G"),
    ("x86_64", SMALL, "256M"),
    ("x86_64", "pc,max-ram-below-4g=3400M", "3400M"),
    ("i386", "q35", "3G"),
    ("aarch64", "virt", "4G"),
    ("aarch64", "sbsa-ref", "128M"),
    ("aarch64", "xlnx-zcu102", "4G"),
    ("arm", "virt", "128M"),
    ("arm", "vexpress-a15", "128M"),
    ("riscv64", "virt", "128M"),
    ("loongarch64", "virt", "1025M"),
    ("mips", "malta", "1G"),
    ("ppc64", "pseries", "256M"),
    ("ppc", "g3beige", "128M"),
    ("s390x", "s390-ccw-virtio", "128M"),
]
LINE = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\): (\S+)(?: @([0-9a-f]+))?", re.MULTILINE
)
Places = list[tuple[int, int, int]]


def qemus_places(arch: str, machine: str, size: str, ram: Path, *options: str) -> Places:
    """Where QEMU has the file: (begin, end, offset in the file), by its flat view of the system."""
    backend = f"memory-backend-file,id=ram0,share=on,size={size},mem-path={ram}"
    command = [
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            f"qemu-system-{arch}",
            "-accel",
            "tcg",
            "-S",
            "-m",
            size,
            *options,
        ),
        *(
            "-machine",
            f"{machine},memory-backend=ram0",
            "-object",
            backend,
            "-nodefaults",
            "-display",
            "none",
        ),
        *("-monitor", "stdio"),
    ]
    done = subprocess.run(
        command,
        input="info mtree -f\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    for view in re.split(r"^FlatView #", done.stdout, flags=re.MULTILINE):
        found = [match.groups(default="0") for match in LINE.finditer(view)]
        places = [
            (int(begin, 16), int(last, 16) + 1, int(offset, 16))
            for begin, last, name, offset in found
            if name.endswith(("ram0", ".ram"))
        ]
        if places and "system" in view:
            return joined(places)
    raise AssertionError(f"{done.stdout}{done.stderr}")


def joined(places: Places) -> Places:
    """Fill what ROMs cover in the first MiB: there is memory behind them."""
    found = places[:1]
    for begin, end, offset in places[1:]:
        first, last, start = found[-1]
        if begin - offset == first - start and (begin == last or begin <= MIB):
            found[-1] = first, end, start
        else:
            found.append((begin, end, offset))
    return found


@pytest.mark.parametrize(("arch", "machine", "size"), MACHINES)
def test_machines_have_their_memory_there(arch: str, machine: str, size: str, scratch: Path) -> None:
    judges.require(f"qemu-system-{arch}")
    ram = scratch / "ram"
    places = qemus_places(arch, machine, size, ram)
    marks = sorted({offset for begin, end, start in places for offset in (start, start + end - begin - 8)})
    with ram.open("r+b") as file:
        for mark in marks:
            file.seek(mark)
            file.write(mark.to_bytes(8, "little"))
    options = machine.replace(",max-ram-below-4g", "&max_ram_below_4g")
    with vmdump.open_source(f"raw:{ram}?arch={arch}&machine={options}") as guest:
        assert [(block.start, block.end) for block in guest.blocks] == [
            (begin, end) for begin, end, _ in places
        ]
        for begin, end, start in places:
            assert guest.read(begin, 8) == start.to_bytes(8, "little")
            assert guest.read(end - 8, 8) == (start + end - begin - 8).to_bytes(8, "little")


@pytest.mark.parametrize(("cpu", "named"), [("qemu64", 1), ("Skylake-Client", 0)])
def test_vendor_decides_near_1_tib(cpu: str, named: int, scratch: Path) -> None:
    judges.require("qemu-system-x86_64")
    ram = scratch / "ram"
    places = qemus_places("x86_64", "q35", "979G", ram, "-cpu", f"{cpu},phys-bits=46")
    with pytest.raises(LayoutError) as caught:
        vmdump.open_source(f"raw:{ram}?machine=q35")
    with vmdump.open_source(f"raw:{ram}?{caught.value.layouts[named]}") as guest:
        assert [(block.start, block.end) for block in guest.blocks] == [
            (begin, end) for begin, end, _ in places
        ]


@pytest.fixture(scope="module")
def small_guest() -> Iterator[Guest]:
    """256 MiB with a hole from 128 MiB to 4 GiB; paused."""
    judges.require("guest")
    with Guest("256M", machine=SMALL, fill=32) as guest:
        guest.wait_ready()
        guest.monitor.execute("stop")
        yield guest


def test_raw_memory_is_what_qemu_dumps(small_guest: Guest, run_vmdump: RunVmdump, scratch: Path) -> None:
    small_guest.monitor.dump(scratch / "qemus")
    theirs = {load.paddr: load for load in ElfCore(scratch / "qemus").loads}
    output = scratch / "mine"
    done = run_vmdump("dump", f"raw:{small_guest.ram_path()}?{PLACED}", output, "-f", "elf")
    assert done.returncode == 0, done.stderr
    mine = ElfCore(output).loads
    assert [(load.paddr, load.memsz) for load in mine] == [(0, 128 * MIB), (4 << 30, 128 * MIB)]
    with output.open("rb") as written, (scratch / "qemus").open("rb") as expected:
        for load in mine:
            # Of the first MiB QEMU writes the ROMs that lie over it.
            skipped = MIB if load.paddr == 0 else 0
            written.seek(load.offset + skipped)
            expected.seek(theirs[load.paddr].offset + skipped)
            size = load.memsz - skipped
            data = written.read(size)
            assert any(data)
            assert data == expected.read(size)


def test_raw_memory_has_its_kernel_behind_the_hole(small_guest: Guest, run_vmdump: RunVmdump) -> None:
    ram = small_guest.ram_path()
    done = run_vmdump("dmesg", f"raw:{ram}?{PLACED}")
    assert done.returncode == 0
    assert b"Linux version" in done.stdout
    done = run_vmdump("dmesg", f"raw:{ram}")
    assert done.returncode == LayoutError.exit_code
    assert b"blocks=0x0-0x8000000,0x100000000-0x108000000" in done.stderr


def test_running_qemu_says_where_its_memory_is(
    linux_guest: Guest, run_vmdump: RunVmdump, scratch: Path
) -> None:
    ram = linux_guest.ram_path()
    with pytest.raises(LayoutError, match=f"process {linux_guest.pid} ") as caught:
        vmdump.open_source(f"raw:{ram}")
    assert caught.value.confirmed == "machine=q35"
    done = run_vmdump("dump", f"raw:{ram}", scratch / "dump")
    assert (done.returncode, done.stderr.count(b"\n"), list(scratch.iterdir())) == (4, 1, [])
    with vmdump.open_source(f"raw:{ram}?machine=q35") as guest:
        compared = vmdump.verify(guest, against=f"qmp:{linux_guest.qmp}").comparison
    assert compared is not None
    assert compared.different_pages == 0
    assert compared.only_in_dump == ()


def test_kernel_says_where_its_memory_is(linux_guest: Guest) -> None:
    ram, copy = linux_guest.ram_path(), SHM / f"{linux_guest.folder.name}.copy"
    assert ram is not None
    try:
        subprocess.run(["cp", "--sparse=always", ram, copy], check=True)
        with pytest.raises(LayoutError, match="kernel") as caught:
            vmdump.open_source(f"raw:{copy}")
        assert caught.value.confirmed == "machine=q35"
    finally:
        copy.unlink(missing_ok=True)
