"""examples/: each does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers.pages import ROOT
from nbclient import NotebookClient

import vmdump

EXAMPLES = ROOT / "examples"


def run(name: str, *words: object, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_tested() -> None:
    tested = set(re.findall(r"\"([a-z_]+\.(?:py|ipynb))\"", Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.*")} == tested


def test_three_guests(scratch: Path) -> None:
    sources = ["synthetic:64M?seed=1", "synthetic:64M?seed=2", "nothing.elf"]
    said = run("three_guests.py", scratch, 60, *sources, folder=scratch).splitlines()
    assert sorted(line.split(": ")[0] for line in said) == sorted(sources)
    assert [line for line in said if "failed" in line] == [
        line for line in said if line.startswith("nothing")
    ]
    for seed in (1, 2):
        found = vmdump.verify(
            scratch / f"{seed - 1}-synthetic-64M-seed-{seed}.kdump", against=sources[seed - 1]
        )
        assert found.comparison is not None
        assert not found.comparison.different


def test_a_guest_that_is_late(scratch: Path) -> None:
    said = run("three_guests.py", scratch, 0.01, "synthetic:8G?seed=1&fill=0.9", folder=scratch)
    assert "cancelled after 0.01 s" in said
    assert not list(scratch.iterdir())


def test_search_and_plot(scratch: Path) -> None:
    memory = np.zeros(16 << 20, np.uint8)
    words = b"needle-17"
    places = [0x1000, 0x2FFC, (8 << 20) - 4]  # inside a page, across two, and across two batches
    for place in places:
        memory[place : place + len(words)] = np.frombuffer(words, np.uint8)
    memory[1 << 20 : 2 << 20] = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    vmdump.dump([(0, memory)], scratch / "guest.elf", format="elf")
    said = run("search_and_plot.py", "guest.elf", "needle-[0-9]+", "map.svg", folder=scratch)
    assert "3 found" in said
    assert re.findall(r"(0x[0-9a-f]+) +b'need", said) == [hex(place) for place in places]
    assert re.search(r"^to 8 +256$", said, re.MULTILINE), said
    assert "<svg" in (scratch / "map.svg").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter_client's own
def test_notebook(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Jupyter keeps at home is not for the tests.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(scratch / "home"))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share/jupyter"))
    notebook = nbformat.read(EXAMPLES / "dump.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(scratch)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "Linux" in str(shown[-1])
