"""A dump from its beginning to its end, as QMP tells it: order of events, states, progress, refusals."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from live.doors import Door
from live.dumping import until
from live.raw_client import IN_PROCESS, Client, Message, error_text, wait_for

BLOCKED = "Live migration disabled: dump-guest-memory in progress"
MOVING = "disallowing migration blocker (migration/snapshot in progress) for: "
FULL = "No space left on device"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dump"


@pytest.fixture
def running(door: Door) -> Client:
    """A client of a guest that runs."""
    door.run()
    return door.client()


@contextmanager
def unread_pipe(client: Client) -> Iterator[int]:
    """Give a pipe into which nobody looks, as "pipe", to the monitor; its reading end."""
    reader, writer = os.pipe()
    try:
        client.give("pipe", writer)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb", closefd=True, buffering=0) as file:
        yield file.fileno()


def drain(reader: int) -> int:
    """Read a pipe to its end; the bytes."""
    size = 0
    while data := os.read(reader, 1 << 16):
        size += len(data)
    return size


def completed(message: Message) -> Message:
    """What a DUMP_COMPLETED tells."""
    assert message.keys() == {"event", "timestamp", "data"}
    assert message["timestamp"].keys() == {"seconds", "microseconds"}
    data: Message = message["data"]
    assert data["result"].keys() == {"total", "status", "completed"}
    return data


@pytest.mark.parametrize("format", ["elf", "kdump-zlib"])
def test_running_guest(running: Client, output: Path, format: str) -> None:
    assert running.dump(output, format=format)["return"] == {}
    (event,) = running.events("DUMP_COMPLETED")
    assert running.order() == ["STOP", "DUMP_COMPLETED", "RESUME", "return"]
    result = completed(event)["result"]
    assert result == {"status": "completed", "completed": result["total"], "total": result["total"]}
    assert result["total"] > 32 << 20
    assert running.ask("query-dump") == result
    assert running.human("info dump") == "Status: completed\r\n"
    assert running.ask("query-status")["status"] == "running"


def test_detached_dump_of_a_running_guest(running: Client, output: Path) -> None:
    assert running.dump(output, detach=True)["return"] == {}
    running.event("RESUME")
    assert completed(running.event("DUMP_COMPLETED"))["result"]["status"] == "completed"
    assert running.order() == ["STOP", "return", "DUMP_COMPLETED", "RESUME"]
    assert running.ask("query-dump")["status"] == "completed"
    assert output.stat().st_size > 32 << 20


def test_paused_guest_stays_paused(door: Door, client: Client, output: Path) -> None:
    assert client.dump(output)["return"] == {}
    assert client.order() == ["DUMP_COMPLETED", "return"]
    assert client.dump(output, detach=True)["return"] == {}
    client.event("DUMP_COMPLETED")
    assert client.order() == ["return", "DUMP_COMPLETED"]
    assert client.ask("query-status")["status"] == "paused"


def test_guest_that_was_never_started(new_door: Callable[..., Door], output: Path) -> None:
    client = new_door().client()
    assert client.dump(output)["return"] == {}
    assert client.order() == ["DUMP_COMPLETED", "return"]
    assert client.ask("query-status")["status"] == "prelaunch"


@pytest.mark.parametrize("format", ["elf", "kdump-zlib"])
def test_failed_dump(running: Client, format: str) -> None:
    text = error_text(running.dump("file:/dev/full", format=format))
    assert text.startswith("dump: failed to ")
    (event,) = running.events("DUMP_COMPLETED")
    assert running.order() == ["STOP", "DUMP_COMPLETED", "RESUME", "error"]
    data = completed(event)
    assert data["error"] == text
    assert data["result"]["status"] == "failed"
    assert data["result"]["completed"] < data["result"]["total"]
    assert running.ask("query-dump") == data["result"]
    assert running.human("info dump") == "Status: failed\r\n"
    assert running.ask("query-status")["status"] == "running"


def test_reason_of_a_failure(client: Client) -> None:
    """QEMU adds errno's text where it writes ELF."""
    assert FULL in error_text(client.dump("file:/dev/full"))
    read_only = os.open(os.devnull, os.O_RDONLY)
    try:
        client.give("read", read_only)
    finally:
        os.close(read_only)
    assert "Bad file descriptor" in error_text(client.dump("fd:read"))
    assert not client.has("read")


def test_failed_detached_dump(running: Client) -> None:
    """Its answer was that it has begun."""
    assert running.dump("file:/dev/full", detach=True)["return"] == {}
    running.event("RESUME")
    (event,) = running.events("DUMP_COMPLETED")
    assert FULL in completed(event)["error"]
    # It may have failed, and the guest run again, before that answer is written.
    first, *rest = running.order()
    assert (first, *sorted(rest)) == ("STOP", "DUMP_COMPLETED", "RESUME", "return")
    assert rest.index("DUMP_COMPLETED") < rest.index("RESUME")
    assert running.ask("query-dump")["status"] == "failed"


def test_range_without_memory_of_a_running_guest(running: Client, output: Path) -> None:
    """QEMU finds out with the guest stopped, and announces no end of what has not begun."""
    assert error_text(running.dump(output, begin=1 << 40, length=1)) == "dump: no guest memory to dump"
    assert running.order() in (["STOP", "RESUME", "error"], ["error"])
    assert running.ask("query-status")["status"] == "running"


def test_refusal_stops_nothing(running: Client) -> None:
    running.refused("dump-guest-memory", {"paging": False, "protocol": "file:/missing/dump"})
    running.refused("dump-guest-memory", {"paging": False, "protocol": "fd:nix"})
    assert running.order() == ["error", "error"]


def test_after_a_failure_a_dump_works(client: Client, output: Path) -> None:
    client.dump("file:/dev/full")
    assert client.ask("query-dump")["status"] == "failed"
    assert client.dump(output)["return"] == {}
    assert client.ask("query-dump")["status"] == "completed"


@pytest.mark.parametrize("state", ["running", "paused"])
def test_during_a_dump(door: Door, output: Path, state: str) -> None:
    """A pipe that nobody reads holds up a detached dump."""
    if state == "running":
        door.run()
    client = door.client()
    with unread_pipe(client) as reader:
        assert client.dump("fd:pipe", detach=True)["return"] == {}
        answer = client.ask("query-dump")
        assert answer["status"] == "active"
        assert 0 <= answer["completed"] < answer["total"]
        told = client.human("info dump")
        begin, percent, end = "Status: active\r\nFinished: ", "", " %\r\n"
        assert told.startswith(begin)
        assert told.endswith(end)
        percent = told.removeprefix(begin).removesuffix(end)
        assert percent == f"{float(percent):.2f}"
        assert float(percent) < 100
        status = client.ask("query-status")
        assert status["running"] == (status["status"] == "running")
        if not door.serves:
            # Whether it runs while `serve` writes, is what another test asks.
            assert status["status"] == {"running": "save-vm", "paused": "paused"}[state]
        client.seen.clear()
        check_refusals(client, output)
        assert client.order() == ["error"] * 7 + ["return"] * 3
        assert client.ask("query-dump-guest-memory-capability")["formats"][0] == "elf"
        assert client.ask("query-dump")["status"] == "active"
        client.seen.clear()
        assert drain(reader) > 32 << 20
        client.event("RESUME" if state == "running" else "DUMP_COMPLETED")
        assert client.order() == (["DUMP_COMPLETED", "RESUME"] if state == "running" else ["DUMP_COMPLETED"])
    answer = client.ask("query-dump")
    assert answer == {"status": "completed", "completed": answer["total"], "total": answer["total"]}
    assert client.ask("query-status")["status"] == state
    assert not client.has("pipe")


def check_refusals(client: Client, output: Path) -> None:
    """What is refused while a dump is under way, and what of it is told first."""
    for arguments in ({}, {"detach": True}, {"begin": 1}, {"protocol": "nix"}):
        request = {"paging": False, "protocol": f"file:{output}", **arguments}
        assert client.refused("dump-guest-memory", request) == IN_PROCESS
    assert not output.exists()
    assert client.refused("dump-guest-memory", {"paging": 1, "protocol": "x"}).startswith(
        "Invalid parameter type"
    )
    assert client.refused("cont") == IN_PROCESS
    assert client.refused("stop") == IN_PROCESS
    assert client.human(f"dump-guest-memory {output}") == f"Error: {IN_PROCESS}\r\n"
    assert client.human("cont") == f"Error: {IN_PROCESS}\r\n"
    # This one says nothing, and does nothing.
    assert client.human("stop") == ""


@pytest.mark.parametrize("state", ["running", "paused"])
def test_no_migration_during_a_dump(door: Door, state: str) -> None:
    if state == "running":
        door.run()
    client = door.client()
    with unread_pipe(client):
        assert client.dump("fd:pipe", detach=True)["return"] == {}
        assert client.refused("migrate", {"uri": "exec:cat >/dev/null"}) == BLOCKED
        assert client.human("migrate exec:true") == f"Error: {BLOCKED}\r\n"
        assert client.human("savevm x") == f"Error: {BLOCKED}\r\n"
        assert client.ask("query-migrate")["blocked-reasons"] == [BLOCKED]
        assert client.ask("query-dump")["status"] == "active"
    wait_for(client, "failed")
    assert client.ask("query-status")["status"] == state
    door.settle()
    assert "blocked-reasons" not in client.ask("query-migrate")


def test_progress(door: Door, client: Client) -> None:
    with unread_pipe(client) as reader:
        assert client.dump("fd:pipe", detach=True)["return"] == {}
        first = client.ask("query-dump")
        read = 0
        while read < 24 << 20:
            read += len(os.read(reader, 1 << 16))
        later = client.ask("query-dump")
        assert later["total"] == first["total"]
        assert first["completed"] < 1 << 20 < later["completed"] < later["total"]
        if not door.serves:
            # What is taken from the pipe was written before; the pipe itself and the headers are small.
            assert later["completed"] > 23 << 20
        drain(reader)
        client.event("DUMP_COMPLETED")


def test_reader_that_goes_away(running: Client) -> None:
    with unread_pipe(running):
        assert running.dump("fd:pipe", detach=True)["return"] == {}
        assert running.ask("query-dump")["status"] == "active"
        running.seen.clear()
    running.event("RESUME")
    (event,) = running.events("DUMP_COMPLETED")
    data = completed(event)
    assert data["error"].endswith("Broken pipe")
    assert data["result"]["status"] == "failed"
    assert running.order() == ["DUMP_COMPLETED", "RESUME"]
    assert running.ask("query-dump") == data["result"]
    assert running.ask("query-status")["status"] == "running"


def test_reader_that_is_away_already(client: Client) -> None:
    with unread_pipe(client):
        pass
    assert error_text(client.dump("fd:pipe")).endswith("Broken pipe")
    assert not client.has("pipe")


def test_waiting_dump_answers_last(client: Client) -> None:
    """Without detach, the reply comes when the pipe has taken everything."""
    with unread_pipe(client) as reader:
        client.start_dump("fd:pipe")
        sizes: list[int] = []
        thread = threading.Thread(target=lambda: sizes.append(drain(reader)))
        thread.start()
        reply = client.reply()
        thread.join()
    assert reply["return"] == {}
    assert client.order()[-2:] == ["DUMP_COMPLETED", "return"]
    assert sizes[0] > 32 << 20


def test_commands_behind_a_dump_wait_for_it(client: Client, output: Path) -> None:
    client.start_dump(output)
    client.start("query-dump")
    client.start_dump(output)
    client.start("query-status")
    first, second, third, fourth = client.replies(4)
    assert first["return"] == third["return"] == {}
    assert second["return"]["status"] == "completed"
    assert fourth["return"]["status"] == "paused"
    assert client.order() == ["DUMP_COMPLETED", "return", "return", "DUMP_COMPLETED", "return", "return"]


def test_other_monitors_see_stop_and_resume(door: Door, running: Client, output: Path) -> None:
    """And the end of QEMU's own dump; vmdump has QEMU begin one for the headers, before its own pause."""
    door.guest.monitor.event_names()
    door.guest.monitor.events.clear()
    assert running.dump(output)["return"] == {}
    names = door.guest.monitor.event_names()
    if door.serves:
        seen = [name for name in names if name != "DUMP_COMPLETED"]
        assert seen in (["STOP", "RESUME"], ["STOP", "RESUME"] * 2)
    else:
        assert names == ["STOP", "DUMP_COMPLETED", "RESUME"]


def test_dump_by_another_monitor(door: Door, client: Client, output: Path) -> None:
    """It is QEMU's only one, whoever has asked for it."""
    fifo = output.with_name("fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    request = {"paging": False, "protocol": f"file:{fifo}", "begin": 0, "length": 4 << 20, "detach": True}
    with os.fdopen(reader, "rb"):
        door.guest.monitor.execute("dump-guest-memory", **request)
        assert error_text(client.dump(output)) == IN_PROCESS
        assert client.ask("query-dump")["status"] == "active"
        assert client.ask("query-dump")["total"] == 4 << 20
        assert client.human("info dump").startswith("Status: active\r\n")
        assert client.refused("cont") == IN_PROCESS
        assert drain(reader) > 4 << 20
    client.event("DUMP_COMPLETED")
    assert client.ask("query-dump") == {"status": "completed", "completed": 4 << 20, "total": 4 << 20}
    assert not output.exists()
    door.settle()
    assert client.dump(output)["return"] == {}


@contextmanager
def migration(client: Client) -> Iterator[None]:
    """A migration of the guest that does not get anywhere."""
    reader, writer = os.pipe()
    try:
        client.give("target", writer)
        client.ask("migrate-set-parameters", max_bandwidth=4096)
        client.ask("migrate", uri="fd:target")
        until(lambda: client.ask("query-migrate")["status"] == "active", "the migration has begun")
        yield
        client.ask("migrate_cancel")
        until(lambda: client.ask("query-migrate")["status"] == "cancelled", "the migration has ended")
    finally:
        os.close(reader)
        os.close(writer)


def test_no_dump_during_a_migration(door: Door, running: Client, output: Path) -> None:
    before = running.ask("query-dump")
    with migration(running):
        running.seen.clear()
        for detach in ({}, {"detach": True}):
            assert error_text(running.dump(output, **detach)).startswith(MOVING)
        assert error_text(running.dump("nix")) == "Invalid parameter 'protocol'"
        assert running.order() == ["error"] * 3
        assert running.human(f"dump-guest-memory {output}").startswith(f"Error: {MOVING}")
        assert running.ask("query-dump") == before
        assert not output.exists() or output.stat().st_size == 0
    assert running.dump(output)["return"] == {}


def test_after_a_migration(new_door: Callable[..., Door], output: Path) -> None:
    client = new_door().client()
    client.ask("cont")
    client.ask("migrate", uri="exec:cat >/dev/null")
    until(lambda: client.ask("query-status")["status"] == "postmigrate", "the guest has moved")
    client.order()
    assert client.dump(output)["return"] == {}
    assert client.order() == ["DUMP_COMPLETED", "return"]
    assert client.ask("query-status")["status"] == "postmigrate"


def test_incoming_migration(new_door: Callable[..., Door], output: Path) -> None:
    client = new_door(extra=("-incoming", "defer")).client()
    text = "Dump not allowed during incoming migration."
    assert client.ask("query-status")["status"] == "inmigrate"
    arguments: list[dict[str, Any]] = [
        {},
        {"detach": True},
        {"begin": 0},
        {"format": "kdump-zlib", "begin": 0},
    ]
    for more in arguments:
        assert error_text(client.dump(output, **more)) == text
    assert error_text(client.dump("nix")) == text
    assert error_text(client.dump(output, paging=1)).startswith("Invalid parameter type")
    assert client.human(f"dump-guest-memory {output}") == f"Error: {text}\r\n"
    assert client.ask("query-dump")["status"] == "none"
    assert not output.exists()
