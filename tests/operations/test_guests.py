"""The running guests: found, named as sources, left alone, and reasons where there is no way to them."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.emulators import Start, emulators, greeting
from oracles import judges

import vmdump
from vmdump import RunningGuest
from vmdump.operations import guests as module


@pytest.fixture
def start() -> Iterator[Start]:
    judges.require("qemu-system-x86_64")
    with emulators() as start:
        yield start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the path of a socket."""
    return tmp_path / "vm.qmp"


def found(pid: int) -> RunningGuest:
    return {guest.pid: guest for guest in vmdump.guests()}[pid]


def test_what_is_told_of_a_guest(start: Start, path: Path) -> None:
    uuid = "6a3f8c1e-2d54-4f0b-9d1c-0a4b7e5f9c21"
    pid = start("-name", "guest=web,,1", "-uuid", uuid, "-qmp", f"unix:{path},server,nowait", until=path)
    guest = found(pid)
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert abs(guest.resident - resident) < 16 << 20
    assert guest == RunningGuest(
        pid=pid,
        name="web,1",
        uuid=uuid,
        arch="x86_64",
        memory=32 << 20,
        resident=guest.resident,
        accelerator="tcg",
        user=pwd.getpwuid(os.geteuid()).pw_name,
        domain="",
        socket=str(path),
        source=f"qmp:{path}",
        reason="",
        missing_rights="",
    )
    assert guest.can_be_dumped
    assert guest.as_dict()["can_be_dumped"] is True


def test_source_is_what_dump_takes(start: Start, path: Path, tmp_path: Path) -> None:
    guest = found(start("-qmp", f"unix:{path},server=on,wait=off", until=path))
    vmdump.dump(guest.source, tmp_path / "dump")
    blocks = vmdump.info(tmp_path / "dump").blocks
    assert sum(end - begin for begin, end in blocks) >= guest.memory


def test_nobody_connects(start: Start, path: Path) -> None:
    """QEMU accepts the first connection that comes: a second one waits, and this one must not."""
    pid = start("-qmp", f"unix:{path},server=on,wait=off", until=path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path) + ".mine")
    listener.listen()
    listener.setblocking(False)
    path.unlink()
    os.rename(str(path) + ".mine", path)
    # Whoever connected by the path would now be seen here.
    found(pid)
    with listener, pytest.raises(BlockingIOError):
        listener.accept()


def test_monitor_that_is_taken(start: Start, path: Path) -> None:
    pid = start("-qmp", f"unix:{path},server=on,wait=off", until=path)
    client = greeting(path)
    guest = found(pid)
    assert guest.source == ""
    assert guest.socket == str(path)
    assert guest.reason.startswith(
        f"its QMP monitor ({path}) is in use by another client, and serves one at a time"
    )
    client.close()
    limit = time.monotonic() + 60
    while not found(pid).source:
        assert time.monotonic() < limit, found(pid).reason


def test_second_monitor_is_free(start: Start, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    options = ("-qmp", f"unix:{path},server=on,wait=off", "-qmp-pretty", f"unix:{other},server=on,wait=off")
    pid = start(*options, until=other)
    with greeting(path):
        assert found(pid).source == f"qmp:{other}"


def test_monitor_of_a_named_device(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a,b c"
    device = f"socket,id=door,path={str(path).replace(',', ',,')},server=on,wait=off"
    guest = found(start("-chardev", device, "-mon", "chardev=door,mode=control", until=path))
    assert guest.source == f"qmp:{path}"


def test_socket_that_qemu_was_given(start: Start, path: Path) -> None:
    """As libvirt and kata do it: by the number of a descriptor."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        device = f"socket,id=door,fd={number},server=on,wait=off"
        pid = start("-chardev", device, "-mon", "door,mode=control", pass_fds=[number])
    assert found(pid).source == f"qmp:{path}"


def test_relative_path(start: Start, path: Path) -> None:
    pid = start("-qmp", f"unix:{path.name},server=on,wait=off", until=path, cwd=path.parent)
    assert found(pid).source == f"qmp:{path}"


def test_socket_without_a_file(start: Start, path: Path) -> None:
    pid = start("-qmp", f"unix:{path},server=on,wait=off", until=path)
    path.unlink()
    assert found(pid).reason.startswith(f"its QMP monitor ({path}) has lost its file")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "it has no monitor: next time start QEMU with -qmp unix:PATH,server=on,wait=off"),
        (("-qmp", "stdio"), "its QMP monitor is on standard input and output, where only the program that"),
        (("-qmp", "tcp:127.0.0.1:0,server=on,wait=off"), "its QMP monitor is on TCP 127.0.0.1:0, and vmdump"),
        (
            ("-chardev", "socket,id=a,host=127.0.0.1,port=0,server=on,wait=off", "-mon", "a,mode=control"),
            "its QMP monitor is on TCP 127.0.0.1:0, and vmdump takes Unix sockets only",
        ),
        (("-qmp", "pty"), "its QMP monitor is on pty, and vmdump takes Unix sockets only"),
        (
            (
                "-chardev",
                "socket,id=a,path=vmdump-{pid},abstract=on,server=on,wait=off",
                "-mon",
                "a,mode=control",
            ),
            "its QMP monitor is the socket @vmdump-{pid}, which is no file",
        ),
        (
            ("-monitor", "unix:{path},server=on,wait=off"),
            "it has a monitor for people only (HMP), at {path}: ",
        ),
        (("-monitor", "stdio"), "it has a monitor for people only (HMP), at standard input and output: "),
        (("-serial", "mon:stdio"), "it has a monitor for people only (HMP), at standard input and output: "),
    ],
)
def test_no_way_to_a_guest(words: tuple[str, ...], reason: str, start: Start, path: Path) -> None:
    facts = {"path": path, "pid": os.getpid()}
    guest = found(start(*(word.format(**facts) for word in words)))
    assert guest.source == ""
    assert not guest.can_be_dumped
    assert guest.reason.startswith(reason.format(**facts))


def test_qemu_that_is_a_client(start: Start, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        guest = found(start("-qmp", f"unix:{path},server=off"))
    assert guest.reason.startswith(f"its QMP monitor is a client of {path}, and vmdump cannot take")


def test_guest_in_a_mount_namespace(start: Start, tmp_path: Path) -> None:
    """A container's: its socket is reached through the process."""
    judges.require("unshare")
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = tmp_path / "run"
    folder.mkdir()
    script = f'mount -t tmpfs none {folder} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    pid = start("-qmp", f"unix:{folder}/vm.qmp,server=on,wait=off", prefix=prefix)
    seen = Path(f"/proc/{pid}/root{folder}/vm.qmp")
    limit = time.monotonic() + 60
    while not seen.exists():
        assert time.monotonic() < limit
    guest = found(pid)
    assert guest.source == f"qmp:{seen}"
    vmdump.dump(guest.source, tmp_path / "dump")


def test_process_that_frees_memory_is_no_guest(start: Start) -> None:
    """With async-teardown QEMU has a child with the same command line."""
    code = "import os, sys; os.fork(); os.write(1, b'%d\\n' % os.getpid()); sys.stdin.read()"
    words = ["bash", "-c", 'exec -a qemu-system-x86_64 "$0" "$@"', sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        both = {int(process.stdout.readline()), int(process.stdout.readline())}
        pids = {guest.pid for guest in vmdump.guests()}
        process.communicate()
    assert len(both) == 2
    assert both & pids == {process.pid}


def test_qemu_that_is_only_asked_what_it_can_do(start: Start) -> None:
    pid = start("-machine", "none,accel=kvm:tcg", "-nographic")
    assert pid not in {guest.pid for guest in vmdump.guests()}


def test_encrypted_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["qemu-system-x86_64", "-machine", "q35,confidential-guest-support=sev0,accel=kvm", ""]
    monkeypatch.setattr(module, "command_line", lambda pid: words if pid == os.getpid() else [])
    (guest,) = vmdump.guests()
    assert guest.reason.startswith("its memory is encrypted")
    assert guest.accelerator == "kvm"


@pytest.mark.parametrize(
    ("words", "accelerator"),
    [
        (["/usr/bin/kvm"], "kvm"),
        (["/usr/libexec/qemu-kvm", "-machine", "q35"], "kvm"),
        (["qemu-system-x86_64"], "tcg"),
        (["qemu-system-x86_64", "--enable-kvm"], "kvm"),
        (["qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg,thread=multi"], "kvm:tcg"),
        (["qemu-system-x86_64", "-M", "pc,accel=kvm:tcg"], "kvm:tcg"),
        ([".qemu-system-x86_64-wrapped", "-accel", "kvm"], "kvm"),
    ],
)
def test_accelerator_by_its_words(
    words: list[str], accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "command_line", lambda pid: [*words, ""] if pid == os.getpid() else [])
    (guest,) = vmdump.guests()
    assert guest.accelerator == accelerator


UUID = "6a3f8c1e-2d54-4f0b-9d1c-0a4b7e5f9c21"


@pytest.mark.parametrize(
    ("name", "uuid", "source"),
    [
        ("web?uri=qemu+ext:///system%3Fcommand=/tmp/mine", UUID, f"libvirt:{UUID}"),
        ("web?uri=qemu+ext:///system%3Fcommand=/tmp/mine", "x?uri=qemu+ssh://elsewhere/", ""),
        ("a?b=", "", ""),
        ("", UUID, f"libvirt:{UUID}"),
        ("what? [1]", UUID, "libvirt:what? [1]"),
    ],
)
def test_domain_whose_name_has_options(
    name: str, uuid: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a domain chooses no daemon, nor a program that libvirt starts to reach one."""
    chardev = "socket,id=charmonitor,path=/var/lib/libvirt/qemu/monitor.sock,server=on"
    words = ["qemu-system-x86_64", "-name", f"guest={name}", "-uuid", uuid, "-chardev", chardev, ""]
    monkeypatch.setattr(module, "command_line", lambda pid: words if pid == os.getpid() else [])
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "find_daemons", lambda *_: [])
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///system")
    (guest,) = vmdump.guests()
    assert guest.source == source
    assert guest.can_be_dumped or "virsh rename" in guest.reason


@pytest.mark.parametrize("program", ["qemu-img", "qemu-nbd", "qemu-aarch64", "sh", "virtqemud", "qemu-ga"])
def test_other_programs_are_no_guests(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "command_line", lambda pid: [f"/usr/bin/{program}", "-m", "1G", ""])
    assert vmdump.guests() == []
