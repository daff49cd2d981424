"""The package as its texts say it: modules, and which of them imports which. Nothing is imported for it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmdump"
_CYTHON_IMPORT = re.compile(r"\s*(?:from\s+(vmdump[\w.]*)\s+c?import\s+(\w+)|c?import\s+(vmdump[\w.]*))")


class Import(NamedTuple):
    """One import of a module by another, both without "vmdump." in front."""

    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def module_name(path: Path) -> str:
    """Name a file's module, "" for the package itself."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return "" if name == "__init__" else name.removesuffix(".__init__")


def module_files() -> dict[str, list[Path]]:
    """Give the files of every module: several where a kernel has a stub or declarations."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
            found.setdefault(module_name(path), []).append(path)
    return found


def folders() -> set[str]:
    """Name the packages in the package, dotted."""
    return {module_name(path) for path in PACKAGE.rglob("__init__.py")} - {""}


def public_homes() -> dict[str, str]:
    """Give the module that each public name of the package comes from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    return {
        alias.asname or alias.name: node.module.removeprefix("vmdump.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("vmdump.")
        for alias in node.names
    }


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Give (line, dotted name) of all that a Python file imports: modules, or names inside them.

    Imports in functions and under TYPE_CHECKING are among them, and so is what a text may name that is in a
    file with `import_module`: a module of vmdump, or something in one, there or in the file's own package.
    """
    tree = ast.parse(path.read_text(), str(path))
    package = ".".join(path.parent.parts[len(ROOT.parts) :])
    names_modules = any(
        isinstance(node, ast.alias) and node.name in ("import_module", "importlib") for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            begin = str(node.values[0].value)
            if names_modules and re.fullmatch(r"vmdump\.([\w.]+\.)?", begin):
                yield node.lineno, begin + "*"
        elif (
            isinstance(node, ast.Constant) and names_modules and re.fullmatch(r"\w+(\.\w+)+", str(node.value))
        ):
            yield node.lineno, str(node.value)
            yield node.lineno, f"{package}.{node.value}"


def _cython_names(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := _CYTHON_IMPORT.match(line):
            yield number, f"{match[1]}.{match[2]}" if match[1] else match[3]


@cache
def imports() -> tuple[Import, ...]:
    """Give every import of one module of the package by another.

    The package itself is looked through: ``from vmdump import dump`` imports what has that function. Its own
    imports, of all public names, are not among them.
    """
    files, homes = module_files(), public_homes()

    def modules_named(name: str) -> Iterable[str]:
        if name.endswith(".*"):
            package = name.removesuffix("*")
            return [module for module in files if module.startswith(package) and module != package[:-1]]
        module, _, last = name.rpartition(".")
        if name in files:
            return [name]
        if not module:
            return [homes[last]] if last in homes else []
        return [module] if module in files else []

    found = set()
    for importer, paths in files.items():
        for path in paths if importer else []:
            names = imported_names(path) if path.suffix in (".py", ".pyi") else _cython_names(path)
            for line, name in names:
                if not name.startswith("vmdump."):
                    continue
                place = f"{path.relative_to(ROOT)}:{line}"
                for imported in modules_named(name.removeprefix("vmdump.")):
                    if imported != importer:
                        found.add(Import(importer, imported, place))
    return tuple(sorted(found))


def find_circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Give a shortest circle through each node that is on any, each circle once, from its first node on."""
    below = defaultdict(set)
    for begin, end in edges:
        below[begin].add(end)
    found = {}
    for start in sorted(below):
        came_from = dict.fromkeys(below[start], start)
        queue = deque(sorted(below[start]))
        while queue and start not in came_from:
            node = queue.popleft()
            for other in sorted(below.get(node, ())):
                if other not in came_from:
                    came_from[other] = node
                    queue.append(other)
        if start in came_from:
            circle = [came_from[start]]
            while circle[-1] != start:
                circle.append(came_from[circle[-1]])
            found.setdefault(frozenset(circle), circle[::-1])
    return list(found.values())
