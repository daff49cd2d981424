"""Where the bytes of a dump are: against what was put there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracles import kdump_builder, small_dumps

import vmdump
from vmdump.errors import CapabilityError
from vmdump.operations.density import density
from vmdump.readers.kinds import PageKind

PAGE = 4096


def test_sizes_and_entropy_are_where_they_were_put(tmp_path: Path) -> None:
    pages = 4096
    memory = np.zeros((pages, PAGE), np.uint8)
    memory[1024:2048] = 7
    memory[2048:3072] = np.arange(256).repeat(16)
    memory[3072:] = np.random.default_rng(1).integers(0, 256, (1024, PAGE), np.uint8)
    vmdump.dump(memory, tmp_path / "kdump")
    vmdump.dump(memory, tmp_path / "elf", format="elf")
    for name in ("kdump", "elf"):
        found = density(str(tmp_path / name))
        assert found.packed == (name == "kdump")
        assert len(found.cells) == 256
        assert [cell.begin for cell in found.cells] == list(range(0, pages * PAGE, 16 * PAGE))
        assert sum(cell.pages for cell in found.cells) == pages
        zero, same, steps, random = (found.cells[at : at + 64] for at in range(0, 256, 64))
        assert all(cell.entropy is None and not cell.stored_bytes for cell in zero)
        assert all(cell.entropy == 0 and cell.stored_bytes < 16 * 100 for cell in same)
        assert all(cell.entropy == pytest.approx(8) and cell.stored_bytes < 16 * 1500 for cell in steps)
        assert all(7.9 < (cell.entropy or 0) <= 8 and cell.stored_bytes == 16 * PAGE for cell in random)


def test_every_kind_of_dump(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    for dump in small_dumps.all_kinds():
        file.write_bytes(dump.data)
        found = density(str(file))
        counts = sum(sum(cell.kinds.values()) + cell.damaged for cell in found.cells)
        assert counts == sum(cell.pages for cell in found.cells) == vmdump.info(str(file)).pages


def test_excluded_and_damaged_pages(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    build = kdump_builder.Build({0: b"a" * PAGE, 1: None, 2: b"c" * PAGE})
    data = kdump_builder.build_kdump(build)
    file.write_bytes(data)
    kinds: dict[PageKind, int] = {}
    for cell in density(str(file)).cells:
        for kind, count in cell.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
    assert kinds == {PageKind.ZLIB: 2, PageKind.EXCLUDED: 1}
    file.write_bytes(data[:-1] + b"\xff")
    sampled = density(str(file)).cells
    assert sum(cell.sampled for cell in sampled) == 1


def test_only_dumps() -> None:
    with pytest.raises(CapabilityError):
        density("synthetic:64M")
