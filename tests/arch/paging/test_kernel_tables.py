"""The kernel's page tables, found by VMCOREINFO, of every architecture; made by the test."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.page_tables import (
    LEGACY,
    PAE,
    PAGE,
    Shape,
    Tables,
    aarch64,
    arm_long,
    arm_short,
    hashed,
    loongarch,
    merged_as_qemu,
    radix,
    riscv32,
    riscv64,
    z_architecture,
)

from vmdump import BlockSource
from vmdump.arch.paging import Runs
from vmdump.errors import CapabilityError, ReadError, TranslationError

MIB = 1 << 20


def rows(runs: Runs) -> list[tuple[int, int, int]]:
    return list(zip(runs.virtual.tolist(), runs.physical.tolist(), runs.size.tolist(), strict=True))


def aarch64_text(root: int, page_shift: int, bits: int) -> str:
    offset = 0xFFFF800000000000
    return (
        f"PAGESIZE={1 << page_shift}\nSYMBOL(swapper_pg_dir)={root + offset:x}\n"
        f"NUMBER(kimage_voffset)={offset:#x}\nNUMBER(VA_BITS)={bits}\nNUMBER(TCR_EL1_T1SZ)={64 - bits:#x}\n"
    )


def riscv_text(root: int, page_shift: int, bits: int) -> str:
    offset = 0xC0000000 if bits == 32 else 0xFFFFFFFF00000000
    return (
        f"PAGESIZE=4096\nSYMBOL(swapper_pg_dir)={root + offset:x}\n"
        f"NUMBER(va_kernel_pa_offset)={offset:#x}\nNUMBER(VA_BITS)={bits}\n"
    )


def other_text(begin: int, *lines: str) -> Callable[[int, int, int], str]:
    """Of an architecture where memory, and so the root, is at `begin` in the kernel's addresses."""

    def text(root: int, page_shift: int, bits: int) -> str:
        named = f"PAGESIZE={1 << page_shift}\nSYMBOL(swapper_pg_dir)={begin + root:x}\n"
        return named + "".join(f"{line}\n" for line in lines)

    return text


@dataclass(frozen=True)
class Kernel:
    """A kernel whose tables are known by VMCOREINFO.

    text    (root, shift of a page, bits of an address) -> VMCOREINFO
    page    shift of a page
    large   of the pages that there are besides
    widest  bits of a guest-physical address
    low     the lowest offset that only tables translate
    """

    arch: str
    shape: Shape
    text: Callable[[int, int, int], str]
    page: int = 12
    large: tuple[int, ...] = ()
    widest: int = 48
    low: int | None = None

    def vmcoreinfo(self, root: int) -> bytes:
        return self.text(root, self.page, self.shape.bits).encode()


LOW_TEXT = (0xC0000000, "SYMBOL(_stext)=c0008000")
POWER = 0xC000 << 48
LOONG = 0x9000 << 48
BLOCKS = {12: (30, 21), 14: (25,), 16: (29,)}
KERNELS = {
    **{
        f"aarch64, {1 << shift - 10}K, {bits} bits": Kernel(
            "aarch64",
            aarch64(shift, bits),
            aarch64_text,
            shift,
            (36, 25) if (shift, bits) == (14, 52) else BLOCKS[shift],
            52 if bits == 52 or shift == 16 else 48,
        )
        for shift, all_bits in ((12, (39, 48, 52)), (14, (36, 47, 48, 52)), (16, (42, 48, 52)))
        for bits in all_bits
    },
    **{f"Sv{b}": Kernel("riscv64", riscv64(b), riscv_text, 12, (30, 21), 56) for b in (39, 48, 57)},
    "Sv32": Kernel("riscv32", riscv32(), riscv_text, 12, (22,), 34),
    "arm": Kernel("arm", arm_short(), other_text(*LOW_TEXT), 12, (20,), 32),
    "arm, LPAE": Kernel("arm", arm_long(), other_text(*LOW_TEXT, "CONFIG_ARM_LPAE=y"), 12, (30, 21), 40),
    "i386": Kernel("i386", LEGACY, other_text(*LOW_TEXT), 12, (22,), 32),
    "i386, PAE": Kernel("i386", PAE, other_text(*LOW_TEXT, "CONFIG_X86_PAE=y"), 12, (21,), 36),
    "ppc64, radix": Kernel("ppc64", radix(16), other_text(POWER, "NUMBER(RADIX_MMU)=1"), 16, (30, 21), 53),
    "ppc64le, radix, 4K": Kernel(
        "ppc64le", radix(12), other_text(POWER, "NUMBER(RADIX_MMU)=1"), 12, (30, 21), 53
    ),
    "ppc64le, hash": Kernel("ppc64le", hashed(16), other_text(POWER), 16, (24,), 53, 1 << 51),
    "ppc64, hash, 4K": Kernel(
        "ppc64", hashed(12), other_text(POWER, "NUMBER(RADIX_MMU)=0"), 12, (), 53, 0x3D << 40
    ),
    **{
        f"s390x, {levels} levels": Kernel(
            "s390x", z_architecture(levels), other_text(0), 12, (31, 20) if levels > 2 else (20,), 64
        )
        for levels in (2, 3, 4, 5)
    },
    **{
        f"loongarch64, {1 << shift - 10}K": Kernel(
            "loongarch64", loongarch(shift), other_text(LOONG), shift, (2 * shift - 3,), 48
        )
        for shift in (12, 14, 16)
    },
}


def guest_of(kernel: Kernel, memory: bytearray, root: int) -> BlockSource:
    return BlockSource(memory, arch=kernel.arch, vmcoreinfo=kernel.vmcoreinfo(root), page_size=4096)


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
        inside_memory = [
            (shape.address(virtual), *mapped[virtual])
            for virtual in sorted(mapped)
            if mapped[virtual][0] < len(memory)
        ]
        listed = [row for row in rows(guest.mappings()) if row[0] >= shape.address(low)]
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
        with pytest.raises(TranslationError) as caught:
            guest.read_virtual(shape.address(start) + 5, len(image))
        assert caught.value.address == shape.address(start) + len(image)


HOSTILE = st.one_of(
    st.sampled_from([0, (1 << 64) - 1, 1 << 63, 3, 0x80, 0xC7]),
    st.integers(0, (1 << 64) - 1),
    # Likely to name tables in the memory of the guest.
    st.builds(lambda page, low: page << 12 | low, st.integers(0, 1023), st.integers(0, 4095)),
)


@pytest.mark.parametrize("name", KERNELS)
@given(words=st.lists(HOSTILE, min_size=1, max_size=8), data=st.data())
@settings(deadline=None, max_examples=6)
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
                except (TranslationError, ReadError) as error:
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
        # Physical 0x5_3400_0000 with bits 35:32 at 23:20, bits 39:36 at 8:5.
        tables.put(tables.root + (super_section >> 20) * 4 + number * 4, 0x34540C0E)
    below = tables.below[tables.root + (large >> 20) * 4 + 4]
    for number in range(16):
        tables.put(below + number * 4, 0x00230000 | 0x55)
    kernel = KERNELS["arm"]
    with guest_of(kernel, memory, tables.root) as guest:
        assert guest.translate(super_section + 0xABCDEF) == 0x534ABCDEF
        assert guest.translate(large + 0x10FEDC) == 0x23FEDC
        assert (large + 0x100000, 0x230000, 0x10000) in rows(guest.mappings())


def test_tables_of_s390x_that_are_not_whole() -> None:
    """Region-table entries say which quarters of the table below there are; the others are not read."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, z_architecture(3), MIB)
    for quarter in range(4):
        assert tables.map(quarter << 29, 0x5000, 2)
    place = tables.root
    entry = tables.get(place)
    # From the second (64) to the third one (2).
    tables.put(place, entry & ~0xC3 | 0x40 | 2)
    with guest_of(KERNELS["s390x, 3 levels"], memory, tables.root) as guest:
        assert [row[0] for row in rows(guest.mappings())] == [2 << 29, 1 << 29]
        assert guest.translate(1 << 29) == 0x5000
        for quarter in (0, 3):
            with pytest.raises(TranslationError):
                guest.translate(quarter << 29)


def s390x_guest(memory: bytearray, **registers: int) -> BlockSource:
    return BlockSource(memory, arch="s390x", cpus=[registers])


def test_vcpus_of_s390x_have_control_registers() -> None:
    memory = bytearray(4 * MIB)
    primary, home = Tables(memory, z_architecture(3), MIB), Tables(memory, z_architecture(4), 2 * MIB)
    primary.map(0x1000 << 20, 0x5000, 2)
    home.map(0x1000 << 20, 0x6000, 3)
    registers = {"cr1": primary.root | 7, "cr13": home.root | 11}
    with s390x_guest(memory, psw_mask=1 << 58, **registers) as guest:
        assert guest.translate(0x1000 << 20) == 0x5000
    with s390x_guest(memory, psw_mask=1 << 58 | 3 << 46, **registers) as guest:
        assert guest.translate(0x1000 << 20, cpu=0) == 0x6000
        assert rows(guest.mappings()) == [(0x1000 << 20, 0x6000, PAGE)]
    with s390x_guest(memory, psw_mask=0, **registers) as guest:
        assert guest.translate(0x1234) == 0x1234
    # Two of four quarters of the top table, with 512 GiB each.
    with s390x_guest(memory, psw_mask=1 << 58, cr1=primary.root | 5) as guest:
        assert guest.translate(0x1000 << 20) == 0x5000
    primary.map(3 << 40, 0x7000, 2)
    for length, found in ((3, True), (2, False)):
        with s390x_guest(memory, psw_mask=1 << 58, cr1=primary.root | 4 | length) as guest:
            assert (len(rows(guest.mappings())) == 2) is found
            if not found:
                with pytest.raises(TranslationError):
                    guest.translate(3 << 40)


def test_prefix_of_s390x() -> None:
    """What is at 0 is the processor's own, and what was there is where that comes from."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, z_architecture(3), MIB)
    for page in range(8):
        tables.map((16 + page) * PAGE, page * PAGE, 2)
    registers = {"psw_mask": 1 << 58, "cr1": tables.root | 7, "prefix": 4 * PAGE}
    with s390x_guest(memory, **registers) as guest:
        found = [guest.translate((16 + page) * PAGE + 5) - 5 for page in range(8)]
        assert found == [page * PAGE for page in (4, 5, 2, 3, 0, 1, 6, 7)]
        assert sorted(rows(guest.mappings())) == [
            ((16 + page) * PAGE, place * PAGE, 2 * PAGE) for page, place in ((0, 4), (2, 2), (4, 0), (6, 6))
        ]
        memory[4 * PAGE : 4 * PAGE + 4] = b"mine"
        assert guest.read_virtual(16 * PAGE, 4) == b"mine"


BACKINGS = {
    "SYMBOL(vmemmap_list)": f"{POWER + 0x1000:x}",
    "SYMBOL(mmu_vmemmap_psize)": f"{POWER + 0x1010:x}",
    "SYMBOL(mmu_psize_defs)": f"{POWER + 0x1100:x}",
    "SIZE(vmemmap_backing)": "24",
    "OFFSET(vmemmap_backing.list)": "0",
    "OFFSET(vmemmap_backing.phys)": "8",
    "OFFSET(vmemmap_backing.virt_addr)": "16",
    "SIZE(mmu_psize_def)": "40",
    "OFFSET(mmu_psize_def.shift)": "0",
}


def backed_guest(pieces: list[tuple[int, int, int, int]], *, little: bool, shift: int = 24) -> BlockSource:
    """A list of struct pages: (place of the element, the next one, guest-physical, virtual address)."""
    memory = bytearray(4 * MIB)
    order = "little" if little else "big"

    def put(place: int, value: int, size: int = 8) -> None:
        memory[place : place + size] = value.to_bytes(size, order)

    put(0x1000, POWER + pieces[0][0])
    put(0x1010, 3, 4)
    put(0x1100 + 3 * 40, shift, 4)
    for place, *words in pieces:
        for number, word in enumerate(words):
            put(place + 8 * number, word)
    text = KERNELS["ppc64le, hash"].vmcoreinfo(0x20000).decode()
    text += "".join(f"{key}={value}\n" for key, value in BACKINGS.items())
    return BlockSource(
        memory, arch="ppc64le" if little else "ppc64", vmcoreinfo=text.encode(), page_size=4096
    )


VMEMMAP = 0xC00C << 48


@pytest.mark.parametrize("little", [True, False])
def test_struct_pages_under_a_hash_table(little: bool) -> None:
    pieces = [
        (0x2000, POWER + 0x2100, 0x3000000, VMEMMAP + (1 << 24)),
        (0x2100, 0, 0x1000000, VMEMMAP),
    ]
    with backed_guest(pieces, little=little) as guest:
        assert guest.translate(VMEMMAP + 0x123456) == 0x1123456
        assert guest.translate(VMEMMAP + 0x1123456) == 0x3123456
        assert guest.translate(POWER + 0x5678) == 0x5678
        assert guest.translate(POWER + (1 << 40)) == 1 << 40
        assert (POWER, 0, 4 * MIB) in rows(guest.mappings())
        with pytest.raises(TranslationError):
            guest.translate(VMEMMAP + (2 << 24))


@pytest.mark.parametrize(
    "following", [POWER + 0x2000, POWER + 0x3FFFFFC, (1 << 64) - 8, 8, 0xD000 << 48, POWER + (1 << 50)]
)
@pytest.mark.parametrize("shift", [0, 11, 16, 24, 35, 0xFFFFFFFF])
def test_hostile_lists_of_struct_pages(following: int, shift: int) -> None:
    """A list that names itself, that leads out of memory, or with pieces of no size."""
    pieces = [(0x2000, following, 0x1000000, VMEMMAP)]
    with backed_guest(pieces, little=True, shift=shift) as guest:
        try:
            assert guest.translate(VMEMMAP) == 0x1000000
            assert shift in (16, 24)
        except TranslationError:
            assert shift not in (16, 24)


@pytest.mark.parametrize(
    ("arch", "addresses"),
    [
        ("loongarch64", {0x8000 << 48: 0, (0x9000 << 48) + 0x1234: 0x1234, 0xA000 << 48: None, 0: None}),
        (
            "mips64",
            {
                0x9800000000001234: 0x1234,
                0xA800000123456789: 0x123456789,
                0xFFFFFFFF80001234: 0x1234,
                0xFFFFFFFFA0001234: 0x1234,
                0xFFFFFFFFBFFFFFFF: 0x1FFFFFFF,
                0xFFFFFFFFC0000000: None,
                0xC000000000000000: None,
                0x7FFFFFFFFFFFFFFF: None,
            },
        ),
    ],
)
def test_memory_that_is_mapped_without_tables(arch: str, addresses: dict[int, int | None]) -> None:
    """No VMCOREINFO is needed for that."""
    memory = bytearray(random.Random(arch).randbytes(MIB))
    with BlockSource(memory, arch=arch) as guest:
        for address, physical in addresses.items():
            if physical is None:
                with pytest.raises(CapabilityError, match="VMCOREINFO"):
                    guest.translate(address)
            else:
                assert guest.translate(address) == physical
        window = next(iter(addresses)) & -(1 << 48)
        assert guest.read_virtual(window + 0x1234, 5) == memory[0x1234:0x1239]
        assert (window, 0, MIB) in rows(guest.mappings())
        with pytest.raises(ReadError):
            guest.read_virtual(window + MIB - 2, 4)
