"""``vmdump completion``."""

from __future__ import annotations

import click

from vmdump.cli.help import COMPLETE, TaughtCommand
from vmdump.cli.printing import say

__all__ = ["completion_command"]


@click.command(
    "completion",
    cls=TaughtCommand,
    examples=(
        "vmdump completion bash >~/.local/share/bash-completion/completions/vmdump",
        "vmdump completion zsh >~/.zfunc/_vmdump",
        "vmdump completion fish >~/.config/fish/completions/vmdump.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
def completion_command(shell: str) -> None:
    """Print the script by which a shell completes commands, options, sources and formats.

    SHELL is bash, zsh or fish. Bash has to be 4.4 or later. The examples put it where the shells look; for
    zsh, the folder has to be in fpath before compinit is called.
    """
    from click.shell_completion import get_completion_class

    import vmdump.cli.completing  # noqa: F401  it has the class for bash

    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = click.get_current_context().find_root()
    script = kind(root.command, {}, "vmdump", COMPLETE)
    say(*(script.source_template % script.source_vars()).split("\n"), keep="\t")
