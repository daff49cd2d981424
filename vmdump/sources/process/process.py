"""The memory of another process: what is mapped where, what is populated, and its bytes.

Sources: Linux' Documentation/filesystems/proc.rst (maps, smaps, map_files, mem),
Documentation/admin-guide/mm/pagemap.rst (pagemap, PAGEMAP_SCAN), proc(5), ptrace(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from vmdump.errors import AccessDenied, SourceError
from vmdump.guest.files import GuestFile

__all__ = ["Mapping", "Process", "command_line", "covering", "merged"]

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)", re.DOTALL
)
_CAP_SYS_PTRACE = 19
_DONTFORK = "dc"
"""Of the flags in smaps: do not copy the area on fork."""
_ELSEWHERE = "runs on another host, or in another PID namespace: run vmdump where"
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``.

    Attributes
    ----------
    begin, end : int
        Virtual addresses in the process.
    shared : bool
        True if what is written reaches the file.
    offset : int
        File offset of `begin`.
    device : int
        As in st_dev.
    inode : int
        0 for anonymous memory.
    path : str
        As the kernel prints it.
    readable : bool
        False for what keeps others apart.
    """

    begin: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    path: str
    readable: bool = True


class Process:
    """A process whose memory is read. Its number cannot come to mean another process meanwhile.

    Parameters
    ----------
    pid : int
        Its number.
    program : str
        What messages call the program that it runs.
    path : str
        What the error of its end names, if not its folder in /proc.

    Attributes
    ----------
    pid, program
        As given.
    lock : int
        Descriptor of what :meth:`claim` locks.

    Raises
    ------
    SourceError
        There is no such process.
    AccessDenied
        This process may not look into it.
    """

    def __init__(self, pid: int, program: str, path: str = "") -> None:
        self.pid = pid
        self.program = program
        self._path = path
        self._opened: list[int] = []
        self.lock = -1
        try:
            self._folder = self._keep(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            missing = error.errno == errno.ENOENT
            raise SourceError(
                f"there is no process {pid}" if missing else f"cannot open process {pid}",
                path=f"/proc/{pid}",
                errno=error.errno,
                hint=f"{program} {_ELSEWHERE} {program} runs" if missing else "",
            ) from error
        try:
            self.lock = self._keep(self.open("maps"))
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._opened.append(fd)
        return fd

    def claim(self) -> bool:
        """Take the right to dump it, until :meth:`disclaim`, or until who has `lock` open has ended.

        Returns
        -------
        bool
            False if another vmdump has it.
        """
        try:
            # A lock on an inode of /proc needs no file, has no name to be left behind, and cannot be taken
            # by somebody who may not read the process.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def disclaim(self) -> None:
        """Give the right to dump it back."""
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def open(self, name: str) -> int:
        """Open a file of the process's folder in /proc for reading; closed by the caller.

        Raises
        ------
        AccessDenied
            This process has no right to.
        SourceError
            The process has ended.
        """
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except PermissionError as error:
            raise AccessDenied(
                f"no permission to read the memory of {self.program}'s process {self.pid}",
                path=f"/proc/{self.pid}/{name}",
                errno=error.errno,
                hint=self._what_would_help(),
            ) from error
        except OSError as error:
            self.fail(name, error)

    def open_files(self) -> tuple[os.stat_result, ...]:
        """Find the files and disks that it has open, as far as this process may look."""
        found = []
        with contextlib.suppress(SourceError):
            folder = self.open("fd")
            try:
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):  # closed again meanwhile
                        found.append(os.stat(name, dir_fd=folder))
            finally:
                os.close(folder)
        return tuple(each for each in found if stat.S_ISREG(each.st_mode) or stat.S_ISBLK(each.st_mode))

    def fail(self, name: str, error: OSError) -> NoReturn:
        """Raise the SourceError of a system call on a file of the process's folder."""
        ended = error.errno in (errno.ESRCH, errno.ENOENT)
        path = f"/proc/{self.pid}/{name}"
        raise SourceError(
            f"{self.program} has ended" if ended else f"cannot read {self.program}'s process {self.pid}",
            path=(self._path or path) if ended else path,
            errno=error.errno,
        ) from error

    def _what_would_help(self) -> str:
        with contextlib.suppress(OSError):
            owner = os.stat(f"/proc/{self.pid}").st_uid
            with open("/proc/self/status") as status:
                fields = {name: value.strip() for name, _, value in (line.partition(":") for line in status)}
            scope = "0"
            with contextlib.suppress(OSError), open(_YAMA) as file:
                scope = file.read().strip()
            privileged = int(fields["CapEff"], 16) >> _CAP_SYS_PTRACE & 1
            if scope == "3":
                return f"{_YAMA} is 3: nobody may, until the next boot with another value"
            if privileged:
                return "a security module or a user namespace forbids it; see the kernel's log"
            if owner not in (os.geteuid(), 0) and os.geteuid() != 0:
                way = (
                    f"run vmdump as root or with CAP_SYS_PTRACE: {self.program} is user {owner}'s, "
                    f"not {os.geteuid()}'s"
                )
                return way if scope == "0" else f"{way}, and {_YAMA} is {scope}"
            if scope != "0":
                return f"{_YAMA} is {scope}: run vmdump as root or with CAP_SYS_PTRACE, or set it to 0"
        return "run vmdump as root or with CAP_SYS_PTRACE"

    @property
    def name(self) -> str:
        """What the kernel calls it, for people."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/comm") as file:
            return file.read().strip()
        return "gone"

    def mappings(self) -> list[Mapping]:
        """Read what is mapped, by ascending address; empty once the process has ended."""
        try:
            with open(self.open("maps"), errors="surrogateescape", newline="\n") as file:
                text = file.read()
        except SourceError:
            raise
        except OSError as error:
            self.fail("maps", error)
        found = []
        for line in text.split("\n"):
            if match := _MAPS_LINE.fullmatch(line):
                begin, end, access, offset, major, minor, inode, path = match.groups()
                device = os.makedev(int(major, 16), int(minor, 16))
                found.append(
                    Mapping(
                        begin=int(begin, 16),
                        end=int(end, 16),
                        shared=access[3] == "s",
                        offset=int(offset, 16),
                        device=device,
                        inode=int(inode),
                        path=path,
                        readable=access[0] == "r",
                    )
                )
        return found

    def kept(self) -> list[tuple[int, int]]:
        """Find what is mapped and its children would not have (MADV_DONTFORK).

        This takes the kernel 10 ns for each page.

        Returns
        -------
        list of (int, int)
            Begin and end, ascending; what has no gap in between is one.

        Raises
        ------
        AccessDenied, SourceError
            As for :meth:`open`.
        """
        found: list[tuple[int, int]] = []
        bounds = 0, 0
        try:
            with open(self.open("smaps"), errors="surrogateescape", newline="\n") as file:
                for line in file:
                    if match := _MAPS_LINE.fullmatch(line.rstrip("\n")):
                        bounds = int(match[1], 16), int(match[2], 16)
                    elif line.startswith("VmFlags:") and _DONTFORK in line.split():
                        begin = found.pop()[0] if found and found[-1][1] == bounds[0] else bounds[0]
                        found.append((begin, bounds[1]))
        except SourceError:
            raise
        except OSError as error:
            self.fail("smaps", error)
        return found

    def open_mapped(self, mapping: Mapping) -> GuestFile:
        """Open the file that is mapped, also where it was deleted or never had a name.

        Raises
        ------
        AccessDenied
            It can be had only through map_files, and this process may not use that.
        SourceError
            It cannot be opened.
        """
        if name := self._descriptor_of(mapping):
            file = GuestFile(f"/proc/{self.pid}/{name}", name=mapping.path)
            status = os.fstat(file.fd)
            if (status.st_dev, status.st_ino) != (mapping.device, mapping.inode):
                file.close()
                raise SourceError(f"{self.program} has put another file in its place", path=mapping.path)
            return file
        place = f"/proc/{self.pid}/map_files/{mapping.begin:x}-{mapping.end:x}"
        try:
            return GuestFile(place, name=mapping.path)
        except SourceError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
            raise AccessDenied(
                f"no permission to open {self.program}'s shared memory",
                path=place,
                errno=error.errno,
                hint="run vmdump as root or with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE",
            ) from error

    def _descriptor_of(self, mapping: Mapping) -> str:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"fd/{number}", dir_fd=self._folder)
                    same = (status.st_dev, status.st_ino) == (mapping.device, mapping.inode)
                    if same and stat.S_ISREG(status.st_mode):
                        return f"fd/{number}"
        return ""

    def close(self) -> None:
        """Close everything; closing twice does nothing."""
        while self._opened:
            os.close(self._opened.pop())


def command_line(pid: int) -> list[str]:
    """Give the words with which a process was started; empty if it has ended, or may not be looked at."""
    name = f"/proc/{pid}/cmdline"
    with contextlib.suppress(OSError), open(name, errors="surrogateescape", newline="") as file:
        return file.read().split("\0")
    return []


def covering(mappings: Sequence[Mapping], begin: int, end: int) -> list[Mapping]:
    """Give those of a process's mappings that hold ``[begin, end)`` without a gap; none if there is one."""
    found = []
    position = begin
    for mapping in mappings:
        if mapping.begin <= position < mapping.end:
            found.append(mapping)
            position = mapping.end
            if position >= end:
                return found
    return []


def merged(mappings: Sequence[Mapping]) -> list[Mapping]:
    """Join neighbours of the same kind: madvise and mbind calls split what is one mapping."""
    joined: list[Mapping] = []
    for mapping in mappings:
        if joined and _continues(joined[-1], mapping):
            mapping = Mapping(**(vars(joined.pop()) | {"end": mapping.end}))
        joined.append(mapping)
    return joined


def _continues(first: Mapping, second: Mapping) -> bool:
    if first.end != second.begin:
        return False
    kinds = [(each.shared, each.device, each.inode, each.readable) for each in (first, second)]
    follows = first.inode == 0 or second.offset - first.offset == second.begin - first.begin
    return kinds[0] == kinds[1] and follows
