"""Whether a paused guest is still the one that was stopped: somebody may load a snapshot into it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from vmdump.errors import GuestBusy
from vmdump.sources.qemu.layout import GuestLayout
from vmdump.sources.qemu.way import Commands

__all__ = ["GuestState"]

_FLUSHES = re.compile(r"^TB flush count +(\d+)", re.MULTILINE)
_MOVED = re.compile(r"^rchar: (\d+)\nwchar: (\d+)$", re.MULTILINE)
_BYTES_PER_PAGE = 8
"""The least that a snapshot has of each page of 4 KiB, also of one of zeros."""
_PAGE = 4096


class GuestState:
    """What shows that a snapshot was loaded: QEMU sends no event then, and the guest stays paused.

    The registers alone do not: of 20 stops of an idle Linux guest 11 had the registers of another one, and
    of a guest without a system all. So two things are asked besides. TCG throws away its translated code
    whenever a snapshot is loaded, and counts that. And QEMU reads at least 8 bytes for each page from a
    file; nothing else of a paused guest does, but block jobs and exports, and savevm, which writes more than
    it reads. All of it takes 2 ms.

    Parameters
    ----------
    commands : Commands
        The guest's.
    pid : int
        QEMU's process number.
    layout : GuestLayout
        Just taken, of the paused guest.
    """

    def __init__(self, commands: Commands, pid: int, layout: GuestLayout) -> None:
        self._path = commands.path
        self._ask = commands.execute_if_known
        self._pid = pid
        self._layout = layout
        self._few = max(sum(block.size for block in layout.blocks) // _PAGE, _PAGE) * _BYTES_PER_PAGE
        self._flushes = self._count_flushes()
        self._moved = self._bytes_moved()

    def _count_flushes(self) -> int | None:
        """Give how often TCG has thrown away its code; None with other accelerators."""
        text = self._ask("human-monitor-command", {"command-line": "info jit"})
        match = _FLUSHES.search(text) if isinstance(text, str) else None
        return None if match is None else int(match[1])

    def _bytes_moved(self) -> tuple[int, int]:
        """Give how many bytes QEMU has read and written in all; zeros where that is not told."""
        with contextlib.suppress(OSError):
            match = _MOVED.search(Path(f"/proc/{self._pid}/io").read_text())
            if match is not None:
                return int(match[1]), int(match[2])
        return 0, 0

    def _is_other(self) -> bool:
        if None not in (self._flushes, flushes := self._count_flushes()) and flushes != self._flushes:
            return True
        read, written = (now - then for now, then in zip(self._bytes_moved(), self._moved, strict=True))
        if read > max(self._few, written) and not any(
            self._ask(command) for command in ("query-block-jobs", "query-block-exports")
        ):
            return True
        return not self._layout.has_same_registers()

    def find_change(self) -> GuestBusy | None:
        """Give the error of a guest that is another one now; None if it is the same.

        Raises
        ------
        QmpError
            QEMU does not answer.
        """
        if not self._is_other():
            return None
        return GuestBusy(
            f"{self._path}: somebody loaded a snapshot into the guest, or changed its registers, while it "
            "was being read, so the dump would not be of one moment; try again",
            state="restore-vm",
        )
