"""Dumps of a guest with struct pages, whole and filtered, with bytes flipped anywhere in them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile import touch
from helpers.struct_pages import BUDDY, LRU, flat, structs

import vmdump

FLIPS = 40


def made(folder: Path, format: str, level: int) -> bytes:
    """Make a dump of 512 pages of all types."""
    pages = structs(512)
    pages["flags"][64:128] = LRU
    pages["mapping"][128:192] = 0x1001
    pages["mapcount"][192:256] = BUDDY
    pages["private"][192:256] = 3
    vmdump.dump(flat(pages), folder / "dump", format=format, exclude=level)
    return (folder / "dump").read_bytes()


@pytest.mark.parametrize("level", [1, 16, 31])
@pytest.mark.parametrize("format", ["kdump-zlib", "kdump-lzo", "elf"])
def test_flipped_bytes(format: str, level: int, tmp_path: Path) -> None:
    data = made(tmp_path, format, level)
    assert set(touch(data, convert=True)) == {"ReadError"}  # of addresses where there is no memory
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # Headers and VMCOREINFO as often as all the rest; what lies in struct pages is what is not zero there.
    full = np.flatnonzero(np.frombuffer(data, np.uint8)).tolist()
    for _ in range(FLIPS):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 8, 64))):
            place = rng.choice(full) if rng.random() < 0.5 else rng.randrange(min(len(data), 8192))
            damaged[place] = rng.randrange(256)
        touch(damaged, convert=True)
