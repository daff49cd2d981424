"""The kernels, one at a time, on pages like a guest's: ``pytest bench/test_kernels_bench.py``.

Every result says what it moved in MB/s (``extra_info``, of the fastest round); every run checks what it did.
"""

from __future__ import annotations

import os
import sysconfig
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vmdump.codecs.registry import Engine, engines, make_packer, make_unpacker
from vmdump.kernels import bits
from vmdump.kernels.cache import WriteCache
from vmdump.kernels.hash import KEY_WORDS
from vmdump.kernels.scan import NEW, ZERO, PageScan
from vmdump.kernels.zero import kernels, zero_pages

Bytes = npt.NDArray[np.uint8]
PAGE = 4096
PAGES = 4096
SEED = 1
MIX = {"zero": 0.25, "text": 0.25, "code": 0.25, "pointers": 0.15, "compressed": 0.05, "random": 0.05}
ENGINES = [engine for engine in engines() if not engine.missing]
KERNELS = [name for name, reason in kernels().items() if not reason]


def pools(rng: np.random.Generator) -> dict[str, bytes]:
    """What the kinds of pages are cut from."""
    library = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(library.glob("*.py")))
    code = b"".join(path.read_bytes() for path in sorted(Path(np.__path__[0]).rglob("_multiarray_umath*.so")))
    slab = np.repeat(rng.integers(0, 1 << 20, 1 << 17, dtype=np.uint64), 2) * np.uint64(64)
    pointers = (slab + np.uint64(0xFFFF_8880_0000_0000)).tobytes()
    return {
        "zero": bytes(1 << 20),
        "text": text,
        "code": code,
        "pointers": pointers,
        "compressed": zlib.compress(text, 9),
        "random": rng.bytes(1 << 21),
    }


@pytest.fixture(scope="module")
def pages() -> Bytes:
    """16 MiB of `MIX` in runs of 1 to 63 pages."""
    rng = np.random.default_rng(SEED)
    pool = pools(rng)
    result = np.zeros((PAGES, PAGE), np.uint8)
    at = 0
    while at < PAGES:
        source = np.frombuffer(pool[str(rng.choice(list(MIX), p=list(MIX.values())))], np.uint8)
        run = min(int(rng.integers(1, 64)), PAGES - at)
        begin = int(rng.integers(0, source.size // PAGE - run)) * PAGE
        result[at : at + run] = source[begin : begin + run * PAGE].reshape(run, PAGE)
        at += run
    return result.reshape(-1)


def rate(benchmark: Any, size: int) -> None:
    benchmark.extra_info["MB/s"] = round(size / benchmark.stats.stats.min / 1e6, 1)
    benchmark.extra_info["seed"] = SEED


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("content", ["zero", "mixed"])
def test_zero_pages(benchmark: Any, pages: Bytes, content: str, kernel: str) -> None:
    mem = np.tile(pages, 16)  # 256 MiB: beyond the caches
    if content == "zero":
        mem.fill(0)
    found = benchmark(zero_pages, mem, PAGE, kernel)
    assert found.all() == (content == "zero")
    rate(benchmark, mem.size)


@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_scan(benchmark: Any, pages: Bytes, tmp_path: Path, place: str, hashed: bool) -> None:
    path = tmp_path / "pages"
    path.write_bytes(pages)
    key = np.random.default_rng(SEED).integers(0, 1 << 64, KEY_WORDS, np.uint64) if hashed else None
    hashes = np.empty(PAGES, np.uint64) if hashed else None
    kinds, out = np.empty(PAGES, np.uint8), np.empty_like(pages)
    with path.open("rb") as file:
        runs = np.array([[0, pages.size, file.fileno(), 0]])
        mem = pages if place == "memory" else None
        scan = PageScan(mem, PAGE, runs=runs, page_count=PAGES, key=key, hashes=hashes)
        found = benchmark.pedantic(scan.read, (kinds, out), rounds=5, warmup_rounds=1)
    assert bits.equal(found, pages)
    assert np.array_equal(kinds, np.where(zero_pages(pages, PAGE), ZERO, NEW))
    rate(benchmark, pages.size)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_pack_and_unpack(benchmark: Any, pages: Bytes, engine: Engine) -> None:
    packer = make_packer(engine, PAGE)
    out = np.empty(packer.bound(PAGES), np.uint8)
    sizes = np.empty(PAGES, np.uint32)
    used = benchmark.pedantic(packer.pack, (pages, out, sizes), rounds=5, warmup_rounds=1)
    rate(benchmark, pages.size)
    benchmark.extra_info["ratio"] = round(used / pages.size, 3)
    back, _ = unpack(engine, out[:used], sizes)
    assert bits.equal(back, pages)


def unpack(engine: Engine, data: Bytes, sizes: npt.NDArray[np.uint32]) -> tuple[Bytes, Any]:
    offsets = np.cumsum(sizes, dtype=np.uint64) - sizes
    compressed = (sizes < PAGE).astype(np.uint8)
    back = np.empty(sizes.size * PAGE, np.uint8)
    unpacker = make_unpacker(engine.codec, PAGE, engine.name)
    unpacker.unpack(data, offsets, sizes, compressed, back)
    return back, (unpacker, (data, offsets, sizes, compressed, back))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_unpack(benchmark: Any, pages: Bytes, engine: Engine) -> None:
    """Every decoder of a codec gets the same streams: those of the codec's slowest, most thorough writer."""
    writer = [other for other in ENGINES if other.codec == engine.codec][-1]
    packer = make_packer(writer, PAGE)
    out = np.empty(packer.bound(PAGES), np.uint8)
    sizes = np.empty(PAGES, np.uint32)
    used = packer.pack(pages, out, sizes)
    _, (unpacker, arguments) = unpack(engine, out[:used], sizes)
    benchmark.pedantic(unpacker.unpack, arguments, rounds=5, warmup_rounds=1)
    assert bits.equal(arguments[-1], pages)
    rate(benchmark, pages.size)


@pytest.mark.parametrize("operation", ["set_range", "count", "runs"])
def test_bits(benchmark: Any, operation: str) -> None:
    bitmap = np.zeros(2 << 20, np.uint8)  # of a guest of 64 GiB
    end = bitmap.size * 8
    for begin in range(0, end, 4096):
        bits.set_range(bitmap, begin, begin + 1000)
    assert bits.count(bitmap, 0, end) == end // 4096 * 1000
    assert len(bits.runs(bitmap, 0, end)) == end // 4096
    benchmark(getattr(bits, operation), bitmap, 3, end - 3)
    rate(benchmark, bitmap.size)


@pytest.mark.parametrize("piece", [1000, 64 << 10, 4 << 20])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_cache_to_file(benchmark: Any, pages: Bytes, tmp_path: Path, direct: bool, piece: int) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    direct_fd = -1
    if direct:
        try:
            direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError as error:
            os.close(fd)
            pytest.skip(f"no O_DIRECT in {tmp_path}: {error.strerror}")

    def write() -> None:
        cache = WriteCache(fd, seekable=True, direct_fd=direct_fd)
        view = memoryview(pages)
        for begin in range(0, pages.size, piece):
            cache.write(view[begin : begin + piece])
        cache.flush()

    try:
        benchmark.pedantic(write, rounds=5, warmup_rounds=1)
    finally:
        os.close(fd)
        if direct:
            os.close(direct_fd)
    assert path.read_bytes() == pages.tobytes()
    rate(benchmark, pages.size)


def test_cache_to_pipe(benchmark: Any, pages: Bytes) -> None:
    reading, writing = os.pipe()
    total = 0

    def drain() -> None:
        nonlocal total
        while piece := os.read(reading, 1 << 20):
            total += len(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    rounds = 5

    def write() -> None:
        cache = WriteCache(writing, seekable=False)
        cache.write(pages)
        cache.flush()

    try:
        benchmark.pedantic(write, rounds=rounds)
    finally:
        os.close(writing)
        reader.join()
        os.close(reading)
    assert total == rounds * pages.size
    rate(benchmark, pages.size)
