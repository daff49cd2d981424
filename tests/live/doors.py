"""The two doors to QEMU's dump interface: a monitor of QEMU's own, and `vmdump serve` in front of another."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from live.guests import Guest
from live.raw_client import PATIENCE, Client

Kind = Literal["qemu", "serve"]


class Serving:
    """``vmdump serve qmp:SOCKET --listen PATH``; ended with SIGKILL, if it did not end before."""

    def __init__(self, guest: Guest, path: Path, cwd: Path | None = None) -> None:
        self.path = path
        self.complaints = path.with_suffix(".stderr")
        words = [sys.executable, "-m", "vmdump", "serve", f"qmp:{guest.qmp}", "--listen", str(path)]
        with self.complaints.open("wb") as complaints:
            self.child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints, cwd=cwd
            )
        begin = time.monotonic()
        while not path.exists():
            if self.child.poll() is not None or time.monotonic() - begin > PATIENCE:
                self.stop()
                raise RuntimeError(f"vmdump serve does not listen: {self.complaints.read_text()!r}")
            time.sleep(0.01)

    def stop(self) -> None:
        self.child.kill()
        self.child.wait()


@dataclass
class Door:
    """One way to a guest's dump interface. `guest.monitor` shows what others see."""

    kind: Kind
    guest: Guest
    path: Path
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def client(self, **options: Any) -> Client:
        """Connect; closed with the test."""
        return self.stack.enter_context(Client(self.path, **options))

    @property
    def serves(self) -> bool:
        return self.kind == "serve"

    def settle(self) -> None:
        """Wait until QEMU's thread of a detached dump is gone: what it closes after DUMP_COMPLETED may be the
        descriptor of the next dump, if that has begun.
        """
        while any(name == "dump_thread" for name in self._threads()):
            time.sleep(0.005)

    def _threads(self) -> Iterator[str]:
        for path in Path(f"/proc/{self.guest.pid}/task").glob("*/comm"):
            with contextlib.suppress(OSError):
                yield path.read_text().strip()

    def run(self) -> None:
        """Let the guest run."""
        if not self.guest.running():
            self.guest.monitor.execute("cont")

    def pause(self) -> None:
        """Let the guest stand still."""
        if self.guest.monitor.status() != "paused":
            self.run()
            self.guest.monitor.execute("stop")


class Hall:
    """A guest with both doors; `vmdump serve` is started when it is asked for and not there."""

    def __init__(self, *args: Any, extra: Sequence[str] = (), **options: Any) -> None:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vmdump-door-"))
        self.folder = Path(folder)
        self.own = self.folder / "qemu"
        # Threads with names: see `Door.settle`.
        extra = ("-name", "guest,debug-threads=on", "-qmp", f"unix:{self.own},server=on,wait=off", *extra)
        self._served: Serving | None = None
        try:
            self.guest = self._stack.enter_context(Guest(*args, extra=extra, **options))
        except BaseException:
            self._stack.close()
            raise

    def serving(self) -> Serving:
        if self._served is None or self._served.child.poll() is not None:
            path = self.folder / "serve"
            path.unlink(missing_ok=True)
            self._served = Serving(self.guest, path)
        return self._served

    @contextlib.contextmanager
    def door(self, kind: Kind) -> Iterator[Door]:
        path = self.own if kind == "qemu" else self.serving().path
        door = Door(kind, self.guest, path)
        door.settle()
        with door.stack:
            yield door

    def close(self) -> None:
        if self._served is not None:
            self._served.stop()
        self._stack.close()
