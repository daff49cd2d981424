"""What readers look for in the synthetic guest, taken from its bytes by code of this file alone."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from helpers.goldens import DATA
from oracles import judges

import vmdump
from vmdump.arch.x86_64 import ARCH, PRSTATUS, QEMU_STATE
from vmdump.sources.synthetic.guest import SyntheticSource

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
DIRECT_MAP = 0xFFFF888000000000
IMAGE_MAP = 0xFFFFFFFF80000000

Note = tuple[bytes, int, bytes]


def split_notes(data: bytes) -> list[Note]:
    """(name, type, descriptor) of each note."""
    notes = []
    while data:
        name_size, size, kind = struct.unpack_from("<3I", data)
        begin = 12 + -(-name_size // 4) * 4
        notes.append((data[12 : 12 + name_size], kind, data[begin : begin + size]))
        data = data[begin + -(-size // 4) * 4 :]
    return notes


def golden_notes() -> list[Note]:
    """Give the notes of a real Debian guest, from QEMU's ELF."""
    elf = (DATA / "x86_64-linux-128M" / "elf.head64k").read_bytes()
    (phoff,) = struct.unpack_from("<Q", elf, 32)
    offset, size = struct.unpack_from("<Q16xQ", elf, phoff + 8)
    return split_notes(elf[offset : offset + size])


def lines(text: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.decode().splitlines())


class Walker:
    """Reads virtual memory as the CPU of the first QEMU note would."""

    def __init__(self, source: SyntheticSource) -> None:
        self.source = source
        state = next(desc for name, _, desc in split_notes(source.notes) if name == b"QEMU\0")
        self.cr3: int = struct.unpack_from("<5Q", state, 392)[3]

    def physical(self, virtual: int) -> int:
        table = self.cr3
        for shift in (39, 30, 21, 12):
            index = virtual >> shift & 511
            (entry,) = struct.unpack("<Q", self.source.read(table + 8 * index, 8))
            assert entry & 1, f"{virtual:#x} is not mapped at level {shift}"
            table = entry & 0x000FFFFFFFFFF000
            if shift == 12 or entry & 0x80:
                return table + (virtual & ((1 << shift) - 1))
        raise AssertionError

    def word(self, virtual: int) -> int:
        (value,) = struct.unpack("<Q", self.source.read(self.physical(virtual), 8))
        return int(value)


@pytest.fixture(params=[4 * MIB, 64 * MIB, GIB, 5 * GIB, 40 * GIB, TIB, 16 * TIB], ids=hex)
def source(request: pytest.FixtureRequest) -> SyntheticSource:
    return SyntheticSource(request.param, fill=0.1)


@pytest.fixture
def info(source: SyntheticSource) -> dict[str, str]:
    return lines(split_notes(source.notes)[-1][2])


def test_notes_are_in_qemus_order(source: SyntheticSource) -> None:
    headers = [(name, kind, len(desc)) for name, kind, desc in split_notes(source.notes)]
    assert headers[:-1] == [(b"CORE\0", 1, 336)] * 2 + [(b"QEMU\0", 0, 440)] * 2
    assert headers[-1][:2] == (b"VMCOREINFO\0", 0)
    assert source.nr_cpus == 2


def test_registers_lie_in_the_kernel(source: SyntheticSource, info: dict[str, str]) -> None:
    walker = Walker(source)
    text = int(info["SYMBOL(_stext)"], 16)
    for cpu, (_, _, desc) in enumerate(split_notes(source.notes)[:2]):
        (pid,) = struct.unpack_from("<I", desc, 32)
        registers = struct.unpack_from("<27Q", desc, 112)
        rip, stack = registers[16], registers[19]
        assert pid == cpu + 1
        assert text <= rip < text + MIB
        assert any(source.read(walker.physical(rip), 64))
        assert source.read(walker.physical(stack), 256) == bytes(256)
    for _, _, desc in split_notes(source.notes)[2:4]:
        assert struct.unpack_from("<2I", desc) == (1, 440)
        assert struct.unpack_from("<Q", desc, 136) == (rip,)


def test_vmcoreinfo_says_what_a_real_kernels_says(info: dict[str, str]) -> None:
    real = lines(golden_notes()[-1][2])
    own = {
        key
        for key in real
        if key.startswith("SYMBOL(") or key in {"OSRELEASE", "BUILD-ID", "KERNELOFFSET", "NUMBER(phys_base)"}
    }
    assert info.keys() <= real.keys()
    assert {key: value for key, value in info.items() if key not in own} == {
        key: real[key] for key in info if key not in own
    }
    assert [key for key in real if key in info] == list(info), "another order than Linux has"
    assert re.fullmatch("[0-9a-f]{40}", info["BUILD-ID"])


def test_vmcoreinfo_is_found_in_memory(source: SyntheticSource) -> None:
    """Tools that have no note look for pages that start with OSRELEASE=."""
    note = split_notes(source.notes)[-1][2]
    block = source.blocks[1]
    middle = (block.start + block.end) // 2 // (16 * MIB) * 16 * MIB
    found = [
        address
        for address in range(max(middle, block.start), min(middle + 4 * MIB, block.end), 4096)
        if source.read(address, 10) == b"OSRELEASE="
    ]
    assert len(found) == 1
    assert source.read(found[0], 4096).rstrip(b"\0") == note


def test_kernel_offset_and_phys_base_fit_together(source: SyntheticSource, info: dict[str, str]) -> None:
    text = int(info["SYMBOL(_stext)"], 16)
    assert text == IMAGE_MAP + 0x1000000 + int(info["KERNELOFFSET"], 16)
    phys_base = int(info["NUMBER(phys_base)"])
    assert phys_base != 0
    assert source.phys_base == phys_base % (1 << 64)
    for name, value in info.items():
        if name.startswith("SYMBOL(") and int(value, 16) >= IMAGE_MAP:
            virtual = int(value, 16)
            assert Walker(source).physical(virtual) == virtual - IMAGE_MAP + phys_base


def test_utsname(source: SyntheticSource, info: dict[str, str]) -> None:
    raw = source.read(Walker(source).physical(int(info["SYMBOL(init_uts_ns)"], 16)), 6 * 65)
    fields = [field.rstrip(b"\0") for field in struct.unpack("65s" * 6, raw)]
    assert fields[0] == b"Linux"
    assert fields[1]
    assert fields[2].decode() == info["OSRELEASE"] == "6.1.0-vmdump-synthetic"
    assert fields[3].startswith(b"#1 SMP PREEMPT_DYNAMIC ")
    assert fields[4:] == [b"x86_64", b"(none)"]
    uts = source.utsname
    assert [uts.sysname, uts.nodename, uts.release, uts.version, uts.machine, uts.domainname] == fields


def test_direct_map_covers_all_memory(source: SyntheticSource) -> None:
    walker = Walker(source)
    for block in source.blocks:
        for address in (block.start, block.start + block.size // 2, block.end - 1):
            assert walker.physical(DIRECT_MAP + address) == address


def test_each_page_has_a_struct_page(source: SyntheticSource, info: dict[str, str]) -> None:
    walker = Walker(source)
    roots = int(info["SYMBOL(mem_section)"], 16)
    section_pages = 1 << int(info["NUMBER(SECTION_SIZE_BITS)"]) - 12
    size = int(info["SIZE(page)"])
    for block in source.blocks:
        for pfn in (block.start >> 12, (block.end >> 12) - 1):
            section = pfn // section_pages
            root = walker.word(roots + section // 256 * 8)
            coded = walker.word(root + section % 256 * int(info["SIZE(mem_section)"]))
            assert coded & 3 == 3, "the section is not present"
            assert source.read(walker.physical((coded & ~3) + pfn * size), size) == bytes(size)


def test_the_node_spans_all_memory(source: SyntheticSource, info: dict[str, str]) -> None:
    walker = Walker(source)
    assert walker.word(int(info["SYMBOL(node_online_map)"], 16)) == 1
    node = walker.word(int(info["SYMBOL(node_data)"], 16))
    assert walker.word(node + int(info["OFFSET(pglist_data.node_start_pfn)"])) == 0
    spanned = walker.word(node + int(info["OFFSET(pglist_data.node_spanned_pages)"]))
    assert spanned * 4096 == source.blocks[-1].end


def test_the_smallest_guest_has_its_kernel() -> None:
    source = SyntheticSource(2 * MIB)
    assert source.utsname.release == b"6.1.0-vmdump-synthetic"
    assert Walker(source).physical(DIRECT_MAP) == 0


def test_layouts_read_a_real_guest() -> None:
    """Two idle vCPUs: in the kernel's text, interrupts on, the same registers in both notes."""
    notes = golden_notes()
    info = lines(notes[-1][2])
    text = int(info["SYMBOL(_stext)"], 16)
    for cpu in range(2):
        prstatus = PRSTATUS.unpack(notes[cpu][2], 0, "little")
        state = QEMU_STATE.unpack(notes[2 + cpu][2], 0, "little")
        assert PRSTATUS.size == len(notes[cpu][2])
        assert QEMU_STATE.size == len(notes[2 + cpu][2]) == state["size"]
        assert prstatus["pid"] == cpu + 1
        assert text < prstatus["rip"] < text + GIB
        assert (prstatus["cs"], prstatus["ss"], prstatus["rflags"]) == (0x10, 0x18, 0x246)
        assert (state["cr0"], state["idt_limit"]) == (0x80050033, 0xFFF)
        shared = [name for name in prstatus if name in state and not name.startswith("pad")]
        assert len(shared) == 26
        assert [prstatus[name] for name in shared] == [state[name] for name in shared]


def test_notes_of_a_real_guest_are_rebuilt(tmp_path: Path) -> None:
    """Every byte of QEMU's notes is in a field that is no padding, or is zero."""
    notes = golden_notes()
    assert [name for name, _, _ in notes[4:]] == [b"VMCOREINFO\0"]
    (tmp_path / "core").write_bytes((DATA / "x86_64-linux-128M" / "elf.head64k").read_bytes())
    os.truncate(tmp_path / "core", 1 << 28)  # only its head is there
    with vmdump.open(tmp_path / "core") as dump:
        assert split_notes(ARCH.notes(dump.cpus)) == notes[:4]


@pytest.mark.parametrize("size", ["4M", "64M"])
@pytest.mark.parametrize("level", [0, 1, 31])
@pytest.mark.parametrize("output_format", ["elf", "kdump-raw-lzo"])
def test_makedumpfile_filters_it(scratch: Path, size: str, level: int, output_format: str) -> None:
    judges.require("makedumpfile")
    spec = f"synthetic:{size}?fill=0.1"
    vmdump.dump(spec, scratch / "dump", format=output_format)
    judges.makedumpfile_filter(scratch / "dump", scratch / "filtered", "-l", "-d", str(level))
    with vmdump.open_source(spec) as source:
        ranges = [
            (block.start + begin, min(end - begin, MIB))
            for block in source.blocks
            for begin, end in block.memory.extents()
        ]
        for (address, length), data in zip(
            ranges, judges.drgn_read(scratch / "filtered", ranges), strict=True
        ):
            assert data == source.read(address, length), hex(address)


def test_drgn_translates_virtual_addresses(scratch: Path) -> None:
    judges.require("drgn")
    import drgn

    vmdump.dump("synthetic:64M", scratch / "dump", format="kdump-raw-zlib")
    program = drgn.Program()
    program.set_core_dump(scratch / "dump")
    with vmdump.open_source("synthetic:64M") as source:
        info = lines(split_notes(source.notes)[-1][2])
        assert program.read(int(info["SYMBOL(init_uts_ns)"], 16), 5) == b"Linux"
        assert program.read(DIRECT_MAP + 0x12345, 20000) == source.read(0x12345, 20000)
        assert program.read(int(info["SYMBOL(_stext)"], 16), 4096) == source.read(32 * MIB, 4096)


@pytest.mark.parametrize("size", ["2M", "64M", "5G", "16T"])
def test_it_has_a_log(size: str) -> None:
    records = list(vmdump.dmesg(f"synthetic:{size}?seed=7"))
    assert records[0].text.startswith(b"Linux version 6.1.0-vmdump-synthetic ")
    assert [record.timestamp for record in records] == [137_000_000 * step for step in range(7)]
    assert {(record.level, record.facility, record.caller) for record in records} == {(6, 0, "T1")}


def test_makedumpfile_reads_the_log(scratch: Path) -> None:
    dump = scratch / "dump"
    vmdump.dump("synthetic:64M?fill=0.1", dump)
    lines = [record.line() for record in vmdump.dmesg(dump)]
    said = judges.makedumpfile_dmesg(dump, scratch / "log")
    assert said.splitlines() == [line.encode() for line in lines]
