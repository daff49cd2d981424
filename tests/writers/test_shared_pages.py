"""Identical pages are stored once, and everybody reads them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from oracles import judges
from oracles.flattened import Flattened
from oracles.kdump import Kdump

import vmdump
from vmdump.codecs.registry import engines

PAGE = 4096
DISTINCT = 300
COPIES = 9
"""Of each page, over three chunks of 4 MiB."""


def make_memory() -> np.ndarray:
    """Noise, text and zeros in an order in which copies are next to each other and far away."""
    rng = np.random.default_rng(5)
    pages = rng.integers(0, 256, (DISTINCT, PAGE), np.uint8)
    pages[::2] %= 7
    pages[0] = 0
    order = rng.permutation(np.repeat(np.arange(DISTINCT), COPIES))
    memory: np.ndarray = pages[order].reshape(-1)
    return memory


@pytest.fixture(scope="module")
def memory() -> np.ndarray:
    return make_memory()


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_readers(codec: str, layout: str, memory: np.ndarray, scratch: Path) -> None:
    path = scratch / "dump"
    report = vmdump.dump([(1 << 20, memory)], path, format=f"kdump-{codec}", layout=layout)
    assert report.plain_pages == (DISTINCT // 2) * COPIES
    assert report.zero_pages == COPIES
    standard = path
    if layout == "flattened":
        standard = scratch / "standard"
        Flattened(path).check().rearrange(standard)
    kdump = Kdump(standard).check()
    pages = memory.reshape(-1, PAGE)
    assert dict(kdump.pages()) == {256 + pfn: page.tobytes() for pfn, page in enumerate(pages)}
    places = np.unique(kdump.descriptors["offset"]).size
    # Two pages that want the same entry of the table push each other out.
    assert DISTINCT <= places <= 1.1 * DISTINCT
    ranges = [(1 << 20, len(memory) // 2), ((1 << 20) + len(memory) // 2, len(memory) // 2)]
    whole = memory.tobytes()
    halves = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    assert judges.libkdumpfile_read(standard, ranges) == halves
    with vmdump.open(path) as dump:
        assert dump.read(1 << 20, len(memory)) == whole


def test_same_guest_same_bytes(memory: np.ndarray, scratch: Path) -> None:
    files = set()
    for threads in (1, 2, 5, 1):
        vmdump.dump(memory, scratch / "dump", threads=threads, force=True)
        files.add((scratch / "dump").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize(
    "engine", [found.name for found in engines() if found.codec == "zlib" and not found.missing]
)
def test_guest_that_writes_meanwhile(engine: str, scratch: Path) -> None:
    """A page that changes while it is packed does not change another that held the same."""
    rng = np.random.default_rng(0)
    pages = rng.integers(0, 256, (1024, PAGE), np.uint8)
    memory = np.repeat(pages, 2, axis=0)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            memory[0::2, 100] ^= 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            vmdump.dump(memory.reshape(-1), scratch / "dump", engine=engine, threads=1, force=True)
            with vmdump.open(scratch / "dump") as dump:
                found = np.frombuffer(dump.read(0, memory.size), np.uint8).reshape(-1, PAGE)
            assert (found[1::2] == pages).all()
    finally:
        stop.set()
        writer.join()
