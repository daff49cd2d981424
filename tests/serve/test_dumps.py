"""Dumps through `vmdump serve` of a scripted guest: what is written, asked of QEMU, told to clients."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.qmp_client import QmpClient, Started, start_serve, until
from oracles.elf import ElfCore
from scripted.fake_qemu import FakeQemu, Ram

import vmdump
from vmdump.serve.arguments import DumpArguments, left_to_qemu, parse_line, parse_request
from vmdump.serve.upstream import _without_own

Serve = Callable[..., tuple[FakeQemu, Started, QmpClient]]
MUCH = 8192
"""Pages; of fewer, all may be read before anybody reads the pipe, and then the guest runs again."""
WITHOUT_DAEMONS = """
from vmdump.__main__ import run
from vmdump.sources.libvirt import daemons
daemons._DAEMONS = ()
run()
"""
IN_PROCESS = "There is a dump in process, please wait."
ENDED = ["STOP", "DUMP_COMPLETED", "RESUME"]


@pytest.fixture
def serve(stack: ExitStack, tmp_path: Path) -> Serve:
    """serve(...): a scripted QEMU, `vmdump serve` in front of it, and a client."""

    def make(code: str = "", pages: int = 64, **options: Any) -> tuple[FakeQemu, Started, QmpClient]:
        rams = [Ram(0), Ram(1 << 32, pages, kind="memfd")]
        qemu = stack.enter_context(FakeQemu(tmp_path, rams, **options))
        served = stack.enter_context(start_serve(qemu.path, tmp_path, code=code))
        return qemu, served, stack.enter_context(QmpClient(served.path))

    return make


def dump(client: QmpClient, protocol: object, **arguments: Any) -> list[Any]:
    return client.until_reply("dump-guest-memory", paging=False, protocol=str(protocol), **arguments)


def pages(path: Path) -> bytes:
    with vmdump.open(path) as found:
        return b"".join(bytes(found.read(block.start, block.size)) for block in found.blocks)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-zstd", "kdump-raw-zlib", "kdump-raw-zstd"])
def test_every_page(serve: Serve, tmp_path: Path, name: str) -> None:
    qemu, _, client = serve()
    path = tmp_path / "dump"
    assert dump(client, f"file:{path}", format=name) == [*ENDED, {"return": {}}]
    assert pages(path) == b"".join(contents for _, contents in qemu.contents())
    assert (path.read_bytes()[:12] == b"makedumpfile") == (name in ("kdump-zlib", "kdump-zstd"))
    assert qemu.commands.count("stop") == qemu.commands.count("cont") == 1
    assert qemu.running
    size = sum(ram.size for ram in qemu.rams)
    assert client.ask("query-dump")["return"] == {"status": "completed", "completed": size, "total": size}


def test_clients_hear_nothing_of_headers(serve: Serve, tmp_path: Path) -> None:
    qemu, _, client = serve()
    dump(client, f"file:{tmp_path}/dump")
    sent = [entry["event"] for entry in qemu.log if "event" in entry]
    assert sent.count("STOP") > 1
    assert [event["event"] for event in client.events] == ENDED
    stop, end, resume = client.events
    # The guest ran before the file was whole: QEMU's own time says so.
    assert stop["timestamp"]["seconds"] <= resume["timestamp"]["seconds"] < end["timestamp"]["seconds"]


def test_stopped_guest(serve: Serve, tmp_path: Path) -> None:
    qemu, _, client = serve(running=False)
    assert dump(client, f"file:{tmp_path}/dump") == ["DUMP_COMPLETED", {"return": {}}]
    assert "cont" not in qemu.commands


def test_detached(serve: Serve, tmp_path: Path) -> None:
    _, _, client = serve()
    assert dump(client, f"file:{tmp_path}/dump", detach=True) == ["STOP", {"return": {}}]
    client.event("RESUME")
    assert [event["event"] for event in client.events] == ENDED


def test_by_the_human_monitor(serve: Serve, tmp_path: Path) -> None:
    qemu, _, client = serve()
    assert client.line(f"dump-guest-memory {tmp_path}/dump 0x1000 8192") == ""
    core = ElfCore(tmp_path / "dump")
    assert core.read(0x1000, 8192) == qemu.contents()[0][1][0x1000:0x3000]
    assert client.line("info dump") == "Status: completed\r\n"
    assert client.line(f'dump-guest-memory -z -R "{tmp_path}/with space"') == ""
    assert (tmp_path / "with space").read_bytes()[:5] == b"KDUMP"
    text = "Error: Could not open '/missing/x': No such file or directory\r\n"
    assert client.line("dump-guest-memory /missing/x") == text


def test_into_a_pipe_whose_reader_goes_away(serve: Serve) -> None:
    qemu, _, client = serve()
    reader, writer = os.pipe()
    assert client.ask("getfd", fdname="pipe", fds=[writer]) == {"return": {}}
    os.close(writer)
    os.close(reader)
    *events, reply = dump(client, "fd:pipe")
    assert events == ENDED
    assert reply["error"] == {"class": "GenericError", "desc": client.events[1]["data"]["error"]}
    assert "Broken pipe" in reply["error"]["desc"]
    assert client.events[1]["data"]["result"]["status"] == "failed"
    assert client.ask("query-dump")["return"]["status"] == "failed"
    assert qemu.running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_pause(serve: Serve, number: signal.Signals) -> None:
    qemu, served, client = serve(pages=MUCH)
    with QmpClient(served.path) as other:
        reader, writer = os.pipe()
        client.ask("getfd", fdname="pipe", fds=[writer])
        os.close(writer)
        client.post("dump-guest-memory", paging=False, protocol="fd:pipe")
        other.event("STOP")
        until(lambda: not qemu.running)
        assert other.ask("dump-guest-memory", paging=False, protocol="file:/x")["error"]["desc"] == IN_PROCESS
        assert other.ask("stop")["error"]["desc"] == IN_PROCESS
        os.kill(served.pid, number)
        served.wait()
        until(lambda: qemu.running)
        assert client.at_end()
        os.close(reader)


def test_ended_while_qemu_hangs(serve: Serve) -> None:
    """Nobody waits the minutes that QEMU has for an answer."""
    qemu, served, client = serve(rules=[{"command": "query-status", "do": "silent"}])
    client.post("dump-guest-memory", paging=False, protocol="file:/x")
    until(lambda: "query-status" in qemu.commands)
    os.kill(served.pid, signal.SIGTERM)
    assert served.wait() == 128 + signal.SIGTERM
    assert client.at_end()


def test_file_that_is_there_keeps_its_mode_and_stays_if_the_dump_fails(serve: Serve, tmp_path: Path) -> None:
    _, _, client = serve()
    path = tmp_path / "dump"
    path.write_text("old")
    path.chmod(0o640)
    assert "error" in dump(client, f"file:{path}", begin=1 << 50, length=1)[-1]
    assert path.read_text() == "old"
    assert dump(client, f"file:{path}", begin=0, length=4096)[-1]
    assert path.stat().st_mode & 0o777 == 0o640


def test_capability(serve: Serve) -> None:
    answer = {"return": {"formats": ["elf", "kdump-zlib", "win-dmp"]}}
    _, _, client = serve(answers={"query-dump-guest-memory-capability": answer["return"]})
    formats = client.ask("query-dump-guest-memory-capability")["return"]["formats"]
    assert {"elf", "kdump-zlib", "kdump-raw-zlib", "kdump-zstd", "win-dmp"} <= set(formats)


def test_guest_of_libvirt(serve: Serve) -> None:
    """QEMU may end no dump whose end libvirt's daemon might not survive; what QEMU refuses it may refuse."""
    place = "unix:/run/user/7/libvirt/qemu/lib/monitor.sock,server=on"
    devices = [{"frontend-open": True, "filename": place, "label": "charmonitor"}]
    answers = {"query-chardev": devices, "query-dump": {"status": "none", "completed": 0, "total": 0}}
    rules = [{"command": "dump-guest-memory", "do": "error"}]
    qemu, _, client = serve(WITHOUT_DAEMONS, answers=answers, rules=rules)
    for wanted in (
        {"protocol": "file:/x"},
        {"protocol": "file:/x", "format": "win-dmp"},
        {"protocol": "file:/dev/fdset/1"},
        {"protocol": "fd:unknown"},
        {"protocol": "file:/x", "later": 1},
    ):
        reply = client.ask("dump-guest-memory", paging=False, **wanted)
        assert "is libvirt's" in reply["error"]["desc"]
    for line in ("dump-guest-memory /x", "dump-guest-memory -w /x", "dump-guest-memory/x"):
        assert "is libvirt's" in client.line(line)
    line = "dump-guest-memory /x"
    reply = client.ask("human-monitor-command", command_line=line, cpu_index=0)
    assert "is libvirt's" in reply["return"]
    assert not {"dump-guest-memory", "human-monitor-command", "stop"} & set(qemu.commands)
    for wrong in ({"protocol": "x"}, {"protocol": "file:/x", "begin": 1}, {"protocol": 7}):
        assert client.ask("dump-guest-memory", paging=False, **wrong)["error"]["desc"] == "injected"
    assert qemu.commands.count("dump-guest-memory") == 3


@pytest.mark.parametrize(
    ("came", "told"),
    [
        ([], []),
        (["STOP", "DUMP_COMPLETED", "RESUME"], []),
        (["DUMP_COMPLETED"], []),
        (["STOP", "DUMP_COMPLETED"], ["STOP"]),
        (["STOP", "X", "DUMP_COMPLETED", "RESUME", "Y"], ["X", "Y"]),
        (["STOP", "RESUME", "STOP", "DUMP_COMPLETED", "RESUME"], ["STOP", "RESUME"]),
        (["STOP", "RESUME", "X"], ["X"]),
        (["RESUME", "STOP"], ["RESUME", "STOP"]),
        (["STOP", "X", "RESUME"], ["STOP", "X", "RESUME"]),
    ],
)
def test_own_events(came: list[str], told: list[str]) -> None:
    assert [event["event"] for event in _without_own([{"event": name} for name in came])] == told


@pytest.mark.parametrize(
    "wrong",
    [
        {"paging": 1},
        {"protocol": None},
        {"x": 1},
        {"begin": True, "length": 1},
        {"begin": 0.0, "length": 1},
        {"begin": 1 << 63, "length": 1},
        {"format": "quux"},
        {"format": "win-dmp"},
        {"detach": None},
    ],
)
def test_types_are_qemus_to_refuse(wrong: dict[str, Any]) -> None:
    assert parse_request({"paging": False, "protocol": "file:/x", **wrong}) is None


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("dump-guest-memory x", DumpArguments(False, "file:x")),
        (" dump-guest-memory  -p -d  x ", DumpArguments(True, "file:x", detach=True)),
        ("dump-guest-memory -l x", DumpArguments(False, "file:x", format="kdump-lzo")),
        ("dump-guest-memory -s -R x", DumpArguments(False, "file:x", format="kdump-raw-snappy")),
        ('dump-guest-memory "a \\"b\\n"', DumpArguments(False, 'file:a "b\n')),
        ("dump-guest-memory x 010 0x10", DumpArguments(False, "file:x", begin=8, length=16)),
        ("dump-guest-memory x 1", DumpArguments(False, "file:x", begin=1)),
        *(
            (f"dump-guest-memory {rest}", None)
            for rest in ("", "-w x", "-z -l x", "-d -p x", "-x y", "x 1+1 2")
        ),
        *(
            (f"dump-guest-memory {rest}", None)
            for rest in ("x 1 2 3", '"x', "x 09 1", "x 0x8000000000000000 1")
        ),
        ("dump-guest-memoryx y", None),
    ],
)
def test_lines(line: str, made: DumpArguments | None) -> None:
    assert parse_line(line) == made


def test_what_is_left_to_qemu() -> None:
    file = DumpArguments(False, "file:/nowhere/x")
    assert left_to_qemu(file) is None
    assert left_to_qemu(DumpArguments(False, "fd:x", format="kdump-zstd")) is None
    for wrong in ("x", "", "file:", "file:/dev/fdset/3", "file:/dev/stdout", "file:/proc/self/fd/1"):
        assert left_to_qemu(DumpArguments(False, wrong)) == DumpArguments(False, wrong)
    # It has to know the format in order to say what is wrong.
    told = left_to_qemu(DumpArguments(True, "file:/nowhere/x", format="kdump-zstd"))
    assert told == DumpArguments(True, "file:/nowhere/x", format="kdump-zlib")
