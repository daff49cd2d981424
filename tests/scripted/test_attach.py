"""Attaching to a guest over QMP: who is refused, what is asked, and what QEMU's answers make of it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command import RunVmdump
from oracles.elf import ElfCore
from oracles.elf_builder import Load, build_elf, note

import vmdump
from scripted.fake_qemu import PAGE, TICK, FakeQemu, Ram, inside_stop, rule
from vmdump.errors import (
    AccessDenied,
    CapabilityError,
    FormatError,
    GuestBusy,
    LayoutError,
    QmpError,
    SinkError,
    SourceError,
    VmdumpError,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
UNTOUCHED = ("stop", "cont", "dump-guest-memory", "getfd")
MACHINE_TYPE = {"path": "/machine", "property": "type"}
QOM_KIND = "qom-get confidential-guest-support"


def check_dump(path: Path, qemu: FakeQemu) -> None:
    """The file holds the guest's memory, byte for byte."""
    core = ElfCore(path).check_vmdump_layout()
    for start, contents in qemu.contents():
        assert core.read(start, len(contents)) == contents


def refused(qemu: FakeQemu, out: Path, kind: type[VmdumpError], **options: Any) -> VmdumpError:
    """The dump ends with one line of that class and leaves no file."""
    with pytest.raises(kind) as caught:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf", **options)
    assert not list(out.iterdir())
    assert len(str(caught.value).splitlines()) == 1, str(caught.value)
    return caught.value


def test_running_guest_is_paused_for_the_dump(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, [Ram(0), Ram(1 << 32, kind="memfd")]) as qemu:
        report = vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert qemu.commands.count("stop") == qemu.commands.count("cont") == 1
        stopped, ran = qemu.commands.index("stop"), qemu.commands.index("cont")
        assert "dump-guest-memory" in qemu.commands[stopped:ran]
        assert qemu.running
        check_dump(out / "guest.elf", qemu)
    # At the attach QEMU stops the guest itself for the headers: two times, each from one tick to the next.
    assert report.paused_seconds == 2 * TICK
    assert not report.fuzzy
    assert not report.unreadable


def test_paused_seconds_are_those_of_the_events(tmp_path: Path, out: Path) -> None:
    """Events of other clients in between take ticks, too: the guest was paused for three."""
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as guest:
        assert guest.paused_seconds == TICK
        noise = iter((1, 1))

        def tell(done: int, total: int) -> None:
            if next(noise, None):
                qemu.event("BLOCK_JOB_READY")

        report = vmdump.dump(guest, out / "guest.elf", format="elf", progress=inside_stop(tell))
    assert report.paused_seconds == TICK + 3 * TICK


@pytest.mark.parametrize("running", [True, False])
def test_info_tells_what_it_is_attached_to(running: bool, tmp_path: Path, run_vmdump: RunVmdump) -> None:
    """A live guest is no dump: it is run by a QEMU, and was neither made nor written, and has no size."""
    with FakeQemu(tmp_path, running=running) as qemu:
        done = run_vmdump("info", qemu.source)
        live = json.loads(run_vmdump("info", qemu.source, "--json").stdout)["live"]
        state = "running" if running else "paused"
        path = qemu.source.removeprefix("qmp:")
        assert live == {"state": state, "path": path, "process": qemu.pid, "machine": live["machine"]}
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"live guest   {state}"
    assert lines[1].startswith(f"run by       QEMU 9.2.0, process {live['process']}")
    assert lines[2] == f"reached by   {path}"
    assert not [line for line in lines if line.startswith(("format", "made by", "written", "size"))]


def test_paused_guest_stays_paused(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, running=False) as qemu:
        report = vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert "stop" not in qemu.commands
        assert "cont" not in qemu.commands
        check_dump(out / "guest.elf", qemu)
    assert report.paused_seconds == 0
    assert not report.fuzzy


def test_no_pause_is_fuzzy(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        report = vmdump.dump(qemu.source, out / "guest.elf", format="elf", pause=False)
        assert "stop" not in qemu.commands
        assert "cont" not in qemu.commands
    assert report.fuzzy
    assert (b"VMDUMP", b"FUZZY=1\n") in [
        (found.name, found.desc) for found in ElfCore(out / "guest.elf").note_list()
    ]


@pytest.mark.parametrize("kind", ["sev-guest", "sev-snp-guest", "tdx-guest", ""])
def test_encrypted_guest(kind: str, tmp_path: Path, out: Path) -> None:
    answers = {QOM_KIND: "/objects/lock0", "qom-get type": kind}
    with FakeQemu(tmp_path, answers=answers) as qemu:
        error = refused(qemu, out, CapabilityError)
        assert not set(qemu.commands) & set(UNTOUCHED)
    assert (kind or "/objects/lock0") in str(error)
    assert error.exit_code == 7


def test_encrypted_guest_of_a_qemu_without_the_property(tmp_path: Path, out: Path) -> None:
    answers = {"qom-get": {"error": ["GenericError", "no such property"]}, "query-sev": {"enabled": True}}
    with FakeQemu(tmp_path, answers=answers) as qemu:
        assert "sev-guest" in str(refused(qemu, out, CapabilityError))
        assert not set(qemu.commands) & set(UNTOUCHED)


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ({"query-migrate": {"status": state}}, state)
        for state in ("setup", "active", "postcopy-active", "postcopy-paused", "device", "pre-switchover")
    ]
    + [
        ({"query-status": {"status": "inmigrate", "running": False}}, "inmigrate"),
        ({"query-dump": {"status": "active", "completed": 0, "total": 1}}, "dump"),
    ],
)
def test_busy_guest(answers: dict[str, Any], state: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers=answers) as qemu:
        error = refused(qemu, out, GuestBusy)
        assert not set(qemu.commands) & set(UNTOUCHED)
    assert isinstance(error, GuestBusy)
    assert error.state == state
    assert error.exit_code == 12


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled"])
def test_migration_that_is_over(status: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={"query-migrate": {"status": status}}) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        check_dump(out / "guest.elf", qemu)


def test_migration_that_begins_after_the_attach(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as guest:
        qemu.ask("answer", command="query-migrate", answer={"status": "active"})
        with pytest.raises(GuestBusy):
            vmdump.dump(guest, out / "guest.elf", format="elf")
        assert "stop" not in qemu.commands
        assert not list(out.iterdir())


def test_what_never_changes_is_asked_for_once(tmp_path: Path, out: Path) -> None:
    """At the attach, and not while the guest is paused."""
    with FakeQemu(tmp_path) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf", compat="qemu")
        stopped, ran = qemu.commands.index("stop"), qemu.commands.index("cont")
        machine = [entry for entry in qemu.log if entry.get("arguments") == MACHINE_TYPE]
        assert qemu.commands.count("query-target") == len(machine) == 1
        assert not {"query-target", "qom-get"} & set(qemu.commands[stopped:ran])


def test_old_qemu_knows_less(tmp_path: Path, out: Path) -> None:
    """A command that it has not got is no error, and neither is a property."""
    unknown = {"error": ["CommandNotFound", "The command has not been found"]}
    answers = dict.fromkeys(("qom-get", "query-sev", "query-dump", "query-migrate"), unknown)
    with FakeQemu(tmp_path, answers=answers) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        check_dump(out / "guest.elf", qemu)


def test_dump_that_qemu_refuses(tmp_path: Path, out: Path) -> None:
    """The descriptor that was passed is taken back: QEMU would keep it for ever."""
    answers = {"dump-guest-memory": {"error": ["GenericError", "This feature is not supported"]}}
    with FakeQemu(tmp_path, answers=answers) as qemu:
        error = refused(qemu, out, QmpError)
        assert qemu.commands[-2:] == ["dump-guest-memory", "closefd"]
        assert qemu.open_pipes() == 2  # its input and output
    assert isinstance(error, QmpError)
    assert (error.command, error.error_class, error.exit_code) == ("dump-guest-memory", "GenericError", 13)


def test_dump_that_qemu_refuses_while_the_guest_is_stopped(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, rules=[rule("dump-guest-memory", "error", 2)]) as qemu:
        error = refused(qemu, out, QmpError)
        assert isinstance(error, QmpError)
        assert error.command == "dump-guest-memory"
        assert qemu.commands.count("cont") == 1
        assert "closefd" in qemu.commands
        assert qemu.running


HEADERS = build_elf([Load(0, filesz=64 * PAGE)], notes=note(b"CORE", 1, bytes(336)))
MANY_NOTES = b"".join(note(b"CORE", 1, bytes([n % 251]) * 336) for n in range(1000))


@pytest.mark.parametrize(
    "elf",
    [
        b"",
        b"\x7fELF",
        b"not an ELF core, whatever else it may be" * 100,
        HEADERS[:63],
        HEADERS[:100],
        HEADERS[:-1],
        build_elf([Load(0, filesz=64 * PAGE)], e_type=2),
        build_elf([Load(0, filesz=64 * PAGE)], notes=struct.pack("<III", 5, 1 << 20, 1) + b"CORE\0\0\0\0"),
        build_elf([Load(0, filesz=64 * PAGE)], phoff=1 << 40),
        build_elf([Load(0, filesz=64 * PAGE)], phnum=60000),
    ],
    ids=lambda elf: f"{len(elf)} bytes",
)
def test_headers_that_are_none(elf: bytes, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, elf=elf) as qemu:
        error = refused(qemu, out, FormatError)
    assert isinstance(error, FormatError)
    assert error.path == qemu.path


def test_qemu_ends_within_its_headers(tmp_path: Path, out: Path) -> None:
    """It is not asked once more, as it is where the headers need a larger pipe."""
    with FakeQemu(tmp_path, elf=HEADERS[:100], rules=[rule("dump-guest-memory", "done-close")]) as qemu:
        error = refused(qemu, out, QmpError)
        assert "during dump-guest-memory" in str(error)
        assert qemu.commands.count("dump-guest-memory") == 1


@pytest.mark.parametrize("running", [True, False])
def test_headers_that_never_end(running: bool, tmp_path: Path, out: Path) -> None:
    """A stream that claims notes beyond all reason is cut off before it is read."""
    notes = struct.pack("<Q", 65 << 20)
    elf = bytearray(build_elf([Load(0, filesz=64 * PAGE)], notes=note(b"CORE", 1, bytes(336))))
    elf[64 + 32 : 64 + 40] = notes  # p_filesz of the PT_NOTE
    with FakeQemu(tmp_path, elf=bytes(elf), endless=True, running=running) as qemu:
        refused(qemu, out, FormatError)
        assert qemu.running


def test_data_that_never_ends(tmp_path: Path, out: Path) -> None:
    """What follows the headers is QEMU's affair: the pipe is closed."""
    with FakeQemu(tmp_path, elf=HEADERS + bytes(1 << 20), endless=True) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        check_dump(out / "guest.elf", qemu)


def test_memory_that_fits_into_the_pipe(tmp_path: Path, out: Path) -> None:
    """QEMU gets all of it written, and reports no error."""
    with FakeQemu(tmp_path, [Ram(pages=2, written=(0,))], elf=HEADERS.replace(
        struct.pack("<QQ", 64 * PAGE, 64 * PAGE), struct.pack("<QQ", 2 * PAGE, 2 * PAGE)
    )) as qemu:  # fmt: skip
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        check_dump(out / "guest.elf", qemu)


@pytest.mark.parametrize(("times", "least"), [(1, 256 << 10), (8, 2 << 20)], ids=["larger", "largest"])
def test_more_notes_than_the_pipe_holds(times: int, least: int, tmp_path: Path, out: Path) -> None:
    notes = MANY_NOTES * times
    assert len(notes) > least
    with FakeQemu(tmp_path, notes=notes) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        assert ElfCore(out / "guest.elf").notes == notes
        check_dump(out / "guest.elf", qemu)


def test_blocks_in_any_order(tmp_path: Path, out: Path) -> None:
    rams = [Ram(1 << 32, kind="memfd"), Ram(0), Ram(1 << 20, kind="zero")]
    with FakeQemu(tmp_path, rams) as qemu:
        vmdump.dump(qemu.source, out / "guest.elf", format="elf")
        check_dump(out / "guest.elf", qemu)


def test_blocks_that_overlap(tmp_path: Path, out: Path) -> None:
    elf = build_elf([Load(0, filesz=64 * PAGE), Load(32 * PAGE, filesz=16 * PAGE)]) + bytes(1 << 20)
    with FakeQemu(tmp_path, elf=elf) as qemu:
        refused(qemu, out, LayoutError)


@pytest.mark.parametrize(
    "text",
    [
        "Error: No memory is mapped at address 0x0\r\n",
        "Error: Memory at address 0x0 is not RAM\r\n",
        "Error: invalid char 'x' in expression\r\n",
        "",
    ],
)
def test_address_that_qemu_does_not_know(text: str, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={"human-monitor-command": text}) as qemu:
        error = refused(qemu, out, LayoutError)
        assert qemu.running
    assert isinstance(error, LayoutError)
    assert error.address == 0
    assert text.removeprefix("Error: ").strip() in str(error)


def test_block_that_is_not_in_one_piece(tmp_path: Path, out: Path) -> None:
    """The first page here, the last one there: what lies between is not known."""
    with FakeQemu(tmp_path, [Ram(0, pages=64), Ram(1 << 20, pages=64)]) as qemu:
        places = [(0, qemu.rams[0].address, 32 * PAGE), (32 * PAGE, qemu.rams[1].address, 32 * PAGE)]
        folder = tmp_path / "second"
        folder.mkdir()
        with FakeQemu(folder, [Ram(0, pages=64)], places=places) as broken:
            error = refused(broken, out, LayoutError)
    assert "contiguous" in str(error)


def test_process_that_does_not_hold_the_memory(tmp_path: Path, out: Path) -> None:
    """So it looks behind a proxy: QMP answers, but the addresses are another process's."""
    with FakeQemu(tmp_path, places=[(0, 0x10000, 64 * PAGE)]) as qemu:
        error = refused(qemu, out, SourceError)
        assert str(qemu.pid) in str(error)
    assert isinstance(error, SourceError)
    assert error.address == 0
    assert "proxy" in error.hint


def test_guest_that_ends_within_the_block(tmp_path: Path, out: Path) -> None:
    """The process has a gap in the middle of the block."""
    with FakeQemu(tmp_path) as qemu:
        qemu.ask("munmap", address=qemu.rams[0].address + 20 * PAGE, size=PAGE)
        refused(qemu, out, SourceError)
        assert qemu.running


def test_held_guest_is_not_written_over_what_its_qemu_has_open(tmp_path: Path) -> None:
    """Also where the guest is dumped, and not its source: nobody asks the source then."""
    with (
        FakeQemu(tmp_path) as qemu,
        vmdump.open_source(qemu.source) as source,
        source.held(pause=True, cancelled=lambda: False) as guest,
    ):
        for each in (source, guest, guest.without_search()):
            with pytest.raises(SinkError, match="may be a disk of the guest"):
                vmdump.dump(each, tmp_path / "monitor.log", force=True)


def test_second_dump_of_the_same_guest(tmp_path: Path, out: Path) -> None:
    """Over another monitor of the same QEMU: two would stop and start the guest behind each other's back."""
    with FakeQemu(tmp_path) as qemu, vmdump.open_source(qemu.source) as first:
        second = tmp_path / "second.sock"
        qemu.ask(
            "serve", path=str(second), log=str(tmp_path / "second.log"), elf=str(tmp_path / "headers"),
            regions=[(ram.start, ram.address, ram.size) for ram in qemu.rams], answers={}, rules=[],
            running=True,
        )  # fmt: skip
        with first.held(pause=True, cancelled=lambda: False):
            with pytest.raises(GuestBusy) as caught:
                vmdump.dump(f"qmp:{second}", out / "guest.elf", format="elf")
            assert caught.value.state == "dump"
            assert not list(out.iterdir())
            with pytest.raises(GuestBusy):
                vmdump.dump(first, out / "guest.elf", format="elf")
        assert '"stop"' not in (tmp_path / "second.log").read_text()
        vmdump.dump(f"qmp:{second}", out / "guest.elf", format="elf")
        vmdump.dump(first, out / "again.elf", format="elf")


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[str]:
    """A listener that takes the connection and says nothing."""
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield f"qmp:{path}"


@pytest.mark.usefixtures("hasty")
def test_socket_that_somebody_else_holds(mute: str, out: Path) -> None:
    with pytest.raises(QmpError, match="one client at a time"):
        vmdump.dump(mute, out / "guest.elf")


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"{}\r\n", b"[1]\r\n", b'{"QMP": 1}\r\n'])
def test_socket_of_something_else(said: bytes, tmp_path: Path, out: Path) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(QmpError) as caught:
                vmdump.dump(f"qmp:{path}", out / "guest.elf")
        finally:
            thread.join()
    assert len(str(caught.value).splitlines()) == 1, str(caught.value)


def test_no_socket(tmp_path: Path, out: Path) -> None:
    with pytest.raises(SourceError, match="-qmp unix:") as caught:
        vmdump.dump(f"qmp:{tmp_path}/none", out / "guest.elf")
    assert caught.value.errno == 2
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    with pytest.raises(SourceError, match="has ended") as caught:
        vmdump.dump(f"qmp:{dead}", out / "guest.elf")
    assert caught.value.errno == 111
    with pytest.raises(SourceError, match="107 bytes"):
        vmdump.dump("qmp:" + "x" * 200, out / "guest.elf")
    assert not isinstance(caught.value, AccessDenied)


def test_tcp_is_refused(out: Path) -> None:
    with pytest.raises(CapabilityError, match="TCP"):
        vmdump.dump("qmp:example.org:4444", out / "guest.elf")


@pytest.mark.parametrize("listed", [True, False])
def test_command_line(listed: bool, tmp_path: Path, out: Path, run_vmdump: Any) -> None:
    """The exit code and the one line, in a process of its own."""
    answers = {} if listed else {"query-migrate": {"status": "postcopy-active"}}
    with FakeQemu(tmp_path, answers=answers) as qemu:
        done = run_vmdump("dump", qemu.source, out / "guest.elf", "-f", "elf", "-q")
        assert qemu.running
        if listed:
            assert (done.returncode, done.stderr) == (0, b"")
            check_dump(out / "guest.elf", qemu)
        else:
            assert done.returncode == 12
            assert len(done.stderr.splitlines()) == 1
            assert b"postcopy-active" in done.stderr
            assert not list(out.iterdir())


@pytest.mark.parametrize("searched", [True, False])
def test_a_session_with_another_vmcoreinfo_is_one(searched: bool, tmp_path: Path) -> None:
    """It is dumped, verified against and closed as the one that it is of."""
    text = b"OSRELEASE=6.1.0-given\nPAGESIZE=4096\n"
    path = tmp_path / "dump"
    with FakeQemu(tmp_path) as qemu:
        source = vmdump.open_source(qemu.source)
        with source.with_vmcoreinfo(text) if searched else source.without_search() as view:
            assert isinstance(view, vmdump.Source)
            assert repr(source.guest) in repr(source)
            report = vmdump.dump(view, path, format="elf")
            assert report.paused_seconds is not None
            assert vmdump.verify(path, against=view).whole
        with vmdump.open(path, search=False) as dump:
            assert dump.vmcoreinfo.get("OSRELEASE") == ("6.1.0-given" if searched else None)
        with vmdump.open_source(qemu.source):  # QEMU serves one client at a time
            pass
