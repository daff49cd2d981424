"""The house: what may import what, who may print, and what no file may mention."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vmdump"

# Imports go down only; rooms on one floor do not know each other.
FLOORS = {
    "errors": 1,
    "interrupts": 1,
    "units": 1,
    "formats": 2,
    "kernels": 2,
    "arch": 3,
    "codecs": 3,
    "guest": 4,
    "sources": 5,
    "sinks": 5,
    "pipeline": 6,
    "writers": 7,
    "readers": 7,
    "opening": 8,
    "operations": 9,
    "aio": 9,
    "api": 9,
    "job": 9,
    "cli": 10,
}
# The files of floor 1 are one room, and so are those of floor 9.
ROOMS = {
    "interrupts": "errors",
    "units": "errors",
    "job": "operations",
    "aio": "operations",
    "api": "operations",
}


def room_of(module: str) -> str:
    """Name the room of a dotted module name, or an empty string for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def sources() -> Iterator[tuple[Path, str]]:
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield path, module.removesuffix(".__init__")


def imports_of(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """Give (line, module) of every import of vmdump, those inside functions and TYPE_CHECKING included."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], base]
                ).strip(".")
            if base == "vmdump":
                yield from ((node.lineno, f"vmdump.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def cython_imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = re.match(r"\s*(?:from\s+(vmdump[\w.]*)\s+c?import|c?import\s+(vmdump[\w.]*))", line)
        if match:
            yield number, match[1] or match[2]


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for _, module in sources()} - {"", "__main__"}
    assert rooms <= FLOORS.keys(), f"rooms without a floor: {rooms - FLOORS.keys()}"


def test_imports_go_down_only() -> None:
    wrong = []
    found = [(path, module, list(imports_of(path, module))) for path, module in sources()]
    found += [
        (path, f"vmdump.{path.parent.name}.{path.stem}", list(cython_imports_of(path)))
        for path in PACKAGE.rglob("*.p[yx][xd]")
    ]
    assert sum(len(imports) for _, _, imports in found) > 100
    for path, module, imports in found:
        here = room_of(module)
        if here in ("", "__main__"):
            continue
        for line, target in imports:
            there = room_of(target) if target.startswith("vmdump") else ""
            if there not in FLOORS:
                continue
            same_room = ROOMS.get(here, here) == ROOMS.get(there, there)
            if not same_room and FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = []
    for path, module in sources():
        # The guardian is a program of its own.
        if room_of(module) in ("cli", "__main__") or path.name == "guardian_main.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in (
                    "print",
                    "exit",
                    "quit",
                    "sys.exit",
                    "os._exit",
                    "click.echo",
                    "sys.stdout.write",
                ):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}()")
            if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: raise SystemExit")
    assert not wrong, "\n".join(wrong)


def test_whatever_is_printed_is_escaped_in_one_place() -> None:
    wrong = []
    for path, _ in sources():
        # The guardian is a program of its own, and has nobody to talk to.
        if path.name in ("printing.py", "guardian_main.py"):
            continue
        tree = ast.parse(path.read_text(), str(path))
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name | ast.ImportFrom) else ""
            if re.fullmatch(
                r"print|click\.(s?echo|echo_via_pager|style|progressbar|prompt|confirm|pause)"
                r"|sys\.(__)?std(out|err)(__)?\.(write|writelines|buffer)"
                r"|from rich(\.console)? import .*\b(Console|print)\b.*",
                text,
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    assert not wrong, "\n".join(wrong)


def test_c_knows_neither_python_nor_file_formats() -> None:
    files = sorted((ROOT / "csrc").rglob("*.[ch]"))
    assert files
    for path in files:
        text = path.read_text()
        assert "Python.h" not in text, path
        assert not re.search(r"kdump|makedumpfile|elf\.h|Elf64|PT_LOAD|vmcoreinfo", text, re.IGNORECASE), path


def test_oracles_import_nothing_of_vmdump() -> None:
    files = sorted((ROOT / "tests" / "oracles").glob("*.py"))
    assert len(files) > 4
    for path in files:
        assert not [name for _, name in imports_of(path, "oracles") if name.startswith("vmdump")], path


def repository_files() -> list[Path]:
    """Give the files that a clone has or will have; without git, everything but build results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git clone: " + listed.stderr.decode().strip())
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_files_stay_small_enough_to_read() -> None:
    kinds = {".py", ".pyx", ".pyi", ".pxd", ".c", ".h"}
    long = {
        str(path.relative_to(ROOT)): count
        for path in repository_files()
        if path.suffix in kinds and (count := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_kernels_stay_small() -> None:
    kernels = sorted((PACKAGE / "kernels").glob("*.pyx"))
    assert kernels
    long = {path.name: len(path.read_text().splitlines()) for path in kernels if path.name != "cache.pyx"}
    assert max(long.values()) <= 150, long


def test_each_c_header_is_declared_once() -> None:
    declared: dict[str, list[str]] = {}
    for path in sorted((PACKAGE / "kernels").glob("*.p[yx][xd]")):
        for header in re.findall(r'^cdef extern from "([\w/.]+)"', path.read_text(), re.MULTILINE):
            declared.setdefault(header, []).append(path.name)
    assert declared
    assert not {header: names for header, names in declared.items() if len(names) > 1}


def test_no_file_mentions_a_place_outside_the_repository() -> None:
    # Written in pieces, or this file would be the first to be found.
    outside = re.compile("|".join(("/" + r"work\b", r"\.\./" + "shared", "/home/" + r"\w", "/root" + "/")))
    wrong = []
    for path in repository_files():
        if path.suffix in (".xz", ".head64k"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if outside.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
