"""The option -v, of the group and of commands; on its own, because it must not load numpy."""

from __future__ import annotations

import click

__all__ = ["verbose_option"]


def _begin_log(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from vmdump.cli.log import begin_log  # few want to know

        begin_log(context)


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_begin_log,
    help="Say what is done, and how long each step took.",
)
