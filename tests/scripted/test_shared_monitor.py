"""A guest over a monitor that others use as well, as a server in front of QEMU does."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles.elf import ElfCore

import vmdump
from scripted.fake_qemu import FakeQemu, rule
from vmdump.errors import QmpError
from vmdump.sources.qemu.attached import AttachedSource
from vmdump.sources.qemu.monitor import Monitor
from vmdump.sources.qemu.over_qmp import OverQmp

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_stays_open(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        monitor = Monitor(qemu.path)
        try:
            for number in range(2):
                with AttachedSource(lambda: OverQmp(monitor)) as source:
                    assert monitor.execute("query-status")["running"]
                    vmdump.dump(source, out / f"guest{number}", format="elf")
                assert monitor.execute("query-status")["running"]
                assert ElfCore(out / f"guest{number}").loads
            # Nobody is told of what happens to the guest any more.
            assert monitor.pauses.on_resume is None
        finally:
            monitor.close()
        assert [entry for entry in qemu.log if "connected" in entry] == [{"connected": True}]
        assert qemu.running


@pytest.mark.usefixtures("hasty")
def test_is_the_guardians_where_the_guest_cannot_be_resumed(tmp_path: Path, out: Path) -> None:
    """There is one connection, and the guardian has to have it."""
    with FakeQemu(tmp_path, rules=[rule("cont", "silent", 1)]) as qemu:
        monitor = Monitor(qemu.path)
        try:
            with AttachedSource(lambda: OverQmp(monitor)) as source, pytest.raises(QmpError):
                vmdump.dump(source, out / "guest")
            assert qemu.running
            with pytest.raises(vmdump.errors.SourceError, match="closed"):
                monitor.demand_alive()
        finally:
            monitor.close()


@pytest.mark.usefixtures("hasty")
def test_source_that_cannot_be_attached(tmp_path: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule("query-status", "error", 1)]) as qemu:
        monitor = Monitor(qemu.path)
        try:
            with pytest.raises(QmpError):
                AttachedSource(lambda: OverQmp(monitor))
            monitor.demand_alive()
        finally:
            monitor.close()
