"""The human monitor's `dump-guest-memory` and `info dump`, through QMP's human-monitor-command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from live.doors import Door
from live.dumping import until
from live.raw_client import Client, Message, error_text

TRY = 'Try "help dump-guest-memory" for more information\r\n'
MISSING = f"dump-guest-memory: filename expected\r\n{TRY}"
NO_FILTER = "Error: kdump-compressed format doesn't support paging or filter\r\n"
LETTERS = {"z": "kdump-zlib", "l": "kdump-lzo", "s": "kdump-snappy"}
ELF = b"\x7fELF"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dump"


def human(client: Client, line: str) -> Message:
    return client.call("human-monitor-command", {"command-line": line})


def nothing_happened(client: Client, folder: Path) -> None:
    """No event has come, nothing is running, no file is there."""
    assert client.order() == ["return"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "head"),
    [
        ("", ELF),
        ("-p", ELF),
        ("-z", b"makedumpfile"),
        ("-d", ELF),
        ("-p -d", ELF),
        ("-d -z", b"makedumpfile"),
    ],
)
def test_forms(client: Client, output: Path, words: str, head: bytes) -> None:
    assert human(client, f"dump-guest-memory {words} {output}")["return"] == ""
    until(lambda: client.human("info dump") == "Status: completed\r\n", "the dump is completed")
    order = [kind for kind in client.order() if kind != "return"]
    assert order == ["DUMP_COMPLETED"]
    assert output.read_bytes()[: len(head)] == head


@pytest.mark.parametrize("detach", ["", "-d"])
def test_running_guest(door: Door, output: Path, detach: str) -> None:
    door.run()
    client = door.client()
    assert human(client, f"dump-guest-memory {detach} {output}")["return"] == ""
    if detach:
        client.event("RESUME")
        assert client.order() == ["STOP", "return", "DUMP_COMPLETED", "RESUME"]
    else:
        assert client.order() == ["STOP", "DUMP_COMPLETED", "RESUME", "return"]
    assert client.ask("query-status")["status"] == "running"


@pytest.mark.parametrize("letter", LETTERS)
def test_compressed_formats(client: Client, output: Path, letter: str) -> None:
    listed = client.ask("query-dump-guest-memory-capability")["formats"]
    told = client.human(f"dump-guest-memory -{letter} {output}")
    if LETTERS[letter] in listed:
        assert told == ""
        assert output.read_bytes()[:12] == b"makedumpfile"
    else:
        assert told == f"Error: {LETTERS[letter]} is not available now\r\n"
        assert not output.exists()


def test_windows_format(client: Client, output: Path) -> None:
    told = client.human(f"dump-guest-memory -w {output}")
    assert told.startswith("Error: win-dump: ")
    assert told.endswith("\r\n")
    assert client.ask("query-dump")["status"] == "failed"


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        ("0 4096", 4096),
        ("0x1000 0x2000", 8192),
        ("1+1 2*2048", 4096),
        ("100 100", 100),
        ("0 (2+2)*1024", 4096),
    ],
)
def test_ranges(client: Client, output: Path, numbers: str, size: int) -> None:
    told = client.human(f"dump-guest-memory {output} {numbers}")
    assert told == ""
    assert client.ask("query-dump")["total"] == size
    assert output.read_bytes()[:4] == ELF


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", MISSING),
        ("-p", MISSING),
        ("-d -z", MISSING),
        ('"FILE', MISSING),
        ("-q FILE", f"dump-guest-memory: unsupported option -q\r\n{TRY}"),
        ("-h", f"dump-guest-memory: unsupported option -h\r\n{TRY}"),
        ("-- FILE", f"dump-guest-memory: unsupported option --\r\n{TRY}"),
        ("-z -p FILE", f"dump-guest-memory: unsupported option -p\r\n{TRY}"),
        ("-z -l FILE", "Error: only one of '-z|-l|-s|-w' can be set\r\n"),
        ("-w -z FILE", "Error: only one of '-z|-l|-s|-w' can be set\r\n"),
        ("-l -s FILE", "Error: only one of '-z|-l|-s|-w' can be set\r\n"),
        ("-zl FILE", f"invalid char '/' in expression\r\n{TRY}"),
        ("FILE 0", "Error: Parameter 'length' is missing\r\n"),
        ("FILE 0 4096 5", f"dump-guest-memory: extraneous characters at the end of line\r\n{TRY}"),
        ("FILE x y", f"invalid char 'x' in expression\r\n{TRY}"),
        ("FILE 4k 1M", f"invalid char 'k' in expression\r\n{TRY}"),
        ("FILE; info dump", f"invalid char 'i' in expression\r\n{TRY}"),
        ("FILE\ninfo dump", f"invalid char 'i' in expression\r\n{TRY}"),
        ("-z FILE 0 4096", NO_FILTER),
        ("-p -z FILE", NO_FILTER),
        ("-p -l FILE", NO_FILTER),
        ("/missing/x", "Error: Could not open '/missing/x': No such file or directory\r\n"),
        ("file:FILE", "Error: Could not open 'file:FILE': No such file or directory\r\n"),
        ("'FILE'", "Error: Could not open ''FILE'': No such file or directory\r\n"),
    ],
)
def test_refused_forms(client: Client, output: Path, words: str, told: str) -> None:
    words, told = (text.replace("FILE", str(output)) for text in (words, told))
    before = client.ask("query-dump")
    client.seen.clear()
    assert human(client, f"dump-guest-memory {words}")["return"] == told
    nothing_happened(client, output.parent)
    assert client.ask("query-dump") == before


@pytest.mark.parametrize("word", ["-R"])
def test_raw_layout_where_the_help_has_it(client: Client, output: Path, word: str) -> None:
    """The layout without records, from QEMU 8.2 on; together with one of the compressions."""
    knows = word in client.human("help dump-guest-memory")
    told = client.human(f"dump-guest-memory {word} -z {output}")
    if knows:
        assert told == ""
        assert output.read_bytes()[:8] == b"KDUMP   "
    else:
        assert told == f"dump-guest-memory: unsupported option {word}\r\n{TRY}"


def test_names(client: Client, output: Path) -> None:
    """In quotes, blanks and backslashes; a comma is part of a name, a semicolon ends it."""
    for name, written in (
        ("with space", '"with space"'),
        ('a"quote', r'"a\"quote"'),
        (r"back\slash", r'"back\\slash"'),
        ("a,comma", "a,comma"),
        ("-dash", "-dash"),
        ("\u00e9\U0001f600", "\u00e9\U0001f600"),
    ):
        path = output.with_name(name)
        words = (
            written.replace('"', f'"{output.parent}/', 1)
            if written[0] == '"'
            else f"{output.parent}/{written}"
        )
        assert client.human(f"dump-guest-memory {words} 0 4096") == "", written
        assert path.read_bytes()[:4] == ELF, written


def test_blanks(client: Client, output: Path) -> None:
    for line in (f"  dump-guest-memory   {output}   0  4096 ", f"dump-guest-memory\t{output}\t0\t4096"):
        output.unlink(missing_ok=True)
        assert client.human(line) == "", line
        assert output.exists()
    assert client.human("  info   dump ") == "Status: completed\r\n"


def test_range_without_memory(client: Client, output: Path) -> None:
    told = client.human(f"dump-guest-memory {output} 1099511627776 4096")
    assert told == "Error: dump: no guest memory to dump\r\n"
    assert client.human("info dump") == "Status: failed\r\n"


@pytest.mark.parametrize("detach", ["", "-d"])
def test_failed_dump(client: Client, detach: str) -> None:
    told = human(client, f"dump-guest-memory {detach} /dev/full")["return"]
    if detach:
        assert told == ""
        client.event("DUMP_COMPLETED")
    (event,) = client.events("DUMP_COMPLETED")
    if not detach:
        assert told == f"Error: {event['data']['error']}\r\n"
    assert "No space left on device" in event["data"]["error"]
    assert client.human("info dump") == "Status: failed\r\n"


def test_other_spellings_are_unknown(client: Client, output: Path) -> None:
    for line in (f"dump-guest-mem {output}", f"dump {output}", f"DUMP-GUEST-MEMORY {output}"):
        assert client.human(line) == f"unknown command: '{line.split()[0]}'\r\n"
    assert client.human("info du") == "unknown command: 'info du'\r\n"
    assert client.human("info dump x").startswith("dump: extraneous characters at the end of line\r\n")
    assert not output.exists()


def test_help_and_everything_else_is_there(client: Client) -> None:
    assert client.human("help dump-guest-memory").startswith("dump-guest-memory [-p] [-d] ")
    assert client.human("help info dump") == "info dump  -- Display the latest dump status\r\n"
    assert "info dump  -- " in client.human("info")
    assert client.human("") == ""
    assert client.human("info status") == "VM status: paused\r\n"


def test_arguments_of_the_wrapper(client: Client, output: Path) -> None:
    def refused(**arguments: Any) -> str:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return error_text(client.call("human-monitor-command", named))

    assert refused() == "Parameter 'command-line' is missing"
    assert refused(command_line=5) == "Invalid parameter type for 'command-line', expected: string"
    for line in ("info dump", f"dump-guest-memory {output}"):
        assert refused(command_line=line, x=1) == "Parameter 'x' is unexpected"
        assert refused(command_line=line, cpu_index=9) == "Parameter 'cpu-index' expects a CPU number"
        text = "Invalid parameter type for 'cpu-index', expected: integer"
        assert refused(command_line=line, cpu_index="0") == text
    assert not output.exists()
    assert client.ask("human-monitor-command", command_line="info dump", cpu_index=0).startswith("Status: ")
