"""Pictures that commands draw, with matplotlib, into files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmdump.errors import CapabilityError, RequestError
from vmdump.sinks.opening import open_sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLE", "load_matplotlib", "picture_file", "saved"]

STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "vmdump",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Of matplotlib: text stays text, and the same figures give the same bytes."""


def load_matplotlib() -> Any:
    """Import matplotlib, which is large and few need.

    Raises
    ------
    CapabilityError
        It is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.patches
        import matplotlib.ticker
        import matplotlib.transforms
    except ImportError as error:
        raise CapabilityError(
            f'a picture needs matplotlib ({error}): pip install "vmdump[chart]"; --json has the same figures'
        ) from error
    return matplotlib


def saved(figure: Figure, kind: str) -> bytes:
    """Give the file of a figure, without a date.

    Parameters
    ----------
    figure : Figure
        What is drawn.
    kind : str
        ``.svg``, ``.png`` or ``.pdf``.
    """
    file = io.BytesIO()
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(kind, {})
    figure.savefig(file, format=kind.removeprefix("."), metadata=undated)
    return file.getvalue()


@contextmanager
def picture_file(
    path: str | None, kinds: Sequence[str], *, force: bool
) -> Iterator[Callable[[Callable[[str], bytes]], None]]:
    """Open the file of a picture before the work is done that it shows; it appears at the end.

    Parameters
    ----------
    path : str or None
        The file, whose suffix says the kind; None for no picture.
    kinds : sequence of str
        Suffixes.
    force : bool
        Replace an existing file.

    Yields
    ------
    callable
        Takes what draws: a function that gives the file's bytes for a kind. It is not called without a path.

    Raises
    ------
    RequestError
        The suffix is none of these.
    CapabilityError
        matplotlib is not installed.
    SinkError, OutputExists
        The file cannot be written.
    """
    if path is None:
        yield lambda draw: None
        return
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise RequestError(f"picture: {path!r} does not end in {', '.join(kinds)}", parameter="picture")
    load_matplotlib()
    with open_sink(path, force=force) as sink:

        def write(draw: Callable[[str], bytes]) -> None:
            drawn = draw(kind)
            with sink.errors("cannot write the picture"):
                channel = sink.channel()
                channel.write(drawn)
                channel.flush()
                sink.set_size(channel.position)

        yield write
