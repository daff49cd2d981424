"""Open the page of ``vmdump report`` in Chromium: beside the suite, because that takes 300 MiB.

``python tests/browser.py [DUMP] [FOLDER]`` reports on a dump, a synthetic one if none is named. It demands
that the page's own script runs under the page's policy, and that the browser complains of nothing. It leaves
screenshots, light and dark, wide and narrow.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from oracles.log_ring import LINES, Ring

import vmdump
from vmdump.cli.main import main

BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
SIZES = {"wide": (1280, 2000), "narrow": (420, 2600)}
SCHEMES = {"light": 1, "dark": 0}
"""Chromium's numbers of prefers-color-scheme."""


def browse(profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium once."""
    command = [*BROWSER, f"--user-data-dir={profile}", "--enable-logging=stderr", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def make_dump(file: Path) -> None:
    """Dump a guest with a log and two vCPUs."""
    ring = Ring()
    ring.add(b"first message")
    ring.add(b"<script>document.title = 'owned'</script>", level=3)
    memory = np.frombuffer(ring.finish(), np.uint8)
    source = vmdump.BlockSource(memory, vmcoreinfo=LINES.encode(), cpus=[{"rip": 0x1234}, {"rip": 7}])
    vmdump.dump(source, file)


def run(dump: str, folder: Path) -> None:
    """Make the page and look at it."""
    page = folder / "report.html"
    if not dump:
        dump = str(folder / "guest.kdump")
        make_dump(folder / "guest.kdump")
    assert main(["report", dump, "-o", str(page), "--force"]) == 0
    with tempfile.TemporaryDirectory() as profile:
        done = browse(Path(profile), "--virtual-time-budget=2000", "--dump-dom", page.as_uri())
        records = done.stdout.count('<div data-level="')
        assert f">{records} of {records}</span>" in done.stdout, "the search does not run"
        assert "<title>owned" not in done.stdout
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not complaints, complaints
        for size, (width, height) in SIZES.items():
            for scheme, number in SCHEMES.items():
                picture = folder / f"{size}-{scheme}.png"
                browse(
                    Path(profile),
                    f"--blink-settings=preferredColorScheme={number}",
                    f"--window-size={width},{height}",
                    f"--screenshot={picture}",
                    page.as_uri(),
                )
                print(picture)


if __name__ == "__main__":
    named = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="vmdump-report-")
    run(sys.argv[1] if len(sys.argv) > 1 else "", Path(named))
