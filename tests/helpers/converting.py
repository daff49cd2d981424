"""Dumps of every kind that vmdump writes: "elf", "kdump-lzo flattened", "kdump-zstd split"."""

from __future__ import annotations

from pathlib import Path

from oracles import holdings
from oracles.holdings import Holdings

import vmdump


def write(source: object, path: Path, kind: str, **options: object) -> vmdump.Report:
    """Convert to a kind of dump."""
    name, _, layout = kind.partition(" ")
    if layout == "split":
        return vmdump.convert(source, path, format=name, split=3, **options)  # type: ignore[arg-type]
    return vmdump.convert(source, path, format=name, layout=layout or "auto", **options)  # type: ignore[arg-type]


def parts(path: Path) -> list[Path]:
    """Give the files of a split set in their order."""
    return sorted(path.parent.glob(f"{path.name}.[0-9]"))


def held(path: Path, kind: str) -> Holdings:
    """Give what an oracle finds in it."""
    if kind == "elf":
        return holdings.of_elf(path)
    if kind.endswith("split"):
        return holdings.of_split(parts(path))
    if kind.endswith("flattened"):
        return holdings.of_flattened(path, path.with_suffix(".standard"))
    return holdings.of_kdump(path)


def opened(path: Path, kind: str) -> Path | list[Path]:
    """Give what to hand to `vmdump.open`."""
    return parts(path) if kind.endswith("split") else path
