"""Finding out which pages of a damaged dump unpack, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TypeVar, cast

from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import in_order

__all__ = ["Checking"]

_Slot = TypeVar("_Slot")
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Checking:
    """How pages are unpacked before anything is written, and who is told of it.

    Parameters
    ----------
    threads : int
        Side by side.
    control : Control
        Its total covers what is written afterwards as well.
    """

    def __init__(self, threads: int, control: Control) -> None:
        self._threads = threads
        self._control = control

    def run(
        self,
        tasks: Iterable[_Task],
        work: Callable[[_Slot, _Task], _Result],
        take: Callable[[_Task, _Result], int],
        *,
        make_slot: Callable[[], _Slot],
        size: int,
        guest_size: int,
    ) -> None:
        """Work on all tasks.

        Parameters
        ----------
        tasks : iterable
            Each of some 4 MiB of memory.
        work : callable
            ``(slot, task) -> result``, called in one of the threads.
        take : callable
            ``(task, result) -> int``, called in this thread, in the order of the tasks: the bytes of memory
            that were unpacked.
        make_slot : callable
            Makes what one piece of work needs for itself.
        size, guest_size : int
            Bytes of memory that all tasks unpack, and that the guest has.

        Raises
        ------
        Cancelled
            The owner wants to stop.
        """
        self._control.start(size + guest_size)
        # One more than threads: nobody waits for a disk here, and few slots stay in the processor's cache.
        slots = [make_slot() for _ in range(self._threads + 1)]
        results = in_order(tasks, work, slots, threads=self._threads, idle=lambda _: False)
        with closing(results):
            for task, result in results:
                self._control.advance(take(task, cast(_Result, result)))  # None only of an idle task
