"""Jobs in asyncio: nothing here holds up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Protocol, Self, TypeVar

from vmdump.errors import VmdumpError

__all__ = ["Job", "progress", "start", "wait"]

_INTERVAL = 0.1
_Result = TypeVar("_Result", covariant=True)
_Moment = TypeVar("_Moment", covariant=True)


class Job(Protocol[_Result, _Moment]):
    """Work in a thread of its own, as :class:`vmdump.DumpJob` is."""

    def start(self) -> Self:
        """Begin; once."""

    def cancel(self) -> None:
        """Ask it to stop; also before it has begun."""

    def when_ended(self, tell: Callable[[], object]) -> None:
        """Have a function called when it has ended, in any thread."""

    def wait(self, timeout: float | None = None, /) -> _Result:
        """Wait for the end, and give the result or raise what ended it."""

    def moment(self) -> _Moment:
        """Give the progress of now."""


_SomeJob = TypeVar("_SomeJob", bound=Job[Any, Any])


async def _ended(job: Job[Any, Any]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    job.when_ended(tell)
    await ended.wait()


async def start(make: Callable[[], _SomeJob]) -> _SomeJob:
    """Make and start a job in a thread; cancelling this cancels the job, also one that is yet to come.

    Parameters
    ----------
    make : callable
        Gives a job that was not started. It cannot be interrupted.

    Raises
    ------
    VmdumpError
        What `make` raises.
    """
    lock = threading.Lock()
    given_up = False
    started: list[_SomeJob] = []

    def begin() -> _SomeJob:
        job = make()
        with lock:
            if given_up:
                job.cancel()
            started.append(job)
            return job.start()

    starting = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with lock:
            given_up = True
            for job in started:
                job.cancel()
        # Seen here, since nobody may be left who awaits it.
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        with suppress(VmdumpError):
            await _settle(await asyncio.shield(starting))
        raise


async def _settle(job: Job[Any, Any]) -> None:
    """Cancel a job and wait until it has left nothing behind; its outcome is not told."""
    job.cancel()
    await asyncio.shield(_ended(job))
    with suppress(VmdumpError):
        job.wait(0)


async def wait(job: Job[_Result, Any]) -> _Result:
    """Wait for the end of a job; cancelling this cancels the job.

    Parameters
    ----------
    job : Job
        Started.

    Raises
    ------
    VmdumpError
        What ended it.
    """
    try:
        await _ended(job)
    except asyncio.CancelledError:
        await _settle(job)
        raise
    return job.wait(0)


async def progress(job: Job[Any, _Moment]) -> AsyncIterator[_Moment]:
    """Give a progress every 0.1 s until the job has ended, and one then."""
    ended = asyncio.ensure_future(_ended(job))
    try:
        while not (await asyncio.wait((ended,), timeout=_INTERVAL))[0]:
            yield job.moment()
        yield job.moment()
    finally:
        ended.cancel()
