"""What becomes of a client's command: most go to QEMU, dumps are made here."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from typing import Any

from vmdump.codecs.registry import default_engine
from vmdump.errors import EngineUnavailable, QmpError
from vmdump.formats.names import FORMATS
from vmdump.serve.arguments import (
    DumpArguments,
    is_refused,
    left_to_qemu,
    may_be_taken,
    parse_line,
    parse_request,
)
from vmdump.serve.client import Client, Descriptors, failure
from vmdump.serve.descriptors import NamedDescriptors
from vmdump.serve.dumps import IN_PROCESS, NO_MEMORY, Dump, LeftToQemu, Refused
from vmdump.serve.upstream import Upstream
from vmdump.sources.qemu.reroute import find_harm

__all__ = ["Dispatcher"]

Reply = dict[str, Any]
Give = Callable[[Reply], object]

_QUERY = {"execute": "query-dump"}
_NO_MIGRATION = "Live migration disabled: dump-guest-memory in progress"
_INFO_DUMP = re.compile(r"\s*info\s+dump\s*", re.ASCII)
_DUMP_LINE = re.compile(r"\s*dump-guest-memory(\s|/|$)", re.ASCII)
"""To QEMU a command's name ends at a slash as well."""
_DURING_DUMP = {
    "stop": IN_PROCESS,
    "cont": IN_PROCESS,
    "migrate": _NO_MIGRATION,
    "snapshot-save": _NO_MIGRATION,
}
"""What QEMU refuses to do during a dump, in QMP."""
_NEEDED_DURING_DUMP = {"migrate": {"uri"}, "snapshot-save": {"job-id", "tag", "vmstate", "devices"}}
"""Without these QEMU complains of the arguments first."""
_LINES_DURING_DUMP = (
    (re.compile(r"\s*(stop|s)\s*", re.ASCII), ""),
    (re.compile(r"\s*(cont|c)\s*", re.ASCII), f"Error: {IN_PROCESS}\r\n"),
    (re.compile(r"\s*(migrate|savevm)\s.*", re.ASCII | re.DOTALL), f"Error: {_NO_MIGRATION}\r\n"),
)
"""The same in its human monitor, where `stop` says nothing."""


class Dispatcher:
    """Does what the clients ask. Made and used in the monitor's thread.

    Parameters
    ----------
    upstream : Upstream
        QEMU.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._dump: Dump | None = None
        self._state: Reply | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.clients: set[Client] = set()
        self.saw_shutdown = False
        self._closed = False
        upstream.on_event = self._note

    @property
    def greeting(self) -> Reply:
        """QEMU's."""
        return self._upstream.greeting

    @property
    def _dumping(self) -> bool:
        return self._dump is not None and self._dump.status == "active"

    def left(self, client: Client) -> None:
        """Note that a client is gone."""
        self.clients.discard(client)

    def _note(self, event: Reply) -> None:
        """Hand an event of QEMU's on."""
        if self._dump is not None and self._dumping and self._dump.takes(event):
            return
        if event["event"] == "SHUTDOWN":
            self.saw_shutdown = True
        elif event["event"] == "DUMP_COMPLETED":
            # Of a dump that QEMU has made, whoever asked for it.
            self._state = event.get("data", {}).get("result", self._state)
        self._tell(event)

    def _tell(self, event: Reply) -> None:
        for client in list(self.clients):
            client.tell(event)

    async def ask_qemu(self, request: Reply, give: Give) -> Reply:
        """Let QEMU answer; QmpError if it has ended."""
        return await self._upstream.forward(request, give)

    async def execute(
        self, request: Reply, names: NamedDescriptors, descriptors: Descriptors, give: Give
    ) -> None:
        """Do what is asked, and give the answer; QmpError if QEMU has ended."""
        command, arguments = request["execute"], request.get("arguments", {})
        if command == "dump-guest-memory":
            wanted = parse_request(arguments)
            if wanted is not None:
                await self._make(wanted, request, names, give, give)
            elif may_be_taken(arguments):
                await self._leave_dump(request, names, give, give)
            else:
                await self._pass_on(request, names, give)
        elif command == "human-monitor-command":
            await self._execute_line(request, arguments, names, give)
        elif command == "query-dump" and not arguments:
            give(await self._query_dump())
        elif command == "query-dump-guest-memory-capability":
            await self._upstream.forward(request, lambda reply: give(_with_own_formats(reply)))
        elif command == "query-migrate" and self._dumping:
            await self._upstream.forward(request, lambda reply: give(_blocked(reply)))
        elif command == "getfd":
            await self._keep(request, names, descriptors, give)
        elif command == "closefd" and _closes(arguments, names):
            give({"return": {}})
        elif self._dumping and self._is_refused(command, arguments):
            give(failure(_DURING_DUMP[command]))
        else:
            fd = descriptors.take() if command == "add-fd" else None
            await self._pass_on(request, names, give, fd)

    async def _pass_on(
        self, request: Reply, names: NamedDescriptors, give: Give, fd: int | None = None
    ) -> None:
        """Let QEMU do it, with the descriptor that came with it, and those that it names."""
        named = names.take_named(request.get("arguments"))
        fds = () if fd is None else (fd,)
        try:
            await self._upstream.forward(request, give, fds, named)
        finally:
            for number in (*fds, *named.values()):
                os.close(number)

    async def _keep(
        self, request: Reply, names: NamedDescriptors, descriptors: Descriptors, give: Give
    ) -> None:
        """Keep a descriptor under its name, or let QEMU say what is wrong."""
        arguments = request.get("arguments", {})
        fd, name = descriptors.take(), arguments.get("fdname")
        # QEMU's names do not begin with a digit.
        right = arguments.keys() == {"fdname"} and isinstance(name, str) and not name[:1].isdecimal()
        if fd is None or not right:
            await self._pass_on(request, names, give, fd)
            return
        assert isinstance(name, str)
        names.put(name, fd)
        give({"return": {}})

    @staticmethod
    def _is_refused(command: str, arguments: Reply) -> bool:
        """Tell whether QEMU does not do it during a dump; false if it complains of the arguments first."""
        if command not in _DURING_DUMP:
            return False
        needed = _NEEDED_DURING_DUMP.get(command, set())
        return arguments.keys() >= needed and (bool(needed) or not arguments)

    async def _execute_line(
        self, request: Reply, arguments: Reply, names: NamedDescriptors, give: Give
    ) -> None:
        """Execute a line of QEMU's human monitor."""
        line = arguments.get("command-line")
        if arguments.keys() == {"command-line"} and isinstance(line, str):
            if _INFO_DUMP.fullmatch(line):
                reply = await self._query_dump()
                give({"return": _shown(reply["return"])} if "return" in reply else _as_text(reply))
                return
            wanted = parse_line(line)
            if wanted is not None:
                await self._make(wanted, request, names, give, lambda reply: give(_as_text(reply)))
                return
            if self._dumping:
                for pattern, text in _LINES_DURING_DUMP:
                    if pattern.fullmatch(line):
                        give({"return": text})
                        return
        if isinstance(line, str) and _DUMP_LINE.match(line):
            await self._leave_dump(request, names, give, lambda reply: give(_as_text(reply)))
            return
        await self._pass_on(request, names, give)

    async def _query_dump(self) -> Reply:
        """Answer `query-dump`, of the last dump, whoever made it.

        Once vmdump has taken headers, QEMU tells of those.
        """
        if self._dump is not None and self._dumping:
            return {"return": self._dump.state}
        reply = await self._upstream.forward(_QUERY)
        told = reply.get("return")
        if self._state is None or (isinstance(told, dict) and told.get("status") == "active"):
            return reply
        return {"return": self._state}

    async def _leave_dump(
        self, request: Reply, names: NamedDescriptors, give: Give, give_own: Give, *, refused: bool = False
    ) -> None:
        """Let QEMU make a dump, unless its end would harm somebody; or let it refuse one."""
        harm = "" if refused else await asyncio.to_thread(self._find_harm)
        before = await self._upstream.forward(_QUERY)
        if self._dumping:
            give_own(failure(IN_PROCESS))
            return
        if harm:
            give_own(failure(f"dump: QEMU would have to make this one, and must not: {harm}"))
            return
        await self._pass_on(request, names, give)
        after = await self._upstream.forward(_QUERY)
        # What it refuses at once leaves no trace there.
        if after != before and self._state is not None:
            self._state = after.get("return", self._state)

    def _find_harm(self) -> str:
        # The interpreter waits for this thread before it exits.
        self._upstream.give_up_if(lambda: self._closed)
        return find_harm(self._upstream)

    async def _make(
        self, wanted: DumpArguments, request: Reply, names: NamedDescriptors, give: Give, give_own: Give
    ) -> None:
        """Make a dump, or have QEMU make or refuse it: `give` gets QEMU's answer, `give_own` ours."""
        if self._dumping:
            give_own(failure(IN_PROCESS))
            return
        for_qemu, refused = left_to_qemu(wanted), is_refused(wanted)
        name = wanted.descriptor
        fd = names.take(name) if for_qemu is None and name is not None else None
        if for_qemu is not None and for_qemu.protocol != wanted.protocol:
            await self._leave_dump(_as_request(for_qemu), names, give_own, give_own, refused=refused)
            return
        if for_qemu is not None or (name is not None and fd is None):
            request = _with_format(request, for_qemu or wanted)
            await self._leave_dump(request, names, give, give_own, refused=refused)
            return
        making = _Making(Dump(self._upstream, wanted, fd, self._tell), request, names, give, give_own)
        # From here on, as vmdump takes headers, QEMU tells of those.
        self._dump = making.dump
        if self._state is None:
            try:
                self._state = (await self._upstream.forward(_QUERY)).get("return")
            except QmpError:
                making.dump.give_up()
                raise
        if not wanted.detach:
            await self._finish(making)
            return
        task = asyncio.create_task(self._finish(making))
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        await making.dump.begun()
        if making.dump.under_way:
            making.answer({"return": {}})
        else:
            await asyncio.shield(task)

    async def _finish(self, making: _Making) -> None:
        """See a dump through to its end, and answer unless that was done."""
        dump = making.dump
        try:
            await dump.make()
        except LeftToQemu:
            fd, name = dump.take_output(), dump.arguments.descriptor
            if fd is not None and name is not None:
                making.names.put(name, fd)
            await self._leave_dump(making.request, making.names, making.give, making.give_own)
        except Refused as error:
            if dump.under_way:
                self._state = dump.state
            elif str(error) == NO_MEMORY:
                self._state = {**dump.state, "status": "failed"}
            making.answer(failure(str(error)))
        else:
            self._state = dump.state
            making.answer({"return": {}})

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # QEMU has ended: who waits for anything is told

    async def stop(self) -> None:
        """End the dump, and wait until the guest runs."""
        if self._dump is not None and self._dumping:
            await self._dump.end("vmdump serve was ended")

    def join(self, seconds: float) -> None:
        """Wait for the end of a dump, when the monitor's thread has ended."""
        if self._dump is not None:
            self._dump.join(seconds)

    async def ended(self, seconds: float) -> None:
        """Note that QEMU has ended: let clients read what is left for them."""
        if self._dump is not None and self._dumping:
            await self._dump.end("QEMU has ended")
        await asyncio.gather(*(client.finish(seconds) for client in list(self.clients)))

    def close(self) -> None:
        """Close all clients."""
        self._closed = True
        for client in list(self.clients):
            client.close()


class _Making:
    """A dump that is being made, and who waits for the answer."""

    def __init__(
        self, dump: Dump, request: Reply, names: NamedDescriptors, give: Give, give_own: Give
    ) -> None:
        self.dump = dump
        self.request = request
        self.names = names
        self.give = give
        self.give_own = give_own
        self._answered = False

    def answer(self, reply: Reply) -> None:
        """Answer, once."""
        if not self._answered:
            self._answered = True
            self.give_own(reply)


def _with_format(request: Reply, wanted: DumpArguments) -> Reply:
    """Give a QMP request with a format that QEMU knows; a line stays as it is."""
    arguments = request["arguments"]
    if arguments.get("format", wanted.format) == wanted.format:
        return request
    return {**request, "arguments": {**arguments, "format": wanted.format}}


def _as_request(wanted: DumpArguments) -> Reply:
    arguments = {name: value for name, value in vars(wanted).items() if value is not None}
    return {"execute": "dump-guest-memory", "arguments": arguments}


def _closes(arguments: Reply, names: NamedDescriptors) -> bool:
    """Close a descriptor that is kept here; false if there is none of the name."""
    name = arguments.get("fdname")
    return arguments.keys() == {"fdname"} and isinstance(name, str) and names.forget(name)


def _as_text(reply: Reply) -> Reply:
    """Make the human monitor's answer of QMP's."""
    error = reply.get("error")
    return {"return": f"Error: {error['desc']}\r\n" if error else ""}


def _shown(state: Reply) -> str:
    text = f"Status: {state['status']}\r\n"
    if state["status"] == "active":
        share = state["completed"] / state["total"] if state["total"] else 0.0
        text += f"Finished: {100 * share:.2f} %\r\n"
    return text


def _with_own_formats(reply: Reply) -> Reply:
    """Add what vmdump writes to QEMU's list of formats."""
    told = reply.get("return")
    if not isinstance(told, dict) or not isinstance(told.get("formats"), list):
        return reply
    own = [known.name for known in FORMATS if known.codec is None or _is_available(known.codec)]
    others = [name for name in told["formats"] if name not in own]
    return {"return": {**told, "formats": own + others}}


def _blocked(reply: Reply) -> Reply:
    """Add to what QEMU says of migrating that it is not done now."""
    told = reply.get("return")
    if not isinstance(told, dict):
        return reply
    return {"return": {**told, "blocked-reasons": [*told.get("blocked-reasons", []), _NO_MIGRATION]}}


def _is_available(codec: str) -> bool:
    try:
        default_engine(codec)
    except EngineUnavailable:
        return False
    return True
