"""``libvirt:NAME`` against a daemon that does what a test says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.elf_builder import Load, build_elf
from scripted.fake_libvirt import PAUSED, RESUMED, RUNNING, SUSPENDED, USER, Domain, Error, FakeLibvirt
from scripted.fake_qemu import PAGE, Child, page_of

import vmdump
from vmdump.errors import CapabilityError, GuestBusy, QmpError, RequestError, SourceError
from vmdump.opening import open_source
from vmdump.sources.domain import commands
from vmdump.sources.domain.over_libvirt import OverLibvirt
from vmdump.sources.libvirt import domain as domains

PAGES = 64
SIZE = PAGES * PAGE


class Guardian:
    """Notes what it is told."""

    alive = True

    def __init__(self) -> None:
        self.words: list[str] = []

    def wait_ready(self) -> None: ...

    def arm(self, *, migrated: bool) -> None:
        self.words.append("arm")

    def disarm(self) -> None:
        self.words.append("disarm")

    def dismiss(self, *, hurry: bool) -> bool:
        return self.words[-1:] != ["arm"]


class Guest:
    """A domain whose memory is in a process, and the guardian that vmdump has."""

    def __init__(self, libvirt: FakeLibvirt, more: str = "") -> None:
        self.child = Child()
        self.address = self.child.map("anonymous", PAGES)
        self.child.write(self.address, range(PAGES))
        self.domain: Domain = libvirt.add("guest", more=more)
        self.domain.headers = build_elf([Load(0, filesz=SIZE)])
        self.domain.memory = self.peek
        self.guardian = Guardian()

    def peek(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self.child.pid}/mem", "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, self.address + address)


@pytest.fixture
def guest(libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    guest = Guest(libvirt)
    monkeypatch.setattr(domains.Domain, "_find_process", lambda _: guest.child.pid)
    monkeypatch.setattr(OverLibvirt, "start_guardian", lambda *_: guest.guardian)
    monkeypatch.setattr(commands, "_EVENT_WAIT", 0.5)
    yield guest
    guest.child.__exit__(None, None, None)


def hold(act: Callable[[], object] = lambda: None) -> float | None:
    """Hold the guest, and let something happen meanwhile; for how long it was paused."""
    with open_source("libvirt:guest") as source:
        with source.held(pause=True, cancelled=lambda: False):
            act()
        return source.paused_seconds


def test_dump(guest: Guest, tmp_path: Path) -> None:
    report = vmdump.dump("libvirt:guest", tmp_path / "dump", format="elf")
    with vmdump.open(tmp_path / "dump") as dump:
        assert dump.read(0, SIZE) == b"".join(map(page_of, range(PAGES)))
    assert report.remarks == ()
    assert report.paused_seconds is not None
    assert [call for call in guest.domain.calls if call in ("suspend", "resume")] == ["suspend", "resume"]
    assert guest.guardian.words[:: len(guest.guardian.words) - 1] == ["arm", "disarm"]
    assert guest.domain.now[0] == RUNNING


def test_a_paused_guest_stays_paused(guest: Guest) -> None:
    guest.domain.now = PAUSED, USER
    assert hold() == 0
    assert guest.domain.now == (PAUSED, USER)
    assert "suspend" not in guest.domain.calls


def test_events_may_come_late(guest: Guest, libvirt: FakeLibvirt) -> None:
    tell = libvirt.tell

    def late(*details: Any) -> None:
        threading.Timer(0.1, tell, details).start()

    libvirt.tell = late  # type: ignore[method-assign]
    paused = hold()
    assert guest.guardian.words[:: len(guest.guardian.words) - 1] == ["arm", "disarm"]
    assert guest.domain.now[0] == RUNNING
    assert paused is not None


def test_the_time_until_libvirt_has_paused_it_counts(guest: Guest) -> None:
    guest.domain.before["suspend"] = lambda: time.sleep(0.2)
    paused = hold()
    assert paused is not None
    assert paused >= 0.2


def test_a_pause_without_an_event_does_not_last(guest: Guest) -> None:
    guest.domain.tells = False
    with pytest.raises(QmpError, match="stop: no event of libvirt's tells"):
        hold()
    assert guest.domain.now[0] == RUNNING


def test_resumed_by_somebody_else(guest: Guest) -> None:
    with pytest.raises(GuestBusy, match="somebody let the guest run"):
        hold(lambda: guest.domain.become(RUNNING, 5, RESUMED))
    assert guest.guardian.words[:: len(guest.guardian.words) - 1] == ["arm", "disarm"]
    assert "resume" not in guest.domain.calls


def test_resumed_by_somebody_else_as_the_last_event(guest: Guest) -> None:
    """The events of a resume and a pause come behind the answer that tells that it is paused."""

    def both() -> None:
        guest.domain.before.pop("resume")
        guest.domain.become(RUNNING, 5, RESUMED)
        guest.domain.become(PAUSED, USER, SUSPENDED)

    guest.domain.before["resume"] = both
    with pytest.raises(GuestBusy, match="somebody let the guest run"):
        hold()


def test_resumed_and_paused_by_somebody_else(guest: Guest) -> None:
    def both() -> None:
        guest.domain.become(RUNNING, 5, RESUMED)
        guest.domain.become(PAUSED, USER, SUSPENDED)

    with pytest.raises(GuestBusy, match="somebody let the guest run"):
        hold(both)
    assert guest.domain.now == (PAUSED, USER), "somebody else's wish"


def test_reset_by_somebody_else(guest: Guest, libvirt: FakeLibvirt) -> None:
    with pytest.raises(GuestBusy, match="reset"):
        hold(lambda: libvirt.tell(guest.domain, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT))
    assert guest.domain.now[0] == RUNNING


@pytest.mark.parametrize(
    ("operation", "name"), [(2, "save"), (5, "migration-out"), (8, "dump"), (9, "backup")]
)
def test_somebody_is_at_work(operation: int, name: str, guest: Guest) -> None:
    guest.domain.stats = {"type": 2, "operation": operation}
    with pytest.raises(GuestBusy, match=rf"at work on the domain \({name}\)") as raised:
        open_source("libvirt:guest")
    assert raised.value.state == name


def test_two_at_a_time(guest: Guest) -> None:
    with pytest.raises(GuestBusy, match="another dump"):
        hold(hold)
    assert guest.domain.now[0] == RUNNING


def test_the_daemon_ends_meanwhile(guest: Guest, libvirt: FakeLibvirt) -> None:
    with pytest.raises(QmpError, match=r"daemon has ended|the guest may still be paused"):
        hold(libvirt.lose)
    assert guest.guardian.words == ["arm"], "it is the guardian's now"
    libvirt.connections.clear()


def test_the_qemu_ends_meanwhile(guest: Guest, libvirt: FakeLibvirt) -> None:
    def end() -> None:
        guest.domain.now = 5, 1
        libvirt.tell(guest.domain, 0, 5, 0)

    with pytest.raises(QmpError, match="not active any more"):
        hold(end)


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx", "s390-pv"])
def test_encrypted_memory(kind: str, guest: Guest) -> None:
    guest.domain.words["more"] = f"<launchSecurity type='{kind}'/>"
    with pytest.raises(CapabilityError, match=rf"memory is encrypted \({kind}\)"):
        open_source("libvirt:guest")


def test_an_architecture_that_qemu_does_not_dump(guest: Guest) -> None:
    def refuse() -> None:
        text = "this feature or command is not currently supported"
        raise Error(f"unable to execute QEMU command 'dump-guest-memory': {text}")

    guest.domain.before["dump"] = refuse
    with pytest.raises(CapabilityError, match="cannot dump a guest of this architecture"):
        open_source("libvirt:guest")


def test_the_monitor_is_asked_last_and_it_is_said(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guest.child.put(guest.address, bytes(SIZE))
    monkeypatch.setattr(OverLibvirt, "_gpa2hva", lambda _, address: guest.address + address)
    report = vmdump.dump("libvirt:guest", tmp_path / "dump", format="elf")
    assert len(report.remarks) == 1
    assert "marks the domain as tainted" in report.remarks[0]


def test_memory_is_shown_before_the_pause_only(guest: Guest) -> None:
    hold()
    calls = guest.domain.calls
    assert "memoryPeek" in calls[: calls.index("suspend")]
    assert "memoryPeek" not in calls[calls.index("suspend") :]


def test_options(libvirt: FakeLibvirt) -> None:
    with pytest.raises(RequestError, match="no such option; there are uri"):
        open_source("libvirt:guest?url=qemu:///system")
    with pytest.raises(SourceError, match="there is no such domain at qemu:///session"):
        open_source("libvirt:guest?x=y?uri=qemu:///session")
    with pytest.raises(SourceError, match="no domain is named"):
        open_source("libvirt:")
