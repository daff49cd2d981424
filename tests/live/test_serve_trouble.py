"""`vmdump serve` when something ends in the middle: QEMU, or itself. A guest that ran runs again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import command

from live.conftest import Hall
from live.doors import Serving
from live.dumping import guardians_of, until
from live.raw_client import Client, error_text

ENDS = 10


class Own:
    """A guest that runs behind a `serve` which the test may end."""

    def __init__(self, hall: Hall) -> None:
        self.hall = hall
        self.guest = hall.guest
        self.serving: Serving = hall.serving()
        if not self.guest.running():
            self.guest.monitor.execute("cont")

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.serving.path) as client:
            yield client

    @contextlib.contextmanager
    def held(self) -> Iterator[Client]:
        """A client whose dump waits in the pause for somebody who reads its pipe."""
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb"), self.client() as client:
            client.give("held", writer)
            os.close(writer)
            client.start_dump("fd:held")
            until(lambda: self.guest.monitor.status() == "paused", "the guest is paused")
            yield client

    def ended(self) -> int:
        """The exit code of `serve`, which must end soon."""
        return self.serving.child.wait(timeout=ENDS)


@pytest.fixture
def own(_bare_hall: Hall) -> Own:
    return Own(_bare_hall)


@pytest.fixture
def mortal() -> Iterator[Own]:
    """With a QEMU of the test's own."""
    with contextlib.closing(Hall("32M", boot=False, vmcoreinfo=False)) as hall:
        yield Own(hall)


def test_killed_in_the_pause(own: Own) -> None:
    with own.held() as client:
        own.serving.child.kill()
        own.ended()
        client.read_to_end()
        until(own.guest.running, "the guest runs again", ENDS)
    until(lambda: not guardians_of(own.guest), "its guardian is gone", ENDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ended_in_the_pause(own: Own, number: signal.Signals) -> None:
    with own.held() as client:
        own.serving.child.send_signal(number)
        code = own.ended()
        client.read_to_end()
        assert own.guest.running()
    assert code in (0, -number, 128 + number), own.serving.complaints.read_text()
    assert not own.serving.path.exists()
    assert not guardians_of(own.guest)


def test_ended_while_a_file_is_written(own: Own, tmp_path: Path) -> None:
    """Nothing half-written under its name, nor beside it."""
    with own.client() as client:
        client.start_dump(tmp_path / "dump", format="kdump-zlib")
        client.event("STOP")
        own.serving.child.terminate()
        own.ended()
    assert own.guest.running()
    assert {path.name for path in tmp_path.iterdir()} <= {"dump"}


def test_ended_when_nothing_is_done(own: Own) -> None:
    with own.client() as client:
        own.serving.child.terminate()
        assert own.ended() in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        client.read_to_end()
    assert not own.serving.path.exists()
    assert own.guest.running()
    assert "Traceback" not in own.serving.complaints.read_text()


def check_told(own: Own) -> None:
    """Assert that `serve` has ended by itself, in a line at most, and takes nobody any more."""
    own.ended()
    text = own.serving.complaints.read_text()
    assert "Traceback" not in text
    assert len(text.splitlines()) <= 1, text
    assert not own.serving.path.exists()


def test_qemu_is_killed(mortal: Own) -> None:
    with mortal.client() as client, mortal.client() as other:
        client.ask("query-dump")
        mortal.guest.process.kill()
        client.read_to_end()
        other.read_to_end()
    check_told(mortal)


def test_qemu_is_killed_in_a_dump(mortal: Own) -> None:
    with mortal.client() as other, mortal.held() as client:
        mortal.guest.process.kill()
        client.read_to_end()
        other.read_to_end()
        replies = [message for message in client.seen if "event" not in message]
        # The first is getfd's.
        assert all("error" in reply for reply in replies[1:])
    check_told(mortal)


def test_qemu_is_killed_while_a_file_is_written(mortal: Own, tmp_path: Path) -> None:
    with mortal.client() as client:
        client.start_dump(tmp_path / "dump", format="kdump-zlib")
        client.event("STOP")
        mortal.guest.process.kill()
        client.read_to_end()
    check_told(mortal)
    replies = [message for message in client.seen if "event" not in message]
    if not any("return" in reply for reply in replies):
        assert list(tmp_path.iterdir()) == []


def test_quit(mortal: Own) -> None:
    """Its answer and the event come, then the end."""
    with mortal.client() as client:
        client.start("quit", id="last")
        client.read_to_end()
        kinds = [message.get("event", message.get("id")) for message in client.seen]
        assert "last" in kinds
        assert "SHUTDOWN" in kinds
    check_told(mortal)


def test_quit_in_a_dump(mortal: Own) -> None:
    """QEMU ends, whoever waits for its memory."""
    with mortal.held() as client, mortal.client() as other:
        other.start("quit")
        other.read_to_end()
        client.read_to_end()
    check_told(mortal)
    mortal.guest.process.wait(timeout=ENDS)


def test_others_act_in_a_dump(own: Own) -> None:
    """Somebody at another monitor resumes the guest: the dump is not of one moment any more, and fails."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, own.client() as client:
        client.give("held", writer)
        os.close(writer)
        client.start_dump("fd:held")
        until(lambda: own.guest.monitor.status() == "paused", "the guest is paused")
        own.guest.monitor.execute("cont")
        file.read()
        assert error_text(client.reply())
        (event,) = client.events("DUMP_COMPLETED")
        assert event["data"]["result"]["status"] == client.ask("query-dump")["status"] == "failed"
    assert own.guest.running()


def test_path_that_somebody_listens_at(own: Own) -> None:
    """It is not taken away from the one who has it."""
    second = command.run("serve", f"qmp:{own.hall.own}", "--listen", own.serving.path, timeout=ENDS)
    assert second.returncode != 0
    assert str(own.serving.path) in second.stderr.decode()
    assert len(second.stderr.decode().splitlines()) == 1
    with own.client() as client:
        assert "return" in client.call("query-dump")
