"""What is logged: with -v by the command, and for programs by the logger ``vmdump``."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path

import pytest
from helpers.command import RunVmdump

import vmdump
from vmdump.pipeline.control import Control

STEPS = ["source opened", "output", "attach", "writing", "sync"]


@pytest.mark.parametrize("before", [True, False])
def test_steps_and_their_seconds(before: bool, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    out = tmp_path / "vm.kdump"
    words = ["-v", "dump"] if before else ["dump", "-v"]
    done = run_vmdump(*words, "synthetic:8M", out, "-q")
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("vmdump: ")]
    matches = [re.match(r"vmdump: +\d+\.\d{3} s  (.*?)(:|$)", line) for line in lines]
    assert [match and match[1] for match in matches] == STEPS
    assert "x86_64, 7.9 MiB, 3 blocks, does not change" in lines[0]


def test_programs_get_records_and_no_handler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vmdump"):
        vmdump.dump("synthetic:8M", tmp_path / "vm.kdump")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == STEPS
    assert logging.getLogger("vmdump").handlers == []


def test_nothing_is_logged_inside_the_pause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmdump")
    control = Control()
    control.enter("packing")
    told = len(caplog.records)
    control.enter("paused")
    assert len(caplog.records) == told == 1
    control.enter("writing")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["attach", "packing", "paused"]
    control.finish()
    assert caplog.records[-1].getMessage().startswith("writing: ")


def test_wait_for_a_busy_socket_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmdump.sources.qemu.monitor._GREETING_WAIT", 0.6)
    caplog.set_level(logging.INFO, "vmdump")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp"))
        listening.listen()
        with pytest.raises(vmdump.errors.QmpError):
            vmdump.open_source(f"qmp:{tmp_path / 'qmp'}")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'qmp'}: no greeting yet: another client")
