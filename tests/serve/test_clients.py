"""Clients of `vmdump serve`: whose answers and events, in which order; and who disturbs whom."""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.qmp_client import QmpClient, Started, is_open, start_qemu, start_serve, until

Connect = Callable[..., QmpClient]
IDS = [None, 0, -1, 1.5, "", "vmdump-serve-1", "__qmp#00001", [], [1, {"a": None}], {"b": 1, "a": [2]}, True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what all tests use."""
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def qemu(folder: Path) -> Iterator[Started]:
    """A QEMU for all tests, which leave it running."""
    with start_qemu(folder, machine="none") as qemu:
        yield qemu


@pytest.fixture(scope="module")
def served(qemu: Started, folder: Path) -> Iterator[Started]:
    """`vmdump serve` in front of it."""
    with start_serve(qemu.path, folder) as served:
        yield served


def test_greeting_is_qemus(qemu: Started, connect: Connect, tmp_path: Path) -> None:
    greeting = connect(None).greeting
    assert greeting["QMP"]["capabilities"] == ["oob"]
    assert greeting["QMP"]["version"] == connect().ask("query-version")["return"]


def test_negotiation_is_each_clients_own(connect: Connect) -> None:
    first, second = connect(None), connect(None)
    refusal = {
        "class": "CommandNotFound",
        "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
    }
    assert first.ask("query-status") == {"error": refusal}
    assert first.ask("qmp_capabilities", enable=5)["error"]["class"] == "GenericError"
    assert first.ask("qmp_capabilities") == {"return": {}}
    assert second.ask("query-status") == {"error": refusal}
    assert first.ask("qmp_capabilities")["error"] == {
        "class": "CommandNotFound",
        "desc": "Capabilities negotiation is already complete, command ignored",
    }


def test_ids_come_back_whatever_they_are(connect: Connect) -> None:
    first, second = connect(), connect()
    for number in IDS:
        for client in (first, second):
            client.send(json.dumps({"execute": "query-name", "id": number}).encode())
            client.send(json.dumps({"execute": "nix", "id": number}).encode())
    for client in (first, second):
        for number in IDS:
            assert client.reply() == {"return": {}, "id": number}
            refused = client.reply()
            assert (refused["id"], refused["error"]["class"]) == (number, "CommandNotFound")
    first.send(b'{"execute": "query-name"}')
    assert first.reply() == {"return": {}}


def test_answers_end_like_qemus_and_events_come_before_them(connect: Connect) -> None:
    client, other = connect(), connect()
    client.send(b'{"execute": "stop"}{"execute": "cont"}{"execute":\n"query-status"}')
    kinds = [message.get("event", "reply") for message in (client.message() for _ in range(5))]
    assert kinds == ["STOP", "reply", "RESUME", "reply", "reply"]
    assert [other.message()["event"], other.message()["event"]] == ["STOP", "RESUME"]


def test_qemu_says_what_is_wrong(qemu: Started, connect: Connect) -> None:
    client = connect()
    for data, text in [
        (b'{"execute": 5, "id": 1}', "QMP input member 'execute' must be a string"),
        (b'{"arguments": {}, "id": 1}', "QMP input lacks member 'execute'"),
        (b'{"execute": "stop", "x": 1, "id": 1}', "QMP input member 'x' is unexpected"),
        (b'{"exec-oob": "query-yank", "id": 1}', "QMP input member 'exec-oob' is unexpected"),
    ]:
        client.send(data)
        assert client.reply() == {"id": 1, "error": {"class": "GenericError", "desc": text}}
    client.send(b"[1] nul @@ \n")
    assert [client.reply()["error"]["desc"] for _ in range(3)] == [
        "QMP input must be a JSON object",
        "JSON parse error, invalid keyword 'nul'",
        "JSON parse error, stray '@'",
    ]
    assert "return" in client.ask("query-status")


def test_out_of_band_overtakes(connect: Connect) -> None:
    client = connect(["oob"])
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        client.ask("getfd", fdname="pipe", fds=[writer])
        os.close(writer)
        client.post("dump-guest-memory", paging=False, protocol="fd:pipe", number=1)
        client.post("query-name", number=2)
        client.send(b'{"exec-oob": "query-yank", "id": 3}')
        assert client.reply()["id"] == 3
        client.send(b'{"exec-oob": "query-name", "id": 4}')
        assert client.reply()["error"]["desc"] == "The command query-name does not support OOB"
        assert len(file.read()) > 64 << 20
    assert [client.reply()["id"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("place", range(3))
def test_descriptor_with_any_byte(connect: Connect, served: Started, tmp_path: Path, place: int) -> None:
    client = connect()
    message = b'{"execute": "getfd", "arguments": {"fdname": "given"}}'
    begin = (0, len(message) // 2, len(message) - 1)[place]
    path = tmp_path / "file"
    with path.open("wb") as file:
        client.send(message[:begin])
        time.sleep(0.02)
        client.send(message[begin:], [file.fileno()])
        assert client.reply() == {"return": {}}
    assert is_open(served.pid, path)
    assert client.ask("closefd", fdname="given") == {"return": {}}
    assert not is_open(served.pid, path)


def test_descriptors_reach_qemu_and_are_open_in_one_place(
    connect: Connect, qemu: Started, served: Started, tmp_path: Path
) -> None:
    client = connect()
    path = tmp_path / "file"
    with path.open("wb") as file:
        assert "return" in client.ask("add-fd", fds=[file.fileno()])
        assert is_open(qemu.pid, path)
        until(lambda: not is_open(served.pid, path))
        assert "return" in client.ask("remove-fd", fdset_id=0)
        assert "return" in client.ask("getfd", fdname="named", fds=[file.fileno()])
    assert not is_open(qemu.pid, path)
    # Whatever command names it gets it.
    client.ask(
        "chardev-add",
        id="a",
        backend={"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "named"}}}},
    )
    until(lambda: not is_open(served.pid, path))
    assert client.ask("closefd", fdname="named")["error"]["class"] == "GenericError"


def test_qemu_says_what_is_wrong_with_descriptors(connect: Connect, served: Started, tmp_path: Path) -> None:
    client = connect()
    assert "SCM_RIGHTS" in client.ask("getfd", fdname="a")["error"]["desc"]
    with (tmp_path / "file").open("wb") as file:
        for arguments in ({}, {"fdname": "1a"}, {"fdname": "a", "x": 1}, {"fdname": 1}):
            assert "error" in client.ask("getfd", fds=[file.fileno()], **arguments), arguments
        # QEMU keeps one of those that it was given for nothing.
        many = [os.dup(file.fileno()) for _ in range(40)]
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", many))
        client.socket.sendmsg([b" "], [rights])
        for fd in many:
            os.close(fd)
        assert client.ask("getfd", fdname="a") == {"return": {}}
    found = [os.readlink(f"/proc/{served.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{served.pid}/fd")]
    assert found.count(str(tmp_path / "file")) == 1


def test_names_go_with_their_client(connect: Connect, served: Started, tmp_path: Path) -> None:
    first, second = connect(), connect()
    path = tmp_path / "file"
    with path.open("wb") as file:
        first.ask("getfd", fdname="a", fds=[file.fileno()])
    assert "error" in second.ask("closefd", fdname="a")
    assert is_open(served.pid, path)
    first.close()
    until(lambda: not is_open(served.pid, path))


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))


def test_client_that_never_reads(connect: Connect, served: Started) -> None:
    silent, other = connect(), connect()
    before = resident(served.pid)
    silent.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        # Each answer is 100 times longer than its question.
        while True:
            silent.send(b'{"execute": "query-qmp-schema"}' * 100)
    assert "return" in other.ask("query-status")
    assert resident(served.pid) - before < 32 << 20


LETS_GO_SOON = """
from vmdump.serve import client
client._MAX_EVENTS = 1 << 16
from vmdump.__main__ import run
run()
"""


def test_client_that_reads_no_events_is_let_go(stack: ExitStack, tmp_path: Path) -> None:
    qemu = stack.enter_context(start_qemu(tmp_path, machine="none"))
    served = stack.enter_context(start_serve(qemu.path, tmp_path, code=LETS_GO_SOON))
    silent, other = QmpClient(served.path), QmpClient(served.path)
    with silent, other:
        for _ in range(100):
            other.ask("stop")
            other.ask("cont")
        before = resident(served.pid)
        for _ in range(2000):
            other.ask("stop")
            other.ask("cont")
        # Nobody keeps the events of the past: 4000 of them are 5 MB to the library.
        assert resident(served.pid) - before < 2 << 20
        assert silent.at_end()


def test_large_message(connect: Connect) -> None:
    client = connect()
    text = "x" * (8 << 20)
    client.send(json.dumps({"execute": "nix", "id": text}).encode())
    assert client.reply()["id"] == text
    client.send(json.dumps({"execute": "query-name", "id": 1, "arguments": {"a": text[: 1 << 16]}}).encode())
    assert client.reply()["error"]["desc"] == "Parameter 'a' is unexpected"
    client.send(json.dumps({"execute": "query-name", "id": text * 10}).encode())
    assert client.reply() == {"error": {"class": "GenericError", "desc": "JSON token size limit exceeded"}}
    client.send(b"\n\x1b\n")
    while "desc" not in (error := client.reply().get("error", {})) or "\x1b" not in error["desc"]:
        pass
    assert client.ask("query-name") == {"return": {}}


def test_deep_message(connect: Connect) -> None:
    client = connect()
    deep = "[" * 1022 + "]" * 1022
    client.send(f'{{"execute": "query-name", "arguments": {{"a": {deep}}}, "id": {deep[1:-1]}}}'.encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        answer += client.socket.recv(65536)
    assert b"Parameter 'a' is unexpected" in answer
    assert deep[1:-1].encode() in answer
    assert client.ask("query-name") == {"return": {}}


def test_as_many_clients_as_come(connect: Connect, served: Started) -> None:
    clients = [connect() for _ in range(100)]
    for client in clients:
        client.post("query-name", number=1)
    assert all(client.reply() == {"return": {}, "id": 1} for client in clients)
    before = len(os.listdir(f"/proc/{served.pid}/fd"))
    for client in clients[1:]:
        client.close()
    until(lambda: len(os.listdir(f"/proc/{served.pid}/fd")) == before - 99)
    assert clients[0].ask("query-name") == {"return": {}}


def test_client_that_hangs_up_in_the_middle(connect: Connect, qemu: Started) -> None:
    dying, other = connect(), connect()
    dying.send(b'{"execute": "stop"}{"execute": "que')
    other.event("STOP")
    dying.close()
    assert other.ask("query-status")["return"]["status"] == "paused"
    other.ask("cont")


def test_python_client_of_qemus(connect: Connect, served: Started) -> None:
    """It ends no message with a line, and expects the events in order."""
    import asyncio

    from qemu.qmp import QMPClient

    async def talk() -> Any:
        client = QMPClient("test")
        await client.connect(served.path)
        seen = []
        with client.listener() as listener:
            await client.execute("stop")
            await client.execute("cont")
            while len(seen) < 2:
                seen.append((await listener.get())["event"])
        await client.disconnect()
        return seen

    assert asyncio.run(talk()) == ["STOP", "RESUME"]
