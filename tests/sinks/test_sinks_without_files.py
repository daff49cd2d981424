"""Sinks that have no descriptor: dumps have the same bytes as in files, and are committed or aborted."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.memory_sink import MemorySink, register
from helpers.running import PAGE, Blocks, RunningGuest, noise
from oracles.elf_builder import note

import vmdump
from vmdump.errors import Cancelled, RequestError, SinkError
from vmdump.sinks.set import SinkSet

IN_ORDER = [("elf", "auto"), ("kdump-zlib", "auto"), ("kdump-lzo", "flattened")]
ANYWHERE = [("elf", "auto"), ("kdump-zlib", "auto"), ("kdump-zstd", "standard"), ("kdump-lzo", "flattened")]
LAST_CALLS = ["set_size", "sync", "publish", "close"]


def life() -> tuple[Blocks, Blocks]:
    """Give what a guest holds while it runs, and what of it has changed when it is paused."""
    low = np.concatenate((noise(1, 50), np.zeros(100 * PAGE, np.uint8), noise(2, 30)))
    high = np.frombuffer(b"a sink without a descriptor " * 20000, np.uint8)[: 120 * PAGE].copy()
    later = low.copy()
    later[3 * PAGE : 5 * PAGE] = 0
    later[60 * PAGE : 62 * PAGE] = 7
    return [(0, low), (1 << 24, high)], [(0, later), (1 << 24, high)]


class WatchedGuest(RunningGuest):
    """Counts how often it was held, and let go again."""

    holds = 0
    let_go = 0

    @contextmanager
    def held(self, **options: object) -> Iterator[object]:  # type: ignore[override]
        with super().held(**options) as still:  # type: ignore[arg-type]
            self.holds += 1
            try:
                yield still
            finally:
                self.let_go += 1


def make_guest(**options: bytes) -> WatchedGuest:
    return WatchedGuest(*life(), note(b"CORE", 1, bytes(336)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "layout"), IN_ORDER)
def test_sink_that_takes_bytes_in_order(
    name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = MemorySink()
    register(monkeypatch, sink)
    guest = make_guest()
    report = vmdump.dump(guest, sink.name, format=name, layout=layout)
    in_a_file = "auto" if name == "elf" else "flattened"
    vmdump.dump(make_guest(), tmp_path / "file", format=name, layout=in_a_file, pause=False)
    assert sink.published == (tmp_path / "file").read_bytes()
    assert guest.prepared == 0
    assert (report.output, report.output_bytes) == (sink.name, len(sink.published))
    assert report.layout == ("standard" if name == "elf" else "flattened")
    assert sink.calls[:2] == ["begin", "begin"]
    assert sink.calls[-4:] == LAST_CALLS
    assert sink.calls.count("channel") == 1
    assert not {"seek", "clear", "abort"} & set(sink.calls)


@pytest.mark.parametrize(("name", "layout"), ANYWHERE)
@pytest.mark.parametrize("sparse", [False, True])
def test_sink_that_takes_bytes_anywhere(
    name: str, layout: str, sparse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = MemorySink(seekable=True, sparse=sparse)
    register(monkeypatch, sink)
    guest = make_guest()
    report = vmdump.dump(guest, sink.name, format=name, layout=layout)
    # What is written ahead is placed as it was then.
    in_a_file = make_guest()
    vmdump.dump(in_a_file, tmp_path / "file", format=name, layout=layout, pause=sparse)
    assert sink.published == (tmp_path / "file").read_bytes()
    assert guest.prepared == in_a_file.prepared == (1 if sparse and layout != "flattened" else 0)
    assert report.layout == ("flattened" if layout == "flattened" else "standard")
    assert sink.calls[-4:] == LAST_CALLS
    assert not {"clear", "abort"} & set(sink.calls)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_what_was_written_ahead_is_of_no_use(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, paused = life()
    paused = [*paused, (1 << 40, noise(3, 4))]
    notes = note(b"CORE", 1, bytes(9000))
    sink = MemorySink(seekable=True, sparse=True)
    register(monkeypatch, sink)
    vmdump.dump(RunningGuest(running, paused, notes), sink.name, format=name)
    vmdump.dump(RunningGuest(paused, paused, notes), tmp_path / "file", format=name, pause=False)
    assert sink.calls.count("clear") == 1
    assert sink.published == (tmp_path / "file").read_bytes()


def test_standard_layout_needs_a_sink_that_takes_bytes_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MemorySink()
    register(monkeypatch, sink)
    with pytest.raises(SinkError, match="seekable"):
        vmdump.dump(make_guest(), sink.name, format="kdump-lzo", layout="standard")
    assert sink.published is None
    assert sink.calls[-2:] == ["abort", "close"]


@pytest.mark.parametrize(
    ("name", "seekable"), [("elf", False), ("kdump-lzo", False), ("elf", True), ("kdump-lzo", True)]
)
def test_every_call_fails_in_turn(name: str, seekable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = []
    for fails_at in range(1, 1000):
        sink = MemorySink(seekable=seekable, sparse=seekable, fails_at=fails_at)
        register(monkeypatch, sink)
        guest = make_guest()
        try:
            vmdump.dump(guest, sink.name, format=name)
        except SinkError as error:
            assert error.errno == errno.ENOSPC
            assert error.filename == sink.name
            assert sink.published is None
            *_, last, aborted, closed = sink.calls
            assert (aborted, closed) == ("abort", "close")
            failed.append(last)
        else:
            break
        finally:
            assert guest.let_go == guest.holds
    assert sink.published
    assert failed == sink.calls[:-1]
    assert guest.let_go == 1
    written = {"begin", "channel", "write", "flush", "set_size", "sync", "publish"}
    assert set(failed) - {"demand"} == (written | {"seek"} if seekable and name == "elf" else written)


def test_cancelled_while_the_sink_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MemorySink(stalls=True)
    register(monkeypatch, sink)
    guest = make_guest()
    job = vmdump.start_dump(guest, sink.name, format="elf")
    assert sink.stalled is not None
    assert sink.stalled.wait(60)
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(60)
    assert sink.published is None
    assert sink.calls[-2:] == ["abort", "close"]
    assert guest.let_go == guest.holds == 1


def test_set_is_taken_back_when_one_of_its_sinks_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sinks = [MemorySink(f"memory:{number}", retractable=True) for number in range(3)]
    sinks[1].fails_at = 2
    register(monkeypatch, *sinks)
    with pytest.raises(SinkError, match="publish"), SinkSet([sink.name for sink in sinks]):
        pass
    assert [sink.published for sink in sinks] == [None] * 3
    assert sinks[0].calls == ["sync", "publish", "abort", "close"]
    assert sinks[2].calls == ["sync", "abort", "close"]


def test_set_needs_sinks_that_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MemorySink()
    register(monkeypatch, sink)
    with pytest.raises(RequestError, match="split"):
        SinkSet([sink.name])
    assert sink.calls == ["abort", "close"]
