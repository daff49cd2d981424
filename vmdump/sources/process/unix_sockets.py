"""The Unix sockets that a process sees, by the kernel's list: nobody is connected to.

Source: unix(7), /proc/net/unix; the kernel's net/unix/af_unix.c, unix_seq_show().
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

__all__ = ["UnixSocket", "socket_inodes", "unix_sockets"]

_LINK = re.compile(r"socket:\[(\d+)\]")
_LISTENS = 0x10000
_CONNECTED = 3
_FLAGS, _STATE, _INODE, _PATH = 3, 5, 6, 7
"""Columns."""


@dataclass(frozen=True)
class UnixSocket:
    """A socket that has a name.

    Attributes
    ----------
    path : str
        As it was bound: relative to a folder that nobody tells, or with @ in front where it is no file.
    inode : int
        What the links in /proc/PID/fd tell; 0 of a connection that was not accepted yet.
    listens, connected : bool
        A server's own, or one of its connections, which has the path of the server's.
    """

    path: str
    inode: int
    listens: bool
    connected: bool


def unix_sockets(pid: int) -> list[UnixSocket]:
    """List the sockets with a name in the network namespace of a process; empty once it has ended."""
    found = []
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/net/unix", errors="surrogateescape") as file,
    ):
        next(file, None)
        for line in file:
            words = line.rstrip("\n").split(maxsplit=_PATH)
            if len(words) > _PATH:
                listens = bool(int(words[_FLAGS], 16) & _LISTENS)
                connected = int(words[_STATE], 16) == _CONNECTED
                found.append(UnixSocket(words[_PATH], int(words[_INODE]), listens, connected))
    return found


def socket_inodes(pid: int) -> dict[int, int] | None:
    """Give the inodes of a process's sockets by descriptor; None if it may not be looked at."""
    found = {}
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for number in numbers:
        with contextlib.suppress(OSError):
            if link := _LINK.fullmatch(os.readlink(f"/proc/{pid}/fd/{number}")):
                found[int(number)] = int(link[1])
    return found
