"""Makes the corpora that the fuzz targets start from: ``python tests/fuzz/seeds.py``; overwrites the files.

Nothing of vmdump is used: a seed that vmdump made would not show what vmdump never makes.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracles import small_dumps
from oracles.small_dumps import PAGE, lzo_stream, snappy_stream, zstd_stream

CORPORA = Path(__file__).parent / "corpora"


def _unpack() -> Iterator[tuple[str, bytes]]:
    page = small_dumps.content(0)
    noise = random.Random(1).randbytes(PAGE)
    streams = {
        "zlib": zlib.compress(page),
        "zlib-stored": zlib.compress(noise, 0),
        "zlib-fixed": zlib.compress(b"a" * PAGE, 1),
        "lzo": lzo_stream(7),
        "snappy": snappy_stream(7),
        "zstd": zstd_stream(7),
        "plain": noise,
    }
    for name, stream in streams.items():
        compressed = int(name != "plain")
        yield name, bytes((0, 0)) + struct.pack("<QIB", 0, len(stream), compressed) + stream
    two = zlib.compress(page)
    yield "far", bytes((0, 1)) + struct.pack("<QIBQIB", 0, len(two), 1, (1 << 64) - 8, 64, 1) + two
    for name, bomb in {
        "zlib-bomb": zlib.compress(bytes(1 << 20), 9),
        "snappy-bomb": b"\xff\xff\xff\xff\x0f\0a" + b"\xfe\1\0" * 2000,
        "zstd-bomb": struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 40)
        + (3 | 1 << 20).to_bytes(3, "little")
        + b"a",
        "lzo-bomb": bytes((21, 1, 1, 1, 1, 0x20)) + bytes(4000) + bytes((1, 0, 0, 17, 0, 0)),
    }.items():
        yield name, bytes((0, 0)) + struct.pack("<QIB", 0, len(bomb), 1) + bomb


def _others() -> Iterator[tuple[str, str, bytes]]:
    noise = random.Random(2).randbytes(PAGE)
    for name, data in _unpack():
        yield "unpack", name, data
    for level in (0, 1, 6):
        yield "pack", f"text-{level}", bytes((0, level, 3, 1)) + b"the quick brown fox " * 20
        yield "pack", f"noise-{level}", bytes((0, level, 1, 0)) + noise
    yield "pack", "64k", bytes((2, 1, 0, 1)) + noise[:100]
    for name, bits in {"alternating": b"\x55" * 64, "ones": b"\xff" * 64, "noise": noise[:64]}.items():
        yield "bits", name, struct.pack("<HHB", 3, 501, 200) + bits
    for name, data in {
        "zero": bytes(PAGE),
        "noise": noise,
        "last": bytes(PAGE - 1) + b"\1",
        "short": b"\0" * 77,
    }.items():
        yield "pages", name, bytes((5,)) + bytes(range(8)) + data
    runs = struct.pack("<HHHHHH", 10, 500, 3, 100, 4000, 600)
    yield "scan", "two-runs", bytes((0, 7, 2, 0, 1)) + runs + noise
    yield "scan", "cut", bytes((3, 1, 1, 0, 0)) + struct.pack("<HHH", 0, 8000, 4000) + noise
    fields = (
        64,
        2,
        0,
        0,
        24,
        40,
        48,
        8,
        -1,
        1,
        -1,
        1,
        -11,
        11,
        32,
        512,
        1024,
        2048,
        128,
        256,
        64,
        -129,
        -12,
        -257,
        -9,
    )
    for name, layout in {"flags": fields, "offsets": (*fields[:8], 17, 2, 16, 3, 2, *fields[13:])}.items():
        head = struct.pack("<25hI", *layout, 512)
        pages = struct.pack("<QQQQQQiI8x", 64, 0, 0, 0, 0, 0, -11, 0) + struct.pack("<QQ48x", 3 | 3 << 8, 1)
        free = struct.pack("<QQQQQQiI8x", 0, 0, 0, 0, 0, 3, -129, 0)
        yield "page_types", name, head + 4 * pages + 2 * free + noise
    yield "share", "same", bytes((15,)) + bytes([63] * 16) + 16 * noise[:64]
    yield "share", "different", bytes((15,)) + bytes(range(100, 116)) + noise


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Give target, name and bytes of every seed."""
    yield from _others()
    for dump in small_dumps.all_kinds():
        target = dump.name[:5] if dump.name.startswith("kdump") else dump.name.split()[0]
        target = {"lime": "ranges", "avml": "ranges"}.get(
            target, "elf" if target.startswith("elf") else target
        )
        yield target, dump.name.replace(" ", "-"), bytes(dump.data)
    first, second = small_dumps.split_set()
    size = max(len(first.data), len(second.data))
    yield "split", "two-parts", bytes(first.data).ljust(size, b"\0") + bytes(second.data).ljust(size, b"\0")
    for dump in (small_dumps.elf(), small_dumps.kdump()):
        yield "flattened", f"of-{dump.name}", bytes(small_dumps.flattened(dump, 900).data)


def main() -> None:
    """Write them all."""
    for target, name, data in seeds():
        path = CORPORA / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
