"""Types of pages, and memcpy of the same struct pages: ``pytest bench/test_page_types_bench.py``.

The struct pages of 64 GiB are those of a guest of 256 MiB with pages of every type, over and over.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vmdump
from vmdump.guest.linux.page_types.arrays import find_arrays
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.kernels.page_types import KERNEL, UNREADABLE, PageTyper

Bytes = npt.NDArray[np.uint8]
CORE = Path(__file__).parents[1] / "tests/data/filter/x86_64-6.12/memory.elf.xz"
GIB = 64
SECTION = 1 << 15
"""Pages told at once, as a dump does it."""


@pytest.fixture(scope="module")
def guest() -> tuple[PageTyper, Bytes]:
    with vmdump.open(np.frombuffer(lzma.decompress(CORE.read_bytes()), np.uint8)) as dump:
        layout = PageLayout.of(dump.vmcoreinfo, 8, "little")
        array = find_arrays(dump, dump.vmcoreinfo, layout.size)[0]
        structs = np.frombuffer(dump.read_virtual(array.address, array.pages * layout.size), np.uint8)
    return layout.typer(), np.tile(structs, (GIB << 18) // array.pages)


def rate(benchmark: Any) -> None:
    benchmark.extra_info["ms per GiB of guest"] = round(benchmark.stats.stats.median * 1e3 / GIB, 2)


def test_types(benchmark: Any, guest: tuple[PageTyper, Bytes]) -> None:
    typer, structs = guest
    types = np.zeros(GIB << 18, np.uint8)

    def tell() -> None:
        for first in range(0, types.size, SECTION):
            typer.tell(structs[first * 64 : (first + SECTION) * 64], first, types[first : first + SECTION])

    benchmark.pedantic(tell, rounds=5, warmup_rounds=1)
    assert (types > UNREADABLE).all()
    assert (types == KERNEL).any()
    rate(benchmark)


def test_memcpy(benchmark: Any, guest: tuple[PageTyper, Bytes]) -> None:
    _, structs = guest
    copy = np.empty_like(structs)

    def run() -> None:
        for begin in range(0, structs.size, SECTION * 64):
            copy[begin : begin + SECTION * 64] = structs[begin : begin + SECTION * 64]

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    rate(benchmark)
