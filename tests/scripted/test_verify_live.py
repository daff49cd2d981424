"""A comparison with a live guest, which is paused meanwhile: what stops a process does not stop it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import vmdump
from scripted.fake_qemu import FakeQemu
from scripted.test_other_people import PATIENCE, check_goes_on, go_on, line_of, started

pytestmark = pytest.mark.usefixtures("nothing_left")

# Waits inside the stop, for a line.
VERIFY = """
import sys
import vmdump.operations.verify
from vmdump.cli.main import main

module = sys.modules["vmdump.operations.verify"]
scan = module._scan

def hold(*arguments):
    print("held", flush=True)
    sys.stdin.readline()
    return scan(*arguments)

module._scan = hold
sys.exit(main(["verify", sys.argv[1], "--against", sys.argv[2]]))
"""


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN])
def test_signals_that_stop_a_process_that_verifies(number: signal.Signals, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path) as qemu:
        vmdump.dump(qemu.source, out / "first")
        with started("-c", VERIFY, out / "first", qemu.source, process_group=0) as child:
            assert line_of(child) == "held"
            assert not qemu.running
            child.send_signal(number)
            go_on(child)
            check_goes_on(child, qemu)
