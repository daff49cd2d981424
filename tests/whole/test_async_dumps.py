"""Dumps in asyncio: the event loop runs on, and a task that is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from oracles.elf import ElfCore

import vmdump
from vmdump.errors import Cancelled, OutputExists, RequestError, SinkError

# Minutes of work, where a test ends it early.
LONG = "synthetic:32G?fill=1"
SHORT = "synthetic:16M"
PATIENCE = 60


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No thread of a dump and no descriptor outlives a test."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + PATIENCE
    # A job says that it has ended a moment before its thread has.
    while any(thread.name.startswith("vmdump") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


class SlowMemory:
    """16 pieces of 4 MiB; each but the first waits until the test lets it go."""

    copies = True
    size = 64 << 20

    def __init__(self) -> None:
        self.go = threading.Event()
        self.waiting = threading.Event()

    def extents(self) -> Iterator[tuple[int, int]]:
        return iter([(0, self.size)])

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        if offset:
            self.waiting.set()
            assert self.go.wait(PATIENCE)
        scratch[:length] = 1
        return scratch[:length]


async def heartbeat(until: asyncio.Future[object]) -> int:
    """Count the turns of the event loop."""
    beats = 0
    while not until.done():
        beats += 1
        await asyncio.sleep(0.001)
    return beats


def test_dump_async(tmp_path: Path) -> None:
    report = asyncio.run(vmdump.dump_async(SHORT, tmp_path / "out", format="elf"))
    assert report.output == str(tmp_path / "out")
    # A synthetic guest has a hole below 1 MiB.
    assert 15 << 20 < report.guest_bytes <= 16 << 20
    ElfCore(tmp_path / "out").check_vmdump_layout()


def test_event_loop_runs_on(tmp_path: Path) -> None:
    """It turns while the dump is stuck in its source."""

    async def main() -> None:
        memory = SlowMemory()
        task = asyncio.ensure_future(vmdump.dump_async([vmdump.Block(0, memory)], tmp_path / "out"))
        while not memory.waiting.is_set():
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not task.done()
        memory.go.set()
        beats, report = await asyncio.gather(heartbeat(task), task)
        assert report.guest_bytes == memory.size
        assert beats

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_several_at_once(tmp_path: Path) -> None:
    async def main() -> list[vmdump.Report]:
        names = ("elf", "kdump-zlib", "kdump-lzo", "kdump-zstd")
        return await asyncio.gather(
            *(vmdump.dump_async(SHORT, tmp_path / name, format=name) for name in names)
        )

    reports = asyncio.run(main())
    assert [report.format for report in reports] == ["elf", "kdump-zlib", "kdump-lzo", "kdump-zstd"]
    assert all(Path(report.output).stat().st_size == report.output_bytes for report in reports)


def test_await_a_job(tmp_path: Path) -> None:
    async def main() -> None:
        job = vmdump.start_dump(SHORT, tmp_path / "out")
        report = await job
        assert job.status == "completed"
        # Again, and from several tasks: it is the same report.
        assert await asyncio.gather(*(asyncio.ensure_future(waited(job)) for _ in range(3))) == [report] * 3

    async def waited(job: vmdump.DumpJob) -> vmdump.Report:
        return await job

    asyncio.run(main())


def test_progress_of_a_job(tmp_path: Path) -> None:
    async def main() -> None:
        memory = SlowMemory()
        job = vmdump.start_dump([vmdump.Block(0, memory)], tmp_path / "out", threads=1)
        seen = []
        async for moment in job:
            seen.append(moment)
            if len(seen) == 3:
                memory.go.set()
        assert len(seen) >= 4
        assert [moment.status for moment in seen[:3]] == ["active"] * 3
        assert seen[-1].status == "completed"
        assert seen[-1].done == seen[-1].total == memory.size
        assert [moment.done for moment in seen] == sorted(moment.done for moment in seen)
        assert (await job).guest_bytes == memory.size
        # A job that has ended has one moment left.
        assert [moment.status async for moment in job] == ["completed"]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_progress_that_is_left_early(tmp_path: Path) -> None:
    """Who no longer looks has not cancelled anything."""

    async def main() -> None:
        memory = SlowMemory()
        job = vmdump.start_dump([vmdump.Block(0, memory)], tmp_path / "out", threads=1)
        async for moment in job:
            assert moment.status == "active"
            break
        memory.go.set()
        assert (await job).guest_bytes == memory.size

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_task_is_cancelled(layout: str, scratch: Path) -> None:
    """When CancelledError arrives, the dump has ended, and there is no file."""

    async def main() -> None:
        task = asyncio.ensure_future(
            vmdump.dump_async(LONG, scratch / "out", format="kdump-lzo", layout=layout, threads=2)
        )
        while not any(thread.name.startswith("vmdump-job") for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("turns", range(6))
def test_task_is_cancelled_at_once(turns: int, scratch: Path) -> None:
    """While the source is being opened, too."""

    async def main() -> None:
        task = asyncio.ensure_future(vmdump.dump_async(LONG, scratch / "out", threads=2))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_task_is_cancelled_twice(scratch: Path) -> None:
    """The second one does not let it leave before the first has done its work."""

    async def main() -> None:
        memory = SlowMemory()
        job = vmdump.start_dump([vmdump.Block(0, memory)], scratch / "out", threads=1)

        async def waiting() -> None:
            await job

        task = asyncio.ensure_future(waiting())
        await asyncio.sleep(0)  # a task that has not begun ends at once when it is cancelled
        while not memory.waiting.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()  # the dump is stuck in its source
        task.cancel()
        await asyncio.sleep(0.01)
        memory.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Cancelled):
            await asyncio.to_thread(job.wait, PATIENCE)
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_timeout(scratch: Path) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await vmdump.dump_async(LONG, scratch / "out", threads=2)
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_job_that_is_cancelled(scratch: Path) -> None:
    """Its own cancel() is no CancelledError: the task goes on."""

    async def main() -> None:
        job = vmdump.start_dump(LONG, scratch / "out", threads=2)
        asyncio.get_running_loop().call_later(0.05, job.cancel)
        with pytest.raises(Cancelled):
            await job
        assert job.status == "cancelled"
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_errors_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(SinkError):
            await vmdump.dump_async(SHORT, "/dev/full")
        with pytest.raises(RequestError):
            await vmdump.dump_async(SHORT, tmp_path / "out", format="tar")
        (tmp_path / "there").write_bytes(b"precious")
        with pytest.raises(OutputExists):
            await vmdump.dump_async(SHORT, tmp_path / "there")
        assert list(tmp_path.iterdir()) == [tmp_path / "there"]

    asyncio.run(main())


def test_one_of_a_group_fails(scratch: Path) -> None:
    """The other dump is cancelled with it, and leaves no file."""

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(vmdump.dump_async(LONG, scratch / "out", threads=2))
                group.create_task(vmdump.dump_async(SHORT, "/dev/full"))
        assert [type(error) for error in caught.value.exceptions] == [SinkError]
        assert not list(scratch.iterdir())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.timeout(20)
def test_job_that_was_not_started() -> None:
    async def main() -> None:
        await vmdump.DumpJob(lambda control: pytest.fail("it was"))

    # Waiting for it would be for ever.
    with pytest.raises(RuntimeError):
        asyncio.run(asyncio.wait_for(main(), 5))
