"""Where a dump goes that a client asks for: to the file that QEMU would open."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

__all__ = ["Replaced", "Unblocking", "place_for"]

_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def place_for(path: str, pid: int) -> str:
    """Give the path, for this process, of what QEMU would open under a name.

    Parameters
    ----------
    path : str
        QEMU's: relative to its folder, inside its root.
    pid : int
        QEMU's process.

    Raises
    ------
    OSError
        QEMU's folder may not be seen, and the path is relative to it.
    """
    apart = False
    with suppress(OSError):  # a process that may not be looked into has this one's root, most likely
        apart = not (
            os.path.samefile(f"/proc/{pid}/ns/mnt", "/proc/self/ns/mnt")
            and os.path.samefile(f"/proc/{pid}/root", "/proc/self/root")
        )
    if not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)
    return f"/proc/{pid}/root{path}" if apart else _followed(path)


def _followed(path: str) -> str:
    """Follow a symlink of this user's or root's: QEMU writes through it. Others' are left to the sink."""
    with suppress(OSError):
        if os.path.islink(path) and os.lstat(path).st_uid in (0, os.geteuid()):
            return os.path.realpath(path)
    return path


class Replaced:
    """The file that a dump replaces: whose it is, and who may read it. QEMU would write into it.

    Parameters
    ----------
    path : str
        Where the dump goes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._status: os.stat_result | None = None
        with suppress(OSError):
            status = os.stat(path, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                self._status = status

    def give_back(self) -> None:
        """Let the new file have the old one's owner and mode, as far as this user may."""
        if self._status is None:
            return
        with suppress(OSError):
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    with suppress(OSError):
                        os.fchown(fd, self._status.st_uid, self._status.st_gid)
                    os.fchmod(fd, stat.S_IMODE(self._status.st_mode) & 0o777)
            finally:
                os.close(fd)


class Unblocking:
    """Lets a dump go on that waits for the reader of its pipe or socket: it is to end.

    Parameters
    ----------
    path : str
        Of the output, where it has no descriptor.
    fd : int or None
        The descriptor that it goes to.
    """

    def __init__(self, path: str, fd: int | None) -> None:
        self._reader = -1
        with suppress(OSError):
            if fd is None:
                if stat.S_ISFIFO(os.stat(path).st_mode):
                    self._reader = os.open(path, _READING)
                return
            with open(os.dup(fd), "wb", buffering=0) as kept:
                kind = stat.S_IFMT(os.fstat(kept.fileno()).st_mode)
                if kind == stat.S_IFIFO:
                    self._reader = os.open(f"/proc/self/fd/{kept.fileno()}", _READING)
                elif kind == stat.S_IFSOCK:
                    with socket.socket(fileno=os.dup(kept.fileno())) as peer:
                        peer.shutdown(socket.SHUT_RDWR)

    def drain(self) -> None:
        """Read what nobody reads; what came of the dump is of no use."""
        if self._reader >= 0:
            with suppress(BlockingIOError):
                while os.read(self._reader, 1 << 20):
                    pass

    def close(self) -> None:
        """Stop."""
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
