"""Processes to be looked into: one with memory of every kind, and one that also plays a QEMU's monitor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oracles.elf_builder import Load, build_elf
from oracles.smaps import resident

from scripted import child as child_program
from scripted.child import PAGE, TICK, page_of

__all__ = ["PAGE", "TICK", "Child", "FakeQemu", "Ram", "inside_stop", "page_of", "rule"]


class Child:
    """A process of one's own that maps what it is told."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", child_program.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def ask(self, name: str, /, **arguments: object) -> Any:
        """Let it do something; OSError where it could not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], f"child: {name}")
        return answer["return"]

    def map(self, kind: str, pages: int, **options: object) -> int:
        """Map pages; their address."""
        return int(self.ask("map", kind=kind, size=pages * PAGE, **options))

    def write(self, address: int, pages: Iterable[int], first: int = 0) -> None:
        """Fill pages behind an address; page n becomes ``page_of(first + n)``."""
        self.ask("write", address=address, pages=list(pages), first=first)

    def put(self, address: int, data: bytes) -> None:
        """Put bytes at an address."""
        self.ask("put", address=address, data=data.hex())

    def resident(self, address: int) -> int:
        """Bytes of the mapping at an address that are resident."""
        for begin, _, size in resident(self.pid):
            if begin == address:
                return size
        raise LookupError(f"no mapping at {address:#x}")

    def open_pipes(self) -> int:
        """Count the pipes that it has open."""
        count = 0
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(f"/proc/{self.pid}/fd/{number}").startswith("pipe:")
        return count

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it meanwhile, all its threads: the signal alone lets those run on that have not met it yet."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def rule(command: str, do: str, nth: int = 0) -> dict[str, Any]:
    """What the monitor does at the nth command of a name (any, if empty); always, without nth."""
    return {"command": command, "do": do, "nth": nth}


@dataclass
class Ram:
    """A block of the guest.

    `written` are the pages that have contents: page n those of ``page_of(start / PAGE + n)``.
    """

    start: int = 0
    pages: int = 64
    kind: str = "anonymous"
    written: Sequence[int] = (0, 1, 5, 6, 7, 63)
    path: str = ""
    address: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages * PAGE

    def page(self, number: int) -> bytes:
        """What the guest has in page n of the block."""
        return page_of(self.start // PAGE + number) if number in self.written else bytes(PAGE)

    def contents(self) -> bytes:
        """The whole block."""
        return b"".join(map(self.page, range(self.pages)))


class FakeQemu(Child):
    """A process that holds a guest's memory and speaks QMP.

    Parameters
    ----------
    folder : Path
        For its socket, log and headers.
    rams : sequence of Ram
        The guest's memory.
    elf : bytes, optional
        What dump-guest-memory writes; made of `rams` and `notes`, if not given.
    notes : bytes
        ELF notes.
    places : sequence of (int, int, int), optional
        What gpa2hva knows, if it is not the truth.
    answers, rules, running, endless, greets
        As `child.Monitor` has it.
    """

    def __init__(
        self,
        folder: Path,
        rams: Sequence[Ram] = (),
        *,
        elf: bytes | None = None,
        notes: bytes = b"",
        places: Sequence[tuple[int, int, int]] | None = None,
        answers: dict[str, Any] | None = None,
        rules: Sequence[dict[str, Any]] = (),
        running: bool = True,
        endless: bool = False,
        greets: bool = True,
    ) -> None:
        super().__init__()
        self.rams = list(rams or (Ram(),))
        for ram in self.rams:
            ram.address = self.map(ram.kind, ram.pages, **({"path": ram.path} if ram.path else {}))
            self.write(ram.address, ram.written, first=ram.start // PAGE)
        self._log = folder / "monitor.log"
        self._log.write_text("")
        elf_path = folder / "headers"
        if elf is None:
            # More data than a pipe holds, so that the monitor has to notice that the reader goes away.
            loads = [Load(ram.start, filesz=ram.size) for ram in self.rams]
            elf = build_elf(loads, notes=notes, sections_first=True) + bytes(1 << 20)
        elf_path.write_bytes(elf)
        self.path = str(folder / "qmp.sock")
        self.source = f"qmp:{self.path}"
        self.ask(
            "serve",
            path=self.path,
            log=str(self._log),
            elf=str(elf_path),
            regions=places
            if places is not None
            else [(ram.start, ram.address, ram.size) for ram in self.rams],
            answers=answers or {},
            rules=list(rules),
            running=running,
            endless=endless,
            greets=greets,
        )

    def event(self, name: str) -> None:
        """Let it send an event, as after something that another client did."""
        self.ask("event", name=name)

    @property
    def log(self) -> list[dict[str, Any]]:
        """What happened so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    @property
    def commands(self) -> list[str]:
        """Names of the commands that came, in order."""
        return [entry["command"] for entry in self.log if "command" in entry]

    @property
    def running(self) -> bool:
        """Whether the guest runs, by the last event; true where there was none."""
        events = [entry["event"] for entry in self.log if entry.get("event") in ("STOP", "RESUME")]
        return not events or events[-1] == "RESUME"

    def contents(self) -> list[tuple[int, bytes]]:
        """The guest's memory: (start, bytes) of each block."""
        return [(ram.start, ram.contents()) for ram in self.rams]


def inside_stop(tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """A progress function that is called while a running guest is paused, and not before, when its
    memory is written ahead: then the total grows."""
    totals: list[int] = []

    def told(done: int, total: int) -> None:
        totals.append(total)
        if total > totals[0]:
            tell(done, total)

    return told
