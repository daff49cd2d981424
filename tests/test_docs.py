"""README.md and docs/ as texts: their tables say what the code says, and nothing public is left out."""

from __future__ import annotations

import configparser
import inspect
import re
import shlex
import signal
import subprocess
from typing import get_args

import pytest
from helpers import command
from helpers.pages import PAGES, ROOT, Block, blocks, command_lines, text_of

import vmdump
from vmdump import errors
from vmdump.arch import ARCHES

BLOCKS = [block for page in PAGES for block in blocks(page)]
MARKED = [block for block in BLOCKS if block.mark]
LONGEST_README = 150


def table(page: str, number: int = 0) -> list[list[str]]:
    """The cells of a table of a page, without its head."""
    found = re.findall(r"(?:^\|.*\n)+", text_of(page), re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[number].splitlines()[2:]]


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= LONGEST_README


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {("sh", ""), ("python", ""), ("sh", "parsed"), ("python", "parsed"), ("ini", ""), ("text", "")}
    assert not [block.place for block in BLOCKS if (block.language, block.mark) not in kinds]
    assert all(len(block.reason) > 10 for block in MARKED)
    # Few: what is not run is not known to work.
    assert len(MARKED) * 6 < len(BLOCKS), [block.place for block in MARKED]


def test_output_has_no_commands() -> None:
    commands = re.compile(r"^(\$|vmdump (?!\d)|import |from \w+ import )", re.MULTILINE)
    assert not [block.place for block in BLOCKS if block.language == "text" and commands.search(block.text)]


def check_words(words: list[str]) -> None:
    """The command and its options are vmdump's: it complains before it helps."""
    done = command.run(*words, "--help")
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.place)
def test_what_is_not_run_is_parsed(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec")
        return
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    for words in command_lines(block.text):
        check_words(words)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "ini"], ids=lambda block: block.place)
def test_units(block: Block) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block.text)
    assert set(unit.sections()) <= {"Unit", "Service", "Timer", "Install"}
    for line in re.findall(r"^ExecStart=(.*)$", block.text, re.MULTILINE):
        name, *words = shlex.split(line)
        assert name.endswith("/vmdump")
        check_words(words)


def test_links_lead_somewhere() -> None:
    """Those of README.md; Sphinx looks after those in docs/."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of("README.md")):
        assert (ROOT / target).exists(), target


def test_anchors_of_readme() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text_of("README.md"), re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text_of("README.md"))) <= headings


def test_all_public_names_are_in_the_reference() -> None:
    """It has functions, classes and literal types by themselves; anything else must be named there."""
    reference = text_of("docs/reference/api.md")
    for kind in ("functions", "classes", "types"):
        assert f"{{public-names}} {kind}" in reference
    for name in vmdump.__all__:
        value = getattr(vmdump, name)
        if isinstance(value, type) or inspect.isroutine(value):
            assert value.__doc__, name
        elif not get_args(value):
            assert f"vmdump.{name}" in reference


def test_all_commands_are_in_readme() -> None:
    listed = re.findall(r"^  ([a-z][a-z-]*)  +\S", command.run("--help").stdout.decode(), re.MULTILINE)
    assert len(listed) > 10
    assert set(listed) <= set(re.findall(r"\bvmdump ([a-z]+)\b", text_of("README.md")))


def test_exit_codes() -> None:
    classes = {
        kind.exit_code: name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.VmdumpError) and not name.startswith("_")
    }
    signals = ", ".join(str(128 + number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM))
    expected = [["0", ""], *([str(code), f"`{classes[code]}`"] for code in sorted(classes)), [signals, ""]]
    assert [row[:2] for row in table("docs/reference/exit-codes.md")] == expected


def test_architectures() -> None:
    expected = []
    for arch in ARCHES:
        notes = [
            name + (" by the vectors' length" if name == "SVE" else f" {note.layout.size}")
            for note in arch.register_notes
            for name in [note.layout.name.split()[1]]
        ]
        kind = f"{arch.elf_class} {arch.byteorder}"
        expected.append([f"`{arch.name}`", kind, f"{arch.page_size >> 10} KiB", ", ".join(notes)])
    assert table("docs/reference/architectures.md") == expected


def test_formats_and_engines() -> None:
    found = vmdump.capabilities()
    expected = {state.name: state.codec for state in found.formats if not state.name.startswith("kdump-raw-")}
    rows = {row[0].strip("`"): row[2] for row in table("docs/reference/formats.md")}
    assert rows == {
        name: ", ".join(engine.name for engine in found.engines if engine.codec == codec)
        for name, codec in expected.items()
    }


def test_make_targets() -> None:
    texts = "\n".join(text_of(page) for page in PAGES)
    targets = set(re.findall(r"`make (\w+)`|^make (\w+)$", texts, re.MULTILINE))
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for pair in targets for name in pair if name} <= set(known)
