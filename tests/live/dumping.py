"""The command under test in a process of its own, and what the tests of live guests ask about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from oracles.flattened import Flattened
from oracles.kdump import Kdump

from live.guests import Guest

MIB = 1 << 20
PATIENCE = 60


def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds, f"after {seconds} s not yet: {what}"
        time.sleep(0.01)


def guardians() -> list[int]:
    """All processes that are guardians."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"guardian_main.py") for word in words):
            found.append(int(path.parent.name))
    return found


def guardians_of(guest: Guest) -> list[int]:
    """The guardians whose command line names one of the guest's sockets."""
    mine = []
    for pid in guardians():
        try:
            if os.fsencode(guest.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                mine.append(pid)
        except OSError:
            continue
    return mine


class Dumping:
    """``vmdump dump qmp:SOCKET OUTPUT ...`` under way; whatever happens, it does not outlive the test."""

    def __init__(
        self,
        guest: Guest | str,
        output: object,
        *options: object,
        python: Sequence[str] = (sys.executable,),
        **popen: Any,
    ) -> None:
        source = guest if isinstance(guest, str) else f"qmp:{guest.qmp}"
        words = [*python, "-m", "vmdump", "dump", source, str(output), *map(str, options)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.child = subprocess.Popen(words, **(streams | popen))

    def __enter__(self) -> Dumping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.kill()
        self.child.communicate()

    def written(self) -> int:
        """Bytes that it has given to the kernel so far."""
        counters = Path(f"/proc/{self.child.pid}/io").read_text().split()
        return int(counters[counters.index("wchar:") + 1])

    def wait_written(self, least: int = MIB) -> Dumping:
        """Wait until it has written `least` bytes: then it is in the middle of the dump."""

        def enough() -> bool:
            assert self.child.poll() is None, self.child.communicate()
            return self.written() >= least

        until(enough, f"{least} bytes written")
        return self

    def end(self, *codes: int, timeout: float = PATIENCE) -> str:
        """Wait for the end: one line on standard error with one of these exit codes; the line."""
        _, complaint = self.child.communicate(timeout=timeout)
        return check_line(complaint, self.child.returncode, *codes)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)


def check_line(complaint: bytes, code: int | None, *codes: int) -> str:
    """Assert that a command failed with one of these exit codes and said so in one line; the line."""
    text = complaint.decode()
    assert code in codes, f"exit code {code}: {text}"
    assert text.startswith("vmdump: "), text
    assert len(text.splitlines()) == 1, text
    return text


def refused(source: Guest | str, output: object, *options: object, code: int, **popen: Any) -> str:
    """A dump that must fail with an exit code and one line; the line. Nothing appears under the name."""
    with Dumping(source, output, *options, **popen) as dumping:
        line = dumping.end(code)
    assert not os.path.exists(str(output)), "a file was left"
    return line


def succeeds(source: Guest | str, output: object, *options: object, **popen: Any) -> dict[str, Any]:
    """A dump that must work; its report."""
    with Dumping(source, output, *options, "--json", **popen) as dumping:
        told, complaint = dumping.child.communicate(timeout=PATIENCE * 2)
    assert dumping.child.returncode == 0, complaint.decode()
    assert not complaint
    report: dict[str, Any] = json.loads(told)
    return report


def noise(guest: Guest, size: int, begin: int = MIB) -> None:
    """Fill a part of the guest's RAM file with random bytes of 6 bits: a dump of it takes its time."""
    ram = guest.ram_path()
    assert ram is not None
    block = bytes(byte & 63 for byte in os.urandom(MIB))
    with ram.open("r+b") as file:
        file.seek(begin)
        for number in range(0, size, MIB):
            file.write(block[number // MIB % 4096 :] + block[: number // MIB % 4096])


SLOW = ("-f", "kdump-zlib", "--engine", "zlib", "--level", "9", "-j", "1")
"""Some 40 MB/s of such bytes, so that a test can act in the middle; most of it before the stop."""
HELD = (*SLOW, "--layout", "flattened")
"""All of it inside the stop: what can only be written in order is not written ahead."""


def check_whole(path: Path) -> Kdump:
    """Assert that a kdump file in either layout is whole; its standard form."""
    with path.open("rb") as file:
        flattened = file.read(12) == b"makedumpfile"
    if not flattened:
        return Kdump(path).check(ahead=True)
    standard = path.with_name(f"{path.name}.standard")
    Flattened(path).check().rearrange(standard)
    try:
        return Kdump(standard).check()
    finally:
        standard.unlink()
