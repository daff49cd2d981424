"""The page hash against its definition in whole numbers, and against every small change of a page."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels.hash import KEY_WORDS, hash_pages

PAGE = 4096
SEED = 0x6861_7368
SIZES = (64, 128, 960, 1024, 1088, 2048, PAGE, 5056, 16384, 65536)
ROOT = Path(__file__).resolve().parents[2]

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


def random_words(count: int, seed: int = SEED) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << 64, count, np.uint64)


def random_bytes(count: int, seed: int = SEED + 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


KEY = random_words(KEY_WORDS)


def hashes(data: npt.NDArray[Any], page_size: int = PAGE, key: Words = KEY) -> Words:
    flat = data.reshape(-1).view(np.uint8)
    out = np.zeros(flat.size // page_size, np.uint64)
    hash_pages(flat, page_size, key, out)
    return out


def reference(page: bytes, key: list[int]) -> int:
    """NH of each KiB, a polynomial modulo 2^127 - 1, and the multilinear hash: see csrc/hash.c."""
    nh_key, numbers = (
        key[:128],
        [low | high << 64 for low, high in zip(key[128::2], key[129::2], strict=True)],
    )
    x, y, a, b, c = numbers
    x, y = x % 2**126, y % 2**126
    words = struct.unpack(f"={len(page) // 8}Q", page)
    acc = 0
    for begin in range(0, len(words), 128):
        factors = [(word + k) % 2**64 for word, k in zip(words[begin : begin + 128], nh_key, strict=False)]
        nh = sum(left * right for left, right in zip(factors[::2], factors[1::2], strict=True)) % 2**128
        acc = (acc * x + (nh >> 64) * y + nh % 2**64) % (2**127 - 1)
    return (a + b * (acc % 2**64) + c * (acc >> 64)) % 2**128 >> 64


def expected(data: npt.NDArray[Any], page_size: int = PAGE, key: Words = KEY) -> list[int]:
    raw = data.tobytes()
    return [reference(raw[at : at + page_size], key.tolist()) for at in range(0, len(raw), page_size)]


# Words at which sums carry and factors vanish.
edge_words = st.sampled_from(
    (0, 1, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)
)
any_words = edge_words | st.integers(0, (1 << 64) - 1)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bytes, int, Words], list[int]]:
    """The same source without 128-bit integers, as on a 32-bit machine."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not shutil.which(compiler[0]):
        assert os.environ.get("CI") != "true", f"no {compiler[0]}, and CI=true demands it"
        pytest.skip(f"the compiler {compiler[0]} is not installed")
    target = tmp_path_factory.mktemp("narrow") / "hash.so"
    flags = ["-std=c11", "-O1", "-fPIC", "-shared", "-U__SIZEOF_INT128__", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*compiler, *flags, str(ROOT / "csrc/hash.c"), "-o", str(target)], check=True)
    function = ctypes.CDLL(str(target)).vmd_hash_pages
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]

    def call(data: Bytes, page_size: int, key: Words) -> list[int]:
        out = np.zeros(data.size // page_size, np.uint64)
        function(data.ctypes.data, page_size, out.size, key.ctypes.data, out.ctypes.data)
        return out.tolist()

    return call


@pytest.mark.parametrize("size", SIZES)
def test_equals_its_definition(size: int) -> None:
    data = random_bytes(3 * size)
    assert hashes(data, size).tolist() == expected(data, size)


@given(
    key=st.lists(any_words, min_size=KEY_WORDS, max_size=KEY_WORDS)
    | edge_words.map(lambda w: [w] * KEY_WORDS),
    pattern=st.lists(any_words, min_size=1, max_size=24),
    size=st.sampled_from((64, 1024, 1088, PAGE)),
)
def test_equals_its_definition_at_the_edges(
    narrow: Callable[[Bytes, int, Words], list[int]], key: list[int], pattern: list[int], size: int
) -> None:
    data = np.resize(np.array(pattern, np.uint64), size // 8).view(np.uint8)
    words = np.array(key, np.uint64)
    assert hashes(data, size, words).tolist() == expected(data, size, words) == narrow(data, size, words)


@pytest.mark.parametrize("total", [2**127 - 2, 2**127 - 1, 2**127])
def test_polynomial_at_its_modulus(narrow: Callable[[Bytes, int, Words], list[int]], total: int) -> None:
    """With an empty key in stage 1, x = 1 and y = 2^64, the polynomial is the sum of two products."""
    key = np.zeros(KEY_WORDS, np.uint64)
    key[[128, 131]] = 1
    key[132:] = random_words(6)
    product = (1 << 63) * ((1 << 64) - 1)
    data = np.zeros((2, 128), np.uint64)
    data[0, :2] = 1 << 63, (1 << 64) - 1
    data[1, :2] = total - product, 1
    a, b, c = (int(key[at]) + (int(key[at + 1]) << 64) for at in (132, 134, 136))
    rest = total % (2**127 - 1)
    by_hand = (a + b * (rest % 2**64) + c * (rest >> 64)) % 2**128 >> 64
    flat = data.reshape(-1).view(np.uint8)
    assert hashes(flat, 2048, key).tolist() == [by_hand] == narrow(flat, 2048, key)


@pytest.mark.parametrize("size", SIZES)
def test_without_128_bit_integers(narrow: Callable[[Bytes, int, Words], list[int]], size: int) -> None:
    data = random_bytes(3 * size)
    assert narrow(data, size, KEY) == hashes(data, size).tolist()


def test_unaligned_start_and_nothing_beyond() -> None:
    data = random_bytes(2 * PAGE)
    wanted = expected(data)
    for start in (*range(1, 17), 63):
        for rest in (0x00, 0xFF):
            room = np.full(3 * PAGE, rest, np.uint8)
            window = room[start : start + 2 * PAGE]
            window[:] = data
            assert hashes(window).tolist() == wanted, start


def test_pages_are_independent_and_neighbours_of_the_result_are_left_alone() -> None:
    data = random_bytes(5 * PAGE)
    data[PAGE : 2 * PAGE] = data[3 * PAGE : 4 * PAGE]
    out = np.full(7, 12345, np.uint64)
    hash_pages(data, PAGE, KEY, out[1:6])
    assert out.tolist() == [12345, *expected(data), 12345]
    assert out[2] == out[4]
    assert len(set(out[1:6].tolist())) == 4


def test_every_bit_counts() -> None:
    page = random_bytes(PAGE)
    found = [hashes(page)]
    for begin in range(0, PAGE, 256):
        pages = np.tile(page, (256 * 8, 1))
        flips = np.arange(256 * 8)
        pages[flips, begin + flips // 8] ^= (1 << flips % 8).astype(np.uint8)
        found.append(hashes(pages))
    assert np.unique(np.concatenate(found)).size == 8 * PAGE + 1


@pytest.mark.parametrize("unit", [8, 64, 1024])
def test_order_counts(unit: int) -> None:
    page = random_bytes(PAGE).reshape(-1, unit)
    found = [hashes(page)]
    for left in range(len(page) - 1):
        right = np.arange(left + 1, len(page))
        pages = np.tile(page, (right.size, 1, 1))
        pages[:, left] = page[right]
        pages[np.arange(right.size), right] = page[left]
        found.append(hashes(pages))
    units = len(page)
    assert np.unique(np.concatenate(found)).size == units * (units - 1) // 2 + 1


def first_word(pages: Words, counter: Words) -> None:
    pages[:, 0] = counter


def last_word_of_ones(pages: Words, counter: Words) -> None:
    pages[:, -1] = counter


def every_word(pages: Words, counter: Words) -> None:
    pages[:] = counter[:, np.newaxis]


def both_factors(pages: Words, counter: Words) -> None:
    pages[:, 100] = counter >> np.uint64(10)
    pages[:, 101] = counter & np.uint64(1023)


def two_blocks(pages: Words, counter: Words) -> None:
    pages[:, 6] = counter >> np.uint64(10)
    pages[:, 6 + 3 * 128] = counter & np.uint64(1023)


def a_bit_in_each_half(pages: Words, counter: Words) -> None:
    pages[:] = 0
    rows, low, high = np.arange(len(counter)), counter & np.uint64(1023), counter >> np.uint64(10)
    pages[rows, (low % np.uint64(256)).astype(np.intp)] = np.uint64(1) << (low // np.uint64(256))
    pages[rows, (high % np.uint64(256) + np.uint64(256)).astype(np.intp)] = np.uint64(1) << (
        high // np.uint64(256)
    )


@pytest.mark.parametrize(
    ("fill", "background"),
    [
        (first_word, 0),
        (last_word_of_ones, (1 << 64) - 1),
        (every_word, 0),
        (both_factors, 0),
        (two_blocks, 0),
        (a_bit_in_each_half, 0),
    ],
)
def test_dull_pages_do_not_collide(fill: Callable[[Words, Words], None], background: int) -> None:
    count, step = 1 << 20, 1 << 12
    pages = np.full((step, PAGE // 8), background, np.uint64)
    ends = np.zeros((2, PAGE // 8), np.uint64)
    ends[1] = (1 << 64) - 1
    found = np.zeros(count, np.uint64)
    for begin in range(0, count, step):
        fill(pages, np.arange(begin, begin + step, dtype=np.uint64))
        hash_pages(pages.reshape(-1).view(np.uint8), PAGE, KEY, found[begin : begin + step])
    # Where the counter is 0 on nothing but zeros, that is the zero page itself.
    zero_is_one_of_them = fill not in (last_word_of_ones, a_bit_in_each_half)
    distinct = np.unique(np.concatenate((found, hashes(ends)))).size
    assert distinct == count + (1 if zero_is_one_of_them else 2)


def test_pages_made_of_the_key() -> None:
    """Whoever knew the key could make factors zero; still that is not the page of zeros."""
    zero = np.zeros(PAGE // 8, np.uint64)
    whole = np.resize(KEY[:128], PAGE // 8)
    pages = [zero, whole, ~whole, np.negative(whole)]
    for source in pages[1:]:
        for position in range(128):
            pages.append(zero.copy())
            pages[-1][position] = source[position]
    found = [int(hashes(page)[0]) for page in pages]
    assert found[0] not in found[1:]


def test_every_word_of_the_key_counts() -> None:
    """In 256 pages: the lower word of a does no more than carry, for this bit in one page of eight."""
    data = random_bytes(256 * PAGE)
    found = {hashes(data).tobytes()}
    for position in range(KEY_WORDS):
        key = KEY.copy()
        key[position] ^= np.uint64(1 << 61)
        found.add(hashes(data, key=key).tobytes())
    assert len(found) == KEY_WORDS + 1


def test_read_only_and_bytes() -> None:
    data, key = random_bytes(PAGE), KEY.copy()
    data.flags.writeable = key.flags.writeable = False
    assert hashes(data, key=key).tolist() == expected(data)
    out = np.zeros(1, np.uint64)
    hash_pages(data.tobytes(), PAGE, key, out)
    assert out.tolist() == expected(data)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        hash_pages(data, PAGE, key, out)


@pytest.mark.parametrize(
    ("length", "page_size", "key_words", "room", "message"),
    [
        (128, 0, KEY_WORDS, 2, "page_size: 0 is not a positive multiple of 64"),
        (128, -64, KEY_WORDS, 2, "page_size: -64 is not a positive multiple of 64"),
        (128, 32, KEY_WORDS, 4, "page_size: 32 is not a positive multiple of 64"),
        (192, 96, KEY_WORDS, 2, "page_size: 96 is not a positive multiple of 64"),
        (191, 64, KEY_WORDS, 2, "data: 191 bytes are not a whole number of pages of 64"),
        (64, 1 << 70, KEY_WORDS, 0, f"data: 64 bytes are not a whole number of pages of {1 << 70}"),
        (128, 64, KEY_WORDS - 1, 2, f"key: {KEY_WORDS - 1} words, but a key has {KEY_WORDS}"),
        (128, 64, KEY_WORDS + 1, 2, f"key: {KEY_WORDS + 1} words, but a key has {KEY_WORDS}"),
        (128, 64, KEY_WORDS, 1, "out: room for 1 hashes, but there are 2 pages"),
        (128, 64, KEY_WORDS, 3, "out: room for 3 hashes, but there are 2 pages"),
        (0, 64, KEY_WORDS, 1, "out: room for 1 hashes, but there are 0 pages"),
    ],
)
def test_sizes_are_checked(length: int, page_size: int, key_words: int, room: int, message: str) -> None:
    out = np.zeros(room, np.uint64)
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        hash_pages(np.ones(length, np.uint8), page_size, np.ones(key_words, np.uint64), out)
    assert not out.any()


def test_wrong_types_are_refused() -> None:
    data, out = np.zeros(128, np.uint8), np.zeros(2, np.uint64)
    for bad in (
        (data.view(np.uint64), 64, KEY, out),
        (data.reshape(2, 64), 64, KEY, out),
        (np.zeros(256, np.uint8)[::2], 64, KEY, out),
        (data, 64, KEY.view(np.uint8), out),
        (data, 64, KEY, np.zeros(2, np.uint32)),
    ):
        with pytest.raises(ValueError, match=r"Buffer|contiguous"):
            hash_pages(*bad)
    assert not out.any()


def test_nothing_to_hash() -> None:
    hash_pages(b"", 64, KEY, np.zeros(0, np.uint64))
    hash_pages(b"", 1 << 70, KEY, np.zeros(0, np.uint64))
