"""``vmdump bench``: its table, its JSON, its pictures, and what it tells to type."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmarks import benchmark
from helpers.command import RunVmdump
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.cli.bench import _show, answer, level_lines
from vmdump.cli.chart import draw_picture, draw_text, letters
from vmdump.cli.progress import progress_bar
from vmdump.operations.bench.bench import Benchmark
from vmdump.operations.bench.forecast import LevelForecast

PAGE = 4096


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a guest of 16 pages: packed at every level in a moment."""
    path = tmp_path_factory.mktemp("guest") / "ram"
    text = b"".join(b"%d sheep jump over the fence\n" % n for n in range(4000))
    path.write_bytes(text[: 8 * PAGE] + bytes(4 * PAGE) + np.random.default_rng(1).bytes(4 * PAGE))
    return f"raw:{path}"


def test_everything_from_one_run(run_vmdump: RunVmdump, guest: str, tmp_path: Path) -> None:
    picture, folder = tmp_path / "picture.svg", tmp_path / "folder"
    folder.mkdir()
    done = run_vmdump("bench", guest, "--to", folder, "-j", 3, "--json", "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert found["threads"] == 3
    assert found["zero_share"] == 0.25
    assert not list(folder.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "picture.svg"}
    root = ET.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = " ".join(root.itertext())
    for row in found["candidates"]:
        if row["engine"]:
            assert row["engine"] in texts
    # What it tells to type can be typed.
    for choice in ("fastest", "smallest"):
        options = shlex.split(found[choice])
        dumped = run_vmdump("dump", guest, tmp_path / choice, *options)
        assert dumped.returncode == 0, dumped.stderr
    assert (tmp_path / "smallest").stat().st_size == min(row["output_bytes"] for row in found["candidates"])


def test_table(run_vmdump: RunVmdump, guest: str, tmp_path: Path) -> None:
    done = run_vmdump("bench", guest, "--sample", "64K", "--all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    lines = done.stdout.decode().splitlines()
    assert all(len(line) < 80 for line in lines if "raw:" not in line and "MB/s (" not in line)
    rows = [line for line in lines if re.search(r" (kdump-\w+|elf) +[\w-]+ .* (cpu|disk) *$", line)]
    levels = sum(
        engine.max_level - engine.min_level + 1
        for engine in vmdump.capabilities().engines
        if not engine.missing
    )
    assert len(rows) == levels + 1
    formats = [state.name for state in vmdump.capabilities().formats if "raw" not in state.name]
    assert sum("*" in row for row in rows) == len(formats) - 1
    assert any(line.startswith("fastest here:") and "-f " in line for line in lines)
    assert any(line.startswith("smallest:") and "-f " in line for line in lines)
    # The picture of text is for a terminal.
    assert not any(line.startswith("ratio +") for line in lines)


def test_terminal(guest: str, tmp_path: Path) -> None:
    main, side = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "vmdump", "bench", guest],
            stdin=subprocess.DEVNULL,
            stdout=side,
            stderr=side,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
        ) as child:
            os.close(side)
            shown = b""
            try:
                while piece := os.read(main, 65536):
                    shown += piece
            except OSError:  # EIO: the child has closed its side
                pass
        assert child.returncode == 0, shown
    finally:
        os.close(main)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "ratio +" in text
    assert "fastest here:" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--picture", "picture.jpeg"), 2, (".svg", ".png", ".pdf")),
        (("--picture", "-"), 2, (".svg",)),
        (("--picture", "missing/picture.svg"), 5, ("missing/picture.svg", "No such file")),
        (("--to", "missing"), 5, ("missing", "No such file")),
        (("--sample", "some"), 2, ("sample",)),
        (("--sample", "0"), 2, ("sample",)),
        (("-j", "0"), 2, ("threads",)),
    ],
)
def test_errors(
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    run_vmdump: RunVmdump,
    guest: str,
    tmp_path: Path,
) -> None:
    done = run_vmdump("bench", guest, *arguments, cwd=tmp_path)
    message = done.stderr.decode()
    assert done.returncode == code, message
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert done.stdout == b""
    assert not list(tmp_path.iterdir())


def test_picture_that_is_there(run_vmdump: RunVmdump, guest: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.PNG"
    picture.write_bytes(b"old")
    done = run_vmdump("bench", guest, "--picture", picture, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert picture.read_bytes() == b"old"
    done = run_vmdump("bench", guest, "--picture", picture, "--force", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert int.from_bytes(data[16:20]) > 800
    assert [path.name for path in tmp_path.iterdir()] == ["picture.PNG"]


def test_without_matplotlib(guest: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from vmdump.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", guest, "--picture", "picture.svg"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert 'pip install "vmdump[chart]"' in done.stderr
    assert not list(tmp_path.iterdir())


# Some as alike as two levels of an engine, which fall into the same cell.
_alike = st.tuples(
    st.integers(1, 9).map(lambda step: 1e8 + 1e4 * step),
    st.integers(1, 9).map(lambda step: 0.5 + 1e-5 * step),
)
_points = st.lists(
    st.tuples(st.floats(1e6, 2e9), st.floats(0.01, 1.0)) | _alike, min_size=1, max_size=57, unique=True
)


@given(_points)
def test_picture_of_text(points: list[tuple[float, float]]) -> None:
    found = benchmark(points)
    lines = draw_text(found.candidates).splitlines()
    assert all(len(line) <= 72 for line in lines)
    drawing, legend = lines[:20], "  ".join(lines[20:])
    cells = "".join(line[7:] for line in drawing[:18])
    for each, letter in letters(found.candidates).items():
        assert cells.count(letter) == 1
        assert f"{letter} {each.name}" in legend
    assert len(cells.replace(" ", "")) <= len(points)


def test_places_in_the_picture_of_text() -> None:
    found = benchmark([(1e7, 0.2), (1e8, 0.4), (1e9, 0.6), (1e7, 0.6)])
    lines = draw_text(found.candidates).splitlines()
    # Faster is to the right and smaller at the bottom; "a" is the fastest.
    assert lines[0].endswith("a")
    assert lines[0][7] == "."
    assert lines[17][7] == "c"
    assert lines[0].startswith("0.600 |")
    assert lines[17].startswith("0.200 |")
    row = next(number for number, line in enumerate(lines[:18]) if "b" in line)
    assert row in (8, 9)
    assert lines[row].index("b") == 7 + 32
    assert re.match(r"MB/s +20 +50 +100 +200 +500 +1000$", lines[19].replace("10 ", "   ", 1))


@pytest.mark.parametrize("kind", [".svg", ".png", ".pdf"])
def test_pictures(kind: str) -> None:
    marks = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    found = benchmark([(1e7, 0.2), (1e8, 0.4), (1e9, 0.6), (1e7, 0.6), (2e7, 0.19)])
    drawn = draw_picture(found, kind)
    assert drawn.startswith(marks[kind])
    assert drawn == draw_picture(found, kind)


@pytest.mark.parametrize("path", [r"a $\q{$ b", os.fsdecode(b"\xff")])
def test_picture_of_any_path(path: str) -> None:
    """Between two dollars is no formula, and not each path is text."""
    assert draw_picture(replace(benchmark([(1e7, 0.2)]), source=path), ".svg").endswith(b"</svg>\n")


def test_names_in_a_picture_do_not_hide_each_other() -> None:
    """Twenty efficient points in a crowd: each has its name, and no name hides another."""
    points = [(1e7 * 1.05**number, 0.3 + 0.004 * number) for number in range(19)] + [(1e9, 0.9)]
    found = benchmark(points)
    root = ET.fromstring(draw_picture(found, ".svg").decode())
    boxes = {}
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        name = (node.text or "").strip()
        if name in {each.name for each in found.candidates}:
            # 8 points high; a letter is at least 3.5 wide.
            width = 3.5 * len(name)
            left = float(node.get("x", "")) - width * {"middle": 0.5, "end": 1}.get(
                re.findall(r"text-anchor: (\w+)", node.get("style", ""))[0], 0
            )
            boxes[name] = left, left + width, float(node.get("y", "")), float(node.get("y", "")) + 7
    assert len(boxes) == 20
    for first, second in itertools.combinations(boxes.values(), 2):
        apart = (
            first[1] <= second[0] or second[1] <= first[0] or first[3] <= second[2] or second[3] <= first[2]
        )
        assert apart, (first, second)


def test_answer() -> None:
    found = benchmark([(1e7, 0.2), (1e9, 0.6), (1e8, 0.4)])
    assert answer(found) == [
        "fastest here: -f kdump-lzo (1.00 s, 572.2 MiB)",
        "smallest:     -f kdump-zlib (100.00 s, 190.7 MiB)",
    ]
    rows = list(found.candidates)
    rows[1] = replace(rows[1], limited_by="disk", default=False)
    elf = replace(rows[0], format="elf", codec="", engine="", level=None, seconds=0.5, output_bytes=1 << 30)
    lines = answer(replace(found, candidates=(elf, *rows)), " -j 2")
    assert lines == [
        "fastest here:                             -f elf -j 2 (0.50 s, 1.0 GiB)",
        "fastest compressed:                       -f kdump-lzo -j 2 (1.00 s, 572.2 MiB)",
        "smallest that the disk does not wait for: -f kdump-snappy --engine snappy --level 1 -j 2 "
        "(10.00 s, 381.5 MiB)",
        "smallest:                                 -f kdump-zlib -j 2 (100.00 s, 190.7 MiB)",
    ]


@pytest.mark.parametrize(
    ("room", "lines", "larger"),
    [
        (
            600_000_000,
            [
                "fastest here:       -f elf (0.50 s, 190.7 MiB)",
                "fastest compressed: -f kdump-zlib (1.00 s, 572.2 MiB)",
                "smallest:           -f elf (0.50 s, 190.7 MiB)",
            ],
            0,
        ),
        (
            599_999_999,
            [
                "fastest here:       -f elf (0.50 s, 190.7 MiB)",
                "fastest compressed: -f kdump-lzo (10.00 s, 381.5 MiB)",
                "smallest:           -f elf (0.50 s, 190.7 MiB)",
            ],
            1,
        ),
        (
            300_000_000,
            ["fastest here: -f elf (0.50 s, 190.7 MiB)", "smallest:     -f elf (0.50 s, 190.7 MiB)"],
            2,
        ),
    ],
)
def test_what_fits(room: int, lines: list[str], larger: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What is the fastest is no answer where there is no room for it."""
    found = benchmark([(1e9, 0.6), (1e8, 0.4)])
    one = found.candidates[0]
    elf = replace(one, format="elf", codec="", engine="", level=None, seconds=0.5, output_bytes=200_000_000)
    disk = replace(found.disk, room=room)
    found = replace(found, candidates=(elf, *found.candidates), disk=disk)
    assert answer(found) == lines
    _show(found, show_all=True, threads_given=False)
    assert ("larger than the" in capsys.readouterr().out) == bool(larger)
    assert [each.output_bytes <= room for each in found.candidates].count(False) == larger


def test_nothing_fits() -> None:
    found = benchmark([(1e9, 0.6), (1e8, 0.4)])
    found = replace(found, disk=replace(found.disk, room=1))
    assert found.fitting == found.candidates
    assert found.fastest == found.candidates[0]


@pytest.mark.parametrize("of_bytes", [False, True])
def test_progress_of_a_path_with_brackets(
    of_bytes: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They mean nothing: rich takes what is in brackets for a style, and ``[/...]`` for the end of one."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with progress_bar("a[/b] [bold]", shown=True, of_bytes=of_bytes) as advance:
        assert advance is not None
        advance(1, 2)
    assert "a[/b] [bold]" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)


def test_what_to_type_has_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmark([(500e6, 0.5), (300e6, 0.4)])
    _show(replace(found, dump_level=23), show_all=False, threads_given=True)
    text = capsys.readouterr().out
    assert "1.0 GiB of data at level 23, 25% of it left out or zero" in text
    assert re.search(r"^smallest: .* -d 23 -j 2 \(", text, re.MULTILINE)
    _show(found, show_all=False, threads_given=False)
    text = capsys.readouterr().out
    assert " -d " not in text.replace(" -d 31", "")
    assert "25% of it zero pages" in text


def test_levels_beside_each_other() -> None:
    found = benchmark([(1e9, 0.6)])
    lines = level_lines(found)
    assert lines == [
        "level 1:  1.00 s, 572.2 MiB for 700.0 MiB of pages: -f kdump-zlib",
        "level 31: 0.12 s, 40.0 MiB for 90.0 MiB of pages: -f kdump-zlib -d 31",
    ]
    drawn = draw_picture(found, ".svg").decode()
    assert "fastest at level 1: 572.2 MiB in 1.00 s, level 31: 40.0 MiB in 0.12 s" in drawn
    none = LevelForecast(31, 0, None, "page types: there is no VMCOREINFO")
    found = replace(found, levels=(found.levels[0], none))
    assert level_lines(found)[1] == "level 31: page types: there is no VMCOREINFO"
    assert "level 31: no page types" in draw_picture(found, ".svg").decode()


def test_levels_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _show(benchmark([(1e9, 0.6)]), show_all=False, threads_given=False)
    assert re.search(r"^level 31: 0.12 s, ", capsys.readouterr().out, re.MULTILINE)


def texts_of(found: Benchmark) -> str:
    return "\n".join(ET.fromstring(draw_picture(found, ".svg").decode()).itertext())


def test_a_picture_answers_its_question() -> None:
    """Seconds and sizes of this guest's dump, the disk's limit, and what is recommended with its options."""
    found = benchmark([(1e9, 0.6), (1e8, 0.4), (1e7, 0.2)])
    texts = texts_of(found)
    assert "seconds for the whole dump" in texts
    assert "size of the dump, MiB" in texts
    assert "the disk's limit:" in texts
    assert "1000 MB/s" in texts
    assert [line for line in texts.splitlines() if line.startswith(("fastest here: ", "smallest: "))] == [
        f"{role}: {each.options} ({each.seconds:.2f} s, {each.output_bytes / (1 << 20):.1f} MiB)"
        for role, each in found.recommended.items()
    ]
    assert "busy" not in texts


def test_a_busy_machine_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(benchmark([(1e9, 0.6)]), others_share=0.5)
    assert found.as_dict()["busy"] is True
    assert "others had 50% of the processors" in texts_of(found)
    _show(found, show_all=False, threads_given=False)
    shown = capsys.readouterr().out
    assert "The machine is busy: others had 50% of the processors" in shown
    assert max(map(len, shown.splitlines())) < 80
    idle = replace(found, others_share=0.1)
    assert idle.as_dict()["busy"] is False
    _show(idle, show_all=False, threads_given=False)
    assert "busy" not in capsys.readouterr().out


def test_an_engine_without_levels_has_none_in_json() -> None:
    found = benchmark([(1e9, 0.6), (1e8, 0.4)])
    plain = replace(found.candidates[0], level_matters=False)
    found = replace(
        found,
        candidates=(plain, *found.candidates[1:]),
        levels=(LevelForecast(1, 1, plain), LevelForecast(31, 0, None, "none")),
    )
    facts = found.as_dict()
    assert [row["level"] for row in facts["candidates"]] == [None, 1]
    assert facts["levels"][0]["candidate"]["level"] is None
