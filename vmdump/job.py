"""Dumps in the background, in a thread or in asyncio: what QEMU calls detach."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from vmdump.errors import Cancelled, OutOfResources, naming_shortages
from vmdump.operations.dump import DumpOptions, check_request
from vmdump.operations.report import Report
from vmdump.operations.request import check_keywords
from vmdump.pipeline.control import Control, Phase

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["DumpJob", "Progress", "Status", "dump_async", "start_dump"]

Status = Literal["none", "active", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Progress:
    """A dump at one moment.

    Attributes
    ----------
    status : str
        ``active``, or how it ended.
    done, total : int
        Guest memory in bytes.
    rate : float
        Bytes a second since the start.
    eta : float or None
        Seconds that are left at that rate; None before the first byte.
    phase : str
        ``attach``; ``packing`` a guest that runs; ``paused``; ``writing`` what needs no pause; ``sync``.
    """

    status: Status
    done: int
    total: int
    rate: float
    eta: float | None
    phase: Phase


class DumpJob:
    """One dump in a thread of its own. A context manager.

    Leaving the context early cancels the dump; an error of the dump that nobody has seen is raised then.
    In asyncio, ``await job`` gives the report and ``async for moment in job`` the progress; cancelling the
    task in ``await job`` cancels the dump, cancelling one that only looks on does not.

    Parameters
    ----------
    run : callable
        Does the dump under the control it is given.
    give_up : callable, optional
        Called instead where there is no thread to be had for it.
    """

    def __init__(
        self, run: Callable[[Control], Report], *, give_up: Callable[[], object] = lambda: None
    ) -> None:
        self._run = run
        self._give_up = give_up
        self._control = Control()
        self._status: Status = "none"
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._report: Report | None = None
        self._began = 0.0
        self._seconds = 0.0
        self._error_seen = False
        self._lock = threading.Lock()
        self._on_end: list[Callable[[], object]] = []
        # A daemon, so that a program that forgets its job can still exit.
        self._thread = threading.Thread(target=self._main, name="vmdump-job", daemon=True)

    def start(self) -> Self:
        """Begin; once.

        Raises
        ------
        OutOfResources
            There are no more threads to be had.
        """
        if self._status != "none":
            raise RuntimeError("a job starts once")
        self._status = "active"
        self._began = time.monotonic()
        try:
            with naming_shortages():
                self._thread.start()
        except OutOfResources:
            self._status = "none"
            self._give_up()
            raise
        except BaseException:  # Ctrl-C, just when it has begun
            self.cancel()
            raise
        return self

    def _main(self) -> None:
        try:
            self._report = self._run(self._control)
        except Cancelled as error:
            self._error, self._status = error, "cancelled"
        except BaseException as error:
            self._error, self._status = error, "failed"
        else:
            self._status = "completed"
        self._seconds = time.monotonic() - self._began
        with self._lock:
            self._ended.set()
        for tell in self._on_end:
            tell()

    def when_ended(self, tell: Callable[[], object]) -> None:
        """Have a function called when the job has ended: at once, or later in the job's thread.

        Raises
        ------
        RuntimeError
            It was not started.
        """
        self._demand_started()
        with self._lock:
            if not self._ended.is_set():
                self._on_end.append(tell)
                return
        tell()

    def _demand_started(self) -> None:
        if self._status == "none":
            raise RuntimeError("the job was not started")

    @property
    def status(self) -> Status:
        """``none`` before the start, ``active``, then ``completed``, ``failed`` or ``cancelled``."""
        return self._status

    @property
    def done(self) -> int:
        """Guest memory dumped so far, in bytes; a running guest is packed first, and then looked at again."""
        return self._control.done

    @property
    def total(self) -> int:
        """Guest memory to dump, in bytes; 0 before the start."""
        return self._control.total

    def cancel(self) -> None:
        """Ask the dump to stop; it ends within a chunk and leaves no file."""
        self._control.cancel()

    def wait(self, timeout: float | None = None) -> Report:
        """Wait for the end.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Returns
        -------
        Report
            Of the completed dump.

        Raises
        ------
        RuntimeError
            It was not started.
        TimeoutError
            It is still active.
        VmdumpError
            What ended the dump; `Cancelled` if that was :meth:`cancel`.
        """
        self._demand_started()
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the dump is still active after {timeout} s")
        if self._error is not None:
            self._error_seen = True
            raise self._error
        assert self._report is not None
        return self._report

    def progress(self, interval: float = 0.1) -> Iterator[Progress]:
        """Give a progress every `interval` seconds until the dump has ended, and one then."""
        self._demand_started()
        while not self._ended.wait(interval):
            yield self.moment()
        yield self.moment()

    def moment(self) -> Progress:
        """Give the progress of now."""
        ended = self._ended.is_set()
        seconds = self._seconds if ended else time.monotonic() - self._began
        rate = self.done / seconds if seconds else 0.0
        eta = (self.total - self.done) / rate if rate else None
        return Progress(self.status, self.done, self.total, rate, eta, self._control.phase)

    def __await__(self) -> Generator[Any, None, Report]:
        from vmdump.aio import wait  # asyncio takes 60 ms to load, and few need it

        return wait(self).__await__()

    def __aiter__(self) -> AsyncIterator[Progress]:
        from vmdump.aio import progress

        return progress(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        if self._status == "none":
            return
        self._ended.wait()
        if self._error is not None and self._status == "failed" and error is None and not self._error_seen:
            raise self._error

    def __repr__(self) -> str:
        return f"<DumpJob {self.status}, {self.done} of {self.total} bytes>"


def start_dump(source: AnySource, output: str | os.PathLike[str], **options: Unpack[DumpOptions]) -> DumpJob:
    """Begin a dump in the background; the parameters are those of :func:`vmdump.dump`.

    Returns
    -------
    DumpJob
        Active already.

    Raises
    ------
    VmdumpError
        What is wrong with the request or the source is raised here, what goes wrong later by
        :meth:`DumpJob.wait`.
    """
    check_keywords("vmdump.start_dump", options, DumpOptions.__annotations__)
    return _make_job(source, output, options).start()


def _make_job(source: AnySource, output: str | os.PathLike[str], options: DumpOptions) -> DumpJob:
    request = check_request(source, output, **options)
    return DumpJob(request.run, give_up=request.give_up)


async def dump_async(
    source: AnySource, output: str | os.PathLike[str], **options: Unpack[DumpOptions]
) -> Report:
    """Write a guest's memory to a dump file, in asyncio; the parameters are those of :func:`vmdump.dump`.

    Neither attaching nor dumping holds up the event loop. Cancelling the task cancels the dump: the guest
    runs again and no file is left when CancelledError arrives.

    Returns
    -------
    Report

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
    check_keywords("vmdump.dump_async", options, DumpOptions.__annotations__)
    from vmdump.aio import start  # asyncio takes 60 ms to load, and few need it

    return await (await start(lambda: _make_job(source, output, options)))
