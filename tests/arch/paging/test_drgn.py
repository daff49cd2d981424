"""drgn walks tables of several architectures as well: it reads the same memory by virtual addresses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.kernel_tables import KERNELS
from oracles import judges
from oracles.page_tables import Tables

import vmdump

MIB = 1 << 20
# drgn 0.3 has none of riscv, loongarch64 and mips64, and none beside a hash table; for those of arm it needs
# debugging information.
KNOWN = [name for name, kernel in KERNELS.items() if kernel.arch in ("aarch64", "s390x") or "radix" in name]


@pytest.mark.parametrize("name", KNOWN)
def test_memory_by_virtual_addresses_is_drgns(name: str, tmp_path: Path) -> None:
    judges.require("drgn")
    import drgn

    kernel = KERNELS[name]
    shape, seed = kernel.shape, random.randrange(1 << 32)
    rng = random.Random(seed)
    # Entries of zero are free.
    memory = bytearray(32 * MIB) + rng.randbytes(MIB) * 32
    for place in range(0, len(memory), 4096):
        memory[place : place + 8] = place.to_bytes(8, "little")
    tables = Tables(memory, shape, 2 * MIB)
    levels = [level for level, shift in enumerate(shape.shifts) if shift in (kernel.page, *kernel.large)]
    pages = []
    for _ in range(60):
        size = 1 << shape.shifts[level := rng.choice(levels)]
        virtual = rng.randrange(1 << (shape.bits - 1), 1 << shape.bits) // size * size
        if tables.map(virtual, rng.randrange(64 * MIB) // size * size, level):
            pages.append((virtual, size))
    assert len(pages) > 20, f"seed {seed}"
    text = b"OSRELEASE=6.12.0\n" + kernel.vmcoreinfo(tables.root)
    with vmdump.BlockSource(memory, arch=kernel.arch, vmcoreinfo=text, page_size=4096) as guest:
        vmdump.dump(guest, tmp_path / "core", format="elf")
    program = drgn.Program()
    program.set_core_dump(tmp_path / "core")
    with vmdump.open(tmp_path / "core") as dump:
        for virtual, size in pages:
            inside = rng.randrange(min(size, MIB) - 64)
            address = shape.address(virtual + inside)
            assert dump.read_virtual(address, 64) == program.read(address, 64), f"seed {seed}, {address:#x}"
