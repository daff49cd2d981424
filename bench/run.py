"""Whole-process benchmark: ``vmdump dump`` of a synthetic guest against a bare loop over the same pages.

The bare loop is the limit: as many threads, each calling the same engine on the same pages that lie in
memory already, nothing written. Rounds alternate between the two, because the machine's speed drifts.
Prints a table and writes JSON; the dump of every first round is compared with the guest.

    python bench/run.py --size 1G --fill 0.5 --threads 2 --rounds 5 --json bench/results/run.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import vmdump
from vmdump.compare import compare
from vmdump.kernels.engines import find_engine, make_packer
from vmdump.units import format_size

CHUNK = 4 << 20
FORMATS = ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@cache
def chunks_in_memory(source: str) -> list[np.ndarray]:
    """Read the guest's data, holes left out, into memory, once."""
    chunks = []
    with vmdump.open_source(source) as guest:
        for block in guest.blocks:
            for begin, end in block.memory.extents():
                for offset in range(begin, end, CHUNK):
                    length = min(CHUNK, end - offset)
                    chunks.append(block.memory.view(offset, length, np.empty(length, np.uint8)).copy())
    return chunks


def bare_loop(source: str, codec: str, threads: int, page_size: int = 4096) -> float:
    """Pack all chunks in threads and throw the result away; give the seconds."""
    chunks = chunks_in_memory(source)
    engine = find_engine(codec, None)

    def work(mine: list[np.ndarray]) -> None:
        packer = make_packer(engine, page_size)
        out = np.empty(packer.bound(CHUNK // page_size), np.uint8)
        sizes = np.empty(CHUNK // page_size, np.uint32)
        for chunk in mine:
            packer.pack(chunk, out, sizes[: chunk.size // page_size])

    workers = [threading.Thread(target=work, args=(chunks[index::threads],)) for index in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def dump_process(source: str, path: str, name: str, threads: int) -> dict[str, Any]:
    """Run the command; give its own report, the seconds of the whole process, its CPU seconds and memory."""
    words = ["-m", "vmdump", "dump", source, path, "-f", name, "-j", str(threads), "--force", "--json"]
    before = os.times()
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"vmdump dump failed with {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(text), "process_seconds": seconds, "cpu_seconds": cpu, "peak_kib": usage.ru_maxrss}


def verify(source: str, path: str) -> None:
    with vmdump.open_source(source) as guest, vmdump.open(path) as dump:
        if not compare(guest, dump, threads=2).equal:
            raise SystemExit(f"{path} does not hold the guest")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    source = f"synthetic:{arguments.size}?seed={arguments.seed}&fill={arguments.fill}"
    rows = []
    # The guest's pages stay in a process of their own: a child inherits its parent's peak memory.
    with (
        tempfile.TemporaryDirectory(prefix="vmdump-bench-", dir=arguments.folder) as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as aside,
    ):
        path = os.path.join(folder, "dump")
        for name in arguments.formats:
            codec = name.partition("-")[2]
            dumps, limits = [], []
            for turn in range(arguments.rounds):
                dumps.append(dump_process(source, path, name, arguments.threads))
                if turn == 0:
                    verify(source, path)
                if codec:
                    limits.append(aside.submit(bare_loop, source, codec, arguments.threads).result())
            row = {
                "format": name,
                "engine": dumps[0]["engine"],
                "guest_bytes": dumps[0]["guest_bytes"],
                "output_bytes": dumps[0]["output_bytes"],
                "dump_seconds": spread([one["seconds"] for one in dumps]),
                "process_seconds": spread([one["process_seconds"] for one in dumps]),
                "cpu_seconds": spread([one["cpu_seconds"] for one in dumps]),
                "peak_kib": max(one["peak_kib"] for one in dumps),
            }
            if limits:
                row["limit_seconds"] = spread(limits)
                row["dump_of_limit"] = row["limit_seconds"]["median"] / row["dump_seconds"]["median"]
                row["process_of_limit"] = row["limit_seconds"]["median"] / row["process_seconds"]["median"]
            rows.append(row)
    return rows


def show(machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"{'format':13}{'engine':8}{'dump s':>8}{'min-max':>13}{'MB/s':>7}{'process s':>11}{'CPU s':>7}",
        end="",
    )
    print(f"{'peak MiB':>10}{'size':>11}{'limit s':>9}{'of limit':>10}{'process':>9}")
    for row in rows:
        dump = row["dump_seconds"]
        around = f"{dump['min']:.2f}-{dump['max']:.2f}"
        print(f"{row['format']:13}{row['engine']:8}{dump['median']:8.2f}{around:>13}", end="")
        print(
            f"{row['guest_bytes'] / dump['median'] / 1e6:7.0f}{row['process_seconds']['median']:11.2f}",
            end="",
        )
        print(f"{row['cpu_seconds']['median']:7.2f}{row['peak_kib'] / 1024:10.0f}", end="")
        print(f"{format_size(row['output_bytes']):>11}", end="")
        if "limit_seconds" in row:
            print(
                f"{row['limit_seconds']['median']:9.2f}{row['dump_of_limit']:10.0%}{row['process_of_limit']:9.0%}"
            )
        else:
            print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1G")
    parser.add_argument("--fill", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--folder", help="where the dumps go; the temporary folder, if not given")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    machine = {
        "machine": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "threads": arguments.threads,
        "corpus": f"synthetic:{arguments.size}?seed={arguments.seed}&fill={arguments.fill}",
        "rounds": arguments.rounds,
    }
    rows = measure(arguments)
    show(machine, rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
