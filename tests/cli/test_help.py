"""Help: whole sentences, examples that are right, any width of a terminal; and what is missing of a call."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from importlib import import_module

import click
import pytest
from helpers.command import RunVmdump
from helpers.house import ROOT
from helpers.terminal import on_terminal

from vmdump.cli import main as module
from vmdump.cli.help import DOCUMENTATION, SOURCES, TaughtCommand
from vmdump.cli.main import main
from vmdump.cli.signals import Signals
from vmdump.opening import schemes

COMMANDS = tuple(module._COMMANDS)
WIDTHS = (40, 80, 120)


def command_of(name: str) -> TaughtCommand:
    found = getattr(import_module(f"vmdump.cli.{name}"), f"{name}_command")
    assert isinstance(found, TaughtCommand)
    return found


def words_of(example: str) -> list[str]:
    """The words of vmdump's own part of an example; none where it calls another program."""
    words = shlex.split(re.split(r" [|>]", example)[0])
    return words[1:] if words[0] == "vmdump" else []


@pytest.mark.parametrize("name", COMMANDS)
def test_list_has_the_first_sentence_of_each_command(name: str) -> None:
    sentence = module._COMMANDS[name]
    help_text = inspect.cleandoc(command_of(name).help or "").partition("\n\n")[0]
    assert " ".join(help_text.split()) == sentence
    assert sentence.endswith(".")
    assert "..." not in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_right(name: str) -> None:
    command = command_of(name)
    assert command.examples
    for example in command.examples:
        if words := words_of(example):
            assert words[0] == name
            with Signals(process=False) as signals:
                command.make_context(name, words[1:], obj=signals).close()


def test_examples_of_all_commands_are_right() -> None:
    for example in module._EXAMPLES:
        name, *words = words_of(example)
        command_of(name).make_context(name, words).close()


def test_every_scheme_is_explained() -> None:
    assert {name.partition(":")[0] for name, _ in SOURCES if ":" in name} == set(schemes())


def test_documentation_is_where_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Documentation"] == DOCUMENTATION


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal(name: str, columns: int) -> None:
    shown = on_terminal([*filter(None, [name]), "--help"], columns)
    assert shown.code == 0
    assert shown.colours
    text = click.unstyle(shown.raw.decode()).replace("\r\n", "\n")
    body, _, end = text.partition("\nExamples:\n")
    examples = command_of(name).examples if name else module._EXAMPLES
    assert [line.strip() for line in end.splitlines()] == [*examples, "", f"Documentation: {DOCUMENTATION}"]
    assert max(map(len, body.splitlines())) <= columns
    # Nothing was broken by the terminal: what is seen are the lines that were written.
    assert shown.lines[: len(body.splitlines())] == [line.rstrip() for line in body.splitlines()]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_help_without_colour(columns: int, environment: dict[str, str]) -> None:
    shown = on_terminal(["dump", "--help"], columns, **environment)
    assert not shown.colours
    assert b"\x1b" not in shown.raw


def test_help_in_a_file_has_no_colour(run_vmdump: RunVmdump) -> None:
    done = run_vmdump("--help")
    assert b"\x1b" not in done.stdout
    assert done.stdout.decode().splitlines()[0].startswith("Usage: vmdump")


def test_help_without_a_command_goes_to_standard_error(run_vmdump: RunVmdump) -> None:
    done = run_vmdump()
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Dump a guest:" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        ("dump", "dump [OPTIONS] SOURCE... OUTPUT", "missing arguments SOURCE... and OUTPUT"),
        ("dump qmp:x", "dump [OPTIONS] SOURCE... OUTPUT", "missing argument OUTPUT"),
        ("dump -f elf qmp:x", "dump [OPTIONS] SOURCE... OUTPUT", "missing argument OUTPUT"),
        ("read x", "read [OPTIONS] DUMP... ADDRESS LENGTH", "missing arguments ADDRESS and LENGTH"),
        ("read x 0", "read [OPTIONS] DUMP... ADDRESS LENGTH", "missing argument LENGTH"),
        ("verify", "verify [OPTIONS] DUMP...", "missing argument DUMP..."),
        ("serve qmp:x", "serve [OPTIONS] SOURCE", "Missing option '--listen'"),
        (
            "dump a b --formta x",
            "dump [OPTIONS] SOURCE... OUTPUT",
            "No such option '--formta'; is it --format?",
        ),
        ("dmup", "[OPTIONS] COMMAND [ARGS]...", "No such command 'dmup'; is it dump?"),
        ("wat", "[OPTIONS] COMMAND [ARGS]...", "No such command 'wat'"),
    ],
)
def test_wrong_call(words: str, usage: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    first, last = capfd.readouterr().err.splitlines()
    assert first == f"Usage: vmdump {usage}"
    assert last.startswith(f"vmdump: {message}")
    assert re.search(r"[;?] vmdump [a-z ]*--help tells more$", last)
