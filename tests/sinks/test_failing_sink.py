"""A sink that fails at every byte and at every call in turn: an error, never a hang, never a file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.limits import file_size_limit
from oracles.elf_builder import note

import vmdump
from vmdump import errors
from vmdump.sinks import file as file_sinks
from vmdump.writers import descriptors

FORMATS = [
    ("elf", "auto"),
    ("kdump-zlib", "standard"),
    ("kdump-zlib", "flattened"),
    ("kdump-lzo", "standard"),
    ("kdump-zstd", "flattened"),
]
PAGE = 4096


def make_guest() -> vmdump.BlockSource:
    """Give a guest whose dump has every area and more than one cache of data: 12 MiB, half of it noise."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, 6 << 20, np.uint8)
    text = np.frombuffer((b"a sink that fails " * 400000)[: 6 << 20], np.uint8)
    notes = note(b"CORE", 1, bytes(336))
    return vmdump.BlockSource([(0, noise), (1 << 24, text)], notes=notes, vmcoreinfo=b"OSRELEASE=6.1.0\n")


def dump(output: Path | str, name: str, layout: str) -> None:
    vmdump.dump(make_guest(), output, format=name, layout=layout, threads=2)


def failure_of_dump(output: Path, name: str, layout: str) -> errors.SinkError | None:
    try:
        dump(output, name, layout)
    except errors.SinkError as error:
        return error
    return None


def stopping_points(size: int) -> list[int]:
    """Give every border of the first pages, both sides of it, and 24 places over the rest of the file."""
    borders = [page * PAGE + side for page in range(7) for side in (-1, 0, 1)]
    spread = np.linspace(7 * PAGE, size - 1, 24, dtype=np.int64).tolist()
    return sorted({point for point in [*borders, *spread] if 0 <= point < size})


@pytest.mark.parametrize(("name", "layout"), FORMATS)
def test_file_that_cannot_grow(name: str, layout: str, tmp_path: Path) -> None:
    dump(tmp_path / "whole", name, layout)
    size = (tmp_path / "whole").stat().st_size
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    for limit in stopping_points(size):
        with file_size_limit(limit), pytest.raises(errors.SinkError) as caught:
            dump(tmp_path / "out", name, layout)
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename == str(tmp_path / "out")
        assert os.strerror(errno.EFBIG) in str(caught.value)
        assert not list(tmp_path.iterdir()), f"limit {limit} left a file"
    with file_size_limit(size):
        dump(tmp_path / "out", name, layout)
    assert (tmp_path / "out").read_bytes() == whole


@pytest.mark.parametrize(("name", "layout"), [one for one in FORMATS if one[1] != "standard"])
def test_pipe_whose_reader_stops(name: str, layout: str, tmp_path: Path) -> None:
    dump(tmp_path / "whole", name, layout)
    size = (tmp_path / "whole").stat().st_size
    # What a pipe buffers beyond the reader's last byte would let the dump succeed.
    for taken in [point for point in stopping_points(size) if point < size - (1 << 17)]:
        reader, writer = os.pipe()

        def take(reader: int = reader, left: int = taken) -> None:
            while left and (piece := os.read(reader, min(left, 1 << 16))):
                left -= len(piece)
            os.close(reader)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            with pytest.raises(errors.SinkError) as caught:
                dump(f"fd:{writer}", name, layout)
        finally:
            os.close(writer)
            thread.join()
        assert caught.value.errno == errno.EPIPE


class CountdownCache:
    """The write cache, but call number `fails_at` raises; later calls would be a write after a failure."""

    fails_at = 0
    calls = 0
    code = errno.EIO
    real = file_sinks.WriteCache

    def __init__(self, *arguments: object, **options: object) -> None:
        self._cache = type(self).real(*arguments, **options)  # type: ignore[arg-type]

    def _count(self) -> None:
        cls = type(self)
        cls.calls += 1
        assert cls.calls <= cls.fails_at, "the sink was used after it had failed"
        if cls.calls == cls.fails_at:
            raise OSError(cls.code, os.strerror(cls.code))

    def write(self, *arguments: object, **options: object) -> None:
        self._count()
        self._cache.write(*arguments, **options)  # type: ignore[arg-type]

    def seek(self, *arguments: object, **options: object) -> None:
        self._count()
        self._cache.seek(*arguments, **options)  # type: ignore[arg-type]

    def flush(self, *arguments: object, **options: object) -> None:
        self._count()
        self._cache.flush(*arguments, **options)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._cache, name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("name", "layout"), FORMATS)
def test_every_call_of_the_sink_fails_in_turn(
    name: str, layout: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sinks, "WriteCache", CountdownCache)
    monkeypatch.setattr(CountdownCache, "code", code)
    for fails_at in range(1, 1000):
        CountdownCache.calls, CountdownCache.fails_at = 0, fails_at
        error = failure_of_dump(tmp_path / "out", name, layout)
        if error is None:
            break
        assert error.errno == code
        assert os.strerror(code) in str(error)
        assert not list(tmp_path.iterdir()), f"call {fails_at} left a file"
    assert fails_at > 3, "the sink was hardly used: nothing was tested"
    assert CountdownCache.calls == fails_at - 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_table_that_does_not_fit_into_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flattened layout keeps page sizes aside until the end; no room for them is a SinkError."""
    monkeypatch.setattr(descriptors, "_SPOOL_IN_MEMORY", 1024)
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 1 << 16), b"")])
    thread.start()
    try:
        # A limit on file sizes hits the table's temporary file, and not the pipe.
        with file_size_limit(4096), pytest.raises(errors.SinkError) as caught:
            dump(f"fd:{writer}", "kdump-lzo", "flattened")
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    "words",
    [
        ("info", "dump"),
        ("info", "dump", "--json"),
        ("read", "dump", "0", "64", "--hex"),
        ("bench", "raw:ram"),
        ("capabilities",),
        ("dump", "raw:ram", "out", "--json"),
    ],
    ids=" ".join,
)
def test_standard_output_is_full(words: tuple[str, ...], tmp_path: Path, run_vmdump: RunVmdump) -> None:
    (tmp_path / "ram").write_bytes(b"sheep" * 4096 + bytes(3 * 4096))
    vmdump.dump(f"raw:{tmp_path / 'ram'}", tmp_path / "dump")
    with open("/dev/full", "wb") as full:
        done = run_vmdump(*words, stdout=full, cwd=tmp_path)
    assert done.returncode == errors.SinkError.exit_code, done.stderr
    assert done.stderr == b"vmdump: standard output: cannot print: No space left on device\n"


def test_standard_error_is_full(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    """What was done counts, whether or not anybody can be told of it."""
    vmdump.dump(make_guest(), tmp_path / "dump")
    with open("/dev/full", "wb") as full:
        for words, code in (
            (("repair", tmp_path / "dump", tmp_path / "out"), 0),
            (("repair", tmp_path / "dump", tmp_path / "out"), errors.OutputExists.exit_code),
            (("--debug", "info", tmp_path / "nothing"), errors.SourceError.exit_code),
            (("info", "--nothing"), errors.RequestError.exit_code),
        ):
            assert run_vmdump(*words, stderr=full).returncode == code
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = run_vmdump("repair", tmp_path / "dump", tmp_path / "out", "--force", stderr=pipe)
    assert done.returncode == 0
    assert not vmdump.verify(tmp_path / "out").damaged


def test_terminal_that_goes_away(tmp_path: Path) -> None:
    """Its progress bar is written from time to time, and at the end."""
    main, side = os.openpty()
    words = ["dump", "synthetic:128M?seed=1&fill=0.5", str(tmp_path / "out"), "-f", "elf"]
    process = subprocess.Popen([sys.executable, "-m", "vmdump", *words], stderr=side)
    os.close(side)
    shown = b""
    while b"out" not in shown:
        shown += os.read(main, 4096)
    os.close(main)
    assert process.wait(60) == 0
    assert not vmdump.verify(tmp_path / "out").damaged
