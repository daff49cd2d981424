"""Words that are misspelt or short, sockets without a scheme, and what to type next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.emulators import Start, emulators
from oracles import judges

import vmdump
from vmdump.cli import main as module
from vmdump.cli.main import main
from vmdump.errors import AccessDenied, QmpError, RequestError, SourceError
from vmdump.formats.names import find_format
from vmdump.opening import names_live_guest

GUEST = "synthetic:2M"


@pytest.fixture
def start() -> Iterator[Start]:
    judges.require("qemu-system-x86_64")
    with emulators() as start:
        yield start


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_codec_stands_for_its_format(codec: str, tmp_path: Path) -> None:
    assert find_format(codec).name == f"kdump-{codec}"
    assert not find_format(codec).raw


def test_short_name_on_the_command_line(tmp_path: Path) -> None:
    assert main(["dump", GUEST, str(tmp_path / "out"), "-f", "zstd"]) == 0
    assert vmdump.info(tmp_path / "out").compression == "zstd"


@pytest.mark.parametrize(
    ("options", "code", "asked"),
    [
        (("-f", "zsdt"), 2, "(is it zstd?); there are elf, kdump-zlib"),
        (("-f", "kdump_zlib"), 2, "(is it kdump-zlib?)"),
        (("--layout", "flat"), 2, "(is it flattened?)"),
        (("--engine", "libdeflat"), 8, "(is it libdeflate?)"),
        (("-f", "ZSTD"), 2, "(is it zstd?)"),
        (("--exclude", "zero,usr"), 2, "(is it user?); there are zero, cache"),
    ],
)
def test_nearest_word(
    options: tuple[str, ...], code: int, asked: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["dump", GUEST, str(tmp_path / "out"), *options]) == code
    assert asked in capfd.readouterr().err


def test_nothing_near_is_not_suggested() -> None:
    with pytest.raises(RequestError, match=r"^format: 'pdf' is not known; there are"):
        find_format("pdf")


def test_misspelt_scheme(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no source qpm: \(is it qmp\?\)") as caught:
        vmdump.open_source("qpm:/run/vm.qmp")
    assert caught.value.filename == "qpm:/run/vm.qmp"
    assert "sources are avml:, libvirt:, lime:, qmp:, raw:, synthetic: and paths" in str(caught.value)


def test_file_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vmdump.dump(GUEST, "qpm:x")
    with vmdump.open("qpm:x") as dump:
        assert dump.blocks


def test_missing_source_of_a_dump(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(tmp_path / "web"), str(tmp_path / "out")]) == SourceError.exit_code
    assert capfd.readouterr().err.endswith("; 'vmdump guests' lists the running guests\n")


@pytest.mark.parametrize("path", ["/tmp", "/etc/passwd"])
def test_path_of_no_socket(path: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="this is no socket"):
        vmdump.dump(f"qmp:{path}", tmp_path / "out")


def test_path_of_a_qmp_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm"
    start("-qmp", f"unix:{path},server=on,wait=off", until=path)
    assert names_live_guest(str(path))
    vmdump.dump(str(path), tmp_path / "dump")
    assert vmdump.info(tmp_path / "dump").pages


@pytest.mark.parametrize("scheme", ["", "qmp:"])
def test_monitor_for_people(scheme: str, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm"
    start("-monitor", f"unix:{path},server=on,wait=off", until=path)
    with pytest.raises(QmpError, match=r"this is QEMU's monitor for people \(HMP\), and vmdump needs QMP"):
        vmdump.open_source(f"{scheme}{path}")


@pytest.mark.parametrize(
    ("name", "said"),
    [("libvirt-sock", "this is the socket of libvirt's daemon"), ("other", "no greeting within 0 s")],
)
def test_silent_socket(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("vmdump.sources.qemu.monitor._GREETING_WAIT", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / name))
        listener.listen()
        with pytest.raises(QmpError, match=said):
            vmdump.open_source(str(tmp_path / name))


def test_command_for_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin/vmdump"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = AccessDenied("no permission", path="/proc/1/mem", errno=13, hint="run vmdump as root")
    words = ["dump", "qmp:/run/a b", "out"]
    assert module._next_step(error, words) == f"; as root: sudo {program} dump 'qmp:/run/a b' out"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert module._next_step(error, words) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("info", "{dump}"),
        ("info", "{dump}", "--json"),
        ("read", "{dump}", "0", "640K"),
        ("--help",),
        ("guests",),
    ],
)
def test_reader_that_has_seen_enough(words: tuple[str, ...], tmp_path: Path, run_vmdump: RunVmdump) -> None:
    vmdump.dump("synthetic:16M", tmp_path / "dump")
    end, other = os.pipe()
    os.close(end)
    done = run_vmdump(*(word.format(dump=tmp_path / "dump") for word in words), stdout=other)
    os.close(other)
    assert (done.returncode, done.stderr) == (0, b"")


LOG = """
import sys
from types import SimpleNamespace
import vmdump.cli.dmesg as command
from vmdump.cli.main import main
command.dmesg = lambda *_, **__: iter([SimpleNamespace(line=lambda: "a line of the log")] * 100_000)
sys.exit(main(["dmesg", "vm.kdump"]))
"""


def test_reader_of_a_log_that_has_seen_enough() -> None:
    words = [sys.executable, "-c", LOG]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a line of the log\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_reader_of_a_dump_that_went_away(run_vmdump: RunVmdump) -> None:
    """What a command is for did not happen: that is an error."""
    end, other = os.pipe()
    os.close(end)
    done = run_vmdump("dump", "synthetic:16M", "-", stdout=other)
    os.close(other)
    assert done.returncode == 5
    assert b"the reader went away" in done.stderr


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("dump", "qmp:/run/x", "out"), ["the guest goes on as before", "no file is left"]),
        (("--debug", "dump", "libvirt:web", "-"), ["the guest goes on as before"]),
        (("convert", "a", "b"), ["no file is left"]),
        (("read", "a", "0", "1"), []),
        (("info", "a"), []),
    ],
)
def test_what_an_interrupted_command_leaves(words: tuple[str, ...], left: list[str]) -> None:
    assert module._what_is_left(words, kept=False) == left
