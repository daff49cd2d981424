#!/usr/bin/env python3
"""Dump guests that rewrite kernel memory as fast as they can, many times: each dump is of one moment.

    .venv/bin/python tests/live/many_filtered.py                  100 dumps of level 31
    .venv/bin/python tests/live/many_filtered.py --level 23       of level 23, which has users' memory, too
    .venv/bin/python tests/live/many_filtered.py --fuzzy          without a pause: can the check fail?

Needs build/guest. Two guests, of shared and of private memory, are dumped in turns to kdump files and to ELF
cores. `programs/pages.c` says what a program in them keeps at every moment, and `pages.check_moment` looks
whether the dump has it. The first failure ends it; with --fuzzy they are counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from live import pages
from live.dumping import succeeds
from live.guests import Guest

FORMATS = ("kdump-lzo", "elf", "kdump-zstd", "elf", "kdump-zlib")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dumps", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument("--level", type=int, default=31, help="what is left out (31)")
    parser.add_argument("--memory", default="256M", help="of each guest (256M)")
    parser.add_argument("--fuzzy", action="store_true", help="without a pause")
    arguments = parser.parse_args()
    fuzzy = ("--no-pause", "--force-fuzzy") if arguments.fuzzy else ()
    user = not arguments.level & 8
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmdump-filtered-")))
        options = pages.writing(folder)
        shares = ("file", "private")
        guests = [stack.enter_context(Guest(arguments.memory, share=share, **options)) for share in shares]
        for guest in guests:
            guest.wait_ready().monitor.execute("stop")
        wrong, pauses, changed, rounds = 0, [], [], []
        begin = time.monotonic()
        turns = islice(zip(cycle(guests), cycle(FORMATS)), arguments.dumps)
        for number, (guest, format) in enumerate(turns, 1):
            guest.monitor.execute("cont")
            words = ("-f", format, "-d", arguments.level, "--force", "-q", *fuzzy)
            report = succeeds(guest, folder / "dump", *words)
            assert guest.running()
            # The other one has the processors now.
            guest.monitor.execute("stop")
            told = f"{number}: {guest.share}, {format}"
            try:
                rounds.append(pages.check_moment(folder / "dump", user=user))
            except AssertionError as error:
                error.add_note(told)
                if not arguments.fuzzy:
                    raise
                wrong += 1
            pauses.append(report["paused_seconds"])
            changed.append(report["changed_pages"])
            print(told, file=sys.stderr)
    print(f"{arguments.dumps} dumps of level {arguments.level}, {wrong} of them of no one moment")
    print(f"paused {statistics.median(pauses) * 1e3:.0f} ms (at most {max(pauses) * 1e3:.0f})")
    print(
        f"up to {max(changed)} pages packed again inside the pause; {time.monotonic() - begin:.0f} s in all"
    )
    if rounds:
        print(f"the guests' writers were in rounds {min(rounds)} to {max(rounds)}")
    return arguments.fuzzy and not wrong


if __name__ == "__main__":
    sys.exit(main())
