"""Signals at every moment: the guest runs, the first one gives the code, there is one line and no file."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vmdump
from scripted.fake_qemu import FakeQemu, Ram, inside_stop, rule
from scripted.test_other_people import LARGE, PATIENCE, guardians, until
from vmdump.sources.qemu import monitor

pytestmark = pytest.mark.usefixtures("nothing_left")
ENDS = 10
"""Seconds within which a signal ends vmdump, also if QEMU never answers: 3, and what a busy machine adds."""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGQUIT: 131}
MOMENTS = 40


@contextlib.contextmanager
def holding(qemu: FakeQemu) -> Iterator[subprocess.Popen[bytes]]:
    """``vmdump dump`` that holds the guest: the reader of its pipe has stalled."""
    words = [sys.executable, "-m", "vmdump", "dump", qemu.source, "-", "-f", "elf", "-q"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.read(4) == b"\x7fELF"
            assert not qemu.running
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen[bytes], code: int) -> str:
    """Its one line, when it ends with that code."""
    assert child.stderr is not None
    child.wait(ENDS)
    text = child.stderr.read().decode()
    assert child.returncode == code, text
    assert text.startswith("vmdump: ended by SIG"), text
    assert len(text.splitlines()) == 1, text
    return text


def check_runs(qemu: FakeQemu) -> None:
    """The guest runs, and nobody holds its monitor."""
    until(lambda: qemu.running, "the guest runs")
    until(lambda: not guardians(qemu), "the guardian has ended")


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT,), (signal.SIGINT,) * 3, (signal.SIGHUP, *CODES)], ids=["one", "three", "all"]
)
def test_signals_while_qemu_is_silent(numbers: tuple[signal.Signals, ...], tmp_path: Path) -> None:
    """Vmdump does not wait for long: it says what the guardian does, and that does it."""
    with FakeQemu(tmp_path, [LARGE]) as qemu, holding(qemu) as child:
        with qemu.frozen():
            for each in numbers:
                child.send_signal(each)
                time.sleep(0.1)
            line = line_of(child, CODES[numbers[0]])
            assert "may still be paused until QEMU answers" in line
            assert "the guardian resumes it" in line
            assert len(guardians(qemu)) == 1
        check_runs(qemu)
        assert qemu.commands.count("cont") == 1


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_signals_while_qemu_is_slow(killed: bool, tmp_path: Path) -> None:
    with FakeQemu(tmp_path, [LARGE]) as qemu, holding(qemu) as child:
        with qemu.frozen():
            for _ in range(3):
                child.send_signal(signal.SIGINT)
                time.sleep(0.1)
            if killed:
                child.kill()
                child.wait()
            time.sleep(0.3)
        if not killed:
            assert line_of(child, 130) == "vmdump: ended by SIGINT; the guest goes on as before\n"
        check_runs(qemu)


def test_signals_come_while_it_resumes(tmp_path: Path) -> None:
    """Those behind the first one change nothing."""
    with FakeQemu(tmp_path, [LARGE], rules=[rule("cont", "slow")]) as qemu, holding(qemu) as child:
        child.send_signal(signal.SIGTERM)
        until(lambda: "cont" in qemu.commands, "it resumes the guest")
        for each in CODES:
            child.send_signal(each)
        assert line_of(child, 143) == "vmdump: ended by SIGTERM; the guest goes on as before\n"
        check_runs(qemu)


def test_killed_during_a_dump_of_somebody(tmp_path: Path) -> None:
    """The guardian asks again: QEMU resumes no guest until that dump has ended."""
    rules = [rule("cont", "dumping", number) for number in (1, 2)]
    with FakeQemu(tmp_path, [LARGE], rules=rules) as qemu, holding(qemu) as child:
        child.kill()
        child.wait()
        until(lambda: qemu.running, "the guardian has resumed it")
        assert qemu.commands.count("cont") == 3
        check_runs(qemu)


@contextlib.contextmanager
def many_interrupts(begin: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C for this process three times from a moment on; with a handler that raises, as Python's does."""

    def press() -> None:
        until(begin, "the moment has come")
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, lambda number, frame: None)
        thread.join(PATIENCE)
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", ["cont", "query-status"])
@pytest.mark.parametrize("fails", [True, False])
def test_library_resumes_whatever_is_pressed(fails: bool, command: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule(command, "slow")] if command == "cont" else []) as qemu:
        stopped = threading.Event()

        def fail(done: int, total: int) -> None:
            if command != "cont":
                with qemu.frozen():
                    stopped.set()
                    time.sleep(0.3)
            if fails:
                raise ZeroDivisionError

        def begin() -> bool:
            return "cont" in qemu.commands if command == "cont" else stopped.is_set()

        with many_interrupts(begin), pytest.raises(KeyboardInterrupt):
            vmdump.dump(qemu.source, out / "guest.elf", format="elf", progress=inside_stop(fail))
        assert qemu.running
        assert not guardians(qemu)
        assert not list(out.iterdir())


def test_ctrl_c_when_a_source_was_just_opened(tmp_path: Path, out: Path) -> None:
    """Nobody has it then; the monitor, which serves one client at a time, is free all the same."""
    with FakeQemu(tmp_path) as qemu:
        vmdump.open_source(qemu.source)
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")


def test_source_that_is_lost_while_it_holds_the_guest(tmp_path: Path, out: Path) -> None:
    """In a circle with what holds it, as an exception makes one: nobody knows which of the two goes first."""
    with FakeQemu(tmp_path) as qemu:
        source = vmdump.open_source(qemu.source)
        held = source.held(pause=True, cancelled=lambda: False)
        held.__enter__()
        assert not qemu.running
        circle: list[object] = [source, held]
        circle.append(circle)
        del source, held, circle
        gc.collect()
        assert qemu.running
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")


def test_a_source_that_is_lost_in_the_monitors_thread(tmp_path: Path) -> None:
    """Where the collector may come by as well: that thread does not wait for itself."""
    with FakeQemu(tmp_path) as qemu:
        lost = [vmdump.open_source(qemu.source)]
        attachment = lost[0]._attachment

        async def lose() -> None:
            lost.clear()

        attachment._commands.wait(lose())
        assert not lost
        attachment.close()


@pytest.mark.parametrize("when", ["connecting", "connected"])
def test_ctrl_c_during_the_attach(
    when: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = monitor.Monitor.begin
    moments = ["connecting", "connected"]

    def interrupted(self: monitor.Monitor, work: Any) -> Any:
        future = begin(self, work)
        if moments and moments.pop(0) == when:
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(monitor.Monitor, "begin", interrupted)
    with FakeQemu(tmp_path) as qemu:
        with pytest.raises(KeyboardInterrupt):
            vmdump.open_source(qemu.source)
        moments.clear()
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")


ANYWHERE = """
import linecache, os, signal, sys
import vmdump

source, output = sys.argv[1:]
home = os.path.dirname(vmdump.__file__)
parts = tuple(f"{home}/{name}/" for name in ("sources/qemu", "sources/process", "operations", "sinks"))
seen = set()
left = 1 << 40

def trace(frame, event, argument):
    global left
    if not frame.f_code.co_filename.startswith(parts):
        return None
    seen.add(next(part for part in parts if frame.f_code.co_filename.startswith(part)))
    # Python handles signals where it calls something or jumps back: never between a line and a try behind it.
    if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() != "try:":
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)
    return trace

def dump():
    try:
        sys.settrace(trace)
        vmdump.dump(source, output, format="elf")
    except KeyboardInterrupt:
        sys.settrace(None)
        return "interrupted"
    except Exception as error:
        sys.settrace(None)
        return repr(error)
    sys.settrace(None)
    return "whole"

dump()  # with the lines of imports, which later ones have not
os.unlink(output)
left = 1 << 40
dump()
os.unlink(output)
assert seen == {*parts}, seen
print((1 << 40) - left, flush=True)
for line in sys.stdin:
    left = int(line)
    print(dump(), flush=True)
"""


def test_library_is_interrupted_anywhere(tmp_path: Path, out: Path) -> None:
    """At a random line of what handles the guest and the output: one Ctrl-C, by the handler of Python.

    In the next round there is another one, to which the monitor must not be busy.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    told = []
    with FakeQemu(tmp_path, [Ram(pages=16, written=(0, 3))]) as qemu:
        words = [sys.executable, "-c", ANYWHERE, qemu.source, str(out / "guest.elf")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            lines = int(child.stdout.readline())
            assert lines > 500
            for _ in range(MOMENTS):
                moment = moments.randrange(1, lines)
                child.stdin.write(f"{moment}\n")
                child.stdin.flush()
                told.append(child.stdout.readline().strip())
                here = f"{told[-1]}: seed {seed}, line {moment} of {lines}"
                assert told[-1] in ("interrupted", "whole"), here
                assert qemu.running, here
                until(lambda: not guardians(qemu), f"no guardian is left: {here}")
                assert {path.name for path in out.iterdir()} <= {"guest.elf"}, here
                assert told[-1] == "interrupted" or (out / "guest.elf").exists(), here
                (out / "guest.elf").unlink(missing_ok=True)
            child.stdin.close()
    print("interrupted:", told.count("interrupted"))
    assert told.count("interrupted") >= MOMENTS * 3 // 4
