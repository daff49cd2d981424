"""Which monitors a QEMU has, and whether a client can have them: found out without connecting to any.

A QMP monitor serves one client. To connect for a look would take its place, and a client that comes meanwhile
would wait.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmdump.sources.emulator_words import options, settings
from vmdump.sources.process.unix_sockets import UnixSocket, socket_inodes, unix_sockets

__all__ = ["Seat", "find_seats"]

_QMP_OPTIONS = ("qmp", "qmp-pretty")
_NO = ("off", "no", "false")
_NOWHERE = ("none", "null", "vc", "")
_STDIO = "standard input and output"


@dataclass(frozen=True)
class Seat:
    """A monitor.

    Attributes
    ----------
    is_qmp : bool
        It speaks QMP; else it is for people.
    place : str
        Where it is, for people.
    path : str
        Of its Unix socket, as it can be named here; empty where that cannot be.
    reason : str
        Why vmdump cannot have it; empty where it can.
    """

    is_qmp: bool
    place: str
    path: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Device:
    """A character device: its kind, and of a Unix socket its path or the number of a descriptor."""

    kind: str
    where: str = ""
    fd: int = -1
    is_server: bool = False
    is_abstract: bool = False


def find_seats(pid: int, words: Sequence[str]) -> list[Seat]:
    """Find the monitors of a QEMU.

    Parameters
    ----------
    pid : int
        Its process.
    words : sequence of str
        Its command line.

    Returns
    -------
    list of Seat
        In the order of the command line; none where nobody can talk to it, as on a window of QEMU's own.
    """
    sockets, inodes = unix_sockets(pid), socket_inodes(pid)
    return [
        _seat(pid, is_qmp, device, sockets, inodes)
        for is_qmp, device in _monitors(words)
        if device.kind not in _NOWHERE
    ]


def _monitors(words: Sequence[str]) -> Iterator[tuple[bool, _Device]]:
    named = {}
    for name, value in options(words):
        if name == "chardev":
            found = settings(value, "backend")
            named[found.get("id", "")] = _device(found.get("backend", ""), found)
    is_bare = True
    for name, value in options(words):
        if name in (*_QMP_OPTIONS, "monitor"):
            is_bare = is_bare and name != "monitor"
            kind, _, rest = settings(value, "device").get("device", "").partition(":")
            known = named.get(rest) if kind == "chardev" else None
            yield name != "monitor", known or _short_device(kind, rest, settings(value, "device"))
        elif name == "mon":
            found = settings(value, "chardev")
            is_bare = False
            device = named.get(found.get("chardev", ""), _Device(""))
            yield found.get("mode", "readline") == "control", device
        elif name == "serial" and value.startswith("mon:"):
            is_bare = False
            kind, _, rest = settings(value, "device")["device"].removeprefix("mon:").partition(":")
            yield False, _short_device(kind, rest, settings(value, "device"))
    names = {name for name, _ in options(words)}
    if is_bare and "nographic" in names and "nodefaults" not in names:
        yield False, _Device("stdio")


def _short_device(kind: str, rest: str, found: dict[str, str]) -> _Device:
    """Read ``unix:PATH,server=on`` and the like."""
    if kind == "unix":
        return _device("socket", {**found, "path": rest})
    if kind in ("tcp", "telnet", "websocket", "udp"):
        return _Device("tcp", rest)
    return _Device(kind, rest)


def _device(kind: str, found: dict[str, str]) -> _Device:
    if kind != "socket":
        return _Device(kind, found.get("path", ""))
    if "path" not in found and "fd" not in found:
        return _Device("tcp", f"{found.get('host', '')}:{found.get('port', '')}")
    number = found.get("fd", "")
    return _Device(
        "socket",
        found.get("path", ""),
        int(number) if number.isdecimal() else -1,
        found.get("server", "off") not in _NO,
        found.get("abstract", "off") not in _NO,
    )


def _seat(
    pid: int, is_qmp: bool, device: _Device, sockets: list[UnixSocket], inodes: dict[int, int] | None
) -> Seat:
    if device.kind == "stdio":
        return Seat(is_qmp, _STDIO, reason=f"is on {_STDIO}, where only the program that started QEMU is")
    if device.kind == "tcp":
        place = f"TCP {device.where}"
        return Seat(is_qmp, place, reason=f"is on {place}, and vmdump takes Unix sockets only")
    if device.kind != "socket":
        place = f"{device.kind} {device.where}".rstrip()
        return Seat(is_qmp, place, reason=f"is on {place}, and vmdump takes Unix sockets only")
    bound = device.where
    if not bound:
        if inodes is None:
            reason = "is a socket that QEMU was given, and which one only its user or root can see"
            return Seat(is_qmp, f"descriptor {device.fd}", reason=reason)
        bound = next((each.path for each in sockets if each.inode == inodes.get(device.fd, -1)), "")
        if not bound:
            return Seat(is_qmp, f"descriptor {device.fd}", reason="is a socket that has no name")
    elif not device.is_server:
        return Seat(is_qmp, bound, reason=f"is a client of {bound}, and vmdump cannot take a client's place")
    if device.is_abstract or bound.startswith("@"):
        place = f"@{bound.lstrip('@')}"
        return Seat(is_qmp, place, reason=f"is the socket {place}, which is no file")
    return _seat_at(pid, is_qmp, bound, sockets, inodes)


def _seat_at(
    pid: int, is_qmp: bool, bound: str, sockets: list[UnixSocket], inodes: dict[int, int] | None
) -> Seat:
    path, reason = _seen(pid, bound)
    if reason:
        return Seat(is_qmp, bound, path, reason)
    own = [each for each in sockets if each.path == bound]
    if inodes is not None:
        # Another container may have a socket of the same path.
        own = [each for each in own if each.inode in inodes.values()]
    if any(each.connected and each.inode for each in own):
        return Seat(is_qmp, path, path, f"({path}) is in use by another client, and serves one at a time")
    if not any(each.listens for each in own):
        return Seat(is_qmp, path, path, f"({path}) does not listen any more")
    return Seat(is_qmp, path, path)


def _seen(pid: int, bound: str) -> tuple[str, str]:
    """Give the path here of a socket that QEMU has bound, and what is wrong with it."""
    path = bound
    if not os.path.isabs(bound):
        try:
            path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), bound)
        except OSError:
            return "", f"({bound}) is relative to QEMU's folder, which only its user or root can see"
    root = f"/proc/{pid}/root"
    there = f"{root}{path}"
    here_file, there_file = _identity(path), _identity(there)
    if there_file is None:
        # Either QEMU may not be looked into, and this is its file, or there is none.
        return (path, "") if here_file and not os.access(f"{root}/", os.X_OK) else _gone(bound)
    return (path if here_file == there_file else there), ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _gone(bound: str) -> tuple[str, str]:
    return "", f"({bound}) has lost its file: nobody can find it"
