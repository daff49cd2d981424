"""Daemons of libvirt: which releases are known to be safe, whose guest a QEMU is, how they are reached."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmdump.sources.libvirt.daemons import Daemon, Guest, guest_of

# As the sources of these releases say; 9.0.0 was seen to crash, 11.3.0 not to.
SAFE = [(7, 0, 0), (10, 0, 0), (10, 0, 1), (10, 6, 0), (11, 0, 0), (11, 3, 0), (12, 8, 0), (13, 0, 0)]
UNKNOWN = [(1, 2, 3), (6, 0, 0), (7, 0, 1), (8, 0, 0), (8, 2, 0), (9, 0, 0), (9, 5, 0), (9, 10, 0), None]


@pytest.mark.parametrize("version", [*SAFE, *UNKNOWN], ids=str)
def test_releases(version: tuple[int, int, int] | None) -> None:
    assert Daemon(1, "libvirtd", version, 0).is_safe == (version in SAFE)


def test_name_of_a_daemon() -> None:
    assert str(Daemon(17, "virtqemud", (9, 0, 0), 0)) == "virtqemud 9.0.0, process 17"
    assert str(Daemon(17, "libvirtd", None, 0)) == "libvirtd of unknown version, process 17"


def test_guest_by_the_words_of_its_qemu() -> None:
    uuid = "12345678-1234-1234-1234-123456789abc"
    words = ["qemu", "-name", "guest=web 2,,old,debug-threads=on", "-uuid", uuid, ""]
    assert guest_of(words) == Guest("web 2,old", uuid)
    assert guest_of(["qemu", "-name", "web"]) == Guest("web", "")
    assert guest_of([]) == Guest("DOMAIN", "")


def test_socket_of_a_daemon(tmp_path: Path) -> None:
    """This process listens in its place; not to every client, and not under every name."""
    with (
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX) as only_read,
        socket.socket(socket.AF_UNIX) as here,
        socket.socket(socket.AF_UNIX) as client,
    ):
        for listener, name in ((other, "other"), (only_read, "libvirt-sock-ro")):
            listener.bind(str(tmp_path / name))
            listener.listen()
        me = Daemon(os.getpid(), "libvirtd", None, 0)
        assert me.uri == ""
        folder = tmp_path / "a folder?"
        folder.mkdir()
        here.bind(str(folder / "libvirt-sock"))
        assert me.uri == ""
        here.listen()
        client.connect(str(folder / "libvirt-sock"))
        assert me.uri == f"qemu:///session?socket={tmp_path}/a%20folder%3F/libvirt-sock"
        # Another one under that name is not this daemon's.
        (folder / "libvirt-sock").unlink()
        assert me.uri.startswith(f"qemu:///session?socket=/proc/{os.getpid()}/root{tmp_path}")


def test_daemon_that_has_ended() -> None:
    assert Daemon(1 << 22, "libvirtd", None, 0).uri == ""
