"""A QMP client of a socket and a JSON decoder: what it sends and gets is what is on the wire."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Message = dict[str, Any]
PATIENCE = 60
IN_PROCESS = "There is a dump in process, please wait."


class Client:
    """One connection. `seen` is every message after the greeting, in order.

    With negotiate=False it is left in the state in which only ``qmp_capabilities`` is allowed.
    """

    def __init__(self, path: Path, *, negotiate: bool = True, enable: Sequence[str] = ()) -> None:
        self.seen: list[Message] = []
        self.raw = b""
        self.closed = False
        self._numbers = itertools.count(1)
        self._pending = b""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))
            self.socket.settimeout(PATIENCE)
            self.greeting = self._receive()
            if negotiate:
                asked = {"enable": list(enable)} if enable else None
                assert self.call("qmp_capabilities", asked)["return"] == {}
                self.seen.clear()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _receive(self) -> Message:
        while b"\n" not in self._pending:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(f"the monitor has hung up; unread: {self._pending!r}")
            self.raw += data
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def read(self) -> Message:
        """The next message."""
        message = self._receive()
        self.seen.append(message)
        return message

    def read_to_end(self) -> None:
        """Read until the other side hangs up."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self.read()

    def send(self, data: bytes | str, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are, with descriptors beside the first of them."""
        data = data.encode() if isinstance(data, str) else data
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_int_bytes, fds)))] if fds else []
        sent = self.socket.sendmsg([data], ancillary)
        self.socket.sendall(data[sent:])

    def reply(self) -> Message:
        """The next message that is no event."""
        while "event" in (message := self.read()):
            pass
        return message

    def replies(self, count: int) -> list[Message]:
        """So many of them."""
        return [self.reply() for _ in range(count)]

    def start(self, command: str, arguments: Any = None, *, fds: Sequence[int] = (), **members: Any) -> None:
        """Send a command and read nothing; `members` are more of the request's own."""
        request = {"execute": command, **members}
        if arguments is not None:
            request["arguments"] = arguments
        self.send(json.dumps(request), fds)

    def call(
        self, command: str, arguments: Any = None, *, fds: Sequence[int] = (), **members: Any
    ) -> Message:
        """Send a command; its reply, which has the request's id and nothing else beside return or error."""
        members = {"id": f"call-{next(self._numbers)}", **members}
        self.start(command, arguments, fds=fds, **members)
        reply = self.reply()
        assert reply["id"] == members["id"]
        assert len(reply) == 2, reply
        return reply

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns; it must work."""
        reply = self.call(command, {name.replace("_", "-"): value for name, value in arguments.items()})
        assert "return" in reply, (command, reply)
        return reply["return"]

    def human(self, line: str) -> str:
        """What a line of the human monitor says."""
        text: str = self.ask("human-monitor-command", command_line=line)
        return text

    def refused(self, command: str, arguments: Any = None) -> str:
        """The text of the error with which a command must fail, a GenericError."""
        return error_text(self.call(command, arguments))

    def dump(self, protocol: object, **arguments: Any) -> Message:
        """The reply to a dump without paging, if not told otherwise; a path is written to as a file."""
        return self.call("dump-guest-memory", dump_arguments(protocol, **arguments))

    def start_dump(self, protocol: object, **arguments: Any) -> None:
        """Ask for a dump, and do not wait for its reply."""
        self.start("dump-guest-memory", dump_arguments(protocol, **arguments))

    def give(self, name: str, fd: int) -> None:
        """Hand over a descriptor under a name."""
        assert "return" in self.call("getfd", {"fdname": name}, fds=[fd])

    def has(self, name: str) -> bool:
        """Tell whether a descriptor of this name is there; after that it is not."""
        return "return" in self.call("closefd", {"fdname": name})

    def event(self, name: str) -> Message:
        """The last event of this name that was `seen`, or else the next; all are `seen` then."""
        while not (found := self.events(name)):
            self.read()
        return found[-1]

    def order(self) -> list[str]:
        """What has come since the last time that this was asked: events by name, "return", "error"."""
        # An event that somebody caused before this is on its way before the reply.
        self.call("query-name")
        del self.seen[-1]
        kinds = [
            message.get("event") or ("return" if "return" in message else "error") for message in self.seen
        ]
        self.seen.clear()
        return kinds

    def events(self, *names: str) -> list[Message]:
        """The events of these names among what was seen."""
        return [message for message in self.seen if message.get("event") in names]


def _int_bytes(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def dump_arguments(protocol: object, **arguments: Any) -> Message:
    """The arguments of a dump: a path becomes its protocol, paging is false if nobody says otherwise."""
    protocol = f"file:{protocol}" if isinstance(protocol, Path) else protocol
    return {"paging": False, "protocol": protocol, **arguments}


def error_text(reply: Message) -> str:
    """The description of a reply that must be a GenericError."""
    assert reply.keys() - {"id"} == {"error"}, reply
    assert reply["error"].keys() == {"class", "desc"}
    assert reply["error"]["class"] == "GenericError", reply
    text: str = reply["error"]["desc"]
    return text


def wait_for(client: Client, state: str) -> Message:
    """Wait until query-dump tells this status; its answer."""
    begin = time.monotonic()
    while (answer := client.ask("query-dump"))["status"] != state:
        assert time.monotonic() - begin < PATIENCE, answer
        time.sleep(0.01)
    result: Message = answer
    return result
