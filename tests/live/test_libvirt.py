"""A guest of a real libvirt, named by a QMP socket: its daemon lives on, whatever vmdump is asked to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from oracles import judges
from oracles.elf import ElfCore

import vmdump
from live.dumping import Dumping, refused, succeeds, until
from live.guests import QEMU, Monitor
from live.libvirt_session import LIBVIRTD, PATIENCE, Libvirt, session
from vmdump.errors import CapabilityError, GuestBusy, QmpError
from vmdump.sources.libvirt.daemons import Daemon
from vmdump.sources.qemu import over_qmp, reroute

CRASH = re.compile(r"caught|crash|segfault|signal 11|abort", re.IGNORECASE)
SECONDS = 30


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    """A daemon with a domain that has a second QMP socket."""
    judges.require(QEMU)
    judges.require("virsh")
    judges.require(LIBVIRTD)
    with session() as it:
        yield it


def source_of(libvirt: Libvirt) -> str:
    return f"qmp:{libvirt.folder}/qmp"


def status(libvirt: Libvirt) -> str:
    """What QEMU itself says of the domain."""
    monitor = Monitor(libvirt.folder / "qmp")
    try:
        return monitor.status()
    finally:
        monitor.close()


def check_unharmed(libvirt: Libvirt, state: str = "running") -> None:
    """The daemon is the one that was started, and it knows how its domain is."""
    # What QEMU says to its monitors reaches the daemon before the answer to this.
    told = libvirt.virsh("qemu-monitor-command", libvirt.name, "--hmp", "info status")
    assert told.startswith(f"VM status: {state}")
    assert libvirt.daemon.poll() is None
    assert libvirt.virsh("domstate", libvirt.name) == state
    assert not CRASH.findall((libvirt.folder / "log").read_text())


def run(*words: object) -> str:
    """What a command of vmdump prints."""
    done = subprocess.run(
        [sys.executable, "-m", "vmdump", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_daemon_lives_on(libvirt: Libvirt, tmp_path: Path) -> None:
    """Whatever asks for headers: dumps, with a pause and without, and all else that looks at a guest."""
    source, output = source_of(libvirt), tmp_path / "guest"
    succeeds(source, output)
    check_unharmed(libvirt)
    succeeds(source, tmp_path / "fuzzy", "--no-pause")
    check_unharmed(libvirt)
    run("info", source)
    run("bench", source, "--sample", "1M", "--to", tmp_path)
    libvirt.virsh("suspend", libvirt.name)
    succeeds(source, output, "--force")
    run("verify", output, "--against", source)
    check_unharmed(libvirt, "paused")


def test_libvirt_does_not_take_it_for_tainted(libvirt: Libvirt, tmp_path: Path) -> None:
    def taints() -> list[str]:
        return re.findall(r"tainted: (.*)", libvirt.virsh("dominfo", libvirt.name))

    before = taints()
    succeeds(source_of(libvirt), tmp_path / "guest")
    assert taints() == before
    # A question to the monitor is one that it notes.
    check_unharmed(libvirt)
    assert len(taints()) > len(before)


def test_dump_is_libvirts_own(libvirt: Libvirt, tmp_path: Path) -> None:
    libvirt.virsh("suspend", libvirt.name)
    succeeds(source_of(libvirt), tmp_path / "guest", "-f", "elf")
    libvirt.virsh("dump", libvirt.name, str(libvirt.folder / "core"), "--memory-only", "--format", "elf")
    mine, theirs = ElfCore(tmp_path / "guest"), ElfCore(libvirt.folder / "core")
    assert [note.desc for note in mine.note_list()] == [note.desc for note in theirs.note_list()]
    places = [(load.paddr, load.memsz) for load in theirs.loads]
    assert [(load.paddr, load.memsz) for load in mine.loads] == places
    for ours, load in zip(mine.loads, theirs.loads, strict=True):
        assert mine.load_bytes(ours) == theirs.load_bytes(load)
    assert any(any(theirs.load_bytes(load)) for load in theirs.loads)


KILLED_IN_HEADERS = """
import os, signal, sys
from vmdump.cli.main import main
from vmdump.sources.libvirt import fifo
left = int(sys.argv[1])
def read_headers(read, then=fifo.read_headers, **options):
    global left
    left -= 1
    if left == 0:
        read(0, 16)
        os.kill(os.getpid(), signal.SIGKILL)
    return then(read, **options)
fifo.read_headers = read_headers
sys.argv[:4] = ["vmdump"]  # for -c, the number, -m vmdump
sys.exit(main())
"""


@pytest.mark.parametrize("nth", [1, 2], ids=["at the attach", "in the pause"])
def test_killed_while_libvirt_dumps(nth: int, libvirt: Libvirt, tmp_path: Path) -> None:
    """QEMU resumes no guest until that dump has ended: the guardian asks again."""
    python = (sys.executable, "-c", KILLED_IN_HEADERS, str(nth))
    with Dumping(source_of(libvirt), tmp_path / "guest", python=python) as dumping:
        assert dumping.child.wait(SECONDS) == -signal.SIGKILL
    until(lambda: libvirt.virsh("domstate", libvirt.name) == "running", "the domain runs", SECONDS)
    check_unharmed(libvirt)
    succeeds(source_of(libvirt), tmp_path / "guest")


def test_killed_inside_the_pause(libvirt: Libvirt, tmp_path: Path) -> None:
    """The guardian resumes the guest over QMP, and libvirt sees it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Dumping(source_of(libvirt), fifo, "-f", "elf") as dumping:
        reader = os.open(fifo, os.O_RDONLY)  # of which nothing is read
        try:
            dumping.wait_written(1 << 16)
            assert libvirt.virsh("domstate", libvirt.name) == "paused"
            dumping.signal(signal.SIGKILL)
            dumping.child.wait()
        finally:
            os.close(reader)
    until(lambda: libvirt.virsh("domstate", libvirt.name) == "running", "the domain runs", SECONDS)
    check_unharmed(libvirt)
    succeeds(source_of(libvirt), tmp_path / "guest")


def test_daemon_ends_before_the_pause(libvirt: Libvirt, tmp_path: Path) -> None:
    with vmdump.open_source(source_of(libvirt)) as source:
        libvirt.daemon.kill()
        libvirt.daemon.wait()
        with pytest.raises(QmpError):
            vmdump.dump(source, tmp_path / "guest")
    assert not list(tmp_path.iterdir())
    assert status(libvirt) == "running"


def test_daemon_that_hangs(libvirt: Libvirt, tmp_path: Path) -> None:
    """The pipe is never written to: whoever waits can cancel it, and the guest runs again."""
    with vmdump.open_source(source_of(libvirt)) as source:
        libvirt.daemon.send_signal(signal.SIGSTOP)
        try:
            with vmdump.start_dump(source, tmp_path / "guest") as job:
                until(lambda: source.paused_seconds is not None, "it has begun")
                job.cancel()
                with pytest.raises(vmdump.errors.Cancelled):
                    job.wait()
        finally:
            libvirt.daemon.send_signal(signal.SIGCONT)
    assert status(libvirt) == "running"
    check_unharmed(libvirt)


def test_daemon_that_hangs_in_the_pause(
    libvirt: Libvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for as long as libvirt itself would wait: the guest is paused."""
    with vmdump.open_source(source_of(libvirt)) as source:
        monkeypatch.setattr(over_qmp, "_LIBVIRT_WAIT", 0.5)
        libvirt.daemon.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(GuestBusy, match="does not begin a dump"):
                vmdump.dump(source, tmp_path / "guest")
        finally:
            libvirt.daemon.send_signal(signal.SIGCONT)
    assert not list(tmp_path.iterdir())
    assert status(libvirt) == "running"
    check_unharmed(libvirt)


def test_without_a_daemon(libvirt: Libvirt, tmp_path: Path) -> None:
    libvirt.daemon.terminate()
    libvirt.daemon.wait(PATIENCE)
    line = refused(source_of(libvirt), tmp_path / "guest", code=CapabilityError.exit_code)
    assert "no daemon" in line
    assert f"virsh dump --memory-only {libvirt.name}" in line
    assert status(libvirt) == "running"


@pytest.mark.parametrize("other", ["uuid", "process"])
def test_domain_that_is_not_this_one(
    other: str, libvirt: Libvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What QEMU was told is no proof: another's daemon is not asked to dump somebody else's guest."""
    monkeypatch.setattr(Daemon, "is_safe", False)
    if other == "uuid":
        told = Path(f"/proc/{libvirt.pid}/cmdline").read_text()
        words = told.replace(libvirt.virsh("domuuid", libvirt.name), str(UUID(int=7))).split("\0")
        monkeypatch.setattr(reroute, "command_line", lambda pid: words)
    else:
        monkeypatch.setattr("vmdump.sources.libvirt.domain.Domain._find_process", lambda self: 1)
    with pytest.raises(CapabilityError, match="virsh dump --memory-only") as caught:
        vmdump.dump(source_of(libvirt), tmp_path / "guest")
    assert ("is process 1, not" if other == "process" else "no such domain") in str(caught.value)
    check_unharmed(libvirt)
