"""What the tests of live guests share: nothing may be left open, and patience is short."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdump.sources.qemu import guardian, guardian_main, monitor

PATIENCE = 0.2
"""Seconds in the place of the minutes that a QEMU gets; it answers within one millisecond."""
GUARDIAN_PATIENCE = 1.0
PATIENCE_AT_THE_END = 10.0


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one of listdir
            continue
    return found


def _children() -> set[str]:
    """Give this process's children, zombies too; guests that tests share may be among them."""
    return {
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Demand that the test leaves no descriptor, no thread and no process behind."""
    gc.collect()
    before, threads, children = _descriptors(), set(threading.enumerate()), _children()
    yield
    gc.collect()  # the oracles map the files that they read
    deadline = time.monotonic() + PATIENCE_AT_THE_END
    # A guardian that has not got through to a silent QEMU goes on until that has gone.
    while _children() != children and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _descriptors() == before
    assert set(threading.enumerate()) == threads
    assert _children() == children


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let everybody wait for QEMU a moment only, the guardian too."""
    monkeypatch.setattr(monitor, "_GREETING_WAIT", PATIENCE)
    monkeypatch.setattr(monitor, "_ANSWER_WAIT", PATIENCE)
    program = Path(guardian_main.__file__).read_text()
    program, count = re.subn(
        "^_GREETING_WAIT = .*$", f"_GREETING_WAIT = {GUARDIAN_PATIENCE}", program, flags=re.MULTILINE
    )
    assert count == 1
    monkeypatch.setattr(guardian, "_END_WAIT", GUARDIAN_PATIENCE)
    copy = tmp_path / "hasty_guardian.py"
    copy.write_text(program)
    monkeypatch.setattr(guardian.guardian_main, "__file__", str(copy))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the dump."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
