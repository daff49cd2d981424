"""A dump is not alone: others want the same guest, let it run, fork, freeze QEMU, kill, or press Ctrl-Z."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.elf import ElfCore

import vmdump
from scripted.fake_qemu import TICK, FakeQemu, Ram, inside_stop
from vmdump.errors import GuestBusy, OutputExists
from vmdump.sources.qemu import guardian_main

pytestmark = pytest.mark.usefixtures("nothing_left")
PATIENCE = 30
FROZEN = 16
LARGE = Ram(pages=8192, kind="memfd", written=range(0, 8192, 16))
"""More than a chunk, and more than a pipe holds."""
CTRL_Z = b"\x1a"


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"after {PATIENCE} s not yet: {what}"
        time.sleep(0.01)


def check_dump(path: Path, qemu: FakeQemu) -> None:
    """The file holds the guest's memory, byte for byte."""
    core = ElfCore(path).check_vmdump_layout()
    for start, contents in qemu.contents():
        assert core.read(start, len(contents)) == contents


def guardians(qemu: FakeQemu) -> list[int]:
    """The guardians of this guest; one that has ended and is a zombie has no command line any more."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if guardian_main.__file__.encode() in words and qemu.path.encode() in words:
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def started(*words: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Python's with pipes to talk to it; killed at the end, if it has not ended."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *map(str, words)], **(streams | options)) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def holding(qemu: FakeQemu, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``vmdump dump`` that holds the guest: the reader of its pipe has stalled."""
    words = ("-m", "vmdump", "dump", qemu.source, "-", "-f", "elf", "-q")
    with started(*words, **{"stdin": subprocess.DEVNULL, **options}) as child:
        assert child.stdout is not None
        assert child.stdout.read(4) == b"\x7fELF"
        assert not qemu.running
        yield child


def line_of(child: subprocess.Popen[bytes]) -> str:
    """What it says next."""
    assert child.stdout is not None
    return child.stdout.readline().decode().strip()


def go_on(child: subprocess.Popen[bytes]) -> None:
    """Let it do the next thing."""
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


# Two requests


def test_second_request_of_one_source_is_refused(tmp_path: Path, out: Path) -> None:
    """And takes nothing from the first: the guest is paused until that has been read to its end."""
    (out / "there").write_bytes(b"precious")
    calls = []
    with FakeQemu(tmp_path, [LARGE]) as qemu, vmdump.open_source(qemu.source) as source:

        def come_between(done: int, total: int) -> None:
            calls.append((done, total))
            if len(calls) == 1:
                with pytest.raises(GuestBusy) as caught:
                    vmdump.dump(source, out / "second.elf", format="elf")
                assert caught.value.state == "dump"
                with pytest.raises(OutputExists):
                    vmdump.dump(source, out / "there", format="elf")
                with pytest.raises(GuestBusy), vmdump.start_dump(source, out / "third.kdump") as job:
                    job.wait(PATIENCE)
            assert not qemu.running
            assert "cont" not in qemu.commands

        report = vmdump.dump(source, out / "first.elf", format="elf", progress=inside_stop(come_between))
        assert not report.fuzzy
        assert len(calls) > 1
        assert calls[-1][0] == calls[-1][1]
        assert qemu.running
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 1
        check_dump(out / "first.elf", qemu)
        vmdump.dump(source, out / "second.elf", format="elf")
    assert sorted(os.listdir(out)) == ["first.elf", "second.elf", "there"]
    assert (out / "there").read_bytes() == b"precious"


def stood_still(events: list[str]) -> float:
    """For how long, by the monitor's clock, which ticks with each event."""
    ends = [number for number, event in enumerate(events) if event == "RESUME"]
    begins = [number for number, event in enumerate(events) if event == "STOP"]
    return (sum(ends) - sum(begins)) * TICK


def test_paused_seconds_are_those_of_one_dump(tmp_path: Path, out: Path) -> None:
    """Not those of the dump before, nor those of a pause that somebody else has made in between."""
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as source:

        def events() -> list[str]:
            return [entry["event"] for entry in qemu.log if "event" in entry]

        told, expected = [], []
        # The attach is the first dump's.
        attach = stood_still(events())
        for pause in (["STOP", "RESUME"], [], ["STOP", *["BLOCK_JOB_READY"] * 100, "RESUME"], []):
            for name in pause:
                qemu.event(name)
            before = len(events())
            report = vmdump.dump(source, out / "guest.elf", format="elf", force=True)
            told.append(report.paused_seconds)
            expected.append(stood_still(events()[before:]))
        expected[0] += attach
        assert told == expected
        assert 0 < min(told) <= max(told) <= 2 * TICK

        # Stopped by somebody else before, and let run by him afterwards.
        qemu.event("STOP")
        assert vmdump.dump(source, out / "guest.elf", format="elf", force=True).paused_seconds == 0
        assert not qemu.running
        qemu.event("RESUME")
        before = len(events())
        report = vmdump.dump(source, out / "guest.elf", format="elf", force=True)
        assert report.paused_seconds == stood_still(events()[before:])


# A guest that is no longer the one that was stopped


def state(name: str) -> dict[str, object]:
    """query-status' answer."""
    return {"status": name, "running": name == "running"}


def refused_after(
    qemu: FakeQemu, out: Path, deed: Callable[[], object], *, running: bool = True
) -> GuestBusy:
    """A dump of a guest with which something is done while it is held; there is no file then."""

    def meanwhile(done: int, total: int) -> None:
        deed()

    progress = inside_stop(meanwhile) if running else meanwhile
    with pytest.raises(GuestBusy) as caught:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf", progress=progress)
    assert not list(out.iterdir())
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.mark.parametrize("event", ["RESET", "WAKEUP"])
@pytest.mark.parametrize("running", [True, False])
def test_guest_that_is_changed_while_it_is_held(event: str, running: bool, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, running=running) as qemu:
        error = refused_after(qemu, out, lambda: qemu.event(event), running=running)
        assert error.state == {"RESET": "prelaunch"}.get(event, "paused")
        # It still is merely paused, or at its start: who stopped it lets it run.
        assert qemu.commands.count("cont") == qemu.commands.count("stop") == running


@pytest.mark.parametrize("name", ["postmigrate", "running", "suspended", "shutdown", "finish-migrate"])
def test_guest_that_is_in_another_state_by_then(name: str, tmp_path: Path, out: Path) -> None:
    """`cont` would start it a second time, beside the one that it has become elsewhere."""
    with FakeQemu(tmp_path) as qemu:
        error = refused_after(
            qemu, out, lambda: qemu.ask("answer", command="query-status", answer=state(name))
        )
        assert error.state == name
        assert "stop" in qemu.commands
        assert "cont" not in qemu.commands


@pytest.mark.parametrize("event", ["WAKEUP", ""])
def test_suspended_guest_wakes_up(event: str, tmp_path: Path, out: Path) -> None:
    """Nobody stops a guest that sleeps, so nothing is resumed when it wakes up."""
    with FakeQemu(tmp_path, running=False, answers={"query-status": state("suspended")}) as qemu:

        def wake() -> None:
            if event:
                qemu.event(event)
            qemu.ask("answer", command="query-status", answer=state("running"))

        assert refused_after(qemu, out, wake, running=False).state == "running"
        assert "stop" not in qemu.commands
        assert "cont" not in qemu.commands


def test_guest_that_sleeps_on(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, running=False, answers={"query-status": state("suspended")}) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert "cont" not in qemu.commands
        check_dump(out / "guest.elf", qemu)


@pytest.mark.parametrize(("name", "resumed"), [("postmigrate", False), ("paused", True)])
def test_failed_dump_of_a_guest_in_another_state(name: str, resumed: bool, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:

        def fail(done: int, total: int) -> None:
            qemu.ask("answer", command="query-status", answer=state(name))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            vmdump.dump(qemu.source, out / "guest.elf", format="elf", progress=inside_stop(fail))
        assert ("cont" in qemu.commands) is resumed
        assert not list(out.iterdir())


# Those who freeze and kill


def test_qemu_is_frozen_when_vmdump_is_killed(tmp_path: Path) -> None:
    with FakeQemu(tmp_path, [LARGE]) as qemu, holding(qemu) as child:
        with qemu.frozen():
            child.kill()
            child.wait(PATIENCE)
            # Longer than a client waits for a greeting, and for one on a second connection.
            time.sleep(FROZEN)
            assert not qemu.running
            assert len(guardians(qemu)) == 1
        until(lambda: qemu.running, "the guest runs")
        until(lambda: not guardians(qemu), "the guardian has ended")
        assert qemu.commands.count("cont") == 1


TWO_DUMPS = """
import sys, vmdump

totals = []

def hold(done, total):
    totals.append(total)
    if total == totals[0]:
        return  # not stopped yet
    print("held", flush=True)
    sys.stdin.readline()

with vmdump.open_source(sys.argv[1]) as source:
    vmdump.dump(source, sys.argv[2] + "/first", format="elf")
    print("first", flush=True)
    sys.stdin.readline()
    vmdump.dump(source, sys.argv[2] + "/second", format="elf", progress=hold)
"""


def test_guardian_that_was_killed_is_replaced(tmp_path: Path, out: Path) -> None:
    """The new one is as good: it lets the guest run when vmdump dies in the next dump."""
    with FakeQemu(tmp_path) as qemu, started("-c", TWO_DUMPS, qemu.source, out) as child:
        assert line_of(child) == "first"
        (first,) = guardians(qemu)
        os.kill(first, signal.SIGKILL)
        until(lambda: not guardians(qemu), "the guardian is dead")
        go_on(child)
        assert line_of(child) == "held"
        assert not qemu.running
        assert len(guardians(qemu)) == 1
        child.kill()
        until(lambda: qemu.running, "the guest runs")
        until(lambda: not guardians(qemu), "the guardian has ended")
        assert os.listdir(out) == ["first"]


# Ctrl-Z


def check_goes_on(child: subprocess.Popen[bytes], qemu: FakeQemu) -> None:
    """It was not stopped: as soon as the reader reads on, it ends, and the guest runs."""
    assert child.stdout is not None
    child.stdout.read()
    assert child.wait(PATIENCE) == 0
    assert qemu.running


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN])
def test_signals_that_stop_a_process(number: signal.Signals, tmp_path: Path) -> None:
    # In a group of its own, beside that of its parent: the kernel stops no orphaned group.
    with FakeQemu(tmp_path, [LARGE]) as qemu, holding(qemu, process_group=0) as child:
        child.send_signal(number)
        check_goes_on(child, qemu)


# What a shell does with a foreground job.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen([sys.executable, *sys.argv[1:]], process_group=0,
                       preexec_fn=lambda: os.tcsetpgrp(0, os.getpid()))
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
_, status = os.waitpid(job.pid, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.killpg(job.pid, signal.SIGKILL)
    sys.exit("stopped")
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.timeout(PATIENCE)
def test_ctrl_z_in_a_terminal(tmp_path: Path) -> None:
    keyboard, terminal = os.openpty()
    try:
        with FakeQemu(tmp_path, [LARGE]) as qemu:
            words = ("-c", SHELL, "-m", "vmdump", "dump", qemu.source, "-", "-f", "elf", "-q")
            with started(*words, stdin=terminal, stderr=terminal, start_new_session=True) as shell:
                assert shell.stdout is not None
                assert shell.stdout.read(4) == b"\x7fELF"
                assert not qemu.running
                os.write(keyboard, CTRL_Z)
                # The terminal sends the signal first, and echoes then.
                assert os.read(keyboard, 2) == b"^Z"
                check_goes_on(shell, qemu)
    finally:
        os.close(keyboard)
        os.close(terminal)


# Those who fork

FORK_AND_CLOSE = """
import os, signal, sys, time, vmdump

source = vmdump.open_source(sys.argv[1])
vmdump.dump(source, sys.argv[2] + "/first", format="elf")
child = os.fork()
if child == 0:
    signal.alarm(30)
    while True:
        time.sleep(100)
source.close()
print("closed", flush=True)
sys.stdin.readline()
vmdump.dump(sys.argv[1], sys.argv[2] + "/second", format="elf")
print("dumped", flush=True)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""

CLOSED_BY_A_CHILD = """
import os, signal, sys, vmdump

totals = []

def fork(done, total):
    totals.append(total)
    if total == totals[0] or done < total:
        return  # not stopped yet, or not all read
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # rather than to hang
        if sys.argv[3] == "close":
            source.close()
            os._exit(0)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.stdin.readline()

with vmdump.open_source(sys.argv[1]) as source:
    vmdump.dump(source, sys.argv[2] + "/first", format="elf", progress=fork)
    vmdump.dump(source, sys.argv[2] + "/second", format="elf")
print("dumped", flush=True)
"""


def test_child_that_outlives_the_source(tmp_path: Path, out: Path) -> None:
    """It has the guardian's pipe and the connection open as well, and keeps nobody from anything."""
    with FakeQemu(tmp_path) as qemu, started("-c", FORK_AND_CLOSE, qemu.source, out) as child:
        assert line_of(child) == "closed"
        assert not guardians(qemu)
        go_on(child)
        assert line_of(child) == "dumped"
        assert child.wait(PATIENCE) == 0
        for name in ("first", "second"):
            check_dump(out / name, qemu)


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("way", ["close", "exit"])
def test_child_that_closes_its_copy(way: str, tmp_path: Path, out: Path) -> None:
    """In the middle of its parent's dump: the guest and the connection are its parent's.

    One that exits takes its copy of the event loop apart, and must not take the sockets out of its parent's.
    """
    with FakeQemu(tmp_path, [Ram(pages=16)]) as qemu:
        with started("-c", CLOSED_BY_A_CHILD, qemu.source, out, way) as child:
            assert line_of(child) == "0"
            assert not qemu.running
            assert "cont" not in qemu.commands
            assert len(guardians(qemu)) == 1
            assert not list(out.iterdir())
            go_on(child)
            assert line_of(child) == "dumped"
            assert child.wait(PATIENCE) == 0
        for name in ("first", "second"):
            check_dump(out / name, qemu)
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 2


# A task that is cancelled


@pytest.mark.parametrize("loop", ["goes on", "ends"])
def test_cancelled_twice_during_the_attach(loop: str, tmp_path: Path, out: Path) -> None:
    """The attach cannot be interrupted, but nothing comes of it later."""

    async def run() -> None:
        task = asyncio.create_task(vmdump.dump_async(qemu.source, out / "guest.elf", format="elf"))
        while not any(thread.name == "vmdump-qmp" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        assert task.cancelled()
        os.kill(qemu.pid, signal.SIGCONT)
        while loop == "goes on" and qemu.log[-1:] != [{"disconnected": True}]:
            await asyncio.sleep(0.01)

    with FakeQemu(tmp_path) as qemu:
        os.kill(qemu.pid, signal.SIGSTOP)
        asyncio.run(asyncio.wait_for(run(), PATIENCE))
        until(lambda: qemu.log[-1:] == [{"disconnected": True}], "the source is closed")
        assert qemu.commands.count("stop") == qemu.commands.count("cont")
        assert qemu.running
    assert not list(out.iterdir())


# A program with many files

MANY_FILES = """
import os, resource, sys, vmdump

resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for _ in range(1100):
    os.dup(2)
vmdump.dump(sys.argv[1], sys.argv[2], format=sys.argv[3])
"""


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_more_files_than_select_can_wait_for(name: str, tmp_path: Path, out: Path) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most not in (resource.RLIM_INFINITY, max(most, 4096)):
        pytest.skip(f"this user may open {most} files only")
    with FakeQemu(tmp_path) as qemu:
        words = ("-c", MANY_FILES, qemu.source, out / "guest", name)
        with started(*words, stderr=subprocess.PIPE) as child:
            _, complaint = child.communicate(timeout=PATIENCE)
            assert child.returncode == 0, complaint.decode()
        if name == "elf":
            check_dump(out / "guest", qemu)
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 1
