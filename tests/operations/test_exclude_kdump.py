"""A kdump file is filtered by its bitmaps and descriptors: what is left out is neither read nor unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.converting import held, opened, write
from helpers.filter_goldens import memory
from oracles.kdump import Kdump

import vmdump
from vmdump.readers import kdump as reader

PAGE = 4096
KINDS = ["kdump-lzo standard", "kdump-lzo split"]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("core") / "core"
    path.write_bytes(memory("6.12").tobytes())
    return path


@pytest.fixture(scope="module")
def expected(core: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("expected") / "dump"
    vmdump.convert(core, path, format="kdump-lzo", exclude=31)
    return path


def bits(bitmap: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(bool)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["kdump-lzo", "kdump-zlib", "elf"])
def test_pages_that_are_left_out_are_not_read(
    to: str, kind: str, core: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(core, tmp_path / "full", kind)
    kept = np.flatnonzero(bits(Kdump(expected).bitmap2))
    read: list[Any] = []
    spans, unpack = reader.read_spans, reader.KdumpDump.read_pages

    def counted(file: Any, offsets: np.ndarray, sizes: np.ndarray) -> Any:
        read.append(len(offsets))
        return spans(file, offsets, sizes)

    unpacked = np.zeros(1 << 20, np.bool_)

    def noted(dump: Any, pfn: int, out: np.ndarray, damage: Any = None, without: Any = None) -> None:
        unpacked[pfn : pfn + len(out)] |= True if without is None else ~without
        unpack(dump, pfn, out, damage, without)

    with vmdump.open(opened(tmp_path / "full", kind)) as full:
        level_1 = full.excluded_size
        monkeypatch.setattr(reader, "read_spans", counted)
        monkeypatch.setattr(reader.KdumpDump, "read_pages", noted)
        report = vmdump.convert(full, tmp_path / "dump", format=to, exclude=31, threads=1)
    assert level_1 == 0
    # What lies between struct pages that are scattered is read with them, before anything is known of it.
    assert np.count_nonzero(~np.isin(np.flatnonzero(unpacked), kept)) < 300
    if to == "kdump-lzo":
        assert report.copied_pages == report.plain_pages + report.compressed_pages
        assert sum(read) < 3 * len(kept)
    if to != "elf":
        dump, same = Kdump(tmp_path / "dump"), Kdump(expected)
        assert (dump.bitmap1, dump.bitmap2) == (same.bitmap1, same.bitmap2)
        assert held(tmp_path / "dump", "kdump") == held(expected, "kdump")
    with vmdump.open(tmp_path / "dump") as dump, vmdump.open(expected) as same:
        for pfn in kept[::101].tolist():
            assert dump.read(pfn * PAGE, PAGE) == same.read(pfn * PAGE, PAGE)


@pytest.mark.parametrize("to", ["kdump-lzo", "kdump-zlib"])
def test_damage_in_what_is_left_out_is_left_out(to: str, core: Path, expected: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    vmdump.convert(core, full, format="kdump-lzo", exclude=1)
    whole, filtered = Kdump(full), Kdump(expected)
    lost = np.flatnonzero(bits(whole.bitmap2) & ~bits(filtered.bitmap2))
    kept = set(np.flatnonzero(bits(filtered.bitmap2)).tolist())
    rows = dict(zip(whole.pfns.tolist(), whole.descriptors, strict=True))
    shared = {int(rows[pfn]["offset"]) for pfn in kept}
    content = bytearray(full.read_bytes())
    damaged = 0
    for pfn in lost.tolist():
        offset, size = int(rows[pfn]["offset"]), int(rows[pfn]["size"])
        if offset not in shared:
            content[offset : offset + size] = b"\xff" * size
            damaged += 1
    assert damaged > 1000
    full.write_bytes(content)
    vmdump.convert(full, tmp_path / "dump", format=to, exclude=31)
    assert held(tmp_path / "dump", "kdump") == held(expected, "kdump")
