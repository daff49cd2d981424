"""`libvirt:` while vmdump, libvirtd or the domain ends, or somebody else acts: the domain runs again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.dumping import HELD, SLOW, Dumping, check_whole, guardians, succeeds, until
from live.libvirt_host import Domain
from live.test_domains import check_events, inside
from vmdump.errors import GuestBusy

RUNS = 1.0
"""Seconds within which the domain of a killed vmdump runs again."""
GUARDIAN_ENDS = 2.0
MOMENTS = 16
RUNNING = ("running", "unpaused")


@pytest.fixture
def folder(scratch: Path) -> Path:
    """An empty folder for the dump and nothing else."""
    (scratch / "out").mkdir()
    return scratch / "out"


def guardians_of(domain: Domain) -> list[int]:
    """The guardians in the daemon's mount namespace."""
    mine = []
    for pid in guardians():
        try:
            if os.readlink(f"/proc/{pid}/ns/mnt") == domain.host.namespace:
                mine.append(pid)
        except OSError:
            continue
    return mine


@pytest.fixture(autouse=True)
def _no_guardian_is_left(domain: Domain) -> Iterator[None]:
    yield
    left = guardians_of(domain)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def held(domain: Domain, folder: Path, *options: str) -> Dumping:
    """A dump in the middle of its pause."""
    dumping = Dumping(domain.source, folder / "dump", *(options or HELD), **inside(domain.host))
    try:
        dumping.wait_written()
        assert domain.state()[0] == "paused"
    except BaseException:
        dumping.__exit__(None, None, None)
        raise
    return dumping


def check_aftermath(domain: Domain, folder: Path) -> None:
    """It runs in time, libvirt says so, the guardian is gone in time, and no file is left."""
    begin = time.monotonic()
    until(lambda: domain.state() == RUNNING, "the domain runs again", RUNS)
    left = GUARDIAN_ENDS - (time.monotonic() - begin)
    until(lambda: not guardians_of(domain), "the guardian has ended", left)
    assert domain.state() == RUNNING
    assert not list(folder.iterdir())


def test_sigkill_inside_the_pause(domain: Domain, folder: Path) -> None:
    daemon = domain.host.daemon.pid
    with domain.listen() as listener:
        with held(domain, folder) as dumping:
            dumping.signal(signal.SIGKILL)
            dumping.child.wait()
            check_aftermath(domain, folder)
        check_events(listener.end())
    assert domain.host.daemon.poll() is None
    assert domain.host.daemon.pid == daemon
    succeeds(domain.source, folder / "dump", **inside(domain.host))
    check_whole(folder / "dump")


def test_sigkill_at_random_moments(domain: Domain, folder: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    begin = time.monotonic()
    succeeds(domain.source, folder / "dump", **inside(domain.host))
    whole = time.monotonic() - begin
    (folder / "dump").unlink()
    for number in range(MOMENTS):
        moment = whole * (number + moments.random()) / MOMENTS
        with Dumping(domain.source, folder / "dump", **inside(domain.host)) as dumping:
            try:
                dumping.child.wait(moment)
            except subprocess.TimeoutExpired:
                dumping.signal(signal.SIGKILL)
            dumping.child.wait()
            if (folder / "dump").exists():
                check_whole(folder / "dump")
                (folder / "dump").unlink()
            try:
                check_aftermath(domain, folder)
            except AssertionError as error:
                error.add_note(f"killed after {moment:.3f} s of {whole:.3f} s (number {number}, seed {seed})")
                raise
    assert domain.host.daemon.poll() is None


@pytest.mark.parametrize("options", [SLOW, HELD], ids=["running", "held"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line(
    number: signal.Signals, code: int, options: tuple[str, ...], domain: Domain, folder: Path
) -> None:
    with Dumping(domain.source, folder / "dump", *options, **inside(domain.host)) as dumping:
        dumping.wait_written()
        dumping.signal(number)
        dumping.end(code)
    check_aftermath(domain, folder)


def test_the_whole_group_is_killed(domain: Domain, folder: Path) -> None:
    with Dumping(
        domain.source, folder / "dump", *HELD, start_new_session=True, **inside(domain.host)
    ) as dumping:
        dumping.wait_written()
        os.killpg(dumping.child.pid, signal.SIGKILL)
        dumping.child.wait()
        check_aftermath(domain, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_libvirtd_is_restarted_inside_the_pause(number: signal.Signals, domain: Domain, folder: Path) -> None:
    """The dump is whole or an error, and the domain runs again either way."""
    with held(domain, folder) as dumping:
        domain.host.restart(number)
        _, complaint = dumping.child.communicate(timeout=60)
    until(lambda: domain.state()[0] == "running", "the domain runs again")
    if dumping.child.returncode == 0:
        check_whole(folder / "dump")
    else:
        assert len(complaint.splitlines()) == 1, complaint.decode()
        assert not list(folder.iterdir())
    until(lambda: not guardians_of(domain), "the guardian has ended", GUARDIAN_ENDS)


def test_libvirtd_is_dead_when_vmdump_is_killed(domain: Domain, folder: Path) -> None:
    """Nobody can resume the domain but a daemon: it runs again when there is one."""
    with held(domain, folder) as dumping:
        domain.host.daemon.kill()
        domain.host.daemon.wait()
        dumping.signal(signal.SIGKILL)
        dumping.child.wait()
        time.sleep(0.5)
    domain.host.start_daemon()
    until(lambda: domain.state()[0] == "running", "the domain runs again")
    until(lambda: not guardians_of(domain), "the guardian has ended", GUARDIAN_ENDS)
    assert not list(folder.iterdir())


def test_libvirtd_is_restarted_before_the_pause(domain: Domain, folder: Path) -> None:
    with Dumping(domain.source, folder / "dump", *SLOW, **inside(domain.host)) as dumping:
        dumping.wait_written()
        assert domain.state() == RUNNING
        domain.host.restart()
        _, complaint = dumping.child.communicate(timeout=60)
    until(lambda: domain.state()[0] == "running", "the domain runs again")
    if dumping.child.returncode == 0:
        check_whole(folder / "dump")
    else:
        assert len(complaint.splitlines()) == 1, complaint.decode()
        assert not list(folder.iterdir())


def test_two_dumps_at_once(domain: Domain, folder: Path) -> None:
    """The second one waits or is refused; none of them harms the other."""
    with (
        Dumping(domain.source, folder / "one", *SLOW, **inside(domain.host)) as one,
        Dumping(domain.source, folder / "other", *SLOW, **inside(domain.host)) as other,
    ):
        for dumping, name in ((one, "one"), (other, "other")):
            _, complaint = dumping.child.communicate(timeout=120)
            if dumping.child.returncode == 0:
                check_whole(folder / name)
            else:
                assert dumping.child.returncode == GuestBusy.exit_code, complaint.decode()
                assert not (folder / name).exists()
        assert 0 in (one.child.returncode, other.child.returncode)
    assert domain.state() == RUNNING


def resume(domain: Domain) -> None:
    domain.virsh("resume")


def resume_and_suspend(domain: Domain) -> None:
    domain.virsh("resume")
    domain.virsh("suspend")


def reset(domain: Domain) -> None:
    domain.virsh("reset")


@pytest.mark.parametrize(
    ("deed", "state"), [(resume, "running"), (resume_and_suspend, "paused"), (reset, "running")]
)
@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
def test_somebody_else_acts_inside_the_pause(
    deed: Callable[[Domain], None], state: str, killed: bool, domain: Domain, folder: Path
) -> None:
    with held(domain, folder) as dumping:
        deed(domain)
        if killed:
            dumping.signal(signal.SIGKILL)
            dumping.child.wait()
        else:
            dumping.end(GuestBusy.exit_code)
    until(lambda: not guardians_of(domain), "the guardian has ended", GUARDIAN_ENDS)
    assert domain.state()[0] == state
    assert not list(folder.iterdir())
    if deed is reset:
        # It boots: the next test wants it as it was.
        domain.serial.write_bytes(b"")
        domain.wait_ready()


def test_somebody_suspends_it_before_the_pause(domain: Domain, folder: Path) -> None:
    """Then it stays so."""
    with Dumping(domain.source, folder / "dump", *SLOW, **inside(domain.host)) as dumping:
        dumping.wait_written()
        domain.virsh("suspend")
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint.decode()
    assert domain.state() == ("paused", "user")
    check_whole(folder / "dump")


@pytest.fixture
def mortal(domain: Domain) -> Iterator[Domain]:
    """A domain of its own for a test that ends it."""
    one = domain.host.start(f"vmdump-{os.getpid()}-mortal", memory=256, line="fill=40").wait_ready()
    yield one
    if one.name in domain.host.virsh("list", "--name").splitlines():
        one.virsh("destroy")


@pytest.mark.parametrize("options", [SLOW, HELD], ids=["running", "held"])
@pytest.mark.parametrize("deed", ["destroy", "save"])
def test_it_ends_in_the_middle(
    deed: str, options: tuple[str, ...], mortal: Domain, folder: Path, scratch: Path
) -> None:
    with Dumping(mortal.source, folder / "dump", *options, **inside(mortal.host)) as dumping:
        dumping.wait_written()
        mortal.virsh(deed, *([str(scratch / "saved")] if deed == "save" else []))
        line = dumping.end(3, 12, 13)
    assert mortal.name in line
    assert not list(folder.iterdir())
    until(lambda: not guardians_of(mortal), "the guardian has ended", GUARDIAN_ENDS)
    assert mortal.host.daemon.poll() is None
