"""The phases of a dump of a guest that runs, and what is told before the pause."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pytest

import vmdump
from scripted.fake_qemu import FakeQemu
from vmdump.operations.dump import check_request
from vmdump.pipeline.control import Control

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_phases_of_a_running_guest(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause's clock begins with `stop`; its steps are logged when the guest runs again."""
    caplog.set_level(logging.INFO, "vmdump")
    phases = []
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as guest:
        running: dict[str, set[bool]] = {}

        def look(done: int, total: int) -> None:
            running.setdefault(control.phase, set()).add(qemu.running)
            phases.append(control.phase)

        control = Control(look)
        check_request(guest, out / "guest.elf", format="elf").run(control)
    assert [step.phase for step in control.steps] == ["attach", "packing", "paused", "writing", "sync"]
    assert [step.began for step in control.steps] == sorted(step.began for step in control.steps)
    assert list(dict.fromkeys(phases)) == ["packing", "paused"]
    assert running["packing"] == {True}
    assert running["paused"] == {False}
    names = [record.getMessage().split(":")[0] for record in caplog.records]
    assert names[-5:] == ["attach", "packing", "paused", "writing", "sync"]
    assert names[0].startswith("attached to ")


@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_a_full_disk_is_told_before_the_pause(
    layout: Literal["standard", "flattened"], tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmdump.sinks.file.NewFile.room", lambda self: 4096)
    with FakeQemu(tmp_path) as qemu:
        with pytest.raises(vmdump.errors.SinkError, match=r"are missing: No space"):
            vmdump.dump(qemu.source, out / "guest", layout=layout)
        assert "stop" not in qemu.commands
    assert list(out.iterdir()) == []
