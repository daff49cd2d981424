"""What is told of a dump while it is made, and at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.terminal import on_terminal

import vmdump
from vmdump.cli.phases import Moment, Watch, bar_line
from vmdump.pipeline.control import Control

MIB = 1 << 20


def test_share_never_falls_and_follows_the_phases() -> None:
    control = Control()
    watch = Watch(control)
    # A search for VMCOREINFO goes over memory, and is no part of the dump.
    tell = control.side_work()
    tell(50, 100)
    tell(100, 100)
    shares, phases = [watch.look().share], []
    assert shares == [0.0]
    control.enter("packing")
    assert watch.look().share == 0.0
    control.start(100)
    for _ in range(4):
        control.advance(25)
        shares.append(watch.look().share)
        phases.append(watch.look().phase)
    assert shares[1:] == pytest.approx([0.225, 0.45, 0.675, 0.9])
    control.enter("paused")
    control.start(120)
    control.advance(60)
    shares.append(watch.look().share)
    control.enter("writing")
    control.advance(60)
    shares.append(watch.look().share)
    assert shares[-2:] == pytest.approx([0.95, 1.0])
    control.enter("sync")
    shares.append(watch.look().share)
    assert shares == sorted(shares)
    assert [step.phase for step in control.steps] == ["attach", "packing", "paused", "writing", "sync"]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, 3000])
@pytest.mark.parametrize("phase", ["attach", "packing", "paused", "writing", "sync"])
@pytest.mark.parametrize(
    "name", ["vm.kdump", "/var/dumps/" + "long" * 20, "/tmp/客人的内存转储文件名很长", "a\x1b[2J"]
)
def test_line_fits(columns: int, phase: str, name: str) -> None:
    moment = Moment(phase, True, 1.25, 0.42, 420 * MIB, 1000 * MIB)  # type: ignore[arg-type]
    line = bar_line(name, moment, columns)
    width = len(line) + sum(char >= "\u2e80" for char in line)
    assert "\x1b" not in line
    assert "/" not in line.split("MB/s")[0]
    if columns >= 40:
        assert width < columns, line
        assert " 42%" in line
    if phase == "paused":
        assert line.count("PAUSED 1.2 s") == 1
    assert ("(guest runs)" in line) == (phase in ("packing", "writing") and columns >= 60)
    assert ("MB/s" in line) <= (columns >= 80)


def test_ascii_where_the_terminal_knows_no_more() -> None:
    moment = Moment("writing", False, 1.0, 0.5, MIB, 2 * MIB)
    assert bar_line("x" * 30, moment, 80, plain=True).isascii()


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_bar_on_a_terminal(columns: int, environment: dict[str, str], tmp_path: Path) -> None:
    words = ["dump", "synthetic:64M", tmp_path / "vm.kdump", "--engine", "zlib", "--level", "9", "-j", "1"]
    shown = on_terminal(words, columns, **environment)
    assert shown.code == 0
    text = shown.raw.decode()
    moments = [line.split("\r")[0] for line in text.split("\r\x1b[K")[1:]]
    bars = [line for line in moments if "━" in line or "─" in line]
    assert bars, text
    assert ("\x1b[36m" in text) == (not environment)
    assert all(str(tmp_path) not in line for line in bars)
    assert any("vm.kdump" in line for line in bars)
    shares = [int(line.split("%")[0][-3:]) for line in bars]
    assert shares == sorted(shares)
    # Of the bar nothing stays: one line of what was done, folded by the terminal.
    left = "".join(line.ljust(columns) if len(line) == columns else line for line in shown.lines)
    assert "━" not in left
    assert "written" in left


def test_line_at_the_end_where_no_terminal_is(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    out = tmp_path / "vm.kdump"
    done = run_vmdump("dump", "synthetic:8M", out)
    assert (done.returncode, done.stdout) == (0, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"{out}: kdump-zlib, standard by ")
    assert " written (" in line
    assert "VMCOREINFO" not in line
    for options in (["-q"], ["--json"]):
        done = run_vmdump("dump", "synthetic:8M", out, "--force", *options)
        assert (done.returncode, done.stderr) == (0, b"")


def test_lines_of_phases(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("dump", "synthetic:8M", tmp_path / "vm.kdump", "--progress")
    *lines, last = done.stderr.decode().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["vm.kdump"] * len(lines)
    assert [line.split(": ")[2].split(",")[0] for line in lines] == ["attach", "writing", "sync"]
    assert "of guest memory" in last


def test_json_lines(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("convert", "synthetic:8M", tmp_path / "vm.elf", "-f", "elf", "--log-json", "-q")
    assert (done.returncode, done.stdout) == (0, b"")
    *moments, report = map(json.loads, done.stderr.splitlines())
    assert [moment["phase"] for moment in moments] == ["attach", "writing", "sync"]
    assert {moment["event"] for moment in moments} == {"progress"}
    assert report["event"] == "report"
    assert report["format"] == "elf"
    seconds = [moment["seconds"] for moment in moments]
    assert seconds == sorted(seconds)


def test_summary_says_how_to_give_vmcoreinfo(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"page" * 4096)
    done = run_vmdump("dump", f"raw:{tmp_path / 'ram'}?base=0x0", tmp_path / "vm.kdump")
    assert b"it has no VMCOREINFO, which crash and drgn ask for: --vmcoreinfo FILE gives one" in done.stderr


def test_phase_of_a_job(tmp_path: Path) -> None:
    with vmdump.start_dump("synthetic:8M", tmp_path / "vm.kdump") as job:
        moments = list(job.progress(interval=0.001))
    order = ["attach", "writing", "sync"]
    assert [order.index(moment.phase) for moment in moments] == sorted(
        order.index(moment.phase) for moment in moments
    )
    assert moments[-1].phase == "sync"


def test_summary_of_a_set_names_the_files_that_exist(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("convert", "synthetic:8M", tmp_path / "set", "--split", 2)
    assert done.stderr.decode().startswith(f"{tmp_path / 'set.1'} to {tmp_path / 'set.2'}: kdump-zlib")
