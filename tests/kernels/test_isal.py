"""What ISA-L makes of a page depends on the page, the level and the page size, and on nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vmdump.kernels.engines import native_engines
from vmdump.kernels.pack import Packer

Bytes = npt.NDArray[np.uint8]
PAGE = 4096
CHUNK = 1024
BUCKETS = 8192  # of the hash table, for a page of this size at the levels 1 and 2

pytestmark = pytest.mark.skipif("isal" not in native_engines(), reason="this build has no ISA-L")


def pages_of_every_bucket(begin: int, end: int) -> Bytes:
    """Pages that begin with four bytes which come again at 68: ((end - begin) * PAGE,) uint8.

    The CRC-32C of the numbers 8 * 0 to 8 * 8191 has each value of its low 13 bits once, so whichever bucket
    gets an entry that is not made from the page, one of the 8192 pages loses its match.
    """
    pages = np.zeros((end - begin, PAGE), np.uint8)
    pages[:, 4:68] = np.random.default_rng(1).permutation(np.arange(128, 256))[:64]
    pages[:, :4] = pages[:, 68:72] = (8 * np.arange(begin, end, dtype="<u4")).view(np.uint8).reshape(-1, 4)
    pages[:, 72] = 255
    return pages.reshape(-1)


def pack(packer: Packer, mem: Bytes) -> bytes:
    """The sizes and the streams."""
    count = mem.size // PAGE
    out = np.empty(packer.bound(count), np.uint8)
    sizes = np.zeros(count, np.uint32)
    used = packer.pack(mem, out, sizes)
    return sizes.tobytes() + out[:used].tobytes()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_packer_makes_the_same_of_a_page(level: int) -> None:
    # All four at once, so that each has its state at an address of its own.
    packers = [Packer("isal", PAGE, level) for _ in range(4)]
    for begin in range(0, BUCKETS, CHUNK):
        mem = pages_of_every_bucket(begin, begin + CHUNK)
        assert len({pack(packer, mem) for packer in packers}) == 1
