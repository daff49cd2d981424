"""Where the types of pages cannot be told, each operation says in one line what to do, and leaves no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.command import run
from helpers.filter_goldens import memory

import vmdump
from vmdump.errors import CapabilityError

OWN = "give its own with --vmcoreinfo FILE"
COMMANDS = {
    "dump": (("dump", "SOURCE", "out/file", "-d", 31, "-q"), f"{OWN}, or dump all pages with -d 1"),
    "convert": (("convert", "SOURCE", "out/file", "-d", 31, "-q"), f"{OWN}, or dump all pages with -d 1"),
    "usage": (("info", "--usage", "SOURCE"), OWN),
    "map": (("info", "--usage", "--picture", "out/map.svg", "SOURCE"), OWN),
    "bench": (("bench", "SOURCE", "-d", 31), "measure all pages with -d 1"),
}
STALE = "the guest's VMCOREINFO is not that of the kernel in its memory (no page table maps the virtual "
TROUBLE = {
    "none": "this guest has no VMCOREINFO to tell what its pages are used for; ",
    "stale": STALE,
    "too little": "VMCOREINFO: SIZE(page) is missing; ",
    "elsewhere": "no page table maps the virtual address ",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a dump with each kind of trouble."""
    folder = tmp_path_factory.mktemp("sources")
    whole = memory("6.12").tobytes()
    lines = vmdump.open(np.frombuffer(whole, np.uint8)).vmcoreinfo
    # What stands there instead is as long.
    stext = b"SYMBOL(_stext)=%x" % lines.symbol("_stext")
    sections = b"SYMBOL(mem_section)=%x" % lines.symbol("mem_section")
    made = {
        "stale": whole.replace(stext, stext[:-16] + b"ffffffffbfffe000"),
        "too little": whole.replace(b"SIZE(page)=", b"SIZE(pagf)="),
        "elsewhere": whole.replace(sections, sections[:-16] + b"ffff800000000000"),
    }
    for name, data in made.items():
        assert data != whole
        (folder / name).write_bytes(data)
    (folder / "none").write_bytes(bytes(1 << 20))
    return {name: folder / name for name in TROUBLE}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_one_line(command: str, trouble: str, sources: dict[str, Path], tmp_path: Path) -> None:
    words, way_out = COMMANDS[command]
    if command == "convert" and trouble == "none":
        pytest.skip("raw memory is no dump")
    (tmp_path / "out").mkdir()
    source = sources[trouble] if trouble != "none" else f"raw:{sources[trouble]}?base=0"
    done = run(*(source if word == "SOURCE" else word for word in words), cwd=tmp_path)
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"vmdump: page types: {TROUBLE[trouble]}")
    assert line.endswith(f"; {way_out}")
    assert (done.returncode, done.stdout) == (CapabilityError.exit_code, b"")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("trouble", ["stale", "too little", "elsewhere"])
def test_one_page(trouble: str, sources: dict[str, Path]) -> None:
    """What can be told without types is told."""
    done = run("info", "--page", "0x1000", sources[trouble])
    assert (done.returncode, done.stderr) == (0, b"")
    assert "type         cannot be told: " in done.stdout.decode()
    assert "in the dump  yes\n" in done.stdout.decode()
