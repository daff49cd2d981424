"""Memory that the kernel has without page tables."""

from __future__ import annotations

import random

import pytest
from helpers.kernel_tables import KERNELS, POWER, rows

from vmdump import BlockSource
from vmdump.errors import CapabilityError, ReadError, TranslationError

MIB = 1 << 20


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
