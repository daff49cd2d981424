"""Two directives that take the reference from vmdump itself: its commands' help and its docstrings."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import vmdump


def helped(*words: str) -> str:
    """Give what ``vmdump WORDS --help`` prints on a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "vmdump", *words, "--help"],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def commands() -> list[str]:
    """Name the commands that ``vmdump --help`` lists, in its order."""
    return re.findall(r"^  ([a-z][a-z-]*)  +\S", helped(), re.MULTILINE)


class Commands(SphinxDirective):
    """``{commands}``: a section for each command, with its own help."""

    def run(self) -> list[nodes.Node]:
        return list(self._sections())

    def _sections(self) -> Iterator[nodes.Node]:
        for name in commands():
            section = nodes.section(ids=[f"vmdump-{name}"], names=[f"vmdump {name}"])
            section += nodes.title("", f"vmdump {name}")
            text = helped(name)
            section += nodes.literal_block(text, text, language="text")
            yield section


def described(name: str) -> tuple[str, list[str]]:
    """Give what kind of thing a public name is, and the text that has its description."""
    value = getattr(vmdump, name)
    if isinstance(value, type):
        return "classes", [
            f".. autoclass:: vmdump.{name}",
            "   :members:",
            "   :inherited-members: int, tuple, Enum",
            "",
        ]
    if inspect.isroutine(value):
        return "functions", [f".. autofunction:: vmdump.{name}", ""]
    if words := get_args(value):
        return "types", [
            f".. data:: vmdump.{name}",
            "",
            f"   {', '.join(f'``{word}``' for word in words)}",
            "",
        ]
    return "others", []


class PublicNames(SphinxDirective):
    """``{public-names} functions``, ``classes`` or ``types``: those of ``vmdump.__all__``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = [
            line
            for name in vmdump.__all__
            for kind, text in [described(name)]
            if kind == self.arguments[0]
            for line in text
        ]
        container = nodes.container()
        # The page is Markdown, autodoc's directives are not.
        text = StringList(["```{eval-rst}", *lines, "```"], "vmdump.__all__")
        self.state.nested_parse(text, 0, container)
        return container.children


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Complain of public names that the site lacks."""
    there = env.domains.python_domain.objects
    for name in vmdump.__all__:
        if f"vmdump.{name}" not in there:
            logging.getLogger(__name__).warning("vmdump.%s is in no page", name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check_names)
    app.add_directive("commands", Commands)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
