"""Dump several guests at once, each with a deadline: ``python three_guests.py FOLDER SECONDS SOURCE...``.

A dump that is late is cancelled: its guest runs again, and no file of it is left. The others go on.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import vmdump


async def dump_within(seconds: float, source: str, output: Path) -> str:
    """Dump a guest and say how it went."""
    try:
        async with asyncio.timeout(seconds):
            # One thread each: three dumps share the processors.
            report = await vmdump.dump_async(source, output, format="kdump-lzo", threads=1, force=True)
    except TimeoutError:
        return f"{source}: cancelled after {seconds:g} s"
    except vmdump.errors.VmdumpError as error:
        return f"{source}: failed: {error}"
    paused = "" if report.paused_seconds is None else f", paused for {report.paused_seconds:.3f} s"
    return f"{source}: {report.output_bytes >> 20} MiB in {report.seconds:.1f} s{paused}"


async def main(folder: Path, seconds: float, sources: list[str]) -> None:
    """Dump all of them, and print a line for each when it has ended."""
    outputs = [
        folder / f"{number}-{re.sub('[^A-Za-z0-9]+', '-', source)}.kdump"
        for number, source in enumerate(sources)
    ]
    dumps = [dump_within(seconds, source, output) for source, output in zip(sources, outputs, strict=True)]
    for ended in asyncio.as_completed(dumps):
        print(await ended, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
