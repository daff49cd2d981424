"""Reading dumps: random pages against drgn, threads against one, and opening a flattened file.

    .venv/bin/python bench/reading.py [--rounds 5] [--flattened 4G] [--json FILE]

Contestants run in turns, round by round, over the same files, and what they read is compared. Each target is
printed with its figure. The flattened file has records of 16 KiB, as QEMU's has. `makedumpfile -R` writes the
whole file out once more, so it needs as much room again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import drgn
import numpy as np
from numpy.typing import NDArray

import vmdump
from vmdump.formats import flattened
from vmdump.units import parse_size

PAGE = 4096
PAGES = 10_000
RECORD = 16 << 10
"""Bytes that QEMU collects before it writes them."""
Times = dict[str, list[float]]


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def random_pages(path: Path, rounds: int) -> Times:
    """10,000 random pages, each opened anew, one by one as a debugger asks for them."""
    with vmdump.open(path) as dump:
        held = np.concatenate([np.arange(block.start, block.end, PAGE) for block in dump.blocks])
    times: Times = {"drgn": [], "vmdump": []}
    for seed in range(rounds):
        chosen = np.random.default_rng(seed).choice(held, PAGES, replace=False).tolist()
        read: dict[str, list[bytes]] = {}

        def by_drgn(chosen: list[int] = chosen, read: dict[str, list[bytes]] = read) -> None:
            program = drgn.Program()
            program.set_core_dump(path)
            read["drgn"] = [program.read(address, PAGE, physical=True) for address in chosen]

        def by_vmdump(chosen: list[int] = chosen, read: dict[str, list[bytes]] = read) -> None:
            with vmdump.open(path) as dump:
                read["vmdump"] = [dump.read(address, PAGE) for address in chosen]

        for name, run in (("drgn", by_drgn), ("vmdump", by_vmdump))[:: 1 if seed % 2 else -1]:
            times[name].append(timed(run))
        assert read["drgn"] == read["vmdump"]
    return times


def sequential(path: Path, rounds: int) -> Times:
    """All pages in a row, into the same array again and again."""
    out: NDArray[np.uint8] = np.zeros((1 << 15, PAGE), np.uint8)
    times: Times = {"1 thread": [], "2 threads": []}
    with vmdump.open(path) as dump:
        block = max(dump.blocks, key=lambda block: block.size)

        def read(threads: int) -> None:
            for pfn in range(block.start // PAGE, block.end // PAGE, len(out)):
                count = min(len(out), block.end // PAGE - pfn)
                dump.pages(pfn, count, out[:count], threads=threads)

        for _ in range(rounds):
            times["1 thread"].append(timed(lambda: read(1)))
            times["2 threads"].append(timed(lambda: read(2)))
    return times


def flatten(standard: Path, path: Path, size: int) -> None:
    """Write a standard file in QEMU's records; what it lacks to `size` is data that no page has."""
    with standard.open("rb") as source, path.open("wb") as file:
        file.write(flattened.file_header())
        position = 0
        while data := source.read(RECORD):
            file.write(flattened.record(position, len(data)) + data)
            position += len(data)
        noise = np.random.default_rng(1).bytes(RECORD)
        while file.tell() < size:
            file.write(flattened.record(position, RECORD) + noise)
            position += RECORD
        file.write(flattened.END_MARK)


def rearrange(stream: int, path: Path) -> None:
    """Have makedumpfile put a flattened file in place."""
    command = ["makedumpfile", "-R", str(path)]
    subprocess.run(command, stdin=stream, check=True, capture_output=True)


def opening(flat: Path, rounds: int) -> Times:
    """Open the flattened file, against putting it in place."""
    times: Times = {"makedumpfile -R": [], "vmdump.open": []}
    standard = flat.with_name("rearranged")
    for _ in range(rounds):
        times["vmdump.open"].append(timed(lambda: vmdump.open(flat).close()))
        with flat.open("rb") as stream:
            times["makedumpfile -R"].append(timed(partial(rearrange, stream.fileno(), standard)))
        standard.unlink()
    return times


def show(what: str, times: Times) -> None:
    """Print median and spread of each contestant."""
    for name, samples in times.items():
        low, high = min(samples), max(samples)
        print(f"{what:<24}{name:<18}{statistics.median(samples):9.4f} s  ({low:.4f} to {high:.4f})")


def ratio(times: Times, slow: str, fast: str) -> float:
    """Tell how many times as fast one is, by the medians."""
    return statistics.median(times[slow]) / statistics.median(times[fast])


def main(arguments: Iterable[str] | None = None) -> int:
    """Measure, print, and tell by the exit code whether all targets are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flattened", default="4G", help="size of the flattened file")
    parser.add_argument("--json", type=Path, help="all samples, in seconds")
    options = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Times] = {}
    with tempfile.TemporaryDirectory(prefix="vmdump-bench-") as folder:
        path = Path(folder) / "kdump"
        vmdump.dump("synthetic:1G?seed=1&fill=0.5", path)
        results["10,000 random pages"] = random_pages(path, options.rounds)
        results["1 GiB in a row"] = sequential(path, options.rounds)
        if shutil.which("makedumpfile"):
            flat = Path(folder) / "flat"
            flatten(path, flat, parse_size(options.flattened))
            results[f"open {options.flattened} flattened"] = opening(flat, min(options.rounds, 3))
    for what, times in results.items():
        show(what, times)
    targets = {
        ("drgn", "vmdump"): 1.0,
        ("1 thread", "2 threads"): 1.7,
        ("makedumpfile -R", "vmdump.open"): 10.0,
    }
    met = True
    for times in results.values():
        slow, fast = times
        found, target = ratio(times, slow, fast), targets[slow, fast]
        met &= found >= target
        verdict = "met" if found >= target else "MISSED"
        print(f"{fast} is {found:.2f} times as fast as {slow}; target {target}: {verdict}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
