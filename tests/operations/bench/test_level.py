"""Which compression for a dump without some types of pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.filter_goldens import opened

import vmdump
from vmdump import errors
from vmdump.operations.bench import disk


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
