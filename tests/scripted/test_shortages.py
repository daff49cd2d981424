"""No more files, memory or threads: one line that says so, no file, and the guest runs."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from oracles.elf_builder import Load, build_elf

import vmdump
from scripted.fake_qemu import PAGE, FakeQemu
from vmdump import errors
from vmdump.cli.main import main
from vmdump.errors import LayoutError, OutOfResources

PATIENCE = 60
FILES = "ulimit -n"
MANY = 1_000_000
MEMORY = 512 << 20


def limited(number: int, value: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run vmdump under a limit."""
    return subprocess.run(
        [sys.executable, "-m", "vmdump", *map(str, words)],
        preexec_fn=lambda: resource.setrlimit(number, (value, value)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def check(done: subprocess.CompletedProcess[str], out: Path) -> None:
    """One line that is not about a bug, and no file."""
    assert done.returncode in (3, 5, OutOfResources.exit_code), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("vmdump: ")
    assert "namespace" not in done.stderr
    assert not os.listdir(out)


@pytest.mark.usefixtures("nothing_left")
def test_open_files(tmp_path: Path, out: Path) -> None:
    failed = 0
    with FakeQemu(tmp_path) as qemu:
        # With fewer than 5 the interpreter itself does not start.
        for limit in range(5, 64, 2):
            done = limited(resource.RLIMIT_NOFILE, limit, "dump", qemu.source, out / "guest", "-j", "2")
            assert qemu.running
            if done.returncode == 0:
                break
            failed += 1
            check(done, out)
            assert FILES in done.stderr
    assert done.returncode == 0
    assert failed > 3


@pytest.mark.parametrize("name", ["vmdump-qmp", "vmdump"])
@pytest.mark.usefixtures("nothing_left")
def test_threads(
    name: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with FakeQemu(tmp_path) as qemu:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        code = main(["dump", qemu.source, str(out / "guest")])
        monkeypatch.undo()
        said = capsys.readouterr().err
        assert code == OutOfResources.exit_code, said
        assert "pids.max" in said
        assert qemu.running
    assert not os.listdir(out)


@pytest.mark.parametrize("name", ["vmdump-qmp", "vmdump-job", "vmdump"])
@pytest.mark.usefixtures("nothing_left")
def test_threads_of_a_library(name: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of vmdump's own there too, and nobody holds the guest's monitor."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    calls: list[Callable[[str], object]] = [
        lambda source: vmdump.start_dump(source, out / "guest").wait(),
        lambda source: asyncio.run(vmdump.dump_async(source, out / "guest")),
    ]
    if name != "vmdump-job":
        calls += [
            lambda source: vmdump.dump(source, out / "guest"),
            lambda source: vmdump.verify(source),
        ]
    with FakeQemu(tmp_path) as qemu:
        for call in calls:
            monkeypatch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(OutOfResources, match="no more threads"):
                call(qemu.source)
            monkeypatch.undo()
            assert qemu.running
            assert not os.listdir(out)
            vmdump.verify(qemu.source)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, os.strerror(errno.EMFILE))])
def test_shortages_of_a_library(error: Exception, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vmdump.writers.kdump.kdump_head", exhausted)
    for source in ("synthetic:2M", bytes(PAGE)):
        with pytest.raises(OutOfResources) as caught:
            vmdump.dump(source, out / "guest")
        assert caught.value.__cause__ is error


def test_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vmdump.cli.dump.check_request", exhausted)
    assert main(["dump", "synthetic:1M", str(out / "guest")]) == OutOfResources.exit_code
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_hints(number: int) -> None:
    error = errors.SourceError("cannot open", path="/guest", errno=number, hint="buy another host")
    assert "buy" not in str(error)
    assert os.strerror(number) in str(error)
    raised = OutOfResources.of(OSError(number, os.strerror(number), "/guest"))
    assert raised is not None
    assert str(raised).startswith("/guest: ")
    assert OutOfResources.of(OSError(errno.EIO, "broken")) is None


@pytest.mark.timeout(PATIENCE)
def test_a_million_blocks(tmp_path: Path, out: Path) -> None:
    header = bytearray(build_elf([Load(0, bytes(PAGE))], xnum=True)[:64])
    struct.pack_into("<QQ", header, 32, 64, 64 + 56 * MANY)
    entry = struct.pack("<IIQQQQQQ", 1, 0, PAGE, 0, 0, PAGE, PAGE, 0)
    section = bytearray(64)
    section[44:48] = MANY.to_bytes(4, "little")
    elf = bytes(header) + entry * MANY + bytes(section)
    with FakeQemu(tmp_path, elf=elf) as qemu:
        done = limited(resource.RLIMIT_DATA, MEMORY, "dump", qemu.source, out / "guest", "-j", "1")
        assert done.returncode == LayoutError.exit_code, done.stderr
        assert f"{MANY} blocks" in done.stderr
        assert qemu.running
    assert not os.listdir(out)
