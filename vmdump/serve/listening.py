"""The socket that clients find: there when it is listened to, this user's alone, and gone at the end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vmdump.errors import OutputExists, SinkError

__all__ = ["Listener"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BACKLOG = 64
_MODE = 0o600


class Listener:
    """A listening Unix socket of mode 0600. A context manager, which removes it.

    It is made by :meth:`appear`, and has its name as soon as it listens. One of that name to which nobody
    listens is replaced if it is this user's; anything else is left alone.

    Parameters
    ----------
    path : str
        Where clients look.

    Attributes
    ----------
    path : str
        As given.
    socket : socket
        Does not block.

    Raises
    ------
    OutputExists
        Something else has the name.
    SinkError
        It cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = os.path.basename(path)
        self._identity = (0, 0)
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            with _errors(path), self._folder() as folder, contextlib.suppress(FileNotFoundError):
                self._demand_stale(folder)
        except BaseException:
            self.socket.close()
            raise

    def appear(self) -> None:
        """Listen.

        Raises
        ------
        OutputExists, SinkError
            As for the class.
        """
        with _errors(self.path), self._folder() as folder:
            self._appear(folder)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        folder = os.open(os.path.dirname(self.path) or ".", _FOLDER)
        try:
            yield folder
        finally:
            os.close(folder)

    def _appear(self, folder: int) -> None:
        # Under another name first: who finds the right one can connect. By the folder's descriptor, since a
        # socket's address has 107 bytes.
        temporary = f".vmdump-{os.getpid()}-{id(self):x}"
        # Linux makes the socket of its descriptor's mode; the umask would be the whole process's.
        os.fchmod(self.socket.fileno(), _MODE)
        self.socket.bind(f"/proc/self/fd/{folder}/{temporary}")
        try:
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
            status = os.stat(temporary, dir_fd=folder, follow_symlinks=False)
            self._identity = (status.st_dev, status.st_ino)
            # Another that does the same sees what is there now, or what comes of this.
            fcntl.flock(folder, fcntl.LOCK_EX)
            try:
                os.link(temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
            except FileExistsError:
                self._demand_stale(folder)
                os.replace(temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)

    def _demand_stale(self, folder: int) -> None:
        """Check that what has the name is a socket of this user's to which nobody listens."""
        status = os.stat(self._name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISSOCK(status.st_mode):
            raise self._taken("it is no socket")
        if status.st_uid != os.geteuid():
            raise self._taken("it is another user's")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(f"/proc/self/fd/{folder}/{self._name}")
            except ConnectionRefusedError:
                return
            except BlockingIOError:
                pass  # somebody listens who does not accept
        raise self._taken("somebody listens to it")

    def _taken(self, why: str) -> OutputExists:
        return OutputExists(
            f"the socket's name is taken ({why})",
            path=self.path,
            errno=errno.EEXIST,
            hint="choose another --listen, or remove it",
        )

    def close(self) -> None:
        """Listen no more, and remove the socket unless somebody has replaced it; twice does nothing."""
        if self.socket.fileno() < 0:
            return
        with contextlib.suppress(OSError), self._folder() as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            status = os.stat(self._name, dir_fd=folder, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._name, dir_fd=folder)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except SinkError:
        raise
    except OSError as error:
        raise SinkError("cannot listen", path=path, errno=error.errno) from error
