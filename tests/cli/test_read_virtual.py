"""``vmdump read --virtual`` and ``dump --paging`` of guests of every architecture with page tables."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.kernel_tables import KERNELS
from oracles.elf import ElfCore
from oracles.page_tables import Tables

import vmdump
from vmdump.errors import TranslationError

MIB = 1 << 20
# One of each architecture.
NAMES = list({kernel.arch: name for name, kernel in KERNELS.items()}.values())


@pytest.mark.parametrize("name", NAMES)
def test_virtual_memory_of_a_dump(name: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    kernel = KERNELS[name]
    shape, rng, page = kernel.shape, random.Random(name), 1 << kernel.page
    memory = bytearray(4 * MIB)
    memory[: 4 * page] = contents = rng.randbytes(4 * page)
    tables = Tables(memory, shape, 2 * MIB)
    start = (1 << shape.bits) - 3 * page
    for number, frame in enumerate((2, 0)):
        assert tables.map(start + number * page, frame * page, len(shape.shifts) - 1)
    expected = contents[2 * page + 100 : 3 * page] + contents[:100]
    text = b"OSRELEASE=6.1.0\n" + kernel.vmcoreinfo(tables.root)
    with vmdump.BlockSource(memory, arch=kernel.arch, vmcoreinfo=text, page_size=4096) as guest:
        vmdump.dump(guest, tmp_path / "kdump", format="kdump-zlib")
    address = shape.address(start + 100)
    done = run_vmdump("read", tmp_path / "kdump", hex(address), page, "--virtual")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    done = run_vmdump("read", tmp_path / "kdump", hex(address), 2 * page, "--virtual")
    assert done.returncode == TranslationError.exit_code
    assert f"{shape.address(start + 2 * page):#x}" in done.stderr.decode()
    done = run_vmdump("dump", tmp_path / "kdump", tmp_path / "elf", "-f", "elf", "--paging")
    assert done.returncode == 0, done.stderr
    loads = [load for load in ElfCore(tmp_path / "elf").loads if load.vaddr == shape.address(start)]
    assert [(load.paddr, load.filesz) for load in loads] == [(2 * page, page)]
