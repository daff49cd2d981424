"""Other people's readers: drgn, makedumpfile, libkdumpfile and readelf, each through its own front door."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

# libkdumpfile's Python binding is a distribution package: it belongs to the system's interpreter.
SYSTEM_PYTHON = "/usr/bin/python3"
# Made by scripts/guest.
GUEST = Path(__file__).resolve().parents[2] / "build/guest"
Ranges = Iterable[tuple[int, int]]

_LIBKDUMPFILE_READER = """
import json, sys
import kdumpfile
request = json.load(sys.stdin)
dump = kdumpfile.kdumpfile(request["path"])
for address, size in request["ranges"]:
    sys.stdout.buffer.write(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, address, size))
"""
_LIBKDUMPFILE_ATTRIBUTES = """
import json, sys
import kdumpfile
request = json.load(sys.stdin)
dump = kdumpfile.kdumpfile(request["path"])
json.dump({name: dump.attr[name] for name in request["names"]}, sys.stdout)
"""


@functools.cache
def _missing(name: str) -> str:
    """Why a judge cannot be asked, or an empty string."""
    if name in ("drgn", "mypy", "pakunoda", "volatility3"):
        return "" if importlib.util.find_spec(name) else f"the Python package {name} is not installed"
    if name == "libkdumpfile":
        probe = subprocess.run([SYSTEM_PYTHON, "-c", "import kdumpfile"], capture_output=True, check=False)
        return "" if probe.returncode == 0 else "the system package python3-libkdumpfile is not installed"
    if name == "guest":
        if not all((GUEST / part).exists() for part in ("vmlinuz", "initrd.gz", "crash.gz")):
            return "scripts/guest has not made the guest's kernel and initramfs"
        return _missing("qemu-system-x86_64")
    if name == "libvirt":
        return _missing_of_libvirt()
    return "" if shutil.which(name) else f"the program {name} is not installed"


def _missing_of_libvirt() -> str:
    """Why there can be no libvirtd as the distribution configures it, or an empty string."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    for program in ("libvirtd", "virtlogd", "virsh", "nsenter", "unshare"):
        if not shutil.which(program, path=path):
            return f"the program {program} is not installed"
    if importlib.util.find_spec("libvirt") is None:
        return "the Python package libvirt-python is not installed"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return "there is no user libvirt-qemu: the system package libvirt-daemon-system is not installed"
    return _missing("guest")


def user_id(name: str) -> str:
    """A user's number, as /proc writes it."""
    return str(pwd.getpwnam(name).pw_uid)


def require(name: str) -> None:
    """Skip the test if the judge `name` is missing; with CI=true that is a failure."""
    demand(_missing(name))


def demand(reason: str) -> None:
    """Skip the test for a reason, unless that is empty; with CI=true that is a failure."""
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true demands it")
    if reason:
        pytest.skip(reason)


def drgn_read(path: Path, ranges: Ranges) -> list[bytes]:
    """Guest-physical memory through drgn, one result per range."""
    require("drgn")
    import drgn

    program = drgn.Program()
    program.set_core_dump(path)
    return [program.read(address, size, physical=True) for address, size in ranges]


def makedumpfile_dmesg(dump: Path, output: Path) -> bytes:
    """The kernel's log as ``makedumpfile --dump-dmesg`` prints it."""
    require("makedumpfile")
    subprocess.run(["makedumpfile", "--dump-dmesg", dump, output], capture_output=True, check=True)
    # Where C's char has a sign, its %02x of a byte above 0x7f comes out as an int.
    return output.read_bytes().replace(rb"\xffffff", rb"\x")


def libkdumpfile_read(path: Path, ranges: Ranges) -> list[bytes]:
    """Guest-physical memory through libkdumpfile, one result per range."""
    ranges = list(ranges)
    data = _libkdumpfile(_LIBKDUMPFILE_READER, path=str(path), ranges=ranges)
    results, position = [], 0
    for _, size in ranges:
        results.append(data[position : position + size])
        position += size
    assert position == len(data)
    return results


def libkdumpfile_attributes(path: Path, names: Sequence[str]) -> dict[str, object]:
    """Attributes by their libkdumpfile names, such as "linux.uts.release"."""
    result: dict[str, object] = json.loads(
        _libkdumpfile(_LIBKDUMPFILE_ATTRIBUTES, path=str(path), names=list(names))
    )
    return result


def _libkdumpfile(program: str, **request: object) -> bytes:
    require("libkdumpfile")
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", program], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def makedumpfile_rearrange(flattened: Path, output: Path) -> None:
    """``makedumpfile -R``: the standard-layout file of a flattened one."""
    require("makedumpfile")
    with flattened.open("rb") as stream:
        done = subprocess.run(
            ["makedumpfile", "-R", str(output)], stdin=stream, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr


def makedumpfile_filter(dump: Path, output: Path, *options: str) -> str:
    """``makedumpfile OPTIONS dump output``; what it said."""
    require("makedumpfile")
    done = subprocess.run(
        ["makedumpfile", "--message-level", "31", *options, str(dump), str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _makedumpfile(*arguments: object) -> None:
    require("makedumpfile")
    command = ["makedumpfile", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def makedumpfile_split(dump: Path, parts: Sequence[Path], *options: str) -> None:
    """``makedumpfile --split OPTIONS dump part...``."""
    _makedumpfile("--split", *options, dump, *parts)


def makedumpfile_reassemble(parts: Sequence[Path], output: Path) -> None:
    """``makedumpfile --reassemble part... output``."""
    _makedumpfile("--reassemble", *parts, output)


def readelf(path: Path, *options: str) -> str:
    """``readelf OPTIONS path`` in the C locale; a warning or an error of readelf's fails the test."""
    require("readelf")
    done = subprocess.run(
        ["readelf", "--wide", *options, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    return done.stdout
