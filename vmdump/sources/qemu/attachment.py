"""The connection to a live guest: whether it may be dumped, its layout, pausing and resuming it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from vmdump.errors import Cancelled, GuestBusy, QmpError, SourceError
from vmdump.guest.qemu import LiveFacts
from vmdump.interrupts import Deferred
from vmdump.sources.process.memory import ProcessMemory
from vmdump.sources.process.process import Process
from vmdump.sources.qemu import guardian_main
from vmdump.sources.qemu.guardian import Guardian
from vmdump.sources.qemu.layout import GuestLayout
from vmdump.sources.qemu.state import GuestState
from vmdump.sources.qemu.way import Way

__all__ = ["Attachment"]

_IDLE_MIGRATION = ("none", "completed", "failed", "cancelled")
_RETRY = 0.05
"""Seconds between questions to a QEMU that cannot resume the guest yet."""
_HURRY = 2.0
"""Seconds that QEMU has to resume the guest where somebody waits for the end: then the guardian goes on."""


def _is_interruption(error: BaseException | None) -> bool:
    """Tell whether somebody wants the end: Ctrl-C, or a job that was cancelled."""
    return isinstance(error, Cancelled) or (error is not None and not isinstance(error, Exception))


class Attachment:
    """A way to a guest, its process, and whether vmdump has paused it.

    Parameters
    ----------
    open_way : callable
        Gives the way, which is closed with the attachment.

    Attributes
    ----------
    emulator : Emulator
        The QEMU, as it was asked once.

    Raises
    ------
    SourceError, AccessDenied, QmpError, GuestBusy, CapabilityError
        As for :class:`vmdump.sources.qemu.attached.AttachedSource`.
    """

    def __init__(self, open_way: Callable[[], Way]) -> None:
        self._guardian: Guardian | None = None
        self._private: ProcessMemory | None = None
        self._process: Process | None = None
        self._owner = os.getpid()
        self._claim = threading.Lock()
        self._paused_before = 0.0
        self._paused_at_attach = 0.0
        self._held = False
        self._stopped = False
        self._stopping = False
        self._stopped_at = 0.0
        self._migrated = False
        self._found_state = ""
        self._left_to_guardian = False
        self._cancelled: Callable[[], bool] = lambda: False
        self._watched: tuple[str, int] | None = None
        self._state: GuestState | None = None
        self._way = way = open_way()
        try:
            self._commands = way.commands
            self._path = way.commands.path
            self._commands.pauses.on_resume = self._note_resume
            # A program that ends while a job has the guest stopped: the guardian need not be called.
            atexit.register(self._close_at_exit)
            way.demand_dumpable()
            self.refuse_busy()
            if way.pid == 0:
                raise SourceError(
                    "QEMU is in a PID namespace that is not visible from here",
                    path=self._path,
                    hint="run vmdump on the host of its container",
                )
            self._process = Process(way.pid, "QEMU", self._path)
            self.emulator = way.emulator()
        except BaseException:
            self.close()
            raise

    @property
    def waits_for_this_thread(self) -> bool:
        """True in the thread for commands, which answers whoever closes."""
        return self._commands.is_this_thread

    @property
    def _forked(self) -> bool:
        """True in a child of the process that attached: connection, lock and guardian are the parent's."""
        return os.getpid() != self._owner

    @property
    def paused_seconds(self) -> float:
        """For how long the guest was paused since it was claimed last, by QEMU's clock.

        The first time, that for which QEMU stopped it at the attach is part of it.
        """
        return self._commands.pauses.seconds - self._paused_before

    @property
    def paused_since(self) -> float | None:
        """When `stop` was sent, by `time.monotonic`; None while vmdump has not paused the guest."""
        return self._stopped_at if self._stopped else None

    @property
    def facts(self) -> LiveFacts:
        """How the guest was found when it was asked last."""
        assert self._process is not None
        return LiveFacts(self._found_state, self._path, self._process.pid, self.emulator.machine)

    def refuse_busy(self) -> bool:
        """Raise GuestBusy if the guest cannot be dumped now; give True if it runs."""
        path = self._path
        status = self._commands.execute("query-status")
        self._found_state = str(status["status"])
        if status["status"] == "inmigrate":
            raise GuestBusy(
                f"{path}: the guest is waiting for an incoming migration and has no memory yet",
                state="inmigrate",
            )
        answer = self._commands.execute_if_known("query-migrate") or {}
        self._migrated = guardian_main.has_migrated(answer)
        migration = answer.get("status", "none")
        if migration not in _IDLE_MIGRATION:
            why = (
                "part of its memory is still on the other host" if "postcopy" in migration else "wait for it"
            )
            raise GuestBusy(f"{path}: the guest is migrating ({migration}): {why}", state=migration)
        if (self._commands.execute_if_known("query-dump") or {}).get("status") == "active":
            raise GuestBusy(f"{path}: QEMU is dumping this guest already; wait for it", state="dump")
        return bool(status["running"])

    @property
    def remarks(self) -> Sequence[str]:
        """What others see of the visit, that they would not expect."""
        return self._way.remarks

    def open_files(self) -> tuple[os.stat_result, ...]:
        """Find the files and disks that QEMU has open."""
        return () if self._process is None else self._process.open_files()

    def attached(self) -> None:
        """Note that the attach is over: that the guest was paused until now is vmdump's doing."""
        self._paused_at_attach = self._commands.pauses.seconds

    def take_layout(self, cancelled: Callable[[], bool]) -> GuestLayout:
        """Ask for the layout and registers of now; the caller closes it."""
        assert self._process is not None
        return GuestLayout(self._way, self._process, self.emulator.target, self._open_private, cancelled)

    def _open_private(self) -> ProcessMemory:
        assert self._process is not None
        if self._private is None:
            self._private = ProcessMemory(self._process)
        return self._private

    def claim(self) -> None:
        """Take the right to dump the guest; :meth:`disclaim` gives it back.

        Raises
        ------
        GuestBusy
            Another dump has it, of this process or of another.
        SourceError
            The attachment is closed.
        """
        if self._process is None:
            raise SourceError("the source is closed", path=self._path)
        if not self._claim.acquire(blocking=False):
            raise GuestBusy(f"{self._path}: another dump of this guest is running", state="dump")
        try:
            # An answer comes behind the events of all that happened before.
            self._status()
            if not self._process.claim():
                owner = f"QEMU's process {self._process.pid}"
                raise GuestBusy(f"another dump of this guest ({owner}) is running; wait for it", state="dump")
        except BaseException:
            self._claim.release()
            raise
        # What happened between the attach and now is not vmdump's doing.
        self._paused_before = self._commands.pauses.seconds - self._paused_at_attach
        self._paused_at_attach = 0.0

    def disclaim(self) -> None:
        """Give the right to dump the guest back."""
        if self._forked:
            return
        # If it is the guardian's, that has the same lock, and gives it back by its end; so does closing.
        if self._process is not None and not self._left_to_guardian:
            self._process.disclaim()
        self._claim.release()

    def hold(self, *, stop: bool, watch: bool, cancelled: Callable[[], bool]) -> None:
        """Begin to read the guest.

        Parameters
        ----------
        stop : bool
            It runs and is to be stopped.
        watch : bool
            It must not run until :meth:`release`.
        cancelled : callable
            Asked while waiting.
        """
        self._cancelled = cancelled
        if stop:
            self._stop(cancelled)
        self._watched = (self._status(), self._commands.pauses.stirs) if watch else None
        self._state = None
        self._held = True

    def watch(self, layout: GuestLayout) -> None:
        """Note how the guest is that was just laid out, if it must not change until :meth:`release`."""
        if self._watched is not None:
            assert self._process is not None
            self._state = GuestState(self._commands, self._process.pid, layout)

    def _status(self) -> str:
        return str(self._commands.execute("query-status")["status"])

    def expect_stop(self) -> Guardian:
        """Start the guardian, which takes 20 ms to get ready; nobody waits for that before the stop."""
        assert self._process is not None
        with Deferred():
            if self._guardian is not None and not self._guardian.alive:
                self._guardian.dismiss()
                self._guardian = None
            if self._guardian is None:
                self._guardian = self._way.start_guardian(self._process)
        return self._guardian

    def _stop(self, cancelled: Callable[[], bool]) -> None:
        guardian = self.expect_stop()
        guardian.wait_ready()
        pauses = self._commands.pauses

        async def stop() -> None:
            before = pauses.stops
            guardian.arm(migrated=self._migrated)
            self._stopped = self._stopping = True
            self._stopped_at = time.monotonic()
            try:
                await self._commands.ask("stop")
            finally:
                self._stopping = False
            if pauses.stops == before or not pauses.lasts:
                # Somebody else has stopped it meanwhile, and will resume it; or has resumed it already.
                self._disarm()
                return
            status = await self._commands.ask("query-status")
            if not guardian_main.is_held(status["status"]):
                # It had stopped by itself just before: for an I/O error, or its watchdog.
                self._disarm()

        self._commands.wait(stop(), cancelled=cancelled)

    def _disarm(self) -> None:
        """Note that it is not vmdump that has the guest paused; in the thread for commands."""
        self._stopped = False
        if self._guardian is not None:
            self._guardian.disarm()

    def _note_resume(self) -> None:
        """Whoever has resumed the guest: if it is stopped again, that is somebody else's wish.

        Unless that is what `stop` is going to do: somebody resumed it just before.
        """
        if self._stopped and not self._stopping:
            self._disarm()

    def release(self, check: Callable[[], object]) -> None:
        """End the reading: let the guest run again if :meth:`hold` has stopped it. Does nothing twice.

        Parameters
        ----------
        check : callable
            Called while the guest is still paused; raises an error if what was read is invalid.

        Raises
        ------
        GuestBusy
            Somebody else let it run, woke it up, reset it or loaded a snapshot while it was read.
        QmpError
            QEMU has ended, or cannot let it run.
        """
        if not self._held:
            return
        self._held = False
        self._commands.demand_alive()
        check()
        # Events come in front of the answer to a later command: all there were have been counted then.
        status = self._status()
        stirred = self._watched not in (None, (status, self._commands.pauses.stirs))
        change = None if stirred or self._state is None else self._state.find_change()
        before = self._commands.pauses.stirs + self._stopped
        self.let_run(None)
        # Where events may come behind answers, that of somebody else's resume is in front of this one's.
        stirred = stirred or (self._watched is not None and self._commands.pauses.stirs > before)
        if stirred:
            raise GuestBusy(
                f"{self._path}: somebody let the guest run, reset or migrated it while it was being "
                f"read (it is {status} now), so the dump would not be of one moment; try again, or say "
                "--no-pause",
                state=status,
            )
        if change is not None:
            raise change

    def let_run(self, error: BaseException | None) -> None:
        """Let the guest run if it was stopped here. Signals have to wait meanwhile.

        Parameters
        ----------
        error : exception or None
            What is being raised anyway.

        Raises
        ------
        QmpError
            It cannot, or may not, be running.
        """
        self._held = False
        guardian = self._guardian
        if guardian is None or self._forked:
            return

        async def resume() -> None:
            # Asked here, behind a `stop` that was interrupted: both run in the thread for commands.
            if not self._stopped:
                return
            status = (await self._commands.ask("query-status"))["status"]
            held = guardian_main.is_held(status)
            if held and guardian_main.needs_migration(status) and not self._migrated:
                held = not guardian_main.has_migrated(await self._commands.ask("query-migrate"))
            # The events of all that happened before have been counted: somebody else may have resumed it.
            if held and self._stopped:
                await self._cont()
            self._disarm()

        raised = sys.exception()
        if error is None and _is_interruption(raised):
            error = raised
        with Deferred() as signals:
            hurry, limit = False, 0.0

            def too_long() -> bool:
                nonlocal hurry, limit
                if not hurry and (_is_interruption(error) or signals.pending or self._cancelled()):
                    hurry, limit = guardian.alive, time.monotonic() + _HURRY
                return hurry and time.monotonic() > limit

            try:
                self._commands.wait(resume(), cancelled=too_long)
            except Exception as failure:
                self._leave_to_guardian(guardian, error, failure, hurry=hurry)

    async def _cont(self) -> None:
        """Let the guest run, after the end of somebody's dump if there is one; in the thread for commands."""
        while True:
            try:
                await self._commands.ask("cont")
            except QmpError as refusal:
                if not guardian_main.is_dumping(refusal):
                    raise
                await asyncio.sleep(_RETRY)
            else:
                return

    def _leave_to_guardian(
        self, guardian: Guardian, error: BaseException | None, failure: Exception, *, hurry: bool
    ) -> None:
        """Let the guardian resume the guest, which vmdump could not, and say what became of it."""
        self._guardian = None
        # Two readers of one connection would take the answers from each other.
        self._way.leave()
        done = guardian.dismiss(hurry=hurry)
        self._way.close(hang_up=done)
        if done:
            self._stopped = False
            if error is None:
                raise failure
            return
        self._left_to_guardian = True
        why = f"no answer within {_HURRY:.0f} s" if isinstance(failure, Cancelled) else failure
        if guardian.alive:
            who = self._way.respondent
            text = f"the guest may still be paused until {who} answers ({why}); the guardian resumes it then"
        else:
            text = f"the guest is still paused and could not be resumed ({why}); {self._way.cure} may do it"
        if error is not None and not isinstance(error, Exception):
            error.add_note(f"{self._path}: {text}")
            return
        raise QmpError(f"{self._path}: {text}", command="cont") from error or failure

    def close(self) -> None:
        """Let the guest run if it was stopped here, and end the connection; closing twice does nothing.

        In a process that was forked from the one that attached it does nothing either. Signals have to wait
        meanwhile.
        """
        if self._forked:
            return
        with Deferred():
            atexit.unregister(self._close_at_exit)
            self._way.commands.pauses.on_resume = None
            hurry = self._cancelled() or _is_interruption(sys.exception())
            try:
                self.let_run(None)
            finally:
                guardian, self._guardian = self._guardian, None
                if self._stopped:
                    self._way.leave()
                self._way.close(hang_up=guardian is None or guardian.dismiss(hurry=hurry))
                for part in (self._private, self._process):
                    if part is not None:
                        part.close()
                self._private = self._process = None

    def _close_at_exit(self) -> None:
        self._cancelled = lambda: True
        with contextlib.suppress(QmpError):
            self.close()
