"""One client's connection: what it asks, in order, and what it is told."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vmdump.errors import QmpError
from vmdump.serve.descriptors import NamedDescriptors
from vmdump.serve.json_stream import JsonStream, Value
from vmdump.serve.json_values import write

__all__ = ["Client", "Descriptors", "Service", "failure"]

_PIECE = 65536
_MAX_DESCRIPTORS = 16
"""At once, as QEMU has it; the kernel closes those beyond."""
_MAX_WAITING = 8
"""Requests that wait for those before them; QEMU's number. What is behind them stays in the socket."""
_MAX_UNREAD = 1 << 20
"""Bytes that wait for the client to read; nothing more of it is done then."""
_MAX_EVENTS = 16 << 20
"""Bytes of events that wait beyond the last answer. A client that never reads is let go then."""

_MEMBERS = {"execute", "arguments", "id"}
_NOT_NEGOTIATED = "Expecting capabilities negotiation with 'qmp_capabilities'"

Reply = dict[str, Any]


def failure(text: str, error_class: str = "GenericError") -> Reply:
    """Give an error as QEMU answers it."""
    return {"error": {"class": error_class, "desc": text}}


class Descriptors:
    """File descriptors that came with one piece of what a client sent."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def take(self) -> int | None:
        """Give the first to the caller, and close the others, as QEMU does; None if there are none left."""
        numbers, self._numbers = self._numbers, []
        for number in numbers[1:]:
            os.close(number)
        return numbers[0] if numbers else None

    def close(self) -> None:
        """Close what nobody took; closing twice does nothing."""
        number = self.take()
        if number is not None:
            os.close(number)


class Service(Protocol):
    """What a client's requests go to."""

    @property
    def greeting(self) -> Reply:
        """QEMU's."""

    async def execute(
        self,
        request: Reply,
        names: NamedDescriptors,
        descriptors: Descriptors,
        give: Callable[[Reply], object],
    ) -> None:
        """Do what is asked, and call `give` with the answer; QmpError if QEMU has ended."""

    async def ask_qemu(self, request: Reply, give: Callable[[Reply], object]) -> Reply:
        """Let QEMU answer, whatever it is; QmpError if QEMU has ended."""

    def left(self, client: Client) -> None:
        """Note that a client is gone."""


@dataclass(frozen=True)
class _Item:
    value: Value
    descriptors: Descriptors


class Client:
    """A client, from its greeting to its end.

    Parameters
    ----------
    connection : socket
        Becomes the client's own.
    service : Service
        Where its requests go.
    """

    def __init__(self, connection: socket.socket, service: Service) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._stream = JsonStream()
        self._items: deque[_Item] = deque()
        self._descriptors = Descriptors([])
        self._names = NamedDescriptors()
        self._unsent = bytearray()
        self._last_answer = 0
        self._changed = asyncio.Event()
        self._reads = self._writes = self._ended = self._closed = False
        self.negotiated = False
        self._out_of_band = False
        self._urgent: set[asyncio.Task[None]] = set()
        self._send(service.greeting)
        self._task = asyncio.create_task(self._work())
        self._update()

    # What comes.

    def _update(self) -> None:
        """Read on, or leave it in the socket, by what is waiting already."""
        most = _MAX_WAITING if self._out_of_band else 1
        reads = (
            not (self._ended or self._closed)
            and len(self._items) < most
            and len(self._unsent) <= _MAX_UNREAD
            and len(self._urgent) < _MAX_WAITING
        )
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._loop.add_reader(self._connection, self._read)
            else:
                self._loop.remove_reader(self._connection)
        self._changed.set()

    def _read(self) -> None:
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._connection.recvmsg(_PIECE, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        numbers = array.array("i")
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
        if numbers:
            for number in numbers:
                with contextlib.suppress(OSError):
                    os.set_blocking(number, True)  # as QEMU does: who writes a dump waits for its reader
            self._forget_descriptors()
            self._descriptors = Descriptors(list(numbers))
        if not data:
            self._end()
            return
        for value in self._stream.feed(data):
            if self._is_urgent(value.value):
                task = asyncio.create_task(self._do_out_of_band(value.value))
                self._urgent.add(task)
                task.add_done_callback(self._urgent_done)
            else:
                self._items.append(_Item(value, self._descriptors))
        self._update()

    def _forget_descriptors(self) -> None:
        """Close descriptors that are replaced, unless a request that waits may take them."""
        if not any(item.descriptors is self._descriptors for item in self._items):
            self._descriptors.close()

    def _end(self) -> None:
        """Note that nothing more comes. As in QEMU, what has not begun is not done."""
        self._ended = True
        self._drop()
        self._update()

    def _drop(self) -> None:
        for item in self._items:
            item.descriptors.close()
        self._items.clear()

    # What is done.

    def _is_urgent(self, value: object) -> bool:
        return self._out_of_band and isinstance(value, dict) and "exec-oob" in value

    def _urgent_done(self, task: asyncio.Task[None]) -> None:
        self._urgent.discard(task)
        self._update()

    async def _do_out_of_band(self, request: Any) -> None:
        with contextlib.suppress(QmpError):  # the service ends
            await self._service.ask_qemu(request, self._giver(request))

    async def _work(self) -> None:
        """Do one request after another, until the client or QEMU ends."""
        try:
            while True:
                self._changed.clear()
                if self._items and len(self._unsent) <= _MAX_UNREAD:
                    item = self._items.popleft()
                    await self._do(item)
                    if item.descriptors is not self._descriptors and not self._is_wanted(item.descriptors):
                        item.descriptors.close()
                    self._update()
                elif self._closed or (self._ended and not self._unsent):
                    return
                else:
                    await self._changed.wait()
        except QmpError:
            pass  # the service ends
        finally:
            self.close()

    def _is_wanted(self, descriptors: Descriptors) -> bool:
        return any(item.descriptors is descriptors for item in self._items)

    async def _do(self, item: _Item) -> None:
        request = item.value.value
        if item.value.error:
            self.give(failure(item.value.error))
        elif not isinstance(request, dict):
            self.give(failure("QMP input must be a JSON object"))
        else:
            give = self._giver(request)
            if "exec-oob" in request and not self._out_of_band:
                give(failure("QMP input member 'exec-oob' is unexpected"))
            elif not _is_well_formed(request):
                await self._service.ask_qemu(request, give)
            elif self.negotiated:
                await self._service.execute(request, self._names, item.descriptors, give)
            elif request["execute"] == "qmp_capabilities":
                await self._negotiate(request, give)
            else:
                give(failure(_NOT_NEGOTIATED, "CommandNotFound"))

    async def _negotiate(self, request: Reply, give: Callable[[Reply], object]) -> None:
        # QEMU looks at the arguments first, and then says that it has been asked already.
        reply = await self._service.ask_qemu(request, lambda reply: None)
        if "error" in reply and reply["error"].get("class") != "CommandNotFound":
            give(reply)
            return
        wanted = (request.get("arguments") or {}).get("enable") or []
        missing = [name for name in wanted if name not in self._service.greeting["QMP"]["capabilities"]]
        if missing:
            give(failure(f"Capability {', '.join(missing)} not available"))
            return
        self._out_of_band = "oob" in wanted
        self.negotiated = True
        give({"return": {}})

    # What it is told.

    def _giver(self, request: Reply) -> Callable[[Reply], None]:
        """Give what sends the answer to a request, with its id."""
        if "id" not in request:
            return self.give

        def give(reply: Reply) -> None:
            number = request["id"]
            self.give({"id": number, **reply} if "error" in reply else {**reply, "id": number})

        return give

    def give(self, reply: Reply) -> None:
        """Send an answer."""
        self._last_answer = self._send(reply)

    def tell(self, event: Reply) -> None:
        """Send an event, if the client has negotiated. One that does not read is let go some time."""
        if self.negotiated and not self._closed:
            self._send(event)
            if len(self._unsent) > _MAX_EVENTS + self._last_answer:
                self.close()

    def _send(self, message: Reply) -> int:
        if self._closed:
            return 0
        data = write(message) + b"\r\n"
        self._unsent += data
        if not self._writes:
            self._flush()
        return len(data)

    def _flush(self) -> None:
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    count = self._connection.send(view[: 1 << 20])
                del self._unsent[:count]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._unsent.clear()
            self._end()
        writes = bool(self._unsent)
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._loop.add_writer(self._connection, self._write_more)
            else:
                self._loop.remove_writer(self._connection)

    def _write_more(self) -> None:
        self._flush()
        self._update()

    # The end.

    async def finish(self, seconds: float) -> None:
        """Send what is left, for a moment, and close."""
        deadline = self._loop.time() + seconds
        while self._unsent and not self._closed and (left := deadline - self._loop.time()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        self.close()

    def close(self) -> None:
        """End the connection; closing twice does nothing. A command that QEMU has goes on there."""
        if self._closed:
            return
        self._closed = True
        self._unsent.clear()
        self._drop()
        if self._writes:
            self._loop.remove_writer(self._connection)
        self._update()
        self._descriptors.close()
        self._names.close()
        # Who has inherited the connection does not keep it alive.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._service.left(self)


def _is_well_formed(request: Reply) -> bool:
    """Tell whether QEMU would look at the command; if not, it is to say why."""
    return (
        request.keys() <= _MEMBERS
        and isinstance(request.get("execute"), str)
        and isinstance(request.get("arguments", {}), dict)
    )
