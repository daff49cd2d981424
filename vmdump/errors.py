"""The exception tree of vmdump.

Every error is one line that says what, where, why and the way out. The class
carries the exit code of the command line, and the facts are attributes, so
that a program never has to read the text. Each class also inherits from the
built-in exception a caller would expect.
"""

from __future__ import annotations

import errno as codes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Self

__all__ = [
    "AccessDenied",
    "Cancelled",
    "CapabilityError",
    "CodecError",
    "DamagedPages",
    "DifferentMemory",
    "EngineUnavailable",
    "ExcludedPage",
    "FormatError",
    "GuestBusy",
    "IncompleteDump",
    "LayoutError",
    "OutOfResources",
    "OutputExists",
    "PatternNotFound",
    "QmpError",
    "ReadError",
    "RequestError",
    "SinkError",
    "SourceError",
    "TranslationError",
    "VmdumpError",
    "naming_shortages",
]


class VmdumpError(Exception):
    """Base of every error that vmdump raises on purpose.

    Attributes
    ----------
    exit_code : int
        What the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def name_file(self, path: str) -> None:
        """Put the path of the file that the error is about in front of its text, unless there is one."""
        text = str(self.args[0])
        # By chance the path may be a word of the text, "a" for example.
        if f" {path}: " not in f" {text}":
            self.args = (f"{path}: {text}", *self.args[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        """Take everything along into another process; the constructors' arguments are not kept."""
        return _rebuild, (type(self), self.args, self._state())

    def _state(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _rebuild(kind: type[VmdumpError], args: tuple[Any, ...], state: dict[str, Any]) -> VmdumpError:
    error = kind.__new__(kind, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class RequestError(VmdumpError, ValueError):
    """The request contradicts itself or names something that does not exist.

    Attributes
    ----------
    parameter : str
        The name of the parameter that is wrong or missing.
    """

    exit_code = 2

    def __init__(self, message: str, *, parameter: str = "") -> None:
        super().__init__(message)
        self.parameter = parameter


_FILES = "raise the limit of open files: ulimit -n, or LimitNOFILE= of a service"
_MEMORY = "ulimit -v, the control group or the host leaves no more memory; fewer threads (-j) take less"
_SHORTAGES = {
    codes.EMFILE: _FILES,
    codes.ENFILE: "the host has as many files open as /proc/sys/fs/file-max allows",
    codes.ENOMEM: _MEMORY,
}
"""The way out where the host or a limit is the cause, whatever was being done."""


class _OsError(VmdumpError, OSError):
    """A system call failed; `errno`, `strerror` and `filename` are kept.

    The text is ``path: what failed: errno's text; the way out``.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        text = message if path is None else f"{os.fspath(path)}: {message}"
        if errno:
            text += f": {os.strerror(errno)}"
        hint = _SHORTAGES.get(errno or 0, hint)
        if hint:
            text += f"; {hint}"
        super().__init__(text)
        self.errno = errno
        self.strerror = os.strerror(errno) if errno else message
        self.filename = None if path is None else os.fspath(path)
        self.hint = hint

    def __str__(self) -> str:
        return str(self.args[0])

    def name_file(self, path: str) -> None:
        """Set `filename`, too."""
        if self.filename is None:
            super().name_file(path)
            self.filename = path

    def _state(self) -> dict[str, Any]:
        own = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return {**super()._state(), **own}


class SourceError(_OsError):
    """Opening or reading the guest's memory failed.

    Attributes
    ----------
    address : int or None
        Guest-physical address of the first byte that could not be read.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        errno: int | None = None,
        hint: str = "",
        address: int | None = None,
    ) -> None:
        super().__init__(message, path=path, errno=errno, hint=hint)
        self.address = address


class LayoutError(VmdumpError, ValueError):
    """The guest's blocks overlap, are unsorted or empty, or a format has no room for them.

    Attributes
    ----------
    address : int or None
        Guest-physical address at which the list of blocks goes wrong.
    layouts : tuple of str
        Of raw memory that may have a hole: the options that would fit, as ``machine=q35``.
    confirmed : str
        The one of them that the guest's kernel or its QEMU confirms; empty if neither does.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        address: int | None = None,
        layouts: tuple[str, ...] = (),
        confirmed: str = "",
    ) -> None:
        super().__init__(message)
        self.address = address
        self.layouts = layouts
        self.confirmed = confirmed


class SinkError(_OsError):
    """Creating or writing the output failed."""

    exit_code = 5


class OutputExists(SinkError):
    """The output already exists and overwriting it was not asked for."""

    exit_code = 6


class CapabilityError(VmdumpError, NotImplementedError):
    """The guest or this build does not support what was asked for."""

    exit_code = 7


class EngineUnavailable(CapabilityError):
    """A compression engine or kernel that was named is not usable.

    Attributes
    ----------
    engine : str
        The name that was asked for.
    available : tuple of str
        What this build and this machine have instead.
    """

    exit_code = 8

    def __init__(self, message: str, *, engine: str, available: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.engine = engine
        self.available = available


class CodecError(VmdumpError, RuntimeError):
    """A codec failed on a page.

    Attributes
    ----------
    engine : str
        The engine that failed.
    page : int
        Index of the page inside the call that failed.
    """

    exit_code = 9

    def __init__(self, message: str, *, engine: str, page: int) -> None:
        super().__init__(message)
        self.engine = engine
        self.page = page


class FormatError(VmdumpError, ValueError):
    """A file is not what it claims to be: a size, offset or count is wrong.

    Attributes
    ----------
    path : str
        The file, or an empty string where it has no name.
    offset : int or None
        File offset of the field that is wrong.
    """

    exit_code = 10

    def __init__(self, message: str, *, path: str = "", offset: int | None = None) -> None:
        where = f"{path}: " if path else ""
        at = "" if offset is None else f" (file offset {offset:#x})"
        super().__init__(f"{where}{message}{at}")
        self.path = path
        self.offset = offset

    def name_file(self, path: str) -> None:
        """Set `path`, too."""
        if not self.path:
            super().name_file(path)
            self.path = path


class ReadError(VmdumpError, LookupError):
    """An address or page that the dump does not hold.

    Attributes
    ----------
    address : int
        Guest-physical address of the first byte that is not there.
    """

    exit_code = 11

    def __init__(self, message: str, *, address: int) -> None:
        super().__init__(message)
        self.address = address


class ExcludedPage(ReadError):
    """A page of the guest that was excluded when the dump was made."""

    exit_code = 16
    _tell: Callable[[], str] | None = None
    _page_type = ""

    @classmethod
    def at(cls, address: int, tell: Callable[[], str] | None = None) -> Self:
        """Make the error of one guest-physical address.

        Parameters
        ----------
        address : int
            The first byte that is not there.
        tell : callable, optional
            Gives the page's type, and may fail. It is called when somebody asks, if anybody does: it takes
            up to 30 ms, and programs meet many such pages.
        """
        error = cls(
            f"the page of guest-physical address {address:#x} was excluded when the dump was made",
            address=address,
        )
        error._tell = tell
        return error

    @property
    def page_type(self) -> str:
        """What the page is used for: ``free``, ``user``, ``cache private``; empty where nothing tells.

        It is told by the guest's struct pages when it, or the text, is first asked for: after the dump was
        closed it is too late.
        """
        tell, self._tell = self._tell, None
        if tell is not None:
            # What is wrong with the struct pages is not what the caller has met; ValueError: it is closed.
            with suppress(VmdumpError, OSError, ValueError):
                self._page_type = tell()
        return self._page_type

    def __str__(self) -> str:
        kind = self.page_type
        return super().__str__() + (f" (its type: {kind})" if kind else "")

    def _state(self) -> dict[str, Any]:
        return {"_page_type": self.page_type, **{k: v for k, v in super()._state().items() if k != "_tell"}}


class TranslationError(ReadError):
    """A virtual address that the guest's page tables do not map, or page tables that are damaged.

    Attributes
    ----------
    address : int
        The virtual address; of page tables, the guest-physical one of the top table.
    """

    exit_code = 17


class GuestBusy(VmdumpError, RuntimeError):
    """The state of the guest does not allow a dump: it migrates, or another dump of it runs.

    Attributes
    ----------
    state : str
        QEMU's word for the state: ``inmigrate``, ``postcopy-active``, ``dump`` and so on.
    """

    exit_code = 12

    def __init__(self, message: str, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class QmpError(VmdumpError, ConnectionError):
    """Asking QEMU failed: its QMP socket is closed, silent, or answers with an error.

    Attributes
    ----------
    command : str
        The QMP command; empty where the connection itself failed.
    error_class : str
        QMP's class of the error, ``GenericError`` for example; empty where QEMU did not answer.
    """

    exit_code = 13

    def __init__(self, message: str, *, command: str = "", error_class: str = "") -> None:
        super().__init__(message)
        self.command = command
        self.error_class = error_class


class AccessDenied(SourceError, PermissionError):
    """The memory is another process's and may not be read; the text names what would give the right to."""

    exit_code = 14


class IncompleteDump(VmdumpError, RuntimeError):
    """The dump is written, but some pages of the guest could not be read.

    Attributes
    ----------
    unreadable : tuple of (int, int)
        Guest-physical ranges ``[begin, end)`` that the dump lacks.
    """

    exit_code = 15

    def __init__(self, message: str, *, unreadable: tuple[tuple[int, int], ...]) -> None:
        super().__init__(message)
        self.unreadable = unreadable


class DamagedPages(VmdumpError, ValueError):
    """Pages of a dump are damaged.

    Attributes
    ----------
    pages : int
        How many.
    """

    exit_code = 18

    def __init__(self, message: str, *, pages: int) -> None:
        super().__init__(message)
        self.pages = pages


class DifferentMemory(VmdumpError, ValueError):
    """A dump does not hold the memory of the guest that it was compared with.

    Attributes
    ----------
    pages : int
        How many pages differ; 0 where one of them only lacks memory.
    """

    exit_code = 19

    def __init__(self, message: str, *, pages: int) -> None:
        super().__init__(message)
        self.pages = pages


class OutOfResources(VmdumpError, OSError):
    """The host, or a limit of this process, has no more open files, memory, processes or threads to give."""

    exit_code = 20

    @classmethod
    def of(cls, error: BaseException) -> Self | None:
        """Make the error of one of Python's own; None if that has another cause."""
        # The second is what the dynamic linker says when memory for a library runs out.
        if isinstance(error, MemoryError) or "failed to map segment" in str(error):
            return cls(f"out of memory; {_MEMORY}")
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return cls(
                "no more threads; use fewer (-j), or raise the limit of processes: ulimit -u, or pids.max of "
                "the control group"
            )
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            what = f"{error.filename}: " if error.filename else ""
            return cls(f"{what}{os.strerror(error.errno)}; {_SHORTAGES[error.errno]}")
        return None


class PatternNotFound(VmdumpError, LookupError):
    """What was looked for is nowhere in the guest's memory."""

    exit_code = 21


@contextmanager
def naming_shortages() -> Iterator[None]:
    """Raise OutOfResources instead of what Python raises when files, memory or threads run out.

    A context manager, and a decorator.
    """
    try:
        yield
    except VmdumpError:
        raise
    except Exception as error:
        if shortage := OutOfResources.of(error):
            raise shortage from error
        raise


class Cancelled(VmdumpError):
    """The dump was cancelled; nothing was left behind."""

    exit_code = 130
