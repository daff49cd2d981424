"""ELF cores whose PT_LOADs overlap, as in a copy of /proc/vmcore: the same bytes twice are one memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.converting import write
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import judges
from oracles.elf_builder import EM_AARCH64, Load, build_elf, note
from oracles.flattened import flatten

import vmdump
from vmdump.errors import LayoutError, ReadError

PAGE = 4096
MIB = 1 << 20
SPACE = 96
"""Bytes of memory in which the drawn PT_LOADs lie."""


def memory(begin: int, size: int) -> bytes:
    """Guest memory whose every 8 bytes tell their address."""
    low, high = begin // 8 * 8, -(-(begin + size) // 8) * 8
    words = np.arange(low, high, 8, dtype="<u8") ^ np.uint64(0x5A5A_1234_0000_0000)
    return words.tobytes()[begin - low : begin - low + size]


CONTENT = memory(0, SPACE)


@st.composite
def overlapping(draw: st.DrawFn) -> list[Load]:
    """PT_LOADs of any bytes of a small memory: nested, across each other, three deep, with tails of zeros."""
    loads: list[Load] = []
    for begin, size, tail, share in draw(
        st.lists(
            st.tuples(st.integers(0, 60), st.integers(0, 24), st.integers(0, 12), st.booleans()),
            min_size=1,
            max_size=8,
        )
    ):
        if share and loads and loads[-1].data and loads[-1].alias is None:
            # The same bytes of the file once more, all of them or the first ones, as mappings are.
            size = min(max(size, 1), len(loads[-1].data))
            loads.append(
                replace(
                    loads[-1], data=b"", alias=len(loads) - 1, filesz=size, memsz=size + tail, vaddr=begin
                )
            )
        elif size + tail:
            loads.append(Load(begin, CONTENT[begin : begin + size], memsz=size + tail))
    # Where all are at 0, as in the core of a process, nothing tells that they are a guest's.
    assume(not loads or any(load.paddr for load in loads if filled(loads, load)))
    return loads or [Load(0, CONTENT)]


def filled(loads: Sequence[Load], load: Load) -> range:
    """Give the offsets into CONTENT of which a PT_LOAD has bytes in the file."""
    size = len(load.data) if load.alias is None else load.filesz
    assert size is not None
    return range(load.paddr, load.paddr + size)


def model(loads: Sequence[Load]) -> dict[int, int]:
    """Give each byte of memory by its address: bytes of a file count for more than zeros."""
    held: dict[int, int] = {}
    for load in loads:
        for address in range(load.paddr, load.paddr + (load.memsz or 0)):
            held.setdefault(address, 0)
    for load in loads:
        for address in filled(loads, load):
            held[address] = CONTENT[address]
    return held


def moved(loads: Sequence[Load], base: int) -> list[Load]:
    return [replace(load, paddr=load.paddr + base) for load in loads]


def check(dump: vmdump.Dump, held: dict[int, int], base: int) -> None:
    """Compare every byte, and where blocks begin and end."""
    seen: dict[int, int] = {}
    before = -1
    for block in dump.blocks:
        assert block.start >= before, "not ascending"
        before = block.end
        for address, byte in enumerate(dump.read(block.start, block.size), block.start - base):
            seen[address] = byte
    assert seen == held
    for address, byte in held.items():
        assert dump.read(address + base, 1) == bytes([byte])
    for address in (min(held) - 1, max(held) + 1):
        if address + base >= 0:
            with pytest.raises(ReadError):
                dump.read(address + base, 1)


FORMS = st.sampled_from([(64, "little"), (64, "big"), (32, "little"), (32, "big")])


@settings(max_examples=300)
@given(loads=overlapping(), form=FORMS, base=st.sampled_from([0, 0x1000, 0x7FFFFF00]), flat=st.booleans())
def test_any_overlap(loads: list[Load], form: tuple[int, str], base: int, flat: bool) -> None:
    bits, byteorder = form
    machine = {64: {"little": 62, "big": 22}, 32: {"little": 3, "big": 20}}[bits][byteorder]
    core = build_elf(moved(loads, base), bits=bits, byteorder=byteorder, machine=machine)
    with vmdump.open(flatten(core, 50) if flat else core) as dump:
        check(dump, model(loads), base)


@settings(max_examples=200)
@given(loads=overlapping(), data=st.data())
def test_any_contradiction(loads: list[Load], data: st.DataObject) -> None:
    """One byte of one PT_LOAD is changed: it is found if another one holds the same address elsewhere."""
    changeable = [number for number, load in enumerate(loads) if load.data]
    if not changeable:
        return
    number = data.draw(st.sampled_from(changeable))
    load = loads[number]
    at = data.draw(st.integers(0, len(load.data) - 1))
    bytes_ = bytearray(load.data)
    bytes_[at] ^= 1 << data.draw(st.integers(0, 7))
    changed = [*loads[:number], replace(load, data=bytes(bytes_)), *loads[number + 1 :]]
    address = load.paddr + at
    others = [
        other
        for other in loads
        if other is not load and other.alias != number and address in filled(loads, other)
    ]
    core = build_elf(changed)
    if others:
        with pytest.raises(LayoutError, match=rf"address {address:#x}, with different bytes") as caught:
            vmdump.open(core)
        assert caught.value.address == address
        return
    with vmdump.open(core) as dump:
        check(dump, {**model(loads), address: bytes_[at]}, 0)


VMCOREINFO = note(
    b"VMCOREINFO",
    0,
    b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82010000\nSYMBOL(init_uts_ns)="
    b"ffffffff82000000\nOFFSET(uts_namespace.name)=0\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
    b"KERNELOFFSET=0\nNUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\nNUMBER(PHYS_OFFSET)=0x40000000\nNUMBER(kimage_voffset)=0xffff800008000000\n",
)


def vmcore(machine: int = 62, base: int = 0, *, filtered: bool = False) -> bytes:
    """A copy of /proc/vmcore: the kernel's text, the memory below 1 MiB, and the memory that has the text."""
    text, ram = base + 0x1600000, base + 0x1000000
    top = Load(ram, memory(ram, 14 * MIB), vaddr=(1 << 64) - (1 << 46) + ram)
    loads = [Load(text, memory(text, 2 * MIB), vaddr=0xFFFFFFFF81600000)]
    if filtered:
        # makedumpfile -E -d leaves runs of pages out behind the bytes of a PT_LOAD, each in its own way.
        loads = [
            Load(text, memory(text, MIB), memsz=MIB + 5 * PAGE, vaddr=0xFFFFFFFF81600000),
            Load(text + MIB + 5 * PAGE, memory(text + MIB + 5 * PAGE, MIB - 5 * PAGE)),
        ]
        top = replace(top, data=memory(ram, 7 * MIB), memsz=7 * MIB + 5 * PAGE)
        loads.append(Load(ram + 7 * MIB + 5 * PAGE, memory(ram + 7 * MIB + 5 * PAGE, 7 * MIB - 5 * PAGE)))
    low = Load(base + 0x1000, memory(base + 0x1000, 0x94C00))
    status = {62: 336, EM_AARCH64: 392}[machine]
    notes = note(b"CORE", 1, bytes(status)) * 2 + VMCOREINFO
    return build_elf([*loads, low, top], notes=notes, machine=machine, align=1 if filtered else PAGE)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("machine", "base"), [(62, 0), (EM_AARCH64, 0x40000000)])
def test_copy_of_vmcore(machine: int, base: int, filtered: bool, tmp_path: Path) -> None:
    """Read right, and written so that others read it right."""
    path = tmp_path / "vmcore"
    path.write_bytes(vmcore(machine, base, filtered=filtered))
    gap = range(base + 0x1700000, base + 0x1700000 + 5 * PAGE) if filtered else range(0)
    ranges = [
        (base + 0x10000, PAGE), (base + 0x1000000, PAGE), (base + 0x15FF000, 2 * PAGE),
        (base + 0x1600000, 2 * MIB), (base + 0x17FF000, 2 * PAGE), (base + 0x1DFF000, PAGE),
    ]  # fmt: skip
    wanted = []
    for begin, size in ranges:
        data = bytearray(memory(begin, size))
        for page in range(begin, begin + size, PAGE):
            if page in gap:
                data[page - begin : page - begin + PAGE] = bytes(PAGE)
        wanted.append(bytes(data))
    with vmdump.open(path) as dump:
        blocks = [(block.start - base, block.size) for block in dump.blocks]
        # Makedumpfile's PT_LOADs touch behind what was left out, and touching ones stay apart.
        cut = 7 * MIB + 5 * PAGE
        ram = [(0x1000000, cut), (0x1000000 + cut, 14 * MIB - cut)] if filtered else [(0x1000000, 14 * MIB)]
        assert blocks == [(0x1000, 0x94C00), *ram]
        assert [dump.read(*place) for place in ranges] == wanted
    for kind in ("elf", "kdump-lzo"):
        output = tmp_path / kind
        write(path, output, kind)
        assert judges.drgn_read(output, ranges) == wanted
        assert judges.libkdumpfile_read(output, ranges) == wanted


def test_contradiction_is_refused_and_says_where(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    text = bytearray(memory(0x1600000, 2 * MIB))
    text[0x12345] ^= 0x10
    path = tmp_path / "vmcore"
    loads = [Load(0x1600000, bytes(text)), Load(0x1000000, memory(0x1000000, 8 * MIB))]
    path.write_bytes(build_elf(loads))
    done = run_vmdump("info", path)
    assert done.returncode == LayoutError.exit_code
    said = done.stderr.decode()
    first, second = 64 + 3 * 56 + 0x12345, 64 + 3 * 56 + 2 * MIB + 0x612345
    assert said.count("\n") == 1
    for word in (str(path), "0x1612345", f"at file offset {second:#x}", f"at {first:#x}"):
        assert word in said


def test_very_many_overlaps(tmp_path: Path) -> None:
    """A hundred thousand PT_LOADs, each one byte further than the one before and a megabyte long.

    To compare each with all that it overlaps would take years. All are zeros.
    """
    count, size = 100_000, MIB
    head = bytearray(build_elf([Load(0, b"")], xnum=True)[:64])
    end = 64 + 56 * count + 64
    struct.pack_into("<Q", head, 40, end - 64)
    rows = np.zeros((count, 7), "<u8")
    rows[:, 0] = 1
    rows[:, 1] = end + np.arange(count) * 2
    rows[:, 3] = np.arange(count)
    rows[:, 4] = rows[:, 5] = size
    section = bytearray(64)
    struct.pack_into("<I", section, 44, count)
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.write(bytes(head) + rows.tobytes() + bytes(section))
        file.truncate(end + 2 * count + size)
    with vmdump.open(path) as dump:
        assert [(block.start, block.size) for block in dump.blocks] == [(0, count - 1 + size)]
        assert not any(dump.read(count // 2, PAGE))
