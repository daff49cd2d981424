"""QEMU's ELF dump in, vmdump's files out: the same guest as in QEMU's kdump, for seven machines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.goldens import DATA, MACHINES
from oracles import judges
from oracles.elf import ElfCore, Segment
from oracles.flattened import Flattened
from oracles.kdump import UTS_FIELDS, Kdump

Golden = Callable[[str, str], Path]

# utsname.machine as uname -m prints it; QEMU itself writes "Unknown" for all but the first two.
UNAME_MACHINES = {
    "x86_64-q35": "i686",
    "i386-pc": "i686",
    "aarch64-virt": "aarch64",
    "arm-virt": "armv7l",
    "ppc-g3": "ppc",
    "ppc64-pseries": "ppc64",
    "riscv64-virt": "riscv64",
}


def dump(run_vmdump: RunVmdump, source: Path, output: Path, *options: str) -> Path:
    done = run_vmdump("dump", source, output, *options)
    assert done.returncode == 0, done.stderr.decode()
    return output


def memory_of(core: ElfCore, load: Segment) -> np.ndarray:
    return np.frombuffer(core.load_view(load), np.uint8)


@pytest.mark.parametrize("folder", [DATA, DATA / "filter"], ids=["dumps", "filter"])
def test_data_is_what_its_readme_says(folder: Path) -> None:
    listed = dict(
        re.findall(r"^    ([0-9a-f]{64})  (\S+)$", (folder / "README.md").read_text(), re.MULTILINE)
    )
    found = {
        hashlib.sha256(path.read_bytes()).hexdigest(): str(path.relative_to(folder))
        for path in folder.glob("*/*")
        if path.is_file() and path.name != "README.md"
    }
    assert found.keys() == listed.keys()
    assert set(listed.values()) >= set(found.values())


@pytest.mark.parametrize("layout", ["standard", "flattened"])
@pytest.mark.parametrize("machine", MACHINES)
def test_kdump_is_the_guest_of_qemus_kdump(
    machine: str, layout: str, golden: Golden, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    output = dump(run_vmdump, golden(machine, "elf"), tmp_path / "mine", "--layout", layout)
    if layout == "flattened":
        Flattened(output).check().rearrange(tmp_path / "standard")
        output = tmp_path / "standard"
    Flattened(golden(machine, "kdump-zlib")).rearrange(tmp_path / "qemus")
    mine, qemus = Kdump(output).check(), Kdump(tmp_path / "qemus").check()

    assert (mine.form, mine.packing, mine.block_size) == (qemus.form, qemus.packing, qemus.block_size)
    assert mine.sub_header == qemus.sub_header
    assert mine.notes == qemus.notes
    told = ("status", "sub_hdr_size", "bitmap_blocks", "max_mapnr", "nr_cpus")
    assert {name: mine.header[name] for name in told} == {name: qemus.header[name] for name in told}
    assert mine.bitmap1 == qemus.bitmap1
    assert mine.bitmap2 == qemus.bitmap2
    # The same pages are the shared zero page; the compressed sizes are the engine's own.
    assert np.array_equal(
        mine.descriptors["offset"] == mine.data_offset, qemus.descriptors["offset"] == qemus.data_offset
    )
    assert all(a == b for a, b in zip(mine.pages(), qemus.pages(), strict=True))

    # A guest without VMCOREINFO is not known to be Linux: only its machine is known.
    assert mine.uts == dict.fromkeys(UTS_FIELDS, "") | {"machine": UNAME_MACHINES[machine]}


@pytest.mark.parametrize("machine", MACHINES)
def test_elf_is_the_guest_of_qemus_elf(
    machine: str, golden: Golden, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    qemus = ElfCore(golden(machine, "elf"))
    mine = ElfCore(dump(run_vmdump, golden(machine, "elf"), tmp_path / "mine", "-f", "elf"))
    mine.check_vmdump_layout()
    assert (mine.bits, mine.byteorder, mine.machine) == (qemus.bits, qemus.byteorder, qemus.machine)
    assert mine.notes == qemus.notes
    assert [load._replace(offset=0) for load in mine.loads] == [
        load._replace(offset=0) for load in qemus.loads
    ]
    for mine_load, qemus_load in zip(mine.loads, qemus.loads, strict=True):
        assert np.array_equal(memory_of(mine, mine_load), memory_of(qemus, qemus_load))
    assert judges.readelf(tmp_path / "mine", "--segments", "--notes").count(" LOAD ") == len(qemus.loads)


@pytest.mark.parametrize("machine", MACHINES)
def test_libkdumpfile_reads_each_page_of_the_kdump(
    machine: str, golden: Golden, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    qemus = ElfCore(golden(machine, "elf"))
    output = dump(run_vmdump, golden(machine, "elf"), tmp_path / "mine")
    piece = 1 << 20
    ranges = [
        (address, min(piece, load.paddr + load.memsz - address))
        for load in qemus.loads
        for address in range(load.paddr, load.paddr + load.memsz, piece)
    ]
    for where, data in zip(ranges, judges.libkdumpfile_read(output, ranges), strict=True):
        assert data == qemus.read(*where), f"{where[0]:#x}"


def test_kdump_with_paging_elf_as_source(golden: Golden, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    plain = dump(run_vmdump, golden("x86_64-q35", "elf"), tmp_path / "plain")
    paging = dump(run_vmdump, golden("x86_64-q35", "elf-paging"), tmp_path / "paging")
    same = zip(Kdump(plain).check().pages(), Kdump(paging).check().pages(), strict=True)
    assert all(a == b for a, b in same)


def linux_core(head: Path, memory: dict[int, bytes], output: Path) -> ElfCore:
    """Give the head of a real dump a body: `memory` at its addresses, zeros everywhere else."""
    output.write_bytes(head.read_bytes())
    core = ElfCore(head)
    lowest = core.loads[0]
    with output.open("r+b") as file:
        file.truncate(lowest.offset)
        file.truncate(max(load.offset + load.filesz for load in core.loads))
        for address, data in memory.items():
            file.seek(lowest.offset + address - lowest.paddr)
            file.write(data)
    return ElfCore(output)


def test_paging_core_of_a_linux_guest(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """162 segments, aliases of each other and unsorted by address, are one run of memory."""
    rng = np.random.default_rng(7)
    addresses = [0, 0xF5000, 0x11E4000, 0x11FB000, 0x1204000, 0x7FE0000, 0x7FE2000]
    memory = {address: rng.integers(0, 256, 4096, np.uint8).tobytes() for address in addresses}
    folder = DATA / "x86_64-linux-128M"
    paging = linux_core(folder / "elf-paging.head64k", memory, tmp_path / "paging.elf")
    plain = linux_core(folder / "elf.head64k", memory, tmp_path / "plain.elf")
    assert len(paging.loads) == 162

    kdump = Kdump(dump(run_vmdump, tmp_path / "paging.elf", tmp_path / "paging")).check()
    assert kdump.frame_ranges() == [(0, 0x7FE3)]
    assert all(page == plain.read(4096 * pfn, 4096) for pfn, page in kdump.pages())
    assert kdump.notes == paging.notes == plain.notes

    whole = Kdump(dump(run_vmdump, tmp_path / "plain.elf", tmp_path / "plain")).check()
    assert whole.frame_ranges() == [(0, 0x8000), (0xFFFC0, 0x100000)]
    assert whole.vmcoreinfo.startswith(b"OSRELEASE=6.1.0-")
    assert whole.notes.count(whole.vmcoreinfo) == 1
    assert whole.uts["sysname"] == "Linux"
    assert f"OSRELEASE={whole.uts['release']}\n".encode() in whole.vmcoreinfo
    assert whole.uts["machine"] == "x86_64"
    number = re.search(rb"^NUMBER\(phys_base\)=(-?\d+)$", whole.vmcoreinfo, re.MULTILINE)
    assert number is not None
    assert whole.sub_header["phys_base"] == int(number[1])


def test_drgn_opens_the_kdump_of_a_linux_guest(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """drgn refuses the file that QEMU made of this guest, because its utsname is empty."""
    memory = {0x100000: b"drgn" * 1024}
    linux_core(DATA / "x86_64-linux-128M" / "elf.head64k", memory, tmp_path / "core")
    output = dump(run_vmdump, tmp_path / "core", tmp_path / "kdump")
    assert judges.drgn_read(output, [(0x100000, 4096), (0x200000, 4096)]) == [b"drgn" * 1024, bytes(4096)]
    names = ("arch.name", "linux.uts.sysname", "linux.uts.machine")
    told = judges.libkdumpfile_attributes(output, names)
    assert told == {"arch.name": "x86_64", "linux.uts.sysname": "Linux", "linux.uts.machine": "x86_64"}
