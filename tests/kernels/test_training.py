"""ISA-L's level 0 with codes that are fitted to a sample: smaller, always the same, right for any page."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib

import numpy as np
import numpy.typing as npt
import pytest

from vmdump.codecs.registry import Engine, engines, make_packer
from vmdump.kernels.engines import native_engines
from vmdump.kernels.pack import Packer

Bytes = npt.NDArray[np.uint8]
PAGE = 4096
USABLE = [engine for engine in engines() if not engine.missing]

needs_isal = pytest.mark.skipif("isal" not in native_engines(), reason="this build has no ISA-L")


def text(count: int, seed: int = 1) -> bytes:
    """Pages of hexadecimal numbers."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 1 << 28, count * PAGE // 5).tolist()
    return b"".join(b"%x " % number for number in numbers)[: count * PAGE]


def noise(count: int, seed: int = 2) -> bytes:
    return np.random.default_rng(seed).bytes(count * PAGE)


def trained(pages: bytes, page_size: int = PAGE) -> Packer:
    packer = Packer("isal", page_size, 0)
    assert packer.train(pages) is True
    return packer


def pack(packer: Packer, mem: bytes) -> tuple[bytes, list[int]]:
    """The streams and sizes; nothing is written behind the end."""
    count = len(mem) // packer.page_size
    out = np.full(packer.bound(count) + 64, 0xA5, np.uint8)
    sizes = np.zeros(count, np.uint32)
    used = packer.pack(mem, out[:-64], sizes)
    assert (out[-64:] == 0xA5).all()
    return out[:used].tobytes(), sizes.tolist()


def unpacked(data: bytes, sizes: list[int], page_size: int = PAGE) -> bytes:
    """The pages, by zlib."""
    pages, at = [], 0
    for size in sizes:
        stored, at = data[at : at + size], at + size
        pages.append(stored if size == page_size else zlib.decompress(stored) if size else bytes(page_size))
    assert at == len(data)
    return b"".join(pages)


@needs_isal
def test_pages_like_the_sample_become_smaller() -> None:
    mem = text(64, seed=3)
    data, sizes = pack(trained(text(256)), mem)
    assert unpacked(data, sizes) == mem
    assert len(data) < 0.95 * len(pack(Packer("isal", PAGE, 0), mem)[0])


@needs_isal
@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 65536])
def test_pages_unlike_the_sample(page_size: int) -> None:
    """Every symbol has a code, and a page that outgrows its room is stored plain."""
    rng = np.random.default_rng(page_size)
    pages = np.zeros((9, page_size), np.uint8)
    pages[0] = rng.integers(0, 256, page_size)
    pages[1] = rng.integers(128, 256, page_size)  # no symbol that the sample has: the longest codes
    pages[2, : page_size // 2] = rng.integers(0, 256, page_size // 2)
    pages[3] = np.arange(page_size) // 3
    pages[4] = np.resize(rng.integers(0, 256, 300), page_size)
    pages[5] = np.repeat(rng.integers(0, 256, page_size // 4), 4)
    pages[6] = np.where(rng.random(page_size) < 0.3, 0, rng.integers(0, 256, page_size))
    pages[7] = np.resize(np.frombuffer(text(1), np.uint8), page_size)
    mem = pages.tobytes()
    for sample in (text(256), b"\1" * (64 * page_size), bytes(64 * page_size)):
        data, sizes = pack(trained(sample, page_size), mem)
        assert unpacked(data, sizes, page_size) == mem
        assert sizes[:2] == [page_size, page_size] or sample != text(256)
        assert max(sizes) <= page_size
        assert sizes[8] == 0


@needs_isal
def test_the_same_sample_gives_the_same_bytes() -> None:
    sample, mem = text(40) + noise(20), text(100, seed=5) + noise(3)
    # All at once, so that each has its state, and its sample, at an address of its own.
    packers = [Packer("isal", PAGE, 0) for _ in range(20)]
    for shift, packer in enumerate(packers):
        assert packer.train(memoryview(bytes(shift) + sample)[shift:])
    assert len({pack(packer, mem)[0] for packer in packers}) == 1
    assert pack(trained(text(40, seed=6)), mem) != pack(packers[0], mem)


@needs_isal
def test_another_process_gives_the_same_bytes() -> None:
    program = (
        "import sys; import numpy as np; from vmdump.kernels.pack import Packer\n"
        f"data = sys.stdin.buffer.read(); p = Packer('isal', {PAGE}, 0); p.train(data[:{40 * PAGE}])\n"
        f"out = np.empty(p.bound(len(data) // {PAGE}), np.uint8)\n"
        f"sys.stdout.buffer.write(out[:p.pack(data, out, np.empty(len(data) // {PAGE}, np.uint32))])\n"
    )
    mem = text(40) + text(100, seed=5)
    expected = hashlib.sha256(pack(trained(mem[: 40 * PAGE]), mem)[0])
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], input=mem, capture_output=True, check=True)
        assert hashlib.sha256(done.stdout).digest() == expected.digest()


@needs_isal
def test_noise_has_no_say() -> None:
    mem = text(10, seed=5)
    assert pack(trained(noise(30) + text(40) + noise(50, seed=7)), mem) == pack(trained(text(40)), mem)


@needs_isal
def test_too_few_pages_teach_nothing() -> None:
    mem = text(10, seed=5)
    untrained = pack(Packer("isal", PAGE, 0), mem)
    assert pack(trained(b""), mem) == untrained
    assert pack(trained(text(15) + noise(100)), mem) == untrained
    assert pack(trained(text(16)), mem) != untrained


@needs_isal
def test_the_last_training_counts() -> None:
    mem = text(10, seed=5)
    packer = trained(b"\1\2\3" * (100 * PAGE))
    assert packer.train(text(40))
    assert pack(packer, mem) == pack(trained(text(40)), mem)


@pytest.mark.parametrize("engine", USABLE, ids=lambda engine: engine.name)
def test_only_one_level_is_trained(engine: Engine) -> None:
    assert (engine.trained_level == 0) == (engine.name == "isal")
    mem = text(10, seed=5)
    for level in range(engine.min_level, engine.max_level + 1):
        results = []
        for sample in (None, text(40)):
            packer = make_packer(engine, PAGE, level)
            if sample is not None:
                assert packer.train(sample) == (level == engine.trained_level)
            out = np.empty(packer.bound(10), np.uint8)
            results.append(out[: packer.pack(mem, out, np.empty(10, np.uint32))].tobytes())
        assert (results[0] == results[1]) == (level != engine.trained_level)


@needs_isal
def test_a_sample_is_whole_pages() -> None:
    with pytest.raises(ValueError, match="not a whole number of pages"):
        Packer("isal", PAGE, 0).train(bytes(PAGE + 1))
