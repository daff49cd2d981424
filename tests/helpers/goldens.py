"""QEMU's own dumps, which `tests/data` holds packed."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
MACHINES = (
    "x86_64-q35",
    "i386-pc",
    "aarch64-virt",
    "arm-virt",
    "ppc-g3",
    "ppc64-pseries",
    "riscv64-virt",
)


def unpack_sparse(packed: Path, output: Path) -> None:
    """Unpack an .xz file, leaving runs of zeros as holes: the 256 MiB of a guest hold 3 MiB of data."""
    chunk_size = 65536
    with lzma.open(packed) as source, output.open("wb") as file:
        while chunk := source.read(chunk_size):
            if chunk.count(0) == len(chunk):
                file.seek(len(chunk), os.SEEK_CUR)
            else:
                file.write(chunk)
        file.truncate(file.tell())
