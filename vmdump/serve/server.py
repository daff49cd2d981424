"""Serve QMP to several clients in front of a QEMU that serves one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable

from vmdump.errors import QmpError
from vmdump.interrupts import Deferred
from vmdump.serve.client import Client
from vmdump.serve.listening import Listener
from vmdump.serve.service import Dispatcher
from vmdump.serve.upstream import Upstream

__all__ = ["serve"]

_LAST_WORDS = 1.0
"""Seconds that clients have to read what is left for them when QEMU has ended."""
_CLEANING_UP = 5.0
"""Seconds that a dump has to clean up where it was vmdump's connection to QEMU that broke."""
_NO_ROOM = 0.1
"""Seconds until the next client is taken where there are no descriptors left."""


def serve(path: str, listen: str, *, on_ready: Callable[[], object] = lambda: None) -> None:
    """Serve QMP until QEMU ends; in the main thread, a signal's exception ends it.

    All clients are served in the thread of QEMU's monitor: nothing is shared between threads but the dump,
    which has one of its own.

    Parameters
    ----------
    path : str
        Of QEMU's QMP socket.
    listen : str
        Of the socket for clients, which is made, and removed in the end.
    on_ready : callable
        Called when clients can connect.

    Raises
    ------
    SourceError
        There is no such socket, or nobody listens to it.
    OutputExists, SinkError
        The socket for clients cannot be made.
    QmpError
        QEMU has closed the connection without having said that it ends.
    """
    with Listener(listen) as listener:
        upstream = Upstream(path)
        try:
            listener.appear()
            server = _Server(upstream, listener)
            on_ready()
            try:
                upstream.wait(server.run())
            except concurrent.futures.CancelledError:
                raise QmpError(f"{path}: the connection to QEMU was given up") from None
            finally:
                with Deferred():
                    with contextlib.suppress(Exception):
                        upstream.wait(server.stop())
                    server.join()
        finally:
            upstream.close(hang_up=True)


class _Server:
    def __init__(self, upstream: Upstream, listener: Listener) -> None:
        self._upstream = upstream
        self._listener = listener
        self._dispatcher = Dispatcher(upstream)

    async def run(self) -> None:
        """Take clients until QEMU ends; QmpError if it does not say so."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.socket, self._accept)
        try:
            await self._upstream.ended()
            await self._dispatcher.ended(_LAST_WORDS)
        finally:
            loop.remove_reader(self._listener.socket)
            self._dispatcher.close()
        if not self._dispatcher.saw_shutdown:
            self._upstream.demand_alive()

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._listener.socket.accept()
        except BlockingIOError:
            return
        except OSError:
            loop.remove_reader(self._listener.socket)
            loop.call_later(_NO_ROOM, self._accept_again)
            return
        self._dispatcher.clients.add(Client(connection, self._dispatcher))

    def _accept_again(self) -> None:
        if self._listener.socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener.socket, self._accept)

    def join(self) -> None:
        """Wait until a dump has cleaned up."""
        self._dispatcher.join(_CLEANING_UP)

    async def stop(self) -> None:
        """End the dump, so that the guest runs, and all connections."""
        await self._dispatcher.stop()
        self._dispatcher.close()
