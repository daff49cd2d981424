"""A domain of libvirt: vmdump in three ways, and virsh."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from guests import Domain, Host, Monitor
from measure import (
    Contestant,
    Failed,
    Group,
    Sample,
    clear,
    demand_room,
    describe_output,
    run_process,
    say,
    take_turns,
)
from peers import cpu_seconds, dump_with_vmdump, stamp
from scenarios import Bench, demand_equal

from vmdump.units import format_size

FORMATS = ("elf", "kdump-zlib")
SOCKETS = Path("/var/lib/libvirt/images/monitors")
"""Where QEMU makes its QMP sockets, in the daemon's mount namespace."""
ATTACH = """
import sys, time
import vmdump
begin = time.monotonic()
with vmdump.open_source(sys.argv[1]):
    print(time.monotonic() - begin)
"""


@contextmanager
def booted(memory: int, fill: int) -> Iterator[Domain]:
    """Give a running Linux domain of the system's libvirtd, with two QMP sockets beside libvirt's.

    Raises
    ------
    Failed
        There is no libvirtd, or no right to start one.
    """
    try:
        host = Host()
    except (OSError, RuntimeError, LookupError) as error:
        raise Failed(f"no libvirtd: {error}") from error
    with host:
        host.path(SOCKETS).mkdir()
        host.path(SOCKETS).chmod(0o777)
        words = [f"unix:{SOCKETS}/{name},server=on,wait=off" for name in ("vmdump", "listener")]
        arguments = [part for word in words for part in ("-qmp", word)]
        domain = host.start("vmdump-bench", memory=memory, line=f"fill={fill} tick=1", arguments=arguments)
        yield domain.wait_ready()


class Pauses:
    """For how long the domain stood, by QEMU's own clock, whoever paused it."""

    def __init__(self, domain: Domain) -> None:
        self.monitor = Monitor(domain.host.path(SOCKETS) / "listener")

    def measured(self, run: Callable[[], Sample]) -> Sample:
        """Run a dump; its sample, with the pause."""
        self.monitor.event_names()
        begin = len(self.monitor.events)
        sample = run()
        self.monitor.event_names()  # until it answers, an event may be on its way
        stopped, still = None, 0.0
        for event in self.monitor.events[begin:]:
            if event["event"] == "STOP":
                stopped = stamp(event["timestamp"])
            elif event["event"] == "RESUME" and stopped is not None:
                still, stopped = still + stamp(event["timestamp"]) - stopped, None
        sample.still_seconds = still
        return sample


def with_virsh(domain: Domain, path: Path, format: str) -> Sample:
    """``virsh dump --memory-only``."""
    clear(path)
    daemon, qemu = domain.host.daemon.pid, domain.pid
    before = cpu_seconds(daemon) + cpu_seconds(qemu)
    seconds = domain.dump(path, format)
    sample = Sample(seconds=seconds, cpu_seconds=cpu_seconds(daemon) + cpu_seconds(qemu) - before)
    return describe_output(sample, path)


def with_serve(domain: Domain, socket: Path, path: Path, format: str) -> Sample:
    """A client's ``dump-guest-memory``, which ``vmdump serve`` does."""
    clear(path)
    monitor = Monitor(socket)
    try:
        sample = Sample(seconds=monitor.dump(path, format))
    finally:
        monitor.close()
    return describe_output(sample, path)


@contextmanager
def served(domain: Domain) -> Iterator[Path]:
    """``vmdump serve`` in front of the domain's first socket; its own socket."""
    socket = SOCKETS / "served"
    words = ["serve", f"qmp:{SOCKETS}/vmdump", "--listen", str(socket)]
    command = [*domain.host.inside, sys.executable, "-m", "vmdump", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            begin = time.monotonic()
            while not domain.host.path(socket).exists():
                if server.poll() is not None or time.monotonic() - begin > 10:
                    server.kill()
                    raise Failed(server.communicate()[1].strip().rpartition("\n")[2])
                time.sleep(0.01)
            yield domain.host.path(socket)
        finally:
            server.terminate()


def libvirt(bench: Bench, group: Group) -> None:
    """A domain of the system's libvirtd: attaching to it, its pause, and the whole time."""
    memory, fill = bench.sizes.domain
    demand_room(bench.folder, 3 * (memory << 20))
    with booted(memory, fill) as domain:
        pauses, inside = Pauses(domain), domain.host.inside
        sources = {"libvirt:": domain.source, "qmp:": f"qmp:{SOCKETS}/vmdump"}
        demand_equal_to_virshs(bench, domain, list(sources.values()))
        size = format_size(memory << 20)
        group.about = (
            f"domain of {size} under libvirt {domain.host.version()}, warm; paused s: all STOPs to RESUMEs"
        )

        def attach(source: str, turn: int) -> Sample:
            done = run_process(*inside, sys.executable, "-c", ATTACH, source)
            return Sample(seconds=float(done.stdout), cpu_seconds=done.cpu_seconds)

        def by_vmdump(source: str, name: str, turn: int) -> Sample:
            def run() -> Sample:
                return dump_with_vmdump(source, bench.output, name, bench.threads, prefix=inside)

            return pauses.measured(run)

        def by_virsh(name: str, turn: int) -> Sample:
            return pauses.measured(lambda: with_virsh(domain, bench.output, name))

        def by_serve(name: str, turn: int) -> Sample:
            with served(domain) as socket:
                return pauses.measured(lambda: with_serve(domain, socket, bench.output, name))

        contestants = [
            Contestant(f"attach {title}", "vmdump", partial(attach, source))
            for title, source in sources.items()
        ]
        for name in FORMATS:
            peer = f"virsh dump {name}"
            for title, source in sources.items():
                run = partial(by_vmdump, source, name)
                contestants.append(Contestant(f"vmdump {title} {name}", "vmdump", run, peer))
            contestants.append(Contestant(f"vmdump serve {name}", "vmdump", partial(by_serve, name), peer))
            contestants.append(Contestant(peer, "peer", partial(by_virsh, name)))
        take_turns(group, contestants, bench.rounds)


def demand_equal_to_virshs(bench: Bench, domain: Domain, sources: list[str]) -> None:
    """Suspend a domain, dump it by virsh and by vmdump in every way, and compare page by page."""
    theirs = bench.folder / "theirs"
    domain.virsh("suspend")
    domain.dump(theirs)
    for source in sources:
        for name in FORMATS:
            dump_with_vmdump(source, bench.output, name, bench.threads, prefix=domain.host.inside)
            demand_equal(str(theirs), bench.output, bench.threads)
            say(f"{source}, {name}: every page is the one in virsh's own ELF dump")
    theirs.unlink()
    domain.virsh("resume")
