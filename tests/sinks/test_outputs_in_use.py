"""Outputs that are something already: what they held is never in the dump, and nobody's bytes are lost."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump

import vmdump
from vmdump import errors
from vmdump.operations.verify import compare
from vmdump.sinks.set import part_names

PAGE = 4096


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """64 MiB with two bytes of data."""
    path = tmp_path / "guest.ram"
    with path.open("wb") as file:
        file.seek(20 << 20)
        file.write(b"HI")
        file.truncate(64 << 20)
    return path


def holds(dump: Path | str, guest: Path) -> bool:
    with vmdump.open_source(f"raw:{guest}") as mine, vmdump.open(dump) as written:
        return compare(mine, written).equal


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_old_bytes_of_a_file_are_gone(name: str, guest: Path, tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    stale.write_bytes(b"\xaa" * (80 << 20))
    fd = os.open(stale, os.O_RDWR)
    try:
        vmdump.dump(f"raw:{guest}", f"fd:{fd}", format=name)
    finally:
        os.close(fd)
    assert holds(stale, guest)


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_old_bytes_of_a_disk_are_overwritten(name: str, guest: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("loop devices need root")
    image = tmp_path / "disk"
    image.write_bytes(b"\xaa" * (80 << 20))
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    try:
        vmdump.dump(f"raw:{guest}", device, format=name)
        assert holds(device, guest)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_the_guest_is_not_its_own_output(guest: Path) -> None:
    before = guest.read_bytes()
    fd = os.open(guest, os.O_RDWR)
    try:
        with pytest.raises(errors.SinkError, match="holds the guest"):
            vmdump.dump(f"raw:{guest}", f"fd:{fd}")
    finally:
        os.close(fd)
    assert guest.read_bytes() == before


def test_who_shares_the_descriptor_writes_behind_the_dump(guest: Path, tmp_path: Path) -> None:
    path = tmp_path / "both"
    with path.open("wb") as file:
        report = vmdump.dump(f"raw:{guest}", f"fd:{file.fileno()}")
        file.write(b"TRAILER")
    content = path.read_bytes()
    assert content.startswith(b"KDUMP   ")
    assert content[report.output_bytes :] == b"TRAILER"


def test_failed_append_keeps_what_was_there(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before")
    with path.open("ab") as file:
        done = run_vmdump("dump", "synthetic:8M", "-", prefix=("prlimit", "--fsize=409600"), stdout=file)
    assert done.returncode == errors.SinkError.exit_code, done.stderr
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "fd:1", "-"])
def test_every_name_of_standard_output(name: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("dump", "synthetic:4M", name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"makedumpfile\0")
    done = run_vmdump("dump", "synthetic:4M", name, "--json")
    assert done.returncode == errors.RequestError.exit_code
    assert json.loads(done.stdout)["error"]["parameter"] == "json"
    with pytest.raises(errors.RequestError):
        part_names(name, 2)
    path = tmp_path / "redirected"
    with path.open("wb") as file:
        assert run_vmdump("dump", "synthetic:4M", name, stdout=file).returncode == 0
    assert path.read_bytes().startswith(b"KDUMP   ")


def test_link_to_a_fifo(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with subprocess.Popen(["head", "-c", "12", tmp_path / "fifo"], stdout=subprocess.PIPE) as head:
        run_vmdump("dump", "synthetic:4M", tmp_path / "link")
        assert head.stdout is not None
        assert head.stdout.read() == b"makedumpfile"


def test_fifo_without_a_reader_can_be_cancelled(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with vmdump.start_dump(np.zeros(PAGE, np.uint8), tmp_path / "fifo") as job:
        time.sleep(0.1)
        assert job.status == "active"
        job.cancel()
        with pytest.raises(errors.Cancelled):
            job.wait(10)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp: all may write to it, and remove what is their own."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def pass_through(fifo: Path, run_vmdump: RunVmdump, *words: str) -> tuple[int, bytes, bytes]:
    """Dump to a FIFO: the exit code, the start of what its reader got, and the complaint."""
    # Opened for both, so that a reader is there from the start and never waits for a writer.
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    # The dump is smaller than what a pipe holds.
    page = fifo.parent.parent / "page"
    page.write_bytes(b"\x5a" * PAGE)
    try:
        done = run_vmdump("dump", f"raw:{page}", fifo, "-q", *words, timeout=60)
        try:
            got = os.read(fd, 1 << 20)[:12]
        except BlockingIOError:
            got = b""
    finally:
        os.close(fd)
    return done.returncode, got, done.stderr


def test_own_fifo_in_a_shared_folder(shared: Path, run_vmdump: RunVmdump) -> None:
    os.mkfifo(shared / "fifo")
    assert pass_through(shared / "fifo", run_vmdump) == (0, b"makedumpfile", b"")


def test_fifo_of_a_stranger(shared: Path, run_vmdump: RunVmdump) -> None:
    """Whoever put it there under that name would get the guest; not in a folder that is nobody else's."""
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.mkfifo(shared / "fifo", 0o666)
    os.chown(shared / "fifo", 65534, 65534)
    code, got, complaint = pass_through(shared / "fifo", run_vmdump)
    assert (code, got) == (errors.SinkError.exit_code, b"")
    assert b"another user's" in complaint
    assert complaint.count(b"\n") == 1
    assert pass_through(shared / "fifo", run_vmdump, "--force") == (0, b"makedumpfile", b"")

    shared.chmod(0o755)
    assert pass_through(shared / "fifo", run_vmdump) == (0, b"makedumpfile", b"")


@pytest.mark.parametrize("name", ["a" * 255, "\u20ac" * 85])
def test_longest_names(name: str, tmp_path: Path) -> None:
    memory = np.zeros(PAGE, np.uint8)
    vmdump.dump(memory, tmp_path / name)
    vmdump.dump(memory, tmp_path / name, force=True)
    assert os.listdir(tmp_path) == [name]


def test_refusals_come_before_the_work(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"x")

    class Untouchable:
        size = PAGE
        copies = False

        def extents(self) -> object:
            raise AssertionError("the guest was looked at")

        view = extents

    for name, expected in [(str(there), errors.OutputExists), ("", errors.RequestError)]:
        with pytest.raises(expected):
            vmdump.dump([(0, Untouchable())], name)  # type: ignore[list-item]


def test_closed_standard_streams(tmp_path: Path) -> None:
    command = f"{sys.executable} -m vmdump dump synthetic:4M"
    for number, streams in enumerate([">&-", "2>&-", "<&- >&- 2>&-"]):
        path = tmp_path / str(number)
        assert subprocess.run(f"{command} {path} {streams}", shell=True, check=False).returncode == 0
        with vmdump.open(path) as dump:
            assert dump.size > 3 << 20
    done = subprocess.run(f"{command} - >&-", shell=True, check=False, capture_output=True)
    assert done.returncode == errors.SinkError.exit_code
    assert done.stderr.count(b"\n") == 1


def test_room_for_the_table_is_looked_at_first(tmp_path: Path) -> None:
    class Huge:
        size = 1 << 50
        copies = False

        def extents(self) -> list[tuple[int, int]]:
            return []

    with pytest.raises(errors.SinkError, match="at least 6597069766656 bytes"):
        vmdump.dump([(0, Huge())], tmp_path / "out")  # type: ignore[list-item]
    assert os.listdir(tmp_path) == []


def test_closed_source_is_an_error_and_not_another_file(guest: Path, tmp_path: Path) -> None:
    source = vmdump.open_source(f"raw:{guest}")
    source.close()
    with guest.open("rb"), pytest.raises(errors.SourceError, match="closed"):
        source.read(0, 4)


def test_errors_travel_between_processes() -> None:
    for error in [
        errors.EngineUnavailable("no", engine="x", available=("y",)),
        errors.SinkError("full", path="/x", errno=28, hint="h"),
        errors.LayoutError("bad", address=5),
    ]:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_job_that_fails_is_not_silent() -> None:
    with (
        pytest.raises(errors.SinkError),
        vmdump.start_dump(np.ones(16 << 20, np.uint8), "/dev/full") as job,
    ):
        for _ in job.progress():
            pass
    with pytest.raises(RuntimeError):
        job.start()
    assert job.status == "failed"


def test_two_dumps_at_once(tmp_path: Path) -> None:
    memory = np.random.RandomState(1).randint(0, 200, 8 << 20).astype(np.uint8)
    threads = [
        threading.Thread(target=vmdump.dump, args=(memory, tmp_path / str(number))) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1


def test_machines_in_either_byte_order_and_unknown_ones(tmp_path: Path) -> None:
    from oracles import elf_builder

    for machine, bits in [(40, 32), (183, 64), (2, 32), (8, 32)]:
        path = tmp_path / f"{machine}"
        loads = [elf_builder.Load(0x1000, b"\x5a" * PAGE)]
        path.write_bytes(elf_builder.build_elf(loads, machine=machine, bits=bits, byteorder="big"))
        again = tmp_path / f"{machine}.elf"
        vmdump.dump(path, again, format="elf")
        with vmdump.open(again) as dump:
            assert (dump.arch.machine, dump.byteorder, dump.elf_class) == (machine, "big", bits)
            assert dump.read(0x1000, PAGE) == b"\x5a" * PAGE
    with pytest.raises(errors.CapabilityError):
        vmdump.dump(tmp_path / "2", tmp_path / "sparc.kdump")


def test_page_size_of_a_raw_guest(guest: Path, tmp_path: Path) -> None:
    for text, expected in [("", 65536), ("&page_size=4K", 4096), ("&page_size=16K", 16384)]:
        with vmdump.open_source(f"raw:{guest}?arch=aarch64{text}") as source:
            assert source.page_size == expected
    with pytest.raises(errors.LayoutError):
        vmdump.open_source(f"raw:{guest}?page_size=5000")


def test_notes_that_share_their_bytes(tmp_path: Path) -> None:
    """Many PT_NOTEs over the same bytes would need many times the file in memory."""
    import struct

    path = tmp_path / "core"
    count, size = 50, 1 << 20
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    table = struct.pack("<IIQQQQQQ", 4, 0, 0, 0, 0, size, size, 0) * count
    path.write_bytes((header + table).ljust(size, b"\0"))
    with pytest.raises(errors.FormatError, match="notes"):
        vmdump.open(path)


def test_names_that_fill_utsname_end_in_a_zero(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    source = vmdump.BlockSource(np.zeros(PAGE, np.uint8), vmcoreinfo=b"OSRELEASE=" + b"r" * 90 + b"\n")
    vmdump.dump(source, path)
    content = path.read_bytes()
    assert content[12 + 2 * 65 : 12 + 3 * 65] == b"r" * 64 + b"\0"


@pytest.mark.parametrize("size", ["9" * 5000, "fd:" + "9" * 20])
def test_endless_numbers(size: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    words = (
        [size]
        if size.startswith("fd:")
        else [tmp_path / "out", "-f", "elf", "--begin", size, "--length", "1"]
    )
    done = run_vmdump("dump", "synthetic:4M", *words)
    assert done.returncode == errors.RequestError.exit_code, done.stderr
