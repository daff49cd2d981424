"""A storm of signals against dumps of a real QEMU, some of it frozen: the guest runs, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.dumping import (
    HELD,
    MIB,
    SLOW,
    Dumping,
    check_line,
    check_whole,
    guardians_of,
    noise,
    succeeds,
    until,
)
from live.guests import QEMU, Guest

ROUNDS = 24
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGQUIT: 131}
APART = 0.25
"""Seconds between two signals of which the first has to count: a busy machine gives both at once."""


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A running guest, of which a dump takes some half a second."""
    judges.require(QEMU)
    with Guest("64M", boot=False, vmcoreinfo=False) as guest:
        noise(guest, 16 * MIB)
        guest.monitor.execute("cont")
        yield guest


def is_ready(dumping: Dumping) -> bool:
    """Whether the command has its handlers: before that, Python itself starts."""
    for line in Path(f"/proc/{dumping.child.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def test_signals_at_random_moments(guest: Guest, scratch: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    begin = time.monotonic()
    succeeds(guest, scratch / "first", *HELD)
    whole = time.monotonic() - begin
    (scratch / "first").unlink()
    seen = set()
    for number in range(ROUNDS):
        options = chance.choice((HELD, SLOW, ("-f", "elf")))
        frozen, killed = chance.random() < 0.4, chance.random() < 0.15
        signals = [chance.choice(list(CODES)) for _ in range(chance.randint(1, 5))]
        here = f"round {number}, seed {seed}"
        with Dumping(guest, scratch / "dump", "-q", *options) as dumping:
            until(lambda: dumping.child.poll() is not None or is_ready(dumping), here)
            time.sleep(chance.random() * whole)
            if frozen:
                os.kill(guest.pid, signal.SIGSTOP)
            try:
                for each in signals:
                    dumping.signal(each)
                    time.sleep(APART if each is signals[0] else chance.random() * 0.1)
                if killed:
                    dumping.signal(signal.SIGKILL)
            finally:
                os.kill(guest.pid, signal.SIGCONT)
            _, complaint = dumping.child.communicate(timeout=30)
            code = dumping.child.returncode
        until(guest.running, f"the guest runs: {here}", 5)
        until(lambda: not guardians_of(guest), f"no guardian is left: {here}", 5)
        seen.add(code)
        if code == 0 or (code == -signal.SIGKILL and list(scratch.iterdir())):
            if options != ("-f", "elf"):
                check_whole(scratch / "dump")
            (scratch / "dump").unlink()
            assert not complaint, here
        elif code != -signal.SIGKILL:
            assert "ended by" in check_line(complaint, code, CODES[signals[0]]), here
        assert not list(scratch.iterdir()), here
    assert len(seen & set(CODES.values())) > 1
