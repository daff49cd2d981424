"""``--paging``: PT_LOADs of made page tables, and what is read from such files again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles.elf import ElfCore
from oracles.elf_builder import Load, build_elf
from oracles.page_tables import LEGACY, PAE, PAGE, Shape, Tables, long_mode

import vmdump
from vmdump import BlockSource, BufferMemory
from vmdump.arch import arch_by_name
from vmdump.errors import CapabilityError, LayoutError
from vmdump.guest.blocks import Block

MIB = 1 << 20
MODES = {
    "32-bit": ("i386", LEGACY, 1 << 4),
    "PAE": ("i386", PAE, 1 << 5),
    "long": ("x86_64", long_mode(4), 1 << 5),
}
Blocks = list[tuple[int, bytes]]


def guest_of(blocks: Blocks, arch: str, root: int, cr4: int, *, paging: bool = True) -> BlockSource:
    notes = arch_by_name(arch).notes([{"cr0": 1 << 31 if paging else 0, "cr3": root, "cr4": cr4}])
    return BlockSource([Block(start, BufferMemory(data)) for start, data in blocks], arch=arch, notes=notes)


def expected(
    blocks: Blocks, mappings: list[tuple[int, int, int]]
) -> list[tuple[int, int, int, int, int | None]]:
    """(vaddr, paddr, memsz, filesz, offset from the first byte of memory) by QEMU's rules."""
    loads = []
    for virtual, physical, size in mappings:
        place = 0
        found: tuple[int, int | None] = (0, None)
        for start, data in blocks:
            if start <= physical < start + len(data):
                found = min(size, start + len(data) - physical), place + physical - start
            place += len(data)
        loads.append((virtual, physical, size, *found))
    return loads


def written(core: ElfCore, memory_size: int) -> list[tuple[int, int, int, int, int | None]]:
    begin = core.size - memory_size
    return [(s.vaddr, s.paddr, s.memsz, s.filesz, s.offset - begin if s.filesz else None) for s in core.loads]


@pytest.fixture
def two_blocks() -> Blocks:
    """640 KiB, a gap as of a PC, and memory from 1 MiB on, for the tables too."""
    rng = random.Random(5)
    return [(0, rng.randbytes(640 << 10)), (MIB, rng.randbytes(MIB) + bytes(3 * MIB))]


def with_tables(blocks: Blocks, shape: Shape, pages: list[tuple[int, int, int]]) -> tuple[Blocks, int]:
    memory = bytearray(5 * MIB)
    for start, data in blocks:
        memory[start : start + len(data)] = data
    tables = Tables(memory, shape, 2 * MIB)
    for virtual, physical, level in pages:
        assert tables.map(virtual, physical, level)
    return [(start, bytes(memory[start : start + len(data)])) for start, data in blocks], tables.root


@pytest.mark.parametrize("mode", MODES)
def test_mappings_that_end_beyond_a_block(mode: str, two_blocks: Blocks, tmp_path: Path) -> None:
    arch, shape, cr4 = MODES[mode]
    last = len(shape.shifts) - 1
    large = 1 << shape.shifts[last - 1]
    high = (1 << shape.bits) - (1 << 30)
    pages = [(high, 0, last - 1), (high + 2 * large, MIB, last), (high + 2 * large + PAGE, 0x9F000, last)]
    blocks, root = with_tables(two_blocks, shape, pages)
    above = 0 if shape.bits == 32 else -(1 << shape.bits) & (1 << 64) - 1
    mappings = [
        (high | above, 0, large),
        (high + 2 * large + PAGE | above, 0x9F000, PAGE),
        (high + 2 * large | above, MIB, PAGE),
    ]
    with guest_of(blocks, arch, root, cr4) as guest:
        vmdump.dump(guest, tmp_path / "core", format="elf", paging=True)
    core = ElfCore(tmp_path / "core")
    assert core.bits == (64 if arch == "x86_64" else 32)
    size = sum(len(data) for _, data in blocks)
    assert written(core, size) == expected(blocks, mappings)
    # The large page has the bytes of the first block only, and 1 MiB is in another one.
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.read(0, 640 << 10) == blocks[0][1]
        assert dump.read(MIB, PAGE) == blocks[1][1][:PAGE]


@pytest.mark.parametrize(
    ("begin", "length"), [(0x1000, 0x5000), (0x1800, 0x800), (0x2000, MIB), (0xA1000, MIB), (0, 1 << 40)]
)
def test_part_of_the_memory(begin: int, length: int, two_blocks: Blocks, tmp_path: Path) -> None:
    shape = long_mode(4)
    high = (1 << 48) - (1 << 30)
    blocks, root = with_tables(two_blocks, shape, [(high, 0, 2), (high + (2 << 20), 0x100000, 3)])
    above = 0xFFFF << 48
    end = begin + length
    mappings = []
    for virtual, physical, size in [(high | above, 0, 2 << 20), (high + (2 << 20) | above, MIB, PAGE)]:
        low, top = max(physical, begin), min(physical + size, end)
        if low < top:
            mappings.append((virtual + low - physical, low, top - low))
    parts = [
        (max(start, begin), data[max(begin - start, 0) : max(end - start, 0)])
        for start, data in blocks
        if start < end and start + len(data) > begin
    ]
    with guest_of(blocks, "x86_64", root, 1 << 5) as guest:
        vmdump.dump(guest, tmp_path / "core", format="elf", paging=True, begin=begin, length=length)
    core = ElfCore(tmp_path / "core")
    assert written(core, sum(len(data) for _, data in parts)) == expected(parts, mappings)


def test_more_mappings_than_a_program_header_count_holds(tmp_path: Path) -> None:
    """PN_XNUM: two tables map every page of a 128 MiB guest in an order in which nothing is contiguous."""
    shape = long_mode(4)
    memory = bytearray(256 * MIB)
    tables = Tables(memory, shape, 200 * MIB)
    count = 66000
    # By stride 3, so that no page follows its neighbour.
    entries = (np.arange(count, dtype=np.uint64) * 3 % 50000 << np.uint64(12)) | np.uint64(1)
    for first in range(0, count, 512):
        tables.map(0x40000000 + first * PAGE, 0, 3)
        place = tables.below[next(reversed(tables.below))]
        part = entries[first : first + 512].astype("<u8").tobytes()
        memory[place : place + len(part)] = part
    with guest_of([(0, bytes(memory))], "x86_64", tables.root, 1 << 5) as guest:
        vmdump.dump(guest, tmp_path / "core", format="elf", paging=True)
    core = ElfCore(tmp_path / "core")
    assert len(core.loads) == count
    assert core.ehdr["e_phnum"] == 0xFFFF
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.size == 50000 * PAGE


def test_guest_without_paging_is_its_blocks(two_blocks: Blocks, tmp_path: Path) -> None:
    with guest_of(two_blocks, "i386", 0, 0, paging=False) as guest:
        vmdump.dump(guest, tmp_path / "core", format="elf", paging=True)
        vmdump.dump(guest, tmp_path / "plain", format="elf")
    assert (tmp_path / "core").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize(("arch", "why"), [("ppc", "no page-table walk"), ("aarch64", "VMCOREINFO")])
def test_refusals(arch: str, why: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(MIB))
    source = f"raw:{tmp_path / 'ram'}?arch={arch}"
    done = run_vmdump("dump", source, tmp_path / "core", "-f", "elf", "--paging")
    assert done.returncode == CapabilityError.exit_code
    assert done.stderr.decode().count("\n") == 1
    assert why in done.stderr.decode()
    assert not (tmp_path / "core").exists()


def test_pt_loads_that_end_where_another_one_begins(tmp_path: Path) -> None:
    """Bytes of the file before zeros, wherever the PT_LOAD without bytes stands; -1 is where nothing is."""
    data = random.Random(1).randbytes(3 * PAGE)
    loads = [
        Load(0x0, data[:PAGE], memsz=16 * PAGE, vaddr=1 << 47),
        Load(2 * PAGE, data[PAGE:], vaddr=2 << 47),
        Load(3 * PAGE, b"", memsz=PAGE, filesz=0, offset=(1 << 64) - 1, vaddr=3 << 47),
    ]
    (tmp_path / "core").write_bytes(build_elf(loads))
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.read(0, 2 * PAGE) == data[:PAGE] + bytes(PAGE)
        assert dump.read(2 * PAGE, 2 * PAGE) == data[PAGE:]


def test_different_bytes_for_one_address_are_refused(tmp_path: Path) -> None:
    loads = [Load(0, bytes(2 * PAGE)), Load(PAGE, b"x" * PAGE)]
    (tmp_path / "core").write_bytes(build_elf(loads))
    with pytest.raises(LayoutError):
        vmdump.open(tmp_path / "core")
