"""The same guest gives the same bytes, whatever the number of threads and whichever worker took a chunk."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump

import vmdump
from vmdump.codecs.registry import engines, make_packer

GUEST = "synthetic:64M?seed=3&fill=0.5"
PAGE = 4096


@pytest.mark.parametrize("layout", ["standard", "flattened"])
@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo"])
def test_threads_do_not_change_the_file(name: str, layout: str, run_vmdump: RunVmdump, scratch: Path) -> None:
    if (name, layout) == ("elf", "flattened"):
        layout = "auto"
    files = []
    for threads in (1, 2, 5):
        output = scratch / str(threads)
        options = ("-f", name, "--layout", layout, "-j", threads)
        done = run_vmdump("dump", GUEST, output, *options)
        assert done.returncode == 0, done.stderr
        files.append(output.read_bytes())
    assert files[0] == files[1] == files[2]


class ShakyMemory:
    """Memory that takes its time: workers overtake each other in an order that the seed decides."""

    def __init__(self, memory: vmdump.Memory, seed: int) -> None:
        self._memory = memory
        self._random = random.Random(seed)

    @property
    def size(self) -> int:
        return self._memory.size

    @property
    def copies(self) -> bool:
        return self._memory.copies

    def extents(self) -> Iterator[tuple[int, int]]:
        return self._memory.extents()

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        time.sleep(self._random.choice((0, 0, 0, 0.01)))
        return self._memory.view(offset, length, scratch)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-zstd"])
def test_workers_that_overtake_each_other(name: str, scratch: Path) -> None:
    files = []
    for seed in range(4):
        with vmdump.open_source(GUEST) as source:
            blocks = [vmdump.Block(b.start, ShakyMemory(b.memory, seed)) for b in source.blocks]
            guest = vmdump.BlockSource(blocks, notes=source.notes)
            vmdump.dump(guest, scratch / str(seed), format=name, threads=4)
        files.append((scratch / str(seed)).read_bytes())
    assert all(data == files[0] for data in files)


@pytest.mark.parametrize(
    ("codec", "engine"), [(engine.codec, engine.name) for engine in engines() if not engine.missing]
)
def test_every_packer_gives_the_same_bytes(codec: str, engine: str) -> None:
    """Workers have packers of their own: what a packer's memory is and where it lies must not show.

    ISA-L 2.30 hashes an address of its own at level 1: left alone, 1 in 30 of its contexts packs 1 in 500
    such pages to other bytes.
    """
    chosen = next(one for one in engines() if (one.codec, one.name) == (codec, engine))
    with vmdump.open_source(GUEST) as source:
        memory = np.frombuffer(source.read(0x10_0000, 8 << 20), np.uint8).reshape(-1, PAGE)
    pages = memory[memory.any(axis=1)][:512].reshape(-1)
    churn = random.Random(1)
    used_heap: list[bytes | None] = [None] * 4000

    def pack() -> bytes:
        for _ in range(50):
            used_heap[churn.randrange(len(used_heap))] = bytes(churn.randrange(1, 200_000))
        packer = make_packer(chosen, PAGE, None)
        out = np.empty(packer.bound(512), np.uint8)
        sizes = np.empty(512, np.uint32)
        used = packer.pack(pages, out, sizes)
        return sizes.tobytes() + out[:used].tobytes()

    reference = pack()
    assert sum(pack() != reference for _ in range(150)) == 0
