"""README.md and docs/: the blocks of a page, what is done with each, and how they are run.

The language of a block says what it is, and a comment in front of it what is done instead of running it:

- ``sh`` and ``python`` are run, page by page, in the page's order: the commands in one folder that is empty
  at first, the Python in one interpreter.
- ``<!-- parsed: REASON -->``: bash and vmdump, or Python's compiler, read the block and do not run it.
- ``ini`` is a unit of systemd: its sections and the command that it starts are read.
- ``text`` is output, and has no commands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
SOCKET = r"/run/[\w-]+\.qmp"
DOMAIN = r"libvirt:web-1"
"""What a page calls its guests."""
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^:\n]*): (?P<reason>[^\n]*) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# One process, so that what a block defines is there in the next one; bash for each of the commands' blocks.
_PLAYER = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for place, language, text in json.load(sys.stdin):
    print(f"=== {place}", flush=True)
    if language == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)
    else:
        exec(compile(text, place, "exec"), names)
        sys.stdout.flush()
"""


@dataclass(frozen=True)
class Block:
    """A block of a page; `mark` and `reason` are empty for one that is run."""

    page: str
    line: int
    language: str
    mark: str
    reason: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and not self.mark


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    """All blocks of a page but Sphinx's directives."""
    text = text_of(page)
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")) + 1,
            match["language"],
            match["mark"] or "",
            match["reason"] or "",
            match["text"],
        )
        for match in _BLOCK.finditer(text)
        if not match["language"].startswith("{")
    ]


def needs(page: str, pattern: str) -> bool:
    """Tell if the pattern is in a block of a page that is run."""
    return any(re.search(pattern, block.text) for block in blocks(page) if block.runs)


def command_lines(text: str) -> list[list[str]]:
    """The words of each call of vmdump in a block of commands, without its name."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words = list(lexer) if "vmdump" in line else []
        while words:
            end = next((i for i, word in enumerate(words) if set(word) <= set("|&;<>()")), len(words))
            part, words = words[:end], words[end + 1 :]
            if part and part[0] == "vmdump":
                found.append(part[1:])
    return found


def play(
    page: str, folder: Path, *, instead: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run all blocks of a page that are run.

    Parameters
    ----------
    page : str
        From the root of the repository on.
    folder : Path
        Where.
    instead : mapping, optional
        Regular expressions of names that a page uses, and what stands for them: the tests' guest for the
        reader's.
    prefix : sequence of str
        The command that runs it.
    """
    played = []
    for block in blocks(page):
        if block.runs:
            text = block.text
            for name, real in (instead or {}).items():
                text = re.sub(name, lambda _, real=real: real, text)
            played.append((block.place, block.language, text))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "TMPDIR": str(folder),
        "HOME": str(folder),
        # matplotlib looks for fonts once, for some seconds.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    try:
        return subprocess.run(
            [*prefix, "env", "-C", str(folder), sys.executable, "-c", _PLAYER],
            input=json.dumps(played),
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # names of guests that other tests have started
            check=False,
        )
    finally:
        # QEMU removes its pid file when it ends: this one is of a page that failed.
        for left in folder.rglob("*.pid"):
            os.kill(int(left.read_text()), signal.SIGKILL)


def check_played(page: str, folder: Path, **options: object) -> str:
    """Run a page, and give what it printed."""
    done = play(page, folder, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
