"""What is told of a dump on standard error while it is made: a bar, lines now and then, or JSON.

A thread of its own looks at the dump and tells. Nothing is told by the thread that dumps: a slow terminal, or
one that Ctrl-S has stopped, would hold up a guest that is paused.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vmdump.cli.help import wants_colour
from vmdump.cli.printing import harmless, say, say_for_now, say_json
from vmdump.pipeline.control import Control, Phase
from vmdump.units import format_size

__all__ = ["Moment", "Watch", "bar_line", "telling"]

_TICK = 0.1
_LINE_EVERY = 5.0
_JSON_EVERY = 1.0
"""Seconds."""
_WAITS = 0.5
"""Seconds after which a wait for somebody, QEMU most often, is called one."""
_PACKED_SHARE = 0.9
"""Of the bar, for what is packed of a guest that runs: what is left for the pause is far less."""
_LEAST_BAR = 8
_LONGEST_BAR = 40
_LONGEST_NAME = 24
_SHORT = 60
"""Columns from which on it is said that the guest runs."""


class Moment(NamedTuple):
    """A dump at one moment.

    Attributes
    ----------
    phase : str
        As in :class:`vmdump.Progress`.
    live : bool
        The guest runs, or did before its pause.
    seconds : float
        Of this phase so far.
    share : float
        Of all work that is done, 0 to 1; it never falls.
    done, total : int
        Bytes of this pass over the guest's memory; 0 where it has not begun.
    """

    phase: Phase
    live: bool
    seconds: float
    share: float
    done: int
    total: int

    @property
    def rate(self) -> float:
        """Bytes a second in this phase."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class Watch:
    """Look at a dump.

    Parameters
    ----------
    control : Control
        Of the dump.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._share = 0.0

    def look(self) -> Moment:
        """Give the moment of now."""
        control = self._control
        steps = list(control.steps)
        now = steps[-1]
        packed = any(step.phase == "packing" for step in steps)
        # The pass over memory goes on from the pause to what is written after it.
        behind = [step for step in steps if step.phase not in ("attach", "packing")]
        began = now if now.phase == "packing" else (behind or steps)[0]
        done = total = 0
        if now.phase != "attach" and control.base >= began.done:
            done, total = control.done - control.base, control.total - control.base
        part = min(done / total, 1.0) if total else 0.0
        if now.phase == "packing":
            part *= _PACKED_SHARE
        elif packed and behind:
            part = _PACKED_SHARE + part * (1 - _PACKED_SHARE)
        self._share = max(self._share, part)
        live = packed or any(step.phase == "paused" for step in steps)
        return Moment(now.phase, live, time.monotonic() - now.began, self._share, done, total)


def _state(moment: Moment, *, short: bool) -> str:
    if moment.phase == "paused":
        return f"PAUSED {moment.seconds:.1f} s"
    if moment.phase == "attach" and moment.seconds > _WAITS:
        return f"attach, waiting {moment.seconds:.0f} s"
    runs = moment.live and moment.phase in ("packing", "writing") and not short
    return moment.phase + (" (guest runs)" if runs else "")


def bar_line(name: str, moment: Moment, columns: int, *, plain: bool = False) -> str:
    """Write a moment as one line that fits; what matters least is left away first.

    Parameters
    ----------
    name : str
        Of the file; its folder is left away.
    moment : Moment
        The moment.
    columns : int
        Of the terminal.
    plain : bool
        ASCII only.
    """
    state, percent = _state(moment, short=columns < _SHORT), f"{moment.share:4.0%}"
    # The last column stays free: some terminals begin a new line behind it.
    room = columns - 1 - len(state) - len(percent) - 2 - _LEAST_BAR - 1
    name = _short_name(name, "..." if plain else "…")
    left = (moment.total - moment.done) / moment.rate if moment.rate else 0.0
    optional = [name]
    if moment.total:
        optional.append(f"{format_size(moment.done)} of {format_size(moment.total)}")
        if moment.phase != "paused":
            optional += [f"{left:.0f} s left", f"{moment.rate / 1e6:.0f} MB/s"]
    shown = []
    for text in optional:
        if _cells(text) + 2 > room:
            break
        room -= _cells(text) + 2
        shown.append(text)
    width = max(min(_LEAST_BAR + room, _LONGEST_BAR), 0)
    full = int(moment.share * width)
    bar = ("#" if plain else "━") * full + ("-" if plain else "─") * (width - full)
    return "  ".join([*shown[:1], state, f"{bar} {percent}", *shown[1:]])


def _short_name(path: str, cut: str) -> str:
    name = harmless(os.path.basename(path) or path)
    if _cells(name) <= _LONGEST_NAME:
        return name
    while _cells(name) > _LONGEST_NAME - len(cut):
        name = name[:-1]
    return name + cut


def _cells(text: str) -> int:
    """Give the columns that a text takes: East Asian characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # 1 MB, and few names need it

    return sum(0 if combining(char) else 1 + (east_asian_width(char) in "WF") for char in text)


def _columns() -> int:
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


@contextmanager
def telling(output: str, control: Control, *, quiet: bool, lines: bool, log_json: bool) -> Iterator[None]:
    """Tell of a dump on standard error while it is made.

    Parameters
    ----------
    output : str
        Where it goes.
    control : Control
        Of the dump.
    quiet : bool
        Tell nothing, unless JSON is asked for.
    lines : bool
        A line for each phase, and every five seconds.
    log_json : bool
        A line of JSON for each phase, and every second.
    """
    if log_json:
        tell: Callable[[Watch], None] = _Lines(output, control, _JSON_EVERY, _tell_json)
    elif quiet or not (lines or sys.stderr.isatty()):
        yield
        return
    else:
        tell = _Lines(output, control, _LINE_EVERY, _tell_line) if lines else _Bar(output)
    ended = threading.Event()
    watch = Watch(control)

    def run() -> None:
        while not ended.wait(_TICK):
            tell(watch)

    thread = threading.Thread(target=run, name="vmdump-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if isinstance(tell, _Bar):
            tell.erase()
        else:
            tell(watch)


class _Bar:
    def __init__(self, output: str) -> None:
        self._output = output
        self._plain = "utf" not in (sys.stderr.encoding or "").lower()
        self._shown = False

    def __call__(self, watch: Watch) -> None:
        moment = watch.look()
        colour = ("yellow" if moment.phase == "paused" else "cyan") if wants_colour() is not False else ""
        say_for_now(bar_line(self._output, moment, _columns(), plain=self._plain), colour)
        self._shown = True

    def erase(self) -> None:
        if self._shown:
            say_for_now("")


class _Lines:
    """Tell of each phase once, also if it was too short to be seen, and of a long one now and then."""

    def __init__(
        self,
        output: str,
        control: Control,
        every: float,
        tell: Callable[[str, Moment, float], None],
    ) -> None:
        self._output = output
        self._control = control
        self._every = every
        self._tell = tell
        self._steps = 0
        self._next = 0.0

    def __call__(self, watch: Watch) -> None:
        now, moment = time.monotonic(), watch.look()
        steps = self._control.steps
        began = steps[0].began
        for step in steps[self._steps :]:
            gone = Moment(step.phase, moment.live, 0.0, moment.share, 0, 0)
            self._tell(self._output, gone, step.began - began)
            self._next = now + self._every
        self._steps = len(steps)
        if now >= self._next:
            self._next = now + self._every
            self._tell(self._output, moment, now - began)


def _tell_line(output: str, moment: Moment, seconds: float) -> None:
    state = "PAUSED" if moment.phase == "paused" and not moment.seconds else _state(moment, short=False)
    amount = (
        f", {format_size(moment.done)} of {format_size(moment.total)} ({moment.share:.0%})"
        if moment.total
        else ""
    )
    say(f"{os.path.basename(output) or output}: {seconds:.1f} s: {state}{amount}", err=True)


def _tell_json(output: str, moment: Moment, seconds: float) -> None:
    line: dict[str, Any] = {
        "event": "progress",
        "output": output,
        "phase": moment.phase,
        "seconds": round(seconds, 3),
    }
    if moment.total:
        line |= {"done": moment.done, "total": moment.total, "share": round(moment.share, 4)}
    say_json(line, err=True)
