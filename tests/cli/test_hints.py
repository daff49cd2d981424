"""The one hint of a build without the fast engines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vmdump.cli.main import main
from vmdump.codecs import registry
from vmdump.codecs.bindings import Binding
from vmdump.kernels.engines import native_engines

HINT = (
    "hint: isal is not built in: libisal was not found by pkg-config; "
    "other engines do its work, more slowly\n"
)


@pytest.fixture
def without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: about for name, about in native_engines().items() if name != "isal"}
    monkeypatch.setattr(registry, "native_engines", lambda: found)
    reason = "not built: libisal was not found by pkg-config"
    monkeypatch.setattr(registry, "missing_engines", lambda: {"isal": reason})


def said(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        assert main([*words, "synthetic:8M", str(tmp_path / "guest.kdump")]) == 0
    return capsys.readouterr().err


@pytest.mark.usefixtures("without_isal")
@pytest.mark.parametrize("command", ["dump", "convert"])
def test_it_comes_once_behind_the_summary(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said([command], tmp_path, capsys)
    assert text.endswith(HINT)
    assert text.count("hint") == 1


@pytest.mark.usefixtures("without_isal")
@pytest.mark.parametrize("option", [["-q"], ["--engine", "libdeflate"], ["-f", "kdump-zstd"], ["-f", "elf"]])
def test_it_does_not_come(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint" not in said(["dump", *option], tmp_path, capsys)


@pytest.mark.usefixtures("without_isal")
def test_capabilities_end_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["capabilities"]) == 0
    assert capsys.readouterr().out.endswith(HINT)


@pytest.mark.parametrize("columns", [40, 80])
def test_reasons_are_whole_in_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Binding, "version", lambda self: "")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["capabilities"]) == 0
    reason = "zlib-ng: package zlib-ng is not installed (pip install 'vmdump[bindings]')"
    assert reason in capsys.readouterr().out.splitlines()
