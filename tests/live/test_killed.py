"""A vmdump that dies: whatever its moment was, the guest runs again, and nothing is left of the dump."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.dumping import HELD, MIB, SLOW, Dumping, check_whole, guardians_of, noise, succeeds, until
from live.guests import Guest

MOMENTS = 50
GUEST_RUNS = 1.0
"""Seconds within which the guest of a killed vmdump runs again."""
GUARDIAN_ENDS = 2.0


@pytest.fixture(scope="module")
def _guest() -> Iterator[Guest]:
    judges.require("qemu-system-x86_64")
    with Guest("256M", boot=False, vmcoreinfo=False) as guest:
        noise(guest, 64 * MIB)
        yield guest


@pytest.fixture
def guest(_guest: Guest) -> Iterator[Guest]:
    """A running guest, of which a dump takes half a second, and with `HELD` some two."""
    _guest.monitor.execute("cont")
    yield _guest
    # Let no test inherit what another one has left.
    for pid in guardians_of(_guest):
        os.kill(pid, signal.SIGKILL)


def check_aftermath(guest: Guest, folder: Path) -> None:
    """It runs in time, the guardian is gone in time, and the folder is as empty as before."""
    begin = time.monotonic()
    until(guest.running, "the guest runs again", GUEST_RUNS)
    left = GUARDIAN_ENDS - (time.monotonic() - begin)
    until(lambda: not guardians_of(guest), "the guardian has ended", left)
    assert guest.running()
    assert not list(folder.iterdir())


def test_sigkill_at_random_moments(guest: Guest, scratch: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    folder = scratch / "out"
    folder.mkdir()
    whole = 60.0
    for name in ("cold", "warm"):
        begin = time.monotonic()
        succeeds(guest, scratch / name)
        whole = min(whole, time.monotonic() - begin)
    stopped = ended = 0
    for number in range(MOMENTS):
        # Spread over the run, each in a slice of its own.
        moment = whole * (number + moments.random()) / MOMENTS
        held = number % 2 == 1
        layout = ("--layout", "flattened") if held else ()
        with Dumping(guest, folder / "dump", *layout) as dumping:
            try:
                dumping.child.wait(moment)
            except subprocess.TimeoutExpired:
                if held or number % 4 == 2:
                    # Frozen first: what the guest did at that very moment can then be asked.
                    dumping.signal(signal.SIGSTOP)
                    stopped += not guest.running()
                dumping.signal(signal.SIGKILL)
            dumping.child.wait()
            if (folder / "dump").exists():
                # It was killed behind its end, or has ended before.
                check_whole(folder / "dump")
                (folder / "dump").unlink()
                ended += 1
            try:
                check_aftermath(guest, folder)
            except AssertionError as error:
                error.add_note(f"killed after {moment:.3f} s of {whole:.3f} s (number {number}, seed {seed})")
                raise
    print(f"of {MOMENTS} runs of {whole:.2f} s, {ended} had ended; {stopped} found the guest stopped")
    assert stopped >= MOMENTS // 10
    assert ended <= MOMENTS // 2
    succeeds(guest, folder / "dump")
    check_whole(folder / "dump")


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_sigkill_in_the_middle(name: str, guest: Guest, scratch: Path) -> None:
    options = HELD if name == "kdump-zlib" else ("-f", name, "-j", "1")
    with Dumping(guest, scratch / "dump", *options) as dumping:
        until(lambda: not guest.running(), "the guest is stopped")
        if name == "kdump-zlib":
            dumping.wait_written()
            assert len(guardians_of(guest)) == 1
        dumping.signal(signal.SIGKILL)
        dumping.child.wait()
        check_aftermath(guest, scratch)


@pytest.mark.parametrize("options", [SLOW, HELD], ids=["running", "held"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line(
    number: signal.Signals, code: int, twice: bool, options: tuple[str, ...], guest: Guest, scratch: Path
) -> None:
    with Dumping(guest, scratch / "dump", *options) as dumping:
        dumping.wait_written()
        assert guest.running() is (options == SLOW)
        dumping.signal(number)
        if twice:
            dumping.signal(number)
        assert "Traceback" not in dumping.end(code, timeout=10)
        check_aftermath(guest, scratch)


def test_ctrl_c_in_a_terminal_goes_to_the_whole_group(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump", *HELD, start_new_session=True) as dumping:
        dumping.wait_written()
        os.killpg(dumping.child.pid, signal.SIGINT)
        os.killpg(dumping.child.pid, signal.SIGINT)
        dumping.end(130, timeout=10)
        check_aftermath(guest, scratch)


def test_the_whole_group_is_killed(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump", *HELD, start_new_session=True) as dumping:
        dumping.wait_written()
        os.killpg(dumping.child.pid, signal.SIGKILL)
        dumping.child.wait()
        check_aftermath(guest, scratch)


def test_frozen_then_killed(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        dumping.signal(signal.SIGSTOP)
        time.sleep(0.5)
        # Frozen is not dead: somebody may thaw it.
        assert not guest.running()
        dumping.signal(signal.SIGKILL)
        dumping.child.wait()
        check_aftermath(guest, scratch)


FREEZES_IN_HEADERS = """
import os, signal, sys
from vmdump.cli.main import main
from vmdump.sources.qemu import dump_headers
def read_headers(read, then=dump_headers.read_headers, **options):
    read(0, 16)
    os.kill(os.getpid(), signal.SIGSTOP)
    return then(read, **options)
dump_headers.read_headers = read_headers
sys.argv[:3] = ["vmdump"]  # for -c -m vmdump
sys.exit(main())
"""


def test_frozen_while_qemu_tells_the_layout(guest: Guest, scratch: Path) -> None:
    """QEMU's main loop writes that: while it waits for a reader, no monitor gets an answer."""
    with Dumping(guest, scratch / "dump", python=(sys.executable, "-c", FREEZES_IN_HEADERS)) as dumping:
        stat = Path(f"/proc/{dumping.child.pid}/stat")

        def frozen() -> bool:
            return stat.read_text().rpartition(")")[2].split()[0] == "T"

        until(frozen, "it is frozen at the attach")
        until(guest.running, "QEMU is done", GUEST_RUNS)
        dumping.signal(signal.SIGCONT)
        until(lambda: not guest.running(), "the guest is stopped")
        # Inside the stop it asks once more at the end: for the registers, which must be the same.
        for _ in range(2):
            until(frozen, "it is frozen inside the stop")
            assert not guest.running()
            dumping.signal(signal.SIGCONT)
            until(lambda: not frozen(), "it goes on")
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint
    check_whole(scratch / "dump")
    assert guest.running()


def test_frozen_then_thawed(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump") as dumping:
        until(lambda: not guest.running(), "the guest is stopped")
        dumping.signal(signal.SIGSTOP)
        time.sleep(0.3)
        dumping.signal(signal.SIGCONT)
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint
    check_whole(scratch / "dump")
    assert guest.running()


def test_the_guardian_is_killed(guest: Guest, scratch: Path) -> None:
    """The dump does not need it."""
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        (pid,) = guardians_of(guest)
        os.kill(pid, signal.SIGKILL)
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint
    assert guest.running()
    check_whole(scratch / "dump")


def test_a_paused_guest_stays_paused_when_its_vmdump_dies(guest: Guest, scratch: Path) -> None:
    guest.monitor.execute("stop")
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        dumping.signal(signal.SIGKILL)
        dumping.child.wait()
        time.sleep(0.5)
        assert guest.monitor.status() == "paused"
        assert guardians_of(guest) == []
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        dumping.signal(signal.SIGTERM)
        dumping.end(143)
        assert guest.monitor.status() == "paused"
    assert not list(scratch.iterdir())
