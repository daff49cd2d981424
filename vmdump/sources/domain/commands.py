"""QMP's words, asked of libvirt: whatever it has a call for."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from vmdump.errors import GuestBusy, QmpError
from vmdump.interrupts import Deferred
from vmdump.sources.libvirt.connection import CALL_WAIT
from vmdump.sources.libvirt.domain import Domain
from vmdump.sources.libvirt.states import is_inactive, name_of_job, name_of_state
from vmdump.sources.qemu.command_thread import CommandThread
from vmdump.sources.qemu.pauses import Pauses

__all__ = ["DomainCommands"]

_EVENT_WAIT = 5.0
"""Seconds for the event of what libvirt has answered already: mostly it has come before the answer."""
_LOOK = 0.2
"""Seconds between looks whether the connection is still there: not every call is told when it is not."""


class DomainCommands(CommandThread):
    """A domain, asked as QEMU would be: :class:`vmdump.sources.qemu.way.Commands`.

    Unlike QEMU's, libvirt's answers may come in front of the events of what was before. So the answers to
    ``stop`` and ``cont`` wait for the event that they cause.

    Parameters
    ----------
    domain : Domain
        The guest's; closed with this.

    Attributes
    ----------
    domain : Domain
        As given.
    pauses : Pauses
        When the guest was paused, by this process' clock: from before libvirt is asked to pause it until it
        has said that the guest runs again.

    Raises
    ------
    VmdumpError
        As for :meth:`vmdump.sources.libvirt.connection.Connection.listen`.
    """

    def __init__(self, domain: Domain) -> None:
        super().__init__(domain.path)
        self.domain = domain
        self.pauses = Pauses()
        self._lost = ""
        self._stopping_since: float | None = None
        self._resumed_at: float | None = None
        self._changed = asyncio.Event()
        self._process = -1
        with Deferred():
            self._start_loop("vmdump-libvirt-domain")
            atexit.register(self.close)
        try:
            with contextlib.suppress(OSError):
                self._process = os.pidfd_open(domain.pid) if domain.pid else -1
            domain.listen(self._notice, self._notice_loss)
        except BaseException:
            self.close()
            raise

    def _notice(self, event: str) -> None:
        """Take an event, in the thread in which libvirt tells of it."""
        self._post(self._count, event, time.time())

    def _notice_loss(self) -> None:
        self._post(self._lose, "libvirt's daemon has ended, or closed the connection")

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._loop.call_soon_threadsafe(function, *arguments)

    def _count(self, event: str, now: float) -> None:
        if event == "END":
            self._lose("the domain is not active any more")
        else:
            if event == "STOP" and self._stopping_since is not None:
                now = self._stopping_since
            if event == "RESUME":
                self._resumed_at = now
            self.pauses.count(event, now)
        self._changed.set()

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._changed.set()

    def demand_alive(self) -> None:
        """Check that the QEMU and libvirt's daemon are still there.

        Raises
        ------
        QmpError
            One has ended.
        SourceError
            The connection was closed.
        """
        self._demand_open()
        if self._lost:
            raise QmpError(f"{self.path}: {self._lost}")
        if not self.domain.connection.alive:
            raise QmpError(f"{self.path}: libvirt's daemon does not answer any more")
        if self._process >= 0 and select.select([self._process], [], [], 0)[0]:
            raise QmpError(f"{self.path}: QEMU has ended")

    async def ask(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute what is meant by a QMP command; in the thread for it.

        Raises
        ------
        QmpError
            libvirt refuses it, has no call for it, or does not answer.
        GuestBusy
            Somebody has a job on the domain.
        """
        answers: Mapping[str, Callable[[], Any]] = {
            "stop": self._stop,
            "cont": self._cont,
            "query-status": self._query_status,
            "query-migrate": self._query_migrate,
            "query-block-jobs": self._query_block_jobs,
        }
        if command not in answers:
            raise QmpError(
                f"{self.path}: {command}: libvirt has no call for it",
                command=command,
                error_class="CommandNotFound",
            )
        return await answers[command]()

    async def _call(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        """Call something of libvirt's in a thread that may be left alone."""
        connection = self.domain.connection
        future = asyncio.wrap_future(connection.begin(function, *arguments))
        deadline = time.monotonic() + CALL_WAIT
        while not future.done():
            await asyncio.wait((future,), timeout=_LOOK)
            if not future.done() and (time.monotonic() > deadline or not connection.alive):
                future.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise QmpError(f"{self.path}: {what}: libvirt's daemon does not answer", command=what)
        error = future.exception()
        if error is not None:
            raise connection.failure(error, what, self.path) from error
        return future.result()

    async def _state(self) -> tuple[int, int]:
        try:
            state, reason = await self._call("query-status", self.domain.handle.state)
        except QmpError as error:
            if self._lost:
                raise QmpError(f"{self.path}: {self._lost}", command="query-status") from error
            raise
        if is_inactive(state):
            raise QmpError(f"{self.path}: the domain is not active any more", command="query-status")
        return state, reason

    async def _query_status(self) -> dict[str, object]:
        status = name_of_state(*await self._state())
        return {"status": status, "running": status == "running"}

    async def _wait_for_event(self, has_come: Callable[[], bool]) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EVENT_WAIT):
                while not has_come() and not self._lost:
                    self._changed.clear()
                    await self._changed.wait()
        return has_come()

    async def _stop(self) -> dict[str, object]:
        pauses, before = self.pauses, self.pauses.stops
        if name_of_state(*await self._state()) != "running":
            return {}  # libvirt does nothing either, and tells of nothing
        self._stopping_since = time.time()
        try:
            await self._call("stop", self.domain.handle.suspend)
            if not await self._wait_for_event(lambda: pauses.stops > before):
                raise QmpError(f"{self.path}: stop: no event of libvirt's tells that it is", command="stop")
        finally:
            self._stopping_since = None
        return {}

    async def _cont(self) -> dict[str, object]:
        before, self._resumed_at = self.pauses.stirs, None
        try:
            await self._call("cont", self.domain.handle.resume)
        except GuestBusy:
            # Somebody else was faster.
            if name_of_state(*await self._state()) != "running":
                raise
        returned = time.time()
        # Whoever else has resumed the guest meanwhile, this is the event behind his.
        if await self._wait_for_event(lambda: self.pauses.stirs > before) and self._resumed_at is not None:
            self.pauses.seconds += max(returned - self._resumed_at, 0.0)
        return {}

    async def _query_migrate(self) -> dict[str, object]:
        """Tell of no migration, or raise the error of a job: libvirt does one at a time."""
        stats = await self._call("query-migrate", self.domain.handle.jobStats)
        job = name_of_job(stats)
        if job:
            raise GuestBusy(f"{self.path}: libvirt is at work on the domain ({job}); wait for it", state=job)
        return {"status": "none"}

    async def _query_block_jobs(self) -> list[object]:
        jobs = []
        for disk in self.domain.disks:
            with contextlib.suppress(QmpError):
                job = await self._call("query-block-jobs", self.domain.handle.blockJobInfo, disk)
                jobs += [job] if job else []
        return jobs

    def stop(self) -> None:
        """Ask nothing any more, for good. Doing it twice does nothing."""
        if self._loop.is_closed() or os.getpid() != self._owner:
            return
        with Deferred():
            self._end_loop()

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        if os.getpid() != self._owner:
            return
        with Deferred():
            atexit.unregister(self.close)
            self.stop()
            self.domain.close()
            if self._process >= 0:
                os.close(self._process)
                self._process = -1
