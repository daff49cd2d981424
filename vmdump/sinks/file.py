"""The sink: a file that appears when it is whole, standard output, or an open descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from vmdump.errors import Cancelled, OutputExists, RequestError, SinkError, VmdumpError
from vmdump.guest.guest import HasDescriptor
from vmdump.interrupts import Deferred
from vmdump.sinks.place import Place

__all__ = ["Output", "named_descriptor"]

_STDOUT = 1
_FIFO_WAIT = 0.05
"""Seconds between two looks for a reader."""
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
    errno.EBUSY: "it is in use, mounted for instance; choose another",
    errno.ESTALE: "somebody has put another one in its place; try again",
}


class Output:
    """Where a dump goes. A context manager: a clean exit commits, an exception leaves nothing behind.

    Parameters
    ----------
    target : str or path
        A path, ``-`` for standard output, or ``fd:N``. A path that names a FIFO or a device is written
        to, if :class:`vmdump.sinks.place.Place` finds nothing against it; any other gets a new file of
        mode 0600 that has no name, or on some file systems a hidden one, until it is whole and synced.
    force : bool
        Replace a file that is there, and write to a FIFO or device whoever put it there. Nobody else's
        symlink is followed, but replaced.
    cancelled : callable
        Asked while a FIFO waits for its reader.

    Attributes
    ----------
    name : str
        For people.
    fd : int
        Open for writing.
    seekable : bool
        True if bytes can be put anywhere, counted from the start of the file.
    sparse : bool
        True if what is skipped is a hole of zeros.

    Raises
    ------
    OutputExists
        The file is there and `force` is false.
    SinkError
        It cannot be created.
    RequestError
        The target is empty, or ``fd:N`` names no number.
    Cancelled
        `cancelled` returned true.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        force: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = os.fspath(target)
        if not self.name:
            raise RequestError("output: the name is empty", parameter="output")
        self._force = force
        self._final: str | None = None
        self._last = ""
        self._temporary: str | None = None
        self._committed = False
        self._owned = False
        descriptor = named_descriptor(self.name)
        if descriptor is not None:
            self.fd = descriptor
        else:
            with self.errors("cannot create the output"):
                self.fd = self._open(self.name, cancelled)
            self._owned = True
        with self.errors("cannot use the output"):
            self.seekable = _is_seekable(self.fd)
            status = os.fstat(self.fd)
        self.sparse = self.seekable and stat.S_ISREG(status.st_mode)
        self._kept = status.st_size if stat.S_ISREG(status.st_mode) else None
        if os.isatty(self.fd):
            self.close()
            raise SinkError(
                "a dump is not for a terminal", path=self.name, hint="redirect it, or name a file"
            )

    def _open(self, path: str, cancelled: Callable[[], bool]) -> int:
        with Place(path) as place:
            if place.refusal and not self._force:
                raise SinkError(place.refusal, path=path, errno=errno.EACCES, hint=place.hint)
            if place.special is not None:
                return _open_special(place, place.special, cancelled)
            if place.taken and not self._force:
                raise self._exists(path)
            self._final, self._last = path, place.name
            self._home = os.fstat(place.folder)
            try:
                fd = os.open(".", _NEW_FILE | os.O_TMPFILE, 0o600, dir_fd=place.folder)
                # Without /proc the file could never be given a name.
                if os.path.exists(f"/proc/self/fd/{fd}"):
                    return fd
                os.close(fd)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
            self._temporary = _hidden_name()
            flags = _NEW_FILE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            return os.open(self._temporary, flags, 0o600, dir_fd=place.folder)

    @property
    def folder(self) -> str | None:
        """Where the file will be; None for what is no new file."""
        return None if self._final is None else os.path.dirname(self._final) or "."

    @contextlib.contextmanager
    def _same_folder(self, path: str) -> Iterator[int]:
        """Go to the folder once more: to keep it open would cost each part of a set another descriptor."""
        with Place(path, look=False) as place:
            if not os.path.samestat(os.fstat(place.folder), self._home):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield place.folder

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
        # Opening it again must not give a right that the descriptor does not have.
        if fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return -1
        try:
            return os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return -1

    def demand(self, size: int) -> None:
        """Refuse at once what needs `size` bytes of a new file where there are fewer.

        Raises
        ------
        SinkError
            With ENOSPC.
        """
        if self._final is None:
            return
        with self.errors(f"the dump needs at least {size} bytes"):
            room = os.fstatvfs(self.fd)
            if room.f_bavail * room.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin(self, files: Iterable[HasDescriptor], in_use: Iterable[os.stat_result] = ()) -> None:
        """Get ready for the first byte: bytes that a descriptor's file held before are gone afterwards.

        Parameters
        ----------
        files : iterable
            Open files of the guest, none of which may be the output.
        in_use : iterable of os.stat_result
            What else must not be it: files that the guest's QEMU has open.

        Raises
        ------
        SinkError
            The output is one of them, or cannot be emptied.
        """
        mine = [os.fstat(self.fd)]
        if self._final is not None:
            with contextlib.suppress(OSError):
                mine.append(os.stat(self._final))
        for file in files:
            theirs = os.fstat(file.fd)
            if any(_is_same(status, theirs) for status in mine):
                raise SinkError("the output is the file that holds the guest", path=self.name)
        if any(_is_same(status, theirs) for theirs in in_use for status in mine):
            raise SinkError(
                "the guest's QEMU has this open: it may be a disk of the guest",
                path=self.name,
                hint="choose another output",
            )
        if self.sparse:
            if self._kept:
                self.clear()
            self._kept = 0

    def clear(self) -> None:
        """Take back what was written to a file.

        Raises
        ------
        SinkError
            The file cannot be emptied.
        """
        with self.errors("cannot empty the output"):
            os.ftruncate(self.fd, 0)

    def set_size(self, size: int) -> None:
        """End the output at `size`: a file may end in a hole, and who shares a descriptor goes on behind."""
        if self.sparse:
            os.ftruncate(self.fd, size)
        if self.seekable:
            os.lseek(self.fd, size, os.SEEK_SET)

    def sync(self) -> None:
        """Make the bytes of a new file safe.

        Raises
        ------
        SinkError
            They cannot be.
        """
        if self._final is not None:
            with self.errors("cannot finish the output"):
                os.fsync(self.fd)

    def commit(self) -> None:
        """Sync the file and give it its name; other outputs stay as they are.

        A signal that comes before the file has its name prevents that. One that comes later is too late.

        Raises
        ------
        OutputExists
            A file of that name has appeared meanwhile.
        SinkError
            The bytes cannot be made safe.
        """
        self.sync()
        with Deferred() as signals:
            if self._final is not None:
                with self.errors("cannot finish the output"), self._same_folder(self._final) as folder:
                    try:
                        self._publish(folder, self._last)
                    except FileExistsError:
                        raise self._exists(self._final) from None
                    self._committed = True
                    # The file is whole and has its name; a name that is not yet safe from a power cut is no
                    # failure.
                    with contextlib.suppress(OSError):
                        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
                        try:
                            os.fsync(readable)
                        finally:
                            os.close(readable)
            signals.settle()

    def _publish(self, folder: int, final: str) -> None:
        if self._temporary is None:
            temporary = _hidden_name() if self._force else final
            # With a directory descriptor Python calls linkat, which follows the link in /proc.
            os.link(
                f"/proc/self/fd/{self.fd}",
                temporary,
                src_dir_fd=folder,
                dst_dir_fd=folder,
                follow_symlinks=True,
            )
            if not self._force:
                return
            self._temporary = temporary
        if not self._force:
            try:
                os.link(self._temporary, final, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                if _is_there(final, folder):
                    raise FileExistsError from None
            else:
                os.unlink(self._temporary, dir_fd=folder)
                self._temporary = None
                return
        os.replace(self._temporary, final, src_dir_fd=folder, dst_dir_fd=folder)
        self._temporary = None

    def retract(self) -> None:
        """Remove the file again if it has its name already, and still is the one of that name."""
        if self._final is not None and self._committed:
            with contextlib.suppress(OSError), self._same_folder(self._final) as folder:
                there = os.stat(self._last, dir_fd=folder, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(self.fd)):
                    os.unlink(self._last, dir_fd=folder)

    def abort(self) -> None:
        """Leave nothing behind: no file, no bytes in a redirected one but those it had."""
        if self._final is None and self._kept is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self._kept)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._final is not None and self._temporary is not None:
            with contextlib.suppress(OSError), self._same_folder(self._final) as folder:
                os.unlink(self._temporary, dir_fd=folder)
            self._temporary = None

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
            self.close()

    def close(self) -> None:
        """Close what was opened here; once."""
        if self._owned:
            self._owned = False
            os.close(self.fd)

    def __del__(self) -> None:
        # An exception (Ctrl-C) may come between the creation of a file and the context that takes care of it.
        if getattr(self, "_temporary", None) is not None:
            self._remove_temporary()


def named_descriptor(name: str) -> int | None:
    """Give the descriptor that an output names; None for a path.

    Raises
    ------
    RequestError
        What should be its number is none.
    """
    if name in ("-", "/dev/stdout"):
        return _STDOUT
    for prefix in ("fd:", "/dev/fd/", "/proc/self/fd/"):
        number = name.removeprefix(prefix)
        if number != name:
            if not re.fullmatch("[0-9]{1,9}", number):
                raise RequestError(
                    f"output: {name!r} names no file descriptor; write fd:3", parameter="output"
                )
            return int(number)
    return None


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two are the same file, or the same disk under two names."""
    disks = stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode)
    return os.path.samestat(one, other) or (disks and one.st_rdev == other.st_rdev)


def _hidden_name() -> str:
    return f".vmdump-{os.urandom(8).hex()}.partial"


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_special(place: Place, status: os.stat_result, cancelled: Callable[[], bool]) -> int:
    """Open a FIFO or device; a FIFO waits for its reader, and can be cancelled meanwhile."""
    flags = os.O_WRONLY | os.O_NONBLOCK
    if stat.S_ISBLK(status.st_mode):
        flags |= os.O_EXCL  # for a disk that means: not one that is mounted, or part of something
    while True:
        try:
            fd = place.open_special(flags)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(status.st_mode):
                raise
            if cancelled():
                raise Cancelled("cancelled while the output waits for its reader") from None
            time.sleep(_FIFO_WAIT)
            continue
        os.set_blocking(fd, True)
        return fd


def _is_seekable(fd: int) -> bool:
    """Tell whether the file can be filled in any order: a file or disk, at its start, and not appended to."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        return False
    appending = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    return not appending and os.lseek(fd, 0, os.SEEK_CUR) == 0
