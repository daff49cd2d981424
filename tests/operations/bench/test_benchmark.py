"""Which compression: the sample is fair, the ratios are other libraries' too, and the forecast comes true."""

from __future__ import annotations

import errno
import json
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lzo
import numpy as np
import pytest
import snappy
import zstandard
from helpers.fragments import Fragments
from hypothesis import given
from hypothesis import strategies as st
from zlib_ng import zlib_ng

import vmdump
from vmdump import errors
from vmdump.codecs.registry import Engine, engines
from vmdump.operations.bench import bench as benchmark
from vmdump.operations.bench import disk, trial
from vmdump.operations.bench.bench import Benchmark, efficient
from vmdump.operations.bench.disk import DiskSpeed

PAGE = 4096
COUNT = 96
"""Pages of the small guest: few enough for the slowest engine to see all, so that nothing is estimated."""
MIXED = "synthetic:64M?seed=3&fill=0.5"

JUDGES: dict[str, Callable[[bytes, int], bytes]] = {
    "zlib": zlib.compress,
    "zlib-ng": zlib_ng.compress,
    "lzo2": lambda page, level: lzo.compress(page, 1, False),
    "python-lzo": lambda page, level: lzo.compress(page, 1, False),
    "snappy": lambda page, level: snappy.compress(page),
    "python-snappy": lambda page, level: snappy.compress(page),
    "zstd": lambda page, level: zstandard.ZstdCompressor(level=level, write_content_size=True).compress(page),
}


def small_pages() -> np.ndarray:
    """Zeros, text, noise and pointers by turns: (COUNT, 4096) uint8."""
    rng = np.random.default_rng(7)
    pages = np.zeros((COUNT, PAGE), np.uint8)
    text = b"".join(b"%d green bottles standing on the wall\n" % n for n in range(40000))
    for number in range(COUNT):
        kind = number % 4
        if kind == 1:
            pages[number] = np.frombuffer(text, np.uint8, PAGE, number * 997)
        elif kind == 2:
            pages[number] = rng.integers(0, 256, PAGE)
        elif kind == 3:
            pages[number] = (rng.integers(0, 1 << 14, PAGE // 8, dtype=np.uint64) << np.uint64(6)).view(
                np.uint8
            )
    return pages


@pytest.fixture(autouse=True)
def _small_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 4 MiB instead of 256: what the disk does is not judged here."""
    monkeypatch.setattr(disk, "_SIZE", 4 << 20)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "small.raw"
    path.write_bytes(small_pages().tobytes())
    return f"raw:{path}"


@pytest.fixture(scope="module")
def found(small: str, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("folder")
    result = vmdump.bench(small, to=folder, threads=2)
    assert not list(folder.iterdir())
    return result


def usable() -> list[Engine]:
    return [engine for engine in engines() if not engine.missing]


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave only some engines, and one level of each."""
    left = tuple(
        engine._replace(min_level=engine.default_level, max_level=engine.default_level)
        for engine in usable()
        if engine.name in names
    )
    monkeypatch.setattr(benchmark, "engines", lambda: left)


# ---- the result ----


def test_every_engine_and_level_is_there(found: Benchmark) -> None:
    expected = {
        (engine.codec, engine.name, level)
        for engine in usable()
        for level in range(engine.min_level, engine.max_level + 1)
    }
    rows = [(each.codec, each.engine, each.level) for each in found.candidates]
    assert len(rows) == len(set(rows)) == len(expected) + 1
    assert set(rows) == expected | {("", "", None)}
    assert found.missing == {engine.name: engine.missing for engine in engines() if engine.missing}


def test_defaults_are_what_a_dump_takes(found: Benchmark, small: str, tmp_path: Path) -> None:
    for each in found.candidates:
        if each.default:
            report = vmdump.dump(small, tmp_path / each.format, format=each.format)
            assert (report.engine, report.level) == (each.engine, each.level if each.level_matters else None)
    assert {each.format for each in found.candidates if each.default} == {
        each.format for each in found.candidates
    }


@pytest.mark.parametrize("engine", JUDGES)
def test_ratios_are_those_of_other_peoples_libraries(engine: str, found: Benchmark) -> None:
    rows = [each for each in found.candidates if each.engine == engine]
    if not rows:
        pytest.skip(f"{engine} is not in this build")
    pages = [page.tobytes() for page in small_pages() if page.any()]
    for each in rows:
        assert each.pages == len(pages)
        packed = sum(min(len(JUDGES[engine](page, each.level or 0)), PAGE) for page in pages)
        # Another version of the same library packs a little otherwise.
        assert each.ratio == pytest.approx(packed / (len(pages) * PAGE), rel=0.02)


def test_numbers_of_the_guest(found: Benchmark) -> None:
    assert found.guest_bytes == found.data_bytes == found.sample_bytes == COUNT * PAGE
    assert found.page_size == PAGE
    assert found.zero_share == 0.25
    assert found.threads == 2
    assert found.scan_speed > 0
    assert found.disk.slowest <= found.disk.bytes_per_second <= found.disk.fastest
    for each in found.candidates:
        assert each.slowest <= each.speed <= each.fastest
        assert (each.speed == 0) == (each.engine == "")
        assert 0 < each.ratio <= 1


@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_forecast_of_a_guest_that_is_all_in_the_sample(
    layout: str, found: Benchmark, small: str, tmp_path: Path
) -> None:
    """Then nothing is left to chance: a standard kdump file has exactly as many bytes as were foretold."""
    for number, each in enumerate(found.candidates):
        if each.codec and (layout == "standard" or each.default):
            report = vmdump.dump(
                small,
                tmp_path / str(number),
                format=each.format,
                engine=each.engine,
                level=each.level,
                layout=layout,
            )
            if layout == "standard":
                assert report.output_bytes == each.output_bytes
            else:
                assert report.output_bytes == pytest.approx(each.output_bytes, rel=0.03)


def test_forecast_of_a_larger_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the data is looked at; the size of each kdump file is foretold to within 5 %."""
    few(monkeypatch, "isal", "libdeflate", "zlib-ng", "lzo2", "snappy", "zstd")
    guest = "synthetic:128M?seed=5&fill=0.5"
    result = vmdump.bench(guest, to=tmp_path, sample=32 << 20)
    assert result.sample_bytes == 32 << 20
    for each in result.candidates:
        options: dict[str, Any] = {"engine": each.engine, "level": each.level} if each.engine else {}
        report = vmdump.dump(guest, tmp_path / "dump", format=each.format, force=True, **options)
        if each.codec:
            assert report.output_bytes == pytest.approx(each.output_bytes, rel=0.05)
        else:
            # Short runs of zero pages are written with the others.
            allocated = (tmp_path / "dump").stat().st_blocks * 512
            assert each.output_bytes * 0.95 <= allocated <= result.data_bytes + (1 << 20)


@pytest.mark.parametrize(
    ("rate", "limit", "processors", "at_once"),
    [(1e3, "disk", 4, 3), (1e18, "processor", 4, 3), (1e18, "processor", 2, 2)],
)
def test_what_limits(
    rate: float, limit: str, processors: int, at_once: int, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than processors make no dump faster."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    few(monkeypatch, "libdeflate", "zlib-ng", "python-lzo", "zstd")
    monkeypatch.setattr(
        benchmark,
        "measure_disk",
        lambda folder, **_: DiskSpeed(str(folder), rate, rate, rate, 0.0, 1, 1 << 40),
    )
    result = vmdump.bench(small, threads=3)
    assert {each.limited_by for each in result.candidates} == {limit}
    assert [each.seconds for each in result.candidates] == sorted(each.seconds for each in result.candidates)
    assert result.fastest == result.candidates[0]
    assert result.smallest.output_bytes == min(each.output_bytes for each in result.candidates)
    if limit == "disk":
        assert result.fastest == result.smallest == result.smallest_at_disk_speed
        for each in result.candidates:
            assert each.seconds == pytest.approx(each.output_bytes / rate, rel=1e-3)
    else:
        assert result.smallest_at_disk_speed is None
        assert result.fastest.format == "elf"
        for each in result.candidates[1:]:
            # 72 pages are not zero; scanning them comes to that.
            packing = COUNT * 3 // 4 * PAGE / each.speed
            scanning = COUNT * PAGE / result.scan_speed
            assert each.seconds == pytest.approx((packing + scanning) / at_once)


def test_options_say_what_to_type(found: Benchmark) -> None:
    names = {each.options for each in found.candidates}
    assert len(names) == len(found.candidates)
    for each in found.candidates:
        assert each.options.startswith(f"-f {each.format}")
        assert ("--engine" in each.options) == (not each.default)
        assert ("--level" in each.options) == (not each.default and each.level_matters)


def test_result_is_json(found: Benchmark) -> None:
    result = json.loads(json.dumps(found.as_dict()))
    assert len(result["candidates"]) == len(found.candidates)
    for each, row in zip(found.candidates, result["candidates"], strict=True):
        assert {"format", "engine", "level", "speed", "ratio", "output_bytes", "seconds"} <= row.keys()
        assert row["output_bytes"] == each.output_bytes
    assert result["fastest"] == found.fastest.options
    assert result["disk"]["bytes_per_second"] > 0


def test_buffers_and_open_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng")
    pages = small_pages()
    from_buffer = vmdump.bench(pages, to=tmp_path)
    with vmdump.BlockSource([(0x10000, pages)]) as guest:
        from_source = vmdump.bench(guest, to=tmp_path)
        assert guest.read(0x10000, PAGE) == pages[0].tobytes()
    ratios = [{each.options: each.ratio for each in found.candidates} for found in (from_buffer, from_source)]
    assert ratios[0] == ratios[1]
    assert from_source.source == "BlockSource"
    assert vmdump.bench([(0, pages)], to=tmp_path).source == "list"


def test_name_of_a_split_set(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng")
    vmdump.convert(small, tmp_path / "set", format="kdump-lzo", split=2)
    parts = str(tmp_path / "set.1"), tmp_path / "set.2"
    assert vmdump.bench(parts, to=tmp_path).source == f"{parts[0]} {parts[1]}"


# ---- what is efficient ----

_points = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30)


@given(_points)
def test_efficient_ones_are_those_that_nobody_beats(points: list[tuple[int, int]]) -> None:
    flags = efficient(points)
    assert any(flags)
    for (speed, ratio), flag in zip(points, flags, strict=True):
        beaten = [
            (other_speed, other_ratio)
            for other_speed, other_ratio in points
            if (other_speed >= speed and other_ratio < ratio)
            or (other_speed > speed and other_ratio <= ratio)
        ]
        assert flag == (not beaten)


def test_efficient_flags_of_a_result(found: Benchmark) -> None:
    rows = [each for each in found.candidates if each.codec]
    assert [each.efficient for each in rows] == efficient([(each.speed, each.ratio) for each in rows])
    assert not any(each.efficient for each in found.candidates if not each.codec)


# ---- the sample ----


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng")
    content = np.concatenate([small_pages(), np.zeros((4000, PAGE), np.uint8), small_pages()]).reshape(-1)
    memory = Fragments(content, [(0, COUNT * PAGE), (content.size - COUNT * PAGE, content.size)])
    result = vmdump.bench([(0, memory)], to=tmp_path, sample=1 << 30)
    assert result.data_bytes == result.sample_bytes == 2 * COUNT * PAGE
    # For the sample, for the speed of reading, and for what an engine is trained on.
    assert memory.bytes_read <= 3 * 2 * COUNT * PAGE


def test_pages_of_64_kib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng", "libdeflate", "python-snappy")
    pages = np.repeat(small_pages()[1:4], 64, axis=0).reshape(-1)
    with vmdump.BlockSource([(0, pages)], arch="aarch64", page_size=65536) as guest:
        result = vmdump.bench(guest, to=tmp_path)
    assert result.page_size == 65536
    assert result.sample_bytes == pages.size
    assert {each.pages for each in result.candidates if each.codec} == {pages.size // 65536}


class RunningGuest(vmdump.BlockSource):
    """Tells what was done with it."""

    asked: list[bool]
    inside = False

    @contextmanager
    def held(self, *, pause: bool, **_: object) -> Iterator[vmdump.Source]:  # type: ignore[override]
        self.asked.append(pause)
        self.inside = True
        yield self
        self.inside = False


def test_a_live_guest_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not stopped, and it is let go of before anything is timed."""
    few(monkeypatch, "zlib-ng")
    guest = RunningGuest([(0, small_pages())])
    guest.asked = []
    measure, inside = benchmark.measure_disk, []

    def spy(*arguments: Any, **options: Any) -> DiskSpeed:
        inside.append(guest.inside)
        return measure(*arguments, **options)

    monkeypatch.setattr(benchmark, "measure_disk", spy)
    vmdump.bench(guest, to=tmp_path)
    assert guest.asked == [False]
    assert inside == [False]


# ---- ratios from parts of the sample ----


def test_ratio_of_a_part_is_scaled_by_who_saw_all() -> None:
    full = np.array([1000, 1000, 3000, 3000], np.uint32)
    part = np.array([900, 900, 0, 0], np.uint32)
    weak = np.array([2000, 2000, 4000, 4000], np.uint32)
    ratios = trial.estimate_ratios([weak, full, part], [4, 4, 2], 4000)
    # The first two pages pack twice as well as all four: 900/4000 of them stands for 1800/4000 of all.
    assert ratios == pytest.approx([0.75, 0.5, 0.45])


def test_ratio_is_never_above_one() -> None:
    full = np.array([100, 4000], np.uint32)
    plain = np.array([4000, 0], np.uint32)
    assert trial.estimate_ratios([full, plain], [2, 1], 4000)[1] == 1


def test_slow_engines_see_a_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without time each round is its least: 128 KiB; the ratio is still that of all pages, nearly."""
    few(monkeypatch, "zlib-ng", "libdeflate")
    whole = {each.engine: each for each in vmdump.bench(MIXED, to=tmp_path, sample=16 << 20).candidates}
    monkeypatch.setattr(trial, "_BUDGET", 0.0)
    part = {each.engine: each for each in vmdump.bench(MIXED, to=tmp_path, sample=16 << 20).candidates}
    assert {each.pages for each in part.values() if each.engine} == {3 * 32}
    for name in ("zlib-ng", "libdeflate"):
        if name in whole:
            assert whole[name].pages > 100 * 3
            # The one relative to the other; neither saw all.
            others = part[name].ratio / part["zlib-ng"].ratio
            assert others == pytest.approx(whole[name].ratio / whole["zlib-ng"].ratio, rel=0.05)


# ---- errors ----


@pytest.mark.parametrize(("folder", "code"), [("missing", errno.ENOENT), ("file", errno.ENOTDIR)])
def test_folders_that_are_none(folder: str, code: int, small: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.SinkError) as caught:
        vmdump.bench(small, to=tmp_path / folder)
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / folder)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_that_takes_no_file(small: str) -> None:
    with pytest.raises(errors.SinkError) as caught:
        vmdump.bench(small, to="/proc/self")
    assert caught.value.errno
    assert str(caught.value).startswith("/proc/self: ")


def test_disk_that_takes_no_byte(small: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(errors.SinkError) as caught:
            vmdump.bench(small, to=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_little_room_is_little_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng")
    room = os.statvfs(tmp_path)
    little = os.statvfs_result((*room[:4], (5 << 20) // room.f_frsize, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    result = vmdump.bench(small_pages(), to=tmp_path)
    assert 0 < result.disk.bytes_written <= (5 << 20) // 10
    assert result.disk.room == little.f_bavail * little.f_frsize
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extents", ["all", "none"])
def test_guest_of_zeros(extents: str, tmp_path: Path) -> None:
    content = np.zeros(1 << 20, np.uint8)
    memory = Fragments(content, [(0, content.size)] if extents == "all" else [])
    with pytest.raises(errors.SourceError, match="nothing to compress"):
        vmdump.bench([(0, memory)], to=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 0), ("threads", -1), ("threads", 1025), ("sample", 0), ("sample", -1)]
)
def test_numbers_that_make_no_sense(name: str, value: int, small: str) -> None:
    with pytest.raises(errors.RequestError, match=name) as caught:
        vmdump.bench(small, **{name: value})
    assert caught.value.parameter == name


@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_interrupted(at: int, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes before the disk, while it is tried, and after it: no file is left, and no guest open."""
    few(monkeypatch, "zlib-ng")
    before = len(os.listdir("/proc/self/fd"))

    def interrupt(done: int, total: int) -> None:
        assert done <= total
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vmdump.bench(small, to=tmp_path, progress=interrupt)
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


def test_progress_ends_at_its_total(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng", "python-lzo")
    moments: list[tuple[int, int]] = []
    vmdump.bench(small, to=tmp_path, progress=lambda done, total: moments.append((done, total)))
    assert moments[-1][0] == moments[-1][1]
    assert [done for done, _ in moments] == list(range(len(moments)))


def test_engine_that_packs_another_page(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng")
    make = trial.make_packer

    class Liar:
        def __init__(self, *arguments: Any) -> None:
            self._packer = make(*arguments)

        def bound(self, page_count: int) -> int:
            return self._packer.bound(page_count)

        def pack(self, mem: np.ndarray, out: np.ndarray, sizes: np.ndarray) -> int:
            changed = mem.copy()
            changed[-1] ^= 1
            return self._packer.pack(changed, out, sizes)

    monkeypatch.setattr(trial, "make_packer", Liar)
    with pytest.raises(errors.CodecError, match="unpacks another page") as caught:
        vmdump.bench(small, to=tmp_path)
    assert caught.value.engine == "zlib-ng"


def test_missing_engines_are_listed(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "zlib-ng", "python-lzo")
    left = benchmark.engines()
    gone = left[1]._replace(missing="not built: for this test")
    monkeypatch.setattr(benchmark, "engines", lambda: (left[0], gone))
    result = vmdump.bench(small, to=tmp_path)
    assert result.missing == {gone.name: "not built: for this test"}
    assert {each.engine for each in result.candidates} == {"", left[0].name}
