"""Signals that end the command: the first one gives the code; one line, and no file without success."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 60
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGQUIT: 131}


def ended_by(number: signal.Signals, left: str = "") -> tuple[int, bytes]:
    """The exit code and the line."""
    return CODES[number], f"vmdump: ended by {number.name}{left}\n".encode()


PUBLISH = """
import os, signal, sys
from vmdump.cli.main import main
from vmdump.sinks.file import NewFile

when, number = sys.argv[1], int(sys.argv[2])
publish, close = NewFile.publish, NewFile.close

def sent(self):
    if when == "before":
        os.kill(os.getpid(), number)
    publish(self)
    if when == "after":
        os.kill(os.getpid(), number)

def closed(self):
    close(self)
    if when == "closed":
        os.kill(os.getpid(), number)

def synced(self):
    if when == "sync":
        os.kill(os.getpid(), number)

NewFile.publish, NewFile.close, NewFile.sync = sent, closed, synced
sys.argv[:3] = ["vmdump"]
sys.exit(main())
"""


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    """A program of Python's."""
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize(
    ("when", "number"),
    [*(("sync", each) for each in CODES), *((when, signal.SIGINT) for when in ("before", "after", "closed"))],
)
def test_signal_around_the_name(when: str, number: signal.Signals, scratch: Path) -> None:
    """As soon as the file has its name, the dump has succeeded."""
    done = run("-c", PUBLISH, when, int(number), "dump", "-q", "synthetic:2M", scratch / "guest")
    if when == "sync":
        assert (done.returncode, done.stderr) == ended_by(number, "; no file is left")
        assert not list(scratch.iterdir())
    else:
        assert (done.returncode, done.stderr) == (0, b"")
        assert [path.name for path in scratch.iterdir()] == ["guest"]


def test_nohup(scratch: Path) -> None:
    """Whoever logs out does not end a dump that was started with it."""
    words = (
        "-c",
        PUBLISH,
        "sync",
        str(int(signal.SIGHUP)),
        "dump",
        "-q",
        "synthetic:2M",
        str(scratch / "guest"),
    )
    done = subprocess.run(
        ["nohup", sys.executable, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [path.name for path in scratch.iterdir()] == ["guest"]


IN_A_DESTRUCTOR = """
import os, signal, sys
import vmdump.pipeline.control
from vmdump.cli.main import main

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

before = vmdump.pipeline.control.Control.advance
def advance(self, size):
    if not hasattr(self, "did"):
        self.did = True
        Thing()
    before(self, size)

vmdump.pipeline.control.Control.advance = advance
sys.exit(main())
"""


def test_signal_in_a_destructor(scratch: Path) -> None:
    """An exception is lost there, with a traceback; it is raised again."""
    done = run(
        "-c", IN_A_DESTRUCTOR, "dump", "synthetic:8G?fill=1", scratch / "guest", "-f", "kdump-lzo", "-j", "1"
    )
    assert (done.returncode, done.stderr) == ended_by(signal.SIGTERM, "; no file is left")
    assert not list(scratch.iterdir())


AT_AN_IMPORT = """
import os, sys
import vmdump.__main__

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            for number in numbers:
                os.kill(os.getpid(), int(number))

module, *numbers = sys.argv[1:]
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["capabilities"]
vmdump.__main__.run()
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        *(("click", each) for each in CODES),
        ("vmdump.cli.capabilities", signal.SIGINT),
        ("numpy", signal.SIGTERM),
    ],
)
def test_signal_at_an_import(module: str, number: signal.Signals) -> None:
    done = run("-c", AT_AN_IMPORT, module, int(number), int(signal.SIGINT))
    assert (done.returncode, done.stderr) == ended_by(number)


BUSY = """
import ctypes, sys
import vmdump.operations.capabilities
from vmdump.cli.main import main

def busy():
    print("busy", flush=True)
    ctypes.PyDLL(None).sleep(1)  # an extension that does not let Python see to its signals
    ctypes.PyDLL(None).sleep(1)

vmdump.operations.capabilities.capabilities = busy
sys.exit(main())
"""


def test_the_first_of_two_counts() -> None:
    """Python sees to those that have come meanwhile by their numbers: SIGINT is 2, SIGTERM 15."""
    words = [sys.executable, "-c", BUSY, "capabilities"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"busy\n"
        for number in (signal.SIGTERM, signal.SIGINT):
            child.send_signal(number)
            time.sleep(0.1)
        _, complaint = child.communicate(timeout=PATIENCE)
        assert (child.returncode, complaint) == ended_by(signal.SIGTERM)
