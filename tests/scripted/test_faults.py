"""Every command of a dump fails once: the guest never stays stopped, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from oracles.elf import ElfCore

import vmdump
from scripted.fake_qemu import FakeQemu, Ram, inside_stop, rule
from vmdump.errors import GuestBusy, QmpError, SourceError, VmdumpError
from vmdump.sources.qemu import guardian

pytestmark = pytest.mark.usefixtures("nothing_left")
PATIENCE = 30


def dump(qemu: FakeQemu, out: Path, **options: Any) -> VmdumpError | None:
    """Dump; the error, and then no file, or None, and then one with the guest's memory."""
    try:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf", **options)
    except VmdumpError as error:
        assert not list(out.iterdir())
        assert len(str(error).splitlines()) == 1, str(error)
        return error
    core = ElfCore(out / "guest.elf").check_vmdump_layout()
    for start, contents in qemu.contents():
        assert core.read(start, len(contents)) == contents
    (out / "guest.elf").unlink()
    return None


def asks_for_more(qemu: FakeQemu, number: int) -> bool:
    """Whether the command is one that not every QEMU knows."""
    command = [entry for entry in qemu.log if "command" in entry][number - 1]
    return str(command["arguments"].get("command-line", "")).startswith("info ")


@pytest.mark.parametrize("deed", ["error", "close", "done-close", "silent"])
def test_every_command_fails_once(
    deed: str, tmp_path: Path, out: Path, request: pytest.FixtureRequest
) -> None:
    if deed == "silent":
        request.getfixturevalue("hasty")
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with FakeQemu(folder, [Ram(pages=16, written=(0, 3))], rules=[rule("", deed, number)]) as qemu:
            error = dump(qemu, out)
            if len(qemu.commands) < number:
                break
            failed = qemu.commands[number - 1]
            here = f"command {number}, {failed}: {error}"
            assert qemu.running, here
            if deed != "error":
                assert isinstance(error, QmpError), here
            elif failed == "getfd":
                # A proxy, which passes no descriptor on, is where the memory is not.
                assert isinstance(error, SourceError), here
            elif asks_for_more(qemu, number):
                assert error is None, here
            elif failed not in ("qom-get", "query-sev", "query-migrate", "query-dump", "query-chardev"):
                # qmp_capabilities is the one that QEMU's client reports in its own way.
                assert isinstance(error, QmpError), here
                assert error.error_class == "GenericError" or failed == "qmp_capabilities", here
                assert error.command == failed or failed == "qmp_capabilities", here
    assert number > 15
    assert error is None


@pytest.mark.usefixtures("hasty")
def test_stop_that_is_done_but_fails(tmp_path: Path, out: Path) -> None:
    """QEMU stops the guest and never says so."""
    with FakeQemu(tmp_path, rules=[rule("stop", "ignored")]) as qemu:
        error = dump(qemu, out)
        assert isinstance(error, QmpError)
        assert error.command == "stop"
        assert qemu.running
        assert "cont" in qemu.commands


@pytest.mark.usefixtures("hasty")
def test_cont_that_fails_for_good(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule("cont", "error")]) as qemu:
        error = dump(qemu, out)
        assert isinstance(error, QmpError)
        assert (error.command, error.exit_code) == ("cont", 13)
        assert "is still paused and could not be resumed" in str(error)
        assert "injected" in str(error)
        # vmdump has tried, and its guardian.
        assert qemu.commands.count("cont") >= 2
        assert not qemu.running


def test_cont_during_a_dump_of_somebody(tmp_path: Path, out: Path) -> None:
    """QEMU resumes no guest until it has ended."""
    with FakeQemu(tmp_path, rules=[rule("cont", "dumping", number) for number in (1, 2)]) as qemu:
        assert dump(qemu, out) is None
        assert qemu.commands.count("cont") == 3
        assert qemu.running


@pytest.mark.usefixtures("hasty")
def test_guardian_is_heard(tmp_path: Path, out: Path) -> None:
    """QEMU refuses vmdump's `cont` and obeys the guardian's over the same connection: it gets the answer.

    It gets it although it is slow to read: vmdump, which has the connection open as well, does not.
    """
    program = Path(guardian.guardian_main.__file__)
    line = "                data = self._connection.recv(65536)\n"
    assert program.read_text().count(line) == 1
    slow = "                data = time.sleep(0.1) or self._connection.recv(65536)\n"
    program.write_text(program.read_text().replace(line, slow))
    with FakeQemu(tmp_path, rules=[rule("cont", "error", 1)]) as qemu:
        error = dump(qemu, out)
        assert isinstance(error, QmpError)
        assert qemu.commands.count("cont") == 2
        assert qemu.running
        assert "paused" not in str(error)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("deed", ["silent", "ignored"])
def test_cont_that_is_never_answered(deed: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule("cont", deed)]) as qemu:
        error = dump(qemu, out)
        assert isinstance(error, QmpError)
        assert error.command == "cont"
        # The guardian finds out that it was obeyed all the same.
        assert ("the guardian resumes it" in str(error)) == (deed == "silent")


def test_connection_that_ends_while_the_guest_stands_still(tmp_path: Path, out: Path) -> None:
    """The guardian comes over a new connection."""
    with FakeQemu(tmp_path, rules=[rule("stop", "done-close")]) as qemu:
        assert isinstance(dump(qemu, out), QmpError)
        assert qemu.running
        log = qemu.log
        second = [number for number, entry in enumerate(log) if "connected" in entry][1]
        assert {"command": "cont", "arguments": {}, "id": "vmdump-guardian"} in log[second:]


def test_qemu_dies_while_it_is_read(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:

        def kill(done: int, total: int) -> None:
            qemu.kill()

        error = dump(qemu, out, progress=kill)
        # By the socket or by the memory, whichever is seen first.
        assert isinstance(error, QmpError | SourceError)
        assert "ended" in str(error)


def test_somebody_else_has_stopped_the_guest(tmp_path: Path, out: Path) -> None:
    """Between the question and the stop: whoever did that will let it run, and vmdump does not."""
    with FakeQemu(tmp_path, rules=[rule("stop", "stolen")]) as qemu:
        assert dump(qemu, out) is None
        assert "stop" in qemu.commands
        assert "cont" not in qemu.commands


@pytest.mark.parametrize("running", [True, False])
def test_somebody_else_lets_the_guest_run(running: bool, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, running=running) as qemu:

        def let_run(done: int, total: int) -> None:
            if done:
                qemu.event("RESUME")

        error = dump(qemu, out, progress=inside_stop(let_run) if running else let_run)
        assert isinstance(error, GuestBusy)
        assert (error.state, error.exit_code) == ("running", 12)
        assert qemu.running
        assert running or "cont" not in qemu.commands


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_any_exception_lets_the_guest_run(kind: type[BaseException], tmp_path: Path, out: Path) -> None:
    """As soon as the dump has ended, whoever has opened the guest, and again for the next one."""
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as guest:

        def fail(done: int, total: int) -> None:
            raise kind("of the caller")

        with pytest.raises(kind, match="of the caller"):
            vmdump.dump(guest, out / "guest.elf", format="elf", progress=inside_stop(fail))
        assert qemu.commands[-1] == "cont"
        assert not list(out.iterdir())
        vmdump.dump(guest, out / "guest.elf", format="elf")
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 2


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        with pytest.raises(vmdump.errors.SinkError):
            vmdump.dump(qemu.source, "/dev/full")
        assert qemu.running
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 1


def test_output_that_exists(tmp_path: Path, out: Path) -> None:
    """The guest is not stopped for a dump that cannot be."""
    (out / "guest.elf").write_bytes(b"precious")
    with FakeQemu(tmp_path) as qemu:
        with pytest.raises(vmdump.errors.OutputExists):
            vmdump.dump(qemu.source, out / "guest.elf")
        assert "stop" not in qemu.commands
    assert (out / "guest.elf").read_bytes() == b"precious"


def test_source_that_is_closed_without_a_dump(tmp_path: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        guest = vmdump.open_source(qemu.source)
        guest.close()
        guest.close()
        assert "stop" not in qemu.commands
        with pytest.raises(SourceError, match="closed"):
            vmdump.dump(guest, tmp_path / "guest.elf")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
def test_vmdump_is_killed(number: int, tmp_path: Path, out: Path) -> None:
    """Whatever ends it, the guest runs again; the reader of the dump has stalled at that time."""
    with FakeQemu(tmp_path, [Ram(pages=8192, kind="memfd", written=range(0, 8192, 16))]) as qemu:
        command = [sys.executable, "-m", "vmdump", "dump", qemu.source, "-", "-f", "elf"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        try:
            with child.stdout:
                assert child.stdout.read(4) == b"\x7fELF"
                assert not qemu.running
                os.kill(child.pid, number)
                child.wait(PATIENCE)
        finally:
            child.kill()
            child.wait()
        deadline = time.monotonic() + PATIENCE
        while not qemu.running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert qemu.running
        assert not list(out.iterdir())
