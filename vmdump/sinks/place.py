"""Where an output's path leads, followed link by link: who put a link or a special file there counts.

Linux can refuse some of this itself (fs.protected_symlinks, fs.protected_fifos), but only in sticky folders,
only where it is switched on, and FIFOs only where they may be created.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Self

from vmdump.errors import SinkError

__all__ = ["Place"]

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40
"""As Linux has it."""
_SHARED = stat.S_IWGRP | stat.S_IWOTH
"""With an ACL the group's bits are the most that anybody in it may do."""
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}


class Place:
    """The folder and the name of an output, and what is there. A context manager that holds descriptors.

    A folder is shared if others than its owner may write to it. In a shared folder, a symlink or a special
    file has to be this user's or the folder's owner's, and to have no second name: anybody can link another's
    file. A symlink that is not is never followed. To a device, no symlink leads but this user's and root's.

    Parameters
    ----------
    path : str
        Not empty.
    look : bool
        Find out what is there; without it, nothing but the folder.

    Attributes
    ----------
    folder : int
        A descriptor of the folder, to be used with a name.
    name : str
        In the folder.
    taken : bool
        Something of that name is there, even if it is a symlink that leads nowhere.
    special : os.stat_result or None
        What is neither a file nor to be replaced by one: a FIFO, a device, a folder.
    refusal : str
        Why it must not be written to unless that is insisted on; empty for most.
    hint : str
        What it means to insist.

    Raises
    ------
    SinkError
        A symlink of another user, in a shared folder, is on the way.
    OSError
        The folder cannot be reached.
    """

    def __init__(self, path: str, *, look: bool = True) -> None:
        self._path = path
        self._links = 0
        self._foreign = False
        self.taken = False
        self.special: os.stat_result | None = None
        self.refusal = self.hint = ""
        self.folder, self.name = self._enter(None, path)
        self._home, self._last = self.folder, self.name
        self._kernels_link = False
        self._object = -1
        try:
            if look:
                self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        """Find out what is there, at the end of all links."""
        link_first = False
        while True:
            try:
                status, text = _status(self._last, self._home)
            except FileNotFoundError:
                return
            first, self.taken = not self.taken, True
            if not stat.S_ISLNK(status.st_mode):
                break
            link_first = link_first or first
            if _is_strangers(self._home, status):
                if not _is_file_or_nothing(text, self._home):
                    self._refuse_link("symlink is another user's, in a folder that others may write to")
                return
            self._count(status)
            if _is_kernels(status):
                status = os.stat(self._last, dir_fd=self._home)
                self._kernels_link = True
                break
            try:
                home, self._last = self._enter(self._home, text)
            except FileNotFoundError:
                return
            self._leave_home()
            self._home = home
        if stat.S_ISREG(status.st_mode):
            return
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "")
        if self._foreign and kind == "device":
            if link_first:
                self._refuse_link("symlink to a device is another user's")
                return
            raise SinkError(
                "another user's symlink leads to this device",
                path=self._path,
                errno=errno.EACCES,
                hint="name the device itself",
            )
        self._demand_same(status)
        self.special = status
        if kind and not self._kernels_link and _is_strangers(self._home, status):
            self.refusal = f"this {kind} is another user's, in a folder that others may write to"
            self.hint = (
                "--force writes to it" if kind == "device" else "--force gives the guest to whoever reads it"
            )

    def _demand_same(self, status: os.stat_result) -> None:
        """Keep what was looked at open: until then its number could be given to another file."""
        if not self._kernels_link:
            self._object = os.open(self._last, _ITSELF, dir_fd=self._home)
            if not os.path.samestat(os.fstat(self._object), status):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _refuse_link(self, why: str) -> None:
        self.refusal = f"this {why}"
        self.hint = "choose another folder or name; --force puts a file in the place of the symlink"

    def _enter(self, start: int | None, text: str) -> tuple[int, str]:
        """Go to the folder of the last name of a path."""
        *parts, name = text.split("/")
        at = os.open("/", _FOLDER) if text.startswith("/") else os.open(".", _FOLDER, dir_fd=start)
        try:
            for part in parts:
                if part not in ("", "."):
                    above, at = at, self._descend(at, part)
                    os.close(above)
        except BaseException:
            os.close(at)
            raise
        return at, name or "."

    def _descend(self, at: int, part: str) -> int:
        # O_DIRECTORY, because without it O_PATH does not mount what autofs would.
        try:
            return os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
        except NotADirectoryError:
            status, text = _status(part, at)
            if not stat.S_ISLNK(status.st_mode):
                raise
        if _is_strangers(at, status):
            raise SinkError(
                f"{part!r} on the way is another user's symlink, in a folder that others may write to",
                path=self._path,
                errno=errno.EACCES,
                hint="name the folder that it leads to",
            )
        self._count(status)
        if _is_kernels(status):
            return os.open(part, _FOLDER, dir_fd=at)
        folder, last = self._enter(at, text)
        try:
            return self._descend(folder, last)
        finally:
            os.close(folder)

    def _count(self, status: os.stat_result) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        self._foreign = self._foreign or status.st_uid not in (0, os.geteuid())

    def open_special(self, flags: int) -> int:
        """Open what is there: that which was looked at, or nothing.

        Raises
        ------
        OSError
            It cannot be opened; with ESTALE, if it is another one by now.
        """
        assert self.special is not None
        if not self._kernels_link:
            flags |= os.O_NOFOLLOW
        fd = os.open(self._last, flags | os.O_CLOEXEC, dir_fd=self._home)
        if not os.path.samestat(os.fstat(fd), self.special):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def close(self) -> None:
        """Close the descriptors; once."""
        if self._object >= 0:
            os.close(self._object)
        self._leave_home()
        os.close(self.folder)

    def _leave_home(self) -> None:
        if self._home != self.folder:
            os.close(self._home)
            self._home = self.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _status(name: str, folder: int) -> tuple[os.stat_result, str]:
    """Give the status of a name itself, and of a symlink what it says: both of the same one."""
    fd = os.open(name, _ITSELF, dir_fd=folder)
    try:
        status = os.fstat(fd)
        return status, os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
    finally:
        os.close(fd)


def _is_strangers(folder: int, status: os.stat_result) -> bool:
    home = os.fstat(folder)
    theirs = status.st_uid not in (os.geteuid(), home.st_uid)
    return bool(home.st_mode & _SHARED) and (theirs or status.st_nlink > 1)


def _is_file_or_nothing(path: str, folder: int) -> bool:
    """Tell whether a symlink that is not followed makes its name one that is taken, and no more."""
    try:
        return stat.S_ISREG(os.stat(path, dir_fd=folder).st_mode)
    except OSError as error:
        return error.errno == errno.ENOENT


def _is_kernels(status: os.stat_result) -> bool:
    """Tell whether a symlink is one of /proc: what some of these say is not a path."""
    try:
        return status.st_dev == os.stat("/proc").st_dev
    except FileNotFoundError:
        return False
