"""Where page data stands in a kdump file: long chunks at blocks of it, with zeros between them."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.running import RunningGuest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles.flattened import Flattened
from oracles.kdump import Kdump

import vmdump

PAGE = 4096
CHUNK = 8 << 20
LONG = 256 << 10


def chunk_of(noisy: int, seed: int) -> np.ndarray:
    """8 MiB: so many pages that stay plain, one that shrinks, and zeros; no page twice."""
    memory = np.zeros((CHUNK // PAGE, PAGE), np.uint8)
    memory[:noisy] = np.random.default_rng(seed).integers(0, 256, (noisy, PAGE), np.uint8)
    memory[noisy, 0::4] = np.random.default_rng(seed + 1).integers(1, 256, PAGE // 4, np.uint8)
    return memory.reshape(-1)


def stored(dump: Kdump, path: Path) -> list[tuple[int, int, int]]:
    """Chunk, begin and end of each chunk's data, in the order of the file; all that is between are zeros."""
    raw = path.read_bytes()
    found: dict[int, list[tuple[int, int]]] = {}
    for pfn, row in zip(dump.pfns.tolist(), dump.descriptors, strict=True):
        begin, size = int(row["offset"]), int(row["size"])
        if any(dump.page(pfn)):
            found.setdefault(pfn * PAGE // CHUNK, []).append((begin, begin + size))
    chunks = []
    position = dump.data_offset + PAGE
    for chunk, places in sorted(found.items(), key=lambda item: item[1]):
        assert all(low[1] == high[0] for low, high in itertools.pairwise(places)), "a gap inside"
        chunks.append((chunk, places[0][0], places[-1][1]))
        assert not any(raw[position : places[0][0]]), "a gap holds something"
        position = places[-1][1]
    assert not any(raw[position:])
    return chunks


def check_gaps(chunks: list[tuple[int, int, int]], position: int, size: int) -> int:
    """Check every gap, and give how many there are."""
    gaps, long_before = 0, False
    for _, begin, end in [*chunks, (-1, size, size)]:
        long = end - begin >= LONG
        expected = -(-position // PAGE) * PAGE if long or long_before else position
        assert begin == expected
        gaps += begin > position
        position, long_before = end, long
    return gaps


COUNTS = st.lists(st.sampled_from([0, 1, 30, 62, 63, 64, 65, 200]), min_size=1, max_size=4)


@settings(max_examples=30)
@example(counts=[62, 200], layout="flattened", threads=1)
@given(counts=COUNTS, layout=st.sampled_from(["standard", "flattened"]), threads=st.integers(1, 2))
def test_long_chunks_begin_at_blocks(counts: list[int], layout: str, threads: int) -> None:
    memory = np.concatenate([chunk_of(noisy, 2 * seed) for seed, noisy in enumerate(counts)])
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        path = Path(folder) / "dump"
        vmdump.dump([(0, memory)], path, format="kdump-lzo", layout=layout, threads=threads)
        if layout == "flattened":
            Flattened(path).check().rearrange(Path(folder) / "standard")
            path = Path(folder) / "standard"
        dump = Kdump(path).check()
        chunks = stored(dump, path)
        assert [chunk for chunk, *_ in chunks] == list(range(len(counts)))
        gaps = check_gaps(chunks, dump.data_offset + PAGE, dump.size)
        # The page that shrinks makes sure that a chunk ends inside a block.
        if max(counts) < 63:
            assert gaps == 0
        elif max(counts) >= 64:
            assert gaps > 0
        assert b"".join(page for _, page in dump.pages()) == memory.tobytes()


def test_pages_that_were_packed_ahead(tmp_path: Path) -> None:
    before = np.concatenate([chunk_of(100, 1), chunk_of(5, 3), chunk_of(300, 5)])
    after = before.copy()
    after[: 80 * PAGE] ^= 0x5A
    after[CHUNK + 2 * PAGE] ^= 1
    vmdump.dump(RunningGuest([(0, before)], [(0, after)]), tmp_path / "dump", format="kdump-lzo")
    dump = Kdump(tmp_path / "dump").check(ahead=True)
    assert b"".join(page for _, page in dump.pages()) == after.tobytes()
    offsets = dump.descriptors["offset"]
    # The first of 80 changed pages, and the first of each long chunk that was packed ahead.
    assert offsets[0] % PAGE == 0
    assert offsets[2 * CHUNK // PAGE] % PAGE == 0
    assert offsets[0] > offsets[2 * CHUNK // PAGE] > offsets[CHUNK // PAGE]


@pytest.mark.parametrize("noisy", [63, 64])
def test_border_of_256_kib(noisy: int, tmp_path: Path) -> None:
    """The zero page and a short chunk stand in front: what is long is moved to a block, what is not stays."""
    memory = np.concatenate([chunk_of(3, 1), chunk_of(0, 9)])
    memory[CHUNK:] = 0
    pages = np.random.default_rng(2).integers(0, 256, (noisy, PAGE), np.uint8)
    memory[CHUNK : CHUNK + noisy * PAGE] = pages.reshape(-1)
    vmdump.dump([(0, memory)], tmp_path / "dump", format="kdump-lzo", layout="standard")
    dump = Kdump(tmp_path / "dump").check()
    begin = int(dump.descriptors["offset"][CHUNK // PAGE])
    assert (begin % PAGE == 0) == (noisy == 64)
