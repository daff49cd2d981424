"""The parts of a split set appear together, when all are whole, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vmdump
from vmdump.errors import Cancelled, OutputExists, RequestError, SinkError
from vmdump.sinks.file import NewFile
from vmdump.sinks.set import SinkSet, part_names

GUEST = "synthetic:24M?seed=9&fill=0.5"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "guest"
    vmdump.dump(GUEST, path, format="kdump-lzo")
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a dump that one thread converts in a second."""
    path = tmp_path_factory.mktemp("big") / "guest"
    vmdump.dump("synthetic:1G?seed=1&fill=0.02", path, format="kdump-zstd", level=1)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_parts_appear_at_the_end(tmp_path: Path) -> None:
    with SinkSet(part_names(tmp_path / "set", 3)) as parts:
        for number, sink in enumerate(parts.sinks):
            os.write(sink.fd, b"%d" % number)
        assert names(tmp_path) == []
    assert names(tmp_path) == ["set.1", "set.2", "set.3"]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [b"0", b"1", b"2"]


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SinkSet(part_names(tmp_path / "set", 3)):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_part_that_cannot_appear_takes_the_others_with_it(force: bool, tmp_path: Path) -> None:
    """Somebody makes a folder, or without --force a file, of the last part's name meanwhile."""
    in_the_way = tmp_path / "set.3"
    with pytest.raises(SinkError) as caught, SinkSet(part_names(tmp_path / "set", 3), force=force):
        in_the_way.mkdir() if force else in_the_way.write_bytes(b"theirs")
    assert isinstance(caught.value, OutputExists) is not force
    assert names(tmp_path) == ["set.3"]
    assert force or in_the_way.read_bytes() == b"theirs"


def test_an_interruption_between_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = NewFile.publish

    def publish(self: NewFile) -> None:
        if self.name.endswith("3"):
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(NewFile, "publish", publish)
    with pytest.raises(KeyboardInterrupt), SinkSet(part_names(tmp_path / "set", 4)):
        pass
    assert names(tmp_path) == []


def test_all_are_synced_before_the_first_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = [], os.fsync

    def fsync(fd: int) -> None:
        synced.append(names(tmp_path))
        real(fd)

    with SinkSet(part_names(tmp_path / "set", 3)):
        monkeypatch.setattr(os, "fsync", fsync)
    assert synced[:3] == [[], [], []]


def test_one_that_exists_refuses_the_whole_set(source: Path, tmp_path: Path) -> None:
    (tmp_path / "set.2").write_bytes(b"mine")
    with pytest.raises(OutputExists):
        vmdump.convert(source, tmp_path / "set", format="kdump-lzo", split=3)
    assert names(tmp_path) == ["set.2"]
    vmdump.convert(source, tmp_path / "set", format="kdump-lzo", split=3, force=True)
    assert names(tmp_path) == ["set.1", "set.2", "set.3"]
    assert (tmp_path / "set.2").read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["", "-", "fd:1"])
def test_a_set_needs_a_path(name: str) -> None:
    with pytest.raises(RequestError):
        part_names(name, 2)


def test_a_part_that_is_a_fifo(source: Path, tmp_path: Path) -> None:
    os.symlink("/dev/null", tmp_path / "set.2")
    with pytest.raises(RequestError, match="not a regular file"):
        vmdump.convert(source, tmp_path / "set", format="kdump-lzo", split=2)
    assert names(tmp_path) == ["set.2"]


def test_a_part_of_the_source_is_not_replaced(source: Path, tmp_path: Path) -> None:
    vmdump.convert(source, tmp_path / "set", format="kdump-lzo", split=2)
    before = [(tmp_path / name).read_bytes() for name in names(tmp_path)]
    parts = [tmp_path / "set.1", tmp_path / "set.2"]
    with pytest.raises(SinkError, match="holds the guest"):
        vmdump.convert(parts, tmp_path / "set", format="kdump-zlib", split=2, force=True)
    with pytest.raises(SinkError, match="holds the guest"):
        vmdump.convert(parts, tmp_path / "set.2", format="kdump-zlib", force=True)
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == before


def test_no_room(source: Path, tmp_path: Path) -> None:
    """A part becomes larger than a file may be: none is left."""
    code = (
        "import resource, signal, sys, vmdump\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "try:\n"
        "    vmdump.convert(sys.argv[1], sys.argv[2], format='kdump-lzo', split=2)\n"
        "except vmdump.errors.SinkError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "set"], check=False)
    assert done.returncode == SinkError.exit_code
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [["-f", "elf"], ["-f", "kdump-lzo"], ["-f", "kdump-lzo", "--split", "3"]])
def test_signals_leave_no_file(number: int, options: list[str], big: Path, tmp_path: Path) -> None:
    """The signal comes when the first output has been opened."""
    folder = tmp_path / "out"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "vmdump", "convert", big, folder / "out", "-j", "1", *options],
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None and not _writes(process.pid, folder):
            pass
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert said.count(b"\n") == 1
    assert names(folder) == []


def _writes(pid: int, folder: Path) -> bool:
    """Tell whether the process has a file without a name in the folder."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(link.startswith(f"{folder}/") for link in links)


def test_cancelling_leaves_no_file(source: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        vmdump.convert(source, tmp_path / "set", format="kdump-lzo", split=4, progress=progress)
    assert names(tmp_path) == []
