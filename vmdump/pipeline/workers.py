"""Work side by side, results in order.

Each slot owns what one piece of work needs (codec context, scratch, output buffer), and is used by one
thread at a time. A slot goes round: taken for a task, worked on, handed to the consumer in task order,
free again when the consumer asks for the next result. So memory is bounded by the number of slots, and
the order of results, hence the output, does not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vmdump.errors import RequestError

__all__ = ["SLOTS_BEYOND_THREADS", "check_threads", "in_order"]

_MAX_THREADS = 1024
"""Most threads that can be asked for."""
SLOTS_BEYOND_THREADS = 4
"""Results that wait for the consumer bridge a slow moment of its disk."""

_Slot = TypeVar("_Slot")
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def check_threads(threads: int | None) -> int:
    """Give the number of threads asked for, or that of the processors this process may use.

    Raises
    ------
    RequestError
        It is not from 1 to 1024.
    """
    if threads is None:
        return len(os.sched_getaffinity(0))
    if not 1 <= threads <= _MAX_THREADS:
        raise RequestError(f"threads: {threads} is not from 1 to {_MAX_THREADS}", parameter="threads")
    return threads


def in_order(
    tasks: Iterable[_Task],
    work: Callable[[_Slot, _Task], _Result],
    slots: Sequence[_Slot],
    *,
    threads: int,
    idle: Callable[[_Task], bool],
) -> Generator[tuple[_Task, _Result | None]]:
    """Work on tasks in threads and give the results in the order of the tasks.

    Parameters
    ----------
    tasks : iterable
        Taken one at a time, never further ahead than there are slots.
    work : callable
        ``(slot, task) -> result``, called in a worker thread.
    slots : sequence
        What a piece of work owns. A result may point into its slot; it is valid until the next one is
        asked for.
    threads : int
        At least 1.
    idle : callable
        Tells of a task that it needs no work; its result is None.

    Yields
    ------
    task, result

    Raises
    ------
    Exception
        The first error, in task order, of `work`; what is still waiting is dropped, what is running ends.
    """
    free = list(slots)  # the last one that became free is the one that is still in a cache
    pending: deque[tuple[_Task, _Slot | None, Future[_Result] | None]] = deque()

    def oldest() -> tuple[_Task, _Slot | None, _Result | None]:
        task, slot, future = pending.popleft()
        try:
            return task, slot, None if future is None else future.result()
        finally:
            # An error has this frame, and the future the error: together they would keep all slots alive.
            del future

    pool = ThreadPoolExecutor(threads, thread_name_prefix="vmdump-worker")
    try:
        for task in tasks:
            if idle(task):
                pending.append((task, None, None))
            else:
                while not free:
                    done, slot, result = oldest()
                    yield done, result
                    if slot is not None:
                        free.append(slot)
                slot = free.pop()
                pending.append((task, slot, pool.submit(work, slot, task)))
            while pending and pending[0][2] is None:
                yield pending.popleft()[0], None
        while pending:
            done, _, result = oldest()
            yield done, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
