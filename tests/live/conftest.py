"""The guests that the tests share; each is booted when a test first asks for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from oracles import judges

from live.doors import Door, Hall
from live.dumping import MIB, noise
from live.guests import QEMU, Guest
from live.libvirt_host import Domain, Host
from live.raw_client import Client

HERE = Path(__file__).parent
NOBODY = 65534
CLIENTS_GUESTS = {"_bare_hall", "_linux_hall", "new_door", "libvirt_host", "libvirt"}
"""Fixtures with the guests of QMP's clients and of libvirt."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of each set of shared guests in one process, which boots them once.

    Give each test 300 s: the first one that asks for a guest pays for its boot.
    """
    for item in items:
        if HERE in item.path.parents:
            clients = not CLIENTS_GUESTS.isdisjoint(getattr(item, "fixturenames", ()))
            # Guests of other architectures, which no two tests share.
            alone = item.path.name == "test_kernel_pages.py"
            item.add_marker(pytest.mark.xdist_group("alone" if alone else "clients" if clients else "live"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def linux_guest() -> Iterator[Guest]:
    """4 GiB in a file, 300 MiB of it filled, VMCOREINFO; paused, so that comparisons are exact."""
    judges.require("guest")
    with Guest("4G", fill=300) as guest:
        guest.wait_ready()
        guest.monitor.execute("stop")
        yield guest


@pytest.fixture(scope="session")
def private_guest() -> Iterator[Guest]:
    """1 GiB of anonymous memory, 100 MiB of it filled, no VMCOREINFO; runs and counts."""
    judges.require("guest")
    with Guest("1G", share="private", vmcoreinfo=False, fill=100, tick=True) as guest:
        yield guest.wait_ready()


@pytest.fixture(scope="session")
def _busy_guest() -> Iterator[Guest]:
    judges.require("guest")
    with Guest("2G", fill=300, busy=True, tick=True) as guest:
        yield guest.wait_ready()


@pytest.fixture
def busy_guest(_busy_guest: Guest) -> Iterator[Guest]:
    """2 GiB in a file, 300 MiB of it filled and 64 MiB rewritten for ever, VMCOREINFO; runs and counts.

    Between the tests that use it, it is paused: it takes a whole CPU.
    """
    _busy_guest.monitor.execute("cont")
    yield _busy_guest
    _busy_guest.monitor.execute("stop")


@pytest.fixture(scope="session")
def _running_guest() -> Iterator[Guest]:
    judges.require("guest")
    with Guest("512M", fill=40, tick=True) as guest:
        yield guest.wait_ready()


@pytest.fixture
def running_guest(_running_guest: Guest) -> Guest:
    """512 MiB in a file, 40 MiB of it filled, VMCOREINFO; runs and counts, whatever was done to it before."""
    if not _running_guest.running():
        _running_guest.monitor.execute("cont")
    return _running_guest


def as_nobody(*words: str) -> tuple[str, ...]:
    """The start of a command that a user without any right runs."""
    return (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", *words),
    )


@pytest.fixture(scope="session")
def nobody() -> tuple[str, ...]:
    """Another user's Python that has vmdump: this one may lie in a folder that only its owner may enter."""
    judges.require("setpriv")
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    paths = f"PYTHONPATH={os.pathsep.join(path for path in sys.path if path)}"
    # The guardian is started with the interpreter's own path.
    loaded = "vmdump.sources.qemu.source"
    probe = f"import sys, subprocess, {loaded}; subprocess.check_call([sys.executable, '-c', ''])"
    complaints = []
    for python in ([sys.executable], ["env", paths, "/usr/bin/python3"]):
        done = subprocess.run(as_nobody(*python, "-c", probe), capture_output=True, check=False, cwd="/")
        if done.returncode == 0:
            return as_nobody(*python)
        complaints += done.stderr.decode().strip().splitlines()[-1:]
    pytest.skip(f"another user cannot run vmdump here: {complaints}")


MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest() -> Iterator[MakeGuest]:
    """make_guest(...): any `Guest`, ready, and stopped with the test."""
    with ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Guest:
            boot = options.get("boot", True)
            judges.require("guest" if boot else QEMU)
            guest = stack.enter_context(Guest(*args, **options))
            return guest.wait_ready() if boot else guest

        yield make


@pytest.fixture
def bare_guest(make_guest: MakeGuest) -> MakeGuest:
    """bare_guest(memory="64M", ...): a `Guest` in prelaunch, without a kernel, stopped with the test."""

    def make(memory: str = "64M", **options: Any) -> Guest:
        return make_guest(memory, **{"vmcoreinfo": False, **options, "boot": False})

    return make


@pytest.fixture(scope="session")
def _bare_hall() -> Iterator[Hall]:
    judges.require(QEMU)
    with contextlib.closing(Hall("32M", boot=False, vmcoreinfo=False)) as hall:
        noise(hall.guest, 8 * MIB)
        yield hall


@pytest.fixture(scope="session")
def _linux_hall() -> Iterator[Hall]:
    judges.require("guest")
    with contextlib.closing(Hall("96M", fill=4)) as hall:
        hall.guest.wait_ready()
        hall.guest.monitor.execute("stop")
        yield hall


@pytest.fixture(params=["qemu", "serve"])
def door(request: pytest.FixtureRequest, _bare_hall: Hall) -> Iterator[Door]:
    """QEMU's dump interface, and that of `vmdump serve`: 32 MiB without a kernel, of which 8 are noise.

    The guest is paused.
    """
    with _bare_hall.door(request.param) as door:
        door.pause()
        yield door


@pytest.fixture(params=["qemu", "serve"])
def linux_door(request: pytest.FixtureRequest, _linux_hall: Hall) -> Iterator[Door]:
    """The same to a Linux guest of 96 MiB with VMCOREINFO, paused for ever."""
    with _linux_hall.door(request.param) as door:
        yield door


@pytest.fixture(params=["qemu", "serve"])
def new_door(request: pytest.FixtureRequest) -> Iterator[Callable[..., Door]]:
    """new_door(...): the same to a guest of the test's own, of 32 MiB without a kernel, if not told else."""
    judges.require(QEMU)
    with ExitStack() as stack:

        def make(memory: str = "32M", **options: Any) -> Door:
            options = {"boot": False, "vmcoreinfo": False, **options}
            hall = stack.enter_context(contextlib.closing(Hall(memory, **options)))
            return stack.enter_context(hall.door(request.param))

        yield make


@pytest.fixture
def client(door: Door) -> Client:
    """A connection to `door`."""
    return door.client()


@pytest.fixture(scope="session")
def libvirt_host() -> Iterator[Host]:
    """libvirtd and virtlogd as the distribution configures them, in a mount namespace of their own."""
    judges.require("libvirt")
    if os.geteuid() != 0:
        pytest.skip("only root can start the system's libvirtd")
    with Host() as host:
        yield host


@pytest.fixture(scope="session")
def _domain(libvirt_host: Host) -> Domain:
    return libvirt_host.start(f"vmdump-{os.getpid()}", line="fill=40 tick=1").wait_ready()


@pytest.fixture
def domain(_domain: Domain) -> Iterator[Domain]:
    """512 MiB, 40 MiB of it filled, VMCOREINFO; runs and counts, and no test taints it.

    Its state is ("running", "unpaused"): what it is after every pause.
    """
    if _domain.state()[0] == "running":
        _domain.virsh("suspend")
    _domain.virsh("resume")
    yield _domain
    assert _domain.taints() == ""
