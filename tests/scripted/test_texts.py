"""What QEMU says reaches root's terminal as text only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.command import RunVmdump

from scripted.fake_qemu import FakeQemu
from vmdump.errors import GuestBusy, QmpError

pytestmark = pytest.mark.usefixtures("nothing_left")

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b2J\x7f\b\r\n\u202eat the end"


@pytest.mark.parametrize("words", [(), ("--debug",)], ids=["plain", "debug"])
@pytest.mark.parametrize(
    "answers",
    [
        {"query-status": {"error": ["Generic\x1b[2JError", STEERING]}},
        {"stop": {"error": ["GenericError", STEERING]}},
        {"query-migrate": {"status": STEERING}},
    ],
    ids=["status", "stop", "migration"],
)
def test_control_characters(
    answers: dict[str, Any], words: tuple[str, ...], tmp_path: Path, out: Path, run_vmdump: RunVmdump
) -> None:
    with FakeQemu(tmp_path, answers=answers) as qemu:
        done = run_vmdump(*words, "dump", qemu.source, out / "guest.elf", "-f", "elf")
    assert done.returncode in (QmpError.exit_code, GuestBusy.exit_code)
    text = done.stderr.decode()
    assert "owned" in text
    assert "at the end" in text
    assert not [char for char in text if not char.isprintable() and char != "\n"]
    assert len(text.splitlines()) == 1 or words
