"""A huge and nearly empty guest: little memory, and the holes stay holes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles import judges
from oracles.elf import ElfCore
from oracles.flattened import Flattened
from oracles.kdump import Kdump

import vmdump

PAGE = 4096
GUEST_SIZE = 64 << 30
RUN_SIZE = 64 << 10
RUNS = (256 << 20) // RUN_SIZE
STRIDE = GUEST_SIZE // RUNS
RSS_LIMIT_KIB = 200 << 10


def run_bytes(index: int) -> bytes:
    """Give the 16 pages of data run `index`: text, counters and noise in turn."""
    if index % 3 == 0:
        return (b"run %06d of the sparse guest " % index * (RUN_SIZE // 20))[:RUN_SIZE]
    if index % 3 == 1:
        return np.arange(index, index + RUN_SIZE // 8, dtype="<u8").tobytes()
    return np.random.default_rng(index).integers(0, 256, RUN_SIZE, np.uint8).tobytes()


@pytest.fixture(scope="module")
def sparse_guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "guest.ram"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, GUEST_SIZE)
        for index in range(RUNS):
            os.pwrite(fd, run_bytes(index), index * STRIDE)
        # Only then all blocks of the file, those of its extent tree included, are counted.
        os.fsync(fd)
    finally:
        os.close(fd)
    if path.stat().st_blocks * 512 > 2 * RUNS * RUN_SIZE:
        pytest.skip(f"the file system of {path.parent} has no sparse files")
    return path


# A new process starts with the peak of the one that forked it, so pytest cannot measure its own child.
LAUNCHER = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def dump_and_measure(source: Path, output: Path, *options: str, through_pipe: bool = False) -> int:
    """Dump in a process of its own; its peak resident memory in KiB."""
    told = output.with_name("rss")
    to = "-" if through_pipe else str(output)
    arguments = ["-m", "vmdump", "dump", f"raw:{source}?base=0", to, "-j", "2"]
    command = [sys.executable, "-c", LAUNCHER, str(told), *arguments, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE if through_pipe else None) as child:
        if child.stdout is not None:
            with output.open("wb") as file:
                shutil.copyfileobj(child.stdout, file, 1 << 20)
    assert child.returncode == 0
    return int(told.read_text())


def run_and_measure(told: Path, *arguments: object) -> int:
    """Run the command in a process of its own; its peak resident memory in KiB."""
    command = [sys.executable, "-c", LAUNCHER, str(told), "-m", "vmdump", *map(str, arguments)]
    subprocess.run(command, check=True)
    return int(told.read_text())


def sample_addresses() -> list[int]:
    """Give 300 addresses of data pages and 300 in holes."""
    rng = np.random.default_rng(5)
    runs = rng.integers(0, RUNS, 300).tolist()
    pages = rng.integers(0, RUN_SIZE // PAGE, 300).tolist()
    data = [run * STRIDE + page * PAGE for run, page in zip(runs, pages, strict=True)]
    return data + [run * STRIDE + RUN_SIZE + page * PAGE for run, page in zip(runs, pages, strict=True)]


def expected_page(address: int) -> bytes:
    run, offset = divmod(address, STRIDE)
    return run_bytes(run)[offset : offset + PAGE] if offset < RUN_SIZE else bytes(PAGE)


def check_kdump(path: Path) -> None:
    kdump = Kdump(path).check()
    assert kdump.frame_ranges() == [(0, GUEST_SIZE // PAGE)]
    shared = kdump.descriptors["offset"] == kdump.data_offset
    assert int((~shared).sum()) == RUNS * RUN_SIZE // PAGE
    addresses = sample_addresses()
    for address in addresses:
        assert kdump.page(address // PAGE) == expected_page(address)
    ranges = [(address, PAGE) for address in addresses]
    assert judges.libkdumpfile_read(path, ranges) == [expected_page(address) for address in addresses]


def test_kdump_standard(sparse_guest: Path, scratch: Path) -> None:
    before = sparse_guest.stat().st_blocks
    rss = dump_and_measure(sparse_guest, scratch / "dump", "-f", "kdump-lzo")
    assert rss < RSS_LIMIT_KIB
    assert sparse_guest.stat().st_blocks == before
    check_kdump(scratch / "dump")


def test_kdump_flattened_through_a_pipe(sparse_guest: Path, scratch: Path) -> None:
    before = sparse_guest.stat().st_blocks
    rss = dump_and_measure(sparse_guest, scratch / "flat", "-f", "kdump-lzo", through_pipe=True)
    assert rss < RSS_LIMIT_KIB
    assert sparse_guest.stat().st_blocks == before
    Flattened(scratch / "flat").check().rearrange(scratch / "dump")
    check_kdump(scratch / "dump")


def test_elf_stays_sparse(sparse_guest: Path, scratch: Path) -> None:
    before = sparse_guest.stat().st_blocks
    rss = dump_and_measure(sparse_guest, scratch / "core", "-f", "elf")
    assert rss < RSS_LIMIT_KIB
    assert sparse_guest.stat().st_blocks == before
    core = ElfCore(scratch / "core").check_vmdump_layout()
    assert [(load.paddr, load.memsz) for load in core.loads] == [(0, GUEST_SIZE)]
    # The data and, at each end of a run, at most the rest of one file system block.
    assert (scratch / "core").stat().st_blocks * 512 <= RUNS * (RUN_SIZE + 2 * PAGE)
    for address in sample_addresses():
        assert core.read(address, PAGE) == expected_page(address)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dumped") / "guest"
    vmdump.dump("synthetic:4G?seed=1&fill=0.02", path, format="kdump-lzo")
    return path


@pytest.mark.parametrize(
    "options", [("-f", "kdump-lzo"), ("-f", "kdump-zstd", "--split", "3"), ("-f", "elf")], ids=" ".join
)
def test_converting(options: tuple[str, ...], dumped: Path, tmp_path: Path, scratch: Path) -> None:
    """Memory for 4 GiB of guest, 80 MiB of which are data, whether pages are copied, packed or unpacked."""
    rss = run_and_measure(tmp_path / "rss", "convert", dumped, scratch / "out", "-j", 2, *options)
    assert rss < 130 << 10
