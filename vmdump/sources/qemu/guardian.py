"""Start, arm and dismiss the guardian process; ``guardian_main.py`` says what it does."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vmdump.errors import SourceError
from vmdump.sources.qemu import guardian_main

__all__ = ["Guardian"]

_START_WAIT = 10.0
"""Seconds; it takes 0.02 on an idle machine."""
_END_WAIT = 10.0
"""Seconds that it is waited for; a QEMU that does not answer keeps the guardian busy for as long as that."""
_HURRY = 1.0
_MILLISECONDS = 1000


class Guardian:
    """A process that lets the guest run again should this one die while the guest is paused.

    Parameters
    ----------
    program : str
        Path of its Python file, which uses the words of ``guardian_main.py``.
    arguments : sequence of str
        The program's own, behind the number of the pipe and that of this process.
    kept : sequence of int
        File descriptors that the guardian has open as well until it ends: the connection, the locks of the
        dump.

    Raises
    ------
    SourceError
        The process cannot be started.
    """

    def __init__(self, program: str, arguments: Sequence[str], kept: Sequence[int]) -> None:
        reader, self._pipe = os.pipe()
        self._ready = False
        words = [sys.executable, "-I", "-S", program, str(reader), str(os.getpid()), *arguments]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(reader, *kept),
                # Ctrl-C in a terminal goes to vmdump's whole process group; the guardian outlives it.
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._pipe)
            raise SourceError(
                "cannot start the guardian, which lets the guest run again if vmdump dies",
                path=sys.executable or Path(program).name,
                errno=error.errno,
                hint="--no-pause needs none",
            ) from error
        finally:
            os.close(reader)

    @property
    def alive(self) -> bool:
        """False if it has ended, or was killed."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it watches.

        Raises
        ------
        SourceError
            It has ended, or does not get there.
        """
        assert self._process.stdout is not None
        if not self._ready:
            poll = select.poll()
            poll.register(self._process.stdout, select.POLLIN)
            up = poll.poll(_START_WAIT * _MILLISECONDS)
            self._ready = bool(up) and self._process.stdout.read(1) == guardian_main.READY
        if not self._ready or not self.alive:
            raise self._missing()

    def arm(self, *, migrated: bool = False) -> None:
        """Make it responsible: the guest is going to be stopped.

        Parameters
        ----------
        migrated : bool
            QEMU says of the guest that it has migrated, and it runs all the same.

        Raises
        ------
        SourceError
            It has ended.
        """
        try:
            os.write(self._pipe, guardian_main.ARM_MIGRATED if migrated else guardian_main.ARM)
        except OSError as error:
            raise self._missing() from error

    @staticmethod
    def _missing() -> SourceError:
        return SourceError(
            "the guardian, which lets the guest run again if vmdump dies, has ended",
            hint="--no-pause needs none",
        )

    def disarm(self) -> None:
        """Relieve it: the guest runs again, or was never stopped."""
        self._tell(guardian_main.DISARM)

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, word)

    def dismiss(self, *, hurry: bool = False) -> bool:
        """Let it do what is left to do, and end. It may use the connection then.

        Parameters
        ----------
        hurry : bool
            Somebody is waiting: give a QEMU that does not answer a moment only.

        Returns
        -------
        bool
            False if it was armed and could not resume the guest, or has not yet: then it goes on.
        """
        if self._pipe >= 0:
            # The end of the pipe would do, had nobody forked: a child has it open as well.
            self._tell(guardian_main.END)
            os.close(self._pipe)
            self._pipe = -1
        try:
            code = self._process.wait(min(_HURRY, _END_WAIT) if hurry else _END_WAIT)
        except subprocess.TimeoutExpired:
            # It goes on; somebody has to take its exit code when it ends.
            with contextlib.suppress(RuntimeError):  # this process is ending as well
                threading.Thread(target=self._process.wait, name="vmdump-guardian", daemon=True).start()
            return False
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
        return code == 0
