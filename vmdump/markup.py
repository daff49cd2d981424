"""HTML from parts: whatever is no markup itself is escaped, and nothing in a text steers a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Html", "facts_table", "tag", "text"]

_LONGEST = 4000
"""Characters of a text that are shown: a hostile file may have a name of gigabytes."""
_VOID = frozenset({"br", "input", "meta", "path", "rect", "line", "polyline"})


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


def text(value: object) -> Html:
    r"""Escape a text; what is not printable is written as Python writes it in a string.

    Examples
    --------
    >>> print(text("<b>\u202e&"))
    &lt;b&gt;\u202e&amp;
    """
    if isinstance(value, Html):
        return value
    plain = str(value)
    if len(plain) > _LONGEST:
        plain = f"{plain[:_LONGEST]}... ({len(plain)} characters)"
    if not plain.isprintable():
        plain = "".join(
            char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
            for char in plain
        )
    return Html(escape(plain))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Make an element.

    Parameters
    ----------
    name : str
        Of the element.
    *children
        Markup, or anything else as text.
    **attributes
        A trailing ``_`` of a name is dropped, other ``_`` are ``-``; those of None are left out.

    Examples
    --------
    >>> print(tag("p", "1 < 2", tag("b", "!"), class_="x"))
    <p class="x">1 &lt; 2<b>!</b></p>
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{words}/>")
    return Html(f"<{name}{words}>{''.join(map(text, children))}</{name}>")


def facts_table(title: str, rows: Iterable[tuple[object, ...]], *, head: Sequence[object] = ()) -> Html:
    """Make a small table that brings its own looks, for a notebook; light or dark is as around it.

    Parameters
    ----------
    title : str
        Above it.
    rows : iterable of tuple
        Cells; the first is the row's name.
    head : sequence
        Names of the columns.
    """
    name = "text-align:left;font-weight:600;vertical-align:top;padding:1px 12px 1px 0"
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0"
    lines = [tag("tr", *(tag("th", each, scope="col", style=name) for each in head))] if head else []
    lines += [
        tag(
            "tr",
            tag("th", row[0], scope="row", style=name),
            *(tag("td", each, style=cell) for each in row[1:]),
        )
        for row in rows
    ]
    caption = tag("caption", title, style="text-align:left;font-weight:600;padding:2px 0")
    looks = "border-collapse:collapse;color:inherit;background:transparent"
    return tag("table", caption, tag("tbody", *lines), class_="vmdump", style=looks)
