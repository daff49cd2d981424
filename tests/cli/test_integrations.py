"""``vmdump integrations``."""

from __future__ import annotations

from pathlib import Path

from helpers.command import RunVmdump

REQUEST = 2


def test_folder_of_a_program(run_vmdump: RunVmdump) -> None:
    done = run_vmdump("integrations", "volatility3")
    assert done.returncode == 0
    folder = Path(done.stdout.decode().removesuffix("\n"))
    assert (folder / "vmdump_layer.py").is_file()
    listed = run_vmdump("integrations").stdout.decode()
    assert listed == f"volatility3  {folder}\n"


def test_unknown_program(run_vmdump: RunVmdump) -> None:
    done = run_vmdump("integrations", "volatility")
    assert done.returncode == REQUEST
    assert done.stdout == b""
    assert (
        done.stderr.decode()
        == "vmdump: name: no plugins for volatility (is it volatility3?); there are some for volatility3\n"
    )
