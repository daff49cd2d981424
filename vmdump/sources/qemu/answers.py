"""What QMP has to answer: the shape of each answer that is used, checked before it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vmdump.errors import QmpError

__all__ = ["check_answer", "event_seconds"]

_MICROSECONDS = 1e-6
_MAX_TIME = 1 << 53
_MAX_TEXT = 100
"""Characters of an answer that go into an error."""

_Shape = type | tuple[Mapping[str, type], Mapping[str, type]]
"""A type; or, of a dict, the keys that it must have, and those that it may have."""
_SHAPES: Mapping[str, _Shape] = {
    "human-monitor-command": str,
    "qom-get": str,
    "query-chardev": list,
    "query-dump": ({}, {"status": str}),
    "query-migrate": ({}, {"status": str}),
    "query-sev": ({}, {"enabled": bool}),
    "query-status": ({"status": str, "running": bool}, {}),
    "query-target": ({"arch": str}, {}),
}


def check_answer(path: str, command: str, answer: Any) -> Any:
    """Give an answer back if it has the shape that its command's answers have.

    Parameters
    ----------
    path : str
        Of the socket.
    command : str
        That was executed. What those that are not in the table answer is not used.
    answer : object
        What it returned.

    Raises
    ------
    QmpError
        It has another shape.
    """
    if not _fits(answer, _SHAPES.get(command, object)) or (
        command == "query-chardev" and not all(isinstance(device, dict) for device in answer)
    ):
        text = repr(answer)
        text = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
        raise QmpError(f"{path}: {command}: not an answer of QEMU's: {text}", command=command)
    return answer


def _fits(answer: Any, shape: _Shape) -> bool:
    if isinstance(shape, type):
        return isinstance(answer, shape)
    needed, possible = shape
    return (
        isinstance(answer, dict)
        and all(isinstance(answer.get(name), wanted) for name, wanted in needed.items())
        and all(name not in answer or isinstance(answer[name], wanted) for name, wanted in possible.items())
    )


def event_seconds(event: Mapping[str, Any]) -> float:
    """Give the time of an event by QEMU's clock; by this host's, the same one, where it does not tell."""
    stamp = event.get("timestamp")
    if isinstance(stamp, dict):
        parts = [stamp.get("seconds"), stamp.get("microseconds")]
        # QEMU says -1 where it could not ask for the time.
        numbers = [part for part in parts if type(part) is int and 0 <= part < _MAX_TIME]
        if len(numbers) == len(parts):
            return float(numbers[0] + numbers[1] * _MICROSECONDS)
    return time.time()
