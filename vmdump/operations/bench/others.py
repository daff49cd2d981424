"""How busy others keep the processors meanwhile."""

from __future__ import annotations

import os
import time

__all__ = ["OthersShare"]

_BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat: user, nice, system, irq, softirq, steal; not idle and waiting for disks."""


class OthersShare:
    """Look at the processors that this process may use, from now on."""

    def __init__(self) -> None:
        self._processors = os.sched_getaffinity(0)
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        """Give seconds: of the clock, of all who are busy on the processors, and of this process."""
        busy = 0
        try:
            with open("/proc/stat", encoding="ascii") as lines:
                for line in lines:
                    name, *columns = line.split()
                    if name.removeprefix("cpu") in map(str, self._processors):
                        busy += sum(int(columns[at]) for at in _BUSY)
        except (OSError, ValueError, IndexError):
            busy = 0
        return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()

    def share(self) -> float:
        """Tell which share of the processors' time others have had, 0 to 1; 0 where nothing tells."""
        seconds, busy, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return min(max((busy - own) / max(seconds * len(self._processors), 1e-9), 0.0), 1.0)
