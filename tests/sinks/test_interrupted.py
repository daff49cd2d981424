"""Ctrl-C at any line while the place of an output is found."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vmdump.sinks import place
from vmdump.sinks.place import Place


def interrupted_at(moment: int, path: Path) -> int:
    """Find a place, with Ctrl-C at the line of that number; the lines that there were."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != place.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        Place(str(path)).close()
    finally:
        sys.settrace(before)
    return lines


def test_ctrl_c_is_what_the_caller_gets(tmp_path: Path) -> None:
    """And no error of a descriptor that was closed twice, and may be another file's by then."""
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below")
    (tmp_path / "output").symlink_to(tmp_path / "link" / "output")
    (tmp_path / "link" / "output").write_bytes(b"")
    lines = interrupted_at(0, tmp_path / "output")
    assert lines > 100
    for moment in range(1, lines + 1):
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(moment, tmp_path / "output")
