"""What is loaded when: the library leaves its user's process alone, the command loads what it needs."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.filter_goldens import memory

import vmdump
from vmdump.cli.main import main

MAIN = "import sys; from vmdump.cli.main import main; code = main(sys.argv[1:]); "
NUMPY_IS_THERE = "'numpy' in sys.modules"


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a Python of its own; give what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_library_changes_nothing() -> None:
    printed = run_python(
        "import os, sys; before = dict(os.environ); import vmdump;"
        f"print({NUMPY_IS_THERE}, dict(os.environ) == before);"
        f"vmdump.dump; print({NUMPY_IS_THERE}, dict(os.environ) == before)"
    )
    assert printed.split() == ["False", "True", "True", "True"]


def test_every_public_name_is_there() -> None:
    for name in vmdump.__all__:
        assert getattr(vmdump, name) is not None
    assert set(vmdump.__all__) <= set(dir(vmdump))
    everything: dict[str, object] = {}
    exec("from vmdump import *", everything)
    assert set(vmdump.__all__) == set(everything.keys() - {"__builtins__"})


def test_public_names_are_listed_before_they_are_loaded() -> None:
    printed = run_python(f"import sys, vmdump; print(*dir(vmdump)); print({NUMPY_IS_THERE})")
    names, loaded = printed.splitlines()
    assert set(vmdump.__all__) <= set(names.split())
    assert loaded == "False"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'vmdump' has no attribute 'dmup'"):
        _ = vmdump.dmup  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="dmup"):
        exec("from vmdump import dmup")


def test_no_module_hides_a_public_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(vmdump.__path__)}
    assert modules & set(vmdump.__all__) == {"errors"}
    # In a Python of its own: here, the names may be there already.
    printed = run_python(
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(f'vmdump.{name}')\n"
        "import vmdump\n"
        "print(callable(vmdump.capabilities), callable(vmdump.open), callable(vmdump.dump))",
        *sorted(modules - {"__main__"}),
    )
    assert printed.split() == ["True"] * 3


def test_help_lists_every_command(run_vmdump: RunVmdump) -> None:
    folder = Path(main.__code__.co_filename).parent
    # One file per command; the others hold none.
    commands = {
        name
        for module in pkgutil.iter_modules([str(folder)])
        for name in vars(importlib.import_module(f"vmdump.cli.{module.name}"))
        if name.endswith("_command")
    }
    assert len(commands) >= 3
    lines = run_vmdump("--help").stdout.decode().partition("Dump a guest:\n")[2].splitlines()
    listed = [found[1] for line in lines if (found := re.match(r"  ([a-z]+)  +[A-Z]", line))]
    assert listed[0] == "dump"
    assert sorted(listed) == sorted(name.removesuffix("_command") for name in commands)


def test_misspelt_command(run_vmdump: RunVmdump) -> None:
    done = run_vmdump("dmup")
    assert done.returncode == 2
    assert b"No such command 'dmup'" in done.stderr


def modules_of(arguments: tuple[object, ...]) -> set[str]:
    printed = run_python(f"{MAIN} assert code == 0; print(*sys.modules)", *arguments)
    return set(printed.split())


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_dump_loads_only_what_it_needs(name: str, tmp_path: Path) -> None:
    guest = tmp_path / "ram"
    guest.write_bytes(b"page" * 1024)
    loaded = modules_of(("dump", f"raw:{guest}", tmp_path / "dump", "-f", name))
    assert "vmdump.sources.rawfile" in loaded
    needless = {
        *("asyncio", "json", "ssl", "numpy.ma", "qemu.qmp", "rich", "matplotlib", "tempfile"),
        *("vmdump.aio", "vmdump.readers", "vmdump.sources.qemu"),
        *("libvirt", "vmdump.sources.domain", "vmdump.sources.libvirt"),
        *(f"vmdump.arch.paging.{name}" for name in ("aarch64", "mappings", "riscv64", "x86")),
        *("vmdump.operations.verify", "vmdump.operations.capabilities"),
        *("vmdump.sources.synthetic.guest", "vmdump.cli.bench", "vmdump.cli.capabilities", "vmdump.cli.demo"),
    }
    assert loaded & needless == set()


def test_filtering_a_dump_loads_only_what_it_needs(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(memory("6.12").tobytes())
    loaded = modules_of(("convert", core, tmp_path / "dump", "-f", "kdump-lzo", "-d", "31"))
    assert "vmdump.guest.linux.page_types.types" in loaded
    needless = {
        *("asyncio", "hashlib", "json", "ssl", "numpy.ma", "numpy.random", "qemu.qmp", "rich", "matplotlib"),
        *("shutil", "socket", "subprocess", "tempfile", "zlib"),
        *("vmdump.aio", "vmdump.job", "vmdump.readers.kdump", "vmdump.sources.qemu"),
        *("vmdump.sources.rawfile", "vmdump.operations.bench"),
        *("vmdump.sinks.set", "vmdump.readers.checking", "vmdump.readers.salvage", "vmdump.writers.elf"),
        *(f"vmdump.arch.paging.{name}" for name in ("aarch64", "mappings", "qemu", "riscv64", "s390x")),
        *(f"vmdump.guest.linux.page_types.{name}" for name in ("free_lists", "usage")),
        *("vmdump.guest.linux.find_vmcoreinfo", "vmdump.guest.linux.kernel_log"),
        *("vmdump.operations.dump", "vmdump.operations.usage", "vmdump.operations.verify"),
    }
    assert loaded & needless == set()


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_is_only_told_loads_no_numpy(option: str) -> None:
    assert "numpy" not in modules_of((option,))


@pytest.mark.parametrize("environment", [{}, {"OPENBLAS_NUM_THREADS": "3"}])
def test_command_says_how_many_threads_openblas_starts(environment: dict[str, str]) -> None:
    code = f"import os; {MAIN} print(code, os.environ['OPENBLAS_NUM_THREADS'], {NUMPY_IS_THERE})"
    last = run_python(code, "capabilities", "--json", **environment).splitlines()[-1]
    assert last.split() == ["0", environment.get("OPENBLAS_NUM_THREADS", "1"), "True"]


def test_command_has_one_thread_until_it_works() -> None:
    code = f"import os; {MAIN} print(len(os.listdir('/proc/self/task')))"
    assert run_python(code, "capabilities", "--json").splitlines()[-1] == "1"
