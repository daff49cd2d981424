"""The manual pages: one for each command, all of its options, and nothing that mandoc complains about."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context
from helpers.command import RunVmdump

from vmdump import errors
from vmdump.cli.main import _vmdump

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    (folder / "vmdump-gone.1").write_text("of a command that is no more\n")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "86400"}
    subprocess.run([sys.executable, ROOT / "scripts/manual", folder], env=environment, check=True)
    return folder


def rendered(page: Path) -> str:
    """Give the page as a terminal shows it, in one line: without overstriking, indentation and breaks."""
    if not shutil.which("mandoc") and "CI" not in os.environ:
        pytest.skip("mandoc is not installed")
    printed = subprocess.run(
        ["mandoc", "-T", "utf8", page], capture_output=True, text=True, check=True
    ).stdout
    return " ".join(re.sub(".\b", "", printed).split())


def test_a_page_for_each_command(manual: Path) -> None:
    commands = _vmdump.list_commands(Context(_vmdump))
    assert {page.name for page in manual.iterdir()} == {
        "vmdump.1",
        *(f"vmdump-{name}.1" for name in commands),
    }
    text = rendered(manual / "vmdump.1")
    assert all(f"vmdump-{name}(1)" in text for name in commands)
    assert "1970-01-02" in text


def test_mandoc_has_no_complaint(manual: Path) -> None:
    pages = sorted(manual.iterdir())
    assert all(map(rendered, pages))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_option_and_argument_is_there(manual: Path, run_vmdump: RunVmdump) -> None:
    text = rendered(manual / "vmdump-dump.1")
    helped = run_vmdump("dump", "--help").stdout.decode()
    options = set(re.findall(r"(?<=[ ,])--?[a-z][\w-]*", helped.partition("Options:")[2]))
    assert {"--format", "-f", "--exclude", "--help"} <= options
    assert not {option for option in options if option not in text}
    assert "vmdump dump [OPTION]... SOURCE... OUTPUT" in text
    assert "crash(8)" in text


def test_every_exit_code_is_there(manual: Path) -> None:
    text = rendered(manual / "vmdump.1")
    status = text.partition("EXIT STATUS")[2].partition("ENVIRONMENT")[0]
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and kind is not errors.VmdumpError:
            assert f" {kind.exit_code} {(kind.__doc__ or '').splitlines()[0]}" in status
