"""Dumps in asyncio: nothing here holds up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from vmdump.errors import VmdumpError
from vmdump.job import DumpJob, Progress
from vmdump.operations.report import Report

__all__ = ["progress", "start", "wait"]

_INTERVAL = 0.1


async def _ended(job: DumpJob) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    job.when_ended(tell)
    await ended.wait()


async def start(make: Callable[[], DumpJob]) -> DumpJob:
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
    started: list[DumpJob] = []

    def begin() -> DumpJob:
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


async def _settle(job: DumpJob) -> None:
    """Cancel a job and wait until it has left nothing behind; its outcome is not told."""
    job.cancel()
    await asyncio.shield(_ended(job))
    with suppress(VmdumpError):
        job.wait(0)


async def wait(job: DumpJob) -> Report:
    """Wait for the end of a job; cancelling this cancels the dump.

    Parameters
    ----------
    job : DumpJob
        Started.

    Raises
    ------
    VmdumpError
        As :meth:`DumpJob.wait`.
    """
    try:
        await _ended(job)
    except asyncio.CancelledError:
        await _settle(job)
        raise
    return job.wait(0)


async def progress(job: DumpJob) -> AsyncIterator[Progress]:
    """Give a progress every 0.1 s until the job has ended, and one then."""
    ended = asyncio.ensure_future(_ended(job))
    try:
        while not (await asyncio.wait((ended,), timeout=_INTERVAL))[0]:
            yield job.moment()
        yield job.moment()
    finally:
        ended.cancel()
