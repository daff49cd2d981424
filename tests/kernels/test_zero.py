"""Every zero kernel says what the scalar one says, and the scalar one is right."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.errors import EngineUnavailable, RequestError
from vmdump.kernels.zero import default_kernel, is_zero, kernels, zero_pages

PAGE = 4096
NAMES = ("scalar", "avx2", "avx512", "neon")
SIZES = (*range(20), *range(62, 67), *range(126, 131), *range(254, 259), PAGE - 1, PAGE, PAGE + 1)


@pytest.fixture(params=NAMES)
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = kernels()[name]
    if reason and name != "scalar":
        pytest.skip(f"{name}: {reason}")
    return name


def test_scalar_is_always_there() -> None:
    assert tuple(kernels()) == NAMES
    assert kernels()["scalar"] == ""
    assert kernels()[default_kernel()] == ""


def test_every_single_byte_counts(kernel: str) -> None:
    for size in SIZES:
        mem = bytearray(size)
        assert is_zero(mem, kernel)
        for position in range(size):
            mem[position] = 1 << position % 8
            assert not is_zero(mem, kernel), (size, position)
            mem[position] = 0


def test_unaligned_start_and_nothing_beyond(kernel: str) -> None:
    mem = np.full(3 * PAGE, 0xFF, np.uint8)
    for start in (*range(1, 66), PAGE - 1):
        for size in SIZES:
            window = mem[start : start + size]
            window[:] = 0
            assert is_zero(window, kernel), (start, size)
            if size:
                window[-1] = 0x80
                assert not is_zero(window, kernel), (start, size)
            window[:] = 0xFF


@given(
    data=st.binary(max_size=700).map(lambda tail: bytes(len(tail)) + tail),
    page_size=st.sampled_from((1, 7, 64, 300, 512)),
)
def test_kernels_agree(data: bytes, page_size: int) -> None:
    data = data[: len(data) // page_size * page_size]
    expected = [not any(data[at : at + page_size]) for at in range(0, len(data), page_size)]
    for name, reason in kernels().items():
        if not reason:
            assert zero_pages(data, page_size, name).tolist() == expected


def test_pages(kernel: str) -> None:
    mem = np.zeros((16, PAGE), np.uint8)
    mem[(1, 5, 15), (0, 2048, PAGE - 1)] = 1
    found = zero_pages(mem.reshape(-1), PAGE, kernel)
    assert found.dtype == np.bool_
    assert np.flatnonzero(~found).tolist() == [1, 5, 15]


def test_buffers() -> None:
    with mmap.mmap(-1, PAGE) as mapped:
        assert zero_pages(mapped, PAGE).tolist() == [True]
    assert zero_pages(b"", PAGE).shape == (0,)
    assert is_zero(b"")
    with pytest.raises(TypeError):
        is_zero(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        is_zero(np.zeros(64, np.uint8)[::2])


def test_named_kernel_is_a_demand() -> None:
    with pytest.raises(RequestError, match="there are scalar") as unknown:
        is_zero(b"", "sse9")
    assert unknown.value.parameter == "zero_kernel"
    missing = [name for name, reason in kernels().items() if reason]
    assert missing  # x86-64 has no NEON, AArch64 has no AVX
    for name in missing:
        with pytest.raises(EngineUnavailable) as unusable:
            zero_pages(bytes(PAGE), PAGE, name)
        assert unusable.value.engine == name
        assert default_kernel() in unusable.value.available


@pytest.mark.parametrize("page_size", [0, -1, 3000, 2 * PAGE])
def test_page_size_must_divide(page_size: int) -> None:
    with pytest.raises(RequestError) as error:
        zero_pages(bytes(PAGE), page_size)
    assert error.value.parameter == "page_size"
