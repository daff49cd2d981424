"""What is printed as JSON is what the shipped schemas say."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.command import RunVmdump

from vmdump.cli.main import _COMMANDS

SCHEMAS: dict[str, Any] = json.loads(files("vmdump.cli").joinpath("schemas.json").read_text())


def check(value: object, name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS)
    jsonschema.validate(value, {**SCHEMAS, "$ref": f"#/$defs/{name}"})


def test_documents(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    elf, kdump = tmp_path / "vm.elf", tmp_path / "vm.kdump"
    for words, name in (
        (("dump", "synthetic:8M", elf, "-f", "elf"), "report"),
        (("convert", elf, kdump), "report"),
        (("info", kdump), "info"),
        (("info", elf), "info"),
        (("info", "synthetic:8M"), "info"),
        (("verify", kdump), "verification"),
        (("verify", kdump, "--against", elf), "verification"),
        (("capabilities",), "capabilities"),
        (("demo", "4M"), "demo"),
        (("find", kdump, "vmdump"), "matches"),
        (("find", kdump, "vmdump", "--count"), "matches"),
        (("guests",), "guests"),
        (("repair", kdump, tmp_path / "fixed"), "repair"),
        (("info", kdump, "--usage"), "usage"),
        (("info", kdump, "--page", "0x5000"), "page"),
        (("bench", "synthetic:8M", "--to", tmp_path, "-d", "31"), "benchmark"),
    ):
        done = run_vmdump(*words, "--json")
        assert done.returncode == 0, (words, done.stderr)
        assert done.stderr == b"" or words[0] == "bench", words  # a busy machine is told of
        check(json.loads(done.stdout), name)


@pytest.mark.parametrize("command", ["info", "verify", "dmesg", "find", "bench", "repair", "convert"])
def test_failures(command: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump(command, tmp_path / "nothing", tmp_path / "out", "--json")
    assert done.returncode
    check(json.loads(done.stdout), "failure")


def test_lines(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    for output, code in ((tmp_path / "vm.kdump", 0), (tmp_path / "no" / "vm.kdump", 5)):
        done = run_vmdump("dump", "synthetic:8M", output, "--log-json")
        assert done.returncode == code
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert lines
        for line in lines:
            check(line, "line")


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check({"event": "progress", "phase": "sleeping"}, "line")
    with pytest.raises(jsonschema.ValidationError):
        check({"error": {"class": "SinkError"}}, "failure")


def test_every_command_with_json_has_one() -> None:
    """A new command that prints JSON needs a schema, and a line in the page that lists them."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text()
    for name in _COMMANDS:
        command = getattr(import_module(f"vmdump.cli.{name}"), f"{name}_command")
        if any("--json" in parameter.opts for parameter in command.params):
            assert f"`{name} --json`" in page, name
    listed = set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE))
    assert listed == set(SCHEMAS["$defs"]) - {"error", "candidate"}


@pytest.mark.parametrize("words", [("-v", "--log-json"), ("--log-json", "-v")])
def test_the_log_is_json_too(words: tuple[str, ...], run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("dump", "synthetic:8M", tmp_path / "vm.kdump", *words)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        check(line, "line")
    logged = [line["message"] for line in lines if line["event"] == "log"]
    assert any(message.startswith("source opened") for message in logged)
    assert {line["event"] for line in lines} == {"log", "progress", "report"}
