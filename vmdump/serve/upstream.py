"""QEMU's side: its one QMP connection, used by the clients of `serve` and by the dump that vmdump makes.

It is the monitor of :mod:`vmdump.sources.qemu`, so that a dump goes over the same connection: QEMU serves no
second client, and the guardian inherits this one. What is added: commands of others, whole, with descriptors;
answers handed on before the event behind them; and the events of vmdump's own headers kept back.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from qemu.qmp import Message, QMPClient

from vmdump.errors import QmpError
from vmdump.serve.json_stream import MAX_MESSAGE
from vmdump.serve.json_values import write
from vmdump.sources.qemu.monitor import Monitor

__all__ = ["Upstream"]

_MAX_ANSWER = 256 << 20
"""Bytes; `info tlb` of a guest of 16 GiB may have 160 MB."""
_ID = "vmdump-serve-"
_FULL = 0.01
"""Seconds until a full connection is tried again."""
_TOO_LARGE = {"error": {"class": "GenericError", "desc": "JSON token size limit exceeded"}}
_TAKERS = ("getfd", "add-fd")
"""The commands that take a descriptor of those that came last; QEMU has no others."""

_Reply = dict[str, Any]


class _Written(Message):
    """A message as it is sent; the library would write it once more, and has less patience with nesting."""

    def __init__(self, data: bytes) -> None:
        super().__init__(eager=False)
        self._bytes = data

    def __bytes__(self) -> bytes:
        return self._bytes


class _Client(QMPClient):
    """Hands on what belongs to the clients of `serve`."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__("vmdump-serve")
        self.readbuflen = _MAX_ANSWER
        # It keeps all events for whoever may ask for them, for ever.
        self.events.event_filter = lambda event: False
        self._upstream = upstream

    async def _on_message(self, msg: Message) -> None:
        if self._upstream.take(msg):
            return
        await super()._on_message(msg)

    # The library writes every message nicely for its log, which nobody reads here.
    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def post(self, data: bytes) -> None:
        """Send a message when those before it are sent."""
        self._outgoing.put_nowait(_Written(data))

    async def post_with_descriptors(self, data: bytes, connection: socket.socket, fds: Sequence[int]) -> None:
        """Send a message whose first byte brings descriptors."""
        await self._outgoing.join()
        writer = self._writer
        while writer is not None and not writer.is_closing():
            if writer.transport.get_write_buffer_size() == 0:
                try:
                    connection.sendmsg([data[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])
                except BlockingIOError:
                    pass
                else:
                    writer.write(data[1:])
                    return
            await asyncio.sleep(_FULL)


class Upstream(Monitor):
    """QEMU's QMP connection.

    Everything but the constructor and :meth:`close` is for the monitor's thread.

    Parameters
    ----------
    path : str
        Of QEMU's socket.

    Attributes
    ----------
    on_event : callable
        Called with each event of QEMU's that is not of vmdump's own headers, in QEMU's order.
    resuming : bool
        It is vmdump that lets the guest run now.

    Raises
    ------
    SourceError, QmpError
        As for :class:`vmdump.sources.qemu.monitor.Monitor`.
    """

    def __init__(self, path: str) -> None:
        self.on_event: Callable[[_Reply], object] = lambda event: None
        self._waiting: dict[str, Callable[[_Reply], object]] = {}
        self._asked = 0
        self._own_dumps = 0
        self.resuming = False
        self._kept: list[_Reply] = []
        self._of_thread = threading.local()
        # Made in whatever thread; it belongs to the loop that uses it first.
        self._descriptors = asyncio.Lock()
        super().__init__(path)

    def _make_client(self) -> QMPClient:
        return _Client(self)

    @property
    def greeting(self) -> _Reply:
        """What QEMU greets its clients with."""
        assert self._client.greeting is not None
        told = self._client.greeting.QMP
        return {"QMP": {"version": dict(told.version), "capabilities": list(told.capabilities)}}

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        await self._over.wait()

    def take(self, message: Message) -> bool:
        """Hand an answer on to who waits for it, or note an event; false if the library is to have it."""
        if "event" in message:
            event = dict(message)
            if self._own_dumps:
                self._kept.append(event)
            else:
                # The library's listeners count pauses, and do not wait.
                self.on_event(event)
            return False
        number = message.get("id")
        give = self._waiting.pop(number, None) if isinstance(number, str) else None
        if give is not None:
            reply = dict(message)
            del reply["id"]
            give(reply)
        elif number is None and "error" in message and self._waiting:
            # QEMU did not understand a message, which it should have. It answers in order.
            self._waiting.pop(next(iter(self._waiting)))(dict(message))
            return True
        return give is not None

    async def forward(
        self,
        request: _Reply,
        give: Callable[[_Reply], object] = lambda reply: None,
        fds: Sequence[int] = (),
        named: Mapping[str, int] | None = None,
    ) -> _Reply:
        """Let QEMU do what a client asks.

        Parameters
        ----------
        request : dict
            As it came. Its id is not sent.
        give : callable
            Called with the answer, without an id, before any event that comes behind it.
        fds : sequence of int
            Descriptors that go with it; they stay the caller's.
        named : mapping, optional
            Descriptors by the names that QEMU is to know them by before; they stay the caller's.

        Returns
        -------
        dict
            The answer, without an id.

        Raises
        ------
        QmpError
            QEMU has ended.
        """
        if fds or named or request.get("execute") in _TAKERS:
            # QEMU keeps the descriptors that came last, and gives them to whatever asks first; and its names
            # are those of all clients.
            async with self._descriptors:
                for name, fd in (named or {}).items():
                    words = {"execute": "getfd", "arguments": {"fdname": name}}
                    await self._forward(words, lambda reply: None, (fd,))
                return await self._forward(request, give, fds)
        return await self._forward(request, give, fds)

    async def _forward(self, request: _Reply, give: Callable[[_Reply], object], fds: Sequence[int]) -> _Reply:
        self._asked += 1
        number = f"{_ID}{self._asked}"
        data = write({**request, "id": number})
        if len(data) >= MAX_MESSAGE:
            give(_TOO_LARGE)
            return _TOO_LARGE
        if self._lost.is_set():
            raise QmpError(f"{self.path}: {self._why_lost}")
        answered: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()

        def take(reply: _Reply) -> None:
            give(reply)
            if not answered.done():
                answered.set_result(reply)

        self._waiting[number] = take
        client = self._client
        assert isinstance(client, _Client)
        if fds:
            await client.post_with_descriptors(data, self.connection, fds)
        else:
            client.post(data)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((answered, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        if not answered.done():
            raise QmpError(f"{self.path}: {self._why_lost}")
        return answered.result()

    def give_up_if(self, cancelled: Callable[[], bool]) -> None:
        """Let what this thread asks QEMU raise Cancelled when that returns true: QEMU may hang."""
        self._of_thread.cancelled = cancelled

    def _cancelled(self) -> bool:
        cancelled: Callable[[], bool] | None = getattr(self._of_thread, "cancelled", None)
        return cancelled is not None and cancelled()

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command of vmdump's own."""
        return self.wait(self.ask(command, arguments), cancelled=self._cancelled)

    @contextmanager
    def taking_headers(self) -> Iterator[None]:
        """Keep from the clients what taking headers makes QEMU tell; in any other thread."""
        self.wait(self._begin_own())
        try:
            yield
        finally:
            self.wait(self._end_own(), cancelled=self._cancelled)

    async def _begin_own(self) -> None:
        self._own_dumps += 1

    async def _end_own(self) -> None:
        try:
            # libvirt may have begun the dump: an answer comes behind the events of what was before.
            with suppress(QmpError):
                await self.ask("query-status")
        finally:
            self._own_dumps -= 1
            if not self._own_dumps:
                kept, self._kept = self._kept, []
                for event in _without_own(kept):
                    self.on_event(event)

    async def pass_fd(self, fd: int, name: str) -> None:
        """Give QEMU a descriptor of vmdump's own; no other may come between it and its command."""
        async with self._descriptors:
            await super().pass_fd(fd, name)

    async def ask(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command of vmdump's own."""
        if command == "cont":
            self.resuming = True
            try:
                return await super().ask(command, arguments)
            finally:
                self.resuming = False
        return await super().ask(command, arguments)


def _without_own(events: list[_Reply]) -> list[_Reply]:
    """Give the events that came while QEMU made a dump, without that dump's own.

    QEMU does nothing else meanwhile: the last STOP before DUMP_COMPLETED is the dump's own if a RESUME
    follows. Of a dump that it refused after it had stopped the guest there is no DUMP_COMPLETED.
    """
    names = [event["event"] for event in events]
    own: set[int] = set()
    if "DUMP_COMPLETED" in names:
        end = names.index("DUMP_COMPLETED")
        own.add(end)
        if "RESUME" in names[end:] and "STOP" in names[:end]:
            own |= {names.index("RESUME", end), _last(names[:end], "STOP")}
    elif "RESUME" in names:
        end = _last(names, "RESUME")
        if names[:end][-1:] == ["STOP"]:
            own = {end - 1, end}
    return [event for number, event in enumerate(events) if number not in own]


def _last(names: list[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)
