"""Pages that deflate engines store plain without trying: none would have become noticeably smaller."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels.engines import native_engines
from vmdump.kernels.pack import Packer

Sizes = npt.NDArray[np.uint32]
Rng = np.random.Generator
PAGE_SIZES = [4096, 8192, 16384, 32768, 65536]
COUNT = 32
SEED = 20_26

pytestmark = pytest.mark.skipif("zlib" not in native_engines(), reason="this build has no zlib")


def noise(rng: Rng, size: int) -> bytes:
    return rng.bytes(size)


def numbers(kind: str) -> Callable[[Rng, int], bytes]:
    return lambda rng, size: rng.normal(size=size // np.dtype(kind).itemsize).astype(kind).tobytes()


def zeros_in_noise(share: float) -> Callable[[Rng, int], bytes]:
    """Zeros at random places, that share of a page."""

    def page(rng: Rng, size: int) -> bytes:
        return np.where(rng.random(size) < share, 0, rng.integers(0, 256, size)).astype(np.uint8).tobytes()

    return page


def repeated(share: float) -> Callable[[Rng, int], bytes]:
    """Noise, the end of which is the beginning of it again."""

    def page(rng: Rng, size: int) -> bytes:
        again = int(size * share)
        head = rng.bytes(size - again)
        return head + head[:again]

    return page


def records(fields: str, length: int, words: int) -> Callable[[Rng, int], bytes]:
    """Records of `length` bytes of noise; at the offset in `fields` stands one of some words of noise."""
    offset, word_length = map(int, fields.split("+"))

    def page(rng: Rng, size: int) -> bytes:
        table = rng.integers(0, 256, (size // length + 1, length), dtype=np.uint8)
        vocabulary = rng.integers(0, 256, (words * size // 4096, word_length), dtype=np.uint8)
        table[:, offset : offset + word_length] = vocabulary[rng.integers(0, len(vocabulary), len(table))]
        return table.tobytes()[:size]

    return page


def text_in_noise(share: float) -> Callable[[Rng, int], bytes]:
    def page(rng: Rng, size: int) -> bytes:
        text = b" ".join(b"%d green bottles" % rng.integers(1000) for _ in range(size // 10))
        begin, length = int(rng.integers(size // 2)), int(size * share)
        mixed = bytearray(rng.bytes(size))
        mixed[begin : begin + length] = text[:length]
        return bytes(mixed)

    return page


def deflated(rng: Rng, size: int) -> bytes:
    words = [b"%x" % word for word in rng.integers(0, 1 << 20, 4000)]
    text = b" ".join(words[index] for index in rng.integers(0, 4000, size))
    return zlib.compress(text, 9)[100 : 100 + size]


KINDS: dict[str, Callable[[Rng, int], bytes]] = {
    "noise": noise,
    "deflated": deflated,
    "hex": lambda rng, size: rng.bytes(size // 2).hex().encode(),
    "base64": lambda rng, size: base64.b64encode(rng.bytes(size))[:size],
    "float32": numbers("f4"),
    "float64": numbers("f8"),
    **{f"{share:.0%} zeros": zeros_in_noise(share) for share in (0.01, 0.03, 0.1, 0.3)},
    **{f"{share:.1%} repeated": repeated(share) for share in (0.5, 0.25, 0.1, 0.05, 0.03)},
    **{f"{share:.0%} text": text_in_noise(share) for share in (0.5, 0.2, 0.1, 0.05)},
    "pointers": lambda rng, size: rng.integers(-1 << 46, (-1 << 46) + (1 << 36), size // 8).tobytes(),
    "small words": lambda rng, size: rng.integers(0, 1 << 14, size // 4, dtype=np.uint32).tobytes(),
    "64 words of 8 bytes": records("0+8", 16, 64),
    "64 words of 8 bytes, odd": records("3+8", 16, 64),
    "200 words of 6 bytes": records("1+6", 11, 200),
    "128 words of 5 bytes": records("1+5", 16, 128),
    "128 words of 4 bytes": records("0+4", 8, 128),
    "counting": lambda rng, size: np.arange(size // 4, dtype=np.uint32).tobytes(),
    "bytes in turn": lambda rng, size: (np.arange(size) * 7 % 256).astype(np.uint8).tobytes(),
}


def stored(page_size: int, mem: bytes) -> Sizes:
    """Bytes that a dump has of each page."""
    count = len(mem) // page_size
    packer = Packer("zlib", page_size, 1)
    sizes = np.empty(count, np.uint32)
    packer.pack(mem, np.empty(packer.bound(count), np.uint8), sizes)
    return sizes


def tried(page_size: int, mem: bytes) -> Sizes:
    """Bytes if zlib is asked about each page; all engines that ask first ask the same."""
    pages = (mem[begin : begin + page_size] for begin in range(0, len(mem), page_size))
    return np.array([min(len(zlib.compress(page, 1)), page_size) for page in pages], np.uint32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_all_that_zlib_makes_smaller_is_packed(page_size: int, kind: str) -> None:
    rng = np.random.default_rng(SEED)
    mem = b"".join(KINDS[kind](rng, page_size) for _ in range(COUNT))
    assert len(mem) == COUNT * page_size
    assert stored(page_size, mem).sum() <= tried(page_size, mem).sum() * 1.0005


@given(data=st.data())
def test_noise_with_repeats_in_it(data: st.DataObject) -> None:
    """However long and wherever the repeats are: no page loses more than 1 %."""
    page_size = data.draw(st.sampled_from([4096, 4096, 8192, 65536]))
    seed = data.draw(st.integers(0, 1 << 32))
    page = np.random.default_rng(seed).integers(0, 256, page_size, dtype=np.uint8)
    places = st.integers(0, page_size - 1)
    length = st.integers(1, 600)
    for begin, again, run in data.draw(st.lists(st.tuples(places, places, length), max_size=40)):
        run = min(run, page_size - begin, page_size - again)
        page[again : again + run] = page[begin : begin + run].copy()
    mem = page.tobytes()
    assert stored(page_size, mem)[0] - int(tried(page_size, mem)[0]) <= page_size // 100


@given(
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=256).filter(lambda weights: sum(weights) > 0),
    seed=st.integers(0, 1 << 32),
)
def test_bytes_that_are_not_equally_frequent(weights: list[float], seed: int) -> None:
    share = np.resize(np.array(weights), 256) + 0.5
    mem = np.random.default_rng(seed).choice(256, 4096, p=share / share.sum()).astype(np.uint8).tobytes()
    assert stored(4096, mem)[0] - int(tried(4096, mem)[0]) <= 40


@pytest.mark.parametrize("page_size", [1, 100, 4095, 4097, 6000, 12288, 1 << 17])
def test_other_page_sizes(page_size: int) -> None:
    mem = np.random.default_rng(SEED).bytes(page_size) + bytes(range(1, 200)) * (page_size // 199 + 1)
    mem = mem[: 2 * page_size]
    assert (stored(page_size, mem) <= tried(page_size, mem) * 1.0005).all()


def test_exact_is_what_zlib_does_with_each_page() -> None:
    """Three bytes that come twice, everywhere: zlib saves an eighth, and nothing in it looks like that."""
    table = np.random.default_rng(SEED).integers(0, 256, (8 * 4096 // 8, 8), np.uint8)
    table[::2, 4:7] = table[::2, :3]
    mem = table.tobytes() + np.random.default_rng(SEED).bytes(4096) + bytes(4096)
    pages = [mem[begin : begin + 4096] for begin in range(0, len(mem), 4096)]
    expected = [min(zlib.compress(page, 1), page, key=len) if any(page) else b"" for page in pages]
    assert sum(map(len, expected)) < stored(4096, mem).sum(), "such pages are packed without being asked to"

    packer = Packer("zlib", 4096, 1, exact=True)
    sizes = np.empty(len(pages), np.uint32)
    out = np.empty(packer.bound(len(pages)), np.uint8)
    used = packer.pack(mem, out, sizes)
    assert sizes.tolist() == [len(page) for page in expected]
    assert out[:used].tobytes() == b"".join(expected)
