"""``vmdump find``: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import kdump_builder

from vmdump import errors

PAGE = 4096
PATIENCE = 60


@pytest.fixture
def guest(tmp_path: Path) -> str:
    data = bytearray(64 * PAGE)
    data[5 * PAGE - 3 : 5 * PAGE + 3] = b"needle"
    data[100:107] = b"\xff\xfe\x80word"
    data[9 * PAGE : 9 * PAGE + 6] = b"needle"
    (tmp_path / "ram").write_bytes(data)
    return f"raw:{tmp_path}/ram"


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (["needle"], [5 * PAGE - 3, 9 * PAGE]),
        (["FF fe80", "--hex"], [100]),
        ([r"[\x80-\xff]+w.r", "--regex"], [100]),
        (["needle", "--begin", "0x5000"], [9 * PAGE]),
        (["needle", "--begin", "4K", "--length", "32K", "-j", "2"], [5 * PAGE - 3]),
    ],
)
def test_addresses(guest: str, words: Sequence[str], addresses: list[int], run_vmdump: RunVmdump) -> None:
    done = run_vmdump("find", guest, *words)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [int(line, 0) for line in done.stdout.split()] == addresses
    assert run_vmdump("find", guest, *words, "--count").stdout.split() == [b"%d" % len(addresses)]
    told = json.loads(run_vmdump("find", guest, *words, "--json").stdout)
    assert told == {"count": len(addresses), "unreadable_bytes": 0, "addresses": addresses}


def test_nothing_found(guest: str, run_vmdump: RunVmdump) -> None:
    for words, printed in (((), b""), (("--count",), b"0\n")):
        done = run_vmdump("find", guest, "haystack", *words)
        assert done.returncode == errors.PatternNotFound.exit_code
        assert done.stdout == printed
        assert done.stderr.decode() == f'vmdump: {guest}: "haystack" was not found\n'
    done = run_vmdump("find", guest, "haystack", "--json")
    assert json.loads(done.stdout) == {"count": 0, "unreadable_bytes": 0, "addresses": []}
    assert done.returncode == errors.PatternNotFound.exit_code


@pytest.mark.parametrize(
    "words",
    [["zz", "--hex"], ["(", "--regex"], ["a*", "--regex"], [""], ["61", "--hex", "--regex"], ["--hex", ""]],
)
def test_wrong_patterns(guest: str, words: Sequence[str], run_vmdump: RunVmdump) -> None:
    done = run_vmdump("find", guest, *words)
    assert done.returncode == errors.RequestError.exit_code
    assert len(done.stderr.splitlines()) == 1


def test_says_what_was_not_searched(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    data = kdump_builder.build_kdump(kdump_builder.Build(dict.fromkeys(range(4), b"needle" * 682 + b"need")))
    (tmp_path / "dump").write_bytes(data[:-1] + b"\xff")
    done = run_vmdump("find", tmp_path / "dump", "needneedle")
    assert done.returncode == 0
    assert done.stdout.split() == [b"0xffc", b"0x1ffc"]
    assert done.stderr == b"vmdump: 4.0 KiB could not be read and were not searched\n"


def test_expression_that_takes_for_ever_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"a" * PAGE)
    command = [sys.executable, "-m", "vmdump", "find", f"raw:{tmp_path}/ram", "(a|a)*b", "--regex"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            wait_until_busy(child)
            child.send_signal(signal.SIGINT)
            assert "SIGINT" in child.communicate(timeout=PATIENCE)[1]
            assert child.returncode == 130
        finally:
            child.kill()


def wait_until_busy(child: subprocess.Popen[str]) -> None:
    """Wait until it has used more of a processor than its start takes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()[11]
        if int(ticks) > 3 * os.sysconf("SC_CLK_TCK"):
            return
        time.sleep(0.05)
    pytest.fail("it did nothing")
