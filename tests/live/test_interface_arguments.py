"""Arguments and answers of QMP's dump commands: what QEMU accepts and refuses, `serve` does, word for word.

What the acceptance test of avocado's tp-qemu asks of dump-guest-memory is in these modules:

- with paging off and no format, elf, kdump-zlib, kdump-lzo or kdump-snappy, the command answers nothing,
  query-dump tells in the end that the dump is completed, and a crash reader opens the file
  (test_interface_files.py);
- the same with detach, where the answer comes first and query-dump is asked until it is so
  (test_interface_order.py);
- the capability query lists the formats, all five of theirs where every codec is built in (here; `serve` has
  them always);
- an unknown format, "quux", is refused with its name (here);
- each of the kdump formats with paging is refused, with the sentence about paging and filter (here).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from live.doors import Door
from live.raw_client import Client, dump_arguments, error_text

FORMATS = ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "win-dmp"]
"""All that QEMU 7.2 knows by name, whether built in or not."""
NO_FILTER = "kdump-compressed format doesn't support paging or filter"
MISSING = "No such file or directory"
BEYOND = 1 << 40
HUGE = 1 << 63


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dump"


def refused(client: Client, output: Path, **arguments: Any) -> str:
    """The text of the refusal of a dump with these arguments. No dump, no file and no event comes of it."""
    before = client.ask("query-dump")
    client.seen.clear()
    text = client.refused("dump-guest-memory", dump_arguments(output) | arguments)
    assert client.order() == ["error"]
    assert client.ask("query-dump") == before
    assert not output.exists()
    return text


def wrong_type(name: str, expected: str) -> str:
    return f"Invalid parameter type for '{name}', expected: {expected}"


def bad_value(value: str) -> str:
    return f"Parameter 'format' does not accept value '{value}'"


def test_paging_and_protocol_are_needed(client: Client, output: Path) -> None:
    assert client.refused("dump-guest-memory") == "Parameter 'paging' is missing"
    assert client.refused("dump-guest-memory", {}) == "Parameter 'paging' is missing"
    assert (
        client.refused("dump-guest-memory", {"protocol": f"file:{output}"}) == "Parameter 'paging' is missing"
    )
    assert client.refused("dump-guest-memory", {"paging": False}) == "Parameter 'protocol' is missing"
    assert not output.exists()


@pytest.mark.parametrize("protocol", ["", "/dump", "http://x", "FILE:/x", " file:/x", "file", "fdset:1"])
def test_unknown_protocol(client: Client, output: Path, protocol: str) -> None:
    assert refused(client, output, protocol=protocol) == "Invalid parameter 'protocol'"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", MISSING),
        ("/missing/dump", MISSING),
        ("relative/dump", MISSING),
        ("/", "Is a directory"),
        ("/dev", "Is a directory"),
        ("/dev/null/dump", "Not a directory"),
        ('/missing/it\'s "it"\\', MISSING),
        ("/missing/\u00e9\U0001f600", MISSING),
        # Nobody may make files here, root neither.
        ("/sys/kernel/dump", "Permission denied"),
        ("/dev/fdset/77", MISSING),
    ],
)
def test_file_that_cannot_be_made(client: Client, output: Path, path: str, reason: str) -> None:
    assert refused(client, output, protocol=f"file:{path}") == f"Could not open '{path}': {reason}"


@pytest.mark.parametrize("name", ["", "nix", "1", "/x", "it's"])
def test_descriptor_that_nobody_gave(client: Client, output: Path, name: str) -> None:
    text = refused(client, output, protocol=f"fd:{name}")
    assert text == f"File descriptor named '{name}' has not been found"


@pytest.mark.parametrize("name", ["begin", "length"])
def test_begin_and_length_come_together(client: Client, output: Path, name: str) -> None:
    other = {"begin": "length", "length": "begin"}[name]
    for format in ({}, {"format": "elf"}):
        assert refused(client, output, **{name: 4096}, **format) == f"Parameter '{other}' is missing"


@pytest.mark.parametrize(
    ("begin", "length", "text"),
    [
        (BEYOND, 4096, "dump: no guest memory to dump"),
        (32 << 20, 4096, "dump: no guest memory to dump"),
        (0, 0, "Invalid parameter 'length'"),
        (BEYOND, 0, "Invalid parameter 'length'"),
    ],
)
def test_range_without_memory(client: Client, output: Path, begin: int, length: int, text: str) -> None:
    """QEMU counts such a dump as one that has failed; nothing of it is announced."""
    assert error_text(client.dump(output, begin=begin, length=length)) == text
    assert client.order() == ["error"]
    assert client.ask("query-dump") == {"status": "failed", "completed": 0, "total": 0}
    assert client.human("info dump") == "Status: failed\r\n"
    assert not output.exists() or output.stat().st_size == 0


def test_negative_begin(client: Client, output: Path) -> None:
    """QEMU takes it for a big number; its two texts depend on the carry."""
    for begin, length in ((-1, 4096), (-4096, 1 << 20), (-HUGE, 4096)):
        text = error_text(client.dump(output, begin=begin, length=length))
        assert text in ("Invalid parameter 'begin'", "dump: no guest memory to dump")
        assert client.order() == ["error"]
        answer = client.ask("query-dump")
        client.seen.clear()
        assert (answer["status"], answer["completed"]) == ("failed", 0)


@pytest.mark.parametrize("length", [1 << 40, HUGE - 1])
def test_length_far_behind_the_memory(client: Client, output: Path, length: int) -> None:
    client.dump(output)
    whole = client.ask("query-dump")["total"]
    assert client.dump(output, begin=1 << 20, length=length)["return"] == {}
    assert client.ask("query-dump")["total"] == whole - (1 << 20)


@pytest.mark.parametrize(
    ("name", "expected", "values"),
    [
        ("paging", "boolean", [0, 1, "no", "true", None, [], {}]),
        ("detach", "boolean", [0, 1, "true", None, 1.5]),
        ("protocol", "string", [1, None, True, ["file:x"], {"file": "x"}]),
        ("format", "string", [1, None, False, ["elf"]]),
        ("begin", "integer", ["0", None, True, 1.5, 1.0, [0], HUGE, 1 << 64, -HUGE - 1]),
        ("length", "integer", ["1", None, True, 1.5, 1.0, [0], HUGE, 1 << 64, -HUGE - 1]),
    ],
)
def test_wrong_types(client: Client, output: Path, name: str, expected: str, values: list[Any]) -> None:
    others = {"begin": 0, "length": 4096} if name in ("begin", "length") else {}
    for value in values:
        text = refused(client, output, **{**others, name: value})
        assert text == wrong_type(name, expected), value


def test_wrong_arguments_altogether(client: Client) -> None:
    for value in (5, "x", [], None, True):
        text = error_text(json_call(client, {"execute": "dump-guest-memory", "arguments": value}))
        assert text == "QMP input member 'arguments' must be an object"
    for command in ("query-dump", "query-dump-guest-memory-capability"):
        assert client.refused(command, {"a": 1}) == "Parameter 'a' is unexpected"
        assert "return" in client.call(command, {})


def json_call(client: Client, request: object) -> Any:
    client.send(json.dumps(request))
    return client.reply()


@pytest.mark.parametrize("value", ["quux", "", "ELF", "zlib", "kdump", "elf ", "kdump-zlib\n"])
def test_unknown_format(client: Client, output: Path, value: str) -> None:
    assert refused(client, output, format=value) == bad_value(value)


def test_unknown_argument(client: Client, output: Path) -> None:
    assert refused(client, output, quux=1) == "Parameter 'quux' is unexpected"
    assert refused(client, output, Paging=True) == "Parameter 'Paging' is unexpected"


def test_which_of_several_faults_is_told(client: Client, output: Path) -> None:
    """Types come first, in the order of the command's own list, then what does not fit, then files."""
    assert refused(client, output, paging=1, quux=2) == wrong_type("paging", "boolean")
    assert refused(client, output, quux=1, format="quux") == bad_value("quux")
    assert refused(client, output, paging="x", protocol=1) == wrong_type("paging", "boolean")
    assert refused(client, output, begin="x", detach="x") == wrong_type("detach", "boolean")
    assert refused(client, output, protocol="nix", format="quux") == bad_value("quux")
    assert refused(client, output, protocol="nix", begin=0) == "Parameter 'length' is missing"
    assert refused(client, output, protocol="nix", begin=BEYOND, length=1) == "Invalid parameter 'protocol'"
    assert refused(client, output, protocol="nix", paging=True, format="kdump-zlib") == NO_FILTER
    assert refused(client, output, begin=0, format="kdump-zlib") == NO_FILTER
    assert refused(client, output, protocol="file:/missing/x", begin=0, length=0).startswith("Could not open")


@pytest.mark.parametrize("format", FORMATS[1:])
def test_kdump_with_paging_or_a_range(client: Client, output: Path, format: str) -> None:
    """Also where the format itself is not built in."""
    assert refused(client, output, paging=True, format=format) == NO_FILTER
    assert refused(client, output, begin=0, length=4096, format=format) == NO_FILTER
    assert refused(client, output, length=4096, format=format) == NO_FILTER


@pytest.mark.parametrize("format", FORMATS)
def test_listed_formats_work_and_others_are_not_available(client: Client, output: Path, format: str) -> None:
    listed = client.ask("query-dump-guest-memory-capability")["formats"]
    reply = client.dump(output, format=format)
    if format not in listed:
        assert error_text(reply) == f"{format} is not available now"
        assert not output.exists()
    elif format == "win-dmp":
        # Only a Windows guest can be dumped so; QEMU finds out inside the dump.
        assert error_text(reply).startswith("win-dump: ")
        assert client.ask("query-dump")["status"] == "failed"
        (completed,) = client.events("DUMP_COMPLETED")
        assert completed["data"]["error"] == reply["error"]["desc"]
    else:
        assert reply["return"] == {}
        assert output.read_bytes()[:4] == (b"\x7fELF" if format == "elf" else b"make")


def test_capability(door: Door, client: Client) -> None:
    answer = client.ask("query-dump-guest-memory-capability")
    assert answer.keys() == {"formats"}
    formats = answer["formats"]
    assert formats[:2] == ["elf", "kdump-zlib"]
    assert len(set(formats)) == len(formats)
    assert all(isinstance(name, str) for name in formats)
    if door.serves:
        assert set(formats) >= set(FORMATS)


@pytest.mark.parametrize("flags", [{}, {"detach": False}, {"format": "elf"}, {"paging": True}])
def test_answer_is_empty(client: Client, output: Path, flags: dict[str, Any]) -> None:
    assert client.dump(output, **flags)["return"] == {}
    assert output.read_bytes()[:4] == b"\x7fELF"


IDS: list[Any] = [
    0,
    7,
    -1,
    1.5,
    "",
    "x",
    "\u00e9\U0001f600",
    True,
    None,
    [],
    [1, {"a": [2]}],
    {"b": None},
    1 << 40,
]


@pytest.mark.parametrize("number", range(len(IDS)))
def test_ids_come_back(client: Client, output: Path, number: int) -> None:
    id = IDS[number]
    for command in ("query-dump", "query-dump-guest-memory-capability"):
        assert "return" in client.call(command, id=id)
    assert "error" in client.call("dump-guest-memory", {}, id=id)
    arguments = dump_arguments(output, begin=0, length=4096)
    assert client.call("dump-guest-memory", arguments, id=id)["return"] == {}
    line = {"command-line": "info dump"}
    assert client.call("human-monitor-command", line, id=id)["return"] == "Status: completed\r\n"


def test_no_id_no_id(client: Client, output: Path) -> None:
    assert json_call(client, {"execute": "query-dump"}).keys() == {"return"}
    arguments = dump_arguments(output, begin=0, length=4096)
    assert json_call(client, {"execute": "dump-guest-memory", "arguments": arguments}) == {"return": {}}
    assert json_call(client, {"execute": "dump-guest-memory"}).keys() == {"error"}


def test_unknown_command_and_members(client: Client) -> None:
    assert client.call("dump-guest-memorx")["error"] == {
        "class": "CommandNotFound",
        "desc": "The command dump-guest-memorx has not been found",
    }
    for command in ("query-dump", "dump-guest-memory"):
        text = error_text(json_call(client, {"execute": command, "quux": 1}))
        assert text == "QMP input member 'quux' is unexpected"
    assert error_text(json_call(client, {})) == "QMP input lacks member 'execute'"
    assert error_text(json_call(client, {"execute": 5})) == "QMP input member 'execute' must be a string"
    assert error_text(json_call(client, [])) == "QMP input must be a JSON object"


def test_devices(client: Client, output: Path) -> None:
    assert client.dump("file:/dev/null", begin=0, length=4096)["return"] == {}
    fifo = output.with_name("fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert client.dump(fifo, begin=0, length=4096)["return"] == {}
        assert os.read(reader, 4) == b"\x7fELF"
    finally:
        os.close(reader)


def test_through_a_link(client: Client, output: Path) -> None:
    """It stays, and what it leads to is replaced."""
    target = output.with_name("target")
    target.write_bytes(b"old")
    output.symlink_to(target)
    assert client.dump(output, begin=0, length=4096)["return"] == {}
    assert target.read_bytes()[:4] == b"\x7fELF"
    assert output.is_symlink()


def test_file_that_is_there(client: Client, output: Path) -> None:
    """It is written anew, whatever was in it, and nobody may read it who might not read the old one."""
    output.write_bytes(bytes(1 << 20))
    output.chmod(0o640)
    assert client.dump(output, begin=0, length=4096)["return"] == {}
    data = output.read_bytes()
    assert data[:4] == b"\x7fELF"
    assert len(data) < 1 << 20
    assert output.stat().st_mode & 0o777 in (0o640, 0o600)


def test_nothing_was_dumped_yet(new_door: Callable[..., Door], output: Path) -> None:
    client = new_door().client()
    nothing = {"status": "none", "completed": 0, "total": 0}
    assert client.ask("query-dump") == nothing
    assert client.human("info dump") == "Status: none\r\n"
    refused(client, output, protocol="file:/missing/dump")
    refused(client, output, paging=1)
    assert client.ask("query-dump") == nothing
    client.dump(output)
    assert client.ask("query-dump")["status"] == "completed"
