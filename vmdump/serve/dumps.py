"""The dump that a client asks for: made by vmdump, told of as QEMU tells of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from vmdump.errors import CapabilityError, GuestBusy, QmpError, RequestError, SinkError
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.formats.names import find_format
from vmdump.guest.guest import Guest
from vmdump.job import DumpJob
from vmdump.operations.dump import check_request
from vmdump.operations.report import Report
from vmdump.operations.request import Request
from vmdump.pipeline.control import Control
from vmdump.serve.arguments import DumpArguments
from vmdump.serve.output import Replaced, Unblocking, place_for
from vmdump.serve.spool import dump_flattened
from vmdump.serve.upstream import Upstream
from vmdump.sources.qemu.attached import AttachedSource
from vmdump.sources.qemu.over_qmp import OverQmp

__all__ = ["IN_PROCESS", "NO_MEMORY", "Dump", "LeftToQemu", "Refused"]

IN_PROCESS = "There is a dump in process, please wait."
_NEEDS_SEEKING = "kdump-raw-* formats require a seekable file"
_RESUMED = "somebody let the guest run while it was being read; try again"
NO_MEMORY = "dump: no guest memory to dump"
_DRAIN = 0.01
"""Seconds between two looks into a pipe that holds up the end of a dump."""
_BEGIN_WAIT = 2.0
"""Seconds that the answer to a detached dump waits for the guest to be paused: it is packed before."""
_MICROSECONDS = 1_000_000

Reply = dict[str, Any]


class Refused(Exception):
    """The dump has not begun; the text is QEMU's."""


class LeftToQemu(Exception):
    """QEMU has a reason to refuse the dump, or can do what vmdump cannot."""


class _Way(OverQmp):
    """The way over the clients' connection: they hear nothing of headers that are taken."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream)
        self._upstream = upstream

    def headers(self, cancelled: Callable[[], bool]) -> ElfHeaders:
        with self._upstream.taking_headers():
            return super().headers(cancelled)


class _Source(AttachedSource):
    """A guest that tells when its dump begins: the output is open then."""

    def __init__(self, upstream: Upstream, begin: Callable[[], object]) -> None:
        self._begin = begin
        super().__init__(lambda: _Way(upstream))

    @contextmanager
    def held(self, **options: Any) -> Iterator[Guest]:
        self._begin()
        with super().held(**options) as guest:
            yield guest


class Dump:
    """One dump. Made and used in the monitor's thread.

    Parameters
    ----------
    upstream : Upstream
        QEMU.
    arguments : DumpArguments
        Which were found right.
    fd : int or None
        The descriptor that it goes to, which becomes the dump's; None for a file.
    tell : callable
        Called with each event for the clients.

    Attributes
    ----------
    status : str
        ``active``, ``completed`` or ``failed``.
    arguments : DumpArguments
        As given.
    under_way : bool
        The output is open; what goes wrong from now on is told by an event.
    """

    def __init__(
        self, upstream: Upstream, arguments: DumpArguments, fd: int | None, tell: Callable[[Reply], object]
    ) -> None:
        self.status = "active"
        self._upstream = upstream
        self.arguments = arguments
        self._fd = fd
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._size = self._most = 0
        self.under_way = False
        self._settled = asyncio.Event()
        self._settled_for_good = asyncio.Event()
        self._reason = ""
        self._place = ""
        self._ending: asyncio.Task[None] | None = None
        self._stopped = self._pauses = False
        self._held_back: list[Reply] = []
        self._job = DumpJob(self._run, give_up=self._close_output)

    async def make(self) -> None:
        """Make it, and tell of its end.

        Raises
        ------
        LeftToQemu
            It has not begun, and QEMU is to be asked.
        Refused
            It has not begun.
        QmpError
            QEMU has ended.
        Exception
            It has failed: what the clients were told.
        """
        try:
            await self._made()
        except LeftToQemu:
            self.status = "failed"
            raise
        except Exception as error:
            self.status = "failed"
            if not self.under_way:
                raise self._refusal(error) from error
            text = f"dump: {self._reason}" if self._reason else self._text_of(error)
            self._end(text)
            raise Refused(text) from error
        else:
            self.status = "completed"
            self._end("")
        finally:
            self._settled.set()
            self._settled_for_good.set()

    async def _made(self) -> None:
        """Wait for the job; not if this is cancelled, for the job itself may end the monitor's thread."""
        ended = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(ended.set)

        self._job.start().when_ended(tell)
        await ended.wait()
        self._job.wait(0)

    def join(self, seconds: float) -> None:
        """Wait for the end, in any other thread, for some time only; it may have failed."""
        self._job.cancel()
        with contextlib.suppress(Exception):
            self._job.wait(seconds)

    async def begun(self) -> None:
        """Wait until the guest is paused, the dump has ended, or some time has gone by since it began."""
        try:
            async with asyncio.timeout(_BEGIN_WAIT):
                await self._settled.wait()
        except TimeoutError:
            if not self.under_way:
                await self._settled.wait()

    async def end(self, reason: str) -> None:
        """Let it end, also if it waits for a reader; the guest runs again when this returns."""
        self._reason = self._reason or reason
        self._job.cancel()
        unblocking = Unblocking(self._place, self._fd)
        try:
            while not self._settled_for_good.is_set():
                unblocking.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._settled_for_good.wait(), _DRAIN)
        finally:
            unblocking.close()

    @property
    def state(self) -> Reply:
        """What ``query-dump`` answers."""
        if self.status == "completed":
            return {"status": self.status, "completed": self._size, "total": self._size}
        done, total = self._job.done, self._job.total
        # A running guest is packed, and then looked at again: what is done must not become less.
        if total:
            self._most = max(self._most, min(self._size * done // total, self._size))
        return {"status": self.status, "completed": self._most, "total": self._size}

    def takes(self, event: Reply) -> bool:
        """Look at an event of QEMU's; true if it is held back until the end of the dump.

        The guest runs before the file is whole. QEMU tells of the dump's end before it lets the guest run:
        the clients hear it in this order.
        """
        name = event["event"]
        if name == "RESUME" and self.under_way and self._pauses and not self._upstream.resuming:
            # Before it is over, so that a pipe that nobody reads does not hold it up.
            self._ending = self._ending or asyncio.ensure_future(self.end(_RESUMED))
        self._pauses = self._pauses and name != "RESUME"
        if self._stopped and (name == "RESUME" or (name == "STOP" and self._held_back)):
            self._held_back.append(event)
            return True
        if name == "STOP" and self.under_way:
            self._stopped = self._pauses = True
            # Behind the event that the caller is about to send.
            self._loop.call_soon(self._settled.set)
        return False

    def _run(self, control: Control) -> Report:
        """Make the dump, in a thread of its own."""
        arguments = self.arguments
        self._upstream.give_up_if(control.cancelled)
        try:
            output = self._output()
            try:
                source = _Source(self._upstream, self._note_begin)
            except (GuestBusy, QmpError) as error:
                if isinstance(error, QmpError) and not error.error_class:
                    raise
                raise LeftToQemu(str(error)) from error
            with closing(source):
                self._size = _bytes_within(source.guest, arguments)
                if not self._size:
                    raise Refused(NO_MEMORY)

                def check(output: str, layout: str) -> Request:
                    try:
                        return check_request(
                            source,
                            output,
                            format=arguments.format,
                            layout=layout,
                            begin=arguments.begin,
                            length=arguments.length,
                            paging=arguments.paging,
                            force=True,
                        )
                    except (CapabilityError, RequestError) as error:
                        raise LeftToQemu(str(error)) from error

                layout = _layout(arguments)
                request = check(output, layout)
                replaced = Replaced(self._place) if self._place else None
                report = None
                if layout == "flattened" and self._place and self._runs():
                    report = dump_flattened(source, output, check, control)
                if report is None:
                    report = request.run(control)
                if replaced is not None:
                    replaced.give_back()
            # Before anybody hears of the end: who reads a pipe waits for its end.
            self._close_output()
            return report
        except LeftToQemu:
            raise  # with the descriptor, which QEMU is to have
        except BaseException:
            self._close_output()
            raise

    def _output(self) -> str:
        arguments = self.arguments
        if self._fd is None:
            try:
                self._place = place_for(arguments.path, self._upstream.pid)
                return self._place
            except OSError as error:
                raise SinkError("cannot open the output", path=arguments.path, errno=error.errno) from error
        if find_format(arguments.format).raw and not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise Refused(_NEEDS_SEEKING)
        return f"fd:{self._fd}"

    def give_up(self) -> None:
        """Note that it was never made."""
        self.status = "failed"
        self._close_output()
        self._settled.set()
        self._settled_for_good.set()

    def take_output(self) -> int | None:
        """Give the descriptor of a dump that is left to QEMU to the caller."""
        fd, self._fd = self._fd, None
        return fd

    def _close_output(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _runs(self) -> bool:
        return bool(self._upstream.execute("query-status")["running"])

    def _note_begin(self) -> None:
        def note() -> None:
            self.under_way = True
            self._pauses = not running
            if not running:
                self._settled.set()

        running = self._runs()
        # In the thread of the events: a STOP that comes now is the dump's.
        asyncio.run_coroutine_threadsafe(_call(note), self._loop).result()

    def _end(self, error: str) -> None:
        """Tell of the end, and then that the guest runs."""
        now = time.time_ns() // 1000
        data: Reply = {"result": self.state}
        if error:
            data["error"] = error
        stamp = {"seconds": now // _MICROSECONDS, "microseconds": now % _MICROSECONDS}
        self._tell({"timestamp": stamp, "event": "DUMP_COMPLETED", "data": data})
        held_back, self._held_back, self._stopped = self._held_back, [], False
        for event in held_back:
            self._tell(event)

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, Refused):
            return error
        if isinstance(error, SinkError) and error.errno and self.arguments.path:
            return Refused(f"Could not open '{self.arguments.path}': {os.strerror(error.errno)}")
        return Refused(self._text_of(error))

    @staticmethod
    def _text_of(error: Exception) -> str:
        if isinstance(error, GuestBusy) and error.state == "dump":
            return IN_PROCESS
        if isinstance(error, SinkError) and error.errno:
            return f"dump: failed to write the file: {os.strerror(error.errno)}"
        return f"dump: {error}"


async def _call(function: Callable[[], object]) -> None:
    function()


def _layout(arguments: DumpArguments) -> str:
    """Give the layout that QEMU writes: flattened unless the format's name says raw."""
    known = find_format(arguments.format)
    return "flattened" if known.family == "kdump" and not known.raw else "auto"


def _bytes_within(guest: Guest, arguments: DumpArguments) -> int:
    """Count the guest's memory that is to be dumped, as QEMU counts it."""
    if arguments.begin is None or arguments.length is None:
        return sum(block.size for block in guest.blocks)
    begin, end = arguments.begin, arguments.begin + arguments.length
    ranges = ((max(block.start, begin), min(block.start + block.size, end)) for block in guest.blocks)
    return sum(max(last - first, 0) for first, last in ranges)
