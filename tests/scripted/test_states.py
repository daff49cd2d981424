"""What else becomes of a guest that is stopped: it is reset, saved, loaded, resumed and stopped by others."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracles.elf import ElfCore
from oracles.elf_builder import Load, build_elf, note

import vmdump
from scripted.fake_qemu import FakeQemu, Ram, inside_stop, rule
from scripted.test_other_people import LARGE, PATIENCE, guardians, holding, refused_after, until

pytestmark = pytest.mark.usefixtures("nothing_left")
AWAY = {"status": "completed", "total-time": 12}
"""query-migrate, where a migration took time; where a snapshot was saved, that is 0."""
SAVED = {"status": "completed", "total-time": 0}
NOTES = note(b"CORE", 1, bytes(336))


def once(deed: Callable[[], object]) -> Callable[[], None]:
    """A deed that is done at its first call only."""
    left = [deed]

    def do() -> None:
        if left:
            left.pop()()

    return do


def restop(qemu: FakeQemu) -> None:
    """Somebody else lets the guest run, and stops it again."""
    qemu.event("RESUME")
    qemu.event("STOP")


@pytest.mark.parametrize("migration", [{}, SAVED], ids=["none", "saved"])
def test_reset_inside_the_pause(migration: dict[str, Any], tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:

        def reset() -> None:
            qemu.ask("answer", command="query-migrate", answer=migration)
            qemu.event("RESET")

        assert refused_after(qemu, out, once(reset)).state == "prelaunch"
        assert qemu.commands.count("cont") == 1
        assert qemu.running


def test_resumed_just_before_it_is_stopped(tmp_path: Path, out: Path) -> None:
    """Somebody's `cont` is obeyed when vmdump waits for its `stop` already: what follows is vmdump's stop."""
    with FakeQemu(tmp_path, rules=[rule("stop", "resumed")]) as qemu:
        report = vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert report.paused_seconds
        assert qemu.running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resumed_just_before_it_is_stopped_by_a_vmdump_that_is_killed(number: int, tmp_path: Path) -> None:
    with FakeQemu(tmp_path, [LARGE], rules=[rule("stop", "resumed")]) as qemu, holding(qemu) as child:
        child.send_signal(number)
        child.wait(PATIENCE)
        until(lambda: qemu.running, "the guest runs")
        until(lambda: not guardians(qemu), "the guardian has ended")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_reset_inside_the_pause_of_a_vmdump_that_is_killed(number: int, tmp_path: Path) -> None:
    with FakeQemu(tmp_path, [LARGE]) as qemu, holding(qemu) as child:
        qemu.event("RESET")
        child.send_signal(number)
        child.wait(PATIENCE)
        until(lambda: qemu.running, "the guest runs")
        until(lambda: not guardians(qemu), "the guardian has ended")


@pytest.mark.parametrize("number", [0, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("before", [False, True], ids=["here", "saved before"])
def test_migration_and_reset_inside_the_pause(before: bool, number: int, tmp_path: Path, out: Path) -> None:
    """A reset hides that the guest has migrated away; it must not run twice.

    Unless the same answer was there before: then it was saved to a file, and ran on.
    """
    answers = {"query-migrate": AWAY} if before else {}
    with FakeQemu(tmp_path, [LARGE], answers=answers) as qemu:

        def migrate() -> None:
            qemu.ask("answer", command="query-migrate", answer=AWAY)
            if not before:
                qemu.ask("enter", status="postmigrate")
            qemu.event("RESET")

        if number:
            with holding(qemu) as child:
                migrate()
                child.send_signal(number)
                child.wait(PATIENCE)
                until(lambda: not guardians(qemu), "the guardian has ended")
        else:
            refused_after(qemu, out, once(migrate))
        assert qemu.running is before
        assert ("cont" in qemu.commands) is before


@pytest.mark.parametrize("number", [0, signal.SIGKILL, signal.SIGTERM])
def test_somebody_lets_it_run_and_stops_it_again(number: int, tmp_path: Path, out: Path) -> None:
    """Their stop stays."""
    with FakeQemu(tmp_path, [LARGE]) as qemu:
        if number:
            with holding(qemu) as child:
                restop(qemu)
                time.sleep(0.2)
                child.send_signal(number)
                child.wait(PATIENCE)
                until(lambda: not guardians(qemu), "the guardian has ended")
        else:
            assert refused_after(qemu, out, once(lambda: restop(qemu))).state == "paused"
        assert not qemu.running
        assert "cont" not in qemu.commands


@pytest.mark.parametrize("late", [0, 1])
def test_somebody_stops_it_again_when_vmdump_resumes_it(late: int, tmp_path: Path, out: Path) -> None:
    """By the events with the last answers the guest is theirs; the last one is too late for the dump."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with FakeQemu(folders[0]) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        last = qemu.commands.count("query-status")
        assert qemu.commands[-2:] == ["query-status", "cont"]
    with FakeQemu(folders[1], rules=[rule("query-status", "restopped", last - 1 + late)]) as qemu:
        with contextlib.nullcontext() if late else pytest.raises(vmdump.errors.GuestBusy):
            vmdump.dump(qemu.source, out / "guest.elf", format="elf", force=True)
        assert "cont" not in qemu.commands
        assert not qemu.running


def test_guest_that_stops_by_itself_just_before(tmp_path: Path, out: Path) -> None:
    """For an I/O error: it did not run when it was stopped, and is dumped as it is."""
    with FakeQemu(tmp_path, rules=[rule("stop", "failed")]) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert "stop" in qemu.commands
        assert "cont" not in qemu.commands


def headers(qemu: FakeQemu, notes: bytes) -> bytes:
    return build_elf([Load(ram.start, filesz=ram.size) for ram in qemu.rams], notes=notes) + bytes(1 << 20)


@pytest.mark.parametrize("running", [True, False])
def test_snapshot_is_loaded_inside_the_pause(running: bool, tmp_path: Path, out: Path) -> None:
    """No event tells of it; the registers may."""
    with FakeQemu(tmp_path, notes=NOTES, running=running) as qemu:
        other = tmp_path / "other"
        other.write_bytes(headers(qemu, note(b"CORE", 1, b"\1" * 336))[: 16 << 10])

        def load() -> None:
            qemu.ask("load", elf=str(other))

        error = refused_after(qemu, out, once(load), running=running)
        assert (error.state, error.exit_code) == ("restore-vm", 12)
        assert qemu.commands.count("cont") == running


FLUSHES = "human-monitor-command info jit"


def test_snapshot_of_the_same_registers(tmp_path: Path, out: Path) -> None:
    """TCG has thrown its code away."""
    with FakeQemu(tmp_path, answers={FLUSHES: "Statistics:\r\nTB flush count      2\r\n"}) as qemu:
        load = "Statistics:\r\nTB flush count      4\r\n"
        deed = once(lambda: qemu.ask("answer", command=FLUSHES, answer=load))
        assert refused_after(qemu, out, deed).state == "restore-vm"
        assert qemu.running
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")


@pytest.mark.parametrize("busy", ["", "query-block-jobs", "query-block-exports"])
def test_qemu_reads_a_file_inside_the_pause(busy: str, tmp_path: Path, out: Path) -> None:
    """A snapshot of the same registers, unless something else explains it."""
    with FakeQemu(tmp_path, [Ram(pages=64)], answers={busy: [{"type": "backup"}]} if busy else {}) as qemu:
        same = tmp_path / "same"
        same.write_bytes((tmp_path / "headers").read_bytes())
        load = once(lambda: qemu.ask("load", elf=str(same)))
        if busy:
            progress = inside_stop(lambda done, total: load())
            vmdump.dump(qemu.source, out / "guest.elf", format="elf", progress=progress)
            ElfCore(out / "guest.elf").check_vmdump_layout()
        else:
            assert refused_after(qemu, out, load).state == "restore-vm"
        assert qemu.running
