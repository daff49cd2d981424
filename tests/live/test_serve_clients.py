"""`vmdump serve` with several clients: whose answer, event and descriptor; clients that die or sleep."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.conftest import Hall
from live.doors import Door, Serving
from live.dumping import until
from live.raw_client import IN_PROCESS, PATIENCE, Client, dump_arguments, error_text, wait_for


@pytest.fixture
def door(_bare_hall: Hall) -> Iterator[Door]:
    with _bare_hall.door("serve") as door:
        door.pause()
        yield door


@pytest.fixture
def other(door: Door) -> Client:
    """A second connection."""
    return door.client()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dump"


@contextlib.contextmanager
def held_dump(client: Client, *, detach: bool = True) -> Iterator[int]:
    """A dump into a pipe that nobody reads; the reading end, closed in the end."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as file:
        client.give("held", writer)
        os.close(writer)
        client.start_dump("fd:held", detach=detach)
        if detach:
            assert client.reply()["return"] == {}
        yield file.fileno()


def read_all(reader: int) -> int:
    size = 0
    while data := os.read(reader, 1 << 16):
        size += len(data)
    return size


def test_each_gets_its_own_answers(client: Client, other: Client, output: Path) -> None:
    """With the same ids."""
    for number in range(20):
        client.start("query-dump", id=number)
        other.start("query-name", id=number)
        client.start("human-monitor-command", {"command-line": "info dump"}, id=number)
        other.start("query-version", id=number)
    mine, theirs = client.replies(40), other.replies(40)
    assert [reply["id"] for reply in mine] == [reply["id"] for reply in theirs]
    assert [reply["id"] for reply in mine] == [number for number in range(20) for _ in range(2)]
    assert all("status" in reply["return"] for reply in mine[::2])
    assert all(str(reply["return"]).startswith("Status: ") for reply in mine[1::2])
    assert all("qemu" in reply["return"] for reply in theirs[1::2])


def test_events_go_to_all(door: Door, client: Client, other: Client, output: Path) -> None:
    door.run()
    other.order()
    assert client.dump(output)["return"] == {}
    assert other.order() == ["STOP", "DUMP_COMPLETED", "RESUME"]
    assert client.dump(output, detach=True)["return"] == {}
    other.event("RESUME")
    assert other.order() == ["STOP", "DUMP_COMPLETED", "RESUME"]
    assert other.ask("query-dump")["status"] == "completed"
    client.order()
    other.ask("stop")
    client.event("STOP")


def test_guest_runs_before_the_file_is_whole(door: Door, client: Client, output: Path) -> None:
    """It is told afterwards, as of QEMU's dump, with the time at which it happened."""
    door.run()
    client.order()
    assert client.dump(output, format="kdump-zlib")["return"] == {}
    stamps = {
        message["event"]: (message["timestamp"]["seconds"], message["timestamp"]["microseconds"])
        for message in client.seen
        if "event" in message
    }
    assert list(stamps) == ["STOP", "DUMP_COMPLETED", "RESUME"]
    assert stamps["STOP"] < stamps["RESUME"] < stamps["DUMP_COMPLETED"]


def test_no_events_before_the_capabilities(door: Door, client: Client, output: Path) -> None:
    silent = door.client(negotiate=False)
    assert client.dump(output)["return"] == {}
    assert silent.call("qmp_capabilities")["return"] == {}
    assert len(silent.seen) == 1


def test_capabilities_are_each_ones_own(door: Door, client: Client) -> None:
    silent = door.client(negotiate=False)
    assert "return" in client.call("query-dump")
    assert silent.call("query-dump")["error"]["class"] == "CommandNotFound"
    assert silent.call("qmp_capabilities", {"enable": ["oob"]})["return"] == {}
    for one, text in ((silent, "The command query-dump does not support OOB"), (client, "unexpected")):
        one.send('{"exec-oob": "query-dump"}')
        assert text in error_text(one.reply())


@pytest.mark.parametrize("detach", [False, True])
def test_others_work_during_a_dump(client: Client, other: Client, output: Path, detach: bool) -> None:
    with held_dump(client, detach=detach) as reader:
        wait_for(other, "active")
        assert other.human("info dump").startswith("Status: active\r\nFinished: ")
        assert error_text(other.dump(output)) == IN_PROCESS
        assert other.refused("cont") == IN_PROCESS
        assert "return" in other.call("query-name")
        assert read_all(reader) > 32 << 20
        if not detach:
            assert client.reply()["return"] == {}
    wait_for(other, "completed")
    assert not output.exists()
    assert other.dump(output)["return"] == {}


def test_two_dumps_one_after_the_other(client: Client, other: Client, output: Path) -> None:
    """Whoever asks while the first goes on is told so."""
    client.start("dump-guest-memory", dump_arguments(output), id=1)
    other.start("dump-guest-memory", dump_arguments(output.with_name("other")), id=1)
    replies = [client.reply(), other.reply()]
    done = [reply for reply in replies if "return" in reply]
    assert done
    assert all(error_text(reply) == IN_PROCESS for reply in replies if reply not in done)
    assert len(list(output.parent.iterdir())) == len(done)


def test_descriptors_are_each_ones_own(door: Door, client: Client, other: Client, output: Path) -> None:
    with output.open("wb") as file:
        client.give("mine", file.fileno())
    assert error_text(other.dump("fd:mine")) == "File descriptor named 'mine' has not been found"
    assert not other.has("mine")
    assert client.dump("fd:mine", begin=0, length=4096)["return"] == {}
    assert output.stat().st_size > 4096


def test_descriptors_reach_qemu(client: Client, output: Path) -> None:
    """Those that are not for a dump."""
    with output.open("wb") as file:
        added = client.call("add-fd", {"fdset-id": 7}, fds=[file.fileno()])["return"]
    assert added["fdset-id"] == 7
    assert [found["fdset-id"] for found in client.ask("query-fdsets")] == [7]
    client.ask("remove-fd", fdset_id=7)


def test_descriptors_of_a_client_that_leaves(door: Door) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        with door.client() as client:
            client.give("mine", writer)
        os.close(writer)
        os.set_blocking(reader, False)
        until(lambda: file.read() == b"", "nobody holds the pipe open any more", 5)


def test_big_messages(client: Client) -> None:
    schema = client.ask("query-qmp-schema")
    assert len(json.dumps(schema)) > 100_000
    id = "x" * (1 << 20)
    assert client.call("query-dump", id=id)["id"] == id


@pytest.mark.parametrize(
    "last", ['{"execute": "query-d', '{"execute": "dump-guest-memory", "arguments": {"paging": fal', "[[["]
)
def test_client_that_dies_in_a_command(door: Door, other: Client, output: Path, last: str) -> None:
    with door.client() as client:
        client.send(last)
    assert other.dump(output)["return"] == {}


def test_client_that_dies_before_its_answer(door: Door, other: Client) -> None:
    """Its answer goes to nobody, least of all to another with the same id."""
    for _ in range(20):
        with door.client() as client:
            client.start("query-name", id="same")
    reply = other.call("query-dump", id="same")
    assert reply["return"].keys() == {"status", "completed", "total"}
    assert other.order() == ["return"]


@pytest.mark.parametrize("detach", [False, True])
def test_client_that_dies_in_its_dump(door: Door, other: Client, detach: bool) -> None:
    """As with QEMU, the dump goes on, and others see its end."""
    door.run()
    other.order()
    client = door.client()
    with held_dump(client, detach=detach) as reader:
        wait_for(other, "active")
        client.close()
        time.sleep(0.05)
        assert other.ask("query-dump")["status"] == "active"
        assert read_all(reader) > 32 << 20
    wait_for(other, "completed")
    until(lambda: door.guest.running(), "the guest runs again")
    assert [kind for kind in other.order() if kind != "return"] == ["STOP", "DUMP_COMPLETED", "RESUME"]


def test_client_that_never_reads(door: Door, other: Client, output: Path) -> None:
    """It is asked nothing more when its answers pile up; nobody else waits for it."""
    client = door.client()
    client.socket.setblocking(False)
    request = b'{"execute": "query-qmp-schema"}' * 20
    sent, begin = 0, time.monotonic()
    # What it may send before it is stopped: more would be memory of `serve`.
    while sent < 64 << 20 and time.monotonic() - begin < 3:
        try:
            sent += client.socket.send(request)
            begin = time.monotonic()
        except BlockingIOError:
            if time.monotonic() - begin > 1:
                break
            time.sleep(0.05)
    assert sent < 64 << 20
    for _ in range(3):
        assert other.dump(output)["return"] == {}
    client.close()
    assert other.ask("query-dump")["status"] == "completed"


def test_client_that_reads_no_events(door: Door, other: Client, output: Path) -> None:
    """Neither do its unread events hold up anybody."""
    door.client()
    begin = time.monotonic()
    for _ in range(100):
        other.ask("cont")
        other.ask("stop")
    assert other.dump(output)["return"] == {}
    assert time.monotonic() - begin < PATIENCE


def test_many_clients(door: Door, output: Path) -> None:
    clients = [door.client() for _ in range(40)]
    for client in clients:
        client.start("query-dump", id=1)
    assert [client.reply()["id"] for client in clients] == [1] * 40
    assert clients[0].dump(output)["return"] == {}
    for client in clients[1:]:
        client.event("DUMP_COMPLETED")


def test_relative_path(output: Path) -> None:
    """It begins in QEMU's folder, wherever `serve` was started."""
    with contextlib.closing(Hall("32M", boot=False, vmcoreinfo=False)) as hall:
        serving = Serving(hall.guest, hall.folder / "elsewhere", cwd=output.parent)
        try:
            with Client(serving.path) as client:
                relative = os.path.relpath(output)
                assert client.dump(f"file:{relative}")["return"] == {}
        finally:
            serving.stop()
    assert output.read_bytes()[:4] == b"\x7fELF"


def test_raw_layout_needs_a_file(client: Client, output: Path) -> None:
    """The standard layout is not written in order. QEMU's text, from 8.2 on."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        client.give("it", writer)
        os.close(writer)
        text = error_text(client.dump("fd:it", format="kdump-raw-zlib"))
        assert text == "kdump-raw-* formats require a seekable file"
        assert file.read() == b""
    with output.open("wb") as file:
        client.give("it", file.fileno())
    assert client.dump("fd:it", format="kdump-raw-zlib")["return"] == {}
    assert output.read_bytes()[:8] == b"KDUMP   "


def test_file_that_is_there_is_replaced_when_the_new_one_is_whole(client: Client, output: Path) -> None:
    """QEMU truncates it first; here what was there stays until the dump is done, or for good if it fails."""
    output.write_bytes(b"old")
    before = output.stat().st_ino
    assert error_text(client.dump(output, begin=1 << 40, length=1)) == "dump: no guest memory to dump"
    assert output.read_bytes() == b"old"
    assert output.stat().st_ino == before
    assert client.dump(output)["return"] == {}
    assert output.read_bytes()[:4] == b"\x7fELF"
    assert list(output.parent.iterdir()) == [output]
