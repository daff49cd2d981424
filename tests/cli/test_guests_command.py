"""``vmdump guests``: what people read."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from helpers.terminal import on_terminal

from vmdump import RunningGuest
from vmdump.cli import guests as command
from vmdump.cli.main import main

GUEST = RunningGuest(
    pid=4242,
    name="web",
    uuid="6a3f8c1e-2d54-4f0b-9d1c-0a4b7e5f9c21",
    arch="x86_64",
    memory=4 << 30,
    resident=1 << 30,
    accelerator="kvm",
    user="libvirt-qemu",
    domain="web",
    socket="",
    source="libvirt:web",
    reason="",
    missing_rights="",
)


def shown(*guests: RunningGuest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(command, "guests", lambda: list(guests))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["guests"]) == 0
    return capfd.readouterr().out


def test_guest_and_its_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert shown(GUEST, monkeypatch=monkeypatch, capfd=capfd).splitlines() == [
        "web: 4.0 GiB of memory, 1.0 GiB resident; x86_64 kvm, process 4242 of",
        "    libvirt-qemu",
        "  libvirt's domain 6a3f8c1e-2d54-4f0b-9d1c-0a4b7e5f9c21",
        "  vmdump dump libvirt:web web.kdump",
    ]


def test_hostile_name(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    guest = replace(GUEST, name="a\x1b[2J/../b;c", source="qmp:/run/a b\n")
    text = shown(guest, monkeypatch=monkeypatch, capfd=capfd)
    assert "\x1b" not in text
    assert text.splitlines()[-1] == r"  vmdump dump 'qmp:/run/a b\n' a--2J-..-b-c.kdump"


def test_reason_instead_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    guest = replace(GUEST, source="", reason="it has no monitor: start it again")
    text = shown(guest, GUEST, monkeypatch=monkeypatch, capfd=capfd)
    first, second = text.split("\n\n")
    assert "Cannot be dumped: it has no monitor: start it again." in first
    assert "vmdump dump" not in first
    assert "vmdump dump libvirt:web web.kdump" in second


def test_no_guest(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(monkeypatch=monkeypatch, capfd=capfd)
    assert text.startswith("No guest of QEMU runs here that this user can see.\n")


def test_command_is_never_wrapped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    guest = replace(GUEST, source="qmp:/run/" + "long folder/" * 20)
    text = shown(guest, monkeypatch=monkeypatch, capfd=capfd)
    assert f"  vmdump dump '{guest.source}' web.kdump" in text.splitlines()


SHOW = """
import sys
import vmdump.cli.guests as command
from vmdump import RunningGuest
from vmdump.cli.main import main
command.guests = lambda: [eval(text) for text in sys.argv[1:]]
sys.exit(main(["guests"]))
"""


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_guests_on_a_terminal(columns: int, environment: dict[str, str]) -> None:
    """Nothing but the command, which is to be copied, is longer than the terminal is wide."""
    stuck = replace(GUEST, source="", reason="it has no monitor: start it again, with one " * 5)
    shown = on_terminal(
        [repr(GUEST), repr(stuck)], columns, program=(sys.executable, "-c", SHOW), **environment
    )
    assert shown.code == 0
    assert not shown.colours
    lines = shown.raw.decode().replace("\r\n", "\n").splitlines()
    assert lines == shown.lines
    assert max(map(len, lines)) <= columns
    assert "  vmdump dump libvirt:web web.kdump" in lines
