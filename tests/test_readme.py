"""README.md: every command runs, and its tables say what the code says."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.judges import require

import vmdump
from vmdump import errors
from vmdump.arch import ARCHES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.timeout(300)
def test_every_command_runs(tmp_path: Path) -> None:
    for judge in ("drgn", "makedumpfile", "qemu-system-x86_64"):
        require(judge)
    shell, python = blocks("sh"), blocks("python")
    assert len(shell) >= 5, "the tour has lost its commands"
    assert len(python) == 1
    # One shell for all, as a reader would have it; the Python of the tour reads what the commands left.
    interpreter = shlex.quote(sys.executable)
    tour = ["set -euo pipefail", *shell, f"exec {interpreter} - <<'PYTHON'\n{python[0]}PYTHON"]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "TMPDIR": str(tmp_path),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    try:
        done = subprocess.run(
            ["bash"],
            input="\n".join(tour),
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        # QEMU removes its pid file when it ends: this one is of a tour that failed.
        for left in tmp_path.rglob("guest.pid"):
            os.kill(int(left.read_text()), signal.SIGKILL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^completed: (\d+) of \1 bytes$", done.stdout, re.MULTILINE), done.stdout


def test_exit_codes() -> None:
    classes = {
        kind.exit_code: name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.VmdumpError) and not name.startswith("_")
    }
    signals = ", ".join(str(128 + number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM))
    expected = [["0", ""], *([str(code), f"`{classes[code]}`"] for code in sorted(classes)), [signals, ""]]
    assert [row[:2] for row in table("Exit codes")] == expected


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
    assert table("Architectures and registers") == expected


def test_formats_and_engines() -> None:
    found = vmdump.capabilities()
    expected = {state.name: state.codec for state in found.formats if not state.name.startswith("kdump-raw-")}
    rows = {row[0].strip("`"): row[2] for row in table("Formats and engines")}
    assert rows == {
        name: ", ".join(engine.name for engine in found.engines if engine.codec == codec)
        for name, codec in expected.items()
    }


def test_make_targets() -> None:
    targets = set(re.findall(r"`make (\w+)`|^make (\w+)$", README, re.MULTILINE))
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for pair in targets for name in pair if name} <= set(known)
