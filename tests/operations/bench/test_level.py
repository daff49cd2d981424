"""Which compression for a dump without some types of pages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.filter_goldens import opened

import vmdump
from vmdump import errors
from vmdump.codecs.registry import engines
from vmdump.operations.bench import disk

bench_module = import_module("vmdump.operations.bench.bench")


def test_a_level_is_forecast_for_what_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_SIZE", 4 << 20)
    with opened("6.12") as guest:
        usage = vmdump.page_types(guest)
        found = vmdump.bench(guest, to=tmp_path, sample=guest.size, exclude=31)
    assert found.dump_level == 31
    elf = next(each for each in found.candidates if each.format == "elf")
    assert abs(elf.output_bytes - usage.bytes_at(31)) < 64 << 10
    assert round(found.data_bytes * (1 - found.zero_share)) == usage.bytes_at(31)
    with pytest.raises(errors.RequestError, match="level 32"):
        vmdump.bench(guest, to=tmp_path, exclude=32)


@pytest.fixture
def few_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try LZO alone: all engines take 20 s."""
    left = [engine for engine in engines() if engine.codec == "lzo"]
    monkeypatch.setattr(bench_module, "engines", lambda: left)
    monkeypatch.setattr(disk, "_SIZE", 4 << 20)


@pytest.mark.usefixtures("few_engines")
@pytest.mark.parametrize(("exclude", "levels"), [(1, [1, 31]), (31, [1, 31]), (17, [1, 17, 31])])
def test_levels_beside_each_other(exclude: int, levels: list[int], tmp_path: Path) -> None:
    with opened("6.12") as guest:
        usage = vmdump.page_types(guest)
        found = vmdump.bench(guest, to=tmp_path, sample=guest.size, exclude=exclude)
    assert [each.dump_level for each in found.levels] == levels
    assert [each.stored_bytes for each in found.levels] == [usage.bytes_at(level) for level in levels]
    dumps = [each.candidate for each in found.levels]
    assert all(dump is not None and dump.options == found.fastest.options for dump in dumps)
    assert dumps[levels.index(exclude)] == found.fastest
    whole, filtered = dumps[0], dumps[-1]
    assert whole is not None
    assert filtered is not None
    assert filtered.output_bytes < whole.output_bytes / 2
    assert found.as_dict()["levels"][-1]["candidate"]["output_bytes"] == filtered.output_bytes


@pytest.mark.usefixtures("few_engines")
def test_levels_have_the_compression_that_is_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elf_is_slow = disk.DiskSpeed(str(tmp_path), 1e6, 1e6, 1e6, 0.0, 4 << 20, 1 << 40)
    monkeypatch.setattr(bench_module, "measure_disk", lambda *_, **__: elf_is_slow)
    with opened("6.12") as guest:
        found = vmdump.bench(guest, to=tmp_path, sample=2 << 20)
    one, other = (each.candidate for each in found.levels)
    assert one is not None
    assert other is not None
    assert (one.format, one.engine, one.level) == (other.format, other.engine, other.level)
    assert one.codec
    assert other.pages > 0
    assert other.speed > 0
    assert other.output_bytes < one.output_bytes


@pytest.mark.usefixtures("few_engines")
def test_a_guest_whose_page_types_nothing_tells(tmp_path: Path) -> None:
    pages = np.random.default_rng(1).integers(1, 255, 64 << 12, np.uint8)
    with vmdump.BlockSource(pages) as guest:
        found = vmdump.bench(guest, to=tmp_path)
    one, other = found.levels
    assert (one.candidate, one.missing) == (found.fastest, "")
    assert (other.dump_level, other.candidate, other.stored_bytes) == (31, None, 0)
    assert "has no VMCOREINFO" in other.missing
