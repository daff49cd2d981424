"""Dumps whose packers are trained on the guest: on which pages, and that nothing else changes the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import vmdump
from vmdump.kernels.engines import native_engines
from vmdump.kernels.pack import Packer
from vmdump.pipeline.training import training_pages

Bytes = npt.NDArray[np.uint8]
GUEST = "synthetic:64M?seed=3&fill=0.5"
PAGE = 4096


class Holey:
    """Memory that must be read at `begin`..`end` only; every second page there is zeros, the others count."""

    copies = True

    def __init__(self, size: int, begin: int, end: int) -> None:
        self.size = size
        self._extent = (begin, end)

    def extents(self) -> Iterator[tuple[int, int]]:
        yield self._extent

    def view(self, offset: int, length: int, scratch: Bytes) -> Bytes:
        assert self._extent[0] <= offset
        assert offset + length <= self._extent[1]
        pages = scratch[:length].reshape(-1, PAGE)
        numbers = offset // PAGE + np.arange(len(pages), dtype=np.uint32)
        pages.view(np.uint32)[:] = np.where(numbers % 2, numbers, 0)[:, np.newaxis]
        return scratch[:length]


def test_training_pages() -> None:
    blocks = [vmdump.Block(0, Holey(8 << 30, 1 << 30, 3 << 30)), vmdump.Block(8 << 30, Holey(PAGE, 0, PAGE))]
    pages = training_pages(blocks, page_size=PAGE)
    assert pages.flags.c_contiguous
    assert 128 * PAGE <= pages.size <= 256 * PAGE
    numbers = pages.view(np.uint32).reshape(-1, PAGE // 4)
    assert (numbers == numbers[:, :1]).all()
    assert (numbers % 2 == 1).all()
    # From everywhere: no gap is longer than a sixteenth of all pages.
    places = np.sort(np.concatenate([[1 << 18, 3 << 18], numbers[:, 0]]))
    assert np.diff(places).max() <= (2 << 18) // 16
    assert np.array_equal(pages, training_pages(blocks, page_size=PAGE))


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_training_pages_of_small_guests(page_size: int) -> None:
    memory = np.zeros(8 * page_size, np.uint8)
    blocks = vmdump.BlockSource(memory).blocks
    assert training_pages(blocks, page_size=page_size).size == 0
    memory[5 * page_size] = 1
    page = memory[5 * page_size : 6 * page_size]
    assert np.array_equal(training_pages(blocks, page_size=page_size), page)


@pytest.mark.skipif("isal" not in native_engines(), reason="this build has no ISA-L")
def test_dump_with_a_trained_engine(scratch: Path) -> None:
    reports = {}
    for threads in (1, 4):
        for level in (0, 1):
            output = scratch / f"{level}-{threads}"
            reports[level, threads] = vmdump.dump(
                GUEST, output, format="kdump-zlib", engine="isal", level=level, threads=threads
            )
    assert (scratch / "0-1").read_bytes() == (scratch / "0-4").read_bytes()
    assert reports[0, 1].output_bytes > reports[1, 1].output_bytes
    untrained, trained = Packer("isal", PAGE, 0), Packer("isal", PAGE, 0)
    packed = {untrained: 0, trained: 0}
    with vmdump.open(scratch / "0-4") as dump, vmdump.open_source(GUEST) as guest:
        trained.train(training_pages(guest.blocks, page_size=PAGE))
        for block in guest.blocks:
            memory = guest.read(block.start, block.size)
            assert dump.read(block.start, block.size) == memory
            for packer in packed:
                sizes = np.empty(block.size // PAGE, np.uint32)
                packed[packer] += packer.pack(memory, np.empty(packer.bound(len(sizes)), np.uint8), sizes)
    # Even with all that is no page data, the file is smaller than the pages are without training.
    assert packed[trained] < reports[0, 1].output_bytes < packed[untrained]
