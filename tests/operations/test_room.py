"""Whether a dump fits: forecast, refusal, warning, and what is missing where the disk runs full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

import vmdump
from vmdump.errors import SinkError
from vmdump.operations.room import forecast_size, telling_what_is_missing
from vmdump.pipeline.control import Control
from vmdump.sinks import file_system
from vmdump.sinks.file import NewFile
from vmdump.sinks.opening import open_sink
from vmdump.writers.registry import make_writer

GUEST = "synthetic:64M?seed=3&fill=0.5"


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo", "kdump-zstd"])
def test_forecast_is_near(name: str, tmp_path: Path) -> None:
    vmdump.dump(GUEST, tmp_path / "dump", format=name)
    size = (tmp_path / "dump").stat().st_blocks * 512
    with vmdump.open_source(GUEST) as source:
        forecast = forecast_size(source.guest, make_writer(name))
    # The head is counted as 1 MiB, which is much beside some 10.
    assert 0.8 * size < forecast < 1.2 * size + (1 << 20)


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_what_cannot_fit_is_refused_before_the_guest_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NewFile, "room", lambda self: 2 << 20)
    done: list[int] = []
    with pytest.raises(
        SinkError, match=r"will have about .* MiB, and 2\.0 MiB are free: about .* missing"
    ) as told:
        vmdump.dump(GUEST, tmp_path / "dump", format=name, progress=lambda part, _: done.append(part))
    assert told.value.errno == errno.ENOSPC
    assert not any(done)
    assert list(tmp_path.iterdir()) == []


def test_what_may_not_fit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with vmdump.open_source(GUEST) as source:
        forecast = forecast_size(source.guest, make_writer("elf"))
    monkeypatch.setattr(NewFile, "room", lambda self: forecast)
    with caplog.at_level(logging.WARNING, "vmdump"):
        vmdump.dump(GUEST, tmp_path / "dump", format="elf")
    (record,) = caplog.records
    assert f"{tmp_path / 'dump'}: the dump may not fit" in record.getMessage()


def test_nothing_is_said_where_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vmdump"):
        vmdump.dump("synthetic:8M", tmp_path / "dump")
    assert not [record for record in caplog.records if "free" in record.getMessage()]


def test_a_full_disk_says_what_is_missing(tmp_path: Path) -> None:
    control = Control()
    with pytest.raises(SinkError) as told, open_sink(tmp_path / "dump", force=False) as sink:
        sink.begin(())
        channel = sink.channel()
        channel.write(b"x" * (4 << 20))
        channel.flush()
        control.start(400)
        control.advance(100)
        with telling_what_is_missing([sink], control):
            raise SinkError("cannot write", path=sink.name, errno=errno.ENOSPC)
    text = str(told.value)
    assert text.startswith(f"{tmp_path / 'dump'}: cannot write: No space left on device")
    assert text.endswith("; 25% of the guest is there, about 12.0 MiB are missing")


def test_a_set_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NewFile, "room", lambda self: 2 << 20)
    with pytest.raises(SinkError, match=r"vm\.1: the dump will have about .* missing") as told:
        vmdump.convert(GUEST, tmp_path / "vm", split=3)
    assert told.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_a_file_system_that_compresses(
    name: vmdump.Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory as it is may fit all the same; what is compressed already does not become smaller."""
    monkeypatch.setattr(NewFile, "room", lambda self: 2 << 20)
    monkeypatch.setattr(NewFile, "compresses", lambda self: True)
    if name == "elf":
        with caplog.at_level(logging.WARNING, "vmdump"):
            vmdump.dump(GUEST, tmp_path / "dump", format=name)
        assert "may not fit" in caplog.text
    else:
        with pytest.raises(SinkError, match="will have about"):
            vmdump.dump(GUEST, tmp_path / "dump", format=name)


def test_file_systems_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    tmpfs = 0x01021994
    with Path("/proc/self/stat").open() as proc, os.fdopen(os.memfd_create("test"), "wb") as memory:
        assert file_system._type_of(proc.fileno()) == 0x9FA0
        assert file_system._type_of(memory.fileno()) == tmpfs
        assert not file_system.compresses(memory.fileno())
        monkeypatch.setattr(file_system, "_COMPRESSING", (tmpfs,))
        assert file_system.compresses(memory.fileno())
        assert not file_system.compresses(proc.fileno())
