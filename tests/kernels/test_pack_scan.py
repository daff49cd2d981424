"""Packing pages that lie in files, and leaving out those that are known, by every engine that is here."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmdump.codecs.registry import Engine, PagePacker, engines, make_packer, make_unpacker
from vmdump.kernels.hash import KEY_WORDS, hash_pages
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.scan import PageScan

PAGE = 4096
USABLE = [engine for engine in engines() if not engine.missing]
KEY = np.random.default_rng(10).integers(0, 1 << 64, KEY_WORDS, np.uint64)

Bytes = npt.NDArray[np.uint8]

each_engine = pytest.mark.parametrize("engine", USABLE, ids=lambda engine: engine.name)


def guest_pages(count: int, page_size: int, seed: int) -> Bytes:
    """Zero, noise, half noise and text by turns and by chance."""
    rng = np.random.default_rng(seed)
    pages = np.zeros((count, page_size), np.uint8)
    for page, kind in enumerate(rng.integers(0, 4, count).tolist()):
        if kind == 1:
            pages[page] = rng.integers(0, 256, page_size, np.uint8)
        elif kind == 2:
            pages[page, ::2] = rng.integers(0, 256, -(-page_size // 2), np.uint8)
        elif kind == 3:
            pages[page] = np.resize(np.frombuffer(b"%d bottles " % page, np.uint8), page_size)
    return pages


def hashes_of(pages: Bytes) -> npt.NDArray[np.uint64]:
    out = np.zeros(len(pages), np.uint64)
    if len(pages):
        hash_pages(pages.reshape(-1), pages.shape[1], KEY, out)
    out[~pages.any(axis=1)] = 0
    return out


def pack(packer: PagePacker, pages: PageScan | Bytes, count: int) -> tuple[list[bytes], list[int]]:
    """What is stored of each page, and the sizes."""
    out, sizes = np.full(packer.bound(count), 0xA5, np.uint8), np.full(count, 0xEE, np.uint32)
    used = packer.pack(pages, out, sizes)
    stored = np.where(sizes == SAME_SIZE, 0, sizes).astype(np.int64)
    assert used == stored.sum()
    ends = np.cumsum(stored)
    rows = zip((ends - stored).tolist(), ends.tolist(), strict=True)
    return [out[begin:end].tobytes() for begin, end in rows], sizes.tolist()


@contextmanager
def in_file(pages: Bytes, cut: int) -> Iterator[npt.NDArray[np.int64]]:
    """The pages in two runs of one file, the later one first."""
    flat = pages.tobytes()
    with tempfile.TemporaryFile() as file:
        file.write(b"\xee" + flat[cut:] + b"\xee" + flat[:cut])
        file.flush()
        fd, rest = file.fileno(), len(flat) - cut
        yield np.array([[0, cut, fd, 2 + rest], [cut, len(flat), fd, 1]], np.int64)


@each_engine
@settings(max_examples=15)
@given(
    page_size=st.sampled_from([64, 1024, PAGE, 65536, 1 << 20]),
    seed=st.integers(0, 1 << 30),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_known_pages_are_left_out(
    engine: Engine, page_size: int, seed: int, share: float, data: st.DataObject
) -> None:
    """What is new is packed as it always is, wherever the pages are."""
    pages = guest_pages(data.draw(st.integers(0, min(200, (3 << 19) // page_size + 2))), page_size, seed)
    count = len(pages)
    packer = make_packer(engine, page_size)
    plain = pack(packer, pages.reshape(-1), count)
    hashes = hashes_of(pages)
    rng = np.random.default_rng(seed)
    same = (rng.random(count) < share) & (hashes != 0)
    # Of the others some are not known, some held something else.
    known = np.where(same, hashes, rng.integers(0, 2, count, np.uint64) * (hashes + np.uint64(1)))
    rows = list(zip(*plain, strict=True))
    expected = [(b"", SAME_SIZE) if same[page] else rows[page] for page in range(count)]
    with in_file(pages, data.draw(st.integers(0, pages.size))) as runs:
        found_hashes = np.empty(count, np.uint64)
        options = {"key": KEY, "known": known, "hashes": found_hashes}
        for scan in (
            PageScan(pages.tobytes(), page_size, **options),
            PageScan(None, page_size, runs=runs, page_count=count, **options),
        ):
            found_hashes[:] = 0xEE
            assert list(zip(*pack(packer, scan, count), strict=True)) == expected
            assert found_hashes.tolist() == hashes.tolist()
        without = PageScan(None, page_size, runs=runs, page_count=count)
        assert pack(packer, without, count) == plain


@each_engine
def test_a_file_that_cannot_be_read_is_no_end(engine: Engine, tmp_path: Path) -> None:
    pages = guest_pages(200, PAGE, 1)
    packer = make_packer(engine, PAGE)
    plain = pack(packer, pages.reshape(-1), 200)
    (tmp_path / "ram").write_bytes(pages.tobytes())
    fd = os.open(tmp_path / "ram", os.O_RDONLY)
    try:
        runs = np.array([[0, 150 * PAGE, fd, 0], [150 * PAGE, 200 * PAGE, -1, 0]], np.int64)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as error:
            pack(packer, PageScan(None, PAGE, runs=runs, page_count=200), 200)
        assert error.value.errno == errno.EBADF
        runs = np.array([[0, 200 * PAGE, fd, 1]], np.int64)
        with pytest.raises(OSError, match="the file ended"):
            pack(packer, PageScan(None, PAGE, runs=runs, page_count=200), 200)
        runs = np.array([[0, 200 * PAGE, fd, 0]], np.int64)
        assert pack(packer, PageScan(None, PAGE, runs=runs, page_count=200), 200) == plain
        assert pack(packer, pages.reshape(-1), 200) == plain
    finally:
        os.close(fd)


@each_engine
def test_a_scan_of_other_pages_is_refused(engine: Engine) -> None:
    packer = make_packer(engine, PAGE)
    out, sizes = np.empty(packer.bound(8), np.uint8), np.empty(2, np.uint32)
    for scan in (
        PageScan(bytes(3 * PAGE), PAGE),
        PageScan(bytes(PAGE), PAGE),
        PageScan(bytes(PAGE), PAGE // 2),
        PageScan(None, PAGE, page_count=3),
        PageScan(None, 2 * PAGE, page_count=2),
    ):
        with pytest.raises(ValueError, match="are not 2 pages of 4096"):
            packer.pack(scan, out, sizes)
    with pytest.raises(ValueError, match="need"):
        packer.pack(PageScan(bytes(2 * PAGE), PAGE), out[:PAGE], sizes)


@each_engine
def test_file_that_changes_meanwhile(engine: Engine, tmp_path: Path) -> None:
    """Each page is one that decodes, and its hash is that of what was packed."""
    count = 128
    (tmp_path / "ram").write_bytes(bytes(count * PAGE))
    packer, unpacker = make_packer(engine, PAGE), make_unpacker(engine.codec, PAGE, engine.name)
    stop = threading.Event()
    with (tmp_path / "ram").open("r+b") as file, mmap.mmap(file.fileno(), 0) as ram:

        def scribble() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                ram[:] = (bytes(range(turn % 7, turn % 7 + 64)) * 64 + bytes(PAGE)) * (count // 2)

        guest = threading.Thread(target=scribble)
        guest.start()
        try:
            runs = np.array([[0, count * PAGE, file.fileno(), 0]], np.int64)
            hashes = np.empty(count, np.uint64)
            scan = PageScan(None, PAGE, runs=runs, page_count=count, key=KEY, hashes=hashes)
            for _ in range(20):
                stored, sizes = pack(packer, scan, count)
                offsets = np.cumsum([0, *sizes])[:-1].astype(np.uint64)
                streams = np.array([0 < size < PAGE for size in sizes], np.uint8)
                out = np.empty(count * PAGE, np.uint8)
                unpacker.unpack(b"".join(stored), offsets, np.array(sizes, np.uint32), streams, out)
                assert hashes.tolist() == hashes_of(out.reshape(-1, PAGE)).tolist()
        finally:
            stop.set()
            guest.join()
