"""Guests of Debian's kernel 6.1 without some types of pages, against its makedumpfile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracles import judges
from oracles.kdump import Kdump

import vmdump
from live.dumping import succeeds
from live.guests import Guest


def bits(bitmap: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(bool)


def makedumpfiles(core: Path, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Give both bitmaps that makedumpfile makes of a core."""
    path = core.with_name(f"filtered-{level}")
    judges.makedumpfile_filter(core, path, "-l", "-d", str(level))
    dump = Kdump(path)
    pages = dump.max_mapnr
    path.unlink()
    return bits(dump.bitmap1)[:pages], bits(dump.bitmap2)[:pages]


@pytest.mark.parametrize("level", [2, 4, 8, 16, 31])
def test_bitmaps_are_makedumpfiles(level: int, linux_guest: Guest, scratch: Path) -> None:
    succeeds(linux_guest, scratch / "core", "-f", "elf")
    report = succeeds(linux_guest, scratch / "dump", "-f", "kdump-lzo", "-d", level)
    first, second = makedumpfiles(scratch / "core", level)
    dump = Kdump(scratch / "dump")
    assert np.array_equal(bits(dump.bitmap1)[: first.size], first)
    assert np.array_equal(bits(dump.bitmap2)[: second.size], second)
    # What lies above the last struct page is kept.
    assert np.array_equal(bits(dump.bitmap1)[first.size :], bits(dump.bitmap2)[first.size :])
    assert report["dump_level"] == level | 1
    assert report["doubtful_pages"] == 0


@pytest.mark.parametrize("format", ["kdump-lzo", "elf"])
def test_a_busy_guest(format: str, busy_guest: Guest, scratch: Path) -> None:
    """What is left out is what its own struct pages say in the dump; the kernel's log is in it."""
    for number in range(3):
        busy_guest.wait_tick()
        report = succeeds(busy_guest, scratch / f"dump{number}", "-f", format, "-d", 31)
        assert busy_guest.running()
        assert not report["fuzzy"]
        with vmdump.open(scratch / f"dump{number}") as dump:
            assert any(b"Linux version 6.1" in line.text for line in vmdump.dmesg(dump))
        # Nothing more is left out by the struct pages of the dump itself, and nothing less was.
        again = vmdump.convert(
            scratch / f"dump{number}", scratch / "again", format=format, exclude=31, force=True
        )
        assert again.excluded_pages == report["excluded_pages"]
        assert again.doubtful_pages == 0
