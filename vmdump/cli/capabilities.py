"""``vmdump capabilities``."""

from __future__ import annotations

import click

from vmdump import Capabilities, capabilities
from vmdump.cli.help import TaughtCommand
from vmdump.cli.hints import engine_hint
from vmdump.cli.printing import console, say, say_json

__all__ = ["capabilities_command"]


@click.command(
    "capabilities",
    cls=TaughtCommand,
    examples=(
        "vmdump capabilities",
        "vmdump capabilities --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def capabilities_command(as_json: bool) -> None:
    """Show the formats, codecs and engines of this build, and why something is missing."""
    found = capabilities()
    if as_json:
        say_json(found.as_dict())
    else:
        _show(found)


def _show(found: Capabilities) -> None:
    from rich.table import Table

    terminal = console()
    formats = Table("format", "codec", "default engine", "state", title="Formats")
    for known in found.formats:
        formats.add_row(
            known.name, known.codec or "-", known.default_engine or "-", known.missing or "available"
        )
    engines = Table("codec", "engine", "kind", "version", "levels", "default", "state", title="Engines")
    for engine in found.engines:
        levels = f"{engine.min_level}-{engine.max_level}" if engine.has_levels else "-"
        engines.add_row(
            engine.codec,
            engine.name,
            engine.kind,
            engine.version or "-",
            levels,
            str(engine.default_level) if levels != "-" else "-",
            "missing" if engine.missing else "available",
        )
    kernels = Table("kernel", "state", title="Zero-page tests")
    for name, missing in found.zero_kernels.items():
        state = missing or ("in use" if name == found.default_zero_kernel else "available")
        kernels.add_row(name, state)
    terminal.print(formats)
    terminal.print(engines)
    # Below: in a column of an 80-column table they would be cut, and some are to be copied.
    for engine in found.engines:
        if engine.missing:
            say(f"{engine.name}: {engine.missing}")
    terminal.print(kernels)
    terminal.print(f"Layouts of kdump files: {', '.join(found.layouts)}")
    if hint := engine_hint((known.codec, known.default_engine) for known in found.formats):
        terminal.print(hint)
