"""The guests themselves: they run, they stop, and they leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.guests import Guest, MonitorError, remove_stale_files

MIB = 1 << 20
MakeGuest = Callable[..., Guest]


@pytest.fixture(scope="module")
def small_guest() -> Iterator[Guest]:
    judges.require("guest")
    with Guest("256M", fill=32, tick=True) as guest:
        yield guest.wait_ready()


def test_a_guest_runs_until_it_is_stopped(small_guest: Guest) -> None:
    assert small_guest.running()
    assert small_guest.wait_tick() > 0
    small_guest.monitor.execute("stop")
    assert (small_guest.running(), small_guest.monitor.status()) == (False, "paused")
    stopped_at = small_guest.ticks()
    time.sleep(1)
    assert small_guest.ticks() == stopped_at
    small_guest.monitor.execute("cont")
    assert small_guest.wait_tick() > stopped_at
    assert small_guest.monitor.event_names()[-2:] == ["STOP", "RESUME"]


def test_the_fill_takes_up_memory(small_guest: Guest) -> None:
    assert 32 * MIB < small_guest.allocated() < 256 * MIB
    assert small_guest.rss() > 32 * MIB
    ram = small_guest.ram_path()
    assert ram is not None
    assert ram.stat().st_size == 256 * MIB


@pytest.mark.parametrize("device", [True, False], ids=["vmcoreinfo", "no-vmcoreinfo"])
def test_the_kernel_gives_its_vmcoreinfo_to_the_device(
    device: bool, request: pytest.FixtureRequest, scratch: Path
) -> None:
    judges.require("readelf")
    guest: Guest = request.getfixturevalue("small_guest" if device else "private_guest")
    output = scratch / "by-qemu.elf"
    assert guest.monitor.dump(output) > 0
    assert guest.running()
    assert ("VMCOREINFO" in judges.readelf(output, "--notes")) is device
    with output.open("rb") as file:
        assert (b"OSRELEASE=" in file.read(MIB)) is device


def test_a_busy_guest_rewrites_its_memory(busy_guest: Guest) -> None:
    busy_guest.wait_tick()
    ram = busy_guest.ram_path()
    assert ram is not None

    def sample() -> list[bytes]:
        with ram.open("rb") as file:
            return [os.pread(file.fileno(), 8, offset) for offset in range(0, 2048 * MIB, 64 * 1024)]

    before = sample()
    busy_guest.wait_tick()
    time.sleep(1)
    # 64 MiB are 1024 of the samples.
    assert sum(old != new for old, new in zip(before, sample(), strict=True)) > 100


@pytest.mark.parametrize("share", ["file", "memfd", "private"])
def test_nothing_is_left_of_a_stopped_guest(share: str, bare_guest: MakeGuest) -> None:
    guest = bare_guest("64M", share=share)
    assert guest.monitor.status() == "prelaunch"
    assert not guest.running()
    ram = guest.ram_path()
    assert (ram is None) == (share == "private")
    assert guest.allocated() <= 64 * MIB
    assert ram is None or ram.stat().st_size == 64 * MIB
    guest.stop()
    guest.stop()
    assert not Path(f"/proc/{guest.pid}").exists()
    assert ram is None or not ram.exists()
    assert not guest.folder.exists()


def test_a_refused_command_is_an_error(bare_guest: MakeGuest) -> None:
    monitor = bare_guest().monitor
    with pytest.raises(MonitorError, match="no-such-command") as caught:
        monitor.execute("no-such-command")
    assert caught.value.kind == "CommandNotFound"
    assert monitor.status() == "prelaunch"


def test_qemus_complaint_is_in_the_error(bare_guest: MakeGuest) -> None:
    with pytest.raises(RuntimeError, match="no-such-device"):
        bare_guest(extra=("-device", "no-such-device"))


_KILLED_RUN = """
import time
from live.guests import Guest
guest = Guest("64M", boot=False)
print(guest.pid, guest.folder, guest.ram_path(), flush=True)
time.sleep(600)
"""


def test_no_guest_survives_a_killed_test_run() -> None:
    judges.require("qemu-system-x86_64")
    run = subprocess.Popen(
        [sys.executable, "-c", _KILLED_RUN], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        pid, *left = run.stdout.readline().split()
        remove_stale_files()
        assert all(Path(name).exists() for name in left), "files of a living guest were removed"
        run.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    while _alive(int(pid)):
        assert time.monotonic() - begin < 60, "QEMU lives on"
        time.sleep(0.02)
    remove_stale_files()
    assert not any(Path(name).exists() for name in left)


def _alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
