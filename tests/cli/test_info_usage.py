"""vmdump info --usage, --page and --picture: what memory is used for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.filter_goldens import expected, memory

import vmdump
from vmdump import PageType, PageUsage, errors
from vmdump.cli import usage as printed
from vmdump.cli.memory_map import MemoryMap, draw_map, map_of
from vmdump.kernels import page_types as kernel

PAGE = 4096


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(run_vmdump: RunVmdump) -> Command:
    def run(*args: object) -> Done:
        done = run_vmdump(*args)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guest") / "core"
    path.write_bytes(memory("6.12").tobytes())
    return path


@pytest.fixture(scope="module")
def small(core: Path) -> Path:
    vmdump.convert(core, core.parent / "small", format="kdump-lzo", exclude=31)
    return core.parent / "small"


def test_usage(command: Command, core: Path) -> None:
    done = command("info", "--usage", core)
    assert (done.returncode, done.stderr) == (0, "")
    pages = dict(re.findall(r"^(\w[\w ]*?) +(\d+) +[\d.]+ \w+ +<?[\d.]+%$", done.stdout, re.MULTILINE))
    by_class = expected("6.12")["prototype_class_counts_d31"]
    assert {name: int(pages[name]) for name in ("free", "cache", "cache private", "offline")} == {
        name: by_class[name.replace(" ", "_")]["pages"]
        for name in ("free", "cache", "cache private", "offline")
    }
    assert "running" not in done.stdout
    assert "not in the dump" not in done.stdout
    found = json.loads(command("info", "--usage", "--json", core).stdout)
    assert found["pages"] == sum(each["pages"] for each in found["types"].values())
    assert found["levels"].keys() == {"1", "16", "17", "23", "31"}
    assert found["levels"]["16"] == (41059 + 64) * PAGE


def test_usage_of_what_lacks_pages(command: Command, small: Path) -> None:
    done = command("info", "--usage", small)
    assert re.search(r"^free +17302 .*%  +17302$", done.stdout, re.MULTILINE)
    assert re.search(r"^slab +\d+ .*%  +0$", done.stdout, re.MULTILINE)


def test_a_running_guest_is_said_to_run() -> None:
    assert "running guest" in next(printed._usage(PageUsage(PAGE, [(0, 1)], running=True)))


def test_one_page(command: Command, core: Path, small: Path) -> None:
    def rows(*args: object) -> dict[str, str]:
        done = command("info", "--page", *args)
        assert done.returncode == 0, done.stderr
        return {line[:12].strip(): line[13:] for line in done.stdout.splitlines()}

    assert rows("0x120010", small) == {
        "page": "0x120000-0x121000",
        "type": "free",
        "in the dump": "no: excluded by 16 (free) of its level 31",
    }
    assert rows("0x120010", core)["left out by"] == "levels with 16 (free)"
    assert rows("0x1000", small)["holds"] == "zeros only"
    assert rows("1G", small)["type"] == "none: the guest has no memory there"
    assert json.loads(command("info", "--page", "0", "--json", small).stdout)["type"] == "kernel"
    assert "VMCOREINFO" in rows("0", f"raw:{core}?base=0", "--no-search")["type"]


def test_read_says_what_a_page_was(command: Command, small: Path) -> None:
    done = command("read", small, "0x120000", "8", "--hex")
    assert done.returncode == 16
    assert done.stderr.endswith("was excluded when the dump was made (its type: free)\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--usage", "--page", "0"], "page"),
        (["--picture", "map.svg"], "picture"),
        (["--vmcoreinfo", "file"], "vmcoreinfo"),
        (["--usage", "--show-vmcoreinfo"], "show-vmcoreinfo"),
        (["--page", "0", "--show-vmcoreinfo"], "show-vmcoreinfo"),
        (["--usage", "--picture", "map.pdf"], "picture"),
        (["--page", "x"], "page"),
    ],
)
def test_options_that_do_not_go_together(command: Command, core: Path, args: list[str], word: str) -> None:
    done = command("info", core, *args)
    assert done.returncode == errors.RequestError.exit_code
    assert done.stderr.startswith(f"vmdump: {word}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("kind", "begin"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_picture(command: Command, core: Path, tmp_path: Path, kind: str, begin: bytes) -> None:
    path = tmp_path / f"map.{kind}"
    done = command("info", "--usage", core, "--picture", path)
    assert done.returncode == 0, done.stderr
    drawn = path.read_bytes()
    assert drawn.startswith(begin)
    again = command("info", "--usage", core, "--picture", path)
    assert again.returncode == errors.OutputExists.exit_code
    assert command("info", "--usage", core, "--picture", path, "--force").returncode == 0
    assert path.read_bytes() == drawn
    if kind == "svg":
        text = drawn.decode()
        for label in ("free: 26.4%, 67.6 MiB", "poisoned: &lt;0.1%", "0x2000000", "no memory: 3.7 GiB"):
            assert label in text


def test_a_picture_without_matplotlib(
    command: Command, core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = command("info", "--usage", core, "--picture", tmp_path / "map.svg")
    assert done.returncode == errors.CapabilityError.exit_code
    assert "vmdump[chart]" in done.stderr
    assert not (tmp_path / "map.svg").exists()


def used(*runs: tuple[int, int, int]) -> PageUsage:
    """Make a guest of runs of pages, all with data, of a type each."""
    merged: list[tuple[int, int]] = []
    for begin, end, _ in runs:
        if merged and merged[-1][1] == begin:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((begin, end))
    usage = PageUsage(PAGE, merged, running=False)
    for begin, end, kind in runs:
        usage.mark_data(begin, np.ones(end - begin, np.bool_))
        usage.mark_types(begin, np.full(end - begin, kind, np.uint8), None)
    return usage


GIB = 1 << 18


@pytest.mark.parametrize(
    ("runs", "rows"),
    [
        ([(0, GIB, kernel.USER)], 64),
        ([(0, 3 * GIB, kernel.USER), (4 * GIB, 100 * GIB, kernel.FREE)], 50),
        ([(0, 64, kernel.USER), (1 << 40, (1 << 40) + 64, kernel.FREE)], 3),
        ([(5, 6, kernel.USER)], 1),
        ([(at << 20, (at << 20) + 3, kernel.USER) for at in range(500)], 63),
    ],
)
def test_a_map_has_all_pages_once(runs: list[tuple[int, int, int]], rows: int) -> None:
    found = map_of(used(*runs))
    assert len(found.rows) == rows
    assert found.counts.shape == (rows, 64, len(PageType))
    assert found.cell_pages & (found.cell_pages - 1) == 0
    for kind, raw in ((PageType.USER, kernel.USER), (PageType.FREE, kernel.FREE)):
        assert found.counts[:, :, kind].sum() == sum(end - begin for begin, end, each in runs if each == raw)
    for begin, _, raw in runs:
        row = next(
            index
            for index, at in enumerate(found.rows)
            if 0 <= begin - at < 64 * found.cell_pages and at >= 0
        )
        column = (begin - found.rows[row]) // found.cell_pages
        kind = {kernel.USER: PageType.USER, kernel.FREE: PageType.FREE}[raw]
        assert found.counts[row, column, kind]
    assert (found.counts.sum(axis=2) <= found.cell_pages).all()


def test_stripes_are_shares_of_a_cell() -> None:
    counts = np.zeros((1, 64, len(PageType)), np.int64)
    counts[0, 0, PageType.KERNEL], counts[0, 0, PageType.USER] = 2, 12
    counts[0, 1, PageType.FREE] = 16
    stripes = MemoryMap(16, [0], counts).stripes
    assert stripes.shape == (1, 512)
    assert stripes[0, :8].tolist() == [PageType.KERNEL] + [PageType.USER] * 6 + [PageType.MISSING]
    assert stripes[0, 8:16].tolist() == [PageType.FREE] * 8
    assert (stripes[0, 16:] == PageType.MISSING).all()


def test_names_do_not_steer_a_picture() -> None:
    drawn: Any = draw_map(used((0, 64, kernel.USER)), "a$b\x1b$\n.raw", ".svg")
    assert b"a$b\\x1b$\\n.raw" in drawn
