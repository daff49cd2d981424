"""Zeros of the guest are holes of the ELF file, wherever they are, and its bytes are the same in a pipe."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles.elf import ElfCore

import vmdump

UNIT = 4096
CHUNK = 8 << 20
SHORT = 16
"""Units from which on zeros between data are a hole."""
Blocks = list[tuple[int, np.ndarray]]


def data_units(path: Path) -> set[int]:
    """The 4096 bytes pieces of a file that are no holes, as the file system tells."""
    found: set[int] = set()
    with path.open("rb") as file:
        position, size = 0, os.fstat(file.fileno()).st_size
        while position < size:
            try:
                begin = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.update(range(begin // UNIT, -(-position // UNIT)))
    return found


@pytest.fixture(scope="module", autouse=True)
def _needs_holes() -> None:
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        path = Path(folder) / "sparse"
        with path.open("wb") as file:
            file.seek(1 << 20)
            file.write(b"end")
        if data_units(path) != {(1 << 20) // UNIT}:
            pytest.skip("this file system has no holes of 4096 bytes")


def filled(data: list[int], count: int) -> np.ndarray:
    """Units of which those that are named end in a byte that is not zero."""
    memory = np.zeros((count, UNIT), np.uint8)
    memory[data, -1] = 1
    return memory.reshape(-1)


def dump(blocks: Blocks, path: Path | str, **options: object) -> vmdump.Report:
    source = vmdump.BlockSource(blocks, page_size=UNIT)
    return vmdump.dump(source, path, format="elf", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gap", [1, 2, 15, 16, 17, 100])
@pytest.mark.parametrize("ragged", [0, 100])
def test_zeros_between_data(gap: int, ragged: int, tmp_path: Path) -> None:
    """Short gaps are written with the data around them, and all other zeros are not."""
    memory = filled([20, 21 + gap, 22 + gap], 60 + gap)[: (60 + gap) * UNIT - ragged]
    dump([(0, memory)], tmp_path / "core")
    core = ElfCore(tmp_path / "core").check_vmdump_layout()
    assert core.load_bytes(core.loads[0]) == memory.tobytes()
    first = core.loads[0].offset // UNIT
    data = {20, 21 + gap, 22 + gap}
    if gap < SHORT:
        data |= set(range(20, 23 + gap))
    units = {unit - first for unit in data_units(tmp_path / "core") if unit >= first}
    # The last unit is not whole where the block ends inside one, and then it is not looked at.
    assert units - {59 + gap if ragged else -1} == data


def test_nothing_but_zeros(tmp_path: Path) -> None:
    report = dump([(0, np.zeros(64 << 20, np.uint8))], tmp_path / "core")
    status = (tmp_path / "core").stat()
    assert status.st_size == report.output_bytes > 64 << 20
    assert status.st_blocks * 512 <= 2 * UNIT


@pytest.mark.parametrize("size", [1, 100, UNIT - 1, UNIT + 1, 3 * UNIT - 1, CHUNK + 1])
@pytest.mark.parametrize("byte", [0, 1])
def test_last_bytes(size: int, byte: int, tmp_path: Path) -> None:
    """A file that ends in a hole, or in a part of a unit, has its length all the same."""
    blocks = [(0, np.full(size, byte, np.uint8)), (1 << 30, np.zeros(size, np.uint8))]
    dump(blocks, tmp_path / "core")
    core = ElfCore(tmp_path / "core").check_vmdump_layout()
    assert core.size == core.loads[0].offset + 2 * size
    assert [core.load_bytes(load) for load in core.loads] == [memory.tobytes() for _, memory in blocks]


def test_zeros_over_the_border_of_a_chunk(tmp_path: Path) -> None:
    border = CHUNK // UNIT
    memory = filled([border - 30, border - 1, border + 40, 3 * border], 4 * border)
    dump([(0, memory)], tmp_path / "core", threads=2)
    core = ElfCore(tmp_path / "core").check_vmdump_layout()
    assert core.load_bytes(core.loads[0]) == memory.tobytes()
    first = core.loads[0].offset // UNIT
    units = {unit - first for unit in data_units(tmp_path / "core") if unit >= first}
    assert units == {border - 30, border - 1, border + 40, 3 * border}


@st.composite
def sparse_blocks(draw: st.DrawFn) -> Blocks:
    """Draw blocks of any size, with zeros of any length between their data."""
    blocks = []
    address = draw(st.integers(0, 4)) * UNIT
    gaps = st.sampled_from([0, 1, 14, 15, 16, 17, 18, 40])
    for seed in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(st.tuples(gaps, st.integers(1, 3)), max_size=6))
        parts = []
        for gap, count in rows:
            parts += [bytes(gap * UNIT), np.random.default_rng(seed).bytes(count * UNIT)]
        parts.append(bytes(draw(st.sampled_from([1, 512, UNIT, 20 * UNIT, 100_000]))))
        memory = np.frombuffer(b"".join(parts), np.uint8)
        memory = memory[: len(memory) - draw(st.sampled_from([0, 0, 1, 511, 5000])) or None]
        if not memory.size:
            continue
        blocks.append((address, memory))
        address += len(memory) + draw(st.sampled_from([0, 100, UNIT, 20 * UNIT]))
    return blocks or [(address, np.ones(1, np.uint8))]


def dumped_to_pipe(blocks: Blocks, **options: object) -> bytes:
    reader, writer = os.pipe()
    pieces: list[bytes] = []

    def take() -> None:
        while piece := os.read(reader, 1 << 16):
            pieces.append(piece)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        dump(blocks, f"fd:{writer}", **options)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    return b"".join(pieces)


@settings(max_examples=100)
@given(blocks=sparse_blocks(), window=st.none() | st.tuples(st.floats(0, 0.99), st.floats(0.01, 1.2)))
@example(blocks=[(0, filled([0, 17], 18))], window=(0.1, 1.0))
def test_any_blocks(blocks: Blocks, window: tuple[float, float] | None) -> None:
    """The same bytes in a file, in a file that was there, in one that appends, and in a pipe."""
    options: dict[str, object] = {}
    kept = blocks
    if window is not None:
        low, high = blocks[0][0], blocks[-1][0] + len(blocks[-1][1])
        begin, length = low + int((high - low) * window[0]), int((high - low) * window[1]) + 1
        pieces = [
            (max(begin, start), memory[max(begin - start, 0) : max(begin + length - start, 0)])
            for start, memory in blocks
        ]
        kept = [(start, piece) for start, piece in pieces if len(piece)]
        options = {"begin": begin, "length": length}
        if not kept:
            return
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        path = Path(folder) / "core"
        dump(blocks, path, **options)
        core = ElfCore(path).check_vmdump_layout()
        assert [(load.paddr, load.memsz) for load in core.loads] == [
            (start, len(piece)) for start, piece in kept
        ]
        for load, (_, piece) in zip(core.loads, kept, strict=True):
            assert core.load_bytes(load) == piece.tobytes()
        whole = path.read_bytes()
        # Every unit of zeros that lies as units lie in the file, far from data, is a hole.
        if len(kept) == 1 and (kept[0][0] - blocks[0][0]) % UNIT == 0:
            units = np.frombuffer(whole, np.uint8)[: len(whole) // UNIT * UNIT].reshape(-1, UNIT).any(axis=1)
            near = np.convolve(units, np.ones(2 * SHORT + 1))[SHORT : SHORT + len(units)] > 0
            near[-2:] = True
            assert not {unit for unit in data_units(path) if unit < len(near) and not near[unit]}
        other = Path(folder) / "other"
        other.write_bytes(b"\xee" * 200_000)
        for mode in ("r+b", "ab"):
            if mode == "ab":
                other.write_bytes(b"")
            with other.open(mode) as file:
                dump(blocks, f"fd:{file.fileno()}", **options)
            assert other.read_bytes() == whole
        assert dumped_to_pipe(blocks, **options) == whole
