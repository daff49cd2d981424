"""Guests with pages of every type, and what makedumpfile excludes of them: `tests/data/filter`."""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import numpy as np

import vmdump
from helpers.goldens import DATA

KERNELS = ("6.1", "6.12", "7.3")


@cache
def memory(kernel: str) -> np.ndarray:
    """Give the ELF core of a guest; read-only."""
    core = (DATA / "filter" / f"x86_64-{kernel}" / "memory.elf.xz").read_bytes()
    return np.frombuffer(lzma.decompress(core), np.uint8)


def opened(kernel: str) -> Any:
    """Open the guest as a dump."""
    return vmdump.open(memory(kernel))


@cache
def expected(kernel: str, name: str = "expected") -> Any:
    """Give what makedumpfile made of it."""
    return json.loads((DATA / "filter" / f"x86_64-{kernel}" / f"{name}.json").read_text())


@cache
def bitmaps(kernel: str) -> dict[str, np.ndarray]:
    """Give makedumpfile's bitmaps by name, a bool for each page below max_mapnr."""
    pages = expected(kernel)["max_mapnr"]
    with np.load(DATA / "filter" / f"x86_64-{kernel}" / "bitmaps.npz") as packed:
        return {
            name: np.unpackbits(packed[name], bitorder="little")[:pages].astype(bool) for name in packed.files
        }
