"""Others act on the guest while a dump holds it, or between two dumps: it migrates, and it reboots."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges
from oracles.kdump import Kdump

import vmdump
from live.conftest import MakeGuest
from live.dumping import MIB, Dumping, check_line, guardians_of, noise, until
from live.guests import Guest

BUSY = 12


@pytest.fixture
def migrated(bare_guest: MakeGuest) -> Iterator[tuple[Guest, Dumping]]:
    """A guest that has migrated away while a dump held it, and that dump; its reader has stalled."""
    guest = bare_guest("64M")
    noise(guest, 16 * MIB)
    guest.monitor.execute("cont")
    with Dumping(guest, "-", "-f", "elf") as dumping:
        dumping.wait_written(4096)
        assert guest.monitor.status() == "paused"
        guest.monitor.execute("migrate", uri="exec:cat >/dev/null")
        until(lambda: guest.monitor.status() == "postmigrate", "the guest has migrated")
        assert guest.monitor.execute("query-migrate")["status"] == "completed"
        assert dumping.child.poll() is None
        yield guest, dumping


def check_stays_away(guest: Guest) -> None:
    """It runs elsewhere, on the same disks: nobody has started it here as well."""
    until(lambda: not guardians_of(guest), "the guardian has ended")
    assert guest.monitor.status() == "postmigrate"
    # Nor was it started and stopped again: the last thing that happened to it is vmdump's stop.
    assert [name for name in guest.monitor.event_names() if name in ("STOP", "RESUME")][-1] == "STOP"


def test_guest_that_migrates_away_while_it_is_held(migrated: tuple[Guest, Dumping]) -> None:
    guest, dumping = migrated
    _, complaint = dumping.child.communicate(timeout=60)
    assert "postmigrate" in check_line(complaint, dumping.child.returncode, BUSY)
    check_stays_away(guest)


def test_vmdump_is_killed_after_the_guest_has_migrated(migrated: tuple[Guest, Dumping]) -> None:
    guest, dumping = migrated
    assert len(guardians_of(guest)) == 1
    dumping.signal(signal.SIGKILL)
    dumping.child.wait()
    check_stays_away(guest)


def reboot(guest: Guest) -> None:
    """Until it is up again."""
    begin = len(guest.serial.read_bytes())
    guest.monitor.execute("system_reset")
    until(lambda: b"GUEST-READY" in guest.serial.read_bytes()[begin:], "the guest is up again")


def kernel_of(path: Path) -> tuple[str, int]:
    """Where KASLR has put the kernel: in virtual and in physical memory."""
    kdump = Kdump(path).check(ahead=True)
    text = dict(line.split("=", 1) for line in kdump.vmcoreinfo.decode().splitlines() if "=" in line)
    return text["KERNELOFFSET"], kdump.sub_header["phys_base"]


def test_source_that_outlives_a_reboot(make_guest: MakeGuest, scratch: Path) -> None:
    """The old kernel's VMCOREINFO may still agree with what is left of it in memory."""
    judges.require("drgn")
    import drgn

    # KASLR needs a CPU with entropy.
    guest = make_guest("512M", vmcoreinfo=False, cpu="max", extra=("-action", "reboot=reset"))
    kernels = []
    with vmdump.open_source(f"qmp:{guest.qmp}") as source:
        for number in range(2):
            if number:
                reboot(guest)
            path = scratch / str(number)
            vmdump.dump(source, path)
            kernels.append(kernel_of(path))
            program = drgn.Program()
            program.set_core_dump(path)
            with vmdump.open(path) as dump:
                address = dump.vmcoreinfo.symbol("init_uts_ns")
            # Through the page tables of the kernel that runs.
            assert address is not None
            assert b"Linux\0" in program.read(address, 64 + 6 * 65), kernels
    assert kernels[0] != kernels[1]
