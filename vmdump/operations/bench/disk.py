"""How fast a dump is written to a folder: tried with a file that is removed."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmdump.errors import SinkError
from vmdump.guest.blocks import Pages
from vmdump.sinks.base import Sink
from vmdump.sinks.opening import open_sink

__all__ = ["DISK_ROUNDS", "DiskSpeed", "measure_disk"]

DISK_ROUNDS = 3
_SIZE = 256 << 20
_SHARE = 10
"""At most this part of the free room is taken."""
_WRITE = 4 << 20
_PATIENCE = 2.0
"""Seconds of writing in a round, whatever was to be written: a slow disk would take minutes for 256 MiB."""


@dataclass(frozen=True)
class DiskSpeed:
    """What :func:`measure_disk` found.

    Attributes
    ----------
    folder : str
        Where.
    bytes_per_second, slowest, fastest : float
        Median, minimum and maximum of the rounds, syncing included.
    processor_seconds : float
        That one processor is busy for each byte, in the median.
    bytes_written : int
        In a round.
    room : int
        Bytes that are free.
    """

    folder: str
    bytes_per_second: float
    slowest: float
    fastest: float
    processor_seconds: float
    bytes_written: int
    room: int


class _Enough(Exception):
    """Ends a sink without a file."""


def measure_disk(
    folder: str | os.PathLike[str], *, cancelled: Callable[[], bool], round_done: Callable[[], object]
) -> DiskSpeed:
    """Write bytes that do not compress to a file without a name, as a dump writes its pages, and sync them.

    256 MiB, or 2 s long, or a tenth of the free room where that is less; three times.

    Parameters
    ----------
    folder : str or path
        Where the dump is to go.
    cancelled : callable
        Asked while a write waits.
    round_done : callable
        Called after each round.

    Raises
    ------
    SinkError
        Writing there failed.
    Cancelled
        `cancelled` returned true.
    """
    name = os.fspath(folder) or "."
    path = os.path.join(name, f".vmdump-{secrets.token_hex(8)}")
    rounds: list[tuple[int, float, float]] = []
    try:
        status = os.statvfs(name)
        room = status.f_bavail * status.f_frsize
        size = min(_SIZE, room // _SHARE)
        # A little is written even to a full disk: its error says best what is wrong with it.
        block = np.frombuffer(np.random.default_rng(0).bytes(min(max(size, 4096), _WRITE)), np.uint8)
        with open_sink(path) as sink:
            for _ in range(DISK_ROUNDS):
                rounds.append(_write(sink, block, size, cancelled))
                round_done()
            raise _Enough
    except _Enough:
        pass
    except OSError as error:
        hint = getattr(error, "hint", "name the folder that the dump is to go to")
        raise SinkError("cannot try this folder", path=name, errno=error.errno, hint=hint) from error
    rates = [written / seconds for written, seconds, _ in rounds]
    return DiskSpeed(
        folder=name,
        bytes_per_second=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        processor_seconds=statistics.median(busy / written for written, _, busy in rounds),
        bytes_written=max(written for written, _, _ in rounds),
        room=room,
    )


def _write(sink: Sink, block: Pages, size: int, cancelled: Callable[[], bool]) -> tuple[int, float, float]:
    """Write one round; give its bytes, seconds, and seconds of this thread on a processor."""
    sink.clear()
    began, busy = time.perf_counter(), time.thread_time()
    channel = sink.channel()
    with sink.errors("cannot write"):
        while not channel.position or (
            channel.position + block.size <= size and time.perf_counter() - began < _PATIENCE
        ):
            channel.write(block, cancelled)
        channel.flush(cancelled)
    sink.sync()
    return channel.position, time.perf_counter() - began, time.thread_time() - busy
