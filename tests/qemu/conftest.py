"""What the tests of live guests share: nothing may be left open, and patience is short."""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdump.sources.qemu import guardian, guardian_main, monitor

PATIENCE = 0.2
"""Seconds in the place of the minutes that a QEMU gets; it answers within one millisecond."""
GUARDIAN_PATIENCE = 1.0


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one of listdir
            continue
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Demand that the test leaves no descriptor, no thread and no process behind."""
    gc.collect()
    before, threads = _descriptors(), set(threading.enumerate())
    yield
    gc.collect()  # the oracles map the files that they read
    assert _descriptors() == before
    assert set(threading.enumerate()) == threads
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let everybody wait for QEMU a moment only, the guardian too."""
    monkeypatch.setattr(monitor, "_GREETING_WAIT", PATIENCE)
    monkeypatch.setattr(monitor, "_ANSWER_WAIT", PATIENCE)
    program = Path(guardian_main.__file__).read_text()
    for name in ("_ANSWER_WAIT", "_RECONNECT_WAIT"):
        program, count = re.subn(
            rf"^{name} = .*$", f"{name} = {GUARDIAN_PATIENCE}", program, flags=re.MULTILINE
        )
        assert count == 1
    copy = tmp_path / "hasty_guardian.py"
    copy.write_text(program)
    monkeypatch.setattr(guardian.guardian_main, "__file__", str(copy))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the dump."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
