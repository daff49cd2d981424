"""The kernel's page tables, found by VMCOREINFO, of every architecture; made by the test."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers.kernel_tables import KERNELS, aarch64_text, guest_of, riscv_text, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.page_tables import PAGE, Tables, aarch64, arm_short, merged_as_qemu, riscv64

from vmdump import BlockSource
from vmdump.errors import CapabilityError, ReadError, TranslationError

MIB = 1 << 20


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_tables(name: str) -> None:
    """Pages of all sizes, the highest physical addresses that there are among them."""
    kernel = KERNELS[name]
    shape, rng = kernel.shape, random.Random(name)
    memory = bytearray(32 * MIB)
    tables = Tables(memory, shape, MIB)
    levels = [level for level, shift in enumerate(shape.shifts) if shift in (kernel.page, *kernel.large)]
    assert len(levels) == 1 + len(kernel.large) or shape.bits < 32
    low = kernel.low or 1 << (shape.bits - 1)
    mapped: dict[int, tuple[int, int]] = {}
    for number in range(200):
        level = rng.choice(levels)
        size = 1 << shape.shifts[level]
        virtual = rng.randrange(low, 1 << shape.bits) // size * size
        reach = 32 * MIB if number % 2 else 1 << kernel.widest
        physical = rng.randrange(reach) // size * size
        if virtual >= low and tables.map(virtual, physical, level):
            mapped[virtual] = (physical, size)
    with guest_of(kernel, memory, tables.root) as guest:
        for virtual, (physical, size) in mapped.items():
            inside = rng.randrange(size)
            assert guest.translate(shape.address(virtual) + inside) == physical + inside
            if shape.bits < 60:
                with pytest.raises(TranslationError):
                    guest.translate(shape.address(virtual) + inside ^ 1 << 60)
        inside_memory = [
            (shape.address(virtual), *mapped[virtual])
            for virtual in sorted(mapped)
            if mapped[virtual][0] < len(memory)
        ]
        last = shape.address((1 << shape.bits) - 1)
        listed = [row for row in rows(guest.mappings()) if shape.address(low) <= row[0] <= last]
        assert listed == merged_as_qemu(inside_memory)
        assert inside_memory
        for _ in range(100):
            address = rng.randrange(low, 1 << shape.bits)
            if not any(virtual <= address < virtual + size for virtual, (_, size) in mapped.items()):
                with pytest.raises(TranslationError):
                    guest.translate(shape.address(address))


@pytest.mark.parametrize("name", KERNELS)
def test_memory_by_virtual_addresses(name: str) -> None:
    """Pages side by side, of memory that is scattered, across the border of two tables."""
    kernel = KERNELS[name]
    shape, rng = kernel.shape, random.Random(name)
    page, level = 1 << kernel.page, len(shape.shifts) - 1
    memory = bytearray(8 * MIB)
    tables = Tables(memory, shape, 4 * MIB)
    frames = rng.sample(range(4 * MIB >> kernel.page), 20)
    start = (1 << shape.bits) - (1 << shape.shifts[-2]) - 10 * page
    for number, frame in enumerate(frames):
        assert tables.map(start + number * page, frame * page, level)
        memory[frame * page : (frame + 1) * page] = rng.randbytes(page)
    image = b"".join(memory[frame * page : (frame + 1) * page] for frame in frames)
    with guest_of(kernel, memory, tables.root) as guest:
        assert guest.read_virtual(shape.address(start) + 5, len(image) - 5) == image[5:]
        runs = guest.virtual.kernel_runs(shape.address(start) - page + 5, 30 * page)
        assert rows(runs.take(np.argsort(runs.virtual))) == rows(runs)
        found = b"".join(guest.read(physical, size) for _, physical, size in rows(runs))
        assert found == image
        assert int(runs.virtual[0]) == shape.address(start)
        with pytest.raises(TranslationError) as caught:
            guest.read_virtual(shape.address(start) + 5, len(image))
        assert caught.value.address == shape.address(start) + len(image)


HOSTILE = st.one_of(
    st.sampled_from([0, (1 << 64) - 1, 1 << 63, 3, 0x80, 0xC7]),
    st.integers(0, (1 << 64) - 1),
    # Likely to name tables in the memory of the guest.
    st.builds(lambda page, low: page << 12 | low, st.integers(0, 1023), st.integers(0, 4095)),
)


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith(("loongarch64", "mips64"))])
def test_unused_entries_that_name_empty_tables(name: str) -> None:
    """Linux has one of them for each level; were they followed, this guest would have too many tables."""
    kernel = KERNELS[name]
    memory = bytearray(8 * MIB)
    empty = (0, 4 * MIB, 5 * MIB)
    shape = replace(
        kernel.shape, empty=lambda level: kernel.shape.table(empty[level + 1], level) if level < 2 else 0
    )
    tables = Tables(memory, shape, MIB)
    for place in range(empty[1], empty[1] + shape.table_bytes(1), shape.size):
        tables.put(place, shape.empty(1))
    pages = {1 << (shape.bits - 1): 0x40000, (1 << shape.bits) - (1 << kernel.page): 0x80000}
    for virtual, physical in pages.items():
        assert tables.map(virtual, physical, 2)
    with guest_of(kernel, memory, tables.root) as guest:
        listed = rows(guest.mappings())
        for virtual, physical in pages.items():
            assert (shape.address(virtual), physical, 1 << kernel.page) in listed
        with pytest.raises(TranslationError):
            guest.translate(shape.address(3 << (shape.bits - 2)))


@pytest.mark.parametrize("name", KERNELS)
@given(words=st.lists(HOSTILE, min_size=1, max_size=8), data=st.data())
@settings(deadline=None, max_examples=4)
def test_hostile_tables(name: str, words: list[int], data: st.DataObject) -> None:
    """Whatever the memory holds, the walk ends, in little memory, with a list or with one line."""
    kernel = KERNELS[name]
    memory = bytearray(4 * MIB)
    shape = kernel.shape
    above = data.draw(st.sampled_from([0, 1 << 63, 0x9000 << 48]))
    filled = np.array([word | above for word in words], np.uint64) & np.uint64((1 << 8 * shape.size) - 1)
    code = f"{'<' if shape.byteorder == 'little' else '>'}u{shape.size}"
    every = np.frombuffer(memory, code)
    every[:] = np.resize(filled, every.size)
    tracemalloc.start()
    try:
        with guest_of(kernel, memory, 0) as guest:
            try:
                assert guest.mappings().size.size <= 1 << 22
            except TranslationError as error:
                assert "stand for more" in str(error)
            for address in (0, 0x1234567, 1 << 46, 0xC008 << 48, shape.address((1 << shape.bits) - 1)):
                try:
                    assert 0 <= guest.translate(address) < 1 << 64
                    guest.read_virtual(address, 16)
                except (TranslationError, ReadError, CapabilityError) as error:
                    assert "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < 400 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", KERNELS)
def test_tables_that_name_themselves(name: str) -> None:
    kernel = KERNELS[name]
    shape = kernel.shape
    memory = bytearray(4 * MIB)
    for place in range(0, 1 << 16, shape.size):
        entry = shape.table(0, 0)
        memory[place : place + shape.size] = entry.to_bytes(shape.size, shape.byteorder)
    with guest_of(kernel, memory, 0) as guest:
        try:
            assert guest.mappings().size.size <= 1 << 20
        except TranslationError as error:
            assert "stand for more" in str(error)


def test_sixteen_riscv_pages_that_are_one() -> None:
    """Svnapot: each of 16 entries has the same page number, whose lowest bits are 1000."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, riscv64(39), MIB)
    start = (1 << 39) - (1 << 30)
    for number in range(16):
        assert tables.map(start + number * PAGE, 0x108000 | 1 << 63 + 2, 2)
    text = riscv_text(tables.root, 12, 39)
    with BlockSource(memory, arch="riscv64", vmcoreinfo=text.encode()) as guest:
        assert rows(guest.mappings()) == [(riscv64(39).address(start), 0x100000, 0x10000)]


def test_large_riscv_page_that_is_not_aligned_is_none() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, riscv64(39), MIB)
    tables.map(1 << 38, 0x1000, 1)
    with BlockSource(memory, arch="riscv64", vmcoreinfo=riscv_text(tables.root, 12, 39).encode()) as guest:
        assert rows(guest.mappings()) == []


def test_arm_kernel_for_52_bits_on_a_cpu_with_48() -> None:
    """Granules of 64 KiB: its top table has 1024 entries, of which the CPU sees the last 64."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, aarch64(16, 52), MIB)
    tables.map((1 << 52) - (1 << 47), 0x30000, 2)
    text = aarch64_text(tables.root, 16, 52).replace("T1SZ)=0xc", "T1SZ)=0x10")
    with BlockSource(memory, arch="aarch64", vmcoreinfo=text.encode()) as guest:
        assert guest.translate((1 << 64) - (1 << 47)) == 0x30000


@pytest.mark.parametrize(
    "text",
    [
        "PAGESIZE=8192\nNUMBER(VA_BITS)=48\n",
        "PAGESIZE=4096\nNUMBER(VA_BITS)=-1\n",
        "PAGESIZE=4096\nNUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x3f\n",
        "PAGESIZE=4096\n",
        "NUMBER(VA_BITS)=60\n",
        f"PAGESIZE={1 << 70}\nNUMBER(VA_BITS)={1 << 70}\n",
    ],
)
@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_vmcoreinfo_that_makes_no_sense(arch: str, text: str) -> None:
    symbols = "SYMBOL(swapper_pg_dir)=0\nNUMBER(kimage_voffset)=0\nNUMBER(va_kernel_pa_offset)=0\n"
    told = (symbols + text).encode()
    with BlockSource(bytearray(MIB), arch=arch, vmcoreinfo=told, page_size=4096) as guest:
        try:
            assert guest.mappings().size.size == 0
        except CapabilityError as error:
            assert "VMCOREINFO" in str(error)


def test_pages_that_are_several_equal_entries() -> None:
    """16 MiB and 64 KiB of ARM's short descriptors are 16 entries each; 16 MiB may be above 4 GiB."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, arm_short(), MIB)
    super_section, large = 0xD0000000, 0xE0000000
    tables.map(large + 0x1FF000, 0, 1)  # makes the table
    for number in range(16):
        # Physical 0xA5_3400_0000 with bits 35:32 at 23:20, bits 39:36 at 8:5.
        tables.put(tables.root + (super_section >> 20) * 4 + number * 4, 0x34540D4E)
    below = tables.below[tables.root + (large >> 20) * 4 + 4]
    for number in range(16):
        tables.put(below + number * 4, 0x00230000 | 0x55)
    kernel = KERNELS["arm"]
    with guest_of(kernel, memory, tables.root) as guest:
        assert guest.translate(super_section + 0xABCDEF) == 0xA534ABCDEF
        assert guest.translate(large + 0x10FEDC) == 0x23FEDC
        assert (large + 0x100000, 0x230000, 0x10000) in rows(guest.mappings())
