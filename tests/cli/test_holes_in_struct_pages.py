"""Dumps without some of their struct pages: what these told of is kept, counted, and one line says so."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.filter_goldens import bitmaps, memory

import vmdump
from vmdump.cli.progress import summary
from vmdump.guest.linux.page_types.arrays import find_arrays
from vmdump.guest.views import view_of

PAGE = 4096
STRUCT = 64
TOLD = PAGE // STRUCT
"""Pages that a page of struct pages tells of."""
FIRSTS = (0x40, 0x1040, 0x1080, 0x5000, 0x8FC0, 0x9000)
"""The first page of each run of which nothing tells."""


def hole_pages(guest: Any) -> list[int]:
    """Give the numbers of the pages that the struct pages of FIRSTS are in."""
    first = find_arrays(guest, guest.vmcoreinfo, STRUCT)[0]
    return sorted({guest.translate(first.address + pfn * STRUCT) // PAGE for pfn in FIRSTS})


def holed(kernel: str, *, shorter: bool) -> tuple[bytes, list[int]]:
    """Make a core without the struct pages of FIRSTS: no memory there, or segments that end before it.

    Returns the core, and the frame numbers of the pages that it lacks.
    """
    core = memory(kernel).tobytes()
    with vmdump.open(memory(kernel)) as guest:
        holes = hole_pages(guest)
    table, count = struct.unpack_from("<Q", core, 32)[0], struct.unpack_from("<H", core, 56)[0]
    rows = [struct.unpack_from("<IIQQQQQQ", core, table + 56 * row) for row in range(count)]
    made = [rows[0]]
    for kind, flags, offset, _, begin, size, _, align in rows[1:]:
        at = begin
        for hole in [hole * PAGE for hole in holes if begin <= hole * PAGE < begin + size] + [begin + size]:
            there = hole - at
            longer = PAGE if shorter and hole < begin + size else 0
            made.append((kind, flags, offset + at - begin, at, at, there, there + longer, align))
            at = hole + PAGE
    # Behind the notes, in front of the memory.
    place = 4400
    assert place + 56 * len(made) <= 8192
    out = bytearray(core)
    out[place : place + 56 * len(made)] = b"".join(struct.pack("<IIQQQQQQ", *row) for row in made)
    struct.pack_into("<Q", out, 32, place)
    struct.pack_into("<H", out, 56, len(made))
    return bytes(out), holes


def write_excluded(kernel: str, path: Path) -> list[int]:
    """Write a dump from which the pages with the struct pages of FIRSTS are excluded; gives their numbers."""
    with vmdump.open(memory(kernel)) as guest:
        holes = hole_pages(guest)
        view = view_of(
            guest,
            excluded_pages=lambda pfn, count: np.isin(np.arange(pfn, pfn + count), holes),
            excluded_size=len(holes) * PAGE,
        )
        vmdump.convert(view, path, format="kdump-lzo")
    return holes


@pytest.mark.parametrize("how", ["missing", "shorter", "excluded"])
@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_pages_of_which_nothing_tells_are_kept(
    kernel: str, how: str, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    if how == "excluded":
        holes = write_excluded(kernel, tmp_path / "core")
    else:
        core, holes = holed(kernel, shorter=how == "shorter")
        (tmp_path / "core").write_bytes(core)
    report = vmdump.convert(tmp_path / "core", tmp_path / "small", format="kdump-lzo", exclude=31)
    lost = np.concatenate([np.arange(first, first + TOLD) for first in FIRSTS])
    line = summary(report)
    assert "\n" not in line
    if how == "shorter":
        # Zeros, by the format: struct pages that were never set up. vmdump's own dumps say what is excluded.
        assert report.doubtful_pages == 0
    else:
        # Tails of huge pages share their struct pages, and what nothing tells of may be missing itself.
        assert report.doubtful_pages >= lost.size - len(holes)
        assert f"; {report.doubtful_pages} pages of doubtful types kept" in line
    whole = bitmaps(kernel)["d31"]
    with vmdump.open(tmp_path / "small") as small:
        left_out = small.excluded_pages(0, whole.size)
        kept = np.ones(whole.size, np.bool_) if left_out is None else ~left_out
        kept[holes] = True
        assert kept[whole].all()
        assert kept[lost].all()
    done = run_vmdump("info", "--usage", "--json", tmp_path / "core")
    assert done.returncode == 0
    # Those that hold zeros are counted as such.
    doubtful = json.loads(done.stdout)["types"]["doubtful"]["pages"]
    assert doubtful == 0 if how == "shorter" else 0 < doubtful <= report.doubtful_pages
    with vmdump.open(memory(kernel)) as guest:
        page = next(pfn for pfn in lost.tolist() if pfn not in holes and any(guest.read(pfn * PAGE, PAGE)))
    done = run_vmdump("info", "--page", hex(page * PAGE), tmp_path / "core")
    assert done.returncode == 0
    assert (b"kernel" if how == "shorter" else b"doubtful") in done.stdout, done.stdout
