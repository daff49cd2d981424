"""compare() and the demo that rests on it: a difference anywhere is found, and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump

import vmdump
from vmdump.operations.verify import compare

PAGE = 4096


def guest(*blocks: tuple[int, np.ndarray]) -> vmdump.BlockSource:
    return vmdump.BlockSource(list(blocks))


@pytest.mark.parametrize("place", [0, 5 * PAGE - 1, 4 << 20, (4 << 20) + 3 * PAGE, 8 * (1 << 20) - 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_one_byte_is_found(place: int, threads: int) -> None:
    mine = np.random.RandomState(1).randint(0, 256, 8 << 20).astype(np.uint8)
    theirs = mine.copy()
    theirs[place] ^= 1
    found = compare(guest((0x10000, mine)), guest((0x10000, theirs)), threads=threads)
    assert found.different == (0x10000 + place // PAGE * PAGE,)
    assert found.bytes_compared == mine.size
    assert found.blocks_equal
    assert not found.equal


def test_blocks_that_touch_are_one_block() -> None:
    memory = np.random.RandomState(2).randint(0, 256, 16 * PAGE).astype(np.uint8)
    whole = guest((0, memory))
    split = guest((0, memory[: 5 * PAGE]), (5 * PAGE, memory[5 * PAGE :]))
    for first, second in [(whole, split), (split, whole), (split, split)]:
        found = compare(first, second)
        assert found.equal
        assert found.bytes_compared == memory.size


def test_missing_memory_is_a_difference() -> None:
    memory = np.ones(8 * PAGE, np.uint8)
    found = compare(guest((0, memory)), guest((0, memory[: 4 * PAGE])))
    assert not found.equal
    assert not found.blocks_equal
    assert found.different == ()
    assert found.bytes_compared == 4 * PAGE


def test_demo_verifies_every_format_and_engine(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("demo", "8M", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    engines = {engine.name for engine in vmdump.capabilities().engines if not engine.missing}
    assert {row["engine"] for row in rows} == engines | {""}
    assert {row["format"] for row in rows} == {"elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd"}
    assert {row["layout"] for row in rows} == {"standard", "flattened"}
    assert len({row["pages_verified"] for row in rows}) == 1
    assert rows[0]["pages_verified"] * PAGE == rows[0]["guest_bytes"] > 7 << 20
