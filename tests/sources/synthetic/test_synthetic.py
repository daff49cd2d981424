"""The synthetic guest: its layout, its pages, and that they are the same however they are asked for."""

from __future__ import annotations

import hashlib
import threading
import zlib

import lzo
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.errors import RequestError
from vmdump.guest.blocks import Block
from vmdump.sources.synthetic.guest import SyntheticSource, open_synthetic

PAGE = 4096
REGION = 2 << 20
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40

# SHA-256 of pages of SyntheticSource(1 GiB): who changes the guest changes these on purpose.
PINNED = {
    "text": (0x10475000, "7b0414c76ef9f3e84ef1abd281b9caea8269f015b8f93733fd571bd3ff1daf51"),
    "code": (0x105A4000, "eb3a5778a6e65dbcb991c13d5617e72c5e537b99b182b7bbb57d4fb57e695b73"),
    "objects": (0x10423000, "3ab2b4b1c1ba51283a159747f1cc74f7da66f858d8b80b6ebe8c224c6f4b43c1"),
    "sparse": (0x10448000, "06264543a92974d1e8788338a83b69312a3c610123a3c12c89f57227a31a8957"),
    "compressed": (0x108A9000, "f708670fd057248bbb68f0900bcfe63de96a1db6ab2bb02d66633d1764e56a3c"),
    "random": (0x108CE000, "5b19f300721507e5da5de9524815bee68a7f0e9718c4143ce2b3051b1a7075da"),
    "base memory": (0x0, "a1bd81ed3dff857338609759220672a34a3f5b6fec27d8b793085c39e3caf463"),
    "kernel text": (0x20000000, "6cd4dd060a1d94c4b9ebaf2016f7096fd307bf77087c1f6b5635fa5b3ea6e389"),
    "vmcoreinfo": (0x20100000, "fdf597873cf7a6916c4341f5b54f411ecc54b82fad4feffcdcd09bc813266e7e"),
    "firmware": (0xFFFFC000, "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7"),
}


def contents(block: Block) -> np.ndarray:
    """All pages of a block, (n, 4096) uint8."""
    return block.memory.view(0, block.size, np.full(block.size, 0xAA, np.uint8)).reshape(-1, PAGE)


@pytest.fixture(scope="module")
def guest() -> SyntheticSource:
    return SyntheticSource(256 * MIB)


@pytest.fixture(scope="module")
def pages(guest: SyntheticSource) -> np.ndarray:
    return np.concatenate([contents(block) for block in guest.blocks])


@pytest.mark.parametrize(
    ("size", "ranges"),
    [
        (2 * MIB, [(0x100000, 0x200000)]),
        (64 * MIB + PAGE, [(0x100000, 0x4001000)]),
        (2 * GIB, [(0x100000, 0x80000000)]),
        (3 * GIB, [(0x100000, 0x80000000), (0x100000000, 0x140000000)]),
        (1 * TIB, [(0x100000, 0x80000000), (0x100000000, 0x10080000000)]),
    ],
)
def test_blocks_are_those_of_a_q35_guest(size: int, ranges: list[tuple[int, int]]) -> None:
    blocks = [(block.start, block.end) for block in SyntheticSource(size).blocks]
    assert blocks == sorted([(0, 0xA0000), (0xFFFC0000, 0x100000000), *ranges])


@pytest.mark.parametrize("kind", PINNED)
def test_pages_never_change(kind: str) -> None:
    address, digest = PINNED[kind]
    assert hashlib.sha256(SyntheticSource(GIB).read(address, PAGE)).hexdigest() == digest


def test_seed_and_fill_make_another_guest(pages: np.ndarray) -> None:
    for other in (SyntheticSource(256 * MIB, seed=2), SyntheticSource(256 * MIB, fill=0.31)):
        same = np.concatenate([contents(block) for block in other.blocks]) == pages
        assert not same.all()


@given(offset=st.integers(0, 8 * MIB - 1), length=st.integers(0, 40000))
def test_a_page_is_the_same_however_it_is_asked_for(guest: SyntheticSource, offset: int, length: int) -> None:
    memory = guest.blocks[1].memory
    whole = memory.view(0, 8 * MIB, np.empty(8 * MIB, np.uint8))
    length = min(length, 8 * MIB - offset)
    scratch = np.full(length + 3, 0xAA, np.uint8)
    assert np.array_equal(memory.view(offset, length, scratch), whole[offset : offset + length])
    assert (scratch[length:] == 0xAA).all(), "bytes behind the view were written to"


def test_reading_across_the_kernel_and_beyond_the_map() -> None:
    big = SyntheticSource(GIB)
    begin, end = 0x1FFFF000, 0x20400800
    piecewise = b"".join(big.read(at, min(1000, end - at)) for at in range(begin, end, 1000))
    assert big.read(begin, end - begin) == piecewise


def test_threads_do_not_disturb_each_other(guest: SyntheticSource, pages: np.ndarray) -> None:
    block = guest.blocks[1]
    expected = pages[guest.blocks[0].size // PAGE :][: block.size // PAGE]
    results = [np.empty(0, np.uint8)] * 4

    def run(number: int) -> None:
        results[number] = contents(block)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize("fill", [0, 0.01, 0.3, 0.5, 1])
@pytest.mark.parametrize("size", [256 * MIB, 300 * MIB])
def test_fill_and_holes(size: int, fill: float) -> None:
    source = SyntheticSource(size, fill=fill)
    data = holes = 0
    for block in source.blocks:
        used = contents(block).any(axis=1)
        known = np.ones(block.size // PAGE, bool)
        end_before = -1
        for begin, end in block.memory.extents():
            assert end_before < begin < end <= block.size
            assert (block.start + begin) % REGION == 0 or begin == 0
            assert (block.start + end) % REGION == 0 or end == block.size
            known[begin // PAGE : end // PAGE] = False
            end_before = end
        assert not used[known].any(), "a hole holds data"
        data += used.sum()
        holes += known.sum()
    assert data / (source.size / PAGE) == pytest.approx(fill, abs=0.01)
    assert holes / (source.size / PAGE) == pytest.approx((1 - fill) / 2, abs=0.02)


def test_no_two_data_pages_are_the_same(pages: np.ndarray) -> None:
    data = pages[pages.any(axis=1)]
    assert len(data) > 10000
    assert len({page.tobytes() for page in data}) == len(data)


def test_pages_compress_like_a_real_guests(pages: np.ndarray) -> None:
    data = [page.tobytes() for page in pages[pages.any(axis=1)][::10]]
    by_zlib = np.mean([min(len(zlib.compress(page, 1)), PAGE) for page in data]) / PAGE
    by_lzo = np.mean([min(len(lzo.compress(page, 1, False)), PAGE) for page in data]) / PAGE
    assert 0.38 < by_zlib < 0.5
    assert 0.46 < by_lzo < 0.56


@pytest.mark.parametrize(
    ("size", "options", "parameter"),
    [
        ("0", {}, "size"),
        ("1M", {}, "size"),
        ("2097153", {}, "size"),
        ("17T", {}, "size"),
        ("much", {}, "size"),
        ("", {}, "size"),
        ("64M", {"seed": "one"}, "seed"),
        ("64M", {"seed": "-1"}, "seed"),
        ("64M", {"seed": "0x10000000000000000"}, "seed"),
        ("64M", {"fill": "half"}, "fill"),
        ("64M", {"fill": "1.01"}, "fill"),
        ("64M", {"fill": "-0.1"}, "fill"),
        ("64M", {"fill": "nan"}, "fill"),
        ("64M", {"colour": "red"}, "colour"),
    ],
)
def test_wrong_requests(size: str, options: dict[str, str], parameter: str) -> None:
    with pytest.raises(RequestError, match=f"^{parameter}: ") as caught:
        open_synthetic(size, options)
    assert caught.value.parameter == parameter


def test_options_are_optional() -> None:
    told = open_synthetic("64M", {"seed": "0x1", "fill": "0.3"})
    assert told.read(0, 0xA0000) == open_synthetic("64M", {}).read(0, 0xA0000)
