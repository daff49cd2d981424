"""What others do to a guest while a dump holds it, over a second monitor of a real QEMU: reset, stop, loadvm.

The scripted QEMU of the other tests behaves as this one does; what it relies on is checked here.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.dumping import HELD, MIB, Dumping, guardians, guardians_of, noise, succeeds, until
from live.guests import QEMU, Guest, Monitor

BUSY = 12
FLUSHES = "TB flush count"


def make_disk(path: Path) -> None:
    """An empty qcow2 image, in which snapshots can be saved; made by a QEMU without a machine."""
    socket = path.with_name("maker")
    words = [
        QEMU,
        "-M",
        "none",
        "-display",
        "none",
        "-nodefaults",
        "-qmp",
        f"unix:{socket},server=on,wait=off",
    ]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words]) as maker:
        try:
            until(socket.exists, "QEMU listens")
            monitor = Monitor(socket)
            path.touch()
            monitor.execute("blockdev-add", driver="file", node_name="disk", filename=str(path))
            image = {"driver": "qcow2", "file": "disk", "size": 64 * MIB}
            monitor.execute("blockdev-create", job_id="make", options=image)
            until(lambda: monitor.execute("query-jobs")[0]["status"] == "concluded", "the image is made")
            assert "error" not in monitor.execute("query-jobs")[0]
            monitor.close()
        finally:
            maker.kill()


@pytest.fixture(scope="module")
def _guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    judges.require(QEMU)
    disk = tmp_path_factory.mktemp("disk") / "disk.qcow2"
    make_disk(disk)
    extra = ("-drive", f"file={disk},if=none,format=qcow2", "-action", "reboot=reset")
    with Guest("96M", boot=False, vmcoreinfo=False, extra=extra) as guest:
        noise(guest, 32 * MIB)
        guest.monitor.execute("cont")
        human(guest, "savevm before")
        noise(guest, 32 * MIB)
        yield guest


@pytest.fixture
def guest(_guest: Guest) -> Guest:
    """A running guest with a snapshot of itself, of which a dump takes a second with `HELD`."""
    if not _guest.running():
        _guest.monitor.execute("cont")
    return _guest


def human(guest: Guest, line: str) -> None:
    """A command of the human monitor that says nothing if it has worked."""
    assert guest.monitor.execute("human-monitor-command", command_line=line) == ""


def reset(guest: Guest) -> None:
    guest.monitor.execute("system_reset")
    until(lambda: guest.monitor.status() == "prelaunch", "the guest is at its start")


def read_by(pid: int) -> int:
    """Bytes that a process has read so far."""
    counters = Path(f"/proc/{pid}/io").read_text().split()
    return int(counters[counters.index("rchar:") + 1])


def restop(guest: Guest) -> None:
    """Return when the guardian has heard of it: a vmdump killed before that leaves it in charge."""
    (guardian,) = guardians_of(guest)
    before = read_by(guardian)
    guest.monitor.execute("cont")
    guest.monitor.execute("stop")
    until(lambda: guardian not in guardians() or read_by(guardian) > before, "the guardian is relieved")


def load(guest: Guest) -> None:
    before = guest.monitor.event_names()
    human(guest, "loadvm before")
    assert guest.monitor.status() == "paused"
    assert guest.monitor.event_names() == before


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("deed", "runs"), [(reset, True), (restop, False), (load, True)])
def test_it_is_changed_while_it_is_held(
    deed: Callable[[Guest], None], runs: bool, number: int, guest: Guest, scratch: Path
) -> None:
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        assert guest.monitor.status() == "paused"
        deed(guest)
        if number:
            dumping.signal(signal.Signals(number))
        if number == signal.SIGKILL:
            dumping.child.wait()
        else:
            dumping.end(143 if number else BUSY)
    until(lambda: not guardians_of(guest), "the guardian has ended")
    time.sleep(0.1)
    assert guest.running() is runs
    assert not list(scratch.iterdir())


def test_the_same_snapshot_again(guest: Guest, scratch: Path) -> None:
    """Memory and registers are those that the guest has already; that the dump is whole, nobody can tell."""
    guest.monitor.execute("stop")
    human(guest, "loadvm before")
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        load(guest)
        assert "snapshot" in dumping.end(BUSY)
    assert guest.monitor.status() == "paused"


def test_a_snapshot_is_saved_while_it_is_held(guest: Guest, scratch: Path) -> None:
    """That changes nothing."""
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        human(guest, "savevm meanwhile")
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint
    assert guest.running()
    guest.monitor.execute("system_reset")
    # And is no migration: a guest that is reset afterwards is not one that has gone.
    with Dumping(guest, scratch / "other", *HELD) as dumping:
        dumping.wait_written()
        reset(guest)
        dumping.end(BUSY)
    assert guest.running()
    human(guest, "delvm meanwhile")


def test_it_migrates_and_is_reset_while_it_is_held(guest: Guest, scratch: Path) -> None:
    """To a file, and reset: it is in prelaunch then, and must not run beside its other self.

    If it runs all the same, by somebody else's wish, it is no other guest than before.
    """
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        guest.monitor.execute("migrate", uri="exec:cat >/dev/null")
        until(lambda: guest.monitor.status() == "postmigrate", "the guest has migrated")
        reset(guest)
        dumping.end(BUSY)
    assert guest.monitor.status() == "prelaunch"
    guest.monitor.execute("cont")
    succeeds(guest, scratch / "dump")
    with Dumping(guest, scratch / "other", *HELD) as dumping:
        dumping.wait_written()
        reset(guest)
        dumping.end(BUSY)
    assert guest.running()
