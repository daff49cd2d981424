"""Completion in the shells themselves: bash, zsh and fish."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.command import RunVmdump
from oracles import judges

from vmdump.cli import completing

SHELLS = ("bash", "zsh", "fish")
BASH = """
COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
compopt() { :; }
source /dev/stdin
_vmdump_completion vmdump
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { :; }
compadd() { print -l -- ${(P)@[-1]}; }
_describe() { print -l -- ${${(P)3}%%:*}; }
_path_files() { print -- FILES; }
source /dev/stdin
words=(${(z)1}); [[ $1 == *' ' ]] && words+=('')
CURRENT=$#words
_vmdump_completion
"""
Complete = Callable[[str, str], list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with the command in bin/ and a socket."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/vmdump"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vmdump "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vm.qmp"))
        (tmp_path / "vm.kdump").touch()
        yield tmp_path


@pytest.fixture
def complete(folder: Path, run_vmdump: RunVmdump) -> Complete:
    """complete(shell, line): what the shell offers at the end of a line."""

    def complete(shell: str, line: str) -> list[str]:
        judges.require(shell)
        script = run_vmdump("completion", shell).stdout
        if shell == "fish":
            words = ["fish", "--no-config", "-c", 'source; complete -C "$argv[1]"', line]
        else:
            text = BASH if shell == "bash" else ZSH
            words = ["bash", "--norc", "-c", text, "bash", line]
            if shell == "zsh":
                words = ["zsh", "-f", "-c", text, "zsh", line]
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
        done = subprocess.run(
            words, input=script, capture_output=True, cwd=folder, env=environment, timeout=60, check=False
        )
        assert done.stderr == b""
        return [each.split("\t")[0].replace("\\", "") for each in done.stdout.decode().splitlines() if each]

    return complete


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vmdump du", ["dump"]),
        ("vmdump dump --form", ["--format"]),
        ("vmdump dump -f kdump-zs", ["kdump-zstd"]),
        ("vmdump dump -f ls", []),
        ("vmdump convert --layout fl", ["flattened"]),
        ("vmdump dump --engine zst", ["zstd"]),
        ("vmdump dump syn", ["synthetic:"]),
        ("vmdump completion fi", ["fish"]),
        ("vmdump nosuch x", []),
    ],
)
def test_words(shell: str, line: str, offered: list[str], complete: Complete) -> None:
    assert complete(shell, line) == offered


@pytest.mark.parametrize(("shell", "kept"), [("bash", ""), ("zsh", "qmp:"), ("fish", "qmp:")])
def test_sockets(shell: str, kept: str, complete: Complete, folder: Path) -> None:
    """bash takes what is before the colon for a word of its own; a file that is no socket is not offered."""
    assert complete(shell, f"vmdump dump qmp:{folder}/v") == [f"{kept}{folder}/vm.qmp"]
    assert f"{kept}vm.qmp" in complete(shell, "vmdump dump qmp:")


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_what_the_shell_takes(shell: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    judges.require(shell)
    done = run_vmdump("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "script").write_bytes(done.stdout)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_bash_completion_loads_it(folder: Path, run_vmdump: RunVmdump) -> None:
    judges.require("bash")
    loader = Path("/usr/share/bash-completion/bash_completion")
    if not loader.exists():
        judges.require("bash-completion")
    place = folder / "completions"
    place.mkdir()
    (place / "vmdump").write_bytes(run_vmdump("completion", "bash").stdout)
    text = f". {loader}; _completion_loader vmdump; complete -p vmdump"
    environment = {**os.environ, "BASH_COMPLETION_USER_DIR": str(folder)}
    done = subprocess.run(
        ["bash", "--norc", "-i", "-c", text], capture_output=True, env=environment, text=True, check=False
    )
    assert "-F _vmdump_completion vmdump" in done.stdout


def test_names_that_would_be_something_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a domain nor a socket can be two answers, or choose libvirt's daemon."""
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("two\nplain,lines")
    assert completing._sockets("tw") == []
    names = ["web", "x?uri=qemu+ext:///system", "a\nplain,b", "\x1b[2J"]
    monkeypatch.setattr(
        "vmdump.operations.guests.guests", lambda: [SimpleNamespace(domain=name) for name in names]
    )
    assert set(names) & set(completing._domains()) == {"web"}
