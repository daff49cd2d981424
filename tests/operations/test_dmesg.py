"""``vmdump dmesg``: where it finds the kernel's log, and how it prints it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.command import RunVmdump, on_a_terminal
from oracles.log_ring import BASE, LINES, SIZE, Ring

import vmdump
from vmdump import errors


def test_spaces_are_printed_as_they_are(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """As makedumpfile does: isspace(3). On a terminal that holds for tabs."""
    ring = Ring()
    ring.add(b"a\tb\vc\fd\re\n\x1b[2J \x85\x9b\x7f\x00\\")
    source = vmdump.BlockSource(np.frombuffer(ring.finish(), np.uint8), vmcoreinfo=LINES.encode())
    vmdump.dump(source, tmp_path / "dump")
    done = run_vmdump("dmesg", tmp_path / "dump")
    escaped = rb"\x1b[2J \x85\x9b\x7f\x00\ ".rstrip()
    indent = b" " * 15
    assert done.stdout == b"[    0.000000] a\tb\x0bc\x0cd\re\n" + indent + escaped + b"\n"
    shown = on_a_terminal(["dmesg", str(tmp_path / "dump")])
    assert shown == b"[    0.000000] a\tb" + rb"\x0bc\x0cd\re" + b"\n" + indent + escaped + b"\n"


def test_guest_that_is_no_linux(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(SIZE))
    done = run_vmdump("dmesg", f"raw:{tmp_path / 'ram'}")
    assert done.returncode == errors.CapabilityError.exit_code
    assert done.stderr.decode().startswith("vmdump: no VMCOREINFO: ")
    assert len(done.stderr.splitlines()) == 1


def test_vmcoreinfo_is_looked_for_in_memory(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    ring = Ring()
    ring.add(b"found it")
    ring.finish()
    release = b"6.1.0".ljust(65, b"\0")
    names = (
        b"Linux".ljust(65, b"\0")
        + b"guest".ljust(65, b"\0")
        + release
        + release
        + b"x86_64".ljust(130, b"\0")
    )
    ring.memory[0x8000 : 0x8000 + len(names)] = names
    text = f"{LINES}SYMBOL(init_uts_ns)={BASE + 0x8000:x}\nOFFSET(uts_namespace.name)=0\n".encode()
    ring.memory[0x9000 : 0x9000 + len(text)] = text
    (tmp_path / "ram").write_bytes(ring.memory)
    done = run_vmdump("dmesg", f"raw:{tmp_path / 'ram'}")
    assert done.stdout == b"[    0.000000] found it\n", done.stderr
