"""Measure one run of a contestant, and have contestants run in turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600
"""Seconds after which a command is killed."""

Kind = Literal["vmdump", "peer", "limit"]


class Failed(Exception):
    """Why a contestant has no figures."""


@dataclass
class Sample:
    """One run; None where nothing was measured.

    Attributes
    ----------
    seconds : float
        Wall time: of the whole process, of QEMU's command, of the bare loop.
    dump_seconds : float or None
        vmdump's own: from the first to the last byte.
    synced_seconds : float or None
        `seconds`, and what syncing the output took afterwards.
    cpu_seconds : float or None
        User and system, the process's and QEMU's.
    peak_bytes : int or None
        Of the process; for QEMU's own dump by how much QEMU grew at most, the guest's memory left out.
    growth_bytes : int or None
        By how much the guest's RAM grew.
    still_seconds : float or None
        For how long the guest was paused.
    output_bytes, disk_bytes : int or None
        Length of the output, and what it takes on the disk.
    data_bytes : int or None
        Guest memory that is resident: all but the holes.
    engine : str
        Engine and level.
    changed_pages : int or None
        Pages of a running guest that vmdump packed twice.
    error : str
        Why there are no figures.
    """

    seconds: float = 0.0
    dump_seconds: float | None = None
    synced_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    growth_bytes: int | None = None
    still_seconds: float | None = None
    output_bytes: int | None = None
    disk_bytes: int | None = None
    data_bytes: int | None = None
    engine: str = ""
    changed_pages: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Contestant:
    """One line of a group.

    Attributes
    ----------
    name : str
        Unique in its group.
    kind : {"vmdump", "peer", "limit"}
        limit: the same engine in a bare loop.
    run : callable
        Does one run, of the round with this number.
    peer, limit : str
        Names of those that it is compared with, in its group; empty: none.
    """

    name: str
    kind: Kind
    run: Callable[[int], Sample]
    peer: str = ""
    limit: str = ""


@dataclass
class Row:
    """A contestant's samples, one per round."""

    name: str
    kind: Kind
    peer: str
    limit: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def good(self) -> list[Sample]:
        """The samples of the rounds that worked."""
        return [sample for sample in self.samples if not sample.error]


@dataclass
class Group:
    """Contestants that have run in turns.

    Attributes
    ----------
    name, about : str
        What is dumped.
    rows : list of Row
        In the order in which they ran.
    error : str
        Why the group ended early.
    """

    name: str
    about: str = ""
    rows: list[Row] = field(default_factory=list)
    error: str = ""

    def row(self, name: str) -> Row | None:
        """Find a row by its name."""
        return next((row for row in self.rows if row.name == name), None)


def say(text: str) -> None:
    """Tell on standard error how far the benchmark is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def take_turns(group: Group, contestants: Sequence[Contestant], rounds: int) -> Group:
    """Run every contestant once in each round, for the machine's speed drifts; add the rows to the group."""
    rows = [Row(one.name, one.kind, one.peer, one.limit) for one in contestants]
    group.rows += rows
    for turn in range(rounds):
        for contestant, row in zip(contestants, rows, strict=True):
            try:
                sample = contestant.run(turn)
            except (Exception, subprocess.TimeoutExpired) as error:
                # Whatever it was, the others still have their turn.
                sample = Sample(error=f"{error}" or type(error).__name__)
            row.samples.append(sample)
            told = sample.error or f"{sample.seconds:.2f} s"
            say(f"{group.name}, round {turn + 1} of {rounds}: {contestant.name}: {told}")
    return group


@dataclass(frozen=True)
class Process:
    """A process that has ended."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stdout: str


def run_process(*command: str) -> Process:
    """Run a command to its end.

    Raises
    ------
    Failed
        It is not there, it failed, or it took longer than `PATIENCE`.
    """
    child = str(Path(__file__).with_name("child.py"))
    with tempfile.TemporaryDirectory(prefix="vmdump-bench-") as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        words = [sys.executable, "-I", "-S", child, str(stdout), str(stderr), str(PATIENCE), *command]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as helper:
            try:
                told, _ = helper.communicate()
            except BaseException:
                os.killpg(helper.pid, signal.SIGTERM)
                helper.communicate()  # until the command has cleaned up
                raise
        if helper.returncode:
            raise Failed(f"{command[0]} could not be started")
        took = json.loads(told)
        if took["exit_code"]:
            lines = (stderr.read_text(errors="replace") or stdout.read_text(errors="replace")).split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
            raise Failed(f"exit code {took['exit_code']}: {last}")
        return Process(
            took["seconds"], took["cpu_seconds"], took["peak_bytes"], stdout.read_text(errors="replace")
        )


def clear(path: Path) -> None:
    """Remove an output of before and wait for the disk: neither is paid by the next run."""
    path.unlink(missing_ok=True)
    os.sync()


def describe_output(sample: Sample, path: Path) -> Sample:
    """Sync an output and add what it takes."""
    began = time.monotonic()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sample.synced_seconds = sample.seconds + time.monotonic() - began
    status = path.stat()
    sample.output_bytes, sample.disk_bytes = status.st_size, status.st_blocks * 512
    return sample


def read_once(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        offset, buffer = 0, bytearray(4 << 20)
        while offset < end:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return  # holes up to the end
            hole = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            while offset < hole:
                offset += os.preadv(file.fileno(), [buffer], offset)


def data_size(path: Path) -> int:
    """Bytes of a file that are not holes."""
    return path.stat().st_blocks * 512


def demand_room(folder: Path, needed: int) -> None:
    """Raise `Failed` if a folder has no room for so many bytes."""
    status = os.statvfs(folder)
    room = status.f_bavail * status.f_frsize
    if room < needed:
        raise Failed(f"{folder}: {room / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed")
