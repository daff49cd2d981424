"""The sink: a file that appears when it is whole, standard output, or an open descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vmdump.errors import OutputExists, RequestError, SinkError, VmdumpError

__all__ = ["Output"]

_STDOUT = 1
_NEW_FILE = os.O_RDWR | os.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)

_WAYS_OUT = {
    errno.ENOSPC: "free some space, or choose another folder or a stronger compression",
    errno.EDQUOT: "free some of this user's quota",
    errno.EFBIG: "the file system or a limit (ulimit -f) forbids so large a file",
    errno.EPIPE: "the reader went away",
    errno.EACCES: "choose a folder that this user may write to",
    errno.EROFS: "choose a folder on a writable file system",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "name a file, not a folder",
}


class Output:
    """Where a dump goes. A context manager: a clean exit commits, an exception leaves nothing behind.

    Parameters
    ----------
    target : str or path
        A path, ``-`` for standard output, or ``fd:N``. A path that names a FIFO or a device is written
        to; any other gets a new file of mode 0600 that has no name until it is whole and synced.
    force : bool
        Replace a file that is there.

    Attributes
    ----------
    name : str
        For people.
    fd : int
        Open for writing.
    seekable : bool
        True if bytes can be put anywhere, counted from the start of the file.

    Raises
    ------
    OutputExists
        The file is there and `force` is false.
    SinkError
        It cannot be created.
    RequestError
        ``fd:N`` names no number.
    """

    def __init__(self, target: str | os.PathLike[str], *, force: bool = False) -> None:
        self.name = os.fspath(target)
        self._force = force
        self._final: str | None = None
        self._temporary: str | None = None
        self._owned = False
        if self.name == "-":
            self.name, self.fd = "standard output", _STDOUT
        elif self.name.startswith("fd:"):
            self.fd = _descriptor(self.name)
        else:
            with self.errors("cannot create the output"):
                self.fd = self._open(self.name)
            self._owned = True
        with self.errors("cannot use the output"):
            self.seekable = _is_seekable(self.fd)
        if os.isatty(self.fd):
            self._close()
            raise SinkError(
                "a dump is not for a terminal", path=self.name, hint="redirect it, or name a file"
            )

    def _open(self, path: str) -> int:
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            mode = 0
        if mode and not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        if mode and not self._force:
            raise self._exists(path)
        self._final = path
        try:
            fd = os.open(self._folder, _NEW_FILE | os.O_TMPFILE, 0o600)
            # Without /proc the file could never be given a name.
            if os.path.exists(f"/proc/self/fd/{fd}"):
                return fd
            os.close(fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE or not os.path.isdir(self._folder):
                raise
        self._temporary = self._hidden_name()
        return os.open(self._temporary, _NEW_FILE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    @property
    def _folder(self) -> str:
        return os.path.dirname(self._final or "") or "."

    def _hidden_name(self) -> str:
        name = os.path.basename(self._final or "")
        return os.path.join(self._folder, f".{name[:200]}.{secrets.token_hex(4)}.partial")

    @staticmethod
    def _exists(path: str) -> OutputExists:
        return OutputExists("the output exists", path=path, errno=errno.EEXIST, hint="--force replaces it")

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn the OSError of a system call on the output into a SinkError."""
        try:
            yield
        except VmdumpError:
            raise
        except OSError as error:
            code = error.errno or 0
            raise SinkError(what, path=self.name, errno=code, hint=_WAYS_OUT.get(code, "")) from error

    def open_direct(self) -> int:
        """Open the same file a second time with O_DIRECT.

        Returns
        -------
        int
            A descriptor that the caller closes, or -1 where the file system has no O_DIRECT.
        """
        try:
            return os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return -1

    def set_size(self, size: int) -> None:
        """Make a regular file `size` bytes long: it may end in a hole, or have been longer; a disk stays."""
        if self.seekable and stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.ftruncate(self.fd, size)

    def commit(self) -> None:
        """Sync the file and give it its name; other outputs stay as they are.

        Raises
        ------
        OutputExists
            A file of that name has appeared meanwhile.
        SinkError
            The bytes cannot be made safe.
        """
        if self._final is None:
            return
        with self.errors("cannot finish the output"):
            os.fsync(self.fd)
            try:
                self._publish(self._final)
            except FileExistsError:
                raise self._exists(self._final) from None
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _publish(self, final: str) -> None:
        if self._temporary is None:
            temporary = self._hidden_name() if self._force else final
            # With a directory descriptor Python calls linkat, which follows the link in /proc.
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(
                    f"/proc/self/fd/{self.fd}",
                    os.path.abspath(temporary),
                    src_dir_fd=folder,
                    dst_dir_fd=folder,
                    follow_symlinks=True,
                )
            finally:
                os.close(folder)
            if not self._force:
                return
            self._temporary = temporary
        if not self._force:
            try:
                os.link(self._temporary, final)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                if os.path.lexists(final):
                    raise self._exists(final) from None
            else:
                os.unlink(self._temporary)
                self._temporary = None
                return
        os.replace(self._temporary, final)
        self._temporary = None

    def abort(self) -> None:
        """Leave nothing behind: no file, no bytes in a redirected one."""
        with contextlib.suppress(OSError):
            if self._final is None:
                self.set_size(0)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.commit()
        except BaseException:
            self.abort()
            raise
        else:
            if error is not None:
                self.abort()
        finally:
            self._close()

    def _close(self) -> None:
        if self._owned:
            os.close(self.fd)


def _descriptor(text: str) -> int:
    number = text.removeprefix("fd:")
    if not number.isascii() or not number.isdigit():
        raise RequestError(f"output: {text!r} names no file descriptor; write fd:3", parameter="output")
    return int(number)


def _is_seekable(fd: int) -> bool:
    """Tell whether the file can be filled in any order: a file or disk, at its start, and not appended to."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        return False
    appending = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    return not appending and os.lseek(fd, 0, os.SEEK_CUR) == 0
