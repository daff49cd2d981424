"""Names of files that steer the terminal: on it, and in a pipe, every command shows what they are."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump, on_a_terminal

import vmdump
from vmdump.cli.chart import draw_picture
from vmdump.cli.printing import console, harmless

PAGE = 4096
PIECES = (
    *("\x1b]0;owned\x07", "\x1b[2J", "\x1b[35;7mx", "\x1bP1", "\x9b2J", "\x9d0;", "\x7f", "\x08", "\x0e"),
    *("\rforged", "\nforged", "\x85", "\u2028", "\u202e", "\u2066", "\u2069", "\u200f", "\u200b", "\ufeff"),
    *("\udcff", "\udc9b"),  # bytes that are no UTF-8; the second is an escape sequence's start in Latin-1
)
NAME = "a" + "b".join(PIECES) + "[red]:smile:"
CALM = re.compile(rb"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[lh]")
"""What rich and say_for_now send: colours, lines that are erased, the cursor."""

COMMANDS = {
    "dump": ["dump", "raw:{ram}", "{out}"],
    "dump that exists": ["dump", "raw:{ram}", "{dump}"],
    "dump in no folder": ["dump", "raw:{ram}", "{out}/{out}"],
    "dump of nothing": ["dump", "{out}", "out"],
    "dump of a directory": ["dump", "{folder}", "out"],
    "debug": ["--debug", "dump", "{out}", "out"],
    "convert": ["convert", "{dump}", "{out}", "-f", "elf"],
    "split": ["convert", "{dump}", "{out}", "--split", "2"],
    "info": ["info", "{dump}"],
    "info of a picture": ["info", "{ram}"],
    "read": ["read", "{dump}", "0", "64", "--hex"],
    "read to a file": ["read", "{dump}", "0", "64", "-o", "{out}"],
    "read nothing": ["read", "{dump}", "1T", "64", "--hex"],
    "find": ["find", "{dump}", "{out}"],
    "report": ["report", "{dump}", "-o", "{out}"],
    "verify": ["verify", "{dump}"],
    "verify against": ["verify", "{dump}", "--against", "raw:{ram}"],
    "verify against another": ["verify", "raw:{ram}", "--against", "{other}"],
    "repair": ["repair", "{dump}", "{out}"],
    "dmesg": ["dmesg", "{dump}"],
    "bench": ["bench", "raw:{ram}", "--to", "{folder}"],
    "bench without a picture": ["bench", "raw:{ram}", "--picture", "{out}"],
    "unknown command": ["{out}"],
    "unknown option": ["info", "--{out}"],
    "unknown format": ["dump", "raw:{ram}", "out", "-f", "{out}"],
    "unknown scheme": ["dump", "raw:{ram}?{out}=1", "out"],
    "demo of no size": ["demo", "{out}"],
    "vmcoreinfo": ["dump", "raw:{ram}", "out", "--vmcoreinfo", "{out}"],
    "socket": ["dump", "qmp:{folder}/{out}", "out"],
}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Hostile files in the current folder, by what they are."""
    monkeypatch.chdir(tmp_path)
    text = b"".join(b"%d sheep jump over the fence\n" % n for n in range(4000))
    Path("ram" + NAME).write_bytes(text[: 8 * PAGE] + bytes(4 * PAGE))
    Path("other" + NAME).write_bytes(b"\x7fELF")
    vmdump.dump(f"raw:{'ram' + NAME}", "dump" + NAME)
    vmdump.dump(np.zeros(PAGE, np.uint8), "other" + NAME, force=True)
    Path("folder" + NAME).mkdir()
    return {name: name + NAME for name in ("ram", "dump", "other", "folder", "out")}


def check_calm(shown: bytes, *, own: bytes = b"") -> None:
    for piece in PIECES:
        assert os.fsencode(piece) not in shown, ascii(piece)
    assert b"Traceback" not in shown or b"--debug" in own
    text = CALM.sub(b"", shown) if own else shown
    text = text.replace(b"\r", b"") if own else text  # to the start of the line, which is written anew
    wrong = [char for char in text.decode() if not char.isprintable() and char != "\n"]
    assert not wrong, (wrong, text)
    assert not [line for line in text.splitlines() if line.lstrip().startswith(b"forged")]


@pytest.mark.parametrize("command", COMMANDS)
def test_name(command: str, names: dict[str, str], run_vmdump: RunVmdump) -> None:
    words = [word.format(**names) for word in COMMANDS[command]]
    piped = run_vmdump(*words)
    check_calm(piped.stdout + piped.stderr, own=b"--debug" if "--debug" in words else b"")
    assert piped.returncode in (0, 2, 3, 5, 6, 7, 10, 11, 19, 21), piped.stderr
    for path in [*Path().glob("out*"), *Path(names["folder"]).glob("*")]:
        path.unlink()
    shown = on_a_terminal(words)
    assert shown or command == "read to a file"
    check_calm(shown, own=b"rich --debug")
    # A name is there, as Python writes it.
    if command not in ("info", "read", "dmesg", "read nothing", "read to a file"):
        assert rb"\x1b]0;owned\x07" in shown
        assert rb"\u202e" in shown
        assert rb"\udcff" in shown


@pytest.mark.parametrize(
    ("command", "key"), [("dump", "output"), ("convert", "output"), ("repair", "report"), ("bench", "source")]
)
def test_json_is_exact(command: str, key: str, names: dict[str, str], run_vmdump: RunVmdump) -> None:
    words = [word.format(**names) for word in COMMANDS[command]]
    done = run_vmdump(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    found = json.loads(done.stdout)[key]
    name = found["output"] if key == "report" else found.removeprefix("raw:")
    assert name in (names["out"], names["ram"])
    assert os.path.exists(os.fsencode(name))


def test_name_that_the_locale_has_no_letters_for(
    names: dict[str, str], tmp_path: Path, run_vmdump: RunVmdump
) -> None:
    """Printing is no reason to fail."""
    path = tmp_path / "\u20ac\u732b"
    Path(names["dump"]).rename(path)
    for encoding in ("latin-1", "ascii", "utf-8"):
        done = run_vmdump("verify", path, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
        assert b"8 zlib" in done.stdout
        assert done.stderr == b""


def test_tables_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    from helpers.benchmarks import benchmark
    from rich.table import Table

    table = Table(f"a{NAME}", title=f"b{NAME}", caption=f"c{NAME}")
    table.add_row(f"d{NAME}")
    terminal = console()
    terminal.width = 3000
    terminal.print(table)
    terminal.print(f"e{NAME}")
    shown = capsys.readouterr().out
    assert [shown.count(f"{letter}{harmless(NAME)}") for letter in "abcde"] == [1] * 5
    check_calm(shown.encode())
    pytest.importorskip("matplotlib")
    from dataclasses import replace
    from xml.etree import ElementTree

    found = replace(benchmark([(1e9, 0.6), (1e8, 0.4)]), source=NAME, machine=f"m{NAME}")
    texts = "".join(ElementTree.fromstring(draw_picture(found, ".svg")).itertext())
    # A long one goes on in the next line.
    assert "".join(texts.split()).count(harmless(NAME)) == 2


def test_each_character_is_written_in_one_way() -> None:
    assert harmless("plain \u00e4\u732b \U0001f600 \\") == "plain \u00e4\u732b \U0001f600 \\"
    assert harmless("\x00\x1b\x7f\x9b\xa0") == r"\x00\x1b\x7f\x9b\xa0"
    assert harmless("\u202e\u2066\udcff\U000e0041") == r"\u202e\u2066\udcff\U000e0041"
    assert harmless("\t\n\r") == r"\t\n\r"
