"""Errors as JSON, on standard output and among the lines of a log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import RunVmdump

from vmdump import errors

NOTHING = "/nothing/at/all"


@pytest.mark.parametrize(
    ("words", "name", "facts"),
    [
        (("info", NOTHING, "--json"), "SourceError", {"errno": 2, "filename": NOTHING}),
        (("verify", NOTHING, "--json"), "SourceError", {"errno": 2, "address": None}),
        (("dump", "synthetic:8M", NOTHING, "--json"), "SinkError", {"errno": 2, "filename": NOTHING}),
        (("dump", "synthetic:8M", "-", "--json"), "RequestError", {"parameter": "json"}),
        (
            ("dump", "synthetic:8M", "out", "--json", "--threads", "x"),
            "RequestError",
            {"parameter": "threads"},
        ),
        (
            ("dump", "synthetic:8M", "out", "--json", "--engine", "zilb"),
            "EngineUnavailable",
            {"engine": "zilb"},
        ),
    ],
)
def test_error_on_standard_output(
    words: tuple[str, ...], name: str, facts: dict[str, object], run_vmdump: RunVmdump
) -> None:
    done = run_vmdump(*words)
    told = json.loads(done.stdout)
    assert list(told) == ["error"]
    error = told["error"]
    assert error["class"] == name
    assert error["exit_code"] == done.returncode == getattr(errors, name).exit_code
    assert {key: error[key] for key in facts} == facts
    assert done.stderr.decode().splitlines()[-1] == f"vmdump: {error['message']}"


def test_one_document_where_a_report_was_printed(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    out = tmp_path / "vm.elf"
    run_vmdump("dump", "synthetic:8M", out, "-f", "elf")
    data = bytearray(out.read_bytes())
    data[-4096] ^= 1
    out.write_bytes(data)
    done = run_vmdump("verify", out, "--against", "synthetic:8M", "--json")
    assert done.returncode == errors.DifferentMemory.exit_code
    assert "error" not in json.loads(done.stdout)


def test_error_among_lines_of_json(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("dump", "synthetic:8M", NOTHING, "--log-json")
    assert done.stdout == b""
    *_, last = map(json.loads, done.stderr.splitlines())
    assert last["event"] == "error"
    assert last["class"] == "SinkError"
    assert last["exit_code"] == done.returncode
