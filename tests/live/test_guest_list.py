"""``vmdump guests`` and ``vmdump.guests()``: domains of libvirt, and users without rights."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.emulators import Start, emulators
from oracles import judges

import vmdump
from live.libvirt_host import Domain
from live.libvirt_session import Libvirt, session
from vmdump.operations import guests as module


@pytest.fixture
def start() -> Iterator[Start]:
    judges.require("qemu-system-x86_64")
    with emulators() as start:
        yield start


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirt]:
    judges.require("libvirt")
    with session() as libvirt:
        yield libvirt


def listed(pid: int, *words: str, **options: Any) -> dict[str, Any]:
    """What the command tells as JSON of a process."""
    done = subprocess.run([*words, "guests", "--json"], capture_output=True, check=True, **options)
    found: dict[int, dict[str, Any]] = {guest["pid"]: guest for guest in json.loads(done.stdout)}
    return found[pid]


def test_domain_of_the_system(domain: Domain) -> None:
    command = (*domain.host.inside, sys.executable, "-m", "vmdump")
    guest = listed(domain.pid, *command)
    assert (guest["name"], guest["domain"], guest["uuid"]) == (domain.name, domain.name, domain.uuid)
    assert (guest["memory"], guest["accelerator"], guest["user"]) == (512 << 20, "tcg", "libvirt-qemu")
    assert guest["source"] == f"libvirt:{domain.name}"
    assert (guest["reason"], guest["missing_rights"]) == ("", "")


def test_domain_of_another_namespace(domain: Domain) -> None:
    """Its daemon's socket is elsewhere: the source names it, and is opened."""
    (guest,) = (guest for guest in vmdump.guests() if guest.pid == domain.pid)
    assert guest.source.startswith(f"libvirt:{domain.name}?uri=qemu:///system%3Fsocket=/proc/")
    with vmdump.open_source(guest.source) as source:
        assert sum(block.size for block in source.guest.blocks) >= guest.memory


def test_domain_of_a_session(libvirt: Libvirt) -> None:
    (guest,) = (guest for guest in vmdump.guests() if guest.pid == libvirt.pid)
    assert guest.domain == libvirt.name
    assert guest.source.startswith(
        f"libvirt:{libvirt.name}?uri=qemu:///session%3Fsocket={libvirt.folder}/run/"
    )
    with vmdump.open_source(guest.source) as source:
        assert sum(block.size for block in source.guest.blocks) >= guest.memory


def test_domain_without_libvirt_python(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one has a second QMP socket, which serves then."""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    (guest,) = (guest for guest in vmdump.guests() if guest.pid == libvirt.pid)
    assert guest.source.startswith("qmp:")
    monkeypatch.setattr(module, "find_seats", lambda pid, words: [])
    (guest,) = (guest for guest in vmdump.guests() if guest.pid == libvirt.pid)
    assert guest.source == ""
    assert f"virsh dump --memory-only {libvirt.name} FILE" in guest.reason


def test_what_another_user_lacks(start: Start, nobody: tuple[str, ...], scratch: Path) -> None:
    scratch.chmod(0o755)
    path = scratch / "vm.qmp"
    pid = start("-name", "guest=web", "-qmp", f"unix:{path},server=on,wait=off", until=path)
    path.chmod(0o600)
    guest = listed(pid, *nobody, "-m", "vmdump", cwd="/")
    assert guest["source"] == f"qmp:{path}"
    assert guest["can_be_dumped"] is False
    assert guest["missing_rights"].startswith(
        f"no permission to connect to {path}: run vmdump as root, or as"
    )
    path.chmod(0o666)
    guest = listed(pid, *nobody, "-m", "vmdump", cwd="/")
    assert guest["missing_rights"].startswith("no permission to read QEMU's memory: run vmdump as root or")
    words = (*nobody, "-m", "vmdump", "guests")
    text = subprocess.run(words, capture_output=True, check=True, cwd="/", text=True).stdout
    command = next(line for line in text.splitlines() if str(path) in line and "dump" in line.split())
    assert shlex.split(command)[0] == "sudo"
    assert shlex.split(command)[-3:] == ["dump", f"qmp:{path}", "web.kdump"]
