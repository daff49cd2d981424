"""The thread in which commands are executed, for code that is not asynchronous.

Neither an event loop of the caller's nor an exception in the caller's thread (Ctrl-C above all) gets in the
way of a command there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import selectors
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vmdump.errors import Cancelled, QmpError, SourceError

__all__ = ["CommandThread"]

_POLL = 0.1
_Result = TypeVar("_Result")


class CommandThread(ABC):
    """A thread that executes commands, one after the other or several at a time.

    Parameters
    ----------
    path : str
        What errors name.

    Attributes
    ----------
    path : str
        As given.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._owner = os.getpid()

    @abstractmethod
    async def ask(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command; in the thread for it.

        Raises
        ------
        QmpError
            It is refused, and the error has a class; or nobody answers any more.
        """

    def _start_loop(self, name: str) -> None:
        # Where the loop gets no pair of its own, it complains once more when it is collected.
        for end in socket.socketpair():
            end.close()
        # Not epoll: its state is in the kernel, and a forked child that ends would change this process's.
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def _demand_open(self) -> None:
        if self._loop.is_closed():
            raise SourceError("the source is closed", path=self.path)
        if os.getpid() != self._owner:
            raise SourceError(
                "the source was opened by another process, from which this one was forked", path=self.path
            )

    @property
    def is_this_thread(self) -> bool:
        """True in the thread for commands."""
        return threading.current_thread() is self._thread

    def begin(self, work: Coroutine[Any, Any, _Result]) -> concurrent.futures.Future[_Result]:
        """Run a coroutine in the thread for commands.

        Raises
        ------
        SourceError
            It is closed.
        """
        try:
            self._demand_open()
        except SourceError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(
        self,
        work: Coroutine[Any, Any, _Result],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> _Result:
        """Run a coroutine in the thread for commands and wait for its result.

        Raises
        ------
        Cancelled
            `cancelled` returned true.
        """
        future = self.begin(work)
        while not future.done():
            concurrent.futures.wait((future,), _POLL)
            if cancelled():
                future.cancel()
                raise Cancelled("cancelled while waiting for QEMU")
        try:
            return future.result()
        finally:
            del future  # or an error would hold this frame, and all above it, in a circle

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command.

        Parameters
        ----------
        command : str
            Its name.
        arguments : dict, optional
            By name.

        Raises
        ------
        QmpError
            It is refused, or nobody answers.
        """
        return self.wait(self.ask(command, arguments))

    def execute_if_known(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command as :meth:`execute` does; None where it is refused, as unknown ones are.

        Raises
        ------
        QmpError
            Nobody answers.
        """
        try:
            return self.execute(command, arguments)
        except QmpError as error:
            if not error.error_class:
                raise
            return None

    def _end_loop(self) -> None:
        async def cancel_all() -> None:
            # Ending a task may begin another: a client's way of disconnecting.
            while await self._cancel_others():
                pass

        asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _cancel_others() -> bool:
        """Cancel all tasks of this thread but this one, and wait for them; False if there were none."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        return bool(tasks)
