"""QEMU's monitor: QMP over a Unix socket, for code that is not asynchronous.

The client is QEMU's own, qemu.qmp. It runs in a thread of its own: see `command_thread.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from vmdump.errors import QmpError, SourceError
from vmdump.interrupts import Deferred
from vmdump.sources.qemu.answers import check_answer, event_seconds
from vmdump.sources.qemu.command_thread import CommandThread
from vmdump.sources.qemu.pauses import Pauses

__all__ = ["Monitor"]

# Its log is for its developers; what goes wrong is raised.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

_log = logging.getLogger("vmdump")
_GREETING_WAIT = 5.0
_TOLD_AFTER = 0.5
_CLOSE_WAIT = 1.0
"""Seconds for what is still to be sent; no answer is waited for."""
_ANSWER_WAIT = 120.0
"""Seconds: `stop` drains and syncs the guest's disks first."""
_POLL = 0.1
_MAX_TEXT = 500
"""Characters of QEMU's that go into an error."""
_UCRED = struct.Struct("3i")
_Result = TypeVar("_Result")


class _PauseListener(EventListener):
    """Has a guest's pauses counted."""

    def __init__(self, pauses: Pauses) -> None:
        super().__init__(Pauses.EVENTS)
        self._pauses = pauses

    async def put(self, event: Message) -> None:
        """Count an event, in the order in which QEMU sent them."""
        if isinstance(event["event"], str) and self.accept(event):
            self._pauses.count(event["event"], event_seconds(event))


class Monitor(CommandThread):
    """A QMP connection.

    Parameters
    ----------
    path : str
        Of the Unix socket.

    Attributes
    ----------
    path : str
        As given.
    pid : int
        The process at the other end, 0 if it is in a namespace that this process cannot see.
    connection : socket
        The connection itself.
    pauses : Pauses
        When the guest was paused since then, by QEMU's clock.

    Raises
    ------
    SourceError
        There is no such socket, or nobody listens.
    QmpError
        What listens does not speak QMP, or serves another client.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.connection = _connect(path)
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid: int = _UCRED.unpack(credentials)[0]
        self.pauses = Pauses()
        self._lost = threading.Event()
        self._over = asyncio.Event()
        self._why_lost = "QEMU has ended, or closed the QMP connection"
        self._clients = self.connection
        self._client = self._make_client()
        self._client.register_listener(_PauseListener(self.pauses))
        try:
            with Deferred():
                self._start_loop("vmdump-qmp")
                # The interpreter would complain of tasks that are still waiting for QEMU.
                atexit.register(self.close)
            self._greet()
        except BaseException:
            self._give_up()
            raise

    def _make_client(self) -> QMPClient:
        return QMPClient("vmdump")

    def _give_up(self) -> None:
        with Deferred():
            atexit.unregister(self.close)
            thread: threading.Thread | None = getattr(self, "_thread", None)
            if thread is not None and thread.is_alive():
                self.stop()
            self.connection.close()

    def _greet(self) -> None:
        self._demand_qmp()
        # asyncio closes the socket that it is given; the guardian shares this one.
        self._clients = self.connection.dup()
        try:
            self.wait(asyncio.wait_for(self._client.connect(self._clients), _GREETING_WAIT))
        except TimeoutError:
            raise QmpError(self._silence) from None
        except ConnectError as error:
            raise QmpError(f"{self.path}: no QMP server answers: {_one_line(error.exc)}") from error
        self.begin(self._notice_end())

    def _demand_qmp(self) -> None:
        """Look at what the server says first, and leave it to be read: a monitor for people says its name."""
        waiting = select.poll()
        waiting.register(self.connection, select.POLLIN)
        if not waiting.poll(_TOLD_AFTER * 1000):
            _log.info(
                "%s: no greeting yet: another client may hold this socket; waiting for %.0f s at most",
                self.path,
                _GREETING_WAIT,
            )
            if not waiting.poll(max(_GREETING_WAIT - _TOLD_AFTER, 0) * 1000):
                raise QmpError(self._silence)
        try:
            said = self.connection.recv(_MAX_TEXT, socket.MSG_PEEK)
        except OSError:
            return  # the client meets it again, and says so
        if said.startswith(b"QEMU ") and b" monitor" in said:
            raise QmpError(
                f"{self.path}: this is QEMU's monitor for people (HMP), and vmdump needs QMP; start QEMU "
                "with -qmp unix:PATH,server,nowait, or type 'dump-guest-memory FILE' there: vmdump reads it"
            )

    @property
    def _silence(self) -> str:
        if os.path.basename(self.path) in ("libvirt-sock", "virtqemud-sock"):
            return (
                f"{self.path}: this is the socket of libvirt's daemon; its guests are dumped as libvirt:NAME"
            )
        return (
            f"{self.path}: no greeting within {_GREETING_WAIT:.0f} s; QMP serves one client at a time, "
            "and another may hold this one (libvirt never gives its own away: leave it alone, and dump "
            "libvirt:NAME); give QEMU one more, -qmp unix:PATH,server,nowait"
        )

    async def _notice_end(self) -> None:
        while await self._client.runstate_changed() is Runstate.RUNNING:
            pass
        self._lost.set()
        try:
            await self._client.disconnect()
        except (EOFError, OSError):
            pass  # QEMU's doing
        except Exception as error:
            self._why_lost = f"what comes over the connection is not QMP ({_one_line(error)})"
        finally:
            self._over.set()

    @property
    def version(self) -> str:
        """QEMU's, by its greeting: ``7.2.22``; empty where that does not tell."""
        told = self._client.greeting and self._client.greeting.QMP.version.get("qemu")
        numbers = [told.get(name) for name in ("major", "minor", "micro")] if isinstance(told, dict) else []
        return ".".join(map(str, numbers)) if all(type(number) is int for number in numbers) else ""

    def demand_alive(self) -> None:
        """Check that QEMU is still there.

        Raises
        ------
        QmpError
            The connection has ended.
        SourceError
            It was closed.
        """
        self._demand_open()
        if self._lost.is_set():
            raise QmpError(f"{self.path}: {self._why_lost}")

    async def ask(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a QMP command; in the monitor's thread.

        Raises
        ------
        QmpError
            QEMU answers with an error, or not any more.
        """
        try:
            async with asyncio.timeout(_ANSWER_WAIT):
                answer = await self._client.execute(command, arguments or {})
        except TimeoutError:
            raise QmpError(
                f"{self.path}: no answer to {command} within {_ANSWER_WAIT:.0f} s", command=command
            ) from None
        except ExecuteError as error:
            raise QmpError(
                f"{self.path}: {command}: {_one_line(error)}", command=command, error_class=error.error_class
            ) from error
        except QMPError as error:
            self._lost.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _CLOSE_WAIT)
            raise QmpError(f"{self.path}: {self._why_lost}, during {command}", command=command) from error
        return check_answer(self.path, command, answer)

    async def pass_fd(self, fd: int, name: str) -> None:
        """Give QEMU a copy of a file descriptor under a name; in the monitor's thread."""
        try:
            self._client.send_fd_scm(fd)
        except (OSError, QMPError) as error:
            raise QmpError(f"{self.path}: cannot pass a file descriptor: {error}", command="getfd") from error
        await self.ask("getfd", {"fdname": name})

    def stop(self) -> None:
        """Read and write no more, for good; the connection stays open. Doing it twice does nothing.

        Signals have to wait meanwhile: somebody else may read the connection when this has returned.
        """
        if self._loop.is_closed() or os.getpid() != self._owner:
            return

        async def disconnect() -> None:
            async with asyncio.timeout(_CLOSE_WAIT):
                if self._client.runstate in (Runstate.IDLE, Runstate.CONNECTING):
                    # A client that connects closes what it has opened when that is cancelled, and only then.
                    await self._cancel_others()
                else:
                    await self._client.disconnect()

        with Deferred():
            try:
                # It had ended before, or the client misses the answers to what was interrupted.
                with contextlib.suppress(Exception):
                    self.wait(disconnect())
            finally:
                self._end_loop()

    def close(self, *, hang_up: bool = False) -> None:
        """Close the connection; closing twice does nothing.

        Parameters
        ----------
        hang_up : bool
            End it for everybody who has it open, forked children for example; the guardian must be done.
        """
        if self.connection.fileno() < 0 or os.getpid() != self._owner:
            return
        with Deferred():
            atexit.unregister(self.close)
            self.stop()
            if hang_up:
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

    def _end_loop(self) -> None:
        super()._end_loop()
        self._clients.close()  # the client has, if it got so far


def _one_line(error: Exception) -> str:
    """Give the text of QEMU's, or of the client, which may have several lines."""
    if isinstance(error, EOFError) and not str(error):
        return "it closes the connection"
    return " ".join(str(error)[:_MAX_TEXT].split()) or type(error).__name__


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_GREETING_WAIT)
        connection.connect(path)
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        code = errno.ENAMETOOLONG if error.errno is None else error.errno
        if isinstance(error, TimeoutError | BlockingIOError):
            code = errno.EAGAIN
        hint = {
            errno.ENOENT: "start QEMU with -qmp unix:PATH,server,nowait",
            errno.ECONNREFUSED: "its QEMU has ended" if _is_socket(path) else "this is no socket",
            errno.EACCES: "the socket is another user's: run vmdump as that user, or as root",
            errno.EAGAIN: "another client holds it: give QEMU a second socket",
            errno.ENAMETOOLONG: "a Unix socket's path has at most 107 bytes",
            errno.EPROTOTYPE: "this is not a stream socket",
        }.get(code, "")
        where = os.fspath(path)
        raise SourceError("cannot connect to the QMP socket", path=where, errno=code, hint=hint) from error
    return connection
