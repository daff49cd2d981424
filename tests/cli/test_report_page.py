"""``vmdump report``: one page that refers to nothing, runs nothing of a dump's, and says what it lacks."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import filter_goldens
from helpers.command import RunVmdump, run_measured
from oracles.log_ring import LINES, Ring

import vmdump
from vmdump import errors

PAGE = 4096
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e&amp;"
VOID = {"meta", "path", "rect", "line", "input"}


class Parsed(HTMLParser):
    """All elements, and the text outside of scripts and styles; complains where one is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {"script": "", "style": "", "": ""}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        here = self._open[-1] if self._open else ""
        self.content[here if here in ("script", "style") else ""] += data

    @property
    def text(self) -> str:
        return self.content[""]


def check(page: str) -> Parsed:
    """Hold the page to what each one has to be."""
    parsed = Parsed(page)
    names = {name for name, _ in parsed.elements}
    assert not names & {"link", "iframe", "object", "embed", "img", "image", "use", "base", "form"}
    assert sum(name == "script" for name, _ in parsed.elements) == 1
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    for _, attributes in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"  # the policy would refuse it
            if name in ("href", "src", "srcset", "xlink:href", "action", "data"):
                assert (value or "").startswith("#")
                assert (value or "")[1:] in ids
    assert "url(" not in parsed.content["style"]
    assert "@import" not in parsed.content["style"]
    assert not re.search(r"https?:|//", parsed.content["script"] + parsed.content["style"])
    policy = next(
        attributes["content"] or ""
        for name, attributes in parsed.elements
        if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.content[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    return parsed


def report(run_vmdump: RunVmdump, source: object, page: Path) -> Parsed:
    done = run_vmdump("report", source, "-o", page, "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    return check(page.read_text())


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A dump with a log, registers, and everything hostile that fits."""
    ring = Ring()
    ring.add(b"first message")
    ring.add(HOSTILE.encode())
    lines = LINES.replace("OSRELEASE=6.1.0", f"OSRELEASE=6.1.0{HOSTILE.replace('=', '')}")
    source = vmdump.BlockSource(
        np.frombuffer(ring.finish(), np.uint8), vmcoreinfo=lines.encode(), cpus=[{"rip": 0x1234}, {"rip": 7}]
    )
    file = tmp_path / f"{HOSTILE.replace('/', '')}.kdump"
    vmdump.dump(source, file)
    return file


def test_everything_is_there_and_nothing_is_markup(
    logged: Path, tmp_path: Path, run_vmdump: RunVmdump
) -> None:
    page = tmp_path / "report.html"
    parsed = report(run_vmdump, logged, page)
    assert page.stat().st_mode & 0o777 == 0o600
    for expected in (
        "kdump standard, zlib",
        "first message",
        "<script>alert(1)</script>",
        "could be read and unpacked.",
        "vCPU 1: rip 0x7",
        "0x1234",
        "SYMBOL(prb)",
        "\\u202e",
    ):
        assert expected in parsed.text
    assert "\u202e" not in page.read_text()
    assert "alert" not in parsed.content["script"]


def test_page_types_are_drawn(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    (tmp_path / "dump").write_bytes(filter_goldens.memory("6.12").tobytes())
    parsed = report(run_vmdump, tmp_path / "dump", tmp_path / "page")
    usage = vmdump.page_types(tmp_path / "dump")
    for kind, count in usage.counts.items():
        assert (f"{kind.label}: " in parsed.text) == bool(count.pages)
    labels = [attributes.get("aria-label") for name, attributes in parsed.elements if name == "svg"]
    assert "What memory is used for" in labels
    paths = [attributes["d"] or "" for name, attributes in parsed.elements if name == "path"]
    assert paths
    assert all(re.fullmatch(r"[MLhvHz0-9. -]*", path) for path in paths)


@pytest.mark.parametrize(("keep", "said"), [(0.4, "this is what is left"), (0.9, " cannot be read.")])
def test_dump_that_was_cut_short(
    keep: float, said: str, logged: Path, tmp_path: Path, run_vmdump: RunVmdump
) -> None:
    data = logged.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * keep)])
    parsed = report(run_vmdump, tmp_path / "cut", tmp_path / "page")
    assert said in parsed.text
    assert "could be read and unpacked" not in parsed.text
    assert any(attributes.get("class") == "bad" for _, attributes in parsed.elements)


def test_damaged_pages_are_named(logged: Path, tmp_path: Path, run_vmdump: RunVmdump) -> None:
    data = bytearray(logged.read_bytes())
    data[-1] ^= 0xFF
    (tmp_path / "dump").write_bytes(data)
    parsed = report(run_vmdump, tmp_path / "dump", tmp_path / "page")
    assert "1 page cannot be read." in parsed.text


def test_without_vmcoreinfo(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    vmdump.dump(np.ones(64 * PAGE, np.uint8), tmp_path / "dump", format="elf")
    parsed = report(run_vmdump, tmp_path / "dump", tmp_path / "page")
    assert parsed.text.count("no VMCOREINFO") == 2  # log, page types
    assert "There is none: " in parsed.text


def test_guest_that_is_no_dump(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    parsed = report(run_vmdump, "synthetic:64M", tmp_path / "page")
    assert "only a dump tells how it holds pages" in parsed.text


def test_errors_leave_no_page(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    (tmp_path / "text").write_bytes(b"no dump" * 1000)
    done = run_vmdump("report", tmp_path / "text", "-o", tmp_path / "page")
    assert done.returncode == errors.FormatError.exit_code
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "page").exists()
    (tmp_path / "page").write_text("kept")
    done = run_vmdump("report", "synthetic:64M", "-o", tmp_path / "page")
    assert done.returncode == errors.OutputExists.exit_code
    assert (tmp_path / "page").read_text() == "kept"


def test_page_does_not_replace_the_dump(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    dump = tmp_path / "dump"
    vmdump.dump("synthetic:4M", dump, format="kdump-zlib")
    for kept in (dump.read_bytes(), dump.read_bytes()[:-5000]):
        dump.write_bytes(kept)
        done = run_vmdump("report", dump, "-o", dump, "--force")
        assert done.returncode == errors.SinkError.exit_code
        assert b"the output is the file that holds the guest" in done.stderr
        assert dump.read_bytes() == kept


def test_page_on_standard_output(run_vmdump: RunVmdump) -> None:
    done = run_vmdump("report", "synthetic:4M", "-o", "-")
    assert check(done.stdout.decode())
    assert done.stderr.startswith(b"standard output: ")


def test_page_of_a_large_guest_is_small(tmp_path: Path) -> None:
    """1 TiB: not all of it is read, which the page says; neither it nor vmdump grows with the guest."""
    with (tmp_path / "ram").open("wb") as file:
        file.truncate(1 << 40)
    vmdump.dump(f"raw:{tmp_path}/ram?base=0", tmp_path / "dump", format="elf")
    code, said, peak = run_measured("report", tmp_path / "dump", "-o", tmp_path / "page", "-q")
    assert (code, said) == (0, "")
    assert peak < 400 << 20
    page = (tmp_path / "page").read_text()
    assert len(page) < 1 << 20
    text = check(page).text
    assert "1.0 TiB of memory were not read to tell what it is used for" in text
    assert "1.0 TiB of memory were not read to see whether it is intact" in text
