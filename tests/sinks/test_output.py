"""The sink: a file appears whole or not at all, whatever the file system has."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from vmdump.errors import OutputExists, SinkError
from vmdump.sinks.opening import open_sink


@pytest.fixture(params=["without a name", "with a hidden name"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with O_TMPFILE, and as on a file system that has none."""
    if request.param == "with a hidden name":
        real_open = os.open

        def no_tmpfile(path: str, flags: int, *rest: int, **more: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
            return real_open(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", no_tmpfile)
    return str(request.param)


def test_file_appears_at_the_end_with_mode_0600(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with open_sink(path) as output:
        os.write(output.fd, b"whole")
        assert output.seekable
        assert not path.exists()
        hidden = os.listdir(tmp_path)
        assert bool(hidden) == (file_system == "with a hidden name")
    assert os.listdir(tmp_path) == ["dump"]
    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_left_after_an_error(file_system: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_sink(tmp_path / "dump") as output:
        os.write(output.fd, b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_file_that_appears_meanwhile_is_not_replaced(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with pytest.raises(OutputExists) as caught, open_sink(path) as output:
        os.write(output.fd, b"mine")
        path.write_bytes(b"theirs")
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["dump"]


def test_force_replaces_and_keeps_the_old_file_until_then(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), open_sink(path, force=True) as output:
        os.write(output.fd, b"half")
        raise ValueError("stop")
    assert path.read_bytes() == b"old"
    with open_sink(path, force=True) as output:
        os.write(output.fd, b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["dump"]


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def no_tmpfile(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real_open(path, flags, *rest, **more)

    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "open", no_tmpfile)
    monkeypatch.setattr(os, "link", no_link)
    with open_sink(tmp_path / "dump") as output:
        os.write(output.fd, b"whole")
    assert (tmp_path / "dump").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["dump"]


def test_sync_that_fails_is_an_error_and_leaves_nothing(
    file_system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing_sync)
    with pytest.raises(SinkError) as caught, open_sink(tmp_path / "dump") as output:
        os.write(output.fd, b"half")
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "content", "seekable"),
    [
        (os.O_WRONLY, b"", True),
        (os.O_WRONLY | os.O_APPEND, b"", False),
        (os.O_WRONLY | os.O_APPEND, b"x", False),
    ],
)
def test_descriptor_is_seekable_only_where_bytes_can_be_put(
    flags: int, content: bytes, seekable: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    fd = os.open(path, flags)
    try:
        assert open_sink(f"fd:{fd}").seekable is seekable
        os.lseek(fd, 10, os.SEEK_SET)
        assert not open_sink(f"fd:{fd}").seekable
    finally:
        os.close(fd)


def test_terminal_is_refused() -> None:
    reader, terminal = os.openpty()
    try:
        with pytest.raises(SinkError, match="terminal"):
            open_sink(f"fd:{terminal}")
        with pytest.raises(SinkError, match="terminal"):
            open_sink(os.ttyname(terminal))
    finally:
        os.close(reader)
        os.close(terminal)
