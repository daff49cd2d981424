"""A guest that runs: it is paused for the dump, runs again, and has not grown."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import judges
from oracles.elf import ElfCore, split_notes
from oracles.kdump import Kdump

import vmdump
from live.conftest import MakeGuest
from live.dumping import MIB, Dumping, guardians_of, noise, succeeds, until
from live.guests import Guest
from live.test_stopped import check_kdump
from vmdump import errors


def size(guest: Guest) -> tuple[int, int]:
    return guest.mapped(), guest.allocated()


def events_since(guest: Guest, known: int) -> list[str]:
    """What became of the guest since it had had `known` events."""
    return [name for name in guest.monitor.event_names()[known:] if name in ("STOP", "RESUME")]


def seen(guest: Guest) -> int:
    return len(guest.monitor.event_names())


@pytest.mark.parametrize("share", ["file", "private"])
def test_it_runs_again_and_has_not_grown(share: str, make_guest: MakeGuest, scratch: Path) -> None:
    # A guest that QEMU has dumped is resident altogether and cannot grow: so nobody else's guest.
    guest = make_guest("512M", share=share, fill=40, tick=True)
    guest.wait_tick()
    before, begin = size(guest), time.monotonic()
    assert max(before) < 400 * MIB
    succeeds(guest, scratch / "first")
    seconds = time.monotonic() - begin
    # What it takes by itself in the same time, that the dumps may not be blamed for.
    start = size(guest)
    time.sleep(max(seconds, 1))
    idle = [max(0, now - then) for then, now in zip(start, size(guest), strict=True)]
    known = seen(guest)
    report = succeeds(guest, scratch / "elf", "-f", "elf")
    assert report["fuzzy"] is False
    assert report["unreadable"] == []
    assert 0 < report["paused_seconds"] < report["seconds"]
    assert guest.running()
    guest.wait_tick()
    grown = [now - then for then, now in zip(before, size(guest), strict=True)]
    # Private memory is in huge pages, and each that the guest itself touches is 2 MiB.
    most = 8 * MIB if guest.share == "private" else MIB
    assert all(more < most + 3 * own for more, own in zip(grown, idle, strict=True)), (grown, idle)
    # Twice for QEMU's headers: at the attach, and inside the stop, where it has no events.
    assert events_since(guest, known)[-2:] == ["STOP", "RESUME"]
    assert events_since(guest, known).count("STOP") == events_since(guest, known).count("RESUME") <= 2
    ElfCore(scratch / "elf").check_vmdump_layout()
    Kdump(scratch / "first").check(ahead=True)


def test_the_pause_is_what_qemu_says(running_guest: Guest, scratch: Path) -> None:
    """The report's seconds, by the time stamps of the events on another monitor."""
    running_guest.wait_tick()
    known = seen(running_guest)
    report = succeeds(running_guest, scratch / "dump")
    seen(running_guest)
    stamps = {"STOP": 0.0, "RESUME": 0.0}
    for event in running_guest.monitor.events[known:]:
        stamp = event["timestamp"]
        if event["event"] in stamps:
            stamps[event["event"]] += stamp["seconds"] + stamp["microseconds"] / 1e6
    assert report["paused_seconds"] == pytest.approx(stamps["RESUME"] - stamps["STOP"], abs=0.02)


def test_a_busy_guest_is_dumped_at_one_moment(busy_guest: Guest, scratch: Path) -> None:
    judges.require("drgn")
    busy_guest.wait_tick()
    known = seen(busy_guest)
    report = succeeds(busy_guest, scratch / "dump")
    assert report["fuzzy"] is False
    assert 0 < report["paused_seconds"] < report["seconds"]
    assert busy_guest.running()
    before = busy_guest.wait_tick()
    assert busy_guest.wait_tick() > before
    kdump = Kdump(scratch / "dump").check(ahead=True)
    assert [note.name for note in split_notes(kdump.notes, "<")].count(b"VMDUMP") == 0
    # One stop for all of it, and those of QEMU's for the headers: at the attach, and before it is packed.
    events = events_since(busy_guest, known)
    assert events == ["STOP", "RESUME"] * (len(events) // 2)
    assert 2 <= len(events) <= 6
    _open_in_drgn(scratch / "dump")


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_a_paused_guest_stays_paused(name: str, running_guest: Guest, scratch: Path) -> None:
    running_guest.monitor.execute("stop")
    known = seen(running_guest)
    report = succeeds(running_guest, scratch / "dump", "-f", name)
    assert (report["paused_seconds"], report["fuzzy"]) == (0, False)
    assert running_guest.monitor.status() == "paused"
    assert events_since(running_guest, known) == []


def test_a_paused_guest_needs_no_pause(running_guest: Guest, scratch: Path) -> None:
    """With --no-pause, too, its dump is of one moment and says nothing else."""
    running_guest.monitor.execute("stop")
    report = succeeds(running_guest, scratch / "dump", "--no-pause")
    assert report["fuzzy"] is False
    assert b"VMDUMP" not in Kdump(scratch / "dump").check().notes
    assert running_guest.monitor.status() == "paused"


def test_prelaunch_stays_prelaunch(bare_guest: MakeGuest, scratch: Path) -> None:
    guest = bare_guest("64M")
    succeeds(guest, scratch / "dump")
    succeeds(guest, scratch / "fuzzy", "--no-pause")
    assert guest.monitor.status() == "prelaunch"
    assert events_since(guest, 0) == []


@pytest.mark.parametrize("name", ["kdump-zlib", "kdump-lzo"])
def test_what_changes_before_the_stop_is_dumped_as_it_was_then(
    name: str, bare_guest: MakeGuest, scratch: Path
) -> None:
    """Pages of all kinds change while the guest is packed; then the test itself stops it, and it stays so."""
    guest = bare_guest("256M")
    noise(guest, 100 * MIB)
    guest.monitor.execute("cont")
    ram = guest.ram_path()
    assert ram is not None
    options = ("--level", "9", "--engine", "zlib") if name == "kdump-zlib" else ()
    with Dumping(guest, scratch / "ours", "-f", name, "-j", "1", *options) as dumping:
        dumping.wait_written(8 * MIB)
        with ram.open("r+b") as file:
            for offset in range(2 * MIB, 250 * MIB, 333 * 4096):
                os.pwrite(file.fileno(), os.urandom(4096), offset)  # other bytes, or the first ones there
                os.pwrite(file.fileno(), bytes(4096), offset + 2 * 4096)  # zeros where there were bytes
                os.pwrite(file.fileno(), b"!", offset + 5 * 4096 + 4095)  # one byte at the very end
                os.pwrite(file.fileno(), os.urandom(64) * 64, offset + 8 * 4096)  # what compresses well
        guest.monitor.execute("stop")
        _, complaint = dumping.child.communicate(timeout=60)
        assert dumping.child.returncode == 0, complaint
    assert guest.monitor.status() == "paused"
    guest.monitor.dump(scratch / "theirs")
    theirs = ElfCore(scratch / "theirs")
    kdump = Kdump(scratch / "ours")
    assert kdump.notes == theirs.notes
    assert check_kdump(kdump, theirs, ahead=True) * 4096 >= 100 * MIB


def fuzzy_notes(notes: bytes) -> list[Any]:
    return [note for note in split_notes(notes, "<") if note.name == b"VMDUMP"]


def test_without_a_pause(busy_guest: Guest, scratch: Path) -> None:
    judges.require("drgn")
    judges.require("makedumpfile")
    busy_guest.wait_tick()
    known = seen(busy_guest)
    report = succeeds(busy_guest, scratch / "kdump", "--no-pause")
    assert report["fuzzy"] is True
    assert busy_guest.running()
    busy_guest.wait_tick()
    # QEMU itself stops the guest to take the registers, for some 0.5 ms; a dump takes a second.
    longest, began = 0.0, 0.0
    seen(busy_guest)
    for event in busy_guest.monitor.events[known:]:
        stamp = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "STOP":
            began = stamp
        elif event["event"] == "RESUME":
            longest = max(longest, stamp - began)
    assert longest < report["seconds"] / 4
    assert report["paused_seconds"] < report["seconds"] / 4

    kdump = Kdump(scratch / "kdump").check()
    (note,) = fuzzy_notes(kdump.notes)
    assert (note.type, note.desc.rstrip(b"\0\n")) == (1, b"FUZZY=1")
    own_data = np.flatnonzero(kdump.descriptors["offset"] != kdump.data_offset)
    assert len(own_data) * 4096 > 300 * MIB
    assert {len(kdump.page_at(index)) for index in own_data.tolist()} == {4096}
    _open_in_drgn(scratch / "kdump")
    judges.makedumpfile_filter(scratch / "kdump", scratch / "filtered", "-c", "-d", "1")

    succeeds(busy_guest, scratch / "elf", "--no-pause", "-f", "elf")
    (note,) = fuzzy_notes(ElfCore(scratch / "elf").check_vmdump_layout().notes)
    assert (note.type, note.desc.rstrip(b"\0\n")) == (1, b"FUZZY=1")
    _open_in_drgn(scratch / "elf")


def _open_in_drgn(path: Path) -> None:
    import drgn

    program = drgn.Program()
    program.set_core_dump(path)
    assert program["UTS_RELEASE"].string_()
    assert program.platform.arch is drgn.Architecture.X86_64


def test_much_faster_than_qemu(busy_guest: Guest, scratch: Path) -> None:
    """The only time that is asserted, as a ratio within one run: vmdump goes first, with everything cold."""
    busy_guest.wait_tick()
    report = succeeds(busy_guest, scratch / "ours")
    busy_guest.monitor.execute("stop")
    theirs = busy_guest.monitor.dump(scratch / "theirs", "kdump-zlib")
    print(f"vmdump {report['paused_seconds']:.2f} s, QEMU {theirs:.2f} s")
    assert 0 < report["paused_seconds"] < theirs / 5


@pytest.fixture
def slow_guest(bare_guest: MakeGuest) -> Guest:
    """A running guest of which a dump with these `OPTIONS` takes seconds."""
    guest = bare_guest("256M")
    noise(guest, 200 * MIB)
    guest.monitor.execute("cont")
    return guest


OPTIONS: dict[str, Any] = {
    **{"format": "kdump-zlib", "engine": "zlib", "level": 9, "threads": 1},
    "layout": "flattened",
}


def test_a_job_in_the_background_is_cancelled(slow_guest: Guest, scratch: Path) -> None:
    job = vmdump.start_dump(f"qmp:{slow_guest.qmp}", scratch / "dump", **OPTIONS)
    assert job.status == "active"
    seen_so_far = [job.done]
    for progress in job.progress(0.05):
        seen_so_far.append(progress.done)
        assert progress.done <= max(progress.total, 0)
        if progress.done > 32 * MIB:
            assert progress.status == "active"
            assert progress.total >= 256 * MIB
            assert progress.rate > 0
            assert progress.eta is not None
            assert not slow_guest.running()
            break
    assert seen_so_far == sorted(seen_so_far)
    job.cancel()
    with pytest.raises(errors.Cancelled):
        job.wait(30)
    assert job.status == "cancelled"
    assert 32 * MIB < job.done < job.total
    assert slow_guest.running()
    assert not list(scratch.iterdir())
    assert guardians_of(slow_guest) == []
    # The socket is free again.
    succeeds(slow_guest, scratch / "dump")


def test_a_job_whose_context_is_left_early(slow_guest: Guest, scratch: Path) -> None:
    with vmdump.start_dump(f"qmp:{slow_guest.qmp}", scratch / "dump", **OPTIONS) as job:
        until(lambda: job.done > 16 * MIB, "16 MiB are dumped")
        assert not slow_guest.running()
    assert job.status == "cancelled"
    assert slow_guest.running()
    assert not list(scratch.iterdir())


def test_a_job_that_is_waited_for(slow_guest: Guest, scratch: Path) -> None:
    with vmdump.start_dump(f"qmp:{slow_guest.qmp}", scratch / "dump") as job:
        report = job.wait(60)
    assert (job.status, job.done) == ("completed", job.total)
    assert report.paused_seconds is not None
    assert 0 < report.paused_seconds < report.seconds
    assert slow_guest.running()
    Kdump(scratch / "dump").check(ahead=True)


def test_one_source_for_several_dumps(slow_guest: Guest, scratch: Path) -> None:
    with vmdump.open_source(f"qmp:{slow_guest.qmp}") as source:
        for number in range(3):
            vmdump.dump(source, scratch / f"{number}")
            assert slow_guest.running()
            Kdump(scratch / f"{number}").check(ahead=True)
    assert guardians_of(slow_guest) == []
