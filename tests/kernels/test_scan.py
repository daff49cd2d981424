"""The page scan: what it reads from files or finds in memory, and what it says of each page."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels.hash import KEY_WORDS, hash_pages
from vmdump.kernels.scan import CLEARED, NEW, RUN_WORDS, SAME, ZERO, PageScan

PAGE = 4096
MiB = 1 << 20
KEY = np.random.default_rng(9).integers(0, 1 << 64, KEY_WORDS, np.uint64)

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


class Chunk(NamedTuple):
    """A chunk of pages as it should be read, and where it is: in two files, as runs of which file."""

    page_size: int
    content: Bytes
    files: tuple[bytes, bytes]
    runs: list[tuple[int, int, int, int]]

    @property
    def pages(self) -> list[bytes]:
        return [page.tobytes() for page in self.content.reshape(-1, self.page_size)]


def hash_of(page: bytes, key: Words = KEY) -> int:
    """The hash by the kernel that has its own tests; 0 stands for zeros, so no other page may have it."""
    out = np.zeros(1, np.uint64)
    hash_pages(page, len(page), key, out)
    return 0 if not any(page) else int(out[0]) or 1


@st.composite
def chunks(draw: st.DrawFn, page_sizes: tuple[int, ...] = (PAGE, 16384, 65536, MiB)) -> Chunk:
    """Draw pages of which some are zero, cut anywhere into runs of two files and gaps."""
    page_size = draw(st.sampled_from(page_sizes))
    # 256 KiB and 64 pages are read at a time: up to three times that, and a few bytes.
    count = draw(st.integers(0, min(140, max(3, 600_000 // page_size))))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    content = rng.integers(0, 256, (count, page_size), np.uint8)
    zero = draw(st.sets(st.integers(0, count - 1))) if count else set()
    for page in zero:
        content[page] = 0
        if draw(st.booleans()):
            content[page, draw(st.sampled_from([0, page_size // 2, page_size - 1]))] = 1
    flat = content.reshape(-1)
    unit = draw(st.sampled_from([1, page_size]))
    cuts = sorted(draw(st.sets(st.integers(0, flat.size // unit), max_size=9)))
    files: tuple[bytearray, bytearray] = (bytearray(), bytearray())
    runs = []
    edges = [0, *(cut * unit for cut in cuts), flat.size]
    for begin, end in itertools.pairwise(edges):
        number = draw(st.sampled_from([0, 1, None]))
        if number is None:
            flat[begin:end] = 0
            continue
        file = files[number]
        file += b"\xee" * draw(st.sampled_from([0, 1, 511, 4096]))
        runs.append((begin, end, number, len(file)))
        file += flat[begin:end].tobytes()
    return Chunk(page_size, flat, (bytes(files[0]), bytes(files[1])), runs)


class Opened:
    """The chunk's files, and the table of its runs with their descriptors."""

    def __init__(self, chunk: Chunk) -> None:
        self._files = [tempfile.TemporaryFile() for _ in chunk.files]  # noqa: SIM115 - closed by __exit__
        for file, content in zip(self._files, chunk.files, strict=True):
            file.write(content)
            file.flush()
        rows = [(begin, end, self._files[file].fileno(), at) for begin, end, file, at in chunk.runs]
        self.runs = np.array(rows, np.int64).reshape(-1, RUN_WORDS)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


def scans(chunk: Chunk, runs: npt.NDArray[np.int64], **options: Any) -> Iterator[PageScan]:
    """The same chunk in memory and in files."""
    yield PageScan(chunk.content.tobytes(), chunk.page_size, **options)
    count = chunk.content.size // chunk.page_size
    yield PageScan(None, chunk.page_size, runs=runs, page_count=count, **options)


@given(chunk=chunks(page_sizes=(1, 7, 64, 100, PAGE, 16384, 65536, MiB)))
def test_any_runs_give_what_slicing_gives(chunk: Chunk) -> None:
    expected = [NEW if any(page) else ZERO for page in chunk.pages]
    with Opened(chunk) as opened:
        for scan in scans(chunk, opened.runs):
            assert (scan.page_count, scan.page_size) == (len(expected), chunk.page_size)
            kinds = np.full(len(expected), 0xEE, np.uint8)
            room = np.full(chunk.content.size + 10, 0xEE, np.uint8)
            for out in (None, room):
                found = scan.read(kinds, out)
                assert found.tobytes() == chunk.content.tobytes()
                assert kinds.tolist() == expected
            assert (room[-10:] == 0xEE).all()


@given(chunk=chunks(), data=st.data())
def test_kinds_and_hashes_against_a_model(chunk: Chunk, data: st.DataObject) -> None:
    hashes = [hash_of(page) for page in chunk.pages]
    # What was known of each page: nothing or zeros, what it holds, or something else.
    states = data.draw(st.lists(st.integers(0, 2), min_size=len(hashes), max_size=len(hashes)))
    known = [(0, now, now ^ 0x10 or 5)[state] for now, state in zip(hashes, states, strict=True)]
    expected = []
    for now, before in zip(hashes, known, strict=True):
        if now == 0:
            expected.append(CLEARED if before else ZERO)
        else:
            expected.append(SAME if before == now else NEW)
    with Opened(chunk) as opened:
        for table in (known, None):
            found_hashes = np.full(len(hashes), 0xEE, np.uint64)
            options: dict[str, Any] = {"key": KEY, "hashes": found_hashes}
            if table is not None:
                options["known"] = np.array(table, np.uint64)
            for scan in scans(chunk, opened.runs, **options):
                kinds = np.full(len(hashes), 0xEE, np.uint8)
                found_hashes[:] = 0xEE
                assert scan.read(kinds).tobytes() == chunk.content.tobytes()
                assert found_hashes.tolist() == hashes
                unknown = [NEW if now else ZERO for now in hashes]
                assert kinds.tolist() == (expected if table is not None else unknown)


def test_page_whose_hash_is_that_of_zeros() -> None:
    """0 says zeros; with this key every page's hash is 0, and a page that is not zero must not get it."""
    key, hashes, kinds = np.zeros(KEY_WORDS, np.uint64), np.empty(2, np.uint64), np.empty(2, np.uint8)
    mem = bytes(PAGE) + b"\1" * PAGE
    PageScan(mem, PAGE, key=key, hashes=hashes).read(kinds)
    assert (hashes.tolist(), kinds.tolist()) == ([0, 1], [ZERO, NEW])
    PageScan(mem, PAGE, key=key, hashes=hashes, known=np.array([0, 1], np.uint64)).read(kinds)
    assert (hashes.tolist(), kinds.tolist()) == ([0, 1], [ZERO, SAME])


def test_no_runs_are_pages_of_zeros() -> None:
    kinds = np.full(3, 0xEE, np.uint8)
    scan = PageScan(None, PAGE, runs=np.empty((0, RUN_WORDS), np.int64), page_count=3)
    assert not scan.read(kinds, np.full(3 * PAGE, 0xEE, np.uint8)).any()
    assert kinds.tolist() == [ZERO] * 3


def test_memory_is_not_copied() -> None:
    mem, kinds = np.ones(2 * PAGE, np.uint8), np.empty(2, np.uint8)
    assert np.shares_memory(PageScan(mem, PAGE).read(kinds, np.empty(2 * PAGE, np.uint8)), mem)


def test_what_is_read_is_what_is_told(tmp_path: Path) -> None:
    """A guest writes to the file meanwhile: kinds and hashes are of the bytes that were read."""
    (tmp_path / "ram").write_bytes(bytes(64 * PAGE))
    stop = threading.Event()
    with (tmp_path / "ram").open("r+b") as file, mmap.mmap(file.fileno(), 0) as ram:

        def scribble() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                ram[:] = (bytes([turn % 3]) * PAGE + bytes(PAGE)) * 32

        guest = threading.Thread(target=scribble)
        guest.start()
        try:
            runs = np.array([[0, 64 * PAGE, file.fileno(), 0]], np.int64)
            hashes, kinds = np.empty(64, np.uint64), np.empty(64, np.uint8)
            scan = PageScan(None, PAGE, runs=runs, page_count=64, key=KEY, hashes=hashes)
            for _ in range(50):
                pages = [page.tobytes() for page in scan.read(kinds).reshape(-1, PAGE)]
                assert hashes.tolist() == [hash_of(page) for page in pages]
                assert kinds.tolist() == [NEW if any(page) else ZERO for page in pages]
        finally:
            stop.set()
            guest.join()


# --- demands ------------------------------------------------------------------------------------------------


def runs_of(*rows: tuple[int, ...], dtype: type = np.int64) -> npt.NDArray[Any]:
    return np.array(rows, dtype).reshape(-1, len(rows[0]) if rows else RUN_WORDS)


def in_runs(*rows: tuple[int, ...], dtype: type = np.int64) -> PageScan:
    return PageScan(None, PAGE, runs=runs_of(*rows, dtype=dtype), page_count=2)


def hashed(**options: Any) -> PageScan:
    arguments = {"key": KEY, "hashes": np.empty(2, np.uint64)} | options
    return PageScan(bytes(2 * PAGE), arguments.pop("page_size", PAGE), **arguments)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no page size": (lambda: PageScan(b"", 0), "page_size"),
    "negative page size": (lambda: PageScan(b"", -PAGE), "page_size"),
    "part of a page": (lambda: PageScan(bytes(PAGE + 1), PAGE), "whole number"),
    "strided memory": (lambda: PageScan(np.zeros((2 * PAGE, 2), np.uint8)[:, 0], PAGE), "contiguous"),
    "three words": (lambda: in_runs((0, PAGE, 0)), "3 words"),
    "five words": (lambda: in_runs((0, PAGE, 0, 0, 0)), "5 words"),
    "words of 32 bits": (lambda: in_runs((0, PAGE, 0, 0), dtype=np.int32), "dtype"),
    "run before the chunk": (lambda: in_runs((-1, PAGE, 0, 0)), "run 0"),
    "run behind the chunk": (lambda: in_runs((0, 1, 0, 0), (PAGE, 2 * PAGE + 1, 0, 0)), "run 1"),
    "run backwards": (lambda: in_runs((PAGE, PAGE - 1, 0, 0)), "run 0"),
    "runs that overlap": (lambda: in_runs((0, PAGE, 0, 0), (PAGE - 1, 2 * PAGE, 0, 0)), "run 1"),
    "runs in no order": (lambda: in_runs((PAGE, 2 * PAGE, 0, 0), (0, PAGE, 0, 0)), "run 1"),
    "offset before the file": (lambda: in_runs((0, PAGE, 0, -1)), "run 0"),
    "page that is no multiple of 64": (lambda: hashed(page_size=2048 + 32), "whole number"),
    "page without a hash": (
        lambda: PageScan(bytes(200), 100, key=KEY, hashes=np.empty(2, np.uint64)), "multiple of 64"
    ),
    "short key": (lambda: hashed(key=KEY[:-1]), "a key has"),
    "long key": (lambda: hashed(key=np.append(KEY, KEY[:1])), "a key has"),
    "hashes of one page": (lambda: hashed(hashes=np.empty(1, np.uint64)), "hashes: room for 1"),
    "no hashes": (lambda: hashed(hashes=None), "hashes: room for 0"),
    "signed hashes": (lambda: hashed(hashes=np.empty(2, np.int64)), "dtype"),
    "known of three pages": (lambda: hashed(known=np.zeros(3, np.uint64)), "known: 3"),
    "kinds of one page": (lambda: hashed().read(np.empty(1, np.uint8)), "kinds: room for 1"),
    "kinds of three pages": (lambda: in_runs().read(np.empty(3, np.uint8)), "kinds: room for 3"),
    "out too short": (
        lambda: in_runs().read(np.empty(2, np.uint8), np.empty(2 * PAGE - 1, np.uint8)), "need more"
    ),
    "out of words": (lambda: in_runs().read(np.empty(2, np.uint8), np.empty(PAGE, np.uint64)), "dtype"),
    "read-only out": (
        lambda: in_runs().read(np.empty(2, np.uint8), np.frombuffer(bytes(2 * PAGE), np.uint8)), "read-only"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


# --- files that cannot be read ------------------------------------------------------------------------------


def read_runs(*rows: tuple[int, int, int, int], page_count: int = 200) -> None:
    PageScan(None, PAGE, runs=runs_of(*rows), page_count=page_count).read(np.empty(page_count, np.uint8))


@pytest.mark.parametrize("size", [0, 1, 150 * PAGE, 200 * PAGE - 1])
def test_short_file(size: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        with pytest.raises(OSError, match="the file ended") as error:
            read_runs((0, 200 * PAGE, file.fileno(), 0))
        assert error.value.errno is None
        file.truncate(200 * PAGE)
        read_runs((0, 200 * PAGE, file.fileno(), 0))


def closed(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    os.close(fd)
    return fd


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (closed, errno.EBADF),
        (lambda path: -1, errno.EBADF),
        (lambda path: os.open(path, os.O_WRONLY), errno.EBADF),
        (lambda path: os.open(path.parent, os.O_RDONLY), errno.EISDIR),
    ],
    ids=["closed", "none", "write only", "folder"],
)
def test_descriptor_that_cannot_be_read(make: Callable[[Path], int], code: int, tmp_path: Path) -> None:
    """The error is that of the run that failed, whatever could be read before it."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(200 * PAGE))
    good = os.open(path, os.O_RDONLY)
    fd = make(path)
    try:
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            read_runs((0, 100 * PAGE + 5, good, 3), (100 * PAGE + 5, 100 * PAGE + 6, fd, 0))
        assert error.value.errno == code
        read_runs((0, 100 * PAGE + 5, good, 3), (100 * PAGE + 5, 100 * PAGE + 5, fd, 0))
    finally:
        os.close(good)
        if make is not closed and fd >= 0:
            os.close(fd)


def test_offset_behind_every_file() -> None:
    with tempfile.TemporaryFile() as file:
        for offset in ((1 << 63) - 1, (1 << 63) - PAGE):
            with pytest.raises(OSError, match=r".+"):
                read_runs((0, 2 * PAGE, file.fileno(), offset), page_count=2)
