"""libvirt's daemons on this machine: which one a QEMU belongs to, its release, and how it is reached.

QEMU sends DUMP_COMPLETED to each of its monitors, libvirt's own too. The handler of some releases looks at
the daemon's job for the domain before it looks whether there is one, and crashes where nobody asked that
daemon for a dump: then every domain of the host is without its daemon. What is not known to be safe counts as
unsafe.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmdump.sources.process.unix_sockets import socket_inodes, unix_sockets

__all__ = ["MONITOR", "Daemon", "Guest", "find_daemons", "guest_of"]

MONITOR = "charmonitor"
"""The name of the character device of libvirt's own monitor, in all releases that speak QMP."""
_Release = tuple[int, int, int]
_SAFE: tuple[tuple[_Release, _Release | None, str], ...] = (
    # First and last release that look for the job first, and how that is known.
    ((7, 0, 0), (7, 0, 0), "qemu_process.c of libvirt-7.0.0.tar.xz (Debian 11)"),
    ((10, 0, 0), None, "qemu_process.c of libvirt-10.0.0.tar.xz (Ubuntu 24.04) and 11.3.0; seen: 11.3.0"),
)
"""9.0.0 (Debian 12) was seen to crash each time, and its source says why. In those between, and in others
before 10.0.0, nobody has looked."""
_DAEMONS = ("libvirtd", "virtqemud")
_SOCKETS = ("libvirt-sock", "virtqemud-sock")
_WRAPPED = re.compile(r"\.(\w+)-wrap")
"""Where a script of the name sets the environment (NixOS); the kernel keeps 15 characters of it."""
_SYSTEM_FOLDER = "/var/lib/libvirt/"
_SYSTEM_RUNTIME = re.compile(r"(?:/var)?/run/libvirt/[^/]+")
_NAME = re.compile(r"(?:guest=)?((?:[^,]|,,)+)")
# Not what is installed: an upgrade does not end the daemon, which has the old library mapped. libvirt 11.3.0
# is libvirt.so.0.11003.0, and loads no driver of another release.
_LIBRARY = re.compile(r"/libvirt\.so\.0\.(\d+)\.(\d+)(?: \(deleted\))?$", re.MULTILINE)
_THOUSAND = 1000
_MONITOR_SOCKET = re.compile(r"unix:(/.*/monitor\.sock)")


@dataclass(frozen=True)
class Daemon:
    """A daemon of libvirt that runs QEMUs.

    Attributes
    ----------
    pid : int
        Its process.
    name : str
        ``libvirtd`` or ``virtqemud``.
    version : tuple of int, or None
        Release of what it has loaded; None if that cannot be seen.
    user : int
        Whose it is.
    """

    pid: int
    name: str
    version: _Release | None
    user: int

    def __str__(self) -> str:
        version = "of unknown version" if self.version is None else ".".join(map(str, self.version))
        return f"{self.name} {version}, process {self.pid}"

    @property
    def is_safe(self) -> bool:
        """Whether it is known to survive the end of a dump that it did not begin."""
        version = self.version
        return version is not None and any(
            first <= version and (last is None or version <= last) for first, last, _ in _SAFE
        )

    @property
    def uri(self) -> str:
        """How a client reaches it, wherever its socket is; nothing where that cannot be seen from here."""
        from urllib.parse import quote  # 5 ms, for those guests of libvirt only that are rerouted

        path = next(self._sockets(), "")
        if not path:
            return ""
        kind = "system" if _SYSTEM_RUNTIME.fullmatch(path) else "session"
        seen = f"/proc/{self.pid}/root{path}"
        # The namespace of a daemon may have another socket of that name.
        with contextlib.suppress(OSError):
            if os.path.samefile(seen, path):
                seen = path
        return f"qemu:///{kind}?socket={quote(seen, safe='/')}"

    def _sockets(self) -> Iterator[str]:
        """Find where it listens to clients that may write."""
        own = set((socket_inodes(self.pid) or {}).values())
        for socket in unix_sockets(self.pid):
            if socket.listens and socket.inode in own and os.path.basename(socket.path) in _SOCKETS:
                yield socket.path


@dataclass(frozen=True)
class Guest:
    """A guest of libvirt, by the words with which its QEMU was started.

    Attributes
    ----------
    name : str
        The domain's.
    uuid : str
        The domain's; empty where QEMU was not told.
    """

    name: str
    uuid: str


def guest_of(words: list[str]) -> Guest:
    """Tell which domain a QEMU is.

    Parameters
    ----------
    words : list of str
        Its command line.
    """
    name, uuid = "DOMAIN", ""
    for word, value in pairwise(words):
        if word == "-name" and (match := _NAME.match(value)):
            name = match[1].replace(",,", ",")
        elif word == "-uuid":
            uuid = value
    return Guest(name, uuid)


def find_daemons(qemu: int, place: str | None) -> list[Daemon]:
    """Find the daemons that a QEMU may belong to: those of the system, or of QEMU's own user.

    A container's daemon has nothing to do with the host's guests, nor the other way round. The user
    0 of a container may be any user of the host, and a daemon and its QEMUs are in one PID namespace. Two
    daemons may be there, too, each with folders of its own: the monitor's socket is in those of QEMU's.

    Parameters
    ----------
    qemu : int
        The process.
    place : str or None
        Where libvirt's monitor is, in QEMU's words, if that is known.
    """
    owners = set()
    if place is None or _SYSTEM_FOLDER in place:
        owners.add(_superuser(qemu))
    if place is None or _SYSTEM_FOLDER not in place:
        with contextlib.suppress(OSError):
            owners.add(os.stat(f"/proc/{qemu}").st_uid)
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        name = _name(number)
        if name not in _DAEMONS or _are_apart(number, qemu):
            continue
        with contextlib.suppress(OSError):
            user = os.stat(f"/proc/{number}").st_uid
            if user in owners and not _sees_another(number, qemu, place):
                version = _version(number)
                # Without a library: a child that is to become QEMU, or one that has ended, is not a daemon.
                if version is not None or _name(number) == name:
                    found.append(Daemon(int(number), name, version, user))
    return found


def _superuser(pid: int) -> int:
    """Give the user that is 0 in the user namespace of a process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/uid_map") as file:
        for inside, outside, _ in (map(int, line.split()) for line in file):
            if inside == 0:
                return outside
    return 0


def _are_apart(number: str, qemu: int) -> bool:
    """Tell whether two processes are known to be in two PID namespaces."""
    with contextlib.suppress(OSError):
        return not os.path.samefile(f"/proc/{number}/ns/pid", f"/proc/{qemu}/ns/pid")
    return False


def _sees_another(number: str, qemu: int, place: str | None) -> bool:
    """Tell whether a daemon is known to see another file, or none, where a QEMU has the monitor's socket."""
    match = _MONITOR_SOCKET.search(place or "")
    with contextlib.suppress(OSError):
        if match and os.path.exists(mine := f"/proc/{qemu}/root{match[1]}"):
            try:
                return not os.path.samefile(f"/proc/{number}/root{match[1]}", mine)
            except FileNotFoundError:
                return True
    return False


def _name(number: str) -> str:
    """Give the name of a process, without what wraps it; nothing if it has ended, and nobody asked how."""
    with contextlib.suppress(OSError), open(f"/proc/{number}/stat", errors="surrogateescape") as file:
        name, _, rest = file.read().partition("(")[2].rpartition(") ")
        if not rest.startswith(("Z", "X")):
            match = _WRAPPED.match(name)
            return match[1] if match else name
    return ""


def _version(number: str) -> _Release | None:
    with contextlib.suppress(OSError), open(f"/proc/{number}/maps", errors="surrogateescape") as file:
        found = {(int(major), int(micro)) for major, micro in _LIBRARY.findall(file.read())}
        if len(found) == 1:
            combined, micro = found.pop()
            return combined // _THOUSAND, combined % _THOUSAND, micro
    return None
