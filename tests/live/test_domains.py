"""`libvirt:` with the system's libvirtd: what vmdump writes is what ``virsh dump --memory-only`` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles import judges
from oracles.elf import ElfCore
from oracles.kdump import Kdump

from live.dumping import MIB, Dumping, check_line, check_whole, succeeds
from live.dumping import refused as refused_outside
from live.libvirt_host import Domain, Host, confinement, control_groups
from live.libvirt_session import LIBVIRTD, Libvirt, session
from live.test_stopped import check_elf, check_kdump, check_notes
from vmdump.errors import AccessDenied, CapabilityError, DifferentMemory, SourceError

FORMATS = ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd")


def inside(host: Host) -> dict[str, Any]:
    """What `succeeds`, `refused` and `Dumping` need to run vmdump beside the daemon."""
    return {"python": (*host.inside, sys.executable)}


def refused(host: Host, source: str, output: Path, *, code: int) -> str:
    return refused_outside(source, output, code=code, **inside(host))


def vmdump_inside(host: Host, *words: object, folder: Path = Path("/")) -> subprocess.CompletedProcess[bytes]:
    command = [*host.inside, "env", "-C", str(folder), sys.executable, "-m", "vmdump", *map(str, words)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)


def check_events(events: list[tuple[float, str]]) -> None:
    """It was paused for the dump and, for some 20 ms before, while libvirt told the headers."""
    assert [event for _, event in events] == ["suspended", "resumed"] * 2


@pytest.fixture
def bare_domain(libvirt_host: Host) -> Iterator[Callable[..., Domain]]:
    """bare_domain(name, ...): a running domain of 64 MiB without a system, destroyed with the test."""
    made = []

    def make(name: str = "bare", **options: Any) -> Domain:
        options = {"memory": 64, "boot": False, "vmcoreinfo": False, **options}
        made.append(libvirt_host.start(f"vmdump-{os.getpid()}-{name}", **options))
        return made[-1]

    yield make
    for domain in made:
        if domain.name in libvirt_host.virsh("list", "--name").splitlines():
            domain.virsh("destroy")
        assert control_groups(domain.name) == []


def test_the_domain_is_confined_as_in_production(domain: Domain) -> None:
    found, daemons = confinement(domain.pid), confinement(domain.host.daemon.pid)
    assert found["Uid"] == judges.user_id("libvirt-qemu")
    assert found["Seccomp"] == "2"
    assert found["namespace"] != daemons["namespace"]
    assert control_groups(domain.name)


def test_every_byte_and_note_is_virsh_dumps(domain: Domain, scratch: Path) -> None:
    domain.virsh("suspend")
    report = succeeds(domain.source, scratch / "ours.elf", "-f", "elf", **inside(domain.host))
    assert (report["fuzzy"], report["paused_seconds"], report["unreadable"]) == (False, 0, [])
    succeeds(f"libvirt:{domain.uuid}", scratch / "ours.kdump", **inside(domain.host))
    number = domain.virsh("domid")
    succeeds(f"libvirt:{number}", scratch / "by-number", "-f", "kdump-lzo", **inside(domain.host))
    domain.dump(scratch / "theirs.elf")
    theirs = ElfCore(scratch / "theirs.elf")
    assert b"OSRELEASE=" in theirs.notes
    check_elf(ours := ElfCore(scratch / "ours.elf"), theirs)
    check_notes(ours.notes, theirs.notes)
    for name in ("ours.kdump", "by-number"):
        check_notes((kdump := Kdump(scratch / name)).notes, theirs.notes)
        assert check_kdump(kdump, theirs) * 4096 > 40 * MIB


@pytest.mark.parametrize("name", FORMATS)
def test_drgn_opens_every_format(name: str, domain: Domain, scratch: Path) -> None:
    domain.virsh("suspend")
    succeeds(domain.source, scratch / "ours", "-f", name, **inside(domain.host))
    domain.dump(scratch / "theirs")
    theirs = ElfCore(scratch / "theirs")
    ranges = [(address, 4096) for address in range(MIB, 512 * MIB, 7 * MIB)]
    assert judges.drgn_read(scratch / "ours", ranges) == [theirs.read(*one) for one in ranges]


def test_a_running_domain_runs_again(domain: Domain, scratch: Path) -> None:
    before = domain.state()
    with domain.listen() as listener:
        report = succeeds(domain.source, scratch / "dump", **inside(domain.host))
        events = listener.end()
    assert domain.state() == before == ("running", "unpaused")
    check_events(events)
    assert report["paused_seconds"] > 0
    check_whole(scratch / "dump")


def test_a_pipe_takes_the_whole_dump_inside_the_pause(domain: Domain, scratch: Path) -> None:
    command = [*domain.host.inside, sys.executable, "-m", "vmdump", "dump", domain.source, "-"]
    with domain.listen() as listener:
        with (
            (scratch / "dump").open("wb") as output,
            subprocess.Popen(command, stdout=subprocess.PIPE) as dump,
        ):
            subprocess.run(["cat"], stdin=dump.stdout, stdout=output, check=True)
        assert dump.returncode == 0
        check_events(listener.end())
    check_whole(scratch / "dump")


def test_a_paused_domain_stays_paused(domain: Domain, scratch: Path) -> None:
    domain.virsh("suspend")
    before = domain.state()
    with domain.listen() as listener:
        succeeds(domain.source, scratch / "dump", **inside(domain.host))
        assert listener.end() == []
    assert domain.state() == before == ("paused", "user")


def test_a_domain_that_was_never_started_stays_so(
    bare_domain: Callable[..., Domain], libvirt_host: Host, scratch: Path
) -> None:
    domain = bare_domain("fresh", paused=True)
    before = domain.state()
    assert before == ("paused", "user")
    succeeds(domain.source, scratch / "dump", **inside(libvirt_host))
    assert domain.state() == before


def test_no_pause(domain: Domain, scratch: Path) -> None:
    report = succeeds(domain.source, scratch / "dump", "--no-pause", **inside(domain.host))
    assert report["fuzzy"]
    assert domain.state()[0] == "running"
    check_whole(scratch / "dump")


@pytest.mark.parametrize(
    "name", ["two words", 'it\'s "quoted"', "ümläut-日本", "a?b=c", "x:y", "100%41&amp;", "#;$(touch x)"]
)
def test_names_with_odd_characters(
    name: str, bare_domain: Callable[..., Domain], libvirt_host: Host, scratch: Path
) -> None:
    domain = bare_domain(name)
    # What looks like options is written as percent signs are in a URL, or the domain is named by its UUID.
    source = f"libvirt:{domain.uuid}" if "?" in name else domain.source
    succeeds(source, scratch / "dump", **inside(libvirt_host))
    assert domain.state()[0] == "running"
    check_whole(scratch / "dump")


@pytest.mark.parametrize("video", ["virtio", "qxl", "vga", "bochs"])
def test_memory_that_holds_nothing_is_found(
    video: str, bare_domain: Callable[..., Domain], libvirt_host: Host, scratch: Path
) -> None:
    """Nobody draws into it, and nothing but its size tells where it is: still, the monitor is not asked."""
    if f"<value>{video}</value>" not in libvirt_host.virsh("domcapabilities", "--machine", "q35"):
        pytest.skip(f"this QEMU has no {video}")
    model = f"<video><model type='{video}'/></video><graphics type='vnc'/>"
    domain = bare_domain(video, memory=96, devices=model)  # QXL has parts of 64 MiB
    domain.virsh("suspend")
    report = succeeds(domain.source, scratch / "ours", "-f", "elf", **inside(libvirt_host))
    assert report["remarks"] == []
    assert domain.taints() == ""
    domain.dump(scratch / "theirs")
    check_elf(ElfCore(scratch / "ours"), ElfCore(scratch / "theirs"))


def test_what_is_no_live_domain_is_refused(libvirt_host: Host, domain: Domain, scratch: Path) -> None:
    line = refused(libvirt_host, "libvirt:nix", scratch / "dump", code=SourceError.exit_code)
    assert "nix" in line
    xml = domain.virsh("dumpxml").replace(domain.name, f"{domain.name}-off").replace(domain.uuid, "")
    (scratch / "off.xml").write_text(xml.replace("<uuid></uuid>", ""))
    libvirt_host.virsh("define", str(scratch / "off.xml"))
    try:
        line = refused(libvirt_host, f"{domain.source}-off", scratch / "dump", code=SourceError.exit_code)
        assert f"{domain.name}-off" in line
        assert "not active" in line
    finally:
        libvirt_host.virsh("undefine", f"{domain.name}-off")


def test_other_hypervisors_are_refused_by_name(libvirt_host: Host, scratch: Path) -> None:
    source = "libvirt:test?uri=test:///default"
    line = refused(libvirt_host, source, scratch / "dump", code=CapabilityError.exit_code)
    assert "test:///default: this hypervisor is test" in line


def test_another_user_has_no_right(domain: Domain, nobody: tuple[str, ...], scratch: Path) -> None:
    """Who may connect is for polkit to say, and there is none here."""
    scratch.chmod(0o777)
    source, python = f"{domain.source}?uri=qemu:///system", (*domain.host.inside, *nobody)
    with Dumping(source, scratch / "dump", python=python) as dumping:
        dumping.end(SourceError.exit_code, AccessDenied.exit_code)
    assert domain.state() == ("running", "unpaused")


BESIDE_ASYNCIO = """
import asyncio, sys
import libvirt, libvirtaio, vmdump

async def main():
    libvirtaio.virEventRegisterAsyncIOImpl()
    connection, events = libvirt.open(), []
    told = lambda connection, domain, event, detail, opaque: events.append(event)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
    report = await vmdump.dump_async(sys.argv[1], sys.argv[2])
    await asyncio.sleep(0.5)
    assert report.paused_seconds
    assert events == [libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_RESUMED] * 2, events
    assert connection.isAlive()
    connection.close()

asyncio.run(main())
"""


def test_in_a_program_with_libvirts_loop_for_asyncio(domain: Domain, scratch: Path) -> None:
    """Which does not notice what other threads ask of it."""
    done = domain.host.run(sys.executable, "-c", BESIDE_ASYNCIO, domain.source, str(scratch / "dump"))
    assert done.returncode == 0, done.stderr
    assert domain.state() == ("running", "unpaused")
    check_whole(scratch / "dump")


def test_info_and_dmesg(domain: Domain) -> None:
    done = vmdump_inside(domain.host, "info", domain.source, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "OSRELEASE" in json.dumps(told)
    done = vmdump_inside(domain.host, "dmesg", domain.source)
    assert done.returncode == 0, done.stderr
    assert b"Linux version" in done.stdout
    assert domain.state() == ("running", "unpaused")


def test_bench(domain: Domain, scratch: Path) -> None:
    words = ("bench", domain.source, "--sample", "1M", "--to", scratch, "--json")
    done = vmdump_inside(domain.host, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert domain.state() == ("running", "unpaused")


def test_verify_against(domain: Domain, scratch: Path) -> None:
    domain.virsh("suspend")
    domain.dump(scratch / "theirs")
    done = vmdump_inside(domain.host, "verify", scratch / "theirs", "--against", domain.source)
    assert done.returncode == 0, done.stderr
    assert domain.state() == ("paused", "user")
    domain.virsh("resume")
    with domain.listen() as listener:
        done = vmdump_inside(domain.host, "verify", scratch / "theirs", "--against", domain.source)
        check_events(listener.end())
    # It has counted meanwhile.
    check_line(done.stderr, done.returncode, DifferentMemory.exit_code)
    assert domain.state() == ("running", "unpaused")


def test_a_second_monitor_does_no_harm(
    bare_domain: Callable[..., Domain], libvirt_host: Host, scratch: Path
) -> None:
    """QEMU tells each monitor when a dump ends that was begun at any, and old daemons fall over that."""
    folder = libvirt_host.folder / "lib/images/monitors"
    folder.mkdir(mode=0o777, exist_ok=True)
    folder.chmod(0o777)
    arguments = ("-qmp", "unix:/var/lib/libvirt/images/monitors/qmp,server=on,wait=off")
    domain, daemon = bare_domain("second", arguments=arguments), libvirt_host.daemon
    source = "qmp:/var/lib/libvirt/images/monitors/qmp"
    for _ in range(2):
        succeeds(source, scratch / "dump", "--force", **inside(libvirt_host))
        check_whole(scratch / "dump")
        assert domain.state()[0] == "running"
    domain.virsh("suspend")
    succeeds(source, scratch / "ours", "-f", "elf", **inside(libvirt_host))
    domain.dump(scratch / "theirs")
    check_elf(ours := ElfCore(scratch / "ours"), theirs := ElfCore(scratch / "theirs"))
    check_notes(ours.notes, theirs.notes)
    assert daemon.poll() is None
    assert libvirt_host.daemon is daemon


@pytest.fixture
def users_libvirt(nobody: tuple[str, ...]) -> Iterator[Libvirt]:
    """An ordinary user's daemon, with a domain."""
    judges.require("libvirt")
    judges.require(LIBVIRTD)
    with session() as it:
        yield it


def test_an_ordinary_users_domain(users_libvirt: Libvirt, nobody: tuple[str, ...]) -> None:
    it = users_libvirt
    python = (
        "env",
        *(f"{name}={value}" for name, value in it.environment.items() if name != "PATH"),
        *nobody,
    )
    source = f"libvirt:{it.name}?uri=qemu:///session"
    report = succeeds(source, it.folder / "dump", python=python, cwd="/")
    assert report["paused_seconds"] > 0
    assert it.virsh("domstate", it.name, "--reason") == "running (unpaused)"
    it.virsh("suspend", it.name)
    succeeds(source, it.folder / "ours", "-f", "elf", python=python, cwd="/")
    assert it.virsh("domstate", it.name, "--reason") == "paused (user)"
    it.virsh("dump", it.name, str(it.folder / "theirs"), "--memory-only")
    check_elf(ours := ElfCore(it.folder / "ours"), theirs := ElfCore(it.folder / "theirs"))
    check_notes(ours.notes, theirs.notes)
    assert "custom-monitor" not in it.virsh("dominfo", it.name)
    assert (it.folder / "ours").stat().st_uid == it.user.get("user", os.getuid())
