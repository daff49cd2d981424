"""Dumps that fail midway and are kept: under another name, marked, with each page that is intact."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.limits import file_size_limit
from helpers.running import RunningGuest, noise

import vmdump
from vmdump import errors

GUEST = "synthetic:64M?seed=3&fill=0.5"
FORMATS: list[tuple[vmdump.Format, vmdump.Layout]] = [
    ("elf", "auto"),
    ("kdump-zlib", "standard"),
    ("kdump-zlib", "flattened"),
    ("kdump-zstd", "standard"),
    ("kdump-lzo", "flattened"),
]
PATIENCE = 60


def check_kept(partial: Path, whole: Path, least: float) -> None:
    """Look for the mark, and compare all pages that are left with those of a whole dump."""
    assert vmdump.info(partial).incomplete
    fixed = partial.with_suffix(".fixed")
    done = vmdump.repair(partial, fixed)
    assert done.incomplete
    with vmdump.open(fixed) as some, vmdump.open(whole) as all_of_it:
        assert some.blocks[-1].end == all_of_it.blocks[-1].end
        there, total = [], 0
        for block in all_of_it.blocks:
            pfns = range(block.start // some.page_size, block.end // some.page_size)
            excluded = some.excluded_pages(pfns.start, len(pfns))
            there += [pfn for pfn in pfns if excluded is None or not excluded[pfn - pfns.start]]
            total += len(pfns)
        assert least * total <= len(there) < total
        edges = [index for index, pfn in enumerate(there) if pfn - 1 != there[index - 1]]
        for first, end in zip(edges, [*edges[1:], len(there)], strict=True):
            begin, size = there[first] * some.page_size, (end - first) * some.page_size
            assert some.read(begin, size) == all_of_it.read(begin, size), hex(begin)


@pytest.mark.parametrize(("name", "layout"), FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_file_that_cannot_grow(
    name: vmdump.Format, layout: vmdump.Layout, share: float, tmp_path: Path
) -> None:
    whole, output, partial = (tmp_path / each for each in ("whole", "vm", "vm.partial"))
    vmdump.dump(GUEST, whole, format=name, layout=layout)
    limit = int(whole.stat().st_size * share)
    with file_size_limit(limit), pytest.raises(errors.SinkError) as caught:
        vmdump.dump(GUEST, output, format=name, layout=layout, keep_partial=True)
    assert caught.value.errno == errno.EFBIG
    assert vars(caught.value)["kept_as"] == [str(partial)]
    assert f"kept as {partial}" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [partial, whole]
    assert partial.stat().st_mode & 0o777 == 0o600
    check_kept(partial, whole, share - 0.15)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount 8 MiB of memory as a disk, less than a dump of the guest has."""
    if os.geteuid():
        pytest.skip("mounting wants root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(("name", "layout"), FORMATS)
def test_a_full_disk(
    name: vmdump.Format,
    layout: vmdump.Layout,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmdump.operations.request.demand_room", lambda *_: None)
    vmdump.dump(GUEST, tmp_path / "whole", format=name, layout=layout)
    output, partial = small_disk / "vm", small_disk / "vm.partial"
    with pytest.raises(
        errors.SinkError, match=r"% of the guest is there, about .* missing; what was"
    ) as caught:
        vmdump.dump(GUEST, output, format=name, layout=layout, keep_partial=True)
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == [partial]
    moved = tmp_path / "vm.partial"
    moved.write_bytes(partial.read_bytes())
    check_kept(moved, tmp_path / "whole", 0.2)


@pytest.mark.parametrize(("name", "layout"), FORMATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(name: vmdump.Format, layout: vmdump.Layout, number: signal.Signals, tmp_path: Path) -> None:
    partial = tmp_path / "vm.partial"
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "vmdump",
        "dump",
        "synthetic:2G?fill=1",
        tmp_path / "vm",
        "-f",
        name,
    ]
    words += ["--layout", layout] if name != "elf" else []
    with subprocess.Popen([*words, "--keep-partial"], stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            counters = Path(f"/proc/{child.pid}/io").read_text().split()
            if int(counters[counters.index("wchar:") + 1]) > 32 << 20:
                break
            time.sleep(0.01)
        child.send_signal(number)
        _, text = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + number
    assert text == (
        f"vmdump: ended by {number.name}; what was written is kept as {partial}; "
        "'vmdump repair' makes an intact dump of it\n"
    )
    assert list(tmp_path.iterdir()) == [partial]
    info = vmdump.info(partial)
    assert info.incomplete
    if name != "elf":
        assert info.excluded_bytes == info.kinds["excluded"] * 4096
        assert info.pages - info.kinds["excluded"] > 1000
        checked = vmdump.verify(partial)
        assert checked.damaged_pages == 0
    partial.unlink()


def test_a_source_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elf = tmp_path / "vm.elf"
    vmdump.dump(GUEST, elf, format="elf")
    whole = tmp_path / "whole"
    vmdump.convert(elf, whole)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            raise errors.SourceError("lost", address=done)

    with pytest.raises(errors.SourceError, match="kept as"):
        vmdump.convert(elf, tmp_path / "vm", progress=progress, keep_partial=True)
    check_kept(tmp_path / "vm.partial", whole, 0.4)


def test_a_set_that_cannot_be_finished(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    vmdump.dump(GUEST, whole)

    def progress(done: int, total: int) -> None:
        if done > total * 0.6:
            raise errors.SourceError("lost", address=done)

    with pytest.raises(errors.SourceError, match=r"kept as .*vm\.1\.partial and 1 more") as caught:
        vmdump.convert(GUEST, tmp_path / "vm", split=3, progress=progress, keep_partial=True)
    kept = [f"{tmp_path}/vm.{number}.partial" for number in (1, 2)]
    assert vars(caught.value)["kept_as"] == kept
    assert sorted(map(str, tmp_path.iterdir())) == [*kept, str(whole)]
    done = vmdump.repair(kept, tmp_path / "fixed")
    assert done.incomplete
    assert 0.5 < done.kept_pages / (done.kept_pages + done.lost_pages) < 0.75


def test_a_whole_dump_leaves_nothing_else(tmp_path: Path) -> None:
    for name, layout in FORMATS:
        vmdump.dump(GUEST, tmp_path / "one", format=name, layout=layout, force=True)
        vmdump.dump(GUEST, tmp_path / "two", format=name, layout=layout, force=True, keep_partial=True)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "vm.partial").write_text("precious")
    with pytest.raises(errors.OutputExists, match=r"vm\.partial"):
        vmdump.dump(GUEST, tmp_path / "vm", keep_partial=True)
    assert (tmp_path / "vm.partial").read_text() == "precious"


def test_what_cannot_be_kept_is_refused(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for words in (("-",), (tmp_path / "fifo",), (tmp_path / "vm", "--compat", "qemu")):
        done = run_vmdump("dump", "synthetic:8M", *words, "--keep-partial")
        assert done.returncode == 2
        assert done.stderr.startswith(b"vmdump: keep_partial: ")
        assert len(done.stderr.splitlines()) == 1


def test_json_names_what_is_kept(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    with file_size_limit(10 << 20):
        done = run_vmdump("dump", GUEST, tmp_path / "vm", "--keep-partial", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["kept_as"] == [f"{tmp_path}/vm.partial"]


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_running_guest(name: vmdump.Format, paused: bool, tmp_path: Path) -> None:
    """What was packed before the pause is kept, also of pages that were not looked at again."""
    memory = noise(4, 8192)
    memory[4096 * 1000 : 4096 * 3000] = 0
    blocks = [(0, memory)]
    vmdump.dump(vmdump.BlockSource(blocks), tmp_path / "whole", format=name)
    first = 0

    def progress(done: int, total: int) -> None:
        nonlocal first
        first = first or total
        if done > first * (1.5 if paused else 0.5):
            raise errors.SourceError("lost", address=done)

    guest = RunningGuest(blocks, blocks)
    with pytest.raises(errors.SourceError, match=r"kept as .*vm\.partial"):
        vmdump.dump(guest, tmp_path / "vm", format=name, progress=progress, keep_partial=True)
    info = vmdump.info(tmp_path / "vm.partial")
    assert info.incomplete
    if paused:
        with vmdump.open(tmp_path / "vm.partial") as kept:
            assert kept.read(0, memory.size) == memory.tobytes()
    else:
        check_kept(tmp_path / "vm.partial", tmp_path / "whole", 0.4)
