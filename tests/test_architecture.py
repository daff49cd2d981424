"""The house: what may import what, who may print, and what no file may mention."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_origin

import pytest
from helpers.house import (
    PACKAGE,
    ROOT,
    Import,
    find_circles,
    folders,
    imported_names,
    imports,
    module_files,
    public_homes,
)

import vmdump

# Imports go down only; rooms on one floor do not know each other. Every folder and every module at the top is
# a room, and so is a module that is on another floor than the rest of its folder. CONTRIBUTING.md has the
# same list, and says what each room holds.
FLOORS = {
    "__main__": 22,
    "cli": 21,
    "serve": 20,
    "job": 19,
    "drgn": 18,
    "integrations.volatility3": 18,
    "operations.bench": 18,
    "operations": 17,
    "aio": 17,
    "integrations": 17,
    "opening": 16,
    "readers.registry": 15,
    "writers.registry": 15,
    "readers.salvage": 14,
    "writers.compat": 14,
    "writers": 13,
    "readers": 13,
    "sources.domain": 12,
    "sources.rawfile": 12,
    "sources.qemu": 11,
    "sources.raw": 11,
    "sources.libvirt": 10,
    "sources.synthetic": 10,
    "sources.process": 9,
    "sources": 9,
    "sinks": 9,
    "pipeline": 9,
    "readers.bytes": 9,
    "guest.guest": 8,
    "guest.linux": 7,
    "guest.linux.page_types": 7,
    "guest": 6,
    "arch": 5,
    "arch.paging": 4,
    "codecs": 4,
    "formats": 3,
    "kernels": 3,
    "markup": 2,
    "units": 2,
    "suggestions": 2,
    "errors": 1,
    "interrupts": 1,
}

# What does not import what, wherever the floors may come to lie. A star stands for the rest of a name.
NEVER = {
    ("formats", "kernels"): "a layout is declared once, and a kernel serves every format",
    ("kernels", "formats"): "a kernel returns sizes and flags; C and Cython know no format",
    ("codecs", "formats"): "an engine packs pages for every format",
    ("pipeline", "formats"): "a plan and its workers serve every format",
    ("arch", "guest"): "an architecture knows nothing of where memory comes from",
    ("guest", "sources"): "a guest of one moment is the same wherever it comes from",
    ("guest", "readers"): "a guest of one moment is the same wherever it comes from",
    ("sources", "sinks"): "where a guest comes from has nothing to do with where its dump goes",
    ("sinks", "sources"): "where a guest comes from has nothing to do with where its dump goes",
    ("sinks", "writers"): "a sink takes bytes, of whatever format",
    ("sources", "readers"): "a live guest is no file",
    ("sources.process", "sources.qemu"): "the memory of any process is read in the same way",
    ("sources.libvirt", "sources.qemu"): "libvirt is asked in its own words",
    ("writers", "readers"): "a reader that shared the writer's code would agree with its mistakes",
    ("readers", "writers"): "a reader that shared the writer's code would agree with its mistakes",
    ("operations.request", "writers.elf*"): "a dump is made without knowing its format",
    ("operations.request", "writers.kdump*"): "a dump is made without knowing its format",
    ("operations.request", "writers.compat"): "a dump is made without knowing its format",
    ("operations.dump", "writers.elf*"): "a dump is made without knowing its format",
    ("operations.dump", "writers.kdump*"): "a dump is made without knowing its format",
    ("operations.dump", "writers.compat"): "a dump is made without knowing its format",
    ("operations.convert", "writers.elf*"): "a dump is converted without knowing its format",
    ("operations.convert", "writers.kdump*"): "a dump is converted without knowing its format",
    ("opening", "writers"): "what is opened may never be written",
    ("aio", "job"): "asyncio waits for jobs of any kind",
}

# An operation does not use another one, but for these.
TOGETHER = {
    ("operations", "operations.report"): "a report says what was written, whichever of them wrote it",
    ("operations.request", "operations.exclusion"): "what is left out is a part of what is asked for",
    ("operations.request", "operations.room"): "whether it fits is asked before the guest is paused",
    ("operations", "operations.request"): "dumping and converting differ only in what they open",
    ("operations.repair", "operations.dump"): "the repaired dump is a dump",
}

# What breaks a rule today, and why. Nothing, when the house is as it should be: each goes with what is named.
EXCEPTIONS: dict[tuple[str, str], str] = {}

# Where the names of files begin that CONTRIBUTING.md has of the house: what it says is about one room.
BASES = (ROOT, PACKAGE, ROOT / "csrc" / "codecs", *(path.parent for path in PACKAGE.rglob("__init__.py")))

# Folders of tests that belong to no room: CONTRIBUTING.md says what for.
BESIDE = {"live", "scripted", "whole"}


def sources() -> list[Path]:
    """Give the package's files of Python, stubs included."""
    return [path for paths in module_files().values() for path in paths if path.suffix in (".py", ".pyi")]


class Break(NamedTuple):
    """An import that a rule forbids."""

    edge: Import
    rule: str

    def __str__(self) -> str:
        return f"{self.edge}: {self.rule}"


def within(module: str, room: str) -> bool:
    """Tell whether a module belongs to a room or to a part of it; a star stands for the rest of a name."""
    if room.endswith("*"):
        return module.startswith(room[:-1])
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    """Name the room of a module: the innermost that it is in; "" if it is in none."""
    return max((room for room in FLOORS if within(module, room)), key=len, default="")


def upward() -> Iterator[Break]:
    for edge in imports():
        here, there = room_of(edge.importer), room_of(edge.imported)
        if here and there and here != there and FLOORS[there] >= FLOORS[here]:
            yield Break(edge, f"{there} is on floor {FLOORS[there]}, {here} on {FLOORS[here]}")


def meetings() -> Iterator[Break]:
    for edge in imports():
        for (importer, imported), reason in NEVER.items():
            if meet(edge, importer, imported):
                yield Break(edge, f"{importer} never imports {imported}: {reason}")


def meet(edge: Import, importer: str, imported: str) -> bool:
    """Tell whether an import is one of something in a room by something in another."""
    return within(edge.importer, importer) and within(edge.imported, imported)


def joint_operations() -> Iterator[Break]:
    for edge in imports():
        if room_of(edge.importer) == room_of(edge.imported) == "operations" and not any(
            meet(edge, *pair) for pair in TOGETHER
        ):
            yield Break(edge, "an operation uses another one, for no reason in TOGETHER")


def circles(edges: Iterable[tuple[str, str]]) -> Iterator[str]:
    for circle in find_circles(edges):
        yield " imports ".join([*circle, circle[0]])


def without_exceptions(breaks: Iterable[Break]) -> list[str]:
    return [str(found) for found in breaks if found.edge[:2] not in EXCEPTIONS]


def test_every_room_has_a_floor() -> None:
    modules = module_files().keys()
    rooms = folders() | {module for module in modules if "." not in module} - {""}
    assert len(rooms) > 20
    assert rooms <= FLOORS.keys(), f"rooms without a floor: {rooms - FLOORS.keys()}"
    assert FLOORS.keys() <= modules, f"floors of rooms that are not there: {FLOORS.keys() - modules}"
    apart = FLOORS.keys() - rooms
    needless = {room for room in apart if FLOORS[room] == FLOORS[room.rpartition(".")[0]]}
    assert not needless, f"modules on the floor of their folders: {needless}"


def test_imports_go_down_only() -> None:
    assert len(imports()) > 500
    wrong = without_exceptions(upward())
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    wrong = list(circles(edge[:2] for edge in imports() if edge[:2] not in EXCEPTIONS))
    assert not wrong, "\n".join(wrong)


def test_names_are_imported_from_the_package_not_the_package() -> None:
    """``import vmdump`` gives every public name, and does not say which of them is used."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line, name in imported_names(path)
        if name == "vmdump"
    ]
    assert not wrong, "\n".join(wrong)


def test_strangers_do_not_meet() -> None:
    names = {name for pair in NEVER for name in pair}
    unknown = {name for name in names if not any(within(module, name) for module in module_files())}
    assert not unknown, f"rules about what is not there: {unknown}"
    wrong = without_exceptions(meetings())
    assert not wrong, "\n".join(wrong)


def test_operations_do_not_use_each_other() -> None:
    wrong = without_exceptions(joint_operations())
    assert not wrong, "\n".join(wrong)
    needless = {pair for pair in TOGETHER if not any(meet(edge, *pair) for edge in imports())}
    assert not needless, f"reasons for imports that are not there: {needless}"


def test_exceptions_are_needed() -> None:
    edges = {edge[:2] for edge in imports()}
    broken = {found.edge[:2] for rule in (upward, meetings, joint_operations) for found in rule()}
    allowed = edges - EXCEPTIONS.keys()
    for exception in EXCEPTIONS:
        closes_circle = len(find_circles({*allowed, exception} & edges)) > len(find_circles(allowed))
        assert exception in broken or closes_circle, (
            f"no rule forbids that {exception[0]} imports {exception[1]}"
        )


def test_contributing_describes_every_room() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `vmdump/([\w/]+)(?:/|\.py)` \| \S",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE,
    )
    described = {path.replace("/", "."): int(floor) for floor, path in rows}
    assert described == FLOORS


def test_files_of_the_house_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## The house\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:[a-z_]+/)*(?:[a-z_*]+\.(?:py|h|c|txt)|[a-z_]+/))`", text))
    assert len(named) > 40
    gone = {path for path in named if not any(any(base.glob(path.rstrip("/"))) for base in BASES)}
    assert not gone


def test_tests_mirror_the_package() -> None:
    tests = ROOT / "tests"
    tested = {".".join(path.parent.relative_to(tests).parts) for path in tests.rglob("test_*.py")} - {""}
    untested = {room for room in folders() if not any(within(folder, room) for folder in tested)}
    assert not untested, f"rooms without tests: {untested}"
    homeless = tested - folders() - BESIDE
    assert not homeless, f"tests of rooms that are not there: {homeless}"


def test_public_names_come_from_where_they_are() -> None:
    homes = {name: f"vmdump.{home}" for name, home in public_homes().items()}
    assert homes == vmdump._HOMES
    for name, home in homes.items():
        value = getattr(vmdump, name)
        if get_origin(value) is Literal:  # which does not know where it was made
            assert any(
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
                for path in module_files()[home.removeprefix("vmdump.")]
                for node in ast.parse(path.read_text()).body
            ), f"{name} is from elsewhere"
            continue
        assert value.__module__ == home, f"{name} is from elsewhere"


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = []
    for path in sources():
        # The guardian is a program of its own.
        if path.parent.name == "cli" or path.name in ("__main__.py", "guardian_main.py"):
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
    for path in sources():
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
        assert not [name for _, name in imported_names(path) if name.startswith("vmdump")], path


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
    long = {path.name: len(path.read_text().splitlines()) for path in kernels}
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
