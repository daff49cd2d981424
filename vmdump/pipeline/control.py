"""What a running dump and its owner tell each other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from vmdump.errors import Cancelled

__all__ = ["Control", "Phase", "Step"]

Phase = Literal["attach", "packing", "paused", "writing", "sync"]
"""What a dump is doing: ``attach`` is all until memory is dumped, the search for VMCOREINFO included;
``packing`` a running guest; ``paused`` while vmdump has it paused; ``writing`` what needs no pause any more,
or never needed one; ``sync`` until the output has its name."""

_log = logging.getLogger("vmdump")


class Step(NamedTuple):
    """The beginning of a phase.

    Attributes
    ----------
    phase : Phase
        The phase.
    began : float
        By `time.monotonic`.
    done : int
        Bytes that were done by then.
    """

    phase: Phase
    began: float
    done: int


class Control:
    """Bytes done and total, the phases, and the wish to stop.

    Parameters
    ----------
    on_progress : callable, optional
        Called with (done, total) in bytes of guest memory, in the dumping thread, after each chunk.

    Attributes
    ----------
    done, total : int
        Bytes; both grow when there is more to do: a running guest is packed, and then looked at again.
    base : int
        Bytes that were done when `total` was set.
    steps : list of Step
        All phases so far. It is looked at from other threads: nothing is told of a phase when it begins,
        because whoever is told could hold up a guest that is paused.
    """

    def __init__(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        self.done = 0
        self.total = 0
        self.base = 0
        self.steps = [Step("attach", time.monotonic(), 0)]
        self._logged = 0
        self._on_progress = on_progress
        self._stop = threading.Event()

    @property
    def phase(self) -> Phase:
        """What is being done."""
        return self.steps[-1].phase

    def enter(self, phase: Phase, began: float | None = None) -> None:
        """Begin a phase.

        Parameters
        ----------
        phase : Phase
            The next one.
        began : float, optional
            By `time.monotonic`; now, if not given.
        """
        self.steps.append(Step(phase, time.monotonic() if began is None else began, self.done))
        if phase != "paused":
            self._log_steps()

    def finish(self) -> None:
        """Log how long the last phases took."""
        self.steps.append(self.steps[-1]._replace(began=time.monotonic()))
        self._log_steps()
        self.steps.pop()

    def _log_steps(self) -> None:
        for step, following in zip(self.steps[self._logged :], self.steps[self._logged + 1 :], strict=False):
            _log.info("%s: %.3f s", step.phase, following.began - step.began)
        self._logged = len(self.steps) - 1

    def start(self, total: int) -> None:
        """Set the number of bytes to do from now on."""
        self.base = self.done
        self.total = self.done + total
        self.advance(0)

    def advance(self, size: int) -> None:
        """Count `size` bytes as done.

        Raises
        ------
        Cancelled
            The owner wants the dump to stop.
        """
        self.done += size
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)
        self.check()

    def check(self) -> None:
        """Raise Cancelled if the owner wants the dump to stop."""
        if self._stop.is_set():
            raise Cancelled("cancelled")

    def side_work(self) -> Callable[[int, int], None]:
        """Give what counts other work than dumping, from (done, total) of it on: some take no time."""
        told = -1

        def tell(done: int, total: int) -> None:
            nonlocal told
            if told < 0:
                told = 0
                self.start(total)
            self.advance(done - told)
            told = done

        return tell

    def cancel(self) -> None:
        """Ask the dump to stop; from any thread."""
        self._stop.set()

    def cancelled(self) -> bool:
        """Tell whether the dump was asked to stop."""
        return self._stop.is_set()
