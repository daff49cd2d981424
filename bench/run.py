"""Measure vmdump against QEMU's own dump, makedumpfile, and the bare engines, in turns, in one run.

    python bench/run.py                         everything: some 20 minutes on two processors
    python bench/run.py --groups raw start      two groups
    python bench/run.py --quick                 small guests, 2 rounds: to try the benchmark itself

Groups: start (a dump of one page), raw (a guest's memory in a file), elf (an ELF file to kdump), filter
(files at level 31), warm and cold (a live guest that QEMU has dumped before, and fresh ones), filter-live
(running guests at level 31, against QEMU's ELF dump and makedumpfile behind it), libvirt (a domain, against
virsh; needs root), scale (the same data, dense and scattered over 1 TiB). Prints a table and the targets;
everything, each sample included, goes to a JSON file, and the medians to a chart beside it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from datetime import datetime
from pathlib import Path

from chart import draw_chart
from figures import targets
from groups import GROUPS, run_group
from measure import ROOT, Group, say
from scenarios import QUICK, Sizes, prepared, versions
from show import machine, print_tables, write_json

BUSY = 0.5
"""Load average from which on others are at work."""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--rounds", type=int, help="turns of every contestant (5; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="-j of vmdump")
    parser.add_argument("--quick", action="store_true", help="small guests, 2 rounds")
    parser.add_argument("--folder", type=Path, help="where the dumps go; the temporary folder, if not given")
    parser.add_argument("--json", type=Path, help="a file for all figures (bench/results/DATE.json)")
    parser.add_argument("--chart", type=Path, help="a file for the chart, .svg or .png (beside the JSON)")
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 5
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("rounds and threads are numbers above 0")
    if arguments.json is None:
        arguments.json = ROOT / f"bench/results/{datetime.now():%Y-%m-%d-%H%M%S}.json"
    if arguments.chart is None:
        arguments.chart = arguments.json.with_suffix(".svg")
    return arguments


def main() -> None:
    arguments = parsed()
    # So that guests, folders and processes are cleaned up after SIGTERM as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sizes = QUICK if arguments.quick else Sizes()
    groups: list[Group] = []
    interrupted = False
    load = os.getloadavg()[0]
    if load > BUSY:
        say(f"the load of this machine is {load:.1f} already, and the figures will show it")
    with prepared(arguments.folder, arguments.rounds, arguments.threads, sizes) as bench:
        try:
            for name in arguments.groups:
                groups.append(Group(name))
                run_group(bench, groups[-1])
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted; the results so far follow")
    reached = targets(groups, arguments.threads)
    about = {
        "command": shlex.join(sys.argv),
        "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "load": load,
        "machine": machine(),
        "versions": versions(),
    }
    where = f"{about['machine']['processor']}, {arguments.threads} threads, {arguments.rounds} rounds"
    print(f"{where}, {about['machine']['kernel']}; {'; '.join(about['versions'].values())}")
    print_tables(groups, reached, quick=arguments.quick)
    write_json(arguments.json, about, groups, reached)
    draw_chart(arguments.chart, groups, where)
    print(f"{arguments.json}\n{arguments.chart}")
    if interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main()
