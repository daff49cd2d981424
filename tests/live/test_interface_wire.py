"""What the wire carries: JSON values in any pieces, garbage, descriptors, capabilities, out-of-band."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from live.doors import Door
from live.raw_client import Client, Message, dump_arguments, error_text

NEGOTIATE = "Expecting capabilities negotiation with 'qmp_capabilities'"
QUERY = {"execute": "query-dump", "id": "mine"}
GETFD = b'{"execute": "getfd", "arguments": {"fdname": "it"}}'


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dump"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def test_greeting(door: Door) -> None:
    client = door.client(negotiate=False)
    assert client.greeting.keys() == {"QMP"}
    told = client.greeting["QMP"]
    assert told.keys() == {"version", "capabilities"}
    assert told["capabilities"] == ["oob"]
    assert told == door.guest.monitor.greeting


def test_messages_end_as_qemu_ends_them(client: Client, output: Path) -> None:
    client.raw = b""
    client.dump(output, begin=0, length=4096)
    client.ask("query-dump")
    client.human("info dump")
    client.refused("dump-guest-memory")
    assert client.raw.count(b"\n") == client.raw.count(b"\r\n") == len(client.seen) == 5
    assert client.raw.endswith(b"}\r\n")


@pytest.mark.parametrize("indent", [None, 0, 4])
def test_values_not_lines(client: Client, output: Path, indent: int | None) -> None:
    request = {
        "execute": "dump-guest-memory",
        "arguments": dump_arguments(output, begin=0, length=4096),
        "id": 1,
    }
    client.send(json.dumps(request, indent=indent))
    assert client.reply() == {"return": {}, "id": 1}
    client.send(json.dumps(QUERY, indent=indent).replace("\n", "\r\n\t "))
    assert client.reply()["return"]["status"] == "completed"


def test_several_in_one_packet(client: Client) -> None:
    one = json.dumps(QUERY)
    client.send(f"{one}{one} {one}\n\n{one}\r\n")
    assert [reply["id"] for reply in client.replies(4)] == ["mine"] * 4


def test_one_byte_at_a_time(client: Client, output: Path) -> None:
    request = {
        "execute": "dump-guest-memory",
        "arguments": dump_arguments(output, begin=0, length=4096),
        "id": 1,
    }
    for byte in json.dumps(request).encode():
        client.send(bytes([byte]))
    assert client.reply() == {"return": {}, "id": 1}


def test_quotes_and_escapes(client: Client, output: Path) -> None:
    """Brackets and escaped quotes inside of strings; apostrophes quote as well."""
    for name in ("a}b", 'a"{b', "a\\", "\u00e9\U0001f600", "[{", "'"):
        path = output.with_name(name)
        for ascii in (True, False):
            path.unlink(missing_ok=True)
            arguments = dump_arguments(path, begin=0, length=4096)
            client.send(
                json.dumps({"execute": "dump-guest-memory", "arguments": arguments}, ensure_ascii=ascii)
            )
            assert client.reply()["return"] == {}, name
            assert path.exists()
    client.send("{'execute': 'query-dump', 'id': 'it\\'s \"it\"'}")
    assert client.reply()["id"] == 'it\'s "it"'


@pytest.mark.parametrize(
    "garbage",
    ["}", "\x1b", '{"execute": "query-dump" \x1b', "garbage\n", '{"execute":: "x"}', '{"a": 1,}', "\x01"],
)
def test_garbage(client: Client, garbage: str) -> None:
    """It is answered with an error without an id, and what comes then is understood."""
    client.send(garbage)
    reply = client.reply()
    assert reply.keys() == {"error"}
    assert error_text(reply).startswith("JSON parse error, ")
    client.send(json.dumps(QUERY))
    assert client.reply()["id"] == "mine"


def test_byte_that_no_text_has(client: Client) -> None:
    """0xff in the middle of anything makes the monitor start anew: clients open with it."""
    client.send(b'{"execute": "query-dump", "arguments": {"a": "\xff')
    assert "return" not in client.reply()
    client.send(b"\xff" + json.dumps(QUERY).encode())
    assert "error" in client.reply()
    assert client.reply()["id"] == "mine"


def test_values_that_are_no_requests(client: Client) -> None:
    for value in ("[]", '"x"', "5 ", "null ", "[{}]"):
        client.send(value)
        assert error_text(client.reply()) == "QMP input must be a JSON object"
    client.send('{"execute": "query-dump", "execute": "query-dump"}')
    assert "duplicate key" in error_text(client.reply())
    client.send(json.dumps(QUERY))
    assert client.reply()["id"] == "mine"


def test_deep_nesting(client: Client) -> None:
    client.send('{"execute": "query-dump", "id": ' + "[" * 200 + "]" * 200 + "}")
    assert json.dumps(client.reply()["id"]) == "[" * 200 + "]" * 200
    client.send('{"execute": "query-dump", "id": ' + "[" * 1100)
    assert error_text(client.reply()) == "JSON nesting depth limit exceeded"


def test_before_the_capabilities(door: Door, output: Path) -> None:
    client = door.client(negotiate=False)
    for command in ("query-dump", "dump-guest-memory", "query-dump-guest-memory-capability", "nix"):
        error = client.call(command)["error"]
        assert error == {"class": "CommandNotFound", "desc": NEGOTIATE}
    assert client.dump(output)["error"] == {"class": "CommandNotFound", "desc": NEGOTIATE}
    assert client.call("human-monitor-command", {"command-line": "info dump"})["error"]["desc"] == NEGOTIATE
    assert not output.exists()
    assert client.call("qmp_capabilities")["return"] == {}
    assert client.ask("query-dump").keys() == {"status", "completed", "total"}


def test_capabilities_twice(client: Client) -> None:
    assert client.call("qmp_capabilities")["error"] == {
        "class": "CommandNotFound",
        "desc": "Capabilities negotiation is already complete, command ignored",
    }
    assert "return" in client.call("query-dump")


def test_wrong_capabilities(door: Door) -> None:
    client = door.client(negotiate=False)
    assert "does not accept value 'quux'" in client.refused("qmp_capabilities", {"enable": ["quux"]})
    assert client.refused("qmp_capabilities", {"x": 1}) == "Parameter 'x' is unexpected"
    assert client.call("query-dump")["error"]["desc"] == NEGOTIATE
    assert client.call("qmp_capabilities", {"enable": []})["return"] == {}
    assert "return" in client.call("query-dump")


def call_oob(client: Client, command: str, arguments: Any = None) -> Message:
    request = {"exec-oob": command, "id": "oob"}
    if arguments is not None:
        request["arguments"] = arguments
    client.send(json.dumps(request))
    return client.reply()


def test_out_of_band_needs_its_capability(client: Client) -> None:
    assert error_text(call_oob(client, "query-dump")) == "QMP input member 'exec-oob' is unexpected"
    assert "return" in client.call("query-dump")


def test_out_of_band(door: Door, output: Path) -> None:
    client = door.client(enable=["oob"])
    for command in ("query-dump", "query-dump-guest-memory-capability", "dump-guest-memory"):
        reply = call_oob(client, command)
        assert error_text(reply) == f"The command {command} does not support OOB"
        assert reply["id"] == "oob"
    # One of the few that do; it has nothing to do here.
    assert "only supported during postcopy" in error_text(call_oob(client, "migrate-pause"))
    assert client.dump(output, begin=0, length=4096)["return"] == {}
    client.send('{"execute": "query-dump", "exec-oob": "query-dump"}')
    assert client.reply().keys() == {"error"}


def test_out_of_band_overtakes_a_dump(door: Door) -> None:
    client = door.client(enable=["oob"])
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"):
        client.give("pipe", writer)
        os.close(writer)
        client.start_dump("fd:pipe")
        assert call_oob(client, "migrate-pause")["id"] == "oob"
        client.start("query-dump", id="behind")
    first, second = client.replies(2)
    assert error_text(first).endswith("Broken pipe")
    assert second["id"] == "behind"
    assert second["return"]["status"] == "failed"


def send_with(client: Client, data: bytes, at: int, fd: int) -> None:
    """Send a message in three pieces, the descriptor beside one byte of it."""
    client.socket.sendall(data[:at])
    # Time for the other side to read the pieces one by one; without it, the test asks for less.
    time.sleep(0.02)
    socket.send_fds(client.socket, [data[at : at + 1]], [fd])
    time.sleep(0.02)
    client.socket.sendall(data[at + 1 :])


@pytest.mark.parametrize("at", [0, 20, len(GETFD) - 1])
@pytest.mark.parametrize("format", ["elf", "kdump-zlib"])
def test_descriptor_beside_any_byte(client: Client, output: Path, at: int, format: str) -> None:
    with opened(output) as fd:
        send_with(client, GETFD, at, fd)
    assert client.reply()["return"] == {}
    assert client.dump("fd:it", format=format)["return"] == {}
    assert output.read_bytes()[:4] == (b"\x7fELF" if format == "elf" else b"make")
    # The dump has taken it and closed it.
    assert not client.has("it")
    assert error_text(client.dump("fd:it")) == "File descriptor named 'it' has not been found"


def test_descriptor_with_the_first_of_two_requests(client: Client, output: Path) -> None:
    arguments = dump_arguments("fd:it", begin=0, length=4096)
    dump = json.dumps({"execute": "dump-guest-memory", "arguments": arguments}).encode()
    with opened(output) as fd:
        client.send(GETFD + dump, [fd])
    assert [reply["return"] for reply in client.replies(2)] == [{}, {}]
    assert output.read_bytes()[:4] == b"\x7fELF"


def test_descriptor_is_written_from_where_it_stands(client: Client, output: Path) -> None:
    with opened(output) as fd:
        os.write(fd, b"x" * 100)
        client.give("it", fd)
        assert client.dump("fd:it", begin=0, length=4096)["return"] == {}
        assert os.lseek(fd, 0, os.SEEK_CUR) == output.stat().st_size
    assert output.read_bytes()[:104] == b"x" * 100 + b"\x7fELF"


def test_refused_dump_leaves_the_descriptor(client: Client, output: Path) -> None:
    with opened(output) as fd:
        client.give("it", fd)
    for wrong in ({"begin": 0}, {"format": "quux"}, {"paging": True, "format": "kdump-zlib"}, {"quux": 1}):
        error_text(client.dump("fd:it", **wrong))
    assert client.has("it")
    assert not client.has("it")


@pytest.mark.parametrize("why", ["full", "range"])
def test_failed_dump_has_taken_the_descriptor(client: Client, why: str) -> None:
    with opened(Path("/dev/full")) as fd:
        client.give("it", fd)
    error_text(client.dump("fd:it", **({"begin": 1 << 40, "length": 1} if why == "range" else {})))
    assert not client.has("it")


def test_names_of_descriptors(client: Client, output: Path) -> None:
    """Without one, there is no getfd; a second one takes the name over; closefd frees it."""
    assert client.refused("getfd", {"fdname": "it"}) == "No file descriptor supplied via SCM_RIGHTS"
    other = output.with_name("other")
    with opened(other) as first, opened(output) as second:
        client.give("it", first)
        client.give("it", second)
        client.give("unused", first)
    assert client.dump("fd:it", begin=0, length=4096)["return"] == {}
    assert other.stat().st_size == 0
    assert output.stat().st_size > 4096
    assert client.has("unused")


@pytest.mark.parametrize("format", ["elf", "kdump-zlib"])
def test_pipe(door: Door, client: Client, output: Path, format: str) -> None:
    """More than a pipe holds; the last descriptor of its writing end is the dump's."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        client.give("it", writer)
        os.close(writer)
        assert client.dump("fd:it", format=format, detach=True)["return"] == {}
        data = file.read()
    client.event("DUMP_COMPLETED")
    door.settle()
    client.dump(output, format=format)
    assert data == output.read_bytes()


def test_socket_as_output(client: Client, output: Path) -> None:
    mine, theirs = socket.socketpair()
    with mine, mine.makefile("rb") as file:
        client.give("it", theirs.fileno())
        theirs.close()
        assert client.dump("fd:it", detach=True)["return"] == {}
        data = file.read()
    client.event("DUMP_COMPLETED")
    assert len(data) > 32 << 20
    assert data[:4] == b"\x7fELF"


def test_client_that_comes_again(door: Door, output: Path) -> None:
    """The next one begins with the greeting, whatever the last one left in the middle."""
    for unfinished in ("", '{"execute": "query-d', "[" * 100, '"'):
        with door.client() as client:
            client.ask("query-dump")
            client.send(unfinished)
    assert door.client().dump(output, begin=0, length=4096)["return"] == {}


def test_half_closed_client(door: Door) -> None:
    """What was sent before the end is done and answered, or at least nothing is left behind."""
    client = door.client()
    client.send(json.dumps(QUERY))
    assert client.reply()["id"] == "mine"
    client.socket.shutdown(socket.SHUT_WR)
    client.read_to_end()
    assert "return" in door.client().call("query-dump")


def test_descriptors_do_not_pile_up(new_door: Callable[..., Door], output: Path) -> None:
    door = new_door()
    client = door.client()

    def count() -> int:
        return len(os.listdir(f"/proc/{door.guest.pid}/fd"))

    client.dump(output)
    before = count()
    for _ in range(3):
        with opened(output) as fd:
            client.give("it", fd)
            client.dump("fd:it", begin=0, length=4096)
        client.dump(output)
        client.dump("file:/dev/full")
    assert count() == before
