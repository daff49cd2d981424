"""The fuzz targets over the Python readers: ``python tests/fuzz/readers.py TARGET CORPUS... [-flag=...]``.

A target is a kind of dump. What is found is whatever `hostile.touch` does not allow: an error that is not
vmdump's own, more than `_ROOM` bytes of memory, or a question that takes libFuzzer's ``-timeout``.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import pkgutil
import random
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["vmdump"]):
    import vmdump

    # All of it, now: what is first loaded by a function that needs it would not be instrumented.
    for module in pkgutil.walk_packages(vmdump.__path__, "vmdump."):
        if not module.name.startswith(
            ("vmdump.__main__", "vmdump.cli", "vmdump.kernels", "vmdump.sources.qemu")
        ):
            importlib.import_module(module.name)

from helpers.hostile import touch
from oracles import small_dumps

AGAIN = 75
"""Exit code: start again with what was learnt."""
_LEAKED = 256 << 20
"""Resident bytes at which a process ends: atheris keeps the result of each comparison, arrays too."""
_EVERY = 100
_runs = itertools.count(1)
_ROOM = 512 << 20
"""Bytes of address space on top of what the interpreter and the libraries have."""


def _elf() -> list[small_dumps.SmallDump]:
    return [dump for dump in small_dumps.all_kinds() if dump.name.startswith("elf")]


def _kdump() -> list[small_dumps.SmallDump]:
    return [dump for dump in small_dumps.all_kinds() if dump.name.startswith("kdump")]


def _others() -> list[small_dumps.SmallDump]:
    return [dump for dump in small_dumps.all_kinds() if dump.name.startswith(("lime", "avml"))]


def _flattened() -> list[small_dumps.SmallDump]:
    return [dump for dump in small_dumps.all_kinds() if dump.name.startswith("flattened")]


def one_file(data: bytes) -> None:
    """Take the input for one dump; every eighth is written out again, which costs as much as the rest."""
    touch(data, convert=len(data) % 8 == 0)
    _look_after_memory()


def two_files(data: bytes) -> None:
    """Take the halves of the input for the parts of a split set."""
    touch(data[: len(data) // 2], data[len(data) // 2 :])
    _look_after_memory()


def _look_after_memory() -> None:
    done = next(_runs)
    if done % _EVERY:
        return
    gc.collect()
    if _statm()[1] > _LEAKED:
        print(f"stat::number_of_executed_units: {done}", file=sys.stderr, flush=True)
        os._exit(AGAIN)


def _statm() -> tuple[int, int]:
    """Give the bytes of address space and of memory that this process has."""
    with open("/proc/self/statm") as statm:
        size, resident = statm.read().split()[:2]
    page = os.sysconf("SC_PAGE_SIZE")
    return int(size) * page, int(resident) * page


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[small_dumps.SmallDump]]]] = {
    "elf": (one_file, _elf),
    "kdump": (one_file, _kdump),
    "flattened": (one_file, _flattened),
    "split": (two_files, _kdump),
    "ranges": (one_file, _others),
}


def field_mutator(places: list[tuple[int, int]]) -> Callable[[bytes, int, int], bytes]:
    """Give a mutator that changes whole fields where the small dumps have them, half of the time.

    Parameters
    ----------
    places : list of (int, int)
        Offset and width of each field.
    """
    formats = {1: "B", 2: "H", 4: "I", 8: "Q"}

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5 or len(data) < 64:
            return bytes(atheris.Mutate(data, max_size))
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            offset, width = rng.choice(places)
            if offset + width > len(out):
                continue
            top = (1 << 8 * width) - 1
            code = rng.choice("<>") + formats[width]
            old = struct.unpack_from(code, out, offset)[0]
            sizes = (len(data), len(data) - 1, len(data) // 2, 4096, 8192, 1 << 8 * width - 4)
            new = rng.choice(
                (0, 1, top, top >> 1, (top >> 1) + 1, top - 4095, old + 1, old - 1, rng.choice(sizes))
            )
            struct.pack_into(code, out, offset, new & top)
        return bytes(out[:max_size])

    return mutate


def main() -> None:
    """Run one target."""
    name = sys.argv.pop(1)
    run, seeds = TARGETS[name]
    places = sorted({(field.offset, field.width) for dump in seeds() for field in dump.fields})
    used = _statm()[0]
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    atheris.Setup(sys.argv, run, custom_mutator=field_mutator(places))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
