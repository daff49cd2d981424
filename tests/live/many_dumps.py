"""Dump a domain of libvirt many times and kill half of the dumps: neither libvirtd nor the domain may notice.

    .venv/bin/python tests/live/many_dumps.py               50 dumps of libvirt:NAME, 25 of them killed
    .venv/bin/python tests/live/many_dumps.py --second 10   10 dumps through a second QMP socket, none killed

Needs root and build/guest. After each dump libvirtd must be the same process, libvirt must say that the
domain runs, and the guest must count on its console; after a kill there is a second for that. A dump that was
not killed is read by the tests' reader and by `vmdump verify`, and the last one, of the suspended domain, is
compared with that of `virsh dump --memory-only`. The first failure ends it; --seed replays it.

With another distribution's libvirt, in a root made by debootstrap with this repository in /srv/vmdump and
vmdump in its .venv. Its / has to be a mount point, or QEMU gets no mount namespace of its own, and its first
process has to be one that waits for those that lost their parents, as sh does:

    unshare --mount --pid --fork --kill-child sh -ec 'mount --bind ROOT ROOT; cd ROOT; mount -t proc proc proc
        mount --rbind /dev dev; mount --rbind /sys sys
        chroot . /srv/vmdump/.venv/bin/python /srv/vmdump/tests/live/many_dumps.py'
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from live.dumping import HELD, Dumping, check_whole, guardians, succeeds, until
from live.libvirt_host import IMAGES, Domain, Host

RUNS = 1.0
"""Seconds within which the domain of a killed vmdump runs again."""
AHEAD = ("-f", "kdump-zlib")


class Run:
    """One domain that is dumped again and again."""

    def __init__(self, host: Host, domain: Domain, source: str, folder: Path) -> None:
        self.host, self.domain, self.source = host, domain, source
        self.output = folder / "dump"
        self.inside = {"python": (*host.inside, sys.executable)}
        self.daemon = host.daemon.pid
        self.back: list[float] = []
        self.paused = self.killed = self.completed = 0
        self.taints = domain.taints()
        self.pauses: list[float] = []

    def vmdump(self, *words: object) -> None:
        done = self.host.run(sys.executable, "-m", "vmdump", *map(str, words))
        assert done.returncode == 0, done.stdout + done.stderr

    def counts(self) -> int:
        return len(re.findall(rb"TICK", self.domain.serial.read_bytes()))

    def check(self) -> None:
        """The daemon is the same, the domain runs and counts, and nobody has complained."""
        assert self.host.daemon.poll() is None, self.host.said()
        assert self.host.daemon.pid == self.daemon
        assert self.domain.state() == ("running", "unpaused")
        before = self.counts()
        until(lambda: self.counts() > before, "the guest counts", 10)
        assert self.domain.taints() == self.taints
        until(lambda: not self._guardians(), "the guardian has ended", 2)

    def _guardians(self) -> list[int]:
        def inside(pid: int) -> bool:
            try:
                return os.readlink(f"/proc/{pid}/ns/mnt") == self.host.namespace
            except OSError:
                return False

        return [pid for pid in guardians() if inside(pid)]

    def whole(self, options: tuple[str, ...]) -> float:
        """A dump that nobody kills, and how long it takes."""
        begin = time.monotonic()
        report = succeeds(self.source, self.output, *options, **self.inside)
        seconds = time.monotonic() - begin
        self.pauses.append(report["paused_seconds"])
        self._read()
        return seconds

    def _read(self) -> None:
        check_whole(self.output)
        self.vmdump("verify", self.output)
        self.output.unlink()
        self.completed += 1

    def kill(self, options: tuple[str, ...], moment: float) -> bool:
        """A dump that is killed after so many seconds; False if it has ended by then."""
        before = self.killed
        with Dumping(self.source, self.output, *options, **self.inside) as dumping:
            try:
                dumping.child.wait(moment)
            except subprocess.TimeoutExpired:
                # Frozen first, for what the domain does at that very moment to be asked.
                dumping.signal(signal.SIGSTOP)
                self.paused += self.domain.state()[0] == "paused"
                dumping.signal(signal.SIGKILL)
                self.killed += 1
            begin = time.monotonic()
            dumping.child.wait()
            until(lambda: self.domain.state() == ("running", "unpaused"), "the domain runs again", RUNS)
            self.back.append(time.monotonic() - begin)
        if self.output.exists():
            self._read()
        assert not list(self.output.parent.iterdir()), "something is left of the dump"
        return self.killed > before

    def compare(self) -> None:
        """Every page of the suspended domain is the one that ``virsh dump`` gives."""
        theirs = self.output.with_name("theirs")
        self.domain.virsh("suspend")
        succeeds(self.source, self.output, **self.inside)
        assert self.domain.state() == ("paused", "user")
        self.domain.dump(theirs)
        self.vmdump("verify", self.output, "--against", theirs)
        self.domain.virsh("resume")
        self.check()


def many(run: Run, dumps: int, seed: int) -> None:
    """Half of the dumps are killed; of these half do all their work inside the pause."""
    random_ = random.Random(seed)
    seconds = {options: run.whole(options) for options in (AHEAD, HELD)}
    run.completed, run.pauses = 0, []
    kinds = [True] * (dumps // 2) + [False] * (dumps - dumps // 2)
    random_.shuffle(kinds)
    for number, kill in enumerate(kinds, 1):
        options = random_.choice((AHEAD, HELD)) if kill else AHEAD
        moment = random_.uniform(0, seconds[options])
        try:
            if kill:
                while not run.kill(options, moment):
                    moment /= 2
            else:
                run.whole(options)
            run.check()
        except AssertionError as error:
            error.add_note(
                f"dump {number}, {f'killed after {moment:.3f} s' if kill else 'whole'}, seed {seed}"
            )
            raise
        print(f"{number}: {f'killed after {moment:.2f} s' if kill else 'whole'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dumps", type=int, default=50, metavar="N", help="of libvirt:NAME (50)")
    parser.add_argument("--second", type=int, default=0, metavar="N", help="through a second QMP socket")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    name = f"vmdump-many-{os.getpid()}"
    socket = IMAGES / "monitors/qmp"
    more: tuple[str, ...] = ()
    with Host() as host, tempfile.TemporaryDirectory(prefix="vmdump-many-") as folder:
        if arguments.second:
            host.path(socket).parent.mkdir()
            host.path(socket).parent.chmod(0o777)
            more = ("-qmp", f"unix:{socket},server=on,wait=off")
        domain = host.start(name, line="fill=40 tick=1", arguments=more).wait_ready()
        domain.virsh("suspend")
        domain.virsh("resume")
        run = Run(host, domain, f"qmp:{socket}" if arguments.second else domain.source, Path(folder))
        begin = time.monotonic()
        print(f"seed {arguments.seed}; libvirt {host.version()}, QEMU as user {domain.user()}")
        if arguments.second:
            for _ in range(arguments.second):
                run.whole(AHEAD)
                run.check()
        else:
            many(run, arguments.dumps, arguments.seed)
        run.compare()
        pauses = f"{statistics.median(run.pauses) * 1e3:.0f} ms (at most {max(run.pauses) * 1e3:.0f})"
        print(f"{run.completed} dumps completed and read, paused {pauses}")
        if run.back:
            told = f"running again after at most {max(run.back):.2f} s"
            print(f"{run.killed} killed, {run.paused} of them inside the pause; {told}")
        print(f"libvirtd is process {run.daemon} as before; taints: {run.taints or 'none'}")
        print(f"the last one holds what virsh dump --memory-only gives; {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
