"""When a guest was paused, by the events of who runs it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Pauses"]


class Pauses:
    """Keeps account of when the guest was paused, by the host's clock.

    Attributes
    ----------
    stops : int
        STOP events so far.
    stirs : int
        Events so far of a guest that runs from then on, or is changed: RESUME, WAKEUP (from suspend, where
        there was no STOP), RESET.
    seconds : float
        In all, of the times that have ended.
    on_resume : callable or None
        Called at each RESUME, in the thread that counts.
    """

    EVENTS = ("STOP", "RESUME", "WAKEUP", "RESET")
    """Those that are counted, by QMP's names."""

    def __init__(self) -> None:
        self.stops = 0
        self.stirs = 0
        self.seconds = 0.0
        self.on_resume: Callable[[], object] | None = None
        self._began: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the last of all STOP and RESUME events was a STOP."""
        return self._began is not None

    def count(self, event: str, now: float) -> None:
        """Count an event, in the order in which they were sent.

        Parameters
        ----------
        event : str
            One of `EVENTS`.
        now : float
            When it happened, in seconds since the epoch.
        """
        if event == "STOP":
            self.stops += 1
            self._began = now
            return
        self.stirs += 1
        if event == "RESUME":
            if self._began is not None:
                self.seconds += max(now - self._began, 0.0)
            self._began = None
            if self.on_resume is not None:
                self.on_resume()
