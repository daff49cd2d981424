"""The limit: the same engine over the same pages in a bare threaded loop, with the output thrown away.

As a program it answers requests, one JSON object a line: its pages stay in a process of their own. `Limits`
is the other end. The limit of an ELF file, which has no codec, is writing the pages that are not zero to
the disk.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from measure import ROOT, Failed, Sample, clear
from numpy.typing import NDArray

import vmdump
from vmdump.codecs.registry import find_engine, make_packer

CHUNK = 4 << 20
PAGE = 4096
SPARE = 1 << 30
"""Bytes of memory that copying a guest must leave free."""

Chunk = NDArray[np.uint8]


class Limits:
    """A process with a copy of a guest's pages; a context manager."""

    def __enter__(self) -> Limits:
        words = [sys.executable, __file__]
        # A session of its own: Ctrl-C is for the benchmark, which ends this process.
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(
            self._process.stdout.readline() or '{"error": "the limit has died"}'
        )
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def load(self, source: str) -> None:
        """Copy a guest's pages without its holes; they replace the ones before."""
        self._ask(load=source)

    def pack(self, codec: str, threads: int) -> Sample:
        """Pack all pages by the codec's default engine."""
        return Sample(**self._ask(pack=codec, threads=threads))

    def write(self, path: Path, threads: int) -> Sample:
        """Write all pages that are not zero to a file, and sync it."""
        clear(path)
        return Sample(**self._ask(write=str(path), threads=threads))


class Pages:
    """The server's side: a guest's pages in memory."""

    def __init__(self) -> None:
        self._all: list[Chunk] = []
        self._filled: list[Chunk] | None = None

    def load(self, source: str) -> None:
        self._all, self._filled = [], None
        with vmdump.open_source(source) as guest:
            runs = [(block.memory, run) for block in guest.blocks for run in block.memory.extents()]
            pages = anonymous(sum(end - begin for _, (begin, end) in runs))
            done = 0
            for memory, (begin, end) in runs:
                for offset in range(begin, end, CHUNK):
                    length = min(CHUNK, end - offset)
                    place = pages[done : done + length]
                    seen = memory.view(offset, length, place)
                    if memory.copies is False:
                        place[:] = seen
                    done += length
        self._all = chunks_of(pages)

    def pack(self, codec: str, threads: int) -> dict[str, Any]:
        engine = find_engine(codec, None)
        packers = [make_packer(engine, PAGE) for _ in range(threads)]
        outs = [np.empty(packer.bound(CHUNK // PAGE), np.uint8) for packer in packers]
        sizes = np.empty((threads, CHUNK // PAGE), np.uint32)

        def work(number: int, chunk: Chunk) -> None:
            packers[number].pack(chunk, outs[number], sizes[number, : chunk.size // PAGE])

        told = in_threads(self._all, threads, work)
        return {**told, "engine": f"{engine.name} {packers[0].level}"}

    def write(self, path: str, threads: int) -> dict[str, Any]:
        if self._filled is None:
            self._filled = chunks_of(without_zero_pages(self._all))
        offsets = {id(chunk): number * CHUNK for number, chunk in enumerate(self._filled)}
        began = time.perf_counter()
        fd = open_direct(path)
        try:
            os.ftruncate(fd, sum(chunk.size for chunk in self._filled))
            told = in_threads(
                self._filled, threads, lambda number, chunk: write_whole(fd, chunk, offsets[id(chunk)])
            )
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return {**told, "seconds": time.perf_counter() - began}


def anonymous(size: int) -> Chunk:
    """Memory of its own, page aligned as O_DIRECT demands."""
    demand_memory(size)
    memory = mmap.mmap(-1, max(size, PAGE))
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]


def demand_memory(size: int) -> None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and int(rest.split()[0]) * 1024 < size + SPARE:
            raise Failed(f"not enough memory for a copy of the guest, {size / 1e9:.1f} GB")


def chunks_of(pages: Chunk) -> list[Chunk]:
    return [pages[offset : offset + CHUNK] for offset in range(0, pages.size, CHUNK)]


def without_zero_pages(chunks: Sequence[Chunk]) -> Chunk:
    def filled(chunk: Chunk) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = chunk.view(np.uint64).reshape(-1, PAGE // 8).max(axis=1) != 0
        return found

    masks = [filled(chunk) for chunk in chunks]
    out = anonymous(sum(int(mask.sum()) for mask in masks) * PAGE)
    done = 0
    for chunk, mask in zip(chunks, masks, strict=True):
        some = chunk.reshape(-1, PAGE)[mask].reshape(-1)
        out[done : done + some.size] = some
        done += some.size
    return out


def open_direct(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:
        Path(path).unlink(missing_ok=True)
        return os.open(path, flags, 0o600)  # a file system without O_DIRECT


def write_whole(fd: int, chunk: Chunk, offset: int) -> None:
    done = 0
    while done < chunk.size:
        done += os.pwrite(fd, chunk[done:].data, offset + done)


def in_threads(chunks: Sequence[Chunk], threads: int, work: Callable[[int, Chunk], None]) -> dict[str, Any]:
    """Have threads take one chunk after the other; seconds of wall and CPU time."""
    waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        waiting.put(chunk)
    wrong: list[BaseException] = []

    def run(number: int) -> None:
        try:
            while True:
                work(number, waiting.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    cpu, began = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if wrong:
        raise wrong[0]
    return {"seconds": seconds, "cpu_seconds": cpu, "data_bytes": sum(chunk.size for chunk in chunks)}


def serve() -> None:
    pages = Pages()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "load" in request:
                pages.load(request["load"])
            elif "pack" in request:
                answer = pages.pack(request["pack"], request["threads"])
            else:
                answer = pages.write(request["write"], request["threads"])
        except Exception as error:
            answer = {"error": f"{error}" or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
