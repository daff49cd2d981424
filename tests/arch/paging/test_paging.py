"""Page tables made by the test: what vmdump's walk finds in them, and how it lists it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.page_tables import LEGACY, PAE, PAGE, Shape, Tables, long_mode, merged_as_qemu

from vmdump import BlockSource, BufferMemory
from vmdump.arch import arch_by_name
from vmdump.arch.paging import Runs
from vmdump.errors import CapabilityError, ReadError, TranslationError
from vmdump.guest.blocks import Block

MIB = 1 << 20
PG, PSE, PAE_BIT, LA57 = 1 << 31, 1 << 4, 1 << 5, 1 << 12
MODES = {
    "32-bit": ("i386", LEGACY, PSE),
    "PAE": ("i386", PAE, PSE | PAE_BIT),
    "4 levels": ("x86_64", long_mode(4), PAE_BIT),
    "4 levels, bits 52 to 62": ("x86_64", long_mode(4, noise=0x7FF << 52), PAE_BIT),
    "5 levels": ("x86_64", long_mode(5), PAE_BIT | LA57),
}
HIGH = 0x40000000
"""A second block: no table is there."""


def make_guest(mode: str, memory: bytearray, roots: list[int], high: bytearray | None = None) -> BlockSource:
    name, _, cr4 = MODES[mode]
    cpus = [{"cr0": PG | 1, "cr3": root | 0x18, "cr4": cr4} for root in roots]
    notes = arch_by_name(name).notes(cpus)
    blocks = [Block(0, BufferMemory(memory))]
    if high is not None:
        blocks.append(Block(HIGH, BufferMemory(high)))
    return BlockSource(blocks, arch=name, notes=notes)


def listed(shape: Shape, virtual: int) -> int:
    """What QEMU calls it: in long mode, the bits above the translated ones are always ones."""
    return virtual if shape.bits == 32 else virtual | -(1 << shape.bits) & (1 << 64) - 1


def rows(runs: Runs) -> list[tuple[int, int, int]]:
    return list(zip(runs.virtual.tolist(), runs.physical.tolist(), runs.size.tolist(), strict=True))


@st.composite
def some_pages(draw: st.DrawFn, shape: Shape) -> list[tuple[int, int, int]]:
    """(virtual, physical, level) of pages that are likely to touch each other, large ones among them."""
    large = [level for level in range(len(shape.shifts) - 1) if shape.shifts[level] <= 30]
    if shape is PAE:
        large.remove(0)
    base = draw(st.sampled_from([0, (1 << shape.bits) - (64 << 21), 1 << (shape.bits - 1), 0x80 << 20]))
    pages = []
    for _ in range(draw(st.integers(1, 12))):
        level = draw(st.sampled_from([len(shape.shifts) - 1] * 3 + large))
        size = 1 << shape.shifts[level]
        virtual = (base + draw(st.integers(0, 12 if size == PAGE else 3)) * size) // size * size
        physical = draw(st.integers(0, 12)) * PAGE if size == PAGE else draw(st.integers(0, 2)) * size
        if draw(st.booleans()):
            physical += HIGH
        run = draw(st.integers(1, 4))
        pages += [(virtual + n * size, physical + n * size, level) for n in range(run)]
    return [page for page in pages if page[0] < 1 << shape.bits]


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_list_of_what_is_mapped(mode: str, data: st.DataObject) -> None:
    shape = MODES[mode][1]
    memory, high = bytearray(8 * MIB), bytearray(4 * MIB)
    tables = Tables(memory, shape, MIB)
    noisy = "52" in mode
    found, roots = [], []
    for cpu in range(data.draw(st.integers(1, 3))):
        root = tables.new_root() if cpu else tables.root
        roots.append(root)
        mapped = {}
        for virtual, physical, level in data.draw(some_pages(shape)):
            if tables.map(virtual, physical, level, root=root):
                mapped[virtual] = (physical, 1 << shape.shifts[level])
        inside = {v: p for v, p in mapped.items() if p[0] < 8 * MIB or HIGH <= p[0] < HIGH + 4 * MIB}
        found += [(listed(shape, virtual), *inside[virtual]) for virtual in sorted(inside)]
    with make_guest(mode, memory, roots, high) as guest:
        assert rows(guest.mappings()) == merged_as_qemu(found)
        # QEMU finds no memory where these bits are set.
        assert rows(guest.mappings(as_qemu=True)) == merged_as_qemu([] if noisy else found, mistaken=True)
        for virtual, (physical, size) in mapped.items():
            address = shape.address(virtual) + size - 1
            assert guest.translate(address, cpu=len(roots) - 1) == physical + size - 1


@pytest.mark.parametrize("mode", MODES)
def test_memory_by_virtual_addresses(mode: str) -> None:
    shape = MODES[mode][1]
    rng = random.Random(mode)
    memory = bytearray(8 * MIB)
    tables = Tables(memory, shape, MIB)
    memory[: 256 * PAGE] = contents = rng.randbytes(256 * PAGE)
    frames = rng.sample(range(256), 256)
    begin = 0x8000_0000 if shape.bits == 32 else (1 << shape.bits) - (1 << 31)
    for number, frame in enumerate(frames):
        assert tables.map(begin + number * PAGE, frame * PAGE, len(shape.shifts) - 1)
    image = b"".join(contents[frame * PAGE : (frame + 1) * PAGE] for frame in frames)
    start = shape.address(begin)
    with make_guest(mode, memory, [tables.root]) as guest:
        assert guest.read_virtual(start, len(image)) == image
        for _ in range(50):
            offset, length = rng.randrange(len(image)), rng.randrange(3 * PAGE)
            length = min(length, len(image) - offset)
            assert guest.read_virtual(start + offset, length) == image[offset : offset + length]
        with pytest.raises(TranslationError, match=f"{start + len(image):#x}") as caught:
            guest.read_virtual(start + 100, len(image))
        assert caught.value.address == start + len(image)
        with pytest.raises(TranslationError):
            guest.translate(start - 1)
        with pytest.raises(TranslationError):
            guest.translate((1 << 64) - 1)
        if shape.bits > 32:
            # Bits above the translated ones that are no sign extension.
            with pytest.raises(TranslationError):
                guest.translate(start & (1 << shape.bits) - 1)


def test_page_of_no_memory_is_translated_but_not_read() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    tables.map(0x1000, 0xFEE00000, 3)
    with make_guest("4 levels", memory, [tables.root]) as guest:
        assert guest.translate(0x1234) == 0xFEE00234
        assert guest.mappings().size.size == 0
        with pytest.raises(ReadError, match="0xfee00234"):
            guest.read_virtual(0x1234, 1)


def test_vcpus_with_tables_of_their_own() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    other = tables.new_root()
    tables.map(0x1000, 0x5000, 3)
    tables.map(0x1000, 0x6000, 3, root=other)
    tables.map(0x2000, 0x7000, 3, root=other)
    with make_guest("4 levels", memory, [tables.root, other]) as guest:
        assert [guest.translate(0x1000, cpu=cpu) for cpu in (None, 0, 1)] == [0x5000, 0x5000, 0x6000]
        assert guest.translate(0x2000) == 0x7000
        with pytest.raises(TranslationError):
            guest.translate(0x2000, cpu=0)
        with pytest.raises(CapabilityError, match="vCPU 2"):
            guest.translate(0x2000, cpu=2)


@pytest.mark.parametrize("order", ["ABA", "BAB", "ABABA", "ABBA"])
def test_vcpus_that_share_tables_with_others_between(order: str) -> None:
    """QEMU meets the tables of A again when those of B have made its mappings longer."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    roots = {"A": tables.root, "B": tables.new_root()}
    pages: dict[str, list[tuple[int, int, int]]] = {"A": [], "B": []}
    for owner, number in (("A", 0), ("B", 1), ("A", 2)):
        virtual = 0x400000 + number * PAGE
        tables.map(virtual, number * PAGE, 3, root=roots[owner])
        pages[owner].append((listed(tables.shape, virtual), number * PAGE, PAGE))
    found = [page for owner in order for page in pages[owner]]
    with make_guest("4 levels", memory, [roots[owner] for owner in order]) as guest:
        assert rows(guest.mappings()) == merged_as_qemu(found)
        assert rows(guest.mappings(as_qemu=True)) == merged_as_qemu(found, mistaken=True)


def test_run_of_pages_of_two_sizes() -> None:
    """QEMU adds page by page: what a large one precedes or overlaps, the small one behind it does not."""
    memory = bytearray(8 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    other = tables.new_root()
    small, large = (3, PAGE), (2, 2 * MIB)
    found = []
    for root, address, (level, size) in (
        (tables.root, 4 * MIB - 2 * PAGE, small),
        (tables.root, 6 * MIB, large),
        (other, 2 * MIB, large),
        (other, 4 * MIB, small),
    ):
        tables.map(address, address - 2 * MIB, level, root=root)
        found.append((listed(tables.shape, address), address - 2 * MIB, size))
    with make_guest("4 levels", memory, [tables.root, other]) as guest:
        assert rows(guest.mappings()) == merged_as_qemu(found)
        assert rows(guest.mappings(as_qemu=True)) == merged_as_qemu(found, mistaken=True)


def test_guest_with_paging_off() -> None:
    notes = arch_by_name("i386").notes([{"cr0": 0x10, "cr3": 0, "cr4": 0}] * 2)
    blocks = [Block(0, BufferMemory(bytearray(MIB))), Block(16 * MIB, BufferMemory(bytearray(MIB)))]
    with BlockSource(blocks, arch="i386", notes=notes) as guest:
        runs = guest.mappings()
        assert runs.virtual.tolist() == runs.physical.tolist() == [0, 16 * MIB]
        assert runs.size.tolist() == [MIB, MIB]
        assert guest.translate(0x1234) == 0x1234


@pytest.mark.parametrize("cr0", [1, PG | 1])
@pytest.mark.parametrize("address", [-1, -PAGE, 1 << 64, (1 << 64) - 1, 1 << 70])
def test_what_is_no_64_bit_address(address: int, cr0: int) -> None:
    """Two bytes from there on are none either, whether paging is on or off."""
    cpus = [{"cr0": cr0, "cr3": 0, "cr4": PAE_BIT}]
    with BlockSource(bytearray(MIB), cpus=cpus) as guest, pytest.raises(TranslationError) as caught:
        guest.read_virtual(address, 2)
    assert caught.value.exit_code == 17


def test_vcpu_that_was_not_started_is_passed_over() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    tables.map(0x1000, 0x5000, 3)
    notes = arch_by_name("x86_64").notes(
        [{"cr0": 0x10, "cr3": 0, "cr4": 0}, {"cr0": PG, "cr3": tables.root, "cr4": PAE_BIT}]
    )
    with BlockSource(memory, arch="x86_64", notes=notes) as guest:
        assert guest.translate(0x1000) == 0x5000
        assert guest.mappings().physical.tolist() == [0x5000]


def test_kernel_tables_by_vmcoreinfo() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(5), MIB)
    start = 0xFFFFFFFF80000000
    tables.map(start + 0x5000, 0x7000, 4)
    text = (
        f"SYMBOL(swapper_pg_dir)={start + 0x100000:x}\nNUMBER(phys_base)={tables.root - 0x100000}\n"
        f"NUMBER(pgtable_l5_enabled)=1\n"
    )
    with BlockSource(memory, arch="x86_64", vmcoreinfo=text.encode()) as guest:
        assert guest.translate(start + 0x5678) == 0x7678
        assert guest.mappings().virtual.tolist() == [start + 0x5000]


def test_encrypted_entries_lose_the_bit_that_says_so() -> None:
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4, noise=1 << 47), MIB)
    start = 0xFFFFFFFF80000000
    tables.map(start, 0x7000, 3)
    text = (
        f"SYMBOL(swapper_pg_dir)={start:x}\nNUMBER(phys_base)={tables.root}\n"
        f"NUMBER(pgtable_l5_enabled)=0\nNUMBER(sme_mask)={1 << 47}\n"
    )
    with BlockSource(memory, arch="x86_64", vmcoreinfo=text.encode()) as guest:
        assert guest.translate(start) == 0x7000


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_nothing_tells_where_the_tables_are(arch: str) -> None:
    with BlockSource(bytearray(MIB), arch=arch) as guest:
        for ask in (guest.mappings, lambda: guest.translate(0), lambda: guest.read_virtual(0, 1)):
            with pytest.raises(CapabilityError, match="VMCOREINFO"):
                ask()


def test_architecture_without_a_walk() -> None:
    with (
        BlockSource(bytearray(MIB), arch="ppc") as guest,
        pytest.raises(CapabilityError, match="walk for ppc"),
    ):
        guest.translate(0)


def _itself(memory: bytearray, root: int) -> None:
    for entry in range(512):
        memory[root + entry * 8 : root + entry * 8 + 8] = (root | 3).to_bytes(8, "little")


def _one_slot(memory: bytearray, root: int) -> None:
    memory[root : root + 8] = (root | 3).to_bytes(8, "little")


def _elsewhere(memory: bytearray, root: int) -> None:
    for entry in range(512):
        address = entry << 40 | 0xFFF000
        memory[root + entry * 8 : root + entry * 8 + 8] = (address | 3).to_bytes(8, "little")


def _noise(memory: bytearray, root: int) -> None:
    memory[:] = np.random.default_rng(1).integers(0, 256, len(memory), np.uint8).tobytes()


@pytest.mark.parametrize("fill", [_itself, _one_slot, _elsewhere, _noise])
@pytest.mark.parametrize("mode", MODES)
def test_hostile_tables(mode: str, fill: Callable[[bytearray, int], None]) -> None:
    """The walk ends, and either lists all mappings or says that it is too much."""
    memory = bytearray(4 * MIB)
    root = 2 * MIB
    fill(memory, root)
    with make_guest(mode, memory, [root, root + PAGE, root + 2 * PAGE]) as guest:
        try:
            assert guest.mappings().size.size <= 1 << 22
        except TranslationError as error:
            assert "tables" in str(error)
        for address in (0, 0x1234567, 1 << 46, (1 << 64) - 1):
            try:
                assert guest.translate(address) < 1 << 52
            except TranslationError as error:
                assert error.exit_code == 17


def test_tables_that_name_themselves_are_too_many() -> None:
    memory = bytearray(4 * MIB)
    _itself(memory, 0)
    with make_guest("4 levels", memory, [0]) as guest:
        with pytest.raises(TranslationError, match=r"at 0x0 stand for more than \d+ tables"):
            guest.mappings()
        # One address needs one table of each level.
        assert guest.translate(0x1234) == 0x234


def test_tables_of_all_vcpus_together_are_too_many() -> None:
    """One vCPU's tables stand for 4106 of the 4224 that this guest may have."""
    memory = bytearray(4 * MIB)
    words = np.frombuffer(memory, "<u8").reshape(-1, 512)
    for root in (0, 1):
        words[root, root : root + 1] = 2 * PAGE | 3
    words[2, :8] = 3 * PAGE | 3
    words[3] = 4 * PAGE | 3
    with make_guest("4 levels", memory, [0, 0, 0]) as guest:
        assert guest.mappings().size.size == 0
    with (
        make_guest("4 levels", memory, [0, PAGE]) as guest,
        pytest.raises(TranslationError, match="more than 4224 tables"),
    ):
        guest.mappings()


def test_more_roots_than_qemu_has_vcpus() -> None:
    roots = [number * PAGE for number in range(4097)]
    with (
        make_guest("32-bit", bytearray(4 * MIB), roots) as guest,
        pytest.raises(TranslationError, match="4097 different page tables"),
    ):
        guest.mappings()


def test_mappings_between_each_other_are_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what touches is looked at one by one, not all of the same distance."""
    memory = bytearray(4 * MIB)
    tables = Tables(memory, long_mode(4), MIB)
    other = tables.new_root()
    for number in range(0, 40, 4):
        tables.map(number * PAGE, number * PAGE, 3)
        tables.map((number + 2) * PAGE, (number + 2) * PAGE, 3, root=other)
    monkeypatch.setattr("vmdump.arch.paging.mappings._MAX_MET", 0)
    with make_guest("4 levels", memory, [tables.root, other]) as guest:
        assert guest.mappings().physical.tolist() == [number * PAGE for number in range(0, 40, 2)]
        with pytest.raises(TranslationError, match="more mappings than can be merged"):
            guest.mappings(as_qemu=True)


@pytest.mark.parametrize("root", [4 * MIB - 8, 4 * MIB, 1 << 51, (1 << 52) - PAGE])
def test_root_outside_memory(root: int) -> None:
    with make_guest("4 levels", bytearray(4 * MIB), [root]) as guest:
        assert guest.mappings().size.size == 0
        with pytest.raises(TranslationError):
            guest.translate(0)


@pytest.mark.parametrize("address", [-1, 1 << 64, 1 << 80])
def test_root_that_is_no_address(address: int) -> None:
    start = 0xFFFFFFFF80000000
    text = f"SYMBOL(swapper_pg_dir)={start:x}\nNUMBER(phys_base)={address}\n"
    guest = BlockSource(bytearray(MIB), arch="x86_64", vmcoreinfo=text.encode())
    with guest, pytest.raises(TranslationError):
        guest.translate(start)
