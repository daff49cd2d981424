"""Ctrl-C, SIGTERM and readers that go away, in the middle of a dump."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vmdump
from vmdump import errors

# Minutes of work: each test below ends it within its first second.
GUEST = "synthetic:32G?fill=1"
PATIENCE = 60


@contextmanager
def running(*arguments: object, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start a dump; whatever happens, it does not outlive the test."""
    command = [sys.executable, "-m", "vmdump", "dump", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as child:  # type: ignore[call-overload]
        try:
            yield child
        finally:
            child.kill()


def wait_for_writes(child: subprocess.Popen[bytes], least: int) -> None:
    """Wait until the child has passed `least` bytes to the kernel: then the dump is under way."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()[1]
        counters = Path(f"/proc/{child.pid}/io").read_text().split()
        if int(counters[counters.index("wchar:") + 1]) >= least:
            return
        time.sleep(0.02)
    pytest.fail(f"the dump wrote less than {least} bytes in {PATIENCE} s")


def check_end(child: subprocess.Popen[bytes], code: int, *words: str) -> None:
    _, message = child.communicate(timeout=PATIENCE)
    text = message.decode()
    assert child.returncode == code, text
    assert text.startswith("vmdump: ")
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert word in text


LOADING = """
import os, signal, sys

class Finder:
    came = False

    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            if self.came:
                raise ImportError("cannot load module more than once per process")
            self.came = True
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
from vmdump.__main__ import run
run()
"""


def test_while_numpy_is_loaded(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LOADING, "dump", "synthetic:1M", tmp_path / "dump"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (143, "vmdump: ended by SIGTERM; no file is left\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("options", [("-f", "elf"), ("-f", "kdump-zlib"), ("-f", "kdump-lzo", "-j", "1"),
                                     ("-f", "kdump-lzo", "--layout", "flattened")])  # fmt: skip
def test_signal_while_a_file_is_written(
    number: int, code: int, options: tuple[str, ...], scratch: Path
) -> None:
    with running(GUEST, scratch / "out", *options) as child:
        wait_for_writes(child, 1 << 20)
        child.send_signal(number)
        check_end(child, code)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["elf", "kdump-snappy"])
def test_signal_while_the_reader_stalls(number: int, code: int, name: str) -> None:
    """Nobody reads the pipe: the dump is stuck in a write, and still it ends."""
    with running(GUEST, "-", "-f", name, stdout=subprocess.PIPE) as child:
        wait_for_writes(child, 1 << 12)
        time.sleep(0.3)
        child.send_signal(number)
        child.wait(timeout=PATIENCE)
        assert child.stderr is not None
        message = child.stderr.read().decode()
    assert child.returncode == code, message
    assert len(message.splitlines()) == 1


def test_second_signal_is_no_traceback(scratch: Path) -> None:
    with running(GUEST, scratch / "out", "-f", "kdump-zlib") as child:
        wait_for_writes(child, 1 << 20)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        _, message = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert b"Traceback" not in message
    assert not list(scratch.iterdir())


def test_sigkill_leaves_nothing(scratch: Path) -> None:
    """A file without a name needs nobody to remove it."""
    if not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    try:
        os.close(os.open(scratch, os.O_TMPFILE | os.O_RDWR))
    except OSError as error:
        pytest.skip(f"the file system of {scratch} has no files without a name: {error}")
    with running(GUEST, scratch / "out") as child:
        wait_for_writes(child, 1 << 20)
        child.kill()
        child.communicate()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-zstd"])
@pytest.mark.parametrize("taken", [0, 1, 4096, 1 << 20])
def test_reader_that_closes_the_pipe(name: str, taken: int) -> None:
    with running(GUEST, "-", "-f", name, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert len(child.stdout.read(taken)) == taken
        child.stdout.close()
        child.stdout = None
        check_end(child, errors.SinkError.exit_code, os.strerror(errno.EPIPE))


def test_fifo_whose_reader_goes_away(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with running(GUEST, fifo) as child:
        with fifo.open("rb") as stream:
            assert stream.read(13) == b"makedumpfile\0"
        check_end(child, errors.SinkError.exit_code, str(fifo), os.strerror(errno.EPIPE))
    assert list(tmp_path.iterdir()) == [fifo]


def test_cancelled_job(scratch: Path) -> None:
    """The Python side of Ctrl-C: status, error class, and nothing left."""
    job = vmdump.start_dump(GUEST, scratch / "out", format="kdump-lzo")
    for progress in job.progress(interval=0.01):
        assert progress.status in ("none", "active", "cancelled")
        assert 0 <= progress.done <= progress.total
        if progress.done:
            job.cancel()
    with pytest.raises(errors.Cancelled):
        job.wait(timeout=PATIENCE)
    assert job.status == "cancelled"
    assert not list(scratch.iterdir())


def test_job_that_is_left_alone(tmp_path: Path) -> None:
    with vmdump.start_dump("synthetic:16M", tmp_path / "out") as job:
        seen = list(job.progress(interval=0.01))
        report = job.wait(timeout=PATIENCE)
    assert job.status == "completed"
    assert report is not None
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total == job.total
    assert seen[-1].status == "completed"


def test_job_that_fails(tmp_path: Path) -> None:
    job = vmdump.start_dump("synthetic:16M", "/dev/full")
    with pytest.raises(errors.SinkError) as caught:
        job.wait(timeout=PATIENCE)
    assert caught.value.errno == errno.ENOSPC
    assert job.status == "failed"


def test_leaving_the_with_block_by_an_error_cancels(scratch: Path) -> None:
    with pytest.raises(KeyError), vmdump.start_dump(GUEST, scratch / "out") as job:
        raise KeyError("the caller's own")
    assert job.status == "cancelled"
    assert not list(scratch.iterdir())
