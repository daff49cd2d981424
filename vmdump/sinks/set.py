"""A set of sinks that appear together, when all of them are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmdump.errors import RequestError
from vmdump.interrupts import Deferred
from vmdump.sinks.base import Sink, say_kept
from vmdump.sinks.opening import named_descriptor, open_sink

__all__ = ["SinkSet", "part_names"]


def part_names(target: str | os.PathLike[str], count: int) -> list[str]:
    """Name the files of a split set: ``TARGET.1`` to ``TARGET.count``.

    Raises
    ------
    RequestError
        The target is not a path.
    """
    name = os.fspath(target)
    if not name or named_descriptor(name) is not None:
        raise RequestError("output: a split set goes to files, name a path", parameter="output")
    return [f"{name}.{number}" for number in range(1, count + 1)]


class SinkSet:
    """Several sinks of which either all or none appear. A context manager.

    All are synced before the first one gets its name. If one cannot have its own then, or the process is
    interrupted, those that have theirs are removed again, also where they replaced an older file: a set of
    old and new parts is worse than none. Only the end of the process or of the machine in that moment can
    leave some of them.

    Parameters
    ----------
    names : list of str
        Paths; a new file for each.
    force : bool
        Replace files that are there.
    keeps : bool
        Of a set that cannot be finished, what was written of its parts stays.
    cancelled : callable
        As for :func:`vmdump.sinks.opening.open_sink`.

    Attributes
    ----------
    sinks : list of Sink

    Raises
    ------
    OutputExists, SinkError
        As of open_sink; then none was created.
    """

    def __init__(
        self,
        names: list[str],
        *,
        force: bool = False,
        keeps: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sinks: list[Sink] = []
        try:
            for name in names:
                sink = open_sink(name, force=force, keeps=keeps, cancelled=cancelled)
                self.sinks.append(sink)
                if not sink.retractable:
                    raise RequestError(
                        f"output: {name} is not a regular file, as every part of a split set has to be",
                        parameter="output",
                    )
        except BaseException:
            self._leave_nothing()
            raise

    def _leave_nothing(self) -> None:
        for sink in self.sinks:
            sink.abort()
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._leave_nothing()
            say_kept(error, self.sinks)
            return
        try:
            for sink in self.sinks:
                sink.sync()
            with Deferred() as signals:
                for sink in self.sinks:
                    sink.publish()
                signals.settle()
        except BaseException as failure:
            for sink in self.sinks:
                sink.retract()
            self._leave_nothing()
            say_kept(failure, self.sinks)
            raise
        for sink in self.sinks:
            sink.close()
