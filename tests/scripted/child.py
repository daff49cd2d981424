"""A process with memory of every kind, told what to do over its standard input; it can play a QEMU's monitor.

Standard library only: it has to be up in a few milliseconds. A request is a line of JSON, ``[name,
arguments]``, and so is the answer, ``{"return": ...}`` or ``{"errno": ...}``. The monitor runs in a thread of
its own, so that memory can be changed while a client is connected.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
import time
from typing import Any

PAGE = 4096
TICK = 0.125
"""Seconds between two events by the monitor's clock, which knows no other time."""
SLOW = 0.5
"""Seconds."""
EPOCH = 1_700_000_000
_READ, _WRITE = 1, 2
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 1, 2, 0x10, 0x20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def page_of(number: int) -> bytes:
    """The contents of the page with a number, never zero."""
    return (b"%15d\n" % number) * (PAGE // 16)


def _check(result: int | None) -> int:
    if result is None or result in (-1, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def do_map(*, kind: str, size: int, path: str = "", offset: int = 0) -> int:
    """Map memory; its address. A kind is anonymous, zero, memfd, shared or private (the two of a file)."""
    flags, fd = {
        "anonymous": (_PRIVATE | _ANONYMOUS, -1),
        "zero": (_SHARED | _ANONYMOUS, -1),
        "memfd": (_SHARED, 0),
        "shared": (_SHARED, 0),
        "private": (_PRIVATE, 0),
    }[kind]
    if kind == "memfd":
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
    elif fd == 0:
        fd = os.open(path, os.O_RDWR)
    try:
        # With a page that is nothing on either side, it does not become one with its neighbours.
        base = _check(_libc.mmap(None, size + 2 * PAGE, 0, _PRIVATE | _ANONYMOUS, -1, 0))
        return _check(_libc.mmap(base + PAGE, size, _READ | _WRITE, flags | _FIXED, fd, offset))
    finally:
        # The mapping lives on; without a descriptor it has to be found through map_files.
        if fd >= 0 and kind != "memfd":
            os.close(fd)


def do_write(*, address: int, pages: list[int], first: int = 0) -> None:
    """Fill pages behind an address; page n with the contents of number first + n."""
    for page in pages:
        ctypes.memmove(address + page * PAGE, page_of(first + page), PAGE)


def do_put(*, address: int, data: str) -> None:
    """Put bytes, given in hex, at an address."""
    raw = bytes.fromhex(data)
    ctypes.memmove(address, raw, len(raw))


def do_touch(*, address: int, pages: list[int]) -> None:
    """Read a byte of pages: anonymous memory gets the shared zero page."""
    for page in pages:
        ctypes.string_at(address + page * PAGE, 1)


def do_madvise(*, address: int, size: int, advice: int) -> None:
    """Advise the kernel."""
    _check(_libc.madvise(address, size, advice))


def do_munmap(*, address: int, size: int) -> None:
    """Unmap."""
    _check(_libc.munmap(address, size))


DUMPING = "There is a dump in process, please wait."
"""Of QEMU 7.2 and 10.0, to `stop` and `cont`."""


class _Closed(Exception):
    """The monitor has closed the connection."""


class Monitor:
    """QMP as QEMU speaks it, from a table.

    Parameters
    ----------
    path : str
        Of the Unix socket, which is made.
    log : str
        Gets a line of JSON for each connection, command and event.
    elf : str
        File of what dump-guest-memory writes.
    regions : list of (int, int, int)
        Guest-physical address, virtual address, bytes.
    answers : dict
        By command, or by ``command last-argument``: what it returns, or ``{"error": [class, text]}``.
    rules : list of dict
        ``{"command": name or "", "nth": from 1, "do": what}``; no nth means always. What is done:
        ``error``, ``dumping`` (refused, because of a dump), ``close`` (before it is done), ``done-close``
        (after), ``silent`` (not done), ``ignored`` (done, not answered), ``twice`` (answered two times),
        ``resumed`` (somebody lets the guest run just before), ``stolen`` (somebody has stopped it, and the
        client has not heard of it), ``reset`` (somebody resets it just before), ``restopped`` (somebody lets
        it run and stops it again just before), ``failed`` (it stops by itself just before, for an I/O
        error), ``slow`` (half a second later).
    running : bool
        Whether the guest runs.
    endless : bool
        dump-guest-memory writes the file again and again.
    greets : bool
        Say hello.
    """

    def __init__(
        self,
        path: str,
        log: str,
        elf: str,
        regions: list[list[int]],
        answers: dict[str, Any],
        rules: list[dict[str, Any]],
        running: bool,
        endless: bool = False,
        greets: bool = True,
    ) -> None:
        self._log_file = open(log, "a")  # noqa: SIM115 - as long as the process
        with open(elf, "rb") as file:  # here, as QEMU itself reads nothing for a dump
            self._elf = file.read()
        self._regions = regions
        self._answers = answers
        self._rules = rules
        self._seen: dict[str, int] = {}
        self._status = "running" if running else "paused"
        self._endless = endless
        self._greets = greets
        self._events = 0
        self._stamp: dict[str, Any] = {}
        self._fds: dict[str, int] = {}
        self._passed: list[int] = []
        self._connection: socket.socket | None = None
        self._held: bytes | None = None
        self._lock = threading.RLock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def _log(self, **what: object) -> None:
        self._log_file.write(json.dumps(what) + "\n")
        self._log_file.flush()

    def _send(self, message: object) -> None:
        with self._lock, contextlib.suppress(OSError):
            line = json.dumps(message).encode() + b"\r\n"
            if self._held is not None:
                self._held += line
            elif self._connection is not None:
                self._connection.sendall(line)

    def _flush(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            held, self._held = self._held, None
            if held and self._connection is not None:
                self._connection.sendall(held)

    def event(self, name: str) -> None:
        """Send an event, a tick later than the one before."""
        with self._lock:
            stamp = EPOCH + self._events * TICK
            self._events += 1
            # As seen of QEMU 7.2: a reset takes a guest that does not run to prelaunch, whatever its state
            # was; `cont` starts it from there. savevm and loadvm of a paused guest change nothing here.
            if name == "STOP":
                self._status = "paused"
            elif name == "RESUME":
                self._status = "running"
            elif name == "RESET" and self._status != "running":
                self._status = "prelaunch"
            self._log(event=name)
            whole = int(stamp)
            time = {"seconds": whole, "microseconds": round((stamp - whole) * 1_000_000)}
            self._send({"event": name, "timestamp": time, **self._stamp})

    def stamp(self, stamp: object) -> None:
        """Give all events this in the place of their time."""
        self._stamp = {"timestamp": stamp}

    def enter(self, status: str) -> None:
        """Be in another state from now on, without an event."""
        self._status = status

    def load(self, elf: str) -> None:
        """Be another guest from now on: somebody has loaded a snapshot, of which no event tells."""
        with open(elf, "rb") as file:
            self._elf = file.read()

    def answer(self, command: str, answer: object) -> None:
        """Answer a command differently from now on."""
        self._answers[command] = answer

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with self._lock:
                self._connection = connection
            self._log(connected=True)
            if self._greets:
                version = {"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}
                self._send({"QMP": {"version": version, "capabilities": ["oob"]}})
            with contextlib.suppress(_Closed, OSError):
                self._talk(connection)
            self._flush()
            self._log(disconnected=True)
            with self._lock:
                self._connection = None
            connection.close()

    def _talk(self, connection: socket.socket) -> None:
        pending = b""
        while True:
            space = socket.CMSG_SPACE(4 * 8)
            data, ancillary, _, _ = connection.recvmsg(65536, space)
            if not data:
                return
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                    self._passed += numbers
                    for number in numbers:
                        os.set_blocking(number, True)  # QEMU does that
            pending += data
            # QEMU's lexer starts anew at a control character, and complains; what came before it counts.
            while b"\x1b" in pending:
                before, _, pending = pending.partition(b"\x1b")
                lost = self._obey_all(before)
                # The complaint and what follows go out together, so that one reader gets both.
                self._held = self._held or b""
                self._log(control=True, lost=lost.decode(errors="replace"))
                self._send({"error": {"class": "GenericError", "desc": "JSON parse error, stray '\\u001b'"}})
            pending = self._obey_all(pending)
            self._flush()

    def _obey_all(self, data: bytes) -> bytes:
        """Obey the commands in what has come, between which nothing has to stand; what is left of it."""
        while text := data.decode().lstrip():
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            data = text[end:].encode()
            self._obey(request)
        return data

    def _obey(self, request: dict[str, Any]) -> None:
        command = request["execute"]
        self._log(command=command, arguments=request.get("arguments", {}), id=request.get("id"))
        deed = self._deed(command)
        if deed == "close":
            raise _Closed
        if deed == "silent":
            return
        if deed == "stolen":
            self._status = "paused"
        if deed == "failed":
            self.event("STOP")
            self._status = "io-error"
        if deed == "slow":
            time.sleep(SLOW)
        for event in {"resumed": ["RESUME"], "reset": ["RESET"], "restopped": ["RESUME", "STOP"]}.get(
            deed, ()
        ):
            self.event(event)
        if deed == "error":
            answer: dict[str, Any] = {"error": {"class": "GenericError", "desc": "injected"}}
        elif deed == "dumping":
            answer = {"error": {"class": "GenericError", "desc": DUMPING}}
        else:
            answer = self._answer(command, request.get("arguments", {}))
        if deed == "done-close":
            raise _Closed
        for _ in range({"ignored": 0, "twice": 2}.get(deed, 1)):
            self._send({**answer, "id": request["id"]} if "id" in request else answer)

    def _deed(self, command: str) -> str:
        for name in (command, ""):
            self._seen[name] = self._seen.get(name, 0) + 1
        for rule in self._rules:
            if rule["command"] in (command, "") and rule.get("nth", 0) in (0, self._seen[rule["command"]]):
                return str(rule["do"])
        return ""

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        last = str(list(arguments.values())[-1]) if arguments else ""
        for key in (f"{command} {last}", command):
            if key in self._answers:
                given = self._answers[key]
                if isinstance(given, dict) and "error" in given:
                    return {"error": {"class": given["error"][0], "desc": given["error"][1]}}
                return {"return": given}
        method = getattr(self, "_do_" + command.replace("-", "_"), None)
        if method is None:
            text = f"The command {command} has not been found"
            return {"error": {"class": "CommandNotFound", "desc": text}}
        try:
            return {"return": method(**{name.replace("-", "_"): value for name, value in arguments.items()})}
        except OSError as error:
            return {"error": {"class": "GenericError", "desc": str(error)}}

    def _do_qmp_capabilities(self, **_: object) -> dict[str, Any]:
        return {}

    def _do_query_status(self) -> dict[str, Any]:
        return {"running": self._status == "running", "status": self._status}

    def _do_query_target(self) -> dict[str, Any]:
        return {"arch": "x86_64"}

    def _do_query_migrate(self) -> dict[str, Any]:
        return {}

    def _do_query_dump(self) -> dict[str, Any]:
        return {"status": "none", "completed": 0, "total": 0}

    def _do_qom_get(self, *, path: str, property: str) -> str:
        return ""

    def _do_stop(self) -> dict[str, Any]:
        if self._status == "running":
            self.event("STOP")
        return {}

    def _do_cont(self) -> dict[str, Any]:
        if self._status != "running":
            self.event("RESUME")
        return {}

    def _do_system_reset(self) -> dict[str, Any]:
        self.event("RESET")
        return {}

    def _do_getfd(self, *, fdname: str) -> dict[str, Any]:
        if not self._passed:
            raise OSError("No file descriptor supplied via SCM_RIGHTS")
        self._do_closefd(fdname=fdname)
        self._fds[fdname] = self._passed.pop()
        return {}

    def _do_closefd(self, *, fdname: str) -> dict[str, Any]:
        if fdname in self._fds:
            os.close(self._fds.pop(fdname))
        return {}

    def _do_dump_guest_memory(self, *, paging: bool, protocol: str) -> dict[str, Any]:
        fd = self._fds.pop(protocol.removeprefix("fd:"))
        ran = self._status == "running"
        try:
            if ran:
                self.event("STOP")
            while True:
                left = memoryview(self._elf)
                while left:
                    left = left[os.write(fd, left) :]
                if not self._endless:
                    return {}
        except BrokenPipeError:
            raise OSError("dump: failed to save memory: Broken pipe") from None
        finally:
            os.close(fd)
            if ran:
                self.event("RESUME")

    def _do_human_monitor_command(self, *, command_line: str) -> str:
        name, _, word = command_line.partition(" ")
        if name != "gpa2hva":
            return f"unknown command: '{name}'\r\n"
        wanted = int(word, 16)
        for start, address, size in self._regions:
            if start <= wanted < start + size:
                place = address + wanted - start
                return f"Host virtual address for {wanted:#x} (pc.ram) is {place:#x}\r\n"
        return f"No memory is mapped at address {wanted:#x}\r\n"


def main() -> None:
    """Answer until the input ends."""
    monitors: list[Monitor] = []

    def do_serve(**options: Any) -> None:
        monitors.append(Monitor(**options))

    def do_event(*, name: str) -> None:
        monitors[-1].event(name)

    def do_stamp(*, stamp: object) -> None:
        monitors[-1].stamp(stamp)

    def do_enter(*, status: str) -> None:
        monitors[-1].enter(status)

    def do_load(*, elf: str) -> None:
        monitors[-1].load(elf)

    def do_answer(*, command: str, answer: object) -> None:
        monitors[-1].answer(command, answer)

    deeds = {name: value for name, value in {**globals(), **locals()}.items() if name.startswith("do_")}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer: dict[str, Any] = {"return": deeds["do_" + name](**arguments)}
        except OSError as error:
            answer = {"errno": error.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
