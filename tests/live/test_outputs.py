"""Outputs that are the guest's own: what its QEMU has open is not written over, whatever its name is."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.conftest import MakeGuest
from live.dumping import Dumping, succeeds
from live.guests import Guest

SINK = 5
CONTENT = b"the guest's disk" * (1 << 16)


def check_refused(guest: Guest, output: Path, *words: str) -> None:
    with Dumping(guest, output, *words) as dumping:
        line = dumping.end(SINK)
    assert "a disk of the guest" in line
    assert str(output) in line


@pytest.mark.parametrize("words", [(), ("-f", "elf")])
def test_disk_image(words: tuple[str, ...], bare_guest: MakeGuest, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(CONTENT)
    guest = bare_guest("64M", extra=("-drive", f"file={image},format=raw,if=virtio"))
    (tmp_path / "second").hardlink_to(image)
    (tmp_path / "link").symlink_to(image)
    for name in ("disk", "second", "link"):
        check_refused(guest, tmp_path / name, "--force", *words)
    assert image.read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 3
    succeeds(guest, tmp_path / "out", *words)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A disk, by a name of our own."""
    if os.geteuid():
        pytest.skip("loop devices need root")
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    path = Path(found.stdout.strip())
    yield path
    subprocess.run(["losetup", "-d", path], check=True)


def test_disk(device: Path, bare_guest: MakeGuest, tmp_path: Path) -> None:
    """A device is written to without --force: here that would be the end of the guest's system."""
    guest = bare_guest("64M", extra=("-drive", f"file={device},format=raw,if=virtio"))
    other = tmp_path / "other"
    os.mknod(other, 0o600 | stat.S_IFBLK, device.stat().st_rdev)
    for name in (device, other):
        check_refused(guest, name)
    with device.open("rb") as file:
        assert file.read() == CONTENT
