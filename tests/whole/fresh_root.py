#!/usr/bin/env python3
"""Try a wheel in a fresh root file system of another Debian release; as root, with debootstrap.

    tests/whole/fresh_root.py dist/vmdump-*.whl --release trixie

The root file system has a Python and nothing else: no compiler, none of the codec libraries but libzstd,
which apt itself needs, and no network. What the wheel requires is downloaded outside, for the Python inside.
It stays in build/fresh-root, for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path(__file__).parent.parent.parent / "build/fresh-root"
LIBRARIES = ("libisal", "libdeflate", "liblzo2", "libsnappy")
GUEST = "synthetic:64M?fill=0.5"
ENVIRONMENT = "PATH=/usr/bin:/bin HOME=/root LC_ALL=C.UTF-8"
ENTER = f'mount -t proc proc "$0/proc" && exec chroot "$0" env -i {ENVIRONMENT} "$@"'
"""In a network of its own, which has no interface."""


def make_root(release: str) -> Path:
    """Give the root file system, which is made if it is not there yet."""
    root, unfinished = CACHE / release, CACHE / f"{release}.unfinished"
    if not root.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        packages = "--include=python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", packages, release, unfinished], check=True)
        unfinished.rename(root)
    return root


def inside(root: Path, *words: str) -> str:
    """Run a command in there; give what it printed."""
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", ENTER, str(root), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def processor_seconds() -> float:
    """Give what all commands together have used so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def check_nothing_is_there(root: Path) -> None:
    """Make sure that what the wheel carries is not found outside of it."""
    found = [str(path) for name in LIBRARIES for path in root.glob(f"usr/lib/*/{name}.so*")]
    found += [name for name in ("gcc", "cc", "clang") if shutil.which(name, path=str(root / "usr/bin"))]
    if found:
        raise SystemExit(f"{root} is not fresh: {', '.join(found)}")


def download(wheel: Path, version: str, folder: Path) -> None:
    """Put the wheel, and those that it requires, into the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    words = (
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--python-version",
        version,
        "--dest",
        folder,
        wheel,
    )
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)


def try_wheel(root: Path, wheel: Path) -> None:
    """Install it, and dump a guest in each format."""
    version = inside(root, "python3", "-c", "import platform; print(platform.python_version())").strip()
    download(wheel, version, root / "tmp/wheels")
    inside(root, "rm", "-rf", "/tmp/venv", "/tmp/dumps")
    inside(root, "python3", "-m", "venv", "/tmp/venv")
    begin, used_before = time.monotonic(), processor_seconds()
    packages = f"/tmp/wheels/{wheel.name}"
    inside(root, "/tmp/venv/bin/pip", "install", "--no-index", "--find-links", "/tmp/wheels", packages)
    used = processor_seconds() - used_before
    print(f"Python {version}: installed in {time.monotonic() - begin:.1f} s, {used:.1f} s of a processor")
    command = "/tmp/venv/bin/vmdump"
    found = json.loads(inside(root, command, "capabilities", "--json"))
    lacking = [f"{each['name']}: {each['missing']}" for each in found["formats"] if each["missing"]]
    lacking += [
        f"{each['name']}: {each['missing']}"
        for each in found["engines"]
        if each["missing"] and each["kind"] == "native"
    ]
    if lacking:
        raise SystemExit("\n".join(lacking))
    inside(root, "mkdir", "/tmp/dumps")
    for state in found["formats"]:
        path = f"/tmp/dumps/{state['name']}"
        inside(root, command, "dump", GUEST, path, "--format", state["name"])
        inside(root, command, "verify", path, "--against", GUEST)
        print(f"{state['name']:<18}{state['default_engine'] or '-':<12}verified")
    inside(root, "test", "-s", "/tmp/venv/share/man/man1/vmdump-dump.1")
    inside(root, "rm", "-rf", "/tmp/venv", "/tmp/dumps", "/tmp/wheels")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--release", default="trixie")
    asked = parser.parse_args()
    if os.geteuid():
        parser.error("only root can make a root file system and change to it")
    root = make_root(asked.release)
    check_nothing_is_there(root)
    try_wheel(root, asked.wheel)


if __name__ == "__main__":
    main()
