"""Files as guests: holes are found and never read, and a file that changes its size is an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.errors import LayoutError, RequestError, SourceError
from vmdump.guest.files import FileMemory, GuestFile

PAGE = 4096


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """256 pages: data in 3-5, 100 and 200-201."""
    path = tmp_path / "guest.ram"
    with path.open("wb") as file:
        for page, count in [(3, 2), (100, 1), (200, 2)]:
            file.seek(page * PAGE)
            file.write(np.random.RandomState(page).bytes(count * PAGE))
        file.truncate(256 * PAGE)
    return path


def test_extents_are_the_data_of_the_file(sparse: Path) -> None:
    with vmdump.open_source(f"raw:{sparse}") as guest:
        extents = [(begin // PAGE, end // PAGE) for begin, end in guest.blocks[0].memory.extents()]
    assert extents == [(3, 5), (100, 101), (200, 202)]


def bytes_read() -> int:
    """What this process has read so far, by any system call, as the kernel counts it."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="this kernel does not count what is read")
@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_holes_are_never_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "guest.ram"
    with path.open("wb") as file:
        for page in (0, 5000, 16000):
            file.seek(page * PAGE)
            file.write(b"data")
        file.truncate(64 << 20)
    vmdump.dump(f"raw:{path}", tmp_path / "first", format=name)  # what is imported is read, too
    before = bytes_read()
    vmdump.dump(f"raw:{path}", tmp_path / "second", format=name)
    assert 3 * PAGE <= bytes_read() - before < 1 << 20


def test_holes_of_the_guest_are_holes_of_the_elf(tmp_path: Path) -> None:
    path = tmp_path / "guest.ram"
    with path.open("wb") as file:
        file.write(b"\1" * PAGE)
        file.seek(64 << 20)
        file.write(b"\2" * PAGE)
        file.truncate(256 << 20)
    report = vmdump.dump(f"raw:{path}", tmp_path / "guest.elf", format="elf")
    stat = (tmp_path / "guest.elf").stat()
    assert stat.st_size == report.output_bytes > 256 << 20
    assert stat.st_blocks * 512 < 1 << 20
    assert report.hole_bytes > 250 << 20


@pytest.mark.parametrize("size", [0, 100 * PAGE, 200 * PAGE + 1])
def test_file_that_shrinks_is_an_error(size: int, sparse: Path) -> None:
    with vmdump.open_source(f"raw:{sparse}") as guest:
        os.truncate(sparse, size)
        with pytest.raises(SourceError, match="it was longer"):
            guest.read(0, 256 * PAGE)


@given(st.integers(0, 255 * PAGE), st.integers(1, 30 * PAGE))
def test_view_equals_the_file(tmp_path_factory: pytest.TempPathFactory, offset: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "view.ram"
    if not path.exists():
        with path.open("wb") as file:
            for page in (0, 7, 8, 31, 130, 250):
                file.seek(page * PAGE)
                file.write(np.random.RandomState(page).bytes(PAGE))
            file.truncate(256 * PAGE)
    length = min(length, 256 * PAGE - offset)
    content = path.read_bytes()
    file = GuestFile(path)
    try:
        scratch = np.full(length, 0xEE, np.uint8)
        found = FileMemory(file, 0, 256 * PAGE).view(offset, length, scratch)
        assert found.tobytes() == content[offset : offset + length]
        # Half of the block is in the file; what is behind is zero, whatever the file has there.
        half = FileMemory(file, 0, 256 * PAGE, filled=100 * PAGE)
        expected = content[: 100 * PAGE].ljust(256 * PAGE, b"\0")[offset : offset + length]
        assert half.view(offset, length, scratch).tobytes() == expected
    finally:
        file.close()


def test_base_and_architecture(sparse: Path, tmp_path: Path) -> None:
    with vmdump.open_source(f"raw:{sparse}?base=4G&arch=ppc64") as guest:
        assert [(block.start, block.end) for block in guest.blocks] == [(1 << 32, (1 << 32) + 256 * PAGE)]
        assert (guest.arch.name, guest.byteorder, guest.elf_class) == ("ppc64", "big", 64)


def test_question_mark_in_a_path(tmp_path: Path) -> None:
    path = tmp_path / "who?"
    path.write_bytes(bytes(PAGE))
    with vmdump.open_source(f"raw:{path}") as guest:
        assert guest.size == PAGE
    with vmdump.open_source(f"raw:{path}?base=0x1000") as guest:
        assert guest.blocks[0].start == PAGE


@pytest.mark.parametrize(
    ("options", "parameter"),
    [("base=x", "base"), ("arch=vax", "arch"), ("bose=1", "bose"), ("base=1&base=2", "base")],
)
def test_wrong_options_are_named(options: str, parameter: str, sparse: Path) -> None:
    with pytest.raises(RequestError) as caught:
        vmdump.open_source(f"raw:{sparse}?{options}")
    assert caught.value.parameter == parameter


def test_base_that_is_no_page(sparse: Path) -> None:
    with pytest.raises(LayoutError):
        vmdump.open_source(f"raw:{sparse}?base=100")
