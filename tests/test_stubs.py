"""Stubs say what the compiled kernels are, and the examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

from oracles import judges

import vmdump

ALLOWLIST = Path(__file__).parent / "stubtest-allow.txt"


def module_names() -> list[str]:
    found = pkgutil.walk_packages(vmdump.__path__, "vmdump.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def test_stubs_match_the_kernels() -> None:
    judges.require("mypy")
    # The configuration names the Python version whose numpy stubs know the buffer protocol.
    options = ["--mypy-config-file", "pyproject.toml"]
    options += ["--allowlist", str(ALLOWLIST)] if ALLOWLIST.exists() else []
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, "vmdump.kernels"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_compiled_module_has_a_stub() -> None:
    compiled = [
        Path(path) for name in module_names()
        if (path := importlib.import_module(name).__file__ or "").endswith(".so")
    ]  # fmt: skip
    assert len(compiled) >= 4
    for path in compiled:
        assert path.with_name(path.name.split(".")[0] + ".pyi").exists(), f"{path.name} has no stub"


def test_examples_in_docstrings() -> None:
    attempted = 0
    for name in ["vmdump", *module_names()]:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, f"{name}: {result.failed} examples failed"
        attempted += result.attempted
    assert attempted > 0
