"""Sinks with a descriptor: a file that appears when it is whole, standard output, a FIFO or a device."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator

from vmdump.errors import OutputExists, SinkError, VmdumpError
from vmdump.guest.blocks import HasDescriptor
from vmdump.interrupts import Deferred
from vmdump.kernels.cache import WriteCache
from vmdump.sinks.base import Channel, Sink
from vmdump.sinks.place import Place

__all__ = ["PARTIAL", "FileSink", "NewFile"]

_CACHE_SIZE = 4 << 20
_BLOCK = 512
"""Bytes: the unit of st_blocks, on every file system."""
PARTIAL = ".partial"
_NO_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.EFBIG)
_NEW_FILE = os.O_RDWR | os.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class FileSink(Sink):
    """What a descriptor is open for: a file, a pipe, a socket, a device.

    Parameters
    ----------
    fd : int
        Open for writing.
    name : str
        For people.
    owned : bool
        Close it in the end.

    Attributes
    ----------
    fd : int
        As given.

    Raises
    ------
    SinkError
        It cannot be used, or is a terminal.
    """

    def __init__(self, fd: int, name: str, *, owned: bool = False) -> None:
        self.name, self.fd, self._owned = name, fd, owned
        self._direct: int | None = None
        with self.errors("cannot use the output"):
            self.seekable = _is_seekable(fd)
            status = os.fstat(fd)
        self.sparse = self.seekable and stat.S_ISREG(status.st_mode)
        self._kept = status.st_size if stat.S_ISREG(status.st_mode) else None
        if os.isatty(fd):
            self.close()
            raise SinkError("a dump is not for a terminal", path=name, hint="redirect it, or name a file")

    def channel(self, offset: int = 0) -> Channel:
        """Give a channel: its whole blocks bypass the page cache where that is possible."""
        with self.errors("cannot write the output"):
            # Through the page cache a file took 0.46 GB/s, past it 2 GB/s.
            if self.seekable and self._direct is None:
                self._direct = _open_direct(self.fd)
            return WriteCache(
                self.fd,
                seekable=self.seekable,
                capacity=_CACHE_SIZE,
                direct_fd=-1 if self._direct is None else self._direct,
                offset=offset,
            )

    def begin(self, files: Iterable[HasDescriptor], in_use: Iterable[os.stat_result] = ()) -> None:
        """Get ready for the first byte: what a descriptor's file held before is gone afterwards."""
        mine = self._statuses()
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

    def _statuses(self) -> list[os.stat_result]:
        """Give the status of each file that is, or will be, written to or replaced."""
        return [os.fstat(self.fd)]

    def clear(self) -> None:
        """Empty the file."""
        with self.errors("cannot empty the output"):
            os.ftruncate(self.fd, 0)

    def set_size(self, size: int) -> None:
        """End the file at `size`: it may end in a hole, and who shares a descriptor goes on behind."""
        self._close_direct()
        with self.errors("cannot write the output"):
            if self.sparse:
                os.ftruncate(self.fd, size)
            if self.seekable:
                os.lseek(self.fd, size, os.SEEK_SET)

    def abort(self) -> None:
        """Leave no bytes in a redirected file but those it had."""
        if self._kept is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self._kept)

    def _close_direct(self) -> None:
        # Each of the parts of a set is open until all are whole, so none has two descriptors for long.
        if self._direct is not None:
            direct, self._direct = self._direct, None
            if direct >= 0:
                os.close(direct)

    def close(self) -> None:
        """Close what was opened here; once."""
        self._close_direct()
        if self._owned:
            self._owned = False
            os.close(self.fd)


class NewFile(FileSink):
    """A file of mode 0600 that has no name, on some file systems a hidden one, until it is whole and synced.

    Parameters
    ----------
    path : str
        Where it appears.
    place : Place
        Of that path.
    force : bool
        Replace a file that is there.
    keeps : bool
        What was written, if the rest cannot be, gets the name with ``.partial`` behind it.

    Raises
    ------
    OutputExists
        The file is there and `force` is false.
    OSError
        It cannot be created.
    """

    retractable = True

    def __init__(self, path: str, place: Place, *, force: bool, keeps: bool = False) -> None:
        if place.taken and not force:
            raise _exists(path)
        if keeps and not force and _is_there(place.name + PARTIAL, place.folder):
            raise _exists(path + PARTIAL)
        self.keeps, self._readable = keeps, False
        self._path, self._last, self._force = path, place.name, force
        self._home = os.fstat(place.folder)
        self._temporary: str | None = None
        self._published = False
        super().__init__(self._create(place.folder), path, owned=True)
        self.folder = os.path.dirname(path) or "."

    def _create(self, folder: int) -> int:
        try:
            fd = os.open(".", _NEW_FILE | os.O_TMPFILE, 0o600, dir_fd=folder)
            # Without /proc the file could never be given a name.
            if os.path.exists(f"/proc/self/fd/{fd}"):
                return fd
            os.close(fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        self._temporary = _hidden_name()
        flags = _NEW_FILE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(self._temporary, flags, 0o600, dir_fd=folder)

    @contextlib.contextmanager
    def _same_folder(self) -> Iterator[int]:
        """Go to the folder once more: to keep it open would cost each part of a set another descriptor."""
        with Place(self._path, look=False) as place:
            if not os.path.samestat(os.fstat(place.folder), self._home):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield place.folder

    def _statuses(self) -> list[os.stat_result]:
        mine = super()._statuses()
        with contextlib.suppress(OSError):
            mine.append(os.stat(self._path))
        return mine

    def demand(self, size: int) -> None:
        """Refuse at once what is larger than the room on the file system."""
        with self.errors(f"the dump needs at least {size} bytes"):
            if self.room() < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def room(self) -> int:
        """Give the bytes that are free on the file system."""
        with self.errors("cannot find out how much room there is"):
            status = os.fstatvfs(self.fd)
        return status.f_bavail * status.f_frsize

    def reserve(self, size: int) -> None:
        """Allocate the first bytes, where the file system can do that."""
        with self.errors("cannot reserve room"):
            try:
                os.posix_fallocate(self.fd, 0, size)
            except OSError as error:
                if error.errno not in _NO_RESERVE:
                    raise

    def end(self) -> int:
        """Give the bytes of the file."""
        with self.errors("cannot find out its size"):
            return os.fstat(self.fd).st_size

    def keep(self) -> None:
        """Let `abort` keep the file."""
        self._readable = True

    def clear(self) -> None:
        """Empty the file; there is nothing to keep any more."""
        super().clear()
        self._readable = False

    def compresses(self) -> bool:
        """Tell whether the file system may compress the file."""
        from vmdump.sinks.file_system import compresses  # few dumps come near to a disk's room

        return compresses(self.fd)

    def used(self) -> int:
        """Give the bytes that it takes on the file system; holes take none."""
        with self.errors("cannot find out its size"):
            return os.fstat(self.fd).st_blocks * _BLOCK

    def sync(self) -> None:
        """Make the bytes safe from a power cut."""
        with self.errors("cannot finish the output"):
            os.fsync(self.fd)

    def publish(self) -> None:
        """Give the file its name."""
        with self.errors("cannot finish the output"), self._same_folder() as folder:
            try:
                self._link(folder, self._last, force=self._force)
            except FileExistsError:
                raise _exists(self._path) from None
            self._published = True
            # The file is whole and has its name; a name that is not yet safe from a power cut is no failure.
            with contextlib.suppress(OSError):
                readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
                try:
                    os.fsync(readable)
                finally:
                    os.close(readable)

    def _link(self, folder: int, final: str, *, force: bool) -> None:
        if self._temporary is None:
            temporary = _hidden_name() if force else final
            # With a directory descriptor Python calls linkat, which follows the link in /proc.
            os.link(
                f"/proc/self/fd/{self.fd}",
                temporary,
                src_dir_fd=folder,
                dst_dir_fd=folder,
                follow_symlinks=True,
            )
            if not force:
                return
            self._temporary = temporary
        if not force:
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
        if self._published:
            with contextlib.suppress(OSError), self._same_folder() as folder:
                there = os.stat(self._last, dir_fd=folder, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(self.fd)):
                    os.unlink(self._last, dir_fd=folder)

    def abort(self) -> None:
        """Leave no file behind, or what can be read of it under the other name."""
        if self._readable and not self._published:
            self._readable = False
            with Deferred(), contextlib.suppress(VmdumpError, OSError), self._same_folder() as folder:
                self._link(folder, self._last + PARTIAL, force=self._force)
                self.kept_as = self._path + PARTIAL
                os.fsync(self.fd)
        if self._temporary is not None:
            with contextlib.suppress(OSError), self._same_folder() as folder:
                os.unlink(self._temporary, dir_fd=folder)
            self._temporary = None

    def __del__(self) -> None:
        # An exception (Ctrl-C) may come between the creation of a file and the context that takes care of it.
        if getattr(self, "_temporary", None) is not None:
            self.abort()


def _exists(path: str) -> OutputExists:
    return OutputExists("the output exists", path=path, errno=errno.EEXIST, hint="--force replaces it")


def _open_direct(fd: int) -> int:
    """Open the same file a second time with O_DIRECT; give -1 where the file system has none."""
    # Opening it again must not give a right that the descriptor does not have.
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


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


def _is_seekable(fd: int) -> bool:
    """Tell whether the file can be filled in any order: a file or disk, at its start, and not appended to."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        return False
    appending = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    return not appending and os.lseek(fd, 0, os.SEEK_CUR) == 0
