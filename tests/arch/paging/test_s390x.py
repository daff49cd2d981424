"""What page tables of s390x have and others do not: parts of tables, control registers, prefixing."""

from __future__ import annotations

import pytest
from helpers.kernel_tables import KERNELS, guest_of, rows
from oracles.page_tables import PAGE, Tables, z_architecture

from vmdump import BlockSource
from vmdump.errors import TranslationError

MIB = 1 << 20


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
    # Another vCPU may have all of what one has in part.
    cpus = [{"psw_mask": 1 << 58, "cr1": primary.root | 4 | length} for length in (2, 3)]
    with BlockSource(memory, arch="s390x", cpus=cpus) as both:
        assert len(rows(both.mappings())) == 2


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


def test_kernel_has_an_address_space_of_its_own() -> None:
    """An address that a process has as well is the kernel's, unless a vCPU is named."""
    memory = bytearray(4 * MIB)
    kernel, process = Tables(memory, z_architecture(3), MIB), Tables(memory, z_architecture(3), 2 * MIB)
    kernel.map(0x1000, 0x5000, 2)
    process.map(0x1000, 0x6000, 2)
    process.map(0x2000, 0x7000, 2)
    text = KERNELS["s390x, 3 levels"].vmcoreinfo(kernel.root)
    cpus = [{"psw_mask": 1 << 58, "cr1": process.root | 7}]
    with BlockSource(memory, arch="s390x", vmcoreinfo=text, page_size=4096, cpus=cpus) as guest:
        assert [guest.translate(0x1000), guest.translate(0x1000, cpu=0)] == [0x5000, 0x6000]
        assert guest.translate(0x2000) == 0x7000
        assert rows(guest.virtual.kernel_runs(0, 0x10000)) == [(0x1000, 0x5000, PAGE)]
