"""The library as a program meets it: names for type checkers, misspelt keywords, plain numbers, notebooks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from helpers import filter_goldens
from oracles import judges

import vmdump
from vmdump.codecs.registry import default_engine, engines
from vmdump.errors import RequestError
from vmdump.formats.names import FORMATS, LAYOUTS

ROOT = Path(__file__).parent.parent
SOURCE = "synthetic:8M?seed=1"


def test_literals_are_what_there_is() -> None:
    assert get_args(vmdump.Format) == tuple(known.name for known in FORMATS)
    assert get_args(vmdump.Layout) == LAYOUTS
    assert get_args(vmdump.EngineName) == tuple(engine.name for engine in engines())


PROGRAM = """
import vmdump

candidate = vmdump.bench("guest").fastest
vmdump.dump("guest", "dump", format="kdump-zstd", layout="flattened", engine="zstd", compat="qemu")
vmdump.dump("guest", "dump", like=candidate)
vmdump.convert("guest", "dump", format="elf")
vmdump.start_dump("guest", "dump", format="kdump-zlib")
address: int = next(iter(vmdump.find("guest", b"pattern")))
vmdump.dump("guest", "dump", format="kdump-zsdt")  # arg-type
vmdump.dump("guest", "dump", layout="flat")  # arg-type
vmdump.convert("guest", "dump", engine="libdefalte")  # arg-type
vmdump.start_dump("guest", "dump", compat="xen")  # arg-type
vmdump.dump("guest", "dump", fromat="elf")  # call-arg
vmdump.dump("guest", "dump", like="fastest")  # arg-type
"""


def test_type_checker_finds_misspellings(tmp_path: Path) -> None:
    judges.require("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ["--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-version", "3.12", *words, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = PROGRAM.splitlines()
    expected = {(at, line.partition("# ")[2]) for at, line in enumerate(lines, 1) if "  # " in line}
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = {(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in errors}
    assert found == expected, done.stdout + done.stderr


CALLS: dict[str, Callable[..., object]] = {
    "vmdump.dump": vmdump.dump,
    "vmdump.convert": vmdump.convert,
    "vmdump.start_dump": vmdump.start_dump,
    "vmdump.dump_async": lambda *words, **options: asyncio.run(vmdump.dump_async(*words, **options)),
}


@pytest.mark.parametrize("name", CALLS)
def test_misspelt_keywords(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError) as caught:
        CALLS[name](SOURCE, tmp_path / "dump", fromat="elf")
    assert (
        str(caught.value) == f"{name}() got an unexpected keyword argument 'fromat'; did you mean 'format'?"
    )
    with pytest.raises(TypeError, match=r"'qqqq'; there are .*exclude, .*threads"):
        CALLS[name](SOURCE, tmp_path / "dump", qqqq=1)


def test_dump_like_a_choice_of_bench(tmp_path: Path) -> None:
    found = vmdump.bench(SOURCE, to=tmp_path, sample=1 << 16)
    for number, choice in enumerate((found.candidates[0], found.smallest, found.candidates[-1])):
        report = vmdump.dump(SOURCE, tmp_path / str(number), like=choice)
        assert (report.format, report.engine, report.level) == (choice.format, choice.engine, choice.level)
    for options in ({"format": "elf"}, {"engine": "zlib"}, {"level": 1}):
        with pytest.raises(RequestError) as caught:
            vmdump.dump(SOURCE, tmp_path / "dump", like=found.smallest, **options)  # type: ignore[arg-type]
        assert caught.value.parameter == "like"
    with pytest.raises(RequestError, match="'zstd' is no candidate"):
        vmdump.dump(SOURCE, tmp_path / "dump", like="zstd")  # type: ignore[arg-type]
    assert not (tmp_path / "dump").exists()


def foreign(value: object, where: str) -> Iterator[str]:
    """Name what is no plain Python in a value and everything in it."""
    if isinstance(value, np.generic):
        yield f"{where} is a {type(value).__name__}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from foreign(key, f"key of {where}")
            yield from foreign(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for at, item in enumerate(value):
            yield from foreign(item, f"{where}[{at}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from foreign(getattr(value, field.name), f"{where}.{field.name}")
        for name in properties(value):
            yield from foreign(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, int) and not isinstance(value, bool | Enum) and type(value) is not int:
        yield f"{where} is a {type(value).__name__}"


def properties(value: object) -> list[str]:
    kinds = vars(type(value))
    return [name for name, kind in kinds.items() if isinstance(kind, property) and not name.startswith("_")]


SKIPPED = {"virtual", "told", "searched", "files", "notes", "arch", "vmcoreinfo", "in_use", "guest", "kernel"}
"""Attributes that are no results."""


def attributes(dump: vmdump.Dump) -> dict[str, Any]:
    names = {name for name in dir(dump) if not name.startswith("_")} - SKIPPED
    values = {name: getattr(dump, name) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


def test_numbers_are_pythons_own(tmp_path: Path) -> None:
    (tmp_path / "linux").write_bytes(filter_goldens.memory("6.12").tobytes())
    file = tmp_path / "dump"
    results: dict[str, object] = {
        "dump": vmdump.dump(tmp_path / "linux", file, exclude=31),
        "convert": vmdump.convert(file, tmp_path / "again", format="elf"),
        "split": vmdump.convert(file, tmp_path / "set", split=2),
        "info": vmdump.info(file),
        "verify": vmdump.verify(file, against=tmp_path / "linux"),
        "page_types": vmdump.page_types(tmp_path / "linux").as_dict(),
        "counts": vmdump.page_types(tmp_path / "linux").counts,
        "page_at": [vmdump.page_at(file, address) for address in (0, 1 << 20, 1 << 60)],
        "capabilities": vmdump.capabilities(),
        "bench": vmdump.bench(file, to=tmp_path, sample=1 << 16),
        "find": list(vmdump.find(file, b"Linux")),
    }
    with vmdump.open(file) as dump:
        results["attributes"] = attributes(dump)
        results["blocks"] = [(block.start, block.end, block.size) for block in dump.blocks]
        address = dump.vmcoreinfo.symbol("init_uts_ns")
        assert address
        results["translated"] = [dump.translate(address), dump.kernel_to_phys(address)]
        results["batches"] = [pfn for pfn, _ in dump]
    file.write_bytes(file.read_bytes()[:-5000])
    results["repair"] = vmdump.repair(file, tmp_path / "repaired")
    results["damaged"] = [vmdump.info(file), vmdump.verify(tmp_path / "repaired")]
    wrong = [each for name, value in results.items() for each in foreign(value, name)]
    assert not wrong, "\n".join(wrong)


HOSTILE = "<script>alert(1)</script>'\"><b onclick=x>\u202e&amp;"


class Elements(HTMLParser):
    """All elements of a piece of HTML, and its text."""

    def __init__(self, piece: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(piece)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_tables_for_notebooks(tmp_path: Path) -> None:
    """Hostile names are no HTML, and nothing sets a colour that would be unreadable in the dark."""
    file = tmp_path / HOSTILE.replace("/", "")
    lines = f"OSRELEASE=6.1{HOSTILE}\nPAGESIZE=4096\n".encode()
    source = vmdump.BlockSource(np.ones(1 << 20, np.uint8), vmcoreinfo=lines)
    report = vmdump.dump(source, file)
    with vmdump.open(file) as dump:
        shown = [
            (dump, "kdump standard"),
            (report, "kdump-zlib, standard"),
            (replace(report, remarks=(HOSTILE,), paused_seconds=0.25), "0.250 s"),
            (vmdump.info(file), "made by"),
            (vmdump.bench(dump, to=tmp_path, sample=1 << 16), "-f kdump-"),
            (replace(vmdump.bench(dump, to=tmp_path, sample=1 << 16), source=HOSTILE), "alert(1)"),
        ]
        for value, expected in shown:
            piece = value._repr_html_()  # type: ignore[attr-defined]
            parsed = Elements(piece)
            assert not parsed.open
            assert set(parsed.names) <= {"table", "caption", "tbody", "tr", "th", "td"}
            assert parsed.attributes <= {"class", "style", "scope"}
            assert expected in parsed.text
            assert "\u202e" not in piece
            assert "color:#" not in piece
    found = replace(vmdump.info(file), utsname={"nodename": HOSTILE})
    assert "<script>" in Elements(found._repr_html_()).text


def test_rates_are_of_data(tmp_path: Path) -> None:
    """Holes are not read: a sparse guest is not dumped faster than its data."""
    report = vmdump.dump("synthetic:64M?fill=0.1", tmp_path / "out")
    assert report.hole_bytes > report.guest_bytes / 4
    data = report.guest_bytes - report.hole_bytes
    assert report.bytes_per_second == pytest.approx(data / report.seconds)


def test_engines_without_levels_have_none(tmp_path: Path) -> None:
    rows = {(row["name"], row["codec"]): row for row in vmdump.capabilities().as_dict()["engines"]}
    engine = default_engine("snappy")
    assert not engine.has_levels
    row = rows[engine.name, "snappy"]
    assert (row["min_level"], row["max_level"], row["default_level"]) == (None, None, None)
    assert rows["zlib", "zlib"]["min_level"] == 1
    report = vmdump.dump("synthetic:4M", tmp_path / "out", format="kdump-snappy")
    assert report.level is None
    assert "snappy level" not in report._repr_html_()
    report = vmdump.dump("synthetic:4M", tmp_path / "again", format="kdump-zstd")
    assert report.level == default_engine("zstd").default_level
