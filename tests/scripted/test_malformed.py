"""QMP that is malformed: QmpError and one line with the socket's path, and the guest is left as it was."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import vmdump
from scripted.fake_qemu import FakeQemu, rule
from vmdump.errors import QmpError, VmdumpError

pytestmark = pytest.mark.usefixtures("nothing_left", "hasty")

NONSENSE: list[object] = [
    *(None, 7, -1.5, True, "text", [], [{}], {}),
    *({"status": None}, {"status": [1]}, "x" * 300),
]
COMMANDS = ["query-status", "query-migrate", "query-dump", "qom-get", "query-sev", "human-monitor-command"]


def attempt(qemu: FakeQemu, out: Path) -> VmdumpError | None:
    """Dump; the error, if there is one, is one line with the path."""
    try:
        vmdump.dump(qemu.source, out / "guest", format="elf", force=True)
    except VmdumpError as error:
        assert type(error) is not VmdumpError
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
        assert qemu.path in str(error)
        return error
    return None


@pytest.mark.parametrize("command", COMMANDS)
def test_answers_of_another_shape(command: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        for answer in NONSENSE:
            qemu.ask("answer", command=command, answer=answer)
            error = attempt(qemu, out)
            if not isinstance(answer, str | dict) or command == "query-status":
                assert isinstance(error, QmpError), (answer, error)
                assert error.command == command
            assert qemu.running


@pytest.mark.parametrize("command", ["getfd", "dump-guest-memory"])
@pytest.mark.parametrize("answer", [None, [7], "text"])
def test_commands_that_do_nothing(command: str, answer: object, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={command: answer}) as qemu:
        assert attempt(qemu, out) is not None
        assert qemu.running


@pytest.mark.parametrize("answer", [None, 7, {}, {"status": None}, {"status": ["running"]}])
def test_state_that_is_not_told_inside_the_stop(answer: object, tmp_path: Path, out: Path) -> None:
    """Neither vmdump nor its guardian takes the guest for one that runs."""
    with FakeQemu(tmp_path) as qemu:

        def progress(done: int, total: int) -> None:
            if not qemu.running:
                qemu.ask("answer", command="query-status", answer=answer)

        with pytest.raises(QmpError, match="query-status"):
            vmdump.dump(qemu.source, out / "guest", layout="flattened", progress=progress)
        assert qemu.running
    assert not os.listdir(out)


@contextmanager
def serving(path: Path, *messages: bytes) -> Iterator[str]:
    """A server that says one message after the other, whatever it is asked, and then nothing more."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                for message in messages:
                    connection.sendall(message)
                    if not connection.recv(1 << 16):
                        return
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"qmp:{path}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
CAPABILITIES = b'{"return": {}, "id": "__qmp#00000"}\r\n'
FIRST = b'"id": "__qmp#00001"'


def line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "messages",
    [
        [b"HTTP/1.1 400 Bad Request\r\n"],
        [b"\0" * 100 + b"\n"],
        [b"\xff\xfe\n"],
        [b"[]\n"],
        [b'"QMP"\n'],
        [b'{"QMP": null}\n'],
        [b'{"QMP": {}}\n'],
        [b'{"QMP": {"version": 3, "capabilities": []}}\n'],
        [b'{"QMP": {"version": {}, "capabilities": 7}}\n'],
        [b'{"return": {}}\n'],
        [b"x" * (11 << 20) + b"\n"],
        [b"[" * 100_000 + b"\n"],
        [GREETING, b'{"error": null}\n'],
        [GREETING, b'{"error": {"class": 1, "desc": []}}\n'],
        [GREETING, b"{}\n"],
        [GREETING, b'{"return": {}, "id": []}\n'],
        [GREETING, CAPABILITIES, b'{"return": [], "id": "nobody"}\n'],
        [GREETING, CAPABILITIES, b'{"return": [], "id": []}\n'],
        [GREETING, CAPABILITIES, b'{"return": []}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b"}\n"],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "error": null}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "error": {"class": {}, "desc": 5}}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "error": {"class": "GenericError"}}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "return": null}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "return": "' + b"x" * (11 << 20) + b'"}\n'],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "return": ' + b"[" * 100_000 + b"\n"],
        [GREETING, CAPABILITIES, b"{" + FIRST + b', "return": '],
        [GREETING, CAPABILITIES, b'{"event": []}\n{"event": null}\n{"event": {}}\n'],
        [GREETING, CAPABILITIES, b'{"event": "STOP"}\n{"event": "RESUME", "timestamp": 7}\nx\n'],
        [GREETING, CAPABILITIES],
        [GREETING],
        [],
    ],
)
def test_servers_that_speak_something_else(messages: list[bytes], tmp_path: Path, out: Path) -> None:
    with serving(tmp_path / "qmp", *messages) as source:
        with pytest.raises(QmpError) as caught:
            vmdump.dump(source, out / "guest")
        text = str(caught.value)
        assert str(tmp_path / "qmp") in text
        assert len(text.splitlines()) == 1
        assert len(text) < 1000
    assert not os.listdir(out)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"{" + FIRST + b', "return": "' + b"x" * (11 << 20) + b'"}\n', "not QMP"),
        (b"{" + FIRST + b', "return": ' + b"[" * 100_000 + b"\n", "not QMP"),
        (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n', "not QMP"),
        (b"SSH-2.0\n", "not QMP"),
        (b"", "has ended, or closed"),
    ],
)
def test_why_the_connection_was_lost(message: bytes, said: str, tmp_path: Path, out: Path) -> None:
    """A QEMU that says what nobody understands has not ended."""
    with serving(tmp_path / "qmp", GREETING, CAPABILITIES, *([message] if message else [])) as source:
        with pytest.raises(QmpError, match=said) as caught:
            vmdump.dump(source, out / "guest")
        assert ("has ended" in str(caught.value)) == ("has ended" in said)


@pytest.mark.parametrize(
    "stamp", [None, 7, [], {}, {"seconds": "1"}, {"seconds": -1, "microseconds": -1}, {"seconds": 10**400}]
)
def test_odd_times_of_events(stamp: object, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        qemu.ask("stamp", stamp=stamp)
        assert attempt(qemu, out) is None
        report = vmdump.dump(qemu.source, out / "again")
        assert 0 <= report.paused_seconds < 60
        assert qemu.running


def test_extra_answers(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule("stop", "twice")]) as qemu:
        error = attempt(qemu, out)
        assert error is None or isinstance(error, QmpError)
        assert qemu.running or "cont" in qemu.commands
