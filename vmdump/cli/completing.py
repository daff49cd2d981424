"""What may stand at the cursor of a shell: sources, sockets, domains, formats, engines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import escape, iglob

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

__all__ = ["Bash", "complete_engine", "complete_format", "complete_layout", "complete_source"]

_FOLDERS = ("/run", "/run/*", "/var/run/qemu-server", ".")
"""Where sockets of monitors are."""
_MOST = 50
_STATE = "/run/libvirt/qemu"
_BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$(printf %%q "$value")")
                if [[ $value == *[:/] ]]; then compopt -o nospace; fi
                ;;
        esac
    done < <(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """Completion for bash, which by itself ends a word at each colon: qmp:/run/vm.qmp would be three."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Give the words before the cursor, and the one at it."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        self._begun = "" if line[-1:].isspace() or not words else words.pop()
        return words, self._begun

    def format_completion(self, item: CompletionItem) -> str:
        """Leave away what bash takes for words before."""
        breaks = os.environ["COMP_CWORD"]
        kept = max((self._begun.rfind(char) + 1 for char in ":=" if char in breaks), default=0)
        value = item.value[kept:] if item.type == "plain" else item.value
        return f"{item.type},{value}"


def complete_format(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Give formats, short names as well where no whole one begins so."""
    from vmdump.formats.kdump import CODEC_FLAGS
    from vmdump.formats.names import FORMATS

    names = _beginning(begun, [known.name for known in FORMATS])
    return names or _beginning(begun, list(CODEC_FLAGS))


def complete_layout(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Give layouts of kdump files."""
    from vmdump.formats.names import LAYOUTS

    return _beginning(begun, LAYOUTS)


def complete_engine(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Give the engines that this build has."""
    from vmdump.codecs.registry import engines

    return _beginning(begun, sorted({each.name for each in engines() if not each.missing}))


def complete_source(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Give schemes; behind qmp: sockets, behind libvirt: domains; and paths, which the shell has."""
    scheme, colon, rest = begun.partition(":")
    if colon and scheme == "qmp":
        return [CompletionItem(f"qmp:{path}") for path in _sockets(rest)]
    if colon and scheme == "libvirt":
        return [CompletionItem(f"libvirt:{name}") for name in _domains() if name.startswith(rest)]
    from vmdump.opening import schemes

    found = _beginning(begun, [f"{scheme}:" for scheme in schemes()]) if begun else []
    return found or [CompletionItem(begun, type="file")]


def _beginning(begun: str, words: Sequence[str]) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(begun)]


def _sockets(begun: str) -> list[str]:
    patterns = [f"{escape(begun)}*"] if begun else [f"{folder}/*" for folder in _FOLDERS]
    found = []
    for pattern in patterns:
        # A name with a newline would be two answers to a shell.
        for path in filter(str.isprintable, iglob(pattern)):
            with suppress(OSError):
                mode = os.stat(path).st_mode
                if stat.S_ISSOCK(mode):
                    found.append(path.removeprefix("./"))
                elif begun and stat.S_ISDIR(mode):
                    found.append(f"{path}/")
            if len(found) == _MOST:
                return found
    return found


def _domains() -> Iterator[str]:
    """Give libvirt's domains by the command lines of their QEMUs, and by what its daemon has written down."""
    from vmdump.operations.guests import guests

    names = {guest.domain for guest in guests() if guest.domain}
    with suppress(OSError):
        names |= {name.removesuffix(".xml") for name in os.listdir(_STATE) if name.endswith(".xml")}
    # Any process may claim to be a domain: no name is an option, ?uri= of a daemon, or two answers.
    yield from sorted(name for name in names if name.isprintable() and "?" not in name)
