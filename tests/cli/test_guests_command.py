"""``vmdump guests``: what people read."""

from __future__ import annotations

import os
import subprocess
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
    command_line = text.splitlines()[-1].strip()
    assert command_line == r"vmdump dump $'qmp:/run/a b\x0a' a--2J-..-b-c.kdump"


@pytest.mark.parametrize("path", ["/run/a\nb.qmp", "/run/\x1b[31m'$(id)'\\n.qmp", "/run/\udcff\x9b é.qmp"])
def test_copied_command_names_the_socket(
    path: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = shown(replace(GUEST, source=f"qmp:{path}"), monkeypatch=monkeypatch, capfd=capfd)
    copied = text.splitlines()[-1].strip()
    assert copied.isprintable()
    shell = ["bash", "-c", copied.replace("vmdump dump", "printf '%s\\0'", 1)]
    given = subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout
    assert given.split(b"\0")[0] == os.fsencode(f"qmp:{path}")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("--force", "force.kdump"),
        ("../..", "guest.kdump"),
        (".ssh", "ssh.kdump"),
        ("x" * 4000, "x" * 60 + ".kdump"),
    ],
)
def test_name_of_the_dump(
    name: str, file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = shown(replace(GUEST, name=name), monkeypatch=monkeypatch, capfd=capfd)
    assert text.splitlines()[-1].split()[-1] == file


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
