"""Help that teaches: examples, where the documentation is, and what is missing of a call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import click

from vmdump.cli.printing import emphasised

__all__ = [
    "COMPLETE",
    "DOCUMENTATION",
    "SOURCES",
    "Formatter",
    "TaughtCommand",
    "TaughtContext",
    "wants_colour",
    "write_end",
]

DOCUMENTATION = "https://vmdump.example/docs"
SOURCES = (
    ("qmp:SOCKET", "A live guest of QEMU, by its QMP socket; the path alone will do."),
    ("libvirt:NAME", "A live guest of libvirt, by name or UUID; ?uri=qemu:///session names a daemon."),
    ("PATH...", "A dump of any kind that vmdump reads, or all parts of a split set."),
    ("raw:PATH?machine=q35", "Raw memory, in one file or several; or ?blocks=0-2G,4G-6G, or ?base=0x0."),
    ("lime:PATH?arch=aarch64", "A LiME file of another architecture than x86_64."),
    ("avml:PATH?arch=aarch64", "An AVML file of another architecture than x86_64."),
    ("synthetic:SIZE", "A guest that is computed: ?seed=1&fill=0.3"),
)
"""What a source is called, and what it is."""
COMPLETE = "_VMDUMP_COMPLETE"
"""The variable by which a shell's script asks what may stand at the cursor."""
_WIDEST = 100
_NARROW = 60
"""Columns: below this, what explains a word is in the lines below it."""
_TERM = 30
_GAP = 2


class Formatter(click.HelpFormatter):
    """Lay out help for the terminal's width; words with hyphens stay whole, so that they can be copied."""

    def __init__(self, width: int | None = None, **_: Any) -> None:
        from shutil import get_terminal_size  # 3 ms, for help only

        columns = get_terminal_size().columns
        super().__init__(width=width or max(min(columns, _WIDEST) - 2, 20))

    def write_heading(self, heading: str) -> None:
        """Write a heading in bold."""
        self.write(f"{'':>{self.current_indent}}{emphasised(f'{heading}:')}\n")

    def write_text(self, text: str) -> None:
        """Write paragraphs."""
        indent = " " * self.current_indent
        for number, paragraph in enumerate(text.split("\n\n")):
            if number:
                self.write("\n")
            self._fill(paragraph, indent, indent)

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = _TERM, col_spacing: int = _GAP
    ) -> None:
        """Write words, and beside each what it means; below it where the terminal is narrow."""
        listed = list(rows)
        longest = max((len(term) for term, _ in listed), default=0)
        column = self.current_indent + min(longest, col_max) + col_spacing
        if self.width < _NARROW:
            column = self.current_indent + 2 * col_spacing
        for term, text in listed:
            used = self.current_indent + len(term)
            beside = used + col_spacing <= column
            shown = term if beside else term.rstrip()
            self.write(f"{'':>{self.current_indent}}{emphasised(shown, 'cyan')}")
            if not beside:
                self.write("\n")
                used = 0
            self._fill(text, " " * (column - used), " " * column, used)

    def _fill(self, text: str, first: str, others: str, used: int = 0) -> None:
        from textwrap import wrap

        lines = wrap(
            " ".join(text.split()),
            self.width,
            initial_indent=" " * used + first,
            subsequent_indent=others,
            break_on_hyphens=False,
        )
        self.write("\n".join(lines)[used:] + "\n")


class TaughtContext(click.Context):
    """A context whose help is laid out by :class:`Formatter`."""

    formatter_class = Formatter


class TaughtCommand(click.Command):
    """A command with examples.

    Parameters
    ----------
    examples : sequence of str
        Whole command lines.
    takes_sources : bool
        Explain what a source may be.
    """

    context_class = TaughtContext

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), takes_sources: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.examples = examples
        self.takes_sources = takes_sources

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write sources, examples, and where to read on."""
        if self.takes_sources:
            with formatter.section("Sources"):
                formatter.write_dl(SOURCES)
        write_end(formatter, self.examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the arguments that are missing: people give them from the left."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            if not isinstance(error.param, click.Argument):
                raise
            values, _, _ = self.make_parser(ctx).parse_args(given)
            arguments = [each for each in self.params if isinstance(each, click.Argument)]
            # Of one that is missing, the parser gives an empty sequence, or something that is no text.
            count = sum(
                bool(value) and isinstance(value, str | tuple | list)
                for value in (values.get(each.name or "") for each in arguments)
            )
            names = [each.make_metavar(ctx) for each in arguments[count:]]
            plural = "s" if len(names) > 1 else ""
            raise click.UsageError(f"missing argument{plural} {' and '.join(names)}", ctx) from error


def write_end(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write examples, and where to read on."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                # Not wrapped: it is to be copied.
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    formatter.write_paragraph()
    formatter.write(f"Documentation: {DOCUMENTATION}\n")


def wants_colour() -> bool | None:
    """Tell whether text may be coloured: None leaves it to the stream, which a terminal may be."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
