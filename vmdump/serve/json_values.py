"""JSON as QEMU reads it: what is wrong with a message is said in QEMU's words."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["JsonError", "parse", "readable", "write"]

_MAX_DIGITS = 20
_MIN_INTEGER, _MAX_INTEGER = -(1 << 63), (1 << 64) - 1
_ESCAPE = re.compile(r"\\(u.{0,4}|.)", re.DOTALL)
_HEX = re.compile("u[0-9a-fA-F]{4}")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_NOT_A_CHARACTER = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    + "".join(chr((plane << 16) + last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_UNREADABLE = "\ufffd"
_LETTERS = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {b"true": True, b"false": False, b"null": None}


class JsonError(Exception):
    """A message is not JSON."""


def parse(tokens: list[bytes]) -> Any:
    """Make the value of a message's tokens.

    Parameters
    ----------
    tokens : list of bytes
        Strings with their quotes, numbers, words, brackets, commas and colons; each is what it looks like.

    Raises
    ------
    JsonError
        There is none; QEMU's text.
    """
    text = b" ".join(tokens)
    if b"'" not in text and b"\\u" not in text:
        try:
            decoded = text.decode()
            # The second takes 0.15 us a character.
            if decoded.isascii() or not _NOT_A_CHARACTER.search(decoded):
                return json.loads(decoded, object_pairs_hook=_unique, parse_int=_integer, parse_float=_number)
        except (ValueError, RecursionError):
            pass  # what Python's own does not take, or takes differently, is looked at word by word
    return _Parser(tokens).value()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError
    return made


def _integer(text: str) -> int | float:
    if len(text) <= _MAX_DIGITS and _MIN_INTEGER <= (number := int(text)) <= _MAX_INTEGER:
        return number
    return _number(text)


def _number(text: str) -> float:
    # QEMU has infinities, for which JSON has no word.
    return max(min(float(text), sys.float_info.max), -sys.float_info.max)


class _Parser:
    """Goes through the tokens without recursion: Python's ends before QEMU's 1024 levels."""

    def __init__(self, tokens: list[bytes]) -> None:
        self._tokens = iter(tokens)

    def _next(self) -> bytes:
        try:
            return next(self._tokens)
        except StopIteration:
            raise JsonError("premature EOI") from None

    def value(self) -> Any:
        """Give the value; JsonError if there is none."""
        open_ones: list[tuple[Any, str | None]] = []  # each with the key that its next value is for
        token = self._next()
        while True:
            if token in (b"{", b"["):
                container: Any = {} if token == b"{" else []
                token = self._next()
                if token == (b"}" if isinstance(container, dict) else b"]"):
                    made = container
                elif isinstance(container, dict):
                    open_ones.append((container, self._key(token, container)))
                    token = self._next()
                    continue
                else:
                    open_ones.append((container, None))
                    continue
            else:
                made = _scalar(token)
            while open_ones:
                container, key = open_ones.pop()
                if isinstance(container, dict):
                    container[key] = made
                    token, end, kind = self._next(), b"}", "dict"
                else:
                    container.append(made)
                    token, end, kind = self._next(), b"]", "list"
                if token != end:
                    if token != b",":
                        raise JsonError(f"expected separator in {kind}")
                    token = self._next()
                    if kind == "dict":
                        open_ones.append((container, self._key(token, container)))
                        token = self._next()
                    else:
                        open_ones.append((container, None))
                    break
                made = container
            else:
                return made

    def _key(self, token: bytes, container: dict[str, Any]) -> str:
        """Read a key and the colon behind it."""
        if token in (b"{", b"["):
            raise JsonError("key is not a string in object")
        key = _scalar(token)
        if not isinstance(key, str):
            raise JsonError("key is not a string in object")
        if self._next() != b":":
            raise JsonError("missing : in object pair")
        if key in container:
            raise JsonError("duplicate key")
        return key


def _scalar(token: bytes) -> Any:
    first = token[:1]
    if first in (b'"', b"'"):
        return _string(token)
    if first.isdigit() or first == b"-":
        text = token.decode()
        return _integer(text) if text.lstrip("-").isdigit() else _number(text)
    if not first.isalpha():
        raise JsonError("expecting value")
    if token not in _WORDS:
        raise JsonError(f"invalid keyword '{token.decode()}'")
    return _WORDS[token]


def _string(token: bytes) -> str:
    # With the quote at the end, which QEMU's texts show where an escape is cut off by it.
    text = token[1:].replace(b"\xc0\x80", b"\0").decode(errors="surrogateescape")
    return "".join(_pieces(text))[:-1]


def _pieces(text: str) -> Iterator[str]:
    """Give a string's text with its escapes replaced."""
    position = 0
    while (escape := _ESCAPE.search(text, position)) is not None:
        yield _characters(text[position : escape.start()])
        position = escape.end()
        word = escape[1]
        if not word.startswith("u"):
            if word not in _LETTERS:
                raise JsonError("invalid escape sequence in string")
            yield _LETTERS[word]
            continue
        code = _code(word)
        if 0xD800 <= code < 0xDC00 and (low := _LOW_SURROGATE.match(text, position)):
            position = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if _NOT_A_CHARACTER.match(chr(code)):
            raise _no_character(word)
        yield chr(code)
    yield _characters(text[position:])


def _characters(text: str) -> str:
    if _NOT_A_CHARACTER.search(text):
        raise JsonError("invalid UTF-8 sequence in string")
    return text


def _code(word: str) -> int:
    if not _HEX.fullmatch(word):
        raise _no_character(word)
    return int(word[1:], 16)


def _no_character(word: str) -> JsonError:
    return JsonError(f"\\{_NOT_A_CHARACTER.sub(_UNREADABLE, word)} is not a valid Unicode character")


def readable(raw: bytes) -> str:
    """Give bytes as text that can be written, whatever they are."""
    text = raw.replace(b"\xc0\x80", b"\0").decode(errors="replace")
    return _NOT_A_CHARACTER.sub(_UNREADABLE, text)


def write(value: object) -> bytes:
    """Give a value as JSON on one line, however deep it is nested."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return "".join(_words(value)).encode()


def _words(value: object) -> Iterator[str]:
    """Give the text of a value in pieces, without recursion."""
    waiting: list[object] = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, _Text):
            yield part
        elif isinstance(part, dict):
            waiting.append(_Text("}"))
            for number, (key, member) in reversed(list(enumerate(part.items()))):
                waiting += [member, _Text(f"{', ' if number else ''}{json.dumps(key, ensure_ascii=False)}: ")]
            waiting.append(_Text("{"))
        elif isinstance(part, list):
            waiting.append(_Text("]"))
            for number, member in reversed(list(enumerate(part))):
                waiting += [member, _Text(", " if number else "")]
            waiting.append(_Text("["))
        else:
            yield json.dumps(part, ensure_ascii=False)


class _Text(str):
    """Ready to be written."""

    __slots__ = ()
